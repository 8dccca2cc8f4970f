package system

import (
	"context"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"strconv"
	"testing"

	"github.com/onda-run/onda/internal/localbroker"
	"github.com/onda-run/onda/internal/pgtest"
)

// seed is of the moments at which things break: new each time, and ONDA_TEST_SEED repeats one.
func seed(tb testing.TB) *rand.Rand {
	tb.Helper()
	n := rand.Uint64()
	if text := os.Getenv("ONDA_TEST_SEED"); text != "" {
		var err error
		if n, err = strconv.ParseUint(text, 10, 64); err != nil {
			tb.Fatalf("ONDA_TEST_SEED: %v", err)
		}
	}
	tb.Logf("ONDA_TEST_SEED=%d", n)
	return rand.New(rand.NewPCG(n, 0))
}

// Every process of every function is killed at twenty random moments of two tenants' broadcasts, while events are dropped and repeated. Every mail has its outcome
// then, none came twice, and unknown are at most those that were in somebody's hand.
func TestKilledAtRandomMoments(t *testing.T) {
	t.Parallel()
	const kills = 20
	random := seed(t)
	f := newFleet(t, pgtest.New(t), localbroker.Chaos{Drop: .2, Repeat: .2, Reorder: .2, Seed: random.Uint64()})
	tenants := map[string]int{pgtest.Acme: 2000, pgtest.Brava: 1000}
	f.audiences(tenants)
	killed, processes := 0, 0
	for at := 0; killed < kills; killed++ {
		// Not as a share of all: those of unknown outcome may never have come.
		at += random.IntN(80)
		over := false
		wait(t, "mails to come", func() bool {
			over = f.over(tenants)
			return f.received() >= at || over
		})
		if over {
			break
		}
		at = f.received()
		processes += f.killAll()
	}
	wait(t, "the broadcasts to be over", func() bool { return f.over(tenants) })
	if killed < kills/2 {
		t.Errorf("only %d kills before all was over", killed)
	}
	f.audit(tenants, killed*batches*window)
	t.Logf("%d kills of all, %d processes", killed, processes)
}

// Pixels are loaded while every process is killed again and again: what was answered is stored.
func TestAnsweredHitsOutliveKills(t *testing.T) {
	t.Parallel()
	const kills = 10
	random := seed(t)
	f := newFleet(t, pgtest.New(t), localbroker.Chaos{})
	tenants := map[string]int{pgtest.Acme: 40}
	f.audiences(tenants)
	wait(t, "the broadcast to be over", func() bool { return f.over(tenants) })
	var pixels []string
	for _, l := range f.letters() {
		pixels = append(pixels, l.pixel)
	}
	v := f.visit(pixels)
	for range kills {
		answered, more := v.answered.Load(), int64(5+random.IntN(40))
		wait(t, "pixels to be answered", func() bool { return v.answered.Load() >= answered+more })
		f.killAll()
	}
	v.stop()
	<-v.done
	answered, refused := v.answered.Load(), v.refused.Load()
	stored := int64(f.count(pgtest.Acme, "SELECT count(*) FROM hit"))
	if stored < answered || stored > answered+refused+1 {
		t.Errorf("%d hits are stored, of %d that were answered and %d that were not", stored, answered, refused)
	}
	wait(t, "all hits to be judged", func() bool {
		return f.count(pgtest.Acme, "SELECT count(*) FROM hit WHERE verdict IS NULL") == 0
	})
	if n := int64(f.count(pgtest.Acme, "SELECT sum(n) FROM stat WHERE kind = 'open'")); n != stored {
		t.Errorf("statistics count %d opens of %d", n, stored)
	}
	t.Logf("%d answered, %d not, %d stored", answered, refused, stored)
}

func get(ctx context.Context, w *world, url string) (int, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, err
	}
	r.Header.Set("User-Agent", browser)
	resp, err := w.client.Do(r)
	if err != nil {
		return 0, err
	}
	defer func() { _ = resp.Body.Close() }()
	_, err = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode, err
}
