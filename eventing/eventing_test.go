package eventing_test

import (
	"encoding/json"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	eventingv1 "knative.dev/eventing/pkg/apis/eventing/v1"
	sourcesv1 "knative.dev/eventing/pkg/apis/sources/v1"
	"sigs.k8s.io/yaml"

	eventingfiles "github.com/onda-run/onda/eventing"
	"github.com/onda-run/onda/internal/event"
	"github.com/onda-run/onda/internal/event/eventtest"
	"github.com/onda-run/onda/internal/localbroker"
	"github.com/onda-run/onda/internal/manifest"
)

// objects are those of every manifest, as a cluster would take them.
func objects(t *testing.T) []manifest.Object {
	t.Helper()
	var all []manifest.Object
	err := fs.WalkDir(eventingfiles.Files, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || path.Ext(name) != ".yaml" {
			return err
		}
		text, err := fs.ReadFile(eventingfiles.Files, name)
		if err != nil {
			return err
		}
		found, err := manifest.Read(name, text)
		all = append(all, found...)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// TestTriggers holds every trigger to the conventions that every broker class can follow.
func TestTriggers(t *testing.T) {
	t.Parallel()
	for o, tr := range manifest.Of[*eventingv1.Trigger](objects(t)) {
		subscriber, at := strings.TrimSuffix(path.Base(o.File), ".yaml"), o.String()
		if tr.Spec.Subscriber.Ref == nil || tr.Spec.Subscriber.Ref.Name != subscriber {
			t.Errorf("%s: its subscriber is not %s", at, subscriber)
		}
		if !strings.HasPrefix(tr.Name, subscriber+"-") {
			t.Errorf("%s: its name does not begin with its subscriber's", at)
		}
		if tr.Spec.Filter != nil && len(tr.Spec.Filter.Attributes) > 0 || len(tr.Spec.Filters) != 1 || len(tr.Spec.Filters[0].Exact) != 1 {
			t.Errorf("%s: has filters other than one exact attribute", at)
		}
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
	for _, tr := range manifest.Of[*eventingv1.Trigger](objects(t)) {
		subscribers[tr.Name] = tr.Spec.Subscriber.Ref.Name
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
	for at, s := range manifest.Of[*sourcesv1.PingSource](objects(t)) {
		found++
		if s.Spec.Schedule != "* * * * *" || s.Spec.Sink.Ref == nil || s.Spec.Sink.Ref.Name != "schedule" {
			t.Errorf("%s: %+v", at, s.Spec)
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
	for _, o := range objects(t) {
		if !slices.Contains(files, o.File) {
			files = append(files, o.File)
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
