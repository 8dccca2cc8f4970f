package localbroker

import (
	"net/http"
	"net/url"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2"
	"github.com/cloudevents/sdk-go/v2/types"
	"go.uber.org/zap"
)

// dispatch is one event on its way to one subscriber.
type dispatch struct {
	broker    *Broker
	sub       *subscription
	route     route
	event     cloudevents.Event // as the ingress stamped it
	header    http.Header
	fault     error         // the filter panicked: every attempt fails
	delay     time.Duration // before the first attempt
	overtaken chan struct{} // closed once a later event was tried; nil when this one is not held
}

// run delivers the event, and counts what became of it.
func (d *dispatch) run() {
	defer d.broker.finish()
	if !d.hold() {
		d.lose()
		return
	}
	event, ttl := withoutTTL(d.event)
	header := d.header
	header.Set("Prefer", "reply")
	if d.overtaken == nil {
		defer d.broker.overtake(d.sub) // also when it failed: that is as much as it ever will overtake
	}
	a, ok := d.try(d.route.to, event, header)
	switch {
	case !ok:
		d.lose()
	case !a.delivered():
		d.bury(d.route.to, a)
	case a.reply != nil && a.status != http.StatusAccepted: // by the data plane's specification a 202 has no reply
		d.reply(*a.reply, ttl)
	default:
		d.count(func(c *TriggerCounts) { c.Delivered++ })
	}
}

// hold waits for what Chaos asks for; false when the broker ended meanwhile.
func (d *dispatch) hold() bool {
	if d.delay > 0 && !d.wait(d.delay) {
		return false
	}
	if d.overtaken == nil {
		return true
	}
	select {
	case <-d.overtaken:
		return true
	case <-d.broker.cfg.Clock.After(holdAtMost):
		return true
	case <-d.broker.ctx.Done():
		return false
	}
}

func (d *dispatch) wait(t time.Duration) bool {
	select {
	case <-d.broker.cfg.Clock.After(t):
		return d.broker.ctx.Err() == nil
	case <-d.broker.ctx.Done():
		return false
	}
}

// try sends until an answer is final; false when the broker ended before.
func (d *dispatch) try(to *url.URL, e cloudevents.Event, header http.Header) (answer, bool) {
	how := d.route.delivery
	for n := 0; ; n++ {
		a, ok := d.once(to, e, header)
		if !ok {
			return a, false
		}
		if a.delivered() || n >= how.retries || !retriable(a.status) {
			return a, true
		}
		d.broker.cfg.Log.Debug("will try again", zap.String("trigger", d.route.Name), zap.String("id", e.ID()), zap.Int("attempt", n+1), zap.Error(a.failure()))
		if !d.wait(how.backoff(n)) {
			return a, false
		}
		d.count(func(c *TriggerCounts) { c.Retried++ })
	}
}

// once makes one attempt, in a slot of the trigger.
func (d *dispatch) once(to *url.URL, e cloudevents.Event, header http.Header) (answer, bool) {
	select {
	case d.sub.slots <- struct{}{}:
	case <-d.broker.ctx.Done():
		return answer{}, false
	}
	defer func() { <-d.sub.slots }()
	if d.fault != nil && to == d.route.to {
		return answer{err: d.fault}, true
	}
	a := send(d.broker.ctx, d.broker.cfg.Client, to, e, header, d.route.delivery)
	return a, a.delivered() || d.broker.ctx.Err() == nil
}

// reply puts the subscriber's answer into the broker, one hop further. When the broker refuses it, the event that was answered is dead-lettered.
func (d *dispatch) reply(e cloudevents.Event, ttl int32) {
	e.SetExtension(ttlAttribute, ttl)
	err := e.Validate()
	if err == nil {
		err = d.broker.accept(d.route.Broker, e, d.header)
	}
	if err != nil {
		d.bury(d.route.to, answer{status: http.StatusBadRequest, body: []byte("reply: " + err.Error()), err: err})
		return
	}
	d.count(func(c *TriggerCounts) { c.Delivered++; c.Replied++ })
}

// bury hands what could not be delivered to the dead letter sink, with the patience of the trigger.
func (d *dispatch) bury(failedAt *url.URL, a answer) {
	log := d.broker.cfg.Log.With(zap.String("trigger", d.route.Name), zap.String("type", d.event.Type()), zap.String("id", d.event.ID()))
	log.Warn("could not be delivered", zap.Error(a.failure()))
	if d.route.deadLetter == nil {
		d.lose()
		return
	}
	b, ok := d.try(d.route.deadLetter, deadLetter(d.event, failedAt, a), d.header)
	if !ok || !b.delivered() {
		log.Error("the dead letter sink did not take it either", zap.Error(b.failure()))
		d.lose()
		return
	}
	d.count(func(c *TriggerCounts) { c.DeadLettered++ })
}

func (d *dispatch) lose() { d.count(func(c *TriggerCounts) { c.Lost++ }) }

func (d *dispatch) count(change func(*TriggerCounts)) { d.broker.count(d.sub, change) }

// withoutTTL takes the count of hops off, which subscribers do not see.
func withoutTTL(e cloudevents.Event) (cloudevents.Event, int32) {
	ttl, err := types.ToInteger(e.Extensions()[ttlAttribute])
	if err != nil {
		ttl = firstTTL
	}
	e = e.Clone()
	e.SetExtension(ttlAttribute, nil)
	return e, ttl
}
