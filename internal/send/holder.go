package send

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/onda-run/onda/internal/compose"
	"github.com/onda-run/onda/internal/delivery"
	"github.com/onda-run/onda/internal/mail"
	"github.com/onda-run/onda/internal/postgres"
)

// minWindow is how many recipients of a batch are marked and not settled at least, so that the connections have work while the next mark is on its way.
const minWindow = 8

// dearMark is how long after the one before a mark is cheap: a window is halved only where that makes no more than ten transactions a second.
const dearMark = 100 * time.Millisecond

// retrySoon is when a mail is tried again that was certainly not handed over.
const retrySoon = time.Minute

// holder sends one batch that this process has leased.
type holder struct {
	lane   *lane
	tenant string
	lease  *delivery.Lease
	email  *compose.Email
	broken error // the email cannot be made at all

	limits limits
	first  []job // of a mark that was set as the batch was leased

	acks chan int // how many outcomes were committed
	away atomic.Pointer[error]
	// returned counts the mails under marks that no relay was asked about in the end: like those that wait, they have used up nothing.
	returned atomic.Int64

	trafficLock sync.Mutex
	traffic     map[string]delivery.Traffic // by receiver; not added to what is known yet
}

// job is one message to hand over.
type job struct {
	holder *holder
	to     delivery.Recipient
	mail   *compose.Mail
	// receiver is where it goes, for the breakers; at is when it may go out, zero for at once.
	receiver string
	at       time.Time
	place    place
	entered  bool // it is counted among those on the way to its place
}

// run sends the batch. The window slides: a further mark is set as soon as three quarters of the window are settled. What is marked and not settled is unknown after a crash: so it
// is no more than keeps the connections busy. Whatever ends it early, what was handed over is waited
// for, what was marked and not handed over is put back, and the batch is released.
func (h *holder) run(ctx context.Context, w *worker) error {
	queue := h.first        // marked, not handed over
	unsettled := len(queue) // marked, no outcome committed
	var stop error          // why no further mark is set; errHeld for reasons that are no error
	if h.broken == nil {
		stop = h.lane.probe(ctx)
	}
	window := h.lane.window()
	var again, last time.Time // no mark is set before then, by the pace; when one was set
	passed := 0               // of the queue, those that wait for others on the way to the same place: up to the lane's widest window they keep no others from being marked
	starved, ample := 0, 0    // marks that came too late for the connections, and sooner than they had to
	defer func() { h.lane.learn(window, starved, ample) }()
	renew := time.NewTicker(max(h.lane.cfg.Lease/4, 10*time.Millisecond))
	defer renew.Stop()
	for {
		if stop == nil {
			stop = h.mayGoOn(ctx, w)
		}
		if step := h.limits.step(window - window/4); stop == nil && h.lease.Mark < h.lease.Size() && unsettled-passed <= window-step && unsettled <= h.lane.most-step && time.Until(again) <= 0 {
			switch {
			case last.IsZero(), h.limits.rate > 0: // the first; or it is the pace that connections wait for
			case len(queue) == 0:
				starved++
				window = min(2*window, h.lane.most)
			case len(queue) > passed && time.Since(last) > dearMark:
				ample++
			}
			last = time.Now()
			jobs, err := h.advance(ctx, min(h.lease.Mark+step, h.lease.Size()))
			var off *errPutOff
			switch {
			case errors.As(err, &off) && off.soon > 0 && (unsettled > 0 || h.lane.waiting.Load() == 0): // nobody else would have the room
				again = time.Now().Add(off.soon)
			case err != nil:
				stop = err
			}
			queue = append(queue, jobs...)
			slices.SortStableFunc(queue, func(a, b job) int { return a.at.Compare(b.at) })
			unsettled += len(jobs)
			continue
		}
		if ctx.Err() != nil && len(queue) > 0 {
			h.putBack(queue, "not handed over: the process ended")
			queue = nil
		}
		wait := time.Until(again)
		if unsettled == 0 && (stop != nil || wait <= 0) {
			if stop == nil && h.lease.Mark < h.lease.Size() {
				continue
			}
			break
		}
		var out chan job
		var next job
		var due <-chan time.Time
		n, left := h.lane.busy.enter(queue)
		passed = n
		if n < len(queue) {
			next = queue[n]
			if early := time.Until(next.at); next.entered || next.place.most == 0 && early <= 0 {
				out = h.lane.jobs
			} else {
				due = time.After(early)
			}
		}
		var asks <-chan time.Time
		if stop == nil && wait > 0 {
			asks = time.After(wait)
		}
		select {
		case <-due:
		case <-left:
		case <-asks:
		case out <- next:
			queue = slices.Delete(queue, n, n+1)
		case n := <-h.acks:
			unsettled -= n
		case <-renew.C:
			// Also when no further mark is set, for what waits under the last one for a slow relay.
			if h.lease.Half(time.Now()) {
				if _, err := h.advance(ctx, h.lease.Mark); err != nil && stop == nil {
					stop = err
				}
			}
		case <-h.cancelled(ctx, queue):
		}
	}
	return h.end(ctx, stop)
}

