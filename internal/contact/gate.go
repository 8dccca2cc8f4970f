package contact

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/spec"
)

// Refusal is a contact that must not be mailed, and why: erased, duplicate (merged into another), bad_address, suppressed, pending or no_consent.
type Refusal struct {
	Contact int64
	Reason  string
}

// QueueGate asks, with others in one round trip, which of the contacts may not get a mail of the topic, or a transactional one when topic is empty, at this moment. One
// statement; refused is filled as the batch is read, and those that may are left out. A contact that does not exist is erased.
func QueueGate(b *pgx.Batch, contacts []int64, topic string, refused *[]Refusal) {
	args := []any{contacts}
	param := ""
	if topic != "" {
		args, param = append(args, topic), "$2"
	}
	b.Queue(`SELECT id, reason FROM (
		SELECT u.id, CASE WHEN c.id IS NULL THEN 'erased' ELSE `+GateSQL("c", param)+` END AS reason
		  FROM unnest($1::bigint[]) u(id) LEFT JOIN contact c ON c.id = u.id) g WHERE reason IS NOT NULL ORDER BY id`, args...).Query(func(rows pgx.Rows) (err error) {
		if *refused, err = pgx.CollectRows(rows, pgx.RowToStructByPos[Refusal]); err != nil {
			return fmt.Errorf("ask the gate: %w", err)
		}
		return nil
	})
}

// GateSQL is the gate as an SQL expression: the reason why a row of contact is refused, NULL when it may be mailed. contact is the row's alias, topic an
// expression that gives the topic's name, such as a parameter, or empty for transactional mail. It reads the clock: what it answers may change when
// a suppression ends.
//
// Pre-flight over a whole segment: SELECT coalesce(GateSQL, ”), count(*) FROM member m JOIN contact c ON c.id = m.contact ... GROUP BY 1.
func GateSQL(contact, topic string) string {
	suppressed := `EXISTS (SELECT FROM suppression gs WHERE gs.contact = ` + contact + `.id AND gs.channel = 'email' AND gs.until > onda.now()`
	consent := `NULL::text`
	if topic == "" {
		suppressed += ` AND gs.reason <> 'complaint'`
	} else {
		consent = `CASE (SELECT gp.state FROM subscription gp WHERE gp.contact = ` + contact + `.id AND gp.purpose = ` + topic + `)
			WHEN 'granted' THEN NULL WHEN 'pending' THEN 'pending' ELSE 'no_consent' END`
	}
	return `(CASE WHEN ` + contact + `.erased_at IS NOT NULL THEN 'erased'
		WHEN ` + contact + `.merged_into IS NOT NULL THEN 'duplicate'
		WHEN ` + contact + `.email IS NULL THEN 'bad_address'
		WHEN ` + suppressed + `) THEN 'suppressed'
		ELSE ` + consent + ` END)`
}

// TrackingMode is how a recipient's opens and clicks may be followed.
type TrackingMode string

// Full is with the recipient's name to it, Aggregate without, None not at all.
const (
	Full      TrackingMode = "full"
	Aggregate TrackingMode = "aggregate"
	None      TrackingMode = "none"
)

// Tracking tells how each of the contacts may be tracked in mails: in full who granted tracking.email; who withdrew it at most in the aggregate; all others by the
// default of the tenant's Settings.
func Tracking(ctx context.Context, tx *postgres.Tx, contacts []int64) (map[int64]TrackingMode, error) {
	byDefault, err := trackingDefault(ctx, tx)
	if err != nil {
		return nil, err
	}
	b := &pgx.Batch{}
	out := QueueTracking(b, contacts, byDefault)
	if err := tx.SendBatch(ctx, b).Close(); err != nil {
		return nil, err
	}
	return out, nil
}

// QueueTracking does the same with others in one round trip, for who knows the Settings; the map is filled as the batch is read.
func QueueTracking(b *pgx.Batch, contacts []int64, byDefault TrackingMode) map[int64]TrackingMode {
	out := make(map[int64]TrackingMode, len(contacts))
	for _, c := range contacts {
		out[c] = byDefault
	}
	b.Queue(`SELECT contact, state FROM subscription WHERE contact = ANY ($1) AND purpose = '`+TrackingEmail+`'`, contacts).Query(func(rows pgx.Rows) error {
		var id int64
		var state State
		_, err := pgx.ForEachRow(rows, []any{&id, &state}, func() error {
			switch {
			case state == Granted:
				out[id] = Full
			case state == Withdrawn && byDefault == Full:
				out[id] = Aggregate
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("read consent to tracking: %w", err)
		}
		return nil
	})
	return out
}

// trackingDefault reads the Settings document, if there is one.
func trackingDefault(ctx context.Context, tx *postgres.Tx) (TrackingMode, error) {
	var stored []byte
	err := tx.QueryRow(ctx, `SELECT (SELECT d.spec FROM entity e JOIN document d ON d.id = e.current WHERE e.kind = 'Settings' AND e.name = 'settings')`).Scan(&stored)
	if err != nil {
		return "", fmt.Errorf("read settings: %w", err)
	}
	if stored == nil {
		return Aggregate, nil
	}
	s, err := spec.DecodeAs[*spec.Settings](spec.KindSettings, stored)
	if err != nil {
		return "", fmt.Errorf("read settings: %w", err)
	}
	return TrackingMode(s.Tracking), nil
}
