package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// watchEvery is how often the rate is looked at for the plot.
const watchEvery = 5 * time.Second

// watch is what is seen of a blast while it runs: how many mails came in each part of it, and what it left in Postgres.
type watch struct {
	came  func() (counts, error)
	parts []int64
	total counts
	stop  chan struct{}
	done  chan error
	wal   int64
}

// watched begins to watch.
func (l *lab) watched(ctx context.Context, came func() (counts, error)) (*watch, error) {
	w := &watch{came: came, stop: make(chan struct{}), done: make(chan error, 1)}
	var err error
	if w.wal, err = superOne[int64](ctx, l, "SELECT pg_current_wal_lsn() - '0/0'::pg_lsn"); err != nil {
		return nil, err
	}
	go func() {
		beat := time.NewTicker(watchEvery)
		defer beat.Stop()
		for {
			select {
			case <-beat.C:
				if err := w.look(); err != nil {
					w.done <- err
					return
				}
			case <-w.stop:
				w.done <- w.look()
				return
			}
		}
	}()
	return w, nil
}

func (w *watch) look() error {
	got, err := w.came()
	if err != nil {
		return err
	}
	w.parts = append(w.parts, got.Mails)
	w.total.Mails += got.Mails
	if got.Mails > 0 {
		w.total.Size = got.Size
	}
	return nil
}

// end stops watching and gives all that came.
func (w *watch) end() (counts, error) {
	close(w.stop)
	return w.total, <-w.done
}

// tell draws the rate over time into a file, and prints what the blast left in Postgres.
func (w *watch) tell(ctx context.Context, l *lab, plot string) error {
	wal, err := superOne[int64](ctx, l, "SELECT pg_current_wal_lsn() - '0/0'::pg_lsn")
	if err != nil {
		return err
	}
	fmt.Printf("  WAL: %.0f MB, %.0f bytes a mail\n", float64(wal-w.wal)/1e6, float64(wal-w.wal)/float64(w.total.Mails))
	err = l.super(ctx, func(conn *pgx.Conn) error {
		rows, err := conn.Query(ctx, `SELECT coalesce(p.relname, c.relname), sum(pg_table_size(c.oid))::float8, sum(pg_indexes_size(c.oid))::float8
			FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace LEFT JOIN pg_inherits i ON i.inhrelid = c.oid LEFT JOIN pg_class p ON p.oid = i.inhparent
			WHERE n.nspname = $1 AND c.relkind = 'r' GROUP BY 1 HAVING sum(pg_total_relation_size(c.oid)) > 1e6 ORDER BY 2 DESC`, tenant)
		if err != nil {
			return err
		}
		var name string
		var table, indexes float64
		_, err = pgx.ForEachRow(rows, []any{&name, &table, &indexes}, func() error {
			fmt.Printf("  table %-14s %7.1f MB, its indexes %7.1f MB\n", name, table/1e6, indexes/1e6)
			return nil
		})
		return err
	})
	if err != nil {
		return fmt.Errorf("look at the sizes of tables: %w", err)
	}
	return os.WriteFile(plot, []byte(ratePlot(w.parts, watchEvery)), 0o644)
}

// ratePlot draws how many mails came a second, part by part.
func ratePlot(parts []int64, each time.Duration) string {
	const width, height, left, bottom = 720.0, 240.0, 56.0, 36.0
	most := 1.0
	rates := make([]float64, len(parts))
	for i, n := range parts {
		rates[i] = float64(n) / each.Seconds()
		most = max(most, rates[i])
	}
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %g %g" font-family="system-ui, sans-serif" font-size="12" role="img" aria-label="mails a second over time">`+"\n", width, height)
	fmt.Fprintf(&b, `<rect width="%g" height="%g" fill="#fff"/>`+"\n", width, height)
	wide := (width - left - 16) / float64(max(len(parts), 1))
	scale := (height - bottom - 24) / most
	for i, r := range rates {
		fmt.Fprintf(&b, `<rect x="%.1f" y="%.1f" width="%.1f" height="%.1f" fill="#2b6cb0"><title>%s: %.0f mails a second</title></rect>`+"\n",
			left+float64(i)*wide, height-bottom-r*scale, max(wide-1, 0.5), r*scale, time.Duration(i)*each, r)
	}
	for _, part := range []float64{0, 0.5, 1} {
		y := height - bottom - part*most*scale
		fmt.Fprintf(&b, `<path d="M%g %.1fH%g" stroke="#ccc"/><text x="%g" y="%.1f" text-anchor="end">%.0f</text>`+"\n", left, y, width-16, left-6, y+4, part*most)
	}
	for at := time.Duration(0); at <= time.Duration(len(parts))*each; at += time.Minute {
		fmt.Fprintf(&b, `<text x="%.1f" y="%g">%.0f min</text>`+"\n", left+at.Seconds()/each.Seconds()*wide, height-bottom+18, at.Minutes())
	}
	fmt.Fprintf(&b, `<text x="%g" y="16">mails a second, every %s</text></svg>`+"\n", left, each)
	return b.String()
}
