package renderform

import (
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/onda-run/onda/internal/browsertest"
	"github.com/onda-run/onda/internal/page"
	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/spec"
)

// questions is a form with an input of every type, and one more for each of the predicates, which is shown by it.
func questions(t *testing.T, predicates []string) *form {
	t.Helper()
	f := &form{
		Form: &spec.Form{Texts: map[string]map[string]string{"en": {}}, Locale: "en"}, settings: &spec.Settings{Zone: "Europe/Oslo"},
		fields: map[string]*spec.Field{
			"email": {Type: spec.TypeText}, "company": {Type: spec.TypeText}, "country": {Type: spec.TypeCountry}, "age": {Type: spec.TypeNumber}, "member": {Type: spec.TypeBoolean},
			"birthday": {Type: spec.TypeDate}, "arrival": {Type: spec.TypeDatetime}, "interests": {Type: spec.TypeMultiselect, Options: []string{"ski", "Sail", "swim"}},
			"plan": {Type: spec.TypeSelect, Options: []string{"free", "Paid"}},
		},
	}
	for _, field := range []string{"email", "company", "country", "age", "member", "birthday", "arrival", "interests"} {
		f.Inputs = append(f.Inputs, spec.Input{Field: field})
	}
	f.Inputs = append(f.Inputs, spec.Input{Field: "plan", As: spec.InputRadio})
	for i, source := range predicates {
		p, err := spec.ParsePredicate(source)
		if err != nil {
			t.Fatalf("%s: %v", source, err)
		}
		f.Inputs = append(f.Inputs, spec.Input{Name: fmt.Sprintf("q%d", i), ShowIf: p, Required: true})
	}
	return f
}

// What decides whether an input is shown means the same on the server and on the page, and what the language says.
func TestShowIf(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	full := url.Values{
		"email": {"Ada@Example.NO"}, "company": {"Øst & Vest AS"}, "country": {"NO"}, "age": {"42"}, "member": {"on"}, "birthday": {"1990-11-27"},
		"arrival": {"2026-11-24T14:30"}, "interests": {"ski", "Sail"}, "plan": {"Paid"},
	}
	rows := []struct {
		predicate   string
		full, empty bool
	}{
		{`{field: country, in: [FR, "no"]}`, true, false},
		{`{field: country, notIn: [FR, "no"]}`, false, true},
		{`{field: country, is: FR}`, false, false},
		{`{field: country, isNot: FR}`, true, true},
		{`{field: email, endsWith: ".no"}`, true, false},
		{`{field: company, contains: "ØST &"}`, true, false},
		{`{field: company, startsWith: vest}`, false, false},
		{`{field: company, matches: "^øst.*\\bas$"}`, true, false},
		{`{field: company, matches: "^[a-z]+$"}`, false, false},
		{`{field: company, exists: false}`, false, true},
		{`{field: age, gte: 42}`, true, false},
		{`{field: age, gt: 42}`, false, false},
		{`{field: age, lt: 42.5}`, true, false},
		{`{field: age, between: [0, 100]}`, true, false},
		{`{field: age, in: [42.0, 7]}`, true, false},
		{`{field: age, isNot: 42}`, false, true},
		{`{field: member, is: true}`, true, false},
		{`{field: member, is: false}`, false, true}, // a box that was left empty is an answer
		{`{field: birthday, before: 2000-01-01}`, true, false},
		{`{field: birthday, olderThan: 18y}`, true, false},
		{`{field: birthday, inLast: 18y}`, false, false},
		{`{field: birthday, yearly: {inNext: 7d}}`, true, false},
		{`{field: birthday, yearly: {inLast: 7d}}`, false, false},
		{`{field: birthday, between: [1990-11-27, today]}`, true, false},
		{`{field: arrival, is: today}`, true, false},
		{`{field: arrival, after: "2026-11-24T14:30"}`, false, false},
		{`{field: arrival, gte: "2026-11-24T14:30"}`, true, false},
		{`{field: arrival, gt: 2026-11-23}`, true, false},
		{`{field: arrival, inNext: 1h}`, false, false},
		{`{field: arrival, inNext: 90m}`, true, false},
		{`{field: interests, hasAny: [swim, SKI]}`, true, false},
		{`{field: interests, hasAll: [ski, sail]}`, true, false},
		{`{field: interests, hasAll: [ski, swim]}`, false, false},
		{`{field: interests, hasNone: [swim]}`, true, true},
		{`{field: plan, is: paid}`, true, false},
		{`{all: [{field: plan, is: paid}, {not: {field: age, lt: 18}}]}`, true, false},
		{`{any: [{field: plan, is: free}, {field: country, exists: false}]}`, false, true},
	}
	predicates := make([]string, len(rows))
	for i, r := range rows {
		predicates[i] = r.predicate
	}
	f := questions(t, predicates)
	pages, err := page.New(assets, "pages/*.html")
	if err != nil {
		t.Fatal(err)
	}
	script, err := assets.ReadFile("form.js")
	if err != nil {
		t.Fatal(err)
	}
	s := &server{pages: pages, form: string(script)}
	site := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		values := url.Values{}
		if r.URL.Path == "/full" {
			values = maps.Clone(full)
		}
		f.setConditions(values, now)
		s.write(rw, r, s.formView(f, "/", "en", values, nil))
	}))
	t.Cleanup(site.Close)
	tab := browsertest.Start(t).Open(t, browsertest.Visitors()[1], site.URL+"/full")
	for path, values := range map[string]url.Values{"/full": full, "/empty": {"email": {"x@example.com"}}} {
		var want []string
		for i, r := range rows {
			if path == "/full" && r.full || path == "/empty" && r.empty {
				want = append(want, fmt.Sprintf("q%d", i))
			}
		}
		sent := url.Values{}
		for k, v := range values {
			sent[k] = v
		}
		_, problems := f.check(sent, nil, "en", now, nil)
		var required []string
		for _, p := range problems {
			required = append(required, p.Key)
		}
		if diff := cmp.Diff(want, required); diff != "" {
			t.Errorf("%s: what the server asks for (-want +got):\n%s", path, diff)
		}
		for i := range rows {
			sent.Set(fmt.Sprintf("q%d", i), "x")
		}
		e, _ := f.check(sent, nil, "en", now, nil)
		for i := range rows {
			name := fmt.Sprintf("q%d", i)
			if _, kept := e.Values[name]; kept != slices.Contains(want, name) {
				t.Errorf("%s: %s is kept: %v", path, rows[i].predicate, kept)
			}
		}
		tab.Go(site.URL + path)
		if path == "/empty" { // the one thing that both have is the address
			tab.Set("#onda--email", "x@example.com")
			browsertest.Eval[bool](tab, `document.forms[0].dispatchEvent(new Event("input"))`)
		}
		shown := browsertest.Eval[string](tab, `[...document.querySelectorAll("[name^=q]")].filter(e => !e.disabled && e.required && e.checkVisibility()).map(e => e.name).join(" ")`)
		if diff := cmp.Diff(want, strings.Fields(shown)); diff != "" {
			t.Errorf("%s: what the page shows (-want +got):\n%s", path, diff)
		}
	}
}

