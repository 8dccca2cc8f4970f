package predicate

import (
	"fmt"
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

// yearly finds those whose day of the year came into the window of anniversaries or went out of it.
func (x *crossing) yearly(t *spec.FieldTest, typ spec.FieldType) {
	env := x.env
	at := func(now time.Time) anniversary {
		env.Now = now
		return env.anniversaryOf(t.Test)
	}
	days := map[string]bool{}
	leap := time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC)
	was := at(x.from)
	compare := func(now time.Time) {
		is := at(now)
		for i := 0; is != was && i < 366; i++ {
			day := leap.AddDate(0, 0, i)
			if d := day.Format("01-02"); was.has(d) != is.has(d) {
				days[d] = true
				if typ != spec.TypeDate { // stored in UTC, where it may be the day before or after
					days[day.AddDate(0, 0, -1).Format("01-02")], days[day.AddDate(0, 0, 1).Format("01-02")] = true, true
				}
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
	if len(days) == 0 {
		return
	}
	list := make([]string, 0, len(days))
	for d := range days {
		list = append(list, d)
	}
	of := "to_char(c.created_at AT TIME ZONE 'UTC', 'MM-DD')"
	if t.Field != "created" {
		of = "substr(c.fields->>" + x.text(t.Field) + ", 6, 5)"
	}
	x.add("SELECT c.id AS contact FROM contact c WHERE " + of + " = ANY (" + x.arg(list, "text[]") + ")")
}

func (x *crossing) event(t *spec.EventTest) {
	var bounds []bound
	if t.Within != nil {
		bounds = append(bounds, func(now time.Time) time.Time { return t.Within.Neg().AddTo(now, x.env.zone()) },
			func(now time.Time) time.Time { return now }) // an event may bear a time to come
	}
	if t.Between != nil {
		bounds = append(bounds, x.env.bounds(spec.Test{Op: spec.OpBetween, Values: t.Between[:]}, false)...)
	}
	for _, b := range bounds {
		if lo, hi, moved := x.passed(b); moved {
			from, at, contact := x.anyones(t)
			x.add("SELECT " + contact + " AS contact " + from + " AND " + at + " BETWEEN " + x.between(lo, hi))
		}
	}
	for _, p := range t.Where {
		if p.Op == spec.OpYearly {
			from, _, contact := x.anyones(t)
			x.add("SELECT " + contact + " AS contact " + from)
			continue
		}
		for _, b := range x.env.bounds(p.Test, false) {
			if lo, hi, moved := x.passed(b); moved { // to the day, in whatever zone
				from, _, contact := x.anyones(t)
				x.add("SELECT " + contact + " AS contact " + from + " AND (f.data #>> " + x.arg(strings.Split(p.Name, "."), "text[]") + `) COLLATE "C" BETWEEN ` +
					x.text(lo.AddDate(0, 0, -2).Format(isoDate)) + " AND " + x.text(hi.AddDate(0, 0, 3).Format(isoDate)))
			}
		}
	}
}
