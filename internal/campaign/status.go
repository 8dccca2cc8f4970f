package campaign

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/onda-run/onda/internal/delivery"
	"github.com/onda-run/onda/internal/postgres"
)

// Counts are mails by outcome.
type Counts struct {
	Sent       int64 `json:"sent"`
	Deferred   int64 `json:"deferred"`
	Failed     int64 `json:"failed"`
	Suppressed int64 `json:"suppressed"`
	Unknown    int64 `json:"unknown"`
}

// Total is how many have an outcome.
func (c Counts) Total() int64 { return c.Sent + c.Deferred + c.Failed + c.Suppressed + c.Unknown }

// JourneyCount is how many journeys are in a state; those that are active also by the step at which they stand.
type JourneyCount struct {
	State string `json:"state"`
	// Outcome is the label of the exit step that a journey ended at.
	Outcome string `json:"outcome,omitempty"`
	Step    string `json:"step,omitempty"`
	N       int64  `json:"n"`
}

// Status is how a run is getting on.
type Status struct {
	Run
	StartedAt time.Time `json:"startedAt,omitzero"`
	EndedAt   time.Time `json:"endedAt,omitzero"`
	// Audience is how many it was started for, when that was said; Planned how many mails are planned, Complete whether that is all.
	Audience int64 `json:"audience,omitempty"`
	Planned  int64 `json:"planned"`
	Complete bool  `json:"complete"`
	// Counts are of the mails that have an outcome; Suppressed tells why the suppressed ones were not sent; Queued are the others.
	Counts  Counts           `json:"counts"`
	Reasons map[string]int64 `json:"reasons,omitempty"`
	Queued  int64            `json:"queued"`
	// Rate is how many mails got an outcome a second, from the start to the last batch that was closed; 0 when that cannot be said yet.
	Rate float64 `json:"rate,omitempty"`
	// Held are the breakers that keep marketing mail of the tenant back at present.
	Held []delivery.Breaker `json:"held,omitempty"`
	// Journeys is of a campaign.
	Journeys []JourneyCount `json:"journeys,omitempty"`
	// Lag is of statistics, segments and journeys.
	Lag Lag `json:"lag"`
}

// GetStatus tells how the latest run of a campaign or broadcast is getting on. ErrNotFound when it has none.
func GetStatus(ctx context.Context, tx *postgres.Tx, name string) (Status, error) {
	var id int64
	err := tx.QueryRow(ctx, `SELECT r.id FROM run r JOIN entity e ON e.id = r.entity WHERE e.name = $1 AND r.kind IN ('campaign', 'broadcast')
		ORDER BY r.id DESC LIMIT 1`, name).Scan(&id)
	if errors.Is(err, pgx.ErrNoRows) {
		return Status{}, fmt.Errorf("no run of %s: %w", name, ErrNotFound)
	}
	if err != nil {
		return Status{}, fmt.Errorf("look for the run of %s: %w", name, err)
	}
	return RunStatus(ctx, tx, id)
}

// RunStatus is the status of a run by its id.
func RunStatus(ctx context.Context, tx *postgres.Tx, run int64) (Status, error) {
	s := Status{Run: Run{ID: run}}
	var started, ended *time.Time
	err := tx.QueryRow(ctx, `SELECT r.kind, e.name, r.state, r.starts_at, r.document, r.started_at, r.ended_at, coalesce(r.audience, 0), r.planned
		FROM run r JOIN entity e ON e.id = r.entity WHERE r.id = $1`, run).
		Scan(&s.Kind, &s.Name, &s.State, &s.StartsAt, &s.Document, &started, &ended, &s.Audience, &s.Complete)
	if errors.Is(err, pgx.ErrNoRows) {
		return Status{}, fmt.Errorf("run %d: %w", run, ErrNotFound)
	}
	if err != nil {
		return Status{}, fmt.Errorf("read run %d: %w", run, err)
	}
	if started != nil {
		s.StartedAt = *started
	}
	if ended != nil {
		s.EndedAt = *ended
	}
	if err := s.mails(ctx, tx, started); err != nil {
		return Status{}, err
	}
	if s.EndedAt.IsZero() {
		if s.Held, err = delivery.Breakers(ctx, tx, ""); err != nil {
			return Status{}, err
		}
	}
	if s.Lag, err = GetLag(ctx, tx); err != nil {
		return Status{}, err
	}
	if s.Kind == "campaign" {
		if err := s.journeys(ctx, tx); err != nil {
			return Status{}, err
		}
	}
	return s, nil
}

