package predicate_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"pgregory.net/rapid"

	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/predicate"
	"github.com/onda-run/onda/internal/spec"
)

// storedPerson is one whose datetime is in the form in which it is stored: in UTC.
func storedPerson(t *rapid.T) *person {
	c := drawPerson(t)
	s, _ := c.fields["seen"].(string)
	if at, err := time.Parse(time.RFC3339, s); err == nil {
		c.fields["seen"] = at.UTC().Format(time.RFC3339)
	}
	return c
}

// crossing are the contacts that Crossing gives; nil and false where it says that time changes nothing.
func crossing(ctx context.Context, tx *postgres.Tx, p *spec.Predicate, env predicate.Env, from, to time.Time) ([]int64, bool, error) {
	env.First = 3
	q, err := predicate.Crossing(p, env, from, to)
	if err != nil || q.SQL == "" {
		return nil, false, err
	}
	rows, err := tx.Query(ctx, "SELECT DISTINCT contact FROM ("+q.SQL+") x WHERE contact > $1 ORDER BY contact LIMIT $2", append([]any{0, 1000}, q.Args...)...)
	if err != nil {
		return nil, true, err
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	return ids, true, err
}

// Whose answer changes between two moments, by a naive reading, is among those that Crossing gives.
func TestCrossingMissesNobody(t *testing.T) {
	t.Parallel()
	onPeople(t, 10, 15, rapid.Custom(storedPerson), deep(2), func(ctx context.Context, t *rapid.T, tx *postgres.Tx, people []*person, from time.Time, source []byte, p *spec.Predicate) error {
		length := time.Duration(rapid.SampledFrom([]int64{1, 61, 3600, 86400, 3 * 86400, 33 * 86400, 800 * 86400}).Draw(t, "seconds")) * time.Second
		to := from.Add(length)
		ids, _, err := crossing(ctx, tx, p, predicate.Env{Fields: fieldTypes(), Zone: zone()}, from, to)
		if err != nil {
			return fmt.Errorf("%s: %w", source, err)
		}
		for _, c := range people {
			was := (naive{from, zone()}).eval(p, c)
			for i := range 8 {
				at := from.Add(length * time.Duration(i+1) / 8)
				if (naive{at, zone()}).eval(p, c) != was && !slices.Contains(ids, c.id) {
					return fmt.Errorf("%s: the answer for contact %d is %v at %s and not at %s, and between %s and %s no bound is said to pass it", source, c.id, was, from, at, from, to)
				}
			}
		}
		return nil
	})
}

func TestCrossing(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t).DB(t)
	pgtest.Exec(t, db, "acme", `INSERT INTO contact (fields, created_at) VALUES ('{"birthday": "1990-12-02", "seen": "2026-11-20T10:00:00Z"}', '2026-11-24T12:00:00Z'), ('{}', '2026-01-01T12:00:00Z')`)
	pgtest.Exec(t, db, "acme", `INSERT INTO fact (kind, name, contact, at) VALUES ('email.clicked', 'welcome', 1, '2026-11-24T10:00:00Z')`)
	pgtest.Exec(t, db, "acme", `INSERT INTO fact (kind, name, contact, at, data) VALUES ('event.tracked', 'order.placed', 2, '2026-11-24T10:00:00Z', '{"due": "2026-12-02"}'),
		('event.tracked', 'order.placed', 1, '2026-11-24T10:00:00Z', '{"due": "2026-10-02"}')`)
	pgtest.Exec(t, db, "acme", `INSERT INTO suppression (hash, reason, until, contact) VALUES ('', 'bounce', '2026-11-26T00:00:00Z', 1)`)
	for _, c := range []struct{ source, from, to, want string }{
		{`{field: plan, is: x}`, "2026-11-24T00:00:00Z", "2036-11-24T00:00:00Z", "nothing"},
		{`{event: email.clicked}`, "2026-11-24T00:00:00Z", "2036-11-24T00:00:00Z", "nothing"},
		{`{field: birthday, before: 2026-01-01}`, "2026-11-24T00:00:00Z", "2036-11-24T00:00:00Z", "nothing"},
		{`{field: birthday, before: today}`, "2026-11-24T00:00:00Z", "2026-11-24T01:00:00Z", "nothing"},
		{`{field: birthday, before: today}`, "2026-11-24T00:00:00Z", "2026-11-25T01:00:00Z", "[]"},
		{`{field: birthday, yearly: {inNext: 7d}}`, "2026-11-24T12:00:00Z", "2026-11-25T12:00:00Z", "[1]"},
		{`{field: birthday, yearly: {inNext: 7d}}`, "2026-11-25T12:00:00Z", "2026-11-26T12:00:00Z", "[]"},
		{`{field: seen, inLast: 7d}`, "2026-11-27T09:00:00Z", "2026-11-27T10:00:01Z", "[1]"},
		{`{field: seen, inLast: 7d}`, "2026-11-27T10:00:02Z", "2026-11-27T11:00:00Z", "[]"},
		{`{field: created, inLast: 1d}`, "2026-11-25T11:00:00Z", "2026-11-25T13:00:00Z", "[1]"},
		{`{not: {event: email.clicked, of: welcome, within: 2d}}`, "2026-11-26T09:59:00Z", "2026-11-26T10:01:00Z", "[1]"},
		{`{event: email.clicked, of: offer, within: 2d}`, "2026-11-26T09:59:00Z", "2026-11-26T10:01:00Z", "[]"},
		{`{event: email.clicked, within: 2d}`, "2026-11-26T10:01:00Z", "2026-11-26T10:02:00Z", "[]"},
		{`{event: order.placed, where: {due: {yearly: {inNext: 7d}}}}`, "2026-11-24T12:00:00Z", "2026-11-24T22:59:59Z", "nothing"},
		{`{event: order.placed, where: {due: {yearly: {inNext: 7d}}}}`, "2026-11-24T12:00:00Z", "2026-11-25T12:00:00Z", "[2]"},
		{`{event: order.placed, where: {due: {yearly: {inNext: 7d}}}, between: [2026-11-01, 2026-11-24]}`, "2026-11-24T12:00:00Z", "2026-11-25T12:00:00Z", "[2]"},
		{`{event: order.placed, where: {due: {yearly: {inNext: 7d}}}, between: [2026-11-01, 2026-11-20]}`, "2026-11-24T12:00:00Z", "2026-11-25T12:00:00Z", "[]"},
		{`{event: order.placed, where: {due: {yearly: {inNext: 7d}}}, within: 30d}`, "2026-11-24T12:00:00Z", "2026-11-25T12:00:00Z", "[2]"},
		{`{event: order.placed, where: {due: {yearly: {inNext: 7d}}}, within: 1h}`, "2026-11-24T12:00:00Z", "2026-11-25T12:00:00Z", "[]"},
		{`{event: order.placed, where: {due: {inNext: 7d}}, within: 30d}`, "2026-11-24T12:00:00Z", "2026-11-25T12:00:00Z", "[2]"},
		{`{event: order.placed, where: {due: {inNext: 7d}}, between: [2026-11-01, 2026-11-20]}`, "2026-11-24T12:00:00Z", "2026-11-25T12:00:00Z", "[]"},
		{`{any: [{reachable: news}, {tag: vip}]}`, "2026-11-25T23:59:00Z", "2026-11-26T00:01:00Z", "[1]"},
		{`{reachable: news}`, "2026-11-26T00:01:00Z", "2026-11-26T00:02:00Z", "[]"},
	} {
		p, err := spec.ParsePredicate(c.source)
		if err != nil {
			t.Fatal(err)
		}
		at := func(s string) time.Time {
			v, err := time.Parse(time.RFC3339, s)
			if err != nil {
				t.Fatal(err)
			}
			return v
		}
		pgtest.In(t, db, "acme", func(ctx context.Context, tx *postgres.Tx) error {
			ids, some, err := crossing(ctx, tx, p, predicate.Env{Fields: fieldTypes(), Zone: zone()}, at(c.from), at(c.to))
			if err != nil {
				return fmt.Errorf("%s: %w", c.source, err)
			}
			got := fmt.Sprint(ids)
			if !some {
				got = "nothing"
			}
			if got != c.want {
				t.Errorf("%s from %s to %s: %s, want %s", c.source, c.from, c.to, got, c.want)
			}
			return nil
		})
	}
}

