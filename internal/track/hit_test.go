package track

import (
	"context"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.opentelemetry.io/otel/attribute"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"github.com/onda-run/onda/internal/compose"
	"github.com/onda-run/onda/internal/contact"
	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/token"
)

func TestAPersonOpensAndClicks(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id, d := w.sent("acme", "ada@example.com", time.Hour)
	w.sent("brava", "ada@example.com", time.Hour)
	pixelURL := "/o/" + w.token("acme", token.Claims{Purpose: token.Open, Delivery: d}) + ".gif"
	click := "/c/" + w.token("acme", token.Claims{Purpose: token.Click, Delivery: d, Link: w.link("acme", "https://example.com/b")})
	if a := w.get(pixelURL); a.status != 200 || a.header.Get("Content-Type") != "image/gif" || a.body != string(pixel) || !strings.Contains(a.header.Get("Cache-Control"), "no-store") {
		t.Errorf("pixel: %+v", a)
	}
	for range 2 {
		if a := w.get(click); a.status != 302 || a.header.Get("Location") != "https://example.com/b" {
			t.Errorf("click: %+v", a)
		}
	}
	if n := pgtest.One[int](t, w.db, "acme", "SELECT count(*) FROM hit WHERE origin IS NOT NULL AND agent <> '' AND contact = $1", id); n != 3 {
		t.Errorf("%d hits are stored when answered, want 3", n)
	}
	if !pgtest.One[bool](t, w.db, "acme", "SELECT at < 'infinity' FROM onda.wakeup WHERE function = 'track'") {
		t.Error("nobody is woken to judge")
	}
	types := w.sweep("acme")
	want := []string{"click human link=true tracked=true n=2 firsts=1", "open human link=false tracked=true n=1 firsts=1"}
	if diff := cmp.Diff(want, w.stats("acme")); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"email.opened news", "email.clicked news", "email.clicked news"}, w.facts("acme", "email.%")); diff != "" {
		t.Error(diff)
	}
	if !strings.Contains(strings.Join(types, " "), "onda.email.clicked.v1") {
		t.Errorf("doorbells: %v", types)
	}
	if got := w.stats("brava"); len(got) > 0 || len(w.facts("brava", "email.%")) > 0 {
		t.Errorf("brava has %v", got)
	}
	w.sweep("acme") // again changes nothing
	if diff := cmp.Diff(want, w.stats("acme")); diff != "" {
		t.Error(diff)
	}
	if n := pgtest.One[int](t, w.db, "acme", "SELECT count(*) FROM fact WHERE kind = 'email.clicked' AND contact = $1 AND deliveries = ARRAY[$2::bigint] AND run > 0 AND (data->>'link')::int > 0", id, d); n != 2 {
		t.Errorf("%d facts of clicks have what they need, want 2", n)
	}
}

