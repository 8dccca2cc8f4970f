package report_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/onda-run/onda/internal/apply"
	"github.com/onda-run/onda/internal/browsertest"
	"github.com/onda-run/onda/internal/campaign"
	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/report"
)

// journeys writes a run of the company's campaign onboarding with contacts at most of its steps.
const journeys = `
WITH r AS (INSERT INTO run (kind, entity, document, state, planned, started_at) SELECT 'campaign', id, current, 'running', true, '2026-03-01 09:00Z' FROM entity WHERE kind = 'Campaign' AND name = 'onboarding' RETURNING id, document),
	j AS (INSERT INTO journey (run, contact, document, state, step, outcome) SELECT r.id, n, r.document,
			CASE WHEN n <= 1200 THEN 'active' WHEN n <= 1290 THEN 'done' WHEN n <= 1297 THEN 'goal' ELSE 'left' END,
			CASE WHEN n <= 1034 THEN 'first-click' WHEN n <= 1199 THEN 'second-click' WHEN n = 1200 THEN 'of-an-older-version' ELSE 'done' END,
			CASE WHEN n > 1200 AND n <= 1290 THEN 'finished' ELSE '' END
		FROM r, generate_series(1, 1300) n RETURNING id, contact)
INSERT INTO step (journey, visit, step, branch) SELECT id, 1, 'hello', '' FROM j UNION ALL SELECT id, 2, 'first-click', CASE WHEN contact <= 1199 THEN 'timeout' ELSE 'then' END FROM j WHERE contact > 1034`

// pages serves what onda dev serves of reports.
func pages(t *testing.T, db *postgres.DB) *httptest.Server {
	t.Helper()
	serve := func(load func(ctx context.Context, tx *postgres.Tx, r *http.Request, w http.ResponseWriter) error) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "text/html; charset=utf-8")
			w.Header().Set("Content-Security-Policy", report.Policy)
			pgtest.In(t, db, "acme", func(ctx context.Context, tx *postgres.Tx) error { return load(ctx, tx, r, w) })
		}
	}
	mux := http.NewServeMux()
	mux.Handle("GET /reports", serve(func(ctx context.Context, tx *postgres.Tx, _ *http.Request, w http.ResponseWriter) error {
		runs, err := report.List(ctx, tx)
		if err != nil {
			return err
		}
		return report.ListHTML(w, tx.Tenant, "/reports", runs)
	}))
	mux.Handle("GET /reports/{name}", serve(func(ctx context.Context, tx *postgres.Tx, r *http.Request, w http.ResponseWriter) error {
		rep, err := report.Load(ctx, tx, r.PathValue("name"))
		if err != nil {
			return err
		}
		return rep.HTML(w)
	}))
	mux.Handle("GET /reports/long", serve(func(_ context.Context, _ *postgres.Tx, _ *http.Request, w http.ResponseWriter) error {
		return long().HTML(w)
	}))
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	return s
}

// long is a report of which everything is as long as it may come.
func long() *report.Report {
	const n = 1_234_567
	name := strings.Repeat("an-email-of-the-very-first-winter-sale-", 3)
	r := &report.Report{
		Preproduction: true, Run: n, Kind: "campaign", Name: name, Title: strings.Repeat("Donaudampfschifffahrt", 4), State: "completed", Made: time.Date(2026, 9, 30, 12, 0, 0, 0, time.UTC),
		Recipients: 5 * n, Sent: n, Failed: n, Suppressed: n, Deferred: n, Unknown: n, Complaints: n, Unsubscribes: n,
		SuppressedBy: []report.Count{{Name: "domain_unverified", N: n}}, FailedBy: []report.Count{{Name: "policy, SMTP 550, 5.7.26", N: n}}, Tracking: []report.Count{{Name: "full", N: n}},
		BouncedBy: []report.Count{{Name: "policy", N: n}}, OpensHuman: report.Engagement{Hits: n, Mails: n, Aggregate: n}, OpensMachine: report.Engagement{Mails: n}, ClicksMachine: report.Engagement{Mails: n, Aggregate: n},
		Links: []report.Link{{URL: "https://shop.example/" + strings.Repeat("a-page-of-many-words/", 8) + "?" + strings.Repeat("utm_campaign=spring&", 8), Human: n, Machine: n}},
		Graph: &campaign.Graph{Entered: n, Ended: map[string]int64{"done": n, "goal": n, "left": n, "cancelled": n}, Elsewhere: n},
	}
	for i := range 100 {
		r.Hours = append(r.Hours, report.Hour{At: r.Made.Add(time.Duration(i) * time.Hour), Sent: n, Opens: n, Clicks: n})
	}
	for depth := range 8 {
		r.Graph.Nodes = append(r.Graph.Nodes, campaign.GraphNode{Label: "send " + name, Depth: depth, Branch: "else", Here: n, Passed: n})
	}
	return r
}

