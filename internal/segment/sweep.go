package segment

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/predicate"
)

const (
	// sweepMost are computed in one transaction of a sweep. Where so many are more than a quarter of those between the first and the last of them, all are computed instead.
	sweepMost = 20_000
	// sweepShare is for how many times as long as it took to find them the segment is left alone.
	sweepShare = 30
	// clockSlack is by how much the clock may be behind a sweep: a transaction that waited for another has an older time.
	clockSlack = time.Minute
)

// mustSweep tells whether time alone may have changed the members since the last sweep.
func (s *kept) mustSweep(now time.Time) bool {
	return !s.mustRebuild(now) && s.dueAt != nil && !s.dueAt.After(now)
}

// latest is the clock, or when something was swept, if that is later: no contact is computed as of a time before that of a sweep, which has looked at it for good.
func latest(now time.Time, all []*kept) time.Time {
	limit := now.Add(clockSlack)
	for _, s := range all {
		for _, at := range []*time.Time{s.sweptAt, s.sweepTo} {
			if at != nil && at.After(now) && !at.After(limit) {
				now = *at
			}
		}
	}
	return now
}

// sweep computes the contacts whose answer time alone may have changed since the last sweep, some at a time: whoever comes next goes on there. What facts touch meanwhile is computed as of a time
// that is not before this sweep's, and looked at again by the next, which begins at the time of this one. What is read comes first, since a transaction that has written holds others back.
func (t *turn) sweep(ctx context.Context, s *kept, size int) error {
	size = min(size, sweepMost)
	began := time.Now()
	if s.err != nil {
		t.broken(s, s.err)
		return nil
	}
	if s.sweepTo == nil {
		s.sweepTo, s.rebuiltTo = &t.env.Now, 0
	}
	ids, err := t.crossed(ctx, s, size)
	if err != nil || t.failed[s.name] {
		return err
	}
	if n := len(ids); n == sweepMost && ids[n-1]-s.rebuiltTo < 4*sweepMost {
		s.set("requested", true)
		return nil
	}
	if len(ids) == size {
		s.set("sweep_to", *s.sweepTo)
		s.set("rebuild_to", ids[len(ids)-1])
	} else if err := t.swept(ctx, s, began); err != nil {
		return err
	}
	s.touch(ids)
	return t.settle(ctx)
}

// crossed finds the next contacts for a sweep.
func (t *turn) crossed(ctx context.Context, s *kept, size int) ([]int64, error) {
	if s.doc.Where == nil {
		return nil, nil
	}
	env := t.env
	env.First = 3
	q, err := predicate.Crossing(s.doc.Where, env, *s.sweptAt, *s.sweepTo)
	if err != nil {
		t.broken(s, err)
		return nil, nil
	}
	if q.SQL == "" {
		return nil, nil
	}
	defer s.clock()()
	// By time first: by contact it would go through the facts of all.
	rows, err := t.tx.Query(ctx, "WITH x AS MATERIALIZED ("+q.SQL+") SELECT DISTINCT contact FROM x WHERE contact > $1 ORDER BY contact LIMIT $2", append([]any{s.rebuiltTo, size}, q.Args...)...)
	if err != nil {
		return nil, blame(ctx, t.tx, s, err)
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		return nil, blame(ctx, t.tx, s, err)
	}
	return ids, nil
}

// swept notes that a sweep is over, and when the next is due.
func (t *turn) swept(ctx context.Context, s *kept, began time.Time) error {
	at := postgres.Never
	if s.doc.Where != nil {
		env := t.env
		env.Now = *s.sweepTo
		stop := s.clock()
		var err error
		at, err = predicate.NextChange(ctx, t.tx, s.doc.Where, env, nil)
		stop()
		if err != nil {
			return blame(ctx, t.tx, s, err)
		}
	}
	s.set("swept_at", *s.sweepTo)
	s.set("sweep_to", nil)
	s.set("rebuild_to", 0)
	s.set("due_at", "infinity")
	s.dueAt, s.dueKnown = nil, true
	t.dueBy(s, at, sweepShare*time.Since(began))
	return nil
}

// inFull has a segment, whose sweep takes too long, computed in full when it is due.
func (k *keeper) inFull(ctx context.Context, tenant string, failed map[string]bool, u *unfit) error {
	return k.again(ctx, tenant, failed, u, func(ctx context.Context, t *turn, s *kept) error {
		s.set("swept_at", nil)
		s.set("sweep_to", nil)
		s.set("rebuild_to", 0)
		s.dueAt = nil
		return t.dueInFull(ctx, s, t.env.Now)
	})
}
