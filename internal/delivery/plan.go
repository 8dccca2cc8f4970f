package delivery

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/onda-run/onda/internal/postgres"
)

// Plan is a mail to any number of contacts.
type Plan struct {
	Run  int64
	Step string
	// Email is the id of the document: the version that is sent.
	Email int64
	Lane  int
	// Contacts are in the order in which they are sent to. It is the caller who sees to it that none is planned twice.
	Contacts []int64
	// NotBefore is when it is due; zero for now.
	NotBefore time.Time
	// Expires is when it is too late; zero for a day after it is due.
	Expires time.Time
	// Cause is the id of the event or command that caused it.
	Cause string
}

// Batch is one that was planned: the nth contact's delivery is ID(batch.ID, n).
type Batch struct {
	ID       int64
	Contacts []int64
}

// Enqueue plans batches of at most 500 and sees to it that they are looked at when they are due. It does not ring: the caller publishes
// email.send.requested as often as there are batches, up to the tenant's share.
func Enqueue(ctx context.Context, tx *postgres.Tx, plans ...Plan) ([]Batch, error) {
	if err := tx.EnsurePartitions(ctx); err != nil {
		return nil, err
	}
	var out []Batch
	b := &pgx.Batch{}
	for _, p := range plans {
		if p.Lane != Bulk && p.Lane != Transactional {
			return nil, fmt.Errorf("plan batches of run %d: there is no lane %d", p.Run, p.Lane)
		}
		if slices.ContainsFunc(p.Contacts, func(c int64) bool { return c <= 0 }) {
			return nil, fmt.Errorf("plan batches of run %d: a contact's id is above 0", p.Run)
		}
		if p.NotBefore.IsZero() {
			p.NotBefore = tx.Now()
		}
		if p.Expires.IsZero() {
			p.Expires = p.NotBefore.Add(Life)
		}
		for part := range slices.Chunk(p.Contacts, MaxBatch) {
			out = append(out, Batch{Contacts: part})
			i := len(out) - 1
			b.Queue(insertBatch, nil, p.Run, p.Step, 1, p.Lane, p.Email, part, p.NotBefore, p.Expires, p.Cause).QueryRow(func(row pgx.Row) error {
				return row.Scan(&out[i].ID)
			})
		}
		if len(p.Contacts) > 0 {
			tx.Wake(Function(p.Lane), p.NotBefore)
		}
	}
	if b.Len() == 0 {
		return nil, nil
	}
	if err := tx.SendBatch(ctx, b).Close(); err != nil {
		return nil, fmt.Errorf("plan batches: %w", err)
	}
	return out, nil
}

// insertBatch takes an id of its own when the first argument is null.
const insertBatch = `INSERT INTO batch (id, run, step, attempt, lane, email, contacts, not_before, expires_at, cause)
	VALUES (coalesce($1, nextval(pg_get_serial_sequence('batch', 'id'))), $2, $3, $4, $5, $6, $7, $8, $9, $10) RETURNING id`

// retryGroup is what deliveries of one new batch have in common.
type retryGroup struct {
	run     int64
	step    string
	email   int64
	lane    int
	attempt int
	tried   bool // a relay answered to it before
}

// retry is one delivery that is to be tried again, and how long it may be.
type retry struct {
	id      int64
	expires time.Time
}

// Causes of batches of further attempts: of mails that a relay refused for the moment, and of those that it was never asked about.
const (
	retried = "retry"
	waited  = "wait"
)

// regroup plans batches of deliveries whose attempt was raised already, in the same transaction: so a mark never covers an old attempt.
func regroup(ctx context.Context, tx *postgres.Tx, groups map[retryGroup][]retry, notBefore time.Time, cause string) error {
	if len(groups) == 0 {
		return nil
	}
	b := &pgx.Batch{}
	for g, all := range groups {
		slices.SortFunc(all, func(x, y retry) int { return int(x.id - y.id) })
		for part := range slices.Chunk(all, MaxBatch) {
			ids := make([]int64, len(part))
			var expires time.Time
			for i, r := range part {
				ids[i] = r.id
				if r.expires.After(expires) {
					expires = r.expires
				}
			}
			why := cause
			if why == retried && !g.tried {
				why = waited
			}
			b.Queue(insertBatch, nil, g.run, g.step, g.attempt, g.lane, g.email, ids, notBefore, expires, why)
		}
		tx.Wake(Function(g.lane), notBefore)
	}
	if err := tx.SendBatch(ctx, b).Close(); err != nil {
		return fmt.Errorf("plan further attempts: %w", err)
	}
	return nil
}

