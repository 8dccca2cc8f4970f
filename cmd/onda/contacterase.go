package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"text/tabwriter"
	"time"

	"github.com/onda-run/onda/internal/contact"
	"github.com/onda-run/onda/internal/postgres"
)

type contactEraseCmd struct {
	Who     string `arg:"" help:"The person: its address, its external id, or its contact's number."`
	Confirm bool   `help:"Do it. It cannot be undone."`
}

// Help is shown by --help.
func (contactEraseCmd) Help() string {
	return "What is stored of the person is deleted, or emptied where counts need the row, in every table; with it what was merged into it. The address is kept as a hash that is never mailed, " +
		"whoever imports it again. The receipt that is printed names nobody, and is printed again when the person is erased once more. A command that was interrupted goes on when it is run again.\n\n" +
		"Example:\n  onda --tenant acme contact erase ada@example.com\n  onda --tenant acme contact erase nl-1001 --confirm -o json > receipt.json"
}

// Run erases a person.
func (c contactEraseCmd) Run(ctx context.Context, s *session) error {
	db, tenant, err := s.database()
	if err != nil {
		return err
	}
	var id, rows int64
	var r contact.Receipt
	err = db.InTenant(ctx, tenant, func(ctx context.Context, tx *postgres.Tx) (err error) {
		if id, err = findContact(ctx, tx, c.Who); err != nil {
			erased, gone := contact.FindErased(ctx, tx, c.Who)
			if gone != nil {
				return err
			}
			id = erased
		}
		r, err = contact.ToErase(ctx, tx, id)
		return err
	})
	if err != nil {
		return err
	}
	for _, e := range r.Rows {
		rows += e.Rows
	}
	erased := r.Before
	if c.Confirm && !erased {
		bar := s.bar(rows, "erasing")
		r, err = contact.Erase(ctx, db, tenant, "campaign", id, func(n int64) { _ = bar.Add64(n) })
		_ = bar.Finish()
		if err != nil {
			_, _ = fmt.Fprintln(s.stderr, "it is not over: run the command again, and it goes on where it was")
			return err
		}
		erased = true
		if err := s.ring(ctx); err != nil {
			return err
		}
	}
	asJSON, err := s.data(struct {
		Erased bool `json:"erased"`
		contact.Receipt
	}{erased, r})
	if err != nil {
		return err
	}
	if !asJSON {
		if err := s.receipt(r, erased); err != nil {
			return err
		}
	}
	if !erased {
		return errors.New("nothing was erased: to erase it, say --confirm; it cannot be undone")
	}
	return nil
}

// receipt prints what was erased, or would be.
func (s *session) receipt(r contact.Receipt, erased bool) error {
	what := count(int(r.Contacts), "contact")
	if r.Contacts > 1 {
		what += ", which were merged"
	}
	switch {
	case r.Before:
		s.print("%s: erased before, at %s", what, r.At.UTC().Format(time.DateTime))
	case erased:
		s.print("%s: erased at %s", what, r.At.UTC().Format(time.DateTime))
	default:
		s.print("%s would be erased", what)
	}
	w := tabwriter.NewWriter(s.stdout, 0, 8, 2, ' ', 0)
	for _, e := range r.Rows {
		became := "deleted"
		if e.Stays != "" {
			became = "emptied; what stays is " + e.Stays
		}
		_, _ = fmt.Fprintf(w, "  %s\t%d\t%s\n", e.Name, e.Rows, became)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, d := range r.Edit {
		s.print("%s names it: take the address out of the document, and apply it", d)
	}
	s.print("receipt of contact %s", r.Contact)
	return nil
}

type contactExportCmd struct {
	Who        string `arg:"" help:"The person: its address, its external id, or its contact's number."`
	OutputFile string `help:"Write it to this file, which must not be there yet, and print the receipt." type:"path" placeholder:"FILE"`
}

// Help is shown by --help.
func (contactExportCmd) Help() string {
	return "One object: the contact, and a list of rows of each kind, of every table, with those of contacts that were merged into it, and what failed or waits of it. All of it is of one moment. " +
		"The receipt has counts and the file's SHA-256; without --output-file it goes to standard error.\n\n" +
		"Example:\n  onda --tenant acme contact export ada@example.com --output-file ada.json\n  onda --tenant acme contact export nl-1001 | jq .consents"
}

// exported is the receipt of an export. It names nobody.
type exported struct {
	At     time.Time       `json:"at"`
	Bytes  int64           `json:"bytes"`
	SHA256 string          `json:"sha256"`
	Rows   []contact.Tally `json:"rows"`
}

// Run writes what is stored of a person.
func (c contactExportCmd) Run(ctx context.Context, s *session) error {
	db, tenant, err := s.database()
	if err != nil {
		return err
	}
	to, receipt := s.stdout, s.stderr
	if c.OutputFile != "" {
		f, err := os.OpenFile(c.OutputFile, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o600)
		if errors.Is(err, os.ErrExist) {
			return fmt.Errorf("--output-file %s: there is a file of this name, and it is not written over: name another, or move it away", c.OutputFile)
		}
		if err != nil {
			return err
		}
		written := false
		defer func() {
			if _ = f.Close(); !written { // half of it is nothing to give to anybody
				_ = os.Remove(c.OutputFile)
			}
		}()
		e, err := c.write(ctx, db, tenant, f)
		if err == nil {
			err = f.Close()
		}
		if written = err == nil; !written {
			return err
		}
		return e.print(s, s.stdout)
	}
	e, err := c.write(ctx, db, tenant, to)
	if err != nil {
		return err
	}
	return e.print(s, receipt)
}

// write writes the export.
func (c contactExportCmd) write(ctx context.Context, db *postgres.DB, tenant string, to io.Writer) (e exported, err error) {
	sum := sha256.New()
	out := bufio.NewWriterSize(io.MultiWriter(to, sum, (*counter)(&e.Bytes)), 64<<10)
	err = db.InTenantSnapshot(ctx, tenant, func(ctx context.Context, tx *postgres.Tx) error {
		id, err := findContact(ctx, tx, c.Who)
		if err != nil {
			return err
		}
		e.At = tx.Now()
		e.Rows, err = contact.Export(ctx, tx, id, out)
		return err
	})
	if errors.Is(err, contact.ErrGone) {
		return e, fmt.Errorf("%s was erased: nothing is stored", c.Who)
	}
	if err == nil {
		err = out.Flush()
	}
	if err != nil {
		return e, fmt.Errorf("write the export: %w", err)
	}
	e.SHA256 = hex.EncodeToString(sum.Sum(nil))
	return e, nil
}

// counter counts bytes.
type counter int64

// Write counts.
func (c *counter) Write(b []byte) (int, error) {
	*c += counter(len(b))
	return len(b), nil
}

// print writes the receipt.
func (e exported) print(s *session, to io.Writer) error {
	if s.json {
		enc := json.NewEncoder(to)
		enc.SetIndent("", "  ")
		return enc.Encode(e)
	}
	w := tabwriter.NewWriter(to, 0, 8, 2, ' ', 0)
	_, _ = fmt.Fprintf(w, "all that was stored at %s:\n", e.At.UTC().Format(time.DateTime))
	for _, t := range e.Rows {
		if t.Rows > 0 {
			_, _ = fmt.Fprintf(w, "  %s\t%d\n", t.Name, t.Rows)
		}
	}
	_, _ = fmt.Fprintf(w, "%d bytes, SHA-256 %s\n", e.Bytes, e.SHA256)
	return w.Flush()
}
