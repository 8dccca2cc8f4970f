package contact

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/postgres"
)

// What Compare says is what Upsert then does.
func TestCompare(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t).DB(t)
	pgtest.Exec(t, db, pgtest.Acme, `INSERT INTO contact (email, external_id, fields, tags) VALUES
		('ada@example.com', 'a', '{"n": 1, "list": ["x", "y"]}', '{red,vip}'), ('bob@example.com', 'b', '{"n": 2}', '{}'), ('cat@example.com', NULL, '{}', '{}'), (NULL, 'd', '{"n": 4}', '{}')`)
	pgtest.Exec(t, db, pgtest.Acme, `INSERT INTO contact (email, merged_into) SELECT 'was@example.com', id FROM contact WHERE email = 'ada@example.com'`)
	for name, rows := range map[string][]Row{
		"same":                        {{Email: "ada@example.com"}, {Email: "bob@example.com", JSON: `{"n":2}`}, {Email: "cat@example.com"}},
		"another value":               {{Email: "ada@example.com", JSON: `{"n":2}`}, {Email: "cat@example.com", JSON: `{"n":0}`}},
		"fewer in a list":             {{Email: "ada@example.com", JSON: `{"list":["x"]}`}, {Email: "bob@example.com", JSON: `{"n":2}`}},
		"the same list":               {{Email: "ada@example.com", JSON: `{"list":["x","y"]}`}},
		"fields as a map":             {{Email: "ada@example.com", Fields: map[string]any{"n": 1}}},
		"tags":                        {{Email: "ada@example.com", AddTags: []string{"red"}}, {Email: "bob@example.com", AddTags: []string{"red"}}, {Email: "cat@example.com"}},
		"new":                         {{Email: "eve@example.com"}, {Email: "ada@example.com"}},
		"by id":                       {{ExternalID: "a"}, {ExternalID: "d", JSON: `{"n":4}`}, {ExternalID: "nobody"}, {ExternalID: "b", JSON: `{"n":3}`}},
		"by both":                     {{Email: "ada@example.com", ExternalID: "a", AddTags: []string{"vip"}}, {Email: "cat@example.com", ExternalID: "c"}, {Email: "dan@example.com", ExternalID: "d"}},
		"of two":                      {{Email: "ada@example.com", ExternalID: "b"}, {Email: "ada@example.com", ExternalID: "other"}},
		"nobody":                      {{JSON: `{"n":1}`}, {Email: "ada@example.com"}},
		"one that was merged into it": {{Email: "was@example.com"}, {Email: "was@example.com", JSON: `{"n":9}`}},
	} {
		stop := errors.New("all is undone")
		err := db.InTenant(t.Context(), pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) error {
			standing, err := Compare(ctx, tx, rows)
			if err != nil {
				return err
			}
			var xid *string
			if err := tx.QueryRow(ctx, "SELECT pg_current_xact_id_if_assigned()::text").Scan(&xid); err != nil {
				return err
			}
			if xid != nil {
				t.Errorf("%s: it wrote something", name)
			}
			results := make([]RowResult, len(rows))
			for i, r := range rows { // each by itself
				if _, err := tx.Exec(ctx, "SAVEPOINT one"); err != nil {
					return err
				}
				one, err := Upsert(ctx, tx, "campaign", []Row{r}, "")
				if err != nil {
					return err
				}
				results[i] = one[0]
				if _, err := tx.Exec(ctx, "ROLLBACK TO one"); err != nil {
					return err
				}
			}
			for i, s := range standing {
				r := results[i]
				if !errors.Is(s.Err, r.Err) || r.Err == nil && ((s.Contact == 0) != r.Made || s.Contact != 0 && s.Contact != r.Contact) {
					t.Errorf("%s: row %d stands as %+v, and Upsert makes %+v of it", name, i, s, r)
				}
				if s.Same && (r.Made || r.Changed) || !s.Same && r.Err == nil && !r.Made && !r.Changed && !strings.HasPrefix(name, "one that was merged") {
					t.Errorf("%s: row %d is the same: %v, and Upsert changed it: %+v", name, i, s.Same, r)
				}
			}
			return stop
		})
		if !errors.Is(err, stop) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What Make makes is what Upsert makes of the same rows.
func TestMake(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t).DB(t)
	rows := []Row{{Email: "zoe@example.com", ExternalID: "z", JSON: `{"n":1,"list":["a"]}`, AddTags: []string{"b", "a", "b"}}, {ExternalID: "only"}, {Email: "ada@example.com", Fields: map[string]any{"n": 2}}}
	for _, tenant := range []string{pgtest.Acme, pgtest.Brava} {
		pgtest.In(t, db, tenant, func(ctx context.Context, tx *postgres.Tx) error {
			if _, err := Suppress(ctx, tx, "bounce", Suppression{Address: "ada@example.com", Reason: Bounce}); err != nil {
				return err
			}
			if tenant == pgtest.Brava {
				_, err := Upsert(ctx, tx, "campaign", rows, "import")
				return err
			}
			ids, err := Make(ctx, tx, "campaign", rows, "import")
			if err != nil {
				return err
			}
			var email string
			if err := tx.QueryRow(ctx, "SELECT email FROM contact WHERE id = $1", ids[0]).Scan(&email); err != nil || email != "zoe@example.com" {
				t.Errorf("the first is %s, %v", email, err)
			}
			return nil
		})
	}
	stored := func(tenant string) []string {
		return append(pgtest.All[string](t, db, tenant, `SELECT concat_ws(' ', c.email, c.external_id, c.fields, c.tags, c.created_at = c.changed_at, (SELECT reason FROM suppression s WHERE s.contact = c.id)) FROM contact c ORDER BY email`),
			pgtest.All[string](t, db, tenant, "SELECT concat_ws(' ', kind, name, cardinality(contacts), data) FROM fact ORDER BY kind, name")...)
	}
	if d := cmp.Diff(stored(pgtest.Brava), stored(pgtest.Acme)); d != "" {
		t.Error(d)
	}
	for _, there := range []Row{{Email: "ada@example.com"}, {ExternalID: "z"}} {
		err := db.InTenant(t.Context(), pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) error {
			_, err := Make(ctx, tx, "campaign", []Row{{Email: "new@example.com"}, there}, "")
			return err
		})
		if !errors.Is(err, ErrThere) {
			t.Errorf("%+v: %v", there, err)
		}
	}
	if n := pgtest.One[int](t, db, pgtest.Acme, "SELECT count(*) FROM contact"); n != 3 {
		t.Errorf("%d contacts", n)
	}
}

// An address that is taken as it is, is one that is given as it is.
func FuzzPlainAddress(f *testing.F) {
	for _, s := range []string{"ada@example.com", "a.b+c_d-e@x-y.example.co", "a..b@example.com", ".a@example.com", "a@b", "a@-b.com", "a@xn--bcher-kva.example", "a@b--c.com", "a@b.c.", "A@b.com", "a@b@c.com", "a@1.2"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if !isPlain(s) {
			return
		}
		if got, err := Normalise(" " + s); err != nil || got != s { // with a space it goes the long way
			t.Errorf("%q is given as %q, %v", s, got, err)
		}
	})
}
