package postgres

import (
	"context"
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
	slices.Sort(p.Own)
	var own []string // NULL, not empty: in SQL nothing is in an empty list
	if len(p.Own) > 0 {
		own = p.Own
	}
	err = a.inTx(ctx, func(tx pgx.Tx) error {
		var known bool
		if err := tx.QueryRow(ctx, "SELECT EXISTS (SELECT FROM onda.tenant WHERE name = $1)", tenant).Scan(&known); err != nil {
			return err
		}
		if !known {
			return ErrUnknownTenant
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
