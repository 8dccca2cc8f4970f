package contact

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/onda-run/onda/internal/event"
	"github.com/onda-run/onda/internal/postgres"
)

// Standing is how what a Row says stands to what is there.
type Standing struct {
	// Contact is who the row is about; 0 for nobody yet.
	Contact int64
	// Same: the contact is as the row says already.
	Same bool
	// Err is that of a RowResult.
	Err error
}

// Compare tells of each row how it stands to the contacts that are there. It takes no lock and writes nothing: another may change what it told of. The rows' addresses are
// normalised ones.
func Compare(ctx context.Context, tx *postgres.Tx, rows []Row) ([]Standing, error) {
	out := make([]Standing, len(rows))
	if len(rows) == 0 {
		return out, nil
	}
	anyID, anyTags, anyList := false, false, false
	for i := range rows {
		r := &rows[i]
		if r.Email == "" && r.ExternalID == "" {
			out[i].Err = ErrNobody
		}
		fields, err := r.json()
		if err != nil {
			return nil, err
		}
		anyID, anyTags, anyList = anyID || r.ExternalID != "", anyTags || len(r.AddTags) > 0, anyList || strings.IndexByte(fields, '[') >= 0
	}
	sql := compareSQL(anyID, anyTags, anyList)
	// In order of the addresses, so that what is read of the index is read once; and some at a time, since what is sent is in memory three times meanwhile.
	for part := range slices.Chunk(byAddress(rows), compareRows) {
		emails, ids, fields, tags := make([]string, len(part)), make([]string, len(part)), make([]string, len(part)), make([]string, len(part))
		for k, i := range part {
			r := &rows[i]
			var err error
			if fields[k], err = r.json(); err != nil {
				return nil, err
			}
			emails[k], ids[k], tags[k] = r.Email, r.ExternalID, strings.Join(r.AddTags, tagSeparator)
		}
		args := []any{emails, fields}
		if anyID {
			args = append(args, ids)
		}
		if anyTags {
			args = append(args, tags)
		}
		got, err := tx.Query(ctx, sql, args...)
		if err != nil {
			return nil, fmt.Errorf("compare contacts: %w", err)
		}
		var byEmail, byID int64
		var ownID, same bool
		var k int
		_, err = pgx.ForEachRow(got, []any{&k, &byEmail, &byID, &ownID, &same}, func() error {
			s := &out[part[k]]
			switch {
			case s.Err != nil:
			case byEmail != 0 && (byID != 0 && byEmail != byID || ownID):
				s.Err = ErrTwoContacts
			default:
				s.Contact, s.Same = byEmail, same
				if byEmail == 0 {
					s.Contact = byID
				}
			}
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("compare contacts: %w", err)
		}
	}
	return out, nil
}

const (
	compareRows  = 1_000
	tagSeparator = "\x01" // which no tag has
)

// compareSQL tells of rows, whose addresses, fields and, where there are any, external ids and tags are its arguments, how they stand. Columns that no row has cost nothing.
func compareSQL(anyID, anyTags, anyList bool) string {
	// Each contact is looked up by index, whatever Postgres knows of how many there are.
	holds := func(fields string) string {
		if anyList { // one that has fewer values is contained in one that has more
			return fields + ` || u.fields::jsonb = ` + fields
		}
		return fields + ` @> u.fields::jsonb`
	}
	sql := `SELECT u.n - 1, coalesce(e.merged_into, e.id, 0), 0::bigint, false, coalesce(e.merged_into IS NULL AND ` + holds("e.fields")
	from := `unnest($1::text[], $2::text[]`
	names := `email, fields`
	joins := ` LEFT JOIN LATERAL (SELECT id, merged_into, external_id, fields, tags FROM contact c WHERE c.email = u.email LIMIT 1) e ON true`
	if anyID {
		sql = `SELECT u.n - 1, coalesce(e.merged_into, e.id, 0), coalesce(x.merged_into, x.id, 0), u.id <> '' AND x.id IS NULL AND coalesce(e.external_id, w.external_id) IS NOT NULL,
			coalesce(b.merged_into IS NULL AND (u.email = '' OR e.id = b.id) AND (u.id = '' OR x.id = b.id) AND ` + holds("b.fields")
		from, names = from+`, $3::text[]`, names+`, id`
		joins += ` LEFT JOIN LATERAL (SELECT id, merged_into, email, fields, tags FROM contact c WHERE c.external_id = nullif(u.id, '') LIMIT 1) x ON true LEFT JOIN contact w ON w.id = e.merged_into
			LEFT JOIN LATERAL (SELECT e.id, e.merged_into, e.fields, e.tags WHERE e.id IS NOT NULL UNION ALL SELECT x.id, x.merged_into, x.fields, x.tags WHERE e.id IS NULL) b ON true`
	}
	if anyTags {
		from, names = from+map[bool]string{false: `, $3::text[]`, true: `, $4::text[]`}[anyID], names+`, tags`
		sql += ` AND ` + map[bool]string{false: "e", true: "b"}[anyID] + `.tags @> CASE WHEN u.tags = '' THEN '{}' ELSE string_to_array(u.tags, E'\x01') END`
	}
	return sql + `, false) FROM ` + from + `) WITH ORDINALITY u(` + names + `, n)` + joins
}

// byAddress gives the numbers of rows in order of their addresses and external ids.
func byAddress(rows []Row) []int {
	order := make([]int, len(rows))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int {
		if c := strings.Compare(rows[a].Email, rows[b].Email); c != 0 {
			return c
		}
		return strings.Compare(rows[a].ExternalID, rows[b].ExternalID)
	})
	return order
}

