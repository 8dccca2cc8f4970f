package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/onda-run/onda/internal/dev"
	"github.com/onda-run/onda/internal/localbroker"
	"github.com/onda-run/onda/internal/mailbox"
	"github.com/onda-run/onda/internal/postgres"
)

type devCmd struct {
	Port        int           `default:"8080" help:"Port of the ingress."`
	SMTPPort    int           `name:"smtp-port" default:"1025" help:"Port of the mailbox server's SMTP."`
	MailboxPort int           `default:"8025" help:"Port of the mailbox server's pages."`
	Docs        string        `type:"existingdir" help:"Directory of documents: applied at start and whenever one is edited." placeholder:"DIR"`
	State       string        `default:".onda" help:"Directory for mails and logs, kept between runs." placeholder:"DIR"`
	Binaries    string        `type:"existingdir" help:"Use these binaries of functions and watch no code." placeholder:"DIR"`
	OneProcess  bool          `help:"Run all functions in this process, for a debugger."`
	Idle        time.Duration `default:"10s" help:"How long a function may be idle before it is ended."`
	Tick        time.Duration `default:"1s" help:"How often work that is due is looked for."`
	Drop        float64       `help:"Share of events that the broker drops, 0 to 1." placeholder:"SHARE"`
	Repeat      float64       `help:"Share of events that it repeats." placeholder:"SHARE"`
	Delay       float64       `help:"Share of events that it delays." placeholder:"SHARE"`
	Reorder     float64       `help:"Share of events that it reorders." placeholder:"SHARE"`
}

// Help is shown by --help.
func (devCmd) Help() string {
	return `Starts each function's own binary at its first request and ends it when it is idle, as Knative would; routes events with the files in eventing/; and delivers mails to a mailbox server that comes along. ` +
		`Without ONDA_ADMIN_DATABASE_URL it uses a private Postgres under .onda/, which goes on when onda dev ends (scripts/postgres.sh stop ends it). ` +
		`While it runs, other commands in this directory work on it. The tenant is made if it is missing; it is "demo" if none is named.

Example:
  onda dev --docs examples/company`
}

// devLease, devMessage: shorter than in production, so that what a killed function held is taken over in seconds.
const (
	devLease   = 6 * time.Second
	devMessage = 3 * time.Second
)

// Validate finds what is wrong with the options before anything is started.
func (c devCmd) Validate() error {
	taken := map[int]string{}
	for _, p := range c.ports() {
		if p.number < 1 || p.number > 65535 {
			return fmt.Errorf("%s %d is not a port from 1 to 65535", p.flag, p.number)
		}
		if other := taken[p.number]; other != "" {
			return fmt.Errorf("%s and %s are both %d", other, p.flag, p.number)
		}
		taken[p.number] = p.flag
	}
	if c.Idle <= 0 || c.Tick <= 0 {
		return errors.New("--idle and --tick must be longer than 0s")
	}
	if err := c.chaos().Check(); err != nil {
		return fmt.Errorf("--%w", err)
	}
	return nil
}

type devPort struct {
	flag   string
	number int
	what   string
}

func (c devCmd) ports() []devPort {
	return []devPort{{"--port", c.Port, "the ingress"}, {"--smtp-port", c.SMTPPort, "the mailbox's SMTP"}, {"--mailbox-port", c.MailboxPort, "the mailbox's pages"}}
}

func (c devCmd) chaos() localbroker.Chaos {
	return localbroker.Chaos{Drop: c.Drop, Repeat: c.Repeat, Delay: c.Delay, Reorder: c.Reorder, DelayMax: 2 * time.Second}
}

func (c devCmd) base() string { return fmt.Sprintf("http://127.0.0.1:%d", c.Port) }

// free finds out which ports are taken, all at once, before Postgres is bothered.
func (c devCmd) free(ctx context.Context) error {
	var errs []error
	for _, p := range c.ports() {
		l, err := new(net.ListenConfig).Listen(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", p.number))
		switch {
		case errors.Is(err, syscall.EADDRINUSE):
			errs = append(errs, dev.PortTaken(fmt.Sprintf("port %d for %s", p.number, p.what), p.number, p.flag))
		case err != nil:
			errs = append(errs, fmt.Errorf("port %d for %s: %w; choose another with %s", p.number, p.what, err, p.flag))
		default:
			_ = l.Close()
		}
	}
	return errors.Join(errs...)
}

// alone makes sure that no other onda dev works in this directory: the two would write over each other's env file.
func alone() (release func(), err error) {
	if err := os.MkdirAll(filepath.Dir(envFile), 0o755); err != nil {
		return nil, err
	}
	path := filepath.Join(filepath.Dir(envFile), "dev.lock")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		pid, _ := io.ReadAll(f) // it only helps to find it
		_ = f.Close()
		return nil, fmt.Errorf("another onda dev (process %s) works in this directory: end it, or start this one in another checkout", strings.TrimSpace(string(pid)))
	}
	err = errors.Join(f.Truncate(0), func() error { _, err := fmt.Fprintln(f, os.Getpid()); return err }())
	return func() { _ = f.Close() }, err
}

