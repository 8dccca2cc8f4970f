// Package send is the function that hands mail to SMTP: it leases batches, asks the gate, renders, delivers and records each outcome (design sections 4 and
// 6). It also takes transactional mail over HTTP (http.go).
//
// Invariant: a message goes to SMTP only while this process holds its batch, after a mark at or beyond its number was committed, and once a mark. Whatever
// happens then is recorded, or is unknown to the next holder: no mail is lost, none repeated.
package send

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2"
	"go.uber.org/zap"

	"github.com/onda-run/onda/internal/compose"
	"github.com/onda-run/onda/internal/delivery"
	"github.com/onda-run/onda/internal/event"
	"github.com/onda-run/onda/internal/fn"
	"github.com/onda-run/onda/internal/mail"
	"github.com/onda-run/onda/internal/postgres"
)

// Build makes the function. It connects to nothing.
func Build(ctx context.Context, rt *fn.Runtime) (fn.Handler, error) {
	var cfg Config
	if err := rt.Config(ctx, &cfg); err != nil {
		return fn.Handler{}, err
	}
	cfg.Postgres.MaxConns = cfg.MaxConns()
	db, err := postgres.Open(cfg.Postgres)
	if err != nil {
		return fn.Handler{}, err
	}
	db.Watch(rt.Watch())
	s, err := newSender(cfg, db, rt)
	if err != nil {
		db.Close()
		return fn.Handler{}, err
	}
	return fn.Handler{
		Event:  s.event,
		HTTP:   s.routes(),
		Failed: rt.Keeps(db),
		After:  rt.Publishes(db),
		Close: func(ctx context.Context) error {
			err := s.close(ctx)
			db.Close()
			return err
		},
	}, nil
}

// sender is the function in one process.
type sender struct {
	cfg      Config
	db       *postgres.DB
	rt       *fn.Runtime
	composer *compose.Composer
	lanes    [2]*lane // by number; nil where this process does not serve it
	accepted *accepted
	unfit    error // of the cell's relays, for a pre-production
	own      *ownRelays
}

func newSender(cfg Config, db *postgres.DB, rt *fn.Runtime) (*sender, error) {
	relays, err := mail.ParseURLs(cfg.SMTP)
	if err != nil {
		return nil, fmt.Errorf("ONDA_SMTP_URL: %w", err)
	}
	cfg.Compose.References = mail.References(relays)
	s := &sender{cfg: cfg, db: db, rt: rt, composer: compose.New(cfg.Compose), unfit: mail.CheckPreproduction(relays)}
	outcomes, err := rt.Meter.Int64Counter("onda.mails")
	if err != nil {
		return nil, fmt.Errorf("make instruments: %w", err)
	}
	for n := range s.lanes {
		if cfg.serves(n) {
			s.lanes[n] = newLane(n, cfg, relays, db, s.composer, rt, outcomes)
		}
	}
	s.own = newOwnRelays(cfg.Secrets, rt.Log, func(secret string, relays []mail.Relay) (lanes [2]*lane) {
		own := cfg
		own.Compose.References = mail.References(relays)
		composer := s.composer
		if !slices.Equal(own.Compose.References, cfg.Compose.References) {
			composer = compose.New(own.Compose)
		}
		for n := range lanes {
			if cfg.serves(n) {
				lanes[n] = newLane(n, own, relays, db, composer, rt, outcomes)
				lanes[n].secret, lanes[n].unfit = secret, unfit(secret, relays)
			}
		}
		return lanes
	})
	s.accepted = newAccepted(rt.Log, func(ctx context.Context, tenant, cause string) error {
		return s.turn(ctx, tenant, delivery.Transactional, cause)
	}, func(ctx context.Context, tenant, _ string) error {
		return s.settle(ctx, tenant, delivery.Transactional, time.Now().Add(cfg.Turn))
	})
	return s, nil
}

func (s *sender) close(ctx context.Context) error {
	s.accepted.close(ctx)
	var errs []error
	for _, l := range s.lanes {
		if l != nil {
			errs = append(errs, l.close(ctx))
		}
	}
	errs = append(errs, s.own.close(ctx))
	return errors.Join(errs...)
}

// event does the work that an event announces: all that is due in its lane, whatever it says, for as long as a turn is.
func (s *sender) event(ctx context.Context, e cloudevents.Event) (*cloudevents.Event, error) {
	tenant, err := event.Tenant(e)
	if err != nil {
		return nil, fn.Permanent(err)
	}
	data, err := event.Decode(e)
	if errors.Is(err, event.ErrUnknownType) {
		return nil, nil // a Trigger without a filter: not ours
	}
	if err != nil {
		return nil, fn.Permanent(err)
	}
	switch d := data.(type) {
	case event.EmailSendRequested:
		err = s.turn(ctx, tenant, delivery.Bulk, e.ID())
	case event.EmailRequested:
		if d.Email != "" {
			if err := s.store(ctx, tenant, e, d); err != nil {
				return nil, err
			}
		}
		err = s.turn(ctx, tenant, delivery.Transactional, e.ID())
	case event.ScheduleDue:
		switch d.Function {
		case delivery.Function(delivery.Bulk):
			err = s.sweep(ctx, tenant, delivery.Bulk, e.ID())
		case delivery.Function(delivery.Transactional):
			err = s.sweep(ctx, tenant, delivery.Transactional, e.ID())
		}
	}
	return nil, answer(err)
}

// answer marks the errors of this function for its sender.
func answer(err error) error {
	switch {
	case errors.Is(err, postgres.ErrUnknownTenant), errors.Is(err, postgres.ErrForeignTenant):
		return fn.Permanent(err)
	case errors.Is(err, mail.ErrRelayAway), errors.Is(err, mail.ErrCredential), errors.Is(err, errNoRelay):
		return fn.Unavailable(err)
	}
	return err
}

