package contact

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/onda-run/onda/internal/postgres"
)

const (
	// setsBack is how far back facts about many contacts are read, unless told otherwise.
	setsBack = 90 * 24 * time.Hour
	// setsMost is how many of them are read of a kind: no index says whom they are about, and each is about up to 500.
	setsMost = 10_000
)

// setKinds are the facts that are written about many contacts at once.
func setKinds() []string {
	return []string{"contact.changed", "tag.changed", "score.changed", "stage.changed", "segment.joined", "segment.left"}
}

// Person is who a contact is.
type Person struct {
	ID int64 `json:"contact"`
	// Email is the address that it is mailed at, Typed how it was written.
	Email       string                     `json:"email,omitempty"`
	Typed       string                     `json:"typed,omitempty"`
	ExternalID  string                     `json:"externalId,omitempty"`
	Fields      map[string]json.RawMessage `json:"fields"`
	Tags        []string                   `json:"tags"`
	Scores      map[string]int64           `json:"scores"`
	Stage       string                     `json:"stage,omitempty"`
	PausedUntil *time.Time                 `json:"pausedUntil,omitempty"`
	Frequency   string                     `json:"frequency,omitempty"`
	CreatedAt   time.Time                  `json:"createdAt"`
	// ExpiresAt is when it is deleted, unless it confirms before.
	ExpiresAt     *time.Time     `json:"expiresAt,omitempty"`
	Subscriptions []Subscription `json:"subscriptions"`
	Suppressions  []Stop         `json:"suppressions"`
	Segments      []Membership   `json:"segments"`
	// Merged are the contacts that are part of it.
	Merged []int64 `json:"merged"`
}

// Subscription is where a contact stands with a topic or purpose.
type Subscription struct {
	Purpose string    `json:"purpose"`
	State   State     `json:"state"`
	Since   time.Time `json:"since"`
}

// Stop is a reason for which an address is not mailed; Until is nil when that does not end by itself.
type Stop struct {
	Reason string     `json:"reason"`
	Since  time.Time  `json:"since"`
	Until  *time.Time `json:"until,omitempty"`
}

// Membership is of a segment. Kept is in or out when that is by hand: out says that it is kept out of it.
type Membership struct {
	Segment string    `json:"segment"`
	Since   time.Time `json:"since"`
	Kept    string    `json:"kept,omitempty"`
}

// Happening is something that happened to a contact, or that it did.
type Happening struct {
	At time.Time `json:"at"`
	// Kind is that of a fact where there is one; and contact.created, email.viewed (in a browser), journey.step, journey.ended, form.rejected and form.expired.
	Kind string `json:"kind"`
	// Name is of the email, campaign, form, segment, tag, stage, group of a score, topic, page or event.
	Name string `json:"name,omitempty"`
	// Detail says more: a reason, class, reply, basis, branch or outcome.
	Detail   string `json:"detail,omitempty"`
	Link     string `json:"link,omitempty"`
	Delivery int64  `json:"delivery,omitempty"`
	Journey  int64  `json:"journey,omitempty"`
	// Counted is of opens and clicks: false for a machine's, which count nowhere; nil while that is not judged.
	Counted *bool `json:"counted,omitempty"`
	// Data is JSON: properties of pages and events, the proof of a consent, what a fact says besides.
	Data json.RawMessage `json:"data,omitempty"`
}

// Timeline is who a contact is and what happened, newest first.
type Timeline struct {
	Person
	Happened []Happening `json:"happened"`
	// More: there is more than was asked for.
	More bool `json:"more"`
	// ChangesSince is from when on changes of fields, tags, scores, stages and segments are here; nil: all that there were in the time asked for.
	ChangesSince *time.Time `json:"changesSince,omitempty"`
}

// GetTimeline tells who a contact is, and the newest that happened, at most limit and since a time (zero: ever). It reads rows of the contact by index, and of what is written about many
// contacts at once at most setsMost of a kind, of the last setsBack where since is zero. One that is erased, merged or not there is ErrGone.
func GetTimeline(ctx context.Context, tx *postgres.Tx, id int64, since time.Time, limit int) (*Timeline, error) {
	t := &Timeline{}
	contacts, err := contactsOf(ctx, tx, id)
	if err != nil {
		return nil, err
	}
	if err := t.person(ctx, tx, id, contacts); err != nil {
		return nil, err
	}
	back, floors, err := setFloors(ctx, tx, contacts, since)
	if err != nil {
		return nil, err
	}
	if floor := slices.MaxFunc(floors, time.Time.Compare); floor.After(back) {
		t.ChangesSince = &floor
	}
	rows, err := tx.Query(ctx, timelineSQL, contacts, since, limit+1, setKinds(), floors)
	if err != nil {
		return nil, fmt.Errorf("read what happened to a contact: %w", err)
	}
	t.Happened, err = pgx.CollectRows(rows, func(r pgx.CollectableRow) (h Happening, err error) {
		err = r.Scan(&h.At, &h.Kind, &h.Name, &h.Detail, &h.Link, &h.Delivery, &h.Journey, &h.Counted, &h.Data)
		h.At = h.At.UTC()
		return h, err
	})
	if err != nil {
		return nil, fmt.Errorf("read what happened to a contact: %w", err)
	}
	if t.More = len(t.Happened) > limit; t.More {
		t.Happened = t.Happened[:limit]
	}
	return t, nil
}

