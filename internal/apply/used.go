package apply

import (
	"context"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/spec"
)

// UsedBy tells for each document that others refer to, which those are: documents in force, and versions that are no longer in force, but by which something is still
// under way. Each list is sorted.
func UsedBy(ctx context.Context, tx *postgres.Tx) (map[spec.Ref][]Use, error) {
	rows, err := tx.Query(ctx, `SELECT e.kind, e.name, d.version, d.id IS DISTINCT FROM e.current, d.spec FROM document d JOIN entity e ON e.id = d.entity
		WHERE d.id = e.current OR d.id IN (SELECT r.document FROM run r WHERE r.kind <> 'standing' AND r.state IN ('scheduled', 'running', 'paused') UNION ALL
			SELECT j.document FROM journey j WHERE j.state = 'active') ORDER BY e.kind, e.name, d.version`)
	if err != nil {
		return nil, fmt.Errorf("read what documents refer to: %w", err)
	}
	used := map[spec.Ref][]Use{}
	var u Use
	var stored []byte
	_, err = pgx.ForEachRow(rows, []any{&u.Kind, &u.Name, &u.Version, &u.Past, &stored}, func() error {
		refs, err := spec.References(stored)
		if err != nil {
			return fmt.Errorf("%s %s: %w", u.Kind, u.Name, err)
		}
		for _, r := range refs {
			if r != u.Ref {
				used[r] = append(used[r], u)
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read what documents refer to: %w", err)
	}
	for _, uses := range used {
		slices.SortStableFunc(uses, func(a, b Use) int { return spec.CompareRefs(a.Ref, b.Ref) })
	}
	return used, nil
}

// Use is a document that refers to another.
type Use struct {
	spec.Ref
	Version int `json:"version"`
	// Past says that this version is no longer in force, but that something is still under way by it.
	Past bool `json:"past,omitempty"`
}

// String names the document, and its version where that is not the one in force.
func (u Use) String() string {
	if u.Past {
		return fmt.Sprintf("%s %s (version %d, by which something is under way)", u.Kind, u.Name, u.Version)
	}
	return u.Kind + " " + u.Name
}
