package segment

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
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
	// chunkMost and chunkLeast bound how many contacts are looked at in one transaction of a rebuild; it begins with chunkFirst, and goes on with as many as take chunkTime: facts
	// wait for so long.
	chunkMost, chunkFirst, chunkLeast = 100_000, 10_000, 250
	chunkTime                         = 500 * time.Millisecond
	// statementTime and turnTime bound a transaction: one that has written holds back, on the whole server, whoever reads facts.
	statementTime = 2 * time.Second
	turnTime      = 4 * time.Second
	// perContact is how long, for each contact, a segment whose members change by time alone is left as it is: a rebuild costs 3 µs a contact, so that these take a
	// thirtieth of one processor at most.
	perContact = 100 * time.Microsecond
	// asideMost is for how long a segment is set aside at most.
	asideMost = 24 * time.Hour
	// heldTime is for how long facts are waited for that a transaction of somebody else's holds back; they are looked for each heldPause.
	heldTime, heldPause = 3 * time.Second, 100 * time.Millisecond
)

// keeper does the work of all segments. It keeps nothing but documents and how much it does at once, so any number of them may work at once.
type keeper struct {
	db   *postgres.DB
	docs *documents
	log  *zap.Logger
	// stop is closed when the process is to end: it then ends after the transaction it is at.
	stop <-chan struct{}

	mu    sync.Mutex
	paces map[string]pace // of tenants, where it is not the usual
	at    map[string]bool // tenants whose work is under way here; true: it was asked for again meanwhile
}

// errBusy: another process has the tenant's lock, and does the work.
var errBusy = errors.New("another is at this tenant's segments")

// unfit is an error of one segment's own: its document does not fit, its SQL fails or takes too long.
type unfit struct {
	segment *kept
	slow    bool
	err     error
}

func (u *unfit) Error() string { return fmt.Sprintf("segment %s: %v", u.segment.name, u.err) }
func (u *unfit) Unwrap() error { return u.err }

// what says it without what a contact's value may be in.
func (u *unfit) what() string {
	var pe *pgconn.PgError
	switch {
	case u.slow:
		return "it takes too long"
	case errors.As(u.err, &pe):
		return "Postgres refuses it: SQLSTATE " + pe.Code
	}
	return "Postgres cannot be asked for it"
}

// work does what there is to do, each piece in a transaction of its own, until nothing is left (all is true), the time is over, or the process is to end. When another is at it, that one
// does it.
func (k *keeper) work(ctx context.Context, tenant string) (all bool, err error) {
	if !k.enter(tenant) {
		return false, nil
	}
	for {
		all, err = k.workOff(ctx, tenant)
		if !k.leave(tenant, all) {
			return all, err
		}
	}
}

// enter tells whether nobody is at the tenant's work in this process; whoever is goes on for the one who asked.
func (k *keeper) enter(tenant string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if _, busy := k.at[tenant]; busy {
		k.at[tenant] = true
		return false
	}
	if k.at == nil {
		k.at = map[string]bool{}
	}
	k.at[tenant] = false
	return true
}

// leave tells whether to go on instead, since it was asked for again and all was done.
func (k *keeper) leave(tenant string, all bool) (again bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if all && k.at[tenant] {
		k.at[tenant] = false
		return true
	}
	delete(k.at, tenant)
	return false
}

