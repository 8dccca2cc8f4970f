package campaign

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/onda-run/onda/internal/contact"
	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/spec"
)

func TestSteps(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.people(pgtest.Acme, 3)
	w.exec(`UPDATE contact SET fields = '{"plan": "paid"}', tags = '{old}' WHERE id = $1`, c)
	w.campaign("all", `
		enter: {segment: everyone}
		steps:
		  - {id: mark, tag: {add: [seen], remove: [old]}}
		  - id: paid
		    if: {field: plan, is: paid}
		    then: [{id: thanks, update: {plan: gold}}]
		    else: [{id: offer, update: {plan: trial}}, {id: nothing, exit: not-paid}]
		  - id: gold
		    if: {field: plan, is: gold}
		    then: [{exit: gold}]
	`)
	w.start("all")
	w.everything()
	w.wants(w.places(), "done(gold) 1, done(not-paid) 2")
	w.wants(w.path(1), "mark paid/then thanks gold/then 2.then.0")
	got := w.columnsOf(pgtest.Acme, "SELECT tags::text || fields::text FROM contact ORDER BY id")
	if want := []string{`{seen}{"plan": "gold"}`, `{seen}{"plan": "trial"}`, `{seen}{"plan": "trial"}`}; fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("contacts are %q, want %q", got, want)
	}
	if n := w.count("SELECT count(*) FROM fact WHERE kind IN ('contact.changed', 'tag.changed')"); n < 2 {
		t.Errorf("%d facts tell of it", n)
	}
}

func TestPoints(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.people(pgtest.Acme, 3)
	w.exec(`UPDATE contact SET scores = '{"fit": 1, "score": 45}' WHERE id = $1`, c)
	w.campaign("points", `
		enter: {segment: everyone}
		steps:
		  - {id: five, score: {add: 5}}
		  - {id: fit, score: {add: -2, group: fit}}
		  - id: hot
		    if: {field: score, gte: 50}
		    then: [{exit: hot}]
		  - id: wait
		    wait: {match: {all: [{field: score, gte: 50}, {field: score.fit, lt: 0}]}, timeout: 2d}
		    then: [{exit: warm}]
		  - {exit: cold}
	`)
	w.start("points")
	w.everything()
	w.wants(w.places(), "done(hot) 1, wait 2")
	w.pass(time.Hour)
	w.in(pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) error { // as rules do
		return contact.AddPoints(ctx, tx, "track", []contact.Points{{Contact: c + 1, Group: "score", Add: 40}, {Contact: c + 1, Group: "score", Add: 5}, {Contact: c + 2, Group: "fit", Add: 5}}, "")
	})
	w.everything()
	w.wants(w.places(), "done(hot) 1, done(warm) 1, wait 1")
	w.wants(w.path(1), "five fit hot/then 2.then.0")
	got := w.columnsOf(pgtest.Acme, "SELECT scores::text FROM contact ORDER BY id")
	if want := []string{`{"fit": -1, "score": 50}`, `{"fit": -2, "score": 50}`, `{"fit": 3, "score": 5}`}; fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("scores are %q, want %q", got, want)
	}
	got = w.columnsOf(pgtest.Acme, "SELECT name || ' ' || cardinality(contacts) FROM fact WHERE kind = 'score.changed' ORDER BY id")
	if want := []string{"score 3", "fit 3", "fit 1", "score 1"}; fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("facts are %q, want %q", got, want)
	}
}

func TestStages(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.people(pgtest.Acme, 4)
	w.exec("UPDATE contact SET stage = 'hot' WHERE id = $1", c)
	w.exec("UPDATE contact SET erased_at = now(), email = NULL WHERE id = $1", c+3)
	w.campaign("stages", `
		enter: {segment: everyone}
		steps:
		  - {id: hot, stage: hot}
		  - {exit: done}
	`)
	w.start("stages")
	w.everything()
	w.wants(w.path(1), "hot 1")
	w.wants(fmt.Sprint(w.columnsOf(pgtest.Acme, "SELECT coalesce(stage, '-') FROM contact ORDER BY id")), "[hot hot hot -]")
	w.wants(fmt.Sprint(w.columnsOf(pgtest.Acme, "SELECT name || ' ' || contacts::text FROM fact WHERE kind = 'stage.changed'")), fmt.Sprintf("[hot {%d,%d}]", c+1, c+2))
}

