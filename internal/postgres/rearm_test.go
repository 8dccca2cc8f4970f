package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/url"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/onda-run/onda/internal/delivery"
	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/postgres"
)

// sender does what send does with batches, all but SMTP: whom it hands over, it notes.
type sender struct {
	t      *testing.T
	tenant string
	rand   *rand.Rand
	handed map[int64]int // by contact
}

func (s *sender) in(db *postgres.DB, f func(ctx context.Context, tx *postgres.Tx) error) {
	s.t.Helper()
	pgtest.In(s.t, db, s.tenant, f)
}

// plan starts a broadcast to contacts 1 to n.
func (s *sender) plan(db *postgres.DB, n int) {
	s.t.Helper()
	contacts := make([]int64, n)
	for i := range contacts {
		contacts[i] = int64(i + 1)
	}
	s.in(db, func(ctx context.Context, tx *postgres.Tx) error {
		var run, document int64
		err := tx.QueryRow(ctx, `WITH e AS (INSERT INTO entity (kind, name) VALUES ('Email', 'news') RETURNING id),
			d AS (INSERT INTO document (entity, version, spec, hash) SELECT id, 1, '{}', '' FROM e RETURNING id, entity)
			INSERT INTO run (kind, entity, document, state) SELECT 'broadcast', entity, id, 'running' FROM d RETURNING id, document`).Scan(&run, &document)
		if err != nil {
			return err
		}
		_, err = delivery.Enqueue(ctx, tx, delivery.Plan{Run: run, Email: document, Contacts: contacts})
		return err
	})
}

func (s *sender) take(db *postgres.DB) (l *delivery.Lease) {
	s.t.Helper()
	terms := delivery.Terms{Lease: time.Minute, MessageLimit: time.Second}
	skip := func(context.Context, *postgres.Tx, int64) (bool, error) { return false, nil }
	s.in(db, func(ctx context.Context, tx *postgres.Tx) (err error) {
		l, err = delivery.Take(ctx, tx, "send", delivery.Bulk, terms, time.Now(), skip)
		return err
	})
	return l
}

// send marks up to n recipients more, hands them over, and records of whom it learns that it was sent.
func (s *sender) send(db *postgres.DB, l *delivery.Lease, n int, learns func() bool) {
	s.t.Helper()
	hi := min(l.Mark+n, l.Size())
	var open []delivery.Recipient
	s.in(db, func(ctx context.Context, tx *postgres.Tx) (err error) {
		var ok bool
		open, ok, err = l.Advance(ctx, tx, hi)
		if err == nil && !ok {
			err = fmt.Errorf("batch %d is not held", l.Batch)
		}
		return err
	})
	l.Moved(hi, time.Now())
	var sent []delivery.Outcome
	for _, r := range open {
		s.handed[r.Contact]++
		if learns() {
			sent = append(sent, delivery.Outcome{Delivery: r.Delivery, Contact: r.Contact, Attempt: r.Attempt, State: delivery.Sent})
		}
	}
	s.in(db, func(ctx context.Context, tx *postgres.Tx) error {
		_, err := delivery.Record(ctx, tx, "send", sent...)
		return err
	})
}

func (s *sender) often() bool { return s.rand.IntN(4) > 0 }

func always() bool { return true }

// rest sends all that is left.
func (s *sender) rest(db *postgres.DB) {
	s.t.Helper()
	for {
		l := s.take(db)
		if l == nil {
			return
		}
		for l.Mark < l.Size() {
			s.send(db, l, delivery.MaxWindow, always)
		}
		if l.Done {
			continue
		}
		s.in(db, func(ctx context.Context, tx *postgres.Tx) error {
			closed, err := l.Close(ctx, tx, "send")
			if err == nil && !closed {
				err = fmt.Errorf("batch %d stays open", l.Batch)
			}
			return err
		})
	}
}

