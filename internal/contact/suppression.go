package contact

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/onda-run/onda/internal/event"
	"github.com/onda-run/onda/internal/postgres"
)

// Reason is why an address gets no mail.
type Reason string

// The reasons. Complaint ends marketing, the others all mail. A block, which is our fault, is none of them.
const (
	Bounce    Reason = "bounce"
	Complaint Reason = "complaint"
	Manual    Reason = "manual"
	Erasure   Reason = "erasure"
)

// Suppression is an address that gets no mail.
type Suppression struct {
	// Contact or Address says whose: the contact's present address, or an address in any form, which need be no contact's.
	Contact int64
	Address string
	Reason  Reason
	// Delivery is the mail that brought it about, 0 for none.
	Delivery int64
	// Until is when it ends; zero for never.
	Until time.Time
	// At is when it happened; zero for now.
	At time.Time
}

// Suppress stops mail to addresses, which are kept as hashes only. A complaint also withdraws the contact's consent to all topics. To do it again changes nothing, but
// may make it last longer. Facts suppression.added are for what is new; added is how many that were. A contact without an address is passed over; an address that is none
// is an error that matches ErrAddress.
func Suppress(ctx context.Context, tx *postgres.Tx, drainer string, list ...Suppression) (added int, err error) {
	if len(list) == 0 {
		return 0, nil
	}
	w := &writer{drainer: drainer}
	who, err := hashes(ctx, tx, list)
	if err != nil {
		return 0, err
	}
	var hash [][]byte
	var contact, delivery []*int64
	var reason []string
	var until, at []*time.Time
	for i, s := range list {
		if who[i].hash == nil {
			continue
		}
		hash, contact, reason = append(hash, who[i].hash), append(contact, idOrNull(who[i].contact)), append(reason, string(s.Reason))
		delivery, until, at = append(delivery, idOrNull(s.Delivery)), append(until, timeOrNull(s.Until)), append(at, timeOrNull(s.At))
	}
	rows, err := tx.Query(ctx, `WITH u AS (
		SELECT hash, reason, max(contact) AS contact, min(delivery) AS delivery, max(coalesce(until, 'infinity')) AS until, min(coalesce(at, onda.now())) AS at
		  FROM unnest($1::bytea[], $2::text[], $3::bigint[], $4::bigint[], $5::timestamptz[], $6::timestamptz[]) u(hash, reason, contact, delivery, until, at) GROUP BY hash, reason
	), was AS (
		SELECT s.hash, s.reason FROM u JOIN suppression s USING (hash, reason) WHERE s.channel = 'email' AND s.until > onda.now()
	), written AS (
		INSERT INTO suppression AS s (hash, reason, contact, delivery, until, at) SELECT hash, reason, contact, delivery, until, at FROM u ORDER BY hash, reason
		ON CONFLICT (hash, channel, reason) DO UPDATE SET until = greatest(s.until, excluded.until), contact = coalesce(excluded.contact, s.contact), at = least(s.at, excluded.at)
		 WHERE (s.until, s.contact, s.at) IS DISTINCT FROM (greatest(s.until, excluded.until), coalesce(excluded.contact, s.contact), least(s.at, excluded.at))
		RETURNING s.hash, s.reason, coalesce(s.contact, 0) AS contact, s.at
	) SELECT contact, reason, at FROM written WHERE (hash, reason) NOT IN (SELECT hash, reason FROM was) ORDER BY contact, reason`,
		hash, reason, contact, delivery, until, at)
	if err != nil {
		return 0, fmt.Errorf("suppress addresses: %w", err)
	}
	var items []event.Suppression
	var id int64
	var why string
	var when time.Time
	_, err = pgx.ForEachRow(rows, []any{&id, &why, &when}, func() error {
		items = append(items, event.Suppression{Contact: id, Reason: why})
		return w.add("suppression.added", why, id, nil, when)
	})
	if err != nil {
		return 0, fmt.Errorf("suppress addresses: %w", err)
	}
	ringItems(w, items, func(s []event.Suppression) event.Data {
		return event.SuppressionAdded{Suppressions: event.Suppressions{Items: s}}
	})
	if err := withdrawAll(ctx, tx, w, list, who); err != nil {
		return 0, err
	}
	return len(items), w.flush(ctx, tx)
}

// withdrawAll ends all marketing of those who complained: every topic that they have a state for.
func withdrawAll(ctx context.Context, tx *postgres.Tx, w *writer, list []Suppression, who []owner) error {
	var complained []int64
	for i, s := range list {
		if s.Reason == Complaint && who[i].contact != 0 {
			complained = append(complained, who[i].contact)
		}
	}
	if len(complained) == 0 {
		return nil
	}
	rows, err := tx.Query(ctx, `SELECT contact, purpose, state FROM subscription WHERE contact = ANY ($1) AND purpose NOT LIKE 'tracking.%' ORDER BY contact, purpose`, complained)
	if err != nil {
		return fmt.Errorf("read consent: %w", err)
	}
	var pairs []pair
	before := map[pair]stand{}
	var p pair
	s := stand{complaint: true}
	_, err = pgx.ForEachRow(rows, []any{&p.contact, &p.purpose, &s.state}, func() error {
		pairs = append(pairs, p)
		before[p] = s
		return nil
	})
	if err != nil {
		return fmt.Errorf("read consent: %w", err)
	}
	if len(pairs) == 0 {
		return nil
	}
	_, err = project(ctx, tx, w, pairs, before)
	return err
}

