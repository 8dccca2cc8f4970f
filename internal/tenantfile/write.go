package tenantfile

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"syscall"

	yaml "github.com/goccy/go-yaml"

	"github.com/onda-run/onda/internal/tenantname"
)

// ErrTaken says that there is a file of a tenant with this name.
var ErrTaken = errors.New("the name is taken")

// list is what a kustomization is called: that of dir makes a ConfigMap of all files.
const list = "kustomization.yaml"

// Add writes a new tenant's files below dir, config/tenants of a checkout, and lists it in dir's kustomization: it gives the paths it wrote. All or nothing: a tenant
// that is wrong, or there already, changes nothing; what one that was killed has written is completed. Of two at once each does it after the other. domain is the cluster's,
// of which a dedicated tenant's public functions are where it has no hosts; empty, it is onda.test in the region local.
func Add(dir string, t *Tenant, domain string) (wrote []string, err error) {
	t.APIVersion, t.Kind, t.File = apiVersion, "Tenant", filepath.Join(dir, t.Metadata.Name, "tenant.yaml")
	if err := t.Check(); err != nil {
		return nil, err
	}
	unlock, err := lock(dir)
	if err != nil {
		return nil, err
	}
	defer unlock()
	listed, err := os.ReadFile(filepath.Join(dir, list))
	if err != nil {
		return nil, fmt.Errorf("%w: name the directory config/tenants of a checkout", err)
	}
	longer, err := withLine(string(listed), t.Metadata.Name)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, list), err)
	}
	files, err := t.files(dir, domain)
	if err != nil {
		return nil, err
	}
	own := filepath.Dir(t.File)
	_, err = os.Lstat(own)
	switch there := err == nil; {
	case there && (longer == string(listed) || !has(own, files)):
		return nil, fmt.Errorf("%s: %w: choose another, or edit its file", own, ErrTaken)
	case !there:
		if wrote, err = writeDir(own, files); err != nil {
			return nil, err
		}
	}
	if err := replace(filepath.Join(dir, list), []byte(longer)); err != nil { // last, so that what is listed is there
		if len(wrote) > 0 {
			err = errors.Join(err, os.RemoveAll(own))
		}
		return nil, err
	}
	return append(wrote, filepath.Join(dir, list)), nil
}

// SetState sets spec.state in a tenant's file below dir, and changes nothing else in it, when do has done what that says; an error of do's leaves the file as it is. wrote is
// the file, or empty where it says so already.
func SetState(dir, name, state string, do func() error) (wrote string, err error) {
	if err := tenantname.Check(name); err != nil {
		return "", fmt.Errorf("a tenant's name is %w", err)
	}
	unlock, err := lock(dir)
	if err != nil {
		return "", err
	}
	defer unlock()
	file, text, err := readFile(dir, name)
	if err != nil {
		return "", err
	}
	edited, err := withField(file, text, "state", state, func(s *Spec) { s.State = state })
	if err != nil {
		return "", err
	}
	if err := do(); err != nil || bytes.Equal(edited, text) {
		return "", err
	}
	if err := replace(file, edited); err != nil {
		return "", fmt.Errorf("the tenant is %s, and its file does not say so: %w", state, err)
	}
	return file, nil
}

// Place sets spec.placement in the file of a tenant that is there, and writes what a dedicated one is deployed from, or takes it away: it gives the paths that changed, none where
// all is so already. What one that was killed has done is completed by a repeat. A sandbox is placed by its functions, so it is refused. domain is as in Add.
func Place(dir, name, placement, domain string) (changed []string, err error) {
	if err := tenantname.Check(name); err != nil {
		return nil, fmt.Errorf("a tenant's name is %w", err)
	}
	unlock, err := lock(dir)
	if err != nil {
		return nil, err
	}
	defer unlock()
	file, text, err := readFile(dir, name)
	if err != nil {
		return nil, err
	}
	t, err := parse(file, text)
	if err != nil {
		return nil, err
	}
	if t.Sandbox() {
		return nil, fmt.Errorf("%s: is a sandbox: take spec.functions out of it by hand first", file)
	}
	was := t.Spec.Placement
	t.Spec.Placement = placement
	if err := t.Check(); err != nil {
		return nil, err
	}
	edited, err := withField(file, text, "placement", placement, func(s *Spec) { s.Placement = placement })
	if err != nil {
		return nil, err
	}
	own := filepath.Join(dir, name, list)
	there, err := os.ReadFile(own)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	has := err == nil
	if placement == Dedicated && (was != Dedicated || !has) {
		files, err := t.files(dir, domain)
		if err != nil {
			return nil, err
		}
		switch {
		case has && !bytes.Equal(there, files[list]):
			return nil, fmt.Errorf("%s: is there, and is not what would be written: remove it, or set spec.placement in %s by hand", own, file)
		case !has: // before the file says that it is there
			if err := replace(own, files[list]); err != nil {
				return nil, err
			}
			changed = append(changed, own)
		}
	}
	if !bytes.Equal(edited, text) {
		if err := replace(file, edited); err != nil {
			return changed, err
		}
		changed = append(changed, file)
	}
	if placement == Pooled && has {
		if err := os.Remove(own); err != nil {
			return changed, err
		}
		changed = append(changed, own)
	}
	return changed, nil
}