// setFloors are from when on facts about many contacts are to be read, by kind of setKinds, and from when on they may be about these contacts.
func setFloors(ctx context.Context, tx *postgres.Tx, contacts []int64, since time.Time) (from time.Time, floors []time.Time, err error) {
	back := since
	if since.IsZero() {
		back = tx.Now().Add(-setsBack)
	}
	err = tx.QueryRow(ctx, setFloorsSQL, setKinds(), contacts, back, setsMost, since).Scan(&from, &floors)
	if err != nil {
		return from, nil, fmt.Errorf("look how much changed of late: %w", err)
	}
	for i := range floors {
		floors[i] = floors[i].UTC()
	}
	return from, floors, nil
}

// setFloorsSQL: no fact is about a contact that was not there yet.
const setFloorsSQL = `WITH c AS (SELECT min(created_at) AS made FROM contact WHERE id = ANY ($2))
	SELECT greatest(c.made, $5::timestamptz), ARRAY(SELECT coalesce((SELECT f.at FROM fact f WHERE f.kind = k.kind AND f.contacts IS NOT NULL AND f.at >= greatest(c.made, $3::timestamptz)
		ORDER BY f.at DESC OFFSET $4 LIMIT 1), greatest(c.made, $3)) FROM unnest($1::text[]) WITH ORDINALITY k(kind, n) ORDER BY k.n) FROM c`

