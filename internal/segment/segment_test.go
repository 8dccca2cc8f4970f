package segment

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/sethvargo/go-envconfig"
	"go.uber.org/zap"
	"pgregory.net/rapid"

	"github.com/onda-run/onda/internal/contact"
	"github.com/onda-run/onda/internal/event"
	"github.com/onda-run/onda/internal/event/eventtest"
	"github.com/onda-run/onda/internal/fn"
	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/postgres"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// world is a database with fields, and a keeper of its segments.
type world struct {
	testing.TB
	pg     *pgtest.Database
	db     *postgres.DB
	keeper *keeper
}

func newWorld(tb testing.TB) *world {
	tb.Helper()
	pg := pgtest.New(tb)
	w := &world{TB: tb, pg: pg, db: pg.Open(tb, postgres.Config{MaxConns: 8, Tick: time.Second})}
	w.keeper = &keeper{db: w.db, docs: &documents{}, log: zap.NewNop()}
	for _, tenant := range []string{"acme", "brava"} {
		w.apply(tenant, "Field", "plan", `{"type": "text"}`)
		w.apply(tenant, "Field", "level", `{"type": "number"}`)
		w.apply(tenant, "Field", "seen", `{"type": "datetime"}`)
		w.apply(tenant, "Topic", "news", `{}`)
	}
	return w
}

// apply makes a version of a document the one in force.
func (w *world) apply(tenant, kind, name, spec string) {
	w.Helper()
	pgtest.Exec(w, w.db, tenant, "INSERT INTO entity (kind, name) VALUES ($1, $2) ON CONFLICT DO NOTHING", kind, name)
	pgtest.Exec(w, w.db, tenant, `WITH d AS (INSERT INTO document (entity, version, spec, hash)
		SELECT e.id, (SELECT count(*) + 1 FROM document x WHERE x.entity = e.id),
		       jsonb_build_object('apiVersion', 'onda/v1', 'kind', $1::text, 'metadata', jsonb_build_object('name', $2::text), 'spec', $3::jsonb), ''
		  FROM entity e WHERE e.kind = $1 AND e.name = $2 RETURNING id, entity)
		UPDATE entity e SET current = d.id FROM d WHERE e.id = d.entity`, kind, name, spec)
}

func (w *world) segment(name, where string) {
	w.Helper()
	w.apply("acme", "Segment", name, `{"where": `+where+`}`)
}

func (w *world) people(n int) (ids []int64) {
	w.Helper()
	return pgtest.All[int64](w, w.db, "acme", `INSERT INTO contact (email, external_id, fields)
		SELECT 'p' || n || '@example.com', 'x' || n, jsonb_build_object('level', n, 'plan', CASE WHEN n % 2 = 0 THEN 'paid' ELSE 'free' END) FROM generate_series(1, $1) n RETURNING id`, n)
}

func (w *world) update(ids []int64, c contact.Change) {
	w.Helper()
	pgtest.In(w, w.db, "acme", func(ctx context.Context, tx *postgres.Tx) error {
		return contact.Update(ctx, tx, "campaign", ids, c, "test")
	})
}

// work does all there is. Facts can be read only when no transaction on the server, of any test, is older than they: until then it tries again.
func (w *world) work() {
	w.Helper()
	w.until("all facts are read", func() bool {
		all, err := w.keeper.work(context.Background(), "acme")
		if err != nil {
			w.Fatal(err)
		}
		return all && w.read()
	})
}

// read tells whether the cursor is behind the last fact.
func (w *world) read() (all bool) {
	w.Helper()
	pgtest.In(w, w.db, "acme", func(ctx context.Context, tx *postgres.Tx) error {
		at, err := tx.FactsDue(ctx, "segment")
		// Those that segment itself wrote, and those that are about none of its contacts, are behind it too.
		all = at.Equal(postgres.Never)
		return err
	})
	return all
}

