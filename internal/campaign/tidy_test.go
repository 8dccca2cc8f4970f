package campaign

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/onda-run/onda/internal/contact"
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

// Files of a submission are forgotten with what their input gave, and all of them with the submission, and with its contact.
func TestFilesAreForgotten(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	db := d.DB(t)
	pgtest.Exec(t, db, "acme", `WITH e AS (INSERT INTO entity (kind, name) VALUES ('Form', 'ask') RETURNING id),
		doc AS (INSERT INTO document (entity, version, spec, hash) SELECT id, 1, '{}', '' FROM e RETURNING id, entity)
		INSERT INTO submission (form, document, contact, state, expires_at, keep_until, data, files)
		SELECT doc.entity, doc.id, v.contact, v.state, onda.now() + v.expires * interval '1 day', onda.now() + v.keep * interval '1 day', replace(replace(v.data,
			'D9', extract(epoch FROM onda.now() + interval '9 days')::bigint::text), 'D1', extract(epoch FROM onda.now() + interval '1 day')::bigint::text)::jsonb, ARRAY['one', 'two', 'three']::bytea[]
		FROM doc, (VALUES
			(7, 'done', 99, 1, '{"files": {"cv": [{"n": 2}], "work": [{"n": 1}, {"n": 3}]}, "until": {"cv": D1}, "keep": D9}'),
			(7, 'done', 99, 1, '{"files": {"cv": [{"n": 1}, {"n": 2}, {"n": 3}]}, "values": {"message": "a"}, "until": {"message": D1}, "keep": D9}'),
			(7, 'done', 99, 1, '{"files": {"cv": [{"n": 1}, {"n": 2}, {"n": 3}]}, "until": {"cv": D1}, "keep": D9}'),
			(7, 'pending', 1, 99, '{"files": {"cv": [{"n": 1}, {"n": 2}, {"n": 3}]}}'),
			(8, 'done', 99, 99, '{"files": {"cv": [{"n": 1}, {"n": 2}, {"n": 3}]}}')) v(contact, state, expires, keep, data)`)
	const all = "one,two,three"
	look := func(when, want string) {
		t.Helper()
		if got := pgtest.One[string](t, db, "acme", `SELECT string_agg(coalesce((SELECT string_agg(coalesce(encode(f, 'escape'), '-'), ',' ORDER BY n) FROM unnest(files) WITH ORDINALITY u(f, n)), '')
			|| ' ' || coalesce((data->'files')::text, ''), '; ' ORDER BY id) FROM submission`); got != want {
			t.Errorf("%s:\n%s, want\n%s", when, got, want)
		}
	}
	pass := func(days int) {
		t.Helper()
		if _, err := d.Admin(t).MoveClock(t.Context(), "acme", time.Duration(days)*24*time.Hour); err != nil {
			t.Fatal(err)
		}
		pgtest.In(t, db, "acme", func(ctx context.Context, tx *postgres.Tx) error {
			_, err := tidy(ctx, tx)
			return err
		})
	}
	const named = `{"cv": [{"n": 1}, {"n": 2}, {"n": 3}]}`
	pass(0)
	look("at first", all+` {"cv": [{"n": 2}], "work": [{"n": 1}, {"n": 3}]}; `+all+" "+named+"; "+all+" "+named+"; "+all+" "+named+"; "+all+" "+named)
	pass(2)
	look("after two days", `one,-,three {"work": [{"n": 1}, {"n": 3}]}; `+all+" "+named+"; -,-,- ;  ; "+all+" "+named)
	pgtest.In(t, db, "acme", func(ctx context.Context, tx *postgres.Tx) error {
		return forget(ctx, tx, []postgres.Fact{{Kind: "contact.erased", Contact: 8}})
	})
	look("with its contact", `one,-,three {"work": [{"n": 1}, {"n": 3}]}; `+all+" "+named+"; -,-,- ;  ;  ")
	pass(10)
	look("after ten days", " ;  ") // of those two is left that they were sent
}

// On the schema before, submissions have no files, and are forgotten as ever.
func TestTidyOnTheSchemaBeforeFiles(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	d.Own(t, pgtest.Acme, fmt.Sprintf("ALTER TABLE submission DROP files; UPDATE onda.tenant SET schema = %d WHERE name = 'acme'", contact.FilesSchema-1))
	pgtest.In(t, d.DB(t), "acme", func(ctx context.Context, tx *postgres.Tx) error {
		if err := forget(ctx, tx, []postgres.Fact{{Kind: "contact.erased", Contact: 8}}); err != nil {
			return err
		}
		_, err := tidy(ctx, tx)
		return err
	})
}
