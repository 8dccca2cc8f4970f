package track

import (
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/token"
)

// FuzzScan holds what is taken for JSON, and what an object then says, against encoding/json.
func FuzzScan(f *testing.F) {
	for _, s := range []string{
		`{}`, ` { "a" : [ 1 , -0.5e+7 , true , null , "x\n\u00e9\"" , { } , [ ] ] } `, `{"a":1,}`, `{"a" 1}`, `{,}`, `[1]`, `01`, `-`, `1.`, `1e`, `"\x"`, `"\u12"`, "\"\n\"", `tru`, `{"a":1}}`, ``, ` `,
		`{"a":"\ud83d"}`, `{"a":"\ud83d\ude00"}`, `{"a":1e999}`, `{"a":1e-999}`, `{"a":123456789012345678901234567890123456789012345678901234567890}`, `{"\u0061":1}`, `null`, `{"a":{"a":{"a":1}},"a":2}`,
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		s := &scan{b: []byte(text)}
		s.value()
		if err := s.end(); (err == nil) != json.Valid([]byte(text)) && !errors.Is(err, errDeep) {
			t.Fatalf("%q: %v, and json.Valid says otherwise", text, err)
		} else if err != nil {
			return
		}
		s = &scan{b: []byte(text)}
		got, err := s.object()
		var want map[string]any
		if wrong := json.Unmarshal([]byte(text), &want); wrong != nil && !s.odd && err == nil {
			return // a number of many digits, which Postgres keeps as it is
		} else if (err == nil) != (wrong == nil) {
			t.Fatalf("%q: %v, want %v", text, err, wrong)
		} else if err != nil || want == nil {
			return
		}
		var have map[string]any
		if err := json.Unmarshal(got, &have); err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(have, want) {
			t.Fatalf("%q: %v, want %v", text, have, want)
		}
	})
}

func TestScanSaysWhereItIsWrong(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		`{"userId": "u" "event": "a"}`:      "syntax error at byte 16",
		`{"userId": "u"`:                    "syntax error at byte 15",
		`{"userId": "u"} x`:                 "syntax error at byte 17",
		`{"a": ` + strings.Repeat("[", 200): "values are nested deeper than 100",
		`{"properties": 7, "userId": []}`:   "properties must not be a number",
		`{"userId": true}`:                  "userId must not be a bool",
		`{"context": {"page": "/"}}`:        "context page must not be a text",
		`{"timestamp": "yesterday"}`:        "timestamp must be a time as in RFC 3339",
		`{"properties": {"a": 1e400}}`:      "properties has a number that is out of range",
		`[]`:                                "it must not be an array",
	} {
		_, err := readMessage([]byte(text), "")
		if err == nil || !strings.HasSuffix(err.Error(), want) {
			t.Errorf("%.60s: %v, want %s", text, err, want)
		}
	}
}

// One message of a batch that is nested too deeply is refused, and no other.
func TestADeepMessageOfABatch(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	event := func(name, properties string) string {
		return `{"type": "track", "anonymousId": "v1", "event": "` + name + `", "properties": ` + properties + `}`
	}
	deep := func(n int) string {
		return strings.Repeat(`{"a": [1, "]", `, n) + `"\"}"` + strings.Repeat("]}", n)
	}
	a := w.call("/v1/batch", w.programKey("acme", token.PublicKey), `{"batch": [`+event("good", "{}")+","+event("deep", deep(10_000/20))+","+event("other", deep(40))+`], "sentAt": null}`)
	if a.status != 200 || !strings.Contains(a.body, `"errors":[{"index":1,`) || strings.Count(a.body, `"index"`) != 1 || !strings.Contains(a.body, errDeep.Error()) {
		t.Errorf("%d %s", a.status, a.body)
	}
	if diff := cmp.Diff([]string{"event.tracked good", "event.tracked other"}, w.facts("acme", "event.%")); diff != "" {
		t.Error(diff)
	}
	for _, body := range []string{`{"batch": [` + strings.Repeat("[", 300), `{"batch": [` + strings.Repeat("[", 300) + strings.Repeat("}", 300) + "]}"} {
		if _, _, err := readBatch([]byte(body)); err == nil {
			t.Errorf("%.40s is taken", body)
		}
	}
}

// Whatever JSON lets be in properties ends up in Postgres, in a batch with others.
func TestOddProperties(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	sk := w.programKey("acme", token.SecretKey)
	var batch []string
	for _, p := range []string{
		`{"half": "\ud83d", "whole": "\ud83d\ude00"}`, `{"small": 1e-5000}`, `{"large": 1.5e300}`, `{"exact": 12345678901234567890}`, `{"half": "\ud83d", "exact": [9007199254740993], "small": 1e-5000}`, `{"a": 1, "a": 2}`, `{ "deep": ` + strings.Repeat("[", 90) + strings.Repeat("]", 90) + ` }`, `null`, `{}`,
	} {
		batch = append(batch, `{"type": "track", "userId": "u1", "event": "odd", "properties": `+p+`}`)
	}
	batch = append(batch,
		`{"type": "page", "anonymousId": "v1", "name": "Own \"name\"", "category": "docs", "properties": {"name": "other", "path": "/b"}, "context": {"page": {"path": "/a", "title": "A"}, "ip": "192.0.2.1"}}`,
		`{"type": "page", "anonymousId": "v1", "context": {"page": { }}}`)
	if a := w.call("/v1/batch", sk, `{"batch": [`+strings.Join(batch, ",")+`]}`); a.status != 200 || strings.Contains(a.body, "errors") {
		t.Fatalf("%d %s", a.status, a.body)
	}
	want := []string{
		`{"half": "�", "whole": "😀"}`, `{"small": 0}`, "", `{"exact": 12345678901234567890}`, `{"half": "�", "exact": [9007199254740993], "small": 0}`, `{"a": 2}`, `{"deep": ` + strings.Repeat("[", 90) + strings.Repeat("]", 90) + `}`, `{}`, `{}`,
		`{"name": "Own \"name\"", "path": "/b", "title": "A", "category": "docs"}`, `{}`,
	}
	got := pgtest.All[string](t, w.db, "acme", "SELECT CASE WHEN data ? 'large' THEN '' ELSE data::text END FROM fact WHERE kind IN ('event.tracked', 'page.viewed') ORDER BY id")
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if !pgtest.One[bool](t, w.db, "acme", "SELECT (data->>'large')::numeric = 1.5e300 FROM fact WHERE data ? 'large'") {
		t.Error("a large number is another")
	}
}
