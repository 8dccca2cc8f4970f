package segment

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/onda-run/onda/internal/contact"
	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/postgres"
)

// trip has Postgres do something whenever a member of a segment of acme is written.
func (w *world) trip(segment, what string) {
	w.Helper()
	w.pg.Own(w, "acme", "CREATE FUNCTION trip() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "+what+"; RETURN NEW; END $$",
		"CREATE TRIGGER trip BEFORE INSERT ON member FOR EACH ROW WHEN (NEW.segment = "+pgtest.One[string](w, w.db, "acme", "SELECT id::text FROM entity WHERE name = $1", segment)+") EXECUTE FUNCTION trip()")
}

func (w *world) untrip() {
	w.Helper()
	w.pg.Own(w, "acme", "DROP TRIGGER trip ON member")
}

// A segment whose SQL fails is left alone for longer and longer, and then made in full; the others are current and the cursor moves on.
func TestASegmentThatFailsIsSetAside(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.keeper.db = w.pg.Open(t, postgres.Config{MaxConns: 8, Tick: time.Minute})
	ids := w.people(4)
	w.segment("bad", `{"tag": "vip"}`)
	w.segment("paying", `{"field": "plan", "is": "paid"}`)
	w.segment("both", `{"all": [{"segment": "bad"}, {"segment": "paying"}]}`)
	w.work()
	w.trip("bad", "RAISE EXCEPTION 'ada@example.com' USING ERRCODE = '22023'")
	w.update(ids[:1], contact.Change{AddTags: []string{"vip"}, Fields: map[string]any{"plan": "paid"}})
	w.work()
	w.want("paying", ids[0], ids[1], ids[3])
	w.want("bad")
	failures := func(want int, wait time.Duration) {
		t.Helper()
		w.update(ids[2:3], contact.Change{AddTags: []string{"vip"}}) // is not lost
		w.work()
		w.work()
		if got := pgtest.One[int](t, w.db, "acme", "SELECT failures FROM segment s JOIN entity e ON e.id = s.entity WHERE name = 'bad'"); got != want {
			t.Errorf("it failed %d times, want %d", got, want)
		}
		n := w.count("bad")
		if n.Current || !strings.Contains(n.Failed, "22023") || strings.Contains(n.Failed, "ada@") {
			t.Errorf("it is told as %+v", n)
		}
		if left := n.RetryAt.Sub(pgtest.One[time.Time](t, w.db, "acme", "SELECT onda.now()")); left <= 0 || left > wait {
			t.Errorf("it is tried again after %s", left)
		}
	}
	failures(1, time.Minute)
	for i, after := range []time.Duration{time.Minute, 2 * time.Minute, 4 * time.Minute} {
		w.moveClock(after)
		failures(i+2, 2*after)
	}
	if err := w.db.Recompute(context.Background(), "acme", "segment", w.keeper.next); err != nil {
		t.Fatal(err)
	}
	if at, retry := pgtest.One[time.Time](t, w.db, "acme", "SELECT at FROM onda.wakeup WHERE function = 'segment' AND tenant = 'acme'"), w.count("bad").RetryAt; at.After(retry) {
		t.Errorf("it wakes at %s, to try at %s", at, retry)
	}
	w.untrip()
	w.moveClock(time.Hour)
	w.work()
	w.want("bad", ids[0], ids[2])
	w.want("both", ids[0])
	w.told("bad")
	if n := w.count("bad"); !n.Current || n.Failed != "" || !n.RetryAt.IsZero() {
		t.Errorf("it is told as %+v", n)
	}
	if n := w.count("paying"); !n.Current || n.Failed != "" {
		t.Errorf("paying is told as %+v", n)
	}
}

