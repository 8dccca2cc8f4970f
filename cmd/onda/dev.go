package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"go.uber.org/zap"

	"github.com/onda-run/onda/internal/apply"
	"github.com/onda-run/onda/internal/bounce"
	"github.com/onda-run/onda/internal/dev"
	"github.com/onda-run/onda/internal/localbroker"
	"github.com/onda-run/onda/internal/mail"
	"github.com/onda-run/onda/internal/mailbox"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/token"
)

type devCmd struct {
	Port        int           `default:"8080" help:"Port of the ingress."`
	SMTPPort    int           `name:"smtp-port" default:"1025" help:"Port of the mailbox server's SMTP."`
	MailboxPort int           `default:"8025" help:"Port of the mailbox server's pages."`
	Docs        string        `type:"existingdir" help:"Directory of documents: applied at start and whenever one is edited." placeholder:"DIR"`
	State       string        `default:".onda" help:"Directory for what is kept between runs." placeholder:"DIR"`
	Binaries    string        `type:"existingdir" help:"Use these binaries of functions and watch no code." placeholder:"DIR"`
	OneProcess  bool          `help:"Run all functions in this process, for a debugger."`
	Idle        time.Duration `default:"10s" help:"How long a function may be idle before it is ended."`
	Tick        time.Duration `default:"1s" help:"How often work that is due is looked for."`
	Drop        float64       `help:"Share of events that the broker drops, 0 to 1."`
	Repeat      float64       `help:"Share of events that it repeats."`
	Delay       float64       `help:"Share of events that it delays."`
	Reorder     float64       `help:"Share of events that it reorders."`
}

// Help is shown by --help.
func (devCmd) Help() string {
	return `Starts each function's own binary at its first request and ends it when it is idle, as Knative would; routes events with the files in eventing/; and delivers
mails to a mailbox server that comes along. Without ONDA_ADMIN_DATABASE_URL it uses a private Postgres under .onda/. While it runs, other commands in this
directory work on it. The tenant is made if it is missing; it is "demo" if none is named.

Example:
  onda dev --docs examples/company`
}

// devLease, devMessage: shorter than in production, so that what a killed function held is taken over in seconds.
const (
	devLease   = 6 * time.Second
	devMessage = 3 * time.Second
)