// readFile reads the file of a tenant that is there.
func readFile(dir, name string) (file string, text []byte, err error) {
	file = filepath.Join(dir, name, "tenant.yaml")
	text, err = os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%w: name the directory config/tenants of a checkout that has it", err)
	}
	return file, text, err
}

// withField is a tenant's file with another value of a field of spec, which set sets, where it has a line of its own, as everybody writes it.
func withField(file string, text []byte, field, value string, set func(*Spec)) ([]byte, error) {
	want, err := parse(file, text)
	if err != nil {
		return nil, err
	}
	set(&want.Spec)
	line := regexp.MustCompile(`(?m)^ +` + field + `:[ \t]+("[^"\n]*"|'[^'\n]*'|[^\s#]+)`)
	if at := line.FindSubmatchIndex(text); at != nil {
		edited := slices.Concat(text[:at[2]], []byte(value), text[at[3]:])
		if got, err := parse(file, edited); err == nil && reflect.DeepEqual(got, want) {
			return edited, nil
		}
	}
	return nil, fmt.Errorf("%s: spec.%s has no line of its own: set it to %s by hand", file, field, value)
}

// lock lets one process at a time change the files below dir; it ends with the process at the latest.
func lock(dir string) (unlock func(), err error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("%w: name the directory config/tenants of a checkout", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", dir, err), f.Close())
	}
	return func() { _ = f.Close() }, nil
}

// beside is where what is to have a name is written first. Names that begin with a point are read by nobody, and one that was killed leaves no more than one.
func beside(name string) string {
	return filepath.Join(filepath.Dir(name), "."+filepath.Base(name)+".new")
}

// replace lets a file appear whole, by its name.
func replace(name string, text []byte) error {
	if err := os.WriteFile(beside(name), text, 0o644); err != nil { //nolint:gosec // it is part of a repository
		return err
	}
	return os.Rename(beside(name), name)
}

// writeDir lets a directory appear whole, by its name, and gives the paths of its files.
func writeDir(dir string, files map[string][]byte) (wrote []string, err error) {
	made := beside(dir)
	if err := os.RemoveAll(made); err != nil {
		return nil, err
	}
	if err := os.Mkdir(made, 0o755); err != nil { //nolint:gosec // it is part of a repository
		return nil, err
	}
	defer func() { _ = os.RemoveAll(made) }()
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if err := os.WriteFile(filepath.Join(made, name), files[name], 0o644); err != nil { //nolint:gosec // it is part of a repository
			return nil, err
		}
		wrote = append(wrote, filepath.Join(dir, name))
	}
	return wrote, os.Rename(made, dir)
}

// has tells whether a directory has these files as they are here, and no other.
func has(dir string, files map[string][]byte) bool {
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != len(files) {
		return false
	}
	for name, want := range files {
		if text, err := os.ReadFile(filepath.Join(dir, name)); err != nil || !bytes.Equal(text, want) {
			return false
		}
	}
	return true
}

// files are what a new tenant's directory has, by their names; dir is the one of all tenants, beside that of regions.
func (t *Tenant) files(dir, domain string) (map[string][]byte, error) {
	region := filepath.Join(dir, "..", "regions", t.Spec.Region)
	cell := filepath.Join(region, "cells", t.Spec.Cell+".yaml")
	if _, err := os.Stat(cell); err != nil {
		return nil, fmt.Errorf("spec.cell is %q of region %q: there is no %s", t.Spec.Cell, t.Spec.Region, cell)
	}
	text, err := yaml.MarshalWithOptions(t, yaml.Indent(2), yaml.IndentSequence(true))
	if err != nil {
		return nil, err
	}
	files := map[string][]byte{"tenant.yaml": text}
	if t.Spec.Placement != Dedicated {
		return files, nil
	}
	if domain == "" && t.Spec.Region == "local" {
		domain = "onda.test"
	}
	if (len(t.Spec.Hosts.Link) == 0 || len(t.Spec.Hosts.Form) == 0) && !host.MatchString(domain) {
		return nil, fmt.Errorf("the domain of the cluster is %q: name it with --domain, since %s has no hosts of its own for links and for forms (--link-host, --form-host)", domain, t.Metadata.Name)
	}
	broker, err := brokerOf(filepath.Join(region, Stable, list))
	if err != nil {
		return nil, err
	}
	files[list] = kustomization(t, broker, domain)
	return files, nil
}

