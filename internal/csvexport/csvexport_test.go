package csvexport_test

import (
	"bytes"
	"context"
	"encoding/csv"
	"encoding/json"
	"io"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/onda-run/onda/internal/contact"
	"github.com/onda-run/onda/internal/csvexport"
	"github.com/onda-run/onda/internal/csvimport"
	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/postgres"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

func newDB(tb testing.TB) (*pgtest.Database, *postgres.DB) {
	tb.Helper()
	d := pgtest.New(tb)
	db := d.DB(tb)
	for _, tenant := range []string{pgtest.Acme, pgtest.Brava} {
		for _, doc := range [][3]string{
			{"Field", "forename", `{"type": "text"}`},
			{"Field", "level", `{"type": "number"}`},
			{"Field", "likes", `{"type": "multiselect", "options": ["=ski", "sail"]}`},
			{"Field", "phone", `{"type": "phone"}`},
			{"Field", "vip", `{"type": "boolean"}`},
			{"Topic", "newsletter", `{}`},
			{"Segment", "readers", `{"where": {"tag": "reader"}}`},
			{"Settings", "settings", `{"scores": [{"event": "email.clicked", "add": 1, "group": "fit"}], "stages": ["hot"]}`},
		} {
			pgtest.Exec(tb, db, tenant, `WITH e AS (INSERT INTO entity (kind, name) VALUES ($1, $2) RETURNING id)
				INSERT INTO document (entity, version, spec, hash) SELECT id, 1,
				       jsonb_build_object('apiVersion', 'onda/v1', 'kind', $1::text, 'metadata', jsonb_build_object('name', $2::text), 'spec', $3::jsonb), '' FROM e`, doc[0], doc[1], doc[2])
		}
		pgtest.Exec(tb, db, tenant, "UPDATE entity e SET current = d.id FROM document d WHERE d.entity = e.id")
	}
	return d, db
}

func export(tb testing.TB, db *postgres.DB, opts csvexport.Options) string {
	tb.Helper()
	var out bytes.Buffer
	if err := csvexport.Export(context.Background(), db, pgtest.Acme, &out, opts); err != nil {
		tb.Fatal(err)
	}
	return out.String()
}

func fill(tb testing.TB, db *postgres.DB) {
	tb.Helper()
	pgtest.Exec(tb, db, pgtest.Acme, `INSERT INTO contact (email, external_id, fields, tags, scores, created_at, erased_at, merged_into) VALUES
		('ada@example.com', '=1+1', '{"forename": "Ada \"A\"\n, Countess", "level": -5, "likes": ["=ski", "sail"], "phone": "+4721000000", "vip": true}', '{-x,reader}', '{"score": -3, "fit": 7}', '2026-01-02T03:04:05Z', NULL, NULL),
		(NULL, '7', '{"level": "-x", "likes": "none"}', '{}', '{}', '2026-01-02T03:04:05Z', NULL, NULL),
		('gone@example.com', NULL, '{}', '{}', '{}', DEFAULT, now(), NULL),
		('old@example.com', NULL, '{}', '{}', '{}', DEFAULT, NULL, 1),
		('out@example.com', NULL, '{}', '{}', '{}', '2026-01-02T03:04:05Z', NULL, NULL)`)
	pgtest.Exec(tb, db, pgtest.Acme, "INSERT INTO subscription (contact, purpose, state, consent, at) VALUES (1, 'newsletter', 'granted', 1, now()), (1, 'tracking.web', 'withdrawn', 2, now()), (5, 'newsletter', 'pending', 3, now())")
	pgtest.Exec(tb, db, pgtest.Acme, "INSERT INTO member (segment, contact, kept) SELECT id, c, k FROM entity, (VALUES (1, ''), (2, 'in'), (3, ''), (5, 'out')) v(c, k) WHERE kind = 'Segment'")
	pgtest.Exec(tb, db, pgtest.Acme, "UPDATE contact SET stage = 'hot', typed = 'Ada@Example.com' WHERE id = 1")
	pgtest.Exec(tb, db, pgtest.Brava, "INSERT INTO contact (email) VALUES ('brava@example.com')")
}

func TestExport(t *testing.T) {
	t.Parallel()
	_, db := newDB(t)
	fill(t, db)
	for _, c := range []struct {
		name string
		opts csvexport.Options
		want string
	}{
		{"all", csvexport.Options{}, `email,external_id,forename,level,likes,phone,vip,tags,score,score.fit,stage,consent.newsletter,consent.tracking.email,consent.tracking.web,email.typed,created
ada@example.com,'=1+1,"Ada ""A""
, Countess",-5,"'=ski,sail",'+4721000000,true,"'-x,reader",-3,7,hot,granted,,withdrawn,Ada@Example.com,2026-01-02T03:04:05Z
,7,,'-x,none,,,,,,,,,,,2026-01-02T03:04:05Z
out@example.com,,,,,,,,,,,pending,,,,2026-01-02T03:04:05Z
`},
		{"raw", csvexport.Options{Raw: true, Columns: []string{"tags", "external_id"}}, "tags,external_id\n\"-x,reader\",=1+1\n,7\n,\n"},
		{"one column", csvexport.Options{Columns: []string{"email"}}, "email\nada@example.com\n\"\"\nout@example.com\n"},
		{"segment", csvexport.Options{Segment: "readers", Columns: []string{"email", "consent.newsletter"}}, "email,consent.newsletter\nada@example.com,granted\n,\n"},
		{"JSON", csvexport.Options{JSON: true}, `{"email":"ada@example.com","external_id":"=1+1","forename":"Ada \"A\"\n, Countess","level":-5,"likes":["=ski", "sail"],"phone":"+4721000000","vip":true,"tags":["-x","reader"],` +
			`"score":-3,"score.fit":7,"stage":"hot","consent.newsletter":"granted","consent.tracking.web":"withdrawn","email.typed":"Ada@Example.com","created":"2026-01-02T03:04:05Z"}
{"external_id":"7","level":"-x","likes":"none","tags":[],"created":"2026-01-02T03:04:05Z"}
{"email":"out@example.com","tags":[],"consent.newsletter":"pending","created":"2026-01-02T03:04:05Z"}
`},
		{"JSON of nothing", csvexport.Options{JSON: true, Columns: []string{"vip"}}, "{\"vip\":true}\n{}\n{}\n"},
	} {
		got := export(t, db, c.opts)
		if d := cmp.Diff(c.want, got); d != "" {
			t.Errorf("%s: %s", c.name, d)
		}
		for line := range strings.Lines(got) {
			if c.opts.JSON && !json.Valid([]byte(line)) {
				t.Errorf("%s is not JSON", line)
			}
		}
	}
	for _, c := range []struct {
		opts csvexport.Options
		want string
	}{
		{csvexport.Options{Columns: []string{"emial"}}, `there is no column "emial", did you mean "email"?`},
		{csvexport.Options{Columns: []string{"x"}}, `there is no column "x": there are email, external_id, forename, level, likes, phone, vip, tags, score, score.fit, stage, consent.newsletter, consent.tracking.email, consent.tracking.web, email.typed, created`},
		{csvexport.Options{Columns: []string{"vip", "vip"}}, `"vip" is named twice: a column is exported once`},
		{csvexport.Options{Segment: "writers"}, `there is no segment "writers"`},
	} {
		var out bytes.Buffer
		err := csvexport.Export(t.Context(), db, pgtest.Acme, &out, c.opts)
		if err == nil || err.Error() != c.want || out.Len() > 0 {
			t.Errorf("%+v: %v, and %q was written", c.opts, err, &out)
		}
	}
}

// However many chunks there are, and holes between numbers, all come once and in order.
func TestChunks(t *testing.T) {
	t.Parallel()
	_, db := newDB(t)
	pgtest.Exec(t, db, pgtest.Acme, "INSERT INTO contact (external_id, fields) SELECT n, CASE WHEN n < 300 THEN jsonb_build_object('forename', repeat('x', 10000)) ELSE '{}' END FROM generate_series(1, 50000) n")
	pgtest.Exec(t, db, pgtest.Acme, "DELETE FROM contact WHERE id BETWEEN 400 AND 30000 OR id = 1000")
	pgtest.Exec(t, db, pgtest.Acme, "INSERT INTO member (segment, contact) SELECT e.id, c.id FROM entity e, contact c WHERE kind = 'Segment' AND c.id % 3 = 0")
	for segment, want := range map[string]string{"": "SELECT external_id FROM contact ORDER BY id", "readers": "SELECT external_id FROM contact WHERE id % 3 = 0 ORDER BY id"} {
		told := 0
		got := export(t, db, csvexport.Options{Segment: segment, Columns: []string{"external_id", "forename", "consent.newsletter"}, OnProgress: func(n int) { told += n }})
		rows, err := csv.NewReader(strings.NewReader(got)).ReadAll()
		if err != nil {
			t.Fatal(err)
		}
		var ids []string
		for _, r := range rows[1:] {
			ids = append(ids, r[0])
		}
		if d := cmp.Diff(pgtest.All[string](t, db, pgtest.Acme, want), ids); d != "" {
			t.Errorf("%q: %s", segment, d)
		}
		if told != len(ids) {
			t.Errorf("%q: progress told of %d contacts, not %d", segment, told, len(ids))
		}
	}
}

// watched is written to while nothing is open in Postgres; after its first writes it has enough.
type watched struct {
	t      *testing.T
	open   func() int
	writes int
}

func (w *watched) Write(p []byte) (int, error) {
	w.writes++
	if n := w.open(); n != 0 {
		w.t.Errorf("%d transactions are open while it is written", n)
	}
	if w.writes == 3 {
		return 0, syscall.EPIPE
	}
	return len(p), nil
}

func TestAReaderThatIsSlowOrGone(t *testing.T) {
	t.Parallel()
	d, db := newDB(t)
	pgtest.Exec(t, db, pgtest.Acme, "INSERT INTO contact (external_id) SELECT n FROM generate_series(1, 100000) n")
	observer := d.DB(t)
	w := &watched{t: t, open: func() int {
		return pgtest.One[int](t, observer, pgtest.Brava, "SELECT count(*) FROM pg_locks WHERE locktype = 'virtualxid' AND database IS NULL AND pid IN (SELECT pid FROM pg_stat_activity WHERE datname = current_database()) AND pid <> pg_backend_pid()")
	}}
	err := csvexport.Export(t.Context(), db, pgtest.Acme, w, csvexport.Options{})
	if err == nil || !strings.Contains(err.Error(), "broken pipe") || w.writes != 3 {
		t.Errorf("%v after %d writes", err, w.writes)
	}
}

func TestFormulas(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"": "", "a": "a", "=1": "'=1", "+1": "'+1", "-1": "'-1", "@a": "'@a", "\ta": "'\ta", "\ra": "'\ra", "'=1": "''=1", "''-": "'''-", "'a": "'a", "'": "'", "a=1": "a=1", "''": "''",
		"a;=1": "a;'=1", "a;'=1;b": "a;''=1;b", "=1;\t-": "'=1;'\t'-", "a\n@b": "a\n'@b", "a\r\n+;": "a\r\n'+;", "a; =1;": "a; =1;", ";'a": ";'a",
	} {
		if got := csvexport.Guard(in); got != want {
			t.Errorf("%q becomes %q, want %q", in, got, want)
		}
		if got := csvexport.Unguard(want); got != in {
			t.Errorf("%q becomes %q again, want %q", want, got, in)
		}
	}
}

