package csvimport

import (
	"context"
	"errors"
	"time"

	"github.com/onda-run/onda/internal/postgres"
)

// lockFor is how long it waits for a lock.
const lockFor = 100 * time.Millisecond

// analyze tells Postgres how large the tables have become, when an import has made some thousands of contacts, and each time it has made 32 times as many as then: in between, Postgres goes by the tables' sizes. Autovacuum would in a minute or more: until then Postgres
// plans for tables that are empty, and a segment of 20,000 contacts was computed in more than five seconds instead of 0.1. It takes as long as some chunks, and goes on beside them.
func (im *importer) analyze(ctx context.Context) error {
	if im.counting {
		select {
		case err := <-im.counted:
			im.counting = false
			if err != nil {
				return err
			}
		default:
			return nil
		}
	}
	if im.res.Made < im.analyzeAt {
		return nil
	}
	im.analyzeAt, im.counting = 32*im.res.Made, true
	go func() {
		err := im.db.InTenantUnlocked(ctx, im.tenant, lockFor, func(ctx context.Context, tx *postgres.Tx) error { return tx.UpdateStatistics(ctx) })
		if postgres.IsLocked(err) || errors.Is(err, context.Canceled) { // another is at it, or the import has stopped and says so itself
			err = nil
		}
		im.counted <- err
	}()
	return nil
}

// awaitAnalyze waits for what goes on beside.
func (im *importer) awaitAnalyze() error {
	if !im.counting {
		return nil
	}
	return <-im.counted
}
