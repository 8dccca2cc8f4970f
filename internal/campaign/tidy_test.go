package campaign

import (
	"context"
	"testing"
	"time"

	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/postgres"
)

// Values of a submission are forgotten when their own time is over, and the rest of it when its is.
func TestValuesAreForgottenBeforeTheirSubmission(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	db := d.DB(t)
	pgtest.Exec(t, db, "acme", `WITH e AS (INSERT INTO entity (kind, name) VALUES ('Form', 'ask') RETURNING id),
		doc AS (INSERT INTO document (entity, version, spec, hash) SELECT id, 1, '{}', '' FROM e RETURNING id, entity)
		INSERT INTO submission (form, document, state, expires_at, keep_until, data)
		SELECT doc.entity, doc.id, v.state, onda.now() + v.expires * interval '1 day', onda.now() + v.keep * interval '1 day', replace(replace(replace(v.data,
			'D9', extract(epoch FROM onda.now() + interval '9 days')::bigint::text), 'D1', extract(epoch FROM onda.now() + interval '1 day')::bigint::text), 'D3', extract(epoch FROM onda.now() + interval '3 days')::bigint::text)::jsonb
		FROM doc, (VALUES
			('done', 99, 1, '{"values": {"message": "a", "utm": "b", "plan": "c"}, "until": {"message": D1, "utm": D3}, "keep": D9}'),
			('done', 99, 1, '{"values": {"message": "kept for ever otherwise"}, "until": {"message": D1}}'),
			('done', 99, 1, '{"values": {"message": "for as long as the rest"}}'),
			('pending', 0, 1, '{"values": {"message": "never confirmed"}, "until": {"message": D1}, "keep": D9}'),
			('done', 99, 9, '{"values": {"message": "of no time of its own"}}')) v(state, expires, keep, data)`)
	for _, step := range []struct {
		days int
		want string
	}{
		{0, "a b c, kept for ever otherwise, for as long as the rest, , of no time of its own"},
		{2, "b c, , , of no time of its own"},
		{4, "c, , , of no time of its own"},
		{10, ""}, // of the second is left that it was sent
	} {
		if _, err := d.Admin(t).MoveClock(t.Context(), "acme", time.Duration(step.days)*24*time.Hour); err != nil {
			t.Fatal(err)
		}
		pgtest.In(t, db, "acme", func(ctx context.Context, tx *postgres.Tx) error {
			for range 3 {
				if _, err := tidy(ctx, tx); err != nil {
					return err
				}
			}
			due, err := tidyDue(ctx, tx)
			if err == nil && due.Before(tx.Now()) {
				t.Errorf("after %d days something is due at %s", step.days, due)
			}
			return err
		})
		got := pgtest.One[string](t, db, "acme", "SELECT coalesce(string_agg(concat_ws(' ', data #>> '{values,message}', data #>> '{values,utm}', data #>> '{values,plan}'), ', ' ORDER BY id), '') FROM submission")
		if got != step.want {
			t.Errorf("after %d days: %q, want %q", step.days, got, step.want)
		}
	}
	if n := pgtest.One[int](t, db, "acme", "SELECT count(*) FROM submission"); n != 1 {
		t.Errorf("%d submissions are left, want that which is kept for ever", n)
	}
}
