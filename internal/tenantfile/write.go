package tenantfile

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	yaml "github.com/goccy/go-yaml"
)

// ErrTaken says that there is a file of a tenant with this name.
var ErrTaken = errors.New("the name is taken")

// list is the kustomization that makes a ConfigMap of all files.
const list = "kustomization.yaml"

// Add writes a new tenant's files below dir, config/tenants of a checkout, and lists it in dir's kustomization: it gives the paths it wrote. All or nothing: a tenant
// that is wrong, or there already, changes nothing. domain is the cluster's, of which a dedicated tenant's public functions are.
func Add(dir string, t *Tenant, domain string) (wrote []string, err error) {
	t.APIVersion, t.Kind, t.File = apiVersion, "Tenant", filepath.Join(dir, t.Metadata.Name, "tenant.yaml")
	if err := t.Check(); err != nil {
		return nil, err
	}
	own := filepath.Dir(t.File)
	if _, err := os.Lstat(own); err == nil {
		return nil, fmt.Errorf("%s: %w: choose another, or edit its file", own, ErrTaken)
	}
	cell := filepath.Join(dir, "..", "regions", t.Spec.Region, "cells", t.Spec.Cell+".yaml")
	if _, err := os.Stat(cell); err != nil {
		return nil, fmt.Errorf("spec.cell is %q of region %q: there is no %s", t.Spec.Cell, t.Spec.Region, filepath.Clean(cell))
	}
	listed, err := os.ReadFile(filepath.Join(dir, list))
	if err != nil {
		return nil, fmt.Errorf("%w: name the directory config/tenants of a checkout", err)
	}
	longer, err := withLine(string(listed), t.Metadata.Name)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, list), err)
	}
	text, err := yaml.MarshalWithOptions(t, yaml.Indent(2), yaml.IndentSequence(true))
	if err != nil {
		return nil, err
	}
	files := map[string][]byte{t.File: text}
	if t.Spec.Placement == Dedicated {
		files[filepath.Join(own, list)] = kustomization(t, domain)
	}
	// The directory appears whole, by its name.
	made, err := os.MkdirTemp(dir, "."+t.Metadata.Name+"-*")
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(made) }()
	if err := os.Chmod(made, 0o755); err != nil { //nolint:gosec // it is part of a repository
		return nil, err
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(made, filepath.Base(name)), text, 0o644); err != nil { //nolint:gosec // it is part of a repository
			return nil, err
		}
		wrote = append(wrote, name)
	}
	if err := os.Rename(made, own); errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("%s: %w: choose another, or edit its file", own, ErrTaken)
	} else if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(dir, list), []byte(longer), 0o644); err != nil { //nolint:gosec // it is part of a repository
		return nil, errors.Join(err, os.RemoveAll(own))
	}
	slices.Sort(wrote)
	return append(wrote, filepath.Join(dir, list)), nil
}

// withLine lists a tenant's file among the others, in order.
func withLine(text, name string) (string, error) {
	line := fmt.Sprintf("      - %s.yaml=%[1]s/tenant.yaml", name)
	lines := strings.Split(text, "\n")
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
func kustomization(t *Tenant, domain string) []byte {
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
		p("components:\n  - ../../components/knative\n  - ../../components/broker-memory\n  - ../../components/sandbox")
		p("patches:\n  # Events for what is not its own go to the pool's.")
		p("  - target: {group: eventing.knative.dev, kind: Trigger, labelSelector: onda.run/function notin (%s)}", strings.Join(t.Spec.Functions, ", "))
		p("    patch: |\n      - {op: add, path: /spec/subscriber/ref/namespace, value: %s}", poolNamespace)
		return b.Bytes()
	}
	p("  - ../../base\ncomponents:\n  - ../../components/broker-memory\n  - ../../components/dedicated\n  - ../../components/network-policy")
	p("configMapGenerator:\n  - name: onda\n    behavior: merge\n    literals:\n      - ONDA_TENANT=%s", name)
	p("      - ONDA_LINK_URL=%s\n      - ONDA_FORM_URL=%s", t.url("track", domain), t.url("render-form", domain))
	return b.Bytes()
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
