package campaign

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/onda-run/onda/internal/contact"
	"github.com/onda-run/onda/internal/delivery"
	"github.com/onda-run/onda/internal/postgres"
)

const (
	// tidiedAtOnce bounds what of each kind is deleted in one transaction.
	tidiedAtOnce = 500
	// keepAllowances is how long caps and the like are kept: longer than any period that they are counted in.
	keepAllowances = 62 * 24 * time.Hour
)

// keptUntil is when a submission is over some of whose values are before: what its data says of it (see renderform).
const keptUntil = "coalesce(to_timestamp((s.data->>'keep')::bigint), 'infinity')"

// Parts of statements that forget the files of a submission: all of them, and those that its data does not name any more.
const (
	noFiles   = ", files = NULL"
	keptFiles = `, files = CASE WHEN l.files = coalesce(s.data->'files', '{}') THEN s.files ELSE (
		SELECT array_agg(CASE WHEN n IN (SELECT (f->>'n')::bigint FROM jsonb_each(l.files), jsonb_array_elements(value) f) THEN content END ORDER BY n)
		  FROM unnest(s.files) WITH ORDINALITY u(content, n)) END`
)

// tidy deletes a little of what is over: origins of consent after their time, submissions that were to be kept for a time, old caps. more tells that there may be
// more.
func tidy(ctx context.Context, tx *postgres.Tx) (more bool, err error) {
	noFiles, keptFiles := noFiles, keptFiles
	if tx.Tenant.Schema < contact.FilesSchema {
		noFiles, keptFiles = "", ""
	}
	for _, sql := range []string{
		// the ledger's row stays; where it came from is not kept longer than promised
		`UPDATE consent SET origin = NULL, origin_until = NULL WHERE id IN (
			SELECT id FROM consent WHERE origin IS NOT NULL AND origin_until <= onda.now() ORDER BY origin_until LIMIT $1 FOR UPDATE SKIP LOCKED)`,
		`UPDATE submission s SET state = 'expired', data = '{}'` + noFiles + `, keep_until = CASE WHEN data ? 'until' THEN ` + keptUntil + ` ELSE keep_until END WHERE id IN (
			SELECT id FROM submission WHERE state = 'pending' AND expires_at <= onda.now() ORDER BY expires_at LIMIT $1 FOR UPDATE SKIP LOCKED)`,
		// one that can still be confirmed is kept for that, however short a time it was to be kept
		`DELETE FROM submission WHERE id IN (
			SELECT id FROM submission WHERE keep_until <= onda.now() AND state <> 'pending'
			   AND NOT (data ? 'until' AND coalesce((data->>'keep')::bigint > extract(epoch FROM onda.now()), true)) ORDER BY keep_until LIMIT $1 FOR UPDATE SKIP LOCKED)`,
		// values that are kept for less than their submission; then it is kept until the next of them, or all of it, is over
		`UPDATE submission s SET keep_until = least(to_timestamp(l.next), ` + keptUntil + `), data = (s.data - 'until' - 'files') || jsonb_build_object('values', l.kept) ||
			CASE WHEN l.next IS NULL THEN '{}' ELSE jsonb_build_object('until', l.until) END || CASE WHEN l.files = '{}' THEN '{}' ELSE jsonb_build_object('files', l.files) END` + keptFiles + `
		  FROM (SELECT id FROM submission WHERE keep_until <= onda.now() AND data ? 'until' ORDER BY keep_until LIMIT $1 FOR UPDATE SKIP LOCKED) due
		  JOIN submission d ON d.id = due.id CROSS JOIN LATERAL (
			SELECT (SELECT min(value::bigint) FROM jsonb_each(d.data->'until') WHERE value::bigint > extract(epoch FROM onda.now())) AS next,
			       (SELECT jsonb_object_agg(key, value) FROM jsonb_each(d.data->'until') WHERE value::bigint > extract(epoch FROM onda.now())) AS until,
			       (SELECT coalesce(jsonb_object_agg(key, value), '{}') FROM jsonb_each(d.data->'values') WHERE coalesce((d.data->'until'->key)::bigint > extract(epoch FROM onda.now()), true)) AS kept,
			       (SELECT coalesce(jsonb_object_agg(key, value), '{}') FROM jsonb_each(d.data->'files') WHERE coalesce((d.data->'until'->key)::bigint > extract(epoch FROM onda.now()), true)) AS files) l
		 WHERE s.id = d.id`,
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
	if tx.Tenant.Schema < delivery.PaceSchema {
		return more, nil
	}
	// Of no period: whom a broadcast planned first, once it is over, and who got a version of an email that is sent no more.
	tag, err = tx.Exec(ctx, `DELETE FROM allowance WHERE (kind, contact, period) IN (
		SELECT a.kind, a.contact, a.period FROM (
			SELECT 'ahead:' || id AS kind FROM run WHERE pass <> '' AND ended_at <= onda.now() - interval '1 day'
			UNION ALL
			SELECT 'once:' || d.id FROM document d JOIN entity e ON e.id = d.entity WHERE e.kind = 'Email' AND d.applied_at <= onda.now() - $2::interval
			   AND NOT EXISTS (SELECT FROM batch b WHERE b.email = d.id AND b.planned_at > onda.now() - $2::interval)) k
		  JOIN LATERAL (SELECT kind, contact, period FROM allowance WHERE kind = k.kind LIMIT $1) a ON true LIMIT $1)`, tidiedAtOnce, keepAllowances)
	if err != nil {
		return false, fmt.Errorf("tidy allowances: %w", err)
	}
	return more || tag.RowsAffected() == tidiedAtOnce, nil
}

// expire deletes a few of the contacts who never confirmed.
func expire(ctx context.Context, tx *postgres.Tx) (more bool, err error) {
	n, err := contact.Expire(ctx, tx, drainer, tidiedAtOnce)
	return n == tidiedAtOnce, err
}

// tidyDue is when there is something to tidy: at the end of its hour, so that many small things wake nobody many times.
func tidyDue(ctx context.Context, tx *postgres.Tx) (time.Time, error) {
	var at *time.Time
	err := tx.QueryRow(ctx, `SELECT least(
		(SELECT min(origin_until) FROM consent WHERE origin IS NOT NULL),
		(SELECT min(expires_at) FROM contact WHERE expires_at IS NOT NULL),
		(SELECT min(expires_at) FROM submission WHERE state = 'pending' AND expires_at < 'infinity'),
		(SELECT min(keep_until) FROM submission WHERE keep_until < 'infinity' AND (state <> 'pending' OR data ? 'until')),
		(SELECT min(period) FROM allowance WHERE period > '-infinity') + $1::interval)`, keepAllowances).Scan(&at)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return postgres.Never, fmt.Errorf("look for what is to be tidied: %w", err)
	}
	if at == nil {
		return postgres.Never, nil
	}
	return at.Truncate(time.Hour).Add(time.Hour), nil
}
