package track

import (
	"context"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/onda-run/onda/internal/browsertest"
	"github.com/onda-run/onda/internal/contact"
	"github.com/onda-run/onda/internal/page"
	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/token"
)

// Every page in every state is looked at by every visitor: a block of the templates that is in no row is an error.
func TestEveryPageInEveryState(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	files := withCopies()
	files["long.yaml"] = &fstest.MapFile{Data: []byte(`
apiVersion: onda/v1
kind: Topic
metadata: {name: long, title: "Donaudampfschifffahrtsgesellschaftskapitänsmützenabzeichen and other words that are too long"}
spec: {public: true, description: {en: "What is at https://www.example.com/an/address/that/cannot/be/broken/anywhere/but/has/to/be/on/a/telephone, and a long explanation of it."}}
`)}
	applyTo(t, w.db, "acme", files)
	id, d := w.sent("acme", "a.very.long.address.of.electronic.mail@subdomain-of-some-company.example.com", time.Hour)
	spam, _ := w.sent("acme", "bob@example.com", time.Hour)
	gone, _ := w.sent("acme", "eve@example.com", time.Hour)
	pgtest.Exec(t, w.db, "acme", "UPDATE contact SET erased_at = now(), email = NULL WHERE id = $1", gone)
	pgtest.In(t, w.db, "acme", func(ctx context.Context, tx *postgres.Tx) error {
		_, err := contact.Suppress(ctx, tx, "track", contact.Suppression{Contact: spam, Reason: contact.Complaint})
		return err
	})
	unsubscribe := func(who int64, topic string) string {
		c := token.Claims{Purpose: token.Unsubscribe, Contact: who}
		if topic != "" {
			c.Topic = w.topicID("acme", topic)
		}
		return "/u/" + w.token("acme", c)
	}
	pgtest.Exec(t, w.db, "acme", `UPDATE contact SET fields = '{"birthplace": "Donaudampfschifffahrtsgesellschaftshafen", "logins": 7}' WHERE id = $1`, id)
	unreached, _ := w.sent("acme", "zoe@example.com", time.Hour)
	pgtest.Exec(t, w.db, "acme", "UPDATE contact SET email = NULL WHERE id = $1", unreached)
	limited, _ := w.sent("acme", "max@example.com", time.Hour)
	pgtest.Exec(t, w.db, "acme", "INSERT INTO allowance (kind, contact, period, n) VALUES ('copy', $1, date_trunc('day', onda.now(), 'UTC'), 9)", limited)
	preferences := func(who int64) string {
		return "/p/" + w.token("acme", token.Claims{Purpose: token.Preferences, Contact: who})
	}
	all := url.Values{"shown": {"newsletter", "offers", "long", "tracking.email"}, "on": {"newsletter", "long", "tracking.email"}, "pause": {time.Now().AddDate(0, 0, 9).Format(time.DateOnly)}, "frequency": {"1/week"}}
	wrong := url.Values{"shown": all["shown"], "on": all["on"], "pause": {"soon"}, "frequency": {""}}
	type row struct {
		name, block, method, path string
		form                      url.Values
		status                    int
	}
	rows := []row{
		{"preferences", "preferences", "GET", preferences(id), nil, 200},
		{"preferences saved", "preferences", "POST", preferences(id), all, 200},
		{"preferences refused", "preferences", "POST", preferences(spam), all, 200},
		{"preferences with a problem", "preferences", "POST", preferences(id), url.Values{"pause": {"2099-01-01"}, "frequency": {""}}, 422},
		{"preferences with a pause that is no date", "preferences", "POST", preferences(id), wrong, 422},
		{"everything off", "preferences", "POST", preferences(id), url.Values{"shown": all["shown"], "everything": {"off"}}, 200},
		{"stored", "stored", "GET", preferences(id) + "/stored", nil, 200},
		{"stored, of whom no mail reaches", "stored", "GET", preferences(unreached) + "/stored", nil, 200},
		{"stored, of who complained", "stored", "GET", preferences(spam) + "/stored", nil, 200},
		{"stored, asked for", "stored", "POST", preferences(id) + "/stored", nil, 200},
		{"stored, asked for too often", "stored", "POST", preferences(limited) + "/stored", nil, 429},
		{"stored, by an old link", "stored", "GET", preferences(id) + "/copy?s=1-a", nil, 410},
		{"unsubscribe", "unsubscribe", "GET", unsubscribe(id, "newsletter"), nil, 200},
		{"unsubscribed", "unsubscribed", "POST", unsubscribe(id, "newsletter"), nil, 200},
		{"unsubscribe from a long topic", "unsubscribe", "GET", unsubscribe(id, "long"), nil, 200},
		{"unsubscribed from a long topic", "unsubscribed", "POST", unsubscribe(id, "long"), nil, 200},
		{"unsubscribe from everything", "unsubscribe", "GET", unsubscribe(id, ""), nil, 200},
		{"unsubscribed from everything", "unsubscribed", "POST", unsubscribe(id, ""), nil, 200},
		{"unsubscribe of nobody", "unsubscribe", "GET", unsubscribe(gone, "newsletter"), nil, 200},
		{"unsubscribed of nobody", "unsubscribed", "POST", unsubscribe(gone, ""), nil, 200},
		{"preferences of nobody", "error", "GET", preferences(gone), nil, 404},
		{"web view", "", "GET", "/w/" + w.token("acme", token.Claims{Purpose: token.WebView, Delivery: d}), nil, 200},
		{"web view that is gone", "text", "GET", "/w/" + w.token("acme", token.Claims{Purpose: token.WebView, Delivery: 1<<40 | 1}), nil, 404},
	}
	var pages []browsertest.Page
	look := func(of string) {
		for _, row := range rows {
			for _, lang := range page.Languages() {
				a := w.in(lang, row.method, row.path, row.form)
				if a.status != row.status {
					t.Errorf("%s in %s: status %d, want %d: %s", row.name, lang, a.status, row.status, a.body)
				}
				pages = append(pages, browsertest.Page{Name: row.name + of, Block: row.block, Lang: lang, Header: a.header, Body: a.body})
			}
		}
	}
	look("")
	if err := w.admin.SetStage(t.Context(), postgres.Preproduction, ""); err != nil {
		t.Fatal(err)
	}
	rows = slices.DeleteFunc(rows, func(r row) bool { return r.name != "preferences" && r.name != "web view" })
	look(" of a pre-production")
	pgtest.Exec(t, w.db, "acme", "UPDATE entity SET current = NULL WHERE kind = 'Topic'")
	rows = rows[:1]
	look(" without topics")
	texts, err := page.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	browsertest.Complete(t, assets, "pages/*.html", func(key string) string { return texts.Text(page.Fallback, key) }, pages)
	browsertest.LookAtAll(t, pages)
}

// in does what somebody does who reads a language.
func (w *world) in(lang, method, path string, form url.Values) answer {
	w.t.Helper()
	r, err := http.NewRequest(method, w.url+path, strings.NewReader(form.Encode()))
	if err != nil {
		w.t.Fatal(err)
	}
	r.Header.Set("Accept-Language", lang)
	r.Header.Set("X-Forwarded-For", "203.0.113.1")
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	return w.send(r)
}
