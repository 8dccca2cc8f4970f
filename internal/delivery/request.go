package delivery

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/onda-run/onda/internal/event"
	"github.com/onda-run/onda/internal/postgres"
)

// keepRequests is how long a transactional mail's data, and its key, are kept.
const keepRequests = 7 * 24 * time.Hour

// Errors of Request.
var (
	ErrUnknownEmail     = errors.New("there is no such email")
	ErrNotTransactional = errors.New("the email is not transactional")
	ErrKeyReused        = errors.New("the key was used for another request")
	ErrData             = errors.New("a text in the data, or an attachment's name, has the character U+0000, which cannot be stored")
)

// Attachment is a file that a transactional mail brings. Its content is base64 in JSON.
type Attachment struct {
	Name    string `json:"name"`
	Type    string `json:"type,omitempty"`
	Content []byte `json:"content"`
}

// TransactionalMail is one mail to one contact, without consent.
type TransactionalMail struct {
	// Email is the name of the Email document, whose version in force is sent.
	Email   string
	Contact int64
	// Data is what the template sees as data.*.
	Data        map[string]any
	Attachments []Attachment
	// Key makes a repeat the same mail, for seven days; empty for none.
	Key string
	// Cause is the id of the event or request that caused it.
	Cause string
	// Silent is true when the caller sends it itself: no event rings for it then.
	Silent bool
}

// hash tells a repeat from a reuse of the key. encoding/json sorts keys.
func (m TransactionalMail) hash() ([]byte, error) {
	body, err := json.Marshal([]any{m.Email, m.Contact, m.Data, m.Attachments})
	if err != nil {
		return nil, fmt.Errorf("encode request: %w", err)
	}
	sum := sha256.Sum256(body)
	return sum[:], nil
}

// Request stores a transactional mail as a batch of one in its email's standing run, which it makes where there is none, and rings email.requested. A repeat
// under the same key gives the first's delivery and repeated; another mail under the same key is ErrKeyReused, and what cannot be stored ErrData.
func Request(ctx context.Context, tx *postgres.Tx, drainer string, m TransactionalMail) (delivery int64, repeated bool, err error) {
	hash, err := m.hash()
	if err != nil {
		return 0, false, err
	}
	if delivery, repeated, err = repeatOf(ctx, tx, m.Key, hash); repeated || err != nil {
		return delivery, repeated, err
	}
	run, email, err := standingRun(ctx, tx, m.Email)
	if err != nil {
		return 0, false, err
	}
	if err := tx.EnsurePartitionsLately(ctx); err != nil {
		return 0, false, err
	}
	data, attachments, err := m.encode()
	if err != nil {
		return 0, false, err
	}
	// The key comes first: two requests at once under one key must not both leave a batch.
	err = tx.QueryRow(ctx, `INSERT INTO request (delivery, key, hash, data, attachments)
		VALUES (nextval(pg_get_serial_sequence('batch', 'id')) << 9 | 1, nullif($1, ''), $2, $3, $4) ON CONFLICT (key) DO NOTHING RETURNING delivery`,
		m.Key, hash, data, attachments).Scan(&delivery)
	if errors.Is(err, pgx.ErrNoRows) {
		return repeatOf(ctx, tx, m.Key, hash)
	}
	var pe *pgconn.PgError
	if errors.As(err, &pe) && pe.Code == "22P05" {
		return 0, false, ErrData
	}
	if err != nil {
		return 0, false, fmt.Errorf("store request: %w", err)
	}
	now := tx.Now()
	if _, err := tx.Exec(ctx, insertBatch, BatchOf(delivery), run, "", 1, Transactional, email, []int64{m.Contact}, now, now.Add(Life), m.Cause); err != nil {
		return 0, false, fmt.Errorf("plan a transactional mail: %w", err)
	}
	tx.Wake(Function(Transactional), now)
	if m.Silent {
		return delivery, false, nil
	}
	e, err := m.event(tx.Tenant.Name, drainer, delivery, run)
	if err != nil {
		return 0, false, err
	}
	return delivery, false, tx.Publish(ctx, drainer, e)
}

