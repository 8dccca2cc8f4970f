// Package pgtest gives each test a database of its own on a real Postgres: one server a package run (or the one that ONDA_TEST_DATABASE_URL
// names), a template with all migrations and the tenants acme and brava, a clone of it for each test. It is for tests only.
package pgtest

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/onda-run/onda/internal/postgres"
)

// The tenants that every test database has.
const (
	Acme  = "acme"
	Brava = "brava"
)

// managed is the login that makes databases and tenants: not a superuser.
const managed = "onda_managed"

// server is the package run's: tests cannot hand it from one to another in any other way.
var server struct {
	once  sync.Once
	err   error
	admin string // URL of database postgres, as superuser
	name  string // of the template
	stop  func()
	n     atomic.Int64
}

// Main runs a package's tests and then stops the server that they started: func TestMain(m *testing.M) { pgtest.Main(m) }.
func Main(m *testing.M) { os.Exit(Run(m)) }

// Run is Main for those who have more to do before they exit with the status.
func Run(m *testing.M) int {
	code := m.Run()
	if server.stop != nil {
		server.stop()
	}
	return code
}

// Database is a test's own.
type Database struct {
	// URL is for functions (login onda_pool), ScheduleURL for schedule's login, AdminURL for a superuser, ManagedURL for the login that made it, with no more than
	// managed servers give: CREATEROLE, CREATEDB and the database itself.
	URL, ScheduleURL, AdminURL, ManagedURL string
}

// New clones the template for one test; the clone is dropped with the test.
func New(tb testing.TB) *Database {
	tb.Helper()
	server.once.Do(start)
	if server.err != nil {
		tb.Fatalf("pgtest: %v", server.err)
	}
	return clone(tb, server.name)
}

func clone(tb testing.TB, template string) *Database {
	tb.Helper()
	ctx := context.Background()
	name := fmt.Sprintf("onda_test_%d_%d", os.Getpid(), server.n.Add(1))
	run(tb, "CREATE DATABASE "+name+" TEMPLATE "+template+" OWNER "+managed)
	tb.Cleanup(func() {
		conn, err := pgx.Connect(ctx, server.admin)
		if err != nil {
			return // the server was stopped by the test
		}
		defer func() { _ = conn.Close(ctx) }()
		_, _ = conn.Exec(ctx, "DROP DATABASE IF EXISTS "+name+" WITH (FORCE)")
	})
	return &Database{URL: at("onda_pool", name), ScheduleURL: at("onda_schedule", name), AdminURL: at("", name), ManagedURL: at(managed, name)}
}

// Copy makes a copy of the database, which nobody may be using; it is dropped with the test.
func (d *Database) Copy(tb testing.TB) *Database {
	tb.Helper()
	u, err := url.Parse(d.AdminURL)
	if err != nil {
		tb.Fatalf("pgtest: %v", err)
	}
	return clone(tb, strings.TrimPrefix(u.Path, "/"))
}

// DB opens the database as functions do, and closes it with the test.
func (d *Database) DB(tb testing.TB) *postgres.DB {
	tb.Helper()
	return d.Open(tb, postgres.Config{URL: d.URL, MaxConns: 8})
}

// Open is DB with a configuration of the test's own; its URL is d.URL when empty.
func (d *Database) Open(tb testing.TB, cfg postgres.Config) *postgres.DB {
	tb.Helper()
	if cfg.URL == "" {
		cfg.URL = d.URL
	}
	db, err := postgres.Open(cfg)
	if err != nil {
		tb.Fatalf("pgtest: %v", err)
	}
	tb.Cleanup(db.Close)
	return db
}

// Admin connects with the rights that onda migrate and onda tenant need, and no others where there is such a login.
func (d *Database) Admin(tb testing.TB) *postgres.Admin {
	tb.Helper()
	a, err := postgres.OpenAdmin(context.Background(), cmp.Or(d.ManagedURL, d.AdminURL))
	if err != nil {
		tb.Fatalf("pgtest: %v", err)
	}
	tb.Cleanup(func() { _ = a.Close(context.Background()) })
	return a
}

// Own runs statements in the tenant's schema as its owner: what a tenant's role may not do, such as make a table.
func (d *Database) Own(tb testing.TB, tenant string, statements ...string) {
	tb.Helper()
	ctx := context.Background()
	conn, err := pgx.Connect(ctx, d.AdminURL)
	if err != nil {
		tb.Fatalf("pgtest: %v", err)
	}
	defer func() { _ = conn.Close(ctx) }()
	for _, sql := range append([]string{"SET ROLE onda_owner", "SET search_path = " + pgx.Identifier{tenant}.Sanitize()}, statements...) {
		if _, err := conn.Exec(ctx, sql); err != nil {
			tb.Fatalf("in the schema of %s: %s: %v", tenant, sql, err)
		}
	}
}

