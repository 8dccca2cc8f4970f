package fn

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/sethvargo/go-envconfig"
	"go.uber.org/zap"
)

type nested struct {
	MaxConns int `env:"ONDA_DATABASE_CONNS, default=4"`
}

type testConfig struct {
	URL   string        `env:"ONDA_DATABASE_URL, required"`
	Lease time.Duration `env:"ONDA_LEASE, default=60s"`
	Pool  nested
	// Even must be even.
	Even int `env:"ONDA_EVEN"`
}

func (c *testConfig) Check() error {
	if c.Even%2 != 0 {
		return errors.New("ONDA_EVEN: is odd")
	}
	return nil
}

func TestConfig(t *testing.T) {
	t.Parallel()
	url := "postgres://localhost"
	for name, c := range map[string]struct {
		env  map[string]string
		want string
	}{
		"missing":          {map[string]string{}, "ONDA_DATABASE_URL: is not set"},
		"empty":            {map[string]string{"ONDA_DATABASE_URL": ""}, "ONDA_DATABASE_URL: is not set"},
		"no duration":      {map[string]string{"ONDA_DATABASE_URL": url, "ONDA_LEASE": "soon"}, `ONDA_LEASE: time: invalid duration "soon"`},
		"no number":        {map[string]string{"ONDA_DATABASE_URL": url, "ONDA_DATABASE_CONNS": "many"}, `ONDA_DATABASE_CONNS: strconv.ParseInt: parsing "many": invalid syntax`},
		"its own check":    {map[string]string{"ONDA_DATABASE_URL": url, "ONDA_EVEN": "3"}, "ONDA_EVEN: is odd"},
		"what all of them": {map[string]string{"ONDA_DATABASE_URL": url, "ONDA_SERVE": "all"}, `ONDA_SERVE: "all" is not one of http, events, both`},
		"no port":          {map[string]string{"ONDA_DATABASE_URL": url, "PORT": "http"}, `PORT: strconv.ParseInt: parsing "http": invalid syntax`},
		"a large port":     {map[string]string{"ONDA_DATABASE_URL": url, "PORT": "70000"}, "PORT: 70000 is not a TCP port"},
		"no log":           {map[string]string{"ONDA_DATABASE_URL": url, "ONDA_LOG": "xml"}, `ONDA_LOG: "xml" is not one of json, console, auto`},
		"no drain":         {map[string]string{"ONDA_DATABASE_URL": url, "ONDA_DRAIN": "-1s"}, "ONDA_DRAIN: -1s is not a time to wait, such as 8s"},
		"grpc":             {map[string]string{"ONDA_DATABASE_URL": url, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, `OTEL_EXPORTER_OTLP_PROTOCOL: "grpc" is not one of http/json, http/protobuf`},
		"all well":         {map[string]string{"ONDA_DATABASE_URL": url}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var cfg testConfig
			in, err := Start(t.Context(), "send", func(ctx context.Context, rt *Runtime) (Handler, error) {
				return Handler{}, rt.Config(ctx, &cfg)
			}, envconfig.MapLookuper(c.env), zap.NewNop())
			if c.want == "" {
				if err != nil || cfg.URL != url || cfg.Lease != time.Minute || cfg.Pool.MaxConns != 4 {
					t.Errorf("config %+v, error %v", cfg, err)
				}
				if err := in.Stop(t.Context()); err != nil {
					t.Error(err)
				}
				return
			}
			if err == nil || err.Error() != c.want {
				t.Errorf("error %q, want %q", err, c.want)
			}
		})
	}
}

// TestMainSaysWhatIsWrong runs what Main runs.
func TestMainSaysWhatIsWrong(t *testing.T) {
	t.Parallel()
	var out strings.Builder
	status := run(t.Context(), "send", func(ctx context.Context, rt *Runtime) (Handler, error) {
		var cfg testConfig
		return Handler{}, rt.Config(ctx, &cfg)
	}, envconfig.MapLookuper(nil), &out)
	if status != 1 || out.String() != "send: ONDA_DATABASE_URL: is not set\n" {
		t.Errorf("status %d, output %q", status, out.String())
	}
}

// A setting that is applied with the service ends the process also under Knative, so that its revision is never ready.
func TestASettingOfNoSecretEndsTheProcess(t *testing.T) {
	t.Parallel()
	knative := envconfig.MapLookuper(map[string]string{"K_SERVICE": "send"})
	for text, want := range map[string]bool{
		"ONDA_DATABASE_URL: is not set": true, `ONDA_SMTP_URL: "x" is no URL`: true, "ONDA_LINK_URL: is not set": false, "PORT: x": false,
	} {
		if got := secretAtFault(errors.New(text), knative) != nil; got != want {
			t.Errorf("%s: %v", text, got)
		}
		if secretAtFault(errors.New(text), envconfig.MapLookuper(nil)) != nil {
			t.Errorf("%s: outside of Knative", text)
		}
	}
}
