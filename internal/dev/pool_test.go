package dev

import (
	"bufio"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/onda-run/onda/internal/localbroker"
)

func newGate(t *testing.T) gate {
	t.Helper()
	g := gate{arrived: make(chan struct{}, 100), open: make(chan struct{})}
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		g.arrived <- struct{}{}
		select {
		case <-g.open:
		case <-r.Context().Done():
		}
	}))
	t.Cleanup(server.Close)
	g.url = server.URL
	return g
}

// held makes a request that stays at the gate, and gives where its answer will come.
func held(t *testing.T, h *Handle, g gate) <-chan answer {
	t.Helper()
	out := make(chan answer, 1)
	go func() { out <- fetch(t, "GET", h.URL()+"/functions/echo/gate?at="+g.url, "") }()
	<-g.arrived
	return out
}

func gone(pid string) bool {
	n, err := strconv.Atoi(pid)
	return err == nil && errors.Is(syscall.Kill(n, 0), syscall.ESRCH)
}

func TestFirstRequestStarts(t *testing.T) {
	t.Parallel()
	h := start(t, func(c *Config) {
		c.Env["ONDA_X"] = "of all"
		c.ServiceEnv = map[string]map[string]string{"echo": {"ONDA_Y": "of echo"}}
	})
	if s := h.Status().Service("echo"); s.State != "zero" || s.Starts != 0 {
		t.Fatalf("before any request: %+v", s)
	}
	first := fetch(t, "GET", h.URL()+"/functions/echo/pid", "")
	second := fetch(t, "GET", h.URL()+"/functions/echo/pid", "")
	if first.status != 200 || first.body != second.body {
		t.Errorf("answers: %+v and %+v, want the same process", first, second)
	}
	s := h.Status().Service("echo")
	if s.State != "ready" || s.Starts != 1 || s.Requests != 2 || len(s.Processes) != 1 || strconv.Itoa(s.Processes[0].PID) != first.body || s.ReadyLast <= 0 {
		t.Errorf("status: %+v", s)
	}
	for name, want := range map[string]string{
		"K_SERVICE": "echo", "K_REVISION": "echo-dev", "K_SINK": h.URL() + "/broker", "ONDA_SERVE": "both",
		"ONDA_FUNCTION_URL": h.URL() + "/functions/{function}", "ONDA_X": "of all", "ONDA_Y": "of echo",
	} {
		if got := fetch(t, "GET", h.URL()+"/functions/echo/env/"+name, "").body; got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	if got := fetch(t, "POST", h.URL()+"/functions/echo/body", "hello").body; got != "hello" {
		t.Errorf("a body came back as %q", got)
	}
}

func TestConcurrentFirstRequestsStartOneProcess(t *testing.T) {
	t.Parallel()
	h := start(t, nil)
	var all sync.WaitGroup
	answers := make(chan answer, 20)
	for range cap(answers) {
		all.Go(func() { answers <- fetch(t, "GET", h.URL()+"/functions/echo/pid", "") })
	}
	all.Wait()
	close(answers)
	pids := map[string]bool{}
	for a := range answers {
		pids[a.body] = true
		if a.status != 200 {
			t.Errorf("answered %d %s", a.status, a.body)
		}
	}
	if s := h.Status().Service("echo"); len(pids) != 1 || s.Starts != 1 || s.Requests != 20 {
		t.Errorf("%d processes answered; status %+v", len(pids), s)
	}
}

func TestIdleEnds(t *testing.T) {
	t.Parallel()
	h := start(t, func(c *Config) { c.Idle = 20 * time.Millisecond })
	first := fetch(t, "GET", h.URL()+"/functions/echo/pid", "").body
	await(t, h, "the end of an idle process", func(s Status) bool { return s.Service("echo").State == "zero" })
	spans := h.Timeline()
	if len(spans) != 1 || spans[0].Why != "idle" || spans[0].Ready == nil || spans[0].Ended == nil || !gone(first) {
		t.Errorf("timeline: %+v, process gone: %v", spans, gone(first))
	}
	if s := h.Status().Service("echo"); s.Kills != 0 || s.PeakRSS == 0 {
		t.Errorf("status: %+v, want it to have ended by itself", s)
	}
	if second := fetch(t, "GET", h.URL()+"/functions/echo/pid", ""); second.status != 200 || second.body == first {
		t.Errorf("after it: %+v, want another process than %s", second, first)
	}
}

func TestABusyProcessIsNotIdle(t *testing.T) {
	t.Parallel()
	h := start(t, func(c *Config) { c.Idle = time.Millisecond })
	g := newGate(t)
	out := held(t, h, g)
	// many times the idle time, measured by what else happens: other requests that come and go leave it alone, too
	for range 20 {
		fetch(t, "GET", h.URL()+"/functions/echo/pid", "")
	}
	if n := len(h.Timeline()); n != 1 {
		t.Errorf("%d processes were started while a request was in flight", n)
	}
	close(g.open)
	if a := <-out; a.status != 200 {
		t.Errorf("answered %+v", a)
	}
}

func TestKilledInTheMiddle(t *testing.T) {
	t.Parallel()
	h := start(t, nil)
	g := newGate(t)
	first := fetch(t, "GET", h.URL()+"/functions/echo/pid", "").body
	out := held(t, h, g)
	if n, err := h.Kill("echo", syscall.SIGKILL); n != 1 || err != nil {
		t.Fatalf("killed %d: %v", n, err)
	}
	if a := <-out; a.status != http.StatusBadGateway || !strings.Contains(a.body, "echo did not answer") {
		t.Errorf("the request in flight was answered %d %s", a.status, a.body)
	}
	if next := fetch(t, "GET", h.URL()+"/functions/echo/pid", ""); next.status != 200 || next.body == first {
		t.Errorf("the next: %+v, want another process than %s", next, first)
	}
	if s := h.Status().Service("echo"); s.Kills != 1 || s.Starts != 2 || h.Timeline()[0].Why != "killed" {
		t.Errorf("status %+v, timeline %+v", s, h.Timeline())
	}
}

// TestKilledWithAnEvent: the broker tries again what was in flight.
func TestKilledWithAnEvent(t *testing.T) {
	t.Parallel()
	g := newGate(t)
	h := start(t, func(c *Config) {
		c.Env["ECHO_GATE"] = g.url
		c.Clock = localbroker.FastClock{Factor: 100}
	})
	a := fetch(t, "POST", h.URL()+"/broker", `{}`, "Ce-Specversion", "1.0", "Ce-Id", "1", "Ce-Type", "onda.sample.made.v1",
		"Ce-Source", "/tenants/acme/functions/echo", "Ce-Tenant", "acme", "Content-Type", "application/json")
	if a.status != http.StatusAccepted {
		t.Fatalf("the broker answered %+v", a)
	}
	<-g.arrived
	if _, err := h.Kill("echo", syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-g.arrived // a second time, at a second process
	close(g.open)
	if err := h.Broker().Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	if c := h.Broker().Counts().Triggers["echo"]; c.Delivered != 1 || c.Retried != 1 {
		t.Errorf("counts: %+v", c)
	}
}

// TestDrain: what a process has when it gets SIGTERM it finishes, and what comes goes to another.
func TestDrain(t *testing.T) {
	t.Parallel()
	h := start(t, nil)
	g := newGate(t)
	out := held(t, h, g)
	if _, err := h.Kill("echo", syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	second := fetch(t, "GET", h.URL()+"/functions/echo/pid", "")
	close(g.open)
	first := <-out
	if first.status != 200 || second.status != 200 || first.body == second.body {
		t.Errorf("answers: %+v and %+v, want two processes", first, second)
	}
	await(t, h, "the end of the drained process", func(s Status) bool { return len(s.Service("echo").Processes) == 1 })
	if why := h.Timeline()[0].Why; why != "terminated" {
		t.Errorf("it ended: %s", why)
	}
}

func TestWhatIgnoresSIGTERMIsKilledAfterItsGrace(t *testing.T) {
	t.Parallel()
	h := start(t, func(c *Config) { c.Grace, c.Idle = 50*time.Millisecond, 50*time.Millisecond })
	pid := fetch(t, "GET", h.URL()+"/functions/echo/pid", "").body
	if _, err := h.Kill("echo", syscall.SIGSTOP); err != nil { // a stopped process does not act on SIGTERM
		t.Fatal(err)
	}
	await(t, h, "its end", func(s Status) bool { return s.Service("echo").State == "zero" })
	if s := h.Status().Service("echo"); s.Kills != 1 || !gone(pid) {
		t.Errorf("status: %+v", s)
	}
}

func TestStopDrainsAndLeavesNothing(t *testing.T) {
	t.Parallel()
	h := start(t, nil)
	g := newGate(t)
	out := held(t, h, g)
	pid := strconv.Itoa(h.Status().Service("echo").Processes[0].PID)
	stopped := make(chan error, 1)
	go func() { stopped <- h.Stop(t.Context()) }()
	await(t, h, "the drain", func(s Status) bool { return s.Service("echo").State == "ending" })
	if a := fetch(t, "GET", h.URL()+"/functions/echo/pid", ""); a.status != http.StatusServiceUnavailable {
		t.Errorf("while it ends: %+v", a)
	}
	close(g.open)
	if a := <-out; a.status != 200 || a.body != pid {
		t.Errorf("the request in flight was answered %+v, want 200 by %s", a, pid)
	}
	if err := <-stopped; err != nil || !gone(pid) {
		t.Errorf("stop: %v, process gone: %v", err, gone(pid))
	}
}

// TestNoOrphans kills a dev hard: the kernel ends its functions.
func TestNoOrphans(t *testing.T) {
	t.Parallel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), "DEV_TEST_AS=dev", "TMPDIR="+t.TempDir())
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	pid := strings.TrimSpace(line)
	if gone(pid) {
		t.Fatalf("function %s does not run", pid)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // it was killed
	poll(t, "the end of the orphan", func() bool { return gone(pid) || zombie(pid) })
}

// zombie tells whether a process has ended and only waits to be waited for, as nobody may do in a container without an init.
func zombie(pid string) bool {
	text, err := os.ReadFile("/proc/" + pid + "/stat")
	return err == nil && strings.Contains(string(text), ") Z ")
}

func TestConcurrencyAndScale(t *testing.T) {
	t.Parallel()
	h := start(t, func(c *Config) {
		c.Services[0].Concurrency = 1
		c.Scale = map[string]int{"echo": 2}
	})
	g := newGate(t)
	one, two := held(t, h, g), held(t, h, g)
	three := make(chan answer, 1)
	go func() { three <- fetch(t, "GET", h.URL()+"/functions/echo/pid", "") }()
	if s := h.Status().Service("echo"); len(s.Processes) != 2 || s.Starts != 2 {
		t.Errorf("status: %+v, want two processes", s)
	}
	select {
	case a := <-three:
		t.Errorf("a third request was answered %+v while both processes were full", a)
	default:
	}
	close(g.open)
	if a, b, c := <-one, <-two, <-three; a.body == b.body || c.body != a.body && c.body != b.body {
		t.Errorf("answers: %+v %+v %+v", a, b, c)
	}
}

func TestAFunctionThatDoesNotStart(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name   string
		change func(*Config)
		want   []string
	}{
		{"it says why", func(c *Config) { c.Env["ECHO_FAILS"] = "is not set" }, []string{"it ended before it was ready", "ECHO_FAILS: is not set"}},
		{"no binary", func(c *Config) { c.Binaries = "/nowhere" }, []string{"there is no binary /nowhere/echo: build it"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			h := start(t, test.change)
			a := fetch(t, "GET", h.URL()+"/functions/echo/pid", "")
			page := fetch(t, "GET", h.URL()+"/public/pid", "", "Accept", "text/html")
			for _, want := range test.want {
				if a.status != http.StatusBadGateway || !strings.Contains(a.body, want) {
					t.Errorf("answered %d %s\nwant: %s", a.status, a.body, want)
				}
				if page.status != http.StatusBadGateway || !strings.Contains(page.body, want) || !strings.HasPrefix(page.header.Get("Content-Type"), "text/html") {
					t.Errorf("page: %+v\nwant: %s", page, want)
				}
				if s := h.Status().Service("echo"); !strings.Contains(s.Error, want) {
					t.Errorf("status: %+v", s)
				}
			}
		})
	}
}

func TestLogsToFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	h := start(t, func(c *Config) { c.Logs = dir + "/logs" })
	fetch(t, "GET", h.URL()+"/functions/echo/pid", "")
	if err := h.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(dir + "/logs/echo.log")
	if err != nil || !strings.Contains(string(text), "serving") {
		t.Errorf("log: %s %v", text, err)
	}
}

func TestOutputSplitsLines(t *testing.T) {
	t.Parallel()
	l := &lines{t: t}
	term := newTerminal(l, "")
	o, err := term.output("send")
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{"one\ntw", "o\n", "", "\nlast"} {
		if n, err := o.Write([]byte(part)); n != len(part) || err != nil {
			t.Fatalf("wrote %d: %v", n, err)
		}
	}
	o.close()
	want := "send         | one\nsend         | two\nsend         | \nsend         | last\n"
	if got := l.String(); got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}
