package campaign

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/predicate"
	"github.com/onda-run/onda/internal/spec"
)

// awaited is what a journey waits for at a wait for an event.
type awaited struct {
	journey *journey
	// delivery is of the mail that the event must be about, or that is taken for its cause; 0 where there is none.
	delivery int64
	// since is the moment from which an event counts: when its cause was sent.
	since time.Time
	// happened is the first event that counts, nil where there is none.
	happened *time.Time
	mail     mail
	unjudged bool // a hit is held that may turn out to be the event
}

// mail is what is known of a delivery.
type mail struct {
	state    string // "" while it is queued
	tracking string
	at       time.Time
}

// waitEvent waits for an event. An event counts from when its cause was sent until the deadline, by the time it happened: what is asked is always the
// rows of facts, so that when they are read decides nothing.
func (p *pass) waitEvent(ctx context.Context, v *version, n *spec.Node, js []*journey) error {
	w := n.Step.Wait
	now := p.tx.Now()
	all := make([]*awaited, len(js))
	for i, j := range js {
		if j.until == nil {
			at := w.Timeout.AddTo(now, p.location(v, j))
			j.until = &at
		}
		all[i] = &awaited{journey: j, since: j.entered}
	}
	ofStep := mailStep(v.flow, w.Event)
	if err := p.causes(ctx, v.flow, w.Event, ofStep, all); err != nil {
		return err
	}
	if err := p.happened(ctx, w.Event, ofStep != "", all); err != nil {
		return err
	}
	if hitKind(w.Event.Event) != "" {
		if err := p.mails(ctx, all); err != nil {
			return err
		}
		if err := p.held(ctx, w.Event, ofStep != "", all); err != nil {
			return err
		}
	}
	for _, a := range all {
		p.decide(v, n, a)
	}
	return nil
}

// decide takes one of the wait's ways out, or none yet.
func (p *pass) decide(v *version, n *spec.Node, a *awaited) {
	j, now := a.journey, p.tx.Now()
	if a.happened != nil {
		p.history.move(j, "then", n.Then, *a.happened)
		return
	}
	if over := j.until.Add(grace); over.After(now) {
		j.park(j.until, over)
		return
	}
	if hitKind(n.Step.Wait.Event.Event) != "" && a.delivery != 0 {
		if a.mail.state == "" { // nobody can have seen it yet
			j.park(j.until, now.Add(recheckQueue))
			return
		}
		// the time-out is from when the mail was sent, when that was long after it was planned
		if later := n.Step.Wait.Timeout.AddTo(a.mail.at, p.location(v, j)); a.mail.state == "sent" && later.After(j.until.Add(recheckQueue)) {
			j.until = &later
			if over := later.Add(grace); over.After(now) {
				j.park(j.until, over)
			}
			// else this is over too, and what happened until then is asked for in the next turn of the pass
			return
		}
	}
	if a.unjudged {
		j.park(j.until, now.Add(recheckHit))
		return
	}
	if a.mail.state == "sent" && a.mail.tracking != "" && a.mail.tracking != string(spec.TrackFull) {
		next := n.Else
		if n.Step.Wait.Untracked == "then" {
			next = n.Then
		}
		p.history.move(j, "untracked", next, *j.until)
		return
	}
	p.history.move(j, "timeout", n.Else, *j.until)
}

// mailStep is the send step whose mail an event must be about; "" where the event names none.
func mailStep(f *spec.Flow, e *spec.WaitEvent) string {
	if node, ok := f.Node(e.Of); ok && node.Kind == "send" && strings.HasPrefix(e.Event, "email.") {
		return e.Of
	}
	return ""
}

// hitKind is the kind of hits that an event is made from; "" for events that need no judging.
func hitKind(event string) string {
	switch event {
	case "email.opened":
		return "open"
	case "email.clicked":
		return "click"
	}
	return ""
}

