package postgres

import (
	"context"
	"crypto/rand"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

//go:embed migrations
var migrations embed.FS

// migrateLock lets one migration of a database run at a time.
const migrateLock = 0x6f6e6462

// Admin is a connection with the rights to make roles and schemas: what onda migrate and onda tenant use, never a function.
type Admin struct{ conn *pgx.Conn }

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
	return &Admin{conn}, nil
}

// Close ends the connection.
func (a *Admin) Close(ctx context.Context) error { return a.conn.Close(ctx) }

// files reads the migrations of a directory in order: their number is their place, from 1.
func files(dir string) ([]string, error) {
	names, err := fs.Glob(migrations, "migrations/"+dir+"/*.sql")
	if err != nil {
		return nil, err
	}
	out := make([]string, len(names))
	for i, n := range names { // Glob answers in lexical order
		if want := fmt.Sprintf("/%04d_", i+1); !strings.Contains(n, want) {
			return nil, fmt.Errorf("migration %s: expected number %d", n, i+1)
		}
		b, err := migrations.ReadFile(n)
		if err != nil {
			return nil, err
		}
		out[i] = string(b)
	}
	return out, nil
}

// Migrated says what Migrate did.
type Migrated struct {
	// Shared migrations that were applied, and Tenants that got at least one.
	Shared  int      `json:"shared"`
	Tenants []string `json:"tenants"`
}

// Migrate brings the shared schema and every tenant's to the newest version, each step in a transaction of its own that gives up on a lock
// after two seconds and is tried again, so that it never stands in the way of mail for longer. To run it again changes nothing.
func (a *Admin) Migrate(ctx context.Context) (Migrated, error) {
	done := Migrated{Tenants: []string{}}
	steps, err := files("shared")
	if err != nil {
		return done, err
	}
	// The table that counts stands outside of what it counts.
	if _, err := a.conn.Exec(ctx, "CREATE TABLE IF NOT EXISTS public.onda_migration (version integer PRIMARY KEY, at timestamptz NOT NULL DEFAULT now())"); err != nil {
		return done, fmt.Errorf("migrate: %w", err)
	}
	for v, sql := range steps {
		applied := false
		err := a.inTx(ctx, func(tx pgx.Tx) error {
			var have bool
			if err := tx.QueryRow(ctx, "SELECT EXISTS (SELECT FROM public.onda_migration WHERE version = $1)", v+1).Scan(&have); err != nil || have {
				return err
			}
			applied = true
			if _, err := tx.Exec(ctx, sql); err != nil {
				return err
			}
			_, err := tx.Exec(ctx, "INSERT INTO public.onda_migration (version) VALUES ($1)", v+1)
			return err
		})
		if err != nil {
			return done, fmt.Errorf("migrate shared schema to %d: %w", v+1, err)
		}
		if applied {
			done.Shared++
		}
	}
	tenants, err := a.Tenants(ctx)
	if err != nil {
		return done, err
	}
	for _, t := range tenants {
		n, err := a.migrateTenant(ctx, t.Name)
		if err != nil {
			return done, err
		}
		if n > 0 {
			done.Tenants = append(done.Tenants, t.Name)
		}
	}
	return done, nil
}

func (a *Admin) migrateTenant(ctx context.Context, name string) (n int, err error) {
	steps, err := files("tenant")
	if err != nil {
		return 0, err
	}
	for v := range steps {
		applied := false
		err := a.inTx(ctx, func(tx pgx.Tx) error {
			var have int
			if err := tx.QueryRow(ctx, "SELECT schema FROM onda.tenant WHERE name = $1 FOR UPDATE", name).Scan(&have); err != nil || have != v {
				return err
			}
			applied = true
			return stepTenant(ctx, tx, name, v+1, steps[v])
		})
		if err != nil {
			return n, fmt.Errorf("migrate tenant %s to %d: %w", name, v+1, err)
		}
		if applied {
			n++
		}
	}
	return n, nil
}

// stepTenant runs one migration as the tenant's role, so that what it makes is the tenant's.
func stepTenant(ctx context.Context, tx pgx.Tx, name string, version int, sql string) error {
	if _, err := tx.Exec(ctx, "SELECT set_config('role', $1, true), set_config('search_path', quote_ident($1), true)", name); err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, sql); err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, "RESET ROLE"); err != nil {
		return err
	}
	_, err := tx.Exec(ctx, "UPDATE onda.tenant SET schema = $2 WHERE name = $1", name, version)
	return err
}

