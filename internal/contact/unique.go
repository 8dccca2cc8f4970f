package contact

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/onda-run/onda/internal/postgres"
)

// TakenError says that a field is unique, and another contact has the value already. It never shows the value.
type TakenError struct {
	Field string
	cause error // of Postgres, where it found out
}

// Error says what to do about it.
func (e *TakenError) Error() string {
	return fmt.Sprintf("field %s: another contact has this value, and no two may have the same: correct it, or merge the two contacts", e.Field)
}

// Unwrap gives Postgres's error, of a transaction that is over; nil where it was looked up.
func (e *TakenError) Unwrap() error { return e.cause }

// asTaken tells which field an error of Postgres is about, where a unique field is what it is about.
func asTaken(err error) error {
	var pe *pgconn.PgError
	if !errors.As(err, &pe) || pe.Code != "23505" || !strings.HasPrefix(pe.ConstraintName, "field_") {
		return err
	}
	e := &TakenError{Field: pe.ConstraintName, cause: err}
	if m := regexp.MustCompile(`->> '(\w+)'`).FindStringSubmatch(pe.Detail); m != nil { // what is indexed
		e.Field = m[1]
	}
	return e
}

// enforced are the unique fields whose index is there.
const enforced = `SELECT e.name FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN entity e ON c.relname = 'field_' || e.id || '_unique' WHERE i.indrelid = 'contact'::regclass AND i.indisvalid ORDER BY 1`

// claim is a value of a unique field that a row has.
type claim struct {
	field, hash string
	owner       int64 // who has it; 0 for nobody
}

// claims looks who has the values that objects of fields say, by the objects' places.
func claims(ctx context.Context, tx *postgres.Tx, fields, objects []string) (map[int][]claim, error) {
	out := map[int][]claim{}
	if len(fields) == 0 {
		return out, nil
	}
	b := &pgx.Batch{}
	for _, field := range fields {
		b.Queue(`SELECT u.n - 1, md5(u.fields->>$2::text), coalesce(c.id, 0) FROM unnest($1::jsonb[]) WITH ORDINALITY u(fields, n)
			LEFT JOIN contact c ON md5(c.fields->>$2::text) = md5(u.fields->>$2::text) WHERE u.fields->>$2::text IS NOT NULL`, objects, field).Query(func(rows pgx.Rows) error {
			var n int
			c := claim{field: field}
			_, err := pgx.ForEachRow(rows, []any{&n, &c.hash, &c.owner}, func() error { out[n] = append(out[n], c); return nil })
			return err
		})
	}
	if err := tx.SendBatch(ctx, b).Close(); err != nil {
		return nil, fmt.Errorf("look who has the values of unique fields: %w", err)
	}
	return out, nil
}

// claimed are the values that are given in one turn, and by which row.
type claimed map[claim]bool

// take claims what a row says for its contact (0: one that is to be made). err says that another contact has one of them; later, that another row of this turn does.
func (c claimed) take(of []claim, contact int64) (later bool, err error) {
	for _, one := range of {
		if one.owner != 0 && one.owner != contact {
			return false, &TakenError{Field: one.field}
		}
		one.owner = 0
		if c[one] {
			later = true
		}
	}
	for _, one := range of {
		one.owner = 0
		c[one] = true
	}
	return later, nil
}

// free leaves out of what is set for contacts what is unique and another has: of two that are given the same one here, the first gets it.
func free(ctx context.Context, tx *postgres.Tx, fields map[int64]map[string]any) (map[int64]map[string]any, error) {
	rows, err := tx.Query(ctx, enforced)
	if err != nil {
		return nil, fmt.Errorf("look for unique fields: %w", err)
	}
	unique, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil || len(unique) == 0 {
		return fields, err
	}
	contacts := slices.Sorted(maps.Keys(fields))
	objects := make([]string, len(contacts))
	for i, c := range contacts {
		if objects[i], err = jsonText(fields[c], map[string]any{}); err != nil {
			return nil, err
		}
	}
	of, err := claims(ctx, tx, unique, objects)
	if err != nil {
		return nil, err
	}
	out, given := maps.Clone(fields), claimed{}
	for i, c := range contacts {
		for _, one := range of[i] {
			if later, err := given.take([]claim{one}, c); later || err != nil {
				out[c] = maps.Clone(out[c])
				delete(out[c], one.field)
			}
		}
	}
	return out, nil
}
