// Package apply puts documents into a tenant: idempotent, in one transaction, all or nothing. A document that changed gets a new version; the
// versions before it stay, for the campaigns that run on them.
package apply

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/onda-run/onda/internal/emailsource"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/predicate"
	"github.com/onda-run/onda/internal/spec"
)

// applyLock is the class of the advisory lock, per tenant, that lets one apply at a time.
const applyLock = 0x6f6e6470

// Action is what apply does to a document.
type Action string

// The actions.
const (
	Create Action = "create"
	Update Action = "update"
	Keep   Action = "unchanged"
	// Affected: its document stays, and others will be in it, because of what the documents that change say.
	Affected Action = "affected"
	Remove   Action = "remove"
)

// Change is what happened, or would happen, to one document.
type Change struct {
	Kind   string `json:"kind"`
	Name   string `json:"name"`
	Action Action `json:"action"`
	// Version is the number of the version in force afterwards, from 1; 0 of one that is taken away.
	Version int `json:"version"`
	// Edits are the places that differ, for Update.
	Edits []Edit `json:"edits,omitempty"`
	// Remade tells of an email that what is made of it differs, such as by a layout that changed: a new version, so that a mail is decided by its version.
	Remade bool `json:"remade,omitempty"`
	// Members says, of a segment, who joins and leaves: Diff tells it.
	Members *Members `json:"members,omitempty"`
}

// Directory applies the documents of a directory and then, in the same transaction, has done what else belongs to it; then may be nil. The error is spec.Problems
// when there is anything wrong with the documents, and then nothing was applied. The set is nil where there is none.
//
// They are checked, and emails put together, before the transaction begins: that takes as long as the compiler of MJML does, and Postgres ends a transaction that
// does nothing meanwhile.
func Directory(ctx context.Context, db *postgres.DB, tenant string, fsys fs.FS, then func(ctx context.Context, tx *postgres.Tx, set *spec.Set) error) (changes []Change, set *spec.Set, err error) {
	in := func(f func(ctx context.Context, tx *postgres.Tx) error) error { return db.InTenant(ctx, tenant, f) }
	set, err = load(in, fsys, func(ctx context.Context, tx *postgres.Tx, set *spec.Set) (err error) {
		if changes, err = Apply(ctx, tx, set); err != nil || then == nil {
			return err
		}
		return then(ctx, tx, set)
	}, lock)
	if err != nil {
		return nil, set, err
	}
	return changes, set, nil
}

// Read is Directory for who only looks, in a transaction that only reads: it waits for no apply and keeps none from anything.
func Read(ctx context.Context, db *postgres.DB, tenant string, fsys fs.FS, look func(ctx context.Context, tx *postgres.Tx, set *spec.Set) error) (*spec.Set, error) {
	in := func(f func(ctx context.Context, tx *postgres.Tx) error) error {
		return db.InTenantSnapshot(ctx, tenant, f)
	}
	return load(in, fsys, look, func(context.Context, *postgres.Tx) error { return nil })
}

// loadTries is how often documents are read anew because others were applied meanwhile.
const loadTries = 5

// load reads and checks the documents of a directory, and does something with them in a transaction, in which those documents are still in force that they were checked
// against, once alone has been called.
func load(in func(func(context.Context, *postgres.Tx) error) error, fsys fs.FS,
	do func(context.Context, *postgres.Tx, *spec.Set) error, alone func(context.Context, *postgres.Tx) error,
) (*spec.Set, error) {
	for range loadTries {
		var known *spec.Stored
		var versions []int64
		if err := in(func(ctx context.Context, tx *postgres.Tx) (err error) {
			known, versions, err = inForce(ctx, tx)
			return err
		}); err != nil {
			return nil, err
		}
		set, err := spec.LoadChecked(fsys, known, emailsource.Compile)
		if err != nil {
			return set, err
		}
		moved := false
		err = in(func(ctx context.Context, tx *postgres.Tx) error {
			if err := alone(ctx, tx); err != nil {
				return err
			}
			_, now, err := inForce(ctx, tx)
			if err != nil {
				return err
			}
			if moved = !slices.Equal(versions, now); moved {
				return nil
			}
			if err := computable(ctx, tx, set); err != nil {
				return err
			}
			return do(ctx, tx, set)
		})
		if err != nil || !moved {
			return set, err
		}
	}
	return nil, errors.New("others apply documents all the time: wait until they are done, and try again")
}

// lock lets one apply at a time, until the transaction's end.
func lock(ctx context.Context, tx *postgres.Tx) error {
	if _, err := tx.Exec(ctx, "SELECT pg_advisory_xact_lock($1, $2)", applyLock, tx.Tenant.Number); err != nil {
		return fmt.Errorf("wait for another apply: %w", err)
	}
	return nil
}

