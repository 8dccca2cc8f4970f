package bounce

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/sethvargo/go-envconfig"
	"go.uber.org/zap/zaptest"

	"github.com/onda-run/onda/internal/delivery"
	"github.com/onda-run/onda/internal/fn"
	"github.com/onda-run/onda/internal/mail"
	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/report"
	"github.com/onda-run/onda/internal/token"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// world is a tenant with one contact who was sent one mail.
type world struct {
	t        *testing.T
	admin    *postgres.Admin
	db       *postgres.DB
	in       *fn.Instance
	keys     map[string]token.ProgramKey // by tenant; "public" is acme's public one
	contact  int64
	delivery int64
	topic    int32
	number   int32
}

func newWorld(t *testing.T) *world {
	t.Helper()
	d := pgtest.New(t)
	w := &world{t: t, admin: d.Admin(t), db: d.DB(t), keys: map[string]token.ProgramKey{}}
	admin := w.admin
	ctx := context.Background()
	tenants, err := admin.Tenants(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, tn := range tenants {
		add := func(name string, kind token.KeyKind) {
			k, err := token.NewProgramKey(kind, tn.Number)
			if err != nil {
				t.Fatal(err)
			}
			sum := k.Hash()
			if err := admin.AddProgramKey(ctx, tn.Name, string(kind), "test", sum[:]); err != nil {
				t.Fatal(err)
			}
			w.keys[name] = k
		}
		add(tn.Name, token.SecretKey)
		if tn.Name == pgtest.Acme {
			w.number = tn.Number
			add("public", token.PublicKey)
		}
	}
	pgtest.In(t, w.db, pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) error {
		var run, email int64
		err := tx.QueryRow(ctx, `WITH t AS (INSERT INTO entity (kind, name) VALUES ('Topic', 'newsletter') RETURNING id),
			e AS (INSERT INTO entity (kind, name) VALUES ('Email', 'welcome') RETURNING id),
			d AS (INSERT INTO document (entity, version, spec, hash) SELECT id, 1, '{"spec": {"topic": "newsletter"}}', '' FROM e RETURNING id, entity),
			r AS (INSERT INTO run (kind, entity, document, state) SELECT 'broadcast', entity, id, 'running' FROM d RETURNING id),
			c AS (INSERT INTO contact (email) VALUES ('ada@example.com') RETURNING id)
			SELECT t.id, d.id, r.id, c.id FROM t, d, r, c`).Scan(&w.topic, &email, &run, &w.contact)
		if err != nil {
			return err
		}
		batches, err := delivery.Enqueue(ctx, tx, delivery.Plan{Run: run, Email: email, Contacts: []int64{w.contact}})
		if err != nil {
			return err
		}
		w.delivery = delivery.ID(batches[0].ID, 1)
		_, err = tx.Exec(ctx, `WITH s AS (INSERT INTO consent (contact, purpose, state, basis) VALUES ($1, 'newsletter', 'granted', 'test') RETURNING id)
			INSERT INTO subscription (contact, purpose, state, consent, at) SELECT $1, 'newsletter', 'granted', id, onda.now() FROM s`, w.contact)
		return err
	})
	w.in, err = fn.Start(ctx, "bounce", Build, envconfig.MapLookuper(map[string]string{"ONDA_DATABASE_URL": d.URL}), zaptest.NewLogger(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.in.Stop(ctx) })
	return w
}

func (w *world) sign(c token.Claims) string {
	w.t.Helper()
	k, err := w.db.Keys(context.Background(), pgtest.Acme)
	if err != nil {
		w.t.Fatal(err)
	}
	key, _ := k.Tokens.Current()
	c.Tenant = w.number
	tok, err := token.Sign(key, c)
	if err != nil {
		w.t.Fatal(err)
	}
	return tok
}

func (w *world) returnPath() string {
	return mail.ReturnPath(w.sign(token.Claims{Purpose: token.ReturnPath, Delivery: w.delivery}), "bounce.acme.example")
}

// post posts a mail as the tenant's relay would, and answers the status and what became of it.
func (w *world) post(tenant string, key token.ProgramKey, body string, recipients ...string) (int, string) {
	w.t.Helper()
	r := httptest.NewRequest(http.MethodPost, "/bounces/"+tenant, strings.NewReader(body))
	r.Header.Set("Content-Type", "message/rfc822")
	r.SetBasicAuth(key.Reveal(), "")
	for _, a := range recipients {
		r.Header.Add(RecipientHeader, a)
	}
	rec := httptest.NewRecorder()
	w.in.ServeHTTP(rec, r)
	return rec.Code, strings.TrimSpace(rec.Body.String())
}