// The pages of reports, on a phone and a desktop, with scripts and without, light and dark: all figures are there to be read, and nothing is loaded from anywhere.
func TestPagesInABrowser(t *testing.T) { //nolint:tparallel // one visitor after another: a browser has one tab in front
	t.Parallel()
	db := pgtest.New(t).DB(t)
	if _, _, err := apply.Directory(t.Context(), db, "acme", os.DirFS("../../examples/company"), nil); err != nil {
		t.Fatal(err)
	}
	pgtest.Exec(t, db, "acme", strings.ReplaceAll(seed, "'spring-news'", "'spring'"))
	pgtest.Exec(t, db, "acme", journeys)
	url := pages(t, db).URL + "/reports"
	b := browsertest.Start(t)
	for _, v := range browsertest.Visitors() {
		t.Run(v.Name, func(t *testing.T) {
			tab := b.Open(t, v, url)
			look := func(name, path string) {
				t.Helper()
				tab.Look(name)
				if diff := cmp.Diff([]string{url + path}, tab.Requests()); diff != "" {
					t.Errorf("%s asks for more than itself: %s", name, diff)
				}
				if got := browsertest.Eval[string](tab, `[...document.querySelectorAll("h1, h2, h3, h4, h5, h6")].map(h => h.tagName[1]).join("")`); strings.Trim(strings.TrimPrefix(got, "1"), "2") != "" || got[0] != '1' {
					t.Errorf("%s: its headings are of the levels %s", name, got)
				}
			}
			look("list of reports", "")
			shows(t, tab, "main", "Spring <news>", "running", "Onboarding", "campaign")
			tab.Go(url + "/spring")
			look("report", "/spring")
			shows(t, tab, "header", "Spring <news>", "1 March 2026, 09:00 UTC")
			shows(t, tab, ".tiles", "Recipients 20", "Sent 4 20.0%", "Opened, not shown to be machines 2 100.0% of tracked", "Clicked by people 1 50.0% of tracked", "Unsubscribed 1 25.0%", "Bounced 1 25.0%")
			shows(t, tab, "main", "sent 4 20.0%", "failed 1 5.0%", "hard, SMTP 550, 5.1.1 1 5.0%", "suppressed 2 10.0%", "no consent 1 5.0%", "deferred 1 5.0%", "unknown 1 5.0%", "queued 11 55.0%",
				"opened, not shown to be machines 2 100.0%", "opened, machines 1 50.0%", "clicked, people 1 50.0%", "clicked, machines 1 50.0%", "4 by people, 0 by machines",
				"tracked 2 50.0%", "in aggregate only 1 25.0%", "not tracked 1 25.0%", "complained 1 25.0%", "shop.example/skis 6 people, 0 machines", "shop.example/boots 0 people, 7 machines")
			tab.Tick("summary", true)
			shows(t, tab, "details", "1 Mar 2026 09:00 4 0 0", "1 Mar 2026 10:00 0 3 6")
			tab.Look("report with its hours")
			tab.Go(url + "/long")
			look("long report", "/long")
			tab.Tick("summary", true)
			tab.Look("long report with its hours")
			tab.Go(url + "/onboarding")
			look("report of a campaign", "/onboarding")
			shows(t, tab, "#graph", "entered 1,300", "send welcome 1,300 went on", "wait for email.clicked of hello, at most 3d 1,034 here 266 went on", "165 here", "then: tag +engaged", "exit finished", "90 done, 7 goal, 3 left", "at steps of older versions 1 here")
		})
	}
}

// shows checks that texts can be read in a part of the page.
func shows(t *testing.T, tab *browsertest.Tab, part string, want ...string) {
	t.Helper()
	got := strings.Join(strings.Fields(browsertest.Eval[string](tab, `document.querySelector("`+part+`").innerText`)), " ")
	for _, w := range want {
		if !strings.Contains(got, w) {
			t.Errorf("%s: there is no %q in %s", tab.Name, w, got)
		}
	}
}
