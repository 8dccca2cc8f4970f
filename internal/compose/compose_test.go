package compose

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/onda-run/onda/internal/apply"
	"github.com/onda-run/onda/internal/delivery"
	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/token"
)

var update = flag.Bool("update", false, "write the golden files anew")

func TestMain(m *testing.M) { pgtest.Main(m) }

const documents = `
apiVersion: onda/v1
kind: Topic
metadata: {name: newsletter, title: "Newsletter"}
spec: {optIn: single, title: {en: "The newsletter", fr: "La lettre"}}
---
apiVersion: onda/v1
kind: Field
metadata: {name: first_name}
spec: {type: text, personal: true}
---
apiVersion: onda/v1
kind: Field
metadata: {name: locale}
spec: {type: language}
---
apiVersion: onda/v1
kind: Layout
metadata: {name: plain}
spec:
  html: '<html><body><h1>Acme</h1>{{ content }}<p><a href="{{ webview_url }}">In a browser</a> <a href="{{ preferences_url }}">Preferences</a> <a href="{{ unsubscribe_url }}">Leave {{ topic.title }}</a></p></body></html>'
---
apiVersion: onda/v1
kind: Email
metadata: {name: news}
spec:
  topic: newsletter
  layout: plain
  from: "Acme <news@acme.example>"
  replyTo: "hello@acme.example"
  subject: "News for {{ contact.first_name | default: 'you' }}"
  preheader: "What is new"
  html: '<p>Hello {{ contact.first_name }}, <a href="https://acme.example/a?x=1&amp;y=2">read</a></p>'
  locales:
    fr:
      subject: "Nouvelles pour {{ contact.first_name }}"
      html: '<p>Bonjour {{ contact.first_name }}, <a href="https://acme.example/fr">lire</a></p>'
---
apiVersion: onda/v1
kind: Email
metadata: {name: receipt}
spec:
  transactional: true
  from: "Acme <shop@acme.example>"
  subject: "Order {{ data.order.number }}"
  markdown: |
    Thank you for **{{ data.order.number }}**.

    <ul>{% for item in data.order.items %}<li>{{ item }}</li>{% endfor %}</ul>
`

// bench is a tenant with emails and a composer.
type bench struct {
	t  testing.TB
	d  *pgtest.Database
	db *postgres.DB
	c  *Composer
}

func setUp(tb testing.TB) *bench {
	tb.Helper()
	d := pgtest.New(tb)
	b := &bench{t: tb, d: d, db: d.DB(tb), c: New(Config{LinkURL: "https://links.example.com/", ReturnPathDomain: "bounce.example.com"})}
	// A key that is always the same, so that tokens are.
	pgtest.Exec(tb, b.db, pgtest.Acme, "UPDATE key SET secret = decode(repeat('0b', 32), 'hex') WHERE kind = 'hmac'")
	b.apply(documents)
	return b
}

func (b *bench) apply(docs string) {
	b.t.Helper()
	b.applyTo(pgtest.Acme, docs)
}

func (b *bench) applyTo(tenant, docs string) {
	b.t.Helper()
	if _, _, err := apply.Directory(b.t.Context(), b.db, tenant, fstest.MapFS{"all.yaml": {Data: []byte(docs)}}, nil); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) contact(email, fields string) int64 {
	b.t.Helper()
	return pgtest.One[int64](b.t, b.db, pgtest.Acme, "INSERT INTO contact (email, fields) VALUES ($1, $2) RETURNING id", email, fields)
}

func (b *bench) document(name string) int64 {
	b.t.Helper()
	return pgtest.One[int64](b.t, b.db, pgtest.Acme, "SELECT current FROM entity WHERE kind = 'Email' AND name = $1", name)
}

// mail makes the mail of a delivery to a contact.
func (b *bench) mail(email string, to, id int64) (m *Mail) {
	b.t.Helper()
	pgtest.In(b.t, b.db, pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) error {
		e, err := b.c.ByName(ctx, tx, email)
		if err != nil {
			return err
		}
		a, err := e.Audience(ctx, tx, []int64{to})
		if err != nil {
			return err
		}
		m, err = a.Mail(to, id, 7)
		return err
	})
	m.Now = time.Date(2026, 11, 24, 9, 0, 0, 0, time.UTC)
	return m
}

