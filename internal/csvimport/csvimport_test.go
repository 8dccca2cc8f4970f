package csvimport_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/onda-run/onda/internal/contact"
	"github.com/onda-run/onda/internal/csvimport"
	"github.com/onda-run/onda/internal/fieldindex"
	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/postgres"
)

func newDB(tb testing.TB) *postgres.DB {
	tb.Helper()
	return fill(tb, pgtest.New(tb).DB(tb))
}

// fill gives a database the fields and the topic of the tests.
func fill(tb testing.TB, db *postgres.DB) *postgres.DB {
	tb.Helper()
	for name, spec := range map[string]string{
		"first_name": `{"type": "text"}`, "level": `{"type": "number"}`, "birthday": `{"type": "date"}`, "country": `{"type": "country"}`,
		"interests": `{"type": "multiselect", "options": ["ski", "sail"]}`, "note": `{"type": "text"}`,
	} {
		apply(tb, db, "Field", name, spec)
	}
	apply(tb, db, "Topic", "newsletter", `{}`)
	return db
}

func apply(tb testing.TB, db *postgres.DB, kind, name, spec string) {
	tb.Helper()
	pgtest.Exec(tb, db, "acme", `WITH e AS (INSERT INTO entity (kind, name) VALUES ($1, $2) RETURNING id)
		INSERT INTO document (entity, version, spec, hash) SELECT id, 1,
		       jsonb_build_object('apiVersion', 'onda/v1', 'kind', $1::text, 'metadata', jsonb_build_object('name', $2::text), 'spec', $3::jsonb), '' FROM e`, kind, name, spec)
	pgtest.Exec(tb, db, "acme", "UPDATE entity e SET current = d.id FROM document d WHERE d.entity = e.id")
}

func run(tb testing.TB, db *postgres.DB, file string, opts csvimport.Options) (csvimport.Result, string) {
	tb.Helper()
	var rejects bytes.Buffer
	opts.Rejects = &rejects
	if opts.Name == "" {
		opts.Name = "people.csv"
	}
	res, err := csvimport.Import(context.Background(), db, "acme", strings.NewReader(file), opts)
	if err != nil {
		tb.Fatalf("import: %v", err)
	}
	res.Took, res.ReadAs = 0, csvimport.Dialect{}
	return res, rejects.String()
}

func contacts(tb testing.TB, db *postgres.DB) []string {
	tb.Helper()
	return pgtest.All[string](tb, db, "acme", "SELECT concat_ws(' ', email, external_id, fields, tags) FROM contact ORDER BY id")
}

func count(tb testing.TB, db *postgres.DB, tenant string) map[string]int {
	tb.Helper()
	out := map[string]int{}
	for _, table := range []string{"contact", "consent", "subscription", "fact", "outbox"} {
		out[table] = pgtest.One[int](tb, db, tenant, "SELECT count(*) FROM "+table)
	}
	return out
}

func TestUniqueFields(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	db := d.DB(t)
	apply(t, db, "Field", "code", `{"type": "text", "unique": true}`)
	if _, said, err := fieldindex.Ensure(t.Context(), d.Admin(t), "acme"); err != nil || said != nil {
		t.Fatal(said, err)
	}
	const file = "email,code\na@example.com,1\nb@example.com,1\nc@example.com,2\n"
	for _, want := range []csvimport.Result{{Rows: 3, Made: 2, Rejected: 1}, {Rows: 3, Unchanged: 2, Rejected: 1}} {
		res, rejects := run(t, db, file, csvimport.Options{})
		if res.Made != want.Made || res.Unchanged != want.Unchanged || res.Rejected != 1 {
			t.Errorf("%+v", res)
		}
		if want := "email,code,error\nb@example.com,1,\"field code: another contact has this value, and no two may have the same: correct it, or merge the two contacts\"\n"; rejects != want {
			t.Errorf("rejects: %s", rejects)
		}
	}
}

