package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/onda-run/onda/internal/fieldindex"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/token"
)

type migrateCmd struct {
	Stage   string `enum:",production,preproduction" default:"" placeholder:"STAGE" help:"Say what the database is for: production, or preproduction, where nobody real is mailed. Otherwise it stays what it is."`
	Confirm string `placeholder:"DATABASE" help:"The database's name, to make a production of a pre-production."`
}

// Help is shown by --help.
func (migrateCmd) Help() string {
	return "Needs ONDA_ADMIN_DATABASE_URL. Safe to run again, and while the version before is still at work.\n\n" +
		"In a pre-production a relay with a user and password is refused, and mails go to ONDA_PREPRODUCTION_TO or, without it, to nobody; pages and reports say so. Mark a copy of " +
		"production before anything is started on it.\n\nExample:\n  onda migrate\n  onda migrate --stage preproduction"
}

// Run brings the database to the newest schema.
func (c migrateCmd) Run(ctx context.Context, s *session) error {
	a, err := s.admin(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = a.Close(ctx) }()
	m, err := a.Migrate(ctx)
	if c.Stage != "" { // also where a tenant was left behind: the rest can be mailed
		err = errors.Join(err, a.SetStage(ctx, postgres.Stage(c.Stage), c.Confirm))
	}
	stage, name, failed := a.Stage(ctx)
	switch {
	case errors.Is(err, postgres.ErrUnconfirmed) && failed == nil:
		return fmt.Errorf("%w: if that is meant, say --stage production --confirm %s", err, name)
	case failed != nil:
		return cmp.Or(err, failed)
	}
	made, dropped, unmade := s.index(ctx, a) // also where a tenant was left behind: what is unique is enforced by these alone
	err = errors.Join(err, unmade)
	if ok, failed := s.data(struct { // also of what was done beside an error
		postgres.Migrated
		Stage   postgres.Stage `json:"stage"`
		Indexed int            `json:"indexed"` // indexes on contacts that were made
	}{m, stage, made}); ok {
		return errors.Join(err, failed)
	}
	s.print("%s of the shared schema applied, %s brought up to date", count(m.Shared, "migration"), count(len(m.Tenants), "tenant"))
	if n := len(m.Indexes); n > 0 {
		s.print("indexes on tables: %d made", n)
	}
	if made+dropped > 0 {
		s.print("indexes on contacts: %d made, %d dropped", made, dropped)
	}
	if stage == postgres.Preproduction {
		s.print("%s is a pre-production: nobody real is mailed", name)
	}
	return err
}

// index makes the indexes on contacts that the documents of tenants want. One that fails keeps no other from theirs, but where any would wait for the same.
func (s *session) index(ctx context.Context, a *postgres.Admin) (made, dropped int, err error) {
	tenants, err := a.Tenants(ctx)
	if err != nil {
		return 0, 0, err
	}
	var errs []error
	for _, t := range tenants {
		done, said, err := fieldindex.Ensure(ctx, a, t.Name)
		made, dropped = made+len(done.Made), dropped+len(done.Dropped)
		for i := range said {
			said[i] = t.Name + ": " + said[i]
		}
		s.warn(said)
		errs = append(errs, err)
		if errors.Is(err, postgres.ErrHeldUp) || a.Lost() {
			break
		}
	}
	return made, dropped, errors.Join(errs...)
}

type tenantCmd struct {
	Create  tenantCreateCmd  `cmd:"" help:"Make a tenant: its role, schema and keys."`
	Place   tenantPlaceCmd   `cmd:"" help:"Move a tenant out of the pool, or back, in its files."`
	Sync    tenantSyncCmd    `cmd:"" help:"Make the tenants of a cell what their files say."`
	List    tenantListCmd    `cmd:"" help:"List all tenants."`
	Suspend tenantSuspendCmd `cmd:"" help:"Let nothing of a tenant be sent any more."`
	Resume  tenantResumeCmd  `cmd:"" help:"Make a tenant active again."`
	Delete  tenantDeleteCmd  `cmd:"" help:"Delete a tenant. It can be taken back for 30 days."`
	Purge   tenantPurgeCmd   `cmd:"" help:"Remove a tenant that was deleted 30 days ago."`
	Login   tenantLoginCmd   `cmd:"" help:"Say who may enter a tenant: the pool's login, or one of its own."`
	Rearm   tenantRearmCmd   `cmd:"" help:"Let tenants go on after a restore or a failover."`
	Key     tenantKeyCmd     `cmd:"" help:"Make a key for a program of the tenant's, which is shown once, or retire it."`
	Clock   tenantClockCmd   `cmd:"" help:"Move the tenant's clock, in a database for development."`
}

type tenantListCmd struct{}

// Help is shown by --help.
func (tenantListCmd) Help() string {
	return "Needs ONDA_ADMIN_DATABASE_URL. IN is the namespace in which its functions are found: onda and onda-next are the pool's.\n\nExample:\n  onda tenant list --output json"
}

