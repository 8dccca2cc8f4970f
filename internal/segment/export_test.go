package segment

import (
	"context"

	"go.uber.org/zap"

	"github.com/onda-run/onda/internal/postgres"
)

// Work does all the work that there is for a tenant's segments, for tests of other packages with them.
func Work(ctx context.Context, db *postgres.DB, tenant string) error {
	k := &keeper{db: db, docs: &documents{}, log: zap.NewNop()}
	for {
		if all, err := k.work(ctx, tenant); all || err != nil {
			return err
		}
	}
}
