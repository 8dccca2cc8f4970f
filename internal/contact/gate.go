package contact

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/onda-run/onda/internal/postgres"
)

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

// PersonSQL is whom a row of contact was merged into, or itself where others were merged into it since a time; else 0. A merge notes its time some while before it is over: until then
// the other is a contact for all others. Where what MergesIndexed asks for is not there all contacts would be read for that; the facts of merges tell as well, for as long as they are kept.
func PersonSQL(contact, since string, indexed bool) string {
	merges := `contact gl WHERE gl.merged_into = ` + contact + `.id AND gl.changed_at >= `
	if !indexed {
		merges = `fact gl WHERE gl.contact = ` + contact + `.id AND gl.kind = 'contact.merged' AND gl.at >= `
	}
	return `coalesce(` + contact + `.merged_into, CASE WHEN EXISTS (SELECT FROM ` + merges + since + ` - interval '1 minute') THEN ` + contact + `.id END, 0)`
}

// MergesIndexed asks whether onda migrate has made the index on who was merged.
const MergesIndexed = `SELECT EXISTS (SELECT FROM pg_index WHERE indexrelid = to_regclass('contact_merged') AND indisvalid)`

// OpenSQL is a condition, never NULL, that GateSQL is NULL for a topic, by tests that Postgres can make joins of: for statements that ask it of many. scope gives a further
// condition on a column of contacts, such as AND the column BETWEEN $1 AND $2, or nothing.
func OpenSQL(contact, topic string, scope func(column string) string) string {
	return "(" + contact + ".erased_at IS NULL AND " + contact + ".merged_into IS NULL AND " + contact + ".email IS NOT NULL" +
		" AND EXISTS (SELECT FROM subscription gp WHERE gp.contact = " + contact + ".id" + scope("gp.contact") + " AND gp.purpose = " + topic + " AND gp.state = 'granted')" +
		" AND NOT EXISTS (SELECT FROM suppression gs WHERE gs.contact = " + contact + ".id" + scope("gs.contact") + " AND gs.channel = 'email' AND gs.until > onda.now()))"
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
	settings, err := Settings(ctx, tx)
	if err != nil {
		return nil, err
	}
	byDefault := TrackingMode(settings.Tracking)
	out := make(map[int64]TrackingMode, len(contacts))
	for _, c := range contacts {
		out[c] = byDefault
	}
	rows, err := tx.Query(ctx, "SELECT contact, state FROM subscription WHERE contact = ANY ($1) AND purpose = $2", contacts, TrackingEmail)
	if err != nil {
		return nil, fmt.Errorf("read consent to tracking: %w", err)
	}
	var id int64
	var state State
	if _, err := pgx.ForEachRow(rows, []any{&id, &state}, func() error { out[id] = TrackingBy(state, byDefault); return nil }); err != nil {
		return nil, fmt.Errorf("read consent to tracking: %w", err)
	}
	return out, nil
}

// TrackingBy is the mode of a contact by the state of its consent to tracking ("": it never said anything) and the default of the tenant's Settings.
func TrackingBy(state State, byDefault TrackingMode) TrackingMode {
	switch {
	case state == Granted:
		return Full
	case state == Withdrawn && byDefault == Full:
		return Aggregate
	}
	return byDefault
}
