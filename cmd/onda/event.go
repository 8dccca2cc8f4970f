package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"text/tabwriter"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/onda-run/onda/internal/event"
	"github.com/onda-run/onda/internal/postgres"
)

type eventCmd struct {
	Send   eventSendCmd   `cmd:"" help:"Send one event to the broker."`
	List   eventListCmd   `cmd:"" help:"List events that could not be handled."`
	Replay eventReplayCmd `cmd:"" help:"Send such events again."`
}

type eventSendCmd struct {
	Type string `arg:"" help:"Its type, such as onda.email.requested.v1."`
	Data string `arg:"" help:"Its data as JSON, or - for standard input."`
	ID   string `help:"Its id; a repeat of one id is one event. Random by default."`
}

// Help is shown by --help.
func (eventSendCmd) Help() string {
	return "Needs K_SINK, the broker's address. The data is checked against the catalogue first.\n\n" +
		"Example:\n  onda --tenant acme event send onda.segment.rebuild.requested.v1 '{\"segment\": \"nordic-readers\"}'"
}

// Run sends the event.
func (c eventSendCmd) Run(ctx context.Context, s *session) error {
	if s.tenant == "" {
		return usageError{"which tenant? Name it with --tenant or ONDA_TENANT"}
	}
	sink := s.env("K_SINK")
	if sink == "" {
		return errors.New("K_SINK: is not set; it is the address of the broker")
	}
	body := []byte(c.Data)
	if c.Data == "-" {
		var err error
		if body, err = io.ReadAll(io.LimitReader(s.stdin, event.MaxSize+1)); err != nil {
			return fmt.Errorf("read standard input: %w", err)
		}
	}
	if !json.Valid(body) {
		return usageError{"the data is not JSON"}
	}
	e := cloudevents.NewEvent()
	e.SetType(c.Type)
	if err := e.SetData(cloudevents.ApplicationJSON, json.RawMessage(body)); err != nil {
		return err
	}
	data, err := event.Decode(e)
	if err != nil {
		return err
	}
	id := c.ID
	if id == "" {
		id = uuid.NewString()
	}
	e, err = event.New(s.tenant, "onda", "", id, data, event.At(time.Now()))
	if err != nil {
		return err
	}
	if err := post(ctx, sink, e); err != nil {
		return err
	}
	s.print("%s", id)
	return nil
}

type eventListCmd struct {
	All bool `help:"Also those that were replayed."`
}

// Help is shown by --help.
func (eventListCmd) Help() string { return "Example:\n  onda --tenant acme event list" }

type failure struct {
	ID       int64           `json:"id"`
	At       time.Time       `json:"at"`
	Function string          `json:"function"`
	Event    json.RawMessage `json:"event"`
	Error    string          `json:"error"`
	Replayed *time.Time      `json:"replayed,omitempty"`
}

// Run lists failures.
func (c eventListCmd) Run(ctx context.Context, s *session) error {
	list := []failure{}
	err := s.inTenant(ctx, func(ctx context.Context, tx *postgres.Tx) error {
		rows, err := tx.Query(ctx, "SELECT id, at, function, event, error, replayed_at FROM failure WHERE $1 OR replayed_at IS NULL ORDER BY id", c.All)
		if err != nil {
			return err
		}
		list, err = pgx.CollectRows(rows, pgx.RowToStructByPos[failure])
		return err
	})
	if err != nil {
		return err
	}
	if ok, err := s.data(list); ok {
		return err
	}
	if len(list) == 0 {
		s.print("no event has failed")
		return nil
	}
	w := tabwriter.NewWriter(s.stdout, 0, 8, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, "ID\tAT\tFUNCTION\tTYPE\tERROR")
	for _, f := range list {
		var e struct {
			Type string `json:"type"`
		}
		_ = json.Unmarshal(f.Event, &e) // a broken event has no type to show
		_, _ = fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\n", f.ID, f.At.UTC().Format(time.DateTime), f.Function, e.Type, f.Error)
	}
	return w.Flush()
}

type eventReplayCmd struct {
	ID  []int64 `arg:"" optional:"" help:"Which, by the numbers of event list."`
	All bool    `help:"All that were not replayed yet."`
}

// Help is shown by --help.
func (eventReplayCmd) Help() string {
	return "An event is put into the outbox with its own id, so that a function that has handled it after all does nothing.\n\nExample:\n  onda --tenant acme event replay 12 13"
}

// Run replays failures.
func (c eventReplayCmd) Run(ctx context.Context, s *session) error {
	if len(c.ID) == 0 && !c.All {
		return usageError{"which events? Name them by number, or say --all"}
	}
	n := 0
	err := s.inTenant(ctx, func(ctx context.Context, tx *postgres.Tx) error {
		rows, err := tx.Query(ctx, "UPDATE failure SET replayed_at = onda.now() WHERE (id = ANY ($1) OR $2 AND replayed_at IS NULL) RETURNING event", c.ID, c.All)
		if err != nil {
			return err
		}
		stored, err := pgx.CollectRows(rows, pgx.RowTo[[]byte])
		if err != nil {
			return err
		}
		for _, b := range stored {
			e := cloudevents.NewEvent()
			if err := json.Unmarshal(b, &e); err != nil {
				return fmt.Errorf("an event is too broken to be replayed: %w", err)
			}
			if err := tx.Publish(ctx, "campaign", e); err != nil {
				return err
			}
			n++
		}
		return nil
	})
	if err != nil {
		return err
	}
	s.print("%s replayed", count(n, "event"))
	return s.ring(ctx)
}

// ring posts what this command published, where the broker is known. Otherwise, and when the broker is away, it is left to the function that sweeps the outbox.
func (s *session) ring(ctx context.Context) error {
	sink := s.env("K_SINK")
	if sink == "" || s.db == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	err := s.db.DrainPending(ctx, func(ctx context.Context, e cloudevents.Event) error { return post(ctx, sink, e) })
	if err != nil {
		_, _ = fmt.Fprintf(s.stderr, "onda: done, but the broker could not be told and will be within %v: %v\n", s.tick(), err)
	}
	return nil
}

// tick is the sweep's interval.
func (s *session) tick() time.Duration {
	d, err := time.ParseDuration(s.env("ONDA_TICK"))
	if err != nil || d <= 0 {
		return time.Minute
	}
	return d
}

func post(ctx context.Context, url string, e cloudevents.Event) error {
	r, err := cloudevents.NewHTTPRequestFromEvent(ctx, url, e)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return fmt.Errorf("post event: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 300))
		return fmt.Errorf("post event: %s answers %s: %s", url, resp.Status, text)
	}
	return nil
}