// Three kinds of mail, as they go out to the byte: headers, MIME, links.
func TestMailsAsTheyGoOut(t *testing.T) {
	t.Parallel()
	b := setUp(t)
	ana := b.contact("ana@x.example", `{"first_name": "Ana & \"Co\""}`)
	luc := b.contact("luc@x.example", `{"first_name": "Luc", "locale": "fr-CA"}`)
	pgtest.Exec(t, b.db, pgtest.Acme, "INSERT INTO subscription (contact, purpose, state, consent, at) VALUES ($1, 'tracking.email', 'granted', 0, onda.now())", ana)
	receipt := b.mail("receipt", luc, delivery.ID(11, 1))
	receipt.Data = map[string]any{"order": map[string]any{"number": "A-7", "items": []any{"one <b>", "two"}}}
	receipt.Attachments = []delivery.Attachment{{Name: "receipt.txt", Type: "text/plain", Content: []byte("paid\n")}}
	for name, m := range map[string]*Mail{
		"tracked":       b.mail("news", ana, delivery.ID(9, 1)),
		"aggregate":     b.mail("news", luc, delivery.ID(9, 2)),
		"transactional": receipt,
	} {
		out, err := m.Append(nil)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		got := append([]byte("MAIL FROM:<"+out.From+">\nRCPT TO:<"+out.To+">\n\n"), bytes.ReplaceAll(out.Content, []byte("\r\n"), []byte("\n"))...)
		file := filepath.Join("testdata", name+".eml")
		if *update {
			if err := os.WriteFile(file, got, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(string(want), string(got)); d != "" {
			t.Errorf("%s (-want +got):\n%s", name, d)
		}
	}
}

// Every link of a mail proves what it may prove, and no more.
func TestLinksSayWhoOnlyWhereThatIsAllowed(t *testing.T) {
	t.Parallel()
	b := setUp(t)
	to := b.contact("ana@x.example", `{"first_name": "Ana"}`)
	id := delivery.ID(9, 1)
	keys, err := b.db.Keys(context.Background(), pgtest.Acme)
	if err != nil {
		t.Fatal(err)
	}
	link := pgtest.One[int64](t, b.db, pgtest.Acme, "SELECT id FROM link WHERE url LIKE '%/a?%'")
	topic := pgtest.One[int32](t, b.db, pgtest.Acme, "SELECT id FROM entity WHERE kind = 'Topic'")
	claims := func(html, path string, p token.Purpose) (token.Claims, bool) {
		t.Helper()
		_, rest, ok := strings.Cut(html, "https://links.example.com"+path)
		if !ok {
			return token.Claims{}, false
		}
		text := rest[:strings.IndexAny(rest, `".`)]
		c, err := keys.Verifier.Verify(text, p, time.Now())
		if err != nil {
			t.Errorf("%s%s: %v", path, text, err)
		}
		c.Key, c.Tenant = 0, 0
		return c, true
	}
	for state, want := range map[string]struct {
		click token.Claims
		pixel bool
		plain bool
	}{
		"granted": {click: token.Claims{Purpose: token.Click, Link: link, Delivery: id}, pixel: true},
		"default": {click: token.Claims{Purpose: token.Click, Link: link}},
		"none":    {plain: true},
	} {
		switch state {
		case "granted":
			pgtest.Exec(t, b.db, pgtest.Acme, "INSERT INTO subscription (contact, purpose, state, consent, at) VALUES ($1, 'tracking.email', 'granted', 0, onda.now())", to)
		default:
			pgtest.Exec(t, b.db, pgtest.Acme, "DELETE FROM subscription WHERE contact = $1", to)
			settings := "aggregate"
			if state == "none" {
				settings = "none"
			}
			b.apply("apiVersion: onda/v1\nkind: Settings\nmetadata: {name: settings}\nspec: {tracking: " + settings + "}\n")
		}
		c, err := b.mail("news", to, id).Render()
		if err != nil {
			t.Fatal(err)
		}
		if got, ok := claims(c.HTML, "/c/", token.Click); ok == want.plain || !cmp.Equal(got, want.click) {
			t.Errorf("%s: click %+v, want %+v", state, got, want.click)
		}
		if strings.Contains(c.HTML, "<img") != want.pixel {
			t.Errorf("%s: an image where there is no pixel: %s", state, c.HTML)
		}
		if got, ok := claims(c.HTML, "/o/", token.Open); ok != want.pixel || ok && got.Delivery != id {
			t.Errorf("%s: pixel %v %+v", state, ok, got)
		}
		if plain := strings.Contains(c.HTML, `href="https://acme.example/a?x=1&amp;y=2"`); plain != want.plain {
			t.Errorf("%s: plain link %v", state, plain)
		}
		if got, ok := claims(c.HTML, "/u/", token.Unsubscribe); !ok || got.Contact != to || got.Topic != topic {
			t.Errorf("%s: unsubscribe %v %+v", state, ok, got)
		}
		if got, ok := claims(c.HTML, "/w/", token.WebView); !ok || got.Delivery != id {
			t.Errorf("%s: web view %v %+v", state, ok, got)
		}
	}
}

var hosts = regexp.MustCompile(`https://([a-z.]+)/[couwp]/`)

// One process makes the mails of many tenants: the links of each lead to its own host, from the moment that it has one.
func TestLinksLeadToTheTenantsOwnHost(t *testing.T) {
	t.Parallel()
	b := setUp(t)
	b.applyTo(pgtest.Brava, documents)
	a := b.d.Admin(t)
	for _, step := range []struct {
		what, tenant string
		link         []string
		want         string
	}{
		{"none of its own", "acme", nil, "links.example.com"},
		{"one of its own", "acme", []string{"links.acme.example"}, "links.acme.example"},
		{"the other tenant has none", "brava", nil, "links.example.com"},
		{"the other tenant has one too", "brava", []string{"news.brava.example"}, "news.brava.example"},
		{"the first is as it was", "acme", []string{"links.acme.example"}, "links.acme.example"},
		{"a new one, and the old one stays", "acme", []string{"go.acme.example", "links.acme.example"}, "go.acme.example"},
		{"none any more", "acme", nil, "links.example.com"},
	} {
		if _, err := a.SetHosts(t.Context(), step.tenant, step.link, []string{"forms." + step.tenant + ".example"}); err != nil {
			t.Fatal(err)
		}
		pgtest.In(t, b.db, step.tenant, func(ctx context.Context, tx *postgres.Tx) error {
			var to int64
			if err := tx.QueryRow(ctx, "INSERT INTO contact (email) VALUES (gen_random_uuid() || '@x.example') RETURNING id").Scan(&to); err != nil {
				return err
			}
			if _, err := tx.Exec(ctx, "INSERT INTO subscription (contact, purpose, state, consent, at) VALUES ($1, 'tracking.email', 'granted', 0, onda.now())", to); err != nil {
				return err
			}
			e, err := b.c.ByName(ctx, tx, "news")
			if err != nil {
				return err
			}
			audience, err := e.Audience(ctx, tx, []int64{to})
			if err != nil {
				return err
			}
			sent, err := audience.Mail(to, delivery.ID(9, 1), 7)
			if err != nil {
				return err
			}
			preview, err := b.c.Preview(ctx, tx, "news", Previewed{Contact: to})
			if err != nil {
				return err
			}
			for _, c := range []struct {
				what  string
				m     *Mail
				links int
			}{
				{"sent", sent, 10},      // click, pixel, web view, preferences, unsubscribe: all but the pixel and the unseen link in both parts
				{"preview", preview, 4}, // preferences, unsubscribe
			} {
				envelope, msg, err := c.m.Message()
				if err != nil {
					return err
				}
				found := hosts.FindAllStringSubmatch(msg.HTML+msg.Text, -1)
				for _, f := range append(found, hosts.FindStringSubmatch(msg.ListUnsubscribe.URL)) {
					if len(f) == 0 || f[1] != step.want {
						t.Errorf("%s, %s: a link to %q, want %s", step.what, c.what, f, step.want)
					}
				}
				if len(found) != c.links {
					t.Errorf("%s, %s: %d links, want %d: %s", step.what, c.what, len(found), c.links, msg.HTML)
				}
				if strings.ContainsAny(envelope.From, ":/") || !strings.HasSuffix(msg.ListUnsubscribe.Mailto, "@bounce.example.com") {
					t.Errorf("%s, %s: from %s, unsubscribe to %s", step.what, c.what, envelope.From, msg.ListUnsubscribe.Mailto)
				}
			}
			return nil
		})
	}
}

func TestALayoutThatChangesIsSeenByMailsAfterIt(t *testing.T) {
	t.Parallel()
	b := setUp(t)
	to := b.contact("ana@x.example", `{}`)
	render := func() string {
		c, err := b.mail("news", to, delivery.ID(9, 1)).Render()
		if err != nil {
			t.Fatal(err)
		}
		return c.HTML
	}
	if !strings.Contains(render(), "<h1>Acme</h1>") {
		t.Error("the layout is not there")
	}
	b.apply(strings.Replace(documents, "<h1>Acme</h1>", "<h1>Acme Ltd</h1>", 1))
	if !strings.Contains(render(), "<h1>Acme Ltd</h1>") {
		t.Error("the layout is the old one")
	}
}

func TestMissingData(t *testing.T) {
	t.Parallel()
	b := setUp(t)
	for name, c := range map[string]struct {
		data map[string]any
		want []string
	}{
		"nothing": {nil, []string{"data.order.items", "data.order.number"}},
		"half":    {map[string]any{"order": map[string]any{"number": nil}}, []string{"data.order.items"}},
		"all":     {map[string]any{"order": map[string]any{"number": 1, "items": []any{}}}, nil},
	} {
		pgtest.In(t, b.db, pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) error {
			e, err := b.c.ByName(ctx, tx, "receipt")
			if err != nil {
				return err
			}
			if d := cmp.Diff(c.want, e.MissingData(c.data)); d != "" {
				t.Errorf("%s (-want +got):\n%s", name, d)
			}
			return nil
		})
	}
}

func TestPreviewAndWebView(t *testing.T) {
	t.Parallel()
	b := setUp(t)
	ana := b.contact("ana@x.example", `{"first_name": "Ana"}`)
	pgtest.Exec(t, b.db, pgtest.Acme, "INSERT INTO subscription (contact, purpose, state, consent, at) VALUES ($1, 'tracking.email', 'granted', 0, onda.now())", ana)
	run := pgtest.One[int64](t, b.db, pgtest.Acme, "INSERT INTO run (kind, entity, document, state) SELECT 'broadcast', entity, id, 'running' FROM document WHERE id = $1 RETURNING id", b.document("news"))
	var id int64
	pgtest.In(t, b.db, pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) error {
		batches, err := delivery.Enqueue(ctx, tx, delivery.Plan{Run: run, Email: b.document("news"), Contacts: []int64{ana}})
		if err != nil {
			return err
		}
		id = delivery.ID(batches[0].ID, 1)
		view, err := b.c.WebView(ctx, tx, id)
		if err != nil {
			return err
		}
		if !strings.Contains(view.HTML, "Hello Ana") || !strings.Contains(view.HTML, "/c/") || strings.Contains(view.HTML, "<img") {
			t.Errorf("web view: %s", view.HTML)
		}
		if _, err := b.c.WebView(ctx, tx, id+1); !errors.Is(err, ErrUnknown) {
			t.Errorf("a delivery that is none: %v", err)
		}
		m, err := b.c.Preview(ctx, tx, "news", Previewed{})
		if err != nil {
			return err
		}
		_, msg, err := m.Message()
		if err != nil {
			return err
		}
		if strings.Contains(msg.HTML, "links.example.com") || msg.Subject != "News for you" {
			t.Errorf("preview to nobody: %q %s", msg.Subject, msg.HTML)
		}
		if _, err := b.c.Preview(ctx, tx, "nothing", Previewed{}); !errors.Is(err, ErrUnknown) {
			t.Errorf("preview of nothing: %v", err)
		}
		if _, err := b.c.Preview(ctx, tx, "news", Previewed{Contact: 4711}); !errors.Is(err, ErrNobody) {
			t.Errorf("preview to a contact that is none: %v", err)
		}
		return nil
	})
	pgtest.Exec(t, b.db, pgtest.Acme, "UPDATE contact SET erased_at = now() WHERE id = $1", ana)
	pgtest.In(t, b.db, pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) error {
		if _, err := b.c.WebView(ctx, tx, id); !errors.Is(err, ErrNobody) {
			t.Errorf("web view of a person who was erased: %v", err)
		}
		return nil
	})
	pgtest.In(t, b.db, pgtest.Brava, func(ctx context.Context, tx *postgres.Tx) error {
		if _, err := b.c.ByName(ctx, tx, "news"); !errors.Is(err, ErrUnknown) {
			t.Errorf("the other tenant has acme's email: %v", err)
		}
		return nil
	})
}