// audit compares what was handed over with what is known in the end. doubted are those that may be unknown.
func (s *sender) audit(db *postgres.DB, n int, doubted map[int64]bool) (unknown int) {
	s.t.Helper()
	states := map[int64]string{}
	for _, row := range pgtest.All[string](s.t, db, s.tenant, "SELECT contact || ' ' || state FROM delivery") {
		var contact int64
		var state string
		if _, err := fmt.Sscan(row, &contact, &state); err != nil {
			s.t.Fatal(err)
		}
		if states[contact] != "" {
			s.t.Errorf("contact %d has two outcomes", contact)
		}
		states[contact] = state
	}
	for c := int64(1); c <= int64(n); c++ {
		if s.handed[c] > 1 {
			s.t.Errorf("contact %d got %d mails", c, s.handed[c])
		}
		switch states[c] {
		case "sent":
			if s.handed[c] == 0 {
				s.t.Errorf("contact %d is told to have a mail, and has none", c)
			}
		case "unknown":
			unknown++
			if !doubted[c] {
				s.t.Errorf("contact %d is unknown, far from any mark", c)
			}
		default:
			s.t.Errorf("contact %d is lost: %q", c, states[c])
		}
	}
	if open := pgtest.One[int](s.t, db, s.tenant, "SELECT count(*) FROM batch WHERE state = 'open'"); open > 0 {
		s.t.Errorf("%d batches stay open", open)
	}
	return unknown
}

// nearMarks are the contacts up to a window beyond their batch's mark without an outcome: what rearming may make unknown.
func nearMarks(t *testing.T, db *postgres.DB) map[int64]bool {
	t.Helper()
	near := map[int64]bool{}
	for _, c := range pgtest.All[int64](t, db, pgtest.Acme, `SELECT c FROM batch b, unnest(b.contacts) WITH ORDINALITY u (c, n)
		WHERE b.state = 'open' AND n <= b.mark + 64 AND NOT EXISTS (SELECT FROM delivery d WHERE d.id = b.id << 9 | n)`) {
		near[c] = true
	}
	return near
}

// old sends for a while, so that some batches are closed, some held with gaps, and some untouched.
func (s *sender) old(db *postgres.DB) (held []*delivery.Lease) {
	s.t.Helper()
	for range 3 {
		held = append(held, s.take(db))
	}
	for range 10 {
		l := held[s.rand.IntN(len(held))]
		if l.Mark < l.Size() {
			s.send(db, l, 1+s.rand.IntN(delivery.MaxWindow), s.often)
		}
	}
	return held
}

// tail is what the old database does beyond what is known of it: of each batch that is held, and of those that are leased then, up to a window more.
func (s *sender) tail(db *postgres.DB, held []*delivery.Lease) {
	s.t.Helper()
	held = slices.Clone(held)
	for range 1 + s.rand.IntN(3) {
		if l := s.take(db); l != nil {
			held = append(held, l)
		}
	}
	for _, l := range held {
		if l.Mark < l.Size() {
			s.send(db, l, delivery.MaxWindow, s.often)
		}
	}
}

// A copy of a database goes on where the copy was taken, while the other went on for a window more: no mail is lost or repeated, and no more is unknown than what was
// near a mark.
func TestRearmedNothingIsLostOrRepeated(t *testing.T) {
	t.Parallel()
	for seed := range uint64(6) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			ctx := context.Background()
			const people = 2300
			s := &sender{t: t, tenant: pgtest.Acme, rand: rand.New(rand.NewPCG(seed, 1)), handed: map[int64]int{}}
			d := pgtest.New(t)
			db, err := postgres.Open(postgres.Config{URL: d.URL})
			if err != nil {
				t.Fatal(err)
			}
			s.plan(db, people)
			held := s.old(db)
			near := nearMarks(t, db)
			db.Close() // a copy is made of what nobody uses
			there := d.Copy(t)
			s.tail(d.DB(t), held)

			a := there.Admin(t)
			if done, err := a.Rearm(ctx, pgtest.Acme, postgres.Rearm{Lost: postgres.LostWindow}); err != nil || done.Done {
				t.Fatalf("rearming what is armed here: %+v, %v", done, err)
			}
			done, err := a.Rearm(ctx, pgtest.Acme, postgres.Rearm{Lost: postgres.LostWindow, Again: true})
			if err != nil || !done.Done || done.Doubted == 0 {
				t.Fatalf("rearm: %+v, %v", done, err)
			}
			db = there.DB(t)
			s.rest(db)
			unknown := s.audit(db, people, near)
			t.Logf("%d of %d are unknown", unknown, people)
		})
	}
}

