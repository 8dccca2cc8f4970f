package delivery

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/postgres"
)

// However a contact leaves by a mail, and however often it comes back, the mail counts once; so does each further mail that it leaves by.
func TestUnsubscribesAreCountedOnceAMail(t *testing.T) {
	t.Parallel()
	f := setUp(t)
	send := func() {
		t.Helper()
		b := f.plan(2)[0]
		f.record(Outcome{Delivery: ID(b.ID, 1), Contact: 1, Attempt: 1, State: Sent}, Outcome{Delivery: ID(b.ID, 2), Contact: 2, Attempt: 1, State: Sent})
	}
	leave := func(contact int64, purpose, basis string) {
		t.Helper()
		id := pgtest.One[int64](t, f.db, f.tenant, "INSERT INTO consent (contact, purpose, state, basis) VALUES ($1, $2, 'withdrawn', $3) RETURNING id", contact, purpose, basis)
		f.in(func(ctx context.Context, tx *postgres.Tx) error { return Unsubscribed(ctx, tx, contact, []int64{id}) })
	}
	want := func(when string, want ...string) {
		t.Helper()
		got := pgtest.All[string](t, f.db, f.tenant, "SELECT run || ' ' || step || ' ' || sum(n) FROM stat WHERE kind = 'unsubscribe' GROUP BY run, step ORDER BY run, step")
		if d := cmp.Diff(append([]string{}, want...), append([]string{}, got...)); d != "" {
			t.Errorf("%s (-want +got):\n%s", when, d)
		}
	}
	run := func(n int) string { return fmt.Sprintf("%d send %d", f.run, n) }
	send()
	leave(1, "newsletter", "unsubscribe")
	want("left", run(1))
	leave(1, "newsletter", "preferences")
	want("came back, and left by the same mail", run(1))
	leave(2, "newsletter", "preferences")
	want("another", run(2))
	leave(2, "tracking.email", "preferences")
	want("tracking is no topic", run(2))
	if _, err := f.data.Admin(t).MoveClock(t.Context(), f.tenant, time.Hour); err != nil {
		t.Fatal(err)
	}
	send()
	leave(1, "newsletter", "unsubscribe")
	want("left by another mail", run(3))
	leave(3, "newsletter", "unsubscribe")
	want("left by none", "0  1", run(3))
}