// causes finds, in each journey's history, the mail that the event is about and the moment from which it counts: when the last mail was planned,
// and after an event that another wait took already; in a journey without either, the end of the wait before, or the entry.
func (p *pass) causes(ctx context.Context, f *spec.Flow, e *spec.WaitEvent, ofStep string, all []*awaited) error {
	var sends, events, waits []string
	for _, n := range f.Nodes {
		switch {
		case n.Kind == "send":
			sends = append(sends, n.ID)
		case n.Kind == "wait" && n.Step.Wait.Event != nil:
			events = append(events, n.ID)
		case n.Kind == "wait":
			waits = append(waits, n.ID)
		}
	}
	of := sends
	switch {
	case ofStep != "":
		of = []string{ofStep}
	case e.Of != "":
		of = slices.DeleteFunc(slices.Clone(sends), func(id string) bool {
			n, _ := f.Node(id)
			return n.Step.Send.Email != e.Of
		})
	}
	byID := map[int64]*awaited{}
	for _, a := range all {
		byID[a.journey.id] = a
	}
	rows, err := p.tx.Query(ctx, `SELECT journey,
			coalesce((array_agg(delivery ORDER BY visit DESC) FILTER (WHERE step = ANY ($2) AND delivery IS NOT NULL))[1], 0),
			max(at) FILTER (WHERE step = ANY ($3) AND delivery IS NOT NULL OR step = ANY ($4) AND branch = 'then'),
			max(at) FILTER (WHERE step = ANY ($4) OR step = ANY ($5))
		FROM step WHERE journey = ANY ($1) GROUP BY journey`, journeysOf(all), of, sends, events, waits)
	if err != nil {
		return fmt.Errorf("read the history of journeys: %w", err)
	}
	var id, delivery int64
	var strong, weak *time.Time
	_, err = pgx.ForEachRow(rows, []any{&id, &delivery, &strong, &weak}, func() error {
		a := byID[id]
		a.delivery = delivery
		switch {
		case strong != nil:
			a.since = *strong
		case weak != nil:
			a.since = *weak
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("read the history of journeys: %w", err)
	}
	return nil
}

func journeysOf(all []*awaited) []int64 {
	out := make([]int64, len(all))
	for i, a := range all {
		out[i] = a.journey.id
	}
	return out
}

// columns are the journeys of a question, as arrays for unnest.
func columns(all []*awaited) (ids, contacts, deliveries []int64, since, until []time.Time) {
	for _, a := range all {
		ids = append(ids, a.journey.id)
		contacts = append(contacts, a.journey.contact)
		deliveries = append(deliveries, a.delivery)
		since = append(since, a.since)
		until = append(until, *a.journey.until)
	}
	return ids, contacts, deliveries, since, until
}

// outcomeOf is the state of the mails that an event is about, where it is written as one fact for a group of mails, without their contacts: the rows of
// the mails are asked then.
func outcomeOf(event string) string {
	switch event {
	case "email.sent", "email.deferred", "email.failed", "email.suppressed":
		return strings.TrimPrefix(event, "email.")
	}
	return ""
}

// happened looks for the first event of each journey that counts.
func (p *pass) happened(ctx context.Context, e *spec.WaitEvent, ofMail bool, all []*awaited) error {
	ids, contacts, deliveries, since, until := columns(all)
	args := []any{ids, contacts, deliveries, since, until}
	arg := func(v any) string {
		args = append(args, v)
		return fmt.Sprintf("$%d", len(args))
	}
	const journeys = `unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::timestamptz[], $5::timestamptz[]) AS j (id, contact, delivery, since, until)`
	var sql string
	if state := outcomeOf(e.Event); state != "" {
		sql = `SELECT j.id, d.at FROM ` + journeys + ` JOIN delivery d ON d.id = j.delivery AND d.contact = j.contact AND d.state = ` + arg(state) + ` AND d.at <= j.until`
	} else {
		kind, name := factOf(e.Event)
		conditions := []string{"f.kind = " + arg(kind), "f.at <= j.until"}
		if ofMail { // whatever comes of a mail comes after it was sent
			conditions = append(conditions, "f.deliveries @> ARRAY[j.delivery]")
		} else {
			conditions = append(conditions, "f.at > j.since")
			if name == "" {
				name = e.Of
			}
			if name != "" {
				conditions = append(conditions, "f.name = "+arg(name))
			}
		}
		who := "f.contact = j.contact"
		if slices.Contains([]string{"contact.changed", "tag.changed"}, kind) { // may be written for many contacts at once
			who = "(f.contact = j.contact OR f.contacts @> ARRAY[j.contact])"
		}
		if hitKind(e.Event) != "" {
			conditions = append(conditions, postgres.StillHuman(p.tx.Tenant.Schema))
		}
		if len(e.Where) > 0 {
			return p.happenedWith(ctx, e, all, journeys+" JOIN fact f ON "+who+" AND "+strings.Join(conditions, " AND "), args)
		}
		sql = "SELECT j.id, min(f.at) FROM " + journeys + " JOIN fact f ON " + who + " AND " + strings.Join(conditions, " AND ") + " GROUP BY j.id"
	}
	rows, err := p.tx.Query(ctx, sql, args...)
	if err != nil {
		return fmt.Errorf("look for event %s: %w", e.Event, err)
	}
	found := map[int64]time.Time{}
	if err := eachRow(rows, func(id int64, at time.Time) { found[id] = at }); err != nil {
		return fmt.Errorf("look for event %s: %w", e.Event, err)
	}
	for _, a := range all {
		if at, ok := found[a.journey.id]; ok {
			a.happened = &at
		}
	}
	return nil
}

// happenedWith is happened for events that must have properties.
func (p *pass) happenedWith(ctx context.Context, e *spec.WaitEvent, all []*awaited, from string, args []any) error {
	rows, err := p.tx.Query(ctx, "SELECT j.id, f.id, f.at FROM "+from, args...)
	if err != nil {
		return fmt.Errorf("look for event %s: %w", e.Event, err)
	}
	type candidate struct {
		Journey, Fact int64
		At            time.Time
	}
	candidates, err := pgx.CollectRows(rows, pgx.RowToStructByPos[candidate])
	if err != nil {
		return fmt.Errorf("look for event %s: %w", e.Event, err)
	}
	facts := make([]int64, len(candidates))
	for i, c := range candidates {
		facts[i] = c.Fact
	}
	passes, err := predicate.Having(ctx, p.tx, p.env, e.Event, e.Where, facts)
	if err != nil {
		return fmt.Errorf("event %s: %w", e.Event, err)
	}
	first := map[int64]time.Time{}
	for _, c := range candidates {
		if at, ok := first[c.Journey]; passes[c.Fact] && (!ok || c.At.Before(at)) {
			first[c.Journey] = c.At
		}
	}
	for _, a := range all {
		if at, ok := first[a.journey.id]; ok {
			a.happened = &at
		}
	}
	return nil
}

// factOf gives the kind and the name of the facts of an event: a tenant's own events are facts of one kind, told apart by name.
func factOf(event string) (kind, name string) {
	if slices.Contains(spec.BuiltinEvents(), event) {
		return event, ""
	}
	return "event.tracked", event
}

// mails looks up what became of the mails.
func (p *pass) mails(ctx context.Context, all []*awaited) error {
	_, _, deliveries, _, _ := columns(all)
	rows, err := p.tx.Query(ctx, "SELECT d.id, d.state, coalesce(d.tracking, ''), d.at FROM unnest($1::bigint[]) u (id) JOIN delivery d ON d.id = u.id", deliveries)
	if err != nil {
		return fmt.Errorf("look up mails: %w", err)
	}
	found := map[int64]mail{}
	var id int64
	var m mail
	_, err = pgx.ForEachRow(rows, []any{&id, &m.state, &m.tracking, &m.at}, func() error {
		found[id] = m
		return nil
	})
	if err != nil {
		return fmt.Errorf("look up mails: %w", err)
	}
	for _, a := range all {
		a.mail = found[a.delivery]
	}
	return nil
}

// held looks for hits that are not judged yet: one that turns out to be human will have happened when it came.
func (p *pass) held(ctx context.Context, e *spec.WaitEvent, ofMail bool, all []*awaited) error {
	ids, contacts, deliveries, since, until := columns(all)
	who := "h.contact = j.contact AND h.at > j.since"
	if ofMail {
		who = "h.delivery = j.delivery"
	}
	rows, err := p.tx.Query(ctx, `SELECT j.id, true FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::timestamptz[], $5::timestamptz[]) AS j (id, contact, delivery, since, until)
		WHERE EXISTS (SELECT FROM hit h WHERE h.verdict IS NULL AND h.kind = $6 AND h.at <= j.until AND `+who+`)`,
		ids, contacts, deliveries, since, until, hitKind(e.Event))
	if err != nil {
		return fmt.Errorf("look for hits that are not judged: %w", err)
	}
	found := map[int64]bool{}
	if err := eachRow(rows, func(id int64, yes bool) { found[id] = yes }); err != nil {
		return fmt.Errorf("look for hits that are not judged: %w", err)
	}
	for _, a := range all {
		a.unjudged = found[a.journey.id]
	}
	return nil
}
