package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
)

// weighed is what is written to weigh the indexes of a table by; each statement writes weighedRows rows.
type weighed struct{ table, what, sql string }

const weighedRows = 50_000

func weighings() []weighed {
	return []weighed{
		{"fact", "told", fmt.Sprintf(`INSERT INTO fact (kind, name, contact, data, at) SELECT 'event.tracked', 'order.placed', 1 + floor(most * random())::bigint, jsonb_build_object('total', i %% 400), onda.now()
			FROM generate_series(1, %d) i, (SELECT max(id) AS most FROM contact) c`, weighedRows)},
		{"contact", "made", strings.Replace(fmt.Sprintf(makePeople, weighedRows), "'p' ||", "'new' ||", 1)},
		{"contact", "changed", fmt.Sprintf(`UPDATE contact SET fields = fields || jsonb_build_object('level', (fields->>'level')::int + 1) WHERE id IN (
			SELECT 1 + (i * 7919::bigint) %% (SELECT max(id) FROM contact) FROM generate_series(1, %d) i)`, weighedRows)},
		{"member", "joined", fmt.Sprintf(`INSERT INTO member (segment, contact) SELECT -1, id FROM contact ORDER BY id LIMIT %d`, weighedRows)},
		{"subscription", "asked", fmt.Sprintf(`INSERT INTO subscription (contact, purpose, state, consent, at) SELECT id, 'weighed', 'granted', 0, onda.now() FROM contact ORDER BY id LIMIT %d`, weighedRows)},
	}
}

// weight is what a statement takes of the server, a row: processor time in microseconds, and what is logged, in bytes and in whole pages.
type weight struct{ micros, wal, pages float64 }

// weighIndexes prints what each index of the tables of segments is in size, and what writing a row costs without it: the difference to the whole is the index's own. Each statement is rolled
// back, the index with it. It comes right after a checkpoint, which is when writing costs most: of what is logged, pages are whole ones, each logged once until the next.
func weighIndexes(ctx context.Context, o options, rounds int) (err error) {
	l, err := newLab(ctx, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.close()) }()
	if err := l.withSegments(ctx, 8); err != nil { // with indexes on dates
		return err
	}
	fmt.Printf("%-13s %-8s %-60s %9s %9s %9s %9s %9s\n", "table", "", "index", "MB", "bytes/row", "us/row", "WAL/row", "pages/row")
	return l.super(ctx, func(conn *pgx.Conn) error {
		if _, err := conn.Exec(ctx, "SET search_path = "+l.tenant); err != nil {
			return fmt.Errorf("enter a tenant: %w", err)
		}
		all := weighings()
		sizes := make([]sized, len(all))
		for i, w := range all { // before anything is written
			if sizes[i], err = sizeOf(ctx, conn, w.table); err != nil {
				return fmt.Errorf("%s: %w", w.table, err)
			}
		}
		for i, w := range all {
			if err := sizes[i].weigh(ctx, conn, w, rounds); err != nil {
				return fmt.Errorf("%s: %w", w.table, err)
			}
		}
		return nil
	})
}

// sized is a table, of all its partitions.
type sized struct {
	bytes, rows int64
	indexes     []index
}

// index is one of a table, or of all its partitions.
type index struct {
	name, columns string
	bytes         int64
	constraint    bool
}

func sizeOf(ctx context.Context, conn *pgx.Conn, table string) (s sized, err error) {
	err = conn.QueryRow(ctx, `SELECT sum(pg_table_size(oid))::bigint, greatest(sum(reltuples), 1)::bigint FROM pg_class WHERE relkind = 'r' AND (oid = $1::text::regclass OR oid IN (SELECT relid FROM pg_partition_tree($1::text::regclass)))`, table).Scan(&s.bytes, &s.rows)
	if err != nil {
		return s, fmt.Errorf("look at its size: %w", err)
	}
	found, err := conn.Query(ctx, `SELECT c.relname::text, regexp_replace(pg_get_indexdef(i.indexrelid), '.* USING ', ''),
			coalesce((SELECT sum(pg_relation_size(t.relid))::bigint FROM pg_partition_tree(i.indexrelid) t WHERE t.isleaf), pg_relation_size(i.indexrelid)), EXISTS (SELECT FROM pg_constraint k WHERE k.conindid = i.indexrelid)
		FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid WHERE i.indrelid = $1::text::regclass ORDER BY 1`, table)
	if err != nil {
		return s, fmt.Errorf("look for its indexes: %w", err)
	}
	s.indexes, err = pgx.CollectRows(found, func(row pgx.CollectableRow) (x index, err error) {
		return x, row.Scan(&x.name, &x.columns, &x.bytes, &x.constraint)
	})
	if err != nil {
		return s, fmt.Errorf("look for its indexes: %w", err)
	}
	return s, nil
}