// ErrThere is what Make meets a contact with that is there already.
var ErrThere = errors.New("a contact of a row is there already")

// Make makes contacts of rows that are nobody's yet, with normalised addresses and no field that is removed, by COPY, and writes the facts of them and rings their doorbells as Upsert does. When one of them is
// there, or two rows are of the same contact, the error matches ErrThere and the transaction is over: then Compare tells which. contacts are their ids, in order of the rows.
func Make(ctx context.Context, tx *postgres.Tx, drainer string, rows []Row, cause string) (contacts []int64, err error) {
	if len(rows) == 0 {
		return nil, nil
	}
	var ids []int64
	var suppressed bool
	b := &pgx.Batch{}
	b.Queue("SELECT pg_advisory_xact_lock_shared($1, $2)", makeLock, tx.Tenant.Number)
	b.Queue("SELECT array_agg(nextval('contact_id_seq')) FROM generate_series(1, $1::int)", len(rows)).QueryRow(func(row pgx.Row) error {
		return row.Scan(&ids)
	})
	b.Queue("SELECT EXISTS (SELECT FROM suppression)").QueryRow(func(row pgx.Row) error { return row.Scan(&suppressed) })
	if err := tx.SendBatch(ctx, b).Close(); err != nil {
		return nil, fmt.Errorf("make contacts: %w", err)
	}
	// In order of the addresses: two that make the same ones do not wait for each other in turn, and the index is written in one direction.
	order := byAddress(rows)
	contacts = make([]int64, len(rows))
	for k, i := range order {
		contacts[i] = ids[k]
	}
	columns := []string{"id", "external_id", "email", "fields", "tags", "created_at", "changed_at", "expires_at"}
	typed := tx.Tenant.Schema >= TypedSchema
	if typed {
		columns = append(columns, "typed")
	}
	var bad error
	err = tx.Copy(ctx, "contact", columns, len(rows), func(k int, r *postgres.CopyRow) {
		row := &rows[order[k]]
		r.ID(ids[k])
		textOrNull(r, row.ExternalID)
		textOrNull(r, row.Email)
		fields, err := row.json()
		if err != nil {
			bad = err
		}
		r.JSONText(fields)
		tags := row.AddTags
		if !isSet(tags) {
			tags = normTags(tags)
		}
		r.Texts(tags)
		r.Time(tx.Now())
		r.Time(tx.Now())
		if row.Expires.IsZero() {
			r.Null()
		} else {
			r.Time(row.Expires)
		}
		if typed {
			textOrNull(r, row.Typed)
		}
	})
	var pe *pgconn.PgError
	if errors.As(err, &pe) && pe.Code == "23505" {
		return nil, fmt.Errorf("make contacts: %w", ErrThere)
	}
	if err = errors.Join(err, bad); err != nil {
		return nil, fmt.Errorf("make contacts: %w", err)
	}
	w := &writer{drainer: drainer, cause: cause}
	if err := w.made(ids); err != nil {
		return nil, err
	}
	if suppressed {
		results, which := make([]RowResult, len(rows)), make([]int, len(rows))
		for i := range rows {
			results[i].Contact, which[i] = contacts[i], i
		}
		if err := adopt(ctx, tx, rows, results, which); err != nil {
			return nil, err
		}
	}
	return contacts, w.flushUnlessSilent(ctx, tx)
}

