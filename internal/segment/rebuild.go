package segment

import (
	"context"
	"fmt"
	"math"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/predicate"
)

// rebuild does one chunk of the first segment that has to be computed in full: those that others ask about come first. more says that there was one.
//
// How far a rebuild is stands in the segment's row and moves with the chunk, so that whoever comes next goes on there. What changes behind that mark is written by facts.
func (k *keeper) rebuild(ctx context.Context, tenant string, size int, failed map[string]bool) (more bool, err error) {
	err = k.in(ctx, tenant, failed, func(ctx context.Context, t *turn) error {
		i := slices.IndexFunc(t.all, func(s *kept) bool { return s.stale(t.tx.Now()) && !failed[s.name] })
		if i < 0 {
			return nil
		}
		more = true
		s := t.all[i]
		if s.current == 0 {
			return t.takeAway(ctx, s, size)
		}
		if s.building != s.current { // a transaction of its own: it may read all contacts
			return t.begin(ctx, k.docs, s)
		}
		cond, err := s.condition(t.env, 4)
		if err != nil {
			t.broken(s, err)
			return nil
		}
		upTo, last, err := t.chunk(ctx, s.rebuiltTo, size)
		if err != nil {
			return err
		}
		if err := t.compute(ctx, s, cond, "BETWEEN $2 AND $3", s.rebuiltTo+1, upTo); err != nil {
			return err
		}
		if err := t.settle(ctx); err != nil {
			return err
		}
		if last {
			_, err = t.tx.Exec(ctx, "UPDATE segment SET document = building, building = NULL, rebuild_to = 0, rebuilt_at = onda.now() WHERE entity = $1", s.entity)
		} else {
			_, err = t.tx.Exec(ctx, "UPDATE segment SET rebuild_to = $2 WHERE entity = $1", s.entity, upTo)
		}
		if err != nil {
			return fmt.Errorf("note how far segment %s is: %w", s.name, err)
		}
		return nil
	})
	return more, err
}

// begin starts a rebuild to the current version. When time alone will next change the members is found out now: what changes while the rebuild is on its way may have been seen by it
// or not, and the next one sees it for sure.
func (t *turn) begin(ctx context.Context, docs *documents, s *kept) error {
	var stored []byte
	if err := t.tx.QueryRow(ctx, "SELECT spec FROM document WHERE id = $1", s.current).Scan(&stored); err != nil {
		return fmt.Errorf("read segment %s: %w", s.name, err)
	}
	s.use(docs.decode(t.tx.Tenant.Number, s.current, stored))
	s.building, s.rebuiltTo = s.current, 0
	if _, err := t.tx.Exec(ctx, "UPDATE segment SET building = $2, rebuild_to = 0, requested = false, due_at = 'infinity' WHERE entity = $1", s.entity, s.building); err != nil {
		return fmt.Errorf("begin segment %s: %w", s.name, err)
	}
	at := postgres.Never
	if s.doc != nil && s.doc.Where != nil {
		var err error
		if at, err = predicate.NextChange(ctx, t.tx, s.doc.Where, t.env, nil); err != nil {
			return fmt.Errorf("segment %s: %w", s.name, err)
		}
	}
	s.dueAt = nil
	return t.dueBy(ctx, s, at)
}

// chunk says up to which id the next contacts go; last: there are no more behind it.
func (t *turn) chunk(ctx context.Context, after int64, size int) (upTo int64, last bool, err error) {
	var to *int64
	if err := t.tx.QueryRow(ctx, "SELECT (SELECT id FROM contact WHERE id > $1 ORDER BY id OFFSET $2 LIMIT 1)", after, size-1).Scan(&to); err != nil {
		return 0, false, fmt.Errorf("look for the next contacts: %w", err)
	}
	if to == nil { // also members whose contacts are no more
		return math.MaxInt64, true, nil
	}
	return *to, false, nil
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
