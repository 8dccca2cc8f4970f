package track

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/token"
)

// insertHits inserts hits of mails, with one of some agents and from one of a few places each.
func (w *world) insertHits(tenant string, random *rand.Rand, n int, deliveries []int64, agents []string) {
	w.t.Helper()
	var kind, agent, method, origin, reason []string
	var delivery, link []int64
	var at []time.Time
	now := pgtest.One[time.Time](w.t, w.db, tenant, "SELECT onda.now()")
	for range n {
		delivery, agent = append(delivery, deliveries[random.IntN(len(deliveries))]), append(agent, agents[random.IntN(len(agents))])
		kind, method, reason = append(kind, []string{kindClick, kindClick, kindOpen}[random.IntN(3)]), append(method, "GET"), append(reason, "")
		link, origin = append(link, int64(1+random.IntN(2))), append(origin, fmt.Sprint("place ", random.IntN(5)))
		at = append(at, now.Add(-time.Duration(random.IntN(20))*250*time.Second-time.Duration(random.IntN(3000))*time.Millisecond)) // some of them are bursts
	}
	pgtest.Exec(w.t, w.db, tenant, `INSERT INTO hit (kind, delivery, contact, link, run, step, agent, method, origin, reason, at)
		SELECT u.kind, u.delivery, d.contact, CASE u.kind WHEN 'click' THEN u.link ELSE 0 END, b.run, b.step, u.agent, u.method, u.origin::bytea, u.reason, u.at
		FROM unnest($1::text[], $2::bigint[], $3::integer[], $4::text[], $5::text[], $6::text[], $7::text[], $8::timestamptz[]) u(kind, delivery, link, agent, method, origin, reason, at)
		JOIN delivery d ON d.id = u.delivery JOIN batch b ON b.id = u.delivery >> 9`, kind, delivery, link, agent, method, origin, reason, at)
}

