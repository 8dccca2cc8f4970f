package track

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/onda-run/onda/internal/contact"
	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/token"
)

// programKey makes a key of a tenant.
func (w *world) programKey(tenant string, kind token.KeyKind) string {
	w.t.Helper()
	var number int32
	pgtest.In(w.t, w.db, tenant, func(_ context.Context, tx *postgres.Tx) error { number = tx.Tenant.Number; return nil })
	k, err := token.NewProgramKey(kind, number)
	if err != nil {
		w.t.Fatal(err)
	}
	sum := k.Hash()
	if err := w.admin.AddProgramKey(context.Background(), tenant, string(kind), "test", sum[:]); err != nil {
		w.t.Fatal(err)
	}
	return k.Reveal()
}

// call posts JSON with a key.
func (w *world) call(path, key, body string) answer {
	w.t.Helper()
	r, err := http.NewRequest(http.MethodPost, w.url+path, strings.NewReader(body))
	if err != nil {
		w.t.Fatal(err)
	}
	r.SetBasicAuth(key, "")
	r.Header.Set("Content-Type", "application/json")
	return w.send(r)
}

// A key is taken as a bearer token too, as by the other functions.
func TestABearerToken(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	sk := w.programKey("acme", token.SecretKey)
	for header, status := range map[string]int{"Bearer " + sk: 200, "bearer " + sk: 200, "Bearer " + sk[:len(sk)-1]: 401, "Bearer": 401, sk: 401} {
		r, err := http.NewRequest(http.MethodPost, w.url+"/v1/track", strings.NewReader(`{"userId": "u1", "event": "order.placed"}`))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", header)
		if a := w.send(r); a.status != status {
			t.Errorf("a header of %d characters: status %d, want %d: %s", len(header), a.status, status, a.body)
		}
	}
	if n := pgtest.One[int64](t, w.db, "acme", "SELECT count(*) FROM fact WHERE kind = 'event.tracked'"); n != 2 {
		t.Errorf("%d events, want 2", n)
	}
}

func TestProgramsIdentifyAndTrack(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	sk := w.programKey("acme", token.SecretKey)
	a := w.call("/v1/identify", sk, `{"userId": "u1", "anonymousId": "v1", "messageId": "m1", "traits": {"email": " Ada@Example.com", "firstName": "Ada", "logins": "7", "plan": "pro"}}`)
	if a.status != 200 || !strings.Contains(a.body, `"success":true`) || !strings.Contains(a.body, `"ignoredTraits":["plan"]`) {
		t.Errorf("identify: %d %s", a.status, a.body)
	}
	got := pgtest.One[string](t, w.db, "acme", "SELECT email || ' ' || (fields->>'first_name') || ' ' || jsonb_typeof(fields->'logins') FROM contact WHERE external_id = 'u1'")
	if got != "ada@example.com Ada number" {
		t.Errorf("contact: %s", got)
	}
	track := `{"userId": 42, "event": "order.placed", "messageId": "m2", "properties": {"total": 120}, "timestamp": "2026-11-20T10:00:00Z", "sentAt": "2026-11-20T12:00:00Z"}`
	for range 3 { // the same message again is the same
		if a := w.call("/v1/track", sk, track); a.status != 200 {
			t.Errorf("track: %d %s", a.status, a.body)
		}
	}
	batch := `{"batch": [{"type": "track", "userId": "u1", "event": "Signed In", "messageId": "m3"}, {"type": "page", "anonymousId": "v1", "name": "Home", "properties": {"url": "https://example.com/"}},
		{"type": "track", "userId": "u1", "event": "Signed In", "messageId": "m3"}, {"type": "group", "userId": "u1", "groupId": "g1"}, {"type": "alias", "previousId": "v2", "userId": "u1"}]}`
	if a := w.call("/v1/batch", sk, batch); a.status != 200 {
		t.Errorf("batch: %d %s", a.status, a.body)
	}
	facts := pgtest.All[string](t, w.db, "acme", `SELECT f.kind || ' ' || f.name || ' ' || coalesce(c.external_id, '-') || ' ' || coalesce(v.key, '-') FROM fact f LEFT JOIN contact c ON c.id = f.contact LEFT JOIN visitor v ON v.id = f.visitor
		WHERE f.kind IN ('page.viewed', 'event.tracked', 'contact.identified') ORDER BY f.id`)
	want := []string{
		"contact.identified  u1 v1", "event.tracked order.placed 42 -", "event.tracked Signed In u1 -", "page.viewed Home - v1", "event.tracked group u1 -", "contact.identified  u1 -",
	}
	if diff := cmp.Diff(want, facts); diff != "" {
		t.Error(diff)
	}
	if !pgtest.One[bool](t, w.db, "acme", "SELECT at BETWEEN onda.now() - interval '121 minutes' AND onda.now() - interval '119 minutes' AND data->>'total' = '120' FROM fact WHERE name = 'order.placed'") {
		t.Error("it did not happen two hours before it was sent, or lost its properties")
	}
	if n := pgtest.One[int](t, w.db, "acme", "SELECT count(*) FROM visitor WHERE contact IS NOT NULL"); n != 2 {
		t.Errorf("%d visitors are attached, want 2", n)
	}
	w.sweep("acme") // every doorbell is valid
}

