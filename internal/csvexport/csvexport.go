// Package csvexport writes contacts as CSV or as lines of JSON.
//
// Invariants: of contacts however many, a chunk is in memory, and a transaction is open only while a chunk is read, whoever is slow to take it; nobody is there twice; those who were
// erased, or merged into another, are not; what a stranger wrote computes nothing in a spreadsheet, and an import reads it as it was.
package csvexport

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/spec"
)

// Options say what is exported.
type Options struct {
	// Segment is the name of one whose members are exported; empty for all contacts.
	Segment string
	// Columns are those that are exported, in their order; none for all.
	Columns []string
	// JSON gives an object a line, with its values as they are stored, in the place of CSV.
	JSON bool
	// Raw leaves texts as they are that a spreadsheet would compute. JSON is always raw.
	Raw bool
	// OnProgress, if not nil, is called after each chunk with the number of contacts in it.
	OnProgress func(contacts int)
}

// Bounds of a chunk: a few MB where contacts are as long as those before them.
const (
	leastRows  = 100
	firstRows  = 1000
	mostRows   = 20_000
	chunkBytes = 2 << 20
)

// Export writes the tenant's contacts in order of their numbers, each as it is at the moment in which its chunk is read. An unknown column, and a segment that there is none of, are
// errors before anything is written. An error of w ends it.
func Export(ctx context.Context, db *postgres.DB, tenant string, w io.Writer, opts Options) error {
	e := &exporter{raw: opts.Raw, json: opts.JSON}
	if err := db.InTenant(ctx, tenant, func(ctx context.Context, tx *postgres.Tx) error { return e.open(ctx, tx, opts) }); err != nil {
		return err
	}
	if !e.json {
		for i, c := range e.columns {
			e.cell(i, []byte(c.name), false)
		}
		e.out.WriteByte('\n')
	}
	for after, rows := int64(0), firstRows; ; {
		e.rows = 0
		next := int64(math.MaxInt64)
		if err := db.InTenant(ctx, tenant, func(ctx context.Context, tx *postgres.Tx) (err error) {
			next, err = e.chunk(ctx, tx, after, rows)
			return err
		}); err != nil {
			return err
		}
		size := e.out.Len()
		if _, err := w.Write(e.out.Bytes()); err != nil {
			return fmt.Errorf("write the export: %w", err)
		}
		e.out.Reset()
		if opts.OnProgress != nil {
			opts.OnProgress(e.rows)
		}
		if next == math.MaxInt64 {
			return nil
		}
		after = next - 1
		if e.rows > 0 {
			rows = min(max(chunkBytes*e.rows/max(size, 1), leastRows), mostRows)
		}
	}
}

type exporter struct {
	columns   []column
	args      []any
	raw, json bool
	keys      [][]byte // of JSON: what stands before each column's value
	bound     string   // SQL for the number that the chunk after next begins with
	query     string
	segment   []any // its number, where one is exported

	out     bytes.Buffer
	guarded []byte // of one cell
	rows    int
}

