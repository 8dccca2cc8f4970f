package contact

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/onda-run/onda/internal/delivery"
	"github.com/onda-run/onda/internal/event"
	"github.com/onda-run/onda/internal/postgres"
)

// MergeSchema is the tenant migration from which on contacts can be merged.
const MergeSchema = 25

// MergeMost is how many rows a contact may have that is merged: a record holds their ids.
const MergeMost = 100_000

// mergeAtOnce is how many rows of a table are moved in one transaction, of those that there may be many of: Gather moves the others.
const mergeAtOnce = 5000

// Errors of Merge and Unmerge, beside ErrGone.
var (
	ErrItself    = errors.New("a contact cannot be merged with itself")
	ErrMerged    = errors.New("was merged into another already")
	ErrNotMerged = errors.New("was not merged into another")
	ErrMergedOn  = errors.New("was merged into another since")
	ErrErased    = errors.New("is erased")
	ErrTooMany   = fmt.Errorf("has more than %d rows: too many to be moved at once", MergeMost)
	ErrTaken     = errors.New("has an address, an external id or a value of a unique field that is another contact's by now: merge or change that one first")
)

// Prefer says whose fields count where both contacts have one.
type Prefer string

// The winner's, unless told otherwise.
const (
	PreferWinner Prefer = "winner"
	PreferLoser  Prefer = "loser"
)

// owned are the rows that name a contact and become another's as they are, by table: SQL of their ids, of the contact $1, which is merged into $2. Those that others lock before
// they lock contacts come first (early of them), and are locked in that order.
// Of those that are many, some are moved at once.
var owned = []struct {
	table, ids string
	many       bool
}{
	{"delivery", "SELECT id FROM delivery WHERE contact = $1 AND $2 <> 0", false},
	{"hit", "SELECT h.id FROM delivery m JOIN hit h ON h.delivery = m.id AND h.delivery > 0 WHERE m.contact IN ($1, $2) AND h.contact = $1", true},
	{"journey", "SELECT id FROM journey WHERE contact = $1 AND $2 <> 0", false},
	{"submission", "SELECT id FROM submission WHERE contact = $1 AND $2 <> 0", false},
	{"visitor", "SELECT id FROM visitor WHERE contact = $1 AND $2 <> 0", false},
	{"fact", "SELECT id FROM fact WHERE contact = $1 AND $2 <> 0", true},
	{"consent", "SELECT id FROM consent WHERE contact = $1 AND $2 <> 0", false},
}

const early = 3

// apart are the columns that name contacts and are not simply set: what becomes of each. With owned these are all that there are; a test holds both to the schema.
func apart() map[string]string {
	return map[string]string{
		"contact.merged_into":  "those that were merged into the loser are the winner's, so that readers follow one step",
		"subscription.contact": "projected from the ledger, whose rows move",
		"suppression.contact":  "of addresses: a complaint or a hand that stopped mail to the one stops it to the other; a bounce says nothing of the other's address",
		"allowance.contact":    "adds up, so that no cap is passed",
		"member.contact":       "computed by segment, which reads the fact",
		"batch.contacts":       "whom a mail was planned for; one that is not sent yet goes to the winner, or to nobody where that has it by another (delivery.Lease.Fates)",
		"fact.contacts":        "what many were told of at once; who reads it follows merges",
	}
}

// Merged is what a merge moved, or would.
type Merged struct {
	Loser  int64 `json:"loser"`
	Winner int64 `json:"winner"`
	// Rows is how many rows become the winner's, by table; Total is all of them.
	Rows  map[string]int `json:"rows"`
	Total int            `json:"total"`
	// Fields, Tags, Scores and Stage are what the winner gets of the loser's.
	Fields []string         `json:"fields,omitempty"`
	Tags   []string         `json:"tags,omitempty"`
	Scores map[string]int64 `json:"scores,omitempty"`
	Stage  string           `json:"stage,omitempty"`
	// Address and ExternalID: the winner had none, and has the loser's now. Else the loser's lead to the winner.
	Address    bool `json:"address,omitempty"`
	ExternalID bool `json:"externalId,omitempty"`
	// Withdrawn are topics and purposes that the winner had agreed to, and the loser does not want.
	Withdrawn []string `json:"withdrawn,omitempty"`
	// Suppressed are the reasons for which the winner gets no mail any more.
	Suppressed []string `json:"suppressed,omitempty"`
	// Ended is how many journeys of the loser end, since the winner is in the same.
	Ended int `json:"ended,omitempty"`
	// Redirected is how many mails that wait for the loser go to the winner, and Repeated how many to either will not be sent, since the one has, or gets, what the other has or gets.
	Redirected int `json:"redirected,omitempty"`
	Repeated   int `json:"repeated,omitempty"`
	// Forwards are contacts that were merged into the loser before.
	Forwards []int64 `json:"forwards,omitempty"`
}

