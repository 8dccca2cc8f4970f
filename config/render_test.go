// Package config_test checks the blueprint without a cluster: it renders every entry as kustomize does, reads what comes out as a cluster would (see
// internal/manifest), and looks at it as a whole: that what is named is there, that functions start with the settings they are given, that events get where the
// catalogue says, that pods may do little, and that Postgres has the connections for all of it.
package config_test

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sync/errgroup"
	servingv1beta1 "knative.dev/serving/pkg/apis/serving/v1beta1"
	"sigs.k8s.io/kustomize/kyaml/filesys"
	"sigs.k8s.io/yaml"

	"github.com/onda-run/onda/internal/manifest"
)

var update = flag.Bool("update", false, "write the golden files and the tables of README.md anew")

// entry is a directory that is applied as a whole. Directories are from the root of the repository.
type entry struct {
	dir string
	// namespace has all of it.
	namespace string
	// pool is the entry of the ring that serves the rest of a sandbox; empty for others.
	pool string
	// tenant is whose it is, where it is dedicated.
	tenant string
	// production is set for what is deployed to a cluster that a cell's file names.
	production bool
	// part is set for one function, or the routing alone, which are applied into a namespace that has the rest.
	part bool
}

func (e entry) String() string { return e.dir }

// golden is the file that has what the entry renders to.
func (e entry) golden() string {
	return "testdata/golden/" + strings.ReplaceAll(strings.TrimPrefix(e.dir, "config/"), "/", "-") + ".yaml"
}

// entries finds them all: a new region, tenant, function or combination is checked from its first day.
func entries(t *testing.T) []entry {
	t.Helper()
	tenants, production := readTenants(t), map[string]bool{}
	for _, c := range cells(t) {
		production[c.Region] = production[c.Region] || c.Server != ""
	}
	var all []entry
	for _, pattern := range []string{
		"functions/*", "eventing", "eventing/sources", "config/regions/*/*", "config/tenants", "config/tenants/*", "config/testdata/combinations/*",
	} {
		files, err := filepath.Glob(filepath.Join("..", pattern, "kustomization.yaml"))
		if err != nil || len(files) == 0 {
			t.Fatalf("%s: %q, %v", pattern, files, err)
		}
		for _, file := range files {
			var k struct {
				Kind      string `json:"kind"`
				Namespace string `json:"namespace"`
			}
			text, err := os.ReadFile(file)
			if err == nil {
				err = yaml.Unmarshal(text, &k)
			}
			if err != nil {
				t.Fatalf("%s: %v", file, err)
			}
			if k.Kind == "Component" {
				continue
			}
			dir := filepath.ToSlash(strings.TrimPrefix(filepath.Dir(file), "../"))
			e := entry{dir: dir, namespace: ringNamespace("stable")}
			switch name := path.Base(dir); {
			case dir == "eventing/sources" || dir == "functions/schedule":
				e.namespace, e.part = ringNamespace("system"), true
			case dir == "eventing" || strings.HasPrefix(dir, "functions/"):
				e.part = true
			case strings.HasPrefix(dir, "config/regions/"):
				e.namespace, e.production = ringNamespace(name), production[path.Base(path.Dir(dir))]
			case dir == "config/tenants":
				e.namespace = "" // whoever applies it says
			case strings.HasPrefix(dir, "config/tenants/"):
				e.namespace, e.tenant = "tenant-"+name, name
				if f := tenants[name]; f != nil && f.Sandbox() {
					e.pool = "config/regions/" + f.Spec.Region + "/" + f.Spec.Ring
				}
			default:
				e.namespace = k.Namespace
			}
			all = append(all, e)
		}
	}
	return all
}

// ringNamespace is the namespace of a ring of the pool.
func ringNamespace(ring string) string {
	if ring == "stable" {
		return "onda"
	}
	return "onda-" + ring
}

// rendering is what an entry renders to.
type rendering struct {
	entry
	objects []manifest.Object
	// text is all of it without the EventTypes, which are the same everywhere but for their namespace.
	text string
	// files are those that were read for it.
	files map[string]bool
}

// disk is the repository, with some of its files edited in memory.
type disk struct {
	filesys.FileSystem
	root  string
	edits map[string]func(string) string
	read  map[string]bool
}

// ReadFile reads a file and edits it.
func (d disk) ReadFile(name string) ([]byte, error) {
	text, err := d.FileSystem.ReadFile(name)
	if err != nil {
		return nil, err
	}
	if name, err = filepath.Rel(d.root, name); err != nil {
		return nil, err
	}
	name = filepath.ToSlash(name)
	d.read[name] = true
	if edit := d.edits[name]; edit != nil {
		text = []byte(edit(string(text)))
	}
	return text, nil
}

// render renders an entry, with edits of files by their names, and reads what comes out. With origins each object knows the file that it was written in, which
// takes kustomize half as long again; without, only the entry.
func render(e entry, edits map[string]func(string) string, origins bool) (rendering, error) {
	root, err := filepath.Abs("..")
	if err != nil {
		return rendering{}, err
	}
	return renderIn(root, e, edits, origins)
}

