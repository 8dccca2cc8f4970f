package fn

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
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

// newTelemetry connects to nothing yet. The SDK reads the rest of OTEL_* (intervals, samplers, limits, resource attributes) itself.
func newTelemetry(ctx context.Context, name string, cfg Config) (*telemetry, error) {
	t := noTelemetry()
	if cfg.OTELDisabled || cfg.OTLPEndpoint == "" && cfg.OTLPTracesEndpoint == "" && cfg.OTLPMetricsEndpoint == "" {
		return t, nil
	}
	// Attributes of OTEL_RESOURCE_ATTRIBUTES and OTEL_SERVICE_NAME come last and win.
	res, err := resource.New(ctx, resource.WithAttributes(
		attribute.String("service.name", "onda-"+name),
		// Each process counts from zero: without its own id its counters would be taken for those of the one before.
		attribute.String("service.instance.id", uuid.NewString()),
	), resource.WithFromEnv())
	if err != nil {
		return nil, fmt.Errorf("OTEL_RESOURCE_ATTRIBUTES: %w", err)
	}
	if cfg.OTLPEndpoint != "" || cfg.OTLPTracesEndpoint != "" {
		o, err := newOTLP(cfg, cfg.OTLPTracesEndpoint, "traces")
		if err != nil {
			return nil, err
		}
		p := sdktrace.NewTracerProvider(sdktrace.WithBatcher(traceExporter{o}, sdktrace.WithBatchTimeout(time.Second)), sdktrace.WithResource(res))
		t.tracers, t.close = p, append(t.close, p.Shutdown)
	}
	if cfg.OTLPEndpoint != "" || cfg.OTLPMetricsEndpoint != "" {
		o, err := newOTLP(cfg, cfg.OTLPMetricsEndpoint, "metrics")
		if err != nil {
			return nil, errors.Join(err, t.Close(ctx))
		}
		e := metricExporter{o, sdkmetric.CumulativeTemporalitySelector}
		if cfg.OTLPTemporality == "delta" {
			e.temporality = sdkmetric.DeltaTemporalitySelector
		}
		p := sdkmetric.NewMeterProvider(sdkmetric.WithReader(sdkmetric.NewPeriodicReader(e)), sdkmetric.WithResource(res))
		t.meters, t.close = p, append(t.close, p.Shutdown)
	}
	return t, nil
}

// share makes it the process's own, where libraries look for it. Only Main may.
func (t *telemetry) share() {
	otel.SetTracerProvider(t.tracers)
	otel.SetMeterProvider(t.meters)
}

// Close sends what is left.
func (t *telemetry) Close(ctx context.Context) error {
	var errs []error
	for _, c := range t.close {
		errs = append(errs, c(ctx))
	}
	return errors.Join(errs...)
}
