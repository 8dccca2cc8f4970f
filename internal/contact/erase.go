package contact

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/onda-run/onda/internal/event"
	"github.com/onda-run/onda/internal/postgres"
)

// ErasureSchema is the tenant migration from which on contacts can be erased.
const ErasureSchema = 20

// Errors of Find.
var (
	ErrUnknown   = errors.New("there is no such contact: name it by address, external id or number")
	ErrAmbiguous = errors.New("this is the external id of one contact and the number of another: name the one that is meant by its address, or by the other of the two")
)

const (
	// erasedAtOnce is how many rows are erased in one transaction.
	erasedAtOnce = 5000
	// browsedAtOnce is how many facts are looked through in one transaction.
	browsedAtOnce = 200_000
	// eraseLock is the class of the advisory lock of those who erase: of two who erase one contact the second sees what the first has done.
	eraseLock = 0x6f6e6465
)

// Receipt says what was erased of a person, or would be, and nothing of the person.
type Receipt struct {
	// Contact is a hash of the contact's number under the tenant's pepper.
	Contact string `json:"contact"`
	// At is when the contact became nobody; zero when it was not erased.
	At time.Time `json:"at,omitzero"`
	// Contacts is how many it was: the contact, and those that were merged into it.
	Contacts int64 `json:"contacts"`
	// Rows are those that were deleted or emptied.
	Rows []Erased `json:"rows"`
	// Edit names documents in which the person's address is written, such as the keep lists of segments: only their authors can take it out.
	Edit []string `json:"edit"`
	// Before says that it had been erased before: then this is the receipt of that time.
	Before bool `json:"before"`
}

// Erased is what became of rows of a kind.
type Erased struct {
	Tally
	// Stays is what is left of them, without the person; empty: they are deleted.
	Stays string `json:"stays,omitempty"`
}

// Find finds a contact by its address, external id or number, and follows a merge: two that were merged are one person. It is an error that matches ErrUnknown or ErrAmbiguous.
func Find(ctx context.Context, tx *postgres.Tx, who string) (int64, error) {
	id, err := FindRow(ctx, tx, who)
	if err != nil {
		return 0, err
	}
	if err := tx.QueryRow(ctx, "SELECT coalesce(merged_into, id) FROM contact WHERE id = $1", id).Scan(&id); err != nil {
		return 0, fmt.Errorf("look for a contact: %w", err)
	}
	return id, nil
}

// FindRow is Find that follows no merge: what leads to a contact that is part of another gives the one that was.
func FindRow(ctx context.Context, tx *postgres.Tx, who string) (int64, error) {
	who = strings.TrimSpace(who)
	if strings.ContainsRune(who, 0) || !utf8.ValidString(who) { // which is in no text of Postgres
		return 0, ErrUnknown
	}
	email, err := Normalise(who)
	if err != nil {
		email = ""
	}
	number, err := strconv.ParseInt(who, 10, 64)
	if err != nil {
		number = 0
	}
	rows, err := tx.Query(ctx, `SELECT id FROM contact WHERE email = nullif($1, '') UNION SELECT id FROM contact WHERE external_id = $2 UNION SELECT id FROM contact WHERE id = $3`, email, who, number)
	if err != nil {
		return 0, fmt.Errorf("look for a contact: %w", err)
	}
	found, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	switch {
	case err != nil:
		return 0, fmt.Errorf("look for a contact: %w", err)
	case len(found) == 0:
		return 0, ErrUnknown
	case len(found) > 1:
		return 0, ErrAmbiguous
	}
	return found[0], nil
}

// FindErased finds what is left of the contact whose address was erased last. One that never was is an error that matches ErrUnknown.
func FindErased(ctx context.Context, tx *postgres.Tx, address string) (id int64, err error) {
	email, err := Normalise(address)
	if err != nil || tx.Tenant.Schema < ErasureSchema {
		return 0, ErrUnknown
	}
	keys, err := tx.Keys(ctx)
	if err != nil {
		return 0, err
	}
	err = tx.QueryRow(ctx, "SELECT c.id FROM suppression s JOIN contact c ON c.erased_at = s.at WHERE s.hash = $1 AND s.channel = 'email' AND s.reason = 'erasure' AND c.erasure IS NOT NULL",
		keys.HashAddress(email)).Scan(&id)
	if errors.Is(err, pgx.ErrNoRows) {
		return 0, ErrUnknown
	}
	if err != nil {
		return 0, fmt.Errorf("look for an erased contact: %w", err)
	}
	return id, nil
}

