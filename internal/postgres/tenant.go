package postgres

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/onda-run/onda/internal/tenantname"
)

// States of a tenant. Active ones are served in full. Of suspended ones nothing is sent, and all else is served: unsubscribing, preferences and bounces
// above all. Moving ones answer ErrMoving, since what they would write could be left behind. Deleted ones are unknown to functions.
const (
	Active    = "active"
	Suspended = "suspended"
	Moving    = "moving"
	Deleted   = "deleted"
)

// Grace is how long a deleted tenant can be resumed, and cannot be purged.
const Grace = 30 * 24 * time.Hour

// ErrSending says that a tenant cannot be deleted or moved yet, since it is sending: what, and the remedy, is in the error's text.
var ErrSending = errors.New("it is sending")

// ErrHeld says that a command set a tenant's state, which its file does not lift: Resume does.
var ErrHeld = errors.New("a command set its state")

// ErrPurging says that the purge of a deleted tenant was begun, so that there is nothing whole to take back.
var ErrPurging = errors.New("its purge was begun, and onda tenant purge ends it")

// TenantInfo is a tenant's row in the registry.
type TenantInfo struct {
	Number  int32         `json:"number"`
	Name    string        `json:"name"`
	State   string        `json:"state"`
	Schema  int           `json:"schema"`
	Offset  time.Duration `json:"offset"`
	Created time.Time     `json:"created"`
	// Deleted is when it was, nil in every other state.
	Deleted *time.Time `json:"deleted,omitempty"`
	// Armed tells whether it may send on this server's history; see Rearm.
	Armed bool `json:"armed"`
	// Login tells whether it has a login of its own, Pooled whether the pool's may enter it.
	Login  bool `json:"login"`
	Pooled bool `json:"pooled"`
	// Held tells whether a command set its state, or else its file.
	Held bool `json:"held"`
	Placement
}

// Tenants lists all tenants by name.
func (a *Admin) Tenants(ctx context.Context) ([]TenantInfo, error) {
	list, err := a.tenants(ctx, "")
	if err != nil {
		return nil, fmt.Errorf("list tenants: %w", err)
	}
	return list, nil
}

// Tenant gives one tenant; ErrUnknownTenant where there is none of the name.
func (a *Admin) Tenant(ctx context.Context, name string) (TenantInfo, error) {
	list, err := a.tenants(ctx, "WHERE t.name = $1", name)
	if err == nil && len(list) == 0 {
		err = ErrUnknownTenant
	}
	if err != nil {
		return TenantInfo{}, fmt.Errorf("tenant %.60q: %w", name, err)
	}
	return list[0], nil
}

func (a *Admin) tenants(ctx context.Context, where string, args ...any) (list []TenantInfo, err error) {
	err = a.inTx(ctx, func(tx pgx.Tx) error {
		rows, err := tx.Query(ctx, `SELECT t.number, t.name, t.state, t.schema, t."offset", t.created_at, t.deleted_at, t.armed = onda.identity(), coalesce(r.rolcanlogin, false),
			EXISTS (SELECT FROM pg_auth_members m JOIN pg_roles p ON p.oid = m.member WHERE m.roleid = r.oid AND p.rolname = 'onda_pool'), t.held, t.namespace, t.own
			FROM onda.tenant t LEFT JOIN pg_roles r ON r.rolname = t.name `+where+` ORDER BY t.name`, args...)
		if err != nil {
			return err
		}
		list, err = pgx.CollectRows(rows, pgx.RowToStructByPos[TenantInfo])
		return err
	})
	return list, err
}

