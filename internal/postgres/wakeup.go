package postgres

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
)

// wakeLock is the class of the advisory lock, per tenant, between those who set wake-ups (shared) and the one who computes
// them anew (exclusive). Without it a recomputation ended at never while work was due.
const wakeLock = 0x6f6e6461

// lockWakes is what those who set wake-ups run before they do, with wakeLock and the tenant's number.
const lockWakes = "SELECT pg_advisory_xact_lock_shared($1, $2)"

// Functions that can be woken: each has a row in onda.wakeup for every tenant.
func Functions() []string { return []string{"campaign", "segment", "send", "send-api", "track"} }

// Wake makes sure that schedule calls the function by the time given, on the tenant's clock. It takes effect with the commit.
func (tx *Tx) Wake(function string, at time.Time) {
	if was, ok := tx.wakes[function]; !ok || at.Before(was) {
		tx.wakes[function] = at
	}
}

// queueWakes queues the last statements of a transaction before its commit: the lock, then the rows in order of function.
func (tx *Tx) queueWakes(b *pgx.Batch) {
	if len(tx.wakes) == 0 {
		return
	}
	b.Queue(lockWakes, wakeLock, tx.Tenant.Number)
	for _, f := range slices.Sorted(maps.Keys(tx.wakes)) {
		b.Queue("UPDATE onda.wakeup SET at = $3 WHERE tenant = $1 AND function = $2 AND at > $3", tx.Tenant.Name, f, tx.wakes[f])
	}
}

// Never is the time at which there is nothing to do: Postgres's infinity is stored for it.
var Never = time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)

// Recompute sets the function's wake-up to what due answers (Never for nothing to do) or to when its outbox is due, if that is earlier.
// Only the owning function calls it, when it has done what was due. due only reads: it runs under a lock that holds writers back.
func (db *DB) Recompute(ctx context.Context, tenant, function string, due func(ctx context.Context, tx *Tx) (time.Time, error)) error {
	return db.InTenant(ctx, tenant, func(ctx context.Context, tx *Tx) error {
		if _, err := tx.Exec(ctx, "SELECT pg_advisory_xact_lock($1, $2)", wakeLock, tx.Tenant.Number); err != nil {
			return fmt.Errorf("lock wake-ups: %w", err)
		}
		at, err := due(ctx, tx) // in the next statement, whose snapshot sees what was committed before the lock was given
		if err != nil {
			return err
		}
		out, err := tx.outboxDue(ctx, function)
		if err != nil {
			return err
		}
		if out.Before(at) {
			at = out
		}
		_, err = tx.Exec(ctx, `UPDATE onda.wakeup SET at = CASE WHEN $3 >= $4::timestamptz THEN 'infinity' ELSE $3 END
			WHERE tenant = $1 AND function = $2`, tenant, function, at, Never)
		if err != nil {
			return fmt.Errorf("set wake-up: %w", err)
		}
		return nil
	})
}

// Due is one function that has work to do for one tenant.
type Due struct {
	Tenant, Function string
	At               time.Time
	// Namespace is where the function is that works for the tenant; empty for the pool's, of a sandbox.
	Namespace string
	// Sweep is set when the function was not called for a day: it may have work that nobody knows of.
	Sweep bool
	// Age is for how long the work waits.
	Age time.Duration
}

// namespaceOf is where a wake-up's function is. send-api is a service of the function send.
const namespaceOf = `CASE WHEN t.own IS NULL OR replace(w.function, '-api', '') = ANY (t.own) THEN t.namespace ELSE '' END`

// Due lists who has work due by now plus ahead, on each tenant's own clock, oldest first, and then those that are to be swept. Used by schedule, with a login of
// its own.
func (db *DB) Due(ctx context.Context, ahead time.Duration) ([]Due, error) {
	rows, err := db.pool.Query(ctx, `SELECT w.tenant, w.function, least(w.at, '9999-01-01'), `+namespaceOf+`, w.swept < now() - interval '1 day', greatest(now() + t."offset" - least(w.at, '9999-01-01'), '0')
		FROM onda.wakeup w JOIN onda.tenant t ON t.name = w.tenant
		WHERE t.state IN ('active', 'suspended') AND w.function = ANY ($2)
		AND (w.at < 'infinity' AND w.at <= now() + t."offset" + $1::interval OR w.swept < now() - interval '1 day') ORDER BY w.at, w.tenant, w.function`, ahead, Functions())
	if err != nil {
		return nil, fmt.Errorf("read who has work due: %w", err)
	}
	due, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Due])
	if err != nil {
		return nil, fmt.Errorf("read who has work due: %w", err)
	}
	return due, nil
}

// Swept notes that a function looked after a tenant, whatever it found: the next sweep is in a day, or up to an hour earlier, so that tenants that were made
// together are not swept together for ever.
func (db *DB) Swept(ctx context.Context, tenant, function string) error {
	_, err := db.pool.Exec(ctx, "UPDATE onda.wakeup SET swept = now() - random() * interval '1 hour' WHERE tenant = $1 AND function = $2", tenant, function)
	if err != nil {
		return fmt.Errorf("note a sweep: %w", err)
	}
	return nil
}
