package postgres_test

import (
	"context"
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
			if got := tenant(t, db, n); got.Preproduction != (want == postgres.Preproduction) || got.Preproduction != db.Preproduction(ctx) {
				t.Errorf("%s: pre-production is %v, and %v of the database", n, got.Preproduction, db.Preproduction(ctx))
			}
		}
		if got := d.Open(t, postgres.Config{MaxConns: 1}).Preproduction(ctx); got != (want == postgres.Preproduction) {
			t.Errorf("before a tenant is entered: pre-production is %v", got)
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
	fresh := d.Open(t, postgres.Config{MaxConns: 1})
	if fresh.Preproduction(t.Context()) {
		t.Error("the database is a pre-production before there is any")
	}
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
	if tenant(t, fresh, pgtest.Acme); !fresh.Preproduction(t.Context()) {
		t.Error("what was asked first stays, whatever a tenant knows")
	}
}

// A page waits for nothing that takes longer than it may, and what could not be asked is asked again.
func TestStageIsAskedAgain(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	db := d.Open(t, postgres.Config{MaxConns: 1})
	if err := d.Admin(t).SetStage(t.Context(), postgres.Preproduction, ""); err != nil {
		t.Fatal(err)
	}
	late, cancel := context.WithCancel(t.Context())
	cancel()
	if db.Preproduction(late) {
		t.Error("it is known before it was asked")
	}
	if !db.Preproduction(t.Context()) {
		t.Error("it is not asked again")
	}
	if !db.Preproduction(late) {
		t.Error("it is not kept")
	}
}
