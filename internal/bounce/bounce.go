package bounce

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"go.uber.org/zap"

	"github.com/onda-run/onda/internal/contact"
	"github.com/onda-run/onda/internal/delivery"
	"github.com/onda-run/onda/internal/feedback"
	"github.com/onda-run/onda/internal/fn"
	"github.com/onda-run/onda/internal/mail"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/spec"
	"github.com/onda-run/onda/internal/token"
)

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
	s := newService(db, rt.Log, fetchHTTPS)
	publish := rt.Publishes(db)
	return fn.Handler{
		HTTP: s.routes(),
		After: func(ctx context.Context) {
			s.settle(ctx)
			if publish != nil {
				publish(ctx)
			}
		},
		Close: func(context.Context) error { db.Close(); return nil },
	}, nil
}

type service struct {
	db        *postgres.DB
	log       *zap.Logger
	fetch     fetch
	providers map[string]provider
	now       func() time.Time // providers' time, which no tenant moves

	mu      sync.Mutex
	pending map[string]struct{} // tenants of which this process took webhooks that it has not worked off
}

func newService(db *postgres.DB, log *zap.Logger, f fetch) *service {
	return &service{db: db, log: log, fetch: f, providers: providers(f), now: time.Now, pending: map[string]struct{}{}}
}

func (s *service) taken(tenant string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pending[tenant] = struct{}{}
}

// settle works off what this process took. What it does not come to is worked off by feedback's drainer.
func (s *service) settle(ctx context.Context) {
	s.mu.Lock()
	tenants := slices.Sorted(maps.Keys(s.pending))
	clear(s.pending)
	s.mu.Unlock()
	for _, tenant := range tenants {
		for more := true; more; {
			err := s.db.InTenant(ctx, tenant, func(ctx context.Context, tx *postgres.Tx) (err error) {
				more, err = feedback.Settle(ctx, tx, s.log)
				return err
			})
			if err != nil {
				s.log.Warn("what webhooks told is worked off later", zap.String("tenant", tenant), zap.Error(err))
				break
			}
		}
	}
}

// Result is what became of a mail that came back.
type Result string

// The results.
const (
	Bounced      Result = "bounced"
	Delivered    Result = "delivered"
	Delayed      Result = "delayed" // the next server still tries
	Complained   Result = "complained"
	Unsubscribed Result = "unsubscribed"
	AutoReplied  Result = "autoreplied"  // a mailbox answered by itself: so the mail reached it
	Ignored      Result = "ignored"      // a mail of another sort, or a report that asks for nothing
	Unattributed Result = "unattributed" // a report without a token that proves which mail it is about
)

// errNotOurs: a token that does not prove itself, or is of another tenant.
var errNotOurs = errors.New("no token proves which mail this is about")

// take reads one mail that came back and does what it asks for. recipients are the addresses that it was sent to, where they are known.
func (s *service) take(ctx context.Context, tx *postgres.Tx, raw io.Reader, recipients ...string) (Result, error) {
	for _, r := range recipients {
		if tok, ok := unsubscribeToken(r); ok {
			return s.unsubscribe(ctx, tx, tok, "mail")
		}
	}
	rep, err := mail.ParseReport(raw, recipients...)
	switch {
	case errors.Is(err, mail.ErrNotReport):
		return Ignored, nil
	case err != nil:
		return "", err
	case rep.Kind == mail.ARF:
		return s.complaint(ctx, tx, rep)
	case rep.Kind == mail.AutoReply:
		return s.delivered(ctx, tx, rep, AutoReplied)
	}
	return s.report(ctx, tx, rep)
}

// delivered settles that a mail reached its mailbox.
func (s *service) delivered(ctx context.Context, tx *postgres.Tx, rep *mail.Report, result Result) (Result, error) {
	id, err := s.delivery(ctx, tx, rep.ReturnPathToken)
	if errors.Is(err, errNotOurs) {
		return Unattributed, nil
	}
	if err != nil {
		return "", err
	}
	return result, feedback.Apply(ctx, tx, s.log, feedback.Event{Delivery: id, Kind: feedback.Delivered})
}

// report takes a report of delivery (RFC 3464 section 2.3.3).
func (s *service) report(ctx context.Context, tx *postgres.Tx, rep *mail.Report) (Result, error) {
	switch rep.Action {
	case "failed":
	case "delivered":
		return s.delivered(ctx, tx, rep, Delivered)
	case "delayed":
		return Delayed, nil
	default:
		return Ignored, nil
	}
	id, err := s.delivery(ctx, tx, rep.ReturnPathToken)
	if errors.Is(err, errNotOurs) {
		return Unattributed, nil
	}
	if err != nil {
		return "", err
	}
	return Bounced, feedback.Apply(ctx, tx, s.log, feedback.Event{Delivery: id, Kind: feedback.Bounced, Class: string(rep.Class)})
}

