package csvimport_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/text/encoding"
	"golang.org/x/text/encoding/charmap"
	"golang.org/x/text/encoding/unicode"

	"github.com/onda-run/onda/internal/contact"
	"github.com/onda-run/onda/internal/csvimport"
	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/postgres"
)

// The same rows, written in many ways, are read as the same, and it is told how.
//
//nolint:tparallel // its cases have one database
func TestDialects(t *testing.T) {
	t.Parallel()
	db := newDB(t) // to make one takes longer than any of the cases
	plain := "email,first_name,level,birthday\nada@example.com,Zoë,12.5,2026-12-31\nbob@example.com,\"Bob, or Rob\",7,2026-01-02\n"
	semicolons := "email;first_name;level;birthday\nada@example.com;Zoë;12,5;31.12.2026\nbob@example.com;Bob, or Rob;7;02.01.2026\n"
	want := []string{`ada@example.com {"level": 12.5, "birthday": "2026-12-31", "first_name": "Zoë"} {}`, `bob@example.com {"level": 7, "birthday": "2026-01-02", "first_name": "Bob, or Rob"} {}`}
	in := func(e encoding.Encoding, s string) string {
		out, err := e.NewEncoder().String(s)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	for name, c := range map[string]struct {
		file  string
		given csvimport.Dialect
		told  string
	}{
		"plain":                 {plain, csvimport.Dialect{}, "UTF-8, separated by commas, dates as 2026-12-31"},
		"a mark":                {"\ufeff" + plain, csvimport.Dialect{}, "UTF-8, separated by commas, dates as 2026-12-31"},
		"lines end with CRLF":   {strings.ReplaceAll(plain, "\n", "\r\n"), csvimport.Dialect{}, "UTF-8, separated by commas, dates as 2026-12-31"},
		"lines end with CR":     {strings.ReplaceAll(plain, "\n", "\r"), csvimport.Dialect{}, "UTF-8, separated by commas, dates as 2026-12-31"},
		"tabs":                  {strings.ReplaceAll(strings.ReplaceAll(plain, "Bob, ", "Bob; "), ",", "\t"), csvimport.Dialect{}, ""},
		"bars":                  {strings.ReplaceAll(semicolons, ";", "|"), csvimport.Dialect{}, "UTF-8, separated by bars, decimals after a comma, dates as 31.12.2026"},
		"semicolons":            {semicolons, csvimport.Dialect{}, "UTF-8, separated by semicolons, decimals after a comma, dates as 31.12.2026"},
		"sep=":                  {"sep=;\r\n" + semicolons, csvimport.Dialect{}, "UTF-8, separated by semicolons, decimals after a comma, dates as 31.12.2026"},
		"sep= of another":       {"sep=^\n" + strings.ReplaceAll(semicolons, ";", "^"), csvimport.Dialect{}, `UTF-8, separated by "^", decimals after a comma, dates as 31.12.2026`},
		"a separator is given":  {strings.ReplaceAll(semicolons, ";", "^"), csvimport.Dialect{Separator: "^"}, `UTF-8, separated by "^", decimals after a comma, dates as 31.12.2026`},
		"single quotes":         {"'email','first_name','level','birthday'\n'ada@example.com','Zoë','12.5','2026-12-31'\n'bob@example.com','Bob, or Rob','7','2026-01-02'\n", csvimport.Dialect{}, "UTF-8, separated by commas, quoted by ', dates as 2026-12-31"},
		"Windows-1252":          {in(charmap.Windows1252, semicolons), csvimport.Dialect{}, "Windows-1252, separated by semicolons, decimals after a comma, dates as 31.12.2026"},
		"Latin-1 is given":      {in(charmap.ISO8859_1, semicolons), csvimport.Dialect{Encoding: "latin-1"}, "Windows-1252, separated by semicolons, decimals after a comma, dates as 31.12.2026"},
		"Windows-1250 is given": {in(charmap.Windows1250, semicolons), csvimport.Dialect{Encoding: "cp1250"}, "Windows 1250, separated by semicolons, decimals after a comma, dates as 31.12.2026"},
		"UTF-16, little end":    {in(unicode.UTF16(unicode.LittleEndian, unicode.UseBOM), plain), csvimport.Dialect{}, "UTF-16LE, separated by commas, dates as 2026-12-31"},
		"UTF-16, big end":       {in(unicode.UTF16(unicode.BigEndian, unicode.UseBOM), plain), csvimport.Dialect{}, "UTF-16BE, separated by commas, dates as 2026-12-31"},
		"UTF-16LE without mark": {in(unicode.UTF16(unicode.LittleEndian, unicode.IgnoreBOM), plain), csvimport.Dialect{}, "UTF-16LE, separated by commas, dates as 2026-12-31"},
		"UTF-16BE without mark": {in(unicode.UTF16(unicode.BigEndian, unicode.IgnoreBOM), plain), csvimport.Dialect{}, "UTF-16BE, separated by commas, dates as 2026-12-31"},
		"UTF-16 given":          {in(unicode.UTF16(unicode.BigEndian, unicode.UseBOM), plain), csvimport.Dialect{Encoding: "utf16"}, "UTF-16BE, separated by commas, dates as 2026-12-31"},
		"all is given":          {semicolons, csvimport.Dialect{Encoding: "utf-8", Separator: ";", Quote: `"`, Decimal: ",", Dates: "31.12.2026"}, "UTF-8, separated by semicolons, decimals after a comma, dates as 31.12.2026"},
		"days first, with bars": {strings.NewReplacer("31.12.2026", "31/12/2026", "02.01.2026", "02/01/2026").Replace(semicolons), csvimport.Dialect{}, "UTF-8, separated by semicolons, decimals after a comma, dates as 31/12/2026"},
		"months first":          {strings.NewReplacer("31.12.2026", "12/31/2026", "02.01.2026", "1/2/2026").Replace(semicolons), csvimport.Dialect{}, "UTF-8, separated by semicolons, decimals after a comma, dates as 12/31/2026"},
		"thousands":             {strings.NewReplacer("12,5", "\"12,500.00\"", ";7;", ";7.0;").Replace(semicolons), csvimport.Dialect{}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			pgtest.Exec(t, db, "acme", "DELETE FROM contact")
			var told csvimport.Dialect
			res, err := csvimport.Import(t.Context(), db, "acme", strings.NewReader(c.file), csvimport.Options{Dialect: c.given, OnDialect: func(d csvimport.Dialect) { told = d }})
			if err != nil || res.Made != 2 || told != res.ReadAs {
				t.Fatalf("%+v, %v; told %+v", res, err, told)
			}
			want, got := want, contacts(t, db)
			switch name {
			case "tabs":
				want = []string{want[0], strings.Replace(want[1], "Bob, ", "Bob; ", 1)}
			case "thousands":
				want = []string{strings.Replace(want[0], "12.5", "12500", 1), want[1]}
			}
			if d := cmp.Diff(want, got); d != "" {
				t.Error(d)
			}
			if c.told != "" && told.String() != c.told {
				t.Errorf("told as %s, want %s", told, c.told)
			}
		})
	}
}