// Regroup takes up to 500 deferred deliveries of a lane whose time has come and plans batches of the next attempt for them. n is how many it took; 500 says
// that there may be more.
func Regroup(ctx context.Context, tx *postgres.Tx, lane int) (n int, err error) {
	rows, err := tx.Query(ctx, `WITH due AS (
			SELECT d.id FROM delivery d JOIN batch b ON b.id = d.id >> 9
			 WHERE d.state = 'deferred' AND d.retry_at <= onda.now() AND b.lane = $1
			 ORDER BY d.id LIMIT $2 FOR UPDATE OF d SKIP LOCKED)
		UPDATE delivery d SET attempt = d.attempt + 1, retry_at = NULL FROM due, batch b WHERE d.id = due.id AND b.id = d.id >> 9
		RETURNING d.id, d.attempt, b.run, b.step, b.email, b.expires_at, d.code IS NOT NULL`, lane, MaxBatch)
	if err != nil {
		return 0, fmt.Errorf("take deliveries that are due for another attempt: %w", err)
	}
	groups := map[retryGroup][]retry{}
	g := retryGroup{lane: lane}
	var r retry
	_, err = pgx.ForEachRow(rows, []any{&r.id, &g.attempt, &g.run, &g.step, &g.email, &r.expires, &g.tried}, func() error {
		groups[g] = append(groups[g], r)
		n++
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("take deliveries that are due for another attempt: %w", err)
	}
	return n, regroup(ctx, tx, groups, tx.Now(), retried)
}

// Due is when work of a lane is next to be looked at: a batch that can be leased then, a retry, a request to forget. postgres.Never for nothing. For use in
// DB.Recompute. A tenant that is held back (suspended, not armed) is looked at once an hour.
func Due(ctx context.Context, tx *postgres.Tx, lane int, messageLimit time.Duration) (time.Time, error) {
	// A lease ends by the server's clock, everything else is due by the tenant's.
	var at *time.Time
	err := tx.QueryRow(ctx, `SELECT least(
		(SELECT min(greatest(CASE WHEN r.state = 'cancelled' THEN least(b.not_before, onda.now()) ELSE b.not_before END, b.lease_until + $2::interval + (onda.now() - now()))) FROM batch b JOIN run r ON r.id = b.run
		  WHERE b.state = 'open' AND b.lane = $1 AND r.state IN ('running', 'completed', 'cancelled')),
		(SELECT d.retry_at FROM delivery d JOIN batch b ON b.id = d.id >> 9
		  WHERE d.state = 'deferred' AND d.retry_at IS NOT NULL AND b.lane = $1 ORDER BY d.retry_at LIMIT 1),
		CASE WHEN $1 = 1 THEN (SELECT min(at) FROM request) + $3::interval END)`, lane, messageLimit, keepRequests).Scan(&at)
	if err != nil {
		return postgres.Never, fmt.Errorf("look for mails that are due: %w", err)
	}
	if at == nil {
		return postgres.Never, nil
	}
	if held := Held(tx); held != nil && at.Before(tx.Now().Add(time.Hour)) {
		return tx.Now().Add(time.Hour), nil
	}
	return *at, nil
}

// PutOff makes the mails of a run that wait, for the first attempt or for a further one, expire later by the time since it was held; those that were due only after
// that, by the time since they were due. The life of a mail that is tried again is in the batch that it was planned in, which may be closed.
func PutOff(ctx context.Context, tx *postgres.Tx, run int64, since time.Time) error {
	_, err := tx.Exec(ctx, `WITH waiting AS (SELECT id, CASE WHEN attempt = 1 THEN greatest($2, not_before) ELSE $2 END AS since FROM batch
			WHERE run = $1 AND (state = 'open' AND (attempt > 1 OR not_before < onda.now()) OR deferred > 0) ORDER BY id FOR NO KEY UPDATE)
		UPDATE batch b SET expires_at = b.expires_at + (onda.now() - w.since) FROM waiting w WHERE b.id = w.id`, run, since)
	if err != nil {
		return fmt.Errorf("put off when mails of run %d expire: %w", run, err)
	}
	return nil
}

// Shift moves the batches of a run that were to be due since a time, and are not begun, by as long as that is ago, and when they expire with them.
func Shift(ctx context.Context, tx *postgres.Tx, run int64, since time.Time) error {
	_, err := tx.Exec(ctx, `WITH moved AS (SELECT id FROM batch WHERE run = $1 AND state = 'open' AND attempt = 1 AND mark = 0 AND not_before >= $2 ORDER BY id FOR NO KEY UPDATE)
		UPDATE batch b SET not_before = b.not_before + (onda.now() - $2), expires_at = b.expires_at + (onda.now() - $2) FROM moved m WHERE b.id = m.id`, run, since)
	if err != nil {
		return fmt.Errorf("move batches of run %d: %w", run, err)
	}
	return nil
}

// Errors of a tenant that is held back: its recipients stay queued.
var (
	ErrSuspended = errors.New("the tenant is not active: nothing is sent until it is")
	ErrNotArmed  = errors.New("the database was restored or failed over: nothing is sent until onda tenant rearm")
)

// Held tells why nothing of the tenant may be sent at present: ErrSuspended, ErrNotArmed or nil.
func Held(tx *postgres.Tx) error {
	switch {
	case tx.Tenant.State != "active":
		return ErrSuspended
	case !tx.Tenant.Armed:
		return ErrNotArmed
	}
	return nil
}

// InFlight locks the run's leased batches once, so that no mark whose snapshot is older than a pause or a cancellation goes through afterwards, and counts the
// mails that were marked and have no outcome: they may still go out. To be called in a transaction of its own, after the one that changed the run's state.
func InFlight(ctx context.Context, tx *postgres.Tx, run int64) (n int64, err error) {
	rows, err := tx.Query(ctx, "SELECT id FROM batch WHERE run = $1 AND state = 'open' AND lease_until > '-infinity' ORDER BY id FOR UPDATE", run)
	if err != nil {
		return 0, fmt.Errorf("lock the leased batches of run %d: %w", run, err)
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		return 0, fmt.Errorf("lock the leased batches of run %d: %w", run, err)
	}
	err = tx.QueryRow(ctx, `SELECT coalesce(sum(b.mark - CASE WHEN b.attempt = 1
			THEN (SELECT count(*) FROM delivery d WHERE d.id > b.id << 9 AND d.id <= b.id << 9 | b.mark)
			ELSE b.mark - (SELECT count(*) FROM delivery d WHERE d.id = ANY (b.contacts[1:b.mark]) AND d.attempt = b.attempt AND d.state = 'deferred' AND d.retry_at IS NULL)
			END), 0)::bigint FROM batch b WHERE b.id = ANY ($1)`, ids).Scan(&n)
	if err != nil {
		return 0, fmt.Errorf("count mails in flight of run %d: %w", run, err)
	}
	return n, nil
}

// NextDue gives the run of a lane's next batch that could be leased now, and the id of its first delivery; 0 when there is none.
func NextDue(ctx context.Context, tx *postgres.Tx, lane int, messageLimit time.Duration) (run, first int64, err error) {
	if Held(tx) != nil {
		return 0, 0, nil
	}
	err = tx.QueryRow(ctx, `SELECT b.run, CASE WHEN b.attempt = 1 THEN b.id << 9 | 1 ELSE b.contacts[1] END FROM batch b JOIN run r ON r.id = b.run
		WHERE b.state = 'open' AND b.lane = $1 AND (b.not_before <= onda.now() OR r.state = 'cancelled') AND b.lease_until < now() - $2::interval AND r.state IN ('running', 'completed', 'cancelled')
		ORDER BY b.id LIMIT 1`, lane, messageLimit).Scan(&run, &first)
	if errors.Is(err, pgx.ErrNoRows) {
		return 0, 0, nil
	}
	if err != nil {
		return 0, 0, fmt.Errorf("look for the next batch: %w", err)
	}
	return run, first, nil
}
