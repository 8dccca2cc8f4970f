package campaign

import (
	"context"
	"testing"
	"time"

	"github.com/onda-run/onda/internal/feedback"
	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/postgres"
)

// What bounce took and did not live to work off is found by the sweep, within a tick.
func TestSweepSettlesWhatBounceTook(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.people(pgtest.Acme, 1)
	w.campaign("welcome", welcome)
	w.start("welcome")
	w.everything()
	w.deliver()
	w.in(pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) error {
		before, err := due(ctx, tx)
		if err != nil {
			return err
		}
		if n, err := feedback.Take(ctx, tx, []feedback.Event{{Delivery: w.mailed("first")[0], Kind: feedback.Bounced, Class: "hard"}}); err != nil || n != 1 {
			t.Errorf("%d were taken, %v", n, err)
		}
		after, err := due(ctx, tx)
		if within := tx.Now().Add(tx.Tick() + time.Second); !after.Before(within) || before.Before(after) {
			t.Errorf("due at %s, and %s before", after, before)
		}
		return err
	})
	w.everything()
	if n := w.count("SELECT count(*) FROM suppression WHERE reason = 'bounce'"); n != 1 {
		t.Errorf("%d are suppressed", n)
	}
	if n := w.count("SELECT count(*) FROM feedback"); n != 0 {
		t.Errorf("%d are left", n)
	}
}