// A dump that is restored on another server, whose transactions count from another number: what send does is as in a copy, and every reader of facts goes on where it
// was.
func TestRestoredElsewhereReadersGoOnWhereTheyWere(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	const people = 1200
	d := pgtest.New(t)
	db := d.DB(t)
	s := &sender{t: t, tenant: pgtest.Acme, rand: rand.New(rand.NewPCG(7, 7)), handed: map[int64]int{}}
	// The other server's transactions are to be behind this one's.
	d.Own(t, pgtest.Acme, `DO $$ BEGIN FOR i IN 1..5000 LOOP BEGIN UPDATE cursor SET base = 0; EXCEPTION WHEN division_by_zero THEN NULL; END; END LOOP; END $$`)
	add := func(db *postgres.DB, names ...string) {
		t.Helper()
		for _, n := range names { // a transaction each
			pgtest.In(t, db, pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) error {
				return tx.AddFacts(ctx, postgres.Fact{Kind: "event.tracked", Name: n, Contact: 1})
			})
		}
	}
	read := func(db *postgres.DB, consumer string, n int) (names []string, more bool) {
		t.Helper()
		pgtest.In(t, db, pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) (err error) {
			var facts []postgres.Fact
			facts, more, err = tx.ReadFacts(ctx, consumer, postgres.FactLimit{Facts: n, Items: 1000}, "event.")
			for _, f := range facts {
				names = append(names, f.Name)
			}
			return err
		})
		return names, more
	}
	add(db, "a", "b", "c", "d", "e", "f")
	readable(t, db)
	got := map[string][]string{}
	got["segment"], _ = read(db, "segment", 4)
	got["campaign"], _ = read(db, "campaign", 2)
	s.plan(db, people)
	held := s.old(db)
	near := nearMarks(t, db)

	// Roles are the server's and in no dump: they are made with a database that is dropped again.
	other, err := url.Parse(pgtest.Another(t))
	if err != nil {
		t.Fatal(err)
	}
	server := connect(t, other.String())
	mustExec(t, server, "CREATE ROLE onda_managed LOGIN CREATEROLE CREATEDB", "CREATE DATABASE onda OWNER onda_managed")
	other.Path = "/onda"
	there := &pgtest.Database{AdminURL: other.String(), URL: as(t, other.String(), "onda_pool"), ManagedURL: as(t, other.String(), "onda_managed")}
	for _, tenant := range []string{pgtest.Acme, pgtest.Brava} {
		a, err := postgres.OpenAdmin(ctx, there.ManagedURL)
		if err == nil {
			_, err = a.Migrate(ctx)
		}
		if err == nil {
			_, err = a.CreateTenant(ctx, tenant)
		}
		if err == nil {
			err = a.Close(ctx)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	mustExec(t, server, "DROP DATABASE onda WITH (FORCE)", "CREATE DATABASE onda OWNER onda_managed")
	file := t.TempDir() + "/dump"
	for _, args := range [][]string{
		{pgtest.Tool(t, "pg_dump"), "-Fc", "-f", file, "-d", d.AdminURL},
		{pgtest.Tool(t, "pg_restore"), "--exit-on-error", "-d", there.ManagedURL, file},
	} {
		if out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
	}
	// What the other server never heard of.
	lost := pgtest.One[int64](t, db, pgtest.Acme, "INSERT INTO contact (email) VALUES ('lost@example.com') RETURNING id")
	s.tail(db, held)

	db = there.DB(t)
	a := there.Admin(t)
	if err := db.InTenant(ctx, pgtest.Acme, func(context.Context, *postgres.Tx) error { return nil }); !errors.Is(err, postgres.ErrElsewhere) {
		t.Fatalf("entered before it is armed: %v", err)
	}
	var behind bool
	super := connect(t, there.AdminURL)
	if err := super.QueryRow(ctx, "SELECT (SELECT min(xid) FROM acme.fact) > pg_current_xact_id()").Scan(&behind); err != nil || !behind {
		t.Fatalf("the other server is behind this one: %v (%v)", behind, err)
	}
	done, err := a.Rearm(ctx, pgtest.Acme, postgres.Rearm{Lost: postgres.LostWindow})
	if err != nil || !done.Done {
		t.Fatalf("rearm: %+v, %v", done, err)
	}
	add(db, "g", "h")
	readable := func() bool {
		return pgtest.One[bool](t, db, pgtest.Acme, "SELECT bool_and(f.xid < (pg_snapshot_xmin(pg_current_snapshot())::text::bigint + c.base)::text::xid8) FROM fact f, cursor c")
	}
	for until := time.Now().Add(time.Minute); !readable(); {
		if time.Now().After(until) {
			t.Fatal("facts are held back for a minute")
		}
	}
	for consumer := range maps.Keys(got) {
		for more := true; more; {
			var names []string
			names, more = read(db, consumer, 3)
			got[consumer] = append(got[consumer], names...)
		}
		if diff := cmp.Diff("a b c d e f g h", strings.Join(got[consumer], " ")); diff != "" {
			t.Errorf("%s read (-want +got):\n%s", consumer, diff)
		}
	}
	s.rest(db)
	t.Logf("%d of %d are unknown", s.audit(db, people, near), people)
	if id := pgtest.One[int64](t, db, pgtest.Acme, "INSERT INTO contact (email) VALUES ('new@example.com') RETURNING id"); id <= lost {
		t.Errorf("contact %d may be the number of one that was lost", id)
	}
	if n := pgtest.One[int](t, db, pgtest.Acme, "SELECT count(*) FROM key WHERE id > 255"); n != 0 {
		t.Errorf("%d keys do not fit tokens", n)
	}
	if at := pgtest.One[time.Time](t, db, pgtest.Acme, "SELECT at FROM onda.wakeup WHERE function = 'send'"); time.Until(at) > time.Minute {
		t.Errorf("send is woken at %v", at)
	}
}

// After a backup of hours ago, all that was due is in doubt, and what ran is paused; after a move, nothing is.
func TestRearmByWhatWasLost(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	d := pgtest.New(t)
	db, a := d.DB(t), d.Admin(t)
	s := &sender{t: t, tenant: pgtest.Acme, rand: rand.New(rand.NewPCG(1, 1)), handed: map[int64]int{}}
	const people = 700
	s.plan(db, people)
	l := s.take(db)
	s.send(db, l, 10, always)
	s.in(db, func(ctx context.Context, tx *postgres.Tx) error { // tried, and to be tried again
		_, err := tx.Exec(ctx, "UPDATE delivery SET state = 'deferred', retry_at = onda.now() - interval '1 minute' WHERE contact <= 3")
		return err
	})
	for _, c := range []struct {
		how     postgres.Rearm
		doubted int64
		paused  []string
	}{
		{postgres.Rearm{Lost: postgres.LostNothing}, 0, []string{}},
		{postgres.Rearm{Lost: postgres.LostAll, Until: time.Now().Add(-time.Hour)}, 0, []string{"news"}}, // nothing was due by then
		{postgres.Rearm{Lost: postgres.LostAll}, people - 10 + 3, []string{}},
	} {
		c.how.Again = true
		done, err := a.Rearm(ctx, pgtest.Acme, c.how)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(postgres.Rearmed{Tenant: pgtest.Acme, Done: true, Doubted: c.doubted, Paused: c.paused}, done); diff != "" {
			t.Errorf("%+v (-want +got):\n%s", c.how, diff)
		}
	}
	if s.take(db) != nil {
		t.Error("a paused run is sent")
	}
	pgtest.Exec(t, db, pgtest.Acme, "UPDATE run SET state = 'running'")
	s.rest(db)
	all := map[int64]bool{}
	for c := int64(1); c <= people; c++ {
		all[c] = true
	}
	if n := s.audit(db, people, all); n != people-10+3 {
		t.Errorf("%d are unknown", n)
	}
	if n := len(s.handed); n != 10 {
		t.Errorf("%d mails were handed over", n)
	}
	if _, err := a.Rearm(ctx, "nobody", postgres.Rearm{Lost: postgres.LostAll}); !errors.Is(err, postgres.ErrUnknownTenant) {
		t.Errorf("rearm nobody: %v", err)
	}
	if _, err := a.Rearm(ctx, pgtest.Acme, postgres.Rearm{Lost: "some"}); err == nil {
		t.Error("some is not how much was lost")
	}
}
