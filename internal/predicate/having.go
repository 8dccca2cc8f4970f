package predicate

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/spec"
)

// Having tells which of the facts of an event have the properties asked for. The predicate language asks this of contacts, for whom an event counts that has
// them: so each fact is taken for a contact of its own, with that fact alone.
func Having(ctx context.Context, tx *postgres.Tx, env Env, event string, where []spec.Property, facts []int64) (map[int64]bool, error) {
	is := make(map[int64]bool, len(facts))
	if len(where) == 0 || len(facts) == 0 {
		for _, id := range facts {
			is[id] = true
		}
		return is, nil
	}
	env.First = 2
	atLeastOne := spec.Test{Op: spec.OpGte, Values: []spec.Value{{Kind: spec.NumberValue, Text: "1", Number: 1}}}
	q, err := Compile(&spec.Predicate{Event: &spec.EventTest{Event: event, Where: where, Count: atLeastOne}}, env)
	if err != nil {
		return nil, err
	}
	rows, err := tx.Query(ctx, `WITH fact AS MATERIALIZED (SELECT f.id AS contact, NULL::bigint[] AS contacts, f.kind, f.name, f.data, f.at FROM fact f WHERE f.id = ANY ($1))
		SELECT c.id FROM unnest($1::bigint[]) AS c (id) WHERE `+q.SQL, append([]any{facts}, q.Args...)...)
	if err != nil {
		return nil, fmt.Errorf("look at the properties of events: %w", err)
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		return nil, fmt.Errorf("look at the properties of events: %w", err)
	}
	for _, id := range ids {
		is[id] = true
	}
	return is, nil
}
