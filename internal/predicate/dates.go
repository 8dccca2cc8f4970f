package predicate

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/onda-run/onda/internal/spec"
)

const isoDate = "2006-01-02"

// day is the date that is d from now in the zone in force.
func (env Env) day(d spec.Duration) time.Time {
	return dateIn(d.AddTo(env.Now, env.zone()), env.zone())
}

func dateIn(t time.Time, loc *time.Location) time.Time {
	y, m, d := t.In(loc).Date()
	return time.Date(y, m, d, 0, 0, 0, 0, time.UTC)
}

// noDate are what a text must not be like that has the length of a date and that Postgres reads as one: 2026- 1-+7.
const noDate = "NOT LIKE ALL ('{% %,%+%,%--%,%-00%,%T-%,%:-%}')"

// storedInstant is what an instant is like as it is stored.
const storedInstant = "____-__-__T__:__:__Z"

// stored is the text of a date as it is stored (package fieldvalue): it sorts as time does, and an index on just this finds it.
func (c *compiler) stored(field string) string {
	return "(c.fields->>" + c.text(field) + `) COLLATE "C"`
}

// isDate is a check that a field's value is a date as it is stored, by a path, which raises no error. It costs more than a comparison of text and less than a cast that is guarded by a regular
// expression; CASE has Postgres ask it last, of those that have passed that, and not take it for rare. value is stored.
func (c *compiler) isDate(field, value string, typ spec.FieldType) string {
	like, form := "____-__-__", "YYYY-MM-DD"
	if typ == spec.TypeDatetime {
		like, form = storedInstant, `YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"`
	}
	return "CASE WHEN " + value + " >= '0001' AND " + value + " LIKE '" + like + "' AND " + value + " " + noDate +
		" THEN c.fields @? " + c.arg("strict "+path(field)+`.datetime("`+form+`")`, "jsonpath") + " END"
}

// days are tests of a field of days without a zone.
func (c *compiler) days(field string, t spec.Test) (string, error) {
	value := c.stored(field)
	sql, exact, err := c.onDays(value, t)
	if err != nil || exact {
		return sql, err
	}
	return "(" + sql + " AND " + c.isDate(field, value, spec.TypeDate) + ")", nil
}

// onDays compares a text that should be a day. exact: it is one for sure where this is true.
func (c *compiler) onDays(value string, t spec.Test) (sql string, exact bool, err error) {
	on := func(d time.Time) string { return c.text(d.Format(isoDate)) }
	list := make([]string, len(t.Values))
	for i, v := range t.Values {
		m, err := v.Moment()
		if err != nil {
			return "", false, err
		}
		list[i] = m.Date(c.env.Now, c.env.zone()).Format(isoDate)
	}
	if len(list) > manyValues { // only is and in have so many
		return c.lookedUp(value, "w", list), true, nil
	}
	days := make([]string, len(list))
	for i, d := range list {
		days[i] = c.text(d)
	}
	switch t.Op {
	case spec.OpExists:
		return value + " IS NOT NULL", false, nil
	case spec.OpIs, spec.OpIn:
		return "(" + value + " IN (" + strings.Join(days, ", ") + "))", true, nil
	case spec.OpBetween:
		return value + " BETWEEN " + days[0] + " AND " + days[1], false, nil
	case spec.OpInLast:
		return value + " BETWEEN " + on(c.env.day(t.Duration.Neg())) + " AND " + on(c.env.day(spec.Duration{})), false, nil
	case spec.OpInNext:
		return value + " BETWEEN " + on(c.env.day(spec.Duration{})) + " AND " + on(c.env.day(t.Duration)), false, nil
	case spec.OpOlderThan:
		return value + " < " + on(c.env.day(t.Duration.Neg())), false, nil
	case spec.OpYearly:
		return c.yearly("right("+value+", 5)", t), false, nil
	default:
		op, ok := comparison(t.Op)
		if !ok {
			return "", false, fmt.Errorf("%s does not fit dates", t.Op)
		}
		return value + " " + op + " " + days[0], false, nil
	}
}

// span is from a moment to another: nil is without an end. It has its ends in it, but for an open one.
type span struct {
	lo, hi         *time.Time
	loOpen, hiOpen bool
}

