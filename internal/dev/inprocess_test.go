package dev

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2"
	"github.com/google/go-cmp/cmp"

	"github.com/onda-run/onda/internal/fn"
)

// counter is a function in one process that counts what happens to it.
type counter struct {
	built, after, closed, live atomic.Int64
	fails                      atomic.Bool
}

func (c *counter) build(_ context.Context, rt *fn.Runtime) (fn.Handler, error) {
	if c.fails.Load() {
		return fn.Handler{}, errors.New("ONDA_X: is not set")
	}
	c.built.Add(1)
	c.live.Add(1)
	h, err := buildEcho(context.Background(), rt)
	h.After = func(context.Context) { c.after.Add(1) }
	h.Close = func(context.Context) error { c.closed.Add(1); c.live.Add(-1); return nil }
	return h, err
}

func startInProcess(t *testing.T, c *counter, change func(*Config)) *Handle {
	t.Helper()
	return start(t, func(cfg *Config) {
		cfg.Binaries = ""
		cfg.Builds = map[string]fn.Build{"echo": c.build}
		if change != nil {
			change(cfg)
		}
	})
}

func TestOneProcess(t *testing.T) {
	t.Parallel()
	var c counter
	h := startInProcess(t, &c, nil)
	if c.built.Load() != 0 {
		t.Error("built before any request")
	}
	for range 3 {
		if a := fetch(t, "GET", h.URL()+"/functions/echo/env/ONDA_SERVE", ""); a.status != 200 || a.body != "both" {
			t.Errorf("answered %+v", a)
		}
	}
	if a := fetch(t, "GET", h.URL()+"/functions/echo/env/PATH", ""); a.body != "" {
		t.Errorf("it sees the test's own environment: %q", a.body)
	}
	if err := h.Quiet(t.Context()); err != nil {
		t.Fatal(err)
	}
	if c.built.Load() != 1 || c.closed.Load() != 1 || c.after.Load() == 0 {
		t.Errorf("built %d, closed %d, after %d", c.built.Load(), c.closed.Load(), c.after.Load())
	}
	fetch(t, "GET", h.URL()+"/functions/echo/pid", "")
	if s := h.Status().Service("echo"); s.Starts != 2 || s.State != "ready" || s.Requests != 5 {
		t.Errorf("after another request: %+v", s)
	}
}

func TestRebuildEach(t *testing.T) {
	t.Parallel()
	var c counter
	h := startInProcess(t, &c, func(cfg *Config) { cfg.RebuildEach = true })
	for range 5 {
		fetch(t, "GET", h.URL()+"/functions/echo/pid", "")
	}
	if err := h.Quiet(t.Context()); err != nil {
		t.Fatal(err)
	}
	if c.built.Load() != 5 || c.closed.Load() != 5 || c.after.Load() < 5 || c.live.Load() != 0 {
		t.Errorf("built %d, closed %d, after %d, live %d", c.built.Load(), c.closed.Load(), c.after.Load(), c.live.Load())
	}
}

func TestOneProcessIdleEnds(t *testing.T) {
	t.Parallel()
	var c counter
	h := startInProcess(t, &c, func(cfg *Config) { cfg.Idle = 10 * time.Millisecond })
	fetch(t, "GET", h.URL()+"/functions/echo/pid", "")
	await(t, h, "the end of an idle instance", func(s Status) bool { return s.Service("echo").State == "zero" })
	if spans := h.Timeline(); len(spans) != 1 || spans[0].Why != "idle" || c.closed.Load() != 1 {
		t.Errorf("timeline %+v, closed %d", spans, c.closed.Load())
	}
}

func TestOneProcessDrain(t *testing.T) {
	t.Parallel()
	var c counter
	h := startInProcess(t, &c, nil)
	g := newGate(t)
	out := held(t, h, g)
	if _, err := h.Kill("echo", syscall.SIGKILL); err == nil {
		t.Error("SIGKILL was sent to this process")
	}
	if n, err := h.Kill("echo", syscall.SIGTERM); n != 1 || err != nil {
		t.Errorf("drained %d: %v", n, err)
	}
	if a := fetch(t, "GET", h.URL()+"/functions/echo/pid", ""); a.status != 200 {
		t.Errorf("the next: %+v", a)
	}
	close(g.open)
	if a := <-out; a.status != 200 {
		t.Errorf("the one in flight: %+v", a)
	}
}

func TestOneProcessThatDoesNotStart(t *testing.T) {
	t.Parallel()
	var c counter
	c.fails.Store(true)
	h := startInProcess(t, &c, nil)
	if a := fetch(t, "GET", h.URL()+"/functions/echo/pid", ""); a.status != http.StatusBadGateway || !strings.Contains(a.body, "ONDA_X: is not set") {
		t.Errorf("answered %+v", a)
	}
	c.fails.Store(false)
	if a := fetch(t, "GET", h.URL()+"/functions/echo/pid", ""); a.status != 200 {
		t.Errorf("answered %+v", a)
	}
}

