package fn

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/sethvargo/go-retry"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/sdk/instrumentation"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
)

// The exporters of this file speak OTLP over HTTP in its JSON encoding, which every receiver of OTLP over HTTP must take (OTLP 1.0, "JSON Protobuf
// Encoding"). OpenTelemetry's own exporters bring gRPC and protobuf along: 4.7 MB of binary and 3 MB of memory in every function, also in those that
// send nothing.

// otlp posts to one signal's URL of a collector.
type otlp struct {
	url     string
	headers http.Header
	client  *http.Client
}

// newOTLP makes the client of one signal, such as "traces": its own endpoint as it is, else the common one with the signal's path.
func newOTLP(cfg Config, own, signal string) (*otlp, error) {
	name, endpoint := "OTEL_EXPORTER_OTLP_"+strings.ToUpper(signal)+"_ENDPOINT", own
	if own == "" {
		name, endpoint = "OTEL_EXPORTER_OTLP_ENDPOINT", strings.TrimSuffix(cfg.OTLPEndpoint, "/")+"/v1/"+signal
	}
	u, err := url.Parse(endpoint)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil, fmt.Errorf("%s: is no URL with http or https", name)
	}
	o := &otlp{url: endpoint, headers: http.Header{}, client: &http.Client{Timeout: time.Duration(cfg.OTLPTimeout) * time.Millisecond}}
	for pair := range strings.SplitSeq(cfg.OTLPHeaders, ",") {
		key, value, ok := strings.Cut(strings.TrimSpace(pair), "=")
		if key == "" && !ok {
			continue
		}
		value, err := url.PathUnescape(strings.TrimSpace(value))
		if err != nil || key == "" || !ok {
			return nil, errors.New("OTEL_EXPORTER_OTLP_HEADERS: is no list of key=value, separated by commas, values percent-encoded")
		}
		o.headers.Set(strings.TrimSpace(key), value)
	}
	o.headers.Set("Content-Type", "application/json")
	return o, nil
}

// post sends one request and repeats it a little when the receiver asks for that.
func (o *otlp) post(ctx context.Context, request any) error {
	body, err := json.Marshal(request)
	if err != nil {
		return fmt.Errorf("encode telemetry: %w", err)
	}
	backoff := retry.WithMaxRetries(2, retry.NewExponential(200*time.Millisecond))
	return retry.Do(ctx, backoff, func(ctx context.Context) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, o.url, bytes.NewReader(body))
		if err != nil {
			return fmt.Errorf("send telemetry: %w", err)
		}
		req.Header = o.headers.Clone()
		res, err := o.client.Do(req)
		if err != nil {
			return retry.RetryableError(fmt.Errorf("send telemetry: %w", err))
		}
		_, _ = io.Copy(io.Discard, io.LimitReader(res.Body, 64<<10)) // so that the connection can be kept
		_ = res.Body.Close()
		switch {
		case res.StatusCode/100 == 2:
			return nil
		case res.StatusCode == http.StatusTooManyRequests || res.StatusCode >= http.StatusBadGateway && res.StatusCode <= http.StatusGatewayTimeout:
			return retry.RetryableError(fmt.Errorf("send telemetry: %w", &StatusError{Code: res.StatusCode}))
		}
		return fmt.Errorf("send telemetry: %w", &StatusError{Code: res.StatusCode})
	})
}

// traceExporter implements sdktrace.SpanExporter.
type traceExporter struct{ *otlp }

// ExportSpans implements sdktrace.SpanExporter.
func (e traceExporter) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	if len(spans) == 0 {
		return nil
	}
	type scopeSpans struct {
		Scope otlpScope  `json:"scope"`
		Spans []otlpSpan `json:"spans"`
	}
	var all []scopeSpans
	index := map[instrumentation.Scope]int{}
	for _, s := range spans {
		i, ok := index[s.InstrumentationScope()]
		if !ok {
			i = len(all)
			index[s.InstrumentationScope()] = i
			all = append(all, scopeSpans{Scope: scopeOf(s.InstrumentationScope())})
		}
		all[i].Spans = append(all[i].Spans, spanOf(s))
	}
	type resourceSpans struct {
		Resource   otlpResource `json:"resource"`
		ScopeSpans []scopeSpans `json:"scopeSpans"`
	}
	return e.post(ctx, map[string]any{"resourceSpans": []resourceSpans{{resourceOf(spans[0].Resource()), all}}})
}