// Run runs everything until it is interrupted.
func (c devCmd) Run(ctx context.Context, s *session) error {
	if s.tenant == "" {
		s.tenant = "demo"
	}
	log := zap.NewNop()
	env, err := c.prepare(ctx, s)
	if err != nil {
		return err
	}
	base := fmt.Sprintf("http://127.0.0.1:%d", c.Port)
	cfg := dev.Config{
		Addr: fmt.Sprintf("127.0.0.1:%d", c.Port), Binaries: c.Binaries, Env: env,
		ServiceEnv: map[string]map[string]string{
			"schedule": {"ONDA_DATABASE_URL": login(s.file["ONDA_DATABASE_URL"], "onda_schedule"), "ONDA_SPREAD": "0s"},
			"send-api": {"ONDA_LANE": "transactional"}, "send": {"ONDA_LANE": "bulk"},
		},
		Idle: c.Idle, Tick: c.Tick, Logs: filepath.Join(c.State, "logs"), Output: s.stderr, Log: log,
		Chaos: localbroker.Chaos{Drop: c.Drop, Repeat: c.Repeat, Delay: c.Delay, Reorder: c.Reorder, DelayMax: 2 * time.Second},
		Links: []dev.Link{
			{Title: "Mailbox", URL: fmt.Sprintf("http://127.0.0.1:%d/", c.MailboxPort), Text: "every mail that was delivered"},
			{Title: "Reports", URL: base + "/reports/" + s.tenant, Text: "what became of each campaign's mails, and the graph of a campaign"},
		},
		Routes: reportRoutes(s),
	}
	if c.OneProcess {
		cfg.Builds = builds()
	}
	if c.Docs != "" {
		cfg.Documents = []string{c.Docs}
		cfg.OnDocuments = func(ctx context.Context, dir string) error { return c.apply(ctx, s, dir) }
		if err := c.apply(ctx, s, c.Docs); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(cfg.Logs, 0o755); err != nil {
		return err
	}
	box, err := mailbox.Start(ctx, mailbox.Config{
		Dir: filepath.Join(c.State, "mailbox"), SMTPAddr: fmt.Sprintf("127.0.0.1:%d", c.SMTPPort), HTTPAddr: fmt.Sprintf("127.0.0.1:%d", c.MailboxPort),
		Rules: mailbox.DefaultRules(), OnMail: comesBack(base, s.tenant, s.file["ONDA_DEV_KEY"]), Log: log,
	})
	if err != nil {
		return err
	}
	defer box.Close()
	h, err := dev.Start(ctx, cfg)
	if err != nil {
		return err
	}
	s.print("onda is at %s/, the mailbox at http://127.0.0.1:%d/; Ctrl-C ends it", h.URL(), c.MailboxPort)
	<-ctx.Done()
	return h.Stop(context.WithoutCancel(ctx))
}

// prepare brings up the database and the tenant, and writes the env file for other commands. It answers what functions need.
func (c devCmd) prepare(ctx context.Context, s *session) (map[string]string, error) {
	adminURL := s.env("ONDA_ADMIN_DATABASE_URL")
	if adminURL == "" || s.file["ONDA_ADMIN_DATABASE_URL"] == adminURL { // the private one may have been stopped since
		var err error
		if adminURL, err = privatePostgres(ctx, s.stderr); err != nil {
			return nil, err
		}
		if adminURL, err = ensureDatabase(ctx, adminURL); err != nil {
			return nil, err
		}
	}
	a, err := postgres.OpenAdmin(ctx, adminURL)
	if err != nil {
		return nil, err
	}
	defer a.Close(ctx)
	if _, err := a.Migrate(ctx); err != nil {
		return nil, err
	}
	if err := a.MarkDevelopment(ctx); err != nil {
		return nil, err
	}
	if _, err := a.CreateTenant(ctx, s.tenant); err != nil {
		return nil, err
	}
	key, err := c.key(ctx, a, s)
	if err != nil {
		return nil, err
	}
	base := fmt.Sprintf("http://127.0.0.1:%d", c.Port)
	env := map[string]string{
		"ONDA_DATABASE_URL": login(adminURL, "onda_pool"), "ONDA_SMTP_URL": fmt.Sprintf("smtp://127.0.0.1:%d?tls=none", c.SMTPPort),
		"ONDA_LINK_URL": base, "ONDA_FORM_URL": base, "ONDA_API_URL": base, "ONDA_TICK": c.Tick.String(),
		"ONDA_LEASE": devLease.String(), "ONDA_MESSAGE_LIMIT": devMessage.String(), "ONDA_HIT_HOLD": "2s",
	}
	s.file = maps.Clone(env)
	maps.Copy(s.file, map[string]string{
		"ONDA_ADMIN_DATABASE_URL": adminURL, "ONDA_TENANT": s.tenant, "K_SINK": base + "/broker", "ONDA_DEV_KEY": key, "ONDA_DEV_URL": base,
		"ONDA_MAILBOX_URL": fmt.Sprintf("http://127.0.0.1:%d", c.MailboxPort),
	})
	var file bytes.Buffer
	for _, k := range slices.Sorted(maps.Keys(s.file)) {
		fmt.Fprintf(&file, "%s=%s\n", k, s.file[k])
	}
	if err := os.MkdirAll(filepath.Dir(envFile), 0o755); err != nil {
		return nil, err
	}
	return env, os.WriteFile(envFile, file.Bytes(), 0o600) // it holds a key
}

// key is a secret key of the tenant's for the mailbox server, which hands back bounces: the one of the last run if it is still there.
func (c devCmd) key(ctx context.Context, a *postgres.Admin, s *session) (string, error) {
	tenants, err := a.Tenants(ctx)
	if err != nil {
		return "", err
	}
	i := slices.IndexFunc(tenants, func(t postgres.TenantInfo) bool { return t.Name == s.tenant })
	if old, err := token.ParseProgramKey(s.file["ONDA_DEV_KEY"]); err == nil && old.Tenant == tenants[i].Number {
		sum := old.Hash()
		if ok, err := a.HasProgramKey(ctx, s.tenant, sum[:]); err != nil || ok {
			return old.Reveal(), err
		}
	}
	k, err := token.NewProgramKey(token.SecretKey, tenants[i].Number)
	if err != nil {
		return "", err
	}
	sum := k.Hash()
	return k.Reveal(), a.AddProgramKey(ctx, s.tenant, string(token.SecretKey), "onda dev", sum[:])
}

func (c devCmd) apply(ctx context.Context, s *session, dir string) error {
	changes, err := s.documents(ctx, dir, apply.Apply)
	if errors.Is(err, errQuiet) {
		return nil // the problems are on the terminal; what is in force stays
	}
	if err != nil {
		return err
	}
	return s.printChanges(slices.DeleteFunc(changes, func(c apply.Change) bool { return c.Action == apply.Keep }), false)
}

// privatePostgres starts the Postgres of this checkout and answers its superuser's URL.
func privatePostgres(ctx context.Context, stderr io.Writer) (string, error) {
	script := "scripts/postgres.sh"
	if _, err := os.Stat(script); err != nil {
		return "", errors.New("ONDA_ADMIN_DATABASE_URL: is not set; outside of a checkout of Onda there is no Postgres that could be started for you")
	}
	cmd := exec.CommandContext(ctx, script, "start")
	cmd.Stderr = stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("start Postgres with %s: %w", script, err)
	}
	return strings.TrimSpace(string(out)), nil
}

