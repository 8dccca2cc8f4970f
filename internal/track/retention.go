package track

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/onda-run/onda/internal/contact"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/predicate"
	"github.com/onda-run/onda/internal/spec"
)

const (
	forgetChunk  = 1_000
	keepMessages = 48 * time.Hour // to tell a message that is sent again
)

// limit is a kind of row that is kept for a time: a statement that forgets up to $2 of those whose time is over at $1, and one that gives the time of the oldest.
type limit struct {
	what           string
	before         time.Time // zero: kept for ever
	forget, oldest string    // no forget: dropPartition does
	told           bool      // segments may go by them
}

// daily has rows that segments may go by forgotten in one go a day, with all segments told of it once, and not each when its time is over.
const daily = " AND (SELECT min(at) FROM (SELECT at FROM %[1]s ORDER BY id LIMIT $2) o) <= $1::timestamptz - interval '1 day' - "

// monthMore is by how much longer single rows are kept where a whole partition can be dropped with them; one that took longer to be filled is not waited for.
const monthMore = "(SELECT coalesce(max(interval '31 days'), '0') FROM oldest_partition('%s'))"

// limits are what the tenant keeps for how long. Messages are kept two days to be told from their repeats. What belongs to contacts and forms is for campaign to forget.
func (t *Tracker) limits(ctx context.Context, tx *postgres.Tx) ([]limit, error) {
	settings, err := contact.Settings(ctx, tx)
	if err != nil {
		return nil, err
	}
	now, r := tx.Now(), settings.Retention
	ago := func(d spec.Duration) time.Time { return ago(tx, settings, d) }
	messages := limit{
		"messages", now.Add(-keepMessages),
		// There may be ten thousands a second; and none is looked for by its time alone, but once an hour while there are any.
		"DELETE FROM message WHERE ctid = ANY (ARRAY(SELECT ctid FROM message WHERE at <= $1 LIMIT 10 * $2::bigint))",
		"SELECT onda.now() - interval '47 hours' FROM message LIMIT 1",
		false,
	}
	if tx.Tenant.Schema < MessageSchema {
		messages.forget = "DELETE FROM allowance WHERE (kind, contact, period) IN (SELECT kind, contact, period FROM allowance WHERE kind LIKE 'message:%' AND period <= $1 LIMIT $2)"
		messages.oldest = "SELECT min(period) FROM allowance WHERE kind LIKE 'message:%'"
	}
	limits := []limit{
		{
			"visitors", ago(r.Visitors),
			"DELETE FROM visitor WHERE id IN (SELECT id FROM visitor WHERE last_at <= $1 ORDER BY last_at LIMIT $2)",
			"SELECT min(last_at) FROM visitor",
			false,
		},
		{
			"origins of hits", now.Add(-t.cfg.OriginKeep),
			"UPDATE hit SET origin = NULL, agent = '' WHERE id IN (SELECT id FROM hit WHERE origin IS NOT NULL AND at <= $1 ORDER BY at LIMIT $2)",
			"SELECT min(at) FROM hit WHERE origin IS NOT NULL",
			false,
		},
		{
			"hits", ago(r.Hits),
			forgetHits,
			"SELECT at FROM hit ORDER BY id LIMIT 1",
			false,
		},
		messages,
	}
	if tx.Tenant.Schema < postgres.RetentionSchema {
		return limits, nil
	}
	deliveryMore, factMore := fmt.Sprintf(monthMore, "delivery"), fmt.Sprintf(monthMore, "fact")
	deliveriesDaily, factsDaily := fmt.Sprintf(daily, "delivery")+deliveryMore, fmt.Sprintf(daily, "fact")+factMore
	return append(
		limits,
		limit{ // mails that wait are kept
			"deliveries", ago(r.Deliveries),
			`DELETE FROM delivery WHERE id IN (SELECT id FROM delivery ORDER BY id LIMIT $2) AND at <= $1::timestamptz - ` + deliveryMore + ` AND state <> 'deferred'
				AND NOT EXISTS (SELECT FROM batch b WHERE b.id = delivery.id >> 9 AND b.state = 'open')` + deliveriesDaily,
			"SELECT at + interval '1 day' + " + deliveryMore + " FROM delivery ORDER BY id LIMIT 1",
			true,
		},
		limit{ // their counts stay
			"recipients of batches", ago(r.Deliveries),
			"UPDATE batch SET contacts = '{}' WHERE id IN (SELECT id FROM batch WHERE " + withoutDeliveries + " AND closed_at <= $1 ORDER BY id LIMIT $2)",
			"SELECT closed_at FROM batch WHERE " + withoutDeliveries + " ORDER BY id LIMIT 1",
			false,
		},
		limit{ // unless a reader has not come to them
			"facts", ago(r.Facts),
			`DELETE FROM fact WHERE id IN (SELECT id FROM fact ORDER BY id LIMIT $2) AND at <= $1::timestamptz - ` + factMore + ` AND NOT EXISTS (SELECT FROM cursor c WHERE (fact.xid, fact.id) > (c.xid, c.id))` + factsDaily,
			"SELECT at + interval '1 day' + " + factMore + " FROM fact ORDER BY id LIMIT 1",
			true,
		},
		limit{"partitions of deliveries", ago(r.Deliveries), "", fmt.Sprintf(lastOfOldest, "delivery"), true},
		limit{"partitions of facts", ago(r.Facts), "", fmt.Sprintf(lastOfOldest, "fact"), true},
	), nil
}

