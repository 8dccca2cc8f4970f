package campaign

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/onda-run/onda/internal/contact"
	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/postgres"
)

func TestReentry(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		reentry string
		again   time.Duration // after the first journey was over
		want    int64
	}{
		{"never", 400 * 24 * time.Hour, 1},
		{"always", time.Hour, 2},
		{"{after: 90d}", 89 * 24 * time.Hour, 1},
		{"{after: 90d}", 91 * 24 * time.Hour, 2},
	} {
		t.Run(fmt.Sprint(test.reentry, " ", test.again), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			c := w.people(pgtest.Acme, 1)
			w.campaign("again", `
				enter: {event: trial.started}
				reentry: `+test.reentry+`
				steps: [{wait: 1d}, {exit: finished}]
			`)
			w.start("again")
			w.tracks(c, "trial.started", `{}`, w.now())
			w.everything()
			w.tracks(c, "trial.started", `{}`, w.now()) // nobody is in it twice
			w.everything()
			w.wants(w.places(), "0 1")
			w.pass(25 * time.Hour)
			w.everything()
			w.wants(w.places(), "done(finished) 1")
			w.pass(test.again)
			w.tracks(c, "trial.started", `{}`, w.now())
			w.everything()
			if n := w.count("SELECT count(*) FROM journey"); n != test.want {
				t.Errorf("%d journeys, want %d", n, test.want)
			}
		})
	}
}

func TestOneJourneyAKey(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.people(pgtest.Acme, 2)
	w.campaign("trial", `
		enter: [{event: trial.started, key: trial.id, where: {seats: {gte: 2}}}]
		steps: [{id: first, send: {email: hello}}, {wait: 1d}]
	`)
	w.start("trial")
	w.tracks(c, "trial.started", `{"trial": {"id": 12345678901234567890}, "seats": 3, "name": "Ada"}`, w.now())
	w.tracks(c, "trial.started", `{"trial": {"id": 12345678901234567890}, "seats": 3}`, w.now())
	w.tracks(c, "trial.started", `{"trial": {"id": "b"}, "seats": 2}`, w.now())
	w.tracks(c, "trial.started", `{"trial": {"id": "c"}, "seats": 1}`, w.now()) // too few seats
	w.tracks(c+1, "trial.started", `{"trial": {"id": "b"}, "seats": 9}`, w.now())
	w.tracks(c+1, "trial.ended", `{"trial": {"id": "d"}, "seats": 9}`, w.now())
	w.everything()
	got := w.columnsOf(pgtest.Acme, "SELECT contact - "+fmt.Sprint(c)+" || ' ' || key || ' ' || coalesce(data ->> 'name', '') FROM journey ORDER BY contact, key")
	if want := []string{"0 12345678901234567890 Ada", "0 b ", "1 b "}; fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("journeys %q, want %q", got, want)
	}
	// a contact with two journeys at one step gets a mail for each
	if n := w.deliver(); n != 3 {
		t.Errorf("%d mails, want 3", n)
	}
}

func TestWhoMayEnter(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.people(pgtest.Acme, 6)
	w.campaign("welcome", `
		enter: [{segment: everyone}, {event: form.submitted}]
		exclude: {segment: staff}
		steps: [{wait: 1d}]
	`)
	w.exec("INSERT INTO member (segment, contact) SELECT id, $1 FROM entity WHERE kind = 'Segment' AND name = 'staff'", c)
	w.exec("UPDATE member SET kept = 'out' WHERE contact = $1", c+1)
	w.exec("UPDATE contact SET merged_into = $1 WHERE id = $2", c+4, c+2)
	w.exec("DELETE FROM member WHERE contact = $1", c+5)
	w.fact(postgres.Fact{Kind: "form.submitted", Name: "demo", Contact: c + 5}) // before the start
	w.start("welcome")
	w.everything()
	who := "SELECT contact - " + fmt.Sprint(c) + " FROM journey ORDER BY 1"
	wants := func(want ...int64) {
		t.Helper()
		if got := pgtest.All[int64](t, w.db, pgtest.Acme, who); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Fatalf("in the campaign are %d, want %d", got, want)
		}
	}
	wants(3, 4)
	w.pass(time.Minute)
	w.fact(postgres.Fact{Kind: "segment.joined", Name: "everyone", Contacts: []int64{c, c + 1, c + 4}},
		postgres.Fact{Kind: "segment.joined", Name: "staff", Contacts: []int64{c + 5}},
		postgres.Fact{Kind: "segment.left", Name: "everyone", Contacts: []int64{c + 5}})
	w.everything()
	wants(1, 3, 4)
	w.fact(postgres.Fact{Kind: "campaign.enter", Name: "other", Contact: c + 5})
	w.everything()
	wants(1, 3, 4)
	w.fact(postgres.Fact{Kind: "campaign.enter", Name: "welcome", Contact: c + 5})
	w.everything()
	wants(1, 3, 4, 5)
}

