package segment

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"go.uber.org/zap"

	"github.com/onda-run/onda/internal/event"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/predicate"
)

const (
	// workTime is how long one request works before it leaves the rest to the next.
	workTime = 20 * time.Second
	// lockClass is of the advisory lock on a tenant's memberships.
	lockClass = 0x6f6e6473
	// chunkMost and chunkLeast bound how many contacts are looked at in one transaction of a rebuild; it begins with the first, and halves when one takes more than slow.
	chunkMost, chunkLeast = 20_000, 250
	slow                  = 2 * time.Second
	// factsAtOnce are read in one transaction. When they are about more than touchMost contacts, the segments are rebuilt instead.
	factsAtOnce = 2000
	touchMost   = 50_000
	// perContact is how long, for each contact, a segment whose members change by time alone is left as it is: a rebuild costs 3 µs a contact, so that these take a
	// thirtieth of one processor at most.
	perContact = 100 * time.Microsecond
)

// keeper does the work of all segments. It keeps nothing but decoded documents, so any number of them may work at once.
type keeper struct {
	db   *postgres.DB
	docs *documents
	log  *zap.Logger
	// stop is closed when the process is to end: it then ends after the transaction it is at.
	stop <-chan struct{}
	// done, where a test has set it, is called after each transaction.
	done func()
}

// errBusy: another process has the tenant's lock, and does the work.
var errBusy = errors.New("another is at this tenant's segments")

// work does what there is to do, each piece in a transaction of its own, until nothing is left (all is true), the time is over, or the process is to end. When another process is at
// it, that one does it.
func (k *keeper) work(ctx context.Context, tenant string) (all bool, err error) {
	until := time.Now().Add(workTime)
	size := chunkMost
	failed := map[string]bool{}
	for {
		more, err := k.facts(ctx, tenant, failed)
		if err == nil && !more {
			began := time.Now()
			more, err = k.rebuild(ctx, tenant, size, failed)
			if time.Since(began) > slow {
				size = max(size/2, chunkLeast)
			}
			if tooSlow(err) && size > chunkLeast {
				size, more, err = max(size/2, chunkLeast), true, nil
			}
		}
		switch {
		case errors.Is(err, errBusy):
			return false, nil
		case err != nil:
			return false, err
		case !more:
			return true, nil
		case k.over(ctx, until):
			return false, nil
		}
	}
}

func (k *keeper) over(ctx context.Context, until time.Time) bool {
	select {
	case <-k.stop:
		return true
	case <-ctx.Done():
		return true
	default:
		return !time.Now().Before(until)
	}
}

func tooSlow(err error) bool {
	var pe *pgconn.PgError
	return errors.As(err, &pe) && pe.Code == "57014"
}

// in runs f under the tenant's lock, with all its segments.
func (k *keeper) in(ctx context.Context, tenant string, failed map[string]bool, f func(ctx context.Context, t *turn) error) error {
	err := k.db.InTenant(ctx, tenant, func(ctx context.Context, tx *postgres.Tx) error {
		// One statement, so that the limits are there before the lock is waited for.
		if _, err := tx.Exec(ctx, "SELECT set_config('lock_timeout', '2s', true), set_config('statement_timeout', '5s', true)"); err != nil {
			return fmt.Errorf("set limits: %w", err)
		}
		_, err := tx.Exec(ctx, "SELECT pg_advisory_xact_lock($1, $2)", lockClass, tx.Tenant.Number)
		if postgres.IsLocked(err) {
			return errBusy
		}
		if err != nil {
			return fmt.Errorf("lock segments: %w", err)
		}
		t := &turn{tx: tx, log: k.log, failed: failed, touched: map[*kept]map[int64]struct{}{}}
		if t.all, err = k.docs.load(ctx, tx); err != nil {
			return err
		}
		if len(t.all) > 0 {
			if t.env, err = predicate.Load(ctx, tx); err != nil {
				return err
			}
		}
		if err := f(ctx, t); err != nil {
			return err
		}
		return t.tell(ctx)
	})
	if k.done != nil && err == nil {
		k.done()
	}
	return err
}