// ToErase is what Erase would do at this moment.
func ToErase(ctx context.Context, tx *postgres.Tx, id int64) (Receipt, error) {
	e, err := readErasure(ctx, tx, id)
	if err != nil || e.receipt.Before {
		return e.receipt, err
	}
	r := &e.receipt
	r.Contacts = int64(len(e.contacts))
	for _, l := range listings {
		if l.found == "" {
			continue
		}
		var n int64
		if err := tx.QueryRow(ctx, "SELECT count(*) FROM "+l.found+" found", e.contacts).Scan(&n); err != nil {
			return *r, fmt.Errorf("count a contact's %s: %w", l.name, err)
		}
		r.add(l, n)
	}
	return *r, e.documents(ctx, tx)
}

// Erase makes a contact, and those that were merged into it, nobody: what is left is numbers, so that what was counted stays. It gets no mail from the first of its transactions on, but for
// what is on its way; the rest of its rows are erased in transactions of some thousands. Killed in the middle, or asked for by two at once, it goes on where it was, and the receipt is the
// same; erasing once more gives that receipt again. Its address stays suppressed, by a hash, whoever brings it back. The facts contact.erased are for all of them at once, and
// for the one with the counts of the receipt. progress, which may be nil, is told how many rows were erased each time. A contact that is not there is ErrGone.
func Erase(ctx context.Context, db *postgres.DB, tenant, drainer string, id int64, progress func(rows int64)) (Receipt, error) {
	var e *erasure
	err := settle(ctx, db, tenant, func(ctx context.Context, tx *postgres.Tx) (err error) {
		e, err = begin(ctx, tx, drainer, id)
		return err
	})
	if err != nil {
		return Receipt{}, fmt.Errorf("erase a contact: %w", err)
	}
	step := func(l listing, do func(ctx context.Context, tx *postgres.Tx) (int64, error)) (n int64, err error) {
		err = settle(ctx, db, tenant, func(ctx context.Context, tx *postgres.Tx) (err error) {
			if err := lockErasing(ctx, tx); err != nil {
				return err
			}
			if n, err = do(ctx, tx); err != nil {
				return fmt.Errorf("erase a contact's %s: %w", l.name, err)
			}
			return e.note(ctx, tx, l, n)
		})
		if progress != nil && err == nil {
			progress(n)
		}
		return n, err
	}
	for _, l := range listings {
		switch {
		case e.done:
		case l.erase == eraseBrowsed:
			err = e.browsed(func(do func(ctx context.Context, tx *postgres.Tx) (int64, error)) error {
				_, err := step(l, do)
				return err
			})
		default:
			for n := int64(1); n > 0 && err == nil && strings.Contains(l.erase, atMost); {
				n, err = step(l, func(ctx context.Context, tx *postgres.Tx) (int64, error) {
					return l.some(ctx, tx, e.contacts, erasedAtOnce)
				})
			}
		}
		if err != nil {
			return Receipt{}, err
		}
	}
	if !e.done {
		err = settle(ctx, db, tenant, func(ctx context.Context, tx *postgres.Tx) error { return e.end(ctx, tx, drainer) })
	}
	if err != nil {
		return Receipt{}, fmt.Errorf("erase a contact: %w", err)
	}
	return e.receipt, nil
}

// settle is InTenant for a transaction that may be the victim of a deadlock: others lock a contact before its rows, or after them.
func settle(ctx context.Context, db *postgres.DB, tenant string, f func(ctx context.Context, tx *postgres.Tx) error) error {
	for try := 1; ; try++ {
		err := db.InTenant(ctx, tenant, f)
		var pe *pgconn.PgError
		if try == 5 || !errors.As(err, &pe) || pe.Code != "40P01" {
			return err
		}
	}
}