// complaint takes a report of abuse (RFC 5965). Providers blank out much of it: the token in List-Unsubscribe is enough.
func (s *service) complaint(ctx context.Context, tx *postgres.Tx, rep *mail.Report) (Result, error) {
	switch rep.FeedbackType {
	case "not-spam":
		return Ignored, nil
	case "opt-out":
		return s.unsubscribe(ctx, tx, rep.UnsubscribeToken, "feedback")
	}
	id, err := s.delivery(ctx, tx, rep.ReturnPathToken)
	if err == nil {
		return Complained, feedback.Apply(ctx, tx, s.log, feedback.Event{Delivery: id, Kind: feedback.Complained})
	}
	if !errors.Is(err, errNotOurs) {
		return "", err
	}
	c, err := s.verify(ctx, tx, rep.UnsubscribeToken, token.Unsubscribe)
	if errors.Is(err, errNotOurs) {
		return Unattributed, nil
	}
	if err != nil {
		return "", err
	}
	_, err = contact.Suppress(ctx, tx, feedback.Drainer, contact.Suppression{Contact: c.Contact, Reason: contact.Complaint})
	return Complained, err
}

// unsubscribe withdraws consent to the topic that the token names, or to all.
func (s *service) unsubscribe(ctx context.Context, tx *postgres.Tx, tok, by string) (Result, error) {
	c, err := s.verify(ctx, tx, tok, token.Unsubscribe)
	if errors.Is(err, errNotOurs) {
		return Unattributed, nil
	}
	if err != nil {
		return "", err
	}
	var who int64
	var topics []string
	err = tx.QueryRow(ctx, `SELECT coalesce(c.merged_into, c.id), ARRAY(SELECT name FROM entity WHERE kind = $1 AND (id = $2 OR $2 = 0) ORDER BY name)
		FROM contact c WHERE c.id = $3 AND c.erased_at IS NULL`, spec.KindTopic, c.Topic, c.Contact).Scan(&who, &topics)
	if errors.Is(err, pgx.ErrNoRows) { // nobody is there any more
		return Unsubscribed, nil
	}
	if err != nil {
		return "", fmt.Errorf("look up contact and topic: %w", err)
	}
	entries := make([]contact.Consent, len(topics))
	for i, t := range topics {
		entries[i] = contact.Consent{Contact: who, Purpose: t, State: contact.Withdrawn, Basis: "unsubscribe", Proof: map[string]any{"by": by}}
	}
	done, err := contact.Record(ctx, tx, feedback.Drainer, entries...)
	if err != nil {
		return "", err
	}
	return Unsubscribed, delivery.Unsubscribed(ctx, tx, who, contact.ChangedIDs(done))
}

// delivery proves the token of a return path. errNotOurs when it does not, or when there is no such delivery.
func (s *service) delivery(ctx context.Context, tx *postgres.Tx, tok string) (int64, error) {
	c, err := s.verify(ctx, tx, tok, token.ReturnPath)
	if err != nil {
		return 0, err
	}
	var there bool
	err = tx.QueryRow(ctx, "SELECT EXISTS (SELECT FROM batch WHERE id = $1)", delivery.BatchOf(c.Delivery)).Scan(&there)
	if err != nil {
		return 0, fmt.Errorf("look up delivery: %w", err)
	}
	if !there {
		return 0, errNotOurs
	}
	return c.Delivery, nil
}

func (s *service) verify(ctx context.Context, tx *postgres.Tx, tok string, purpose token.Purpose) (token.Claims, error) {
	keys, err := tx.Keys(ctx)
	if err != nil {
		return token.Claims{}, err
	}
	c, err := keys.Verifier.Verify(tok, purpose, tx.Now())
	if err != nil || c.Tenant != tx.Tenant.Number {
		return token.Claims{}, errNotOurs
	}
	return c, nil
}

// unsubscribeToken finds the token in an address of List-Unsubscribe: u+TOKEN@domain.
func unsubscribeToken(address string) (string, bool) {
	local, _, _ := strings.Cut(strings.Trim(address, "<> "), "@")
	tok, ok := strings.CutPrefix(strings.ToLower(local), "u+")
	return tok, ok && tok != ""
}
