package renderform

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/onda-run/onda/internal/contact"
	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/token"
)

// Who is deleted for not confirming, at the moment of the confirmation, is told that it is too late, and no ledger is left of nobody.
func TestConfirmedWhileTheContactExpires(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.post(newsletter, w.fill(good()))
	tok, _, _ := strings.Cut(strings.TrimPrefix(w.confirmURL("acme"), w.url+"/y/"), "?")
	claims, err := token.Peek(tok, token.Confirm)
	if err != nil {
		t.Fatal(err)
	}
	pgtest.Exec(t, w.db, "acme", "UPDATE contact SET expires_at = now() - interval '1 second'")
	gone, commit := make(chan struct{}), make(chan struct{})
	var both sync.WaitGroup
	both.Go(func() {
		pgtest.In(t, w.db, "acme", func(ctx context.Context, tx *postgres.Tx) error {
			n, err := contact.Expire(ctx, tx, drainer, 10)
			if n != 1 {
				t.Errorf("%d contacts expire, want one", n)
			}
			close(gone)
			<-commit
			return err
		})
	})
	<-gone
	both.Go(func() {
		pgtest.In(t, w.db, "acme", func(ctx context.Context, tx *postgres.Tx) error {
			o, err := confirm(ctx, tx, claims, 0, "en", nil)
			if o.state != "expired" {
				t.Errorf("it is %s", o.state)
			}
			return err
		})
	})
	w.awaitLock()
	close(commit)
	both.Wait()
	if n := w.count("acme", "consent") + w.count("acme", "subscription") + w.count("acme", "submission WHERE state = 'confirmed'") + w.count("acme", "fact WHERE kind = 'form.confirmed'"); n != 0 {
		t.Errorf("%d rows are of nobody", n)
	}
}

// The page with the button waits for nobody.
func TestThePageThatConfirmsLocksNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.post(newsletter, w.fill(good()))
	link := w.confirmURL("acme")
	pgtest.In(t, w.db, "acme", func(ctx context.Context, tx *postgres.Tx) error {
		_, err := tx.Exec(ctx, "SELECT FROM submission s JOIN contact c ON c.id = s.contact FOR UPDATE")
		if a := w.get(link); a.status != 200 || !strings.Contains(a.body, "<button") {
			t.Errorf("%d %s", a.status, a.body)
		}
		return err
	})
}

// awaitLock waits until somebody waits for a lock.
func (w *world) awaitLock() {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), 30*time.Second)
	defer cancel()
	for pgtest.One[int](w.t, w.db, "acme", "SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid) WHERE NOT l.granted AND a.datname = current_database()") == 0 {
		if ctx.Err() != nil {
			w.t.Fatal("nobody waits for a lock")
		}
	}
}
