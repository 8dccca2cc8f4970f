package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/onda-run/onda/internal/contact"
	"github.com/onda-run/onda/internal/postgres"
)

type contactMergeCmd struct {
	Loser   string `arg:"" help:"The contact that is no more then: its address, its external id, or its number."`
	Winner  string `arg:"" help:"The contact that it becomes part of."`
	Prefer  string `enum:"winner,loser" default:"winner" help:"Whose fields count where both have one: winner or loser."`
	DryRun  bool   `help:"Only say what would become of them."`
	Confirm int    `default:"-1" placeholder:"N" help:"The number of rows that move, as this command prints it. Needed outside of development."`
}

// Help is shown by --help.
func (contactMergeCmd) Help() string {
	return "All that the one has becomes the other's: mails, consents, journeys, forms, what it did; tags and scores add up. Whoever is mailed is asked for nothing anew: what either " +
		"withdrew is withdrawn, and who complained stays so. The winner keeps its address, and the loser's leads to it from then on. A record is kept, by which unmerge gives all back.\n\n" +
		"Example:\n  onda --tenant acme contact merge old@example.com ada@example.com --dry-run\n  onda --tenant acme contact merge 17 ada@example.com --confirm 48"
}

// errRollBack undoes what was done to find out what would be.
var errRollBack = errors.New("it was a dry run")

// Run merges two contacts.
func (c contactMergeCmd) Run(ctx context.Context, s *session) error {
	var m contact.Merged
	err := s.atContacts(ctx, func(ctx context.Context, tx *postgres.Tx) error {
		var ids [2]int64
		for i, who := range []string{c.Loser, c.Winner} {
			var err error
			if ids[i], err = contact.FindRow(ctx, tx, who); err != nil {
				return noContact(err, who)
			}
		}
		development, err := inDevelopment(ctx, tx)
		if err != nil {
			return err
		}
		m, err = contact.Merge(ctx, tx, "campaign", ids[0], ids[1], contact.Prefer(c.Prefer), "onda contact merge")
		switch {
		case err != nil:
			return err
		case c.DryRun:
			return errRollBack
		case !confirmed(development, c.Confirm, m.Total):
			return errUnconfirmed
		}
		return nil
	})
	done := err == nil
	for more := done; more; {
		err := s.atContacts(ctx, func(ctx context.Context, tx *postgres.Tx) (err error) {
			more, err = contact.Gather(ctx, tx, "campaign", []int64{m.Loser})
			return err
		})
		if err != nil { // whoever reads of the merge goes on
			s.warn([]string{"some of what happened to the loser becomes the winner's later: " + err.Error()})
			break
		}
	}
	if err != nil && !errors.Is(err, errRollBack) && !errors.Is(err, errUnconfirmed) {
		return err
	}
	asJSON, printed := s.data(map[string]any{"merge": m, "merged": done})
	if printed != nil {
		if done { // what was done is done, whoever reads of it
			printed = errors.Join(printed, s.ring(ctx))
		}
		return printed
	}
	if !asJSON {
		c.print(s, m, done)
	}
	switch {
	case errors.Is(err, errUnconfirmed) && c.Confirm >= 0:
		return fmt.Errorf("nothing was merged: %s would move, not the %d of --confirm; if that is right, say --confirm %d", count(m.Total, "row"), c.Confirm, m.Total)
	case errors.Is(err, errUnconfirmed):
		return fmt.Errorf("nothing was merged: to have these %s moved, say --confirm %d", count(m.Total, "row"), m.Total)
	case errors.Is(err, errRollBack):
		return nil
	}
	return s.ring(ctx)
}

