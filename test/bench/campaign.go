package main

import (
	"context"
	"fmt"

	"github.com/onda-run/onda/internal/campaign"
	"github.com/onda-run/onda/internal/postgres"
)

const (
	contactCount = 200_000

	// makeContacts makes them; every third pays.
	makeContacts = `INSERT INTO contact (email, fields) SELECT 'p' || n || '@example.com', jsonb_build_object('plan', CASE WHEN n % 3 = 0 THEN 'paid' ELSE 'free' END,
		'level', n % 100, 'first_name', 'Ada', 'last_name', 'Lovelace', 'city', 'London') FROM generate_series(1, 200000) n`
)

// prepareCampaign measures the planning of a broadcast. The reference is one INSERT ... SELECT of a row for each recipient.
func prepareCampaign(ctx context.Context, l *lab) (r rounds, err error) {
	err = l.apply(ctx, mailDocuments()+`
---
apiVersion: onda/v1
kind: Segment
metadata: {name: everyone}
spec: {where: {field: email, exists: true}}
---
apiVersion: onda/v1
kind: Broadcast
metadata: {name: spring}
spec: {email: news, to: {segment: everyone}}
`)
	if err != nil {
		return r, err
	}
	err = l.exec(ctx, makeContacts,
		`INSERT INTO subscription (contact, purpose, state, consent, at) SELECT id, 'news', 'granted', 0, onda.now() FROM contact`,
		`INSERT INTO member (segment, contact) SELECT e.id, c.id FROM contact c, entity e WHERE e.kind = 'Segment'`)
	if err == nil {
		err = l.own(ctx, "CREATE TABLE plain_recipient (run bigint NOT NULL, contact bigint NOT NULL, PRIMARY KEY (run, contact))")
	}
	if err != nil {
		return r, err
	}
	if err := l.refresh(ctx); err != nil {
		return r, err
	}
	if err := l.start(ctx, "campaign"); err != nil {
		return r, err
	}
	r.ours = func(ctx context.Context) (float64, error) {
		var run campaign.Run
		err := l.db.InTenant(ctx, tenant, func(ctx context.Context, tx *postgres.Tx) (err error) {
			run, err = campaign.Start(ctx, tx, "spring", campaign.Options{Again: true})
			return err
		})
		if err != nil {
			return 0, err
		}
		took, err := l.side.do(task{
			Until: "SELECT planned FROM run ORDER BY id DESC LIMIT 1",
			// No more is planned ahead than is being sent; nobody sends here.
			Between: "UPDATE batch SET state = 'closed' WHERE state = 'open'",
		})
		if err != nil {
			return 0, err
		}
		n, err := l.one(ctx, "SELECT coalesce(sum(cardinality(contacts)), 0)::bigint FROM batch WHERE run = $1", run.ID)
		if err == nil && n != contactCount {
			err = fmt.Errorf("%d of %d were planned", n, contactCount)
		}
		if err == nil {
			err = l.exec(ctx, "UPDATE batch SET state = 'closed' WHERE state = 'open'", "UPDATE run SET state = 'completed' WHERE state = 'running'")
		}
		return contactCount / took.Seconds(), err
	}
	r.reference = func(ctx context.Context) (float64, error) {
		if err := l.own(ctx, "TRUNCATE plain_recipient"); err != nil {
			return 0, err
		}
		n, took, err := l.timed(ctx, "INSERT INTO plain_recipient (run, contact) SELECT 1, m.contact FROM member m JOIN entity e ON e.id = m.segment WHERE e.kind = 'Segment' AND m.kept <> 'out'")
		if err == nil && n != contactCount {
			err = fmt.Errorf("it has %d of %d", n, contactCount)
		}
		return contactCount / took.Seconds(), err
	}
	return r, nil
}
