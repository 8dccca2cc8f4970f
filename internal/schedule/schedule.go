package schedule

import (
	"context"
	"fmt"
	"hash/fnv"
	"strconv"
	"sync"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2"
	"go.uber.org/zap"
	"golang.org/x/time/rate"

	"github.com/onda-run/onda/internal/event"
	"github.com/onda-run/onda/internal/fn"
	"github.com/onda-run/onda/internal/postgres"
)

const (
	inFlight = 64 // posts that are waited for at once: a function may work for 20 s before it answers
	atOnce   = 50 // posts a second that are made whatever their number
	day      = 24 * time.Hour
)

// Build makes the function.
func Build(ctx context.Context, rt *fn.Runtime) (fn.Handler, error) {
	var cfg Config
	if err := rt.Config(ctx, &cfg); err != nil {
		return fn.Handler{}, err
	}
	db, err := postgres.Open(postgres.Config{URL: cfg.URL, MaxConns: 1})
	if err != nil {
		return fn.Handler{}, err
	}
	s := &scheduler{cfg: cfg, db: db, post: rt.Post, log: rt.Log, busy: map[postgres.Due]struct{}{}}
	return fn.Handler{
		Event: s.tick,
		Close: func(context.Context) error { db.Close(); return nil },
	}, nil
}

type scheduler struct {
	cfg  Config
	db   *postgres.DB
	post func(ctx context.Context, url string, e cloudevents.Event) error
	log  *zap.Logger

	mu   sync.Mutex
	busy map[postgres.Due]struct{} // tenant and function that a post of this process is under way to
}

// tick does one round. Any event is a tick: what is due stands in Postgres. It answers when every function has answered, or has been left to
// the next tick.
func (s *scheduler) tick(ctx context.Context, e cloudevents.Event) (*cloudevents.Event, error) {
	due, err := s.db.Due(ctx, 0)
	if err != nil {
		return nil, err
	}
	daily, err := s.daily(ctx, e.Time())
	if err != nil {
		return nil, err
	}
	due = append(due, daily...)
	limit := rate.NewLimiter(s.pace(len(due)), 1)
	slots := make(chan struct{}, inFlight)
	var wg sync.WaitGroup
	defer wg.Wait()
	for _, d := range due {
		if !s.take(d) {
			continue
		}
		if err := limit.Wait(ctx); err != nil {
			s.release(d)
			return nil, nil // the rest is still due at the next tick
		}
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { s.release(d); <-slots }()
			if err := s.ring(ctx, d, e.ID()); err != nil {
				s.log.Warn("function did not take its work", zap.String("tenant", d.Tenant), zap.String("function", d.Function), zap.Error(err))
			}
		})
	}
	return nil, nil
}

// pace is how many posts a second are made, so that many tenants do not wake in the same instant.
func (s *scheduler) pace(n int) rate.Limit {
	if s.cfg.Spread <= 0 {
		return rate.Inf
	}
	return max(atOnce, rate.Limit(float64(n)/s.cfg.Spread.Seconds()))
}

func (s *scheduler) ring(ctx context.Context, d postgres.Due, tick string) error {
	e, err := event.New(d.Tenant, "schedule", "", event.DeriveID("schedule.due", d.Tenant, d.Function, tick), event.ScheduleDue{Function: d.Function},
		event.Causation(tick))
	if err != nil {
		return err
	}
	return s.post(ctx, s.cfg.url(d.Namespace, d.Function), e)
}

// take tells that nothing of this process is under way to the function for the tenant, and marks that something is now.
func (s *scheduler) take(d postgres.Due) bool {
	k := postgres.Due{Tenant: d.Tenant, Function: d.Function}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.busy[k]; ok {
		return false
	}
	s.busy[k] = struct{}{}
	return true
}

func (s *scheduler) release(d postgres.Due) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.busy, postgres.Due{Tenant: d.Tenant, Function: d.Function})
}

// daily sweeps every tenant once a day, at a minute of its own, should a wake-up have been lost in a way that nobody thought of.
func (s *scheduler) daily(ctx context.Context, at time.Time) ([]postgres.Due, error) {
	if at.IsZero() {
		return nil, nil
	}
	all, err := s.db.All(ctx)
	if err != nil {
		return nil, err
	}
	var due []postgres.Due
	for _, d := range all {
		if minuteOf(d.Tenant) == int(at.UTC().Sub(at.UTC().Truncate(day)).Minutes()) {
			d.At = at
			due = append(due, d)
		}
	}
	return due, nil
}

// minuteOf is the minute of the day at which a tenant is swept.
func minuteOf(tenant string) int {
	h := fnv.New32a()
	_, _ = fmt.Fprint(h, "sweep ", strconv.Itoa(len(tenant)), tenant)
	return int(h.Sum32() % uint32(day/time.Minute))
}