// brokerOf is the component with the class of broker that a region's pool has: a dedicated tenant and a sandbox publish to that too.
func brokerOf(file string) (string, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("%w: it says which class of broker the region has", err)
	}
	var k struct {
		Components []string `yaml:"components"`
	}
	if err := yaml.Unmarshal(text, &k); err != nil {
		return "", fmt.Errorf("%s: %s", file, yaml.FormatError(err, false, false))
	}
	var brokers []string
	for _, c := range k.Components {
		if name := path.Base(c); strings.HasPrefix(name, "broker-") {
			brokers = append(brokers, name)
		}
	}
	if len(brokers) != 1 {
		return "", fmt.Errorf("%s: composes %d of config/components/broker-*: want exactly one, the class of broker that the region has", file, len(brokers))
	}
	return brokers[0], nil
}

// withLine lists a tenant's file among the others, in order; where it is listed, nothing changes.
func withLine(text, name string) (string, error) {
	line := fmt.Sprintf("      - %s.yaml=%[1]s/tenant.yaml", name)
	lines := strings.Split(text, "\n")
	if slices.Contains(lines, line) {
		return text, nil
	}
	at := slices.IndexFunc(lines, func(l string) bool { return strings.TrimSpace(l) == "files:" })
	if at < 0 {
		return "", errors.New("has no list files: of the ConfigMap tenants: restore it")
	}
	for at++; at < len(lines) && strings.HasPrefix(lines[at], "      - ") && lines[at] < line; {
		at++
	}
	return strings.Join(slices.Insert(lines, at, line), "\n"), nil
}

// kustomization is what a dedicated tenant's objects are made from.
func kustomization(t *Tenant, broker, domain string) []byte {
	var b bytes.Buffer
	p := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	name, ns := t.Metadata.Name, t.Namespace()
	p("# Written by onda tenant create.\napiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nnamespace: %s\nresources:", ns)
	if t.Sandbox() {
		p("  - ../../base/namespace\n  - ../../../eventing")
		for _, f := range t.Spec.Functions {
			p("  - ../../../functions/%s", f)
		}
		p("configMapGenerator:\n  - name: onda\n    literals:\n      - ONDA_DATABASE_MAX_CONNS=4")
		p("      - ONDA_FORM_URL=%s\n      - ONDA_LINK_URL=%s", t.url("render-form", domain), t.url("track", domain))
		p("      - ONDA_LOG=json\n      - ONDA_TENANT=%s", name)
		p("components:\n  - ../../components/knative\n  - ../../components/%s\n  - ../../components/sandbox", broker)
		own := slices.Contains(t.Spec.Functions, "send") && t.Spec.SMTPSecret != ""
		if own {
			p("  - ../../components/relays")
		}
		p("patches:\n  # Events for what is not its own go to the pool's.")
		p(`  - target: {group: eventing.knative.dev, kind: Trigger, labelSelector: "onda.run/function notin (%s)"}`, strings.Join(t.Spec.Functions, ", "))
		p("    patch: |\n      - {op: add, path: /spec/subscriber/ref/namespace, value: %s}", poolNamespace)
		if own {
			p("%s", t.relayPatch())
		}
		return b.Bytes()
	}
	p("  - ../../base\ncomponents:\n  - ../../components/%s\n  - ../../components/dedicated\n  - ../../components/network-policy", broker)
	if t.Spec.SMTPSecret != "" {
		p("  - ../../components/relays")
	}
	p("configMapGenerator:\n  - name: onda\n    behavior: merge\n    literals:\n      - ONDA_TENANT=%s", name)
	p("      - ONDA_LINK_URL=%s\n      - ONDA_FORM_URL=%s", t.url("track", domain), t.url("render-form", domain))
	if t.Spec.SMTPSecret != "" {
		p("patches:\n%s", t.relayPatch())
	}
	return b.Bytes()
}

// relayPatch mounts the Secret with the tenant's relay where config/components/relays has the functions look for it.
func (t *Tenant) relayPatch() string {
	return fmt.Sprintf("  - target: {group: serving.knative.dev, kind: Service, name: send.*}\n    patch: |\n"+
		"      - {op: add, path: /spec/template/spec/volumes/0/projected/sources/-, value: {secret: {name: %[1]s, optional: true, items: [{key: url, path: %[1]s/url}]}}}", t.Spec.SMTPSecret)
}

// url is where one of its public functions is: at its own host, or at Knative's name for it. What is not its own is the pool's.
func (t *Tenant) url(service, domain string) string {
	hosts, function := t.Spec.Hosts.Link, service
	if service == "render-form" {
		hosts = t.Spec.Hosts.Form
	}
	if len(hosts) > 0 {
		return "https://" + hosts[0]
	}
	ns := t.Namespace()
	if t.Sandbox() && !slices.Contains(t.Spec.Functions, function) {
		ns = poolNamespace
	}
	return "https://" + service + "." + ns + "." + domain
}
