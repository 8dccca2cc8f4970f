package dev

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2"

	"github.com/onda-run/onda/internal/fn"
)

// TestMain is also the binary of the functions that tests start, and of a dev that a test kills.
func TestMain(m *testing.M) {
	switch os.Getenv("DEV_TEST_AS") {
	case "function":
		fn.Main("echo", buildEcho)
		return
	case "dev":
		if err := devToBeKilled(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// buildEcho is a function that tells which process answered, what it was asked and what its environment is, and that can be held at a gate.
func buildEcho(_ context.Context, rt *fn.Runtime) (fn.Handler, error) {
	if text, ok := rt.Env.Lookup("ECHO_FAILS"); ok {
		return fn.Handler{}, fmt.Errorf("ECHO_FAILS: %s", text)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /pid", func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprint(w, os.Getpid()) })
	mux.HandleFunc("GET /env/{name}", func(w http.ResponseWriter, r *http.Request) {
		value, _ := rt.Env.Lookup(r.PathValue("name"))
		_, _ = fmt.Fprint(w, value)
	})
	mux.HandleFunc("POST /body", func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) })
	mux.HandleFunc("GET /gate", func(w http.ResponseWriter, r *http.Request) {
		if err := get(r.Context(), r.URL.Query().Get("at")); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		_, _ = fmt.Fprint(w, os.Getpid())
	})
	mux.HandleFunc("GET /", func(w http.ResponseWriter, r *http.Request) {
		service, _ := rt.Env.Lookup("K_SERVICE")
		_, _ = fmt.Fprintf(w, "%s %s%s", service, r.Host, r.URL)
	})
	return fn.Handler{
		HTTP: mux,
		Event: func(ctx context.Context, e cloudevents.Event) (*cloudevents.Event, error) {
			gate, ok := rt.Env.Lookup("ECHO_GATE")
			if !ok {
				return nil, nil
			}
			return nil, get(ctx, gate)
		},
	}, nil
}

func get(ctx context.Context, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	return res.Body.Close()
}

// devToBeKilled runs dev with one function, prints the function's process id, and waits for its end.
func devToBeKilled() error {
	dir, err := os.MkdirTemp("", "dev")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	binaries, eventing, err := prepare(dir)
	if err != nil {
		return err
	}
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer cancel()
	h, err := Start(ctx, Config{
		Addr: "127.0.0.1:0", Binaries: binaries, Eventing: eventing, Services: []Service{{Name: "echo", Function: "echo", Serve: "both"}}, Tick: -1,
		Env: map[string]string{"DEV_TEST_AS": "function"}, Output: io.Discard,
	})
	if err != nil {
		return err
	}
	res, err := http.Get(h.URL() + "/functions/echo/pid")
	if err != nil {
		return err
	}
	pid, err := io.ReadAll(res.Body)
	if err := errors.Join(err, res.Body.Close()); err != nil {
		return err
	}
	fmt.Printf("%s\n", pid)
	<-ctx.Done()
	return h.Stop(context.Background())
}

const manifests = `
apiVersion: eventing.knative.dev/v1
kind: Broker
metadata: {name: onda}
---
apiVersion: eventing.knative.dev/v1
kind: Trigger
metadata: {name: echo}
spec:
  broker: onda
  filters: [{exact: {type: onda.sample.made.v1}}]
  subscriber: {ref: {apiVersion: serving.knative.dev/v1, kind: Service, name: echo}}
  delivery: {retry: 5, backoffPolicy: linear, backoffDelay: PT1S}
---
apiVersion: sources.knative.dev/v1
kind: PingSource
metadata: {name: tick, namespace: onda-system}
spec: {sink: {ref: {apiVersion: serving.knative.dev/v1, kind: Service, name: echo}}}
`

// prepare makes a directory of binaries, with this one as function echo, and one of manifests.
func prepare(dir string) (binaries, eventing string, err error) {
	binaries, eventing = filepath.Join(dir, "bin"), filepath.Join(dir, "eventing")
	self, err := os.Executable()
	if err != nil {
		return "", "", err
	}
	for _, d := range []string{binaries, eventing} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return "", "", err
		}
	}
	if err := os.Symlink(self, filepath.Join(binaries, "echo")); err != nil {
		return "", "", err
	}
	return binaries, eventing, os.WriteFile(filepath.Join(eventing, "all.yaml"), []byte(manifests), 0o644)
}

// start runs dev with the function echo as a process, with what change does to the configuration.
func start(t *testing.T, change func(*Config)) *Handle {
	t.Helper()
	binaries, eventing, err := prepare(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{
		Addr: "127.0.0.1:0", Binaries: binaries, Eventing: eventing, Tick: -1, Output: &lines{t: t},
		Services: []Service{{Name: "echo", Function: "echo", Serve: "both", Paths: []string{"/public/"}}},
		Env:      map[string]string{"DEV_TEST_AS": "function"},
		Idle:     time.Hour,
	}
	if change != nil {
		change(&cfg)
	}
	return run(t, cfg)
}

func run(t *testing.T, cfg Config) *Handle {
	t.Helper()
	h, err := Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Stop(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return h
}

// lines shows what dev prints where a test fails, and keeps it.
type lines struct {
	t  *testing.T
	mu sync.Mutex
	b  strings.Builder
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.t.Logf("%s", p)
	return l.b.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// answer is what a request came to.
type answer struct {
	status int
	body   string
	header http.Header
}

// fetch makes a request. header is given as pairs.
func fetch(t *testing.T, method, url, body string, header ...string) answer {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		if header[i] == "Host" {
			req.Host = header[i+1]
		}
		req.Header.Set(header[i], header[i+1])
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Error(err) // not Fatal: this may be another goroutine
		return answer{}
	}
	defer func() { _ = res.Body.Close() }()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		t.Error(err)
	}
	return answer{res.StatusCode, string(text), res.Header}
}

// await waits until dev's status is as holds says.
func await(t *testing.T, h *Handle, what string, holds func(Status) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := h.Await(ctx, holds); err != nil {
		t.Fatalf("%s: %v; status %+v", what, err, h.Status())
	}
}

// poll asks until holds does; for what nobody tells of.
func poll(t *testing.T, what string, holds func() bool) {
	t.Helper()
	every := time.NewTicker(10 * time.Millisecond)
	defer every.Stop()
	limit := time.After(time.Minute)
	for !holds() {
		select {
		case <-every.C:
		case <-limit:
			t.Fatalf("%s did not come about within a minute", what)
		}
	}
}

// gate holds functions until a test lets them go.
type gate struct {
	url     string
	arrived chan struct{}
	open    chan struct{}
}
