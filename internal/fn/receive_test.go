package fn

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2"
	ce "github.com/cloudevents/sdk-go/v2/event"
	cehttp "github.com/cloudevents/sdk-go/v2/protocol/http"
	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/onda-run/onda/internal/event"
	"github.com/onda-run/onda/internal/event/eventtest"
)

func TestAnswersOfErrors(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		err    error
		status int
		body   string
		retry  string
		kept   bool
		level  string
	}{
		"nothing":          {nil, 202, "", "", false, "info"},
		"permanent":        {Permanent(errors.New("data.run is missing")), 400, "data.run is missing\n", "", true, "warn"},
		"wrapped":          {fmt.Errorf("work: %w", Permanent(errors.New("no such run"))), 400, "work: no such run\n", "", true, "warn"},
		"an address in it": {Permanent(errors.New("no contact <ada@example.com>")), 400, "no contact <[address]>\n", "", true, "warn"},
		"throttled":        {Throttled(errors.New("quota"), 1500*time.Millisecond), 429, "no room for this now; try again later\n", "2", false, "warn"},
		"throttled, 0":     {Throttled(errors.New("quota"), 0), 429, "no room for this now; try again later\n", "1", false, "warn"},
		"unavailable":      {Unavailable(errors.New("smtp away")), 503, "something this needs is away; try again\n", "", false, "warn"},
		"deadline":         {fmt.Errorf("lease: %w", context.DeadlineExceeded), 503, "something this needs is away; try again\n", "", false, "warn"},
		"serialization":    {fmt.Errorf("x: %w", &pgconn.PgError{Code: "40001"}), 503, "something this needs is away; try again\n", "", false, "warn"},
		"shutting down":    {&pgconn.PgError{Code: "57P01"}, 503, "something this needs is away; try again\n", "", false, "warn"},
		"dead":             {fmt.Errorf("commit: %w", io.ErrUnexpectedEOF), 503, "something this needs is away; try again\n", "", false, "warn"},
		"too many clients": {&pgconn.PgError{Code: "53300"}, 503, "something this needs is away; try again\n", "", false, "warn"},
		"lock not given":   {&pgconn.PgError{Code: "55P03"}, 503, "something this needs is away; try again\n", "", false, "warn"},
		"a broken query":   {&pgconn.PgError{Code: "42703", Message: "column ada"}, 500, "internal error; the log has more\n", "", false, "error"},
		"any other":        {errors.New("secret"), 500, "internal error; the log has more\n", "", false, "error"},
		"permanent over":   {Permanent(context.DeadlineExceeded), 400, "context deadline exceeded\n", "", true, "warn"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var kept error
			w := newWorld(t, nil, Handler{
				Event:  func(context.Context, ce.Event) (*ce.Event, error) { return nil, c.err },
				Failed: func(_ context.Context, _ ce.Event, err error) error { kept = err; return nil },
			})
			a := w.post("/", work(t))
			if a.status != c.status || a.body != c.body || a.header.Get("Retry-After") != c.retry {
				t.Errorf("answer %+v, want %d %q, Retry-After %q", a, c.status, c.body, c.retry)
			}
			line := w.requestLog()
			if (kept != nil) != c.kept {
				t.Errorf("Failed got %v", kept)
			}
			if line["level"] != c.level || line["status"] != int64(c.status) || line["tenant"] != "acme" || line["type"] != event.TypeEmailSendRequested || line["id"] != work(t).ID() {
				t.Errorf("log %v", line)
			}
			if text := fmt.Sprint(line); strings.Contains(text, "ada@") {
				t.Errorf("the log holds an address: %s", text)
			}
		})
	}
}

// TestConnectErrorIsUnavailable takes pgx's own error, whose kind cannot be made by hand.
func TestConnectErrorIsUnavailable(t *testing.T) {
	t.Parallel()
	_, err := pgconn.Connect(t.Context(), "postgres://nobody@127.0.0.1:1/none?connect_timeout=1")
	var connect *pgconn.ConnectError
	if !errors.As(err, &connect) {
		t.Fatalf("error %v", err)
	}
	if status, _ := Status(fmt.Errorf("begin: %w", err)); status != http.StatusServiceUnavailable {
		t.Errorf("status %d", status)
	}
}

func TestMarksKeepNil(t *testing.T) {
	t.Parallel()
	for _, err := range []error{Permanent(nil), Throttled(nil, time.Second), Unavailable(nil)} {
		if err != nil {
			t.Errorf("a marked nil is %v", err)
		}
	}
}