// until waits for a condition.
func (w *world) until(what string, cond func() bool) {
	w.Helper()
	deadline := time.After(time.Minute)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-deadline:
			w.Fatalf("it never came to it that %s", what)
		case <-tick.C:
		}
	}
}

// request asks for a segment to be computed in full.
func (w *world) request(name string) error {
	return w.db.InTenant(context.Background(), "acme", func(ctx context.Context, tx *postgres.Tx) error { return Request(ctx, tx, name) })
}

func (w *world) members(name string) []int64 {
	w.Helper()
	ids := pgtest.All[int64](w, w.db, "acme", "SELECT m.contact FROM member m JOIN entity e ON e.id = m.segment WHERE e.name = $1 AND m.kept <> 'out' ORDER BY 1", name)
	if n := w.count(name).Members; n != int64(len(ids)) {
		w.Errorf("segment %s counts %d and has %d members", name, n, len(ids))
	}
	return ids
}

func (w *world) count(name string) (n Size) {
	w.Helper()
	pgtest.In(w, w.db, "acme", func(ctx context.Context, tx *postgres.Tx) (err error) {
		n, err = Count(ctx, tx, name)
		return err
	})
	return n
}

func (w *world) want(name string, want ...int64) {
	w.Helper()
	if got := w.members(name); len(got)+len(want) > 0 && !cmp.Equal(got, want) {
		w.Errorf("segment %s has %v, want %v", name, got, want)
	}
}

// told adds up the facts of joining and leaving: they must give the members.
func (w *world) told(name string) {
	w.Helper()
	got := pgtest.All[int64](w, w.db, "acme", `SELECT c FROM fact f, unnest(f.contacts) c WHERE f.name = $1 AND f.kind IN ('segment.joined', 'segment.left')
		GROUP BY c HAVING sum(CASE f.kind WHEN 'segment.joined' THEN 1 ELSE -1 END) = 1 ORDER BY 1`, name)
	if want := w.members(name); len(got)+len(want) > 0 && !cmp.Equal(got, want) {
		w.Errorf("segment %s: the facts tell of %v, it has %v", name, got, want)
	}
	if n := pgtest.One[int](w, w.db, "acme", "SELECT coalesce(max(cardinality(contacts)), 0) FROM fact"); n > 500 {
		w.Errorf("a fact is about %d contacts", n)
	}
}

// Who gets or loses points joins and leaves.
func TestFollowsScores(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ids := w.people(3)
	w.segment("hot", `{"field": "score", "gte": 50}`)
	w.segment("unfit", `{"field": "score.fit", "lte": 0}`)
	give := func(points ...contact.Points) {
		pgtest.In(w, w.db, "acme", func(ctx context.Context, tx *postgres.Tx) error {
			return contact.AddPoints(ctx, tx, "track", points, "")
		})
		w.work()
	}
	give(contact.Points{Contact: ids[0], Group: "score", Add: 50})
	w.want("hot", ids[0])
	w.want("unfit", ids...)
	give(contact.Points{Contact: ids[1], Group: "score", Add: 60}, contact.Points{Contact: ids[0], Group: "score", Add: -1}, contact.Points{Contact: ids[2], Group: "fit", Add: 1})
	w.want("hot", ids[1])
	w.want("unfit", ids[0], ids[1])
	w.told("hot")
}

