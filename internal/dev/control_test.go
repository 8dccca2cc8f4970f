package dev

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/onda-run/onda/internal/fn"
	"github.com/onda-run/onda/internal/localbroker"
)

func TestControl(t *testing.T) {
	t.Parallel()
	h := start(t, func(c *Config) { c.Links = []Link{{"Mailbox", "http://127.0.0.1:8025/", "Every mail <b>."}} })
	fetch(t, "GET", h.URL()+"/functions/echo/pid", "")

	var s Status
	if err := json.Unmarshal([]byte(fetch(t, "GET", h.URL()+"/dev/status", "").body), &s); err != nil {
		t.Fatal(err)
	}
	if echo := s.Service("echo"); echo.Starts != 1 || echo.Processes[0].RSS == 0 || s.Broker.Triggers["echo"] != (localbroker.TriggerCounts{}) {
		t.Errorf("status: %+v", s)
	}
	page := fetch(t, "GET", h.URL()+"/", "")
	if page.status != 200 || !strings.Contains(page.body, `<a href="http://127.0.0.1:8025/"><strong>Mailbox</strong><span>Every mail &lt;b&gt;.</span>`) {
		t.Errorf("page: %d %s", page.status, page.body)
	}

	for _, test := range []struct {
		name, method, path, body string
		header                   []string
		status                   int
		want                     string
	}{
		{"chaos", "POST", "/dev/chaos", `{"drop":0.3,"seed":4}`, nil, 200, `"drop":0.3`},
		{"chaos is kept", "GET", "/dev/chaos", "", nil, 200, `"seed":4`},
		{"chaos out of range", "POST", "/dev/chaos", `{"drop":30}`, nil, 400, "is not a share from 0 to 1"},
		{"an unknown key", "POST", "/dev/chaos", `{"drp":0.3}`, nil, 400, "unknown field"},
		{"an unknown service", "POST", "/dev/kill", `{"service":"nobody"}`, nil, 400, `there is no service \"nobody\" here`},
		{"an unknown signal", "POST", "/dev/kill", `{"service":"echo","signal":"HUGE"}`, nil, 400, "is not one of KILL"},
		{"another site's page", "POST", "/dev/kill", `{"service":"echo"}`, []string{"Sec-Fetch-Site", "cross-site", "Origin", "https://evil.example"}, 403, ""},
		{"a name of elsewhere that leads here", "POST", "/dev/kill", `{"service":"echo"}`, []string{"Host", "evil.example"}, 404, ""},
		{"the page under such a name", "GET", "/", "", []string{"Host", "evil.example"}, 404, ""},
		{"a function under such a name", "GET", "/functions/echo/pid", "", []string{"Host", "evil.example"}, 404, ""},
		{"the broker under such a name", "OPTIONS", "/broker", "", []string{"Host", "evil.example"}, 404, ""},
		{"GET does not kill", "GET", "/dev/kill", "", nil, 405, ""},
		{"kill", "POST", "/dev/kill", `{"service":"echo","signal":"SIGKILL"}`, nil, 200, `{"processes":1}`},
	} {
		a := fetch(t, test.method, h.URL()+test.path, test.body, test.header...)
		if a.status != test.status || !strings.Contains(a.body, test.want) {
			t.Errorf("%s: answered %d %s, want %d %s", test.name, a.status, a.body, test.status, test.want)
		}
	}
	await(t, h, "the end of what was killed", func(s Status) bool { return s.Service("echo").Kills == 1 })
	var timeline struct{ Spans []Span }
	if err := json.Unmarshal([]byte(fetch(t, "GET", h.URL()+"/dev/timeline", "").body), &timeline); err != nil {
		t.Fatal(err)
	}
	if len(timeline.Spans) != 1 || timeline.Spans[0].Why != "killed" || timeline.Spans[0].Ended == nil {
		t.Errorf("timeline: %+v", timeline)
	}
}