// Sizes are how many bytes the tables and indexes of each tenant take on disk, by its name.
func (a *Admin) Sizes(ctx context.Context) (map[string]int64, error) {
	sizes := map[string]int64{}
	err := a.inTx(ctx, func(tx pgx.Tx) error {
		rows, err := tx.Query(ctx, `SELECT t.name, coalesce(sum(pg_total_relation_size(c.oid)), 0)::bigint FROM onda.tenant t
			LEFT JOIN pg_namespace n ON n.nspname = t.name LEFT JOIN pg_class c ON c.relnamespace = n.oid AND c.relkind IN ('r', 'S') GROUP BY t.name`)
		if err != nil {
			return err
		}
		var name string
		var n int64
		_, err = pgx.ForEachRow(rows, []any{&name, &n}, func() error {
			sizes[name] = n
			return nil
		})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("measure tenants: %w", err)
	}
	return sizes, nil
}

// CreateTenant makes a tenant's role, schema, keys and wake-ups in one transaction, or finds that they are there: made tells which. Of two at once one makes it
// and both succeed. A name that was purged is a new tenant's then. The role of a tenant that is there is made where the server has none, as after a restore into another.
func (a *Admin) CreateTenant(ctx context.Context, name string) (made bool, err error) {
	if err := tenantname.Check(name); err != nil {
		return false, fmt.Errorf("a tenant's name is %w", err)
	}
	steps, err := files("tenant")
	if err != nil {
		return false, err
	}
	err = a.inTx(ctx, func(tx pgx.Tx) error {
		made = false // of an attempt before
		var there bool
		if err := tx.QueryRow(ctx, "SELECT EXISTS (SELECT FROM onda.tenant WHERE name = $1)", name).Scan(&there); err != nil {
			return err
		}
		if !there { // looked at first, since an insert that finds it there uses a number up as well
			ct, err := tx.Exec(ctx, "INSERT INTO onda.tenant (name) VALUES ($1) ON CONFLICT (name) DO NOTHING", name)
			if err != nil {
				return err
			}
			made = ct.RowsAffected() == 1
		}
		if !made {
			t, err := lockTenant(ctx, tx, name)
			switch {
			case err != nil:
				return err
			case t.purging:
				return ErrPurging
			case t.state == Deleted:
				return fmt.Errorf("there is one of this name that was deleted: onda tenant resume %s takes it back, onda tenant purge %[1]s removes it after %s", name, day(t.deleted.Add(Grace)))
			}
		}
		if err := ensureRole(ctx, tx, name, made); err != nil || !made {
			return err
		}
		for v, step := range steps { // in chunks there is nothing to do
			if _, err := stepTenant(ctx, tx, name, v+1, step); err != nil {
				return err
			}
		}
		if err := indexNewTables(ctx, tx, name); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, "INSERT INTO onda.wakeup (tenant, function) SELECT $1, unnest($2::text[])", name, Functions()); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, "DELETE FROM onda.purged WHERE name = $1", name); err != nil {
			return err
		}
		_, err = tx.Exec(ctx, fmt.Sprintf("INSERT INTO %s.key (kind, secret) VALUES ('hmac', $1), ('pepper', $2)", quote(name)), secret(), secret())
		return err
	})
	if err != nil {
		return false, fmt.Errorf("create tenant %s: %w", name, err)
	}
	return made, nil
}

// ensureRole makes the tenant's role where there is none, with the schema of a tenant that is new, and lets it use what is in the schema and what migrations
// will make there. Roles are the server's: another database of it may have made it.
func ensureRole(ctx context.Context, tx pgx.Tx, name string, schema bool) error {
	// A role of this name that is no tenant's would give its rights to every process that may enter the tenant.
	var there, ours bool
	err := tx.QueryRow(ctx, `SELECT count(*) > 0, coalesce(bool_and(NOT (r.rolsuper OR r.rolcreaterole OR r.rolcreatedb OR r.rolreplication OR r.rolbypassrls)
			AND EXISTS (SELECT FROM pg_auth_members m WHERE m.member = r.oid AND m.roleid = 'onda_tenant'::regrole)), true)
		FROM pg_roles r WHERE r.rolname = $1`, name).Scan(&there, &ours)
	if err != nil {
		return err
	}
	if !ours {
		return errors.New("the server has a role of this name that is not a tenant's: take another name")
	}
	var taken bool
	if err := tx.QueryRow(ctx, "SELECT to_regnamespace($1) IS NOT NULL", quote(name)).Scan(&taken); err != nil {
		return err
	}
	if taken && schema {
		return errors.New("the database has a schema of this name that is not a tenant's: take another name")
	}
	if there && !schema {
		return nil
	}
	id := quote(name)
	var asLogin, owners []string
	asLogin = append(asLogin, "SET LOCAL ROLE NONE")
	if !there {
		asLogin = append(asLogin, "CREATE ROLE "+id+" NOLOGIN")
	}
	asLogin = append(asLogin, fmt.Sprintf("GRANT onda_tenant TO %s", id), fmt.Sprintf("GRANT %s TO onda_pool", id))
	if schema {
		asLogin = append(asLogin, fmt.Sprintf("CREATE SCHEMA %s AUTHORIZATION onda_owner", id))
	}
	for _, on := range []string{"ALTER DEFAULT PRIVILEGES IN SCHEMA %s GRANT %s ON %s TO %[1]s", "GRANT %[2]s ON ALL %[3]s IN SCHEMA %[1]s TO %[1]s"} {
		owners = append(owners, fmt.Sprintf(on, id, "SELECT, INSERT, UPDATE, DELETE", "TABLES"), fmt.Sprintf(on, id, "SELECT, USAGE", "SEQUENCES"))
	}
	owners = append(owners, fmt.Sprintf("GRANT USAGE ON SCHEMA %s TO %[1]s", id))
	for _, sql := range append(append(asLogin, "SET LOCAL ROLE onda_owner"), owners...) {
		if _, err := tx.Exec(ctx, sql); err != nil {
			return err
		}
	}
	return nil
}