// self is what a contact's own row says.
type self struct {
	Email      *string                    `json:"email"`
	ExternalID *string                    `json:"externalId"`
	Fields     map[string]json.RawMessage `json:"fields"`
	Tags       []string                   `json:"tags"`
	Scores     map[string]int64           `json:"scores"`
	Paused     *time.Time                 `json:"pausedUntil"`
	Frequency  *string                    `json:"frequency"`
	Stage      *string                    `json:"stage"`
	Typed      *string                    `json:"typed"`
	Expires    *time.Time                 `json:"expiresAt"`
	Changed    time.Time                  `json:"changedAt"`
}

// undo is the record of a merge: what there was, and what was done.
type undo struct {
	Into int64     `json:"into"`
	At   time.Time `json:"at"`
	By   string    `json:"by,omitempty"`

	Loser  self `json:"loser"`
	Winner self `json:"winner"`
	After  self `json:"after"` // the winner then

	Moved         map[string][]int64 `json:"moved"`          // also by Gather since, or yet to be
	Late          []string           `json:"late,omitempty"` // purposes that Gather found entries of the ledger of
	Forwards      []int64            `json:"forwards,omitempty"`
	Subscriptions json.RawMessage    `json:"subscriptions,omitempty"` // of both
	Ledger        []int64            `json:"ledger,omitempty"`        // the winner's entries, before
	Consents      []int64            `json:"consents,omitempty"`      // those that the merge wrote
	Suppressions  []stopped          `json:"suppressions,omitempty"`
	Allowances    []allowance        `json:"allowances,omitempty"`
	Ended         []ended            `json:"ended,omitempty"`
}

// stopped is a suppression of the winner's address that the merge wrote; Until is until when there was one before.
type stopped struct {
	Hash   []byte     `json:"hash"`
	Reason string     `json:"reason"`
	Until  *time.Time `json:"until,omitempty"`
}

// allowance is a row of the loser's, and what the winner had.
type allowance struct {
	Kind   string `json:"kind"`
	Period string `json:"period"`
	N      int    `json:"n"`
	Was    *int   `json:"was,omitempty"`
}

// ended is a journey that the merge ended.
type ended struct {
	ID  int64      `json:"id"`
	Due *time.Time `json:"due,omitempty"` // nil: never
}

// merger is one merge, or its undoing.
type merger struct {
	tx            *postgres.Tx
	w             *writer
	loser, winner int64
	undo          undo
	all           bool  // of those rows that are many too, as many as there are
	ledger        int64 // the last entry of either, before
	heir          int64 // of an Unmerge: another in the winner who complained
}

