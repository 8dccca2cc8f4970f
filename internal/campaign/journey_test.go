package campaign

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/postgres"
)

// welcome sends a mail, waits for a click on it, and reminds those who do not click.
const welcome = `
	enter: {segment: everyone}
	steps:
	  - {id: first, send: {email: hello}}
	  - id: clicked
	    wait: {event: email.clicked, of: first, timeout: 3d}
	    then: [{id: tagged, tag: {add: [engaged]}}]
	    else: [{id: second, send: {email: reminder}}]
	  - {id: later, wait: 2d}
	  - {id: end, exit: finished}
`

func TestJourney(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.people(pgtest.Acme, 5)
	w.people(pgtest.Brava, 3)
	w.campaign("welcome", welcome)
	w.start("welcome")
	w.everything()
	w.wants(w.places(), "clicked 5")
	if n := w.deliver(); n != 5 {
		t.Fatalf("%d mails were sent, want 5", n)
	}
	mails := w.mailed("first")
	w.click(mails[0], w.now())
	w.everything()
	w.wants(w.places(), "clicked 4, later 1")
	w.pass(3*24*time.Hour + time.Minute)
	w.everything()
	w.wants(w.places(), "done(finished) 1, later 4")
	w.deliver()
	w.pass(2*24*time.Hour + time.Minute)
	w.everything()
	w.wants(w.places(), "done(finished) 5")
	w.wants(w.path(1), "first clicked/then tagged later end")
	w.wants(w.path(2), "first clicked/timeout second later end")
	if n := w.count("SELECT count(*) FROM delivery WHERE state = 'sent'"); n != 9 {
		t.Errorf("%d mails, want 5 and 4 reminders", n)
	}
	if n := w.count("SELECT count(*) FROM contact WHERE tags = '{engaged}'"); n != 1 {
		t.Errorf("%d contacts are engaged, want 1", n)
	}
	w.wants(w.placesOf(pgtest.Brava), "")
}

// Segments are told who enters a campaign and who ends a journey there, in sets, by whatever way.
func TestJourneysAreTold(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	first := w.people(pgtest.Acme, 1203)
	w.people(pgtest.Brava, 3)
	w.campaign("welcome", `
		enter: [{segment: everyone}, {event: seat.booked, key: seat}]
		goal: {tag: customer}
		leave: {tag: bored}
		steps: [{id: some, wait: 3d}, {exit: finished}]
	`)
	told := func(want ...string) {
		t.Helper()
		got := w.columnsOf(pgtest.Acme, `SELECT kind || ' ' || name || coalesce(' ' || (data->>'state'), '') || ' ' || cardinality(contacts) || ' from ' || (contacts[1] - `+fmt.Sprint(first)+`)
			FROM fact WHERE kind LIKE 'journey.%' ORDER BY id`)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
		if n := w.count("SELECT count(*) FROM fact f WHERE kind LIKE 'journey.%' AND contacts <> ARRAY(SELECT DISTINCT c FROM unnest(contacts) c ORDER BY c)"); n > 0 {
			t.Errorf("the contacts of %d facts are not in order", n)
		}
		w.exec("DELETE FROM fact WHERE kind LIKE 'journey.%'")
	}
	w.start("welcome")
	w.everything()
	told("journey.entered welcome 500 from 0", "journey.entered welcome 500 from 500", "journey.entered welcome 203 from 1000")
	w.exec("UPDATE contact SET tags = '{customer}' WHERE id = $1", first+5)
	w.exec("UPDATE contact SET tags = '{bored}' WHERE id BETWEEN $1 AND $2", first+600, first+601)
	// In one commit, so that they are read together: of two, other tests' transactions may hold one back.
	w.fact(postgres.Fact{Kind: "event.tracked", Name: "seat.booked", Contact: first + 5, Data: []byte(`{"seat": 1}`), At: w.now()},
		postgres.Fact{Kind: "event.tracked", Name: "seat.booked", Contact: first + 5, Data: []byte(`{"seat": 2}`), At: w.now()},
		postgres.Fact{Kind: "tag.changed", Contacts: []int64{first + 5, first + 600, first + 601}})
	w.everything()
	told("journey.entered welcome 1 from 5", "journey.left welcome goal 1 from 5", "journey.left welcome left 2 from 600")
	w.exec("DELETE FROM journey WHERE contact > $1 AND state = 'active'", first+20)
	w.pass(3*24*time.Hour + time.Minute)
	w.everything()
	told("journey.left welcome done 20 from 0")
	if n := w.count("SELECT count(*) FROM journey WHERE state = 'active'"); n > 0 {
		t.Errorf("%d journeys are not over", n)
	}
	w.exec("UPDATE journey SET state = 'active'")
	if _, err := w.do(Cancel, "welcome"); err != nil {
		t.Fatal(err)
	}
	told("journey.left welcome cancelled 23 from 0")
	if n := pgtest.One[int64](t, w.db, pgtest.Brava, "SELECT count(*) FROM fact WHERE kind LIKE 'journey.%'"); n > 0 {
		t.Errorf("%d facts at another tenant", n)
	}
}

