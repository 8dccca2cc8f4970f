package localbroker

import (
	"strings"
	"testing"
	"testing/fstest"
	"testing/synctest"

	cloudevents "github.com/cloudevents/sdk-go/v2"
)

// TestFilters holds the semantics of Knative's filters as a cluster applies them.
func TestFilters(t *testing.T) {
	t.Parallel()
	withSubject := func(e cloudevents.Event) cloudevents.Event { e.SetSubject("42"); return e }
	for _, test := range []struct {
		name, spec string
		event      cloudevents.Event
		want       bool
	}{
		{"no filter passes everything", ``, sample("1"), true},
		{"legacy attribute", `filter: {attributes: {type: onda.email.send.requested.v1}}`, sample("1"), true},
		{"legacy attribute differs", `filter: {attributes: {type: onda.other.v1}}`, sample("1"), false},
		{"legacy: empty means present, and it is", `filter: {attributes: {subject: ""}}`, withSubject(sample("1")), true},
		{"legacy: empty means present, and it is not", `filter: {attributes: {subject: ""}}`, sample("1"), false},
		{"legacy: an integer extension arrives as text", `filter: {attributes: {attempt: "3"}}`, sample("1", "attempt", 3), true},
		{"filters override filter", "filter: {attributes: {type: onda.other.v1}}\nfilters: [{exact: {tenant: acme}}]", sample("1"), true},
		{"exact", `filters: [{exact: {type: onda.email.send.requested.v1}}]`, sample("1"), true},
		{"exact on an integer extension", `filters: [{exact: {attempt: "3"}}]`, sample("1", "attempt", 3), true},
		{"exact on a boolean extension", `filters: [{exact: {dry: "true"}}]`, sample("1", "dry", true), true},
		{"exact on a missing extension", `filters: [{exact: {stream: facts}}]`, sample("1"), false},
		{"entries are ANDed", `filters: [{exact: {tenant: acme}}, {exact: {stream: facts}}]`, sample("1"), false},
		{"prefix", `filters: [{prefix: {type: onda.email.}}]`, sample("1"), true},
		{"suffix", `filters: [{suffix: {type: .v1}}]`, sample("1"), true},
		{"suffix differs", `filters: [{suffix: {type: .v2}}]`, sample("1"), false},
		{"any", `filters: [{any: [{exact: {tenant: brava}}, {exact: {tenant: acme}}]}]`, sample("1"), true},
		{"any of none", `filters: [{any: [{exact: {tenant: brava}}, {exact: {tenant: cedro}}]}]`, sample("1"), false},
		{"all", `filters: [{all: [{exact: {tenant: acme}}, {suffix: {source: campaign}}]}]`, sample("1"), true},
		{"not", `filters: [{not: {exact: {tenant: acme}}}]`, sample("1"), false},
		{"not of a missing extension passes", `filters: [{not: {exact: {missing: a}}}]`, sample("1"), true},
		{"cesql", `filters: [{cesql: "type LIKE 'onda.email.%' AND tenant = 'acme'"}]`, sample("1"), true},
		{"cesql says no", `filters: [{cesql: "tenant = 'brava'"}]`, sample("1"), false},
		{"cesql on a missing attribute does not pass", `filters: [{cesql: "missing = 'a'"}]`, sample("1"), false},
		{"cesql compares an integer extension", `filters: [{cesql: "attempt > 2"}]`, sample("1", "attempt", 3), true},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			routes := load(t, brokerYAML, trigger("send", test.spec))
			defer routes.Close()
			names, err := routes.Matching(test.event)
			if err != nil {
				t.Fatal(err)
			}
			if got := len(names) == 1; got != test.want {
				t.Errorf("passes: %v, want %v", got, test.want)
			}
		})
	}
}

