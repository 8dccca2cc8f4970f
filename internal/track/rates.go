package track

import (
	"errors"
	"hash/maphash"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

const (
	// eventsAtOnce is how many seconds' worth of events come from an origin at once, as when many at one place open a mail.
	eventsAtOnce = 10
	// maxOrigins bounds the origins that are known of each generation: some 150 bytes each.
	maxOrigins = 10_000
)

var errOften = errors.New("too many events from one origin with a public key")

// rates bounds what comes from each origin to each tenant, in this process: whoever reads the source of a page has its key. Origins are known by a hash that is of this process alone. When a
// generation of them is full it becomes the old one, of which those are taken over that come again: so what is forgotten is of who has not come for long, and may come as at first.
type rates struct {
	perSecond int
	now       func() time.Time
	seed      maphash.Seed

	mu         sync.Mutex
	young, old map[uint64]*rate.Limiter
}

func newRates(perSecond int, now func() time.Time) *rates {
	return &rates{perSecond: perSecond, now: now, seed: maphash.MakeSeed(), young: map[uint64]*rate.Limiter{}}
}

// take counts n events, of which no more count than may come at once; else it gives after what time there will be room for them.
func (rs *rates) take(tenant, origin string, n int) (wait time.Duration) {
	now, most := rs.now(), rs.perSecond*eventsAtOnce
	r := rs.of(tenant, origin).ReserveN(now, min(n, most))
	if wait = r.DelayFrom(now); wait > 0 {
		r.CancelAt(now)
	}
	return wait
}

func (rs *rates) of(tenant, origin string) *rate.Limiter {
	key := maphash.Comparable(rs.seed, [2]string{tenant, origin})
	rs.mu.Lock()
	defer rs.mu.Unlock()
	l := rs.young[key]
	if l != nil {
		return l
	}
	if l = rs.old[key]; l == nil {
		l = rate.NewLimiter(rate.Limit(rs.perSecond), rs.perSecond*eventsAtOnce)
	}
	if len(rs.young) >= maxOrigins {
		rs.young, rs.old = make(map[uint64]*rate.Limiter), rs.young
	}
	rs.young[key] = l
	return l
}