// Merge makes the winner of what the loser was: its mails, consents, journeys, facts and all else become the winner's, and the loser a row that leads there, with a record by which
// Unmerge gives it back. Fields of the winner count, those of the loser fill gaps, or the other way round with PreferLoser; tags and scores add up. Of consent and what they wish the
// stricter counts: what either withdrew is withdrawn, and who complained or was stopped by hand stays so. The winner's address is kept. It writes the fact contact.merged, which names both,
// and rings. To find out what it would do, do it and roll back. Of what happened, and of opens and clicks, it moves some thousands: Gather, which reads the fact, moves the others.
func Merge(ctx context.Context, tx *postgres.Tx, drainer string, loser, winner int64, prefer Prefer, cause string) (Merged, error) {
	m := &merger{tx: tx, w: &writer{drainer: drainer, cause: cause}, loser: loser, winner: winner}
	m.undo = undo{Into: winner, By: cause}
	out := Merged{Loser: loser, Winner: winner, Rows: map[string]int{}}
	if tx.Tenant.Schema < MergeSchema {
		return out, fmt.Errorf("to merge contacts, tenant %s needs schema %d: %w", tx.Tenant.Name, MergeSchema, postgres.ErrSchemaTooOld)
	}
	if loser == winner {
		return out, fmt.Errorf("contact %d: %w", loser, ErrItself)
	}
	if err := m.lock(ctx); err != nil {
		return out, err
	}
	if err := m.read(ctx); err != nil {
		return out, err
	}
	// Under the lock: of two merges into one contact the later has the later time, whichever began first.
	if err := tx.QueryRow(ctx, "SELECT clock_timestamp() + (onda.now() - now())").Scan(&m.undo.At); err != nil {
		return out, fmt.Errorf("read the clock: %w", err)
	}
	if err := m.find(ctx, early, len(owned)); err != nil {
		return out, err
	}
	for table, ids := range m.undo.Moved {
		if len(ids) > 0 {
			out.Rows[table] = len(ids)
			out.Total += len(ids)
		}
	}
	if out.Total > MergeMost {
		return out, fmt.Errorf("contact %d: %w", loser, ErrTooMany)
	}
	for _, step := range []func(context.Context, *Merged) error{m.journeys, m.consents, m.allowances} {
		if err := step(ctx, &out); err != nil {
			return out, err
		}
	}
	if err := m.move(ctx, loser, winner); err != nil {
		return out, err
	}
	m.join(prefer, &out)
	if err := m.forward(ctx, &out); err != nil {
		return out, err
	}
	var err error
	if out.Repeated, out.Redirected, err = delivery.Unsent(ctx, tx, winner, append([]int64{loser}, m.undo.Forwards...)); err != nil {
		return out, err
	}
	if err := m.agree(ctx, &out); err != nil {
		return out, err
	}
	record, err := json.Marshal(m.undo)
	if err != nil {
		return out, fmt.Errorf("encode the record of a merge: %w", err)
	}
	if _, err := tx.Exec(ctx, "UPDATE contact SET merge = $2 WHERE id = $1", loser, string(record)); err != nil {
		return out, fmt.Errorf("note what was merged: %w", err)
	}
	m.w.ring = append(m.w.ring, event.ContactMerged{Items: []event.Merge{{Contact: loser, Into: winner}}})
	if err := m.told("contact.merged"); err != nil {
		return out, err
	}
	if err := m.w.flush(ctx, tx); err != nil {
		return out, err
	}
	return out, m.lockUnsent(ctx) // also in batches that were planned meanwhile
}

// told notes the fact, which is of the winner and names both.
func (m *merger) told(kind string) error {
	return m.w.add(kind, "", m.winner, map[string]any{"contact": m.loser, "into": m.winner}, time.Time{})
}

// MergedBy are the two contacts that a fact of a merge, or of the undoing of one, is about; none for other facts.
func MergedBy(f postgres.Fact) []int64 {
	var names event.Merge
	if f.Kind != "contact.merged" && f.Kind != "contact.unmerged" || json.Unmarshal(f.Data, &names) != nil {
		return nil
	}
	return slices.DeleteFunc([]int64{names.Contact, names.Into}, func(id int64) bool { return id == 0 })
}

// lock takes the rows that others lock before contacts, then keeps contacts from being made, and then takes the two. Batches come before all.
func (m *merger) lock(ctx context.Context) error {
	m.undo.Moved = map[string][]int64{}
	if err := m.lockUnsent(ctx); err != nil {
		return err
	}
	if err := m.find(ctx, 0, early); err != nil {
		return err
	}
	if err := m.lockEarly(ctx); err != nil {
		return err
	}
	return m.lockBoth(ctx)
}

// lockUnsent keeps mails to either, and to those that are part of them, from being marked.
func (m *merger) lockUnsent(ctx context.Context) error {
	rows, err := m.tx.Query(ctx, "SELECT id FROM contact WHERE id IN ($1, $2) OR merged_into IN ($1, $2) ORDER BY id", m.loser, m.winner)
	if err != nil {
		return fmt.Errorf("look who was merged: %w", err)
	}
	all, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		return fmt.Errorf("look who was merged: %w", err)
	}
	return delivery.LockUnsent(ctx, m.tx, all)
}

