package fn

import (
	"bytes"
	"context"
	"net/http"
	"net/http/httptest"
	"testing"

	ce "github.com/cloudevents/sdk-go/v2/event"
	"github.com/sethvargo/go-envconfig"
	"go.uber.org/zap"
)

// FuzzEvent posts anything: it is an event that the handler sees, or the sender's fault. It is never a defect of ours, which would be sent again.
func FuzzEvent(f *testing.F) {
	f.Add("application/cloudevents+json", "", "", []byte(`{"specversion":"1.0","id":"1","type":"t","source":"/s","data":{"run":1}}`))
	f.Add("application/cloudevents+json; charset=utf-8", "", "", []byte(`{"specversion":"1.0","id":"1","type":"t","source":"/s","data_base64":"!"}`))
	f.Add("application/cloudevents+json", "", "", []byte(`{"specversion":"1.0","id":"1","type":"t","source":"/s","time":"now","x":{}}`))
	f.Add("application/json", "1.0", "onda.email.send.requested.v1", []byte(`{"run":1}`))
	f.Add("application/json", "0.3", "%zz", []byte(`{`))
	f.Fuzz(func(t *testing.T, contentType, spec, eventType string, body []byte) {
		seen := false
		in, err := Start(t.Context(), "send", func(context.Context, *Runtime) (Handler, error) {
			return Handler{Event: func(_ context.Context, e ce.Event) (*ce.Event, error) {
				seen = true
				return nil, e.Validate()
			}}, nil
		}, envconfig.MapLookuper(nil), zap.NewNop())
		if err != nil {
			t.Fatal(err)
		}
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/", bytes.NewReader(body))
		r.Header.Set("Content-Type", contentType)
		if spec != "" {
			for name, value := range map[string]string{"Ce-Specversion": spec, "Ce-Type": eventType, "Ce-Id": "1", "Ce-Source": "/s"} {
				r.Header.Set(name, value)
			}
		}
		w := httptest.NewRecorder()
		in.ServeHTTP(w, r)
		if ok := w.Code == http.StatusAccepted; ok != seen || !ok && w.Code != http.StatusBadRequest && w.Code != http.StatusUnsupportedMediaType {
			t.Errorf("status %d, seen %t: %s", w.Code, seen, w.Body)
		}
		if err := in.Stop(t.Context()); err != nil {
			t.Error(err)
		}
	})
}
