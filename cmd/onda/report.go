package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"time"

	"github.com/onda-run/onda/internal/fn"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/report"
)

type reportCmd struct {
	Name string `arg:"" help:"The campaign's or broadcast's name, or a transactional email's."`
	HTML string `help:"Write it as one HTML page that loads nothing from elsewhere." type:"path" placeholder:"FILE"`
}

// Help is shown by --help.
func (reportCmd) Help() string {
	return "Every recipient is in exactly one count. People and machines are told apart, and mails that can be observed from those that cannot.\n\n" +
		"Example:\n  onda --tenant acme report spring-news --html report.html"
}

// Run prints a report.
func (c reportCmd) Run(ctx context.Context, s *session) error {
	var r *report.Report
	none := fmt.Sprintf("%s has not been sent: there is nothing to report", c.Name)
	err := s.named(ctx, c.Name, reportable(), none, func(ctx context.Context, tx *postgres.Tx) (err error) {
		r, err = report.Load(ctx, tx, c.Name)
		return err
	})
	if err != nil {
		return err
	}
	if c.HTML != "" {
		var page bytes.Buffer
		if err := r.HTML(&page); err != nil {
			return err
		}
		if err := os.WriteFile(c.HTML, page.Bytes(), 0o644); err != nil {
			return fmt.Errorf("write report: %w", err)
		}
	}
	if ok, err := s.data(r); ok {
		return err
	}
	return r.Text(s.stdout)
}

// reportRoutes are the pages of reports that onda dev serves.
func reportRoutes(s *session) map[string]http.Handler {
	page := func(load func(ctx context.Context, tx *postgres.Tx, r *http.Request, w *bytes.Buffer) error) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			var body bytes.Buffer
			db, _, err := s.database()
			if err == nil {
				ctx, cancel := context.WithTimeout(r.Context(), 10*time.Second)
				defer cancel()
				err = db.InTenant(ctx, r.PathValue("tenant"), func(ctx context.Context, tx *postgres.Tx) error { return load(ctx, tx, r, &body) })
			}
			switch {
			case errors.Is(err, report.ErrNoRun), errors.Is(err, postgres.ErrUnknownTenant):
				fn.Problem(w, r, http.StatusNotFound, "No such report", err.Error())
				return
			case err != nil:
				fn.Problem(w, r, http.StatusServiceUnavailable, "No report now", "the database did not answer; try again")
				return
			}
			w.Header().Set("Content-Type", "text/html; charset=utf-8")
			w.Header().Set("Content-Security-Policy", report.Policy)
			_, _ = w.Write(body.Bytes())
		})
	}
	return map[string]http.Handler{
		"GET /reports/{tenant}": page(func(ctx context.Context, tx *postgres.Tx, r *http.Request, w *bytes.Buffer) error {
			runs, err := report.List(ctx, tx)
			if err != nil {
				return err
			}
			return report.ListHTML(w, tx.Tenant, "/reports/"+tx.Tenant.Name, runs)
		}),
		"GET /reports/{tenant}/{name}": page(func(ctx context.Context, tx *postgres.Tx, r *http.Request, w *bytes.Buffer) error {
			rep, err := report.Load(ctx, tx, r.PathValue("name"))
			if err != nil {
				return err
			}
			return rep.HTML(w)
		}),
	}
}