// inTx runs f in a transaction, one migration at a time in a database, tried again while a lock is not to be had.
func (a *Admin) inTx(ctx context.Context, f func(tx pgx.Tx) error) error {
	const tries = 10
	var err error
	for range tries {
		err = pgx.BeginFunc(ctx, a.conn, func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, "SELECT pg_advisory_xact_lock($1)", migrateLock); err != nil {
				return err
			}
			if _, err := tx.Exec(ctx, "SET LOCAL lock_timeout = '2s'"); err != nil {
				return err
			}
			return f(tx)
		})
		var pe *pgconn.PgError
		if !errors.As(err, &pe) || pe.Code != "55P03" {
			return err
		}
	}
	return fmt.Errorf("no lock after %d tries: %w", tries, err)
}

// InProduction tells whether the database has tenants and was never marked as one for development.
func (a *Admin) InProduction(ctx context.Context) (bool, error) {
	var ours, serious bool
	if err := a.conn.QueryRow(ctx, "SELECT to_regclass('onda.database') IS NOT NULL").Scan(&ours); err != nil || !ours {
		return false, err
	}
	err := a.conn.QueryRow(ctx, "SELECT NOT (SELECT development FROM onda.database) AND EXISTS (SELECT FROM onda.tenant)").Scan(&serious)
	return serious, err
}

// MarkDevelopment says that this database is for development: the clock of its tenants may be moved.
func (a *Admin) MarkDevelopment(ctx context.Context) error {
	if _, err := a.conn.Exec(ctx, "UPDATE onda.database SET development = true"); err != nil {
		return fmt.Errorf("mark database as one for development: %w", err)
	}
	return nil
}

// MoveClock moves the tenant's clock by d from where it stands; wake-ups are compared with it, so what became due is found at the next tick. Refused in a
// database that is not for development.
func (a *Admin) MoveClock(ctx context.Context, tenant string, d time.Duration) (now time.Time, err error) {
	err = pgx.BeginFunc(ctx, a.conn, func(tx pgx.Tx) error {
		err := tx.QueryRow(ctx, `UPDATE onda.tenant SET "offset" = "offset" + $2::interval WHERE name = $1 RETURNING now() + "offset"`, tenant, d).Scan(&now)
		if errors.Is(err, pgx.ErrNoRows) {
			return fmt.Errorf("tenant %s: %w", tenant, ErrUnknownTenant)
		}
		return err
	})
	if err != nil {
		return now, fmt.Errorf("move the clock: %w", err)
	}
	return now, nil
}

// TenantInfo is a tenant's row in the registry.
type TenantInfo struct {
	Number  int32         `json:"number"`
	Name    string        `json:"name"`
	State   string        `json:"state"`
	Schema  int           `json:"schema"`
	Offset  time.Duration `json:"offset"`
	Created time.Time     `json:"created"`
}

// Tenants lists all tenants by name.
func (a *Admin) Tenants(ctx context.Context) ([]TenantInfo, error) {
	rows, err := a.conn.Query(ctx, `SELECT number, name, state, schema, "offset", created_at FROM onda.tenant ORDER BY name`)
	if err != nil {
		return nil, fmt.Errorf("list tenants: %w", err)
	}
	return pgx.CollectRows(rows, pgx.RowToStructByPos[TenantInfo])
}

func reserved(name string) bool {
	return name == "onda" || name == "public" || name == "postgres" || strings.HasPrefix(name, "pg_") || strings.HasPrefix(name, "onda_") || strings.HasPrefix(name, "onda-")
}

