// Package feedback is what is told about mails after they were handed over, by reports and by providers, and what follows from it: outcomes that were unknown are
// settled, a hard bounce and a complaint suppress, a block (our fault: reputation, content, policy) and what may pass never do.
//
// Invariants: what was taken is a row until the transaction of its effects deletes it, so that nothing is lost to a crash; told again, in whatever order, nothing
// changes; nothing personal is kept.
package feedback

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"go.uber.org/zap"

	"github.com/onda-run/onda/internal/contact"
	"github.com/onda-run/onda/internal/delivery"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/senderdomain"
)

// Drainer is the function that works off what was taken, and posts what follows, should who took it not live to.
const Drainer = "campaign"

// Kind is what happened to a mail.
type Kind string

// The kinds.
const (
	Delivered    Kind = "delivered"
	Bounced      Kind = "bounced"
	Complained   Kind = "complained"
	Unsubscribed Kind = "unsubscribed" // from the topic of the mail
)

// Event is one thing that happened to a mail.
type Event struct {
	Delivery int64
	Kind     Kind
	Class    string    // of Bounced: hard, soft, block or policy
	At       time.Time // zero, and a time to come, for now
}

// hard is the one class of a bounce that says something against the address.
const hard = "hard"

// AtOnce is how many events Settle works off in a transaction.
const AtOnce = 500

// settleLock is the class of the advisory lock, per tenant, of who settles: two would lock the same mails in different orders.
const settleLock = 0x6f6e6466

// Take stores events to be worked off by Settle, and gives how many are about mails that there are. Answer once it is committed.
func Take(ctx context.Context, tx *postgres.Tx, events []Event) (taken int, err error) {
	if len(events) == 0 {
		return 0, nil
	}
	n := len(events)
	ids, kinds, classes, at := make([]int64, n), make([]string, n), make([]string, n), make([]time.Time, n)
	for i, e := range events {
		ids[i], kinds[i], classes[i], at[i] = e.Delivery, string(e.Kind), e.Class, when(tx, e.At)
	}
	tag, err := tx.Exec(ctx, `INSERT INTO feedback (delivery, kind, class, at)
		SELECT f.delivery, f.kind, f.class, f.at FROM unnest($1::bigint[], $2::text[], $3::text[], $4::timestamptz[]) WITH ORDINALITY f(delivery, kind, class, at, n)
		  JOIN batch b ON b.id = f.delivery >> 9 AND b.attempt = 1 AND (f.delivery & $5) BETWEEN 1 AND cardinality(b.contacts) ORDER BY f.n`,
		ids, kinds, classes, at, int64(postgres.BatchWidth-1))
	var pe *pgconn.PgError
	if errors.As(err, &pe) && pe.Code == "42P01" {
		return 0, fmt.Errorf("tenant %s: %w", tx.Tenant.Name, postgres.ErrSchemaTooOld)
	}
	if err != nil {
		return 0, fmt.Errorf("store what was told: %w", err)
	}
	tx.Wake(Drainer, tx.Now().Add(tx.Tick()))
	return int(tag.RowsAffected()), nil
}

// when is a time that can be: no clock of others' decides what is to come.
func when(tx *postgres.Tx, at time.Time) time.Time {
	if at.Year() < 2000 || at.After(tx.Now()) {
		return tx.Now()
	}
	return at
}

// Settle works off at most AtOnce events, in the order in which they came; more tells that there may be others.
func Settle(ctx context.Context, tx *postgres.Tx, log *zap.Logger) (more bool, err error) {
	if there, err := hasTable(ctx, tx); err != nil || !there {
		return false, err
	}
	if _, err := tx.Exec(ctx, "SELECT pg_advisory_xact_lock($1, $2)", settleLock, tx.Tenant.Number); err != nil {
		return false, fmt.Errorf("lock what was told: %w", err)
	}
	rows, err := tx.Query(ctx, `WITH done AS (DELETE FROM feedback WHERE id IN (SELECT id FROM feedback ORDER BY id LIMIT $1) RETURNING id, delivery, kind, class, at)
		SELECT delivery, kind, class, at FROM done ORDER BY id`, AtOnce)
	if err != nil {
		return false, fmt.Errorf("read what was told: %w", err)
	}
	events, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Event])
	if err != nil {
		return false, fmt.Errorf("read what was told: %w", err)
	}
	return len(events) == AtOnce, Apply(ctx, tx, log, events...)
}

// Due is when what was taken is to be worked off at the latest: a tick after it came.
func Due(ctx context.Context, tx *postgres.Tx) (time.Time, error) {
	if there, err := hasTable(ctx, tx); err != nil || !there {
		return postgres.Never, err
	}
	var first *time.Time
	if err := tx.QueryRow(ctx, "SELECT (SELECT taken_at FROM feedback ORDER BY id LIMIT 1)").Scan(&first); err != nil {
		return postgres.Never, fmt.Errorf("look for what was told: %w", err)
	}
	if first == nil {
		return postgres.Never, nil
	}
	return first.Add(tx.Tick()), nil
}

// hasTable is false on the schema before the one that made the table.
func hasTable(ctx context.Context, tx *postgres.Tx) (there bool, err error) {
	if err := tx.QueryRow(ctx, "SELECT to_regclass('feedback') IS NOT NULL").Scan(&there); err != nil {
		return false, fmt.Errorf("look for what was told: %w", err)
	}
	return there, nil
}

