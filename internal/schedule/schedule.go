package schedule

import (
	"context"
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
	inFlight = 64 // posts to a function that are waited for at once: it may work for 20 s before it answers
	atOnce   = 50 // posts a second that are made whatever their number
)

// tickLimit is shorter than timeoutSeconds of the service: a tick ends by itself.
const tickLimit = 55 * time.Second

// Build makes the function.
func Build(ctx context.Context, rt *fn.Runtime) (fn.Handler, error) {
	var cfg Config
	if err := rt.Config(ctx, &cfg); err != nil {
		return fn.Handler{}, err
	}
	db, err := postgres.Open(postgres.Config{URL: cfg.URL, MaxConns: MaxConns})
	if err != nil {
		return fn.Handler{}, err
	}
	s := &scheduler{cfg: cfg, db: db, post: rt.Post, log: rt.Log, watch: rt.Watch(), slots: map[string]chan struct{}{}, busy: map[key]struct{}{}}
	for _, f := range postgres.Functions() {
		s.slots[f] = make(chan struct{}, inFlight)
	}
	return fn.Handler{
		Event: s.tick,
		Close: func(context.Context) error { db.Close(); return nil },
	}, nil
}

type scheduler struct {
	cfg   Config
	db    *postgres.DB
	post  func(ctx context.Context, url string, e cloudevents.Event) error
	log   *zap.Logger
	watch postgres.Watch
	slots map[string]chan struct{} // of each function, so that a slow one holds back no other

	mu   sync.Mutex
	busy map[key]struct{} // what a post of this process is under way for
}

type key struct{ tenant, function string }

// tick does one round. Any event is a tick: what is due stands in Postgres. It answers when every function has answered, or has been left to
// the next tick, which may begin before.
func (s *scheduler) tick(ctx context.Context, e cloudevents.Event) (*cloudevents.Event, error) {
	ctx, cancel := context.WithTimeout(ctx, tickLimit)
	defer cancel()
	due, err := s.db.Due(ctx, 0)
	if err != nil {
		return nil, err
	}
	if s.watch != nil {
		oldest := map[string]time.Duration{}
		counts := map[string]int{}
		for _, d := range due {
			oldest[d.Function] = max(oldest[d.Function], d.Age)
			counts[d.Function]++
		}
		for f, n := range counts {
			s.watch(ctx, "due", f, oldest[f], n)
		}
	}
	byFunction := map[string][]postgres.Due{}
	for _, d := range due {
		byFunction[d.Function] = append(byFunction[d.Function], d)
	}
	limit := rate.NewLimiter(s.pace(len(due)), 1)
	var wg sync.WaitGroup
	for function, due := range byFunction {
		wg.Go(func() { s.ringAll(ctx, s.slots[function], limit, due, e.ID()) })
	}
	wg.Wait()
	return nil, nil
}

// ringAll rings one function for all tenants that it has work for. Those that it does not come to are still due at the next tick.
func (s *scheduler) ringAll(ctx context.Context, slots chan struct{}, limit *rate.Limiter, due []postgres.Due, tick string) {
	var wg sync.WaitGroup
	defer wg.Wait()
	for _, d := range due {
		k := key{d.Tenant, d.Function}
		if !s.take(k) {
			continue
		}
		if !s.turn(ctx, slots, limit) {
			s.release(k)
			return
		}
		wg.Go(func() {
			defer func() { s.release(k); <-slots }()
			if err := s.ring(ctx, d, tick); err != nil {
				s.log.Warn("function did not take its work", zap.String("tenant", d.Tenant), zap.String("function", d.Function), zap.Error(err))
			}
		})
	}
}

// turn waits until a post may be made, and takes a slot for it; false when the tick is over before.
func (s *scheduler) turn(ctx context.Context, slots chan struct{}, limit *rate.Limiter) bool {
	if limit.Wait(ctx) != nil {
		return false
	}
	select {
	case slots <- struct{}{}:
		return true
	case <-ctx.Done():
		return false
	}
}

// pace is how many posts a second are made, so that many tenants do not wake in the same instant.
func (s *scheduler) pace(n int) rate.Limit {
	if s.cfg.Spread <= 0 {
		return rate.Inf
	}
	return max(atOnce, rate.Limit(float64(n)/s.cfg.Spread.Seconds()))
}

// ring posts schedule.due to one function for one tenant.
func (s *scheduler) ring(ctx context.Context, d postgres.Due, tick string) error {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Patience)
	defer cancel()
	e, err := event.New(d.Tenant, "schedule", "", event.DeriveID("schedule.due", d.Tenant, d.Function, tick), event.ScheduleDue{Function: d.Function},
		event.Causation(tick))
	if err != nil {
		return err
	}
	if err := s.post(ctx, s.cfg.url(d.Namespace, d.Function), e); err != nil || !d.Sweep {
		return err
	}
	return s.db.Swept(ctx, d.Tenant, d.Function)
}

// take tells that nothing of this process is under way for the tenant and function, and marks that something is now.
func (s *scheduler) take(k key) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.busy[k]; ok {
		return false
	}
	s.busy[k] = struct{}{}
	return true
}

func (s *scheduler) release(k key) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.busy, k)
}
