package predicate

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/spec"
)

// manyFacts is from how many on the next change is not looked up among facts, but assumed to come soon.
const manyFacts = 1_000_000

// NextChange is the earliest time after env.Now at which time alone may change the predicate's answer for any contact, as things stand: postgres.Never when it will not.
// It may be early, never late, but for one case: with more than a million facts, an event's window is looked at again after a
// hundredth of its length, at least a minute and at most an hour. It reads all contacts (or facts) that have the value in question, once for each bound that moves.
//
// only, when not nil, are the contacts that are asked about.
func NextChange(ctx context.Context, tx *postgres.Tx, p *spec.Predicate, env Env, only []int64) (time.Time, error) {
	n := &nextChange{tx: tx, env: env, only: only, at: postgres.Never}
	var err error
	p.Walk(func(q *spec.Predicate) {
		if err != nil {
			return
		}
		switch {
		case q.Field != nil:
			err = n.field(ctx, q.Field)
		case q.Event != nil:
			err = n.event(ctx, q.Event)
		case q.Reachable != "":
			c := &compiler{env: env, first: 2}
			err = n.earliest(ctx, "SELECT min(s.until) FROM suppression s WHERE s.until > $1 AND s.until < 'infinity'"+n.of(c, "s.contact"), append([]any{env.Now}, c.args...)...)
		}
	})
	if err != nil {
		return postgres.Never, fmt.Errorf("look for the next change: %w", err)
	}
	return n.at, nil
}

type nextChange struct {
	tx   *postgres.Tx
	env  Env
	only []int64
	at   time.Time
}

// of is the condition that a row is of one of the contacts asked about.
func (n *nextChange) of(c *compiler, contact string) string {
	if n.only == nil {
		return ""
	}
	return " AND " + contact + " = ANY (" + c.arg(n.only, "bigint[]") + ")"
}

func (n *nextChange) candidate(t time.Time) {
	if t.After(n.env.Now) && t.Before(n.at) {
		n.at = t
	}
}

// earliest takes a time that SQL gives as it is.
func (n *nextChange) earliest(ctx context.Context, sql string, args ...any) error {
	var t *time.Time
	if err := n.tx.QueryRow(ctx, sql, args...).Scan(&t); err != nil {
		return err
	}
	if t != nil {
		n.candidate(*t)
	}
	return nil
}

// bound is something that values are compared with and that moves on with time.
type bound func(now time.Time) time.Time

// bounds gives those of a test of a date; day: of dates without a zone.
func (env Env) bounds(t spec.Test, day bool) []bound {
	loc := env.zone()
	of := func(d spec.Duration) bound {
		return func(now time.Time) time.Time {
			if day {
				return dateIn(d.AddTo(now, loc), loc)
			}
			return d.AddTo(now, loc)
		}
	}
	switch t.Op {
	case spec.OpInLast:
		return []bound{of(t.Duration.Neg()), of(spec.Duration{})}
	case spec.OpInNext:
		return []bound{of(spec.Duration{}), of(t.Duration)}
	case spec.OpOlderThan:
		return []bound{of(t.Duration.Neg())}
	case spec.OpExists, spec.OpYearly:
		return nil
	default:
		var out []bound
		for _, v := range t.Values {
			if v.Kind != spec.TextValue {
				continue
			}
			m, err := v.Moment()
			if err != nil || !m.Relative() {
				continue
			}
			if day {
				out = append(out, func(now time.Time) time.Time { return m.Date(now, loc) })
				continue
			}
			out = append(out, func(now time.Time) time.Time { return m.In(now, loc) }, func(now time.Time) time.Time { return m.End(now, loc) })
		}
		return out
	}
}

// crosses finds when the bound will first pass a value: first is the earliest value at or after where it is now, step the smallest distance between two.
func (n *nextChange) crosses(b bound, first time.Time, step time.Duration) {
	target := first
	if !first.After(b(n.env.Now)) {
		target = b(n.env.Now).Add(step)
	}
	low, high := n.env.Now, n.env.Now.Add(max(target.Sub(b(n.env.Now)), 0)+96*time.Hour)
	for b(high).Before(target) {
		high = high.Add(30 * 24 * time.Hour)
	}
	for high.Sub(low) > time.Nanosecond { // times are whole microseconds: high is exact at the end
		if mid := low.Add(high.Sub(low) / 2); b(mid).Before(target) {
			low = mid
		} else {
			high = mid
		}
	}
	n.candidate(high.Add(time.Microsecond - 1).Truncate(time.Microsecond))
}

func (n *nextChange) field(ctx context.Context, f *spec.FieldTest) error {
	typ, _ := n.env.fieldType(f.Field)
	if typ != spec.TypeDate && typ != spec.TypeDatetime {
		return nil
	}
	day := typ == spec.TypeDate
	c := &compiler{env: n.env, first: 2}
	value := "c.created_at"
	if f.Field != "created" {
		text := "c.fields->>" + c.text(f.Field)
		if value = asInstant(text); day {
			value = "(CASE WHEN " + text + " ~ '" + dateForm + "$' THEN " + text + ` END COLLATE "C")`
		}
	}
	if f.Op == spec.OpYearly {
		return n.yearly(ctx, f.Test, value, day, c)
	}
	sql := "SELECT min(" + value + ") FROM contact c WHERE " + value + " >= $1" + n.of(c, "c.id")
	for _, b := range n.env.bounds(f.Test, day) {
		at := b(n.env.Now)
		var first time.Time
		var err error
		if day {
			var s *string
			err = n.tx.QueryRow(ctx, sql, append([]any{at.Format(isoDate)}, c.args...)...).Scan(&s)
			if err == nil && s != nil {
				first, err = time.Parse(isoDate, *s)
			}
		} else {
			var t *time.Time
			err = n.tx.QueryRow(ctx, sql, append([]any{at}, c.args...)...).Scan(&t)
			if t != nil {
				first = *t
			}
		}
		if err != nil {
			return err
		}
		step := time.Microsecond
		if day {
			step = 24 * time.Hour
		}
		if !first.IsZero() {
			n.crosses(b, first, step)
		}
	}
	return nil
}

