package segment_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/onda-run/onda/internal/apply"
	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/segment"
	"github.com/onda-run/onda/internal/spec"
)

const fields = `
apiVersion: onda/v1
kind: Field
metadata: {name: plan}
spec: {type: text}
---
apiVersion: onda/v1
kind: Field
metadata: {name: seen}
spec: {type: datetime}
`

// segments are the documents of segments a, b, c and d, of which each may ask about those before it, and of the settings.
func segments() *rapid.Generator[string] {
	return rapid.Custom(func(t *rapid.T) string {
		docs := fields
		names := []string{"a", "b", "c", "d"}
		for i, name := range names {
			leaf := rapid.OneOf(
				rapid.SampledFrom([]string{
					"{field: plan, is: gold}", "{field: plan, in: [paid, gold]}", "{field: plan, isNot: free}", "{tag: vip}", "{field: seen, yearly: {inLast: 1d}}",
					"{field: seen, before: today}", "{field: email, contains: '1'}",
				}),
				rapid.Custom(func(t *rapid.T) string { return "{segment: " + rapid.SampledFrom(names[:i]).Draw(t, "about") + "}" }),
			)
			if i == 0 {
				leaf = rapid.SampledFrom([]string{"{field: plan, is: gold}", "{field: plan, isNot: free}", "{tag: vip}", "{field: seen, before: today}"})
			}
			where := leaf.Draw(t, "where")
			switch rapid.IntRange(0, 3).Draw(t, "form") {
			case 0:
				where = "{not: " + where + "}"
			case 1:
				where = "{all: [" + where + ", " + leaf.Draw(t, "and") + "]}"
			case 2:
				where = "{any: [" + where + ", {not: " + leaf.Draw(t, "or") + "}]}"
			}
			keep := rapid.SampledFrom([]string{"", ", keep: {in: [c3@x.example]}", ", keep: {out: [c4@x.example]}"}).Draw(t, "keep")
			docs += fmt.Sprintf("---\napiVersion: onda/v1\nkind: Segment\nmetadata: {name: %s}\nspec: {where: %s%s}\n", name, where, keep)
		}
		return docs + "---\napiVersion: onda/v1\nkind: Settings\nmetadata: {name: settings}\nspec: {zone: " + rapid.SampledFrom([]string{"UTC", "Asia/Tokyo", "America/Lima"}).Draw(t, "zone") + "}\n"
	})
}

// What a diff says of who joins and leaves is what apply and the work after it then do, of every segment; and of those that it says nothing of, nobody joins or leaves.
func TestDiffTellsWhoJoinsAndLeaves(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t).DB(t)
	for _, tenant := range []string{"acme", "brava"} {
		r := rand.New(rand.NewPCG(1, 2))
		for i := range 60 {
			pgtest.Exec(t, db, tenant, `INSERT INTO contact (email, fields, tags) VALUES ($1, jsonb_build_object('plan', $2::text, 'seen', to_char((onda.now() - $3 * interval '1 minute') AT TIME ZONE 'UTC',
				'YYYY-MM-DD"T"HH24:MI:SS"Z"')), $4)`, fmt.Sprintf("c%d@x.example", i), []string{"free", "paid", "gold"}[r.IntN(3)], r.IntN(5000)-2500, []string{"vip", "old"}[:r.IntN(3)])
		}
	}
	members := func() map[string]map[int64]bool {
		out := map[string]map[int64]bool{}
		for _, row := range pgtest.All[string](t, db, "acme", "SELECT e.name || ' ' || m.contact FROM member m JOIN entity e ON e.id = m.segment WHERE m.kept <> 'out'") {
			var name string
			var id int64
			if _, err := fmt.Sscan(row, &name, &id); err != nil {
				t.Fatal(err)
			}
			if out[name] == nil {
				out[name] = map[int64]bool{}
			}
			out[name][id] = true
		}
		return out
	}
	counted := 0
	rapid.Check(t, func(t *rapid.T) {
		ctx := context.Background()
		docs := segments().Draw(t, "documents")
		if parts := strings.Split(docs, "---\n"); rapid.Bool().Draw(t, "in part") { // the others stay as they are
			docs = fields + "---\n" + parts[rapid.IntRange(2, len(parts)-1).Draw(t, "part")]
		}
		fsys := fstest.MapFS{"a.yaml": {Data: []byte(docs)}}
		before := members()
		var changes []apply.Change
		_, err := apply.Read(ctx, db, "acme", fsys, func(ctx context.Context, tx *postgres.Tx, set *spec.Set) (err error) {
			changes, err = apply.Diff(ctx, tx, set, nil, time.Minute)
			return err
		})
		if err != nil {
			t.Skip(err) // a part that asks about a segment that is not there yet, or a circle with those that stay
		}
		if _, _, err := apply.Directory(ctx, db, "acme", fsys, nil); err != nil {
			t.Fatal(err)
		}
		if err := segment.Work(ctx, db, "acme"); err != nil {
			t.Fatal(err)
		}
		after := members()
		told := map[string]apply.Members{}
		for _, c := range changes {
			if c.Kind == spec.KindSegment && c.Members != nil {
				told[c.Name] = *c.Members
				counted++
			}
		}
		for _, name := range []string{"a", "b", "c", "d"} {
			want := apply.Members{Now: int64(len(before[name])), Then: int64(len(after[name]))}
			for id := range after[name] {
				if !before[name][id] {
					want.Joins++
				}
			}
			for id := range before[name] {
				if !after[name][id] {
					want.Leaves++
				}
			}
			got, ok := told[name]
			if !ok {
				got = apply.Members{Now: want.Now, Then: want.Now}
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("segment %s (-what happened +what was told: %t): %s", name, ok, diff)
			}
		}
	})
	if counted < 20 {
		t.Errorf("only %d segments were counted", counted)
	}
	if n := pgtest.One[int](t, db, "brava", "SELECT count(*) FROM member"); n != 0 {
		t.Errorf("brava has %d members", n)
	}
}
