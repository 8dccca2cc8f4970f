package campaign

import (
	"context"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/postgres"
)

func TestExplain(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.people(pgtest.Acme, 1)
	w.campaign("welcome", welcome)
	w.start("welcome")
	w.everything()
	began := w.now()
	w.deliver()
	explain := func() (j []Journey) {
		t.Helper()
		w.in(pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) (err error) {
			j, err = Explain(ctx, tx, "welcome", c)
			return err
		})
		return j
	}
	mail := w.mailed("first")[0]
	want := []Journey{{
		ID: 1, Run: 1, Version: 1, State: "active", Cause: "run 1", Step: "clicked", Waits: "it waits for email.clicked of first",
		Steps: []Taken{{Visit: 1, Step: "first", Label: "send hello", Delivery: mail, Mail: "sent"}},
	}}
	ignore := cmp.Options{cmpopts.IgnoreFields(Journey{}, "EnteredAt", "Until"), cmpopts.IgnoreFields(Taken{}, "At")}
	got := explain()
	if diff := cmp.Diff(want, got, ignore); diff != "" {
		t.Error(diff)
	}
	if d := got[0].Until.Sub(began); d < 71*time.Hour || d > 73*time.Hour {
		t.Errorf("it waits until %v, want for three days", got[0].Until)
	}
	if _, err := w.do(Pause, "welcome"); err != nil {
		t.Fatal(err)
	}
	w.wants(explain()[0].Waits, "the campaign is paused")
	if _, err := w.do(Resume, "welcome"); err != nil {
		t.Fatal(err)
	}
	w.pass(4 * 24 * time.Hour)
	w.wants(explain()[0].Waits, "it is due")
	w.everything()
	w.pass(4 * 24 * time.Hour)
	w.exec("UPDATE batch SET expires_at = onda.now() - interval '1 second' WHERE state = 'open'")
	w.everything()
	w.deliver()
	got = explain()
	want[0].State, want[0].Outcome, want[0].Step, want[0].Waits, want[0].EndedAt = "done", "finished", "", "", got[0].EndedAt
	want[0].Steps = append(want[0].Steps,
		Taken{Visit: 2, Step: "clicked", Label: "wait for email.clicked of first, at most 3d", Branch: "timeout"},
		Taken{Visit: 3, Step: "second", Label: "send reminder", Delivery: w.mailed("second")[0], Mail: "suppressed", Reason: "expired"},
		Taken{Visit: 4, Step: "later", Label: "wait 2d"},
		Taken{Visit: 5, Step: "end", Label: "exit finished"},
	)
	if diff := cmp.Diff(want, got, ignore); diff != "" {
		t.Error(diff)
	}
	w.in(pgtest.Brava, func(ctx context.Context, tx *postgres.Tx) error {
		j, err := Explain(ctx, tx, "welcome", c)
		if len(j) > 0 {
			t.Error("another tenant sees it")
		}
		return err
	})
}

func TestGraphAndStatus(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.people(pgtest.Acme, 4)
	w.campaign("welcome", welcome)
	w.start("welcome")
	w.everything()
	w.deliver()
	mails := w.mailed("first")
	w.click(mails[0], w.now())
	w.everything()
	w.pass(3*24*time.Hour + time.Minute)
	w.everything()
	w.campaign("welcome", welcome+"  # the same again") // who is at a step that is still there is counted
	w.apply(common)
	var g Graph
	w.in(pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) (err error) {
		g, err = GetGraph(ctx, tx, "welcome")
		return err
	})
	want := Graph{
		Name: "welcome", Title: "welcome", Version: 2, Entered: 4,
		Ended: map[string]int64{"done": 1}, Outcomes: map[string]int64{"finished": 1},
		Nodes: []GraphNode{
			{ID: "first", Kind: "send", Label: "send hello", Passed: 4},
			{ID: "clicked", Kind: "wait", Label: "wait for email.clicked of first, at most 3d", Passed: 4},
			{ID: "tagged", Kind: "tag", Label: "tag +engaged", Depth: 1, Branch: "then", Passed: 1},
			{ID: "second", Kind: "send", Label: "send reminder", Depth: 1, Branch: "else", Passed: 3},
			{ID: "later", Kind: "wait", Label: "wait 2d", Here: 3, Passed: 1},
			{ID: "end", Kind: "exit", Label: "exit finished", Passed: 1},
		},
		Edges: []GraphEdge{
			{From: "first", To: "clicked", Passed: 4},
			{From: "clicked", To: "tagged", Label: "then", Passed: 1},
			{From: "clicked", To: "second", Label: "else", Passed: 3},
			{From: "tagged", To: "later", Passed: 1},
			{From: "second", To: "later", Passed: 3},
			{From: "later", To: "end", Passed: 1},
			{From: "end", Passed: 1},
		},
	}
	if diff := cmp.Diff(want, g); diff != "" {
		t.Error(diff)
	}
	s := w.status("welcome")
	journeys := []JourneyCount{{State: "active", Step: "later", N: 3}, {State: "done", Outcome: "finished", N: 1}}
	if diff := cmp.Diff(journeys, s.Journeys); diff != "" {
		t.Error(diff)
	}
	if s.Planned != 7 || s.Counts.Sent != 4 || s.Queued != 3 {
		t.Errorf("status %+v", s)
	}
}

