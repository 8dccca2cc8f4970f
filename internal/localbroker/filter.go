package localbroker

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	cloudevents "github.com/cloudevents/sdk-go/v2"
	"github.com/cloudevents/sdk-go/v2/binding"
	cehttp "github.com/cloudevents/sdk-go/v2/protocol/http"
	"go.uber.org/zap"
	eventingv1 "knative.dev/eventing/pkg/apis/eventing/v1"
	"knative.dev/eventing/pkg/eventfilter"
	"knative.dev/eventing/pkg/eventfilter/attributes"
	"knative.dev/eventing/pkg/eventfilter/subscriptionsapi"
	"knative.dev/pkg/logging"
)

// filter decides whether a trigger gets an event. spec.filters override spec.filter; without either everything passes.
type filter struct {
	knative eventfilter.Filter
	ctx     context.Context // holds the logger that Knative's filters ask for: one that is silent, they log each event
}

// newFilter builds the filter of a valid trigger. It refuses what Knative accepts and then reads otherwise than it is written.
func newFilter(t *eventingv1.Trigger) (filter, error) {
	f := filter{ctx: logging.WithLogger(context.Background(), zap.NewNop().Sugar())}
	if len(t.Spec.Filters) == 0 {
		var wanted map[string]string
		if t.Spec.Filter != nil {
			wanted = t.Spec.Filter.Attributes
		}
		f.knative = attributes.NewAttributesFilter(wanted)
		return f, nil
	}
	for i, entry := range t.Spec.Filters {
		if err := checkEntry(entry); err != nil {
			return f, fmt.Errorf("filters[%d]%w", i, err)
		}
	}
	f.knative = compose(t.Spec.Filters)
	return f, nil
}

// checkEntry refuses an entry that Knative's filter would skip with no more than a warning, so that everything passes, or that makes it panic.
func checkEntry(entry eventingv1.SubscriptionsAPIFilter) error {
	for _, dialect := range []struct {
		name   string
		values map[string]string
	}{{"exact", entry.Exact}, {"prefix", entry.Prefix}, {"suffix", entry.Suffix}} {
		for attribute, value := range dialect.values {
			if value == "" {
				return fmt.Errorf(".%s.%s: is empty: Knative skips such an entry and lets every event pass; use not with a prefix, or cesql with EXISTS", dialect.name, attribute)
			}
		}
	}
	for _, list := range []struct {
		name    string
		entries []eventingv1.SubscriptionsAPIFilter
	}{{"all", entry.All}, {"any", entry.Any}} {
		for i, inner := range list.entries {
			if err := checkEntry(inner); err != nil {
				return fmt.Errorf(".%s[%d]%w", list.name, i, err)
			}
		}
	}
	if entry.Not != nil {
		if err := checkEntry(*entry.Not); err != nil {
			return fmt.Errorf(".not%w", err)
		}
	}
	if entry.CESQL != "" {
		return checkCESQL(entry.CESQL)
	}
	if len(entry.Exact)+len(entry.Prefix)+len(entry.Suffix)+len(entry.All)+len(entry.Any) == 0 && entry.Not == nil {
		return errors.New(": has no dialect: Knative skips such an entry and lets every event pass")
	}
	return nil
}

// checkCESQL evaluates an expression on an event that has the attributes of all of Onda's: a result that is no boolean makes Knative's filter panic. An
// expression that fails on this event may be right on others; then apply decides.
func checkCESQL(expression string) error {
	e := cloudevents.NewEvent()
	e.SetType("onda.sample.made.v1")
	e.SetSource("/tenants/acme/functions/send")
	e.SetID("1")
	e.SetSubject("1")
	for _, name := range []string{"tenant", "partitionkey", "correlationid", "causationid", "traceparent", "stream", "attempt"} {
		e.SetExtension(name, "1")
	}
	knative, err := subscriptionsapi.NewCESQLFilter(expression)
	if err != nil {
		return fmt.Errorf(".cesql: %w", err)
	}
	f := filter{knative: knative, ctx: logging.WithLogger(context.Background(), zap.NewNop().Sugar())}
	if _, err := f.passes(e); err != nil {
		return fmt.Errorf(".cesql: %q does not give a boolean: Knative's filter would panic on it", expression)
	}
	return nil
}

// passes applies the filter. Only FailFilter blocks. An error stands for a panic of Knative's filter, which in a cluster breaks the connection between the
// channel and the broker's filter.
func (f filter) passes(e cloudevents.Event) (pass bool, err error) {
	defer func() {
		if v := recover(); v != nil {
			pass, err = false, fmt.Errorf("the filter panicked: %v", v)
		}
	}()
	return f.knative.Filter(f.ctx, e) != eventfilter.FailFilter, nil
}

func (f filter) close() {
	if f.knative != nil {
		f.knative.Cleanup()
	}
}

// Matching names the triggers that would get e, in order of name.
func (r *Routes) Matching(e cloudevents.Event) ([]string, error) {
	e, err := overHTTP(e)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, t := range r.Triggers {
		pass, err := t.filter.passes(e)
		if err != nil {
			return names, fmt.Errorf("trigger %s: %w", t.Name, err)
		}
		if pass {
			names = append(names, t.Name)
		}
	}
	return names, nil
}

// overHTTP sends e through binary HTTP encoding and back. A cluster's filters see events that came this way, with all extensions as strings: in process an
// integer extension would not match what it matches there.
func overHTTP(e cloudevents.Event) (cloudevents.Event, error) {
	ctx := binding.WithForceBinary(context.Background()) // in memory: there is nothing to wait for
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://broker.invalid", http.NoBody)
	if err != nil {
		return e, fmt.Errorf("encode event: %w", err)
	}
	if err := cehttp.WriteRequest(ctx, (*binding.EventMessage)(&e), req); err != nil {
		return e, fmt.Errorf("encode event: %w", err)
	}
	back, err := cehttp.NewEventFromHTTPRequest(req)
	if err != nil {
		return e, fmt.Errorf("decode event: %w", err)
	}
	return *back, nil
}
