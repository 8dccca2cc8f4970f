// Package tenantfile reads and writes the files of tenants: config/tenants/<tenant>/tenant.yaml, the one description of a tenant from which its rows in Postgres and, of
// a dedicated one, its Kubernetes objects are made.
package tenantfile

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strings"

	yaml "github.com/goccy/go-yaml"

	"github.com/onda-run/onda/internal/tenantname"
)

// The rings of the pool and the namespaces that they are in.
const (
	Stable = "stable"
	Next   = "next"

	poolNamespace = "onda"
	nextNamespace = "onda-next"
)

// Placements of a tenant.
const (
	Pooled    = "pooled"
	Dedicated = "dedicated"
)

const (
	apiVersion = "onda.run/v1"
	maxFile    = 64 << 10
)

// Tenant is a tenant's file.
type Tenant struct {
	APIVersion string `yaml:"apiVersion"`
	Kind       string `yaml:"kind"`
	Metadata   struct {
		Name string `yaml:"name"`
	} `yaml:"metadata"`
	Spec Spec `yaml:"spec"`

	// File is where it was read.
	File string `yaml:"-"`
}

// Spec is what the file says of a tenant.
type Spec struct {
	// Region and Cell are where it lives: config/regions/<region>/cells/<cell>.yaml.
	Region string `yaml:"region"`
	Cell   string `yaml:"cell"`
	// Ring is stable or next: of a pooled tenant, whose functions serve it; of a dedicated one, in which wave it is upgraded.
	Ring string `yaml:"ring"`
	// State is active, suspended or deleted.
	State string `yaml:"state"`
	// Placement is pooled or dedicated.
	Placement string `yaml:"placement"`
	// Revision is the Git revision of a dedicated tenant's manifests, instead of its ring's.
	Revision string `yaml:"revision,omitempty"`
	// Functions are, of a developer's sandbox, the functions of its own; the rest are the pool's.
	Functions []string `yaml:"functions,omitempty,flow"`
	Hosts     Hosts    `yaml:"hosts,omitempty"`
	Quotas    Quotas   `yaml:"quotas,omitempty"`
	// SMTPSecret is the Secret, mounted into the functions that send, with the relay of its own under the key url; empty: its mails go through the relay of
	// ONDA_SMTP_URL, that of its namespace's Secret onda where it is dedicated, and else the pool's.
	SMTPSecret string `yaml:"smtpSecret,omitempty"`

	// What nothing reads yet is refused, so that nobody counts on it: see notYet.
	Domains   any `yaml:"domains,omitempty"`
	Retention any `yaml:"retention,omitempty"`
}

// Quotas are how many mails of marketing a tenant may send; nil for as many as it likes. Transactional mail is not counted: nobody waits for a password because of a blast.
type Quotas struct {
	MailsPerSecond *float64 `yaml:"mailsPerSecond,omitempty"`
	MailsPerDay    *int64   `yaml:"mailsPerDay,omitempty"`   // by the tenant's clock
	MailsPerMonth  *int64   `yaml:"mailsPerMonth,omitempty"` // of the calendar
}

// Hosts are the names that a tenant's links and forms have. New links are made with the first of each; the others are older ones, which go on serving. Where there is
// none, they are those of ONDA_LINK_URL and ONDA_FORM_URL.
type Hosts struct {
	Link []string `yaml:"link,omitempty,flow"`
	Form []string `yaml:"form,omitempty,flow"`
}

// Namespace is where the tenant's functions and its broker are.
func (t *Tenant) Namespace() string {
	switch {
	case t.Spec.Placement == Dedicated:
		return OwnNamespace(t.Metadata.Name)
	case t.Spec.Ring == Next:
		return nextNamespace
	}
	return poolNamespace
}

// OwnNamespace is the namespace of a tenant that is dedicated.
func OwnNamespace(tenant string) string { return "tenant-" + tenant }

// Sandbox tells whether only some functions are the tenant's own.
func (t *Tenant) Sandbox() bool { return len(t.Spec.Functions) > 0 }

