package campaign

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/onda-run/onda/internal/delivery"
	"github.com/onda-run/onda/internal/event"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/spec"
)

// drainer is the function whose outbox has our events, and the name that they are published under.
const drainer = "campaign"

const (
	// ahead is how many batches of a run are planned ahead of what is sent.
	ahead = 200
	// batchesAtOnce is how many are planned in one transaction.
	batchesAtOnce = 40
)

// planBroadcast plans the next batches of a broadcast, at most 200 ahead of what is sent, and completes it at its end. more tells that there is room for
// more at once. Another process that plans the same run at this moment is left alone.
func (d *documents) planBroadcast(ctx context.Context, tx *postgres.Tx, run int64, share int) (more bool, err error) {
	p := progress{run: run}
	err = p.lock(ctx, tx)
	if errors.Is(err, pgx.ErrNoRows) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("lock run %d: %w", run, err)
	}
	if p.all {
		return false, complete(ctx, tx, run)
	}
	var open int
	if err := tx.QueryRow(ctx, "SELECT count(*) FROM batch WHERE run = $1 AND state = 'open'", run).Scan(&open); err != nil {
		return false, fmt.Errorf("count open batches of run %d: %w", run, err)
	}
	settings, err := d.settings(ctx, tx)
	if err != nil {
		return false, err
	}
	most := aheadAt(settings, tx.Tenant.Quotas)
	room := most - open
	if room < max(1, min(batchesAtOnce, most/10)) { // many at a time, not one for each that was sent
		return false, nil
	}
	n := min(room, batchesAtOnce)
	v, err := d.load(ctx, tx, p.document)
	if err != nil {
		return false, err
	}
	b := v.broadcast()
	if b == nil {
		return false, fmt.Errorf("run %d: document %d is no broadcast", run, p.document)
	}
	document, err := pinnedEmail(ctx, tx, run, b.Email)
	if err != nil {
		return false, err
	}
	if err := p.begin(ctx, tx, b, document, settings.Location()); err != nil {
		return false, err
	}
	people, err := p.people(ctx, tx, b, p.atOnce(b, n))
	if err != nil {
		return false, err
	}
	batches, err := delivery.Enqueue(ctx, tx, p.mails(tx, v, document, people, settings.Location())...)
	if err != nil {
		return false, err
	}
	p.count += int64(len(people))
	if err := p.save(ctx, tx); err != nil {
		return false, err
	}
	tx.Wake(drainer, tx.Now().Add(tx.Tick()))
	if err := ring(ctx, tx, run, batches, share); err != nil {
		return false, err
	}
	if p.all && len(batches) == 0 { // nobody was left
		return false, complete(ctx, tx, run)
	}
	return !p.all && (room > n || len(batches) == 0), nil
}

// aheadAt is how many batches are planned ahead where there is a pace: no more than go out in half the time that they live.
func aheadAt(settings *spec.Settings, quotas postgres.Quotas) int {
	rate := quotas.Slower(settings.Pace.Rate.PerSecond())
	if rate == 0 {
		return ahead
	}
	return min(ahead, 1+int(rate*(delivery.Life/2).Seconds()/delivery.MaxBatch))
}

// recipient is one of an audience.
type recipient struct {
	contact int64
	zone    string
}

// mails are the plans for a part of a broadcast's audience: one for each time at which some of it is due, by each contact's own clock or spread over a time.
func (p *progress) mails(tx *postgres.Tx, v *version, document int64, people []recipient, tenant *time.Location) []delivery.Plan {
	b := v.broadcast()
	by := map[time.Time][]int64{}
	var dues []time.Time
	zones := map[string]time.Time{}
	for i, r := range people {
		from := tx.Now()
		if b.Over != nil {
			from = p.started
		}
		if b.ByOwnClock() {
			at, ok := zones[r.zone]
			if !ok {
				at = b.At.In(tx.Now(), b.Zone.Location(r.zone, tenant))
				zones[r.zone] = at
			}
			if at.After(from) {
				from = at
			}
		}
		due := from.Add(p.share(b, i))
		if due.Before(tx.Now()) {
			due = tx.Now()
		}
		if by[due] == nil {
			dues = append(dues, due)
		}
		by[due] = append(by[due], r.contact)
	}
	slices.SortFunc(dues, time.Time.Compare)
	plans := make([]delivery.Plan, len(dues))
	for i, due := range dues {
		plans[i] = delivery.Plan{Run: p.run, Email: document, Contacts: by[due], NotBefore: due, Cause: "broadcast " + v.name}
	}
	return plans
}

