package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/postgres"
)

// Of a tenant that was purged nothing is left in what tenants share, but that there was one of its name; and of another whose name begins the same, all.
func TestPurgeLeavesNothing(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	a, super, ctx := d.Admin(t), connect(t, d.AdminURL), t.Context()
	for _, name := range []string{"gone", "gone-by"} {
		newTenant(t, a, name)
		if err := a.SetLogin(ctx, name, password); err != nil {
			t.Fatal(err)
		}
		if _, err := a.SetHosts(ctx, name, []string{name + ".example"}, nil); err != nil {
			t.Fatal(err)
		}
		mustExec(t, connect(t, as(t, d.URL, name)), "SELECT onda.relay_slots('smtp.example.com:587', 1, 1, 60)")
		mustExec(t, super, "INSERT INTO onda.failure (function, tenant, event, error) VALUES ('campaign', '"+name+"', '{}', 'it was deleted')")
	}
	t.Cleanup(func() { mustExec(t, super, `DROP SCHEMA "gone-by" CASCADE`, `DROP ROLE "gone-by"`) })
	left := func(name string) (tables []string) {
		t.Helper()
		rows, err := super.Query(ctx, "SELECT tablename FROM pg_tables WHERE schemaname = 'onda' ORDER BY 1")
		if err != nil {
			t.Fatal(err)
		}
		all, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			t.Fatal(err)
		}
		for _, table := range all {
			var found bool
			if err := super.QueryRow(ctx, "SELECT EXISTS (SELECT FROM onda."+table+" r, jsonb_each_text(to_jsonb(r)) f WHERE f.value = $1 OR starts_with(f.value, $1 || ' '))", name).Scan(&found); err != nil {
				t.Fatal(err)
			}
			if found {
				tables = append(tables, table)
			}
		}
		return tables
	}
	before := len(left("gone"))
	if before < 5 {
		t.Errorf("before, it is in %q alone", left("gone"))
	}
	if _, err := a.Delete(ctx, "gone"); err != nil {
		t.Fatal(err)
	}
	mustExec(t, super, "UPDATE onda.tenant SET deleted_at = now() - interval '31 days' WHERE state = '"+postgres.Deleted+"'")
	if kept, err := a.Purge(ctx, "gone"); err != nil || kept {
		t.Fatalf("the role is kept: %t, %v", kept, err)
	}
	if tables := left("gone"); len(tables) != 1 || tables[0] != "purged" {
		t.Errorf("it is left in %q", tables)
	}
	if tables := left("gone-by"); len(tables) != before {
		t.Errorf("the other is in %q", tables)
	}
}

// A tenant of many partitions is purged in transactions of a few each; one that is killed in between leaves nothing to be taken back, and is completed by a repeat.
func TestPurgeIsKilled(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	a, killed, super, ctx := d.Admin(t), d.Admin(t), connect(t, d.AdminURL), t.Context()
	newTenant(t, a, "large")
	const parts = 50
	mustExec(t, super, fmt.Sprintf(`DO $$ BEGIN FOR i IN 2..%d LOOP
		EXECUTE format('CREATE TABLE large.fact_x%%s PARTITION OF large.fact FOR VALUES FROM (%%s) TO (%%s)', i, i * 100000000::bigint, (i + 1) * 100000000::bigint); END LOOP;
		FOR i IN 2..%[1]d LOOP EXECUTE format('ALTER TABLE large.fact_x%%s OWNER TO onda_owner', i); END LOOP; END $$`, parts))
	if _, err := a.Delete(ctx, "large"); err != nil {
		t.Fatal(err)
	}
	mustExec(t, super, "UPDATE onda.tenant SET deleted_at = now() - interval '31 days' WHERE name = 'large'")
	end := writes(t, d, "SELECT FROM large.contact LIMIT 1")
	ended := make(chan error, 1)
	go func() {
		_, err := killed.Purge(context.WithoutCancel(ctx), "large")
		ended <- err
	}()
	pid := waiting(t, d.DB(t), ended, "relation")
	var left int
	if err := super.QueryRow(ctx, "SELECT count(*) FROM pg_class WHERE relispartition AND relkind = 'r' AND relnamespace = 'large'::regnamespace").Scan(&left); err != nil {
		t.Fatal(err)
	}
	if left > 0 {
		t.Errorf("when the schema is dropped it has %d partitions", left)
	}
	mustExec(t, super, fmt.Sprintf("SELECT pg_terminate_backend(%d)", pid))
	if err := <-ended; err == nil {
		t.Error("it was not killed")
	}
	end()
	_, resumed := a.Resume(ctx, "large")
	_, followed := a.Follow(ctx, "large", postgres.Active)
	_, made := a.CreateTenant(ctx, "large")
	for what, err := range map[string]error{"resume": resumed, "follow": followed, "create": made} {
		if !errors.Is(err, postgres.ErrPurging) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if kept, err := a.Purge(ctx, "large"); err != nil || kept {
		t.Errorf("again: %t, %v", kept, err)
	}
	if made, err := a.CreateTenant(ctx, "large"); err != nil || !made {
		t.Errorf("a new one: %t, %v", made, err)
	}
	t.Cleanup(func() { mustExec(t, super, "DROP SCHEMA large CASCADE", "DROP ROLE large") })
}

// Who would take a tenant back at the moment in which its purge begins finds that it has begun.
func TestResumeWhileAPurgeBegins(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	a, super, ctx := d.Admin(t), connect(t, d.AdminURL), t.Context()
	mustExec(t, super, "UPDATE onda.tenant SET state = 'deleted', deleted_at = now() - interval '31 days'")
	for _, c := range []struct {
		tenant string
		do     func(ctx context.Context) error
	}{
		{pgtest.Acme, func(ctx context.Context) error { _, err := a.Resume(ctx, pgtest.Acme); return err }},
		{pgtest.Brava, func(ctx context.Context) error { _, err := a.Follow(ctx, pgtest.Brava, postgres.Suspended); return err }},
	} {
		mustExec(t, super, "BEGIN", "SELECT FROM onda.tenant WHERE name = '"+c.tenant+"' FOR UPDATE", "INSERT INTO onda.purged (name) VALUES ('"+c.tenant+"')") // as Purge
		ended := make(chan error, 1)
		go func() { ended <- c.do(context.WithoutCancel(ctx)) }()
		for n := 0; n == 0; {
			if err := super.QueryRow(ctx, "SELECT count(*) FROM pg_locks WHERE NOT granted AND pg_backend_pid() = ANY (pg_blocking_pids(pid))").Scan(&n); err != nil {
				t.Fatal(err)
			}
			select {
			case err := <-ended:
				t.Fatalf("%s: it waited for nobody: %v", c.tenant, err)
			default:
			}
		}
		mustExec(t, super, "COMMIT")
		if err := <-ended; !errors.Is(err, postgres.ErrPurging) {
			t.Errorf("%s: taken back: %v", c.tenant, err)
		}
	}
}

// A tenant of a name that was purged here, and that came back from another server with its rows, is as any other.
func TestPurgedAndBack(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	a, ctx := d.Admin(t), t.Context()
	mustExec(t, connect(t, d.AdminURL), "INSERT INTO onda.purged (name) VALUES ('acme')", "UPDATE onda.tenant SET state = 'moving' WHERE name = 'acme'")
	if changed, err := a.Resume(ctx, pgtest.Acme); err != nil || !changed {
		t.Errorf("resume: %t, %v", changed, err)
	}
	if _, err := a.CreateTenant(ctx, pgtest.Acme); err != nil {
		t.Errorf("create: %v", err)
	}
}
