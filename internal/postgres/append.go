package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Append is a transaction that reads nothing: a statement, and a wake-up some time after.
type Append struct {
	SQL string
	// Args are its arguments, as of Tx.Once.
	Args []any
	// Wake is the function that is called by In after the transaction's time, on the tenant's clock; empty: none.
	Wake string
	In   time.Duration
}

// still holds while a tenant is as it was when it was entered on this connection, on the server that it was entered on; else it fails, with a division by zero. It sets the clock as enter does.
const still = `SELECT 1 / pg_catalog.count(set_config('onda.offset', t."offset"::text, true))
  FROM onda.tenant t, onda.database d
 WHERE t.name = $1 AND t.number = $2 AND t.state = $3 AND t.schema = $4 AND t.armed = $5 AND d.preproduction = $6
   AND pg_catalog.pg_postmaster_start_time() = $7 AND NOT pg_catalog.pg_is_in_recovery()`

// Append runs an Append in the tenant and commits it. It waits for each lock no longer than is given, as InTenantUnlocked, and fails as that does.
//
// It takes one round trip where InTenant takes two: what InTenant learns in the first was learnt when the tenant was last entered on the connection, and Postgres checks that it is so still.
// Where it is not, or when anything else is wrong, nothing was kept, and InTenant does it and says what.
func (db *DB) Append(ctx context.Context, tenant string, lock time.Duration, a Append) error {
	conn, err := db.acquire(ctx, tenant)
	if err != nil {
		return err
	}
	defer conn.Release()
	if e, known := db.enteredOn(conn.Conn(), tenant); known {
		// It cannot be prepared by itself: its tables are on the search path of the tenant's role alone. So the second time InTenant does it, which prepares it.
		if times := db.ran(conn.Conn(), a.SQL); times != 1 {
			err := e.append(ctx, conn, lock, a, times == 0)
			if err == nil {
				return nil
			}
			rollback(conn)
			var pe *pgconn.PgError
			if !errors.As(err, &pe) || IsLocked(err) {
				return err
			}
		}
	}
	return db.on(ctx, conn, tenant, mode{lock: lock}, func(_ context.Context, tx *Tx) error {
		tx.Finally(a.SQL, a.Args...)
		if a.Wake != "" {
			tx.Wake(a.Wake, tx.Now().Add(a.In))
		}
		return nil
	})
}

func (t entered) append(ctx context.Context, conn *pgxpool.Conn, lock time.Duration, a Append, once bool) error {
	b := &pgx.Batch{}
	queueBegin(b, t.name, mode{lock: lock})
	b.Queue(still, t.name, t.number, t.state, t.schema, t.armed, t.preproduction, t.started)
	b.Queue(a.SQL, a.Args...)
	if a.Wake != "" {
		b.Queue(lockWakes, wakeLock, t.number)
		b.Queue("UPDATE onda.wakeup SET at = onda.now() + make_interval(secs => $3) WHERE tenant = $1 AND function = $2 AND at > onda.now() + make_interval(secs => $3)", t.name, a.Wake, a.In.Seconds())
	}
	queueCommit(b)
	var err error
	if once {
		err = sendOnce(ctx, conn.Conn(), b)
	} else {
		err = conn.SendBatch(ctx, b).Close()
	}
	if err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	return nil
}
