package postgres

import (
	"context"
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
)

// shortestPassword is in characters.
const shortestPassword = 16

// SetLogin lets functions of the tenant's own log in by its role with the password, which replaces an earlier one. The pool's login may enter the tenant as
// before, so that while a tenant moves from the pool both work; SetPooled ends that. Connections that are open go on.
func (a *Admin) SetLogin(ctx context.Context, tenant, password string) error {
	if len(password) < shortestPassword || strings.ContainsFunc(password, func(c rune) bool { return c < '!' || c > '~' }) {
		return fmt.Errorf("give tenant %s a login: a password has at least %d characters, printable ASCII without spaces", tenant, shortestPassword)
	}
	salt := make([]byte, 16)
	_, _ = rand.Read(salt) // never fails: crypto/rand ends the program instead
	verifier, err := scram(password, salt)
	if err != nil {
		return fmt.Errorf("give tenant %s a login: %w", tenant, err)
	}
	id := quote(tenant)
	err = a.changeRole(ctx, tenant, nil,
		fmt.Sprintf("ALTER ROLE %s LOGIN PASSWORD '%s'", id, verifier), // of base64 and digits
		fmt.Sprintf(`ALTER ROLE %s SET search_path = "$user"`, id),
		fmt.Sprintf("ALTER ROLE %s SET idle_in_transaction_session_timeout = '10s'", id),
		fmt.Sprintf("ALTER ROLE %s SET max_parallel_workers_per_gather = 0", id),
		fmt.Sprintf("ALTER ROLE %s SET jit = off", id))
	if err != nil {
		return fmt.Errorf("give tenant %s a login: %w", tenant, err)
	}
	return nil
}

// DropLogin takes the tenant's own login away, after the pool's may enter it again. An ErrSending where batches are in hand, whose outcomes could not be recorded.
func (a *Admin) DropLogin(ctx context.Context, tenant string) error {
	id := quote(tenant)
	err := a.changeRole(ctx, tenant, notInHand, fmt.Sprintf("GRANT %s TO onda_pool", id), fmt.Sprintf("ALTER ROLE %s NOLOGIN PASSWORD NULL", id))
	if err != nil {
		return fmt.Errorf("drop the login of tenant %s: %w", tenant, err)
	}
	return nil
}

// SetPooled says whether the pool's login may enter the tenant. It is shut out only of a tenant that has a login of its own, and never while batches are in
// hand (an ErrSending): some of them may be the pool's, whose outcomes could not be recorded.
func (a *Admin) SetPooled(ctx context.Context, tenant string, pooled bool) error {
	sql, may := "REVOKE %s FROM onda_pool", func(ctx context.Context, tx pgx.Tx, tenant string) error {
		var login bool
		if err := tx.QueryRow(ctx, "SELECT rolcanlogin FROM pg_roles WHERE rolname = $1", tenant).Scan(&login); err != nil {
			return err
		}
		if !login {
			return errors.New("it has no login of its own: nobody could enter it")
		}
		return notInHand(ctx, tx, tenant)
	}
	if pooled {
		sql, may = "GRANT %s TO onda_pool", nil
	}
	err := a.changeRole(ctx, tenant, may, fmt.Sprintf(sql, quote(tenant)))
	if err == nil && !pooled { // from Postgres 16 on, a login takes back what it granted itself
		err = a.inTx(ctx, func(tx pgx.Tx) error {
			var in bool
			err := tx.QueryRow(ctx, "SELECT pg_has_role('onda_pool', $1, 'MEMBER')", tenant).Scan(&in)
			if err == nil && in {
				err = errors.New("the pool may still enter it: another login granted that, and has to take it back")
			}
			return err
		})
	}
	if err != nil {
		return fmt.Errorf("change who may enter tenant %s: %w", tenant, err)
	}
	return nil
}

// HasSent tells whether mails of the tenant's went out, whose links lead to where its functions were then.
func (a *Admin) HasSent(ctx context.Context, tenant string) (sent bool, err error) {
	err = a.inTx(ctx, func(tx pgx.Tx) error {
		if _, err := lockTenant(ctx, tx, tenant); err != nil {
			return err
		}
		return tx.QueryRow(ctx, fmt.Sprintf("SELECT EXISTS (SELECT FROM %s.delivery)", quote(tenant))).Scan(&sent)
	})
	if err != nil {
		return false, fmt.Errorf("look for mails of tenant %s: %w", tenant, err)
	}
	return sent, nil
}

// changeRole runs statements with the login's rights, when the tenant is there and may says nothing against it.
func (a *Admin) changeRole(ctx context.Context, tenant string, may func(context.Context, pgx.Tx, string) error, statements ...string) error {
	return a.inTx(ctx, func(tx pgx.Tx) error {
		if _, err := lockTenant(ctx, tx, tenant); err != nil {
			return err
		}
		if may != nil {
			if err := may(ctx, tx, tenant); err != nil {
				return err
			}
		}
		for _, sql := range append([]string{"SET LOCAL ROLE NONE"}, statements...) {
			if _, err := tx.Exec(ctx, sql); err != nil {
				return err
			}
		}
		return nil
	})
}

// scram is what Postgres keeps of a password (RFC 5803), made here so that no log of statements shows the password itself.
func scram(password string, salt []byte) (string, error) {
	const rounds = 4096
	salted, err := pbkdf2.Key(sha256.New, password, salt, rounds, sha256.Size)
	if err != nil {
		return "", err
	}
	sign := func(what string) []byte {
		m := hmac.New(sha256.New, salted)
		m.Write([]byte(what))
		return m.Sum(nil)
	}
	stored := sha256.Sum256(sign("Client Key"))
	text := base64.StdEncoding.EncodeToString
	return fmt.Sprintf("SCRAM-SHA-256$%d:%s$%s:%s", rounds, text(salt), text(stored[:]), text(sign("Server Key"))), nil
}
