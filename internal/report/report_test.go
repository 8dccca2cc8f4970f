package report_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/report"
	"github.com/onda-run/onda/internal/spec"
)

var update = flag.Bool("update", false, "write golden files anew")

func TestMain(m *testing.M) { flag.Parse(); pgtest.Main(m) }

// seed writes a broadcast with every outcome: two batches, of which one was retried, and what people and machines did.
const seed = `
WITH e AS (INSERT INTO entity (kind, name) VALUES ('Broadcast', 'spring-news') RETURNING id),
	m AS (INSERT INTO entity (kind, name) VALUES ('Email', 'news') RETURNING id),
	d AS (INSERT INTO document (entity, version, spec, hash) SELECT id, 1, '{"metadata": {"name": "spring-news", "title": "Spring <news>"}}'::jsonb, ''::bytea FROM e RETURNING id, entity),
	md AS (INSERT INTO document (entity, version, spec, hash) SELECT id, 1, '{}'::jsonb, ''::bytea FROM m RETURNING id),
	l AS (INSERT INTO link (document, url, label) SELECT md.id, u, '' FROM md, unnest(ARRAY['https://shop.example/skis', 'https://shop.example/boots']) u RETURNING id, url),
	r AS (INSERT INTO run (kind, entity, document, state, started_at) SELECT 'broadcast', entity, id, 'running', '2026-03-01 09:00Z' FROM d RETURNING id),
	b AS (INSERT INTO batch (id, run, email, contacts) SELECT n, r.id, md.id, ARRAY[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]::bigint[] FROM r, md, generate_series(1, 2) n RETURNING id, run),
	again AS (INSERT INTO batch (id, run, email, attempt, contacts) SELECT 3, r.id, md.id, 2, ARRAY[513]::bigint[] FROM r, md),
	x AS (INSERT INTO delivery (id, contact, state, attempt, reason, class, code, status, tracking, at, bounced_at, bounce_class, complained_at)
		SELECT 1 << 9 | n, n, s.state, CASE n WHEN 1 THEN 2 ELSE 1 END, s.reason, s.class, s.code, s.status, s.tracking, '2026-03-01 09:00:00Z'::timestamptz + n * '1 second'::interval,
			CASE WHEN n = 2 THEN now() END, CASE WHEN n = 2 THEN 'hard' END, CASE WHEN n = 3 THEN now() END
		FROM (VALUES (1, 'sent', NULL, NULL, NULL, NULL, 'full'), (2, 'sent', NULL, NULL, NULL, NULL, 'full'), (3, 'sent', NULL, NULL, NULL, NULL, 'aggregate'),
			(4, 'sent', NULL, NULL, NULL, NULL, 'none'), (5, 'failed', NULL, 'hard', 550, '5.1.1', NULL), (6, 'suppressed', 'no_consent', NULL, NULL, NULL, NULL),
			(7, 'suppressed', 'suppressed', NULL, NULL, NULL, NULL), (8, 'deferred', NULL, 'soft', 451, '4.7.1', NULL), (9, 'unknown', NULL, NULL, NULL, NULL, NULL))
			s (n, state, reason, class, code, status, tracking))
INSERT INTO stat (run, step, hour, kind, verdict, link, tracked, n, firsts)
	SELECT r.id, '', '2026-03-01 10:00Z', k.kind, k.verdict, coalesce((SELECT id FROM l WHERE url = k.url), 0), k.tracked, k.n, k.firsts FROM r, (VALUES
		('open', 'human', '', true, 3, 2), ('open', 'machine', '', true, 5, 1), ('click', 'human', 'https://shop.example/skis', true, 2, 1),
		('click', 'human', 'https://shop.example/skis', false, 4, 0), ('click', 'machine', 'https://shop.example/boots', true, 7, 1), ('unsubscribe', '', '', true, 1, 1))
		k (kind, verdict, url, tracked, n, firsts)`

func load(t *testing.T, db *postgres.DB, tenant, name string) (r *report.Report, err error) {
	t.Helper()
	err = db.InTenant(context.Background(), tenant, func(ctx context.Context, tx *postgres.Tx) error {
		r, err = report.Load(ctx, tx, name)
		return err
	})
	return r, err
}