// Shutdown implements sdktrace.SpanExporter.
func (e traceExporter) Shutdown(context.Context) error {
	e.client.CloseIdleConnections()
	return nil
}

// metricExporter implements sdkmetric.Exporter.
type metricExporter struct {
	*otlp
	temporality sdkmetric.TemporalitySelector
}

// Temporality implements sdkmetric.Exporter.
func (e metricExporter) Temporality(k sdkmetric.InstrumentKind) metricdata.Temporality {
	return e.temporality(k)
}

// Aggregation implements sdkmetric.Exporter.
func (e metricExporter) Aggregation(k sdkmetric.InstrumentKind) sdkmetric.Aggregation {
	return sdkmetric.DefaultAggregationSelector(k)
}

// Export implements sdkmetric.Exporter.
func (e metricExporter) Export(ctx context.Context, rm *metricdata.ResourceMetrics) error {
	type scopeMetrics struct {
		Scope   otlpScope    `json:"scope"`
		Metrics []otlpMetric `json:"metrics"`
	}
	var all []scopeMetrics
	var errs []error
	for _, sm := range rm.ScopeMetrics {
		s := scopeMetrics{Scope: scopeOf(sm.Scope)}
		for _, m := range sm.Metrics {
			metric, err := metricOf(m)
			if err != nil {
				errs = append(errs, err)
				continue
			}
			s.Metrics = append(s.Metrics, metric)
		}
		all = append(all, s)
	}
	if len(all) == 0 {
		return errors.Join(errs...)
	}
	type resourceMetrics struct {
		Resource     otlpResource   `json:"resource"`
		ScopeMetrics []scopeMetrics `json:"scopeMetrics"`
	}
	return errors.Join(append(errs, e.post(ctx, map[string]any{"resourceMetrics": []resourceMetrics{{resourceOf(rm.Resource), all}}}))...)
}

// ForceFlush implements sdkmetric.Exporter; nothing is held back.
func (metricExporter) ForceFlush(context.Context) error { return nil }

// Shutdown implements sdkmetric.Exporter.
func (e metricExporter) Shutdown(context.Context) error {
	e.client.CloseIdleConnections()
	return nil
}

// What follows mirrors the messages of OTLP 1.x. In JSON, ids are in hexadecimal and integers of 64 bits are strings.

type otlpResource struct {
	Attributes []otlpAttribute `json:"attributes,omitempty"`
}

type otlpScope struct {
	Name    string `json:"name"`
	Version string `json:"version,omitempty"`
}

type otlpAttribute struct {
	Key   string         `json:"key"`
	Value map[string]any `json:"value"`
}

type otlpSpan struct {
	TraceID           string          `json:"traceId"`
	SpanID            string          `json:"spanId"`
	ParentSpanID      string          `json:"parentSpanId,omitempty"`
	TraceState        string          `json:"traceState,omitempty"`
	Flags             uint32          `json:"flags,omitempty"`
	Name              string          `json:"name"`
	Kind              int             `json:"kind"`
	StartTimeUnixNano string          `json:"startTimeUnixNano"`
	EndTimeUnixNano   string          `json:"endTimeUnixNano"`
	Attributes        []otlpAttribute `json:"attributes,omitempty"`
	Events            []otlpEvent     `json:"events,omitempty"`
	Links             []otlpLink      `json:"links,omitempty"`
	Status            otlpStatus      `json:"status"`
}

type otlpEvent struct {
	TimeUnixNano string          `json:"timeUnixNano"`
	Name         string          `json:"name"`
	Attributes   []otlpAttribute `json:"attributes,omitempty"`
}

type otlpLink struct {
	TraceID    string          `json:"traceId"`
	SpanID     string          `json:"spanId"`
	Attributes []otlpAttribute `json:"attributes,omitempty"`
}

type otlpStatus struct {
	Message string `json:"message,omitempty"`
	Code    int    `json:"code,omitempty"`
}

