package localbroker

import "time"

// Clock tells the time and waits. Retries, held events and PingSources go by it; time limits of requests are always real.
type Clock interface {
	Now() time.Time
	// After gives a channel that receives once d has passed.
	After(d time.Duration) <-chan time.Time
}

// RealClock is the machine's clock.
type RealClock struct{}

// Now implements Clock.
func (RealClock) Now() time.Time { return time.Now() }

// After implements Clock.
func (RealClock) After(d time.Duration) <-chan time.Time { return time.After(d) }

// FastClock waits Factor times shorter than it is asked to, and shows the real time: retries keep their proportions and tests do not wait for them.
type FastClock struct {
	Factor int
}

// Now implements Clock.
func (FastClock) Now() time.Time { return time.Now() }

// After implements Clock.
func (c FastClock) After(d time.Duration) <-chan time.Time {
	return time.After(d / time.Duration(max(1, c.Factor)))
}
