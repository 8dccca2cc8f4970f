package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/onda-run/onda/internal/apply"
	"github.com/onda-run/onda/internal/fieldindex"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/senderdomain"
	"github.com/onda-run/onda/internal/spec"
)

type applyCmd struct {
	File string `short:"f" required:"" type:"existingdir" help:"Directory of documents." placeholder:"DIR"`
}

// Help is shown by --help.
func (applyCmd) Help() string {
	return "Every problem of every document is listed, and then nothing is applied. Warnings are of what somebody should look at, and nothing is refused for them. " +
		"To apply again changes nothing. Emails in MJML need its compiler: ONDA_MJML says where it is, or else it is the mjml of the path.\n\nExample:\n  onda --tenant acme apply -f examples/company"
}

// Run applies a directory.
func (c applyCmd) Run(ctx context.Context, s *session) error {
	var unverified, unindexed []string
	changes, err := s.documents(ctx, c.File, func(ctx context.Context, tx *postgres.Tx, set *spec.Set) (changes []apply.Change, err error) {
		if changes, err = apply.Apply(ctx, tx, set); err != nil {
			return nil, err
		}
		if unverified, err = senderdomain.Unverified(ctx, tx); err != nil {
			return nil, err
		}
		unindexed, err = fieldindex.Missing(ctx, tx)
		return changes, err
	})
	if err != nil {
		return err
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

type diffCmd struct {
	File string `short:"f" required:"" type:"existingdir" help:"Directory of documents." placeholder:"DIR"`
}

// Help is shown by --help.
func (diffCmd) Help() string {
	return "Changes nothing.\n\nExample:\n  onda --tenant acme diff -f examples/company"
}

// Run shows what apply would do.
func (c diffCmd) Run(ctx context.Context, s *session) error {
	changes, err := s.documents(ctx, c.File, apply.Diff)
	if err != nil {
		return err
	}
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

// documents loads a directory and does one thing with it, in one transaction. What is wrong with the documents is printed, a line each, and so is what somebody
// should look at.
func (s *session) documents(ctx context.Context, dir string, do func(context.Context, *postgres.Tx, *spec.Set) ([]apply.Change, error)) (changes []apply.Change, err error) {
	var set *spec.Set
	err = s.inTenant(ctx, func(ctx context.Context, tx *postgres.Tx) (err error) {
		set, err = apply.Load(ctx, tx, os.DirFS(dir))
		if err != nil {
			return err
		}
		if len(set.Documents) == 0 {
			return fmt.Errorf("%s: there is no .yaml file in it", dir)
		}
		changes, err = do(ctx, tx, set)
		return err
	})
	if err = s.problems(err, dir, "applied"); err == nil {
		warnings := make([]string, len(set.Warnings))
		for i, w := range set.Warnings {
			warnings[i] = w.Error()
		}
		s.warn(warnings)
	}
	return changes, err
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
		}
		if c.Remade {
			s.print("    put together anew: its layout changed, or this version of onda makes it otherwise")
		}
		for _, e := range c.Edits {
			s.print("    %s: %s -> %s", e.Path, apply.Text(e.Before, 60), apply.Text(e.After, 60))
		}
	}
	verb := ""
	if would {
		verb = "would be "
	}
	s.print("%d %screated, %d %supdated, %d unchanged", n[apply.Create], verb, n[apply.Update], verb, n[apply.Keep])
	return nil
}

// count is a number with its noun.
func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
