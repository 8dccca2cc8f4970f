package csvimport

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"unicode/utf8"

	"golang.org/x/text/encoding/charmap"

	"github.com/onda-run/onda/internal/csvexport"
)

// Rejects is a file of rejected rows, which is made with the first of them.
type Rejects struct {
	path string // as given, or of the file that was made
	stem string // of the names of which the first is taken that no file has; empty where a path was given
	f    *os.File

	size, head int64     // how much of the file counts, and how much of that its first row is: an attempt that failed may have written more
	sum        hash.Hash // of what counts
	unfinished bool      // an import of the same was interrupted
}

// NewRejects gives one that will be at a path, and is an error where there is a file.
func NewRejects(path string) *Rejects { return &Rejects{path: path, sum: sha256.New()} }

// RejectsOf gives one beside the file that is imported: people.rejects.csv of people.csv or, where there is one, since somebody may be correcting it, people.rejects-2.csv, and so on.
// The name is chosen when the file is made.
func RejectsOf(file string) *Rejects {
	stem := "rejects" // of standard input
	if file != "-" {
		stem = strings.TrimSuffix(file, ".csv") + ".rejects"
	}
	return &Rejects{stem: stem, sum: sha256.New()}
}

// names gives those that the file may have, in the order in which they are tried.
func (r *Rejects) names(yield func(string) bool) {
	const most = 1000
	if r.stem == "" {
		yield(r.path)
		return
	}
	for n := 1; n < most; n++ {
		name := r.stem + ".csv"
		if n > 1 {
			name = fmt.Sprintf("%s-%d.csv", r.stem, n)
		}
		if !yield(name) {
			return
		}
	}
}

// Path is where the file is; empty while there is none.
func (r *Rejects) Path() string {
	if r.f == nil {
		return ""
	}
	return r.path
}

// begin finds out that nothing would be written over: somebody may have corrected rows in it.
func (r *Rejects) begin(header []byte) error {
	if r.stem != "" || r.f != nil {
		return nil
	}
	if _, err := os.Stat(r.path); err != nil {
		return nil // that it cannot be made is told when it has to be
	}
	if f, err := r.left(r.path, header); err == nil {
		return f.Close()
	}
	return fmt.Errorf("--rejects %s: there is a file of this name, and it is not written over: name another, or move it away", r.path)
}

// make makes the file with its first row.
func (r *Rejects) make(header []byte) (err error) {
	if r.f != nil {
		return nil
	}
	var f *os.File
	for name := range r.names {
		r.path = name
		if f, err = os.OpenFile(name, os.O_CREATE|os.O_RDWR|os.O_EXCL, 0o600); err == nil {
			err = lock(f)
		} else if errors.Is(err, os.ErrExist) {
			f, err = r.left(name, header)
		}
		if !errors.Is(err, os.ErrExist) {
			break
		}
	}
	if errors.Is(err, os.ErrExist) {
		err = fmt.Errorf("%w: move it away, or name another with --rejects", err)
	}
	if err != nil {
		return fmt.Errorf("make the file of rejected rows: %w", err)
	}
	r.f = f
	r.size, r.head = 0, int64(len(header))
	r.sum.Reset()
	_, err = r.Write(header)
	return err
}

// left opens a file that an import which was killed has begun, and that has no row yet: nothing of it can be lost.
func (r *Rejects) left(path string, header []byte) (*os.File, error) {
	if !r.unfinished {
		return nil, os.ErrExist
	}
	f, err := owned(path)
	if err != nil {
		return nil, err
	}
	has, err := io.ReadAll(io.LimitReader(f, int64(len(header))+1))
	if err == nil && !bytes.HasPrefix(header, has) {
		err = os.ErrExist
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// owned opens a regular file that no other import writes to; else the error is os.ErrExist.
func owned(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|syscall.O_NONBLOCK, 0) // which does not wait for the other end of a pipe
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = os.ErrExist
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, lock(f)
}

// lock has a file be this import's until it is closed; where it is another's it is closed, and the error is os.ErrExist.
func lock(f *os.File) error {
	if syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) != nil {
		return errors.Join(os.ErrExist, f.Close())
	}
	return nil
}

// resume goes on with the file of an import that was interrupted, of which the first size bytes count and have a checksum. It tells false, and leaves the file alone, where that is not as
// the import left it; and so it does of a path that could not be this import's, since whoever can write to the database may have named it.
func (r *Rejects) resume(path string, size int64, sum string) (bool, error) {
	r.unfinished = true
	for name := range r.names {
		if abs, err := filepath.Abs(name); err != nil || abs != path {
			continue
		}
		f, err := owned(name)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, os.ErrExist) {
			return false, nil
		}
		if err != nil {
			return false, fmt.Errorf("open the file of rows rejected so far: %w", err)
		}
		h := sha256.New()
		n, err := io.CopyN(h, f, size)
		if err != nil && !errors.Is(err, io.EOF) {
			return false, errors.Join(fmt.Errorf("read the file of rows rejected so far: %w", err), f.Close())
		}
		if size == 0 || n < size || hex.EncodeToString(h.Sum(nil)) != sum {
			return false, f.Close()
		}
		r.path, r.f, r.size, r.sum = name, f, size, h
		return true, nil
	}
	return false, nil
}

