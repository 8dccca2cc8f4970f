package segment

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/predicate"
)

const (
	// idsAtOnce are looked up in one statement.
	idsAtOnce = 1000
	// batchAtOnce are about how many statements go in one round trip.
	batchAtOnce = 50
)

// scope says which contacts a statement looks at: it follows the column of a contact's id, with parameters from $2 on.
type scope struct {
	sql  string
	args []any
}

func between(from, to int64) scope { return scope{"BETWEEN $2 AND $3", []any{from, to}} }

// scopes are of contacts in order: a range where they are most of those in it, else as they are.
func scopes(ids []int64) []scope {
	var out []scope
	for chunk := range slices.Chunk(ids, idsAtOnce) {
		first, last := chunk[0], chunk[len(chunk)-1]
		if len(chunk) > 100 && last-first < int64(2*len(chunk)) {
			out = append(out, between(first, last))
		} else {
			out = append(out, scope{"= ANY ($2::bigint[])", []any{chunk}})
		}
	}
	return out
}

// settle computes the segments for the contacts that were touched, in order, so that those who ask about a segment see who joined and left it: all that ask about the same depth in few
// round trips.
func (t *turn) settle(ctx context.Context) error {
	deepest := 0
	for _, s := range t.all {
		deepest = max(deepest, s.level)
	}
	for level := 0; level <= deepest; level++ {
		var todo []computation
		for _, s := range t.all {
			if t.rebuilds && s.level == level {
				s.spare()
			}
			if s.level != level || len(s.touched) == 0 || t.leaves(s) || !s.follows() {
				continue
			}
			for _, in := range scopes(s.touched) {
				todo = append(todo, computation{s, in})
			}
		}
		for some := range slices.Chunk(todo, batchAtOnce) {
			if err := t.compute(ctx, some...); err != nil {
				return err
			}
		}
	}
	if err := t.hurry(ctx); err != nil {
		return err
	}
	for _, s := range t.all {
		s.touched = nil
	}
	return nil
}

// spare leaves out those who will be computed in full anyway: where segments that ask about one another are all rebuilt, each would be computed twice or more.
func (s *kept) spare() {
	switch {
	case s.building != 0 && s.building == s.current:
		n, _ := slices.BinarySearch(s.touched, s.rebuiltTo+1)
		s.touched = s.touched[:n]
	case s.requested || s.document != s.current:
		s.touched = nil
	}
}

// hurry brings the due dates of segments forward where the contacts that were touched have one of their own that is earlier, in few round trips.
func (t *turn) hurry(ctx context.Context) error {
	q := newQueue()
	next := map[*kept]func() time.Time{}
	for _, s := range t.all {
		if len(s.touched) == 0 || t.leaves(s) || !s.follows() || s.doc.Where == nil || s.dueKnown || s.dueAt != nil && !s.dueAt.After(t.env.Now.Add(t.tx.Tick())) {
			continue
		}
		at, err := predicate.AskNextChange(s.doc.Where, t.env, s.touched, func(sql string, args []any, read func(pgx.Rows) error) { q.add(s, sql, args, read) })
		if err != nil {
			return blame(ctx, t.tx, s, err)
		}
		next[s] = at
		if q.batch.Len() >= batchAtOnce {
			if err := q.send(ctx, t.tx); err != nil {
				return err
			}
			q = newQueue()
		}
	}
	if err := q.send(ctx, t.tx); err != nil {
		return err
	}
	for _, s := range t.all {
		if at := next[s]; at != nil {
			t.dueBy(s, at(), 0)
		}
	}
	return nil
}

// computation is of a segment for some contacts.
type computation struct {
	*kept
	in scope
}

