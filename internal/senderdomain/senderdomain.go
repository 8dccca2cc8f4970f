// Package senderdomain keeps what is known of the domains that a tenant's emails are from: which version of a Domain document a check found right, and the keys that Onda signs
// with. Once a tenant has a Domain, mails are sent from verified ones only; a tenant without any sends as it likes.
//
// Invariant: mails go by the version that was found right. A newer one that nobody has checked yet changes nothing, so that a document may be applied before DNS is.
package senderdomain

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/spec"
)

// Fresh is for how long a check is relied on when a campaign is started. What runs already, and transactional mail, goes on after it: nobody should miss a password because
// nobody ran a command.
const Fresh = 30 * 24 * time.Hour

// ErrUnknown says that there is no Domain document of the name.
var ErrUnknown = errors.New("there is no such Domain")

// Set are a tenant's Domain documents in force, as of one moment.
type Set struct {
	rows        []row
	development bool
	now         time.Time
}

type row struct {
	entity     int32
	name       string
	document   int64
	stored     []byte
	verified   *int64 // nil: no version was found right
	found      []byte // that version
	verifiedAt *time.Time
}

// Queue asks for the set with others in one round trip; it is filled as the batch is read.
func Queue(tx *postgres.Tx, b *pgx.Batch, into *Set) {
	into.now = tx.Now()
	// What entity does not have before migration 4 is found in absent.
	b.Queue(`SELECT e.id, e.name, e.current, d.spec, e.verified, v.spec, e.verified_at, (SELECT development FROM onda.database)
		FROM (SELECT NULL::bigint AS verified, NULL::timestamptz AS verified_at) AS absent,
		     LATERAL (SELECT id, name, current, verified, verified_at FROM entity WHERE kind = 'Domain' AND current IS NOT NULL) AS e
		     JOIN document d ON d.id = e.current LEFT JOIN document v ON v.id = e.verified ORDER BY e.name`).Query(func(rows pgx.Rows) error {
		var r row
		_, err := pgx.ForEachRow(rows, []any{&r.entity, &r.name, &r.document, &r.stored, &r.verified, &r.found, &r.verifiedAt, &into.development}, func() error {
			into.rows = append(into.rows, r)
			r = row{}
			return nil
		})
		if err != nil {
			return fmt.Errorf("read sender domains: %w", err)
		}
		return nil
	})
}

// Read reads the set.
func Read(ctx context.Context, tx *postgres.Tx) (Set, error) {
	var s Set
	b := &pgx.Batch{}
	Queue(tx, b, &s)
	return s, tx.SendBatch(ctx, b).Close()
}

// Stamp is another one whenever something else than before may be found in the set.
func (s Set) Stamp() string {
	var b strings.Builder
	for _, r := range s.rows {
		b.WriteString(strconv.FormatInt(int64(r.entity), 36))
		if r.verified != nil && r.verifiedAt != nil {
			b.WriteString(":" + strconv.FormatInt(*r.verified, 36) + ":" + strconv.FormatInt(r.verifiedAt.UnixNano(), 36))
		}
		b.WriteByte(' ')
	}
	if s.development {
		b.WriteString("development")
	}
	return b.String()
}

// Verified gives what a check found right of a domain, nil where that is nothing.
func (s Set) Verified(domain string) (*spec.Domain, error) {
	for _, r := range s.rows {
		if r.found == nil {
			continue
		}
		d, err := spec.DecodeAs[*spec.Domain](spec.KindDomain, r.found)
		if err != nil {
			return nil, err
		}
		if d.Domain == domain {
			return d, nil
		}
	}
	return nil, nil
}

// Refuses tells whether mails from a domain that was not found right are refused: not where there is no Domain at all, and not in development, where nobody publishes
// anything.
func (s Set) Refuses() bool { return len(s.rows) > 0 && !s.development }

// problem says what keeps mails from a domain from being sent, or a campaign of them from being started; "" for nothing. It does not look at whether this is development.
func (s Set) problem(domain string) (string, error) {
	d, err := s.Verified(domain)
	if err != nil || len(s.rows) == 0 {
		return "", err
	}
	for _, r := range s.rows {
		inForce, err := spec.DecodeAs[*spec.Domain](spec.KindDomain, r.stored)
		switch {
		case err != nil:
			return "", err
		case inForce.Domain != domain:
		case d == nil:
			return fmt.Sprintf("%s is not verified: onda domain check %s tells what is missing", domain, r.name), nil
		case s.now.Sub(*r.verifiedAt) > Fresh:
			return fmt.Sprintf("%s was last verified on %s: onda domain check %s looks again", domain, r.verifiedAt.Format(time.DateOnly), r.name), nil
		}
	}
	if d == nil {
		return fmt.Sprintf("no Domain document is of %s: apply one, and verify it with onda domain check", domain), nil
	}
	return "", nil
}

