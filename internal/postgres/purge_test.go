package postgres_test

import (
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
