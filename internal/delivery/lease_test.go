package delivery

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/postgres"
)

func TestACrashMakesOnlyTheWindowUnknown(t *testing.T) {
	t.Parallel()
	f := setUp(t)
	b := f.plan(6)[0]
	old := f.take(false)
	if open, ok := f.advance(old, 4); !ok || len(open) != 4 {
		t.Fatalf("mark at 4: %d recipients, %v", len(open), ok)
	}
	f.record(Outcome{Delivery: ID(b.ID, 2), Contact: 2, State: Sent}, Outcome{Delivery: ID(b.ID, 3), Contact: 3, State: Failed, Class: "hard", Code: 550})
	if l := f.take(false); l != nil {
		t.Fatalf("batch %d was leased twice", l.Batch)
	}
	f.expire(b.ID) // the holder is dead

	l := f.take(false)
	if l == nil || l.Batch != b.ID || l.Mark != 4 {
		t.Fatalf("takeover: %+v", l)
	}
	if d := cmp.Diff([]State{Unknown, Sent, Failed, Unknown, "", ""}, f.states(b)); d != "" {
		t.Errorf("after the takeover (-want +got):\n%s", d)
	}
	if _, ok := f.advance(old, 6); ok {
		t.Error("the old holder moved the mark of a batch that it had lost")
	}
	if f.close(old) {
		t.Error("the old holder closed a batch that it had lost")
	}
	if f.close(l) {
		t.Error("a batch with queued recipients was closed")
	}
	open, ok := f.advance(l, 6)
	if !ok || len(open) != 2 || open[0].Number != 5 || open[1].Contact != 6 {
		t.Fatalf("mark at 6: %+v %v", open, ok)
	}
	f.record(Outcome{Delivery: ID(b.ID, 5), Contact: 5, State: Sent}, Outcome{Delivery: ID(b.ID, 6), Contact: 6, State: Suppressed, Reason: NoConsent})
	if !f.close(l) {
		t.Fatal("the batch was not closed")
	}
	if d := cmp.Diff([]int32{2, 0, 1, 1, 2}, f.counts(b.ID)); d != "" {
		t.Errorf("counts (-want +got):\n%s", d)
	}

	// A late 250 of the old holder is a fact, and corrects what was counted.
	if c := f.record(Outcome{Delivery: ID(b.ID, 4), Contact: 4, State: Sent}); len(c) != 1 {
		t.Errorf("a late 250 changed %d", len(c))
	}
	if d := cmp.Diff([]int32{3, 0, 1, 1, 1}, f.counts(b.ID)); d != "" {
		t.Errorf("counts after a late 250 (-want +got):\n%s", d)
	}
	if n := pgtest.One[int](t, f.db, f.tenant, "SELECT count(*) FROM outbox WHERE type = 'onda.email.batch.sent.v1'"); n != 1 {
		t.Errorf("%d doorbells for one closed batch", n)
	}
}

// A holder whose mark was committed without its knowing hands none of it over, and gives the batch back: nobody is unknown for that.
func TestAMarkThatWasNeverConfirmedIsTakenBack(t *testing.T) {
	t.Parallel()
	f := setUp(t)
	b := f.plan(6)[0]
	l := f.take(false)
	if _, ok := f.advance(l, 2); !ok {
		t.Fatal("no mark at 2")
	}
	f.record(Outcome{Delivery: ID(b.ID, 1), Contact: 1, State: Sent}, Outcome{Delivery: ID(b.ID, 2), Contact: 2, State: Sent})
	pgtest.In(t, f.db, pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) error { // and its Moved never comes
		_, _, err := l.Advance(ctx, tx, 5)
		return err
	})
	pgtest.In(t, f.db, pgtest.Acme, l.Release)
	next := f.take(false)
	if next == nil || next.Mark != 2 {
		t.Fatalf("the next holder finds %+v, want a mark at 2", next)
	}
	if d := cmp.Diff([]State{Sent, Sent, "", "", "", ""}, f.states(b)); d != "" {
		t.Errorf("after the release (-want +got):\n%s", d)
	}
}

