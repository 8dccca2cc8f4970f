package track

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap/zaptest"
	segment "gopkg.in/segmentio/analytics-go.v3"

	"github.com/onda-run/onda/internal/browsertest"
	"github.com/onda-run/onda/internal/compose"
	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/token"
)

// Segment's SDKs are here as their makers publish them: for Go by go.mod, for Node.js and the browser by tools/segment/package-lock.json. make test installs them.
const segmentSDKs = "../../tools/segment"

// told is what became of messages: the kind of each fact, its name, whom it is about and what it says.
func (w *world) told(tenant string) []string {
	w.t.Helper()
	return pgtest.All[string](w.t, w.db, tenant, `SELECT concat_ws(' ', f.kind, nullif(f.name, ''), coalesce(c.external_id, '-'), coalesce(v.key, '-'), f.data) FROM fact f LEFT JOIN contact c ON c.id = f.contact LEFT JOIN visitor v ON v.id = f.visitor
		WHERE f.kind IN ('page.viewed', 'event.tracked', 'contact.identified') ORDER BY f.id`)
}

// what the programs of both SDKs for servers say.
func wantOfServers() []string {
	return []string{
		`contact.identified u1 v1 {"ignored": ["plan"]}`,
		`event.tracked Order Placed u1 - {"lines": [{"sku": "a"}], "total": 120}`,
		`page.viewed Home - v1 {"url": "https://example.com/", "name": "Home"}`,
		`page.viewed Cart u1 - {"name": "Cart"}`,
		`event.tracked group u1 - {"traits": {"size": 3}, "groupId": "g1"}`,
		`contact.identified u1 -`,
	}
}

func (w *world) checkServers() {
	w.t.Helper()
	if diff := cmp.Diff(wantOfServers(), w.told("acme")); diff != "" {
		w.t.Error(diff)
	}
	if got := pgtest.One[string](w.t, w.db, "acme", "SELECT string_agg(email || ' ' || fields::text, ', ') FROM contact"); got != `ada@example.com {"first_name": "Ada"}` {
		w.t.Errorf("contacts: %s", got)
	}
	if got := pgtest.One[string](w.t, w.db, "acme", "SELECT string_agg(v.key || ' ' || c.external_id, ', ' ORDER BY v.key) FROM visitor v JOIN contact c ON c.id = v.contact"); got != "v0 u1, v1 u1" {
		w.t.Errorf("visitors: %s", got)
	}
	if !pgtest.One[bool](w.t, w.db, "acme", "SELECT bool_and(at BETWEEN onda.now() - interval '10 minutes' AND onda.now()) FROM fact") {
		w.t.Error("they happened at another time")
	}
}

func TestSegmentsSDKForNode(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	cmd := exec.CommandContext(t.Context(), "node", "send.js", w.url, w.programKey("acme", token.SecretKey)) //nolint:gosec // a program of this repository
	cmd.Dir = segmentSDKs
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v (make test installs what it needs)\n%s", err, out)
	}
	w.checkServers()
}

func TestSegmentsSDKForGo(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	done := &delivered{}
	c, err := segment.NewWithConfig(w.programKey("acme", token.SecretKey), segment.Config{Endpoint: w.url, Callback: done, RetryAfter: func(int) time.Duration { return time.Millisecond }})
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range []segment.Message{
		segment.Identify{UserId: "u1", AnonymousId: "v1", Traits: segment.NewTraits().SetEmail("ada@example.com").SetFirstName("Ada").Set("plan", "pro")},
		segment.Track{UserId: "u1", Event: "Order Placed", Properties: segment.NewProperties().SetTotal(120).Set("lines", []map[string]string{{"sku": "a"}})},
		segment.Page{AnonymousId: "v1", Name: "Home", Properties: segment.NewProperties().SetURL("https://example.com/")},
		segment.Screen{UserId: "u1", Name: "Cart"},
		segment.Group{UserId: "u1", GroupId: "g1", Traits: segment.Traits{"size": 3}},
		segment.Alias{UserId: "u1", PreviousId: "v0"},
	} {
		if err := c.Enqueue(m); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Close(); err != nil { // sends what waits
		t.Fatal(err)
	}
	done.mu.Lock()
	defer done.mu.Unlock()
	if done.n != 6 || done.err != nil {
		t.Errorf("%d messages were delivered, want 6: %v", done.n, done.err)
	}
	w.checkServers()
}

// delivered hears from the SDK for Go what became of messages.
type delivered struct {
	mu  sync.Mutex
	n   int
	err error
}

func (d *delivered) Success(segment.Message) { d.mu.Lock(); d.n++; d.mu.Unlock() }

func (d *delivered) Failure(_ segment.Message, err error) { d.mu.Lock(); d.err = err; d.mu.Unlock() }

// shop is a page with Segment's snippet, whose script it serves itself; the rest comes from where _cdn says.
const shop = `<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>Shop</title><link rel="icon" href="data:,">
<script>
  window.analytics = [];
  ["track", "page", "identify", "group", "alias", "screen", "ready", "on"].forEach(function (m) {
    analytics[m] = function () { var a = Array.prototype.slice.call(arguments); a.unshift(m); analytics.push(a); return analytics; };
  });
  analytics._writeKey = %q; analytics._cdn = %q; analytics._loadOptions = {integrations: {"Segment.io": {deliveryStrategy: %s}}};
  analytics.page("Home"); // before the script is here
</script>
<script src="/standalone.js" async></script></head><body><h1>Shop</h1></body></html>`

// Segment's SDK for browsers, from another site and with a public key: it finds where to send to, sends, comes again when it is told to, and whatever it is told of a person is of
// nobody.
func TestSegmentsSDKInABrowser(t *testing.T) { //nolint:tparallel // one after the other: a browser has one tab in front
	t.Parallel()
	script, err := os.ReadFile(filepath.Join(segmentSDKs, "node_modules/@segment/analytics-next/dist/umd/standalone.js"))
	if err != nil {
		t.Fatalf("%v (make test installs it)", err)
	}
	b := browsertest.Start(t)
	for name, strategy := range map[string]string{"one by one": "{}", "in batches": `{"strategy": "batching", "config": {"size": 6, "timeout": 500}}`} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			again := w.served()
			pk := w.programKey("acme", token.PublicKey)
			site := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/standalone.js" {
					rw.Header().Set("Content-Type", "text/javascript")
					_, _ = rw.Write(script)
					return
				}
				rw.Header().Set("Content-Type", "text/html; charset=utf-8")
				_, _ = fmt.Fprintf(rw, shop, pk, w.url, strategy)
			}))
			t.Cleanup(site.Close)
			tab := b.Open(t, browsertest.Visitors()[1], site.URL+"/?utm_source=x")
			tab.Until("window.analytics.initialized === true")
			browsertest.Eval[bool](tab, `(() => {
				analytics.identify("u1", {email: "eve@example.com", firstName: "Eve"}); analytics.group("g1", {size: 3}); analytics.alias("u2");
				analytics.screen("Cart"); analytics.track("Order Placed", {total: 120}); return true; })()`)
			again.wait(t)
			id := browsertest.Eval[string](tab, "analytics.user().anonymousId()")
			want := []string{"event.tracked Order Placed 120", "page.viewed Cart ", "page.viewed Home "}
			got := pgtest.All[string](t, w.db, "acme", `SELECT concat(kind, ' ', f.name, ' ', data->>'total') FROM fact f JOIN visitor v ON v.id = f.visitor AND v.contact IS NULL
				WHERE f.contact IS NULL AND v.key = $1 ORDER BY 1`, id)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Error(diff)
			}
			if n := pgtest.One[int](t, w.db, "acme", "SELECT (SELECT count(*) FROM contact) + (SELECT count(*) FROM consent)"); n != 0 {
				t.Errorf("a public key wrote %d contacts and consents", n)
			}
			if u := pgtest.One[string](t, w.db, "acme", "SELECT data->>'url' FROM fact WHERE name = 'Home'"); !strings.HasPrefix(u, site.URL) {
				t.Errorf("the page's URL: %s", u)
			}
			if again.retries() == 0 {
				t.Error("no request was told to come again, and did")
			}
		})
	}
}

