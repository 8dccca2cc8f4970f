package fieldindex_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/onda-run/onda/internal/fieldindex"
	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/predicate"
	"github.com/onda-run/onda/internal/spec"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

type world struct {
	d  *pgtest.Database
	db *postgres.DB
}

func newWorld(t *testing.T) world {
	t.Helper()
	d := pgtest.New(t)
	w := world{d, d.DB(t)}
	for _, tenant := range []string{pgtest.Acme, pgtest.Brava} {
		w.apply(t, tenant, "Field", "code", `{"type": "text", "unique": true}`)
		w.apply(t, tenant, "Field", "plan", `{"type": "text"}`)
		w.apply(t, tenant, "Field", "born", `{"type": "date"}`)
		w.apply(t, tenant, "Field", "ends", `{"type": "datetime"}`)
	}
	w.apply(t, pgtest.Acme, "Segment", "trials", `{"where": {"any": [{"field": "ends", "inNext": "7d"}, {"field": "born", "yearly": {"inNext": "3d"}}, {"field": "plan", "is": "paid"}, {"field": "born", "after": "1990-01-01"}, {"field": "created", "inLast": "90d"}]}}`)
	return w
}

func (w world) apply(t *testing.T, tenant, kind, name, doc string) {
	t.Helper()
	pgtest.Exec(t, w.db, tenant, `WITH e AS (INSERT INTO entity (kind, name) VALUES ($1, $2) ON CONFLICT (kind, name) DO UPDATE SET name = excluded.name RETURNING id)
		INSERT INTO document (entity, version, spec, hash) SELECT id, (SELECT count(*) + 1 FROM document d WHERE d.entity = e.id), jsonb_build_object('apiVersion', 'onda/v1', 'kind', $1::text,
		       'metadata', jsonb_build_object('name', CASE WHEN $2::text ~ '^[a-z]+$' THEN $2::text ELSE 'x' END), 'spec', $3::jsonb), '' FROM e`, kind, name, doc)
	pgtest.Exec(t, w.db, tenant, "UPDATE entity e SET current = (SELECT max(id) FROM document d WHERE d.entity = e.id) WHERE kind = $1 AND name = $2", kind, name)
}

func (w world) ensure(t *testing.T, tenant string) (made, dropped int, said []string) {
	t.Helper()
	done, said, err := fieldindex.Ensure(t.Context(), w.d.Admin(t), tenant)
	if err != nil {
		t.Fatal(err)
	}
	return len(done.Made), len(done.Dropped), said
}

func (w world) missing(t *testing.T, tenant string) (list []string) {
	t.Helper()
	pgtest.In(t, w.db, tenant, func(ctx context.Context, tx *postgres.Tx) (err error) {
		list, err = fieldindex.Missing(ctx, tx)
		return err
	})
	return list
}

func (w world) indexes(t *testing.T, tenant string) []string {
	t.Helper()
	return pgtest.All[string](t, w.db, tenant, `SELECT e.name || CASE WHEN i.indisvalid THEN '' ELSE ' half' END || ' ' || split_part(c.relname, '_', 3) FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
		JOIN (SELECT id, name FROM entity UNION SELECT 0, 'created') e ON e.id::text = split_part(c.relname, '_', 2) WHERE i.indrelid = 'contact'::regclass AND c.relname LIKE 'field\_%' ORDER BY 1`)
}