func TestCheckLinkURL(t *testing.T) {
	t.Parallel()
	for to, ok := range map[string]bool{
		"https://links.example.com": true, "https://links.example.com/x": true, "http://localhost:8080": true, "http://127.0.0.1:8080": true,
		"http://links.example.com": false, "links.example.com": false, "https://links.example.com?x=1": false, "https://u:p@links.example.com": false, "": false,
	} {
		if err := (&Config{LinkURL: to}).Check(); (err == nil) != ok {
			t.Errorf("%q: %v", to, err)
		}
	}
}

func BenchmarkBuild(b *testing.B) {
	w := setUp(b)
	m := w.mail("news", w.contact("ana@x.example", `{"first_name": "Ana"}`), delivery.ID(9, 1))
	for b.Loop() {
		if _, err := m.Append(nil); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkNewsletter is a mail of plain fields and tracked links, as most are.
func BenchmarkNewsletter(b *testing.B) {
	w := setUp(b)
	body := `<p>Dear {{ contact.first_name }}</p><p><a href="{{ unsubscribe_url }}">Leave</a></p>`
	for i := range 8 {
		body += fmt.Sprintf(`<p>%s <a href="https://example.com/stories/%d">Read on</a>, {{ contact.first_name }}</p>`, strings.Repeat("The regatta begins at nine, wind permitting. ", 20), i)
	}
	w.apply("---\napiVersion: onda/v1\nkind: Email\nmetadata: {name: letter}\nspec:\n  topic: newsletter\n  from: \"Acme <news@acme.example>\"\n  subject: \"News for {{ contact.first_name }}\"\n  html: '" + body + "'\n")
	to := w.contact("ana@x.example", `{"first_name": "Ana"}`)
	pgtest.Exec(b, w.db, pgtest.Acme, "INSERT INTO subscription (contact, purpose, state, consent, at) VALUES ($1, 'tracking.email', 'granted', 0, onda.now())", to)
	m := w.mail("letter", to, delivery.ID(9, 1))
	var buf []byte
	b.ReportAllocs()
	for b.Loop() {
		m.own = nil // else the next has its links already
		out, err := m.Append(buf[:0])
		if err != nil {
			b.Fatal(err)
		}
		buf = out.Content
	}
}

// What the gate says of each contact comes with the audience, of one that is not there too, and what it has beside its fields only where the texts name it.
func TestAudienceKnowsTheGate(t *testing.T) {
	t.Parallel()
	b := setUp(t)
	b.apply(`
apiVersion: onda/v1
kind: Email
metadata: {name: since}
spec:
  topic: newsletter
  from: "Acme <news@acme.example>"
  subject: "Since {{ contact.created | date: '%Y' }}"
  html: '<p>{{ contact.tags | join: ", " }} {{ contact.score }} <a href="{{ unsubscribe_url }}">Leave</a></p>'
`)
	granted, never := b.contact("granted@x.example", "{}"), b.contact("never@x.example", "{}")
	pgtest.Exec(t, b.db, pgtest.Acme, "INSERT INTO subscription (contact, purpose, state, consent, at) VALUES ($1, 'newsletter', 'granted', 0, onda.now())", granted)
	pgtest.In(t, b.db, pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) error {
		for email, want := range map[string]map[int64]string{
			"news":    {granted: "", never: "no_consent", 999: "erased"},
			"receipt": {granted: "", never: "", 999: "erased"},
			"since":   {granted: "", never: "no_consent", 999: "erased"},
		} {
			e, err := b.c.ByName(ctx, tx, email)
			if err != nil {
				return err
			}
			a, err := e.Audience(ctx, tx, []int64{granted, never, 999})
			if err != nil {
				return err
			}
			for id, why := range want {
				if got := a.Refused(id); got != why {
					t.Errorf("%s, contact %d: refused as %q, want %q", email, id, got, why)
				}
			}
			if _, err := a.Mail(999, 1, 1); err == nil {
				t.Errorf("%s: there is a mail to nobody", email)
			}
		}
		return nil
	})
	pgtest.Exec(t, b.db, pgtest.Acme, `UPDATE contact SET scores = '{"score": 7}', tags = '{vip}' WHERE id = $1`, granted)
	for id, want := range map[int64]string{granted: "<p>vip 7 ", never: "<p> 0 "} {
		c, err := b.mail("since", id, delivery.ID(9, 1)).Render()
		if err != nil || !strings.Contains(c.HTML, want) {
			t.Errorf("contact %d: %v, %q without %q", id, err, c.HTML, want)
		}
	}
}