func TestImport(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	file := "\ufeffEmail,First Name,level,interests,tags,country\r\n" +
		"Ada@Example.com,Ada,12.5,\"ski, sail\",\"vip,web\",no\r\n" +
		"\r\n" +
		"bob@example.com,\"Bob \"\"The Boss\"\"\nSmith\",,,,\r\n" +
		"zoe@bücher.example,Zoë 5\" tall,0,,,FR"
	opts := csvimport.Options{Consent: []string{"newsletter", "tracking.email"}, Proof: "fair, 12 May", Tags: []string{"fair"}}
	res, rejects := run(t, db, file, opts)
	if d := cmp.Diff(csvimport.Result{Rows: 3, Made: 3, Granted: 6}, res); d != "" || rejects != "" {
		t.Errorf("%s; rejects %q", d, rejects)
	}
	want := []string{
		`ada@example.com {"level": 12.5, "country": "NO", "interests": ["sail", "ski"], "first_name": "Ada"} {fair,vip,web}`,
		`bob@example.com {"first_name": "Bob \"The Boss\"\nSmith"} {fair}`,
		`zoe@xn--bcher-kva.example {"level": 0, "country": "FR", "first_name": "Zoë 5\" tall"} {fair}`,
	}
	if d := cmp.Diff(want, contacts(t, db)); d != "" {
		t.Error(d)
	}
	if got := pgtest.One[string](t, db, "acme", "SELECT basis || ' ' || state || ' ' || proof FROM consent ORDER BY id DESC LIMIT 1"); got != `import granted {"row": 5, "file": "people.csv", "text": "fair, 12 May"}` {
		t.Errorf("the ledger says %s", got)
	}
	// Again, also under another name and in another order: nothing changes.
	before := count(t, db, "acme")
	lines := strings.SplitN(file, "\r\n", 4)
	again := lines[0] + "\r\n" + lines[3] + "\r\n" + lines[1]
	for _, f := range []string{file, again} {
		opts.Name += "again.csv"
		res, _ = run(t, db, f, opts)
		if d := cmp.Diff(csvimport.Result{Rows: 3, Unchanged: 3}, res); d != "" {
			t.Error(d)
		}
	}
	if d := cmp.Diff(before, count(t, db, "acme")); d != "" {
		t.Error(d)
	}
	// What the file says anew is written, what it leaves empty stays.
	res, _ = run(t, db, "email,level,first_name\nada@example.com,13,\nbob@example.com,,\n", csvimport.Options{})
	if d := cmp.Diff(csvimport.Result{Rows: 2, Updated: 1, Unchanged: 1}, res); d != "" {
		t.Error(d)
	}
	if got := pgtest.One[string](t, db, "acme", "SELECT fields ->> 'first_name' || (fields ->> 'level') FROM contact WHERE email = 'ada@example.com'"); got != "Ada13" {
		t.Errorf("ada is %s", got)
	}
	if d := cmp.Diff(map[string]int{"contact": 0, "consent": 0, "subscription": 0, "fact": 0, "outbox": 0}, count(t, db, "brava")); d != "" {
		t.Errorf("brava: %s", d)
	}
	if n := pgtest.One[int](t, db, "acme", "SELECT coalesce(sum(cardinality(contacts)), 0) FROM fact WHERE kind = 'contact.changed'"); n != 4 {
		t.Errorf("contact.changed tells of %d, want 4", n)
	}
}

