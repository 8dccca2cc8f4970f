package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/onda-run/onda/internal/campaign"
	"github.com/onda-run/onda/internal/compose"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/renderform"
	"github.com/onda-run/onda/internal/report"
	"github.com/onda-run/onda/internal/segment"
	"github.com/onda-run/onda/internal/senderdomain"
	"github.com/onda-run/onda/internal/spec"
)

// usageError is an error of the one who typed the command.
type usageError struct{ msg string }

func (e usageError) Error() string { return e.msg }

// errQuiet ends a command with status 1 when it has said all there is to say.
var errQuiet = errors.New("failed")

// errNoTenant: a command that works in a tenant was not told in which.
var errNoTenant = usageError{"which tenant? Name it with --tenant or ONDA_TENANT"}

// inWords says an error as the user needs it: what is in the way, and the remedy. Errors that say so themselves stay as they are.
func (s *session) inWords(err error) string {
	var away *pgconn.ConnectError
	var sql *pgconn.PgError
	switch {
	case errors.As(err, &away):
		return s.noPostgres(away)
	case errors.Is(err, postgres.ErrUnknownTenant):
		return fmt.Sprintf("there is no tenant %s: onda tenant list shows them, onda tenant create %[1]s makes it", s.tenant)
	case errors.As(err, &sql) && (sql.Code == "42P01" || sql.Code == "3F000") && strings.Contains(sql.Message, "onda"):
		return "the database is not Onda's yet: run onda migrate"
	case errors.As(err, &sql) && sql.Code == "42703": // a column that a migration adds
		return "the database is older than this onda: run onda migrate"
	}
	return err.Error()
}

// noPostgres tells from a server that is away one that refuses.
func (s *session) noPostgres(err *pgconn.ConnectError) string {
	at := err.Config.Host
	if strings.HasPrefix(at, "/") {
		at = "the socket in " + at
	} else {
		at = net.JoinHostPort(at, strconv.Itoa(int(err.Config.Port)))
	}
	var refusal *pgconn.PgError
	if errors.As(err, &refusal) {
		remedy := "check the URL in " + s.url
		if refusal.Code == "3D000" {
			remedy = "make it with createdb and onda migrate, or name another in " + s.url
		}
		return fmt.Sprintf("Postgres at %s refuses: %s; %s", at, refusal.Message, remedy)
	}
	remedy := "start it, or name another in " + s.url
	if s.fromDev() {
		remedy = "onda dev starts it (" + envFile + " names it)"
	}
	return fmt.Sprintf("Postgres does not answer at %s (%s): %s", at, innermost(err), remedy)
}

// innermost is the cause at the bottom of an error, without the addresses around it.
func innermost(err error) string {
	for {
		switch e := err.(type) { //nolint:errorlint // it is taken apart here
		case interface{ Unwrap() error }:
			if e.Unwrap() == nil {
				return err.Error()
			}
			err = e.Unwrap()
		case interface{ Unwrap() []error }:
			if len(e.Unwrap()) == 0 {
				return err.Error()
			}
			err = e.Unwrap()[0]
		default:
			return err.Error()
		}
	}
}

// sort says what kinds of document a name may be of, and what they are called.
type sort struct {
	what  string
	kinds []string
}

func runnable() sort {
	return sort{"campaign or broadcast", []string{spec.KindCampaign, spec.KindBroadcast}}
}

func fillable() sort { return sort{"form", []string{spec.KindForm}} }

func reportable() sort {
	return sort{"campaign, broadcast or email", []string{spec.KindCampaign, spec.KindBroadcast, spec.KindEmail}}
}

// named runs f, in the tenant, for a document whose name the user gave. Where nothing was found of that name, the error says which may have been meant; where the
// document is there, it is none.
func (s *session) named(ctx context.Context, name string, of sort, none string, f func(ctx context.Context, tx *postgres.Tx) error) error {
	return s.inTenant(ctx, func(ctx context.Context, tx *postgres.Tx) error {
		err := f(ctx, tx)
		for _, missing := range []error{campaign.ErrNotFound, segment.ErrUnknown, report.ErrNoRun, compose.ErrUnknown, senderdomain.ErrUnknown, renderform.ErrUnknown} {
			if errors.Is(err, missing) {
				if other := unknown(ctx, tx, name, of); other != nil {
					return other
				}
				if none != "" {
					return errors.New(none)
				}
			}
		}
		return err
	})
}

// unknown is an error when no document in force has the name.
func unknown(ctx context.Context, tx *postgres.Tx, name string, of sort) error {
	rows, err := tx.Query(ctx, "SELECT name FROM entity WHERE kind = ANY ($1) AND current IS NOT NULL ORDER BY name", of.kinds)
	if err != nil {
		return fmt.Errorf("look for %s: %w", name, err)
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return fmt.Errorf("look for %s: %w", name, err)
	}
	if slices.Contains(names, name) {
		return nil
	}
	msg := fmt.Sprintf("there is no %s %q", of.what, name)
	switch near := spec.Nearest(name, names); {
	case near != "":
		msg += fmt.Sprintf(", did you mean %q?", near)
	case len(names) == 0:
		msg += ": apply its document first (onda apply)"
	case len(names) <= 12:
		msg += ": there are " + strings.Join(names, ", ")
	}
	return errors.New(msg)
}
