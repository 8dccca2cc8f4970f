package campaign

import (
	"context"
	"fmt"
	"time"

	"github.com/onda-run/onda/internal/spec"
)

// wait lets those journeys go on for whom the wait is over, and parks the others.
func (p *pass) wait(ctx context.Context, v *version, n *spec.Node, js []*journey) error {
	w := n.Step.Wait
	switch {
	case w.Event != nil:
		return p.waitEvent(ctx, v, n, js)
	case w.Match != nil:
		return p.waitMatch(ctx, v, n, js)
	case w.Until != nil && w.Until.Field != "":
		return p.waitField(ctx, v, n, js)
	}
	now := p.tx.Now()
	for _, j := range js {
		loc := p.location(v, j)
		if j.until == nil {
			at := w.For.AddTo(now, loc)
			if w.Until != nil {
				at = w.Until.Next(now, loc)
				if w.Until.Date != nil && !at.After(now) && w.Until.Past == spec.Leave {
					p.leave(j, "past")
					continue
				}
			}
			j.until = &at
		}
		if j.until.After(now) {
			j.park(j.until, *j.until)
			continue
		}
		p.history.move(j, "", n.Next, *j.until)
	}
	return nil
}

// leave ends a journey at a wait whose date is missing or past.
func (p *pass) leave(j *journey, why string) {
	p.history.move(j, why, "", p.tx.Now())
	j.outcome = why
}

// waitField waits for a date of the contact's. The field is read each time, so that the wait follows a date that is changed meanwhile.
func (p *pass) waitField(ctx context.Context, v *version, n *spec.Node, js []*journey) error {
	u := n.Step.Wait.Until
	rows, err := p.tx.Query(ctx, `SELECT id, CASE WHEN $2 = 'created' THEN to_char(created_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"') ELSE coalesce(fields ->> $2, '') END
		FROM contact WHERE id = ANY ($1)`, contactsOf(js), u.Field)
	if err != nil {
		return fmt.Errorf("read field %s: %w", u.Field, err)
	}
	values := map[int64]string{}
	if err := eachRow(rows, func(id int64, value string) { values[id] = value }); err != nil {
		return fmt.Errorf("read field %s: %w", u.Field, err)
	}
	now := p.tx.Now()
	for _, j := range js {
		loc := p.location(v, j)
		date, ok := fieldDate(values[j.contact], loc)
		if !ok {
			if u.Missing == spec.Leave {
				p.leave(j, "missing")
			} else {
				p.history.move(j, "missing", n.Next, now)
			}
			continue
		}
		at := u.OfField(date, loc)
		switch {
		case at.After(now):
			j.park(&at, at)
		case j.until == nil && u.Past == spec.Leave:
			p.leave(j, "past")
		case j.until == nil:
			p.history.move(j, "past", n.Next, now)
		default:
			p.history.move(j, "", n.Next, at)
		}
	}
	return nil
}

// fieldDate reads the value of a field of type date or datetime; a date is its midnight in loc.
func fieldDate(value string, loc *time.Location) (time.Time, bool) {
	m, err := spec.ParseMoment(value)
	if value == "" || err != nil || m.Relative() {
		return time.Time{}, false
	}
	return m.In(time.Time{}, loc), true
}

// waitMatch waits until a predicate is true of the contact.
func (p *pass) waitMatch(ctx context.Context, v *version, n *spec.Node, js []*journey) error {
	w := n.Step.Wait
	is, err := p.matching(ctx, v, w.Match, js)
	if err != nil {
		return err
	}
	now := p.tx.Now()
	for _, j := range js {
		if j.until == nil {
			at := w.Timeout.AddTo(now, p.location(v, j))
			j.until = &at
		}
		switch {
		case is[j.contact]:
			p.history.move(j, "then", n.Then, now)
		case j.until.After(now):
			due := *j.until
			if again := now.Add(recheckMatch); changesWithTime(w.Match) && again.Before(due) {
				due = again
			}
			j.park(j.until, due)
		default:
			p.history.move(j, "timeout", n.Else, *j.until)
		}
	}
	return nil
}

// changesWithTime tells whether a predicate may become true though no fact is written of the contact: it compares with the present time.
func changesWithTime(p *spec.Predicate) bool {
	relative := func(t spec.Test) bool {
		if t.Op == spec.OpInLast || t.Op == spec.OpInNext || t.Op == spec.OpOlderThan || t.Op == spec.OpYearly {
			return true
		}
		for _, v := range t.Values {
			if m, err := v.Moment(); err == nil && (m.Relative() || t.Op == spec.OpBefore || t.Op == spec.OpAfter) {
				return true
			}
		}
		return false
	}
	found := false
	p.Walk(func(q *spec.Predicate) {
		found = found || q.Field != nil && relative(q.Field.Test) || q.Event != nil && (q.Event.Within != nil || q.Event.Between != nil) || q.Campaign != nil
	})
	return found
}
