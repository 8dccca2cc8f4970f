package senderdomain

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/spec"
)

// Listed is a Domain document in force, and what checks found of it.
type Listed struct {
	Name   string `json:"name"`
	Domain string `json:"domain"`
	// Signer is who signs mails from it: onda or the relay.
	Signer string `json:"signer"`
	// Verified tells whether mails from it are sent, VerifiedAt since which check.
	Verified   bool       `json:"verified"`
	VerifiedAt *time.Time `json:"verifiedAt,omitempty"`
	// CheckedAt is when it was last looked at, whatever came of it.
	CheckedAt *time.Time `json:"checkedAt,omitempty"`
	// Wrong is what was wrong then, and what keeps mails from being sent or campaigns from being started.
	Wrong []string `json:"wrong"`
}

// List lists the tenant's Domain documents in force, by name.
func List(ctx context.Context, tx *postgres.Tx) ([]Listed, error) {
	s, err := Read(ctx, tx)
	if err != nil {
		return nil, err
	}
	all := make([]Listed, 0, len(s.rows))
	at := make(map[int32]int, len(s.rows))
	for _, r := range s.rows {
		d, err := spec.DecodeAs[*spec.Domain](spec.KindDomain, r.stored)
		if err != nil {
			return nil, err
		}
		why, err := s.problem(d.Domain)
		if err != nil {
			return nil, err
		}
		l := Listed{Name: d.Name, Domain: d.Domain, Signer: string(d.Signer), Verified: r.verifiedAt != nil, VerifiedAt: r.verifiedAt, Wrong: []string{}}
		if why != "" {
			l.Wrong = append(l.Wrong, why)
		}
		at[r.entity] = len(all)
		all = append(all, l)
	}
	// What entity does not have before migration 7 is found in absent.
	rows, err := tx.Query(ctx, `SELECT e.id, e.checked_at, e.problems FROM (SELECT NULL::timestamptz AS checked_at, '{}'::text[] AS problems) AS absent,
		LATERAL (SELECT id, checked_at, problems FROM entity WHERE kind = 'Domain' AND current IS NOT NULL) AS e`)
	if err != nil {
		return nil, fmt.Errorf("list sender domains: %w", err)
	}
	var id int32
	var checked *time.Time
	var problems []string
	_, err = pgx.ForEachRow(rows, []any{&id, &checked, &problems}, func() error {
		if i, ok := at[id]; ok {
			all[i].CheckedAt, all[i].Wrong = checked, append(all[i].Wrong, problems...)
		}
		checked, problems = nil, nil
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list sender domains: %w", err)
	}
	return all, nil
}

// Looked records that the domain was looked at, and what was wrong; on a schema before migration 7 nothing is recorded.
func (d Domain) Looked(ctx context.Context, tx *postgres.Tx, wrong []string) error {
	var there bool
	if err := tx.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'entity'::regclass AND attname = 'checked_at')").Scan(&there); err != nil || !there {
		return err
	}
	if _, err := tx.Exec(ctx, "UPDATE entity SET checked_at = onda.now(), problems = $2 WHERE id = $1", d.entity, append([]string{}, wrong...)); err != nil {
		return fmt.Errorf("record the check of %s: %w", d.Domain.Domain, err)
	}
	return nil
}
