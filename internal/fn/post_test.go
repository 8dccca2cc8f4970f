package fn

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	ce "github.com/cloudevents/sdk-go/v2/event"
	cehttp "github.com/cloudevents/sdk-go/v2/protocol/http"
	"go.opentelemetry.io/otel/trace"

	"github.com/onda-run/onda/internal/event/eventtest"
)

// sink answers one status after another, the last one for ever, and keeps what came.
type sink struct {
	*httptest.Server
	mu       sync.Mutex
	statuses []int
	got      []ce.Event
	conns    map[string]bool
}

func newSink(t *testing.T, statuses ...int) *sink {
	t.Helper()
	s := &sink{statuses: statuses, conns: map[string]bool{}}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.conns[r.RemoteAddr] = true
		e, err := cehttp.NewEventFromHTTPRequest(r)
		if err != nil {
			t.Error(err)
			return
		}
		s.got = append(s.got, *e)
		status := s.statuses[0]
		if len(s.statuses) > 1 {
			s.statuses = s.statuses[1:]
		}
		if status == 0 {
			panic(http.ErrAbortHandler)
		}
		w.Header().Set("Location", "/elsewhere")
		w.WriteHeader(status)
		_, _ = w.Write([]byte("thanks"))
	}))
	t.Cleanup(s.Close)
	return s
}

// received is what came so far.
func (s *sink) received() []ce.Event {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.got)
}

func TestPost(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		statuses []int
		tries    int
		failed   int // the status that Post reports; -1 for no answer
	}{
		"taken":            {[]int{202}, 1, 0},
		"at the second":    {[]int{503, 200}, 2, 0},
		"at the third":     {[]int{0, 429, 202}, 3, 0},
		"conflict":         {[]int{409, 202}, 2, 0},
		"never":            {[]int{500}, 3, 500},
		"not there":        {[]int{404}, 3, 404},
		"permanent":        {[]int{400}, 1, 400},
		"unprocessable":    {[]int{422}, 1, 422},
		"a redirect":       {[]int{302}, 1, 302},
		"nobody answers":   {[]int{0}, 3, -1},
		"permanent second": {[]int{503, 400}, 2, 400},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, nil, Handler{})
			s := newSink(t, c.statuses...)
			e := work(t)
			err := w.in.Runtime().Post(t.Context(), s.URL+"/secret-path", e)
			all := s.received()
			if len(all) != c.tries {
				t.Errorf("%d tries, want %d", len(all), c.tries)
			}
			for _, got := range all {
				eventtest.Validate(t, got)
				if got.ID() != e.ID() {
					t.Errorf("got %s", got)
				}
			}
			var status *StatusError
			switch {
			case c.failed == 0 && err != nil:
				t.Error(err)
			case c.failed > 0 && (!errors.As(err, &status) || status.Code != c.failed):
				t.Errorf("error %v, want status %d", err, c.failed)
			case c.failed < 0 && (err == nil || errors.As(err, &status)):
				t.Errorf("error %v, want one without a status", err)
			}
			if err != nil && strings.Contains(err.Error(), "secret-path") {
				t.Errorf("the error tells the URL: %v", err)
			}
		})
	}
}

func TestPostKeepsConnections(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil, Handler{})
	s := newSink(t, 202)
	for range 5 {
		if err := w.in.Runtime().Post(t.Context(), s.URL, work(t)); err != nil {
			t.Fatal(err)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.conns) != 1 {
		t.Errorf("%d connections for 5 events", len(s.conns))
	}
}

func TestPostEndsWithItsContext(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil, Handler{})
	ctx, cancel := context.WithCancel(t.Context())
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body) // only then does the server watch the connection
		cancel()
		<-r.Context().Done()
	}))
	t.Cleanup(server.Close)
	if err := w.in.Runtime().Post(ctx, server.URL, work(t)); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

func TestPostRefusesWhatIsNoEvent(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil, Handler{})
	if err := w.in.Runtime().Post(t.Context(), "http://127.0.0.1:1", ce.New()); err == nil || !strings.Contains(err.Error(), "id:") {
		t.Errorf("error %v", err)
	}
}

func TestPublish(t *testing.T) {
	t.Parallel()
	s := newSink(t, 202)
	if err := newWorld(t, map[string]string{"K_SINK": s.URL}, Handler{}).in.Runtime().Publish(t.Context(), "onda", work(t)); err != nil || len(s.received()) != 1 {
		t.Errorf("error %v, %d events", err, len(s.received()))
	}
	pattern := SinkIn("http://onda-broker-ingress.{namespace}.svc/{namespace}/onda", "tenant-acme")
	if want := "http://onda-broker-ingress.tenant-acme.svc/tenant-acme/onda"; pattern != want {
		t.Errorf("sink %s, want %s", pattern, want)
	}
	if err := newWorld(t, nil, Handler{}).in.Runtime().Publish(t.Context(), "onda", work(t)); err == nil || !strings.Contains(err.Error(), "K_SINK is not set") {
		t.Errorf("error %v", err)
	}
}

// TestTraceIsHandedOn follows a trace through the event, the handler, a post and a reply, with no telemetry set up: brokers do not hand on its header.
func TestTraceIsHandedOn(t *testing.T) {
	t.Parallel()
	const parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	s := newSink(t, 202)
	var inside trace.SpanContext
	var w *world
	w = newWorld(t, map[string]string{"K_SINK": s.URL}, Handler{Event: func(ctx context.Context, e ce.Event) (*ce.Event, error) {
		inside = trace.SpanContextFromContext(ctx)
		out := work(t)
		return &out, w.in.Runtime().Publish(ctx, "onda", out)
	}})
	e := work(t)
	e.SetExtension("traceparent", parent)
	a := w.post("/", e)
	if inside.TraceID().String() != "4bf92f3577b34da6a3ce929d0e0e4736" {
		t.Errorf("the handler is in trace %s", inside.TraceID())
	}
	if got := s.received(); len(got) != 1 || got[0].Extensions()["traceparent"] != parent {
		t.Errorf("published %v", got)
	}
	if a.status != 200 || a.header.Get("Ce-Traceparent") != parent {
		t.Errorf("reply %+v", a)
	}
}