func TestAPortInUse(t *testing.T) {
	t.Parallel()
	first := start(t, nil)
	addr := strings.TrimPrefix(first.URL(), "http://")
	_, eventing, err := prepare(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	_, err = Start(t.Context(), Config{Addr: addr, Eventing: eventing, Services: first.cfg.Services, PortFlag: "--listen"})
	want := fmt.Sprintf("port %s is in use by dev.test (process %d): end it, or choose another with --listen", addr, os.Getpid())
	if err == nil || err.Error() != want {
		t.Errorf("error: %v\nwant: %s", err, want)
	}
	// A port that nobody has stands for one whose program is not told.
	err = PortTaken("port 0 for the ingress", 0, "--port")
	want = "port 0 for the ingress is in use: end what listens there (perhaps another onda dev), or choose another with --port"
	if err.Error() != want {
		t.Errorf("error: %v\nwant: %s", err, want)
	}
}

func TestConfigIsChecked(t *testing.T) {
	t.Parallel()
	echo := []Service{{Name: "echo", Function: "echo", Serve: "both"}}
	for _, test := range []struct {
		name string
		cfg  Config
		want string
	}{
		{"not loopback", Config{Addr: "0.0.0.0:8080"}, `address "0.0.0.0:8080" is not a loopback address`},
		{"all addresses", Config{Addr: ":8080"}, "is not a loopback address"},
		{"no port", Config{Addr: "127.0.0.1"}, "missing port in address"},
		{"environment of nobody", Config{ServiceEnv: map[string]map[string]string{"sender": {}}}, `there is no service "sender"`},
		{"scale of nobody", Config{Scale: map[string]int{"sender": 2}}, `there is no service "sender"`},
		{"a build is missing", Config{Services: echo, Builds: map[string]fn.Build{}}, "there is no build of function echo"},
		{"rebuilding processes", Config{RebuildEach: true}, "RebuildEach needs Builds"},
		{"chaos", Config{Chaos: localbroker.Chaos{Drop: 2}}, "drop: 2"},
		{"no manifests", Config{Eventing: "/nowhere"}, "read the eventing manifests"},
		{"a subscriber that is no service", Config{Addr: "127.0.0.1:0", Services: []Service{{Name: "other", Function: "other"}}}, `Trigger echo: spec.subscriber: Service echo: there is no service "echo" here`},
		{"routes that clash", Config{Addr: "127.0.0.1:0", Services: echo, Routes: map[string]http.Handler{"/broker": http.NotFoundHandler()}}, "routes: pattern"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			binaries, eventing, err := prepare(t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			if test.cfg.Builds == nil {
				test.cfg.Binaries = binaries
			}
			if test.cfg.Eventing == "" {
				test.cfg.Eventing = eventing
			}
			h, err := Start(t.Context(), test.cfg)
			if err == nil {
				_ = h.Stop(context.Background()) // the test has failed
			}
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error: %v\nwant: %s", err, test.want)
			}
		})
	}
}

func TestRunEndsWithItsContext(t *testing.T) {
	t.Parallel()
	binaries, eventing, err := prepare(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Run(ctx, Config{Addr: "127.0.0.1:0", Binaries: binaries, Eventing: eventing, Services: []Service{{Name: "echo", Function: "echo"}}}); err != nil {
		t.Error(err)
	}
}

// TestServicesAreTheClusters holds the table to the manifests that a cluster runs: names, images, ONDA_SERVE, concurrency, and who is public.
func TestServicesAreTheClusters(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("../../functions/*/service.yaml")
	if err != nil {
		t.Fatal(err)
	}
	known := map[string]Service{}
	for _, s := range Services() {
		known[s.Name] = s
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for doc := range strings.SplitSeq(string(text), "\n---\n") {
			var m struct {
				Kind     string
				Metadata struct {
					Name   string
					Labels map[string]string
				}
				Spec struct {
					Template struct {
						Spec struct {
							ContainerConcurrency int
							Containers           []struct {
								Image string
								Env   []struct{ Name, Value string }
							}
						}
					}
				}
			}
			if err := yaml.Unmarshal([]byte(doc), &m); err != nil {
				t.Fatalf("%s: %v", file, err)
			}
			if m.Kind != "Service" {
				continue
			}
			s, ok := known[m.Metadata.Name]
			if !ok {
				t.Errorf("%s: service %s is not known here", file, m.Metadata.Name)
				continue
			}
			delete(known, m.Metadata.Name)
			pod := m.Spec.Template.Spec
			serve := ""
			for _, v := range pod.Containers[0].Env {
				if v.Name == "ONDA_SERVE" {
					serve = v.Value
				}
			}
			// One that takes events is local to the cluster, whatever paths of it the ingress hands on: else anybody could post them.
			public := m.Metadata.Labels["networking.knative.dev/visibility"] != "cluster-local"
			if serve != s.Serve || pod.ContainerConcurrency != s.Concurrency || filepath.Base(pod.Containers[0].Image) != s.Function || public != (s.Serve == "http") || public && len(s.Paths) == 0 {
				t.Errorf("%s: service %s: serves %q, concurrency %d, image %s, public %v; here %+v",
					file, s.Name, serve, pod.ContainerConcurrency, pod.Containers[0].Image, public, s)
			}
		}
	}
	for name := range known {
		t.Errorf("service %s has no manifest", name)
	}
}
