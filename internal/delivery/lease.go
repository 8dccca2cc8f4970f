package delivery

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/onda-run/onda/internal/event"
	"github.com/onda-run/onda/internal/postgres"
)

// Terms are the times that a holder and whoever takes over from it agree on.
type Terms struct {
	// Lease is how long a batch is held without a word of its holder.
	Lease time.Duration
	// MessageLimit is the longest that one message may take: a takeover waits it out after the lease.
	MessageLimit time.Duration
}

// Lease is a batch that this process holds, or held: only its fence and its clock tell.
type Lease struct {
	Batch    int64
	Run      int64
	Step     string
	Attempt  int
	Lane     int
	Email    int64 // id of the document
	Contacts []int64
	Mark     int // recipients up to here are settled, or were handed over by this holder
	Expires  time.Time
	Cause    string
	// Done tells that nothing was left to send, because the run was cancelled, the mails expired, or all were settled: the batch is closed.
	Done bool
	// Granted is how many recipients beyond the mark have their part of the tenant's budgets of a day already, GrantedOn, from a holder before.
	Granted   int
	GrantedOn string // a date

	fence   int64
	started atomic.Pointer[time.Time]
	terms   Terms
	asked   bool    // of a first attempt: settled is known
	settled []int64 // deliveries beyond the mark that had an outcome when we took it
}

// Untried tells whether no relay was asked about the batch's mails before, so that they have used up nothing of what a day allows.
func (l *Lease) Untried() bool { return l.Attempt == 1 || l.Cause == waited }

// Size is how many recipients the batch has.
func (l *Lease) Size() int { return len(l.Contacts) }

// Delivery is the id of the nth recipient's delivery, from 1.
func (l *Lease) Delivery(n int) int64 {
	if l.Attempt > 1 {
		return l.Contacts[n-1]
	}
	return ID(l.Batch, n)
}

// Alive tells whether the lease holds at the time given, which is a time.Now(), by the monotonic clock and by the wall clock: the former stands still while
// a machine is suspended. Asked before each message, by any goroutine.
func (l *Lease) Alive(now time.Time) bool {
	started := *l.started.Load()
	return now.Sub(started) < l.terms.Lease && now.Round(0).Sub(started.Round(0)) < l.terms.Lease
}

// Half tells whether half of the lease is over, so that it is time to renew it.
func (l *Lease) Half(now time.Time) bool { return now.Sub(*l.started.Load()) > l.terms.Lease/2 }

// Take leases the next batch of the lane that is due and that nobody holds, and settles what its last holder left: up to the mark, whatever has no outcome is
// unknown, and gets another attempt where resend says so for the email's document. Nil when there is none. A tenant that is held back gives its error, and
// leases nothing. A run that is completed holds nothing back: retries may come after it. started is a time.Now() from before the transaction.
func Take(ctx context.Context, tx *postgres.Tx, drainer string, lane int, terms Terms, started time.Time,
	resend func(ctx context.Context, tx *postgres.Tx, email int64) (bool, error),
) (*Lease, error) {
	if err := Held(tx); err != nil {
		return nil, err
	}
	l := &Lease{Lane: lane, terms: terms}
	l.started.Store(&started)
	granted := "0, ''"
	if tx.Tenant.Schema >= PaceSchema {
		granted = "greatest(b.granted_to - b.mark, 0), coalesce(b.granted_on::text, '')"
	}
	var run string
	err := tx.QueryRow(ctx, `UPDATE batch b SET fence = fence + 1, lease_until = now() + $2::interval FROM run r
		WHERE r.id = b.run AND b.id = (
			SELECT b.id FROM batch b JOIN run r ON r.id = b.run AND r.state IN ('running', 'completed', 'cancelled')
			 WHERE b.state = 'open' AND b.lane = $1 AND (b.not_before <= onda.now() OR r.state = 'cancelled') AND b.lease_until < now() - $3::interval
			 ORDER BY b.id FOR UPDATE OF b SKIP LOCKED LIMIT 1)
		RETURNING b.id, b.run, b.step, b.attempt, b.email, b.contacts, b.mark, b.fence, b.expires_at, b.cause, r.state, `+granted,
		lane, terms.Lease, terms.MessageLimit).
		Scan(&l.Batch, &l.Run, &l.Step, &l.Attempt, &l.Email, &l.Contacts, &l.Mark, &l.fence, &l.Expires, &l.Cause, &run, &l.Granted, &l.GrantedOn)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("lease a batch: %w", err)
	}
	if l.Mark > 0 {
		again, err := resend(ctx, tx, l.Email)
		if err != nil {
			return nil, err
		}
		if err := l.settle(ctx, tx, drainer, again); err != nil {
			return nil, err
		}
	}
	switch {
	case run == "cancelled":
		err = l.giveUp(ctx, tx, drainer, Cancelled)
	case !tx.Now().Before(l.Expires):
		err = l.giveUp(ctx, tx, drainer, Expired)
	case l.Mark < l.Size():
		return l, nil
	}
	if err != nil {
		return nil, err
	}
	l.Done, err = l.close(ctx, tx, drainer)
	return l, err
}

