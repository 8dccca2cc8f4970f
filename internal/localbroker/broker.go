package localbroker

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2"
	"github.com/cloudevents/sdk-go/v2/binding"
	cehttp "github.com/cloudevents/sdk-go/v2/protocol/http"
	"github.com/cloudevents/sdk-go/v2/types"
	"go.uber.org/zap"
)

// Config is what a Broker needs.
type Config struct {
	// Resolve tells the URLs of subscribers and dead letter sinks.
	Resolve Resolver
	// Client posts; one that follows no redirects when nil.
	Client *http.Client
	// Clock is the machine's when nil.
	Clock Clock
	// Queue is how many deliveries are held at most; beyond it publishers are answered 503. 10,000 when 0.
	Queue int
	// Parallel is how many requests one trigger has out at a time; 64 when 0.
	Parallel int
	// OnEvent, when set, sees each event that is accepted, as it came, before anybody else does. It must be quick, and leave the broker alone.
	OnEvent func(cloudevents.Event)
	// Log tells of failed deliveries. None when nil.
	Log *zap.Logger
}

// Broker takes events and delivers them by its routes. All its methods may be used at once.
type Broker struct {
	cfg    Config
	ctx    context.Context
	cancel context.CancelFunc

	mu       sync.Mutex
	routes   *Routes
	triggers map[string]*subscription // by name
	chaos    Chaos
	held     int           // deliveries that are not finished
	idle     chan struct{} // closed once none is; nil when nobody waits
	accepted int64
	refused  int64
	closed   bool
}

// subscription is a trigger at work. It outlives a reload of the routes, so that its counts go on.
type subscription struct {
	name   string
	slots  chan struct{} // one for each request that is out
	dice   *dice
	held   []chan struct{} // reordered deliveries that wait to be overtaken
	counts TriggerCounts
}

// route is a trigger with its URLs, as it was when an event was accepted.
type route struct {
	*Trigger
	to, deadLetter *url.URL
}

// New makes a broker. It takes the routes over and closes them.
func New(routes *Routes, cfg Config) (*Broker, error) {
	if cfg.Client == nil {
		cfg.Client = &http.Client{
			Transport:     http.DefaultTransport.(*http.Transport).Clone(),
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		}
	}
	if cfg.Clock == nil {
		cfg.Clock = RealClock{}
	}
	if cfg.Queue == 0 {
		cfg.Queue = 10_000
	}
	if cfg.Parallel == 0 {
		cfg.Parallel = 64
	}
	if cfg.Log == nil {
		cfg.Log = zap.NewNop()
	}
	ctx, cancel := context.WithCancel(context.Background())
	b := &Broker{cfg: cfg, ctx: ctx, cancel: cancel, routes: &Routes{}, triggers: map[string]*subscription{}}
	if err := b.SetRoutes(routes); err != nil {
		cancel()
		return nil, err
	}
	return b, nil
}

// SetRoutes routes what comes from now on by other routes, and closes the former ones. When a subscriber cannot be resolved, it closes the given ones,
// reports all that is wrong, and nothing changes.
func (b *Broker) SetRoutes(routes *Routes) error {
	var errs []error
	for _, t := range routes.Triggers {
		if _, err := t.Subscriber.resolve(b.cfg.Resolve); err != nil {
			errs = append(errs, fmt.Errorf("%s: Trigger %s: spec.subscriber: %w", t.File, t.Name, err))
		}
		if t.DeadLetter == nil {
			continue
		}
		if _, err := t.DeadLetter.resolve(b.cfg.Resolve); err != nil {
			errs = append(errs, fmt.Errorf("%s: Trigger %s: dead letter sink: %w", t.File, t.Name, err))
		}
	}
	if err := errors.Join(errs...); err != nil {
		routes.Close()
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		routes.Close()
		return errClosed
	}
	b.routes.Close()
	b.routes = routes
	for _, t := range routes.Triggers {
		if b.triggers[t.Name] == nil {
			b.triggers[t.Name] = &subscription{name: t.Name, slots: make(chan struct{}, b.cfg.Parallel), dice: newDice(b.chaos, t.Name)}
		}
	}
	return nil
}

var errClosed = errors.New("the broker has ended")

// SetChaos changes how badly the broker behaves, from the next event on, and starts its sequence anew.
func (b *Broker) SetChaos(c Chaos) error {
	if err := c.Check(); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.chaos = c
	for _, s := range b.triggers {
		s.dice = newDice(c, s.name)
	}
	return nil
}

// Chaos is how badly the broker behaves now.
func (b *Broker) Chaos() Chaos {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.chaos
}

// Wait returns once the broker holds no delivery: each has been made, given up or dropped, or once ctx is done.
func (b *Broker) Wait(ctx context.Context) error {
	for {
		b.mu.Lock()
		if b.held == 0 {
			b.mu.Unlock()
			return nil
		}
		if b.idle == nil {
			b.idle = make(chan struct{})
		}
		idle, n := b.idle, b.held
		b.mu.Unlock()
		select {
		case <-idle:
		case <-ctx.Done():
			return fmt.Errorf("wait for the broker, which held %d deliveries: %w", n, ctx.Err())
		}
	}
}

