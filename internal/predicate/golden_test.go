package predicate_test

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"

	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/predicate"
	"github.com/onda-run/onda/internal/spec"
)

var update = flag.Bool("update", false, "write the golden files anew")

// The SQL of each kind of test, for people to read: with a scope, as segments ask.
func TestSQL(t *testing.T) {
	t.Parallel()
	var b strings.Builder
	for _, source := range []string{
		`{field: plan, is: paid}`,
		`{field: plan, isNot: paid}`,
		`{field: plan, in: [paid, trial]}`,
		`{field: plan, contains: ai}`,
		`{field: plan, matches: "^p"}`,
		`{field: plan, exists: false}`,
		`{field: level, gte: 10}`,
		`{field: level, in: [1, 2.5]}`,
		`{field: vip, is: true}`,
		`{field: birthday, is: today}`,
		`{field: birthday, before: 1990-01-01}`,
		`{field: birthday, yearly: {inNext: 7d}}`,
		`{field: seen, inLast: 10d}`,
		`{field: created, olderThan: 90d}`,
		`{field: likes, hasAny: [ski, sail]}`,
		`{field: tags, hasAll: [vip, web]}`,
		`{field: score.fit, gt: 5}`,
		`{tag: vip}`,
		`{stage: hot}`,
		`{topic: news, state: never}`,
		`{reachable: news}`,
		`{segment: partners}`,
		`{campaign: onboarding, state: active}`,
		`{event: email.clicked, of: welcome, within: 30d}`,
		`{not: {event: email.clicked}}`,
		`{event: email.sent, of: welcome, count: 0}`,
		`{event: order.placed, where: {total: {gte: 100}}, count: {gte: 2}}`,
		`{event: tag.changed, within: 7d, count: {lt: 3}}`,
		`{sample: 10, seed: a}`,
		`{not: {any: [{field: plan, is: paid}, {all: [{tag: vip}, {not: {segment: partners}}]}]}}`,
	} {
		p, err := spec.ParsePredicate(source)
		if err != nil {
			t.Fatal(err)
		}
		q, err := predicate.Compile(p, predicate.Env{Fields: fieldTypes(), Zone: zone(), Now: time.Date(2026, 11, 24, 17, 0, 0, 0, zone()), First: 3, Scope: "BETWEEN $1 AND $2"})
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, "%s\n\t%s\n", source, q.SQL)
		for i, a := range q.Args {
			if at, is := a.(time.Time); is {
				a = at.UTC().Format(time.RFC3339)
			}
			fmt.Fprintf(&b, "\t$%d = %v\n", i+3, a)
		}
	}
	file := filepath.Join("testdata", "sql.golden")
	if *update {
		if err := os.WriteFile(file, []byte(b.String()), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), b.String()); diff != "" {
		t.Errorf("the SQL is another (-want +got); run with -update if that is meant:\n%s", diff)
	}
}

// Segments of rising difficulty read no table of what happened from end to end, for a range of contacts and for a list.
func TestPlansReadByIndex(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	db := d.DB(t)
	pgtest.In(t, db, "acme", func(ctx context.Context, tx *postgres.Tx) error {
		for _, sql := range []string{
			"INSERT INTO contact (email, fields) SELECT 'p' || n || '@example.com', jsonb_build_object('plan', n % 3, 'level', n % 100) FROM generate_series(1, 4000) n",
			"INSERT INTO subscription (contact, purpose, state, consent, at) SELECT id, 'news', 'granted', 0, now() FROM contact",
			`INSERT INTO fact (kind, name, contact, data, at) SELECT (ARRAY['email.opened', 'email.clicked', 'event.tracked'])[1 + n % 3], CASE n % 3 WHEN 2 THEN 'order.placed' ELSE '' END, 1 + n * 7 % 4000,
				'{"hit": 1, "total": 150}', now() - n * interval '10 minutes' FROM generate_series(1, 40000) n`,
			"SELECT update_statistics()",
		} {
			if _, err := tx.Exec(ctx, sql); err != nil {
				return err
			}
		}
		return nil
	})
	list := make([]int64, 100)
	for i := range list {
		list[i] = int64(i*39 + 1)
	}
	for _, source := range []string{
		`{all: [{field: plan, is: paid}, {field: level, gte: 10}]}`,
		`{event: email.clicked, within: 30d}`,
		`{all: [{reachable: news}, {not: {event: email.opened, within: 90d}}]}`,
		`{event: order.placed, within: 365d, where: {total: {gte: 100}}, count: {gte: 2}}`,
		`{any: [{tag: vip}, {not: {event: order.placed, count: {gte: 2}}}, {event: email.clicked, count: {lt: 3}}]}`,
		`{all: [{segment: partners}, {not: {any: [{event: email.opened, within: 7d}, {all: [{event: order.placed}, {not: {tag: vip}}]}]}}]}`,
	} {
		p, err := spec.ParsePredicate(source)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range []struct {
			scope string
			args  []any
		}{{"BETWEEN $1 AND $2", []any{101, 300}}, {"= ANY ($1::bigint[])", []any{list}}} {
			pgtest.In(t, db, "acme", func(ctx context.Context, tx *postgres.Tx) error {
				env, err := predicate.Load(ctx, tx)
				if err != nil {
					return err
				}
				env.Fields, env.First, env.Scope = fieldTypes(), len(s.args)+1, s.scope
				q, err := predicate.Compile(p, env)
				if err != nil {
					return err
				}
				rows, err := tx.Query(ctx, "EXPLAIN SELECT c.id FROM contact c WHERE c.id "+s.scope+" AND "+q.SQL, append(s.args, q.Args...)...)
				if err != nil {
					return err
				}
				lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
				if err != nil {
					return err
				}
				for _, line := range lines {
					for _, table := range []string{"fact", "contact", "subscription"} {
						if strings.Contains(line, "Seq Scan on "+table) {
							t.Errorf("%s, %s:\n%s", source, s.scope, strings.Join(lines, "\n"))
							return nil
						}
					}
				}
				return nil
			})
		}
	}
}