func (e *exporter) open(ctx context.Context, tx *postgres.Tx, opts Options) (err error) {
	if e.columns, e.args, err = chosen(ctx, tx, opts.Columns); err != nil {
		return err
	}
	var list, consents []string
	for _, c := range e.columns {
		sql := c.text
		if e.json {
			sql = c.json
			key, err := json.Marshal(c.name)
			if err != nil {
				return fmt.Errorf("encode a column's name: %w", err)
			}
			e.keys = append(e.keys, append(key, ':'))
		}
		list = append(list, sql)
		if c.consent != "" {
			consents = append(consents, c.consent)
		}
	}
	e.bound = "SELECT id FROM contact WHERE id > $1 ORDER BY id OFFSET $2 LIMIT 1"
	from := "contact c"
	if opts.Segment != "" {
		var entity int32
		err := tx.QueryRow(ctx, "SELECT id FROM entity WHERE kind = $1 AND name = $2 AND current IS NOT NULL", spec.KindSegment, opts.Segment).Scan(&entity)
		if errors.Is(err, pgx.ErrNoRows) {
			return fmt.Errorf("there is no segment %q", opts.Segment)
		}
		if err != nil {
			return fmt.Errorf("look for a segment: %w", err)
		}
		e.segment = []any{entity}
		e.bound = "SELECT contact FROM member WHERE segment = $3 AND contact > $1 ORDER BY contact OFFSET $2 LIMIT 1"
		e.args = append(e.args, entity)
		from += fmt.Sprintf(" JOIN member m ON m.contact = c.id AND m.segment = $%d AND m.kept <> 'out' AND m.contact > $1 AND m.contact < $2", len(e.args)+2)
	}
	if len(consents) > 0 { // grouped in one pass over a range of contacts, however many purposes there are
		from += " LEFT JOIN (SELECT contact, " + strings.Join(consents, ", ") + " FROM subscription WHERE contact > $1 AND contact < $2 GROUP BY contact) s ON s.contact = c.id"
	}
	e.query = "SELECT " + strings.Join(list, ", ") + " FROM " + from + " WHERE c.id > $1 AND c.id < $2 AND c.erased_at IS NULL AND c.merged_into IS NULL ORDER BY c.id"
	return nil
}

// chunk reads so many contacts after the one of a number, and gives the number that the next chunk begins with, the greatest of all at the end.
func (e *exporter) chunk(ctx context.Context, tx *postgres.Tx, after int64, n int) (next int64, err error) {
	err = tx.QueryRow(ctx, e.bound, append([]any{after, n}, e.segment...)...).Scan(&next)
	if errors.Is(err, pgx.ErrNoRows) {
		next, err = math.MaxInt64, nil
	}
	if err != nil {
		return 0, fmt.Errorf("read contacts: %w", err)
	}
	rows, err := tx.Query(ctx, e.query, append([]any{after, next}, e.args...)...)
	if err != nil {
		return 0, fmt.Errorf("read contacts: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		e.row(rows.RawValues())
		e.rows++
	}
	if err := rows.Err(); err != nil {
		return 0, fmt.Errorf("read contacts: %w", err)
	}
	return next, nil
}

// row writes one contact: its values are texts, which are the same bytes in all of Postgres's formats.
func (e *exporter) row(values [][]byte) {
	if !e.json {
		for i, v := range values {
			e.cell(i, v, e.columns[i].number)
		}
		if len(values) == 1 && len(values[0]) == 0 { // an empty line would be no row
			e.out.WriteString(`""`)
		}
		e.out.WriteByte('\n')
		return
	}
	between := byte('{')
	for i, v := range values {
		if v == nil {
			continue
		}
		e.out.WriteByte(between)
		e.out.Write(e.keys[i])
		e.out.Write(v)
		between = ','
	}
	if between == '{' {
		e.out.WriteByte('{')
	}
	e.out.WriteString("}\n")
}

// cell writes a cell of CSV (RFC 4180).
func (e *exporter) cell(i int, v []byte, number bool) {
	if i > 0 {
		e.out.WriteByte(',')
	}
	if !e.raw && guards(v) && (!number || !isNumber(v)) {
		e.guarded = appendGuarded(e.guarded[:0], v)
		v = e.guarded
	}
	quoted := bytes.ContainsAny(v, "\",\r\n")
	if quoted {
		e.out.WriteByte('"')
	}
	for quoted {
		i := bytes.IndexByte(v, '"')
		if i < 0 {
			break
		}
		e.out.Write(v[:i])
		e.out.WriteString(`""`)
		v = v[i+1:]
	}
	e.out.Write(v)
	if quoted {
		e.out.WriteByte('"')
	}
}

func isNumber(v []byte) bool {
	_, err := strconv.ParseFloat(string(v), 64)
	return err == nil
}
