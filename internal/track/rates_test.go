package track

import (
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/onda-run/onda/internal/token"
)

// An origin tells so much at once, and so much a second after that; others, and its own of another tenant, are not counted with it.
func TestRatesOfOrigins(t *testing.T) {
	t.Parallel()
	at := time.Now()
	rs := newRates(20, func() time.Time { return at })
	for i, c := range []struct {
		after          time.Duration
		tenant, origin string
		n              int
		wait           time.Duration
	}{
		{0, "acme", "192.0.2.1", 150, 0},
		{0, "acme", "192.0.2.1", 50, 0},
		{0, "acme", "192.0.2.1", 1, 50 * time.Millisecond},
		{0, "acme", "192.0.2.1", 10, 500 * time.Millisecond}, // what was refused is not counted
		{0, "acme", "192.0.2.2", 200, 0},
		{0, "brava", "192.0.2.1", 200, 0},
		{49 * time.Millisecond, "acme", "192.0.2.1", 1, time.Millisecond},
		{time.Millisecond, "acme", "192.0.2.1", 1, 0},
		{time.Hour, "acme", "192.0.2.1", 500, 0}, // a batch of more than may come at once comes in when nothing else did
		{0, "acme", "192.0.2.1", 500, 10 * time.Second},
	} {
		at = at.Add(c.after)
		if wait := rs.take(c.tenant, c.origin, c.n).Round(time.Millisecond); wait != c.wait {
			t.Errorf("%d: wait %s, want %s", i, wait, c.wait)
		}
	}
}

// Whoever has a million addresses takes no more memory than who has a few thousand, and who keeps coming is known all the while.
func TestRatesOfAMillionOrigins(t *testing.T) {
	t.Parallel()
	at := time.Now()
	rs := newRates(1, func() time.Time { return at })
	took := 0
	for i := range 1_000_000 {
		rs.take("acme", strconv.Itoa(i), 1)
		if i%(maxOrigins/2) == 0 && rs.take("acme", "again", 1) == 0 {
			took++
		}
	}
	if n := len(rs.young) + len(rs.old); n > 2*maxOrigins {
		t.Errorf("%d origins are known, want at most %d", n, 2*maxOrigins)
	}
	if took != eventsAtOnce {
		t.Errorf("%d were taken of who keeps coming, want %d", took, eventsAtOnce)
	}
}

// What pages tell is bounded by where it comes from; what programs tell with their secret key is not, and neither are pixels.
func TestAFloodOfEventsOfOneOrigin(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	at := time.Now()
	w.rates = newRates(1, func() time.Time { return at })
	pk, sk := w.programKey("acme", token.PublicKey), w.programKey("acme", token.SecretKey)
	post := func(from, path, key, body string) answer {
		t.Helper()
		r, err := http.NewRequest(http.MethodPost, w.url+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		r.SetBasicAuth(key, "")
		r.Header.Set("X-Forwarded-For", from)
		return w.send(r)
	}
	const one = `{"type": "page", "anonymousId": "v1", "visitor": "v1", "userId": "u1"`
	batch := `{"batch": [` + strings.Repeat(one+"},", 6) + one + "}]}"
	page := func(from string) answer { return post(from, "/e", pk, one+`, "key": "`+pk+`"}`) }
	for _, c := range []struct {
		what   string
		a      answer
		status int
	}{
		{"a batch", post("192.0.2.1", "/v1/batch", pk, batch), 200},
		{"a page", page("192.0.2.1"), 204},
		{"an event", post("192.0.2.1", "/v1/page", pk, one+"}"), 200},
		{"another batch", post("192.0.2.1", "/v1/batch", pk, batch), 429},
		{"another page", page("192.0.2.1"), 204},
		{"a page too many", page("192.0.2.1"), 429},
		{"an event too many", post("192.0.2.1", "/v1/page", pk, one+"}"), 429},
		{"a batch of a program", post("192.0.2.1", "/v1/batch", sk, batch), 200},
		{"a page at another place", page("192.0.2.2"), 204},
		{"a page at one network of IPv6", page("2001:db8::1"), 204},
	} {
		if c.a.status != c.status {
			t.Errorf("%s: %d %s, want %d", c.what, c.a.status, c.a.body, c.status)
		}
		if want := map[int]string{429: "1"}[c.status]; c.what != "another batch" && c.a.header.Get("Retry-After") != want {
			t.Errorf("%s: Retry-After %q, want %q", c.what, c.a.header.Get("Retry-After"), want)
		}
	}
	if n := len(w.facts("acme", "page.viewed")); n != 7+1+1+1+7+1+1 {
		t.Errorf("%d page views are stored", n)
	}
	at = at.Add(time.Second)
	if a := page("192.0.2.1"); a.status != 204 {
		t.Errorf("a second later: %d", a.status)
	}
}
