package fn

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/cloudevents/sdk-go/v2/binding"
	ce "github.com/cloudevents/sdk-go/v2/event"
	cehttp "github.com/cloudevents/sdk-go/v2/protocol/http"
	"github.com/sethvargo/go-retry"
	"go.opentelemetry.io/otel/propagation"

	"github.com/onda-run/onda/internal/event"
)

// StatusError says that a post was answered with a status other than 2xx.
type StatusError struct {
	// Code is the HTTP status.
	Code int
}

func (e *StatusError) Error() string {
	return fmt.Sprintf("answered %d %s", e.Code, http.StatusText(e.Code))
}

// newClient keeps connections to the few hosts that a function posts to. A time-out of the whole is in Post.
func newClient() *http.Client {
	return &http.Client{
		Transport: &http.Transport{
			Proxy:                 http.ProxyFromEnvironment,
			DialContext:           (&net.Dialer{Timeout: 2 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
			TLSHandshakeTimeout:   5 * time.Second,
			MaxIdleConnsPerHost:   16,
			IdleConnTimeout:       30 * time.Second,
			ForceAttemptHTTP2:     true,
			ExpectContinueTimeout: time.Second,
		},
		// An event goes where it was sent, or nowhere.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// Post sends one CloudEvent in binary mode and waits for the answer, at most 30 s at a time, since the receiver may have to start first. It tries three
// times in all, within half a second between them, when Knative would (no answer, 404, 408, 409, 429, 5xx); longer patience is the outbox's. An answer that
// is not 2xx is a *StatusError. An event in the answer is not read.
func (rt *Runtime) Post(ctx context.Context, to string, e ce.Event) error {
	if err := e.Validate(); err != nil {
		return fmt.Errorf("post event: %w", err)
	}
	e = e.Clone()
	inject(ctx, &e)
	backoff := retry.WithMaxRetries(2, retry.WithJitter(20*time.Millisecond, retry.NewExponential(100*time.Millisecond)))
	err := retry.Do(ctx, backoff, func(ctx context.Context) error {
		err := rt.postOnce(ctx, to, e)
		var status *StatusError
		switch {
		case err == nil || ctx.Err() != nil:
			return err
		case errors.As(err, &status) && !worthRetrying(status.Code):
			return err
		}
		return retry.RetryableError(err)
	})
	if err != nil {
		return fmt.Errorf("post event %s to %s: %w", e.Type(), host(to), err)
	}
	return nil
}

// Publish posts one event to the broker that K_SINK names, in the namespace of the event's tenant.
func (rt *Runtime) Publish(ctx context.Context, namespace string, e ce.Event) error {
	if rt.Sink == "" {
		return errors.New("publish event: K_SINK is not set")
	}
	return rt.Post(ctx, SinkIn(rt.Sink, namespace), e)
}

// SinkIn is K_SINK with a namespace in it, where it is a pattern with {namespace}: a doorbell goes to the broker of its tenant's functions, whichever ring of the pool it
// is rung in.
func SinkIn(sink, namespace string) string { return strings.ReplaceAll(sink, "{namespace}", namespace) }

func (rt *Runtime) postOnce(ctx context.Context, to string, e ce.Event) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, to, http.NoBody)
	if err != nil {
		return err
	}
	if err := cehttp.WriteRequest(ctx, binding.ToMessage(&e), req); err != nil {
		return err
	}
	res, err := rt.client.Do(req)
	if err != nil {
		var u *url.Error
		if errors.As(err, &u) { // its text has the whole URL
			return u.Err
		}
		return err
	}
	_, drain := io.Copy(io.Discard, io.LimitReader(res.Body, event.MaxSize)) // so that the connection can be kept
	if err := errors.Join(drain, res.Body.Close()); err != nil && ctx.Err() != nil {
		return err
	}
	if res.StatusCode/100 != 2 {
		return &StatusError{Code: res.StatusCode}
	}
	return nil
}

// worthRetrying is the set of Knative's data plane.
func worthRetrying(status int) bool {
	switch status {
	case http.StatusNotFound, http.StatusRequestTimeout, http.StatusConflict, http.StatusTooManyRequests:
		return true
	}
	return status >= 500
}

func host(to string) string {
	if u, err := url.Parse(to); err == nil {
		return u.Host
	}
	return "a malformed address"
}

// carrier gives and takes trace context as extensions of an event (CloudEvents "Distributed Tracing" extension): brokers do not hand on its header.
type carrier struct{ e *ce.Event }

var _ propagation.TextMapCarrier = carrier{}

func (c carrier) Get(key string) string {
	s, _ := c.e.Extensions()[key].(string)
	return s
}

func (c carrier) Set(key, value string) { c.e.SetExtension(key, value) }

func (c carrier) Keys() []string {
	keys := make([]string, 0, len(c.e.Extensions()))
	for k := range c.e.Extensions() {
		keys = append(keys, k)
	}
	return keys
}

// inject sets the trace that ctx is in, if any.
func inject(ctx context.Context, e *ce.Event) { propagation.TraceContext{}.Inject(ctx, carrier{e}) }

// extract continues the trace that the event is in, if any.
func extract(ctx context.Context, e *ce.Event) context.Context {
	return propagation.TraceContext{}.Extract(ctx, carrier{e})
}
