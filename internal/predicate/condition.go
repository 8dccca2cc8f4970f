package predicate

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/onda-run/onda/internal/spec"
)

// Condition is a predicate about values that are at hand and not in Postgres: those of a form that somebody fills in. All that depends on time is computed in it, so that a
// page evaluates its JSON with no more than comparisons. It has either All, Any or Not, or a Field with one test.
type Condition struct {
	All []Condition `json:"all,omitempty"`
	Any []Condition `json:"any,omitempty"`
	Not *Condition  `json:"not,omitempty"`

	Field string         `json:"field,omitempty"`
	Type  spec.FieldType `json:"type,omitempty"` // number, boolean or datetime; all others are compared as text
	Known bool           `json:"known,omitempty"`
	// In is true of a value, or of a list with one, that is among these; Every of a list that has all of them. They are in lower case.
	In       []string `json:"in,omitempty"`
	Every    []string `json:"every,omitempty"`
	Contains string   `json:"contains,omitempty"`
	Starts   string   `json:"starts,omitempty"`
	Ends     string   `json:"ends,omitempty"`
	// Matches is an expression of JavaScript, with its flag u.
	Matches string `json:"matches,omitempty"`
	Min     string `json:"min,omitempty"`
	Max     string `json:"max,omitempty"`
	Above   bool   `json:"above,omitempty"`  // Min itself is not meant
	Below   bool   `json:"below,omitempty"`  // Max itself is not meant
	Yearly  bool   `json:"yearly,omitempty"` // Min and Max are MM-DD

	pattern  *regexp.Regexp
	min, max time.Time // of datetime: what Min and Max, in the zone's clocks, stand for
	zone     *time.Location
}

// Condition makes a condition of a predicate that asks about fields alone. It fails for any other, and where it does not fit the fields.
func (env Env) Condition(p *spec.Predicate) (Condition, error) {
	switch {
	case len(p.All) > 0:
		list, err := env.conditions(p.All)
		return Condition{All: list}, err
	case len(p.Any) > 0:
		list, err := env.conditions(p.Any)
		return Condition{Any: list}, err
	case p.Not != nil:
		c, err := env.Condition(p.Not)
		return negated(c), err
	case p.Field != nil:
		return env.fieldCondition(p.Field)
	}
	return Condition{}, fmt.Errorf("a condition can only ask about fields")
}

func (env Env) conditions(ps []spec.Predicate) ([]Condition, error) {
	list := make([]Condition, len(ps))
	for i := range ps {
		var err error
		if list[i], err = env.Condition(&ps[i]); err != nil {
			return nil, err
		}
	}
	return list, nil
}

// negated is the condition that is true where c is not.
func negated(c Condition) Condition { return Condition{Not: &c} }

func (env Env) fieldCondition(t *spec.FieldTest) (c Condition, err error) {
	typ, ok := env.fieldType(t.Field)
	if !ok {
		return c, fmt.Errorf("there is no field %q", t.Field)
	}
	if !t.Op.Fits(typ) {
		return c, fmt.Errorf("%s does not fit the field %q, a %s", t.Op, t.Field, typ)
	}
	c = Condition{Field: t.Field, zone: env.zone()}
	switch typ {
	case spec.TypeNumber, spec.TypeBoolean, spec.TypeDatetime:
		c.Type = typ
	default: // compared as text
	}
	switch t.Op {
	case spec.OpExists:
		c.Known = true
		if !t.Exists {
			return negated(c), nil
		}
		return c, nil
	case spec.OpIsNot, spec.OpNotIn, spec.OpHasNone:
		same := *t
		same.Op = map[spec.Op]spec.Op{spec.OpIsNot: spec.OpIs, spec.OpNotIn: spec.OpIn, spec.OpHasNone: spec.OpHasAny}[t.Op]
		c, err = env.fieldCondition(&same)
		return negated(c), err
	default:
	}
	switch typ {
	case spec.TypeDate, spec.TypeDatetime:
		if t.Op == spec.OpYearly {
			return c.yearly(env.anniversaryOf(t.Test)), nil
		}
		if typ == spec.TypeDate {
			return env.dateCondition(c, t.Test)
		}
		return env.timeCondition(c, t.Test)
	case spec.TypeNumber:
		return c.number(t.Test)
	default:
		return c.words(t.Test)
	}
}

