package fn

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	ce "github.com/cloudevents/sdk-go/v2/event"
	cehttp "github.com/cloudevents/sdk-go/v2/protocol/http"
	"github.com/google/go-cmp/cmp"
	"go.opentelemetry.io/otel/trace"

	"github.com/onda-run/onda/internal/event/eventtest"
)

// sink answers one status after another, the last one for ever, and keeps what came.
type sink struct {
	*httptest.Server
	mu       sync.Mutex
	statuses []int
	got      []ce.Event
	shown    []string
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
		s.got, s.shown = append(s.got, *e), append(s.shown, r.Header.Get("Authorization"))
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

// authorizations are what stood in Authorization of what came so far.
func (s *sink) authorizations() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.shown)
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
	pattern := sinkIn("http://onda-broker-ingress.{namespace}.svc/{namespace}/onda", "tenant-acme")
	if want := "http://onda-broker-ingress.tenant-acme.svc/tenant-acme/onda"; pattern != want {
		t.Errorf("sink %s, want %s", pattern, want)
	}
	if err := newWorld(t, nil, Handler{}).in.Runtime().Publish(t.Context(), "onda", work(t)); err == nil || !strings.Contains(err.Error(), "K_SINK is not set") {
		t.Errorf("error %v", err)
	}
}

// publisher publishes at a sink with a token's file, which holds the given text; there is none where that is empty.
func publisher(t *testing.T, sink, token string) (rt *Runtime, file string) {
	t.Helper()
	file = filepath.Join(t.TempDir(), "token")
	if token != "" {
		writeToken(t, file, token)
	}
	return newWorld(t, map[string]string{"K_SINK": sink, "ONDA_OIDC_TOKEN": file}, Handler{}).in.Runtime(), file
}

func writeToken(t *testing.T, file, token string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(token+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
}

// oidcToken is a token as Kubernetes makes them, but for its signature.
func oidcToken(audience, id string) string {
	claims := base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, `{"aud":[%q],"jti":%q,"sub":"system:serviceaccount:onda:functions"}`, audience, id))
	return "eyJhbGciOiJSUzI1NiJ9." + claims + ".c2lnbmF0dXJl"
}

const ownBroker = "eventing.knative.dev/broker/onda/onda"

// TestPublishShowsItsToken follows a token as Knative mounts it: the broker is shown it as it is at that moment.
func TestPublishShowsItsToken(t *testing.T) {
	t.Parallel()
	s := newSink(t, 503, 202)
	first, second := oidcToken(ownBroker, "1"), oidcToken(ownBroker, "2")
	rt, file := publisher(t, s.URL+"/onda/onda", first)
	publish := func() {
		t.Helper()
		if err := rt.Publish(t.Context(), "onda", work(t)); err != nil {
			t.Fatal(err)
		}
	}
	publish() // at the second try
	writeToken(t, file, second)
	publish()
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	publish()
	if diff := cmp.Diff([]string{"Bearer " + first, "Bearer " + first, "Bearer " + second, ""}, s.authorizations()); diff != "" {
		t.Errorf("shown to the broker (-want +got)\n%s", diff)
	}
}

