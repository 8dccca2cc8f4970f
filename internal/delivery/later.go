package delivery

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2"
	"github.com/jackc/pgx/v5"

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

// Told is a mail that something was told about. One that no batch has is not told about.
type Told struct {
	Later
	Contact int64
	// News is false when it had been told before.
	News bool
}

// SettleDelivered notes that mails reached their mailboxes. One that was unknown is sent then. It gives what was told about each, once, in order of delivery.
func SettleDelivered(ctx context.Context, tx *postgres.Tx, drainer string, list ...Later) ([]Told, error) {
	return settleLater(ctx, tx, drainer, "delivered", list)
}

// Bounced notes that mails came back: so they had been sent. Suppressing the addresses, where the class is hard, is the caller's.
func Bounced(ctx context.Context, tx *postgres.Tx, drainer string, list ...Later) ([]Told, error) {
	return settleLater(ctx, tx, drainer, "bounced", list)
}

// Complained notes that recipients marked mails as spam: so they had been sent. Ending all marketing to them is the caller's.
func Complained(ctx context.Context, tx *postgres.Tx, drainer string, list ...Later) ([]Told, error) {
	return settleLater(ctx, tx, drainer, "complained", list)
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

// noteLater writes what came later, once, and gives the deliveries that it was news of. A delivery without a row is none.
func noteLater(ctx context.Context, tx *postgres.Tx, what string, list []Told) (map[int64]bool, error) {
	ids, at, classes := make([]int64, len(list)), make([]time.Time, len(list)), make([]string, len(list))
	for i, l := range list {
		ids[i], at[i], classes[i] = l.Delivery, l.At, l.Class
	}
	class := ""
	if what == "bounced" {
		class = ", bounce_class = nullif(l.class, '')"
	}
	rows, err := tx.Query(ctx, fmt.Sprintf(`UPDATE delivery d SET %[1]s_at = l.at%[2]s FROM unnest($1::bigint[], $2::timestamptz[], $3::text[]) l(id, at, class)
		WHERE d.id = l.id AND d.%[1]s_at IS NULL RETURNING d.id`, what, class), ids, at, classes)
	if err != nil {
		return nil, fmt.Errorf("note that mails were %s: %w", what, err)
	}
	news, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		return nil, fmt.Errorf("note that mails were %s: %w", what, err)
	}
	out := make(map[int64]bool, len(news))
	for _, id := range news {
		out[id] = true
	}
	return out, nil
}

// mailRow is what telling of a mail needs to know of it.
type mailRow struct {
	contact, run   int64
	name, tracking string // of its email, and how it was tracked
	attempt        int
}

// mailsOf reads them. A report may be faster than our own recorder: the contact is known from the batch.
func mailsOf(ctx context.Context, tx *postgres.Tx, list []Told) (map[int64]mailRow, error) {
	ids := make([]int64, len(list))
	for i, l := range list {
		ids[i] = l.Delivery
	}
	rows, err := tx.Query(ctx, `SELECT l.id, coalesce(d.contact, b.contacts[l.n]), b.run, e.name, coalesce(d.attempt, 1), coalesce(d.tracking, '')
		FROM (SELECT id, (id & $2)::integer AS n FROM unnest($1::bigint[]) id) l
		JOIN batch b ON b.id = l.id >> 9 AND b.attempt = 1 AND l.n BETWEEN 1 AND cardinality(b.contacts)
		JOIN document doc ON doc.id = b.email JOIN entity e ON e.id = doc.entity LEFT JOIN delivery d ON d.id = l.id`, ids, int64(postgres.BatchWidth-1))
	if err != nil {
		return nil, fmt.Errorf("look for mails: %w", err)
	}
	out := make(map[int64]mailRow, len(list))
	var id int64
	var m mailRow
	_, err = pgx.ForEachRow(rows, []any{&id, &m.contact, &m.run, &m.name, &m.attempt, &m.tracking}, func() error {
		out[id] = m
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("look for mails: %w", err)
	}
	return out, nil
}

func settleLater(ctx context.Context, tx *postgres.Tx, drainer, what string, list []Later) ([]Told, error) {
	told := make([]Told, 0, len(list))
	for _, l := range list {
		if l.At.IsZero() {
			l.At = tx.Now()
		}
		told = append(told, Told{Later: l})
	}
	slices.SortStableFunc(told, func(x, y Told) int { return cmp.Compare(x.Delivery, y.Delivery) })
	told = slices.CompactFunc(told, func(x, y Told) bool { return x.Delivery == y.Delivery }) // the first that was told counts
	mails, err := mailsOf(ctx, tx, told)
	if err != nil {
		return nil, err
	}
	told = slices.DeleteFunc(told, func(l Told) bool { _, ok := mails[l.Delivery]; return !ok })
	if len(told) == 0 {
		return nil, nil
	}
	sent := make([]Outcome, len(told))
	for i, l := range told {
		m := mails[l.Delivery]
		told[i].Contact = m.contact
		sent[i] = Outcome{Delivery: l.Delivery, Contact: m.contact, Attempt: m.attempt, State: Sent, Tracking: m.tracking}
	}
	if _, err := Record(ctx, tx, drainer, sent...); err != nil {
		return nil, err
	}
	news, err := noteLater(ctx, tx, what, told)
	if err != nil {
		return nil, err
	}
	var facts []postgres.Fact
	var bells []cloudevents.Event
	for i, l := range told {
		if told[i].News = news[l.Delivery]; !told[i].News {
			continue
		}
		f, e, err := factOf(tx, drainer, what, told[i], mails[l.Delivery])
		if err != nil {
			return nil, err
		}
		facts, bells = append(facts, f), append(bells, e)
	}
	if err := tx.AddFacts(ctx, facts...); err != nil {
		return nil, err
	}
	return told, tx.Publish(ctx, drainer, bells...)
}

// factOf makes the fact of what was told of one mail, and its doorbell.
func factOf(tx *postgres.Tx, drainer, what string, l Told, m mailRow) (postgres.Fact, cloudevents.Event, error) {
	f := postgres.Fact{Kind: "email." + what, Name: m.name, Contact: m.contact, Run: m.run, Deliveries: []int64{l.Delivery}, At: l.At}
	var data event.Data
	switch d := (event.Deliveries{Items: []event.Delivery{{Delivery: l.Delivery, Contact: m.contact, Run: m.run}}}); what {
	case "delivered":
		data = event.EmailDelivered{Deliveries: d}
	case "bounced":
		d.Items[0].Reason = l.Class
		data = event.EmailBounced{Deliveries: d}
		var err error
		if f.Data, err = json.Marshal(map[string]string{"class": l.Class}); err != nil {
			return f, cloudevents.Event{}, fmt.Errorf("encode fact: %w", err)
		}
	default:
		data = event.EmailComplained{Deliveries: d}
	}
	e, err := event.New(tx.Tenant.Name, drainer, "", event.DeriveID(f.Kind, tx.Tenant.Name, strconv.FormatInt(l.Delivery, 10)), data,
		event.Correlation(m.run), event.PartitionKey(m.contact))
	return f, e, err
}
