package send

import (
	"context"
	"testing"
	"time"

	"go.opentelemetry.io/otel/metric/noop"
	"go.uber.org/zap/zaptest"

	"github.com/onda-run/onda/internal/delivery"
	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/postgres"
)

func TestALockedTenantStopsNobodyElsesOutcomes(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t).DB(t)
	var ids []int64
	for _, tenant := range []string{pgtest.Acme, pgtest.Brava} {
		ids = append(ids, delivery.ID(pgtest.One[int64](t, db, tenant, `WITH e AS (INSERT INTO entity (kind, name) VALUES ('Email', 'news') RETURNING id),
			d AS (INSERT INTO document (entity, version, spec, hash) SELECT id, 1, '{}', '' FROM e RETURNING id, entity),
			r AS (INSERT INTO run (kind, entity, document, state) SELECT 'broadcast', entity, id, 'running' FROM d RETURNING id, document)
			INSERT INTO batch (run, email, contacts) SELECT id, document, ARRAY[1]::bigint[] FROM r RETURNING id`), 1))
	}
	counter, err := noop.Meter{}.Int64Counter("mails")
	if err != nil {
		t.Fatal(err)
	}
	r := newRecorder(db, zaptest.NewLogger(t), "send", counter)
	r.run()
	done := map[string]chan int{pgtest.Acme: make(chan int, 1), pgtest.Brava: make(chan int, 1)}
	add := func(tenant string, id int64) {
		r.add(entry{tenant: tenant, outcome: delivery.Outcome{Delivery: id, Contact: 1, State: delivery.Sent}, done: done[tenant]})
	}
	pgtest.In(t, db, pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) error {
		if _, err := tx.Exec(ctx, "LOCK TABLE delivery IN ACCESS EXCLUSIVE MODE"); err != nil {
			return err
		}
		add(pgtest.Acme, ids[0])
		add(pgtest.Brava, ids[1])
		<-done[pgtest.Brava]
		return nil
	})
	<-done[pgtest.Acme]
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := r.close(ctx); err != nil {
		t.Error(err)
	}
	for i, tenant := range []string{pgtest.Acme, pgtest.Brava} {
		if got := pgtest.One[string](t, db, tenant, "SELECT state FROM delivery WHERE id = $1", ids[i]); got != "sent" {
			t.Errorf("%s: %s", tenant, got)
		}
	}
}
