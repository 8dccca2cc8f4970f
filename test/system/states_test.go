package system

import (
	"context"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/onda-run/onda/internal/event"
	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/postgres"
)

// A suspended tenant sends nothing and is served; a moving one says that it comes back; a deleted one is not there. Each function has served it before, so that what it
// remembers of it does not count.
func TestStatesOfATenant(t *testing.T) {
	t.Parallel()
	n := newNeighbours(t)
	ctx := context.Background()
	tenants := []string{pgtest.Acme, pgtest.Brava}
	moment := begin.Add(4 * time.Hour)
	later := func() {
		moment = moment.Add(time.Hour)
		n.until(tenants, moment)
	}
	later()
	functions := map[string]http.Handler{}
	for _, name := range []string{"campaign", "segment", "send", "track"} {
		functions[name] = n.instance(name, nil)
	}
	form := http.Header{"Content-Type": {"application/x-www-form-urlencoded"}}
	fields := url.Values{"email": {"x@acme.example"}, "consent.newsletter": {"on"}}.Encode()
	at := func(page string) string { return n.URL() + strings.TrimPrefix(page, linkURL) }
	key := n.secret(pgtest.Acme, "application/json")
	report := n.secret(pgtest.Acme, "message/rfc822")
	report.Set("Onda-Recipient", n.acme.returnPath)
	visits := []struct {
		method, url string
		header      http.Header
		body        string
		served      []int
		deleted     int
	}{
		{"GET", at(n.acme.pixel), nil, "", []int{200}, 404},
		{"GET", at(n.acme.links[0]), nil, "", []int{302}, 404},
		{"GET", at(n.acme.page("w")), nil, "", []int{200}, 404},
		{"GET", at(n.acme.unsubscribe), nil, "", []int{200}, 404},
		{"GET", at(n.acme.page("p")), nil, "", []int{200}, 404},
		{"POST", at(n.acme.page("p")), form, "topics=1", []int{200}, 404},
		{"POST", at(n.acme.unsubscribe), form, "List-Unsubscribe=One-Click", []int{200}, 404},
		{"GET", n.URL() + "/f/acme/newsletter", nil, "", []int{200}, 404},
		{"POST", n.URL() + "/f/acme/newsletter", form, fields, []int{200, 303, 422}, 404},
		{"POST", n.URL() + "/v1/track", key, `{"userId": "c-0001", "event": "order.placed"}`, []int{200, 202}, 401},
		{"POST", n.URL() + "/v1/identify", key, `{"userId": "c-0001", "traits": {"country": "SE"}}`, []int{200, 202}, 401},
		{"POST", n.URL() + "/v1/emails", key, `{"to": "c0001@acme.example", "email": "receipt", "data": {"number": "1", "total": 1, "currency": "NOK", "lines": []}}`, []int{202}, 401},
		{"POST", n.URL() + "/bounces/acme", report, bounceReport(n.acme), []int{200}, 403},
	}
	all := func(state string, want func(served []int, deleted int) []int, events func(status int) bool) {
		t.Helper()
		for _, v := range visits {
			status := 0
			ok := func() bool {
				status, _ = n.request(v.method, v.url, v.header, v.body)
				return slices.Contains(want(v.served, v.deleted), status)
			}
			if v.method == "GET" && strings.Contains(v.url, "/f/") { // the page of a form is kept for a second
				wait(t, "the page of a form in the state "+state, ok)
			}
			if !ok() {
				t.Errorf("%s: %s %s: status %d, want %v", state, v.method, v.url, status, want(v.served, v.deleted))
			}
		}
		for name, in := range functions {
			if status := post(t, in, newEvent(t, pgtest.Acme, event.ScheduleDue{Function: name})); !events(status) {
				t.Errorf("%s: schedule.due at %s: status %d", state, name, status)
			}
		}
	}
	served := func(served []int, _ int) []int { return served }
	fine := func(status int) bool { return status < 300 }
	must := func(_ any, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	all(postgres.Active, served, fine)
	later()

	must(n.admin.Suspend(ctx, pgtest.Acme, false))
	before := n.box.Counts().Received
	withdrawn := n.count(pgtest.Acme, "SELECT count(*) FROM consent WHERE state = 'withdrawn'")
	all(postgres.Suspended, served, fine)
	pgtest.Exec(t, n.db, pgtest.Acme, "UPDATE subscription SET state = 'granted'") // so that it can be taken back once more
	n.must("POST", at(n.acme.unsubscribe), form, "List-Unsubscribe=One-Click", 200)
	later()
	if got := n.box.Counts().Received; got != before {
		t.Errorf("suspended: %d mails were sent", got-before)
	}
	if got := n.count(pgtest.Acme, "SELECT count(*) FROM consent WHERE state = 'withdrawn'"); got <= withdrawn {
		t.Error("suspended: nobody could unsubscribe")
	}

	must(n.admin.Suspend(ctx, pgtest.Acme, true))
	all(postgres.Moving, func([]int, int) []int { return []int{503} }, func(status int) bool { return status == 503 })
	must(n.admin.Resume(ctx, pgtest.Acme))
	later()
	if got := n.box.Counts().Received; got == before {
		t.Error("resumed: nothing was sent that was held")
	}

	must(n.admin.Suspend(ctx, pgtest.Acme, false))
	must(n.admin.Delete(ctx, pgtest.Acme))
	all(postgres.Deleted, func(_ []int, deleted int) []int { return []int{deleted} }, func(status int) bool { return status == 400 })
}
