package localbroker

import (
	"context"
	"testing"

	"go.uber.org/zap"
	eventingv1 "knative.dev/eventing/pkg/apis/eventing/v1"
	"knative.dev/eventing/pkg/eventfilter/subscriptionsapi"
	"knative.dev/pkg/logging"
	"pgregory.net/rapid"
)

// TestComposedFiltersAreKnatives compares with Knative's own composition on any tree of filters and any event.
func TestComposedFiltersAreKnatives(t *testing.T) {
	t.Parallel()
	ctx := logging.WithLogger(context.Background(), zap.NewNop().Sugar())
	rapid.Check(t, func(t *rapid.T) {
		entries := rapid.SliceOfN(entry(3), 1, 3).Draw(t, "filters")
		for i, e := range entries {
			if err := checkEntry(e); err != nil {
				t.Fatalf("entry %d: %v", i, err)
			}
		}
		ours := compose(entries)
		for range 5 {
			// New for each event and not cleaned up, since asking one twice is where the race is, too.
			theirs := subscriptionsapi.CreateSubscriptionsAPIFilters(zap.NewNop(), entries)
			e := sample("1")
			for _, name := range []string{"a", "b"} {
				if value := rapid.SampledFrom([]string{"", "x", "xy", "y"}).Draw(t, name); value != "" {
					e.SetExtension(name, value)
				}
			}
			if got, want := ours.Filter(ctx, e), theirs.Filter(ctx, e); got != want {
				t.Fatalf("%v on a %v, b %v: Knative says %v", got, e.Extensions()["a"], e.Extensions()["b"], want)
			}
		}
		ours.Cleanup()
	})
}

// entry draws a valid filter of a depth.
func entry(depth int) *rapid.Generator[eventingv1.SubscriptionsAPIFilter] {
	return rapid.Custom(func(t *rapid.T) eventingv1.SubscriptionsAPIFilter {
		dialects := []string{"exact", "prefix", "suffix", "cesql"}
		if depth > 0 {
			dialects = append(dialects, "all", "any", "not")
		}
		attribute := map[string]string{
			rapid.SampledFrom([]string{"a", "b", "tenant"}).Draw(t, "attribute"): rapid.SampledFrom([]string{"x", "y", "acme"}).Draw(t, "value"),
		}
		switch rapid.SampledFrom(dialects).Draw(t, "dialect") {
		case "exact":
			return eventingv1.SubscriptionsAPIFilter{Exact: attribute}
		case "prefix":
			return eventingv1.SubscriptionsAPIFilter{Prefix: attribute}
		case "suffix":
			return eventingv1.SubscriptionsAPIFilter{Suffix: attribute}
		case "cesql":
			return eventingv1.SubscriptionsAPIFilter{CESQL: rapid.SampledFrom([]string{"a = 'x'", "EXISTS b", "NOT (EXISTS a) OR b LIKE 'x%'"}).Draw(t, "cesql")}
		case "all":
			return eventingv1.SubscriptionsAPIFilter{All: rapid.SliceOfN(entry(depth-1), 1, 3).Draw(t, "all")}
		case "any":
			return eventingv1.SubscriptionsAPIFilter{Any: rapid.SliceOfN(entry(depth-1), 1, 3).Draw(t, "any")}
		default:
			inner := entry(depth-1).Draw(t, "not")
			return eventingv1.SubscriptionsAPIFilter{Not: &inner}
		}
	})
}
