package csvimport

import (
	"encoding/csv"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func readAll(tb testing.TB, file string, given Dialect) (rows [][]string, problems int) {
	tb.Helper()
	d, err := given.check()
	if err != nil {
		tb.Fatal(err)
	}
	r, err := open(strings.NewReader(file), d)
	if err != nil {
		return nil, 0
	}
	for {
		rec, err := r.next()
		if errors.Is(err, io.EOF) {
			return rows, problems
		}
		if err != nil {
			tb.Fatalf("%q: %v", file, err)
		}
		if rec.problem != "" {
			problems++
		}
		cells := make([]string, len(rec.cells))
		for i, c := range rec.cells {
			cells[i] = string(c)
		}
		rows = append(rows, cells)
	}
}

// What encoding/csv reads without an error, this reads the same; and of no file is a letter lost.
func FuzzReader(f *testing.F) {
	for _, s := range []string{
		"a,b\n1,2\n", "a,b\r\n\"1\n2\",\"\"\"\"\r\n\r\n3,4", "a\n\"open\nb\n", "a,b\n\"x\"y,1\n2,3\n", "a;b\n1;2\n", "a,b\n\"1,2\n\"3,4\n\"5\",6\n", ",\n\"\",\"\n\n\"\n",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, file string) {
		rows, problems := readAll(t, file, Dialect{Encoding: "utf-8", Quote: `"`})
		std := csv.NewReader(strings.NewReader(strings.TrimPrefix(file, "\ufeff")))
		header, _, _ := strings.Cut(strings.TrimLeft(file, "\r\n"), "\n")
		std.Comma = rune(separator([]byte(header), '"'))
		want, err := std.ReadAll()
		if err == nil && len(want) > 0 && !strings.ContainsAny(file, "\r;\t|") && !strings.HasPrefix(strings.ToLower(strings.Trim(file, "\"\n")), "sep=") && !strings.HasPrefix(file, "PK") && !strings.HasPrefix(file, "\xff") && !strings.HasPrefix(file, "\xfe") &&
			strings.Count(file, "\n") < maxLines {
			if d := cmp.Diff(want, rows); d != "" || problems > 0 {
				t.Errorf("%q: %s", file, d)
			}
		}
		letters := func(s string) int { return strings.Count(s, "x") + strings.Count(s, "1") + strings.Count(s, "@") }
		n := 0
		for _, r := range rows {
			n += letters(strings.Join(r, ""))
		}
		if rows != nil && n != letters(file) {
			t.Errorf("%q: of %d letters %d are left: %q", file, letters(file), n, rows)
		}
	})
}
