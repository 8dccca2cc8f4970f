package campaign

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"unicode/utf8"

	cloudevents "github.com/cloudevents/sdk-go/v2"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"go.uber.org/zap"

	"github.com/onda-run/onda/internal/event"
	"github.com/onda-run/onda/internal/fn"
	"github.com/onda-run/onda/internal/postgres"
)

// Config is campaign's environment.
type Config struct {
	Postgres postgres.Config
	// Share is how many workers are rung for at once for the batches of one run.
	Share int `env:"ONDA_SHARE, default=4"`
}

// Check tells what is malformed.
func (c *Config) Check() error {
	if c.Share < 1 || c.Share > 100 {
		return fmt.Errorf("ONDA_SHARE: %d is not a number of workers from 1 to 100", c.Share)
	}
	return nil
}

// Build makes the function.
func Build(ctx context.Context, rt *fn.Runtime) (fn.Handler, error) {
	var cfg Config
	if err := rt.Config(ctx, &cfg); err != nil {
		return fn.Handler{}, err
	}
	db, err := postgres.Open(cfg.Postgres)
	if err != nil {
		return fn.Handler{}, err
	}
	db.Watch(rt.Watch())
	f := &function{rt: rt, db: db, engine: &engine{db: db, docs: &documents{}, share: cfg.Share, log: rt.Log, stop: rt.Draining()}}
	return fn.Handler{
		Event:      f.event,
		DeadLetter: f.deadLetter,
		Failed:     rt.Keeps(db),
		After:      rt.Publishes(db),
		Close:      func(context.Context) error { db.Close(); return nil },
	}, nil
}

// function answers events.
type function struct {
	rt     *fn.Runtime
	db     *postgres.DB
	engine *engine
}

// event does the work that an event announces. What it says is never taken for true: it is looked up.
func (f *function) event(ctx context.Context, e cloudevents.Event) (*cloudevents.Event, error) {
	tenant, err := event.Tenant(e)
	if err != nil {
		return nil, fn.Permanent(err)
	}
	data, err := event.Decode(e)
	if err != nil {
		return nil, fn.Permanent(err)
	}
	switch d := data.(type) {
	case event.ScheduleDue:
		return nil, known(f.sweep(ctx, tenant))
	case event.CampaignStarted:
		return nil, known(f.do(ctx, tenant, scope{run: d.Run, plan: true, walk: true}))
	case event.CampaignResumed:
		return nil, known(f.do(ctx, tenant, scope{run: d.Run, plan: true, walk: true}))
	case event.CampaignCancelled:
		return nil, known(f.do(ctx, tenant, scope{run: d.Run}))
	case event.EmailBatchSent:
		return nil, known(f.do(ctx, tenant, scope{run: d.Run, plan: true}))
	case event.SegmentChanged:
		return nil, known(f.do(ctx, tenant, scope{facts: true, walk: true}))
	}
	if e.Extensions()[event.ExtStream] == event.StreamFacts {
		return nil, known(f.do(ctx, tenant, scope{facts: true, walk: true}))
	}
	return nil, nil // of no interest here
}

// do works, and leaves what it does not finish to the sweep.
func (f *function) do(ctx context.Context, tenant string, s scope) error {
	all, err := f.engine.work(ctx, tenant, s)
	if err == nil && !all {
		return f.db.InTenant(context.WithoutCancel(ctx), tenant, func(_ context.Context, tx *postgres.Tx) error {
			tx.Wake(drainer, tx.Now())
			return nil
		})
	}
	return err
}

// sweep does all that is due for the tenant, publishes what was left to be published, and sets when it is to be called again.
func (f *function) sweep(ctx context.Context, tenant string) error {
	all, err := f.engine.work(ctx, tenant, scope{facts: true, plan: true, walk: true, sweep: true})
	if f.rt.Sink != "" {
		if derr := f.drain(ctx, tenant); derr != nil {
			f.rt.Log.Warn("publish", zap.Error(derr)) // the rows stay, and Recompute leaves them due
		}
	}
	if err != nil || !all {
		return err // the wake-up stays as it is
	}
	return f.db.Recompute(ctx, tenant, drainer, due)
}

