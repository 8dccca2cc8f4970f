package delivery

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/onda-run/onda/internal/postgres"
)

// Twins are mails of one run and step that were planned for contacts which are one person by now, since they were merged: the person is to get one of them. Of journeys, those are
// twins that have one key and were planned before the merge: what is planned after it is planned for the person.

// Fate is what a mail's twins make of it.
type Fate int

// The fates.
const (
	// Goes: none of its twins was sent, and it comes before those that wait. It may have none.
	Goes Fate = iota
	// Repeats: the person has had it, or gets it by the journey that it is in.
	Repeats
	// Hangs: a twin is on its way, or comes first, and whether that comes to something is not known yet: it may expire, or go to another when the merge is undone.
	Hangs
)

// askAgain is how long a mail that hangs waits for its twin to have an outcome.
const askAgain = time.Minute

// hung is why a mail hangs; by it is known that such a mail took nothing of allowances.
const hung = "the same mail, which was planned for another address of the person, comes first"

// Where a twin stands.
const (
	twinHad   = "had"   // it was sent, or may have been
	twinAway  = "away"  // it is marked, and has no outcome yet
	twinWaits = "waits" // it is to be sent
)

// twin is a mail of somebody who was merged, or whom another was merged into.
type twin struct {
	Person, Delivery int64
	Planned          int64 // the contact that it was planned for
	Stands           string
	Begun            bool // it was tried, or put off for another reason than its twins: what it takes of allowances is taken
	PlannedAt        time.Time
	Key              *string    // of its journey
	Ended            bool       // the merge ended its journey, since the person is in another of that run and key
	MergedAt         *time.Time // when whom it was planned for became part of the person; nil: it is the person
	Due              *time.Time // not before then; nil: it is in hand
	Expires          time.Time
}

// twinsOf are all mails of a run and step to some persons that were sent, may have been or are to be: $1 persons, $2 run, $3 step, $4 the batch of a lease and $5 up to where that is marked by its
// holder: what is above is in our hands alone; $6 is hung. Mails that were not sent for good, or came back, are none. Batches that are closed have an outcome for each; the open ones of a run are few.
const twinsOf = `WITH who AS MATERIALIZED (
		SELECT c.id, c.id AS person, NULL::timestamptz AS merged_at FROM contact c WHERE c.id = ANY ($1)
		UNION ALL SELECT c.id, c.merged_into, c.changed_at FROM contact c WHERE c.merged_into = ANY ($1)
	), mail AS (
		SELECT w.person, o.id, b.contacts[(o.id & 511)::integer] AS planned, b.planned_at, o.code IS NOT NULL OR o.detail IS DISTINCT FROM $6 AS begun, CASE
			WHEN o.state <> 'deferred' THEN 'had'
			WHEN o.retry_at IS NULL AND EXISTS (SELECT FROM batch r WHERE r.run = $2 AND r.state = 'open' AND r.attempt = o.attempt AND r.contacts @> ARRAY[o.id]
				AND array_position(r.contacts, o.id) <= CASE r.id WHEN $4 THEN $5 ELSE r.mark END) THEN 'away'
			ELSE 'waits' END AS stands, o.retry_at AS due, b.expires_at
		  FROM who w JOIN delivery o ON o.contact = w.id AND o.id >= (SELECT min(id) FROM batch WHERE run = $2) << 9 AND o.state IN ('sent', 'unknown', 'deferred') AND o.bounced_at IS NULL JOIN batch b ON b.id = o.id >> 9
		 WHERE b.run = $2 AND b.step = $3
		UNION ALL
		SELECT w.person, b.id << 9 | x.n, w.id, b.planned_at, false, CASE WHEN x.n <= CASE b.id WHEN $4 THEN $5 ELSE b.mark END THEN 'away' ELSE 'waits' END, b.not_before, b.expires_at
		  FROM batch b CROSS JOIN unnest(b.contacts) WITH ORDINALITY x(id, n) JOIN who w ON w.id = x.id
		 WHERE b.run = $2 AND b.step = $3 AND b.state = 'open' AND b.attempt = 1 AND b.contacts && ARRAY(SELECT id FROM who) AND NOT EXISTS (SELECT FROM delivery d WHERE d.id = b.id << 9 | x.n)
	)
	SELECT m.person, m.id, m.planned, m.stands, m.begun, m.planned_at, j.key, coalesce(j.state = 'left' AND j.outcome = 'merged', false), l.merged_at, m.due, m.expires_at
	  FROM mail m LEFT JOIN who l ON l.id = m.planned LEFT JOIN step s ON s.delivery = m.id LEFT JOIN journey j ON j.id = s.journey ORDER BY m.person, m.id`

// Fates gives the outcomes of mails of the lease to persons of whom some were merged: of the recipients given, whose contacts are the persons, those that do not go, now or ever. The mark above from is
// being set in this transaction. Whoever asks for the same persons waits for its end, so that of two twins in two batches one goes.
func (l *Lease) Fates(ctx context.Context, tx *postgres.Tx, from int, rs []Recipient) ([]Outcome, error) {
	if len(rs) == 0 || l.Lane == Transactional { // each of these was asked for on its own
		return nil, nil
	}
	persons := make([]int64, len(rs))
	mine := make(map[int64]Recipient, len(rs))
	for i, r := range rs {
		persons[i], mine[r.Delivery] = r.Contact, r
	}
	slices.Sort(persons)
	persons = slices.Compact(persons)
	_, err := tx.Exec(ctx, "SELECT pg_advisory_xact_lock(hashtextextended(format('twins %s %s', $1::integer, p), 0)) FROM unnest($2::bigint[]) p", tx.Tenant.Number, persons)
	if err != nil {
		return nil, fmt.Errorf("wait for others who send to the same persons: %w", err)
	}
	all, err := twins(ctx, tx, l.Run, l.Step, l.Batch, from, persons)
	if err != nil {
		return nil, err
	}
	var out []Outcome
	for _, t := range all {
		r, ok := mine[t.Delivery]
		if !ok {
			continue
		}
		switch fate, until := t.fate(all, tx.Now()); fate {
		case Goes:
		case Repeats:
			out = append(out, Refusal(r, Duplicate))
		case Hangs:
			out = append(out, Waits(r, until, hung))
		}
	}
	return out, nil
}

