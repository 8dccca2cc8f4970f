package postgres_test

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/onda-run/onda/internal/fn"
	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/postgres"
)

// Visitors of a tenant whose tables are locked are sent away, and hold no more than their share of the connections meanwhile.
func TestVisitorsOfALockedTenantStopNobodyElse(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	db := d.Open(t, postgres.Config{MaxConns: 4})
	ctx := context.Background()
	status := func(err error) int {
		s, _ := fn.Status(err)
		return s
	}
	read := func(tenant string) error {
		return db.Visit(ctx, tenant, func(ctx context.Context, tx *postgres.Tx) error {
			_, err := tx.Exec(ctx, "SELECT 1 FROM link LIMIT 1")
			return err
		})
	}
	migration, err := pgx.Connect(ctx, d.AdminURL)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = migration.Close(ctx) })
	if _, err := migration.Exec(ctx, "BEGIN; LOCK TABLE acme.link"); err != nil {
		t.Fatal(err)
	}
	waiting := func() (n int) {
		if err := migration.QueryRow(ctx, "SELECT count(*) FROM pg_locks WHERE NOT granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database())").Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}

	const visitors = 24
	errs := make(chan error, visitors)
	var all sync.WaitGroup
	for range visitors {
		all.Go(func() { errs <- read("acme") })
	}
	for waiting() < 2 && len(errs) == 0 { // the first to end is one that waited for the lock
	}
	if err := read("brava"); err != nil {
		t.Errorf("the other tenant: %v", err)
	}
	if n := waiting(); n > 2 {
		t.Errorf("%d of 4 connections wait for the locked tenant", n)
	}
	all.Wait()
	for range visitors {
		if err := <-errs; status(err) != http.StatusServiceUnavailable {
			t.Errorf("the locked tenant: %v", err)
		}
	}
	if _, err := migration.Exec(ctx, "ROLLBACK"); err != nil {
		t.Fatal(err)
	}
	for err := read("acme"); err != nil; err = read("acme") {
		if !errors.Is(err, postgres.ErrLocked) {
			t.Fatal(err)
		}
	}
}

// A visitor who does not wait for its turn takes nobody's.
func TestAVisitorGoes(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	db := d.Open(t, postgres.Config{MaxConns: 1})
	err := db.Visit(context.Background(), "acme", func(context.Context, *postgres.Tx) error {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if err := db.Visit(ctx, "acme", func(context.Context, *postgres.Tx) error { return nil }); !errors.Is(err, context.Canceled) {
			t.Errorf("a visitor who is gone: %v", err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Visit(context.Background(), "acme", func(context.Context, *postgres.Tx) error { return nil }); err != nil {
		t.Error(err)
	}
}
