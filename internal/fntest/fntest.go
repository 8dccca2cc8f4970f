// Package fntest runs several functions together in one test process, as internal/dev does in one-process mode: behind its ingress, with its broker
// routing by the manifests of eventing/, dropping, repeating, delaying and reordering events on request, and with a new instance of a function for each
// request where statelessness is to be shown. Every event that passes is checked against the catalogue.
//
// It knows no function: a test passes their builds, and the environment that they read.
package fntest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"

	"github.com/onda-run/onda/internal/dev"
	"github.com/onda-run/onda/internal/event/eventtest"
	"github.com/onda-run/onda/internal/fn"
	"github.com/onda-run/onda/internal/localbroker"
)

// Config says what a World is made of.
type Config struct {
	// Builds are the functions, by name. A function that is left out takes every event with 2xx and does nothing, and its public paths are 404.
	Builds map[string]fn.Build
	// Env is what all functions read; ServiceEnv is for single services, by name, and wins. They see nothing of the test's own environment.
	Env        map[string]string
	ServiceEnv map[string]map[string]string
	// Eventing is the directory of manifests; the repository's when empty.
	Eventing string
	// Chaos is how badly the broker behaves. NoEvents makes it lose every event: what still reaches functions is what schedule posts to them.
	Chaos    localbroker.Chaos
	NoEvents bool
	// RebuildEach makes a new instance of a function for each request, and ends it afterwards.
	RebuildEach bool
	// Unchecked lets events pass that break the catalogue, for tests of what becomes of them.
	Unchecked bool
	// Hurry divides the broker's waits: back-offs, delays and holds. 100 when 0.
	Hurry int
	// Pending counts what functions still owe to the outside, such as outbox rows that are due; Settle drains them.
	Pending func(context.Context) (int, error)
	// Level is the least level of the functions' logs that the test shows; warn when nil.
	Level *zap.AtomicLevel
	// Routes are further handlers of the ingress.
	Routes map[string]http.Handler
}

// World is functions that run together.
type World struct {
	t   testing.TB
	cfg Config
	dev *dev.Handle

	mu     sync.Mutex
	events []cloudevents.Event
}

// patience is how long anything may take that a test waits for.
const patience = 2 * time.Minute

// Start runs the functions until the test ends.
func Start(tb testing.TB, cfg Config) *World {
	tb.Helper()
	if cfg.Eventing == "" {
		cfg.Eventing = filepath.Join(root(tb), "eventing")
	}
	if cfg.Hurry == 0 {
		cfg.Hurry = 100
	}
	if cfg.NoEvents {
		cfg.Chaos = localbroker.Chaos{Drop: 1}
	}
	level := zap.NewAtomicLevelAt(zap.WarnLevel)
	if cfg.Level != nil {
		level = *cfg.Level
	}
	w := &World{t: tb, cfg: cfg}
	builds := map[string]fn.Build{}
	for _, s := range dev.Services() {
		builds[s.Function] = absent
	}
	for name := range cfg.Builds {
		if builds[name] == nil {
			tb.Fatalf("no service runs function %q; there are: %s", name, strings.Join(slices.Sorted(maps.Keys(builds)), ", "))
		}
	}
	maps.Copy(builds, cfg.Builds)
	h, err := dev.Start(tb.Context(), dev.Config{
		Addr: "127.0.0.1:0", Eventing: cfg.Eventing, Builds: builds, RebuildEach: cfg.RebuildEach, Env: cfg.Env, ServiceEnv: cfg.ServiceEnv,
		Tick: -1, Idle: patience, Chaos: cfg.Chaos, Clock: localbroker.FastClock{Factor: cfg.Hurry}, OnEvent: w.see, Routes: cfg.Routes,
		Output: io.Discard, Log: zaptest.NewLogger(tb, zaptest.Level(level)),
	})
	if err != nil {
		tb.Fatalf("start the functions: %v", err)
	}
	w.dev = h
	tb.Cleanup(func() {
		if err := h.Stop(context.Background()); err != nil {
			tb.Errorf("end the functions: %v", err)
		}
	})
	return w
}

// absent stands for a function that a test leaves out.
func absent(context.Context, *fn.Runtime) (fn.Handler, error) {
	return fn.Handler{
		Event:      func(context.Context, cloudevents.Event) (*cloudevents.Event, error) { return nil, nil },
		DeadLetter: func(context.Context, cloudevents.Event) error { return nil },
	}, nil
}

