package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Admin is a connection with the rights to make roles and schemas: what onda migrate and onda tenant use, never a function. Its login needs CREATEROLE
// and CREATE on the database, as managed servers give it, and need not be a superuser.
//
// Everything is owned by the role onda_owner, which no tenant's role and no function's login is a member of, and what an Admin reads and writes it does
// as that role, with a search path of Postgres's own names alone. So nothing that a tenant can make is run by it: tenants make no triggers, rules,
// defaults, operators or functions, since they own nothing to make them on and no schema to make them in. To take the tenant's role instead would not
// do, whatever it were called: code of the tenant's could RESET it.
type Admin struct {
	conn *pgx.Conn
	// patience is how long whoever makes an index waits for another's transaction, and migrations for all that have locked tenants' tables.
	patience time.Duration
}

// OpenAdmin connects at once, or gives up after five seconds where the URL says no other time.
func OpenAdmin(ctx context.Context, url string) (*Admin, error) {
	cfg, err := pgx.ParseConfig(url)
	if err != nil {
		return nil, errors.New("ONDA_ADMIN_DATABASE_URL: not a Postgres URL such as postgres://postgres@host/onda") // the cause would show the password
	}
	if cfg.ConnectTimeout == 0 {
		cfg.ConnectTimeout = 5 * time.Second
	}
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("connect to postgres: %w", err)
	}
	return &Admin{conn: conn, patience: 5 * time.Minute}, nil
}

// Close ends the connection.
func (a *Admin) Close(ctx context.Context) error { return a.conn.Close(ctx) }

// inTx runs f as onda_owner in a transaction that gives up on a lock after two seconds, so that it never stands in the way of mail for longer, and is tried
// again. Nobody can keep it from others for good: locks that it takes to be alone are on tables that tenants cannot lock.
func (a *Admin) inTx(ctx context.Context, f func(tx pgx.Tx) error) error {
	return a.inTxTrying(ctx, lockTries, f)
}

// inTxTrying is inTx that is tried so often.
func (a *Admin) inTxTrying(ctx context.Context, tries int, f func(tx pgx.Tx) error) error {
	return a.asLogin(ctx, tries, func(tx pgx.Tx) error {
		if err := asOwner(ctx, tx); err != nil {
			return err
		}
		return f(tx)
	})
}

// lockTries is how often what got no lock is tried.
const lockTries = 10

// noLock tells whether a lock was not to be had in the time that there was for it, or only by others who waited for this one.
func noLock(err error) bool { return failedWith(err, "55P03", "40P01") }

// asLogin is inTxTrying with the login's own rights.
func (a *Admin) asLogin(ctx context.Context, tries int, f func(tx pgx.Tx) error) error {
	var err error
	for range tries {
		err = pgx.BeginFunc(ctx, a.conn, func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, "SET LOCAL search_path = pg_catalog, pg_temp; SET LOCAL lock_timeout = '2s'; SET LOCAL ROLE NONE"); err != nil {
				return err
			}
			return f(tx)
		})
		var pe *pgconn.PgError
		switch {
		case !errors.As(err, &pe):
			return err
		case pe.Code == "42501":
			return fmt.Errorf("the login %s may not: %w; it needs CREATEROLE, CREATE on the database, and where another login made Onda's roles, those of "+
				"onda_owner, onda_tenant, onda_pool, onda_schedule and the tenants granted WITH ADMIN OPTION", a.conn.Config().User, err)
		case !noLock(err):
			return err
		}
	}
	return fmt.Errorf("no lock after %d tries: %w", tries, err)
}

// Lost tells whether the connection has ended: nothing more can be done with it.
func (a *Admin) Lost() bool { return a.conn.IsClosed() }

func asOwner(ctx context.Context, tx pgx.Tx) error {
	_, err := tx.Exec(ctx, "SET LOCAL ROLE onda_owner")
	return err
}

// inSchema lets bare names be of the tenant's schema, after Postgres's own. Only onda_owner makes any there.
func inSchema(ctx context.Context, tx pgx.Tx, tenant string) error {
	_, err := tx.Exec(ctx, "SELECT set_config('search_path', quote_ident($1) || ', pg_temp', true)", tenant)
	return err
}

// InProduction tells whether the database has tenants, or is marked as pre-production, and was never marked as one for development.
func (a *Admin) InProduction(ctx context.Context) (serious bool, err error) {
	var ours bool
	err = a.conn.QueryRow(ctx, "SELECT EXISTS (SELECT FROM pg_catalog.pg_tables WHERE schemaname = 'onda' AND tablename = 'database' AND tableowner = 'onda_owner')").Scan(&ours)
	if err == nil && ours {
		err = a.inTx(ctx, func(tx pgx.Tx) error {
			return tx.QueryRow(ctx, `SELECT coalesce((to_jsonb(d)->>'preproduction')::boolean, false) OR NOT development AND EXISTS (SELECT FROM onda.tenant)
				FROM onda.database d`).Scan(&serious) // it is not migrated yet
		})
	}
	if err != nil {
		return false, fmt.Errorf("look whether the database is for development: %w", err)
	}
	return serious, nil
}

// MarkDevelopment says that this database is for development: the clock of its tenants may be moved.
func (a *Admin) MarkDevelopment(ctx context.Context) error {
	err := a.inTx(ctx, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, "UPDATE onda.database SET development = true")
		return err
	})
	if err != nil {
		return fmt.Errorf("mark database as one for development: %w", err)
	}
	return nil
}

// Stage is what a database is for.
type Stage string

// The stages. A database for development may be of either: its mail goes to the mailbox of onda dev.
const (
	Production Stage = "production"
	// Preproduction mails nobody real: relays with a credential are refused, and recipients replaced or refused.
	Preproduction Stage = "preproduction"
)

// ErrUnconfirmed says that a pre-production would become a production, and that nobody confirmed it with the database's name.
var ErrUnconfirmed = errors.New("this database is marked as pre-production, and what waits in it would be mailed to real people")

// Stage tells what the database, which was migrated, is for, and its name.
func (a *Admin) Stage(ctx context.Context) (stage Stage, database string, err error) {
	err = a.inTx(ctx, func(tx pgx.Tx) error {
		return tx.QueryRow(ctx, "SELECT CASE WHEN preproduction THEN 'preproduction' ELSE 'production' END, current_database() FROM onda.database").Scan(&stage, &database)
	})
	if err != nil {
		return "", "", fmt.Errorf("look at the stage of the database: %w", err)
	}
	return stage, database, nil
}

// SetStage says what the database is for. What is a pre-production becomes a production with its name in confirmed only, else ErrUnconfirmed; marks and batches that follow
// go by it at once.
func (a *Admin) SetStage(ctx context.Context, stage Stage, confirmed string) error {
	err := a.inTx(ctx, func(tx pgx.Tx) error {
		var was bool
		var name string
		if err := tx.QueryRow(ctx, "SELECT preproduction, current_database() FROM onda.database FOR UPDATE").Scan(&was, &name); err != nil {
			return err
		}
		if was && stage != Preproduction && confirmed != name {
			return ErrUnconfirmed
		}
		_, err := tx.Exec(ctx, "UPDATE onda.database SET preproduction = $1 WHERE preproduction <> $1", stage == Preproduction)
		return err
	})
	if err != nil {
		return fmt.Errorf("mark database as %s: %w", stage, err)
	}
	return nil
}