// Unsuppress lets addresses get mail again: of each, the one Reason named. What a complaint withdrew stays withdrawn until it is granted anew. Facts suppression.removed are
// for what was there; removed is how many that were.
func Unsuppress(ctx context.Context, tx *postgres.Tx, drainer string, list ...Suppression) (removed int, err error) {
	if len(list) == 0 {
		return 0, nil
	}
	who, err := hashes(ctx, tx, list)
	if err != nil {
		return 0, err
	}
	var hash [][]byte
	var reason []string
	for i, s := range list {
		if who[i].hash != nil {
			hash, reason = append(hash, who[i].hash), append(reason, string(s.Reason))
		}
	}
	rows, err := tx.Query(ctx, `DELETE FROM suppression s USING unnest($1::bytea[], $2::text[]) u(hash, reason)
		WHERE s.hash = u.hash AND s.reason = u.reason AND s.channel = 'email' RETURNING coalesce(s.contact, 0), s.reason`, hash, reason)
	if err != nil {
		return 0, fmt.Errorf("remove suppressions: %w", err)
	}
	w := &writer{drainer: drainer}
	var items []event.Suppression
	var id int64
	var why string
	_, err = pgx.ForEachRow(rows, []any{&id, &why}, func() error {
		items = append(items, event.Suppression{Contact: id, Reason: why})
		return w.add("suppression.removed", why, id, nil, time.Time{})
	})
	if err != nil {
		return 0, fmt.Errorf("remove suppressions: %w", err)
	}
	ringItems(w, items, func(s []event.Suppression) event.Data {
		return event.SuppressionRemoved{Suppressions: event.Suppressions{Items: s}}
	})
	return len(items), w.flush(ctx, tx)
}

// owner is an address's hash, and the contact that has it (0: none).
type owner struct {
	hash    []byte
	contact int64
}

// hashes finds out the addresses that are meant, and locks their contacts. A hash is nil for a contact that has no address.
func hashes(ctx context.Context, tx *postgres.Tx, list []Suppression) ([]owner, error) {
	keys, err := tx.Keys(ctx)
	if err != nil {
		return nil, err
	}
	ids, addresses, bounced := make([]*int64, len(list)), make([]*string, len(list)), make([]int64, len(list))
	for i, s := range list {
		if s.Reason == Bounce {
			bounced[i] = s.Delivery
		}
		switch {
		case !slices.Contains([]Reason{Bounce, Complaint, Manual, Erasure}, s.Reason):
			return nil, fmt.Errorf("suppress: %q is not a reason", s.Reason)
		case s.Contact != 0:
			ids[i] = &list[i].Contact
		default:
			a, err := Normalise(s.Address)
			if err != nil {
				return nil, err
			}
			addresses[i] = &a
		}
	}
	find := func() ([]owner, bool, error) {
		// What bounced is the address of whom the mail was planned for, also when that one is part of another by now; but of one that was sent since, the other's.
		// Of one that was unknown until now, which is sent by that, the batch tells.
		rows, err := tx.Query(ctx, `SELECT u.n - 1, CASE WHEN l.email IS NULL THEN c.id ELSE l.id END, coalesce(l.email, c.email) FROM unnest($1::bigint[], $2::text[], $3::bigint[]) WITH ORDINALITY u(id, email, mail, n)
			LEFT JOIN contact m ON m.id = u.id JOIN contact c ON c.id = coalesce(m.merged_into, m.id) OR c.email = u.email
			LEFT JOIN batch b ON u.mail > 0 AND b.id = u.mail >> 9 AND b.attempt = 1 LEFT JOIN contact l ON l.id = b.contacts[(u.mail & $4)::integer] AND l.merged_into = c.id
				AND NOT EXISTS (SELECT FROM delivery d WHERE d.id = u.mail AND d.at > l.changed_at + interval '1 minute' AND (d.attempt > 1 OR b.closed_at IS NULL OR b.closed_at > l.changed_at))`,
			ids, addresses, bounced, int64(postgres.BatchWidth-1))
		if err != nil {
			return nil, false, fmt.Errorf("look for contacts: %w", err)
		}
		out := make([]owner, len(list))
		var i int
		var id int64
		var email *string
		_, err = pgx.ForEachRow(rows, []any{&i, &id, &email}, func() error {
			if email != nil {
				out[i] = owner{keys.HashAddress(*email), id}
			}
			return nil
		})
		if err != nil {
			return nil, false, fmt.Errorf("look for contacts: %w", err)
		}
		strangers := false
		for i := range out {
			if out[i].hash == nil && addresses[i] != nil {
				out[i].hash = keys.HashAddress(*addresses[i])
				strangers = true
			}
		}
		return out, strangers, nil
	}
	out, strangers, err := find()
	if err != nil {
		return nil, err
	}
	if strangers {
		// Someone may be making a contact of it at this moment: whoever holds the lock first is seen by the other.
		if _, err := tx.Exec(ctx, "SELECT pg_advisory_xact_lock($1, $2)", makeLock, tx.Tenant.Number); err != nil {
			return nil, fmt.Errorf("lock contacts: %w", err)
		}
		if out, _, err = find(); err != nil {
			return nil, err
		}
	}
	var contacts []int64
	for _, o := range out {
		if o.contact != 0 {
			contacts = append(contacts, o.contact)
		}
	}
	if _, err := tx.Exec(ctx, lockContacts, contacts); err != nil {
		return nil, fmt.Errorf("lock contacts: %w", err)
	}
	return out, nil
}

func idOrNull(id int64) *int64 {
	if id == 0 {
		return nil
	}
	return &id
}

func timeOrNull(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}
