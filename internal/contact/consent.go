package contact

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/onda-run/onda/internal/event"
	"github.com/onda-run/onda/internal/postgres"
)

// State is a state of consent.
type State string

// The states of the ledger and of the projection. A contact without a row has never been asked.
const (
	Pending   State = "pending"
	Granted   State = "granted"
	Withdrawn State = "withdrawn"
)

// Purposes that are not topics.
const (
	TrackingEmail = "tracking.email"
	TrackingWeb   = "tracking.web"
)

// BasisImport is the basis of consent that was given, or withdrawn, somewhere else. It counts as older than all else: it never undoes a withdrawal, nor a grant that was made here; of imports the
// withdrawal holds.
const BasisImport = "import"

// Consent is an entry of the ledger to be.
type Consent struct {
	Contact int64
	// Purpose is a topic's name, TrackingEmail or TrackingWeb.
	Purpose string
	State   State
	// Basis is how it came about: form, import, unsubscribe, preferences, complaint, api ...
	Basis string
	// Proof is kept as JSON: the form's version, the hash of the text that was shown, the submission; nil for none.
	Proof map[string]any
	// Origin is the hash of the address of origin, blanked after OriginUntil; nil for none.
	Origin      []byte
	OriginUntil time.Time
	// At is when it happened, on the tenant's clock; zero for now.
	At time.Time
}

// Recorded is what became of a Consent.
type Recorded struct {
	// ID is of the ledger's entry, 0 when nothing new was to be told.
	ID int64
	// State is the contact's state for the purpose now; empty: never asked.
	State State
	// Changed: the state is another than before this call.
	Changed bool
	// Refused says why a grant (or a request for one) has no effect: "complaint" (suppressed by a complaint, which ends all marketing until Unsuppress),
	// "withdrawn" (an import does not undo a withdrawal); or a withdrawal: "newer" (an import does not undo what was said here). Empty otherwise.
	Refused string
}

// ChangedIDs are the ledger's entries of those that changed a state.
func ChangedIDs(recorded []Recorded) (ids []int64) {
	for _, r := range recorded {
		if r.Changed {
			ids = append(ids, r.ID)
		}
	}
	return ids
}

// Record writes entries into the ledger, brings the projection up to date, and writes the facts consent.* and rings their doorbells for states that changed.
// Any number of entries is a few statements. The result has one element for each entry, in order.
//
// The projection of a contact and purpose is the last entry by time; an import counts as older than all others, and a request (pending) does not take away what
// is granted, nor a refusal of tracking: anybody can make one with somebody's address. So late and repeated entries are harmless. An entry that is there already is not written again: the same state, basis and proof at the same time or,
// when At is zero or the basis is an import, at any time if it would change nothing. Nor is one of a contact that is erased. While the address is suppressed by a complaint no topic is granted: the ledger then says
// that the complaint withdrew it. Where in a file an import's entry was ("file" and "row" of its proof) does not make it another.
func Record(ctx context.Context, tx *postgres.Tx, drainer string, entries ...Consent) ([]Recorded, error) {
	w := &writer{drainer: drainer}
	out, err := record(ctx, tx, w, entries)
	if err != nil {
		return nil, err
	}
	return out, w.flush(ctx, tx)
}

// pair is a contact and a purpose.
type pair struct {
	contact int64
	purpose string
}

func (p pair) compare(q pair) int {
	return cmp.Or(cmp.Compare(p.contact, q.contact), strings.Compare(p.purpose, q.purpose))
}

func record(ctx context.Context, tx *postgres.Tx, w *writer, entries []Consent) ([]Recorded, error) {
	out := make([]Recorded, len(entries))
	if len(entries) == 0 {
		return out, nil
	}
	pairs, err := pairsOf(entries)
	if err != nil {
		return nil, err
	}
	b := &pgx.Batch{} // each of whose statements sees what was committed before the lock was given
	contacts, _ := columns(pairs)
	b.Queue(lockContacts, contacts)
	before := queueStanding(b, pairs)
	ids, err := queueLedger(b, entries)
	if err != nil {
		return nil, err
	}
	if err := tx.SendBatch(ctx, b).Close(); err != nil {
		return nil, fmt.Errorf("write the consent ledger: %w", err)
	}
	after, err := project(ctx, tx, w, pairs, before)
	if err != nil {
		return nil, err
	}
	for i, e := range entries {
		p := pair{e.Contact, e.Purpose}
		out[i] = Recorded{ID: ids[i], State: after[p], Changed: after[p] != before[p].state}
		if e.State != Withdrawn && after[p] == Withdrawn {
			switch {
			case before[p].complaint: // a complaint locks the contact, too
				out[i].Refused = "complaint"
			case e.Basis == BasisImport:
				out[i].Refused = "withdrawn"
			}
		}
		if e.State == Withdrawn && e.Basis == BasisImport && after[p] != Withdrawn && after[p] != "" {
			out[i].Refused = "newer"
		}
	}
	return out, nil
}