// tenantRow is what a change of a tenant depends on.
type tenantRow struct {
	number  int32
	state   string
	held    bool
	deleted *time.Time
	now     time.Time // by the server's clock, as deleted is
	purging bool      // its purge was begun; of a name that was purged before and came back from another server it is not
}

// lockTenant reads the tenant's row and keeps it from other changes until the transaction ends.
func lockTenant(ctx context.Context, tx pgx.Tx, name string) (t tenantRow, err error) {
	err = tx.QueryRow(ctx, "SELECT number, state, held, deleted_at, now() FROM onda.tenant WHERE name = $1 FOR UPDATE", name).Scan(&t.number, &t.state, &t.held, &t.deleted, &t.now)
	if errors.Is(err, pgx.ErrNoRows) {
		return t, fmt.Errorf("tenant %.60q: %w", name, ErrUnknownTenant)
	}
	if err == nil && t.state == Deleted { // in a statement of its own, which sees what was done by whoever was waited for
		err = tx.QueryRow(ctx, "SELECT EXISTS (SELECT FROM onda.purged WHERE name = $1)", name).Scan(&t.purging)
	}
	return t, err
}

// Suspend lets nothing of the tenant be sent any more; all else is served. With moving it is not served at all, until Resume: its data is about to be copied,
// and what is in hand must be over by then. inHand is how many batches were being sent at that moment: what was handed over of them gets its outcome, and no
// more than a window each can follow. It holds against the tenant's file: see Follow. Repeating it changes nothing.
func (a *Admin) Suspend(ctx context.Context, tenant string, moving bool) (inHand int, err error) {
	state := Suspended
	if moving {
		state = Moving
	}
	err = a.inTx(ctx, func(tx pgx.Tx) error {
		t, err := lockTenant(ctx, tx, tenant)
		if err != nil {
			return err
		}
		switch {
		case t.state == Deleted:
			return fmt.Errorf("it was deleted: onda tenant resume %s first", tenant)
		case t.state == Moving && !moving: // suspended it would be served again, while its data is copied
			return fmt.Errorf("it is moving, and nothing of it is served: onda tenant resume %s ends that", tenant)
		case t.state != Moving && moving:
			if err := notSending(ctx, tx, tenant, t.state); err != nil {
				return err
			}
		}
		return setState(ctx, tx, tenant, state, true)
	})
	if err == nil {
		// In a transaction of its own, which waits for every mark that did not see the change.
		err = a.inTx(ctx, func(tx pgx.Tx) error {
			ct, err := tx.Exec(ctx, fmt.Sprintf("SELECT FROM %s.batch WHERE state = 'open' AND lease_until > now() ORDER BY id FOR UPDATE", quote(tenant)))
			inHand = int(ct.RowsAffected())
			return err
		})
	}
	if err != nil {
		return 0, fmt.Errorf("suspend tenant %s: %w", tenant, err)
	}
	return inHand, nil
}

// Resume makes a tenant active again that was suspended, moving, or deleted; an ErrPurging where its purge was begun. Work that became due meanwhile is found at the next tick.
func (a *Admin) Resume(ctx context.Context, tenant string) (changed bool, err error) {
	err = a.inTx(ctx, func(tx pgx.Tx) error {
		t, err := lockTenant(ctx, tx, tenant)
		if err != nil || t.state == Active {
			return err
		}
		if t.purging {
			return ErrPurging
		}
		changed = true
		if err := setState(ctx, tx, tenant, Active, false); err != nil {
			return err
		}
		return wakeAll(ctx, tx, tenant)
	})
	if err != nil {
		return false, fmt.Errorf("resume tenant %s: %w", tenant, err)
	}
	return changed, nil
}

