package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// flood asks for the pixels of mails, each of one, so that each answer can be looked for in Postgres.
type flood struct {
	tenant string
	mails  sentMails
	to     string
	rate   float64 // a second, whatever is answered; 0: each connection asks for the next one when it was answered
	conns  int     // at most

	next  atomic.Int64
	began time.Time
	ended time.Duration // when it asked for no more
	hits  []asked       // by mail
}

// asked is what became of one request.
type asked struct {
	came fate
	due  time.Duration // after the beginning
	late time.Duration // how much later it was sent: the asking program has to get to it, too
	took time.Duration // from then on
}

// fate is how a request ended.
type fate uint8

const (
	notAsked fate = iota
	answered
	refused // 503 with Retry-After
	cutOff  // with no answer, or half of one
)

// flooding is how long a request may take at all.
const flooding = 20 * time.Second

// run asks until ctx ends, and lets requests that are out then end.
func (f *flood) run(ctx context.Context) error {
	f.hits, f.began = make([]asked, len(f.mails.targets)), time.Now()
	due := make(chan int)
	var all sync.WaitGroup
	failed := make(chan error, f.conns)
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	client := func() {
		if err := f.client(ctx, due); err != nil {
			failed <- err
			stop()
		}
	}
	if f.rate == 0 {
		for range f.conns {
			all.Go(client)
		}
	} else if err := f.pace(ctx, due, func() { all.Go(client) }); err != nil {
		failed <- err
		stop()
	}
	<-ctx.Done()
	f.ended = time.Since(f.began)
	close(due)
	all.Wait()
	close(failed)
	return <-failed
}

// pace has each mail's pixel be asked for when it is due. more starts a client, up to the most; they begin when all those before are busy.
func (f *flood) pace(ctx context.Context, due chan<- int, more func()) error {
	clients := 0
	for n := range f.hits {
		f.hits[n].due = time.Duration(float64(n) / f.rate * float64(time.Second))
		if wait := f.hits[n].due - time.Since(f.began); wait > 0 {
			select {
			case <-time.After(wait):
			case <-ctx.Done():
				return nil
			}
		}
		select {
		case due <- n:
			continue
		default:
		}
		if clients < f.conns {
			clients++
			more()
		}
		select {
		case due <- n:
		case <-ctx.Done():
			return nil
		}
	}
	return errors.New("there are too few mails for so long a flood")
}

// client asks on one connection, and makes another when that broke.
func (f *flood) client(ctx context.Context, due <-chan int) error {
	dialer := net.Dialer{Timeout: flooding}
	var conn net.Conn
	var in *bufio.Reader
	defer func() {
		if conn != nil {
			_ = conn.Close()
		}
	}()
	for {
		for conn == nil && ctx.Err() == nil {
			var err error
			if conn, err = dialer.DialContext(ctx, "tcp", f.to); err != nil {
				conn = nil
				select {
				case <-time.After(5 * time.Millisecond): // it is about to start again
				case <-ctx.Done():
				}
				continue
			}
			in = bufio.NewReaderSize(conn, 4<<10)
		}
		n, ok := f.take(ctx, due)
		if !ok || conn == nil {
			return nil
		}
		h := &f.hits[n]
		h.late = time.Since(f.began) - h.due
		var err error
		if h.came, err = f.ask(conn, in, n); err != nil {
			return err
		}
		h.took = time.Since(f.began) - h.due - h.late
		if h.came == cutOff {
			_ = conn.Close()
			conn = nil
		}
	}
}

// take gives the next mail to ask for.
func (f *flood) take(ctx context.Context, due <-chan int) (n int, ok bool) {
	if f.rate > 0 {
		select {
		case n, ok = <-due:
			return n, ok
		case <-ctx.Done():
			return 0, false
		}
	}
	n = int(f.next.Add(1)) - 1
	if ctx.Err() != nil || n >= len(f.hits) {
		return 0, false
	}
	f.hits[n].due = time.Since(f.began)
	return n, true
}

// ask asks for a pixel. An answer that is neither the pixel nor a refusal is an error.
func (f *flood) ask(conn net.Conn, in *bufio.Reader, n int) (fate, error) {
	_ = conn.SetDeadline(time.Now().Add(flooding))
	if _, err := io.WriteString(conn, f.mails.hitOf(n, f.to)); err != nil {
		return cutOff, nil //nolint:nilerr // that is what is counted
	}
	res, err := http.ReadResponse(in, nil)
	if err != nil {
		return cutOff, nil //nolint:nilerr // that is what is counted
	}
	defer func() { _ = res.Body.Close() }()
	if _, err := io.Copy(io.Discard, res.Body); err != nil {
		return cutOff, nil //nolint:nilerr // that is what is counted
	}
	switch {
	case res.StatusCode == f.mails.status:
		return answered, nil
	case res.StatusCode == http.StatusServiceUnavailable && res.Header.Get("Retry-After") != "":
		return refused, nil
	}
	return cutOff, fmt.Errorf("a pixel was answered with %s", res.Status)
}

// fates are the requests of one fate in a part of a flood.
type fates struct {
	took    []time.Duration // sorted
	seconds float64         // of the part
}

// those are the requests that were due between two times and ended so.
func (f *flood) those(came fate, from, until time.Duration) fates {
	out := fates{seconds: (until - from).Seconds()}
	for _, h := range f.hits {
		if h.came == came && h.due >= from && h.due < until {
			out.took = append(out.took, h.took)
		}
	}
	slices.Sort(out.took)
	return out
}

// add puts more requests to these, of the same time.
func (t *fates) add(o fates) {
	t.took, t.seconds = append(t.took, o.took...), o.seconds
	slices.Sort(t.took)
}

// lateness is how late at most 99 of a hundred requests were sent, in milliseconds.
func (f *flood) lateness() float64 {
	var all fates
	for _, h := range f.hits {
		if h.came != notAsked {
			all.took = append(all.took, h.late)
		}
	}
	slices.Sort(all.took)
	return all.ms(99)
}

// rate is how many there were a second.
func (t fates) rate() float64 { return float64(len(t.took)) / t.seconds }

// ms is below what so much of a hundred took, in milliseconds; 0 of none.
func (t fates) ms(percent int) float64 {
	if len(t.took) == 0 {
		return 0
	}
	return t.took[(len(t.took)-1)*percent/100].Seconds() * 1e3
}
