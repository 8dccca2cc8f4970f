package postgres

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// Fact is something that happened: an append-only row, but for what is erased, and for taken in the data of those of opens and clicks (see StillHuman). Its event is only a doorbell.
type Fact struct {
	XID, ID int64
	// Kind is an event's type without onda. and .v1 (email.clicked), or segment.joined and segment.left, journey.entered and journey.left.
	Kind string
	// Name says more where the kind needs it: the event's name of event.tracked, the purpose of consent.*, the segment, form, tag or campaign.
	Name string
	// Contact is 0 where a fact has none (or has Contacts).
	Contact int64
	Visitor int64
	Run     int64
	// Contacts is of segment.joined and .left and their like: at most 500.
	Contacts []int64
	// Deliveries that the fact is about; in email.sent and its like a flushed group, else at most one.
	Deliveries []int64
	// Data is JSON, or nil.
	Data []byte
	// At is when it happened, on the tenant's clock; zero when written now.
	At time.Time
}

// Readers are the functions whose cursors read facts of the kind. track gives points for what a contact does: spec.ScoredEvents.
func Readers(kind string) []string {
	if strings.HasPrefix(kind, "segment.") {
		return []string{"campaign"}
	}
	switch kind {
	case "journey.entered", "journey.left":
		return []string{"segment"}
	case "email.opened", "email.clicked", "email.bounced", "email.complained", "hit.reclassified", "consent.granted", "consent.withdrawn", "page.viewed", "event.tracked",
		"contact.identified", "form.submitted", "form.confirmed":
		return []string{"campaign", "segment", "track"}
	}
	return []string{"campaign", "segment"}
}

// toldLate are the kinds of facts that have their time from programs and browsers, so that it may be older than the fact.
func toldLate() []string { return []string{"event.tracked", "page.viewed", "contact.identified"} }

// TakenSchema is the tenant migration from which on all facts of opens and clicks say themselves whether they were taken back, and the database marks them when a hit is corrected.
const TakenSchema = 28

// StillHuman is the condition that a fact f of an open or a click stands: its hit was not found to be a machine's since (hit.reclassified). The fact bears that itself, since it is kept for
// longer than its hit. On a schema before TakenSchema the hit is asked as well, since it may have been corrected by who did not mark the fact.
func StillHuman(schema int) string {
	const fact = "(f.data ? 'taken') IS NOT TRUE" // which Postgres expects of nearly all
	if schema < TakenSchema {
		return fact + " AND NOT EXISTS (SELECT FROM hit h WHERE h.id = (f.data->>'hit')::bigint AND h.verdict = 'machine')"
	}
	return fact
}

// copied is from how many facts on COPY takes less than one statement.
const copied = 50

// AddFacts writes facts, in one go and their order, and sees to it that their readers come by within a tick, should every doorbell be lost.
func (tx *Tx) AddFacts(ctx context.Context, facts ...Fact) error {
	if len(facts) == 0 {
		return nil
	}
	woken := ""
	for _, f := range facts {
		if f.Kind == woken {
			continue
		}
		woken = f.Kind
		for _, r := range Readers(f.Kind) {
			tx.Wake(r, tx.now.Add(tx.db.tick))
		}
	}
	insert := tx.insertFacts
	if len(facts) >= copied {
		insert = tx.copyFacts
	}
	if err := insert(ctx, facts); err != nil {
		return fmt.Errorf("write facts: %w", err)
	}
	return nil
}

func (tx *Tx) copyFacts(ctx context.Context, facts []Fact) error {
	return tx.Copy(ctx, "fact", []string{"kind", "name", "contact", "visitor", "run", "contacts", "deliveries", "data", "at"}, len(facts), func(i int, r *CopyRow) {
		f := &facts[i]
		at := f.At
		if at.IsZero() {
			at = tx.now
		}
		r.Text(f.Kind)
		r.Text(f.Name)
		r.ID(f.Contact)
		r.ID(f.Visitor)
		r.ID(f.Run)
		r.IDs(f.Contacts)
		r.IDs(f.Deliveries)
		r.JSON(f.Data)
		r.Time(at)
	})
}

func (tx *Tx) insertFacts(ctx context.Context, facts []Fact) error {
	kinds, names := make([]string, len(facts)), make([]string, len(facts))
	contact, visitor, run := make([]int64, len(facts)), make([]int64, len(facts)), make([]int64, len(facts))
	contacts, deliveries, data := make([]*string, len(facts)), make([]*string, len(facts)), make([]*string, len(facts))
	at := make([]*time.Time, len(facts))
	for i, f := range facts {
		kinds[i], names[i], contact[i], visitor[i], run[i] = f.Kind, f.Name, f.Contact, f.Visitor, f.Run
		contacts[i], deliveries[i] = arrayText(f.Contacts), arrayText(f.Deliveries)
		if f.Data != nil {
			s := string(f.Data)
			data[i] = &s
		}
		if !f.At.IsZero() {
			at[i] = &facts[i].At
		}
	}
	_, err := tx.Exec(ctx, `INSERT INTO fact (kind, name, contact, visitor, run, contacts, deliveries, data, at)
		SELECT kind, name, nullif(contact, 0), nullif(visitor, 0), nullif(run, 0), contacts::bigint[], deliveries::bigint[], data::jsonb, coalesce(at, onda.now())
		FROM unnest($1::text[], $2::text[], $3::bigint[], $4::bigint[], $5::bigint[], $6::text[], $7::text[], $8::text[], $9::timestamptz[])
			u (kind, name, contact, visitor, run, contacts, deliveries, data, at)`,
		kinds, names, contact, visitor, run, contacts, deliveries, data, at)
	return err
}