// TestManifestsAreRefused has what a webhook refuses and what it lets through and then means something else.
func TestManifestsAreRefused(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ name, manifests, want string }{
		{"unknown key", brokerYAML + "---" + trigger("send", "fliter: {}"), `all.yaml: document 2: Trigger send: error unmarshaling JSON: while decoding JSON: json: unknown field "fliter"`},
		{"unknown broker", brokerYAML + "---" + strings.Replace(trigger("send", ""), "broker: default", "broker: other", 1), `spec.broker: there is no Broker "other"`},
		{"no subscriber", brokerYAML + "---\napiVersion: eventing.knative.dev/v1\nkind: Trigger\nmetadata: {name: send}\nspec: {broker: default}", `Trigger send: expected at least one, got none: spec.subscriber.ref, spec.subscriber.uri`},
		{"two dialects in one entry", brokerYAML + "---" + trigger("send", `filters: [{exact: {type: a}, prefix: {type: a}}]`), "multiple dialects found"},
		{"an empty value is skipped by Knative", brokerYAML + "---" + trigger("send", `filters: [{exact: {type: ""}}]`), "spec.filters[0].exact.type: is empty"},
		{"and deep inside", brokerYAML + "---" + trigger("send", `filters: [{any: [{exact: {type: a}}, {not: {prefix: {type: ""}}}]}]`), "spec.filters[0].any[1].not.prefix.type: is empty"},
		{"cesql that gives a number panics", brokerYAML + "---" + trigger("send", `filters: [{cesql: "attempt + 1"}]`), "does not give a boolean"},
		{"cesql that does not parse", brokerYAML + "---" + trigger("send", `filters: [{cesql: "type = "}]`), "Trigger send: "},
		{"retryAfterMax is off", brokerYAML + "---" + trigger("send", `delivery: {retry: 1, retryAfterMax: PT1S}`), "retryAfterMax"},
		{"a back-off that is no duration", brokerYAML + "---" + trigger("send", `delivery: {backoffDelay: 1s}`), "backoffDelay"},
		{"twice the same name", brokerYAML + "---" + trigger("send", "") + "\n---" + trigger("send", ""), "Trigger send is already in all.yaml, document 2"},
		{"an older API", strings.Replace(brokerYAML, "/v1", "/v1beta1", 1), "is not one that is understood here"},
		{"not YAML", "a: [", "all.yaml: document 1: "},
		{"a PingSource's schedule", "apiVersion: sources.knative.dev/v1\nkind: PingSource\nmetadata: {name: tick}\nspec: {schedule: often, sink: {uri: 'http://a.example'}}", "spec.schedule"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			_, err := Load(fstest.MapFS{"all.yaml": {Data: []byte(test.manifests)}})
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error: %v\nwant: %s", err, test.want)
			}
		})
	}
}

func TestAllThatIsWrongIsReportedAtOnce(t *testing.T) {
	t.Parallel()
	_, err := Load(fstest.MapFS{
		"broker.yaml":        {Data: []byte(brokerYAML)},
		"triggers/a.yaml":    {Data: []byte(trigger("a", "colour: red"))},
		"triggers/b.yaml":    {Data: []byte("# a comment\n---\n" + trigger("b", `filters: [{exact: {type: ""}}]`))},
		"triggers/README.md": {Data: []byte("not a manifest")},
	})
	for _, want := range []string{"triggers/a.yaml: document 1: Trigger a", "triggers/b.yaml: document 1: Trigger b: spec.filters[0]"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error: %v\nwant: %s", err, want)
		}
	}
}

func TestOtherKindsAreIgnored(t *testing.T) {
	t.Parallel()
	routes := load(t, brokerYAML, "apiVersion: eventing.knative.dev/v1beta3\nkind: EventType\nmetadata: {name: a}", "kind: Kustomization\nresources: [a]")
	defer routes.Close()
	if got := strings.Join(routes.Ignored, "; "); got != "EventType a; Kustomization " {
		t.Errorf("ignored: %q", got)
	}
}

// TestNoGoroutineIsLeft counts on synctest, which fails when a goroutine of the bubble is left, such as those that Knative's composed filters start.
func TestNoGoroutineIsLeft(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		many := trigger("send", `filters: [{exact: {tenant: acme}}, {any: [{exact: {stream: facts}}, {not: {all: [{prefix: {type: a}}, {suffix: {type: b}}]}}]}]`)
		b, err := New(load(t, brokerYAML, many), Config{Resolve: resolve})
		if err != nil {
			t.Fatal(err)
		}
		for range 3 {
			if err := b.SetRoutes(load(t, brokerYAML, many)); err != nil {
				t.Fatal(err)
			}
		}
		b.Close()
	})
}
