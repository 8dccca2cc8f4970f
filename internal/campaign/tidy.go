package campaign

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/onda-run/onda/internal/event"
	"github.com/onda-run/onda/internal/postgres"
)

const (
	// tidiedAtOnce bounds what of each kind is deleted in one transaction.
	tidiedAtOnce = 500
	// keepAllowances is how long caps and the like are kept: longer than any period that they are counted in.
	keepAllowances = 62 * 24 * time.Hour
)

// tidy deletes a little of what is over: origins of consent after their time, contacts who never confirmed, submissions that were to be kept for a time,
// old caps. more tells that there may be more.
func tidy(ctx context.Context, tx *postgres.Tx) (more bool, err error) {
	for _, sql := range []string{
		// the ledger's row stays; where it came from is not kept longer than promised
		`UPDATE consent SET origin = NULL, origin_until = NULL WHERE id IN (
			SELECT id FROM consent WHERE origin IS NOT NULL AND origin_until <= onda.now() ORDER BY origin_until LIMIT $1 FOR UPDATE SKIP LOCKED)`,
		`UPDATE submission SET state = 'expired', data = '{}' WHERE id IN (
			SELECT id FROM submission WHERE state = 'pending' AND expires_at <= onda.now() ORDER BY expires_at LIMIT $1 FOR UPDATE SKIP LOCKED)`,
		`DELETE FROM submission WHERE id IN (
			SELECT id FROM submission WHERE keep_until <= onda.now() ORDER BY keep_until LIMIT $1 FOR UPDATE SKIP LOCKED)`,
	} {
		tag, err := tx.Exec(ctx, sql, tidiedAtOnce)
		if err != nil {
			return false, fmt.Errorf("tidy: %w", err)
		}
		more = more || tag.RowsAffected() == tidiedAtOnce
	}
	tag, err := tx.Exec(ctx, `DELETE FROM allowance WHERE (kind, contact, period) IN (
		SELECT kind, contact, period FROM allowance WHERE period <= onda.now() - $2::interval ORDER BY period LIMIT $1 FOR UPDATE SKIP LOCKED)`, tidiedAtOnce, keepAllowances)
	if err != nil {
		return false, fmt.Errorf("tidy allowances: %w", err)
	}
	more = more || tag.RowsAffected() == tidiedAtOnce
	n, err := expireContacts(ctx, tx)
	return more || n == tidiedAtOnce, err
}

// expireContacts deletes contacts who asked for something, were asked to confirm it, and never did. One who has agreed to something else meanwhile stays.
func expireContacts(ctx context.Context, tx *postgres.Tx) (n int, err error) {
	rows, err := tx.Query(ctx, "SELECT id FROM contact WHERE expires_at <= onda.now() ORDER BY id LIMIT $1 FOR UPDATE SKIP LOCKED", tidiedAtOnce)
	if err != nil {
		return 0, fmt.Errorf("look for contacts who never confirmed: %w", err)
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil || len(ids) == 0 {
		return 0, err
	}
	n = len(ids)
	rows, err = tx.Query(ctx, `UPDATE contact c SET expires_at = NULL WHERE id = ANY ($1)
		AND EXISTS (SELECT FROM subscription s WHERE s.contact = c.id AND s.state = 'granted') RETURNING id`, ids)
	if err != nil {
		return 0, fmt.Errorf("keep contacts who have agreed: %w", err)
	}
	stay, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		return 0, fmt.Errorf("keep contacts who have agreed: %w", err)
	}
	gone := without(ids, stay)
	if len(gone) == 0 {
		return n, nil
	}
	for _, sql := range []string{
		`WITH m AS (DELETE FROM member WHERE contact = ANY ($1) RETURNING segment, kept)
			UPDATE segment s SET members = greatest(s.members - u.n, 0)
			FROM (SELECT segment, count(*) FILTER (WHERE kept <> 'out') AS n FROM m GROUP BY segment) u WHERE s.entity = u.segment`,
		"DELETE FROM subscription WHERE contact = ANY ($1)",
		"DELETE FROM consent WHERE contact = ANY ($1)",
		"UPDATE visitor SET contact = NULL WHERE contact = ANY ($1)",
		"UPDATE submission SET contact = NULL, data = '{}', state = CASE WHEN state = 'pending' THEN 'expired' ELSE state END WHERE contact = ANY ($1)",
		"UPDATE suppression SET contact = NULL WHERE contact = ANY ($1)",
		"DELETE FROM contact WHERE id = ANY ($1)",
	} {
		if _, err := tx.Exec(ctx, sql, gone); err != nil {
			return 0, fmt.Errorf("delete contacts who never confirmed: %w", err)
		}
	}
	if err := forgetContacts(ctx, tx, gone); err != nil {
		return 0, err
	}
	if err := tx.AddFacts(ctx, postgres.Fact{Kind: "contact.erased", Contacts: gone}); err != nil {
		return 0, err
	}
	e, err := event.New(tx.Tenant.Name, drainer, "", event.DeriveID("contact.erased", tx.Tenant.Name, strconv.FormatInt(gone[0], 10)), event.ContactErased{Contacts: gone})
	if err != nil {
		return 0, err
	}
	return n, tx.Publish(ctx, drainer, e)
}

// without gives the ids that are not in the other list, in their order.
func without(ids, other []int64) []int64 {
	in := map[int64]bool{}
	for _, id := range other {
		in[id] = true
	}
	out := ids[:0:0]
	for _, id := range ids {
		if !in[id] {
			out = append(out, id)
		}
	}
	return out
}

// tidyDue is when there is something to tidy: at the end of its hour, so that many small things wake nobody many times.
func tidyDue(ctx context.Context, tx *postgres.Tx) (time.Time, error) {
	var at *time.Time
	err := tx.QueryRow(ctx, `SELECT least(
		(SELECT min(origin_until) FROM consent WHERE origin IS NOT NULL),
		(SELECT min(expires_at) FROM contact WHERE expires_at IS NOT NULL),
		(SELECT min(expires_at) FROM submission WHERE state = 'pending' AND expires_at < 'infinity'),
		(SELECT min(keep_until) FROM submission WHERE keep_until < 'infinity'),
		(SELECT min(period) FROM allowance WHERE period > '-infinity') + $1::interval)`, keepAllowances).Scan(&at)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return postgres.Never, fmt.Errorf("look for what is to be tidied: %w", err)
	}
	if at == nil {
		return postgres.Never, nil
	}
	return at.Truncate(time.Hour).Add(time.Hour), nil
}
