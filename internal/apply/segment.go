package apply

import (
	"context"
	"strconv"
	"time"

	"github.com/onda-run/onda/internal/event"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/predicate"
	"github.com/onda-run/onda/internal/segment"
	"github.com/onda-run/onda/internal/spec"
)

// rebuild asks for the segments that changed to be computed in full and, where the tenant's zone is another than before, for those that read dates: of the same
// contacts others are in them now.
func rebuild(ctx context.Context, tx *postgres.Tx, changes []Change, before *time.Location) error {
	var names []string
	changed := map[key]bool{}
	for _, c := range changes {
		changed[key{c.Kind, c.Name}] = c.Action != Keep
		if c.Kind == spec.KindSegment && c.Action != Keep {
			names = append(names, c.Name)
		}
	}
	env, err := predicate.Load(ctx, tx)
	if err != nil {
		return err
	}
	if env.Zone.String() != before.String() {
		known, err := Known(ctx, tx)
		if err != nil {
			return err
		}
		for _, name := range known.Names(spec.KindSegment) {
			s, ok := spec.Find[*spec.Segment](known, spec.KindSegment, name)
			if ok && !changed[key{spec.KindSegment, name}] && s.Where != nil && predicate.ReadsZone(s.Where, env) {
				names = append(names, name)
			}
		}
	}
	if len(names) == 0 {
		return nil
	}
	if err := segment.Request(ctx, tx, names...); err != nil {
		return err
	}
	for _, name := range names {
		id := event.DeriveID(tx.Tenant.Name, "segment.rebuild.requested", name, strconv.FormatInt(tx.Now().UnixNano(), 10))
		e, err := event.New(tx.Tenant.Name, "onda", "", id, event.SegmentRebuildRequested{Segment: name})
		if err != nil {
			return err
		}
		if err := tx.Publish(ctx, "campaign", e); err != nil {
			return err
		}
	}
	return nil
}