// A scope changes no answer for those in it.
func TestScopeChangesNothing(t *testing.T) {
	t.Parallel()
	onPeople(t, 12, 15, rapid.Custom(drawPerson), deep(3), func(ctx context.Context, t *rapid.T, tx *postgres.Tx, people []*person, now time.Time, source []byte, p *spec.Predicate) error {
		lo := rapid.Int64Range(0, 6).Draw(t, "lo")
		hi := rapid.Int64Range(lo, 13).Draw(t, "hi")
		list := rapid.SliceOfN(rapid.Int64Range(1, 13), 0, 4).Draw(t, "list")
		ask := func(scope, where string, args ...any) ([]int64, error) {
			q, err := predicate.Compile(p, predicate.Env{Fields: fieldTypes(), Zone: zone(), Now: now, First: len(args) + 1, Scope: scope})
			if err != nil {
				return nil, err
			}
			rows, err := tx.Query(ctx, "SELECT c.id FROM contact c WHERE c.id "+where+" AND "+q.SQL+" ORDER BY c.id", append(args, q.Args...)...)
			if err != nil {
				return nil, err
			}
			ids, err := pgx.CollectRows(rows, pgx.RowTo[int64])
			if err != nil {
				return nil, fmt.Errorf("%s: %w", q.SQL, err)
			}
			return ids, nil
		}
		for _, s := range []struct {
			where string
			args  []any
		}{{"BETWEEN $1 AND $2", []any{lo, hi}}, {"= ANY ($1::bigint[])", []any{list}}} {
			want, err := ask("", s.where, s.args...)
			if err != nil {
				return fmt.Errorf("%s: %w", source, err)
			}
			got, err := ask(s.where, s.where, s.args...)
			if err != nil {
				return fmt.Errorf("%s: %w", source, err)
			}
			if len(got)+len(want) > 0 && !cmp.Equal(got, want) {
				return fmt.Errorf("%s of those %s %v: %v with a scope, %v without", source, s.where, s.args, got, want)
			}
		}
		return nil
	})
}

