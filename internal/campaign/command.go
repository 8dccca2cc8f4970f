package campaign

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/onda-run/onda/internal/delivery"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/spec"
)

// Errors of the commands.
var (
	ErrOpen      = errors.New("a run of it is open")
	ErrRan       = errors.New("it has been sent already")
	ErrPast      = errors.New("the time at which it was to be sent is over")
	ErrAmbiguous = errors.New("a campaign and a broadcast have this name")
	ErrState     = errors.New("its run is in another state")
	ErrNobody    = errors.New("nobody would get it")
)

// Run is one run of a campaign or broadcast.
type Run struct {
	ID int64 `json:"run"`
	// Kind is campaign or broadcast, Name the document's.
	Kind string `json:"kind"`
	Name string `json:"name"`
	// State is scheduled, running, paused, cancelled or completed.
	State    string    `json:"state"`
	StartsAt time.Time `json:"startsAt"`
	Document int64     `json:"-"`
}

// Options are how a run is started.
type Options struct {
	// At is when it begins, instead of the document's own time; zero for that, or for now.
	At time.Time
	// Again lets a broadcast be sent that was sent before.
	Again bool
	// Preflight is what the one who starts it was told, nil when nothing.
	Preflight *Preflight
	// Cause says who or what starts it.
	Cause string
}

// pastLimit is how long after its time a broadcast may still be started: as long as its mails would live.
const pastLimit = delivery.Life

// Start starts a run of the campaign or broadcast of this name, in the version in force, and rings for it. ErrOpen while a run of it is open; ErrRan for a
// broadcast that has run, unless Again; ErrPast when its own time is more than a day over; ErrNotFound, ErrAmbiguous.
//
// A broadcast that would begin now and that, by the Preflight, nobody would get is refused with ErrNobody: it would be over at once, and could be sent again only by
// Again. One whose time is to come is not, for who gets it is decided then; when nobody is in its audience at that time, it is completed at once.
func Start(ctx context.Context, tx *postgres.Tx, name string, o Options) (Run, error) {
	v, err := find(ctx, tx, name)
	if err != nil {
		return Run{}, err
	}
	now := tx.Now()
	r := Run{Kind: "campaign", Name: v.name, State: "running", Document: v.id, StartsAt: now}
	if b := v.broadcast(); b != nil {
		r.Kind = "broadcast"
		if err := ranBefore(ctx, tx, v, o.Again); err != nil {
			return Run{}, err
		}
		if b.At != nil && o.At.IsZero() {
			settings, err := (*documents)(nil).settings(ctx, tx)
			if err != nil {
				return Run{}, err
			}
			first, last := begins(b, now, settings.Location())
			if last.Add(pastLimit).Before(now) {
				return Run{}, fmt.Errorf("broadcast %s: %w: it was %s; change at, or give another time", name, ErrPast, last.Format(time.RFC3339))
			}
			r.StartsAt = first
		}
	}
	if !o.At.IsZero() {
		r.StartsAt = o.At
	}
	if r.StartsAt.After(now) {
		r.State = "scheduled"
	} else {
		r.StartsAt = now
	}
	var told int64
	if o.Preflight != nil {
		told = o.Preflight.Recipients
		if told == 0 && r.Kind == "broadcast" && r.State == "running" {
			return Run{}, fmt.Errorf("broadcast %s: %w", name, ErrNobody)
		}
	}
	if o.Cause == "" {
		o.Cause = "campaign start"
	}
	err = tx.QueryRow(ctx, `INSERT INTO run (kind, entity, document, state, cause, starts_at, audience, started_at)
		VALUES ($1, $2, $3, $4, $5, $6, nullif($7::bigint, 0), CASE WHEN $4 = 'running' THEN onda.now() END)
		ON CONFLICT (entity) WHERE state IN ('scheduled', 'running', 'paused') DO NOTHING RETURNING id`,
		r.Kind, v.entity, v.id, r.State, o.Cause, r.StartsAt, told).Scan(&r.ID)
	if errors.Is(err, pgx.ErrNoRows) {
		return Run{}, fmt.Errorf("%s %s: %w: cancel it first, or let it end", r.Kind, name, ErrOpen)
	}
	if err != nil {
		return Run{}, fmt.Errorf("start %s: %w", name, err)
	}
	tx.Wake(drainer, r.StartsAt)
	if r.State == "scheduled" {
		return r, nil
	}
	return r, tell(ctx, tx, r.ID, r.Name, "started")
}

