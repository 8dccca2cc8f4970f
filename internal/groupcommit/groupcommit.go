// Package groupcommit puts what many requests bring into few commits: as many as wait for a tenant are stored in one transaction.
//
// Invariants: whoever adds is answered when it is stored, and not before; what waits is bounded, in number, in memory and in time; one item that cannot be stored fails alone,
// and one tenant whose tables are locked stops no other.
package groupcommit

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/onda-run/onda/internal/fn"
	"github.com/onda-run/onda/internal/postgres"
)

const (
	mostPending = 5_000 // that wait for one tenant; more are told to come back

	// Of all tenants together, and of all that share a Room.
	roomItems = 20_000
	roomBytes = 8 << 20

	// Requests that wait, for one tenant and of all: the connection of each holds far more memory than what it brings.
	mostRequests = 384
	roomRequests = 512

	mostWait      = time.Second     // an item begins to be stored by then, or is told to come back
	commitTimeout = 2 * time.Second // of one commit
)

var (
	errBusy = errors.New("too much waits to be stored for this tenant")
	errFull = errors.New("too much waits to be stored")
	errLate = errors.New("it waited too long to be stored")
)

// Room bounds what waits in the whole process.
type Room struct {
	slots chan struct{} // of commits; a connection each, so that some are left for what reads

	mu                     sync.Mutex
	requests, items, bytes int
}

// NewRoom is room for at most so many commits at once, each on a connection of its own.
func NewRoom(slots int) *Room { return &Room{slots: make(chan struct{}, slots)} }

// take reserves room for a request and what it brings; false when there is not so much.
func (r *Room) take(items, bytes int) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.requests == roomRequests || r.items+items > roomItems || r.bytes+bytes > roomBytes {
		return false
	}
	r.requests++
	r.items += items
	r.bytes += bytes
	return true
}

func (r *Room) give(items, bytes int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.items -= items
	r.bytes -= bytes
}

// leave gives back the room of a request, but that of what it brought.
func (r *Room) leave() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.requests--
}

// Committer stores items of one kind: one commit is in flight a tenant (see Twice), and what comes meanwhile goes into the next. At most as many tenants as the Room has slots
// commit at once, in turn.
//
// A tenant whose tables are locked holds a slot for no longer than lock_timeout and fails alone; after that it is tried once a second, for a moment.
type Committer[T any] struct {
	room  *Room
	most  int           // items of one commit
	size  func(T) int   // in bytes, in memory
	wait  time.Duration // mostWait
	store Store[T]
	twice bool // see Twice

	mu      sync.Mutex
	tenants map[string]*queue[T] // a tenant is here while somebody writes for it, and while it is locked
}

// queue is what waits for one tenant, oldest first.
type queue[T any] struct {
	waiting  []pending[T]
	requests int         // that are to be answered
	timer    *time.Timer // for the oldest that waits; or to forget that the tenant was locked
	writing  bool
	second   bool      // a second commit is in flight
	alone    bool      // the last second one was in vain: the next commit is to be the only one
	locked   bool      // the last commit got no lock
	shut     time.Time // until then nothing is tried
}

type pending[T any] struct {
	item  T
	bytes int
	at    time.Time
	done  chan<- error
}

// itemError may be the fault of a single item.
type itemError struct{ error }

func (e itemError) Unwrap() error { return e.error }

// OfItem marks an error of a Store that may be one item's alone, as those of Postgres about values are: halves are tried, so that it fails alone. Nil stays nil.
func OfItem(err error) error {
	if err == nil {
		return nil
	}
	return itemError{err}
}

// Store commits items of a tenant in one transaction, which waits for each lock no longer than is given. It may be called again with some of them when it fails.
type Store[T any] func(ctx context.Context, tenant string, lock time.Duration, items []T) error

// In is a Store that writes items within a transaction of a database.
func In[T any](db *postgres.DB, write func(ctx context.Context, tx *postgres.Tx, items []T) error) Store[T] {
	return func(ctx context.Context, tenant string, lock time.Duration, items []T) error {
		return db.InTenantUnlocked(ctx, tenant, lock, func(ctx context.Context, tx *postgres.Tx) error { return write(ctx, tx, items) })
	}
}

