// Package track is what becomes of mails once they are out: pixels, clicks, unsubscribes, preferences, the mail in a browser; and what visitors and
// programs of customers tell about themselves.
//
// Invariants: answered means stored; GET and HEAD change nothing that a person would mind; a click leads only to addresses of our own link table; no address of a
// network is stored, only a hash of it, and that for a while; who has withdrawn tracking.email leaves nothing but a count.
package track

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/metric/noop"
	"go.uber.org/zap"

	"github.com/onda-run/onda/internal/compose"
	"github.com/onda-run/onda/internal/event"
	"github.com/onda-run/onda/internal/fn"
	"github.com/onda-run/onda/internal/groupcommit"
	"github.com/onda-run/onda/internal/postgres"
)

// Config is track's part of the environment.
type Config struct {
	Postgres postgres.Config
	Compose  compose.Config
	// Hold is how long a hit waits to be judged, so that a burst is seen as one.
	Hold time.Duration `env:"ONDA_HIT_HOLD, default=10s"`
	// OriginKeep is how long the hashed address of a hit, and its agent, are kept.
	OriginKeep time.Duration `env:"ONDA_ORIGIN_KEEP, default=720h"`
	// Scanners is a directory with lists of known machines, agents.txt and networks.txt, in place of the built-in ones. They are read again when they change.
	Scanners string `env:"ONDA_SCANNERS"`
	// Slots is how many commits of hits and events are in flight, each of another tenant, but that one tenant may have two of events while a slot is free. What is left of ONDA_DATABASE_MAX_CONNS is for pages, links and keys.
	Slots int `env:"ONDA_HIT_SLOTS, default=2"`
	// EventsPerSecond is how many events with a public key a process takes from one origin for one tenant in a second, and ten times as many at once.
	EventsPerSecond int `env:"ONDA_EVENTS_PER_SECOND, default=20"`
	// Proxies is how many proxies stand before the function at the least; each adds an entry to X-Forwarded-For, and those of private networks, as Knative's, are passed over.
	Proxies int `env:"ONDA_PROXIES, default=1"`
}

// Check tells what cannot be.
func (c *Config) Check() error {
	if err := c.Compose.Check(); err != nil {
		return err
	}
	switch {
	case c.Hold < 0:
		return fmt.Errorf("ONDA_HIT_HOLD: %s is not a time to wait, such as 10s", c.Hold)
	case c.OriginKeep <= 0:
		return fmt.Errorf("ONDA_ORIGIN_KEEP: %s is not a time to keep, such as 720h", c.OriginKeep)
	case c.Slots < 1:
		return fmt.Errorf("ONDA_HIT_SLOTS: %d is not at least 1", c.Slots)
	case c.EventsPerSecond < 1:
		return fmt.Errorf("ONDA_EVENTS_PER_SECOND: %d is not at least 1", c.EventsPerSecond)
	case c.Proxies < 0:
		return fmt.Errorf("ONDA_PROXIES: %d is below 0", c.Proxies)
	}
	return nil
}

// workFor is how long one event keeps a worker at work.
const workFor = 20 * time.Second

const (
	commitMost = 500              // hits, or events, of one commit
	unknownFor = 10 * time.Second // what was asked for and is not there is not looked for again
)

// Tracker is the function.
type Tracker struct {
	cfg        Config
	db         *postgres.DB
	log        *zap.Logger
	hits       *groupcommit.Committer[hit]
	activities *groupcommit.Committer[activity]
	links      *cache[linkKey, string]
	noLinks    *cache[linkKey, struct{}]
	composer   *compose.Composer
	scanners   *scanners
	bodies     *fn.Bodies
	rates      *rates // of events with public keys
	judged     metric.Int64Counter
}

// New makes a Tracker on a database; nothing is connected to yet.
func New(cfg Config, db *postgres.DB, log *zap.Logger) *Tracker {
	t := &Tracker{
		cfg: cfg, db: db, log: log, composer: compose.New(cfg.Compose), scanners: newScanners(cfg.Scanners, log),
		links: newCache[linkKey, string](20_000, 0), noLinks: newCache[linkKey, struct{}](1_000, unknownFor),
		bodies: fn.NewBodies(maxBodies), rates: newRates(cfg.EventsPerSecond, time.Now),
		judged: noop.Int64Counter{},
	}
	r := groupcommit.NewRoom(cfg.Slots)
	t.hits = groupcommit.New(r, commitMost, hit.size, t.storeHits)
	t.activities = groupcommit.New(r, commitMost, activity.size, groupcommit.In(db, t.writeActivities)).Twice()
	return t
}

