package mail

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// PoolConfig bounds a pool. Zero values mean the defaults named.
type PoolConfig struct {
	Size         int           // connections at most (4)
	MessageLimit time.Duration // longest time for one message (30 s)
	MaxMessages  int           // messages on one connection (1,000)
	MaxAge       time.Duration // age of a connection (10 min)
	MaxIdle      time.Duration // idle time after which a connection is not trusted any more (20 s)
}

// ErrPoolClosed is what Get answers after Close.
var ErrPoolClosed = errors.New("mail pool is closed")

// Pool keeps connections to one relay. It is lazy: the first Get dials. Safe for concurrent use.
type Pool struct {
	relay  Relay
	config PoolConfig
	slots  chan struct{} // one for each connection that is out

	mu     sync.Mutex
	idle   []*Conn // the last used is last
	closed bool
	done   chan struct{} // closed by Close, for those who wait
}

// NewPool makes a pool; it connects nowhere yet.
func NewPool(relay Relay, config PoolConfig) *Pool {
	if config.Size < 1 {
		config.Size = 4
	}
	if config.MessageLimit <= 0 {
		config.MessageLimit = defaultMessageLimit
	}
	if config.MaxMessages < 1 {
		config.MaxMessages = 1000
	}
	if config.MaxAge <= 0 {
		config.MaxAge = 10 * time.Minute
	}
	if config.MaxIdle <= 0 {
		config.MaxIdle = 20 * time.Second
	}
	return &Pool{relay: relay, config: config, slots: make(chan struct{}, config.Size), done: make(chan struct{})}
}

// Get gives a connection, waiting while all are out. An error matches ErrRelayAway when none could be made, ErrPoolClosed, or
// ctx's. The connection goes back with Put.
func (p *Pool) Get(ctx context.Context) (*Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("get mail connection: %w", err)
	}
	select {
	case p.slots <- struct{}{}:
	case <-p.done:
		return nil, ErrPoolClosed
	case <-ctx.Done():
		return nil, fmt.Errorf("get mail connection: %w", ctx.Err())
	}
	c, stale, err := p.take()
	for _, s := range stale {
		_ = s.Close()
	}
	if err == nil && c == nil {
		if c, err = Dial(ctx, p.relay); err == nil {
			c.SetMessageLimit(p.config.MessageLimit)
		}
	}
	if err != nil {
		<-p.slots
		return nil, err
	}
	return c, nil
}

// take gives the connection used last, if it still serves, and those that do not any more.
func (p *Pool) take() (c *Conn, stale []*Conn, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, nil, ErrPoolClosed
	}
	for len(p.idle) > 0 {
		last := p.idle[len(p.idle)-1]
		p.idle = p.idle[:len(p.idle)-1]
		if !p.worn(last) && time.Since(last.used) < p.config.MaxIdle {
			return last, stale, nil
		}
		stale = append(stale, last)
	}
	return nil, stale, nil
}

func (p *Pool) worn(c *Conn) bool {
	return c.broken || c.opens != nil || c.sent >= p.config.MaxMessages || time.Since(c.opened) >= p.config.MaxAge
}

// Put takes a connection back; one that broke or has served its time is closed.
func (p *Pool) Put(c *Conn) {
	p.mu.Lock()
	keep := !p.closed && !p.worn(c)
	if keep {
		p.idle = append(p.idle, c)
	}
	p.mu.Unlock()
	if !keep {
		_ = c.Close()
	}
	<-p.slots
}

// Send takes a connection, hands one message over, and gives the connection back. A message that was certainly not sent because
// a used connection broke under it (relays close idle ones) is tried once more on another.
func (p *Pool) Send(ctx context.Context, env Envelope, body []byte) Result {
	l := p.Line()
	defer l.Rest()
	return l.Send(ctx, &Outgoing{Envelope: env, Content: body}, nil)
}

// Line hands one message after another over, on a connection that it keeps while it knows of a next. It serves one goroutine at a time.
type Line struct {
	pool *Pool
	conn *Conn
}

// Line gives a line, which has no connection yet.
func (p *Pool) Line() *Line { return &Line{pool: p} }

// Send hands a message over as Pool.Send does. next, unless nil, is the one that Send is called with after this one: its transaction may be opened on the way, so Rest must
// come before any other.
func (l *Line) Send(ctx context.Context, m, next *Outgoing) Result {
	var res Result
	for range 2 {
		if l.conn == nil {
			c, err := l.pool.Get(ctx)
			if err != nil {
				return Result{State: NotTried, RelayAway: errors.Is(err, ErrRelayAway), Err: err}
			}
			l.conn = c
		}
		fresh := l.conn.sent == 0
		follows := next
		if l.pool.lasts(l.conn) {
			follows = nil
		}
		res = l.conn.SendThen(ctx, m, follows)
		if follows == nil || !l.conn.Usable() {
			l.Rest()
		}
		if res.State != NotTried || fresh {
			break
		}
	}
	return res
}

// Rest gives the connection back. One on which a transaction was opened for a message that never came is ended.
func (l *Line) Rest() {
	if l.conn == nil {
		return
	}
	l.pool.Put(l.conn)
	l.conn = nil
}

// lasts tells whether the next message is the last that a connection serves.
func (p *Pool) lasts(c *Conn) bool {
	return c.sent+1 >= p.config.MaxMessages || time.Since(c.opened) >= p.config.MaxAge
}

// Close closes the idle connections, lets nobody have another, and waits until those that are out came back or ctx ends.
func (p *Pool) Close(ctx context.Context) error {
	p.mu.Lock()
	idle := p.idle
	p.idle = nil
	if !p.closed {
		p.closed = true
		close(p.done)
	}
	p.mu.Unlock()
	for _, c := range idle {
		_ = c.Close()
	}
	for n := range cap(p.slots) {
		select {
		case p.slots <- struct{}{}:
		case <-ctx.Done():
			for range n {
				<-p.slots
			}
			return fmt.Errorf("close mail pool: %d connections are still in use: %w", cap(p.slots)-n, ctx.Err())
		}
	}
	for range cap(p.slots) {
		<-p.slots
	}
	return nil
}
