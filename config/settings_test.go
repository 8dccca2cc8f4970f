package config_test

import (
	"context"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/sethvargo/go-envconfig"
	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"

	"github.com/onda-run/onda/internal/bounce"
	"github.com/onda-run/onda/internal/campaign"
	"github.com/onda-run/onda/internal/fn"
	"github.com/onda-run/onda/internal/manifest"
	"github.com/onda-run/onda/internal/renderform"
	"github.com/onda-run/onda/internal/schedule"
	"github.com/onda-run/onda/internal/segment"
	"github.com/onda-run/onda/internal/send"
	"github.com/onda-run/onda/internal/track"
)

// builds are the functions, as their binaries build them.
func builds() map[string]fn.Build {
	return map[string]fn.Build{
		"bounce": bounce.Build, "campaign": campaign.Build, "render-form": renderform.Build, "schedule": schedule.Build, "segment": segment.Build,
		"send": send.Build, "track": track.Build,
	}
}

// environment is a service's: what its pods see, with samples of the Secrets.
type environment struct {
	values map[string]string
	// asked are the variables that the function looked for.
	asked map[string]bool
}

// Lookup implements envconfig.Lookuper.
func (e environment) Lookup(name string) (string, bool) {
	e.asked[name] = true
	value, ok := e.values[name]
	return value, ok
}

var _ envconfig.Lookuper = environment{}

// environment gathers a container's variables as the kubelet does: later ones win.
func (r rendering) environment(container corev1.Container) environment {
	e := environment{values: map[string]string{}, asked: map[string]bool{}}
	for _, from := range container.EnvFrom {
		if from.ConfigMapRef != nil {
			for _, m := range manifest.Of[*corev1.ConfigMap](r.objects) {
				if m.Name == from.ConfigMapRef.Name {
					maps.Copy(e.values, m.Data)
				}
			}
		}
		if from.SecretRef != nil {
			maps.Copy(e.values, secrets()[from.SecretRef.Name])
		}
	}
	for _, v := range container.Env {
		e.values[v.Name] = v.Value
	}
	return e
}

// setting is a value of the entry's ConfigMap onda.
func (r rendering) setting(name string) string {
	for _, m := range manifest.Of[*corev1.ConfigMap](r.objects) {
		if value, ok := m.Data[name]; ok && isSettings(m.Name) {
			return value
		}
	}
	return ""
}

// isSettings tells the ConfigMap onda, whose name has a hash, from others.
func isSettings(name string) bool {
	hash, ok := strings.CutPrefix(name, "onda-")
	return ok && len(hash) == 10 && !strings.Contains(hash, "-")
}

// start builds a function with the settings that its manifest gives it, as its pod would, and ends it. Nothing is connected to before the first request.
func start(function string, e environment) error {
	in, err := fn.Start(context.Background(), function, builds()[function], e, zap.NewNop())
	if err != nil {
		return err
	}
	return in.Stop(context.Background())
}

// settings starts every function with the settings it is given, and finds those that nobody reads: a misspelt name says nothing otherwise.
func (c *checker) settings() {
	if c.part { // its settings are in the namespace
		return
	}
	read := map[string]bool{}
	for at, j := range c.jobs() {
		named, err := commandLineVariables()
		if err != nil {
			c.add(at, "%v", err)
		}
		values := c.environment(j.Template.Spec.Containers[0]).values
		if values["ONDA_ADMIN_DATABASE_URL"] == "" && values["ONDA_DATABASE_URL"] == "" {
			c.add(at, "has no ONDA_ADMIN_DATABASE_URL: take the Secret onda-admin; or, for what the pool's login may, onda")
		}
		for name := range values {
			read[name] = read[name] || named[name]
		}
	}
	for at, s := range manifest.Of[*servingv1.Service](c.objects) {
		container := s.Spec.Template.Spec.Containers[0]
		e := c.environment(container)
		if builds()[c.functions[s.Name]] == nil {
			continue // said elsewhere
		}
		if err := start(c.functions[s.Name], e); err != nil {
			c.add(at, "does not start: %v; set it in the ConfigMap onda of %s/kustomization.yaml, or in a Secret that the service takes", err, c.dir)
		}
		c.turn(at, s, e)
		for _, v := range container.Env {
			if !e.asked[v.Name] {
				c.add(at, "sets %s, which its function does not read: see the table in functions/%s/README.md", v.Name, c.functions[s.Name])
			}
		}
		maps.Copy(read, e.asked)
	}
	// A sandbox has what its other functions would need, should they become its own.
	for at, s := range manifest.Of[*servingv1.Service](c.pool.objects) {
		e := c.pool.environment(s.Spec.Template.Spec.Containers[0])
		if err := start(c.functions[s.Name], e); err != nil {
			c.add(at, "does not start: %v", err)
		}
		maps.Copy(read, e.asked)
	}
	for at, m := range manifest.Of[*corev1.ConfigMap](c.objects) {
		if !isSettings(m.Name) {
			continue
		}
		for _, name := range slices.Sorted(maps.Keys(m.Data)) {
			if !read[name] {
				c.add(at, "sets %s, which no function of this namespace reads: see the tables in functions/*/README.md", name)
			}
		}
	}
	if c.tenant == "" && c.setting("ONDA_TENANT") != "" {
		c.add(c, "ONDA_TENANT is %q: a ring serves all tenants; leave it out", c.setting("ONDA_TENANT"))
	}
	if c.tenant != "" && c.setting("ONDA_TENANT") != c.tenant {
		c.add(c, "ONDA_TENANT is %q: the functions of a dedicated tenant serve no other than %s", c.setting("ONDA_TENANT"), c.tenant)
	}
}

// turn holds a worker of send to the time that its requests have: else Knative ends each with 504, and the event comes again while it sends.
func (c *checker) turn(at manifest.Object, s *servingv1.Service, e environment) {
	if c.functions[s.Name] != "send" {
		return
	}
	var cfg send.Config
	if err := envconfig.ProcessWith(context.Background(), &envconfig.Config{Target: &cfg, Lookuper: e}); err != nil {
		return // said by start
	}
	const recording = 5 * time.Second
	if takes, has := cfg.Turn+cfg.MessageLimit+recording, time.Duration(*s.Spec.Template.Spec.TimeoutSeconds)*time.Second; takes > has {
		c.add(at, "a worker may take %s (ONDA_TURN and ONDA_MESSAGE_LIMIT, and %s to record what came of it), and timeoutSeconds is %s: lower them, or raise it with the trigger's timeout",
			takes, recording, has)
	}
}

// commandLineVariables are those that the sources of the command line, which the Jobs run, name.
func commandLineVariables() (map[string]bool, error) {
	files, err := filepath.Glob("../cmd/onda/*.go")
	if err != nil {
		return nil, err
	}
	named := map[string]bool{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		for _, name := range regexp.MustCompile(`"(ONDA_[A-Z_]+)"`).FindAllStringSubmatch(string(text), -1) {
			named[name[1]] = true
		}
	}
	return named, nil
}