// forgetHits forgets all hits of a delivery with its first one, the last ones first: statistics count the first of a delivery, and which that is must not change.
const forgetHits = `WITH over AS (SELECT id, delivery FROM (SELECT id, delivery, at FROM hit ORDER BY id LIMIT $2) f WHERE at <= $1)
	DELETE FROM hit WHERE verdict IS NOT NULL AND id = ANY (ARRAY(
		(SELECT id FROM hit WHERE delivery > 0 AND delivery IN (SELECT delivery FROM over) ORDER BY delivery, at DESC, id DESC LIMIT $2) UNION ALL SELECT id FROM over WHERE delivery <= 0))`

// lastOfOldest is when the oldest partition is dropped: a day after the time of its last row.
const lastOfOldest = "SELECT at + interval '1 day' FROM %[1]s WHERE id < (SELECT hi FROM oldest_partition('%[1]s')) ORDER BY id DESC LIMIT 1"

// withoutDeliveries are closed batches that come before all deliveries that are kept.
const withoutDeliveries = "cardinality(contacts) > 0 AND state = 'closed' AND id < coalesce((SELECT min(id) >> 9 FROM delivery), 9223372036854775807)"

// ago is from when on rows are kept that are to be kept for a time; zero: for ever.
func ago(tx *postgres.Tx, settings *spec.Settings, d spec.Duration) time.Time {
	if d.IsZero() {
		return time.Time{}
	}
	return d.Neg().AddTo(tx.Now(), settings.Location())
}

// dropPartition forgets a whole partition of deliveries or facts, where one is over. It has a transaction to itself.
func (t *Tracker) dropPartition(ctx context.Context, tx *postgres.Tx) (again bool, err error) {
	if tx.Tenant.Schema < postgres.RetentionSchema {
		return false, nil
	}
	settings, err := contact.Settings(ctx, tx)
	if err != nil {
		return false, err
	}
	deliveries, facts := ago(tx, settings, settings.Retention.Deliveries), ago(tx, settings, settings.Retention.Facts)
	switch dropped, err := tx.DropPartition(ctx, deliveries, facts); {
	case err != nil:
		return false, err
	case dropped == postgres.DroppedDeliveries:
		return true, tellSegments(ctx, tx, deliveries, time.Time{})
	case dropped == postgres.DroppedFacts:
		return true, tellSegments(ctx, tx, time.Time{}, facts)
	}
	return false, nil
}

