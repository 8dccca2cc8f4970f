package dev

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// backend runs one service: as processes (pool) or in this process (inprocess).
type backend interface {
	http.Handler
	// status is what runs now and has run.
	status() ServiceStatus
	// kill sends a signal to all that runs, and tells to how many.
	kill(syscall.Signal) (int, error)
	// refresh ends what runs old code, once new code is built.
	refresh(ctx context.Context)
	// quiet ends what runs, gracefully, and returns when it is gone. Later requests start anew.
	quiet(ctx context.Context) error
	// stop does the same for good: later requests are refused.
	stop(ctx context.Context) error
}

// pool runs a service as processes, from none to its scale. It is to its processes what the activator, the queue-proxy and the autoscaler are to pods.
type pool struct {
	svc     Service
	scale   int
	cfg     *Config
	env     map[string]string
	build   *builder
	spawn   *spawner
	term    *terminal
	time    *timeline
	changed *bell

	mu      sync.Mutex
	live    []*process // those that take requests
	leaving []*process // those that are ending
	launch  *launch    // the one that is starting
	stopped bool
	stats   poolStats
}

// launch is a process that is being built and started. All requests that need it wait for the same one.
type launch struct {
	done   chan struct{}
	cancel context.CancelFunc
	err    error
}

type poolStats struct {
	starts, kills, requests int64
	coldLast, coldMost      time.Duration
	peakRSS                 int64
	lastError               string
}

var errStopped = errors.New("dev is ending")

// ServeHTTP gives the request to a process, and starts one where there is none. When the process ends meanwhile, the answer is 502, which brokers retry.
func (p *pool) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	proxy := &httputil.ReverseProxy{
		Rewrite: func(out *httputil.ProxyRequest) {
			out.Out.URL.Scheme, out.Out.URL.Host = "http", "function"
			out.Out.Host = out.In.Host // hosts are for branding: functions see the one that was asked for
			out.SetXForwarded()
		},
		Transport:     p,
		FlushInterval: -1,
		ErrorHandler:  func(w http.ResponseWriter, r *http.Request, err error) { answerFailure(w, r, p.svc.Name, err) },
		ErrorLog:      discard,
	}
	proxy.ServeHTTP(w, r)
}

// RoundTrip implements http.RoundTripper: it holds the request until a process takes it. When none listens where one should, nothing was sent, and another
// is tried.
func (p *pool) RoundTrip(r *http.Request) (*http.Response, error) {
	switch {
	case r.Body != nil && r.Body != http.NoBody:
		r.Body = keptOpen{r.Body} // a transport that could not connect closes the body, unread
	case r.Method == http.MethodGet || r.Method == http.MethodHead || r.Method == http.MethodOptions:
		// A body that cannot be read again, though it is empty: else the transport would send the request once more when its process was killed, which no
		// proxy in a cluster does.
		r.Body = keptOpen{strings.NewReader("")}
	}
	for tries := 1; ; tries++ {
		proc, err := p.acquire(r.Context())
		if err != nil {
			return nil, err
		}
		r.URL.Host = proc.addr
		res, err := proc.transport.RoundTrip(r)
		if err == nil {
			res.Body = &released{ReadCloser: res.Body, release: sync.OnceFunc(func() { p.release(proc) })}
			return res, nil
		}
		p.release(proc)
		var op *net.OpError
		if errors.As(err, &op) && op.Op == "dial" && tries < 3 {
			proc.awaitEnd(p.cfg.Grace) // so that the next try finds another
			continue
		}
		if r.Context().Err() == nil {
			proc.awaitEnd(100 * time.Millisecond) // a killed process's connections break before its end is known: who tries again finds another
		}
		return nil, fmt.Errorf("its process ended, or broke the connection, before it answered: %w", err)
	}
}

// keptOpen is a body that only the server closes.
type keptOpen struct{ io.Reader }

func (keptOpen) Close() error { return nil }

// released is the body of an answer: when it was read, the process has one request less.
type released struct {
	io.ReadCloser
	release func()
}