// mails counts: a batch that is closed has its counts in its row, of the few that are open the deliveries are counted.
func (s *Status) mails(ctx context.Context, tx *postgres.Tx, started *time.Time) error {
	var last *time.Time
	c := &s.Counts
	err := tx.QueryRow(ctx, `SELECT coalesce(sum(greatest(cardinality(contacts), mark)) FILTER (WHERE attempt = 1), 0), coalesce(sum(sent), 0), coalesce(sum(deferred), 0),
			coalesce(sum(failed), 0), coalesce(sum(suppressed), 0), coalesce(sum(unknown), 0), max(closed_at)
		FROM batch WHERE run = $1`, s.ID).Scan(&s.Planned, &c.Sent, &c.Deferred, &c.Failed, &c.Suppressed, &c.Unknown, &last)
	if err != nil {
		return fmt.Errorf("count the mails of run %d: %w", s.ID, err)
	}
	rows, err := tx.Query(ctx, `SELECT d.state, count(*) FROM batch b JOIN delivery d ON d.id > b.id << 9 AND d.id < (b.id + 1) << 9
		WHERE b.run = $1 AND b.state = 'open' AND b.attempt = 1 GROUP BY d.state`, s.ID)
	if err != nil {
		return fmt.Errorf("count the open mails of run %d: %w", s.ID, err)
	}
	err = eachRow(rows, func(state string, n int64) {
		switch state {
		case "sent":
			c.Sent += n
		case "deferred":
			c.Deferred += n
		case "failed":
			c.Failed += n
		case "suppressed":
			c.Suppressed += n
		case "unknown":
			c.Unknown += n
		}
	})
	if err != nil {
		return fmt.Errorf("count the open mails of run %d: %w", s.ID, err)
	}
	s.Queued = s.Planned - c.Total()
	if started != nil && last != nil {
		if d := last.Sub(*started).Seconds(); d > 0 {
			s.Rate = float64(c.Total()) / d
		}
	}
	if c.Suppressed == 0 {
		return nil
	}
	rows, err = tx.Query(ctx, `SELECT coalesce(d.reason, ''), count(*) FROM batch b JOIN delivery d ON d.id > b.id << 9 AND d.id < (b.id + 1) << 9
		WHERE b.run = $1 AND b.attempt = 1 AND (b.suppressed > 0 OR b.state = 'open') AND d.state = 'suppressed' GROUP BY 1`, s.ID)
	if err != nil {
		return fmt.Errorf("count reasons of run %d: %w", s.ID, err)
	}
	s.Reasons = map[string]int64{}
	if err := eachRow(rows, func(reason string, n int64) { s.Reasons[reason] = n }); err != nil {
		return fmt.Errorf("count reasons of run %d: %w", s.ID, err)
	}
	return nil
}

func (s *Status) journeys(ctx context.Context, tx *postgres.Tx) error {
	rows, err := tx.Query(ctx, `SELECT state, outcome, CASE WHEN state = 'active' THEN step ELSE '' END, count(*) FROM journey
		WHERE run = $1 GROUP BY 1, 2, 3 ORDER BY 1, 2, 3`, s.ID)
	if err != nil {
		return fmt.Errorf("count the journeys of run %d: %w", s.ID, err)
	}
	if s.Journeys, err = pgx.CollectRows(rows, pgx.RowToStructByPos[JourneyCount]); err != nil {
		return fmt.Errorf("count the journeys of run %d: %w", s.ID, err)
	}
	return nil
}
