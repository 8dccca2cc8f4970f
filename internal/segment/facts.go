package segment

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/onda-run/onda/internal/postgres"
)

// kinds are the facts that may change who is in a segment.
func kinds() []string {
	return []string{"contact.", "tag.", "score.", "consent.", "suppression.", "email.", "hit.", "page.", "event.", "form.", "journey."}
}

// facts reads the next facts and computes the segments anew for the contacts that they are about. more says that there may be further ones.
func (k *keeper) facts(ctx context.Context, tenant string, failed map[string]bool) (more bool, err error) {
	err = k.in(ctx, tenant, failed, func(ctx context.Context, t *turn) error {
		// more than touchMost, so that read sees when a rebuild is what it takes
		facts, further, err := t.tx.ReadFacts(ctx, "segment", postgres.FactLimit{Facts: factsAtOnce, Items: 2 * touchMost}, kinds()...)
		if errors.Is(err, postgres.ErrBusy) {
			return errBusy
		}
		if err != nil {
			return err
		}
		more = further
		if err := t.read(ctx, facts); err != nil {
			return err
		}
		return t.settle(ctx)
	})
	return more, err
}

// read finds out which contacts of which segments facts touch.
func (t *turn) read(ctx context.Context, facts []postgres.Fact) error {
	for _, f := range facts {
		var asks []*kept
		for _, s := range t.all {
			if s.doc != nil && s.deps.Touched(f) {
				asks = append(asks, s)
			}
		}
		if len(asks) == 0 {
			continue
		}
		contacts, err := t.contactsOf(ctx, f)
		if err != nil {
			return err
		}
		for _, s := range asks {
			t.touch(s, contacts...)
		}
	}
	for s, touched := range t.touched {
		if len(touched) <= touchMost {
			continue
		}
		if _, err := t.tx.Exec(ctx, "UPDATE segment SET requested = true WHERE entity = $1", s.entity); err != nil {
			return fmt.Errorf("request a rebuild: %w", err)
		}
		t.tx.Wake("segment", t.tx.Now())
		delete(t.touched, s)
	}
	return nil
}

func (t *turn) contactsOf(ctx context.Context, f postgres.Fact) ([]int64, error) {
	contacts := f.Contacts
	if f.Contact != 0 {
		contacts = append(contacts, f.Contact)
	}
	if f.Kind == "contact.merged" {
		var merged struct {
			Into int64 `json:"into"`
		}
		if json.Unmarshal(f.Data, &merged) == nil && merged.Into != 0 {
			contacts = append(contacts, merged.Into)
		}
	}
	if len(contacts) > 0 || len(f.Deliveries) == 0 {
		return contacts, nil
	}
	rows, err := t.tx.Query(ctx, "SELECT DISTINCT contact FROM delivery WHERE id = ANY ($1)", f.Deliveries)
	if err != nil {
		return nil, fmt.Errorf("look whose deliveries they are: %w", err)
	}
	contacts, err = pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		return nil, fmt.Errorf("look whose deliveries they are: %w", err)
	}
	return contacts, nil
}