// weigh prints what writing takes with all indexes, and what each that holds something has of it.
func (s sized) weigh(ctx context.Context, conn *pgx.Conn, w weighed, rounds int) error {
	indexes := slices.DeleteFunc(slices.Clone(s.indexes), func(x index) bool { return x.bytes < int64(8192*2) && s.rows > weighedRows }) // of few rows, which cost only whoever is one
	whole := make([]weight, 0, rounds)
	without := make([][]weight, len(indexes))
	for range rounds {
		for i := -1; i < len(indexes); i++ { // in turns, since the machine is not always as fast
			drop := ""
			if i >= 0 {
				if drop = "DROP INDEX " + indexes[i].name; indexes[i].constraint {
					drop = "ALTER TABLE " + w.table + " DROP CONSTRAINT " + indexes[i].name + " CASCADE"
				}
			}
			x, err := weighOnce(ctx, conn, drop, w.sql)
			if err != nil {
				return err
			}
			if i < 0 {
				whole = append(whole, x)
			} else {
				without[i] = append(without[i], x)
			}
		}
	}
	all := middle(whole)
	fmt.Printf("%-13s %-8s %-60s %9.1f %9.1f %9.2f %9.0f %9.2f\n", w.table, w.what, "(with all of them)", float64(s.bytes)/1e6, float64(s.bytes)/float64(s.rows), all.micros, all.wal, all.pages)
	for i, x := range indexes {
		less := middle(without[i])
		fmt.Printf("%-13s %-8s %-60.60s %9.1f %9.1f %9.2f %9.0f %9.2f\n", "", "", x.columns, float64(x.bytes)/1e6, float64(x.bytes)/float64(s.rows), all.micros-less.micros, all.wal-less.wal, all.pages-less.pages)
	}
	return nil
}

// weighOnce runs a statement without an index, in a transaction that is rolled back.
func weighOnce(ctx context.Context, conn *pgx.Conn, drop, sql string) (w weight, err error) {
	if _, err := conn.Exec(ctx, "CHECKPOINT"); err != nil {
		return w, fmt.Errorf("checkpoint: %w", err)
	}
	tx, err := conn.Begin(ctx)
	if err != nil {
		return w, fmt.Errorf("begin: %w", err)
	}
	defer func() { err = errors.Join(err, tx.Rollback(context.WithoutCancel(ctx))) }()
	if drop != "" {
		if _, err := tx.Exec(ctx, drop); err != nil {
			return w, fmt.Errorf("%s: %w", drop, err)
		}
	}
	pid := int(conn.PgConn().PID())
	before, err := cpuOf(pid, false)
	if err != nil {
		return w, err
	}
	var text []byte
	if err := tx.QueryRow(ctx, "EXPLAIN (ANALYZE, WAL, TIMING OFF, FORMAT JSON) "+sql).Scan(&text); err != nil {
		return w, fmt.Errorf("%s: %w", sql, err)
	}
	var plans []struct {
		Plan struct {
			Bytes float64 `json:"WAL Bytes"` //nolint:tagliatelle // Postgres' own
			Pages float64 `json:"WAL FPI"`   //nolint:tagliatelle // as above
		}
	}
	if err := json.Unmarshal(text, &plans); err != nil {
		return w, fmt.Errorf("read a plan: %w", err)
	}
	after, err := cpuOf(pid, false)
	if err != nil {
		return w, err
	}
	return weight{(after - before) * 1e6 / weighedRows, plans[0].Plan.Bytes / weighedRows, plans[0].Plan.Pages / weighedRows}, nil
}

func middle(of []weight) weight {
	var micros, wal, pages []float64
	for _, w := range of {
		micros, wal, pages = append(micros, w.micros), append(wal, w.wal), append(pages, w.pages)
	}
	return weight{median(micros), median(wal), median(pages)}
}
