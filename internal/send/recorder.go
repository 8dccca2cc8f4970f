package send

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"go.uber.org/zap"

	"github.com/onda-run/onda/internal/contact"
	"github.com/onda-run/onda/internal/delivery"
	"github.com/onda-run/onda/internal/mail"
	"github.com/onda-run/onda/internal/postgres"
)

// How outcomes are gathered for one statement. While writers are at work, more come together than at least.
const (
	recordAtLeast = 100
	recordWait    = 8 * time.Millisecond
	recordAgain   = 200 * time.Millisecond
	writers       = 2 // connections: see Config.MaxConns
)

// entry is one outcome on its way into Postgres. done is told how many are committed, or can never be; it has room for each.
type entry struct {
	tenant  string
	outcome delivery.Outcome
	done    chan<- int
}

// settled tells those who wait that these are done with, once each.
func settled(es []entry) {
	count := make(map[chan<- int]int, 4)
	for _, e := range es {
		count[e.done]++
	}
	for done, n := range count {
		done <- n
	}
}

// recorder writes the outcomes of all batches that a lane holds, many a statement. It holds on to what it could not write: an outcome that comes late is still
// true. It is bounded by the windows of the batches that are held, since no mark moves before the outcomes are committed.
type recorder struct {
	db      *postgres.DB
	log     *zap.Logger
	drainer string
	counter metric.Int64Counter

	in    chan entry
	out   chan []entry
	quit  chan struct{}
	ended chan struct{}
	once  sync.Once
	ctx   context.Context
	abort context.CancelFunc
	stuck sync.WaitGroup // writes that are tried again, beside the others
}

func newRecorder(db *postgres.DB, log *zap.Logger, drainer string, counter metric.Int64Counter) *recorder {
	r := &recorder{db: db, log: log, drainer: drainer, counter: counter, in: make(chan entry, recordAtLeast), out: make(chan []entry), quit: make(chan struct{}), ended: make(chan struct{})}
	r.ctx, r.abort = context.WithCancel(context.Background())
	return r
}

func (r *recorder) run() { r.once.Do(func() { go r.loop() }) }

func (r *recorder) add(e entry) { r.in <- e }

// close writes what is left and ends; when ctx ends first, what could not be written is left unknown to the next holder.
func (r *recorder) close(ctx context.Context) error {
	r.once.Do(func() { close(r.ended) })
	close(r.quit)
	defer r.abort()
	select {
	case <-r.ended:
		return nil
	case <-ctx.Done():
		r.abort()
		<-r.ended
		return errors.New("outcomes were not recorded before the process ended")
	}
}

// loop gathers outcomes for the writers, who commit while the next come together.
func (r *recorder) loop() {
	var at sync.WaitGroup
	for range writers {
		at.Go(func() {
			for some := range r.out {
				r.flush(some)
			}
		})
	}
	defer func() {
		close(r.out)
		at.Wait()
		r.stuck.Wait()
		close(r.ended)
	}()
	var some []entry
	wait := time.NewTimer(time.Hour)
	waited := false
	for {
		var out chan []entry
		if waited || len(some) >= recordAtLeast {
			out = r.out
		}
		select {
		case e := <-r.in:
			if len(some) == 0 {
				waited = false
				wait.Reset(recordWait)
			}
			some = append(some, e)
		case <-wait.C:
			waited = len(some) > 0
		case out <- some:
			some, waited = nil, false
		case <-r.quit:
			for {
				select {
				case e := <-r.in:
					some = append(some, e)
					continue
				default:
				}
				if len(some) > 0 {
					r.out <- some
				}
				return
			}
		}
	}
}

// flush writes outcomes, those of each tenant in one transaction.
func (r *recorder) flush(some []entry) {
	byTenant := map[string][]entry{}
	for _, e := range some {
		byTenant[e.tenant] = append(byTenant[e.tenant], e)
	}
	for tenant, es := range byTenant {
		r.write(tenant, es, false)
	}
}

// write goes on until the outcomes are committed, or the process ends. One that Postgres will never take is told apart from the others; what it does not take now is tried
// again aside, so that a tenant whose tables are locked stops nobody else's outcomes.
func (r *recorder) write(tenant string, es []entry, aside bool) {
	for r.ctx.Err() == nil {
		err := r.commit(tenant, es)
		if err == nil {
			r.count(es)
			settled(es)
			return
		}
		if !isAway(err) {
			if len(es) > 1 {
				for _, e := range es {
					r.write(tenant, []entry{e}, aside)
				}
				return
			}
			r.log.Error("an outcome cannot be recorded; it stays unknown", zap.String("tenant", tenant), zap.Int64("delivery", es[0].outcome.Delivery), zap.Error(err))
			settled(es)
			return
		}
		r.log.Warn("outcomes are not recorded yet", zap.String("tenant", tenant), zap.Int("outcomes", len(es)), zap.Error(err))
		if !aside {
			r.stuck.Go(func() { r.write(tenant, es, true) })
			return
		}
		select {
		case <-r.ctx.Done():
		case <-time.After(recordAgain):
		}
	}
	settled(es)
}

// count adds to the metric of outcomes.
func (r *recorder) count(es []entry) {
	of := map[delivery.State]int64{}
	for _, e := range es {
		of[e.outcome.State]++
	}
	for state, n := range of {
		r.counter.Add(r.ctx, n, metric.WithAttributes(attribute.String("onda.outcome", string(state))))
	}
}

// isAway tells whether an error is one that another try may not have.
func isAway(err error) bool {
	return err != nil && !isMistake(err) && !errors.Is(err, postgres.ErrUnknownTenant)
}

// isMistake tells whether Postgres answered something that it will always answer: wrong data, a broken constraint, a missing table.
func isMistake(err error) bool {
	var pe *pgconn.PgError
	if !errors.As(err, &pe) {
		return false
	}
	return len(pe.Code) == 5 && (pe.Code[:2] == "22" || pe.Code[:2] == "23" || pe.Code[:2] == "42")
}

// commit writes outcomes in one transaction, and suppresses the addresses that do not exist.
func (r *recorder) commit(tenant string, es []entry) error {
	ctx, cancel := context.WithTimeout(r.ctx, recordLimit)
	defer cancel()
	outcomes := make([]delivery.Outcome, len(es))
	for i, e := range es {
		outcomes[i] = e.outcome
	}
	return r.db.InTenant(ctx, tenant, func(ctx context.Context, tx *postgres.Tx) error {
		for i := range outcomes {
			if outcomes[i].State == delivery.Deferred && outcomes[i].RetryAt.Before(tx.Now()) {
				outcomes[i].RetryAt = tx.Now() // at once, on the tenant's clock
			}
		}
		changed, err := delivery.Record(ctx, tx, r.drainer, outcomes...)
		if err != nil {
			return err
		}
		var bad []contact.Suppression
		for _, o := range changed {
			if o.State == delivery.Failed && o.Class == string(mail.Hard) {
				bad = append(bad, contact.Suppression{Contact: o.Contact, Reason: contact.Bounce, Delivery: o.Delivery})
			}
		}
		_, err = contact.Suppress(ctx, tx, r.drainer, bad...)
		return err
	})
}
