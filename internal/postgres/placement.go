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
	Namespace string
	// Own are, of a sandbox, the functions that are there (the names of the directories in functions/); the rest are the pool's. Empty: all of them.
	Own []string
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

// SetHosts makes the hosts at which a tenant's links and forms are what they are said to be; changed tells whether they were others. A host of another tenant's is an error
// that names it.
func (a *Admin) SetHosts(ctx context.Context, tenant string, link, form []string) (changed bool, err error) {
	err = a.inTx(ctx, func(tx pgx.Tx) error {
		if _, err := lockTenant(ctx, tx, tenant); err != nil {
			return err
		}
		for kind, hosts := range map[string][]string{"link": link, "form": form} {
			var other string
			err := tx.QueryRow(ctx, "SELECT host || ' is a host of tenant ' || tenant FROM onda.host WHERE host = ANY ($2) AND tenant <> $1 LIMIT 1", tenant, hosts).Scan(&other)
			if err == nil {
				return errors.New(other)
			}
			if !errors.Is(err, pgx.ErrNoRows) {
				return err
			}
			gone, err := tx.Exec(ctx, "DELETE FROM onda.host WHERE tenant = $1 AND kind = $2 AND NOT host = ANY ($3)", tenant, kind, append([]string{}, hosts...))
			if err != nil {
				return err
			}
			come, err := tx.Exec(ctx, `INSERT INTO onda.host (host, tenant, kind) SELECT unnest($3::text[]), $1, $2
				ON CONFLICT (host) DO UPDATE SET kind = EXCLUDED.kind WHERE onda.host.kind <> EXCLUDED.kind`, tenant, kind, hosts)
			if err != nil {
				return err
			}
			changed = changed || gone.RowsAffected() > 0 || come.RowsAffected() > 0
		}
		return nil
	})
	if err != nil {
		return false, fmt.Errorf("set the hosts of tenant %s: %w", tenant, err)
	}
	return changed, nil
}