// erasure is one that is under way, or over.
type erasure struct {
	id       int64
	contacts []int64 // which the person is
	rows     map[string]int64
	done     bool
	receipt  Receipt
}

// readErasure reads how far it is.
func readErasure(ctx context.Context, tx *postgres.Tx, id int64) (*erasure, error) {
	if tx.Tenant.Schema < ErasureSchema {
		return nil, fmt.Errorf("to erase contacts, tenant %s needs schema %d: %w", tx.Tenant.Name, ErasureSchema, postgres.ErrSchemaTooOld)
	}
	e := &erasure{id: id, rows: map[string]int64{}, receipt: Receipt{Rows: []Erased{}, Edit: []string{}}}
	var at *time.Time
	var noted, edit []byte
	err := tx.QueryRow(ctx, "SELECT erased_at, coalesce(erasure->'rows', '{}'), coalesce(erasure->'edit', '[]'), coalesce(erasure ? 'done', false) FROM contact WHERE id = $1 AND merged_into IS NULL", id).
		Scan(&at, &noted, &edit, &e.done)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, ErrGone
	}
	if err == nil {
		err = errors.Join(json.Unmarshal(noted, &e.rows), json.Unmarshal(edit, &e.receipt.Edit))
	}
	if err != nil {
		return nil, fmt.Errorf("read a contact: %w", err)
	}
	if e.contacts, err = contactsOf(ctx, tx, id); err != nil {
		return nil, err
	}
	keys, err := tx.Keys(ctx)
	if err != nil {
		return nil, err
	}
	r := &e.receipt
	r.Contact = hex.EncodeToString(keys.HashAddress(fmt.Sprintf("contact %d", id)))
	if at == nil {
		return e, nil
	}
	r.At, r.Before, r.Contacts = *at, e.done, int64(len(e.contacts))
	for _, l := range listings {
		r.add(l, e.rows[l.name])
	}
	return e, nil
}

func (r *Receipt) add(l listing, n int64) {
	if n > 0 {
		r.Rows = append(r.Rows, Erased{Tally{l.name, n}, l.stays})
	}
}

// begin makes the contact nobody, unless it is.
func begin(ctx context.Context, tx *postgres.Tx, drainer string, id int64) (*erasure, error) {
	// Whoever makes contacts at this moment, or found this one by its address, is let through first, and who comes after finds nobody.
	if err := lockErasing(ctx, tx); err != nil {
		return nil, err
	}
	if _, err := tx.Exec(ctx, "SELECT pg_advisory_xact_lock($1, $2)", makeLock, tx.Tenant.Number); err != nil {
		return nil, fmt.Errorf("lock contacts: %w", err)
	}
	if _, err := tx.Exec(ctx, "SELECT FROM contact WHERE id = $1 OR merged_into = $1 ORDER BY id FOR UPDATE", id); err != nil {
		return nil, fmt.Errorf("lock contacts: %w", err)
	}
	e, err := readErasure(ctx, tx, id)
	if err != nil || !e.receipt.At.IsZero() {
		return e, err
	}
	if err := e.documents(ctx, tx); err != nil {
		return nil, err
	}
	for _, l := range listings {
		if l.erase == "" || l.erase == eraseBrowsed || strings.Contains(l.erase, atMost) {
			continue
		}
		tag, err := tx.Exec(ctx, l.erase, e.contacts)
		if err != nil {
			return nil, fmt.Errorf("erase %s: %w", l.name, err)
		}
		if n := tag.RowsAffected(); n > 0 {
			e.rows[l.name] = n
		}
	}
	if err := e.suppress(ctx, tx); err != nil {
		return nil, err
	}
	if err := e.empty(ctx, tx); err != nil {
		return nil, err
	}
	w := &writer{drainer: drainer}
	if err := w.addSet("contact.erased", "", e.contacts, nil); err != nil {
		return nil, err
	}
	for chunk := range slices.Chunk(e.contacts, event.MaxItems) {
		w.ring = append(w.ring, event.ContactErased{Contacts: chunk})
	}
	return e, w.flush(ctx, tx)
}

