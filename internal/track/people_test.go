package track

import (
	"bytes"
	"context"
	"mime/multipart"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/onda-run/onda/internal/contact"
	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/token"
)

// topicID is a topic's number in tokens.
func (w *world) topicID(tenant, name string) int32 {
	return pgtest.One[int32](w.t, w.db, tenant, "SELECT id FROM entity WHERE kind = 'Topic' AND name = $1", name)
}

func (w *world) states(tenant string, id int64) string {
	return strings.Join(pgtest.All[string](w.t, w.db, tenant, "SELECT purpose || '=' || state FROM subscription WHERE contact = $1 ORDER BY purpose", id), " ")
}

// consent writes into the ledger.
func (w *world) consent(tenant string, entries ...contact.Consent) {
	w.t.Helper()
	pgtest.In(w.t, w.db, tenant, func(ctx context.Context, tx *postgres.Tx) error {
		_, err := contact.Record(ctx, tx, "track", entries...)
		return err
	})
}

func (w *world) consents(tenant string) int {
	return pgtest.One[int](w.t, w.db, tenant, "SELECT count(*) FROM consent")
}

// Who is deleted for not confirming, at the moment of leaving or of choosing, leaves no ledger of nobody.
func TestPeopleWhoExpireMeanwhile(t *testing.T) {
	t.Parallel()
	for name, act := range map[string]func(w *world, ctx context.Context, tx *postgres.Tx, c token.Claims) error{
		"leaves": func(w *world, ctx context.Context, tx *postgres.Tx, c token.Claims) error {
			return w.unsubscribe(ctx, tx, c, nil)
		},
		"chooses": func(w *world, ctx context.Context, tx *postgres.Tx, c token.Claims) error {
			_, err := w.choose(ctx, tx, c, answers{shown: []string{"newsletter", "offers"}, ticked: []string{"offers"}})
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			id, _ := w.sent("acme", "ada@example.com", time.Hour)
			pgtest.Exec(t, w.db, "acme", "DELETE FROM subscription; DELETE FROM consent; UPDATE contact SET expires_at = now() - interval '1 second'")
			w.consent("acme", contact.Consent{Contact: id, Purpose: "newsletter", State: contact.Pending, Basis: "form"})
			claims := token.Claims{Contact: id, Topic: w.topicID("acme", "newsletter")}
			gone, commit := make(chan struct{}), make(chan struct{})
			var both sync.WaitGroup
			both.Go(func() {
				pgtest.In(t, w.db, "acme", func(ctx context.Context, tx *postgres.Tx) error {
					_, err := contact.Expire(ctx, tx, "track", 10)
					close(gone)
					<-commit
					return err
				})
			})
			<-gone
			both.Go(func() {
				pgtest.In(t, w.db, "acme", func(ctx context.Context, tx *postgres.Tx) error { return act(w, ctx, tx, claims) })
			})
			for pgtest.One[int](t, w.db, "acme", "SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid) WHERE NOT l.granted AND a.datname = current_database()") == 0 {
				if t.Context().Err() != nil {
					t.Fatal("nobody waits for the contact")
				}
			}
			close(commit)
			both.Wait()
			if n := w.consents("acme") + pgtest.One[int](t, w.db, "acme", "SELECT count(*) FROM subscription"); n != 0 {
				t.Errorf("%d rows are of nobody", n)
			}
		})
	}
}