// root is the directory of the module that the test is in.
func root(tb testing.TB) string {
	tb.Helper()
	dir, err := os.Getwd()
	if err != nil {
		tb.Fatal(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		} else if !errors.Is(err, fs.ErrNotExist) {
			tb.Fatal(err)
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			tb.Fatal("no go.mod above the test's directory")
		}
		dir = parent
	}
}

// see keeps and checks an event of ours. Ticks of a PingSource are Knative's.
func (w *World) see(e cloudevents.Event) {
	if !strings.HasPrefix(e.Type(), "onda.") {
		return
	}
	if err := eventtest.Check(e); err != nil && !w.cfg.Unchecked {
		w.t.Errorf("%v\n%s", err, e)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.events = append(w.events, e)
}

// URL is the address of the ingress, where public paths are; FunctionURL that of a service.
func (w *World) URL() string { return w.dev.URL() }

// FunctionURL is the cluster-local address of a service.
func (w *World) FunctionURL(service string) string {
	return strings.ReplaceAll(w.dev.FunctionURL(), "{function}", service)
}

// Events are those that functions have published or were posted, in order, of one type or of all when it is empty. Repeats by the broker are not in it.
func (w *World) Events(eventType string) []cloudevents.Event {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []cloudevents.Event
	for _, e := range w.events {
		if eventType == "" || e.Type() == eventType {
			out = append(out, e)
		}
	}
	return out
}

// Publish puts an event into the broker, as any program may.
func (w *World) Publish(e cloudevents.Event) {
	w.t.Helper()
	if err := w.dev.Broker().Publish("", e); err != nil {
		w.t.Fatalf("publish: %v", err)
	}
}

// SetChaos changes how badly the broker behaves, from now on.
func (w *World) SetChaos(c localbroker.Chaos) {
	w.t.Helper()
	if err := w.dev.Broker().SetChaos(c); err != nil {
		w.t.Fatal(err)
	}
}

// Counts are what became of the events, by trigger.
func (w *World) Counts() localbroker.Counts { return w.dev.Broker().Counts() }

// Status is what runs and has run.
func (w *World) Status() dev.Status { return w.dev.Status() }

// Tick does what the PingSource does each minute: it posts its event to schedule, which posts schedule.due to the functions that have work due.
func (w *World) Tick(ctx context.Context) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := w.dev.Tick(ctx); err != nil {
		w.t.Fatalf("tick: %v", err)
	}
}

// Settle returns once nothing goes on: no request is in flight, the broker holds nothing, and all functions were drained and ended, their last After
// included. They start again at the next request. While something is Pending then, as when an After ran out of time on a busy machine, every function is
// asked for a path that it does not have, so that its After runs again; what is still pending after a few rounds fails the test.
func (w *World) Settle(ctx context.Context) {
	w.t.Helper()
	for round := 0; ; round++ {
		if err := w.settle(ctx); err != nil {
			w.t.Fatalf("settle: %v", err)
		}
		if w.cfg.Pending == nil {
			return
		}
		n, err := w.cfg.Pending(ctx)
		if err != nil {
			w.t.Fatalf("settle: count what is pending: %v", err)
		}
		if n == 0 {
			return
		}
		if round == 5 {
			w.t.Fatalf("settle: everything is quiet, and %d are still pending", n)
		}
		w.wake(ctx)
	}
}

// wake makes each function's After run.
func (w *World) wake(ctx context.Context) {
	w.t.Helper()
	for _, s := range w.dev.Status().Services {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, w.FunctionURL(s.Service)+"/nothing-here", http.NoBody)
		if err != nil {
			w.t.Fatalf("wake %s: %v", s.Service, err)
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			w.t.Fatalf("wake %s: %v", s.Service, err)
		}
		if err := res.Body.Close(); err != nil {
			w.t.Fatalf("wake %s: %v", s.Service, err)
		}
	}
}

func (w *World) settle(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return w.dev.Quiet(ctx)
}

// SweepUntil ticks and settles, again and again, until done says so. It fails the test after so many rounds. What is pending in between is left to the
// next round: a round is what a minute is in a cluster, and a test that waits for leases to end moves its clock in done.
func (w *World) SweepUntil(ctx context.Context, rounds int, done func(context.Context) (bool, error)) {
	w.t.Helper()
	for range rounds {
		if err := w.settle(ctx); err != nil {
			w.t.Fatalf("settle: %v", err)
		}
		ok, err := done(ctx)
		if err != nil {
			w.t.Fatal(err)
		}
		if ok {
			return
		}
		w.Tick(ctx)
	}
	w.t.Fatal(fmt.Errorf("not done after %d rounds", rounds))
}
