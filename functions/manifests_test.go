package functions_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"

	"github.com/onda-run/onda/internal/manifest"
)

// functionNames are the directories of this one.
func functionNames(t *testing.T) []string {
	t.Helper()
	mains, err := filepath.Glob("*/main.go")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, m := range mains {
		names = append(names, filepath.Dir(m))
	}
	if len(names) != 7 {
		t.Fatalf("functions: %q", names)
	}
	return names
}

// services are those of a function's service.yaml, as a cluster would take them.
func services(t *testing.T, function string) []*servingv1.Service {
	t.Helper()
	file := filepath.Join(function, "service.yaml")
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	objects, err := manifest.Read(file, text)
	if err != nil {
		t.Fatal(err)
	}
	var all []*servingv1.Service
	for _, s := range manifest.Of[*servingv1.Service](objects) {
		all = append(all, s)
	}
	return all
}

// TestServices holds the Services to what the design asks of each.
func TestServices(t *testing.T) {
	t.Parallel()
	public := []string{"track", "render-form", "bounce", "send-api"}
	seen := map[string]bool{}
	for _, function := range functionNames(t) {
		for _, s := range services(t, function) {
			seen[s.Name] = true
			spec, meta := s.Spec.Template.Spec, s.Spec.Template.ObjectMeta
			container := spec.Containers[0]
			if want := "ko://github.com/onda-run/onda/functions/" + function; container.Image != want {
				t.Errorf("%s: image %s, want %s", s.Name, container.Image, want)
			}
			local := s.Labels["networking.knative.dev/visibility"] == "cluster-local"
			if local == slices.Contains(public, s.Name) {
				t.Errorf("%s: local to the cluster is %t", s.Name, local)
			}
			if spec.AutomountServiceAccountToken == nil || *spec.AutomountServiceAccountToken {
				t.Errorf("%s mounts a token it has no use for", s.Name)
			}
			if minimum := meta.Annotations["autoscaling.knative.dev/min-scale"]; minimum != "0" {
				t.Errorf("%s: min-scale %s: what is idle is to cost nothing", s.Name, minimum)
			}
			if drain, err := time.ParseDuration(manifest.Env(s, "ONDA_DRAIN")); err != nil || spec.TimeoutSeconds == nil {
				t.Errorf("%s: ONDA_DRAIN %v, timeoutSeconds %v", s.Name, err, spec.TimeoutSeconds)
			} else if most := drainAtMost(*spec.TimeoutSeconds); drain <= 0 || drain > most {
				t.Errorf("%s: ONDA_DRAIN is %s, and with timeoutSeconds %d it is killed %s after SIGTERM at the latest", s.Name, drain, *spec.TimeoutSeconds, most)
			}
			c := container.SecurityContext
			if c == nil || c.AllowPrivilegeEscalation == nil || *c.AllowPrivilegeEscalation || c.RunAsNonRoot == nil || !*c.RunAsNonRoot ||
				c.ReadOnlyRootFilesystem == nil || !*c.ReadOnlyRootFilesystem || c.Capabilities == nil || len(c.Capabilities.Drop) != 1 ||
				c.Capabilities.Drop[0] != "ALL" || c.SeccompProfile == nil || c.SeccompProfile.Type != "RuntimeDefault" {
				t.Errorf("%s: security context %+v", s.Name, c)
			}
			for path, probe := range map[string]*corev1.Probe{"/health/readiness": container.ReadinessProbe, "/health/liveness": container.LivenessProbe} {
				if probe == nil || probe.HTTPGet == nil || probe.HTTPGet.Path != path {
					t.Errorf("%s has no probe that asks %s", s.Name, path)
				}
			}
			r := container.Resources
			if r.Requests.Cpu().IsZero() || r.Requests.Memory().IsZero() || r.Limits.Memory().IsZero() || !r.Limits.Cpu().IsZero() {
				t.Errorf("%s: resources %+v", s.Name, r)
			}
		}
	}
	for _, name := range []string{"send", "send-api", "send-api-events", "track", "track-events", "segment", "render-form", "campaign", "schedule", "bounce"} {
		if !seen[name] {
			t.Errorf("there is no service %s", name)
		}
	}
	if len(seen) != 10 {
		t.Errorf("%d services", len(seen))
	}
}

// drainAtMost is how long requests may go on after SIGTERM. The pod's grace period is timeoutSeconds. SIGTERM comes after the preStop hook that Knative adds, which
// ends when its sidecar has seen no request for 30 s, or with the period; the kubelet leaves 2 s even then. To close takes the runtime up to 3 s more (internal/fn).
func drainAtMost(timeoutSeconds int64) time.Duration {
	const quiet, closing = 30, 3
	return time.Duration(max(timeoutSeconds-quiet-closing, 1)) * time.Second
}

// TestMainsAreAlike keeps logic out of main packages, which nobody can import.
func TestMainsAreAlike(t *testing.T) {
	t.Parallel()
	for _, function := range functionNames(t) {
		text, err := os.ReadFile(filepath.Join(function, "main.go"))
		if err != nil {
			t.Fatal(err)
		}
		pkg := strings.ReplaceAll(function, "-", "")
		_, rest, _ := strings.Cut(string(text), "\n")
		want := "package main\n\nimport (\n\t\"github.com/onda-run/onda/internal/fn\"\n\t\"github.com/onda-run/onda/internal/" + pkg +
			"\"\n)\n\nfunc main() { fn.Main(\"" + function + "\", " + pkg + ".Build) }\n"
		if pkg < "fn" { // imports are sorted
			want = strings.Replace(want, "\t\"github.com/onda-run/onda/internal/fn\"\n\t\"github.com/onda-run/onda/internal/"+pkg+"\"\n",
				"\t\"github.com/onda-run/onda/internal/"+pkg+"\"\n\t\"github.com/onda-run/onda/internal/fn\"\n", 1)
		}
		if rest != want {
			t.Errorf("%s/main.go is not the same few lines as the others", function)
		}
	}
}
