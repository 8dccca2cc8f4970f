package fn

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/sethvargo/go-envconfig"
)

// Config is the part of the environment that is the same for every function.
type Config struct {
	// Port is the TCP port to listen on; 0 takes any.
	Port int `env:"PORT, default=8080"`
	// Host is the IP address to listen on; empty for all. On a developer's machine nobody else may reach a function.
	Host string `env:"ONDA_HOST"`
	// Serve tells what is answered: "http", "events" or "both". The rest is 404.
	Serve string `env:"ONDA_SERVE, default=both"`
	// Tenant is the one tenant that is served; empty for all.
	Tenant string `env:"ONDA_TENANT"`
	// Sink is the URL that events are published to; {namespace} in it stands for that of the tenant's functions.
	Sink string `env:"K_SINK"`
	// Token is the file with the token that is shown to the broker which it is for, and to nobody else; it need not be there. Knative's SinkBinding mounts it.
	Token string `env:"ONDA_OIDC_TOKEN, default=/oidc/token"`
	// Drain is how long requests may go on after SIGTERM. On Knative that comes after 30 s without a request, and the pod has the service's timeoutSeconds for both.
	Drain time.Duration `env:"ONDA_DRAIN, default=8s"`
	// Log is the form of the log: "json", "console", or "auto" for console on a terminal.
	Log string `env:"ONDA_LOG, default=auto"`
	// LogLevel is the least level that is logged: debug, info, warn or error.
	LogLevel string `env:"ONDA_LOG_LEVEL, default=info"`
	// GOGC is read by Go itself; where it is not set, functions run with 400.
	GOGC string `env:"GOGC"`
	// GOMEMLIMIT is read by Go itself, and no hard limit; where it is not set, it is 28 MiB, and 32 KiB for each connection.
	GOMEMLIMIT string `env:"GOMEMLIMIT"`
	// OTLPEndpoint is the OpenTelemetry collector that traces and metrics are pushed to over HTTP; empty for none.
	OTLPEndpoint string `env:"OTEL_EXPORTER_OTLP_ENDPOINT"`
	// OTLPTracesEndpoint is the full URL for traces, instead of the collector's.
	OTLPTracesEndpoint string `env:"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"`
	// OTLPMetricsEndpoint is the full URL for metrics, instead of the collector's.
	OTLPMetricsEndpoint string `env:"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT"`
	// OTLPProtocol is how they are pushed: http/json. http/protobuf is taken for it, since a receiver of the one must take the other; grpc is refused.
	OTLPProtocol string `env:"OTEL_EXPORTER_OTLP_PROTOCOL, default=http/json"`
	// OTLPHeaders are headers for the collector: key=value, separated by commas, values percent-encoded.
	OTLPHeaders string `env:"OTEL_EXPORTER_OTLP_HEADERS"`
	// OTLPTimeout is how many milliseconds one push may take.
	OTLPTimeout int `env:"OTEL_EXPORTER_OTLP_TIMEOUT, default=10000"`
	// OTLPTemporality is what counters and histograms tell: everything since the start (cumulative) or since the last push (delta).
	OTLPTemporality string `env:"OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE, default=cumulative"`
	// OTELDisabled turns telemetry off.
	OTELDisabled bool `env:"OTEL_SDK_DISABLED, default=false"`
}

// check looks at the values that have a closed list.
func (c Config) check() error {
	for _, v := range []struct {
		name, value string
		allowed     []string
	}{
		{"ONDA_SERVE", c.Serve, []string{"http", "events", "both"}},
		{"ONDA_LOG", c.Log, []string{"json", "console", "auto"}},
		{"ONDA_LOG_LEVEL", c.LogLevel, []string{"debug", "info", "warn", "error"}},
		{"OTEL_EXPORTER_OTLP_PROTOCOL", c.OTLPProtocol, []string{"http/json", "http/protobuf"}},
		{"OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", c.OTLPTemporality, []string{"cumulative", "delta"}},
	} {
		if !slices.Contains(v.allowed, v.value) {
			return fmt.Errorf("%s: %q is not one of %s", v.name, v.value, strings.Join(v.allowed, ", "))
		}
	}
	if c.Port < 0 || c.Port > 65535 {
		return fmt.Errorf("PORT: %d is not a TCP port", c.Port)
	}
	if c.OTLPTimeout <= 0 {
		return fmt.Errorf("OTEL_EXPORTER_OTLP_TIMEOUT: %d is not a number of milliseconds", c.OTLPTimeout)
	}
	if c.Drain <= 0 {
		return fmt.Errorf("ONDA_DRAIN: %s is not a time to wait, such as 8s", c.Drain)
	}
	return nil
}

// readConfig fills cfg, a pointer to a struct with env tags, and calls its Check method where it has one. The error is one line that begins with the
// variable's name.
func readConfig(ctx context.Context, cfg any, env envconfig.Lookuper) error {
	last := "" // the variable whose value was read last: the one that failed
	note := envconfig.MutatorFunc(func(_ context.Context, _, key, _, value string) (string, bool, error) {
		last = key
		return value, false, nil
	})
	err := envconfig.ProcessWith(ctx, &envconfig.Config{Target: cfg, Lookuper: notEmpty{env}, Mutators: []envconfig.Mutator{note}})
	switch {
	case errors.Is(err, envconfig.ErrMissingRequired):
		text := err.Error()
		return fmt.Errorf("%s: is not set", text[strings.LastIndex(text, " ")+1:])
	case err != nil && last != "":
		return fmt.Errorf("%s: %s", last, reason(err))
	case err != nil:
		return fmt.Errorf("configuration: %w", err)
	}
	switch c := cfg.(type) {
	case *Config:
		return c.check()
	case interface{ Check() error }:
		return c.Check()
	}
	return nil
}

// reason is an error's text on one line, without the names of Go fields before it, which say nothing to who set the variable.
func reason(err error) string {
	for {
		inner := errors.Unwrap(err)
		if inner == nil {
			break
		}
		field, ok := strings.CutSuffix(err.Error(), ": "+inner.Error())
		if !ok || strings.ContainsAny(field, " .:") {
			break
		}
		err = inner
	}
	return strings.Join(strings.Fields(err.Error()), " ")
}

// notEmpty takes a variable that is set to nothing as one that is not set: manifests set empty values to mean none.
type notEmpty struct{ env envconfig.Lookuper }

func (n notEmpty) Lookup(key string) (string, bool) {
	v, ok := n.env.Lookup(key)
	return v, ok && v != ""
}
