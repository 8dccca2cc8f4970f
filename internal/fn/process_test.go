package fn

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	ce "github.com/cloudevents/sdk-go/v2/event"
)

// buildHelper is the function that the test binary runs as. The subject of an event tells how it behaves.
func buildHelper(ctx context.Context, rt *Runtime) (Handler, error) {
	if os.Getenv(envHelper) == "secret" {
		var cfg struct {
			Database string `env:"ONDA_DATABASE_URL, required"`
		}
		if err := rt.Config(ctx, &cfg); err != nil {
			return Handler{}, err
		}
	}
	return Handler{
		Event: func(ctx context.Context, e ce.Event) (*ce.Event, error) {
			rt.Log.Info("handling")
			switch e.Subject() {
			case "until-draining":
				<-rt.Draining()
			case "until-cancelled":
				<-ctx.Done()
				return nil, ctx.Err()
			case "for-ever":
				select {}
			}
			return nil, nil
		},
		After: func(context.Context) { rt.Log.Info("after") },
		Close: func(context.Context) error { rt.Log.Info("closed"); return nil },
	}, nil
}

// process is the test binary run as a function.
type process struct {
	t      *testing.T
	cmd    *exec.Cmd
	url    string
	lines  *bufio.Scanner
	log    []map[string]any
	stderr bytes.Buffer
}

func startProcess(t *testing.T, env ...string) *process {
	t.Helper()
	p := &process{t: t, cmd: exec.CommandContext(t.Context(), os.Args[0])}
	p.cmd.Env = append(os.Environ(), append([]string{envHelper + "=1", "PORT=0", "ONDA_LOG=json"}, env...)...)
	p.cmd.Stderr = &p.stderr
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p.lines = bufio.NewScanner(out)
	address, _ := p.until("serving")["address"].(string)
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	p.url = "http://127.0.0.1:" + port
	return p
}

// until reads the log up to a message.
func (p *process) until(message string) map[string]any {
	p.t.Helper()
	for p.lines.Scan() {
		var entry map[string]any
		if err := json.Unmarshal(p.lines.Bytes(), &entry); err != nil {
			p.t.Fatalf("the log has a line that is no JSON: %s", p.lines.Text())
		}
		p.log = append(p.log, entry)
		if entry["message"] == message {
			return entry
		}
	}
	p.t.Fatalf("the log ended before %q: %v; %s", message, p.log, p.stderr.String())
	return nil
}

// wait reads the rest of the log and gives the exit status.
func (p *process) wait() int {
	p.t.Helper()
	for p.lines.Scan() {
		var entry map[string]any
		if err := json.Unmarshal(p.lines.Bytes(), &entry); err != nil {
			p.t.Fatalf("the log has a line that is no JSON: %s", p.lines.Text())
		}
		p.log = append(p.log, entry)
	}
	var exit *exec.ExitError
	if err := p.cmd.Wait(); err != nil && !errors.As(err, &exit) {
		p.t.Fatal(err)
	}
	return p.cmd.ProcessState.ExitCode()
}

func (p *process) signal(s os.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		p.t.Fatal(err)
	}
}

// send posts an event with a subject and gives the status, or 0 when there is no answer.
func (p *process) send(subject string) <-chan int {
	p.t.Helper()
	status := make(chan int, 1)
	headers := append(binaryHeaders(work(p.t)), "Ce-Subject", subject)
	go func() {
		client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		req, err := http.NewRequestWithContext(p.t.Context(), http.MethodPost, p.url, strings.NewReader(`{"run":1}`))
		if err != nil {
			p.t.Error(err)
		}
		for i := 0; i < len(headers); i += 2 {
			req.Header.Set(headers[i], headers[i+1])
		}
		res, err := client.Do(req)
		if err != nil {
			status <- 0
			return
		}
		_ = res.Body.Close()
		status <- res.StatusCode
	}()
	return status
}

func (p *process) messages() string {
	var all []string
	for _, entry := range p.log {
		s, _ := entry["message"].(string)
		all = append(all, s)
	}
	return strings.Join(all, " ")
}

func TestSIGTERMDrains(t *testing.T) {
	t.Parallel()
	p := startProcess(t)
	status := p.send("until-draining")
	p.until("handling")
	p.signal(syscall.SIGTERM)
	if got := <-status; got != 202 {
		t.Errorf("the request in flight was answered %d", got)
	}
	if exit := p.wait(); exit != 0 || p.stderr.Len() != 0 {
		t.Errorf("exit status %d, %s", exit, p.stderr.String())
	}
	// After runs for the request and once more, or only once more when the request's own run had not begun.
	if got := p.messages(); !regexp.MustCompile(`^serving handling draining request( after)+ closed$`).MatchString(got) {
		t.Errorf("log: %s", got)
	}
	for _, entry := range p.log {
		if entry["function"] != "helper" || entry["time"] == nil || entry["level"] == nil {
			t.Errorf("log line %v", entry)
		}
	}
}

