package fn

import (
	"context"
	"runtime/debug"
	"sync"

	"go.uber.org/zap"
)

// afterRunner runs a Handler's After in the background, never twice at once. Whoever asks while it runs is served by one more run.
type afterRunner struct {
	run func(ctx context.Context)
	log *zap.Logger

	mu      sync.Mutex
	running chan struct{} // closed when the present runner ends; nil when there is none
	cancel  context.CancelFunc
	again   bool
	ended   bool
}

// ask sees to it that After runs, from its beginning, some time after now.
func (a *afterRunner) ask() {
	if a.run == nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.ended {
		return
	}
	if a.running != nil {
		a.again = true
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	a.running, a.cancel = make(chan struct{}), cancel
	go a.loop(ctx)
}

func (a *afterRunner) loop(ctx context.Context) {
	for {
		a.once(ctx)
		a.mu.Lock()
		if !a.again || a.ended {
			close(a.running)
			a.running = nil
			a.cancel()
			a.mu.Unlock()
			return
		}
		a.again = false
		a.mu.Unlock()
	}
}

func (a *afterRunner) once(ctx context.Context) {
	defer func() {
		if v := recover(); v != nil {
			a.log.Error("after a request", zap.Any("panic", v), zap.ByteString("stack", debug.Stack()))
		}
	}()
	a.run(ctx)
}

// finish waits for a run that is going on, runs After once more and lets it run no more. When ctx ends first, the run is cancelled.
func (a *afterRunner) finish(ctx context.Context) error {
	if a.run == nil {
		return nil
	}
	a.mu.Lock()
	a.ended = true
	running, cancel := a.running, a.cancel
	a.mu.Unlock()
	if running != nil {
		select {
		case <-running:
		case <-ctx.Done():
			cancel()
			<-running
			return ctx.Err()
		}
	}
	a.once(ctx)
	return nil
}