// Run runs everything until it is interrupted.
func (c devCmd) Run(ctx context.Context, s *session) (err error) {
	if s.tenant == "" {
		s.tenant = "demo"
	}
	if _, err := os.Stat("eventing"); err != nil {
		return errors.New("there is no directory eventing here: start onda dev in a checkout of Onda, whose functions and routes it runs")
	}
	release, err := alone()
	if err != nil {
		return err
	}
	defer release()
	if err := c.free(ctx); err != nil {
		return err
	}
	env, private, err := c.prepare(ctx, s)
	if err != nil {
		return err
	}
	db, _, err := s.database() // here, so that pages and edits find it open
	if err != nil {
		return err
	}
	logs := filepath.Join(c.State, "logs")
	if err := os.MkdirAll(logs, 0o755); err != nil {
		return err
	}
	log, err := devLog(filepath.Join(logs, "dev.log"))
	if err != nil {
		return err
	}
	keys := &devKeys{path: filepath.Join(c.State, "keys"), adminURL: s.file["ONDA_ADMIN_DATABASE_URL"]}
	if s.file["ONDA_DEV_KEY"], err = keys.of(ctx, s.tenant); err != nil {
		return err
	}
	s.file["ONDA_BOUNCE_KEY"], s.file["ONDA_BOUNCE_URL"] = s.file["ONDA_DEV_KEY"], c.base()+"/bounces/"+s.tenant
	// It ends after the functions, which may be in the middle of a mail when ctx ends.
	box, err := mailbox.Start(context.WithoutCancel(ctx), mailbox.Config{
		Dir: filepath.Join(c.State, "mailbox"), SMTPAddr: fmt.Sprintf("127.0.0.1:%d", c.SMTPPort), HTTPAddr: fmt.Sprintf("127.0.0.1:%d", c.MailboxPort),
		Rules: mailbox.DefaultRules(), OnMail: newComesBack(c.base(), s.tenant, db, keys).take, Log: log.Named("mailbox"),
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, box.Close()) }()
	if c.Docs != "" {
		c.apply(ctx, s)
	}
	if err := writeEnv(envFile, s.file); err != nil {
		return err
	}
	h, err := dev.Start(ctx, c.config(s, env, logs, log))
	if err != nil {
		return err
	}
	err = s.ring(ctx) // what the documents changed
	if err == nil {
		s.print("onda is at %s/, the mailbox at http://127.0.0.1:%d/, logs in %s/; Ctrl-C ends it", h.URL(), c.MailboxPort, logs)
		<-ctx.Done()
		s.print("ending: functions finish what they are at")
	}
	err = errors.Join(err, h.Stop(context.WithoutCancel(ctx)))
	if private {
		s.print("Postgres goes on; scripts/postgres.sh stop ends it")
	}
	return err
}

func (c devCmd) config(s *session, env map[string]string, logs string, log *zap.Logger) dev.Config {
	cfg := dev.Config{
		Addr: fmt.Sprintf("127.0.0.1:%d", c.Port), Binaries: c.Binaries, Env: env,
		ServiceEnv: map[string]map[string]string{
			"schedule": {"ONDA_DATABASE_URL": login(s.file["ONDA_DATABASE_URL"], "onda_schedule"), "ONDA_SPREAD": "0s"},
		},
		Idle: c.Idle, Tick: c.Tick, Logs: logs, Output: s.stderr, Log: log, Chaos: c.chaos(),
		Links: []dev.Link{
			{Title: "Mailbox", URL: fmt.Sprintf("http://127.0.0.1:%d/", c.MailboxPort), Text: "every mail that was delivered"},
			{Title: "Reports", URL: c.base() + "/reports/" + s.tenant, Text: "what became of each campaign's mails, and the graph of a campaign"},
		},
		Routes: reportRoutes(s),
	}
	if c.OneProcess {
		cfg.Builds = builds()
	}
	if c.Docs != "" {
		cfg.Documents = []string{c.Docs}
		cfg.OnDocuments = func(ctx context.Context, _ string) error {
			c.apply(ctx, s)
			return s.ring(ctx)
		}
	}
	return cfg
}

// devLog keeps what the broker and the mailbox have to tell: the terminal is for what is said once.
func devLog(path string) (*zap.Logger, error) {
	cfg := zap.NewProductionConfig()
	cfg.OutputPaths, cfg.ErrorOutputPaths = []string{path}, []string{path}
	cfg.EncoderConfig.EncodeTime = zapcore.RFC3339NanoTimeEncoder
	cfg.DisableStacktrace, cfg.Sampling = true, nil
	log, err := cfg.Build()
	if err != nil {
		return nil, fmt.Errorf("open the log: %w", err)
	}
	return log, nil
}

