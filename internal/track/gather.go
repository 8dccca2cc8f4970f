package track

import (
	"cmp"
	"context"
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/onda-run/onda/internal/fn"
	"github.com/onda-run/onda/internal/postgres"
)

const (
	gatherMost    = 500   // of one commit
	gatherPending = 5_000 // that wait for one tenant; more are told to come back

	// Of all tenants together, and of all that is gathered.
	roomItems = 20_000
	roomBytes = 8 << 20

	gatherWait    = time.Second           // an item begins to be stored by then, or is told to come back
	gatherTimeout = 2 * time.Second       // of one commit
	lockWait      = time.Second           // for a lock, in a commit
	probeWait     = 50 * time.Millisecond // for a lock, where the commit before got none
	lockBreak     = time.Second           // nothing is tried for so long after that
	lockMemory    = 10 * time.Second      // how long it is known that there was none
)

var (
	errBusy   = errors.New("too much waits to be stored for this tenant")
	errFull   = errors.New("too much waits to be stored")
	errLate   = errors.New("it waited too long to be stored")
	errLocked = errors.New("the tenant's tables are locked, by a migration for instance")
)

// room bounds what waits in the whole process.
type room struct {
	slots chan struct{} // of commits; a connection each, so that some are left for what reads

	mu           sync.Mutex
	items, bytes int
}

func newRoom(slots int) *room { return &room{slots: make(chan struct{}, slots)} }

// take reserves room; false when there is not so much.
func (r *room) take(items, bytes int) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.items+items > roomItems || r.bytes+bytes > roomBytes {
		return false
	}
	r.items += items
	r.bytes += bytes
	return true
}

func (r *room) give(items, bytes int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.items -= items
	r.bytes -= bytes
}

// gather puts what many requests bring into few commits: one commit is in flight a tenant, and what comes meanwhile goes into the next. At most as many
// tenants as there are slots commit at once, in turn. Whoever adds is answered when it is stored, and not before; or is told to come back: at once when there is
// no room, and after a second of waiting.
//
// A tenant whose tables are locked holds a slot for no longer than lock_timeout and fails alone; after that it is tried once a second, for a moment.
type gather[T any] struct {
	db    *postgres.DB
	room  *room
	size  func(T) int   // in bytes, in memory
	wait  time.Duration // gatherWait
	write func(ctx context.Context, tx *postgres.Tx, items []T) error

	mu      sync.Mutex
	tenants map[string]*queue[T] // a tenant is here while somebody writes for it, and while it is locked
}

// queue is what waits for one tenant, oldest first.
type queue[T any] struct {
	waiting []pending[T]
	timer   *time.Timer // for the oldest that waits; or to forget that the tenant was locked
	writing bool
	locked  bool      // the last commit got no lock
	shut    time.Time // until then nothing is tried
}

type pending[T any] struct {
	item  T
	bytes int
	at    time.Time
	done  chan<- error
}

func newGather[T any](db *postgres.DB, r *room, size func(T) int, write func(ctx context.Context, tx *postgres.Tx, items []T) error) *gather[T] {
	return &gather[T]{db: db, room: r, size: size, wait: gatherWait, write: write, tenants: map[string]*queue[T]{}}
}

