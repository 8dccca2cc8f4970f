package delivery

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/onda-run/onda/internal/postgres"
)

// Limit is how many mails each contact may get of a kind in a period.
type Limit struct {
	Kind   string
	Period time.Time
	Count  int
}

// Reserve takes one of the mails that each contact may get of every limit, and gives the contacts that got one of all, in order: who is refused by one limit uses up none of the
// others. It cannot be passed twice, by however many at once. At the first attempt of a mail only.
func Reserve(ctx context.Context, tx *postgres.Tx, limits []Limit, contacts []int64) ([]int64, error) {
	granted := slices.Compact(slices.Sorted(slices.Values(contacts))) // a contact once a statement, in one order
	for i, l := range limits {
		asked := granted
		rows, err := tx.Query(ctx, `INSERT INTO allowance AS a (kind, contact, period, n) SELECT $1, c, $2, 1 FROM unnest($3::bigint[]) c WHERE $4::integer >= 1 ORDER BY c
			ON CONFLICT (kind, contact, period) DO UPDATE SET n = a.n + 1 WHERE a.n + 1 <= $4 RETURNING contact`, l.Kind, l.Period, asked, l.Count)
		if err != nil {
			return nil, fmt.Errorf("reserve allowances: %w", err)
		}
		if granted, err = pgx.CollectRows(rows, pgx.RowTo[int64]); err != nil {
			return nil, fmt.Errorf("reserve allowances: %w", err)
		}
		slices.Sort(granted)
		if len(granted) == len(asked) || i == 0 {
			continue
		}
		refused := slices.DeleteFunc(slices.Clone(asked), func(c int64) bool {
			_, ok := slices.BinarySearch(granted, c)
			return ok
		})
		for _, before := range limits[:i] { // their rows are locked by us
			if _, err := tx.Exec(ctx, "UPDATE allowance SET n = n - 1 WHERE kind = $1 AND period = $2 AND contact = ANY ($3)", before.Kind, before.Period, refused); err != nil {
				return nil, fmt.Errorf("give allowances back: %w", err)
			}
		}
	}
	return granted, nil
}

// Once takes what a contact may get once in a time, and gives the contacts that did not get it in that time, in order. As Reserve otherwise.
func Once(ctx context.Context, tx *postgres.Tx, kind string, within time.Duration, contacts []int64) ([]int64, error) {
	contacts = slices.Compact(slices.Sorted(slices.Values(contacts)))
	// n is the time at which it was got, in seconds: there is one row a contact, whatever its period.
	rows, err := tx.Query(ctx, `INSERT INTO allowance AS a (kind, contact, period, n) SELECT $1, c, 'infinity', $3 FROM unnest($2::bigint[]) c ORDER BY c
		ON CONFLICT (kind, contact, period) DO UPDATE SET n = excluded.n WHERE a.n <= excluded.n - $4::integer RETURNING contact`, kind, contacts, tx.Now().Unix(), int64(within.Seconds()))
	if err != nil {
		return nil, fmt.Errorf("look for duplicates: %w", err)
	}
	granted, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		return nil, fmt.Errorf("look for duplicates: %w", err)
	}
	slices.Sort(granted)
	return granted, nil
}

// Budget is how many mails may go out in a period, whoever they go to: a quota, or a day of a warm-up.
type Budget struct {
	Kind   string
	Period time.Time
	Count  int64
	Ends   time.Time // the period
	Reason Reason    // of a mail that expires before that; Expired where it may wait as long as it takes
	Name   string    // for people
}

// Grant takes up to n mails of each budget. When there are fewer, got is as many as the tightest one has, and by is that one.
func Grant(ctx context.Context, tx *postgres.Tx, budgets []Budget, n int) (got int, by *Budget, err error) {
	got = n
	for i, b := range budgets {
		if _, err := tx.Exec(ctx, "INSERT INTO allowance (kind, contact, period, n) VALUES ($1, 0, $2, 0) ON CONFLICT DO NOTHING", b.Kind, b.Period); err != nil {
			return 0, nil, fmt.Errorf("take of %s: %w", b.Name, err)
		}
		var used int64
		if err := tx.QueryRow(ctx, "SELECT n FROM allowance WHERE kind = $1 AND contact = 0 AND period = $2 FOR UPDATE", b.Kind, b.Period).Scan(&used); err != nil {
			return 0, nil, fmt.Errorf("take of %s: %w", b.Name, err)
		}
		if left := max(0, b.Count-used); left < int64(got) {
			got, by = int(left), &budgets[i]
		}
	}
	return got, by, spend(ctx, tx, budgets, got)
}

// GiveBack gives back what was granted and not used, while its period lasts or after.
func GiveBack(ctx context.Context, tx *postgres.Tx, budgets []Budget, n int) error {
	return spend(ctx, tx, budgets, -n)
}

func spend(ctx context.Context, tx *postgres.Tx, budgets []Budget, n int) error {
	if n == 0 {
		return nil
	}
	for _, b := range budgets {
		if _, err := tx.Exec(ctx, "UPDATE allowance SET n = n + $3 WHERE kind = $1 AND contact = 0 AND period = $2", b.Kind, b.Period, n); err != nil {
			return fmt.Errorf("take of %s: %w", b.Name, err)
		}
	}
	return nil
}
