package predicate_test

import (
	"context"
	"fmt"
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

func TestNextChange(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t).DB(t)
	now := time.Date(2026, 11, 24, 17, 0, 0, 0, zone())
	pgtest.Exec(t, db, "acme", `INSERT INTO contact (fields, created_at) VALUES ('{"birthday": "1990-12-02", "seen": "2026-11-20T10:00:00Z"}', '2026-11-24T12:00:00Z')`)
	pgtest.Exec(t, db, "acme", `INSERT INTO fact (kind, name, contact, at) VALUES ('email.clicked', 'welcome', 1, '2026-11-24T10:00:00Z')`)
	pgtest.Exec(t, db, "acme", `INSERT INTO suppression (hash, reason, until) VALUES ('', 'bounce', '2026-11-26T00:00:00Z')`)
	for source, want := range map[string]string{
		`{field: plan, is: x}`:                                                   "never",
		`{field: birthday, before: 2026-01-01}`:                                  "never",
		`{field: birthday, before: today}`:                                       "never",
		`{field: seen, before: now}`:                                             "never",
		`{field: birthday, yearly: {inNext: 7d}}`:                                "2026-11-25T00:00:00+01:00",
		`{field: birthday, yearly: {inNext: 2d}}`:                                "2026-11-30T00:00:00+01:00",
		`{field: seen, inLast: 7d}`:                                              "2026-11-27T11:00:00+01:00",
		`{field: seen, olderThan: 3d}`:                                           "never",
		`{field: seen, inLast: 1mo}`:                                             "2026-12-20T11:00:00+01:00",
		`{field: created, inLast: 90d}`:                                          "2027-02-22T13:00:00+01:00",
		`{event: email.clicked, within: 2d}`:                                     "2026-11-26T11:00:00+01:00",
		`{not: {event: email.clicked, of: welcome, within: 2d}}`:                 "2026-11-26T11:00:00+01:00",
		`{event: email.opened, within: 2d}`:                                      "never",
		`{event: email.clicked, where: {due: {yearly: {inNext: 7d}}}}`:           "2026-11-25T00:00:00+01:00",
		`{event: email.opened, where: {due: {yearly: {inNext: 7d}}}}`:            "never",
		`{event: email.clicked, where: {due: {inNext: 7d}}}`:                     "2026-11-24T18:00:00+01:00",
		`{event: email.clicked}`:                                                 "never",
		`{reachable: news}`:                                                      "2026-11-26T01:00:00+01:00",
		`{all: [{field: seen, inLast: 7d}, {event: email.clicked, within: 2d}]}`: "2026-11-26T11:00:00+01:00",
	} {
		p, err := spec.ParsePredicate(source)
		if err != nil {
			t.Fatal(err)
		}
		pgtest.In(t, db, "acme", func(ctx context.Context, tx *postgres.Tx) error {
			got, err := predicate.NextChange(ctx, tx, p, predicate.Env{Fields: fieldTypes(), Zone: zone(), Now: now}, nil)
			if err != nil {
				return fmt.Errorf("%s: %w", source, err)
			}
			s := "never"
			if got != postgres.Never {
				s = got.Round(time.Millisecond).In(zone()).Format(time.RFC3339)
			}
			if s != want {
				t.Errorf("%s: %s, want %s", source, s, want)
			}
			return nil
		})
	}
}

// Of many contacts, an index tells of a field's dates when one will be passed; without it, they are to be looked at soon.
func TestNextChangeByIndex(t *testing.T) {
	t.Parallel()
	d := pgtest.New(t)
	db := d.DB(t)
	now := time.Date(2026, 11, 24, 17, 0, 0, 0, zone())
	pgtest.Exec(t, db, "acme", `INSERT INTO contact (fields) VALUES ('{"seen": "2026-11-20T10:00:00Z"}'), ('{"seen": "2026-11-21T10:00:00Z"}'), ('{"seen": "2026-11-2"}'), ('{"seen": "soon"}'), ('{}')`)
	p, err := spec.ParsePredicate(`{field: seen, inLast: 7d}`)
	if err != nil {
		t.Fatal(err)
	}
	next := func() (at time.Time) {
		pgtest.In(t, db, "acme", func(ctx context.Context, tx *postgres.Tx) error {
			var err error
			at, err = predicate.NextChangeOfMany(ctx, tx, p, predicate.Env{Fields: fieldTypes(), Zone: zone(), Now: now})
			return err
		})
		return at
	}
	if at := next(); !at.Equal(now.Add(time.Minute)) {
		t.Errorf("without an index: %s", at)
	}
	// Another index on the field is not in the order of its values.
	d.Own(t, "acme", `CREATE INDEX day ON contact (substr(fields->>'seen', 6, 5)) WHERE fields->>'seen' IS NOT NULL`, `CREATE INDEX one ON contact (md5(fields->>'seen')) WHERE fields->>'seen' IS NOT NULL`)
	if at := next(); !at.Equal(now.Add(time.Minute)) {
		t.Errorf("with indexes for something else: %s", at)
	}
	d.Own(t, "acme", `CREATE INDEX seen ON contact (((fields->>'seen') COLLATE "C")) WHERE (fields->>'seen') IS NOT NULL`)
	if at, want := next(), time.Date(2026, 11, 27, 10, 0, 0, 0, time.UTC); at.Before(want) || at.After(want.Add(time.Millisecond)) {
		t.Errorf("with an index: %s, want %s", at, want)
	}
	// Where what comes next is no time at all, one may be behind it.
	pgtest.Exec(t, db, "acme", `INSERT INTO contact (fields) SELECT '{"seen": "2026-11-18"}' FROM generate_series(1, 100)`)
	if at := next(); !at.Equal(now.Add(time.Minute)) {
		t.Errorf("behind what is no time: %s", at)
	}
}