// A condition may hang on an input that has one of its own: what is hidden has no value.
func TestShowIfOfWhatIsHidden(t *testing.T) {
	t.Parallel()
	f := questions(t, nil)
	for i, in := range f.Inputs {
		if in.Field == "age" {
			f.Inputs[i].ShowIf = &spec.Predicate{Field: &spec.FieldTest{Field: "country", Test: spec.Test{Op: spec.OpIs, Values: []spec.Value{{Text: "NO"}}}}}
		}
	}
	f.Inputs = append(f.Inputs, spec.Input{Name: "more", ShowIf: &spec.Predicate{Field: &spec.FieldTest{Field: "age", Test: spec.Test{Op: spec.OpExists, Exists: true}}}})
	for country, want := range map[string]string{"NO": "yes", "FR": ""} {
		e, problems := f.check(url.Values{"email": {"ada@example.com"}, "country": {country}, "age": {"7"}, "more": {"yes"}}, nil, "en", time.Now(), nil)
		if len(problems) > 0 || e.Values["more"] != want || (e.Fields["age"] != nil) != (want != "") {
			t.Errorf("%s: %v %v %v", country, e.Fields, e.Values, problems)
		}
	}
}

// With scripts an input comes and goes as its condition does; without, it is there and may be left empty.
func TestShowIfInABrowser(t *testing.T) { //nolint:tparallel // one visitor after another: a browser has one tab in front
	t.Parallel()
	b := browsertest.Start(t)
	for i, v := range browsertest.Visitors() {
		t.Run(v.Name, func(t *testing.T) {
			w := newWorld(t)
			tab := b.Open(t, v, w.url+newsletter)
			const company = "#onda-newsletter-company"
			look := func(when string, want bool) {
				t.Helper()
				if got := browsertest.Eval[bool](tab, `document.querySelector("`+company+`").checkVisibility()`); got != (want || v.NoScripts) {
					t.Errorf("%s: the company is shown: %v", when, got)
				}
			}
			choose := func(country string) {
				tab.Set("#onda-newsletter-country", country)
				if !v.NoScripts {
					browsertest.Eval[bool](tab, `document.querySelector("#onda-newsletter-country").dispatchEvent(new Event("change", {bubbles: true}))`)
				}
			}
			look("at first", false)
			tab.Set("#onda-newsletter-email", fmt.Sprintf("visitor%d@example.com", i))
			tab.Tick("#onda-newsletter-consent-newsletter", false)
			choose("FR")
			look("in France", true)
			tab.Submit("button")
			tab.Look("an input that is asked for in France")
			look("where it is missing", true)
			choose("NO")
			look("where something is said of it", true)
			tab.Submit("button")
			if got := tab.Text("main"); !strings.Contains(got, "Check your inbox") {
				t.Errorf("in Norway: %s", got)
			}
			if got := pgtest.One[string](t, w.db, "acme", "SELECT (data->'fields')::text FROM submission"); strings.Contains(got, "company") {
				t.Errorf("what was stored: %s", got)
			}
		})
	}
}
