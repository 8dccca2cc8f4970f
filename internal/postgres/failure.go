package postgres

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	cloudevents "github.com/cloudevents/sdk-go/v2"
)

// KeepFailure keeps an event that can never succeed, or that a broker gave up on, so that onda event replay can send it again: not every broker
// dead-letters. Where its tenant is unknown, or not this process's, it is kept without its data.
func (db *DB) KeepFailure(ctx context.Context, function, tenant string, e cloudevents.Event, cause error) error {
	body, err := json.Marshal(e)
	if err != nil || !json.Valid(body) || bytes.Contains(body, []byte(`\u0000`)) { // which jsonb does not take
		body, err = json.Marshal(map[string]any{
			"specversion": e.SpecVersion(), "id": text(e.ID()), "type": text(e.Type()), "source": text(e.Source()), "tenant": tenant,
			"datacontenttype": text(e.DataContentType()), "data_base64": e.Data(),
		})
		if err != nil {
			return fmt.Errorf("keep failure: %w", err)
		}
	}
	if tenant != "" {
		err := db.InTenant(ctx, tenant, func(ctx context.Context, tx *Tx) error {
			_, err := tx.Exec(ctx, "INSERT INTO failure (function, event, error) VALUES ($1, $2, $3)", function, body, text(cause.Error()))
			return err
		})
		if err == nil || !errors.Is(err, ErrUnknownTenant) && !errors.Is(err, ErrForeignTenant) {
			return err
		}
	}
	short, err := json.Marshal(map[string]string{"id": text(e.ID()), "type": text(e.Type()), "source": text(e.Source())})
	if err != nil {
		return fmt.Errorf("keep failure: %w", err)
	}
	if _, err := db.pool.Exec(ctx, "INSERT INTO onda.failure (function, tenant, event, error) VALUES ($1, $2, $3, $4)", function, text(tenant), short, text(cause.Error())); err != nil {
		return fmt.Errorf("keep failure: %w", err)
	}
	return nil
}

// text is what Postgres takes as text.
func text(s string) string { return strings.ToValidUTF8(strings.ReplaceAll(s, "\x00", ""), "\uFFFD") }
