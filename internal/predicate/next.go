package predicate

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/spec"
)

// Up to so many contacts, or facts or deliveries, are read to find the next change exactly.
const fewContacts, fewFacts = 20_000, 100_000

// NextChange is the earliest time after env.Now at which time alone may change the predicate's answer for any contact, as things stand: postgres.Never when it will not.
// It may be early, and is never late, but for one case: where a property of an event is compared with the present, it is looked at again after a hundredth of the window, at least a
// minute and at most an hour.
//
// only, when not nil, are the contacts that are asked about. Else little is read however many there are: of what happened that which a bound will pass soon, and where it
// will pass nothing within a day, that is when to ask again; of dates nothing but the calendar, since bounds pass these at midnight.
func NextChange(ctx context.Context, tx *postgres.Tx, p *spec.Predicate, env Env, only []int64) (time.Time, error) {
	return nextOf(ctx, tx, p, env, only, fewContacts, fewFacts)
}

func nextOf(ctx context.Context, tx *postgres.Tx, p *spec.Predicate, env Env, only []int64, fewContacts, fewFacts int64) (time.Time, error) {
	n := &nextChange{tx: tx, env: env, only: only, fewContacts: fewContacts, fewFacts: fewFacts, at: postgres.Never}
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
	tx                    *postgres.Tx
	env                   Env
	only                  []int64
	fewContacts, fewFacts int64
	at                    time.Time
}

