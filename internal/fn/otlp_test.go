package fn

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	ce "github.com/cloudevents/sdk-go/v2/event"
	"github.com/google/go-cmp/cmp"
	"github.com/sethvargo/go-envconfig"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/trace"
	metricspb "go.opentelemetry.io/proto/otlp/metrics/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"go.uber.org/zap"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/onda-run/onda/internal/event"
)

// collector takes what an OTLP receiver would, by the messages of the protocol's own definition: a field of another name or type is an error.
type collector struct {
	*httptest.Server
	mu      sync.Mutex
	status  []int
	posts   int
	headers http.Header
	traces  []string // as they came
	spans   []*tracepb.Span
	metrics []*metricspb.Metric
}

func newCollector(t *testing.T, status ...int) *collector {
	t.Helper()
	c := &collector{status: status}
	c.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.posts++
		c.headers = r.Header
		if len(c.status) > 0 {
			w.WriteHeader(c.status[0])
			c.status = c.status[1:]
			return
		}
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		switch r.URL.Path {
		case "/v1/traces":
			var all tracepb.TracesData
			if err := protojson.Unmarshal(body, &all); err != nil {
				t.Errorf("%v in %s", err, body)
			}
			c.traces = append(c.traces, string(body))
			for _, rs := range all.ResourceSpans {
				for _, ss := range rs.ScopeSpans {
					c.spans = append(c.spans, ss.Spans...)
				}
			}
		case "/v1/metrics":
			var all metricspb.MetricsData
			if err := protojson.Unmarshal(body, &all); err != nil {
				t.Errorf("%v in %s", err, body)
			}
			for _, rm := range all.ResourceMetrics {
				for _, sm := range rm.ScopeMetrics {
					c.metrics = append(c.metrics, sm.Metrics...)
				}
			}
		default:
			t.Errorf("a post to %s", r.URL.Path)
		}
	}))
	t.Cleanup(c.Close)
	return c
}

// withTelemetry makes telemetry as Main does.
func withTelemetry(t *testing.T, cfg Config) *telemetry {
	t.Helper()
	tel, err := newTelemetry(t.Context(), "send", cfg)
	if err != nil {
		t.Fatal(err)
	}
	return tel
}

func TestTracesInOTLP(t *testing.T) {
	t.Parallel()
	c := newCollector(t)
	tel := withTelemetry(t, Config{OTLPEndpoint: c.URL + "/", OTLPTimeout: 5000, OTLPHeaders: "api-key=a%20b,x=y"})
	ctx, parent := tel.tracers.Tracer("ours").Start(t.Context(), "parent", trace.WithSpanKind(trace.SpanKindConsumer))
	_, child := tel.tracers.Tracer("ours").Start(ctx, "child", trace.WithLinks(trace.Link{SpanContext: parent.SpanContext()}))
	child.SetAttributes(attribute.Bool("b", true), attribute.Int("i", math.MaxInt64), attribute.Float64("f", math.Inf(1)), attribute.String("s", "é\""),
		attribute.StringSlice("ss", []string{"x", "y"}), attribute.Int64Slice("is", []int64{1}))
	child.AddEvent("hello", trace.WithAttributes(attribute.Float64("x", 1.5)))
	child.SetStatus(codes.Error, "no")
	child.End()
	parent.End()
	if err := tel.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.spans) != 2 {
		t.Fatalf("%d spans", len(c.spans))
	}
	got, root := c.spans[0], c.spans[1]
	if got.Name != "child" || got.Kind != tracepb.Span_SPAN_KIND_INTERNAL || root.Kind != tracepb.Span_SPAN_KIND_CONSUMER {
		t.Errorf("%v, %v", got, root)
	}
	if got.Status.Code != tracepb.Status_STATUS_CODE_ERROR || got.Status.Message != "no" || root.Status.GetCode() != tracepb.Status_STATUS_CODE_UNSET {
		t.Errorf("status %v, %v", got.Status, root.Status)
	}
	if got.EndTimeUnixNano < got.StartTimeUnixNano || time.Since(time.Unix(0, int64(got.StartTimeUnixNano))) > time.Hour {
		t.Errorf("times %d, %d", got.StartTimeUnixNano, got.EndTimeUnixNano)
	}
	if len(got.Events) != 1 || got.Events[0].Name != "hello" || len(got.Links) != 1 {
		t.Errorf("events %v, links %v", got.Events, got.Links)
	}
	values := map[string]string{}
	for _, a := range got.Attributes {
		values[a.Key] = strings.ReplaceAll(a.Value.String(), " ", "")
	}
	for key, want := range map[string]string{
		"b": "bool_value:true", "i": "int_value:9223372036854775807", "f": "double_value:inf", "s": `string_value:"é\""`,
		"ss": `array_value:{values:{string_value:"x"}values:{string_value:"y"}}`, "is": `array_value:{values:{int_value:1}}`,
	} {
		if values[key] != want {
			t.Errorf("attribute %s is %s, want %s", key, values[key], want)
		}
	}
	// Ids are in hexadecimal, which protobuf's own JSON does not know of.
	var raw struct {
		ResourceSpans []struct {
			Resource   struct{ Attributes []struct{ Key string } }
			ScopeSpans []struct {
				Spans []struct{ TraceID, SpanID, ParentSpanID string }
			}
		}
	}
	if err := json.Unmarshal([]byte(c.traces[0]), &raw); err != nil {
		t.Fatal(err)
	}
	if s := raw.ResourceSpans[0].ScopeSpans[0].Spans[0]; s.TraceID != parent.SpanContext().TraceID().String() || s.ParentSpanID != parent.SpanContext().SpanID().String() ||
		s.SpanID != child.SpanContext().SpanID().String() {
		t.Errorf("ids %+v", s)
	}
	if len(raw.ResourceSpans[0].Resource.Attributes) < 2 {
		t.Errorf("resource %+v", raw.ResourceSpans[0].Resource)
	}
	if c.headers.Get("Api-Key") != "a b" || c.headers.Get("X") != "y" || c.headers.Get("Content-Type") != "application/json" {
		t.Errorf("headers %v", c.headers)
	}
}

