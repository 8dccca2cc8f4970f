package postgres

import (
	"context"
	"fmt"
	"time"
)

// Watch is told of what waits, whenever somebody comes to it: what it is (facts, hits, outbox), who works it off, how old the oldest of it is on the tenant's clock, and how many there
// are (0: it was not counted). It says nothing of whose it is.
type Watch = func(ctx context.Context, what, reader string, oldest time.Duration, n int)

// Watch has f told what waits. Set it before the database is used.
func (db *DB) Watch(f Watch) { db.watch = f }

// Found tells the database's Watch that something waited since a time on the tenant's clock.
func (tx *Tx) Found(ctx context.Context, what, reader string, since time.Time, n int) {
	if tx.db.watch != nil {
		tx.db.watch(ctx, what, reader, max(tx.now.Sub(since), 0), n)
	}
}

// Unread is how many facts the consumer has not come to, and since when the oldest of them waits; zero when it has read them all. When somebody else says that something happened is
// not looked at: it may have been told late.
func (tx *Tx) Unread(ctx context.Context, consumer string) (since time.Time, n int64, err error) {
	var oldest *time.Time
	err = tx.QueryRow(ctx, "SELECT min(f.at) FILTER (WHERE f.kind <> ALL ($2)), count(*) FROM cursor c JOIN fact f ON (f.xid, f.id) > (c.xid, c.id) WHERE c.name = $1", consumer, toldLate()).Scan(&oldest, &n)
	if err != nil {
		return since, 0, fmt.Errorf("count the facts that %s has not read: %w", consumer, err)
	}
	if oldest != nil {
		since = *oldest
	}
	return since, n, nil
}
