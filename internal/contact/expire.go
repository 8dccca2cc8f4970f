package contact

import (
	"context"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/onda-run/onda/internal/event"
	"github.com/onda-run/onda/internal/postgres"
)

// Expire deletes contacts who asked for something, were asked to confirm it, and never did; one who has agreed to something meanwhile stays. It looks at up to limit of
// them; n says at how many.
//
// What others keep of them goes with the fact contact.erased: segment takes them out of its members, campaign ends their journeys and empties what they sent by forms.
// Were it done here, it would lock contacts before the rows that those lock first. In a transaction of its own; a contact whom somebody is at is left for the next time.
func Expire(ctx context.Context, tx *postgres.Tx, drainer string, limit int) (n int, err error) {
	rows, err := tx.Query(ctx, "SELECT id FROM contact WHERE expires_at <= onda.now() ORDER BY id LIMIT $1 FOR UPDATE SKIP LOCKED", limit)
	if err != nil {
		return 0, fmt.Errorf("look for contacts who never confirmed: %w", err)
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		return 0, fmt.Errorf("look for contacts who never confirmed: %w", err)
	}
	if len(ids) == 0 {
		return 0, nil
	}
	_, err = tx.Exec(ctx, `UPDATE contact c SET expires_at = NULL WHERE id = ANY ($1)
		AND EXISTS (SELECT FROM subscription s WHERE s.contact = c.id AND s.state = 'granted')`, ids)
	if err != nil {
		return 0, fmt.Errorf("keep contacts who have agreed: %w", err)
	}
	rows, err = tx.Query(ctx, "DELETE FROM contact WHERE id = ANY ($1) AND expires_at IS NOT NULL RETURNING id", ids)
	if err != nil {
		return 0, fmt.Errorf("delete contacts who never confirmed: %w", err)
	}
	gone, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		return 0, fmt.Errorf("delete contacts who never confirmed: %w", err)
	}
	slices.Sort(gone)
	for _, sql := range []string{
		"DELETE FROM subscription WHERE contact = ANY ($1)",
		"DELETE FROM consent WHERE contact = ANY ($1)",
		"UPDATE suppression SET contact = NULL WHERE contact = ANY ($1)",
		"UPDATE visitor SET contact = NULL WHERE contact = ANY ($1)",
	} {
		if _, err := tx.Exec(ctx, sql, gone); err != nil {
			return 0, fmt.Errorf("forget contacts who never confirmed: %w", err)
		}
	}
	w := &writer{drainer: drainer}
	if err := w.addSet("contact.erased", "", gone, nil); err != nil {
		return 0, err
	}
	for chunk := range slices.Chunk(gone, event.MaxItems) {
		w.ring = append(w.ring, event.ContactErased{Contacts: chunk})
	}
	return len(ids), w.flush(ctx, tx)
}
