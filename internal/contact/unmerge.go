package contact

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/onda-run/onda/internal/event"
	"github.com/onda-run/onda/internal/postgres"
)

// Unmerged is what an Unmerge gave back.
type Unmerged struct {
	Loser  int64          `json:"loser"`
	Winner int64          `json:"winner"`
	Rows   map[string]int `json:"rows"`
	Total  int            `json:"total"`
}

// Unmerge undoes a merge: the loser has again what it had, by the record of that; what came since stays with the winner. It is refused when the winner was erased, or merged into another
// since. It writes the fact contact.unmerged, which names both, and rings.
func Unmerge(ctx context.Context, tx *postgres.Tx, drainer string, loser int64, cause string) (Unmerged, error) {
	m := &merger{tx: tx, w: &writer{drainer: drainer, cause: cause}, loser: loser, all: true}
	out := Unmerged{Loser: loser, Rows: map[string]int{}}
	if tx.Tenant.Schema < MergeSchema {
		return out, fmt.Errorf("to undo a merge, tenant %s needs schema %d: %w", tx.Tenant.Name, MergeSchema, postgres.ErrSchemaTooOld)
	}
	if _, err := m.readUndo(ctx); err != nil {
		return out, err
	}
	if err := m.lockUnsent(ctx); err != nil { // what is being marked goes to the winner still
		return out, err
	}
	if err := m.lockEarly(ctx); err != nil {
		return out, err
	}
	// Before others are kept from making contacts; what is gathered meanwhile comes after that.
	if err := m.move(ctx, m.winner, loser); err != nil {
		return out, err
	}
	if err := m.lockBoth(ctx); err != nil {
		return out, err
	}
	now, err := m.readUndo(ctx) // again, now that nobody else is at it
	if err != nil {
		return out, err
	}
	out.Winner = m.winner
	for table, ids := range m.undo.Moved {
		if len(ids) > 0 {
			out.Rows[table] = len(ids)
			out.Total += len(ids)
		}
	}
	if err := m.move(ctx, m.winner, loser); err != nil {
		return out, err
	}
	if err := m.split(now).write(ctx, tx, m.winner, 0); err != nil {
		return out, err
	}
	if err := m.undo.Loser.write(ctx, tx, loser, 0); err != nil {
		return out, err
	}
	if m.undo.Loser.Email != nil {
		if err := m.ownSuppressions(ctx, m.winner, loser); err != nil {
			return out, err
		}
	}
	for _, step := range []func(context.Context) error{m.giveBack, m.release, m.disagree, m.rewrite} {
		if err := step(ctx); err != nil {
			return out, err
		}
	}
	m.w.ring = append(m.w.ring, event.ContactUnmerged{Items: []event.Merge{{Contact: loser, Into: m.winner}}})
	if err := m.told("contact.unmerged"); err != nil {
		return out, err
	}
	return out, m.w.flush(ctx, tx)
}

// readUndo reads the record, and the winner as it is now, and refuses what cannot be undone.
func (m *merger) readUndo(ctx context.Context) (now self, err error) {
	var forward self
	into, erased, record, err := readSelf(ctx, m.tx, m.loser, &forward)
	switch {
	case err != nil:
		return now, err
	case erased:
		return now, fmt.Errorf("contact %d %w", m.loser, ErrErased)
	case into == 0 || record == nil:
		return now, fmt.Errorf("contact %d %w", m.loser, ErrNotMerged)
	}
	m.undo = undo{}
	if err := json.Unmarshal(record, &m.undo); err != nil {
		return now, fmt.Errorf("read the record of a merge: %w", err)
	}
	m.winner = m.undo.Into
	if into != m.winner {
		return now, fmt.Errorf("contact %d was merged into %d, which %w: undo that first", m.loser, m.winner, ErrMergedOn)
	}
	_, erased, _, err = readSelf(ctx, m.tx, m.winner, &now)
	if err == nil && erased {
		err = fmt.Errorf("contact %d, into which it was merged, %w", m.winner, ErrErased)
	}
	return now, err
}

// split is the winner's row without what the merge gave it: where that is another by now, it is left.
func (m *merger) split(now self) *self {
	before, after := m.undo.Winner, m.undo.After
	for name := range after.Fields {
		if bytes.Equal(before.Fields[name], after.Fields[name]) || !bytes.Equal(now.Fields[name], after.Fields[name]) {
			continue
		}
		if had, ok := before.Fields[name]; ok {
			now.Fields[name] = had
		} else {
			delete(now.Fields, name)
		}
	}
	if slices.Equal(now.Tags, after.Tags) {
		now.Tags = before.Tags
	} else {
		now.Tags = slices.DeleteFunc(now.Tags, func(tag string) bool { return slices.Contains(after.Tags, tag) && !slices.Contains(before.Tags, tag) })
	}
	for group, n := range m.undo.Loser.Scores {
		now.Scores[group] -= n
		if _, had := before.Scores[group]; !had && now.Scores[group] == 0 {
			delete(now.Scores, group)
		}
	}
	now.Email, now.ExternalID, now.Frequency = back(now.Email, after.Email, before.Email), back(now.ExternalID, after.ExternalID, before.ExternalID), back(now.Frequency, after.Frequency, before.Frequency)
	now.Stage, now.Typed = back(now.Stage, after.Stage, before.Stage), back(now.Typed, after.Typed, before.Typed)
	now.Paused, now.Expires = backTime(now.Paused, after.Paused, before.Paused), backTime(now.Expires, after.Expires, before.Expires)
	if now.Changed.Equal(after.Changed) {
		now.Changed = before.Changed
	} else {
		now.Changed = m.tx.Now()
	}
	return &now
}

