package contact

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/onda-run/onda/internal/postgres"
)

// ErrGone says that a contact is erased, merged into another, or was never there.
var ErrGone = errors.New("there is no such contact")

// Mask bounds what Stored tells to somebody who may not be the contact: of fields the values of those that are named, the address in part, and of what the contact wrote, or where
// it was, nothing.
type Mask struct {
	Address string   // in the place of the address
	Fields  []string // whose values are told
}

// hidden is in the place of a value that is not told.
const hidden = "…"

// FilesSchema is the tenant migration from which on submissions of forms have files.
const FilesSchema = 15

// listing is one kind of what is stored of a person: a query of rows as JSON, and what erasure does with them. The person's contacts, which are the one that it is and those that were
// merged into it, are $1, a bigint[].
type listing struct {
	name    string
	rows    string
	tables  []string // whose rows it lists
	private []string // members that Mask leaves out; wholly for all of them
	// searched: no index leads to the rows, a whole table is read for them. So they are told to the tenant alone, who asks for them by a command, and not to whoever has a link.
	searched bool

	// found is a SELECT, in parentheses, of one row or id for each row that erasure has something to do with, and of no row that it is through with. Empty: nothing in these rows names
	// anybody but by the contact's number, which is nobody's any more.
	found string
	// erase does it: a statement that does so to atMost. One without atMost does all at once, in the transaction that makes the contact nobody; eraseBrowsed goes through all facts.
	erase string
	// stays says what of the rows stays, for the receipt; empty: they are deleted.
	stays string
}

// wholly has Mask leave out rows as a whole.
const wholly = "*"

// atMost is in the place of the ids that are found, at most $2 of them. They are an array, so that each leads to the partition that it is in.
const atMost = "ANY (ARRAY(SELECT * FROM %s found LIMIT $2))"

// eraseBrowsed is a statement over a part of all facts, those with ids from $2 up to $3.
const eraseBrowsed = "DELETE FROM fact f WHERE f.id > $2 AND f.id <= $3 AND " + ofVisitors

// named is the condition that a text, which may be in JSON, has an address of the person in it.
func named(text string) string { return text + " ~* " + addresses }

// addresses is SQL for a regular expression of a person's addresses in a text, also as they were typed, where they are no part of longer ones; NULL where it has none.
const addresses = `(SELECT string_agg('(?<![[:alnum:]._+-])' || regexp_replace(a.address, '([^[:alnum:]@])', '\\\1', 'g') || '(?![[:alnum:]-]|\.[[:alnum:]])', '|')
	FROM contact c, LATERAL (VALUES (c.email), (to_jsonb(c)->>'typed')) a(address) WHERE c.id = ANY ($1) AND a.address IS NOT NULL)`

// inEvent is the condition that an event that is kept, in the row e, is about a person: it says a contact's number, or has an address in it, also in data that is no JSON. So may another text of
// the row have one.
func inEvent(also string) string {
	return "(e.event #>> '{data,contact}' = ANY ($1::bigint[]::text[]) OR " +
		named("concat_ws(' ', e.event::text, encode(decode(coalesce(e.event->>'data_base64', ''), 'base64'), 'escape'), "+also+")") + ")"
}

// inVersions is the condition that an older version of a segment, the document d of the entity e, names a person.
var inVersions = "e.kind = 'Segment' AND d.id IS DISTINCT FROM e.current AND " + named("d.spec::text")

// ofVisitors is the condition that a fact is of one of a person's browsers, before it was known whose it was.
const ofVisitors = "EXISTS (SELECT FROM visitor WHERE contact = ANY ($1)) AND f.contact IS NULL AND f.visitor = ANY (ARRAY(SELECT id FROM visitor WHERE contact = ANY ($1)))"

