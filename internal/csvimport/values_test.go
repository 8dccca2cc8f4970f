package csvimport

import (
	"bytes"
	"encoding/json"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/onda-run/onda/internal/fieldvalue"
	"github.com/onda-run/onda/internal/spec"
)

// A value that is read fast is what fieldvalue reads, for every type; and what is refused there is refused here, but for numbers whose thousands are apart.
func FuzzValues(f *testing.F) {
	for _, s := range []string{"12", "007", "0", "1e3", "2026-12-31", "2026-02-30", "2026/12/31", "Zoë \"x\"", "a\\b", "ski,sail", "no", "true", "+4721000000", "2026-11-24T15:04:05+02:00", "<b>"} {
		for i := range spec.FieldTypes() {
			f.Add(uint8(i), s)
		}
	}
	f.Fuzz(func(t *testing.T, n uint8, s string) {
		types := spec.FieldTypes()
		field := &spec.Field{Type: types[int(n)%len(types)], Options: []string{"ski", "sail"}}
		cell := bytes.TrimSpace([]byte(s))
		if len(cell) == 0 {
			return
		}
		c := &column{field: field, decimal: '.'}
		for range 2 { // the second time it may be remembered
			text, err := c.appendValue(nil, cell)
			want, wantErr := fieldvalue.Parse(field, s)
			if _, ok := plainNumber(cell, '.'); field.Type == spec.TypeNumber && ok && wantErr != nil {
				return
			}
			if _, ok := readDate(cell); (field.Type == spec.TypeDate || field.Type == spec.TypeDatetime) && ok && wantErr != nil {
				return // in another way of writing it
			}
			if (err == nil) != (wantErr == nil) {
				t.Fatalf("%s %q: %v, want %v", field.Type, s, err, wantErr)
			}
			if err != nil {
				return
			}
			plain, err := json.Marshal(want)
			if err != nil {
				t.Fatal(err)
			}
			var x, y any
			if err := json.Unmarshal(text, &x); err != nil {
				t.Fatalf("%s %q is no JSON: %s", field.Type, s, text)
			}
			_ = json.Unmarshal(plain, &y)
			if !cmp.Equal(x, y) {
				t.Fatalf("%s %q is %s, want %s", field.Type, s, text, plain)
			}
		}
	})
}

// Of a date that is read there is such a day, and it is written in the order it is read in.
func FuzzDates(f *testing.F) {
	for _, s := range []string{"31.12.2026", "12/31/2026", "2026-12-31", "1-2-2026", "2026.1.2", "29.02.2025", "1.1.26", "1.2.2026 15:04"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		d, ok := readDate([]byte(s))
		if !ok {
			return
		}
		for _, o := range []order{yearFirst, dayFirst, monthFirst} {
			day := d.in(o)
			if day == "" {
				continue
			}
			if !isDay([]byte(day)) {
				t.Errorf("%q in %s is %s", s, o.words(d.between), day)
			}
			if got := orderOf(o.example(d.between)); got != o && (o != monthFirst || d.between != '.') {
				t.Errorf("%s is taken for %d, want %d", o.example(d.between), got, o)
			}
		}
	})
}

// A repeated row is found, however far up, until it is too far up; and none is that was not there.
func TestSeen(t *testing.T) {
	t.Parallel()
	s, err := newSeen()
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	id := func(i int) string { return fmt.Sprintf("p%d@example.com", i) }
	const rows = seenMost + seenMost/2
	for i := range rows {
		h := s.hash('a', id(i))
		if row, ok := s.find(h); ok {
			t.Fatalf("row %d was taken for %d", i, row)
		}
		s.add(h, i+2)
	}
	for i := range rows {
		if row, ok := s.find(s.hash('a', id(i))); !ok || row != i+2 {
			t.Fatalf("row %d is found as %d, %v", i, row, ok)
		}
	}
	if _, ok := s.find(s.hash('i', id(1))); ok {
		t.Error("an external id is taken for an address")
	}
	for i := range seenMost {
		s.add(s.hash('b', id(i)), 1<<rowBits+i)
	}
	if _, ok := s.find(s.hash('a', id(1))); ok {
		t.Error("a row is known that is too far up")
	}
	if row, ok := s.find(s.hash('b', id(1))); !ok || row != 0 {
		t.Errorf("a row beyond what is counted is %d, %v", row, ok)
	}
}
