package liquid

import (
	"cmp"
	"slices"
	"strings"
)

// compiler checks a template and writes it anew for the engine: each output
// with its escaping, each loop with its count.
type compiler struct {
	scanner
	mode    Mode
	filters map[string]filter
	names   []Name

	locals   []string        // names that the template has made so far, loops' as long as they last
	assigned map[string]bool // names that are assigned or looped over anywhere
	captured map[string]bool // names that are captured anywhere
	blocks   []block
	ctx      htmlContext
}

type block struct {
	tag     string // if unless case for capture
	at      int
	locals  int // how many there were before
	ctx     htmlContext
	first   *htmlContext // at the end of the first branch
	sawElse bool
}

func (c *compiler) sorted() []Problem {
	slices.SortStableFunc(c.problems, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Col, b.Col))
	})
	return c.problems
}

func (c *compiler) isLocal(name string) bool { return slices.Contains(c.locals, name) }

// compile gives the template for the engine.
func (c *compiler) compile(toks []token) string {
	c.assigned, c.captured = map[string]bool{}, map[string]bool{}
	for _, t := range toks {
		if t.kind != tagToken {
			continue
		}
		first := strings.TrimSpace(t.body)
		if end := strings.IndexAny(first, " \t\r\n="); end >= 0 {
			first = first[:end]
		}
		switch t.name {
		case "assign", "for":
			c.assigned[first] = true
		case "capture":
			c.captured[first] = true
		}
	}
	var b strings.Builder
	for _, t := range toks {
		switch t.kind {
		case textToken:
			c.ctx.feed(t.src)
			b.WriteString(t.src)
		case rawToken:
			c.ctx.feed(t.src)
			if t.src != "" {
				b.WriteString("{% raw %}" + t.src + "{% endraw %}")
			}
		case outputToken:
			b.WriteString(c.wrap(t, "{{", c.output(t), "}}"))
		case tagToken:
			if out := c.tag(t); out != "" {
				b.WriteString(c.wrap(t, "{%", out, "%}"))
				if t.name == "for" {
					b.WriteString("{% _tick %}")
				}
			}
		}
	}
	for _, open := range c.blocks {
		c.fail(open.at, "{%% %s %%} is never closed: put {%% end%s %%} after it", open.tag, open.tag)
	}
	return b.String()
}

func (c *compiler) wrap(t token, open, body, closing string) string {
	if t.trimLeft {
		open += "-"
	}
	if t.trimRight {
		closing = "-" + closing
	}
	return open + " " + body + " " + closing
}

// output gives an output with its escaping.
func (c *compiler) output(t token) string {
	if strings.TrimSpace(t.body) == "" {
		c.fail(t.start, "{{ }} is empty")
		return "nil"
	}
	p := c.expression(t.body, t.bodyStart)
	what, plain := p.cond()
	if !p.end() {
		return "nil"
	}
	expr := p.out.String()
	if !plain {
		expr = "(" + expr + ")"
	}
	last := ""
	if len(what.filters) > 0 {
		last = what.filters[len(what.filters)-1]
	}
	if last == "raw" {
		return expr[:what.mark] + " | _text"
	}
	if c.mode != HTML {
		return expr + " | _text"
	}
	escape, problem := c.ctx.escape()
	if problem != "" {
		c.fail(t.start, "%s", problem)
		return "nil"
	}
	captured := what.name != "" && c.captured[what.name] && !c.assigned[what.name] && c.isLocal(what.name)
	if escape == "_url" {
		switch { // an address is looked at before it is escaped, whatever was asked for
		case last == "escape" || last == "newline_to_br":
			return expr[:what.mark] + " | _url"
		case last == "escape_once" || captured:
			return expr + " | _escaped_url"
		}
		return expr + " | _url"
	}
	switch {
	case last == "escape" || last == "escape_once":
		return expr
	case last == "newline_to_br":
		return expr[:what.mark] + " | _html" + expr[what.mark:]
	case captured:
		// what was captured was escaped as it was written
		return expr + " | _text"
	}
	return expr + " | " + escape
}