// many tells whether there are more of them, by ids that SQL counts from the least to the greatest, than are read for this.
func (n *nextChange) many(ctx context.Context, few int64, ids string) (many bool, err error) {
	if n.only != nil { // an index finds what they have
		return false, nil
	}
	err = n.tx.QueryRow(ctx, "SELECT coalesce("+ids+", 0) > $1", few).Scan(&many)
	return many, err
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

// windows are how far ahead of a bound what it will pass is looked for, one after the other until something is found.
func windows() []time.Duration {
	return []time.Duration{time.Minute, 10 * time.Minute, 2 * time.Hour, 24 * time.Hour}
}

// soon finds when the bound will pass the first of many that are found by time: at is an expression of from, which ends in WHERE and conditions. It is the end of the last window when there is none in it.
func (n *nextChange) soon(ctx context.Context, b bound, from, at string, c *compiler) error {
	now := b(n.env.Now)
	args := append([]any{now}, c.args...)
	var parts []string
	for _, w := range windows() {
		parts = append(parts, fmt.Sprintf("(SELECT min(%[1]s) %[2]s AND %[1]s BETWEEN $1 AND $%[3]d)", at, from, len(args)+1))
		args = append(args, now.Add(w))
	}
	var first *time.Time
	if err := n.tx.QueryRow(ctx, "SELECT coalesce("+strings.Join(parts, ", ")+")", args...).Scan(&first); err != nil { // each is asked only when the one before it has none
		return err
	}
	if first == nil {
		last := now.Add(windows()[len(windows())-1])
		first = &last
	}
	n.crosses(b, *first, time.Microsecond)
	return nil
}

func (n *nextChange) field(ctx context.Context, f *spec.FieldTest) error {
	typ, _ := n.env.fieldType(f.Field)
	if typ != spec.TypeDate && typ != spec.TypeDatetime {
		return nil
	}
	day := typ == spec.TypeDate
	bounds := n.env.bounds(f.Test, day)
	if len(bounds) == 0 && f.Op != spec.OpYearly {
		return nil
	}
	many, err := n.many(ctx, n.fewContacts, "(SELECT max(id) - min(id) FROM contact)")
	if err != nil {
		return err
	}
	if many {
		return n.fieldOfMany(ctx, f, bounds, day)
	}
	c := &compiler{env: n.env, first: 2}
	value := "c.created_at"
	if f.Field != "created" {
		text := c.stored(f.Field)
		if value = asInstant(text); day {
			value = "(CASE WHEN " + text + " ~ '" + dateForm + "$' THEN " + text + " END)"
		}
	}
	if f.Op == spec.OpYearly {
		return n.yearly(ctx, f.Test, value, day, c)
	}
	sql := "SELECT min(" + value + ") FROM contact c WHERE " + value + " >= $1" + n.of(c, "c.id")
	for _, b := range bounds {
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

// fieldOfMany reads no contacts, but by an index.
func (n *nextChange) fieldOfMany(ctx context.Context, f *spec.FieldTest, bounds []bound, day bool) error {
	if f.Op == spec.OpYearly {
		return n.yearly(ctx, f.Test, "", day, nil)
	}
	indexed := f.Field == "created"
	if !day && !indexed {
		err := n.tx.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_index i WHERE i.indrelid = 'contact'::regclass AND i.indisvalid AND pg_get_expr(i.indexprs, i.indrelid) LIKE '%(fields ->> ' || quote_literal($1) || '::text)%')`,
			f.Field).Scan(&indexed)
		if err != nil {
			return err
		}
	}
	for _, b := range bounds {
		c := &compiler{env: n.env, first: 2}
		switch {
		case day: // when it will be the next
			n.crosses(b, b(n.env.Now), 24*time.Hour)
		case f.Field == "created":
			if err := n.soon(ctx, b, "FROM contact c WHERE true", "c.created_at", c); err != nil {
				return err
			}
		case indexed:
			value := c.stored(f.Field)
			var first *time.Time
			err := n.tx.QueryRow(ctx, "SELECT (SELECT "+asInstant(value)+" FROM contact c WHERE "+value+" >= $1 AND "+value+" < '9999' AND "+value+" LIKE '"+storedInstant+"' ORDER BY "+value+" LIMIT 1)",
				append([]any{b(n.env.Now).UTC().Format(time.RFC3339)}, c.args...)...).Scan(&first)
			if err != nil {
				return err
			}
			if first != nil {
				n.crosses(b, *first, time.Microsecond)
			}
		default:
			n.candidate(n.env.Now.Add(windows()[0]))
		}
	}
	return nil
}

// yearly goes through the coming year, as the window of anniversaries moves on over the days that contacts have; over any day, when value is empty.
func (n *nextChange) yearly(ctx context.Context, t spec.Test, value string, day bool, c *compiler) error {
	var days []string
	if value != "" {
		month := "right(" + value + ", 5)"
		if !day {
			month = "to_char(" + value + " AT TIME ZONE " + c.text(n.env.zone().String()) + ", 'MM-DD')"
		}
		rows, err := n.tx.Query(ctx, "SELECT DISTINCT "+month+" FROM contact c WHERE $1::int = 0 AND "+value+" IS NOT NULL"+n.of(c, "c.id"), append([]any{0}, c.args...)...)
		if err != nil {
			return err
		}
		if days, err = pgx.CollectRows(rows, pgx.RowTo[string]); err != nil || len(days) == 0 {
			return err
		}
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
		if value == "" || slices.ContainsFunc(days, func(d string) bool { return now.has(d) != then.has(d) }) {
			n.candidate(env.Now)
			return nil
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
	ids := "(SELECT max(id) - min(id) FROM fact)"
	if _, ok := deliveryState(t.Event); ok { // a batch has 512 ids, however few its recipients are
		ids = "(SELECT (max(id) - min(id)) >> 9 FROM delivery) * 500"
	}
	many, err := n.many(ctx, n.fewFacts, ids)
	if err != nil {
		return err
	}
	for _, b := range bounds {
		c := &compiler{env: n.env, first: 2}
		from, at, contact := c.anyones(t)
		if many {
			if err := n.soon(ctx, b, from, at, c); err != nil {
				return err
			}
			continue
		}
		from += n.of(c, contact)
		var first *time.Time
		if err := n.tx.QueryRow(ctx, "SELECT min("+at+") "+from+" AND "+at+" >= $1", append([]any{b(n.env.Now)}, c.args...)...).Scan(&first); err != nil {
			return err
		}
		if first != nil {
			n.crosses(b, *first, time.Microsecond)
		}
	}
	if !moving {
		return nil
	}
	some := many
	if !many {
		c := &compiler{env: n.env, first: 2}
		from, _, contact := c.anyones(t)
		from += n.of(c, contact)
		if err := n.tx.QueryRow(ctx, "SELECT $1::int = 0 AND EXISTS (SELECT "+from+")", append([]any{0}, c.args...)...).Scan(&some); err != nil {
			return err
		}
	}
	if some {
		n.candidate(n.env.Now.Add(period))
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