func TestForgedTokensLeadNowhere(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id, d := w.sent("acme", "ada@example.com", time.Hour)
	link := w.link("acme", "https://example.com/a")
	good := w.token("acme", token.Claims{Purpose: token.Click, Delivery: d, Link: link})
	open := w.token("acme", token.Claims{Purpose: token.Open, Delivery: d})
	// brava's key over acme's claims, and acme's token for a link that there is none of
	var alien string
	pgtest.In(t, w.db, "brava", func(ctx context.Context, tx *postgres.Tx) error {
		keys, err := tx.Keys(ctx)
		if err != nil {
			return err
		}
		k, _ := keys.Tokens.Current()
		alien, err = token.Sign(k, token.Claims{Purpose: token.Click, Tenant: pgtest.One[int32](t, w.db, "acme", "SELECT number FROM onda.tenant"), Delivery: d, Link: link})
		return err
	})
	for name, path := range map[string]string{
		"truncated":      "/c/" + good[:len(good)-2],
		"another letter": "/c/" + good[:10] + swap(good[10]) + good[11:],
		"another's key":  "/c/" + alien,
		"another path":   "/c/" + open,
		"unknown link":   "/c/" + w.token("acme", token.Claims{Purpose: token.Click, Delivery: d, Link: 99_999}),
		"unknown tenant": "/c/" + strings.Repeat("a", 40),
		"empty":          "/c/",
		"pixel":          "/o/" + good + ".gif",
		"no gif":         "/o/" + open,
		"unsubscribe":    "/u/" + good,
		"preferences":    "/p/" + w.token("acme", token.Claims{Purpose: token.Unsubscribe, Contact: id}),
		"nothing":        "/nothing",
	} {
		for _, method := range []string{http.MethodGet, http.MethodHead} {
			a := w.do(method, path, "203.0.113.1", browser, nil)
			if a.status != 404 || a.header.Get("Location") != "" || method == http.MethodGet && !strings.Contains(a.body, "There is nothing here") {
				t.Errorf("%s %s: %d %s", method, name, a.status, a.header)
			}
		}
	}
	if a := w.do(http.MethodPost, "/c/"+good, "203.0.113.1", browser, nil); a.status != 405 || a.header.Get("Allow") == "" {
		t.Errorf("POST of a click: %d", a.status)
	}
	if n := pgtest.One[int](t, w.db, "acme", "SELECT count(*) FROM hit"); n != 0 {
		t.Errorf("%d hits were stored", n)
	}
}

// A tenant that is gone is unknown at once, also to a process that served it a moment ago.
func TestADeletedTenantIsUnknown(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id, delivery := w.sent("acme", "ada@example.com", time.Hour)
	pgtest.Exec(t, w.db, "acme", "UPDATE run SET state = 'completed'")
	topic := w.topicID("acme", "newsletter")
	paths := []string{
		"/o/" + w.token("acme", token.Claims{Purpose: token.Open, Delivery: delivery}) + ".gif",
		"/c/" + w.token("acme", token.Claims{Purpose: token.Click, Delivery: delivery, Link: w.link("acme", "https://example.com/a")}),
		"/u/" + w.token("acme", token.Claims{Purpose: token.Unsubscribe, Contact: id, Topic: topic}),
		"/p/" + w.token("acme", token.Claims{Purpose: token.Preferences, Contact: id, Topic: topic}),
		"/w/" + w.token("acme", token.Claims{Purpose: token.WebView, Delivery: delivery}),
	}
	paths = append(paths, paths[3]+"/stored", paths[3]+"/copy")
	get := func(when string, want ...int) {
		for _, path := range paths {
			if a := w.get(path); !slices.Contains(want, a.status) {
				t.Errorf("%s, %s: %d", when, path[:3], a.status)
			}
		}
	}
	get("active", 200, 302)
	if _, err := w.admin.Suspend(t.Context(), "acme", false); err != nil {
		t.Fatal(err)
	}
	get("suspended", 200, 302)
	if _, err := w.admin.Delete(t.Context(), "acme"); err != nil {
		t.Fatal(err)
	}
	get("deleted", 404)
	for _, path := range []string{paths[2], paths[3], paths[5]} {
		if a := w.do("POST", path, "203.0.113.1", browser, url.Values{}); a.status != 404 {
			t.Errorf("POST of a deleted one's %s: %d", path[:3], a.status)
		}
	}
}

func swap(c byte) string {
	if c == 'b' {
		return "c"
	}
	return "b"
}

