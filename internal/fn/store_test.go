package fn

import (
	"context"
	"errors"
	"testing"

	ce "github.com/cloudevents/sdk-go/v2/event"
	"go.uber.org/zap/zaptest"

	"github.com/onda-run/onda/internal/event"
)

// kept stands for Postgres: it notes what a function asks of it, and answers with err.
type kept struct {
	drained int
	tenants []string
	err     error
}

func (k *kept) DrainPending(context.Context, func(context.Context, string, ce.Event) error) error {
	k.drained++
	return k.err
}

func (k *kept) KeepFailure(_ context.Context, function, tenant string, _ ce.Event, _ error) error {
	k.tenants = append(k.tenants, function+" "+tenant)
	return k.err
}

func TestWhatIsPublishedAndKept(t *testing.T) {
	t.Parallel()
	for _, away := range []error{nil, errors.New("postgres is away")} {
		k := &kept{err: away}
		rt := &Runtime{Name: "send", Log: zaptest.NewLogger(t)}
		if rt.Publishes(k) != nil {
			t.Error("something is published though there is nowhere to publish to")
		}
		rt.Sink = "http://broker"
		rt.Publishes(k)(t.Context())
		if k.drained != 1 {
			t.Errorf("drained %d times, want once", k.drained)
		}
		e, err := event.New("acme", "campaign", "", "1", event.EmailSendRequested{Run: 1})
		if err != nil {
			t.Fatal(err)
		}
		if err := rt.Keeps(k)(t.Context(), e, errors.New("no such run")); !errors.Is(err, away) {
			t.Errorf("keeping gives %v, want %v", err, away)
		}
		if err := rt.Keeps(k)(t.Context(), ce.Event{}, errors.New("no event at all")); !errors.Is(err, away) {
			t.Errorf("keeping gives %v, want %v", err, away)
		}
		if len(k.tenants) != 2 || k.tenants[0] != "send acme" || k.tenants[1] != "send " {
			t.Errorf("kept for %q", k.tenants)
		}
	}
}
