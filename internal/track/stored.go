package track

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/onda-run/onda/internal/contact"
	"github.com/onda-run/onda/internal/delivery"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/spec"
	"github.com/onda-run/onda/internal/token"
)

const (
	// copyLife is how long the link to a copy of everything is good.
	copyLife = time.Hour
	// maxCopies is how many mails with such a link a contact gets in a day: a link that was passed on must not be a way to annoy somebody.
	maxCopies = 3
	// copyDomain separates the MAC of such a link from all else that is signed with a tenant's key.
	copyDomain = "onda copy moment 1\x00"
	// copyTime bounds the transaction of a copy, and with it how long somebody may take to load it.
	copyTime = 8 * time.Second
)

// errCopies says that the contact got its mails of the day.
var errCopies = errors.New("too many copies were asked for")

// copyMAC proves that a link was mailed to a contact in that second.
func copyMAC(key token.Key, tenant int32, contact, second int64) []byte {
	m := hmac.New(sha256.New, key.Secret)
	_, _ = fmt.Fprintf(m, "%s%d %d %d", copyDomain, tenant, contact, second)
	return m.Sum(nil)[:12]
}

// copyProof is what the link to a contact's copy has in it.
func copyProof(key token.Key, tenant int32, contact int64, at time.Time) string {
	return strconv.FormatInt(at.Unix(), 36) + "-" + base64.RawURLEncoding.EncodeToString(copyMAC(key, tenant, contact, at.Unix()))
}

// copyProven tells whether a link with this in it was mailed to the contact, and is good still.
func copyProven(proof string, keys token.Keys, tenant int32, contact int64, now time.Time) bool {
	number, sum, _ := strings.Cut(proof, "-")
	second, err := strconv.ParseInt(number, 36, 64)
	if err != nil {
		return false
	}
	mac, err := base64.RawURLEncoding.Strict().DecodeString(sum)
	if err != nil {
		return false
	}
	ok := false
	for _, k := range keys {
		ok = ok || hmac.Equal(mac, copyMAC(k, tenant, contact, second))
	}
	return ok && now.Sub(time.Unix(second, 0)) <= copyLife
}

// askForCopy mails a contact the link to a copy of everything: to the address itself, since whoever has the page's link may be somebody else. Asking twice in a minute is asking once.
// errCopies says that there were enough, errNotFound that there is nobody, or no mail for it.
func (t *Tracker) askForCopy(ctx context.Context, tx *postgres.Tx, c token.Claims, tok string) error {
	p, err := readPerson(ctx, tx, c.Contact)
	if err != nil {
		return err
	}
	if p.contact == 0 {
		return errNotFound
	}
	settings, err := contact.Settings(ctx, tx)
	if err != nil {
		return err
	}
	if settings.Copy == "" {
		return errNotFound
	}
	keys, err := tx.Keys(ctx)
	if err != nil {
		return err
	}
	minute := tx.Now().Truncate(time.Minute)
	url := fmt.Sprintf("%s/p/%s/copy?s=%s", tx.Tenant.LinkURL(t.cfg.Compose.LinkURL), tok, copyProof(keys.Signing, tx.Tenant.Number, p.contact, minute))
	_, repeated, err := delivery.Request(ctx, tx, "track", delivery.TransactionalMail{
		Email: settings.Copy, Contact: p.contact, Key: fmt.Sprintf("copy:%d:%d", p.contact, minute.Unix()), Cause: "preferences", Data: map[string]any{"url": url},
	})
	if repeated || errors.Is(err, delivery.ErrKeyReused) { // by another link of the same contact
		return nil
	}
	if err != nil {
		return fmt.Errorf("mail the link to a copy: %w", err)
	}
	day := delivery.Limit{Kind: "copy", Period: tx.Now().Truncate(24 * time.Hour), Count: maxCopies}
	granted, err := delivery.Reserve(ctx, tx, []delivery.Limit{day}, []int64{p.contact})
	if err == nil && len(granted) == 0 {
		return errCopies
	}
	return err
}

// told is a line of what is stored.
type told struct{ Name, Value string }

// summary is what the page tells of what is stored of a contact.
type summary struct {
	person
	since    time.Time
	fields   []told // of personal ones no value
	consents []consented
	mails    []mailed // the last ones
	hits     map[string]int
	facts    map[string]int
	sent     int
	forms    int
	visitors int
	segments int
	until    *time.Time // of a suppression; in the year 9999 for ever
	byMail   bool       // there is a mail for the copy
}

// consented is the present state of a consent.
type consented struct {
	purpose, basis string
	state          contact.State
	at             time.Time
}

// mailed is a mail that was sent.
type mailed struct {
	title string
	at    time.Time
}

// readMask reads what of a contact may be told to whoever has a link of it.
func readMask(ctx context.Context, tx *postgres.Tx, p person) (contact.Mask, map[string]*spec.Field, error) {
	fields, err := readFields(ctx, tx)
	if err != nil {
		return contact.Mask{}, nil, err
	}
	m := contact.Mask{Address: p.address, Fields: []string{}}
	for name, f := range fields {
		if !f.Personal {
			m.Fields = append(m.Fields, name)
		}
	}
	return m, fields, nil
}

