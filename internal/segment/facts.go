package segment

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/onda-run/onda/internal/contact"
	"github.com/onda-run/onda/internal/postgres"
)

const (
	// factsMost are read in one transaction, about itemsMost contacts in all: fewer while these take too long, and a segment that cannot even be computed for itemsLeast is set aside.
	factsMost             = 5000
	itemsMost, itemsLeast = 10_000, 500
)

// kinds are the facts that may change who is in a segment.
func kinds() []string {
	return []string{"contact.", "tag.", "score.", "stage.", "consent.", "suppression.", "email.", "hit.", "page.", "event.", "form.", "journey."}
}

// facts reads the next facts and computes the segments anew for the contacts that they are about. more says that there may be further ones. A segment that cannot be computed is set aside, and the facts are read
// again without it.
func (k *keeper) facts(ctx context.Context, tenant string, failed map[string]bool) (more bool, err error) {
	p := k.paceOf(tenant)
	p.held = false
	err = k.in(ctx, tenant, plansOnce, failed, func(ctx context.Context, t *turn) error {
		facts, further, err := t.tx.ReadFacts(ctx, "segment", postgres.FactLimit{Facts: min(factsMost, p.items), Items: p.items}, kinds()...)
		if errors.Is(err, postgres.ErrBusy) {
			return errBusy
		}
		if err != nil {
			return err
		}
		if more = further; len(facts) == 0 {
			if !more {
				p.held, err = t.held(ctx)
			}
			return err
		}
		if err := t.read(ctx, facts); err != nil {
			return err
		}
		return t.settle(ctx)
	})
	var u *unfit
	switch {
	case errors.As(err, &u) && u.slow && len(u.segment.touched) > itemsLeast:
		p.items, more, err = max(p.items/4, itemsLeast), true, nil
	case u != nil:
		return true, k.setAside(ctx, tenant, failed, u)
	case err == nil && more:
		p.items *= 2
	}
	k.setPace(tenant, p)
	return more, err
}

// pace is how the facts of a tenant went last.
type pace struct {
	items int  // how many contacts the next may be about
	held  bool // there are some that cannot be read, since a transaction goes on that began before theirs ended
}

func (k *keeper) paceOf(tenant string) pace {
	k.mu.Lock()
	defer k.mu.Unlock()
	if p, ok := k.paces[tenant]; ok {
		return p
	}
	return pace{items: itemsMost}
}

func (k *keeper) setPace(tenant string, p pace) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if p.items = min(p.items, itemsMost); p == (pace{items: itemsMost}) {
		delete(k.paces, tenant)
		return
	}
	if k.paces == nil {
		k.paces = map[string]pace{}
	}
	k.paces[tenant] = p
}

// held tells whether there are facts behind the cursor, where none could be read.
func (t *turn) held(ctx context.Context) (bool, error) {
	at, err := t.tx.FactsDue(ctx, "segment")
	return !at.Equal(postgres.Never), err
}

// alike are facts that touch the same segments.
type alike struct {
	asks                 []*kept
	contacts, deliveries []int64
}

// read finds out which contacts of which segments facts touch. Segments that the same facts touch have one list of them.
func (t *turn) read(ctx context.Context, facts []postgres.Fact) error {
	byWhat := map[string]*alike{}
	var groups []*alike
	for _, f := range facts {
		what := f.Kind + "\x00" + f.Name
		if f.Kind == "contact.changed" { // which fields
			what += "\x00" + string(f.Data)
		}
		g := byWhat[what]
		if g == nil {
			g = &alike{}
			for _, s := range t.all {
				if s.doc != nil && s.deps.Touched(f) {
					g.asks = append(g.asks, s)
				}
			}
			byWhat[what], groups = g, append(groups, g)
		}
		if len(g.asks) > 0 {
			g.add(f)
		}
	}
	for _, g := range groups {
		if len(g.deliveries) > 0 {
			whose, err := t.whose(ctx, g.deliveries)
			if err != nil {
				return err
			}
			g.contacts = append(g.contacts, whose...)
		}
	}
	lists := map[string][]int64{} // by which groups they are of
	for _, s := range t.all {
		var of []byte
		var list []int64
		for i, g := range groups {
			if slices.Contains(g.asks, s) {
				of = fmt.Append(of, i, " ")
			}
		}
		if list = lists[string(of)]; list == nil && len(of) > 0 {
			for _, g := range groups {
				if slices.Contains(g.asks, s) {
					list = append(list, g.contacts...)
				}
			}
			slices.Sort(list)
			list = slices.Compact(list)
			lists[string(of)] = list
		}
		s.touch(list)
	}
	return nil
}

func (g *alike) add(f postgres.Fact) {
	before := len(g.contacts)
	g.contacts = append(g.contacts, f.Contacts...)
	if f.Contact != 0 {
		g.contacts = append(g.contacts, f.Contact)
	}
	g.contacts = append(g.contacts, contact.MergedBy(f)...)
	if len(g.contacts) == before {
		g.deliveries = append(g.deliveries, f.Deliveries...)
	}
}

// whose deliveries they are.
func (t *turn) whose(ctx context.Context, deliveries []int64) ([]int64, error) {
	rows, err := t.tx.Query(ctx, "SELECT DISTINCT contact FROM delivery WHERE id = ANY ($1)", deliveries)
	if err != nil {
		return nil, fmt.Errorf("look whose deliveries they are: %w", err)
	}
	contacts, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		return nil, fmt.Errorf("look whose deliveries they are: %w", err)
	}
	return contacts, nil
}
