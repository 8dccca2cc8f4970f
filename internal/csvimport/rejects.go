package csvimport

import (
	"bytes"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"unicode/utf8"

	"golang.org/x/text/encoding/charmap"

	"github.com/onda-run/onda/internal/csvexport"
)

// Rejects is a file of rejected rows, which is made with the first of them.
type Rejects struct {
	path string
	f    *os.File
}

// NewRejects gives one that will be at a path.
func NewRejects(path string) *Rejects { return &Rejects{path: path} }

// Path is where the file is; empty while there is none.
func (r *Rejects) Path() string {
	if r.f == nil {
		return ""
	}
	return r.path
}

// begin finds out that nothing would be written over: somebody may have corrected rows in it.
func (r *Rejects) begin() error {
	if _, err := os.Stat(r.path); err == nil {
		return fmt.Errorf("--rejects %s: there is a file of this name, and it is not written over: name another, or move it away", r.path)
	}
	return nil
}

// resume goes on with the file of an import that was interrupted, of which size bytes count.
func (r *Rejects) resume(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if errors.Is(err, os.ErrNotExist) && size == 0 { // no row was rejected yet
		return nil
	}
	if err != nil {
		return fmt.Errorf("open the file of rows rejected so far: %w", err)
	}
	r.path, r.f = path, f
	return r.cut(size)
}

// cut leaves the first bytes of the file.
func (r *Rejects) cut(size int64) error {
	if r.f == nil {
		return nil
	}
	info, err := r.f.Stat()
	if err == nil && info.Size() < size {
		err = errors.New("it was changed since")
	}
	if err == nil {
		err = r.f.Truncate(size)
	}
	if err == nil {
		_, err = r.f.Seek(size, io.SeekStart)
	}
	if err != nil {
		return fmt.Errorf("go on with the file of rejected rows, %s: %w", r.path, err)
	}
	return nil
}

// Write appends to the file.
func (r *Rejects) Write(b []byte) (int, error) {
	if r.f == nil {
		f, err := os.OpenFile(r.path, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o600)
		if err != nil {
			return 0, fmt.Errorf("make the file of rejected rows: %w", err)
		}
		r.f = f
	}
	return r.f.Write(b)
}

// Close closes the file, if there is one.
func (r *Rejects) Close() error {
	if r.f == nil {
		return nil
	}
	return r.f.Close()
}

// rejected is the text of a chunk's rejected rows, in the order of the file: the cells of each under the file's header, the reason in the column error, and what it had too many
// cells behind that. It can be imported, and a spreadsheet takes none of its cells for a formula.
func (im *importer) rejected(list []reject, header bool) ([]byte, error) {
	slices.SortFunc(list, func(a, b reject) int { return a.row - b.row })
	var out bytes.Buffer
	w := csv.NewWriter(&out)
	w.Comma = rune(im.dialect.comma)
	if header {
		var names []string
		for _, c := range im.columns {
			if c.name != errorColumn {
				names = append(names, csvexport.Guard(c.header))
			}
		}
		if err := w.Write(append(names, errorColumn)); err != nil {
			return nil, fmt.Errorf("write rejected rows: %w", err)
		}
	}
	r := &reader{dialect: im.dialect}
	for _, rejected := range list {
		cells, _, _ := r.split([]byte(rejected.text))
		if rejected.open {
			cells = r.plain([]byte(rejected.text))
		}
		var row, surplus []string
		for i, c := range im.columns {
			switch {
			case c.name == errorColumn:
			case i < len(cells):
				row = append(row, guarded(cells[i]))
			default:
				row = append(row, "")
			}
		}
		for i := len(im.columns); i < len(cells); i++ {
			surplus = append(surplus, guarded(cells[i]))
		}
		if err := w.Write(append(append(row, rejected.problem), surplus...)); err != nil {
			return nil, fmt.Errorf("write rejected rows: %w", err)
		}
	}
	w.Flush()
	return out.Bytes(), nil
}

// guarded is a cell that an import reads as it read this one.
func guarded(cell []byte) string { return csvexport.Guard(csvexport.Unguard(readable(cell))) }

// readable gives a cell in UTF-8, of what is none as if it were Windows-1252.
func readable(cell []byte) string {
	if utf8.Valid(cell) {
		return string(cell)
	}
	s, err := charmap.Windows1252.NewDecoder().Bytes(cell)
	if err != nil { // it takes every byte
		return strings.ToValidUTF8(string(cell), "\ufffd")
	}
	return string(s)
}
