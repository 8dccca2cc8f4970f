package main

import (
	"context"
	"errors"
	"os"
	"syscall"

	"github.com/mattn/go-isatty"

	"github.com/onda-run/onda/internal/csvexport"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/segment"
	"github.com/onda-run/onda/internal/spec"
)

type exportContactsCmd struct {
	Segment string   `help:"Its members alone." placeholder:"NAME"`
	Field   []string `help:"These columns alone, in their order: names of fields, email, external_id, tags, score, stage, consent.TOPIC, email.typed, created." placeholder:"NAME,..."`
	Format  string   `help:"csv, or jsonl: a line of JSON each, as with --output json." enum:"csv,jsonl" default:"csv" placeholder:"csv"`
	Raw     bool     `help:"Write texts in CSV that a spreadsheet would compute as they are: for programs."`
}

// Help is shown by --help.
func (exportContactsCmd) Help() string {
	return "A row a contact, as it is when it is its turn; those who were erased, or merged into another, are not there. " +
		"As CSV, a text that a spreadsheet would compute (one that begins with = + - @, or goes on so behind a semicolon or in a new line) has a ' before that, which onda import takes away again." +
		"\n\nExample:\n  onda --tenant acme export contacts > people.csv\n  onda --tenant acme export contacts --segment nordic --field email,country"
}

// Run exports contacts.
func (c exportContactsCmd) Run(ctx context.Context, s *session) error {
	db, tenant, err := s.database()
	if err != nil {
		return err
	}
	total := int64(-1)
	switch {
	case c.Segment != "":
		err = s.named(ctx, c.Segment, sort{"segment", []string{spec.KindSegment}}, "", func(ctx context.Context, tx *postgres.Tx) error {
			n, err := segment.Count(ctx, tx, c.Segment)
			if total = n.Members; err == nil && !n.Current {
				s.warn([]string{c.Segment + " is being rebuilt: who joins or leaves by that may be missing or there"})
			}
			return err
		})
	default: // what Postgres believes is enough for a bar
		err = s.inTenant(ctx, func(ctx context.Context, tx *postgres.Tx) error {
			return tx.QueryRow(ctx, "SELECT CASE WHEN reltuples > 0 THEN reltuples ELSE -1 END::bigint FROM pg_class WHERE oid = 'contact'::regclass").Scan(&total)
		})
	}
	if err != nil {
		return err
	}
	opts := csvexport.Options{Segment: c.Segment, Columns: c.Field, JSON: s.json || c.Format == "jsonl", Raw: c.Raw}
	if f, ok := s.stdout.(*os.File); !ok || !isatty.IsTerminal(f.Fd()) { // else it would stand between the rows
		bar := s.bar(total, "exporting contacts")
		defer func() { _ = bar.Finish() }()
		opts.OnProgress = func(n int) { _ = bar.Add(n) }
	}
	err = csvexport.Export(ctx, db, tenant, s.stdout, opts)
	if errors.Is(err, syscall.EPIPE) { // whoever reads it has enough
		return errQuiet
	}
	return err
}