// turn is one transaction.
type turn struct {
	tx      *postgres.Tx
	log     *zap.Logger
	env     predicate.Env
	all     []*kept // in order of who asks about whom
	failed  map[string]bool
	touched map[*kept]map[int64]struct{}
	joins   []postgres.Fact
}

// broken notes a segment that cannot be computed: the others go on, and it is tried again with the next work.
func (t *turn) broken(s *kept, err error) {
	if !t.failed[s.name] {
		t.log.Error("a segment cannot be computed", zap.String("tenant", t.tx.Tenant.Name), zap.String("segment", s.name), zap.Error(err))
	}
	t.failed[s.name] = true
}

func (t *turn) touch(s *kept, contacts ...int64) {
	m := t.touched[s]
	if m == nil {
		m = map[int64]struct{}{}
		t.touched[s] = m
	}
	for _, c := range contacts {
		m[c] = struct{}{}
	}
}

// settle computes the segments for the contacts that were touched, in order, so that those who ask about a segment see who joined and left it.
func (t *turn) settle(ctx context.Context) error {
	for _, s := range t.all {
		touched := t.touched[s]
		if len(touched) == 0 || t.failed[s.name] || s.doc == nil || s.document == 0 && s.building == 0 { // one that was never made is made in full
			continue
		}
		ids := make([]int64, 0, len(touched))
		for c := range touched {
			ids = append(ids, c)
		}
		slices.Sort(ids)
		for chunk := range slices.Chunk(ids, 10_000) {
			cond, err := s.condition(t.env, 3)
			if err != nil { // what is missed now is made good in full
				t.broken(s, err)
				if _, err := t.tx.Exec(ctx, "UPDATE segment SET requested = true WHERE entity = $1", s.entity); err != nil {
					return fmt.Errorf("request a rebuild: %w", err)
				}
				break
			}
			if err := t.compute(ctx, s, cond, "= ANY ($2::bigint[])", chunk); err != nil {
				return err
			}
			if err := t.hurry(ctx, s, chunk); err != nil {
				return err
			}
		}
		delete(t.touched, s)
	}
	return nil
}