func TestUnknownIsSentAgainOnlyWhereTheEmailSaysSo(t *testing.T) {
	t.Parallel()
	f := setUp(t)
	b := f.plan(3)[0]
	l := f.take(true)
	f.advance(l, 2)
	f.record(Outcome{Delivery: ID(b.ID, 1), Contact: 1, State: Sent})
	f.expire(b.ID)
	l = f.take(true)
	if d := cmp.Diff([]State{Sent, Deferred, ""}, f.states(b)); d != "" {
		t.Errorf("after the takeover (-want +got):\n%s", d)
	}
	again := f.take(true)
	if again == nil || again.Attempt != 2 || again.Run != f.run || again.Step != "send" || !cmp.Equal(again.Contacts, []int64{ID(b.ID, 2)}) {
		t.Fatalf("batch of the resend: %+v", again)
	}
	open, ok := f.advance(again, 1)
	if !ok || len(open) != 1 || open[0].Contact != 2 || open[0].Delivery != ID(b.ID, 2) {
		t.Fatalf("recipients of the resend: %+v", open)
	}
	// Now this holder dies too: attempt 2 is unknown, and sent again, though not at once.
	f.expire(again.Batch)
	if l := f.take(true); l == nil || l.Batch != again.Batch || !l.Done {
		t.Fatalf("second takeover: %+v", l)
	}
	if n := pgtest.One[int](t, f.db, f.tenant, "SELECT count(*) FROM batch WHERE attempt = 3 AND not_before > onda.now()"); n != 1 {
		t.Errorf("%d batches of attempt 3", n)
	}
	// A late 250 of the first attempt: the third is not handed over any more.
	f.record(Outcome{Delivery: ID(b.ID, 2), Contact: 2, Attempt: 1, State: Sent})
	pgtest.Exec(t, f.db, f.tenant, "UPDATE batch SET not_before = onda.now() WHERE attempt = 3")
	third := f.take(true)
	if third == nil || third.Attempt != 3 {
		t.Fatalf("third attempt: %+v", third)
	}
	if open, ok := f.advance(third, 1); !ok || len(open) != 0 {
		t.Errorf("a mail that was sent is handed over again: %+v", open)
	}
	if !f.close(third) {
		t.Error("the third attempt's batch was not closed")
	}
	f.advance(l, 3)
	f.record(Outcome{Delivery: ID(b.ID, 3), Contact: 3, State: Sent})
	if !f.close(l) {
		t.Error("the first batch was not closed")
	}
	if d := cmp.Diff([]int32{3, 0, 0, 0, 0}, f.counts(b.ID)); d != "" {
		t.Errorf("counts (-want +got):\n%s", d)
	}
}

func TestRetries(t *testing.T) {
	t.Parallel()
	f := setUp(t)
	b := f.plan(2)[0]
	l := f.take(false)
	f.advance(l, 2)
	soon := pgtest.One[time.Time](t, f.db, f.tenant, "SELECT onda.now() + interval '1 min'")
	f.record(
		Outcome{Delivery: ID(b.ID, 1), Contact: 1, State: Deferred, RetryAt: soon, Class: "soft", Code: 451},
		Outcome{Delivery: ID(b.ID, 2), Contact: 2, State: Deferred, RetryAt: soon, Class: "soft", Code: 451},
	)
	f.close(l)
	regroup := func() (n int) {
		f.in(func(ctx context.Context, tx *postgres.Tx) (err error) {
			n, err = Regroup(ctx, tx, Bulk)
			return err
		})
		return n
	}
	if n := regroup(); n != 0 {
		t.Fatalf("%d were regrouped before their time", n)
	}
	if _, err := f.data.Admin(t).MoveClock(context.Background(), f.tenant, 2*time.Minute); err != nil {
		t.Fatal(err)
	}
	if n := regroup(); n != 2 {
		t.Fatalf("%d were regrouped, want 2", n)
	}
	if n := regroup(); n != 0 {
		t.Errorf("%d were regrouped twice", n)
	}
	l = f.take(false)
	if l == nil || l.Attempt != 2 || l.Size() != 2 {
		t.Fatalf("batch of the retry: %+v", l)
	}
	f.advance(l, 2)
	// Second deferral of one, failure at attempt 2 of the other; an outcome of attempt 1 that comes late changes nothing.
	f.record(Outcome{Delivery: ID(b.ID, 1), Contact: 1, Attempt: 2, State: Deferred, RetryAt: soon.Add(time.Hour)},
		Outcome{Delivery: ID(b.ID, 2), Contact: 2, Attempt: 1, State: Failed},
		Outcome{Delivery: ID(b.ID, 2), Contact: 2, Attempt: 2, State: Failed, Class: "hard", Code: 550})
	if !f.close(l) {
		t.Error("the batch of the retry was not closed")
	}
	if d := cmp.Diff([]State{Deferred, Failed}, f.states(b)); d != "" {
		t.Errorf("states (-want +got):\n%s", d)
	}
	if d := cmp.Diff([]int32{0, 1, 1, 0, 0}, f.counts(b.ID)); d != "" {
		t.Errorf("counts of the batch that planned them (-want +got):\n%s", d)
	}
	if d := cmp.Diff([]int32{0, 0, 0, 0, 0}, f.counts(l.Batch)); d != "" {
		t.Errorf("a retry's batch counts its deliveries a second time:\n%s", d)
	}
	if code := pgtest.One[int](t, f.db, f.tenant, "SELECT code FROM delivery WHERE id = $1", ID(b.ID, 2)); code != 550 {
		t.Errorf("code %d", code)
	}
}

