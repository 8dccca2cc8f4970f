package predicate_test

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/predicate"
	"github.com/onda-run/onda/internal/spec"
)

// What is as long, as deep and as evil as the language lets it be is answered, and what is more is refused with a reason.
func TestLimits(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t).DB(t)
	text, err := json.Marshal(map[string]any{"plan": strings.Repeat("a", 4095) + "!", "seen": "2026-11-20T10:00:00Z", "level": "12", "likes": []string{"ski", "W17"}})
	if err != nil {
		t.Fatal(err)
	}
	pgtest.In(t, db, "acme", func(ctx context.Context, tx *postgres.Tx) error {
		_, err := tx.Exec(ctx, "INSERT INTO contact (fields, tags) SELECT $1::jsonb, '{other,W9}' FROM generate_series(1, 50)", text)
		return err
	})
	var words, days, numbers strings.Builder
	for i := range 9_900 { // of 10,000 that a document may have
		fmt.Fprintf(&words, "w%d, ", i)
		fmt.Fprintf(&days, "%s, ", time.Date(1900, 1, 1+2*i, 0, 0, 0, 0, time.UTC).Format(time.DateOnly))
		fmt.Fprintf(&numbers, "%d.50, ", i)
	}
	deep := strings.Repeat("{not: {all: [", 31) + "{field: plan, exists: false}" + strings.Repeat("]}}", 31)
	for source, want := range map[string]int{
		`{field: seen, inLast: 100y}`:                     50,
		`{field: seen, olderThan: 100y}`:                  0,
		`{field: seen, inNext: 1200mo}`:                   0,
		`{field: seen, yearly: {inNext: 100y}}`:           50,
		`{event: email.clicked, within: 100y}`:            0,
		`{event: order.placed, within: 36600d, count: 0}`: 50,
		deep: 50,
		"{field: plan, in: [" + words.String() + "x]}":                                0,
		"{field: plan, notIn: [" + words.String() + "x]}":                             50,
		"{field: plan, in: [" + words.String() + strings.Repeat("A", 4095) + "!]}":    50,
		"{field: level, in: [" + numbers.String() + "12]}":                            0,
		"{field: score, in: [" + numbers.String() + "0.0]}":                           50,
		"{field: tags, hasAny: [" + words.String() + "x]}":                            50,
		"{field: tags, hasNone: [" + words.String() + "x]}":                           0,
		"{field: tags, hasAll: [" + words.String() + "x]}":                            0,
		"{field: likes, hasAny: [" + words.String() + "x]}":                           50,
		"{field: birthday, in: [" + days.String() + "2026-11-24]}":                    0,
		"{field: seen, in: [" + days.String() + "2026-11-20]}":                        50,
		"{field: seen, notIn: [" + days.String() + "2026-11-24]}":                     50,
		"{event: order.placed, count: 0, where: {x: {in: [" + words.String() + "]}}}": 50,
		`{field: level, gt: 5}`:                                                       0, // a text is no number
		`{field: level, lt: 5}`:                                                       0,
		`{field: level, is: 12}`:                                                      0,
		`{field: plan, matches: "^(a|aa)+$"}`:                                         0, // these take an engine that goes back exponential time
		`{field: plan, matches: "^(a+)+$"}`:                                           0,
		`{field: plan, matches: "(.*)*x"}`:                                            0,
		`{field: plan, matches: "(?:a?){60}a{60}$"}`:                                  0,
		`{field: plan, matches: "(a|b|c|d|e|f)*[^a]{20}$"}`:                           0,
		`{field: plan, matches: "a.*a.*a.*a.*a.*a.*a.*a.*a.*a.*a.*a.*a.*a.*$"}`:       50,
	} {
		p, err := spec.ParsePredicate(source)
		if err != nil {
			t.Errorf("%.80s: %v", source, err)
			continue
		}
		pgtest.In(t, db, "acme", func(ctx context.Context, tx *postgres.Tx) error {
			if _, err := tx.Exec(ctx, "SET LOCAL statement_timeout = '5s'"); err != nil { // as segments have it
				return err
			}
			q, err := predicate.Compile(p, predicate.Env{Fields: fieldTypes(), Zone: zone(), Now: time.Date(2026, 11, 24, 17, 0, 0, 0, zone())})
			if err != nil {
				return fmt.Errorf("%.80s: %w", source, err)
			}
			began := time.Now()
			rows, err := tx.Query(ctx, "SELECT c.id FROM contact c WHERE "+q.SQL, q.Args...)
			if err != nil {
				return err
			}
			ids, err := pgx.CollectRows(rows, pgx.RowTo[int64])
			if err != nil {
				return fmt.Errorf("%.80s: %w", source, err)
			}
			if strings.Contains(source, "matches") {
				t.Logf("%s: %s a text", source, time.Since(began)/50)
			}
			if len(ids) != want {
				t.Errorf("%.80s: %d, want %d", source, len(ids), want)
			}
			return nil
		})
	}
	// Of a few values each is compared by itself, and many such lists are more than a statement takes.
	var lists spec.Predicate
	for i := range 500 {
		var some strings.Builder
		for j := range 20 {
			fmt.Fprintf(&some, "%s, ", time.Date(1900, 1, 1+20*i+j, 0, 0, 0, 0, time.UTC).Format(time.DateOnly))
		}
		p, err := spec.ParsePredicate("{field: seen, in: [" + strings.TrimSuffix(some.String(), ", ") + "]}")
		if err != nil {
			t.Fatal(err)
		}
		lists.Any = append(lists.Any, *p)
	}
	if _, err := predicate.Compile(&lists, predicate.Env{Fields: fieldTypes(), Zone: zone()}); err == nil || !strings.Contains(err.Error(), "values, of at most") {
		t.Errorf("500 lists of 20 days: %v", err)
	}
	for source, want := range map[string]string{
		`{event: order.placed, within: 0d}`:                                   "must be longer than 0d",
		`{field: seen, inLast: 0d}`:                                           "must be longer than 0d",
		`{field: birthday, yearly: {inNext: 0d}}`:                             "must be longer than 0d",
		`{field: seen, inLast: 101y}`:                                         "longer than 100 years",
		strings.Repeat("{not: ", 200) + "{tag: x}" + strings.Repeat("}", 200): "deep",
		`{field: plan, matches: "(a"}`:                                        "not a regular expression",
		`{field: plan, matches: "` + strings.Repeat("a", 201) + `"}`:          "a regular expression",
	} {
		if _, err := spec.ParsePredicate(source); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.80s: %v, want %q", source, err, want)
		}
	}
}

