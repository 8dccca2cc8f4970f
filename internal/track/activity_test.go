package track

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/url"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/onda-run/onda/internal/contact"
	"github.com/onda-run/onda/internal/fn"
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

// Some programs have their key in the body, as Segment's documentation lets them; it is proven as any.
func TestAKeyInTheBody(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	sk := w.programKey("acme", token.SecretKey)
	for body, status := range map[string]int{
		`{"userId": "u1", "event": "a", "writeKey": "` + sk + `"}`: 200, `{"userId": "u1", "event": "b", "writeKey": "` + sk[:len(sk)-1] + `"}`: 401, `{"userId": "u1", "event": "c", "writeKey": 7}`: 401, `[`: 401, ``: 401,
	} {
		if a := w.beacon("/v1/track", body); a.status != status {
			t.Errorf("%.40s: status %d, want %d: %s", body, a.status, status, a.body)
		}
	}
	if a := w.beacon("/v1/batch", `{"batch": [{"type": "track", "userId": "u1", "event": "d"}], "writeKey": "`+sk+`"}`); a.status != 200 {
		t.Errorf("batch: %d %s", a.status, a.body)
	}
	if a := w.call("/v1/track", sk[:len(sk)-1], `{"userId": "u1", "event": "e", "writeKey": "`+sk+`"}`); a.status != 401 {
		t.Errorf("another key in the header: %d", a.status)
	}
	if diff := cmp.Diff([]string{"event.tracked a", "event.tracked d"}, slices.Sorted(slices.Values(w.facts("acme", "event.%")))); diff != "" {
		t.Error(diff)
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

// What is good in a batch is stored, and the answer names the rest: a stock program throws away all of a batch that is refused.
func TestBadMessagesSpoilNoBatch(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	sk := w.programKey("acme", token.SecretKey)
	a := w.call("/v1/batch", sk, `{"batch": [{"type": "track", "userId": "u1", "event": "first"}, {"type": "track", "event": "nobody's"}, {"type": "identify", "userId": "u2", "traits": {"email": "ada@"}},
		{"type": "track", "userId": "u1", "event": "email.clicked"}, {"type": "dance"}, 7, {"type": "track", "userId": "u1", "event": "large", "properties": {"a": "`+strings.Repeat("x", maxMessage)+`"}},
		{"type": "track", "userId": "u1", "event": "last"}]}`)
	var got segmentAnswer
	if err := json.Unmarshal([]byte(a.body), &got); err != nil || a.status != 200 || !got.Success {
		t.Fatalf("%d %s", a.status, a.body)
	}
	want := []refusedMessage{
		{1, "userId or anonymousId is missing"},
		{2, ""},
		{3, `an event's name must not begin with "email": such names are Onda's own`},
		{4, "type must be one of identify, track, page, screen, group and alias"},
		{5, "not a message in JSON: it must not be a number"},
		{6, "a message may have 32 KB: too large"},
	}
	if len(got.Errors) > 1 && strings.Contains(got.Errors[1].Detail, "not an email address") && !strings.Contains(got.Errors[1].Detail, "ada") {
		want[1] = got.Errors[1]
	}
	if diff := cmp.Diff(want, got.Errors); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"event.tracked first", "event.tracked last"}, w.facts("acme", "event.%")); diff != "" {
		t.Error(diff)
	}
	if n := pgtest.One[int](t, w.db, "acme", "SELECT count(*) FROM contact"); n != 1 {
		t.Errorf("%d contacts, want 1", n)
	}
}

// What a page must not do with its public key is answered as done, since Segment's snippet does it, and writes nothing.
func TestAPublicKeyWritesNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	sk, pk := w.programKey("acme", token.SecretKey), w.programKey("acme", token.PublicKey)
	w.call("/v1/identify", sk, `{"userId": "u1", "traits": {"email": "ada@example.com", "firstName": "Ada"}}`)
	before := w.snapshot("acme")
	for _, path := range []string{"/v1/identify", "/v1/i", "/v1/group", "/v1/g", "/v1/alias", "/v1/a"} {
		a := w.call(path, pk, `{"userId": "u1", "anonymousId": "v1", "previousId": "v1", "groupId": "g1", "traits": {"email": "eve@example.com", "firstName": "Eve"}}`)
		if a.status != 200 || !strings.Contains(a.body, `"ignored":[{"index":0,`) || !strings.Contains(a.body, "secret key") {
			t.Errorf("%s: %d %s", path, a.status, a.body)
		}
	}
	if diff := cmp.Diff(before, w.snapshot("acme")); diff != "" {
		t.Error(diff)
	}
	a := w.call("/v1/batch", pk, `{"batch": [{"type": "identify", "userId": "u1", "anonymousId": "v1", "traits": {"firstName": "Eve"}}, {"type": "page", "userId": "u1", "anonymousId": "v1"}]}`)
	if a.status != 200 || !strings.Contains(a.body, `"ignored":[{"index":0,"type":"identify"`) {
		t.Errorf("batch: %d %s", a.status, a.body)
	}
	got := pgtest.All[string](t, w.db, "acme", "SELECT f.kind || ' ' || coalesce(f.contact::text, '-') || ' ' || v.key || ' ' || coalesce(v.contact::text, '-') FROM fact f JOIN visitor v ON v.id = f.visitor")
	if diff := cmp.Diff([]string{"page.viewed - v1 -"}, got); diff != "" {
		t.Error(diff)
	}
}