// yearly goes through the coming year, as the window of anniversaries moves on over the days that contacts have.
func (n *nextChange) yearly(ctx context.Context, t spec.Test, value string, day bool, c *compiler) error {
	month := "right(" + value + ", 5)"
	if !day {
		month = "to_char(" + value + " AT TIME ZONE " + c.text(n.env.zone().String()) + ", 'MM-DD')"
	}
	rows, err := n.tx.Query(ctx, "SELECT DISTINCT "+month+" FROM contact c WHERE $1::int = 0 AND "+value+" IS NOT NULL"+n.of(c, "c.id"), append([]any{0}, c.args...)...)
	if err != nil {
		return err
	}
	days, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil || len(days) == 0 {
		return err
	}
	now := n.env.anniversaryOf(t)
	if now.all {
		return nil
	}
	env := n.env
	was := now
	env.Now = n.env.Now.Truncate(15 * time.Minute)
	for range 367 * 24 * 4 {
		env.Now = env.Now.Add(15 * time.Minute) // midnights are at quarters of an hour, everywhere
		then := env.anniversaryOf(t)
		if then == was {
			continue
		}
		was = then
		for _, d := range days {
			if now.has(d) != then.has(d) {
				n.candidate(env.Now)
				return nil
			}
		}
	}
	return nil
}

func (y anniversary) has(day string) bool {
	if y.from <= y.to {
		return day >= y.from && day <= y.to
	}
	return day >= y.from || day <= y.to
}

func (n *nextChange) event(ctx context.Context, t *spec.EventTest) error {
	var bounds []bound
	period := time.Hour
	if t.Within != nil {
		back := t.Within.Neg()
		bounds = append(bounds, func(now time.Time) time.Time { return back.AddTo(now, n.env.zone()) },
			func(now time.Time) time.Time { return now }) // an event may bear a time to come
		period = min(max(t.Within.Approx()/100, time.Minute), time.Hour)
	}
	if t.Between != nil {
		bounds = append(bounds, n.env.bounds(spec.Test{Op: spec.OpBetween, Values: t.Between[:]}, false)...)
	}
	moving := false
	for _, p := range t.Where {
		moving = moving || len(n.env.bounds(p.Test, false)) > 0 || p.Op == spec.OpYearly
	}
	if len(bounds) == 0 && !moving {
		return nil
	}
	c := &compiler{env: n.env, first: 2}
	from, at, contact := c.anyones(t)
	from += n.of(c, contact)
	var big bool
	if n.only == nil { // an index finds the events of a contact
		many := "SELECT coalesce(max(id) - min(id), 0) > $1 FROM fact"
		if at == "d.at" {
			many = "SELECT coalesce((max(id) - min(id)) >> 9, 0) * 500 > $1 FROM delivery"
		}
		if err := n.tx.QueryRow(ctx, many, manyFacts).Scan(&big); err != nil {
			return err
		}
	}
	for _, b := range bounds {
		var first *time.Time
		if !big {
			if err := n.tx.QueryRow(ctx, "SELECT min("+at+") "+from+" AND "+at+" >= $1", append([]any{b(n.env.Now)}, c.args...)...).Scan(&first); err != nil {
				return err
			}
			if first != nil {
				n.crosses(b, *first, time.Microsecond)
			}
			continue
		}
		n.candidate(n.env.Now.Add(period))
	}
	if moving {
		var some bool
		if err := n.tx.QueryRow(ctx, "SELECT $1::int = 0 AND EXISTS (SELECT "+from+")", append([]any{0}, c.args...)...).Scan(&some); err != nil {
			return err
		}
		if some {
			n.candidate(n.env.Now.Add(period))
		}
	}
	return nil
}

// anyones is where the events of a kind are, whoever's they are: FROM and WHERE, and the expressions for when and whose.
func (c *compiler) anyones(t *spec.EventTest) (from, at, contact string) {
	if state, ok := deliveryState(t.Event); ok {
		return "FROM delivery d" + c.deliveries(state, t.Of), "d.at", "d.contact"
	}
	kind, name := factOf(t)
	from, contact = "FROM fact f WHERE f.contact IS NOT NULL", "f.contact"
	if inSets(t.Event) {
		from, contact = "FROM fact f CROSS JOIN LATERAL unnest(coalesce(f.contacts, ARRAY[f.contact])) u(contact) WHERE u.contact IS NOT NULL", "u.contact"
	}
	from += " AND f.kind = " + c.text(kind)
	if name != "" {
		from += " AND f.name = " + c.text(name)
	}
	return from, "f.at", contact
}
