package contact

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/onda-run/onda/internal/event"
	"github.com/onda-run/onda/internal/postgres"
)

// StageSchema is the tenant migration from which on contacts have a stage; before it, none has.
const StageSchema = 21

// SetStage moves all the contacts to a stage, in two statements however many they are (at most some thousands), and writes facts stage.changed, and rings their doorbells, for those that
// were at another. Merged contacts stand for those they were merged into; erased ones are left alone. On a schema before StageSchema it is an error that matches
// postgres.ErrSchemaTooOld. cause is as in Update.
func SetStage(ctx context.Context, tx *postgres.Tx, drainer string, contacts []int64, stage, cause string) error {
	if tx.Tenant.Schema < StageSchema {
		return fmt.Errorf("to move contacts to a stage, tenant %s needs schema %d: %w", tx.Tenant.Name, StageSchema, postgres.ErrSchemaTooOld)
	}
	// The lock is a statement of its own, so that the next one sees what whoever held it wrote.
	if err := Lock(ctx, tx, contacts); err != nil {
		return err
	}
	rows, err := tx.Query(ctx, `WITH moved AS (
		UPDATE contact SET stage = $2, changed_at = onda.now() WHERE id IN (SELECT coalesce(merged_into, id) FROM contact WHERE id = ANY ($1)) AND erased_at IS NULL AND stage IS DISTINCT FROM $2 RETURNING id
		) SELECT id FROM moved ORDER BY id`, contacts, stage)
	if err != nil {
		return fmt.Errorf("move contacts to a stage: %w", err)
	}
	moved, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		return fmt.Errorf("move contacts to a stage: %w", err)
	}
	w := &writer{drainer: drainer, cause: cause}
	if err := w.addSet("stage.changed", stage, moved, nil); err != nil {
		return err
	}
	items := make([]event.Stage, len(moved))
	for i, id := range moved {
		items[i] = event.Stage{Contact: id, Stage: stage}
	}
	ringItems(w, items, func(s []event.Stage) event.Data { return event.StageChanged{Items: s} })
	return w.flush(ctx, tx)
}
