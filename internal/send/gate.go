package send

import (
	"context"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/onda-run/onda/internal/compose"
	"github.com/onda-run/onda/internal/delivery"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/spec"
)

// ask puts the questions about contacts into a batch of statements: what the gate says, and what their mails need. In the transaction of the mark, so that what the gate
// answers holds at the moment of sending and not only when it was planned. Nil where the email cannot be made.
func (h *holder) ask(ctx context.Context, tx *postgres.Tx, b *pgx.Batch, contacts []int64) (*compose.Audience, error) {
	if h.broken != nil {
		return nil, nil
	}
	return h.email.QueueAudience(ctx, tx, b, contacts, h.lease.Run)
}

// follow sees to those of the recipients who were merged since their mails were planned: their mails go to whom they are part of, who has an audience of its own then, unless that one has had the
// same mail, or is to get it by another. It gives the outcomes of those that do not go, now or ever. The mark was at from before.
func (h *holder) follow(ctx context.Context, tx *postgres.Tx, from int, open []delivery.Recipient, audience *compose.Audience) (*compose.Audience, []delivery.Outcome, error) {
	if audience == nil {
		return nil, nil, nil
	}
	merged := map[int64]bool{}
	for again := true; again; { // in case that one was merged meanwhile
		again = false
		for i, r := range open {
			if p := audience.Person(r.Contact); p != 0 {
				merged[r.Delivery], again = true, again || p != r.Contact
				open[i].Contact = p
			}
		}
		if again {
			b := &pgx.Batch{}
			var err error
			if audience, err = h.ask(ctx, tx, b, contactsOf(open)); err != nil {
				return nil, nil, err
			}
			if err := tx.SendBatch(ctx, b).Close(); err != nil {
				return nil, nil, err
			}
		}
	}
	of := slices.DeleteFunc(slices.Clone(open), func(r delivery.Recipient) bool { return !merged[r.Delivery] })
	outcomes, err := h.lease.Fates(ctx, tx, from, of)
	return audience, outcomes, err
}

// admitted is what the gate makes of recipients: messages to hand over, and outcomes of the others. Unless full is 0, the batch is put off for that long after them.
type admitted struct {
	jobs     []job
	outcomes []delivery.Outcome
	full     time.Duration
}

// admit goes by the answers; start is the time.Now() that the times of messages are reckoned from.
func (h *holder) admit(ctx context.Context, tx *postgres.Tx, open []delivery.Recipient, audience *compose.Audience, start time.Time) (a admitted, err error) {
	if h.broken != nil {
		for _, r := range open {
			a.jobs = append(a.jobs, job{holder: h, to: r})
		}
		return a, nil
	}
	rest := open[:0:0]
	for _, r := range open {
		switch why := audience.Refused(r.Contact); {
		case why != "":
			a.outcomes = append(a.outcomes, delivery.Refusal(r, delivery.Reason(why)))
		case h.email.Unaddressed():
			a.outcomes = append(a.outcomes, delivery.Refusal(r, delivery.Preproduction))
		case h.email.Unverified():
			a.outcomes = append(a.outcomes, delivery.Refusal(r, delivery.DomainUnverified))
		case !tx.Now().Before(r.Expires):
			a.outcomes = append(a.outcomes, delivery.Refusal(r, delivery.Expired))
		default:
			rest = append(rest, r)
		}
	}
	var q queued
	if h.email.Topic != "" {
		// What is reserved is so for those alone who may get the mail, now or later.
		later, late := h.holdBack(tx, rest, audience)
		rest = without(rest, late)
		if q, err = h.queueUp(ctx, tx, without(rest, later), audience.Address, start); err != nil {
			return a, err
		}
		for _, o := range q.waiting {
			if o.State == delivery.Suppressed {
				late = append(late, o)
			} else {
				later = append(later, o)
			}
		}
		rest = without(rest, late)
		none, err := h.reserve(ctx, tx, rest, audience)
		if err != nil {
			return a, err
		}
		refused := deliveriesOf(none)
		later = slices.DeleteFunc(later, func(o delivery.Outcome) bool { return refused[o.Delivery] })
		rest = without(without(rest, none), later)
		a.outcomes, a.full = slices.Concat(a.outcomes, late, none, later), q.full
	}
	ids := make([]int64, len(rest))
	for i, r := range rest {
		ids[i] = r.Delivery
	}
	data, err := h.email.Data(ctx, tx, ids)
	if err != nil {
		return a, err
	}
	for _, r := range rest {
		m, err := audience.Mail(r.Contact, r.Delivery, h.lease.Run)
		if err != nil {
			return a, err
		}
		m.Data, m.Attachments = data[r.Delivery].Data, data[r.Delivery].Attachments
		address := audience.Address(r.Contact)
		a.jobs = append(a.jobs, job{holder: h, to: r, mail: m, receiver: delivery.ReceiverOf(address), at: q.at[r.Delivery], place: h.placeOf(address)})
	}
	return a, nil
}

// without gives the recipients that have none of the outcomes.
func without(rs []delivery.Recipient, outcomes []delivery.Outcome) []delivery.Recipient {
	if len(outcomes) == 0 {
		return rs
	}
	has := deliveriesOf(outcomes)
	return slices.DeleteFunc(slices.Clone(rs), func(r delivery.Recipient) bool { return has[r.Delivery] })
}

func deliveriesOf(outcomes []delivery.Outcome) map[int64]bool {
	has := make(map[int64]bool, len(outcomes))
	for _, o := range outcomes {
		has[o.Delivery] = true
	}
	return has
}

func contactsOf(rs []delivery.Recipient) []int64 {
	out := make([]int64, len(rs))
	for i, r := range rs {
		out[i] = r.Contact
	}
	return out
}

// holdBack applies the tenant's quiet hours and the recipients' own pauses to marketing mail: who is in one gets the mail when it ends, unless the mail expires before.
func (h *holder) holdBack(tx *postgres.Tx, rs []delivery.Recipient, audience *compose.Audience) (later, late []delivery.Outcome) {
	quiet := h.email.Settings.QuietHours
	for _, r := range rs {
		ends, why := audience.Wishes(r.Contact).PausedUntil, "paused by the recipient"
		if !tx.Now().Before(ends) && quiet != nil {
			ends, why = quietUntil(*quiet, tx.Now(), audience.Zone(r.Contact)), "quiet hours"
		}
		switch {
		case !tx.Now().Before(ends):
		case ends.Before(r.Expires):
			later = append(later, delivery.Waits(r, ends, why))
		default:
			late = append(late, delivery.Refusal(r, delivery.Late))
		}
	}
	return later, late
}

// quietUntil is when the quiet hours that a moment is in end, zero when it is in none.
func quietUntil(quiet spec.Window, now time.Time, loc *time.Location) time.Time {
	if !quiet.Contains(now, loc) {
		return time.Time{}
	}
	at := now.Truncate(time.Minute)
	for range 8 * 24 * 60 { // the longest window is a week
		if at = at.Add(time.Minute); !quiet.Contains(at, loc) {
			return at
		}
	}
	return at
}
