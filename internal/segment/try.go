package segment

import (
	"context"
	"fmt"

	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/predicate"
	"github.com/onda-run/onda/internal/spec"
)

// TryTime is how long Try may take: a segment for which it takes longer is set aside.
const TryTime = statementTime

// Try computes a document for as many contacts as a rebuild looks at in one transaction at the least, those who were made first. It changes nothing.
func Try(ctx context.Context, tx *postgres.Tx, doc *spec.Segment, env predicate.Env) error {
	env.First, env.Scope = 3, "BETWEEN $1 AND $2"
	cond, err := Condition(doc, env)
	if err != nil {
		return err
	}
	var first, n int64
	if err := tx.QueryRow(ctx, "SELECT coalesce(min(id), 0) FROM contact").Scan(&first); err != nil {
		return fmt.Errorf("look for contacts: %w", err)
	}
	if err := tx.QueryRow(ctx, "SELECT count(*) FROM contact c WHERE c.id BETWEEN $1 AND $2 AND "+cond.SQL, append([]any{first, first + chunkLeast - 1}, cond.Args...)...).Scan(&n); err != nil {
		return fmt.Errorf("try segment %s: %w", doc.Name, err)
	}
	return nil
}
