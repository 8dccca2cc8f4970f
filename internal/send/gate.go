package send

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/onda-run/onda/internal/compose"
	"github.com/onda-run/onda/internal/contact"
	"github.com/onda-run/onda/internal/delivery"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/spec"
)

// inquiry is what is asked about recipients that come under the mark.
type inquiry struct {
	refused  *[]contact.Refusal // by the gate
	audience *compose.Audience
}

// ask puts the questions about contacts into a batch of statements. In the transaction of the mark, so that what the gate answers holds at the moment of sending and not
// only when it was planned.
func (h *holder) ask(ctx context.Context, tx *postgres.Tx, b *pgx.Batch, contacts []int64) (i inquiry, err error) {
	if h.broken != nil {
		return i, nil
	}
	i.refused = new([]contact.Refusal)
	contact.QueueGate(b, contacts, h.email.Topic, i.refused)
	i.audience, err = h.email.QueueAudience(ctx, tx, b, contacts)
	return i, err
}

// admit goes by the answers: recipients that are refused come back as outcomes, the others as messages to hand over.
func (h *holder) admit(ctx context.Context, tx *postgres.Tx, open []delivery.Recipient, asked inquiry) (jobs []job, refusals []delivery.Outcome, err error) {
	if h.broken != nil {
		for _, r := range open {
			jobs = append(jobs, job{holder: h, to: r})
		}
		return jobs, nil, nil
	}
	audience := asked.audience
	why := make(map[int64]delivery.Reason, len(*asked.refused))
	for _, r := range *asked.refused {
		why[r.Contact] = delivery.Reason(r.Reason)
	}
	rest := open[:0:0]
	for _, r := range open {
		switch reason, no := why[r.Contact]; {
		case no:
			refusals = append(refusals, delivery.Refusal(r, reason))
		case h.email.Unaddressed():
			refusals = append(refusals, delivery.Refusal(r, delivery.Preproduction))
		case h.email.Unverified():
			refusals = append(refusals, delivery.Refusal(r, delivery.DomainUnverified))
		case !tx.Now().Before(r.Expires):
			refusals = append(refusals, delivery.Refusal(r, delivery.Expired))
		default:
			rest = append(rest, r)
		}
	}
	if h.email.Topic != "" {
		capped, quiet, err := h.holdBack(ctx, tx, rest, audience.Zone)
		if err != nil {
			return nil, nil, err
		}
		refusals = append(refusals, capped...)
		refusals = append(refusals, quiet...)
		held := make(map[int64]bool, len(refusals))
		for _, o := range refusals {
			held[o.Delivery] = true
		}
		rest = slices.DeleteFunc(rest, func(r delivery.Recipient) bool { return held[r.Delivery] })
	}
	ids := make([]int64, len(rest))
	for i, r := range rest {
		ids[i] = r.Delivery
	}
	data, err := h.email.Data(ctx, tx, ids)
	if err != nil {
		return nil, nil, err
	}
	for _, r := range rest {
		m, err := audience.Mail(r.Contact, r.Delivery, h.lease.Run)
		if err != nil {
			return nil, nil, err
		}
		m.Data, m.Attachments = data[r.Delivery].Data, data[r.Delivery].Attachments
		jobs = append(jobs, job{holder: h, to: r, mail: m})
	}
	return jobs, refusals, nil
}

func contactsOf(rs []delivery.Recipient) []int64 {
	out := make([]int64, len(rs))
	for i, r := range rs {
		out[i] = r.Contact
	}
	return out
}

// holdBack applies the tenant's frequency caps and quiet hours to marketing mail. A cap is reserved at the first attempt only; who is in quiet hours gets the mail
// when they end, unless it expires before.
func (h *holder) holdBack(ctx context.Context, tx *postgres.Tx, rs []delivery.Recipient, zone func(contact int64) *time.Location) (capped, quiet []delivery.Outcome, err error) {
	settings := h.email.Settings
	for _, limit := range settings.Frequency {
		var first []int64
		for _, r := range rs {
			if r.Attempt == 1 {
				first = append(first, r.Contact)
			}
		}
		if len(first) == 0 {
			break
		}
		granted, err := delivery.Reserve(ctx, tx, fmt.Sprintf("cap:*:%d/%s", limit.Count, limit.Per), periodOf(tx.Now(), limit.Per, settings.Location()), limit.Count, first)
		if err != nil {
			return nil, nil, err
		}
		rs = slices.DeleteFunc(slices.Clone(rs), func(r delivery.Recipient) bool {
			_, ok := slices.BinarySearch(granted, r.Contact)
			if r.Attempt == 1 && !ok {
				capped = append(capped, delivery.Refusal(r, delivery.Capped))
				return true
			}
			return false
		})
	}
	if settings.QuietHours == nil {
		return capped, nil, nil
	}
	for _, r := range rs {
		ends := quietUntil(*settings.QuietHours, tx.Now(), zone(r.Contact))
		switch {
		case ends.IsZero():
		case ends.Before(r.Expires):
			quiet = append(quiet, delivery.Outcome{Delivery: r.Delivery, Contact: r.Contact, Attempt: r.Attempt, State: delivery.Deferred, RetryAt: ends, Detail: "quiet hours"})
		default:
			quiet = append(quiet, delivery.Refusal(r, delivery.Late))
		}
	}
	return capped, quiet, nil
}

// periodOf is the beginning of the period of a cap that a moment is in: periods follow each other from Monday 5 January 1970, midnight by the tenant's clock, so that
// 1d is a day there and 1w a week. So a contact may get up to twice the cap around the change of a period, and never more within one.
func periodOf(now time.Time, per spec.Duration, loc *time.Location) time.Time {
	length := max(per.Approx(), time.Minute)
	_, offset := now.In(loc).Zone()
	from := time.Unix(4*24*3600-int64(offset), 0)
	return from.Add(now.Sub(from).Truncate(length)).UTC()
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
