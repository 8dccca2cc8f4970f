// Package contact is who the tenant's people are and what they agreed to: contacts, the consent ledger and its projection,
// suppressed addresses, and the gate that every mail passes.
//
// Invariants: the ledger only grows; the projection (subscription) is a function of the ledger's rows and of complaints, whatever the order they came in;
// an address that was suppressed stays so when its contact is made anew; each call writes the facts of what really changed, and nothing when
// nothing did. Only this package writes facts contact.*, tag.*, score.*, consent.* and suppression.*.
package contact

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/onda-run/onda/internal/event"
	"github.com/onda-run/onda/internal/fieldvalue"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/spec"
)

// makeLock is the class of the advisory lock between those who make contacts (shared) and one who suppresses an address that
// no contact has (exclusive): else neither would see the other, and the contact would not know of its suppression.
const makeLock = 0x6f6e6463

// Ensure finds the contact of an address, or makes one: made says which. It follows merges. An address that cannot be mailed is an
// error that matches ErrAddress. The fact of a new contact is written, its doorbell is not rung.
func Ensure(ctx context.Context, tx *postgres.Tx, address string) (id int64, made bool, err error) {
	r, err := upsert(ctx, tx, "", []Row{{Email: address}}, "")
	if err != nil {
		return 0, false, err
	}
	if r[0].Err != nil {
		return 0, false, r[0].Err
	}
	return r[0].Contact, r[0].Made, nil
}

// Row is what a source of contacts says of one of them.
type Row struct {
	// Email is an address in any form, ExternalID the tenant's own id; at least one is there. Both are set on the contact that is found by either.
	Email, ExternalID string
	// Typed is the address as it was typed, where Email is the normalised form of it already; it is kept beside the address of a contact that gets that.
	Typed string
	// Fields are set; a value of nil removes the field, fields that are not named stay.
	Fields map[string]any
	// JSON, where it is not empty, stands in place of Fields: an object of them, as encoding/json would write it.
	JSON string
	// AddTags are added.
	AddTags []string
	// OnlyNew: what it says is of a contact that it makes; one that is there stays as it is.
	OnlyNew bool
	// Expires is when a contact that it makes is deleted, unless it has agreed to something by then (see Expire); zero for never.
	Expires time.Time
}

// json is the object of what is set.
func (r *Row) json() (string, error) {
	if r.JSON != "" {
		return r.JSON, nil
	}
	return jsonText(r.Fields, map[string]any{})
}

// RowResult is what became of a Row.
type RowResult struct {
	Contact int64
	// Made: the contact is new. Changed: it was there, and now is another.
	Made, Changed bool
	// Err says why nothing was done: it matches ErrAddress, ErrNobody or ErrTwoContacts, or is a *TakenError.
	Err error
}

// Errors of a Row.
var (
	ErrNobody      = errors.New("neither an address nor an external id is there")
	ErrTwoContacts = errors.New("the address and the external id belong to two different contacts: merge them first")
)

// Upsert finds or makes the contacts of all rows and writes what they say, in a few statements however many rows there are (at most some
// thousands). Two rows of the same contact are written in their order. The facts contact.changed and tag.changed, and their doorbells, are
// for what really changed.
func Upsert(ctx context.Context, tx *postgres.Tx, drainer string, rows []Row, cause string) ([]RowResult, error) {
	return upsert(ctx, tx, drainer, rows, cause)
}

// upsert rings no doorbell when there is no drainer.
func upsert(ctx context.Context, tx *postgres.Tx, drainer string, rows []Row, cause string) ([]RowResult, error) {
	results := make([]RowResult, len(rows))
	norm := make([]Row, len(rows))
	var open []int
	for i, r := range rows {
		norm[i] = r
		if r.Email != "" {
			if norm[i].Email, results[i].Err = Normalise(r.Email); results[i].Err != nil {
				continue
			}
			if r.Typed == "" {
				norm[i].Typed = strings.TrimSpace(r.Email)
			}
			if norm[i].Typed == norm[i].Email {
				norm[i].Typed = ""
			}
		}
		if r.Email == "" && r.ExternalID == "" {
			results[i].Err = ErrNobody
			continue
		}
		open = append(open, i)
	}
	w := &writer{drainer: drainer, cause: cause}
	// Rows of one contact go in turns, so that a statement writes a contact once; nearly always one turn does it.
	for len(open) > 0 {
		turn, rest := firstOfEach(norm, open)
		again, err := upsertTurn(ctx, tx, w, norm, results, turn)
		if err != nil {
			return nil, err
		}
		open = slices.Concat(again, rest)
		slices.Sort(open)
	}
	if err := w.flushUnlessSilent(ctx, tx); err != nil {
		return nil, err
	}
	return results, nil
}

