package postgres

import (
	"context"
	"fmt"
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

// UpdateStatistics tells Postgres how large contacts, consents and facts have become.
func (tx *Tx) UpdateStatistics(ctx context.Context) error {
	if _, err := tx.Exec(ctx, "SELECT update_statistics()"); err != nil {
		return fmt.Errorf("update statistics: %w", err)
	}
	return nil
}
