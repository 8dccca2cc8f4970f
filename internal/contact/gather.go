package contact

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/onda-run/onda/internal/event"
	"github.com/onda-run/onda/internal/postgres"
)

// Gather gives the winners of merges what was written of losers since, by who had read that they were contacts still: of these contacts, all that are losers. Who reads facts calls it with
// whom they are about. It writes the fact contact.merged again where it found something.
func Gather(ctx context.Context, tx *postgres.Tx, drainer string, contacts []int64) error {
	if len(contacts) == 0 || tx.Tenant.Schema < MergeSchema {
		return nil
	}
	rows, err := tx.Query(ctx, "SELECT id, merged_into FROM contact WHERE merged_into IS NOT NULL AND id = ANY ($1) ORDER BY id", contacts)
	if err != nil {
		return fmt.Errorf("look who was merged: %w", err)
	}
	merged, err := pgx.CollectRows(rows, pgx.RowToStructByPos[event.Merge])
	if err != nil {
		return fmt.Errorf("look who was merged: %w", err)
	}
	for _, pair := range merged {
		if err := gather(ctx, tx, drainer, pair.Contact, pair.Into); err != nil {
			return err
		}
	}
	return nil
}

func gather(ctx context.Context, tx *postgres.Tx, drainer string, loser, winner int64) error {
	m := &merger{tx: tx, w: &writer{drainer: drainer}, loser: loser, winner: winner}
	m.undo.Moved = map[string][]int64{}
	if err := m.find(ctx, 0, len(owned)); err != nil {
		return err
	}
	n := 0
	for _, ids := range m.undo.Moved {
		n += len(ids)
	}
	if n == 0 {
		return nil
	}
	if err := m.lockEarly(ctx); err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, lockContacts, []int64{loser, winner}); err != nil {
		return fmt.Errorf("lock contacts: %w", err)
	}
	var still bool
	if err := tx.QueryRow(ctx, "SELECT EXISTS (SELECT FROM contact WHERE id = $1 AND merged_into = $2)", loser, winner).Scan(&still); err != nil || !still {
		return err
	}
	if err := m.journeys(ctx, &Merged{}); err != nil {
		return err
	}
	if err := m.move(ctx, loser, winner); err != nil {
		return err
	}
	if len(m.undo.Moved["consent"]) > 0 {
		if _, err := tx.Exec(ctx, "DELETE FROM subscription WHERE contact = $1", loser); err != nil {
			return fmt.Errorf("take subscriptions away: %w", err)
		}
		purposes, err := m.purposes(ctx)
		if err != nil {
			return err
		}
		if _, err := m.project(ctx, purposes); err != nil {
			return err
		}
	}
	if err := m.told("contact.merged"); err != nil {
		return err
	}
	return m.w.flush(ctx, tx)
}
