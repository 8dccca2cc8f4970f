package csvimport

import (
	"context"

	"github.com/onda-run/onda/internal/postgres"
)

// analyze tells Postgres how large the tables have become, each time an import has doubled what it made. Autovacuum would in a minute or more: until then Postgres
// plans for tables that are empty, and a segment of 20,000 contacts was computed in more than five seconds instead of 0.1.
func (im *importer) analyze(ctx context.Context) error {
	if im.res.Made < im.analyzeAt {
		return nil
	}
	im.analyzeAt = 2 * im.res.Made
	err := im.db.InTenant(ctx, im.tenant, func(ctx context.Context, tx *postgres.Tx) error {
		if _, err := tx.Exec(ctx, "SET LOCAL lock_timeout = '100ms'"); err != nil {
			return err
		}
		return tx.UpdateStatistics(ctx)
	})
	if postgres.IsLocked(err) { // another is at it
		return nil
	}
	return err
}