func TestRequestsThatAreNoGoodEvents(t *testing.T) {
	t.Parallel()
	good := binaryHeaders(work(t))
	structuredType := []string{"Content-Type", "application/cloudevents+json"}
	big := strings.Repeat("x", event.MaxSize)
	for name, c := range map[string]struct {
		method, path, body string
		headers            []string
		status             int
		text               string
		kept               bool
	}{
		"no event":             {"POST", "/", `{"run":1}`, []string{"Content-Type", "application/json"}, 415, "no CloudEvent", false},
		"a GET":                {"GET", "/", "", nil, 404, "not found", false},
		"another path":         {"POST", "/other", `{"run":1}`, good, 404, "not found", false},
		"no dead letters here": {"POST", "/dead-letters", `{"run":1}`, good, 404, "no events", false},
		"a batch":              {"POST", "/", `[]`, []string{"Content-Type", "application/cloudevents-batch+json"}, 415, "one by one", false},
		"structured, broken":   {"POST", "/", `{"specversion":"1.0",`, structuredType, 400, "no valid CloudEvent", true},
		"structured, empty":    {"POST", "/", ``, structuredType, 400, "no valid CloudEvent", true},
		"structured, no id":    {"POST", "/", `{"specversion":"1.0","type":"t","source":"/s"}`, structuredType, 400, "no valid CloudEvent", true},
		"structured, a number": {"POST", "/", `7`, structuredType, 400, "no valid CloudEvent", true},
		"structured, large":    {"POST", "/", `{"data":"` + big + big + `"}`, structuredType, 400, "more than 65536 bytes", true},
		"binary, large":        {"POST", "/", big + "x", good, 400, "more than 65536 bytes", true},
		"binary, just large":   {"POST", "/", big, good, 400, "more than 65536 bytes", true},
		"binary, no type":      {"POST", "/", `{}`, []string{"Ce-Specversion", "1.0", "Ce-Id", "1", "Ce-Source", "/s"}, 400, "no valid CloudEvent", true},
		"binary, another spec": {"POST", "/", `{}`, []string{"Ce-Specversion", "7.0", "Ce-Id", "1", "Ce-Source", "/s", "Ce-Type", "t"}, 415, "no CloudEvent", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			kept := 0
			w := newWorld(t, nil, Handler{
				Event: func(context.Context, ce.Event) (*ce.Event, error) {
					t.Error("the handler saw it")
					return nil, nil
				},
				Failed: func(context.Context, ce.Event, error) error { kept++; return nil },
			})
			a := w.must(c.method, c.path, c.body, c.headers...)
			if a.status != c.status || !strings.Contains(a.body, c.text) || len(a.body) > 400 {
				t.Errorf("answer %+v, want %d %q", a, c.status, c.text)
			}
			if !strings.HasPrefix(a.header.Get("Content-Type"), "text/plain") {
				t.Errorf("content type %q", a.header.Get("Content-Type"))
			}
			if (kept == 1) != c.kept {
				t.Errorf("kept %d times", kept)
			}
		})
	}
}

// TestTooLargeKeepsItsName shows that what is known of an event that is too large is kept.
func TestTooLargeKeepsItsName(t *testing.T) {
	t.Parallel()
	var kept ce.Event
	w := newWorld(t, nil, Handler{
		Event:  func(context.Context, ce.Event) (*ce.Event, error) { return nil, nil },
		Failed: func(_ context.Context, e ce.Event, _ error) error { kept = e; return nil },
	})
	w.must(http.MethodPost, "/", strings.Repeat(" ", event.MaxSize+1), binaryHeaders(work(t))...)
	if kept.ID() != work(t).ID() || kept.Type() != event.TypeEmailSendRequested || kept.Extensions()["tenant"] != "acme" || len(kept.Data()) != 0 {
		t.Errorf("kept %s", kept)
	}
}

func TestBothModesReachTheHandler(t *testing.T) {
	t.Parallel()
	var got ce.Event
	w := newWorld(t, nil, Handler{Event: func(_ context.Context, e ce.Event) (*ce.Event, error) { got = e; return nil, nil }})
	e := eventtest.Sample(t, event.TypeEmailSent)
	text, err := json.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	for name, a := range map[string]func() answer{
		"binary": func() answer { return w.post("/", e) },
		"structured": func() answer {
			return w.must(http.MethodPost, "/", string(text), "Content-Type", "application/cloudevents+json")
		},
	} {
		got = ce.Event{}
		a := a()
		if a.status != 202 || a.body != "" {
			t.Errorf("%s: answer %+v", name, a)
		}
		eventtest.Validate(t, got)
		if got.ID() != e.ID() || !cmp.Equal(string(got.Data()), string(e.Data())) {
			t.Errorf("%s: got %s", name, got)
		}
	}
}