func TestWithdrawnTrackingLeavesNothingButACount(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id, d := w.sent("acme", "ada@example.com", time.Hour)
	pgtest.In(t, w.db, "acme", func(ctx context.Context, tx *postgres.Tx) error {
		_, err := contact.Record(ctx, tx, "track", contact.Consent{Contact: id, Purpose: contact.TrackingEmail, State: contact.Withdrawn, Basis: "preferences"})
		return err
	})
	link := w.link("acme", "https://example.com/a")
	w.get("/o/" + w.token("acme", token.Claims{Purpose: token.Open, Delivery: d}) + ".gif")
	w.get("/c/" + w.token("acme", token.Claims{Purpose: token.Click, Delivery: d, Link: link}))
	w.get("/c/" + w.token("acme", token.Claims{Purpose: token.Click, Link: link})) // sent in the aggregate
	w.do(http.MethodGet, "/c/"+w.token("acme", token.Claims{Purpose: token.Click, Link: link}), "203.0.113.1", "curl/8.0", nil)
	if n := pgtest.One[int](t, w.db, "acme", "SELECT count(*) FROM hit WHERE delivery > 0 OR contact IS NOT NULL OR origin IS NOT NULL OR agent <> ''"); n != 0 {
		t.Errorf("%d hits tell something of somebody", n)
	}
	w.sweep("acme")
	want := []string{
		"click human link=true tracked=false n=2 firsts=0", "click machine link=true tracked=false n=1 firsts=0", "open human link=false tracked=false n=1 firsts=0",
	}
	if diff := cmp.Diff(want, w.stats("acme")); diff != "" {
		t.Error(diff)
	}
	if n := pgtest.One[int](t, w.db, "acme", "SELECT (SELECT count(*) FROM hit) + (SELECT count(*) FROM fact WHERE kind LIKE 'email.%')"); n != 0 {
		t.Errorf("%d rows are left", n)
	}
}

func TestMachinesAreToldApart(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b := w.link("acme", "https://example.com/a"), w.link("acme", "https://example.com/b")
	c := func(d, link int64) string {
		return "/c/" + w.token("acme", token.Claims{Purpose: token.Click, Delivery: d, Link: link})
	}
	o := func(d int64) string {
		return "/o/" + w.token("acme", token.Claims{Purpose: token.Open, Delivery: d}) + ".gif"
	}
	_, scanner := w.sent("acme", "scanner@example.com", time.Hour)
	w.do("GET", o(scanner), "198.51.100.1", browser, nil)
	w.do("GET", c(scanner, a), "198.51.100.1", browser, nil)
	w.do("GET", c(scanner, b), "198.51.100.1", browser, nil)
	_, soon := w.sent("acme", "soon@example.com", 0)
	w.do("GET", c(soon, a), "198.51.100.2", browser, nil)
	_, head := w.sent("acme", "head@example.com", time.Hour)
	w.do("HEAD", c(head, a), "198.51.100.3", browser, nil)
	w.do("GET", c(head, a), "198.51.100.3", browser, nil)
	_, person := w.sent("acme", "person@example.com", time.Hour)
	w.do("GET", o(person), "192.0.2.17", "Mozilla/5.0", nil)
	w.do("GET", o(person), "192.0.2.66", "Mozilla/5.0 (Windows NT 5.1; rv:11.0) Gecko Firefox/11.0 (via ggpht.com GoogleImageProxy)", nil)
	w.do("GET", o(person), "66.249.80.1", browser, nil)
	w.do("GET", c(person, a), "203.0.113.5", browser, nil)
	_, network := w.sent("acme", "network@example.com", time.Hour)
	w.do("GET", c(network, a), "40.94.1.2", browser, nil)
	_, follower := w.sent("acme", "follower@example.com", time.Hour)
	w.do("GET", c(follower, a), "198.51.100.9", browser, nil)
	if a := w.do("GET", strings.TrimSuffix(o(follower), ".gif")+compose.UnseenSuffix, "198.51.100.9", browser, nil); a.status != 204 || a.body != "" {
		t.Errorf("unseen link: %d %s", a.status, a.body)
	}
	_, reader := w.sent("acme", "reader@example.com", time.Hour)
	for header, value := range map[string]string{"Sec-Purpose": "prefetch;prerender", "Purpose": "preview", "X-Purpose": "Preview", "X-Moz": "prefetch"} {
		r, err := http.NewRequest(http.MethodGet, w.url+c(reader, a), nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("User-Agent", browser)
		r.Header.Set(header, value)
		w.send(r)
	}
	w.sweep("acme")
	got := pgtest.All[string](t, w.db, "acme", `SELECT c.email || ' ' || h.kind || ' ' || h.verdict || ' ' || h.reason FROM hit h JOIN contact c ON c.id = h.contact ORDER BY h.id`)
	want := []string{
		"scanner@example.com open machine burst", "scanner@example.com click machine burst", "scanner@example.com click machine burst",
		"soon@example.com click machine too-soon",
		"head@example.com click machine head", "head@example.com click machine probe",
		"person@example.com open machine apple-mpp", "person@example.com open machine image-proxy", "person@example.com open machine proxy-network", "person@example.com click human ",
		"network@example.com click machine scanner-network", "follower@example.com click machine unseen-link", "follower@example.com click machine unseen-link",
		"reader@example.com click machine prefetch", "reader@example.com click machine prefetch", "reader@example.com click machine prefetch", "reader@example.com click machine prefetch",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"email.clicked news"}, w.facts("acme", "email.%")); diff != "" {
		t.Error(diff)
	}
}

