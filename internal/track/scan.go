package track

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// maxDepth is how deep a message may nest its values: Postgres reads JSON by recursion, and one message must not fail a commit of many.
const maxDepth = 100

var errDeep = fmt.Errorf("values are nested deeper than %d", maxDepth)

// scan reads a text of JSON (RFC 8259) from its beginning to its end, and makes nothing of it but slices of the text: what customers say of their events is stored as it comes.
//
//	for s.open('{'); s.more('}'); {
//		switch string(s.name()) {
//		case "batch": ...
//		default: s.value()
//		}
//	}
//
// Once something is wrong, err says what, more is false, and the rest gives nothing.
type scan struct {
	b   []byte
	i   int
	err error
	// deep is set by a value that is nested deeper than maxDepth, of which only the end is looked for.
	deep bool
	// odd is set by a value that json.Unmarshal would take and Postgres would refuse or keep as something else: half a character (\ud83d alone), a number with an exponent or of very
	// many digits.
	odd   bool
	fresh bool // an object or array was opened, and nothing was read of it
}

// fail says where it is wrong.
func (s *scan) fail() {
	if s.err == nil {
		s.err = fmt.Errorf("syntax error at byte %d", s.i+1)
	}
	s.i = len(s.b)
}

func (s *scan) space() {
	for s.i < len(s.b) && (s.b[s.i] == ' ' || s.b[s.i] == '\n' || s.b[s.i] == '\t' || s.b[s.i] == '\r') {
		s.i++
	}
}

// peek is the next byte that is no space; 0 at the end.
func (s *scan) peek() byte {
	s.space()
	if s.i == len(s.b) {
		return 0
	}
	return s.b[s.i]
}

// open goes into an object or an array.
func (s *scan) open(c byte) {
	if s.peek() != c {
		s.fail()
		return
	}
	s.i++
	s.fresh = true
}

// more tells whether there is another member or element, and goes out behind end where there is none.
func (s *scan) more(end byte) bool {
	c := s.peek()
	fresh := s.fresh
	s.fresh = false
	switch {
	case s.err != nil:
		return false
	case c == end:
		s.i++
		return false
	case fresh:
		return true
	case c == ',':
		s.i++
		return true
	}
	s.fail()
	return false
}

// name is that of a member, with what stands between it and its value.
func (s *scan) name() []byte {
	name := s.plain(s.text())
	if s.peek() != ':' {
		s.fail()
		return nil
	}
	s.i++
	return name
}

// plain is what a text says that stands in quotes.
func (s *scan) plain(quoted []byte) []byte {
	if len(quoted) < 2 {
		return nil
	}
	if bytes.IndexByte(quoted, '\\') < 0 {
		return quoted[1 : len(quoted)-1]
	}
	var t string
	if err := json.Unmarshal(quoted, &t); err != nil {
		s.fail()
	}
	return []byte(t)
}

// end is to be called last: nothing may come after a value.
func (s *scan) end() error {
	if s.peek(); s.i < len(s.b) {
		s.fail()
	}
	if s.deep {
		return errDeep
	}
	return s.err
}

// value is the text of the next value.
func (s *scan) value() []byte {
	s.space()
	from := s.i
	s.skip(0)
	if s.err != nil {
		return nil
	}
	return s.b[from:s.i]
}

func (s *scan) skip(depth int) {
	if depth > maxDepth {
		s.deep = true
		s.leap()
		return
	}
	switch c := s.peek(); c {
	case '{':
		for s.open('{'); s.more('}'); s.skip(depth + 1) {
			s.text()
			if s.peek() != ':' {
				s.fail()
				return
			}
			s.i++
		}
	case '[':
		for s.open('['); s.more(']'); s.skip(depth + 1) {
		}
	case '"':
		s.text()
	case 't':
		s.word("true")
	case 'f':
		s.word("false")
	case 'n':
		s.word("null")
	default:
		s.number()
	}
}

// leap goes behind a value by its brackets and texts alone: not by recursion, which would take memory for every level.
func (s *scan) leap() {
	for open := 0; s.i < len(s.b); {
		switch s.b[s.i] {
		case '"':
			s.text()
			continue
		case '{', '[':
			open++
		case '}', ']':
			open--
		case ',':
		default: // of a word or a number, or a space
			s.i++
			continue
		}
		if open < 0 || open == 0 && s.b[s.i] == ',' { // of what it is in
			return
		}
		s.i++
	}
	s.fail()
}