// share is the part of the time that a broadcast is spread over which has passed when the nth of the people that are planned now is due, in whole minutes: that is how precise
// sweeps are.
func (p *progress) share(b *spec.Broadcast, n int) time.Duration {
	if b.Over == nil || p.of <= 0 {
		return 0
	}
	over := b.Over.Approx()
	part := float64(p.count+int64(n)) / float64(p.of)
	return time.Duration(min(part, 1) * float64(over)).Truncate(time.Minute)
}

// pinnedEmail is the version that a broadcast sends to everybody: the one in force when its first batch was planned.
func pinnedEmail(ctx context.Context, tx *postgres.Tx, run int64, name string) (int64, error) {
	var id int64
	err := tx.QueryRow(ctx, "SELECT email FROM batch WHERE run = $1 ORDER BY id LIMIT 1", run).Scan(&id)
	if errors.Is(err, pgx.ErrNoRows) {
		return email(ctx, tx, name)
	}
	if err != nil {
		return 0, fmt.Errorf("look for the email of run %d: %w", run, err)
	}
	return id, nil
}

// ring asks for as many workers as there are batches, up to the tenant's share.
func ring(ctx context.Context, tx *postgres.Tx, run int64, batches []delivery.Batch, share int) error {
	for _, b := range batches[:min(len(batches), share)] {
		e, err := event.New(tx.Tenant.Name, drainer, strconv.FormatInt(run, 10), event.DeriveID("email.send.requested", tx.Tenant.Name, strconv.FormatInt(b.ID, 10)),
			event.EmailSendRequested{Run: run}, event.Correlation(run))
		if err != nil {
			return err
		}
		if err := tx.Publish(ctx, drainer, e); err != nil {
			return err
		}
	}
	return nil
}

// unfinished is an SQL condition on a run r: mails of it are still queued, or to be tried again.
const unfinished = `(EXISTS (SELECT FROM batch b WHERE b.run = r.id AND b.state = 'open')
	OR EXISTS (SELECT FROM delivery d JOIN batch b ON b.id = d.id >> 9 WHERE d.state = 'deferred' AND b.run = r.id))`

// complete ends a broadcast of which everybody has an outcome.
func complete(ctx context.Context, tx *postgres.Tx, run int64) error {
	var name string
	err := tx.QueryRow(ctx, `UPDATE run r SET state = 'completed', ended_at = onda.now() FROM entity e
		WHERE r.id = $1 AND e.id = r.entity AND r.state = 'running' AND r.planned AND NOT `+unfinished+` RETURNING e.name`, run).Scan(&name)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("complete run %d: %w", run, err)
	}
	return tell(ctx, tx, run, name, "completed")
}

// tell writes the fact of a run's new state and rings for it.
func tell(ctx context.Context, tx *postgres.Tx, run int64, name, what string) error {
	c := event.Campaign{Run: run, Campaign: name}
	var data event.Data
	switch what {
	case "started":
		data = event.CampaignStarted{Campaign: c}
	case "paused":
		data = event.CampaignPaused{Campaign: c}
	case "resumed":
		data = event.CampaignResumed{Campaign: c}
	case "cancelled":
		data = event.CampaignCancelled{Campaign: c}
	default:
		data = event.CampaignCompleted{Campaign: c}
	}
	if err := tx.AddFacts(ctx, postgres.Fact{Kind: "campaign." + what, Name: name, Run: run}); err != nil {
		return err
	}
	// a run is started, completed and cancelled once, and paused and resumed any number of times
	id := event.DeriveID("campaign."+what, tx.Tenant.Name, strconv.FormatInt(run, 10))
	if what == "paused" || what == "resumed" {
		id = event.DeriveID("campaign."+what, tx.Tenant.Name, strconv.FormatInt(run, 10), tx.Now().Format(time.RFC3339Nano))
	}
	e, err := event.New(tx.Tenant.Name, drainer, strconv.FormatInt(run, 10), id, data, event.Correlation(run))
	if err != nil {
		return err
	}
	return tx.Publish(ctx, drainer, e)
}
