package campaign

import (
	"context"
	"time"

	"github.com/onda-run/onda/internal/delivery"
	"github.com/onda-run/onda/internal/spec"
)

// send plans a mail to each journey's contact, within the campaign's window, and goes on.
func (p *pass) send(ctx context.Context, v *version, n *spec.Node, js []*journey) error {
	now := p.tx.Now()
	ready, late := js[:0:0], js[:0:0]
	for _, j := range js {
		switch at, do := mailTime(v.campaign(), j.stepAt, now, p.location(v, j)); do {
		case skipMail:
			late = append(late, j)
		case holdMail:
			j.stepAt = at
			j.park(nil, at)
		default:
			ready = append(ready, j)
		}
	}
	if err := p.plan(ctx, v, n, ready, ""); err != nil {
		return err
	}
	return p.plan(ctx, v, n, late, delivery.Late)
}

// plan plans the mails of a step. With a reason they are not sent: they have it as their outcome at once, so that each mail that is not sent says why.
func (p *pass) plan(ctx context.Context, v *version, n *spec.Node, js []*journey, reason delivery.Reason) error {
	if len(js) == 0 {
		return nil
	}
	document, err := email(ctx, p.tx, n.Step.Send.Email)
	if err != nil {
		return err
	}
	now := p.tx.Now()
	batches, err := delivery.Enqueue(ctx, p.tx, delivery.Plan{
		Run: p.run, Step: n.ID, Email: document, Contacts: contactsOf(js), NotBefore: now, Cause: cause(v, n),
	})
	if err != nil {
		return err
	}
	p.batches = append(p.batches, batches...)
	var outcomes []delivery.Outcome
	i := 0
	for _, b := range batches { // in the order in which the contacts were given
		for k, c := range b.Contacts {
			id := delivery.ID(b.ID, k+1)
			p.history.sent(js[i], string(reason), n.Next, now, &id)
			if reason != "" {
				outcomes = append(outcomes, delivery.Outcome{Delivery: id, Contact: c, Attempt: 1, State: delivery.Suppressed, Reason: reason})
			}
			i++
		}
	}
	_, err = delivery.Record(ctx, p.tx, drainer, outcomes...)
	return err
}

// what becomes of a mail that is to be sent now.
type mailAction int

const (
	sendMail mailAction = iota
	skipMail            // it is too late for it
	holdMail            // until the time given
)

// mailTime tells what becomes now of a mail that was due at a time: it is sent within the campaign's window only, and what is late is dealt with as the
// campaign says. It counts as due from when the window was open for it.
func mailTime(c *spec.Campaign, due, now time.Time, loc *time.Location) (time.Time, mailAction) {
	if c.SendWindow != nil {
		due = c.SendWindow.Next(due, loc)
	}
	if c.Late != nil && now.After(c.Late.After.AddTo(due, loc)) {
		switch c.Late.Do {
		case spec.LateSkip:
			return now, skipMail
		case spec.LateNextWindow:
			if at := nextOpening(*c.SendWindow, now, loc); at.After(now) {
				return at, holdMail
			}
		case spec.LateSend:
		}
	}
	if c.SendWindow != nil {
		if at := c.SendWindow.Next(now, loc); at.After(now) {
			return at, holdMail
		}
	}
	return now, sendMail
}

// nextOpening is when a window opens the next time after t: where it is open at t, after it has been closed. A window that never closes
// gives t itself.
func nextOpening(w spec.Window, t time.Time, loc *time.Location) time.Time {
	at := t
	for range 8 * 24 * 4 { // a week has a closing in it, if there is one
		if !w.Contains(at, loc) {
			return w.Next(at, loc)
		}
		at = at.Add(15 * time.Minute)
	}
	return t
}
