package fn

import (
	"context"
	"fmt"

	"github.com/sethvargo/go-envconfig"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/trace"
	"go.uber.org/zap"
)

// Runtime is what a function is given to build itself from.
type Runtime struct {
	// Name is the function's name.
	Name string
	// Tenant is the one tenant that this process serves; empty for any. Events of other tenants are refused before they reach the handler; requests over
	// HTTP must be checked by the function, once the tenant is proven.
	Tenant string
	// Publisher posts the function's events.
	Publisher
	// ServesHTTP and ServesEvents tell what ONDA_SERVE asks for.
	ServesHTTP, ServesEvents bool
	// Log is the function's logger. A line of each request is written by the runtime; see LogTenant and LogError.
	Log *zap.Logger
	// Env is where Config reads.
	Env envconfig.Lookuper
	// Tracer and Meter make the function's own spans and instruments; they do nothing unless OTEL_* asks for them.
	Tracer trace.Tracer
	Meter  metric.Meter

	lag      metric.Float64Histogram
	backlog  metric.Int64Histogram
	draining chan struct{}
}

// Config fills cfg, a pointer to a struct with go-envconfig's env tags, from the environment. A method Check() error on it is called afterwards. The error
// is one line that names the variable.
func (rt *Runtime) Config(ctx context.Context, cfg any) error {
	return readConfig(ctx, cfg, rt.Env)
}

// Draining is closed when the function is told to end. A handler that works in pieces ends after the one it is at, and gives back what it holds.
func (rt *Runtime) Draining() <-chan struct{} { return rt.draining }

func newRuntime(ctx context.Context, name string, env envconfig.Lookuper, log *zap.Logger, tel *telemetry) (*Runtime, Config, error) {
	var cfg Config
	if err := readConfig(ctx, &cfg, env); err != nil {
		return nil, cfg, err
	}
	if log == nil {
		return nil, cfg, fmt.Errorf("function %s: no logger", name)
	}
	rt := &Runtime{
		Name: name, Tenant: cfg.Tenant, Publisher: NewPublisher(cfg.Sink, cfg.Token),
		ServesHTTP: cfg.Serve != "events", ServesEvents: cfg.Serve != "http",
		Log: log, Env: env,
		Tracer: tel.tracers.Tracer(scope), Meter: tel.meters.Meter(scope),
		draining: make(chan struct{}),
	}
	if err := rt.backlogs(); err != nil {
		return nil, cfg, fmt.Errorf("make instruments: %w", err)
	}
	return rt, cfg, nil
}