// arrayText is a bigint[] as Postgres reads it, since an array of arrays of different lengths is none; nil is NULL.
func arrayText(ids []int64) *string {
	if ids == nil {
		return nil
	}
	b := []byte{'{'}
	for i, id := range ids {
		if i > 0 {
			b = append(b, ',')
		}
		b = strconv.AppendInt(b, id, 10)
	}
	s := string(append(b, '}'))
	return &s
}

// ErrBusy says that another process reads with the same cursor at this moment, and does the work.
var ErrBusy = errors.New("another holder is doing this")

// FactLimit bounds what is read in one transaction: how many facts, and how many contacts or deliveries they are about in all (a little more
// may be read, since a fact is not parted), so that neither memory nor the time of a transaction grows with an audience.
type FactLimit struct{ Facts, Items int }

// maxFactBytes is about how many bytes of data facts may have that are read in one transaction: one of a program's event has at most 32 KB as it came in, and 50 times as many once
// its numbers are written out (1e308).
const maxFactBytes = 8 << 20

// dataBytes is how long the text of a fact's data is, or, where it is short, about that.
const dataBytes = "CASE WHEN pg_column_size(data) < 500 THEN pg_column_size(data) ELSE octet_length(data::text) END"

// ReadFacts reads facts after the consumer's cursor up to a limit, and to 8 MB of data, of which it gives those of the kinds asked for (a kind, or a
// prefix that ends in a dot), and moves the cursor in this transaction: so the caller writes the effect in the same one. more says that
// there may be further ones. ErrBusy when another holds the cursor.
//
// Only facts of transactions that all are over are read, since ids become visible in another order than they are given.
func (tx *Tx) ReadFacts(ctx context.Context, consumer string, limit FactLimit, kinds ...string) (facts []Fact, more bool, err error) {
	var xid, id, base int64
	err = tx.QueryRow(ctx, "SELECT xid::text::bigint, id, base FROM cursor WHERE name = $1 FOR UPDATE SKIP LOCKED", consumer).Scan(&xid, &id, &base)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, false, ErrBusy
	}
	if err != nil {
		return nil, false, fmt.Errorf("read cursor %s: %w", consumer, err)
	}
	rows, err := tx.Query(ctx, `SELECT xid::text::bigint, id, kind, name, coalesce(contact, 0), coalesce(visitor, 0), coalesce(run, 0), contacts, deliveries, data, at, size
		FROM (SELECT xid, id, kind, name, contact, visitor, run, contacts, deliveries, data, at, sum(items) OVER w - items AS before, bytes, sum(bytes) OVER w AS size
			FROM (SELECT xid, id, kind, name, contact, visitor, run, contacts, deliveries, data, at, coalesce(cardinality(contacts), cardinality(deliveries), 1) AS items, coalesce(`+dataBytes+`, 0) AS bytes
				FROM fact WHERE (xid, id) > ($1::text::xid8, $2) AND xid < (pg_snapshot_xmin(pg_current_snapshot())::text::bigint + $5)::text::xid8 ORDER BY xid, id LIMIT $3) f
			WINDOW w AS (ORDER BY xid, id)) f
		WHERE before < $4 AND size - bytes < $6 ORDER BY xid, id`, fmt.Sprint(xid), id, limit.Facts, limit.Items, base, maxFactBytes)
	if err != nil {
		return nil, false, fmt.Errorf("read facts: %w", err)
	}
	var f Fact
	var n, items, size int // size as Postgres sums it up
	oldest, late := tx.now, toldLate()
	_, err = pgx.ForEachRow(rows, []any{&f.XID, &f.ID, &f.Kind, &f.Name, &f.Contact, &f.Visitor, &f.Run, &f.Contacts, &f.Deliveries, &f.Data, &f.At, &size}, func() error {
		n++
		items += max(len(f.Contacts), len(f.Deliveries), 1)
		xid, id = f.XID, f.ID
		if f.At.Before(oldest) && !slices.Contains(late, f.Kind) {
			oldest = f.At
		}
		for _, k := range kinds {
			if f.Kind == k || strings.HasSuffix(k, ".") && strings.HasPrefix(f.Kind, k) {
				facts = append(facts, f)
				break
			}
		}
		f.Contacts, f.Deliveries, f.Data = nil, nil, nil
		return nil
	})
	if err != nil {
		return nil, false, fmt.Errorf("read facts: %w", err)
	}
	if n == 0 {
		return nil, false, nil
	}
	if _, err := tx.Exec(ctx, "UPDATE cursor SET xid = $2::text::xid8, id = $3 WHERE name = $1", consumer, fmt.Sprint(xid), id); err != nil {
		return nil, false, fmt.Errorf("move cursor %s: %w", consumer, err)
	}
	tx.Found(ctx, "facts", consumer, oldest, n)
	return facts, n == limit.Facts || items >= limit.Items || size >= maxFactBytes, nil
}

// FactsDue is when the consumer should look again: soon, when facts are unread (also those that a transaction under way still
// holds back), else Never. For use in Recompute.
func (tx *Tx) FactsDue(ctx context.Context, consumer string) (time.Time, error) {
	var unread bool
	// In order, so that the index on it is read: else all facts were, to find that none is unread.
	err := tx.QueryRow(ctx, `SELECT EXISTS (SELECT FROM cursor c, LATERAL (SELECT FROM fact f WHERE (f.xid, f.id) > (c.xid, c.id) ORDER BY f.xid, f.id LIMIT 1) f WHERE c.name = $1)`, consumer).Scan(&unread)
	if err != nil {
		return Never, fmt.Errorf("look for unread facts: %w", err)
	}
	if unread {
		return tx.now, nil
	}
	return Never, nil
}
