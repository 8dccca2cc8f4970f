package functions_test

import (
	"flag"
	"fmt"
	"go/ast"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"

	"github.com/onda-run/onda/internal/event"
	"github.com/onda-run/onda/internal/manifest"
)

var update = flag.Bool("update", false, "write the generated part of the READMEs anew")

// generatedFrom is where the generated part of a README begins; what stands before it is written by hand.
const generatedFrom = "## Consumes\n"

// TestREADMEs holds each function's README to the catalogue, the triggers, the patterns of its HTTP handler and its configuration. With -update it
// writes that part.
func TestREADMEs(t *testing.T) {
	t.Parallel()
	for _, function := range functionNames(t) {
		t.Run(function, func(t *testing.T) {
			t.Parallel()
			name := filepath.Join(function, "README.md")
			text, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			intro, got, _ := strings.Cut(string(text), generatedFrom)
			got = generatedFrom + got
			if !strings.HasPrefix(intro, "# "+function+"\n\n") || len(intro) < 200 {
				t.Errorf("%s does not say what %s does, and how", name, function)
			}
			want := generate(t, function)
			if *update {
				if err := os.WriteFile(name, []byte(intro+want), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%s differs from the code (-want +got); write it with go test ./functions -run TestREADMEs -update\n%s", name, diff)
			}
		})
	}
}

func generate(t *testing.T, function string) string {
	t.Helper()
	var b strings.Builder
	dir := filepath.Join("..", "internal", strings.ReplaceAll(function, "-", ""))
	b.WriteString(generatedFrom + "\n")
	consumes(t, &b, function)
	b.WriteString("\n## Emits\n\n")
	emits(&b, function)
	b.WriteString("\n## HTTP\n\n")
	patterns := routes(t, dir)
	for _, r := range patterns {
		fmt.Fprintf(&b, "- `%s`\n", r)
	}
	if len(patterns) == 0 {
		b.WriteString("Nothing but the probes.\n")
	}
	b.WriteString("\n## Environment\n\n| variable | default | meaning |\n|---|---|---|\n")
	for _, v := range variables(t, dir) {
		fallback := "none"
		switch {
		case v.required:
			fallback = "**required**"
		case v.fallback != "":
			fallback = "`" + v.fallback + "`"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", v.name, fallback, strings.ReplaceAll(v.doc, "|", `\|`))
	}
	b.WriteString("\nAn empty value counts as none. A missing or malformed one ends the process with a line that names it. The OpenTelemetry exporters read the\nrest of `OTEL_*` themselves.\n")
	b.WriteString("\n## Answers\n\n")
	answers(t, &b, function, len(patterns) > 0)
	return b.String()
}

// variables are those of a function's own Config and of the runtime, each once.
func variables(t *testing.T, dir string) []variable {
	t.Helper()
	var all []variable
	for _, v := range append(environment(t, dir, "Config"), environment(t, filepath.Join("..", "internal", "fn"), "Config")...) {
		i := slices.IndexFunc(all, func(o variable) bool { return o.name == v.name })
		if i < 0 {
			all = append(all, v)
			continue
		}
		if all[i].fallback != v.fallback || all[i].required != v.required {
			t.Errorf("%s is read twice, with different defaults", v.name)
		}
		all[i].doc = v.doc
	}
	return all
}

// trigger is what a README needs of a Trigger.
type trigger struct {
	Metadata struct{ Name string }
	Spec     struct {
		Filters    []struct{ Exact map[string]string }
		Subscriber struct{ Ref struct{ Name string } }
	}
}

// triggersOf are the triggers whose subscriber is one of a function's services.
func triggersOf(t *testing.T, function string) []trigger {
	t.Helper()
	var all []trigger
	for _, s := range services(t, function) {
		text, err := os.ReadFile(filepath.Join("..", "eventing", "triggers", s.Name+".yaml"))
		if os.IsNotExist(err) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		for body := range strings.SplitSeq(string(text), "\n---\n") {
			var tr trigger
			if err := yaml.Unmarshal([]byte(body), &tr); err != nil {
				t.Fatal(err)
			}
			all = append(all, tr)
		}
	}
	return all
}

func consumes(t *testing.T, b *strings.Builder, function string) {
	t.Helper()
	var rows []string
	for _, tr := range triggersOf(t, function) {
		for _, f := range tr.Spec.Filters {
			for attribute, value := range f.Exact {
				what := "`" + value + "`"
				if attribute == event.ExtStream {
					what = "every fact (`" + attribute + ": " + value + "`): " + shortTypes(func(e event.Entry) bool { return e.Stream == value })
				}
				rows = append(rows, fmt.Sprintf("| %s | trigger `%s` to `%s` |", what, tr.Metadata.Name, tr.Spec.Subscriber.Ref.Name))
			}
		}
	}
	for _, e := range event.Catalogue() {
		if e.Direct && slices.Contains(e.Consumers, function) {
			rows = append(rows, "| `"+e.Type+"` | posted straight by "+strings.Join(e.Producers, ", ")+" |")
		}
	}
	switch function {
	case "schedule":
		rows = append(rows, "| `dev.knative.sources.ping` | PingSource `tick` |")
	case "campaign":
		rows = append(rows, "| dead letters of any type | the broker, to `/dead-letters` |")
	}
	if len(rows) == 0 {
		b.WriteString("No events.\n")
		return
	}
	b.WriteString("| event | how it comes |\n|---|---|\n" + strings.Join(rows, "\n") + "\n")
}

func shortTypes(which func(event.Entry) bool) string {
	var all []string
	for _, e := range event.Catalogue() {
		if which(e) {
			all = append(all, "`"+strings.TrimSuffix(strings.TrimPrefix(e.Type, "onda."), ".v1")+"`")
		}
	}
	return strings.Join(all, " ")
}

func emits(b *strings.Builder, function string) {
	none := true
	for _, e := range event.Catalogue() {
		if !slices.Contains(e.Producers, function) {
			continue
		}
		if none {
			b.WriteString("| event | meaning |\n|---|---|\n")
			none = false
		}
		fmt.Fprintf(b, "| `%s` | %s |\n", e.Type, e.Description)
	}
	if none {
		b.WriteString("No events.\n")
	}
}

func answers(t *testing.T, b *strings.Builder, function string, overHTTP bool) {
	t.Helper()
	takesEvents := false
	for _, s := range services(t, function) {
		takesEvents = takesEvents || manifest.Env(s, "ONDA_SERVE") != "http"
		if manifest.Env(s, "ONDA_SERVE") == "http" {
			fmt.Fprintf(b, "`%s` is public: it answers 404 to CloudEvents.\n\n", s.Name)
		}
	}
	if takesEvents {
		b.WriteString("| to an event | when | what the sender does |\n|---|---|---|\n" +
			"| 202, empty | the work is committed, or another holder is at it | nothing |\n" +
			"| 400 | it can never succeed: broken, too large (64 KiB), of an unknown or another tenant | gives up; kept in Postgres where the tenant is known |\n" +
			"| 415 | it is no CloudEvent | gives up |\n" +
			"| 429, Retry-After | there is no room for it now | tries again |\n" +
			"| 503 | Postgres or what else it needs is away, or the function is ending | tries again |\n" +
			"| 500 | a defect; the log has the reason | tries again |\n")
	}
	if overHTTP {
		if takesEvents {
			b.WriteString("\n")
		}
		b.WriteString("Over HTTP, programs get errors as problem details (RFC 9457) and people get a page, with the same statuses.\n")
	}
}

// TestEmittedTypesAreInTheCatalogue finds the payloads that a function's package makes: the catalogue must name it as their producer.
func TestEmittedTypesAreInTheCatalogue(t *testing.T) {
	t.Parallel()
	entries := map[string]event.Entry{}
	for _, e := range event.Catalogue() {
		entries[e.GoType.Name()] = e
	}
	for _, function := range functionNames(t) {
		for name, f := range files(t, filepath.Join("..", "internal", strings.ReplaceAll(function, "-", ""))) {
			ast.Inspect(f, func(n ast.Node) bool {
				lit, ok := n.(*ast.CompositeLit)
				if !ok {
					return true
				}
				sel, ok := lit.Type.(*ast.SelectorExpr)
				if !ok {
					return true
				}
				pkg, ok := sel.X.(*ast.Ident)
				if e, known := entries[sel.Sel.Name]; ok && pkg.Name == "event" && known && !slices.Contains(e.Producers, function) {
					t.Errorf("%s/%s makes %s, of which the catalogue says it is made by %q", function, name, e.Type, e.Producers)
				}
				return true
			})
		}
	}
}