// back is what was before, where what came after is there still.
func back(now, after, before *string) *string {
	if (now == nil) == (after == nil) && (now == nil || *now == *after) {
		return before
	}
	return now
}

func backTime(now, after, before *time.Time) *time.Time {
	if (now == nil) == (after == nil) && (now == nil || now.Equal(*after)) {
		return before
	}
	return now
}

// giveBack undoes what is neither of the two rows nor of the ledger.
func (m *merger) giveBack(ctx context.Context) error {
	b := &pgx.Batch{}
	b.Queue("UPDATE contact SET merged_into = $2 WHERE id = ANY ($3) AND merged_into = $1", m.winner, m.loser, m.undo.Forwards)
	for _, e := range m.undo.Ended { // unless its run is over
		b.Queue(`UPDATE journey j SET state = 'active', outcome = '', ended_at = NULL, due_at = coalesce($2::timestamptz, 'infinity') FROM run r
			WHERE j.id = $1 AND j.state = 'left' AND j.outcome = 'merged' AND r.id = j.run AND r.state IN ('scheduled', 'running', 'paused')`, e.ID, e.Due)
	}
	for _, a := range m.undo.Allowances { // those that are not forgotten meanwhile
		merged := a.N
		if a.Was != nil {
			merged = max(a.N, *a.Was)
		}
		b.Queue(`UPDATE allowance SET n = CASE WHEN period < 'infinity' THEN n - $4 WHEN n = $5 THEN coalesce($6, n) ELSE n END WHERE kind = $1 AND contact = $2 AND period = $3::text::timestamptz`,
			a.Kind, m.winner, a.Period, a.N, merged, a.Was)
		if a.Was == nil {
			b.Queue("DELETE FROM allowance WHERE kind = $1 AND contact = $2 AND period = $3::text::timestamptz AND n = CASE WHEN period < 'infinity' THEN 0 ELSE $4::integer END", a.Kind, m.winner, a.Period, a.N)
		}
		b.Queue("INSERT INTO allowance (kind, contact, period, n) VALUES ($1, $2, $3::text::timestamptz, $4) ON CONFLICT DO NOTHING", a.Kind, m.loser, a.Period, a.N)
	}
	if err := m.tx.SendBatch(ctx, b).Close(); err != nil {
		return fmt.Errorf("give back what was merged into contact %d: %w", m.winner, err)
	}
	return nil
}

// release lets mail to the winner go again that was stopped because it was to the loser. Where another that was merged into it is stopped for the same reason, it stays so, and that one's
// record is what ends it.
func (m *merger) release(ctx context.Context) error {
	for _, s := range m.undo.Suppressions {
		var heir int64
		var until time.Time
		err := m.tx.QueryRow(ctx, `SELECT o.id, least(p.until, '9999-01-01') FROM contact o JOIN suppression p ON p.contact = o.id
			WHERE o.merged_into = $1 AND p.channel = 'email' AND p.reason = $2 AND p.until > onda.now() ORDER BY p.until DESC, o.id LIMIT 1`, m.winner, s.Reason).Scan(&heir, &until)
		if err != nil && !errors.Is(err, pgx.ErrNoRows) {
			return fmt.Errorf("look who else is stopped: %w", err)
		}
		if heir != 0 {
			err = m.bequeath(ctx, heir, func(u *undo) bool {
				same := func(o stopped) bool { return bytes.Equal(o.Hash, s.Hash) && o.Reason == s.Reason }
				if u.At.Before(m.undo.At) && slices.ContainsFunc(u.Suppressions, same) {
					return false // it was first, and knows what there was before
				}
				u.Suppressions = append(slices.DeleteFunc(u.Suppressions, same), s)
				return true
			})
			if err != nil {
				return err
			}
			if s.Reason == string(Complaint) {
				m.heir = heir
			}
			if s.Until == nil || s.Until.Before(until) {
				s.Until = &until
			}
		}
		sql, args := "UPDATE suppression SET until = CASE WHEN $4::timestamptz < '9999-01-01' THEN $4 ELSE 'infinity' END", []any{s.Hash, s.Reason, m.winner, s.Until}
		if s.Until == nil {
			sql, args = "DELETE FROM suppression", args[:3]
		}
		if _, err := m.tx.Exec(ctx, sql+" WHERE hash = $1 AND reason = $2 AND channel = 'email' AND contact = $3", args...); err != nil {
			return fmt.Errorf("let mail to contact %d go again: %w", m.winner, err)
		}
	}
	return nil
}