func TestTidy(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.people(pgtest.Acme, 3)
	w.people(pgtest.Brava, 1)
	w.campaign("welcome", welcome)
	w.start("welcome")
	w.everything()
	w.exec("UPDATE contact SET expires_at = onda.now() + '7 days' WHERE id IN ($1, $2)", c, c+1)
	w.exec("UPDATE subscription SET state = 'pending' WHERE contact = $1", c) // the other has agreed meanwhile
	w.exec("INSERT INTO consent (contact, purpose, state, basis, origin, origin_until) SELECT id, 'news', 'pending', 'form', '\\x01', onda.now() + '30 days' FROM contact")
	for i, keep := range []string{"40 days", "1 day"} {
		w.exec(`INSERT INTO submission (form, document, contact, state, data, expires_at, keep_until) SELECT e.id, e.current, $1, 'pending', '{"message": "hi"}', onda.now() + '7 days', onda.now() + $2::text::interval
			FROM entity e WHERE e.kind = 'Email' AND e.name = 'hello'`, c+int64(i), keep)
	}
	w.exec("INSERT INTO visitor (key, contact) VALUES ('v', $1)", c)
	w.exec("INSERT INTO allowance (kind, contact, period, n) VALUES ('cap:*', $1, onda.now(), 1)", c+1)
	w.everything()
	if n := w.count("SELECT count(*) FROM contact"); n != 3 {
		t.Fatalf("%d contacts, want all for a week", n)
	}
	if at := w.due(); at.Sub(w.now()) > 8*24*time.Hour {
		t.Errorf("looked at again at %v", at)
	}
	w.pass(2 * 24 * time.Hour)
	w.everything()
	if n := w.count("SELECT count(*) FROM submission WHERE state = 'pending' AND data <> '{}'"); n != 2 {
		t.Errorf("%d submissions can be confirmed, want 2", n)
	}
	w.pass(6 * 24 * time.Hour)
	w.everything()
	state := `SELECT concat_ws(' ', (SELECT count(*) FROM contact), (SELECT count(*) FROM contact WHERE expires_at IS NOT NULL), (SELECT count(*) FROM consent),
		(SELECT count(*) FROM consent WHERE origin IS NOT NULL), (SELECT count(*) FROM subscription),
		(SELECT string_agg(state || data || coalesce(' of ' || contact, ''), ',') FROM submission), (SELECT count(contact) FROM visitor), (SELECT count(*) FROM allowance))`
	w.wants(w.columnsOf(pgtest.Acme, state)[0], "2 0 2 2 2 expired{} 0 1")
	if n := w.count("SELECT count(*) FROM fact WHERE kind = 'contact.erased' AND contacts = ARRAY[$1::bigint]", c); n != 1 {
		t.Errorf("%d facts tell of it", n)
	}
	if n := w.count("SELECT count(*) FROM journey WHERE contact = $1 AND outcome = 'erased'", c); n != 1 {
		t.Error("its journey goes on")
	}
	w.pass(24 * 24 * time.Hour)
	w.everything()
	w.wants(w.columnsOf(pgtest.Acme, state)[0], "2 0 2 0 2 expired{} 0 1")
	w.pass(60 * 24 * time.Hour)
	w.everything()
	w.wants(w.columnsOf(pgtest.Acme, state)[0], "2 0 2 0 2 0 0")
	if n := pgtest.One[int64](t, w.db, pgtest.Brava, "SELECT count(*) FROM contact"); n != 1 {
		t.Error("another tenant was tidied")
	}
}