func TestHeaderErrorsComeBeforeAnything(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	for name, c := range map[string]struct {
		file string
		opts csvimport.Options
		want string
	}{
		"empty":             {"", csvimport.Options{}, "the file is empty"},
		"only a mark":       {"\ufeff", csvimport.Options{}, "the file is empty"},
		"no identity":       {"first_name,level\nAda,1\n", csvimport.Options{}, "the column email is missing"},
		"unknown":           {"email,frist_name\n", csvimport.Options{}, `column 2: there is no field "frist_name", did you mean "first_name"?`},
		"twice":             {"email,level,Level\n", csvimport.Options{}, `column 3: "Level" is column 2 already`},
		"nameless":          {"email,,level\n", csvimport.Options{}, "column 2 has no name"},
		"no such topic":     {"email,consent.newsleter\n", csvimport.Options{Proof: "fair"}, `there is no field "consent.newsleter"`},
		"proof of nothing":  {"email\n", csvimport.Options{Proof: "fair"}, "a proof is of consent"},
		"all at once":       {"mail,leevl\n", csvimport.Options{}, `did you mean "level"?`},
		"spreadsheet":       {"PK\x03\x04", csvimport.Options{}, "spreadsheet"},
		"open quote":        {"email,\"level\nada@example.com,1\n", csvimport.Options{}, "row 1, which names the columns: a quote is left open in cell 2"},
		"unknown topic":     {"email\n", csvimport.Options{Consent: []string{"newsleter"}, Proof: "x"}, `there is no topic "newsleter", did you mean "newsletter"?`},
		"consent, no proof": {"email\n", csvimport.Options{Consent: []string{"newsletter"}}, "needs a proof"},
		"consent twice":     {"email,consent.newsletter\n", csvimport.Options{Consent: []string{"newsletter"}, Proof: "fair"}, `column 2 tells of each who agreed to "newsletter"`},
		"bad tag":           {"email\n", csvimport.Options{Tags: []string{"a,b"}}, `"a,b" is not a tag`},
		"not lines":         {strings.Repeat("x", 1<<20+10), csvimport.Options{}, "longer than 1 MiB"},
	} {
		_, err := csvimport.Import(context.Background(), db, "acme", strings.NewReader(c.file), c.opts)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	if n := pgtest.One[int](t, db, "acme", "SELECT count(*) FROM contact"); n != 0 {
		t.Errorf("%d contacts were made", n)
	}
	if _, err := csvimport.Import(context.Background(), db, "nobody", strings.NewReader("email\n"), csvimport.Options{}); !errors.Is(err, postgres.ErrUnknownTenant) {
		t.Errorf("an unknown tenant: %v", err)
	}
}

func TestRejectedRowsCanBeCorrectedAndImportedAgain(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	pgtest.Exec(t, db, "acme", "INSERT INTO contact (email, external_id) VALUES ('one@example.com', 'one'), ('two@example.com', 'two')")
	file := "email,external_id,first_name,level,birthday,interests,tags\n" +
		"good@example.com,,Good,1,,,\n" +
		"bad.example.com,,Bad,1,,,\n" + // 3
		"Good@Example.com,,Twice,1,,,\n" + // 4
		",,Nobody,1,,,\n" + // 5
		"type@example.com,,Type,many,,,\n" + // 6
		"date@example.com,,Date,1,2026-02-30,,\n" + // 7
		"opt@example.com,,Opt,1,,\"ski,golf\",\n" + // 8
		"few@example.com,,Few\n" + // 9
		"many@example.com,,Many,1,,,,x,y\n" + // 10
		"latin@example.com,,Zo\xeb,1,,,\n" + // 11
		"open@example.com,,\"Open,1,,,\n" + // 12
		"one@example.com,two,Mixed,1,,,\n" + // 13
		"last@example.com,,Läst,1,,\"ski,sail\",\n"
	res, rejects := run(t, db, file, csvimport.Options{Consent: []string{"newsletter"}, Proof: "form"})
	want := []csvimport.Problem{
		{3, "column email: not an email address: there is no @ in it: correct it, or take the row out"},
		{4, "the address is on row 2 already: keep one of the two rows"},
		{5, "neither an email nor an external_id is there: give one of them"},
		{6, `column level: must be a number such as 12 or 12.5: "many" is not`},
		{7, `column birthday: must be a date such as 2026-11-24: "2026-02-30" is not`},
		{8, `column interests: must be of ski, sail: "ski,golf" is not`},
		{9, "the row has 3 cells, the header has 7: a separator is missing, or a cell that has one in it is not in quotes"},
		{10, "the row has 9 cells, the header has 7: a separator is missing, or a cell that has one in it is not in quotes"},
		{11, "column first_name is not in UTF-8: this row was read as Windows-1252 (Latin-1), check the letters with accents; if all of the file is, import it with --encoding windows-1252"},
		{12, `a quote is left open in cell 3 (line 12 of the file): close it with another ", or double it ("") where it is meant as a character`},
		{13, "email and external_id belong to two different contacts: correct the one that is wrong, or leave one of both empty"},
	}
	if d := cmp.Diff(csvimport.Result{Rows: 13, Made: 2, Rejected: 11, Granted: 2, Problems: want}, res); d != "" {
		t.Error(d)
	}
	if !strings.HasPrefix(rejects, "email,external_id,first_name,level,birthday,interests,tags,error\n") || !strings.Contains(rejects, "latin@example.com,,Zoë,1,,,,\"column first_name") ||
		!strings.Contains(rejects, "open@example.com,,\"\"\"Open\",1,,,") || !strings.Contains(rejects, ",x,y\n") {
		t.Errorf("rejects:\n%s", rejects)
	}
	// Corrected in the file of rejects, they all go in; those that were only in another encoding, or had too few cells, need no more than a look.
	corrected := strings.NewReplacer("bad.example.com", "bad@example.com", "Good@Example.com", "good2@example.com", ",,Nobody", ",nobody,Nobody", ",many,", ",7,", "2026-02-30", "2026-02-28",
		"ski,golf", "ski", ",x,y\n", "\n", "\"\"\"Open\"", "Open", "one@example.com,two", "one@example.com,").Replace(rejects)
	res, rejects = run(t, db, corrected, csvimport.Options{Consent: []string{"newsletter"}, Proof: "form"})
	if d := cmp.Diff(csvimport.Result{Rows: 11, Made: 10, Updated: 1, Granted: 11}, res); d != "" || rejects != "" {
		t.Errorf("%s\nrejects:\n%s", d, rejects)
	}
	if n := pgtest.One[int](t, db, "acme", "SELECT count(*) FROM contact WHERE fields ? 'first_name'"); n != 13 {
		t.Errorf("%d of 13 rows are in", n)
	}
}

// A quote that is left open on row 7,345 costs that row, and none of those around it.
func TestAQuoteLeftOpenFarDown(t *testing.T) {
	t.Parallel()
	for name, after := range map[string]string{"nothing quoted after it": "plain", "quoted cells after it": `"ski, sail"`, "empty quotes after it": `""`, "quotes that begin a line": "\"x\"\nq"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := newDB(t)
			var b strings.Builder
			b.WriteString("first_name,email,note\n")
			for row := 2; row <= 8000; row++ {
				switch {
				case row == 7345:
					fmt.Fprintf(&b, "\"Ada,a%d@example.com,x\n", row)
				case after == "\"x\"\nq":
					fmt.Fprintf(&b, "\"A\",a%d@example.com,x\n", row)
				default:
					fmt.Fprintf(&b, "A,a%d@example.com,%s\n", row, after)
				}
			}
			res, rejects := run(t, db, b.String(), csvimport.Options{})
			if res.Rows != 7999 || res.Made != 7998 || res.Rejected != 1 || res.Problems[0].Row != 7345 || !strings.Contains(res.Problems[0].Error, "line 7345") {
				t.Errorf("%+v", res)
			}
			if !strings.Contains(rejects, "a7345@example.com") || strings.Count(rejects, "\n") != 2 {
				t.Errorf("rejects:\n%s", rejects)
			}
		})
	}
}

