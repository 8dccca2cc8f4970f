package localbroker

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"sync"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2"
	"github.com/google/uuid"
	"github.com/robfig/cron/v3"
	"go.uber.org/zap"
	sourcesv1 "knative.dev/eventing/pkg/apis/sources/v1"
)

// Source is one PingSource: an event that is posted to a sink by the clock, not through a broker.
type Source struct {
	// Name is the manifest's name, File where it stands.
	Name, File string
	// Sink is who gets the events.
	Sink Destination

	schedule cron.Schedule
	template cloudevents.Event // without id and time
}

// pingEvent makes the event that a PingSource posts again and again, with the type and source that Knative fixes.
func pingEvent(s *sourcesv1.PingSource) (cloudevents.Event, error) {
	e := cloudevents.NewEvent()
	e.SetType(sourcesv1.PingSourceEventType)
	e.SetSource(sourcesv1.PingSourceSource(s.Namespace, s.Name))
	if s.Spec.CloudEventOverrides != nil {
		for name, value := range s.Spec.CloudEventOverrides.Extensions {
			e.SetExtension(name, value)
		}
	}
	data := []byte(s.Spec.Data)
	if s.Spec.DataBase64 != "" {
		var err error
		if data, err = base64.StdEncoding.DecodeString(s.Spec.DataBase64); err != nil {
			return e, err
		}
	}
	if len(data) > 0 {
		if err := e.SetData(s.Spec.ContentType, data); err != nil {
			return e, err
		}
	}
	return e, nil
}

// everyMinute tells whether the schedule is the plainest: then it may be replaced by a shorter interval without changing what it is for.
func (s *Source) everyMinute(now time.Time) bool {
	first := s.schedule.Next(now)
	return s.schedule.Next(first).Sub(first) == time.Minute
}

// PingConfig is what a Pinger needs.
type PingConfig struct {
	// Resolve tells the URL of a sink.
	Resolve Resolver
	// Client posts; http.DefaultClient when nil.
	Client *http.Client
	// Clock is the machine's when nil.
	Clock Clock
	// Every replaces the schedule of sources that fire each minute, so that a tour need not wait; 0 leaves it.
	Every time.Duration
	// Log gets a warning for each event that is lost.
	Log *zap.Logger
}

// Pinger posts the events of PingSources. Like Knative's it tries each five times more, and then the event is lost: the next tick stands for it.
type Pinger struct {
	cfg     PingConfig
	sources []*Source
	sinks   []*url.URL
}

// NewPinger resolves the sinks of the sources.
func NewPinger(sources []*Source, cfg PingConfig) (*Pinger, error) {
	if cfg.Client == nil {
		cfg.Client = http.DefaultClient
	}
	if cfg.Clock == nil {
		cfg.Clock = RealClock{}
	}
	if cfg.Log == nil {
		cfg.Log = zap.NewNop()
	}
	p := &Pinger{cfg: cfg, sources: sources}
	for _, s := range sources {
		u, err := s.Sink.resolve(cfg.Resolve)
		if err != nil {
			return nil, fmt.Errorf("%s: PingSource %s: spec.sink: %w", s.File, s.Name, err)
		}
		p.sinks = append(p.sinks, u)
	}
	return p, nil
}

// Run posts each source's event whenever it is due, until ctx is done. A tick that finds the last one still under way is left out.
func (p *Pinger) Run(ctx context.Context) {
	var all sync.WaitGroup
	for i, s := range p.sources {
		all.Go(func() {
			quick := p.cfg.Every > 0 && s.everyMinute(p.cfg.Clock.Now())
			for {
				wait := p.cfg.Every
				if !quick {
					now := p.cfg.Clock.Now()
					wait = s.schedule.Next(now).Sub(now)
				}
				select {
				case <-ctx.Done():
					return
				case <-p.cfg.Clock.After(wait):
				}
				if err := p.post(ctx, i); err != nil && ctx.Err() == nil {
					p.cfg.Log.Warn("a tick is lost", zap.Error(err))
				}
			}
		})
	}
	all.Wait()
}

// Tick posts the event of every source once, now, and waits for the answers.
func (p *Pinger) Tick(ctx context.Context) error {
	var errs []error
	for i := range p.sources {
		errs = append(errs, p.post(ctx, i))
	}
	return errors.Join(errs...)
}

// post sends one event with the patience of Knative's adapter: five retries, from 50 ms, each after twice the time.
func (p *Pinger) post(ctx context.Context, i int) error {
	e := p.sources[i].template.Clone()
	e.SetID(uuid.NewString())
	e.SetTime(p.cfg.Clock.Now().UTC())
	for n := 0; ; n++ {
		answer := send(ctx, p.cfg.Client, p.sinks[i], e, nil, delivery{})
		if answer.status/100 == 2 {
			return nil
		}
		if n == 5 || !worthASecondTick(answer.status) {
			return fmt.Errorf("PingSource %s: %w", p.sources[i].Name, answer.failure())
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-p.cfg.Clock.After(50 * time.Millisecond << n):
		}
	}
}

// worthASecondTick is the set of the CloudEvents SDK, which sends PingSources' events; it is not the broker's.
func worthASecondTick(status int) bool {
	switch status {
	case 0, http.StatusNotFound, http.StatusRequestEntityTooLarge, http.StatusTooEarly, http.StatusTooManyRequests,
		http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	return false
}
