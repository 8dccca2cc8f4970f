package functions_test

import (
	"encoding/json"
	"errors"
	"io"
	"maps"
	"os/exec"
	"path"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/onda-run/onda"

// goPackage is what go list tells of a package.
type goPackage struct {
	ImportPath string
	Dir        string
	Imports    []string
	Deps       []string
}

// list runs go list; the packages need not compile for it.
func list(t *testing.T, args ...string) map[string]goPackage {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", append([]string{"list", "-e", "-json=ImportPath,Dir,Imports,Deps"}, args...)...)
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			t.Fatalf("go list: %s", exit.Stderr)
		}
		t.Fatal(err)
	}
	all := map[string]goPackage{}
	d := json.NewDecoder(strings.NewReader(string(out)))
	for {
		var p goPackage
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all[p.ImportPath] = p
	}
}

func mains(t *testing.T) []string {
	t.Helper()
	var all []string
	for _, f := range functionNames(t) {
		all = append(all, module+"/functions/"+f)
	}
	return all
}

// TestFunctionsLinkLittle keeps out of the functions what makes them slow to start: everything of Kubernetes and of Knative's controllers, and
// what only tests, tools and the command line need.
func TestFunctionsLinkLittle(t *testing.T) {
	t.Parallel()
	denied := []string{
		"k8s.io/", "sigs.k8s.io/", "knative.dev/eventing", "knative.dev/serving", "knative.dev/pkg/injection", "knative.dev/pkg/apis",
		"testing", "github.com/santhosh-tekuri/jsonschema", "github.com/alecthomas/kong", "github.com/chromedp/", "pgregory.net/rapid", "gopkg.in/segmentio/",
		module + "/internal/localbroker", module + "/internal/manifest", module + "/internal/dev", module + "/internal/pgtest", module + "/internal/smtptest", module + "/internal/dnstest", module + "/internal/domaincheck", module + "/internal/mailbox",
		module + "/internal/apply", module + "/cmd",
		// Emails are put together at apply: what that takes made a quarter of the start of send, track and render-form.
		module + "/internal/emailsource", "github.com/yuin/goldmark", "github.com/k3a/html2text", "golang.org/x/net/html",
	}
	for name, p := range list(t, mains(t)...) {
		if len(p.Deps) == 0 {
			t.Errorf("%s has no dependencies", name)
		}
		for _, dep := range p.Deps {
			for _, d := range denied {
				if dep == d || strings.HasPrefix(dep, strings.TrimSuffix(d, "/")+"/") {
					t.Errorf("%s links %s", path.Base(name), dep)
				}
			}
		}
	}
}

// TestArrows enforces who may import whom: the packages of functions never import each other, and HTTP stays in their http.go.
func TestArrows(t *testing.T) {
	t.Parallel()
	var domains []string
	for _, f := range functionNames(t) {
		domains = append(domains, module+"/internal/"+strings.ReplaceAll(f, "-", ""))
	}
	packages := list(t, append([]string{"-test=false"}, domains...)...)
	for _, d := range domains {
		p := packages[d]
		for _, i := range p.Imports {
			if i != d && slices.Contains(domains, i) {
				t.Errorf("%s imports %s: functions do not know each other, they ring", p.ImportPath, i)
			}
			for _, tool := range []string{"pgtest", "smtptest", "localbroker", "dev", "event/eventtest", "apply", "emailsource"} {
				if i == module+"/internal/"+tool {
					t.Errorf("%s imports %s", p.ImportPath, i)
				}
			}
		}
		for _, dep := range p.Deps {
			if slices.Contains(domains, dep) && dep != d {
				t.Errorf("%s reaches %s", p.ImportPath, dep)
			}
		}
		for file, imports := range importsOf(t, p.Dir) {
			if file != "http.go" && slices.Contains(imports, "net/http") {
				t.Errorf("%s/%s imports net/http: what a function does with HTTP is in its http.go", path.Base(d), file)
			}
		}
	}
	for name, p := range list(t, mains(t)...) {
		var ours []string
		for _, i := range p.Imports {
			if strings.HasPrefix(i, module) {
				ours = append(ours, i)
			}
		}
		want := []string{module + "/internal/fn", module + "/internal/" + strings.ReplaceAll(path.Base(name), "-", "")}
		slices.Sort(want)
		if !slices.Equal(ours, want) {
			t.Errorf("%s imports %q, want %q", name, ours, want)
		}
	}
}

// TestKnativeEventingHasTwoImporters keeps Knative's eventing packages, and with them client-go, in two places: what routes in onda dev, and what tests read
// manifests with. The command line links the first alone, and kustomize not at all.
func TestKnativeEventingHasTwoImporters(t *testing.T) {
	t.Parallel()
	found := map[string]bool{}
	packages := list(t, "-test=false", module+"/internal/...", module+"/cmd/...")
	for name, p := range packages {
		for _, i := range p.Imports {
			if strings.HasPrefix(i, "knative.dev/eventing") {
				found[name] = true
			}
		}
	}
	if got := slices.Sorted(maps.Keys(found)); !slices.Equal(got, []string{module + "/internal/localbroker", module + "/internal/manifest"}) {
		t.Errorf("knative.dev/eventing is imported by %q", got)
	}
	onda := packages[module+"/cmd/onda"].Deps
	if !slices.Contains(onda, module+"/internal/localbroker") {
		t.Error("onda dev routes by no broker")
	}
	for _, dep := range onda {
		if dep == module+"/internal/manifest" || strings.HasPrefix(dep, "sigs.k8s.io/kustomize/") || strings.HasPrefix(dep, "knative.dev/serving/") {
			t.Errorf("the command line links %s", dep)
		}
	}
}
