package postgres

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// partitionWidth is in ids. A delivery's id is its batch's times 512, so a batch of one recipient burns 512 of them; a partition of deliveries
// is made wider by how far batches are from full.
const partitionWidth = 1 << 24

// BatchWidth is how many delivery ids a batch has: a delivery's id is batch<<9 | number.
const BatchWidth = 512

// EnsurePartitions makes the next partition of deliveries and of facts when the present one is half used, so that no writer ever finds none.
// The planner calls it before it inserts batches, and campaign at each sweep.
func (tx *Tx) EnsurePartitions(ctx context.Context) error {
	var batches, facts int64
	err := tx.QueryRow(ctx, `SELECT coalesce(pg_sequence_last_value(pg_get_serial_sequence('batch', 'id')), 0),
		coalesce(pg_sequence_last_value(pg_get_serial_sequence('fact', 'id')), 0)`).Scan(&batches, &facts)
	if err != nil {
		return fmt.Errorf("look how far ids are: %w", err)
	}
	if err := tx.ensurePartition(ctx, "delivery", batches*BatchWidth, tx.deliveryWidth); err != nil {
		return err
	}
	return tx.ensurePartition(ctx, "fact", facts, func(context.Context) (int64, error) { return partitionWidth, nil })
}

// deliveryWidth is how wide the next partition of deliveries is to be, from how full the last batches are. It reads their arrays, so it is asked only when a
// partition is to be made.
func (tx *Tx) deliveryWidth(ctx context.Context) (int64, error) {
	var recipients int64
	err := tx.QueryRow(ctx, `SELECT coalesce(avg(n)::bigint, $1) FROM (SELECT cardinality(contacts) n FROM batch ORDER BY id DESC LIMIT 1000) b`, BatchWidth).Scan(&recipients)
	if err != nil {
		return 0, fmt.Errorf("look how full batches are: %w", err)
	}
	return partitionWidth * BatchWidth / max(recipients, 1), nil
}

func (tx *Tx) ensurePartition(ctx context.Context, table string, at int64, width func(context.Context) (int64, error)) error {
	var from, to int64
	last := `SELECT coalesce(max(substring(pg_get_expr(c.relpartbound, c.oid) FROM 'FROM \(''?(\d+)''?\)')::bigint), 0),
			coalesce(max(substring(pg_get_expr(c.relpartbound, c.oid) FROM 'TO \(''?(\d+)''?\)')::bigint), 0)
		FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = $1::regclass`
	if err := tx.QueryRow(ctx, last, table).Scan(&from, &to); err != nil {
		return fmt.Errorf("look for partitions of %s: %w", table, err)
	}
	if at < from+(to-from)/2 {
		return nil
	}
	if _, err := tx.Exec(ctx, "SELECT pg_advisory_xact_lock($1, $2)", wakeLock+1, tx.Tenant.Number); err != nil {
		return fmt.Errorf("lock partitions of %s: %w", table, err)
	}
	if err := tx.QueryRow(ctx, last, table).Scan(&from, &to); err != nil { // another may have made it meanwhile
		return fmt.Errorf("look for partitions of %s: %w", table, err)
	}
	if at < from+(to-from)/2 {
		return nil
	}
	wide, err := width(ctx)
	if err != nil {
		return err
	}
	// LIKE and ATTACH, since PARTITION OF waits for every reader of the table. Without the identity: the parent's counts, and Postgres 17 takes no other.
	part := pgx.Identifier{fmt.Sprintf("%s_%d", table, to)}.Sanitize()
	parent := pgx.Identifier{table}.Sanitize()
	for _, sql := range []string{
		fmt.Sprintf("CREATE TABLE %s (LIKE %s INCLUDING ALL EXCLUDING IDENTITY)", part, parent),
		fmt.Sprintf("ALTER TABLE %s ATTACH PARTITION %s FOR VALUES FROM (%d) TO (%d)", parent, part, to, to+max(wide, at+wide-to)),
	} {
		if _, err := tx.Exec(ctx, sql); err != nil {
			return fmt.Errorf("make a partition of %s: %w", table, err)
		}
	}
	return nil
}