// find gives the campaign or broadcast in force of a name.
func find(ctx context.Context, tx *postgres.Tx, name string) (*version, error) {
	var none *documents // a command decodes each document once
	c, err := none.current(ctx, tx, spec.KindCampaign, name)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return nil, err
	}
	b, err := none.current(ctx, tx, spec.KindBroadcast, name)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return nil, err
	}
	switch {
	case c != nil && b != nil:
		return nil, fmt.Errorf("%s: %w: rename one of them", name, ErrAmbiguous)
	case c != nil:
		return c, nil
	case b != nil:
		return b, nil
	}
	return nil, fmt.Errorf("no campaign or broadcast is named %s: %w: apply its document first", name, ErrNotFound)
}

// ranBefore refuses a broadcast that was begun before.
func ranBefore(ctx context.Context, tx *postgres.Tx, v *version, again bool) error {
	if again {
		return nil
	}
	var at *time.Time
	err := tx.QueryRow(ctx, "SELECT max(started_at) FROM run WHERE entity = $1 AND state IN ('completed', 'cancelled')", v.entity).Scan(&at)
	if err != nil {
		return fmt.Errorf("look for earlier runs of %s: %w", v.name, err)
	}
	if at != nil {
		return fmt.Errorf("broadcast %s: %w, on %s: say so if it is to be sent again", v.name, ErrRan, at.Format(time.RFC3339))
	}
	return nil
}

// begins are the first and the last moment at which a broadcast is due anywhere.
func begins(b *spec.Broadcast, now time.Time, tenant *time.Location) (first, last time.Time) {
	if b.Zone == spec.ZoneContact {
		const hour = 3600
		return b.At.In(now, time.FixedZone("", 14*hour)), b.At.In(now, time.FixedZone("", -12*hour)) // the first and the last clocks of the world
	}
	at := b.At.In(now, b.Zone.Location("", tenant))
	return at, at
}

// begin starts the runs whose time has come.
func begin(ctx context.Context, tx *postgres.Tx) error {
	rows, err := tx.Query(ctx, `UPDATE run r SET state = 'running', started_at = onda.now() FROM entity e
		WHERE e.id = r.entity AND r.state = 'scheduled' AND r.starts_at <= onda.now() RETURNING r.id, e.name`)
	if err != nil {
		return fmt.Errorf("begin runs: %w", err)
	}
	names := map[int64]string{}
	if err := eachRow(rows, func(id int64, name string) { names[id] = name }); err != nil {
		return fmt.Errorf("begin runs: %w", err)
	}
	for id, name := range names {
		if err := tell(ctx, tx, id, name, "started"); err != nil {
			return err
		}
	}
	return nil
}

// openRun locks the open run of a campaign or broadcast, by the document's name. A document that was taken away may still have one.
func openRun(ctx context.Context, tx *postgres.Tx, name string) (Run, error) {
	rows, err := tx.Query(ctx, `SELECT r.id, r.kind, e.name, r.state, r.starts_at, r.document FROM run r JOIN entity e ON e.id = r.entity
		WHERE e.name = $1 AND r.kind IN ('campaign', 'broadcast') AND r.state IN ('scheduled', 'running', 'paused') FOR NO KEY UPDATE OF r`, name)
	if err != nil {
		return Run{}, fmt.Errorf("look for the run of %s: %w", name, err)
	}
	runs, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Run])
	switch {
	case err != nil:
		return Run{}, fmt.Errorf("look for the run of %s: %w", name, err)
	case len(runs) == 0:
		return Run{}, fmt.Errorf("no run of %s is open: %w", name, ErrNotFound)
	case len(runs) > 1:
		return Run{}, fmt.Errorf("%s: %w, and both have an open run", name, ErrAmbiguous)
	}
	return runs[0], nil
}

