package report

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/onda-run/onda/internal/delivery"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/spec"
)

// Consent is an entry of the ledger.
type Consent struct {
	ID    int64           `json:"id"`
	State string          `json:"state"`
	Basis string          `json:"basis"`
	Proof json.RawMessage `json:"proof"`
	At    time.Time       `json:"at"`
}

// Event is something that became of a delivery.
type Event struct {
	At   time.Time `json:"at"`
	What string    `json:"what"`
}

// NotKept is the state of a mail whose outcome was forgotten.
const NotKept = "no longer kept"

// Delivery is all that is known about one mail: what caused it, on which consent, what became of it.
type Delivery struct {
	ID      int64  `json:"delivery"`
	Contact int64  `json:"contact"`
	Email   string `json:"email"`
	Version int    `json:"version"`
	Variant string `json:"variant,omitempty"`
	// Topic is empty for a transactional mail, which needs no consent.
	Topic string `json:"topic,omitempty"`
	// Run is of Kind campaign, broadcast or standing, of the document Name; Step of a campaign.
	Run      int64     `json:"run"`
	Kind     string    `json:"kind"`
	Name     string    `json:"name"`
	Step     string    `json:"step,omitempty"`
	RunCause string    `json:"runCause"`
	Cause    string    `json:"cause,omitempty"`
	Planned  time.Time `json:"planned"`
	Batch    int64     `json:"batch"`
	Number   int       `json:"number"`
	// Journey is what the contact was in, for a step of a campaign; Entered says how it got there.
	Journey int64  `json:"journey,omitempty"`
	Entered string `json:"entered,omitempty"`
	// Consent is the ledger's newest entry on the topic when the mail was made, or now if it has not been.
	Consent *Consent `json:"consent,omitempty"`
	// State is queued while there is no outcome, and NotKept, with no contact, when retention.deliveries of the Settings is over.
	State    string  `json:"state"`
	Attempt  int     `json:"attempt"`
	Reason   string  `json:"reason,omitempty"`
	Class    string  `json:"class,omitempty"`
	Code     int     `json:"code,omitempty"`
	Status   string  `json:"status,omitempty"`
	Detail   string  `json:"detail,omitempty"`
	Tracking string  `json:"tracking,omitempty"`
	Events   []Event `json:"events"`
}

// Explain tells all that is known about a delivery. An id of none is an error that matches delivery.ErrUnknownDelivery.
func Explain(ctx context.Context, tx *postgres.Tx, id int64) (*Delivery, error) {
	d := &Delivery{ID: id, Batch: delivery.BatchOf(id), Number: delivery.Number(id)}
	var at, retry, delivered, bounced, complained *time.Time
	var bounceClass string
	var variants []byte
	err := tx.QueryRow(ctx, `SELECT coalesce(b.contacts[$2], d.contact, 0), e.name, doc.version, CASE WHEN doc.spec->'spec' ? 'variants' THEN doc.spec END, coalesce(doc.spec->'spec'->>'topic', ''), b.run, r.kind, re.name, b.step, r.cause, b.cause, b.planned_at,
			coalesce(d.state, CASE b.state WHEN 'closed' THEN $4 ELSE 'queued' END), coalesce(d.attempt, 1), coalesce(d.reason, ''), coalesce(d.class, ''), coalesce(d.code, 0), coalesce(d.status, ''), coalesce(d.detail, ''),
			coalesce(d.tracking, ''), d.at, d.retry_at, d.delivered_at, d.bounced_at, coalesce(d.bounce_class, ''), d.complained_at
		FROM batch b JOIN document doc ON doc.id = b.email JOIN entity e ON e.id = doc.entity JOIN run r ON r.id = b.run JOIN entity re ON re.id = r.entity
			LEFT JOIN delivery d ON d.id = $3
		WHERE b.id = $1 AND b.attempt = 1 AND $2 BETWEEN 1 AND greatest(cardinality(b.contacts), b.mark)`, d.Batch, d.Number, id, NotKept).
		Scan(&d.Contact, &d.Email, &d.Version, &variants, &d.Topic, &d.Run, &d.Kind, &d.Name, &d.Step, &d.RunCause, &d.Cause, &d.Planned,
			&d.State, &d.Attempt, &d.Reason, &d.Class, &d.Code, &d.Status, &d.Detail, &d.Tracking, &at, &retry, &delivered, &bounced, &bounceClass, &complained)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, fmt.Errorf("delivery %d: %w", id, delivery.ErrUnknownDelivery)
	}
	if err != nil {
		return nil, fmt.Errorf("read delivery %d: %w", id, err)
	}
	if variants != nil && d.Contact != 0 {
		e, err := spec.DecodeAs[*spec.Email](spec.KindEmail, variants)
		if err != nil {
			return nil, fmt.Errorf("explain delivery %d: %w", id, err)
		}
		d.Variant = e.VariantOf(d.Contact)
	}
	d.Events = append(d.Events, Event{d.Planned, "planned"})
	d.add(at, d.State)
	d.add(retry, "to be tried again")
	d.add(delivered, "reported as delivered")
	d.add(bounced, "bounced, "+bounceClass)
	d.add(complained, "complained about")
	if err := d.why(ctx, tx, at); err != nil {
		return nil, fmt.Errorf("explain delivery %d: %w", id, err)
	}
	rows, err := tx.Query(ctx, `SELECT h.at, h.kind || CASE WHEN h.kind = 'click' THEN ' on ' || coalesce(l.url, '?') ELSE '' END
			|| ': ' || coalesce(h.verdict, 'not judged yet') || CASE WHEN h.reason = '' THEN '' ELSE ', ' || h.reason END
		FROM hit h LEFT JOIN link l ON l.id = h.link WHERE h.delivery = $1 ORDER BY h.at, h.id LIMIT 100`, id)
	if err != nil {
		return nil, fmt.Errorf("read hits of delivery %d: %w", id, err)
	}
	hits, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Event])
	if err != nil {
		return nil, fmt.Errorf("read hits of delivery %d: %w", id, err)
	}
	d.Events = append(d.Events, hits...)
	return d, nil
}

