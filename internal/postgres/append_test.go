package postgres_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/postgres"
)

// What is appended in one round trip ends as it would in two: also when what was known of the tenant is so no more.
func TestAppend(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	d := pgtest.New(t)
	for _, tenant := range []string{"acme", "brava"} {
		d.Own(t, tenant, "CREATE TABLE thing (n integer CHECK (n <> 13), at timestamptz NOT NULL DEFAULT onda.now())")
	}
	db := d.Open(t, postgres.Config{MaxConns: 1})
	admin, err := pgx.Connect(ctx, d.AdminURL)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = admin.Close(ctx) })
	appended := func(tenant string, n int) error {
		return db.Append(ctx, tenant, 50*time.Millisecond, postgres.Append{SQL: "INSERT INTO thing SELECT unnest($1::integer[])", Args: []any{[]int{n}}, Wake: "track", In: time.Hour})
	}
	pid := pgtest.One[int](t, db, "acme", "SELECT pg_backend_pid()")
	for _, c := range []struct {
		what   string
		change string // by an administrator, before
		tenant string
		n      int // what is stored
		want   error
		code   string // SQLSTATE
	}{
		{what: "never entered", tenant: "acme", n: 1},
		{what: "entered", tenant: "acme", n: 2},
		{what: "another tenant", tenant: "brava", n: 3},
		{what: "and back", tenant: "acme", n: 4},
		{what: "a bad row", tenant: "acme", n: 13, code: "23514"},
		{what: "after a bad row", tenant: "acme", n: 5},
		{what: "on another clock", change: `UPDATE onda.tenant SET "offset" = '72h' WHERE name = 'acme'`, tenant: "acme", n: 6},
		{what: "locked", change: "BEGIN; LOCK TABLE acme.thing", tenant: "acme", n: 7, code: "55P03"},
		{what: "suspended", change: "ROLLBACK; UPDATE onda.tenant SET state = 'suspended' WHERE name = 'acme'", tenant: "acme", n: 8},
		{what: "known as suspended", tenant: "acme", n: 9},
		{what: "moving", change: "UPDATE onda.tenant SET state = 'moving' WHERE name = 'acme'", tenant: "acme", n: 10, want: postgres.ErrMoving},
		{what: "elsewhere", change: "UPDATE onda.tenant SET state = 'active', armed = '1/1' WHERE name = 'acme'", tenant: "acme", n: 11, want: postgres.ErrElsewhere},
		{what: "armed again", change: "UPDATE onda.tenant SET armed = onda.identity() WHERE name = 'acme'", tenant: "acme", n: 12},
		{what: "deleted", change: "UPDATE onda.tenant SET state = 'deleted', deleted_at = now() WHERE name = 'acme'", tenant: "acme", n: 14, want: postgres.ErrUnknownTenant},
		{what: "no tenant", tenant: "nobody", n: 15, want: postgres.ErrUnknownTenant},
		{what: "back from the dead", change: "UPDATE onda.tenant SET state = 'active', deleted_at = NULL WHERE name = 'acme'", tenant: "acme", n: 16},
	} {
		if c.change != "" {
			if _, err := admin.Exec(ctx, c.change); err != nil {
				t.Fatalf("%s: %v", c.what, err)
			}
		}
		err := appended(c.tenant, c.n)
		var pe *pgconn.PgError
		switch {
		case c.code != "":
			if !errors.As(err, &pe) || pe.Code != c.code {
				t.Errorf("%s: %v, want SQLSTATE %s", c.what, err, c.code)
			}
		case !errors.Is(err, c.want):
			t.Errorf("%s: %v, want %v", c.what, err, c.want)
		}
	}
	if now := pgtest.One[int](t, db, "acme", "SELECT pg_backend_pid()"); now != pid {
		t.Error("something of it closed the connection")
	}
	for range 2 {
		if err := appended("acme", 20); err != nil {
			t.Fatal(err)
		}
	}
	if pgtest.One[int](t, db, "acme", "SELECT generic_plans + custom_plans FROM pg_prepared_statements WHERE statement LIKE 'SELECT 1 / pg_catalog.count(%'") < 2 {
		t.Error("two in a row did not take one round trip each")
	}
	if diff := cmp.Diff([]int{1, 2, 4, 5, 6, 8, 9, 12, 16, 20, 20}, pgtest.All[int](t, db, "acme", "SELECT n FROM thing ORDER BY n")); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]int{3}, pgtest.All[int](t, db, "brava", "SELECT n FROM thing")); diff != "" {
		t.Error(diff)
	}
	if !pgtest.One[bool](t, db, "acme", "SELECT bool_and(at > now() + interval '71 hours') FROM thing WHERE n >= 6") {
		t.Error("rows are not of the tenant's clock")
	}
	if !pgtest.One[bool](t, db, "acme", "SELECT at BETWEEN now() AND now() + interval '1 hour' FROM onda.wakeup WHERE function = 'track'") {
		t.Error("it is not woken by the first")
	}
	pgtest.Exec(t, db, "acme", "UPDATE onda.wakeup SET at = 'infinity'")
	if err := appended("acme", 17); err != nil {
		t.Fatal(err)
	}
	if !pgtest.One[bool](t, db, "acme", "SELECT at BETWEEN onda.now() + interval '59 minutes' AND onda.now() + interval '1 hour' FROM onda.wakeup WHERE function = 'track'") {
		t.Error("it is not woken on its own clock")
	}
}