// What can be read in two ways is refused with both, before anything is imported; to say which one it is, is enough. It counts what stands in the whole file, also beyond its first MiB.
//
//nolint:tparallel // its cases have one database
func TestTwoReadings(t *testing.T) {
	t.Parallel()
	db := newDB(t) // to make one takes longer than any of the cases
	long := func(first, then, last string) string {
		return "email,birthday\na@example.com," + first + "\n" + strings.Repeat("bad,"+then+"\n", 80_000) + "z@example.com," + last + "\n"
	}
	for name, c := range map[string]struct {
		file  string
		want  []string
		given csvimport.Dialect
		made  int
		say   string // what is then stored
	}{
		"either": {"email,birthday\na@example.com,03/04/2026\nb@example.com,5/5/2026\n", []string{
			`column birthday has dates that can be read in two ways: "03/04/2026" in row 2 is 3 April 2026 (day/month/year) or 4 March 2026 (month/day/year)`,
			"--dates 31/12/2026 or --dates 12/31/2026",
		}, csvimport.Dialect{Dates: "31/12/2026"}, 2, "2026-04-03"},
		"either, with a hyphen": {"email,birthday\na@example.com,03-04-2026\n", []string{"--dates 31-12-2026 or --dates 12-31-2026"}, csvimport.Dialect{Dates: "mdy"}, 1, "2026-03-04"},
		"both": {"email,birthday\na@example.com,31/12/2026\nb@example.com,12/30/2026\n", []string{
			"column birthday has dates in more than one format", `"31/12/2026" in row 2 is 31 December 2026 (day/month/year)`,
			`"12/30/2026" in row 3 is 30 December 2026 (month/day/year)`,
		}, csvimport.Dialect{Dates: "31/12/2026"}, 1, "2026-12-31"},
		"ISO, and another": {
			"email,birthday\na@example.com,2026-12-31\nb@example.com,30.12.2026\n",
			[]string{`"2026-12-31" in row 2 is 31 December 2026 (year-month-day), and "30.12.2026" in row 3 is 30 December 2026 (day.month.year)`},
			csvimport.Dialect{Dates: "31.12.2026"},
			2, "2026-12-31",
		},
		"told beyond the first MiB": {long("03/04/2026", "4/5/2026", "31/12/2026"), nil, csvimport.Dialect{}, 2, "2026-04-03"},
		"mixed far down":            {long("31/12/2026", "30/12/2026", "12/31/2026"), []string{`"12/31/2026" in row 80003`}, csvimport.Dialect{Dates: "dmy"}, 1, "2026-12-31"},
		"dates far down alone":      {"email,birthday,note\n" + strings.Repeat("bad,,"+strings.Repeat("x", 1000)+"\n", 1100) + "a@example.com,31/12/2026,\n", nil, csvimport.Dialect{}, 1, "2026-12-31"},
		"a number":                  {"email;level\na@example.com;1,234\n", []string{`column level has numbers that can be read in two ways: "1,234" in row 2 is 1234 or 1.234`, "--decimal"}, csvimport.Dialect{Decimal: ","}, 1, "1.234"},
		"numbers of both":           {"email;level\na@example.com;1,5\nb@example.com;1.5\n", []string{"a point before their decimals in some rows and a comma in others"}, csvimport.Dialect{Decimal: "."}, 1, "1.5"},
	} {
		t.Run(name, func(t *testing.T) {
			pgtest.Exec(t, db, "acme", "DELETE FROM contact")
			res, err := csvimport.Import(t.Context(), db, "acme", strings.NewReader(c.file), csvimport.Options{})
			for _, want := range c.want {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("%v, want %q", err, want)
				}
			}
			if len(c.want) > 0 {
				if n := pgtest.One[int](t, db, "acme", "SELECT count(*) FROM contact"); n != 0 {
					t.Errorf("%d contacts were made of what was refused", n)
				}
				res, err = csvimport.Import(t.Context(), db, "acme", strings.NewReader(c.file), csvimport.Options{Dialect: c.given})
			}
			if err != nil || res.Made != c.made {
				t.Fatalf("%+v, %v", res, err)
			}
			if got := pgtest.One[string](t, db, "acme", "SELECT coalesce(fields->>'birthday', fields->>'level') FROM contact ORDER BY email LIMIT 1"); got != c.say {
				t.Errorf("stored is %s, want %s", got, c.say)
			}
		})
	}
}