// In runs f in a transaction of the tenant and fails the test on an error.
func In(tb testing.TB, db *postgres.DB, tenant string, f func(ctx context.Context, tx *postgres.Tx) error) {
	tb.Helper()
	if err := db.InTenant(context.Background(), tenant, f); err != nil {
		tb.Fatalf("in tenant %s: %v", tenant, err)
	}
}

// Exec runs one statement in the tenant.
func Exec(tb testing.TB, db *postgres.DB, tenant, sql string, args ...any) {
	tb.Helper()
	In(tb, db, tenant, func(ctx context.Context, tx *postgres.Tx) error {
		_, err := tx.Exec(ctx, sql, args...)
		return err
	})
}

// One reads one value in the tenant.
func One[T any](tb testing.TB, db *postgres.DB, tenant, sql string, args ...any) (v T) {
	tb.Helper()
	In(tb, db, tenant, func(ctx context.Context, tx *postgres.Tx) error {
		return tx.QueryRow(ctx, sql, args...).Scan(&v)
	})
	return v
}

// All reads a column in the tenant.
func All[T any](tb testing.TB, db *postgres.DB, tenant, sql string, args ...any) (v []T) {
	tb.Helper()
	In(tb, db, tenant, func(ctx context.Context, tx *postgres.Tx) error {
		rows, err := tx.Query(ctx, sql, args...)
		if err != nil {
			return err
		}
		v, err = pgx.CollectRows(rows, pgx.RowTo[T])
		return err
	})
	return v
}

// Another starts a second server, with nothing of Onda's on it, and gives its superuser's URL. It is stopped with the test.
func Another(tb testing.TB) string {
	tb.Helper()
	admin, stop, err := initdb()
	if stop != nil {
		tb.Cleanup(stop)
	}
	if err != nil {
		tb.Fatalf("pgtest: %v", err)
	}
	return admin
}

// Tool is the path of one of Postgres's programs, such as pg_dump.
func Tool(tb testing.TB, name string) string {
	tb.Helper()
	bin, err := binaries()
	if err != nil {
		tb.Fatalf("pgtest: %v", err)
	}
	return filepath.Join(bin, name)
}

func run(tb testing.TB, sql string) {
	tb.Helper()
	ctx := context.Background()
	conn, err := pgx.Connect(ctx, server.admin)
	if err == nil {
		defer func() { _ = conn.Close(ctx) }()
		_, err = conn.Exec(ctx, sql)
	}
	if err != nil {
		tb.Fatalf("pgtest: %v", err)
	}
}

// at is the URL of a database for a login; "" is the superuser's.
func at(login, database string) string {
	u, _ := url.Parse(server.admin)
	u.Path = "/" + database
	if login != "" {
		u.User = url.User(login)
	}
	q := u.Query()
	q.Set("connect_timeout", "30") // a busy machine decides no test
	u.RawQuery = q.Encode()
	return u.String()
}

func start() {
	server.admin = os.Getenv("ONDA_TEST_DATABASE_URL")
	if server.admin == "" {
		if server.admin, server.stop, server.err = initdb(); server.err != nil {
			return
		}
	}
	server.name, server.err = template()
	if server.err != nil && server.stop != nil {
		server.stop()
	}
}

// template makes the database that tests clone, once for each state of the migrations on a server.
func template() (string, error) {
	ctx := context.Background()
	sum, err := migrationsHash()
	if err != nil {
		return "", err
	}
	name := "onda_template_" + sum[:12]
	conn, err := pgx.Connect(ctx, server.admin)
	if err != nil {
		return "", err
	}
	defer func() { _ = conn.Close(ctx) }()
	if _, err := conn.Exec(ctx, "SELECT pg_advisory_lock(7177)"); err != nil { // packages run side by side on one server
		return "", err
	}
	defer func() { _, _ = conn.Exec(ctx, "SELECT pg_advisory_unlock(7177)") }()
	var have bool
	if err := conn.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)", name).Scan(&have); err != nil || have {
		return name, err
	}
	making := name + "_making"
	if _, err := conn.Exec(ctx, "DROP DATABASE IF EXISTS "+making); err != nil {
		return "", err
	}
	var login bool
	if err := conn.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = $1)", managed).Scan(&login); err != nil {
		return "", err
	}
	if !login {
		if _, err := conn.Exec(ctx, "CREATE ROLE "+managed+" LOGIN CREATEROLE CREATEDB"); err != nil {
			return "", err
		}
	}
	if _, err := conn.Exec(ctx, "CREATE DATABASE "+making+" TEMPLATE template0 OWNER "+managed); err != nil {
		return "", err
	}
	a, err := postgres.OpenAdmin(ctx, at(managed, making))
	if err != nil {
		return "", err
	}
	_, err = a.Migrate(ctx)
	if err == nil {
		err = a.MarkDevelopment(ctx)
	}
	for _, tenant := range []string{Acme, Brava} {
		if err == nil {
			_, err = a.CreateTenant(ctx, tenant)
		}
	}
	if cerr := a.Close(ctx); err == nil {
		err = cerr
	}
	if err != nil {
		return "", err
	}
	_, err = conn.Exec(ctx, "ALTER DATABASE "+making+" RENAME TO "+name)
	return name, err
}