// state is what a test compares: the delivery, suppression and consent.
func (w *world) state() string {
	w.t.Helper()
	return pgtest.One[string](w.t, w.db, pgtest.Acme, `SELECT concat_ws(' ',
		coalesce((SELECT state || CASE WHEN delivered_at IS NULL THEN '' ELSE ' delivered' END || coalesce(' bounced:' || bounce_class, '') ||
			CASE WHEN complained_at IS NULL THEN '' ELSE ' complained' END FROM delivery WHERE id = $1), 'queued'),
		'suppressed:' || (SELECT string_agg(reason, ',' ORDER BY reason) FROM suppression),
		(SELECT state FROM subscription WHERE contact = $2 AND purpose = 'newsletter'))`, w.delivery, w.contact)
}

func dsn(action, status, diagnostic string) string {
	return strings.ReplaceAll(fmt.Sprintf(`From: MAILER-DAEMON@mx.example
To: <>
Subject: Delivery report
MIME-Version: 1.0
Content-Type: multipart/report; report-type=delivery-status; boundary="b"

--b
Content-Type: text/plain

Sorry.

--b
Content-Type: message/delivery-status

Reporting-MTA: dns; mx.example

Final-Recipient: rfc822; ada@example.com
Action: %s
Status: %s
Diagnostic-Code: smtp; %s

--b--
`, action, status, diagnostic), "\n", "\r\n")
}

func arf(feedback, unsubscribe string) string {
	return strings.ReplaceAll(fmt.Sprintf(`From: fbl@provider.example
Subject: complaint
MIME-Version: 1.0
Content-Type: multipart/report; report-type=feedback-report; boundary="b"

--b
Content-Type: text/plain

A report.

--b
Content-Type: message/feedback-report

Feedback-Type: %s
User-Agent: Provider/1
Version: 1

--b
Content-Type: message/rfc822

From: news@acme.example
Subject: news
List-Unsubscribe: <https://links.example/u/%s>

Hello.

--b--
`, feedback, unsubscribe), "\n", "\r\n")
}