// Files that nobody should have made: each is told why, and what can be imported of it is.
//
//nolint:tparallel // its cases have one database
func TestHostileFiles(t *testing.T) {
	t.Parallel()
	db := newDB(t) // to make one takes longer than any of the cases
	wide := "email"
	for i := range 299 {
		wide += fmt.Sprintf(",column_%d", i)
	}
	for name, c := range map[string]struct {
		file string
		opts csvimport.Options
		err  string
		made int
		rows []string // why
	}{
		"NUL bytes in a cell":     {"email,first_name\na@example.com,A\x00B\nb@example.com,B\nc\x00@example.com,C\n", csvimport.Options{}, "", 1, []string{"text without control characters", "invisible character"}},
		"NUL bytes in the header": {"em\x00ail\na@example.com\n", csvimport.Options{}, "column 1 has bytes in its name that are no text", 0, nil},
		"nothing but NUL bytes":   {strings.Repeat("\x00", 5000), csvimport.Options{}, "column 1 has bytes in its name that are no text", 0, nil},
		"300 columns":             {wide + "\na@example.com" + strings.Repeat(",x", 299) + "\n", csvimport.Options{}, "and 289 more columns that are no fields", 0, nil},
		"300 columns, ignored":    {wide + "\na@example.com" + strings.Repeat(",x", 299) + "\n", csvimport.Options{IgnoreUnknown: true}, "", 1, nil},
		"two for one field":       {"email,Vorname,First Name\na@example.com,A,B\n", csvimport.Options{Mapping: map[string]string{"Vorname": "first_name"}}, `column 3: "First Name" is column 2 already`, 0, nil},
		"no such column":          {"email\na@example.com\n", csvimport.Options{Mapping: map[string]string{"Vorname": "first_name"}}, "--map Vorname: the file has no such column", 0, nil},
		"an endless line":         {"email,first_name\n" + strings.Repeat("x", 3<<20), csvimport.Options{}, "line 2 is longer than 1 MiB", 0, nil},
		"an endless cell":         {"email,first_name\na@example.com,\"" + strings.Repeat("x\n", 1<<20), csvimport.Options{}, "", 0, nil},
		"half a letter in UTF-16": {"\xff\xfee\x00m\x00a\x00i\x00l\x00,\x00n\x00o\x00t\x00e\x00\n\x00a\x00@\x00b\x00.\x00n\x00o\x00,\x00\x00\xd8x\x00\n\x00b\x00@\x00b\x00.\x00n\x00o\x00,\x00y\x00\n\x00", csvimport.Options{}, "", 1, []string{"column note has bytes that are no letters in UTF-16LE"}},
		"UTF-32":                  {"\xff\xfe\x00\x00e\x00\x00\x00", csvimport.Options{}, "UTF-32", 0, nil},
		"an old spreadsheet":      {"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", csvimport.Options{}, "spreadsheet", 0, nil},
		"no such encoding":        {"email\n", csvimport.Options{Dialect: csvimport.Dialect{Encoding: "klingon"}}, `no encoding "klingon"`, 0, nil},
		"no such separator":       {"email\n", csvimport.Options{Dialect: csvimport.Dialect{Separator: ";;", Quote: "“"}}, `";;" is no separator`, 0, nil},
		"no such dates":           {"email\n", csvimport.Options{Dialect: csvimport.Dialect{Dates: "12/12/2026", Decimal: "x"}}, `"12/12/2026" does not say how dates are written`, 0, nil},
		"no such policy":          {"email\n", csvimport.Options{Policy: "merge"}, `there is no policy "merge"`, 0, nil},
		"one for both":            {"email\n", csvimport.Options{Dialect: csvimport.Dialect{Quote: ","}}, "separated and quoted by the same character", 0, nil},
		"a comma far down": {
			"email;level;note\n" + strings.Repeat("bad;1;"+strings.Repeat("x", 1000)+"\n", 1100) + "a@example.com;1,500;\nb@example.com;1.500,5;\nc@example.com;2;\n",
			csvimport.Options{},
			"", 1, nil,
		},
		"no options, but commas": {"email,interests\na@example.com,\",,\"\n", csvimport.Options{}, "", 1, nil},
		"formulas":               {"email,first_name\na@example.com,'=1+1\nb@example.com,'+47\nbad,=HYPERLINK(1)\n", csvimport.Options{}, "", 2, []string{"no @ in it"}},
		"addresses": {
			"email\n" + strings.Join([]string{"zoë@example.com", " space@example.com ", "dot.@example.com", "\"\"\"quoted\"\"@example.com\"", "a b@example.com", "trailing@example.com.", "x@bücher.example", "two@@example.com"}, "\n") + "\n",
			csvimport.Options{},
			"", 3,
			[]string{"a dot before the @", "may not be before the @", "space before the @", "not a domain", "may not be before the @"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			pgtest.Exec(t, db, "acme", "DELETE FROM contact")
			var rejects strings.Builder
			c.opts.Rejects = &rejects
			res, err := csvimport.Import(t.Context(), db, "acme", strings.NewReader(c.file), c.opts)
			if (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
				t.Fatalf("%v, want %q", err, c.err)
			}
			if res.Made != c.made {
				t.Errorf("%d were made, want %d: %+v", res.Made, c.made, res)
			}
			for i, why := range c.rows {
				if i >= len(res.Problems) || !strings.Contains(res.Problems[i].Error, why) {
					t.Errorf("problems %+v, want %q", res.Problems, c.rows)
					break
				}
			}
			for _, line := range strings.Split(rejects.String(), "\n") {
				if strings.HasPrefix(line, "=") || strings.Contains(line, ",=") {
					t.Errorf("a spreadsheet would compute %q", line)
				}
			}
			if name == "no options, but commas" {
				if d := cmp.Diff([]string{"a@example.com {} {}"}, contacts(t, db)); d != "" {
					t.Error(d)
				}
			}
			if name == "formulas" {
				if d := cmp.Diff([]string{`a@example.com {"first_name": "=1+1"} {}`, `b@example.com {"first_name": "+47"} {}`}, contacts(t, db)); d != "" {
					t.Error(d)
				}
			}
		})
	}
}