// renderIn renders an entry of the repository in root.
func renderIn(root string, e entry, edits map[string]func(string) string, origins bool) (rendering, error) {
	d := disk{filesys.MakeFsOnDisk(), root, map[string]func(string) string{}, map[string]bool{}}
	maps.Copy(d.edits, edits)
	if kustomization := e.dir + "/kustomization.yaml"; origins { // are only told where the outermost kustomization asks for them
		d.edits[kustomization] = func(text string) string {
			if edit := edits[kustomization]; edit != nil {
				text = edit(text)
			}
			return text + "\nbuildMetadata: [originAnnotations]\n"
		}
	}
	found, err := manifest.Render(d, filepath.Join(root, e.dir))
	if err != nil {
		return rendering{}, fmt.Errorf("%s: %w", e, err)
	}
	r := rendering{entry: e, files: d.read}
	var wrong []string
	eventTypes := 0
	for _, o := range found.Resources() {
		origin, err := o.GetOrigin()
		if err != nil {
			return rendering{}, fmt.Errorf("%s: %s: %w", e, o.CurId(), err)
		}
		file := e.dir + "/kustomization.yaml"
		if origin != nil {
			file = path.Join(e.dir, origin.Path+origin.ConfiguredIn) // generated objects have the latter
		}
		if err := o.SetOrigin(nil); err != nil {
			return rendering{}, fmt.Errorf("%s: %s: %w", e, o.CurId(), err)
		}
		text, err := o.AsYAML()
		if err != nil {
			return rendering{}, fmt.Errorf("%s: %s: %w", e, o.CurId(), err)
		}
		objects, err := manifest.Read(file, text)
		if err != nil {
			wrong = append(wrong, err.Error())
		}
		r.objects = append(r.objects, objects...)
		if o.GetKind() == "EventType" && e.dir != "eventing" {
			eventTypes++
			continue
		}
		if r.text != "" {
			r.text += "---\n"
		}
		r.text += string(text)
	}
	if eventTypes > 0 {
		r.text += fmt.Sprintf("# and %d EventTypes, as in eventing.yaml\n", eventTypes)
	}
	if len(wrong) > 0 {
		return r, fmt.Errorf("%s: %s", e, strings.Join(wrong, "\n"))
	}
	return r, nil
}