func TestWhatComesBack(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		body         func(w *world) string
		to           func(w *world) string
		result, want string
	}{
		"a mailbox that is not there": {
			body: func(*world) string { return dsn("failed", "5.1.1", "550 5.1.1 no such user") }, to: (*world).returnPath,
			result: "bounced", want: "sent bounced:hard suppressed:bounce granted",
		},
		"a full mailbox": {
			body: func(*world) string { return dsn("failed", "5.2.2", "552 5.2.2 mailbox full") }, to: (*world).returnPath,
			result: "bounced", want: "sent bounced:soft granted",
		},
		"a block is our fault": {
			body: func(*world) string {
				return dsn("failed", "5.7.1", "550 5.7.1 blocked, poor reputation of your network")
			}, to: (*world).returnPath,
			result: "bounced", want: "sent bounced:block granted",
		},
		"still trying": {
			body: func(*world) string { return dsn("delayed", "4.4.1", "timed out") }, to: (*world).returnPath,
			result: "delayed", want: "queued granted",
		},
		"delivered": {
			body: func(*world) string { return dsn("delivered", "2.0.0", "250 ok") }, to: (*world).returnPath,
			result: "delivered", want: "sent delivered granted",
		},
		"nobody knows which mail": {
			body: func(*world) string { return dsn("failed", "5.1.1", "550 5.1.1 no such user") }, to: func(*world) string { return "postmaster@acme.example" },
			result: "unattributed", want: "queued granted",
		},
		"a forged token": {
			body: func(*world) string { return dsn("failed", "5.1.1", "550 5.1.1 no such user") },
			to: func(w *world) string {
				rp := w.returnPath()
				last := "a"
				if rp[20] == 'a' {
					last = "b"
				}
				return rp[:20] + last + rp[21:]
			},
			result: "unattributed", want: "queued granted",
		},
		"a mail of another tenant": {
			body: func(*world) string { return dsn("failed", "5.1.1", "550 5.1.1 no such user") },
			to: func(w *world) string {
				k, err := w.db.Keys(context.Background(), pgtest.Brava)
				if err != nil {
					w.t.Fatal(err)
				}
				key, _ := k.Tokens.Current()
				tok, err := token.Sign(key, token.Claims{Purpose: token.ReturnPath, Tenant: w.number + 1, Delivery: w.delivery})
				if err != nil {
					w.t.Fatal(err)
				}
				return mail.ReturnPath(tok, "bounce.acme.example")
			},
			result: "unattributed", want: "queued granted",
		},
		"a complaint": {
			body: func(w *world) string { return arf("abuse", "redacted") }, to: (*world).returnPath,
			result: "complained", want: "sent complained suppressed:complaint withdrawn",
		},
		"a complaint that only says how to unsubscribe": {
			body: func(w *world) string {
				return arf("abuse", w.sign(token.Claims{Purpose: token.Unsubscribe, Contact: w.contact, Topic: w.topic}))
			},
			to:     func(*world) string { return "fbl@acme.example" },
			result: "complained", want: "queued suppressed:complaint withdrawn",
		},
		"not spam after all": {
			body: func(w *world) string { return arf("not-spam", "x") }, to: (*world).returnPath,
			result: "ignored", want: "queued granted",
		},
		"an automatic reply": {
			body: func(*world) string {
				return "From: ada@example.com\r\nSubject: away\r\nAuto-Submitted: auto-replied (vacation)\r\n\r\nError 550 5.1.1 is what I never send.\r\n"
			}, to: (*world).returnPath,
			result: "autoreplied", want: "sent delivered granted",
		},
		"an automatic reply to somebody else's mail": {
			body: func(*world) string {
				return "From: ada@example.com\r\nAuto-Submitted: auto-replied\r\nIn-Reply-To: <d1sl.t1@acme.example>\r\n\r\n"
			},
			to:     func(*world) string { return "news@acme.example" },
			result: "unattributed", want: "queued granted",
		},
		"a report nested ten deep": {
			body: func(*world) string {
				body := dsn("failed", "5.1.1", "550 5.1.1 no such user")
				for i := range 10 {
					body = fmt.Sprintf("Content-Type: multipart/mixed; boundary=\"x%d\"\r\n\r\n--x%[1]d\r\n%s--x%[1]d--\r\n", i, body)
				}
				return body
			}, to: (*world).returnPath,
			result: "ignored", want: "queued granted",
		},
		"a report in ISO-2022-JP": {
			body: func(*world) string {
				return strings.Replace(dsn("failed", "5.1.1", "550 5.1.1 no such user"), "text/plain\r\n\r\nSorry.",
					"text/plain; charset=iso-2022-jp\r\n\r\n\x1b$B%a!<%k\x1b(B", 1)
			}, to: (*world).returnPath,
			result: "bounced", want: "sent bounced:hard suppressed:bounce granted",
		},
		"a report that is none": {
			body: func(*world) string {
				return strings.Replace(dsn("failed", "5.1.1", "550"), "Final-Recipient: rfc822; ada@example.com\r\nAction: failed", "\x00\x1b", 1)
			}, to: (*world).returnPath,
			result: "ignored", want: "queued granted",
		},
		"an answer by a person": {
			body: func(*world) string { return "From: ada@example.com\r\nSubject: Re: news\r\n\r\nThank you!\r\n" }, to: (*world).returnPath,
			result: "ignored", want: "queued granted",
		},
		"unsubscribe by mail": {
			body: func(*world) string { return "From: ada@example.com\r\nSubject: unsubscribe\r\n\r\n" },
			to: func(w *world) string {
				return "u+" + strings.ToUpper(w.sign(token.Claims{Purpose: token.Unsubscribe, Contact: w.contact, Topic: w.topic})) + "@bounce.acme.example"
			},
			result: "unsubscribed", want: "queued withdrawn",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			body, to := c.body(w), c.to(w)
			for range 2 { // a repeat changes nothing
				code, got := w.post(pgtest.Acme, w.keys[pgtest.Acme], body, to)
				if want := fmt.Sprintf(`{"result":%q}`, c.result); code != http.StatusOK || got != want {
					t.Errorf("%d %s, want %s", code, got, want)
				}
				if diff := cmp.Diff(c.want, w.state()); diff != "" {
					t.Error(diff)
				}
			}
			if n := pgtest.One[int](t, w.db, pgtest.Acme, "SELECT count(*) FROM (SELECT 1 FROM fact GROUP BY kind, name, contact, deliveries HAVING count(*) > 1) twice"); n != 0 {
				t.Errorf("%d facts were written twice", n)
			}
			if n := pgtest.One[int](t, w.db, pgtest.Brava, "SELECT (SELECT count(*) FROM fact) + (SELECT count(*) FROM suppression)"); n != 0 {
				t.Errorf("brava has %d rows of it", n)
			}
		})
	}
}

