package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/mattn/go-isatty"
	"github.com/schollz/progressbar/v3"

	"github.com/onda-run/onda/internal/postgres"
)

// session is what the commands of one run share: streams, environment, and the database once a command asked for it.
type session struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	tenant         string
	json           bool

	file map[string]string // of the env file that onda dev leaves
	url  string            // the variable that named the database which was asked for last
	db   *postgres.DB
}

// envFile is where onda dev writes what other commands need to reach it, in the directory it was started in.
const envFile = ".onda/env"

// loadEnv reads the env file of this directory or of one above it. The real environment goes first. It names the database and has keys in it, so one that
// somebody else put there, such as above a directory in /tmp, is passed over.
func (s *session) loadEnv() error {
	dir, err := os.Getwd()
	if err != nil {
		return err
	}
	for {
		path := filepath.Join(dir, envFile)
		mine, err := ours(filepath.Dir(path), path)
		switch {
		case err == nil && mine:
			s.file, err = readEnv(path)
			return err
		case err == nil:
			_, _ = fmt.Fprintf(s.stderr, "%s is not read: it belongs to neither you nor root\n", path)
		case !errors.Is(err, fs.ErrNotExist):
			return err
		}
		up := filepath.Dir(dir)
		if up == dir {
			return nil
		}
		dir = up
	}
}

// ours tells whether all of these belong to the present user or to root.
func ours(paths ...string) (bool, error) {
	for _, path := range paths {
		info, err := os.Lstat(path)
		if err != nil {
			return false, err
		}
		if !trusted(info, os.Geteuid()) {
			return false, nil
		}
	}
	return true, nil
}

func trusted(info fs.FileInfo, user int) bool {
	stat, ok := info.Sys().(*syscall.Stat_t)
	return !ok || stat.Uid == 0 || int(stat.Uid) == user
}

func (s *session) env(name string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return s.file[name]
}

// fromDev tells whether the database is the one that onda dev left its address of.
func (s *session) fromDev() bool {
	return os.Getenv(s.url) == "" && s.file[s.url] != ""
}

// database opens the database as a function would, and checks that a tenant is named.
func (s *session) database() (*postgres.DB, string, error) {
	if s.tenant == "" {
		return nil, "", errNoTenant
	}
	db, err := s.pool()
	return db, s.tenant, err
}

// pool opens the database as a function would.
func (s *session) pool() (*postgres.DB, error) {
	if s.db == nil {
		s.url = "ONDA_DATABASE_URL"
		url := s.env(s.url)
		if url == "" {
			return nil, errors.New("ONDA_DATABASE_URL is not set: it is the URL of Postgres, such as postgres://onda_pool@host/onda (onda dev sets it for this directory)")
		}
		db, err := postgres.Open(postgres.Config{URL: url, MaxConns: 4, Tick: s.tick()})
		if err != nil {
			return nil, err
		}
		s.db = db
	}
	return s.db, nil
}

// inTenant runs f in a transaction of the tenant.
func (s *session) inTenant(ctx context.Context, f func(ctx context.Context, tx *postgres.Tx) error) error {
	db, tenant, err := s.database()
	if err != nil {
		return err
	}
	return db.InTenant(ctx, tenant, f)
}

// admin connects with the rights to make roles and schemas.
func (s *session) admin(ctx context.Context) (*postgres.Admin, error) {
	s.url = "ONDA_ADMIN_DATABASE_URL"
	url := s.env(s.url)
	if url == "" {
		return nil, errors.New("ONDA_ADMIN_DATABASE_URL is not set: it is the URL of a login that may make roles and schemas")
	}
	return postgres.OpenAdmin(ctx, url)
}

func (s *session) close() {
	if s.db != nil {
		s.db.Close()
	}
}

// print writes a line of text.
func (s *session) print(format string, args ...any) {
	_, _ = fmt.Fprintf(s.stdout, format+"\n", args...)
}

// warn writes lines to the standard error that nothing fails for.
func (s *session) warn(lines []string) {
	for _, l := range lines {
		_, _ = fmt.Fprintln(s.stderr, "warning: "+l)
	}
}

// data writes v as JSON when that was asked for; then it answers true.
func (s *session) data(v any) (bool, error) {
	if !s.json {
		return false, nil
	}
	enc := json.NewEncoder(s.stdout)
	enc.SetIndent("", "  ")
	return true, enc.Encode(v)
}

// bar is a progress bar on a terminal and nothing elsewhere. total is -1 where it is not known.
func (s *session) bar(total int64, what string) *progressbar.ProgressBar {
	f, ok := s.stderr.(*os.File)
	visible := ok && isatty.IsTerminal(f.Fd())
	return progressbar.NewOptions64(total, progressbar.OptionSetWriter(s.stderr), progressbar.OptionSetDescription(what), progressbar.OptionSetVisibility(visible),
		progressbar.OptionShowCount(), progressbar.OptionShowIts(), progressbar.OptionSetWidth(30), progressbar.OptionClearOnFinish(), progressbar.OptionSetPredictTime(true))
}
