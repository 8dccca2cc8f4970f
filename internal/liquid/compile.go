package liquid

import (
	"cmp"
	"slices"
	"strings"
	"unicode"
)

// compiler checks a template and writes it anew for the engine: each output
// with its escaping, each loop with its count.
type compiler struct {
	scanner
	mode    Mode
	filters map[string]filter
	names   []Name
	// literals are what is put out as it is, outside of all blocks; what is compiled is between them.
	literals []string
	// direct are the holes that are a variable and nothing else, by number; rest is the template of the others.
	direct map[int]direct
	rest   strings.Builder
	asked  []any // the way to the variable that the last condition is, where it is one alone

	locals   map[string]bool // names that the template has made so far, but for loops'
	assigned map[string]bool // names that are assigned or looped over anywhere
	captured map[string]bool // names that are captured anywhere
	blocks   []block
	ctx      htmlContext
}

type block struct {
	tag     string // if unless case for capture
	at      int
	loop    string // the variable of a for
	keeps   string // that of a capture
	ctx     htmlContext
	ends    *htmlContext // where the branches so far end
	branch  string       // the tag that began the present one
	sawElse bool
}

func (c *compiler) sorted() []Problem {
	slices.SortStableFunc(c.problems, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Col, b.Col))
	})
	return c.problems
}

func (c *compiler) isLocal(name string) bool {
	return c.locals[name] || slices.ContainsFunc(c.blocks, func(b block) bool {
		return b.loop != "" && (name == b.loop || name == "forloop")
	})
}

// compile gives the template for the engine: what is between the literals.
func (c *compiler) compile(toks []token) string {
	c.locals, c.assigned, c.captured = map[string]bool{}, map[string]bool{}, map[string]bool{}
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
	var b, text strings.Builder
	hole := false
	part := 0          // where the hole begins in b
	var branch *direct // an if of one variable, with nothing but texts and variables in it; nil elsewhere
	literal := func(s string) {
		if hole {
			if _, ok := c.direct[len(c.literals)-1]; !ok {
				c.rest.WriteString(b.String()[part:] + "{% " + cutTag + " %}")
			}
			b.WriteString("{% " + cutTag + " %}")
			hole = false
		}
		text.WriteString(s)
	}
	c.direct = map[int]direct{}
	for i, t := range toks {
		if len(c.problems) >= maxProblems {
			break
		}
		if t.kind != textToken && t.kind != rawToken && t.kind != commentToken || len(c.blocks) > 0 {
			if hole && len(c.blocks) == 0 {
				literal("") // each is a hole by itself
			}
			if !hole {
				c.literals = append(c.literals, text.String())
				text.Reset()
				part = b.Len()
			}
			hole = true
		}
		switch t.kind {
		case textToken:
			// what is trimmed is left out here, and not by the engine, which would trim values too
			if i > 0 && toks[i-1].trimRight {
				t.src = strings.TrimLeftFunc(t.src, unicode.IsSpace)
			}
			if i+1 < len(toks) && toks[i+1].trimLeft {
				t.src = strings.TrimRightFunc(t.src, unicode.IsSpace)
			}
			c.ctx.feed(t.src)
			if len(c.blocks) == 0 {
				literal(t.src)
				continue
			}
			branch.add(insert{text: t.src})
			if brace, ok := strings.CutSuffix(t.src, "{"); ok && i+1 < len(toks) {
				t.src = brace + "{{ '{' }}" // else the engine would take it with the mark that now follows it
			}
			b.WriteString(t.src)
		case rawToken:
			c.ctx.feed(t.src)
			if len(c.blocks) == 0 {
				literal(t.src)
				continue
			}
			branch.add(insert{text: t.src})
			if t.src != "" {
				b.WriteString("{% raw %}" + t.src + "{% endraw %}")
			}
		case outputToken:
			expr, d := c.output(t)
			b.WriteString("{{ " + expr + " }}")
			switch {
			case len(c.blocks) > 0 && d == nil:
				branch = nil
			case len(c.blocks) > 0:
				branch.add(insert{value: d})
			case d != nil:
				c.direct[len(c.literals)-1] = *d
			}
		case tagToken:
			out := c.tag(t)
			switch {
			case t.name == "if" && len(c.blocks) == 1 && c.asked != nil:
				branch = &direct{steps: c.asked}
			case t.name == "endif" && len(c.blocks) == 0 && branch != nil:
				c.direct[len(c.literals)-1] = *branch
				branch = nil
			default:
				branch = nil
			}
			if out != "" {
				b.WriteString("{% " + out + " %}")
				if t.name == "for" {
					b.WriteString("{% _tick %}")
				}
			}
		case commentToken: // nothing of it goes out
		}
	}
	for _, open := range c.blocks {
		c.fail(open.at, "{%% %s %%} is never closed: put {%% end%s %%} after it", open.tag, open.tag)
	}
	literal("")
	c.literals = append(c.literals, text.String())
	return b.String()
}

