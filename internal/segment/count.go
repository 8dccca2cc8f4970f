package segment

import (
	"context"
	"errors"
	"fmt"
	"slices"
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
	Segment string `json:"segment"`
	Contact int64  `json:"contact"`
	// Member is what the stored membership says; Since is when it joined.
	Member bool       `json:"member"`
	Since  *time.Time `json:"since,omitempty"`
	// Kept is in or out when it was set by hand, Listed when the document keeps it in or out by name.
	Kept   string `json:"kept,omitempty"`
	Listed string `json:"listed,omitempty"`
	// Matches is what the document in force says of the contact at this moment, Belongs with what was set by hand.
	Matches bool `json:"matches"`
	Belongs bool `json:"belongs"`
	// Gone says that the contact was erased or merged into another: it is in no segment then.
	Gone bool `json:"gone,omitempty"`
	// Current is as in Size.
	Current bool `json:"current"`
	// Why are the parts of the predicate; nil where members are kept by hand alone.
	Why *predicate.Part `json:"why,omitempty"`
}

// Explain tells how a contact stands to a segment, and which part of the predicate holds, because of what, until when.
func Explain(ctx context.Context, tx *postgres.Tx, name string, id int64) (Explanation, error) {
	e := Explanation{Segment: name, Contact: id}
	size, err := Count(ctx, tx, name)
	if err != nil {
		return e, err
	}
	e.Current = size.Current
	s := &kept{name: name}
	var stored []byte
	err = tx.QueryRow(ctx, `SELECT e.id, d.spec FROM entity e JOIN document d ON d.id = e.current WHERE e.kind = 'Segment' AND e.name = $1`, name).Scan(&s.entity, &stored)
	if err != nil {
		return e, fmt.Errorf("explain segment %s: %w", name, err)
	}
	s.doc, s.err = spec.DecodeAs[*spec.Segment](spec.KindSegment, stored)
	env, err := predicate.Load(ctx, tx)
	if err != nil {
		return e, err
	}
	cond, err := s.condition(env, 3, "")
	if err != nil {
		return e, err
	}
	var email, external string
	err = tx.QueryRow(ctx, `SELECT coalesce(m.kept <> 'out', false), m.since, coalesce(m.kept, ''), coalesce((SELECT `+cond.SQL+` FROM contact c WHERE c.id = $2), false),
			coalesce(p.email, ''), coalesce(p.external_id, ''), p.id IS NULL OR p.erased_at IS NOT NULL OR p.merged_into IS NOT NULL
		FROM (SELECT $1::int, $2::bigint) a(segment, contact) LEFT JOIN member m USING (segment, contact) LEFT JOIN contact p ON p.id = a.contact`,
		append([]any{s.entity, id}, cond.Args...)...).Scan(&e.Member, &e.Since, &e.Kept, &e.Matches, &email, &external, &e.Gone)
	if err != nil {
		return e, fmt.Errorf("explain segment %s: %w", name, err)
	}
	e.Belongs = e.Kept != "out" && (e.Matches || e.Kept == "in" && !e.Gone)
	if !e.Member {
		e.Since = nil
	}
	listed := func(who []string) bool {
		emails, ids := split(who)
		return email != "" && slices.Contains(emails, email) || external != "" && slices.Contains(ids, external)
	}
	switch {
	case listed(s.doc.Out):
		e.Listed = "out"
	case listed(s.doc.In):
		e.Listed = "in"
	}
	if s.doc.Where != nil && !e.Gone {
		why, err := predicate.Explain(ctx, tx, s.doc.Where, env, id)
		if err != nil {
			return e, fmt.Errorf("explain segment %s: %w", name, err)
		}
		e.Why = &why
	}
	return e, nil
}