// readStored reads the page: counts, and the last few of what may be many.
func readStored(ctx context.Context, tx *postgres.Tx, c token.Claims) (s summary, err error) {
	if s.person, err = readPerson(ctx, tx, c.Contact); err != nil || s.contact == 0 {
		return s, err
	}
	settings, err := contact.Settings(ctx, tx)
	if err != nil {
		return s, err
	}
	mask, fields, err := readMask(ctx, tx, s.person)
	if err != nil {
		return s, err
	}
	s.byMail = settings.Copy != ""
	var values []byte
	var reachable bool
	err = tx.QueryRow(ctx, `SELECT c.created_at, c.fields, c.email IS NOT NULL, (SELECT count(*) FROM submission WHERE contact = c.id), (SELECT count(*) FROM visitor WHERE contact = c.id),
		(SELECT count(*) FROM member WHERE contact = c.id AND kept <> 'out'), (SELECT count(*) FROM delivery WHERE contact = c.id AND state = 'sent'),
		(SELECT least(max(until), '9999-01-01') FROM suppression WHERE contact = c.id AND until > onda.now()) FROM contact c WHERE c.id = $1`, s.contact).
		Scan(&s.since, &values, &reachable, &s.forms, &s.visitors, &s.segments, &s.sent, &s.until)
	if err != nil {
		return s, fmt.Errorf("read what is stored of a contact: %w", err)
	}
	s.byMail = s.byMail && reachable
	s.fields = tellFields(values, fields, mask.Fields)
	rows, err := tx.Query(ctx, "SELECT s.purpose, s.state, s.at, c.basis FROM subscription s JOIN consent c ON c.id = s.consent WHERE s.contact = $1 ORDER BY s.purpose", s.contact)
	if err != nil {
		return s, fmt.Errorf("read consents: %w", err)
	}
	var line consented
	if _, err = pgx.ForEachRow(rows, []any{&line.purpose, &line.state, &line.at, &line.basis}, func() error { s.consents = append(s.consents, line); return nil }); err != nil {
		return s, fmt.Errorf("read consents: %w", err)
	}
	rows, err = tx.Query(ctx, `SELECT coalesce(d.spec #>> '{metadata,title}', e.name), m.at FROM (SELECT id, at FROM delivery WHERE contact = $1 AND state = 'sent' ORDER BY contact DESC, id DESC LIMIT 5) m
		JOIN batch b ON b.id = m.id >> 9 JOIN document d ON d.id = b.email JOIN entity e ON e.id = d.entity ORDER BY m.id DESC`, s.contact)
	if err != nil {
		return s, fmt.Errorf("read the last mails: %w", err)
	}
	var mail mailed
	if _, err = pgx.ForEachRow(rows, []any{&mail.title, &mail.at}, func() error { s.mails = append(s.mails, mail); return nil }); err != nil {
		return s, fmt.Errorf("read the last mails: %w", err)
	}
	s.hits, s.facts = map[string]int{}, map[string]int{}
	var kind string
	var n int
	for _, count := range []struct {
		sql  string
		into map[string]int
	}{
		{"SELECT h.kind, count(*) FROM delivery m JOIN hit h ON h.delivery = m.id AND h.delivery > 0 WHERE m.contact = $1 AND h.contact = $1 GROUP BY 1", s.hits},
		{"SELECT kind, count(*) FROM fact WHERE contact = $1 AND kind IN ('page.viewed', 'event.tracked') GROUP BY 1", s.facts},
	} {
		rows, err := tx.Query(ctx, count.sql, s.contact)
		if err != nil {
			return s, fmt.Errorf("count what is stored of a contact: %w", err)
		}
		if _, err := pgx.ForEachRow(rows, []any{&kind, &n}, func() error { count.into[kind] = n; return nil }); err != nil {
			return s, fmt.Errorf("count what is stored of a contact: %w", err)
		}
	}
	return s, nil
}

// tellFields gives the fields that have a value, by their titles; the values of those alone that are named.
func tellFields(stored []byte, fields map[string]*spec.Field, open []string) []told {
	var values map[string]any
	_ = json.Unmarshal(stored, &values) // of Postgres
	var out []told
	for name, v := range values {
		line := told{Name: name, Value: "…"}
		if f := fields[name]; f != nil {
			line.Name = f.DisplayTitle()
		}
		if slices.Contains(open, name) {
			if line.Value = fmt.Sprint(v); line.Value == "" {
				continue
			}
			if list, ok := v.([]any); ok {
				line.Value = strings.Trim(fmt.Sprint(list), "[]")
			}
		}
		out = append(out, line)
	}
	slices.SortFunc(out, func(a, b told) int { return strings.Compare(a.Name, b.Name) })
	return out
}
