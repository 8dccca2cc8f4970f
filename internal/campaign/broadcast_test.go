package campaign

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/onda-run/onda/internal/contact"
	"github.com/onda-run/onda/internal/delivery"
	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/postgres"
)

const toEveryone = `
	email: hello
	to: {segment: everyone}
	exclude: {segment: staff}
`

func (w *world) status(name string) (s Status) {
	w.t.Helper()
	w.in(pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) (err error) {
		s, err = GetStatus(ctx, tx, name)
		return err
	})
	return s
}

// do runs a command and gives its error.
func (w *world) do(f func(ctx context.Context, tx *postgres.Tx, name string) (Run, error), name string) (Run, error) {
	w.t.Helper()
	var r Run
	err := w.db.InTenant(context.Background(), pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) (err error) {
		r, err = f(ctx, tx, name)
		return err
	})
	return r, err
}

func (w *world) tryStart(name string, o Options) error {
	w.t.Helper()
	return w.db.InTenant(context.Background(), pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) error {
		_, err := Start(ctx, tx, name, o)
		return err
	})
}

func TestBroadcast(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.people(pgtest.Acme, 1203)
	w.people(pgtest.Brava, 7)
	w.broadcast("news", toEveryone)
	w.exec("INSERT INTO member (segment, contact) SELECT id, $1 FROM entity WHERE kind = 'Segment' AND name = 'staff'", c)
	w.exec("UPDATE member SET kept = 'out' WHERE contact = $1", c+1)
	w.exec("UPDATE contact SET erased_at = now() WHERE id = $1", c+2)
	w.start("news", Options{Preflight: &Preflight{Recipients: 1200}})
	w.everything()
	s := w.status("news")
	want := Status{Run: Run{ID: s.ID, Kind: "broadcast", Name: "news", State: "running"}, Audience: 1200, Planned: 1200, Complete: true, Queued: 1200}
	ignore := cmpopts.IgnoreFields(Status{}, "Run.StartsAt", "Run.Document", "StartedAt", "EndedAt", "Rate", "Lag") // TestLagIsTold in track looks at the lag
	if diff := cmp.Diff(want, s, ignore); diff != "" {
		t.Error(diff)
	}
	if got := fmt.Sprint(pgtest.All[int](t, w.db, pgtest.Acme, "SELECT cardinality(contacts) FROM batch ORDER BY id")); got != "[500 500 200]" {
		t.Errorf("batches of %s", got)
	}
	if n := w.count("SELECT count(DISTINCT c) FROM batch, unnest(contacts) c"); n != 1200 {
		t.Errorf("%d contacts are planned", n)
	}
	if n := w.count("SELECT count(*) FROM outbox WHERE type = 'onda.email.send.requested.v1'"); n != 3 {
		t.Errorf("rung %d times, want once a batch", n)
	}
	w.deliver()
	w.everything()
	s = w.status("news")
	want.State, want.Counts, want.Queued = "completed", Counts{Sent: 1200}, 0
	if diff := cmp.Diff(want, s, ignore); diff != "" {
		t.Error(diff)
	}
	if s.EndedAt.IsZero() || s.StartedAt.IsZero() {
		t.Error("it has no beginning, or no end")
	}
	kinds := fmt.Sprint(pgtest.All[string](t, w.db, pgtest.Acme, "SELECT kind FROM fact WHERE kind LIKE 'campaign.%' ORDER BY id"))
	if kinds != "[campaign.started campaign.completed]" {
		t.Errorf("facts %s", kinds)
	}
	w.wants(fmt.Sprint(pgtest.All[int64](t, w.db, pgtest.Brava, "SELECT id FROM batch")), "[]")
}

