package delivery

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/onda-run/onda/internal/postgres"
)

// Reserve takes one of the cap mails that each contact may get of a kind in a period, and gives the contacts that got one, in order. It cannot be passed twice,
// by however many at once. At the first attempt of a mail only.
func Reserve(ctx context.Context, tx *postgres.Tx, kind string, period time.Time, limit int, contacts []int64) ([]int64, error) {
	contacts = slices.Compact(slices.Sorted(slices.Values(contacts))) // a contact once a statement, in one order
	rows, err := tx.Query(ctx, `INSERT INTO allowance AS a (kind, contact, period, n) SELECT $1, c, $2, 1 FROM unnest($3::bigint[]) c WHERE $4::integer >= 1 ORDER BY c
		ON CONFLICT (kind, contact, period) DO UPDATE SET n = a.n + 1 WHERE a.n + 1 <= $4 RETURNING contact`, kind, period, contacts, limit)
	if err != nil {
		return nil, fmt.Errorf("reserve allowances: %w", err)
	}
	granted, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		return nil, fmt.Errorf("reserve allowances: %w", err)
	}
	slices.Sort(granted)
	return granted, nil
}