// Lists that change judge again what was judged by others, in any number of steps, whoever is killed or comes at the same time: in the end verdicts are those of the lists, statistics are
// those of the verdicts, and scores too.
func TestOtherListsJudgeAgain(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	w := newWorld(t)
	other := w.again() // as another process
	dir := t.TempDir()
	for _, s := range []*scanners{w.scanners, other.scanners} {
		s.dir, s.every = dir, 0
	}
	w.rules("acme", `[{event: email.clicked, add: 5}]`)
	w.move("acme", 2*time.Hour) // all hits are after the rules
	var deliveries []int64
	for i := range 150 {
		_, d := w.sent("acme", fmt.Sprintf("c%d@example.com", i), 2*time.Hour)
		deliveries = append(deliveries, d)
	}
	agents := []string{"Mozilla/5.0 Ash/1", "Mozilla/5.0 Birch/1", "Mozilla/5.0 Cedar/1", browser}
	listed := []string{"bot all ash\n", "bot all birch\nscanner all cedar\n", "scanner all ash\nbot all cedar\n", "bot all nobody\n"}
	list := func(n int) {
		put(t, dir, agentsFile, listed[n])
		w.sweep("acme") // it is noted
		w.move("acme", againAfter+time.Second)
	}
	sweep := func(w *world) {
		if err := w.Sweep(context.Background(), "acme", nil, nil); err != nil {
			t.Error(err)
		}
	}
	list(0)
	w.insertHits("acme", random, 2300, deliveries, agents) // some chunks
	w.sweep("acme")
	killed := errors.New("killed")
	for range 12 {
		switch random.IntN(5) {
		case 0:
			list(random.IntN(len(listed)))
		case 1:
			w.insertHits("acme", random, random.IntN(40), deliveries, agents)
		case 2:
			err := w.db.InTenant(t.Context(), "acme", func(ctx context.Context, tx *postgres.Tx) error {
				_, err := w.judgeAgain(ctx, tx)
				return errors.Join(err, killed)
			})
			if !errors.Is(err, killed) {
				t.Fatal(err)
			}
		case 3: // killed between chunks
			pgtest.In(t, w.db, "acme", func(ctx context.Context, tx *postgres.Tx) error {
				_, err := w.judgeAgain(ctx, tx)
				return err
			})
		case 4:
			var both sync.WaitGroup
			for _, w := range []*world{w, other} {
				both.Go(func() { sweep(w) })
			}
			both.Wait()
		}
	}
	list(1)
	w.settle("acme")
	if n := pgtest.One[int](t, w.db, "acme", "SELECT count(*) FROM cursor WHERE name = 'scanners' AND at IS NOT NULL"); n != 0 {
		t.Error("after a sweep there is more to be looked at")
	}

	var hits []stored
	pgtest.In(t, w.db, "acme", func(ctx context.Context, tx *postgres.Tx) (err error) {
		hits, err = readHits(ctx, tx, "true ORDER BY id")
		return err
	})
	lists, stats, points, of := w.scanners.now(), map[statKey]count{}, map[int64]int{}, map[int64][]stored{}
	seen := map[string]int{}
	for _, h := range hits {
		of[h.Delivery] = append(of[h.Delivery], h)
	}
	for _, d := range deliveries {
		e := gatherEvidence(of[d], 2)
		tally(stats, of[d], 1)
		for _, h := range of[d] {
			fresh := h
			fresh.Verdict = nobody
			if verdict, reason := lists.judge(fresh, e, mail{links: 2}); verdict != h.Verdict || reason != h.Reason {
				t.Errorf("hit %d by %q is %s %q, by the lists %s %q", h.ID, h.Agent, h.Verdict, h.Reason, verdict, reason)
			}
			seen[h.Reason]++
			if h.Kind == kindClick && h.Verdict == human {
				points[h.Contact] += 5
			}
		}
	}
	if seen["bot"] == 0 || seen["scanner"] == 0 || seen[""] == 0 || seen["burst"] == 0 {
		t.Errorf("hits by reason: %v", seen)
	}
	var want, got []string
	for k, c := range stats {
		want = append(want, fmt.Sprintln(k.Run, k.Step, k.Hour.Format(time.RFC3339), k.Kind, k.Verdict, k.Link, k.Tracked, c.N, c.Firsts))
	}
	pgtest.In(t, w.db, "acme", func(ctx context.Context, tx *postgres.Tx) error {
		rows, err := tx.Query(ctx, "SELECT run, step, hour, kind, verdict, link, tracked, n, firsts FROM stat WHERE n <> 0 OR firsts <> 0")
		if err != nil {
			return err
		}
		for rows.Next() {
			var k statKey
			var c count
			if err := rows.Scan(&k.Run, &k.Step, &k.Hour, &k.Kind, &k.Verdict, &k.Link, &k.Tracked, &c.N, &c.Firsts); err != nil {
				return err
			}
			got = append(got, fmt.Sprintln(k.Run, k.Step, k.Hour.UTC().Format(time.RFC3339), k.Kind, k.Verdict, k.Link, k.Tracked, c.N, c.Firsts))
		}
		return rows.Err()
	})
	if diff := cmp.Diff(sorted(want), sorted(got)); diff != "" {
		t.Errorf("statistics (-counted +kept):\n%s", diff)
	}
	want, got = nil, pgtest.All[string](t, w.db, "acme", "SELECT id || ' ' || (scores->>'score') FROM contact WHERE (scores->>'score')::bigint <> 0")
	for id, n := range points {
		want = append(want, fmt.Sprint(id, " ", n))
	}
	if diff := cmp.Diff(sorted(want), sorted(got)); diff != "" {
		t.Errorf("scores (-counted +kept):\n%s", diff)
	}
}