// TestTokenIsForOneBroker posts to whom the token is not for: whoever gets it could publish with it.
func TestTokenIsForOneBroker(t *testing.T) {
	t.Parallel()
	token := oidcToken(ownBroker, "1")
	t.Run("a post", func(t *testing.T) { // of schedule, to wherever the pattern of addresses leads
		t.Parallel()
		s := newSink(t, 202)
		rt, _ := publisher(t, s.URL, token)
		if err := rt.Post(t.Context(), s.URL, work(t)); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]string{""}, s.authorizations()); diff != "" {
			t.Error(diff)
		}
	})
	t.Run("a redirect", func(t *testing.T) {
		t.Parallel()
		s := newSink(t, 202)
		away := httptest.NewServer(http.RedirectHandler(s.URL, http.StatusTemporaryRedirect))
		t.Cleanup(away.Close)
		rt, _ := publisher(t, away.URL, token)
		var status *StatusError
		if err := rt.Publish(t.Context(), "onda", work(t)); !errors.As(err, &status) || status.Code != http.StatusTemporaryRedirect {
			t.Errorf("error %v", err)
		}
		if len(s.authorizations()) != 0 {
			t.Errorf("followed, with %q", s.authorizations())
		}
	})
	// Whether K_SINK is a pattern or, as SinkBinding sets it, the one broker.
	for _, path := range []string{"/onda/onda", "/{namespace}/onda"} {
		t.Run("another namespace at "+path, func(t *testing.T) {
			t.Parallel()
			s := newSink(t, 202)
			rt, file := publisher(t, s.URL+path, token)
			err := rt.Publish(t.Context(), "onda-next", work(t))
			want := "the token in " + file + " is for the broker in namespace onda, and the event for that in onda-next: it waits for the functions there"
			if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), token) {
				t.Errorf("error %v", err)
			}
			if len(s.authorizations()) != 0 {
				t.Errorf("posted, with %q", s.authorizations())
			}
			if err := rt.Publish(t.Context(), "onda", work(t)); err != nil || len(s.authorizations()) != 1 {
				t.Errorf("to its own: %v, %q", err, s.authorizations())
			}
		})
	}
	for name, text := range map[string]string{
		"nothing":                   "\n",
		"no token":                  "secret",
		"no base64":                 "a.{}.c",
		"no claims":                 "a.e30.c",
		"a token for the API":       oidcToken("https://kubernetes.default.svc", "1"),
		"a token for no namespace":  oidcToken("eventing.knative.dev/broker/onda", "1"),
		"a token for another thing": oidcToken("messaging.knative.dev/inmemorychannel/onda/onda", "1"),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSink(t, 202)
			rt, file := publisher(t, s.URL, text)
			err := rt.Publish(t.Context(), "onda", work(t))
			if want := "ONDA_OIDC_TOKEN: " + file + " holds no token for a broker"; err == nil || !strings.Contains(err.Error(), want) || len(s.authorizations()) != 0 {
				t.Errorf("error %v, shown %q", err, s.authorizations())
			}
		})
	}
	t.Run("what cannot be read", func(t *testing.T) {
		t.Parallel()
		s := newSink(t, 202)
		dir := t.TempDir()
		rt := newWorld(t, map[string]string{"K_SINK": s.URL, "ONDA_OIDC_TOKEN": dir}, Handler{}).in.Runtime()
		if err := rt.Publish(t.Context(), "onda", work(t)); err == nil || !strings.Contains(err.Error(), "ONDA_OIDC_TOKEN: read "+dir) || len(s.authorizations()) != 0 {
			t.Errorf("error %v, shown %q", err, s.authorizations())
		}
	})
}

// TestRefusedByTheBroker looks at what is said of a refusal: what mends it, and no token.
func TestRefusedByTheBroker(t *testing.T) {
	t.Parallel()
	token := oidcToken(ownBroker, "1")
	for name, c := range map[string]struct {
		token  string
		status int
		want   string
	}{
		"without a token":        {"", 401, "answered 401 Unauthorized: the broker asks who publishes, and there is no token at FILE: compose config/components/event-policy"},
		"with a bad token":       {token, 401, "answered 401 Unauthorized: the broker does not take the token at FILE: see that the SinkBinding of config/components/event-policy is Ready"},
		"by the policy":          {token, 403, "answered 403 Forbidden: who has the token at FILE may not publish on this broker: add its SinkBinding or service account to spec.from"},
		"for another reason":     {token, 400, "answered 400 Bad Request"},
		"by what is no broker's": {"", 403, "answered 403 Forbidden: the broker asks who publishes, and there is no token at FILE"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSink(t, c.status)
			rt, file := publisher(t, s.URL, c.token)
			err := rt.Publish(t.Context(), "onda", work(t))
			if want := strings.ReplaceAll(c.want, "FILE", file); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), token) {
				t.Errorf("error %v, want %s", err, want)
			}
			if c.status == 400 && !strings.HasSuffix(err.Error(), c.want) {
				t.Errorf("error %v, want no more than %s", err, c.want)
			}
			if len(s.authorizations()) != 1 {
				t.Errorf("%d tries", len(s.authorizations()))
			}
			var status *StatusError
			if err := rt.Post(t.Context(), s.URL, work(t)); !errors.As(err, &status) || status.Remedy != "" {
				t.Errorf("a post: %v", err)
			}
		})
	}
	s := newSink(t, 401)
	if err := NewPublisher(s.URL, "").Publish(t.Context(), "onda", work(t)); err == nil || !strings.Contains(err.Error(), "name a file with a token in ONDA_OIDC_TOKEN") {
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
