package fn

import (
	"context"
	"time"

	ce "github.com/cloudevents/sdk-go/v2/event"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"go.uber.org/zap"

	"github.com/onda-run/onda/internal/event"
)

// Store is where a function's events wait to be published and where those that can never succeed are kept: a *postgres.DB.
type Store interface {
	DrainPending(ctx context.Context, post func(ctx context.Context, namespace string, e ce.Event) error) error
	KeepFailure(ctx context.Context, function, tenant string, e ce.Event, cause error) error
}

// Publishes gives a Handler's After: what the store holds of this process is published. Nil where there is nowhere to publish to: then it stays for the sweep.
func (rt *Runtime) Publishes(s Store) func(ctx context.Context) {
	if rt.Sink == "" {
		return nil
	}
	return func(ctx context.Context) {
		if err := s.DrainPending(ctx, rt.Publish); err != nil {
			rt.Log.Warn("events stay in the outbox", zap.Error(err))
		}
	}
}

// Keeps gives a Handler's Failed: the event is kept in the store, also one of which the tenant cannot be told.
func (rt *Runtime) Keeps(s Store) func(ctx context.Context, e ce.Event, cause error) error {
	return func(ctx context.Context, e ce.Event, cause error) error {
		tenant, err := event.Tenant(e)
		if err != nil {
			tenant = ""
		}
		return s.KeepFailure(ctx, rt.Name, tenant, e, cause)
	}
}

// Watch measures what is found waiting for a reader, as onda.lag (how old the oldest of it is) and onda.backlog (how many there are, where that was counted): what postgres.DB.Watch takes.
func (rt *Runtime) Watch() func(ctx context.Context, what, reader string, oldest time.Duration, n int) {
	return func(ctx context.Context, what, reader string, oldest time.Duration, n int) {
		ctx = context.WithoutCancel(ctx)
		by := metric.WithAttributes(attribute.String("onda.function", rt.Name), attribute.String("onda.what", what), attribute.String("onda.reader", reader))
		rt.lag.Record(ctx, oldest.Seconds(), by)
		if n > 0 {
			rt.backlog.Record(ctx, int64(n), by)
		}
	}
}

// backlogs makes the instruments of Watch.
func (rt *Runtime) backlogs() (err error) {
	rt.lag, err = rt.Meter.Float64Histogram("onda.lag", metric.WithUnit("s"), metric.WithExplicitBucketBoundaries(0.1, 0.3, 1, 3, 10, 20, 30, 60, 120, 300, 600, 1800, 3600, 21600, 86400),
		metric.WithDescription("How old the oldest of what waited was when it was come to: facts, hits, outbox, work that is due."))
	if err != nil {
		return err
	}
	rt.backlog, err = rt.Meter.Int64Histogram("onda.backlog", metric.WithUnit("{item}"), metric.WithExplicitBucketBoundaries(1, 10, 100, 200, 500, 1000, 5000, 10000),
		metric.WithDescription("How many facts, hits, events in the outbox, or tenants with work that is due, waited when they were come to."))
	return err
}
