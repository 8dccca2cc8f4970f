package fn

import (
	"context"

	ce "github.com/cloudevents/sdk-go/v2/event"
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