func TestReport(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t).DB(t)
	pgtest.Exec(t, db, "acme", seed)
	r, err := load(t, db, "acme", "spring-news")
	if err != nil {
		t.Fatal(err)
	}
	if got := r.Sent + r.Deferred + r.Failed + r.Suppressed + r.Unknown + r.Queued; got != r.Recipients || got != 20 {
		t.Errorf("the outcomes of %d recipients add up to %d, want 20", r.Recipients, got)
	}
	r.Made = time.Date(2026, 3, 2, 9, 0, 0, 0, time.UTC)
	var text, page bytes.Buffer
	if err := r.Text(&text); err != nil {
		t.Fatal(err)
	}
	golden(t, "testdata/report.txt", text.Bytes())
	if err := r.HTML(&page); err != nil {
		t.Fatal(err)
	}
	golden(t, "testdata/report.html", page.Bytes())
	for _, bad := range []string{"Spring <news>", "<script", "src=", "@import", "ZgotmplZ", "<no value>"} {
		if strings.Contains(page.String(), bad) {
			t.Errorf("the page has %q in it", bad)
		}
	}
	if _, err := load(t, db, "brava", "spring-news"); !errors.Is(err, report.ErrNoRun) {
		t.Errorf("brava's report: %v, want ErrNoRun", err)
	}
}

// Postgres counts mails to the variant that Go gave them, and an explained delivery names it.
func TestVariants(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t).DB(t)
	const doc = `{"apiVersion": "onda/v1", "kind": "Email", "metadata": {"name": "news"}, "spec": {"transactional": true, "from": "a@x.example", "subject": "s", "html": "h",
		"variants": [{"name": "short", "weight": 1}, {"name": "long", "weight": 2}, {"name": "none", "weight": 1}]}}`
	e, err := spec.DecodeAs[*spec.Email](spec.KindEmail, []byte(doc))
	if err != nil {
		t.Fatal(err)
	}
	pgtest.Exec(t, db, "acme", `WITH e AS (INSERT INTO entity (kind, name) VALUES ('Email', 'news') RETURNING id),
		d AS (INSERT INTO document (entity, version, spec, hash) SELECT id, 1, $1::jsonb, ''::bytea FROM e RETURNING id, entity),
		r AS (INSERT INTO run (kind, entity, document, state) SELECT 'standing', entity, id, 'running' FROM d RETURNING id, document),
		b AS (INSERT INTO batch (id, run, email, contacts) SELECT n, r.id, r.document, ARRAY(SELECT c * 7919 FROM generate_series((n - 1) * 300 + 1, n * 300) c) FROM r, generate_series(1, 2) n),
		x AS (INSERT INTO delivery (id, contact, state, tracking, at) SELECT n << 9 | i, ((n - 1) * 300 + i) * 7919, CASE WHEN i > 290 THEN 'failed' ELSE 'sent' END, 'full', now()
			FROM generate_series(1, 2) n, generate_series(1, 300) i)
		INSERT INTO hit (kind, delivery, verdict) SELECT k, 1 << 9 | i, v FROM generate_series(1, 30) i, (VALUES ('open', 'human'), ('open', 'human'), ('click', 'machine')) h (k, v)`, doc)
	want := []report.Variant{{Email: "news", Name: "short"}, {Email: "news", Name: "long"}, {Email: "news", Name: "none"}}
	for i := range 600 {
		at := slices.IndexFunc(want, func(v report.Variant) bool { return v.Name == e.VariantOf(int64(i+1)*7919) })
		if i%300 < 290 {
			want[at].Sent++
			want[at].Tracked++
		}
		if i < 30 {
			want[at].Opened++
		}
	}
	r, err := load(t, db, "acme", "news")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, r.Variants); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if low, high := 0.45, 0.55; float64(want[1].Sent)/580 < low || float64(want[1].Sent)/580 > high {
		t.Errorf("of 580 mails %d are of the variant that half of them should be", want[1].Sent)
	}
	text, page := shown(t, r)
	if !strings.Contains(text.String(), "news long") || !strings.Contains(page.String(), "news long") {
		t.Errorf("no variants in the report:\n%s", text.String())
	}
	pgtest.In(t, db, "acme", func(ctx context.Context, tx *postgres.Tx) error {
		d, err := report.Explain(ctx, tx, 1<<9|3)
		if err == nil && d.Variant != e.VariantOf(3*7919) {
			t.Errorf("explained as variant %q", d.Variant)
		}
		return err
	})
}

func TestListIsNewestFirst(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t).DB(t)
	pgtest.Exec(t, db, "acme", seed)
	pgtest.In(t, db, "acme", func(ctx context.Context, tx *postgres.Tx) error {
		runs, err := report.List(ctx, tx)
		if err != nil || len(runs) != 1 || runs[0].Title != "Spring <news>" {
			t.Errorf("%+v %v", runs, err)
		}
		var page bytes.Buffer
		return report.ListHTML(&page, tx.Tenant, "/reports/acme", runs)
	})
}