// settle writes unknown for what was marked and has no outcome. Record's rules make it the same as the two statements of postgres.md: an insert that does
// nothing where there is a row, and an update of what is deferred, in hand and of this attempt.
func (l *Lease) settle(ctx context.Context, tx *postgres.Tx, drainer string, again bool) error {
	open, err := l.open(ctx, tx, 0, l.Mark)
	if err != nil {
		return err
	}
	outcomes := make([]Outcome, len(open))
	for i, r := range open {
		outcomes[i] = Outcome{Delivery: r.Delivery, Contact: r.Contact, Attempt: l.Attempt, State: Unknown, Resend: again}
	}
	_, err = Record(ctx, tx, drainer, outcomes...)
	return err
}

// giveUp writes an outcome for everything beyond the mark.
func (l *Lease) giveUp(ctx context.Context, tx *postgres.Tx, drainer string, why Reason) error {
	open, err := l.open(ctx, tx, l.Mark, l.Size())
	if err != nil {
		return err
	}
	outcomes := make([]Outcome, len(open))
	for i, r := range open {
		outcomes[i] = Refusal(r, why)
	}
	_, err = Record(ctx, tx, drainer, outcomes...)
	return err
}

// Recipient is one of a batch that has no outcome of this attempt yet.
type Recipient struct {
	Number   int // in the batch that is held
	Delivery int64
	Contact  int64
	Attempt  int
	Expires  time.Time
	Tried    bool // a relay answered to it before
	// Refused is when it was, of a mail that did not wait for anything else since; zero otherwise.
	Refused time.Time
}

// Refusal is the outcome of a recipient that the gate holds back for good. One that was tried before and expired has failed: it was refused until then.
func Refusal(r Recipient, why Reason) Outcome {
	o := Outcome{Delivery: r.Delivery, Contact: r.Contact, Attempt: r.Attempt, State: Suppressed, Reason: why}
	if why == Expired && r.Tried {
		o.State = Failed
	}
	return o
}

// Waits is the outcome of a recipient that is not tried before a time.
func Waits(r Recipient, until time.Time, why string) Outcome {
	return Outcome{Delivery: r.Delivery, Contact: r.Contact, Attempt: r.Attempt, State: Deferred, RetryAt: until, Detail: why}
}