// What one tenant exports another one imports, and has the same then.
func TestAnImportReadsItAsItWas(t *testing.T) {
	t.Parallel()
	_, db := newDB(t)
	text := rapid.OneOf(rapid.SampledFrom([]string{"=1", "'=1", "''+", "'", "-5", "a\"b", "a,b;c\td", "a\nb", "a;=1", "a;'+\n-b", "ü", `"`, "@"}), rapid.StringMatching(`['=+@"a; -]{1,6}[a"']`))
	n := 0
	rapid.Check(t, func(rt *rapid.T) {
		var rows []contact.Row
		for range rapid.IntRange(1, 20).Draw(rt, "rows") {
			n++
			fields := map[string]any{}
			if v := strings.TrimSpace(text.Draw(rt, "forename")); v != "" {
				fields["forename"] = v
			}
			if rapid.Bool().Draw(rt, "level") {
				fields["level"] = rapid.Float64Range(-1e9, 1e9).Draw(rt, "n")
			}
			if rapid.Bool().Draw(rt, "likes") {
				fields["likes"] = rapid.SampledFrom([][]string{{"=ski"}, {"=ski", "sail"}, {"sail"}}).Draw(rt, "list")
			}
			var tags []string
			if tag := strings.TrimSpace(strings.NewReplacer(",", "", ";", "", "\t", "", "\n", "").Replace(text.Draw(rt, "tag"))); tag != "" {
				tags = []string{tag, "z"}
			}
			rows = append(rows, contact.Row{ExternalID: strings.TrimSpace(strings.ReplaceAll(strings.NewReplacer("\t", "", "\n", "").Replace(text.Draw(rt, "id")), " ", "")) + strconv.Itoa(n), Fields: fields, AddTags: tags})
		}
		pgtest.Exec(t, db, pgtest.Acme, "DELETE FROM contact")
		pgtest.Exec(t, db, pgtest.Brava, "DELETE FROM contact")
		pgtest.In(t, db, pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) error {
			results, err := contact.Upsert(ctx, tx, "campaign", rows, "")
			for _, r := range results {
				if r.Err != nil {
					return r.Err
				}
			}
			return err
		})
		out := export(t, db, csvexport.Options{Columns: []string{"external_id", "forename", "level", "likes", "tags"}})
		if res, err := csvimport.Import(t.Context(), db, pgtest.Brava, strings.NewReader(out), csvimport.Options{Rejects: io.Discard}); err != nil || res.Made != len(rows) {
			rt.Fatalf("%+v, %v of:\n%s", res, err, out)
		}
		const all = "SELECT concat_ws(' ', external_id, fields, tags) FROM contact ORDER BY external_id"
		if d := cmp.Diff(pgtest.All[string](t, db, pgtest.Acme, all), pgtest.All[string](t, db, pgtest.Brava, all)); d != "" {
			rt.Fatalf("%s\n%s", d, out)
		}
	})
}

