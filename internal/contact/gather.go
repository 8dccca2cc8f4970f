package contact

import (
	"context"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/onda-run/onda/internal/event"
	"github.com/onda-run/onda/internal/postgres"
)

// Gather gives the winners of merges what is the losers' still: what was too much to be moved at once, and what was written since by who had read that they were contacts still. Of these
// contacts it does so for all that are losers. Who reads facts calls it with whom they are about. Where it found something it writes the fact contact.merged again, so that it is called again; more
// tells that there may be more. What it moves is in the record of the merge, and so Unmerge gives it back.
func Gather(ctx context.Context, tx *postgres.Tx, drainer string, contacts []int64) (more bool, err error) {
	if len(contacts) == 0 || tx.Tenant.Schema < MergeSchema {
		return false, nil
	}
	rows, err := tx.Query(ctx, "SELECT id, merged_into FROM contact WHERE merged_into IS NOT NULL AND id = ANY ($1) ORDER BY id", contacts)
	if err != nil {
		return false, fmt.Errorf("look who was merged: %w", err)
	}
	merged, err := pgx.CollectRows(rows, pgx.RowToStructByPos[event.Merge])
	if err != nil {
		return false, fmt.Errorf("look who was merged: %w", err)
	}
	for _, pair := range merged {
		m := &merger{tx: tx, w: &writer{drainer: drainer}, loser: pair.Contact, winner: pair.Into}
		again, err := m.gather(ctx)
		if err != nil {
			return false, err
		}
		more = more || again
	}
	return more, nil
}

func (m *merger) gather(ctx context.Context) (more bool, err error) {
	m.undo.Moved = map[string][]int64{}
	if err := m.find(ctx, 0, len(owned)); err != nil {
		return false, err
	}
	n := 0
	for _, o := range owned {
		ids := m.now(o.table, o.many)
		more = more || len(ids) < len(m.undo.Moved[o.table])
		m.undo.Moved[o.table] = ids
		n += len(ids)
	}
	if n == 0 {
		return false, nil
	}
	if err := m.lockEarly(ctx); err != nil {
		return false, err
	}
	if _, err := m.tx.Exec(ctx, lockContacts, []int64{m.loser, m.winner}); err != nil {
		return false, fmt.Errorf("lock contacts: %w", err)
	}
	var still bool
	if err := m.tx.QueryRow(ctx, "SELECT EXISTS (SELECT FROM contact WHERE id = $1 AND merged_into = $2)", m.loser, m.winner).Scan(&still); err != nil || !still {
		return false, err
	}
	if err := m.journeys(ctx, &Merged{}); err != nil {
		return false, err
	}
	if err := m.move(ctx, m.loser, m.winner); err != nil {
		return false, err
	}
	if consents := m.undo.Moved["consent"]; len(consents) > 0 {
		if m.undo.Late, err = m.purposes(ctx, "id = ANY ($1)", consents); err != nil {
			return false, err
		}
		if err := m.unsubscribe(ctx); err != nil {
			return false, err
		}
		if _, err := m.project(ctx, m.undo.Late); err != nil {
			return false, err
		}
	}
	for next := m.loser; next != 0 && next != m.winner; { // also of those that it became part of on the way to the winner
		of := next
		next = 0
		err := m.bequeath(ctx, of, func(u *undo) bool { next = u.Into; return m.noteLate(u) })
		if err != nil {
			return false, err
		}
		m.undo.Ended = nil // which are the loser's
	}
	if err := m.told("contact.merged"); err != nil {
		return false, err
	}
	return more, m.w.flush(ctx, m.tx)
}

// noteLate adds what was gathered to the record of a merge, and tells whether it was not there.
func (m *merger) noteLate(u *undo) bool {
	added := len(m.undo.Ended) > 0
	u.Ended = append(u.Ended, m.undo.Ended...)
	for table, ids := range m.undo.Moved {
		had := make(map[int64]bool, len(u.Moved[table]))
		for _, id := range u.Moved[table] {
			had[id] = true
		}
		for _, id := range ids {
			if !had[id] {
				u.Moved[table] = append(u.Moved[table], id)
				added = true
			}
		}
	}
	for _, p := range m.undo.Late {
		if !slices.Contains(u.Late, p) {
			u.Late, added = append(u.Late, p), true
		}
	}
	return added
}
