package predicate

import (
	"fmt"
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

// dates are tests of days without a zone, as text in ISO 8601, which sorts in the order of time.
func (c *compiler) dates(value string, t spec.Test) (string, error) {
	// The order of bytes, whatever the database's collation.
	value += ` COLLATE "C"`
	on := func(d time.Time) string { return c.text(d.Format(isoDate)) }
	moment := func(v spec.Value) (string, error) {
		m, err := v.Moment()
		if err != nil {
			return "", err
		}
		return on(m.Date(c.env.Now, c.env.zone())), nil
	}
	switch t.Op {
	case spec.OpExists:
		return presence(value, t), nil
	case spec.OpIs, spec.OpIsNot, spec.OpIn, spec.OpNotIn:
		var parts []string
		for _, v := range t.Values {
			s, err := moment(v)
			if err != nil {
				return "", err
			}
			parts = append(parts, s)
		}
		sql := known(value + " IN (" + strings.Join(parts, ", ") + ")")
		if t.Op == spec.OpIsNot || t.Op == spec.OpNotIn {
			sql = not(sql)
		}
		return sql, nil
	case spec.OpBetween:
		lo, err := moment(t.Values[0])
		if err != nil {
			return "", err
		}
		hi, err := moment(t.Values[1])
		return known(value + " BETWEEN " + lo + " AND " + hi), err
	case spec.OpInLast:
		return known(value + " BETWEEN " + on(c.env.day(t.Duration.Neg())) + " AND " + on(c.env.day(spec.Duration{}))), nil
	case spec.OpInNext:
		return known(value + " BETWEEN " + on(c.env.day(spec.Duration{})) + " AND " + on(c.env.day(t.Duration))), nil
	case spec.OpOlderThan:
		return known(value + " < " + on(c.env.day(t.Duration.Neg()))), nil
	case spec.OpYearly:
		return c.yearly("right("+value+", 5)", t), nil
	default:
		op, ok := comparison(t.Op)
		if !ok {
			return "", fmt.Errorf("%s does not fit dates", t.Op)
		}
		s, err := moment(t.Values[0])
		return known(value + " " + op + " " + s), err
	}
}

// instant compares an instant with a moment, of which a day is all of it: gt is after its end, lte before it.
func (c *compiler) instant(value string, m spec.Moment, op spec.Op) string {
	start, end := m.In(c.env.Now, c.env.zone()), m.End(c.env.Now, c.env.zone())
	at := func(t time.Time) string { return c.arg(t, "timestamptz") }
	switch op {
	case spec.OpGt, spec.OpAfter:
		if m.WholeDay() {
			return known(value + " >= " + at(end))
		}
		return known(value + " > " + at(start))
	case spec.OpGte:
		return known(value + " >= " + at(start))
	case spec.OpLte:
		if m.WholeDay() {
			return known(value + " < " + at(end))
		}
		return known(value + " <= " + at(start))
	case spec.OpIs:
		if m.WholeDay() {
			return known(value + " >= " + at(start) + " AND " + value + " < " + at(end))
		}
		return known(value + " = " + at(start))
	default:
		return known(value + " < " + at(start)) // lt, before
	}
}

// instants are tests of points in time.
func (c *compiler) instants(value string, t spec.Test) (string, error) {
	at := func(t time.Time) string { return c.arg(t, "timestamptz") }
	from := func(d spec.Duration) string { return at(d.AddTo(c.env.Now, c.env.zone())) }
	switch t.Op {
	case spec.OpExists:
		return presence(value, t), nil
	case spec.OpIs, spec.OpIsNot, spec.OpIn, spec.OpNotIn:
		var parts []string
		for _, v := range t.Values {
			m, err := v.Moment()
			if err != nil {
				return "", err
			}
			parts = append(parts, c.instant(value, m, spec.OpIs))
		}
		sql := "(" + strings.Join(parts, " OR ") + ")"
		if t.Op == spec.OpIsNot || t.Op == spec.OpNotIn {
			sql = not(sql)
		}
		return sql, nil
	case spec.OpBetween:
		lo, err := t.Values[0].Moment()
		if err != nil {
			return "", err
		}
		hi, err := t.Values[1].Moment()
		if err != nil {
			return "", err
		}
		return "(" + c.instant(value, lo, spec.OpGte) + " AND " + c.instant(value, hi, spec.OpLte) + ")", nil
	case spec.OpInLast:
		return known(value + " BETWEEN " + from(t.Duration.Neg()) + " AND " + at(c.env.Now)), nil
	case spec.OpInNext:
		return known(value + " BETWEEN " + at(c.env.Now) + " AND " + from(t.Duration)), nil
	case spec.OpOlderThan:
		return known(value + " < " + from(t.Duration.Neg())), nil
	case spec.OpYearly:
		return c.yearly("to_char("+value+" AT TIME ZONE "+c.text(c.env.zone().String())+", 'MM-DD')", t), nil
	default:
		if _, ok := comparison(t.Op); !ok {
			return "", fmt.Errorf("%s does not fit dates", t.Op)
		}
		m, err := t.Values[0].Moment()
		if err != nil {
			return "", err
		}
		return c.instant(value, m, t.Op), nil
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

func (c *compiler) yearly(day string, t spec.Test) string {
	y := c.env.anniversaryOf(t)
	day = "(" + day + `) COLLATE "C"`
	switch {
	case y.all:
		return "(" + day + " IS NOT NULL)"
	case y.from <= y.to:
		return known(day + " BETWEEN " + c.text(y.from) + " AND " + c.text(y.to))
	}
	return known("(" + day + " >= " + c.text(y.from) + " OR " + day + " <= " + c.text(y.to) + ")")
}

// property tests a property of an event, which has no type but that of its value and of what it is compared with.
func (c *compiler) property(data string, p spec.Property) (string, error) {
	path := c.arg(strings.Split(p.Name, "."), "text[]")
	value, text := data+" #> "+path, data+" #>> "+path
	words := "nullif(" + text + ", '')"
	t := p.Test
	kind := func(k spec.ValueKind) bool { return len(t.Values) > 0 && t.Values[0].Kind == k }
	switch t.Op {
	case spec.OpExists:
		return presence("nullif(nullif("+text+", ''), '[]')", t), nil
	case spec.OpHasAny, spec.OpHasAll, spec.OpHasNone:
		return c.set(elements(value), t)
	case spec.OpIs, spec.OpIn, spec.OpIsNot, spec.OpNotIn:
		var parts []string
		for _, v := range t.Values {
			one := spec.Test{Op: spec.OpIs, Values: []spec.Value{v}}
			sql, err := c.words(words, one)
			if err != nil {
				return "", err
			}
			if v.Kind == spec.NumberValue { // 5 is 5.0; and "5", as it was written
				n, err := c.numbers(asNumber(value), one)
				if err != nil {
					return "", err
				}
				sql = "(" + sql + " OR " + n + ")"
			}
			parts = append(parts, sql)
		}
		sql := "(" + strings.Join(parts, " OR ") + ")"
		if t.Op == spec.OpIsNot || t.Op == spec.OpNotIn {
			sql = not(sql)
		}
		return sql, nil
	case spec.OpContains, spec.OpStartsWith, spec.OpEndsWith, spec.OpMatches:
		return c.words(words, t)
	default:
		if kind(spec.NumberValue) {
			return c.numbers(asLooseNumber(value, text), t)
		}
		days, err := c.dates(asDate(text), t)
		if err != nil {
			return "", err
		}
		instants, err := c.instants(asInstant(text), t)
		if err != nil {
			return "", err
		}
		return "(" + days + " OR " + instants + ")", nil
	}
}