// On the schema before, journeys wait at a step that gives points, and go on from there.
func TestPointsWaitForTheirSchema(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.people(pgtest.Acme, 1)
	w.campaign("points", `
		enter: {segment: everyone}
		steps:
		  - if: {field: score, is: 0}
		    then: [{id: five, score: {add: 5}}]
		  - {exit: done}
	`)
	w.start("points")
	at := func(schema int) {
		w.data.Own(t, pgtest.Acme, fmt.Sprintf("UPDATE onda.tenant SET schema = %d WHERE name = 'acme'", schema))
	}
	at(contact.ScoresSchema - 1)
	_, err := w.engine.work(t.Context(), pgtest.Acme, scope{facts: true, plan: true, walk: true, sweep: true})
	if err != nil && !errors.Is(err, postgres.ErrSchemaTooOld) {
		t.Fatal(err)
	}
	w.wants(w.places(), "0 1")
	at(contact.ScoresSchema)
	w.everything()
	w.wants(w.places(), "done(done) 1")
	w.wants(fmt.Sprint(w.columnsOf(pgtest.Acme, "SELECT scores::text FROM contact")), `[{"score": 5}]`)
}

func TestGotoGoesRoundAtMostSoOften(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.people(pgtest.Acme, 2)
	w.campaign("nudge", `
		enter: {segment: everyone}
		steps:
		  - {id: nudge, send: {email: hello}}
		  - id: click
		    wait: {event: email.clicked, of: nudge, timeout: 1d}
		    then: [{exit: clicked}]
		    else: [{id: again, goto: {step: nudge, atMost: 2}}]
		  - {exit: silent}
	`)
	w.start("nudge")
	for range 2 {
		w.everything()
		w.deliver()
		w.pass(25 * time.Hour)
	}
	w.everything()
	w.deliver()
	mails := w.mailed("nudge")
	if len(mails) != 6 {
		t.Fatalf("%d mails, want 3 for each", len(mails))
	}
	// a click on the first mail is none on the latest
	first := pgtest.One[int64](t, w.db, pgtest.Acme, "SELECT min(delivery) FROM step WHERE journey = 1")
	w.click(first, w.now())
	w.everything()
	w.wants(w.places(), "click 2")
	latest := pgtest.One[int64](t, w.db, pgtest.Acme, "SELECT max(delivery) FROM step WHERE journey = 2")
	w.click(latest, w.now())
	w.everything()
	w.wants(w.places(), "click 1, done(clicked) 1")
	w.pass(25 * time.Hour)
	w.everything()
	w.wants(w.places(), "done(clicked) 1, done(silent) 1")
	w.wants(w.path(1), "nudge click/timeout again/jump nudge click/timeout again/jump nudge click/timeout again 2")
}

// One event ends one wait: the next wait for the same needs another.
func TestAnEventIsTakenOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.people(pgtest.Acme, 1)
	w.campaign("orders", `
		enter: {segment: everyone}
		steps:
		  - {id: mail, send: {email: hello}}
		  - {id: pause, wait: 1d}
		  - {id: one, wait: {event: order.placed, timeout: 10d}, else: [{exit: none}]}
		  - {id: two, wait: {event: order.placed, timeout: 10d}, else: [{exit: one}]}
		  - {exit: two}
	`)
	w.start("orders")
	w.everything()
	w.pass(time.Hour)
	w.tracks(c, "order.placed", `{}`, w.now()) // after the mail, its cause, and before the wait
	w.everything()
	w.wants(w.places(), "pause 1")
	w.pass(24 * time.Hour)
	w.everything()
	w.wants(w.places(), "two 1")
	w.tracks(c, "order.placed", `{}`, w.now())
	w.everything()
	w.wants(w.places(), "done(two) 1")
}

