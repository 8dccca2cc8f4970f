package csvimport

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode/utf8"

	"golang.org/x/text/encoding"
	"golang.org/x/text/encoding/charmap"
	"golang.org/x/text/encoding/unicode"
)

// Dialect is how a file is read. In Options what is empty is found out; in Result all is there.
type Dialect struct {
	// Encoding is UTF-8, UTF-16, UTF-16LE, UTF-16BE, or a code page such as Windows-1252 or ISO 8859-2. A file that begins with the mark of UTF-8 is in that, whatever is given.
	Encoding string `json:"encoding,omitempty"`
	// Separator is the character between cells, or tab; Quote the one around those that have it in them.
	Separator string `json:"separator,omitempty"`
	Quote     string `json:"quote,omitempty"`
	// Decimal is the character before the decimals of numbers: a point or a comma.
	Decimal string `json:"decimal,omitempty"`
	// Dates is the last day of 2026 as dates are written, such as 2026-12-31, 31.12.2026 or 12/31/2026; of columns that differ, the first's. Empty where no column has dates.
	Dates string `json:"dates,omitempty"`
}

// dialect is a Dialect for the reader.
type dialect struct {
	Dialect
	comma, quote, end byte  // end is of lines
	order             order // of dates where one was given
}

// String tells of it in words.
func (d Dialect) String() string {
	by, ok := map[string]string{",": "commas", ";": "semicolons", "tab": "tabs", "|": "bars"}[d.Separator]
	if !ok {
		by = strconv.Quote(d.Separator)
	}
	s := d.Encoding + ", separated by " + by
	if d.Quote != `"` {
		s += ", quoted by " + d.Quote
	}
	if d.Decimal == "," {
		s += ", decimals after a comma"
	}
	if d.Dates != "" {
		s += ", dates as " + d.Dates
	}
	return s
}

// check reads what was given of a dialect.
func (d Dialect) check() (dialect, error) {
	return readDialect(dialect{Dialect: d})
}

// readDialect reads it into what the reader goes by.
func readDialect(d dialect) (dialect, error) {
	var errs []error
	if d.Encoding != "" {
		if _, name := encodingOf(d.Encoding); name == "" {
			errs = append(errs, fmt.Errorf("there is no encoding %q here: it is utf-8, utf-16, utf-16le, utf-16be, windows-1252, latin-1 or another code page, such as windows-1250 or iso-8859-2", d.Encoding))
		}
	}
	one := func(what, given string, to *byte) {
		if len(given) == 1 && given[0] >= ' ' && given[0] < 0x7f || given == "\t" {
			*to = given[0]
		} else if given != "" {
			errs = append(errs, fmt.Errorf("%q is no %s: it is one character (of ASCII)", given, what))
		}
	}
	if strings.EqualFold(d.Separator, "tab") || d.Separator == `\t` {
		d.Separator = "\t"
	}
	one("separator", d.Separator, &d.comma)
	one("quote", d.Quote, &d.quote)
	if d.comma != 0 && d.comma == d.quote {
		errs = append(errs, errors.New("the separator and the quote must be two characters"))
	}
	if d.Decimal != "" && d.Decimal != "." && d.Decimal != "," {
		errs = append(errs, fmt.Errorf("numbers have a point or a comma before their decimals, and not %q", d.Decimal))
	}
	if d.Dates != "" {
		if d.order = orderOf(d.Dates); d.order == 0 {
			errs = append(errs, fmt.Errorf("%q does not say how dates are written: give the last day of 2026 in that way, such as 31.12.2026, 31/12/2026, 12/31/2026 or 2026-12-31", d.Dates))
		}
	}
	return d, errors.Join(errs...)
}

// utf8Mark is what a file in UTF-8 may begin with, and no other does.
const utf8Mark = "\ufeff"

