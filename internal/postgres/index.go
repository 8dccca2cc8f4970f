package postgres

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
)

// What an index on contacts is for.
const (
	IndexValue  = "value"  // of a date, which is looked up between two
	IndexDay    = "day"    // of a date, its day of the year
	IndexUnique = "unique" // no two contacts have the same value
)

// ContactIndex is an index on one field of contacts.
type ContactIndex struct {
	Entity int32  // of the field; 0 for created
	Field  string // its name
	For    string
}

// indexPrefix begins the names of all that IndexContacts makes, and of nothing else.
const indexPrefix = "field_"

// Name is the index's in Postgres. A field's name may be too long for it.
func (x ContactIndex) Name() string { return fmt.Sprintf("%s%d_%s", indexPrefix, x.Entity, x.For) }

// sql makes the index. Without its first part it is what of a contact is indexed; values are hashed where they need only be told apart, since a text may be too long for an index, and
// what is in an index is in the errors that Postgres logs.
func (x ContactIndex) sql(table, field string) string {
	value := "(fields->>" + field + `) COLLATE "C"`
	switch {
	case x.Entity == 0: // it never changes, so that this keeps no update from being hot; the summary that is always there helps only where rows lie in its order
		return " INDEX CONCURRENTLY " + x.Name() + " ON " + table + " (created_at)"
	case x.For == IndexUnique:
		return " UNIQUE INDEX CONCURRENTLY " + x.Name() + " ON " + table + " (md5(fields->>" + field + ")) WHERE fields->>" + field + " IS NOT NULL"
	case x.For == IndexDay:
		return " INDEX CONCURRENTLY " + x.Name() + " ON " + table + " (substr(fields->>" + field + ", 6, 5)) WHERE fields->>" + field + " IS NOT NULL"
	}
	return " INDEX CONCURRENTLY " + x.Name() + " ON " + table + " ((" + value + ")) WHERE fields->>" + field + " IS NOT NULL"
}

// StoredDocument is a document in force as it is stored.
type StoredDocument struct {
	Entity     int32
	Kind, Name string
	Spec       []byte
}

// Documents gives the tenant's documents in force of some kinds.
func (a *Admin) Documents(ctx context.Context, tenant string, kinds ...string) (docs []StoredDocument, err error) {
	err = a.inTx(ctx, func(tx pgx.Tx) error {
		if err := inSchema(ctx, tx, tenant); err != nil {
			return err
		}
		rows, err := tx.Query(ctx, "SELECT e.id, e.kind, e.name, d.spec FROM entity e JOIN document d ON d.id = e.current WHERE e.kind = ANY ($1) ORDER BY e.id", kinds)
		if err != nil {
			return err
		}
		docs, err = pgx.CollectRows(rows, pgx.RowToStructByPos[StoredDocument])
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read documents of tenant %s: %w", tenant, err)
	}
	return docs, nil
}

// Indexed is what became of indexes.
type Indexed struct {
	Made, Dropped []ContactIndex
	// Refused are those that cannot be made, with how many values are had by more than one contact.
	Refused []RefusedIndex
}

// RefusedIndex is a unique index on what is not unique.
type RefusedIndex struct {
	ContactIndex
	Values int64 // that several contacts have
}

// IndexContacts makes the indexes on a tenant's contacts that are wanted, one after the other, and drops those of its own that are not, or that a kill left half made. Contacts are read and
// written meanwhile. To run it again changes nothing.
func (a *Admin) IndexContacts(ctx context.Context, tenant string, want []ContactIndex) (done Indexed, err error) {
	err = a.indexing(ctx, tenant, func() (err error) {
		done, err = a.indexContacts(ctx, tenant, want)
		return err
	})
	if err != nil {
		err = fmt.Errorf("index contacts of tenant %s: %w", tenant, err)
	}
	return done, err
}

func (a *Admin) indexContacts(ctx context.Context, tenant string, want []ContactIndex) (done Indexed, err error) {
	rows, err := a.conn.Query(ctx, `SELECT c.relname, i.indisvalid FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid WHERE i.indrelid = to_regclass($1) AND starts_with(c.relname, $2) ORDER BY 1`,
		quote(tenant)+".contact", indexPrefix)
	if err != nil {
		return done, err
	}
	wanted, have := map[string]ContactIndex{}, map[string]bool{}
	for _, x := range want {
		wanted[x.Name()] = x
	}
	var name string
	var valid bool
	var drop []string
	_, err = pgx.ForEachRow(rows, []any{&name, &valid}, func() error {
		if _, ok := wanted[name]; ok && valid {
			have[name] = true
		} else {
			drop = append(drop, name)
		}
		return nil
	})
	if err != nil {
		return done, err
	}
	for _, name := range drop {
		if err := a.dropIndex(ctx, tenant, name); err != nil {
			return done, err
		}
		if x, again := wanted[name]; !again {
			_, err := fmt.Sscanf(name, indexPrefix+"%d_%s", &x.Entity, &x.For)
			done.Dropped = append(done.Dropped, x)
			if err != nil {
				return done, err
			}
		}
	}
	for _, x := range slices.SortedFunc(slices.Values(want), func(a, b ContactIndex) int { return cmp.Compare(a.Name(), b.Name()) }) {
		if have[x.Name()] {
			continue
		}
		values, err := a.makeIndex(ctx, tenant, x)
		switch {
		case err != nil:
			return done, err
		case values > 0:
			done.Refused = append(done.Refused, RefusedIndex{x, values})
		default:
			done.Made = append(done.Made, x)
		}
	}
	return done, nil
}

func (a *Admin) dropIndex(ctx context.Context, tenant, name string) error {
	_, err := a.conn.Exec(ctx, "DROP INDEX CONCURRENTLY IF EXISTS "+quote(tenant)+"."+quote(name))
	return err
}

// makeIndex makes one, or tells how many values several contacts have where none may be had twice.
func (a *Admin) makeIndex(ctx context.Context, tenant string, x ContactIndex) (values int64, err error) {
	table := quote(tenant) + ".contact"
	var field string // a tenant can call a field whatever it likes
	if err := a.conn.QueryRow(ctx, "SELECT quote_literal($1::text) || '::text'", x.Field).Scan(&field); err != nil {
		return 0, err
	}
	_, err = a.conn.Exec(ctx, "CREATE"+x.sql(table, field))
	if err == nil {
		return 0, nil
	}
	twice := failedWith(err, "23505")
	if !a.conn.IsClosed() { // what is left of it would only cost
		after, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		if derr := a.dropIndex(after, tenant, x.Name()); derr != nil && twice {
			return 0, derr
		}
	}
	if !twice {
		return 0, err
	}
	err = a.conn.QueryRow(ctx, "SELECT count(*) FROM (SELECT FROM "+table+" WHERE fields->>"+field+" IS NOT NULL GROUP BY fields->>"+field+" HAVING count(*) > 1) v").Scan(&values)
	return max(values, 1), err // somebody may have mended it meanwhile
}
