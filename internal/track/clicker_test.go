package track

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/onda-run/onda/internal/browsertest"
	"github.com/onda-run/onda/internal/contact"
	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/token"
)

// site says in a tenant's Settings which its own site is.
func (w *world) site(tenant, origin string) {
	w.t.Helper()
	files := documents()
	all := strings.Replace(string(files["all.yaml"].Data), "zone: Europe/Oslo", `zone: Europe/Oslo, web: {origins: ["`+origin+`"]}`, 1)
	applyTo(w.t, w.db, tenant, fstest.MapFS{"all.yaml": {Data: []byte(all)}})
}

// agrees lets a contact be known on the site.
func (w *world) agrees(tenant string, id int64) {
	w.t.Helper()
	w.consent(tenant, contact.Consent{Contact: id, Purpose: contact.TrackingEmail, State: contact.Granted, Basis: "form"},
		contact.Consent{Contact: id, Purpose: contact.TrackingWeb, State: contact.Granted, Basis: "form"})
}

func (w *world) withdraws(tenant string, id int64, purpose string) {
	w.t.Helper()
	w.consent(tenant, contact.Consent{Contact: id, Purpose: purpose, State: contact.Withdrawn, Basis: "preferences"})
}

func TestAddressesWithClicks(t *testing.T) {
	t.Parallel()
	for to, want := range map[string]string{
		"https://example.com":                           "https://example.com?onda_c=x",
		"https://example.com/?":                         "https://example.com/?onda_c=x",
		"https://example.com/a?b=%20+1&c#d?e":           "https://example.com/a?b=%20+1&c&onda_c=x#d?e",
		"https://example.com/a#":                        "https://example.com/a?onda_c=x#",
		"https://example.com/?onda_c=y&a=1&onda_c&b=2#": "https://example.com/?a=1&b=2&onda_c=x#",
		"https://example.com/?onda_cc=1":                "https://example.com/?onda_cc=1&onda_c=x",
	} {
		if got := withClick(to, "x"); got != want {
			t.Errorf("%s: %s, want %s", to, got, want)
		}
	}
	for to, want := range map[string]bool{
		"https://example.com/a": true, "https://Example.com:443": true, "HTTPS://example.com#a": true, "http://localhost:8000/": true,
		"http://example.com/a": false, "https://www.example.com/": false, "https://example.com:8443/": false, "https://example.com.evil.example/": false,
		"https://example.com@evil.example/": false, "http://localhost/": false, "mailto:a@example.com": false, "https://exa mple.com": false, "//example.com/": false, "": false,
	} {
		if got := leadsTo(to, []string{"https://example.com", "http://localhost:8000"}); got != want {
			t.Errorf("%q leads to the site: %t", to, got)
		}
	}
}