// snapshot is all that the tracking API could write of people, as one text.
func (w *world) snapshot(tenant string) string {
	w.t.Helper()
	return pgtest.One[string](w.t, w.db, tenant, `SELECT concat_ws(E'\n', (SELECT string_agg(c::text, E'\n' ORDER BY id) FROM contact c), (SELECT string_agg(v::text, E'\n' ORDER BY id) FROM visitor v),
		(SELECT string_agg(f::text, E'\n' ORDER BY id) FROM fact f), (SELECT count(*) FROM consent), (SELECT count(*) FROM outbox))`)
}

// A sender's clock may be wrong by any time: what it says of itself corrects it, and nothing happens in the future or before anything could be kept.
func TestClocksOffByAYear(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	sk := w.programKey("acme", token.SecretKey)
	const year, hour = 365 * 24 * time.Hour, time.Hour
	now := time.Now()
	for name, c := range map[string]struct {
		at, sent time.Time
		want     time.Duration
	}{
		"right":                     {now.Add(-hour), now, hour},
		"a year fast":               {now.Add(year - hour), now.Add(year), hour},
		"a year slow":               {now.Add(-year - hour), now.Add(-year), hour},
		"a year slow, not said":     {now.Add(-year - hour), time.Time{}, year + hour},
		"a year fast, not said":     {now.Add(year), time.Time{}, 0},
		"after it was sent":         {now, now.Add(-hour), 0},
		"three years ago":           {now.Add(-3 * year), now, longestAgo},
		"in the year 1":             {time.Date(1, 1, 1, 0, 0, 0, 0, time.UTC), time.Time{}, longestAgo},
		"in the year 9999":          {time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC), time.Time{}, 0},
		"in the year 1, sent later": {time.Date(1, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC), longestAgo},
	} {
		body := map[string]any{"userId": "u1", "event": name, "timestamp": c.at}
		if !c.sent.IsZero() {
			body["sentAt"] = c.sent
		}
		b, err := json.Marshal(body)
		if err != nil {
			t.Fatal(err)
		}
		if a := w.call("/v1/track", sk, string(b)); a.status != 200 {
			t.Errorf("%s: %d %s", name, a.status, a.body)
		}
		got := time.Duration(pgtest.One[float64](t, w.db, "acme", "SELECT extract(epoch FROM onda.now() - at)::float8 FROM fact WHERE name = $1", name)) * time.Second
		if got < c.want-time.Minute || got > c.want+10*time.Minute {
			t.Errorf("%s: %s ago, want %s", name, got, c.want)
		}
	}
}

// Names of properties may be any, and as many as fit: they are values in a document, not columns or rows.
func TestAMillionNamesOfProperties(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	sk := w.programKey("acme", token.SecretKey)
	const perMessage, perBatch, batches = 2_000, 20, 25
	shape := func() string {
		return pgtest.One[string](t, w.db, "acme", "SELECT (SELECT count(*) FROM pg_class WHERE relnamespace = current_schema::regnamespace) || ' ' || (SELECT count(*) FROM pg_attribute a JOIN pg_class c ON c.oid = attrelid WHERE relnamespace = current_schema::regnamespace) || ' ' || (SELECT count(*) FROM entity)")
	}
	before := shape()
	n := 0
	for range batches {
		var b strings.Builder
		for m := range perBatch {
			fmt.Fprintf(&b, `%s{"type":"track","userId":"u1","event":"wide","properties":{"first":1`, [2]string{"", ","}[min(m, 1)])
			for range perMessage {
				fmt.Fprintf(&b, `,"p%d":1`, n)
				n++
			}
			b.WriteString("}}")
		}
		if a := w.call("/v1/batch", sk, `{"batch":[`+b.String()+"]}"); a.status != 200 || strings.Contains(a.body, "errors") {
			t.Errorf("%d %s", a.status, a.body)
		}
	}
	if after := shape(); after != before {
		t.Errorf("tables, columns and entities were %s and are %s", before, after)
	}
	if n := pgtest.One[int](t, w.db, "acme", "SELECT count(DISTINCT k) FROM fact, jsonb_object_keys(data) k"); n != 1_000_001 {
		t.Errorf("%d names", n)
	}
	traits := `{"userId": "u1", "traits": {"t0": 1`
	for i := range perMessage {
		traits += fmt.Sprintf(`,"t%d":1`, i+1)
	}
	if a := w.call("/v1/identify", sk, traits+"}}"); a.status != 200 {
		t.Errorf("identify: %d", a.status)
	}
	if got := pgtest.One[string](t, w.db, "acme", "SELECT fields::text FROM contact"); got != "{}" {
		t.Errorf("fields: %.100s", got)
	}
}

