package contact_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/onda-run/onda/internal/contact"
	"github.com/onda-run/onda/internal/fieldindex"
	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/postgres"
)

func uniqueCode(t *testing.T) *postgres.DB {
	t.Helper()
	d := pgtest.New(t)
	db := d.DB(t)
	for _, tenant := range []string{pgtest.Acme, pgtest.Brava} {
		pgtest.Exec(t, db, tenant, `WITH e AS (INSERT INTO entity (kind, name) VALUES ('Field', 'code') RETURNING id)
			INSERT INTO document (entity, version, spec, hash) SELECT id, 1, '{"apiVersion": "onda/v1", "kind": "Field", "metadata": {"name": "code"}, "spec": {"type": "text", "unique": true}}', '' FROM e`)
		pgtest.Exec(t, db, tenant, "UPDATE entity e SET current = d.id FROM document d WHERE d.entity = e.id")
	}
	if _, said, err := fieldindex.Ensure(t.Context(), d.Admin(t), pgtest.Acme); err != nil || said != nil {
		t.Fatal(said, err)
	}
	return db
}

func codes(t *testing.T, db *postgres.DB) []string {
	t.Helper()
	return pgtest.All[string](t, db, pgtest.Acme, "SELECT coalesce(email, external_id) || ' ' || coalesce(fields->>'code', '-') FROM contact ORDER BY id")
}

func TestUniqueFields(t *testing.T) {
	t.Parallel()
	db := uniqueCode(t)
	row := func(who, code string) contact.Row {
		return contact.Row{ExternalID: who, Fields: map[string]any{"code": code, "other": "x"}}
	}
	for i, c := range []struct {
		rows []contact.Row
		bad  []int // that another has the code of
		want []string
	}{
		{[]contact.Row{row("a", "1"), row("b", "1"), row("c", "2")}, []int{1}, []string{"a 1", "c 2"}},
		{[]contact.Row{row("a", "1"), row("c", "1"), {ExternalID: "d", JSON: `{"code": "2"}`}}, []int{1, 2}, []string{"a 1", "c 2"}},
		{[]contact.Row{row("a", "3"), row("c", "1"), row("d", "4")}, []int{1}, []string{"a 3", "c 2", "d 4"}}, // it was not free before
		{[]contact.Row{row("c", "1"), row("d", "3")}, []int{1}, []string{"a 3", "c 1", "d 4"}},
		{[]contact.Row{row("d", "2")}, nil, []string{"a 3", "c 1", "d 2"}},
		{[]contact.Row{{ExternalID: "a", Fields: map[string]any{"code": nil}}, {ExternalID: "e"}}, nil, []string{"a -", "c 1", "d 2", "e -"}},
	} {
		pgtest.In(t, db, pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) error {
			results, err := contact.Upsert(ctx, tx, "campaign", c.rows, "")
			var bad []int
			for k, r := range results {
				if r.Err == nil {
					continue
				}
				var taken *contact.TakenError
				if !errors.As(r.Err, &taken) || taken.Field != "code" {
					t.Errorf("%d: %v", i, r.Err)
				}
				bad = append(bad, k)
			}
			if d := cmp.Diff(c.bad, bad); d != "" {
				t.Errorf("%d: %s", i, d)
			}
			return err
		})
		if d := cmp.Diff(c.want, codes(t, db)); d != "" {
			t.Errorf("%d: %s", i, d)
		}
	}
	// What is set of each leaves out what another has; of all the same, Postgres says no, and the field is told.
	ids := pgtest.All[int64](t, db, pgtest.Acme, "SELECT id FROM contact ORDER BY id")
	pgtest.In(t, db, pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) error {
		return contact.SetFields(ctx, tx, "campaign", map[int64]map[string]any{ids[0]: {"code": "1", "other": "y"}, ids[2]: {"code": "9"}, ids[3]: {"code": "9"}}, "")
	})
	if d := cmp.Diff([]string{"a -", "c 1", "d 9", "e -"}, codes(t, db)); d != "" {
		t.Error(d)
	}
	err := db.InTenant(t.Context(), pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) error {
		return contact.Update(ctx, tx, "campaign", ids, contact.Change{Fields: map[string]any{"code": "secret"}}, "")
	})
	var taken *contact.TakenError
	if !errors.As(err, &taken) || taken.Field != "code" {
		t.Errorf("%v", err)
	}
	// Brava has no index yet: it is not enforced there.
	pgtest.In(t, db, pgtest.Brava, func(ctx context.Context, tx *postgres.Tx) error {
		results, err := contact.Upsert(ctx, tx, "campaign", []contact.Row{row("a", "1"), row("b", "1")}, "")
		for _, r := range results {
			err = errors.Join(err, r.Err)
		}
		return err
	})
}