// Until the next change, no answer changes.
func TestNextChangeIsNeverLate(t *testing.T) {
	t.Parallel()
	timed := rapid.Custom(func(t *rapid.T) any {
		if rapid.Bool().Draw(t, "event") {
			e := drawEvent(t)
			delete(e, "between")
			e["within"] = drawDuration(t)
			return e
		}
		field := rapid.SampledFrom([]string{"birthday", "seen", "created"}).Draw(t, "field")
		p := drawTest(t, map[string]spec.FieldType{"birthday": spec.TypeDate, "seen": spec.TypeDatetime, "created": spec.TypeDatetime}[field])
		p["field"] = field
		return p
	})
	onPeople(t, 8, 10, rapid.Custom(drawPerson), timed, func(ctx context.Context, _ *rapid.T, tx *postgres.Tx, people []*person, now time.Time, source []byte, p *spec.Predicate) error {
		env := predicate.Env{Fields: fieldTypes(), Zone: zone(), Now: now}
		ask := func(at time.Time) ([]int64, error) {
			env.Now = at
			q, err := predicate.Compile(p, env)
			if err != nil {
				return nil, err
			}
			rows, err := tx.Query(ctx, "SELECT c.id FROM contact c WHERE "+q.SQL+" ORDER BY c.id", q.Args...)
			if err != nil {
				return nil, err
			}
			return pgx.CollectRows(rows, pgx.RowTo[int64])
		}
		before, err := ask(now)
		if err != nil {
			return err
		}
		env.Now = now
		next, err := predicate.NextChange(ctx, tx, p, env, nil)
		if err != nil {
			return err
		}
		// It is the earliest of those of each contact.
		earliest := postgres.Never
		for _, c := range people {
			one, err := predicate.NextChange(ctx, tx, p, env, []int64{c.id})
			if err != nil {
				return err
			}
			if one.Before(earliest) {
				earliest = one
			}
		}
		if !earliest.Equal(next) {
			return fmt.Errorf("%s: the next change is at %s, that of each contact alone at %s", source, next, earliest)
		}
		ofMany, err := predicate.NextChangeOfMany(ctx, tx, p, env)
		if err != nil {
			return fmt.Errorf("%s: of many: %w", source, err)
		}
		if !ofMany.After(now) || ofMany.After(next) {
			return fmt.Errorf("%s: the next change after %s is at %s, and of many at %s", source, now, next, ofMany)
		}
		if !next.After(now) {
			return fmt.Errorf("%s: the next change after %s is %s", source, now, next)
		}
		last := next
		if next.Equal(postgres.Never) {
			last = now.AddDate(3, 0, 0)
		}
		for i := range 12 { // 11/12, 9/12 ... and just before it
			at := last.Add(-time.Millisecond - last.Sub(now)*time.Duration(i)/12)
			if i > 6 {
				at = now.Add(time.Duration(i*i*i) * time.Hour)
			}
			if at.Before(now) || !at.Before(last) {
				continue
			}
			after, err := ask(at)
			if err != nil {
				return err
			}
			if len(before)+len(after) > 0 && !cmp.Equal(before, after) {
				return fmt.Errorf("%s: the answer is %v at %s and %v at %s, and the next change is said to be at %s", source, before, now, after, at, next)
			}
		}
		return nil
	})
}

