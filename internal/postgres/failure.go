package postgres

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	cloudevents "github.com/cloudevents/sdk-go/v2"
)

// KeepFailure keeps an event that can never succeed, or that a broker gave up on, so that onda event replay can send it again: not every broker
// dead-letters. Where its tenant is unknown, or not this process's, it is kept without its data.
func (db *DB) KeepFailure(ctx context.Context, function, tenant string, e cloudevents.Event, cause error) error {
	body, err := json.Marshal(e)
	if err != nil || !json.Valid(body) {
		body, _ = json.Marshal(map[string]any{"id": e.ID(), "type": e.Type(), "source": e.Source(), "data_base64": e.Data()})
	}
	if tenant != "" {
		err := db.InTenant(ctx, tenant, func(ctx context.Context, tx *Tx) error {
			_, err := tx.Exec(ctx, "INSERT INTO failure (function, event, error) VALUES ($1, $2, $3)", function, body, cause.Error())
			return err
		})
		if err == nil || !errors.Is(err, ErrUnknownTenant) && !errors.Is(err, ErrForeignTenant) {
			return err
		}
	}
	short, err := json.Marshal(map[string]string{"id": e.ID(), "type": e.Type(), "source": e.Source()})
	if err != nil {
		return fmt.Errorf("keep failure: %w", err)
	}
	if _, err := db.pool.Exec(ctx, "INSERT INTO onda.failure (function, tenant, event, error) VALUES ($1, $2, $3, $4)", function, tenant, short, cause.Error()); err != nil {
		return fmt.Errorf("keep failure: %w", err)
	}
	return nil
}