func TestMetricsInOTLP(t *testing.T) {
	t.Parallel()
	for preference, want := range map[string]metricspb.AggregationTemporality{
		"cumulative": metricspb.AggregationTemporality_AGGREGATION_TEMPORALITY_CUMULATIVE,
		"delta":      metricspb.AggregationTemporality_AGGREGATION_TEMPORALITY_DELTA,
	} {
		c := newCollector(t)
		tel := withTelemetry(t, Config{OTLPMetricsEndpoint: c.URL + "/v1/metrics", OTLPTimeout: 5000, OTLPTemporality: preference})
		m := tel.meters.Meter("ours")
		counter, err1 := m.Int64Counter("n")
		amount, err2 := m.Float64Counter("f")
		gauge, err3 := m.Int64Gauge("g")
		level, err4 := m.Float64Gauge("l")
		histogram, err5 := m.Float64Histogram("h", metric.WithUnit("s"), metric.WithExplicitBucketBoundaries(1, 2))
		sizes, err6 := m.Int64Histogram("z")
		if err := errors.Join(err1, err2, err3, err4, err5, err6); err != nil {
			t.Fatal(err)
		}
		counter.Add(t.Context(), 3, metric.WithAttributes(attribute.String("k", "v")))
		amount.Add(t.Context(), 1.5)
		gauge.Record(t.Context(), -7)
		level.Record(t.Context(), math.NaN())
		histogram.Record(t.Context(), 0.5)
		histogram.Record(t.Context(), 5)
		sizes.Record(t.Context(), 9)
		if err := tel.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		c.mu.Lock()
		got := map[string]*metricspb.Metric{}
		for _, x := range c.metrics {
			got[x.Name] = x
		}
		c.mu.Unlock()
		n := got["n"].GetSum()
		if n.GetDataPoints()[0].GetAsInt() != 3 || !n.IsMonotonic || n.AggregationTemporality != want || n.DataPoints[0].Attributes[0].Key != "k" {
			t.Errorf("%s: counter %v", preference, n)
		}
		if got["f"].GetSum().GetDataPoints()[0].GetAsDouble() != 1.5 || got["g"].GetGauge().GetDataPoints()[0].GetAsInt() != -7 ||
			!math.IsNaN(got["l"].GetGauge().GetDataPoints()[0].GetAsDouble()) {
			t.Errorf("%s: %v", preference, got)
		}
		h := got["h"].GetHistogram()
		p := h.GetDataPoints()[0]
		if p.Count != 2 || p.GetSum() != 5.5 || p.GetMin() != 0.5 || p.GetMax() != 5 || len(p.BucketCounts) != 3 || p.BucketCounts[0] != 1 || p.BucketCounts[2] != 1 ||
			len(p.ExplicitBounds) != 2 || h.AggregationTemporality != want || got["h"].Unit != "s" {
			t.Errorf("%s: histogram %v", preference, h)
		}
		if got["z"].GetHistogram().GetDataPoints()[0].GetSum() != 9 {
			t.Errorf("%s: histogram of integers %v", preference, got["z"])
		}
	}
}