// Who leaves by mail, or by a report that says so, counts among the report's unsubscribes, once.
func TestUnsubscribesByMailAreReported(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	pgtest.Exec(t, w.db, pgtest.Acme, "INSERT INTO delivery (id, contact, state, at) VALUES ($1, $2, 'sent', onda.now())", w.delivery, w.contact)
	tok := w.sign(token.Claims{Purpose: token.Unsubscribe, Contact: w.contact, Topic: w.topic})
	unsubscribes := func() (n int64) {
		t.Helper()
		pgtest.In(t, w.db, pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) error {
			r, err := report.Load(ctx, tx, "welcome")
			if err == nil {
				n = r.Unsubscribes
			}
			return err
		})
		return n
	}
	if n := unsubscribes(); n != 0 {
		t.Fatalf("%d before any", n)
	}
	for range 2 {
		w.post(pgtest.Acme, w.keys[pgtest.Acme], "From: ada@example.com\r\nSubject: unsubscribe\r\n\r\n", "u+"+tok+"@bounce.acme.example")
		w.post(pgtest.Acme, w.keys[pgtest.Acme], arf("opt-out", tok), "fbl@acme.example")
		if n := unsubscribes(); n != 1 {
			t.Errorf("%d, want 1", n)
		}
	}
	// Who was merged into another leaves as that one, and who was erased is nobody.
	into := pgtest.One[int64](t, w.db, pgtest.Acme, "INSERT INTO contact (email) VALUES ('ada@example.org') RETURNING id")
	pgtest.Exec(t, w.db, pgtest.Acme, "UPDATE contact SET merged_into = $2 WHERE id = $1", w.contact, into)
	w.post(pgtest.Acme, w.keys[pgtest.Acme], "\r\n", "u+"+tok+"@bounce.acme.example")
	if state := pgtest.One[string](t, w.db, pgtest.Acme, "SELECT state FROM subscription WHERE contact = $1", into); state != "withdrawn" {
		t.Errorf("the one that is left is %s", state)
	}
	pgtest.Exec(t, w.db, pgtest.Acme, "UPDATE contact SET merged_into = NULL, erased_at = onda.now() WHERE id = $1", w.contact)
	pgtest.Exec(t, w.db, pgtest.Acme, "DELETE FROM consent")
	if code, got := w.post(pgtest.Acme, w.keys[pgtest.Acme], "\r\n", "u+"+tok+"@bounce.acme.example"); code != http.StatusOK || got != `{"result":"unsubscribed"}` {
		t.Errorf("erased: %d %s", code, got)
	}
	if n := pgtest.One[int](t, w.db, pgtest.Acme, "SELECT count(*) FROM consent"); n != 0 {
		t.Errorf("%d entries of one who was erased", n)
	}
}

func TestUnknownIsSettled(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	pgtest.Exec(t, w.db, pgtest.Acme, "INSERT INTO delivery (id, contact, state) VALUES ($1, $2, 'unknown')", w.delivery, w.contact)
	w.post(pgtest.Acme, w.keys[pgtest.Acme], dsn("failed", "5.1.1", "550 5.1.1 no such user"), w.returnPath())
	if got, want := w.state(), "sent bounced:hard suppressed:bounce granted"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestWhoMayPost(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	body := dsn("failed", "5.1.1", "550 5.1.1 no such user")
	for name, c := range map[string]struct {
		tenant string
		key    token.ProgramKey
		want   int
	}{
		"no key":            {pgtest.Acme, token.ProgramKey{}, http.StatusUnauthorized},
		"a browser's key":   {pgtest.Acme, w.keys["public"], http.StatusUnauthorized},
		"another tenant's":  {pgtest.Acme, w.keys[pgtest.Brava], http.StatusForbidden},
		"at another tenant": {pgtest.Brava, w.keys[pgtest.Acme], http.StatusForbidden},
		"at nobody":         {"nobody", w.keys[pgtest.Acme], http.StatusForbidden},
	} {
		if code, body := w.post(c.tenant, c.key, body, w.returnPath()); code != c.want {
			t.Errorf("%s: %d %s, want %d", name, code, body, c.want)
		}
	}
	// Another tenant's token proves nothing here, though the key is right.
	if code, got := w.post(pgtest.Brava, w.keys[pgtest.Brava], body, w.returnPath()); code != http.StatusOK || got != `{"result":"unattributed"}` {
		t.Errorf("a token of acme at brava: %d %s", code, got)
	}
	if got := w.state(); got != "queued granted" {
		t.Errorf("state %q", got)
	}
}

func TestBadRequests(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, c := range []struct {
		method, path, kind, body string
		want                     int
	}{
		{http.MethodGet, "/bounces/acme", "", "", http.StatusMethodNotAllowed},
		{http.MethodPost, "/bounces/acme", "application/json", "{}", http.StatusUnsupportedMediaType},
		{http.MethodPost, "/bounces/acme/ses", "application/json", "{}", http.StatusNotFound}, // until its secret is set
		{http.MethodPost, "/bounces/acme", "message/rfc822", strings.Repeat("a", 5<<20), http.StatusRequestEntityTooLarge},
		{http.MethodPost, "/bounces/acme", "message/rfc822", "", http.StatusOK},
	} {
		r := httptest.NewRequest(c.method, c.path, strings.NewReader(c.body))
		r.Header.Set("Content-Type", c.kind)
		r.Header.Set("Authorization", "Bearer "+w.keys[pgtest.Acme].Reveal())
		rec := httptest.NewRecorder()
		w.in.ServeHTTP(rec, r)
		if rec.Code != c.want {
			t.Errorf("%s %s %s: %d %s, want %d", c.method, c.path, c.kind, rec.Code, rec.Body, c.want)
		}
	}
}
