package mail

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
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

// awayFor is how long a relay to which no connection could be made is passed over, while there are others.
const awayFor = 10 * time.Second

// Pool keeps connections to a relay, or to several by their weights; while one is away the others take its part. It is lazy: the first Get dials. Safe for concurrent use.
type Pool struct {
	config PoolConfig
	slots  chan struct{} // one for each connection that is out

	mu     sync.Mutex
	relays []*destination
	closed bool
	done   chan struct{} // closed by Close, for those who wait
}

// destination is a relay of a pool.
type destination struct {
	Relay
	idle  []*Conn // the last used is last
	until time.Time
	turn  int // by how much it is due: see choose
}

// NewPool makes a pool of at least one relay; it connects nowhere yet.
func NewPool(relays []Relay, config PoolConfig) *Pool {
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
	p := &Pool{config: config, slots: make(chan struct{}, config.Size), done: make(chan struct{})}
	for _, r := range relays {
		p.relays = append(p.relays, &destination{Relay: r})
	}
	return p
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
	c, err := p.connect(ctx)
	if err != nil {
		<-p.slots
		return nil, err
	}
	return c, nil
}

// connect takes a connection, or makes one, to the relay whose turn it is; to another where that one is away.
func (p *Pool) connect(ctx context.Context) (*Conn, error) {
	var errs []error
	tried := map[*destination]bool{}
	for {
		d, c, stale, err := p.take(tried)
		for _, s := range stale {
			_ = s.Close()
		}
		switch {
		case err != nil:
			return nil, err
		case d == nil:
			return nil, errors.Join(errs...)
		case c != nil:
			return c, nil
		}
		if c, err = Dial(ctx, d.Relay); err == nil {
			c.SetMessageLimit(p.config.MessageLimit)
			c.to = d
			p.mu.Lock()
			d.until = time.Time{}
			p.mu.Unlock()
			return c, nil
		}
		errs, tried[d] = append(errs, err), true
		if ctx.Err() == nil { // else it had no time
			p.passOver(d)
		}
	}
}

func (p *Pool) passOver(d *destination) {
	p.mu.Lock()
	defer p.mu.Unlock()
	d.until = time.Now().Add(awayFor)
}

// take gives the relay whose turn it is, nil when all were tried, and its connection used last, if one still serves; and those that do not any more.
func (p *Pool) take(tried map[*destination]bool) (d *destination, c *Conn, stale []*Conn, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, nil, nil, ErrPoolClosed
	}
	if d = p.choose(tried); d == nil {
		return nil, nil, nil, nil
	}
	for len(d.idle) > 0 {
		last := d.idle[len(d.idle)-1]
		d.idle = d.idle[:len(d.idle)-1]
		if !p.worn(last) && time.Since(last.used) < p.config.MaxIdle {
			return d, last, stale, nil
		}
		stale = append(stale, last)
	}
	return d, nil, stale, nil
}

// choose picks among relays by weighted turns: each is due by its weight more at each turn, and the one that is picked by all weights less. Those that are away come after
// those that are not, standbys after all others.
func (p *Pool) choose(tried map[*destination]bool) *destination {
	now := time.Now()
	for _, fits := range []func(*destination) bool{
		func(d *destination) bool { return d.Weight > 0 && !now.Before(d.until) },
		func(d *destination) bool { return d.Weight == 0 && !now.Before(d.until) },
		func(*destination) bool { return true },
	} {
		var best *destination
		sum := 0
		for _, d := range p.relays {
			if tried[d] || !fits(d) {
				continue
			}
			weight := max(d.Weight, 1)
			sum += weight
			if d.turn += weight; best == nil || d.turn > best.turn {
				best = d
			}
		}
		if best != nil {
			best.turn -= sum
			return best
		}
	}
	return nil
}

// Reach finds out whether any relay takes connections, at most until ctx ends; those that do not are passed over for a while.
func (p *Pool) Reach(ctx context.Context) error {
	failed := make(chan error, len(p.relays))
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for _, d := range p.relays {
		go func() {
			conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", d.Addr())
			if err == nil {
				err = conn.Close()
			} else if !errors.Is(ctx.Err(), context.Canceled) { // another answered first
				p.passOver(d)
				err = fmt.Errorf("%w: %s", ErrRelayAway, d.Relay)
			}
			failed <- err
		}()
	}
	var errs []error
	for range p.relays {
		err := <-failed
		if err == nil {
			return nil
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (p *Pool) worn(c *Conn) bool {
	return c.broken || c.opens != nil || p.served(c, 0)
}

// served tells whether a connection has served its time once it has taken some more messages.
func (p *Pool) served(c *Conn, more int) bool {
	return c.sent+more >= cmp.Or(c.to.MaxMessages, p.config.MaxMessages) || time.Since(c.opened) >= cmp.Or(c.to.MaxAge, p.config.MaxAge)
}

// Put takes a connection back; one that broke or has served its time is closed.
func (p *Pool) Put(c *Conn) {
	p.mu.Lock()
	keep := !p.closed && !p.worn(c)
	for _, d := range p.relays {
		keep = keep && len(d.idle) < p.config.Size
	}
	if keep {
		c.to.idle = append(c.to.idle, c)
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

// Relay tells which relay the next message goes to, unless its connection breaks first; it makes one where there is none. known is false when none can be made, which Send
// tells more of.
func (l *Line) Relay(ctx context.Context) (r Relay, known bool) {
	if l.conn == nil {
		c, err := l.pool.Get(ctx)
		if err != nil {
			return Relay{}, false
		}
		l.conn = c
	}
	return l.conn.to.Relay, true
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
	return p.served(c, 1)
}

// Close closes the idle connections, lets nobody have another, and waits until those that are out came back or ctx ends.
func (p *Pool) Close(ctx context.Context) error {
	p.mu.Lock()
	var idle []*Conn
	for _, d := range p.relays {
		idle = append(idle, d.idle...)
		d.idle = nil
	}
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