func (w *writer) flushUnlessSilent(ctx context.Context, tx *postgres.Tx) error {
	if w.drainer == "" {
		w.ring = nil
	}
	return w.flush(ctx, tx)
}

// firstOfEach gives of the open rows the first for each address and each external id, and those that come after.
func firstOfEach(rows []Row, open []int) (turn, rest []int) {
	emails, ids := map[string]bool{}, map[string]bool{}
	for _, i := range open {
		r := rows[i]
		if r.Email != "" && emails[r.Email] || r.ExternalID != "" && ids[r.ExternalID] {
			rest = append(rest, i)
		} else {
			turn = append(turn, i)
		}
		// Also one that waits holds back those behind it.
		emails[r.Email], ids[r.ExternalID] = true, true
	}
	return turn, rest
}

// found is who has a row's address and its external id already.
type found struct {
	row           int
	byEmail, byID *int64
	emailsOwnID   *string // the external id of who has the address
}

func upsertTurn(ctx context.Context, tx *postgres.Tx, w *writer, rows []Row, results []RowResult, turn []int) (again []int, err error) {
	have, unique, err := look(ctx, tx, rows, turn)
	if err != nil {
		return nil, err
	}
	of, err := claimsOf(ctx, tx, rows, turn, unique)
	if err != nil {
		return nil, err
	}
	given := claimed{}
	free := func(row int) bool { // else it is told why not, or has to wait for another
		later, err := given.take(of[row], results[row].Contact)
		if results[row].Err = err; later {
			again = append(again, row)
		}
		return !later && err == nil
	}
	var fresh []int
	var change []found
	written := map[int64]bool{}
	for _, f := range have {
		r := &results[f.row]
		switch {
		case f.byEmail == nil && f.byID == nil:
			if free(f.row) {
				fresh = append(fresh, f.row)
			}
			continue
		case f.byEmail != nil && f.byID != nil && *f.byEmail != *f.byID,
			f.byID == nil && rows[f.row].ExternalID != "" && f.emailsOwnID != nil:
			r.Err = ErrTwoContacts
			continue
		case f.byEmail != nil:
			r.Contact = *f.byEmail
		default:
			r.Contact = *f.byID
		}
		if written[r.Contact] { // one by its address, the other by its id
			again = append(again, f.row)
			continue
		}
		if !free(f.row) {
			continue
		}
		written[r.Contact] = true
		if !rows[f.row].OnlyNew {
			change = append(change, f)
		}
	}
	made, err := insert(ctx, tx, rows, results, fresh)
	if err != nil {
		return nil, err
	}
	for _, i := range fresh {
		if results[i].Contact == 0 { // another transaction made it meanwhile
			again = append(again, i)
		}
	}
	if err := w.made(made); err != nil {
		return nil, err
	}
	return again, applyRows(ctx, tx, w, rows, results, change)
}

// claimsOf are the values of unique fields that rows say, by the rows' numbers.
func claimsOf(ctx context.Context, tx *postgres.Tx, rows []Row, turn []int, unique []string) (map[int][]claim, error) {
	if len(unique) == 0 {
		return nil, nil
	}
	objects := make([]string, len(turn))
	for k, i := range turn {
		var err error
		if objects[k], err = rows[i].json(); err != nil {
			return nil, err
		}
	}
	at, err := claims(ctx, tx, unique, objects)
	of := map[int][]claim{}
	for k, c := range at {
		of[turn[k]] = c
	}
	return of, err
}