// lockErasing lets one transaction at a time erase, so that of two who erase one contact the second sees what the first has done.
func lockErasing(ctx context.Context, tx *postgres.Tx) error {
	if _, err := tx.Exec(ctx, "SELECT pg_advisory_xact_lock($1, $2)", eraseLock, tx.Tenant.Number); err != nil {
		return fmt.Errorf("wait for others who erase: %w", err)
	}
	return nil
}

// documents notes in which documents in force an address of the person is written.
func (e *erasure) documents(ctx context.Context, tx *postgres.Tx) error {
	rows, err := tx.Query(ctx, "SELECT lower(e.kind) || ' ' || e.name FROM entity e JOIN document d ON d.id = e.current WHERE "+named("d.spec::text")+" ORDER BY 1", e.contacts)
	if err != nil {
		return fmt.Errorf("look for documents: %w", err)
	}
	if e.receipt.Edit, err = pgx.CollectRows(rows, pgx.RowTo[string]); err != nil {
		return fmt.Errorf("look for documents: %w", err)
	}
	return nil
}

// suppress keeps mail from the addresses for ever. The hash leads to no contact.
func (e *erasure) suppress(ctx context.Context, tx *postgres.Tx) error {
	keys, err := tx.Keys(ctx)
	if err != nil {
		return err
	}
	rows, err := tx.Query(ctx, "SELECT email FROM contact WHERE id = ANY ($1) AND email IS NOT NULL", e.contacts)
	if err != nil {
		return fmt.Errorf("suppress addresses: %w", err)
	}
	var hashes [][]byte
	var email string
	if _, err := pgx.ForEachRow(rows, []any{&email}, func() error { hashes = append(hashes, keys.HashAddress(email)); return nil }); err != nil {
		return fmt.Errorf("suppress addresses: %w", err)
	}
	if _, err := tx.Exec(ctx, `INSERT INTO suppression AS s (hash, reason) SELECT hash, 'erasure' FROM unnest($1::bytea[]) hash ORDER BY hash
		ON CONFLICT (hash, channel, reason) DO UPDATE SET until = excluded.until, at = excluded.at, contact = NULL, delivery = NULL`, hashes); err != nil {
		return fmt.Errorf("suppress addresses: %w", err)
	}
	return nil
}

// empty leaves of the contacts their numbers: every other column, whatever the schema has, is as of a contact of whom nothing is known.
func (e *erasure) empty(ctx context.Context, tx *postgres.Tx) error {
	var columns string
	err := tx.QueryRow(ctx, `SELECT string_agg(quote_ident(attname) || ' = DEFAULT', ', ') FROM pg_attribute
		WHERE attrelid = 'contact'::regclass AND attnum > 0 AND NOT attisdropped AND attname NOT IN ('id', 'created_at', 'merged_into', 'erased_at', 'erasure')`).Scan(&columns)
	if err != nil {
		return fmt.Errorf("read what a contact has: %w", err)
	}
	noted, err := json.Marshal(map[string]any{"rows": e.rows, "edit": e.receipt.Edit})
	if err != nil {
		return fmt.Errorf("encode a receipt: %w", err)
	}
	if _, err := tx.Exec(ctx, "UPDATE contact SET "+columns+", erased_at = onda.now(), erasure = CASE WHEN id = $2 THEN $3::jsonb END WHERE id = ANY ($1)", e.contacts, e.id, noted); err != nil {
		return fmt.Errorf("empty a contact: %w", err)
	}
	return nil
}

// some erases at most limit rows of those that a listing tells of.
func (l listing) some(ctx context.Context, tx *postgres.Tx, contacts []int64, limit int) (int64, error) {
	sql := fmt.Sprintf(l.erase, l.found)
	if tx.Tenant.Schema < FilesSchema {
		sql = strings.Replace(sql, ", files = NULL", "", 1)
	}
	tag, err := tx.Exec(ctx, sql, contacts, limit)
	return tag.RowsAffected(), err
}

