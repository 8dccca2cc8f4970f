package csvimport

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

const (
	// maxLine bounds a line, and what a quoted cell may go over, in bytes.
	maxLine = 1 << 20
	// maxLines bounds over how many lines a quoted cell may go.
	maxLines = 200
)

// record is one row of the file.
type record struct {
	row   int // as a spreadsheet counts: the header is 1
	line  int // where it begins in the file
	cells []string
	// problem says why it cannot be read; cells are then a guess, of its first line alone.
	problem string
}

// reader reads CSV (RFC 4180) record by record. encoding/csv cannot be used: where a quote is left open it swallows the rest of the file. Here the row with the open quote is
// a problem, and the next line begins a row again: a quote is open when the file ends, or 200 lines or 1 MiB follow, before it is closed, when what follows it cannot be, or when
// the row that comes of it has not the header's number of cells. A quote within a cell that does not begin with one stands for itself.
type reader struct {
	in      *bufio.Reader
	comma   byte
	width   int      // cells of the header, 0 before it was read
	pending [][]byte // lines that were read ahead
	line    int      // that the next pending line is, or is to be read
	row     int
}

func newReader(r io.Reader) (*reader, error) {
	in := bufio.NewReaderSize(r, 64<<10)
	start, err := in.Peek(3)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read the file: %w", err)
	}
	switch {
	case bytes.HasPrefix(start, []byte{0xef, 0xbb, 0xbf}):
		_, _ = in.Discard(3) // was peeked
	case bytes.HasPrefix(start, []byte{0xff, 0xfe}), bytes.HasPrefix(start, []byte{0xfe, 0xff}):
		return nil, errors.New("the file is in UTF-16: save it as CSV in UTF-8")
	case bytes.HasPrefix(start, []byte("PK\x03")):
		return nil, errors.New("the file is a spreadsheet or an archive: save it as CSV in UTF-8")
	}
	return &reader{in: in, comma: ',', line: 1}, nil
}

// nextLine gives a line with its end; io.EOF at the end of the file.
func (r *reader) nextLine() ([]byte, error) {
	if len(r.pending) > 0 {
		l := r.pending[0]
		r.pending = r.pending[1:]
		r.line++
		return l, nil
	}
	var all []byte
	for {
		part, err := r.in.ReadSlice('\n')
		all = append(all, part...)
		if len(all) > maxLine {
			return nil, fmt.Errorf("line %d is longer than 1 MiB: this is not a CSV file", r.line)
		}
		if errors.Is(err, bufio.ErrBufferFull) {
			continue
		}
		if errors.Is(err, io.EOF) && len(all) > 0 {
			err = nil
		}
		if err != nil {
			if !errors.Is(err, io.EOF) {
				err = fmt.Errorf("read the file at line %d: %w", r.line, err)
			}
			return nil, err
		}
		r.line++
		return all, nil
	}
}

// back puts lines back, to be read again.
func (r *reader) back(lines [][]byte) {
	r.pending = append(slices.Clone(lines), r.pending...)
	r.line -= len(lines)
}

// next gives the next record that is not an empty line; io.EOF at the end.
func (r *reader) next() (record, error) {
	for {
		first, err := r.nextLine()
		if err != nil {
			return record{}, err
		}
		if len(bytes.TrimRight(first, "\r\n")) == 0 {
			r.row++ // a spreadsheet counts it
			continue
		}
		r.row++
		rec := record{row: r.row, line: r.line - 1}
		if r.width == 0 {
			r.comma = separator(first)
		}
		var more [][]byte
		size := len(first)
		text := first
		for {
			cells, open, bad := split(text, r.comma)
			if !open && !bad && (len(more) == 0 || len(cells) == r.width || r.width == 0) {
				rec.cells = cells
				if r.width == 0 {
					r.width = len(cells)
				}
				return rec, nil
			}
			if open && !bad && len(more) < maxLines && size < maxLine {
				l, err := r.nextLine()
				if err == nil {
					more = append(more, l)
					size += len(l)
					text = append(slices.Clip(text), l...)
					continue
				}
				if !errors.Is(err, io.EOF) {
					return record{}, err
				}
			}
			break
		}
		r.back(more)
		rec.cells = plain(first, r.comma)
		rec.problem = quoteProblem(rec.line, firstQuoted(first, r.comma))
		return rec, nil
	}
}

func quoteProblem(line, cell int) string {
	return fmt.Sprintf(`a quote is left open in cell %d (line %d of the file): close it with another ", or double it ("") where it is meant as a character`, cell+1, line)
}

// separator is the one of comma, semicolon and tab that a header has most of.
func separator(header []byte) byte {
	best := byte(',')
	for _, c := range []byte{';', '\t'} {
		if bytes.Count(header, []byte{c}) > bytes.Count(header, []byte{best}) {
			best = c
		}
	}
	return best
}

// split takes a record apart. open: it ends within a quoted cell. bad: something follows a closing quote.
func split(text []byte, comma byte) (cells []string, open, bad bool) {
	text = trimEnd(text)
	for {
		if len(text) == 0 || text[0] != '"' {
			i := bytes.IndexByte(text, comma)
			if i < 0 {
				return append(cells, string(text)), false, false
			}
			cells, text = append(cells, string(text[:i])), text[i+1:]
			continue
		}
		var b strings.Builder
		text = text[1:]
		for {
			i := bytes.IndexByte(text, '"')
			if i < 0 {
				return cells, true, false
			}
			b.Write(text[:i])
			text = text[i+1:]
			if len(text) == 0 || text[0] != '"' {
				break
			}
			b.WriteByte('"')
			text = text[1:]
		}
		cells = append(cells, strings.ReplaceAll(b.String(), "\r\n", "\n"))
		if len(text) == 0 {
			return cells, false, false
		}
		if text[0] != comma {
			return cells, false, true
		}
		text = text[1:]
	}
}

// plain takes a line apart at its separators, whatever its quotes say: so that nothing of it is lost.
func plain(line []byte, comma byte) []string {
	return strings.Split(string(trimEnd(line)), string(rune(comma)))
}

// firstQuoted is the number of the first cell of a line whose quotes are wrong.
func firstQuoted(line []byte, comma byte) int {
	cells, open, _ := split(line, comma)
	if open {
		return len(cells)
	}
	return max(len(cells)-1, 0)
}

func trimEnd(line []byte) []byte {
	line = bytes.TrimSuffix(line, []byte("\n"))
	return bytes.TrimSuffix(line, []byte("\r"))
}