func (m *merger) lockEarly(ctx context.Context) error {
	b := &pgx.Batch{}
	for _, o := range owned[:early] {
		b.Queue("SELECT FROM "+o.table+" WHERE id = ANY ($1) ORDER BY id FOR UPDATE", m.now(o.table, o.many))
	}
	if err := m.tx.SendBatch(ctx, b).Close(); err != nil {
		return fmt.Errorf("lock what contact %d has: %w", m.loser, err)
	}
	return nil
}

// now are the rows of a table that this transaction moves.
func (m *merger) now(table string, many bool) []int64 {
	ids := m.undo.Moved[table]
	if many && !m.all {
		ids = ids[:min(len(ids), mergeAtOnce)]
	}
	return ids
}

// lockBoth is against those who find or make contacts by an address or external id that is about to lead elsewhere, and those who change either.
func (m *merger) lockBoth(ctx context.Context) error {
	b := &pgx.Batch{}
	b.Queue("SELECT pg_advisory_xact_lock($1, $2)", makeLock, m.tx.Tenant.Number)
	b.Queue("SELECT FROM contact WHERE id = ANY ($1) OR merged_into = $2 ORDER BY id FOR UPDATE", append([]int64{m.loser, m.winner}, m.undo.Forwards...), m.loser)
	if err := m.tx.SendBatch(ctx, b).Close(); err != nil {
		return fmt.Errorf("lock contacts: %w", err)
	}
	return nil
}

// find notes the ids of rows of the loser.
func (m *merger) find(ctx context.Context, from, to int) error {
	b := &pgx.Batch{}
	for _, o := range owned[from:to] {
		b.Queue(o.ids+" ORDER BY 1 LIMIT $3", m.loser, m.winner, MergeMost+1).Query(func(rows pgx.Rows) (err error) {
			m.undo.Moved[o.table], err = pgx.CollectRows(rows, pgx.RowTo[int64])
			return err
		})
	}
	if err := m.tx.SendBatch(ctx, b).Close(); err != nil {
		return fmt.Errorf("look what contact %d has: %w", m.loser, err)
	}
	return nil
}

// read reads the two contacts, and refuses what cannot be merged.
func (m *merger) read(ctx context.Context) error {
	for _, one := range []struct {
		id   int64
		into *self
	}{{m.loser, &m.undo.Loser}, {m.winner, &m.undo.Winner}} {
		merged, erased, _, err := readSelf(ctx, m.tx, one.id, one.into)
		switch {
		case err != nil:
			return err
		case erased:
			return fmt.Errorf("contact %d %w", one.id, ErrErased)
		case merged != 0:
			return fmt.Errorf("contact %d %w: it is part of contact %d", one.id, ErrMerged, merged)
		}
	}
	return nil
}

func readSelf(ctx context.Context, tx *postgres.Tx, id int64, s *self) (merged int64, erased bool, record []byte, err error) {
	err = tx.QueryRow(ctx, `SELECT coalesce(merged_into, 0), erased_at IS NOT NULL, merge, email, external_id, fields, tags, scores, paused_until, frequency, stage, typed, expires_at, changed_at
		FROM contact WHERE id = $1`, id).
		Scan(&merged, &erased, &record, &s.Email, &s.ExternalID, &s.Fields, &s.Tags, &s.Scores, &s.Paused, &s.Frequency, &s.Stage, &s.Typed, &s.Expires, &s.Changed)
	if errors.Is(err, pgx.ErrNoRows) {
		err = fmt.Errorf("contact %d: %w", id, ErrGone)
	} else if err != nil {
		err = fmt.Errorf("read contact %d: %w", id, err)
	}
	return merged, erased, record, err
}