func TestIndexesAreThoseThatDocumentsWant(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	missing := func() []string { return w.missing(t, pgtest.Acme) }
	if got := missing(); len(got) != 1 || got[0] != "Field code: unique is not enforced until onda migrate has made its index" {
		t.Errorf("missing: %q", got)
	}
	w.d.Own(t, pgtest.Acme, "RESET ROLE; UPDATE pg_class SET reltuples = 200000 WHERE oid = 'acme.contact'::regclass")
	if got := missing(); len(got) != 4 || got[2] != "Field born: a segment that asks for its date reads all contacts until onda migrate has made its index" {
		t.Errorf("missing: %q", got)
	}
	if made, dropped, said := w.ensure(t, pgtest.Acme); made != 4 || dropped != 0 || said != nil {
		t.Errorf("%d made, %d dropped, %q", made, dropped, said)
	}
	if d := cmp.Diff([]string{"born day", "code unique", "created value", "ends value"}, w.indexes(t, pgtest.Acme)); d != "" {
		t.Error(d)
	}
	if got := missing(); got != nil {
		t.Errorf("missing: %q", got)
	}
	if made, dropped, said := w.ensure(t, pgtest.Acme); made+dropped != 0 || said != nil {
		t.Errorf("again: %d made, %d dropped, %q", made, dropped, said)
	}
	if got := w.indexes(t, pgtest.Brava); len(got) > 0 {
		t.Errorf("brava has %q", got)
	}
	// A sweep of the segment reads by them.
	pgtest.In(t, w.db, pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) error {
		env, err := predicate.Load(ctx, tx)
		if err != nil {
			return err
		}
		var stored []byte
		if err := tx.QueryRow(ctx, "SELECT d.spec FROM entity e JOIN document d ON d.id = e.current WHERE e.kind = 'Segment'").Scan(&stored); err != nil {
			return err
		}
		s, err := spec.DecodeAs[*spec.Segment](spec.KindSegment, stored)
		if err != nil {
			return err
		}
		q, err := predicate.Crossing(s.Where, env, env.Now, env.Now.AddDate(0, 0, 2))
		if err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, "SET LOCAL enable_seqscan = off"); err != nil {
			return err
		}
		rows, err := tx.Query(ctx, "EXPLAIN "+q.SQL, q.Args...)
		if err != nil {
			return err
		}
		defer rows.Close()
		var plan strings.Builder
		for rows.Next() {
			var line string
			if err := rows.Scan(&line); err != nil {
				return err
			}
			fmt.Fprintln(&plan, line)
		}
		if strings.Contains(plan.String(), "Seq Scan") {
			t.Errorf("%s", &plan)
		}
		return rows.Err()
	})
	// What is wanted no more goes.
	w.apply(t, pgtest.Acme, "Field", "code", `{"type": "text"}`)
	w.apply(t, pgtest.Acme, "Segment", "trials", `{"where": {"field": "born", "olderThan": "18y"}}`)
	if made, dropped, _ := w.ensure(t, pgtest.Acme); made != 1 || dropped != 4 {
		t.Errorf("%d made, %d dropped", made, dropped)
	}
	if d := cmp.Diff([]string{"born value"}, w.indexes(t, pgtest.Acme)); d != "" {
		t.Error(d)
	}
}

// A tenant can write into its documents whatever it likes: a name is a text, whatever is in it. However many fields are unique, each is; of dates there are not more than a tenant may have.
func TestDocumentsOfATenantThatMeansHarm(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	pgtest.Exec(t, w.db, pgtest.Brava, "INSERT INTO contact (email, fields) VALUES ('a@example.com', '{\"code\": \"1\"}')")
	name := `x' || (SELECT 1/0)::text || '`
	for i := range 20 {
		w.apply(t, pgtest.Brava, "Field", fmt.Sprint(name, i), `{"type": "text", "unique": true}`)
	}
	w.apply(t, pgtest.Brava, "Segment", "trials", `{"where": {"field": "ends", "inNext": "7d"}}`)
	left := []string{"Field ends: a segment that asks for its date reads all contacts, since there are 16 indexes on fields already: ask for fewer dates relative to now"}
	made, _, said := w.ensure(t, pgtest.Brava)
	if d := cmp.Diff(left, said); made != 21 || d != "" {
		t.Errorf("%d made, %s", made, d)
	}
	w.d.Own(t, pgtest.Brava, "RESET ROLE; UPDATE pg_class SET reltuples = 200000 WHERE oid = 'brava.contact'::regclass")
	if d := cmp.Diff(left, w.missing(t, pgtest.Brava)); d != "" {
		t.Error(d)
	}
	pgtest.Exec(t, w.db, pgtest.Brava, "INSERT INTO contact (fields) VALUES (jsonb_build_object($1::text, 'one'))", name+"19")
	twice := w.db.InTenant(t.Context(), pgtest.Brava, func(ctx context.Context, tx *postgres.Tx) error {
		_, err := tx.Exec(ctx, "INSERT INTO contact (fields) VALUES (jsonb_build_object($1::text, 'one'))", name+"19")
		return err
	})
	if twice == nil {
		t.Error("two contacts have one value of the last field")
	}
}

