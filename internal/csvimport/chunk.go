package csvimport

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/onda-run/onda/internal/contact"
	"github.com/onda-run/onda/internal/csvexport"
	"github.com/onda-run/onda/internal/spec"
)

// column is one of the file's.
type column struct {
	header string
	name   string      // of the field, or email, external_id, tags, error
	field  *spec.Field // nil for those
	skip   bool
	topic  string // or a purpose of tracking, which its cells tell the consent to

	order   order // of its dates
	given   bool  // the order was
	decimal byte
	unsure  bool              // no number that was looked at told what a comma means
	begin   string            // what is before its value in JSON
	values  map[string][]byte // what cells were read as
}

// chunk is as many rows of a file as are stored in one transaction.
type chunk struct {
	rows    []contact.Row
	source  []source // of each of them
	said    [][]said // what each of them agreed to, or withdrew, by itself; nil where the file does not tell
	rejects []reject
	text    strings.Builder // what the rows' texts are parts of
	records int             // rows of the file, those that are rejected too
	read    int64           // how far in the file, in bytes
	err     error           // that ended it: io.EOF at the end of the file
	before  <-chan struct{} // closed when all chunks before it are in
	ahead   chan compared   // what is known of it, when it was compared before its turn; or nil
}

// said is what a row tells of a purpose.
type said struct {
	purpose string
	state   contact.State
}

// source is where a row came from.
type source struct {
	row  int
	text string
}

// reject is a row that was not imported.
type reject struct {
	source
	open    bool // a quote is
	problem string
}

// parser makes chunks of the file's rows.
type parser struct {
	reader  *reader
	columns []column
	tags    []string // of all
	seen    *seen
	counted *countingReader
	topics  bool // some columns tell of consent
	proof   bool // there is one of what they grant
	decoded bool // the file is in another encoding than UTF-8
	texts   bool // rows that are stored may be rejected yet, and so are kept as they stand in the file
	json    []byte
}

// countingReader counts what is read.
type countingReader struct {
	io.Reader
	n int64
}

// Read implements io.Reader.
func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.n += int64(n)
	return n, err
}

// next makes a chunk of so many rows, less at the end.
func (p *parser) next(rows, textBytes int) *chunk {
	c := &chunk{rows: make([]contact.Row, 0, rows), source: make([]source, 0, rows)}
	if p.topics {
		c.said = make([][]said, 0, rows)
	}
	c.text.Grow(textBytes)
	for c.records < rows {
		rec, err := p.reader.next()
		if err != nil {
			c.err = err
			break
		}
		c.records++
		row, problem := p.row(rec, &c.text)
		if problem != "" {
			c.rejects = append(c.rejects, reject{source{rec.row, string(rec.text)}, rec.problem != "", problem})
			continue
		}
		from := source{row: rec.row}
		if p.texts {
			from.text = keep(&c.text, rec.text)
		}
		c.rows, c.source = append(c.rows, row), append(c.source, from)
		if p.topics {
			c.said = append(c.said, p.said(rec))
		}
	}
	c.read = p.counted.n
	return c
}

// keep adds a text to those that are kept, and gives it from there.
func keep(in *strings.Builder, b []byte) string {
	from := in.Len()
	_, _ = in.Write(b) // never fails
	return in.String()[from:]
}

