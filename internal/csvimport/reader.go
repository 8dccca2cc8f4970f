package csvimport

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
)

const (
	// maxLine bounds a line, and what a quoted cell may go over, in bytes.
	maxLine = 1 << 20
	// maxLines bounds over how many lines a quoted cell may go.
	maxLines = 200
)

// record is one row of the file. What it holds is there until the next is read.
type record struct {
	row   int // as a spreadsheet counts: the header is 1
	line  int // where it begins in the file
	text  []byte
	cells [][]byte
	// problem says why it cannot be read; text and cells are then those of its first line alone, and cells a guess.
	problem string
}

// reader reads CSV (RFC 4180) record by record. encoding/csv cannot be used: where a quote is left open it swallows the rest of the file. Here the row with the open quote is
// a problem, and the next line begins a row again: a quote is open when the file ends, or 200 lines or 1 MiB follow, before it is closed, when what follows it cannot be, or when
// the row that comes of it has not the header's number of cells. A quote within a cell that does not begin with one stands for itself.
type reader struct {
	in      *bufio.Reader // of maxLine
	dialect dialect
	width   int      // cells of the header, 0 before it was read
	pending [][]byte // lines that were read ahead
	line    int      // that the next pending line is, or is to be read
	row     int
	cells   [][]byte // of the last record
}

// nextLine gives a line with its end, which is there until the next is read; io.EOF at the end of the file.
func (r *reader) nextLine() ([]byte, error) {
	if len(r.pending) > 0 {
		l := r.pending[0]
		r.pending = r.pending[1:]
		r.line++
		return l, nil
	}
	l, err := r.in.ReadSlice(r.dialect.end)
	switch {
	case errors.Is(err, bufio.ErrBufferFull):
		return nil, fmt.Errorf("line %d is longer than 1 MiB: this is not a CSV file", r.line)
	case errors.Is(err, io.EOF) && len(l) > 0:
	case errors.Is(err, io.EOF):
		return nil, err
	case err != nil:
		return nil, fmt.Errorf("read the file at line %d: %w", r.line, err)
	}
	r.line++
	return l, nil
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
		if r.width == 0 && r.row == 0 && separatorLine(first) != 0 {
			continue // which a spreadsheet does not count
		}
		r.row++
		if len(trimEnd(first)) == 0 {
			continue // a spreadsheet counts it
		}
		rec := record{row: r.row, line: r.line - 1, text: first}
		var more [][]byte
		for {
			cells, open, bad := r.split(rec.text)
			if !open && !bad && (len(more) == 0 || len(cells) == r.width || r.width == 0) {
				rec.cells = cells
				if r.width == 0 {
					r.width = len(cells)
				}
				return rec, nil
			}
			if !open || bad || len(more) == maxLines || len(rec.text) >= maxLine {
				break
			}
			if len(more) == 0 { // the next line is read into where they are
				first = slices.Clone(first)
				rec.text = first
			}
			l, err := r.nextLine()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return record{}, err
			}
			more = append(more, slices.Clone(l))
			rec.text = append(slices.Clip(rec.text), l...)
		}
		r.back(more)
		rec.text, rec.cells = first, r.plain(first)
		rec.problem = quoteProblem(rec.line, r.firstQuoted(first), r.dialect.quote)
		return rec, nil
	}
}

func quoteProblem(line, cell int, quote byte) string {
	return fmt.Sprintf(`a quote is left open in cell %d (line %d of the file): close it with another %c, or double it (%[3]c%[3]c) where it is meant as a character`, cell+1, line, quote)
}

// split takes a record apart. open: it ends within a quoted cell. bad: something follows a closing quote. The cells are there until the next call.
func (r *reader) split(text []byte) (cells [][]byte, open, bad bool) {
	comma, quote := r.dialect.comma, r.dialect.quote
	text = trimEnd(text)
	cells = r.cells[:0]
	defer func() { r.cells = cells }()
	for {
		if len(text) == 0 || text[0] != quote {
			i := bytes.IndexByte(text, comma)
			if i < 0 {
				return append(cells, text), false, false
			}
			cells, text = append(cells, text[:i]), text[i+1:]
			continue
		}
		var cell []byte
		text = text[1:]
		for first := true; ; first = false {
			i := bytes.IndexByte(text, quote)
			if i < 0 {
				return cells, true, false
			}
			if len(text) == i+1 || text[i+1] != quote {
				if first {
					cell = text[:i]
				} else {
					cell = append(cell, text[:i]...)
				}
				text = text[i+1:]
				break
			}
			cell = append(slices.Clip(cell), text[:i+1]...)
			text = text[i+2:]
		}
		if bytes.IndexByte(cell, '\r') >= 0 {
			cell = bytes.ReplaceAll(cell, []byte("\r\n"), []byte("\n"))
			if r.dialect.end == '\r' {
				cell = bytes.ReplaceAll(cell, []byte("\r"), []byte("\n"))
			}
		}
		cells = append(cells, cell)
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
func (r *reader) plain(line []byte) [][]byte {
	return bytes.Split(trimEnd(line), []byte{r.dialect.comma})
}

// firstQuoted is the number of the first cell of a line whose quotes are wrong.
func (r *reader) firstQuoted(line []byte) int {
	cells, open, _ := r.split(line)
	if open {
		return len(cells)
	}
	return max(len(cells)-1, 0)
}

func trimEnd(line []byte) []byte {
	line = bytes.TrimSuffix(line, []byte("\n"))
	return bytes.TrimSuffix(line, []byte("\r"))
}

// over has the reader read a text.
func (r *reader) over(text []byte) { r.in = bufio.NewReaderSize(bytes.NewReader(text), maxLine) }
