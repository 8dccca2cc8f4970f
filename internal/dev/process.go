package dev

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// process is one running binary of a service. Fields below mu's line are guarded by its pool's lock.
type process struct {
	cmd        *exec.Cmd
	addr       string // host and port
	generation int    // of its code
	transport  *http.Transport
	out        *output
	span       *Span
	ended      chan struct{} // closed when the process is gone

	// guarded by pool.mu
	inflight int
	timer    *time.Timer // ends it when it is idle
	why      string      // it ends
}

// discard is for the standard library's servers and proxies, whose complaints about connections are no news here.
var discard = log.New(io.Discard, "", 0)

// start builds the function where that is needed, starts its binary on a free port, and waits until it is ready.
func (p *pool) start(ctx context.Context) (*process, error) {
	binary, generation := filepath.Join(p.cfg.Binaries, p.svc.Function), 0
	if p.build != nil {
		var err error
		if binary, generation, err = p.build.ensure(ctx, p.svc.Function); err != nil {
			return nil, err
		}
	}
	for tries := 1; ; tries++ {
		proc, err := p.exec(ctx, binary)
		// another program may have taken the port between its being found free and the process's listening
		if err != nil && tries < 3 && strings.Contains(err.Error(), "address already in use") {
			continue
		}
		if err != nil {
			return nil, err
		}
		proc.generation = generation
		return proc, nil
	}
}

func (p *pool) exec(ctx context.Context, binary string) (*process, error) {
	port, err := freePort(ctx)
	if err != nil {
		return nil, err
	}
	out, err := p.term.output(p.svc.Name)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(binary) //nolint:noctx // it outlives the request that had it started; end ends it
	cmd.Env = os.Environ()
	for name, value := range p.env {
		cmd.Env = append(cmd.Env, name+"="+value)
	}
	cmd.Env = append(cmd.Env, "PORT="+strconv.Itoa(port))
	cmd.Stdout, cmd.Stderr = out, out
	cmd.WaitDelay = time.Second // for descendants that keep the pipe open
	begin := time.Now()
	if err := p.spawn.start(cmd); err != nil {
		out.close()
		if errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("there is no binary %s: build it, or leave out the directory of binaries to have it built", binary)
		}
		return nil, fmt.Errorf("start %s: %w", binary, err)
	}
	proc := &process{
		cmd: cmd, addr: net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), out: out, ended: make(chan struct{}),
		span: p.time.start(p.svc.Name, cmd.Process.Pid),
		transport: &http.Transport{
			DisableCompression: true, MaxIdleConnsPerHost: 100, IdleConnTimeout: time.Minute,
			DialContext: (&net.Dialer{Timeout: 5 * time.Second}).DialContext,
		},
	}
	p.mu.Lock()
	p.stats.starts++
	p.mu.Unlock()
	go func() {
		_ = cmd.Wait() // its outcome is in ProcessState
		out.close()
		proc.transport.CloseIdleConnections()
		p.gone(proc)
		close(proc.ended)
	}()
	if err := proc.waitReady(ctx, p.cfg.Start); err != nil {
		p.mu.Lock()
		proc.why = "not ready"
		p.mu.Unlock()
		proc.terminate(0)
		if text := out.tail(); text != "" {
			return nil, fmt.Errorf("%w; the last that it wrote:\n%s", err, text)
		}
		return nil, err
	}
	took := time.Since(begin)
	p.time.ready(proc.span)
	p.mu.Lock()
	p.stats.coldLast, p.stats.coldMost = took, max(p.stats.coldMost, took)
	p.mu.Unlock()
	return proc, nil
}

// freePort asks the kernel for a port that nobody listens on.
func freePort(ctx context.Context) (int, error) {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return 0, fmt.Errorf("find a free port: %w", err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	if err := l.Close(); err != nil {
		return 0, fmt.Errorf("find a free port: %w", err)
	}
	return port, nil
}

// waitReady asks the readiness probe, as aggressively as queue-proxy does.
func (proc *process) waitReady(ctx context.Context, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for pause := time.Millisecond; ; pause = min(pause*3/2, 50*time.Millisecond) {
		if proc.probe(ctx) {
			return nil
		}
		select {
		case <-proc.ended:
			return fmt.Errorf("it ended before it was ready (%s)", proc.cmd.ProcessState)
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return fmt.Errorf("it was not ready within %s", limit)
			}
			return ctx.Err()
		case <-time.After(pause):
		}
	}
}

func (proc *process) probe(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+proc.addr+"/health/readiness", http.NoBody)
	if err != nil {
		return false
	}
	res, err := proc.transport.RoundTrip(req)
	if err != nil {
		return false
	}
	_ = res.Body.Close() // nothing of it is needed
	return res.StatusCode == http.StatusOK
}

// take counts a request in.
func (proc *process) take() {
	proc.inflight++
	if proc.timer != nil {
		proc.timer.Stop()
	}
}

// idle starts the time after which a process without requests is ended.
func (proc *process) idle(p *pool) {
	if proc.inflight > 0 || proc.why != "" {
		return
	}
	if proc.timer != nil {
		proc.timer.Reset(p.cfg.Idle)
		return
	}
	proc.timer = time.AfterFunc(p.cfg.Idle, func() {
		p.mu.Lock()
		if proc.inflight > 0 || proc.why != "" { // it was taken while the timer fired
			p.mu.Unlock()
			return
		}
		p.leave(proc, "idle")
		p.mu.Unlock()
		p.changed.ring()
		proc.terminate(p.cfg.Grace)
	})
}

// terminate ends the process and returns when it is gone. Without a grace it is killed at once.
func (proc *process) terminate(grace time.Duration) {
	if grace > 0 {
		_ = proc.cmd.Process.Signal(syscall.SIGTERM) // it may have ended this moment
		select {
		case <-proc.ended:
			return
		case <-time.After(grace):
		}
	}
	if !proc.hasEnded() { // then its number may be another's
		_ = syscall.Kill(-proc.cmd.Process.Pid, syscall.SIGKILL) // the whole group
	}
	<-proc.ended
}

// awaitEnd waits a while for the process to be gone.
func (proc *process) awaitEnd(atMost time.Duration) {
	select {
	case <-proc.ended:
	case <-time.After(atMost):
	}
}

func (proc *process) hasEnded() bool {
	select {
	case <-proc.ended:
		return true
	default:
		return false
	}
}

// memory is what a process has in RAM, now and at most so far, in bytes; zeros where the system does not tell.
func memory(pid int) (rss, peak int64) {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		return 0, 0
	}
	lines := bufio.NewScanner(bytes.NewReader(text))
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), ":")
		n, _ := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64) // other lines are no numbers
		switch name {
		case "VmRSS":
			rss = n << 10
		case "VmHWM":
			peak = n << 10
		}
	}
	return rss, peak
}