// A report of a pre-production says so first, wherever it is read.
func TestReportsOfAPreproductionSaySo(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	db := d.DB(t)
	pgtest.Exec(t, db, "acme", seed)
	for _, stage := range []postgres.Stage{postgres.Production, postgres.Preproduction} {
		if err := d.Admin(t).SetStage(t.Context(), stage, ""); err != nil {
			t.Fatal(err)
		}
		r, err := load(t, db, "acme", "spring-news")
		if err != nil {
			t.Fatal(err)
		}
		var text, page, list bytes.Buffer
		pgtest.In(t, db, "acme", func(_ context.Context, tx *postgres.Tx) error {
			return errors.Join(r.Text(&text), r.HTML(&page), report.ListHTML(&list, tx.Tenant, "/reports", nil))
		})
		data, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		want := stage == postgres.Preproduction
		if got := strings.HasPrefix(text.String(), report.Trial+"\n"); got != want {
			t.Errorf("%s: the text says so: %v", stage, got)
		}
		for what, made := range map[string]string{"page": page.String(), "list": list.String()} {
			if got := strings.Contains(made, `<main>`+"\n"+`<p class="trial" role="note">`+report.Trial); got != want {
				t.Errorf("%s: the %s says so: %v", stage, what, got)
			}
		}
		if got := strings.Contains(string(data), `"preproduction":true`); got != want {
			t.Errorf("%s: the JSON says so: %v", stage, got)
		}
	}
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	if *update {
		if err := os.WriteFile(name, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s (-update writes it anew):\n%s", name, diff)
	}
}

// shown gives a report as text and as a page.
func shown(t *testing.T, r *report.Report) (text, page *bytes.Buffer) {
	t.Helper()
	text, page = &bytes.Buffer{}, &bytes.Buffer{}
	if err := errors.Join(r.Text(text), r.HTML(page)); err != nil {
		t.Fatal(err)
	}
	return text, page
}

func TestReportsSayWhatIsHeld(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	db := d.DB(t)
	pgtest.Exec(t, db, pgtest.Acme, seed)
	pgtest.Exec(t, db, pgtest.Acme, "INSERT INTO throttle (domain, provider, open_until, why) VALUES ('acme.example', 'google', '2100-01-02 03:04Z', '5 of 1000 complained')")
	for tenant, want := range map[string]bool{pgtest.Acme: true, pgtest.Brava: false} {
		if tenant == pgtest.Brava {
			pgtest.Exec(t, db, tenant, seed)
		}
		r, err := load(t, db, tenant, "spring-news")
		if err != nil {
			t.Fatal(err)
		}
		text, page := shown(t, r)
		const held = "marketing mail from acme.example to google waits until 2100-01-02 03:04 UTC: 5 of 1000 complained."
		if got := strings.Contains(text.String(), held); got != want {
			t.Errorf("%s: the text says what is held: %v\n%s", tenant, got, text.String())
		}
		if got := strings.Contains(page.String(), held); got != want {
			t.Errorf("%s: the page says what is held: %v", tenant, got)
		}
	}
}

func TestReportsSayHowFarBehind(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t).DB(t)
	for tenant, behind := range map[string]bool{pgtest.Acme: true, pgtest.Brava: false} {
		pgtest.Exec(t, db, tenant, seed)
		if behind {
			pgtest.Exec(t, db, tenant, "INSERT INTO hit (kind, at) SELECT 'click', '2026-03-01 12:03:05Z'::timestamptz + n * interval '1 second' FROM generate_series(0, 1203) n")
			pgtest.Exec(t, db, tenant, "INSERT INTO fact (kind, at) VALUES ('event.tracked', '2026-02-01 00:00Z'), ('email.clicked', '2026-03-01 12:00:00Z')")
			pgtest.Exec(t, db, tenant, "UPDATE cursor SET (xid, id) = (SELECT xid, id FROM fact ORDER BY xid DESC, id DESC LIMIT 1) WHERE name = 'segment'")
		}
		r, err := load(t, db, tenant, "spring-news")
		if err != nil {
			t.Fatal(err)
		}
		text, page := shown(t, r)
		data, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		const hits, journeys = "opens and clicks are counted up to 2026-03-01 12:03:05, 1,204 hits wait", "journeys know what happened up to 2026-03-01 12:00:00, 2 facts wait"
		for what, got := range map[string][]bool{
			"text": {strings.Contains(text.String(), "\n  "+hits+"\n  "+journeys+"\n"), !strings.Contains(text.String(), "all counted")},
			"page": {strings.Contains(page.String(), ": "+hits+"; "+journeys+"</p>"), !strings.Contains(page.String(), "all counted")},
			"JSON": {strings.Contains(string(data), `"countedTo":"2026-03-01T12:03:05Z","hitsWaiting":1204`), strings.Contains(string(data), `"journeysWait":2`)},
		} {
			if got[0] != behind || got[1] != behind {
				t.Errorf("%s: the %s says that it is behind: %v\n%s", tenant, what, got, text.String())
			}
		}
		for _, line := range strings.Split(text.String(), "\n") {
			if n := len([]rune(line)); n > 80 {
				t.Errorf("%d columns: %s", n, line)
			}
		}
	}
}
