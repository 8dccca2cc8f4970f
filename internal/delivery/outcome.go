package delivery

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/onda-run/onda/internal/event"
	"github.com/onda-run/onda/internal/postgres"
)

// Outcome is what became of one attempt to send one mail.
type Outcome struct {
	Delivery int64
	Contact  int64
	Attempt  int
	State    State
	Reason   Reason // of Suppressed, and Expired of Failed
	Class    string // hard, soft, block or policy, of Deferred and Failed
	Code     int    // SMTP reply code, 0 without one
	Status   string // RFC 3463
	Detail   string // first line of the reply, without addresses
	Tracking string // full, aggregate or none; empty when no mail was made
	// RetryAt is when a Deferred mail is due for the next attempt.
	RetryAt time.Time
	// Resend, of Unknown, asks for another attempt under the same Message-ID.
	Resend bool
}

// batchRow is what recording needs to know of a delivery's batch.
type batchRow struct {
	run     int64
	step    string
	email   int64
	lane    int
	expires time.Time
	closed  bool
}

// Record writes outcomes, which only move up: a mail that was sent stays sent, an attempt's outcome never touches a later attempt, and repeating it changes
// nothing. What it changed comes back, in order of delivery; the facts, the corrected counts of closed batches and the doorbells of exactly that are written
// too.
func Record(ctx context.Context, tx *postgres.Tx, drainer string, outcomes ...Outcome) (changed []Outcome, err error) {
	for _, round := range rounds(outcomes) {
		c, err := record(ctx, tx, drainer, round)
		if err != nil {
			return nil, err
		}
		changed = append(changed, c...)
	}
	return changed, nil
}

// Rounds splits a list so that each round has an id once, in the order in which they came.
func Rounds[T any](list []T, id func(T) int64) [][]T {
	var out [][]T
	seen := make(map[int64]int, len(list))
	for _, v := range list {
		r := seen[id(v)]
		seen[id(v)]++
		if r == len(out) {
			out = append(out, nil)
		}
		out[r] = append(out[r], v)
	}
	return out
}

// rounds splits outcomes so that each statement has a delivery once, in order of delivery.
func rounds(outcomes []Outcome) [][]Outcome {
	out := Rounds(outcomes, func(o Outcome) int64 { return o.Delivery })
	for _, r := range out {
		slices.SortFunc(r, func(x, y Outcome) int { return cmp.Compare(x.Delivery, y.Delivery) })
	}
	return out
}

func record(ctx context.Context, tx *postgres.Tx, drainer string, outcomes []Outcome) ([]Outcome, error) {
	batches, err := shareBatches(ctx, tx, outcomes)
	if err != nil {
		return nil, err
	}
	before, err := statesOfClosed(ctx, tx, outcomes, batches)
	if err != nil {
		return nil, err
	}
	changed, err := upsert(ctx, tx, outcomes)
	if err != nil {
		return nil, err
	}
	if len(changed) == 0 {
		return nil, nil
	}
	if err := resend(ctx, tx, changed, batches); err != nil {
		return nil, err
	}
	if err := correct(ctx, tx, changed, batches, before); err != nil {
		return nil, err
	}
	return changed, tell(ctx, tx, drainer, changed, batches)
}