func TestConsentIsNotGrantedOverAWithdrawal(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	file := "email\nleft@example.com\nangry@example.com\nfine@example.com\n"
	run(t, db, file, csvimport.Options{})
	pgtest.In(t, db, "acme", func(ctx context.Context, tx *postgres.Tx) error {
		left, _, err := contact.Ensure(ctx, tx, "left@example.com")
		if err != nil {
			return err
		}
		if _, err := contact.Record(ctx, tx, "track", contact.Consent{Contact: left, Purpose: "newsletter", State: contact.Withdrawn, Basis: "unsubscribe"}); err != nil {
			return err
		}
		_, err = contact.Suppress(ctx, tx, "campaign", contact.Suppression{Address: "angry@example.com", Reason: contact.Complaint})
		return err
	})
	for _, granted := range []int{1, 0} {
		res, _ := run(t, db, file, csvimport.Options{Consent: []string{"newsletter"}, Proof: "x"})
		if d := cmp.Diff(csvimport.Result{Rows: 3, Unchanged: 3, Granted: granted, Withdrawn: 1, Complained: 1}, res); d != "" {
			t.Error(d)
		}
	}
	if got := pgtest.All[string](t, db, "acme", "SELECT c.email FROM subscription s JOIN contact c ON c.id = s.contact WHERE s.state = 'granted'"); !cmp.Equal(got, []string{"fine@example.com"}) {
		t.Errorf("granted: %v", got)
	}
}