// lockContacts lets one transaction at a time write about a contact's consent; in order of id, so that two never wait for each other.
const lockContacts = "SELECT FROM contact WHERE id = ANY ($1) ORDER BY id FOR UPDATE"

func pairsOf(entries []Consent) ([]pair, error) {
	pairs := make([]pair, 0, len(entries))
	for _, e := range entries {
		switch {
		case e.Contact == 0:
			return nil, fmt.Errorf("record consent for %s: it names no contact", e.Purpose)
		case e.Purpose == "" || e.Basis == "":
			return nil, fmt.Errorf("record consent of contact %d: purpose and basis must not be empty", e.Contact)
		case e.State != Pending && e.State != Granted && e.State != Withdrawn:
			return nil, fmt.Errorf("record consent of contact %d for %s: %q is not a state", e.Contact, e.Purpose, e.State)
		}
		pairs = append(pairs, pair{e.Contact, e.Purpose})
	}
	slices.SortFunc(pairs, pair.compare)
	return slices.Compact(pairs), nil
}

func columns(pairs []pair) (contacts []int64, purposes []string) {
	contacts, purposes = make([]int64, len(pairs)), make([]string, len(pairs))
	for i, p := range pairs {
		contacts[i], purposes[i] = p.contact, p.purpose
	}
	return contacts, purposes
}

// stand is how a contact stands to a purpose.
type stand struct {
	state     State
	complaint bool // its address is suppressed by a complaint, and this is a topic
}

// inComplaint is SQL: is the contact's address suppressed by a complaint, and is the purpose a topic?
func inComplaint(contact, purpose string) string {
	return `(` + purpose + ` NOT LIKE 'tracking.%' AND EXISTS (SELECT FROM suppression s WHERE s.contact = ` + contact + `
		AND s.channel = 'email' AND s.reason = 'complaint' AND s.until > onda.now()))`
}

// queueStanding queues the reading of how contacts stand, which is there when the batch is over.
func queueStanding(b *pgx.Batch, pairs []pair) map[pair]stand {
	contacts, purposes := columns(pairs)
	out := make(map[pair]stand, len(pairs))
	b.Queue(`SELECT u.contact, u.purpose, coalesce(p.state, ''), `+inComplaint("u.contact", "u.purpose")+`
		FROM unnest($1::bigint[], $2::text[]) u(contact, purpose) LEFT JOIN subscription p USING (contact, purpose)`, contacts, purposes).Query(func(rows pgx.Rows) error {
		var p pair
		var s stand
		_, err := pgx.ForEachRow(rows, []any{&p.contact, &p.purpose, &s.state, &s.complaint}, func() error {
			out[p] = s
			return nil
		})
		return err
	})
	return out
}