// put writes behind what counts, in the place of what was put there before.
func (r *Rejects) put(b []byte) error {
	if err := r.cut(); err != nil {
		return err
	}
	if _, err := r.f.Write(b); err != nil {
		return fmt.Errorf("write rejected rows: %w", err)
	}
	return nil
}

// keep has what was put count.
func (r *Rejects) keep(b []byte) {
	r.size += int64(len(b))
	_, _ = r.sum.Write(b) // never fails
}

// with is the checksum of what counts with more behind it.
func (r *Rejects) with(b []byte) (string, error) {
	h, err := r.sum.(hash.Cloner).Clone()
	if err != nil {
		return "", fmt.Errorf("sum up the file of rejected rows: %w", err)
	}
	_, _ = h.Write(b) // never fails
	return hex.EncodeToString(h.Sum(nil)), nil
}

// cut takes away what does not count.
func (r *Rejects) cut() error {
	info, err := r.f.Stat()
	if err == nil && info.Size() < r.size {
		err = errors.New("it was changed since")
	}
	if err == nil && info.Size() > r.size {
		err = r.f.Truncate(r.size)
	}
	if err == nil {
		_, err = r.f.Seek(r.size, io.SeekStart)
	}
	if err != nil {
		return fmt.Errorf("go on with the file of rejected rows, %s: %w", r.path, err)
	}
	return nil
}

// Write appends to the file.
func (r *Rejects) Write(b []byte) (int, error) {
	if err := r.make(nil); err != nil {
		return 0, err
	}
	if err := r.put(b); err != nil {
		return 0, err
	}
	r.keep(b)
	return len(b), nil
}

// Close closes the file, if there is one; one that no row came to be in is taken away.
func (r *Rejects) Close() error {
	if r.f == nil {
		return nil
	}
	err := r.cut()
	if r.head > 0 && r.size == r.head && err == nil {
		err = os.Remove(r.path)
		err = errors.Join(err, r.f.Close())
		r.f = nil
		return err
	}
	return errors.Join(err, r.f.Close())
}

// header is the first row of the file of rejected ones: that of the file that is imported, and a column error. It is in UTF-8, and has the mark of it where the file is in another
// encoding, or one is given, so that it is read as what it is with the same options, too.
func (im *importer) header() []byte {
	var b []byte
	if im.dialect.Encoding != "UTF-8" || im.opts.Dialect.Encoding != "" {
		b = append(b, utf8Mark...)
	}
	for _, c := range im.columns {
		if c.name != errorColumn {
			b = append(im.appendCell(b, csvexport.Guard(c.header)), im.dialect.comma)
		}
	}
	return append(im.appendCell(b, errorColumn), '\n')
}

// rejected is the text of a chunk's rejected rows, in the order of the file: the cells of each under the header, the reason in the column error, and what it had too many cells behind
// that. It can be imported, and a spreadsheet takes none of its cells for a formula.
func (im *importer) rejected(list []reject) (b []byte) {
	slices.SortFunc(list, func(a, b reject) int { return a.row - b.row })
	r := &reader{dialect: im.dialect}
	for _, rejected := range list {
		cells, _, _ := r.split([]byte(rejected.text))
		if rejected.open {
			cells = r.plain([]byte(rejected.text))
		}
		for i, c := range im.columns {
			switch {
			case c.name == errorColumn:
				continue
			case i < len(cells):
				b = im.appendCell(b, guarded(cells[i]))
			}
			b = append(b, im.dialect.comma)
		}
		b = im.appendCell(b, rejected.problem)
		for i := len(im.columns); i < len(cells); i++ {
			b = im.appendCell(append(b, im.dialect.comma), guarded(cells[i]))
		}
		b = append(b, '\n')
	}
	return b
}

// appendCell writes a cell as the file that is imported has them.
func (im *importer) appendCell(b []byte, cell string) []byte {
	comma, quote := string(rune(im.dialect.comma)), string(rune(im.dialect.quote))
	if !strings.ContainsAny(cell, comma+quote+"\r\n") {
		return append(b, cell...)
	}
	return append(append(append(b, quote...), strings.ReplaceAll(cell, quote, quote+quote)...), quote...)
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