// Planning stays at most 200 batches ahead, goes on as batches are sent, and ends in everybody once.
func TestBroadcastIsPlannedAhead(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const people = (ahead + 30) * delivery.MaxBatch
	w.people(pgtest.Acme, people)
	w.broadcast("news", "email: hello\nto: {field: email, exists: true}")
	r := w.start("news")
	w.everything()
	if n := w.count("SELECT count(*) FROM batch"); n != ahead {
		t.Fatalf("%d batches are planned, want %d", n, ahead)
	}
	w.everything()
	if n := w.count("SELECT count(*) FROM batch"); n != ahead {
		t.Fatalf("%d batches are planned, want %d still", n, ahead)
	}
	w.exec("UPDATE batch SET state = 'closed', sent = cardinality(contacts) WHERE id IN (SELECT id FROM batch ORDER BY id LIMIT 150)")
	if all, err := w.engine.work(t.Context(), pgtest.Acme, scope{run: r.ID, plan: true}); err != nil || !all {
		t.Fatal(all, err)
	}
	if n := w.count("SELECT count(DISTINCT c) FROM batch, unnest(contacts) c"); n != people {
		t.Errorf("%d contacts are planned, want %d", n, people)
	}
	if n := w.count("SELECT sum(cardinality(contacts)) FROM batch"); n != people {
		t.Errorf("%d recipients are planned, want %d", n, people)
	}
}

// A run is complete when nothing of it is queued or to be tried again.
func TestBroadcastWaitsForRetries(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.newsTo(2)
	w.deliver()
	w.exec("UPDATE delivery SET state = 'deferred', retry_at = onda.now() + '1 hour' WHERE id IN (SELECT min(id) FROM delivery)")
	w.everything()
	w.wants(w.status("news").State, "running")
	at := w.due()
	if d := at.Sub(w.now()); d < 50*time.Minute || d > 65*time.Minute {
		t.Errorf("looked at again in %v, want with the retry in an hour", d)
	}
	w.exec("UPDATE delivery SET state = 'sent', retry_at = NULL")
	w.everything()
	w.wants(w.status("news").State, "completed")
}

func (w *world) due() (at time.Time) {
	w.t.Helper()
	w.in(pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) (err error) {
		at, err = due(ctx, tx)
		return err
	})
	return at
}

func TestBroadcastAtEachContactsTime(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.people(pgtest.Acme, 3)
	w.exec(`UPDATE contact SET fields = '{"timezone": "Asia/Tokyo"}' WHERE id = $1`, c)
	w.exec(`UPDATE contact SET fields = '{"timezone": "America/New_York"}' WHERE id = $1`, c+1)
	day := w.now().AddDate(0, 0, 3).Format(time.DateOnly)
	w.broadcast("news", "email: hello\nto: {segment: everyone}\nzone: contact\nat: "+day+"T09:00")
	r := w.start("news")
	w.wants(r.State, "scheduled")
	w.everything()
	if n := w.count("SELECT count(*) FROM batch"); n != 0 {
		t.Fatalf("%d batches are planned before its time", n)
	}
	if !w.due().Equal(r.StartsAt) {
		t.Errorf("due at %v, want at %v", w.due(), r.StartsAt)
	}
	w.pass(r.StartsAt.Sub(w.now()) + time.Second)
	w.everything()
	got := w.columnsOf(pgtest.Acme, fmt.Sprintf(`SELECT contacts[1] - %d || ' ' || coalesce(c.fields ->> 'timezone', 'UTC') || ' ' ||
		to_char(not_before AT TIME ZONE coalesce(c.fields ->> 'timezone', 'UTC'), 'YYYY-MM-DD HH24:MI') FROM batch b JOIN contact c ON c.id = b.contacts[1] ORDER BY contacts[1]`, c))
	want := []string{"0 Asia/Tokyo " + day + " 09:00", "1 America/New_York " + day + " 09:00", "2 UTC " + day + " 09:00"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if n := w.count("SELECT count(*) FROM batch WHERE expires_at = not_before + '24 hours'"); n != 3 {
		t.Errorf("%d batches expire a day after they are due", n)
	}
	w.pass(time.Hour) // its time is not over before the last clock shows it
	w.everything()
	w.wants(w.status("news").State, "running")
}

// Everybody gets the version of the email that the first got.
func TestBroadcastKeepsItsEmail(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.people(pgtest.Acme, (batchesAtOnce+1)*delivery.MaxBatch)
	w.broadcast("news", toEveryone)
	r := w.start("news")
	w.in(pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) error {
		_, err := w.engine.docs.planBroadcast(ctx, tx, r.ID, 4)
		return err
	})
	w.apply(common)
	w.everything()
	if n := w.count("SELECT count(DISTINCT email) FROM batch"); n != 1 {
		t.Errorf("%d versions are sent", n)
	}
	if n := w.count("SELECT sum(cardinality(contacts)) FROM batch"); n != (batchesAtOnce+1)*delivery.MaxBatch {
		t.Errorf("%d are planned", n)
	}
}

func TestStartIsRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.people(pgtest.Acme, 2)
	w.broadcast("news", toEveryone)
	w.broadcast("old", "email: hello\nto: {segment: everyone}\nat: 2020-01-01T09:00")
	w.broadcast("both", toEveryone)
	w.campaign("both", welcome)
	w.campaign("welcome", welcome)
	for name, want := range map[string]error{"nothing": ErrNotFound, "old": ErrPast, "both": ErrAmbiguous} {
		if err := w.tryStart(name, Options{}); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", name, err, want)
		}
	}
	if err := w.tryStart("old", Options{At: w.now()}); err != nil {
		t.Errorf("with a time of its own: %v", err)
	}
	w.start("news")
	w.start("welcome")
	for _, name := range []string{"news", "welcome"} {
		if err := w.tryStart(name, Options{Again: true}); !errors.Is(err, ErrOpen) {
			t.Errorf("%s while it is open: %v", name, err)
		}
	}
	w.everything()
	w.deliver()
	w.everything()
	if err := w.tryStart("news", Options{}); !errors.Is(err, ErrRan) {
		t.Errorf("a second time: %v", err)
	}
	if err := w.tryStart("news", Options{Again: true}); err != nil {
		t.Errorf("again: %v", err)
	}
}

// A broadcast that nobody would get is not started; one whose time comes with nobody in its audience is over at once.
func TestBroadcastToNobody(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.broadcast("news", toEveryone)
	start := func(o Options) error {
		return w.db.InTenant(t.Context(), pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) error {
			p, err := GetPreflight(ctx, tx, "news")
			if err != nil {
				return err
			}
			o.Preflight = &p
			_, err = Start(ctx, tx, "news", o)
			return err
		})
	}
	if err := start(Options{}); !errors.Is(err, ErrNobody) {
		t.Errorf("nobody is in the segment: %v", err)
	}
	c := w.people(pgtest.Acme, 2)
	w.exec("UPDATE subscription SET state = 'withdrawn'")
	if err := start(Options{}); !errors.Is(err, ErrNobody) {
		t.Errorf("nobody has consented: %v", err)
	}
	if n := w.count("SELECT (SELECT count(*) FROM run) + (SELECT count(*) FROM outbox) + (SELECT count(*) FROM fact)"); n != 0 {
		t.Errorf("%d rows are left of what was refused", n)
	}
	if err := start(Options{At: w.now().Add(time.Hour)}); err != nil {
		t.Fatalf("its time is to come: %v", err)
	}
	w.exec("DELETE FROM member")
	w.pass(2 * time.Hour)
	w.everything()
	if s := w.status("news"); s.State != "completed" || !s.Complete || s.Planned != 0 || s.EndedAt.IsZero() {
		t.Errorf("with nobody in its audience: %+v", s)
	}
	w.exec("INSERT INTO member (segment, contact) SELECT id, $1 FROM entity WHERE kind = 'Segment' AND name = 'everyone'", c)
	w.exec("UPDATE subscription SET state = 'granted' WHERE contact = $1", c)
	if err := start(Options{Again: true}); err != nil {
		t.Errorf("with somebody: %v", err)
	}
}

func TestPauseResumeCancel(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.newsTo(1100)
	r, inFlight, err := PauseNow(t.Context(), w.db, pgtest.Acme, "news")
	if err != nil || r.State != "paused" || inFlight != 0 {
		t.Fatal(r, inFlight, err)
	}
	if r, err := w.do(Pause, "news"); err != nil || r.State != "paused" {
		t.Error("paused again:", r, err)
	}
	if n := w.deliver(); n != 0 {
		t.Fatalf("%d mails went out while it was paused", n)
	}
	w.pass(3 * 24 * time.Hour)
	if _, err := w.do(Resume, "news"); err != nil {
		t.Fatal(err)
	}
	if _, err := w.do(Resume, "news"); !errors.Is(err, ErrState) {
		t.Errorf("resumed again: %v", err)
	}
	// part goes out, though a day after it was due would be over
	w.in(pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) error {
		_, err := tx.Exec(ctx, "UPDATE batch SET not_before = onda.now() + '1 hour' WHERE id > (SELECT min(id) FROM batch)")
		return err
	})
	if n := w.deliver(); n != 500 {
		t.Fatalf("%d mails went out after it was resumed, want 500", n)
	}
	w.pass(2 * time.Hour)
	if r, err := w.do(Cancel, "news"); err != nil || r.State != "cancelled" {
		t.Fatal(r, err)
	}
	if _, err := w.do(Cancel, "news"); !errors.Is(err, ErrNotFound) {
		t.Errorf("cancelled again: %v", err)
	}
	w.deliver()
	w.everything()
	s := w.status("news")
	if s.Counts != (Counts{Sent: 500, Suppressed: 600}) || s.Reasons["cancelled"] != 600 || s.Queued != 0 || s.State != "cancelled" {
		t.Errorf("status %+v", s)
	}
	kinds := fmt.Sprint(pgtest.All[string](t, w.db, pgtest.Acme, "SELECT kind FROM fact WHERE kind LIKE 'campaign.%' ORDER BY id"))
	if kinds != "[campaign.started campaign.paused campaign.resumed campaign.cancelled]" {
		t.Errorf("facts %s", kinds)
	}
}

