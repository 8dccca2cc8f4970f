package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/tenantfile"
)

type tenantCreateCmd struct {
	Name       string   `arg:"" help:"Its name: a-z, 0-9 and -, at most 40."`
	Files      string   `help:"Write its file, and what a dedicated tenant is deployed from, into this directory: config/tenants of a checkout." placeholder:"DIR"`
	Region     string   `help:"Where it lives." default:"local"`
	Cell       string   `help:"Where it lives." default:"local-1"`
	Ring       string   `help:"The pool's functions that serve it: stable, or next, which gets a new version first." enum:"stable,next" default:"stable"`
	Placement  string   `help:"pooled, or dedicated: a namespace, functions and a login of its own." enum:"pooled,dedicated" default:"pooled"`
	Functions  []string `help:"Of a developer's sandbox, the functions of its own: send. The rest are the pool's." placeholder:"FUNCTION"`
	LinkHost   []string `help:"A host for its links; the first is in new ones." placeholder:"HOST"`
	FormHost   []string `help:"A host for its forms; the first is in new links to them." placeholder:"HOST"`
	SMTPSecret string   `name:"smtp-secret" help:"The Secret with a relay of its own (key url), through which its mails go instead of the relay of ONDA_SMTP_URL." placeholder:"NAME"`
	Domain     string   `help:"The cluster's domain, of which a dedicated tenant's functions are where it has no hosts: onda.test in the region local." placeholder:"DOMAIN"`
}

// Help is shown by --help.
func (tenantCreateCmd) Help() string {
	return "With --files it writes config/tenants/NAME, from which a Job in the cell makes the rest: commit it. Without, it makes role, schema and keys at once " +
		"(needs ONDA_ADMIN_DATABASE_URL), and changes nothing when the tenant is there.\n\n" +
		"What a dedicated tenant is deployed from has the class of broker that its region has. A repeat after a create --files that was killed completes it.\n\n" +
		"Example:\n  onda tenant create acme\n  onda tenant create acme --files config/tenants \\\n    --cell eu-west-1 --region eu-west\n" +
		"  onda tenant create dev-ana --files config/tenants --functions send,track"
}

// Run makes the tenant, or its files.
func (c tenantCreateCmd) Run(ctx context.Context, s *session) error {
	if c.Files != "" {
		return c.write(s)
	}
	if len(c.Functions) > 0 || c.Placement == tenantfile.Dedicated || c.Ring != tenantfile.Stable || len(c.LinkHost)+len(c.FormHost) > 0 || c.SMTPSecret+c.Domain != "" ||
		c.Region != "local" || c.Cell != "local-1" {
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
		Hosts: tenantfile.Hosts{Link: c.LinkHost, Form: c.FormHost}, SMTPSecret: c.SMTPSecret,
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
	if t.Spec.Placement == tenantfile.Dedicated {
		s.print(needsSecret, t.Namespace(), t.Metadata.Name)
	}
	if name := t.Spec.SMTPSecret; name != "" {
		s.print("the namespace of its function send needs a Secret %s with its relay under the key url, which config/components/relays mounts", name)
	}
	return nil
}

// needsSecret is said of a dedicated tenant's namespace, with its name.
const needsSecret = "its namespace %s needs a Secret onda with ONDA_DATABASE_URL of a login of its own (onda tenant login %s) and ONDA_SMTP_URL"

type tenantPlaceCmd struct {
	Name      string `arg:"" help:"The tenant."`
	Placement string `arg:"" help:"pooled, or dedicated: a namespace, functions and a login of its own." enum:"pooled,dedicated"`
	Files     string `help:"The directory with its file: config/tenants of a checkout." placeholder:"DIR" required:""`
	Domain    string `help:"The cluster's domain, of which its functions are where it has no hosts: onda.test in the region local." placeholder:"DOMAIN"`
}

// Help is shown by --help.
func (tenantPlaceCmd) Help() string {
	return "Sets spec.placement in config/tenants/NAME/tenant.yaml, and writes what a dedicated tenant is deployed from beside it, or takes that away: commit it. Nothing moves until " +
		"onda tenant sync (in a cell, the Job tenants) finds it. It is a step of several, so that no mail is lost and no link is dead: config/README.md has them in order.\n\n" +
		"Example:\n  onda tenant place acme dedicated --files config/tenants\n  onda tenant place acme pooled --files config/tenants"
}

// Run changes the files.
func (c tenantPlaceCmd) Run(_ context.Context, s *session) error {
	changed, err := tenantfile.Place(c.Files, c.Name, c.Placement, c.Domain)
	if err != nil {
		return err
	}
	if ok, err := s.data(map[string]any{"name": c.Name, "placement": c.Placement, "changed": append([]string{}, changed...)}); ok {
		return err
	}
	if len(changed) == 0 {
		s.print("its file says %s already", c.Placement)
		return nil
	}
	for _, file := range changed {
		did := "wrote"
		if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) {
			did = "removed"
		}
		s.print("%s %s", did, file)
	}
	if c.Placement == tenantfile.Dedicated {
		s.print(needsSecret, tenantfile.OwnNamespace(c.Name), c.Name)
		return nil
	}
	s.print("the pool's functions must be able to enter it before they are to (onda tenant login %s --pool)", c.Name)
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
		"What a tenant waits for is told and is no failure: it is moving, it is to be deleted and is sending, or a command set its state or purged it. What cannot be done is told, " +
		"and fails when all others were done: a host that is another tenant's, or a placement whose functions could not enter the tenant (onda tenant login), which leaves it where " +
		"it is.\n\n" + holds + "\n\nExample:\n  onda tenant sync --files config/tenants --cell eu-west-1"
}