// look finds them, under the lock of those who make contacts, and the fields that are unique.
func look(ctx context.Context, tx *postgres.Tx, rows []Row, turn []int) (have []found, unique []string, err error) {
	emails, ids := pick(rows, turn)
	b := &pgx.Batch{}
	b.Queue("SELECT pg_advisory_xact_lock_shared($1, $2)", makeLock, tx.Tenant.Number)
	// A merged contact keeps its external id as a forwarding address.
	b.Queue(`SELECT u.n - 1, coalesce(e.merged_into, e.id), coalesce(x.merged_into, x.id), coalesce(e.external_id, w.external_id)
		FROM unnest($1::text[], $2::text[]) WITH ORDINALITY u(email, external_id, n)
		LEFT JOIN contact e ON e.email = u.email LEFT JOIN contact w ON w.id = e.merged_into LEFT JOIN contact x ON x.external_id = u.external_id ORDER BY u.n`, emails, ids).Query(func(got pgx.Rows) (err error) {
		have, err = pgx.CollectRows(got, func(r pgx.CollectableRow) (f found, err error) {
			var n int
			err = r.Scan(&n, &f.byEmail, &f.byID, &f.emailsOwnID)
			if err == nil {
				f.row = turn[n]
			}
			return f, err
		})
		return err
	})
	b.Queue(enforced).Query(func(got pgx.Rows) (err error) {
		unique, err = pgx.CollectRows(got, pgx.RowTo[string])
		return err
	})
	if err := tx.SendBatch(ctx, b).Close(); err != nil {
		return nil, nil, fmt.Errorf("look for contacts: %w", err)
	}
	return have, unique, nil
}

// pick gives the identities of some rows as columns, NULL for none.
func pick(rows []Row, which []int) (emails, ids []*string) {
	for _, i := range which {
		emails, ids = append(emails, orNull(rows[i].Email)), append(ids, orNull(rows[i].ExternalID))
	}
	return emails, ids
}