// rewrite has the records of later merges into the same winner know nothing of what the loser had given it: else to undo one of them would bring that back, and to erase the loser would leave
// it there.
func (m *merger) rewrite(ctx context.Context) error {
	rows, err := m.tx.Query(ctx, "SELECT id FROM contact WHERE merged_into = $1 AND merge IS NOT NULL ORDER BY id", m.winner)
	if err != nil {
		return fmt.Errorf("look who else was merged into contact %d: %w", m.winner, err)
	}
	others, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		return fmt.Errorf("look who else was merged into contact %d: %w", m.winner, err)
	}
	for _, other := range others {
		err := m.bequeath(ctx, other, func(u *undo) bool {
			later := u.Into == m.winner && u.At.After(m.undo.At)
			if later {
				u.Winner, u.After = *m.split(u.Winner), *m.split(u.After)
			}
			return later
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// bequeath changes the record of another merge, where f does.
func (m *merger) bequeath(ctx context.Context, heir int64, f func(*undo) bool) error {
	var s self
	_, _, record, err := readSelf(ctx, m.tx, heir, &s)
	if err != nil || record == nil {
		return err
	}
	var u undo
	if err := json.Unmarshal(record, &u); err != nil {
		return fmt.Errorf("read the record of a merge: %w", err)
	}
	if !f(&u) {
		return nil
	}
	if record, err = json.Marshal(u); err != nil {
		return fmt.Errorf("encode the record of a merge: %w", err)
	}
	if _, err := m.tx.Exec(ctx, "UPDATE contact SET merge = $2 WHERE id = $1", heir, string(record)); err != nil {
		return fmt.Errorf("note what was merged: %w", err)
	}
	return nil
}

// disagree gives both the subscriptions that they had; where the winner's ledger has had entries since, what it says counts. Nobody is told: both are looked at anew.
func (m *merger) disagree(ctx context.Context) error {
	if _, err := m.tx.Exec(ctx, "DELETE FROM consent WHERE id = ANY ($1) AND contact = $2", m.undo.Consents, m.winner); err != nil {
		return fmt.Errorf("give back the consent of contact %d: %w", m.loser, err)
	}
	since, err := m.since(ctx)
	if err != nil {
		return err
	}
	b := &pgx.Batch{}
	b.Queue("DELETE FROM subscription s WHERE s.contact = $1 AND (NOT s.purpose = ANY ($2) OR NOT EXISTS (SELECT FROM consent c WHERE c.contact = $1 AND c.purpose = s.purpose))", m.winner, since)
	if m.undo.Subscriptions != nil {
		b.Queue(`INSERT INTO subscription (contact, purpose, state, consent, at) SELECT contact, purpose, state, consent, at FROM jsonb_populate_recordset(NULL::subscription, $1)
			WHERE contact = $2 OR NOT purpose = ANY ($3) ON CONFLICT DO NOTHING`, string(m.undo.Subscriptions), m.loser, since)
	}
	if err := m.tx.SendBatch(ctx, b).Close(); err != nil {
		return fmt.Errorf("give back the consent of contact %d: %w", m.loser, err)
	}
	if err := m.readLedger(ctx); err != nil {
		return err
	}
	silent := &merger{tx: m.tx, w: &writer{}, winner: m.winner}
	if _, err := silent.project(ctx, since); err != nil {
		return err
	}
	silent.winner = m.loser // what it said by itself since the merge is its own
	if _, err := silent.project(ctx, m.undo.Late); err != nil {
		return err
	}
	again, err := m.written(ctx) // by the complaint of another that is in the winner still
	if err != nil || len(again) == 0 || m.heir == 0 {
		return err
	}
	return m.bequeath(ctx, m.heir, func(u *undo) bool { u.Consents = append(u.Consents, again...); return true })
}

// since are the purposes of which the winner's ledger tells something else than before the merge: by what came since, or by another merge or the undoing of one.
func (m *merger) since(ctx context.Context) ([]string, error) {
	before := "[]"
	if m.undo.Subscriptions != nil {
		before = string(m.undo.Subscriptions)
	}
	rows, err := m.tx.Query(ctx, `SELECT purpose FROM consent WHERE contact = $1 AND ($4 OR NOT id = ANY (coalesce($2::bigint[], '{}')))
		UNION SELECT r.purpose FROM jsonb_populate_recordset(NULL::subscription, $3) r WHERE r.contact = $1 AND NOT EXISTS (SELECT FROM consent c WHERE c.id = r.consent AND c.contact = $1)
		ORDER BY purpose`, m.winner, m.undo.Ledger, before, m.heir != 0)
	if err != nil {
		return nil, fmt.Errorf("read the consent ledger: %w", err)
	}
	purposes, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("read the consent ledger: %w", err)
	}
	return append([]string{}, purposes...), nil
}
