// Package fieldindex says which indexes on contacts a tenant's documents want, and has them made: on dates that segments compare with what moves, so that a sweep reads those alone that it
// is about, and on fields that are unique.
//
// Invariants: what is wanted is a function of the documents in force; nothing is made while something is applied, sent in or computed; without an index all is right but slower, and
// what is unique is checked but by those who write, each for itself.
package fieldindex

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/predicate"
	"github.com/onda-run/onda/internal/spec"
)

// most is how many indexes a tenant has at most, but for unique fields, each of which has its own, since nothing else enforces it: each costs whoever writes a contact.
const most = 16

func kinds() []string { return []string{spec.KindField, spec.KindSegment} }

// Wanted gives the indexes that documents want, those of unique fields first, and those that would be too many.
func Wanted(docs []postgres.StoredDocument) (want, beyond []postgres.ContactIndex, err error) {
	env := predicate.Env{Fields: map[string]spec.FieldType{}, Zone: time.UTC, Now: time.Unix(0, 0)}
	entities := map[string]int32{"created": 0}
	var unique []postgres.ContactIndex
	var segments []*spec.Segment
	for _, d := range docs {
		doc, err := spec.Decode(d.Kind, d.Spec)
		if err != nil {
			return nil, nil, err
		}
		switch doc := doc.(type) {
		case *spec.Field:
			env.Fields[d.Name], entities[d.Name] = doc.Type, d.Entity
			if doc.Unique {
				unique = append(unique, postgres.ContactIndex{Entity: d.Entity, Field: d.Name, For: postgres.IndexUnique})
			}
		case *spec.Segment:
			segments = append(segments, doc)
		}
	}
	moving := map[postgres.ContactIndex]bool{}
	for _, s := range segments {
		if s.Where == nil {
			continue
		}
		predicate.Moving(s.Where, env, func(field string, yearly bool) {
			x := postgres.ContactIndex{Entity: entities[field], Field: field, For: postgres.IndexValue}
			if yearly {
				x.For = postgres.IndexDay
			}
			if field != "created" || !yearly { // few ask for the day on which somebody was made
				moving[x] = true
			}
		})
	}
	all := slices.Concat(unique, slices.SortedFunc(maps.Keys(moving), func(a, b postgres.ContactIndex) int {
		return cmp.Or(cmp.Compare(a.Entity, b.Entity), cmp.Compare(a.For, b.For))
	}))
	n := max(len(unique), min(len(all), most))
	return all[:n], all[n:], nil
}

// left says of fields whose dates have no index, since there are too many, that they have none.
func left(beyond []postgres.ContactIndex) (said []string) {
	for _, x := range beyond {
		said = append(said, fmt.Sprintf("Field %s: a segment that asks for its date reads all contacts, since there are %d indexes on fields already: ask for fewer dates relative to now", x.Field, most))
	}
	return said
}

// Ensure makes the indexes that a tenant's documents in force want, and drops those that none wants. Said is what somebody should know, a line each.
func Ensure(ctx context.Context, a *postgres.Admin, tenant string) (done postgres.Indexed, said []string, err error) {
	docs, err := a.Documents(ctx, tenant, kinds()...)
	if err != nil {
		return done, nil, err
	}
	want, beyond, err := Wanted(docs)
	if err != nil {
		return done, nil, fmt.Errorf("read documents of tenant %s: %w", tenant, err)
	}
	if done, err = a.IndexContacts(ctx, tenant, want); err != nil {
		return done, nil, err
	}
	for _, r := range done.Refused {
		said = append(said, fmt.Sprintf("Field %s: not enforced as unique, since several contacts have the same value (%d such values): give each its own, then run onda migrate", r.Field, r.Values))
	}
	return done, append(said, left(beyond)...), nil
}

// few is how many contacts are read as fast as an index is.
const few = 100_000

// Missing tells which of the indexes that documents want are not there and would make a difference, a line each.
func Missing(ctx context.Context, tx *postgres.Tx) ([]string, error) {
	rows, err := tx.Query(ctx, "SELECT e.id, e.kind, e.name, d.spec FROM entity e JOIN document d ON d.id = e.current WHERE e.kind = ANY ($1) ORDER BY e.id", kinds())
	if err != nil {
		return nil, fmt.Errorf("read documents: %w", err)
	}
	docs, err := pgx.CollectRows(rows, pgx.RowToStructByPos[postgres.StoredDocument])
	if err != nil {
		return nil, fmt.Errorf("read documents: %w", err)
	}
	want, beyond, err := Wanted(docs)
	if err != nil {
		return nil, fmt.Errorf("read documents: %w", err)
	}
	rows, err = tx.Query(ctx, "SELECT c.relname::text FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid WHERE i.indrelid = 'contact'::regclass AND i.indisvalid")
	if err != nil {
		return nil, fmt.Errorf("look for indexes: %w", err)
	}
	have, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("look for indexes: %w", err)
	}
	var contacts float32 // as Postgres believes
	if err := tx.QueryRow(ctx, "SELECT reltuples FROM pg_class WHERE oid = 'contact'::regclass").Scan(&contacts); err != nil {
		return nil, fmt.Errorf("look for indexes: %w", err)
	}
	var out []string
	for _, x := range want {
		switch {
		case slices.Contains(have, x.Name()):
		case x.For == postgres.IndexUnique:
			out = append(out, fmt.Sprintf("Field %s: unique is not enforced until onda migrate has made its index", x.Field))
		case contacts > few:
			out = append(out, fmt.Sprintf("Field %s: a segment that asks for its date reads all contacts until onda migrate has made its index", x.Field))
		}
	}
	if contacts > few {
		out = append(out, left(beyond)...)
	}
	return out, nil
}
