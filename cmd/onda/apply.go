package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/onda-run/onda/internal/apply"
	"github.com/onda-run/onda/internal/fieldindex"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/senderdomain"
	"github.com/onda-run/onda/internal/spec"
)

type applyCmd struct {
	File    string `short:"f" required:"" type:"existingdir" help:"Directory of documents." placeholder:"DIR"`
	Prune   bool   `help:"Take away what is in force and not in the directory."`
	Confirm int    `help:"How many documents --prune takes away: without it, nothing is applied where any would go, but in a database for development." default:"-1" placeholder:"N"`
}

// Help is shown by --help.
func (applyCmd) Help() string {
	return "Every problem of every document is listed, and then nothing is applied. Warnings are of what somebody should look at, and nothing is refused for them. " +
		"To apply again changes nothing. Emails in MJML need its compiler: ONDA_MJML says where it is, or else it is the mjml of the path.\n\n" +
		"Example:\n  onda --tenant acme apply -f examples/company\n  onda --tenant acme apply -f examples/company --prune --confirm 2"
}

// Run applies a directory.
func (c applyCmd) Run(ctx context.Context, s *session) error {
	if c.Confirm >= 0 && !c.Prune {
		return usageError{"--confirm is of --prune"}
	}
	var unverified, unindexed []string
	changes, err := s.apply(ctx, c.File, func(ctx context.Context, tx *postgres.Tx, set *spec.Set) (gone []spec.Ref, err error) {
		if c.Prune {
			if gone, err = c.prune(ctx, tx, set); err != nil {
				return nil, err
			}
		}
		if unverified, err = senderdomain.Unverified(ctx, tx); err != nil {
			return nil, err
		}
		unindexed, err = fieldindex.Missing(ctx, tx)
		return gone, err
	})
	if err != nil {
		return s.inUse(err, "nothing was applied")
	}
	if err := s.printChanges(changes, false); err != nil {
		return err
	}
	s.warn(unverified)
	if err := s.indexInDev(ctx, unindexed); err != nil {
		return err
	}
	return s.ring(ctx)
}

// indexInDev makes the indexes that are missing in the database of onda dev, where nobody else would; elsewhere it says so.
func (s *session) indexInDev(ctx context.Context, missing []string) error {
	if len(missing) == 0 || !s.fromDev() {
		s.warn(missing)
		return nil
	}
	a, err := s.admin(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = a.Close(ctx) }()
	_, said, err := fieldindex.Ensure(ctx, a, s.tenant)
	s.warn(said)
	return err
}

// prune takes away what is not in a set, where that is confirmed.
func (c applyCmd) prune(ctx context.Context, tx *postgres.Tx, set *spec.Set) ([]spec.Ref, error) {
	gone, err := apply.Beside(ctx, tx, set)
	if err != nil || len(gone) == 0 {
		return nil, err
	}
	development, err := inDevelopment(ctx, tx)
	if err != nil {
		return nil, err
	}
	if !confirmed(development, c.Confirm, len(gone)) {
		words := make([]string, len(gone))
		for i, r := range gone {
			words[i] = r.Kind + " " + r.Name
		}
		return nil, fmt.Errorf("nothing was applied: --prune would take away %s, not in %s: %s\nif that is right, say --confirm %d (onda diff --prune shows more)",
			count(len(gone), "document"), c.File, strings.Join(words, ", "), len(gone))
	}
	return gone, apply.TakeAway(ctx, tx, gone)
}

// inUse prints why documents cannot be taken away, where that is what an error says.
func (s *session) inUse(err error, nothing string) error {
	var inUse apply.InUse
	if !errors.As(err, &inUse) {
		return err
	}
	for line := range strings.Lines(inUse.Error() + "\n") {
		_, _ = fmt.Fprintln(s.stderr, wrap(strings.TrimSpace(line), "  "))
	}
	_, _ = fmt.Fprintln(s.stderr, nothing)
	return errQuiet
}

type deleteCmd struct {
	Kind string `arg:"" help:"What it is, such as Segment."`
	Name string `arg:"" help:"Its name."`
}