// Whoever enters a campaign or ends a journey there joins and leaves, without a rebuild.
func TestFollowsJourneys(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ids := w.people(3)
	w.apply("acme", "Campaign", "onboarding", `{}`)
	w.segment("on", `{"campaign": "onboarding", "state": "active"}`)
	w.segment("never", `{"campaign": "onboarding", "state": "never"}`)
	w.segment("other", `{"campaign": "other", "state": "active"}`)
	w.work()
	w.want("never", ids...)
	run := pgtest.One[int64](w, w.db, "acme", `INSERT INTO run (entity, document, kind, state, starts_at) SELECT id, current, 'campaign', 'running', onda.now() FROM entity WHERE name = 'onboarding' RETURNING id`)
	tell := func(kind, sql string) {
		pgtest.In(w, w.db, "acme", func(ctx context.Context, tx *postgres.Tx) error {
			if _, err := tx.Exec(ctx, sql, run, ids[:2]); err != nil {
				return err
			}
			return tx.AddFacts(ctx, postgres.Fact{Kind: kind, Name: "onboarding", Contacts: ids[:2]})
		})
		w.work()
	}
	tell("journey.entered", "INSERT INTO journey (run, contact, document, step) SELECT $1, c, 1, 'first' FROM unnest($2::bigint[]) c")
	w.want("on", ids[:2]...)
	w.want("never", ids[2])
	w.told("on")
	tell("journey.left", "UPDATE journey SET state = 'done' WHERE run = $1 AND contact = ANY ($2)")
	w.want("on")
	w.want("never", ids[2])
	w.want("other")
	w.told("on")
	if at := pgtest.One[bool](w, w.db, "acme", "SELECT bool_and(due_at = 'infinity') FROM segment"); !at {
		t.Error("a segment about a campaign is due by time alone")
	}
}

func TestRebuildAndFollow(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ids := w.people(6)
	w.segment("paying", `{"field": "plan", "is": "paid"}`)
	w.segment("rich", `{"all": [{"segment": "paying"}, {"field": "level", "gte": 4}]}`)
	w.segment("poor", `{"not": {"segment": "rich"}}`)
	if w.count("paying").Current {
		t.Error("a segment that was never made is current")
	}
	w.work()
	w.want("paying", ids[1], ids[3], ids[5])
	w.want("rich", ids[3], ids[5])
	w.want("poor", ids[0], ids[1], ids[2], ids[4])
	if !w.count("paying").Current {
		t.Error("it is not current")
	}
	w.update([]int64{ids[4], ids[5]}, contact.Change{Fields: map[string]any{"plan": "paid"}})
	w.update([]int64{ids[3]}, contact.Change{Fields: map[string]any{"plan": nil}})
	w.work()
	w.want("paying", ids[1], ids[4], ids[5])
	w.want("rich", ids[4], ids[5])
	w.want("poor", ids[0], ids[1], ids[2], ids[3])
	facts := pgtest.One[int](t, w.db, "acme", "SELECT count(*) FROM fact")
	w.work()
	if n := pgtest.One[int](t, w.db, "acme", "SELECT count(*) FROM fact"); n != facts {
		t.Errorf("nothing changed, and there are %d facts more", n-facts)
	}
	for _, name := range []string{"paying", "rich", "poor"} {
		w.told(name)
	}
	if n := pgtest.One[int](t, w.db, "brava", "SELECT (SELECT count(*) FROM member) + (SELECT count(*) FROM segment) + (SELECT count(*) FROM fact)"); n != 0 {
		t.Errorf("brava has %d rows of it", n)
	}
	// A new version, then none.
	w.segment("paying", `{"field": "plan", "is": "free"}`)
	w.work()
	w.want("paying", ids[0], ids[2])
	w.want("rich")
	pgtest.Exec(t, w.db, "acme", "UPDATE entity SET current = NULL WHERE name = 'paying'")
	w.work()
	if n := pgtest.One[int](t, w.db, "acme", "SELECT (SELECT count(*) FROM member m JOIN entity e ON e.id = m.segment WHERE e.name = 'paying') + (SELECT count(*) FROM segment s JOIN entity e ON e.id = s.entity WHERE e.name = 'paying')"); n != 0 {
		t.Errorf("%d rows are left of a segment that was taken away", n)
	}
	w.want("poor", ids...)
}