// shareBatches keeps the batches of the deliveries from being closed meanwhile, and locks those that are closed, whose counts may have to be corrected.
func shareBatches(ctx context.Context, tx *postgres.Tx, outcomes []Outcome) (map[int64]batchRow, error) {
	var ids []int64 // ascending, since outcomes are
	for _, o := range outcomes {
		if b := BatchOf(o.Delivery); len(ids) == 0 || ids[len(ids)-1] != b {
			ids = append(ids, b)
		}
	}
	rows, err := tx.Query(ctx, `SELECT id, run, step, email, lane, expires_at, state = 'closed' FROM batch WHERE id = ANY ($1) ORDER BY id FOR KEY SHARE`, ids)
	if err != nil {
		return nil, fmt.Errorf("share batches: %w", err)
	}
	batches := make(map[int64]batchRow, len(ids))
	var closed []int64
	var id int64
	var b batchRow
	_, err = pgx.ForEachRow(rows, []any{&id, &b.run, &b.step, &b.email, &b.lane, &b.expires, &b.closed}, func() error {
		batches[id] = b
		if b.closed {
			closed = append(closed, id)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("share batches: %w", err)
	}
	if len(batches) < len(ids) {
		return nil, fmt.Errorf("record outcomes: %d of %d batches do not exist", len(ids)-len(batches), len(ids))
	}
	if len(closed) > 0 {
		if _, err := tx.Exec(ctx, "SELECT FROM batch WHERE id = ANY ($1) ORDER BY id FOR NO KEY UPDATE", closed); err != nil {
			return nil, fmt.Errorf("lock closed batches: %w", err)
		}
	}
	return batches, nil
}

// statesOfClosed reads, and locks, the deliveries of closed batches: each has a row.
func statesOfClosed(ctx context.Context, tx *postgres.Tx, outcomes []Outcome, batches map[int64]batchRow) (map[int64]State, error) {
	var ids []int64
	for _, o := range outcomes {
		if batches[BatchOf(o.Delivery)].closed {
			ids = append(ids, o.Delivery)
		}
	}
	if len(ids) == 0 {
		return nil, nil
	}
	rows, err := tx.Query(ctx, "SELECT id, state FROM delivery WHERE id = ANY ($1) ORDER BY id FOR UPDATE", ids)
	if err != nil {
		return nil, fmt.Errorf("lock deliveries: %w", err)
	}
	states := make(map[int64]State, len(ids))
	var id int64
	var s State
	if _, err = pgx.ForEachRow(rows, []any{&id, &s}, func() error { states[id] = s; return nil }); err != nil {
		return nil, fmt.Errorf("lock deliveries: %w", err)
	}
	return states, nil
}

// onlyUp lets an outcome replace one that there is. What is put off keeps the code of the last refusal: by it is known that the mail was tried.
const onlyUp = `
ON CONFLICT (id) DO UPDATE SET state = excluded.state, attempt = greatest(d.attempt, excluded.attempt), reason = excluded.reason, class = excluded.class,
       code = CASE WHEN excluded.state = 'deferred' THEN coalesce(excluded.code, d.code) ELSE excluded.code END, status = excluded.status, detail = excluded.detail, tracking = coalesce(excluded.tracking, d.tracking), at = excluded.at,
       retry_at = excluded.retry_at
 WHERE (d.state <> excluded.state AND excluded.state = 'sent' AND d.state IN ('unknown', 'deferred', 'failed', 'suppressed'))
    OR (excluded.state <> 'sent' AND d.attempt = excluded.attempt
        AND (d.state = 'unknown' AND excluded.state <> 'unknown' OR d.state = 'deferred' AND d.retry_at IS NULL))
RETURNING d.id`

// owner is whose an outcome o is: its contact's, or that one's into which it was merged meanwhile. It is no join, for which Postgres would read all that were ever merged.
const owner = `coalesce((SELECT w.merged_into FROM contact w WHERE w.id = o.contact), o.contact)`

// nameless is what is kept of the words that a mail was refused with: they may name its recipient, so nothing where that was erased meanwhile.
const nameless = `CASE WHEN %s <> 'sent' AND (SELECT e.erased_at FROM contact e WHERE e.id = o.contact) IS NOT NULL THEN NULL ELSE nullif(o.detail, '') END`

// upsertOutcomes takes a list for each column.
var upsertOutcomes = `INSERT INTO delivery AS d (id, contact, attempt, state, reason, class, code, status, detail, tracking, retry_at, at)
SELECT id, ` + owner + `, attempt, state, nullif(reason, ''), nullif(class, ''), nullif(code, 0), nullif(status, ''), ` + fmt.Sprintf(nameless, "state") + `, nullif(tracking, ''), retry_at, $12::timestamptz
  FROM unnest($1::bigint[], $2::bigint[], $3::integer[], $4::text[], $5::text[], $6::text[], $7::integer[], $8::text[], $9::text[], $10::text[], $11::timestamptz[])
       AS o (id, contact, attempt, state, reason, class, code, status, detail, tracking, retry_at)
 ORDER BY id` + onlyUp

// upsertAlike is of outcomes that differ in nothing but what the relay said to each: most do, and lists of the same over and over cost a fifth more.
var upsertAlike = `INSERT INTO delivery AS d (id, contact, attempt, state, reason, class, code, status, detail, tracking, at)
SELECT id, ` + owner + `, $4::integer, $5::text, nullif($6::text, ''), nullif($7::text, ''), nullif($8::integer, 0), nullif($9::text, ''), ` + fmt.Sprintf(nameless, "$5::text") + `, nullif($10::text, ''), $11::timestamptz
  FROM unnest($1::bigint[], $2::bigint[], $3::text[]) AS o (id, contact, detail)
 ORDER BY id` + onlyUp

// alike tells whether outcomes differ in nothing that upsertAlike takes once.
func alike(outcomes []Outcome) bool {
	first := outcomes[0]
	return first.State != Deferred && !slices.ContainsFunc(outcomes, func(o Outcome) bool {
		return o.Attempt != first.Attempt || o.State != first.State || o.Reason != first.Reason || o.Class != first.Class || o.Code != first.Code || o.Status != first.Status ||
			o.Tracking != first.Tracking
	})
}

func upsert(ctx context.Context, tx *postgres.Tx, outcomes []Outcome) ([]Outcome, error) {
	n := len(outcomes)
	ids, contacts := make([]int64, n), make([]int64, n)
	details := make([]string, n)
	byID := make(map[int64]Outcome, n)
	for i, o := range outcomes {
		ids[i], contacts[i], details[i] = o.Delivery, o.Contact, text(o.Detail)
		byID[o.Delivery] = o
	}
	var rows pgx.Rows
	var err error
	if o := outcomes[0]; alike(outcomes) {
		rows, err = tx.Query(ctx, upsertAlike, ids, contacts, details, max(o.Attempt, 1), string(o.State), string(o.Reason), o.Class, o.Code, text(o.Status), o.Tracking, tx.Now())
	} else {
		rows, err = upsertMixed(ctx, tx, outcomes, ids, contacts, details)
	}
	if err != nil {
		return nil, fmt.Errorf("record outcomes: %w", err)
	}
	got, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		return nil, fmt.Errorf("record outcomes: %w", err)
	}
	slices.Sort(got)
	changed := make([]Outcome, len(got))
	for i, id := range got {
		changed[i] = byID[id]
	}
	return changed, nil
}

func upsertMixed(ctx context.Context, tx *postgres.Tx, outcomes []Outcome, ids, contacts []int64, details []string) (pgx.Rows, error) {
	n := len(outcomes)
	attempts, codes := make([]int32, n), make([]int32, n)
	states, reasons, classes, statuses, tracking := make([]string, n), make([]string, n), make([]string, n), make([]string, n), make([]string, n)
	retries := make([]*time.Time, n)
	for i, o := range outcomes {
		attempts[i], codes[i] = int32(max(o.Attempt, 1)), int32(o.Code)
		states[i], reasons[i], classes[i], statuses[i], tracking[i] = string(o.State), string(o.Reason), o.Class, text(o.Status), o.Tracking
		if o.State == Deferred {
			if o.RetryAt.IsZero() {
				return nil, fmt.Errorf("record delivery %d: deferred until when?", o.Delivery)
			}
			retries[i] = &outcomes[i].RetryAt
		}
	}
	return tx.Query(ctx, upsertOutcomes, ids, contacts, attempts, states, reasons, classes, codes, statuses, details, tracking, retries, tx.Now())
}

// text is what Postgres takes as text.
func text(s string) string {
	return strings.ToValidUTF8(strings.ReplaceAll(s, "\x00", ""), "�")
}

// resend gives the unknown ones that ask for it another attempt, in the transaction that wrote them; in changed they are deferred then. One that expires before
// that stays unknown.
func resend(ctx context.Context, tx *postgres.Tx, changed []Outcome, batches map[int64]batchRow) error {
	var ids []int64
	groups := map[time.Duration]map[retryGroup][]retry{}
	for i, o := range changed {
		if o.State == Deferred {
			tx.Wake(Function(batches[BatchOf(o.Delivery)].lane), o.RetryAt)
		}
		if o.State != Unknown || !o.Resend {
			continue
		}
		b := batches[BatchOf(o.Delivery)]
		wait := time.Duration(0) // the first time, whoever waits for the mail has waited already
		if o.Attempt > 1 {
			soft := steps("")
			wait = soft[min(o.Attempt-2, len(soft)-1)]
		}
		if !tx.Now().Add(wait).Before(b.expires) {
			continue
		}
		g := retryGroup{run: b.run, step: b.step, email: b.email, lane: b.lane, attempt: max(o.Attempt, 1) + 1}
		if groups[wait] == nil {
			groups[wait] = map[retryGroup][]retry{}
		}
		groups[wait][g] = append(groups[wait][g], retry{o.Delivery, b.expires})
		ids = append(ids, o.Delivery)
		changed[i].State = Deferred
	}
	if len(ids) == 0 {
		return nil
	}
	if _, err := tx.Exec(ctx, "UPDATE delivery SET state = 'deferred', attempt = attempt + 1, retry_at = NULL WHERE id = ANY ($1)", ids); err != nil {
		return fmt.Errorf("send unknown mails again: %w", err)
	}
	for wait, g := range groups {
		if err := regroup(ctx, tx, g, tx.Now().Add(wait), "resend"); err != nil {
			return err
		}
	}
	return nil
}

// correct moves the counts of closed batches from what a delivery was to what it is.
func correct(ctx context.Context, tx *postgres.Tx, changed []Outcome, batches map[int64]batchRow, before map[int64]State) error {
	deltas := map[int64]map[State]int{}
	var order []int64
	for _, o := range changed {
		id := BatchOf(o.Delivery)
		was, ok := before[o.Delivery]
		if !batches[id].closed || !ok || was == o.State {
			continue
		}
		if deltas[id] == nil {
			deltas[id] = map[State]int{}
			order = append(order, id)
		}
		deltas[id][was]--
		deltas[id][o.State]++
	}
	if len(order) == 0 {
		return nil
	}
	b := &pgx.Batch{}
	for _, id := range order {
		d := deltas[id]
		b.Queue(`UPDATE batch SET sent = sent + $2, deferred = deferred + $3, failed = failed + $4, suppressed = suppressed + $5, unknown = unknown + $6 WHERE id = $1`,
			id, d[Sent], d[Deferred], d[Failed], d[Suppressed], d[Unknown])
	}
	if err := tx.SendBatch(ctx, b).Close(); err != nil {
		return fmt.Errorf("correct counts of closed batches: %w", err)
	}
	return nil
}

// tell writes the facts of what changed, one for each run and kind, and rings their doorbells. Unknown is no fact: nothing is known.
func tell(ctx context.Context, tx *postgres.Tx, drainer string, changed []Outcome, batches map[int64]batchRow) error {
	type key struct {
		run   int64
		state State
	}
	groups := map[key][]Outcome{}
	var order []key
	for _, o := range changed {
		k := key{batches[BatchOf(o.Delivery)].run, o.State}
		if k.state == Unknown {
			continue
		}
		if groups[k] == nil {
			order = append(order, k)
		}
		groups[k] = append(groups[k], o)
	}
	for _, k := range order {
		for part := range slices.Chunk(groups[k], event.MaxItems) {
			ids := make([]int64, len(part))
			items := make([]event.Delivery, len(part))
			cause := []string{"email." + string(k.state), tx.Tenant.Name}
			for i, o := range part {
				ids[i] = o.Delivery
				items[i] = event.Delivery{Delivery: o.Delivery, Contact: o.Contact, Run: k.run, Reason: string(o.Reason)}
				cause = append(cause, strconv.FormatInt(o.Delivery, 10), strconv.Itoa(o.Attempt))
			}
			if err := tx.AddFacts(ctx, postgres.Fact{Kind: "email." + string(k.state), Run: k.run, Deliveries: ids}); err != nil {
				return err
			}
			e, err := event.New(tx.Tenant.Name, drainer, "", event.DeriveID(cause...), doorbell(k.state, items), event.Correlation(k.run))
			if err != nil {
				return err
			}
			if err := tx.Publish(ctx, drainer, e); err != nil {
				return err
			}
		}
	}
	return nil
}

func doorbell(s State, items []event.Delivery) event.Data {
	d := event.Deliveries{Items: items}
	switch s {
	case Sent:
		return event.EmailSent{Deliveries: d}
	case Deferred:
		return event.EmailDeferred{Deliveries: d}
	case Failed:
		return event.EmailFailed{Deliveries: d}
	default:
		return event.EmailSuppressed{Deliveries: d}
	}
}