func TestPauseHoldsAndCancelEnds(t *testing.T) {
	t.Parallel()
	f := setUp(t)
	b := f.plan(5)[0]
	l := f.take(false)
	f.advance(l, 2)
	f.record(Outcome{Delivery: ID(b.ID, 1), Contact: 1, State: Sent})
	pgtest.Exec(t, f.db, f.tenant, "UPDATE run SET state = 'paused' WHERE id = $1", f.run)
	var flying int64
	f.in(func(ctx context.Context, tx *postgres.Tx) (err error) {
		flying, err = InFlight(ctx, tx, f.run)
		return err
	})
	if flying != 1 {
		t.Errorf("%d mails are in flight, want 1", flying)
	}
	if _, ok := f.advance(l, 4); ok {
		t.Error("the mark of a paused run moved")
	}
	f.record(Outcome{Delivery: ID(b.ID, 2), Contact: 2, State: Sent})
	f.in(func(ctx context.Context, tx *postgres.Tx) error { return l.Release(ctx, tx) })
	if l := f.take(false); l != nil {
		t.Error("a batch of a paused run was leased")
	}
	due := func() (at time.Time) {
		f.in(func(ctx context.Context, tx *postgres.Tx) (err error) {
			at, err = Due(ctx, tx, Bulk, terms().MessageLimit)
			return err
		})
		return at
	}
	if at := due(); !at.Equal(postgres.Never) {
		t.Errorf("a paused run is due at %s", at)
	}
	pgtest.Exec(t, f.db, f.tenant, "UPDATE run SET state = 'cancelled' WHERE id = $1", f.run)
	if at := due(); at.After(time.Now()) {
		t.Errorf("a cancelled run is due at %s", at)
	}
	if l := f.take(false); l == nil || !l.Done {
		t.Fatalf("the cancelled run's batch: %+v", l)
	}
	if d := cmp.Diff([]State{Sent, Sent, Suppressed, Suppressed, Suppressed}, f.states(b)); d != "" {
		t.Errorf("states (-want +got):\n%s", d)
	}
	if d := cmp.Diff([]string{"cancelled"}, pgtest.All[string](t, f.db, f.tenant, "SELECT DISTINCT reason FROM delivery WHERE state = 'suppressed'")); d != "" {
		t.Errorf("reasons (-want +got):\n%s", d)
	}
	if d := cmp.Diff([]int32{2, 0, 0, 3, 0}, f.counts(b.ID)); d != "" {
		t.Errorf("counts (-want +got):\n%s", d)
	}
}

func TestWhatIsTooLateExpires(t *testing.T) {
	t.Parallel()
	f := setUp(t)
	b := f.plan(2)[0]
	if _, err := f.data.Admin(t).MoveClock(context.Background(), f.tenant, Life+time.Minute); err != nil {
		t.Fatal(err)
	}
	if l := f.take(false); l == nil || !l.Done {
		t.Fatalf("expired batch: %+v", l)
	}
	if d := cmp.Diff([]string{"suppressed expired", "suppressed expired"}, pgtest.All[string](t, f.db, f.tenant, "SELECT state || ' ' || reason FROM delivery ORDER BY id")); d != "" {
		t.Errorf("outcomes (-want +got):\n%s", d)
	}
	if d := cmp.Diff([]int32{0, 0, 0, 2, 0}, f.counts(b.ID)); d != "" {
		t.Errorf("counts (-want +got):\n%s", d)
	}
}

func TestATenantThatIsHeldLeasesNothing(t *testing.T) {
	t.Parallel()
	f := setUp(t)
	f.plan(1)
	conn := f.superuser()
	for sql, want := range map[string]error{
		"UPDATE onda.tenant SET state = 'suspended' WHERE name = 'acme'":                       ErrSuspended,
		"UPDATE onda.tenant SET armed = split_part(armed, '/', 1) || '/0' WHERE name = 'acme'": ErrNotArmed,
	} {
		if _, err := conn.Exec(context.Background(), sql); err != nil {
			t.Fatal(err)
		}
		err := f.db.InTenant(context.Background(), f.tenant, func(ctx context.Context, tx *postgres.Tx) error {
			_, err := Take(ctx, tx, "send", Bulk, terms(), time.Now(), nil)
			return err
		})
		if !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", sql, err, want)
		}
		if _, err := conn.Exec(context.Background(), "UPDATE onda.tenant SET state = 'active', armed = onda.identity() WHERE name = 'acme'"); err != nil {
			t.Fatal(err)
		}
	}
	if f.take(false) == nil {
		t.Error("nothing was leased when the tenant was let go")
	}
}

