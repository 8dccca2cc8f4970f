package localbroker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/robfig/cron/v3"
	"knative.dev/eventing/pkg/apis/config"
	duckv1 "knative.dev/eventing/pkg/apis/duck/v1"
	eventingv1 "knative.dev/eventing/pkg/apis/eventing/v1"
	"knative.dev/eventing/pkg/apis/feature"
	sourcesv1 "knative.dev/eventing/pkg/apis/sources/v1"
	"knative.dev/pkg/apis"
	"sigs.k8s.io/yaml"
)

// Routes are what the manifests of a directory say, checked and ready to route by. Close them when nothing routes by them any more.
type Routes struct {
	// Brokers are the names of the brokers, sorted.
	Brokers []string
	// Triggers are the subscriptions, in order of name.
	Triggers []*Trigger
	// Sources are the PingSources, in order of name.
	Sources []*Source
	// Ignored are the manifests of kinds that route nothing here, such as EventType and NetworkPolicy, as "Kind name".
	Ignored []string
}

// Trigger is one subscription: which events of which broker go where, and what happens when they cannot be delivered.
type Trigger struct {
	// Name is the manifest's name, File where it stands.
	Name, File string
	// Broker is the name of the broker that it subscribes to.
	Broker string
	// Subscriber is who gets the events.
	Subscriber Destination
	// DeadLetter is who gets what could not be delivered; nil for nobody.
	DeadLetter *Destination

	delivery delivery
	filter   filter
}

// Destination is an address in a manifest: a reference, a URI, or a reference with the URI's path below it.
type Destination struct {
	// Ref names an object that has an address; the zero value when there is none.
	Ref Ref
	// URI is absolute without a Ref, and relative to the Ref's address with one.
	URI string
}

// Ref names an addressable object of the cluster, such as a Knative Service or a Broker.
type Ref struct {
	APIVersion, Kind, Namespace, Name string
}

// String is the reference as messages name it.
func (r Ref) String() string {
	if r.Namespace != "" {
		return r.Kind + " " + r.Namespace + "/" + r.Name
	}
	return r.Kind + " " + r.Name
}

// source of a decoded document, for messages.
type document struct {
	file   string
	number int
	body   []byte
}

func (d document) errorf(format string, args ...any) error {
	return fmt.Errorf("%s: document %d: %w", d.file, d.number, fmt.Errorf(format, args...))
}

// Load reads every *.yaml below the root of dir. All that is wrong is reported at once, each with its file, document and field.
func Load(dir fs.FS) (*Routes, error) {
	docs, err := documents(dir)
	if err != nil {
		return nil, err
	}
	l := loader{ctx: clusterContext(), brokers: map[string]*eventingv1.Broker{}, routes: &Routes{}, seen: map[string]document{}}
	for _, d := range docs {
		l.add(d)
	}
	l.finish()
	if err := errors.Join(l.errs...); err != nil {
		l.routes.Close()
		return nil, err
	}
	return l.routes, nil
}

// Close gives back what Knative's filters hold. Nothing may be filtered with them afterwards.
func (r *Routes) Close() {
	for _, t := range r.Triggers {
		t.filter.close()
	}
}

