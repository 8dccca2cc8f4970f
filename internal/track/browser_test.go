package track

import (
	"strings"
	"testing"
	"time"

	"github.com/onda-run/onda/internal/browsertest"
	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/token"
)

// A person chooses what to get, leaves, and reads a mail in the browser: in every browser alike.
func TestPagesInABrowser(t *testing.T) { //nolint:tparallel // one visitor after another: a browser has one tab in front
	t.Parallel()
	b := browsertest.Start(t)
	for _, v := range browsertest.Visitors() {
		t.Run(v.Name, func(t *testing.T) {
			w := newWorld(t)
			id, d := w.sent("acme", "ada@example.com", time.Hour)
			pgtest.Exec(t, w.db, "acme", `UPDATE contact SET fields = '{"first_name": "Ada"}'`)
			topic := w.topicID("acme", "newsletter")

			tab := b.Open(t, v, w.url+"/p/"+w.token("acme", token.Claims{Purpose: token.Preferences, Contact: id, Topic: topic}))
			tab.Look("preferences")
			tab.Tick("#on-offers", false)
			tab.Tick("#on-tracking\\.email", true)
			tab.Tick("#on-tracking\\.web", false)
			tab.Set("#frequency", "1/week")
			tab.Set("#pause", time.Now().AddDate(0, 0, 10).Format(time.DateOnly))
			tab.Submit("button")
			tab.Look("preferences saved")
			if got := tab.Text(".notice"); got != "Your choice is saved." {
				t.Errorf("notice: %s", got)
			}
			if got := w.states("acme", id); got != "newsletter=granted offers=granted tracking.email=granted tracking.web=granted" {
				t.Errorf("preferences: %s", got)
			}
			if !pgtest.One[bool](t, w.db, "acme", "SELECT paused_until > now() AND frequency = '1/week' FROM contact") {
				t.Error("the pause and the frequency are not saved")
			}
			browsertest.Eval[bool](tab, `document.querySelector("form").noValidate = true`)
			tab.Set("#pause", "2099-01-01")
			tab.Submit("button")
			tab.Look("preferences with a problem")
			if got := tab.Text(".problem"); got != "Choose a day within a year from now." {
				t.Errorf("problem: %s", got)
			}

			tab.Go(w.url + "/u/" + w.token("acme", token.Claims{Purpose: token.Unsubscribe, Contact: id, Topic: topic}))
			tab.Look("unsubscribe")
			tab.SubmitByKey("button")
			tab.Look("unsubscribed")
			if got := tab.Text("h1"); got != "You are unsubscribed" {
				t.Errorf("heading: %s", got)
			}
			if got := w.states("acme", id); !strings.HasPrefix(got, "newsletter=withdrawn offers=granted") {
				t.Errorf("unsubscribed: %s", got)
			}

			if err := w.admin.SetStage(t.Context(), postgres.Preproduction, ""); err != nil {
				t.Fatal(err)
			}
			tab.Go(w.url + "/p/" + w.token("acme", token.Claims{Purpose: token.Preferences, Contact: id, Topic: topic}))
			tab.Look("preferences of a pre-production")
			if got := tab.Text(".trial"); !strings.Contains(got, "no mail from here goes to real people") {
				t.Errorf("a page of a pre-production: %s", got)
			}

			tab.Go(w.url + "/nothing")
			if got := tab.Text("h1"); got != "There is nothing here" {
				t.Errorf("error page: %s", got)
			}
			tab.Keep("not found")

			tab.Go(w.url + "/w/" + w.token("acme", token.Claims{Purpose: token.WebView, Delivery: d}))
			if got := tab.Text("body"); !strings.Contains(got, "Hello Ada") || !strings.Contains(got, "no mail from here goes to real people") {
				t.Errorf("web view: %s", got)
			}
			tab.Keep("web view")
		})
	}
}