// Who has withdrawn in an export has so here, with or without a proof, unless they said something else here; another file does not grant it to them anew.
func TestWithdrawalsOfAnExportAreImported(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	run(t, db, "email\nhere@example.com\nasked@example.com\nleft@example.com\n", csvimport.Options{})
	run(t, db, "email\nlist@example.com\n", csvimport.Options{Consent: []string{"newsletter"}, Proof: "fair"})
	pgtest.In(t, db, "acme", func(ctx context.Context, tx *postgres.Tx) error {
		for who, state := range map[string]contact.State{"here": contact.Granted, "asked": contact.Pending, "left": contact.Withdrawn} {
			id, _, err := contact.Ensure(ctx, tx, who+"@example.com")
			if err != nil {
				return err
			}
			if _, err := contact.Record(ctx, tx, "render-form", contact.Consent{Contact: id, Purpose: "newsletter", State: state, Basis: "form"}); err != nil {
				return err
			}
		}
		return nil
	})
	file := "email,first_name,consent.newsletter,consent.tracking.email\nnew@example.com,,withdrawn,withdrawn\nhere@example.com,,withdrawn,\nasked@example.com,Ada,withdrawn,granted\n" +
		"left@example.com,,withdrawn,pending\nlist@example.com,,withdrawn,\n"
	left := func(why string) (out []csvimport.LeftOut) {
		for _, c := range []string{"consent.newsletter", "consent.tracking.email"} {
			out = append(out, csvimport.LeftOut{Column: c, Why: why})
		}
		return out
	}("all but who has withdrawn; --proof imports what is granted, too: say how they agreed")
	var before map[string]int
	for i, want := range []csvimport.Result{
		{Rows: 5, Made: 1, Updated: 1, Unchanged: 3, OptedOut: 3, KeptIn: 2, Exported: true, LeftOut: left},
		{Rows: 5, Unchanged: 5, KeptIn: 2, Exported: true, LeftOut: left},
	} {
		res, _ := run(t, db, file, csvimport.Options{})
		if d := cmp.Diff(want, res); d != "" {
			t.Errorf("the %d. time: %s", i+1, d)
		}
		if i > 0 {
			if d := cmp.Diff(before, count(t, db, "acme")); d != "" {
				t.Errorf("to import it again writes something: %s", d)
			}
		}
		before = count(t, db, "acme")
	}
	res, _ := run(t, db, "email\nnew@example.com\n", csvimport.Options{Consent: []string{"newsletter", "tracking.email"}, Proof: "fair"})
	if d := cmp.Diff(csvimport.Result{Rows: 1, Unchanged: 1, Withdrawn: 2}, res); d != "" {
		t.Error(d)
	}
	got := pgtest.All[string](t, db, "acme", "SELECT concat_ws(' ', c.email, s.purpose, s.state) FROM subscription s JOIN contact c ON c.id = s.contact ORDER BY 1")
	want := []string{
		"asked@example.com newsletter pending", "here@example.com newsletter granted", "left@example.com newsletter withdrawn", "list@example.com newsletter withdrawn",
		"new@example.com newsletter withdrawn", "new@example.com tracking.email withdrawn",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestSeparatorsAndMapping(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	res, rejects := run(t, db, "E-Mail;Vorname;x;error\nada@example.com;Ada;1;old\nbad;Bob;2;old\n",
		csvimport.Options{Mapping: map[string]string{"E-Mail": "email", "Vorname": "first_name", "x": ""}})
	if res.Made != 1 || res.Rejected != 1 || rejects != "E-Mail;Vorname;x;error\nbad;Bob;2;column E-Mail: not an email address: there is no @ in it: correct it, or take the row out\n" {
		t.Errorf("%+v %q", res, rejects)
	}
	if res, _ := run(t, db, "E-Mail\tFirstName\neve@example.com\t\"Eve\tX\"\n", csvimport.Options{}); res.Made != 1 {
		t.Errorf("%+v", res)
	}
	if d := cmp.Diff([]string{`ada@example.com {"first_name": "Ada"} {}`, `eve@example.com {"first_name": "Eve\tX"} {}`}, contacts(t, db)); d != "" {
		t.Error(d)
	}
}

// brokenReader fails in the middle of a file.
type brokenReader struct{ io.Reader }

func (b brokenReader) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	if errors.Is(err, io.EOF) {
		err = errors.New("the disk is on fire")
	}
	return n, err
}

func TestWhatIsInStaysIn(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	var b strings.Builder
	b.WriteString("email\n")
	for i := range 12_500 {
		fmt.Fprintf(&b, "p%d@example.com\n", i)
	}
	res, err := csvimport.Import(context.Background(), db, "acme", brokenReader{strings.NewReader(b.String())}, csvimport.Options{})
	if err == nil || !strings.Contains(err.Error(), "on fire") || !strings.Contains(err.Error(), "when 12500 contacts were in: import the file again") || res.Made != 12_500 {
		t.Errorf("%v, %+v", err, res)
	}
	ctx, cancel := context.WithCancel(context.Background())
	_, err = csvimport.Import(ctx, db, "acme", strings.NewReader(strings.ReplaceAll(b.String(), "p", "q")), csvimport.Options{OnProgress: func(int, int64) { cancel() }})
	if err == nil || !strings.Contains(err.Error(), "when 4000 contacts were in") {
		t.Errorf("%v", err)
	}
	again, _ := run(t, db, strings.ReplaceAll(b.String(), "p", "q"), csvimport.Options{})
	if again.Unchanged != 4_000 || again.Made != 8_500 {
		t.Errorf("%+v", again)
	}
}

func BenchmarkImport50000(b *testing.B) {
	db := newDB(b)
	var f strings.Builder
	f.WriteString("email,first_name,level,country,interests\n")
	for i := range 50_000 {
		fmt.Fprintf(&f, "person%d@example.com,Ada %d,%d,NO,\"ski,sail\"\n", i, i, i)
	}
	for b.Loop() {
		res, err := csvimport.Import(context.Background(), db, "acme", strings.NewReader(f.String()), csvimport.Options{Consent: []string{"newsletter", "tracking.email"}, Proof: "x"})
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(res.Rows)/res.Took.Seconds(), "rows/s")
	}
}

