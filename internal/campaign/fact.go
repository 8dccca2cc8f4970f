package campaign

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/onda-run/onda/internal/contact"
	"github.com/onda-run/onda/internal/postgres"
)

// factsAtOnce and factItemsAtOnce are how much is read in one transaction: with so many contacts who all enter a campaign it takes about a second.
const factsAtOnce, factItemsAtOnce = 5000, 20_000

// factKinds are the facts that let contacts in or that journeys may wait for. Of mails, those that name no contact are looked up by the mail.
func factKinds() []string {
	return []string{
		"email.", "consent.", "suppression.", "page.", "event.", "contact.", "form.", "tag.", "score.", "segment.", "campaign.enter",
	}
}

// readFacts reads the next facts: it enrols those whom they let in and makes the journeys of their contacts due, so that each looks for itself what has
// happened. What it does and how far it read commit together. more tells that there may be further ones. Another process that reads at this moment
// does the work.
func (d *documents) readFacts(ctx context.Context, tx *postgres.Tx) (more bool, err error) {
	facts, more, err := tx.ReadFacts(ctx, "campaign", postgres.FactLimit{Facts: factsAtOnce, Items: factItemsAtOnce}, factKinds()...)
	if errors.Is(err, postgres.ErrBusy) {
		return false, nil
	}
	if err != nil || len(facts) == 0 {
		return more, err
	}
	if err := d.enrolByFacts(ctx, tx, facts); err != nil {
		return false, err
	}
	if err := forget(ctx, tx, facts); err != nil {
		return false, err
	}
	who := contactsIn(facts)
	if _, err := contact.Gather(ctx, tx, drainer, who); err != nil { // what there is more of, it tells of by a fact
		return false, err
	}
	woken, err := touch(ctx, tx, who)
	if err != nil {
		return false, err
	}
	byMail, err := d.touchByMail(ctx, tx, facts)
	if err != nil {
		return false, err
	}
	if woken+byMail > 0 {
		tx.Wake(drainer, tx.Now())
	}
	return more, nil
}

// contactsIn are the contacts that facts are about, in order.
func contactsIn(facts []postgres.Fact) []int64 {
	var ids []int64
	for _, f := range facts {
		if f.Contact != 0 {
			ids = append(ids, f.Contact)
		}
		ids = append(append(ids, f.Contacts...), contact.MergedBy(f)...)
	}
	slices.Sort(ids)
	return slices.Compact(ids)
}

// touch makes the journeys of contacts due, also those that are due already: one of these may be moved at this moment, by a pass that looked before the fact was
// there and is about to park it for days. The update waits for that pass, and then makes the journey due again.
func touch(ctx context.Context, tx *postgres.Tx, contacts []int64) (int64, error) {
	if len(contacts) == 0 {
		return 0, nil
	}
	tag, err := tx.Exec(ctx, `UPDATE journey SET due_at = least(due_at, onda.now()) WHERE contact = ANY ($1) AND state = 'active'`, contacts)
	if err != nil {
		return 0, fmt.Errorf("touch journeys: %w", err)
	}
	return tag.RowsAffected(), nil
}

// touchByMail makes those journeys due that wait for what becomes of their own mails: such facts are written for many mails at once, without contacts.
func (d *documents) touchByMail(ctx context.Context, tx *postgres.Tx, facts []postgres.Fact) (int64, error) {
	var mails []int64
	for _, f := range facts {
		if outcomeOf(f.Kind) != "" {
			mails = append(mails, f.Deliveries...)
		}
	}
	if len(mails) == 0 {
		return 0, nil
	}
	waiting, err := d.waitingForOutcomes(ctx, tx)
	if err != nil || len(waiting) == 0 {
		return 0, err
	}
	tag, err := tx.Exec(ctx, `UPDATE journey j SET due_at = least(j.due_at, onda.now()) FROM step s
		WHERE s.delivery = ANY ($1) AND j.id = s.journey AND j.state = 'active' AND j.document = ANY ($2)`, mails, waiting)
	if err != nil {
		return 0, fmt.Errorf("touch journeys by their mails: %w", err)
	}
	return tag.RowsAffected(), nil
}

// waitingForOutcomes are the versions of campaigns in which something waits for a mail to be sent, deferred, failed or suppressed. Most do not, and are spared
// being looked at after each of their mails.
func (d *documents) waitingForOutcomes(ctx context.Context, tx *postgres.Tx) ([]int64, error) {
	rows, err := tx.Query(ctx, `SELECT DISTINCT doc.id FROM run r JOIN document doc ON doc.entity = r.entity
		WHERE r.kind = 'campaign' AND r.state IN ('running', 'paused') ORDER BY doc.id`)
	if err != nil {
		return nil, fmt.Errorf("look for open campaigns: %w", err)
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[int64])
	if err != nil {
		return nil, fmt.Errorf("look for open campaigns: %w", err)
	}
	var out []int64
	for _, id := range ids {
		v, err := d.load(ctx, tx, id)
		if err != nil {
			return nil, err
		}
		for _, n := range v.flow.Nodes {
			if n.Kind == "wait" && n.Step.Wait.Event != nil && outcomeOf(n.Step.Wait.Event.Event) != "" {
				out = append(out, id)
				break
			}
		}
	}
	return out, nil
}

// forget ends the journeys of contacts who were erased, or deleted, and erases what else was written of them meanwhile.
func forget(ctx context.Context, tx *postgres.Tx, facts []postgres.Fact) error {
	var erased []postgres.Fact
	for _, f := range facts {
		if f.Kind == "contact.erased" {
			erased = append(erased, f)
		}
	}
	contacts := contactsIn(erased)
	if len(contacts) == 0 {
		return nil
	}
	_, err := tx.Exec(ctx, `UPDATE journey SET due_at = 'infinity', ended_at = onda.now(), outcome = 'erased', state = 'left' WHERE contact = ANY ($1) AND state = 'active'`, contacts)
	if err != nil {
		return fmt.Errorf("end journeys of contacts who were erased: %w", err)
	}
	return contact.Forget(ctx, tx, contacts)
}