// Of a property that is compared by the day of the year, only what counts at one of the moments is read, once a day.
func TestCrossingOfAPropertyReadsByTime(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t).DB(t)
	from := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	pgtest.In(t, db, "acme", func(ctx context.Context, tx *postgres.Tx) error {
		if _, err := tx.Exec(ctx, `INSERT INTO fact (kind, name, contact, data, at) SELECT 'event.tracked', 'order.placed', n, jsonb_build_object('due', '2026-12-02'), $1::timestamptz - n * interval '10 minutes'
			FROM generate_series(1, 40000) n`, from); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, "SELECT update_statistics()"); err != nil {
			return err
		}
		p, err := spec.ParsePredicate(`{event: order.placed, where: {due: {yearly: {inNext: 7d}}}, within: 2d}`)
		if err != nil {
			return err
		}
		q, err := predicate.Crossing(p, predicate.Env{Fields: fieldTypes(), Zone: zone()}, from, from.Add(24*time.Hour))
		if err != nil {
			return err
		}
		rows, err := tx.Query(ctx, "EXPLAIN (ANALYZE, TIMING OFF, COSTS OFF) "+q.SQL, q.Args...)
		if err != nil {
			return err
		}
		lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			return err
		}
		if plan := strings.Join(lines, "\n"); strings.Contains(plan, "Seq Scan on fact") || !strings.Contains(plan, "fact_") {
			t.Errorf("all facts are read:\n%s", plan)
		}
		return nil
	})
}