// spans are the times of which a test is true; not for exists and yearly.
func (env Env) spans(t spec.Test) ([]span, error) {
	moments := make([]spec.Moment, len(t.Values))
	for i, v := range t.Values {
		var err error
		if moments[i], err = v.Moment(); err != nil {
			return nil, err
		}
	}
	start := func(i int) *time.Time {
		at := moments[i].In(env.Now, env.zone())
		return &at
	}
	// A day is all of it: gt is after its end, lte before it.
	upTo := func(i int, s span) span {
		at := moments[i].End(env.Now, env.zone())
		s.hi, s.hiOpen = &at, moments[i].WholeDay()
		return s
	}
	on := func(d spec.Duration) *time.Time {
		at := d.AddTo(env.Now, env.zone())
		return &at
	}
	switch t.Op {
	case spec.OpIs, spec.OpIn:
		all := make([]span, len(moments))
		for i := range moments {
			all[i] = upTo(i, span{lo: start(i)})
		}
		return all, nil
	case spec.OpBetween:
		return []span{upTo(1, span{lo: start(0)})}, nil
	case spec.OpInLast:
		return []span{{lo: on(t.Duration.Neg()), hi: on(spec.Duration{})}}, nil
	case spec.OpInNext:
		return []span{{lo: on(spec.Duration{}), hi: on(t.Duration)}}, nil
	case spec.OpOlderThan:
		return []span{{hi: on(t.Duration.Neg()), hiOpen: true}}, nil
	case spec.OpGt, spec.OpAfter:
		s := upTo(0, span{})
		return []span{{lo: s.hi, loOpen: !s.hiOpen}}, nil
	case spec.OpGte:
		return []span{{lo: start(0)}}, nil
	case spec.OpLte:
		return []span{upTo(0, span{})}, nil
	case spec.OpLt, spec.OpBefore:
		return []span{{hi: start(0), hiOpen: true}}, nil
	default:
		return nil, fmt.Errorf("%s does not fit dates", t.Op)
	}
}

// during is a condition that a value is in the span, whose ends are parameters that end makes.
func (s span) during(value string, end func(t time.Time, upper bool) string) string {
	switch {
	case s.lo != nil && s.hi != nil && !s.loOpen && !s.hiOpen && s.lo.Equal(*s.hi) && s.lo.Nanosecond() == 0:
		return value + " = " + end(*s.lo, false)
	case s.lo != nil && s.hi != nil && !s.loOpen && !s.hiOpen:
		return value + " BETWEEN " + end(*s.lo, false) + " AND " + end(*s.hi, true)
	}
	var parts []string
	if s.lo != nil {
		op := " >= "
		if s.loOpen {
			op = " > "
		}
		parts = append(parts, value+op+end(*s.lo, false))
	}
	if s.hi != nil {
		op := " <= "
		if s.hiOpen {
			op = " < "
		}
		parts = append(parts, value+op+end(*s.hi, true))
	}
	return strings.Join(parts, " AND ")
}

// instant is an end of a span as it is.
func (c *compiler) instant(t time.Time, _ bool) string { return c.arg(t, "timestamptz") }

// instants are tests of points in time.
func (c *compiler) instants(value string, t spec.Test) (string, error) {
	switch t.Op {
	case spec.OpExists:
		return "(" + value + " IS NOT NULL)", nil
	case spec.OpYearly:
		return c.yearly("to_char("+value+" AT TIME ZONE "+c.text(c.env.zone().String())+`, 'MM-DD') COLLATE "C"`, t), nil
	default:
		if len(t.Values) > manyValues {
			return c.inSpans(t, func(span) string { return "true" }, value)
		}
		return c.eachSpan(t, func(s span) string { return s.during(value, c.instant) })
	}
}

// inSpans is a condition that a time is in one of many spans with two ends: the last that begins before it is found by halves, and has to end after it. first is a cheaper
// one, of what is about them all.
func (c *compiler) inSpans(t spec.Test, first func(span) string, value string) (string, error) {
	spans, err := c.env.spans(t)
	if err != nil {
		return "", err
	}
	slices.SortFunc(spans, func(a, b span) int { return a.lo.Compare(*b.lo) })
	var from, to []time.Time
	for _, s := range spans {
		end := s.hi.Truncate(time.Microsecond)
		if s.hiOpen {
			end = s.hi.Add(-time.Microsecond)
		}
		if last := len(to) - 1; last >= 0 && !s.lo.After(to[last]) {
			if end.After(to[last]) {
				to[last] = end
			}
			continue
		}
		from, to = append(from, *s.lo), append(to, end)
	}
	about := first(span{lo: &from[0], hi: &to[len(to)-1]})
	return "(" + about + " AND " + value + " <= (" + c.arg(to, "timestamptz[]") + ")[width_bucket(" + value + ", " + c.arg(from, "timestamptz[]") + ")])", nil
}

func (c *compiler) eachSpan(t spec.Test, one func(span) string) (string, error) {
	spans, err := c.env.spans(t)
	if err != nil {
		return "", err
	}
	parts := make([]string, len(spans))
	for i, s := range spans {
		parts[i] = "(" + one(s) + ")"
	}
	if len(parts) == 1 {
		return parts[0], nil
	}
	return "(" + strings.Join(parts, " OR ") + ")", nil
}

// asInstant casts what can be cast.
func asInstant(text string) string {
	return "(CASE WHEN " + text + " ~ '" + instantForm + "' THEN (" + text + ")::timestamptz END)"
}

// nearby compares the text of an instant of whatever offset with the days about a span, before it is cast.
func (c *compiler) nearby(value string, s span) string {
	const widest = 15 * time.Hour // the offsets that are taken
	var parts []string
	if s.lo != nil {
		parts = append(parts, value+" >= "+c.text(s.lo.UTC().Add(-widest).Format(isoDate)))
	}
	if s.hi != nil {
		parts = append(parts, value+" < "+c.text(s.hi.UTC().Add(widest+24*time.Hour).Format(isoDate)))
	}
	return strings.Join(parts, " AND ")
}

