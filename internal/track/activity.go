package track

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/onda-run/onda/internal/contact"
	"github.com/onda-run/onda/internal/event"
	"github.com/onda-run/onda/internal/fieldvalue"
	"github.com/onda-run/onda/internal/fn"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/spec"
)

// visitor is a browser that is known by its anonymousId.
type visitor struct {
	id      int64
	contact int64 // it is attached to, 0: none
	web     bool  // who has granted tracking.web
}

// writeActivities stores activities: contacts, visitors and facts, in a few statements for all.
func (t *Tracker) writeActivities(ctx context.Context, tx *postgres.Tx, all []activity) error {
	for _, a := range all {
		*a.activityResult = activityResult{}
	}
	fresh, err := unrepeated(ctx, tx, all)
	if err != nil {
		return err
	}
	users, err := writeUsers(ctx, tx, fresh)
	if err != nil {
		return err
	}
	fresh = slices.DeleteFunc(fresh, func(a activity) bool { return a.err != nil })
	clickers, err := readClickers(ctx, tx, fresh)
	if err != nil {
		return err
	}
	visitors, err := writeVisitors(ctx, tx, fresh, users, clickers)
	if err != nil {
		return err
	}
	if err := tx.EnsurePartitionsLately(ctx); err != nil { // facts of visitors may come in faster than campaign comes by
		return err
	}
	return writeActivityFacts(ctx, tx, fresh, users, visitors)
}

// MessageSchema is the tenant migration from which on messages are remembered in a table of their own; before it, in allowance.
const MessageSchema = 12

// messageKey is how a message is remembered. What it says of its id is the same as what was kept in allowance.
func messageKey(id string) (key [16]byte) {
	sum := sha256.Sum256([]byte(id))
	copy(key[:15], sum[:])
	return key
}

// unrepeated leaves out the messages whose id came before, within two days: an id is reserved in the transaction that stores what it said, and a second one that has it waits until
// the first is over.
func unrepeated(ctx context.Context, tx *postgres.Tx, all []activity) ([]activity, error) {
	keys := make([][16]byte, len(all))
	var ask [][16]byte
	for i, a := range all {
		if a.id != "" {
			keys[i] = messageKey(a.id)
			ask = append(ask, keys[i])
		}
	}
	if len(ask) == 0 {
		return slices.Clone(all), nil
	}
	slices.SortFunc(ask, func(x, y [16]byte) int { return bytes.Compare(x[:], y[:]) }) // two at once wait for each other in one order
	granted, err := reserve(ctx, tx, slices.Compact(ask))
	if err != nil {
		return nil, fmt.Errorf("look for repeated messages: %w", err)
	}
	if len(granted) > 0 {
		tx.Wake("track", tx.Now().Add(keepMessages))
	}
	left := make(map[[16]byte]bool, len(granted))
	for _, key := range granted {
		left[key] = true
	}
	out := make([]activity, 0, len(all))
	for i, a := range all {
		if a.id == "" || left[keys[i]] {
			out = append(out, a)
			left[keys[i]] = false // also within one commit
		}
	}
	return out, nil
}

// reserve notes that messages came, and gives those that had not.
func reserve(ctx context.Context, tx *postgres.Tx, keys [][16]byte) ([][16]byte, error) {
	if tx.Tenant.Schema < MessageSchema {
		return reserveAllowances(ctx, tx, keys)
	}
	if len(keys) >= copied {
		if ok, err := copyMessages(ctx, tx, keys); ok || err != nil {
			return keys, err
		}
	}
	// Those in allowance came before the migration, or to a process that is older: once there are none, one look tells so of all.
	rows, err := tx.Query(ctx, `INSERT INTO message (id, at) SELECT m, onda.now() FROM unnest($1::uuid[]) m
		 WHERE NOT ((SELECT EXISTS (SELECT FROM allowance WHERE kind > 'message:' AND kind < 'message;')) AND EXISTS (SELECT FROM allowance a WHERE a.contact = 0
			AND a.kind = 'message:' || translate(encode(substring(uuid_send(m) FOR 15), 'base64'), '+/', '-_') AND a.period >= date_trunc('day', onda.now(), 'UTC') - interval '1 day'))
		ON CONFLICT DO NOTHING RETURNING id`, keys)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[[16]byte])
}