func twins(ctx context.Context, tx *postgres.Tx, run int64, step string, batch int64, from int, persons []int64) ([]twin, error) {
	rows, err := tx.Query(ctx, twinsOf, persons, run, step, batch, from, hung)
	if err != nil {
		return nil, fmt.Errorf("look for mails to those who were merged: %w", err)
	}
	all, err := pgx.CollectRows(rows, pgx.RowToStructByPos[twin])
	if err != nil {
		return nil, fmt.Errorf("look for mails to those who were merged: %w", err)
	}
	return all, nil
}

// fate is what becomes of a mail that is to be sent; until is how long it hangs.
func (t twin) fate(all []twin, now time.Time) (fate Fate, until time.Time) {
	if t.Ended {
		return Repeats, until // by the journey that the person is in, whenever that comes to it
	}
	until = now.Add(askAgain)
	for _, o := range all {
		switch {
		case !t.of(o):
		case o.Stands == twinHad:
			return Repeats, until
		case o.Stands == twinAway:
			fate = Hangs
		case o.Ended || !o.before(t):
		case o.Due == nil || !o.Due.After(now):
			fate = Hangs
		case o.Due.Add(askAgain).Before(t.Expires): // one that would expire by waiting goes first, which the other finds out when it is due
			if fate = Hangs; o.Due.Add(askAgain).After(until) {
				until = o.Due.Add(askAgain)
			}
		}
	}
	return fate, until
}

// mergeTime is longer than a merge takes from when it notes the time to its end: what is planned meanwhile may not know of it.
const mergeTime = time.Minute

// of tells whether two mails are twins.
func (t twin) of(o twin) bool {
	if t.Person != o.Person || t.Planned == o.Planned || (t.Key == nil) != (o.Key == nil) {
		return false
	}
	if t.Key == nil {
		return true
	}
	var merged time.Time
	for _, at := range []*time.Time{t.MergedAt, o.MergedAt} {
		if at != nil && at.After(merged) {
			merged = at.Add(mergeTime)
		}
	}
	return *t.Key == *o.Key && t.PlannedAt.Before(merged) && o.PlannedAt.Before(merged)
}

// before tells which of two that wait goes first: one that was begun, since the other may be refused for what that took; then the person's own.
func (t twin) before(o twin) bool {
	rank := func(t twin) int {
		switch {
		case t.Begun:
			return 0
		case t.MergedAt == nil:
			return 1
		}
		return 2
	}
	return cmp.Or(cmp.Compare(rank(t), rank(o)), cmp.Compare(t.Delivery, o.Delivery)) < 0
}

// LockUnsent keeps the open batches that have mails to some contacts from being marked any further, until the transaction's end: whoever merges contacts does so first, so that each mail of theirs
// either was marked before or is asked about after it.
func LockUnsent(ctx context.Context, tx *postgres.Tx, contacts []int64) error {
	_, err := tx.Exec(ctx, `SELECT FROM batch WHERE id IN (SELECT id FROM batch WHERE state = 'open' AND (attempt = 1 AND contacts && $1
		OR attempt > 1 AND contacts && ARRAY(SELECT id FROM delivery WHERE contact = ANY ($1) AND state = 'deferred' AND retry_at IS NULL))) ORDER BY id FOR NO KEY UPDATE`, contacts)
	if err != nil {
		return fmt.Errorf("lock the batches of contacts: %w", err)
	}
	return nil
}

// Unsent counts the mails that wait for a person, after contacts were merged into it: those that will not be sent, since the person had them or is to get them by others, and those that were planned for
// one of the merged and go to it.
func Unsent(ctx context.Context, tx *postgres.Tx, person int64, merged []int64) (repeats, moved int, err error) {
	rows, err := tx.Query(ctx, `SELECT DISTINCT b.run, b.step, b.lane FROM batch b WHERE b.state = 'open' AND b.attempt = 1 AND b.contacts && ($2::bigint[] || $1::bigint)
		UNION SELECT b.run, b.step, b.lane FROM delivery d JOIN batch b ON b.id = d.id >> 9 WHERE d.contact = $1 AND d.state = 'deferred' ORDER BY 1, 2`, person, merged)
	if err != nil {
		return 0, 0, fmt.Errorf("look for mails that wait: %w", err)
	}
	type group struct {
		Run  int64
		Step string
		Lane int
	}
	groups, err := pgx.CollectRows(rows, pgx.RowToStructByPos[group])
	if err != nil {
		return 0, 0, fmt.Errorf("look for mails that wait: %w", err)
	}
	for _, g := range groups {
		all, err := twins(ctx, tx, g.Run, g.Step, 0, 0, []int64{person})
		if err != nil {
			return 0, 0, err
		}
		for _, t := range all {
			fate, _ := t.fate(all, tx.Now())
			switch {
			case t.Stands != twinWaits:
			case g.Lane != Transactional && fate != Goes: // by what comes first, if that comes to something
				repeats++
			case slices.Contains(merged, t.Planned):
				moved++
			}
		}
	}
	return repeats, moved, nil
}