// Help is shown by --help.
func (deleteCmd) Help() string {
	return "Refused while another document refers to it, or it is a campaign that is under way; what does is listed. Its versions stay, so that what was done by them can be " +
		"explained, and so do values of a field, which can come back with its type alone. To apply its document again brings it back.\n\n" +
		"Example:\n  onda --tenant acme delete Segment nordic-readers"
}

// Run takes one document away.
func (c deleteCmd) Run(ctx context.Context, s *session) error {
	kind := ""
	for _, k := range spec.Kinds() {
		if strings.EqualFold(k, c.Kind) {
			kind = k
		}
	}
	if kind == "" {
		return usageError{fmt.Sprintf("there is no kind %q of document: it is one of %s", c.Kind, strings.Join(spec.Kinds(), ", "))}
	}
	err := s.inTenant(ctx, func(ctx context.Context, tx *postgres.Tx) error {
		err := apply.TakeAway(ctx, tx, []spec.Ref{{Kind: kind, Name: c.Name}})
		if errors.Is(err, apply.ErrUnknown) {
			if other := unknown(ctx, tx, c.Name, sort{strings.ToLower(kind), []string{kind}}); other != nil {
				return other
			}
		}
		return err
	})
	if err != nil {
		return s.inUse(err, "nothing was taken away")
	}
	if ok, err := s.data(apply.Change{Kind: kind, Name: c.Name, Action: apply.Remove}); ok {
		return errors.Join(err, s.ring(ctx))
	}
	s.print("- %s %s", kind, c.Name)
	return s.ring(ctx)
}

type diffCmd struct {
	File  string        `short:"f" required:"" type:"existingdir" help:"Directory of documents." placeholder:"DIR"`
	Prune bool          `help:"Show what apply --prune would take away too."`
	Limit time.Duration `default:"30s" help:"How long counting who joins and leaves segments may take in all; 0s counts nobody." placeholder:"30s"`
}

// Help is shown by --help.
func (diffCmd) Help() string {
	return "Changes nothing. Of segments it tells how many contacts would join and leave, also where what changes is another segment, or the zone, that they ask about." +
		"\n\nExample:\n  onda --tenant acme diff -f examples/company"
}

// Run shows what apply would do.
func (c diffCmd) Run(ctx context.Context, s *session) error {
	db, tenant, err := s.database()
	if err != nil {
		return err
	}
	var changes []apply.Change
	var slow []string
	set, err := apply.Read(ctx, db, tenant, os.DirFS(c.File), func(ctx context.Context, tx *postgres.Tx, set *spec.Set) (err error) {
		if len(set.Documents) == 0 {
			return noDocuments(c.File)
		}
		var gone []spec.Ref
		if c.Prune {
			if gone, err = apply.Beside(ctx, tx, set); err != nil {
				return err
			}
		}
		if changes, err = apply.Diff(ctx, tx, set, gone, c.Limit); err != nil || c.Limit == 0 {
			return err
		}
		slow, err = apply.Slow(ctx, tx, set, changes, min(c.Limit, apply.TryTime))
		return err
	})
	if err = s.problems(err, c.File, "applied"); err != nil {
		return err
	}
	s.warnings(set)
	s.warn(slow)
	return s.printChanges(changes, true)
}

type schemaCmd struct{}

// Help is shown by --help.
func (schemaCmd) Help() string {
	return "Example:\n  onda schema > onda.schema.json"
}

// Run prints the JSON Schema of the documents.
func (schemaCmd) Run(s *session) error {
	_, err := fmt.Fprintf(s.stdout, "%s\n", spec.JSONSchema())
	return err
}

