// Package argocd_test checks what Argo CD is given without Argo CD: manifests against the schemas of Argo CD 3.5.7's own custom resource definitions, with
// unknown fields refused; the Applications that come out of this repository's files, by a simulation of the generators (generate_test.go); what each of them
// deploys against its project and the order of waves; and the health checks in the Lua interpreter that Argo CD uses (health_test.go).
package argocd_test

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/santhosh-tekuri/jsonschema/v6"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"
)

var update = flag.Bool("update", false, "write the golden file anew")

const repoURL = "https://github.com/onda-run/onda.git"

// document is one manifest of this directory.
type document struct{ file, kind, body string }

func documents(t *testing.T, files tree) []document {
	t.Helper()
	var all []document
	for _, file := range slices.Sorted(maps.Keys(files)) {
		if path.Dir(file) != "config/argocd" || path.Base(file) == "kustomization.yaml" {
			continue
		}
		for body := range strings.SplitSeq(files[file], "\n---\n") {
			var d metav1.TypeMeta
			if err := yaml.Unmarshal([]byte(body), &d); err != nil {
				t.Fatalf("%s: %v", file, err)
			}
			all = append(all, document{file, d.Kind, body})
		}
	}
	return all
}

// schema compiles the schema of a kind, closed: an object has no members but those that it lists.
func schema(t *testing.T, kind string) *jsonschema.Schema {
	t.Helper()
	text, err := os.ReadFile("testdata/schemas/" + strings.ToLower(kind) + ".yaml")
	if err != nil {
		t.Fatal(err)
	}
	var s any
	if err := yaml.Unmarshal(text, &s); err != nil {
		t.Fatal(err)
	}
	closeObjects(s)
	c := jsonschema.NewCompiler()
	if err := c.AddResource("urn:"+kind, s); err != nil {
		t.Fatal(err)
	}
	compiled, err := c.Compile("urn:" + kind)
	if err != nil {
		t.Fatal(err)
	}
	return compiled
}

func closeObjects(s any) {
	switch s := s.(type) {
	case map[string]any:
		_, lists := s["properties"].(map[string]any)
		_, open := s["additionalProperties"]
		if lists && !open && s["type"] == "object" && s["x-kubernetes-preserve-unknown-fields"] != true {
			s["additionalProperties"] = false
		}
		for _, v := range s {
			closeObjects(v)
		}
	case []any:
		for _, v := range s {
			closeObjects(v)
		}
	}
}

func validate(s *jsonschema.Schema, body string) error {
	var value any
	if err := yaml.UnmarshalStrict([]byte(body), &value); err != nil {
		return err
	}
	return s.Validate(value)
}

func TestManifestsFollowArgosSchemas(t *testing.T) {
	t.Parallel()
	docs := documents(t, repository(t))
	var kinds []string
	for _, d := range docs {
		kinds = append(kinds, d.kind)
		if err := validate(schema(t, d.kind), d.body); err != nil {
			t.Errorf("%s: %v", d.file, err)
		}
		// A slip in each of its lines' names is found, so the schema does look at it.
		if misspelt := strings.Replace(d.body, "\nspec:\n", "\nspec:\n  goTemplates: true\n", 1); validate(schema(t, d.kind), misspelt) == nil {
			t.Errorf("%s: an unknown field is taken", d.file)
		}
	}
	slices.Sort(kinds)
	if diff := cmp.Diff([]string{"AppProject", "AppProject", "ApplicationSet", "ApplicationSet"}, kinds); diff != "" {
		t.Error(diff)
	}
}

// TestSchemasTell shows what the schemas refuse deep inside.
func TestSchemasTell(t *testing.T) {
	t.Parallel()
	pool := repository(t)["config/argocd/pool.yaml"]
	for name, change := range map[string][2]string{
		"a field of a generator": {"\n              files:", "\n              file:"},
		"a field of a template":  {"targetRevision:", "revision:"},
		"a field of a step":      {"maxUpdate: 25%", "maxUpdates: 25%"},
		"a type":                 {"prune: true", "prune: please"},
		"a missing field":        {"      project: onda\n", ""},
	} {
		changed := strings.Replace(pool, change[0], change[1], 1)
		if changed == pool {
			t.Fatalf("%s: nothing was changed", name)
		}
		if validate(schema(t, "ApplicationSet"), changed) == nil {
			t.Errorf("%s: was taken", name)
		}
	}
}