func TestClicksCountByTheTimeTheyHappened(t *testing.T) {
	t.Parallel()
	const deadline = 3 * 24 * time.Hour
	for name, test := range map[string]struct {
		click time.Duration // after the mail
		read  time.Duration // when the campaign looks
		want  string
	}{
		"in time, read in time":                      {time.Hour, 2 * time.Hour, "later 1"},
		"in time, read long after the deadline":      {deadline - time.Hour, deadline + 48*time.Hour, "later 1"},
		"late, read at once":                         {deadline + time.Hour, deadline + time.Hour, "later 1"},
		"late, read after the wait was given up":     {deadline + time.Hour, deadline + 2*time.Hour, "later 1"},
		"nothing, before the deadline":               {0, deadline - time.Hour, "clicked 1"},
		"nothing, just after the deadline":           {0, deadline + time.Minute, "later 1"},
		"in the last minute, read in the same grace": {deadline - time.Minute, deadline + 2*time.Second, "later 1"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.people(pgtest.Acme, 1)
			w.campaign("welcome", welcome)
			w.start("welcome")
			w.everything()
			w.deliver()
			sent := w.now()
			w.pass(test.read)
			inTime := test.click > 0 && test.click < deadline
			if test.click > 0 {
				w.click(w.mailed("first")[0], sent.Add(test.click))
			}
			w.everything()
			w.wants(w.places(), test.want)
			if test.want == "clicked 1" {
				return
			}
			if want := "first clicked/then tagged"; inTime {
				w.wants(w.path(1), want)
			} else {
				w.wants(w.path(1), "first clicked/timeout second")
			}
		})
	}
}

// The mail is planned, sent and clicked before the engine comes to the wait.
func TestClickBeforeTheWaitIsEnteredCounts(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.people(pgtest.Acme, 1)
	w.campaign("slow", `
		enter: {segment: everyone}
		steps:
		  - {id: first, send: {email: hello}}
		  - {id: day, wait: 1d}
		  - id: clicked
		    wait: {event: email.clicked, of: first, timeout: 1d}
		    then: [{exit: clicked}]
		  - {exit: silent}
	`)
	w.start("slow")
	w.everything()
	w.deliver()
	w.click(w.mailed("first")[0], w.now())
	w.everything()
	w.wants(w.places(), "day 1")
	w.pass(25 * time.Hour)
	w.everything()
	w.wants(w.places(), "done(clicked) 1")
}

// A hit that is not judged yet holds the decision; who made it decides it.
func TestHeldHitDelaysTheDecision(t *testing.T) {
	t.Parallel()
	for _, human := range []bool{true, false} {
		w := newWorld(t)
		w.people(pgtest.Acme, 1)
		w.campaign("welcome", welcome)
		w.start("welcome")
		w.everything()
		w.deliver()
		mail := w.mailed("first")[0]
		w.pass(time.Hour)
		at := w.now()
		w.exec("INSERT INTO hit (kind, delivery, contact, at) SELECT 'click', id, contact, $2 FROM delivery WHERE id = $1", mail, at)
		w.pass(3 * 24 * time.Hour)
		w.everything()
		w.wants(w.places(), "clicked 1")
		want := "first clicked/timeout second"
		if human {
			w.exec("UPDATE hit SET verdict = 'human'")
			w.click(mail, at)
			want = "first clicked/then tagged"
		} else {
			w.exec("UPDATE hit SET verdict = 'machine'")
			w.pass(2 * time.Minute)
		}
		w.everything()
		w.wants(w.path(1), want)
	}
}