// tellSegments has those segments computed in full that may have gone by deliveries or facts from before a time (zero: none), which are forgotten: no fact tells of that. A segment whose window
// is over before is not among them, as far as it was swept.
func tellSegments(ctx context.Context, tx *postgres.Tx, deliveries, facts time.Time) error {
	settings, err := contact.Settings(ctx, tx)
	if err != nil {
		return err
	}
	// Without swept_at, on a schema before it: not swept.
	rows, err := tx.Query(ctx, `SELECT s.entity, d.spec, coalesce((to_jsonb(s)->>'swept_at')::timestamptz, '0001-01-01Z') FROM segment s JOIN entity e ON e.id = s.entity JOIN document d ON d.id = e.current`)
	if err != nil {
		return fmt.Errorf("read segments: %w", err)
	}
	var told []int32
	var entity int32
	var stored []byte
	var swept time.Time
	_, err = pgx.ForEachRow(rows, []any{&entity, &stored, &swept}, func() error {
		s, err := spec.DecodeAs[*spec.Segment](spec.KindSegment, stored)
		if err != nil || s.Where == nil { // one that cannot be read has no members to lose
			return nil //nolint:nilerr // segment says so
		}
		deps := predicate.DepsOf(s.Where)
		if !deliveries.IsZero() && deps.Remember(true, deliveries, swept, settings.Location()) || !facts.IsZero() && deps.Remember(false, facts, swept, settings.Location()) {
			told = append(told, entity)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("read segments: %w", err)
	}
	if len(told) == 0 {
		return nil
	}
	if _, err := tx.Exec(ctx, "UPDATE segment SET requested = true WHERE entity IN (SELECT entity FROM segment WHERE entity = ANY ($1) ORDER BY entity FOR NO KEY UPDATE)", told); err != nil {
		return fmt.Errorf("request segments: %w", err)
	}
	tx.Wake("segment", tx.Now())
	return nil
}

// forget forgets a chunk of each kind of row whose time is over.
func (t *Tracker) forget(ctx context.Context, tx *postgres.Tx) (again bool, err error) {
	limits, err := t.limits(ctx, tx)
	if err != nil {
		return false, err
	}
	told := map[string]time.Time{}
	for _, l := range limits {
		if l.before.IsZero() || l.forget == "" {
			continue
		}
		tag, err := tx.Exec(ctx, l.forget, l.before, forgetChunk)
		if err != nil {
			return false, fmt.Errorf("forget %s: %w", l.what, err)
		}
		again = again || tag.RowsAffected() >= forgetChunk
		if l.told && tag.RowsAffected() > 0 {
			told[l.what] = l.before
		}
	}
	if len(told) == 0 {
		return again, nil
	}
	return again, tellSegments(ctx, tx, told["deliveries"], told["facts"])
}

// forgetDue is when the first of them is over.
func (t *Tracker) forgetDue(ctx context.Context, tx *postgres.Tx) (time.Time, error) {
	limits, err := t.limits(ctx, tx)
	if err != nil {
		return postgres.Never, err
	}
	at := postgres.Never
	for _, l := range limits {
		if l.before.IsZero() {
			continue
		}
		var left *float64 // seconds; NULL also for what is kept to infinity
		err := tx.QueryRow(ctx, "SELECT extract(epoch FROM nullif(nullif(("+l.oldest+"), 'infinity'), '-infinity') - $1)::float8", l.before).Scan(&left)
		if err != nil {
			return at, fmt.Errorf("look for %s to forget: %w", l.what, err)
		}
		if left == nil {
			continue
		}
		if due := tx.Now().Add(time.Duration(max(*left, 0) * float64(time.Second))); due.Before(at) {
			at = due
		}
	}
	return at, nil
}
