package renderform

import (
	"context"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/token"
)

// Each kind of token on the path that confirms: a refused one confirms nothing, and neither does one of somebody erased.
func TestTokensThatConfirm(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.post(newsletter, w.fill(good()))
	tok, query, _ := strings.Cut(strings.TrimPrefix(w.confirmURL("acme"), w.url+"/y/"), "?")
	claims, err := token.Peek(tok, token.Confirm)
	if err != nil {
		t.Fatal(err)
	}
	var alien string // brava's key over acme's claims
	pgtest.In(t, w.db, "brava", func(ctx context.Context, tx *postgres.Tx) error {
		keys, err := tx.Keys(ctx)
		if err != nil {
			return err
		}
		key, _ := keys.Tokens.Current()
		alien, err = token.Sign(key, claims)
		return err
	})
	try := func(what, tok string, want int) {
		t.Helper()
		for _, method := range []string{http.MethodGet, http.MethodHead, http.MethodPost} {
			if a := w.send(w.request(method, "/y/"+tok+"?"+query, "")); a.status != want {
				t.Errorf("%s %s: %d, want %d", method, what, a.status, want)
			}
		}
	}
	pending := func(what string) {
		t.Helper()
		if got := w.state("acme"); got != "newsletter=pending tracking.email=pending" {
			t.Errorf("%s: %s", what, got)
		}
	}
	try("by another tenant's key", alien, 404)
	try("of another tenant", w.token("brava", claims), 410) // proven, and nobody's there
	try("of another purpose", w.token("acme", token.Claims{Purpose: token.Unsubscribe, Contact: claims.Contact}), 404)
	try("of an unknown tenant", strings.Repeat("a", len(tok)), 404)
	pgtest.Exec(t, w.db, "acme", "UPDATE contact SET erased_at = onda.now()")
	try("of somebody erased", tok, 410)
	pgtest.Exec(t, w.db, "acme", "UPDATE contact SET erased_at = NULL")
	pending("refused")
	pgtest.Exec(t, w.db, "acme", "INSERT INTO key (kind, secret) VALUES ('hmac', decode(repeat('ab', 32), 'hex'))")
	for _, c := range []struct {
		ago  string
		want int
	}{{"25 months", 404}, {"23 months", 200}} {
		pgtest.Exec(t, w.db, "acme", "UPDATE key SET retired_at = now() - $1::interval WHERE kind = 'hmac' AND secret <> decode(repeat('ab', 32), 'hex')", c.ago)
		if a := w.anew().get("/y/" + tok + "?" + query); a.status != c.want {
			t.Errorf("of a key retired %s ago: %d, want %d", c.ago, a.status, c.want)
		}
	}
	pending("looked at")
	if _, err := w.admin.Suspend(t.Context(), "acme", false); err != nil {
		t.Fatal(err)
	}
	try("upper-case, of a suspended tenant", strings.ToUpper(tok), 200)
	if got := w.state("acme"); got != "newsletter=granted tracking.email=granted" {
		t.Errorf("confirmed: %s", got)
	}
	pgtest.Exec(t, w.db, "acme", "UPDATE run SET state = 'completed'")
	if _, err := w.admin.Delete(t.Context(), "acme"); err != nil {
		t.Fatal(err)
	}
	try("of a deleted tenant", tok, 404)
}

// A key that was retired long ago proves whose link it is for ever.
func TestAnOldLinkRecognises(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	tok := w.token("acme", token.Claims{Contact: w.introduce("acme")})
	pgtest.Exec(t, w.db, "acme", "UPDATE key SET retired_at = now() - interval '8 years' WHERE kind = 'hmac'")
	pgtest.Exec(t, w.db, "acme", "INSERT INTO key (kind, secret) VALUES ('hmac', decode(repeat('ab', 32), 'hex'))")
	w = w.anew()
	for _, tok := range []string{tok, strings.ToUpper(tok)} {
		if a := w.get(profilePath + "?p=" + tok); a.status != 200 || !strings.Contains(a.body, "onda_contact") {
			t.Errorf("%d %s", a.status, a.body)
		}
	}
	w.clock.Add(int64(time.Minute)) // past what is kept of pages
	if a := w.get(profilePath + "?p=" + tok[:len(tok)-1]); strings.Contains(a.body, "onda_contact") {
		t.Error("a truncated one recognises somebody")
	}
}
