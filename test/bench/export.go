package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/onda-run/onda/internal/csvexport"
	"github.com/onda-run/onda/internal/postgres"
)

const (
	exportedContacts = 1_000_000
	fewContacts      = 100_000

	exportFields = "apiVersion: onda/v1\nkind: Field\nmetadata: {name: first_name}\nspec: {type: text}\n---\napiVersion: onda/v1\nkind: Field\nmetadata: {name: last_name}\nspec: {type: text}\n---\n" +
		"apiVersion: onda/v1\nkind: Field\nmetadata: {name: country}\nspec: {type: country}\n---\napiVersion: onda/v1\nkind: Field\nmetadata: {name: birthday}\nspec: {type: date}\n---\n" +
		"apiVersion: onda/v1\nkind: Field\nmetadata: {name: level}\nspec: {type: number}\n---\napiVersion: onda/v1\nkind: Field\nmetadata: {name: plan}\nspec: {type: text}\n"

	makeExported = `INSERT INTO contact (email, fields) SELECT 'p' || n || '@example.com', jsonb_build_object('first_name', 'Ada', 'last_name', 'Lovelace of ' || mod(n, 1000), 'country', 'NO',
		'birthday', (date '1950-01-01' + mod(n, 20000))::text, 'level', mod(n, 100), 'plan', CASE WHEN mod(n, 3) = 0 THEN 'paid' ELSE 'free' END) FROM generate_series(%d, %d) n`

	// copyExported is what somebody would write who has a million contacts to hand on.
	copyExported = `COPY (SELECT email, fields->>'first_name', fields->>'last_name', fields->>'country', fields->>'birthday', fields->>'level', fields->>'plan'
		FROM contact WHERE erased_at IS NULL AND merged_into IS NULL ORDER BY id) TO STDOUT (FORMAT csv)`
)

// exportedColumns are those of copyExported.
func exportedColumns() []string {
	return []string{"email", "first_name", "last_name", "country", "birthday", "level", "plan"}
}

// prepareExport measures how long an export of a million contacts takes, an address and six fields each, and what memory. The reference is COPY TO of the same columns. Both are read
// to their end and thrown away. The memory of an export of a tenth of them is measured first, by a process of its own.
func prepareExport(ctx context.Context, l *lab) (r rounds, err error) {
	if err := l.apply(ctx, exportFields); err != nil {
		return r, err
	}
	fill := func(from, to int) error {
		if err := l.own(ctx, fmt.Sprintf(makeExported, from, to)); err != nil {
			return err
		}
		return l.refresh(ctx)
	}
	if err := fill(1, fewContacts); err != nil {
		return r, err
	}
	few, err := l.startSide(ctx, "export")
	if err != nil {
		return r, err
	}
	_, err = few.do(task{})
	small, endErr := few.end()
	if err := errors.Join(err, endErr); err != nil {
		return r, err
	}
	if err := fill(fewContacts+1, exportedContacts); err != nil {
		return r, err
	}
	if err := l.start(ctx, "export"); err != nil {
		return r, err
	}
	grows := &limit{name: "grows from 100k", unit: "MB", goal: 8}
	r.limits = append(r.limits, grows)
	var wrote int64
	r.ours = func(ctx context.Context) (float64, error) {
		answer, err := l.side.ask(task{})
		if err != nil {
			return 0, err
		}
		wrote = answer.Wrote
		peak, err := peakOf(l.side.cmd.Process.Pid)
		grows.values = append(grows.values, float64(peak-small)/1e6)
		return exportedContacts / answer.Seconds, err
	}
	r.reference = func(ctx context.Context) (rate float64, err error) {
		err = l.super(ctx, func(conn *pgx.Conn) error {
			for _, sql := range []string{"SET search_path = " + l.tenant, "SET max_parallel_workers_per_gather = 0", "SET jit = off"} { // as the pool's login has it
				if _, err := conn.Exec(ctx, sql); err != nil {
					return fmt.Errorf("%s: %w", sql, err)
				}
			}
			out := &counted{}
			began := time.Now()
			tag, err := conn.PgConn().CopyTo(ctx, out, copyExported)
			rate = exportedContacts / time.Since(began).Seconds()
			switch header := int64(len("email,first_name,last_name,country,birthday,level,plan\n")); {
			case err != nil:
				return fmt.Errorf("copy contacts: %w", err)
			case tag.RowsAffected() != exportedContacts || out.n+header != wrote:
				return fmt.Errorf("it copied %d contacts in %d bytes, ours exported %d bytes", tag.RowsAffected(), out.n+header, wrote)
			}
			return nil
		})
		return rate, err
	}
	return r, nil
}

// counted is written to and keeps nothing.
type counted struct{ n int64 }

func (c *counted) Write(p []byte) (int, error) {
	c.n += int64(len(p))
	return len(p), nil
}

// serveExport is the process that exports, with as much memory as the command line takes.
func serveExport(in io.Reader, out io.Writer) error {
	debug.SetGCPercent(100)
	ctx := context.Background()
	db, err := postgres.Open(postgres.Config{URL: os.Getenv("ONDA_DATABASE_URL"), MaxConns: 4})
	if err != nil {
		return err
	}
	defer db.Close()
	return serveTasks(in, out, func(task) (r report, err error) {
		to := &counted{}
		began := time.Now()
		err = csvexport.Export(ctx, db, tenant, to, csvexport.Options{Columns: exportedColumns()})
		r.Seconds, r.Wrote = time.Since(began).Seconds(), to.n
		return r, err
	})
}
