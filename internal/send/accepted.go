package send

import (
	"context"
	"sync"

	"github.com/google/uuid"
	"go.uber.org/zap"

	"github.com/onda-run/onda/internal/delivery"
)

// turnsAtOnce is how many turns of one tenant a process has at once for what it has just taken: a mail whose relay is slow does not keep those after it.
const turnsAtOnce = 4

// accepted sends what this process has just taken over HTTP, once it is answered: the program waits for nobody, and no other pod has to start for a mail that
// this one can send. A few turns a tenant run at once; what comes meanwhile is served by one more. What a turn leaves to be told is told beside the turns that follow. Should
// the process end first, the sweep finds it all.
type accepted struct {
	turn func(ctx context.Context, tenant, cause string) error // sends
	tell func(ctx context.Context, tenant, cause string) error // publishes, and sets the wake-up anew
	log  *zap.Logger

	mu      sync.Mutex
	tenants map[string]*underway
	ended   bool
	running sync.WaitGroup
	ctx     context.Context
	cancel  context.CancelFunc
}

// underway is what a tenant has under way.
type underway struct {
	turns         int
	again         bool // another turn follows
	telling, left bool // it is being told; there is more to tell
}

func newAccepted(log *zap.Logger, turn, tell func(ctx context.Context, tenant, cause string) error) *accepted {
	ctx, cancel := context.WithCancel(context.Background())
	return &accepted{turn: turn, tell: tell, log: log, tenants: map[string]*underway{}, ctx: ctx, cancel: cancel}
}

// take has a turn for the tenant begin some time from now.
func (a *accepted) take(tenant string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.ended {
		return
	}
	u := a.tenants[tenant]
	if u == nil {
		u = &underway{}
		a.tenants[tenant] = u
	}
	if u.turns == turnsAtOnce {
		u.again = true
		return
	}
	u.turns++
	a.running.Go(func() { a.loop(tenant, u) })
}

func (a *accepted) loop(tenant string, u *underway) {
	for more := true; more; {
		a.do(a.turn, tenant)
		a.mu.Lock()
		if more = u.again && !a.ended; more {
			u.again = false
		} else {
			u.turns--
		}
		if u.left = true; !u.telling {
			u.telling = true
			a.running.Go(func() { a.rest(tenant, u) })
		}
		a.mu.Unlock()
	}
}

// rest tells what turns left, one after the other.
func (a *accepted) rest(tenant string, u *underway) {
	for {
		a.mu.Lock()
		if !u.left {
			if u.telling = false; u.turns == 0 {
				delete(a.tenants, tenant)
			}
			a.mu.Unlock()
			return
		}
		u.left = false
		a.mu.Unlock()
		a.do(a.tell, tenant)
	}
}

func (a *accepted) do(what func(ctx context.Context, tenant, cause string) error, tenant string) {
	if err := what(a.ctx, tenant, uuid.NewString()); err != nil {
		a.log.Warn("what was taken waits for the sweep", zap.String("tenant", tenant), zap.String("function", delivery.Function(delivery.Transactional)), zap.Error(err))
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