// computed makes the members of segment $1, among the contacts of the scope, those that the condition is true of; those kept in or out by hand stay. Both are read once, and nothing is written
// where they are the same.
const computed = `WITH differs AS MATERIALIZED (
	SELECT coalesce(w.id, m.contact) AS contact, m.kept
	  FROM (SELECT c.id FROM contact c WHERE c.id %[1]s AND %[2]s) w
	  FULL JOIN (SELECT m.contact, m.kept FROM member m WHERE m.segment = $1 AND m.contact %[1]s) m ON m.contact = w.id
	 WHERE w.id IS NULL OR m.contact IS NULL
), gone AS (
	DELETE FROM member m USING differs d WHERE m.segment = $1 AND m.contact %[1]s AND m.contact = d.contact AND d.kept IS NOT NULL
	   AND (d.kept = '' OR NOT EXISTS (SELECT FROM contact c WHERE c.id = d.contact AND c.erased_at IS NULL AND c.merged_into IS NULL))
	RETURNING m.contact, m.kept
), new AS (
	INSERT INTO member (segment, contact) SELECT $1, d.contact FROM differs d WHERE d.kept IS NULL ORDER BY d.contact RETURNING contact
) SELECT contact, true FROM new UNION ALL SELECT contact, false FROM gone WHERE kept <> 'out' ORDER BY 1`

// compute does computations of different segments, none of which asks about another of them, in one round trip. A segment whose document does not fit is left out.
func (t *turn) compute(ctx context.Context, all ...computation) error {
	q := newQueue()
	for _, c := range all {
		cond, err := c.condition(t.env, 2+len(c.in.args), c.in.sql)
		if err != nil {
			t.broken(c.kept, err)
			continue
		}
		q.add(c.kept, fmt.Sprintf(computed, c.in.sql, cond.SQL), slices.Concat([]any{c.entity}, c.in.args, cond.Args), func(rows pgx.Rows) error { return t.collect(c.kept, rows) })
	}
	return q.send(ctx, t.tx)
}

// queue is what is asked in one round trip, each statement for a segment.
type queue struct {
	batch *pgx.Batch
	whose []*kept
	at    *kept // whose statement was read last
	last  time.Time
}

func newQueue() *queue { return &queue{batch: &pgx.Batch{}} }

func (q *queue) add(s *kept, sql string, args []any, read func(pgx.Rows) error) {
	q.whose = append(q.whose, s)
	q.batch.Queue(sql, args...).Query(func(rows pgx.Rows) error {
		q.at = s
		err := read(rows)
		s.spent += time.Since(q.last)
		q.last = time.Now()
		return err
	})
}

// send asks, and blames the segment whose statement fails.
func (q *queue) send(ctx context.Context, tx *postgres.Tx) error {
	if q.batch.Len() == 0 {
		return nil
	}
	q.last = time.Now()
	err := tx.SendBatch(ctx, q.batch).Close()
	if err == nil {
		return nil
	}
	var unsent pgx.ErrPreprocessingBatch
	if errors.As(err, &unsent) {
		q.at = q.unsent(ctx, tx, unsent.SQL())
	}
	if q.at == nil {
		return fmt.Errorf("compute segments: %w", err)
	}
	q.at.spent += time.Since(q.last)
	return blame(ctx, tx, q.at, err)
}

// unsent finds the segment whose statement pgx could not send: it tells the SQL alone, which others may have with other values. They are asked again, of a turn of which nothing will be kept.
func (q *queue) unsent(ctx context.Context, tx *postgres.Tx, sql string) (whose *kept) {
	for i, asked := range q.batch.QueuedQueries {
		if asked.SQL != sql {
			continue
		}
		whose = q.whose[i]
		alone := &pgx.Batch{}
		alone.Queue(sql, asked.Arguments...)
		if errors.As(tx.SendBatch(ctx, alone).Close(), &pgx.ErrPreprocessingBatch{}) {
			break
		}
	}
	return whose
}

// collect reads who joined and left.
func (t *turn) collect(s *kept, rows pgx.Rows) error {
	var id int64
	var in bool
	var joined, left []int64
	_, err := pgx.ForEachRow(rows, []any{&id, &in}, func() error {
		if in {
			joined = append(joined, id)
		} else {
			left = append(left, id)
		}
		return nil
	})
	if err != nil {
		return err
	}
	t.changed(s, joined, left)
	return nil
}