// prepare brings up the database and the tenant, and knows afterwards what functions and other commands need: env is for functions, s.file for commands.
// private: the database is of this checkout.
func (c devCmd) prepare(ctx context.Context, s *session) (env map[string]string, private bool, err error) {
	adminURL := os.Getenv("ONDA_ADMIN_DATABASE_URL")
	if private = adminURL == ""; private {
		if adminURL, err = privatePostgres(ctx, s.stderr); err != nil {
			return nil, false, err
		}
		if adminURL, err = ensureDatabase(ctx, adminURL); err != nil {
			return nil, false, err
		}
	}
	s.url = "ONDA_ADMIN_DATABASE_URL"
	a, err := postgres.OpenAdmin(ctx, adminURL)
	if err != nil {
		return nil, false, err
	}
	defer func() { _ = a.Close(ctx) }()
	if serious, err := a.InProduction(ctx); err != nil || serious {
		if serious {
			err = errors.New("the database in ONDA_ADMIN_DATABASE_URL has tenants and is not for development: onda dev sends all mail to its own mailbox and lets clocks be moved; name another")
		}
		return nil, false, err
	}
	if _, err := a.Migrate(ctx); err != nil {
		return nil, false, err
	}
	if err := a.MarkDevelopment(ctx); err != nil {
		return nil, false, err
	}
	if _, err := a.CreateTenant(ctx, s.tenant); err != nil {
		return nil, false, err
	}
	dbURL := os.Getenv("ONDA_DATABASE_URL")
	if dbURL == "" || private {
		dbURL = login(adminURL, "onda_pool")
	}
	for _, url := range []string{dbURL, login(dbURL, "onda_schedule")} {
		if err := logsIn(ctx, url); err != nil {
			return nil, false, err
		}
	}
	env = map[string]string{
		"ONDA_DATABASE_URL": dbURL, "ONDA_SMTP_URL": fmt.Sprintf("smtp://127.0.0.1:%d?tls=none", c.SMTPPort),
		"ONDA_LINK_URL": c.base(), "ONDA_FORM_URL": c.base(), "ONDA_API_URL": c.base(), "ONDA_TICK": c.Tick.String(),
		"ONDA_LEASE": devLease.String(), "ONDA_MESSAGE_LIMIT": devMessage.String(), "ONDA_HIT_HOLD": "2s",
		"ONDA_TENANT": "", // of this process it is the tenant that is made; a function with it would serve no other
	}
	s.file = maps.Clone(env)
	maps.Copy(s.file, map[string]string{
		"ONDA_ADMIN_DATABASE_URL": adminURL, "ONDA_TENANT": s.tenant, "K_SINK": c.base() + "/broker", "ONDA_DEV_URL": c.base(),
		"ONDA_MAILBOX_URL": fmt.Sprintf("http://127.0.0.1:%d", c.MailboxPort),
	})
	return env, private, nil
}

// logsIn makes sure that functions will be let in: a login has no password of its own.
func logsIn(ctx context.Context, url string) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	cfg, err := pgx.ParseConfig(url)
	if err != nil {
		return errors.New("ONDA_DATABASE_URL: not a Postgres URL such as postgres://onda_pool@host/onda") // the cause would show the password
	}
	conn, err := pgx.ConnectConfig(ctx, cfg)
	var refusal *pgconn.PgError
	if errors.As(err, &refusal) {
		return fmt.Errorf("Postgres does not let the login %s in, which functions use: %s; let it in by pg_hba.conf, or give it a password and put that in PGPASSWORD or ~/.pgpass", cfg.User, refusal.Message) //nolint:staticcheck // a name
	}
	if err != nil {
		return err
	}
	return conn.Close(ctx)
}

// apply applies the documents. What is wrong with them is said, and what was in force stays in force.
func (c devCmd) apply(ctx context.Context, s *session) {
	changes, err := s.apply(ctx, c.Docs, nil)
	if err == nil {
		err = s.printChanges(changes, false)
	}
	if err != nil && !errors.Is(err, errQuiet) {
		_, _ = fmt.Fprintf(s.stderr, "onda: the documents were not applied: %s\n", s.inWords(err))
	}
}

// privatePostgres starts the Postgres of this checkout and answers its superuser's URL.
func privatePostgres(ctx context.Context, stderr io.Writer) (string, error) {
	script := "scripts/postgres.sh"
	if _, err := os.Stat(script); err != nil {
		return "", errors.New("ONDA_ADMIN_DATABASE_URL is not set, and there is no scripts/postgres.sh here that could start one: start onda dev in a checkout of Onda, or name a Postgres")
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
	defer func() { _ = conn.Close(ctx) }()
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
