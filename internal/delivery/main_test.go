package delivery

import (
	"context"
	"testing"

	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/postgres"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// fixture is a tenant with one marketing and one transactional email, and a run that sends the former.
type fixture struct {
	t      *testing.T
	data   *pgtest.Database
	db     *postgres.DB
	tenant string
	email  int64
	run    int64
}

func setUp(t *testing.T) *fixture {
	t.Helper()
	data := pgtest.New(t)
	f := &fixture{t: t, data: data, db: data.DB(t), tenant: pgtest.Acme}
	f.in(func(ctx context.Context, tx *postgres.Tx) error {
		for _, e := range []struct{ name, spec string }{{"news", `{"topic": "newsletter"}`}, {"password", `{"transactional": true}`}} {
			var entity int32
			if err := tx.QueryRow(ctx, "INSERT INTO entity (kind, name) VALUES ('Email', $1) RETURNING id", e.name).Scan(&entity); err != nil {
				return err
			}
			var doc int64
			if err := tx.QueryRow(ctx, "INSERT INTO document (entity, version, spec, hash) VALUES ($1, 1, $2, '') RETURNING id", entity, e.spec).Scan(&doc); err != nil {
				return err
			}
			if _, err := tx.Exec(ctx, "UPDATE entity SET current = $2 WHERE id = $1", entity, doc); err != nil {
				return err
			}
			if f.email != 0 {
				continue
			}
			f.email = doc
			if err := tx.QueryRow(ctx, "INSERT INTO run (kind, entity, document, state) VALUES ('broadcast', $1, $2, 'running') RETURNING id", entity, doc).Scan(&f.run); err != nil {
				return err
			}
		}
		return nil
	})
	return f
}

func (f *fixture) in(do func(ctx context.Context, tx *postgres.Tx) error) {
	f.t.Helper()
	pgtest.In(f.t, f.db, f.tenant, do)
}

// plan enqueues contacts 1 to n.
func (f *fixture) plan(n int) []Batch {
	f.t.Helper()
	contacts := make([]int64, n)
	for i := range contacts {
		contacts[i] = int64(i + 1)
	}
	var out []Batch
	f.in(func(ctx context.Context, tx *postgres.Tx) (err error) {
		out, err = Enqueue(ctx, tx, Plan{Run: f.run, Step: "send", Email: f.email, Contacts: contacts, Cause: "test"})
		return err
	})
	return out
}