type otlpMetric struct {
	Name        string         `json:"name"`
	Description string         `json:"description,omitempty"`
	Unit        string         `json:"unit,omitempty"`
	Gauge       *otlpGauge     `json:"gauge,omitempty"`
	Sum         *otlpSum       `json:"sum,omitempty"`
	Histogram   *otlpHistogram `json:"histogram,omitempty"`
}

type otlpGauge struct {
	DataPoints []otlpPoint `json:"dataPoints"`
}

type otlpSum struct {
	DataPoints             []otlpPoint `json:"dataPoints"`
	AggregationTemporality int         `json:"aggregationTemporality"`
	IsMonotonic            bool        `json:"isMonotonic"`
}

type otlpHistogram struct {
	DataPoints             []otlpHistogramPoint `json:"dataPoints"`
	AggregationTemporality int                  `json:"aggregationTemporality"`
}

type otlpPoint struct {
	Attributes        []otlpAttribute `json:"attributes,omitempty"`
	StartTimeUnixNano string          `json:"startTimeUnixNano,omitempty"`
	TimeUnixNano      string          `json:"timeUnixNano"`
	AsInt             string          `json:"asInt,omitempty"`
	AsDouble          *double         `json:"asDouble,omitempty"`
}

type otlpHistogramPoint struct {
	Attributes        []otlpAttribute `json:"attributes,omitempty"`
	StartTimeUnixNano string          `json:"startTimeUnixNano"`
	TimeUnixNano      string          `json:"timeUnixNano"`
	Count             string          `json:"count"`
	Sum               double          `json:"sum"`
	BucketCounts      []string        `json:"bucketCounts"`
	ExplicitBounds    []float64       `json:"explicitBounds"`
	Min               *double         `json:"min,omitempty"`
	Max               *double         `json:"max,omitempty"`
}

// double is a number that JSON may have no form for.
type double float64

// MarshalJSON implements json.Marshaler as protobuf's JSON does.
func (d double) MarshalJSON() ([]byte, error) {
	switch f := float64(d); {
	case math.IsNaN(f):
		return []byte(`"NaN"`), nil
	case math.IsInf(f, 1):
		return []byte(`"Infinity"`), nil
	case math.IsInf(f, -1):
		return []byte(`"-Infinity"`), nil
	}
	return json.Marshal(float64(d))
}

func resourceOf(r *resource.Resource) otlpResource {
	return otlpResource{attributesOf(r.Attributes())}
}

func scopeOf(s instrumentation.Scope) otlpScope { return otlpScope{s.Name, s.Version} }

func attributesOf(list []attribute.KeyValue) []otlpAttribute {
	var all []otlpAttribute
	for _, a := range list {
		all = append(all, otlpAttribute{string(a.Key), valueOf(a.Value.AsInterface())})
	}
	return all
}

// valueOf is an AnyValue.
func valueOf(v any) map[string]any {
	switch v := v.(type) {
	case bool:
		return map[string]any{"boolValue": v}
	case int64:
		return map[string]any{"intValue": strconv.FormatInt(v, 10)}
	case float64:
		return map[string]any{"doubleValue": double(v)}
	case string:
		return map[string]any{"stringValue": v}
	case []bool:
		return arrayOf(v)
	case []int64:
		return arrayOf(v)
	case []float64:
		return arrayOf(v)
	case []string:
		return arrayOf(v)
	}
	return map[string]any{"stringValue": fmt.Sprint(v)}
}

func arrayOf[T any](list []T) map[string]any {
	values := []map[string]any{}
	for _, v := range list {
		values = append(values, valueOf(v))
	}
	return map[string]any{"arrayValue": map[string]any{"values": values}}
}

