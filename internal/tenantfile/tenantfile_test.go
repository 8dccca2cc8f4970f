package tenantfile

import (
	"errors"
	"fmt"
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
		"a wrong type":             {"placement: pooled", "placement: pooled\n  hosts: {link: {a: b}}", "[11:17]"},
		"nothing":                  {good, "# later\n", "acme/tenant.yaml: is empty"},
		"two tenants":              {"placement: pooled\n", "placement: pooled\n---\n" + strings.Replace(good, "acme", "brava", 1), "has more than one document"},
		"another kind":             {"kind: Tenant", "kind: Broker", "want kind Tenant"},
		"a name that is no label":  {"name: acme", "name: Acme_1", "DNS label"},
		"a name with - at its end": {"name: acme", "name: acme-", "DNS label"},
		"a ring that is none":      {"ring: stable", "ring: canary", `spec.ring is "canary": want stable or next`},
		"a state that is none":     {"state: active", "state: asleep", "want active or suspended or deleted"},
		"no cell":                  {"  cell: local-1\n", "", "config/regions/REGION/cells/CELL.yaml"},
		"a function that is none":  {"placement: pooled", "placement: dedicated\n  functions: [sendd]", `spec.functions has "sendd": there are bounce`},
		"functions in the pool":    {"placement: pooled", "placement: pooled\n  functions: [send]", "set spec.placement to dedicated"},
		"a function twice":         {"placement: pooled", "placement: dedicated\n  functions: [send, track, send]", `spec.functions has "send" twice`},
		"a sandbox of ring next":   {"ring: stable\n  state: active\n  placement: pooled", "ring: next\n  state: active\n  placement: dedicated\n  functions: [send]", "set spec.ring to stable"},
		"domains":                  {"placement: pooled", "placement: pooled\n  domains: [acme.example]", "spec.domains is not yet read: leave it out; a mail is from"},
		"a quota":                  {"placement: pooled", "placement: pooled\n  quotas: {mailsPerDay: -5}", "spec.quotas.mailsPerDay is -5: want 0 or more"},
		"a quota of nothing":       {"placement: pooled", "placement: pooled\n  quotas: {mailsPerSecond: 0}", "spec.quotas.mailsPerSecond is 0: want 0.01 to 1000000"},
		"a quota that is none":     {"placement: pooled", "placement: pooled\n  quotas: {mailsPerYear: 5}", `unknown field "mailsPerYear"`},
		"retention":                {"placement: pooled", "placement: pooled\n  retention: {hits: 180d}", "spec.retention is not yet read: leave it out; the tenant's settings"},
		"a Secret elsewhere":       {"placement: pooled", "placement: pooled\n  smtpSecret: ../brava", `spec.smtpSecret is "../brava": want the name of a Secret`},
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
		all, err := ReadAll(fstest.MapFS{"acme/tenant.yaml": {Data: []byte(text)}})
		if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "acme/tenant.yaml") || all != nil {
			t.Errorf("%s: %v, want %q and the file", name, err, c.want)
		}
	}
}

func TestReadAllTakesFilesAndConfigMaps(t *testing.T) {
	t.Parallel()
	elsewhere := strings.NewReplacer("acme", "brava", "local-1", "eu-west-1").Replace(good)
	for name, fsys := range map[string]fstest.MapFS{
		"a repository": {"acme/tenant.yaml": {Data: []byte(good)}, "brava/tenant.yaml": {Data: []byte(elsewhere)}, "kustomization.yaml": {Data: []byte("x")}},
		"a ConfigMap":  {"acme.yaml": {Data: []byte(good)}, "brava.yaml": {Data: []byte(elsewhere)}, "..2026/acme.yaml": {Data: []byte("x")}},
	} {
		all, err := ReadAll(fsys)
		if err != nil || len(all) != 2 || all[0].Metadata.Name != "acme" || all[1].Spec.Cell != "eu-west-1" {
			t.Errorf("%s: %v, %v", name, all, err)
		}
	}
	if _, err := ReadAll(fstest.MapFS{"acme/tenant.yaml": {Data: []byte(good)}, "acme.yaml": {Data: []byte(good)}}); err == nil || !strings.Contains(err.Error(), "acme.yaml: is of the same tenant as acme/tenant.yaml") {
		t.Errorf("a tenant twice: %v", err)
	}
	if _, err := ReadAll(fstest.MapFS{"acme/kustomization.yaml": {Data: []byte("x")}}); err == nil || !strings.Contains(err.Error(), "no tenant.yaml") {
		t.Errorf("a directory without a file: %v", err)
	}
}

