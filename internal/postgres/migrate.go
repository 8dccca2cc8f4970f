package postgres

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

//go:embed migrations
var migrations embed.FS

// prepareLock lets one first migration of a database run at a time.
const prepareLock = 0x6f6e6462

// migration is one step to a newer schema.
type migration struct {
	sql string
	// chunks says that it is one statement, to be run in one transaction after the other until it changes nothing: what takes long. It says itself how far it is.
	chunks bool
}

// files reads the migrations of a directory in order: their number is their place, from 1. Those with chunks have a name that ends in .chunks.sql.
func files(dir string) ([]migration, error) {
	names, err := fs.Glob(migrations, "migrations/"+dir+"/*.sql")
	if err != nil {
		return nil, err
	}
	out := make([]migration, len(names))
	for i, n := range names { // Glob answers in lexical order
		if want := fmt.Sprintf("/%04d_", i+1); !strings.Contains(n, want) {
			return nil, fmt.Errorf("migration %s: expected number %d", n, i+1)
		}
		b, err := migrations.ReadFile(n)
		if err != nil {
			return nil, err
		}
		out[i] = migration{string(b), strings.HasSuffix(n, ".chunks.sql")}
	}
	return out, nil
}

// Migrated says what Migrate did.
type Migrated struct {
	// Shared migrations that were applied, and Tenants that got at least one.
	Shared  int      `json:"shared"`
	Tenants []string `json:"tenants"`
	// Indexes that were made on tables that grow, as acme.fact_at_0.
	Indexes []string `json:"indexes"`
}