// computable finds segments that are well written and that Postgres cannot be asked about all the same, such as by a pattern that is too large. They would be set aside.
func computable(ctx context.Context, tx *postgres.Tx, set *spec.Set) error {
	w, err := worldOf(ctx, tx, set)
	if err != nil {
		return err
	}
	var problems spec.Problems
	for _, d := range set.Documents {
		if s := w.segments[d.Name]; d.Kind == spec.KindSegment && s.err != nil {
			problems = append(problems, spec.Problem{File: d.File, Line: d.Line, Col: d.Col, Msg: s.err.Error()})
		}
	}
	return problems.Err()
}

// Known reads the tenant's documents in force, and the last versions of fields that were taken away: values of those are still stored.
func Known(ctx context.Context, tx *postgres.Tx) (*spec.Stored, error) {
	known, _, err := inForce(ctx, tx)
	return known, err
}

// inForce is Known, with numbers that are others once any of it is another.
func inForce(ctx context.Context, tx *postgres.Tx) (*spec.Stored, []int64, error) {
	rows, err := tx.Query(ctx, `SELECT e.kind, d.spec, e.current IS NULL, d.id FROM entity e JOIN document d ON d.id = coalesce(e.current,
			(SELECT max(l.id) FROM document l WHERE l.entity = e.id AND e.kind = 'Field')) ORDER BY e.kind, e.name`)
	if err != nil {
		return nil, nil, fmt.Errorf("read documents: %w", err)
	}
	var docs, gone []spec.Doc
	var versions []int64
	var kind string
	var stored []byte
	var away bool
	var id int64
	_, err = pgx.ForEachRow(rows, []any{&kind, &stored, &away, &id}, func() error {
		doc, err := spec.Decode(kind, stored)
		if away {
			gone, id = append(gone, doc), -id
		} else {
			docs = append(docs, doc)
		}
		versions = append(versions, id)
		return err
	})
	if err != nil {
		return nil, nil, fmt.Errorf("read documents: %w", err)
	}
	return spec.NewStored(docs...).TakenAway(gone...), versions, nil
}

// Diff tells what Apply would do, and how many contacts would join and leave the segments that ask something else then, in the set or not; those that are not counted
// within limit, in all, say so. gone are documents that are to be taken away. It changes nothing.
func Diff(ctx context.Context, tx *postgres.Tx, set *spec.Set, gone []spec.Ref, limit time.Duration) ([]Change, error) {
	all, err := plan(ctx, tx, set)
	if err != nil {
		return nil, err
	}
	changes := make([]Change, len(all))
	for i, p := range all {
		changes[i] = p.Change
	}
	w, err := worldOf(ctx, tx, set, gone...)
	if err != nil {
		return nil, err
	}
	for _, r := range gone {
		c := Change{Kind: r.Kind, Name: r.Name, Action: Remove}
		if n, ok := w.gone[r.Name]; ok && r.Kind == spec.KindSegment {
			c.Members = &Members{Now: n, Leaves: n}
		}
		changes = append(changes, c)
	}
	return w.impact(ctx, changes, limit)
}

// planned is a document and what is to be done to it.
type planned struct {
	Change
	document *spec.Document
}

// plan compares the documents of a set, and the emails that its layouts change, with those in force.
func plan(ctx context.Context, tx *postgres.Tx, set *spec.Set) ([]planned, error) {
	stored, err := read(ctx, tx)
	if err != nil {
		return nil, err
	}
	all := make([]planned, 0, len(set.Documents))
	for _, d := range set.Documents {
		c, err := compare(d, stored[key{d.Kind, d.Name}])
		if err != nil {
			return nil, err
		}
		all = append(all, planned{c, d})
	}
	for _, d := range set.Remade {
		if was := stored[key{d.Kind, d.Name}]; was.compiled != string(d.Compiled.JSON()) {
			all = append(all, planned{Change{Kind: d.Kind, Name: d.Name, Action: Update, Version: was.number + 1, Remade: true}, d})
		}
	}
	return all, nil
}

// Apply stores every document of the set that is new or has changed, and answers what it did to each. The set has been checked against what is in force, as Directory does.
// Segments whose answer may be another now are rebuilt.
func Apply(ctx context.Context, tx *postgres.Tx, set *spec.Set) ([]Change, error) {
	all, err := plan(ctx, tx, set)
	if err != nil {
		return nil, err
	}
	before, err := predicate.Load(ctx, tx)
	if err != nil {
		return nil, err
	}
	changes := make([]Change, len(all))
	for i, p := range all {
		if changes[i] = p.Change; p.Action == Keep {
			continue
		}
		if err := store(ctx, tx, p.document, p.Change); err != nil {
			return nil, fmt.Errorf("store %s %s: %w", p.Kind, p.Name, err)
		}
	}
	return changes, rebuild(ctx, tx, changes, before.Zone)
}

