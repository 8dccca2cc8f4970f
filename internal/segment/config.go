// Package segment is the function that keeps memberships: rows of member that say who is in which segment.
//
// Invariants: who is a member is a function of the documents, the contacts and the time, so that it comes out the same however often, in whatever order and by however many
// processes the work is done; all writing of a tenant's memberships is under one lock, and looks at the contacts after it has the lock, so that an older view never
// overwrites a newer one; members, the facts of who joined and left, and how far a rebuild is, commit together; no contact is computed as of a time before that of a sweep, which looks once
// at what time changes until then; a segment that cannot be computed is set aside, and stops no other.
package segment

import (
	"context"

	"github.com/onda-run/onda/internal/fn"
	"github.com/onda-run/onda/internal/postgres"
)

// Config is segment's environment.
type Config struct {
	Postgres postgres.Config
}

// Build makes the function.
func Build(ctx context.Context, rt *fn.Runtime) (fn.Handler, error) {
	var cfg Config
	if err := rt.Config(ctx, &cfg); err != nil {
		return fn.Handler{}, err
	}
	db, err := postgres.Open(cfg.Postgres)
	if err != nil {
		return fn.Handler{}, err
	}
	db.Watch(rt.Watch())
	f := &function{rt: rt, db: db, keeper: &keeper{db: db, docs: &documents{}, log: rt.Log, stop: rt.Draining()}}
	return fn.Handler{
		Event:  f.event,
		Failed: rt.Keeps(db),
		After:  rt.Publishes(db),
		Close:  func(context.Context) error { db.Close(); return nil },
	}, nil
}
