package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/tenantfile"
)

// inFile is that a command which sets a tenant's state sets it in the tenant's file too.
type inFile struct {
	Files string `help:"Set the state in its file too, in this directory: config/tenants of a checkout. Commit it." placeholder:"DIR"`
}

// set runs do, which sets the tenant's state, and then has its file say so, where one is named.
func (f inFile) set(s *session, tenant, state string, do func() error) error {
	if f.Files == "" {
		return do()
	}
	wrote, err := tenantfile.SetState(f.Files, tenant, state, do)
	if err == nil && wrote != "" && !s.json {
		s.print("wrote %s: commit it", wrote)
	}
	return err
}

type tenantSuspendCmd struct {
	Name   string `arg:"" help:"The tenant."`
	Moving bool   `help:"Serve nothing at all: its data is about to be copied to another server. Suspend it first."`
	inFile
}

// Help is shown by --help.
func (tenantSuspendCmd) Help() string {
	return "Needs ONDA_ADMIN_DATABASE_URL. Nothing is sent from now on, mails stay queued; unsubscribing, preferences, forms, clicks and bounces are still " +
		"answered. With --moving nothing is: requests are told to come back later.\n\n" + holds + "\n\nExample:\n  onda tenant suspend acme\n  onda tenant suspend acme --files config/tenants"
}

// holds is what a command's state is to onda tenant sync.
const holds = "Of a tenant's file and of commands the stricter counts. What suspend and delete set, onda tenant sync does not lift: it tells of it, until onda tenant resume, " +
	"or until the file has said the same. What resume sets, a file that says suspended or deleted undoes at the next sync: say --files."

// Run suspends the tenant.
func (c tenantSuspendCmd) Run(ctx context.Context, s *session) error {
	if c.Moving && c.Files != "" {
		return usageError{"no file says that a tenant is moving: say --moving without --files"}
	}
	return s.withTenant(ctx, c.Name, func(a *postgres.Admin) error {
		state := postgres.Suspended
		if c.Moving {
			state = postgres.Moving
		}
		return c.set(s, c.Name, state, func() error {
			inHand, err := a.Suspend(ctx, c.Name, c.Moving)
			if err != nil {
				return err
			}
			if ok, err := s.data(map[string]any{"name": c.Name, "state": state, "inHand": inHand}); ok {
				return err
			}
			s.print("tenant %s is %s", c.Name, state)
			if inHand > 0 {
				s.print("%s in hand: what was handed over gets its outcome within a minute", batches(inHand))
			}
			return nil
		})
	})
}

func batches(n int) string {
	if n == 1 {
		return "1 batch is"
	}
	return fmt.Sprintf("%d batches are", n)
}

type tenantResumeCmd struct {
	Name string `arg:"" help:"The tenant."`
	inFile
}

// Help is shown by --help.
func (tenantResumeCmd) Help() string {
	return "Needs ONDA_ADMIN_DATABASE_URL. For a tenant that is suspended, moving, or deleted and not yet purged.\n\n" + holds +
		"\n\nExample:\n  onda tenant resume acme\n  onda tenant resume acme --files config/tenants"
}

// Run makes the tenant active.
func (c tenantResumeCmd) Run(ctx context.Context, s *session) error {
	return s.withTenant(ctx, c.Name, func(a *postgres.Admin) error {
		return c.set(s, c.Name, postgres.Active, func() error {
			changed, err := a.Resume(ctx, c.Name)
			if err != nil {
				return err
			}
			if ok, err := s.data(map[string]any{"name": c.Name, "state": postgres.Active, "changed": changed}); ok {
				return err
			}
			if !changed {
				s.print("tenant %s is active already", c.Name)
				return nil
			}
			s.print("tenant %s is active; what became due meanwhile is found at the next tick", c.Name)
			return nil
		})
	})
}

type tenantDeleteCmd struct {
	Name string `arg:"" help:"The tenant."`
	inFile
}

// Help is shown by --help.
func (tenantDeleteCmd) Help() string {
	return "Needs ONDA_ADMIN_DATABASE_URL. From now on nothing of it is served, and its hosts are free. Its data stays for 30 days, in which resume takes it back (and the next " +
		"onda tenant sync its hosts); purge removes it after that. Refused while it is sending: pause its campaigns, or suspend it, first.\n\n" + holds +
		"\n\nExample:\n  onda tenant delete acme\n  onda tenant delete acme --files config/tenants"
}

// Run deletes the tenant.
func (c tenantDeleteCmd) Run(ctx context.Context, s *session) error {
	return s.withTenant(ctx, c.Name, func(a *postgres.Admin) error {
		return c.set(s, c.Name, postgres.Deleted, func() error {
			purge, err := a.Delete(ctx, c.Name)
			if err != nil {
				return err
			}
			if ok, err := s.data(map[string]any{"name": c.Name, "state": postgres.Deleted, "purge": purge.UTC()}); ok {
				return err
			}
			s.print("tenant %s is deleted; until %s onda tenant resume %[1]s takes it back, after that onda tenant purge %[1]s removes it", c.Name, purge.UTC().Format(time.DateTime))
			return nil
		})
	})
}

type tenantPurgeCmd struct {
	Name string `arg:"" help:"The tenant."`
}

// Help is shown by --help.
func (tenantPurgeCmd) Help() string {
	return "Needs ONDA_ADMIN_DATABASE_URL. Removes a tenant that was deleted 30 days ago or more: schema, keys, hosts and role, for good. " +
		"Whatever a file says, onda tenant sync makes no new one of its name: onda tenant create does. Once it has begun, resume takes nothing back; run it again where it was interrupted.\n\nExample:\n  onda tenant purge acme"
}