// TestLabelsAreFew sends methods and types that nobody knows, with which a caller could make metrics without end.
func TestLabelsAreFew(t *testing.T) {
	t.Parallel()
	c := newCollector(t)
	tel := withTelemetry(t, Config{OTLPEndpoint: c.URL, OTLPTimeout: 5000})
	mux := http.NewServeMux()
	mux.HandleFunc("/x", func(http.ResponseWriter, *http.Request) {})
	in, err := start(t.Context(), "send", func(context.Context, *Runtime) (Handler, error) {
		return Handler{HTTP: mux, Event: func(context.Context, ce.Event) (*ce.Event, error) { return nil, nil }}, nil
	}, envconfig.MapLookuper(nil), zap.NewNop(), tel)
	if err != nil {
		t.Fatal(err)
	}
	for _, method := range []string{"GET", "BREW", "PROPFIND"} {
		in.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(method, "/x", nil))
	}
	for _, of := range []string{"a.b", "c.d", event.TypeEmailSendRequested} {
		r := httptest.NewRequest(http.MethodPost, "/", strings.NewReader("{}"))
		for k, v := range map[string]string{"Ce-Specversion": "1.0", "Ce-Id": "1", "Ce-Source": "/s", "Ce-Type": of} {
			r.Header.Set(k, v)
		}
		in.ServeHTTP(httptest.NewRecorder(), r)
	}
	if err := in.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	labels := map[string]bool{}
	for _, m := range c.metrics {
		for _, p := range m.GetHistogram().GetDataPoints() {
			for _, a := range p.Attributes {
				if a.Key == "onda.request" {
					labels[a.Value.GetStringValue()] = true
				}
			}
		}
	}
	want := map[string]bool{"GET /x": true, "_OTHER /x": true, "_OTHER": true, event.TypeEmailSendRequested: true}
	if diff := cmp.Diff(want, labels); diff != "" {
		t.Error(diff)
	}
	spans := map[string]int{}
	for _, s := range c.spans {
		spans[s.Name]++
	}
	if spans["process _OTHER"] != 2 || spans["/x"] != 3 || len(spans) != 3 {
		t.Errorf("spans %v", spans)
	}
}

func TestOTLPRetries(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		status []int
		posts  int
		ok     bool
	}{
		"taken": {nil, 1, true}, "busy, then taken": {[]int{503, 429}, 3, true}, "refused": {[]int{400}, 1, false}, "always busy": {[]int{502, 503, 504}, 3, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			col := newCollector(t, c.status...)
			o, err := newOTLP(Config{OTLPEndpoint: col.URL, OTLPTimeout: 5000}, "", "traces")
			if err != nil {
				t.Fatal(err)
			}
			err = o.post(t.Context(), map[string]any{"resourceSpans": []any{}})
			o.client.CloseIdleConnections()
			if (err == nil) != c.ok || col.posts != c.posts {
				t.Errorf("error %v after %d posts", err, col.posts)
			}
		})
	}
}

func TestOTLPConfig(t *testing.T) {
	t.Parallel()
	for want, cfg := range map[string]Config{
		"OTEL_EXPORTER_OTLP_ENDPOINT: is no URL with http or https":         {OTLPEndpoint: "collector:4318"},
		"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: is no URL with http or https":  {OTLPTracesEndpoint: "grpc://collector"},
		"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT: is no URL with http or https": {OTLPMetricsEndpoint: "https://"},
		"OTEL_EXPORTER_OTLP_HEADERS: is no list of key=value":               {OTLPEndpoint: "http://collector:4318", OTLPHeaders: "secret"},
	} {
		if _, err := newTelemetry(t.Context(), "send", cfg); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("error %v, want %q", err, want)
		}
	}
}

func TestWhatWaitsIsMeasured(t *testing.T) {
	t.Parallel()
	c := newCollector(t)
	tel := withTelemetry(t, Config{OTLPMetricsEndpoint: c.URL + "/v1/metrics", OTLPTimeout: 5000, OTLPTemporality: "delta"})
	rt, _, err := newRuntime(t.Context(), "segment", envconfig.MapLookuper(nil), zap.NewNop(), tel)
	if err != nil {
		t.Fatal(err)
	}
	watch := rt.Watch()
	watch(t.Context(), "facts", "segment", 1500*time.Millisecond, 7)
	watch(t.Context(), "facts", "segment", 0, 0)
	if err := tel.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	got := map[string]*metricspb.HistogramDataPoint{}
	for _, x := range c.metrics {
		got[x.Name] = x.GetHistogram().GetDataPoints()[0]
	}
	lag, backlog := got["onda.lag"], got["onda.backlog"]
	if lag.GetCount() != 2 || lag.GetSum() != 1.5 || backlog.GetCount() != 1 || backlog.GetSum() != 7 {
		t.Errorf("%v", got)
	}
	by := map[string]string{}
	for _, a := range lag.GetAttributes() {
		by[a.Key] = a.Value.GetStringValue()
	}
	if diff := cmp.Diff(map[string]string{"onda.function": "segment", "onda.reader": "segment", "onda.what": "facts"}, by); diff != "" {
		t.Error(diff)
	}
}