func TestUntrackedMailCannotBeClicked(t *testing.T) {
	t.Parallel()
	for _, way := range []string{"then", "else"} {
		w := newWorld(t)
		w.people(pgtest.Acme, 1)
		w.campaign("untracked", `
			enter: {segment: everyone}
			steps:
			  - {id: first, send: {email: hello}}
			  - wait: {event: email.clicked, of: first, timeout: 3d, untracked: `+way+`}
			    then: [{exit: then}]
			    else: [{exit: else}]
		`)
		w.start("untracked")
		w.everything()
		w.deliver("aggregate")
		w.pass(time.Hour)
		w.everything()
		w.wants(w.places(), "1 1") // nobody is hurried on: the wait takes its time
		w.pass(3 * 24 * time.Hour)
		w.everything()
		w.wants(w.places(), "done("+way+") 1")
		w.wants(pgtest.One[string](t, w.db, pgtest.Acme, "SELECT branch FROM step WHERE step = '1'"), "untracked")
	}
}

// The time-out runs from when the mail was sent, not from when it was planned, where that is long after.
func TestTimeoutWaitsForTheMail(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.people(pgtest.Acme, 1)
	w.campaign("welcome", welcome)
	w.start("welcome")
	w.everything()
	w.pass(4 * 24 * time.Hour) // nothing was sent all the time
	w.everything()
	w.wants(w.places(), "clicked 1")
	w.exec("UPDATE batch SET expires_at = onda.now() + '1 day'")
	w.deliver()
	w.exec("UPDATE delivery SET at = onda.now()")
	w.pass(time.Hour)
	w.everything()
	w.wants(w.places(), "clicked 1")
	w.pass(3 * 24 * time.Hour)
	w.everything()
	w.wants(w.path(1), "first clicked/timeout second")
}