func TestSIGTERMCancelsWhatTakesTooLong(t *testing.T) {
	t.Parallel()
	p := startProcess(t, "ONDA_DRAIN=50ms")
	status := p.send("until-cancelled")
	p.until("handling")
	p.signal(syscall.SIGTERM)
	if got := <-status; got != 503 {
		t.Errorf("answered %d", got)
	}
	if exit := p.wait(); exit != 1 || p.stderr.String() != "helper: drain: requests were not finished within 50ms\n" {
		t.Errorf("exit status %d, %q", exit, p.stderr.String())
	}
	if got := p.messages(); !strings.HasSuffix(got, "after closed") {
		t.Errorf("log: %s", got)
	}
}

func TestSecondSignalEndsAtOnce(t *testing.T) {
	t.Parallel()
	p := startProcess(t, "ONDA_DRAIN=1h")
	status := p.send("for-ever")
	p.until("handling")
	p.signal(syscall.SIGTERM)
	p.until("draining")
	p.signal(syscall.SIGINT)
	if exit := p.wait(); exit != 1 {
		t.Errorf("exit status %d", exit)
	}
	if got := <-status; got != 0 {
		t.Errorf("answered %d", got)
	}
}

// What a Secret lacks is said to who asks, and not by ending again and again.
func TestASecretThatIsMissing(t *testing.T) {
	t.Parallel()
	p := startProcess(t, envHelper+"=secret", "K_SERVICE=helper")
	if status := <-p.send("x"); status != http.StatusServiceUnavailable {
		t.Errorf("an event was answered %d", status)
	}
	for path, want := range map[string]struct {
		status int
		text   string
	}{
		"/health/readiness": {http.StatusOK, ""},
		"/":                 {http.StatusServiceUnavailable, "helper is not set up: ONDA_DATABASE_URL: is not set\n"},
	} {
		res, err := http.Get(p.url + path)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(res.Body)
		_ = res.Body.Close()
		if err != nil || res.StatusCode != want.status || string(body) != want.text {
			t.Errorf("%s: %d %q, %v", path, res.StatusCode, body, err)
		}
	}
	p.signal(syscall.SIGTERM)
	if status := p.wait(); status != 0 {
		t.Errorf("exit status %d", status)
	}
	const say = "mend the Secret that the service names"
	if said := slices.ContainsFunc(p.log, func(line map[string]any) bool { s, _ := line["error"].(string); return strings.Contains(s, say) }); !said {
		t.Errorf("no line of the log says %q: %v", say, p.log)
	}
}

func TestPortInUse(t *testing.T) {
	t.Parallel()
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), envHelper+"=1", "PORT="+port)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	err = cmd.Run()
	if cmd.ProcessState.ExitCode() != 1 || !strings.HasPrefix(stderr.String(), "helper: PORT: ") || !strings.Contains(stderr.String(), "address already in use") {
		t.Errorf("%v: %q", err, stderr.String())
	}
}

func TestListensWhereItIsTold(t *testing.T) {
	t.Parallel()
	p := &process{t: t, cmd: exec.CommandContext(t.Context(), os.Args[0])}
	p.cmd.Env = append(os.Environ(), envHelper+"=1", "PORT=0", "ONDA_HOST=127.0.0.1", "ONDA_LOG=json")
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p.lines = bufio.NewScanner(out)
	if address, _ := p.until("serving")["address"].(string); !strings.HasPrefix(address, "127.0.0.1:") {
		t.Errorf("listens on %s", address)
	}
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Wait(); err != nil {
		t.Error(err)
	}
}

// TestTelemetryIsPushed runs a function with a collector: traces and metrics of the last request arrive although the process ends at once.
func TestTelemetryIsPushed(t *testing.T) {
	t.Parallel()
	var traces, metrics atomic.Int32
	collector := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		switch {
		case r.URL.Path == "/v1/traces" && bytes.Contains(body, []byte("process onda.email.send.requested.v1")):
			traces.Add(1)
		case r.URL.Path == "/v1/metrics" && bytes.Contains(body, []byte("onda.request.duration")) && bytes.Contains(body, []byte("onda-helper")):
			metrics.Add(1)
		}
		w.Header().Set("Content-Type", "application/x-protobuf")
	}))
	t.Cleanup(collector.Close)
	p := startProcess(t, "OTEL_EXPORTER_OTLP_ENDPOINT="+collector.URL)
	if got := <-p.send("at-once"); got != 202 {
		t.Errorf("answered %d", got)
	}
	p.signal(syscall.SIGTERM)
	if exit := p.wait(); exit != 0 {
		t.Errorf("exit status %d, %s", exit, p.stderr.String())
	}
	if traces.Load() == 0 || metrics.Load() == 0 {
		t.Errorf("%d posts with the trace, %d with the metric", traces.Load(), metrics.Load())
	}
}

// TestCollectorAwayCostsNothing shows that a function works while its collector does not.
func TestCollectorAwayCostsNothing(t *testing.T) {
	t.Parallel()
	p := startProcess(t, "OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:1", "OTEL_EXPORTER_OTLP_TIMEOUT=100")
	if got := <-p.send("at-once"); got != 202 {
		t.Errorf("answered %d", got)
	}
	p.signal(syscall.SIGTERM)
	started := time.Now()
	p.wait()
	t.Logf("ended within %s, %q", time.Since(started), p.stderr.String())
}
