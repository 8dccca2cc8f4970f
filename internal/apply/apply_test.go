package apply_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/jackc/pgx/v5"

	"github.com/onda-run/onda/internal/apply"
	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/segment"
	"github.com/onda-run/onda/internal/spec"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

func dir(files map[string]string) fstest.MapFS {
	fsys := fstest.MapFS{}
	for name, text := range files {
		fsys[name] = &fstest.MapFile{Data: []byte(text)}
	}
	return fsys
}

const (
	plan = `
apiVersion: onda/v1
kind: Field
metadata: {name: plan}
spec: {type: text}
`
	paying = `
apiVersion: onda/v1
kind: Segment
metadata: {name: paying}
spec: {where: {field: plan, is: paid}}
`
)

// do applies a directory as onda apply does.
func do(t *testing.T, db *postgres.DB, tenant string, files map[string]string) (out map[string]apply.Action, changes []apply.Change, err error) {
	t.Helper()
	changes, _, err = apply.Directory(context.Background(), db, tenant, dir(files), nil)
	out = map[string]apply.Action{}
	for _, c := range changes {
		out[c.Kind+"/"+c.Name] = c.Action
	}
	return out, changes, err
}

func TestApplyIsIdempotentAndKeepsVersions(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t).DB(t)
	files := map[string]string{"fields/plan.yaml": plan, "segments.yaml": paying}
	for i, want := range []apply.Action{apply.Create, apply.Keep} {
		got, _, err := do(t, db, "acme", files)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(map[string]apply.Action{"Field/plan": want, "Segment/paying": want}, got); diff != "" {
			t.Errorf("apply %d: %s", i+1, diff)
		}
	}
	// A part of the company refers to what is stored already.
	_, changes, err := do(t, db, "acme", map[string]string{"s.yaml": strings.Replace(paying, "paid", "gold", 1)})
	if err != nil {
		t.Fatal(err)
	}
	want := []apply.Change{{Kind: "Segment", Name: "paying", Action: apply.Update, Version: 2, Edits: []apply.Edit{{Path: "spec.where.is", Before: "paid", After: "gold"}}}}
	if diff := cmp.Diff(want, changes); diff != "" {
		t.Error(diff)
	}
	if n := pgtest.One[int](t, db, "acme", "SELECT count(*) FROM document d JOIN entity e ON e.id = d.entity WHERE e.name = 'paying'"); n != 2 {
		t.Errorf("%d versions of the segment, want 2", n)
	}
	if n := pgtest.One[int](t, db, "acme", "SELECT count(*) FROM outbox WHERE type = 'onda.segment.rebuild.requested.v1'"); n != 2 {
		t.Errorf("%d rebuilds were asked for, want 2", n)
	}
	if n := pgtest.One[int](t, db, "brava", "SELECT count(*) FROM entity"); n != 0 {
		t.Errorf("brava has %d documents", n)
	}
}

func TestApplyIsAllOrNothing(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t).DB(t)
	_, _, err := do(t, db, "acme", map[string]string{
		"good.yaml": plan,
		"bad.yaml":  strings.Replace(paying, "field: plan", "field: plam", 1),
		"none.yaml": strings.Replace(strings.Replace(paying, "paying", "other", 1), "is: paid", "iss: paid", 1),
	})
	var problems spec.Problems
	if !errors.As(err, &problems) || len(problems) != 2 {
		t.Fatalf("%v, want two problems", err)
	}
	for i, want := range []string{`bad.yaml:5:`, `none.yaml:5:`} {
		if got := problems[i].Error(); !strings.HasPrefix(got, want) || !strings.Contains(got, "did you mean") {
			t.Errorf("problem %q, want one at %s with a suggestion", got, want)
		}
	}
	if n := pgtest.One[int](t, db, "acme", "SELECT count(*) FROM document"); n != 0 {
		t.Errorf("%d documents were stored", n)
	}
}

func TestTwoAppliesAtOnceMakeOneVersion(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t).DB(t)
	errs := make(chan error, 4)
	for range cap(errs) {
		go func() {
			_, _, err := do(t, db, "acme", map[string]string{"a.yaml": plan})
			errs <- err
		}()
	}
	for range cap(errs) {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if n := pgtest.One[int](t, db, "acme", "SELECT count(*) FROM document"); n != 1 {
		t.Errorf("%d versions, want 1", n)
	}
}

