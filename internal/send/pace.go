package send

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"math"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/onda-run/onda/internal/delivery"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/provider"
	"github.com/onda-run/onda/internal/spec"
)

// limits are what keeps a batch of marketing mail from going out as fast as it could. The zero limits do not.
type limits struct {
	rate    float64           // mails a second of the tenant; 0: no limit
	budgets []delivery.Budget // of first attempts
	granted int               // of the budgets, not used yet: taken for the whole batch, since all who send lock the same row for it
	open    map[string]delivery.Breaker
}

// errPutOff ends a batch early: what is left of it waits.
type errPutOff struct {
	until   time.Time
	livesOn bool            // it expires later by as much
	giveUp  delivery.Reason // it would expire before that
}

func (e *errPutOff) Error() string {
	return "what is left of the batch waits until " + e.until.Format(time.RFC3339)
}

// readLimits is asked once a batch.
func (h *holder) readLimits(ctx context.Context, tx *postgres.Tx) (l limits, err error) {
	if h.email == nil || h.email.Topic == "" || tx.Tenant.Schema < delivery.PaceSchema {
		return l, nil
	}
	settings, quotas := h.email.Settings, tx.Tenant.Quotas
	l.rate = settings.Pace.Rate.PerSecond()
	if quotas.PerSecond != nil && (l.rate == 0 || *quotas.PerSecond < l.rate) {
		l.rate = *quotas.PerSecond
	}
	now := tx.Now().In(settings.Location())
	day := time.Date(now.Year(), now.Month(), now.Day(), 0, 0, 0, 0, now.Location())
	tomorrow := day.AddDate(0, 0, 1)
	month := time.Date(now.Year(), now.Month(), 1, 0, 0, 0, 0, now.Location())
	if quotas.PerDay != nil {
		l.budgets = append(l.budgets, delivery.Budget{Kind: "quota:day", Period: day, Count: *quotas.PerDay, Ends: tomorrow, Reason: delivery.Quota, Name: "the quota of a day"})
	}
	if quotas.PerMonth != nil {
		l.budgets = append(l.budgets, delivery.Budget{Kind: "quota:month", Period: month, Count: *quotas.PerMonth, Ends: month.AddDate(0, 1, 0), Reason: delivery.Quota, Name: "the quota of a month"})
	}
	domain := h.email.SenderDomain()
	if plan := h.email.Warmup(); plan != nil {
		if mails, limited := plan.Allows(now, settings.Location()); limited {
			l.budgets = append(l.budgets, delivery.Budget{Kind: "warmup:" + domain, Period: day, Count: int64(mails), Ends: tomorrow, Name: "the warm-up of " + domain})
		}
	}
	open, err := delivery.Breakers(ctx, tx, domain)
	if err != nil {
		return l, err
	}
	for _, b := range open {
		if l.open == nil {
			l.open = map[string]delivery.Breaker{}
		}
		l.open[b.Receiver] = b
	}
	return l, nil
}

// step is how far the mark goes at once: no further than in the time that a holder waits for.
func (l *limits) step(most int) int {
	if l.rate == 0 {
		return most
	}
	return max(1, min(most, int(math.Ceil(l.rate*delivery.Ahead.Seconds()))))
}

// room is how many of the next recipients may come under the mark, when the first of them may go out, and what the limits are after that. An *errPutOff when none may.
func (h *holder) room(ctx context.Context, tx *postgres.Tx, want int) (n int, first time.Duration, after limits, err error) {
	after = h.limits
	if b, stopped := after.open[delivery.Everywhere]; stopped {
		return 0, 0, after, &errPutOff{until: b.Until}
	}
	n = want
	if len(after.budgets) > 0 && h.lease.Attempt == 1 {
		if after.granted < n {
			more, by, err := delivery.Grant(ctx, tx, after.budgets, h.lease.Size()-h.lease.Mark-after.granted)
			if err != nil {
				return 0, 0, after, err
			}
			if after.granted += more; after.granted == 0 {
				off := &errPutOff{until: by.Ends, livesOn: by.Reason == ""}
				if !off.livesOn && !by.Ends.Before(h.lease.Expires) {
					off.giveUp = by.Reason
				}
				return 0, 0, after, off
			}
		}
		n = min(n, after.granted)
		after.granted -= n
	}
	if after.rate > 0 {
		var taken bool
		if first, taken, err = delivery.Slots(ctx, tx, "", after.rate, n); err != nil {
			return 0, 0, after, err
		}
		if !taken {
			return 0, 0, after, &errPutOff{until: tx.Now().Add(first)}
		}
	}
	return n, first, after, nil
}

