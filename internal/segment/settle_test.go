package segment

import (
	"context"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/onda-run/onda/internal/contact"
	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/predicate"
	"github.com/onda-run/onda/internal/spec"
)

// Segments that the same facts touch have one list of the contacts, however many they are.
func TestOneListForSegmentsThatAreTouchedAlike(t *testing.T) {
	t.Parallel()
	all := make([]*kept, 100)
	for i := range all {
		all[i] = &kept{entity: int32(i), doc: &spec.Segment{}, deps: predicate.Deps{Tags: i%10 == 1, Topics: []string{"news"}}}
	}
	facts := []postgres.Fact{{Kind: "tag.changed", Name: "vip", Contacts: []int64{5, 3, 3}}}
	for i := range int64(1000) {
		facts = append(facts, postgres.Fact{Kind: "consent.granted", Name: "news", Contact: 2000 - i}, postgres.Fact{Kind: "consent.granted", Name: "offers", Contact: 9000 - i})
	}
	tn := &turn{all: all}
	if err := tn.read(context.Background(), facts); err != nil {
		t.Fatal(err)
	}
	lists := map[*int64]int{}
	for _, s := range all {
		lists[&s.touched[0]] = len(s.touched)
	}
	if len(lists) != 2 || len(all[0].touched) != 1000 || !cmp.Equal(all[1].touched[:3], []int64{3, 5, 1001}) {
		t.Errorf("%d lists: %v, the second begins with %v", len(lists), lists, all[1].touched[:3])
	}
	// Whoever joins one is another's list.
	all[0].touch([]int64{1})
	if len(all[2].touched) != 1000 || len(all[0].touched) != 1001 || all[0].touched[0] != 1 {
		t.Errorf("a list was changed that others have: %d, %d", len(all[2].touched), len(all[0].touched))
	}
}

// Where segments that ask about one another are all to be made in full, each is made once: not also whenever those that it asks about change.
func TestRebuildsComputeEachOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.people(300)
	w.segment("paying", `{"field": "plan", "is": "paid"}`)
	w.segment("rest", `{"segment": "paying"}`)
	w.work()
	want := w.members("paying")
	pgtest.Exec(t, w.db, "acme", "DELETE FROM member")
	pgtest.Exec(t, w.db, "acme", "UPDATE segment SET members = 0, requested = true")
	piece := func() {
		t.Helper()
		if _, err := w.keeper.rebuild(context.Background(), "acme", new(250), map[string]bool{}); err != nil {
			t.Fatal(err)
		}
	}
	w.until("paying is made", func() bool { piece(); return len(w.members("paying")) == len(want) })
	w.want("rest")
	w.until("half of rest is made", func() bool { piece(); return len(w.members("rest")) == 125 })
	// Behind the mark is followed, before it is not.
	pgtest.Exec(t, w.db, "acme", "UPDATE contact SET fields = '{}' WHERE id = ANY ($1)", []int64{want[0], want[len(want)-1]})
	if err := w.request("paying"); err != nil {
		t.Fatal(err)
	}
	w.until("paying is made again", func() bool { piece(); return len(w.members("paying")) == len(want)-2 })
	w.work()
	w.want("rest", want[1:len(want)-1]...)
}

// Of two segments whose documents turn round at once, so that the one is asked about by whom it asked, both follow whoever changes between any two pieces of the work, and that by the documents in force.
func TestDocumentsThatTurnRound(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ids := w.people(4)
	w.segment("a", `{"tag": "vip"}`)
	failed := map[string]bool{}
	for before := range 6 {
		w.segment("b", `{"tag": "vip"}`)
		w.segment("a", `{"any": [{"segment": "b"}, {"field": "plan", "is": "paid"}]}`)
		w.update(ids[2:3], contact.Change{Fields: map[string]any{"plan": "free"}})
		w.work()
		w.want("a", ids[1], ids[3])
		w.want("b")
		w.segment("a", `{"field": "plan", "is": "paid"}`)
		w.segment("b", `{"segment": "a"}`)
		for range before {
			if _, err := w.keeper.rebuild(context.Background(), "acme", new(chunkFirst), failed); err != nil {
				t.Fatal(err)
			}
		}
		w.update(ids[2:3], contact.Change{Fields: map[string]any{"plan": "paid"}})
		w.until("the fact is read", func() bool {
			_, err := w.keeper.facts(context.Background(), "acme", failed)
			return err == nil && w.read()
		})
		for _, name := range []string{"a", "b"} {
			if !slices.Contains(w.members(name), ids[2]) {
				t.Errorf("after %d pieces %s has not followed", before, name)
			}
		}
		w.work()
		w.want("a", ids[1], ids[2], ids[3])
		w.want("b", ids[1], ids[2], ids[3])
	}
	w.told("a")
	w.told("b")
}