// store keeps a transactional mail that another program asks for with an event; its key makes a repeat the same mail.
func (s *sender) store(ctx context.Context, tenant string, e cloudevents.Event, d event.EmailRequested) error {
	err := s.db.InTenant(ctx, tenant, func(ctx context.Context, tx *postgres.Tx) error {
		email, err := s.composer.ByName(ctx, tx, d.Email)
		if err != nil && !errors.Is(err, compose.ErrUnknown) && !errors.Is(err, compose.ErrBroken) { // of these Request, and each mail, says more
			return err
		}
		if email != nil && email.Transactional {
			if missing := email.MissingData(d.Data); len(missing) > 0 {
				return fmt.Errorf("%w: %s", errMissing, strings.Join(missing, ", "))
			}
		}
		_, _, err = delivery.Request(ctx, tx, delivery.Function(delivery.Transactional), delivery.TransactionalMail{
			Email: d.Email, Contact: d.Contact, Data: d.Data, Key: "event:" + d.Key, Cause: e.ID(),
		})
		return err
	})
	if errors.Is(err, delivery.ErrUnknownEmail) || errors.Is(err, delivery.ErrNotTransactional) || errors.Is(err, delivery.ErrKeyReused) || errors.Is(err, delivery.ErrData) ||
		errors.Is(err, errMissing) {
		return fn.Permanent(err)
	}
	return answer(err)
}

var errMissing = errors.New("the email needs data that the event does not bring")

// sweep does all that is due in a lane, publishes what was left in its outbox, and sets the lane's wake-up anew.
func (s *sender) sweep(ctx context.Context, tenant string, number int, cause string) error {
	if s.lanes[number] == nil {
		return nil
	}
	until := time.Now().Add(s.cfg.Turn)
	if err := s.upkeep(ctx, tenant, number, until); err != nil {
		return err
	}
	worked := s.turn(ctx, tenant, number, cause)
	if worked != nil { // the wake-up stays where it is; what waited to be told, of mails that went out before the relay went away, is told
		s.publish(ctx, tenant, delivery.Function(number), until)
		return worked
	}
	return s.settle(ctx, tenant, number, until)
}

// settle publishes what was left in a lane's outbox, and sets the lane's wake-up anew.
func (s *sender) settle(ctx context.Context, tenant string, number int, until time.Time) error {
	if s.lanes[number] == nil {
		return nil
	}
	function := delivery.Function(number)
	s.publish(ctx, tenant, function, until)
	return s.db.Recompute(ctx, tenant, function, func(ctx context.Context, tx *postgres.Tx) (time.Time, error) {
		return delivery.Due(ctx, tx, number, s.cfg.MessageLimit)
	})
}

// publish posts what is in a function's outbox. What cannot be posted stays there.
func (s *sender) publish(ctx context.Context, tenant, function string, until time.Time) {
	for s.rt.Sink != "" && time.Now().Before(until) {
		n, err := s.db.Drain(ctx, tenant, function, s.rt.Publish)
		if err != nil {
			s.rt.Log.Warn("events stay in the outbox", zap.String("tenant", tenant), zap.Error(err))
			return
		}
		if n == 0 {
			return
		}
	}
}

// upkeep plans the retries that are due and forgets old requests.
func (s *sender) upkeep(ctx context.Context, tenant string, number int, until time.Time) error {
	for more := true; more && time.Now().Before(until); {
		err := s.db.InTenant(ctx, tenant, func(ctx context.Context, tx *postgres.Tx) error {
			n, err := delivery.Regroup(ctx, tx, number)
			more = n == delivery.MaxBatch
			return err
		})
		if err != nil {
			return err
		}
	}
	for more := number == delivery.Transactional; more && time.Now().Before(until); {
		err := s.db.InTenant(ctx, tenant, func(ctx context.Context, tx *postgres.Tx) error {
			n, err := delivery.ForgetRequests(ctx, tx)
			more = n == delivery.MaxBatch
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// turn sends until nothing is due or the turn is over; then it leaves the rest to a follow-up.
func (s *sender) turn(ctx context.Context, tenant string, number int, cause string) error {
	if s.lanes[number] == nil {
		return nil // its mail is sent by another service
	}
	more, err := s.work(ctx, tenant, number, time.Now().Add(s.cfg.Turn))
	if errors.Is(err, delivery.ErrNotArmed) {
		fn.LogTenant(ctx, tenant)
		s.rt.Log.Warn("nothing is sent", zap.String("tenant", tenant), zap.Error(err))
		return nil // held back, and looked at again each hour
	}
	if errors.Is(err, delivery.ErrSuspended) {
		return nil
	}
	if err != nil || !more {
		return err
	}
	return s.followUp(context.WithoutCancel(ctx), tenant, number, cause)
}

// followUp rings for what is left, should there be anything. Its event is derived from what this turn was for.
func (s *sender) followUp(ctx context.Context, tenant string, number int, cause string) error {
	function := delivery.Function(number)
	return s.db.InTenant(ctx, tenant, func(ctx context.Context, tx *postgres.Tx) error {
		run, first, err := delivery.NextDue(ctx, tx, number, s.cfg.MessageLimit)
		if err != nil || run == 0 {
			return err
		}
		tx.Wake(function, tx.Now())
		var data event.Data = event.EmailSendRequested{Run: run}
		if number == delivery.Transactional {
			data = event.EmailRequested{Delivery: first}
		}
		e, err := event.New(tenant, function, "", event.DeriveID("follow-up", function, tenant, cause), data, event.Correlation(run), event.Causation(cause))
		if err != nil {
			return err
		}
		return tx.Publish(ctx, function, e)
	})
}