// write writes a contact's own row.
func (s *self) write(ctx context.Context, tx *postgres.Tx, id, mergedInto int64) error {
	fields, err := jsonText(s.Fields, map[string]json.RawMessage{})
	if err != nil {
		return err
	}
	scores, err := jsonText(s.Scores, map[string]int64{})
	if err != nil {
		return err
	}
	tags := s.Tags
	if tags == nil {
		tags = []string{}
	}
	_, err = tx.Exec(ctx, `UPDATE contact SET email = $2, external_id = $3, fields = $4, tags = $5, scores = $6, paused_until = $7, frequency = $8, stage = $9, typed = $10, expires_at = $11, changed_at = $12,
		merged_into = $13, merge = NULL WHERE id = $1`, id, s.Email, s.ExternalID, fields, tags, scores, s.Paused, s.Frequency, s.Stage, s.Typed, s.Expires, s.Changed, idOrNull(mergedInto))
	var pe *pgconn.PgError
	if errors.As(err, &pe) && pe.Code == "23505" {
		return fmt.Errorf("contact %d %w", id, ErrTaken)
	}
	if err != nil {
		return fmt.Errorf("write contact %d: %w", id, err)
	}
	return nil
}

// journeys ends those that would be a second one in the same run.
func (m *merger) journeys(ctx context.Context, out *Merged) error {
	rows, err := m.tx.Query(ctx, `SELECT l.id, nullif(l.due_at, 'infinity') FROM journey l WHERE l.contact = $1 AND l.state = 'active'
		AND EXISTS (SELECT FROM journey o WHERE o.contact = $2 AND o.run = l.run AND o.key = l.key AND o.state = 'active') ORDER BY l.id`, m.loser, m.winner)
	if err != nil {
		return fmt.Errorf("look for journeys of both: %w", err)
	}
	if m.undo.Ended, err = pgx.CollectRows(rows, pgx.RowToStructByPos[ended]); err != nil {
		return fmt.Errorf("look for journeys of both: %w", err)
	}
	out.Ended = len(m.undo.Ended)
	ids := make([]int64, len(m.undo.Ended))
	for i, e := range m.undo.Ended {
		ids[i] = e.ID
	}
	if _, err := m.tx.Exec(ctx, "UPDATE journey SET state = 'left', outcome = 'merged', ended_at = onda.now(), due_at = 'infinity' WHERE id = ANY ($1)", ids); err != nil {
		return fmt.Errorf("end journeys of both: %w", err)
	}
	return nil
}

// move makes rows that were found another's.
func (m *merger) move(ctx context.Context, from, to int64) error {
	b := &pgx.Batch{}
	for _, o := range owned {
		if ids := m.now(o.table, o.many); len(ids) > 0 {
			b.Queue("UPDATE "+o.table+" SET contact = $3 WHERE id = ANY ($1) AND contact = $2", ids, from, to)
		}
	}
	if err := m.tx.SendBatch(ctx, b).Close(); err != nil {
		return fmt.Errorf("move what contact %d has to contact %d: %w", from, to, err)
	}
	return nil
}

// consents notes how both stand to topics, before the ledger moves, and has what either withdrew be withdrawn.
func (m *merger) consents(ctx context.Context, _ *Merged) error {
	if err := m.readLedger(ctx); err != nil {
		return err
	}
	err := m.tx.QueryRow(ctx, `SELECT ARRAY(SELECT id FROM consent WHERE contact = $2 ORDER BY id), (SELECT jsonb_agg(to_jsonb(s)) FROM subscription s WHERE s.contact IN ($1, $2))`, m.loser, m.winner).
		Scan(&m.undo.Ledger, &m.undo.Subscriptions)
	if err != nil {
		return fmt.Errorf("read how both stand to topics: %w", err)
	}
	_, err = m.tx.Exec(ctx, `INSERT INTO consent (contact, purpose, state, basis, proof, at)
		SELECT $2, purpose, 'withdrawn', 'merge', jsonb_build_object('contact', $1::bigint), onda.now()
		  FROM subscription WHERE contact IN ($1, $2) GROUP BY purpose
		HAVING bool_or(contact = $1 AND state = 'withdrawn') OR bool_or(contact = $2 AND state = 'withdrawn') AND bool_or(contact = $1) ORDER BY purpose`, m.loser, m.winner)
	if err != nil {
		return fmt.Errorf("withdraw what either withdrew: %w", err)
	}
	return m.unsubscribe(ctx)
}