func orNull(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

func insert(ctx context.Context, tx *postgres.Tx, rows []Row, results []RowResult, which []int) (made []int64, err error) {
	if len(which) == 0 {
		return nil, nil
	}
	emails, ids := pick(rows, which)
	fields, tags, expires := make([]string, len(which)), make([]string, len(which)), make([]*time.Time, len(which))
	byEmail, byID := map[string]int{}, map[string]int{}
	for k, i := range which {
		if fields[k], err = rows[i].json(); err != nil {
			return nil, err
		}
		if tags[k], err = jsonText(normTags(rows[i].AddTags), []string{}); err != nil {
			return nil, err
		}
		expires[k] = timeOrNull(rows[i].Expires)
		if rows[i].Email != "" {
			byEmail[rows[i].Email] = i
		} else {
			byID[rows[i].ExternalID] = i
		}
	}
	got, err := tx.Query(ctx, `INSERT INTO contact (email, external_id, fields, tags, expires_at)
		SELECT email, external_id, jsonb_strip_nulls(fields), ARRAY(SELECT jsonb_array_elements_text(tags) ORDER BY 1), expires
		  FROM unnest($1::text[], $2::text[], $3::jsonb[], $4::jsonb[], $5::timestamptz[]) u(email, external_id, fields, tags, expires)
		 ORDER BY email, external_id ON CONFLICT DO NOTHING RETURNING id, coalesce(email, ''), coalesce(external_id, '')`, emails, ids, fields, tags, expires)
	if err != nil {
		return nil, fmt.Errorf("make contacts: %w", err)
	}
	var id int64
	var email, externalID string
	_, err = pgx.ForEachRow(got, []any{&id, &email, &externalID}, func() error {
		i, ok := byEmail[email]
		if email == "" {
			i, ok = byID[externalID]
		}
		if !ok {
			return errors.New("a contact was made that was not asked for")
		}
		results[i].Contact, results[i].Made = id, true
		made = append(made, id)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("make contacts: %w", err)
	}
	var otherwise []int
	for _, i := range which {
		if results[i].Contact != 0 && rows[i].Typed != "" {
			otherwise = append(otherwise, i)
		}
	}
	if err := retype(ctx, tx, rows, results, otherwise); err != nil {
		return nil, err
	}
	return made, adopt(ctx, tx, rows, results, which)
}

// adopt ties suppressions to the contacts that have their addresses now, and to no one else.
func adopt(ctx context.Context, tx *postgres.Tx, rows []Row, results []RowResult, which []int) error {
	keys, err := tx.Keys(ctx)
	if err != nil {
		return err
	}
	var ids []int64
	var hashes [][]byte
	for _, i := range which {
		if rows[i].Email != "" && results[i].Contact != 0 {
			ids, hashes = append(ids, results[i].Contact), append(hashes, keys.HashAddress(rows[i].Email))
		}
	}
	if len(ids) == 0 {
		return nil
	}
	b := &pgx.Batch{}
	b.Queue(`UPDATE suppression s SET contact = NULL FROM unnest($1::bigint[], $2::bytea[]) u(id, hash) WHERE s.contact = u.id AND s.hash <> u.hash`, ids, hashes)
	b.Queue(`UPDATE suppression s SET contact = u.id FROM unnest($1::bigint[], $2::bytea[]) u(id, hash) WHERE s.hash = u.hash AND s.contact IS DISTINCT FROM u.id`, ids, hashes)
	if err := tx.SendBatch(ctx, b).Close(); err != nil {
		return fmt.Errorf("tie suppressions to contacts: %w", err)
	}
	return nil
}

// applyRows writes what rows say of contacts that were there. An identity by which a contact was found is its own, or that of one that was merged into it.
func applyRows(ctx context.Context, tx *postgres.Tx, w *writer, rows []Row, results []RowResult, which []found) error {
	if len(which) == 0 {
		return nil
	}
	contacts := make([]int64, len(which))
	fields, tags := make([]string, len(which)), make([]string, len(which))
	emails, ids := make([]*string, len(which)), make([]*string, len(which))
	at := map[int64]int{}
	for k, f := range which {
		var err error
		i := f.row
		if f.byEmail == nil {
			emails[k] = orNull(rows[i].Email)
		}
		if f.byID == nil {
			ids[k] = orNull(rows[i].ExternalID)
		}
		contacts[k] = results[i].Contact
		at[contacts[k]] = i
		if fields[k], err = rows[i].json(); err != nil {
			return err
		}
		if tags[k], err = jsonText(normTags(rows[i].AddTags), []string{}); err != nil {
			return err
		}
	}
	changed, err := change(ctx, tx, w, contacts, `SELECT id, fields, ARRAY(SELECT jsonb_array_elements_text(tags)) AS add, '{}'::text[] AS remove, email, external_id
		FROM unnest($1::bigint[], $2::jsonb[], $3::jsonb[], $4::text[], $5::text[]) u(id, fields, tags, email, external_id)`, contacts, fields, tags, emails, ids)
	if err != nil {
		return err
	}
	var moved []int
	for _, c := range changed {
		results[at[c.id]].Changed = true
		if c.moved {
			moved = append(moved, at[c.id])
		}
	}
	if err := retype(ctx, tx, rows, results, moved); err != nil {
		return err
	}
	return adopt(ctx, tx, rows, results, moved)
}

// Change is what to make of contacts.
type Change struct {
	// Fields are set, to values as encoding/json writes them; a value of nil (jsonb null) removes the field.
	Fields map[string]any
	// AddTags and RemoveTags: a tag that is in both ends up removed.
	AddTags, RemoveTags []string
}

// Update makes the same change to all the contacts (any number: several statements of at most 5,000), and writes facts contact.changed and tag.changed, and
// rings their doorbells, for those that it really changed. Merged contacts stand for those they were merged into; erased ones are left alone. cause is the id of the event
// or the name of the command behind it, or empty.
func Update(ctx context.Context, tx *postgres.Tx, drainer string, contacts []int64, c Change, cause string) error {
	fields, err := jsonText(c.Fields, map[string]any{})
	if err != nil {
		return err
	}
	if len(c.Fields) == 0 && len(c.AddTags) == 0 && len(c.RemoveTags) == 0 {
		return nil
	}
	w := &writer{drainer: drainer, cause: cause}
	sorted := slices.Compact(slices.Sorted(slices.Values(contacts)))
	for chunk := range slices.Chunk(sorted, 5000) {
		if _, err := change(ctx, tx, w, chunk, `SELECT DISTINCT coalesce(m.merged_into, m.id) AS id, $2::jsonb AS fields, $3::text[] AS add, $4::text[] AS remove,
			NULL::text AS email, NULL::text AS external_id FROM contact m WHERE m.id = ANY ($1)`,
			chunk, fields, normTags(c.AddTags), normTags(c.RemoveTags)); err != nil {
			return err
		}
	}
	return w.flush(ctx, tx)
}

// Assign is Update with what a step gives to fields, in the form in which values are stored. What does not fit its field any more, such as an option that was taken away since,
// leaves the field as it is; so does a value of one that is unique now, which not all can have.
func Assign(ctx context.Context, tx *postgres.Tx, drainer string, contacts []int64, set []spec.Assignment, cause string) error {
	values := map[string]any{}
	for _, a := range set {
		values[a.Field] = a.Value
	}
	rows, err := tx.Query(ctx, "SELECT e.name, d.spec FROM entity e JOIN document d ON d.id = e.current WHERE e.kind = $1 AND e.name = ANY ($2)", spec.KindField, slices.Collect(maps.Keys(values)))
	if err != nil {
		return fmt.Errorf("read fields: %w", err)
	}
	fields := map[string]any{}
	var name string
	var stored []byte
	_, err = pgx.ForEachRow(rows, []any{&name, &stored}, func() error {
		f, err := spec.DecodeAs[*spec.Field](spec.KindField, stored)
		if err != nil {
			return err
		}
		if v, err := fieldvalue.FromJSON(f, values[name]); err == nil && (v == nil || !f.Unique) {
			fields[name] = v
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("read fields: %w", err)
	}
	return Update(ctx, tx, drainer, contacts, Change{Fields: fields}, cause)
}

// SetFields sets fields of contacts, of each its own, in a few statements however many they are (at most some thousands); a value of nil removes the field. What is unique, and another contact has, is
// left out. It is Update otherwise.
func SetFields(ctx context.Context, tx *postgres.Tx, drainer string, fields map[int64]map[string]any, cause string) error {
	if len(fields) == 0 {
		return nil
	}
	fields, err := free(ctx, tx, fields)
	if err != nil {
		return err
	}
	contacts := slices.Sorted(maps.Keys(fields))
	values := make([]string, len(contacts))
	for i, c := range contacts {
		if values[i], err = jsonText(fields[c], map[string]any{}); err != nil {
			return err
		}
	}
	w := &writer{drainer: drainer, cause: cause}
	// Of two that were merged into one, the one that was made last counts.
	if _, err := change(ctx, tx, w, contacts, `SELECT DISTINCT ON (coalesce(m.merged_into, m.id)) coalesce(m.merged_into, m.id) AS id, u.fields, '{}'::text[] AS add, '{}'::text[] AS remove,
		NULL::text AS email, NULL::text AS external_id FROM unnest($1::bigint[], $2::jsonb[]) u(contact, fields) JOIN contact m ON m.id = u.contact ORDER BY coalesce(m.merged_into, m.id), m.id DESC`,
		contacts, values); err != nil {
		return err
	}
	return w.flush(ctx, tx)
}

// changed is a contact that a change made another.
type changed struct {
	id             int64
	fields         []string
	added, removed []string
	moved          bool // it has another address
}

// Lock keeps others from changing the contacts, or those that they were merged into, until the transaction's end. Who changes contacts in several calls locks them all before
// the first: a call locks its own in order of id, and so two transactions never wait for each other.
//
// One that was merged while it was waited for is let go of again, by the savepoint: who has it may come before the one that it became, which is locked next.
func Lock(ctx context.Context, tx *postgres.Tx, contacts []int64) error {
	for {
		var merged bool
		b := &pgx.Batch{}
		b.Queue("SAVEPOINT contacts")
		b.Queue(`SELECT coalesce(bool_or(merged), false) FROM (SELECT merged_into IS NOT NULL AS merged FROM contact
			WHERE id IN (SELECT coalesce(merged_into, id) FROM contact WHERE id = ANY ($1)) ORDER BY id FOR UPDATE) c`, contacts).QueryRow(func(row pgx.Row) error {
			return row.Scan(&merged)
		})
		if err := tx.SendBatch(ctx, b).Close(); err != nil {
			return fmt.Errorf("lock contacts: %w", err)
		}
		if !merged {
			return nil
		}
		if _, err := tx.Exec(ctx, "ROLLBACK TO SAVEPOINT contacts"); err != nil {
			return fmt.Errorf("lock contacts: %w", err)
		}
	}
}

// change applies a set of changes, which is SQL that gives id, fields, add, remove, email and external_id, to contacts in order of id.
func change(ctx context.Context, tx *postgres.Tx, w *writer, contacts []int64, set string, args ...any) ([]changed, error) {
	// The lock is a statement of its own, so that the next one sees what whoever held it wrote.
	if err := Lock(ctx, tx, contacts); err != nil {
		return nil, err
	}
	got, err := tx.Query(ctx, `WITH u AS (`+set+`), o AS (
		SELECT c.id, c.email, c.external_id, c.fields, c.tags, jsonb_strip_nulls(c.fields || u.fields) AS new_fields,
		       ARRAY(SELECT DISTINCT t FROM unnest(c.tags || u.add) t WHERE t <> ALL (u.remove) ORDER BY t) AS new_tags,
		       coalesce(u.email, c.email) AS new_email, coalesce(u.external_id, c.external_id) AS new_id
		  FROM u JOIN contact c ON c.id = u.id WHERE c.erased_at IS NULL)
		UPDATE contact c SET fields = o.new_fields, tags = o.new_tags, email = o.new_email, external_id = o.new_id, changed_at = onda.now()
		  FROM o WHERE c.id = o.id AND (o.fields, o.email, o.external_id) IS DISTINCT FROM (o.new_fields, o.new_email, o.new_id)
		     OR c.id = o.id AND NOT (o.tags @> o.new_tags AND o.tags <@ o.new_tags)
		RETURNING c.id, ARRAY(SELECT k FROM (SELECT jsonb_object_keys(o.fields || o.new_fields) k) k WHERE o.fields->k IS DISTINCT FROM o.new_fields->k ORDER BY k)
		         || CASE WHEN o.email IS DISTINCT FROM o.new_email THEN '{email}'::text[] ELSE '{}' END
		         || CASE WHEN o.external_id IS DISTINCT FROM o.new_id THEN '{external_id}'::text[] ELSE '{}' END,
		       ARRAY(SELECT unnest(o.new_tags) EXCEPT SELECT unnest(o.tags)), ARRAY(SELECT unnest(o.tags) EXCEPT SELECT unnest(o.new_tags)),
		       o.email IS DISTINCT FROM o.new_email`, args...)
	if err != nil {
		return nil, fmt.Errorf("change contacts: %w", err)
	}
	out, err := pgx.CollectRows(got, func(r pgx.CollectableRow) (c changed, err error) {
		err = r.Scan(&c.id, &c.fields, &c.added, &c.removed, &c.moved)
		return c, err
	})
	if err != nil {
		return nil, fmt.Errorf("change contacts: %w", asTaken(err))
	}
	return out, w.changed(out)
}

// changed notes the facts and doorbells of changed contacts: a fact names the fields that changed in any of its contacts.
func (w *writer) changed(all []changed) error {
	slices.SortFunc(all, func(a, b changed) int { return int(a.id - b.id) })
	var touched []changed
	added, removed := map[string][]int64{}, map[string][]int64{}
	for _, c := range all {
		if len(c.fields) > 0 {
			touched = append(touched, c)
		}
		for _, t := range c.added {
			added[t] = append(added[t], c.id)
		}
		for _, t := range c.removed {
			removed[t] = append(removed[t], c.id)
		}
	}
	for chunk := range slices.Chunk(touched, event.MaxItems) {
		ids, names := make([]int64, len(chunk)), map[string]bool{}
		for i, c := range chunk {
			ids[i] = c.id
			for _, f := range c.fields {
				names[f] = true
			}
		}
		fields := slices.Sorted(maps.Keys(names))
		if err := w.addSet("contact.changed", "", ids, map[string]any{"fields": fields}); err != nil {
			return err
		}
		w.ring = append(w.ring, event.ContactChanged{Contacts: ids, Fields: fields})
	}
	var items []event.Tag
	for _, change := range []struct {
		tags map[string][]int64
		name string
	}{{added, "added"}, {removed, "removed"}} {
		for _, tag := range slices.Sorted(maps.Keys(change.tags)) {
			ids := change.tags[tag]
			if err := w.addSet("tag.changed", tag, ids, map[string]any{"added": change.name == "added"}); err != nil {
				return err
			}
			for _, id := range ids {
				items = append(items, event.Tag{Contact: id, Tag: tag, Change: change.name})
			}
		}
	}
	ringItems(w, items, func(t []event.Tag) event.Data { return event.TagChanged{Items: t} })
	return nil
}

// normTags drops repeated tags.
func normTags(tags []string) []string {
	out := append([]string{}, tags...)
	slices.Sort(out)
	return slices.Compact(out)
}

func jsonText[T any](v, empty T) (string, error) {
	b, err := json.Marshal(v)
	if err == nil && string(b) == "null" {
		b, err = json.Marshal(empty)
	}
	if err != nil {
		return "", fmt.Errorf("encode a contact's values: %w", err)
	}
	return string(b), nil
}