// ReserveIDs gives ids of deliveries, for mails that are requested once it is known that they are to be sent.
func ReserveIDs(ctx context.Context, tx *postgres.Tx, n int) ([]int64, error) {
	if n == 0 {
		return nil, nil
	}
	rows, err := tx.Query(ctx, "SELECT nextval(seq) << 9 | 1 FROM (SELECT pg_get_serial_sequence('batch', 'id')::regclass AS seq OFFSET 0) s, generate_series(1, $1)", n)
	if err != nil {
		return nil, fmt.Errorf("reserve deliveries: %w", err)
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		return nil, fmt.Errorf("reserve deliveries: %w", err)
	}
	return ids, nil
}

// Reserved is a mail whose delivery has its id. It has no Key, and is no repeat of another.
type Reserved struct {
	TransactionalMail
	Delivery int64
}

// RequestReserved is Request of many mails, in a few statements however many they are.
func RequestReserved(ctx context.Context, tx *postgres.Tx, drainer string, mails []Reserved) error {
	if len(mails) == 0 {
		return nil
	}
	if err := tx.EnsurePartitionsLately(ctx); err != nil {
		return err
	}
	type standing struct{ run, email int64 }
	runs := map[string]standing{}
	n := len(mails)
	ids, batches, run, email, contacts := make([]int64, n), make([]int64, n), make([]int64, n), make([]int64, n), make([]int64, n)
	hashes, data, attachments, causes := make([][]byte, n), make([]string, n), make([]string, n), make([]string, n)
	var events []cloudevents.Event
	for i, m := range mails {
		s, known := runs[m.Email]
		if !known {
			var err error
			if s.run, s.email, err = standingRun(ctx, tx, m.Email); err != nil {
				return err
			}
			runs[m.Email] = s
		}
		hash, err := m.hash()
		if err != nil {
			return err
		}
		d, a, err := m.encode()
		if err != nil {
			return err
		}
		ids[i], batches[i], run[i], email[i], contacts[i] = m.Delivery, BatchOf(m.Delivery), s.run, s.email, m.Contact
		hashes[i], data[i], attachments[i], causes[i] = hash, string(d), string(a), m.Cause
		if m.Silent {
			continue
		}
		e, err := m.event(tx.Tenant.Name, drainer, m.Delivery, s.run)
		if err != nil {
			return err
		}
		events = append(events, e)
	}
	now := tx.Now()
	b := &pgx.Batch{}
	b.Queue(`INSERT INTO request (delivery, hash, data, attachments) SELECT * FROM unnest($1::bigint[], $2::bytea[], $3::jsonb[], $4::jsonb[])`, ids, hashes, data, attachments)
	b.Queue(`INSERT INTO batch (id, run, step, attempt, lane, email, contacts, not_before, expires_at, cause)
		SELECT id, run, '', 1, $6, email, ARRAY[contact], $7, $8, cause FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[], $5::text[]) u(id, run, email, contact, cause)`,
		batches, run, email, contacts, causes, Transactional, now, now.Add(Life))
	err := tx.SendBatch(ctx, b).Close()
	var pe *pgconn.PgError
	if errors.As(err, &pe) && pe.Code == "22P05" {
		return ErrData
	}
	if err != nil {
		return fmt.Errorf("plan transactional mails: %w", err)
	}
	tx.Wake(Function(Transactional), now)
	return tx.Publish(ctx, drainer, events...)
}

// event is the doorbell of a mail.
func (m TransactionalMail) event(tenant, function string, delivery, run int64) (cloudevents.Event, error) {
	id := strconv.FormatInt(delivery, 10)
	opts := []event.Option{event.Correlation(run), event.PartitionKey(m.Contact)}
	if m.Cause != "" {
		opts = append(opts, event.Causation(m.Cause))
	}
	return event.New(tenant, function, id, event.DeriveID("email.requested", tenant, id), event.EmailRequested{Delivery: delivery}, opts...)
}

