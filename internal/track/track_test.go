package track

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2"
	"go.uber.org/zap/zaptest"

	"github.com/onda-run/onda/internal/apply"
	"github.com/onda-run/onda/internal/compose"
	"github.com/onda-run/onda/internal/contact"
	"github.com/onda-run/onda/internal/event/eventtest"
	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/token"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

const browser = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"

// world is a database with the same documents, contacts and mails in both tenants, and the function before it.
type world struct {
	*Tracker
	t     *testing.T
	d     *pgtest.Database
	db    *postgres.DB
	admin *postgres.Admin
	url   string
}

// documents of the company in these tests.
func documents() fstest.MapFS {
	return fstest.MapFS{"all.yaml": {Data: []byte(`
apiVersion: onda/v1
kind: Settings
metadata: {name: settings, title: "Sail & Ski"}
spec: {zone: Europe/Oslo}
---
apiVersion: onda/v1
kind: Topic
metadata: {name: newsletter}
spec: {title: {en: Newsletter, fr: Lettre}, description: {en: "Once a month, what is new."}, public: true}
---
apiVersion: onda/v1
kind: Topic
metadata: {name: offers, title: Offers}
spec: {public: true}
---
apiVersion: onda/v1
kind: Topic
metadata: {name: insiders, title: Insiders}
spec: {}
---
apiVersion: onda/v1
kind: Field
metadata: {name: first_name, title: First name}
spec: {type: text, visitorWritable: true}
---
apiVersion: onda/v1
kind: Field
metadata: {name: logins, title: Logins}
spec: {type: number}
---
apiVersion: onda/v1
kind: Email
metadata: {name: news}
spec:
  topic: newsletter
  from: "Sail & Ski <news@acme.example>"
  subject: "Hello {{ contact.first_name }}"
  html: |
    <p>Hello {{ contact.first_name }}, <a href="https://example.com/a">one</a> and <a href="https://example.com/b">two</a>.</p>
    <p><a href="{{ unsubscribe_url }}">Unsubscribe</a> <a href="{{ webview_url }}">In the browser</a></p>
`)}}
}

func newWorld(t *testing.T) *world {
	t.Helper()
	d := pgtest.New(t)
	db := d.DB(t)
	for _, tenant := range []string{pgtest.Acme, pgtest.Brava} {
		applyTo(t, db, tenant, documents())
	}
	w := &world{t: t, d: d, admin: d.Admin(t)}
	return w.again()
}

// again is the same world with the function started anew.
func (w *world) again() *world {
	w.t.Helper()
	db := w.d.DB(w.t)
	tracker := New(Config{OriginKeep: 30 * 24 * time.Hour, Slots: 2, EventsPerSecond: 100, Proxies: 1, Compose: compose.Config{LinkURL: "https://links.example"}}, db, zaptest.NewLogger(w.t))
	h, err := tracker.Handler()
	if err != nil {
		w.t.Fatal(err)
	}
	s := httptest.NewServer(h)
	w.t.Cleanup(s.Close)
	return &world{Tracker: tracker, t: w.t, d: w.d, db: db, admin: w.admin, url: s.URL}
}

// applyTo stores documents as onda apply does.
func applyTo(t *testing.T, db *postgres.DB, tenant string, files fstest.MapFS) {
	t.Helper()
	if _, _, err := apply.Directory(t.Context(), db, tenant, files, nil); err != nil {
		t.Fatal(err)
	}
}