// timelineSQL is what happened to the contacts $1 since $2, the $3 newest: of each kind so many, each by an index that leads to the contact's rows, and then of all. What happened at one
// moment is in the order in which the one leads to the other (rank). Facts of hits, deliveries and submissions are told where these are forgotten. $4 are the kinds of facts about many
// contacts, $5 from when on each is read;
// = ANY looks through them in a fifth of the time that && takes.
const timelineSQL = `SELECT at, kind, name, detail, link, delivery, journey, counted, data FROM (
	(SELECT c.created_at AS at, 1 AS rank, c.id, 0 AS sub, 'contact.created' AS kind, '' AS name, '' AS detail, '' AS link, 0::bigint AS delivery, 0::bigint AS journey, NULL::boolean AS counted, NULL::jsonb AS data
		FROM contact c WHERE c.id = ANY ($1) AND c.created_at >= $2 ORDER BY c.created_at DESC, c.id DESC LIMIT $3)
	UNION ALL
	(SELECT v.at, 2, s.id, v.sub, v.kind, e.name, s.reason, '', coalesce(s.delivery, 0), 0, NULL, NULL FROM submission s JOIN entity e ON e.id = s.form CROSS JOIN LATERAL (VALUES
			(1, s.at, CASE s.state WHEN 'rejected' THEN 'form.rejected' ELSE 'form.submitted' END), (2, s.confirmed_at, 'form.confirmed'), (3, CASE s.state WHEN 'expired' THEN s.expires_at END, 'form.expired')) v(sub, at, kind)
		WHERE s.contact = ANY ($1) AND v.at >= $2 ORDER BY v.at DESC, s.id DESC, v.sub DESC LIMIT $3)
	UNION ALL
	(SELECT c.at, 3, c.id, 0, 'consent.' || c.state, c.purpose, c.basis, '', 0, 0, NULL, nullif(c.proof, '{}') FROM consent c WHERE c.contact = ANY ($1) AND c.at >= $2 ORDER BY c.at DESC, c.id DESC LIMIT $3)
	UNION ALL
	(SELECT f.at, k.rank, f.id, 0, f.kind, f.name, f.detail, coalesce(l.url, ''), f.delivery, 0, f.counted, f.data
		FROM unnest($1::bigint[]) who(contact) CROSS JOIN (VALUES ('suppression.added', 4), ('suppression.removed', 4), ('contact.identified', 5), ('page.viewed', 5), ('event.tracked', 5), ('contact.merged', 13), ('contact.unmerged', 13),
			('form.submitted', 2), ('form.confirmed', 2), ('email.delivered', 10), ('email.bounced', 10), ('email.complained', 10), ('email.opened', 11), ('email.clicked', 11)) k(kind, rank)
		CROSS JOIN LATERAL (SELECT f.at, f.id, f.kind, f.name, CASE f.kind WHEN 'email.bounced' THEN coalesce(f.data->>'class', '') ELSE '' END AS detail, coalesce(f.deliveries[1], 0) AS delivery,
				CASE WHEN f.kind IN ('email.opened', 'email.clicked') THEN (f.data ? 'taken') IS NOT TRUE END AS counted,
				CASE WHEN f.kind NOT LIKE 'email.%' AND f.kind NOT LIKE 'form.%' THEN f.data END AS data, CASE f.kind WHEN 'email.clicked' THEN (f.data->>'link')::integer END AS to
			FROM fact f WHERE f.contact = who.contact AND f.kind = k.kind AND f.at >= $2 AND CASE
				WHEN f.kind IN ('email.opened', 'email.clicked') THEN NOT EXISTS (SELECT FROM hit h WHERE h.id = (f.data->>'hit')::bigint)
				WHEN f.kind LIKE 'email.%' THEN NOT EXISTS (SELECT FROM delivery m WHERE m.id = f.deliveries[1])
				WHEN f.kind LIKE 'form.%' THEN NOT EXISTS (SELECT FROM submission s WHERE s.id = (f.data->>'submission')::bigint)
				ELSE true END
			ORDER BY f.at DESC, f.id DESC LIMIT $3) f LEFT JOIN link l ON l.id = f.to ORDER BY f.at DESC, k.rank DESC, f.id DESC LIMIT $3)
	UNION ALL
	(SELECT f.at, CASE WHEN f.kind LIKE 'segment.%' THEN 6 ELSE 4 END, f.id, 0, f.kind, f.name, '', '', 0, 0, NULL, f.data FROM unnest($4::text[], $5::timestamptz[]) k(kind, floor)
		CROSS JOIN LATERAL (SELECT f.at, f.id, f.kind, f.name, f.data FROM fact f WHERE f.kind = k.kind AND f.contacts IS NOT NULL AND f.at >= k.floor AND EXISTS (SELECT FROM unnest($1::bigint[]) who(contact) WHERE who.contact = ANY (f.contacts))
			ORDER BY f.at DESC, f.id DESC LIMIT $3) f ORDER BY f.at DESC, 2 DESC, f.id DESC LIMIT $3)
	UNION ALL
	(SELECT v.at, v.rank, j.id, 0, v.kind, e.name, v.detail, '', 0, j.id, NULL, NULL FROM journey j JOIN document d ON d.id = j.document JOIN entity e ON e.id = d.entity CROSS JOIN LATERAL (VALUES
			(7, j.entered_at, 'journey.entered', j.cause), (12, j.ended_at, 'journey.ended', concat_ws(', ', j.state, nullif(j.outcome, '')))) v(rank, at, kind, detail)
		WHERE j.contact = ANY ($1) AND v.at >= $2 ORDER BY v.at DESC, v.rank DESC, j.id DESC LIMIT $3)
	UNION ALL
	(SELECT s.at, 8, s.journey, s.visit, 'journey.step', e.name, concat_ws(' -> ', s.step, nullif(s.branch, '')), '', coalesce(s.delivery, 0), s.journey, NULL, NULL
		FROM journey j JOIN step s ON s.journey = j.id JOIN document d ON d.id = j.document JOIN entity e ON e.id = d.entity
		WHERE j.contact = ANY ($1) AND s.at >= $2 ORDER BY s.at DESC, s.journey DESC, s.visit DESC LIMIT $3)
	UNION ALL
	(SELECT v.at, v.rank, v.id, v.sub, v.kind, coalesce(e.name, ''), v.detail, '', v.id, 0, NULL, NULL FROM (
			SELECT m.id, v.at, v.rank, v.sub, v.kind, v.detail FROM delivery m CROSS JOIN LATERAL (VALUES
				(9, 1, m.at, 'email.' || m.state, concat_ws(', ', m.reason, m.class, m.code, m.status, m.detail)), (10, 1, m.delivered_at, 'email.delivered', ''),
				(10, 2, m.bounced_at, 'email.bounced', coalesce(m.bounce_class, '')), (10, 3, m.complained_at, 'email.complained', '')) v(rank, sub, at, kind, detail)
			WHERE m.contact = ANY ($1) AND v.at >= $2 ORDER BY v.at DESC, v.rank DESC, m.id DESC, v.sub DESC LIMIT $3) v
		LEFT JOIN batch b ON b.id = v.id >> 9 LEFT JOIN document d ON d.id = b.email LEFT JOIN entity e ON e.id = d.entity)
	UNION ALL
	(SELECT h.at, 11, h.id, 0, h.kind, coalesce(e.name, ''), h.reason, coalesce(l.url, ''), h.delivery, 0, h.verdict = 'human', NULL FROM (
			SELECT h.at, h.id, CASE h.kind WHEN 'open' THEN 'email.opened' WHEN 'click' THEN 'email.clicked' ELSE 'email.viewed' END AS kind, CASE h.verdict WHEN 'machine' THEN h.reason ELSE '' END AS reason, h.link, h.delivery, h.verdict
			FROM delivery m JOIN hit h ON h.delivery = m.id AND h.delivery > 0
			WHERE m.contact = ANY ($1) AND h.contact = ANY ($1) AND h.at >= $2 ORDER BY h.at DESC, h.id DESC LIMIT $3) h
		LEFT JOIN link l ON l.id = h.link LEFT JOIN batch b ON b.id = h.delivery >> 9 LEFT JOIN document d ON d.id = b.email LEFT JOIN entity e ON e.id = d.entity)
) x ORDER BY at DESC, rank DESC, id DESC, sub DESC LIMIT $3`

