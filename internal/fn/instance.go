package fn

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"runtime/debug"
	"sync"
	"time"

	"github.com/sethvargo/go-envconfig"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/trace"
	"go.uber.org/zap"
)

// Instance is a function that is built and answers requests. It is an http.Handler: what a pod serves on its port, probes included.
type Instance struct {
	rt       *Runtime
	cfg      Config
	handler  Handler
	tel      *telemetry
	duration metric.Float64Histogram

	mu       sync.Mutex
	requests int           // in flight
	idle     chan struct{} // closed when none is, made by Stop
	stopping bool

	after afterRunner

	stop    sync.Once
	stopped error
}

// start reads the configuration and builds the function.
func start(ctx context.Context, name string, build Build, env envconfig.Lookuper, log *zap.Logger, tel *telemetry) (*Instance, error) {
	rt, cfg, err := newRuntime(ctx, name, env, log, tel)
	if err != nil {
		return nil, err
	}
	duration, err := rt.Meter.Float64Histogram("onda.request.duration", metric.WithUnit("s"),
		metric.WithDescription("How long a request or an event took, by function, what it was and the status of its answer."))
	if err != nil {
		return nil, fmt.Errorf("make instruments: %w", err)
	}
	h, err := build(ctx, rt)
	if err != nil {
		rt.client.CloseIdleConnections()
		return nil, err
	}
	return &Instance{rt: rt, cfg: cfg, handler: h, tel: tel, duration: duration, after: afterRunner{run: h.After, log: log}}, nil
}

// Runtime is the runtime that the function was built with.
func (in *Instance) Runtime() *Runtime { return in.rt }

// ServeHTTP answers probes, CloudEvents and HTTP.
func (in *Instance) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/health/liveness":
		in.probe(w, true)
		return
	case "/health/readiness": // says nothing about Postgres: a blip there must not take the pods away
		in.probe(w, !in.isDraining())
		return
	}
	if !in.begin() {
		http.Error(w, "the function is ending; try again", http.StatusServiceUnavailable)
		return
	}
	defer in.end()
	rec := &recorder{ResponseWriter: w}
	in.serve(rec, r)
	in.after.ask()
	if rec.broken {
		panic(http.ErrAbortHandler) // half an answer is out: end the connection, so that nobody takes it for a whole one
	}
}

func (in *Instance) probe(w http.ResponseWriter, ok bool) {
	w.Header().Set("Cache-Control", "no-store")
	if !ok {
		http.Error(w, "draining", http.StatusServiceUnavailable)
		return
	}
	w.WriteHeader(http.StatusOK)
}

// serve answers one request, and logs and measures it.
func (in *Instance) serve(rec *recorder, r *http.Request) {
	l := &line{start: time.Now()}
	r = r.WithContext(context.WithValue(r.Context(), lineKey{}, l))
	var what string
	var fields []zap.Field
	if kind := kindOf(r); kind == notEvent || !isEventPath(r.URL.Path) {
		what, fields = in.serveHTTP(rec, r)
	} else {
		l.event = true
		what, fields = in.serveEvent(rec, r, l, kind)
	}
	l.write(in.rt.Log, rec.code(), fields...)
	in.duration.Record(context.WithoutCancel(r.Context()), time.Since(l.start).Seconds(), metric.WithAttributes(
		attribute.String("onda.function", in.rt.Name), attribute.String("onda.request", what), attribute.Int("http.response.status_code", rec.code())))
}

// serveHTTP hands a request that is no event to the function's own handler. The log gets the route's pattern, never the path, which may hold a token.
func (in *Instance) serveHTTP(w *recorder, r *http.Request) (what string, fields []zap.Field) {
	method := methodLabel(r)
	switch {
	case in.handler.HTTP != nil && in.rt.ServesHTTP:
		ctx, span := in.rt.Tracer.Start(r.Context(), method, trace.WithSpanKind(trace.SpanKindServer))
		r = r.WithContext(ctx)
		defer span.End()
		in.guard(w, r, func() { in.handler.HTTP.ServeHTTP(w, r) })
		if r.Pattern != "" {
			span.SetName(r.Pattern)
		}
		span.SetAttributes(attribute.String("http.request.method", method), attribute.Int("http.response.status_code", w.code()), attribute.String("http.route", route(r)))
	case in.rt.ServesEvents && r.Method == http.MethodPost && isEventPath(r.URL.Path):
		http.Error(w, "this is no CloudEvent in binary or structured mode", http.StatusUnsupportedMediaType)
	default:
		http.Error(w, "not found", http.StatusNotFound)
	}
	return method + " " + route(r), []zap.Field{zap.String("method", method), zap.String("route", route(r))}
}