// synced is what became of one tenant.
type synced struct {
	Name string   `json:"name"`
	Did  []string `json:"did"`
	// Waits is what keeps it from being what its file says, for now.
	Waits string `json:"waits,omitempty"`
	Ms    int64  `json:"ms"`
	Err   string `json:"error,omitempty"`

	file  *tenantfile.Tenant
	state string // that it is in
	freed bool   // hosts were taken from it
	over  bool   // nothing more is to be done
}

// Run makes the tenants what their files say.
func (c tenantSyncCmd) Run(ctx context.Context, s *session) error {
	files, err := tenantfile.ReadAll(os.DirFS(c.Files))
	if err != nil {
		return fmt.Errorf("nothing was done: %w", err)
	}
	a, err := s.admin(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = a.Close(ctx) }()
	there, err := a.Tenants(ctx)
	if err != nil {
		return err
	}
	all, failed, lost := []*synced{}, 0, ""
	for _, t := range files {
		if c.Cell == "" || t.Spec.Cell == c.Cell {
			all = append(all, &synced{Name: t.Metadata.Name, Did: []string{}, file: t})
		}
	}
	for _, one := range all {
		if one.step(ctx, s, a, (*synced).begin); a.Lost() {
			lost = one.Name
			break
		}
	}
	for _, one := range all { // once every host is free that one had and another is to have
		if lost == "" {
			if one.step(ctx, s, a, (*synced).finish); a.Lost() {
				lost = one.Name
			}
		}
		if one.Err != "" {
			failed++
		}
		if told := one.told(); !s.json && (lost == "" || len(one.Did)+len(one.Err) > 0) {
			s.print("%s: %s", one.Name, told)
		}
	}
	if lost != "" {
		err = cmp.Or(ctx.Err(), fmt.Errorf("the connection to Postgres was lost at tenant %s; what is told stays done: run it again", lost))
	} else if failed > 0 {
		err = fmt.Errorf("%d of %d tenants are not what their files say; run it again when that is mended", failed, len(all))
	}
	if ok, jerr := s.data(all); ok {
		return errors.Join(err, jerr)
	}
	if len(all) == 0 {
		s.print("no file in %s is of a tenant of cell %s", c.Files, c.Cell)
	}
	if left := leftAlone(there, files, c.Cell); len(left) > 0 {
		s.print("without a file of this cell, left as they are: %s", strings.Join(left, ", "))
	}
	return err
}

