package campaign

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/onda-run/onda/internal/contact"
	"github.com/onda-run/onda/internal/delivery"
	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/postgres"
)

// another is a second process on the same database.
func (w *world) another() *engine {
	return &engine{db: w.db, docs: &documents{}, share: 4, log: w.engine.log, stop: make(chan struct{})}
}

const busy = `
	enter: [{segment: everyone}, {event: trial.started}]
	steps:
	  - {id: mark, tag: {add: [seen]}}
	  - {id: mail, send: {email: hello}}
	  - {id: short, wait: 1h}
	  - {id: note, update: {plan: trial}}
	  - {id: last, send: {email: reminder}}
`

// once checks that each journey of busy has each of its steps once, and each mail one delivery of its own.
func (w *world) once(journeys int64) {
	w.t.Helper()
	if n := w.count("SELECT count(*) FROM journey"); n != journeys {
		w.t.Errorf("%d journeys, want %d", n, journeys)
	}
	steps := w.columnsOf(pgtest.Acme, "SELECT step || ' ' || count(*) || ' ' || count(DISTINCT journey) FROM step GROUP BY step ORDER BY step")
	var want []string
	for _, s := range []string{"last", "mail", "mark", "note", "short"} {
		want = append(want, fmt.Sprintf("%s %d %d", s, journeys, journeys))
	}
	if diff := cmp.Diff(want, steps); diff != "" {
		w.t.Error(diff)
	}
	if n := w.count("SELECT count(*) FROM (SELECT step, c FROM batch, unnest(contacts) c GROUP BY step, c HAVING count(*) > 1) twice"); n != 0 {
		w.t.Errorf("%d mails are planned twice", n)
	}
	if n := w.count("SELECT coalesce(sum(cardinality(contacts)), 0) FROM batch"); n != 2*journeys {
		w.t.Errorf("%d mails are planned, want %d", n, 2*journeys)
	}
	// a step's delivery is its own contact's
	if n := w.count(`SELECT count(*) FROM step s JOIN journey j ON j.id = s.journey JOIN batch b ON b.id = s.delivery >> 9
		WHERE b.contacts[s.delivery & 511] <> j.contact OR b.step <> s.step`); n != 0 {
		w.t.Errorf("%d steps name the mail of another", n)
	}
	if n := w.count("SELECT count(*) FROM fact WHERE kind = 'tag.changed' AND contact IS NOT NULL") +
		w.count("SELECT coalesce(sum(cardinality(contacts)), 0) FROM fact WHERE kind = 'tag.changed'"); n != journeys {
		w.t.Errorf("%d contacts are said to have been tagged, want %d", n, journeys)
	}
}

func TestTwoEnginesAtOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const people = 1000
	w.people(pgtest.Acme, people)
	w.campaign("busy", busy)
	w.start("busy")
	both := func() {
		var group sync.WaitGroup
		for _, e := range []*engine{w.engine, w.another()} {
			group.Go(func() {
				// in chunks of its own size, so that they get into each other's way
				for range 40 {
					err := e.db.InTenant(context.Background(), pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) error {
						if _, err := e.docs.enrolMembers(ctx, tx, 1); err != nil {
							return err
						}
						_, _, err := e.docs.advance(ctx, tx, 1, 37)
						return err
					})
					if err != nil {
						t.Error(err)
					}
				}
				if _, err := e.work(context.Background(), pgtest.Acme, scope{facts: true, plan: true, walk: true, sweep: true}); err != nil {
					t.Error(err)
				}
			})
		}
		group.Wait()
	}
	both()
	w.everything()
	w.wants(w.places(), fmt.Sprintf("short %d", people))
	w.pass(time.Hour + time.Minute)
	both()
	w.everything()
	w.wants(w.places(), fmt.Sprintf("done %d", people))
	w.once(people)
}

func TestTwoPlannersAtOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const people = 60 * delivery.MaxBatch
	w.people(pgtest.Acme, people)
	w.broadcast("news", toEveryone)
	r := w.start("news")
	var group sync.WaitGroup
	for _, e := range []*engine{w.engine, w.another(), w.another()} {
		group.Go(func() {
			for range 5 {
				err := e.db.InTenant(context.Background(), pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) error {
					_, err := e.docs.planBroadcast(ctx, tx, r.ID, 4)
					return err
				})
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
	w.everything()
	if n := w.count("SELECT sum(cardinality(contacts)) FROM batch"); n != people {
		t.Errorf("%d recipients are planned, want %d", n, people)
	}
	if n := w.count("SELECT count(DISTINCT c) FROM batch, unnest(contacts) c"); n != people {
		t.Errorf("%d contacts are planned, want %d", n, people)
	}
}

// Whatever a process was doing when it died is as if it had never begun.
func TestDyingInTheMiddle(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const people = 300
	w.people(pgtest.Acme, people)
	w.campaign("busy", busy)
	w.start("busy")
	random := rand.New(rand.NewPCG(1, 2))
	die := func() {
		defer func() { _ = recover() }()
		killed := errors.New("killed")
		err := w.db.InTenant(context.Background(), pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) error {
			if _, err := w.engine.docs.enrolMembers(ctx, tx, 1); err != nil {
				return err
			}
			if _, err := w.engine.docs.readFacts(ctx, tx); err != nil {
				return err
			}
			if _, _, err := w.engine.docs.advance(ctx, tx, 1, 1+random.IntN(people)); err != nil {
				return err
			}
			if random.IntN(2) == 0 {
				panic("killed")
			}
			return killed
		})
		if !errors.Is(err, killed) {
			t.Error(err)
		}
	}
	for range 10 {
		die()
		w.advance(1 + random.IntN(60))
	}
	w.everything()
	w.pass(time.Hour + time.Minute)
	for range 10 {
		die()
		w.advance(1 + random.IntN(60))
	}
	w.everything()
	w.wants(w.places(), fmt.Sprintf("done %d", people))
	w.once(people)
}

// advance does a small part of the work.
func (w *world) advance(limit int) {
	w.t.Helper()
	w.in(pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) error {
		if _, err := w.engine.docs.enrolMembers(ctx, tx, 1); err != nil {
			return err
		}
		_, _, err := w.engine.docs.advance(ctx, tx, 1, limit)
		return err
	})
}

// A fact that comes while a journey is being moved, by a pass that did not see it, is not forgotten: the journey is due again right after.
func TestAFactDuringAPass(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.people(pgtest.Acme, 1)
	w.campaign("welcome", welcome)
	w.start("welcome")
	w.everything()
	w.exec("UPDATE journey SET due_at = onda.now()")
	looked, release := make(chan struct{}), make(chan struct{})
	var passed, touched sync.WaitGroup
	passed.Go(func() {
		err := w.db.InTenant(context.Background(), pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) error {
			_, _, err := w.engine.docs.advance(ctx, tx, 1, chunk)
			close(looked)
			<-release
			return err
		})
		if err != nil {
			t.Error(err)
		}
	})
	<-looked
	done := make(chan struct{})
	touched.Go(func() {
		defer close(done)
		err := w.db.InTenant(context.Background(), pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) error {
			_, err := touch(ctx, tx, []int64{c})
			return err
		})
		if err != nil {
			t.Error(err)
		}
	})
	w.eventually("the reader waits for the pass", func() bool {
		select {
		case <-done: // it did not wait, and the end will show it
			return true
		default:
		}
		return w.count(`SELECT count(*) FROM pg_locks l WHERE NOT l.granted AND EXISTS (SELECT FROM pg_locks m
			WHERE m.pid = l.pid AND m.database = (SELECT oid FROM pg_database WHERE datname = current_database()))`) > 0
	})
	close(release)
	passed.Wait()
	touched.Wait()
	if n := w.count("SELECT count(*) FROM journey WHERE due_at <= onda.now()"); n != 1 {
		t.Error("the journey is parked, and nobody looks at what has happened")
	}
}