// counter sees the answers to a browser.
type counter struct {
	mu     sync.Mutex
	failed bool // the first one was told to come again
	again  int  // requests that said that they are a repeat
	left   map[string]bool
	all    chan struct{}
}

func (c *counter) retries() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.again
}

func (c *counter) wait(t *testing.T) {
	t.Helper()
	select {
	case <-c.all:
	case <-time.After(time.Minute):
		c.mu.Lock()
		defer c.mu.Unlock()
		t.Fatalf("after a minute, still missing: %v", c.left)
	}
}

// took notes which messages are done with.
func (c *counter) took(kinds []string, again bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if again {
		c.again++
	}
	before := len(c.left)
	for _, k := range kinds {
		delete(c.left, k)
	}
	if before > 0 && len(c.left) == 0 {
		close(c.all)
	}
}

// served puts the function at an address that it knows, and lets the database be away for the first page view or batch. (Of an alias that is refused the SDK makes no second attempt.)
func (w *world) served() *counter {
	w.t.Helper()
	c := &counter{all: make(chan struct{}), left: map[string]bool{"page": true, "identify": true, "group": true, "alias": true, "screen": true, "track": true}}
	s := httptest.NewUnstartedServer(nil)
	w.url = "http://" + s.Listener.Addr().String()
	tracker := New(Config{Slots: 2, EventsPerSecond: 100, Compose: compose.Config{LinkURL: w.url}}, w.db, zaptest.NewLogger(w.t))
	h, err := tracker.Handler()
	if err != nil {
		w.t.Fatal(err)
	}
	s.Config.Handler = http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost {
			h.ServeHTTP(rw, r)
			return
		}
		c.mu.Lock()
		first := !c.failed && (r.URL.Path == "/v1/p" || r.URL.Path == "/v1/b")
		c.failed = c.failed || first
		c.mu.Unlock()
		if first {
			ctx, cancel := context.WithCancel(r.Context())
			cancel()
			h.ServeHTTP(rw, r.WithContext(ctx))
			return
		}
		body, err := io.ReadAll(r.Body)
		if err != nil {
			w.t.Error(err)
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, r)
		maps.Copy(rw.Header(), rec.Header())
		rw.WriteHeader(rec.Code)
		_, _ = rw.Write(rec.Body.Bytes())
		if rec.Code != http.StatusOK {
			w.t.Errorf("%s: %d %s", r.URL.Path, rec.Code, rec.Body)
		}
		c.took(kindsOf(body), r.Header.Get("X-Retry-Count") != "")
	})
	s.Start()
	w.t.Cleanup(s.Close)
	return c
}

// kindsOf gives the types of the messages in a body.
func kindsOf(body []byte) (kinds []string) {
	type typed struct {
		Type string `json:"type"`
	}
	var m struct {
		typed

		Batch []typed `json:"batch"`
	}
	_ = json.Unmarshal(body, &m) // what is no JSON is refused
	for _, t := range append(m.Batch, m.typed) {
		kinds = append(kinds, t.Type)
	}
	return kinds
}