// made notes the facts and doorbells of contacts that were made.
func (w *writer) made(contacts []int64) error {
	if len(contacts) == 0 {
		return nil
	}
	if err := w.addSet("contact.changed", "", contacts, nil); err != nil {
		return err
	}
	for chunk := range slices.Chunk(contacts, event.MaxItems) {
		w.ring = append(w.ring, event.ContactChanged{Contacts: chunk})
	}
	return nil
}

func textOrNull(r *postgres.CopyRow, s string) {
	if s == "" {
		r.Null()
		return
	}
	r.Text(s)
}

// isSet tells whether tags are in order and none is there twice.
func isSet(tags []string) bool {
	for i := 1; i < len(tags); i++ {
		if tags[i-1] >= tags[i] {
			return false
		}
	}
	return true
}

// Unrecorded tells of entries which of them Record would write nothing of: recorded is what it would answer of those, and todo are the numbers of the others. It takes no lock and
// writes nothing. It is for entries of an import alone, which say that something was granted or withdrawn.
func Unrecorded(ctx context.Context, tx *postgres.Tx, entries []Consent) (recorded map[int]Recorded, todo []int, err error) {
	pairs, err := pairsOf(entries)
	if err != nil || len(pairs) == 0 {
		return nil, nil, err
	}
	n := len(entries)
	contact, purpose, said, proof := make([]int64, n), make([]string, n), make([]string, n), make([]string, n)
	for i, e := range entries {
		contact[i], purpose[i], said[i] = e.Contact, e.Purpose, string(e.State)
		if proof[i], err = jsonText(e.Proof, map[string]any{}); err != nil {
			return nil, nil, err
		}
	}
	rows, err := tx.Query(ctx, `SELECT u.n - 1, coalesce(p.state, ''), s.complaint, EXISTS (SELECT FROM consent o WHERE o.contact = u.contact AND o.purpose = u.purpose
			AND o.state = u.state AND o.basis = 'import' AND o.proof - '{file,row}'::text[] = u.proof::jsonb - '{file,row}'::text[]),
			u.state = 'withdrawn' AND coalesce(p.state, '') = 'granted' AND NOT `+imported+`
		FROM unnest($1::bigint[], $2::text[], $3::text[], $4::text[]) WITH ORDINALITY u(contact, purpose, proof, state, n)
		LEFT JOIN LATERAL (SELECT state, consent FROM subscription p WHERE p.contact = u.contact AND p.purpose = u.purpose LIMIT 1) p ON true,
		LATERAL (SELECT `+inComplaint("u.contact", "u.purpose")+` AS complaint) s ORDER BY u.n`, contact, purpose, proof, said)
	if err != nil {
		return nil, nil, fmt.Errorf("read consent: %w", err)
	}
	recorded = map[int]Recorded{}
	var i int
	var state State
	var complaint, told, newer bool
	_, err = pgx.ForEachRow(rows, []any{&i, &state, &complaint, &told, &newer}, func() error {
		switch e := entries[i]; {
		case complaint && state != Withdrawn, !told && !newer && state != Withdrawn, e.Basis != BasisImport || e.State == Pending:
			todo = append(todo, i)
		case e.State == Withdrawn && state != Withdrawn:
			recorded[i] = Recorded{State: state, Refused: "newer"}
		case e.State == Withdrawn:
			recorded[i] = Recorded{State: state}
		case complaint:
			recorded[i] = Recorded{State: state, Refused: "complaint"}
		case state == Withdrawn:
			recorded[i] = Recorded{State: state, Refused: "withdrawn"}
		default:
			recorded[i] = Recorded{State: state}
		}
		return nil
	})
	if err != nil {
		return nil, nil, fmt.Errorf("read consent: %w", err)
	}
	return recorded, todo, nil
}