// cancelled is the end of ctx while there is something that could be put back; then nothing more is waited for with it.
func (h *holder) cancelled(ctx context.Context, queue []job) <-chan struct{} {
	if len(queue) == 0 {
		return nil
	}
	return ctx.Done()
}

// errHeld ends a batch early without anything being wrong.
var errHeld = errors.New("the batch is left to the next holder")

// mayGoOn tells why no further mark is to be set.
func (h *holder) mayGoOn(ctx context.Context, w *worker) error {
	if away := h.away.Load(); away != nil {
		return *away
	}
	if w.over(ctx) {
		return errHeld
	}
	return nil
}

// end closes the batch, or gives it back; while Postgres is away, behind the answer.
func (h *holder) end(ctx context.Context, stop error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordLimit)
	defer cancel()
	var off *errPutOff
	errors.As(stop, &off)
	err := h.lane.db.InTenant(ctx, h.tenant, func(ctx context.Context, tx *postgres.Tx) error {
		if len(h.limits.budgets) > 0 {
			if err := delivery.GiveBack(ctx, tx, h.limits.budgets, h.limits.granted+int(h.returned.Load())); err != nil {
				return err
			}
		}
		if err := h.finish(ctx, tx, off); err != nil {
			return err
		}
		if len(h.limits.budgets) > 0 {
			ours, err := h.lease.Grant(ctx, tx, 0, h.limits.day)
			if err == nil && !ours { // whoever took the batch over has what was granted
				err = delivery.GiveBack(ctx, tx, h.limits.budgets, -h.limits.granted)
			}
			if err != nil {
				return err
			}
		}
		return h.tally(ctx, tx)
	})
	if isAway(err) {
		h.lane.done.Go(func() { h.finishLater(off) })
	}
	if stop != nil && off == nil && !errors.Is(stop, errHeld) {
		return stop
	}
	return err
}

// finish closes the batch, gives it back for now or for a while, or gives the rest of it up.
func (h *holder) finish(ctx context.Context, tx *postgres.Tx, off *errPutOff) error {
	switch {
	case h.lease.Mark == h.lease.Size():
		_, err := h.lease.Close(ctx, tx, delivery.Function(h.lane.number))
		return err
	case off == nil:
		return h.lease.Release(ctx, tx)
	case off.giveUp != "":
		return h.lease.GiveUp(ctx, tx, delivery.Function(h.lane.number), off.giveUp)
	}
	return h.lease.PutOff(ctx, tx, off.until, off.livesOn)
}

// finishLater finishes as soon as Postgres is back, unless the lease or the process ends before: the next holder would have to wait for that, and take for unknown what a mark
// covers whose commit we never heard of. To finish twice changes nothing; what was granted and not used is not given back, since that may have been done.
func (h *holder) finishLater(off *errPutOff) {
	again := func() error {
		ctx, cancel := context.WithTimeout(context.Background(), recordLimit)
		defer cancel()
		return h.lane.db.InTenant(ctx, h.tenant, func(ctx context.Context, tx *postgres.Tx) error { return h.finish(ctx, tx, off) })
	}
	for h.lease.Alive(time.Now()) {
		select {
		case <-h.lane.stop:
			return
		case <-time.After(recordAgain):
		}
		if !isAway(again()) {
			return
		}
	}
}