// person reads who a contact is.
func (t *Timeline) person(ctx context.Context, tx *postgres.Tx, id int64, contacts []int64) error {
	p := &t.Person
	p.ID = id
	p.Merged = slices.DeleteFunc(slices.Clone(contacts), func(c int64) bool { return c == id })
	err := tx.QueryRow(ctx, `SELECT coalesce(c.email, ''), coalesce(c.typed, ''), coalesce(c.external_id, ''), c.fields, c.tags, c.scores, coalesce(c.stage, ''), CASE WHEN c.paused_until > onda.now() THEN nullif(c.paused_until, 'infinity') END,
			coalesce(c.frequency, ''), c.created_at, c.expires_at FROM contact c WHERE c.id = $1 AND c.erased_at IS NULL AND c.merged_into IS NULL`, id).
		Scan(&p.Email, &p.Typed, &p.ExternalID, &p.Fields, &p.Tags, &p.Scores, &p.Stage, &p.PausedUntil, &p.Frequency, &p.CreatedAt, &p.ExpiresAt)
	if errors.Is(err, pgx.ErrNoRows) {
		return ErrGone
	}
	if err != nil {
		return fmt.Errorf("read a contact: %w", err)
	}
	var hash []byte
	if p.Email != "" {
		keys, err := tx.Keys(ctx)
		if err != nil {
			return err
		}
		hash = keys.HashAddress(p.Email)
	}
	b := &pgx.Batch{}
	b.Queue("SELECT purpose, state, at FROM subscription WHERE contact = $1 ORDER BY purpose", id).Query(func(rows pgx.Rows) (err error) {
		p.Subscriptions, err = pgx.CollectRows(rows, pgx.RowToStructByPos[Subscription])
		return err
	})
	b.Queue("SELECT reason, at, nullif(until, 'infinity') FROM suppression WHERE hash = $1 AND channel = 'email' AND until > onda.now() ORDER BY reason", hash).Query(func(rows pgx.Rows) (err error) {
		p.Suppressions, err = pgx.CollectRows(rows, pgx.RowToStructByPos[Stop])
		return err
	})
	b.Queue("SELECT e.name, m.since, m.kept FROM member m JOIN entity e ON e.id = m.segment AND e.current IS NOT NULL WHERE m.contact = $1 ORDER BY e.name", id).Query(func(rows pgx.Rows) (err error) {
		p.Segments, err = pgx.CollectRows(rows, pgx.RowToStructByPos[Membership])
		return err
	})
	if err := tx.SendBatch(ctx, b).Close(); err != nil {
		return fmt.Errorf("read where a contact stands: %w", err)
	}
	p.utc()
	return nil
}

// utc has all times be told in UTC, wherever that is done.
func (p *Person) utc() {
	p.CreatedAt = p.CreatedAt.UTC()
	for _, at := range []*time.Time{p.PausedUntil, p.ExpiresAt} {
		if at != nil {
			*at = at.UTC()
		}
	}
	for i := range p.Subscriptions {
		p.Subscriptions[i].Since = p.Subscriptions[i].Since.UTC()
	}
	for i := range p.Suppressions {
		s := &p.Suppressions[i]
		s.Since = s.Since.UTC()
		if s.Until != nil {
			*s.Until = s.Until.UTC()
		}
	}
	for i := range p.Segments {
		p.Segments[i].Since = p.Segments[i].Since.UTC()
	}
}
