package localbroker

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"

	cloudevents "github.com/cloudevents/sdk-go/v2"
	"github.com/cloudevents/sdk-go/v2/binding"
	cehttp "github.com/cloudevents/sdk-go/v2/protocol/http"
)

// maxBody is how much of an event or an answer is read. Onda's own limit for events is far below.
const maxBody = 1 << 20

// answer is what an attempt came to.
type answer struct {
	status int // 0: none came
	body   []byte
	reply  *cloudevents.Event
	err    error
}

// delivered tells whether the subscriber is done with the event.
func (a answer) delivered() bool { return a.err == nil && a.status/100 == 2 }

func (a answer) failure() error {
	if a.err != nil {
		return a.err
	}
	return fmt.Errorf("answered %d %s", a.status, http.StatusText(a.status))
}

// send posts e once, in the way of the delivery, and judges the answer as Knative's dispatcher and broker filter do together: a 2xx whose body is
// neither empty nor an event is a failure, which they call 502.
func send(ctx context.Context, client *http.Client, to *url.URL, e cloudevents.Event, header http.Header, how delivery) answer {
	if how.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, how.timeout)
		defer cancel()
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, to.String(), http.NoBody)
	if err != nil {
		return answer{err: err}
	}
	mode := binding.WithForceBinary(ctx)
	if how.structured {
		mode = binding.WithForceStructured(ctx)
	}
	if err := cehttp.WriteRequest(mode, (*binding.EventMessage)(&e), req); err != nil {
		return answer{err: err}
	}
	for name, values := range header {
		req.Header[name] = values
	}
	res, err := client.Do(req)
	if err != nil {
		return answer{err: err}
	}
	defer func() { _ = res.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(res.Body, maxBody+1))
	switch {
	case err != nil:
		return answer{err: fmt.Errorf("read the answer: %w", err)}
	case len(body) > maxBody:
		return answer{status: http.StatusBadGateway, err: errors.New("the answer has more than 1 MiB")}
	case res.StatusCode/100 != 2:
		return answer{status: res.StatusCode, body: body}
	}
	message := cehttp.NewMessage(res.Header, io.NopCloser(bytes.NewReader(body)))
	if message.ReadEncoding() == binding.EncodingUnknown {
		if len(body) > 0 {
			return answer{status: http.StatusBadGateway, err: fmt.Errorf("answered %d with a body that is no CloudEvent; it must be empty or one CloudEvent", res.StatusCode)}
		}
		return answer{status: res.StatusCode}
	}
	reply, err := binding.ToEvent(ctx, message)
	if err != nil {
		return answer{status: http.StatusBadGateway, err: fmt.Errorf("answered %d with a broken CloudEvent: %w", res.StatusCode, err)}
	}
	return answer{status: res.StatusCode, reply: reply}
}

// maxErrorData is the length that knativeerrordata is cut to, after encoding.
const maxErrorData = 1024

// deadLetter is the event that goes to a dead letter sink: e with what is known about the failure at to. Without an answer, the code is 500 and the data
// says why, as the in-memory channel has it.
func deadLetter(e cloudevents.Event, to *url.URL, a answer) cloudevents.Event {
	e = e.Clone()
	code, data := a.status, a.body
	if code == 0 {
		code = http.StatusInternalServerError
		data = fmt.Appendf(nil, "dispatch error: %v", a.err)
	}
	encoded := base64.StdEncoding.EncodeToString(data)
	e.SetExtension("knativeerrordest", to.String())
	e.SetExtension("knativeerrorcode", code)
	if encoded != "" {
		e.SetExtension("knativeerrordata", encoded[:min(len(encoded), maxErrorData)])
	}
	return e
}
