package postgres

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// Lost says how much of what the tenant did may be missing in a database that was restored or failed over.
type Lost string

const (
	// LostNothing says that nothing was done after the state that is here, as in a move of a tenant that was suspended first, a failover to a synchronous standby, or
	// an upgrade of the server.
	LostNothing Lost = "nothing"
	// LostWindow says that it is the last moments, as in a failover to an asynchronous standby. Of each batch that was due, a window beyond its mark may have gone out.
	LostWindow Lost = "window"
	// LostAll says that it is hours, as with a backup. All that was due may have gone out, and what a run planned since is not known, so that runs are paused.
	LostAll Lost = "all"
)

// Rearm says how a tenant is to go on in a database that was restored or failed over.
type Rearm struct {
	Lost Lost
	// Until is when the database before was last at work; zero for now. What was not due by then cannot have gone out.
	Until time.Time
	// Again does it for a tenant that is armed here: a snapshot of the same server's disk was restored, which nothing in the database tells.
	Again bool
}

// Rearmed is what became of a tenant.
type Rearmed struct {
	Tenant string `json:"tenant"`
	// Done is false where the tenant was armed here already, and nothing was changed.
	Done bool `json:"done"`
	// Doubted are recipients that were not known to have been handed over and came under a mark: those without an outcome are unknown as soon as send looks.
	Doubted int64 `json:"doubted"`
	// Paused are the names of what was running.
	Paused []string `json:"paused"`
}

// window is the most recipients of a batch that may be handed over under one mark (delivery.MaxWindow).
const window = 64

// lostIDs is by how much ids are moved on, so that none that was given in what was lost is given again: it may be in a token or in a mail's Message-ID.
var lostIDs = map[Lost]int64{LostNothing: 0, LostWindow: 1 << 16, LostAll: 1 << 24}

// Rearm lets the tenant go on where the database is now, in one transaction.
//
// What may have gone out in what was lost comes under its batch's mark, so that the next holder makes it unknown, or sends it again under its Message-ID where
// the email says so, as after a crash; no lease of before holds. Ids are moved on. On another server, transactions are counted from another number: facts and
// cursors keep theirs, and what the server adds from here on is moved beyond them, so that every reader goes on exactly where it was.
func (a *Admin) Rearm(ctx context.Context, tenant string, r Rearm) (done Rearmed, err error) {
	if _, ok := lostIDs[r.Lost]; !ok {
		return done, fmt.Errorf("rearm tenant %s: lost is %s, %s or %s, not %q", tenant, LostNothing, LostWindow, LostAll, r.Lost)
	}
	err = a.inTx(ctx, func(tx pgx.Tx) error {
		done = Rearmed{Tenant: tenant, Paused: []string{}}
		if _, err := lockTenant(ctx, tx, tenant); err != nil {
			return err
		}
		var armed, here string
		var until time.Time // on the tenant's clock
		err := tx.QueryRow(ctx, `SELECT armed, onda.identity(), coalesce($2, now()) + "offset" FROM onda.tenant WHERE name = $1`, tenant, zeroNull(r.Until)).Scan(&armed, &here, &until)
		if err != nil || armed == here && !r.Again {
			return err
		}
		if err := inSchema(ctx, tx, tenant); err != nil {
			return err
		}
		if !sameServer(armed, here) {
			if err := moveFacts(ctx, tx); err != nil {
				return fmt.Errorf("move facts: %w", err)
			}
		}
		if r.Lost != LostNothing {
			if err := doubt(ctx, tx, r.Lost, until, &done); err != nil {
				return err
			}
		}
		if _, err := tx.Exec(ctx, "UPDATE batch SET fence = fence + 1, lease_until = '-infinity' WHERE state = 'open'"); err != nil {
			return fmt.Errorf("end leases: %w", err)
		}
		if _, err := tx.Exec(ctx, "UPDATE onda.tenant SET armed = onda.identity() WHERE name = $1", tenant); err != nil {
			return err
		}
		done.Done = true
		return wakeAll(ctx, tx, tenant)
	})
	if err != nil {
		return Rearmed{}, fmt.Errorf("rearm tenant %s: %w", tenant, err)
	}
	return done, nil
}