// Contacts expire while passes of two campaigns move them, which come to the contacts in opposite orders: nobody ever waits in a circle.
func TestContactsExpireWhilePassesMoveThem(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for name, paid := range map[string]string{"one": "a", "other": "b"} {
		w.campaign(name, strings.NewReplacer("PAID", paid, "FREE", map[string]string{"a": "b", "b": "a"}[paid]).Replace(`
			enter: {event: trial.started}
			steps:
			  - {id: which, if: {field: plan, is: paid}, then: [{id: PAID, tag: {add: [PAID]}}], else: [{id: FREE, tag: {add: [FREE]}}]}
		`))
		w.start(name)
	}
	for range 20 {
		w.exec(`WITH c AS (INSERT INTO contact (fields, expires_at) SELECT jsonb_build_object('plan', CASE WHEN n % 2 = 0 THEN 'paid' ELSE 'free' END), CASE WHEN n <= 30 THEN onda.now() END FROM generate_series(1, 90) n RETURNING id)
			INSERT INTO journey (run, contact, document, step) SELECT r.id, c.id, r.document, 'which' FROM run r, c ORDER BY r.id, c.id`)
		works := []func(ctx context.Context, tx *postgres.Tx) error{
			func(ctx context.Context, tx *postgres.Tx) error { _, err := expire(ctx, tx); return err },
			func(ctx context.Context, tx *postgres.Tx) error {
				_, err := w.engine.docs.readFacts(ctx, tx)
				return err
			},
		}
		for run := range int64(2) {
			works = append(works, func(ctx context.Context, tx *postgres.Tx) error {
				_, _, err := w.engine.docs.advance(ctx, tx, run+1, chunk)
				return err
			})
		}
		var group sync.WaitGroup
		begin := make(chan struct{})
		for _, work := range works {
			group.Go(func() {
				<-begin
				if err := w.db.InTenant(context.Background(), pgtest.Acme, work); err != nil {
					t.Error(err)
				}
			})
		}
		close(begin)
		group.Wait()
		if t.Failed() {
			return
		}
	}
	w.everything()
	if n := w.count("SELECT count(*) FROM contact WHERE expires_at IS NOT NULL") + w.count("SELECT count(*) FROM journey WHERE state = 'active'"); n != 0 {
		t.Errorf("%d contacts and journeys are left", n)
	}
}

// Contacts are erased while passes move them, and facts of them are read: nobody waits in a circle for good, and nothing of them is left.
func TestContactsAreErasedWhilePassesMoveThem(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.campaign("busy", busy)
	w.start("busy")
	const people = 12
	for range 4 {
		w.people(pgtest.Acme, people)
		first := w.count("SELECT max(id) FROM contact") - people + 1
		for n := range int64(people) {
			w.fact(postgres.Fact{Kind: "event.tracked", Name: "trial.started", Contact: first + n, Data: []byte(`{"note": "ada"}`)})
		}
		var group sync.WaitGroup
		for half := range int64(2) { // of which each erases all, from its own end
			group.Go(func() {
				for n := range int64(people) {
					id := first + n + half*(people-1-2*n)
					if _, err := contact.Erase(context.Background(), w.db, pgtest.Acme, drainer, id, nil); err != nil {
						t.Error(err)
					}
				}
			})
		}
		group.Go(func() {
			e := w.another()
			for range 10 {
				for _, work := range []func(ctx context.Context, tx *postgres.Tx) error{
					func(ctx context.Context, tx *postgres.Tx) error { _, err := e.docs.readFacts(ctx, tx); return err },
					func(ctx context.Context, tx *postgres.Tx) error {
						_, _, err := e.docs.advance(ctx, tx, 1, chunk)
						return err
					},
				} {
					if err := w.db.InTenant(context.Background(), pgtest.Acme, work); err != nil {
						t.Error(err)
					}
				}
			}
		})
		group.Wait()
		if t.Failed() {
			return
		}
	}
	w.everything()
	if n := w.count("SELECT count(*) FROM journey WHERE state = 'active' OR data <> '{}'") + w.count("SELECT count(*) FROM fact WHERE contact IS NOT NULL OR data::text LIKE '%ada%'"); n != 0 {
		t.Errorf("%d journeys and facts are left", n)
	}
	if n := w.count("SELECT count(*) FROM contact WHERE erasure ? 'done'"); n != 4*people {
		t.Errorf("%d contacts are erased, want %d", n, 4*people)
	}
}

// A contact who expires while a pass holds its journey does not wait for it: the pass may be about to ask for the contact.
func TestExpiringWaitsForNoJourney(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.people(pgtest.Acme, 1)
	w.campaign("busy", busy)
	w.start("busy")
	w.everything()
	w.exec("DELETE FROM subscription")
	w.exec("UPDATE contact SET expires_at = onda.now()")
	w.exec("UPDATE journey SET step = 'mark', due_at = onda.now()")
	held, release := make(chan struct{}), make(chan struct{})
	passed := make(chan error)
	go func() {
		passed <- w.db.InTenant(context.Background(), pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) error {
			js, err := lease(ctx, tx, 1, chunk)
			if err == nil && len(js) != 1 {
				err = fmt.Errorf("%d journeys are held", len(js))
			}
			close(held)
			<-release
			return errors.Join(err, contact.Lock(ctx, tx, []int64{c}))
		})
	}()
	<-held
	err := w.db.InTenant(context.Background(), pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) error {
		if _, err := tx.Exec(ctx, "SET LOCAL lock_timeout = '1s'"); err != nil {
			return err
		}
		_, err := expire(ctx, tx)
		return err
	})
	close(release)
	if err := errors.Join(err, <-passed); err != nil {
		t.Fatal(err)
	}
	w.everything()
	w.wants(w.places(), "left(erased) 1")
}