func (d *Delivery) add(at *time.Time, what string) {
	if at != nil {
		d.Events = append(d.Events, Event{*at, what})
	}
}

// why looks up the journey that the mail is a step of, and the consent that it was made on.
func (d *Delivery) why(ctx context.Context, tx *postgres.Tx, made *time.Time) error {
	err := tx.QueryRow(ctx, "SELECT j.id, j.cause FROM step s JOIN journey j ON j.id = s.journey WHERE s.delivery = $1 LIMIT 1", d.ID).Scan(&d.Journey, &d.Entered)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return err
	}
	if d.Topic == "" || d.State == NotKept {
		return nil
	}
	c := &Consent{}
	err = tx.QueryRow(ctx, "SELECT id, state, basis, proof, at FROM consent WHERE contact = $1 AND purpose = $2 AND at <= coalesce($3, onda.now()) ORDER BY at DESC, id DESC LIMIT 1",
		d.Contact, d.Topic, made).Scan(&c.ID, &c.State, &c.Basis, &c.Proof, &c.At)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil
	}
	d.Consent = c
	return err
}

// Text prints the explanation for a terminal.
func (d *Delivery) Text(w io.Writer) error {
	t := &texter{w: w}
	version := fmt.Sprintf("version %d", d.Version)
	if d.Variant != "" {
		version += ", variant " + d.Variant
	}
	to := fmt.Sprintf("contact %d", d.Contact)
	if d.Contact == 0 {
		to = "a contact that is no longer kept"
	}
	t.line("delivery %d: %s (%s) to %s", d.ID, d.Email, version, to)
	cause := fmt.Sprintf("%s %s, run %d, started by %s", d.Kind, d.Name, d.Run, orUnknown(d.RunCause))
	if d.Step != "" {
		cause += ", step " + d.Step
	}
	t.line("  caused by   %s", cause)
	if d.Journey != 0 {
		t.line("              journey %d, entered by %s", d.Journey, orUnknown(d.Entered))
	}
	switch {
	case d.Topic == "":
		t.line("  on consent  none: it is transactional")
	case d.State == NotKept:
		t.line("  on consent  to %s, which is that of a contact who is no longer kept here", d.Topic)
	case d.Consent == nil:
		t.line("  on consent  none to %s", d.Topic)
	default:
		t.line("  on consent  %s to %s, %s by %s (entry %d) %s", d.Consent.State, d.Topic, d.Consent.At.UTC().Format(time.DateTime), d.Consent.Basis, d.Consent.ID, d.Consent.Proof)
	}
	outcome := strings.TrimSpace(d.State + " " + d.Reason + " " + d.Class)
	if d.Code != 0 {
		outcome += fmt.Sprintf(", SMTP %d %s %s", d.Code, d.Status, d.Detail)
	}
	if d.Attempt > 1 {
		outcome += fmt.Sprintf(", attempt %d", d.Attempt)
	}
	if d.Tracking != "" {
		outcome += ", tracking: " + trackingName(d.Tracking)
	}
	if d.State == NotKept {
		outcome += ": retention.deliveries of the Settings is over"
	}
	t.line("  outcome     %s", outcome)
	for _, e := range d.Events {
		t.line("  %s  %s", e.At.UTC().Format(time.DateTime), e.What)
	}
	return t.err
}

func orUnknown(s string) string {
	if s == "" {
		return "(not recorded)"
	}
	return s
}
