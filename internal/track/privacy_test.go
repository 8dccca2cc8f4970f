package track

import (
	"context"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/onda-run/onda/internal/contact"
	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/token"
)

// tells counts the hits that tell something of somebody.
const tells = "SELECT count(*) FROM hit WHERE delivery > 0 OR contact IS NOT NULL OR origin IS NOT NULL OR agent <> ''"

// Every mail has a link to its web view. It names who looks at it only where the mail may, and still may.
func TestWebViewFollowsTheMailsTracking(t *testing.T) {
	t.Parallel()
	for mode, c := range map[contact.TrackingMode]struct {
		state contact.State
		named int
	}{
		contact.Full: {"", 1}, contact.Aggregate: {"", 0}, contact.None: {"", 0},
		"full, withdrawn": {contact.Withdrawn, 0}, "aggregate, granted since": {contact.Granted, 0}, "not recorded yet": {"", 0},
	} {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			id, d := w.sent("acme", "ada@example.com", time.Hour)
			how, _, _ := strings.Cut(string(mode), ",")
			if how == "not recorded yet" {
				pgtest.Exec(t, w.db, "acme", "DELETE FROM delivery")
			} else {
				pgtest.Exec(t, w.db, "acme", "UPDATE delivery SET tracking = $1", how)
			}
			if c.state != "" {
				w.consent("acme", contact.Consent{Contact: id, Purpose: contact.TrackingEmail, State: c.state, Basis: "preferences"})
			}
			if a := w.get("/w/" + w.token("acme", token.Claims{Purpose: token.WebView, Delivery: d})); a.status != 200 {
				t.Fatalf("web view: %d", a.status)
			}
			if n := pgtest.One[int](t, w.db, "acme", tells); n != c.named {
				t.Errorf("%d hits tell something of somebody, want %d", n, c.named)
			}
			w.sweep("acme")
			want := []string{"view human link=false tracked=false n=1 firsts=0"}
			if c.named > 0 {
				want = []string{"view human link=false tracked=true n=1 firsts=1"}
			}
			if diff := cmp.Diff(want, w.stats("acme")); diff != "" {
				t.Errorf("it is not counted for the run: %s", diff)
			}
		})
	}
}