// Entering goes on while a campaign is paused, and begins with the time of its start, whenever the facts are read.
func TestEnteringWhilePausedOrScheduled(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.people(pgtest.Acme, 3)
	w.campaign("trial", `
		enter: {event: trial.started}
		steps: [{id: first, send: {email: hello}}, {wait: 1d}]
	`)
	starts := w.now().Add(time.Hour)
	w.start("trial", Options{At: starts})
	w.tracks(c, "trial.started", `{}`, starts.Add(-time.Minute))
	w.pass(2 * time.Hour)
	w.tracks(c+1, "trial.started", `{}`, starts.Add(time.Minute)) // read before anyone noticed that it has begun
	w.eventually("facts are read", func() bool {
		w.in(pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) error {
			_, err := w.engine.docs.readFacts(ctx, tx)
			return err
		})
		return w.allRead(pgtest.Acme)
	})
	w.wants(w.places(), "first 1")
	w.everything()
	w.wants(w.places(), "1 1")
	w.in(pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) error { _, err := Pause(ctx, tx, "trial"); return err })
	w.tracks(c+2, "trial.started", `{}`, w.now())
	w.everything()
	w.wants(w.places(), "1 1, first 1")
	w.in(pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) error { _, err := Resume(ctx, tx, "trial"); return err })
	w.everything()
	w.wants(w.places(), "1 2")
}

// Members are enrolled chunk by chunk; who joins meanwhile is enrolled once, by whoever is first.
func TestEnrolInChunks(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.people(pgtest.Acme, 2*enrolledAtOnce+10)
	w.campaign("welcome", `
		enter: {segment: everyone}
		reentry: always
		steps: [{exit: finished}]
	`)
	r := w.start("welcome")
	last := c + 2*enrolledAtOnce + 9
	w.in(pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) error {
		more, err := w.engine.docs.enrolMembers(ctx, tx, r.ID)
		if !more {
			t.Error("all were enrolled at once")
		}
		return err
	})
	w.fact(postgres.Fact{Kind: "segment.joined", Name: "everyone", Contacts: []int64{c, last}}) // one was enrolled already, and one not yet
	w.everything()
	if n := w.count("SELECT count(DISTINCT contact) FROM journey"); n != 2*enrolledAtOnce+10 {
		t.Errorf("%d contacts were enrolled, want %d", n, 2*enrolledAtOnce+10)
	}
	if n := w.count("SELECT count(*) FROM journey WHERE contact = $1", last); n != 1 {
		t.Errorf("who joined meanwhile has %d journeys, want 1", n)
	}
}

func TestErasedContactsLeave(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.people(pgtest.Acme, 2)
	w.campaign("welcome", welcome)
	w.start("welcome")
	w.everything()
	w.exec("UPDATE journey SET data = '{\"name\": \"Ada\"}'")
	if _, err := contact.Erase(t.Context(), w.db, pgtest.Acme, drainer, c, nil); err != nil {
		t.Fatal(err)
	}
	// Who entered at that moment, by a transaction that did not see it, leaves too.
	w.exec("UPDATE journey SET data = '{\"name\": \"Ada\"}', key = 'ada'")
	w.everything()
	w.wants(w.places(), "clicked 1, left(erased) 1")
	w.wants(pgtest.One[string](t, w.db, pgtest.Acme, "SELECT data::text || (key = id::text) FROM journey WHERE contact = $1", c), "{}true")
}