// Apply does at once what follows from events. The log is told of breakers that they open.
func Apply(ctx context.Context, tx *postgres.Tx, log *zap.Logger, events ...Event) error {
	by := map[Kind][]delivery.Later{}
	for _, e := range events {
		by[e.Kind] = append(by[e.Kind], delivery.Later{Delivery: e.Delivery, Class: e.Class, At: when(tx, e.At)})
	}
	if _, err := delivery.SettleDelivered(ctx, tx, Drainer, by[Delivered]...); err != nil {
		return err
	}
	bounced, err := delivery.Bounced(ctx, tx, Drainer, by[Bounced]...)
	if err != nil {
		return err
	}
	var list []contact.Suppression
	for _, l := range bounced {
		// Only a mailbox that is not there ends mail to it. A block is our fault, and soft says later.
		if l.News && l.Class == hard {
			list = append(list, contact.Suppression{Contact: l.Contact, Reason: contact.Bounce, Delivery: l.Delivery, At: l.At})
		}
	}
	complained, err := delivery.Complained(ctx, tx, Drainer, by[Complained]...)
	if err != nil {
		return err
	}
	for _, l := range complained {
		list = append(list, contact.Suppression{Contact: l.Contact, Reason: contact.Complaint, Delivery: l.Delivery, At: l.At})
	}
	if _, err := contact.Suppress(ctx, tx, Drainer, list...); err != nil {
		return err
	}
	if err := unsubscribe(ctx, tx, by[Unsubscribed]); err != nil {
		return err
	}
	return count(ctx, tx, log, bounced, complained) // last: others too lock contacts before what is known of a domain
}

// count adds bounces and complaints that are news to what is known of where mails went: see delivery.CountTraffic.
func count(ctx context.Context, tx *postgres.Tx, log *zap.Logger, bounced, complained []delivery.Told) error {
	what := map[int64]delivery.Traffic{}
	for _, l := range bounced {
		if t := what[l.Delivery]; l.News {
			switch l.Class {
			case hard:
				t.Returned++
			case "block":
				t.Blocked++
			}
			what[l.Delivery] = t
		}
	}
	for _, l := range complained {
		if t := what[l.Delivery]; l.News {
			t.Complained++
			what[l.Delivery] = t
		}
	}
	if len(what) == 0 {
		return nil
	}
	rows, err := tx.Query(ctx, `SELECT l.id, coalesce(c.email, ''), coalesce(o.spec #>> '{spec,from}', '') FROM unnest($1::bigint[]) l(id)
		JOIN batch b ON b.id = l.id >> 9 AND b.attempt = 1 JOIN document o ON o.id = b.email AND o.spec #>> '{spec,topic}' IS NOT NULL
		LEFT JOIN contact c ON c.id = b.contacts[(l.id & $2)::integer]`, slices.Collect(maps.Keys(what)), int64(postgres.BatchWidth-1))
	if err != nil {
		return fmt.Errorf("look where mails went: %w", err)
	}
	by := map[string]map[string]delivery.Traffic{}
	var id int64
	var to, from string
	_, err = pgx.ForEachRow(rows, []any{&id, &to, &from}, func() error {
		domain, err := senderdomain.DomainOf(from)
		if err != nil {
			return nil // it was sent from nowhere that mail could be held back from
		}
		receiver := delivery.ReceiverOf(to)
		if by[domain] == nil {
			by[domain] = map[string]delivery.Traffic{}
		}
		by[domain][receiver] = by[domain][receiver].Plus(what[id])
		return nil
	})
	if err != nil {
		return fmt.Errorf("look where mails went: %w", err)
	}
	for _, domain := range slices.Sorted(maps.Keys(by)) {
		opened, err := delivery.CountTraffic(ctx, tx, domain, by[domain])
		if err != nil {
			return err
		}
		delivery.TellOpened(log, tx.Tenant.Name, opened)
	}
	return nil
}

// unsubscribe withdraws consent to the topics of mails. It settles nothing: a mail may be sent again though one before it was left by.
func unsubscribe(ctx context.Context, tx *postgres.Tx, list []delivery.Later) error {
	if len(list) == 0 {
		return nil
	}
	ids, at := make([]int64, len(list)), make([]time.Time, len(list))
	for i, l := range list {
		ids[i], at[i] = l.Delivery, l.At
	}
	rows, err := tx.Query(ctx, `SELECT coalesce(c.merged_into, c.id), o.spec #>> '{spec,topic}', l.at FROM unnest($1::bigint[], $2::timestamptz[]) l(id, at)
		JOIN batch b ON b.id = l.id >> 9 AND b.attempt = 1 JOIN document o ON o.id = b.email AND o.spec #>> '{spec,topic}' IS NOT NULL
		JOIN contact c ON c.id = b.contacts[(l.id & $3)::integer] AND c.erased_at IS NULL ORDER BY 1, 2, 3`, ids, at, int64(postgres.BatchWidth-1))
	if err != nil {
		return fmt.Errorf("look up contacts and topics: %w", err)
	}
	var entries []contact.Consent
	var who int64
	var topic string
	var when time.Time
	_, err = pgx.ForEachRow(rows, []any{&who, &topic, &when}, func() error {
		entries = append(entries, contact.Consent{Contact: who, Purpose: topic, State: contact.Withdrawn, Basis: "unsubscribe", Proof: map[string]any{"by": "provider"}, At: when})
		return nil
	})
	if err != nil {
		return fmt.Errorf("look up contacts and topics: %w", err)
	}
	done, err := contact.Record(ctx, tx, Drainer, entries...)
	if err != nil {
		return err
	}
	withdrawals := map[int64][]int64{}
	for i, d := range done {
		if d.Changed {
			withdrawals[entries[i].Contact] = append(withdrawals[entries[i].Contact], d.ID)
		}
	}
	for who, ids := range withdrawals {
		if err := delivery.Unsubscribed(ctx, tx, who, ids); err != nil {
			return err
		}
	}
	return nil
}
