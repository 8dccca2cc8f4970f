package delivery

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/onda-run/onda/internal/event"
	"github.com/onda-run/onda/internal/postgres"
)

// ErrUnknownDelivery says that no batch has such a delivery.
var ErrUnknownDelivery = errors.New("there is no such delivery")

// Later is a truth about a mail that came after it was handed over, from a report or a provider.
type Later struct {
	Delivery int64
	// At is when it happened; zero for now.
	At time.Time
	// Class is of a bounce: hard, soft, block or policy.
	Class string
}

// SettleDelivered notes that a mail reached its mailbox. One that was unknown is sent then. It gives the contact, and whether this was
// news.
func SettleDelivered(ctx context.Context, tx *postgres.Tx, drainer string, later Later) (contact int64, news bool, err error) {
	return settleLater(ctx, tx, drainer, "delivered", later)
}

// Bounced notes that a mail came back: so it had been sent. Suppressing the address, where the class is hard, is the caller's.
func Bounced(ctx context.Context, tx *postgres.Tx, drainer string, later Later) (contact int64, news bool, err error) {
	return settleLater(ctx, tx, drainer, "bounced", later)
}

// Complained notes that a recipient marked a mail as spam: so it had been sent. Ending all marketing to them is the caller's.
func Complained(ctx context.Context, tx *postgres.Tx, drainer string, later Later) (contact int64, news bool, err error) {
	return settleLater(ctx, tx, drainer, "complained", later)
}

// Unsubscribed counts, in the statistics of its run and step, the mail that most likely made a contact leave topics: the last one that it was sent of any of them; without
// one it counts for run 0. withdrawals are the entries of the consent ledger that say so. A mail that the contact left by before, and came back to, is not counted
// again.
func Unsubscribed(ctx context.Context, tx *postgres.Tx, contact int64, withdrawals []int64) error {
	if len(withdrawals) == 0 {
		return nil
	}
	_, err := tx.Exec(ctx, `WITH new AS (SELECT purpose FROM consent WHERE id = ANY ($2) AND purpose NOT LIKE 'tracking.%'
		), mail AS (
			SELECT b.run, b.step, d.at, o.spec #>> '{spec,topic}' AS topic FROM delivery d JOIN batch b ON b.id = d.id >> 9 JOIN document o ON o.id = b.email
			 WHERE d.contact = $1 AND d.state = 'sent' AND o.spec #>> '{spec,topic}' IN (SELECT purpose FROM new) ORDER BY d.id DESC LIMIT 1)
		INSERT INTO stat AS s (run, step, hour, kind, n, firsts)
		SELECT coalesce(m.run, 0), coalesce(m.step, ''), date_trunc('hour', onda.now(), 'UTC'), 'unsubscribe', 1, 1
		  FROM (SELECT FROM new LIMIT 1) once LEFT JOIN mail m ON true
		 WHERE NOT EXISTS (SELECT FROM consent c WHERE c.contact = $1 AND c.purpose = m.topic AND c.state = 'withdrawn' AND c.basis IN ('unsubscribe', 'preferences')
		                      AND c.at >= m.at AND c.id <> ALL ($2))
		ON CONFLICT (run, step, hour, kind, verdict, link, tracked) DO UPDATE SET n = s.n + 1, firsts = s.firsts + 1`, contact, withdrawals)
	if err != nil {
		return fmt.Errorf("count an unsubscribe: %w", err)
	}
	return nil
}

// noteLater writes what came later, once; news is false when it was noted before, or there is no row.
func noteLater(ctx context.Context, tx *postgres.Tx, what string, later Later) (news bool, err error) {
	var tag pgconn.CommandTag
	switch what {
	case "delivered":
		tag, err = tx.Exec(ctx, "UPDATE delivery SET delivered_at = $2 WHERE id = $1 AND delivered_at IS NULL", later.Delivery, later.At)
	case "bounced":
		tag, err = tx.Exec(ctx, "UPDATE delivery SET bounced_at = $2, bounce_class = nullif($3, '') WHERE id = $1 AND bounced_at IS NULL",
			later.Delivery, later.At, later.Class)
	default:
		tag, err = tx.Exec(ctx, "UPDATE delivery SET complained_at = $2 WHERE id = $1 AND complained_at IS NULL", later.Delivery, later.At)
	}
	if err != nil {
		return false, fmt.Errorf("note that delivery %d was %s: %w", later.Delivery, what, err)
	}
	return tag.RowsAffected() > 0, nil
}

func settleLater(ctx context.Context, tx *postgres.Tx, drainer, what string, later Later) (contact int64, news bool, err error) {
	if later.At.IsZero() {
		later.At = tx.Now()
	}
	var run int64
	var name, tracking string
	var attempt int
	// A report may be faster than our own recorder: the contact is known from the batch.
	err = tx.QueryRow(ctx, `SELECT coalesce(d.contact, b.contacts[$2]), b.run, e.name, coalesce(d.attempt, 1), coalesce(d.tracking, '')
		FROM batch b JOIN document doc ON doc.id = b.email JOIN entity e ON e.id = doc.entity LEFT JOIN delivery d ON d.id = $1
		WHERE b.id = $1 >> 9 AND b.attempt = 1 AND $2 BETWEEN 1 AND cardinality(b.contacts)`, later.Delivery, Number(later.Delivery)).
		Scan(&contact, &run, &name, &attempt, &tracking)
	if errors.Is(err, pgx.ErrNoRows) {
		return 0, false, fmt.Errorf("delivery %d: %w", later.Delivery, ErrUnknownDelivery)
	}
	if err != nil {
		return 0, false, fmt.Errorf("look for delivery %d: %w", later.Delivery, err)
	}
	if _, err := Record(ctx, tx, drainer, Outcome{Delivery: later.Delivery, Contact: contact, Attempt: attempt, State: Sent, Tracking: tracking}); err != nil {
		return 0, false, err
	}
	if news, err = noteLater(ctx, tx, what, later); err != nil || !news {
		return contact, false, err
	}
	f := postgres.Fact{Kind: "email." + what, Name: name, Contact: contact, Run: run, Deliveries: []int64{later.Delivery}, At: later.At}
	item := event.Delivery{Delivery: later.Delivery, Contact: contact, Run: run}
	var data event.Data
	switch d := (event.Deliveries{Items: []event.Delivery{item}}); what {
	case "delivered":
		data = event.EmailDelivered{Deliveries: d}
	case "bounced":
		d.Items[0].Reason = later.Class
		data = event.EmailBounced{Deliveries: d}
		if f.Data, err = json.Marshal(map[string]string{"class": later.Class}); err != nil {
			return 0, false, fmt.Errorf("encode fact: %w", err)
		}
	default:
		data = event.EmailComplained{Deliveries: d}
	}
	if err := tx.AddFacts(ctx, f); err != nil {
		return 0, false, err
	}
	e, err := event.New(tx.Tenant.Name, drainer, "", event.DeriveID(f.Kind, tx.Tenant.Name, strconv.FormatInt(later.Delivery, 10)), data,
		event.Correlation(run), event.PartitionKey(contact))
	if err != nil {
		return 0, false, err
	}
	return contact, true, tx.Publish(ctx, drainer, e)
}