// host is a host's name as a cluster takes it of a DomainMapping: labels of DNS in lower case (RFC 1123 section 2.1), two at the least.
var host = regexp.MustCompile(`^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// secret is a Secret's name as it is a directory's too, and a volume's.
var secret = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// functions are those that a sandbox may have of its own.
func functions() []string {
	return []string{"bounce", "campaign", "render-form", "segment", "send", "track"}
}

// Check tells everything that is wrong with the file, each with its remedy.
func (t *Tenant) Check() error {
	var errs []error
	wrong := func(format string, args ...any) { errs = append(errs, fmt.Errorf(t.File+": "+format, args...)) }
	oneOf := func(field, value string, of ...string) {
		if !slices.Contains(of, value) {
			wrong("spec.%s is %q: want %s", field, value, strings.Join(of, " or "))
		}
	}
	s := t.Spec
	if t.APIVersion != apiVersion || t.Kind != "Tenant" {
		wrong("is a %q of %q: want kind Tenant of apiVersion %s", t.Kind, t.APIVersion, apiVersion)
	}
	if err := tenantname.Check(t.Metadata.Name); err != nil {
		wrong("metadata.name is %v", err)
	}
	if s.Region == "" || s.Cell == "" {
		wrong("spec.region and spec.cell say where it lives: name a file config/regions/REGION/cells/CELL.yaml")
	}
	oneOf("ring", s.Ring, Stable, Next)
	oneOf("state", s.State, "active", "suspended", "deleted")
	oneOf("placement", s.Placement, Pooled, Dedicated)
	for i, f := range s.Functions {
		if !slices.Contains(functions(), f) {
			wrong("spec.functions has %q: there are %s", f, strings.Join(functions(), ", "))
		}
		if slices.Contains(s.Functions[:i], f) {
			wrong("spec.functions has %q twice: leave out one of the two", f)
		}
	}
	if t.Sandbox() && s.Placement != Dedicated {
		wrong("spec.functions are those of a tenant's own namespace: set spec.placement to dedicated, or leave them out")
	}
	if t.Sandbox() && s.Ring == Next {
		wrong("spec.ring is next, and what a sandbox has not of its own (spec.functions) is the ring stable's: set spec.ring to stable")
	}
	for _, list := range [][]string{s.Hosts.Link, s.Hosts.Form} {
		for i, h := range list {
			if len(h) > 253 || !host.MatchString(h) {
				wrong("spec.hosts has %q: want a host's name in lower case, such as links.example.com", h)
			}
			if slices.Contains(list[:i], h) {
				wrong("spec.hosts has %q twice: the first of a list is where new links lead, so leave out one of the two", h)
			}
		}
	}
	if q := s.Quotas.MailsPerSecond; q != nil && !(*q >= 0.01 && *q <= 1e6) {
		wrong("spec.quotas.mailsPerSecond is %g: want 0.01 to 1000000", *q)
	}
	if q := s.Quotas.MailsPerDay; q != nil && *q < 0 {
		wrong("spec.quotas.mailsPerDay is %d: want 0 or more", *q)
	}
	if q := s.Quotas.MailsPerMonth; q != nil && *q < 0 {
		wrong("spec.quotas.mailsPerMonth is %d: want 0 or more", *q)
	}
	if s.SMTPSecret != "" && !secret.MatchString(s.SMTPSecret) {
		wrong("spec.smtpSecret is %q: want the name of a Secret of at most 63 letters in lower case, digits and hyphens, such as %s-relay", s.SMTPSecret, t.Metadata.Name)
	}
	for _, f := range s.notYet() {
		if f.value != nil {
			wrong("spec.%s is not yet read: leave it out; %s", f.name, f.instead)
		}
	}
	return errors.Join(errs...)
}

// unread is a field that nothing reads yet, and what is so instead.
type unread struct {
	name    string
	value   any
	instead string
}

func (s Spec) notYet() []unread {
	return []unread{
		{"domains", s.Domains, "a mail is from whatever address its document says (from), so take care that the domain allows the relay to send"},
		{"retention", s.Retention, "the tenant's settings say how long data is kept (retention in the document Settings)"},
	}
}

// Read reads and checks one file.
func Read(fsys fs.FS, name string) (*Tenant, error) {
	text, err := fs.ReadFile(fsys, name)
	if err != nil {
		return nil, err
	}
	return parse(name, text)
}

func parse(name string, text []byte) (*Tenant, error) {
	if len(text) > maxFile {
		return nil, fmt.Errorf("%s: has %d bytes, at most %d are read", name, len(text), maxFile)
	}
	t := &Tenant{File: name}
	d := yaml.NewDecoder(bytes.NewReader(text), yaml.Strict())
	switch err := d.Decode(t); {
	case errors.Is(err, io.EOF):
		return nil, fmt.Errorf("%s: is empty: write the tenant, or remove the file", name)
	case err != nil:
		return nil, fmt.Errorf("%s: %s", name, yaml.FormatError(err, false, false))
	}
	if err := d.Decode(&Tenant{}); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%s: has more than one document: each tenant has a file of its own", name)
	}
	return t, t.Check()
}

// ReadAll reads the files of all tenants: NAME/tenant.yaml, as in Git, or NAME.yaml, as a ConfigMap has them. All that is wrong is told at once, and then no tenant is given.
func ReadAll(fsys fs.FS) ([]*Tenant, error) {
	entries, err := fs.ReadDir(fsys, ".")
	if err != nil {
		return nil, err
	}
	var all []*Tenant
	var errs []error
	for _, e := range entries {
		name, file := strings.TrimSuffix(e.Name(), ".yaml"), e.Name()
		info, err := fs.Stat(fsys, e.Name()) // a ConfigMap's files are links
		switch {
		case strings.HasPrefix(e.Name(), ".") || err != nil:
			continue
		case info.IsDir():
			if file = path.Join(e.Name(), "tenant.yaml"); !exists(fsys, file) {
				errs = append(errs, fmt.Errorf("%s: has no tenant.yaml: remove the directory, or make the tenant", e.Name()))
				continue
			}
		case name == e.Name() || name == "kustomization":
			continue
		}
		t, err := Read(fsys, file)
		if err == nil && t.Metadata.Name != name {
			err = fmt.Errorf("%s: metadata.name is %q: want %q, as the file is called", file, t.Metadata.Name, name)
		}
		if i := slices.IndexFunc(all, func(t *Tenant) bool { return t.Metadata.Name == name }); err == nil && i >= 0 {
			err = fmt.Errorf("%s: is of the same tenant as %s: remove one of the two", file, all[i].File)
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		all = append(all, t)
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	return all, nil
}

func exists(fsys fs.FS, name string) bool {
	_, err := fs.Stat(fsys, name)
	return err == nil
}
