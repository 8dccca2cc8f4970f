package campaign

import "github.com/jackc/pgx/v5"

// eachRow calls f for each row of two columns.
func eachRow[A, B any](rows pgx.Rows, f func(A, B)) error {
	var a A
	var b B
	_, err := pgx.ForEachRow(rows, []any{&a, &b}, func() error {
		f(a, b)
		return nil
	})
	return err
}
