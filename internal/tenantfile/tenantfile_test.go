package tenantfile

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"
)

const good = `apiVersion: onda.run/v1
kind: Tenant
metadata:
  name: acme
spec:
  region: local
  cell: local-1
  ring: stable
  state: active
  placement: pooled
`

func TestReadTellsWhatIsWrong(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ from, to, want string }{
		"an unknown field":         {"placement: pooled", "placement: pooled\n  quota: 5", `unknown field "quota"`},
		"a wrong type":             {"placement: pooled", "placement: pooled\n  quotas: {mailsPerDay: many}", "[11:25]"},
		"another kind":             {"kind: Tenant", "kind: Broker", "want kind Tenant"},
		"a name that is no label":  {"name: acme", "name: Acme_1", "DNS label"},
		"a name with - at its end": {"name: acme", "name: acme-", "DNS label"},
		"a ring that is none":      {"ring: stable", "ring: canary", `spec.ring is "canary": want stable or next`},
		"a state that is none":     {"state: active", "state: asleep", "want active or suspended or deleted"},
		"no cell":                  {"  cell: local-1\n", "", "config/regions/REGION/cells/CELL.yaml"},
		"a function that is none":  {"placement: pooled", "placement: dedicated\n  functions: [sendd]", `spec.functions has "sendd": there are bounce`},
		"functions in the pool":    {"placement: pooled", "placement: pooled\n  functions: [send]", "set spec.placement to dedicated"},
		"a host that is a URL":     {"placement: pooled", "placement: pooled\n  hosts: {link: ['https://x.example']}", "want a host's name"},
		"a host with more in it":   {"placement: pooled", "placement: pooled\n  hosts: {form: ['x.example\"><b>']}", "want a host's name"},
		"a host of one label":      {"placement: pooled", "placement: pooled\n  hosts: {link: [links]}", "want a host's name"},
		"a host in upper case":     {"placement: pooled", "placement: pooled\n  hosts: {link: [Links.example]}", "want a host's name"},
		"a host twice":             {"placement: pooled", "placement: pooled\n  hosts: {form: [f.example, f.example]}", `has "f.example" twice`},
		"a reserved name":          {"name: acme", "name: public", `metadata.name is "public": want`},
		"another tenant's file":    {"name: acme", "name: brava", `metadata.name is "brava": want "acme"`},
	} {
		text := strings.Replace(good, c.from, c.to, 1)
		if text == good {
			t.Fatalf("%s: nothing was replaced", name)
		}
		all, err := ReadAll(fstest.MapFS{"acme/tenant.yaml": {Data: []byte(text)}}, "")
		if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "acme/tenant.yaml") || all != nil {
			t.Errorf("%s: %v, want %q and the file", name, err, c.want)
		}
	}
}

func TestReadAllTakesACellsTenants(t *testing.T) {
	t.Parallel()
	elsewhere := strings.NewReplacer("acme", "brava", "local-1", "eu-west-1").Replace(good)
	for name, fsys := range map[string]fstest.MapFS{
		"a repository": {"acme/tenant.yaml": {Data: []byte(good)}, "brava/tenant.yaml": {Data: []byte(elsewhere)}, "kustomization.yaml": {Data: []byte("x")}},
		"a ConfigMap":  {"acme.yaml": {Data: []byte(good)}, "brava.yaml": {Data: []byte(elsewhere)}, "..2026/acme.yaml": {Data: []byte("x")}},
	} {
		all, err := ReadAll(fsys, "local-1")
		if err != nil || len(all) != 1 || all[0].Metadata.Name != "acme" {
			t.Errorf("%s: %v, %v", name, all, err)
		}
		if all, err := ReadAll(fsys, ""); err != nil || len(all) != 2 {
			t.Errorf("%s, every cell: %v, %v", name, all, err)
		}
	}
	if _, err := ReadAll(fstest.MapFS{"acme/kustomization.yaml": {Data: []byte("x")}}, ""); err == nil || !strings.Contains(err.Error(), "no tenant.yaml") {
		t.Errorf("a directory without a file: %v", err)
	}
}

// repository is a copy of what tenants are in, of this repository.
func repository(t *testing.T) (dir string) {
	t.Helper()
	root := t.TempDir()
	dir = filepath.Join(root, "tenants")
	if err := os.MkdirAll(filepath.Join(root, "regions", "local", "cells"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "regions", "local", "cells", "local-1.yaml"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(dir, os.DirFS("../../config/tenants")); err != nil {
		t.Fatal(err)
	}
	return dir
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// What create writes is what the repository has of its own examples, so that those stay what create writes.
func TestAddWritesWhatTheExamplesAre(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"acme", "brava", "corvo", "dev-ana"} {
		dir := repository(t)
		want, err := Read(os.DirFS(dir), filepath.Join(name, "tenant.yaml"))
		if err != nil {
			t.Fatal(err)
		}
		files := map[string]string{list: read(t, filepath.Join(dir, list))}
		entries, err := os.ReadDir(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if e.Name() != "tenant.yaml" { // its comments are not kept
				files[filepath.Join(name, e.Name())] = read(t, filepath.Join(dir, name, e.Name()))
			}
		}
		if err := os.RemoveAll(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
		line := "      - " + name + ".yaml=" + name + "/tenant.yaml\n"
		if err := os.WriteFile(filepath.Join(dir, list), []byte(strings.Replace(files[list], line, "", 1)), 0o644); err != nil {
			t.Fatal(err)
		}
		spec := want.Spec
		added := &Tenant{Spec: spec}
		added.Metadata.Name = name
		wrote, err := Add(dir, added, "onda.test")
		if err != nil {
			t.Fatal(err)
		}
		if len(wrote) != len(files)+1 {
			t.Errorf("%s: wrote %v", name, wrote)
		}
		for file, text := range files {
			if diff := cmp.Diff(text, read(t, filepath.Join(dir, file))); diff != "" {
				t.Errorf("%s differs (-repository +written)\n%s", file, diff)
			}
		}
		again, err := Read(os.DirFS(dir), filepath.Join(name, "tenant.yaml"))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, again); diff != "" {
			t.Errorf("%s (-repository +written)\n%s", name, diff)
		}
	}
}

func TestAddChangesNothingWhenItFails(t *testing.T) {
	t.Parallel()
	dir := repository(t)
	before := read(t, filepath.Join(dir, list))
	for want, change := range map[string]func(*Tenant){
		"the name is taken": func(t *Tenant) { t.Metadata.Name = "acme" },
		"DNS label":         func(t *Tenant) { t.Metadata.Name = "../x" },
		"there is no":       func(t *Tenant) { t.Spec.Cell = "local-9" },
		"want stable":       func(t *Tenant) { t.Spec.Ring = "" },
	} {
		n := &Tenant{Spec: Spec{Region: "local", Cell: "local-1", Ring: Stable, State: "active", Placement: Pooled}}
		n.Metadata.Name = "new"
		change(n)
		if _, err := Add(dir, n, "onda.test"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		} else if want == "the name is taken" && !errors.Is(err, ErrTaken) {
			t.Errorf("%v is not ErrTaken", err)
		}
	}
	if read(t, filepath.Join(dir, list)) != before {
		t.Error("the list has changed")
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 5 {
		t.Errorf("%d entries, %v", len(entries), err)
	}
}
