package fntest

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	cloudevents "github.com/cloudevents/sdk-go/v2"

	"github.com/onda-run/onda/internal/event"
	"github.com/onda-run/onda/internal/fn"
	"github.com/onda-run/onda/internal/localbroker"
)

// ledger is what stands for Postgres: runs that are to be sent, and those that were.
type ledger struct {
	mu     sync.Mutex
	outbox map[int64]bool
	sent   map[int64]int
	builds atomic.Int64
}

func newLedger() *ledger { return &ledger{outbox: map[int64]bool{}, sent: map[int64]int{}} }

// campaign stores the run it is told of, and rings for it after its answer. On schedule.due it rings for all that were not sent.
func (l *ledger) campaign(_ context.Context, rt *fn.Runtime) (fn.Handler, error) {
	l.builds.Add(1)
	return fn.Handler{
		Event: func(_ context.Context, e cloudevents.Event) (*cloudevents.Event, error) {
			data, err := event.Decode(e)
			if err != nil {
				return nil, fn.Permanent(err)
			}
			l.mu.Lock()
			defer l.mu.Unlock()
			if started, ok := data.(event.CampaignStarted); ok {
				l.outbox[started.Run] = true
			}
			return nil, nil
		},
		After: func(ctx context.Context) {
			l.mu.Lock()
			var due []int64
			for run := range l.outbox {
				due = append(due, run)
			}
			l.mu.Unlock()
			for _, run := range due {
				e, err := event.New("acme", "campaign", fmt.Sprint(run), event.DeriveID("send", fmt.Sprint(run)), event.EmailSendRequested{Run: run})
				if err == nil {
					err = rt.Publish(ctx, "onda", e)
				}
				if err != nil {
					return // the rest stays in the outbox
				}
				l.mu.Lock()
				delete(l.outbox, run)
				l.mu.Unlock()
			}
		},
	}, nil
}

// send notes each run that it is told to send.
func (l *ledger) send(context.Context, *fn.Runtime) (fn.Handler, error) {
	return fn.Handler{Event: func(_ context.Context, e cloudevents.Event) (*cloudevents.Event, error) {
		data, err := event.Decode(e)
		if err != nil {
			return nil, fn.Permanent(err)
		}
		if d, ok := data.(event.EmailSendRequested); ok {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.sent[d.Run]++
		}
		return nil, nil
	}}, nil
}

// schedule posts schedule.due to campaign at each tick, past the broker.
func (l *ledger) schedule(_ context.Context, rt *fn.Runtime) (fn.Handler, error) {
	return fn.Handler{Event: func(ctx context.Context, e cloudevents.Event) (*cloudevents.Event, error) {
		pattern, _ := rt.Env.Lookup("ONDA_FUNCTION_URL")
		due, err := event.New("acme", "schedule", "campaign", event.DeriveID("due", e.ID()), event.ScheduleDue{Function: "campaign"})
		if err != nil {
			return nil, fn.Permanent(err)
		}
		return nil, rt.Post(ctx, strings.ReplaceAll(pattern, "{function}", "campaign"), due)
	}}, nil
}

func (l *ledger) world(tb testing.TB, cfg Config) *World {
	tb.Helper()
	cfg.Pending = func(context.Context) (int, error) {
		l.mu.Lock()
		defer l.mu.Unlock()
		return len(l.outbox), nil
	}
	cfg.Builds = map[string]fn.Build{"campaign": l.campaign, "send": l.send, "schedule": l.schedule}
	return Start(tb, cfg)
}

func (l *ledger) counts() (runs, times int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, n := range l.sent {
		times += n
	}
	return len(l.sent), times
}

func started(t *testing.T, run int64) cloudevents.Event {
	t.Helper()
	e, err := event.New("acme", "campaign", fmt.Sprint(run), event.DeriveID("start", fmt.Sprint(run)), event.CampaignStarted{Campaign: event.Campaign{Run: run, Campaign: "welcome"}})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// TestSettle: the chain started, stored, rung after the answer, sent has come to its end when Settle returns, however functions live.
func TestSettle(t *testing.T) {
	t.Parallel()
	const n = 30
	for _, test := range []struct {
		name        string
		cfg         Config
		runs, times int // of n; -1: some
	}{
		{"one instance", Config{}, n, -1},
		{"an instance for each request", Config{RebuildEach: true}, n, -1}, // several drain one outbox here, as nothing is leased
		{"all is repeated", Config{Chaos: localbroker.Chaos{Repeat: 1, Reorder: .5, Delay: .5}}, n, -1},
		{"some is dropped", Config{Chaos: localbroker.Chaos{Drop: .3, Repeat: .3, Reorder: .3, Seed: 1}, RebuildEach: true}, -1, -1},
		{"no events at all", Config{NoEvents: true}, 0, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			l := newLedger()
			w := l.world(t, test.cfg)
			for run := range int64(n) {
				w.Publish(started(t, run+1))
			}
			w.Settle(t.Context())
			runs, times := l.counts()
			switch {
			case test.runs >= 0 && runs != test.runs, test.times >= 0 && times != test.times,
				test.runs < 0 && (runs == 0 || runs == n), test.times < 0 && times < runs:
				t.Errorf("%d runs were sent %d times", runs, times)
			}
			if len(l.outbox) != 0 {
				t.Errorf("%d are left in the outbox", len(l.outbox))
			}
			if test.cfg.RebuildEach && l.builds.Load() < 2 {
				t.Errorf("campaign was built %d times", l.builds.Load())
			}
			for _, s := range w.Status().Services {
				if s.State != "zero" {
					t.Errorf("%s is %s after Settle", s.Service, s.State)
				}
			}
		})
	}
}