// copied is from how many messages on COPY takes less than the statement that looks for repeated ones.
const copied = 50

// copyMessages notes messages none of which came before, as most are; ok is false where one did, or may have, and then nothing is noted.
func copyMessages(ctx context.Context, tx *postgres.Tx, keys [][16]byte) (ok bool, err error) {
	var old bool
	b := &pgx.Batch{}
	b.Queue("SELECT EXISTS (SELECT FROM allowance WHERE kind > 'message:' AND kind < 'message;')").QueryRow(func(row pgx.Row) error { return row.Scan(&old) })
	b.Queue("SAVEPOINT messages") // which ends with the transaction
	if err := tx.SendBatch(ctx, b).Close(); err != nil || old {
		return false, err
	}
	err = tx.Copy(ctx, "message", []string{"id", "at"}, len(keys), func(i int, r *postgres.CopyRow) {
		r.UUID(keys[i])
		r.Time(tx.Now())
	})
	var pe *pgconn.PgError
	if errors.As(err, &pe) && pe.Code == "23505" { // unique_violation
		_, err = tx.Exec(ctx, "ROLLBACK TO SAVEPOINT messages")
		return false, err
	}
	return err == nil, err
}

func reserveAllowances(ctx context.Context, tx *postgres.Tx, keys [][16]byte) ([][16]byte, error) {
	kinds, of := make([]string, len(keys)), make(map[string][16]byte, len(keys))
	for i, key := range keys {
		kinds[i] = "message:" + base64.RawURLEncoding.EncodeToString(key[:15])
		of[kinds[i]] = key
	}
	// Each is looked up by itself, with a LIMIT, so that the plan goes by the index: a join may be planned while the table is small, and read all of it ever after.
	rows, err := tx.Query(ctx, `INSERT INTO allowance (kind, contact, period, n)
		SELECT m, 0, date_trunc('day', onda.now(), 'UTC'), 1 FROM unnest($1::text[]) m
		  LEFT JOIN LATERAL (SELECT true AS came FROM allowance a WHERE a.kind = m AND a.contact = 0 AND a.period >= date_trunc('day', onda.now(), 'UTC') - interval '1 day' LIMIT 1) a ON true
		 WHERE came IS NULL ORDER BY 1 ON CONFLICT DO NOTHING RETURNING kind`, kinds)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (key [16]byte, err error) {
		var kind string
		err = row.Scan(&kind)
		return of[kind], err
	})
}

// writeUsers finds or makes the contacts that programs named, and writes what identify says of them.
func writeUsers(ctx context.Context, tx *postgres.Tx, all []activity) (map[string]int64, error) {
	var rows []contact.Row
	var of []int // the activity of a row
	named := map[string]bool{}
	var fields map[string]*spec.Field
	for i, a := range all {
		if a.kind != typeIdentify {
			continue
		}
		if fields == nil {
			var err error
			if fields, err = readFields(ctx, tx); err != nil {
				return nil, err
			}
		}
		row := contact.Row{ExternalID: a.user}
		row.Email, row.Fields, a.ignored, a.err = traitsOf(a.traits, fields)
		if a.err == nil {
			rows, of = append(rows, row), append(of, i)
			named[a.user] = true
		}
	}
	users, err := knownUsers(ctx, tx, all, named)
	if err != nil {
		return nil, err
	}
	for i, a := range all {
		if a.user != "" && a.err == nil && !named[a.user] && users[a.user] == 0 {
			rows, of = append(rows, contact.Row{ExternalID: a.user, OnlyNew: true}), append(of, i) // nothing is said of it
			named[a.user] = true
		}
	}
	if len(rows) == 0 {
		return users, nil
	}
	results, err := contact.Upsert(ctx, tx, "track", rows, "identify")
	if err != nil {
		return nil, err
	}
	for k, r := range results {
		if r.Err != nil {
			all[of[k]].err = fn.Permanent(r.Err)
			continue
		}
		users[rows[k].ExternalID] = r.Contact
	}
	return users, nil
}