// What keeps a rejected row's cell from being computed is no part of it, however often the row is rejected.
func TestRejectedFormulas(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	file := "email,first_name\nbad,'=1+1\nbad,=2+2\n"
	for range 3 {
		_, file = run(t, db, file, csvimport.Options{})
	}
	file = strings.Replace(strings.Replace(file, "bad", "a@example.com", 1), "bad", "b@example.com", 1)
	run(t, db, file, csvimport.Options{})
	if d := cmp.Diff([]string{`a@example.com {"first_name": "=1+1"} {}`, `b@example.com {"first_name": "=2+2"} {}`}, contacts(t, db)); d != "" {
		t.Error(d)
	}
}

// Rejected rows are read as what they are with the options of the file that they are of, too.
func TestRejectsWithTheSameOptions(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	for want, c := range map[string]struct {
		file  string
		given csvimport.Dialect
	}{
		"Zo\u00eb, \"the\" 'one'": {"email,first_name\nbad,'Zo\xeb, \"the\" ''one'''\n", csvimport.Dialect{Encoding: "windows-1252", Quote: "'"}},
		"Zo\u00eb":                {"\xfe\xff\x00e\x00m\x00a\x00i\x00l\x00;\x00f\x00i\x00r\x00s\x00t\x00_\x00n\x00a\x00m\x00e\x00\n\x00b\x00a\x00d\x00;\x00Z\x00o\x00\xeb", csvimport.Dialect{Encoding: "utf-16"}},
		"=1; 2":                   {"email|first_name\nbad|'=1; 2\n", csvimport.Dialect{Separator: "|"}},
	} {
		opts := csvimport.Options{Dialect: c.given}
		for range 2 {
			_, c.file = run(t, db, c.file, opts)
		}
		pgtest.Exec(t, db, "acme", "DELETE FROM contact")
		if res, rejects := run(t, db, strings.Replace(c.file, "bad", "good@example.com", 1), opts); res.Made != 1 {
			t.Errorf("%+v of %s, %s", res, c.file, rejects)
		} else if got := pgtest.One[string](t, db, "acme", "SELECT fields->>'first_name' FROM contact"); got != want {
			t.Errorf("%q is imported as %q", want, got)
		}
	}
}

// endless gives a text, and then the same letter for a gigabyte.
type endless struct {
	io.Reader
	left, read int
}

func (e *endless) Read(p []byte) (int, error) {
	n, err := e.Reader.Read(p)
	if !errors.Is(err, io.EOF) {
		return n, err
	}
	n = min(len(p), e.left)
	for i := range n {
		p[i] = 'x'
	}
	if e.left, e.read = e.left-n, e.read+n; n == 0 {
		return 0, io.EOF
	}
	return n, nil
}

// A gigabyte on one line is refused when the first MiB or two of it were read, and no more of it is ever in memory.
func TestAGigabyteOnOneLine(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	for begin, want := range map[string]string{
		"":                                    "line 1 is longer than 1 MiB",
		"email,note\na@example.com,b\n":       "line 3 is longer than 1 MiB",
		"email,note\na@example.com,\"":        "line 2 is longer than 1 MiB",
		"email,note\na@example.com,\"first\n": "line 3 is longer than 1 MiB",
	} {
		file := &endless{Reader: strings.NewReader(begin), left: 1 << 30}
		res, err := csvimport.Import(t.Context(), db, "acme", file, csvimport.Options{})
		if err == nil || !strings.Contains(err.Error(), want) || file.read > 4<<20 {
			t.Errorf("%q: %+v, %v when %d bytes of it were read, want %s", begin, res, err, file.read, want)
		}
	}
}
