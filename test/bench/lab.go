package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/onda-run/onda/internal/apply"
	"github.com/onda-run/onda/internal/postgres"
)

// tenant is whose paths are measured.
const tenant = "bench"

// lab is a database for one path, and what belongs to it until the path is measured.
type lab struct {
	url      string // of the database, as superuser: the references use it
	poolURL  string // as functions enter it
	sink     string // takes the events that functions publish
	database string
	profiles string
	db       *postgres.DB
	tenant   string
	side     *side
	mails    int    // of a round of sending
	contacts int    // of the world that it began as a copy of
	plot     string // file for a plot of the rate of sending; empty for none
	// postmaster is the server's first process; 0 until it is asked for.
	postmaster int
	closers    []func() error // run in reverse
}

// options are what a lab is made with.
type options struct {
	server   string // the URL of a Postgres superuser
	profiles string // a directory for CPU profiles; empty for none
	plot     string // a file for a plot of the rate of sending; empty for none
	mails    int    // of a round of sending
	contacts int    // it begins as a copy of a world of so many; 0 for an empty database
	// partitions are how many the facts of that world lie in.
	partitions int
}

func newLab(ctx context.Context, o options) (l *lab, err error) {
	l = &lab{tenant: tenant, profiles: o.profiles, plot: o.plot, mails: o.mails, contacts: o.contacts}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.close())
		}
	}()
	u, err := url.Parse(o.server)
	if err != nil || u.Scheme == "" {
		return l, errors.New("ONDA_BENCH_DATABASE_URL: not a URL such as postgres://postgres@host/postgres")
	}
	template := "template0"
	if o.contacts > 0 {
		if template, err = world(ctx, o.server, o.contacts); err != nil {
			return l, err
		}
	}
	conn, err := pgx.Connect(ctx, o.server)
	if err != nil {
		return l, fmt.Errorf("connect to postgres: %w", err)
	}
	l.closers = append(l.closers, func() error { return conn.Close(context.Background()) })
	l.database = fmt.Sprintf("onda_bench_%d", os.Getpid())
	for _, sql := range []string{"DROP DATABASE IF EXISTS " + l.database + " WITH (FORCE)", "CREATE DATABASE " + l.database + " TEMPLATE " + template + " STRATEGY file_copy"} {
		if _, err := conn.Exec(ctx, sql); err != nil {
			return l, fmt.Errorf("make a database: %w", err)
		}
	}
	l.closers = append(l.closers, func() error {
		conn, err := pgx.Connect(context.Background(), o.server) // the other may have ended with its server
		if err != nil {
			return fmt.Errorf("drop a database: %w", err)
		}
		_, err = conn.Exec(context.Background(), "DROP DATABASE IF EXISTS "+l.database+" WITH (FORCE)")
		return errors.Join(err, conn.Close(context.Background()))
	})
	u.Path = "/" + l.database
	l.url = u.String()
	u.User = url.User("onda_pool")
	l.poolURL = u.String()
	admin, err := postgres.OpenAdmin(ctx, l.url)
	if err != nil {
		return l, err
	}
	defer func() { err = errors.Join(err, admin.Close(context.Background())) }()
	if _, err := admin.Migrate(ctx); err != nil { // a world may be older
		return l, err
	}
	if o.contacts == 0 {
		if _, err := admin.CreateTenant(ctx, tenant); err != nil {
			return l, err
		}
	}
	if l.db, err = postgres.Open(postgres.Config{URL: l.poolURL, MaxConns: 2}); err != nil {
		return l, err
	}
	l.closers = append(l.closers, func() error { l.db.Close(); return nil })
	if o.contacts > 0 && o.partitions > 1 {
		if err := l.spread(ctx, o.partitions); err != nil {
			return l, err
		}
	}
	return l, l.takeEvents(ctx)
}