func TestGoalAndLeave(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.people(pgtest.Acme, 4)
	w.campaign("trial", `
		enter: {segment: everyone}
		goal: {field: plan, is: paid}
		leave: {not: {segment: everyone}}
		steps: [{id: mail, send: {email: hello}}, {id: long, wait: 30d}, {send: {email: reminder}}]
	`)
	w.exec(`UPDATE contact SET fields = '{"plan": "paid"}' WHERE id = $1`, c) // it is so before the first step
	w.start("trial")
	w.everything()
	w.wants(w.places(), "goal 1, long 3")
	w.exec(`UPDATE contact SET fields = '{"plan": "paid"}' WHERE id = $1`, c+1)
	w.fact(postgres.Fact{Kind: "contact.changed", Contact: c + 1})
	w.exec("DELETE FROM member WHERE contact = $1", c+2)
	w.fact(postgres.Fact{Kind: "segment.left", Name: "everyone", Contacts: []int64{c + 2}})
	w.everything()
	w.wants(w.places(), "goal 2, left 1, long 1")
	w.wants(w.path(2), "mail long/goal")
	w.exec("DELETE FROM member WHERE contact = $1", c+3) // with no fact: seen before the next step
	w.pass(31 * 24 * time.Hour)
	w.everything()
	w.wants(w.places(), "goal 2, left 2")
	if n := len(w.mailed("2")); n != 0 {
		t.Errorf("%d were reminded", n)
	}
}

// A step that changes the contact may reach the goal by itself: no further step is taken.
func TestGoalReachedByAStep(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.people(pgtest.Acme, 1)
	w.campaign("self", `
		enter: {segment: everyone}
		goal: {tag: won}
		steps: [{id: win, tag: {add: [won]}}, {id: mail, send: {email: hello}}]
	`)
	w.start("self")
	w.everything()
	w.wants(w.places(), "goal 1")
	w.wants(w.path(1), "win mail/goal")
}

func TestSendWindow(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.people(pgtest.Acme, 3)
	for i, zone := range []string{"Asia/Tokyo", "Europe/Paris", "America/New_York"} {
		w.exec("UPDATE contact SET fields = jsonb_build_object('timezone', $2::text) WHERE id = $1", c+int64(i), zone)
	}
	// Clocks are moved to a midnight UTC, when it is 9 in Tokyo, 1 or 2 in Paris and the evening before in New York.
	now := w.now()
	w.pass(now.Truncate(24 * time.Hour).Add(24 * time.Hour).Sub(now))
	w.campaign("window", `
		enter: {segment: everyone}
		sendWindow: {from: "08:00", to: "12:00"}
		steps: [{id: mail, send: {email: hello}}]
	`)
	w.start("window")
	w.everything()
	w.wants(w.places(), "done 1, mail 2")
	w.pass(8 * time.Hour) // 9 or 10 in Paris
	w.everything()
	w.wants(w.places(), "done 2, mail 1")
	w.pass(6 * time.Hour) // 14 UTC: 9 or 10 in New York
	w.everything()
	w.wants(w.places(), "done 3")
}

