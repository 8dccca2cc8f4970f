// Package fn is the runtime of Onda's functions: HTTP and CloudEvents come in, the error taxonomy of errors.go goes out as a status, and probes, draining,
// logs and telemetry are the same everywhere.
//
// A function is stateless and lazy: it opens no connection before its first request, so it is ready within milliseconds. A 2xx is written only after
// what it promises is committed. Deliver an event as often as you like: whatever is refused or lost is found again by the sweep.
package fn

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"runtime/debug"

	ce "github.com/cloudevents/sdk-go/v2/event"
	"github.com/sethvargo/go-envconfig"
	"go.uber.org/zap"
	"knative.dev/pkg/signals"
)

// Handler is what a function does. Every part may be nil.
type Handler struct {
	// Event does the work of one CloudEvent, posted to the path "/". It may return one event as the answer, which the broker takes as published. Its
	// error decides the status (see Status). Nil answers 404 to CloudEvents, as public services must, since anyone could post them.
	Event func(ctx context.Context, e ce.Event) (*ce.Event, error)
	// DeadLetter keeps an event that a broker gave up on, posted to the path "/dead-letters". The attributes knativeerrordest, knativeerrorcode and
	// knativeerrordata tell what it failed of. Nil answers 404.
	DeadLetter func(ctx context.Context, e ce.Event) error
	// HTTP answers every other request but the probes. Nil answers 404.
	HTTP http.Handler
	// Failed keeps an event that can never succeed, since not every broker dead-letters it. It is called before the answer: an event that could not be
	// kept is answered 503, not 400, so that it comes again. What could not be read of the event is missing in e: the data of one that is too large,
	// everything of one that is no JSON.
	Failed func(ctx context.Context, e ce.Event, err error) error
	// After runs when an answer was written: it publishes what the outbox holds. It never runs twice at once, several requests may share one run, and it
	// runs once more when the function drains.
	After func(ctx context.Context)
	// Close gives everything back. It is called once, after the last After.
	Close func(ctx context.Context) error
}

// Build makes a function's handler from its configuration. It must not connect to anything.
type Build func(ctx context.Context, rt *Runtime) (Handler, error)

// Main runs a function until SIGTERM or SIGINT, drains it and exits: with 0, with 1 after one line on standard error when it could not start or drain.
// A second signal ends it at once.
func Main(name string, build Build) {
	os.Exit(run(signals.NewContext(), name, build, envconfig.OsLookuper(), os.Stderr))
}

// How the collector runs where the environment does not say. The heap stays well below the limit at most times; where much is under way for a moment, it is collected sooner
// rather than grown: measured, that costs nothing and saves a fifth of the memory of send.
const (
	GCPercent   = 400
	MemoryLimit = 28 << 20
)

// run serves until ctx is done and returns the exit status.
func run(ctx context.Context, name string, build Build, env envconfig.Lookuper, stderr io.Writer) int {
	fail := func(err error) int {
		_, _ = fmt.Fprintf(stderr, "%s: %v\n", name, err)
		return 1
	}
	var cfg Config
	if err := readConfig(ctx, &cfg, env); err != nil {
		return fail(err)
	}
	if cfg.GOGC == "" {
		// The heap is so small that the collector would run all the time: 400 saves up to a third of the CPU for 12 MB.
		debug.SetGCPercent(GCPercent)
	}
	if cfg.GOMEMLIMIT == "" {
		debug.SetMemoryLimit(MemoryLimit)
	}
	log, err := newLogger(name, cfg, os.Stdout)
	if err != nil {
		return fail(err)
	}
	tel, err := newTelemetry(ctx, name, cfg)
	if err != nil {
		return fail(err)
	}
	tel.share()
	in, err := start(ctx, name, build, env, log, tel)
	if err != nil {
		if why := secretAtFault(err, env); why != nil {
			in, err = start(ctx, name, refusing(why), env, log, tel)
		}
	}
	if err != nil {
		return fail(errors.Join(err, tel.Close(context.WithoutCancel(ctx))))
	}
	if err := serve(ctx, in); err != nil {
		return fail(err)
	}
	return 0
}

// Start builds a function within the process: for tests, debuggers and the development mode that runs all functions in one. What it serves is
// read from env as Main does, except that it opens no port and sends no telemetry. End it with Stop.
func Start(ctx context.Context, name string, build Build, env envconfig.Lookuper, log *zap.Logger) (*Instance, error) {
	return start(ctx, name, build, env, log, noTelemetry())
}
