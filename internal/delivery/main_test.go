package delivery

import (
	"context"
	"testing"
	"time"

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
		for _, e := range []struct{ name, spec string }{{"news", `{"spec": {"topic": "newsletter"}}`}, {"password", `{"spec": {"transactional": true}}`}} {
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

// terms are those of the tests: a lease ends when a test says so, with expire.
func terms() Terms { return Terms{Lease: time.Minute, MessageLimit: 30 * time.Second} }

// take leases the next batch. unknown resend is as said.
func (f *fixture) take(resend bool) *Lease {
	f.t.Helper()
	var l *Lease
	started := time.Now()
	f.in(func(ctx context.Context, tx *postgres.Tx) (err error) {
		l, err = Take(ctx, tx, "send", Bulk, terms(), started, func(context.Context, *postgres.Tx, int64) (bool, error) { return resend, nil })
		return err
	})
	return l
}

// expire ends the lease of a batch, and the time for its last message, as if its holder had been silent for minutes.
func (f *fixture) expire(batch int64) {
	f.t.Helper()
	pgtest.Exec(f.t, f.db, f.tenant, "UPDATE batch SET lease_until = now() - interval '10 min' WHERE id = $1", batch)
}

func (f *fixture) advance(l *Lease, hi int) (open []Recipient, ok bool) {
	f.t.Helper()
	started := time.Now()
	f.in(func(ctx context.Context, tx *postgres.Tx) (err error) {
		open, ok, err = l.Advance(ctx, tx, hi)
		return err
	})
	if ok {
		l.Moved(hi, started)
	}
	return open, ok
}

func (f *fixture) record(outcomes ...Outcome) (changed []Outcome) {
	f.t.Helper()
	f.in(func(ctx context.Context, tx *postgres.Tx) (err error) {
		changed, err = Record(ctx, tx, "send", outcomes...)
		return err
	})
	return changed
}

func (f *fixture) close(l *Lease) (closed bool) {
	f.t.Helper()
	f.in(func(ctx context.Context, tx *postgres.Tx) (err error) {
		closed, err = l.Close(ctx, tx, "send")
		return err
	})
	return closed
}

// states gives the state of each delivery of a batch, "" for queued.
func (f *fixture) states(b Batch) []State {
	f.t.Helper()
	return pgtest.All[State](f.t, f.db, f.tenant, `SELECT coalesce(d.state, '') FROM generate_series(1, $2::int) n LEFT JOIN delivery d ON d.id = $1::bigint << 9 | n ORDER BY n`,
		b.ID, len(b.Contacts))
}

// counts gives the counts of a batch's row: sent, deferred, failed, suppressed, unknown.
func (f *fixture) counts(batch int64) []int32 {
	f.t.Helper()
	return pgtest.One[[]int32](f.t, f.db, f.tenant, "SELECT ARRAY[sent, deferred, failed, suppressed, unknown] FROM batch WHERE id = $1", batch)
}