func (c Condition) words(t spec.Test) (Condition, error) {
	var low []string
	for _, v := range t.Values {
		low = append(low, strings.ToLower(v.Text))
	}
	switch t.Op {
	case spec.OpIs, spec.OpIn, spec.OpHasAny:
		c.In = low
	case spec.OpHasAll:
		c.Every = low
	case spec.OpContains:
		c.Contains = low[0]
	case spec.OpStartsWith:
		c.Starts = low[0]
	case spec.OpEndsWith:
		c.Ends = low[0]
	case spec.OpMatches:
		re, err := postgresPattern(t.Values[0].Text)
		if err != nil {
			return c, err
		}
		c.Matches, c.pattern = browserPattern(re), t.Pattern
	default:
		return c, fmt.Errorf("%s does not fit the field %q", t.Op, c.Field)
	}
	return c, nil
}

var postgresEscapes = regexp.MustCompile(`\\U([0-9A-F]{8})`)

// browserPattern writes an expression of postgresPattern for JavaScript.
func browserPattern(re string) string {
	re = strings.TrimPrefix(re, "***:")
	return strings.NewReplacer(`\A`, "^", `\Z`, "$").Replace(postgresEscapes.ReplaceAllString(re, `\u{$1}`))
}

func (c Condition) number(t spec.Test) (Condition, error) {
	switch t.Op {
	case spec.OpIs, spec.OpIn:
		for _, v := range t.Values {
			c.In = append(c.In, v.Text)
		}
	case spec.OpBetween:
		c.Min, c.Max = t.Values[0].Text, t.Values[1].Text
	default:
		return c.compared(t.Op, t.Values[0].Text)
	}
	return c, nil
}

// compared is a test with one bound.
func (c Condition) compared(op spec.Op, bound string) (Condition, error) {
	switch op {
	case spec.OpGt, spec.OpAfter:
		c.Min, c.Above = bound, true
	case spec.OpGte:
		c.Min = bound
	case spec.OpLt, spec.OpBefore, spec.OpOlderThan:
		c.Max, c.Below = bound, true
	case spec.OpLte:
		c.Max = bound
	default:
		return c, fmt.Errorf("%s does not fit the field %q", op, c.Field)
	}
	return c, nil
}

func (env Env) dateCondition(c Condition, t spec.Test) (Condition, error) {
	days := make([]string, len(t.Values))
	for i, v := range t.Values {
		m, err := v.Moment()
		if err != nil {
			return c, err
		}
		days[i] = m.Date(env.Now, env.zone()).Format(isoDate)
	}
	on := func(d spec.Duration) string { return env.day(d).Format(isoDate) }
	switch t.Op {
	case spec.OpIs, spec.OpIn:
		c.In = days
	case spec.OpBetween:
		c.Min, c.Max = days[0], days[1]
	case spec.OpInLast:
		c.Min, c.Max = on(t.Duration.Neg()), on(spec.Duration{})
	case spec.OpInNext:
		c.Min, c.Max = on(spec.Duration{}), on(t.Duration)
	case spec.OpOlderThan:
		return c.compared(t.Op, on(t.Duration.Neg()))
	default:
		return c.compared(t.Op, days[0])
	}
	return c, nil
}

// between bounds points in time, as the clocks of the zone show them.
func (c Condition) between(from, to *time.Time) Condition {
	const clock = "2006-01-02T15:04:05"
	if from != nil {
		c.min, c.Min = *from, from.In(c.zone).Format(clock)
	}
	if to != nil {
		c.max, c.Max = *to, to.In(c.zone).Format(clock)
	}
	return c
}

func (env Env) timeCondition(c Condition, t spec.Test) (Condition, error) {
	type span struct{ from, to time.Time } // to itself is not meant, but where it is the same
	spans := make([]span, len(t.Values))
	for i, v := range t.Values {
		m, err := v.Moment()
		if err != nil {
			return c, err
		}
		spans[i] = span{m.In(env.Now, env.zone()), m.End(env.Now, env.zone())}
	}
	on := func(d spec.Duration) time.Time { return d.AddTo(env.Now, env.zone()) }
	past, now, next := on(t.Duration.Neg()), env.Now, on(t.Duration)
	upTo := func(c Condition, s span) Condition {
		c = c.between(nil, &s.to)
		c.Below = !s.from.Equal(s.to)
		return c
	}
	switch t.Op {
	case spec.OpIs, spec.OpIn:
		one := Condition{}
		for _, s := range spans {
			one.Any = append(one.Any, upTo(c.between(&s.from, nil), s))
		}
		return one, nil
	case spec.OpBetween:
		return upTo(c.between(&spans[0].from, nil), spans[1]), nil
	case spec.OpInLast:
		return c.between(&past, &now), nil
	case spec.OpInNext:
		return c.between(&now, &next), nil
	case spec.OpOlderThan:
		c = c.between(nil, &past)
		c.Below = true
		return c, nil
	case spec.OpGt, spec.OpAfter:
		return Condition{All: []Condition{{Field: c.Field, Type: c.Type, Known: true}, negated(upTo(c, spans[0]))}}, nil
	case spec.OpGte:
		return c.between(&spans[0].from, nil), nil
	case spec.OpLt, spec.OpBefore:
		c = c.between(nil, &spans[0].from)
		c.Below = true
		return c, nil
	case spec.OpLte:
		return upTo(c, spans[0]), nil
	default:
		return c, fmt.Errorf("%s does not fit the field %q", t.Op, c.Field)
	}
}