// Migrate brings the shared schema and every tenant's to the newest version, each step in a transaction of its own that gives up on a lock
// after two seconds and is tried again, so that it never stands in the way of mail for longer; and then makes the indexes of tableIndexes while others write. To run it again changes
// nothing. A tenant whose step fails is left where it was and keeps no other from theirs; the error names each. Those that get no lock come once more behind all others, and are
// given up together after the Admin's patience. Where an index matches ErrHeldUp no more are made.
func (a *Admin) Migrate(ctx context.Context) (Migrated, error) {
	done := Migrated{Tenants: []string{}, Indexes: []string{}}
	steps, err := files("shared")
	if err != nil {
		return done, err
	}
	if err := a.prepare(ctx); err != nil {
		return done, fmt.Errorf("migrate: %w", err)
	}
	for v, step := range steps {
		applied := false
		err := a.inTx(ctx, func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, "LOCK TABLE onda.migration IN EXCLUSIVE MODE"); err != nil { // one at a time
				return err
			}
			var have bool
			if err := tx.QueryRow(ctx, "SELECT EXISTS (SELECT FROM onda.migration WHERE version = $1)", v+1).Scan(&have); err != nil || have {
				return err
			}
			applied = true
			if _, err := tx.Exec(ctx, step.sql); err != nil {
				return err
			}
			_, err := tx.Exec(ctx, "INSERT INTO onda.migration (version) VALUES ($1)", v+1)
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
	var errs []error
	var newest, held []string
	var lock error
	migrate := func(name string, tries int) {
		n, err := a.migrateTenant(ctx, name, tries)
		switch {
		case err == nil:
			newest = append(newest, name)
		case noLock(err):
			held, lock = append(held, name), err
		default:
			errs = append(errs, err)
		}
		if n > 0 && !slices.Contains(done.Tenants, name) {
			done.Tenants = append(done.Tenants, name)
		}
	}
	for _, t := range tenants { // each waits for a lock once: of a thousand that a dump has locked, each would wait for as long as all may
		migrate(t.Name, 1)
		if a.Lost() {
			return done, errors.Join(errs...)
		}
	}
	again, until := held, time.Now().Add(a.patience)
	held = nil
	for i, name := range again {
		if time.Now().After(until) || a.Lost() {
			held = append(held, again[i:]...)
			break
		}
		migrate(name, lockTries)
	}
	if len(held) > 0 {
		errs = append(errs, fmt.Errorf("no lock on tables of %s, which stay at the schema they have (%s): run onda migrate again when it is over: %w", few(held), a.oldest(ctx), lock))
	}
	slices.Sort(newest)
	for _, name := range newest { // behind all migrations, since it may take long
		made, err := a.indexTables(ctx, name)
		if err != nil && !a.gone(ctx, name) {
			errs = append(errs, err)
		}
		done.Indexes = append(done.Indexes, made...)
		if errors.Is(err, ErrHeldUp) || a.Lost() { // so would those of the others be, each as long
			break
		}
	}
	return done, errors.Join(errs...)
}

// prepare makes what stands before the first migration, where it is not there: see roles.sql.
func (a *Admin) prepare(ctx context.Context) error {
	var ready, old bool
	err := a.conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_catalog.pg_tables WHERE schemaname = 'onda' AND tablename = 'migration')
		AND coalesce((SELECT pg_catalog.pg_has_role(current_user, oid, CASE WHEN current_setting('server_version_num')::integer < 160000 THEN 'MEMBER' ELSE 'SET' END)
			FROM pg_catalog.pg_roles WHERE rolname = 'onda_owner'), false),
		EXISTS (SELECT FROM pg_catalog.pg_tables WHERE schemaname = 'public' AND tablename = 'onda_migration')`).Scan(&ready, &old)
	switch {
	case err != nil || ready:
		return err
	case old:
		return errors.New("this database was laid out before the first release, with tables that tenants own: make another, and remove .onda/postgres where onda dev made it")
	}
	sql, err := migrations.ReadFile("migrations/roles.sql")
	if err != nil {
		return err
	}
	return a.asLogin(ctx, lockTries, func(tx pgx.Tx) error {
		// One at a time. There is no table yet whose lock would do, and no tenant that could hold this one.
		if _, err := tx.Exec(ctx, "SELECT pg_advisory_xact_lock($1)", prepareLock); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, string(sql))
		return err
	})
}

// gone tells whether a tenant that something failed for was purged meanwhile.
func (a *Admin) gone(ctx context.Context, name string) bool {
	_, err := a.Tenant(ctx, name)
	return errors.Is(err, ErrUnknownTenant)
}

// few names the first of many.
func few(names []string) string {
	const most = 10
	if more := len(names) - most; more > 0 {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), more)
	}
	return strings.Join(names, ", ")
}

// migrateTenant brings a tenant's schema to the newest version, and tells how many steps that were. One that is gone meanwhile has none.
func (a *Admin) migrateTenant(ctx context.Context, name string, tries int) (n int, err error) {
	steps, err := files("tenant")
	if err != nil {
		return 0, err
	}
	for v := 0; v < len(steps); v++ {
		applied := false
		for more := true; more; {
			err := a.inTxTrying(ctx, tries, func(tx pgx.Tx) error {
				more = false
				err := tx.QueryRow(ctx, "SELECT schema FROM onda.tenant WHERE name = $1 AND schema < $2 FOR UPDATE", name, len(steps)).Scan(&v)
				if errors.Is(err, pgx.ErrNoRows) {
					v = len(steps)
					return nil
				}
				if err != nil {
					return err
				}
				applied = true
				more, err = stepTenant(ctx, tx, name, v+1, steps[v])
				return err
			})
			if err != nil {
				return n, fmt.Errorf("migrate tenant %s to %d: %w", name, v+1, err)
			}
		}
		if applied {
			n++
		}
	}
	return n, nil
}

// stepTenant runs one migration in the tenant's schema, or a chunk of it: more says that it is not through. What it makes is onda_owner's, who lets the tenant's role use it by default.
func stepTenant(ctx context.Context, tx pgx.Tx, name string, version int, m migration) (more bool, err error) {
	if err := inSchema(ctx, tx, name); err != nil {
		return false, err
	}
	tag, err := tx.Exec(ctx, m.sql)
	if err != nil {
		return false, err
	}
	if _, err := tx.Exec(ctx, "SET LOCAL search_path = pg_catalog, pg_temp"); err != nil {
		return false, err
	}
	if m.chunks && tag.RowsAffected() > 0 {
		return true, nil
	}
	_, err = tx.Exec(ctx, "UPDATE onda.tenant SET schema = $2 WHERE name = $1", name, version)
	return false, err
}

// Migrations are the SQL files of all migrations: roles.sql, shared/ and tenant/.
func Migrations() fs.FS {
	sub, err := fs.Sub(migrations, "migrations")
	if err != nil { // the directory is embedded
		panic(err)
	}
	return sub
}
