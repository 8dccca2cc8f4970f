package send

import (
	"slices"
	"sync"
	"time"

	"github.com/onda-run/onda/internal/provider"
)

// place is where a tenant's marketing mail goes, and how many mails may be on the way to there at once (pace.domains in its Settings); most is 0 where nothing limits that.
type place struct {
	tenant, receiver string
	most             int
}

// placeOf is where a mail goes. Transactional mail is limited by nothing.
func (h *holder) placeOf(address string) place {
	if h.email.Topic == "" || len(h.email.Settings.Pace.Domains) == 0 {
		return place{}
	}
	receiver, pace := h.email.Settings.Pace.Of(provider.OfAddress(address))
	if pace.Connections == 0 {
		return place{}
	}
	return place{h.tenant, receiver, pace.Connections}
}

// busy counts the mails that are with a lane's connections, of those places where their number is limited. The zero value is ready.
type busy struct {
	mu    sync.Mutex
	mails map[place]int
	freed chan struct{} // closed when one leaves; nil while nobody waits for it
}

// enter gives the number of the mail in a queue whose turn it is: the first of those that may be on the way, which is counted from now on, until leave. What comes before it
// waits until another leaves, which freed tells. n is the length of the queue where none may.
func (b *busy) enter(queue []job) (n int, freed <-chan struct{}) {
	if len(queue) == 0 || queue[0].place.most == 0 {
		return 0, nil
	}
	if n = slices.IndexFunc(queue, func(j job) bool { return j.entered }); n >= 0 { // no connection had room for it yet
		return n, nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for n = range queue {
		j := &queue[n]
		if j.place.most == 0 || !j.at.IsZero() && time.Until(j.at) > 0 { // counted when its time has come
			return n, b.wait(n)
		}
		if b.mails[j.place] < j.place.most {
			if b.mails == nil {
				b.mails = map[place]int{}
			}
			b.mails[j.place]++
			j.entered = true
			return n, nil
		}
	}
	return len(queue), b.wait(len(queue))
}

// wait is what tells that a mail left, for those that are passed over.
func (b *busy) wait(passed int) <-chan struct{} {
	if passed == 0 {
		return nil
	}
	if b.freed == nil {
		b.freed = make(chan struct{})
	}
	return b.freed
}

// leave ends what enter counted.
func (b *busy) leave(j job) {
	if !j.entered {
		return
	}
	p := j.place
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.mails[p]--; b.mails[p] == 0 {
		delete(b.mails, p)
	}
	if b.freed != nil {
		close(b.freed)
		b.freed = nil
	}
}
