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
	n := &nextChange{env: env, only: only, fewContacts: fewContacts, fewFacts: fewFacts, at: postgres.Never}
	n.ask = func(sql string, args []any, read func(pgx.Rows) error) error {
		rows, err := tx.Query(ctx, sql, args...)
		if err != nil {
			return err
		}
		defer rows.Close()
		return read(rows)
	}
	if err := n.walk(p); err != nil {
		return postgres.Never, fmt.Errorf("look for the next change: %w", err)
	}
	return n.at, nil
}

// Ask has SQL asked, now or later, and its rows read.
type Ask func(sql string, args []any, read func(pgx.Rows) error)

// AskNextChange is NextChange for some contacts, who are not nil, in one round trip with whatever else is asked: at is what it gives, once all that it asks for is read.
func AskNextChange(p *spec.Predicate, env Env, only []int64, ask Ask) (at func() time.Time, err error) {
	n := &nextChange{env: env, only: only, at: postgres.Never}
	n.ask = func(sql string, args []any, read func(pgx.Rows) error) error {
		ask(sql, args, read)
		return nil
	}
	if err := n.walk(p); err != nil {
		return nil, fmt.Errorf("look for the next change: %w", err)
	}
	return func() time.Time { return n.at }, nil
}

func (n *nextChange) walk(p *spec.Predicate) (err error) {
	p.Walk(func(q *spec.Predicate) {
		if err != nil {
			return
		}
		switch {
		case q.Field != nil:
			err = n.field(q.Field)
		case q.Event != nil:
			err = n.event(q.Event)
		case q.Reachable != "":
			c := &compiler{env: n.env, first: 2}
			err = n.first("SELECT min(s.until) FROM suppression s WHERE s.until > $1 AND s.until < 'infinity'"+n.of(c, "s.contact"), append([]any{n.env.Now}, c.args...), n.candidate)
		}
	})
	return err
}

type nextChange struct {
	// ask may answer later where only is not nil: what is asked then depends on no answer.
	ask                   func(sql string, args []any, read func(pgx.Rows) error) error
	env                   Env
	only                  []int64
	fewContacts, fewFacts int64
	at                    time.Time
}