// What waits for a further attempt, or is in hand for one, has as long after a pause as it had before.
func TestAPauseTakesNoTimeFromRetries(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.newsTo(4)
	w.deliver()
	first := w.count("SELECT id FROM batch")
	regroup := func(mail int) {
		t.Helper()
		w.exec("UPDATE delivery SET retry_at = onda.now() WHERE id = $1", delivery.ID(first, mail))
		w.in(pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) error {
			n, err := delivery.Regroup(ctx, tx, delivery.Bulk)
			if err == nil && n != 1 {
				err = fmt.Errorf("%d mails are in hand, want 1", n)
			}
			return err
		})
	}
	// As if the first attempt at all had been deferred: one is in hand again, one will be during the pause, one after it. The fourth went out.
	w.exec("UPDATE delivery SET state = 'deferred', retry_at = onda.now() + '100 hours' WHERE id < $1", delivery.ID(first, 4))
	w.exec("UPDATE batch SET sent = 1, deferred = 3")
	regroup(1)
	w.pass(time.Hour)
	if _, err := w.do(Pause, "news"); err != nil {
		t.Fatal(err)
	}
	w.pass(30 * time.Hour)
	regroup(2)
	w.pass(30 * time.Hour)
	if n := w.deliver(); n != 0 {
		t.Fatalf("%d mails went out while it was paused", n)
	}
	if _, err := w.do(Resume, "news"); err != nil {
		t.Fatal(err)
	}
	regroup(3)
	for _, at := range pgtest.All[time.Time](t, w.db, pgtest.Acme, "SELECT expires_at FROM batch ORDER BY id") {
		if left := at.Sub(w.now()); left < 22*time.Hour || left > 24*time.Hour {
			t.Errorf("it has %v after the pause, want what was left of its day before, 23 hours", left)
		}
	}
	if n := w.deliver(); n != 3 {
		t.Errorf("%d mails went out after it was resumed, want 3", n)
	}
	w.everything()
	w.wants(w.status("news").State, "completed")
}