// compute makes the segment's members, among the contacts in scope, those that the condition is true of; those kept in or out by hand stay. cond has its parameters after
// $1 (the segment) and those of scope.
func (t *turn) compute(ctx context.Context, s *kept, cond predicate.Query, scope string, args ...any) error {
	// NOT IN, which is hashed whatever is expected of its size: of tables that have just grown Postgres knows nothing, and NOT EXISTS became a loop in a loop.
	rows, err := t.tx.Query(ctx, `WITH want AS MATERIALIZED (
		SELECT c.id FROM contact c WHERE c.id `+scope+` AND `+cond.SQL+`
	), gone AS (
		DELETE FROM member m WHERE m.segment = $1 AND m.contact `+scope+` AND m.contact NOT IN (SELECT w.id FROM want w)
		   AND (m.kept = '' OR NOT EXISTS (SELECT FROM contact c WHERE c.id = m.contact AND c.erased_at IS NULL AND c.merged_into IS NULL))
		RETURNING m.contact, m.kept
	), new AS (
		INSERT INTO member (segment, contact) SELECT $1, w.id FROM want w
		 WHERE w.id NOT IN (SELECT m.contact FROM member m WHERE m.segment = $1 AND m.contact `+scope+`) RETURNING contact
	) SELECT contact, true FROM new UNION ALL SELECT contact, false FROM gone WHERE kept <> 'out' ORDER BY 1`,
		append(append([]any{s.entity}, args...), cond.Args...)...)
	if err != nil {
		return fmt.Errorf("compute segment %s: %w", s.name, err)
	}
	var id int64
	var in bool
	var joined, left []int64
	_, err = pgx.ForEachRow(rows, []any{&id, &in}, func() error {
		if in {
			joined = append(joined, id)
		} else {
			left = append(left, id)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("compute segment %s: %w", s.name, err)
	}
	t.changed(s, joined, left)
	return nil
}

// changed notes who joined and left, and that those who ask about the segment must look at them.
func (t *turn) changed(s *kept, joined, left []int64) {
	for _, c := range []struct {
		kind  string
		ids   []int64
		n     *int64
		first *[]int64
	}{{"segment.joined", joined, &s.joined, &s.firstJoined}, {"segment.left", left, &s.left, &s.firstLeft}} {
		*c.n += int64(len(c.ids))
		*c.first = append(*c.first, c.ids[:min(len(c.ids), event.MaxItems-len(*c.first))]...)
		for chunk := range slices.Chunk(c.ids, event.MaxItems) {
			t.joins = append(t.joins, postgres.Fact{Kind: c.kind, Name: s.name, Contacts: chunk})
		}
		for _, other := range t.all {
			if len(c.ids) > 0 && slices.Contains(other.deps.Segments, s.name) {
				t.touch(other, c.ids...)
			}
		}
	}
}

// hurry brings the segment's due date forward, if the contacts have one of their own that is earlier.
func (t *turn) hurry(ctx context.Context, s *kept, contacts []int64) error {
	if s.doc.Where == nil {
		return nil
	}
	at, err := predicate.NextChange(ctx, t.tx, s.doc.Where, t.env, contacts)
	if err != nil {
		return fmt.Errorf("segment %s: %w", s.name, err)
	}
	return t.dueBy(ctx, s, at)
}

// dueBy has the segment computed in full at a time, or as soon after it as its size allows, unless it is due earlier.
func (t *turn) dueBy(ctx context.Context, s *kept, at time.Time) error {
	if at.Equal(postgres.Never) {
		return nil
	}
	var most int64
	if err := t.tx.QueryRow(ctx, "SELECT coalesce(max(id), 0) FROM contact").Scan(&most); err != nil {
		return fmt.Errorf("count contacts: %w", err)
	}
	if soonest := t.tx.Now().Add(max(t.tx.Tick(), time.Duration(most)*perContact)); at.Before(soonest) {
		at = soonest
	}
	if s.dueAt != nil && !at.Before(*s.dueAt) {
		return nil
	}
	s.dueAt = &at
	t.tx.Wake("segment", at)
	if _, err := t.tx.Exec(ctx, "UPDATE segment SET due_at = $2 WHERE entity = $1", s.entity, at); err != nil {
		return fmt.Errorf("set when segment %s is due: %w", s.name, err)
	}
	return nil
}

// tell writes the counts, the facts of who joined and left, and rings.
func (t *turn) tell(ctx context.Context) error {
	if err := t.tx.AddFacts(ctx, t.joins...); err != nil {
		return err
	}
	for _, s := range t.all {
		if s.joined == 0 && s.left == 0 {
			continue
		}
		if _, err := t.tx.Exec(ctx, "UPDATE segment SET members = members + $2 WHERE entity = $1", s.entity, s.joined-s.left); err != nil {
			return fmt.Errorf("count members of segment %s: %w", s.name, err)
		}
		e, err := event.New(t.tx.Tenant.Name, "segment", s.name,
			event.DeriveID(t.tx.Tenant.Name, "segment.changed", s.name, strconv.FormatInt(t.tx.Now().UnixNano(), 10), fmt.Sprint(s.firstJoined, s.firstLeft)),
			event.SegmentChanged{Segment: s.name, Joined: s.joined, Left: s.left, JoinedContacts: s.firstJoined, LeftContacts: s.firstLeft})
		if err != nil {
			return fmt.Errorf("ring: %w", err)
		}
		if err := t.tx.Publish(ctx, "segment", e); err != nil {
			return err
		}
	}
	return nil
}
