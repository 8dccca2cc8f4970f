package emailsource

import (
	"regexp"
	"slices"
	"strings"

	"github.com/onda-run/onda/internal/liquid"
)

var liquidTag = regexp.MustCompile(`^\{%-?\s*(\w+)`)

// nesting follows which elements are open as Liquid has it: each branch of {% if %} begins with those that were open before it, as {% if a %}<td>{% else %}<th>{% endif %}
// does. What is in elements that depend on a branch is unsure of what it is in. A page is written for a parser, which knows no branches, so that each branch begins alike there too.
type nesting struct {
	m      *liquid.Masked
	mark   *regexp.Regexp
	page   *strings.Builder
	open   []opened
	blocks []branches
	lost   bool // what was captured opens or closes elements wherever it is put out
}

// opened is an element that is open.
type opened struct {
	raw     string   // its tag, as it is written
	written string   // as it is in the page
	names   []string // that close it: one, but where branches differ
	unsure  bool     // it is of one branch
}

// branches are those of a tag that is open.
type branches struct {
	tag    string
	before []opened
	ends   [][]opened
	all    bool // there is an else
}

// unsure says whether what an element here is in depends on a branch.
func (n *nesting) unsure() bool {
	return n.lost || slices.ContainsFunc(n.open, func(o opened) bool { return o.unsure }) || slices.ContainsFunc(n.blocks, func(b branches) bool { return b.tag == "capture" })
}

// liquid goes through the marks of a piece of the page.
func (n *nesting) liquid(raw string) {
	for _, mark := range n.mark.FindAllString(raw, -1) {
		if name := liquidTag.FindStringSubmatch(n.m.Restore(mark)); name != nil {
			n.tag(name[1])
		}
	}
}

func (n *nesting) tag(name string) {
	switch name {
	case "if", "unless", "case", "for", "capture":
		n.blocks = append(n.blocks, branches{tag: name, before: slices.Clone(n.open)})
		return
	}
	if len(n.blocks) == 0 {
		return
	}
	b := &n.blocks[len(n.blocks)-1]
	switch name {
	case "else", "elsif", "when":
		if b.tag != "case" { // before its first when nothing is put out
			b.ends = append(b.ends, slices.Clone(n.open))
		} else {
			b.tag = "when"
		}
		b.all = b.all || name == "else"
		n.to(b.before)
	case "endcapture":
		n.lost = n.lost || !slices.EqualFunc(n.open, b.before, same)
		n.to(b.before)
		n.blocks = n.blocks[:len(n.blocks)-1]
	case "endif", "endunless", "endcase", "endfor":
		b.ends = append(b.ends, slices.Clone(n.open))
		if !b.all {
			b.ends = append(b.ends, b.before)
		}
		n.join(b.ends)
		n.blocks = n.blocks[:len(n.blocks)-1]
	}
}

// same says whether two elements are one to whom looks from within.
func same(a, b opened) bool { return a.raw == b.raw && a.unsure == b.unsure }

// common is how many elements two have in common.
func common(a, b []opened) (k int) {
	for k < min(len(a), len(b)) && same(a[k], b[k]) {
		k++
	}
	return k
}

// to closes and opens elements in the page, so that these are open.
func (n *nesting) to(open []opened) {
	k := common(n.open, open)
	if n.page.Len() <= maxNumbered {
		for _, o := range slices.Backward(n.open[k:]) {
			n.page.WriteString("</" + tagName(o.raw) + ">")
		}
		for _, o := range open[k:] {
			n.page.WriteString(o.written)
		}
	}
	n.open = slices.Clone(open)
}

// join goes on after branches. Elements that not all have open may be open, until they are closed in one of the next branches.
func (n *nesting) join(ends [][]opened) {
	k, longest, shortest, closes := len(ends[0]), ends[0], ends[0], true
	for _, e := range ends[1:] {
		k = min(k, common(ends[0], e))
		if len(e) > len(longest) {
			longest = e
		}
		if len(e) < len(shortest) {
			shortest = e
		}
	}
	for _, e := range ends {
		closes = closes && !slices.ContainsFunc(e[k:], func(o opened) bool { return !o.unsure })
	}
	on := longest
	if closes {
		on = shortest
	}
	n.to(on)
	for i := k; i < len(n.open); i++ {
		o := &n.open[i]
		o.unsure, o.names = true, slices.Clone(o.names)
		for _, e := range ends {
			if i < len(e) {
				o.names = append(o.names, e[i].names...)
			}
		}
	}
}

// opens takes an opening tag.
func (n *nesting) opens(name, raw, written string) {
	switch name {
	case "area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr":
		return
	}
	n.open = append(n.open, opened{raw: raw, written: written, names: []string{name}})
}

// closes takes a closing tag, and writes it for the element that it closes.
func (n *nesting) closes(name, raw string) {
	for i, o := range slices.Backward(n.open) {
		if slices.Contains(o.names, name) {
			if opening := tagName(o.raw); !strings.EqualFold(opening, name) {
				raw = "</" + opening + ">"
			}
			n.open = n.open[:i]
			break
		}
	}
	n.page.WriteString(raw)
}