// otherLabel is what OpenTelemetry's semantic conventions call the values of an attribute that are not of its closed list.
const otherLabel = "_OTHER"

// methodLabel is a request's method as metrics, spans and logs name it: a caller may send any word for one.
func methodLabel(r *http.Request) string {
	switch r.Method {
	case http.MethodConnect, http.MethodDelete, http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodPatch, http.MethodPost, http.MethodPut, http.MethodTrace:
		return r.Method
	}
	return otherLabel
}

// route is the pattern that matched, without its method.
func route(r *http.Request) string {
	for i, c := range r.Pattern {
		if c == ' ' {
			return r.Pattern[i+1:]
		}
	}
	return r.Pattern
}

// guard runs a handler and turns its panic into a 500 that is logged with its stack.
func (in *Instance) guard(w *recorder, r *http.Request, handle func()) {
	defer func() {
		v := recover()
		if v == nil {
			return
		}
		LogError(r.Context(), &panicked{value: v, stack: debug.Stack()})
		err, _ := v.(error)
		if w.status != 0 || errors.Is(err, http.ErrAbortHandler) {
			w.broken = true
			return
		}
		http.Error(w, publicText(http.StatusInternalServerError, nil), http.StatusInternalServerError)
	}()
	handle()
}

func (in *Instance) isDraining() bool {
	select {
	case <-in.rt.draining:
		return true
	default:
		return false
	}
}

// begin counts a request in; false when the instance takes no more.
func (in *Instance) begin() bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.stopping {
		return false
	}
	in.requests++
	return true
}

func (in *Instance) end() {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.requests--
	if in.requests == 0 && in.idle != nil {
		close(in.idle)
		in.idle = nil
	}
}

// drain tells handlers that work in pieces to end soon, and probes that the instance is no longer ready. Requests are still taken.
func (in *Instance) drain() {
	in.mu.Lock()
	defer in.mu.Unlock()
	if !in.isDraining() {
		close(in.rt.draining)
	}
}

// Stop drains the instance: it takes no more requests, waits for those in flight as long as ctx allows, runs After once more, and closes. Later calls
// return what the first did.
func (in *Instance) Stop(ctx context.Context) error {
	in.stop.Do(func() { in.stopped = in.doStop(ctx) })
	return in.stopped
}

func (in *Instance) doStop(ctx context.Context) error {
	in.drain()
	in.mu.Lock()
	in.stopping = true
	var idle chan struct{}
	if in.requests > 0 {
		idle = make(chan struct{})
		in.idle = idle
	}
	n := in.requests
	in.mu.Unlock()
	var errs []error
	if idle != nil {
		select {
		case <-idle:
		case <-ctx.Done():
			errs = append(errs, fmt.Errorf("drain: up to %d requests were not finished: %w", n, ctx.Err()))
		}
	}
	// What follows is short and worth doing even when the requests took all the time there was.
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	errs = append(errs, in.after.finish(last))
	if in.handler.Close != nil {
		if err := in.handler.Close(last); err != nil {
			errs = append(errs, fmt.Errorf("close: %w", err))
		}
	}
	in.rt.client.CloseIdleConnections()
	if err := in.tel.Close(last); err != nil {
		errs = append(errs, fmt.Errorf("send the last telemetry: %w", err))
	}
	return errors.Join(errs...)
}

// recorder notes the status of an answer.
type recorder struct {
	http.ResponseWriter
	status int
	broken bool // the handler panicked in the middle of its answer
}

// WriteHeader implements http.ResponseWriter.
func (w *recorder) WriteHeader(status int) {
	if w.status == 0 && status >= 200 {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

// Write implements http.ResponseWriter.
func (w *recorder) Write(b []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	return w.ResponseWriter.Write(b)
}

// Unwrap is for http.ResponseController.
func (w *recorder) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *recorder) code() int {
	if w.status == 0 {
		return http.StatusOK
	}
	return w.status
}