// One that takes too long is set aside as well, by facts and by a rebuild, and whoever asks for it has it tried at once.
func TestASlowSegmentIsSetAside(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ids := w.people(4)
	w.segment("bad", `{"tag": "vip"}`)
	w.segment("paying", `{"field": "plan", "is": "paid"}`)
	w.work()
	w.trip("bad", "PERFORM pg_sleep(60)")
	w.update(ids[:1], contact.Change{AddTags: []string{"vip"}, Fields: map[string]any{"plan": "paid"}})
	failures := func() int {
		t.Helper()
		return pgtest.One[int](t, w.db, "acme", "SELECT failures FROM segment s JOIN entity e ON e.id = s.entity WHERE name = 'bad'")
	}
	w.until("the fact is read", func() bool {
		_, err := w.keeper.facts(context.Background(), "acme", map[string]bool{})
		return err == nil && failures() == 1
	})
	w.until("the others are current", func() bool {
		if _, err := w.keeper.facts(context.Background(), "acme", map[string]bool{}); err != nil {
			t.Fatal(err)
		}
		return len(w.members("paying")) == 3
	})
	w.want("bad")
	failed := map[string]bool{}
	rebuild := func(want int) {
		t.Helper()
		if err := w.request("bad"); err != nil {
			t.Fatal(err)
		}
		for more := true; more; {
			var err error
			if more, err = w.keeper.rebuild(context.Background(), "acme", new(chunkLeast), failed); err != nil {
				t.Fatal(err)
			}
		}
		if got := failures(); got != want {
			t.Errorf("it failed %d times, want %d", got, want)
		}
	}
	rebuild(2)
	if n := w.count("bad"); n.Failed != "it takes too long" {
		t.Errorf("it is told as %+v", n)
	}
	w.untrip()
	clear(failed)
	rebuild(0)
	w.want("bad", ids[0])
}

// On the schema before, a segment that fails is left alone until the next work.
func TestTheSchemaBefore(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ids := w.people(4)
	w.pg.Own(t, "acme", "ALTER TABLE segment DROP swept_at, DROP sweep_to, DROP failures, DROP failed, DROP retry_at",
		"UPDATE onda.tenant SET schema = 16 WHERE name = 'acme'")
	w.segment("bad", `{"tag": "vip"}`)
	w.segment("paying", `{"field": "plan", "is": "paid"}`)
	w.segment("lately", `{"field": "seen", "inLast": "2d"}`)
	w.work()
	now := pgtest.One[time.Time](t, w.db, "acme", "SELECT onda.now()")
	w.trip("bad", "RAISE EXCEPTION 'no' USING ERRCODE = '22023'")
	w.update(ids[:1], contact.Change{AddTags: []string{"vip"}, Fields: map[string]any{"plan": "paid", "seen": now.UTC().Format(time.RFC3339)}})
	w.work()
	w.want("paying", ids[0], ids[1], ids[3])
	w.want("bad")
	w.untrip()
	w.work()
	w.want("bad", ids[0])
	w.want("lately", ids[0])
	w.moveClock(49 * time.Hour)
	w.work()
	w.want("lately")
	pgtest.In(t, w.db, "acme", func(ctx context.Context, tx *postgres.Tx) error {
		n, err := Count(ctx, tx, "bad")
		if err != nil || !n.Current {
			t.Errorf("it is told as %+v, %v", n, err)
		}
		return err
	})
}

// A process that has a tenant's documents reads them by the schema that the tenant has by now.
func TestATenantThatIsMigrated(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ids := w.people(3)
	w.pg.Own(t, "acme", "UPDATE onda.tenant SET schema = 18 WHERE name = 'acme'")
	w.segment("hot", `{"stage": "hot"}`)
	w.segment("clicked", `{"event": "email.clicked"}`)
	w.work()
	w.want("hot")
	w.pg.Own(t, "acme", "UPDATE onda.tenant SET schema = 21 WHERE name = 'acme'")
	pgtest.In(t, w.db, "acme", func(ctx context.Context, tx *postgres.Tx) error {
		if err := contact.SetStage(ctx, tx, "campaign", ids[:1], "hot", "test"); err != nil {
			return err
		}
		return tx.AddFacts(ctx, postgres.Fact{Kind: "email.clicked", Contact: ids[1], Data: []byte(`{"hit": 1, "taken": true}`)}) // its hit is forgotten
	})
	w.work()
	w.want("hot", ids[0])
	w.want("clicked")
}

// What one misses that does not fit is made good in full also where nothing is kept of that turn, since another failed.
func TestOneThatDoesNotFitWhileAnotherFails(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ids := w.people(4)
	w.segment("bad", `{"tag": "vip"}`)
	w.segment("unfit", `{"field": "level", "gt": 8}`)
	w.work()
	w.apply("acme", "Field", "level", `{"type": "text"}`)
	w.trip("bad", "RAISE EXCEPTION 'no' USING ERRCODE = '22023'")
	w.update(ids[:1], contact.Change{AddTags: []string{"vip"}, Fields: map[string]any{"level": "9"}})
	failed := map[string]bool{}
	w.until("the fact is read", func() bool {
		_, err := w.keeper.facts(context.Background(), "acme", failed)
		return err == nil && w.read()
	})
	if got := pgtest.One[string](t, w.db, "acme", "SELECT string_agg(concat_ws(' ', name, requested, failures), ', ' ORDER BY name) FROM segment s JOIN entity e ON e.id = s.entity"); got != "bad t 1, unfit t 1" {
		t.Errorf("they are noted as %s", got)
	}
}