// knownUsers are the contacts of whom nothing is said but what they did: most are there, and are looked up without a lock.
func knownUsers(ctx context.Context, tx *postgres.Tx, all []activity, identified map[string]bool) (map[string]int64, error) {
	users := map[string]int64{}
	var ask []string
	for _, a := range all {
		if _, asked := users[a.user]; a.user != "" && a.err == nil && !identified[a.user] && !asked {
			users[a.user] = 0
			ask = append(ask, a.user)
		}
	}
	if len(ask) == 0 {
		return users, nil
	}
	rows, err := tx.Query(ctx, "SELECT external_id, coalesce(merged_into, id) FROM contact WHERE external_id = ANY ($1)", ask)
	if err != nil {
		return nil, fmt.Errorf("look for contacts: %w", err)
	}
	var user string
	var id int64
	if _, err := pgx.ForEachRow(rows, []any{&user, &id}, func() error { users[user] = id; return nil }); err != nil {
		return nil, fmt.Errorf("look for contacts: %w", err)
	}
	return users, nil
}

func readFields(ctx context.Context, tx *postgres.Tx) (map[string]*spec.Field, error) {
	rows, err := tx.Query(ctx, "SELECT d.spec FROM entity e JOIN document d ON d.id = e.current WHERE e.kind = $1", spec.KindField)
	if err != nil {
		return nil, fmt.Errorf("read fields: %w", err)
	}
	docs, err := pgx.CollectRows(rows, pgx.RowTo[[]byte])
	if err != nil {
		return nil, fmt.Errorf("read fields: %w", err)
	}
	out := map[string]*spec.Field{}
	for _, d := range docs {
		f, err := spec.DecodeAs[*spec.Field](spec.KindField, d)
		if err != nil {
			return nil, err
		}
		out[f.Name] = f
	}
	return out, nil
}

// traitsOf reads traits as a contact's fields: firstName is the field first_name where there is no firstName. Traits that are no fields are given back.
func traitsOf(traits map[string]any, fields map[string]*spec.Field) (email string, values map[string]any, ignored []string, err error) {
	values = map[string]any{}
	for name, v := range traits {
		if name == "email" {
			s, ok := v.(string)
			if !ok {
				return "", nil, nil, bad("traits.email must be a text")
			}
			email = s
			continue
		}
		f := fields[name]
		if f == nil {
			f = fields[snake(name)]
		}
		if f == nil {
			ignored = append(ignored, name)
			continue
		}
		value, err := fieldvalue.FromJSON(f, v)
		if err != nil {
			return "", nil, nil, bad("traits.%s %w", f.Name, err)
		}
		values[f.Name] = value
	}
	slices.Sort(ignored)
	return email, values, ignored, nil
}

// snake writes firstName as first_name.
func snake(s string) string {
	var b strings.Builder
	for i, c := range s {
		if unicode.IsUpper(c) && i > 0 {
			b.WriteByte('_')
		}
		b.WriteRune(unicode.ToLower(c))
	}
	return b.String()
}

// writeVisitors finds or makes the visitors, notes that they were here, and attaches those to contacts of whom a program says so, or who came by a contact's click.
func writeVisitors(ctx context.Context, tx *postgres.Tx, all []activity, users map[string]int64, clickers map[click]int64) (map[string]visitor, error) {
	attach := map[string]int64{}
	for _, a := range all {
		if a.visitor != "" {
			attach[a.visitor] = max(attach[a.visitor], clickers[click{a.delivery, a.link}])
		}
		if a.kind == typeIdentify && a.visitor != "" {
			attach[a.visitor] = users[a.user]
		}
		if a.kind == typeAlias {
			attach[a.previous] = users[a.user]
		}
	}
	return attachVisitors(ctx, tx, attach)
}