// A browser that asks not to be followed is served as ever, and leaves a count.
func TestGlobalPrivacyControl(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id, d := w.sent("acme", "ada@example.com", time.Hour)
	w.consent("acme", contact.Consent{Contact: id, Purpose: contact.TrackingEmail, State: contact.Granted, Basis: "form"},
		contact.Consent{Contact: id, Purpose: contact.TrackingWeb, State: contact.Granted, Basis: "form"})
	pgtest.Exec(t, w.db, "acme", "INSERT INTO visitor (key, contact) VALUES ('v1', $1)", id)
	pgtest.Exec(t, w.db, "acme", "UPDATE contact SET external_id = 'u1'")
	sk, pk := w.programKey("acme", token.SecretKey), w.programKey("acme", token.PublicKey)
	ask := func(method, path, key, body string) answer {
		r, err := http.NewRequest(method, w.url+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("User-Agent", browser)
		r.Header.Set("Sec-GPC", "1")
		if key != "" {
			r.SetBasicAuth(key, "")
		}
		return w.send(r)
	}
	for _, c := range []struct {
		path, location string
		status         int
	}{
		{"/o/" + w.token("acme", token.Claims{Purpose: token.Open, Delivery: d}) + ".gif", "", 200},
		{"/c/" + w.token("acme", token.Claims{Purpose: token.Click, Delivery: d, Link: w.link("acme", "https://example.com/a")}), "https://example.com/a", 302},
		{"/w/" + w.token("acme", token.Claims{Purpose: token.WebView, Delivery: d}), "", 200},
	} {
		if a := ask("GET", c.path, "", ""); a.status != c.status || a.header.Get("Location") != c.location {
			t.Errorf("%s: %d %s", c.path[:3], a.status, a.header.Get("Location"))
		}
	}
	if n := pgtest.One[int](t, w.db, "acme", tells); n != 0 {
		t.Errorf("%d hits tell something of somebody", n)
	}
	for _, c := range []struct {
		path, key, body string
		status          int
	}{
		{"/e", "", `{"key": "` + pk + `", "type": "page", "visitor": "v1"}`, 204},
		{"/e", "", `{"key": "` + pk + `", "type": "track", "name": "video.played", "visitor": "v2"}`, 204},
		{"/v1/page", pk, `{"anonymousId": "v1"}`, 200},
		{"/v1/track", pk, `{"anonymousId": "v1", "event": "a"}`, 200},
		{"/v1/page", sk, `{"userId": "u1", "anonymousId": "v1"}`, 200},
		{"/v1/batch", sk, `{"batch": [{"type": "screen", "userId": "u2"}, {"type": "track", "userId": "u1", "event": "order.placed"}]}`, 200},
	} {
		if a := ask("POST", c.path, c.key, c.body); a.status != c.status {
			t.Errorf("%s %s: %d %s", c.path, c.body, a.status, a.body)
		}
	}
	got := pgtest.All[string](t, w.db, "acme", `SELECT kind || ' ' || name || ' ' || coalesce(contact = $1, false) || ' ' || (visitor IS NOT NULL) FROM fact WHERE kind IN ('page.viewed', 'event.tracked') ORDER BY id`, id)
	want := []string{
		"page.viewed  false false", "event.tracked video.played false false", "page.viewed  false false", "event.tracked a false false", "page.viewed  false false",
		"page.viewed  false false", "event.tracked order.placed true false",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if n := pgtest.One[int](t, w.db, "acme", "SELECT (SELECT count(*) FROM visitor) + (SELECT count(*) FROM contact)"); n != 2 {
		t.Errorf("%d visitors and contacts, want the two of before", n)
	}
	w.sweep("acme")
	counts := []string{"click human link=true tracked=false n=1 firsts=0", "open human link=false tracked=false n=1 firsts=0", "view human link=false tracked=false n=1 firsts=0"}
	if diff := cmp.Diff(counts, w.stats("acme")); diff != "" {
		t.Error(diff)
	}
	if a := ask("POST", "/u/"+w.token("acme", token.Claims{Purpose: token.Unsubscribe, Contact: id, Topic: w.topicID("acme", "newsletter")}), "", ""); a.status != 200 {
		t.Errorf("unsubscribe: %d", a.status)
	}
	if got := w.states("acme", id); got != "newsletter=withdrawn tracking.email=granted tracking.web=granted" {
		t.Errorf("after: %s", got)
	}
}

// A person pauses mails, and says how often they may come.
func TestPauseAndFrequency(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id, _ := w.sent("acme", "ada@example.com", time.Hour)
	other, _ := w.sent("acme", "bea@example.com", time.Hour)
	path := "/p/" + w.token("acme", token.Claims{Purpose: token.Preferences, Contact: id})
	wishes := func(id int64) string {
		return pgtest.One[string](t, w.db, "acme", "SELECT coalesce(to_char(paused_until AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI'), '-') || ' ' || coalesce(frequency, '-') FROM contact WHERE id = $1", id)
	}
	now := pgtest.One[time.Time](t, w.db, "acme", "SELECT onda.now()")
	soon := now.AddDate(0, 0, 20)
	day := soon.Format(time.DateOnly)
	oslo, err := time.LoadLocation("Europe/Oslo") // the tenant's
	if err != nil {
		t.Fatal(err)
	}
	midnight := time.Date(soon.Year(), soon.Month(), soon.Day(), 0, 0, 0, 0, oslo).UTC().Format("2006-01-02 15:04")
	save := func(pause, frequency string) answer {
		return w.do("POST", path, "203.0.113.1", browser, url.Values{"pause": {pause}, "frequency": {frequency}})
	}
	if a := save(day, "1/week"); a.status != 200 || !strings.Contains(a.body, "Your choice is saved.") || !strings.Contains(a.body, `value="`+day+`"`) || !strings.Contains(a.body, `<option value="1/week" selected>At most 1 a week`) {
		t.Errorf("save: %d %s", a.status, a.body)
	}
	if got := wishes(id); got != midnight+" 1/week" {
		t.Errorf("after: %s, want %s", got, midnight)
	}
	for _, bad := range [][2]string{{now.AddDate(2, 0, 0).Format(time.DateOnly), ""}, {"tomorrow", ""}, {"2026-02-30", ""}, {"", "0/week"}, {"", "1/year"}, {"", "'); DROP TABLE contact; --"}} {
		if a := save(bad[0], bad[1]); a.status != 422 || !strings.Contains(a.body, "Nothing was saved yet") {
			t.Errorf("%s: %d", bad, a.status)
		}
	}
	// Neither looking nor a form of before says anything of it.
	w.get(path)
	w.do("HEAD", path, "", "", nil)
	w.do("POST", path, "203.0.113.1", browser, url.Values{"shown": {"newsletter"}, "on": {"newsletter"}})
	w.do("POST", path, "203.0.113.1", browser, url.Values{"everything": {"off"}, "pause": {""}, "frequency": {""}})
	if got := wishes(id); got != midnight+" 1/week" {
		t.Errorf("it was changed: %s", got)
	}
	pgtest.Exec(t, w.db, "acme", `UPDATE contact SET fields = '{"timezone": "Pacific/Auckland"}'`)
	auckland, err := time.LoadLocation("Pacific/Auckland")
	if err != nil {
		t.Fatal(err)
	}
	save(day, "25/month") // not offered, and kept
	if got, want := wishes(id), time.Date(soon.Year(), soon.Month(), soon.Day(), 0, 0, 0, 0, auckland).UTC().Format("2006-01-02 15:04")+" 25/month"; got != want {
		t.Errorf("by the person's own clock: %s, want %s", got, want)
	}
	if a := w.get(path); !strings.Contains(a.body, `<option value="25/month" selected>`) {
		t.Error("what is chosen is not shown")
	}
	w.move("acme", 30*24*time.Hour)
	if a := w.get(path); strings.Contains(a.body, `value="`+day+`"`) {
		t.Error("a pause that is over is shown")
	}
	save("2020-01-01", "")
	if got := wishes(id); got != "- -" {
		t.Errorf("in the past: %s", got)
	}
	if got := wishes(other); got != "- -" {
		t.Errorf("the other: %s", got)
	}
}

// A date that is none costs nobody what was ticked, nor is any of it saved.
func TestAWrongDateKeepsWhatWasTicked(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id, _ := w.sent("acme", "ada@example.com", time.Hour)
	path := "/p/" + w.token("acme", token.Claims{Purpose: token.Preferences, Contact: id})
	form := url.Values{"shown": {"newsletter", "offers", "tracking.email"}, "on": {"offers", "tracking.email", "tracking.web"}, "frequency": {"1/week"}, "pause": {"2099-01-01"}}
	a := w.do("POST", path, "203.0.113.1", browser, form)
	if a.status != 422 {
		t.Fatalf("status %d", a.status)
	}
	for _, want := range []string{`id="on-newsletter" aria`, `id="on-offers" checked`, `id="on-tracking.email" checked`, `id="on-tracking.web" aria`, `value="1/week" selected`, `value="2099-01-01"`} {
		if !strings.Contains(a.body, want) {
			t.Errorf("%s is not on the page: %s", want, a.body)
		}
	}
	if got := w.states("acme", id); got != "newsletter=granted" {
		t.Errorf("it was saved: %s", got)
	}
	form.Set("pause", "soon")
	if a := w.do("POST", path, "203.0.113.1", browser, form); a.status != 422 || !strings.Contains(a.body, `id="on-offers" checked`) || !strings.Contains(a.body, `name="pause" id="pause" value=""`) {
		t.Errorf("no date at all: %d %s", a.status, a.body)
	}
}

// Once a token says whose it is, pages that say that something is wrong look as the tenant's do.
func TestErrorsLookAsTheTenantsPages(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	files := documents()
	files["settings.yaml"] = &fstest.MapFile{Data: []byte("apiVersion: onda/v1\nkind: Settings\nmetadata: {name: settings, title: Nordlys}\nspec: {theme: {accent: \"#0b5e6b\"}}\n")}
	all := string(files["all.yaml"].Data)
	_, rest, _ := strings.Cut(all, "\n---")
	files["all.yaml"] = &fstest.MapFile{Data: []byte("---" + rest)}
	applyTo(t, w.db, "acme", files)
	gone := token.Claims{Contact: 999_999}
	for _, c := range []struct {
		method, path string
		status       int
		themed       bool
	}{
		{"GET", "/p/" + w.token("acme", token.Claims{Purpose: token.Preferences, Contact: gone.Contact}), 404, true},
		{"GET", "/c/" + w.token("acme", token.Claims{Purpose: token.Click, Link: 1 << 30}), 404, true},
		{"GET", "/w/" + w.token("acme", token.Claims{Purpose: token.WebView, Delivery: 1<<40 | 1}), 404, true},
		{"POST", "/p/" + w.token("acme", token.Claims{Purpose: token.Preferences, Contact: gone.Contact}), 413, true},
		{"GET", "/p/" + w.token("brava", token.Claims{Purpose: token.Preferences, Contact: gone.Contact}), 404, false}, // which has no theme
		{"GET", "/p/nothing", 404, false},
		{"GET", "/o/nothing.gif", 404, false},
	} {
		form := url.Values{}
		if c.status == 413 {
			form.Set("x", strings.Repeat("x", maxForm+1))
		}
		a := w.do(c.method, c.path, "203.0.113.1", browser, form)
		if a.status != c.status || strings.Contains(a.body, "Nordlys") != c.themed || strings.Contains(a.body, "#0b5e6b") != c.themed {
			t.Errorf("%s %s: %d, looks as the tenant's: %t, want %t", c.method, c.path[:3], a.status, strings.Contains(a.body, "Nordlys"), c.themed)
		}
	}
}

// Who is gone, or whose token is another's, sees nothing and changes nothing. A key proves such tokens for ever, be it retired.
func TestWhosePreferences(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id, _ := w.sent("acme", "ada@example.com", time.Hour)
	w.sent("brava", "ada@example.com", time.Hour)
	good := w.token("acme", token.Claims{Purpose: token.Preferences, Contact: id})
	form := url.Values{"everything": {"off"}, "pause": {""}, "frequency": {"1/week"}}
	refused := func(name, tok string) {
		t.Helper()
		for _, method := range []string{"GET", "POST"} {
			if a := w.do(method, "/p/"+tok, "203.0.113.1", browser, form); a.status != 404 || strings.Contains(a.body, "example.com") {
				t.Errorf("%s %s: %d", method, name, a.status)
			}
		}
		if got := w.states("acme", id) + w.states("brava", id); got != "newsletter=grantednewsletter=granted" {
			t.Errorf("%s: %s", name, got)
		}
		if n := pgtest.One[int](t, w.db, "acme", "SELECT count(*) FROM contact WHERE frequency IS NOT NULL"); n != 0 {
			t.Errorf("%s: a wish was noted", name)
		}
	}
	refused("forged", good[:len(good)-1]+swap(good[len(good)-1]))
	pgtest.In(t, w.db, "brava", func(ctx context.Context, tx *postgres.Tx) error { // brava's key over acme's claims
		keys, err := tx.Keys(ctx)
		if err != nil {
			return err
		}
		k, _ := keys.Tokens.Current()
		alien, err := token.Sign(k, token.Claims{Purpose: token.Preferences, Tenant: pgtest.One[int32](t, w.db, "acme", "SELECT number FROM onda.tenant"), Contact: id})
		refused("by another tenant's key", alien)
		return err
	})
	refused("truncated", good[:len(good)-4])
	refused("of nobody", w.token("acme", token.Claims{Purpose: token.Preferences, Contact: 999_999}))
	refused("of another purpose", w.token("acme", token.Claims{Purpose: token.Unsubscribe, Contact: id}))
	pgtest.Exec(t, w.db, "acme", "UPDATE contact SET erased_at = now(), email = NULL")
	refused("of somebody erased", good)
	pgtest.Exec(t, w.db, "acme", "UPDATE contact SET erased_at = NULL, email = 'ada@example.com'")
	pgtest.Exec(t, w.db, "acme", "UPDATE key SET retired_at = now() - interval '8 years' WHERE kind = 'hmac'")
	pgtest.Exec(t, w.db, "acme", "INSERT INTO key (kind, secret) VALUES ('hmac', decode(repeat('ab', 32), 'hex'))")
	w = w.again()
	if a := w.do("POST", "/p/"+good, "203.0.113.1", browser, form); a.status != 200 || w.states("acme", id) != "newsletter=withdrawn tracking.email=withdrawn tracking.web=withdrawn" {
		t.Errorf("of a retired key: %d %s", a.status, w.states("acme", id))
	}
}
