package postgres

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"
)

// Placement is where a tenant's functions are.
type Placement struct {
	// Namespace has its functions and its broker: onda, onda-next, or one of its own.
	Namespace string `json:"namespace"`
	// Own are, of a sandbox, the functions that are there (the names of the directories in functions/); the rest are the pool's. Empty: all of them.
	Own []string `json:"own,omitempty"`
}

// Place has schedule and every function's doorbells find a tenant's functions where they are from now on: changed tells whether they were elsewhere. What is under way
// ends where it is, and a lease keeps two namespaces from doing the same.
func (a *Admin) Place(ctx context.Context, tenant string, p Placement) (changed bool, err error) {
	own := slices.Sorted(slices.Values(p.Own)) // nil for none, which is NULL: in SQL nothing is in an empty list
	err = a.inTx(ctx, func(tx pgx.Tx) error {
		if _, err := lockTenant(ctx, tx, tenant); err != nil {
			return err
		}
		ct, err := tx.Exec(ctx, "UPDATE onda.tenant SET namespace = $2, own = $3 WHERE name = $1 AND (namespace, own) IS DISTINCT FROM ($2, $3::text[])", tenant, p.Namespace, own)
		changed = ct.RowsAffected() > 0
		return err
	})
	if err != nil {
		return false, fmt.Errorf("place tenant %s: %w", tenant, err)
	}
	return changed, nil
}

// SetHosts makes the hosts at which a tenant's links and forms are what they are said to be, in this order; changed tells whether they were others, or in another. A host
// of another tenant's is an error that names it.
func (a *Admin) SetHosts(ctx context.Context, tenant string, link, form []string) (changed bool, err error) {
	link, form = append([]string{}, link...), append([]string{}, form...) // nil would be NULL
	err = a.inTx(ctx, func(tx pgx.Tx) error {
		if err := lockHosts(ctx, tx, tenant); err != nil {
			return err
		}
		var other string
		err := tx.QueryRow(ctx, "SELECT host || ' is a host of tenant ' || tenant FROM onda.host WHERE host = ANY ($2::text[] || $3::text[]) AND tenant <> $1 ORDER BY host LIMIT 1",
			tenant, link, form).Scan(&other)
		if err == nil {
			return errors.New(other)
		}
		if !errors.Is(err, pgx.ErrNoRows) {
			return err
		}
		changed = false // of an attempt before
		for _, sql := range []string{
			"UPDATE onda.tenant SET link_hosts = $2, form_hosts = $3 WHERE name = $1 AND (link_hosts, form_hosts) IS DISTINCT FROM ($2::text[], $3::text[])",
			"DELETE FROM onda.host WHERE tenant = $1 AND NOT host = ANY ($2::text[] || $3::text[])",
			`INSERT INTO onda.host (host, tenant, kind) SELECT DISTINCT h, $1, CASE WHEN h = ANY ($2::text[]) THEN 'link' ELSE 'form' END FROM unnest($2::text[] || $3::text[]) h
				ON CONFLICT (host) DO UPDATE SET kind = EXCLUDED.kind WHERE onda.host.kind <> EXCLUDED.kind`,
		} {
			ct, err := tx.Exec(ctx, sql, tenant, link, form)
			if err != nil {
				return err
			}
			changed = changed || ct.RowsAffected() > 0
		}
		return nil
	})
	if err != nil {
		return false, fmt.Errorf("set the hosts of tenant %s: %w", tenant, err)
	}
	return changed, nil
}

// SetQuotas makes what a tenant may send what it is said to be; changed tells whether it was something else.
func (a *Admin) SetQuotas(ctx context.Context, tenant string, q Quotas) (changed bool, err error) {
	err = a.inTx(ctx, func(tx pgx.Tx) error {
		ct, err := tx.Exec(ctx, `UPDATE onda.tenant SET mails_per_second = $2, mails_per_day = $3, mails_per_month = $4 WHERE name = $1
			AND (mails_per_second, mails_per_day, mails_per_month) IS DISTINCT FROM ($2::float8, $3::bigint, $4::bigint)`, tenant, q.PerSecond, q.PerDay, q.PerMonth)
		changed = ct.RowsAffected() > 0
		return err
	})
	if err != nil {
		return false, fmt.Errorf("set the quotas of tenant %s: %w", tenant, err)
	}
	return changed, nil
}

// SetSMTPSecret makes the Secret with the tenant's own relay the one that is named, none where it is empty; changed tells whether it was another.
func (a *Admin) SetSMTPSecret(ctx context.Context, tenant, secret string) (changed bool, err error) {
	err = a.inTx(ctx, func(tx pgx.Tx) error {
		ct, err := tx.Exec(ctx, "UPDATE onda.tenant SET smtp_secret = nullif($2, '') WHERE name = $1 AND smtp_secret IS DISTINCT FROM nullif($2, '')", tenant, secret)
		changed = ct.RowsAffected() > 0
		return err
	})
	if err != nil {
		return false, fmt.Errorf("set the relay of tenant %s: %w", tenant, err)
	}
	return changed, nil
}

// ReleaseHosts takes all hosts from a tenant but some, and gives it none: of tenants that swap hosts, each has to let go before any can take. changed tells whether it
// had others.
func (a *Admin) ReleaseHosts(ctx context.Context, tenant string, but []string) (changed bool, err error) {
	err = a.inTx(ctx, func(tx pgx.Tx) error {
		changed, err = releaseHosts(ctx, tx, tenant, but)
		return err
	})
	if err != nil {
		return false, fmt.Errorf("release hosts of tenant %s: %w", tenant, err)
	}
	return changed, nil
}

func releaseHosts(ctx context.Context, tx pgx.Tx, tenant string, but []string) (changed bool, err error) {
	if err := lockHosts(ctx, tx, tenant); err != nil {
		return false, err
	}
	for _, sql := range []string{
		`UPDATE onda.tenant SET link_hosts = ARRAY(SELECT h FROM unnest(link_hosts) WITH ORDINALITY AS u (h, n) WHERE h = ANY ($2::text[]) ORDER BY n),
			form_hosts = ARRAY(SELECT h FROM unnest(form_hosts) WITH ORDINALITY AS u (h, n) WHERE h = ANY ($2::text[]) ORDER BY n)
			WHERE name = $1 AND NOT link_hosts || form_hosts <@ $2::text[]`,
		"DELETE FROM onda.host WHERE tenant = $1 AND NOT host = ANY ($2::text[])",
	} {
		ct, err := tx.Exec(ctx, sql, tenant, append([]string{}, but...)) // nil would be NULL
		if err != nil {
			return false, err
		}
		changed = changed || ct.RowsAffected() > 0
	}
	return changed, nil
}

// lockHosts lets one transaction at a time change who has which hosts: two that took each other's, row by row, would wait in a circle. Readers do not wait, and a
// tenant's role may lock nothing that this waits for.
func lockHosts(ctx context.Context, tx pgx.Tx, tenant string) error {
	if _, err := lockTenant(ctx, tx, tenant); err != nil { // first, as in every change of a tenant
		return err
	}
	_, err := tx.Exec(ctx, "LOCK TABLE onda.host IN SHARE ROW EXCLUSIVE MODE")
	return err
}