// A browser's events are told of a contact only where that has granted tracking.web.
func TestVisitorsAreNobodyWithoutConsent(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	sk, pk := w.programKey("acme", token.SecretKey), w.programKey("acme", token.PublicKey)
	w.call("/v1/identify", sk, `{"userId": "u1", "anonymousId": "v1"}`)
	view := func(id string) answer {
		return w.beacon("/e", fmt.Sprintf(`{"key": %q, "type": "page", "visitor": "v1", "messageId": %q, "url": "https://shop.example/a", "title": "A"}`, pk, id))
	}
	if a := view("a"); a.status != 204 || a.header.Get("Access-Control-Allow-Origin") != "*" {
		t.Errorf("page view: %d %s", a.status, a.body)
	}
	pgtest.In(t, w.db, "acme", func(ctx context.Context, tx *postgres.Tx) error {
		var id int64
		if err := tx.QueryRow(ctx, "SELECT id FROM contact WHERE external_id = 'u1'").Scan(&id); err != nil {
			return err
		}
		_, err := contact.Record(ctx, tx, "track", contact.Consent{Contact: id, Purpose: contact.TrackingWeb, State: contact.Granted, Basis: "form"})
		return err
	})
	view("b")
	nameless := `{"key": "` + pk + `", "type": "track", "name": "video.played", "visitor": "", "messageId": "c", "url": "https://shop.example/a"}`
	if a := w.call("/e", "", nameless); a.status != 204 {
		t.Errorf("without an id: %d %s", a.status, a.body)
	}
	got := pgtest.All[string](t, w.db, "acme", `SELECT kind || ' ' || coalesce(contact::text, '-') || ' ' || (visitor IS NOT NULL) || ' ' || (data->>'url') FROM fact WHERE kind IN ('page.viewed', 'event.tracked') ORDER BY id`)
	want := []string{"page.viewed - true https://shop.example/a", "page.viewed 1 true https://shop.example/a", "event.tracked - false https://shop.example/a"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// beacon posts a body as a page's script does.
func (w *world) beacon(path, body string) answer {
	w.t.Helper()
	r, err := http.NewRequest(http.MethodPost, w.url+path, strings.NewReader(body))
	if err != nil {
		w.t.Fatal(err)
	}
	r.Header.Set("Content-Type", "text/plain;charset=UTF-8")
	r.Header.Set("Origin", "https://shop.example")
	return w.send(r)
}

func TestWhatTheTrackingAPIRefuses(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	sk, pk := w.programKey("acme", token.SecretKey), w.programKey("acme", token.PublicKey)
	alien := w.programKey("brava", token.SecretKey)
	retired := w.programKey("acme", token.SecretKey)
	old, err := token.ParseProgramKey(retired)
	if err != nil {
		t.Fatal(err)
	}
	hash := old.Hash()
	pgtest.Exec(t, w.db, "acme", "UPDATE key SET retired_at = now() WHERE secret = $1", hash[:])
	long := strings.Repeat("x", maxMessage)
	for _, c := range []struct {
		name, path, key, body string
		status                int
		says                  string
	}{
		{"no key", "/v1/track", "", `{}`, 401, "key of this tenant"},
		{"not a key", "/v1/track", "onda_sk_1_abc", `{}`, 401, ""},
		{"retired", "/v1/track", retired, `{"userId": "u", "event": "a"}`, 401, ""},
		{"made up", "/v1/track", sk[:len(sk)-2] + "aa", `{"userId": "u", "event": "a"}`, 401, ""},
		{"public identify", "/v1/identify", pk, `{"userId": "u", "anonymousId": "v"}`, 403, "public key"},
		{"public alias", "/v1/alias", pk, `{"userId": "u", "previousId": "v"}`, 403, ""},
		{"public in a batch", "/v1/batch", pk, `{"batch": [{"type": "page", "anonymousId": "v"}, {"type": "identify", "userId": "u"}]}`, 403, "batch[1]"},
		{"public without visitor", "/v1/track", pk, `{"userId": "u", "event": "a"}`, 400, "anonymousId is missing"},
		{"forged click", "/v1/track", sk, `{"userId": "u", "event": "email.clicked"}`, 400, "Onda's own"},
		{"forged, in capitals", "/v1/track", sk, `{"userId": "u", "event": " Form.Submitted"}`, 400, "Onda's own"},
		{"nobody", "/v1/track", sk, `{"event": "a"}`, 400, "userId or anonymousId"},
		{"no event", "/v1/track", sk, `{"userId": "u"}`, 400, "event is missing"},
		{"no JSON", "/v1/track", sk, `{"userId": `, 400, "JSON"},
		{"wrong type", "/v1/track", sk, `{"userId": {}, "event": "a"}`, 400, ""},
		{"NUL", "/v1/track", sk, `{"userId": "u", "event": "a", "properties": {"a": "\u0000"}}`, 400, "NUL"},
		{"control characters", "/v1/track", sk, `{"userId": "u\r\n", "event": "a"}`, 400, "control"},
		{"wrong trait", "/v1/identify", sk, `{"userId": "u", "traits": {"logins": "many"}}`, 400, "traits.logins must be a number"},
		{"bad address", "/v1/identify", sk, `{"userId": "u", "traits": {"email": "ada"}}`, 400, "not an email address"},
		{"unknown type", "/v1/batch", sk, `{"batch": [{"type": "dance", "userId": "u"}]}`, 400, "batch[0]"},
		{"empty batch", "/v1/batch", sk, `{"batch": []}`, 400, "1 to 500"},
		{"large message", "/v1/track", sk, `{"userId": "u", "event": "a", "properties": {"a": "` + long + `"}}`, 413, "32 KB"},
		{"large in a batch", "/v1/batch", sk, `{"batch": [{"type": "track", "userId": "u", "event": "a", "properties": {"a": "` + long + `"}}]}`, 413, ""},
		{"large batch", "/v1/batch", sk, `{"batch": [` + strings.Repeat(`{"type": "track", "userId": "u", "event": "a", "properties": {"a": "`+long[:maxMessage/2]+`"}},`, 40) + `{}]}`, 413, "500 KB"},
		{"secret key in a page", "/e", "", `{"key": "` + sk + `", "type": "page", "visitor": "v"}`, 400, "secret"},
		{"reserved in a page", "/e", "", `{"key": "` + pk + `", "type": "track", "name": "email.opened", "visitor": "v"}`, 400, "Onda's own"},
		{"no key in a page", "/e", "", `{"type": "page"}`, 401, ""},
	} {
		a := w.call(c.path, c.key, c.body)
		var p struct {
			Status int    `json:"status"`
			Detail string `json:"detail"`
		}
		if err := json.Unmarshal([]byte(a.body), &p); err != nil || a.status != c.status || p.Status != c.status || !strings.Contains(p.Detail, c.says) ||
			a.header.Get("Content-Type") != "application/problem+json" {
			t.Errorf("%s: %d %s, want %d %q", c.name, a.status, a.body, c.status, c.says)
		}
		if strings.Contains(a.body, sk) || strings.Contains(a.body, "ada") {
			t.Errorf("%s: the answer quotes what was sent: %s", c.name, a.body)
		}
	}
	if n := pgtest.One[int](t, w.db, "acme", "SELECT (SELECT count(*) FROM fact) + (SELECT count(*) FROM visitor)"); n != 0 {
		t.Errorf("%d rows were stored", n)
	}
	if a := w.call("/v1/track", alien, `{"userId": "u", "event": "a"}`); a.status != 200 {
		t.Errorf("brava: %d", a.status)
	}
	if n := pgtest.One[int](t, w.db, "acme", "SELECT count(*) FROM contact"); n != 0 {
		t.Error("brava's key wrote to acme")
	}
}

func TestCompressedAndAskedFirst(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	sk := w.programKey("acme", token.SecretKey)
	post := func(b []byte) answer {
		r, err := http.NewRequest(http.MethodPost, w.url+"/v1/batch", bytes.NewReader(b))
		if err != nil {
			t.Fatal(err)
		}
		r.SetBasicAuth(sk, "")
		r.Header.Set("Content-Encoding", "gzip")
		return w.send(r)
	}
	pack := func(s string) []byte {
		var b bytes.Buffer
		z := gzip.NewWriter(&b)
		if _, err := z.Write([]byte(s)); err != nil {
			t.Fatal(err)
		}
		if err := z.Close(); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	if a := post(pack(`{"batch": [{"type": "track", "userId": "u", "event": "a"}]}`)); a.status != 200 {
		t.Errorf("gzip: %d %s", a.status, a.body)
	}
	if a := post(pack(strings.Repeat(" ", 10*maxBatch))); a.status != 413 {
		t.Errorf("bomb: %d", a.status)
	}
	if a := post([]byte("plain")); a.status != 400 {
		t.Errorf("not gzip: %d", a.status)
	}
	r, err := http.NewRequest(http.MethodOptions, w.url+"/v1/track", nil)
	if err != nil {
		t.Fatal(err)
	}
	if a := w.send(r); a.status != 204 || !strings.Contains(a.header.Get("Access-Control-Allow-Headers"), "Authorization") {
		t.Errorf("preflight: %d %v", a.status, a.header)
	}
	if a := w.get("/onda.js"); a.status != 200 || !strings.Contains(a.body, "data-key") || !strings.HasPrefix(a.header.Get("Content-Type"), "text/javascript") {
		t.Errorf("onda.js: %d", a.status)
	}
}

func TestWhatIsKeptForAWhile(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	sk := w.programKey("acme", token.SecretKey)
	w.call("/v1/track", sk, `{"anonymousId": "v1", "event": "a", "messageId": "m"}`)
	_, d := w.sent("acme", "ada@example.com", time.Hour)
	w.get("/o/" + w.token("acme", token.Claims{Purpose: token.Open, Delivery: d}) + ".gif")
	w.sweep("acme")
	w.move("acme", 31*24*time.Hour)
	w.sweep("acme")
	got := pgtest.One[string](t, w.db, "acme", `SELECT (SELECT count(*) FROM visitor) || ' ' || (SELECT count(*) FROM allowance) || ' ' || (SELECT count(*) FROM hit) || ' ' || (SELECT count(*) FROM hit WHERE origin IS NOT NULL OR agent <> '')`)
	if got != "0 0 1 0" {
		t.Errorf("after a month: %s", got)
	}
	w.move("acme", 400*24*time.Hour)
	w.sweep("acme")
	if n := pgtest.One[int](t, w.db, "acme", "SELECT count(*) FROM hit"); n != 0 {
		t.Errorf("after a year: %d hits", n)
	}
	if n := len(w.stats("acme")); n != 1 {
		t.Errorf("after a year: %d rows of statistics", n)
	}
	if !pgtest.One[bool](t, w.db, "acme", "SELECT at = 'infinity' FROM onda.wakeup WHERE function = 'track'") {
		t.Error("there is nothing to do, and somebody will be woken")
	}
}

func TestWebView(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id, d := w.sent("acme", "ada@example.com", time.Hour)
	pgtest.Exec(t, w.db, "acme", `UPDATE contact SET fields = '{"first_name": "<script>alert(1)</script>"}'`)
	path := "/w/" + w.token("acme", token.Claims{Purpose: token.WebView, Delivery: d})
	a := w.get(path)
	if a.status != 200 || !strings.Contains(a.body, "&lt;script&gt;") || strings.Contains(a.body, "<script>alert") || !strings.Contains(a.header.Get("Content-Security-Policy"), "sandbox") {
		t.Errorf("%d %v %s", a.status, a.header, a.body)
	}
	if !strings.Contains(a.body, "https://links.example/u/") {
		t.Error("its unsubscribe link is missing")
	}
	w.sweep("acme")
	if diff := cmp.Diff([]string{"view human link=false tracked=true n=1 firsts=1"}, w.stats("acme")); diff != "" {
		t.Error(diff)
	}
	pgtest.Exec(t, w.db, "acme", "UPDATE contact SET erased_at = now() WHERE id = $1", id)
	if a := w.get(path); a.status != 404 || !strings.Contains(a.body, "no longer here") {
		t.Errorf("erased: %d", a.status)
	}
}

// The web view, like the mail, leads to the tenant's own host; whatever host a link has, it is served.
func TestServesAtEveryHost(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for tenant, link := range map[string][]string{"acme": {"go.acme.example", "old.acme.example"}, "brava": {"go.brava.example"}} {
		if _, err := w.admin.SetHosts(t.Context(), tenant, link, nil); err != nil {
			t.Fatal(err)
		}
	}
	for tenant, want := range map[string]string{"acme": "https://go.acme.example/", "brava": "https://go.brava.example/"} {
		_, d := w.sent(tenant, "ada@example.com", time.Hour)
		view := "/w/" + w.token(tenant, token.Claims{Purpose: token.WebView, Delivery: d})
		body := w.get(view).body
		paths := []string{view, "/o/" + w.token(tenant, token.Claims{Purpose: token.Open, Delivery: d}) + ".gif"}
		for _, m := range regexp.MustCompile(`href="(https://[^/]+/)([cuw]/[^"]+)"`).FindAllStringSubmatch(body, -1) {
			if m[1] != want {
				t.Errorf("%s: a link to %s, want %s", tenant, m[1], want)
			}
			paths = append(paths, "/"+m[2])
		}
		if len(paths) != 6 { // two clicks, one unsubscribe, one web view more
			t.Errorf("%s: paths %q in %s", tenant, paths, body)
		}
		for _, host := range []string{"go.acme.example", "old.acme.example", "gone.acme.example", "links.example"} {
			for _, path := range paths {
				r, err := http.NewRequest(http.MethodGet, w.url+path, nil)
				if err != nil {
					t.Fatal(err)
				}
				r.Host = host
				if a := w.send(r); a.status != 200 && (a.status != 302 || !strings.HasPrefix(a.header.Get("Location"), "https://example.com/")) {
					t.Errorf("%s at %s: %s: %d", tenant, host, path, a.status)
				}
			}
		}
	}
}