// Of many at once that want the same value, one gets it.
func TestOneValueAtOnce(t *testing.T) {
	t.Parallel()
	db := uniqueCode(t)
	for round := range 5 {
		var wg sync.WaitGroup
		for i := range 4 {
			wg.Go(func() {
				err := db.InTenant(t.Context(), pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) error {
					// In the first round they are made, then they are changed.
					_, err := contact.Upsert(ctx, tx, "campaign", []contact.Row{{ExternalID: fmt.Sprint("p", i), Fields: map[string]any{"code": fmt.Sprint(round)}}}, "")
					return err
				})
				if taken := (*contact.TakenError)(nil); err != nil && !errors.As(err, &taken) {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if n := pgtest.One[int](t, db, pgtest.Acme, "SELECT count(*) FROM contact WHERE fields->>'code' = $1", fmt.Sprint(round)); n != 1 {
			t.Errorf("round %d: %d contacts have the value", round, n)
		}
		pgtest.Exec(t, db, pgtest.Acme, "INSERT INTO contact (external_id) SELECT 'p' || n FROM generate_series(0, 3) n ON CONFLICT DO NOTHING")
	}
}

// Of a unique field that both have, one value is the winner's, and an unmerge gives each its own, unless another has it by then.
func TestMergeOfUniqueFields(t *testing.T) {
	t.Parallel()
	db := uniqueCode(t)
	upsert := func(rows ...contact.Row) (ids []int64) {
		t.Helper()
		pgtest.In(t, db, pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) error {
			results, err := contact.Upsert(ctx, tx, "campaign", rows, "")
			for _, r := range results {
				ids, err = append(ids, r.Contact), errors.Join(err, r.Err)
			}
			return err
		})
		return ids
	}
	code := func(v string) map[string]any { return map[string]any{"code": v} }
	ids := upsert(contact.Row{ExternalID: "a", Fields: code("1")}, contact.Row{ExternalID: "b", Fields: code("2")}, contact.Row{ExternalID: "c"}, contact.Row{ExternalID: "d"})
	merge := func(loser, winner int, prefer contact.Prefer) {
		t.Helper()
		pgtest.In(t, db, pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) error {
			_, err := contact.Merge(ctx, tx, "campaign", ids[loser], ids[winner], prefer, "")
			return err
		})
	}
	unmerge := func(loser int) error {
		return db.InTenant(t.Context(), pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) error {
			_, err := contact.Unmerge(ctx, tx, "campaign", ids[loser], "")
			return err
		})
	}
	want := func(what string, want ...string) {
		t.Helper()
		if d := cmp.Diff(want, codes(t, db)); d != "" {
			t.Errorf("%s: %s", what, d)
		}
	}
	for _, prefer := range []contact.Prefer{contact.PreferWinner, contact.PreferLoser} {
		merge(0, 1, prefer)
		want(string(prefer), "a -", map[contact.Prefer]string{contact.PreferWinner: "b 2", contact.PreferLoser: "b 1"}[prefer], "c -", "d -")
		if err := unmerge(0); err != nil {
			t.Error(err)
		}
		want("undone", "a 1", "b 2", "c -", "d -")
	}
	merge(0, 2, contact.PreferWinner)
	merge(1, 2, contact.PreferLoser)
	want("two into one", "a -", "b -", "c 2", "d -")
	for _, loser := range []int{0, 1} { // the first of them first
		if err := unmerge(loser); err != nil {
			t.Error(err)
		}
	}
	want("both undone", "a 1", "b 2", "c -", "d -")
	merge(0, 1, contact.PreferWinner)
	upsert(contact.Row{ExternalID: "d", Fields: code("1")}) // which nobody has now
	if err := unmerge(0); !errors.Is(err, contact.ErrTaken) {
		t.Errorf("%v, want that another has the code", err)
	}
	want("taken", "a -", "b 2", "c -", "d 1")
}