// New makes a Committer. most is how many items one commit stores, size how many bytes of memory one takes.
func New[T any](r *Room, most int, size func(T) int, store Store[T]) *Committer[T] {
	return &Committer[T]{room: r, most: most, size: size, wait: mostWait, store: store, tenants: map[string]*queue[T]{}}
}

// Twice lets a tenant have a second commit in flight, for items that two processes may store at once just as well: when three quarters of a commit's items wait, and a slot that nobody waits for
// is free. It waits for a lock for a moment only, so that it keeps no slot from other tenants; what it could not store waits on. It is called before Add.
func (c *Committer[T]) Twice() *Committer[T] {
	c.twice = true
	return c
}

// Add stores items of a tenant and returns once they are committed, or tells the sender to come back (fn.Unavailable): at once when there is no room or the tenant's tables are
// locked, and after a second of waiting. When ctx ends before that, they may be stored all the same.
func (c *Committer[T]) Add(ctx context.Context, tenant string, items ...T) error {
	done := make(chan error, len(items))
	q, err := c.enqueue(tenant, items, done)
	if err != nil {
		return fn.Unavailable(err)
	}
	defer c.leave(q)
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

func (c *Committer[T]) leave(q *queue[T]) {
	c.room.leave()
	c.mu.Lock()
	defer c.mu.Unlock()
	q.requests--
}

// enqueue has items wait, and somebody write for the tenant.
func (c *Committer[T]) enqueue(tenant string, items []T, done chan<- error) (*queue[T], error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	q := c.tenants[tenant]
	if q == nil {
		q = &queue[T]{}
	}
	bytes := 0
	for _, item := range items {
		bytes += c.size(item)
	}
	switch {
	case now.Before(q.shut):
		return nil, postgres.ErrLocked
	case q.requests == mostRequests || len(q.waiting)+len(items) > mostPending:
		return nil, errBusy
	case !c.room.take(len(items), bytes):
		return nil, errFull
	}
	q.requests++
	c.tenants[tenant] = q
	if len(q.waiting) == 0 {
		c.wakeIn(c.wait, tenant, q)
	}
	q.waiting = slices.Grow(q.waiting, len(items))
	for _, item := range items {
		q.waiting = append(q.waiting, pending[T]{item, c.size(item), now, done})
	}
	if !q.writing {
		q.writing = true
		go c.run(tenant, q)
	} else {
		c.beside(tenant, q)
	}
	return q, nil
}

// wakeIn has a queue looked after. It is called under the lock.
func (c *Committer[T]) wakeIn(in time.Duration, tenant string, q *queue[T]) {
	if q.timer == nil {
		q.timer = time.AfterFunc(in, func() { c.wake(tenant, q) })
		return
	}
	q.timer.Reset(in)
}

// wake sends away those who waited too long, whose items are not stored, and forgets a tenant whom nobody asked for since it was locked.
func (c *Committer[T]) wake(tenant string, q *queue[T]) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now, n := time.Now(), 0
	for n < len(q.waiting) && now.Sub(q.waiting[n].at) >= c.wait {
		n++
	}
	c.answer(q.waiting[:n], fn.Unavailable(errLate))
	q.waiting = q.waiting[n:]
	if len(q.waiting) > 0 {
		c.wakeIn(c.wait-now.Sub(q.waiting[0].at), tenant, q)
	} else if !q.writing && !q.second && c.tenants[tenant] == q { // its timer may go off when another has its place
		delete(c.tenants, tenant)
	}
}

// answer ends the waiting of items.
func (c *Committer[T]) answer(items []pending[T], err error) {
	bytes := 0
	for i := range items {
		bytes += items[i].bytes
		items[i].done <- err
	}
	c.room.give(len(items), bytes)
	clear(items) // the queue's array lives on
}

// run writes for a tenant until nothing waits any more.
func (c *Committer[T]) run(tenant string, q *queue[T]) {
	for again := true; again; {
		c.room.slots <- struct{}{} // those who wait get it in their order
		runtime.Gosched()          // whoever was answered by the last may be about to ask again
		batch, lock := c.next(tenant, q)
		locked := c.commit(tenant, q, batch, lock)
		<-c.room.slots
		again = c.done(tenant, q, locked)
	}
}

// next takes what the next commit stores, and how long that may wait for a lock.
func (c *Committer[T]) next(tenant string, q *queue[T]) ([]pending[T], time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	batch := c.take(q)
	q.alone = false
	c.beside(tenant, q)
	if q.locked {
		return batch, postgres.ProbeWait
	}
	return batch, postgres.LockWait
}

