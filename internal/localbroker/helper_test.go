package localbroker

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2"
	cehttp "github.com/cloudevents/sdk-go/v2/protocol/http"
)

// brokerYAML is a broker without delivery of its own: it gets what a release of Knative is installed with.
const brokerYAML = `
apiVersion: eventing.knative.dev/v1
kind: Broker
metadata: {name: default}
`

// trigger is the manifest of a trigger of broker default to the service of the same name, with more lines of its spec.
func trigger(name, spec string) string {
	return fmt.Sprintf(`
apiVersion: eventing.knative.dev/v1
kind: Trigger
metadata: {name: %s}
spec:
  broker: default
  subscriber: {ref: {apiVersion: serving.knative.dev/v1, kind: Service, name: %s}}
%s`, name, name, indent(spec))
}

func indent(text string) string {
	var out strings.Builder
	for line := range strings.Lines(text) {
		out.WriteString("  " + line)
	}
	return out.String()
}

func load(t *testing.T, docs ...string) *Routes {
	t.Helper()
	routes, err := Load(fstest.MapFS{"all.yaml": {Data: []byte(strings.Join(docs, "\n---\n"))}})
	if err != nil {
		t.Fatal(err)
	}
	return routes
}

// services are subscribers by name, reached without a network, so that tests run on synctest's clock.
type services map[string]http.HandlerFunc

// RoundTrip calls the handler. One that panics is a connection that broke.
func (s services) RoundTrip(r *http.Request) (res *http.Response, err error) {
	h, ok := s[r.URL.Host]
	if !ok {
		return nil, fmt.Errorf("dial %s: refused", r.URL.Host)
	}
	defer func() {
		if v := recover(); v != nil {
			res, err = nil, io.ErrUnexpectedEOF
		}
	}()
	rec := httptest.NewRecorder()
	h(rec, r)
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	return rec.Result(), nil
}

func resolve(r Ref) (string, error) {
	if r.Kind != "Service" {
		return "", fmt.Errorf("only Services are known here")
	}
	return "http://" + r.Name + "/", nil
}

// start makes a broker of manifests and services.
func start(t *testing.T, s services, docs ...string) *Broker {
	t.Helper()
	b, err := New(load(t, docs...), Config{Resolve: resolve, Client: &http.Client{Transport: s}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	return b
}

// inbox notes the events that a subscriber gets.
type inbox struct {
	mu     sync.Mutex
	events []cloudevents.Event
	paths  []string
	times  []time.Time
}

func (i *inbox) take(r *http.Request) cloudevents.Event {
	e, err := cehttp.NewEventFromHTTPRequest(r)
	if err != nil {
		panic(err)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.events = append(i.events, *e)
	i.paths = append(i.paths, r.URL.Path)
	i.times = append(i.times, time.Now())
	return *e
}

func (i *inbox) ids() []string {
	i.mu.Lock()
	defer i.mu.Unlock()
	var out []string
	for _, e := range i.events {
		out = append(out, e.ID())
	}
	return out
}

// ok takes the event with 202 and no body.
func (i *inbox) ok(w http.ResponseWriter, r *http.Request) {
	i.take(r)
	w.WriteHeader(http.StatusAccepted)
}

// answer takes the event and answers the statuses in turn, the last for ever.
func (i *inbox) answer(statuses ...int) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		i.take(r)
		i.mu.Lock()
		n := min(len(i.events), len(statuses)) - 1
		i.mu.Unlock()
		if statuses[n] >= 300 {
			http.Error(w, fmt.Sprintf("no: %d", statuses[n]), statuses[n])
			return
		}
		w.WriteHeader(statuses[n])
	}
}

func sample(id string, extensions ...any) cloudevents.Event {
	e := cloudevents.NewEvent()
	e.SetID(id)
	e.SetType("onda.email.send.requested.v1")
	e.SetSource("/tenants/acme/functions/campaign")
	e.SetExtension("tenant", "acme")
	for n := 0; n+1 < len(extensions); n += 2 {
		e.SetExtension(extensions[n].(string), extensions[n+1])
	}
	_ = e.SetData("application/json", map[string]int{"run": 1}) // a map of ints always encodes
	return e
}
