package postgres

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// CopyRow is a row of COPY in its binary format, to which values are added in order of the columns.
type CopyRow struct{ b []byte }

// Null adds no value.
func (r *CopyRow) Null() { r.b = binary.BigEndian.AppendUint32(r.b, 1<<32-1) }

// Text adds a text.
func (r *CopyRow) Text(s string) { r.b = append(r.size(len(s)), s...) }

// UUID adds a uuid.
func (r *CopyRow) UUID(id [16]byte) { r.b = append(r.size(len(id)), id[:]...) }

// ID adds a bigint; 0 is NULL.
func (r *CopyRow) ID(id int64) {
	if id == 0 {
		r.Null()
		return
	}
	r.b = binary.BigEndian.AppendUint64(r.size(8), uint64(id))
}

// IDs adds a bigint[]; nil is NULL.
func (r *CopyRow) IDs(ids []int64) {
	const int8OID = 20
	if ids == nil {
		r.Null()
		return
	}
	dimensions := min(len(ids), 1)
	r.size(12 + 8*dimensions + 12*len(ids))
	for _, n := range []int{dimensions, 0, int8OID, len(ids), 1}[:3+2*dimensions] { // has no NULL, and begins at 1
		r.b = binary.BigEndian.AppendUint32(r.b, uint32(n))
	}
	for _, id := range ids {
		r.b = binary.BigEndian.AppendUint64(r.size(8), uint64(id))
	}
}

// JSON adds a jsonb; nil is NULL.
func (r *CopyRow) JSON(b []byte) {
	const version = 1
	if b == nil {
		r.Null()
		return
	}
	r.b = append(append(r.size(1+len(b)), version), b...)
}

// JSONText is JSON of a text.
func (r *CopyRow) JSONText(s string) {
	const version = 1
	r.b = append(append(r.size(1+len(s)), version), s...)
}

// Texts adds a text[]; nil is an empty one.
func (r *CopyRow) Texts(texts []string) {
	const textOID = 25
	dimensions, size := min(len(texts), 1), 0
	for _, s := range texts {
		size += 4 + len(s)
	}
	r.size(12 + 8*dimensions + size)
	for _, n := range []int{dimensions, 0, textOID, len(texts), 1}[:3+2*dimensions] { // has no NULL, and begins at 1
		r.b = binary.BigEndian.AppendUint32(r.b, uint32(n))
	}
	for _, s := range texts {
		r.Text(s)
	}
}

// Time adds a timestamptz.
func (r *CopyRow) Time(t time.Time) {
	const from2000 = 946_684_800 * 1_000_000
	r.b = binary.BigEndian.AppendUint64(r.size(8), uint64(t.UnixMicro()-from2000))
}

func (r *CopyRow) size(n int) []byte {
	r.b = binary.BigEndian.AppendUint32(r.b, uint32(n))
	return r.b
}

// Copy adds n rows to a table, each made by row, in one round trip. Names are trusted.
func (tx *Tx) Copy(ctx context.Context, table string, columns []string, n int, row func(i int, r *CopyRow)) error {
	in := &copyReader{columns: len(columns), rows: n, row: row}
	in.next.b = append(in.next.b, "PGCOPY\n\xff\r\n\x00\x00\x00\x00\x00\x00\x00\x00\x00"...)
	sql := fmt.Sprintf("COPY %s (%s) FROM STDIN (FORMAT binary)", pgx.Identifier{table}.Sanitize(), strings.Join(columns, ", "))
	_, err := tx.conn.Conn().PgConn().CopyFrom(ctx, in, sql) // pgx's own asks for the types of the columns first
	return err
}

// copyReader makes the rows as they are read.
type copyReader struct {
	columns, rows, made int
	row                 func(i int, r *CopyRow)
	next                CopyRow
	read                int // of next
}

// Read reads as much as there is room for, since each is a message of its own.
func (c *copyReader) Read(p []byte) (n int, err error) {
	for n < len(p) {
		if c.read == len(c.next.b) && !c.more() {
			return n, io.EOF
		}
		m := copy(p[n:], c.next.b[c.read:])
		n, c.read = n+m, c.read+m
	}
	return n, nil
}

// more makes the next row, or the end after the last.
func (c *copyReader) more() bool {
	columns := uint16(c.columns)
	switch {
	case c.made > c.rows:
		return false
	case c.made == c.rows:
		columns = 1<<16 - 1
	}
	c.next.b, c.read = binary.BigEndian.AppendUint16(c.next.b[:0], columns), 0
	if c.made < c.rows {
		c.row(c.made, &c.next)
	}
	c.made++
	return true
}