// Unverified says, an email a line, what is wrong with the domains that emails in force are from: of these, or of all where none is named.
func Unverified(ctx context.Context, tx *postgres.Tx, emails ...string) ([]string, error) {
	s, err := Read(ctx, tx)
	if err != nil || len(s.rows) == 0 {
		return nil, err
	}
	rows, err := tx.Query(ctx, `SELECT e.name, d.spec -> 'spec' ->> 'from' FROM entity e JOIN document d ON d.id = e.current
		WHERE e.kind = 'Email' AND (cardinality($1::text[]) = 0 OR e.name = ANY ($1)) ORDER BY e.name`, append([]string{}, emails...))
	if err != nil {
		return nil, fmt.Errorf("read what emails are from: %w", err)
	}
	var out []string
	var name, from string
	_, err = pgx.ForEachRow(rows, []any{&name, &from}, func() error {
		domain, err := DomainOf(from)
		if err != nil {
			return fmt.Errorf("email %s: %w", name, err)
		}
		why, err := s.problem(domain)
		if why != "" {
			out = append(out, fmt.Sprintf("the email %s: %s", name, why))
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read what emails are from: %w", err)
	}
	return out, nil
}

// Domain is a Domain document in force.
type Domain struct {
	*spec.Domain
	// VerifiedAt is when a check last found a version of it right, zero for never.
	VerifiedAt time.Time

	entity   int32
	document int64
}

// Find gives the document of a name; a domain is a name too. ErrUnknown.
func Find(ctx context.Context, tx *postgres.Tx, name string) (Domain, error) {
	s, err := Read(ctx, tx)
	if err != nil {
		return Domain{}, err
	}
	for _, r := range s.rows {
		d, err := spec.DecodeAs[*spec.Domain](spec.KindDomain, r.stored)
		if err != nil {
			return Domain{}, err
		}
		if ascii, err := spec.ASCIIDomain(name); d.Name != name && (err != nil || d.Domain != ascii) {
			continue
		}
		found := Domain{Domain: d, entity: r.entity, document: r.document}
		if r.verifiedAt != nil {
			found.VerifiedAt = *r.verifiedAt
		}
		return found, nil
	}
	return Domain{}, fmt.Errorf("domain %q: %w", name, ErrUnknown)
}

// Checked records what a check found: that all which mails need is right, or that it is not, which takes nothing away; and which keys are published (by DKIMKey.Name). Of each
// algorithm the newest published one signs, and those before it are retired; they come back.
func (d Domain) Checked(ctx context.Context, tx *postgres.Tx, right bool, published []string) (retired []string, err error) {
	if right {
		if _, err := tx.Exec(ctx, "UPDATE entity SET verified = $2, verified_at = onda.now() WHERE id = $1", d.entity, d.document); err != nil {
			return nil, fmt.Errorf("record that %s is verified: %w", d.Domain.Domain, err)
		}
	}
	if len(published) == 0 || !right {
		return nil, nil // who signs changes with verified_at, which tells whoever keeps a signer
	}
	if _, err := tx.Exec(ctx, "UPDATE key SET published_at = onda.now() WHERE kind = 'dkim' AND name = ANY ($1) AND published_at IS NULL", published); err != nil {
		return nil, fmt.Errorf("record that keys are published: %w", err)
	}
	keys, err := Keys(ctx, tx, d.Domain.Domain)
	if err != nil {
		return nil, err
	}
	signs := newest(keys)
	for _, k := range keys {
		switch s, ok := signs[k.Algorithm()]; {
		case !ok: // it, or a later one
		case s.Name() == k.Name():
			delete(signs, k.Algorithm())
		default:
			retired = append(retired, k.Name())
		}
	}
	if _, err := tx.Exec(ctx, "UPDATE key SET retired_at = onda.now() WHERE kind = 'dkim' AND name = ANY ($1)", retired); err != nil {
		return nil, fmt.Errorf("retire keys: %w", err)
	}
	return retired, nil
}