// Follow makes a tenant's state (active, suspended or deleted) what its file says. Of the file and of commands the stricter counts: an ErrHeld where it would lift what
// Suspend or Delete set, which holds until Resume, or until a file has said the same. An ErrMoving while it is moving, an ErrPurging where nothing whole could be taken back, and an
// ErrSending as Delete gives it.
func (a *Admin) Follow(ctx context.Context, tenant, state string) (changed bool, err error) {
	err = a.inTx(ctx, func(tx pgx.Tx) error {
		changed = false // of an attempt before
		t, err := lockTenant(ctx, tx, tenant)
		if err != nil {
			return err
		}
		lifts := state == Active || t.state == Deleted
		switch {
		case t.state == Moving:
			return ErrMoving
		case t.state == state:
			return setState(ctx, tx, tenant, state, false)
		case lifts && t.purging:
			return ErrPurging
		case lifts && t.held:
			return ErrHeld
		case state == Deleted:
			err = remove(ctx, tx, tenant, t.state, false)
		default:
			if err = setState(ctx, tx, tenant, state, false); err == nil && lifts {
				err = wakeAll(ctx, tx, tenant)
			}
		}
		changed = err == nil
		return err
	})
	if err != nil {
		return false, fmt.Errorf("make the state of tenant %s what its file says: %w", tenant, err)
	}
	return changed, nil
}

// setState sets the state of a tenant whose row is locked; held says that a command does.
func setState(ctx context.Context, tx pgx.Tx, tenant, state string, held bool) error {
	_, err := tx.Exec(ctx, `UPDATE onda.tenant SET state = $2, held = $3, deleted_at = CASE $2 WHEN 'deleted' THEN coalesce(deleted_at, now()) END
		WHERE name = $1 AND (state, held) IS DISTINCT FROM ($2, $3)`, tenant, state, held)
	return err
}

// wakeAll lets every function look after the tenant at the next tick. Like any writer of wake-ups it takes the lock first: see wakeup.go.
func wakeAll(ctx context.Context, tx pgx.Tx, tenant string) error {
	_, err := tx.Exec(ctx, "SELECT pg_advisory_xact_lock_shared($2, number) FROM onda.tenant WHERE name = $1", tenant, wakeLock)
	if err == nil {
		_, err = tx.Exec(ctx, `UPDATE onda.wakeup w SET at = now() + t."offset" FROM onda.tenant t WHERE t.name = $1 AND w.tenant = t.name AND w.at > now() + t."offset"`, tenant)
	}
	return err
}

// Delete makes the tenant unknown to functions; its data stays until Purge, for which the time comes back, and its hosts are free at once. An ErrSending where it is
// sending: pause or suspend it first. It holds against the tenant's file: see Follow. Repeating it changes nothing.
func (a *Admin) Delete(ctx context.Context, tenant string) (purge time.Time, err error) {
	err = a.inTx(ctx, func(tx pgx.Tx) error {
		t, err := lockTenant(ctx, tx, tenant)
		if err != nil {
			return err
		}
		if err := remove(ctx, tx, tenant, t.state, true); err != nil {
			return err
		}
		return tx.QueryRow(ctx, "SELECT deleted_at FROM onda.tenant WHERE name = $1", tenant).Scan(&purge)
	})
	if err != nil {
		return time.Time{}, fmt.Errorf("delete tenant %s: %w", tenant, err)
	}
	return purge.Add(Grace), nil
}

// remove deletes a tenant whose row is locked, by a command (held) or by its file.
func remove(ctx context.Context, tx pgx.Tx, tenant, state string, held bool) error {
	if state != Deleted {
		if err := notSending(ctx, tx, tenant, state); err != nil {
			return err
		}
	}
	if err := setState(ctx, tx, tenant, Deleted, held); err != nil {
		return err
	}
	_, err := releaseHosts(ctx, tx, tenant, nil)
	return err
}