func TestFactsOfAllKindsAreFollowed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ids := w.people(4)
	w.segment("tagged", `{"tag": "vip"}`)
	w.segment("readers", `{"reachable": "news"}`)
	w.segment("buyers", `{"event": "order.placed", "count": {"gte": 2}}`)
	w.segment("mailed", `{"event": "email.sent", "of": "welcome"}`)
	w.segment("all", `{"field": "created", "exists": true}`)
	w.work()
	w.want("all", ids...)
	w.update(ids[:1], contact.Change{AddTags: []string{"vip"}})
	w.apply("acme", "Email", "welcome", "{}")
	pgtest.In(t, w.db, "acme", func(ctx context.Context, tx *postgres.Tx) error {
		if _, err := contact.Record(ctx, tx, "track",
			contact.Consent{Contact: ids[1], Purpose: "news", State: contact.Granted, Basis: "form"},
			contact.Consent{Contact: ids[2], Purpose: "news", State: contact.Granted, Basis: "form"}); err != nil {
			return err
		}
		if _, err := contact.Suppress(ctx, tx, "campaign", contact.Suppression{Contact: ids[2], Reason: contact.Bounce}); err != nil {
			return err
		}
		order := postgres.Fact{Kind: "event.tracked", Name: "order.placed", Contact: ids[3]}
		if _, err := tx.Exec(ctx, `INSERT INTO run (kind, entity, document, state) SELECT 'broadcast', id, current, 'running' FROM entity WHERE name = 'welcome'`); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `INSERT INTO batch (id, run, email, contacts) SELECT 1, r.id, r.document, $1 FROM run r`, ids[:2]); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `INSERT INTO delivery (id, contact, state) VALUES (513, $1, 'sent'), (514, $2, 'failed')`, ids[0], ids[1]); err != nil {
			return err
		}
		return tx.AddFacts(ctx, order, order, postgres.Fact{Kind: "email.sent", Run: 1, Deliveries: []int64{513}})
	})
	w.work()
	w.want("tagged", ids[0])
	w.want("readers", ids[1])
	w.want("buyers", ids[3])
	w.want("mailed", ids[0])
	// Who is erased or merged leaves all, also where kept by hand.
	pgtest.Exec(t, w.db, "acme", "UPDATE member SET kept = 'in' WHERE contact = $1", ids[0])
	pgtest.Exec(t, w.db, "acme", "UPDATE contact SET erased_at = now() WHERE id = $1", ids[0])
	pgtest.Exec(t, w.db, "acme", "UPDATE contact SET merged_into = $2 WHERE id = $1", ids[1], ids[2])
	pgtest.In(t, w.db, "acme", func(ctx context.Context, tx *postgres.Tx) error {
		return tx.AddFacts(ctx, postgres.Fact{Kind: "contact.erased", Contact: ids[0]}, postgres.Fact{Kind: "contact.merged", Contact: ids[1], Data: fmt.Appendf(nil, `{"into": %d}`, ids[2])})
	})
	w.work()
	w.want("all", ids[2], ids[3])
	w.want("tagged")
	w.want("readers")
	// So does who is deleted for never having confirmed.
	pgtest.Exec(t, w.db, "acme", "UPDATE contact SET expires_at = onda.now() WHERE id = $1", ids[3])
	pgtest.In(t, w.db, "acme", func(ctx context.Context, tx *postgres.Tx) error {
		_, err := contact.Expire(ctx, tx, "campaign", 500)
		return err
	})
	w.work()
	w.want("all", ids[2])
	w.want("buyers")
}