// note adds to what is erased.
func (e *erasure) note(ctx context.Context, tx *postgres.Tx, l listing, n int64) error {
	if n == 0 {
		return nil
	}
	if _, err := tx.Exec(ctx, `UPDATE contact SET erasure = jsonb_set(erasure, ARRAY['rows', $2], to_jsonb(coalesce((erasure->'rows'->>$2)::bigint, 0) + $3)) WHERE id = $1`, e.id, l.name, n); err != nil {
		return fmt.Errorf("note what was erased: %w", err)
	}
	return nil
}

// browsed erases what the person's browsers did before they were known for its. No index leads there, so it goes through facts, the newest first, until they are older than its visitors, in
// steps.
func (e *erasure) browsed(step func(do func(ctx context.Context, tx *postgres.Tx) (int64, error)) error) error {
	const unknown, over = -1, 0
	hi := int64(unknown)
	for hi != over {
		next := hi // what a transaction that is tried again begins with stays
		err := step(func(ctx context.Context, tx *postgres.Tx) (n int64, err error) {
			if hi == unknown {
				err := tx.QueryRow(ctx, "SELECT coalesce((SELECT max(id) FROM fact WHERE EXISTS (SELECT FROM visitor WHERE contact = ANY ($1))), 0)", e.contacts).Scan(&hi)
				if next = hi; err != nil || hi == over {
					return 0, err
				}
			}
			lo := max(hi-browsedAtOnce, over)
			var before bool
			err = tx.QueryRow(ctx, "SELECT coalesce(max(at) < (SELECT min(first_at) FROM visitor WHERE contact = ANY ($1)) - interval '1 day', false) FROM fact WHERE id > $2 AND id <= $3", e.contacts, lo, hi).Scan(&before)
			if err != nil || before {
				next = over
				return 0, err
			}
			tag, err := tx.Exec(ctx, eraseBrowsed, e.contacts, lo, hi)
			if err != nil {
				return 0, err
			}
			next = lo
			return tag.RowsAffected(), nil
		})
		if err != nil {
			return err
		}
		hi = next
	}
	return nil
}

// end says that it is over, once.
func (e *erasure) end(ctx context.Context, tx *postgres.Tx, drainer string) error {
	if err := lockErasing(ctx, tx); err != nil {
		return err
	}
	now, err := readErasure(ctx, tx, e.id)
	if err != nil {
		return err
	}
	e.receipt = now.receipt
	e.receipt.Before = false
	if now.done {
		return nil
	}
	if _, err := tx.Exec(ctx, "UPDATE contact SET erasure = erasure || jsonb_build_object('done', onda.now()) WHERE id = $1", e.id); err != nil {
		return fmt.Errorf("note that a contact is erased: %w", err)
	}
	w := &writer{drainer: drainer}
	if err := w.addSet("contact.erased", "", e.contacts, map[string]any{"rows": now.rows}); err != nil {
		return err
	}
	return w.flush(ctx, tx)
}

// Forget erases what was written about contacts who were erased, or deleted, while that was done: a little of each kind, since there is little. Of those whose erasure is under way nothing: it
// counts what it erases. Nothing in it locks a contact.
func Forget(ctx context.Context, tx *postgres.Tx, contacts []int64) error {
	if tx.Tenant.Schema >= ErasureSchema {
		rows, err := tx.Query(ctx, `SELECT u.id FROM unnest($1::bigint[]) u(id) LEFT JOIN contact c ON c.id = u.id LEFT JOIN contact w ON w.id = coalesce(c.merged_into, c.id)
			WHERE w.id IS NULL OR w.erasure ? 'done'`, contacts)
		if err != nil {
			return fmt.Errorf("look for contacts who were erased: %w", err)
		}
		if contacts, err = pgx.CollectRows(rows, pgx.RowTo[int64]); err != nil {
			return fmt.Errorf("look for contacts who were erased: %w", err)
		}
	}
	for _, l := range listings {
		if len(contacts) == 0 || !strings.Contains(l.erase, atMost) {
			continue
		}
		if _, err := l.some(ctx, tx, contacts, erasedAtOnce); err != nil {
			return fmt.Errorf("forget %s of contacts who were erased: %w", l.name, err)
		}
	}
	return nil
}
