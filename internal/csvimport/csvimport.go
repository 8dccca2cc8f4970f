// Package csvimport brings contacts in from CSV files, with the consent that they gave.
//
// Invariants: a row is imported as a whole or is rejected with a reason, and rejected rows are written in a form that can be corrected and imported again; what was imported stays, chunk by
// chunk, and to import a file again changes nothing; memory grows by some ten bytes a row, for telling repeated ones.
package csvimport

import (
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/jackc/pgx/v5/pgconn"
	"golang.org/x/text/encoding/charmap"

	"github.com/onda-run/onda/internal/contact"
	"github.com/onda-run/onda/internal/csvexport"
	"github.com/onda-run/onda/internal/fieldvalue"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/spec"
)

// Options say how a file is read.
type Options struct {
	// Name is the file's, for the proof of consent.
	Name string
	// Mapping gives the field for a column whose header is another: header → field's name, or email, external_id, tags; an empty name leaves the column out.
	Mapping map[string]string
	// Consent are the topics, or tracking.email and tracking.web, that all of them agreed to; Proof tells how, and is kept in the ledger.
	Consent []string
	Proof   string
	// Tags are added to all of them.
	Tags []string
	// Rejects gets the rows that were not imported, with the header of the file and a column error; nil: they are only counted.
	Rejects io.Writer
	// OnProgress, if not nil, is called after each chunk with the number of rows so far.
	OnProgress func(rows int)
	// Cause names the command, for the facts; "import" when empty.
	Cause string
}

// Result is what became of a file's rows.
type Result struct {
	Rows      int `json:"rows"`
	Made      int `json:"made"`
	Updated   int `json:"updated"`
	Unchanged int `json:"unchanged"`
	Rejected  int `json:"rejected"`
	// Granted counts consents that were new; Withdrawn and Complained those that were not granted, since the contact has withdrawn, or complained: the contacts themselves were imported.
	Granted    int           `json:"granted"`
	Withdrawn  int           `json:"withdrawn"`
	Complained int           `json:"complained"`
	Took       time.Duration `json:"took"`
	// Problems are of the first rejected rows, at most 20.
	Problems []Problem `json:"problems,omitempty"`
}

// Problem is why a row was rejected.
type Problem struct {
	Row   int    `json:"row"` // as a spreadsheet counts, the header is row 1
	Error string `json:"error"`
}

const (
	chunkRows   = 2000
	maxProblems = 20
	errorColumn = "error"
)

// Import reads CSV (RFC 4180, UTF-8, separated by commas, semicolons or tabs) with a header whose columns are email, external_id, tags and names of fields. A contact is found by its
// address or external id, else made; an empty cell leaves a field as it is. Each chunk of 2,000 rows is a transaction.
//
// An error of the header or of the options comes before anything is imported. Of a later error (Postgres away, the file unreadable) the text says how far it came: what is in stays in, and
// the file can be imported again.
func Import(ctx context.Context, db *postgres.DB, tenant string, r io.Reader, opts Options) (Result, error) {
	began := time.Now()
	im := &importer{db: db, tenant: tenant, opts: opts, seen: map[uint64]int{}, seed: maphash.MakeSeed(), analyzeAt: chunkRows}
	if im.opts.Cause == "" {
		im.opts.Cause = "import"
	}
	err := im.run(ctx, r)
	im.res.Took = time.Since(began)
	return im.res, err
}

type importer struct {
	db     *postgres.DB
	tenant string
	opts   Options
	res    Result

	columns []column
	reader  *reader
	rejects *csv.Writer
	seen    map[uint64]int // hash of an address or external id → row
	seed    maphash.Seed

	analyzeAt int // how many made contacts

	rows   []contact.Row
	source []record
}

func (im *importer) run(ctx context.Context, r io.Reader) error {
	var err error
	if im.reader, err = newReader(r); err != nil {
		return err
	}
	header, err := im.reader.next()
	switch {
	case errors.Is(err, io.EOF):
		return errors.New("the file is empty: its first row must name the columns, such as email,first_name")
	case err != nil:
		return err
	case header.problem != "":
		return fmt.Errorf("row %d, which names the columns: %s", header.row, header.problem)
	}
	err = im.db.InTenant(ctx, im.tenant, func(ctx context.Context, tx *postgres.Tx) error {
		known, err := read(ctx, tx)
		if err != nil {
			return err
		}
		if err := known.consent(im.opts); err != nil {
			return err
		}
		im.columns, err = known.columns(header.cells, im.opts.Mapping)
		return err
	})
	if err != nil {
		return err
	}
	for {
		rec, err := im.reader.next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return errors.Join(im.flush(ctx), im.stopped(err))
		}
		im.res.Rows++
		row, problem := im.row(rec)
		if problem != "" {
			if err := im.reject(rec, problem); err != nil {
				return err
			}
			continue
		}
		im.rows, im.source = append(im.rows, row), append(im.source, rec)
		if len(im.rows) == chunkRows {
			if err := im.flush(ctx); err != nil {
				return err
			}
		}
	}
	if err := im.flush(ctx); err != nil {
		return err
	}
	return im.flushRejects()
}

