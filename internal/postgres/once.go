package postgres

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
)

// A process that was started for a request has prepared nothing. To prepare a statement is a round trip before the one that runs it, and pays only where it is run again: so what is run
// seldom, or for the first time on a connection, is run as it is.

// Once is Query of a statement that is not prepared: for one that is run seldom. Its arguments go as text, whose type the statement says or shows; so what is meant for JSON is a string.
func (tx *Tx) Once(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	rows := once(ctx, tx.conn.Conn(), sql, args...)
	return rows, rows.Err()
}

// OnceRow is QueryRow as Once is Query.
func (tx *Tx) OnceRow(ctx context.Context, sql string, args ...any) pgx.Row {
	return onceRow{once(ctx, tx.conn.Conn(), sql, args...)}
}

func once(ctx context.Context, conn *pgx.Conn, sql string, args ...any) pgx.Rows {
	var built pgx.ExtendedQueryBuilder
	if err := built.Build(conn.TypeMap(), nil, args); err != nil {
		return failedRows{err: err}
	}
	return pgx.RowsFromResultReader(conn.TypeMap(), conn.PgConn().ExecParams(ctx, sql, built.ParamValues, nil, built.ParamFormats, inBinary()))
}

// inBinary has all columns of a result come so: their texts are of the form that the server is set to.
func inBinary() []int16 { return []int16{pgx.BinaryFormatCode} }

// sendOnce is SendBatch of statements none of which is prepared, with their results read: one round trip.
func sendOnce(ctx context.Context, conn *pgx.Conn, b *pgx.Batch) error {
	all := &pgconn.Batch{}
	for _, q := range b.QueuedQueries {
		var built pgx.ExtendedQueryBuilder // of its own: the batch holds on to what it gives
		if err := built.Build(conn.TypeMap(), nil, q.Arguments); err != nil {
			return fmt.Errorf("%s: %w", q.SQL, err)
		}
		all.ExecParams(q.SQL, built.ParamValues, nil, built.ParamFormats, inBinary())
	}
	r := &onceResults{conn.PgConn().ExecBatch(ctx, all), conn.TypeMap()}
	for _, q := range b.QueuedQueries {
		var err error
		if q.Fn != nil {
			err = q.Fn(r)
		} else {
			_, err = r.Exec()
		}
		if err != nil {
			return cmp.Or(err, r.Close())
		}
	}
	return r.Close()
}

// onceResults are a pgx.BatchResults.
type onceResults struct {
	*pgconn.MultiResultReader
	types *pgtype.Map
}

// next goes on to the next statement's result.
func (r *onceResults) next() (*pgconn.ResultReader, error) {
	if !r.NextResult() {
		return nil, cmp.Or(r.Close(), errors.New("a statement has no result"))
	}
	return r.ResultReader(), nil
}

// Exec implements pgx.BatchResults.
func (r *onceResults) Exec() (pgconn.CommandTag, error) {
	result, err := r.next()
	if err != nil {
		return pgconn.CommandTag{}, err
	}
	return result.Close()
}

// Query implements pgx.BatchResults.
func (r *onceResults) Query() (pgx.Rows, error) {
	result, err := r.next()
	if err != nil {
		return failedRows{err: err}, err
	}
	return pgx.RowsFromResultReader(r.types, result), nil
}

// QueryRow implements pgx.BatchResults.
func (r *onceResults) QueryRow() pgx.Row {
	rows, _ := r.Query()
	return onceRow{rows}
}

// Tx implements pgx.BatchResults: the batch begins none.
func (r *onceResults) Tx() pgx.Tx { return nil }

// onceRow is a result of one row.
type onceRow struct{ rows pgx.Rows }

// Scan implements pgx.Row.
func (r onceRow) Scan(dest ...any) error {
	defer r.rows.Close()
	if !r.rows.Next() {
		return cmp.Or(r.rows.Err(), pgx.ErrNoRows)
	}
	if err := r.rows.Scan(dest...); err != nil {
		return err
	}
	r.rows.Close()
	return r.rows.Err()
}

// failedRows are none, and why.
type failedRows struct {
	pgx.Rows
	err error
}

// Close implements pgx.Rows.
func (failedRows) Close() {}

// Next implements pgx.Rows.
func (failedRows) Next() bool { return false }

// Err implements pgx.Rows.
func (r failedRows) Err() error { return r.err }
