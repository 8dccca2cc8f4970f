package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/onda-run/onda/internal/csvimport"
	"github.com/onda-run/onda/internal/postgres"
)

const (
	importCount = 1_000_000
	// importFew is with how many rows it is compared that memory does not grow.
	importFew = 100_000
	// serverWAL is what a server writes of itself meanwhile: which transactions are under way, and checkpoints.
	serverWAL = 16_384
)

// importDocuments are six fields of four types.
func importDocuments() string {
	var s string
	for _, f := range [][2]string{{"first_name", "text"}, {"last_name", "text"}, {"city", "text"}, {"country", "country"}, {"birthday", "date"}, {"level", "number"}} {
		s += fmt.Sprintf("apiVersion: onda/v1\nkind: Field\nmetadata: {name: %s}\nspec: {type: %s}\n---\n", f[0], f[1])
	}
	return s
}

// prepareImportNew measures the import of a file of a million contacts, address and six fields, that are all new. The reference is COPY of the same file into a table without indexes.
func prepareImportNew(ctx context.Context, l *lab) (rounds, error) { return l.prepareImport(ctx, true) }

// prepareImportSame measures the import of the same file when all that it says is so already: nothing of it may be written to the WAL.
func prepareImportSame(ctx context.Context, l *lab) (rounds, error) {
	return l.prepareImport(ctx, false)
}

func (l *lab) prepareImport(ctx context.Context, fresh bool) (r rounds, err error) {
	if err := l.apply(ctx, importDocuments()); err != nil {
		return r, err
	}
	if err := l.own(ctx, "CREATE TABLE plain_import (email text, first_name text, last_name text, city text, country text, birthday date, level numeric)"); err != nil {
		return r, err
	}
	dir, err := os.MkdirTemp("", "onda-bench-")
	if err != nil {
		return r, fmt.Errorf("make a directory: %w", err)
	}
	l.closers = append(l.closers, func() error { return os.RemoveAll(dir) })
	file, few := filepath.Join(dir, "people.csv"), filepath.Join(dir, "few.csv")
	if err := errors.Join(writePeople(file, importCount), writePeople(few, importFew)); err != nil {
		return r, err
	}
	if l.side, err = l.startSide(ctx, "import"); err != nil {
		return r, err
	}
	round := func(ctx context.Context, file string, rows int, fresh bool) (took time.Duration, err error) {
		if fresh {
			if err := l.own(ctx, "TRUNCATE contact, fact, outbox"); err != nil {
				return 0, err
			}
		}
		rep, err := l.side.ask(task{Import: file})
		if want := [2]int{rows, 0}; err == nil && !fresh && rep.Imported != [2]int{0, rows} || err == nil && fresh && rep.Imported != want {
			err = fmt.Errorf("of %d rows %d were new and %d unchanged", rows, rep.Imported[0], rep.Imported[1])
		}
		return time.Duration(rep.Seconds * float64(time.Second)), err
	}
	// What memory a tenth of the rows takes.
	if _, err := round(ctx, few, importFew, true); err != nil {
		return r, err
	}
	if !fresh {
		if _, err := round(ctx, few, importFew, false); err != nil {
			return r, err
		}
	}
	least, err := peakOf(l.side.cmd.Process.Pid)
	if err != nil {
		return r, err
	}
	if !fresh {
		if _, err := round(ctx, file, importCount, true); err != nil {
			return r, err
		}
		if err := l.refresh(ctx); err != nil {
			return r, err
		}
	}
	cpu := &limit{name: "CPU of import", unit: "us a row", goal: 5}
	server := &beside{name: "CPU of Postgres", unit: "us a row", goal: 12} // with eight indexes, and the ledger and facts of each where they are new
	growth := &limit{name: "RSS", unit: "% of 100,000's", goal: 125}
	wal := &limit{name: "WAL", unit: "bytes", goal: serverWAL}
	r.limits = []*limit{cpu, growth}
	r.beside = []*beside{server}
	if !fresh {
		r.limits = append(r.limits, wal)
	}
	const lsn = "SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint"
	r.ours = func(ctx context.Context) (float64, error) {
		cost, err := l.costs(ctx, l.side.cmd.Process.Pid)
		if err != nil {
			return 0, err
		}
		before, err := superOne[int64](ctx, l, lsn)
		if err != nil {
			return 0, err
		}
		took, err := round(ctx, file, importCount, fresh)
		if err != nil {
			return 0, err
		}
		after, err := superOne[int64](ctx, l, lsn)
		if err != nil {
			return 0, err
		}
		used, err := cost()
		if err != nil {
			return 0, err
		}
		peak, err := peakOf(l.side.cmd.Process.Pid)
		cpu.values = append(cpu.values, used.process*1e6/importCount)
		server.ours = append(server.ours, used.postgres*1e6/importCount)
		growth.values = append(growth.values, 100*float64(peak)/float64(least))
		wal.values = append(wal.values, float64(after-before))
		return importCount / took.Seconds(), err
	}
	// One connection for all rounds: the processor time of one that has ended is told too late.
	conn, err := pgx.Connect(ctx, l.url)
	if err != nil {
		return r, fmt.Errorf("connect to postgres: %w", err)
	}
	l.closers = append(l.closers, func() error { return conn.Close(context.Background()) })
	r.reference = func(ctx context.Context) (rate float64, err error) {
		if err := l.own(ctx, "TRUNCATE plain_import"); err != nil {
			return 0, err
		}
		cost, err := l.costs(ctx, os.Getpid())
		if err != nil {
			return 0, err
		}
		f, err := os.Open(file)
		if err != nil {
			return 0, err
		}
		defer func() { err = errors.Join(err, f.Close()) }()
		began := time.Now()
		tag, err := conn.PgConn().CopyFrom(ctx, bufio.NewReaderSize(f, 64<<10), "COPY "+tenant+".plain_import FROM STDIN (FORMAT csv, HEADER)")
		if err == nil && tag.RowsAffected() != importCount {
			err = fmt.Errorf("COPY took %d rows", tag.RowsAffected())
		}
		rate = importCount / time.Since(began).Seconds()
		used, cerr := cost()
		server.reference = append(server.reference, used.postgres*1e6/importCount)
		return rate, errors.Join(err, cerr)
	}
	return r, nil
}

