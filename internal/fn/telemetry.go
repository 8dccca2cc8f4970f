package fn

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlpmetric/otlpmetrichttp"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/metric"
	metricnoop "go.opentelemetry.io/otel/metric/noop"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	tracenoop "go.opentelemetry.io/otel/trace/noop"
)

// scope is the instrumentation scope of everything the runtime measures.
const scope = "github.com/onda-run/onda/internal/fn"

// telemetry is where traces and metrics go: pushed, since pods that scale to zero are gone before anyone could scrape them.
type telemetry struct {
	tracers trace.TracerProvider
	meters  metric.MeterProvider
	close   []func(context.Context) error
}

func noTelemetry() *telemetry {
	return &telemetry{tracers: tracenoop.NewTracerProvider(), meters: metricnoop.NewMeterProvider()}
}

// startTelemetry connects to nothing yet. The exporters read the rest of OTEL_* (headers, intervals, samplers, resource attributes) themselves.
func startTelemetry(ctx context.Context, name string, cfg Config) (*telemetry, error) {
	t := noTelemetry()
	if cfg.OTELDisabled || cfg.OTLPEndpoint == "" && cfg.OTLPTracesEndpoint == "" && cfg.OTLPMetricsEndpoint == "" {
		return t, nil
	}
	// Attributes of OTEL_RESOURCE_ATTRIBUTES and OTEL_SERVICE_NAME come last and win.
	res, err := resource.New(ctx, resource.WithAttributes(attribute.String("service.name", "onda-"+name)), resource.WithFromEnv())
	if err != nil {
		return nil, fmt.Errorf("OTEL_RESOURCE_ATTRIBUTES: %w", err)
	}
	if cfg.OTLPEndpoint != "" || cfg.OTLPTracesEndpoint != "" {
		exporter, err := otlptracehttp.New(ctx)
		if err != nil {
			return nil, fmt.Errorf("OTEL_EXPORTER_OTLP_ENDPOINT: %w", err)
		}
		p := sdktrace.NewTracerProvider(sdktrace.WithBatcher(exporter, sdktrace.WithBatchTimeout(time.Second)), sdktrace.WithResource(res))
		t.tracers, t.close = p, append(t.close, p.Shutdown)
	}
	if cfg.OTLPEndpoint != "" || cfg.OTLPMetricsEndpoint != "" {
		exporter, err := otlpmetrichttp.New(ctx)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("OTEL_EXPORTER_OTLP_ENDPOINT: %w", err), t.Close(ctx))
		}
		p := sdkmetric.NewMeterProvider(sdkmetric.WithReader(sdkmetric.NewPeriodicReader(exporter)), sdkmetric.WithResource(res))
		t.meters, t.close = p, append(t.close, p.Shutdown)
	}
	// Libraries such as otelpgx look for them here.
	otel.SetTracerProvider(t.tracers)
	otel.SetMeterProvider(t.meters)
	return t, nil
}

// Close sends what is left.
func (t *telemetry) Close(ctx context.Context) error {
	var errs []error
	for _, c := range t.close {
		errs = append(errs, c(ctx))
	}
	return errors.Join(errs...)
}
