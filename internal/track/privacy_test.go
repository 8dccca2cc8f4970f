package track

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/onda-run/onda/internal/contact"
	"github.com/onda-run/onda/internal/pgtest"
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