// A zone is another day for the same moment: the segments that read dates are computed anew, the others are left alone.
func TestAnotherZoneRebuildsWhatReadsDates(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t).DB(t)
	settings := func(zone, locale string) map[string]string {
		return map[string]string{"settings.yaml": "apiVersion: onda/v1\nkind: Settings\nmetadata: {name: settings}\nspec: {zone: " + zone + ", locale: " + locale + "}\n"}
	}
	rebuilt := func(files map[string]string) []string {
		t.Helper()
		for _, tenant := range []string{"acme", "brava"} { // as if all had been computed
			pgtest.Exec(t, db, tenant, "UPDATE segment s SET requested = false, document = e.current FROM entity e WHERE e.id = s.entity")
			pgtest.Exec(t, db, tenant, "UPDATE onda.wakeup SET at = 'infinity' WHERE function = 'segment'")
		}
		pgtest.Exec(t, db, "acme", "DELETE FROM outbox")
		if _, _, err := do(t, db, "acme", files); err != nil {
			t.Fatal(err)
		}
		names := pgtest.All[string](t, db, "acme", "SELECT e.name FROM segment s JOIN entity e ON e.id = s.entity WHERE s.requested ORDER BY 1")
		rung := pgtest.All[string](t, db, "acme", "SELECT event #>> '{data,segment}' FROM outbox WHERE type = 'onda.segment.rebuild.requested.v1' ORDER BY 1")
		if diff := cmp.Diff(names, rung, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("rung for (-requested +rung): %s", diff)
		}
		if woken := pgtest.One[bool](t, db, "acme", "SELECT at <= onda.now() FROM onda.wakeup WHERE function = 'segment'"); woken != (len(names) > 0) {
			t.Errorf("segment is woken: %t, for %q", woken, names)
		}
		if n := pgtest.One[int](t, db, "brava", "SELECT count(*) FROM segment WHERE requested"); n != 0 {
			t.Error("another tenant's are rebuilt")
		}
		return names
	}
	segments := plan + "---" + paying + `
---
apiVersion: onda/v1
kind: Segment
metadata: {name: fresh}
spec: {where: {all: [{segment: paying}, {field: created, inLast: 7d}]}}
---
apiVersion: onda/v1
kind: Segment
metadata: {name: hand}
spec: {members: manual}
`
	for _, tenant := range []string{"acme", "brava"} {
		if _, _, err := do(t, db, tenant, map[string]string{"s.yaml": segments}); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		files map[string]string
		want  []string
	}{
		{settings("UTC", "en"), nil}, // as without settings
		{settings("Europe/Lisbon", "en"), []string{"fresh"}},
		{settings("Europe/Lisbon", "pt"), nil},
		{map[string]string{"s.yaml": strings.Replace(paying, "paid", "gold", 1)}, []string{"paying"}},
		{settings("Asia/Tokyo", "pt"), []string{"fresh"}},
	} {
		if diff := cmp.Diff(c.want, rebuilt(c.files), cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("%v: %s", c.files, diff)
		}
	}
}

