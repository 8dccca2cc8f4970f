package senderdomain

import (
	"context"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/postgres"
)

// What checks found is listed, of the tenant alone; on the schema before it is kept too, only not when and what was wrong.
func TestList(t *testing.T) {
	t.Parallel()
	for name, before := range map[string]bool{"migrated": false, "not yet": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			data := pgtest.New(t)
			db := data.DB(t)
			if before {
				data.Own(t, pgtest.Acme, "ALTER TABLE acme.entity DROP COLUMN checked_at, DROP COLUMN problems")
			}
			list := func(tenant string) (all []Listed) {
				t.Helper()
				pgtest.In(t, db, tenant, func(ctx context.Context, tx *postgres.Tx) (err error) {
					all, err = List(ctx, tx)
					return err
				})
				return all
			}
			check := func(right bool, wrong ...string) {
				t.Helper()
				pgtest.In(t, db, pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) error {
					d, err := Find(ctx, tx, "books")
					if err != nil {
						return err
					}
					if _, err := d.Checked(ctx, tx, right, nil); err != nil {
						return err
					}
					return d.Looked(ctx, tx, wrong)
				})
			}
			is := func(checked, verified bool, wrong ...string) {
				t.Helper()
				all := list(pgtest.Acme)
				want := []Listed{{Name: "books", Domain: "news.xn--bcher-kva.example", Signer: "onda", Verified: verified, Wrong: append([]string{}, wrong...)}}
				if d := cmp.Diff(want, all, cmpopts.IgnoreFields(Listed{}, "VerifiedAt", "CheckedAt")); d != "" {
					t.Fatalf("(-want +got):\n%s", d)
				}
				if (all[0].VerifiedAt != nil) != verified || (all[0].CheckedAt != nil) != (checked && !before) {
					t.Errorf("verified at %v, checked at %v", all[0].VerifiedAt, all[0].CheckedAt)
				}
			}
			put(t, db, emails+books)
			const unverified = "news.xn--bcher-kva.example is not verified: onda domain check books tells what is missing"
			is(false, false, unverified)
			const spf = "spf of news.xn--bcher-kva.example is missing"
			kept := func(what string) []string {
				if before {
					return nil
				}
				return []string{what}
			}
			check(false, spf)
			is(true, false, append([]string{unverified}, kept(spf)...)...)
			check(true)
			is(true, true)
			check(false, spf)
			is(true, true, kept(spf)...) // it stays verified
			if other := list(pgtest.Brava); len(other) > 0 {
				t.Errorf("the other tenant has %+v", other)
			}
		})
	}
}
