package feedback

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/onda-run/onda/internal/delivery"
	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/postgres"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// world is a tenant whose contacts were sent one mail each.
type world struct {
	t          testing.TB
	data       *pgtest.Database
	db         *postgres.DB
	deliveries []int64
	log        *zap.Logger
	logged     *observer.ObservedLogs
}

func newWorld(tb testing.TB, contacts int) *world {
	tb.Helper()
	d := pgtest.New(tb)
	core, logged := observer.New(zap.WarnLevel)
	w := &world{t: tb, data: d, db: d.DB(tb), log: zap.New(core), logged: logged}
	pgtest.In(tb, w.db, pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) error {
		var run, email int64
		var who []int64
		err := tx.QueryRow(ctx, `WITH e AS (INSERT INTO entity (kind, name) VALUES ('Email', 'welcome') RETURNING id),
			d AS (INSERT INTO document (entity, version, spec, hash) SELECT id, 1, '{"spec": {"topic": "newsletter", "from": "Acme <news@acme.example>"}}', '' FROM e RETURNING id, entity),
			r AS (INSERT INTO run (kind, entity, document, state) SELECT 'broadcast', entity, id, 'running' FROM d RETURNING id),
			c AS (INSERT INTO contact (email) SELECT 'c' || i || '@example.com' FROM generate_series(1, $1::integer) i RETURNING id)
			SELECT d.id, r.id, (SELECT array_agg(id ORDER BY id) FROM c) FROM d, r`, contacts).Scan(&email, &run, &who)
		if err != nil {
			return err
		}
		batches, err := delivery.Enqueue(ctx, tx, delivery.Plan{Run: run, Email: email, Contacts: who})
		if err != nil {
			return err
		}
		for i := range who {
			w.deliveries = append(w.deliveries, delivery.ID(batches[i/500].ID, i%500+1))
		}
		_, err = tx.Exec(ctx, `WITH s AS (INSERT INTO consent (contact, purpose, state, basis, at) SELECT c, 'newsletter', 'granted', 'test', onda.now() - interval '1 day' FROM unnest($1::bigint[]) c RETURNING id, contact, at)
			INSERT INTO subscription (contact, purpose, state, consent, at) SELECT contact, 'newsletter', 'granted', id, at FROM s`, who)
		return err
	})
	return w
}

func (w *world) take(events ...Event) (taken int) {
	w.t.Helper()
	pgtest.In(w.t, w.db, pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) (err error) {
		taken, err = Take(ctx, tx, events)
		return err
	})
	return taken
}

