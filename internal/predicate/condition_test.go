package predicate_test

import (
	"encoding/json"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/onda-run/onda/internal/predicate"
	"github.com/onda-run/onda/internal/spec"
)

// drawFieldPredicate is drawPredicate of fields alone.
func drawFieldPredicate(t *rapid.T, depth int) any {
	kinds := []string{"field", "field"}
	if depth > 0 {
		kinds = append(kinds, "all", "any", "not")
	}
	switch kind := rapid.SampledFrom(kinds).Draw(t, "predicate"); kind {
	case "all", "any":
		var list []any
		for range rapid.IntRange(1, 3).Draw(t, "n") {
			list = append(list, drawFieldPredicate(t, depth-1))
		}
		return map[string]any{kind: list}
	case "not":
		return map[string]any{"not": drawFieldPredicate(t, depth-1)}
	}
	name := rapid.SampledFrom([]string{"plan", "level", "vip", "birthday", "seen", "likes", "country"}).Draw(t, "field")
	p := drawTest(t, fieldTypes()[name])
	p["field"] = name
	return p
}

// answer is a value of a person as a form has it: of the field's type, or none.
func answer(p *person, field string) any {
	switch v := p.fields[field].(type) {
	case int:
		return float64(v)
	case string:
		switch fieldTypes()[field] {
		case spec.TypeDate:
			if d, err := time.Parse(time.DateOnly, v); err != nil || d.Year() == 0 {
				return nil
			}
		case spec.TypeNumber, spec.TypeBoolean, spec.TypeMultiselect:
			return nil
		default:
		}
		return v
	case bool:
		if fieldTypes()[field] != spec.TypeBoolean {
			return nil
		}
		return v
	case float64, []string:
		return v
	default:
		return nil
	}
}

func TestConditionsAgreeWithANaiveReading(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		c, now := drawPerson(t), drawInstant(t).Add(17*time.Hour)
		for field := range c.fields {
			if answer(c, field) == nil {
				delete(c.fields, field)
			}
		}
		source, err := json.Marshal(drawFieldPredicate(t, 3))
		if err != nil {
			t.Fatal(err)
		}
		p, err := spec.ParsePredicate(string(source))
		if err != nil {
			t.Fatalf("%s: %v", source, err)
		}
		cond, err := predicate.Env{Fields: fieldTypes(), Zone: zone(), Now: now}.Condition(p)
		if err != nil {
			t.Fatalf("%s: %v", source, err)
		}
		got := cond.Holds(func(field string) any { return answer(c, field) })
		if want := (naive{now, zone()}).eval(p, c); got != want {
			shown, _ := json.Marshal(cond)
			t.Fatalf("%s of %v at %s: %v, a naive reading %v; the condition is %s", source, c.fields, now, got, want, shown)
		}
	})
}

func TestConditionsAreOfFields(t *testing.T) {
	t.Parallel()
	for _, source := range []string{`{tag: vip}`, `{all: [{field: plan, exists: true}, {not: {segment: partners}}]}`, `{field: nothing, exists: true}`, `{field: plan, gt: 5}`} {
		p, err := spec.ParsePredicate(source)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := (predicate.Env{Fields: fieldTypes(), Zone: zone()}).Condition(p); err == nil {
			t.Errorf("%s is taken", source)
		}
	}
}

// Of a year that begins on a 29th of February, every day is some day's anniversary.
func TestAWholeYearFromALeapDay(t *testing.T) {
	t.Parallel()
	p, err := spec.ParsePredicate(`{field: birthday, yearly: {inNext: 1y}}`)
	if err != nil {
		t.Fatal(err)
	}
	c, err := predicate.Env{Fields: fieldTypes(), Zone: time.UTC, Now: time.Date(2028, 2, 29, 12, 0, 0, 0, time.UTC)}.Condition(p)
	if err != nil {
		t.Fatal(err)
	}
	for _, day := range []string{"1990-02-28", "1988-02-29", "1990-03-01", "1990-12-31"} {
		if !c.Holds(func(string) any { return day }) {
			t.Errorf("%s has no anniversary within a year", day)
		}
	}
}
