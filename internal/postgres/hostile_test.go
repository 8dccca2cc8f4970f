package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/postgres"
)

const password = "correct-horse-battery"

// as is a database's URL for another login; the tests' server asks for no password.
func as(t *testing.T, dbURL, login string) string {
	t.Helper()
	u, err := url.Parse(dbURL)
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.User(login)
	return u.String()
}

func connect(t *testing.T, url string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(context.Background(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

func mustExec(t *testing.T, conn *pgx.Conn, statements ...string) {
	t.Helper()
	for _, sql := range statements {
		if _, err := conn.Exec(context.Background(), sql); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
}

// newTenant makes a tenant whose role no other test has: roles are the server's.
func newTenant(t *testing.T, a *postgres.Admin, name string) {
	t.Helper()
	if made, err := a.CreateTenant(context.Background(), name); err != nil || !made {
		t.Fatalf("create %s: made %v, %v", name, made, err)
	}
}

// A tenant whose own code logs in by its role plants what it can, and then each thing is done that an admin does: none of it runs with other rights than the
// tenant's.
func TestAHostileTenantRunsNothingWithTheRightsOfOthers(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	d := pgtest.New(t)
	a := d.Admin(t)
	super := connect(t, d.AdminURL)
	newTenant(t, a, "mallory")
	if err := a.SetLogin(ctx, "mallory", password); err != nil {
		t.Fatal(err)
	}
	mallory := connect(t, as(t, d.URL, "mallory"))

	// What may be done with the rights of others, in each of the ways to get them.
	const evil = `$evil$ BEGIN
		BEGIN RESET ROLE; EXCEPTION WHEN OTHERS THEN NULL; END;
		BEGIN CREATE TABLE brava.planted (); EXCEPTION WHEN OTHERS THEN NULL; END;
		BEGIN UPDATE brava.contact SET email = 'planted'; EXCEPTION WHEN OTHERS THEN NULL; END;
		BEGIN UPDATE onda.tenant SET schema = 666; EXCEPTION WHEN OTHERS THEN NULL; END;
		BEGIN CREATE ROLE planted SUPERUSER; EXCEPTION WHEN OTHERS THEN NULL; END;
		RETURN NEW; END $evil$`
	for _, sql := range []string{
		"CREATE FUNCTION mallory.evil() RETURNS trigger LANGUAGE plpgsql AS " + evil,
		"CREATE FUNCTION onda.evil() RETURNS trigger LANGUAGE plpgsql AS " + evil,
		"CREATE FUNCTION public.evil() RETURNS trigger LANGUAGE plpgsql AS " + evil,
		"CREATE OR REPLACE FUNCTION ensure_partitions() RETURNS void LANGUAGE sql AS 'SELECT 1'",
		"ALTER FUNCTION ensure_partitions() SET search_path = pg_temp",
		"CREATE TRIGGER evil BEFORE INSERT ON key EXECUTE FUNCTION suppress_redundant_updates_trigger()",
		"CREATE CONSTRAINT TRIGGER evil AFTER UPDATE ON batch DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()",
		"CREATE RULE evil AS ON INSERT TO key DO ALSO DELETE FROM key",
		"ALTER TABLE key ALTER name SET DEFAULT 'planted'",
		"ALTER TABLE batch ADD CHECK (mark > 1000)",
		"ALTER TABLE contact ENABLE ROW LEVEL SECURITY",
		"CREATE POLICY evil ON contact USING (true)",
		"CREATE INDEX evil ON batch ((mark + 1))",
		"CREATE VIEW mallory.evil AS SELECT 1",
		"CREATE TABLE mallory.evil ()",
		"CREATE TABLE mallory.delivery_1 PARTITION OF delivery FOR VALUES FROM (99999999999) TO (999999999999)",
		"CREATE TYPE mallory.text AS (a integer)",
		"CREATE OPERATOR mallory.= (LEFTARG = text, RIGHTARG = text, FUNCTION = texteq)",
		"CREATE SCHEMA evil",
		"ALTER SCHEMA mallory OWNER TO mallory",
		"ALTER TABLE key OWNER TO mallory",
		"DROP TABLE hit",
		"TRUNCATE hit",
		"SET ROLE onda_owner",
		"SET ROLE brava",
		"SET ROLE onda_managed",
		"GRANT mallory TO brava",
		"GRANT brava TO mallory",
		"ALTER ROLE onda_pool SET search_path = mallory",
		"UPDATE onda.tenant SET state = 'active'",
		"UPDATE onda.tenant SET link_hosts = '{links.brava.example}'",
		"INSERT INTO onda.host (host, tenant, kind) VALUES ('links.brava.example', 'mallory', 'link')",
		"UPDATE onda.database SET development = true",
		"UPDATE onda.database SET preproduction = false",
		"UPDATE onda.wakeup SET function = 'x@example.org/'",
		"INSERT INTO onda.wakeup (tenant, function) VALUES ('mallory', 'x@example.org/')",
		"BEGIN; LOCK TABLE onda.migration IN EXCLUSIVE MODE; COMMIT",
		"ROLLBACK; SELECT FROM onda.tenant FOR UPDATE",
		"SELECT FROM brava.contact",
	} {
		_, err := mallory.Exec(ctx, sql)
		var pe *pgconn.PgError
		if !errors.As(err, &pe) || pe.Code != "42501" {
			t.Errorf("%s: %v, want permission denied", sql, err)
		}
	}

	// What nobody can refuse it, in its own session: names that stand before Postgres's. It tells when anything runs that is not its own.
	const told = `LANGUAGE plpgsql AS $$ BEGIN IF current_user <> 'mallory' THEN RAISE EXCEPTION 'planted code runs as %', current_user; END IF; RETURN true; END $$`
	mustExec(t, mallory,
		"CREATE FUNCTION pg_temp.tell(anyelement) RETURNS boolean "+told,
		"CREATE DOMAIN pg_temp.text AS pg_catalog.text CHECK (pg_temp.tell(VALUE))",
		"CREATE DOMAIN pg_temp.int8 AS pg_catalog.int8 CHECK (pg_temp.tell(VALUE))",
		"CREATE FUNCTION pg_temp.less(bigint, bigint) RETURNS boolean LANGUAGE sql AS 'SELECT pg_temp.tell(1)'",
		"CREATE OPERATOR pg_temp.< (LEFTARG = bigint, RIGHTARG = bigint, FUNCTION = pg_temp.less)",
		"CREATE TEMP TABLE batch (id bigint CHECK (pg_temp.tell(id)), contacts bigint[])", "CREATE TEMP TABLE contact (id bigint)",
		"INSERT INTO pg_temp.batch VALUES (1, '{1}')", "INSERT INTO pg_temp.contact VALUES (1)",
		"SET search_path = pg_temp, pg_catalog, mallory, onda",
		"SELECT mallory.ensure_partitions()", "SELECT mallory.update_statistics()", "SELECT mallory.drop_partition(now(), now())", "SELECT onda.identity(), onda.now()",
		"INSERT INTO mallory.contact (email) VALUES ('ada@example.com')", "INSERT INTO mallory.fact (kind) VALUES ('x')", "INSERT INTO onda.failure (function, tenant, event, error) VALUES ('x', 'x', '{}', 'x')",
	)

	// All that an admin does.
	mustExec(t, super, "UPDATE onda.database SET development = true")
	other := "mallory-too"
	for _, step := range []struct {
		name string
		do   func() error
	}{
		{"migrate", func() error { _, err := a.Migrate(ctx); return err }},
		{"a migration", func() error {
			mustExec(t, super, "UPDATE onda.tenant SET schema = 0 WHERE name = 'mallory'")
			_, err := a.Migrate(ctx)
			mustExec(t, super, fmt.Sprintf("UPDATE onda.tenant SET schema = %d WHERE name = 'mallory'", postgres.Schema))
			if err == nil || !strings.Contains(err.Error(), "already exists") {
				return fmt.Errorf("a migration that was had: %w", err)
			}
			return nil
		}},
		{"create", func() error { _, err := a.CreateTenant(ctx, "mallory"); return err }},
		{"create another", func() error { _, err := a.CreateTenant(ctx, other); return err }},
		{"list", func() error { _, err := a.Tenants(ctx); return err }},
		{"sizes", func() error {
			sizes, err := a.Sizes(ctx)
			if err == nil && (sizes["mallory"] < 100_000 || sizes[other] < 100_000) {
				err = fmt.Errorf("they are %v", sizes)
			}
			return err
		}},
		{"add key", func() error { return a.AddProgramKey(ctx, "mallory", "sk", "shop", []byte("x")) }},
		{"has key", func() error { _, err := a.HasProgramKey(ctx, "mallory", []byte("x")); return err }},
		{"retire key", func() error { _, err := a.RetireProgramKeys(ctx, "mallory", "sk", "shop"); return err }},
		{"clock", func() error { _, err := a.MoveClock(ctx, "mallory", time.Hour); return err }},
		{"mark", func() error { return a.MarkDevelopment(ctx) }},
		{"production", func() error { _, err := a.InProduction(ctx); return err }},
		{"stage", func() error { return a.SetStage(ctx, postgres.Preproduction, "") }},
		{"login", func() error { return a.SetLogin(ctx, "mallory", password) }},
		{"pool out", func() error { return a.SetPooled(ctx, "mallory", false) }},
		{"pool in", func() error { return a.SetPooled(ctx, "mallory", true) }},
		{"suspend", func() error { _, err := a.Suspend(ctx, "mallory", false); return err }},
		{"resume", func() error { _, err := a.Resume(ctx, "mallory"); return err }},
		{"login away", func() error { return a.DropLogin(ctx, "mallory") }},
		{"delete", func() error { _, err := a.Delete(ctx, "mallory"); return err }},
		{"purge", func() error {
			mustExec(t, super, "UPDATE onda.tenant SET deleted_at = now() - interval '31 days' WHERE name = 'mallory'")
			kept, err := a.Purge(ctx, "mallory")
			if kept {
				err = errors.New("the role is kept")
			}
			return err
		}},
		{"delete another", func() error { _, err := a.Delete(ctx, other); return err }},
		{"purge another", func() error {
			mustExec(t, super, "UPDATE onda.tenant SET deleted_at = now() - interval '31 days' WHERE state = 'deleted'")
			_, err := a.Purge(ctx, other)
			return err
		}},
	} {
		if err := step.do(); err != nil {
			t.Errorf("%s: %v", step.name, err)
		}
		var tables, roles, changed int
		err := super.QueryRow(ctx, `SELECT (SELECT count(*) FROM pg_class WHERE relname IN ('planted', 'evil')), (SELECT count(*) FROM pg_roles WHERE rolname = 'planted'),
			(SELECT count(*) FROM onda.tenant WHERE schema > 600)`).Scan(&tables, &roles, &changed)
		if err != nil || tables+roles+changed > 0 {
			t.Fatalf("%s: planted code made %d tables, %d roles and changed %d tenants (%v)", step.name, tables, roles, changed, err)
		}
	}
	var left []string
	rows, err := super.Query(ctx, "SELECT rolname FROM pg_roles WHERE rolname LIKE 'mallory%' UNION ALL SELECT nspname FROM pg_namespace WHERE nspname LIKE 'mallory%'")
	if err == nil {
		left, err = pgx.CollectRows(rows, pgx.RowTo[string])
	}
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v (%v)", left, err)
	}
}

// The tests' admin has what managed servers give: it makes a database of its own, in two migrations at once, and tenants, each twice at once, which the pool's login
// and the tenant's own enter.
func TestNoSuperuserIsNeeded(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	d := pgtest.New(t)
	managed := connect(t, d.ManagedURL)
	var super, roles, databases bool
	if err := managed.QueryRow(ctx, "SELECT rolsuper, rolcreaterole, rolcreatedb FROM pg_roles WHERE rolname = current_user").Scan(&super, &roles, &databases); err != nil || super || !roles || !databases {
		t.Fatalf("the login is a superuser: %v, makes roles: %v, databases: %v (%v)", super, roles, databases, err)
	}
	name := managed.Config().Database + "_bare"
	mustExec(t, managed, "CREATE DATABASE "+name+" TEMPLATE template0")
	t.Cleanup(func() { mustExec(t, connect(t, d.AdminURL), "DROP DATABASE "+name+" WITH (FORCE)") })
	at := func(dbURL string) string {
		u, err := url.Parse(dbURL)
		if err != nil {
			t.Fatal(err)
		}
		u.Path = "/" + name
		return u.String()
	}
	both := func(f func(a *postgres.Admin) (any, error)) (got []any) {
		t.Helper()
		type result struct {
			got any
			err error
		}
		results := make(chan result, 2)
		for range 2 {
			go func() {
				a, err := postgres.OpenAdmin(ctx, at(d.ManagedURL))
				if err != nil {
					results <- result{nil, err}
					return
				}
				defer func() { _ = a.Close(ctx) }()
				v, err := f(a)
				results <- result{v, err}
			}()
		}
		for range 2 {
			r := <-results
			if r.err != nil {
				t.Fatal(r.err)
			}
			got = append(got, r.got)
		}
		return got
	}
	shared := 0
	for _, m := range both(func(a *postgres.Admin) (any, error) { return a.Migrate(ctx) }) {
		shared += m.(postgres.Migrated).Shared
	}
	if shared == 0 {
		t.Error("neither migration did anything")
	}
	for _, tenant := range []string{"bare-pooled", "bare-own"} {
		made := both(func(a *postgres.Admin) (any, error) { return a.CreateTenant(ctx, tenant) })
		if diff := cmp.Diff(1, strings.Count(fmt.Sprint(made), "true")); diff != "" {
			t.Errorf("%s was made by %v", tenant, made)
		}
	}
	a, err := postgres.OpenAdmin(ctx, at(d.ManagedURL))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = a.Close(ctx) }()
	if err := a.SetLogin(ctx, "bare-own", password); err != nil {
		t.Fatal(err)
	}
	work := func(login, tenant string) error {
		db := d.Open(t, postgres.Config{URL: as(t, at(d.URL), login)})
		return db.InTenant(ctx, tenant, func(ctx context.Context, tx *postgres.Tx) error {
			if err := tx.EnsurePartitions(ctx); err != nil {
				return err
			}
			if err := tx.UpdateStatistics(ctx); err != nil {
				return err
			}
			if _, err := tx.Keys(ctx); err != nil {
				return err
			}
			tx.Wake("send", tx.Now())
			return tx.AddFacts(ctx, postgres.Fact{Kind: "email.opened", Contact: 1})
		})
	}
	for _, c := range []struct {
		login, tenant string
		want          error
	}{
		{"onda_pool", "bare-pooled", nil},
		{"onda_pool", "bare-own", nil}, // while it moves, both
		{"bare-own", "bare-own", nil},
		{"bare-own", "bare-pooled", postgres.ErrUnknownTenant},
	} {
		if err := work(c.login, c.tenant); !errors.Is(err, c.want) {
			t.Errorf("%s in %s: %v, want %v", c.login, c.tenant, err, c.want)
		}
	}
	if err := a.SetPooled(ctx, "bare-own", false); err != nil {
		t.Fatal(err)
	}
	if err := work("onda_pool", "bare-own"); !errors.Is(err, postgres.ErrUnknownTenant) {
		t.Errorf("the pool in a tenant that it is shut out of: %v", err)
	}
	if err := work("bare-own", "bare-own"); err != nil {
		t.Error(err)
	}
	if err := a.SetPooled(ctx, "bare-pooled", false); err == nil {
		t.Error("the pool was shut out of a tenant that has no login")
	}
	if err := a.DropLogin(ctx, "bare-own"); err != nil {
		t.Fatal(err)
	}
	if err := work("onda_pool", "bare-own"); err != nil {
		t.Error(err)
	}
	if _, err := pgx.Connect(ctx, as(t, at(d.URL), "bare-own")); err == nil {
		t.Error("a login that was dropped logs in")
	}
	for _, tenant := range []string{"bare-pooled", "bare-own"} { // their roles are the server's
		if _, err := a.Delete(ctx, tenant); err != nil {
			t.Fatal(err)
		}
	}
	mustExec(t, connect(t, at(d.AdminURL)), "UPDATE onda.tenant SET deleted_at = now() - interval '31 days'")
	for _, tenant := range []string{"bare-pooled", "bare-own"} {
		if kept, err := a.Purge(ctx, tenant); err != nil || kept {
			t.Errorf("purge %s: role kept %v, %v", tenant, kept, err)
		}
	}
}