// queueLedger queues the adding of the entries that are new. When the batch is over, their ids are there, 0 for those that are not.
func queueLedger(b *pgx.Batch, entries []Consent) (ids []int64, err error) {
	n := len(entries)
	contact, purpose, state, basis := make([]int64, n), make([]string, n), make([]string, n), make([]string, n)
	proof, origin, until, at := make([]string, n), make([][]byte, n), make([]*time.Time, n), make([]*time.Time, n)
	for i, e := range entries {
		text, err := json.Marshal(e.Proof)
		if err != nil {
			return nil, fmt.Errorf("encode the proof of a consent: %w", err)
		}
		if e.Proof == nil {
			text = []byte("{}")
		}
		contact[i], purpose[i], state[i], basis[i], proof[i], origin[i] = e.Contact, e.Purpose, string(e.State), e.Basis, string(text), e.Origin
		if !e.OriginUntil.IsZero() {
			until[i] = &e.OriginUntil
		}
		if !e.At.IsZero() {
			at[i] = &e.At
		}
	}
	// Repeats within the call are found by their number, those of before by NOT EXISTS. An import is refused, not written, where it would have no effect.
	ids = make([]int64, n)
	b.Queue(`WITH u AS (
		SELECT n, contact, purpose, state, basis, proof::jsonb, origin, origin_until, at,
		       row_number() OVER (PARTITION BY contact, purpose, state, basis, proof::jsonb, CASE WHEN basis = 'import' THEN NULL ELSE at END ORDER BY n) AS nth,
		       CASE WHEN basis = 'import' THEN proof::jsonb - '{file,row}'::text[] ELSE proof::jsonb END AS told
		  FROM unnest($1::bigint[], $2::text[], $3::text[], $4::text[], $5::text[], $6::bytea[], $7::timestamptz[], $8::timestamptz[])
		       WITH ORDINALITY u(contact, purpose, state, basis, proof, origin, origin_until, at, n)
	), fresh AS (
		SELECT u.* FROM u LEFT JOIN subscription p USING (contact, purpose)
		 WHERE nth = 1
		   AND NOT EXISTS (SELECT FROM contact e WHERE e.id = u.contact AND e.erased_at IS NOT NULL)
		   AND NOT EXISTS (SELECT FROM consent o WHERE o.contact = u.contact AND o.purpose = u.purpose AND o.state = u.state AND o.basis = u.basis AND (o.proof = u.proof OR u.basis = 'import' AND o.proof - '{file,row}'::text[] = u.told)
		                      AND (o.at = u.at OR u.basis = 'import' OR u.at IS NULL AND p.state = u.state))
		   AND NOT (u.basis = 'import' AND u.state <> 'withdrawn' AND (coalesce(p.state, '') = 'withdrawn' OR `+inComplaint("u.contact", "u.purpose")+`))
		   AND NOT (u.basis = 'import' AND u.state = 'withdrawn' AND (coalesce(p.state, '') = 'withdrawn' OR coalesce(p.state, '') = 'granted' AND NOT `+imported+`))
	), made AS (
		SELECT n, nextval(seq) AS id, contact, purpose, state, basis, proof, origin, origin_until, at
		  FROM fresh, (SELECT pg_get_serial_sequence('consent', 'id')::regclass AS seq OFFSET 0) s ORDER BY n
	), written AS (
		INSERT INTO consent (id, contact, purpose, state, basis, proof, origin, origin_until, at) OVERRIDING SYSTEM VALUE
		SELECT id, contact, purpose, state, basis, proof, origin, origin_until, coalesce(at, onda.now()) FROM made
	) SELECT n - 1, id FROM made`, contact, purpose, state, basis, proof, origin, until, at).Query(func(rows pgx.Rows) error {
		var i int
		var id int64
		_, err := pgx.ForEachRow(rows, []any{&i, &id}, func() error { ids[i] = id; return nil })
		return err
	})
	return ids, nil
}

// imported is SQL: does the subscription p stand by what was imported? It is no EXISTS, for which Postgres might read all of the ledger.
const imported = `coalesce((SELECT i.basis FROM consent i WHERE i.id = p.consent) = 'import', false)`

// fold is SQL: what the ledger says of each of the pairs $1, $2. An import is at -infinity. decisive is the last entry that is not pending.
const fold = `u AS (SELECT * FROM unnest($1::bigint[], $2::text[]) u(contact, purpose)
	), entry AS (
		SELECT u.contact, u.purpose, c.id, c.state, c.at AS happened, CASE WHEN c.basis = 'import' THEN '-infinity' ELSE c.at END AS at
		  FROM u JOIN consent c USING (contact, purpose)
	), decisive AS (
		SELECT DISTINCT ON (contact, purpose) * FROM entry WHERE state <> 'pending' ORDER BY contact, purpose, at DESC, state DESC, happened DESC, id DESC
	), asked AS (
		SELECT DISTINCT ON (contact, purpose) * FROM entry WHERE state = 'pending' ORDER BY contact, purpose, at DESC, id DESC
	), verdict AS (
		SELECT u.contact, u.purpose,
		       CASE WHEN d.state IS NULL OR d.state = 'withdrawn' AND a.at > d.at AND u.purpose NOT LIKE 'tracking.%' THEN a.state ELSE d.state END AS state,
		       CASE WHEN d.state IS NULL OR d.state = 'withdrawn' AND a.at > d.at AND u.purpose NOT LIKE 'tracking.%' THEN a.id ELSE d.id END AS consent,
		       CASE WHEN d.state IS NULL OR d.state = 'withdrawn' AND a.at > d.at AND u.purpose NOT LIKE 'tracking.%' THEN a.happened ELSE d.happened END AS happened,
		       greatest(d.at, a.at) AS latest
		  FROM u LEFT JOIN decisive d USING (contact, purpose) LEFT JOIN asked a USING (contact, purpose))`