// documents splits the files into YAML documents, leaving out empty ones.
func documents(dir fs.FS) ([]document, error) {
	var docs []document
	err := fs.WalkDir(dir, ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() || (path.Ext(name) != ".yaml" && path.Ext(name) != ".yml") {
			return nil
		}
		text, err := fs.ReadFile(dir, name)
		if err != nil {
			return err
		}
		for i, body := range split(text) {
			if len(bytes.TrimSpace(withoutComments(body))) > 0 {
				docs = append(docs, document{file: name, number: i + 1, body: body})
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the eventing manifests: %w", err)
	}
	return docs, nil
}

// split cuts a stream at its lines "---".
func split(text []byte) [][]byte {
	var docs [][]byte
	var doc []byte
	for line := range bytes.Lines(text) {
		if bytes.Equal(bytes.TrimRight(line, " \t\r\n"), []byte("---")) {
			if len(bytes.TrimSpace(withoutComments(doc))) > 0 {
				docs = append(docs, doc)
			}
			doc = nil
			continue
		}
		doc = append(doc, line...)
	}
	return append(docs, doc)
}

func withoutComments(text []byte) []byte {
	var out []byte
	for line := range bytes.Lines(text) {
		if !bytes.HasPrefix(bytes.TrimSpace(line), []byte("#")) {
			out = append(out, line...)
		}
	}
	return out
}

// clusterContext holds what Knative's defaulting and validation read from a cluster's ConfigMaps: the feature flags and the broker defaults that a release
// is installed with.
func clusterContext() context.Context {
	ctx := context.Background()
	// no entries: the defaults, without an error to give
	flags, _ := feature.NewFlagsConfigFromMap(nil)
	ctx = feature.ToContext(ctx, flags)
	retries, policy, delay := int32(10), duckv1.BackoffPolicyExponential, "PT0.2S"
	return config.ToContext(ctx, &config.Config{Defaults: &config.Defaults{
		ClusterDefaultConfig: &config.DefaultConfig{
			DefaultBrokerClass: "MTChannelBasedBroker",
			BrokerConfig: &config.BrokerConfig{Delivery: &duckv1.DeliverySpec{
				Retry: &retries, BackoffPolicy: &policy, BackoffDelay: &delay,
			}},
		},
	}})
}

// loader collects the routes and what is wrong with them.
type loader struct {
	ctx      context.Context
	routes   *Routes
	brokers  map[string]*eventingv1.Broker
	triggers []decodedTrigger
	seen     map[string]document
	errs     []error
}

type decodedTrigger struct {
	doc     document
	trigger *eventingv1.Trigger
}

func (l *loader) fail(err error) { l.errs = append(l.errs, err) }

func (l *loader) add(d document) {
	var head struct {
		APIVersion string `json:"apiVersion"`
		Kind       string `json:"kind"`
		Metadata   struct {
			Name string `json:"name"`
		} `json:"metadata"`
	}
	if err := yaml.Unmarshal(d.body, &head); err != nil {
		l.fail(d.errorf("%w", err))
		return
	}
	what := head.Kind + " " + head.Metadata.Name
	switch head.APIVersion + " " + head.Kind {
	case "eventing.knative.dev/v1 Broker":
		b := &eventingv1.Broker{}
		if l.decode(d, what, b, func() *apis.FieldError { b.SetDefaults(l.ctx); return b.Validate(l.ctx) }) {
			l.brokers[b.Name] = b
		}
	case "eventing.knative.dev/v1 Trigger":
		t := &eventingv1.Trigger{}
		if l.decode(d, what, t, func() *apis.FieldError { t.SetDefaults(l.ctx); return t.Validate(l.ctx) }) {
			l.triggers = append(l.triggers, decodedTrigger{d, t})
		}
	case "sources.knative.dev/v1 PingSource":
		s := &sourcesv1.PingSource{}
		if l.decode(d, what, s, func() *apis.FieldError { s.SetDefaults(l.ctx); return s.Validate(l.ctx) }) {
			l.addSource(d, s)
		}
	default:
		if strings.HasPrefix(head.APIVersion, "eventing.knative.dev/v1 ") || head.Kind == "Broker" || head.Kind == "Trigger" || head.Kind == "PingSource" {
			l.fail(d.errorf("%s: apiVersion %q is not one that is understood here", what, head.APIVersion))
			return
		}
		l.routes.Ignored = append(l.routes.Ignored, what)
	}
}

// decode fills object strictly, and defaults and validates it as the webhook would.
func (l *loader) decode(d document, what string, object any, check func() *apis.FieldError) bool {
	if err := yaml.UnmarshalStrict(d.body, object); err != nil {
		l.fail(d.errorf("%s: %w", what, err))
		return false
	}
	if strings.HasSuffix(what, " ") {
		l.fail(d.errorf("%shas no metadata.name", what))
		return false
	}
	if before, ok := l.seen[what]; ok {
		l.fail(d.errorf("%s is already in %s, document %d", what, before.file, before.number))
		return false
	}
	l.seen[what] = d
	if err := check(); err != nil {
		l.fail(d.errorf("%s: %w", what, err))
		return false
	}
	return true
}

// finish makes the triggers, once all brokers are known.
func (l *loader) finish() {
	for name := range l.brokers {
		l.routes.Brokers = append(l.routes.Brokers, name)
	}
	slices.Sort(l.routes.Brokers)
	for _, t := range l.triggers {
		l.addTrigger(t.doc, t.trigger)
	}
	slices.SortFunc(l.routes.Triggers, func(a, b *Trigger) int { return strings.Compare(a.Name, b.Name) })
	slices.SortFunc(l.routes.Sources, func(a, b *Source) int { return strings.Compare(a.Name, b.Name) })
}

func (l *loader) addTrigger(d document, t *eventingv1.Trigger) {
	name := t.Spec.Broker
	if t.Spec.BrokerRef != nil {
		name = t.Spec.BrokerRef.Name
	}
	broker, ok := l.brokers[name]
	if !ok {
		l.fail(d.errorf("Trigger %s: spec.broker: there is no Broker %q in these manifests", t.Name, name))
		return
	}
	// A trigger's delivery replaces the broker's as a whole; its dead letter sink too (Knative's trigger reconciler).
	spec := t.Spec.Delivery
	if spec == nil {
		spec = broker.Spec.Delivery
	}
	how, err := newDelivery(spec)
	if err != nil {
		l.fail(d.errorf("Trigger %s: spec.delivery: %w", t.Name, err))
		return
	}
	f, err := newFilter(t)
	if err != nil {
		l.fail(d.errorf("Trigger %s: spec.%w", t.Name, err))
		return
	}
	trigger := &Trigger{Name: t.Name, File: d.file, Broker: name, Subscriber: destination(&t.Spec.Subscriber), delivery: how, filter: f}
	if spec != nil && spec.DeadLetterSink != nil {
		sink := destination(spec.DeadLetterSink)
		trigger.DeadLetter = &sink
	}
	l.routes.Triggers = append(l.routes.Triggers, trigger)
}

func (l *loader) addSource(d document, s *sourcesv1.PingSource) {
	spec := s.Spec.Schedule
	if s.Spec.Timezone != "" {
		spec = "CRON_TZ=" + s.Spec.Timezone + " " + spec
	}
	schedule, err := cron.NewParser(cron.SecondOptional | cron.Minute | cron.Hour | cron.Dom | cron.Month | cron.Dow | cron.Descriptor).Parse(spec)
	if err != nil {
		l.fail(d.errorf("PingSource %s: spec.schedule: %w", s.Name, err))
		return
	}
	template, err := pingEvent(s)
	if err != nil {
		l.fail(d.errorf("PingSource %s: spec.data: %w", s.Name, err))
		return
	}
	l.routes.Sources = append(l.routes.Sources, &Source{Name: s.Name, File: d.file, Sink: destination(&s.Spec.Sink), schedule: schedule, template: template})
}