func TestKeep(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ids := w.people(5)
	w.apply("acme", "Segment", "some", `{"where": {"field": "plan", "is": "paid"}, "keep": {"in": ["P1@example.com", "x3", "nobody@example.com"], "out": ["x2"]}}`)
	w.apply("acme", "Segment", "hand", `{"members": "manual", "keep": {"in": ["x5"]}}`)
	w.work()
	w.want("some", ids[0], ids[2], ids[3])
	w.want("hand", ids[4])
	pgtest.Exec(t, w.db, "acme", "UPDATE member SET kept = 'out' WHERE contact = $1", ids[3])
	pgtest.Exec(t, w.db, "acme", "UPDATE segment SET members = members - 1 WHERE entity = (SELECT id FROM entity WHERE name = 'some')")
	pgtest.Exec(t, w.db, "acme", "INSERT INTO member (segment, contact, kept) SELECT id, $1, 'in' FROM entity WHERE name = 'hand'", ids[0])
	pgtest.Exec(t, w.db, "acme", "UPDATE segment SET requested = true, members = members + CASE WHEN entity = (SELECT id FROM entity WHERE name = 'hand') THEN 1 ELSE 0 END")
	w.update(ids, contact.Change{Fields: map[string]any{"plan": "paid"}})
	w.work()
	w.want("some", ids[0], ids[2], ids[4])
	w.want("hand", ids[0], ids[4])
	pgtest.In(t, w.db, "acme", func(ctx context.Context, tx *postgres.Tx) error {
		for id, want := range map[int64]Explanation{
			ids[0]: {Member: true, Listed: "in", Matches: true, Belongs: true}, ids[1]: {Listed: "out"}, ids[3]: {Kept: "out", Matches: true}, 999: {Gone: true},
		} {
			want.Segment, want.Contact, want.Current = "some", id, true
			got, err := Explain(ctx, tx, "some", id)
			if err != nil {
				return err
			}
			if diff := cmp.Diff(want, got, cmpopts.IgnoreFields(Explanation{}, "Since", "Why")); diff != "" {
				t.Errorf("contact %d: %s", id, diff)
			}
			if (got.Since != nil) != want.Member || (got.Why == nil) != want.Gone || got.Why != nil && want.Listed == "" && got.Why.Holds != want.Matches {
				t.Errorf("contact %d: since %v, why %+v", id, got.Since, got.Why)
			}
		}
		if _, err := Count(ctx, tx, "none"); !errors.Is(err, ErrUnknown) {
			t.Errorf("an unknown name: %v", err)
		}
		return nil
	})
}

// A keeper that is killed between any two transactions, and others that go on, end as one that was not, while contacts change.
func TestKilledBetweenChunks(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ids := w.people(900)
	w.segment("paying", `{"field": "plan", "is": "paid"}`)
	w.segment("rest", `{"not": {"segment": "paying"}}`)
	ctx := context.Background()
	// Each is given one transaction, as if it were killed after it.
	for i := 0; ; i++ {
		k := &keeper{db: w.db, docs: &documents{}, log: zap.NewNop()}
		if i == 3 { // behind the mark, before it, and a new one
			w.update([]int64{ids[0], ids[899]}, contact.Change{Fields: map[string]any{"plan": "paid"}})
			w.update([]int64{ids[1], ids[898]}, contact.Change{Fields: map[string]any{"plan": "paid"}})
			w.update([]int64{ids[3], ids[897]}, contact.Change{Fields: map[string]any{"plan": "free"}})
		}
		if i == 5 { // another version while it is on its way
			w.segment("paying", `{"all": [{"field": "plan", "is": "paid"}, {"field": "level", "lte": 600}]}`)
		}
		if i%2 == 1 {
			if _, err := k.facts(ctx, "acme", map[string]bool{}); err != nil {
				t.Fatal(err)
			}
			continue
		}
		more, err := k.rebuild(ctx, "acme", new(250), map[string]bool{})
		if err != nil {
			t.Fatal(err)
		}
		if !more {
			break
		}
		if i > 60 {
			t.Fatal("it does not end")
		}
	}
	w.work()
	want := pgtest.All[int64](t, w.db, "acme", "SELECT id FROM contact WHERE fields->>'plan' = 'paid' AND (fields->>'level')::int <= 600 ORDER BY 1")
	w.want("paying", want...)
	w.want("rest", pgtest.All[int64](t, w.db, "acme", "SELECT id FROM contact WHERE NOT id = ANY ($1) ORDER BY 1", want)...)
	w.told("paying")
	w.told("rest")
}