// Only lists that all have for a while are gone by, a sweep looks at so many hits and no more, and mails are left alone of which the lists say nothing else.
func TestJudgingAgainIsBounded(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	dir := t.TempDir()
	w.scanners.dir, w.scanners.every = dir, 0
	_, ada := w.sent("acme", "ada@example.com", 2*time.Hour)
	_, eve := w.sent("acme", "eve@example.com", 2*time.Hour)
	random := rand.New(rand.NewPCG(1, 0))
	w.insertHits("acme", random, 30, []int64{ada}, []string{"Mozilla/5.0 Ash/1"})
	w.sweep("acme")
	pgtest.Exec(t, w.db, "acme", `INSERT INTO hit (kind, delivery, agent, origin, verdict, at)
		SELECT 'open', $1, $2, 'elsewhere', 'human', onda.now() - interval '3 hours' FROM generate_series(1, $3)`, eve, browser, againMost*judgeChunk)
	verdicts := func() string {
		return pgtest.One[string](t, w.db, "acme", "SELECT string_agg(DISTINCT reason, ' ') FROM hit WHERE agent LIKE '%Ash%' AND reason <> 'burst'")
	}
	due := func() time.Duration {
		return time.Duration(pgtest.One[float64](t, w.db, "acme", "SELECT extract(epoch FROM at - clock_timestamp() - current_setting('onda.offset')::interval)::float8 FROM onda.wakeup WHERE tenant = 'acme' AND function = 'track'") * float64(time.Second))
	}
	put(t, dir, agentsFile, "bot all ash\n")
	w.sweep("acme")
	if got := verdicts(); got != "" {
		t.Errorf("at once: %q", got)
	}
	if d := due(); d < againAfter/2 || d > againAfter {
		t.Errorf("due in %s", d)
	}
	w.move("acme", againAfter+time.Second)
	put(t, dir, agentsFile, "scanner all ash\n") // another process has these
	w.sweep("acme")
	if got := verdicts(); got != "" {
		t.Errorf("by lists that are new: %q", got)
	}
	w.move("acme", againAfter+time.Second)
	changed := pgtest.One[string](t, w.db, "acme", "SELECT max(xmin::text::bigint)::text FROM hit WHERE agent NOT LIKE '%Ash%'")
	w.sweep("acme")
	if d := due(); d > 0 {
		t.Errorf("after a bounded number of hits there are more, due in %s", d)
	}
	w.sweep("acme")
	if got := verdicts(); got != "scanner" {
		t.Errorf("in the end: %q", got)
	}
	if now := pgtest.One[string](t, w.db, "acme", "SELECT max(xmin::text::bigint)::text FROM hit WHERE agent NOT LIKE '%Ash%'"); now != changed {
		t.Error("hits were written of which the lists say nothing else")
	}
	if d := due(); d < againLook/2 || d > againLook {
		t.Errorf("when all is done, due in %s", d)
	}
	// On the schema before, nothing is looked at again.
	w.d.Own(t, "acme", "DELETE FROM cursor WHERE name = 'scanners'", "ALTER TABLE cursor DROP lists, DROP since, DROP at", "RESET ROLE", fmt.Sprintf("UPDATE onda.tenant SET schema = %d WHERE name = 'acme'", ListsSchema-1))
	put(t, dir, agentsFile, "bot all ash\n")
	other := w.again()
	if types := other.sweep("acme"); slices.Contains(types, "onda.hit.reclassified.v1") {
		t.Errorf("on the schema before: %v", types)
	}
}

// A click that came too soon stays one when its mail's delivery is forgotten before its agent is.
func TestTooSoonOutlivesTheDelivery(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	dir := t.TempDir()
	w.scanners.dir, w.scanners.every = dir, 0
	put(t, dir, agentsFile, "bot all nobody\n")
	w.sweep("acme")
	_, d := w.sent("acme", "ada@example.com", 0)
	w.get("/c/" + w.token("acme", token.Claims{Purpose: token.Click, Delivery: d, Link: w.link("acme", "https://example.com/a")}))
	w.move("acme", time.Hour)
	w.do(http.MethodGet, "/o/"+w.token("acme", token.Claims{Purpose: token.Open, Delivery: d})+".gif", "203.0.113.77", browser+" Ash", nil)
	w.sweep("acme")
	w.move("acme", time.Hour)
	w.sweep("acme")
	pgtest.Exec(t, w.db, "acme", "DELETE FROM delivery")
	put(t, dir, agentsFile, "bot all ash\n") // its mail is judged again
	w.sweep("acme")
	w.move("acme", againAfter+time.Second)
	w.sweep("acme")
	want := []string{"click machine link=true tracked=true n=1 firsts=1", "open machine link=false tracked=true n=1 firsts=1"}
	if diff := cmp.Diff(want, w.stats("acme")); diff != "" {
		t.Error(diff)
	}
}
