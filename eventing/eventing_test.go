package eventing_test

import (
	"context"
	"encoding/json"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	eventingv1 "knative.dev/eventing/pkg/apis/eventing/v1"
	"knative.dev/eventing/pkg/apis/eventing/v1beta3"
	"knative.dev/eventing/pkg/apis/feature"
	sourcesv1 "knative.dev/eventing/pkg/apis/sources/v1"
	"knative.dev/pkg/apis"
	duckv1 "knative.dev/pkg/apis/duck/v1"
	"sigs.k8s.io/yaml"

	eventingfiles "github.com/onda-run/onda/eventing"
	"github.com/onda-run/onda/internal/event"
	"github.com/onda-run/onda/internal/event/eventtest"
	"github.com/onda-run/onda/internal/localbroker"
)

// resource is what Knative's webhook does with an object: fill in what is left out, then look for what is wrong.
type resource interface {
	apis.Defaultable
	apis.Validatable
}

// document is one YAML document of a file.
type document struct {
	file string
	body []byte
}

func documents(t *testing.T) []document {
	t.Helper()
	var docs []document
	err := fs.WalkDir(eventingfiles.Files, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || path.Ext(name) != ".yaml" {
			return err
		}
		text, err := fs.ReadFile(eventingfiles.Files, name)
		for body := range strings.SplitSeq(string(text), "\n---\n") {
			docs = append(docs, document{name, []byte(body)})
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return docs
}

// decode reads a document strictly into its Knative type.
func decode(t *testing.T, d document) resource {
	t.Helper()
	var kind struct {
		APIVersion string `json:"apiVersion"`
		Kind       string `json:"kind"`
	}
	if err := yaml.Unmarshal(d.body, &kind); err != nil {
		t.Fatalf("%s: %v", d.file, err)
	}
	var r resource
	switch kind.APIVersion + " " + kind.Kind {
	case "eventing.knative.dev/v1 Broker":
		r = new(eventingv1.Broker)
	case "eventing.knative.dev/v1 Trigger":
		r = new(eventingv1.Trigger)
	case "eventing.knative.dev/v1beta3 EventType":
		r = new(v1beta3.EventType)
	case "sources.knative.dev/v1 PingSource":
		r = new(sourcesv1.PingSource)
	default:
		t.Fatalf("%s: unknown kind %+v", d.file, kind)
	}
	if err := yaml.UnmarshalStrict(d.body, r); err != nil {
		t.Fatalf("%s: %v", d.file, err)
	}
	return r
}

// all decodes every document of one type.
func all[T resource](t *testing.T) map[string][]T {
	t.Helper()
	found := map[string][]T{}
	for _, d := range documents(t) {
		if r, ok := decode(t, d).(T); ok {
			found[d.file] = append(found[d.file], r)
		}
	}
	return found
}

// cluster is the context of a webhook that makes an object, in a cluster with Knative's own defaults for features.
func cluster(t *testing.T) context.Context {
	t.Helper()
	flags, err := feature.NewFlagsConfigFromMap(nil)
	if err != nil {
		t.Fatal(err)
	}
	return feature.ToContext(apis.WithinCreate(t.Context()), flags)
}

// TestKnativeTakesThem runs what Knative's webhook runs.
func TestKnativeTakesThem(t *testing.T) {
	t.Parallel()
	for _, d := range documents(t) {
		r := decode(t, d)
		ctx := cluster(t)
		r.SetDefaults(ctx)
		if err := r.Validate(ctx); err != nil {
			t.Errorf("%s: %v", d.file, err)
		}
	}
}

// TestDecodeTells shows that the check above can fail.
func TestDecodeTells(t *testing.T) {
	t.Parallel()
	for name, spec := range map[string]string{
		"two dialects in one entry": "{broker: onda, subscriber: {uri: http://x/}, filters: [{exact: {type: a}, prefix: {type: b}}]}",
		"a gated field":             "{broker: onda, subscriber: {uri: http://x/}, delivery: {retryAfterMax: PT1S}}",
		"no subscriber":             "{broker: onda}",
	} {
		var trigger eventingv1.Trigger
		if err := yaml.UnmarshalStrict([]byte("metadata: {name: t, namespace: onda}\nspec: "+spec), &trigger); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		trigger.SetDefaults(cluster(t))
		if trigger.Validate(cluster(t)) == nil {
			t.Errorf("%s: Validate is content", name)
		}
	}
}

// TestBroker holds the broker to what the pool needs of it.
func TestBroker(t *testing.T) {
	t.Parallel()
	for file, brokers := range all[*eventingv1.Broker](t) {
		for _, b := range brokers {
			if b.Annotations["messaging.knative.dev/async-handler"] != "true" {
				t.Errorf("%s: publishers would wait for the slowest subscriber", file)
			}
			checkDelivery(t, file+": "+b.Name, b.Spec.Delivery != nil && b.Spec.Delivery.Timeout != nil, b.Spec.Delivery.DeadLetterSink)
		}
	}
}

// TestTriggers holds every trigger to the conventions that every broker class can follow.
func TestTriggers(t *testing.T) {
	t.Parallel()
	for file, triggers := range all[*eventingv1.Trigger](t) {
		subscriber := strings.TrimSuffix(path.Base(file), ".yaml")
		for _, tr := range triggers {
			at := file + ": " + tr.Name
			if tr.Spec.Subscriber.Ref == nil || tr.Spec.Subscriber.Ref.Name != subscriber {
				t.Errorf("%s: its subscriber is not %s", at, subscriber)
			}
			if !strings.HasPrefix(tr.Name, subscriber+"-") {
				t.Errorf("%s: its name does not begin with its subscriber's", at)
			}
			if tr.Spec.Filter != nil || len(tr.Spec.Filters) != 1 || len(tr.Spec.Filters[0].Exact) != 1 {
				t.Errorf("%s: has filters other than one exact attribute", at)
			}
			d := tr.Spec.Delivery
			if d == nil || d.Retry == nil || d.BackoffPolicy == nil || d.BackoffDelay == nil || d.Timeout == nil {
				t.Errorf("%s: delivery is not explicit", at) // retry without both backoff fields has no backoff at all
				continue
			}
			if *d.BackoffPolicy != "exponential" {
				t.Errorf("%s: backoff is %s", at, *d.BackoffPolicy)
			}
			checkDelivery(t, at, true, d.DeadLetterSink)
		}
	}
}

func checkDelivery(t *testing.T, at string, timeout bool, sink *duckv1.Destination) {
	t.Helper()
	if !timeout {
		t.Errorf("%s: a subscriber may take for ever", at)
	}
	if sink == nil || sink.Ref == nil || sink.Ref.Name != "campaign" || sink.URI == nil || sink.URI.String() != "/dead-letters" {
		t.Errorf("%s: dead letters do not land in Postgres", at)
	}
}

// functionOf is the function whose image a service runs.
func functionOf(service string) string {
	switch service {
	case "send-api", "send-api-events":
		return "send"
	case "track-events":
		return "track"
	}
	return service
}

// TestTriggersAndCatalogueAgree sends a sample of every type through every trigger's filter, as a cluster would: the functions that get it are its
// consumers, each once, and what is posted directly passes no trigger. So each trigger has samples it must match and samples it must not.
func TestTriggersAndCatalogueAgree(t *testing.T) {
	t.Parallel()
	routes, err := localbroker.Load(eventingfiles.Files)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(routes.Close)
	subscribers := map[string]string{} // by trigger
	for _, triggers := range all[*eventingv1.Trigger](t) {
		for _, tr := range triggers {
			subscribers[tr.Name] = tr.Spec.Subscriber.Ref.Name
		}
	}
	matches, types := map[string]int{}, 0
	for _, entry := range event.Catalogue() {
		types++
		names, err := routes.Matching(eventtest.Sample(t, entry.Type))
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, name := range names {
			matches[name]++
			got = append(got, functionOf(subscribers[name]))
		}
		slices.Sort(got)
		var want []string
		if !entry.Direct {
			want = slices.Sorted(slices.Values(entry.Consumers))
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: consumers (-catalogue +triggers)\n%s", entry.Type, diff)
		}
	}
	for name := range subscribers {
		if n := matches[name]; n == 0 || n == types {
			t.Errorf("trigger %s matches %d of %d types", name, n, types)
		}
	}
	foreign := eventtest.Sample(t, event.TypeEmailSent)
	foreign.SetType("com.example.order.placed")
	foreign.SetExtension(event.ExtStream, nil)
	if names, err := routes.Matching(foreign); err != nil || len(names) != 0 {
		t.Errorf("a program's own event goes to %v, %v", names, err)
	}
}

// TestSource holds the tick to what schedule waits for.
func TestSource(t *testing.T) {
	t.Parallel()
	found := 0
	for file, sources := range all[*sourcesv1.PingSource](t) {
		for _, s := range sources {
			found++
			if s.Spec.Schedule != "* * * * *" || s.Spec.Sink.Ref == nil || s.Spec.Sink.Ref.Name != "schedule" {
				t.Errorf("%s: %+v", file, s.Spec)
			}
		}
	}
	if found != 1 {
		t.Errorf("%d sources", found)
	}
}

// TestKustomization lists every manifest, and nothing that is not there. The sources are apart, since they are of another namespace.
func TestKustomization(t *testing.T) {
	t.Parallel()
	var k struct {
		Resources []string `json:"resources"`
	}
	for _, dir := range []string{".", "sources"} {
		text, err := os.ReadFile(path.Join(dir, "kustomization.yaml")) // not embedded: onda dev has no use for it
		if err != nil {
			t.Fatal(err)
		}
		var listed struct {
			Resources []string `json:"resources"`
		}
		if err := yaml.Unmarshal(text, &listed); err != nil {
			t.Fatal(err)
		}
		for _, r := range listed.Resources {
			k.Resources = append(k.Resources, path.Join(dir, r))
		}
	}
	var files []string
	for _, d := range documents(t) {
		if !slices.Contains(files, d.file) {
			files = append(files, d.file)
		}
	}
	slices.Sort(k.Resources)
	slices.Sort(files)
	if diff := cmp.Diff(files, k.Resources); diff != "" {
		t.Errorf("resources (-files +listed)\n%s", diff)
	}
}

// TestSchemasAreStrict finds an object in a schema that would let anything through, except for data of other programs.
func TestSchemasAreStrict(t *testing.T) {
	t.Parallel()
	for _, entry := range event.Catalogue() {
		text, err := fs.ReadFile(eventingfiles.Files, "schemas/"+entry.Type+".json")
		if err != nil {
			t.Fatal(err)
		}
		var schema map[string]any
		if err := json.Unmarshal(text, &schema); err != nil {
			t.Fatal(err)
		}
		strict(t, entry.Type, schema)
	}
}

func strict(t *testing.T, at string, schema map[string]any) {
	t.Helper()
	if schema["type"] == "object" && schema["additionalProperties"] != false && at != event.TypeEmailRequested+".data" {
		t.Errorf("%s: takes any member", at)
	}
	if items, ok := schema["items"].(map[string]any); ok {
		strict(t, at+"[]", items)
	}
	properties, _ := schema["properties"].(map[string]any)
	for name, p := range properties {
		if p, ok := p.(map[string]any); ok {
			strict(t, at+"."+name, p)
		}
	}
}
