package postgres_test

import (
	"errors"
	"testing"

	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/postgres"
)

// The mark counts from the next transaction of every tenant on, is not taken off by accident, and keeps onda dev away.
func TestStage(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	a, db, ctx := d.Admin(t), d.Open(t, postgres.Config{MaxConns: 1}), t.Context()
	is := func(want postgres.Stage) (name string) {
		t.Helper()
		stage, name, err := a.Stage(ctx)
		if err != nil || stage != want {
			t.Fatalf("%s, %v, want %s", stage, err, want)
		}
		for _, n := range []string{pgtest.Acme, pgtest.Brava} {
			if got := tenant(t, db, n); got.Preproduction != (want == postgres.Preproduction) || got.Preproduction != db.Preproduction() {
				t.Errorf("%s: pre-production is %v, and %v of the database", n, got.Preproduction, db.Preproduction())
			}
		}
		return name
	}
	set := func(s postgres.Stage, confirm string) {
		t.Helper()
		if err := a.SetStage(ctx, s, confirm); err != nil {
			t.Fatal(err)
		}
	}
	is(postgres.Production)
	set(postgres.Production, "")
	set(postgres.Preproduction, "")
	set(postgres.Preproduction, "")
	name := is(postgres.Preproduction)
	for _, confirm := range []string{"", "onda", name + "x"} {
		if err := a.SetStage(ctx, postgres.Production, confirm); !errors.Is(err, postgres.ErrUnconfirmed) {
			t.Errorf("confirmed with %q: %v", confirm, err)
		}
	}
	if _, err := a.Migrate(ctx); err != nil {
		t.Fatal(err)
	}
	is(postgres.Preproduction)
	d.Own(t, pgtest.Acme, "UPDATE onda.database SET development = false", "DELETE FROM onda.wakeup", "DELETE FROM onda.tenant")
	if serious, err := a.InProduction(ctx); err != nil || !serious {
		t.Errorf("a pre-production without tenants: %v, %v", serious, err)
	}
	set(postgres.Production, name)
	if serious, err := a.InProduction(ctx); err != nil || serious {
		t.Errorf("an empty database: %v, %v", serious, err)
	}
}

// Functions run on the shared schema before 0004 as well, and need no new start when it comes.
func TestStageComesWithItsMigration(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	a, db := d.Admin(t), d.Open(t, postgres.Config{MaxConns: 1})
	d.Own(t, pgtest.Acme, "ALTER TABLE onda.database DROP COLUMN preproduction", "DELETE FROM onda.migration WHERE version = 4")
	if got := tenant(t, db, pgtest.Acme); got.Preproduction {
		t.Error("pre-production before there is any")
	}
	if _, err := a.InProduction(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := a.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := a.SetStage(t.Context(), postgres.Preproduction, ""); err != nil {
		t.Fatal(err)
	}
	if !tenant(t, db, pgtest.Acme).Preproduction {
		t.Error("the mark is not seen")
	}
}