// listings are all tables with something of a contact in them, but the contact itself, in the order in which they are erased. Rows come as they are stored, a column more than here is one
// more member; names of documents are put beside their numbers. A test holds it to the schema.
//
// Not here: allowances, which count the mails that are here.
var listings = []listing{
	{
		name: "merged", rows: "SELECT to_jsonb(c) FROM contact c WHERE c.merged_into = ANY ($1) ORDER BY c.id",
		tables: []string{"contact"}, private: []string{wholly},
		// Erase empties them with the contact.
	},
	{
		name: "subscriptions", rows: "SELECT to_jsonb(s) FROM subscription s WHERE s.contact = ANY ($1) ORDER BY s.purpose",
		tables: []string{"subscription"},
		found:  "(SELECT 1 FROM subscription WHERE contact = ANY ($1))",
		erase:  "DELETE FROM subscription WHERE contact = ANY ($1)",
	},
	{
		name: "consents", rows: "SELECT to_jsonb(c) FROM consent c WHERE c.contact = ANY ($1) ORDER BY c.contact, c.purpose, c.id",
		tables: []string{"consent"}, private: []string{"origin"},
		found: "(SELECT 1 FROM consent WHERE contact = ANY ($1) AND (proof <> '{}' OR origin IS NOT NULL))",
		erase: "UPDATE consent SET proof = '{}', origin = NULL, origin_until = NULL WHERE contact = ANY ($1) AND (proof <> '{}' OR origin IS NOT NULL)",
		stays: "that somebody agreed or withdrew: to what, when and on what basis",
	},
	{
		name: "suppressions", rows: "SELECT to_jsonb(s) FROM suppression s WHERE s.contact = ANY ($1) ORDER BY s.at",
		tables: []string{"suppression"}, private: []string{"hash"},
		found: "(SELECT 1 FROM suppression WHERE contact = ANY ($1))",
		erase: "UPDATE suppression SET contact = NULL, delivery = NULL WHERE contact = ANY ($1)",
		stays: "a hash of the address, so that it is not mailed should it be imported again",
	},
	{
		name: "segments", rows: "SELECT to_jsonb(m) || jsonb_build_object('name', e.name) FROM member m JOIN entity e ON e.id = m.segment WHERE m.contact = ANY ($1) ORDER BY e.name",
		tables: []string{"member"},
		// segment takes it out of them when it reads of the erasure.
	},
	{
		name: "planned", rows: `SELECT jsonb_build_object('email', e.name, 'run', b.run, 'step', b.step, 'planned_at', b.planned_at, 'not_before', b.not_before) FROM batch b JOIN document d ON d.id = b.email JOIN entity e ON e.id = d.entity
			WHERE b.state = 'open' AND b.attempt = 1 AND b.contacts && $1
			AND NOT EXISTS (SELECT FROM delivery o WHERE o.contact = ANY ($1) AND o.id >> 9 = b.id) ORDER BY b.id`,
		tables: []string{"batch"},
		// The gate refuses them.
	},
	{
		name: "mails", rows: `SELECT to_jsonb(m) || jsonb_build_object('email', e.name, 'run', b.run, 'step', b.step) FROM delivery m LEFT JOIN batch b ON b.id = m.id >> 9 LEFT JOIN document d ON d.id = b.email
			LEFT JOIN entity e ON e.id = d.entity WHERE m.contact = ANY ($1) ORDER BY m.contact, m.id`,
		tables: []string{"delivery"},
		found:  "(SELECT id FROM delivery WHERE contact = ANY ($1) AND detail IS NOT NULL)",
		erase:  "UPDATE delivery SET detail = NULL WHERE id = " + atMost,
		stays:  "that a mail went out, for the counts",
	},
	{
		name: "requests", rows: `SELECT to_jsonb(r) - 'hash' FROM request r WHERE r.delivery IN ` + theirRequests + ` ORDER BY r.delivery`,
		tables: []string{"request"}, private: []string{"data", "attachments", "key"},
		found: "(SELECT r.delivery FROM request r WHERE r.delivery IN " + theirRequests + ")",
		erase: "DELETE FROM request WHERE delivery = " + atMost,
	},
	{
		name: "feedback", rows: "SELECT to_jsonb(f) FROM feedback f JOIN delivery m ON m.id = f.delivery WHERE m.contact = ANY ($1) ORDER BY f.id",
		tables: []string{"feedback"},
	},
	{
		name: "hits", rows: `SELECT to_jsonb(h) || jsonb_build_object('url', l.url) FROM delivery m JOIN hit h ON h.delivery = m.id AND h.delivery > 0 LEFT JOIN link l ON l.id = h.link
			WHERE m.contact = ANY ($1) AND h.contact = ANY ($1) ORDER BY m.id, h.id`,
		tables: []string{"hit"}, private: []string{"agent", "origin"},
		found: "(SELECT h.id FROM delivery m JOIN hit h ON h.delivery = m.id AND h.delivery > 0 WHERE m.contact = ANY ($1) AND h.contact IS NOT NULL)",
		erase: "UPDATE hit SET contact = NULL, agent = '', origin = NULL WHERE id = " + atMost,
		stays: "that a mail was opened or clicked, for the counts",
	},
	{
		name: "journeys", rows: `SELECT to_jsonb(j) || jsonb_build_object('campaign', e.name, 'steps', (SELECT coalesce(jsonb_agg(to_jsonb(s) ORDER BY s.visit), '[]') FROM step s WHERE s.journey = j.id)) FROM journey j
			JOIN document d ON d.id = j.document JOIN entity e ON e.id = d.entity WHERE j.contact = ANY ($1) ORDER BY j.contact, j.run, j.id`,
		tables: []string{"journey", "step"}, private: []string{"data", "key"},
		// campaign ends them when it reads of the erasure. No two that are active may have one key.
		found: "(SELECT id FROM journey WHERE contact = ANY ($1) AND (data <> '{}' OR key NOT IN ('', id::text)))",
		erase: "UPDATE journey SET data = '{}', key = id::text WHERE id = " + atMost,
		stays: "that somebody was in a campaign, and which way, for the counts",
	},
	{
		// Of files their names, types and sizes, which data has: what is in them was sent by the contact itself.
		name: "submissions", rows: `SELECT to_jsonb(s) || jsonb_build_object('name', e.name) FROM (SELECT id, form, document, contact, state, reason, data, origin, delivery, at, expires_at, confirmed_at, keep_until FROM submission) s
			JOIN entity e ON e.id = s.form WHERE s.contact = ANY ($1) ORDER BY s.id`,
		tables: []string{"submission"}, private: []string{"data", "origin"},
		found: "(SELECT id FROM submission WHERE contact = ANY ($1))",
		erase: "UPDATE submission SET contact = NULL, data = '{}', files = NULL, origin = NULL, state = CASE WHEN state = 'pending' THEN 'expired' ELSE state END WHERE id = " + atMost,
		stays: "that a form was sent in, for the counts",
	},
	{
		name: "facts", rows: "SELECT to_jsonb(f) - 'xid' FROM fact f WHERE f.contact = ANY ($1) ORDER BY f.contact, f.kind, f.at",
		tables: []string{"fact"}, private: []string{"data"},
		found: "(SELECT id FROM fact WHERE contact = ANY ($1))",
		erase: "DELETE FROM fact WHERE id = " + atMost,
	},
	{
		// Facts that it shares with others: what these say is of all of them.
		name: "shared", rows: "SELECT to_jsonb(f) - '{xid,contacts,deliveries}'::text[] FROM fact f WHERE f.contacts && $1 ORDER BY f.id",
		tables: []string{"fact"}, searched: true,
	},
	{
		name: "browsed", rows: "SELECT to_jsonb(f) - 'xid' FROM fact f WHERE " + ofVisitors + " ORDER BY f.id",
		tables: []string{"fact"}, searched: true,
		found: "(SELECT f.id FROM fact f WHERE " + ofVisitors + ")",
		erase: eraseBrowsed,
	},
	{
		name: "visitors", rows: "SELECT to_jsonb(v) FROM visitor v WHERE v.contact = ANY ($1) ORDER BY v.id",
		tables: []string{"visitor"}, private: []string{"key"},
		found: "(SELECT id FROM visitor WHERE contact = ANY ($1))",
		erase: "DELETE FROM visitor WHERE id = " + atMost,
	},
	{
		name: "failures", rows: "SELECT to_jsonb(e) FROM failure e WHERE " + inEvent("e.error") + " ORDER BY e.id",
		tables: []string{"failure"}, searched: true,
		found: "(SELECT 1 FROM failure e WHERE " + inEvent("e.error") + ")",
		erase: "DELETE FROM failure e WHERE " + inEvent("e.error"),
	},
	{
		name: "outbox", rows: "SELECT to_jsonb(e) FROM outbox e WHERE " + inEvent("e.type") + " ORDER BY e.id",
		tables: []string{"outbox"}, searched: true,
		found: "(SELECT 1 FROM outbox e WHERE " + inEvent("e.type") + ")",
		erase: "DELETE FROM outbox e WHERE " + inEvent("e.type"),
	},
	{
		name: "documents", rows: "SELECT jsonb_build_object('kind', e.kind, 'name', e.name, 'version', d.version) FROM document d JOIN entity e ON e.id = d.entity WHERE " + named("d.spec::text") + " ORDER BY d.id",
		tables: []string{"document"}, searched: true,
		found: "(SELECT 1 FROM document d JOIN entity e ON e.id = d.entity WHERE " + inVersions + ")",
		erase: "UPDATE document d SET spec = regexp_replace(d.spec::text, " + addresses + ", 'erased@erased.invalid', 'gi')::jsonb FROM entity e WHERE e.id = d.entity AND " + inVersions,
		stays: "older versions, without the address",
	},
}