// many tells whether there are more of them, by ids that SQL counts from the least to the greatest, than are read for this.
func (n *nextChange) many(few int64, ids string) (many bool, err error) {
	if n.only != nil { // an index finds what they have
		return false, nil
	}
	err = n.tells("SELECT coalesce("+ids+", 0) > $1", []any{few}, func(is bool) { many = is })
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

// first has the time that SQL gives taken, unless it gives none.
func (n *nextChange) first(sql string, args []any, take func(time.Time)) error {
	return n.ask(sql, args, func(rows pgx.Rows) error {
		t, err := pgx.CollectExactlyOneRow(rows, pgx.RowTo[*time.Time])
		if err == nil && t != nil {
			take(*t)
		}
		return err
	})
}

// tells has what SQL says taken.
func (n *nextChange) tells(sql string, args []any, take func(is bool)) error {
	return n.ask(sql, args, func(rows pgx.Rows) error {
		is, err := pgx.CollectExactlyOneRow(rows, pgx.RowTo[bool])
		if err == nil {
			take(is)
		}
		return err
	})
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
	last := passes(b, target, low, high)
	n.candidate(whole(last))
	// A month before the 29th, the 30th and the 31st of March is the 28th of February each time: the bound goes back at these midnights, and may have passed it on a day before.
	y, m, d := last.In(n.env.zone()).Date()
	for day := -5; day <= 0; day++ {
		from, to := time.Date(y, m, d+day, 0, 0, 0, 0, n.env.zone()), time.Date(y, m, d+day+1, 0, 0, 0, 0, n.env.zone()).Add(-time.Microsecond)
		if from.Before(low) {
			from = low
		}
		if from.Before(to) && !b(to).Before(target) {
			n.candidate(whole(passes(b, target, from, to)))
			return
		}
	}
}

// passes finds when between two moments the bound, which goes on between them, comes to the target: low where it is there already.
func passes(b bound, target, low, high time.Time) time.Time {
	if !b(low).Before(target) {
		return low
	}
	for high.Sub(low) > time.Nanosecond { // times are whole microseconds: high is exact at the end
		if mid := low.Add(high.Sub(low) / 2); b(mid).Before(target) {
			low = mid
		} else {
			high = mid
		}
	}
	return high
}

func whole(t time.Time) time.Time { return t.Add(time.Microsecond - 1).Truncate(time.Microsecond) }

// windows are how far ahead of a bound what it will pass is looked for, one after the other until something is found.
func windows() []time.Duration {
	return []time.Duration{time.Minute, 10 * time.Minute, 2 * time.Hour, 24 * time.Hour}
}

// soon finds when the bound will pass the first of many that are found by time: at is an expression of from, which ends in WHERE and conditions. It is the end of the last window when there is none in it.
func (n *nextChange) soon(b bound, from, at string, c *compiler) error {
	now := b(n.env.Now)
	args := append([]any{now}, c.args...)
	var parts []string
	for _, w := range windows() {
		parts = append(parts, fmt.Sprintf("(SELECT min(%[1]s) %[2]s AND %[1]s BETWEEN $1 AND $%[3]d)", at, from, len(args)+1))
		args = append(args, now.Add(w))
	}
	first := now.Add(windows()[len(windows())-1])
	err := n.first("SELECT coalesce("+strings.Join(parts, ", ")+")", args, func(t time.Time) { first = t }) // each is asked only when the one before it has none
	if err != nil {
		return err
	}
	n.crosses(b, first, time.Microsecond)
	return nil
}

func (n *nextChange) field(f *spec.FieldTest) error {
	typ, _ := n.env.fieldType(f.Field)
	if typ != spec.TypeDate && typ != spec.TypeDatetime {
		return nil
	}
	day := typ == spec.TypeDate
	bounds := n.env.bounds(f.Test, day)
	if len(bounds) == 0 && f.Op != spec.OpYearly {
		return nil
	}
	many, err := n.many(n.fewContacts, "(SELECT max(id) - min(id) FROM contact)")
	if err != nil {
		return err
	}
	if many {
		return n.fieldOfMany(f, bounds, day)
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
		return n.yearlyOfFew(f.Test, value, day, c)
	}
	sql := "SELECT min(" + value + ") FROM contact c WHERE " + value + " >= $1" + n.of(c, "c.id")
	for _, b := range bounds {
		at := b(n.env.Now)
		if day {
			err = n.ask(sql, append([]any{at.Format(isoDate)}, c.args...), func(rows pgx.Rows) error {
				first, err := pgx.CollectExactlyOneRow(rows, pgx.RowTo[*string])
				if err != nil || first == nil {
					return err
				}
				t, err := time.Parse(isoDate, *first)
				if err == nil {
					n.crosses(b, t, 24*time.Hour)
				}
				return err
			})
		} else {
			err = n.first(sql, append([]any{at}, c.args...), func(t time.Time) { n.crosses(b, t, time.Microsecond) })
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// firstFew are read of the values that come next.
const firstFew = 100

// fieldOfMany reads no contacts, but by an index.
func (n *nextChange) fieldOfMany(f *spec.FieldTest, bounds []bound, day bool) error {
	if f.Op == spec.OpYearly {
		n.yearly(f.Test, nil)
		return nil
	}
	indexed := f.Field == "created"
	if !day && !indexed {
		err := n.tells(`SELECT EXISTS (SELECT FROM pg_index i WHERE i.indrelid = 'contact'::regclass AND i.indisvalid AND pg_get_expr(i.indexprs, i.indrelid) = '(fields ->> ' || quote_literal($1) || '::text)')`,
			[]any{f.Field}, func(is bool) { indexed = is })
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
			if err := n.soon(b, "FROM contact c WHERE true", "c.created_at", c); err != nil {
				return err
			}
		case indexed:
			// The first few, by the index alone: with one more condition Postgres, which knows little of what is in fields, would read all that is to come and sort it.
			value := c.stored(f.Field)
			sql := fmt.Sprintf("SELECT min(%s) FILTER (WHERE v LIKE '%s'), count(*) FROM (SELECT %[3]s AS v FROM contact c WHERE %[3]s >= $1 AND %[3]s < '9999' ORDER BY %[3]s LIMIT %[4]d) x",
				asInstant("v"), storedInstant, value, firstFew)
			err := n.ask(sql, append([]any{b(n.env.Now).UTC().Format(time.RFC3339)}, c.args...), func(rows pgx.Rows) error {
				var first *time.Time
				var read int
				_, err := pgx.ForEachRow(rows, []any{&first, &read}, func() error {
					switch {
					case first != nil:
						n.crosses(b, *first, time.Microsecond)
					case read == firstFew: // none of them is a time, and one may be behind them
						n.candidate(n.env.Now.Add(windows()[0]))
					}
					return nil
				})
				return err
			})
			if err != nil {
				return err
			}
		default:
			n.candidate(n.env.Now.Add(windows()[0]))
		}
	}
	return nil
}

// yearlyOfFew looks for the days of the year that contacts have.
func (n *nextChange) yearlyOfFew(t spec.Test, value string, day bool, c *compiler) error {
	month := "right(" + value + ", 5)"
	if !day {
		month = "to_char(" + value + " AT TIME ZONE " + c.text(n.env.zone().String()) + ", 'MM-DD')"
	}
	sql := "SELECT DISTINCT " + month + " FROM contact c WHERE $1::int = 0 AND " + value + " IS NOT NULL" + n.of(c, "c.id")
	return n.ask(sql, append([]any{0}, c.args...), func(rows pgx.Rows) error {
		days, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err == nil && len(days) > 0 {
			n.yearly(t, days)
		}
		return err
	})
}

// yearly goes through the coming year, as the window of anniversaries moves on over days; over any, when these are nil.
func (n *nextChange) yearly(t spec.Test, days []string) {
	now := n.env.anniversaryOf(t)
	if now.all {
		return
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
		if days == nil || slices.ContainsFunc(days, func(d string) bool { return now.has(d) != then.has(d) }) {
			n.candidate(env.Now)
			return
		}
	}
}

func (y anniversary) has(day string) bool {
	if y.from <= y.to {
		return day >= y.from && day <= y.to
	}
	return day >= y.from || day <= y.to
}

func (n *nextChange) event(t *spec.EventTest) error {
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
	moving, yearly := false, []spec.Test{}
	for _, p := range t.Where {
		moving = moving || len(n.env.bounds(p.Test, false)) > 0
		if p.Op == spec.OpYearly {
			yearly = append(yearly, p.Test)
		}
	}
	if len(bounds) == 0 && !moving && len(yearly) == 0 {
		return nil
	}
	ids := "(SELECT max(id) - min(id) FROM fact)"
	if _, ok := deliveryState(t.Event); ok { // a batch has 512 ids, however few its recipients are
		ids = "(SELECT (max(id) - min(id)) >> 9 FROM delivery) * 500"
	}
	many, err := n.many(n.fewFacts, ids)
	if err != nil {
		return err
	}
	for _, b := range bounds {
		c := &compiler{env: n.env, first: 2}
		from, at, contact := c.anyones(t)
		if many {
			err = n.soon(b, from, at, c)
		} else {
			from += n.of(c, contact)
			err = n.first("SELECT min("+at+") "+from+" AND "+at+" >= $1", append([]any{b(n.env.Now)}, c.args...), func(t time.Time) { n.crosses(b, t, time.Microsecond) })
		}
		if err != nil {
			return err
		}
	}
	again := func() {
		if moving {
			n.candidate(n.env.Now.Add(period))
		}
		for _, test := range yearly {
			n.yearly(test, nil)
		}
	}
	switch {
	case !moving && len(yearly) == 0:
		return nil
	case many:
		again()
		return nil
	}
	c := &compiler{env: n.env, first: 2}
	from, _, contact := c.anyones(t)
	from += n.of(c, contact)
	return n.tells("SELECT $1::int = 0 AND EXISTS (SELECT "+from+")", append([]any{0}, c.args...), func(some bool) {
		if some {
			again()
		}
	})
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