// example is a dedicated tenant of a cell that Argo CD deploys: corvo's directory under another name, region and cell. The repository's own tenants are the
// local region's.
func example(t *testing.T, files tree) tree {
	t.Helper()
	move := strings.NewReplacer("corvo", "gala", "region: local", "region: eu-west", "cell: local-1", "cell: eu-west-1")
	added := tree{}
	for name, text := range files {
		if rest, ok := strings.CutPrefix(name, "config/tenants/corvo/"); ok {
			added["config/tenants/gala/"+rest] = move.Replace(text)
		}
	}
	if !strings.Contains(added["config/tenants/gala/tenant.yaml"], "placement: dedicated") {
		t.Fatal("corvo is no dedicated tenant any more")
	}
	return files.with(added)
}

// made are all Applications of a tree, by name.
func made(t *testing.T, files tree) map[string]params {
	t.Helper()
	all := map[string]params{}
	for _, set := range applicationSets(t, files) {
		applications, err := set.applications(files)
		if err != nil {
			t.Fatalf("%s: %v", set.Metadata.Name, err)
		}
		for _, a := range applications {
			name := a["metadata"].(params)["name"].(string)
			if all[name] != nil {
				t.Errorf("two Applications are called %s", name)
			}
			all[name] = a
		}
	}
	return all
}

func decode(t *testing.T, from params) application {
	t.Helper()
	text, err := yaml.Marshal(from)
	if err != nil {
		t.Fatal(err)
	}
	var a application
	if err := yaml.Unmarshal(text, &a); err != nil {
		t.Fatal(err)
	}
	return a
}

