// Package apply puts documents into a tenant: idempotent, in one transaction, all or nothing. A document that changed gets a new version; the
// versions before it stay, for the campaigns that run on them.
package apply

import (
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"strconv"

	"github.com/jackc/pgx/v5"

	"github.com/onda-run/onda/internal/event"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/spec"
)

// applyLock is the class of the advisory lock, per tenant, that lets one apply at a time.
const applyLock = 0x6f6e6463

// Action is what apply does to a document.
type Action string

// The actions.
const (
	Create Action = "create"
	Update Action = "update"
	Keep   Action = "unchanged"
)

// Change is what happened, or would happen, to one document.
type Change struct {
	Kind   string `json:"kind"`
	Name   string `json:"name"`
	Action Action `json:"action"`
	// Version is the number of the version in force afterwards, from 1.
	Version int `json:"version"`
	// Edits are the places that differ, for Update.
	Edits []Edit `json:"edits,omitempty"`
}

// Load reads the documents of a directory and checks them, also against what the tenant has. The error is spec.Problems when there is anything
// wrong with the documents.
func Load(ctx context.Context, tx *postgres.Tx, fsys fs.FS) (*spec.Set, error) {
	known, err := Known(ctx, tx)
	if err != nil {
		return nil, err
	}
	return spec.LoadChecked(fsys, known)
}

// Known reads the tenant's documents in force.
func Known(ctx context.Context, tx *postgres.Tx) (*spec.Stored, error) {
	rows, err := tx.Query(ctx, "SELECT e.kind, d.spec FROM entity e JOIN document d ON d.id = e.current ORDER BY e.kind, e.name")
	if err != nil {
		return nil, fmt.Errorf("read documents: %w", err)
	}
	var docs []spec.Doc
	var kind string
	var stored []byte
	_, err = pgx.ForEachRow(rows, []any{&kind, &stored}, func() error {
		doc, err := spec.Decode(kind, stored)
		docs = append(docs, doc)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read documents: %w", err)
	}
	return spec.NewStored(docs...), nil
}

// Diff tells what Apply would do. It changes nothing.
func Diff(ctx context.Context, tx *postgres.Tx, set *spec.Set) ([]Change, error) {
	stored, err := read(ctx, tx)
	if err != nil {
		return nil, err
	}
	changes := make([]Change, 0, len(set.Documents))
	for _, d := range set.Documents {
		c, err := compare(d, stored[key{d.Kind, d.Name}])
		if err != nil {
			return nil, err
		}
		changes = append(changes, c)
	}
	return changes, nil
}

// Apply stores every document of the set that is new or has changed, and answers what it did to each. The set has been checked by Load in the same
// transaction. Segments that changed are rebuilt.
func Apply(ctx context.Context, tx *postgres.Tx, set *spec.Set) ([]Change, error) {
	if _, err := tx.Exec(ctx, "SELECT pg_advisory_xact_lock($1, $2)", applyLock, tx.Tenant.Number); err != nil {
		return nil, fmt.Errorf("wait for another apply: %w", err)
	}
	changes, err := Diff(ctx, tx, set)
	if err != nil {
		return nil, err
	}
	for i, c := range changes {
		if c.Action == Keep {
			continue
		}
		if err := store(ctx, tx, set.Documents[i], c); err != nil {
			return nil, fmt.Errorf("store %s %s: %w", c.Kind, c.Name, err)
		}
	}
	return changes, storeLinks(ctx, tx, changes)
}

func store(ctx context.Context, tx *postgres.Tx, d *spec.Document, c Change) error {
	var entity int32
	var document int64
	err := tx.QueryRow(ctx, `WITH e AS (INSERT INTO entity (kind, name) VALUES ($1, $2) ON CONFLICT (kind, name) DO UPDATE SET name = excluded.name RETURNING id)
		INSERT INTO document (entity, version, spec, hash) SELECT e.id, $3, $4, decode($5, 'hex') FROM e RETURNING entity, id`,
		d.Kind, d.Name, c.Version, d.JSON, d.Hash()).Scan(&entity, &document)
	if err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, "UPDATE entity SET current = $2 WHERE id = $1", entity, document); err != nil {
		return err
	}
	if d.Kind != spec.KindSegment {
		return nil
	}
	e, err := event.New(tx.Tenant.Name, "onda", "", event.DeriveID(tx.Tenant.Name, "segment.rebuild.requested", strconv.FormatInt(document, 10)),
		event.SegmentRebuildRequested{Segment: d.Name})
	if err != nil {
		return err
	}
	tx.Wake("segment", tx.Now())
	return tx.Publish(ctx, "campaign", e)
}

type key struct{ kind, name string }

type version struct {
	number int
	hash   string
	json   []byte
}

// read gives the versions in force and, for documents that were taken away, the number of the last.
func read(ctx context.Context, tx *postgres.Tx) (map[key]version, error) {
	rows, err := tx.Query(ctx, `SELECT DISTINCT ON (e.kind, e.name) e.kind, e.name, d.version, CASE WHEN d.id = e.current THEN encode(d.hash, 'hex') ELSE '' END, d.spec
		FROM entity e JOIN document d ON d.entity = e.id ORDER BY e.kind, e.name, d.version DESC`)
	if err != nil {
		return nil, fmt.Errorf("read documents: %w", err)
	}
	out := map[key]version{}
	var k key
	var v version
	_, err = pgx.ForEachRow(rows, []any{&k.kind, &k.name, &v.number, &v.hash, &v.json}, func() error {
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
	if was.hash == d.Hash() {
		c.Action, c.Version = Keep, was.number
		return c, nil
	}
	if was.hash == "" {
		return c, nil
	}
	c.Action = Update
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