// Who is in a segment that is set aside and then taken away leaves at once.
func TestSetAsideAndTakenAway(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ids := w.people(4)
	w.segment("bad", `{"any": [{"tag": "vip"}, {"field": "plan", "is": "paid"}]}`)
	w.segment("rest", `{"not": {"segment": "bad"}}`)
	w.work()
	w.trip("bad", "RAISE EXCEPTION 'no' USING ERRCODE = '22023'")
	w.update(ids[:1], contact.Change{AddTags: []string{"vip"}})
	w.work()
	w.want("bad", ids[1], ids[3])
	pgtest.Exec(t, w.db, "acme", "UPDATE entity SET current = NULL WHERE kind = 'Segment' AND name = 'bad'")
	pgtest.In(t, w.db, "acme", func(ctx context.Context, tx *postgres.Tx) error {
		at, err := w.keeper.next(ctx, tx)
		if at.After(tx.Now()) {
			t.Errorf("it is looked at again at %s", at)
		}
		return err
	})
	w.work()
	w.want("rest", ids...)
	if n := pgtest.One[int](t, w.db, "acme", "SELECT count(*) FROM segment s JOIN entity e ON e.id = s.entity WHERE name = 'bad'"); n != 0 {
		t.Error("its row is still there")
	}
}

// A document that is applied while the one before it fails is not set aside for that.
func TestMendedWhileItFails(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ids := w.people(4)
	w.segment("bad", `{"tag": "vip"}`)
	w.work()
	var s *kept
	failed := map[string]bool{}
	if err := w.keeper.in(context.Background(), "acme", plansOnce, failed, func(_ context.Context, t *turn) error { s = t.all[0]; return nil }); err != nil {
		t.Fatal(err)
	}
	w.segment("bad", `{"field": "plan", "is": "paid"}`)
	if err := w.keeper.setAside(context.Background(), "acme", failed, &unfit{s, false, errors.New("no")}); err != nil {
		t.Fatal(err)
	}
	if failed["bad"] {
		t.Error("it is left alone")
	}
	w.work()
	w.want("bad", ids[1], ids[3])
	if n := w.count("bad"); !n.Current || n.Failed != "" {
		t.Errorf("it is told as %+v", n)
	}
}

// Of two with the same SQL, that one is to blame whose values pgx cannot send, and it alone.
func TestOneThatCannotBeSent(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, n := range []string{"a", "b", "c"} {
		w.segment(n, `{"tag": "vip"}`)
	}
	w.work()
	for _, bad := range []string{"a", "b", "c"} {
		err := w.keeper.in(context.Background(), "acme", plansEach, map[string]bool{}, func(ctx context.Context, tn *turn) error {
			q := newQueue()
			for _, s := range tn.all {
				value := any(1)
				if s.name == bad {
					value = []string{"ada@example.com"}
				}
				q.add(s, "SELECT $1::int", []any{value}, func(rows pgx.Rows) error { rows.Close(); return rows.Err() })
			}
			return q.send(ctx, tn.tx)
		})
		var u *unfit
		if !errors.As(err, &u) || u.segment.name != bad || strings.Contains(u.what(), "ada@") {
			t.Errorf("where %s cannot be sent: %v", bad, err)
		}
	}
	// What is given up is nobody's.
	err := w.keeper.in(context.Background(), "acme", plansEach, map[string]bool{}, func(ctx context.Context, tn *turn) error {
		q := newQueue()
		q.add(tn.all[0], "SELECT $1::int", []any{1}, func(rows pgx.Rows) error { rows.Close(); return rows.Err() })
		ctx, cancel := context.WithCancel(ctx)
		cancel()
		return q.send(ctx, tn.tx)
	})
	if u := (*unfit)(nil); err == nil || errors.As(err, &u) {
		t.Errorf("what was given up: %v", err)
	}
}