// Lists of thousands are looked up, by a hash that is made once for all contacts: gone through for each contact, they take seconds for some thousands of these.
func TestLongListsAreHashed(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t).DB(t)
	pgtest.Exec(t, db, "acme", `INSERT INTO contact (created_at, fields, tags) SELECT '2026-11-24T12:00:00Z', jsonb_build_object('level', n, 'birthday', '1990-12-02', 'plan', 'p' || n,
		'likes', ARRAY['l' || n], 'seen', to_char('2000-01-01'::date + n, 'YYYY-MM-DD"T12:00:00Z"')), ARRAY['T' || n, 'u'] FROM generate_series(1, 3000) n`)
	list := func(format string) string {
		var b strings.Builder
		for i := range 9_000 {
			fmt.Fprintf(&b, format, i*2)
		}
		return strings.TrimSuffix(b.String(), ", ")
	}
	var days []string
	for i := range 9_000 {
		days = append(days, time.Date(1980, 1, 2+i*2, 0, 0, 0, 0, time.UTC).Format(time.DateOnly))
	}
	for _, c := range []struct {
		source string
		want   int64
	}{
		{"{field: plan, in: [" + list("p%d, ") + "]}", 1500},
		{"{field: plan, notIn: [" + list("p%d, ") + "]}", 1500},
		{"{field: level, in: [" + list("%d.0, ") + "]}", 1500},
		{"{field: level, notIn: [" + list("%d, ") + "]}", 1500},
		{"{field: score, in: [" + list("%d, ") + "]}", 3000},
		{"{field: tags, hasAny: [" + list("t%d, ") + "]}", 1500},
		{"{not: {field: tags, hasAny: [" + list("t%d, ") + "]}}", 1500},
		{"{field: tags, hasNone: [" + list("t%d, ") + "]}", 1500},
		{"{field: tags, hasAll: [" + list("t%d, ") + "]}", 0},
		{"{field: likes, hasAny: [" + list("L%d, ") + "]}", 1500},
		{"{field: likes, hasAll: [" + list("L%d, ") + "]}", 0},
		{"{field: birthday, in: [" + strings.Join(days, ", ") + "]}", 0},
		{"{field: birthday, notIn: [" + strings.Join(days, ", ") + "]}", 3000},
		{"{field: created, in: [2026-11-24, " + strings.Join(days, ", ") + "]}", 3000},
		{"{field: seen, in: [" + strings.Join(days, ", ") + "]}", 1500},
		{"{field: seen, notIn: [" + strings.Join(days, ", ") + "]}", 1500},
	} {
		p, err := spec.ParsePredicate(c.source)
		if err != nil {
			t.Fatal(err)
		}
		ids := make([]int64, 3000)
		for i := range ids {
			ids[i] = int64(i + 1)
		}
		pgtest.In(t, db, "acme", func(ctx context.Context, tx *postgres.Tx) error {
			for _, scope := range []string{"", "= ANY ($1::bigint[])"} {
				q, err := predicate.Compile(p, predicate.Env{Fields: fieldTypes(), Zone: zone(), Now: time.Date(2026, 11, 24, 17, 0, 0, 0, zone()), First: 2, Scope: scope})
				if err != nil {
					return fmt.Errorf("%.60s: %w", c.source, err)
				}
				if len(q.Args) > 5 {
					t.Errorf("%.60s: %d parameters", c.source, len(q.Args))
				}
				args := append([]any{ids}, q.Args...)
				var n int64
				if err := tx.QueryRow(ctx, "SELECT count(*) FROM contact c WHERE c.id = ANY ($1::bigint[]) AND "+q.SQL, args...).Scan(&n); err != nil {
					return fmt.Errorf("%.60s: %w", c.source, err)
				}
				if n != c.want {
					t.Errorf("%.60s: %d contacts, want %d", c.source, n, c.want)
				}
				rows, err := tx.Query(ctx, "EXPLAIN SELECT count(*) FROM contact c WHERE c.id = ANY ($1::bigint[]) AND "+q.SQL, args...)
				if err != nil {
					return err
				}
				lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
				if err != nil {
					return err
				}
				if plan := strings.Join(lines, "\n"); !strings.Contains(plan, "hashed SubPlan") && !strings.Contains(plan, "width_bucket") { // times are found by halves
					t.Errorf("%.60s: no list is hashed:\n%.3000s", c.source, plan)
				}
			}
			return nil
		})
	}
}
