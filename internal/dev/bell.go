package dev

import (
	"context"
	"sync"
)

// bell wakes everybody who waits for something to change.
type bell struct {
	mu   sync.Mutex
	wait chan struct{}
}

// listen gives a channel that is closed at the next ring. Take it before looking at what may change.
func (b *bell) listen() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.wait == nil {
		b.wait = make(chan struct{})
	}
	return b.wait
}

func (b *bell) ring() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.wait != nil {
		close(b.wait)
		b.wait = nil
	}
}

// until returns once holds does, which is asked at each ring, or with ctx's error.
func (b *bell) until(ctx context.Context, holds func() bool) error {
	for {
		rung := b.listen()
		if holds() {
			return nil
		}
		select {
		case <-rung:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
