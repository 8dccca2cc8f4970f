package fn

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	ce "github.com/cloudevents/sdk-go/v2/event"
)

// TestAfterRunsAfterTheAnswer holds After until the answer has been read: were it run before, the request would never end.
func TestAfterRunsAfterTheAnswer(t *testing.T) {
	t.Parallel()
	answered, ran := make(chan struct{}), make(chan struct{}, 10)
	w := newWorld(t, nil, Handler{
		Event: func(context.Context, ce.Event) (*ce.Event, error) { return nil, nil },
		After: func(context.Context) { <-answered; ran <- struct{}{} },
	})
	if a := w.post("/", work(t)); a.status != 202 {
		t.Errorf("answer %+v", a)
	}
	close(answered)
	<-ran
}

// TestAfterNeverTwiceAtOnce also shows that a request during a run is served by another run.
func TestAfterNeverTwiceAtOnce(t *testing.T) {
	t.Parallel()
	var inside, runs, events atomic.Int32
	var seen atomic.Int32 // events that had been handled when the last run began
	started, goOn := make(chan struct{}, 100), make(chan struct{})
	w := newWorld(t, nil, Handler{
		Event: func(context.Context, ce.Event) (*ce.Event, error) { events.Add(1); return nil, nil },
		After: func(context.Context) {
			if inside.Add(1) != 1 {
				t.Error("After runs twice at once")
			}
			seen.Store(events.Load())
			runs.Add(1)
			started <- struct{}{}
			<-goOn
			inside.Add(-1)
		},
	})
	w.post("/", work(t))
	<-started // the first run hangs on while more comes
	for range 5 {
		w.post("/", work(t))
	}
	if n := runs.Load(); n != 1 {
		t.Errorf("%d runs while the first one goes on", n)
	}
	w.eventually("the requests to be over", func() bool { return w.logs.FilterMessage("request").Len() == 6 })
	close(goOn)
	w.eventually("a run that saw all", func() bool { return seen.Load() == 6 })
}

func TestStop(t *testing.T) {
	t.Parallel()
	inHandler, finish := make(chan struct{}), make(chan struct{})
	var afters, closed atomic.Int32
	var stopping <-chan struct{}
	w := newWorld(t, nil, Handler{
		Event: func(context.Context, ce.Event) (*ce.Event, error) { close(inHandler); <-finish; return nil, nil },
		HTTP:  http.NotFoundHandler(),
		After: func(context.Context) {
			if closed.Load() != 0 {
				t.Error("After runs after Close")
			}
			afters.Add(1)
		},
		Close: func(context.Context) error { closed.Add(1); return errors.New("late") },
	})
	stopping = w.in.Runtime().Draining()
	answers := make(chan answer, 1)
	go func() { answers <- w.post("/", work(t)) }()
	<-inHandler
	stopped := make(chan error, 1)
	go func() { stopped <- w.in.Stop(t.Context()) }()
	<-stopping // handlers are told
	w.eventually("requests to be refused", func() bool {
		return w.must("GET", "/", "").status == http.StatusServiceUnavailable
	})
	select {
	case err := <-stopped:
		t.Fatalf("Stop did not wait for the request: %v", err)
	default:
	}
	before := afters.Load()
	close(finish)
	if a := <-answers; a.status != 202 {
		t.Errorf("the request in flight was answered %+v", a)
	}
	if err := <-stopped; err == nil || err.Error() != "close: late" {
		t.Errorf("Stop says %v", err)
	}
	if afters.Load() <= before || closed.Load() != 1 {
		t.Errorf("%d runs of After, %d before; %d of Close", afters.Load(), before, closed.Load())
	}
	w.in.stopped = nil // what the clean-up looks at
}

func TestStopGivesUp(t *testing.T) {
	t.Parallel()
	inHandler, finish := make(chan struct{}), make(chan struct{})
	var afters atomic.Int32
	w := newWorld(t, nil, Handler{
		HTTP:  http.HandlerFunc(func(http.ResponseWriter, *http.Request) { close(inHandler); <-finish }),
		After: func(context.Context) { afters.Add(1) },
	})
	done := make(chan struct{})
	go func() { defer close(done); w.must("GET", "/", "") }()
	<-inHandler
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := w.in.Stop(ctx)
	if err == nil || !strings.Contains(err.Error(), "up to 1 requests were not finished") || afters.Load() != 1 {
		t.Errorf("Stop says %v; %d runs of After", err, afters.Load())
	}
	close(finish)
	<-done
	w.in.stopped = nil
}

func TestAfterPanics(t *testing.T) {
	t.Parallel()
	w := newWorld(t, nil, Handler{
		Event: func(context.Context, ce.Event) (*ce.Event, error) { return nil, nil },
		After: func(context.Context) { panic("boom") },
	})
	w.post("/", work(t))
	w.eventually("the panic in the log", func() bool { return w.logs.FilterMessage("after a request").Len() > 0 })
	if a := w.post("/", work(t)); a.status != 202 {
		t.Errorf("answer %+v", a)
	}
}
