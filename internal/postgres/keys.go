package postgres

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/onda-run/onda/internal/token"
)

// keysFor is how long a process trusts the keys that it read: a new one is known everywhere after it.
const keysFor = time.Minute

// Keys are a tenant's secrets. They are rows, so that they move with the tenant.
type Keys struct {
	// Tokens are the HMAC keys of tokens, retired ones too. One at least may sign.
	Tokens token.Keys
	// Verifier proves tokens with them.
	Verifier *token.Verifier
	// Signing is the one that signs, and Signer signs with it.
	Signing token.Key
	Signer  *token.Signer
	// Pepper keys the hashes of addresses.
	Pepper []byte

	hashes *sync.Pool // of hash.Hash under the pepper, whose half of the HMAC is worked out once
}

// HashAddress is what suppression knows an address by: HMAC-SHA-256 of the normalised address under the tenant's pepper.
func (k Keys) HashAddress(normalised string) []byte {
	m, _ := k.hashes.Get().(hash.Hash)
	defer k.hashes.Put(m)
	m.Reset()
	m.Write([]byte(normalised))
	return m.Sum(nil)
}

type cachedKeys struct {
	keys Keys
	read time.Time
}

// Keys gives the tenant's keys, read at most once a minute a process.
func (tx *Tx) Keys(ctx context.Context) (Keys, error) {
	db := tx.db
	db.mu.Lock()
	c, ok := db.keys[tx.Tenant.Name]
	db.mu.Unlock()
	if ok && time.Since(c.read) < keysFor {
		return c.keys, nil
	}
	rows, err := tx.Once(ctx, selectKeys)
	if err != nil {
		return Keys{}, fmt.Errorf("read keys: %w", err)
	}
	k, err := readKeys(rows)
	if err != nil {
		return Keys{}, err
	}
	return db.keepKeys(tx.Tenant.Name, k)
}

const selectKeys = "SELECT id, kind, secret, retired_at FROM key WHERE kind IN ('hmac', 'pepper') ORDER BY id"

// readKeys reads what selectKeys gives.
func readKeys(rows pgx.Rows) (k Keys, err error) {
	var id int32
	var kind string
	var secret []byte
	var retired *time.Time
	_, err = pgx.ForEachRow(rows, []any{&id, &kind, &secret, &retired}, func() error {
		switch {
		case kind == "pepper":
			k.Pepper = slices.Clone(secret)
		case id > 255:
			return fmt.Errorf("key %d: a token's key id is at most 255", id)
		default:
			key := token.Key{ID: uint8(id), Secret: slices.Clone(secret)}
			if retired != nil {
				key.Retired = *retired
			}
			k.Tokens = append(k.Tokens, key)
		}
		return nil
	})
	if err != nil {
		return Keys{}, fmt.Errorf("read keys: %w", err)
	}
	return k, nil
}

// keepKeys makes of keys that were read what signs and proves, and keeps it for a while.
func (db *DB) keepKeys(tenant string, k Keys) (_ Keys, err error) {
	var ok bool
	if k.Signing, ok = k.Tokens.Current(); !ok || k.Pepper == nil {
		return Keys{}, fmt.Errorf("tenant %s has no keys: run onda tenant create %s again", tenant, tenant)
	}
	if k.Signer, err = token.NewSigner(k.Signing); err != nil {
		return Keys{}, fmt.Errorf("read keys: %w", err)
	}
	k.Verifier = token.NewVerifier(k.Tokens)
	k.hashes = &sync.Pool{New: func() any { return hmac.New(sha256.New, k.Pepper) }}
	db.mu.Lock()
	db.keys[tenant] = cachedKeys{k, time.Now()}
	db.mu.Unlock()
	return k, nil
}

// Keys is Tx.Keys in a transaction of its own, if they have to be read at all: a Visit.
func (db *DB) Keys(ctx context.Context, tenant string) (k Keys, err error) {
	db.mu.Lock()
	c, ok := db.keys[tenant]
	db.mu.Unlock()
	if ok && time.Since(c.read) < keysFor && db.Serves(tenant) {
		return c.keys, nil
	}
	err = db.byDoor(ctx, tenant, func(lock time.Duration) error {
		return db.look(ctx, tenant, mode{lock: lock}, func(b *pgx.Batch) {
			b.Queue(selectKeys).Query(func(rows pgx.Rows) (err error) {
				k, err = readKeys(rows)
				return err
			})
		})
	})
	if err != nil {
		return Keys{}, err
	}
	return db.keepKeys(tenant, k)
}

// Entered are the names of the tenants that this login enters, of those that are served.
func (db *DB) Entered(ctx context.Context) ([]string, error) {
	rows, err := db.pool.Query(ctx, "SELECT name FROM onda.tenant WHERE state IN ('active', 'suspended') AND pg_catalog.pg_has_role(name::name, 'MEMBER') ORDER BY name")
	if err != nil {
		return nil, fmt.Errorf("list tenants: %w", err)
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("list tenants: %w", err)
	}
	return names, nil
}

// TenantByNumber finds the tenant that a token or a program's key names. ErrUnknownTenant when there is none, or none that this
// process serves. Numbers are never reused, so what was found once stays true.
func (db *DB) TenantByNumber(ctx context.Context, number int32) (string, error) {
	name, ok, err := db.nameOf(ctx, number)
	if err != nil {
		return "", fmt.Errorf("look up tenant number %d: %w", number, err)
	}
	if !ok {
		return "", fmt.Errorf("tenant number %d: %w", number, ErrUnknownTenant)
	}
	if !db.Serves(name) {
		return "", fmt.Errorf("tenant number %d: %w", number, ErrUnknownTenant)
	}
	return name, nil
}

