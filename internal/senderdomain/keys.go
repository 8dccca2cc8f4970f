package senderdomain

import (
	"context"
	"errors"
	"fmt"
	netmail "net/mail"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/onda-run/onda/internal/mail"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/spec"
)

// ErrSelectorTaken says that a domain has, or had, a key of a selector: receivers keep its record for a while.
var ErrSelectorTaken = errors.New("the selector is taken")

// Key is a DKIM key of a tenant that is not retired.
type Key struct {
	mail.DKIMKey
	// PublishedAt is when a check saw it in DNS, zero for not yet.
	PublishedAt time.Time
}

// Keys gives the keys of a domain that are not retired, the oldest first. A row that holds no key is an error that names it.
func Keys(ctx context.Context, tx *postgres.Tx, domain string) ([]Key, error) {
	suffix := mail.DKIMName("", domain)
	// The later one has the smaller id: see AddKeys.
	rows, err := tx.Query(ctx, `SELECT k.name, k.secret, k.published_at FROM (SELECT NULL::timestamptz AS published_at) AS absent,
		LATERAL (SELECT id, name, secret, created_at, published_at FROM key WHERE kind = 'dkim' AND right(name, length($1)) = $1 AND retired_at IS NULL) AS k ORDER BY k.created_at, k.id DESC`, suffix)
	if err != nil {
		return nil, fmt.Errorf("read DKIM keys of %s: %w", domain, err)
	}
	var out []Key
	var name string
	var private []byte
	var published *time.Time
	_, err = pgx.ForEachRow(rows, []any{&name, &private, &published}, func() error {
		k, err := mail.ReadDKIMKey(domain, strings.TrimSuffix(name, suffix), private)
		if err != nil {
			return err
		}
		key := Key{DKIMKey: k}
		if published != nil {
			key.PublishedAt = *published
		}
		out = append(out, key)
		private, published = nil, nil
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read DKIM keys of %s: %w (put the row back from a backup, or delete it and make another with onda domain key)", domain, err)
	}
	return out, nil
}

// newest gives the key of each algorithm that signs: the newest that is published.
func newest(keys []Key) map[string]Key {
	out := map[string]Key{}
	for _, k := range keys {
		if !k.PublishedAt.IsZero() {
			out[k.Algorithm()] = k
		}
	}
	return out
}

// Signer gives what signs mails from a domain.
func Signer(ctx context.Context, tx *postgres.Tx, domain string) (*mail.Signer, error) {
	keys, err := Keys(ctx, tx, domain)
	if err != nil {
		return nil, err
	}
	signs := newest(keys)
	var use []mail.DKIMKey
	for _, algorithm := range []string{mail.RSA, mail.Ed25519} {
		if k, ok := signs[algorithm]; ok {
			use = append(use, k.DKIMKey)
		}
	}
	if len(use) == 0 {
		return nil, fmt.Errorf("there is no published DKIM key of %s: make one with onda domain key, publish it, and run onda domain check", domain)
	}
	return mail.NewSigner(use...)
}

// AddKeys makes an RSA and an Ed25519 key of a domain, of selectors that begin with base. They sign once a check has seen them in DNS. ErrSelectorTaken.
func AddKeys(ctx context.Context, tx *postgres.Tx, domain, base string) ([]mail.DKIMKey, error) {
	var out []mail.DKIMKey
	for _, algorithm := range []string{mail.RSA, mail.Ed25519} {
		k, err := mail.NewDKIMKey(domain, base+"-"+algorithm, algorithm)
		if err != nil {
			return nil, err
		}
		private, err := k.Private()
		if err != nil {
			return nil, err
		}
		// Ids below zero: those of token keys must fit a byte, and are not to be used up. Two at once take the same one, and one of them fails.
		_, err = tx.Exec(ctx, "INSERT INTO key (id, kind, name, secret) OVERRIDING SYSTEM VALUE SELECT least(min(id), 0) - 1, 'dkim', $1, $2 FROM key", k.Name(), private)
		var pe *pgconn.PgError
		if errors.As(err, &pe) && pe.ConstraintName == "key_dkim" {
			return nil, fmt.Errorf("DKIM key %s: %w", k.Name(), ErrSelectorTaken)
		}
		if err != nil {
			return nil, fmt.Errorf("store DKIM key %s: %w", k.Name(), err)
		}
		out = append(out, k)
	}
	return out, nil
}

// DomainOf gives the domain of a mailbox such as "Name <local@domain>", in ASCII.
func DomainOf(mailbox string) (string, error) {
	a, err := netmail.ParseAddress(mailbox)
	if err != nil {
		return "", fmt.Errorf("mailbox %q: %w", mailbox, err)
	}
	return spec.ASCIIDomain(a.Address[strings.LastIndexByte(a.Address, '@')+1:])
}