// All that is exported can be imported as it is by another tenant, which then has the same, but for what Onda sets.
func TestAnImportOfAllColumns(t *testing.T) {
	t.Parallel()
	_, db := newDB(t)
	pgtest.Exec(t, db, pgtest.Acme, `INSERT INTO contact (email, external_id, fields, tags, scores, stage, typed) VALUES
		('ada@example.com', '=1+1', '{"forename": "Ada; \n=A", "level": -5, "likes": ["=ski", "sail"], "phone": "+4721000000", "vip": true}', '{-x,reader}', '{"score": -3, "fit": 7}', 'hot', 'Ada@Example.com'),
		('bob@xn--bcher-kva.example', NULL, '{}', '{}', '{}', NULL, 'bob@bücher.example'), (NULL, '7', '{"level": 1.5}', '{}', '{}', NULL, NULL)`)
	pgtest.Exec(t, db, pgtest.Acme, "INSERT INTO subscription (contact, purpose, state, consent, at) VALUES (1, 'newsletter', 'granted', 1, now()), (1, 'tracking.web', 'withdrawn', 2, now()), (2, 'newsletter', 'pending', 3, now()), (3, 'tracking.email', 'granted', 4, now())")
	out := export(t, db, csvexport.Options{})
	left := func(withProof bool) (of []csvimport.LeftOut) {
		for _, name := range []string{"score", "score.fit", "stage", "consent.newsletter", "consent.tracking.email", "consent.tracking.web", "created"} {
			switch why := "Onda sets it"; {
			case !strings.HasPrefix(name, "consent."):
				of = append(of, csvimport.LeftOut{Column: name, Why: why})
			case !withProof:
				of = append(of, csvimport.LeftOut{Column: name, Why: "all but who has withdrawn; --proof imports what is granted, too: say how they agreed"})
			}
		}
		return of
	}
	for _, c := range []struct {
		proof string
		want  csvimport.Result
	}{
		{"", csvimport.Result{Rows: 3, Made: 3, OptedOut: 1, Exported: true, LeftOut: left(false)}},
		{"", csvimport.Result{Rows: 3, Unchanged: 3, Exported: true, LeftOut: left(false)}},
		{"moved from acme", csvimport.Result{Rows: 3, Unchanged: 3, Granted: 2, Exported: true, LeftOut: left(true)}},
		{"moved from acme", csvimport.Result{Rows: 3, Unchanged: 3, Exported: true, LeftOut: left(true)}},
	} {
		res, err := csvimport.Import(t.Context(), db, pgtest.Brava, strings.NewReader(out), csvimport.Options{Proof: c.proof})
		if res.Took, res.ReadAs = 0, (csvimport.Dialect{}); err != nil || !cmp.Equal(c.want, res) {
			t.Errorf("%v, %s", err, cmp.Diff(c.want, res))
		}
	}
	for _, all := range []string{
		"SELECT concat_ws(' ', email, external_id, fields, tags, typed) FROM contact ORDER BY email, external_id",
		"SELECT concat_ws(' ', c.email, c.external_id, s.purpose, s.state) FROM subscription s JOIN contact c ON c.id = s.contact WHERE s.state <> 'pending' ORDER BY 1",
	} {
		if d := cmp.Diff(pgtest.All[string](t, db, pgtest.Acme, all), pgtest.All[string](t, db, pgtest.Brava, all)); d != "" {
			t.Error(d)
		}
	}
	if got := pgtest.All[string](t, db, pgtest.Brava, "SELECT DISTINCT concat_ws(' ', state, basis, proof->>'text') FROM consent ORDER BY 1"); !cmp.Equal(got, []string{"granted import moved from acme", "withdrawn import"}) {
		t.Errorf("the ledger says %v", got)
	}
}

func FuzzCell(f *testing.F) {
	for _, s := range []string{"", "=1", "'-", "a\"b\r\n", " x", "a;'=1", "\t\t", "'\r'\n'-"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if got := csvexport.Unguard(csvexport.Guard(s)); got != s {
			t.Errorf("%q came back as %q", s, got)
		}
		for _, part := range strings.FieldsFunc(csvexport.Guard(s), func(c rune) bool { return strings.ContainsRune(";\t\r\n", c) }) {
			if strings.ContainsRune("=+-@", rune(part[0])) {
				t.Errorf("%q of %q is computed", part, s)
			}
		}
	})
}
