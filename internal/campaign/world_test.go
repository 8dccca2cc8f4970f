package campaign

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2"
	"github.com/jackc/pgx/v5"
	"go.uber.org/zap/zaptest"

	"github.com/onda-run/onda/internal/delivery"
	"github.com/onda-run/onda/internal/event/eventtest"
	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/spec"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// world is a test's database with an engine that works on it.
type world struct {
	t      testing.TB
	data   *pgtest.Database
	db     *postgres.DB
	admin  *postgres.Admin
	engine *engine
}

func newWorld(tb testing.TB) *world {
	tb.Helper()
	d := pgtest.New(tb)
	db := d.DB(tb)
	w := &world{t: tb, data: d, db: db, admin: d.Admin(tb), engine: &engine{db: db, docs: &documents{}, share: 4, log: zaptest.NewLogger(tb), stop: make(chan struct{})}}
	w.apply(common)
	tb.Cleanup(w.validate)
	return w
}

// validate checks every event that was to be published.
func (w *world) validate() {
	for _, tenant := range []string{pgtest.Acme, pgtest.Brava} {
		for _, body := range pgtest.All[[]byte](w.t, w.db, tenant, "SELECT event FROM outbox") {
			e := cloudevents.NewEvent()
			if err := json.Unmarshal(body, &e); err != nil {
				w.t.Errorf("outbox: %v", err)
			}
			eventtest.Validate(w.t, e)
		}
	}
}

// common are documents that most tests need.
const common = `
apiVersion: onda/v1
kind: Topic
metadata: {name: news}
spec: {optIn: single}
---
apiVersion: onda/v1
kind: Segment
metadata: {name: everyone}
spec: {where: {field: email, exists: true}}
---
apiVersion: onda/v1
kind: Segment
metadata: {name: staff}
spec: {members: manual}
---
apiVersion: onda/v1
kind: Field
metadata: {name: plan}
spec: {type: text}
---
apiVersion: onda/v1
kind: Field
metadata: {name: timezone}
spec: {type: timezone}
---
apiVersion: onda/v1
kind: Field
metadata: {name: trial_ends}
spec: {type: date}
---
apiVersion: onda/v1
kind: Email
metadata: {name: hello}
spec: {topic: news, from: "news@example.com", subject: Hello, html: "<p>Hello</p>"}
---
apiVersion: onda/v1
kind: Email
metadata: {name: reminder}
spec: {topic: news, from: "news@example.com", subject: Hello again, html: "<p>Hello again</p>"}
`

// apply stores documents as apply does: a new version of what changed, all checked.
func (w *world) apply(documents ...string) {
	w.t.Helper()
	for _, text := range documents {
		set, err := spec.Load(fstest.MapFS{"documents.yaml": {Data: []byte(strings.TrimPrefix(text, "\n"))}})
		if err != nil {
			w.t.Fatalf("documents: %v", err)
		}
		for _, tenant := range []string{pgtest.Acme, pgtest.Brava} {
			w.in(tenant, func(ctx context.Context, tx *postgres.Tx) error {
				for _, d := range set.Documents {
					if err := store(ctx, tx, d); err != nil {
						return err
					}
				}
				return nil
			})
		}
	}
}

func store(ctx context.Context, tx *postgres.Tx, d *spec.Document) error {
	sum := sha256.Sum256(d.JSON)
	_, err := tx.Exec(ctx, "INSERT INTO entity (kind, name) VALUES ($1, $2) ON CONFLICT DO NOTHING", d.Kind, d.Name)
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, `WITH e AS (SELECT id FROM entity WHERE kind = $1 AND name = $2),
		d AS (INSERT INTO document (entity, version, spec, hash) SELECT e.id, 1 + coalesce((SELECT max(version) FROM document WHERE entity = e.id), 0), $3, $4 FROM e RETURNING id, entity)
		UPDATE entity SET current = d.id FROM d WHERE entity.id = d.entity`, d.Kind, d.Name, d.JSON, sum[:])
	return err
}

// campaign applies a campaign of this name; the spec is indented by two.
func (w *world) campaign(name, body string) {
	w.t.Helper()
	w.apply("apiVersion: onda/v1\nkind: Campaign\nmetadata: {name: " + name + "}\nspec:\n" + indent(body))
}