// row reads one record; problem says why it cannot be imported.
func (p *parser) row(rec record, text *strings.Builder) (row contact.Row, problem string) {
	if rec.problem != "" {
		return row, rec.problem
	}
	if n := len(p.columns); len(rec.cells) != n {
		why := "a separator is missing, or a cell that has one in it is not in quotes"
		return row, fmt.Sprintf("the row has %d cells, the header has %d: %s", len(rec.cells), n, why)
	}
	valid := utf8.Valid(rec.text)
	row.AddTags = p.tags
	p.json = append(p.json[:0], '{')
	for i := range p.columns {
		c := &p.columns[i]
		if c.skip {
			continue
		}
		cell := rec.cells[i]
		if !valid && !utf8.Valid(cell) {
			return row, fmt.Sprintf("column %s is not in UTF-8: this row was read as Windows-1252 (Latin-1), check the letters with accents; if all of the file is, import it with --encoding windows-1252", c.header)
		}
		if p.decoded && bytes.Contains(cell, []byte(string(utf8.RuneError))) {
			return row, fmt.Sprintf("column %s has bytes that are no letters in %s: correct it, or say with --encoding what the file is written in", c.header, p.reader.dialect.Encoding)
		}
		cell = bytes.TrimSpace(csvexport.Unguard(cell))
		if len(cell) == 0 {
			continue
		}
		if err := p.cell(&row, c, cell, text); err != nil {
			return row, fmt.Sprintf("column %s: %v", c.header, err)
		}
	}
	if row.Email == "" && row.ExternalID == "" {
		return row, "neither an email nor an external_id is there: give one of them"
	}
	if row.Typed != "" {
		if typed, err := contact.Normalise(row.Typed); err != nil || typed != row.Email {
			return row, fmt.Sprintf("column %s is another address than email: correct it, or leave it empty", typedColumn)
		}
		if row.Typed == row.Email {
			row.Typed = ""
		}
	}
	var address, id uint64
	for _, identity := range []struct {
		kind byte
		what string
		id   string
		hash *uint64
	}{{'a', "address", row.Email, &address}, {'i', "external id", row.ExternalID, &id}} {
		if identity.id == "" {
			continue
		}
		*identity.hash = p.seen.hash(identity.kind, identity.id)
		if first, twice := p.seen.find(*identity.hash); twice {
			at := fmt.Sprintf("on row %d", first)
			if first == 0 {
				at = "further up"
			}
			return row, fmt.Sprintf("the %s is %s already: keep one of the two rows", identity.what, at)
		}
	}
	if row.Email != "" {
		p.seen.add(address, rec.row)
	}
	if row.ExternalID != "" {
		p.seen.add(id, rec.row)
	}
	row.JSON = keep(text, append(p.json, '}'))
	return row, ""
}

func (p *parser) cell(row *contact.Row, c *column, cell []byte, text *strings.Builder) (err error) {
	switch {
	case c.field != nil:
		before := len(p.json)
		if before > 1 {
			p.json = append(p.json, ',')
		}
		p.json = append(p.json, c.begin...)
		begin := len(p.json)
		if p.json, err = c.appendValue(p.json, cell); err != nil {
			return fmt.Errorf("%w: %q is not", err, clip(string(cell)))
		}
		if string(p.json[begin:]) == "null" { // commas alone are no options: as an empty cell, it leaves the field as it is
			p.json = p.json[:before]
		}
	case c.name == "email":
		typed := keep(text, cell)
		if row.Email, err = contact.Normalise(typed); err != nil {
			return fmt.Errorf("%w: correct it, or take the row out", err)
		}
		if typed != row.Email && row.Typed == "" {
			row.Typed = typed
		}
	case c.name == typedColumn:
		row.Typed = keep(text, cell)
	case c.topic != "":
		switch contact.State(cell) {
		case contact.Granted, contact.Pending, contact.Withdrawn:
		default:
			return fmt.Errorf("%q is no consent: it is granted, pending or withdrawn", clip(string(cell)))
		}
	case c.name == "external_id":
		if len(cell) > 200 || bytes.ContainsFunc(cell, unicode.IsControl) {
			return errors.New("must be at most 200 characters, without control characters")
		}
		row.ExternalID = keep(text, cell)
	case c.name == "tags":
		tags := slices.Clone(p.tags)
		for _, t := range strings.FieldsFunc(string(cell), func(r rune) bool { return r == ',' || r == ';' }) {
			if t = strings.TrimSpace(t); t == "" {
				continue
			}
			if !validTag(t) {
				return fmt.Errorf("%q is not a tag: 1 to 64 characters, no comma", clip(t))
			}
			tags = append(tags, t)
		}
		slices.Sort(tags)
		row.AddTags = slices.Compact(tags)
	}
	return nil
}

// said is what a row's cells say that the contact agreed to, where there is a proof of that, and what it withdrew, which needs none: else it would have what is done with those who never said anything,
// and could be granted it by a later file. Who is asked, and has not answered, is not asked again.
func (p *parser) said(rec record) (out []said) {
	for i := range p.columns {
		c := &p.columns[i]
		if c.topic == "" {
			continue
		}
		if state := contact.State(bytes.TrimSpace(rec.cells[i])); state == contact.Withdrawn || state == contact.Granted && p.proof {
			out = append(out, said{c.topic, state})
		}
	}
	return out
}

func clip(s string) string {
	if utf8.RuneCountInString(s) <= 40 {
		return s
	}
	return string([]rune(s)[:40]) + "…"
}