// Of two applies at once the second is checked against what the first has done: neither may pass a check that both together break.
func TestAppliesAtOnceAreCheckedOneAfterTheOther(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t).DB(t)
	for _, name := range []string{"a", "b"} {
		if _, _, err := do(t, db, "acme", asking(name, "{field: email, exists: true}")); err != nil {
			t.Fatal(err)
		}
	}
	second := make(chan error, 1)
	done := make(chan struct{})
	_, _, err := apply.Directory(t.Context(), db, "acme", dir(asking("a", "{segment: b}")), func(ctx context.Context, tx *postgres.Tx, _ *spec.Set) error {
		go func() {
			defer close(done)
			_, _, err := do(t, db, "acme", asking("b", "{segment: a}"))
			second <- err
		}()
		for waits := false; !waits; { // or has passed the check, and the end will show it
			select {
			case <-done:
				waits = true
			case <-time.After(5 * time.Millisecond):
				if err := tx.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_locks l WHERE NOT l.granted AND l.locktype = 'advisory'
					AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()))`).Scan(&waits); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	var problems spec.Problems
	if err := <-second; !errors.As(err, &problems) {
		t.Errorf("two segments ask about each other, and the second was applied: %v", err)
	}
}

const (
	topic = `
apiVersion: onda/v1
kind: Topic
metadata: {name: news, title: News}
spec: {title: {en: News}}
`
	layout = `
apiVersion: onda/v1
kind: Layout
metadata: {name: plain}
spec:
  html: '<html><body>{{ content }}<p><a href="https://shop.example/">Shop</a> <a href="{{ unsubscribe_url }}">Unsubscribe</a></p></body></html>'
`
	email = `
apiVersion: onda/v1
kind: Email
metadata: {name: spring}
spec:
  topic: news
  from: Shop <news@shop.example>
  layout: plain
  subject: Spring
  markdown: See [skis](https://shop.example/skis).
`
)

func TestLinksOfEmailsGetIds(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t).DB(t)
	links := func() []string {
		return pgtest.All[string](t, db, "acme", "SELECT l.url FROM link l JOIN entity e ON e.current = l.document ORDER BY 1")
	}
	if _, _, err := do(t, db, "acme", map[string]string{"a.yaml": topic + "---" + layout + "---" + email}); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"https://shop.example/", "https://shop.example/skis"}, links()); diff != "" {
		t.Error(diff)
	}
}

// A layout that changes makes a new version of the emails that are of it, also of those that are not in the directory: what a mail holds is decided by the
// version of its email.
func TestALayoutThatChangesRemakesItsEmails(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t).DB(t)
	other := strings.NewReplacer("name: spring", "name: autumn", "layout: plain", "preheader: Leaves").Replace(email)
	other = strings.Replace(other, "See [skis]", "To [leave]({{ unsubscribe_url }}) or see [skis]", 1)
	all := topic + "---" + layout + "---" + email + "---" + other
	if _, _, err := do(t, db, "acme", map[string]string{"a.yaml": all}); err != nil {
		t.Fatal(err)
	}
	first := pgtest.One[int64](t, db, "acme", "SELECT current FROM entity WHERE name = 'spring'")
	change := func(text string) string {
		return strings.Replace(text, "https://shop.example/\"", "https://shop.example/new\"", 1)
	}
	_, changes, err := do(t, db, "acme", map[string]string{"l.yaml": change(layout)})
	if err != nil {
		t.Fatal(err)
	}
	for i := range changes {
		changes[i].Edits = nil
	}
	want := []apply.Change{
		{Kind: "Layout", Name: "plain", Action: apply.Update, Version: 2}, {Kind: "Email", Name: "spring", Action: apply.Update, Version: 2, Remade: true},
	}
	if diff := cmp.Diff(want, changes); diff != "" {
		t.Error(diff)
	}
	links := func(document int64) []string {
		return pgtest.All[string](t, db, "acme", "SELECT url FROM link WHERE document = $1 ORDER BY 1", document)
	}
	second := pgtest.One[int64](t, db, "acme", "SELECT current FROM entity WHERE name = 'spring'")
	if diff := cmp.Diff([]string{"https://shop.example/new", "https://shop.example/skis"}, links(second)); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"https://shop.example/", "https://shop.example/skis"}, links(first)); diff != "" {
		t.Errorf("the links of the first version: %s", diff)
	}
	same := "SELECT a.spec = b.spec AND a.hash = b.hash AND a.compiled::text <> b.compiled::text FROM document a, document b WHERE a.id = $1 AND b.id = $2"
	if !pgtest.One[bool](t, db, "acme", same, first, second) {
		t.Error("the versions are not of one source, put together in two ways")
	}
	// With the directory as a whole nothing is left to do, and a layout that takes away what an email needs is refused.
	got, _, err := do(t, db, "acme", map[string]string{"a.yaml": change(all)})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]apply.Action{"Topic/news": apply.Keep, "Layout/plain": apply.Keep, "Email/spring": apply.Keep, "Email/autumn": apply.Keep}, got); diff != "" {
		t.Error(diff)
	}
	_, _, err = do(t, db, "acme", map[string]string{"l.yaml": strings.Replace(layout, "{{ unsubscribe_url }}", "https://shop.example/leave", 1)})
	if err == nil || err.Error() != `l.yaml:2:1: a mail with a topic needs {{ unsubscribe_url }} in it, or in its layout: the email "spring" has it in neither` {
		t.Errorf("error %v", err)
	}
}

// asking is a segment that asks something.
func asking(name, where string) map[string]string {
	return map[string]string{name + ".yaml": "apiVersion: onda/v1\nkind: Segment\nmetadata: {name: " + name + "}\nspec: {where: " + where + "}\n"}
}

// watched tells of each file that is opened.
type watched struct {
	fs.FS
	opened func(name string)
}

func (w watched) Open(name string) (fs.File, error) {
	w.opened(name)
	return w.FS.Open(name)
}

// While documents are read and emails put together, which may take minutes, no transaction is open: Postgres ends one that does nothing for ten seconds.
func TestNoTransactionWaitsForACompiler(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	db := d.DB(t)
	conn, err := pgx.Connect(t.Context(), d.AdminURL)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.Background()) }()
	files := watched{dir(asking("a", "{field: email, exists: true}")), func(string) {
		var n int
		if err := conn.QueryRow(t.Context(), "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in transaction%'").Scan(&n); err != nil || n != 0 {
			t.Errorf("%d transactions wait: %v", n, err)
		}
	}}
	if _, err := apply.Read(t.Context(), db, "acme", files, func(context.Context, *postgres.Tx, *spec.Set) error { return nil }); err != nil {
		t.Error(err)
	}
	if _, _, err = apply.Directory(t.Context(), db, "acme", files, nil); err != nil {
		t.Error(err)
	}
}

// Documents that are applied while others are read are looked at all the same.
func TestWhatIsAppliedMeanwhile(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t).DB(t)
	must := func(name, where string) {
		t.Helper()
		if _, _, err := do(t, db, "acme", asking(name, where)); err != nil {
			t.Fatal(err)
		}
	}
	must("a", "{tag: x}")
	must("b", "{tag: x}")
	while := func(opened func(time int)) error {
		times := 0
		_, _, err := apply.Directory(t.Context(), db, "acme", watched{dir(asking("a", "{segment: b}")), func(name string) {
			if name == "a.yaml" {
				times++
				opened(times)
			}
		}}, nil)
		return err
	}
	err := while(func(time int) { must("b", fmt.Sprintf("{tag: x%d}", time)) })
	if err == nil || !strings.Contains(err.Error(), "others apply documents all the time") {
		t.Errorf("error %v", err)
	}
	var problems spec.Problems
	if err := while(func(time int) {
		if time == 1 {
			must("b", "{segment: a}")
		}
	}); !errors.As(err, &problems) || !strings.Contains(err.Error(), "made of itself") {
		t.Errorf("a circle was applied: %v", err)
	}
	must("b", "{tag: x}")
	if err := while(func(time int) {
		if time == 1 {
			must("b", "{tag: y}")
		}
	}); err != nil {
		t.Error(err)
	}
	if n := pgtest.One[int](t, db, "acme", "SELECT count(*) FROM document d JOIN entity e ON e.current = d.id WHERE e.name = 'a' AND d.spec::text LIKE '%segment%'"); n != 1 {
		t.Error("it is not applied")
	}
}

// A segment that no rebuild can compute is applied, and told of.
func TestSlowSegmentsAreToldOf(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	db := d.DB(t)
	pgtest.Exec(t, db, "acme", "INSERT INTO contact (email) VALUES ('a@x.example')")
	d.Own(t, "acme", "CREATE FUNCTION slow(text) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(20); RETURN true; END $$")
	d.Own(t, "acme", "ALTER TABLE contact RENAME TO contact_table; CREATE VIEW contact AS SELECT * FROM contact_table WHERE slow(email); GRANT SELECT ON contact TO acme")
	files := dir(map[string]string{"a.yaml": plan + "---" + paying})
	changes, set, err := apply.Directory(t.Context(), db, "acme", files, nil)
	if err != nil {
		t.Fatal(err)
	}
	slow := func(changes []apply.Change, limit time.Duration) (warnings []string) {
		if err := db.InTenantSnapshot(t.Context(), "acme", func(ctx context.Context, tx *postgres.Tx) (err error) {
			warnings, err = apply.Slow(ctx, tx, set, changes, limit)
			return err
		}); err != nil {
			t.Fatal(err)
		}
		return warnings
	}
	want := "a.yaml:7:1: segment paying cannot be computed, and is set aside: for a few contacts it takes longer than 2s; have it ask for less (onda segment preview paying --plan shows what takes long)"
	if got := slow(changes, apply.TryTime); len(got) != 1 || got[0] != want {
		t.Errorf("%q, want %q", got, want)
	}
	if got := slow(changes, 50*time.Millisecond); len(got) != 1 || !strings.Contains(got[0], "since that takes longer than 50ms: 1") {
		t.Errorf("with less time than that: %q", got)
	}
	if changes, _, err = apply.Directory(t.Context(), db, "acme", files, nil); err != nil {
		t.Fatal(err)
	}
	if got := slow(changes, apply.TryTime); len(got) != 0 {
		t.Errorf("of what did not change: %q", got)
	}
	d.Own(t, "acme", "DROP VIEW contact; CREATE VIEW contact AS SELECT * FROM contact_table WHERE 1 / (id - id) = 1; GRANT SELECT ON contact TO acme")
	if got := slow([]apply.Change{{Kind: spec.KindSegment, Name: "paying", Action: apply.Update}}, apply.TryTime); len(got) != 1 || !strings.Contains(got[0], "set aside: Postgres refuses it: SQLSTATE 22012;") {
		t.Errorf("of what Postgres refuses: %q", got)
	}
}

// What was not put together cannot be sent, and so not be stored.
func TestOnlyWhatWasPutTogetherIsStored(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t).DB(t)
	set, err := spec.Load(dir(map[string]string{"a.yaml": topic + "---" + layout + "---" + email}))
	if err != nil {
		t.Fatal(err)
	}
	err = db.InTenant(t.Context(), "acme", func(ctx context.Context, tx *postgres.Tx) error {
		_, err := apply.Apply(ctx, tx, set)
		return err
	})
	if err == nil || !strings.Contains(err.Error(), "store Email spring: it has not been put together") {
		t.Errorf("error %v", err)
	}
}

// A preview counts what is not stored, also where it asks about what is not stored either, and writes nothing at all.
func TestPreviewOnlyReads(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t).DB(t)
	for _, tenant := range []string{"acme", "brava"} {
		if _, _, err := do(t, db, tenant, map[string]string{"a.yaml": plan + "---" + paying}); err != nil {
			t.Fatal(err)
		}
		pgtest.Exec(t, db, tenant, `INSERT INTO contact (email, fields) SELECT 'c' || n || '@x.example', jsonb_build_object('plan', CASE WHEN n % 4 = 0 THEN 'paid' WHEN n % 4 = 1 THEN 'gold' ELSE 'free' END)
			FROM generate_series(1, CASE WHEN current_schema = 'acme' THEN 40 ELSE 4 END) n`)
		pgtest.Exec(t, db, tenant, "UPDATE segment SET document = current, requested = false FROM entity WHERE id = entity")
		pgtest.Exec(t, db, tenant, `INSERT INTO member (segment, contact, kept) SELECT e.id, c.id, CASE WHEN c.email = 'c40@x.example' THEN 'out' WHEN c.email = 'c2@x.example' THEN 'in' ELSE '' END
			FROM contact c, entity e WHERE e.name = 'paying' AND (c.fields->>'plan' = 'paid' OR c.email = 'c2@x.example')`)
	}
	files := map[string]string{"a.yaml": plan + "---" + strings.Replace(paying, "is: paid", "in: [paid, gold]", 1) + `
---
apiVersion: onda/v1
kind: Segment
metadata: {name: others}
spec: {where: {not: {segment: paying}}}
`}
	_, err := apply.Read(t.Context(), db, "acme", dir(files), func(ctx context.Context, tx *postgres.Tx, set *spec.Set) error {
		for name, want := range map[string]apply.Members{
			"paying": {Now: 10, Then: 20, Joins: 10}, // nine that pay and one kept in by hand; ten with gold
			"others": {Then: 20, Joins: 20},          // all but the twenty
		} {
			p, err := apply.PreviewOf(ctx, tx, set, name, apply.PreviewOptions{Sample: 3, Plan: true, Limit: time.Minute})
			if err != nil {
				return err
			}
			if diff := cmp.Diff(want, p.Members); diff != "" {
				t.Errorf("%s: %s", name, diff)
			}
			if len(p.Sample) != 3 || !strings.Contains(strings.Join(p.Plan, " "), "actual time") {
				t.Errorf("%s: sample %v, plan %q", name, p.Sample, p.Plan)
			}
		}
		if _, err := apply.PreviewOf(ctx, tx, set, "none", apply.PreviewOptions{Limit: time.Minute}); !errors.Is(err, segment.ErrUnknown) {
			t.Errorf("error %v", err)
		}
		var wrote bool
		if err := tx.QueryRow(ctx, "SELECT pg_current_xact_id_if_assigned() IS NOT NULL").Scan(&wrote); err != nil {
			return err
		}
		if wrote {
			t.Error("the transaction has an id: something was written")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
