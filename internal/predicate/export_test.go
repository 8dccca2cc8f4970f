package predicate

import (
	"context"
	"time"

	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/spec"
)

// NextChangeOfMany is NextChange as it is when there are many contacts and facts, however few there are.
func NextChangeOfMany(ctx context.Context, tx *postgres.Tx, p *spec.Predicate, env Env) (time.Time, error) {
	return nextOf(ctx, tx, p, env, nil, -1, -1)
}
