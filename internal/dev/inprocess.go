package dev

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"syscall"
	"time"

	"github.com/sethvargo/go-envconfig"
	"go.uber.org/zap"

	"github.com/onda-run/onda/internal/fn"
)

// inprocess runs a service in this process: an instance that is built at the first request and ended when idle, or one for each request.
type inprocess struct {
	svc     Service
	cfg     *Config
	build   fn.Build
	env     map[string]string
	each    bool
	time    *timeline
	changed *bell
	log     *zap.Logger

	mu      sync.Mutex
	current *instance
	all     map[*instance]struct{} // those that are not gone
	stopped bool
	stats   poolStats
}

// instance is a function that was built. Fields are guarded by its service's lock.
type instance struct {
	fn       *fn.Instance
	span     *Span
	inflight int
	timer    *time.Timer
	ending   bool
	gone     chan struct{}
}

// ServeHTTP gives the request to the instance, and builds one where there is none.
func (s *inprocess) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	in, err := s.acquire()
	if err != nil {
		answerFailure(w, r, s.svc.Name, err)
		return
	}
	defer s.release(in)
	in.fn.ServeHTTP(w, r)
}

func (s *inprocess) acquire() (*instance, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		return nil, errStopped
	}
	s.stats.requests++
	if in := s.current; in != nil && !s.each {
		in.inflight++
		if in.timer != nil {
			in.timer.Stop()
		}
		return in, nil
	}
	begin := time.Now()
	// Under the lock: requests that come meanwhile wait for the one instance, as they would for the one process.
	built, err := fn.Start(context.Background(), s.svc.Function, s.build, envconfig.MapLookuper(s.env), s.log)
	if err != nil {
		s.stats.lastError = err.Error()
		return nil, fmt.Errorf("it does not start: %w", err)
	}
	in := &instance{fn: built, inflight: 1, gone: make(chan struct{}), span: s.time.start(s.svc.Name, 0)}
	s.time.ready(in.span)
	took := time.Since(begin)
	s.stats.lastError = ""
	s.stats.starts++
	s.stats.coldLast, s.stats.coldMost = took, max(s.stats.coldMost, took)
	s.all[in] = struct{}{}
	if !s.each {
		s.current = in
	}
	return in, nil
}

func (s *inprocess) release(in *instance) {
	s.mu.Lock()
	defer s.mu.Unlock()
	in.inflight--
	if in.inflight > 0 || in.ending {
		return
	}
	if s.each {
		s.begin(in, "request")
		return
	}
	if in.timer == nil {
		in.timer = time.AfterFunc(s.cfg.Idle, func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			if in.inflight == 0 && !in.ending {
				s.begin(in, "idle")
			}
		})
		return
	}
	in.timer.Reset(s.cfg.Idle)
}

// begin ends an instance in the background, since its last After is to come after the answer. s.mu is held.
func (s *inprocess) begin(in *instance, why string) {
	if in.ending {
		return
	}
	in.ending = true
	if s.current == in {
		s.current = nil
	}
	if in.timer != nil {
		in.timer.Stop()
	}
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), s.cfg.Grace)
		defer cancel()
		if err := in.fn.Stop(ctx); err != nil {
			s.log.Warn("an instance did not end well", zap.String("service", s.svc.Name), zap.Error(err))
		}
		s.time.end(in.span, why)
		s.mu.Lock()
		delete(s.all, in)
		s.mu.Unlock()
		close(in.gone)
		s.changed.ring()
	}()
}

// kill drains for SIGTERM; there is no process that could be killed.
func (s *inprocess) kill(signal syscall.Signal) (int, error) {
	if signal != syscall.SIGTERM {
		return 0, errors.New("all functions run in one process: none can get a signal but TERM")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for in := range s.all {
		if !in.ending {
			s.begin(in, signal.String())
			n++
		}
	}
	return n, nil
}

func (s *inprocess) refresh(context.Context) {}

func (s *inprocess) quiet(ctx context.Context) error {
	s.mu.Lock()
	var all []*instance
	for in := range s.all {
		all = append(all, in)
		s.begin(in, "stop")
	}
	s.mu.Unlock()
	for _, in := range all {
		select {
		case <-in.gone:
		case <-ctx.Done():
			return fmt.Errorf("wait for %s to end: %w", s.svc.Name, ctx.Err())
		}
	}
	return nil
}

func (s *inprocess) stop(ctx context.Context) error {
	s.mu.Lock()
	s.stopped = true
	s.mu.Unlock()
	return s.quiet(ctx)
}

func (s *inprocess) status() ServiceStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := ServiceStatus{
		Service: s.svc.Name, Function: s.svc.Function, Serve: s.svc.Serve, State: "zero", Starts: s.stats.starts, Requests: s.stats.requests,
		ReadyLast: s.stats.coldLast.Seconds(), ReadyMost: s.stats.coldMost.Seconds(), Error: s.stats.lastError,
	}
	for in := range s.all {
		state := "ready"
		if in.ending {
			state = "ending"
		}
		if st.State != "ready" {
			st.State = state
		}
		st.Processes = append(st.Processes, ProcessStatus{State: state, Since: in.span.Started, InFlight: in.inflight})
	}
	return st
}