func TestReadsZone(t *testing.T) {
	t.Parallel()
	for source, want := range map[string]bool{
		`{field: plan, is: x}`:                                      false,
		`{field: plan, exists: true}`:                               false,
		`{field: birthday, exists: true}`:                           false,
		`{field: birthday, yearly: {inNext: 7d}}`:                   true,
		`{field: seen, before: 2026-03-01}`:                         true,
		`{any: [{tag: vip}, {not: {field: seen, inLast: 30d}}]}`:    true,
		`{event: order.placed}`:                                     false,
		`{event: order.placed, within: 7d}`:                         true,
		`{event: order.placed, between: [2026-01-01, 2026-02-01]}`:  true,
		`{event: order.placed, where: {total: {gte: 10}}}`:          false,
		`{event: order.placed, where: {day: {before: 2026-03-01}}}`: true,
		`{segment: paying}`:                                         false,
		`{field: gone, is: x}`:                                      true,
	} {
		p, err := spec.ParsePredicate(source)
		if err != nil {
			t.Fatalf("%s: %v", source, err)
		}
		if got := predicate.ReadsZone(p, predicate.Env{Fields: fieldTypes(), Zone: zone(), Now: time.Now()}); got != want {
			t.Errorf("%s: %v", source, got)
		}
	}
}

func TestTouched(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		source string
		fact   postgres.Fact
		want   bool
	}{
		{`{field: plan, is: x}`, postgres.Fact{Kind: "contact.changed", Data: []byte(`{"fields": ["plan"]}`)}, true},
		{`{field: plan, is: x}`, postgres.Fact{Kind: "contact.changed", Data: []byte(`{"fields": ["level"]}`)}, false},
		{`{field: plan, is: x}`, postgres.Fact{Kind: "contact.changed"}, true},
		{`{field: plan, is: x}`, postgres.Fact{Kind: "contact.erased"}, true},
		{`{field: plan, is: x}`, postgres.Fact{Kind: "tag.changed", Name: "plan"}, false},
		{`{not: {tag: vip}}`, postgres.Fact{Kind: "tag.changed", Name: "vip"}, true},
		{`{field: tags, hasAny: [vip]}`, postgres.Fact{Kind: "tag.changed", Name: "vip"}, true},
		{`{not: {stage: hot}}`, postgres.Fact{Kind: "stage.changed", Name: "cold"}, true},
		{`{tag: hot}`, postgres.Fact{Kind: "stage.changed", Name: "hot"}, false},
		{`{field: score, gte: 50}`, postgres.Fact{Kind: "score.changed", Name: "score"}, true},
		{`{field: score, gte: 50}`, postgres.Fact{Kind: "score.changed", Name: "fit"}, false},
		{`{not: {field: score.fit, gte: 50}}`, postgres.Fact{Kind: "score.changed", Name: "fit"}, true},
		{`{event: email.clicked}`, postgres.Fact{Kind: "score.changed", Name: "score"}, false},
		{`{topic: news, state: never}`, postgres.Fact{Kind: "consent.granted", Name: "news"}, true},
		{`{topic: news, state: never}`, postgres.Fact{Kind: "consent.granted", Name: "offers"}, false},
		{`{reachable: news}`, postgres.Fact{Kind: "suppression.added"}, true},
		{`{reachable: news}`, postgres.Fact{Kind: "contact.changed", Data: []byte(`{"fields": ["email"]}`)}, true},
		{`{event: email.clicked, of: welcome}`, postgres.Fact{Kind: "email.clicked", Name: "welcome"}, true},
		{`{event: email.clicked, of: welcome}`, postgres.Fact{Kind: "email.clicked", Name: "offer"}, false},
		{`{event: email.clicked, of: welcome}`, postgres.Fact{Kind: "hit.reclassified", Name: "welcome"}, true},
		{`{event: email.clicked, of: welcome}`, postgres.Fact{Kind: "hit.reclassified", Name: "offer"}, false},
		{`{event: order.placed}`, postgres.Fact{Kind: "hit.reclassified", Name: "order.placed"}, false},
		{`{event: email.failed}`, postgres.Fact{Kind: "email.sent"}, true},
		{`{event: email.sent}`, postgres.Fact{Kind: "email.opened"}, false},
		{`{event: order.placed}`, postgres.Fact{Kind: "event.tracked", Name: "order.placed"}, true},
		{`{event: order.placed}`, postgres.Fact{Kind: "event.tracked", Name: "order.paid"}, false},
	} {
		p, err := spec.ParsePredicate(c.source)
		if err != nil {
			t.Fatal(err)
		}
		if got := predicate.DepsOf(p).Touched(c.fact); got != c.want {
			t.Errorf("%s, %+v: %v", c.source, c.fact, got)
		}
	}
}
