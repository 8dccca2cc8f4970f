package segment

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/predicate"
	"github.com/onda-run/onda/internal/spec"
)

// Size is how many are in a segment.
type Size struct {
	Members int64
	// Current: the members are those of the document in force, and no rebuild is wanted or under way.
	Current bool
	// Failed says, of a segment that cannot be computed, what of; it is tried again at RetryAt.
	Failed  string
	RetryAt time.Time
}

// Count tells a segment's size, from a number that is kept with its members. A name that is not there is an error that matches ErrUnknown.
func Count(ctx context.Context, tx *postgres.Tx, name string) (Size, error) {
	var n Size
	failed := "coalesce(s.failed, ''), s.retry_at"
	if tx.Tenant.Schema < SweepSchema {
		failed = "'', NULL::timestamptz"
	}
	var retryAt *time.Time
	err := tx.QueryRow(ctx, `SELECT coalesce(s.members, 0), NOT `+stale(tx)+`, `+failed+` FROM entity e LEFT JOIN segment s ON s.entity = e.id
		WHERE e.kind = 'Segment' AND e.name = $1 AND e.current IS NOT NULL`, name).Scan(&n.Members, &n.Current, &n.Failed, &retryAt)
	if errors.Is(err, pgx.ErrNoRows) {
		return n, fmt.Errorf("segment %s: %w", name, ErrUnknown)
	}
	if err != nil {
		return n, fmt.Errorf("count segment %s: %w", name, err)
	}
	if retryAt != nil {
		n.RetryAt = *retryAt
	}
	return n, nil
}

// Explanation says why a contact is in a segment, or is not.
type Explanation struct {
	// Member is what the stored membership says.
	Member bool
	// Kept is in or out when it was set by hand.
	Kept string
	// Matches is what the document in force says of the contact at this moment.
	Matches bool
}

// Explain tells how a contact stands to a segment.
func Explain(ctx context.Context, tx *postgres.Tx, name string, id int64) (Explanation, error) {
	var e Explanation
	s := &kept{name: name}
	var stored []byte
	err := tx.QueryRow(ctx, `SELECT e.id, d.spec FROM entity e JOIN document d ON d.id = e.current WHERE e.kind = 'Segment' AND e.name = $1`, name).Scan(&s.entity, &stored)
	if errors.Is(err, pgx.ErrNoRows) {
		return e, fmt.Errorf("segment %s: %w", name, ErrUnknown)
	}
	if err != nil {
		return e, fmt.Errorf("explain segment %s: %w", name, err)
	}
	s.doc, s.err = spec.DecodeAs[*spec.Segment](spec.KindSegment, stored)
	env, err := predicate.Load(ctx, tx)
	if err != nil {
		return e, err
	}
	cond, err := s.condition(env, 3, "= $2")
	if err != nil {
		return e, err
	}
	err = tx.QueryRow(ctx, `SELECT coalesce(m.kept <> 'out', false), coalesce(m.kept, ''), coalesce((SELECT `+cond.SQL+` FROM contact c WHERE c.id = $2), false)
		FROM (SELECT $1::int, $2::bigint) a(segment, contact) LEFT JOIN member m USING (segment, contact)`, append([]any{s.entity, id}, cond.Args...)...).Scan(&e.Member, &e.Kept, &e.Matches)
	if err != nil {
		return e, fmt.Errorf("explain segment %s: %w", name, err)
	}
	return e, nil
}
