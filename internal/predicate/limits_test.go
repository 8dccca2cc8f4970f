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
	text, err := json.Marshal(map[string]any{"plan": strings.Repeat("a", 4095) + "!", "seen": "2026-11-20T10:00:00Z", "level": "12"})
	if err != nil {
		t.Fatal(err)
	}
	pgtest.In(t, db, "acme", func(ctx context.Context, tx *postgres.Tx) error {
		_, err := tx.Exec(ctx, "INSERT INTO contact (fields) SELECT $1::jsonb FROM generate_series(1, 50)", text)
		return err
	})
	var words, days strings.Builder
	for i := range 9_900 { // of 10,000 that a document may have
		fmt.Fprintf(&words, "w%d, ", i)
		fmt.Fprintf(&days, "%s, ", time.Date(1900, 1, 1+i, 0, 0, 0, 0, time.UTC).Format(time.DateOnly))
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
		"{field: plan, in: [" + words.String() + "x]}":                             0,
		"{field: plan, notIn: [" + words.String() + "x]}":                          50,
		"{field: plan, in: [" + words.String() + strings.Repeat("A", 4095) + "!]}": 50,
		`{field: level, gt: 5}`:                                                    0, // a text is no number
		`{field: level, lt: 5}`:                                                    0,
		`{field: level, is: 12}`:                                                   0,
		`{field: plan, matches: "^(a|aa)+$"}`:                                      0, // these take an engine that goes back exponential time
		`{field: plan, matches: "^(a+)+$"}`:                                        0,
		`{field: plan, matches: "(.*)*x"}`:                                         0,
		`{field: plan, matches: "(?:a?){60}a{60}$"}`:                               0,
		`{field: plan, matches: "(a|b|c|d|e|f)*[^a]{20}$"}`:                        0,
		`{field: plan, matches: "a.*a.*a.*a.*a.*a.*a.*a.*a.*a.*a.*a.*a.*a.*$"}`:    50,
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
	p, err := spec.ParsePredicate("{field: seen, in: [" + days.String() + "2026-11-24]}")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := predicate.Compile(p, predicate.Env{Fields: fieldTypes(), Zone: zone()}); err == nil || !strings.Contains(err.Error(), "values, of at most") {
		t.Errorf("9,901 days: %v", err)
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