func (f *function) drain(ctx context.Context, tenant string) error {
	for {
		n, err := f.db.Drain(ctx, tenant, drainer, f.rt.Publish)
		if err != nil || n == 0 {
			return err
		}
	}
}

// known marks the errors of this package's callers that no repetition mends.
func known(err error) error {
	if errors.Is(err, postgres.ErrUnknownTenant) || errors.Is(err, postgres.ErrForeignTenant) {
		return fn.Permanent(err)
	}
	return err
}

// connectionGone tells whether an error is of Postgres being away rather than of what was asked of it: trying the next run would not help.
func connectionGone(err error) bool {
	var connect *pgconn.ConnectError
	return errors.As(err, &connect) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) ||
		errors.Is(err, postgres.ErrUnknownTenant) || errors.Is(err, postgres.ErrForeignTenant) || errors.Is(err, postgres.ErrSchemaTooOld) || pgconn.SafeToRetry(err)
}

// deadLetter keeps an event that a broker gave up on in its tenant's table, so that it can be sent again. Whoever refused it for good may have kept it already.
func (f *function) deadLetter(ctx context.Context, e cloudevents.Event) error {
	tenant, _ := event.Tenant(e)
	function, cause := deadLetterCause(e)
	if tenant != "" {
		var have bool
		err := f.db.InTenant(ctx, tenant, func(ctx context.Context, tx *postgres.Tx) error {
			return tx.QueryRow(ctx, "SELECT EXISTS (SELECT FROM failure WHERE function = $1 AND event ->> 'id' = $2 AND event ->> 'source' = $3 AND replayed_at IS NULL)",
				function, e.ID(), e.Source()).Scan(&have)
		})
		if err != nil && !errors.Is(err, postgres.ErrUnknownTenant) && !errors.Is(err, postgres.ErrForeignTenant) && !errors.Is(err, pgx.ErrNoRows) {
			return err
		}
		if have {
			return nil
		}
	}
	// what the broker added says where it failed, and is no part of the event
	kept := e.Clone()
	for _, name := range []string{"knativeerrordest", "knativeerrorcode", "knativeerrordata", "knativebrokerttl", "knativearrivaltime"} {
		kept.SetExtension(name, nil)
	}
	return f.db.KeepFailure(ctx, function, tenant, kept, cause)
}

// deadLetterCause reads, from the attributes that brokers add to dead letters, which function failed and of what.
func deadLetterCause(e cloudevents.Event) (function string, cause error) {
	text := func(name string) string {
		s, _ := e.Extensions()[name].(string)
		return s
	}
	dest, code, answer := text("knativeerrordest"), text("knativeerrorcode"), text("knativeerrordata")
	if plain, err := base64.StdEncoding.DecodeString(answer); err == nil && utf8.Valid(plain) { // as Knative gives it; not every broker does
		answer = string(plain)
	}
	if len(answer) > 1000 {
		answer = strings.ToValidUTF8(answer[:1000], "")
	}
	if code == "" {
		code = "no answer"
	}
	return functionOf(dest), fmt.Errorf("the broker gave up on it: %s: %s", code, strings.Join(strings.Fields(answer), " "))
}

// functionOf is the name of the function at an address, such as http://send.acme.svc.cluster.local/ or http://127.0.0.1:8080/functions/send-api. The services
// send-api, send-api-events and track-events are of the functions send and track, under whose names those keep what they refuse.
func functionOf(address string) string {
	function := func(service string) string {
		return strings.TrimSuffix(strings.TrimSuffix(service, "-events"), "-api")
	}
	u, err := url.Parse(address)
	if err != nil || u.Host == "" {
		return "broker"
	}
	if _, after, ok := strings.Cut(u.Path, "/functions/"); ok {
		name, _, _ := strings.Cut(after, "/")
		return function(name)
	}
	name, _, _ := strings.Cut(u.Hostname(), ".")
	return function(name)
}