func (b *released) Close() error {
	defer b.release()
	return b.ReadCloser.Close()
}

// acquire waits for a process that has room for one more request. It starts one when there is none, or when all are full and there may be more.
func (p *pool) acquire(ctx context.Context) (*process, error) {
	if err := p.renew(ctx); err != nil {
		return nil, err
	}
	for {
		rung := p.changed.listen()
		p.mu.Lock()
		if p.stopped {
			p.mu.Unlock()
			return nil, errStopped
		}
		if best := p.best(); best != nil {
			p.stats.requests++
			best.take()
			p.mu.Unlock()
			return best, nil
		}
		if p.launch == nil && len(p.live) < p.scale {
			p.begin()
		}
		l := p.launch
		p.mu.Unlock()
		var launched <-chan struct{}
		if l != nil {
			launched = l.done
		}
		select {
		case <-launched:
			if l.err != nil {
				return nil, l.err
			}
		case <-rung:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// best is the process with the fewest requests that has room; nil for none.
func (p *pool) best() *process {
	var best *process
	for _, proc := range p.live {
		if p.svc.Concurrency > 0 && proc.inflight >= p.svc.Concurrency {
			continue
		}
		if best == nil || proc.inflight < best.inflight {
			best = proc
		}
	}
	return best
}

// begin starts a process in the background.
func (p *pool) begin() {
	ctx, cancel := context.WithCancel(context.Background()) // who asked first may go away; the others still wait
	l := &launch{done: make(chan struct{}), cancel: cancel}
	p.launch = l
	go func() {
		defer cancel()
		proc, err := p.start(ctx)
		p.mu.Lock()
		p.launch = nil
		l.err = err
		switch {
		case err != nil:
			p.stats.lastError = err.Error()
		case proc.why != "": // it ended between its readiness and now
			l.err = errors.New("the process ended as soon as it was ready")
		default:
			p.live = append(p.live, proc)
			p.stats.lastError = ""
			proc.idle(p)
		}
		stopped := p.stopped
		p.mu.Unlock()
		close(l.done)
		p.changed.ring()
		if err != nil && !stopped {
			p.term.say("%s does not start: %s", p.svc.Name, err)
		}
		if stopped && proc != nil {
			p.end(proc, "stop")
		}
	}()
}

// release gives a process back.
func (p *pool) release(proc *process) {
	p.mu.Lock()
	proc.inflight--
	proc.idle(p)
	p.mu.Unlock()
	p.changed.ring()
}

// end takes a process out of service, tells it to end, and waits until it has: SIGTERM, and SIGKILL when the grace is over.
func (p *pool) end(proc *process, why string) {
	p.mu.Lock()
	p.leave(proc, why)
	p.mu.Unlock()
	p.changed.ring()
	proc.terminate(p.cfg.Grace)
}

// weigh notes the most memory that a process had, while it can be asked: what the system tells of one that has ended counts what it was forked from. p.mu is held.
func (p *pool) weigh(proc *process) {
	_, peak := memory(proc.cmd.Process.Pid)
	p.stats.peakRSS = max(p.stats.peakRSS, peak)
}

// leave moves a process out of those that take requests. p.mu is held.
func (p *pool) leave(proc *process, why string) {
	p.weigh(proc)
	if proc.why == "" {
		proc.why = why
	}
	if proc.timer != nil {
		proc.timer.Stop()
	}
	for i, other := range p.live {
		if other == proc {
			p.live = append(p.live[:i:i], p.live[i+1:]...)
			p.leaving = append(p.leaving, proc)
			return
		}
	}
}

// gone notes that a process has ended, by whatever cause.
func (p *pool) gone(proc *process) {
	p.mu.Lock()
	p.leave(proc, "died")
	for i, other := range p.leaving {
		if other == proc {
			p.leaving = append(p.leaving[:i:i], p.leaving[i+1:]...)
			break
		}
	}
	state := proc.cmd.ProcessState
	if status, ok := state.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		p.stats.kills++
		if proc.why == "died" {
			proc.why = status.Signal().String()
		}
	}
	why := proc.why
	p.mu.Unlock()
	p.time.end(proc.span, why)
	if why == "died" {
		p.term.say("%s (process %d) ended by itself: %s", p.svc.Name, proc.cmd.Process.Pid, state)
	}
	p.changed.ring()
}

// renew builds the function where its code changed, and takes processes of older code out of service. A build that fails leaves them there.
func (p *pool) renew(ctx context.Context) error {
	if p.build == nil {
		return nil
	}
	_, generation, err := p.build.ensure(ctx, p.svc.Function)
	if err != nil {
		return err
	}
	p.mu.Lock()
	var old []*process
	for _, proc := range p.live {
		if proc.generation != generation {
			old = append(old, proc)
		}
	}
	for _, proc := range old {
		p.leave(proc, "edit")
	}
	p.mu.Unlock()
	for _, proc := range old {
		go proc.terminate(p.cfg.Grace)
	}
	if len(old) > 0 {
		p.changed.ring()
	}
	return nil
}

func (p *pool) refresh(ctx context.Context) {
	p.mu.Lock()
	up := len(p.live) > 0 || p.launch != nil
	p.mu.Unlock()
	if up { // what does not run is built when it is needed
		_ = p.renew(ctx) // the builder has told of what is wrong
		p.changed.ring()
	}
}

func (p *pool) kill(signal syscall.Signal) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := 0
	for _, proc := range slices.Concat(p.live, p.leaving) {
		if signal == syscall.SIGTERM || signal == syscall.SIGINT {
			p.leave(proc, signal.String()) // it finishes what it has; what comes goes to another
		}
		p.weigh(proc)
		if err := proc.cmd.Process.Signal(signal); err == nil {
			n++
		} else if !errors.Is(err, os.ErrProcessDone) {
			return n, fmt.Errorf("send a signal to %s: %w", p.svc.Name, err)
		}
	}
	return n, nil
}

func (p *pool) quiet(ctx context.Context) error {
	p.mu.Lock()
	all := slices.Concat(p.live, p.leaving)
	p.mu.Unlock()
	for _, proc := range all {
		go p.end(proc, "stop")
	}
	for _, proc := range all {
		select {
		case <-proc.ended:
		case <-ctx.Done():
			return fmt.Errorf("wait for %s to end: %w", p.svc.Name, ctx.Err())
		}
	}
	return nil
}

func (p *pool) stop(ctx context.Context) error {
	p.mu.Lock()
	p.stopped = true
	l := p.launch
	p.mu.Unlock()
	p.changed.ring()
	if l != nil {
		l.cancel()
		<-l.done
	}
	return p.quiet(ctx)
}

func (p *pool) status() ServiceStatus {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := ServiceStatus{
		Service: p.svc.Name, Function: p.svc.Function, Serve: p.svc.Serve, Starts: p.stats.starts, Kills: p.stats.kills, Requests: p.stats.requests,
		ReadyLast: p.stats.coldLast.Seconds(), ReadyMost: p.stats.coldMost.Seconds(), PeakRSS: p.stats.peakRSS, Error: p.stats.lastError,
	}
	if p.build != nil {
		s.BuildError = p.build.failure(p.svc.Function)
	}
	add := func(proc *process, state string) {
		rss, peak := memory(proc.cmd.Process.Pid)
		s.PeakRSS = max(s.PeakRSS, peak)
		s.Processes = append(s.Processes, ProcessStatus{
			PID: proc.cmd.Process.Pid, State: state, Since: proc.span.Started, InFlight: proc.inflight, RSS: rss, PeakRSS: peak,
		})
	}
	for _, proc := range p.live {
		add(proc, "ready")
	}
	for _, proc := range p.leaving {
		add(proc, "ending")
	}
	switch {
	case p.launch != nil:
		s.State = "starting"
	case len(p.live) > 0:
		s.State = "ready"
	case len(p.leaving) > 0:
		s.State = "ending"
	default:
		s.State = "zero"
	}
	return s
}
