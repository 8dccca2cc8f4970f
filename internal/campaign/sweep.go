package campaign

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"go.uber.org/zap"

	"github.com/onda-run/onda/internal/feedback"
	"github.com/onda-run/onda/internal/postgres"
)

// workTime is how long one request works before it leaves the rest to the next.
const workTime = 20 * time.Second

// engine does the work of campaigns: it keeps nothing but decoded documents, so that any number of them may work at once.
type engine struct {
	db    *postgres.DB
	docs  *documents
	share int
	log   *zap.Logger
	// stop is closed when the process is to end: the engine then ends after the transaction it is at.
	stop <-chan struct{}
}

// scope says what is to be looked for.
type scope struct {
	run   int64 // plan this run's batches; 0 for every run's
	facts bool
	plan  bool
	walk  bool
	sweep bool // and everything else that may be due
}

// work does what is due, chunk after chunk, each in its own transaction, until nothing is left (all is true), the time is over, or the process is to end. An error
// of one run does not keep the others from being worked on.
func (e *engine) work(ctx context.Context, tenant string, s scope) (all bool, err error) {
	until := time.Now().Add(workTime)
	var errs []error
	failed := map[int64]bool{}
	for {
		left, err := e.round(ctx, tenant, s, until, failed, &errs)
		if err != nil {
			return false, errors.Join(append(errs, err)...)
		}
		if !left {
			return len(errs) == 0, errors.Join(errs...)
		}
		if e.over(ctx, until) {
			return false, errors.Join(errs...)
		}
	}
}

func (e *engine) over(ctx context.Context, until time.Time) bool {
	select {
	case <-e.stop:
		return true
	case <-ctx.Done():
		return true
	default:
		return !time.Now().Before(until)
	}
}

// round goes through everything once and tells whether something is left to do at once.
func (e *engine) round(ctx context.Context, tenant string, s scope, until time.Time, failed map[int64]bool, errs *[]error) (left bool, err error) {
	in := func(f func(ctx context.Context, tx *postgres.Tx) (bool, error)) (more bool, err error) {
		err = e.db.InTenant(ctx, tenant, func(ctx context.Context, tx *postgres.Tx) (err error) {
			more, err = f(ctx, tx)
			return err
		})
		return more, err
	}
	if s.sweep {
		_, err := in(func(ctx context.Context, tx *postgres.Tx) (bool, error) {
			if err := tx.EnsurePartitions(ctx); err != nil {
				return false, err
			}
			return false, begin(ctx, tx)
		})
		if err != nil {
			return false, err
		}
	}
	if s.facts {
		for more := true; more && !e.over(ctx, until); {
			if more, err = in(e.docs.readFacts); err != nil {
				return false, err
			}
			left = left || more
		}
	}
	runs, err := e.runs(ctx, tenant, s.run)
	if err != nil {
		return false, err
	}
	for _, r := range runs {
		if failed[r.id] {
			continue
		}
		more, err := e.one(r, s, in)
		if err != nil {
			if connectionGone(err) {
				return false, err
			}
			failed[r.id] = true
			*errs = append(*errs, fmt.Errorf("run %d: %w", r.id, err))
		}
		left = left || more
		if e.over(ctx, until) {
			return true, nil
		}
	}
	if s.sweep {
		settle := func(ctx context.Context, tx *postgres.Tx) (bool, error) { return feedback.Settle(ctx, tx, e.log) }
		for _, f := range []func(context.Context, *postgres.Tx) (bool, error){settle, tidy, expire} {
			more, err := in(f)
			if err != nil {
				return false, err
			}
			left = left || more
		}
	}
	return left, nil
}