// Close ends the broker. What it holds is lost.
func (b *Broker) Close() {
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		return
	}
	b.closed = true
	b.mu.Unlock()
	b.cancel()
	_ = b.Wait(context.Background()) // ends soon: every wait and request ends with b.ctx
	b.mu.Lock()
	defer b.mu.Unlock()
	b.routes.Close()
	b.routes = &Routes{}
	b.cfg.Client.CloseIdleConnections()
}

// ServeHTTP is the ingress: a CloudEvent posted to /NAME goes to the broker of that name, and to / where there is only one.
func (b *Broker) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch r.Method {
	case http.MethodPost:
	case http.MethodOptions: // CloudEvents' HTTP webhook handshake
		w.Header().Set("Allow", "POST, OPTIONS")
		w.Header().Set("WebHook-Allowed-Origin", "*")
		w.Header().Set("WebHook-Allowed-Rate", "*")
		return
	default:
		w.Header().Set("Allow", "POST, OPTIONS")
		http.Error(w, "a broker takes CloudEvents by POST", http.StatusMethodNotAllowed)
		return
	}
	name, err := b.name(r.URL.Path)
	if err != nil {
		http.Error(w, err.Error(), http.StatusNotFound)
		return
	}
	e, err := read(w, r)
	if err != nil {
		b.refuse()
		status := http.StatusBadRequest
		if large := (*http.MaxBytesError)(nil); errors.As(err, &large) {
			status = http.StatusRequestEntityTooLarge
		}
		http.Error(w, err.Error(), status)
		return
	}
	if err := b.accept(name, e, passThrough(r.Header)); err != nil {
		b.refuse()
		status := http.StatusServiceUnavailable
		if errors.Is(err, errTTL) {
			status = http.StatusBadRequest
		} else {
			w.Header().Set("Retry-After", "1")
		}
		http.Error(w, err.Error(), status)
		return
	}
	w.WriteHeader(http.StatusAccepted)
}

// Publish takes an event as the ingress does, in one process. With one broker, name may be empty.
func (b *Broker) Publish(name string, e cloudevents.Event) error {
	name, err := b.name("/" + name)
	if err != nil {
		return err
	}
	if err := e.Validate(); err != nil {
		return fmt.Errorf("publish: %w", err)
	}
	return b.accept(name, e, http.Header{})
}

func (b *Broker) name(path string) (string, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	brokers := b.routes.Brokers
	name := strings.Trim(path, "/")
	switch {
	case name == "" && len(brokers) == 1:
		return brokers[0], nil
	case slices.Contains(brokers, name):
		return name, nil
	}
	return "", fmt.Errorf("there is no broker %q; there are: %s", name, strings.Join(brokers, ", "))
}

// read takes a CloudEvent from a request, in binary or structured mode.
func read(w http.ResponseWriter, r *http.Request) (cloudevents.Event, error) {
	r.Body = http.MaxBytesReader(w, r.Body, maxBody)
	message := cehttp.NewMessageFromHttpRequest(r)
	defer func() { _ = message.Finish(nil) }()
	if enc := message.ReadEncoding(); enc != binding.EncodingBinary && enc != binding.EncodingStructured {
		return cloudevents.Event{}, errors.New("this is no CloudEvent in binary or structured mode")
	}
	e, err := binding.ToEvent(r.Context(), message)
	if err != nil {
		return cloudevents.Event{}, fmt.Errorf("broken CloudEvent: %w", err)
	}
	if err := e.Validate(); err != nil {
		return cloudevents.Event{}, fmt.Errorf("broken CloudEvent: %w", err)
	}
	return *e, nil
}

// passThrough are the headers that Knative's broker hands on beside the event.
func passThrough(h http.Header) http.Header {
	out := http.Header{}
	for name, values := range h {
		lower := strings.ToLower(name)
		if lower == "x-request-id" || lower == "traceparent" || lower == "tracestate" ||
			strings.HasPrefix(lower, "knative-") || strings.HasPrefix(lower, "x-b3-") {
			out[name] = values
		}
	}
	return out
}

// Attributes that the ingress adds. The count of hops keeps functions that reply to each other's replies from doing so for ever.
const (
	ttlAttribute     = "knativebrokerttl"
	arrivalAttribute = "knativearrivaltime"
	firstTTL         = 255
)

var (
	errTTL  = errors.New("the event has been replied to 255 times in a row: functions answer each other in a circle")
	errFull = errors.New("the broker holds as many deliveries as it may; publish again later")
)

// stamp sets when the event came and how many more replies may follow it.
func stamp(e cloudevents.Event, now time.Time) (cloudevents.Event, error) {
	ttl := int32(firstTTL)
	if value, ok := e.Extensions()[ttlAttribute]; ok {
		if n, err := types.ToInteger(value); err == nil {
			ttl = max(0, n-1)
		}
	}
	if ttl == 0 {
		return e, errTTL
	}
	e = e.Clone()
	e.SetExtension(arrivalAttribute, types.Timestamp{Time: now.UTC()})
	e.SetExtension(ttlAttribute, ttl)
	return overHTTP(e)
}