// Only a link to the tenant's own site says whose click it was, and only that of a person who agreed to be known there, in a browser that does not object.
func TestLinksToTheSiteTellWhoFollows(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.site("acme", "https://example.com")
	id, d := w.sent("acme", "ada@example.com", time.Hour)
	w.agrees("acme", id)
	pgtest.Exec(t, w.db, "acme", "INSERT INTO link (document, url) SELECT document, u FROM link, unnest(ARRAY['https://example.com/c?d=%20e#f', 'https://elsewhere.example/']) u ON CONFLICT DO NOTHING")
	follow := func(tenant, to string, delivery int64, method string, header ...string) string {
		t.Helper()
		tok := w.token(tenant, token.Claims{Purpose: token.Click, Delivery: delivery, Link: w.link(tenant, to)})
		r, err := http.NewRequest(method, w.url+"/c/"+tok, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("User-Agent", browser)
		if len(header) > 0 {
			r.Header.Set(header[0], header[1])
		}
		a := w.send(r)
		if a.status != 302 || !strings.Contains(a.header.Get("Cache-Control"), "no-store") {
			t.Errorf("%s: %d %s", to, a.status, a.header)
		}
		return strings.Replace(a.header.Get("Location"), tok, "TOKEN", 1)
	}
	const a, known = "https://example.com/a", "https://example.com/a?onda_c=TOKEN"
	is := func(what, got, want string) {
		t.Helper()
		if got != want {
			t.Errorf("%s: it leads to %s, want %s", what, got, want)
		}
	}
	is("a person", follow("acme", a, d, "GET"), known)
	is("with a query", follow("acme", "https://example.com/c?d=%20e#f", d, "GET"), "https://example.com/c?d=%20e&onda_c=TOKEN#f")
	is("elsewhere", follow("acme", "https://elsewhere.example/", d, "GET"), "https://elsewhere.example/")
	is("in the aggregate", follow("acme", a, 0, "GET"), a)
	is("HEAD", follow("acme", a, d, "HEAD"), a)
	is("prefetched", follow("acme", a, d, "GET", "Sec-Purpose", "prefetch"), a)
	is("Global Privacy Control", follow("acme", a, d, "GET", "Sec-GPC", "1"), a)
	bea, ofBea := w.sent("acme", "bea@example.com", time.Hour)
	is("nothing was said", follow("acme", a, ofBea, "GET"), a)
	w.agrees("acme", bea)
	w.withdraws("acme", bea, contact.TrackingEmail)
	is("mails withdrawn", follow("acme", a, ofBea, "GET"), a)
	w.withdraws("acme", id, contact.TrackingWeb)
	is("the site withdrawn", follow("acme", a, d, "GET"), a)
	w.agrees("acme", id)
	pgtest.Exec(t, w.db, "acme", "UPDATE contact SET erased_at = now() WHERE id = $1", id)
	is("erased", follow("acme", a, d, "GET"), a)
	pgtest.Exec(t, w.db, "acme", "UPDATE contact SET erased_at = NULL WHERE id = $1", id)
	pgtest.Exec(t, w.db, "acme", "UPDATE contact SET merged_into = $1 WHERE id = $2", id, bea)
	is("merged", follow("acme", a, ofBea, "GET"), known)
	other, ofOther := w.sent("brava", "ada@example.com", time.Hour)
	w.agrees("brava", other)
	is("a tenant without a site", follow("brava", a, ofOther, "GET"), a)
}

// What the redirect would add may be away: people get where they want to go, and the click is stored.
func TestALinkLeadsOnWithoutSettings(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.site("acme", "https://example.com")
	id, d := w.sent("acme", "ada@example.com", time.Hour)
	w.agrees("acme", id)
	path := "/c/" + w.token("acme", token.Claims{Purpose: token.Click, Delivery: d, Link: w.link("acme", "https://example.com/a")})
	locked, free := make(chan struct{}), make(chan struct{})
	var holder sync.WaitGroup
	holder.Go(func() {
		pgtest.In(t, w.db, "acme", func(ctx context.Context, tx *postgres.Tx) error {
			_, err := tx.Exec(ctx, "LOCK TABLE document IN ACCESS EXCLUSIVE MODE")
			close(locked)
			<-free
			return err
		})
	})
	<-locked
	if a := w.get(path); a.status != 302 || a.header.Get("Location") != "https://example.com/a" {
		t.Errorf("%d %s", a.status, a.header)
	}
	close(free)
	holder.Wait()
	if n := pgtest.One[int](t, w.db, "acme", "SELECT count(*) FROM hit WHERE contact = $1", id); n != 1 {
		t.Errorf("%d clicks are stored", n)
	}
}

// The token of a click attaches a visitor while it is fresh, its own tenant's, and both consents hold; of anything else nothing comes, not even an error.
func TestClicksAttachVisitors(t *testing.T) {
	t.Parallel()
	const to = "https://example.com/a"
	swapped := func(tok string) string { return tok[:len(tok)-1] + swap(tok[len(tok)-1]) }
	// use is how a click is used: it gives the token that is sent, and may change what is so between the click and the page view.
	for name, c := range map[string]struct {
		use    func(w *world, id, delivery int64, tok string) string
		header string
		whose  string // "" for nobody's
	}{
		"fresh":       {whose: "ada@example.com", use: func(_ *world, _, _ int64, tok string) string { return tok }},
		"not an hour": {whose: "ada@example.com", use: func(w *world, _, _ int64, tok string) string { w.move("acme", 59*time.Minute); return tok }},
		"an hour":     {use: func(w *world, _, _ int64, tok string) string { w.move("acme", time.Hour+time.Second); return tok }},
		"truncated":   {use: func(_ *world, _, _ int64, tok string) string { return tok[:len(tok)-2] }},
		"forged":      {use: func(_ *world, _, _ int64, tok string) string { return swapped(tok) }},
		"nonsense":    {use: func(*world, int64, int64, string) string { return "\" onda_c" }},
		"of a link that was not followed": {use: func(w *world, _, d int64, _ string) string {
			return w.token("acme", token.Claims{Purpose: token.Click, Delivery: d, Link: w.link("acme", "https://example.com/b")})
		}},
		"of another mail": {use: func(w *world, _, _ int64, _ string) string {
			bea, d := w.sent("acme", "bea@example.com", time.Hour)
			w.agrees("acme", bea)
			return w.token("acme", token.Claims{Purpose: token.Click, Delivery: d, Link: w.link("acme", to)})
		}},
		"in the aggregate": {use: func(w *world, _, _ int64, _ string) string {
			tok := w.token("acme", token.Claims{Purpose: token.Click, Link: w.link("acme", to)})
			w.get("/c/" + tok)
			return tok
		}},
		"another tenant's": {use: func(w *world, _, d int64, _ string) string {
			other, theirs := w.sent("brava", "eve@example.com", time.Hour)
			w.agrees("brava", other)
			tok := w.token("brava", token.Claims{Purpose: token.Click, Delivery: theirs, Link: w.link("brava", to)})
			w.get("/c/" + tok)
			if theirs != d {
				w.t.Errorf("delivery %d of the one is %d of the other: that proves nothing", d, theirs)
			}
			return tok
		}},
		"of another purpose": {use: func(w *world, _, d int64, _ string) string {
			return w.token("acme", token.Claims{Purpose: token.Open, Delivery: d})
		}},
		"a machine's": {use: func(w *world, _, _ int64, tok string) string {
			pgtest.Exec(w.t, w.db, "acme", "UPDATE delivery SET at = onda.now()")
			w.sweep("acme")
			return tok
		}},
		"the site withdrawn": {use: func(w *world, id, _ int64, tok string) string {
			w.withdraws("acme", id, contact.TrackingWeb)
			return tok
		}},
		"mails withdrawn": {use: func(w *world, id, _ int64, tok string) string {
			w.withdraws("acme", id, contact.TrackingEmail)
			return tok
		}},
		"erased": {use: func(w *world, _, _ int64, tok string) string {
			pgtest.Exec(w.t, w.db, "acme", "UPDATE contact SET erased_at = onda.now()")
			return tok
		}},
		"merged since": {whose: "bea@example.com", use: func(w *world, id, _ int64, tok string) string {
			bea, _ := w.sent("acme", "bea@example.com", time.Hour)
			w.agrees("acme", bea)
			pgtest.Exec(w.t, w.db, "acme", "UPDATE contact SET merged_into = $1 WHERE id = $2", bea, id)
			return tok
		}},
		"attached to another before": {whose: "ada@example.com", use: func(w *world, _, _ int64, tok string) string {
			bea, _ := w.sent("acme", "bea@example.com", time.Hour)
			pgtest.Exec(w.t, w.db, "acme", "INSERT INTO visitor (key, contact) VALUES ('v1', $1)", bea)
			return tok
		}},
		"Global Privacy Control": {header: "1", use: func(_ *world, _, _ int64, tok string) string { return tok }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.site("acme", "https://example.com")
			id, d := w.sent("acme", "ada@example.com", time.Hour)
			w.agrees("acme", id)
			tok := w.token("acme", token.Claims{Purpose: token.Click, Delivery: d, Link: w.link("acme", to)})
			if a := w.get("/c/" + tok); a.header.Get("Location") != to+"?onda_c="+tok {
				t.Fatalf("click: %d %s", a.status, a.header)
			}
			tok = c.use(w, id, d, tok)
			r, err := http.NewRequest(http.MethodPost, w.url+"/e", strings.NewReader(fmt.Sprintf(`{"key": %q, "type": "page", "visitor": "v1", "click": %q, "url": "https://example.com/a"}`, w.programKey("acme", token.PublicKey), tok)))
			if err != nil {
				t.Fatal(err)
			}
			if c.header != "" {
				r.Header.Set("Sec-GPC", c.header)
			}
			if a := w.send(r); a.status != 204 {
				t.Fatalf("page view: %d %s", a.status, a.body)
			}
			want := []string{"page.viewed " + c.whose}
			if diff := cmp.Diff(want, pgtest.All[string](t, w.db, "acme", "SELECT f.kind || ' ' || coalesce(c.email, '') FROM fact f LEFT JOIN contact c ON c.id = f.contact WHERE f.kind = 'page.viewed'")); diff != "" {
				t.Error(diff)
			}
			whose := pgtest.One[string](t, w.db, "acme", "SELECT coalesce(max(c.email), '') FROM visitor v JOIN contact c ON c.id = v.contact")
			if whose != c.whose {
				t.Errorf("the visitor is %q, want %q", whose, c.whose)
			}
		})
	}
}