func TestLaterEvidenceCorrects(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	_, d := w.sent("acme", "ada@example.com", time.Hour)
	a, b := w.link("acme", "https://example.com/a"), w.link("acme", "https://example.com/b")
	click := func(link int64) {
		w.get("/c/" + w.token("acme", token.Claims{Purpose: token.Click, Delivery: d, Link: link}))
	}
	click(a)
	w.sweep("acme") // with no hold, too early to see the burst
	if diff := cmp.Diff([]string{"click human link=true tracked=true n=1 firsts=1"}, w.stats("acme")); diff != "" {
		t.Fatal(diff)
	}
	pgtest.Exec(t, w.db, "acme", "UPDATE hit SET at = onda.now()") // as if the second came at once, however slow this test is
	click(b)
	pgtest.Exec(t, w.db, "acme", "UPDATE hit SET at = date_trunc('hour', (SELECT max(hour) FROM stat)) + interval '1 minute'")
	types := w.sweep("acme")
	want := []string{"click machine link=true tracked=true n=1 firsts=1", "click machine link=true tracked=true n=1 firsts=0"}
	if diff := cmp.Diff(want, w.stats("acme")); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"hit.reclassified news"}, w.facts("acme", "hit.%")); diff != "" {
		t.Error(diff)
	}
	if !strings.Contains(strings.Join(types, " "), "onda.hit.reclassified.v1") {
		t.Errorf("doorbells: %v", types)
	}
}

func TestHoldLetsHitsWait(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.cfg.Hold = 10 * time.Second
	_, d := w.sent("acme", "ada@example.com", time.Hour)
	w.get("/o/" + w.token("acme", token.Claims{Purpose: token.Open, Delivery: d}) + ".gif")
	w.sweep("acme")
	if got := w.stats("acme"); len(got) > 0 {
		t.Errorf("judged too early: %v", got)
	}
	if !pgtest.One[bool](t, w.db, "acme", `SELECT w.at = h.at + interval '10 seconds' FROM onda.wakeup w, hit h WHERE w.function = 'track'`) {
		t.Error("the wake-up is not when the hold ends")
	}
	w.move("acme", 11*time.Second)
	w.sweep("acme")
	if got := w.stats("acme"); len(got) != 1 {
		t.Errorf("after the hold: %v", got)
	}
}

