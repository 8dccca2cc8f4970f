package postgres

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// tableIndex is an index on a table that grows.
type tableIndex struct {
	table, name string
	on          string // what CREATE INDEX says behind the table
}

// tableIndexes are the indexes of every tenant that came after its tables. A migration makes none on a table that grows: in its transaction whoever writes would wait for as long as that
// takes, and readers of facts of all tenants with them. Admin.Migrate makes them, once the tenant has the newest schema; all must be right without, only slower.
func tableIndexes() []tableIndex {
	const byTime = "USING brin (%s timestamptz_minmax_multi_ops) WITH (pages_per_range = 64, autosummarize = on)"
	return []tableIndex{
		// What happened between two moments, of whomever: segments are swept for what time alone changes. These take a few hundred KB a partition and cost writers next to nothing, since none
		// of the times is changed but with what other indexes are over; what was told late is borne by there being several ranges a block.
		{"fact", "fact_at", fmt.Sprintf(byTime, "at")},
		{"delivery", "delivery_at", fmt.Sprintf(byTime, "at")},
		{"contact", "contact_created", fmt.Sprintf(byTime, "created_at")},
		// Facts that are about many contacts at once, whom no index finds: a few thousand to a million contacts.
		{"fact", "fact_sets", "(kind, at) WHERE contacts IS NOT NULL"},
		{"contact", "contact_merged", "(merged_into) WHERE merged_into IS NOT NULL"},
		{"contact", "contact_erased", "(erased_at) WHERE erased_at IS NOT NULL"},
	}
}

// indexNewTables makes them in the transaction that made the tables.
func indexNewTables(ctx context.Context, tx pgx.Tx, tenant string) error {
	for _, x := range tableIndexes() {
		if _, err := tx.Exec(ctx, "CREATE INDEX "+x.name+" ON "+quote(tenant)+"."+x.table+" "+x.on); err != nil {
			return err
		}
	}
	return nil
}

// indexTables makes those that a tenant has not, or of which a kill left but a part, one partition after the other. All is read and written meanwhile. made names them.
func (a *Admin) indexTables(ctx context.Context, tenant string) (made []string, err error) {
	err = a.indexing(ctx, tenant, func() error {
		for _, x := range tableIndexes() {
			names, err := a.indexTable(ctx, tenant, x)
			for _, n := range names {
				made = append(made, tenant+"."+n)
			}
			if err != nil {
				return fmt.Errorf("%s: %w", x.name, err)
			}
		}
		return nil
	})
	if err != nil {
		err = fmt.Errorf("index tables of tenant %s: %w", tenant, err)
	}
	return made, err
}

