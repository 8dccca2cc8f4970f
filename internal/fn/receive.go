package fn

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime/debug"
	"strconv"
	"strings"

	"github.com/cloudevents/sdk-go/v2/binding"
	ce "github.com/cloudevents/sdk-go/v2/event"
	cehttp "github.com/cloudevents/sdk-go/v2/protocol/http"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
	"go.uber.org/zap"

	"github.com/onda-run/onda/internal/event"
)

const pathDeadLetters = "/dead-letters"

// typeTick is the type of the events of Knative's PingSource.
const typeTick = "dev.knative.sources.ping"

// eventKind tells how a request carries an event (CloudEvents 1.0.2, "HTTP Protocol Binding", section 3).
type eventKind int

const (
	notEvent eventKind = iota
	binary
	structured
	batch
)

func kindOf(r *http.Request) eventKind {
	if r.Method != http.MethodPost {
		return notEvent
	}
	switch cehttp.NewMessage(r.Header, http.NoBody).ReadEncoding() {
	case binding.EncodingBinary:
		return binary
	case binding.EncodingStructured:
		return structured
	case binding.EncodingBatch:
		return batch
	default:
		return notEvent
	}
}

// isEventPath tells whether events are taken at a path. Elsewhere the headers of an event mean nothing, so that a public path, such as /v1/emails of a
// service that also has events of its own, lets none in.
func isEventPath(path string) bool {
	return path == "/" || path == "" || path == pathDeadLetters
}

// serveEvent answers one event. We do not use the SDK's receive handler: after cancelled requests it lets healthy ones hang.
func (in *Instance) serveEvent(w *recorder, r *http.Request, l *line, kind eventKind) (what string, fields []zap.Field) {
	deadLetter := r.URL.Path == pathDeadLetters
	if !in.rt.ServesEvents || deadLetter && in.handler.DeadLetter == nil || !deadLetter && in.handler.Event == nil {
		http.Error(w, "no events are taken here", http.StatusNotFound)
		return "event", nil
	}
	if kind == batch {
		http.Error(w, "events are taken one by one, in binary or structured mode", http.StatusUnsupportedMediaType)
		return "event", nil
	}
	e, err := readEvent(r, kind)
	switch {
	case err == nil:
		err = in.checkTenant(r.Context(), e, l)
	case IsPermanent(err):
		err = in.keep(r.Context(), e, err)
	}
	what = typeLabel(e.Type())
	ctx, span := in.rt.Tracer.Start(extract(r.Context(), &e), "process "+what, trace.WithSpanKind(trace.SpanKindConsumer))
	defer span.End()
	var reply *ce.Event
	if err == nil {
		reply, err = in.handle(ctx, e, deadLetter)
	}
	in.answer(ctx, w, reply, err)
	span.SetAttributes(attribute.String("cloudevents.event_id", e.ID()), attribute.Int("http.response.status_code", w.code()))
	if err != nil {
		span.SetStatus(codes.Error, http.StatusText(w.code()))
	}
	fields = []zap.Field{zap.String("type", e.Type()), zap.String("id", e.ID())}
	if deadLetter {
		fields = append(fields, zap.Bool("deadLetter", true))
	}
	return what, fields
}

// typeLabel is an event's type as metrics and spans name it: a sender must not be able to make as many as it likes.
func typeLabel(of string) string {
	if _, ok := event.Lookup(of); ok || of == typeTick {
		return of
	}
	return otherLabel
}