// Several processes at once, while contacts change: the members are those of the contacts as they are in the end.
func TestManyAtOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ids := w.people(400)
	w.segment("paying", `{"field": "plan", "is": "paid"}`)
	w.segment("rich", `{"all": [{"segment": "paying"}, {"field": "level", "gte": 200}]}`)
	var wg sync.WaitGroup
	errs := make(chan error, 100)
	for range 3 {
		wg.Go(func() {
			k := &keeper{db: w.db, docs: &documents{}, log: zap.NewNop()}
			for range 12 {
				if err := w.request("paying"); err != nil {
					errs <- err
				}
				if _, err := k.work(context.Background(), "acme"); err != nil {
					errs <- err
				}
			}
		})
	}
	wg.Go(func() {
		for i := range 60 {
			plan := []string{"paid", "free"}[i%2]
			err := w.db.InTenant(context.Background(), "acme", func(ctx context.Context, tx *postgres.Tx) error {
				return contact.Update(ctx, tx, "campaign", ids[i*6:i*6+20], contact.Change{Fields: map[string]any{"plan": plan}}, "test")
			})
			if err != nil {
				errs <- err
			}
		}
	})
	wg.Wait()
	close(errs)
	for err := range errs {
		t.Error(err)
	}
	w.work()
	w.want("paying", pgtest.All[int64](t, w.db, "acme", "SELECT id FROM contact WHERE fields->>'plan' = 'paid' ORDER BY 1")...)
	w.want("rich", pgtest.All[int64](t, w.db, "acme", "SELECT id FROM contact WHERE fields->>'plan' = 'paid' AND (fields->>'level')::int >= 200 ORDER BY 1")...)
	w.told("paying")
	w.told("rich")
}

func (w *world) moveClock(d time.Duration) {
	w.Helper()
	if _, err := w.pg.Admin(w).MoveClock(context.Background(), "acme", d); err != nil {
		w.Fatal(err)
	}
}

func TestTimeAloneChangesMembers(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ids := w.people(2)
	w.segment("lately", `{"field": "seen", "inLast": "2d"}`)
	w.segment("away", `{"not": {"segment": "lately"}}`)
	now := pgtest.One[time.Time](t, w.db, "acme", "SELECT onda.now()")
	w.work()
	w.want("away", ids...)
	next := func() time.Time {
		t.Helper()
		if err := w.db.Recompute(context.Background(), "acme", "segment", w.keeper.next); err != nil {
			t.Fatal(err)
		}
		return pgtest.One[time.Time](t, w.db, "acme", "SELECT least(at, '9999-01-01') FROM onda.wakeup WHERE function = 'segment'")
	}
	pgtest.Exec(t, w.db, "acme", "DELETE FROM outbox")
	if at := next(); !at.Equal(postgres.Never) {
		t.Errorf("nothing will change, and it wakes at %s", at)
	}
	w.update(ids[:1], contact.Change{Fields: map[string]any{"seen": now.Add(-time.Hour).UTC().Format(time.RFC3339)}})
	w.work()
	w.want("lately", ids[0])
	w.want("away", ids[1])
	pgtest.Exec(t, w.db, "acme", "DELETE FROM outbox")
	if at := next(); at.Sub(now) < 46*time.Hour || at.Sub(now) > 48*time.Hour {
		t.Errorf("it wakes after %s", at.Sub(now))
	}
	w.moveClock(40 * time.Hour)
	w.work()
	w.want("lately", ids[0])
	w.moveClock(8 * time.Hour)
	w.work()
	w.want("lately")
	w.want("away", ids...)
	w.told("lately")
	pgtest.Exec(t, w.db, "acme", "DELETE FROM outbox")
	if at := next(); !at.Equal(postgres.Never) {
		t.Errorf("nothing will change any more, and it wakes at %s", at)
	}
}

