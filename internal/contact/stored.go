package contact

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

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

// listing is one kind of what is stored: a query of rows as JSON, with the contact as $1.
type listing struct {
	name    string
	rows    string
	tables  []string // whose rows it lists
	private []string // members that Mask leaves out
}

// listings are all tables with something of a contact in them, but the contact itself. Rows come as they are stored, a column more than here is one more member; names of documents
// are put beside their numbers. A test holds it to the schema.
//
// Not here: what a set of many contacts was told of at once (fact.contacts), which the rows that it is about tell too; and allowances, which count the mails that are here.
var listings = []listing{
	{
		"subscriptions", "SELECT to_jsonb(s) FROM subscription s WHERE s.contact = $1 ORDER BY s.purpose",
		[]string{"subscription"},
		nil,
	},
	{
		"consents", "SELECT to_jsonb(c) FROM consent c WHERE c.contact = $1 ORDER BY c.contact, c.purpose, c.id",
		[]string{"consent"},
		[]string{"origin"},
	},
	{
		"suppressions", "SELECT to_jsonb(s) FROM suppression s WHERE s.contact = $1 ORDER BY s.at",
		[]string{"suppression"},
		[]string{"hash"},
	},
	{
		"segments", "SELECT to_jsonb(m) || jsonb_build_object('name', e.name) FROM member m JOIN entity e ON e.id = m.segment WHERE m.contact = $1 ORDER BY e.name",
		[]string{"member"},
		nil,
	},
	{
		"planned", `SELECT jsonb_build_object('email', e.name, 'run', b.run, 'step', b.step, 'planned_at', b.planned_at, 'not_before', b.not_before) FROM batch b JOIN document d ON d.id = b.email JOIN entity e ON e.id = d.entity
			WHERE b.state = 'open' AND b.attempt = 1 AND b.contacts @> ARRAY[$1::bigint]
			AND NOT EXISTS (SELECT FROM delivery o WHERE o.contact = $1 AND o.id >> 9 = b.id) ORDER BY b.id`,
		[]string{"batch"},
		nil,
	},
	{
		"mails", `SELECT to_jsonb(m) || jsonb_build_object('email', e.name, 'run', b.run, 'step', b.step) FROM delivery m LEFT JOIN batch b ON b.id = m.id >> 9 LEFT JOIN document d ON d.id = b.email
			LEFT JOIN entity e ON e.id = d.entity WHERE m.contact = $1 ORDER BY m.contact, m.id`,
		[]string{"delivery"},
		nil,
	},
	{
		"requests", `SELECT to_jsonb(r) - 'hash' FROM (SELECT m.id FROM delivery m WHERE m.contact = $1
			UNION SELECT b.id << 9 | 1 FROM batch b WHERE b.state = 'open' AND b.contacts @> ARRAY[$1::bigint]) m JOIN request r ON r.delivery = m.id ORDER BY r.delivery`,
		[]string{"request"},
		[]string{"data", "attachments", "key"},
	},
	{
		"feedback", "SELECT to_jsonb(f) FROM feedback f JOIN delivery m ON m.id = f.delivery WHERE m.contact = $1 ORDER BY f.id",
		[]string{"feedback"},
		nil,
	},
	{
		"hits", `SELECT to_jsonb(h) || jsonb_build_object('url', l.url) FROM delivery m JOIN hit h ON h.delivery = m.id AND h.delivery > 0 LEFT JOIN link l ON l.id = h.link
			WHERE m.contact = $1 AND h.contact = $1 ORDER BY m.id, h.id`,
		[]string{"hit"},
		[]string{"agent", "origin"},
	},
	{
		"journeys", `SELECT to_jsonb(j) || jsonb_build_object('campaign', e.name, 'steps', (SELECT coalesce(jsonb_agg(to_jsonb(s) ORDER BY s.visit), '[]') FROM step s WHERE s.journey = j.id)) FROM journey j
			JOIN document d ON d.id = j.document JOIN entity e ON e.id = d.entity WHERE j.contact = $1 ORDER BY j.contact, j.run, j.id`,
		[]string{"journey", "step"},
		[]string{"data", "key"},
	},
	{
		// Of files their names, types and sizes, which data has: what is in them was sent by the contact itself.
		"submissions", `SELECT to_jsonb(s) || jsonb_build_object('name', e.name) FROM (SELECT id, form, document, contact, state, reason, data, origin, delivery, at, expires_at, confirmed_at, keep_until FROM submission) s
			JOIN entity e ON e.id = s.form WHERE s.contact = $1 ORDER BY s.id`,
		[]string{"submission"},
		[]string{"data", "origin"},
	},
	{
		"visitors", "SELECT to_jsonb(v) FROM visitor v WHERE v.contact = $1 ORDER BY v.id",
		[]string{"visitor"},
		[]string{"key"},
	},
	{
		"facts", "SELECT to_jsonb(f) - 'xid' FROM fact f WHERE f.contact = $1 ORDER BY f.contact, f.kind, f.at",
		[]string{"fact"},
		[]string{"data"},
	},
}

// Stored writes all that is stored of a contact as one object of JSON: the contact, and a list of each kind of rows. It holds one row in memory at a time. Without a mask it tells
// everything. The transaction should be one that sees a single moment (DB.InTenantSnapshot). One that is not there is ErrGone, before anything is written.
func Stored(ctx context.Context, tx *postgres.Tx, id int64, mask *Mask, w io.Writer) error {
	m := Mask{}
	if mask != nil {
		m = *mask
	}
	var self json.RawMessage
	err := tx.QueryRow(ctx, `SELECT CASE WHEN $2 THEN to_jsonb(c) || jsonb_build_object('email', $3::text, 'external_id', CASE WHEN c.external_id IS NOT NULL THEN $5::text END, 'fields',
		(SELECT coalesce(jsonb_object_agg(f.name, CASE WHEN f.name = ANY ($4::text[]) THEN f.value ELSE to_jsonb($5::text) END), '{}') FROM jsonb_each(c.fields) f(name, value))) ELSE to_jsonb(c) END
		FROM contact c WHERE c.id = $1 AND c.erased_at IS NULL AND c.merged_into IS NULL`, id, mask != nil, m.Address, m.Fields, hidden).Scan(&self)
	if errors.Is(err, pgx.ErrNoRows) {
		return ErrGone
	}
	if err != nil {
		return fmt.Errorf("read a contact: %w", err)
	}
	if _, err := fmt.Fprintf(w, "{\n\"contact\": %s", self); err != nil {
		return err
	}
	for _, l := range listings {
		if err := l.write(ctx, tx, id, mask != nil, w); err != nil {
			return err
		}
	}
	_, err = io.WriteString(w, "\n}\n")
	return err
}

func (l listing) write(ctx context.Context, tx *postgres.Tx, id int64, masked bool, w io.Writer) error {
	leave := []string{}
	if masked {
		leave = append(leave, l.private...)
	}
	rows, err := tx.Query(ctx, "SELECT o.row - $2::text[] FROM ("+l.rows+") o(row)", id, leave)
	if err != nil {
		return fmt.Errorf("read a contact's %s: %w", l.name, err)
	}
	if _, err := fmt.Fprintf(w, ",\n%q: [", l.name); err != nil {
		return err
	}
	between := "\n"
	var row json.RawMessage
	_, err = pgx.ForEachRow(rows, []any{&row}, func() error {
		_, err := fmt.Fprintf(w, "%s%s", between, row)
		between = ",\n"
		return err
	})
	if err != nil {
		return fmt.Errorf("read a contact's %s: %w", l.name, err)
	}
	_, err = io.WriteString(w, "\n]")
	return err
}