func (w *world) broadcast(name, body string) {
	w.t.Helper()
	w.apply("apiVersion: onda/v1\nkind: Broadcast\nmetadata: {name: " + name + "}\nspec:\n" + indent(body))
}

func indent(body string) string {
	lines := strings.Split(strings.TrimRight(strings.TrimLeft(body, "\n"), "\n\t "), "\n")
	tabs := len(lines[0]) - len(strings.TrimLeft(lines[0], "\t"))
	for i, l := range lines {
		lines[i] = "  " + strings.TrimPrefix(l, strings.Repeat("\t", tabs))
	}
	return strings.Join(lines, "\n") + "\n"
}

func (w *world) in(tenant string, f func(ctx context.Context, tx *postgres.Tx) error) {
	w.t.Helper()
	pgtest.In(w.t, w.db, tenant, f)
}

func (w *world) exec(sql string, args ...any) {
	w.t.Helper()
	pgtest.Exec(w.t, w.db, pgtest.Acme, sql, args...)
}

// people makes n contacts of a tenant, subscribed to news and members of everyone, and gives the first id; the others follow it.
func (w *world) people(tenant string, n int) (first int64) {
	w.t.Helper()
	pgtest.Exec(w.t, w.db, tenant, `WITH c AS (INSERT INTO contact (email) SELECT 'c' || n || '@example.com' FROM generate_series(1, $1::int) n RETURNING id),
		s AS (INSERT INTO subscription (contact, purpose, state, consent, at) SELECT id, 'news', 'granted', 0, onda.now() FROM c)
		INSERT INTO member (segment, contact) SELECT e.id, c.id FROM c, entity e WHERE e.kind = 'Segment' AND e.name = 'everyone'`, n)
	return pgtest.One[int64](w.t, w.db, tenant, "SELECT min(id) FROM contact")
}

// newsTo makes so many people, starts the broadcast news to them all, and plans it.
func (w *world) newsTo(people int) {
	w.t.Helper()
	w.people(pgtest.Acme, people)
	w.broadcast("news", toEveryone)
	w.start("news")
	w.everything()
}

// everything makes the engine do all that is due.
func (w *world) everything() { w.t.Helper(); w.sweep(pgtest.Acme) }

// sweep works until no fact is unread: facts are held back while any transaction on the server is older, those of other tests too.
func (w *world) sweep(tenant string) {
	w.t.Helper()
	w.eventually("all facts are read", func() bool {
		all, err := w.engine.work(context.Background(), tenant, scope{facts: true, plan: true, walk: true, sweep: true})
		if err != nil {
			w.t.Fatalf("sweep: %v", err)
		}
		if !all {
			w.t.Fatal("sweep: not all was done in time")
		}
		return w.allRead(tenant)
	})
}

func (w *world) allRead(tenant string) (read bool) {
	w.t.Helper()
	w.in(tenant, func(ctx context.Context, tx *postgres.Tx) error {
		at, err := tx.FactsDue(ctx, "campaign")
		read = at.Equal(postgres.Never)
		return err
	})
	return read
}

// eventually polls until something is so.
func (w *world) eventually(what string, is func() bool) {
	w.t.Helper()
	deadline := time.After(2 * time.Minute)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !is() {
		select {
		case <-tick.C:
		case <-deadline:
			w.t.Fatalf("%s: not within two minutes", what)
		}
	}
}

// pass moves the clock on.
func (w *world) pass(d time.Duration) {
	w.t.Helper()
	w.moveClock(pgtest.Acme, d)
}

func (w *world) moveClock(tenant string, d time.Duration) {
	w.t.Helper()
	if _, err := w.admin.MoveClock(context.Background(), tenant, d); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) now() (now time.Time) {
	w.t.Helper()
	w.in(pgtest.Acme, func(_ context.Context, tx *postgres.Tx) error { now = tx.Now(); return nil })
	return now
}

func (w *world) start(name string, o ...Options) (r Run) {
	w.t.Helper()
	w.in(pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) (err error) {
		r, err = Start(ctx, tx, name, append(o, Options{})[0])
		return err
	})
	return r
}

// fact writes facts.
func (w *world) fact(facts ...postgres.Fact) {
	w.t.Helper()
	w.in(pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) error { return tx.AddFacts(ctx, facts...) })
}