// attachVisitors finds or makes visitors by their keys, and attaches them to the contacts given (0 leaves it as it is).
func attachVisitors(ctx context.Context, tx *postgres.Tx, attach map[string]int64) (map[string]visitor, error) {
	out := map[string]visitor{}
	if len(attach) == 0 {
		return out, nil
	}
	var keys []string
	var contacts []int64
	for k := range attach {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for _, k := range keys {
		contacts = append(contacts, attach[k])
	}
	// A visitor's row is not written at each of its events: an hour is precise enough for 30 days.
	_, err := tx.Exec(ctx, `INSERT INTO visitor AS v (key, contact) SELECT k, nullif(c, 0) FROM unnest($1::text[], $2::bigint[]) u(k, c) ORDER BY k
		ON CONFLICT (key) DO UPDATE SET last_at = onda.now(), contact = coalesce(excluded.contact, v.contact)
		WHERE v.last_at < onda.now() - interval '1 hour' OR excluded.contact IS NOT NULL AND excluded.contact IS DISTINCT FROM v.contact`, keys, contacts)
	if err != nil {
		return nil, fmt.Errorf("write visitors: %w", err)
	}
	rows, err := tx.Query(ctx, `SELECT v.key, v.id, coalesce(c.merged_into, c.id, 0), EXISTS (
		SELECT FROM subscription s WHERE s.contact = coalesce(c.merged_into, c.id) AND s.purpose = 'tracking.web' AND s.state = 'granted')
		FROM visitor v LEFT JOIN contact c ON c.id = v.contact AND c.erased_at IS NULL WHERE v.key = ANY ($1)`, keys)
	if err != nil {
		return nil, fmt.Errorf("read visitors: %w", err)
	}
	var key string
	var v visitor
	if _, err := pgx.ForEachRow(rows, []any{&key, &v.id, &v.contact, &v.web}, func() error { out[key] = v; return nil }); err != nil {
		return nil, fmt.Errorf("read visitors: %w", err)
	}
	return out, nil
}

// writeActivityFacts writes the facts, and rings their doorbells. What a browser does is told of a contact only where that has granted tracking.web; what a program says of a user is the
// customer's own record of its customer.
func writeActivityFacts(ctx context.Context, tx *postgres.Tx, all []activity, users map[string]int64, visitors map[string]visitor) error {
	facts := make([]postgres.Fact, 0, len(all))
	items := map[string][]event.Activity{}
	for _, a := range all {
		f := postgres.Fact{Name: a.name, Contact: users[a.user], Data: []byte(a.properties), At: tx.Now().Add(-a.ago)}
		if v, ok := visitors[a.visitor]; ok {
			f.Visitor = v.id
			if f.Contact == 0 && v.web {
				f.Contact = v.contact
			}
		}
		switch a.kind {
		case typePage, typeScreen:
			f.Kind = "page.viewed"
		case typeTrack:
			f.Kind = "event.tracked"
		default: // identify, alias
			f.Kind, f.Name, f.Data = "contact.identified", "", nil
			if len(a.ignored) > 0 {
				b, err := json.Marshal(map[string]any{"ignored": a.ignored})
				if err != nil {
					return fmt.Errorf("encode fact %s: %w", f.Kind, err)
				}
				f.Data = b
			}
		}
		facts = append(facts, f)
		items[f.Kind] = append(items[f.Kind], event.Activity{Contact: f.Contact, Name: f.Name})
	}
	if err := tx.AddFacts(ctx, facts...); err != nil {
		return err
	}
	if len(visitors) > 0 {
		tx.Wake("track", tx.Now().Add(30*24*time.Hour))
	}
	ids := make([]string, 0, len(all))
	for _, a := range all {
		ids = append(ids, a.id)
	}
	return ringActivities(ctx, tx, items, ids)
}

// maxNames is how many bytes the names in one doorbell have, so that it is no larger than an event may be: JSON may take six bytes for one.
const maxNames = 6 << 10

// ringActivities rings the doorbells of facts, as few as there may be.
func ringActivities(ctx context.Context, tx *postgres.Tx, items map[string][]event.Activity, ids []string) error {
	for _, kind := range []string{"contact.identified", "event.tracked", "page.viewed"} {
		for rest := items[kind]; len(rest) > 0; {
			n, names := 0, 0
			for n < min(len(rest), event.MaxItems) && (n == 0 || names+len(rest[n].Name) <= maxNames) {
				names += len(rest[n].Name)
				n++
			}
			a := event.Activities{Items: rest[:n]}
			rest = rest[n:]
			var data event.Data
			switch kind {
			case "page.viewed":
				data = event.PageViewed{Activities: a}
			case "event.tracked":
				data = event.EventTracked{Activities: a}
			default:
				data = event.ContactIdentified{Activities: a}
			}
			if err := ring(ctx, tx, data, ids...); err != nil {
				return err
			}
		}
	}
	return nil
}