// A takeover that meets the old holder's outcome in a transaction that is not yet committed waits for it and believes it.
func TestSettlingAgainstAnUncommittedSent(t *testing.T) {
	t.Parallel()
	f := setUp(t)
	b := f.plan(1)[0]
	l := f.take(false)
	f.advance(l, 1)
	written, commit, done := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	go func() {
		done <- f.db.InTenant(context.Background(), f.tenant, func(ctx context.Context, tx *postgres.Tx) error {
			_, err := Record(ctx, tx, "send", Outcome{Delivery: ID(b.ID, 1), Contact: 1, State: Sent})
			close(written)
			<-commit
			return err
		})
	}()
	<-written
	// The lease ends while the transaction is open; the update waits for nobody, since the recorder keeps only the key.
	f.expire(b.ID)
	if l := f.take(false); l != nil {
		t.Error("a batch was taken over while an outcome of it was being written")
	}
	close(commit)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if l := f.take(false); l == nil || !l.Done {
		t.Errorf("takeover: %+v", l)
	}
	if d := cmp.Diff([]State{Sent}, f.states(b)); d != "" {
		t.Errorf("states (-want +got):\n%s", d)
	}
}

func TestALeaseEndsByWhicheverClockSaysFirst(t *testing.T) {
	t.Parallel()
	now := time.Now()
	l := &Lease{terms: terms()}
	l.started.Store(&now)
	for _, c := range []struct {
		name string
		at   time.Time
		want bool
	}{
		{"at once", now, true},
		{"before its end", now.Add(59 * time.Second), true},
		{"at its end", now.Add(time.Minute), false},
		{"by the wall clock alone, as after a suspension", now.Round(0).Add(2 * time.Minute), false},
	} {
		if got := l.Alive(c.at); got != c.want {
			t.Errorf("%s: alive %v, want %v", c.name, got, c.want)
		}
	}
}

func TestTruthsThatComeLater(t *testing.T) {
	t.Parallel()
	f := setUp(t)
	b := f.plan(3)[0]
	l := f.take(false)
	f.advance(l, 3)
	f.record(Outcome{Delivery: ID(b.ID, 1), Contact: 1, State: Unknown}, Outcome{Delivery: ID(b.ID, 2), Contact: 2, State: Sent})
	type settle = func(context.Context, *postgres.Tx, string, ...Later) ([]Told, error)
	for _, c := range []struct {
		name    string
		how     settle
		numbers []int
		want    []string
	}{
		{"delivered settles unknown", SettleDelivered, []int{1}, []string{"1 news true"}},
		{"once", SettleDelivered, []int{1}, []string{"1 news false"}},
		{"bounced after sent", Bounced, []int{2}, []string{"2 news true"}},
		{"complained of the same", Complained, []int{2}, []string{"2 news true"}},
		{"a report that is faster than the recorder, one again, one twice, and one about nothing", Bounced, []int{4, 3, 2, 3}, []string{"2 news false", "3 news true"}},
		{"about nothing", Bounced, []int{4, 511}, nil},
		{"nothing", Bounced, nil, nil},
	} {
		var later []Later
		for _, n := range c.numbers {
			later = append(later, Later{Delivery: ID(b.ID, n), Class: "hard"})
		}
		var got []string
		f.in(func(ctx context.Context, tx *postgres.Tx) error {
			told, err := c.how(ctx, tx, "campaign", later...)
			for _, l := range told {
				if l.Delivery != ID(b.ID, int(l.Contact)) {
					t.Errorf("%s: contact %d of delivery %d", c.name, l.Contact, l.Delivery)
				}
				got = append(got, fmt.Sprintf("%d news %v", l.Contact, l.News))
			}
			return err
		})
		if d := cmp.Diff(c.want, got); d != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, d)
		}
	}
	if d := cmp.Diff([]State{Sent, Sent, Sent}, f.states(b)); d != "" {
		t.Errorf("states (-want +got):\n%s", d)
	}
	want := []string{"email.bounced 2", "email.bounced 3", "email.complained 2", "email.delivered 1"}
	if d := cmp.Diff(want, pgtest.All[string](t, f.db, f.tenant, "SELECT kind || ' ' || contact FROM fact WHERE contact IS NOT NULL AND name = 'news' ORDER BY 1")); d != "" {
		t.Errorf("facts (-want +got):\n%s", d)
	}
}