// TestSweep: with every event lost, a tick reaches campaign past the broker.
func TestSweep(t *testing.T) {
	t.Parallel()
	l := newLedger()
	w := l.world(t, Config{NoEvents: true})
	rounds := 0
	l.outbox[7] = true
	w.SweepUntil(t.Context(), 5, func(context.Context) (bool, error) {
		rounds++
		l.mu.Lock()
		defer l.mu.Unlock()
		return len(l.outbox) == 0, nil
	})
	if due := w.Events(event.TypeScheduleDue); rounds != 2 || len(due) != 1 {
		t.Errorf("%d rounds, %d schedule.due", rounds, len(due))
	}
	if rang := w.Events(event.TypeEmailSendRequested); len(rang) != 1 {
		t.Errorf("%d doorbells", len(rang))
	}
	if c := w.Counts(); c.Accepted != 1 || c.Triggers["send-email-send-requested"].Delivered != 0 {
		t.Errorf("counts: %+v", c)
	}
}

func TestFunctionsThatAreLeftOut(t *testing.T) {
	t.Parallel()
	w := Start(t, Config{})
	w.Publish(started(t, 1))
	w.Settle(t.Context())
	for name, c := range w.Counts().Triggers {
		if c.Delivered != c.Accepted {
			t.Errorf("trigger %s: %+v", name, c)
		}
	}
	res, err := http.Get(w.URL() + "/o/abc.gif")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	if res.StatusCode != http.StatusNotFound {
		t.Errorf("answered %s", res.Status)
	}
}

// failing is a test that notes its failures instead of failing.
type failing struct {
	testing.TB
	mu    sync.Mutex
	texts []string
}

func (f *failing) Errorf(format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.texts = append(f.texts, fmt.Sprintf(format, args...))
}

// Fatalf ends the goroutine, as a test's does.
func (f *failing) Fatalf(format string, args ...any) {
	f.Errorf(format, args...)
	panic(f)
}

func TestABrokenEventFailsTheTest(t *testing.T) {
	t.Parallel()
	f := &failing{TB: t}
	w := Start(f, Config{})
	e := started(t, 1)
	if err := e.SetData("application/json", map[string]string{"run": "one"}); err != nil {
		t.Fatal(err)
	}
	w.Publish(e)
	w.Settle(t.Context())
	if len(f.texts) != 1 || !strings.Contains(f.texts[0], "onda.campaign.started.v1") {
		t.Errorf("failures: %q", f.texts)
	}
}

func TestPendingFailsTheTest(t *testing.T) {
	t.Parallel()
	f := &failing{TB: t}
	w := Start(f, Config{Pending: func(context.Context) (int, error) { return 3, nil }})
	func() {
		defer func() { _ = recover() }() // Fatalf's
		w.Settle(t.Context())
	}()
	if len(f.texts) != 1 || !strings.Contains(f.texts[0], "3 are still pending") {
		t.Errorf("failures: %q", f.texts)
	}
}

// TestSettleDrainsWhatIsPending: an outbox that could not be posted the first times is asked again.
func TestSettleDrainsWhatIsPending(t *testing.T) {
	t.Parallel()
	var runs atomic.Int64
	w := Start(t, Config{
		Builds: map[string]fn.Build{"segment": func(context.Context, *fn.Runtime) (fn.Handler, error) {
			return fn.Handler{After: func(context.Context) { runs.Add(1) }}, nil
		}},
		Pending: func(context.Context) (int, error) { return int(max(0, 3-runs.Load())), nil },
	})
	w.Settle(t.Context())
	if runs.Load() < 3 {
		t.Errorf("After ran %d times", runs.Load())
	}
}
