package predicate

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/onda-run/onda/internal/spec"
)

// Crossing makes a SELECT of the contacts (one column, contact: a bigint that may come more than once) whose answer may not have been the same all the time from one moment to a
// later one, because of time alone: those with a value, or something that happened, that a moving bound passed. SQL is empty where time changes nothing. It reads by the indexes on
// when things happened and on values, where there are any, and so little more than what the bounds passed.
//
// Dates are looked for in the form in which they are stored (package fieldvalue). Parameters are numbered as in Compile; env.Now and env.Scope are not read.
func Crossing(p *spec.Predicate, env Env, from, to time.Time) (Query, error) {
	x := &crossing{compiler: compiler{env: env, first: max(env.First, 1)}, from: from, to: to}
	var err error
	p.Walk(func(q *spec.Predicate) {
		if err != nil {
			return
		}
		switch {
		case q.Field != nil:
			err = x.field(q.Field)
		case q.Event != nil:
			x.event(q.Event)
		case q.Reachable != "":
			x.add("SELECT s.contact FROM suppression s WHERE s.contact IS NOT NULL AND s.until < 'infinity' AND s.until BETWEEN " + x.between(from, to))
		}
	})
	if err != nil {
		return Query{}, err
	}
	return Query{SQL: strings.Join(x.parts, " UNION ALL "), Args: x.args}, nil
}

type crossing struct {
	compiler
	from, to time.Time
	parts    []string
}

func (x *crossing) add(sql string) { x.parts = append(x.parts, sql) }

// between are two parameters for BETWEEN.
func (x *crossing) between(lo, hi time.Time) string {
	return x.arg(lo, "timestamptz") + " AND " + x.arg(hi.Add(time.Microsecond), "timestamptz") // Postgres has whole ones
}

// passed gives the least and the greatest that a bound is between the two moments: false when it stays where it is.
func (x *crossing) passed(b bound) (lo, hi time.Time, moved bool) {
	lo = b(x.from)
	hi = lo
	see := func(t time.Time) {
		if t.After(x.to) || t.Before(x.from) {
			return
		}
		if v := b(t); v.Before(lo) {
			lo = v
		} else if v.After(hi) {
			hi = v
		}
	}
	see(x.to)
	// A month before the 30th and before the 31st of March is the 28th of February, so that a bound may go back at midnight; by less than four days.
	loc := x.env.zone()
	for _, around := range []time.Time{x.from, x.to} {
		for days := -5; days <= 5; days++ {
			y, m, d := around.In(loc).Date()
			midnight := time.Date(y, m, d+days, 0, 0, 0, 0, loc)
			see(midnight.Add(-time.Microsecond))
			see(midnight)
		}
	}
	// Where clocks change, here or there, it may go back by as much.
	const change = 3 * time.Hour
	for _, t := range []time.Time{x.from, x.to, lo, hi} {
		_, before := t.Add(-change).In(loc).Zone()
		_, after := t.Add(change).In(loc).Zone()
		if before != after {
			return lo.Add(-change), hi.Add(change), true
		}
	}
	return lo, hi, !lo.Equal(hi)
}

func (x *crossing) field(t *spec.FieldTest) error {
	typ, ok := x.env.fieldType(t.Field)
	if !ok {
		return fmt.Errorf("there is no field %q", t.Field)
	}
	if typ != spec.TypeDate && typ != spec.TypeDatetime {
		return nil
	}
	if t.Op == spec.OpYearly {
		x.yearly(t, typ)
		return nil
	}
	for _, b := range x.env.bounds(t.Test, typ == spec.TypeDate) {
		lo, hi, moved := x.passed(b)
		switch {
		case !moved:
		case t.Field == "created":
			x.add("SELECT c.id AS contact FROM contact c WHERE c.created_at BETWEEN " + x.between(lo, hi))
		case typ == spec.TypeDate:
			x.add("SELECT c.id AS contact FROM contact c WHERE " + x.stored(t.Field) + " BETWEEN " + x.text(lo.Format(isoDate)) + " AND " + x.text(hi.Format(isoDate)))
		default: // whole seconds; without the Z it is before all that begin so
			x.add("SELECT c.id AS contact FROM contact c WHERE " + x.stored(t.Field) + " BETWEEN " + x.text(lo.UTC().Format("2006-01-02T15:04:05")) + " AND " +
				x.text(hi.UTC().Add(time.Second).Format(time.RFC3339)))
		}
	}
	return nil
}