// open begins to read a file: it finds out what was not given of its dialect, but for what only its columns tell.
func open(in io.Reader, given dialect) (*reader, error) {
	raw := bufio.NewReaderSize(in, maxLine)
	start, err := raw.Peek(maxLine)
	if err != nil && !errors.Is(err, io.EOF) && len(start) == 0 {
		return nil, fmt.Errorf("read the file: %w", err)
	}
	if bytes.HasPrefix(start, []byte("PK\x03")) || bytes.HasPrefix(start, []byte("\xd0\xcf\x11\xe0")) {
		return nil, errors.New("the file is a spreadsheet or an archive: save it as CSV in UTF-8")
	}
	if given.Encoding == "" && bytes.HasPrefix(start, []byte{0xff, 0xfe, 0, 0}) {
		return nil, errors.New("the file is in UTF-32: save it as CSV in UTF-8")
	}
	d := given
	mark := 0
	var found string
	switch {
	case bytes.HasPrefix(start, []byte(utf8Mark)):
		found, mark, d.Encoding = "UTF-8", len(utf8Mark), ""
	case bytes.HasPrefix(start, []byte{0xff, 0xfe}):
		found, mark = "UTF-16LE", 2
	case bytes.HasPrefix(start, []byte{0xfe, 0xff}):
		found, mark = "UTF-16BE", 2
	default:
		found = guess(start)
	}
	decoder, name := encodingOf(d.Encoding)
	switch {
	case name == "" || name == "UTF-16" && strings.HasPrefix(found, "UTF-16"):
		d.Encoding = found
		decoder, _ = encodingOf(found)
	case name == "UTF-16":
		d.Encoding = "UTF-16LE"
		decoder, _ = encodingOf(d.Encoding)
	default:
		d.Encoding = name
	}
	if d.Encoding == found {
		_, _ = raw.Discard(mark) // was peeked
	}
	text := raw
	if decoder != nil {
		text = bufio.NewReaderSize(decoder.NewDecoder().Reader(raw), maxLine)
	}
	start, err = text.Peek(maxLine)
	if err != nil && !errors.Is(err, io.EOF) && len(start) == 0 {
		return nil, fmt.Errorf("read the file: %w", err)
	}
	d.end = '\n'
	if bytes.IndexByte(start, '\n') < 0 && bytes.IndexByte(start, '\r') >= 0 {
		d.end = '\r'
	}
	header := start
	for len(header) > 0 { // the first line that is not empty
		line, rest, _ := bytes.Cut(header, []byte{d.end})
		if sep := separatorLine(line); sep != 0 {
			if d.comma == 0 {
				d.comma = sep
			}
		} else if len(bytes.TrimSuffix(line, []byte("\r"))) > 0 {
			header = line
			break
		}
		header = rest
	}
	if d.quote == 0 {
		d.quote = quoteOf(header)
	}
	if d.comma == 0 {
		d.comma = separator(header, d.quote)
	}
	if d.comma == d.quote {
		return nil, fmt.Errorf("cells are separated and quoted by the same character, %q: say with --separator and --quote which they are", string(rune(d.comma)))
	}
	d.Quote, d.Separator = string(rune(d.quote)), string(rune(d.comma))
	if d.comma == '\t' {
		d.Separator = "tab"
	}
	return &reader{in: text, dialect: d, line: 1}, nil
}

// guess is the encoding of a file that begins without a mark.
func guess(start []byte) string {
	var zeros [2]int // at even and odd places
	for i, b := range start {
		if b == 0 {
			zeros[i%2]++
		}
	}
	switch half := len(start) / 2; {
	case zeros[1] > half/4 && zeros[0] < zeros[1]/8: // text in Latin letters, or what is between its cells
		return "UTF-16LE"
	case zeros[0] > half/4 && zeros[1] < zeros[0]/8:
		return "UTF-16BE"
	}
	good, bad := false, false
	for i := 0; i < len(start); {
		if start[i] < utf8.RuneSelf {
			i++
			continue
		}
		c, n := utf8.DecodeRune(start[i:])
		switch {
		case c != utf8.RuneError || n > 1:
			good = true
		case !utf8.FullRune(start[i:]): // it is cut off there
		default:
			bad = true
		}
		i += n
	}
	if bad && !good {
		return "Windows-1252"
	}
	return "UTF-8" // rows that are not are rejected
}

// encodingOf is the encoding of a name; nil for UTF-8, and no name where there is none.
func encodingOf(given string) (encoding.Encoding, string) {
	plain := func(s string) string {
		return strings.NewReplacer("-", "", "_", "", " ", "", "codepage", "cp").Replace(strings.ToLower(s))
	}
	name := plain(given)
	switch name {
	case "":
		return nil, ""
	case "utf8":
		return nil, "UTF-8"
	case "utf16":
		return nil, "UTF-16"
	case "utf16le":
		return unicode.UTF16(unicode.LittleEndian, unicode.IgnoreBOM), "UTF-16LE"
	case "utf16be":
		return unicode.UTF16(unicode.BigEndian, unicode.IgnoreBOM), "UTF-16BE"
	case "latin1", "iso88591", "cp1252": // of which Windows-1252 has all that is written
		return charmap.Windows1252, "Windows-1252"
	}
	for _, e := range charmap.All {
		c, ok := e.(*charmap.Charmap)
		if ok && (plain(c.String()) == name || strings.TrimPrefix(plain(c.String()), "windows") == strings.TrimPrefix(name, "cp")) {
			return e, c.String()
		}
	}
	return nil, ""
}

// separatorLine is the separator that a first line such as sep=; names, for spreadsheets; 0 for another line.
func separatorLine(line []byte) byte {
	line = bytes.Trim(trimEnd(line), `"`)
	if len(line) == 5 && bytes.EqualFold(line[:4], []byte("sep=")) {
		return line[4]
	}
	return 0
}

// quoteOf is the quote of a header whose cells are all within single ones, or the double one.
func quoteOf(header []byte) byte {
	header = trimEnd(header)
	if len(header) > 1 && header[0] == '\'' && header[len(header)-1] == '\'' && bytes.IndexByte(header, '"') < 0 {
		return '\''
	}
	return '"'
}

// separator is the one of comma, semicolon, tab and bar that a header has most of outside of quotes.
func separator(header []byte, quote byte) byte {
	best, most := byte(','), 0
	for i, c := range []byte(",;\t|") {
		n, quoted := 0, false
		for _, b := range header {
			switch {
			case b == quote:
				quoted = !quoted
			case b == c && !quoted:
				n++
			}
		}
		if i == 0 || n > most {
			best, most = c, n
		}
	}
	return best
}