// One segment that cannot be computed does not keep the others from it.
func TestABrokenSegmentIsAlone(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ids := w.people(3)
	w.segment("broken", `{"field": "gone", "is": "x"}`)
	w.segment("paying", `{"field": "plan", "is": "paid"}`)
	w.work()
	w.want("paying", ids[1])
	w.update(ids, contact.Change{Fields: map[string]any{"plan": "paid", "gone": "x"}})
	w.work()
	w.want("paying", ids...)
	w.apply("acme", "Field", "gone", `{"type": "text"}`)
	w.work()
	w.want("broken", ids...)
}

// The same end with no event at all, with repeated ones, and with facts read one by one: the order of what is done does not matter.
func TestSameEndWhateverIsDelivered(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.people(40)
	w.segment("a", `{"any": [{"tag": "vip"}, {"field": "plan", "is": "paid"}]}`)
	w.segment("b", `{"all": [{"segment": "a"}, {"not": {"field": "level", "lt": 20}}]}`)
	w.work()
	rapid.Check(t, func(t *rapid.T) {
		for range rapid.IntRange(1, 4).Draw(t, "rounds") {
			for range rapid.IntRange(0, 4).Draw(t, "changes") {
				ids := rapid.SliceOfN(rapid.Int64Range(1, 40), 1, 5).Draw(t, "contacts")
				c := contact.Change{Fields: map[string]any{"plan": rapid.SampledFrom([]any{"paid", "free", nil}).Draw(t, "plan")}}
				if rapid.Bool().Draw(t, "tags") {
					c.AddTags = []string{"vip"}
				} else {
					c.RemoveTags = []string{"vip"}
				}
				w.update(ids, c)
			}
			switch rapid.IntRange(0, 4).Draw(t, "then") {
			case 1:
				if _, err := w.keeper.facts(context.Background(), "acme", map[string]bool{}); err != nil {
					t.Fatal(err)
				}
			case 2:
				if err := w.request("a"); err != nil {
					t.Fatal(err)
				}
				if _, err := w.keeper.rebuild(context.Background(), "acme", new(7), map[string]bool{}); err != nil {
					t.Fatal(err)
				}
			case 3:
				w.work()
			}
		}
		w.work()
		a := pgtest.All[int64](w, w.db, "acme", "SELECT id FROM contact WHERE fields->>'plan' = 'paid' OR tags @> '{vip}' ORDER BY 1")
		b := pgtest.All[int64](w, w.db, "acme", "SELECT id FROM contact WHERE (fields->>'plan' = 'paid' OR tags @> '{vip}') AND (fields->>'level')::int >= 20 ORDER BY 1")
		for name, want := range map[string][]int64{"a": a, "b": b} {
			if got := w.members(name); len(got)+len(want) > 0 && !slices.Equal(got, want) {
				t.Fatalf("segment %s has %v, want %v", name, got, want)
			}
		}
	})
	w.told("a")
	w.told("b")
}