// Programs send again what was not answered, in whatever batches, to whichever process, at the same time: each message is stored once.
func TestEachMessageIsStoredOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	sk := w.programKey("acme", token.SecretKey)
	processes := []*world{w, w.again()}
	random := rand.New(rand.NewPCG(1, 2))
	sent := map[string]bool{}
	for round := range 8 {
		var g errgroup.Group
		for range 12 {
			var messages []string
			for range 1 + random.IntN(40) {
				id := fmt.Sprintf("%d-%d", round, random.IntN(60)) // often also twice in one batch
				sent[id] = true
				messages = append(messages, fmt.Sprintf(`{"type": "track", "userId": "u%d", "messageId": %q, "event": %q}`, random.IntN(3), id, id))
			}
			body := `{"batch": [` + strings.Join(messages, ",") + `]}`
			for _, to := range []int{random.IntN(2), random.IntN(2)} {
				g.Go(func() error {
					if a := processes[to].call("/v1/batch", sk, body); a.status != 200 || strings.Contains(a.body, "errors") {
						return fmt.Errorf("%d %s", a.status, a.body)
					}
					return nil
				})
			}
		}
		if err := g.Wait(); err != nil {
			t.Fatal(err)
		}
	}
	got := pgtest.All[string](t, w.db, "acme", "SELECT name FROM fact WHERE kind = 'event.tracked' ORDER BY name COLLATE \"C\"")
	if diff := cmp.Diff(slices.Sorted(maps.Keys(sent)), got); diff != "" {
		t.Error(diff)
	}
}