// ensureDatabase makes the database onda on a server, and answers its URL.
func ensureDatabase(ctx context.Context, adminURL string) (string, error) {
	u, err := url.Parse(adminURL)
	if err != nil {
		return "", fmt.Errorf("URL of Postgres: %w", err)
	}
	conn, err := pgx.Connect(ctx, adminURL)
	if err != nil {
		return "", fmt.Errorf("connect to postgres: %w", err)
	}
	defer conn.Close(ctx)
	var there bool
	if err := conn.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_database WHERE datname = 'onda')").Scan(&there); err != nil {
		return "", fmt.Errorf("look for database onda: %w", err)
	}
	if !there {
		if _, err := conn.Exec(ctx, "CREATE DATABASE onda TEMPLATE template0 ENCODING 'UTF8'"); err != nil {
			return "", fmt.Errorf("make database onda: %w", err)
		}
	}
	u.Path = "/onda"
	return u.String(), nil
}

// login is a URL with another user and, since it is another's, no password.
func login(dbURL, user string) string {
	u, err := url.Parse(dbURL)
	if err != nil {
		return dbURL // it was parsed before
	}
	u.User = url.User(user)
	return u.String()
}

// comesBack hands mails to a return path, or to the address of List-Unsubscribe, to the bounce function, as a relay's pipe would.
func comesBack(base, tenant, key string) func(ctx context.Context, rcpt string, raw []byte) (bool, error) {
	client := &http.Client{Timeout: 20 * time.Second}
	return func(ctx context.Context, rcpt string, raw []byte) (bool, error) {
		_, bounced := mail.ReturnPathToken(rcpt)
		if !bounced && !strings.HasPrefix(rcpt, "u+") {
			return false, nil
		}
		r, err := http.NewRequestWithContext(ctx, http.MethodPost, base+"/bounces/"+tenant, bytes.NewReader(raw))
		if err != nil {
			return true, err
		}
		r.Header.Set("Content-Type", "message/rfc822")
		r.Header.Set(bounce.RecipientHeader, rcpt)
		r.SetBasicAuth(key, "")
		resp, err := client.Do(r)
		if err != nil {
			return true, fmt.Errorf("hand over to bounce: %w", err)
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return true, fmt.Errorf("bounce answers %s", resp.Status)
		}
		return true, nil
	}
}