func TestPolicies(t *testing.T) {
	t.Parallel()
	file := "email,first_name\nthere@example.com,New\nnobody@example.com,New\nsame@example.com,Old\n"
	for policy, want := range map[csvimport.Policy]csvimport.Result{
		csvimport.Upsert: {Rows: 3, Made: 1, Updated: 1, Unchanged: 1, Granted: 3},
		csvimport.Create: {Rows: 3, Made: 1, Rejected: 2, Granted: 1, Problems: []csvimport.Problem{{2, "the contact is there already, and --policy create changes none"}, {4, "the contact is there already, and --policy create changes none"}}},
		csvimport.Update: {Rows: 3, Updated: 1, Unchanged: 1, Rejected: 1, Granted: 2, Problems: []csvimport.Problem{{3, "there is no such contact, and --policy update makes none"}}},
		csvimport.Skip:   {Rows: 3, Made: 1, Skipped: 2, Granted: 1},
	} {
		t.Run(string(policy), func(t *testing.T) {
			t.Parallel()
			db := newDB(t)
			pgtest.Exec(t, db, "acme", `INSERT INTO contact (email, fields) VALUES ('there@example.com', '{"first_name": "Old"}'), ('same@example.com', '{"first_name": "Old"}')`)
			before := count(t, db, "acme")
			dry, _ := run(t, db, file, csvimport.Options{Policy: policy, DryRun: true})
			if dry.Made != want.Made || dry.Updated != want.Updated || dry.Unchanged != want.Unchanged || dry.Skipped != want.Skipped || dry.Rejected != want.Rejected {
				t.Errorf("the dry run said %+v", dry)
			}
			if n := len(dry.Samples); n != 3-want.Rejected || n > 0 && dry.Samples[0].Contact == "" {
				t.Errorf("samples: %+v", dry.Samples)
			}
			if d := cmp.Diff(before, count(t, db, "acme")); d != "" {
				t.Errorf("the dry run stored something: %s", d)
			}
			res, _ := run(t, db, file, csvimport.Options{Policy: policy, Consent: []string{"newsletter"}, Basis: "opt-in", Proof: "fair"})
			if d := cmp.Diff(want, res); d != "" {
				t.Error(d)
			}
			if n := pgtest.One[int](t, db, "acme", "SELECT count(*) FROM consent WHERE proof->>'basis' = 'opt-in' AND basis = 'import'"); n != want.Granted {
				t.Errorf("%d entries of the ledger have the basis", n)
			}
		})
	}
}