func (m TransactionalMail) encode() (data, attachments []byte, err error) {
	if m.Data == nil {
		m.Data = map[string]any{}
	}
	if m.Attachments == nil {
		m.Attachments = []Attachment{}
	}
	if data, err = json.Marshal(m.Data); err == nil {
		attachments, err = json.Marshal(m.Attachments)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("encode request: %w", err)
	}
	return data, attachments, nil
}

func repeatOf(ctx context.Context, tx *postgres.Tx, key string, hash []byte) (delivery int64, repeated bool, err error) {
	if key == "" {
		return 0, false, nil
	}
	var same bool
	err = tx.QueryRow(ctx, "SELECT delivery, hash = $2 FROM request WHERE key = $1", key, hash).Scan(&delivery, &same)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return 0, false, nil
	case err != nil:
		return 0, false, fmt.Errorf("look for an earlier request: %w", err)
	case !same:
		return 0, false, ErrKeyReused
	}
	return delivery, true, nil
}

// standingRun finds or makes the run that all mails of a transactional email belong to.
func standingRun(ctx context.Context, tx *postgres.Tx, name string) (run, email int64, err error) {
	var entity int32
	var transactional bool
	err = tx.QueryRow(ctx, `SELECT e.id, d.id, coalesce((d.spec #>> '{spec,transactional}')::boolean, false), coalesce(r.id, 0)
		FROM entity e JOIN document d ON d.id = e.current LEFT JOIN run r ON r.entity = e.id AND r.state IN ('scheduled', 'running', 'paused')
		WHERE e.kind = 'Email' AND e.name = $1`, name).Scan(&entity, &email, &transactional, &run)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return 0, 0, fmt.Errorf("email %q: %w", name, ErrUnknownEmail)
	case err != nil:
		return 0, 0, fmt.Errorf("look for email %q: %w", name, err)
	case !transactional:
		return 0, 0, fmt.Errorf("email %q: %w", name, ErrNotTransactional)
	case run != 0:
		return run, email, nil
	}
	if _, err = tx.Exec(ctx, `INSERT INTO run (kind, entity, document, state, cause, planned, started_at) VALUES ('standing', $1, $2, 'running', 'transactional', true, onda.now())
		ON CONFLICT (entity) WHERE state IN ('scheduled', 'running', 'paused') DO NOTHING`, entity, email); err == nil {
		err = tx.QueryRow(ctx, "SELECT id FROM run WHERE entity = $1 AND state IN ('scheduled', 'running', 'paused')", entity).Scan(&run)
	}
	if err != nil {
		return 0, 0, fmt.Errorf("find the standing run of email %q: %w", name, err)
	}
	return run, email, nil
}

// Requested is what a transactional mail was asked for with.
type Requested struct {
	Data        map[string]any
	Attachments []Attachment
}

// Requests gives what the transactional mails among the deliveries were asked for with.
func Requests(ctx context.Context, tx *postgres.Tx, deliveries []int64) (map[int64]Requested, error) {
	rows, err := tx.Query(ctx, "SELECT delivery, data, attachments FROM request WHERE delivery = ANY ($1)", deliveries)
	if err != nil {
		return nil, fmt.Errorf("read requests: %w", err)
	}
	out := map[int64]Requested{}
	var id int64
	var data, attachments []byte
	_, err = pgx.ForEachRow(rows, []any{&id, &data, &attachments}, func() error {
		var r Requested
		if err := json.Unmarshal(data, &r.Data); err != nil {
			return err
		}
		if err := json.Unmarshal(attachments, &r.Attachments); err != nil {
			return err
		}
		out[id] = r
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read requests: %w", err)
	}
	return out, nil
}

// ForgetRequests deletes up to 500 requests that are older than seven days; their deliveries stay.
func ForgetRequests(ctx context.Context, tx *postgres.Tx) (n int64, err error) {
	tag, err := tx.Exec(ctx, "DELETE FROM request WHERE delivery IN (SELECT delivery FROM request WHERE at <= onda.now() - $1::interval ORDER BY at LIMIT 500)", keepRequests)
	if err != nil {
		return 0, fmt.Errorf("forget requests: %w", err)
	}
	return tag.RowsAffected(), nil
}
