package dev

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/onda-run/onda/internal/localbroker"
)

// Handle is a running dev.
type Handle struct {
	cfg      Config
	url      string
	term     *terminal
	spawn    *spawner
	build    *builder // nil when nothing is built
	time     *timeline
	changed  *bell
	backends map[string]backend
	broker   *localbroker.Broker
	ingress  *ingress
	server   *http.Server
	client   *http.Client
	cancel   context.CancelFunc
	running  sync.WaitGroup // pinger, watcher, server
	began    time.Time

	mu     sync.Mutex
	pinger *localbroker.Pinger

	stop    sync.Once
	stopped error
}

// Run starts dev, and ends it when ctx is done.
func Run(ctx context.Context, cfg Config) error {
	h, err := Start(ctx, cfg)
	if err != nil {
		return err
	}
	<-ctx.Done()
	return h.Stop(context.WithoutCancel(ctx))
}

// Start listens and returns; no function runs yet. End it with Stop; ctx is only for starting.
func Start(ctx context.Context, cfg Config) (*Handle, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	routes, err := localbroker.Load(os.DirFS(cfg.Eventing))
	if err != nil {
		return nil, err
	}
	listener, err := listen(ctx, cfg)
	if err != nil {
		routes.Close()
		return nil, err
	}
	h := &Handle{
		cfg: cfg, url: "http://" + listener.Addr().String(), term: newTerminal(cfg.Output, cfg.Logs), time: &timeline{}, changed: &bell{},
		backends: map[string]backend{}, began: time.Now(),
		client: &http.Client{
			Transport:     &http.Transport{MaxIdleConnsPerHost: 100, IdleConnTimeout: 30 * time.Second},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}
	h.ingress = &ingress{dev: h, changed: h.changed}
	if err := h.begin(listener, routes); err != nil {
		_ = listener.Close() // the other error says what is wrong
		return nil, err
	}
	return h, nil
}

// listen takes the port, or says which one is taken and how to take another.
func listen(ctx context.Context, cfg Config) (net.Listener, error) {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", cfg.Addr)
	if errors.Is(err, syscall.EADDRINUSE) {
		_, text, _ := net.SplitHostPort(cfg.Addr)
		port, _ := strconv.Atoi(text) // it was checked with the rest of the configuration
		return nil, PortTaken("port "+cfg.Addr, port, cfg.PortFlag)
	}
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	return l, nil
}

// begin makes all the parts and lets them run.
func (h *Handle) begin(listener net.Listener, routes *localbroker.Routes) error {
	if h.cfg.Builds == nil {
		h.spawn = newSpawner()
		if h.cfg.Binaries == "" {
			h.build = newBuilder(h.cfg.Root, h.cfg.BuildDir, h.term, functions(h.cfg.Services))
		}
	}
	for _, s := range h.cfg.Services {
		h.backends[s.Name] = h.backend(s)
	}
	sources := routes.Sources
	broker, err := localbroker.New(routes, localbroker.Config{
		Resolve: h.resolve, Client: h.client, Clock: h.cfg.Clock, OnEvent: h.cfg.OnEvent, Log: h.cfg.Log,
	})
	if err != nil {
		h.abandon()
		return err
	}
	h.broker = broker
	handler, err := func() (http.Handler, error) {
		if err := broker.SetChaos(h.cfg.Chaos); err != nil {
			return nil, err
		}
		if err := h.setSources(sources); err != nil {
			return nil, err
		}
		return h.ingress.handler()
	}()
	if err != nil {
		broker.Close()
		h.abandon()
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	h.cancel = cancel
	if err := h.watch(ctx); err != nil {
		cancel()
		broker.Close()
		h.abandon()
		return err
	}
	h.server = &http.Server{Handler: handler, ReadHeaderTimeout: 10 * time.Second, ErrorLog: discard}
	h.running.Go(func() {
		if err := h.server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			h.term.say("the ingress ended: %s", err)
		}
	})
	if h.cfg.Tick >= 0 {
		h.running.Go(func() { h.tickAlong(ctx) })
	}
	return nil
}

// abandon undoes what was made before anything was started.
func (h *Handle) abandon() {
	if h.spawn != nil {
		h.spawn.close()
	}
}

func (h *Handle) backend(s Service) backend {
	env := h.cfg.environment(s, h.url)
	if h.cfg.Builds != nil {
		return &inprocess{
			svc: s, cfg: &h.cfg, build: h.cfg.Builds[s.Function], env: env, each: h.cfg.RebuildEach, time: h.time, changed: h.changed,
			log: h.cfg.Log.Named(s.Name), all: map[*instance]struct{}{},
		}
	}
	if h.term.colour && h.cfg.Logs == "" && env["ONDA_LOG"] == "" {
		env["ONDA_LOG"] = "console"
	}
	scale := max(1, s.Scale)
	if n := h.cfg.Scale[s.Name]; n > 0 {
		scale = n
	}
	return &pool{
		svc: s, scale: scale, cfg: &h.cfg, env: env, build: h.build, spawn: h.spawn, term: h.term, time: h.time, changed: h.changed,
	}
}

// resolve tells where a manifest's reference is here. All tenants' and the system's namespaces are one.
func (h *Handle) resolve(ref localbroker.Ref) (string, error) {
	switch ref.Kind {
	case "Service":
		if _, ok := h.backends[ref.Name]; !ok {
			return "", fmt.Errorf("there is no service %q here", ref.Name)
		}
		return h.url + "/functions/" + ref.Name + "/", nil
	case "Broker":
		return h.url + "/broker/" + ref.Name, nil
	}
	return "", fmt.Errorf("%s is of a kind that has no address here", ref)
}

// setSources makes the pinger of PingSources.
func (h *Handle) setSources(sources []*localbroker.Source) error {
	p, err := localbroker.NewPinger(sources, localbroker.PingConfig{
		Resolve: h.resolve, Client: h.client, Clock: h.cfg.Clock, Every: h.cfg.Tick, Log: h.cfg.Log,
	})
	if err != nil {
		return err
	}
	h.mu.Lock()
	h.pinger = p
	h.mu.Unlock()
	h.changed.ring()
	return nil
}

// tickAlong runs the pinger, and the one that takes its place when the manifests change.
func (h *Handle) tickAlong(ctx context.Context) {
	for ctx.Err() == nil {
		h.mu.Lock()
		p := h.pinger
		h.mu.Unlock()
		one, cancel := context.WithCancel(ctx)
		var running sync.WaitGroup
		running.Go(func() { p.Run(one) })
		_ = h.changed.until(ctx, func() bool {
			h.mu.Lock()
			defer h.mu.Unlock()
			return h.pinger != p
		})
		cancel()
		running.Wait()
	}
}

// URL is the address of the ingress, without a slash at its end.
func (h *Handle) URL() string { return h.url }

// FunctionURL is the address of each function, with {function} in the place of its name: what functions get as ONDA_FUNCTION_URL.
func (h *Handle) FunctionURL() string { return h.url + "/functions/{function}" }

// Broker is the broker that functions publish to.
func (h *Handle) Broker() *localbroker.Broker { return h.broker }

// Tick posts the event of each PingSource now, and waits for the answers.
func (h *Handle) Tick(ctx context.Context) error {
	h.mu.Lock()
	p := h.pinger
	h.mu.Unlock()
	return p.Tick(ctx)
}

// Kill sends a signal to all processes of a service, and tells to how many.
func (h *Handle) Kill(service string, signal syscall.Signal) (int, error) {
	b, ok := h.backends[service]
	if !ok {
		return 0, fmt.Errorf("there is no service %q here", service)
	}
	return b.kill(signal)
}

// Await returns once holds does, which is asked at once and whenever a process or a request begins or ends.
func (h *Handle) Await(ctx context.Context, holds func(Status) bool) error {
	return h.changed.until(ctx, func() bool { return holds(h.Status()) })
}

// Quiet returns once nothing goes on: no request is in flight, the broker holds nothing, and all functions were ended, gracefully, so that the last of
// what they do after their answers is done too. They start again at the next request. With ticks going on it may take long.
func (h *Handle) Quiet(ctx context.Context) error {
	for {
		err := h.changed.until(ctx, func() bool { n, _ := h.ingress.load(); return n == 0 })
		if err != nil {
			n, _ := h.ingress.load()
			return fmt.Errorf("wait for %d requests in flight: %w", n, err)
		}
		if err := h.broker.Wait(ctx); err != nil {
			return err
		}
		_, before := h.ingress.load()
		accepted := h.broker.Counts().Accepted
		for _, b := range h.backends {
			if err := b.quiet(ctx); err != nil {
				return err
			}
		}
		inflight, after := h.ingress.load()
		if counts := h.broker.Counts(); inflight == 0 && after == before && counts.Held == 0 && counts.Accepted == accepted {
			return nil
		}
	}
}

// Stop ends everything: the ingress takes no more, functions are drained and ended, and what the broker holds is lost. Later calls return what the first
// did.
func (h *Handle) Stop(ctx context.Context) error {
	h.stop.Do(func() { h.stopped = h.doStop(ctx) })
	return h.stopped
}

func (h *Handle) doStop(ctx context.Context) error {
	h.cancel() // watcher and ticks
	var errs []error
	var mu sync.Mutex
	var ending sync.WaitGroup
	limit, cancel := context.WithTimeout(ctx, h.cfg.Grace+5*time.Second)
	defer cancel()
	for _, b := range h.backends {
		ending.Go(func() {
			err := b.stop(limit)
			mu.Lock()
			defer mu.Unlock()
			errs = append(errs, err)
		})
	}
	ending.Wait()
	h.broker.Close()
	errs = append(errs, h.server.Close())
	h.running.Wait()
	h.abandon()
	h.client.CloseIdleConnections()
	return errors.Join(errs...)
}

// shown makes a path short for messages.
func (h *Handle) shown(path string) string {
	if rel, err := filepath.Rel(h.cfg.Root, path); err == nil && !strings.HasPrefix(rel, "..") {
		return rel
	}
	return path
}