// CreateTenant makes a tenant's role, schema, keys and wake-ups in one transaction, or finds that they are there: made tells which.
func (a *Admin) CreateTenant(ctx context.Context, name string) (made bool, err error) {
	if !validName(name) {
		return false, fmt.Errorf("tenant %q: a name is 1 to 40 of a-z, 0-9 and -, begins with a letter, and is none of onda, public, postgres, pg_*, onda-*", name)
	}
	steps, err := files("tenant")
	if err != nil {
		return false, err
	}
	err = a.inTx(ctx, func(tx pgx.Tx) error {
		ct, err := tx.Exec(ctx, "INSERT INTO onda.tenant (name) VALUES ($1) ON CONFLICT (name) DO NOTHING", name)
		if err != nil {
			return err
		}
		if made = ct.RowsAffected() == 1; !made {
			return nil
		}
		// A role of this name that is no tenant's would give its rights to every process that may enter the tenant.
		var taken bool
		err = tx.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_roles r WHERE r.rolname = $1 AND (r.rolsuper OR NOT EXISTS (SELECT FROM pg_auth_members m
			WHERE m.member = r.oid AND m.roleid = 'onda_tenant'::regrole)))`, name).Scan(&taken)
		if err != nil {
			return err
		}
		if taken {
			return errors.New("the server has a role of this name that is not a tenant's: take another name")
		}
		id := pgx.Identifier{name}.Sanitize()
		for _, sql := range []string{
			// The role is the server's: another database of it may have made it.
			fmt.Sprintf("DO $$ BEGIN CREATE ROLE %s NOLOGIN; EXCEPTION WHEN duplicate_object THEN NULL; WHEN unique_violation THEN NULL; END $$", id),
			fmt.Sprintf("GRANT onda_tenant TO %s", id),
			fmt.Sprintf("GRANT %s TO onda_pool", id),
			fmt.Sprintf("CREATE SCHEMA %s AUTHORIZATION %s", id, id),
		} {
			if _, err := tx.Exec(ctx, sql); err != nil {
				return err
			}
		}
		for v, sql := range steps {
			if err := stepTenant(ctx, tx, name, v+1, sql); err != nil {
				return err
			}
		}
		if _, err := tx.Exec(ctx, "INSERT INTO onda.wakeup (tenant, function) SELECT $1, unnest($2::text[])", name, Functions()); err != nil {
			return err
		}
		_, err = tx.Exec(ctx, fmt.Sprintf("INSERT INTO %s.key (kind, secret) VALUES ('hmac', $1), ('pepper', $2)", id), secret(), secret())
		return err
	})
	if err != nil {
		return false, fmt.Errorf("create tenant %s: %w", name, err)
	}
	return made, nil
}

// AddProgramKey stores the SHA-256 of a program's key; kind is pk or sk.
func (a *Admin) AddProgramKey(ctx context.Context, tenant, kind, name string, sum []byte) error {
	// Ids up to 255 are for the keys of tokens, which name them in one byte.
	table := pgx.Identifier{tenant}.Sanitize() + ".key"
	sql := fmt.Sprintf("INSERT INTO %s (id, kind, secret, name) OVERRIDING SYSTEM VALUE SELECT greatest(1000, max(id) + 1), $1, $2, $3 FROM %s", table, table)
	if _, err := a.conn.Exec(ctx, sql, kind, sum, name); err != nil {
		return fmt.Errorf("add a program's key to tenant %s: %w", tenant, err)
	}
	return nil
}

func secret() []byte {
	b := make([]byte, 32)
	_, _ = rand.Read(b) // never fails: crypto/rand ends the program instead
	return b
}

func validName(name string) bool {
	if name == "" || len(name) > 40 || name[0] < 'a' || name[0] > 'z' || reserved(name) {
		return false
	}
	for _, c := range []byte(name) {
		if c != '-' && (c < '0' || c > '9') && (c < 'a' || c > 'z') {
			return false
		}
	}
	return true
}

// Migrations are the SQL files of all migrations, shared/ and tenant/.
func Migrations() fs.FS {
	sub, err := fs.Sub(migrations, "migrations")
	if err != nil { // the directory is embedded
		panic(err)
	}
	return sub
}

// HasProgramKey tells whether the tenant has a program's key in force, by its SHA-256.
func (a *Admin) HasProgramKey(ctx context.Context, tenant string, sum []byte) (ok bool, err error) {
	sql := fmt.Sprintf("SELECT EXISTS (SELECT FROM %s.key WHERE secret = $1 AND kind IN ('pk', 'sk') AND retired_at IS NULL)", pgx.Identifier{tenant}.Sanitize())
	if err := a.conn.QueryRow(ctx, sql, sum).Scan(&ok); err != nil {
		return false, fmt.Errorf("look for a program's key of tenant %s: %w", tenant, err)
	}
	return ok, nil
}
