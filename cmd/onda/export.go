package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/onda-run/onda/internal/csvexport"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/renderform"
)

type exportCmd struct {
	Contacts    exportContactsCmd    `cmd:"" help:"Write contacts, as CSV or as lines of JSON."`
	Submissions exportSubmissionsCmd `cmd:"" help:"Write what was sent in with a form, as CSV or as lines of JSON."`
}

type exportSubmissionsCmd struct {
	Form  string `arg:"" help:"The form's name."`
	Files string `help:"Write the files that were sent into this directory; what is there already stays." type:"path" placeholder:"DIR"`
}

// Help is shown by --help.
func (exportSubmissionsCmd) Help() string {
	return "A row a submission, the oldest first, with what was answered then. As CSV, a text that a spreadsheet would compute (one that begins with = + - @) has a ' before it; " +
		"--output json gives one object a line. Nothing of a file is run or changed; look at what strangers sent with care.\n\n" +
		"Example:\n  onda --tenant acme export submissions jobs --files cvs > jobs.csv"
}

// Run exports submissions.
func (c exportSubmissionsCmd) Run(ctx context.Context, s *session) error {
	var e *renderform.Export
	err := s.named(ctx, c.Form, fillable(), "", func(ctx context.Context, tx *postgres.Tx) (err error) {
		e, err = renderform.OpenExport(ctx, tx, c.Form)
		return err
	})
	if err != nil {
		return err
	}
	var dir *os.Root
	if c.Files != "" {
		if err := os.MkdirAll(c.Files, 0o700); err != nil {
			return fmt.Errorf("make the directory for files: %w", err)
		}
		if dir, err = os.OpenRoot(c.Files); err != nil {
			return fmt.Errorf("open the directory for files: %w", err)
		}
		defer func() { _ = dir.Close() }()
	}
	out := bufio.NewWriter(s.stdout)
	write, err := sentWriter(out, e.Inputs, s.json)
	if err != nil {
		return fmt.Errorf("write the export: %w", err)
	}
	bar := s.bar(-1, "exporting "+c.Form)
	defer func() { _ = bar.Finish() }()
	for after := int64(0); ; {
		var page []renderform.Sent
		err := s.inTenant(ctx, func(ctx context.Context, tx *postgres.Tx) (err error) {
			page, err = e.Page(ctx, tx, after)
			return err
		})
		if err != nil {
			return err
		}
		for _, sent := range page {
			if err := s.writeFiles(ctx, e, sent, dir); err != nil {
				return err
			}
			if err := write(sent); err != nil {
				return fmt.Errorf("write the export: %w", err)
			}
			after = sent.ID
			_ = bar.Add(1)
		}
		if err := out.Flush(); err != nil {
			return fmt.Errorf("write the export: %w", err)
		}
		if len(page) == 0 {
			return nil
		}
	}
}

// sentWriter writes submissions as lines of JSON, or as CSV with its header first.
func sentWriter(out *bufio.Writer, inputs []string, asJSON bool) (func(renderform.Sent) error, error) {
	if asJSON {
		enc := json.NewEncoder(out)
		enc.SetEscapeHTML(false)
		return func(sent renderform.Sent) error { return enc.Encode(sent) }, nil
	}
	header := []string{"id", "at", "state", "email", "lang", "confirmed_at"}
	for _, in := range inputs {
		if slices.Contains(header, in) { // a name of ours
			in = "input." + in
		}
		header = append(header, in)
	}
	w := csv.NewWriter(out)
	write := func(row []string) error {
		err := w.Write(row)
		w.Flush()
		return errors.Join(err, w.Error())
	}
	return func(sent renderform.Sent) error {
		row := []string{strconv.FormatInt(sent.ID, 10), sent.At.UTC().Format(time.RFC3339), sent.State, csvexport.Guard(sent.Email), sent.Lang, ""}
		if sent.ConfirmedAt != nil {
			row[5] = sent.ConfirmedAt.UTC().Format(time.RFC3339)
		}
		for _, in := range inputs {
			row = append(row, cell(sent.Answers[in]))
		}
		return write(row)
	}, write(header)
}

// cell is an answer as text.
func cell(answer any) string {
	switch v := answer.(type) {
	case nil:
		return ""
	case float64: // a negative one is to stay a number
		return strconv.FormatFloat(v, 'f', -1, 64)
	case []any:
		var all []string
		for _, one := range v {
			all = append(all, fmt.Sprint(one))
		}
		return csvexport.Guard(strings.Join(all, ","))
	case []renderform.SentFile:
		var names []string
		for _, f := range v {
			names = append(names, f.Shown())
		}
		return csvexport.Guard(strings.Join(names, "; "))
	}
	return csvexport.Guard(fmt.Sprint(answer))
}

// writeFiles writes the files of a submission, and notes in it where they are.
func (s *session) writeFiles(ctx context.Context, e *renderform.Export, sent renderform.Sent, dir *os.Root) error {
	var contents [][]byte
	for _, answer := range sent.Answers {
		files, ok := answer.([]renderform.SentFile)
		if !ok || dir == nil {
			continue
		}
		if contents == nil {
			err := s.inTenant(ctx, func(ctx context.Context, tx *postgres.Tx) (err error) {
				contents, err = e.Files(ctx, tx, sent.ID)
				return err
			})
			if err != nil {
				return err
			}
		}
		for i := range files {
			f := &files[i]
			if f.N > len(contents) || contents[f.N-1] == nil {
				continue // forgotten in this moment
			}
			f.Path = fmt.Sprintf("%d-%d-%s", sent.ID, f.N, f.Name)
			if err := writeNew(dir, f.Path, contents[f.N-1]); err != nil {
				return err
			}
		}
	}
	return nil
}

// writeNew writes a file, unless it is there already; one with something else in it is an error.
func writeNew(dir *os.Root, name string, content []byte) error {
	path := filepath.Join(dir.Name(), name)
	f, err := dir.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if errors.Is(err, fs.ErrExist) {
		there, err := dir.ReadFile(name)
		if err == nil && !bytes.Equal(there, content) {
			err = errors.New("there is another file of this name, and it is not written over: move it away, or name another directory")
		}
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		return nil
	}
	if err != nil {
		return fmt.Errorf("write a file: %w", err)
	}
	_, err = f.Write(content)
	if err = errors.Join(err, f.Close()); err != nil { // half of one would stand in the way of the next export
		return fmt.Errorf("write a file: %w", errors.Join(err, dir.Remove(name)))
	}
	return nil
}