// times are tests of a field of points in time. They are stored in UTC and in whole seconds, and such a text is compared as it is; another may only have come in otherwise, and is cast.
func (c *compiler) times(field string, t spec.Test) (string, error) {
	value := c.stored(field)
	switch t.Op {
	case spec.OpExists:
		return "(" + value + " ~ '" + instantForm + "')", nil
	case spec.OpYearly:
		return c.instants(asInstant(value), t)
	default:
		if len(t.Values) > manyValues {
			return c.inSpans(t, func(s span) string { return c.nearby(value, s) }, asInstant(value))
		}
		return c.eachSpan(t, func(s span) string {
			return c.nearby(value, s) + " AND CASE WHEN " + value + " LIKE '" + storedInstant + "' THEN " + s.during(value, c.storedAs(s)) + " AND " + c.isDate(field, value, spec.TypeDatetime) +
				" ELSE " + s.during(asInstant(value), c.instant) + " END"
		})
	}
}

// storedAs writes an end of a span as instants are stored. Those have whole seconds: an end that is within one stands for the one before or after.
func (c *compiler) storedAs(s span) func(t time.Time, upper bool) string {
	return func(t time.Time, upper bool) string {
		second := t.UTC().Truncate(time.Second)
		if !second.Equal(t) && (upper && s.hiOpen || !upper && !s.loOpen) {
			second = second.Add(time.Second)
		}
		return c.text(second.Format(time.RFC3339))
	}
}

// anniversary is a part of the year, first and last day included. A year has the 29th of February or, when it has not, its 28th is both.
type anniversary struct {
	all      bool
	from, to string // MM-DD; from after to goes over the turn of the year
}

// anniversaryOf gives the days whose anniversary is within the duration of a yearly test.
func (env Env) anniversaryOf(t spec.Test) anniversary {
	a, b := env.day(spec.Duration{}), env.day(t.Duration)
	if t.Yearly == spec.OpInLast {
		a, b = env.day(t.Duration.Neg()), a
	}
	if !b.Before(a.AddDate(1, 0, 0)) {
		return anniversary{all: true}
	}
	y := anniversary{from: a.Format("01-02"), to: b.Format("01-02")}
	if y.to == "02-28" && b.AddDate(0, 0, 1).Day() == 1 {
		if y.from == "02-29" { // from the one to the 28th that stands for the next: a whole year
			return anniversary{all: true}
		}
		y.to = "02-29"
	}
	return y
}

// yearly compares a day of the year.
func (c *compiler) yearly(day string, t spec.Test) string {
	y := c.env.anniversaryOf(t)
	switch {
	case y.all:
		return "(" + day + " IS NOT NULL)"
	case y.from <= y.to:
		return "(" + day + " BETWEEN " + c.text(y.from) + " AND " + c.text(y.to) + ")"
	}
	return "(" + day + " >= " + c.text(y.from) + " OR " + day + " <= " + c.text(y.to) + ")"
}

// property tests a property of an event, which has no type but that of its value and of what it is compared with.
func (c *compiler) property(data string, p spec.Property) (string, error) {
	into, at := "->", ""
	if steps := strings.Split(p.Name, "."); len(steps) > 1 {
		into, at = "#>", c.arg(steps, "text[]")
	} else {
		at = c.text(p.Name)
	}
	value, text := data+into+at, data+into+">"+at
	t, same := positive(p.Test)
	sql, err := c.loose(value, text, t)
	return unless(sql, same), err
}

func (c *compiler) loose(value, text string, t spec.Test) (string, error) {
	switch t.Op {
	case spec.OpExists:
		return "(" + text + " NOT IN ('', '[]'))", nil
	case spec.OpHasAny, spec.OpHasAll:
		return c.set(elements(value), t)
	case spec.OpIs, spec.OpIn:
		t.Op = spec.OpIn
		sql, err := c.words(text, t)
		if err != nil {
			return "", err
		}
		var numbers []spec.Value
		for _, v := range t.Values {
			if v.Kind == spec.NumberValue { // 5 is 5.0; and "5", as it was written
				numbers = append(numbers, v)
			}
		}
		if len(numbers) == 0 {
			return sql, nil
		}
		t.Values = numbers
		n, err := c.numbers(asNumber(value), t)
		return "(" + sql + " OR " + n + ")", err
	case spec.OpContains, spec.OpStartsWith, spec.OpEndsWith, spec.OpMatches:
		return c.words(text, t)
	default:
		if len(t.Values) > 0 && t.Values[0].Kind == spec.NumberValue {
			return c.numbers(asLooseNumber(value, text), t)
		}
		text = "(" + text + `) COLLATE "C"`
		days, _, err := c.onDays(text, t)
		if err != nil {
			return "", err
		}
		var instants string
		if t.Op == spec.OpYearly {
			instants, err = c.instants(asInstant(text), t)
		} else {
			instants, err = c.eachSpan(t, func(s span) string { return c.nearby(text, s) + " AND " + s.during(asInstant(text), c.instant) })
		}
		return "(" + days + " AND " + text + " ~ '" + dateForm + "$' OR " + instants + ")", err
	}
}