// stopped says how far it came.
func (im *importer) stopped(err error) error {
	done := im.res.Made + im.res.Updated + im.res.Unchanged
	return errors.Join(fmt.Errorf("the import stopped when %d contacts were in: import the file again, what is in is left as it is: %w", done, err), im.flushRejects())
}

// row reads one record; problem says why it cannot be imported.
func (im *importer) row(rec record) (row contact.Row, problem string) {
	if rec.problem != "" {
		return row, rec.problem
	}
	if n := len(im.columns); len(rec.cells) != n {
		why := "a separator is missing, or a cell that has one in it is not in quotes"
		return row, fmt.Sprintf("the row has %d cells, the header has %d: %s", len(rec.cells), n, why)
	}
	row.AddTags = append(row.AddTags, im.opts.Tags...)
	for i, c := range im.columns {
		cell := rec.cells[i]
		switch {
		case c.skip:
			continue
		case !utf8.ValidString(cell):
			return row, fmt.Sprintf("column %s is not in UTF-8: this row was read as Windows-1252 (Latin-1), check the letters with accents; better save the whole file as UTF-8", c.header)
		}
		cell = strings.TrimSpace(csvexport.Unguard(cell))
		if cell == "" {
			continue
		}
		if err := im.cell(&row, c, cell); err != nil {
			return row, fmt.Sprintf("column %s: %v", c.header, err)
		}
	}
	if row.Email == "" && row.ExternalID == "" {
		return row, "neither an email nor an external_id is there: give one of them"
	}
	for what, id := range map[string]string{"address": row.Email, "external id": row.ExternalID} {
		if id == "" {
			continue
		}
		if first, twice := im.seen[im.hash(what, id)]; twice {
			return row, fmt.Sprintf("the %s is on row %d already: keep one of the two rows", what, first)
		}
	}
	if row.Email != "" {
		im.seen[im.hash("address", row.Email)] = rec.row
	}
	if row.ExternalID != "" {
		im.seen[im.hash("external id", row.ExternalID)] = rec.row
	}
	return row, ""
}

func (im *importer) hash(what, id string) uint64 { return maphash.String(im.seed, what+"\x00"+id) }

func (im *importer) cell(row *contact.Row, c column, cell string) error {
	switch c.name {
	case "email":
		address, err := contact.Normalise(cell)
		if err != nil {
			return fmt.Errorf("%w: correct it, or take the row out", err)
		}
		row.Email = address
	case "external_id":
		if len(cell) > 200 || strings.ContainsFunc(cell, unicode.IsControl) {
			return errors.New("must be at most 200 characters, without control characters")
		}
		row.ExternalID = cell
	case "tags":
		for _, t := range strings.FieldsFunc(cell, func(r rune) bool { return r == ',' || r == ';' }) {
			if t = strings.TrimSpace(t); t == "" {
				continue
			}
			if !validTag(t) {
				return fmt.Errorf("%q is not a tag: 1 to 64 characters, no comma", clip(t))
			}
			row.AddTags = append(row.AddTags, t)
		}
	default:
		v, err := fieldvalue.Parse(c.field, cell)
		if err != nil {
			return fmt.Errorf("%w: %q is not", err, clip(cell))
		}
		if row.Fields == nil {
			row.Fields = map[string]any{}
		}
		row.Fields[c.name] = v
	}
	return nil
}

func clip(s string) string {
	if utf8.RuneCountInString(s) <= 40 {
		return s
	}
	return string([]rune(s)[:40]) + "…"
}

