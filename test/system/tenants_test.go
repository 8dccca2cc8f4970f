package system

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2"
	"github.com/google/go-cmp/cmp"
	"github.com/sethvargo/go-envconfig"
	"go.uber.org/zap"

	"github.com/onda-run/onda/internal/event"
	"github.com/onda-run/onda/internal/fn"
	"github.com/onda-run/onda/internal/fntest"
	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/token"
)

// neighbours are two tenants in one database, with contacts, mails and a pending submission each. Acme has more of everything, so that its numbers reach beyond Brava's.
type neighbours struct {
	*world
	acme, brava letter // one mail of each, to somebody who is tracked
	number      map[string]int32
}

func newNeighbours(t *testing.T) *neighbours {
	t.Helper()
	n := &neighbours{world: newWorld(t, fntest.Config{}), number: map[string]int32{}}
	tenants := []string{pgtest.Acme, pgtest.Brava}
	n.setClock(tenants, begin)
	for _, tenant := range tenants {
		n.apply(tenant, company()...)
		var csv strings.Builder
		csv.WriteString("external_id,email,first_name,country\n")
		for i := range map[string]int{pgtest.Acme: 30, pgtest.Brava: 8}[tenant] {
			fmt.Fprintf(&csv, "c-%04d,c%04d@%s.example,Ada,NO\n", i, i, tenant)
		}
		n.load(tenant, csv.String(), "newsletter", "tracking.email")
	}
	n.apply(pgtest.Acme, "testdata/private")
	n.until(tenants, begin.Add(time.Hour))
	for _, tenant := range tenants {
		n.launch(tenant, "spring-news")
		fields := url.Values{"email": {"new@" + tenant + ".example"}, "consent.newsletter": {"on"}}
		n.fill(n.URL()+"/f/"+tenant+"/newsletter", http.Header{"User-Agent": {browser}}, fields)
	}
	n.until(tenants, begin.Add(3*time.Hour))
	for number, name := range n.numbers() {
		n.number[name] = number
	}
	for _, l := range n.letters() {
		if l.unsubscribe == "" {
			continue
		}
		if l.tenant == n.number[pgtest.Acme] {
			n.acme = l
		} else {
			n.brava = l
		}
	}
	if n.acme.delivery == 0 || n.brava.delivery == 0 {
		t.Fatal("no mails")
	}
	return n
}

// forge signs claims about one tenant with the key of another.
func (n *neighbours) forge(signer string, c token.Claims) string {
	n.t.Helper()
	keys, err := n.db.Keys(n.t.Context(), signer)
	if err != nil {
		n.t.Fatal(err)
	}
	k, _ := keys.Tokens.Current()
	tok, err := token.Sign(k, c)
	if err != nil {
		n.t.Fatal(err)
	}
	return tok
}

// instance runs one function alone, as the process of a pod, with settings beside the usual.
func (n *neighbours) instance(function string, settings map[string]string) *fn.Instance {
	n.t.Helper()
	env := n.env()
	maps.Copy(env, map[string]string{"ONDA_LINK_URL": linkURL, "ONDA_FORM_URL": formURL})
	if function == "schedule" {
		env["ONDA_DATABASE_URL"], env["ONDA_FUNCTION_URL"] = n.data.ScheduleURL, n.FunctionURL("{function}")
	}
	maps.Copy(env, settings)
	in, err := fn.Start(context.Background(), function, builds()[function], envconfig.MapLookuper(env), zap.NewNop())
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() {
		if err := in.Stop(context.Background()); err != nil {
			n.t.Errorf("%s: %v", function, err)
		}
	})
	return in
}

// post hands an event to an instance.
func post(t *testing.T, in http.Handler, e cloudevents.Event) int {
	t.Helper()
	body, err := json.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/", strings.NewReader(string(body)))
	r.Header.Set("Content-Type", cloudevents.ApplicationCloudEventsJSON)
	w := httptest.NewRecorder()
	in.ServeHTTP(w, r)
	return w.Code
}