// Run lists tenants.
func (tenantListCmd) Run(ctx context.Context, s *session) error {
	a, err := s.admin(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = a.Close(ctx) }()
	tenants, err := a.Tenants(ctx)
	if err != nil {
		return err
	}
	type sized struct {
		postgres.TenantInfo
		Size int64 `json:"size"` // bytes
	}
	sizes, err := a.Sizes(ctx)
	if err != nil {
		return err
	}
	list := make([]sized, len(tenants))
	for i, t := range tenants {
		list[i] = sized{t, sizes[t.Name]}
	}
	if ok, err := s.data(list); ok {
		return err
	}
	w := tabwriter.NewWriter(s.stdout, 0, 8, 2, ' ', 0)
	moved := slices.ContainsFunc(list, func(t sized) bool { return t.Offset != 0 }) // in a database for development
	row := func(cells ...string) {
		if !moved {
			cells = cells[:len(cells)-1]
		}
		_, _ = fmt.Fprintln(w, strings.Join(cells, "\t"))
	}
	row("NUMBER", "NAME", "STATE", "IN", "ENTERED BY", "SCHEMA", "SIZE", "CREATED", "CLOCK")
	for _, t := range list {
		clock := "real"
		if t.Offset != 0 {
			clock = fmt.Sprintf("%+v", t.Offset)
		}
		state := t.State
		if !t.Armed {
			state += ", not armed"
		}
		row(strconv.Itoa(int(t.Number)), t.Name, state, t.Namespace, enteredBy(t.TenantInfo), strconv.Itoa(t.Schema), fmt.Sprintf("%.1f MB", float64(t.Size)/1e6), t.Created.UTC().Format(time.DateOnly), clock)
	}
	return w.Flush()
}

type tenantKeyCmd struct {
	Name   string `arg:"" help:"What the key is for."`
	Kind   string `help:"secret (sk: programs) or public (pk: browsers)." enum:"secret,public" default:"secret"`
	Retire bool   `help:"Let keys of this name and kind prove nothing any more."`
}

// Help is shown by --help.
func (tenantKeyCmd) Help() string {
	return "Needs ONDA_ADMIN_DATABASE_URL. Only the key's SHA-256 is stored. To replace one, make it under another name, give that to the program, and retire the first: functions " +
		"know within a minute.\n\nExample:\n  onda --tenant acme tenant key shop --kind secret\n  onda --tenant acme tenant key shop --retire"
}

// Run makes the key, or retires it.
func (c tenantKeyCmd) Run(ctx context.Context, s *session) error {
	if s.tenant == "" {
		return errNoTenant
	}
	return s.withTenant(ctx, s.tenant, func(a *postgres.Admin) error {
		t, err := a.Tenant(ctx, s.tenant)
		if err != nil {
			return err
		}
		kind := token.SecretKey
		if c.Kind == "public" {
			kind = token.PublicKey
		}
		if c.Retire {
			return c.retire(ctx, s, a, kind)
		}
		key, err := token.NewProgramKey(kind, t.Number)
		if err != nil {
			return err
		}
		sum := key.Hash()
		if err := a.AddProgramKey(ctx, t.Name, string(kind), c.Name, sum[:]); err != nil {
			return err
		}
		if ok, err := s.data(map[string]string{"key": key.Reveal()}); ok {
			return err
		}
		s.print("%s", key.Reveal())
		return nil
	})
}

func (c tenantKeyCmd) retire(ctx context.Context, s *session, a *postgres.Admin, kind token.KeyKind) error {
	n, err := a.RetireProgramKeys(ctx, s.tenant, string(kind), c.Name)
	if err != nil {
		return err
	}
	if n == 0 {
		return fmt.Errorf("tenant %s has no %s key %q in force", s.tenant, c.Kind, c.Name)
	}
	if ok, err := s.data(map[string]any{"name": c.Name, "retired": n}); ok {
		return err
	}
	s.print("%s retired: functions know within a minute", count(n, "key"))
	return nil
}

type tenantClockCmd struct {
	By time.Duration `arg:"" help:"How far, such as 72h."`
}

// Help is shown by --help.
func (tenantClockCmd) Help() string {
	return "Needs ONDA_ADMIN_DATABASE_URL and a database marked as one for development. Due dates follow the moved clock; leases do not.\n\nExample:\n  onda --tenant acme tenant clock 72h"
}

// Run moves the clock.
func (c tenantClockCmd) Run(ctx context.Context, s *session) error {
	if s.tenant == "" {
		return errNoTenant
	}
	a, err := s.admin(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = a.Close(ctx) }()
	now, err := a.MoveClock(ctx, s.tenant, c.By)
	if err != nil {
		return err
	}
	if ok, err := s.data(map[string]any{"tenant": s.tenant, "now": now.UTC()}); ok {
		return err
	}
	s.print("it is now %s for %s", now.UTC().Format(time.RFC3339), s.tenant)
	return nil
}