// theirRequests are the transactional mails of a person: those that went out, and those that wait.
const theirRequests = `(SELECT m.id FROM delivery m WHERE m.contact = ANY ($1) UNION SELECT b.id << 9 | 1 FROM batch b WHERE b.state = 'open' AND b.contacts && $1)`

// Tally is how many rows of a kind there were.
type Tally struct {
	Name string `json:"name"`
	Rows int64  `json:"rows"`
}

// Stored writes all that is stored of a contact, and of those that were merged into it, as one object of JSON: the contact, and a list of each kind of rows. It holds one row in memory at a
// time. It tells what its own rows say, without a mask all of it; Export tells what others hold besides. The transaction should be one that sees a single moment (DB.InTenantSnapshot).
// One that is not there is ErrGone, before anything is written.
func Stored(ctx context.Context, tx *postgres.Tx, id int64, mask *Mask, w io.Writer) error {
	_, err := tell(ctx, tx, id, mask, false, w)
	return err
}

// Export is Stored of all there is, for the tenant: with what is shared with others, what its browsers did before they were known for its, and events about it that failed or wait. These are
// searched for in whole tables. It gives what it wrote, in its order.
func Export(ctx context.Context, tx *postgres.Tx, id int64, w io.Writer) ([]Tally, error) {
	return tell(ctx, tx, id, nil, true, w)
}