// deliver gives every queued mail an outcome, as send would, and closes its batch. tracking is full unless said otherwise.
func (w *world) deliver(tracking ...string) (n int) {
	w.t.Helper()
	track := append(tracking, "full")[0]
	w.in(pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) error {
		for {
			l, err := delivery.Take(ctx, tx, "send", delivery.Bulk, delivery.Terms{Lease: time.Minute, MessageLimit: time.Second}, time.Now(),
				func(context.Context, *postgres.Tx, int64) (bool, error) { return false, nil })
			if err != nil || l == nil {
				return err
			}
			for !l.Done && l.Mark < l.Size() {
				hi := min(l.Mark+delivery.MaxWindow, l.Size())
				open, ok, err := l.Advance(ctx, tx, hi)
				if err != nil || !ok {
					return fmt.Errorf("advance: %v %w", ok, err)
				}
				l.Moved(hi, time.Now())
				outcomes := make([]delivery.Outcome, len(open))
				for i, r := range open {
					outcomes[i] = delivery.Outcome{Delivery: r.Delivery, Contact: r.Contact, Attempt: r.Attempt, State: delivery.Sent, Tracking: track}
				}
				if _, err := delivery.Record(ctx, tx, "send", outcomes...); err != nil {
					return err
				}
				n += len(open)
			}
			if !l.Done {
				if _, err := l.Close(ctx, tx, "send"); err != nil {
					return err
				}
			}
		}
	})
	return n
}

// click writes what track does when a person's click was judged: the hit and its fact, as of a time.
func (w *world) click(delivery int64, at time.Time) {
	w.t.Helper()
	w.in(pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) error {
		var contact, run int64
		err := tx.QueryRow(ctx, "SELECT d.contact, b.run FROM delivery d JOIN batch b ON b.id = d.id >> 9 WHERE d.id = $1", delivery).Scan(&contact, &run)
		if err != nil {
			return err
		}
		return tx.AddFacts(ctx, postgres.Fact{Kind: "email.clicked", Name: "hello", Contact: contact, Run: run, Deliveries: []int64{delivery}, At: at})
	})
}

// tracks writes a custom event of a contact.
func (w *world) tracks(contact int64, name, data string, at time.Time) {
	w.t.Helper()
	w.fact(postgres.Fact{Kind: "event.tracked", Name: name, Contact: contact, Data: []byte(data), At: at})
}

// places gives where the journeys are: "state:step" or "state(outcome)", with how many.
func (w *world) places() string { w.t.Helper(); return w.placesOf(pgtest.Acme) }

func (w *world) placesOf(tenant string) string {
	w.t.Helper()
	rows := pgtest.All[string](w.t, w.db, tenant, `SELECT p || ' ' || count(*) FROM (
		SELECT CASE WHEN state = 'active' THEN step WHEN outcome <> '' THEN state || '(' || outcome || ')' ELSE state END AS p FROM journey) j GROUP BY p ORDER BY p`)
	return strings.Join(rows, ", ")
}

// path gives a journey's history: step or step/branch.
func (w *world) path(journey int64) string {
	w.t.Helper()
	return strings.Join(pgtest.All[string](w.t, w.db, pgtest.Acme,
		"SELECT step || CASE WHEN branch = '' THEN '' ELSE '/' || branch END FROM step WHERE journey = $1 ORDER BY visit", journey), " ")
}

// mailed gives the deliveries that were planned for a step, in order.
func (w *world) mailed(step string) []int64 {
	w.t.Helper()
	return pgtest.All[int64](w.t, w.db, pgtest.Acme, "SELECT delivery FROM step WHERE step = $1 AND delivery IS NOT NULL ORDER BY delivery", step)
}

func (w *world) wants(got, want string) {
	w.t.Helper()
	if got != want {
		w.t.Fatalf("got %q, want %q", got, want)
	}
}

// count reads a number.
func (w *world) count(sql string, args ...any) int64 {
	w.t.Helper()
	return pgtest.One[int64](w.t, w.db, pgtest.Acme, sql, args...)
}

// columnsOf reads rows as text, for comparing end states.
func (w *world) columnsOf(tenant, sql string) (out []string) {
	w.t.Helper()
	w.in(tenant, func(ctx context.Context, tx *postgres.Tx) error {
		rows, err := tx.Query(ctx, sql)
		if err != nil {
			return err
		}
		out, err = pgx.CollectRows(rows, pgx.RowTo[string])
		return err
	})
	return out
}
