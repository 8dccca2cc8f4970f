package postgres

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// visitWait is how long a visitor waits for a connection of the tenant's share.
const visitWait = time.Second

// How a tenant whose tables are locked is kept from holding up the others, by visits and by package groupcommit.
const (
	LockWait   = time.Second           // for a lock
	ProbeWait  = 50 * time.Millisecond // for a lock, where one stood in the way not long ago
	LockBreak  = time.Second           // nothing is tried for so long after that
	LockMemory = 10 * time.Second      // how long it is known that one did
)

// Errors of visits that will be served when they come again.
const (
	ErrLocked  = notYet("the tenant's tables are locked, by a migration for instance")
	ErrCrowded = notYet("too many visitors of this tenant wait for Postgres")
)

// IsLocked tells whether an error is that a lock was not to be had in the time that there was for it (SQLSTATE 55P03, lock_not_available).
func IsLocked(err error) bool {
	return failedWith(err, "55P03")
}

// Visit is InTenant for one request of a visitor, of whom anybody may send many. Of a process that serves many tenants, one tenant's visitors hold at most half of the connections, and
// a tenant whose tables are locked is not tried again for a second, and then for a moment: so that it stops nobody else. Past the bounds the error is ErrCrowded or ErrLocked, for a 503.
func (db *DB) Visit(ctx context.Context, tenant string, f func(ctx context.Context, tx *Tx) error) error {
	return db.visitor(ctx, tenant, mode{}, f)
}

// VisitSnapshot is Visit as InTenantSnapshot is InTenant.
func (db *DB) VisitSnapshot(ctx context.Context, tenant string, f func(ctx context.Context, tx *Tx) error) error {
	return db.visitor(ctx, tenant, mode{snapshot: true}, f)
}

func (db *DB) visitor(ctx context.Context, tenant string, m mode, f func(ctx context.Context, tx *Tx) error) error {
	return db.byDoor(ctx, tenant, func(lock time.Duration) error {
		m.lock = lock
		return db.inTenant(ctx, tenant, m, f)
	})
}

// byDoor does what a visitor came for, when one may come in. do is told how long it may wait for a lock.
func (db *DB) byDoor(ctx context.Context, tenant string, do func(lock time.Duration) error) (err error) {
	lock, leave, err := db.doors.enter(ctx, tenant)
	if err != nil {
		return fmt.Errorf("tenant %.60q: %w", tenant, err)
	}
	defer func() { leave(IsLocked(err)) }() // also of a panic
	return do(lock)
}

// doors are where visitors of tenants come in.
type doors struct {
	each int // of one tenant, at once

	mu sync.Mutex
	of map[string]*door // of tenants that have visitors, and of those that are locked
}

// door is one tenant's.
type door struct {
	inside  chan struct{}
	here    int       // inside, or waiting
	locked  time.Time // when a lock stood in the way last
	waiting bool      // it is to be forgotten when that is long ago
}

// enter waits until a visitor may come in, and gives how long it may wait for a lock. leave is called when it goes, with whether a lock stood in its way.
func (ds *doors) enter(ctx context.Context, tenant string) (lock time.Duration, leave func(locked bool), err error) {
	ds.mu.Lock()
	d := ds.of[tenant]
	if d == nil {
		d = &door{inside: make(chan struct{}, ds.each)}
		ds.of[tenant] = d
	}
	shut := time.Since(d.locked) < LockBreak
	if !shut {
		d.here++
	}
	ds.mu.Unlock()
	if shut {
		return 0, nil, ErrLocked
	}
	select {
	case d.inside <- struct{}{}:
	default:
		wait := time.NewTimer(visitWait)
		defer wait.Stop()
		select {
		case d.inside <- struct{}{}:
		case <-wait.C:
			err = ErrCrowded
		case <-ctx.Done():
			err = ctx.Err()
		}
		if err != nil {
			ds.gone(tenant, d, false)
			return 0, nil, err
		}
	}
	ds.mu.Lock()
	since := time.Since(d.locked)
	ds.mu.Unlock()
	leave = func(locked bool) {
		<-d.inside
		ds.gone(tenant, d, locked)
	}
	switch {
	case since < LockBreak: // meanwhile
		leave(false)
		return 0, nil, ErrLocked
	case since < LockMemory:
		return ProbeWait, leave, nil
	}
	return LockWait, leave, nil
}

// gone counts a visitor off, and forgets a door that nobody needs.
func (ds *doors) gone(tenant string, d *door, locked bool) {
	ds.mu.Lock()
	defer ds.mu.Unlock()
	d.here--
	if locked {
		d.locked = time.Now()
	}
	switch left := LockMemory - time.Since(d.locked); {
	case d.here > 0 || d.waiting:
	case left <= 0:
		delete(ds.of, tenant)
	default:
		d.waiting = true
		time.AfterFunc(left, func() {
			ds.mu.Lock()
			d.waiting = false
			d.here++
			ds.mu.Unlock()
			ds.gone(tenant, d, false)
		})
	}
}
