package campaign

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/senderdomain"
)

func TestABroadcastIsSpreadOverATime(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.people(pgtest.Acme, 1000)
	w.broadcast("news", toEveryone+"over: 4h\n")
	start := w.now()
	w.start("news")
	for range 2 { // no more is planned ahead than so many batches, and each minute has its own
		w.everything()
		w.exec("UPDATE batch SET state = 'closed'")
	}
	// in each minute as many as its part of the time
	by := map[int]int{}
	for _, line := range pgtest.All[string](t, w.db, pgtest.Acme, "SELECT floor(extract(epoch FROM not_before - $1) / 60)::int || ' ' || cardinality(contacts) FROM batch ORDER BY id", start) {
		var minute, n int
		if _, err := fmt.Sscan(line, &minute, &n); err != nil {
			t.Fatal(err)
		}
		by[minute] += n
	}
	total := 0
	for minute := range 240 {
		if n := by[minute]; n < 4 || n > 5 { // 1000/240
			t.Errorf("%d mails in minute %d, want 4 or 5", n, minute)
		}
		total += by[minute]
	}
	if total != 1000 || len(by) != 240 {
		t.Errorf("%d mails in %d minutes, want 1000 in 240", total, len(by))
	}
	if n := w.count("SELECT count(*) FROM batch WHERE expires_at - not_before <> interval '24 hours'"); n != 0 {
		t.Errorf("%d batches live less than a day after they are due", n)
	}
}

// TestTheEngagedComeFirstInAWarmup has contacts become engaged, and stop being it, between the two passes.
func TestTheEngagedComeFirstInAWarmup(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	first := w.people(pgtest.Acme, 1200)
	clicked := func(c int64, ago time.Duration) {
		w.fact(postgres.Fact{Kind: "email.clicked", Name: "hello", Contact: c, At: w.now().Add(-ago)})
	}
	var engaged []int64
	for c := first + 5; c < first+1200; c += 100 {
		engaged = append(engaged, c)
		clicked(c, 24*time.Hour)
	}
	clicked(first+7, 100*24*time.Hour)                                                                          // long ago
	w.fact(postgres.Fact{Kind: "email.opened", Name: "hello", Contact: first + 8, At: w.now().Add(-time.Hour)}) // proves nothing
	w.exec(`WITH h AS (INSERT INTO hit (kind, contact, verdict) VALUES ('click', $1, 'machine') RETURNING id)
		INSERT INTO fact (kind, name, contact, data) SELECT 'email.clicked', 'hello', $1, jsonb_build_object('hit', id, 'taken', true) FROM h`, first+9) // taken back since
	w.apply("apiVersion: onda/v1\nkind: Domain\nmetadata: {name: example}\nspec:\n  domain: example.com\n  dkim: {selectors: [s1]}\n  warmup: {from: " +
		w.now().Format(time.DateOnly) + ", days: [{days: 1-9, mails: 50}]}\n")
	w.in(pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) error {
		d, err := senderdomain.Find(ctx, tx, "example.com")
		if err != nil {
			return err
		}
		_, err = d.Checked(ctx, tx, true, nil)
		return err
	})
	w.broadcast("news", toEveryone)
	r := w.start("news")
	plan := func() (more bool) {
		w.in(pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) (err error) {
			more, err = w.engine.docs.planBroadcast(ctx, tx, r.ID, 1)
			return err
		})
		return more
	}
	if !plan() {
		t.Fatal("nothing is left after the engaged")
	}
	planned := func() []int64 {
		return pgtest.All[int64](t, w.db, pgtest.Acme, "SELECT c FROM batch b, unnest(b.contacts) WITH ORDINALITY u (c, n) ORDER BY b.id, u.n")
	}
	if d := cmp.Diff(engaged, planned()); d != "" {
		t.Errorf("planned first (-want +got):\n%s", d)
	}
	clicked(first+1, time.Hour)
	w.exec("DELETE FROM fact WHERE contact = $1", engaged[3])
	for plan() {
	}
	all := planned()
	rest := slices.Clone(all[len(engaged):])
	if !slices.IsSorted(rest) {
		t.Error("the others are not planned in order")
	}
	slices.Sort(all)
	if got := slices.Compact(slices.Clone(all)); len(got) != 1200 || len(all) != 1200 {
		t.Errorf("%d were planned, %d of them once, want 1200", len(all), len(got))
	}
	// Once it is over, nothing is remembered of it.
	w.deliver()
	w.everything()
	w.pass(49 * time.Hour)
	w.everything()
	w.in(pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) error {
		_, err := tidy(ctx, tx)
		return err
	})
	if n := w.count("SELECT count(*) FROM allowance"); n != 0 {
		t.Errorf("%d allowances are left", n)
	}
}

// TestAPauseMovesWhatIsLeft pauses a broadcast that is spread over a time in the middle, for longer than that time.
func TestAPauseMovesWhatIsLeft(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.people(pgtest.Acme, 480)
	w.broadcast("news", toEveryone+"over: 4h\n")
	start := w.now()
	w.start("news")
	w.everything() // 200 of 240 minutes
	w.pass(time.Hour)
	w.exec("UPDATE batch SET state = 'closed', sent = cardinality(contacts), mark = cardinality(contacts) WHERE not_before <= onda.now() - interval '1 minute'")
	for range 2 {
		if _, err := w.do(Pause, "news"); err != nil {
			t.Fatal(err)
		}
		w.pass(5 * time.Hour)
		if _, err := w.do(Resume, "news"); err != nil {
			t.Fatal(err)
		}
	}
	w.exec("UPDATE batch SET state = 'closed' WHERE not_before < onda.now() + interval '2 hours'")
	w.everything()
	by := map[int]int{}
	total := 0
	for _, line := range pgtest.All[string](t, w.db, pgtest.Acme, "SELECT floor(extract(epoch FROM not_before - $1) / 60)::int || ' ' || cardinality(contacts) FROM batch ORDER BY id", start) {
		var minute, n int
		if _, err := fmt.Sscan(line, &minute, &n); err != nil {
			t.Fatal(err)
		}
		if minute > 60 {
			minute -= 600
		}
		by[minute] += n
		total += n
	}
	for minute := range by {
		// what the clocks went on by while the test ran may move one to the next minute
		if by[minute] > 4 || minute < 0 || minute > 241 {
			t.Errorf("%d mails in minute %d but for the pauses, want 2", by[minute], minute)
		}
	}
	if total != 480 || len(by) < 238 {
		t.Errorf("%d mails in %d minutes, want 480 in 240", total, len(by))
	}
	if n := w.count("SELECT count(*) FROM batch WHERE expires_at - not_before < interval '24 hours'"); n != 0 {
		t.Errorf("%d batches live less than a day after they are due", n)
	}
}