func TestTickReachesTheFunction(t *testing.T) {
	t.Parallel()
	var seen atomic.Value
	var c counter
	h := startInProcess(t, &c, func(cfg *Config) {
		cfg.Tick = 5 * time.Millisecond
		cfg.OnEvent = func(e cloudevents.Event) { seen.Store(e.Type()) }
	})
	await(t, h, "two ticks", func(s Status) bool { return s.Service("echo").Requests >= 2 })
	if seen.Load() != "dev.knative.sources.ping" {
		t.Errorf("saw %v", seen.Load())
	}
}

// TestEventsAreSeenOnce: those that are published when the broker takes them, those that are posted when the ingress does.
func TestEventsAreSeenOnce(t *testing.T) {
	t.Parallel()
	var n, broken atomic.Int64
	var c counter
	h := startInProcess(t, &c, func(cfg *Config) {
		cfg.OnEvent = func(e cloudevents.Event) {
			n.Add(1)
			if string(e.Data()) != `{"a":1}` || e.Extensions()["knativearrivaltime"] != nil {
				broken.Add(1)
			}
		}
	})
	headers := []string{"Ce-Specversion", "1.0", "Ce-Id", "1", "Ce-Type", "onda.sample.made.v1", "Ce-Source", "/a", "Content-Type", "application/json"}
	fetch(t, "POST", h.URL()+"/broker/onda", `{"a":1}`, headers...)
	fetch(t, "POST", h.URL()+"/functions/echo/body", `{"a":1}`, headers...)
	structured := `{"specversion":"1.0","id":"2","type":"onda.sample.made.v1","source":"/a","data":{"a":1}}`
	if a := fetch(t, "POST", h.URL()+"/functions/echo/body", structured, "Content-Type", "application/cloudevents+json"); a.body != structured {
		t.Errorf("the body came through as %q", a.body)
	}
	if err := h.Quiet(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n.Load() != 3 || broken.Load() != 0 {
		t.Errorf("saw %d events, %d of them changed", n.Load(), broken.Load())
	}
}

// TestRouting has every public path of design section 7, and who answers it.
func TestRouting(t *testing.T) {
	t.Parallel()
	builds := map[string]fn.Build{}
	for _, name := range functions(Services()) {
		builds[name] = buildEcho
	}
	_, eventing, err := prepare(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(eventing, "all.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(eventing, "all.yaml"), []byte(strings.ReplaceAll(string(text), "name: echo", "name: send")), 0o644); err != nil {
		t.Fatal(err)
	}
	h := run(t, Config{
		Addr: "127.0.0.1:0", Eventing: eventing, Builds: builds, Tick: -1, Output: &lines{t: t},
		Routes: map[string]http.Handler{"/report": http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprint(w, "the report") })},
	})
	host := strings.TrimPrefix(h.URL(), "http://")
	for _, test := range []struct {
		path, service string // no service: 404
	}{
		{"/o/abc.gif", "track"},
		{"/c/abc", "track"},
		{"/u/abc", "track"},
		{"/p/abc", "track"},
		{"/w/abc", "track"},
		{"/onda.js", "track"},
		{"/e", "track"},
		{"/v1/identify", "track"},
		{"/v1/track", "track"},
		{"/v1/page", "track"},
		{"/v1/screen", "track"},
		{"/v1/group", "track"},
		{"/v1/alias", "track"},
		{"/v1/batch", "track"},
		{"/v1/emails", "send-api"},
		{"/f/acme/newsletter", "render-form"},
		{"/f/acme/newsletter.js", "render-form"},
		{"/y/abc", "render-form"},
		{"/bounces/acme", "bounce"},
		{"/bounces/acme/ses", "bounce"},
		{"/v1/p", "track"},
		{"/v1/projects/key/settings", "track"},
		{"/other", ""},
		{"/elsewhere", ""},
		{"/functions/nobody/x", ""},
		{"/functions/track/o/abc.gif?x=1", "track"},
		{"/functions/render-form", "render-form"},
	} {
		a := fetch(t, "GET", h.URL()+test.path, "")
		if test.service == "" {
			if a.status != http.StatusNotFound {
				t.Errorf("%s: answered %+v", test.path, a)
			}
			continue
		}
		path := strings.TrimPrefix(test.path, "/functions/"+test.service)
		if path == "" {
			path = "/"
		}
		if want := test.service + " " + host + path; a.body != want {
			t.Errorf("%s: answered %q, want %q", test.path, a.body, want)
		}
	}
	for _, service := range []string{"send", "track-events", "segment", "campaign", "schedule"} { // cluster-local: they serve events only
		if a := fetch(t, "GET", h.URL()+"/functions/"+service+"/x", ""); a.status != http.StatusNotFound {
			t.Errorf("%s: answered %+v", service, a)
		}
	}
	if a := fetch(t, "GET", h.URL()+"/report", ""); a.body != "the report" {
		t.Errorf("a further route: %+v", a)
	}
	var names []string
	for _, s := range h.Status().Services {
		names = append(names, s.Service)
	}
	want := []string{"send", "send-api", "send-api-events", "track", "track-events", "segment", "render-form", "campaign", "schedule", "bounce"}
	if diff := cmp.Diff(want, names); diff != "" {
		t.Errorf("services (-want +got):\n%s", diff)
	}
}