// apply applies a directory, in one transaction with what then does, which may take documents away. What is wrong with the documents is printed, a line each, and so is what
// somebody should look at.
func (s *session) apply(ctx context.Context, dir string, then func(context.Context, *postgres.Tx, *spec.Set) (gone []spec.Ref, err error)) ([]apply.Change, error) {
	db, tenant, err := s.database()
	if err != nil {
		return nil, err
	}
	var gone []spec.Ref
	changes, set, err := apply.Directory(ctx, db, tenant, os.DirFS(dir), func(ctx context.Context, tx *postgres.Tx, set *spec.Set) (err error) {
		if len(set.Documents) == 0 {
			return noDocuments(dir)
		}
		if then != nil {
			gone, err = then(ctx, tx, set)
		}
		return err
	})
	if err = s.problems(err, dir, "applied"); err != nil {
		return nil, err
	}
	s.warnings(set)
	if err := db.InTenantSnapshot(ctx, tenant, func(ctx context.Context, tx *postgres.Tx) error {
		slow, err := apply.Slow(ctx, tx, set, changes, apply.TryTime)
		s.warn(slow)
		return err
	}); err != nil { // they are applied all the same
		s.warn([]string{fmt.Sprintf("whether segments can be computed was not tried: %s", s.inWords(err))})
	}
	for _, r := range gone {
		changes = append(changes, apply.Change{Kind: r.Kind, Name: r.Name, Action: apply.Remove})
	}
	return changes, nil
}

func noDocuments(dir string) error { return fmt.Errorf("%s: there is no .yaml file in it", dir) }

// warnings prints what somebody should look at in documents.
func (s *session) warnings(set *spec.Set) {
	for _, w := range set.Warnings {
		s.warn([]string{w.Error()})
	}
}

// problems prints what is wrong with documents, where that is what an error says; done is what was not done to them then.
func (s *session) problems(err error, from, done string) error {
	var problems spec.Problems
	if !errors.As(err, &problems) {
		return err
	}
	for _, p := range problems {
		_, _ = fmt.Fprintln(s.stderr, p)
	}
	_, _ = fmt.Fprintf(s.stderr, "%s in %s; nothing was %s\n", count(len(problems), "problem"), from, done)
	return errQuiet
}

func (s *session) printChanges(changes []apply.Change, would bool) error {
	if changes == nil {
		changes = []apply.Change{}
	}
	if ok, err := s.data(changes); ok {
		return err
	}
	n := map[apply.Action]int{}
	for _, c := range changes {
		n[c.Action]++
		switch c.Action {
		case apply.Keep:
			continue
		case apply.Create:
			s.print("+ %s %s", c.Kind, c.Name)
		case apply.Update:
			s.print("~ %s %s (version %d)", c.Kind, c.Name, c.Version)
		case apply.Affected:
			s.print("! %s %s (its document stays)", c.Kind, c.Name)
		case apply.Remove:
			s.print("- %s %s", c.Kind, c.Name)
		}
		if c.Remade {
			s.print("    put together anew: its layout changed, or this version of onda makes it otherwise")
		}
		for _, e := range c.Edits {
			s.print("    %s: %s -> %s", e.Path, apply.Text(e.Before, 60), apply.Text(e.After, 60))
		}
		if c.Members != nil {
			s.print("    %s", impact(*c.Members))
		}
	}
	verb := ""
	if would {
		verb = "would be "
	}
	more := ""
	if n[apply.Remove] > 0 {
		more = fmt.Sprintf(", %d %staken away", n[apply.Remove], verb)
	}
	if n[apply.Affected] > 0 {
		more += fmt.Sprintf(", %s affected", count(n[apply.Affected], "segment"))
	}
	s.print("%d %screated, %d %supdated%s, %d unchanged", n[apply.Create], verb, n[apply.Update], verb, more, n[apply.Keep])
	return nil
}

// impact says what would become of a segment's members.
func impact(m apply.Members) string {
	switch {
	case m.Unknown != "":
		return m.Unknown
	case m.Joins == 0 && m.Leaves == 0:
		return fmt.Sprintf("members: %s, and nobody would join or leave", comma(m.Now))
	default:
		return fmt.Sprintf("members: %s -> %s; %s would join, %s would leave", comma(m.Now), comma(m.Then), comma(m.Joins), comma(m.Leaves))
	}
}

// count is a number with its noun.
func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