// unsubscribe takes the loser's subscriptions away: what its ledger says is the winner's to agree with.
func (m *merger) unsubscribe(ctx context.Context) error {
	if _, err := m.tx.Exec(ctx, "DELETE FROM subscription WHERE contact = $1", m.loser); err != nil {
		return fmt.Errorf("take subscriptions away: %w", err)
	}
	return nil
}

// agree brings the winner's subscriptions up to date, once all is its own. Who gained a subscription is not told of it: campaigns that greet would greet again.
func (m *merger) agree(ctx context.Context, out *Merged) error {
	if err := m.stop(ctx, out); err != nil {
		return err
	}
	purposes, err := m.purposes(ctx, "contact = $1", m.winner)
	if err != nil {
		return err
	}
	if out.Withdrawn, err = m.project(ctx, purposes); err != nil {
		return err
	}
	m.undo.Consents, err = m.written(ctx)
	return err
}

func (m *merger) readLedger(ctx context.Context) error {
	if err := m.tx.QueryRow(ctx, "SELECT coalesce(max(id), 0) FROM consent WHERE contact IN ($1, $2)", m.loser, m.winner).Scan(&m.ledger); err != nil {
		return fmt.Errorf("read the consent ledger: %w", err)
	}
	return nil
}

// written are the entries of the winner's ledger since readLedger. Nobody else writes it meanwhile.
func (m *merger) written(ctx context.Context) ([]int64, error) {
	rows, err := m.tx.Query(ctx, "SELECT id FROM consent WHERE contact = $1 AND id > $2 ORDER BY id", m.winner, m.ledger)
	if err != nil {
		return nil, fmt.Errorf("read the consent ledger: %w", err)
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		return nil, fmt.Errorf("read the consent ledger: %w", err)
	}
	return ids, nil
}

// purposes are those that entries of the ledger tell of, which a condition on $1 says.
func (m *merger) purposes(ctx context.Context, which string, arg any) ([]string, error) {
	rows, err := m.tx.Query(ctx, "SELECT DISTINCT purpose FROM consent WHERE "+which+" ORDER BY purpose", arg)
	if err != nil {
		return nil, fmt.Errorf("read the consent ledger: %w", err)
	}
	purposes, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("read the consent ledger: %w", err)
	}
	return purposes, nil
}

// project makes subscriptions of the winner what its ledger says, and notes the facts of those that it lost, which it gives.
func (m *merger) project(ctx context.Context, purposes []string) (lost []string, err error) {
	if len(purposes) == 0 {
		return nil, nil
	}
	pairs := make([]pair, len(purposes))
	for i, p := range purposes {
		pairs[i] = pair{m.winner, p}
	}
	b := &pgx.Batch{}
	before := queueStanding(b, pairs)
	if err := m.tx.SendBatch(ctx, b).Close(); err != nil {
		return nil, fmt.Errorf("read how a contact stands to topics: %w", err)
	}
	all := &writer{}
	if _, err := project(ctx, m.tx, all, pairs, before); err != nil {
		return nil, err
	}
	for i, kind := range all.kind {
		if kind != "consent.withdrawn" {
			continue
		}
		m.w.kind, m.w.name, m.w.contact = append(m.w.kind, kind), append(m.w.name, all.name[i]), append(m.w.contact, all.contact[i])
		m.w.data, m.w.at = append(m.w.data, all.data[i]), append(m.w.at, all.at[i])
		if s := before[pair{m.winner, all.name[i]}].state; s == Granted || s == Pending {
			lost = append(lost, all.name[i])
		}
	}
	for _, d := range all.ring {
		if _, ok := d.(event.ConsentWithdrawn); ok {
			m.w.ring = append(m.w.ring, d)
		}
	}
	return lost, nil
}