func TestValuesThatSeveralHave(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	pgtest.Exec(t, w.db, pgtest.Acme, `INSERT INTO contact (email, fields) SELECT n || '@example.com', jsonb_build_object('code', 'secret' || n / 2) FROM generate_series(1, 6) n`)
	_, _, said := w.ensure(t, pgtest.Acme)
	want := []string{"Field code: not enforced as unique, since several contacts have the same value (2 such values): give each its own, then run onda migrate"}
	if d := cmp.Diff(want, said); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff([]string{"born day", "created value", "ends value"}, w.indexes(t, pgtest.Acme)); d != "" {
		t.Error(d)
	}
	pgtest.Exec(t, w.db, pgtest.Acme, `UPDATE contact SET fields = jsonb_build_object('code', id)`)
	if made, _, said := w.ensure(t, pgtest.Acme); made != 1 || said != nil {
		t.Errorf("%d made, %q", made, said)
	}
}

// Whoever writes goes on meanwhile; who is killed in the middle leaves what the next one makes anew.
func TestMadeUnderWritesAndKilled(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	insert := func(ctx context.Context, tx *postgres.Tx) error {
		_, err := tx.Exec(ctx, "INSERT INTO contact (fields) VALUES (jsonb_build_object('ends', '2026-01-01T00:00:00Z'))")
		return err
	}
	admin := w.d.Admin(t)
	ended := make(chan error, 1)
	pgtest.In(t, w.db, pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) error {
		if err := insert(ctx, tx); err != nil {
			return err
		}
		go func() {
			_, _, err := fieldindex.Ensure(t.Context(), admin, pgtest.Acme)
			ended <- err
		}()
		// It waits for this transaction; nobody waits for it.
		killer := w.d.DB(t)
		var pid int
		for pid == 0 {
			pid = pgtest.One[int](t, killer, pgtest.Brava, "SELECT coalesce(max(pid), 0) FROM pg_locks WHERE NOT granted AND locktype = 'virtualxid' AND pid IN (SELECT pid FROM pg_stat_activity WHERE datname = current_database())")
		}
		pgtest.In(t, killer, pgtest.Acme, insert)
		w.d.Own(t, pgtest.Acme, fmt.Sprintf("RESET ROLE; SELECT pg_terminate_backend(%d)", pid))
		if err := <-ended; err == nil {
			t.Error("it was not killed")
		}
		return nil
	})
	if got := strings.Join(w.indexes(t, pgtest.Acme), ", "); !strings.Contains(got, "half") {
		t.Errorf("there are %s", got)
	}
	stop, wrote := make(chan struct{}), make(chan int)
	go func() {
		for n := 0; ; n++ {
			select {
			case <-stop:
				wrote <- n
				return
			default:
				if err := w.db.InTenant(context.Background(), pgtest.Acme, insert); err != nil {
					t.Errorf("write meanwhile: %v", err)
				}
			}
		}
	}()
	if made, _, said := w.ensure(t, pgtest.Acme); made != 4 || said != nil {
		t.Errorf("%d made, %q", made, said)
	}
	close(stop)
	n := <-wrote + 2
	pgtest.In(t, w.db, pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) error {
		if _, err := tx.Exec(ctx, "SET LOCAL enable_seqscan = off"); err != nil {
			return err
		}
		var got int
		err := tx.QueryRow(ctx, `SELECT count(*) FROM contact WHERE (fields->>'ends') COLLATE "C" BETWEEN '2026' AND '2027'`).Scan(&got)
		if got != n {
			t.Errorf("the index has %d contacts of %d", got, n)
		}
		return err
	})
}