func (w *world) settle() error {
	for more := true; more; {
		err := w.db.InTenant(context.Background(), pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) (err error) {
			more, err = Settle(ctx, tx, w.log)
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// Whatever order things are told in, however often, and however many work them off at once, the end is the same and each is news once.
func TestSameEndWhateverTheOrder(t *testing.T) {
	t.Parallel()
	const people = 60
	var want []string
	for round := range 3 {
		w := newWorld(t, people)
		at := time.Now().Add(-time.Hour)
		var events []Event
		for i, d := range w.deliveries {
			switch i % 6 {
			case 0:
				events = append(events, Event{d, Delivered, "", at})
			case 1:
				events = append(events, Event{d, Bounced, "hard", at})
			case 2:
				events = append(events, Event{d, Bounced, "block", at}, Event{d, Delivered, "", at})
			case 3:
				events = append(events, Event{d, Delivered, "", at}, Event{d, Complained, "", at})
			case 4:
				events = append(events, Event{d, Unsubscribed, "", at})
			}
		}
		repeated := append(append(append([]Event{}, events...), events...), Event{delivery.ID(1<<30, 1), Complained, "", at}, Event{w.deliveries[0] + 511 - 1, Complained, "", at})
		rand.Shuffle(len(repeated), func(i, j int) { repeated[i], repeated[j] = repeated[j], repeated[i] })
		if n := w.take(repeated...); n != 2*len(events) {
			t.Errorf("%d were taken, want %d", n, 2*len(events))
		}
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				if err := w.settle(); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		got := pgtest.All[string](t, w.db, pgtest.Acme, `SELECT concat_ws(' ', c.email, d.state, d.bounce_class, CASE WHEN d.delivered_at IS NOT NULL THEN 'delivered' END,
			CASE WHEN d.complained_at IS NOT NULL THEN 'complained' END, s.state, (SELECT string_agg(reason, ',') FROM suppression x WHERE x.contact = c.id))
			FROM contact c JOIN subscription s ON s.contact = c.id LEFT JOIN delivery d ON d.contact = c.id ORDER BY c.id`)
		if round == 0 {
			want = got
			for i, line := range []string{"sent delivered granted", "sent hard granted bounce", "sent block delivered granted", "sent delivered complained withdrawn complaint", "withdrawn", "granted"} {
				if d := cmp.Diff(fmt.Sprintf("c%d@example.com %s", i+1, line), got[i]); d != "" {
					t.Error(d)
				}
			}
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("round %d ended otherwise (-first +this):\n%s", round, d)
		}
		if n := pgtest.One[int](t, w.db, pgtest.Acme, "SELECT count(*) FROM (SELECT 1 FROM fact WHERE contact IS NOT NULL GROUP BY kind, name, contact, deliveries HAVING count(*) > 1) twice"); n != 0 {
			t.Errorf("%d facts were written twice", n)
		}
	}
}

// On the schema before there is nothing to work off, and who posts is told to come again.
func TestOnTheSchemaBefore(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	if err := w.settle(); err != nil {
		t.Fatal(err)
	}
	w.data.Own(t, pgtest.Acme, "DROP TABLE feedback")
	err := w.db.InTenant(context.Background(), pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) error {
		_, err := Take(ctx, tx, []Event{{Delivery: w.deliveries[0], Kind: Delivered}})
		return err
	})
	if !errors.Is(err, postgres.ErrSchemaTooOld) {
		t.Errorf("taken: %v", err)
	}
	if err := w.settle(); err != nil {
		t.Errorf("worked off: %v", err)
	}
	pgtest.In(t, w.db, pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) error {
		at, err := Due(ctx, tx)
		if at != postgres.Never {
			t.Errorf("due at %s", at)
		}
		return err
	})
}

// A time that cannot be counts as now: what providers' clocks say must not suppress for the past or hide what comes.
func TestTimesThatCannotBe(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 3)
	w.take(Event{w.deliveries[0], Delivered, "", time.Unix(0, 0)}, Event{w.deliveries[1], Delivered, "", time.Now().Add(1000 * time.Hour)}, Event{w.deliveries[2], Delivered, "", time.Time{}})
	if err := w.settle(); err != nil {
		t.Fatal(err)
	}
	if n := pgtest.One[int](t, w.db, pgtest.Acme, "SELECT count(*) FROM delivery WHERE delivered_at BETWEEN now() - interval '1 hour' AND now()"); n != 3 {
		t.Errorf("%d of 3 are of now", n)
	}
}

// What is known of a domain is locked after the contacts, as others do, so that neither waits for the other; and a breaker that reports open is told of.
func TestWhereMailsWentIsCountedLast(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 31)
	w.data.Own(t, pgtest.Acme, `CREATE FUNCTION acme.last() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
			IF NOT EXISTS (SELECT FROM acme.subscription WHERE state = 'withdrawn') THEN RAISE EXCEPTION 'contacts are locked after this'; END IF;
			RETURN NEW;
		END $$`)
	pgtest.In(t, w.db, pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) error {
		_, err := delivery.CountTraffic(ctx, tx, "acme.example", map[string]delivery.Traffic{delivery.Others: {Sent: 250}})
		return err
	})
	w.data.Own(t, pgtest.Acme, "CREATE TRIGGER last BEFORE INSERT OR UPDATE ON acme.throttle FOR EACH ROW EXECUTE FUNCTION acme.last()")
	events := []Event{{Delivery: w.deliveries[0], Kind: Unsubscribed}}
	for _, d := range w.deliveries[1:] {
		events = append(events, Event{Delivery: d, Kind: Bounced, Class: hard})
	}
	w.take(events...)
	if err := w.settle(); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, l := range w.logged.FilterMessage("a breaker opened: marketing mail waits").All() {
		f := l.ContextMap()
		got = append(got, fmt.Sprint(f["tenant"], " ", f["from"], " to ", f["to"], ": ", f["why"]))
	}
	const why = "30 of 250 came back (12.0 %, at most 10.0 %)"
	if d := cmp.Diff([]string{"acme acme.example to everybody: " + why, "acme acme.example to others: " + why}, got); d != "" {
		t.Errorf("logged (-want +got):\n%s", d)
	}
}

func BenchmarkSettle(b *testing.B) {
	const people = 5000
	for b.Loop() {
		b.StopTimer()
		w := newWorld(b, people)
		events := make([]Event, people)
		for i, d := range w.deliveries {
			events[i] = Event{Delivery: d, Kind: Delivered}
		}
		w.take(events...)
		b.StartTimer()
		if err := w.settle(); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N)/people, "µs/event")
}
