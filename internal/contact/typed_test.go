package contact_test

import (
	"context"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/onda-run/onda/internal/contact"
	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/postgres"
)

// What was typed stays beside the address that it is the normalised form of; to type it otherwise later changes nothing.
func TestAddressesAsTheyWereTyped(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	db := d.DB(t)
	upsert := func(ctx context.Context, tx *postgres.Tx) error {
		for _, rows := range [][]contact.Row{
			{{Email: " Ada@Example.COM "}, {Email: "bob@example.com"}, {ExternalID: "7"}, {Email: "zoe@xn--bcher-kva.example", Typed: "zoe@bücher.example"}},
			{{Email: "ADA@example.com"}, {Email: "Cy@Example.com", ExternalID: "7"}},
		} {
			if _, err := contact.Upsert(ctx, tx, "campaign", rows, ""); err != nil {
				return err
			}
		}
		_, _, err := contact.Ensure(ctx, tx, "Dan@example.com")
		return err
	}
	pgtest.In(t, db, pgtest.Acme, upsert)
	pgtest.In(t, db, pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) error {
		_, err := contact.Make(ctx, tx, "campaign", []contact.Row{{Email: "eve@example.com", Typed: "Eve@example.com", JSON: "{}"}, {Email: "fay@example.com", JSON: "{}"}}, "")
		return err
	})
	want := []string{"ada@example.com Ada@Example.COM", "bob@example.com", "cy@example.com Cy@Example.com", "dan@example.com Dan@example.com", "eve@example.com Eve@example.com", "fay@example.com", "zoe@xn--bcher-kva.example zoe@bücher.example"}
	if d := cmp.Diff(want, pgtest.All[string](t, db, pgtest.Acme, "SELECT concat_ws(' ', email, typed) FROM contact ORDER BY email")); d != "" {
		t.Error(d)
	}
	d.Own(t, pgtest.Brava, "ALTER TABLE contact DROP COLUMN typed", "UPDATE onda.tenant SET schema = 23 WHERE name = 'brava'") // the schema before
	pgtest.In(t, db, pgtest.Brava, upsert)
}
