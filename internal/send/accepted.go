package send

import (
	"context"
	"sync"

	"github.com/google/uuid"
	"go.uber.org/zap"

	"github.com/onda-run/onda/internal/delivery"
)

// accepted sends what this process has just taken over HTTP, once it is answered: the program waits for nobody, and no other pod has to start for a mail that
// this one can send. At most one turn a tenant runs at a time; what comes meanwhile is served by one more. Should the process end first, the sweep finds it.
type accepted struct {
	send func(ctx context.Context, tenant, cause string) error
	log  *zap.Logger

	mu      sync.Mutex
	again   map[string]bool // by tenant with a turn under way: whether another follows it
	ended   bool
	running sync.WaitGroup
	ctx     context.Context
	cancel  context.CancelFunc
}

func newAccepted(log *zap.Logger, send func(ctx context.Context, tenant, cause string) error) *accepted {
	ctx, cancel := context.WithCancel(context.Background())
	return &accepted{send: send, log: log, again: map[string]bool{}, ctx: ctx, cancel: cancel}
}

// take has a turn for the tenant begin some time from now.
func (a *accepted) take(tenant string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.ended {
		return
	}
	if _, under := a.again[tenant]; under {
		a.again[tenant] = true
		return
	}
	a.again[tenant] = false
	a.running.Go(func() { a.loop(tenant) })
}

func (a *accepted) loop(tenant string) {
	for {
		if err := a.send(a.ctx, tenant, uuid.NewString()); err != nil {
			a.log.Warn("what was taken waits for the sweep", zap.String("tenant", tenant), zap.String("function", delivery.Function(delivery.Transactional)), zap.Error(err))
		}
		a.mu.Lock()
		if !a.again[tenant] || a.ended {
			delete(a.again, tenant)
			a.mu.Unlock()
			return
		}
		a.again[tenant] = false
		a.mu.Unlock()
	}
}

// close begins no further turn and waits for those under way, as long as ctx allows.
func (a *accepted) close(ctx context.Context) {
	a.mu.Lock()
	a.ended = true
	a.mu.Unlock()
	stop := context.AfterFunc(ctx, a.cancel)
	defer stop()
	a.running.Wait()
	a.cancel()
}