// Who follows a link of a mail to the site is known there by the first page view, also when it agrees a moment later, and nothing of the click stays in the address.
func TestAClickIsKnownInABrowser(t *testing.T) { //nolint:tparallel // one after the other: a browser has one tab in front
	t.Parallel()
	b := browsertest.Start(t)
	for name, attributes := range map[string]string{"consent is known": `data-consent="granted"`, "asked later": ""} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			pk := w.programKey("acme", token.PublicKey)
			s := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
				rw.Header().Set("Content-Type", "text/html; charset=utf-8")
				_, _ = fmt.Fprintf(rw, site, "", w.url, pk, attributes)
			}))
			t.Cleanup(s.Close)
			origin := strings.Replace(s.URL, "127.0.0.1", "localhost", 1)
			w.site("acme", origin)
			id, d := w.sent("acme", "ada@example.com", time.Hour)
			w.agrees("acme", id)
			pgtest.Exec(t, w.db, "acme", "INSERT INTO link (document, url) SELECT document, $1 FROM link LIMIT 1", origin+"/a?b=%20c#d")
			visitor := browsertest.Visitors()[1]
			visitor.Agent = browser
			tab := b.Open(t, visitor, w.url+"/c/"+w.token("acme", token.Claims{Purpose: token.Click, Delivery: d, Link: w.link("acme", origin+"/a?b=%20c#d")}))
			tab.Until(`window.onda && !onda.q && document.readyState === "complete"`)
			if got := browsertest.Eval[string](tab, "location.href"); got != origin+"/a?b=%20c#d" {
				t.Errorf("the address is %s", got)
			}
			ended := func(n int) {
				tab.Until(fmt.Sprintf(`performance.getEntriesByType("resource").filter(e => new URL(e.name).pathname === "/e" && e.responseEnd > 0).length >= %d`, n))
			}
			ended(2)
			before := "nobody"
			if attributes != "" {
				before = "ada@example.com"
			}
			browsertest.Eval[bool](tab, `(() => { onda("consent", true); onda("page", {n: 2}); return true; })()`)
			ended(3)
			got := pgtest.All[string](t, w.db, "acme", `SELECT (f.data->>'url') || ' ' || coalesce(c.email, 'nobody') FROM fact f LEFT JOIN contact c ON c.id = f.contact WHERE f.kind = 'page.viewed' ORDER BY f.id`)
			if diff := cmp.Diff([]string{origin + "/a?b=%20c " + before, origin + "/a?b=%20c ada@example.com"}, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}
