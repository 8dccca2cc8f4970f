package dev

import (
	"context"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// program is a function without the runtime, so that it compiles in a second and without the network. It answers with what package text says.
const program = `package main

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"syscall"

	"example.test/app/internal/text"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	http.HandleFunc("/health/readiness", func(http.ResponseWriter, *http.Request) {})
	http.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, text.Text) })
	server := &http.Server{Addr: "127.0.0.1:" + os.Getenv("PORT")}
	go server.ListenAndServe()
	<-ctx.Done()
	server.Shutdown(context.Background())
}
`

// module is a module with two functions in a directory of its own.
type module struct {
	t    *testing.T
	root string
}

func newModule(t *testing.T) module {
	t.Helper()
	m := module{t, t.TempDir()}
	m.write("go.mod", "module example.test/app\n\ngo 1.26\n")
	m.write("functions/hello/main.go", program)
	m.write("functions/other/main.go", strings.Replace(program, `"example.test/app/internal/text"`, `text "example.test/app/internal/other"`, 1))
	m.say("one")
	m.write("internal/other/text.go", "package other\n\nconst Text = \"other\"\n")
	m.write("eventing/all.yaml", strings.ReplaceAll(manifests, "name: echo", "name: hello"))
	return m
}

func (m module) write(name, text string) {
	m.t.Helper()
	path := filepath.Join(m.root, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		m.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		m.t.Fatal(err)
	}
}

// say changes what hello answers, by an embedded file.
func (m module) say(text string) {
	m.t.Helper()
	m.write("internal/text/text.go", "package text\n\nimport _ \"embed\"\n\n//go:embed text.html\nvar Text string\n")
	m.write("internal/text/text.html", text)
}

func (m module) start(change func(*Config)) *Handle {
	m.t.Helper()
	cfg := Config{
		Addr: "127.0.0.1:0", Root: m.root, Tick: -1, Idle: time.Hour, Output: &lines{t: m.t},
		Services: []Service{{Name: "hello", Function: "hello", Serve: "both", Paths: []string{"/public/"}}, {Name: "other", Function: "other", Serve: "both"}},
	}
	if change != nil {
		change(&cfg)
	}
	return run(m.t, cfg)
}

func TestAnEditIsLive(t *testing.T) {
	t.Parallel()
	m := newModule(t)
	h := m.start(nil)
	url := h.URL() + "/functions/hello"
	if a := fetch(t, "GET", url, ""); a.body != "one" {
		t.Fatalf("answered %+v", a)
	}
	if a := fetch(t, "GET", h.URL()+"/functions/other", ""); a.body != "other" {
		t.Fatalf("answered %+v", a)
	}

	m.write("internal/text/text.html", "two")
	poll(t, "the new answer", func() bool { return fetch(t, "GET", url, "").body == "two" })

	// A mistake: the old code goes on, and the status tells.
	m.write("internal/text/text.go", "package text\n\nvar Text string = 1\n")
	await(t, h, "the build error", func(s Status) bool { return strings.Contains(s.Service("hello").BuildError, "cannot use 1") })
	if a := fetch(t, "GET", url, ""); a.status != 200 || a.body != "two" {
		t.Errorf("with a mistake in the code: %+v, want the answer of before", a)
	}

	m.say("three")
	poll(t, "the answer after the mistake was mended", func() bool { return fetch(t, "GET", url, "").body == "three" })
	await(t, h, "the end of the old processes", func(s Status) bool { return len(s.Service("hello").Processes) == 1 })
	s := h.Status()
	if hello := s.Service("hello"); hello.Starts != 3 || hello.BuildError != "" || hello.Kills != 0 {
		t.Errorf("hello: %+v", hello)
	}
	if other := s.Service("other"); other.Starts != 1 {
		t.Errorf("other, whose code did not change: %+v", other)
	}
	why := map[string]int{}
	for _, span := range h.Timeline() {
		why[span.Why]++
	}
	if why["edit"] != 2 {
		t.Errorf("processes ended: %v, want two because of an edit", why)
	}
}

func TestCodeThatNeverCompiled(t *testing.T) {
	t.Parallel()
	m := newModule(t)
	m.write("internal/text/text.go", "package text\n\nvar Text string = <script>\n")
	h := m.start(nil)
	a := fetch(t, "GET", h.URL()+"/functions/hello", "")
	if a.status != http.StatusBadGateway || !strings.Contains(a.body, "hello does not compile") || !strings.Contains(a.body, "internal/text/text.go:3:19") {
		t.Errorf("answered %d %s", a.status, a.body)
	}
	page := fetch(t, "GET", h.URL()+"/public/", "", "Accept", "text/html,*/*")
	if !strings.Contains(page.body, "<h1>hello does not compile</h1>") || strings.Contains(page.body, "<script>") || !strings.Contains(page.body, "internal/text/text.go:3") {
		t.Errorf("page: %s", page.body)
	}
	if s := h.Status().Service("hello"); s.BuildError == "" || s.Starts != 0 {
		t.Errorf("status: %+v", s)
	}
	m.say("mended")
	poll(t, "the answer of mended code", func() bool { return fetch(t, "GET", h.URL()+"/functions/hello", "").body == "mended" })
}

func TestEditsOfManifestsAndDocuments(t *testing.T) {
	t.Parallel()
	m := newModule(t)
	m.write("examples/fields.yaml", "kind: Field\n")
	applied := make(chan string, 10)
	out := &lines{t: t}
	h := m.start(func(c *Config) {
		c.Documents = []string{filepath.Join(m.root, "examples")}
		c.Output = out
		c.OnDocuments = func(_ context.Context, dir string) error {
			applied <- filepath.Base(dir)
			return os.ErrInvalid
		}
	})
	m.write("examples/more/campaign.yaml", "kind: Campaign\n")
	m.write("examples/fields.yaml", "kind: Fields\n")
	if dir := <-applied; dir != "examples" {
		t.Errorf("applied %q", dir)
	}
	poll(t, "the error on the terminal", func() bool { return strings.Contains(out.String(), "examples was not applied") })

	before := h.Broker().Counts().Names()
	m.write("eventing/all.yaml", strings.ReplaceAll(strings.ReplaceAll(manifests, "kind: Service, name: echo", "kind: Service, name: other"), "name: echo", "name: renamed"))
	poll(t, "the new route", func() bool { return len(h.Broker().Counts().Names()) == 2 })
	if got := strings.Join(append(before, h.Broker().Counts().Names()...), " "); got != "hello hello renamed" {
		t.Errorf("triggers: %s", got)
	}
	m.write("eventing/all.yaml", "kind: Trigger\n")
	poll(t, "the complaint", func() bool { return strings.Contains(out.String(), "the manifests of before stay in force") })
}

func TestTouches(t *testing.T) {
	t.Parallel()
	dirs := []string{"functions/send", "internal/send", "internal/postgres"}
	for _, test := range []struct {
		dirs []string
		path string
		want bool
	}{
		{dirs, "internal/send/send.go", true},
		{dirs, "internal/postgres/migrations/0001.sql", true}, // embedded
		{dirs, "internal/sender/x.go", false},
		{dirs, "internal/track/track.go", false},
		{dirs, "go.mod", true},
		{dirs, "README.md", false},
		{[]string{"."}, "embed.go", true},
		{[]string{"."}, "internal/x.go", false},
		{nil, "anything", true}, // not known
	} {
		if got := touches(test.dirs, []string{test.path}); got != test.want {
			t.Errorf("%v touches %s: %v", test.dirs, test.path, got)
		}
	}
}
