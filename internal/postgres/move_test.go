package postgres_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/onda-run/onda/internal/delivery"
	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/postgres"
)

// In the middle of a broadcast a tenant gets functions with a login of its own, and the pool is shut out; then it goes back. No mail is lost, repeated or in doubt.
func TestMovingBetweenLoginsLosesNothing(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	d := pgtest.New(t)
	a, pool := d.Admin(t), d.DB(t)
	const people = 2600
	newTenant(t, a, "mover")
	t.Cleanup(func() { // its role is the server's
		mustExec(t, connect(t, d.AdminURL), "DROP SCHEMA mover CASCADE", "DROP ROLE mover")
	})
	s := &sender{t: t, tenant: "mover", rand: rand.New(rand.NewPCG(3, 3)), handed: map[int64]int{}}
	s.plan(pool, people)
	stop := func(db *postgres.DB, held ...*delivery.Lease) { // as holders do that may mark nothing more
		t.Helper()
		for _, l := range held {
			s.in(db, func(ctx context.Context, tx *postgres.Tx) error {
				if _, ok, err := l.Advance(ctx, tx, l.Mark); err != nil || ok {
					t.Errorf("a mark of a suspended tenant: %v, %v", ok, err)
				}
				return l.Release(ctx, tx)
			})
		}
	}
	sending := func(what string, err error) {
		t.Helper()
		if !errors.Is(err, postgres.ErrSending) {
			t.Errorf("%s while batches are in hand: %v", what, err)
		}
	}
	ok := func(_ any, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}

	held := s.take(pool)
	s.send(pool, held, 50, always)
	if err := a.SetLogin(ctx, "mover", password); err != nil {
		t.Fatal(err)
	}
	own := d.Open(t, postgres.Config{URL: as(t, d.URL, "mover"), Tenant: "mover"})
	other := s.take(own)
	s.send(own, other, 50, always)
	s.send(pool, held, 50, always) // both work
	sending("the pool shut out", a.SetPooled(ctx, "mover", false))
	_, err := a.Delete(ctx, "mover")
	sending("deleted", err)
	_, err = a.Suspend(ctx, "mover", true)
	sending("moved", err)
	if n, err := a.Suspend(ctx, "mover", false); err != nil || n != 2 {
		t.Errorf("suspend: %d batches in hand, want 2 (%v)", n, err)
	}
	sending("the pool shut out", a.SetPooled(ctx, "mover", false))
	stop(pool, held)
	stop(own, other)
	if err := a.SetPooled(ctx, "mover", false); err != nil {
		t.Fatal(err)
	}
	ok(a.Resume(ctx, "mover"))
	if err := pool.InTenant(ctx, "mover", func(context.Context, *postgres.Tx) error { return nil }); !errors.Is(err, postgres.ErrUnknownTenant) {
		t.Errorf("the pool enters: %v", err)
	}
	held = s.take(own)
	s.send(own, held, 64, always)

	// And back.
	sending("its login dropped", a.DropLogin(ctx, "mover"))
	ok(a.Suspend(ctx, "mover", false))
	stop(own, held)
	if err := a.DropLogin(ctx, "mover"); err != nil {
		t.Fatal(err)
	}
	ok(a.Resume(ctx, "mover"))
	s.rest(pool)
	if n := s.audit(pool, people, nil); n != 0 || len(s.handed) != people {
		t.Errorf("%d unknown, %d of %d handed over", n, len(s.handed), people)
	}
}