func migrationsHash() (string, error) {
	h := sha256.New()
	err := fs.WalkDir(postgres.Migrations(), ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := fs.ReadFile(postgres.Migrations(), path)
		_, _ = fmt.Fprintf(h, "%s %d\n%s", path, len(b), b)
		return err
	})
	return hex.EncodeToString(h.Sum(nil)), err
}

// initdb makes a server on a socket of its own, without fsync. Postgres refuses root, so as root it runs as the user postgres.
func initdb() (admin string, stop func(), err error) {
	bin, err := binaries()
	if err != nil {
		return "", nil, err
	}
	dir, err := os.MkdirTemp("", "onda-pgtest-")
	if err != nil {
		return "", nil, err
	}
	stop = func() { _ = os.RemoveAll(dir) }
	attr := &syscall.SysProcAttr{Pdeathsig: syscall.SIGQUIT}
	if os.Geteuid() == 0 {
		u, err := user.Lookup("postgres")
		if err != nil {
			return "", stop, fmt.Errorf("postgres refuses to run as root, and there is no user postgres: install Debian's postgresql")
		}
		uid, _ := strconv.Atoi(u.Uid)
		gid, _ := strconv.Atoi(u.Gid)
		if err := os.Chown(dir, uid, gid); err != nil {
			return "", stop, err
		}
		attr.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	}
	data := filepath.Join(dir, "data")
	cmd := exec.CommandContext(context.Background(), filepath.Join(bin, "initdb"), "-D", data, "-U", "onda_admin", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "-N")
	cmd.SysProcAttr, cmd.Dir = attr, dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", stop, fmt.Errorf("initdb: %w: %s", err, out)
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return "", stop, err
	}
	defer func() { _ = log.Close() }()
	pg := exec.Command(filepath.Join(bin, "postgres"), "-D", data, "-k", dir, "-c", "listen_addresses=", "-c", "fsync=off", "-c", "synchronous_commit=off", //nolint:noctx // stop ends it
		"-c", "full_page_writes=off", "-c", "max_connections=300", "-c", "shared_buffers=64MB", "-c", "max_wal_size=256MB")
	pg.SysProcAttr, pg.Dir, pg.Stdout, pg.Stderr = attr, dir, log, log
	started, ended := make(chan error), make(chan struct{})
	go func() {
		defer close(ended)
		runtime.LockOSThread() // the kernel ends the server with the thread that started it, so this one is nobody else's to end
		err := pg.Start()
		started <- err
		if err == nil {
			_ = pg.Wait()
		}
	}()
	if err := <-started; err != nil {
		return "", stop, err
	}
	stop = func() {
		_ = pg.Process.Signal(syscall.SIGQUIT) // nothing in it is worth a shutdown
		<-ended
		_ = os.RemoveAll(dir)
	}
	admin = "postgres://onda_admin@/postgres?host=" + url.QueryEscape(dir)
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for {
		conn, err := pgx.Connect(ctx, admin)
		if err == nil {
			return admin, stop, conn.Close(ctx)
		}
		select {
		case <-ended:
			out, _ := os.ReadFile(filepath.Join(dir, "log"))
			return "", stop, fmt.Errorf("postgres ended at start: %s", out)
		case <-ctx.Done():
			return "", stop, fmt.Errorf("postgres did not start: %w", err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// binaries finds initdb and postgres: on the path, or where Debian keeps them.
func binaries() (string, error) {
	if p, err := exec.LookPath("initdb"); err == nil {
		if p, err = filepath.EvalSymlinks(p); err == nil {
			return filepath.Dir(p), nil
		}
	}
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin")
	if err != nil || len(found) == 0 {
		return "", fmt.Errorf("no Postgres: name one in ONDA_TEST_DATABASE_URL, or install Debian's postgresql (make test does)")
	}
	best := found[0]
	for _, f := range found { // the newest
		if v, w := version(f), version(best); v > w {
			best = f
		}
	}
	return best, nil
}

func version(bin string) int {
	n, _ := strconv.Atoi(strings.Split(filepath.Base(filepath.Dir(bin)), ".")[0])
	return n
}
