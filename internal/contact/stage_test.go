package contact_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/onda-run/onda/internal/contact"
	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/postgres"
)

// Facts and events tell of those who were at another stage, and of nobody twice.
func TestSetStage(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	db := d.DB(t)
	pgtest.Exec(t, db, pgtest.Acme, "INSERT INTO contact (email, stage, erased_at, merged_into) VALUES ('a@x.example', 'hot', NULL, NULL), ('b@x.example', NULL, NULL, NULL), ('c@x.example', 'cold', NULL, NULL), (NULL, NULL, now(), NULL), ('e@x.example', NULL, NULL, 2)")
	pgtest.Exec(t, db, pgtest.Brava, "INSERT INTO contact (email) VALUES ('a@x.example'), ('b@x.example')")
	set := func(ctx context.Context, tx *postgres.Tx) error {
		return contact.SetStage(ctx, tx, "campaign", []int64{1, 2, 3, 4, 5, 99}, "hot", "test")
	}
	for range 2 { // again, it changes nothing
		pgtest.In(t, db, pgtest.Acme, set)
	}
	if d := cmp.Diff([]string{"hot", "hot", "hot", "-", "-"}, pgtest.All[string](t, db, pgtest.Acme, "SELECT coalesce(stage, '-') FROM contact ORDER BY id")); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff([]string{"stage.changed hot {2,3}"}, pgtest.All[string](t, db, pgtest.Acme, "SELECT kind || ' ' || name || ' ' || contacts::text FROM fact")); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff([]string{`{"items": [{"stage": "hot", "contact": 2}, {"stage": "hot", "contact": 3}]}`}, pgtest.All[string](t, db, pgtest.Acme, "SELECT (event::jsonb->'data')::text FROM outbox")); d != "" {
		t.Error(d)
	}
	if n := pgtest.One[int](t, db, pgtest.Brava, "SELECT count(stage) + (SELECT count(*) FROM fact) FROM contact"); n != 0 {
		t.Errorf("brava: %d", n)
	}
	d.Own(t, pgtest.Acme, fmt.Sprintf("UPDATE onda.tenant SET schema = %d WHERE name = 'acme'", contact.StageSchema-1))
	if err := db.InTenant(t.Context(), pgtest.Acme, set); !errors.Is(err, postgres.ErrSchemaTooOld) {
		t.Errorf("on the schema before: %v", err)
	}
}