func TestReply(t *testing.T) {
	t.Parallel()
	reply := eventtest.Sample(t, event.TypeEmailBatchSent)
	w := newWorld(t, nil, Handler{Event: func(context.Context, ce.Event) (*ce.Event, error) { return &reply, nil }})
	a := w.post("/", work(t))
	if a.status != http.StatusOK {
		t.Fatalf("answer %+v", a)
	}
	got, err := cehttp.NewEventFromHTTPResponse(&http.Response{StatusCode: http.StatusOK, Header: a.header, Body: http.NoBody})
	if err != nil {
		t.Fatal(err)
	}
	if got.ID() != reply.ID() || got.Type() != reply.Type() || a.body != string(reply.Data()) {
		t.Errorf("reply %s %s", got, a.body)
	}
}

func TestInvalidReplyIsAnError(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil, Handler{Event: func(context.Context, ce.Event) (*ce.Event, error) { return new(cloudevents.NewEvent()), nil }})
	if a := w.post("/", work(t)); a.status != http.StatusInternalServerError {
		t.Errorf("answer %+v", a)
	}
}

func TestTenantOfTheProcess(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		tenant string
		status int
	}{"its own": {"acme", 202}, "another": {"brava", 400}, "none": {"", 400}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, map[string]string{"ONDA_TENANT": "acme"}, Handler{
				Event: func(context.Context, ce.Event) (*ce.Event, error) { return nil, nil },
				Failed: func(context.Context, ce.Event, error) error {
					t.Error("another tenant's event is not ours to keep")
					return nil
				},
			})
			e := work(t)
			e.SetSource("/tenants/" + c.tenant + "/functions/send")
			e.SetExtension(event.ExtTenant, c.tenant)
			if a := w.post("/", e); a.status != c.status {
				t.Errorf("answer %+v, want %d", a, c.status)
			}
		})
	}
}

func TestServe(t *testing.T) {
	t.Parallel()
	handler := func() Handler {
		return Handler{
			Event: func(context.Context, ce.Event) (*ce.Event, error) { return nil, nil },
			HTTP:  http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) }),
		}
	}
	for serve, want := range map[string][3]int{ // event, HTTP at another path, an event's headers at another path
		"":       {202, 418, 418},
		"both":   {202, 418, 418},
		"http":   {404, 418, 418},
		"events": {202, 404, 404},
	} {
		w := newWorld(t, map[string]string{"ONDA_SERVE": serve}, handler())
		got := [3]int{w.post("/", work(t)).status, w.must("POST", "/v1/emails", `{}`).status, w.post("/v1/emails", work(t)).status}
		if got != want {
			t.Errorf("ONDA_SERVE=%s answers %v, want %v", serve, got, want)
		}
	}
	// A function without a handler for events answers 404 to them, whatever is asked for.
	w := newWorld(t, nil, Handler{HTTP: handler().HTTP})
	if a := w.post("/", work(t)); a.status != http.StatusNotFound {
		t.Errorf("answer %+v", a)
	}
}

func TestDeadLetter(t *testing.T) {
	t.Parallel()
	var got ce.Event
	var fails error
	w := newWorld(t, nil, Handler{
		Event: func(context.Context, ce.Event) (*ce.Event, error) {
			t.Error("a dead letter was handled")
			return nil, nil
		},
		DeadLetter: func(_ context.Context, e ce.Event) error { got = e; return fails },
	})
	e := work(t)
	e.SetExtension("knativeerrorcode", "503")
	if a := w.post("/dead-letters", e); a.status != 202 || got.Extensions()["knativeerrorcode"] != "503" {
		t.Errorf("answer %+v to %s", a, got)
	}
	fails = &pgconn.PgError{Code: "57P03"}
	if a := w.post("/dead-letters", e); a.status != 503 {
		t.Errorf("answer %+v", a)
	}
}