func tagNames() []string {
	return []string{
		"assign", "break", "capture", "case", "comment", "continue", "else", "elsif", "endcapture", "endcase",
		"endcomment", "endfor", "endif", "endraw", "endunless", "for", "if", "raw", "unless", "when",
	}
}

// tag checks a tag and gives it for the engine; "" when it is wrong.
func (c *compiler) tag(t token) string {
	switch t.name {
	case "if", "unless", "case":
		c.push(t)
		return t.name + " " + c.condition(t)
	case "elsif", "else", "when":
		return c.clause(t)
	case "for":
		return c.loop(t)
	case "assign":
		return c.assign(t)
	case "capture":
		name := strings.Trim(strings.TrimSpace(t.body), `"'`)
		if !c.localName(name, t.bodyStart, "capture") {
			return ""
		}
		c.push(t)
		return "_capture " + name
	case "break", "continue":
		if !slices.ContainsFunc(c.blocks, func(b block) bool { return b.tag == "for" }) {
			c.fail(t.start, "{%% %s %%} is for loops", t.name)
		}
		return t.name
	case "endif", "endunless", "endcase", "endfor", "endcapture":
		return c.pop(t)
	case "cycle", "tablerow", "include", "render", "increment", "decrement", "ifchanged", "layout":
		c.fail(t.start, "the tag %q is not part of Onda's Liquid", t.name)
	case "":
		c.fail(t.start, "the name of the tag is missing")
	default:
		c.fail(t.start, "unknown tag %q%s", t.name, suggest(t.name, tagNames()))
	}
	return ""
}

func (c *compiler) push(t token) {
	if len(c.blocks) == maxNesting {
		c.fail(t.start, "tags are nested deeper than %d", maxNesting)
	}
	c.blocks = append(c.blocks, block{tag: t.name, at: t.start, locals: len(c.locals), ctx: c.ctx})
}

func (c *compiler) pop(t token) string {
	want := strings.TrimPrefix(t.name, "end")
	if len(c.blocks) == 0 || c.blocks[len(c.blocks)-1].tag != want {
		if len(c.blocks) == 0 {
			c.fail(t.start, "{%% %s %%} closes nothing", t.name)
		} else {
			open := c.blocks[len(c.blocks)-1]
			line, _ := c.position(open.at)
			c.fail(t.start, "{%% %s %%} does not close the {%% %s %%} of line %d", t.name, open.tag, line)
			c.blocks = c.blocks[:len(c.blocks)-1] // said once, not again at the end
		}
		return ""
	}
	b := c.blocks[len(c.blocks)-1]
	c.blocks = c.blocks[:len(c.blocks)-1]
	if b.first != nil {
		c.ctx = *b.first
	}
	switch want {
	case "for":
		c.locals = c.locals[:b.locals]
	case "capture":
		// the name is there from here on
		body := c.src[b.at:]
		mark, _ := (&scanner{src: body}).mark(0)
		c.locals = append(c.locals, strings.Trim(strings.TrimSpace(mark.body), `"'`))
		c.ctx = b.ctx
		return "end_capture"
	}
	return t.name
}

func (c *compiler) condition(t token) string {
	p := c.expression(t.body, t.bodyStart)
	p.cond()
	p.end()
	return p.out.String()
}