// takeEvents is a broker that takes every event and does nothing with it: so publishing costs what it does.
func (l *lab) takeEvents(ctx context.Context) error {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("listen for events: %w", err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusAccepted) }), ReadHeaderTimeout: time.Minute}
	go func() { _ = server.Serve(listener) }()
	l.sink = "http://" + listener.Addr().String()
	l.closers = append(l.closers, server.Close)
	return nil
}

// close gives everything back, the side's process first.
func (l *lab) close() error {
	var errs []error
	if l.side != nil {
		_, err := l.side.end()
		errs = append(errs, err)
	}
	for i := len(l.closers) - 1; i >= 0; i-- {
		errs = append(errs, l.closers[i]())
	}
	l.closers = nil
	return errors.Join(errs...)
}

// exec runs statements of the tenant, each in a transaction of its own.
func (l *lab) exec(ctx context.Context, statements ...string) error {
	for _, sql := range statements {
		err := l.db.InTenant(ctx, l.tenant, func(ctx context.Context, tx *postgres.Tx) error {
			_, err := tx.Exec(ctx, sql)
			return err
		})
		if err != nil {
			return fmt.Errorf("%.80s: %w", strings.Join(strings.Fields(sql), " "), err)
		}
	}
	return nil
}

// own runs statements in the tenant's schema as its owner: a tenant's role makes and truncates no table.
func (l *lab) own(ctx context.Context, statements ...string) error {
	return l.super(ctx, func(conn *pgx.Conn) error {
		for _, sql := range append([]string{"SET ROLE onda_owner", "SET search_path = " + l.tenant}, statements...) {
			if _, err := conn.Exec(ctx, sql); err != nil {
				return fmt.Errorf("%s: %w", sql, err)
			}
		}
		return nil
	})
}

// super runs f on a connection as superuser.
func (l *lab) super(ctx context.Context, f func(conn *pgx.Conn) error) error {
	conn, err := pgx.Connect(ctx, l.url)
	if err != nil {
		return fmt.Errorf("connect to postgres: %w", err)
	}
	defer func() { _ = conn.Close(context.Background()) }()
	return f(conn)
}

// superOne reads a value as superuser.
func superOne[T any](ctx context.Context, l *lab, sql string) (v T, err error) {
	err = l.super(ctx, func(conn *pgx.Conn) error {
		if err := conn.QueryRow(ctx, sql).Scan(&v); err != nil {
			return fmt.Errorf("%s: %w", sql, err)
		}
		return nil
	})
	return v, err
}

// one reads a number.
func (l *lab) one(ctx context.Context, sql string, args ...any) (n int64, err error) {
	err = l.db.InTenant(ctx, l.tenant, func(ctx context.Context, tx *postgres.Tx) error { return tx.QueryRow(ctx, sql, args...).Scan(&n) })
	return n, err
}

// timed runs one statement of the tenant and gives how long it took, the commit included.
func (l *lab) timed(ctx context.Context, sql string, args ...any) (rows int64, took time.Duration, err error) {
	began := time.Now()
	err = l.db.InTenant(ctx, l.tenant, func(ctx context.Context, tx *postgres.Tx) error {
		tag, err := tx.Exec(ctx, sql, args...)
		rows = tag.RowsAffected()
		return err
	})
	return rows, time.Since(began), err
}

// apply stores documents as onda apply does.
func (l *lab) apply(ctx context.Context, documents string) (err error) {
	dir, err := os.MkdirTemp("", "onda-bench-")
	if err != nil {
		return fmt.Errorf("make a directory of documents: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := os.WriteFile(filepath.Join(dir, "all.yaml"), []byte(documents), 0o600); err != nil {
		return fmt.Errorf("write documents: %w", err)
	}
	_, _, err = apply.Directory(ctx, l.db, l.tenant, os.DirFS(dir), nil)
	return err
}

// refresh does what autovacuum would have done by the time.
func (l *lab) refresh(ctx context.Context) error {
	return l.super(ctx, func(conn *pgx.Conn) error {
		if _, err := conn.Exec(ctx, "VACUUM (ANALYZE)"); err != nil {
			return fmt.Errorf("vacuum: %w", err)
		}
		return nil
	})
}