// writePeople writes a file of so many people, in no order of their addresses.
func writePeople(path string, n int) (err error) {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	w := bufio.NewWriter(f)
	first := []string{"Ada", "Grace", "Zoë", "Linus", "Margaret", "Sophie", "Jean", "Karen", "Edsger", "Barbara", "Alan"}
	last := []string{"Lovelace", "Hopper", "Wilson", "Hamilton", "O'Neil", "Bartik", "Dijkstra", "Liskov", "Turing"}
	city := []string{"London", "Oslo", "São Paulo", "New York", "Trondheim", "Wien", "Gdańsk"}
	country := []string{"GB", "NO", "BR", "US", "NO", "AT", "PL"}
	day := time.Date(1950, 1, 1, 0, 0, 0, 0, time.UTC)
	_, _ = w.WriteString("email,first_name,last_name,city,country,birthday,level\n")
	for i := range n {
		k := i * 7_919 % n
		_, _ = fmt.Fprintf(w, "%s.%d@example.com,%s,%s,%s,%s,%s,%d\n", []string{"ada", "grace", "zoe", "linus"}[k%4], k, first[i%len(first)], last[i%len(last)], city[i%len(city)], country[i%len(city)],
			day.AddDate(0, 0, k%20_000).Format(time.DateOnly), k%100)
	}
	return w.Flush()
}

// serveImport is the process of onda import, with its settings: it imports file after file until its input ends.
func serveImport(in io.Reader, out io.Writer) (err error) {
	debug.SetGCPercent(100) // as commands have
	debug.SetMemoryLimit(csvimport.MemoryLimit)
	stop, err := profiled()
	if err != nil {
		return err
	}
	defer stop()
	db, err := postgres.Open(postgres.Config{URL: os.Getenv("ONDA_DATABASE_URL"), MaxConns: 4})
	if err != nil {
		return err
	}
	defer db.Close()
	return serveTasks(in, out, func(t task) (r report, err error) {
		f, err := os.Open(t.Import)
		if err != nil {
			return r, err
		}
		res, err := csvimport.Import(context.Background(), db, tenant, f, csvimport.Options{Name: "people.csv", Rejects: io.Discard})
		r.Seconds, r.Imported = res.Took.Seconds(), [2]int{res.Made, res.Unchanged}
		err = errors.Join(err, f.Close())
		if err == nil && res.Rejected > 0 {
			err = errors.New(strconv.Itoa(res.Rejected) + " rows were rejected: " + res.Problems[0].Error)
		}
		return r, err
	})
}