// Run removes the tenant.
func (c tenantPurgeCmd) Run(ctx context.Context, s *session) error {
	return s.withTenant(ctx, c.Name, func(a *postgres.Admin) error {
		kept, err := a.Purge(ctx, c.Name)
		if err != nil {
			return err
		}
		if ok, err := s.data(map[string]any{"name": c.Name, "roleKept": kept}); ok {
			return err
		}
		s.print("tenant %s is removed", c.Name)
		if kept {
			s.print("its role stays: another database of the server uses it")
		}
		return nil
	})
}

type tenantLoginCmd struct {
	Name         string `arg:"" help:"The tenant."`
	PasswordFile string `help:"Give it a login of its own with the password in this file, or - for standard input." placeholder:"FILE" xor:"login"`
	Drop         bool   `help:"Take its own login away, and let the pool's enter it again." xor:"login"`
	Pool         *bool  `help:"Whether the pool's login may enter it." negatable:""`
	LoseLinks    bool   `help:"With --no-pool and --drop: also where mails were sent, whose links, that to unsubscribe among them, may find nothing any more."`
}

// Help is shown by --help.
func (tenantLoginCmd) Help() string {
	return "Needs ONDA_ADMIN_DATABASE_URL. A dedicated tenant's functions, and a sandbox's own, enter it by a login of its own; the pool's by the pool's. Both may at once, so that a tenant " +
		"moves without a pause, as config/README.md has it in order. Who is still needed where the functions are (onda tenant list) is not shut out.\n\n" +
		"Links in mails lead to where the functions were when they were sent: better leave both in for as long as those are read. A tenant with hosts of its own (spec.hosts in its " +
		"file) takes its links along.\n\n" +
		"Example:\n  onda tenant login acme --password-file secret\n  onda tenant login acme --no-pool"
}

// Run changes who may enter the tenant.
func (c tenantLoginCmd) Run(ctx context.Context, s *session) error {
	if c.PasswordFile == "" && !c.Drop && c.Pool == nil {
		return usageError{"what about its login? Say --password-file, --drop, --pool or --no-pool"}
	}
	var password string
	if c.PasswordFile != "" {
		b, err := readPassword(c.PasswordFile, s.stdin)
		if err != nil {
			return err
		}
		password = strings.TrimRight(string(b), "\r\n")
	}
	return s.withTenant(ctx, c.Name, func(a *postgres.Admin) error {
		noPool := c.Pool != nil && !*c.Pool
		err := c.mayShutOut(ctx, a, noPool)
		if err == nil && c.PasswordFile != "" {
			err = a.SetLogin(ctx, c.Name, password)
		}
		if err == nil && c.Drop {
			err = a.DropLogin(ctx, c.Name)
		}
		if err == nil && c.Pool != nil {
			err = a.SetPooled(ctx, c.Name, *c.Pool)
		}
		if err != nil {
			return err
		}
		t, err := a.Tenant(ctx, c.Name)
		if err != nil {
			return err
		}
		if ok, err := s.data(t); ok {
			return err
		}
		s.print("%s is entered by %s", t.Name, enteredBy(t))
		return nil
	})
}

// mayShutOut refuses what would leave the tenant's functions without a way in, or links in mails, that to unsubscribe among them, without anybody to answer.
func (c tenantLoginCmd) mayShutOut(ctx context.Context, a *postgres.Admin, noPool bool) error {
	if !c.Drop && !noPool {
		return nil
	}
	t, err := a.Tenant(ctx, c.Name)
	if err != nil {
		return err
	}
	own := t.Namespace == tenantfile.OwnNamespace(c.Name)
	switch {
	case c.Drop && noPool:
		return usageError{"--drop and --no-pool would let nobody enter it: say one of them"}
	case c.Drop && own:
		return fmt.Errorf("tenant %s: its functions in %s enter it by its login: have its file say placement: pooled first (onda tenant place), and onda tenant sync", c.Name, t.Namespace)
	case noPool && (!own || len(t.Own) > 0):
		return fmt.Errorf("tenant %s: its functions, or some, are the pool's: have its file say placement: dedicated first (onda tenant place), and onda tenant sync", c.Name)
	case c.LoseLinks:
		return nil
	}
	sent, err := a.HasSent(ctx, c.Name)
	if err == nil && sent {
		whose, remedy := "the pool's hosts", "leave it open to the pool"
		if c.Drop {
			whose, remedy = "its own functions", "leave it its login, and those functions where they are"
		}
		err = fmt.Errorf("tenant %s has sent mails: links in those that lead to %s, that to unsubscribe among them, would find nothing; "+
			"%s, or say --lose-links where they all lead to hosts of its own", c.Name, whose, remedy)
	}
	return err
}

func readPassword(path string, stdin io.Reader) ([]byte, error) {
	const most = 1 << 10
	if path == "-" {
		return io.ReadAll(io.LimitReader(stdin, most))
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	return io.ReadAll(io.LimitReader(f, most))
}

// enteredBy says whose logins may enter the tenant.
func enteredBy(t postgres.TenantInfo) string {
	switch {
	case t.Login && t.Pooled:
		return "pool, own"
	case t.Login:
		return "own"
	case t.Pooled:
		return "pool"
	}
	return "nobody"
}

// withTenant runs a command of the administrator's about a tenant.
func (s *session) withTenant(ctx context.Context, name string, f func(a *postgres.Admin) error) error {
	a, err := s.admin(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = a.Close(ctx) }()
	err = f(a)
	if errors.Is(err, postgres.ErrUnknownTenant) {
		s.tenant = name // which the error's text names
	}
	return err
}