// Mails of a run may be in either lane: both are woken when it goes on, and when it ends.
func TestBothLanesAreWoken(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.newsTo(2)
	w.exec("UPDATE batch SET lane = 1")
	woken := func(when string) {
		t.Helper()
		for _, function := range []string{"send", "send-api"} {
			if w.count("SELECT count(*) FROM onda.wakeup WHERE function = $1 AND at <= onda.now()", function) != 1 {
				t.Errorf("%s: %s is not woken", when, function)
			}
			// It looks, and finds nothing to do.
			err := w.db.Recompute(t.Context(), pgtest.Acme, function, func(context.Context, *postgres.Tx) (time.Time, error) { return postgres.Never, nil })
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, c := range []func(context.Context, *postgres.Tx, string) (Run, error){Pause, Resume} {
		if _, err := w.do(c, "news"); err != nil {
			t.Fatal(err)
		}
	}
	woken("resumed")
	if _, err := w.do(Cancel, "news"); err != nil {
		t.Fatal(err)
	}
	woken("cancelled")
}

func TestCampaignIsHeldAndCancelled(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.people(pgtest.Acme, 20)
	w.campaign("welcome", welcome)
	w.start("welcome")
	w.everything()
	w.deliver()
	if _, err := w.do(Pause, "welcome"); err != nil {
		t.Fatal(err)
	}
	w.pass(4 * 24 * time.Hour)
	w.everything()
	w.wants(w.places(), "clicked 20")
	if at := w.due(); at.Before(w.now()) {
		t.Errorf("a paused campaign is due at %v", at)
	}
	if _, err := w.do(Resume, "welcome"); err != nil {
		t.Fatal(err)
	}
	w.everything()
	w.wants(w.places(), "later 20")
	if _, err := w.do(Cancel, "welcome"); err != nil {
		t.Fatal(err)
	}
	w.wants(w.places(), "cancelled 20")
	w.start("welcome") // those who were cut short may begin anew
	w.everything()
	w.wants(w.places(), "cancelled 20, clicked 20")
	// journeys that another process moves while the run is cancelled are ended by the sweep
	release := make(chan struct{})
	locked := make(chan struct{})
	ended := make(chan error)
	go func() {
		ended <- w.db.InTenant(context.Background(), pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) error {
			_, err := tx.Exec(ctx, "SELECT FROM journey WHERE state = 'active' ORDER BY id LIMIT 5 FOR UPDATE")
			close(locked)
			<-release
			return err
		})
	}()
	<-locked
	if _, err := w.do(Cancel, "welcome"); err != nil {
		t.Fatal(err)
	}
	w.wants(w.places(), "cancelled 35, clicked 5")
	if at := w.due(); at.After(w.now()) {
		t.Errorf("the rest is due at %v", at)
	}
	close(release)
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	w.everything()
	w.wants(w.places(), "cancelled 40")
}

// Ending the journeys of a run sorts none of them.
func TestCancellingSortsNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.campaign("welcome", welcome)
	r := w.start("welcome")
	w.exec("INSERT INTO journey (run, contact, document, step) SELECT $1 + n % 50, n, $2, 'first' FROM generate_series(1, 5000) n", r.ID, r.Document)
	w.exec("ANALYSE journey")
	plan := strings.Join(pgtest.All[string](t, w.db, pgtest.Acme, "EXPLAIN "+cancelSQL, r.ID, cancelledAtOnce), "\n")
	if strings.Contains(plan, "Sort") {
		t.Errorf("the journeys are sorted:\n%s", plan)
	}
	if _, err := w.do(Cancel, "welcome"); err != nil {
		t.Fatal(err)
	}
	w.wants(w.places(), "cancelled 100, first 4900")
}

func TestPreflight(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.people(pgtest.Acme, 50)
	w.people(pgtest.Brava, 9)
	w.broadcast("news", toEveryone)
	w.campaign("welcome", "enter: [{segment: everyone}, {event: trial.started}]\nsteps: [{send: {email: hello}}]")
	w.campaign("events", "enter: {event: trial.started}\nsteps: [{send: {email: hello}}]")
	w.exec("INSERT INTO member (segment, contact) SELECT id, $1 FROM entity WHERE kind = 'Segment' AND name = 'staff'", c)
	w.exec("UPDATE subscription SET state = 'withdrawn' WHERE contact BETWEEN $1 AND $2", c+1, c+3)
	w.exec("UPDATE subscription SET state = 'pending' WHERE contact = $1", c+4)
	w.exec("DELETE FROM subscription WHERE contact = $1", c+5)
	w.in(pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) error {
		_, err := contact.Suppress(ctx, tx, drainer, contact.Suppression{Contact: c + 6, Reason: contact.Bounce})
		return err
	})
	for name, want := range map[string]Preflight{
		"news": {
			Kind: "broadcast", Name: "news", Email: "hello", Segment: "everyone", Topic: "news", Audience: 50, Excluded: 1, Recipients: 43,
			Refused: map[string]int64{"no_consent": 4, "pending": 1, "suppressed": 1},
		},
		"welcome": {
			Kind: "campaign", Name: "welcome", Email: "hello", Topic: "news", Audience: 50, Recipients: 44,
			Refused: map[string]int64{"no_consent": 4, "pending": 1, "suppressed": 1},
		},
		"events": {Kind: "campaign", Name: "events", Refused: map[string]int64{}},
	} {
		w.in(pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) error {
			got, err := GetPreflight(ctx, tx, name)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%s: %s", name, diff)
			}
			return err
		})
	}
}