func TestPanics(t *testing.T) {
	t.Parallel()
	boom := true
	w := newWorld(t, nil, Handler{
		Event: func(context.Context, ce.Event) (*ce.Event, error) {
			if boom {
				panic("boom")
			}
			return nil, nil
		},
	})
	if a := w.post("/", work(t)); a.status != 500 || a.body != "internal error; the log has more\n" {
		t.Errorf("answer %+v", a)
	}
	line := w.requestLog()
	if line["panic"] != "boom" || !strings.Contains(fmt.Sprint(line["stack"]), "TestPanics") {
		t.Errorf("log %v", line)
	}
	boom = false
	if a := w.post("/", work(t)); a.status != 202 {
		t.Errorf("after a panic: %+v", a)
	}
}

// TestWhatCouldNotBeKeptComesAgain holds that no event is answered as done with before it is kept.
func TestWhatCouldNotBeKeptComesAgain(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		failed func() error
		status int
		level  string
		log    string
	}{
		"Postgres is away": {func() error { return errors.New("no connection") }, 503, "warn", "keep an event that can never succeed (no such run): no connection"},
		"a defect":         {func() error { panic("boom") }, 500, "error", "panic"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			handler := Handler{
				Event:  func(context.Context, ce.Event) (*ce.Event, error) { return nil, Permanent(errors.New("no such run")) },
				Failed: func(context.Context, ce.Event, error) error { return c.failed() },
			}
			w := newWorld(t, nil, handler)
			if a := w.post("/", work(t)); a.status != c.status {
				t.Errorf("answer %+v", a)
			}
			if line := w.requestLog(); line["level"] != c.level || line["error"] != c.log {
				t.Errorf("log %v", line)
			}
			if a := newWorld(t, nil, handler).must(http.MethodPost, "/", `{`, "Content-Type", "application/cloudevents+json"); a.status != c.status {
				t.Errorf("one that cannot be read: answer %+v", a)
			}
		})
	}
}

// TestSourceAndTenantAgree holds that nobody rings for one tenant in the name of another.
func TestSourceAndTenantAgree(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		source, tenant string
		status         int
	}{
		"agree":                         {"/tenants/acme/functions/send", "acme", 202},
		"a program's own source":        {"/shop", "acme", 202},
		"of no tenant":                  {"/apis/v1/namespaces/onda-system/pingsources/tick", "", 202},
		"disagree":                      {"/tenants/brava/functions/send", "acme", 400},
		"a source that is none of ours": {"/tenants/", "acme", 400},
		"only in the source":            {"/tenants/acme/functions/send", "", 400},
		"no tenant's name":              {"/shop", "../acme", 400},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			kept := 0
			w := newWorld(t, nil, Handler{
				Event:  func(context.Context, ce.Event) (*ce.Event, error) { return nil, nil },
				Failed: func(context.Context, ce.Event, error) error { kept++; return nil },
			})
			e := work(t)
			e.SetSource(c.source)
			e.SetExtension(event.ExtTenant, nil)
			if c.tenant != "" {
				e.SetExtension(event.ExtTenant, c.tenant)
			}
			if a := w.post("/", e); a.status != c.status {
				t.Errorf("answer %+v, want %d", a, c.status)
			}
			if (kept == 1) != (c.status == 400) {
				t.Errorf("kept %d times", kept)
			}
		})
	}
}

// TestHealthyAfterCancelled is what the SDK's own receive handler fails: requests that were given up must not make later ones hang.
func TestHealthyAfterCancelled(t *testing.T) {
	t.Parallel()
	var waiting, served atomic.Int32
	w := newWorld(t, nil, Handler{Event: func(ctx context.Context, e ce.Event) (*ce.Event, error) {
		if e.Subject() == "slow" {
			waiting.Add(1)
			<-ctx.Done()
			return nil, ctx.Err()
		}
		served.Add(1)
		return nil, nil
	}})
	const n = 30
	slow := append(binaryHeaders(work(t)), "Ce-Subject", "slow")
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	for range n {
		all.Go(func() {
			if a, err := w.do(ctx, http.MethodPost, "/", `{"run":1}`, slow...); err == nil {
				t.Errorf("a cancelled request was answered: %+v", a)
			}
		})
	}
	w.eventually("all requests", func() bool { return waiting.Load() == n })
	cancel()
	all.Wait()
	gone, end := context.WithCancel(t.Context())
	end()
	for range n {
		_, _ = w.do(gone, http.MethodPost, "/", `{"run":1}`, slow...)
	}
	for range 3 {
		if a := w.post("/", work(t)); a.status != 202 {
			t.Errorf("answer %+v", a)
		}
	}
	if served.Load() != 3 {
		t.Errorf("%d served", served.Load())
	}
}