// advance sets the mark and asks the gate, in one transaction, and gives what may be handed over after its commit, with an error too. errHeld when the lease is lost, or the run or
// the tenant is held, *errPutOff when nothing more may go out for a while.
func (h *holder) advance(ctx context.Context, hi int) (jobs []job, err error) {
	// The end of the request does not cut a mark off: whether it was set would not be known.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordLimit)
	defer cancel()
	started := time.Now()
	var m marked
	err = h.lane.db.InTenant(ctx, h.tenant, func(ctx context.Context, tx *postgres.Tx) (err error) {
		if m, err = h.mark(ctx, tx, hi); err == nil && m.held {
			err = errHeld // what was taken of limits is not
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("mark batch: %w", err)
	}
	h.moved(m, started)
	if m.off != nil {
		return m.jobs, m.off
	}
	return m.jobs, nil
}

// marked is what a mark comes to once its transaction is committed.
type marked struct {
	held  bool // the lease is lost, or the run or the tenant is held
	hi    int
	jobs  []job
	after limits
	off   *errPutOff // unless nil, nothing more is marked for now
}

// moved notes that a mark is committed; started is a time.Now() from before its transaction.
func (h *holder) moved(m marked, started time.Time) {
	h.limits = m.after
	h.lease.Moved(m.hi, started)
}

// mark sets the mark at hi, or at where limits allow, and asks the gate.
func (h *holder) mark(ctx context.Context, tx *postgres.Tx, hi int) (m marked, err error) {
	m.hi, m.after = hi, h.limits
	if m.held = tx.Tenant.SMTPSecret != h.lane.secret || h.broken == nil && tx.Tenant.Preproduction != h.email.Preproduction(); m.held {
		return m, nil // the next holder has the relay and the email as they are now
	}
	var first time.Duration
	gap := float64(time.Second) / max(h.limits.rate, 1e-6)
	if hi > h.lease.Mark {
		var n int
		if n, first, m.after, err = h.room(ctx, tx, hi-h.lease.Mark); err != nil {
			return m, err
		}
		m.hi = h.lease.Mark + n
	}
	b := &pgx.Batch{}
	mark, err := h.lease.QueueAdvance(tx, b, m.hi)
	if err != nil {
		return m, err
	}
	var asked *compose.Audience
	if h.lease.Attempt == 1 && m.hi > h.lease.Mark { // whom it comes to is known before it moves
		if asked, err = h.ask(ctx, tx, b, h.lease.Contacts[h.lease.Mark:m.hi]); err != nil {
			return m, err
		}
	}
	if err := tx.SendBatch(ctx, b).Close(); err != nil {
		return m, err
	}
	open, ok, err := mark.Done(ctx, tx)
	if m.held = !ok; err != nil || m.held || len(open) == 0 {
		return m, err
	}
	if h.lease.Attempt > 1 {
		b := &pgx.Batch{}
		if asked, err = h.ask(ctx, tx, b, contactsOf(open)); err != nil {
			return m, err
		}
		if err := tx.SendBatch(ctx, b).Close(); err != nil {
			return m, err
		}
	}
	asked, twins, err := h.follow(ctx, tx, h.lease.Mark, open, asked)
	if err != nil {
		return m, err
	}
	now := time.Now()
	a, err := h.admit(ctx, tx, without(open, twins), asked, now)
	if err != nil {
		return m, err
	}
	a.outcomes = append(a.outcomes, twins...)
	if m.jobs = a.jobs; a.full > 0 {
		m.off = &errPutOff{until: tx.Now().Add(a.full), livesOn: true}
	}
	for i := range m.jobs {
		if at := now.Add(first + time.Duration(float64(i)*gap)); m.after.rate > 0 && m.jobs[i].at.Before(at) {
			m.jobs[i].at = at
		}
	}
	if len(m.after.budgets) > 0 { // who is refused used nothing up, and who waits asks again when the time has come, which may be on another day
		m.after.granted += len(a.outcomes)
	}
	_, err = delivery.Record(ctx, tx, delivery.Function(h.lane.number), a.outcomes...)
	return m, err
}

// putBack records that messages were not handed over, so that they are tried again at once.
func (h *holder) putBack(queue []job, why string) {
	for _, j := range queue {
		h.lane.busy.leave(j)
		h.settle(delivery.Outcome{Delivery: j.to.Delivery, Contact: j.to.Contact, Attempt: j.to.Attempt, State: delivery.Deferred, RetryAt: time.Unix(0, 0), Detail: why})
	}
}

// settle records an outcome; the holder hears when it is committed.
func (h *holder) settle(o delivery.Outcome) {
	if o.Code == 0 && o.State != delivery.Sent && o.State != delivery.Unknown {
		h.returned.Add(1)
	}
	h.lane.recorder.add(entry{tenant: h.tenant, outcome: o, done: h.acks})
}

// handover is a message that is ready to be handed over.
type handover struct {
	mail.Outgoing
	job     job
	outcome delivery.Outcome // what is known of it so far
}

// connection takes messages one after another and hands each over, for as long as the lane lives. While it hands one over it has the next ready, if there is one: it never
// waits for it with a message in hand, since marks wait for outcomes.
func (l *lane) connection() {
	line := l.pool.Line()
	defer line.Rest()
	var now, next *handover
	var spare [2][]byte // contents, in turn
	for n := 0; ; n = 1 - n {
		if now, next = next, nil; now == nil {
			select {
			case j := <-l.jobs:
				now = l.prepare(j, spare[n][:0])
			case <-l.stop:
				return
			}
			if now == nil {
				continue
			}
		}
		if spare[n] = now.Content; cap(spare[n]) > maxSpare {
			spare[n] = nil
		}
		for more := true; more && next == nil; {
			select {
			case j := <-l.jobs:
				next = l.prepare(j, spare[1-n][:0])
			default:
				more = false
			}
		}
		var follows *mail.Outgoing
		if next != nil {
			follows = &next.Outgoing
		}
		o := l.deliver(line, now, follows)
		l.busy.leave(now.job)
		now.job.holder.settle(o)
	}
}

// maxSpare is how large a message may have been for its room to be kept for the next: a template may make one of some MiB.
const maxSpare = 1 << 20

// prepare makes a message. One that cannot be made is settled at once, and nil.
func (l *lane) prepare(j job, buf []byte) *handover {
	m := &handover{job: j, outcome: delivery.Outcome{Delivery: j.to.Delivery, Contact: j.to.Contact, Attempt: j.to.Attempt}}
	err := j.holder.broken
	if err == nil {
		m.Outgoing, err = j.mail.Append(buf)
	}
	switch o := &m.outcome; {
	case errors.Is(err, mail.ErrAddress):
		o.State, o.Reason, o.Detail = delivery.Suppressed, delivery.BadAddress, "the address cannot be mailed"
	case err != nil:
		*o = failed(*o, err)
	default:
		o.Tracking = j.mail.Tracking()
		return m
	}
	l.busy.leave(j)
	j.holder.settle(m.outcome)
	return nil
}

// deliver hands one message over, if the batch is still ours, and tells what became of it. next is what the line is given after it.
func (l *lane) deliver(line *mail.Line, m *handover, next *mail.Outgoing) delivery.Outcome {
	j, o := m.job, m.outcome
	h := j.holder
	if err := l.relays.wait(line, l.draining, l.cfg.MessageLimit); err != nil {
		line.Rest()
		o.State, o.RetryAt, o.Detail = delivery.Deferred, time.Unix(0, 0), "not handed over: "+err.Error()
		return o
	}
	// The limit of a message counts from here, the dialling included: a takeover waits no longer than that after the lease.
	ctx, cancel := context.WithTimeout(context.Background(), l.cfg.MessageLimit)
	defer cancel()
	if !h.lease.Alive(time.Now()) {
		line.Rest() // its transaction may be open
		o.State, o.RetryAt, o.Detail = delivery.Deferred, time.Unix(0, 0), "not handed over: the lease ended"
		return o
	}
	res := line.Send(ctx, &m.Outgoing, next)
	o.Code, o.Status, o.Detail, o.Class = res.Code, res.Enhanced, res.Text, string(res.Class)
	switch res.State {
	case mail.Sent:
		o.State, o.Class = delivery.Sent, ""
	case mail.Failed:
		o.State = delivery.Failed
	case mail.Unknown:
		o.State, o.Resend = delivery.Unknown, h.email.Resend
	case mail.Deferred:
		o = later(o, j.mail.Now, j.to)
	default:
		o.State, o.RetryAt, o.Detail = delivery.Deferred, j.mail.Now.Add(retrySoon), "not handed over: the connection broke"
		if res.RelayAway {
			o.Detail = "not handed over: the relay is away"
			err := res.Err
			h.away.CompareAndSwap(nil, &err)
		}
	}
	if res.Code > 0 {
		l.good.Store(time.Now().UnixNano())
		h.count(o, j.receiver)
	}
	return o
}

// later is the outcome of a mail that was refused for the moment: it is tried again, unless it expires before that.
func later(o delivery.Outcome, now time.Time, to delivery.Recipient) delivery.Outcome {
	at, ok := delivery.RetryAt(now, o.Class, to)
	if !ok {
		o.State, o.Reason = delivery.Failed, delivery.Expired
		return o
	}
	o.State, o.RetryAt = delivery.Deferred, at
	return o
}

// failed is the outcome of a mail that cannot be made. It says nothing against the address.
func failed(o delivery.Outcome, err error) delivery.Outcome {
	o.State, o.Class, o.Detail = delivery.Failed, string(mail.Policy), "the mail cannot be made: "+err.Error()
	return o
}
