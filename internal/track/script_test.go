package track

import (
	"compress/gzip"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/onda-run/onda/internal/browsertest"
	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/token"
)

func TestScriptIsCachedAndCompressed(t *testing.T) {
	t.Parallel()
	const text = "onda onda onda onda onda onda onda onda onda onda onda onda"
	s := newScript([]byte(text))
	get := func(accept, known string) *httptest.ResponseRecorder {
		r := httptest.NewRequest(http.MethodGet, "/onda.js", http.NoBody)
		r.Header.Set("Accept-Encoding", accept)
		if known != "" {
			r.Header.Set("If-None-Match", known)
		}
		w := httptest.NewRecorder()
		s.ServeHTTP(w, r)
		return w
	}
	tags := map[string]bool{}
	for accept, packed := range map[string]bool{"": false, "gzip, deflate, br": true, "br;q=1.0, GZIP;q=0.5": true, "gzip;q=0": false, "gzip; q=0.00": false, "br": false} {
		res := get(accept, "")
		var body io.Reader = res.Body
		var err error
		if packed {
			if body, err = gzip.NewReader(res.Body); err != nil {
				t.Errorf("%q: %v", accept, err)
				continue
			}
		}
		got, err := io.ReadAll(body)
		if err != nil || string(got) != text || (res.Header().Get("Content-Encoding") == "gzip") != packed || res.Header().Get("Vary") != "Accept-Encoding" {
			t.Errorf("%q: %v, %q %v", accept, err, got, res.Header())
		}
		tag := res.Header().Get("ETag")
		tags[tag] = true
		if again := get(accept, tag); again.Code != http.StatusNotModified || again.Header().Get("ETag") != tag {
			t.Errorf("%q: known, and answered %d", accept, again.Code)
		}
		if other := get(accept, `"x"`); other.Code != http.StatusOK {
			t.Errorf("%q: another is known, and answered %d", accept, other.Code)
		}
	}
	if len(tags) != 2 {
		t.Errorf("tags %v: each form has its own", tags)
	}
}

// site has a page with the script, of which it tells that people wish not to be followed, or that they agree.
const site = `<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>Shop</title><link rel="icon" href="data:,">
<script>
  %s
  window.onda = function () { (onda.q = onda.q || []).push(arguments); };
  onda("track", "before.load", {n: 1});
</script>
<script src="%s/onda.js" data-key="%s" %s async></script></head><body><h1>Shop</h1></body></html>`

// What the script leaves in a browser, and what it tells: nothing before consent, an id after it, nothing ever where the browser says Global Privacy Control; every page of an
// application of one page is a page view.
func TestScriptInABrowser(t *testing.T) { //nolint:tparallel // one after the other: a browser has one tab in front
	t.Parallel()
	b := browsertest.Start(t)
	for name, c := range map[string]struct {
		before, attributes string
		first, second      int // cookies before and after consent
	}{
		"asked later":            {"", "", 0, 1},
		"consent is known":       {"", `data-consent="granted"`, 1, 1},
		"Global Privacy Control": {`Object.defineProperty(navigator, "globalPrivacyControl", {value: true});`, `data-consent="granted"`, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			pk := w.programKey("acme", token.PublicKey)
			s := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
				rw.Header().Set("Content-Type", "text/html; charset=utf-8")
				_, _ = fmt.Fprintf(rw, site, c.before, w.url, pk, c.attributes)
			}))
			t.Cleanup(s.Close)
			tab := b.Open(t, browsertest.Visitors()[1], s.URL+"/a")
			tab.Until(`window.onda && !onda.q && document.readyState === "complete"`)
			kept := func(want int) {
				t.Helper()
				if got := browsertest.Eval[int](tab, `(document.cookie.match(/onda_id=[^;]/g) || []).length + localStorage.length + sessionStorage.length`); got != want {
					t.Errorf("%d things are kept, want %d: %s", got, want, browsertest.Eval[string](tab, "document.cookie"))
				}
			}
			kept(c.first)
			browsertest.Eval[bool](tab, `(() => { onda("consent", true); return true; })()`)
			kept(c.second)
			// Each answer is waited for, by the requests that the page has seen end.
			ended := func(n int) {
				tab.Until(fmt.Sprintf(`performance.getEntriesByType("resource").filter(e => new URL(e.name).pathname === "/e" && e.responseEnd > 0).length >= %d`, n))
			}
			ended(2)
			browsertest.Eval[bool](tab, `(() => { history.pushState({}, "", "/b"); return true; })()`)
			ended(3)
			browsertest.Eval[bool](tab, `(() => { history.pushState({}, "", "/b#part"); onda("track", "after"); return true; })()`) // the same page
			ended(4)
			browsertest.Eval[bool](tab, `(() => { history.go(-2); return true; })()`)
			ended(5)
			got := pgtest.All[string](t, w.db, "acme", `SELECT concat_ws(' ', kind, nullif(name, ''), replace(data->>'url', $1, ''), CASE WHEN visitor IS NULL THEN 'of nobody' ELSE 'of a visitor' END)
				FROM fact WHERE kind IN ('page.viewed', 'event.tracked') ORDER BY id`, s.URL)
			of := func(n int) string { return [2]string{"of nobody", "of a visitor"}[n] }
			want := []string{"event.tracked before.load /a " + of(c.first), "page.viewed /a " + of(c.first), "page.viewed /b " + of(c.second), "event.tracked after /b " + of(c.second), "page.viewed /a " + of(c.second)}
			if len(got) > 1 && strings.HasPrefix(got[0], "page.viewed") { // two at once
				got[0], got[1] = got[1], got[0]
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Error(diff)
			}
			browsertest.Eval[bool](tab, `(() => { onda("consent", false); return true; })()`)
			kept(0)
		})
	}
}
