package main

import (
	"context"
	"errors"
	"fmt"
)

const (
	contactCount = 200_000

	// makeContacts makes them; every third pays.
	makeContacts = `INSERT INTO contact (email, fields) SELECT 'p' || n || '@example.com', jsonb_build_object('plan', CASE WHEN n % 3 = 0 THEN 'paid' ELSE 'free' END,
		'level', n % 100, 'first_name', 'Ada', 'last_name', 'Lovelace', 'city', 'London') FROM generate_series(1, 200000) n`
)

// prepareSegment measures how long a segment takes to be computed in full, with the facts of who joined. The reference is one plain INSERT ... SELECT of the same
// members into a table like theirs.
func prepareSegment(ctx context.Context, l *lab) (r rounds, err error) {
	err = l.apply(ctx, "apiVersion: onda/v1\nkind: Field\nmetadata: {name: plan}\nspec: {type: text}\n---\napiVersion: onda/v1\nkind: Field\nmetadata: {name: level}\nspec: {type: number}\n")
	if err != nil {
		return r, err
	}
	if err := errors.Join(l.exec(ctx, makeContacts), l.own(ctx, "CREATE TABLE plain_member (LIKE member INCLUDING ALL)")); err != nil {
		return r, err
	}
	if err := l.refresh(ctx); err != nil {
		return r, err
	}
	if err := l.start(ctx, "segment"); err != nil {
		return r, err
	}
	round, members := 0, int64(0)
	r.ours = func(ctx context.Context) (float64, error) {
		round++ // a segment of its own, so that all its members join
		if err := l.own(ctx, "TRUNCATE member"); err != nil {
			return 0, err
		}
		err := l.apply(ctx, fmt.Sprintf("apiVersion: onda/v1\nkind: Segment\nmetadata: {name: paying%d}\nspec: {where: {all: [{field: plan, is: paid}, {field: level, gte: 10}]}}\n", round))
		if err != nil {
			return 0, err
		}
		took, err := l.side.do(task{Until: "SELECT count(*) > 0 AND bool_and(s.document = e.current AND s.building IS NULL) FROM entity e LEFT JOIN segment s ON s.entity = e.id WHERE e.kind = 'Segment'"})
		if err != nil {
			return 0, err
		}
		members, err = l.one(ctx, "SELECT count(*) FROM member")
		return contactCount / took.Seconds(), err
	}
	r.reference = func(ctx context.Context) (float64, error) {
		if err := l.own(ctx, "TRUNCATE plain_member"); err != nil {
			return 0, err
		}
		n, took, err := l.timed(ctx, `INSERT INTO plain_member (segment, contact) SELECT 1, id FROM contact
			WHERE fields ->> 'plan' = 'paid' AND (fields ->> 'level')::numeric >= 10 AND erased_at IS NULL AND merged_into IS NULL`)
		if err == nil && n != members {
			err = fmt.Errorf("it has %d members, ours %d", n, members)
		}
		return contactCount / took.Seconds(), err
	}
	return r, nil
}