func (a *Admin) indexTable(ctx context.Context, tenant string, x tableIndex) (made []string, err error) {
	table, index := quote(tenant)+"."+x.table, quote(tenant)+"."+x.name
	var parted, there bool
	if err := a.conn.QueryRow(ctx, "SELECT relkind = 'p', to_regclass($2) IS NOT NULL FROM pg_class WHERE oid = to_regclass($1)", table, index).Scan(&parted, &there); err != nil {
		return nil, err
	}
	if !parted {
		ok, err := a.makeTableIndex(ctx, tenant, x.table, x.name, x.on)
		if ok {
			made = append(made, x.name)
		}
		return made, err
	}
	if !there { // of the table alone, which is done at once; partitions that are made from now on have it
		err := a.inTx(ctx, func(tx pgx.Tx) error {
			_, err := tx.Exec(ctx, "CREATE INDEX "+x.name+" ON ONLY "+table+" "+x.on)
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	rows, err := a.conn.Query(ctx, `SELECT p.relname::text FROM pg_inherits h JOIN pg_class p ON p.oid = h.inhrelid WHERE h.inhparent = to_regclass($1)
		AND NOT EXISTS (SELECT FROM pg_inherits c JOIN pg_index i ON i.indexrelid = c.inhrelid WHERE c.inhparent = to_regclass($2) AND i.indrelid = p.oid) ORDER BY p.oid DESC`, table, index)
	if err != nil {
		return nil, err
	}
	parts, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, err
	}
	for _, part := range parts {
		name := x.name + strings.TrimPrefix(part, x.table) // fact_at_0
		if _, err := a.makeTableIndex(ctx, tenant, part, name, x.on); err != nil {
			return made, err
		}
		err := a.inTx(ctx, func(tx pgx.Tx) error {
			_, err := tx.Exec(ctx, "ALTER INDEX "+index+" ATTACH PARTITION "+quote(tenant)+"."+quote(name))
			return err
		})
		switch {
		case failedWith(err, "42P01", "42704"): // the partition was forgotten meanwhile
		case err != nil:
			return made, err
		default:
			made = append(made, name)
		}
	}
	return made, nil
}

// makeTableIndex makes one where there is none that is whole, and tells whether it did. There is nothing to do where the partition was forgotten meanwhile.
func (a *Admin) makeTableIndex(ctx context.Context, tenant, table, name, on string) (made bool, err error) {
	const tries = 5
	for range tries {
		var there, whole bool
		err = a.conn.QueryRow(ctx, "SELECT count(*) > 0, coalesce(bool_and(indisvalid), false) FROM pg_index WHERE indexrelid = to_regclass($1)", quote(tenant)+"."+quote(name)).Scan(&there, &whole)
		if err != nil || whole {
			return false, err
		}
		if there { // what a kill left, or the try before
			if err := a.dropIndex(ctx, tenant, name); err != nil {
				return false, err
			}
		}
		_, err = a.conn.Exec(ctx, "CREATE INDEX CONCURRENTLY "+quote(name)+" ON "+quote(tenant)+"."+quote(table)+" "+on)
		switch {
		case err == nil:
			return true, nil
		case failedWith(err, "42P01"):
			return false, nil
		case !failedWith(err, "40P01"): // somebody waits for the table while this waits for them; who waited in vain for a lock need not throw away again what it made
			return false, err
		}
	}
	return false, fmt.Errorf("no lock after %d tries: %w", tries, err)
}

const (
	// indexLock is the class of the lock between those who make indexes of a tenant: one would take what another is making for what a kill left.
	indexLock = 0x6f6e6467
	indexLook = 200 * time.Millisecond
)

// ErrHeldUp says that an index was not made since another's transaction was open all the time, which that of any other tenant would wait for as well.
var ErrHeldUp = errors.New("no index was made while another transaction was open for long")

// heldUp is ErrHeldUp with whose the oldest transaction is, if an index got no lock; else the error as it is.
func (a *Admin) heldUp(ctx context.Context, err error) error {
	if !noLock(err) || a.conn.IsClosed() {
		return err
	}
	return fmt.Errorf("%w (%s): run onda migrate again when it is over: %w", ErrHeldUp, a.oldest(ctx), err)
}

// oldest says whose the oldest transaction in the database is.
func (a *Admin) oldest(ctx context.Context) (who string) {
	// What it does is not told: values may be in it. A login that may not see when others began goes by what Postgres keeps for them.
	const oldest = `SELECT pg_catalog.format('process %s of %s%s%s', pid, usename, ', ' || nullif(application_name, ''), pg_catalog.to_char(xact_start AT TIME ZONE 'UTC', '", since" YYYY-MM-DD HH24:MI:SS "UTC"'))
		FROM pg_catalog.pg_stat_activity WHERE datname = pg_catalog.current_database() AND pid <> pg_catalog.pg_backend_pid() AND coalesce(backend_type, 'client backend') = 'client backend'
		AND coalesce(xact_start::text, backend_xid::text, backend_xmin::text) IS NOT NULL ORDER BY xact_start, greatest(pg_catalog.age(backend_xid), pg_catalog.age(backend_xmin)) DESC NULLS LAST LIMIT 1`
	switch err := a.conn.QueryRow(ctx, oldest).Scan(&who); {
	case errors.Is(err, pgx.ErrNoRows):
		return "it is over by now"
	case err != nil:
		return "by whom is not known: " + err.Error()
	}
	return who
}

// indexing runs f, which makes or drops indexes of a tenant, in no transaction, since Postgres makes none concurrently in one. It is onda_owner's, and nobody else does the same meanwhile. To
// wait for whoever has a transaction open holds up nobody, but is not for ever: then the error matches ErrHeldUp.
func (a *Admin) indexing(ctx context.Context, tenant string, f func() error) (err error) {
	for _, sql := range []string{"SET ROLE onda_owner", "SET search_path = pg_catalog, pg_temp", fmt.Sprintf("SET lock_timeout = %d", a.patience.Milliseconds()), "SET statement_timeout = 0"} {
		if _, err := a.conn.Exec(ctx, sql); err != nil {
			return err
		}
	}
	defer func() {
		after, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		if a.conn.IsClosed() {
			return
		}
		_, lerr := a.conn.Exec(after, "SELECT pg_advisory_unlock_all()")
		_, rerr := a.conn.Exec(after, "RESET ROLE; RESET search_path; RESET lock_timeout; RESET statement_timeout")
		err = errors.Join(a.heldUp(after, err), lerr, rerr)
	}()
	var number int32
	if err := a.conn.QueryRow(ctx, "SELECT number FROM onda.tenant WHERE name = $1", tenant).Scan(&number); err != nil {
		return err
	}
	for {
		// Asked for again and again: who waited for it in a statement would be waited for by the index that is being made.
		var mine bool
		if err := a.conn.QueryRow(ctx, "SELECT pg_try_advisory_lock($1, $2)", indexLock, number).Scan(&mine); err != nil {
			return err
		}
		if mine {
			return f()
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(indexLook):
		}
	}
}