// numberFor is how long a number is unknown that was not found.
const numberFor = time.Second

// unknownNumbers are what was looked for and not found: whoever forges tokens costs a query a number in numberFor, and none where the number is above all there are.
type unknownNumbers struct {
	until   time.Time
	highest int32 // that there is
	below   map[int32]struct{}
}

// nameOf gives the name of the tenant with a number.
func (db *DB) nameOf(ctx context.Context, number int32) (name string, ok bool, err error) {
	db.mu.Lock()
	name, ok = db.numbers[number]
	now, u := time.Now(), &db.unknown
	absent := false
	if now.Before(u.until) {
		_, absent = u.below[number]
		absent = absent || number > u.highest
	}
	db.mu.Unlock()
	if ok || absent {
		return name, ok, nil
	}
	var found *string
	var highest int32
	conn, err := db.pool.Acquire(ctx)
	if err != nil {
		return "", false, err
	}
	defer conn.Release()
	row := onceRow{once(ctx, conn.Conn(), "SELECT coalesce((SELECT max(number) FROM onda.tenant), 0), (SELECT name FROM onda.tenant WHERE number = $1)", number)}
	if err := row.Scan(&highest, &found); err != nil {
		return "", false, err
	}
	db.mu.Lock()
	defer db.mu.Unlock()
	if found != nil {
		db.numbers[number] = *found
		return *found, true, nil
	}
	if now.After(u.until) { // below never has more than there are numbers up to the highest
		*u = unknownNumbers{until: now.Add(numberFor), highest: highest, below: map[int32]struct{}{}}
	}
	if number <= highest {
		u.below[number] = struct{}{}
	}
	return "", false, nil
}

// ProgramKey tells whether a program's key is the tenant's and in force, by its SHA-256. secret is true for an sk_ key.
func (tx *Tx) ProgramKey(ctx context.Context, sum []byte) (secret, ok bool, err error) {
	var kind string
	err = tx.QueryRow(ctx, "SELECT kind FROM key WHERE secret = $1 AND kind IN ('pk', 'sk') AND retired_at IS NULL", sum).Scan(&kind)
	if errors.Is(err, pgx.ErrNoRows) {
		return false, false, nil
	}
	if err != nil {
		return false, false, fmt.Errorf("look up a program's key: %w", err)
	}
	return kind == "sk", true, nil
}

// WebhookSecrets are what proves webhooks of a provider, newest first: those that are in force.
func (tx *Tx) WebhookSecrets(ctx context.Context, provider string) ([]string, error) {
	rows, err := tx.Query(ctx, `SELECT convert_from(secret, 'UTF8') FROM key WHERE kind = 'webhook' AND name = $1 AND (retired_at IS NULL OR retired_at > now())
		ORDER BY id DESC`, provider)
	if err != nil {
		return nil, fmt.Errorf("read a webhook's secrets: %w", err)
	}
	secrets, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("read a webhook's secrets: %w", err)
	}
	return secrets, nil
}

// SetWebhookSecret lets a secret prove webhooks of a provider; an empty one lets nothing do so any more. Those that were set before stay in force for the time of overlap at most.
// To set the same again changes nothing.
func (a *Admin) SetWebhookSecret(ctx context.Context, tenant, provider, secret string, overlap time.Duration) error {
	table := quote(tenant) + ".key"
	err := a.inTx(ctx, func(tx pgx.Tx) error {
		for _, s := range []struct {
			sql  string
			args []any
		}{
			{"UPDATE %s SET retired_at = least(retired_at, now() + $3) WHERE kind = 'webhook' AND name = $1 AND secret <> convert_to($2, 'UTF8')", []any{provider, secret, overlap}},
			{"DELETE FROM %s WHERE kind = 'webhook' AND name = $1 AND (retired_at <= now() OR retired_at IS NOT NULL AND secret = convert_to($2, 'UTF8'))", []any{provider, secret}},
			// Ids up to 255 are for the keys of tokens, which name them in one byte.
			{`INSERT INTO %[1]s (id, kind, secret, name) OVERRIDING SYSTEM VALUE SELECT greatest(1000, max(id) + 1), 'webhook', convert_to($2, 'UTF8'), $1 FROM %[1]s
				HAVING $2 <> '' AND NOT EXISTS (SELECT FROM %[1]s WHERE kind = 'webhook' AND name = $1 AND secret = convert_to($2, 'UTF8') AND retired_at IS NULL)`, []any{provider, secret}},
		} {
			if _, err := tx.Exec(ctx, fmt.Sprintf(s.sql, table), s.args...); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("set the secret of webhooks of %s for tenant %s: %w", provider, tenant, err)
	}
	return nil
}

// HashOrigin is what is kept of the address that a request came from: a hash under the tenant's pepper, nil where none is known.
func (db *DB) HashOrigin(ctx context.Context, tenant, from string) ([]byte, error) {
	if from == "" {
		return nil, nil
	}
	keys, err := db.Keys(ctx, tenant)
	if err != nil {
		return nil, err
	}
	return keys.HashAddress("origin " + from), nil
}
