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
	// Remedy is what mends it, where that is known.
	Remedy string
}

func (e *StatusError) Error() string {
	text := fmt.Sprintf("answered %d %s", e.Code, http.StatusText(e.Code))
	if e.Remedy != "" {
		text += ": " + e.Remedy
	}
	return text
}

// Publisher posts events, to brokers and straight to functions.
type Publisher struct {
	// Sink is the URL that Publish posts to; {namespace} in it stands for that of the tenant's functions.
	Sink string

	identity identity
	client   *http.Client
}

// NewPublisher gives one that publishes at a sink, and shows the broker there the token of a file, if there is such a file.
func NewPublisher(sink, token string) Publisher {
	return Publisher{Sink: sink, identity: identity(token), client: newClient()}
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
func (p Publisher) Post(ctx context.Context, to string, e ce.Event) error {
	if err := p.post(ctx, to, "", e); err != nil {
		return fmt.Errorf("post event %s to %s: %w", e.Type(), host(to), err)
	}
	return nil
}

func (p Publisher) post(ctx context.Context, to, token string, e ce.Event) error {
	if err := e.Validate(); err != nil {
		return err
	}
	e = e.Clone()
	inject(ctx, &e)
	backoff := retry.WithMaxRetries(2, retry.WithJitter(20*time.Millisecond, retry.NewExponential(100*time.Millisecond)))
	return retry.Do(ctx, backoff, func(ctx context.Context) error {
		err := p.postOnce(ctx, to, token, e)
		var status *StatusError
		switch {
		case err == nil || ctx.Err() != nil:
			return err
		case errors.As(err, &status) && !worthRetrying(status.Code):
			return err
		}
		return retry.RetryableError(err)
	})
}

// Publish posts one event to the broker that K_SINK names, in the namespace of the event's tenant, and shows it the token that is for it, if there is one. A token
// that is for the broker of another namespace is an error: the event waits for the functions there.
func (p Publisher) Publish(ctx context.Context, namespace string, e ce.Event) error {
	if p.Sink == "" {
		return errors.New("publish event: K_SINK is not set")
	}
	token, err := p.identity.token(namespace)
	if err != nil {
		return fmt.Errorf("publish event %s: %w", e.Type(), err)
	}
	to := sinkIn(p.Sink, namespace)
	if err := p.post(ctx, to, token, e); err != nil {
		var status *StatusError
		if errors.As(err, &status) {
			status.Remedy = p.identity.remedy(status.Code, token != "")
		}
		return fmt.Errorf("publish event %s to %s: %w", e.Type(), host(to), err)
	}
	return nil
}

// sinkIn is K_SINK with a namespace in it, where it is a pattern with {namespace}: a doorbell goes to the broker of its tenant's functions, whichever ring of the pool it
// is rung in.
func sinkIn(sink, namespace string) string { return strings.ReplaceAll(sink, "{namespace}", namespace) }

func (p Publisher) postOnce(ctx context.Context, to, token string, e ce.Event) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, to, http.NoBody)
	if err != nil {
		return err
	}
	if err := cehttp.WriteRequest(ctx, binding.ToMessage(&e), req); err != nil {
		return err
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	res, err := p.client.Do(req)
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