func TestUnsubscribe(t *testing.T) {
	t.Parallel()
	oneClick := url.Values{"List-Unsubscribe": {"One-Click"}}
	for name, post := range map[string]func(w *world, path string) answer{
		"urlencoded": func(w *world, path string) answer { return w.do("POST", path, "203.0.113.1", "", oneClick) },
		"multipart": func(w *world, path string) answer {
			var b bytes.Buffer
			m := multipart.NewWriter(&b)
			if err := m.WriteField("List-Unsubscribe", "One-Click"); err != nil {
				w.t.Fatal(err)
			}
			if err := m.Close(); err != nil {
				w.t.Fatal(err)
			}
			r, err := http.NewRequest(http.MethodPost, w.url+path, &b)
			if err != nil {
				w.t.Fatal(err)
			}
			r.Header.Set("Content-Type", m.FormDataContentType())
			return w.send(r)
		},
		"no body": func(w *world, path string) answer { return w.do("POST", path, "203.0.113.1", "", nil) },
		"garbled": func(w *world, path string) answer {
			r, err := http.NewRequest(http.MethodPost, w.url+path+"?a=b;c", strings.NewReader("%zz"+strings.Repeat("x", maxForm)))
			if err != nil {
				w.t.Fatal(err)
			}
			r.Header.Set("Content-Type", "multipart/form-data")
			return w.send(r)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			id, _ := w.sent("acme", "ada@example.com", time.Hour)
			other, _ := w.sent("brava", "ada@example.com", time.Hour)
			path := "/u/" + w.token("acme", token.Claims{Purpose: token.Unsubscribe, Contact: id, Topic: w.topicID("acme", "newsletter")})
			before := w.consents("acme")
			for _, method := range []string{"GET", "HEAD"} { // link scanners
				if a := w.do(method, path, "198.51.100.1", browser, nil); a.status != 200 || strings.Contains(a.body, "ada@") {
					t.Errorf("%s: %d %s", method, a.status, a.body)
				}
			}
			if got := w.states("acme", id); got != "newsletter=granted" || w.consents("acme") != before {
				t.Fatalf("GET and HEAD changed it: %s", got)
			}
			if a := w.get(path); !strings.Contains(a.body, "Unsubscribe from Newsletter?") || !strings.Contains(a.body, "a…@example.com") || !strings.Contains(a.body, "Sail &amp; Ski") {
				t.Errorf("page: %s", a.body)
			}
			for range 2 { // the second changes nothing
				if a := post(w, path); a.status != 200 || a.header.Get("Location") != "" || !strings.Contains(a.body, "You are unsubscribed") {
					t.Errorf("POST: %d %s", a.status, a.body)
				}
			}
			if got := w.states("acme", id); got != "newsletter=withdrawn" {
				t.Errorf("after: %s", got)
			}
			if n := w.consents("acme"); n != before+1 {
				t.Errorf("%d entries in the ledger, want %d", n, before+1)
			}
			if got := w.states("brava", other); got != "newsletter=granted" {
				t.Errorf("brava: %s", got)
			}
			if diff := cmp.Diff([]string{"unsubscribe  link=false tracked=true n=1 firsts=1"}, w.stats("acme")); diff != "" {
				t.Error(diff)
			}
			if diff := cmp.Diff([]string{"consent.granted newsletter", "consent.withdrawn newsletter"}, w.facts("acme", "consent.%")); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestUnsubscribeFromEverythingWorksForEver(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id, _ := w.sent("acme", "ada@example.com", time.Hour)
	pgtest.In(t, w.db, "acme", func(ctx context.Context, tx *postgres.Tx) error {
		_, err := contact.Record(ctx, tx, "track",
			contact.Consent{Contact: id, Purpose: "offers", State: contact.Pending, Basis: "form"},
			contact.Consent{Contact: id, Purpose: contact.TrackingEmail, State: contact.Granted, Basis: "form"})
		return err
	})
	all := "/u/" + w.token("acme", token.Claims{Purpose: token.Unsubscribe, Contact: id})
	one := "/u/" + w.token("acme", token.Claims{Purpose: token.Unsubscribe, Contact: id, Topic: w.topicID("acme", "offers")})
	// Ten years later the key is retired, the topic taken away, and the delivery gone.
	pgtest.Exec(t, w.db, "acme", "UPDATE key SET retired_at = now() - interval '8 years' WHERE kind = 'hmac'")
	pgtest.Exec(t, w.db, "acme", "INSERT INTO key (kind, secret) VALUES ('hmac', decode(repeat('ab', 32), 'hex'))")
	pgtest.Exec(t, w.db, "acme", "UPDATE entity SET current = NULL WHERE kind = 'Topic'")
	pgtest.Exec(t, w.db, "acme", "DELETE FROM delivery")
	w = w.again() // a process that has not read the keys yet
	if a := w.do("POST", one, "203.0.113.1", "", nil); a.status != 200 {
		t.Errorf("one: %d", a.status)
	}
	if got := w.states("acme", id); got != "newsletter=granted offers=withdrawn tracking.email=granted" {
		t.Errorf("one: %s", got)
	}
	if a := w.do("POST", all, "203.0.113.1", "", nil); a.status != 200 {
		t.Errorf("all: %d", a.status)
	}
	if got := w.states("acme", id); got != "newsletter=withdrawn offers=withdrawn tracking.email=granted" {
		t.Errorf("all: %s", got)
	}
	if diff := cmp.Diff([]string{"unsubscribe  link=false tracked=true n=2 firsts=2 norun"}, w.stats("acme")); diff != "" {
		t.Error(diff)
	}
	// Nobody is there any more: still no error, and nothing is written.
	pgtest.Exec(t, w.db, "acme", "UPDATE contact SET erased_at = now(), email = NULL")
	n := w.consents("acme")
	if a := w.do("POST", all, "203.0.113.1", "", nil); a.status != 200 || w.consents("acme") != n {
		t.Errorf("erased: %d", a.status)
	}
}

func TestPreferences(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id, _ := w.sent("acme", "ada@example.com", time.Hour)
	path := "/p/" + w.token("acme", token.Claims{Purpose: token.Preferences, Contact: id, Topic: w.topicID("acme", "newsletter")})
	before := w.consents("acme")
	a := w.get(path)
	for _, want := range []string{"Newsletter", "Once a month, what is new.", "Offers", "Let us see which of our emails I open", `value="newsletter" id="on-newsletter" checked`, "Let us see which pages of our website I look at"} {
		if !strings.Contains(a.body, want) {
			t.Errorf("%q is not on the page", want)
		}
	}
	if strings.Contains(a.body, "Insiders") {
		t.Error("a topic that is not public is shown to who has not subscribed to it")
	}
	if w.do("HEAD", path, "", "", nil); w.consents("acme") != before {
		t.Error("GET or HEAD wrote to the ledger")
	}
	shown := []string{"newsletter", "offers", "tracking.email", "tracking.web"}
	if a := w.do("POST", path, "203.0.113.1", browser, url.Values{"shown": shown, "on": {"offers", "insiders", "tracking.email"}}); a.status != 200 || !strings.Contains(a.body, "Your choice is saved.") {
		t.Errorf("save: %d %s", a.status, a.body)
	}
	if got := w.states("acme", id); got != "newsletter=withdrawn offers=granted tracking.email=granted" {
		t.Errorf("after: %s", got)
	}
	proof := pgtest.One[string](t, w.db, "acme", "SELECT (proof->>'text') || length(proof->>'sha256') || (origin IS NOT NULL)::text || (origin_until > now())::text FROM consent WHERE purpose = 'offers'")
	if proof != "Offers64truetrue" {
		t.Errorf("proof %q", proof)
	}
	n := w.consents("acme")
	w.do("POST", path, "203.0.113.1", browser, url.Values{"shown": shown, "on": {"offers", "tracking.email"}})
	if w.consents("acme") != n {
		t.Error("the same choice was written twice")
	}
	w.do("POST", path, "203.0.113.1", browser, url.Values{"shown": {"offers"}}) // what was not shown stays
	if got := w.states("acme", id); got != "newsletter=withdrawn offers=withdrawn tracking.email=granted" {
		t.Errorf("after: %s", got)
	}
	w.do("POST", path, "203.0.113.1", browser, url.Values{"shown": shown, "on": {"newsletter", "tracking.email"}})
	w.do("POST", path, "203.0.113.1", browser, url.Values{"shown": {"newsletter"}, "on": {"newsletter", "tracking.email"}, "everything": {"off"}}) // whatever was shown and ticked
	if got := w.states("acme", id); got != "newsletter=withdrawn offers=withdrawn tracking.email=withdrawn tracking.web=withdrawn" {
		t.Errorf("everything: %s", got)
	}
	n = w.consents("acme")
	w.do("POST", path, "203.0.113.1", browser, url.Values{"everything": {"off"}})
	if w.consents("acme") != n {
		t.Error("everything was turned off twice")
	}
	w.do("POST", path, "203.0.113.1", browser, url.Values{"shown": shown, "on": {"tracking.web"}})
	if got := w.states("acme", id); got != "newsletter=withdrawn offers=withdrawn tracking.email=withdrawn tracking.web=granted" {
		t.Errorf("tracking.web: %s", got)
	}
	if proof := pgtest.One[string](t, w.db, "acme", "SELECT proof->>'text' FROM consent WHERE purpose = 'tracking.web' AND state = 'granted'"); !strings.HasPrefix(proof, "Let us see which pages of our website I look at\nIt lets us") {
		t.Errorf("proof %q", proof)
	}
	// A complaint is not undone by a tick.
	pgtest.In(t, w.db, "acme", func(ctx context.Context, tx *postgres.Tx) error {
		_, err := contact.Suppress(ctx, tx, "track", contact.Suppression{Contact: id, Reason: contact.Complaint})
		return err
	})
	if a := w.do("POST", path, "203.0.113.1", browser, url.Values{"shown": shown, "on": {"newsletter", "tracking.email"}}); !strings.Contains(a.body, "marked our emails as spam") {
		t.Errorf("after a complaint: %s", a.body)
	}
	if got := w.states("acme", id); !strings.Contains(got, "newsletter=withdrawn") {
		t.Errorf("after a complaint: %s", got)
	}
	if a := w.do("POST", path, "203.0.113.1", browser, url.Values{"x": {strings.Repeat("x", maxForm+1)}}); a.status != 413 {
		t.Errorf("too large: %d", a.status)
	}
}

func TestPagesSpeakTheVisitorsLanguage(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id, _ := w.sent("acme", "ada@example.com", time.Hour)
	r, err := http.NewRequest(http.MethodGet, w.url+"/u/"+w.token("acme", token.Claims{Purpose: token.Unsubscribe, Contact: id, Topic: w.topicID("acme", "newsletter")}), nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Accept-Language", "fr-FR, en;q=0.5")
	if a := w.send(r); !strings.Contains(a.body, "Se désabonner de Lettre ?") || !strings.Contains(a.body, `<html lang="fr">`) {
		t.Errorf("%s", a.body)
	}
}

// A process that has just started, and entered no tenant, says on its errors too that it is one of a pre-production.
func TestTheFirstErrorOfAPreproductionSaysSo(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	if err := w.admin.SetStage(t.Context(), postgres.Preproduction, ""); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/nothing", "/u/nothing"} {
		if a := w.again().get(path); a.status != http.StatusNotFound || !strings.Contains(a.body, "no mail from here goes to real people") {
			t.Errorf("%s: %d %s", path, a.status, a.body)
		}
	}
}
