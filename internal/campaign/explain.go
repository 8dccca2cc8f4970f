package campaign

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/spec"
)

// Taken is a step that a journey has done.
type Taken struct {
	Visit int    `json:"visit"`
	Step  string `json:"step"`
	// Label says in a few words what the step does.
	Label string `json:"label"`
	// Branch is how it went on: then, else, timeout, untracked, jump, late, missing, past, goal, left; empty where there is one way only.
	Branch string    `json:"branch,omitempty"`
	At     time.Time `json:"at"`
	// Delivery, of a send, with what became of the mail: its state, "queued" before it has one, and the reason.
	Delivery int64  `json:"delivery,omitempty"`
	Mail     string `json:"mail,omitempty"`
	Reason   string `json:"reason,omitempty"`
}

// Journey is the history of one journey of a contact.
type Journey struct {
	ID      int64  `json:"journey"`
	Run     int64  `json:"run"`
	Key     string `json:"key,omitempty"`
	Version int    `json:"version"`
	State   string `json:"state"`
	Outcome string `json:"outcome,omitempty"`
	// Cause is what let it in.
	Cause     string    `json:"cause"`
	EnteredAt time.Time `json:"enteredAt"`
	EndedAt   time.Time `json:"endedAt,omitzero"`
	Steps     []Taken   `json:"steps"`
	// Step is where an active journey stands, Waits why it goes no further, and Until until when at most; zero when it is due.
	Step  string    `json:"step,omitempty"`
	Waits string    `json:"waits,omitempty"`
	Until time.Time `json:"until,omitzero"`
}

// Explain gives the journeys of a contact in a campaign, the latest first: each step that it did, by which way it went on, and why it waits. None is no
// error.
func Explain(ctx context.Context, tx *postgres.Tx, name string, contact int64) ([]Journey, error) {
	rows, err := tx.Query(ctx, `SELECT j.id, j.run, j.key, j.document, j.state, j.outcome, j.cause, j.entered_at, j.ended_at, j.step, least(j.due_at, timestamptz '9999-01-01'), j.until, r.state
		FROM journey j JOIN run r ON r.id = j.run JOIN entity e ON e.id = r.entity
		WHERE j.contact = $2 AND e.kind = 'Campaign' AND e.name = $1 ORDER BY j.id DESC LIMIT 100`, name, contact)
	if err != nil {
		return nil, fmt.Errorf("read the journeys of a contact: %w", err)
	}
	type row struct {
		Journey
		document int64
		due      time.Time
		until    *time.Time
		run      string
	}
	all, err := pgx.CollectRows(rows, func(r pgx.CollectableRow) (j row, err error) {
		var ended *time.Time
		err = r.Scan(&j.ID, &j.Run, &j.Key, &j.document, &j.State, &j.Outcome, &j.Cause, &j.EnteredAt, &ended, &j.Step, &j.due, &j.until, &j.run)
		if ended != nil {
			j.EndedAt = *ended
		}
		return j, err
	})
	if err != nil {
		return nil, fmt.Errorf("read the journeys of a contact: %w", err)
	}
	docs := &documents{}
	out := make([]Journey, len(all))
	for i := range all {
		j := &all[i]
		v, err := docs.load(ctx, tx, j.document)
		if err != nil {
			return nil, err
		}
		j.Version = v.number
		if j.Steps, err = steps(ctx, tx, v, j.ID); err != nil {
			return nil, err
		}
		if j.State == active {
			j.Waits, j.Until = waiting(v, j.Step, j.run, j.due, j.until, tx.Now())
		} else {
			j.Step = ""
		}
		out[i] = j.Journey
	}
	return out, nil
}

// steps is the history of one journey.
func steps(ctx context.Context, tx *postgres.Tx, v *version, journey int64) ([]Taken, error) {
	rows, err := tx.Query(ctx, `SELECT s.visit, s.step, s.branch, s.at, coalesce(s.delivery, 0),
			CASE WHEN s.delivery IS NULL THEN '' ELSE coalesce(d.state, CASE b.state WHEN 'closed' THEN 'no longer kept' ELSE 'queued' END) END, coalesce(d.reason, '')
		FROM step s LEFT JOIN delivery d ON d.id = s.delivery LEFT JOIN batch b ON b.id = s.delivery >> 9 WHERE s.journey = $1 ORDER BY s.visit`, journey)
	if err != nil {
		return nil, fmt.Errorf("read the history of a journey: %w", err)
	}
	out, err := pgx.CollectRows(rows, func(r pgx.CollectableRow) (t Taken, err error) {
		err = r.Scan(&t.Visit, &t.Step, &t.Branch, &t.At, &t.Delivery, &t.Mail, &t.Reason)
		t.Label = t.Step
		if n, ok := v.flow.Node(t.Step); ok {
			t.Label = label(n)
		}
		return t, err
	})
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return nil, fmt.Errorf("read the history of a journey: %w", err)
	}
	return out, nil
}

// waiting says why an active journey goes no further, and until when at most.
func waiting(v *version, step, run string, due time.Time, until *time.Time, now time.Time) (string, time.Time) {
	n, ok := v.flow.Node(step)
	switch {
	case !ok:
		return "its step is not in its version of the campaign", time.Time{}
	case run == "paused":
		return "the campaign is paused", time.Time{}
	case run == "scheduled":
		return "the campaign has not begun", time.Time{}
	case !due.After(now):
		return "it is due", time.Time{}
	case n.Kind == "send":
		return "its mail is held until the window opens", due
	case n.Kind != "wait":
		return "it is due", due
	}
	if until != nil {
		due = *until
	}
	return "it waits " + waitText(n.Step.Wait), due
}

func waitText(w *spec.Wait) string {
	switch {
	case w.Match != nil:
		return "until the contact matches"
	case w.Event != nil && w.Event.Of != "":
		return "for " + w.Event.Event + " of " + w.Event.Of
	case w.Event != nil:
		return "for " + w.Event.Event
	}
	return waitLabel(w)
}