// stop has what stopped mail to the loser stop it to the winner, but for bounces, which are of an address.
func (m *merger) stop(ctx context.Context, out *Merged) error {
	if m.undo.After.Email == nil {
		return nil
	}
	keys, err := m.tx.Keys(ctx)
	if err != nil {
		return err
	}
	hash := keys.HashAddress(*m.undo.After.Email)
	rows, err := m.tx.Query(ctx, `WITH was AS (SELECT reason, until FROM suppression WHERE hash = $3 AND channel = 'email'), written AS (
		INSERT INTO suppression AS s (hash, reason, contact, delivery, until, at)
		SELECT $3, l.reason, $2, l.delivery, l.until, l.at FROM suppression l WHERE l.contact = $1 AND l.hash <> $3 AND l.channel = 'email' AND l.reason <> 'bounce' AND l.until > onda.now() ORDER BY l.reason
		ON CONFLICT (hash, channel, reason) DO UPDATE SET until = excluded.until WHERE s.until < excluded.until RETURNING s.hash, s.reason)
		SELECT w.hash, w.reason, was.until FROM written w LEFT JOIN was USING (reason) ORDER BY w.reason`, m.loser, m.winner, hash)
	if err != nil {
		return fmt.Errorf("stop mail to contact %d: %w", m.winner, err)
	}
	if m.undo.Suppressions, err = pgx.CollectRows(rows, pgx.RowToStructByPos[stopped]); err != nil {
		return fmt.Errorf("stop mail to contact %d: %w", m.winner, err)
	}
	var items []event.Suppression
	for _, s := range m.undo.Suppressions {
		if s.Until != nil && s.Until.After(m.tx.Now()) {
			continue
		}
		out.Suppressed = append(out.Suppressed, s.Reason)
		items = append(items, event.Suppression{Contact: m.winner, Reason: s.Reason})
		if err := m.w.add("suppression.added", s.Reason, m.winner, nil, time.Time{}); err != nil {
			return err
		}
	}
	ringItems(m.w, items, func(s []event.Suppression) event.Data {
		return event.SuppressionAdded{Suppressions: event.Suppressions{Items: s}}
	})
	return nil
}

// allowancesOf are the rows of a contact, found by their kinds, which are few: no index leads to them by contact.
const allowancesOf = `WITH RECURSIVE k AS (
		(SELECT kind FROM allowance ORDER BY kind LIMIT 1)
		UNION ALL SELECT (SELECT a.kind FROM allowance a WHERE a.kind > k.kind ORDER BY a.kind LIMIT 1) FROM k WHERE k.kind IS NOT NULL
	) SELECT a.kind, a.period, a.n FROM k JOIN allowance a ON a.kind = k.kind AND a.contact = $1`

// allowances adds up what both had of what there is so much of. In a row without a period, n is when something was had last.
func (m *merger) allowances(ctx context.Context, _ *Merged) error {
	rows, err := m.tx.Query(ctx, `WITH l AS MATERIALIZED (`+allowancesOf+`), was AS (
			SELECT l.kind, l.period, l.n, o.n AS was FROM l LEFT JOIN allowance o ON o.kind = l.kind AND o.contact = $2 AND o.period = l.period
		), gone AS (DELETE FROM allowance a USING l WHERE a.kind = l.kind AND a.contact = $1 AND a.period = l.period
		), sum AS (INSERT INTO allowance AS a (kind, contact, period, n) SELECT kind, $2, period, n FROM l ORDER BY kind, period
			ON CONFLICT (kind, contact, period) DO UPDATE SET n = CASE WHEN a.period = 'infinity' THEN greatest(a.n, excluded.n) ELSE a.n + excluded.n END)
		SELECT kind, period::text, n, was FROM was ORDER BY kind, period`, m.loser, m.winner)
	if err != nil {
		return fmt.Errorf("add up allowances: %w", err)
	}
	if m.undo.Allowances, err = pgx.CollectRows(rows, pgx.RowToStructByPos[allowance]); err != nil {
		return fmt.Errorf("add up allowances: %w", err)
	}
	return nil
}