func spanOf(s sdktrace.ReadOnlySpan) otlpSpan {
	sc := s.SpanContext()
	o := otlpSpan{
		TraceID: sc.TraceID().String(), SpanID: sc.SpanID().String(), TraceState: sc.TraceState().String(), Flags: uint32(sc.TraceFlags()),
		Name: s.Name(), Kind: kindOfSpan(s.SpanKind()), StartTimeUnixNano: nano(s.StartTime()), EndTimeUnixNano: nano(s.EndTime()),
		Attributes: attributesOf(s.Attributes()), Status: otlpStatus{Message: s.Status().Description},
	}
	if p := s.Parent().SpanID(); p.IsValid() {
		o.ParentSpanID = p.String()
	}
	switch s.Status().Code { // numbered otherwise than in OTLP
	case codes.Ok:
		o.Status.Code = 1
	case codes.Error:
		o.Status.Code = 2
	default: // unset
	}
	for _, e := range s.Events() {
		o.Events = append(o.Events, otlpEvent{nano(e.Time), e.Name, attributesOf(e.Attributes)})
	}
	for _, l := range s.Links() {
		t, id := l.SpanContext.TraceID(), l.SpanContext.SpanID()
		o.Links = append(o.Links, otlpLink{hex.EncodeToString(t[:]), hex.EncodeToString(id[:]), attributesOf(l.Attributes)})
	}
	return o
}

func kindOfSpan(k trace.SpanKind) int {
	switch k {
	case trace.SpanKindServer:
		return 2
	case trace.SpanKindClient:
		return 3
	case trace.SpanKindProducer:
		return 4
	case trace.SpanKindConsumer:
		return 5
	default:
		return 1 // internal
	}
}

func metricOf(m metricdata.Metrics) (otlpMetric, error) {
	o := otlpMetric{Name: m.Name, Description: m.Description, Unit: m.Unit}
	switch d := m.Data.(type) {
	case metricdata.Gauge[int64]:
		o.Gauge = &otlpGauge{pointsOf(d.DataPoints)}
	case metricdata.Gauge[float64]:
		o.Gauge = &otlpGauge{pointsOf(d.DataPoints)}
	case metricdata.Sum[int64]:
		o.Sum = &otlpSum{pointsOf(d.DataPoints), temporalityOf(d.Temporality), d.IsMonotonic}
	case metricdata.Sum[float64]:
		o.Sum = &otlpSum{pointsOf(d.DataPoints), temporalityOf(d.Temporality), d.IsMonotonic}
	case metricdata.Histogram[int64]:
		o.Histogram = &otlpHistogram{histogramPointsOf(d.DataPoints), temporalityOf(d.Temporality)}
	case metricdata.Histogram[float64]:
		o.Histogram = &otlpHistogram{histogramPointsOf(d.DataPoints), temporalityOf(d.Temporality)}
	default: // exponential histograms and summaries come only with views that we do not set
		return o, fmt.Errorf("send telemetry: metric %s is a %T", m.Name, m.Data)
	}
	return o, nil
}

func pointsOf[N int64 | float64](points []metricdata.DataPoint[N]) []otlpPoint {
	all := []otlpPoint{}
	for _, p := range points {
		o := otlpPoint{Attributes: attributesOf(p.Attributes.ToSlice()), TimeUnixNano: nano(p.Time)}
		if !p.StartTime.IsZero() {
			o.StartTimeUnixNano = nano(p.StartTime)
		}
		switch v := any(p.Value).(type) {
		case int64:
			o.AsInt = strconv.FormatInt(v, 10)
		case float64:
			o.AsDouble = new(double(v))
		}
		all = append(all, o)
	}
	return all
}

func histogramPointsOf[N int64 | float64](points []metricdata.HistogramDataPoint[N]) []otlpHistogramPoint {
	all := []otlpHistogramPoint{}
	for _, p := range points {
		o := otlpHistogramPoint{
			Attributes: attributesOf(p.Attributes.ToSlice()), StartTimeUnixNano: nano(p.StartTime), TimeUnixNano: nano(p.Time),
			Count: strconv.FormatUint(p.Count, 10), Sum: double(p.Sum), ExplicitBounds: p.Bounds,
		}
		for _, n := range p.BucketCounts {
			o.BucketCounts = append(o.BucketCounts, strconv.FormatUint(n, 10))
		}
		if v, ok := p.Min.Value(); ok {
			o.Min = new(double(v))
		}
		if v, ok := p.Max.Value(); ok {
			o.Max = new(double(v))
		}
		all = append(all, o)
	}
	return all
}

func temporalityOf(t metricdata.Temporality) int {
	if t == metricdata.DeltaTemporality {
		return 1
	}
	return 2 // cumulative
}

func nano(t time.Time) string { return strconv.FormatInt(t.UnixNano(), 10) }
