package send

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/metric"
	"go.uber.org/zap"
	"golang.org/x/sync/singleflight"

	"github.com/onda-run/onda/internal/compose"
	"github.com/onda-run/onda/internal/delivery"
	"github.com/onda-run/onda/internal/fn"
	"github.com/onda-run/onda/internal/mail"
	"github.com/onda-run/onda/internal/postgres"
)

// Times of a lane.
const (
	probeLimit  = 900 * time.Millisecond // a relay that is away answers 503 within a second
	probeEvery  = 20 * time.Second       // a relay that took or refused a mail since then is there
	recordLimit = 5 * time.Second        // a transaction
)

// lane sends the mail of one lane: it has its own connections, batches and recorder, so that a blast never stands before a password mail.
type lane struct {
	number   int
	cfg      Config
	pool     *mail.Pool
	secret   string // with these relays, of tenants that have them for their own; empty: the cell's
	unfit    error  // for a pre-production
	db       *postgres.DB
	composer *compose.Composer
	log      *zap.Logger
	draining <-chan struct{}
	recorder *recorder

	slots   chan struct{} // one for each batch that is held
	waiting atomic.Int32  // workers who wait for one
	relays  *relayPace
	most    int // how wide a window may be
	busy    busy
	jobs    chan job
	start   sync.Once
	stop    chan struct{}
	done    sync.WaitGroup
	good    atomic.Int64 // unix nanoseconds of the relay's last answer
	probes  singleflight.Group
	wide    atomic.Int32 // the window that batches begin with
}

// window is how many recipients of a batch may be marked and not settled, to begin with.
func (l *lane) window() int { return min(max(minWindow, int(l.wide.Load())), l.most) }

// learn takes what became of a window: the next batch begins with one that had work for the connections, and with half of one that had more than that.
func (l *lane) learn(window, starved, ample int) {
	if starved == 0 && ample > 0 {
		window /= 2
	}
	l.wide.Store(int32(window))
}

func newLane(number int, cfg Config, relays []mail.Relay, db *postgres.DB, composer *compose.Composer, rt *fn.Runtime, outcomes metric.Int64Counter) *lane {
	return &lane{
		number: number, cfg: cfg, db: db, composer: composer, log: rt.Log, draining: rt.Draining(),
		unfit:    mail.CheckPreproduction(relays),
		pool:     mail.NewPool(relays, mail.PoolConfig{Size: cfg.Connections, MessageLimit: cfg.MessageLimit}),
		recorder: newRecorder(db, rt.Log, delivery.Function(number), outcomes),
		slots:    make(chan struct{}, cfg.Batches),
		relays:   newRelayPace(db, number, relays),
		most:     mostAtRelays(relays),
		jobs:     make(chan job, cfg.Connections), // a holder that is not at work at this moment keeps no connection from having its next message ready
		stop:     make(chan struct{}),
	}
}

// run starts the goroutines of the connections, at the first batch.
func (l *lane) run() {
	l.start.Do(func() {
		l.recorder.run()
		for range l.cfg.Connections {
			l.done.Go(l.connection)
		}
	})
}

// close waits for what is in hand, as long as ctx allows.
func (l *lane) close(ctx context.Context) error {
	l.start.Do(func() {}) // nothing starts any more
	close(l.stop)
	l.empty()
	l.done.Wait() // bounded by the message limit
	err := l.recorder.close(ctx)
	return errors.Join(err, l.pool.Close(ctx))
}

// empty puts back what no connection has begun with: nobody waits for it any more.
func (l *lane) empty() {
	for {
		select {
		case j := <-l.jobs:
			j.holder.putBack([]job{j}, "not handed over: the process ended")
		default:
			return
		}
	}
}

// ending is true when the process is to end: no further mark is set.
func (l *lane) ending() bool {
	select {
	case <-l.draining:
		return true
	default:
		return false
	}
}

// work leases one batch after another, several at once where the process has room, until none is due or the time is over. more is true when there may be more
// to do. It answers when everything it handed over is recorded.
func (l *lane) work(ctx context.Context, tenant string, until time.Time) (more bool, err error) {
	l.run()
	if !l.slot(ctx, until) {
		return true, ctx.Err() // others use all there is
	}
	w := &worker{lane: l, tenant: tenant, until: until}
	w.holders.Go(func() { w.hold(ctx, true) })
	w.holders.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.more, w.err
}

// slot waits for room for a batch; those who wait get it in the order in which they came. False when the time is over, or the process or the request ends.
func (l *lane) slot(ctx context.Context, until time.Time) bool {
	l.waiting.Add(1)
	defer l.waiting.Add(-1)
	over := time.NewTimer(time.Until(until))
	defer over.Stop()
	select {
	case l.slots <- struct{}{}:
		return true
	case <-over.C:
	case <-l.draining:
	case <-ctx.Done():
	}
	return false
}

// worker is one event's turn for one tenant.
type worker struct {
	lane   *lane
	tenant string
	until  time.Time

	holders sync.WaitGroup
	mu      sync.Mutex
	more    bool
	err     error
}

// fail keeps the first error and ends the turn.
func (w *worker) fail(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err == nil {
		w.err = err
	}
}

