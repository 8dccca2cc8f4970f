package fn

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	ce "github.com/cloudevents/sdk-go/v2/event"
	"github.com/sethvargo/go-envconfig"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/onda-run/onda/internal/event"
	"github.com/onda-run/onda/internal/event/eventtest"
)

// world is a function behind a real HTTP server.
type world struct {
	t      *testing.T
	in     *Instance
	server *httptest.Server
	logs   *observer.ObservedLogs
}

func newWorld(t *testing.T, env map[string]string, h Handler) *world {
	t.Helper()
	core, logs := observer.New(zap.DebugLevel)
	in, err := Start(t.Context(), "send", func(context.Context, *Runtime) (Handler, error) { return h, nil }, envconfig.MapLookuper(env), zap.New(core))
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, in: in, server: httptest.NewServer(in), logs: logs}
	t.Cleanup(func() {
		w.server.Close()
		w.server.Client().CloseIdleConnections()
		if err := in.Stop(context.WithoutCancel(t.Context())); err != nil {
			t.Errorf("stop: %v", err)
		}
	})
	return w
}

// answer is what came back.
type answer struct {
	status int
	header http.Header
	body   string
}

// do sends a request with headers given as pairs.
func (w *world) do(ctx context.Context, method, path, body string, headers ...string) (answer, error) {
	w.t.Helper()
	req, err := http.NewRequestWithContext(ctx, method, w.server.URL+path, strings.NewReader(body))
	if err != nil {
		w.t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	res, err := w.server.Client().Do(req)
	if err != nil {
		return answer{}, err
	}
	defer func() { _ = res.Body.Close() }()
	text, err := io.ReadAll(res.Body)
	return answer{res.StatusCode, res.Header, string(text)}, err
}

func (w *world) must(method, path, body string, headers ...string) answer {
	w.t.Helper()
	a, err := w.do(w.t.Context(), method, path, body, headers...)
	if err != nil {
		w.t.Fatal(err)
	}
	return a
}

// post posts an event in binary mode.
func (w *world) post(path string, e ce.Event) answer {
	w.t.Helper()
	return w.must(http.MethodPost, path, string(e.Data()), binaryHeaders(e)...)
}

func binaryHeaders(e ce.Event) []string {
	h := []string{
		"Ce-Specversion", "1.0", "Ce-Id", e.ID(), "Ce-Type", e.Type(), "Ce-Source", e.Source(), "Content-Type", e.DataContentType(),
		"Ce-Time", e.Time().Format(time.RFC3339Nano),
	}
	for name, v := range e.Extensions() {
		if s, ok := v.(string); ok {
			h = append(h, "Ce-"+name, s)
		}
	}
	return h
}

// requestLog waits for the one line of a request: it is written after the answer.
func (w *world) requestLog() map[string]any {
	w.t.Helper()
	w.eventually("a log line", func() bool { return w.logs.FilterMessage("request").Len() > 0 })
	all := w.logs.FilterMessage("request").All()
	if len(all) != 1 {
		w.t.Fatalf("%d log lines of one request", len(all))
	}
	fields := all[0].ContextMap()
	fields["level"] = all[0].Level.String()
	return fields
}

// eventually polls a condition.
func (w *world) eventually(what string, ok func() bool) {
	w.t.Helper()
	deadline, tick := time.After(10*time.Second), time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			w.t.Fatalf("waited 10 s for %s", what)
		}
	}
}

func work(t *testing.T) ce.Event {
	t.Helper()
	return eventtest.Sample(t, event.TypeEmailSendRequested)
}