// The same things happen in each world, at the same times; they are read in any order, in any portions, once the doorbell rings or only by the sweep. The
// end is the same.
func TestOrderDecidesNothing(t *testing.T) {
	t.Parallel()
	const people = 40
	ending := func(seed uint64) (out []string) {
		w := newWorld(t)
		first := w.people(pgtest.Acme, people)
		w.campaign("order", `
			enter: [{segment: everyone}, {event: trial.started, key: id}]
			reentry: never
			goal: {field: plan, is: paid}
			steps:
			  - {id: mail, send: {email: hello}}
			  - id: click
			    wait: {event: email.clicked, of: mail, timeout: 2d}
			    then: [{id: order, wait: {event: order.placed, where: {total: {gte: 10}}, timeout: 2d}, then: [{exit: bought}]}, {exit: looked}]
			  - {exit: silent}
		`)
		w.start("order")
		w.everything()
		w.deliver()
		sent := w.now()
		mails := map[int64]int64{}
		for i, m := range w.mailed("mail") {
			mails[first+int64(i)] = m
		}
		var facts []postgres.Fact
		for i := range int64(people) {
			c := first + i
			click := func(at time.Duration) {
				facts = append(facts, postgres.Fact{Kind: "email.clicked", Name: "hello", Contact: c, Deliveries: []int64{mails[c]}, At: sent.Add(at)})
			}
			event := func(name, data string, at time.Duration) {
				facts = append(facts, postgres.Fact{Kind: "event.tracked", Name: name, Contact: c, Data: []byte(data), At: sent.Add(at)})
			}
			switch i % 5 {
			case 0: // clicks twice and buys
				click(time.Hour)
				click(2 * time.Hour)
				event("order.placed", `{"total": 10}`, 3*time.Hour)
			case 1: // clicks too late
				click(50 * time.Hour)
			case 2: // buys too little
				click(time.Hour)
				event("order.placed", `{"total": 9}`, 3*time.Hour)
			case 3: // begins a trial, twice under one key
				event("trial.started", `{"id": "a"}`, time.Hour)
				event("trial.started", `{"id": "a"}`, 2*time.Hour)
			}
		}
		random := rand.New(rand.NewPCG(seed, seed))
		if seed > 0 {
			random.Shuffle(len(facts), func(i, j int) { facts[i], facts[j] = facts[j], facts[i] })
		}
		late := func(f postgres.Fact) bool { return f.At.After(sent.Add(48 * time.Hour)) }
		w.pass(47 * time.Hour)
		w.arrive(random, slices.DeleteFunc(slices.Clone(facts), late))
		w.pass(4 * time.Hour)
		w.arrive(random, slices.DeleteFunc(slices.Clone(facts), func(f postgres.Fact) bool { return !late(f) }))
		w.everything()
		w.deliver()
		w.pass(10 * 24 * time.Hour)
		w.everything()
		out = append(out, w.columnsOf(pgtest.Acme, fmt.Sprintf(`SELECT (j.contact - %d) || ' ' || j.key || ' ' || j.state || ' ' || j.outcome || ' ' ||
			coalesce((SELECT string_agg(s.step || s.branch, ',' ORDER BY s.visit) FROM step s WHERE s.journey = j.id), '') FROM journey j`, first))...)
		slices.Sort(out)
		return out
	}
	want := ending(0)
	if len(want) != people+people/5 {
		t.Fatalf("%d journeys: %q", len(want), want)
	}
	for seed := uint64(1); seed <= 4; seed++ {
		if diff := cmp.Diff(want, ending(seed)); diff != "" {
			t.Errorf("seed %d: %s", seed, diff)
		}
	}
}

// arrive writes facts in portions. After each the doorbell is lost, or rings, once or twice.
func (w *world) arrive(random *rand.Rand, facts []postgres.Fact) {
	w.t.Helper()
	for len(facts) > 0 {
		n := min(1+random.IntN(15), len(facts))
		w.fact(facts[:n]...)
		facts = facts[n:]
		for range random.IntN(3) {
			w.everything()
		}
	}
}