// accept puts the event before the triggers of the broker, and starts a delivery to each that it passes. All or nothing: when they would be more than the
// queue has room for, it starts none.
func (b *Broker) accept(broker string, e cloudevents.Event, header http.Header) error {
	given := e
	e, err := stamp(e, b.cfg.Clock.Now())
	if err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock() // also keeps a reload from closing the filters while they are asked
	if b.closed {
		return errClosed
	}
	type job struct {
		route route
		fault error // of the filter
	}
	var jobs []job
	for _, t := range b.routes.Triggers {
		if t.Broker != broker {
			continue
		}
		pass, fault := t.filter.passes(e)
		if !pass && fault == nil {
			continue
		}
		to, err := t.Subscriber.resolve(b.cfg.Resolve)
		if err != nil {
			return fmt.Errorf("trigger %s: spec.subscriber: %w", t.Name, err)
		}
		r := route{Trigger: t, to: to}
		if t.DeadLetter != nil {
			if r.deadLetter, err = t.DeadLetter.resolve(b.cfg.Resolve); err != nil {
				return fmt.Errorf("trigger %s: dead letter sink: %w", t.Name, err)
			}
		}
		jobs = append(jobs, job{route: r, fault: fault})
	}
	if b.held+len(jobs) > b.cfg.Queue {
		return errFull
	}
	b.accepted++
	if b.cfg.OnEvent != nil {
		b.cfg.OnEvent(given.Clone())
	}
	for _, j := range jobs {
		s := b.triggers[j.route.Name]
		s.counts.Accepted++
		f := s.dice.draw()
		if f.drop {
			s.counts.Dropped++
			continue
		}
		times := 1
		if f.repeat {
			times = 2
			s.counts.Repeated++
		}
		if f.delay > 0 {
			s.counts.Delayed++
		}
		if f.reorder {
			s.counts.Reordered++
		}
		for i := range times {
			d := dispatch{broker: b, sub: s, route: j.route, event: e, header: header.Clone(), fault: j.fault, delay: f.delay}
			if f.reorder && i == 0 {
				d.overtaken = make(chan struct{})
				s.held = append(s.held, d.overtaken)
			}
			b.held++
			go d.run()
		}
	}
	return nil
}

func (b *Broker) refuse() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.refused++
}

// finish ends a delivery.
func (b *Broker) finish() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.held--
	if b.held == 0 && b.idle != nil {
		close(b.idle)
		b.idle = nil
	}
}

// count changes the counts of a trigger.
func (b *Broker) count(s *subscription, change func(*TriggerCounts)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	change(&s.counts)
}

// overtake lets go what was held back for a later event to pass.
func (b *Broker) overtake(s *subscription) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, c := range s.held {
		close(c)
	}
	s.held = nil
}

// Counts are what has happened since the broker was made.
type Counts struct {
	// Accepted are the events that were answered 202, replies included; Refused those that were answered otherwise.
	Accepted int64 `json:"accepted"`
	Refused  int64 `json:"refused"`
	// Held are the deliveries that are under way.
	Held int `json:"held"`
	// Triggers is what became of them, by trigger.
	Triggers map[string]TriggerCounts `json:"triggers"`
}

// TriggerCounts are the counts of one trigger. Once nothing is held, Accepted + Repeated = Dropped + Delivered + DeadLettered + Lost.
type TriggerCounts struct {
	// Accepted are the events that passed its filter.
	Accepted int64 `json:"accepted"`
	// Delivered are the deliveries that the subscriber took.
	Delivered int64 `json:"delivered"`
	// Dropped, Repeated, Delayed and Reordered are the work of Chaos.
	Dropped   int64 `json:"dropped"`
	Repeated  int64 `json:"repeated"`
	Delayed   int64 `json:"delayed"`
	Reordered int64 `json:"reordered"`
	// Retried are the attempts after a first one that failed.
	Retried int64 `json:"retried"`
	// Replied are the answers that went back into the broker.
	Replied int64 `json:"replied"`
	// DeadLettered are the deliveries that were given up and taken by the dead letter sink; Lost those that it did not take, or that had none, or that were
	// held when the broker ended.
	DeadLettered int64 `json:"deadLettered"`
	Lost         int64 `json:"lost"`
}

// Counts are what has happened since the broker was made.
func (b *Broker) Counts() Counts {
	b.mu.Lock()
	defer b.mu.Unlock()
	c := Counts{Accepted: b.accepted, Refused: b.refused, Held: b.held, Triggers: map[string]TriggerCounts{}}
	for name, s := range b.triggers {
		c.Triggers[name] = s.counts
	}
	return c
}

// Names are the triggers of these counts, sorted.
func (c Counts) Names() []string { return slices.Sorted(maps.Keys(c.Triggers)) }