// one does one transaction of each kind of work of a run.
func (e *engine) one(r openRunRow, s scope, in func(func(ctx context.Context, tx *postgres.Tx) (bool, error)) (bool, error)) (left bool, err error) {
	step := func(f func(ctx context.Context, tx *postgres.Tx) (bool, error)) {
		if err != nil {
			return
		}
		var more bool
		more, err = in(f)
		left = left || more
	}
	switch {
	case r.state == "cancelled":
		step(func(ctx context.Context, tx *postgres.Tx) (bool, error) {
			n, err := cancelJourneys(ctx, tx, r.id)
			return n == cancelledAtOnce, err
		})
	case r.kind == "broadcast" && s.plan:
		step(func(ctx context.Context, tx *postgres.Tx) (bool, error) {
			return e.docs.planBroadcast(ctx, tx, r.id, e.share)
		})
	case r.kind == "campaign":
		if s.plan && !r.planned {
			step(func(ctx context.Context, tx *postgres.Tx) (bool, error) { return e.docs.enrolMembers(ctx, tx, r.id) })
		}
		if s.walk {
			step(func(ctx context.Context, tx *postgres.Tx) (bool, error) {
				more, batches, err := e.docs.advance(ctx, tx, r.id, chunk)
				if err != nil {
					return false, err
				}
				return more, ring(ctx, tx, r.id, batches, e.share)
			})
		}
	}
	return left, err
}

// openRunRow is a run that may have work.
type openRunRow struct {
	id      int64
	kind    string
	state   string
	planned bool
}

// runs are those that may have work: that run, or were cancelled and have journeys left.
func (e *engine) runs(ctx context.Context, tenant string, only int64) (out []openRunRow, err error) {
	err = e.db.InTenant(ctx, tenant, func(ctx context.Context, tx *postgres.Tx) error {
		rows, err := tx.Query(ctx, `SELECT r.id, r.kind, r.state, r.planned FROM run r
			WHERE r.kind <> 'standing' AND ($1 = 0 OR r.id = $1) AND (r.state = 'running'
				OR r.state = 'cancelled' AND r.kind = 'campaign' AND EXISTS (SELECT FROM journey j WHERE j.run = r.id AND j.state = 'active'))
			ORDER BY r.id`, only)
		if err != nil {
			return fmt.Errorf("look for open runs: %w", err)
		}
		out, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (r openRunRow, err error) {
			return r, row.Scan(&r.id, &r.kind, &r.state, &r.planned)
		})
		if err != nil {
			return fmt.Errorf("look for open runs: %w", err)
		}
		return nil
	})
	return out, err
}

// due is when the function is next to be called, were every event lost.
func due(ctx context.Context, tx *postgres.Tx) (time.Time, error) {
	at, err := tx.FactsDue(ctx, "campaign")
	if err != nil {
		return postgres.Never, err
	}
	// A broadcast is looked at each tick while mails of it are queued; when there are none, at its first retry.
	soon := tx.Now().Add(tx.Tick())
	var others *time.Time
	err = tx.QueryRow(ctx, `SELECT min(at) FROM (
		SELECT r.starts_at AS at FROM run r WHERE r.state = 'scheduled'
		UNION ALL SELECT (SELECT j.due_at FROM journey j WHERE j.run = r.id AND j.state = 'active' ORDER BY j.due_at LIMIT 1)
			FROM run r WHERE r.kind = 'campaign' AND r.state = 'running'
		UNION ALL SELECT onda.now() FROM run r WHERE r.kind = 'campaign' AND r.state = 'running' AND NOT r.planned
		UNION ALL SELECT onda.now() FROM run r WHERE r.kind = 'campaign' AND r.state = 'cancelled' AND EXISTS (SELECT FROM journey j WHERE j.run = r.id AND j.state = 'active')
		UNION ALL SELECT CASE WHEN NOT r.planned OR EXISTS (SELECT FROM batch b WHERE b.run = r.id AND b.state = 'open' AND b.not_before <= $1) THEN $1
			ELSE greatest($1, least(
				(SELECT min(b.not_before) FROM batch b WHERE b.run = r.id AND b.state = 'open'),
				(SELECT min(d.retry_at) FROM delivery d JOIN batch b ON b.id = d.id >> 9 WHERE d.state = 'deferred' AND b.run = r.id))) END
			FROM run r WHERE r.kind = 'broadcast' AND r.state = 'running') u WHERE at < 'infinity'`, soon).Scan(&others)
	if err != nil {
		return postgres.Never, fmt.Errorf("look for what is due: %w", err)
	}
	if others != nil && others.Before(at) {
		at = *others
	}
	for _, due := range []func(context.Context, *postgres.Tx) (time.Time, error){tidyDue, feedback.Due} {
		other, err := due(ctx, tx)
		if err != nil {
			return postgres.Never, err
		}
		if other.Before(at) {
			at = other
		}
	}
	return at, nil
}