// clause is else, elsif or when.
func (c *compiler) clause(t token) string {
	if len(c.blocks) == 0 {
		c.fail(t.start, "{%% %s %%} is in no {%% if %%}", t.name)
		return ""
	}
	b := &c.blocks[len(c.blocks)-1]
	fits := map[string][]string{
		"if": {"else", "elsif"}, "unless": {"else"}, "case": {"when", "else"}, "for": {"else"},
	}[b.tag]
	switch {
	case !slices.Contains(fits, t.name):
		c.fail(t.start, "{%% %s %%} does not belong to the {%% %s %%} it is in", t.name, b.tag)
		return ""
	case b.sawElse:
		c.fail(t.start, "{%% %s %%} after {%% else %%} is never reached", t.name)
		return ""
	}
	if b.first == nil && b.tag != "case" || b.tag == "case" && t.name != "when" && b.first == nil {
		at := c.ctx
		b.first = &at
	}
	c.ctx = b.ctx
	switch t.name {
	case "else":
		b.sawElse = true
		if strings.TrimSpace(t.body) != "" {
			c.fail(t.bodyStart, "else has no condition: write elsif")
		}
		return "else"
	case "elsif":
		return "elsif " + c.condition(t)
	}
	p := c.expression(t.body, t.bodyStart)
	for {
		p.primary()
		if p.bad || !p.accept(",") && !p.accept("or") {
			break
		}
		p.write(", ")
	}
	p.end()
	return "when " + p.out.String()
}

func (c *compiler) loop(t token) string {
	p := c.expression(t.body, t.bodyStart)
	name := p.next()
	if name.kind != 'i' || !c.localName(name.text, name.at, "for") {
		if name.kind != 'i' {
			p.unexpected(name, "the name of the loop's variable")
		}
		c.push(t)
		return ""
	}
	if !p.accept("in") {
		p.unexpected(p.peek(), "in")
	}
	p.write(name.text, " in ")
	p.filtered()
	p.write(" | _items")
	for !p.bad {
		mod := p.peek()
		if mod.kind == 'i' && mod.text == "reversed" {
			p.next()
			p.write(" reversed")
			continue
		}
		if mod.kind != 'k' || mod.text != "limit" && mod.text != "offset" {
			break
		}
		p.next()
		p.write(" ", mod.text, ": (")
		p.primary()
		p.write(" | _int)")
	}
	p.end()
	c.push(t)
	c.locals = append(c.locals, name.text, "forloop")
	return "for " + p.out.String()
}

func (c *compiler) assign(t token) string {
	p := c.expression(t.body, t.bodyStart)
	name := p.next()
	if name.kind != 'i' {
		p.unexpected(name, "the name of a variable")
		return ""
	}
	if !c.localName(name.text, name.at, "assign") {
		return ""
	}
	if !p.accept("=") {
		p.unexpected(p.peek(), "=")
		return ""
	}
	p.write(name.text, " = ")
	p.cond()
	p.end()
	c.locals = append(c.locals, name.text)
	return "assign " + p.out.String()
}

// localName checks the name of a variable that the template makes.
func (c *compiler) localName(name string, at int, tag string) bool {
	good := name != "" && !strings.HasPrefix(name, "_") && (name[0] < '0' || name[0] > '9')
	for i := range len(name) {
		good = good && (isLetter(name[i]) || name[i] == '-')
	}
	if !good || slices.Contains([]string{"in", "and", "or", "contains", "true", "false", "nil", "forloop", "empty", "blank", "null"}, name) {
		c.fail(at, "%q cannot be the name of a variable of {%% %s %%}", name, tag)
		return false
	}
	return true
}

// suggest gives `, did you mean "x"?` when one of known is near.
func suggest(name string, known []string) string {
	best, bestDistance := "", len(name)/3+2
	for _, k := range known {
		if d := distance(name, k); d < bestDistance {
			best, bestDistance = k, d
		}
	}
	if best == "" {
		return ""
	}
	return `, did you mean "` + best + `"?`
}

// distance is the number of letters to insert, delete or replace that make b of a.
func distance(a, b string) int {
	if len(a) > 64 || len(b) > 64 {
		return 64
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		last := row[0]
		row[0] = i + 1
		for j := range len(b) {
			step := 1
			if a[i] == b[j] {
				step = 0
			}
			last, row[j+1] = row[j+1], min(row[j+1]+1, row[j]+1, last+step)
		}
	}
	return row[len(b)]
}