// output gives an output with its escaping, and how it is had without the engine, where that is a look at a variable.
func (c *compiler) output(t token) (string, *direct) {
	if strings.TrimSpace(t.body) == "" {
		c.fail(t.start, "{{ }} is empty")
		return "nil", nil
	}
	p := c.expression(t.body, t.bodyStart)
	what, plain := p.cond()
	if !p.end() {
		return "nil", nil
	}
	expr := p.out.String()
	if !plain {
		expr = "(" + expr + ")"
	}
	last := ""
	if len(what.filters) > 0 {
		last = what.filters[len(what.filters)-1]
	}
	plainly := func(escape func(any) (string, error)) *direct {
		if !plain || what.steps == nil {
			return nil
		}
		return &direct{steps: what.steps, escape: escape}
	}
	if last == "raw" {
		return expr[:what.mark] + " | _text", plainly(asText)
	}
	if c.mode != HTML {
		return expr + " | _text", plainly(asText)
	}
	escape, problem := c.ctx.escape()
	if problem != "" {
		c.fail(t.start, "%s", problem)
		return "nil", nil
	}
	captured := what.name != "" && c.captured[what.name] && !c.assigned[what.name] && c.isLocal(what.name)
	if escape == "_url" {
		switch { // an address is looked at before it is escaped, whatever was asked for
		case last == "escape" || last == "newline_to_br":
			return expr[:what.mark] + " | _url", nil
		case last == "escape_once" || captured:
			return expr + " | _escaped_url", nil
		}
		return expr + " | _url", plainly(asURL)
	}
	switch {
	case last == "escape" || last == "escape_once":
		return expr, nil
	case last == "newline_to_br":
		return expr[:what.mark] + " | _html" + expr[what.mark:], nil
	case captured:
		// what was captured was escaped as it was written
		return expr + " | _text", nil
	}
	if escape == "_html" {
		return expr + " | _html", plainly(asHTML)
	}
	return expr + " | " + escape, nil
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
		c.blocks[len(c.blocks)-1].keeps = name
		return "_capture " + name
	case "break", "continue":
		for _, b := range slices.Backward(c.blocks) {
			if b.tag == "for" {
				c.endsWhereItBegan(&b, t)
				return t.name
			}
		}
		c.fail(t.start, "{%% %s %%} is for loops", t.name)
	case parametersTag:
		return c.parameters(t)
	case "endif", "endunless", "endcase", "endfor", "endcapture", "end" + parametersTag:
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
	c.blocks = append(c.blocks, block{tag: t.name, branch: t.name, at: t.start, ctx: c.ctx})
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
	c.endBranch(&b, t)
	if !b.sawElse && (want == "if" || want == "unless" || want == "case") { // there may be no branch to take
		c.ctx, b.branch = b.ctx, "else"
		c.endBranch(&b, t)
	}
	c.ctx = *b.ends
	if want == "capture" {
		c.locals[b.keeps] = true // from here on
		return "end_capture"
	}
	return t.name
}

// endBranch notes where a branch ends. Whichever is taken, the HTML must go on
// from one place, else no value after them could be escaped for where it stands.
func (c *compiler) endBranch(b *block, t token) {
	at := c.ctx
	switch b.branch {
	case "case": // what is before the first when is never put out
		return
	case "for", "capture": // put out any number of times, or elsewhere
		c.endsWhereItBegan(b, t)
		at = b.ctx
	case parametersTag:
		c.endsInTheValue(b, t)
	}
	if b.ends == nil {
		b.ends = &at
		return
	}
	joined, ok := b.ends.join(at)
	if !ok && c.mode == HTML {
		c.fail(t.start, "the branches of this {%% %s %%} end at different places of the HTML, one %s and one %s: close in each what it opens", b.tag, b.ends.where(), at.where())
	}
	b.ends = &joined
}

func (c *compiler) endsWhereItBegan(b *block, t token) {
	joined, ok := b.ctx.join(c.ctx)
	if (!ok || joined != b.ctx.place()) && c.mode == HTML {
		c.fail(t.start, "what is in this {%% %s %%} begins %s and ends %s: close in it what it opens", b.tag, b.ctx.where(), c.ctx.where())
	}
}

func (c *compiler) condition(t token) string {
	p := c.expression(t.body, t.bodyStart)
	what, plain := p.cond()
	p.end()
	if c.asked = nil; plain && len(what.filters) == 0 {
		c.asked = what.steps
	}
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
	c.endBranch(b, t)
	c.ctx, b.branch = b.ctx, t.name
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
	for n := 1; ; n++ {
		if value := p.peek(); n > maxValues {
			p.fail(value, "a when has more than %d values: write several", maxValues)
		}
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
	c.blocks[len(c.blocks)-1].loop = name.text
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
	c.locals[name.text] = true
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