func (s *scan) word(w string) {
	if len(s.b)-s.i < len(w) || string(s.b[s.i:s.i+len(w)]) != w {
		s.fail()
		return
	}
	s.i += len(w)
}

// text is a string with its quotes.
func (s *scan) text() []byte {
	if s.peek() != '"' {
		s.fail()
		return nil
	}
	from := s.i
	for s.i++; s.i < len(s.b); s.i++ {
		switch c := s.b[s.i]; {
		case c == '"':
			s.i++
			return s.b[from:s.i]
		case c < ' ':
			s.fail()
			return nil
		case c == '\\':
			s.i++
			if !s.escape() {
				s.fail()
				return nil
			}
		}
	}
	s.fail()
	return nil
}

// escape reads what stands after a backslash but for its last byte.
func (s *scan) escape() bool {
	if s.i == len(s.b) {
		return false
	}
	switch s.b[s.i] {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		return true
	case 'u':
		if len(s.b)-s.i < 5 {
			return false
		}
		n, err := strconv.ParseUint(string(s.b[s.i+1:s.i+5]), 16, 16)
		s.odd = s.odd || n >= 0xd800 && n < 0xe000
		s.i += 4
		return err == nil
	}
	return false
}

func (s *scan) digits() bool {
	from := s.i
	for s.i < len(s.b) && s.b[s.i] >= '0' && s.b[s.i] <= '9' {
		s.i++
	}
	return s.i > from
}

// is goes on behind one of some bytes.
func (s *scan) is(these string) bool {
	if s.i < len(s.b) && strings.IndexByte(these, s.b[s.i]) >= 0 {
		s.i++
		return true
	}
	return false
}

func (s *scan) number() {
	from := s.i
	s.is("-")
	ok := s.is("0") || s.digits()
	if ok && s.is(".") {
		ok = s.digits()
	}
	if ok && s.is("eE") {
		s.odd = true
		s.is("+-")
		ok = s.digits()
	}
	if !ok {
		s.fail()
		return
	}
	s.odd = s.odd || s.i-from > maxDigits
}

// maxDigits of a number that is stored as it comes; of others, as many as a float64 has.
const maxDigits = 40

// string is a text; empty for null.
func (s *scan) string() (string, error) {
	c := s.peek()
	text := s.value()
	switch {
	case c == '"':
		return string(s.plain(text)), nil
	case c == 'n' || s.err != nil:
		return "", nil
	}
	return "", errors.New("must not be " + article(c))
}

// looseString is an id, that some programs send as a number.
func (s *scan) looseString() (string, error) {
	if c := s.peek(); c == '-' || c >= '0' && c <= '9' {
		return string(s.value()), nil
	}
	return s.string()
}

// object is the text of an object, without what is odd in it; nil for null.
func (s *scan) object() ([]byte, error) {
	c := s.peek()
	s.odd = false
	text := s.value()
	switch {
	case s.err != nil || c == 'n':
		return nil, nil // what is wrong is said at the end
	case c != '{':
		return nil, errors.New("must not be " + article(c))
	case !s.odd:
		return bytes.Clone(text), nil
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		return nil, err
	}
	v, err := even(v)
	if err != nil {
		return nil, errors.New("has a number that is out of range")
	}
	return json.Marshal(v)
}

// even makes float64s of the numbers that are odd; the others stay as they are.
func even(v any) (_ any, err error) {
	switch v := v.(type) {
	case json.Number:
		if s := (&scan{b: []byte(v)}); s.value() != nil && s.odd {
			return v.Float64()
		}
	case []any:
		for i := range v {
			if v[i], err = even(v[i]); err != nil {
				return nil, err
			}
		}
	case map[string]any:
		for k := range v {
			if v[k], err = even(v[k]); err != nil {
				return nil, err
			}
		}
	}
	return v, nil
}

// article names a kind of value by its first byte.
func article(c byte) string {
	switch c {
	case '{':
		return "an object"
	case '[':
		return "an array"
	case '"':
		return "a text"
	case 't', 'f':
		return "a bool"
	case 'n':
		return "null"
	}
	return "a number"
}