// sent makes a contact to whom the mail news was sent, ago before now, and gives its delivery.
func (w *world) sent(tenant, address string, ago time.Duration) (id, delivery int64) {
	w.t.Helper()
	pgtest.In(w.t, w.db, tenant, func(ctx context.Context, tx *postgres.Tx) (err error) {
		if id, _, err = contact.Ensure(ctx, tx, address); err != nil {
			return err
		}
		if _, err := contact.Record(ctx, tx, "track", contact.Consent{Contact: id, Purpose: "newsletter", State: contact.Granted, Basis: "form"}); err != nil {
			return err
		}
		var batch int64
		err = tx.QueryRow(ctx, `WITH e AS (SELECT id, current FROM entity WHERE kind = 'Email' AND name = 'news'),
			made AS (INSERT INTO run (kind, entity, document, state) SELECT 'broadcast', id, current, 'running' FROM e ON CONFLICT DO NOTHING RETURNING id)
			INSERT INTO batch (run, step, email, contacts, state) SELECT coalesce((SELECT id FROM made), (SELECT r.id FROM run r, e WHERE r.entity = e.id)), 's', current, ARRAY[$1::bigint], 'closed' FROM e
			RETURNING id`, id).Scan(&batch)
		if err != nil {
			return err
		}
		delivery = batch<<9 | 1
		_, err = tx.Exec(ctx, "INSERT INTO delivery (id, contact, state, tracking, at) VALUES ($1, $2, 'sent', 'full', $3)", delivery, id, tx.Now().Add(-ago))
		return err
	})
	return id, delivery
}

func (w *world) token(tenant string, c token.Claims) string {
	w.t.Helper()
	var tok string
	pgtest.In(w.t, w.db, tenant, func(ctx context.Context, tx *postgres.Tx) error {
		keys, err := tx.Keys(ctx)
		if err != nil {
			return err
		}
		k, _ := keys.Tokens.Current()
		c.Tenant = tx.Tenant.Number
		tok, err = token.Sign(k, c)
		return err
	})
	return tok
}

func (w *world) link(tenant, to string) int64 {
	return int64(pgtest.One[int32](w.t, w.db, tenant, "SELECT id FROM link WHERE url = $1", to))
}

// answer is what the function answered.
type answer struct {
	status int
	header http.Header
	body   string
}

// do sends a request as somebody at an address does, and follows no redirect.
func (w *world) do(method, path, from, agent string, form url.Values) answer {
	w.t.Helper()
	var body io.Reader
	if form != nil {
		body = strings.NewReader(form.Encode())
	}
	r, err := http.NewRequest(method, w.url+path, body)
	if err != nil {
		w.t.Fatal(err)
	}
	r.Header.Set("User-Agent", agent)
	r.Header.Set("X-Forwarded-For", from)
	if form != nil {
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	return w.send(r)
}

func (w *world) send(r *http.Request) answer {
	w.t.Helper()
	client := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	res, err := client.Do(r)
	if err != nil {
		w.t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	return answer{res.StatusCode, res.Header, string(b)}
}

func (w *world) get(path string) answer {
	return w.do(http.MethodGet, path, "203.0.113.1", browser, nil)
}

// move moves the tenant's clock.
func (w *world) move(tenant string, d time.Duration) {
	w.t.Helper()
	if _, err := w.admin.MoveClock(context.Background(), tenant, d); err != nil {
		w.t.Fatal(err)
	}
}

// sweep does what schedule.due asks for, and checks every event that it posts.
func (w *world) sweep(tenant string) (types []string) {
	w.t.Helper()
	err := w.Sweep(context.Background(), tenant, nil, func(_ context.Context, _ string, e cloudevents.Event) error {
		eventtest.Validate(w.t, e)
		types = append(types, e.Type())
		return nil
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return types
}

// stats are the rows of stat, one a line.
func (w *world) stats(tenant string) []string {
	return pgtest.All[string](w.t, w.db, tenant, `SELECT kind || ' ' || verdict || ' link=' || (link > 0) || ' tracked=' || tracked || ' n=' || n || ' firsts=' || firsts || CASE WHEN run = 0 THEN ' norun' ELSE '' END
		FROM stat WHERE n <> 0 ORDER BY kind, verdict, link, tracked`)
}

func (w *world) facts(tenant, like string) []string {
	return pgtest.All[string](w.t, w.db, tenant, "SELECT kind || ' ' || name FROM fact WHERE kind LIKE $1 ORDER BY id", like)
}
