package send

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/onda-run/onda/internal/compose"
	"github.com/onda-run/onda/internal/contact"
	"github.com/onda-run/onda/internal/delivery"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/provider"
	"github.com/onda-run/onda/internal/spec"
)

// limits are what keeps a batch of marketing mail from going out as fast as it could. The zero limits do not.
type limits struct {
	rate    float64           // mails a second of the tenant; 0: no limit
	budgets []delivery.Budget // of mails that were never tried
	granted int               // of the budgets, not used yet: taken for the whole batch, since all who send lock the same row for it
	day     string            // that they were granted on
	ends    time.Time         // the day
	open    map[string]delivery.Breaker
}

// errPutOff ends a batch early: what is left of it waits.
type errPutOff struct {
	until   time.Time
	livesOn bool            // it expires no sooner than a day after that
	giveUp  delivery.Reason // it would expire before that
	soon    time.Duration   // when it is so near that the holder waits for it: how long that is
}

// worthWaiting is how near the time of the next mails is that a holder waits for, rather than to give its batch back.
const worthWaiting = 3 * delivery.Ahead

func (e *errPutOff) Error() string {
	return "what is left of the batch waits until " + e.until.Format(time.RFC3339)
}

// readLimits is asked once a batch.
func (h *holder) readLimits(ctx context.Context, tx *postgres.Tx) (l limits, err error) {
	if h.email == nil || h.email.Topic == "" || tx.Tenant.Schema < delivery.PaceSchema {
		return l, nil
	}
	settings, quotas := h.email.Settings, tx.Tenant.Quotas
	l.rate = quotas.Slower(settings.Pace.Rate.PerSecond())
	domain := h.email.SenderDomain()
	if h.lease.Untried() {
		h.readBudgets(&l, tx.Now().In(settings.Location()), quotas, domain)
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

// readBudgets is of mails that were never tried: whatever they waited for, the day counts on which they go. now is by the tenant's clock.
func (h *holder) readBudgets(l *limits, now time.Time, quotas postgres.Quotas, domain string) {
	// Periods are by the date alone: another zone in the settings begins no day anew.
	y, m, d := now.Date()
	day, month := time.Date(y, m, d, 0, 0, 0, 0, time.UTC), time.Date(y, m, 1, 0, 0, 0, 0, time.UTC)
	l.day, l.ends = day.Format(time.DateOnly), dayAfter(now)
	if quotas.PerDay != nil {
		b := delivery.Budget{Kind: "quota:day", Period: day, Count: *quotas.PerDay, Ends: l.ends, Name: "the quota of a day"}
		if b.Count == 0 { // no day will have more
			b.Reason = delivery.Quota
		}
		l.budgets = append(l.budgets, b)
	}
	if quotas.PerMonth != nil {
		last := time.Date(y, m+1, 0, 12, 0, 0, 0, now.Location())
		l.budgets = append(l.budgets, delivery.Budget{Kind: "quota:month", Period: month, Count: *quotas.PerMonth, Ends: dayAfter(last), Reason: delivery.Quota, Name: "the quota of a month"})
	}
	if plan := h.email.Warmup(); plan != nil {
		if mails, limited := plan.Allows(now, now.Location()); limited {
			l.budgets = append(l.budgets, delivery.Budget{Kind: "warmup:" + domain, Period: day, Count: int64(mails), Ends: l.ends, Name: "the warm-up of " + domain})
		}
	}
	if h.lease.GrantedOn == l.day && len(l.budgets) > 0 {
		l.granted = h.lease.Granted
	}
}

// dayAfter is when the day after that of a moment begins, by its clocks. There may be no midnight then.
func dayAfter(t time.Time) time.Time {
	y, m, d := t.Date()
	return spec.Clock(0).On(time.Date(y, m, d+1, 12, 0, 0, 0, t.Location()), t.Location())
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
		return 0, 0, after, &errPutOff{until: earlier(b.Until, tx.Now().Add(delivery.HeldFor))}
	}
	n = want
	if len(after.budgets) > 0 {
		if n, err = h.grant(ctx, tx, want, &after); err != nil {
			return 0, 0, after, err
		}
	}
	if after.rate > 0 {
		var taken bool
		if first, taken, err = delivery.Slots(ctx, tx, "", after.rate, n); err != nil {
			return 0, 0, after, err
		}
		if !taken {
			off := &errPutOff{until: tx.Now().Add(first), livesOn: true}
			if first <= worthWaiting {
				off.soon = max(first-delivery.Ahead, 0) + 10*time.Millisecond
			}
			return 0, 0, after, off
		}
	}
	return n, first, after, nil
}

// grant is how many of the next recipients have their part of the budgets. An *errPutOff when none has, errHeld when the day is over that they are of.
func (h *holder) grant(ctx context.Context, tx *postgres.Tx, want int, after *limits) (int, error) {
	if !tx.Now().Before(after.ends) {
		return 0, errHeld
	}
	if after.granted < want {
		more, by, err := delivery.Grant(ctx, tx, after.budgets, h.lease.Size()-h.lease.Mark-after.granted)
		if err != nil {
			return 0, err
		}
		if after.granted += more; after.granted == 0 {
			return 0, h.usedUp(ctx, tx, by)
		}
		if more > 0 {
			if _, err := h.lease.Grant(ctx, tx, after.granted, after.day); err != nil {
				return 0, err
			}
		}
	}
	n := min(want, after.granted)
	after.granted -= n
	return n, nil
}

// usedUp is the end of a batch of which none may go out by a budget. While others hold what they were granted, some of it may come back.
func (h *holder) usedUp(ctx context.Context, tx *postgres.Tx, by *delivery.Budget) error {
	off := &errPutOff{until: by.Ends, livesOn: by.Reason == ""}
	others, err := h.lease.OthersHold(ctx, tx)
	if err != nil {
		return err
	}
	if again := tx.Now().Add(tx.Tick()); others && again.Before(h.lease.Expires) {
		off.until = earlier(again, by.Ends)
		return off
	}
	if !off.livesOn && !by.Ends.Before(h.lease.Expires) {
		off.giveUp = by.Reason
	}
	return off
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// inQueue is how long at most a further attempt waits, under its mark, for its time in the queue to where it goes; its batch is put off beyond that.
const inQueue = 20 * time.Second

// queued is what becomes of mails for whose receiver the tenant has a pace, or a breaker is open.
type queued struct {
	waiting []delivery.Outcome  // they go out later, or never
	at      map[int64]time.Time // they go out then, by delivery
	full    time.Duration       // unless 0: for how long the batch is put off, since a queue is full
}

// queueUp lets mails wait for their time in the queue to where they go, and holds those back for whose receiver a breaker is open. start is the time.Now() that the times of
// jobs are reckoned from.
func (h *holder) queueUp(ctx context.Context, tx *postgres.Tx, rs []delivery.Recipient, address func(contact int64) string, start time.Time) (q queued, err error) {
	pace := h.email.Settings.Pace
	if len(pace.Domains) == 0 && len(h.limits.open) == 0 || tx.Tenant.Schema < delivery.PaceSchema {
		return q, nil
	}
	queues := map[string][]delivery.Recipient{}
	for _, r := range rs {
		domain, name := provider.OfAddress(address(r.Contact))
		if b, stopped := h.limits.open[cmp.Or(name, delivery.Others)]; stopped {
			q.waiting = append(q.waiting, delivery.HeldBack(r, b))
			continue
		}
		if receiver, p := pace.Of(domain, name); p.Rate.Count > 0 {
			queues[receiver] = append(queues[receiver], r)
		}
	}
	q.at = map[int64]time.Time{}
	for _, receiver := range slices.Sorted(maps.Keys(queues)) { // in one order: others wait for the same rows
		queue, rate := queues[receiver], pace.Domains[receiver].Rate.PerSecond()
		// At its first attempt a mail is given its time, however far ahead. When that has come, whole minutes of them come at once: they go out one after the other.
		again, within, ahead := h.lease.Attempt > 1, queue[0].Expires.Sub(tx.Now()), delivery.Ahead
		if again {
			within, ahead = inQueue, inQueue
		}
		first, got, err := delivery.Queue(ctx, tx, receiver, rate, len(queue), again, within)
		if err != nil {
			return q, err
		}
		if again && got < len(queue) {
			q.full = max(q.full, first, delivery.Ahead)
		}
		for i, r := range queue {
			wait := first + time.Duration(float64(i)/rate*float64(time.Second))
			switch {
			case i >= got && !again:
				q.waiting = append(q.waiting, delivery.Refusal(r, delivery.Late))
			case wait > ahead:
				q.waiting = append(q.waiting, delivery.Paced(r, receiver, tx.Now().Add(wait)))
			default:
				q.at[r.Delivery] = start.Add(wait)
			}
		}
	}
	return q, nil
}

// reserve takes what contacts may get of marketing mail: of each frequency cap one, of their own too, and each version of an email once where duplicates are not wanted. Refusals are
// of those who may get no more. At a first attempt only. Who is to get several mails is looked at once for each.
func (h *holder) reserve(ctx context.Context, tx *postgres.Tx, rs []delivery.Recipient, audience *compose.Audience) (refusals []delivery.Outcome, err error) {
	settings := h.email.Settings
	if h.lease.Attempt > 1 || len(settings.Frequency) == 0 && settings.Duplicates == nil && !audience.AnyWishes() {
		return nil, nil
	}
	for _, round := range delivery.Rounds(rs, func(r delivery.Recipient) int64 { return r.Contact }) {
		refused, err := h.reserveRound(ctx, tx, round, audience)
		if err != nil {
			return nil, err
		}
		refusals = append(refusals, refused...)
	}
	return refusals, nil
}

// reserveRound is of recipients of which none is there twice.
func (h *holder) reserveRound(ctx context.Context, tx *postgres.Tx, rs []delivery.Recipient, audience *compose.Audience) (refusals []delivery.Outcome, err error) {
	settings := h.email.Settings
	refuse := func(granted []int64, why delivery.Reason) {
		rs = slices.DeleteFunc(slices.Clone(rs), func(r delivery.Recipient) bool {
			_, ok := slices.BinarySearch(granted, r.Contact)
			if !ok {
				refusals = append(refusals, delivery.Refusal(r, why))
			}
			return !ok
		})
	}
	if settings.Duplicates != nil && len(rs) > 0 {
		granted, err := delivery.Once(ctx, tx, fmt.Sprint("once:", h.lease.Email), settings.Duplicates.Approx(), contactsOf(rs))
		if err != nil {
			return nil, err
		}
		refuse(granted, delivery.Duplicate)
	}
	var caps []delivery.Limit
	for _, c := range settings.Frequency {
		caps = append(caps, delivery.Limit{Kind: fmt.Sprintf("cap:*:%d/%s", c.Count, c.Per), Period: periodOf(tx.Now(), c.Per, settings.Location()), Count: c.Count})
	}
	groups := map[contact.Frequency][]int64{} // by what they wish; most wish nothing
	for _, r := range rs {
		f := audience.Wishes(r.Contact).Frequency
		groups[f] = append(groups[f], r.Contact)
	}
	var granted []int64
	for _, f := range slices.SortedFunc(maps.Keys(groups), func(a, b contact.Frequency) int { return strings.Compare(a.String(), b.String()) }) { // everywhere in one order
		limits := caps
		if f.Count > 0 {
			limits = append(slices.Clone(caps), delivery.Limit{Kind: "cap:own:" + f.Per, Period: ownPeriod(tx.Now(), f.Per, settings.Location()), Count: f.Count})
		}
		got, err := delivery.Reserve(ctx, tx, limits, groups[f])
		if err != nil {
			return nil, err
		}
		granted = append(granted, got...)
	}
	slices.Sort(granted)
	refuse(granted, delivery.Capped)
	return refusals, nil
}

// ownPeriod is the beginning of the week or calendar month that a moment is in, as the tenant's clock shows it.
func ownPeriod(now time.Time, per string, loc *time.Location) time.Time {
	if per == "month" {
		year, month, _ := now.In(loc).Date()
		return time.Date(year, month, 1, 0, 0, 0, 0, time.UTC)
	}
	return periodOf(now, spec.Duration{Days: 7}, loc)
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
	delivery.TellOpened(h.lane.log, h.tenant, opened)
	return nil
}

// periodOf is the beginning of the period of a cap that a moment is in, as the tenant's clock shows it: periods follow each other from Monday 5 January 1970, midnight, so that 1d
// is a day there and 1w a week, however long the clocks make it. So a contact may get up to twice the cap around the change of a period, and never more within one.
func periodOf(now time.Time, per spec.Duration, loc *time.Location) time.Time {
	length := max(per.Approx(), time.Minute)
	_, offset := now.In(loc).Zone()
	shown := now.Add(time.Duration(offset) * time.Second).UTC()
	from := time.Date(1970, 1, 5, 0, 0, 0, 0, time.UTC)
	return from.Add(shown.Sub(from).Truncate(length))
}
