package liquid

import (
	"fmt"
	"sort"
	"strings"
	"unicode/utf8"
)

// Problem is one thing that is wrong with a template. Line and Col are from 1;
// columns count characters.
type Problem struct {
	Line, Col int
	Msg       string
}

func (p Problem) Error() string { return fmt.Sprintf("%d:%d: %s", p.Line, p.Col, p.Msg) }

type tokenKind int

const (
	textToken tokenKind = iota
	outputToken
	tagToken
	rawToken     // {% raw %} to {% endraw %}
	commentToken // {% comment %} to {% endcomment %}
)

// token is a piece of a template.
type token struct {
	kind      tokenKind
	start     int    // where the piece begins in the source
	end       int    // and where it ends
	src       string // the whole piece; of raw and comment what is between their tags
	name      string // of a tag
	body      string // what is between the marks, after the name
	bodyStart int
	trimLeft  bool
	trimRight bool
}

// scanner cuts a template into pieces.
type scanner struct {
	src      string
	lines    []int // where each line begins
	counted  struct{ at, line, col int }
	problems []Problem
}

// fail notes what is wrong at a place of the source.
func (s *scanner) fail(at int, format string, args ...any) {
	line, col := s.position(at)
	s.problems = append(s.problems, Problem{Line: line, Col: col, Msg: fmt.Sprintf(format, args...)})
}

// position gives the line and column of a place in the source.
func (s *scanner) position(at int) (line, col int) {
	if s.lines == nil {
		s.lines = []int{0}
		for i := range len(s.src) {
			if s.src[i] == '\n' {
				s.lines = append(s.lines, i+1)
			}
		}
	}
	line = sort.SearchInts(s.lines, at+1)
	from, col := s.lines[line-1], 1
	if last := s.counted; last.line == line && last.at <= at {
		from, col = last.at, last.col // the whole template may be one line: count on from where it was asked for last
	}
	col += utf8.RuneCountInString(s.src[from:at])
	s.counted = struct{ at, line, col int }{at, line, col}
	return line, col
}

// tokens cuts the source. After an opening mark that is never closed the rest is text.
func (s *scanner) tokens() []token {
	var out []token
	text := 0
	flush := func(to int) {
		if to > text {
			out = append(out, token{kind: textToken, start: text, end: to, src: s.src[text:to]})
		}
	}
	for i := 0; i < len(s.src); {
		open := strings.IndexByte(s.src[i:], '{')
		if open < 0 || i+open+1 >= len(s.src) {
			break
		}
		i += open
		if s.src[i+1] != '{' && s.src[i+1] != '%' {
			i++
			continue
		}
		t, end := s.mark(i)
		if end < 0 {
			break
		}
		flush(i)
		switch {
		case t.kind == tagToken && (t.name == "raw" || t.name == "comment"):
			inner, after := s.until(end, "end"+t.name)
			if after < 0 {
				s.fail(t.start, "{%% %s %%} is never closed: put {%% end%s %%} after it", t.name, t.name)
				text = len(s.src)
				return out
			}
			kind := rawToken
			if t.name == "comment" {
				kind = commentToken
			}
			out = append(out, token{kind: kind, start: t.start, end: after, src: s.src[end:inner]})
			end = after
		default:
			t.end = end
			out = append(out, t)
		}
		i, text = end, end
	}
	flush(len(s.src))
	return out
}

// until finds the tag that closes raw or comment: where it begins and where it ends.
func (s *scanner) until(from int, name string) (begin, end int) {
	for i := from; i < len(s.src); i++ {
		if !strings.HasPrefix(s.src[i:], "{%") {
			continue
		}
		rest := strings.TrimLeft(strings.TrimPrefix(s.src[i+2:], "-"), " \t\r\n")
		if !strings.HasPrefix(rest, name) {
			continue
		}
		rest = strings.TrimLeft(rest[len(name):], " \t\r\n")
		rest = strings.TrimPrefix(rest, "-")
		if strings.HasPrefix(rest, "%}") {
			return i, len(s.src) - len(rest) + 2
		}
	}
	return -1, -1
}

// mark reads {{ ... }} or {% ... %} at i. It gives -1 when it is never closed.
func (s *scanner) mark(i int) (token, int) {
	t := token{start: i, kind: outputToken}
	closing := "}}"
	if s.src[i+1] == '%' {
		t.kind, closing = tagToken, "%}"
	}
	begin := i + 2
	if begin < len(s.src) && s.src[begin] == '-' {
		t.trimLeft = true
		begin++
	}
	var quote byte
	end := -1
	for j := begin; j < len(s.src); j++ {
		c := s.src[j]
		switch {
		case quote != 0:
			if c == quote {
				quote = 0
			}
		case c == '"' || c == '\'':
			quote = c
		case strings.HasPrefix(s.src[j:], closing):
			end = j
		}
		if end >= 0 {
			break
		}
	}
	if end < 0 {
		if plain := strings.Index(s.src[begin:], closing); plain >= 0 {
			s.fail(i, "a quote in %q is never closed", short(s.src[i:begin+plain+2]))
		} else {
			s.fail(i, "%s is never closed: put %s after it", s.src[i:i+2], closing)
		}
		return t, -1
	}
	t.src = s.src[i : end+2]
	inner := end
	if inner > begin && s.src[inner-1] == '-' {
		t.trimRight = true
		inner--
	}
	t.body, t.bodyStart = s.src[begin:inner], begin
	if t.kind == tagToken {
		trimmed := strings.TrimLeft(t.body, " \t\r\n")
		n := 0
		for n < len(trimmed) && isLetter(trimmed[n]) {
			n++
		}
		t.name = trimmed[:n]
		t.bodyStart += len(t.body) - len(trimmed) + n
		t.body = trimmed[n:]
	}
	return t, end + 2
}

func isLetter(c byte) bool {
	return c == '_' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
}

func short(s string) string {
	if len(s) > 40 {
		return strings.ToValidUTF8(s[:40], "") + "..."
	}
	return s
}
