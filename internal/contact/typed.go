package contact

import (
	"context"
	"fmt"

	"github.com/onda-run/onda/internal/postgres"
)

// TypedSchema is the tenant migration from which on it is kept how an address was typed.
const TypedSchema = 24

// retype notes how the addresses were typed that contacts have got now.
func retype(ctx context.Context, tx *postgres.Tx, rows []Row, results []RowResult, which []int) error {
	if len(which) == 0 || tx.Tenant.Schema < TypedSchema {
		return nil
	}
	contacts, typed := make([]int64, len(which)), make([]*string, len(which))
	for k, i := range which {
		contacts[k], typed[k] = results[i].Contact, orNull(rows[i].Typed)
	}
	_, err := tx.Exec(ctx, "UPDATE contact c SET typed = u.typed FROM unnest($1::bigint[], $2::text[]) u(id, typed) WHERE c.id = u.id AND c.typed IS DISTINCT FROM u.typed", contacts, typed)
	if err != nil {
		return fmt.Errorf("note how addresses were typed: %w", err)
	}
	return nil
}