// moveFacts sees to it that this server's transactions count on from the highest number that facts and cursors have. Rewriting those instead would take as long as
// there are facts, and hold every cursor on the server back meanwhile.
func moveFacts(ctx context.Context, tx pgx.Tx) error {
	// Nobody is in the middle of writing facts, whose numbers would be of before. Nothing is served, so nobody waits for this either.
	if _, err := tx.Exec(ctx, "LOCK TABLE fact IN ACCESS EXCLUSIVE MODE"); err != nil {
		return err
	}
	var base int64
	err := tx.QueryRow(ctx, `SELECT greatest((SELECT xid::text::bigint FROM fact ORDER BY xid DESC, id DESC LIMIT 1), (SELECT max(xid::text::bigint) FROM cursor), 0) + 1
		- pg_snapshot_xmin(pg_current_snapshot())::text::bigint`).Scan(&base)
	if err != nil {
		return err
	}
	base = max(base, 0)
	if _, err := tx.Exec(ctx, "UPDATE cursor SET base = $1", base); err != nil {
		return err
	}
	_, err = tx.Exec(ctx, fmt.Sprintf("ALTER TABLE fact ALTER xid SET DEFAULT (pg_current_xact_id()::text::bigint + %d)::text::xid8", base))
	return err
}

// doubt puts what may have gone out under marks.
func doubt(ctx context.Context, tx pgx.Tx, lost Lost, until time.Time, done *Rearmed) error {
	beyond := window
	if lost == LostAll {
		beyond = BatchWidth
		rows, err := tx.Query(ctx, `WITH r AS (UPDATE run SET state = 'paused' WHERE kind <> 'standing' AND (state = 'running' OR state = 'scheduled' AND starts_at <= $1) RETURNING entity)
			SELECT e.name FROM r JOIN entity e ON e.id = r.entity ORDER BY e.name`, until)
		if err != nil {
			return fmt.Errorf("pause runs: %w", err)
		}
		if done.Paused, err = pgx.CollectRows(rows, pgx.RowTo[string]); err != nil {
			return fmt.Errorf("pause runs: %w", err)
		}
	}
	err := tx.QueryRow(ctx, `WITH due AS (SELECT id, mark FROM batch WHERE state = 'open' AND not_before <= $1 FOR UPDATE),
		moved AS (UPDATE batch b SET mark = least(cardinality(b.contacts), b.mark + $2) FROM due WHERE b.id = due.id RETURNING b.mark - due.mark AS n)
		SELECT coalesce(sum(n), 0)::bigint FROM moved`, until, beyond).Scan(&done.Doubted)
	if err != nil {
		return fmt.Errorf("move marks: %w", err)
	}
	// What was due for another attempt may have been in a batch that is not here.
	var retries int64
	err = tx.QueryRow(ctx, `WITH due AS (UPDATE delivery d SET attempt = d.attempt + 1, retry_at = NULL FROM batch b
			WHERE b.id = d.id >> 9 AND d.state = 'deferred' AND d.retry_at <= $1 RETURNING d.id, d.attempt, b.run, b.step, b.lane, b.email, b.expires_at),
		part AS (SELECT *, (row_number() OVER (PARTITION BY run, step, lane, email, attempt ORDER BY id) - 1) / 500 AS part FROM due),
		made AS (INSERT INTO batch (run, step, attempt, lane, email, contacts, mark, expires_at, cause)
			SELECT run, step, attempt, lane, email, array_agg(id ORDER BY id), count(*), max(expires_at), 'rearm' FROM part GROUP BY run, step, lane, email, attempt, part
			RETURNING mark)
		SELECT coalesce(sum(mark), 0)::bigint FROM made`, until).Scan(&retries)
	if err != nil {
		return fmt.Errorf("mark further attempts: %w", err)
	}
	done.Doubted += retries
	// Not those of keys: a key's id is a byte in tokens.
	_, err = tx.Exec(ctx, `SELECT setval(c.oid, coalesce(pg_sequence_last_value(c.oid), 0) + $1) FROM pg_class c, pg_class t
		WHERE t.oid = 'batch'::regclass AND c.relnamespace = t.relnamespace AND c.relkind = 'S' AND c.relname <> 'key_id_seq'`, lostIDs[lost])
	if err != nil {
		return fmt.Errorf("move ids on: %w", err)
	}
	_, err = tx.Exec(ctx, "SELECT ensure_partitions()")
	return err
}

func zeroNull(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}