// flush writes the chunk in one transaction, which is tried again when it met another that wrote the same contacts.
func (im *importer) flush(ctx context.Context) error {
	if len(im.rows) == 0 {
		return nil
	}
	var results []contact.RowResult
	var recorded []contact.Recorded
	for try := 1; ; try++ {
		err := im.db.InTenant(ctx, im.tenant, func(ctx context.Context, tx *postgres.Tx) (err error) {
			if err := tx.EnsurePartitions(ctx); err != nil {
				return err
			}
			if results, err = contact.Upsert(ctx, tx, "campaign", im.rows, im.opts.Cause); err != nil {
				return err
			}
			recorded, err = contact.Record(ctx, tx, "campaign", im.consents(results)...)
			return err
		})
		if err == nil {
			break
		}
		var pe *pgconn.PgError
		if try < 5 && errors.As(err, &pe) && (pe.Code == "40P01" || pe.Code == "40001" || pe.Code == "23505") {
			continue
		}
		return im.stopped(err)
	}
	for i, r := range results {
		switch {
		case errors.Is(r.Err, contact.ErrTwoContacts):
			if err := im.reject(im.source[i], "email and external_id belong to two different contacts: correct the one that is wrong, or leave one of both empty"); err != nil {
				return err
			}
		case r.Err != nil:
			if err := im.reject(im.source[i], r.Err.Error()); err != nil {
				return err
			}
		case r.Made:
			im.res.Made++
		case r.Changed:
			im.res.Updated++
		default:
			im.res.Unchanged++
		}
	}
	for _, r := range recorded {
		switch {
		case r.Refused == "complaint":
			im.res.Complained++
		case r.Refused != "":
			im.res.Withdrawn++
		case r.Changed:
			im.res.Granted++
		}
	}
	im.rows, im.source = im.rows[:0], im.source[:0]
	if im.opts.OnProgress != nil {
		im.opts.OnProgress(im.res.Rows)
	}
	if err := im.analyze(ctx); err != nil {
		return im.stopped(err)
	}
	return im.flushRejects()
}

func (im *importer) consents(results []contact.RowResult) []contact.Consent {
	var out []contact.Consent
	for i, r := range results {
		if r.Err != nil {
			continue
		}
		for _, purpose := range im.opts.Consent {
			out = append(out, contact.Consent{
				Contact: r.Contact, Purpose: purpose, State: contact.Granted, Basis: contact.BasisImport,
				Proof: map[string]any{"file": im.opts.Name, "row": im.source[i].row, "text": im.opts.Proof},
			})
		}
	}
	return out
}

// reject counts a row and writes it to the rejects: its cells under the file's header, the reason in the column error, and what it had too many cells behind that.
func (im *importer) reject(rec record, problem string) error {
	im.res.Rejected++
	if len(im.res.Problems) < maxProblems {
		im.res.Problems = append(im.res.Problems, Problem{rec.row, problem})
	}
	if im.opts.Rejects == nil {
		return nil
	}
	if im.rejects == nil {
		im.rejects = csv.NewWriter(im.opts.Rejects)
		im.rejects.Comma = rune(im.reader.comma)
		var header []string
		for _, c := range im.columns {
			if c.name != errorColumn {
				header = append(header, c.header)
			}
		}
		if err := im.rejects.Write(append(header, errorColumn)); err != nil {
			return fmt.Errorf("write rejected rows: %w", err)
		}
	}
	var row, surplus []string
	for i, c := range im.columns {
		switch {
		case c.name == errorColumn:
		case i < len(rec.cells):
			row = append(row, readable(rec.cells[i]))
		default:
			row = append(row, "")
		}
	}
	for i := len(im.columns); i < len(rec.cells); i++ {
		surplus = append(surplus, readable(rec.cells[i]))
	}
	if err := im.rejects.Write(append(append(row, problem), surplus...)); err != nil {
		return fmt.Errorf("write rejected rows: %w", err)
	}
	return nil
}

func (im *importer) flushRejects() error {
	if im.rejects == nil {
		return nil
	}
	im.rejects.Flush()
	if err := im.rejects.Error(); err != nil {
		return fmt.Errorf("write rejected rows: %w", err)
	}
	return nil
}

// readable gives a cell in UTF-8, of what is none as if it were Windows-1252.
func readable(cell string) string {
	if utf8.ValidString(cell) {
		return cell
	}
	s, err := charmap.Windows1252.NewDecoder().String(cell)
	if err != nil { // it takes every byte
		return strings.ToValidUTF8(cell, "\ufffd")
	}
	return s
}

// column is one of the file's.
type column struct {
	header string
	name   string      // of the field, or email, external_id, tags, error
	field  *spec.Field // nil for those
	skip   bool
}
