package system

import (
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/onda-run/onda/internal/fntest"
	"github.com/onda-run/onda/internal/localbroker"
	"github.com/onda-run/onda/internal/pgtest"
)

// The same things happen in four worlds: in a quiet one, in one whose broker drops, repeats and reorders while functions live for one request only, in one in
// which no event is delivered at all, and in one where two tenants do it all at the same time. The end is the same, row by row.
func TestSameEndWhateverTheBrokerDoes(t *testing.T) {
	t.Parallel()
	worlds := []struct {
		name    string
		cfg     fntest.Config
		tenants []string
	}{
		{"quiet", fntest.Config{}, []string{pgtest.Acme}},
		{"unruly broker and short lives", fntest.Config{Chaos: localbroker.Chaos{Drop: .3, Repeat: .3, Reorder: .3, Seed: 11}, RebuildEach: true}, []string{pgtest.Acme}},
		{"no events", fntest.Config{NoEvents: true}, []string{pgtest.Acme}},
		{"two tenants at once", fntest.Config{}, []string{pgtest.Acme, pgtest.Brava}},
	}
	ends := make([][][]string, len(worlds))
	var going sync.WaitGroup // all at once, since they wait more than they work
	for i, world := range worlds {
		going.Go(func() {
			t.Run(world.name, func(t *testing.T) {
				w := newWorld(t, world.cfg)
				w.play(world.tenants...)
				for _, tenant := range world.tenants {
					ends[i] = append(ends[i], w.snapshot(tenant))
				}
				w.plausible(world.tenants)
				c := w.Counts()
				t.Logf("%d mails received, %d rounds, %d events seen; broker: %d accepted", w.box.Counts().Received, w.rounds, len(w.Events("")), c.Accepted)
			})
		})
	}
	going.Wait()
	if t.Failed() {
		return
	}
	for i, world := range worlds {
		for k, tenant := range world.tenants {
			if diff := cmp.Diff(ends[0][0], ends[i][k]); diff != "" {
				t.Errorf("the end is not that of the quiet world (-quiet +%s, %s):\n%s", world.name, tenant, diff)
			}
		}
	}
}

// plausible tells whether enough has happened in a world for its end to mean something, and nothing that should not have.
func (w *world) plausible(tenants []string) {
	w.t.Helper()
	if n := w.box.Counts().Repeated; n != 0 {
		w.t.Errorf("%d mails were repeated", n)
	}
	for _, tenant := range tenants {
		for _, least := range []struct {
			what string
			n    int
			sql  string
		}{
			{"mails sent", 800, "SELECT count(*) FROM delivery WHERE state = 'sent'"},
			{"mails refused for good", 10, "SELECT count(*) FROM delivery WHERE state = 'failed'"},
			{"mails not sent for want of consent", 10, "SELECT count(*) FROM delivery WHERE state = 'suppressed' AND reason = 'no_consent'"},
			{"mails not sent to who is suppressed", 3, "SELECT count(*) FROM delivery WHERE state = 'suppressed' AND reason = 'suppressed'"},
			{"bounces and complaints", 10, "SELECT count(*) FROM delivery WHERE bounced_at IS NOT NULL OR complained_at IS NOT NULL"},
			{"unsubscribed", 30, "SELECT count(*) FROM subscription WHERE purpose = 'newsletter' AND state = 'withdrawn'"},
			{"clicks of people", 50, "SELECT count(*) FROM hit WHERE kind = 'click' AND verdict = 'human'"},
			{"clicks of machines", 10, "SELECT count(*) FROM hit WHERE kind = 'click' AND verdict = 'machine'"},
			{"aggregate clicks", 50, "SELECT sum(n) FROM stat WHERE NOT tracked AND kind = 'click'"},
			{"journeys to the goal", 2, "SELECT count(*) FROM journey WHERE state = 'goal'"},
			{"journeys left", 3, "SELECT count(*) FROM journey WHERE state = 'left'"},
			{"journeys done by a click", 10, "SELECT count(*) FROM journey j JOIN step s ON s.journey = j.id WHERE j.state = 'done' AND s.branch = 'then' AND s.step IN ('read', 'first-click')"},
			{"journeys done by a time-out", 10, "SELECT count(*) FROM journey j JOIN step s ON s.journey = j.id WHERE j.state = 'done' AND s.branch = 'timeout'"},
			{"confirmed submissions", 5, "SELECT count(*) FROM submission WHERE state = 'confirmed'"},
			{"members of segments", 500, "SELECT count(*) FROM member"},
		} {
			if n := w.count(tenant, least.sql); n < least.n {
				w.t.Errorf("%s: %s: %d, not even %d", tenant, least.what, n, least.n)
			}
		}
		for _, none := range []struct{ what, sql string }{
			{"mails of unknown outcome, or deferred", "SELECT count(*) FROM delivery WHERE state IN ('unknown', 'deferred')"},
			{"batches open", "SELECT count(*) FROM batch WHERE state = 'open'"},
			{"hits not judged", "SELECT count(*) FROM hit WHERE verdict IS NULL"},
			{"events in the outbox", "SELECT count(*) FROM outbox"},
			{"failures", "SELECT count(*) FROM failure"},
			{"journeys not ended", "SELECT count(*) FROM journey WHERE state = 'active'"},
		} {
			if n := w.count(tenant, none.sql); n != 0 {
				w.t.Errorf("%s: %s: %d", tenant, none.what, n)
			}
		}
	}
	for _, name := range w.numbers() {
		if strings.Contains(strings.Join(tenants, " "), name) {
			continue
		}
		if n := w.count(name, "SELECT (SELECT count(*) FROM contact) + (SELECT count(*) FROM fact) + (SELECT count(*) FROM batch) + (SELECT count(*) FROM outbox)"); n != 0 {
			w.t.Errorf("%s, where nothing happened, has %d rows", name, n)
		}
	}
}
