package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/onda-run/onda/internal/token"
)

// coldAfter is how much later, in ms, the first hit of a process may be answered than the same bytes by one that stores nothing.
const coldAfter = 15

// alone is a function in a process that begins as a pod's does, on a port that outlives it.
type alone struct {
	env  []string
	addr string
	cmd  *exec.Cmd // nil where it does not run
	peak int64     // bytes, of all the processes so far
}

// newAlone prepares a process of a function; nothing is started yet.
func (l *lab) newAlone(ctx context.Context, name string, settings ...string) (*alone, error) {
	addr, err := freePort(ctx)
	if err != nil {
		return nil, err
	}
	a := &alone{addr: addr}
	a.env = append([]string{
		sideEnv + "=" + name + "-alone", "ONDA_HOST=127.0.0.1", "PORT=" + a.addr[strings.LastIndexByte(a.addr, ':')+1:], "ONDA_SERVE=http", "ONDA_LOG_LEVEL=error",
		"ONDA_DATABASE_URL=" + l.poolURL, "K_SINK=" + l.sink, "ONDA_LINK_URL=http://localhost:8080", "ONDA_DATABASE_MAX_CONNS=" + strconv.Itoa(trackConns),
	}, settings...)
	l.closers = append(l.closers, a.kill)
	return a, nil
}

// freePort looks for a port that nobody listens on, below those that the system gives to clients: one that tries to connect while the process is away might get its very port.
func freePort(ctx context.Context) (address string, err error) {
	for range 100 {
		var listener net.Listener
		listener, err = (&net.ListenConfig{}).Listen(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", 20_000+rand.IntN(10_000)))
		if err == nil {
			return listener.Addr().String(), listener.Close()
		}
	}
	return "", fmt.Errorf("look for a port: %w", err)
}

// start starts the process, and does not wait until it serves.
func (a *alone) start(ctx context.Context) error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	a.cmd = exec.CommandContext(context.WithoutCancel(ctx), self)       // until it is killed
	a.cmd.Env, a.cmd.Stdout, a.cmd.Stderr = a.env, os.Stderr, os.Stderr // what it logs is errors
	a.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := a.cmd.Start(); err != nil {
		a.cmd = nil
		return fmt.Errorf("start a function: %w", err)
	}
	return nil
}

// kill ends the process at once, if it runs.
func (a *alone) kill() error {
	if a.cmd == nil {
		return nil
	}
	peak, err := peakOf(a.cmd.Process.Pid)
	a.peak = max(a.peak, peak)
	err = errors.Join(err, end(a.cmd, syscall.SIGKILL))
	a.cmd = nil
	return err
}

// dial connects as soon as the process listens.
func (a *alone) dial(ctx context.Context) (net.Conn, error) {
	for {
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", a.addr)
		if err == nil || !errors.Is(err, syscall.ECONNREFUSED) {
			return conn, err
		}
		select {
		case <-time.After(time.Millisecond / 5):
		case <-ctx.Done():
			return nil, fmt.Errorf("connect: %w", ctx.Err())
		}
	}
}

// first starts the process and gives how long it took until a request was answered, then ends it.
func (a *alone) first(ctx context.Context, request string) (took time.Duration, err error) {
	began := time.Now()
	if err := a.start(ctx); err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, a.kill()) }()
	conn, err := a.dial(ctx)
	if err != nil {
		return 0, err
	}
	defer func() { _ = conn.Close() }()
	if _, err := io.WriteString(conn, request); err != nil {
		return 0, fmt.Errorf("send a request: %w", err)
	}
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return 0, fmt.Errorf("read an answer: %w", err)
	}
	_, err = io.Copy(io.Discard, res.Body)
	took = time.Since(began)
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("the first request was answered with %d", res.StatusCode)
	}
	return took, errors.Join(err, res.Body.Close())
}

// prepareCold measures a process from its exec until it has answered its first pixel, which is stored, on the first connection that it makes to Postgres. The reference is the same binary, which
// answers the same bytes and stores nothing.
func prepareCold(ctx context.Context, l *lab) (r rounds, err error) {
	sent, err := l.sentMails(ctx, token.Open)
	if err != nil {
		return r, err
	}
	ours, err := l.newAlone(ctx, "track")
	if err != nil {
		return r, err
	}
	if err := ours.start(ctx); err != nil {
		return r, err
	}
	conn, err := ours.dial(ctx)
	if err != nil {
		return r, err
	}
	_ = conn.Close() // it was only to wait until it listens
	file, err := l.record(ctx, "http://"+ours.addr+sent.targets[0])
	if err := errors.Join(err, ours.kill()); err != nil {
		return r, err
	}
	reference, err := l.newAlone(ctx, "reference", answerEnv+"="+file)
	if err != nil {
		return r, err
	}
	took, later := &limit{name: "first answer", unit: "ms", goal: 100}, &limit{name: "later by", unit: "ms", goal: coldAfter}
	r.limits = []*limit{took, later}
	round := 0
	var first time.Duration
	r.ours = func(ctx context.Context) (float64, error) {
		round++
		first, err = ours.first(ctx, sent.hitOf(round, ours.addr))
		if err != nil {
			return 0, err
		}
		took.values = append(took.values, first.Seconds()*1e3)
		stored, err := l.one(ctx, "SELECT count(*) FROM hit WHERE delivery = $1", sent.deliveries[round])
		if err == nil && stored != 1 {
			err = fmt.Errorf("%d hits are stored of one that was answered", stored)
		}
		return 1 / first.Seconds(), err
	}
	r.reference = func(ctx context.Context) (float64, error) {
		bare, err := reference.first(ctx, sent.hitOf(round, reference.addr))
		if err != nil {
			return 0, err
		}
		later.values = append(later.values, (first-bare).Seconds()*1e3)
		return 1 / bare.Seconds(), nil
	}
	return r, nil
}