// add stores items of a tenant and returns once they are committed. When ctx ends before that, they may be stored all the same.
func (g *gather[T]) add(ctx context.Context, tenant string, items ...T) error {
	done := make(chan error, len(items))
	if err := g.enqueue(tenant, items, done); err != nil {
		return fn.Unavailable(err)
	}
	var first error // of a hundred items that wait in vain, one says it for all
	for range items {
		select {
		case err := <-done:
			first = cmp.Or(first, err)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return first
}

// enqueue has items wait, and somebody write for the tenant.
func (g *gather[T]) enqueue(tenant string, items []T, done chan<- error) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := time.Now()
	q := g.tenants[tenant]
	if q == nil {
		q = &queue[T]{}
	}
	bytes := 0
	for _, item := range items {
		bytes += g.size(item)
	}
	switch {
	case now.Before(q.shut):
		return errLocked
	case len(q.waiting)+len(items) > gatherPending:
		return errBusy
	case !g.room.take(len(items), bytes):
		return errFull
	}
	g.tenants[tenant] = q
	if len(q.waiting) == 0 {
		g.wakeIn(g.wait, tenant, q)
	}
	for _, item := range items {
		q.waiting = append(q.waiting, pending[T]{item, g.size(item), now, done})
	}
	if !q.writing {
		q.writing = true
		go g.run(tenant, q)
	}
	return nil
}

// wakeIn has a queue looked after. It is called under the lock.
func (g *gather[T]) wakeIn(in time.Duration, tenant string, q *queue[T]) {
	if q.timer == nil {
		q.timer = time.AfterFunc(in, func() { g.wake(tenant, q) })
		return
	}
	q.timer.Reset(in)
}

// wake sends away those who waited too long, whose items are not stored, and forgets a tenant whom nobody asked for since it was locked.
func (g *gather[T]) wake(tenant string, q *queue[T]) {
	g.mu.Lock()
	defer g.mu.Unlock()
	now, n := time.Now(), 0
	for n < len(q.waiting) && now.Sub(q.waiting[n].at) >= g.wait {
		n++
	}
	g.answer(q.waiting[:n], fn.Unavailable(errLate))
	q.waiting = q.waiting[n:]
	if len(q.waiting) > 0 {
		g.wakeIn(g.wait-now.Sub(q.waiting[0].at), tenant, q)
	} else if !q.writing {
		delete(g.tenants, tenant)
	}
}

// answer ends the waiting of items.
func (g *gather[T]) answer(items []pending[T], err error) {
	bytes := 0
	for i := range items {
		bytes += items[i].bytes
		items[i].done <- err
	}
	g.room.give(len(items), bytes)
	clear(items) // the queue's array lives on
}

// run writes for a tenant until nothing waits any more.
func (g *gather[T]) run(tenant string, q *queue[T]) {
	for again := true; again; {
		g.room.slots <- struct{}{} // those who wait get it in their order
		batch, lock := g.next(q)
		locked := g.commit(tenant, q, batch, lock)
		<-g.room.slots
		again = g.done(tenant, q, locked)
	}
}

// next takes what the next commit stores, and how long that may wait for a lock.
func (g *gather[T]) next(q *queue[T]) ([]pending[T], time.Duration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	n := min(len(q.waiting), gatherMost)
	batch := q.waiting[:n:n]
	q.waiting = q.waiting[n:]
	if q.locked {
		return batch, probeWait
	}
	return batch, lockWait
}

// done notes how a commit went, and tells whether there is to be another.
func (g *gather[T]) done(tenant string, q *queue[T], locked bool) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	q.locked = locked
	if len(q.waiting) > 0 {
		return true
	}
	q.writing = false
	if locked {
		g.wakeIn(lockMemory, tenant, q)
		return false
	}
	q.timer.Stop()
	delete(g.tenants, tenant)
	return false
}

// commit stores a batch and answers it, and tells whether a lock stood in the way: then all that waits is sent away. Should one item be the fault of it all, it fails
// alone: halves are tried.
func (g *gather[T]) commit(tenant string, q *queue[T], batch []pending[T], lock time.Duration) (locked bool) {
	if len(batch) == 0 { // all were late
		return false
	}
	err := g.try(tenant, batch, lock)
	if err != nil && len(batch) > 1 && isItems(err) {
		half := len(batch) / 2
		if g.commit(tenant, q, batch[:half], lock) {
			g.answer(batch[half:], fn.Unavailable(errLocked))
			return true
		}
		return g.commit(tenant, q, batch[half:], lock)
	}
	if locked = sqlState(err) == "55P03"; locked { // lock not available
		g.mu.Lock()
		q.shut = time.Now().Add(lockBreak)
		g.answer(q.waiting, fn.Unavailable(errLocked))
		q.waiting = nil
		g.mu.Unlock()
	}
	g.answer(batch, err)
	return locked
}

func (g *gather[T]) try(tenant string, batch []pending[T], lock time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), gatherTimeout)
	defer cancel()
	items := make([]T, len(batch))
	for i := range batch {
		items[i] = batch[i].item
	}
	return g.db.InTenantUnlocked(ctx, tenant, lock, func(ctx context.Context, tx *postgres.Tx) error { return g.write(ctx, tx, items) })
}

// within is InTenant for requests of visitors: it waits no longer than a second for a lock, so that a migration of one tenant stops nobody else.
func within(ctx context.Context, db *postgres.DB, tenant string, f func(ctx context.Context, tx *postgres.Tx) error) error {
	return db.InTenantUnlocked(ctx, tenant, lockWait, f)
}

// isItems tells whether an error is about the values themselves (SQLSTATE 22 data exception, 23 integrity constraint violation).
func isItems(err error) bool {
	code := sqlState(err)
	return strings.HasPrefix(code, "22") || strings.HasPrefix(code, "23")
}

// sqlState is Postgres's code of an error; empty for others.
func sqlState(err error) string {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return pg.Code
	}
	return ""
}
