package localbroker

import (
	"context"

	cloudevents "github.com/cloudevents/sdk-go/v2"
	"go.uber.org/zap"
	eventingv1 "knative.dev/eventing/pkg/apis/eventing/v1"
	"knative.dev/eventing/pkg/eventfilter"
	"knative.dev/eventing/pkg/eventfilter/subscriptionsapi"
)

// compose builds a list of filters, of which all must pass. The dialects that look at an event are Knative's. Those that hold others are ours, with the same
// outcome: Knative's "all" and "any" reorder their entries in the background by how often each decides, while Filter and Cleanup read what that writes (a
// data race in v0.50.0, found by the race detector). A test holds the two to one verdict.
func compose(entries []eventingv1.SubscriptionsAPIFilter) eventfilter.Filter {
	return all(composeEach(entries))
}

func composeEach(entries []eventingv1.SubscriptionsAPIFilter) []eventfilter.Filter {
	var out []eventfilter.Filter
	for _, entry := range entries {
		out = append(out, composeOne(entry))
	}
	return out
}

// composeOne builds an entry that checkEntry has accepted. The order of the cases is Knative's.
func composeOne(entry eventingv1.SubscriptionsAPIFilter) eventfilter.Filter {
	switch {
	case len(entry.Exact)+len(entry.Prefix)+len(entry.Suffix) > 0:
	case len(entry.All) > 0:
		return all(composeEach(entry.All))
	case len(entry.Any) > 0:
		return anyOf(composeEach(entry.Any))
	case entry.Not != nil:
		return subscriptionsapi.NewNotFilter(composeOne(*entry.Not))
	}
	return subscriptionsapi.MaterializeSubscriptionsAPIFilter(zap.NewNop(), entry)
}

// all passes when none of its filters fails.
type all []eventfilter.Filter

// Filter implements eventfilter.Filter.
func (a all) Filter(ctx context.Context, e cloudevents.Event) eventfilter.FilterResult {
	result := eventfilter.NoFilter
	for _, f := range a {
		if result = f.Filter(ctx, e); result == eventfilter.FailFilter {
			return result
		}
	}
	return result
}

// Cleanup implements eventfilter.Filter.
func (a all) Cleanup() { cleanup(a) }

// anyOf passes when one of its filters does.
type anyOf []eventfilter.Filter

// Filter implements eventfilter.Filter.
func (a anyOf) Filter(ctx context.Context, e cloudevents.Event) eventfilter.FilterResult {
	result := eventfilter.NoFilter
	for _, f := range a {
		if result = f.Filter(ctx, e); result == eventfilter.PassFilter {
			return result
		}
	}
	return result
}

// Cleanup implements eventfilter.Filter.
func (a anyOf) Cleanup() { cleanup(a) }

func cleanup(filters []eventfilter.Filter) {
	for _, f := range filters {
		f.Cleanup()
	}
}
