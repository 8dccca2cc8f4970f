package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/tenantfile"
)

type tenantCreateCmd struct {
	Name      string   `arg:"" help:"Its name: a-z, 0-9 and -, at most 40."`
	Files     string   `help:"Write its file, and what a dedicated tenant is deployed from, into this directory: config/tenants of a checkout." placeholder:"DIR"`
	Region    string   `help:"Where it lives." default:"local"`
	Cell      string   `help:"Where it lives." default:"local-1"`
	Ring      string   `help:"The pool's functions that serve it: stable, or next, which gets a new version first." enum:"stable,next" default:"stable"`
	Placement string   `help:"pooled, or dedicated: a namespace, functions and a login of its own." enum:"pooled,dedicated" default:"pooled"`
	Functions []string `help:"Of a developer's sandbox, the functions of its own: send. The rest are the pool's." placeholder:"FUNCTION"`
	LinkHost  []string `help:"A host for its links; the first is in new ones." placeholder:"HOST"`
	FormHost  []string `help:"A host for its forms; the first is in new links to them." placeholder:"HOST"`
	Domain    string   `help:"The cluster's domain, of which a dedicated tenant's functions are where it has no hosts." default:"onda.test"`
}

// Help is shown by --help.
func (tenantCreateCmd) Help() string {
	return "With --files it writes config/tenants/NAME, from which a Job in the cell makes the rest: commit it. Without, it makes role, schema and keys at once " +
		"(needs ONDA_ADMIN_DATABASE_URL), and changes nothing when the tenant is there.\n\n" +
		"Example:\n  onda tenant create acme\n  onda tenant create acme --files config/tenants \\\n    --cell eu-west-1 --region eu-west\n" +
		"  onda tenant create dev-ana --files config/tenants --functions send"
}

// Run makes the tenant, or its files.
func (c tenantCreateCmd) Run(ctx context.Context, s *session) error {
	if c.Files != "" {
		return c.write(s)
	}
	if len(c.Functions) > 0 || c.Placement == tenantfile.Dedicated || c.Ring != tenantfile.Stable || len(c.LinkHost)+len(c.FormHost) > 0 {
		return usageError{"where a tenant is, is said by its file: say --files config/tenants"}
	}
	a, err := s.admin(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = a.Close(ctx) }()
	began := time.Now()
	made, err := a.CreateTenant(ctx, c.Name)
	if err != nil {
		return err
	}
	took := time.Since(began)
	if ok, err := s.data(map[string]any{"name": c.Name, "made": made, "ms": took.Milliseconds()}); ok {
		return err
	}
	if made {
		s.print("tenant %s made in %d ms", c.Name, took.Milliseconds())
	} else {
		s.print("tenant %s is there already", c.Name)
	}
	return nil
}

func (c tenantCreateCmd) write(s *session) error {
	t := &tenantfile.Tenant{Spec: tenantfile.Spec{
		Region: c.Region, Cell: c.Cell, Ring: c.Ring, State: postgres.Active, Placement: c.Placement, Functions: c.Functions,
		Hosts: tenantfile.Hosts{Link: c.LinkHost, Form: c.FormHost},
	}}
	t.Metadata.Name = c.Name
	if t.Sandbox() {
		t.Spec.Placement = tenantfile.Dedicated
	}
	wrote, err := tenantfile.Add(c.Files, t, c.Domain)
	if err != nil {
		return err
	}
	if ok, err := s.data(map[string]any{"name": c.Name, "wrote": wrote}); ok {
		return err
	}
	for _, file := range wrote {
		s.print("wrote %s", file)
	}
	s.print("commit them; the Job tenants of cell %s makes schema, role and keys, or onda tenant sync --files %s does now", c.Cell, c.Files)
	if c := t.Spec; c.Placement == tenantfile.Dedicated {
		s.print("its namespace %s needs a Secret onda with ONDA_DATABASE_URL of a login of its own (onda tenant login %s) and ONDA_SMTP_URL", t.Namespace(), t.Metadata.Name)
	}
	return nil
}

type tenantSyncCmd struct {
	Files string `help:"The directory with the tenants' files: NAME/tenant.yaml or NAME.yaml." placeholder:"DIR" required:""`
	Cell  string `help:"Whose tenants; all when empty." env:"ONDA_CELL" placeholder:"CELL"`
}