func store(ctx context.Context, tx *postgres.Tx, d *spec.Document, c Change) error {
	var compiled []byte
	switch {
	case d.Compiled != nil:
		compiled = d.Compiled.JSON()
	case d.Kind == spec.KindEmail:
		return errors.New("it has not been put together: only what was checked with a compiler can be applied")
	}
	var entity int32
	var document int64
	var err error
	if d.JSON == nil { // an email that only its layout changed
		err = tx.QueryRow(ctx, `INSERT INTO document (entity, version, spec, compiled, hash) SELECT e.id, $3, was.spec, $4, was.hash
			FROM entity e JOIN document was ON was.id = e.current WHERE e.kind = $1 AND e.name = $2 RETURNING entity, id`,
			d.Kind, d.Name, c.Version, compiled).Scan(&entity, &document)
	} else {
		err = tx.QueryRow(ctx, `WITH e AS (INSERT INTO entity (kind, name) VALUES ($1, $2) ON CONFLICT (kind, name) DO UPDATE SET name = excluded.name RETURNING id)
			INSERT INTO document (entity, version, spec, compiled, hash) SELECT e.id, $3, $4, $5, decode($6, 'hex') FROM e RETURNING entity, id`,
			d.Kind, d.Name, c.Version, d.JSON, compiled, d.Hash()).Scan(&entity, &document)
	}
	if err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, "UPDATE entity SET current = $2 WHERE id = $1", entity, document); err != nil {
		return err
	}
	for hash, content := range d.Files {
		if _, err := tx.Exec(ctx, "INSERT INTO attachment (sha256, content) VALUES (decode($1, 'hex'), $2) ON CONFLICT DO NOTHING", hash, content); err != nil {
			return err
		}
	}
	if d.Kind == spec.KindEmail {
		return storeLinks(ctx, tx, document, d.Compiled.Links())
	}
	return nil
}

// storeLinks gives an id to each link of an email: a click leads only to a link that has one.
func storeLinks(ctx context.Context, tx *postgres.Tx, document int64, urls []string) error {
	_, err := tx.Exec(ctx, `INSERT INTO link (document, url) SELECT $1, u FROM unnest($2::text[]) WITH ORDINALITY u (u, n) ORDER BY n
		ON CONFLICT (document, url) DO NOTHING`, document, urls)
	return err
}

type key struct{ kind, name string }

type version struct {
	number   int
	hash     string
	json     []byte
	compiled string
}

// read gives the versions in force and, for documents that were taken away, the number of the last.
func read(ctx context.Context, tx *postgres.Tx) (map[key]version, error) {
	rows, err := tx.Query(ctx, `SELECT DISTINCT ON (e.kind, e.name) e.kind, e.name, d.version, CASE WHEN d.id = e.current THEN encode(d.hash, 'hex') ELSE '' END, d.spec, coalesce(d.compiled::text, '')
		FROM entity e JOIN document d ON d.entity = e.id ORDER BY e.kind, e.name, d.version DESC`)
	if err != nil {
		return nil, fmt.Errorf("read documents: %w", err)
	}
	out := map[key]version{}
	var k key
	var v version
	_, err = pgx.ForEachRow(rows, []any{&k.kind, &k.name, &v.number, &v.hash, &v.json, &v.compiled}, func() error {
		out[k] = v
		v.json = nil
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read documents: %w", err)
	}
	return out, nil
}

func compare(d *spec.Document, was version) (Change, error) {
	c := Change{Kind: d.Kind, Name: d.Name, Action: Create, Version: was.number + 1}
	if was.hash == "" {
		return c, nil
	}
	c.Remade = d.Compiled != nil && was.compiled != string(d.Compiled.JSON())
	if was.hash == d.Hash() {
		if c.Action = Update; !c.Remade {
			c.Action, c.Version = Keep, was.number
		}
		return c, nil
	}
	c.Action, c.Remade = Update, false // that goes without saying
	var before, after any
	if err := json.Unmarshal(was.json, &before); err != nil {
		return c, fmt.Errorf("read stored %s %s: %w", d.Kind, d.Name, err)
	}
	if err := json.Unmarshal(d.JSON, &after); err != nil {
		return c, fmt.Errorf("read %s %s: %w", d.Kind, d.Name, err)
	}
	c.Edits = edits("", before, after)
	return c, nil
}
