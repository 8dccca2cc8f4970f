package contact

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/spec"
)

// Settings reads the tenant's settings, those by default where it has none.
func Settings(ctx context.Context, tx *postgres.Tx) (*spec.Settings, error) {
	var doc []byte
	err := tx.QueryRow(ctx, "SELECT d.spec FROM entity e JOIN document d ON d.id = e.current WHERE e.kind = $1 AND e.name = 'settings'", spec.KindSettings).Scan(&doc)
	if errors.Is(err, pgx.ErrNoRows) {
		return spec.DefaultSettings(), nil
	}
	if err != nil {
		return nil, fmt.Errorf("read settings: %w", err)
	}
	return spec.DecodeAs[*spec.Settings](spec.KindSettings, doc)
}
