package fieldvalue_test

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/onda-run/onda/internal/fieldvalue"
	"github.com/onda-run/onda/internal/spec"
)

func field(t spec.FieldType) *spec.Field {
	return &spec.Field{Type: t, Options: []string{"ski", "sail"}}
}

func TestParse(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		typ    spec.FieldType
		in     string
		want   any
		reason string
	}{
		{spec.TypeText, "  Ada ", "Ada", ""},
		{spec.TypeText, "a\nb", "a\nb", ""},
		{spec.TypeText, "", nil, ""},
		{spec.TypeText, "a\x00b", nil, "text"},
		{spec.TypeText, "\xff", nil, "text"},
		{spec.TypeText, strings.Repeat("x", fieldvalue.MaxText+1), nil, "long"},
		{spec.TypeNumber, "12.5", 12.5, ""},
		{spec.TypeNumber, "1 000", 1000.0, ""},
		{spec.TypeNumber, "NaN", nil, "number"},
		{spec.TypeNumber, "1e999", nil, "number"},
		{spec.TypeBoolean, "on", true, ""},
		{spec.TypeBoolean, "False", false, ""},
		{spec.TypeBoolean, "perhaps", nil, "boolean"},
		{spec.TypeDate, "2026-02-28", "2026-02-28", ""},
		{spec.TypeDate, "2026-02-30", nil, "date"},
		{spec.TypeDatetime, "2026-11-24T15:04:05+02:00", "2026-11-24T13:04:05Z", ""},
		{spec.TypeDatetime, "2026-11-24T15:04", "2026-11-24T15:04:00Z", ""},
		{spec.TypeDatetime, "soon", nil, "date"},
		{spec.TypeSelect, "ski", "ski", ""},
		{spec.TypeSelect, "run", nil, "option"},
		{spec.TypeSelect, "ski\r\nBcc: x", nil, "text"},
		{spec.TypeMultiselect, "ski, sail,ski", []string{"sail", "ski"}, ""},
		{spec.TypeMultiselect, "ski,run", nil, "option"},
		{spec.TypeURL, "https://example.com/x?y=1", "https://example.com/x?y=1", ""},
		{spec.TypeURL, "javascript:alert(1)", nil, "url"},
		{spec.TypeURL, "https://u:p@example.com", nil, "url"},
		{spec.TypePhone, "+47 21-00.00 00", "+4721000000", ""},
		{spec.TypePhone, "0047 21 00 00 00", "+4721000000", ""},
		{spec.TypePhone, "0612345678", nil, "phone"},
		{spec.TypeCountry, "no", "NO", ""},
		{spec.TypeCountry, "NOR", nil, "country"},
		{spec.TypeCountry, "XX", nil, "country"},
		{spec.TypeLanguage, "pt-br", "pt-BR", ""},
		{spec.TypeLanguage, "english!", nil, "language"},
		{spec.TypeTimezone, "Europe/Oslo", "Europe/Oslo", ""},
		{spec.TypeTimezone, "Local", nil, "timezone"},
		{spec.TypeTimezone, "../../etc/passwd", nil, "timezone"},
	} {
		got, err := fieldvalue.Parse(field(c.typ), c.in)
		var p *fieldvalue.Problem
		if errors.As(err, &p); (c.reason == "") != (err == nil) || p != nil && p.Reason != c.reason {
			t.Errorf("%s %.20q: %v, want problem %q", c.typ, c.in, err, c.reason)
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s %.20q:\n%s", c.typ, c.in, diff)
		}
	}
}

func TestFromJSON(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		typ  spec.FieldType
		in   any
		want any
		ok   bool
	}{
		{spec.TypeNumber, 3.0, 3.0, true},
		{spec.TypeNumber, "3", 3.0, true},
		{spec.TypeNumber, true, nil, false},
		{spec.TypeText, 3.0, "3", true},
		{spec.TypeBoolean, true, true, true},
		{spec.TypeBoolean, 1.0, nil, false},
		{spec.TypeText, nil, nil, true},
		{spec.TypeMultiselect, []any{"ski"}, []string{"ski"}, true},
		{spec.TypeMultiselect, []any{1.0}, nil, false},
		{spec.TypeText, map[string]any{"a": 1}, nil, false},
	} {
		got, err := fieldvalue.FromJSON(field(c.typ), c.in)
		if (err == nil) != c.ok || !cmp.Equal(got, c.want) {
			t.Errorf("%s %v: %v %v, want %v", c.typ, c.in, got, err, c.want)
		}
	}
}

// What is stored reads as itself again, whatever was sent.
func FuzzParse(f *testing.F) {
	for _, s := range []string{"1", "2026-01-01", "ski,sail", "+4721000000", "no", "https://a.example"} {
		f.Add(uint8(1), s)
	}
	types := spec.FieldTypes()
	f.Fuzz(func(t *testing.T, n uint8, s string) {
		fd := field(types[int(n)%len(types)])
		v, err := fieldvalue.Parse(fd, s)
		if err != nil || v == nil {
			return
		}
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatalf("%v cannot be stored: %v", v, err)
		}
		var back any
		if err := json.Unmarshal(b, &back); err != nil {
			t.Fatal(err)
		}
		if again, err := fieldvalue.FromJSON(fd, back); err != nil || !cmp.Equal(v, again) {
			t.Errorf("%q was read as %v, which reads as %v, %v", s, v, again, err)
		}
	})
}