// TestBlueprint renders every entry once and looks at it from all sides.
func TestBlueprint(t *testing.T) {
	t.Parallel()
	found := entries(t)
	renderings := make([]rendering, len(found))
	var group errgroup.Group
	group.SetLimit(runtime.GOMAXPROCS(0))
	for i, e := range found {
		group.Go(func() (err error) {
			if renderings[i], err = render(e, nil, false); err != nil {
				_, err = render(e, nil, true)
			}
			return err
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	all := map[string]rendering{}
	for _, r := range renderings {
		all[r.dir] = r
	}
	t.Run("Golden", func(t *testing.T) {
		t.Parallel()
		testGolden(t, all)
	})
	t.Run("Checks", func(t *testing.T) {
		t.Parallel()
		for _, dir := range slices.Sorted(maps.Keys(all)) {
			problems := check(all[dir], all)
			if len(problems) > 0 {
				r, err := render(all[dir].entry, nil, true)
				if told := check(r, all); err == nil && len(told) > 0 {
					problems = told
				}
			}
			for _, problem := range problems {
				t.Errorf("%s: %s", dir, problem)
			}
		}
	})
	t.Run("EverythingIsUsed", func(t *testing.T) {
		t.Parallel()
		testEverythingIsUsed(t, all)
	})
	t.Run("OneSink", func(t *testing.T) {
		t.Parallel()
		testOneSink(t, all)
	})
	t.Run("OwnHosts", func(t *testing.T) {
		t.Parallel()
		testOwnHosts(t, all)
	})
	t.Run("README", func(t *testing.T) {
		t.Parallel()
		testREADME(t, all)
	})
	t.Run("BadInput", func(t *testing.T) {
		t.Parallel()
		testBadInput(t, all)
	})
	t.Run("Relays", func(t *testing.T) {
		t.Parallel()
		testRelays(t, all)
	})
	t.Run("CreatedTenants", func(t *testing.T) {
		t.Parallel()
		testCreatedTenants(t, all)
	})
}

// testGolden shows in a diff what a change does to every place that is deployed.
func testGolden(t *testing.T, all map[string]rendering) {
	t.Helper()
	want := map[string]bool{}
	for _, r := range all {
		want[r.golden()] = true
		if *update {
			if err := os.WriteFile(r.golden(), []byte(r.text), 0o644); err != nil {
				t.Fatal(err)
			}
			continue
		}
		text, err := os.ReadFile(r.golden())
		if err != nil {
			t.Errorf("%v; write it with go test ./config -update", err)
			continue
		}
		if string(text) != r.text {
			t.Errorf("%s does not render to %s (-golden +rendered); if it should, write it with go test ./config -update\n%s", r, r.golden(), cmp.Diff(string(text), r.text))
		}
	}
	files, err := filepath.Glob("testdata/golden/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if !want[filepath.ToSlash(f)] {
			t.Errorf("%s belongs to no entry; remove it", f)
		}
	}
}

// testEverythingIsUsed finds manifests that nothing renders, and so nothing checks.
func testEverythingIsUsed(t *testing.T, all map[string]rendering) {
	t.Helper()
	read := map[string]bool{}
	for _, r := range all {
		maps.Copy(read, r.files)
	}
	// The cell's: it is for knative-eventing, where no entry goes.
	const apart = "config/components/network-policy/broker-in.yaml"
	for _, pattern := range []string{"base/*.yaml", "base/*/*.yaml", "system/*.yaml", "components/*/*.yaml", "regions/*/*/*.yaml", "tenants/*/*.yaml"} {
		files, err := filepath.Glob(pattern)
		if err != nil || len(files) == 0 {
			t.Fatalf("%s: %q, %v", pattern, files, err)
		}
		for _, file := range files {
			name := "config/" + filepath.ToSlash(file)
			if !read[name] && name != apart && path.Base(path.Dir(name)) != "cells" {
				t.Errorf("%s is in no entry: list it where it belongs, compose it in config/testdata/combinations, or remove it", name)
			}
		}
	}
	text, err := os.ReadFile("../" + apart)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := manifest.Read(apart, text); err != nil {
		t.Error(err)
	}
	components, err := filepath.Glob("components/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range components {
		if text, err := os.ReadFile(dir + "/README.md"); err != nil || !strings.HasPrefix(string(text), "# "+filepath.Base(dir)+"\n") {
			t.Errorf("config/%s/README.md does not say what the component is for", filepath.ToSlash(dir))
		}
	}
}

// testOneSink holds what rings for one another to one pattern of addresses: a link host of one ring answers for tenants of the other, and the pool works for
// sandboxes; each puts the tenant's namespace into its own K_SINK. And a region to one collector: what the system alone can tell is looked for where the rings tell theirs.
func testOneSink(t *testing.T, all map[string]rendering) {
	t.Helper()
	sinks := map[string]map[string][]string{} // by region and sink, the entries
	for dir, r := range all {
		if path.Dir(path.Dir(dir)) != "config/regions" {
			continue
		}
		system := all[path.Dir(dir)+"/system"]
		const collector = "OTEL_EXPORTER_OTLP_ENDPOINT"
		if here, there := r.setting(collector), system.setting(collector); here != there {
			t.Errorf("%s sends telemetry to %q, and %s to %q: compose config/components/otel in both", dir, here, system, there)
		}
	}
	for dir, r := range all {
		region := ""
		if name, ok := strings.CutPrefix(dir, "config/regions/"); ok && path.Base(dir) != "system" {
			region = path.Dir(name)
		}
		if r.pool != "" {
			region = path.Base(path.Dir(r.pool))
		}
		if region == "" {
			continue
		}
		if sinks[region] == nil {
			sinks[region] = map[string][]string{}
		}
		sink := r.setting("K_SINK")
		sinks[region][sink] = append(sinks[region][sink], dir)
	}
	if len(sinks) == 0 {
		t.Error("there are no regions")
	}
	for region, of := range sinks {
		if len(of) != 1 {
			t.Errorf("rings and sandboxes of %s publish to different brokers: compose one broker component in all of them: %v", region, of)
		}
	}
}

// testOwnHosts holds rings and dedicated tenants to hosts of their own: Knative gives a host to one namespace of a cluster, and links that lead to another ring show
// nothing of the canary. A sandbox has the pool's.
func testOwnHosts(t *testing.T, all map[string]rendering) {
	t.Helper()
	taken := map[string]string{} // by host, the entry
	for _, dir := range slices.Sorted(maps.Keys(all)) {
		r := all[dir]
		if r.part || r.pool != "" || strings.HasPrefix(dir, "config/testdata/") {
			continue
		}
		hosts := map[string]bool{}
		for d := range manifest.Of[*servingv1beta1.DomainMapping](r.objects) {
			hosts[d.GetName()] = true
		}
		for _, setting := range []string{"ONDA_LINK_URL", "ONDA_FORM_URL"} {
			if _, host, ok := strings.Cut(r.setting(setting), "://"); ok {
				hosts[host] = true
			}
		}
		for _, host := range slices.Sorted(maps.Keys(hosts)) {
			if taken[host] != "" {
				t.Errorf("%s is a host of %s and of %s: give each its own", host, taken[host], dir)
			}
			taken[host] = dir
		}
	}
	if len(taken) == 0 {
		t.Error("there are no hosts")
	}
}
