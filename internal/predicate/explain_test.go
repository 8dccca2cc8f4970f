package predicate_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/predicate"
	"github.com/onda-run/onda/internal/spec"
)

// The whole and each part of an explanation hold as a naive reading of them says, and the whole lasts as long as its first part.
func TestExplainAgreesWithANaiveReading(t *testing.T) {
	t.Parallel()
	onPeople(t, 3, 4, rapid.Custom(drawPerson), deep(3), func(ctx context.Context, _ *rapid.T, tx *postgres.Tx, people []*person, now time.Time, source []byte, p *spec.Predicate) error {
		for _, c := range people {
			got, err := predicate.Explain(ctx, tx, p, predicate.Env{Fields: fieldTypes(), Zone: zone(), Now: now}, c.id)
			if err != nil {
				return fmt.Errorf("%s: %w", source, err)
			}
			if err := agrees(p, got, func(q *spec.Predicate) bool { return (naive{now, zone()}).eval(q, c) }); err != nil {
				return fmt.Errorf("%s at %s: %w", source, now, err)
			}
		}
		return nil
	})
}

func agrees(p *spec.Predicate, got predicate.Part, holds func(*spec.Predicate) bool) error {
	if got.Holds != holds(p) {
		return fmt.Errorf("%q holds: %t, a naive reading says %t", got.Text, got.Holds, !got.Holds)
	}
	parts := append(append([]spec.Predicate{}, p.All...), p.Any...)
	if p.Not != nil {
		parts = append(parts, *p.Not)
	}
	if len(parts) != len(got.Parts) {
		return fmt.Errorf("%q has %d parts, want %d", got.Text, len(got.Parts), len(parts))
	}
	first := postgres.Never
	for i := range parts {
		if err := agrees(&parts[i], got.Parts[i], holds); err != nil {
			return err
		}
		if got.Parts[i].Until.Before(first) {
			first = got.Parts[i].Until
		}
	}
	if len(parts) > 0 && !got.Until.Equal(first) {
		return fmt.Errorf("%q lasts until %s, and the first of its parts until %s", got.Text, got.Until, first)
	}
	return nil
}

// What decides each part is told in words.
func TestExplainSaysWhy(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t).DB(t)
	pgtest.In(t, db, "acme", func(ctx context.Context, tx *postgres.Tx) error {
		var id int64
		if err := tx.QueryRow(ctx, `INSERT INTO contact (email, fields, tags) VALUES ('ada@x.example', '{"plan": "gold", "seen": "2026-03-01T10:00:00Z"}', '{vip,old}') RETURNING id`).Scan(&id); err != nil {
			return err
		}
		at := time.Date(2026, 3, 10, 12, 0, 0, 0, time.UTC)
		if err := tx.AddFacts(ctx, postgres.Fact{Kind: "event.tracked", Name: "order.placed", Contact: id, At: at.Add(-48 * time.Hour)},
			postgres.Fact{Kind: "event.tracked", Name: "order.placed", Contact: id, At: at.Add(-24 * time.Hour)}); err != nil {
			return err
		}
		p, err := spec.ParsePredicate(`{all: [{field: plan, in: [gold, paid]}, {field: level, gte: 3}, {tag: vip}, {not: {topic: news, state: subscribed}}, {event: order.placed, within: 3d, count: {gte: 2}},
			{field: seen, inLast: 30d}, {reachable: news}, {stage: hot}, {field: plan, in: [a, b, c, d, e, f, g, h, i, j, gold, l]}]}`)
		if err != nil {
			return err
		}
		env := predicate.Env{Fields: map[string]spec.FieldType{"plan": spec.TypeText, "level": spec.TypeNumber, "seen": spec.TypeDatetime}, Zone: time.UTC, Now: at}
		got, err := predicate.Explain(ctx, tx, p, env, id)
		if err != nil {
			return err
		}
		never := postgres.Never
		want := predicate.Part{Text: "all", Until: at.Add(24 * time.Hour), Parts: []predicate.Part{
			{Text: "plan in gold, paid", Holds: true, Because: []string{"plan is gold"}, Until: never},
			{Text: "level gte 3", Because: []string{"level has no value"}, Until: never},
			{Text: "tag vip", Holds: true, Because: []string{"its tags: vip, old"}, Until: never},
			{Text: "not", Holds: true, Until: never, Parts: []predicate.Part{{Text: "topic news subscribed", Because: []string{"it never subscribed"}, Until: never}}},
			{Text: "event order.placed within 3d, count gte 2", Holds: true, Because: []string{"it happened 2 times, last at 2026-03-09 12:00"}, Until: at.Add(24 * time.Hour)},
			{Text: "seen inLast 30d", Holds: true, Because: []string{"seen is 2026-03-01T10:00:00Z"}, Until: time.Date(2026, 3, 31, 10, 0, 0, 0, time.UTC)},
			{Text: "reachable news", Because: []string{"refused: no consent"}, Until: never},
			{Text: "stage hot", Because: []string{"it is at no stage"}, Until: never},
			{Text: "plan in a, b, c, d, e, f, g, h, i, j, and 2 more", Holds: true, Because: []string{"plan is gold"}, Until: never},
		}}
		if diff := cmp.Diff(want, got, cmpopts.EquateApproxTime(time.Second)); diff != "" {
			t.Error(diff)
		}
		return nil
	})
}
