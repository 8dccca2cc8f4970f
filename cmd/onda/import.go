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
	Rejects string   `help:"Where rows that cannot be imported go, to be corrected and imported again. FILE.rejects.csv by default, and never over a file that is there." type:"path" placeholder:"FILE"`
}

// Help is shown by --help.
func (importCmd) Help() string {
	return "Columns are the names of fields, and email, external_id and tags. To import a file again changes nothing. " +
		"Rows that cannot be imported are written, with the reason, to a file that can be corrected and imported again.\n\nExample:\n  onda --tenant acme import people.csv --tag fair\n  onda --tenant acme import a.csv --consent newsletter --proof 'fair, 12 May'"
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
	rejects := &rejectsFile{path: c.Rejects}
	if c.File != "-" {
		f, err := os.Open(c.File)
		if err != nil {
			return err
		}
		defer func() { _ = f.Close() }()
		if info, err := f.Stat(); err == nil {
			size = info.Size()
		}
		in, name = f, filepath.Base(c.File)
	}
	if rejects.path == "" {
		if rejects.path, err = rejectsOf(c.File); err != nil {
			return err
		}
	} else if _, err := os.Stat(rejects.path); err == nil { // somebody may have corrected rows in it
		return fmt.Errorf("--rejects %s: there is a file of this name, and it is not written over: name another, or move it away", rejects.path)
	}
	bar := s.bar(size, "importing "+name)
	counted := io.TeeReader(in, bar)
	res, err := csvimport.Import(ctx, db, tenant, counted, csvimport.Options{
		Name: name, Consent: c.Consent, Proof: c.Proof, Tags: c.Tag, Rejects: rejects,
	})
	_ = bar.Finish()
	if cerr := rejects.close(); cerr != nil {
		return errors.Join(err, cerr)
	}
	if err != nil {
		if rejects.f != nil {
			s.print("rows rejected so far are in %s", rejects.path)
		}
		return err
	}
	out := struct {
		csvimport.Result
		Rejects string `json:"rejects,omitempty"` // the file of rejected rows
	}{Result: res}
	if rejects.f != nil {
		out.Rejects = rejects.path
	}
	if ok, err := s.data(out); ok {
		return errors.Join(err, s.ring(ctx))
	}
	s.print("%s: %d new, %d updated, %d unchanged, %d rejected (%.1f s)", count(res.Rows, "row"), res.Made, res.Updated, res.Unchanged, res.Rejected, res.Took.Seconds())
	if res.Granted > 0 {
		s.print("%s new", count(res.Granted, "consent"))
	}
	if n := res.Withdrawn + res.Complained; n > 0 {
		s.print("%s not granted anew: they had withdrawn (%d) or complained (%d)", count(n, "consent"), res.Withdrawn, res.Complained)
	}
	for _, p := range res.Problems {
		_, _ = fmt.Fprintf(s.stderr, "%s: row %d: %s\n", name, p.Row, p.Error)
	}
	if more := res.Rejected - len(res.Problems); more > 0 {
		_, _ = fmt.Fprintf(s.stderr, "%s: and %s more\n", name, count(more, "rejected row"))
	}
	if res.Rejected > 0 {
		s.print("the rejected rows are in %s, each with its reason; correct them there and import that file", rejects.path)
	}
	return s.ring(ctx)
}

// rejectsOf is where the rejected rows of a file go: beside it, and never over rows that somebody may be correcting.
func rejectsOf(file string) (string, error) {
	base := "rejects"
	if file != "-" {
		base = strings.TrimSuffix(file, ".csv") + ".rejects"
	}
	for n := 1; n < 1000; n++ {
		path := base + ".csv"
		if n > 1 {
			path = fmt.Sprintf("%s-%d.csv", base, n)
		}
		if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
			return path, nil
		} else if err != nil {
			return "", err
		}
	}
	return "", fmt.Errorf("there are 1000 files such as %s.csv: move them away, or name another with --rejects", base)
}

// rejectsFile is made when the first row is rejected.
type rejectsFile struct {
	path string
	f    *os.File
}

// Write appends to the file.
func (r *rejectsFile) Write(b []byte) (int, error) {
	if r.f == nil {
		f, err := os.OpenFile(r.path, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o600)
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