// leftAlone names the first of the tenants that are here, and of whom no file says that they are of the cell: taken away, or moved to another.
func leftAlone(there []postgres.TenantInfo, files []*tenantfile.Tenant, cell string) (left []string) {
	const most = 10
	more := 0
	for _, t := range there {
		at := slices.IndexFunc(files, func(f *tenantfile.Tenant) bool { return f.Metadata.Name == t.Name })
		switch {
		case t.State == postgres.Deleted, at >= 0 && (cell == "" || files[at].Spec.Cell == cell):
		case len(left) == most:
			more++
		case at >= 0:
			left = append(left, fmt.Sprintf("%s (%s; its file says cell %s)", t.Name, t.State, files[at].Spec.Cell))
		default:
			left = append(left, fmt.Sprintf("%s (%s)", t.Name, t.State))
		}
	}
	if more > 0 {
		left = append(left, fmt.Sprintf("and %d more", more))
	}
	return left
}

func (one *synced) told() string {
	parts := slices.DeleteFunc([]string{strings.Join(one.Did, ", "), one.Waits, one.Err}, func(s string) bool { return s == "" })
	told := cmp.Or(strings.Join(parts, "; "), "as it is")
	if one.Err != "" {
		return told
	}
	return fmt.Sprintf("%s (%d ms)", told, one.Ms)
}

// step takes the tenant a step further, unless there is none left.
func (one *synced) step(ctx context.Context, s *session, a *postgres.Admin, do func(*synced, context.Context, *postgres.Admin) error) {
	if one.over {
		return
	}
	began := time.Now()
	if err := do(one, ctx, a); err != nil {
		s.tenant = one.Name // which an error's text may name
		if one.Err != "" {
			one.Err += "; "
		}
		one.Err += s.inWords(err)
	}
	one.Ms += time.Since(began).Milliseconds()
}

// begin does what needs nothing of others: it makes the tenant where there is none, restricts it before anything can fail, frees hosts that its file does not name, and
// places it.
func (one *synced) begin(ctx context.Context, a *postgres.Admin) error {
	one.over = true // until it is found that the tenant is there and stays
	want := one.file.Spec.State
	info, err := a.Tenant(ctx, one.Name)
	isNew := errors.Is(err, postgres.ErrUnknownTenant)
	if isNew {
		var there bool
		if there, err = one.create(ctx, a); !there {
			return err
		}
		info.State = postgres.Active
	}
	if err != nil {
		return err
	}
	one.state = info.State
	switch {
	case one.state == postgres.Moving:
		one.Waits = "it is moving: onda tenant resume ends that"
		return nil
	case want != postgres.Active:
		err = one.follow(ctx, a, want)
	case one.state == postgres.Deleted: // it stays suspended until all else is so
		err = one.follow(ctx, a, postgres.Suspended)
	}
	if err == nil && one.state == postgres.Deleted {
		_, err = a.ReleaseHosts(ctx, one.Name, nil) // a version before this one left it some
	}
	if err != nil || one.state == postgres.Deleted || want == postgres.Deleted {
		return err
	}
	if !isNew {
		if _, err := a.CreateTenant(ctx, one.Name); err != nil { // its role, after a restore into another server
			return err
		}
	}
	one.over = false
	hosts := one.file.Spec.Hosts
	if one.freed, err = a.ReleaseHosts(ctx, one.Name, slices.Concat(hosts.Link, hosts.Form)); err != nil {
		return err
	}
	return one.place(ctx, a, info, isNew)
}