// Pause holds the open run of this name: nothing more of it is handed over, its recipients stay queued and its journeys where they are. Those that
// were marked already may still go out: commit, then ask InFlight in a second transaction.
func Pause(ctx context.Context, tx *postgres.Tx, name string) (Run, error) {
	r, err := openRun(ctx, tx, name)
	if err != nil {
		return Run{}, err
	}
	if r.State == "paused" {
		return r, nil
	}
	r.State = "paused"
	if _, err := tx.Exec(ctx, "UPDATE run SET state = 'paused' WHERE id = $1", r.ID); err != nil {
		return Run{}, fmt.Errorf("pause run %d: %w", r.ID, err)
	}
	return r, tell(ctx, tx, r.ID, r.Name, "paused")
}

// InFlight counts the mails of a run that were handed over and have no outcome yet, and waits for marks that were on their way when it was paused or
// cancelled. In a transaction of its own, after that.
func InFlight(ctx context.Context, tx *postgres.Tx, run int64) (int64, error) {
	return delivery.InFlight(ctx, tx, run)
}

// PauseNow pauses in one transaction and counts what is in flight in a second.
func PauseNow(ctx context.Context, db *postgres.DB, tenant, name string) (r Run, inFlight int64, err error) {
	err = db.InTenant(ctx, tenant, func(ctx context.Context, tx *postgres.Tx) (err error) {
		r, err = Pause(ctx, tx, name)
		return err
	})
	if err != nil {
		return Run{}, 0, err
	}
	err = db.InTenant(ctx, tenant, func(ctx context.Context, tx *postgres.Tx) (err error) {
		inFlight, err = InFlight(ctx, tx, r.ID)
		return err
	})
	return r, inFlight, err
}

// Resume lets a paused run go on. Its mails that wait, for the first attempt or for a further one, expire later by as long as it was paused; what was left of a broadcast that
// is spread over a time is due later by as much.
func Resume(ctx context.Context, tx *postgres.Tx, name string) (Run, error) {
	r, err := openRun(ctx, tx, name)
	if err != nil {
		return Run{}, err
	}
	if r.State != "paused" {
		return Run{}, fmt.Errorf("%s %s is %s, not paused: %w", r.Kind, name, r.State, ErrState)
	}
	err = tx.QueryRow(ctx, `UPDATE run SET state = CASE WHEN started_at IS NULL AND starts_at > onda.now() THEN 'scheduled' ELSE 'running' END,
			started_at = CASE WHEN started_at IS NULL AND starts_at <= onda.now() THEN onda.now() ELSE started_at END
		WHERE id = $1 RETURNING state`, r.ID).Scan(&r.State)
	if err != nil {
		return Run{}, fmt.Errorf("resume run %d: %w", r.ID, err)
	}
	if r.State == "scheduled" {
		tx.Wake(drainer, r.StartsAt)
		return r, tell(ctx, tx, r.ID, r.Name, "resumed")
	}
	var since *time.Time
	if err := tx.QueryRow(ctx, "SELECT max(at) FROM fact WHERE kind = 'campaign.paused' AND run = $1", r.ID).Scan(&since); err != nil {
		return Run{}, fmt.Errorf("look since when run %d is paused: %w", r.ID, err)
	}
	if since != nil {
		if err := shift(ctx, tx, r, *since); err != nil {
			return Run{}, err
		}
		if err := delivery.PutOff(ctx, tx, r.ID, *since); err != nil {
			return Run{}, err
		}
	}
	wakeAll(tx)
	rows, err := tx.Query(ctx, "SELECT id, NULL::bigint[] FROM batch WHERE run = $1 AND state = 'open' ORDER BY id LIMIT 4", r.ID)
	if err != nil {
		return Run{}, fmt.Errorf("look for queued mails of run %d: %w", r.ID, err)
	}
	batches, err := pgx.CollectRows(rows, pgx.RowToStructByPos[delivery.Batch])
	if err != nil {
		return Run{}, fmt.Errorf("look for queued mails of run %d: %w", r.ID, err)
	}
	if err := ring(ctx, tx, r.ID, batches, len(batches)); err != nil {
		return Run{}, err
	}
	return r, tell(ctx, tx, r.ID, r.Name, "resumed")
}