// TestApplications compares what comes out of the repository, and of it with one more tenant, with testdata/applications.yaml.
func TestApplications(t *testing.T) {
	t.Parallel()
	files := repository(t)
	ours, all := made(t, files), made(t, example(t, files))
	for name := range ours {
		delete(all, name)
	}
	if diff := cmp.Diff([]string{"eu-west-1-tenant-gala"}, slices.Collect(maps.Keys(all))); diff != "" {
		t.Errorf("what a dedicated tenant adds\n%s", diff)
	}
	maps.Copy(all, ours)
	var b strings.Builder
	b.WriteString("# The Applications of this repository's cells and tenants, and of a dedicated tenant gala that the test adds. Written by go test ./config/argocd -update.\n")
	for _, name := range slices.Sorted(maps.Keys(all)) {
		text, err := yaml.Marshal(all[name])
		if err != nil {
			t.Fatal(err)
		}
		if err := validate(schema(t, "Application"), string(text)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		fmt.Fprintf(&b, "---\n%s", text)
	}
	const golden = "testdata/applications.yaml"
	if *update {
		if err := os.WriteFile(golden, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), b.String()); diff != "" {
		t.Errorf("%s (-golden +made)\n%s", golden, diff)
	}
}

// TestWhoIsDeployed changes the files and looks at the names that come out.
func TestWhoIsDeployed(t *testing.T) {
	t.Parallel()
	files := example(t, repository(t))
	const tenant, cell = "config/tenants/gala/tenant.yaml", "config/regions/eu-west/cells/eu-west-1.yaml"
	edit := func(name, from, to string) tree {
		t.Helper()
		text := strings.ReplaceAll(files[name], from, to)
		if text == files[name] {
			t.Fatalf("%s has no %q", name, from)
		}
		return files.with(tree{name: text})
	}
	pool := []string{"eu-west-1-next", "eu-west-1-stable", "eu-west-1-system"}
	both := append([]string{}, append(pool, "eu-west-1-tenant-gala")...)
	for name, c := range map[string]struct {
		files tree
		want  []string
	}{
		"as it is":               {files, both},
		"a pooled tenant":        {edit(tenant, "placement: dedicated", "placement: pooled"), pool},
		"a sandbox":              {edit(tenant, "placement: dedicated", "placement: dedicated\n  functions: [send]"), pool},
		"a cell that is nowhere": {edit(tenant, "eu-west-1", "eu-west-9"), pool},
		"a tenant that is gone":  {files.with(tree{tenant: ""}), pool},
		"a second cell": {
			files.with(tree{"config/regions/eu-west/cells/eu-west-2.yaml": strings.ReplaceAll(files[cell], "eu-west-1", "eu-west-2")}),
			append([]string{"eu-west-2-next", "eu-west-2-stable", "eu-west-2-system"}, both...),
		},
		"a cell without a server": {edit(cell, "server:", "# server:"), nil},
	} {
		got := slices.Sorted(maps.Keys(made(t, c.files)))
		slices.Sort(c.want)
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s (-want +made)\n%s", name, diff)
		}
	}
	if a := decode(t, made(t, edit(tenant, "ring: stable", "ring: stable\n  revision: 0a1b2c3"))["eu-west-1-tenant-gala"]); a.Spec.Source.TargetRevision != "0a1b2c3" {
		t.Errorf("a tenant's own revision: %+v", a.Spec.Source)
	}
	// Errors, instead of Applications with holes.
	for name, broken := range map[string]tree{
		"a tenant without a ring":      edit(tenant, "ring:", "rings:"),
		"a ring that the cell has not": edit(tenant, "ring: stable", "ring: canary"),
		"a cell without a ring":        edit(cell, "  stable:", "  steady:"),
		"a ring without a revision":    edit(cell, "revision: v0.1.0", "tag: v0.1.0"),
		"a cell without its name":      edit(cell, "\ncell:", "\nname:"),
		"a template with a slip":       edit("config/argocd/pool.yaml", "{{ .server }}", "{{ .servers }}"),
		"a path with a slip":           edit("config/argocd/dedicated.yaml", "cells/{{ .spec.cell }}", "cells/{{ .spec.cells }}"),
	} {
		var err error
		for _, set := range applicationSets(t, broken) {
			if _, e := set.applications(broken); e != nil {
				err = e
			}
		}
		if err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

type project struct {
	Metadata metav1.ObjectMeta `json:"metadata"`
	Spec     struct {
		Description  string   `json:"description"`
		SourceRepos  []string `json:"sourceRepos"`
		Destinations []struct {
			Server    string `json:"server"`
			Namespace string `json:"namespace"`
		} `json:"destinations"`
		ClusterResourceWhitelist   []allowed `json:"clusterResourceWhitelist"`
		NamespaceResourceWhitelist []allowed `json:"namespaceResourceWhitelist"`
	} `json:"spec"`
}

type allowed struct {
	Group string `json:"group"`
	Kind  string `json:"kind"`
	Name  string `json:"name,omitempty"`
}

func projects(t *testing.T, files tree) map[string]project {
	t.Helper()
	all := map[string]project{}
	for _, d := range documents(t, files) {
		if d.kind == "AppProject" {
			var p project
			if err := yaml.Unmarshal([]byte(d.body), &p); err != nil {
				t.Fatalf("%s: %v", d.file, err)
			}
			all[p.Metadata.Name] = p
		}
	}
	return all
}

// matches is how Argo CD reads a pattern of a project: a star for any run of characters, none of ours has a slash in its place.
func matches(pattern, text string) bool {
	ok, err := path.Match(pattern, text)
	return err == nil && ok
}

// wave is the sync wave of a kind; what is not named is in wave 0.
func wave(group, kind, name string) int {
	switch group + " " + kind {
	case " Namespace":
		return -1
	case "batch Job":
		return map[string]int{"migrate": 1, "tenants": 2}[name]
	case "serving.knative.dev Service":
		return 3
	case "eventing.knative.dev Broker":
		return 4
	case "sources.knative.dev SinkBinding":
		return 5
	case "eventing.knative.dev Trigger", "eventing.knative.dev EventType", "eventing.knative.dev EventPolicy", "serving.knative.dev DomainMapping":
		return 6
	case "sources.knative.dev PingSource":
		return 7
	}
	return 0
}

// TestWhatApplicationsDeploy renders every source of every Application, and holds each object to the Application's project, namespace and wave.
func TestWhatApplicationsDeploy(t *testing.T) {
	t.Parallel()
	files := example(t, repository(t))
	all, seen := projects(t, files), map[string]bool{}
	for name, from := range made(t, files) {
		a := decode(t, from)
		p, ok := all[a.Spec.Project]
		if !ok {
			t.Errorf("%s: there is no project %s", name, a.Spec.Project)
		}
		// Settings have a hash in their names, and are in an earlier wave than what uses them: the old ones must outlive the old revision's last start.
		if !slices.Contains(a.Spec.SyncPolicy.SyncOptions, "PruneLast=true") {
			t.Errorf("%s: deletes the settings of what still serves: %v", name, a.Spec.SyncPolicy.SyncOptions)
		}
		objects := map[string]bool{}
		for _, s := range a.sources() {
			if s.RepoURL != repoURL || !slices.Equal(p.Spec.SourceRepos, []string{repoURL}) {
				t.Errorf("%s: is of %s, its project of %s", name, s.RepoURL, p.Spec.SourceRepos)
			}
			built, err := s.build(files)
			if err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			for _, r := range built.Resources() {
				id := r.CurId()
				at := fmt.Sprintf("%s: %s %s", name, id.Kind, id.Name)
				if objects[id.Kind+" "+id.Name] { // no two groups here have a name in common
					t.Errorf("%s comes from two sources", at)
				}
				objects[id.Kind+" "+id.Name], seen[id.Group+" "+id.Kind] = true, true
				if id.IsClusterScoped() {
					if !slices.ContainsFunc(p.Spec.ClusterResourceWhitelist, func(w allowed) bool {
						return w.Group == id.Group && w.Kind == id.Kind && w.Name != "" && matches(w.Name, id.Name)
					}) || id.Name != a.Spec.Destination.Namespace {
						t.Errorf("%s: is not the project's", at)
					}
				} else {
					namespace := r.GetNamespace()
					if namespace == "" {
						namespace = a.Spec.Destination.Namespace // as Argo CD does
					}
					if namespace != a.Spec.Destination.Namespace {
						t.Errorf("%s: is in namespace %s", at, namespace)
					}
					if !slices.Contains(p.Spec.NamespaceResourceWhitelist, allowed{Group: id.Group, Kind: id.Kind}) {
						t.Errorf("%s: its kind is not the project's", at)
					}
				}
				annotations := r.GetAnnotations()
				got, _ := strconv.Atoi(annotations["argocd.argoproj.io/sync-wave"])
				if want := wave(id.Group, id.Kind, id.Name); got != want {
					t.Errorf("%s: wave %d, want %d", at, got, want)
				}
				switch id.Kind {
				case "Namespace":
					if annotations["argocd.argoproj.io/sync-options"] != "Prune=confirm,Delete=confirm" {
						t.Errorf("%s: goes without a word, and its Secrets with it", at)
					}
				case "Service":
					m, err := r.Map()
					if err != nil {
						t.Fatal(err)
					}
					got, _, _ := unstructured.NestedStringMap(m, "spec", "template", "metadata", "annotations")
					if got["autoscaling.knative.dev/initial-scale"] != "1" || got["serving.knative.dev/progress-deadline"] != "180s" {
						t.Errorf("%s: is Ready before it ever ran, or never given up: %v", at, got)
					}
				case "Job": // which cannot be changed
					if annotations["argocd.argoproj.io/hook"] != "Sync" || annotations["argocd.argoproj.io/hook-delete-policy"] != "BeforeHookCreation" {
						t.Errorf("%s: %v", at, annotations)
					}
				}
			}
			text, err := built.AsYaml()
			if err != nil {
				t.Fatal(err)
			}
			if strings.Contains(string(text), "ko://") {
				t.Errorf("%s: an image that nobody built", name)
			}
			if strings.HasSuffix(s.Path, "/system") && !strings.Contains(string(text), "\n  ONDA_CELL: "+a.Metadata.Labels["onda.run/cell"]+"\n") {
				t.Errorf("%s: its Job would make another cell's tenants", name)
			}
		}
		if !slices.ContainsFunc(p.Spec.Destinations, func(d struct {
			Server    string `json:"server"`
			Namespace string `json:"namespace"`
		},
		) bool {
			return d.Server == a.Spec.Destination.Server && matches(d.Namespace, a.Spec.Destination.Namespace)
		}) {
			t.Errorf("%s: project %s has no %+v", name, a.Spec.Project, a.Spec.Destination)
		}
		if want := a.Spec.Destination.Namespace == "onda-system"; objects["ConfigMap tenants"] != want {
			t.Errorf("%s: has the tenants' files: %t", name, !want)
		}
	}
	for _, kind := range []string{" Namespace", "batch Job", "serving.knative.dev Service", "eventing.knative.dev Broker", "eventing.knative.dev Trigger", "sources.knative.dev PingSource"} {
		if !seen[kind] {
			t.Errorf("no Application has a %s", kind)
		}
	}
}

// TestWavesOfComponents adds what no region here has: identities, and a broker's component that writes the Broker's and the Triggers' annotations anew.
func TestWavesOfComponents(t *testing.T) {
	t.Parallel()
	s := source{Path: "config/regions/eu-west/stable"}
	s.Kustomize.Components = []string{"../../../components/event-policy", "../../../components/broker-rabbitmq", "../../../argocd/waves"}
	built, err := s.build(repository(t))
	if err != nil {
		t.Fatal(err)
	}
	waves := map[string]string{}
	for _, r := range built.Resources() {
		id := r.CurId()
		got := r.GetAnnotations()["argocd.argoproj.io/sync-wave"]
		if before, ok := waves[id.Kind]; ok && before != got {
			t.Errorf("%s %s: wave %q, others are in %q", id.Kind, id.Name, got, before)
		}
		waves[id.Kind] = got
	}
	want := map[string]string{
		"Namespace": "-1", "ConfigMap": "", "NetworkPolicy": "", "CronJob": "", "RabbitmqBrokerConfig": "", "Service": "3", "Broker": "4", "SinkBinding": "5",
		"Trigger": "6", "EventType": "6", "EventPolicy": "6", "DomainMapping": "6",
	}
	if diff := cmp.Diff(want, waves); diff != "" {
		t.Error(diff)
	}
}

// TestProjectsAreNarrow holds the destinations to the cells' servers, each with its namespaces, and finds a star where none should be.
func TestProjectsAreNarrow(t *testing.T) {
	t.Parallel()
	files := repository(t)
	want := map[string][]string{}
	for _, c := range cells(t, files) {
		if c.Server != "" {
			want["onda"] = append(want["onda"], c.Server+" onda", c.Server+" onda-next", c.Server+" onda-system")
			want["onda-tenants"] = append(want["onda-tenants"], c.Server+" tenant-*")
		}
	}
	got := map[string][]string{}
	for name, p := range projects(t, files) {
		for _, d := range p.Spec.Destinations {
			got[name] = append(got[name], d.Server+" "+d.Namespace)
		}
		slices.Sort(got[name])
		slices.Sort(want[name])
		for _, w := range p.Spec.NamespaceResourceWhitelist {
			if strings.Contains(w.Group+w.Kind, "*") || w.Kind == "Secret" || strings.Contains(w.Group, "rbac") {
				t.Errorf("project %s allows %+v", name, w)
			}
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("destinations (-cells +projects)\n%s", diff)
	}
}

type cell struct {
	Region string `json:"region"`
	Cell   string `json:"cell"`
	Server string `json:"server,omitempty"`
	// Connections is checked by the tests of config/.
	Connections int `json:"connections"`
	Rings       map[string]struct {
		Revision string `json:"revision"`
	} `json:"rings,omitempty"`
}

// cells are the cells' files, by path, decoded strictly.
func cells(t *testing.T, files tree) map[string]cell {
	t.Helper()
	all := map[string]cell{}
	for name, text := range files {
		if !matches("config/regions/*/cells/*.yaml", name) {
			continue
		}
		var c cell
		if err := yaml.UnmarshalStrict([]byte(text), &c); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		all[name] = c
	}
	if len(all) < 2 {
		t.Fatalf("cells: %v", all)
	}
	return all
}

// TestCells holds each cell's file to its place, and its rings to their order: none is newer than system, which has the migrations.
func TestCells(t *testing.T) {
	t.Parallel()
	for name, c := range cells(t, repository(t)) {
		if want := "config/regions/" + c.Region + "/cells/" + c.Cell + ".yaml"; name != want {
			t.Errorf("%s would have to be %s", name, want)
		}
		if c.Server == "" {
			continue
		}
		if diff := cmp.Diff([]string{"next", "stable", "system"}, slices.Sorted(maps.Keys(c.Rings))); diff != "" {
			t.Errorf("%s: rings\n%s", name, diff)
		}
		for _, ring := range []string{"next", "stable"} {
			if newer(c.Rings[ring].Revision, c.Rings["system"].Revision) {
				t.Errorf("%s: %s is at %s, newer than system with its migrations at %s", name, ring, c.Rings[ring].Revision, c.Rings["system"].Revision)
			}
		}
	}
}

// newer compares two revisions as far as their names tell: main is newer than any release. A commit's hash tells nothing.
func newer(a, b string) bool {
	rank := func(revision string) (r [3]int, known bool) {
		if revision == "main" {
			return [3]int{1 << 30}, true
		}
		n, err := fmt.Sscanf(revision, "v%d.%d.%d", &r[0], &r[1], &r[2])
		return r, err == nil && n == 3
	}
	ra, known := rank(a)
	rb, knownToo := rank(b)
	return known && knownToo && slices.Compare(ra[:], rb[:]) > 0
}

func TestNewer(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		a, b string
		want bool
	}{
		{"main", "v0.1.0", true},
		{"v0.1.0", "main", false},
		{"v0.10.0", "v0.9.1", true},
		{"v0.9.1", "v0.9.1", false},
		{"main", "main", false},
		{"0a1b2c3", "v0.1.0", false},
	} {
		if got := newer(c.a, c.b); got != c.want {
			t.Errorf("%s newer than %s: %t", c.a, c.b, got)
		}
	}
}

// TestSteps finds each Application in exactly one step of its ApplicationSet, in the order system, next, stable: what is in none is never synced.
func TestSteps(t *testing.T) {
	t.Parallel()
	files := example(t, repository(t))
	for _, set := range applicationSets(t, files) {
		if set.Spec.Strategy.Type != "RollingSync" {
			t.Errorf("%s: strategy %s", set.Metadata.Name, set.Spec.Strategy.Type)
		}
		steps := map[string]int{}
		applications, err := set.applications(files)
		if err != nil || len(applications) == 0 {
			t.Fatal(set.Metadata.Name, len(applications), err)
		}
		for _, from := range applications {
			a := decode(t, from)
			var in []int
			for i, step := range set.Spec.Strategy.RollingSync.Steps {
				if selects(step.MatchExpressions, a.Metadata.Labels) {
					in = append(in, i)
				}
				if step.MaxUpdate == nil || step.MaxUpdate == "100%" {
					t.Errorf("%s: step %d takes all at once", set.Metadata.Name, i)
				}
			}
			if len(in) != 1 {
				t.Errorf("%s: is in steps %v", a.Metadata.Name, in)
				continue
			}
			steps[a.Metadata.Labels["onda.run/ring"]] = in[0]
		}
		want := map[string]int{"system": 0, "next": 1, "stable": 2}
		if set.Metadata.Name == "onda-dedicated" {
			want = map[string]int{"stable": 1}
		}
		if diff := cmp.Diff(want, steps); diff != "" {
			t.Errorf("%s: %s", set.Metadata.Name, diff)
		}
	}
}

// TestKustomizationIsComplete finds every manifest of this directory in what kubectl apply -k takes.
func TestKustomizationIsComplete(t *testing.T) {
	t.Parallel()
	files := repository(t)
	built, err := source{Path: "config/argocd"}.build(files)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := built.Size(), len(documents(t, files)); got != want {
		t.Errorf("%d objects of %d", got, want)
	}
}