// Help is shown by --help.
func (tenantSyncCmd) Help() string {
	return "Needs ONDA_ADMIN_DATABASE_URL. Makes each tenant that is missing (role, schema, keys), and its state, its hosts and where its functions are what its file " +
		"says. What is so already stays as it is: safe to repeat, and two at once. A file that is wrong is told, and then nothing is done. A tenant without a file is left alone.\n\n" +
		"Example:\n  onda tenant sync --files config/tenants --cell eu-west-1"
}

// synced is what became of one tenant.
type synced struct {
	Name string   `json:"name"`
	Did  []string `json:"did"`
	Ms   int64    `json:"ms"`
	Err  string   `json:"error,omitempty"`
}

// Run makes the tenants what their files say.
func (c tenantSyncCmd) Run(ctx context.Context, s *session) error {
	tenants, err := tenantfile.ReadAll(os.DirFS(c.Files), c.Cell)
	if err != nil {
		return fmt.Errorf("nothing was done: %w", err)
	}
	a, err := s.admin(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = a.Close(ctx) }()
	all, failed := make([]synced, 0, len(tenants)), 0
	for _, t := range tenants {
		began := time.Now()
		did, err := syncTenant(ctx, a, t)
		one := synced{Name: t.Metadata.Name, Did: did, Ms: time.Since(began).Milliseconds()}
		if err != nil {
			one.Err = err.Error()
			failed++
		}
		all = append(all, one)
		if !s.json {
			s.print("%s: %s", one.Name, told(one))
		}
	}
	if ok, err := s.data(all); ok && err != nil {
		return err
	}
	if failed > 0 {
		return fmt.Errorf("%d of %d tenants are not what their files say; run it again when that is mended", failed, len(tenants))
	}
	return nil
}

func told(one synced) string {
	what := strings.Join(one.Did, ", ")
	if what == "" {
		what = "as it is"
	}
	if one.Err != "" {
		return what + "; " + one.Err
	}
	return fmt.Sprintf("%s (%d ms)", what, one.Ms)
}

// syncTenant makes one tenant what its file says, and tells what it had to do.
func syncTenant(ctx context.Context, a *postgres.Admin, t *tenantfile.Tenant) ([]string, error) {
	name, did := t.Metadata.Name, []string{}
	info, err := a.Tenant(ctx, name)
	state := info.State
	if errors.Is(err, postgres.ErrUnknownTenant) {
		if t.Spec.State == postgres.Deleted {
			return did, nil
		}
		state = postgres.Active
	} else if err != nil {
		return did, err
	}
	if state == postgres.Deleted {
		if t.Spec.State == postgres.Deleted {
			return did, nil
		}
		if _, err := a.Resume(ctx, name); err != nil {
			return did, err
		}
		if state = postgres.Active; t.Spec.State == postgres.Suspended { // before anything below can fail
			state = postgres.Suspended
			if _, err := a.Suspend(ctx, name, false); err != nil {
				return did, err
			}
		}
		did = append(did, "taken back")
	}
	made, err := a.CreateTenant(ctx, name)
	if err != nil {
		return did, err
	}
	if made {
		did = append(did, "made")
	}
	moved, err := a.Place(ctx, name, postgres.Placement{Namespace: t.Namespace(), Own: t.Spec.Functions})
	if err != nil {
		return did, err
	}
	if moved {
		did = append(did, "now in "+t.Namespace())
	}
	hosts, err := a.SetHosts(ctx, name, t.Spec.Hosts.Link, t.Spec.Hosts.Form)
	if err != nil {
		return did, err
	}
	if hosts {
		did = append(did, "hosts set")
	}
	if state == t.Spec.State {
		return did, nil
	}
	if state == postgres.Moving {
		return did, errors.New("it is moving: its state is left to onda tenant resume")
	}
	switch t.Spec.State {
	case postgres.Active:
		_, err = a.Resume(ctx, name)
	case postgres.Suspended:
		_, err = a.Suspend(ctx, name, false)
	case postgres.Deleted:
		_, err = a.Delete(ctx, name)
	}
	if err != nil {
		return did, err
	}
	return append(did, t.Spec.State), nil
}