func tell(ctx context.Context, tx *postgres.Tx, id int64, mask *Mask, search bool, w io.Writer) ([]Tally, error) {
	m := Mask{}
	if mask != nil {
		m = *mask
	}
	var self json.RawMessage
	err := tx.QueryRow(ctx, `SELECT CASE WHEN $2 THEN to_jsonb(c) - 'typed' || jsonb_build_object('email', $3::text, 'external_id', CASE WHEN c.external_id IS NOT NULL THEN $5::text END, 'fields',
		(SELECT coalesce(jsonb_object_agg(f.name, CASE WHEN f.name = ANY ($4::text[]) THEN f.value ELSE to_jsonb($5::text) END), '{}') FROM jsonb_each(c.fields) f(name, value))) ELSE to_jsonb(c) END
		FROM contact c WHERE c.id = $1 AND c.erased_at IS NULL AND c.merged_into IS NULL`, id, mask != nil, m.Address, m.Fields, hidden).Scan(&self)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, ErrGone
	}
	if err != nil {
		return nil, fmt.Errorf("read a contact: %w", err)
	}
	contacts, err := contactsOf(ctx, tx, id)
	if err != nil {
		return nil, err
	}
	if _, err := fmt.Fprintf(w, "{\n\"contact\": %s", self); err != nil {
		return nil, err
	}
	told := []Tally{{"contact", 1}}
	for _, l := range listings {
		if l.searched && !search {
			continue
		}
		n, err := l.write(ctx, tx, contacts, mask != nil, w)
		if err != nil {
			return nil, err
		}
		told = append(told, Tally{l.name, n})
	}
	_, err = io.WriteString(w, "\n}\n")
	return told, err
}

// contactsOf are the contacts that a person is: the one, and those that were merged into it, in order.
func contactsOf(ctx context.Context, tx *postgres.Tx, id int64) ([]int64, error) {
	rows, err := tx.Query(ctx, "SELECT id FROM contact WHERE id = $1 UNION SELECT id FROM contact WHERE merged_into = $1 ORDER BY id", id)
	if err != nil {
		return nil, fmt.Errorf("look for contacts that were merged: %w", err)
	}
	contacts, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		return nil, fmt.Errorf("look for contacts that were merged: %w", err)
	}
	return contacts, nil
}

func (l listing) write(ctx context.Context, tx *postgres.Tx, contacts []int64, masked bool, w io.Writer) (n int64, err error) {
	leave, where := []string{}, ""
	if masked {
		leave = append(leave, l.private...)
		if slices.Contains(l.private, wholly) {
			where = " WHERE false"
		}
	}
	rows, err := tx.Query(ctx, "SELECT o.row - $2::text[] FROM ("+l.rows+") o(row)"+where, contacts, leave)
	if err != nil {
		return 0, fmt.Errorf("read a contact's %s: %w", l.name, err)
	}
	if _, err := fmt.Fprintf(w, ",\n%q: [", l.name); err != nil {
		return 0, err
	}
	between := "\n"
	var row json.RawMessage
	_, err = pgx.ForEachRow(rows, []any{&row}, func() error {
		_, err := fmt.Fprintf(w, "%s%s", between, row)
		between = ",\n"
		n++
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("read a contact's %s: %w", l.name, err)
	}
	_, err = io.WriteString(w, "\n]")
	return n, err
}
