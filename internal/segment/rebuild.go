package segment

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/onda-run/onda/internal/predicate"
)

// rebuild does the next piece of what no fact tells of: it sweeps a segment, or does one chunk of the first that has to be computed in full; those that others ask about come first. The piece is
// of size contacts, which becomes what the next should have. more says that there was one. When a chunk takes too long the error is an unfit, unless it cannot be smaller: then the segment is
// set aside, as one that fails otherwise is.
//
// How far a rebuild is stands in the segment's row and moves with the chunk, so that whoever comes next goes on there. What changes behind that mark is written by facts.
func (k *keeper) rebuild(ctx context.Context, tenant string, size *int, failed map[string]bool) (more bool, err error) {
	sweeps := false
	var began time.Time
	err = k.in(ctx, tenant, plansEach, failed, func(ctx context.Context, t *turn) error {
		i := slices.IndexFunc(t.all, func(s *kept) bool { return s.mustSweep(t.env.Now) && !t.leaves(s) })
		if sweeps = i >= 0; !sweeps {
			i = slices.IndexFunc(t.all, func(s *kept) bool { return s.mustRebuild(t.env.Now) && !t.leaves(s) })
		}
		if more = i >= 0; !more {
			return nil
		}
		began = time.Now()
		switch s := t.all[i]; {
		case sweeps:
			return t.sweep(ctx, s, *size)
		case s.current == 0:
			return t.takeAway(ctx, s, *size)
		case s.building != s.current:
			return t.begin(ctx, s)
		default:
			return t.goOn(ctx, s, *size)
		}
	})
	was := *size
	if more {
		*size = fits(was, time.Since(began))
	}
	var u *unfit
	switch {
	case !errors.As(err, &u):
		return more, err
	case u.slow && sweeps:
		return true, k.inFull(ctx, tenant, failed, u)
	case u.slow && was > chunkLeast:
		return true, err
	}
	return true, k.setAside(ctx, tenant, failed, u)
}

// fits says how many contacts take chunkTime, after so many took d.
func fits(size int, d time.Duration) int {
	fit := int(float64(size) * float64(chunkTime) / float64(max(d, time.Millisecond)))
	return min(max(min(fit, 2*size), size/4, chunkLeast), chunkMost)
}

// goOn does the next chunk of a rebuild.
func (t *turn) goOn(ctx context.Context, s *kept, size int) error {
	upTo, last, err := t.chunk(ctx, s.rebuiltTo, size)
	if err != nil {
		return err
	}
	if err := t.compute(ctx, computation{s, between(s.rebuiltTo+1, upTo)}); err != nil || t.failed[s.name] {
		return err
	}
	t.rebuilds = true
	if err := t.settle(ctx); err != nil {
		return err
	}
	if !last {
		s.set("rebuild_to", upTo)
		return nil
	}
	s.set("document", s.building)
	s.set("building", nil)
	s.set("rebuild_to", 0)
	s.set("rebuilt_at", t.tx.Now())
	if t.sweeps() { // which finds out when time will change it next
		s.dueAt = &t.env.Now
		s.set("due_at", t.env.Now)
	}
	if t.sweeps() && s.failures > 0 {
		s.set("failures", 0)
		s.set("failed", nil)
		s.set("retry_at", nil)
	}
	return nil
}

// begin starts a rebuild to the current version. What time alone changes from now on is looked for by a sweep: each contact is computed now or later.
func (t *turn) begin(ctx context.Context, s *kept) error {
	s.building, s.rebuiltTo, s.dueAt = s.current, 0, nil
	s.set("building", s.building)
	s.set("rebuild_to", 0)
	s.set("requested", false)
	s.set("due_at", "infinity")
	if t.sweeps() {
		s.set("swept_at", t.env.Now)
		s.set("sweep_to", nil)
		return nil
	}
	if s.doc == nil || s.doc.Where == nil {
		return nil
	}
	at, err := predicate.NextChange(ctx, t.tx, s.doc.Where, t.env, nil)
	if err != nil {
		return blame(ctx, t.tx, s, err)
	}
	return t.dueInFull(ctx, s, at)
}

// dueInFull has a segment, of which no sweep finds what time changes, computed in full at a time, or as soon after it as its size allows.
func (t *turn) dueInFull(ctx context.Context, s *kept, at time.Time) error {
	var most int64
	if err := t.tx.QueryRow(ctx, "SELECT coalesce(max(id), 0) FROM contact").Scan(&most); err != nil {
		return fmt.Errorf("count contacts: %w", err)
	}
	t.dueBy(s, at, time.Duration(most)*perContact)
	return nil
}

// chunk says up to which id the next contacts go, size ids from the next that there is; last: there are no more behind it.
func (t *turn) chunk(ctx context.Context, after int64, size int) (upTo int64, last bool, err error) {
	var next, most int64
	err = t.tx.QueryRow(ctx, "SELECT coalesce((SELECT min(id) FROM contact WHERE id > $1), 0), coalesce((SELECT max(id) FROM contact), 0)", after).Scan(&next, &most)
	if err != nil {
		return 0, false, fmt.Errorf("look for the next contacts: %w", err)
	}
	if upTo = next - 1 + int64(size); next == 0 || upTo >= most { // also members whose contacts are no more
		return math.MaxInt64, true, nil
	}
	return upTo, false, nil
}

// takeAway ends a segment whose document is gone: all leave.
func (t *turn) takeAway(ctx context.Context, s *kept, size int) error {
	rows, err := t.tx.Query(ctx, `DELETE FROM member m USING (SELECT contact FROM member WHERE segment = $1 ORDER BY contact LIMIT $2) d
		WHERE m.segment = $1 AND m.contact = d.contact RETURNING m.contact, m.kept`, s.entity, size)
	if err != nil {
		return fmt.Errorf("empty segment %s: %w", s.name, err)
	}
	var left []int64
	var id int64
	var how string
	n := 0
	_, err = pgx.ForEachRow(rows, []any{&id, &how}, func() error {
		n++
		if how != "out" {
			left = append(left, id)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("empty segment %s: %w", s.name, err)
	}
	slices.Sort(left)
	t.changed(s, nil, left)
	if err := t.settle(ctx); err != nil {
		return err
	}
	if n < size {
		if _, err := t.tx.Exec(ctx, "DELETE FROM segment WHERE entity = $1", s.entity); err != nil {
			return fmt.Errorf("remove segment %s: %w", s.name, err)
		}
	}
	return nil
}
