package send

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/signal"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2"
	"github.com/jackc/pgx/v5"
	"github.com/sethvargo/go-envconfig"
	"go.uber.org/zap"

	"github.com/onda-run/onda/internal/apply"
	"github.com/onda-run/onda/internal/delivery"
	"github.com/onda-run/onda/internal/event"
	"github.com/onda-run/onda/internal/fn"
	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/smtptest"
)

// childEnv, when set, makes the test binary a sender of its own that can be killed.
const childEnv = "ONDA_SEND_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		os.Exit(child())
	}
	pgtest.Main(m)
}

// child sends whatever is due for acme, again and again, until SIGTERM; then it drains as a pod does.
func child() int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	in, err := fn.Start(context.Background(), "send", Build, envconfig.OsLookuper(), zap.NewNop())
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	for n := 0; ctx.Err() == nil; n++ {
		if status := post(ctx, in, sweepEvent("send", fmt.Sprint(os.Getpid(), " ", n))); status != http.StatusAccepted && ctx.Err() == nil {
			fmt.Fprintln(os.Stderr, "status", status)
		}
		select {
		case <-ctx.Done():
		case <-time.After(20 * time.Millisecond):
		}
	}
	ended, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := in.Stop(ended); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func sweepEvent(function, id string) cloudevents.Event {
	e, err := event.New(pgtest.Acme, "schedule", "", event.DeriveID("test", function, id), event.ScheduleDue{Function: function})
	if err != nil {
		panic(err)
	}
	return e
}

// post hands an event to the function as the broker does and gives the status.
func post(ctx context.Context, in http.Handler, e cloudevents.Event) int {
	body, err := json.Marshal(e)
	if err != nil {
		panic(err)
	}
	r := httptest.NewRequestWithContext(ctx, http.MethodPost, "/", strings.NewReader(string(body)))
	r.Header.Set("Content-Type", cloudevents.ApplicationCloudEventsJSON)
	w := httptest.NewRecorder()
	in.ServeHTTP(w, r)
	return w.Code
}

const documents = `
apiVersion: onda/v1
kind: Topic
metadata: {name: newsletter, title: "Newsletter"}
spec: {optIn: single}
---
apiVersion: onda/v1
kind: Field
metadata: {name: first_name, title: "First name"}
spec: {type: text, personal: true}
---
apiVersion: onda/v1
kind: Email
metadata: {name: news, title: "News"}
spec:
  topic: newsletter
  from: "Acme <news@acme.example>"
  subject: "News for {{ contact.first_name }}"
  html: '<p>Hello {{ contact.first_name }}, <a href="https://acme.example/a">read</a> or <a href="{{ unsubscribe_url }}">leave</a></p>'
---
apiVersion: onda/v1
kind: Email
metadata: {name: password, title: "Password"}
spec:
  transactional: true
  from: "Acme <no-reply@acme.example>"
  subject: "Your code"
  html: "<p>Code {{ data.code }}</p>"
`

// world is a tenant with two emails, a run of one of them, and a relay that does what a test scripts.
type world struct {
	t      testing.TB
	data   *pgtest.Database
	db     *postgres.DB
	smtp   *smtptest.Server
	env    map[string]string
	news   int64 // document
	run    int64
	events atomic.Int64
}

func newWorld(tb testing.TB, more ...string) *world {
	tb.Helper()
	data := pgtest.New(tb)
	w := &world{t: tb, data: data, db: data.DB(tb), smtp: smtptest.Start(tb, smtptest.Config{})}
	w.env = map[string]string{
		"ONDA_DATABASE_URL": data.URL, "ONDA_SMTP_URL": w.smtp.URL(), "ONDA_LINK_URL": "http://localhost:8080",
		"ONDA_LEASE": "5s", "ONDA_MESSAGE_LIMIT": "3s",
	}
	w.apply(documents + strings.Join(more, ""))
	w.news = pgtest.One[int64](tb, w.db, pgtest.Acme, "SELECT current FROM entity WHERE kind = 'Email' AND name = 'news'")
	w.run = pgtest.One[int64](tb, w.db, pgtest.Acme, `INSERT INTO run (kind, entity, document, state) SELECT 'broadcast', entity, id, 'running' FROM document WHERE id = $1 RETURNING id`, w.news)
	return w
}

func (w *world) apply(docs string) { w.t.Helper(); w.applyTo(pgtest.Acme, docs) }