// notSending gives an ErrSending while batches are in hand, and where the tenant is active, while a run of it goes on.
func notSending(ctx context.Context, tx pgx.Tx, tenant, state string) error {
	if err := notInHand(ctx, tx, tenant); err != nil || state != Active {
		return err
	}
	var runs []string
	err := tx.QueryRow(ctx, fmt.Sprintf(`SELECT ARRAY(SELECT e.name FROM %s.run r JOIN %[1]s.entity e ON e.id = r.entity
		WHERE r.state IN ('scheduled', 'running') AND r.kind <> 'standing' ORDER BY e.name)`, quote(tenant))).Scan(&runs)
	if err == nil && len(runs) > 0 {
		err = fmt.Errorf("%w: %s; pause or cancel what runs, or onda tenant suspend %s first", ErrSending, strings.Join(runs, ", "), tenant)
	}
	return err
}

// notInHand gives an ErrSending while batches of the tenant are leased, or were until a moment ago, so that outcomes are on their way.
func notInHand(ctx context.Context, tx pgx.Tx, tenant string) error {
	var held int
	err := tx.QueryRow(ctx, fmt.Sprintf("SELECT count(*) FROM %s.batch WHERE state = 'open' AND lease_until > now() - interval '1 minute'", quote(tenant))).Scan(&held)
	if err == nil && held > 0 {
		err = fmt.Errorf("%w: batches in hand: %d; onda tenant suspend %s lets nothing more be handed over, try again a minute after it", ErrSending, held, tenant)
	}
	return err
}

// partsAtOnce is how many partitions a transaction drops: a large tenant has a thousand of them, with more indexes than there are locks for all transactions of a server.
const partsAtOnce = 20

// Purge removes a deleted tenant for good when its grace is over: schema, keys, hosts, wake-ups, times at relays, registry row and role. Its number is never given again, and
// Purged tells of its name from then on. One that was killed has left a tenant that cannot be taken back, and is completed by a repeat. roleKept tells that another database of
// the server still uses the role.
func (a *Admin) Purge(ctx context.Context, tenant string) (roleKept bool, err error) {
	for more := true; more && err == nil; {
		err = a.inTx(ctx, func(tx pgx.Tx) error {
			if err := mayPurge(ctx, tx, tenant); err != nil {
				return err
			}
			if _, err := tx.Exec(ctx, "INSERT INTO onda.purged (name) VALUES ($1) ON CONFLICT DO NOTHING", tenant); err != nil {
				return err
			}
			n, err := dropPartitions(ctx, tx, tenant)
			more = n == partsAtOnce
			return err
		})
	}
	if err == nil {
		err = a.inTx(ctx, func(tx pgx.Tx) error {
			if err := mayPurge(ctx, tx, tenant); err != nil {
				return err
			}
			if _, err := tx.Exec(ctx, fmt.Sprintf("DROP SCHEMA %s CASCADE", quote(tenant))); err != nil {
				return err
			}
			for _, sql := range []string{
				"DELETE FROM onda.host WHERE tenant = $1", "DELETE FROM onda.wakeup WHERE tenant = $1", "DELETE FROM onda.failure WHERE tenant = $1",
				"DELETE FROM onda.relay WHERE starts_with(name, $1 || ' ')", // of its own login: see onda.relay_slots
				"DELETE FROM onda.tenant WHERE name = $1",
			} {
				if _, err := tx.Exec(ctx, sql, tenant); err != nil {
					return err
				}
			}
			roleKept, err = dropRole(ctx, tx, tenant)
			return err
		})
	}
	if err != nil {
		return false, fmt.Errorf("purge tenant %s: %w", tenant, err)
	}
	return roleKept, nil
}

// mayPurge locks a tenant's row, and gives an error where it is not deleted, or its grace is not over.
func mayPurge(ctx context.Context, tx pgx.Tx, tenant string) error {
	t, err := lockTenant(ctx, tx, tenant)
	if err != nil {
		return err
	}
	if t.state != Deleted {
		return fmt.Errorf("it is %s: onda tenant delete %s first", t.state, tenant)
	}
	if ends := t.deleted.Add(Grace); t.now.Before(ends) {
		return fmt.Errorf("it was deleted at %s and can be taken back until %s: purge it after that", day(*t.deleted), day(ends))
	}
	return nil
}

// dropPartitions drops up to partsAtOnce partitions of a tenant, and tells how many.
func dropPartitions(ctx context.Context, tx pgx.Tx, tenant string) (n int, err error) {
	rows, err := tx.Query(ctx, `SELECT format('%I.%I', s.nspname, c.relname) FROM pg_class c JOIN pg_namespace s ON s.oid = c.relnamespace
		WHERE s.nspname = $1 AND c.relkind = 'r' AND c.relispartition ORDER BY c.oid LIMIT $2`, tenant, partsAtOnce)
	if err != nil {
		return 0, err
	}
	parts, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil || len(parts) == 0 {
		return 0, err
	}
	_, err = tx.Exec(ctx, "DROP TABLE "+strings.Join(parts, ", "))
	return len(parts), err
}