// print says what becomes, or became, of the two.
func (c contactMergeCmd) print(s *session, m contact.Merged, done bool) {
	is, would := "would become part of", "would get"
	if done {
		is, would = "is part of", "has got"
	}
	s.print("%s (contact %d) %s %s (contact %d), which %s:", c.Loser, m.Loser, is, c.Winner, m.Winner, would)
	w := tabwriter.NewWriter(s.stdout, 0, 8, 2, ' ', tabwriter.AlignRight)
	for _, table := range slices.SortedFunc(maps.Keys(m.Rows), func(a, b string) int { return m.Rows[b] - m.Rows[a] }) {
		_, _ = fmt.Fprintf(w, "  %d\t  %s\n", m.Rows[table], rowsText(table, m.Rows[table]))
	}
	_ = w.Flush()
	line := func(what string, items ...string) {
		if len(items) > 0 {
			s.print("  %-9s %s", what, strings.Join(items, ", "))
		}
	}
	line("fields", m.Fields...)
	line("tags", m.Tags...)
	var scores []string
	for _, group := range slices.Sorted(maps.Keys(m.Scores)) {
		scores = append(scores, fmt.Sprintf("%s %+d", group, m.Scores[group]))
	}
	line("scores", scores...)
	if m.Stage != "" {
		line("stage", m.Stage)
	}
	if m.Address {
		line("address", "the loser's, since it has none")
	}
	if m.ExternalID {
		line("id", "the loser's external id, since it has none")
	}
	if len(m.Withdrawn) > 0 {
		s.print("no more mail or tracking for it, since the loser withdrew: %s", strings.Join(m.Withdrawn, ", "))
	}
	if len(m.Suppressed) > 0 {
		s.print("its address is suppressed, as the loser's is: %s", strings.Join(m.Suppressed, ", "))
	}
	if m.Ended > 0 {
		s.print("%s of the loser end: both are in the same campaign", count(m.Ended, "journey"))
	}
	if m.Redirected > 0 {
		s.print("%s to the loser go to the winner", count(m.Redirected, "planned mail"))
	}
	if m.Repeated > 0 {
		s.print("%s will not be sent, since the other has or gets the same", count(m.Repeated, "planned mail"))
	}
	if n := len(m.Forwards); n > 0 {
		s.print("%s merged into the loser before lead to the winner", count(n, "contact"))
	}
	if done {
		s.print("onda contact unmerge %d gives it all back", m.Loser)
	}
}

// rowsText is what rows of a table are to people.
func rowsText(table string, n int) string {
	one, many := table, table+"s"
	switch table {
	case "delivery":
		one, many = "mail", "mails"
	case "hit":
		one, many = "open or click", "opens and clicks"
	case "fact":
		one, many = "thing that happened", "things that happened"
	case "consent":
		one, many = "entry of the consent ledger", "entries of the consent ledger"
	case "submission":
		one, many = "form sent in", "forms sent in"
	}
	if n == 1 {
		return one
	}
	return many
}

type contactUnmergeCmd struct {
	Loser string `arg:"" help:"The contact that was merged into another: its address, its external id, or its number."`
}

// Help is shown by --help.
func (contactUnmergeCmd) Help() string {
	return "Both are again what they were, by the record of the merge. What came since stays with the winner.\n\nExample:\n  onda --tenant acme contact unmerge old@example.com"
}

// Run undoes a merge.
func (c contactUnmergeCmd) Run(ctx context.Context, s *session) error {
	var u contact.Unmerged
	err := s.atContacts(ctx, func(ctx context.Context, tx *postgres.Tx) error {
		id, err := contact.FindRow(ctx, tx, c.Loser)
		if err != nil {
			return noContact(err, c.Loser)
		}
		u, err = contact.Unmerge(ctx, tx, "campaign", id, "onda contact unmerge")
		return err
	})
	if err != nil {
		return err
	}
	if ok, err := s.data(u); ok {
		return errors.Join(err, s.ring(ctx))
	}
	s.print("%s (contact %d) is a contact of its own again, with %s back from contact %d", c.Loser, u.Loser, count(u.Total, "row"), u.Winner)
	return s.ring(ctx)
}

// contactTries is how often a change of contacts is tried again that met others in a circle: functions take locks of the same rows, and one of two gives way.
const contactTries = 5

func (s *session) atContacts(ctx context.Context, f func(ctx context.Context, tx *postgres.Tx) error) error {
	for try := 1; ; try++ {
		err := s.inTenant(ctx, f)
		var pe *pgconn.PgError
		if try == contactTries || !errors.As(err, &pe) || pe.Code != "40P01" { // deadlock_detected
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Duration(try) * 100 * time.Millisecond):
		}
	}
}