// over tells whether no further batch is to be leased.
func (w *worker) over(ctx context.Context) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err != nil {
		return true
	}
	if ctx.Err() != nil || w.lane.ending() || time.Now().After(w.until) {
		w.more = true
		return true
	}
	return false
}

// hold holds one batch after another in one slot. As soon as it has one, it sees whether the process has room for another beside it. Between batches it lets those go before who
// wait for a slot, so that no tenant's blast keeps another's mail: its worker's first holder stands in line again, further ones end.
func (w *worker) hold(ctx context.Context, first bool) {
	has := true
	defer func() {
		if has {
			<-w.lane.slots
		}
	}()
	spread := false
	for !w.over(ctx) {
		h, err := w.lane.take(ctx, w.tenant)
		if err != nil {
			w.fail(err)
			return
		}
		if h == nil {
			return
		}
		if h.lease.Done {
			continue
		}
		if !spread && w.lane.waiting.Load() == 0 {
			spread = true
			select {
			case w.lane.slots <- struct{}{}:
				w.holders.Go(func() { w.hold(ctx, false) })
			default:
			}
		}
		if err := h.run(ctx, w); err != nil {
			w.fail(err)
			return
		}
		if w.lane.waiting.Load() > 0 {
			<-w.lane.slots
			if has = first && w.lane.slot(ctx, w.until); !has {
				w.leave()
				return
			}
			spread = false
		}
	}
}

// leave notes that there may be more to do.
func (w *worker) leave() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.more = true
}

// take leases the next batch of the tenant and loads its email. Nil when there is none. The end of the request does not cut it off: a lease that nobody knows of would
// have to run out.
func (l *lane) take(ctx context.Context, tenant string) (*holder, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordLimit)
	defer cancel()
	h := &holder{lane: l, tenant: tenant}
	started := time.Now()
	var first marked
	err := l.db.InTenant(ctx, tenant, func(ctx context.Context, tx *postgres.Tx) (err error) {
		if tx.Tenant.SMTPSecret != l.secret {
			return &errOtherRelay{tx.Tenant.SMTPSecret}
		}
		if tx.Tenant.Preproduction && l.unfit != nil {
			return l.unfit
		}
		h.lease, err = delivery.Take(ctx, tx, delivery.Function(l.number), l.number, l.cfg.terms(), started,
			func(ctx context.Context, tx *postgres.Tx, email int64) (bool, error) {
				e, err := l.composer.Load(ctx, tx, email)
				if errors.Is(err, compose.ErrBroken) {
					return false, nil
				}
				if err != nil {
					return false, err
				}
				return e.Resend, nil
			})
		if err != nil || h.lease == nil || h.lease.Done {
			return err
		}
		h.email, err = l.composer.Load(ctx, tx, h.lease.Email)
		if errors.Is(err, compose.ErrBroken) { // each of its mails fails, and says why
			h.broken, err = err, nil
			l.log.Error("an email cannot be made", zap.String("tenant", tenant), zap.Int64("document", h.lease.Email), zap.Error(h.broken))
		}
		if err == nil && h.broken == nil {
			h.limits, err = h.readLimits(ctx, tx)
		}
		if err != nil || h.broken != nil || l.number != delivery.Transactional || !l.there() {
			return err
		}
		// Somebody waits for this mail: its mark is set at once, in a transaction less. Nothing limits it, so there is nothing that could put it off.
		first, err = h.mark(ctx, tx, min(h.lease.Mark+l.window()/2, h.lease.Size()))
		return err
	})
	if err != nil || h.lease == nil {
		return nil, err
	}
	if first.hi > h.lease.Mark && !first.held {
		h.moved(first, started)
		h.first = first.jobs
	}
	h.acks = make(chan int, delivery.MaxWindow)
	return h, nil
}

// there tells whether the relay has just answered.
func (l *lane) there() bool { return time.Since(time.Unix(0, l.good.Load())) < probeEvery }

// expect has the relay reached while a mail is stored, so that it is there when that mail is leased: a process that was started for it has not reached it yet. Nothing waits for
// that: of a relay that says nothing, everybody who brings a mail would. Whoever sends it is told of an error.
func (l *lane) expect() {
	if !l.there() {
		l.reached(context.Background())
	}
}

// probe finds out within a second whether a relay is there, unless it has just answered, so that nothing is marked for a relay that is away.
func (l *lane) probe(ctx context.Context) error {
	if l.there() {
		return nil
	}
	select {
	case r := <-l.reached(ctx):
		return r.Err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// reached has the relay reached; those who ask at once are told together.
func (l *lane) reached(ctx context.Context) <-chan singleflight.Result {
	return l.probes.DoChan("", func() (any, error) { return nil, l.reach(context.WithoutCancel(ctx)) })
}

func (l *lane) reach(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, probeLimit+l.cfg.MessageLimit)
	defer cancel()
	go func() { // nobody waits for it when the lane is closed
		select {
		case <-l.stop:
			cancel()
		case <-ctx.Done():
		}
	}()
	first, over := context.WithTimeout(ctx, probeLimit)
	defer over()
	if err := l.pool.Reach(first); err != nil {
		return err
	}
	c, err := l.pool.Get(ctx)
	if err != nil {
		return err
	}
	l.pool.Put(c)
	l.good.Store(time.Now().UnixNano())
	return nil
}
