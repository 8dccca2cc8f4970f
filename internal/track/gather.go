package track

import (
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
	gatherMost    = 500             // of one commit
	gatherPending = 5_000           // that wait for one tenant; more are told to come back
	gatherTimeout = 5 * time.Second // of one commit
)

// errBusy says that a tenant's database does not keep up.
var errBusy = errors.New("too much waits to be stored for this tenant")

// gather puts what many requests bring into few commits: one commit is in flight a tenant, and what comes meanwhile goes into the next. At most as many
// tenants as there are slots commit at once, in turn. Whoever adds is answered when it is stored, and not before.
//
// A tenant whose tables are locked, by a migration for instance, holds a slot for no longer than lock_timeout and fails alone.
type gather[T any] struct {
	db    *postgres.DB
	write func(ctx context.Context, tx *postgres.Tx, items []T) error
	slots chan struct{}

	mu      sync.Mutex
	tenants map[string]*[]pending[T] // a tenant is here while somebody writes for it
}

type pending[T any] struct {
	item T
	done chan error
}

func newGather[T any](db *postgres.DB, slots int, write func(ctx context.Context, tx *postgres.Tx, items []T) error) *gather[T] {
	return &gather[T]{db: db, write: write, slots: make(chan struct{}, slots), tenants: map[string]*[]pending[T]{}}
}

// add stores items of a tenant and returns once they are committed. When ctx ends before that, they may be stored all the same.
func (g *gather[T]) add(ctx context.Context, tenant string, items ...T) error {
	waits := make([]pending[T], len(items))
	for i, item := range items {
		waits[i] = pending[T]{item, make(chan error, 1)}
	}
	g.mu.Lock()
	queue, writing := g.tenants[tenant]
	if !writing {
		queue = &[]pending[T]{}
		g.tenants[tenant] = queue
	}
	if len(*queue)+len(waits) > gatherPending {
		g.mu.Unlock()
		return fn.Unavailable(errBusy)
	}
	*queue = append(*queue, waits...)
	g.mu.Unlock()
	if !writing {
		go g.run(tenant, queue)
	}
	var errs []error
	for _, w := range waits {
		select {
		case err := <-w.done:
			errs = append(errs, err)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return errors.Join(errs...)
}

// run writes for a tenant until nothing waits any more.
func (g *gather[T]) run(tenant string, queue *[]pending[T]) {
	for {
		g.slots <- struct{}{} // those who wait get it in their order
		g.mu.Lock()
		n := min(len(*queue), gatherMost)
		batch := (*queue)[:n:n]
		*queue = (*queue)[n:]
		g.mu.Unlock()
		g.commit(tenant, batch)
		<-g.slots
		g.mu.Lock()
		if len(*queue) == 0 {
			delete(g.tenants, tenant)
			g.mu.Unlock()
			return
		}
		g.mu.Unlock()
	}
}

// commit stores a batch. Should one item be the fault of it all, each is tried alone, so that it fails alone.
func (g *gather[T]) commit(tenant string, batch []pending[T]) {
	err := g.try(tenant, batch)
	if err != nil && len(batch) > 1 && isItems(err) {
		for i := range batch {
			batch[i].done <- g.try(tenant, batch[i:i+1])
		}
		return
	}
	for _, p := range batch {
		p.done <- err
	}
}

func (g *gather[T]) try(tenant string, batch []pending[T]) error {
	ctx, cancel := context.WithTimeout(context.Background(), gatherTimeout)
	defer cancel()
	items := make([]T, len(batch))
	for i, p := range batch {
		items[i] = p.item
	}
	return within(ctx, g.db, tenant, func(ctx context.Context, tx *postgres.Tx) error { return g.write(ctx, tx, items) })
}

// within is InTenant for requests of visitors: it waits no longer than a second for a lock, so that a migration of one tenant stops nobody else.
func within(ctx context.Context, db *postgres.DB, tenant string, f func(ctx context.Context, tx *postgres.Tx) error) error {
	return db.InTenant(ctx, tenant, func(ctx context.Context, tx *postgres.Tx) error {
		if _, err := tx.Exec(ctx, "SELECT set_config('lock_timeout', '1s', true)"); err != nil {
			return err
		}
		return f(ctx, tx)
	})
}

// isItems tells whether an error is about the values themselves (SQLSTATE 22 data exception, 23 integrity constraint violation).
func isItems(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && (strings.HasPrefix(pg.Code, "22") || strings.HasPrefix(pg.Code, "23"))
}