// finish gives the tenant its hosts, and makes it active when all else is as its file says.
func (one *synced) finish(ctx context.Context, a *postgres.Admin) error {
	hosts, err := a.SetHosts(ctx, one.Name, one.file.Spec.Hosts.Link, one.file.Spec.Hosts.Form)
	if err != nil {
		return err
	}
	if hosts || one.freed {
		one.Did = append(one.Did, "hosts set")
	}
	q := one.file.Spec.Quotas
	quotas, err := a.SetQuotas(ctx, one.Name, postgres.Quotas{PerSecond: q.MailsPerSecond, PerDay: q.MailsPerDay, PerMonth: q.MailsPerMonth})
	if err != nil {
		return err
	}
	if quotas {
		one.Did = append(one.Did, "quotas set")
	}
	relay, err := a.SetSMTPSecret(ctx, one.Name, one.file.Spec.SMTPSecret)
	if err != nil {
		return err
	}
	if relay {
		one.Did = append(one.Did, "relay set")
	}
	if one.file.Spec.State == postgres.Active && one.Err == "" {
		return one.follow(ctx, a, postgres.Active)
	}
	return nil
}

// create makes the tenant, and tells whether it is there: not when its file says deleted, and not when a tenant of its name was purged.
func (one *synced) create(ctx context.Context, a *postgres.Admin) (there bool, err error) {
	want := one.file.Spec.State
	if want == postgres.Deleted {
		return false, nil
	}
	purged, err := a.Purged(ctx, one.Name)
	if err != nil {
		return false, err
	}
	if purged {
		one.Waits = fmt.Sprintf("purged by command: the file says %s; onda tenant create %s makes a new one", want, one.Name)
		return false, nil
	}
	made, err := a.CreateTenant(ctx, one.Name)
	if made {
		one.Did = append(one.Did, "made")
	}
	return err == nil, err
}

// follow sets the tenant's state for its file, or tells what that waits for.
func (one *synced) follow(ctx context.Context, a *postgres.Admin, state string) error {
	changed, err := a.Follow(ctx, one.Name, state)
	switch {
	case errors.Is(err, postgres.ErrHeld):
		one.Waits = fmt.Sprintf("%s by command: the file says %s; onda tenant resume %s ends that", one.state, one.file.Spec.State, one.Name)
		return nil
	case errors.Is(err, postgres.ErrSending), errors.Is(err, postgres.ErrMoving), errors.Is(err, postgres.ErrPurging):
		one.Waits = err.Error()
		return nil
	case err != nil:
		return err
	case changed && one.state == postgres.Deleted:
		one.Did = append(one.Did, "taken back")
	case changed:
		one.Did = append(one.Did, state)
	}
	one.state = state
	return nil
}

// place has the tenant's functions found where its file says that they are. Where those could not enter it, it stays where it is, and an error tells the remedy. A tenant that
// is new is placed all the same: nothing of it runs that would stop.
func (one *synced) place(ctx context.Context, a *postgres.Admin, info postgres.TenantInfo, isNew bool) error {
	to := postgres.Placement{Namespace: one.file.Namespace(), Own: slices.Sorted(slices.Values(one.file.Spec.Functions))}
	if !isNew && (to.Namespace != info.Namespace || !slices.Equal(to.Own, info.Own)) {
		var remedies []string
		dedicated := one.file.Spec.Placement == tenantfile.Dedicated
		if dedicated && !info.Login {
			remedies = append(remedies, fmt.Sprintf("onda tenant login %s --password-file FILE gives it a login of its own", one.Name))
		}
		if !info.Pooled && (!dedicated || one.file.Sandbox()) {
			remedies = append(remedies, fmt.Sprintf("onda tenant login %s --pool lets the pool's enter it", one.Name))
		}
		if len(remedies) > 0 {
			return fmt.Errorf("it stays in %s: in %s its functions could not enter it; %s", info.Namespace, to.Namespace, strings.Join(remedies, ", "))
		}
	}
	moved, err := a.Place(ctx, one.Name, to)
	if moved {
		one.Did = append(one.Did, "now in "+to.Namespace)
	}
	return err
}