// Build is the function track, and track-events, as ONDA_SERVE says.
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
	t := New(cfg, db, rt.Log)
	t.judged, err = rt.Meter.Int64Counter("onda.hits", metric.WithUnit("{hit}"),
		metric.WithDescription("How many opens, clicks and views were judged; blind: taken for a person's with too little known of them to tell a machine by."))
	if err != nil {
		return fn.Handler{}, fmt.Errorf("make instruments: %w", err)
	}
	h := fn.Handler{
		After:  rt.Publishes(db),
		Failed: rt.Keeps(db),
		Close:  func(context.Context) error { db.Close(); return nil },
	}
	if rt.ServesHTTP {
		if h.HTTP, err = t.Handler(); err != nil {
			return fn.Handler{}, err
		}
	}
	if rt.ServesEvents {
		h.Event = func(ctx context.Context, e cloudevents.Event) (*cloudevents.Event, error) {
			return nil, t.onEvent(ctx, e, rt.Draining(), rt.Publish)
		}
	}
	return h, nil
}

// onEvent does the work that is due for the event's tenant. Other events than schedule.due are doorbells of facts, some of which may give points.
func (t *Tracker) onEvent(ctx context.Context, e cloudevents.Event, draining <-chan struct{}, publish postgres.Post) error {
	data, err := event.Decode(e)
	if err != nil {
		return fn.Permanent(err)
	}
	tenant, err := event.Tenant(e)
	if err != nil {
		return fn.Permanent(err)
	}
	_, due := data.(event.ScheduleDue)
	switch {
	case due:
		err = t.Sweep(ctx, tenant, draining, publish)
	case slices.Contains(scored(), strings.TrimSuffix(strings.TrimPrefix(e.Type(), "onda."), ".v1")):
		_, err = t.work(ctx, tenant, draining, t.foldScores)
	}
	if errors.Is(err, postgres.ErrUnknownTenant) || errors.Is(err, postgres.ErrForeignTenant) {
		return fn.Permanent(err)
	}
	return err
}

// Sweep does all the work that is due for the tenant, chunk after chunk, for at most 20 s, then says when there is more. publish posts what waits in the
// outbox; an error of it leaves that there.
func (t *Tracker) Sweep(ctx context.Context, tenant string, draining <-chan struct{}, publish postgres.Post) error {
	chunks := 0
	judgeAgain := func(ctx context.Context, tx *postgres.Tx) (bool, error) {
		chunks++
		more, err := t.judgeAgain(ctx, tx)
		return more && chunks < againMost, err
	}
	all, err := t.work(ctx, tenant, draining, t.judge, t.foldScores, t.dropPartition, t.forget, judgeAgain)
	if err != nil || !all {
		return err // the wake-up stands at a time that is over: schedule comes again
	}
	t.drain(ctx, tenant, publish)
	return t.db.Recompute(ctx, tenant, "track", t.due)
}

// judge judges hits, with partitions made for their facts.
func (t *Tracker) judge(ctx context.Context, tx *postgres.Tx) (again bool, err error) {
	if err := tx.EnsurePartitionsLately(ctx); err != nil {
		return false, err
	}
	n, err := t.judgeHits(ctx, tx)
	return n == judgeChunk, err
}

// work does each kind of work in chunks, a transaction each, for at most 20 s: all tells that nothing is left.
func (t *Tracker) work(ctx context.Context, tenant string, draining <-chan struct{}, kinds ...func(context.Context, *postgres.Tx) (again bool, err error)) (all bool, err error) {
	until := time.Now().Add(workFor)
	for _, do := range kinds {
		for again := true; again; {
			select {
			case <-draining:
				return false, nil
			default:
			}
			if time.Now().After(until) {
				return false, nil
			}
			err := t.db.InTenant(ctx, tenant, func(ctx context.Context, tx *postgres.Tx) (err error) {
				again, err = do(ctx, tx)
				return err
			})
			if err != nil {
				return false, err
			}
		}
	}
	return true, nil
}

// drain empties the outbox as far as it goes.
func (t *Tracker) drain(ctx context.Context, tenant string, publish postgres.Post) {
	if publish == nil {
		return
	}
	for {
		n, err := t.db.Drain(ctx, tenant, "track", publish)
		if err != nil {
			t.log.Warn("publish events", zap.String("tenant", tenant), zap.Error(err))
			return
		}
		if n == 0 {
			return
		}
	}
}

// due is when the tenant's next hit is to be judged, points are to be given, or something is to be forgotten.
func (t *Tracker) due(ctx context.Context, tx *postgres.Tx) (time.Time, error) {
	at := postgres.Never
	var hit *time.Time
	if err := tx.QueryRow(ctx, "SELECT min(at) FROM hit WHERE verdict IS NULL").Scan(&hit); err != nil {
		return at, fmt.Errorf("look for hits to judge: %w", err)
	}
	if hit != nil {
		at = hit.Add(t.cfg.Hold)
	}
	forget, err := t.forgetDue(ctx, tx)
	if err != nil {
		return at, err
	}
	scores, err := t.scoresDue(ctx, tx)
	if err != nil {
		return at, err
	}
	again, err := t.againDue(ctx, tx)
	if err != nil {
		return at, err
	}
	for _, due := range []time.Time{forget, scores, again} {
		if due.Before(at) {
			at = due
		}
	}
	return at, nil
}