// Purged tells whether a tenant of the name was purged, and none made since.
func (a *Admin) Purged(ctx context.Context, tenant string) (purged bool, err error) {
	err = a.inTx(ctx, func(tx pgx.Tx) error {
		return tx.QueryRow(ctx, "SELECT EXISTS (SELECT FROM onda.purged WHERE name = $1)", tenant).Scan(&purged)
	})
	if err != nil {
		return false, fmt.Errorf("look whether tenant %s was purged: %w", tenant, err)
	}
	return purged, nil
}

// dropRole drops the role and what it has in this database beyond its schema: temporary tables of a session that is open still.
func dropRole(ctx context.Context, tx pgx.Tx, name string) (kept bool, err error) {
	err = pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, fmt.Sprintf("SET LOCAL ROLE NONE; GRANT %s TO CURRENT_USER; SET LOCAL ROLE %[1]s; DROP OWNED BY %[1]s CASCADE; SET LOCAL ROLE NONE; DROP ROLE %[1]s", quote(name)))
		return err
	})
	var pe *pgconn.PgError
	switch errors.As(err, &pe); {
	case pe == nil:
		return false, err
	case pe.Code == "2BP01": // objects of another database depend on it
		return true, nil
	case pe.Code == "42704": // there is none
		return false, nil
	}
	return false, err
}

// MoveClock moves the tenant's clock by d from where it stands; wake-ups are compared with it, so what became due is found at the next tick. Refused in a
// database that is not for development.
func (a *Admin) MoveClock(ctx context.Context, tenant string, d time.Duration) (now time.Time, err error) {
	err = a.inTx(ctx, func(tx pgx.Tx) error {
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

// AddProgramKey stores the SHA-256 of a program's key; kind is pk or sk.
func (a *Admin) AddProgramKey(ctx context.Context, tenant, kind, name string, sum []byte) error {
	// Ids up to 255 are for the keys of tokens, which name them in one byte.
	table := quote(tenant) + ".key"
	sql := fmt.Sprintf("INSERT INTO %s (id, kind, secret, name) OVERRIDING SYSTEM VALUE SELECT greatest(1000, max(id) + 1), $1, $2, $3 FROM %s", table, table)
	err := a.inTx(ctx, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, sql, kind, sum, name)
		return err
	})
	if err != nil {
		return fmt.Errorf("add a program's key to tenant %s: %w", tenant, err)
	}
	return nil
}

// RetireProgramKeys lets all keys of programs of a kind (pk or sk) and name prove nothing any more, and tells how many did. Functions know within a minute.
func (a *Admin) RetireProgramKeys(ctx context.Context, tenant, kind, name string) (n int, err error) {
	err = a.inTx(ctx, func(tx pgx.Tx) error {
		ct, err := tx.Exec(ctx, fmt.Sprintf("UPDATE %s.key SET retired_at = now() WHERE kind = $1 AND name = $2 AND retired_at IS NULL", quote(tenant)), kind, name)
		n = int(ct.RowsAffected())
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("retire a program's key of tenant %s: %w", tenant, err)
	}
	return n, nil
}

// HasProgramKey tells whether the tenant has a program's key in force, by its SHA-256.
func (a *Admin) HasProgramKey(ctx context.Context, tenant string, sum []byte) (ok bool, err error) {
	sql := fmt.Sprintf("SELECT EXISTS (SELECT FROM %s.key WHERE secret = $1 AND kind IN ('pk', 'sk') AND retired_at IS NULL)", quote(tenant))
	err = a.inTx(ctx, func(tx pgx.Tx) error { return tx.QueryRow(ctx, sql, sum).Scan(&ok) })
	if err != nil {
		return false, fmt.Errorf("look for a program's key of tenant %s: %w", tenant, err)
	}
	return ok, nil
}

func secret() []byte {
	b := make([]byte, 32)
	_, _ = rand.Read(b) // never fails: crypto/rand ends the program instead
	return b
}

func quote(name string) string { return pgx.Identifier{name}.Sanitize() }

func day(t time.Time) string { return t.UTC().Format(time.DateTime) + " UTC" }