func (k *keeper) workOff(ctx context.Context, tenant string) (all bool, err error) {
	began := time.Now()
	until := began.Add(workTime)
	size := chunkFirst
	failed := map[string]bool{}
	var heldSince time.Time
	for {
		more, err := k.facts(ctx, tenant, failed)
		if err == nil && !more {
			more, err = k.rebuild(ctx, tenant, &size, failed)
			var u *unfit
			if errors.As(err, &u) { // a smaller chunk may do
				size, more, err = max(size/4, chunkLeast), true, nil
			}
		}
		switch {
		case errors.Is(err, errBusy):
			return false, nil
		case err != nil:
			return false, err
		case more:
			heldSince = time.Time{}
		case !k.paceOf(tenant).held:
			return true, nil
		case heldSince.IsZero():
			heldSince = time.Now()
		}
		if k.over(ctx, until) {
			return false, nil
		}
		if !more && (time.Since(heldSince) > heldTime || !k.pause(ctx)) {
			return true, nil // whoever asks when there will be work sees them
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

// pause waits a moment; false when it is to end.
func (k *keeper) pause(ctx context.Context) bool {
	t := time.NewTimer(heldPause)
	defer t.Stop()
	select {
	case <-k.stop:
		return false
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// in runs f under the tenant's lock, with all its segments. When f cannot compute one of them, nothing is kept.
func (k *keeper) in(ctx context.Context, tenant, plans string, failed map[string]bool, f func(ctx context.Context, t *turn) error) error {
	var t *turn
	err := k.db.InTenant(ctx, tenant, func(ctx context.Context, tx *postgres.Tx) error {
		t = &turn{tx: tx, log: k.log, failed: maps.Clone(failed)}
		var err error
		t.all, t.env, err = k.docs.load(ctx, tx, plans)
		if postgres.IsLocked(err) {
			return errBusy
		}
		if err != nil {
			return err
		}
		timed, cancel := context.WithTimeout(ctx, turnTime)
		defer cancel()
		err = f(timed, t)
		if err == nil {
			err = t.tell(timed)
		}
		if err != nil && timed.Err() != nil && ctx.Err() == nil { // of all together
			if s := t.slowest(); s != nil {
				return &unfit{s, true, err}
			}
		}
		return err
	})
	if err == nil {
		maps.Copy(failed, t.failed)
	}
	return err
}

// turn is one transaction.
type turn struct {
	tx     *postgres.Tx
	log    *zap.Logger
	env    predicate.Env
	all    []*kept         // in order of who asks about whom
	failed map[string]bool // the broken ones too: of others this is forgotten with a turn of which nothing is kept
	joins  []postgres.Fact
	// rebuilds is set where segments are touched by another's rebuild: see spare.
	rebuilds bool
}

// leaves tells whether the segment is left alone for now.
func (t *turn) leaves(s *kept) bool {
	return t.failed[s.name] || s.current != 0 && s.retryAt != nil && s.retryAt.After(t.env.Now) && !s.retryAt.After(t.env.Now.Add(asideMost+clockSlack)) // else the clock was moved back
}

func (t *turn) slowest() (slowest *kept) {
	for _, s := range t.all {
		if s.spent > 0 && (slowest == nil || s.spent > slowest.spent) {
			slowest = s
		}
	}
	return slowest
}

// blame makes of an error at a segment's SQL one of the segment's own, unless it is nobody's.
func blame(ctx context.Context, tx *postgres.Tx, s *kept, err error) error {
	own, slow := false, false
	if pe := (*pgconn.PgError)(nil); errors.As(err, &pe) {
		slow = pe.Code == "57014"
		// Data, syntax and access, limits, internal errors.
		own = slow || slices.Contains([]string{"22", "42", "54", "XX"}, pe.Code[:min(2, len(pe.Code))])
	} else { // pgx never sent it, for too many values or one that does not fit: then the transaction goes on, unless it was behind others in a batch, as it says in words alone
		_, lost := tx.Exec(ctx, "SELECT")
		var unsent pgx.ErrPreprocessingBatch
		own = lost == nil || errors.As(err, &unsent) && strings.HasPrefix(unsent.Error(), "error preprocessing batch (build)")
	}
	if own {
		return &unfit{s, slow, err}
	}
	return fmt.Errorf("compute segment %s: %w", s.name, err)
}

// broken notes a segment whose document does not fit: no SQL was asked, the others go on, and it is tried again with the next work. What it misses now is made good in full.
func (t *turn) broken(s *kept, err error) {
	if t.failed[s.name] {
		return
	}
	t.log.Error("a segment cannot be computed", zap.String("tenant", t.tx.Tenant.Name), zap.String("segment", s.name), zap.Error(err))
	t.failed[s.name] = true
	if !s.requested {
		s.requested = true
		s.set("requested", true)
	}
	if t.sweeps() && s.failures == 0 {
		s.set("failures", 1)
		s.set("failed", err.Error())
	}
}

// sweeps tells whether the tenant's schema has room for what a sweep and what a failure leave.
func (t *turn) sweeps() bool { return t.tx.Tenant.Schema >= SweepSchema }

// setAside leaves a segment alone for some time, the longer the oftener it failed, and has it then computed in full: the others go on without it.
func (k *keeper) setAside(ctx context.Context, tenant string, failed map[string]bool, u *unfit) error {
	k.log.Error("a segment cannot be computed", zap.String("tenant", tenant), zap.String("segment", u.segment.name), zap.String("why", u.what()))
	return k.again(ctx, tenant, failed, u, func(_ context.Context, t *turn, s *kept) error {
		t.failed[s.name] = true
		s.set("requested", true)
		s.set("building", nil)
		s.set("rebuild_to", 0)
		if !t.sweeps() {
			return nil
		}
		at := t.env.Now.Add(min(t.tx.Tick()<<min(s.failures, 16), asideMost))
		s.set("sweep_to", nil)
		s.set("failures", s.failures+1)
		s.set("failed", u.what())
		s.set("retry_at", at)
		t.tx.Wake("segment", at)
		return nil
	})
}

// again runs f with the segment of an error in a turn of its own, since the one that failed kept nothing; unless the segment is gone or has another document by now, which may be all right.
func (k *keeper) again(ctx context.Context, tenant string, failed map[string]bool, u *unfit, f func(ctx context.Context, t *turn, s *kept) error) error {
	return k.in(ctx, tenant, plansOnce, failed, func(ctx context.Context, t *turn) error {
		i := slices.IndexFunc(t.all, func(s *kept) bool { return s.entity == u.segment.entity && s.current == u.segment.current })
		if i < 0 {
			return nil
		}
		return f(ctx, t, t.all[i])
	})
}

// touch has the segment computed for contacts, which are in order.
func (s *kept) touch(contacts []int64) {
	if len(contacts) == 0 || len(s.touched) > 0 && &s.touched[0] == &contacts[0] && len(s.touched) == len(contacts) {
		return
	}
	if len(s.touched) == 0 {
		s.touched = contacts
		return
	}
	all := slices.Concat(s.touched, contacts)
	slices.Sort(all)
	s.touched = slices.Compact(all)
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
				other.touch(c.ids)
			}
		}
	}
}

// dueBy has the segment looked at again at a time, though no sooner than after a pause, unless it is to be earlier anyway.
func (t *turn) dueBy(s *kept, at time.Time, pause time.Duration) {
	if at.Equal(postgres.Never) {
		return
	}
	if soonest := t.env.Now.Add(max(t.tx.Tick(), pause)); at.Before(soonest) {
		at = soonest
	}
	if s.dueAt != nil && !at.Before(*s.dueAt) {
		return
	}
	s.dueAt = &at
	s.set("due_at", at)
	t.tx.Wake("segment", at)
}

// tell writes the facts of who joined and left, and rings; the rows of those segments of which something changed are written with the commit, in order, as whoever asks for rebuilds locks them.
func (t *turn) tell(ctx context.Context) error {
	if err := t.tx.AddFacts(ctx, t.joins...); err != nil {
		return err
	}
	for _, s := range slices.SortedFunc(slices.Values(t.all), func(x, y *kept) int { return cmp.Compare(x.entity, y.entity) }) {
		s.queue(t.tx)
	}
	for _, s := range t.all {
		if s.joined == 0 && s.left == 0 {
			continue
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