// Two imports of the same people at once, in other orders and with consent, beside forms that are sent in: none of them fails, nobody is lost and nobody there twice.
func TestImportsAtOnce(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	const people = 6_000
	var wg sync.WaitGroup
	for k := range 3 {
		order := rand.Perm(people)
		var file strings.Builder
		file.WriteString("email,first_name\n")
		for _, i := range order {
			fmt.Fprintf(&file, "p%d@example.com,A%d\n", i, i)
		}
		opts := csvimport.Options{Tags: []string{fmt.Sprintf("import%d", k)}}
		if k == 0 {
			opts.Consent, opts.Proof = []string{"newsletter"}, "fair"
		}
		wg.Go(func() {
			res, err := csvimport.Import(t.Context(), db, "acme", strings.NewReader(file.String()), opts)
			if err != nil || res.Made+res.Updated+res.Unchanged != people {
				t.Errorf("import %d: %+v, %v", k, res, err)
			}
		})
	}
	wg.Go(func() {
		for range 200 {
			err := db.InTenant(t.Context(), "acme", func(ctx context.Context, tx *postgres.Tx) error {
				r, err := contact.Upsert(ctx, tx, "render-form", []contact.Row{{Email: fmt.Sprintf("p%d@example.com", rand.N(people)), AddTags: []string{"form"}}}, "")
				if err != nil {
					return err
				}
				_, err = contact.Record(ctx, tx, "render-form", contact.Consent{Contact: r[0].Contact, Purpose: "newsletter", State: contact.Pending, Basis: "form"})
				return err
			})
			if err != nil && !strings.Contains(err.Error(), "40P01") { // it is sent in again: render-form does
				t.Errorf("a form: %v", err)
			}
		}
	})
	wg.Wait()
	if got := pgtest.One[string](t, db, "acme", `SELECT concat_ws(' ', count(*), count(DISTINCT email), count(*) FILTER (WHERE tags @> '{import0,import1,import2}' AND fields ? 'first_name')) FROM contact`); got != "6000 6000 6000" {
		t.Errorf("contacts, addresses and all tags: %s", got)
	}
	if n := pgtest.One[int](t, db, "acme", "SELECT count(*) FROM subscription WHERE state = 'granted'"); n != people {
		t.Errorf("%d granted", n)
	}
	twice := pgtest.One[int](t, db, "acme", `SELECT count(*) FROM (SELECT c FROM fact f, unnest(f.contacts) c WHERE f.kind = 'tag.changed' AND f.name LIKE 'import%' GROUP BY f.name, c HAVING count(*) > 1) t`)
	if twice > 0 {
		t.Errorf("%d facts are there twice", twice)
	}
}