func (w *world) applyTo(tenant, docs string) {
	w.t.Helper()
	if _, _, err := apply.Directory(w.t.Context(), w.db, tenant, fstest.MapFS{"all.yaml": {Data: []byte(docs)}}, nil); err != nil {
		w.t.Fatal(err)
	}
}

// people makes n contacts u1@x.example ... who all granted the newsletter, and gives their ids.
func (w *world) people(n int) []int64 {
	w.t.Helper()
	ids := pgtest.All[int64](w.t, w.db, pgtest.Acme, `INSERT INTO contact (email, fields) SELECT 'u' || n || '@x.example', jsonb_build_object('first_name', 'U' || n) FROM generate_series(1, $1::int) n RETURNING id`, n)
	pgtest.Exec(w.t, w.db, pgtest.Acme, "INSERT INTO subscription (contact, purpose, state, consent, at) SELECT c, 'newsletter', 'granted', 0, onda.now() FROM unnest($1::bigint[]) c", ids)
	return ids
}

// plan plans the news for contacts, in batches of a size.
func (w *world) plan(contacts []int64, size int) {
	w.t.Helper()
	pgtest.In(w.t, w.db, pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) error {
		for len(contacts) > 0 {
			n := min(size, len(contacts))
			if _, err := delivery.Enqueue(ctx, tx, delivery.Plan{Run: w.run, Step: "send", Email: w.news, Contacts: contacts[:n], Cause: "test"}); err != nil {
				return err
			}
			contacts = contacts[n:]
		}
		return nil
	})
}

// start runs a sender in this process; settings change its environment.
func (w *world) start(settings ...string) *fn.Instance {
	w.t.Helper()
	env := map[string]string{}
	for k, v := range w.env {
		env[k] = v
	}
	for _, s := range settings {
		k, v, _ := strings.Cut(s, "=")
		env[k] = v
	}
	in, err := fn.Start(context.Background(), "send", Build, envconfig.MapLookuper(env), zap.NewNop())
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := in.Stop(ctx); err != nil {
			w.t.Errorf("stop: %v", err)
		}
	})
	return in
}

// sweep is schedule's post to the function of a lane.
func (w *world) sweep(in http.Handler, function string) int {
	return post(context.Background(), in, sweepEvent(function, fmt.Sprint("sweep ", w.events.Add(1))))
}

func (w *world) mustSweep(in http.Handler, function string) {
	w.t.Helper()
	if status := w.sweep(in, function); status != http.StatusAccepted {
		w.t.Fatalf("schedule.due of %s: status %d", function, status)
	}
}

// outcomes gives state, reason, class and code of each delivery in order, by the recipient's address.
func (w *world) outcomes() map[string]string {
	w.t.Helper()
	out := map[string]string{}
	for _, line := range pgtest.All[string](w.t, w.db, pgtest.Acme, `SELECT coalesce(c.email, 'contact ' || d.contact) || '|' || concat_ws(' ', d.state, d.reason, d.class, d.code, nullif('attempt ' || d.attempt, 'attempt 1'))
		FROM delivery d LEFT JOIN contact c ON c.id = d.contact ORDER BY d.id`) {
		who, what, _ := strings.Cut(line, "|")
		out[who] = what
	}
	return out
}

// wait waits until a condition is true, looking again from time to time.
func wait(tb testing.TB, limit time.Duration, what string, is func() bool) {
	tb.Helper()
	end := time.NewTimer(limit)
	defer end.Stop()
	again := time.NewTicker(10 * time.Millisecond)
	defer again.Stop()
	for !is() {
		select {
		case <-again.C:
		case <-end.C:
			tb.Fatalf("waited %s for: %s", limit, what)
		}
	}
}

// moveClock moves acme's clock.
func (w *world) moveClock(d time.Duration) {
	w.t.Helper()
	if _, err := w.data.Admin(w.t).MoveClock(context.Background(), pgtest.Acme, d); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) superuser(sql string) {
	w.t.Helper()
	conn, err := pgx.Connect(context.Background(), w.data.AdminURL)
	if err != nil {
		w.t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.Background()) }()
	if _, err := conn.Exec(context.Background(), sql); err != nil {
		w.t.Fatal(err)
	}
}

// quietDay is today's name in the language of documents.
func quietDay(tb testing.TB) string {
	tb.Helper()
	return strings.ToLower(time.Now().UTC().Format("Mon"))
}
