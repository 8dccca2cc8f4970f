package main

import (
	"context"

	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/report"
)

type explainCmd struct {
	Delivery int64 `arg:"" help:"The delivery's id: campaign explain shows it, and so does an event."`
}

// Help is shown by --help.
func (explainCmd) Help() string {
	return "What caused the mail, on which consent, what became of it and what came back.\n\nExample:\n  onda --tenant acme explain 513"
}

// Run explains a delivery.
func (c explainCmd) Run(ctx context.Context, s *session) error {
	var d *report.Delivery
	err := s.inTenant(ctx, func(ctx context.Context, tx *postgres.Tx) (err error) {
		d, err = report.Explain(ctx, tx, c.Delivery)
		return err
	})
	if err != nil {
		return err
	}
	if ok, err := s.data(d); ok {
		return err
	}
	return d.Text(s.stdout)
}
