package send

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/onda-run/onda/internal/delivery"
	"github.com/onda-run/onda/internal/mail"
	"github.com/onda-run/onda/internal/postgres"
)

// stockFor is for how long a process takes mails' time at a relay at once, so that not each of them asks Postgres.
const stockFor = 250 * time.Millisecond

// relayPace keeps to the rates of relays (rate=N in ONDA_SMTP_URL), which all processes and tenants of a cell share. Nil when no relay has one.
type relayPace struct {
	db *postgres.DB
	// ahead is how far ahead the time at a relay may be taken. Transactional mail takes it before a blast does, which has to wait for its own then.
	ahead time.Duration

	stocks map[string]*stock // by relay
}

// stock is the time of some mails: left of them, the next at next, each gap after the one before.
type stock struct {
	mu   sync.Mutex
	left int
	next time.Time
}

func newRelayPace(db *postgres.DB, lane int, relays []mail.Relay) *relayPace {
	p := &relayPace{db: db, ahead: stockFor, stocks: map[string]*stock{}}
	if lane == delivery.Transactional {
		p.ahead = time.Minute
	}
	for _, r := range relays {
		if r.Rate > 0 {
			p.stocks[account(r)] = &stock{}
		}
	}
	if len(p.stocks) == 0 {
		return nil
	}
	return p
}

// atRelays is how long the mails under marks may take to go out at the pace of a relay: more of them would only wait there, past turns and leases.
const atRelays = 4 * time.Second

// mostAtRelays is how many recipients of a batch may be marked and not settled, by the fastest of the relays.
func mostAtRelays(relays []mail.Relay) int {
	most := 2 // the mark goes on by half of it
	for _, r := range relays {
		if r.Rate == 0 {
			return delivery.MaxWindow
		}
		most = max(most, int(r.Rate*atRelays.Seconds()))
	}
	return min(most, delivery.MaxWindow)
}

// account is what a relay counts mails by: who hands them over, where.
func account(r mail.Relay) string {
	if r.User == "" {
		return r.Addr()
	}
	return r.User + "@" + r.Addr()
}

// errEnded says that the process ends before a mail's time has come.
var errEnded = errors.New("the process ended")

// wait waits until a mail may go out over the relay of the line's connection, which it makes. What goes wrong with the connection is left to Send.
func (p *relayPace) wait(line *mail.Line, draining <-chan struct{}, limit time.Duration) error {
	if p == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	relay, known := line.Relay(ctx)
	cancel()
	if !known {
		return nil
	}
	s := p.stocks[account(relay)]
	if s == nil {
		return nil
	}
	for {
		at, taken, err := p.take(s, relay)
		if err != nil {
			return err
		}
		select {
		case <-time.After(time.Until(at)):
		case <-draining:
			return errEnded
		}
		if taken {
			return nil
		}
	}
}

// take gives when a mail may go out; or, if that is too far ahead to be taken, when to ask again.
func (p *relayPace) take(s *stock, relay mail.Relay) (at time.Time, taken bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	gap := time.Duration(float64(time.Second) / relay.Rate)
	if now := time.Now(); s.left > 0 && s.next.Before(now.Add(-stockFor)) {
		s.left = 0 // nobody wanted it in time: to make up for it now would be a burst
	}
	if s.left == 0 {
		n := max(1, int(relay.Rate*stockFor.Seconds()))
		ctx, cancel := context.WithTimeout(context.Background(), recordLimit)
		defer cancel()
		wait, taken, err := p.db.RelaySlots(ctx, account(relay), n, relay.Rate, p.ahead)
		if err != nil {
			return at, false, fmt.Errorf("keep to the rate of %s: %w", relay, err)
		}
		if !taken {
			return time.Now().Add(max(wait-p.ahead, 10*time.Millisecond)), false, nil
		}
		s.left, s.next = n, time.Now().Add(wait)
	}
	at = s.next
	s.left, s.next = s.left-1, s.next.Add(gap)
	return at, true, nil
}
