package liquid

import (
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Name is a variable that a template takes from outside.
type Name struct {
	Path      []string // contact, first_name; ends where an index is computed
	Line, Col int
}

// String gives the name as it is written: contact.first_name.
func (n Name) String() string { return strings.Join(n.Path, ".") }

type lexeme struct {
	kind byte // i identifier, k identifier and colon, p property, n number, s string, o other, e end
	text string
	at   int // in the template
}

// exprParser checks one expression by the grammar of the engine, which says
// neither where a mistake is nor which names are used, and writes it anew in
// the form that is safe for the engine.
type exprParser struct {
	c    *compiler
	toks []lexeme
	pos  int
	bad  bool
	deep int // how many brackets are open
	out  strings.Builder
}

// maxNesting bounds brackets within brackets, and blocks within blocks.
const maxNesting = 50

func (c *compiler) expression(body string, at int) *exprParser {
	p := &exprParser{c: c}
	if len(body) > maxExpression {
		c.fail(at, "an expression is longer than %d KiB: {%% assign %%} parts of it to names first", maxExpression>>10)
		p.bad = true
		return p
	}
	p.lex(body, at)
	return p
}

func (p *exprParser) lex(body string, at int) {
	add := func(kind byte, from, to int) {
		p.toks = append(p.toks, lexeme{kind, body[from:to], at + from})
	}
	isDigit := func(i int) bool { return i < len(body) && body[i] >= '0' && body[i] <= '9' }
	word := func(i int) int {
		for i < len(body) && (isLetter(body[i]) || body[i] == '-') {
			i++
		}
		if i < len(body) && body[i] == '?' {
			i++
		}
		return i
	}
	begins := func(i int) bool { return i < len(body) && isLetter(body[i]) && !isDigit(i) }
	for i := 0; i < len(body); {
		c := body[i]
		switch {
		case strings.IndexByte(" \t\r\n", c) >= 0:
			i++
		case c == '"' || c == '\'':
			end := strings.IndexByte(body[i+1:], c)
			if end < 0 {
				p.c.fail(at+i, "a quote is never closed")
				p.bad = true
				return
			}
			add('s', i, i+end+2)
			i += end + 2
		case begins(i):
			end := word(i)
			if end < len(body) && body[end] == ':' {
				add('k', i, end)
				end++
			} else {
				add('i', i, end)
			}
			i = end
		case c == '.' && begins(i+1):
			end := word(i + 1)
			add('p', i+1, end)
			i = end
		case isDigit(i) || c == '-' && isDigit(i+1):
			end := i + 1
			for isDigit(end) {
				end++
			}
			if end < len(body) && body[end] == '.' && isDigit(end+1) {
				end++
				for isDigit(end) {
					end++
				}
			}
			add('n', i, end)
			i = end
		default:
			_, n := utf8.DecodeRuneInString(body[i:])
			for _, two := range []string{"==", "!=", ">=", "<=", ".."} {
				if strings.HasPrefix(body[i:], two) {
					n = 2
				}
			}
			add('o', i, i+n)
			i += n
		}
	}
	p.toks = append(p.toks, lexeme{'e', "", at + len(body)})
}

func (p *exprParser) peek() lexeme {
	if p.pos < len(p.toks) {
		return p.toks[p.pos]
	}
	return lexeme{kind: 'e'}
}

func (p *exprParser) next() lexeme {
	t := p.peek()
	p.pos++
	return t
}

func (p *exprParser) accept(text string) bool {
	t := p.peek()
	if (t.kind == 'o' || t.kind == 'i') && t.text == text {
		p.pos++
		return true
	}
	return false
}

func (p *exprParser) fail(t lexeme, format string, args ...any) {
	if !p.bad {
		p.c.fail(t.at, format, args...)
	}
	p.bad = true
}

func (p *exprParser) unexpected(t lexeme, want string) {
	switch {
	case t.kind == 'e':
		p.fail(t, "%s is missing", want)
	case t.kind == 'o' && t.text == "=":
		p.fail(t, "= compares nothing: write ==")
	default:
		p.fail(t, "%q is not expected here: %s is", t.text, want)
	}
}

func (p *exprParser) end() bool {
	if t := p.peek(); t.kind != 'e' && !p.bad {
		p.unexpected(t, "the end")
	}
	return !p.bad
}

func (p *exprParser) write(s ...string) {
	for _, part := range s {
		p.out.WriteString(part)
	}
}

// term is what a filtered expression turned out to be.
type term struct {
	filters []string // their names, in order
	literal string   // of a lone string
	name    string   // of a lone variable without a path
	steps   []any    // of a lone variable from outside: names and, in lists, numbers; nil when one is computed
	mark    int      // where the last filter begins in the output
}

// cond reads comparisons with and, or. plain is true when it is one filtered expression.
func (p *exprParser) cond() (t term, plain bool) {
	t, plain = p.relation()
	for !p.bad {
		switch {
		case p.accept("and"):
			p.write(" and ")
		case p.accept("or"):
			p.write(" or ")
		default:
			return t, plain
		}
		p.relation()
		plain = false
	}
	return t, plain
}

func (p *exprParser) relation() (term, bool) {
	t := p.filtered()
	op := p.peek()
	if (op.kind != 'o' || !slices.Contains([]string{"==", "!=", ">", "<", ">=", "<="}, op.text)) && (op.kind != 'i' || op.text != "contains") {
		return t, true
	}
	p.next()
	if len(t.filters) > 0 {
		p.fail(op, "what a filter gives cannot be compared here: {%% assign %%} it to a name first")
	}
	p.write(" ", op.text, " ")
	p.primary()
	return term{}, false
}

func (p *exprParser) filtered() term {
	t := p.primary()
	for !p.bad && p.accept("|") {
		name := p.next()
		if name.kind != 'i' && name.kind != 'k' {
			p.unexpected(name, "the name of a filter")
			return t
		}
		f, ok := p.c.filters[name.text]
		if !ok || strings.HasPrefix(name.text, "_") {
			p.fail(name, "unknown filter %q%s", name.text, suggest(name.text, filterNames()))
			return t
		}
		if name.text == "date" && len(t.filters) == 0 && (t.literal == "now" || t.literal == "today") {
			p.fail(name, "a template has no clock: %q is not known", t.literal)
		}
		t.mark = p.out.Len()
		p.write(" | ", name.text)
		args := 0
		if name.kind == 'k' {
			p.write(": ")
			for {
				p.primary()
				args++
				if p.bad || !p.accept(",") {
					break
				}
				p.write(", ")
			}
		}
		if !p.bad && (args < f.min || args > f.max) {
			p.fail(name, "the filter %q takes %s, not %d", name.text, f.arity(), args)
		}
		t.filters = append(t.filters, name.text)
		t.name, t.literal = "", ""
		if name.text != "raw" { // which changes nothing
			t.steps = nil
		}
	}
	return t
}

func (p *exprParser) primary() term {
	var t term
	tok := p.next()
	if p.deep++; p.deep > maxNesting {
		p.fail(tok, "brackets are nested deeper than %d", maxNesting)
		return t
	}
	defer func() { p.deep-- }()
	switch tok.kind {
	case 's':
		if strings.ContainsAny(tok.text, "\r\n") {
			p.fail(tok, "a text in a template must be on one line")
		}
		if strings.Contains(tok.text, "}}") || strings.Contains(tok.text, "%}") {
			p.fail(tok, "a text in a template cannot contain }} or %%}")
		}
		t.literal = tok.text[1 : len(tok.text)-1]
		p.write(tok.text)
	case 'n':
		if len(tok.text) > 15 {
			p.fail(tok, "the number %s is too long", tok.text)
		}
		p.write(tok.text)
	case 'i':
		t.name, t.steps = p.variable(tok)
		return t
	case 'o':
		if tok.text != "(" {
			p.unexpected(tok, "a value")
			return t
		}
		p.parenthesis()
	default:
		p.unexpected(tok, "a value")
		return t
	}
	p.accessors(nil)
	return t
}

// parenthesis reads the rest of (a..b) or (condition).
func (p *exprParser) parenthesis() {
	before := p.out.String()
	p.out.Reset()
	p.cond()
	first := p.out.String()
	p.out.Reset()
	p.write(before)
	if p.accept("..") {
		// the ends of a range must be whole numbers for the engine
		p.write("((", first, " | _int) .. (")
		p.primary()
		p.write(" | _int))")
	} else {
		p.write("(", first, ")")
	}
	if t := p.next(); !p.bad && t.text != ")" {
		p.unexpected(t, ")")
	}
}

// variable reads the rest of a variable and notes its name. It gives the name
// of one without a path, and the way to one from outside.
func (p *exprParser) variable(tok lexeme) (string, []any) {
	switch tok.text {
	case "true", "false", "nil":
		p.write(tok.text)
		return "", nil
	case "null":
		p.write("nil")
		return "", nil
	case "empty", "blank":
		p.fail(tok, "%q is not known: a value that is not there is false, so write {%% if name %%} or {%% unless name %%}", tok.text)
		return "", nil
	case "and", "or", "contains", "in":
		p.unexpected(tok, "a value")
		return "", nil
	}
	p.write(tok.text)
	way := &way{path: []string{tok.text}, steps: []any{tok.text}}
	whole := p.accessors(way)
	if p.c.isLocal(tok.text) {
		way.steps = nil
	} else {
		line, col := p.c.position(tok.at)
		p.c.names = append(p.c.names, Name{Path: way.path, Line: line, Col: col})
	}
	if whole {
		return tok.text, way.steps
	}
	return "", way.steps
}

// way is how a value is reached: path as far as its names are known, steps when all of it is.
type way struct {
	path  []string
	steps []any
}

// accessors reads .name and [index], as many as there are, and says whether
// there were none. w is extended as far as it is known.
func (p *exprParser) accessors(w *way) bool {
	none, known := true, w != nil
	if w == nil {
		w = &way{}
	}
	for !p.bad {
		t := p.peek()
		switch {
		case t.kind == 'p':
			p.next()
			p.write(".", t.text)
			if known {
				w.path = append(w.path, t.text)
			}
			if w.steps != nil {
				w.steps = append(w.steps, t.text)
			}
		case t.kind == 'o' && t.text == "[":
			p.next()
			p.write("[")
			index, from := p.peek(), p.pos
			p.primary()
			alone := p.pos == from+1
			p.write("]")
			if known && index.kind == 's' {
				w.path = append(w.path, strings.Trim(index.text, `"'`))
			} else {
				known = false
			}
			n, err := strconv.Atoi(index.text)
			switch {
			case w.steps == nil:
			case alone && index.kind == 's':
				w.steps = append(w.steps, index.text[1:len(index.text)-1])
			case alone && index.kind == 'n' && err == nil:
				w.steps = append(w.steps, n)
			default:
				w.steps = nil
			}
			if end := p.next(); !p.bad && end.text != "]" {
				p.unexpected(end, "]")
			}
		default:
			return none
		}
		none = false
	}
	return none
}
