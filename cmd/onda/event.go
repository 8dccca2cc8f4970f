package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/onda-run/onda/internal/event"
	"github.com/onda-run/onda/internal/fn"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/spec"
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
	return "Needs K_SINK, the broker's address, and ONDA_OIDC_TOKEN, a file with a token, where the broker asks who publishes. The data is checked against the catalogue first.\n\n" +
		"Example:\n  onda --tenant acme event send onda.segment.rebuild.requested.v1 \\\n    '{\"segment\": \"nordic\"}'"
}

// Run sends the event.
func (c eventSendCmd) Run(ctx context.Context, s *session) error {
	if s.tenant == "" {
		return errNoTenant
	}
	if s.env("K_SINK") == "" {
		return errors.New("K_SINK is not set: it is the address of the broker (onda dev sets it for this directory)")
	}
	body := []byte(c.Data)
	if c.Data == "-" {
		var err error
		if body, err = io.ReadAll(io.LimitReader(s.stdin, event.MaxSize+1)); err != nil {
			return fmt.Errorf("read standard input: %w", err)
		}
	}
	if entry, ok := event.Lookup(c.Type); !ok {
		return usageError{unknownType(c.Type)}
	} else if err := json.Unmarshal(body, new(map[string]any)); err != nil {
		return usageError{fmt.Sprintf("the data is not a JSON object: %v (%s: %s)", err, entry.Type, entry.Description)}
	}
	var namespace string
	err := s.inTenant(ctx, func(_ context.Context, tx *postgres.Tx) error {
		namespace = tx.Tenant.Namespace
		return nil
	})
	if err != nil {
		return err
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
	if err := s.publisher().Publish(ctx, namespace, e); err != nil {
		return err
	}
	if ok, err := s.data(map[string]string{"id": id}); ok {
		return err
	}
	s.print("%s", id)
	return nil
}

// unknownType says which type may have been meant.
func unknownType(name string) string {
	var types []string
	for _, e := range event.Catalogue() {
		types = append(types, e.Type)
	}
	msg := fmt.Sprintf("there is no event type %q", name)
	if near := spec.Nearest(name, types); near != "" {
		return msg + fmt.Sprintf(", did you mean %q?", near)
	}
	return msg + ": eventing/eventtypes lists them"
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
	var done []int64
	err := s.inTenant(ctx, func(ctx context.Context, tx *postgres.Tx) (err error) {
		done, err = c.replay(ctx, tx)
		return err
	})
	if err != nil {
		return err
	}
	if ok, err := s.data(map[string]any{"replayed": done}); ok {
		return errors.Join(err, s.ring(ctx))
	}
	s.print("%s replayed", count(len(done), "event"))
	return s.ring(ctx)
}

// replay puts all of them into the outbox, or none, and gives their numbers.
func (c eventReplayCmd) replay(ctx context.Context, tx *postgres.Tx) ([]int64, error) {
	rows, err := tx.Query(ctx, `WITH f AS (UPDATE failure SET replayed_at = onda.now() WHERE id = ANY ($1) OR $2 AND replayed_at IS NULL RETURNING id, event)
		SELECT id, event FROM f ORDER BY id`, c.ID, c.All)
	if err != nil {
		return nil, err
	}
	done := []int64{}
	var events []cloudevents.Event
	var id int64
	var stored []byte
	_, err = pgx.ForEachRow(rows, []any{&id, &stored}, func() error {
		e := cloudevents.NewEvent()
		if err := json.Unmarshal(stored, &e); err != nil {
			return fmt.Errorf("event %d is too broken to be replayed, so none was: name the others by number: %w", id, err)
		}
		done, events = append(done, id), append(events, e)
		return nil
	})
	if err != nil {
		return nil, err
	}
	for _, id := range c.ID {
		if !slices.Contains(done, id) {
			return nil, fmt.Errorf("there is no failed event %d, so none was replayed: onda event list shows them", id)
		}
	}
	return done, tx.Publish(ctx, "campaign", events...)
}

// ring posts what this command published, where the broker is known. Otherwise, and when the broker is away, it is left to the function that sweeps the outbox.
func (s *session) ring(ctx context.Context) error {
	p := s.publisher()
	if p.Sink == "" || s.db == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	if err := s.db.DrainPending(ctx, p.Publish); err != nil {
		_, _ = fmt.Fprintf(s.stderr, "onda: done; but the broker at %s does not take events (%s), so functions see it at their next sweep, within %v\n", p.Sink, innermost(err), s.tick())
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

// publisher posts events to the broker as functions do.
func (s *session) publisher() fn.Publisher {
	return fn.NewPublisher(s.env("K_SINK"), s.env("ONDA_OIDC_TOKEN"))
}
