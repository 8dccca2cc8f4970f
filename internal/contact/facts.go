package contact

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/onda-run/onda/internal/event"
	"github.com/onda-run/onda/internal/postgres"
)

// writer gathers what a call found to have changed, and writes the facts of it and their doorbells, many rows a statement.
type writer struct {
	drainer string
	cause   string // id of the event or name of the command that caused it; may be empty

	kind, name []string
	contact    []*int64
	data       []*string
	at         []*time.Time

	sets []postgres.Fact // facts about many contacts
	ring []event.Data
}

// add notes a fact about one contact (0: none). at is zero for now.
func (w *writer) add(kind, name string, contact int64, data map[string]any, at time.Time) error {
	w.kind, w.name = append(w.kind, kind), append(w.name, name)
	var c *int64
	if contact != 0 {
		c = &contact
	}
	w.contact = append(w.contact, c)
	var d *string
	if data != nil {
		b, err := json.Marshal(data)
		if err != nil {
			return fmt.Errorf("encode fact %s: %w", kind, err)
		}
		s := string(b)
		d = &s
	}
	w.data = append(w.data, d)
	var t *time.Time
	if !at.IsZero() {
		t = &at
	}
	w.at = append(w.at, t)
	return nil
}

// addSet notes a fact about many contacts, in rows of at most 500 of them.
func (w *writer) addSet(kind, name string, contacts []int64, data map[string]any) error {
	var d []byte
	if data != nil {
		var err error
		if d, err = json.Marshal(data); err != nil {
			return fmt.Errorf("encode fact %s: %w", kind, err)
		}
	}
	for chunk := range slices.Chunk(contacts, event.MaxItems) {
		w.sets = append(w.sets, postgres.Fact{Kind: kind, Name: name, Contacts: slices.Clone(chunk), Data: d})
	}
	return nil
}

// flush writes the facts, then the doorbells.
func (w *writer) flush(ctx context.Context, tx *postgres.Tx) error {
	if err := tx.AddFacts(ctx, w.sets...); err != nil {
		return err
	}
	if len(w.kind) > 0 {
		_, err := tx.Exec(ctx, `INSERT INTO fact (kind, name, contact, data, at)
			SELECT kind, name, contact, data, coalesce(at, onda.now())
			  FROM unnest($1::text[], $2::text[], $3::bigint[], $4::jsonb[], $5::timestamptz[]) u(kind, name, contact, data, at)`,
			w.kind, w.name, w.contact, w.data, w.at)
		if err != nil {
			return fmt.Errorf("write facts: %w", err)
		}
		for _, kind := range slices.Compact(w.kind) {
			for _, r := range postgres.Readers(kind) {
				tx.Wake(r, tx.Now().Add(tx.Tick()))
			}
		}
	}
	for i, d := range w.ring {
		// The id need only be new for each commit: the facts are the truth, and a repeat of this call changes nothing and rings nothing.
		id := event.DeriveID(tx.Tenant.Name, d.EventType(), w.cause, strconv.FormatInt(tx.Now().UnixNano(), 10), strconv.Itoa(i), key(d))
		var opts []event.Option
		if w.cause != "" {
			opts = append(opts, event.Causation(w.cause))
		}
		e, err := event.New(tx.Tenant.Name, w.drainer, "", id, d, opts...)
		if err != nil {
			return fmt.Errorf("ring: %w", err)
		}
		if err := tx.Publish(ctx, w.drainer, e); err != nil {
			return err
		}
	}
	return nil
}

// key tells two doorbells of one moment apart by whom they are about.
func key(d event.Data) string {
	b, err := json.Marshal(d)
	if err != nil { // event.New says so
		return ""
	}
	return string(b)
}

// ringItems adds a doorbell for each 500 items.
func ringItems[T any](w *writer, items []T, wrap func([]T) event.Data) {
	for chunk := range slices.Chunk(items, event.MaxItems) {
		w.ring = append(w.ring, wrap(chunk))
	}
}