// daysOf are the days of the year (MM-DD) that came into the window of anniversaries or went out of it, with those that a value may have instead whose date is in another zone: up to so many days beside.
func (x *crossing) daysOf(t spec.Test, beside int) []string {
	env := x.env
	at := func(now time.Time) anniversary {
		env.Now = now
		return env.anniversaryOf(t)
	}
	days := map[string]bool{}
	leap := time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC)
	was := at(x.from)
	compare := func(now time.Time) {
		is := at(now)
		for i := 0; is != was && i < 366; i++ {
			day := leap.AddDate(0, 0, i)
			if d := day.Format("01-02"); was.has(d) == is.has(d) {
				continue
			}
			for n := -beside; n <= beside; n++ {
				days[day.AddDate(0, 0, n).Format("01-02")] = true
			}
		}
		was = is
	}
	y, m, d := x.from.In(env.zone()).Date()
	for i := 1; i <= 367; i++ {
		midnight := time.Date(y, m, d+i, 0, 0, 0, 0, env.zone())
		if !midnight.Before(x.to) {
			break
		}
		compare(midnight)
	}
	compare(x.to)
	return slices.Sorted(maps.Keys(days))
}

// yearly finds those whose day of the year came into the window of anniversaries or went out of it.
func (x *crossing) yearly(t *spec.FieldTest, typ spec.FieldType) {
	beside := 0
	if typ != spec.TypeDate { // stored in UTC, where it may be the day before or after; of the 1st of March that is the 28th of February, two days of a leap year away
		beside = 2
	}
	list := x.daysOf(t.Test, beside)
	if len(list) == 0 {
		return
	}
	of := "to_char(c.created_at AT TIME ZONE 'UTC', 'MM-DD')"
	if t.Field != "created" {
		of = "substr(c.fields->>" + x.text(t.Field) + ", 6, 5)"
	}
	x.add("SELECT c.id AS contact FROM contact c WHERE " + of + " = ANY (" + x.arg(list, "text[]") + ")")
}

func (x *crossing) event(t *spec.EventTest) {
	// Only what happened between low and high counts at any of the moments; nil is without an end.
	var low, high *time.Time
	narrow := func(to time.Time, lower bool) {
		switch {
		case lower && (low == nil || to.After(*low)):
			low = &to
		case !lower && (high == nil || to.Before(*high)):
			high = &to
		}
	}
	pass := func(b bound, lower, upper bool) {
		lo, hi, moved := x.passed(b)
		if lower {
			narrow(lo, true)
		}
		if upper {
			narrow(hi, false)
		}
		if moved {
			from, at, contact := x.anyones(t)
			x.add("SELECT " + contact + " AS contact " + from + " AND " + at + " BETWEEN " + x.between(lo, hi))
		}
	}
	if t.Within != nil {
		pass(func(now time.Time) time.Time { return t.Within.Neg().AddTo(now, x.env.zone()) }, true, false)
		pass(func(now time.Time) time.Time { return now }, false, true) // an event may bear a time to come
	}
	if t.Between != nil {
		for i, v := range t.Between {
			m, err := v.Moment()
			switch {
			case err != nil: // Compile says so
			case m.Relative():
				pass(func(now time.Time) time.Time { return m.In(now, x.env.zone()) }, i == 0, false)
				pass(func(now time.Time) time.Time { return m.End(now, x.env.zone()) }, false, i == 1)
			case i == 0:
				narrow(m.In(x.from, x.env.zone()), true)
			default:
				narrow(m.End(x.from, x.env.zone()), false)
			}
		}
	}
	for _, p := range t.Where {
		text := func() string { return "(f.data #>> " + x.arg(strings.Split(p.Name, "."), "text[]") + ")" }
		one := func(condition func() string) {
			from, at, contact := x.anyones(t)
			sql := "SELECT " + contact + " AS contact " + from
			if low != nil {
				sql += " AND " + at + " >= " + x.arg(*low, "timestamptz")
			}
			if high != nil {
				sql += " AND " + at + " <= " + x.arg(high.Add(time.Microsecond), "timestamptz") // Postgres has whole ones
			}
			x.add(sql + " AND " + condition())
		}
		if p.Op == spec.OpYearly {
			// In whatever zone: their clocks are up to 29 hours from others', and so two days, which about the 29th of February may be three of a leap year.
			if list := x.daysOf(p.Test, 3); len(list) > 0 {
				one(func() string { return "substr(" + text() + ", 6, 5) = ANY (" + x.arg(list, "text[]") + ")" })
			}
			continue
		}
		for _, b := range x.env.bounds(p.Test, false) {
			if lo, hi, moved := x.passed(b); moved { // to the day, in whatever zone
				one(func() string {
					return text() + ` COLLATE "C" BETWEEN ` + x.text(lo.AddDate(0, 0, -2).Format(isoDate)) + " AND " + x.text(hi.AddDate(0, 0, 3).Format(isoDate))
				})
			}
		}
	}
}
