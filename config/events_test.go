package config_test

import (
	"maps"
	"slices"
	"strings"
	"testing/fstest"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/rickb777/date/period"
	eventingv1 "knative.dev/eventing/pkg/apis/eventing/v1"
	"knative.dev/eventing/pkg/apis/eventing/v1beta3"
	duckv1 "knative.dev/pkg/apis/duck/v1"

	"github.com/onda-run/onda/internal/event"
	"github.com/onda-run/onda/internal/localbroker"
	"github.com/onda-run/onda/internal/manifest"
)

// attributesOf are the attributes that a trigger asks for by exact value, in whichever way its broker's class takes them.
func attributesOf(tr *eventingv1.Trigger) map[string]string {
	asked := map[string]string{}
	if tr.Spec.Filter != nil {
		maps.Copy(asked, tr.Spec.Filter.Attributes)
	}
	for _, f := range tr.Spec.Filters {
		maps.Copy(asked, f.Exact)
	}
	return asked
}

// events holds event types and triggers to the catalogue. Each trigger asks for what it asks for in eventing/, whatever the broker's class makes of the form;
// and a sample of every type that is sent through the filters gets to the functions that the catalogue names, each once.
func (c *checker) events() {
	for at, et := range manifest.Of[*v1beta3.EventType](c.objects) {
		if _, ok := event.Lookup(et.Name); !ok {
			c.add(at, "is no type of the catalogue: add it to internal/event/data.go and run make generate, or remove the file")
		} else if diff := cmp.Diff(c.types[et.Name], et.Spec, cmpopts.IgnoreFields(duckv1.KReference{}, "Namespace")); diff != "" {
			c.add(at, "is changed by the entry, and golden files leave event types out (-eventing +entry)\n%s", diff)
		}
	}
	subscribers := map[string]string{}
	files := fstest.MapFS{}
	for _, o := range c.objects {
		if o.Kind != "Broker" && o.Kind != "Trigger" {
			continue
		}
		f := files[o.File]
		if f == nil {
			f = new(fstest.MapFile)
			files[o.File] = f
		}
		f.Data = append(append(f.Data, "\n---\n"...), o.JSON...)
	}
	for at, tr := range manifest.Of[*eventingv1.Trigger](c.objects) {
		asked := attributesOf(tr)
		if value, ok := asked["type"]; ok {
			if _, known := event.Lookup(value); !known {
				c.add(at, "asks for events of type %q, which is not in the catalogue: see eventing/eventtypes for those that are", value)
			}
		}
		if want := c.routes[tr.Name]; !maps.Equal(want, asked) {
			c.add(at, "asks for %v, and in eventing/triggers for %v: make them the same", asked, want)
		}
		subscribers[tr.Name] = tr.Spec.Subscriber.Ref.Name
		ref := tr.Spec.Subscriber.Ref
		if _, own := c.find(ref.Kind, c.namespace, ref.Name); own && ref.Namespace != c.namespace {
			c.add(at, "goes to the pool's %s (%s), and this namespace has its own: leave the namespace of its subscriber out", ref.Name, ref.Namespace)
		}
		if _, s, ok := c.service(tr); ok && tr.Spec.Delivery != nil && tr.Spec.Delivery.Timeout != nil {
			p, err := period.Parse(*tr.Spec.Delivery.Timeout)
			if own := time.Duration(*s.Spec.Template.Spec.TimeoutSeconds) * time.Second; err != nil || p.DurationApprox() < own {
				c.add(at, "gives %s %s, and the service may take %s (timeoutSeconds): the event would be sent again while it is worked on", s.Name, *tr.Spec.Delivery.Timeout, own)
			}
		}
	}
	if len(c.problems) > 0 || len(subscribers) == 0 {
		return
	}
	routes, err := localbroker.Load(files)
	if err != nil {
		c.add(c, "%v", err)
		return
	}
	defer routes.Close()
	for _, entry := range event.Catalogue() {
		names, err := routes.Matching(sample(entry))
		if err != nil {
			c.add(c, "%s: %v", entry.Type, err)
		}
		var got, want []string
		for _, name := range names {
			got = append(got, c.functions[subscribers[name]])
		}
		if !entry.Direct {
			want = entry.Consumers
		}
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			c.add(c, "%s goes to [%s], and the catalogue (internal/event) names [%s]", entry.Type, strings.Join(got, ", "), strings.Join(want, ", "))
		}
	}
}

// sample is an event of a type, with all that a trigger may ask for.
func sample(entry event.Entry) cloudevents.Event {
	e := cloudevents.NewEvent()
	e.SetType(entry.Type)
	e.SetSource("/tenants/acme/functions/send")
	e.SetID("1")
	e.SetExtension("tenant", "acme")
	if entry.Stream != "" {
		e.SetExtension(event.ExtStream, entry.Stream)
	}
	return e
}