// take takes what one commit stores. It is called under the lock.
func (c *Committer[T]) take(q *queue[T]) []pending[T] {
	n := min(len(q.waiting), c.most)
	batch := q.waiting[:n:n]
	q.waiting = q.waiting[n:]
	return batch
}

// beside begins a second commit where there is reason and room for it. It is called under the lock.
func (c *Committer[T]) beside(tenant string, q *queue[T]) {
	if !c.twice || q.second || q.alone || q.locked || len(q.waiting) < c.most*3/4 {
		return
	}
	select {
	case c.room.slots <- struct{}{}:
		q.second = true
		go c.commitBeside(tenant, q, c.take(q))
	default:
	}
}

// commitBeside tries to store a batch for which a slot was taken. What Postgres says that it did not store waits on, before all else.
func (c *Committer[T]) commitBeside(tenant string, q *queue[T], batch []pending[T]) {
	err := c.try(tenant, batch, postgres.ProbeWait)
	<-c.room.slots
	c.mu.Lock()
	defer c.mu.Unlock()
	q.second = false
	switch {
	case !postgres.IsLocked(err) && !isItems(err):
		c.answer(batch, err)
	case time.Now().Before(q.shut):
		c.answer(batch, fn.Unavailable(postgres.ErrLocked))
	default:
		q.alone = true
		q.waiting = slices.Concat(batch, q.waiting)
		c.wakeIn(max(0, c.wait-time.Since(batch[0].at)), tenant, q)
	}
	c.beside(tenant, q)
	switch {
	case q.writing:
	case len(q.waiting) > 0:
		q.writing = true
		go c.run(tenant, q)
	case !q.locked:
		q.timer.Stop()
		delete(c.tenants, tenant)
	}
}

// done notes how a commit went, and tells whether there is to be another.
func (c *Committer[T]) done(tenant string, q *queue[T], locked bool) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	q.locked = locked
	if len(q.waiting) > 0 {
		return true
	}
	q.writing = false
	if locked {
		c.wakeIn(postgres.LockMemory, tenant, q)
		return false
	}
	if !q.second {
		q.timer.Stop()
		delete(c.tenants, tenant)
	}
	return false
}

// commit stores a batch and answers it, and tells whether a lock stood in the way: then all that waits is sent away. Should one item be the fault of it all, it fails
// alone: halves are tried.
func (c *Committer[T]) commit(tenant string, q *queue[T], batch []pending[T], lock time.Duration) (locked bool) {
	if len(batch) == 0 { // all were late
		return false
	}
	err := c.try(tenant, batch, lock)
	if err != nil && len(batch) > 1 && isItems(err) {
		half := len(batch) / 2
		if c.commit(tenant, q, batch[:half], lock) {
			c.answer(batch[half:], fn.Unavailable(postgres.ErrLocked))
			return true
		}
		return c.commit(tenant, q, batch[half:], lock)
	}
	if locked = postgres.IsLocked(err); locked {
		c.mu.Lock()
		q.shut = time.Now().Add(postgres.LockBreak)
		c.answer(q.waiting, fn.Unavailable(postgres.ErrLocked))
		q.waiting = nil
		c.mu.Unlock()
	}
	c.answer(batch, err)
	return locked
}

func (c *Committer[T]) try(tenant string, batch []pending[T], lock time.Duration) (err error) {
	defer func() { // it would end the process, and with it what the others wait for
		if p := recover(); p != nil {
			err = OfItem(fmt.Errorf("panic: %v\n%s", p, debug.Stack()))
		}
	}()
	ctx, cancel := context.WithTimeout(context.Background(), commitTimeout)
	defer cancel()
	items := make([]T, len(batch))
	for i := range batch {
		items[i] = batch[i].item
	}
	return c.store(ctx, tenant, lock, items)
}

// isItems tells whether an error is marked so, or about the values themselves (SQLSTATE 22 data exception, 23 integrity constraint violation).
func isItems(err error) bool {
	if errors.As(err, &itemError{}) {
		return true
	}
	var pe *pgconn.PgError
	return errors.As(err, &pe) && (strings.HasPrefix(pe.Code, "22") || strings.HasPrefix(pe.Code, "23"))
}