// A tenant whose tables are locked fails alone.
func TestALockedTenantStopsNobodyElse(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	_, acme := w.sent("acme", "ada@example.com", time.Hour)
	_, brava := w.sent("brava", "ada@example.com", time.Hour)
	paths := map[string]string{
		"acme":  "/o/" + w.token("acme", token.Claims{Purpose: token.Open, Delivery: acme}) + ".gif",
		"brava": "/o/" + w.token("brava", token.Claims{Purpose: token.Open, Delivery: brava}) + ".gif",
	}
	locked, free := make(chan struct{}), make(chan struct{})
	var holder, visits sync.WaitGroup
	holder.Go(func() {
		pgtest.In(t, w.db, "acme", func(ctx context.Context, tx *postgres.Tx) error {
			_, err := tx.Exec(ctx, "LOCK TABLE hit IN ACCESS EXCLUSIVE MODE")
			close(locked)
			<-free
			return err
		})
	})
	<-locked
	for range 5 {
		visits.Go(func() {
			if a := w.get(paths["acme"]); a.status != 503 || a.header.Get("Retry-After") == "" {
				t.Errorf("acme, locked: %d", a.status)
			}
		})
		visits.Go(func() {
			if a := w.get(paths["brava"]); a.status != 200 {
				t.Errorf("brava: %d", a.status)
			}
		})
	}
	visits.Wait()
	close(free)
	holder.Wait()
	if n := pgtest.One[int](t, w.db, "brava", "SELECT count(*) FROM hit"); n != 5 {
		t.Errorf("brava has %d hits, want 5", n)
	}
}

// A click's way into the statistics is measured where it ends.
func TestLagIsTold(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	told := map[string]time.Duration{}
	w.db.Watch(func(_ context.Context, what, reader string, oldest time.Duration, n int) {
		if reader != "track" || n == 0 || what == "hits" && n != 2 {
			t.Errorf("told of %d %s for %s", n, what, reader)
		}
		told[what] = oldest
	})
	for range 2 {
		_, d := w.sent("acme", "ada@example.com", time.Hour)
		w.get("/c/" + w.token("acme", token.Claims{Purpose: token.Click, Link: w.link("acme", "https://example.com/a"), Delivery: d}))
	}
	w.move("acme", time.Minute)
	w.sweep("acme")
	if told["hits"] < time.Minute || told["hits"] > 2*time.Minute || told["outbox"] > 2*time.Minute {
		t.Errorf("%v", told)
	}
	told = map[string]time.Duration{}
	w.sweep("acme")
	if len(told) > 0 {
		t.Errorf("nothing waits, and is told of: %v", told)
	}
}

// What is judged is counted by what came of it, and what could hardly be judged apart.
func TestHitsAreMeasured(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	reader := sdkmetric.NewManualReader()
	var err error
	if w.judged, err = sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader)).Meter("test").Int64Counter("onda.hits"); err != nil {
		t.Fatal(err)
	}
	a := w.link("acme", "https://example.com/a")
	_, known := w.sent("acme", "known@example.com", time.Hour)
	_, unsent := w.sent("acme", "unsent@example.com", time.Hour)
	pgtest.Exec(t, w.db, "acme", "UPDATE delivery SET state = 'unknown' WHERE id = $1", unsent)
	click := func(delivery int64, from, agent string) {
		w.do(http.MethodGet, "/c/"+w.token("acme", token.Claims{Purpose: token.Click, Delivery: delivery, Link: a}), from, agent, nil)
	}
	click(known, "203.0.113.1", browser)
	click(known, "203.0.113.1", "")
	click(unsent, "203.0.113.2", browser)
	click(known, "nowhere", browser)
	click(0, "203.0.113.3", browser)
	click(0, "203.0.113.3", "curl/8")
	w.sweep("acme")
	click(known, "203.0.113.1", browser)
	w.sweep("acme") // what was judged is not counted again
	var all metricdata.ResourceMetrics
	if err := reader.Collect(t.Context(), &all); err != nil {
		t.Fatal(err)
	}
	got := map[string]int64{}
	for _, p := range all.ScopeMetrics[0].Metrics[0].Data.(metricdata.Sum[int64]).DataPoints {
		got[p.Attributes.Encoded(attribute.DefaultEncoder())] = p.Value
	}
	want := map[string]int64{
		"onda.blind=false,onda.kind=click,onda.reason=,onda.verdict=human": 2, "onda.blind=false,onda.kind=click,onda.reason=no-agent,onda.verdict=machine": 1,
		"onda.blind=true,onda.kind=click,onda.reason=,onda.verdict=human": 3, "onda.blind=false,onda.kind=click,onda.reason=program,onda.verdict=machine": 1,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}