// open lists the recipients with numbers above from, up to to, that have no outcome: of a first attempt those without a row, of a further one those that are
// still deferred, in hand and of this attempt.
func (l *Lease) open(ctx context.Context, tx *postgres.Tx, from, to int) ([]Recipient, error) {
	if from >= to {
		return nil, nil
	}
	if l.Attempt == 1 {
		var have []int64
		b := &pgx.Batch{}
		l.queueSettled(b, from, to, &have)
		if err := tx.SendBatch(ctx, b).Close(); err != nil {
			return nil, err
		}
		return l.unsettled(from, to, have), nil
	}
	part := l.Contacts[from:to]
	out := make([]Recipient, 0, len(part))
	rows, err := tx.Query(ctx, `SELECT u.n, d.id, d.contact, b.expires_at, d.code IS NOT NULL, CASE WHEN d.class IS NOT NULL THEN d.at END
		FROM unnest($1::bigint[]) WITH ORDINALITY u (id, n) JOIN delivery d ON d.id = u.id JOIN batch b ON b.id = d.id >> 9
		WHERE d.state = 'deferred' AND d.retry_at IS NULL AND d.attempt = $2 ORDER BY u.n`, part, l.Attempt)
	if err != nil {
		return nil, fmt.Errorf("look for deliveries in hand: %w", err)
	}
	r := Recipient{Attempt: l.Attempt}
	var refused *time.Time
	_, err = pgx.ForEachRow(rows, []any{&r.Number, &r.Delivery, &r.Contact, &r.Expires, &r.Tried, &refused}, func() error {
		out = append(out, r)
		last := &out[len(out)-1]
		if last.Number += from; refused != nil {
			last.Refused = *refused
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("look for deliveries in hand: %w", err)
	}
	return out, nil
}

// queueSettled looks which deliveries of a first attempt have an outcome.
func (l *Lease) queueSettled(b *pgx.Batch, from, to int, have *[]int64) {
	b.Queue("SELECT id FROM delivery WHERE id > $1 AND id <= $2", ID(l.Batch, from), ID(l.Batch, to)).Query(func(rows pgx.Rows) (err error) {
		if *have, err = pgx.CollectRows(rows, pgx.RowTo[int64]); err != nil {
			return fmt.Errorf("look for outcomes: %w", err)
		}
		return nil
	})
}

// unsettled are the recipients of a first attempt but for those.
func (l *Lease) unsettled(from, to int, have []int64) []Recipient {
	out := make([]Recipient, 0, to-from)
	for i, c := range l.Contacts[from:to] {
		if id := ID(l.Batch, from+1+i); !slices.Contains(have, id) {
			out = append(out, Recipient{Number: from + 1 + i, Delivery: id, Contact: c, Attempt: 1, Expires: l.Expires})
		}
	}
	return out
}

// Advance moves the mark to hi, which may be where it is, renews the lease, and gives the recipients that came under it and have no outcome. ok is false when
// the lease is lost, the run does not run any more or the tenant is held back: then nothing more may be handed over. Nothing of what it gives may be handed
// over before its transaction is committed; Moved is called after that.
func (l *Lease) Advance(ctx context.Context, tx *postgres.Tx, hi int) (open []Recipient, ok bool, err error) {
	b := &pgx.Batch{}
	a, err := l.QueueAdvance(tx, b, hi)
	if err != nil {
		return nil, false, err
	}
	if err := tx.SendBatch(ctx, b).Close(); err != nil {
		return nil, false, err
	}
	return a.Done(ctx, tx)
}

// Advance is a mark on its way.
type Advance struct {
	lease   *Lease
	from    int
	hi      int
	moved   bool
	asks    bool
	settled []int64 // when it asks: of a first attempt, those with an outcome
}

// QueueAdvance does what Advance does, with others in one round trip: Done gives the result once the batch is read.
func (l *Lease) QueueAdvance(tx *postgres.Tx, b *pgx.Batch, hi int) (*Advance, error) {
	if hi < l.Mark || hi > l.Size() || hi-l.Mark > MaxWindow {
		return nil, fmt.Errorf("batch %d: a mark at %d does not follow one at %d of %d", l.Batch, hi, l.Mark, l.Size())
	}
	a := &Advance{lease: l, from: l.Mark, hi: hi}
	if Held(tx) != nil {
		return a, nil
	}
	b.Queue(`UPDATE batch b SET mark = $3, lease_until = now() + $4::interval FROM run r
		WHERE b.id = $1 AND b.fence = $2 AND b.state = 'open' AND b.lease_until > now() AND r.id = b.run AND r.state IN ('running', 'completed')`,
		l.Batch, l.fence, hi, l.terms.Lease).Exec(func(tag pgconn.CommandTag) error {
		a.moved = tag.RowsAffected() > 0
		return nil
	})
	// Who plans a batch gives those that come too late an outcome, and the holder before may have marked what it never heard of. Nobody but us adds to these while we hold
	// it, so they are asked for once.
	if a.asks = l.Attempt == 1 && hi > l.Mark && !l.asked; a.asks {
		l.queueSettled(b, l.Mark, l.Size(), &a.settled)
	}
	return a, nil
}

// Done gives the result of an advance: see Lease.Advance.
func (a *Advance) Done(ctx context.Context, tx *postgres.Tx) (open []Recipient, ok bool, err error) {
	switch {
	case !a.moved:
		return nil, false, nil
	case a.lease.Attempt == 1:
		if a.asks {
			a.lease.asked, a.lease.settled = true, a.settled
		}
		return a.lease.unsettled(a.from, a.hi, a.lease.settled), true, nil
	}
	open, err = a.lease.open(ctx, tx, a.from, a.hi)
	return open, err == nil, err
}

// Moved notes that the mark at hi is committed; started is a time.Now() from before its transaction.
func (l *Lease) Moved(hi int, started time.Time) {
	l.Mark = hi
	l.started.Store(&started)
}

// Release gives the batch back before its lease ends, so that it is leased again at once. Only for a holder that has settled all it marked. It is no error if
// the batch was taken over meanwhile. A mark whose commit was never confirmed goes back to the last one that was: nothing beyond that was handed over, and should the
// commit still be on its way, it finds no lease.
func (l *Lease) Release(ctx context.Context, tx *postgres.Tx) error {
	_, err := tx.Exec(ctx, "UPDATE batch SET lease_until = '-infinity', mark = least(mark, $3) WHERE id = $1 AND fence = $2 AND state = 'open'", l.Batch, l.fence, l.Mark)
	if err != nil {
		return fmt.Errorf("release batch %d: %w", l.Batch, err)
	}
	tx.Wake(Function(l.Lane), tx.Now())
	return nil
}

// PutOff gives the batch back for a time, of a second at least: what is left of it waits until then. Where it lives on, its mails expire no sooner than a day after that. As
// Release otherwise.
func (l *Lease) PutOff(ctx context.Context, tx *postgres.Tx, until time.Time, livesOn bool) error {
	if soonest := tx.Now().Add(Ahead); until.Before(soonest) {
		until = soonest
	}
	if livesOn && l.Attempt > 1 { // when they expire is in the batches that they were planned in, which are locked before ours
		_, err := tx.Exec(ctx, `WITH planned AS (SELECT id FROM batch WHERE id IN (SELECT id >> 9 FROM unnest($1::bigint[]) id) ORDER BY id FOR NO KEY UPDATE)
			UPDATE batch b SET expires_at = $2::timestamptz + $3::interval FROM planned p WHERE b.id = p.id AND b.expires_at < $2::timestamptz + $3::interval`,
			l.Contacts[l.Mark:], until, Life)
		if err != nil {
			return fmt.Errorf("let the mails of batch %d live on: %w", l.Batch, err)
		}
	}
	_, err := tx.Exec(ctx, `UPDATE batch SET lease_until = '-infinity', mark = least(mark, $3), not_before = $4::timestamptz,
			expires_at = CASE WHEN $5 THEN greatest(expires_at, $4::timestamptz + $6::interval) ELSE expires_at END
		WHERE id = $1 AND fence = $2 AND state = 'open'`, l.Batch, l.fence, l.Mark, until, livesOn, Life)
	if err != nil {
		return fmt.Errorf("put batch %d off: %w", l.Batch, err)
	}
	tx.Wake(Function(l.Lane), until)
	return nil
}

// Grant notes that so many recipients beyond the mark have their part of the tenant's budgets of a day, whoever holds the batch. ours is false when the batch was taken over: then
// nothing is noted.
func (l *Lease) Grant(ctx context.Context, tx *postgres.Tx, n int, day string) (ours bool, err error) {
	ct, err := tx.Exec(ctx, "UPDATE batch SET granted_to = $3, granted_on = $4::text::date WHERE id = $1 AND fence = $2", l.Batch, l.fence, l.Mark+n, day)
	if err != nil {
		return false, fmt.Errorf("note what batch %d was granted: %w", l.Batch, err)
	}
	return ct.RowsAffected() > 0, nil
}

// OthersHold tells whether others hold batches of the lane, and so may give back what they were granted.
func (l *Lease) OthersHold(ctx context.Context, tx *postgres.Tx) (they bool, err error) {
	err = tx.QueryRow(ctx, "SELECT EXISTS (SELECT FROM batch WHERE state = 'open' AND lane = $1 AND id <> $2 AND lease_until > now())", l.Lane, l.Batch).Scan(&they)
	if err != nil {
		return false, fmt.Errorf("look who holds batches: %w", err)
	}
	return they, nil
}

// GiveUp gives all beyond the mark a reason for not being sent, and closes the batch. Only for a holder that has settled all it marked.
func (l *Lease) GiveUp(ctx context.Context, tx *postgres.Tx, drainer string, why Reason) error {
	if held, err := l.lock(ctx, tx); err != nil || !held {
		return err
	}
	if err := l.giveUp(ctx, tx, drainer, why); err != nil {
		return err
	}
	_, err := l.close(ctx, tx, drainer)
	return err
}

// Close closes the batch when each of its recipients has an outcome, writes its counts, and publishes email.batch.sent. closed is false when the batch is held
// by another now, or is not at its end. In a transaction that has recorded nothing: the lock it needs comes before those of deliveries.
func (l *Lease) Close(ctx context.Context, tx *postgres.Tx, drainer string) (closed bool, err error) {
	if held, err := l.lock(ctx, tx); err != nil || !held {
		return false, err
	}
	return l.close(ctx, tx, drainer)
}

// lock locks the batch's row; held is false when the batch is another's now, or closed.
func (l *Lease) lock(ctx context.Context, tx *postgres.Tx) (held bool, err error) {
	var one int
	err = tx.QueryRow(ctx, "SELECT 1 FROM batch WHERE id = $1 AND fence = $2 AND state = 'open' FOR UPDATE", l.Batch, l.fence).Scan(&one)
	if errors.Is(err, pgx.ErrNoRows) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("lock batch %d: %w", l.Batch, err)
	}
	return true, nil
}

// close needs the batch's row locked FOR UPDATE. The columns of a retry's batch stay 0: a delivery counts in the batch that it was planned in, so that sums
// over batches count everyone once.
func (l *Lease) close(ctx context.Context, tx *postgres.Tx, drainer string) (bool, error) {
	open, err := l.open(ctx, tx, 0, l.Size())
	if err != nil || len(open) > 0 {
		return false, err
	}
	var rows pgx.Rows
	if l.Attempt == 1 {
		rows, err = tx.Query(ctx, "SELECT state, count(*) FROM delivery WHERE id > $1 AND id <= $2 GROUP BY state", ID(l.Batch, 0), ID(l.Batch, l.Size()))
	} else {
		rows, err = tx.Query(ctx, "SELECT state, count(*) FROM delivery WHERE id = ANY ($1) GROUP BY state", l.Contacts)
	}
	if err != nil {
		return false, fmt.Errorf("count batch %d: %w", l.Batch, err)
	}
	counts := map[State]int64{}
	var s State
	var n int64
	if _, err = pgx.ForEachRow(rows, []any{&s, &n}, func() error { counts[s] = n; return nil }); err != nil {
		return false, fmt.Errorf("count batch %d: %w", l.Batch, err)
	}
	_, err = tx.Exec(ctx, `UPDATE batch SET state = 'closed', closed_at = onda.now(), lease_until = '-infinity', mark = cardinality(contacts),
		sent = $2 * own, deferred = $3 * own, failed = $4 * own, suppressed = $5 * own, unknown = $6 * own
		FROM (SELECT CASE WHEN $7 = 1 THEN 1 ELSE 0 END own) o WHERE id = $1`,
		l.Batch, counts[Sent], counts[Deferred], counts[Failed], counts[Suppressed], counts[Unknown], l.Attempt)
	if err != nil {
		return false, fmt.Errorf("close batch %d: %w", l.Batch, err)
	}
	e, err := event.New(tx.Tenant.Name, drainer, strconv.FormatInt(l.Batch, 10), event.DeriveID("email.batch.sent", tx.Tenant.Name, strconv.FormatInt(l.Batch, 10)),
		event.EmailBatchSent{Run: l.Run, Batch: l.Batch, Counts: event.Outcomes{
			Sent: counts[Sent], Deferred: counts[Deferred], Failed: counts[Failed], Suppressed: counts[Suppressed], Unknown: counts[Unknown],
		}}, event.Correlation(l.Run))
	if err != nil {
		return false, err
	}
	tx.Wake("campaign", tx.Now().Add(tx.Tick()))
	return true, tx.Publish(ctx, drainer, e)
}

// RetryAt is when a mail is tried again that was refused for the moment, with a class, at an attempt made now; ok is false when it expires before that.
func RetryAt(now time.Time, class string, r Recipient) (at time.Time, ok bool) {
	var ago time.Duration
	if !r.Refused.IsZero() {
		ago = now.Sub(r.Refused)
	}
	at = now.Add(backOff(ago, class))
	return at, at.Before(r.Expires)
}