// shift moves what was left of a broadcast that is spread over a time by as long as it was paused: else all of it that fell due meanwhile would go out at once.
func shift(ctx context.Context, tx *postgres.Tx, r Run, since time.Time) error {
	v, err := (*documents)(nil).load(ctx, tx, r.Document)
	if err != nil {
		return err
	}
	if b := v.broadcast(); b == nil || b.Over == nil {
		return nil
	}
	// What is not planned yet is reckoned from the later of the two times: see progress.lock.
	_, err = tx.Exec(ctx, "UPDATE run SET starts_at = greatest(starts_at, started_at) + (onda.now() - greatest($2, started_at)) WHERE id = $1", r.ID, since)
	if err != nil {
		return fmt.Errorf("move the rest of run %d: %w", r.ID, err)
	}
	return delivery.Shift(ctx, tx, r.ID, since)
}

// Cancel ends the open run of this name: its journeys are over, and what is still queued is not sent, each mail with the reason cancelled.
func Cancel(ctx context.Context, tx *postgres.Tx, name string) (Run, error) {
	r, err := openRun(ctx, tx, name)
	if err != nil {
		return Run{}, err
	}
	r.State = "cancelled"
	if _, err := tx.Exec(ctx, "UPDATE run SET state = 'cancelled', ended_at = onda.now() WHERE id = $1", r.ID); err != nil {
		return Run{}, fmt.Errorf("cancel run %d: %w", r.ID, err)
	}
	if err := delivery.Unqueue(ctx, tx); err != nil {
		return Run{}, err
	}
	if _, err := cancelJourneys(ctx, tx, r.ID); err != nil {
		return Run{}, err
	}
	wakeAll(tx) // campaign for the journeys that were too many, or held
	return r, tell(ctx, tx, r.ID, r.Name, "cancelled")
}

// wakeAll wakes those who work on a run. Its mails may be in either lane.
func wakeAll(tx *postgres.Tx) {
	for _, function := range []string{drainer, delivery.Function(delivery.Bulk), delivery.Function(delivery.Transactional)} {
		tx.Wake(function, tx.Now())
	}
}

// cancelledAtOnce is how many journeys are ended in one transaction.
const cancelledAtOnce = 10_000

// cancelSQL ends up to $2 journeys of a run, in whatever order they are found: whoever is at one of them is not waited for. It tells whose they were, and how many.
const cancelSQL = `WITH ended AS (UPDATE journey SET state = 'cancelled', ended_at = onda.now(), due_at = 'infinity' WHERE id IN (
	SELECT id FROM journey WHERE run = $1 AND state = 'active' LIMIT $2 FOR UPDATE SKIP LOCKED) RETURNING contact)
	SELECT count(*), array_agg(contact), (SELECT e.name FROM run r JOIN entity e ON e.id = r.entity WHERE r.id = $1) FROM ended`

// cancelJourneys ends journeys of a cancelled run, but for those that are being moved at this moment.
func cancelJourneys(ctx context.Context, tx *postgres.Tx, run int64) (n int64, err error) {
	var contacts []int64
	var name string
	if err := tx.QueryRow(ctx, cancelSQL, run, cancelledAtOnce).Scan(&n, &contacts, &name); err != nil {
		return 0, fmt.Errorf("end the journeys of run %d: %w", run, err)
	}
	return n, tx.AddFacts(ctx, journeyFacts(nil, name, cancelled, contacts)...)
}
