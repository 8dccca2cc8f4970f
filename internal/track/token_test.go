package track

import (
	"context"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/token"
)

// signed is a token of one tenant's claims by another's key.
func (w *world) signed(by, of string, c token.Claims) (tok string) {
	w.t.Helper()
	c.Tenant = pgtest.One[int32](w.t, w.db, of, "SELECT number FROM onda.tenant WHERE name = $1", of)
	pgtest.In(w.t, w.db, by, func(ctx context.Context, tx *postgres.Tx) error {
		keys, err := tx.Keys(ctx)
		if err != nil {
			return err
		}
		k, _ := keys.Tokens.Current()
		tok, err = token.Sign(k, c)
		return err
	})
	return tok
}

// What each public path answers to each kind of token, and that nothing is stored by one that is refused.
func TestTokensOnEveryPath(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id, d := w.sent("acme", "ada@example.com", time.Hour)
	w.sent("brava", "ada@example.com", time.Hour)
	gone, ofGone := w.sent("acme", "eve@example.com", time.Hour)
	pgtest.Exec(t, w.db, "acme", "UPDATE contact SET erased_at = onda.now(), email = NULL WHERE id = $1", gone)
	topic, link := w.topicID("acme", "newsletter"), w.link("acme", "https://example.com/a")
	paths := []struct {
		before, after string
		claims        func(who, delivery int64) token.Claims
		good, erased  int // what GET answers
		old           int // of a key that was retired more than 24 months ago
		post          url.Values
	}{
		{"/o/", ".gif", func(_, d int64) token.Claims { return token.Claims{Purpose: token.Open, Delivery: d} }, 200, 200, 404, nil},
		{"/c/", "", func(_, d int64) token.Claims { return token.Claims{Purpose: token.Click, Delivery: d, Link: link} }, 302, 302, 404, nil},
		{"/w/", "", func(_, d int64) token.Claims { return token.Claims{Purpose: token.WebView, Delivery: d} }, 200, 404, 404, nil},
		{"/u/", "", func(who, _ int64) token.Claims {
			return token.Claims{Purpose: token.Unsubscribe, Contact: who, Topic: topic}
		}, 200, 200, 200, url.Values{"List-Unsubscribe": {"One-Click"}}},
		{"/p/", "", func(who, _ int64) token.Claims { return token.Claims{Purpose: token.Preferences, Contact: who} }, 200, 404, 200, url.Values{"everything": {"off"}}},
		{"/p/", "/stored", func(who, _ int64) token.Claims { return token.Claims{Purpose: token.Preferences, Contact: who} }, 200, 404, 200, url.Values{}},
		{"/p/", "/copy", func(who, _ int64) token.Claims { return token.Claims{Purpose: token.Preferences, Contact: who} }, 200, 404, 200, nil},
	}
	stored := func() string {
		return pgtest.One[string](t, w.db, "acme", "SELECT concat_ws(' ', (SELECT count(*) FROM hit), (SELECT count(*) FROM request))") + "\n" + w.snapshot("acme")
	}
	for _, p := range paths {
		claims := p.claims(id, d)
		tok := w.token("acme", claims)
		other := token.Claims{Purpose: token.Open, Delivery: d}
		if claims.Purpose == token.Open {
			other = token.Claims{Purpose: token.WebView, Delivery: d}
		}
		before := stored()
		for name, bad := range map[string]string{
			"forged": tok[:len(tok)-1] + swap(tok[len(tok)-1]), "truncated": tok[:len(tok)-3], "longer": tok + "a", "by another tenant's key": w.signed("brava", "acme", claims),
			"another tenant's, by this one's key": w.signed("acme", "brava", claims), "of another purpose": w.token("acme", other), "of an unknown tenant": strings.Repeat("a", len(tok)), "empty": "",
		} {
			for _, method := range []string{http.MethodGet, http.MethodHead, http.MethodPost} {
				if method == http.MethodPost && p.post == nil {
					continue
				}
				if a := w.do(method, p.before+bad+p.after, "203.0.113.1", browser, p.post); a.status != 404 && (name != "empty" || a.status != 301 && a.status != 307 && a.status != 405) || strings.Contains(a.header.Get("Location"), "example.com") || strings.Contains(a.body, "@example.com") {
					t.Errorf("%s %s%s, %s: %d %s", method, p.before, p.after, name, a.status, a.header)
				}
			}
		}
		if diff := cmp.Diff(before, stored()); diff != "" {
			t.Errorf("%s%s, refused, and stored: %s", p.before, p.after, diff)
		}
		for name, good := range map[string]struct {
			tok  string
			want int
		}{
			"good": {tok, p.good}, "upper-case": {strings.ToUpper(tok), p.good}, "of somebody erased": {w.token("acme", p.claims(gone, ofGone)), p.erased},
		} {
			if a := w.get(p.before + good.tok + p.after); a.status != good.want {
				t.Errorf("%s%s, %s: %d, want %d", p.before, p.after, name, a.status, good.want)
			}
		}
	}
	if n := pgtest.One[int](t, w.db, "acme", "SELECT count(*) FROM hit WHERE contact = $1 OR delivery = $2", gone, ofGone); n != 0 {
		t.Errorf("%d hits tell of somebody erased", n)
	}
	if got := w.states("acme", id); got != "newsletter=granted" {
		t.Errorf("looking changed something: %s", got)
	}
	toks := make([]string, len(paths))
	for i, p := range paths {
		toks[i] = p.before + w.token("acme", p.claims(id, d)) + p.after
	}
	pgtest.Exec(t, w.db, "acme", "INSERT INTO key (kind, secret) VALUES ('hmac', decode(repeat('ab', 32), 'hex'))")
	retired := func(ago string, want func(i int) int) {
		t.Helper()
		pgtest.Exec(t, w.db, "acme", "UPDATE key SET retired_at = now() - $1::interval WHERE kind = 'hmac' AND secret <> decode(repeat('ab', 32), 'hex')", ago)
		w := w.again() // a process that has not read the keys yet
		hits := pgtest.One[int](t, w.db, "acme", "SELECT count(*) FROM hit")
		for i, path := range toks {
			if a := w.get(path); a.status != want(i) {
				t.Errorf("%.3s, of a key retired %s ago: %d, want %d", path, ago, a.status, want(i))
			}
			if want(i) == 404 && pgtest.One[int](t, w.db, "acme", "SELECT count(*) FROM hit") != hits {
				t.Errorf("%.3s, refused, and stored", path)
			}
		}
	}
	retired("25 months", func(i int) int { return paths[i].old })
	retired("23 months", func(i int) int { return paths[i].good })
}
