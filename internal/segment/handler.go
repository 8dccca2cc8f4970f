package segment

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2"
	"github.com/jackc/pgx/v5"

	"github.com/onda-run/onda/internal/event"
	"github.com/onda-run/onda/internal/fn"
	"github.com/onda-run/onda/internal/postgres"
)

// function answers events.
type function struct {
	rt     *fn.Runtime
	db     *postgres.DB
	keeper *keeper
}

// event does the work that there is: whichever event it was, the rows say what to do.
func (f *function) event(ctx context.Context, e cloudevents.Event) (*cloudevents.Event, error) {
	tenant, err := event.Tenant(e)
	if err != nil {
		return nil, fn.Permanent(err)
	}
	data, err := event.Decode(e)
	if err != nil {
		return nil, fn.Permanent(err)
	}
	fn.LogTenant(ctx, tenant)
	switch d := data.(type) {
	case event.ScheduleDue:
		return nil, tellApart(f.due(ctx, tenant))
	case event.SegmentRebuildRequested:
		err := f.db.InTenant(ctx, tenant, func(ctx context.Context, tx *postgres.Tx) error { return Request(ctx, tx, d.Segment) })
		if err != nil {
			return nil, tellApart(err)
		}
	}
	_, err = f.keeper.work(ctx, tenant)
	return nil, tellApart(err)
}

// due does everything that is due, also what no event told of, and says when to come again.
func (f *function) due(ctx context.Context, tenant string) error {
	all, err := f.keeper.work(ctx, tenant)
	if err != nil {
		return err
	}
	if f.rt.Sink != "" {
		for {
			n, err := f.db.Drain(ctx, tenant, "segment", f.rt.Publish)
			if err != nil {
				return fmt.Errorf("publish: %w", err)
			}
			if n == 0 {
				break
			}
		}
	}
	if !all { // the wake-up stays where it is
		return nil
	}
	return f.db.Recompute(ctx, tenant, "segment", f.keeper.next)
}

// tellApart marks what can never succeed.
func tellApart(err error) error {
	if errors.Is(err, postgres.ErrUnknownTenant) || errors.Is(err, postgres.ErrForeignTenant) || errors.Is(err, ErrUnknown) {
		return fn.Permanent(err)
	}
	return err
}

// ErrUnknown says that there is no segment of a name.
var ErrUnknown = errors.New("there is no such segment")

// Request asks for segments to be computed in full. Where there is no segment of a name, it is an error that matches ErrUnknown.
func Request(ctx context.Context, tx *postgres.Tx, names ...string) error {
	atOnce := ", retry_at = NULL"
	if tx.Tenant.Schema < SweepSchema {
		atOnce = ""
	}
	// In the order in which the keeper locks them.
	rows, err := tx.Query(ctx, `INSERT INTO segment AS s (entity, requested) SELECT e.id, true FROM entity e WHERE e.kind = 'Segment' AND e.name = ANY ($1) AND e.current IS NOT NULL ORDER BY e.id
		ON CONFLICT (entity) DO UPDATE SET requested = true`+atOnce+` RETURNING (SELECT e.name FROM entity e WHERE e.id = s.entity)`, names)
	if err != nil {
		return fmt.Errorf("request a rebuild: %w", err)
	}
	found, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return fmt.Errorf("request a rebuild: %w", err)
	}
	for _, name := range names {
		if !slices.Contains(found, name) {
			return fmt.Errorf("segment %s: %w", name, ErrUnknown)
		}
	}
	tx.Wake("segment", tx.Now())
	return nil
}

// next is when there will be work again.
func (k *keeper) next(ctx context.Context, tx *postgres.Tx) (time.Time, error) {
	at, err := tx.FactsDue(ctx, "segment")
	if err != nil {
		return postgres.Never, err
	}
	var due *time.Time
	soonest := "greatest(onda.now(), CASE WHEN e.current IS NOT NULL AND s.retry_at <= onda.now() + interval '24 hours' THEN s.retry_at END)" // as keeper leaves it
	if tx.Tenant.Schema < SweepSchema {
		soonest = "onda.now()"
	}
	err = tx.QueryRow(ctx, `SELECT min(CASE WHEN `+stale(tx)+` THEN `+soonest+` ELSE s.due_at END) FROM entity e LEFT JOIN segment s ON s.entity = e.id
		WHERE e.kind = 'Segment' AND (e.current IS NOT NULL OR s.entity IS NOT NULL) AND (s.entity IS NULL OR s.due_at < 'infinity' OR `+stale(tx)+`)`).Scan(&due)
	if err != nil {
		return postgres.Never, fmt.Errorf("look when segments are due: %w", err)
	}
	if due != nil && due.Before(at) {
		at = *due
	}
	return at, nil
}

// stale is SQL: must the segment s of entity e be computed in full, or be taken away?
func stale(tx *postgres.Tx) string {
	due := "s.due_at <= onda.now()"
	if tx.Tenant.Schema >= SweepSchema {
		due = "coalesce(s.swept_at > onda.now() + interval '1 minute', " + due + ")"
	}
	return "(s.entity IS NULL OR s.requested OR s.building IS NOT NULL OR s.document IS DISTINCT FROM e.current OR " + due + ")"
}
