package apply

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/predicate"
	"github.com/onda-run/onda/internal/spec"
)

// ErrUnknown says that there is no document in force of a name.
var ErrUnknown = errors.New("there is no such document")

// InUse says why documents cannot be taken away.
type InUse []InUseOf

// InUseOf is a document that cannot be taken away: others refer to it, or it is under way itself.
type InUseOf struct {
	spec.Ref
	By []Use
	// Open: it is a campaign or broadcast that is under way.
	Open bool
}

// Error names all of them, a line each.
func (e InUse) Error() string {
	var lines []string
	for _, u := range e {
		if u.Open {
			lines = append(lines, fmt.Sprintf("%s %s is under way: onda campaign cancel %[2]s ends it", u.Kind, u.Name))
		}
		by := make([]string, len(u.By))
		for i, b := range u.By {
			by[i] = b.String()
		}
		if len(by) > 0 {
			lines = append(lines, fmt.Sprintf("%s %s is used by %s", u.Kind, u.Name, strings.Join(by, ", ")))
		}
	}
	return strings.Join(lines, "\n")
}

// Beside gives the documents in force that are not in a set.
func Beside(ctx context.Context, tx *postgres.Tx, set *spec.Set) ([]spec.Ref, error) {
	rows, err := tx.Query(ctx, "SELECT kind, name FROM entity WHERE current IS NOT NULL")
	if err != nil {
		return nil, fmt.Errorf("read documents: %w", err)
	}
	all, err := pgx.CollectRows(rows, pgx.RowToStructByPos[spec.Ref])
	if err != nil {
		return nil, fmt.Errorf("read documents: %w", err)
	}
	all = slices.DeleteFunc(all, func(r spec.Ref) bool {
		_, in := set.Document(r.Kind, r.Name)
		return in
	})
	slices.SortFunc(all, spec.CompareRefs)
	return all, nil
}

// TakeAway takes documents out of force, all or none. Their versions stay, for what was done by them, and so do values of fields. The error is InUse where others that stay
// refer to one, or a campaign is under way, and matches ErrUnknown for a document that is not in force.
func TakeAway(ctx context.Context, tx *postgres.Tx, gone []spec.Ref) error {
	if err := lock(ctx, tx); err != nil {
		return err
	}
	used, err := UsedBy(ctx, tx)
	if err != nil {
		return err
	}
	var inUse InUse
	for _, r := range gone {
		by := slices.DeleteFunc(slices.Clone(used[r]), func(u Use) bool { return !u.Past && slices.Contains(gone, u.Ref) })
		var open bool
		if err := tx.QueryRow(ctx, `SELECT EXISTS (SELECT FROM run r JOIN entity e ON e.id = r.entity WHERE e.kind = $1 AND e.name = $2 AND r.kind <> 'standing' AND r.state IN ('scheduled', 'running', 'paused'))`,
			r.Kind, r.Name).Scan(&open); err != nil {
			return fmt.Errorf("look for runs of %s %s: %w", r.Kind, r.Name, err)
		}
		if len(by) > 0 || open {
			inUse = append(inUse, InUseOf{r, by, open})
		}
	}
	if inUse != nil {
		return inUse
	}
	before, err := predicate.Load(ctx, tx)
	if err != nil {
		return err
	}
	for _, r := range gone {
		n, err := tx.Exec(ctx, "UPDATE entity SET current = NULL WHERE kind = $1 AND name = $2 AND current IS NOT NULL", r.Kind, r.Name)
		if err != nil {
			return fmt.Errorf("take %s %s away: %w", r.Kind, r.Name, err)
		}
		if n.RowsAffected() == 0 {
			return fmt.Errorf("%s %s: %w", r.Kind, r.Name, ErrUnknown)
		}
		if r.Kind == spec.KindSegment { // all leave it
			tx.Wake("segment", tx.Now())
		}
	}
	return rebuild(ctx, tx, nil, before.Zone)
}