func newEvent(t *testing.T, tenant string, data event.Data) cloudevents.Event {
	t.Helper()
	e, err := event.New(tenant, "onda", "", event.DeriveID(t.Name(), tenant, data.EventType(), fmt.Sprint(data)), data)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// state is what both tenants have, but for events that were refused.
func (n *neighbours) state() map[string][]string {
	n.t.Helper()
	out := map[string][]string{}
	for _, tenant := range []string{pgtest.Acme, pgtest.Brava} {
		for _, line := range n.snapshot(tenant) {
			if !strings.HasPrefix(line, "failure: ") {
				out[tenant] = append(out[tenant], line)
			}
		}
	}
	return out
}

// same tells whether nothing has changed in either tenant, also after all work that is due was done.
func (n *neighbours) same(before map[string][]string) {
	n.t.Helper()
	n.until([]string{pgtest.Acme, pgtest.Brava}, begin.Add(4*time.Hour))
	if diff := cmp.Diff(before, n.state()); diff != "" {
		n.t.Errorf("something has changed (-before +after):\n%s", diff)
	}
	for _, tenant := range []string{pgtest.Acme, pgtest.Brava} {
		if k := n.count(tenant, "SELECT count(*) FROM failure WHERE event ->> 'source' NOT LIKE $1", "/tenants/"+tenant+"/%"); k != 0 {
			n.t.Errorf("%s keeps %d events of others", tenant, k)
		}
	}
}

// What belongs to one tenant leads nowhere with the other, at any function, and changes nothing in either.
func TestTwoTenantsNeverMix(t *testing.T) {
	t.Parallel()
	t.Run("tokens", func(t *testing.T) {
		t.Parallel()
		n := newNeighbours(t)
		before := n.state()
		form := http.Header{"Content-Type": {"application/x-www-form-urlencoded"}}
		pending := func(tenant string) (submission, document, contact int64) {
			line := n.all(tenant, "SELECT concat_ws(' ', id, document, contact) FROM submission WHERE state = 'pending'")[0]
			if _, err := fmt.Sscan(line, &submission, &document, &contact); err != nil {
				t.Fatal(err)
			}
			return submission, document, contact
		}
		submission, document, contact := pending(pgtest.Brava)
		brava := n.number[pgtest.Brava]
		for _, c := range []token.Claims{
			{Purpose: token.Open, Tenant: brava, Delivery: n.brava.delivery},
			{Purpose: token.Click, Tenant: brava, Delivery: n.brava.delivery, Link: 1},
			{Purpose: token.Click, Tenant: brava, Link: 1},
			{Purpose: token.WebView, Tenant: brava, Delivery: n.brava.delivery},
			{Purpose: token.Unsubscribe, Tenant: brava, Contact: 1},
			{Purpose: token.Preferences, Tenant: brava, Contact: 1},
			{Purpose: token.Confirm, Tenant: brava, Contact: contact, Form: int32(document), Expires: begin.Add(100 * time.Hour)},
		} {
			tok := n.forge(pgtest.Acme, c)
			path := fmt.Sprintf("%s/%s/%s", n.URL(), c.Purpose, tok)
			if c.Purpose == token.Confirm {
				path += fmt.Sprintf("?s=%d", submission)
			}
			if c.Purpose == token.Open {
				path += ".gif"
			}
			for _, method := range []string{http.MethodGet, http.MethodPost} {
				status, body := n.request(method, path, form, "everything=1&List-Unsubscribe=One-Click")
				if status != 404 && (method == http.MethodGet || status != 405) && c.Purpose != token.Open {
					t.Errorf("%s %s with Acme's key for Brava: status %d", method, c.Purpose, status)
				}
				if strings.Contains(body, "@brava") || strings.Contains(body, "brava.example") {
					t.Errorf("%s %s: Brava's data is shown", method, c.Purpose)
				}
			}
		}
		// A link of Acme's mail names what is Acme's; where it says which submission is meant, that is looked for among Acme's.
		_, document, contact = pending(pgtest.Acme)
		own := n.forge(pgtest.Acme, token.Claims{Purpose: token.Confirm, Tenant: n.number[pgtest.Acme], Contact: contact, Form: int32(document), Expires: begin.Add(100 * time.Hour)})
		if _, body := n.request(http.MethodPost, fmt.Sprintf("%s/y/%s?s=%d", n.URL(), own, submission+1000), form, ""); strings.Contains(body, "brava") {
			t.Error("Brava's submission is shown")
		}
		n.same(before)
	})

	t.Run("reports", func(t *testing.T) {
		t.Parallel()
		n := newNeighbours(t)
		before := n.state()
		for _, report := range []string{bounceReport(n.brava), abuseReport(n.brava)} {
			h := n.secret(pgtest.Acme, "message/rfc822")
			h.Set("Onda-Recipient", n.brava.returnPath)
			n.must(http.MethodPost, n.URL()+"/bounces/brava", h, report, 403)
			if body := n.must(http.MethodPost, n.URL()+"/bounces/acme", h, report, 200); !strings.Contains(body, "unattributed") {
				t.Errorf("a report about Brava's mail at Acme: %s", body)
			}
		}
		h := n.secret(pgtest.Acme, "message/rfc822")
		h.Set("Onda-Recipient", n.brava.mailto)
		if body := n.must(http.MethodPost, n.URL()+"/bounces/acme", h, "Subject: unsubscribe\r\n\r\n", 200); !strings.Contains(body, "unattributed") {
			t.Errorf("an unsubscribe by mail of Brava's at Acme: %s", body)
		}
		n.same(before)
	})

	t.Run("keys and paths", func(t *testing.T) {
		t.Parallel()
		n := newNeighbours(t)
		before := n.state()
		acme, brava := fmt.Sprintf("_%d_", n.number[pgtest.Acme]), fmt.Sprintf("_%d_", n.number[pgtest.Brava])
		key := strings.Replace(n.keys[pgtest.Acme].Reveal(), acme, brava, 1) // Acme's secret under Brava's number
		if key == n.keys[pgtest.Acme].Reveal() {
			t.Fatalf("a key of another form than expected: %s", n.keys[pgtest.Acme])
		}
		h := http.Header{"Authorization": {"Bearer " + key}, "Content-Type": {"application/json"}}
		for path, body := range map[string]string{
			"/v1/track":    `{"userId": "c-0001", "event": "order.placed"}`,
			"/v1/identify": `{"userId": "c-0001", "traits": {"country": "SE"}}`,
			"/v1/batch":    `{"batch": [{"type": "track", "userId": "c-0001", "event": "order.placed"}]}`,
			"/v1/emails":   `{"to": "c0001@brava.example", "email": "receipt", "data": {"number": "1", "total": 1, "currency": "NOK", "lines": []}}`,
		} {
			n.must(http.MethodPost, n.URL()+path, h, body, 401)
		}
		h.Set("Content-Type", "message/rfc822")
		n.must(http.MethodPost, n.URL()+"/bounces/brava", h, bounceReport(n.brava), 401, 403)
		fields := url.Values{"email": {"x@brava.example"}, "consent.newsletter": {"on"}}.Encode()
		form := http.Header{"Content-Type": {"application/x-www-form-urlencoded"}}
		n.must(http.MethodGet, n.URL()+"/f/acme/private", nil, "", 200)
		n.must(http.MethodGet, n.URL()+"/f/brava/private", nil, "", 404)
		n.must(http.MethodPost, n.URL()+"/f/brava/private", form, fields, 404)
		for _, name := range []string{"onda", "public", "onda_pool", "nobody", "acme%22;--"} {
			n.must(http.MethodGet, n.URL()+"/f/"+name+"/newsletter", nil, "", 404)
		}
		n.same(before)
	})

	t.Run("events", func(t *testing.T) {
		t.Parallel()
		n := newNeighbours(t)
		before := n.state()
		run := pgtest.One[int64](t, n.db, pgtest.Acme, "SELECT max(id) FROM run")
		submission := pgtest.One[int64](t, n.db, pgtest.Acme, "SELECT max(id) FROM submission")
		for _, function := range []string{"campaign", "segment", "send", "track", "schedule"} {
			in := n.instance(function, nil)
			for _, data := range []event.Data{
				event.ScheduleDue{Function: function},
				event.EmailSendRequested{Run: run},
				event.EmailRequested{Delivery: n.acme.delivery},
				event.CampaignStarted{Campaign: event.Campaign{Run: run, Campaign: "spring-news"}},
				event.CampaignCancelled{Campaign: event.Campaign{Run: run, Campaign: "spring-news"}},
				event.SegmentRebuildRequested{Segment: "nordic"},
				event.FormConfirmed{Submissions: event.Submissions{Items: []event.Submission{{Form: "newsletter", Submission: submission, Contact: 30}}}},
			} {
				// One that says it is of both.
				e := newEvent(t, pgtest.Acme, data)
				e.SetExtension(event.ExtTenant, pgtest.Brava)
				if status := post(t, in, e); n.reads(function, data) && (status < 400 || status >= 500 || status == 404 || status == 429) {
					t.Errorf("%s: an event %s of two tenants: status %d", function, e.Type(), status)
				}
				// What it names is another's.
				if status := post(t, in, newEvent(t, pgtest.Brava, data)); status >= 500 {
					t.Errorf("%s: %s of Brava about what is Acme's: status %d", function, e.Type(), status)
				}
				// One of nobody's.
				if status := post(t, in, newEvent(t, "nobody", data)); (status < 400 || status >= 500) && n.wants(function, data) {
					t.Errorf("%s: %s of a tenant that does not exist: status %d", function, e.Type(), status)
				}
			}
		}
		n.same(before)
		// A mail that Brava asks for to a contact number that only Acme has.
		api := n.instance("send", map[string]string{"ONDA_LANE": "transactional"})
		received := n.box.Counts().Received
		e := newEvent(t, pgtest.Brava, event.EmailRequested{Email: "receipt", Contact: 30, Key: "k", Data: map[string]any{"number": "1", "total": 1, "currency": "NOK", "lines": []any{}}})
		status := post(t, api, e)
		n.until([]string{pgtest.Acme, pgtest.Brava}, begin.Add(5*time.Hour))
		if got := n.box.Counts().Received; got != received || status >= 500 {
			t.Errorf("%d mails went to a contact of another tenant; status %d", got-received, status)
		}
		if diff := cmp.Diff(before[pgtest.Acme], n.state()[pgtest.Acme]); diff != "" {
			t.Errorf("Acme has changed (-before +after):\n%s", diff)
		}
		if k := n.count(pgtest.Brava, "SELECT count(*) FROM delivery WHERE contact = 30 AND state NOT IN ('suppressed', 'failed')"); k != 0 {
			t.Errorf("%d mails to nobody are said to have been sent", k)
		}
	})

	t.Run("a process for one tenant", func(t *testing.T) {
		t.Parallel()
		n := newNeighbours(t)
		before := n.state()
		only := map[string]string{"ONDA_TENANT": pgtest.Acme}
		for function, data := range map[string]event.Data{
			"campaign": event.ScheduleDue{Function: "campaign"}, "segment": event.ScheduleDue{Function: "segment"},
			"send": event.ScheduleDue{Function: "send"}, "track": event.ScheduleDue{Function: "track"},
		} {
			in := n.instance(function, only)
			if status := post(t, in, newEvent(t, pgtest.Acme, data)); status >= 300 {
				t.Errorf("%s for Acme: status %d for its own event", function, status)
			}
			if status := post(t, in, newEvent(t, pgtest.Brava, data)); status < 400 || status >= 500 {
				t.Errorf("%s for Acme: status %d for Brava's event", function, status)
			}
		}
		ask := func(function, method, path string, h http.Header, body string, want ...int) {
			t.Helper()
			r := httptest.NewRequestWithContext(t.Context(), method, path, strings.NewReader(body))
			maps.Copy(r.Header, h)
			w := httptest.NewRecorder()
			n.instance(function, only).ServeHTTP(w, r)
			for _, status := range want {
				if w.Code == status {
					return
				}
			}
			t.Errorf("%s for Acme: %s %s of Brava: status %d, want %v", function, method, path, w.Code, want)
		}
		path := func(page string) string { return strings.TrimPrefix(page, linkURL) }
		ask("track", http.MethodGet, path(n.brava.links[0]), nil, "", 404)
		ask("track", http.MethodGet, path(n.brava.page("w")), nil, "", 404)
		ask("track", http.MethodPost, path(n.brava.unsubscribe), http.Header{"Content-Type": {"application/x-www-form-urlencoded"}}, "List-Unsubscribe=One-Click", 404)
		ask("track", http.MethodPost, "/v1/track", n.secret(pgtest.Brava, "application/json"), `{"userId": "c-0001", "event": "order.placed"}`, 401)
		ask("send", http.MethodPost, "/v1/emails", n.secret(pgtest.Brava, "application/json"), `{"to": "a@b.example", "email": "receipt"}`, 401)
		ask("bounce", http.MethodPost, "/bounces/brava", n.secret(pgtest.Brava, "message/rfc822"), bounceReport(n.brava), 403)
		ask("render-form", http.MethodGet, "/f/brava/newsletter", nil, "", 404)
		n.same(before)
	})
}

// reads tells whether a function looks at whose an event is: schedule takes any event for a tick, and track only those of schedule for anything.
func (n *neighbours) reads(function string, data event.Data) bool {
	_, due := data.(event.ScheduleDue)
	return function != "schedule" && (function != "track" || due)
}

// wants tells whether a function does anything for a tenant at an event, and must find that there is none.
func (n *neighbours) wants(function string, data event.Data) bool {
	switch data.(type) {
	case event.ScheduleDue:
		return function != "schedule"
	case event.EmailSendRequested:
		return function == "send"
	case event.CampaignStarted:
		return function == "campaign"
	case event.SegmentRebuildRequested:
		return function == "segment"
	}
	return false
}