func (c Condition) yearly(y anniversary) Condition {
	if y.all {
		c.Known = true
		return c
	}
	c.Yearly = true
	if y.from <= y.to {
		c.Min, c.Max = y.from, y.to
		return c
	}
	late, early := c, c
	late.Min, early.Max = y.from, y.to
	return Condition{Any: []Condition{late, early}}
}

// Fields gives the names of the fields that are asked about.
func (c Condition) Fields() []string {
	if c.Field != "" {
		return []string{c.Field}
	}
	var names []string
	for _, part := range append(slices.Concat(c.All, c.Any), one(c.Not)...) {
		names = append(names, part.Fields()...)
	}
	return names
}

func one(c *Condition) []Condition {
	if c == nil {
		return nil
	}
	return []Condition{*c}
}

// Holds tells whether the condition is true of values as they are stored (fieldvalue): text, float64, bool or a list of texts; nil for none.
func (c Condition) Holds(value func(field string) any) bool {
	is := func(part Condition) bool { return part.Holds(value) }
	switch {
	case c.Field == "" && c.Not != nil:
		return !is(*c.Not)
	case c.Field == "" && c.Any != nil:
		return slices.ContainsFunc(c.Any, is)
	case c.Field == "":
		return !slices.ContainsFunc(c.All, func(part Condition) bool { return !is(part) })
	}
	switch v := value(c.Field).(type) {
	case string:
		return v != "" && c.of(v)
	case float64:
		return c.Type == spec.TypeNumber && c.ofNumber(v)
	case bool:
		return c.Known || slices.Contains(c.In, strconv.FormatBool(v))
	case []string:
		return c.ofList(v)
	default:
		return false
	}
}

func (c Condition) ofList(list []string) bool {
	low := make([]string, len(list))
	for i, v := range list {
		low[i] = strings.ToLower(v)
	}
	has := func(v string) bool { return slices.Contains(low, v) }
	switch {
	case c.Known:
		return len(low) > 0
	case c.Every != nil:
		return !slices.ContainsFunc(c.Every, func(v string) bool { return !has(v) })
	}
	return slices.ContainsFunc(c.In, has)
}

func (c Condition) ofNumber(n float64) bool {
	number := func(s string) float64 {
		v, _ := strconv.ParseFloat(s, 64) // it was read from a document
		return v
	}
	switch {
	case c.Known:
		return true
	case c.In != nil:
		return slices.ContainsFunc(c.In, func(s string) bool { return number(s) == n })
	}
	lo, hi := number(c.Min), number(c.Max)
	return (c.Min == "" || n > lo || !c.Above && n == lo) && (c.Max == "" || n < hi || !c.Below && n == hi)
}

func (c Condition) of(v string) bool {
	if c.Type == spec.TypeDatetime {
		at, err := time.Parse(time.RFC3339, v)
		switch {
		case err != nil:
			return false
		case c.Known:
			return true
		case !c.Yearly:
			return (c.Min == "" || !at.Before(c.min)) && (c.Max == "" || at.Before(c.max) || !c.Below && at.Equal(c.max))
		}
		v = at.In(c.zone).Format(isoDate)
	}
	low := strings.ToLower(v)
	switch {
	case c.Known:
		return true
	case c.In != nil:
		return slices.Contains(c.In, low)
	case c.Contains != "":
		return strings.Contains(low, c.Contains)
	case c.Starts != "":
		return strings.HasPrefix(low, c.Starts)
	case c.Ends != "":
		return strings.HasSuffix(low, c.Ends)
	case c.pattern != nil:
		return c.pattern.MatchString(v)
	}
	if c.Yearly {
		v = v[max(0, len(v)-5):]
	}
	return (c.Min == "" || v > c.Min || !c.Above && v == c.Min) && (c.Max == "" || v < c.Max || !c.Below && v == c.Max)
}