func TestMailTime(t *testing.T) {
	t.Parallel()
	window := &spec.Window{Days: []spec.Weekday{"mon", "tue", "wed", "thu", "fri"}, From: 8 * 60, To: 20 * 60}
	at := func(day, hour int) time.Time { return time.Date(2026, 11, day, hour, 0, 0, 0, time.UTC) } // the 23rd is a Monday
	late := func(do spec.LateAction) *spec.Late {
		return &spec.Late{After: spec.Duration{Minutes: 12 * 60}, Do: do}
	}
	for name, test := range map[string]struct {
		c        spec.Campaign
		due, now time.Time
		at       time.Time
		want     mailAction
	}{
		"no window":                            {spec.Campaign{}, at(23, 3), at(23, 3), at(23, 3), sendMail},
		"open":                                 {spec.Campaign{SendWindow: window}, at(23, 9), at(23, 9), at(23, 9), sendMail},
		"closed":                               {spec.Campaign{SendWindow: window}, at(23, 3), at(23, 3), at(23, 8), holdMail},
		"closed until Monday":                  {spec.Campaign{SendWindow: window}, at(27, 21), at(27, 21), at(30, 8), holdMail},
		"late, sent all the same":              {spec.Campaign{Late: late(spec.LateSend)}, at(23, 3), at(25, 3), at(25, 3), sendMail},
		"late, skipped":                        {spec.Campaign{Late: late(spec.LateSkip)}, at(23, 3), at(25, 3), at(25, 3), skipMail},
		"not late yet":                         {spec.Campaign{Late: late(spec.LateSkip)}, at(23, 3), at(23, 14), at(23, 14), sendMail},
		"over the weekend is not late":         {spec.Campaign{SendWindow: window, Late: late(spec.LateSkip)}, at(27, 21), at(30, 9), at(30, 9), sendMail},
		"late, skipped though closed":          {spec.Campaign{SendWindow: window, Late: late(spec.LateSkip)}, at(23, 9), at(24, 3), at(24, 3), skipMail},
		"late, the next window while open":     {spec.Campaign{SendWindow: window, Late: late(spec.LateNextWindow)}, at(23, 9), at(24, 9), at(25, 8), holdMail},
		"late, the next window while closed":   {spec.Campaign{SendWindow: window, Late: late(spec.LateNextWindow)}, at(23, 9), at(24, 3), at(24, 8), holdMail},
		"in the next window it is not late":    {spec.Campaign{SendWindow: window, Late: late(spec.LateNextWindow)}, at(25, 8), at(25, 8), at(25, 8), sendMail},
		"a window that never closes":           {spec.Campaign{SendWindow: &spec.Window{To: 1440}, Late: late(spec.LateNextWindow)}, at(23, 9), at(24, 9), at(24, 9), sendMail},
		"from Friday, the next is on Monday":   {spec.Campaign{SendWindow: window, Late: late(spec.LateNextWindow)}, at(26, 9), at(27, 9), at(30, 8), holdMail},
		"a window that crosses midnight, open": {spec.Campaign{SendWindow: &spec.Window{From: 22 * 60, To: 6 * 60}}, at(23, 3), at(23, 3), at(23, 3), sendMail},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, do := mailTime(&test.c, test.due, test.now, time.UTC)
			if do != test.want || !got.Equal(test.at) {
				t.Errorf("%v at %v, want %v at %v", do, got, test.want, test.at)
			}
		})
	}
}

// A mail that is too late is not sent, and says so like every other that is not.
func TestLateMailIsSuppressed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.people(pgtest.Acme, 3)
	w.campaign("late", `
		enter: {segment: everyone}
		late: {after: 12h, do: skip}
		steps: [{id: day, wait: 1d}, {id: mail, send: {email: hello}}, {id: rest, wait: 1d}]
	`)
	w.start("late")
	w.everything()
	w.pass(5 * 24 * time.Hour) // nobody looked for days
	w.everything()
	w.wants(w.places(), "rest 3")
	w.wants(w.path(1), "day mail/late")
	if n := w.deliver(); n != 0 {
		t.Errorf("%d mails were sent", n)
	}
	if n := w.count("SELECT count(*) FROM delivery WHERE state = 'suppressed' AND reason = 'late'"); n != 3 {
		t.Errorf("%d mails are late, want 3", n)
	}
	if n := w.count("SELECT sum(suppressed) FROM batch WHERE state = 'closed'"); n != 3 {
		t.Errorf("%d are counted, want 3", n)
	}
}

// Those in a campaign go on in the version that they entered.
func TestVersionsAreKept(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.people(pgtest.Acme, 2)
	w.campaign("versions", `
		enter: {event: trial.started}
		steps: [{id: day, wait: 1d}, {id: old, exit: old}]
	`)
	w.start("versions")
	w.tracks(c, "trial.started", `{}`, w.now())
	w.everything()
	w.campaign("versions", `
		enter: {event: trial.started}
		steps: [{id: other, wait: 1d}, {id: new, exit: new}]
	`)
	w.tracks(c+1, "trial.started", `{}`, w.now())
	w.everything()
	w.wants(w.places(), "day 1, other 1")
	w.exec("UPDATE entity SET current = NULL WHERE kind = 'Campaign'") // taken away: nobody enters any more
	w.tracks(c, "trial.started", `{}`, w.now())
	w.pass(25 * time.Hour)
	w.everything()
	w.wants(w.places(), "done(new) 1, done(old) 1")
}