// project makes the projection of the pairs what the ledger and complaints say, and notes the facts of what changed. before is how they stood; after is their states now.
func project(ctx context.Context, tx *postgres.Tx, w *writer, pairs []pair, before map[pair]stand) (after map[pair]State, err error) {
	contacts, purposes := columns(pairs)
	b := &pgx.Batch{}
	after = make(map[pair]State, len(pairs))
	complaint := false
	for p, s := range before {
		after[p] = s.state
		complaint = complaint || s.complaint
	}
	if complaint { // what it ends is said in the ledger, too
		b.Queue(`WITH `+fold+`
			INSERT INTO consent (contact, purpose, state, basis, proof, at)
			SELECT v.contact, v.purpose, 'withdrawn', 'complaint', CASE WHEN s.delivery IS NULL THEN '{}' ELSE jsonb_build_object('delivery', s.delivery) END, greatest(s.at, v.latest)
			  FROM verdict v JOIN suppression s ON s.contact = v.contact AND s.channel = 'email' AND s.reason = 'complaint' AND s.until > onda.now()
			 WHERE v.purpose NOT LIKE 'tracking.%' AND v.state IS DISTINCT FROM 'withdrawn' ORDER BY v.contact, v.purpose`, contacts, purposes)
	}
	type change struct {
		pair
		state   State
		consent int64
		at      time.Time
	}
	var changes []change
	b.Queue(`WITH `+fold+`
		INSERT INTO subscription AS p (contact, purpose, state, consent, at)
		SELECT contact, purpose, state, consent, happened FROM verdict WHERE state IS NOT NULL ORDER BY contact, purpose
		ON CONFLICT (contact, purpose) DO UPDATE SET state = excluded.state, consent = excluded.consent, at = excluded.at
		 WHERE (p.state, p.consent) IS DISTINCT FROM (excluded.state, excluded.consent)
		RETURNING p.contact, p.purpose, p.state, p.consent, p.at`, contacts, purposes).Query(func(rows pgx.Rows) error {
		var c change
		_, err := pgx.ForEachRow(rows, []any{&c.contact, &c.purpose, &c.state, &c.consent, &c.at}, func() error {
			if after[c.pair] != c.state {
				after[c.pair] = c.state
				changes = append(changes, c)
			}
			return nil
		})
		return err
	})
	if err := tx.SendBatch(ctx, b).Close(); err != nil {
		return nil, fmt.Errorf("bring subscriptions up to date: %w", err)
	}
	items := map[State][]event.Consent{}
	slices.SortFunc(changes, func(a, b change) int { return a.compare(b.pair) })
	for _, c := range changes {
		items[c.state] = append(items[c.state], event.Consent{Contact: c.contact, Purpose: c.purpose})
		if err := w.add("consent."+string(c.state), c.purpose, c.contact, map[string]any{"consent": c.consent}, c.at); err != nil {
			return nil, err
		}
	}
	ringItems(w, items[Pending], func(c []event.Consent) event.Data { return event.ConsentPending{Consents: event.Consents{Items: c}} })
	ringItems(w, items[Granted], func(c []event.Consent) event.Data { return event.ConsentGranted{Consents: event.Consents{Items: c}} })
	ringItems(w, items[Withdrawn], func(c []event.Consent) event.Data { return event.ConsentWithdrawn{Consents: event.Consents{Items: c}} })
	return after, nil
}