// queueUp lets mails that are to go out wait for their time where the tenant has a pace for where they go, and holds those back for whose receiver a breaker is open. start is the
// time.Now() that the times of jobs are reckoned from.
func (h *holder) queueUp(ctx context.Context, tx *postgres.Tx, rs []delivery.Recipient, address func(contact int64) string, start time.Time) (waiting []delivery.Outcome, at map[int64]time.Time, err error) {
	paces := h.email.Settings.Pace.Domains
	if len(paces) == 0 && len(h.limits.open) == 0 || tx.Tenant.Schema < delivery.PaceSchema {
		return nil, nil, nil
	}
	queues := map[string][]delivery.Recipient{}
	for _, r := range rs {
		domain, name := provider.OfAddress(address(r.Contact))
		if b, stopped := h.limits.open[cmp.Or(name, delivery.Others)]; stopped {
			waiting = append(waiting, delivery.HeldBack(r, b))
			continue
		}
		if _, ok := paces[domain]; ok {
			queues[domain] = append(queues[domain], r)
		} else if _, ok := paces[name]; ok {
			queues[name] = append(queues[name], r)
		}
	}
	at = map[int64]time.Time{}
	for _, receiver := range slices.Sorted(maps.Keys(queues)) { // in one order: others wait for the same rows
		queue, rate := queues[receiver], paces[receiver].PerSecond()
		// Who waits is given a time once. Should it be early when that has come, it waits a little more.
		again, within := h.lease.Attempt > 1, queue[0].Expires.Sub(tx.Now())
		if again {
			within = delivery.Ahead
		}
		first, got, err := delivery.Queue(ctx, tx, receiver, rate, len(queue), again, within)
		if err != nil {
			return nil, nil, err
		}
		for i, r := range queue {
			wait := first + time.Duration(float64(i)/rate*float64(time.Second))
			switch {
			case i >= got && !again:
				waiting = append(waiting, delivery.Refusal(r, delivery.Late))
			case wait > delivery.Ahead:
				waiting = append(waiting, delivery.Paced(r, receiver, tx.Now().Add(wait)))
			default:
				at[r.Delivery] = start.Add(wait)
			}
		}
	}
	return waiting, at, nil
}

// reserve takes what contacts may get of marketing mail: of each frequency cap one, and each version of an email once where duplicates are not wanted. Refusals are of those who
// may get no more. At a first attempt only.
func (h *holder) reserve(ctx context.Context, tx *postgres.Tx, rs []delivery.Recipient) (refusals []delivery.Outcome, err error) {
	settings := h.email.Settings
	if h.lease.Attempt > 1 || len(settings.Frequency) == 0 && settings.Duplicates == nil {
		return nil, nil
	}
	wanted := contactsOf(rs)
	refuse := func(granted []int64, why delivery.Reason) {
		rs = slices.DeleteFunc(slices.Clone(rs), func(r delivery.Recipient) bool {
			_, ok := slices.BinarySearch(granted, r.Contact)
			if !ok {
				refusals = append(refusals, delivery.Refusal(r, why))
			}
			return !ok
		})
		wanted = granted
	}
	if settings.Duplicates != nil {
		granted, err := delivery.Once(ctx, tx, fmt.Sprint("once:", h.lease.Email), settings.Duplicates.Approx(), wanted)
		if err != nil {
			return nil, err
		}
		refuse(granted, delivery.Duplicate)
	}
	var caps []delivery.Limit
	for _, c := range settings.Frequency {
		caps = append(caps, delivery.Limit{Kind: fmt.Sprintf("cap:*:%d/%s", c.Count, c.Per), Period: periodOf(tx.Now(), c.Per, settings.Location()), Count: c.Count})
	}
	if len(caps) > 0 && len(wanted) > 0 {
		granted, err := delivery.Reserve(ctx, tx, caps, wanted)
		if err != nil {
			return nil, err
		}
		refuse(granted, delivery.Capped)
	}
	return refusals, nil
}

// count notes what became of a mail, for the breakers. Several goroutines call it.
func (h *holder) count(o delivery.Outcome, receiver string) {
	if h.email == nil || h.email.Topic == "" {
		return
	}
	h.trafficLock.Lock()
	defer h.trafficLock.Unlock()
	if h.traffic == nil {
		h.traffic = map[string]delivery.Traffic{}
	}
	t := h.traffic[receiver]
	switch {
	case o.State == delivery.Sent:
		t.Sent++
	case o.Class == "hard":
		t.Bounced++
	case o.Class == "block":
		t.Blocked++
	default:
		return
	}
	h.traffic[receiver] = t
}

// tally adds what became of the batch's mails to what is known of where they went, and tells of the breakers that it opens.
func (h *holder) tally(ctx context.Context, tx *postgres.Tx) error {
	h.trafficLock.Lock()
	defer h.trafficLock.Unlock()
	if h.email == nil || len(h.traffic) == 0 {
		return nil
	}
	opened, err := delivery.CountTraffic(ctx, tx, h.email.SenderDomain(), h.traffic)
	if err != nil {
		return err
	}
	h.traffic = nil
	for _, b := range opened {
		h.lane.log.Warn("a breaker opened: marketing mail waits", zap.String("tenant", h.tenant), zap.String("from", b.Domain), zap.String("to", cmp.Or(b.Receiver, "everybody")),
			zap.Time("until", b.Until), zap.String("why", b.Why))
	}
	return nil
}

// periodOf is the beginning of the period of a cap that a moment is in: periods follow each other from Monday 5 January 1970, midnight by the tenant's clock, so that
// 1d is a day there and 1w a week. So a contact may get up to twice the cap around the change of a period, and never more within one.
func periodOf(now time.Time, per spec.Duration, loc *time.Location) time.Time {
	length := max(per.Approx(), time.Minute)
	_, offset := now.In(loc).Zone()
	from := time.Unix(4*24*3600-int64(offset), 0)
	return from.Add(now.Sub(from).Truncate(length)).UTC()
}