// Whether a message came is known for two days, and on both sides of the migration that moved what knows it.
func TestMessagesAreKnownForTwoDays(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	sk := w.programKey("acme", token.SecretKey)
	exec := func(sql string) {
		t.Helper()
		conn, err := pgx.Connect(t.Context(), w.d.AdminURL)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
		if err := conn.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	track := func(id string) {
		t.Helper()
		if a := w.call("/v1/track", sk, fmt.Sprintf(`{"anonymousId": "v1", "event": %q, "messageId": %q}`, id, id)); a.status != 200 {
			t.Errorf("%s: %d %s", id, a.status, a.body)
		}
	}
	told := func(want ...string) {
		t.Helper()
		if diff := cmp.Diff(want, w.facts("acme", "event.%")); diff != "" {
			t.Error(diff)
		}
	}
	exec(fmt.Sprintf("ALTER TABLE acme.message RENAME TO later; UPDATE onda.tenant SET schema = %d", MessageSchema-1))
	track("before")
	track("before")
	exec(fmt.Sprintf("ALTER TABLE acme.later RENAME TO message; UPDATE onda.tenant SET schema = %d", MessageSchema))
	track("after")
	track("before")
	told("event.tracked before", "event.tracked after")
	w.move("acme", 47*time.Hour)
	w.sweep("acme")
	track("after")
	told("event.tracked before", "event.tracked after")
	w.move("acme", 2*time.Hour)
	w.sweep("acme")
	track("after")
	told("event.tracked before", "event.tracked after", "event.tracked after")
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

// packed posts a message as gzip.
func (w *world) packed(key, message string) answer {
	w.t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	if _, err := io.WriteString(z, message); err != nil {
		w.t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		w.t.Fatal(err)
	}
	r, err := http.NewRequest(http.MethodPost, w.url+"/v1/track", &b)
	if err != nil {
		w.t.Fatal(err)
	}
	r.SetBasicAuth(key, "")
	r.Header.Set("Content-Encoding", "gzip")
	return w.send(r)
}

// Bodies that come slowly are bounded together: there may be as many as there are connections.
func TestBodiesInHandAreBounded(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	sk := w.programKey("acme", token.SecretKey)
	const room = 10_000
	w.bodies = fn.NewBodies(room)
	message := `{"userId": "u1", "event": "order.placed"}`
	view := `{"key": "` + w.programKey("acme", token.PublicKey) + `", "type": "page"}`
	id, _ := w.sent("acme", "ada@example.com", time.Hour)
	preferences, form := "/p/"+w.token("acme", token.Claims{Purpose: token.Preferences, Contact: id}), url.Values{"shown": {"newsletter"}, "on": {strings.Repeat("x", 50)}}
	slow, write := io.Pipe()
	r, err := http.NewRequest(http.MethodPost, w.url+"/v1/track", slow)
	if err != nil {
		t.Fatal(err)
	}
	r.SetBasicAuth(sk, "")
	var first sync.WaitGroup
	first.Go(func() {
		if a := w.send(r); a.status != 200 {
			t.Errorf("the slow one: %d %s", a.status, a.body)
		}
	})
	if _, err := io.WriteString(write, message+strings.Repeat(" ", room-50)); err != nil {
		t.Fatal(err)
	}
	for w.bodies.Left() >= 50 { // until it was read
		runtime.Gosched()
	}
	if a := w.call("/v1/track", sk, message+strings.Repeat(" ", 50)); a.status != 503 || a.header.Get("Retry-After") == "" {
		t.Errorf("a body too many: %d %s", a.status, a.body)
	}
	if a := w.beacon("/e", view); a.status != 503 || a.header.Get("Retry-After") == "" {
		t.Errorf("an event too many: %d %s", a.status, a.body)
	}
	if a := w.packed(sk, message); a.status != 503 || a.header.Get("Retry-After") == "" {
		t.Errorf("gzip too many: %d %s", a.status, a.body)
	}
	if a := w.in("en", http.MethodPost, preferences, form); a.status != 503 || a.header.Get("Retry-After") == "" {
		t.Errorf("preferences too many: %d %s", a.status, a.body)
	}
	if err := write.Close(); err != nil {
		t.Fatal(err)
	}
	first.Wait()
	if a := w.call("/v1/track", sk, message); a.status != 200 {
		t.Errorf("after it: %d %s", a.status, a.body)
	}
	if a, b := w.packed(sk, message+strings.Repeat(" ", room/2)), w.packed(sk, message+strings.Repeat(" ", room)); a.status != 200 || b.status != 503 {
		t.Errorf("after it: gzip %d, what it unpacks to too many %d", a.status, b.status)
	}
	if a, b := w.beacon("/e", view), w.in("en", http.MethodPost, preferences, form); a.status != 204 || b.status != 200 {
		t.Errorf("after it: an event %d, preferences %d", a.status, b.status)
	}
	for w.bodies.Left() != room { // an answer may come before its request has ended
		runtime.Gosched()
	}
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
		{"public, of no type", "/v1/batch", pk, `{"batch": [{"anonymousId": "v"}]}`, 400, "batch[0]: type must be one of"},
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
		{"nothing good in a batch", "/v1/batch", sk, `{"batch": [{"type": "track", "userId": "u"}, {"type": "track", "event": "a"}, 7]}`, 400, "batch[0]: event is missing"},
		{"empty batch", "/v1/batch", sk, `{"batch": []}`, 400, "1 to 500"},
		{"10,000 in a batch", "/v1/b", sk, `{"batch": [{}` + strings.Repeat(",{}", 9_999) + `]}`, 400, "1 to 500"},
		{"10 MB", "/v1/track", sk, `{"userId": "u", "event": "` + strings.Repeat("a", 10<<20) + `"}`, 413, "32 KB"},
		{"10 MB of a page", "/e", "", `{"key": "` + pk + `", "name": "` + strings.Repeat("a", 10<<20) + `"}`, 413, "32 KB"},
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
	if a := w.send(r); a.status != 204 || a.header.Get("Access-Control-Allow-Headers") != "Authorization, Content-Type, Content-Encoding, X-Retry-Count" {
		t.Errorf("preflight: %d %v", a.status, a.header)
	}
	if a := w.get("/onda.js"); a.status != 200 || !strings.Contains(a.body, "data-key") || !strings.HasPrefix(a.header.Get("Content-Type"), "text/javascript") {
		t.Errorf("onda.js: %d", a.status)
	} else if n := len(pack(a.body)); n > 3<<10 {
		t.Errorf("onda.js has %d bytes as gzip, and may have 3 KB", n)
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
	got := pgtest.One[string](t, w.db, "acme", `SELECT (SELECT count(*) FROM visitor) || ' ' || (SELECT count(*) FROM message) || ' ' || (SELECT count(*) FROM hit) || ' ' || (SELECT count(*) FROM hit WHERE origin IS NOT NULL OR agent <> '')`)
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
	w.move("acme", 400*24*time.Hour)
	w.read("acme")
	w.sweep("acme")
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
