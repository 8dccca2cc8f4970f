package emailsource

import (
	"cmp"
	"regexp"
	"slices"
	"strings"

	"github.com/andybalholm/cascadia"
	nethtml "golang.org/x/net/html"
)

var (
	comment    = regexp.MustCompile(`(?s)/\*.*?\*/|<!--|-->`)
	property   = regexp.MustCompile(`^-?[A-Za-z][A-Za-z0-9-]*$`) // not hacks such as *zoom, nor --brand
	bang       = regexp.MustCompile(`(?i)\s*!\s*important$`)
	group      = regexp.MustCompile(`(?i)^@(media|supports|container|document|-moz-document)\b`)
	bracket    = regexp.MustCompile(`\[[^\]]*\]`)
	pseudo     = regexp.MustCompile(`\[[^\]]*\]|:[A-Za-z-]+(\((?:[^()]|\([^()]*\))*\))?`)
	pseudoName = regexp.MustCompile(`::?([A-Za-z-]+)`)
	part       = regexp.MustCompile(`(?s)^.*[\s>+~]`) // all but the last
	typeName   = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9-]*`)

	ofABox    = regexp.MustCompile(`(?i)::|:(before|after|first-line|first-letter)\b`) // and of no element itself
	ofTheUser = regexp.MustCompile(`(?i):(hover|active|focus)`)
	ofPlace   = regexp.MustCompile(`(?i)^(first-child|last-child|only-child|nth-.*|first-of-type|last-of-type|only-of-type|empty|not)$`)
	ofAlways  = regexp.MustCompile(`(?i)^(link|root)$`) // nobody has been anywhere
)

// cascade are the rules of a page in their order.
type cascade struct {
	rules  []*rule
	liquid bool // the page has Liquid: which element is the first or the last is not known
	work   int  // comparisons of declarations so far
}

type rule struct {
	order        int
	selectors    []*selector
	declarations []*declaration
	atTimes      bool // it is in @media or its like, or a sheet with a medium
	sheet        *sheet
}

type declaration struct {
	name, value string
	important   bool
	inlined     bool // it can be

	from   int // where it is in the sheet
	end    int
	extra  string // the selectors of the rule that are of the user, where it has others; end is then the rule's
	lifted bool
}

// selector is one of a rule's.
type selector struct {
	inlined bool
	user    bool         // it holds while somebody points at the element
	sel     cascadia.Sel // nil where it may be of any element
	weight  cascadia.Specificity

	last   cascadia.Sel // its last part, of the element itself
	name   string       // that the last part asks for
	left   bool         // it has other parts
	asks   bool         // for attributes, which Liquid may write
	beside bool         // it asks for what is beside the element, and there is Liquid
}

// element is one of the page, with what is not known of it: its own attributes, or those of what it is in.
type element struct {
	node              *nethtml.Node
	uncertain, around bool
	unsettled         bool // what it is in depends on a branch
}

// match is a declaration that is, or may be, of an element.
type match struct {
	*declaration
	selector *selector
	rule     *rule
}

// read takes the rules of a sheet.
func (c *cascade) read(s *sheet) {
	text := comment.ReplaceAllStringFunc(s.text, func(found string) string { return strings.Repeat(" ", len(found)) })
	if s.liquid != nil { // what is between tags may be there
		text = regexp.MustCompile(s.liquid.Pattern()).ReplaceAllStringFunc(text, func(mark string) string {
			if s.liquid.IsTag(mark) {
				return " "
			}
			return mark
		})
	}
	c.block(s, text, 0, len(text), s.atTimes)
}

func (c *cascade) block(s *sheet, text string, at, to int, atTimes bool) {
	for at < to {
		end := at + statement(text[at:to])
		one, from := text[at:end], at
		at = end
		open := strings.IndexByte(one, '{')
		if open < 0 {
			continue
		}
		prelude, inside := strings.TrimSpace(one[:open]), from+open+1
		until := end
		if strings.HasSuffix(one, "}") {
			until--
		}
		switch {
		case group.MatchString(prelude):
			c.block(s, text, inside, until, true)
		case !strings.HasPrefix(prelude, "@"):
			c.rule(s, prelude, text, inside, until, atTimes)
		}
	}
}

func (c *cascade) rule(s *sheet, prelude, text string, inside, until int, atTimes bool) {
	r := &rule{order: len(c.rules), atTimes: atTimes && s.liquid == nil, sheet: s}
	var user []string
	for _, one := range split(prelude, ',') {
		if one = strings.TrimSpace(one); one == "" || ofABox.MatchString(one) {
			continue
		}
		sel := c.selector(one, s)
		r.selectors = append(r.selectors, sel)
		if sel.user {
			user = append(user, one)
		}
	}
	at := inside
	for _, one := range split(text[inside:until], ';') {
		from := at
		at += len(one) + 1
		name, value, is := strings.Cut(one, ":")
		name, value = strings.ToLower(strings.TrimSpace(name)), strings.TrimSpace(value)
		if s.liquid != nil && s.liquid.Has(name) {
			name = "all"
		}
		if !is || value == "" || !property.MatchString(name) || strings.ContainsAny(value, "{}") {
			continue
		}
		d := &declaration{name: name, from: from, end: from + len(strings.TrimRight(one, blanks))}
		d.value = bang.ReplaceAllString(value, "")
		d.important = d.value != value
		d.inlined = s.liquid == nil && !strings.Contains(value, "--")
		if !r.atTimes && len(user) < len(r.selectors) {
			d.extra, d.end = strings.Join(user, ", "), min(until+1, len(text))
		}
		r.declarations = append(r.declarations, d)
	}
	c.rules = append(c.rules, r)
}

// selector reads one. Of one that is not decided by the template it keeps what can be.
func (c *cascade) selector(text string, s *sheet) *selector {
	if s.liquid != nil && s.liquid.Has(text) {
		return &selector{}
	}
	outside := bracket.ReplaceAllString(text, "[]")
	full, err := cascadia.Parse(text)
	sel := &selector{sel: full, user: ofTheUser.MatchString(outside) && s.liquid == nil, asks: strings.ContainsAny(text, ".#[")}
	sel.beside = c.liquid && strings.ContainsAny(outside, "+~")
	sel.inlined = err == nil && !sel.beside && !strings.Contains(outside, "*")
	unsure := 0
	for _, found := range pseudoName.FindAllStringSubmatch(outside, -1) {
		if !ofAlways.MatchString(found[1]) && (c.liquid || !ofPlace.MatchString(found[1])) {
			unsure++
		}
	}
	if sel.inlined = sel.inlined && unsure == 0; err == nil && unsure == 0 {
		sel.weight = full.Specificity()
	} else {
		text = strings.TrimSpace(pseudo.ReplaceAllStringFunc(text, func(found string) string {
			if found[0] == '[' || ofAlways.MatchString(found[1:]) {
				return found
			}
			return ""
		}))
		if text == "" || strings.ContainsAny(text[len(text)-1:], ">+~") {
			text += "*"
		}
		loose, looseErr := cascadia.Parse(text)
		if looseErr != nil {
			return &selector{user: sel.user}
		}
		sel.sel = loose
		sel.weight = loose.Specificity().Add(cascadia.Specificity{0, max(unsure, 1), 0})
	}
	masked := pseudo.ReplaceAllStringFunc(text, func(found string) string { return strings.Repeat("x", len(found)) })
	last := text[len(part.FindString(masked)):]
	sel.left, sel.name = last != text, strings.ToLower(typeName.FindString(last))
	if sel.last, err = cascadia.Parse(last); err != nil {
		return &selector{user: sel.user}
	}
	return sel
}

// matches says whether the selector is of an element, and whether it may be.
func (s *selector) matches(e element) (definite, perhaps bool) {
	switch {
	case s.sel == nil:
		return false, true
	case s.left && e.unsettled:
		return false, s.last.Match(e.node) || s.asks && e.uncertain && (s.name == "" || s.name == e.node.Data)
	case s.sel.Match(e.node):
		return s.inlined, true
	case s.asks && e.uncertain && (s.name == "" || s.name == e.node.Data):
		return false, true
	}
	return false, (s.beside || s.asks && s.left && e.around) && s.last.Match(e.node)
}

func (m *match) atTimes() bool { return m.rule.atTimes || m.selector.user }

// lift gives the declaration !important.
func (m *match) lift() {
	if !m.lifted {
		m.lifted = true
		m.rule.sheet.important = append(m.rule.sheet.important, m.declaration)
	}
}

// compare orders by what wins.
func compare(a, b *match) int {
	rank := func(m *match) int {
		switch {
		case m.important:
			return 2
		case m.selector.sel == nil: // nobody knows how closely it says what it is of
			return 1
		}
		return 0
	}
	return cmp.Or(cmp.Compare(rank(a), rank(b)), slices.Compare(a.selector.weight[:], b.selector.weight[:]), cmp.Compare(a.rule.order, b.rule.order))
}

// statement gives where the first rule of a style sheet ends: after its braces, or its semicolon.
func statement(css string) int {
	end, depth := len(css), 0
	outsideQuotes(css, func(i int, c byte) bool {
		switch {
		case c == '{':
			depth++
			return true
		case c == '}' && depth > 0: // another opens nothing, and is of the next selector
			depth--
		case c != ';':
			return true
		}
		if depth > 0 {
			return true
		}
		end = i + 1
		return false
	})
	return end
}

// split cuts at a separator, outside brackets.
func split(css string, separator byte) (pieces []string) {
	from, depth := 0, 0
	outsideQuotes(css, func(i int, c byte) bool {
		switch c {
		case '(', '[', '{':
			depth++
		case ')', ']', '}':
			depth--
		case separator:
			if depth <= 0 {
				pieces = append(pieces, css[from:i])
				from = i + 1
			}
		}
		return true
	})
	return append(pieces, css[from:])
}

// outsideQuotes goes through what is not escaped and in no string.
func outsideQuotes(css string, next func(i int, c byte) bool) {
	quote := byte(0)
	for i := 0; i < len(css); i++ {
		switch c := css[i]; {
		case c == '\\':
			i++
		case quote != 0:
			if c == quote || c == '\n' {
				quote = 0
			}
		case c == '"' || c == '\'':
			quote = c
		default:
			if !next(i, c) {
				return
			}
		}
	}
}
