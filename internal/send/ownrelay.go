package send

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/onda-run/onda/internal/mail"
	"github.com/onda-run/onda/internal/postgres"
)

// errNoRelay says that a tenant's mails wait, since its own relay is not known. They go through no other.
var errNoRelay = errors.New("the tenant's mails wait")

// errOtherRelay ends a turn that began with another relay than the tenant has.
type errOtherRelay struct{ secret string }

func (*errOtherRelay) Error() string { return "the tenant has another relay" }

// keptFor is how long the connections to a tenant's own relay are kept that nobody uses.
const keptFor = 5 * time.Minute

// ownRelays are those of tenants that have their own (spec.smtpSecret). Each has lanes to itself, with connections, room for batches and a recorder, so that one that is slow
// or away holds nobody else up. A Secret is read at the beginning of each turn, so what is rotated counts from the next.
type ownRelays struct {
	dir  string
	make func(secret string, relays []mail.Relay) [2]*lane
	log  *zap.Logger

	mu      sync.Mutex
	secrets map[string]string    // of tenants, as they last were; what counts is what the transaction that leases a batch reads
	open    map[string]*ownRelay // by Secret
	closing sync.WaitGroup
	ctx     context.Context
	cancel  context.CancelFunc
}

// ownRelay is what a Secret says, and the lanes to there.
type ownRelay struct {
	text  string
	lanes [2]*lane
	turns int // that use it
	used  time.Time
	over  bool // the Secret says something else by now, or nobody used it for long
}

func newOwnRelays(dir string, log *zap.Logger, lanes func(secret string, relays []mail.Relay) [2]*lane) *ownRelays {
	o := &ownRelays{dir: dir, make: lanes, log: log, secrets: map[string]string{}, open: map[string]*ownRelay{}}
	o.ctx, o.cancel = context.WithCancel(context.Background())
	return o
}

// read gives what a Secret says, and the relays that it names. Its errors match errNoRelay, and show no password.
func (o *ownRelays) read(secret string) (text string, relays []mail.Relay, err error) {
	if o.dir == "" {
		return "", nil, fmt.Errorf("%w: its file names the Secret %s (spec.smtpSecret), and ONDA_SECRETS is not set: mount it, see config/components/relays", errNoRelay, secret)
	}
	name := path.Join(secret, "url")
	b, err := fs.ReadFile(os.DirFS(o.dir), name)
	if err != nil {
		return "", nil, fmt.Errorf("%w: the Secret %s (spec.smtpSecret of its file) is not mounted, or has no key url: %w", errNoRelay, secret, err)
	}
	if relays, err = mail.ParseURLs(string(b)); err != nil {
		return "", nil, fmt.Errorf("%w: the Secret %s (spec.smtpSecret of its file), key url: %w", errNoRelay, secret, err)
	}
	return string(b), relays, nil
}

// take gives the lanes to the relay that a Secret names now; release follows, when the turn is over.
func (o *ownRelays) take(secret string) (r *ownRelay, err error) {
	text, relays, err := o.read(secret)
	if err != nil {
		return nil, err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.ctx.Err() != nil {
		return nil, errEnded
	}
	for name, r := range o.open {
		if name == secret && r.text != text || name != secret && r.turns == 0 && time.Since(r.used) > keptFor {
			delete(o.open, name)
			o.end(r)
		}
	}
	if r = o.open[secret]; r == nil {
		r = &ownRelay{text: text, lanes: o.make(secret, relays)}
		o.open[secret] = r
	}
	r.turns++
	return r, nil
}

func (o *ownRelays) release(r *ownRelay) {
	o.mu.Lock()
	defer o.mu.Unlock()
	r.turns, r.used = r.turns-1, time.Now()
	if r.over && r.turns == 0 {
		o.shut(r)
	}
}

// end closes lanes as soon as no turn uses them. Under the lock.
func (o *ownRelays) end(r *ownRelay) {
	if r.over = true; r.turns == 0 {
		o.shut(r)
	}
}

// shut closes lanes, once all that they have in hand is recorded.
func (o *ownRelays) shut(r *ownRelay) {
	for _, l := range r.lanes {
		if l != nil {
			o.closing.Go(func() {
				if err := l.close(o.ctx); err != nil && o.ctx.Err() == nil {
					o.log.Warn("a tenant's relay is left", zap.Error(err))
				}
			})
		}
	}
}

// close takes no further turn and closes all lanes, as long as ctx allows.
func (o *ownRelays) close(ctx context.Context) error {
	o.mu.Lock()
	for name, r := range o.open {
		delete(o.open, name)
		o.shut(r) // whatever turns have not ended in time: as with the cell's, what is in hand is recorded
	}
	o.mu.Unlock()
	stop := context.AfterFunc(ctx, o.cancel)
	defer stop()
	o.closing.Wait()
	o.cancel()
	return ctx.Err()
}

// secretOf is the Secret that a tenant had when it was last looked at.
func (o *ownRelays) secretOf(tenant string) string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.secrets[tenant]
}

func (o *ownRelays) learn(tenant, secret string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if secret == "" {
		delete(o.secrets, tenant)
	} else {
		o.secrets[tenant] = secret
	}
}

// changes is how often a tenant may get another relay within a turn.
const changes = 4

// work is a turn in the lane of the tenant's relay: the cell's, or its own. Which one that is, is remembered, and found out when a batch is leased: nobody who has the cell's
// pays for those who have their own.
func (s *sender) work(ctx context.Context, tenant string, number int, until time.Time) (more bool, err error) {
	for range changes {
		var other *errOtherRelay
		if more, err = s.workBy(ctx, s.own.secretOf(tenant), tenant, number, until); !errors.As(err, &other) {
			return more, err
		}
		s.own.learn(tenant, other.secret)
	}
	return true, nil
}

// workBy is a turn in the lane of one relay; *errOtherRelay when the tenant has another.
func (s *sender) workBy(ctx context.Context, secret, tenant string, number int, until time.Time) (more bool, err error) {
	if secret == "" {
		return s.lanes[number].work(ctx, tenant, until)
	}
	r, err := s.own.take(secret)
	if errors.Is(err, errNoRelay) {
		why := err
		err = s.db.InTenant(ctx, tenant, func(_ context.Context, tx *postgres.Tx) error {
			if tx.Tenant.SMTPSecret != secret {
				return &errOtherRelay{tx.Tenant.SMTPSecret}
			}
			return why
		})
	}
	if err != nil {
		return false, err
	}
	defer s.own.release(r)
	return r.lanes[number].work(ctx, tenant, until)
}

// unfitFor is why nothing is mailed for a tenant: its relay is none for a pre-production.
func (s *sender) unfitFor(t *postgres.Tenant) error {
	switch {
	case !t.Preproduction:
		return nil
	case t.SMTPSecret == "":
		return s.unfit
	}
	_, relays, err := s.own.read(t.SMTPSecret)
	if err != nil {
		return nil //nolint:nilerr // it waits, and is sent once the relay is known
	}
	return unfit(t.SMTPSecret, relays)
}

// unfit is why a pre-production must not have the relays of a Secret.
func unfit(secret string, relays []mail.Relay) error {
	if err := mail.CheckPreproduction(relays); err != nil {
		return fmt.Errorf("the Secret %s: %w", secret, err)
	}
	return nil
}