// readEvent reads the event that a request carries. What cannot be read is a permanent error, except for a body that did not arrive whole.
func readEvent(r *http.Request, kind eventKind) (ce.Event, error) {
	most := event.MaxSize
	if kind == structured {
		most *= 2 // data may be in base64, and the event is measured again without the form it came in
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, int64(most)+1))
	if err != nil {
		return ce.Event{}, Unavailable(fmt.Errorf("read the event's body: %w", err))
	}
	tooLarge := len(body) > most
	if tooLarge {
		body = nil
	}
	if tooLarge && kind == structured {
		return ce.Event{}, Permanent(fmt.Errorf("the event has more than %d bytes", event.MaxSize))
	}
	m := cehttp.NewMessage(r.Header, io.NopCloser(bytes.NewReader(body)))
	e, err := binding.ToEvent(r.Context(), m)
	if err != nil {
		return ce.Event{}, Permanent(fmt.Errorf("this is no valid CloudEvent: %w", err))
	}
	if tooLarge || event.Size(*e) > event.MaxSize {
		return *e, Permanent(fmt.Errorf("the event has more than %d bytes", event.MaxSize))
	}
	if err := e.Validate(); err != nil {
		return *e, Permanent(fmt.Errorf("this is no valid CloudEvent: %w", err))
	}
	return *e, nil
}

// checkTenant refuses events whose source and extension disagree about the tenant, and those of other tenants where the process serves only one, which
// are not its to keep.
func (in *Instance) checkTenant(ctx context.Context, e ce.Event, l *line) error {
	tenant, err := event.Tenant(e)
	if err == nil {
		l.setTenant(tenant)
	}
	switch {
	case err == nil && (in.rt.Tenant == "" || tenant == in.rt.Tenant):
		return nil
	case in.rt.Tenant == "" && e.Extensions()[event.ExtTenant] == nil && !strings.HasPrefix(e.Source(), "/tenants/"): // such as a tick
		return nil
	case in.rt.Tenant == "":
		return in.keep(ctx, e, Permanent(err))
	case err == nil:
		err = errors.New("the event is of a tenant that is not served here")
	}
	return Permanent(err)
}

// handle runs the function's handler and keeps what failed for good.
func (in *Instance) handle(ctx context.Context, e ce.Event, deadLetter bool) (reply *ce.Event, err error) {
	defer func() {
		if v := recover(); v != nil {
			reply, err = nil, &panicked{value: v, stack: debug.Stack()}
		}
	}()
	if deadLetter {
		return nil, in.handler.DeadLetter(ctx, e)
	}
	reply, err = in.handler.Event(ctx, e)
	if err != nil && IsPermanent(err) {
		err = in.keep(ctx, e, err)
	}
	return reply, err
}

// keep gives a permanent failure to the function to store, and gives it back; or one that passes, where it could not be kept: the event has to come again.
func (in *Instance) keep(ctx context.Context, e ce.Event, failure error) (kept error) {
	if in.handler.Failed == nil {
		return failure
	}
	defer func() {
		if v := recover(); v != nil {
			kept = &panicked{value: v, stack: debug.Stack()}
		}
	}()
	if err := in.handler.Failed(ctx, e, failure); err != nil {
		return Unavailable(fmt.Errorf("keep an event that can never succeed (%w): %w", failure, err))
	}
	return failure
}

// answer writes the status that the error maps to. A success has an empty body or one event: a broker takes anything else for a failure.
func (in *Instance) answer(ctx context.Context, w *recorder, reply *ce.Event, err error) {
	if err == nil && reply != nil {
		e := reply.Clone()
		inject(ctx, &e)
		if err = e.Validate(); err == nil {
			if err := cehttp.WriteResponseWriter(ctx, binding.ToMessage(&e), http.StatusOK, w); err != nil {
				LogError(ctx, fmt.Errorf("write the answer: %w", err))
			}
			return
		}
		err = fmt.Errorf("the answer is no valid event: %w", err)
	}
	status, after := Status(err)
	if err == nil {
		w.Header().Set("Content-Length", "0")
		w.WriteHeader(status)
		// The answer goes out before After runs. A connection that broke is the sender's to notice.
		_ = http.NewResponseController(w).Flush()
		return
	}
	LogError(ctx, err)
	if status == http.StatusTooManyRequests { // of what is away, a broker's own delays grow
		setRetryAfter(w.Header(), after)
	}
	text := publicText(status, err) + "\n"
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Content-Length", strconv.Itoa(len(text)))
	w.WriteHeader(status)
	_, _ = io.WriteString(w, text)
	_ = http.NewResponseController(w).Flush()
}
