package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/onda-run/onda/internal/csvimport"
)

type importCmd struct {
	File    string   `arg:"" help:"CSV file with a header; - for standard input."`
	Consent []string `help:"A topic, or tracking.email, that all of them agreed to. May be repeated." placeholder:"PURPOSE"`
	Proof   string   `help:"How they agreed: kept in the consent ledger. Needed with --consent." placeholder:"TEXT"`
	Tag     []string `help:"A tag for all of them. May be repeated."`
	Rejects string   `help:"Where rows that cannot be imported go, to be corrected and imported again. FILE.rejects.csv by default." type:"path" placeholder:"FILE"`
}

// Help is shown by --help.
func (importCmd) Help() string {
	return "Columns are the names of fields, and email, external_id and tags. To import a file again changes nothing. Rows that cannot be imported are written, with the reason, to\n" +
		"a file that can be corrected and imported again.\n\nExample:\n  onda --tenant acme import people.csv --consent newsletter --proof 'sign-up sheet of the fair, 12 May'"
}

// Run imports a file.
func (c importCmd) Run(ctx context.Context, s *session) error {
	if len(c.Consent) > 0 && strings.TrimSpace(c.Proof) == "" {
		return usageError{"--consent needs --proof: say how they agreed"}
	}
	db, tenant, err := s.database()
	if err != nil {
		return err
	}
	in, size, name := s.stdin, int64(-1), "standard input"
	if c.File != "-" {
		f, err := os.Open(c.File)
		if err != nil {
			return err
		}
		defer f.Close()
		if info, err := f.Stat(); err == nil {
			size = info.Size()
		}
		in, name = f, filepath.Base(c.File)
	}
	rejects := &rejectsFile{path: c.Rejects}
	if rejects.path == "" {
		rejects.path = strings.TrimSuffix(c.File, ".csv") + ".rejects.csv"
		if c.File == "-" {
			rejects.path = "rejects.csv"
		}
	}
	bar := s.bar(size, "importing "+name)
	counted := io.TeeReader(in, bar)
	res, err := csvimport.Import(ctx, db, tenant, counted, csvimport.Options{
		Name: name, Consent: c.Consent, Proof: c.Proof, Tags: c.Tag, Rejects: rejects,
	})
	_ = bar.Finish()
	if err := errors.Join(err, rejects.close()); err != nil {
		return err
	}
	if ok, err := s.data(res); ok {
		return errors.Join(err, s.ring(ctx))
	}
	s.print("%d rows: %d new, %d updated, %d unchanged, %d rejected (%.1f s)", res.Rows, res.Made, res.Updated, res.Unchanged, res.Rejected, res.Took.Seconds())
	if res.Rejected > 0 {
		s.print("the rejected rows are in %s, each with its reason; correct them there and import that file", rejects.path)
	}
	return s.ring(ctx)
}

// rejectsFile is made when the first row is rejected.
type rejectsFile struct {
	path string
	f    *os.File
}

// Write appends to the file.
func (r *rejectsFile) Write(b []byte) (int, error) {
	if r.f == nil {
		f, err := os.Create(r.path)
		if err != nil {
			return 0, fmt.Errorf("make the file of rejected rows: %w", err)
		}
		r.f = f
	}
	return r.f.Write(b)
}

func (r *rejectsFile) close() error {
	if r.f == nil {
		return nil
	}
	return r.f.Close()
}