// repository is a copy of what tenants are in, of this repository.
func repository(t *testing.T) (dir string) {
	t.Helper()
	root := t.TempDir()
	dir = filepath.Join(root, "tenants")
	if err := os.CopyFS(filepath.Join(root, "regions"), os.DirFS("../../config/regions")); err != nil {
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
		unlist(t, dir, name)
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

// unlist takes a tenant out of the list.
func unlist(t *testing.T, dir, name string) {
	t.Helper()
	text := strings.Replace(read(t, filepath.Join(dir, list)), "      - "+name+".yaml="+name+"/tenant.yaml\n", "", 1)
	if err := os.WriteFile(filepath.Join(dir, list), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func newTenant(name, region, cell string) *Tenant {
	t := &Tenant{Spec: Spec{Region: region, Cell: cell, Ring: Stable, State: "active", Placement: Dedicated}}
	t.Metadata.Name = name
	return t
}

// Many at once each come into the list.
func TestAddAtOnce(t *testing.T) {
	t.Parallel()
	dir := repository(t)
	const n = 20
	errs := make(chan error, n)
	for i := range n {
		go func() {
			_, err := Add(dir, newTenant(fmt.Sprintf("many-%d", i), "local", "local-1"), "onda.test")
			errs <- err
		}()
	}
	for range n {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	text := read(t, filepath.Join(dir, list))
	for i := range n {
		if line := fmt.Sprintf("- many-%d.yaml=many-%[1]d/tenant.yaml\n", i); strings.Count(text, line) != 1 {
			t.Errorf("the list has no %q", line)
		}
	}
	if _, err := ReadAll(os.DirFS(dir)); err != nil {
		t.Error(err)
	}
}

// What was killed before the end is completed by a repeat that would write the same, and by no other.
func TestAddCompletesWhatWasKilled(t *testing.T) {
	t.Parallel()
	dir := repository(t)
	add := func(domain string) ([]string, error) { return Add(dir, newTenant("late", "local", "local-1"), domain) }
	if err := os.MkdirAll(filepath.Join(dir, ".late.new", "x"), 0o755); err != nil { // killed before the directory had its name
		t.Fatal(err)
	}
	wrote, err := add("onda.test")
	if err != nil || len(wrote) != 3 {
		t.Fatalf("%q, %v", wrote, err)
	}
	if _, err := add("onda.test"); !errors.Is(err, ErrTaken) {
		t.Errorf("whole: %v", err)
	}
	listed := read(t, filepath.Join(dir, list))
	unlist(t, dir, "late") // killed before it was listed
	if _, err := add("other.test"); !errors.Is(err, ErrTaken) {
		t.Errorf("another: %v", err)
	}
	if wrote, err := add("onda.test"); err != nil || !cmp.Equal(wrote, []string{filepath.Join(dir, list)}) {
		t.Errorf("%q, %v", wrote, err)
	}
	if diff := cmp.Diff(listed, read(t, filepath.Join(dir, list))); diff != "" {
		t.Error(diff)
	}
	if left, err := filepath.Glob(filepath.Join(dir, ".*")); err != nil || len(left) > 0 {
		t.Errorf("left: %q, %v", left, err)
	}
}

// A dedicated tenant has its region's class of broker, and its cluster's domain is named.
func TestAddFollowsTheRegion(t *testing.T) {
	t.Parallel()
	dir := repository(t)
	stable := filepath.Join(dir, "..", "regions", "eu-west", "stable", list)
	if _, err := Add(dir, newTenant("one", "eu-west", "eu-west-1"), "eu.example"); err != nil {
		t.Fatal(err)
	}
	if text := read(t, filepath.Join(dir, "one", list)); !strings.Contains(text, "components/broker-kafka\n") || !strings.Contains(text, "ONDA_FORM_URL=https://render-form.tenant-one.eu.example\n") {
		t.Error(text)
	}
	for _, domain := range []string{"", "https://eu.example", "eu"} {
		if _, err := Add(dir, newTenant("two", "eu-west", "eu-west-1"), domain); err == nil || !strings.Contains(err.Error(), "name it with --domain") {
			t.Errorf("domain %q: %v", domain, err)
		}
	}
	hosts := newTenant("two", "eu-west", "eu-west-1")
	hosts.Spec.Hosts = Hosts{Link: []string{"l.example"}, Form: []string{"f.example"}}
	if _, err := Add(dir, hosts, ""); err != nil {
		t.Errorf("with hosts of its own: %v", err)
	}
	if err := os.WriteFile(stable, []byte("components: [../images]\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Add(dir, newTenant("three", "eu-west", "eu-west-1"), "eu.example"); err == nil || !strings.Contains(err.Error(), "composes 0 of config/components/broker-*") {
		t.Errorf("a region without a broker: %v", err)
	}
	if err := os.Remove(stable); err != nil {
		t.Fatal(err)
	}
	if _, err := Add(dir, newTenant("three", "eu-west", "eu-west-1"), "eu.example"); err == nil || !strings.Contains(err.Error(), "which class of broker the region has") {
		t.Errorf("a region without a ring: %v", err)
	}
}

// A pooled tenant gets what create writes of a dedicated one, and is what it was after the way back; whatever was killed in between is completed by a repeat.
func TestPlace(t *testing.T) {
	t.Parallel()
	dir := repository(t)
	want := newTenant("other", "local", "local-1")
	want.Spec.SMTPSecret = "acme-relay"
	if _, err := Add(dir, want, ""); err != nil {
		t.Fatal(err)
	}
	file, own := filepath.Join(dir, "acme", "tenant.yaml"), filepath.Join(dir, "acme", list)
	pooled := strings.Replace(read(t, file), "placement: pooled", "placement: pooled # for now\n  smtpSecret: acme-relay", 1)
	dedicated := strings.Replace(pooled, "placement: pooled", "placement: dedicated", 1)
	written := strings.ReplaceAll(read(t, filepath.Join(dir, "other", list)), "other", "acme")
	put := func(path, text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	put(file, pooled)
	for _, c := range []struct {
		name, placement, domain string
		before                  func() // what was killed, or changed by hand
		changed                 []string
		err                     string
	}{
		{name: "pooled already", placement: Pooled},
		{name: "a domain that is none", placement: Dedicated, domain: "https://x", err: "name it with --domain"},
		{name: "dedicated", placement: Dedicated, changed: []string{own, file}},
		{name: "again", placement: Dedicated},
		{name: "killed before the file", placement: Dedicated, before: func() { put(file, pooled) }, changed: []string{file}},
		{name: "another was written", placement: Dedicated, before: func() { put(file, pooled); put(own, "resources: []") }, err: own + ": is there, and is not what would be written"},
		{name: "changed by hand since", placement: Dedicated, before: func() { put(file, dedicated) }},
		{name: "lost", placement: Dedicated, before: func() { _ = os.Remove(own) }, changed: []string{own}},
		{name: "pooled", placement: Pooled, changed: []string{file, own}},
		{name: "killed before it was removed", placement: Pooled, before: func() { put(own, written) }, changed: []string{own}},
	} {
		if c.before != nil {
			c.before()
		}
		wasFile, wasOwn := read(t, file), ""
		if b, err := os.ReadFile(own); err == nil {
			wasOwn = string(b)
		}
		changed, err := Place(dir, "acme", c.placement, c.domain)
		if (err != nil) != (c.err != "") || err != nil && !strings.Contains(err.Error(), c.err) || !cmp.Equal(changed, c.changed) {
			t.Errorf("%s: changed %q, %v", c.name, changed, err)
		}
		wantFile, wantOwn := map[string]string{Pooled: pooled, Dedicated: dedicated}[c.placement], map[string]string{Dedicated: written}[c.placement]
		if c.changed == nil {
			wantFile, wantOwn = wasFile, wasOwn
		}
		if diff := cmp.Diff(wantFile, read(t, file)); diff != "" {
			t.Errorf("%s:\n%s", c.name, diff)
		}
		got := ""
		if b, err := os.ReadFile(own); err == nil {
			got = string(b)
		}
		if diff := cmp.Diff(wantOwn, got); diff != "" {
			t.Errorf("%s: %s\n%s", c.name, own, diff)
		}
	}
	for name, want := range map[string]string{"dev-ana": "is a sandbox", "nobody": "name the directory config/tenants of a checkout that has it", "../tenants/acme": "a tenant's name is"} {
		if changed, err := Place(dir, name, Pooled, ""); err == nil || !strings.Contains(err.Error(), want) || len(changed) > 0 {
			t.Errorf("%s: %q, %v", name, changed, err)
		}
	}
	if left, err := filepath.Glob(filepath.Join(dir, "acme", ".*")); err != nil || len(left) > 0 {
		t.Errorf("left: %q, %v", left, err)
	}
}

func TestSetState(t *testing.T) {
	t.Parallel()
	nothing := func() error { return nil }
	for name, c := range map[string]struct{ from, to, want, err string }{
		"a line":           {"state: active", "state: active # why", "state: suspended # why", ""},
		"in quotes":        {"state: active", `state: "active"`, "state: suspended", ""},
		"the same":         {"state: active", "state: suspended", "state: suspended", ""},
		"beside a comment": {"  state: active", "  # state: active\n  state: 'active'", "# state: active\n  state: suspended", ""},
		"in one line":      {"  state: active\n  placement: pooled", "  placement: pooled\n  ? state\n  : active", "", "spec.state has no line of its own: set it to suspended by hand"},
		"a wrong file":     {"state: active", "stat: active", "", `unknown field "stat"`},
	} {
		dir := repository(t)
		file := filepath.Join(dir, "acme", "tenant.yaml")
		before := strings.Replace(read(t, file), c.from, c.to, 1)
		if err := os.WriteFile(file, []byte(before), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := SetState(dir, "acme", "suspended", func() error { return os.ErrPermission }); err == nil || read(t, file) != before {
			t.Errorf("%s: after an error: %v\n%s", name, err, read(t, file))
		}
		wrote, err := SetState(dir, "acme", "suspended", nothing)
		if c.err != "" {
			if err == nil || !strings.Contains(err.Error(), c.err) || !strings.Contains(err.Error(), file) {
				t.Errorf("%s: %v, want %q and the file", name, err, c.err)
			}
			continue
		}
		want := file
		if c.to == c.want {
			want = ""
		}
		if err != nil || wrote != want {
			t.Errorf("%s: wrote %q, %v", name, wrote, err)
		}
		if diff := cmp.Diff(strings.Replace(before, strings.TrimSpace(c.to), c.want, 1), read(t, file)); diff != "" {
			t.Errorf("%s:\n%s", name, diff)
		}
		if got, err := Read(os.DirFS(dir), "acme/tenant.yaml"); err != nil || got.Spec.State != "suspended" {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
	for _, name := range []string{"nobody", "../tenants/acme"} {
		if _, err := SetState(repository(t), name, "suspended", func() error { t.Errorf("%s: something was done", name); return nil }); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