func TestEvents(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var mu sync.Mutex
	var posted []cloudevents.Event
	sink := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		e, err := cloudevents.NewEventFromHTTPRequest(r)
		if err != nil {
			rw.WriteHeader(http.StatusBadRequest)
			return
		}
		mu.Lock()
		defer mu.Unlock()
		posted = append(posted, *e)
		rw.WriteHeader(http.StatusAccepted)
	}))
	t.Cleanup(sink.Close)
	in, err := fn.Start(context.Background(), "segment", Build, envconfig.MapLookuper(map[string]string{"ONDA_DATABASE_URL": w.pg.URL, "K_SINK": sink.URL}), zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(in)
	t.Cleanup(server.Close)
	post := func(tenant string, d event.Data) int {
		t.Helper()
		e, err := event.New(tenant, "onda", "", event.DeriveID(t.Name(), d.EventType()), d)
		if err != nil {
			t.Fatal(err)
		}
		eventtest.Validate(t, e)
		req, err := cloudevents.NewHTTPRequestFromEvent(context.Background(), server.URL, e)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := server.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = resp.Body.Close() }()
		if body, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode < 300 && len(body) > 0 {
			t.Errorf("%d with the body %q, %v", resp.StatusCode, body, err)
		}
		return resp.StatusCode
	}
	ids := w.people(2)
	w.segment("paying", `{"field": "plan", "is": "paid"}`)
	for _, c := range []struct {
		tenant string
		data   event.Data
		want   int
	}{
		{"acme", event.SegmentRebuildRequested{Segment: "paying"}, http.StatusAccepted},
		{"acme", event.SegmentRebuildRequested{Segment: "nothing"}, http.StatusBadRequest},
		{"nobody", event.ScheduleDue{Function: "segment"}, http.StatusBadRequest},
		{"acme", event.EmailSent{Deliveries: event.Deliveries{Items: []event.Delivery{{Delivery: 513}}}}, http.StatusAccepted},
		{"acme", event.CampaignStarted{Campaign: event.Campaign{Run: 1, Campaign: "x"}}, http.StatusAccepted},
		{"acme", event.ScheduleDue{Function: "segment"}, http.StatusAccepted},
		{"brava", event.ScheduleDue{Function: "segment"}, http.StatusAccepted},
	} {
		if got := post(c.tenant, c.data); got != c.want {
			t.Errorf("%s %T: %d, want %d", c.tenant, c.data, got, c.want)
		}
	}
	w.want("paying", ids[1])
	w.update(ids[:1], contact.Change{Fields: map[string]any{"plan": "paid"}})
	w.until("the change is followed", func() bool {
		if got := post("acme", event.ContactChanged{Contacts: ids[:1]}); got != http.StatusAccepted {
			t.Errorf("contact.changed: %d", got)
		}
		return w.read()
	})
	w.want("paying", ids...)
	if err := in.Stop(context.Background()); err != nil {
		t.Error(err)
	}
	mu.Lock()
	defer mu.Unlock()
	changed := 0
	for _, e := range posted {
		eventtest.Validate(t, e)
		if d, err := event.Decode(e); err == nil {
			if c, ok := d.(event.SegmentChanged); ok && c.Segment == "paying" && c.Joined == 1 {
				changed++
			}
		}
	}
	if changed != 2 {
		t.Errorf("%d of 2 changes were told, in %d events", changed, len(posted))
	}
	if n := pgtest.One[int](t, w.db, "acme", "SELECT count(*) FROM failure"); n != 1 {
		t.Errorf("%d failures are kept, want that of the segment that is not there", n)
	}
}

// A click counts until its hit is found to be a machine's, and again when it turns out to be a person's after all.
func TestAClickThatIsTakenBack(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ids := w.people(2)
	w.segment("clickers", `{"event": "email.clicked", "count": {"gte": 1}}`)
	w.work()
	hit := pgtest.One[int64](t, w.db, "acme", "INSERT INTO hit (kind, contact, verdict) VALUES ('click', $1, 'human') RETURNING id", ids[0])
	tell := func(kind string) {
		pgtest.In(t, w.db, "acme", func(ctx context.Context, tx *postgres.Tx) error {
			return tx.AddFacts(ctx, postgres.Fact{Kind: kind, Name: "welcome", Contact: ids[0], Data: fmt.Appendf(nil, `{"hit": %d}`, hit)})
		})
		w.work()
	}
	tell("email.clicked")
	w.want("clickers", ids[0])
	for _, verdict := range []string{"machine", "human"} {
		pgtest.Exec(t, w.db, "acme", "UPDATE fact SET data = CASE WHEN $2 = 'machine' THEN data || '{\"taken\": true}' ELSE data - 'taken' END WHERE kind = 'email.clicked' AND (data->>'hit')::bigint = $1", hit, verdict)
		tell("hit.reclassified")
		w.want("clickers", map[string][]int64{"human": ids[:1]}[verdict]...)
	}
	w.told("clickers")
}
