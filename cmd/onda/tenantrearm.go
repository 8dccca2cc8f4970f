package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/onda-run/onda/internal/postgres"
)

type tenantRearmCmd struct {
	Name  []string      `arg:"" optional:"" help:"The tenants."`
	All   bool          `help:"All tenants of the database."`
	Lost  postgres.Lost `enum:"nothing,window,all" default:"window" help:"What is missing: nothing, a window of each batch, or all that was due."`
	Until time.Time     `help:"When the database before was last at work, such as 2026-11-24T10:00:00Z; now by default." placeholder:"TIME"`
	Again bool          `help:"Also where the database looks as before: a snapshot of its disk was restored."`
}

// Help is shown by --help.
func (tenantRearmCmd) Help() string {
	return "Needs ONDA_ADMIN_DATABASE_URL. After a restore or a failover nothing is sent, and on another server nothing is served, until this was said. " +
		"What may have gone out and is not known becomes unknown. --lost nothing: a synchronous standby, an upgrade, the move of a tenant that was suspended. " +
		"--lost window: a standby that was moments behind. --lost all: a backup; campaigns are paused, since what they planned since is not known.\n\n" +
		"Roles are in no dump: make them on the new server first, with onda migrate and onda tenant create in a database that is dropped again.\n\n" +
		"Example:\n  onda tenant rearm --all --lost window"
}

// Run rearms the tenants, each by itself.
func (c tenantRearmCmd) Run(ctx context.Context, s *session) error {
	if c.All == (len(c.Name) > 0) {
		return usageError{"which tenants? Name them, or say --all"}
	}
	a, err := s.admin(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = a.Close(ctx) }()
	names := c.Name
	if c.All {
		tenants, err := a.Tenants(ctx)
		if err != nil {
			return err
		}
		for _, t := range tenants {
			names = append(names, t.Name)
		}
	}
	list := []postgres.Rearmed{}
	var errs []error
	for _, name := range names {
		done, err := a.Rearm(ctx, name, postgres.Rearm{Lost: c.Lost, Until: c.Until, Again: c.Again})
		if err != nil { // it keeps no other from going on
			s.tenant = name
			errs = append(errs, errors.New(s.inWords(err)))
			if a.Lost() {
				break
			}
			continue
		}
		list = append(list, done)
	}
	if ok, err := s.data(list); ok {
		return errors.Join(append(errs, err)...)
	}
	for _, done := range list {
		switch {
		case !done.Done:
			s.print("tenant %s is armed here already; if a snapshot was restored, say --again", done.Tenant)
		case len(done.Paused) > 0:
			s.print("%s; paused, to be resumed or cancelled: %s", rearmed(done), strings.Join(done.Paused, ", "))
		default:
			s.print("%s", rearmed(done))
		}
	}
	return errors.Join(errs...)
}

func rearmed(done postgres.Rearmed) string {
	return fmt.Sprintf("tenant %s is armed; of %s more it is not known whether mails went out", done.Tenant, count(int(done.Doubted), "recipient"))
}