// join makes one of what the rows of both say.
func (m *merger) join(prefer Prefer, out *Merged) {
	l, after := m.undo.Loser, m.undo.Winner
	after.Fields, after.Scores = map[string]json.RawMessage{}, map[string]int64{}
	maps.Copy(after.Fields, m.undo.Winner.Fields)
	for _, name := range slices.Sorted(maps.Keys(l.Fields)) {
		if had, ok := after.Fields[name]; !ok || prefer == PreferLoser && !bytes.Equal(had, l.Fields[name]) {
			after.Fields[name] = l.Fields[name]
			out.Fields = append(out.Fields, name)
		}
	}
	for _, tag := range l.Tags {
		if !slices.Contains(m.undo.Winner.Tags, tag) {
			out.Tags = append(out.Tags, tag)
		}
	}
	if len(out.Tags) > 0 {
		after.Tags = normTags(slices.Concat(after.Tags, out.Tags))
	}
	maps.Copy(after.Scores, m.undo.Winner.Scores)
	for group, n := range l.Scores {
		after.Scores[group] += n
		if n != 0 {
			if out.Scores == nil {
				out.Scores = map[string]int64{}
			}
			out.Scores[group] = n
		}
	}
	if after.Email == nil && l.Email != nil {
		after.Email, after.Typed, out.Address = l.Email, l.Typed, true
	}
	if after.ExternalID == nil && l.ExternalID != nil {
		after.ExternalID, out.ExternalID = l.ExternalID, true
	}
	if after.Stage == nil && l.Stage != nil {
		after.Stage, out.Stage = l.Stage, *l.Stage
	}
	if l.Paused != nil && (after.Paused == nil || after.Paused.Before(*l.Paused)) {
		after.Paused = l.Paused
	}
	after.Frequency = rarer(after.Frequency, l.Frequency)
	// Who is to go unless it confirms, while the other is here to stay, stays.
	switch {
	case after.Expires == nil || l.Expires == nil:
		after.Expires = nil
	case after.Expires.Before(*l.Expires):
		after.Expires = l.Expires
	}
	after.Changed = m.tx.Now()
	m.undo.After = after
}

// rarer is the one of two frequencies that lets fewer mails through; nil lets all.
func rarer(a, b *string) *string {
	if a == nil || b == nil {
		if a == nil {
			return b
		}
		return a
	}
	perYear := func(s string) float64 {
		f, ok := ParseFrequency(s)
		switch {
		case !ok || f.Count == 0:
			return 1e9
		case f.Per == "week":
			return float64(f.Count) * 52
		}
		return float64(f.Count) * 12
	}
	if perYear(*b) < perYear(*a) {
		return b
	}
	return a
}

// forward writes the rows of both: the loser's keeps what the winner is found by besides, and leads there, as do those that led to it.
func (m *merger) forward(ctx context.Context, out *Merged) error {
	left := self{Email: m.undo.Loser.Email, Typed: m.undo.Loser.Typed, ExternalID: m.undo.Loser.ExternalID, Changed: m.undo.At}
	if out.Address {
		left.Email, left.Typed = nil, nil
	}
	if out.ExternalID {
		left.ExternalID = nil
	}
	if err := left.write(ctx, m.tx, m.loser, m.winner); err != nil {
		return err
	}
	if err := m.undo.After.write(ctx, m.tx, m.winner, 0); err != nil {
		return err
	}
	if out.Address {
		if err := m.ownSuppressions(ctx, m.loser, m.winner); err != nil {
			return err
		}
	}
	rows, err := m.tx.Query(ctx, "UPDATE contact SET merged_into = $2 WHERE merged_into = $1 RETURNING id", m.loser, m.winner)
	if err != nil {
		return fmt.Errorf("lead on to contact %d: %w", m.winner, err)
	}
	if m.undo.Forwards, err = pgx.CollectRows(rows, pgx.RowTo[int64]); err != nil {
		return fmt.Errorf("lead on to contact %d: %w", m.winner, err)
	}
	slices.Sort(m.undo.Forwards)
	if len(m.undo.Forwards) > 0 {
		out.Forwards = m.undo.Forwards
	}
	return nil
}

// ownSuppressions ties those of the loser's address to whom it becomes.
func (m *merger) ownSuppressions(ctx context.Context, from, to int64) error {
	keys, err := m.tx.Keys(ctx)
	if err != nil {
		return err
	}
	if _, err := m.tx.Exec(ctx, "UPDATE suppression SET contact = $3 WHERE hash = $1 AND contact = $2", keys.HashAddress(*m.undo.Loser.Email), from, to); err != nil {
		return fmt.Errorf("tie suppressions to contacts: %w", err)
	}
	return nil
}