func TestWaits(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		wait   string
		before func(w *world, contact int64)
		during func(w *world, contact int64) // an hour after the wait was entered
		after  time.Duration                 // when it is looked at, after the wait was entered
		want   string
	}{
		"a time, not over":      {wait: "wait: 1d", after: 23 * time.Hour, want: "0 1"},
		"a time, over":          {wait: "wait: 1d", after: 25 * time.Hour, want: "done(passed) 1"},
		"a date that is past":   {wait: "wait: {until: 2020-01-01T09:00}", after: time.Minute, want: "done(passed) 1"},
		"a date past, exit":     {wait: "wait: {until: 2020-01-01T09:00, past: exit}", after: time.Minute, want: "done(past) 1"},
		"a date far off":        {wait: "wait: {until: 2099-01-01T09:00}", after: time.Hour, want: "0 1"},
		"a field, missing":      {wait: "wait: {until: {field: trial_ends}}", after: time.Minute, want: "done(passed) 1"},
		"a field, missing exit": {wait: "wait: {until: {field: trial_ends}, missing: exit}", after: time.Minute, want: "done(missing) 1"},
		"a field": {
			wait: "wait: {until: {field: trial_ends, offset: -3d, at: \"09:00\"}}",
			before: func(w *world, c int64) {
				w.exec(`UPDATE contact SET fields = jsonb_build_object('trial_ends', (onda.now() + '10 days')::date)`)
			},
			after: 5 * 24 * time.Hour, want: "0 1",
		},
		"a field, over": {
			wait: "wait: {until: {field: trial_ends, offset: -3d, at: \"09:00\"}}",
			before: func(w *world, c int64) {
				w.exec(`UPDATE contact SET fields = jsonb_build_object('trial_ends', (onda.now() + '10 days')::date)`)
			},
			after: 8 * 24 * time.Hour, want: "done(passed) 1",
		},
		"a field that is put off meanwhile": {
			wait: "wait: {until: {field: trial_ends}}",
			before: func(w *world, c int64) {
				w.exec(`UPDATE contact SET fields = jsonb_build_object('trial_ends', (onda.now() + '2 days')::date)`)
			},
			during: func(w *world, c int64) {
				w.exec(`UPDATE contact SET fields = jsonb_build_object('trial_ends', (onda.now() + '20 days')::date)`)
				w.fact(postgres.Fact{Kind: "contact.changed", Contact: c})
			},
			after: 5 * 24 * time.Hour, want: "0 1",
		},
		"an event of one's own": {
			wait:   "wait: {event: order.placed, where: {total: {gte: 100}}, timeout: 2d}",
			during: func(w *world, c int64) { w.tracks(c, "order.placed", `{"total": 120}`, w.now()) },
			after:  2 * time.Hour, want: "done(passed) 1",
		},
		"an event that has another value": {
			wait:   "wait: {event: order.placed, where: {total: {gte: 100}}, timeout: 2d}",
			during: func(w *world, c int64) { w.tracks(c, "order.placed", `{"total": 12}`, w.now()) },
			after:  2 * time.Hour, want: "0 1",
		},
		"another's event": {
			wait:   "wait: {event: order.placed, timeout: 2d}",
			during: func(w *world, c int64) { w.tracks(c+1, "order.placed", `{"total": 120}`, w.now()) },
			after:  2 * time.Hour, want: "0 1",
		},
		"an event from before it entered": {
			wait:   "wait: {event: order.placed, timeout: 2d}",
			before: func(w *world, c int64) { w.tracks(c, "order.placed", `{}`, w.now().Add(-time.Hour)) },
			after:  2 * time.Hour, want: "0 1",
		},
		"a form": {
			wait: "wait: {event: form.submitted, of: demo, timeout: 2d}",
			during: func(w *world, c int64) {
				w.fact(postgres.Fact{Kind: "form.submitted", Name: "demo", Contact: c})
			},
			after: 2 * time.Hour, want: "done(passed) 1",
		},
		"another form": {
			wait: "wait: {event: form.submitted, of: demo, timeout: 2d}",
			during: func(w *world, c int64) {
				w.fact(postgres.Fact{Kind: "form.submitted", Name: "newsletter", Contact: c})
			},
			after: 2 * time.Hour, want: "0 1",
		},
		"a change that is written for many at once": {
			wait: "wait: {event: tag.changed, timeout: 2d}",
			during: func(w *world, c int64) {
				w.fact(postgres.Fact{Kind: "tag.changed", Name: "vip", Contacts: []int64{c, c + 1}})
			},
			after: 2 * time.Hour, want: "done(passed) 1",
		},
		"a match": {
			wait: "wait: {match: {field: plan, is: paid}, timeout: 2d}",
			during: func(w *world, c int64) {
				w.exec(`UPDATE contact SET fields = '{"plan": "paid"}' WHERE id = $1`, c)
				w.fact(postgres.Fact{Kind: "contact.changed", Contact: c})
			},
			after: 2 * time.Hour, want: "done(passed) 1",
		},
		"no match":                 {wait: "wait: {match: {field: plan, is: paid}, timeout: 2d}", after: 2 * time.Hour, want: "0 1"},
		"a match that never comes": {wait: "wait: {match: {field: plan, is: paid}, timeout: 2d}", after: 49 * time.Hour, want: "done(passed) 1"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			contact := w.people(pgtest.Acme, 1)
			w.campaign("waits", `
				enter: {segment: everyone}
				zone: tenant
				steps:
				  - `+test.wait+`
				  - {exit: passed}
			`)
			if test.before != nil {
				test.before(w, contact)
			}
			w.start("waits")
			w.everything()
			rest := test.after
			if test.during != nil {
				w.pass(time.Hour)
				test.during(w, contact)
				w.everything()
				rest -= time.Hour
			}
			w.pass(rest)
			w.everything()
			w.wants(w.places(), test.want)
		})
	}
}
