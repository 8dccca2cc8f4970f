package postgres

import (
	"context"
	"fmt"
	"time"
)

// BatchWidth is how many delivery ids a batch has: a delivery's id is batch<<9 | number.
const BatchWidth = 512

// EnsurePartitions makes the next partition of deliveries and of facts when the present one is half used, so that no writer ever finds none.
// The planner calls it before it inserts batches, and campaign at each sweep.
func (tx *Tx) EnsurePartitions(ctx context.Context) error {
	if _, err := tx.Exec(ctx, "SELECT ensure_partitions()"); err != nil {
		return fmt.Errorf("make partitions: %w", err)
	}
	return nil
}

// partitionsFor is how long single writers rely on partitions that were looked after: half a one takes them far longer to fill.
const partitionsFor = 30 * time.Second

// EnsurePartitionsLately is EnsurePartitions, unless this process did it for the tenant in the last 30 seconds: for those who write single mails and facts, not audiences.
func (tx *Tx) EnsurePartitionsLately(ctx context.Context) error {
	tx.db.mu.Lock()
	lately := time.Since(tx.db.partitions[tx.Tenant.Name]) < partitionsFor
	tx.db.mu.Unlock()
	if lately {
		return nil
	}
	if err := tx.EnsurePartitions(ctx); err != nil {
		return err
	}
	tx.db.mu.Lock()
	defer tx.db.mu.Unlock()
	tx.db.partitions[tx.Tenant.Name] = time.Now()
	return nil
}

// UpdateStatistics tells Postgres how large contacts, consents and facts have become.
func (tx *Tx) UpdateStatistics(ctx context.Context) error {
	if _, err := tx.Exec(ctx, "SELECT update_statistics()"); err != nil {
		return fmt.Errorf("update statistics: %w", err)
	}
	return nil
}

// RetentionSchema is the tenant migration from which on deliveries and facts are forgotten.
const RetentionSchema = 11

// Dropped tells of what a partition was dropped; "" for nothing.
type Dropped string

// What has partitions that are dropped.
const (
	DroppedDeliveries Dropped = "deliveries"
	DroppedFacts      Dropped = "facts"
)

// DropPartition drops the oldest partition of deliveries, or else of facts, if all of it is from before the time that is given for it (zero: it is kept for ever), no mail in it
// waits and every reader is past it. Where one was dropped, there may be more. It gives way to whoever has the table at that moment. Call it in a transaction of its own: nobody reads
// or writes the table until that is over.
func (tx *Tx) DropPartition(ctx context.Context, deliveries, facts time.Time) (Dropped, error) {
	for _, d := range []struct {
		what   Dropped
		before time.Time
		sql    string
	}{
		{DroppedDeliveries, deliveries, "SELECT drop_partition($1, NULL)"},
		{DroppedFacts, facts, "SELECT drop_partition(NULL, $1)"},
	} {
		if d.before.IsZero() {
			continue
		}
		var dropped bool
		if err := tx.QueryRow(ctx, d.sql, d.before).Scan(&dropped); err != nil {
			return "", fmt.Errorf("drop partitions of %s: %w", d.what, err)
		}
		if dropped {
			return d.what, nil
		}
	}
	return "", nil
}
