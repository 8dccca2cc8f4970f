package emailsource

import (
	"cmp"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	nethtml "golang.org/x/net/html"

	"github.com/onda-run/onda/internal/liquid"
)

// numberAttr tells elements apart while their styles are looked up. It is in no mail.
const numberAttr = "data-onda-n"

const (
	maxCSS   = 64 << 10 // bytes of a page's styles: each selector is compared with each element
	gmailCSS = 16 << 10 // what Gmail reads of them
	maxWork  = 1 << 26  // comparisons of declarations

	maxNumbered = 8 << 20 // bytes of a page whose elements are numbered
)

// inlineCSS puts the rules of a page's style elements into the style attributes of the elements that they are of, for mail programs that read no others. The style
// elements stay as they are written, and for programs that read them nothing may change:
//
//   - What holds only at times, in @media, a sheet with a medium, or while a link is pointed at, gets !important where a value in an attribute would beat it.
//   - What cannot be told from the template is not inlined, and neither is a value that would beat it: a:visited, tr:last-child where Liquid makes rows, a class that
//     Liquid writes, a sheet that has Liquid in it.
//   - What an element is in counts only where it is the same in all branches of {% if %} and its like.
//   - Elements with Liquid in or around their style are left alone.
func inlineCSS(page string) (string, error) {
	m := liquid.Mask(page)
	p := readPage(m)
	if len(p.sheets) == 0 {
		return page, nil
	}
	if p.size > maxCSS {
		return "", fmt.Errorf("its styles are larger than %d KiB: shorten them", maxCSS>>10)
	}
	if p.numbered.Len() > maxNumbered {
		return "", errors.New("it opens and closes too many elements in branches: shorten it")
	}
	root, err := nethtml.Parse(strings.NewReader(p.numbered.String()))
	if err != nil {
		return "", fmt.Errorf("its HTML cannot be read: %w", err)
	}
	c := &cascade{liquid: m.Has(m.Text)}
	for _, s := range p.sheets {
		c.read(s)
	}
	styles := map[string]string{}
	if c.walk(root, p, false, styles); c.work > maxWork {
		return "", errors.New("its styles are too many for its elements: shorten them")
	}
	var out strings.Builder
	for _, t := range p.tags {
		switch {
		case t.sheet != nil:
			out.WriteString(t.sheet.written())
		case styles[t.number] != "":
			out.WriteString(withAttr(t.raw, "style", styles[t.number]))
		default:
			out.WriteString(t.raw)
		}
	}
	return m.Restore(out.String()), nil
}

// taken is a page, taken apart.
type taken struct {
	tags     []tag
	sheets   []*sheet
	size     int             // of their text
	numbered strings.Builder // the page without them, its elements numbered

	uncertain map[string]bool // elements of which Liquid writes some attributes, by number
	alone     map[string]bool // those that are left alone
	unsettled map[string]bool // those that are in other elements in one branch than in another
}

type tag struct {
	raw    string
	number string // of an element's opening tag
	sheet  *sheet // of a style element, text between tags
}

// sheet is the text of a style element.
type sheet struct {
	text    string
	atTimes bool           // it has a medium
	liquid  *liquid.Masked // it has Liquid in it

	important []*declaration
}

func readPage(m *liquid.Masked) *taken {
	p := &taken{uncertain: map[string]bool{}, alone: map[string]bool{}, unsettled: map[string]bool{}}
	in := &nesting{m: m, mark: regexp.MustCompile(m.Pattern()), page: &p.numbered}
	z := nethtml.NewTokenizer(strings.NewReader(m.Text))
	other := func(kind nethtml.TokenType, name, raw string) {
		p.tags = append(p.tags, tag{raw: raw})
		if kind == nethtml.EndTagToken {
			in.closes(name, raw)
		} else {
			p.numbered.WriteString(raw)
		}
	}
	for kind := z.Next(); kind != nethtml.ErrorToken; kind = z.Next() {
		raw := string(z.Raw())
		tag, _ := z.TagName()
		name := string(tag)
		in.liquid(raw)
		if kind != nethtml.StartTagToken && kind != nethtml.SelfClosingTagToken {
			other(kind, name, raw)
			continue
		}
		from, n := p.numbered.Len(), strconv.Itoa(len(p.tags))
		p.element(m, raw)
		p.unsettled[n] = in.unsure()
		in.opens(name, raw, p.numbered.String()[from:])
		if name != "style" || kind != nethtml.StartTagToken {
			continue
		}
		if kind = z.Next(); kind == nethtml.TextToken {
			text := string(z.Raw())
			in.liquid(text)
			p.style(m, raw, text)
		} else {
			other(kind, name, string(z.Raw()))
		}
	}
	return p
}

// element reads an opening tag. The attributes that Liquid writes are left out of the numbered page: which they are is not known before it is rendered.
func (p *taken) element(m *liquid.Masked, raw string) {
	n := strconv.Itoa(len(p.tags))
	p.tags = append(p.tags, tag{raw: raw, number: n})
	p.numbered.WriteString("<" + tagName(raw) + " " + numberAttr + `="` + n + `"`)
	for _, a := range attributes(raw) {
		if m.Has(a.name) {
			p.uncertain[n], p.alone[n] = true, true
			break
		}
		written := raw[a.from:a.to]
		if m.Has(a.value) {
			switch a.name {
			case "style":
				p.alone[n] = true
			case "class": // the words before the first are there in any case
				p.uncertain[n] = true
				var sure []string
				for _, word := range strings.Fields(a.value) {
					if m.Has(word) {
						break
					}
					sure = append(sure, word)
				}
				written = `class="` + strings.Join(sure, " ") + `"`
			case "href": // there is one, which a:link asks for
			default:
				p.uncertain[n] = true
				written = ""
			}
		}
		p.numbered.WriteString(" " + written)
	}
	if strings.HasSuffix(raw, "/>") {
		p.numbered.WriteString(" /")
	}
	p.numbered.WriteString(">")
}

// style reads the text of a style element.
func (p *taken) style(m *liquid.Masked, open, text string) {
	medium, _ := attr(open, "media")
	s := &sheet{text: text}
	if medium = strings.ToLower(strings.TrimSpace(medium)); medium != "" && medium != "all" {
		s.atTimes = true
	}
	if m.Has(open + text) {
		s.liquid = m
	}
	p.size += len(text)
	p.sheets = append(p.sheets, s)
	p.tags = append(p.tags, tag{sheet: s})
}

// written is the sheet with !important where it is needed.
func (s *sheet) written() string {
	slices.SortFunc(s.important, func(a, b *declaration) int { return cmp.Or(a.end-b.end, a.from-b.from) })
	var out strings.Builder
	at := 0
	for i, d := range s.important {
		end := d.end
		if d.extra == "" {
			out.WriteString(s.text[at:end] + " !important")
		} else {
			out.WriteString(s.text[at:end])
			if i == 0 || s.important[i-1].end != end {
				out.WriteString("\n" + d.extra + " {")
			}
			out.WriteString(" " + d.name + ": " + d.value + " !important;")
			if i == len(s.important)-1 || s.important[i+1].end != end {
				out.WriteString(" }")
			}
		}
		at = end
	}
	return out.String() + s.text[at:]
}

// walk finds the styles of an element and of those in it.
func (c *cascade) walk(n *nethtml.Node, p *taken, around bool, styles map[string]string) {
	if n.Type == nethtml.ElementNode {
		number, own := "", ""
		for _, a := range n.Attr {
			switch a.Key {
			case numberAttr:
				number = a.Val
			case "style":
				own = a.Val
			}
		}
		if number != "" && !p.alone[number] {
			if _, done := styles[number]; !done {
				styles[number] = c.style(element{n, p.uncertain[number], around, p.unsettled[number]}, own)
			}
		}
		around = around || p.uncertain[number]
	}
	for child := range n.ChildNodes() {
		c.walk(child, p, around, styles)
	}
}

// style is what an element's style attribute says with what the rules say before it.
func (c *cascade) style(e element, own string) string {
	var sure, kept []*match
	for _, r := range c.rules {
		var best *selector
		for _, s := range r.selectors {
			definite, perhaps := s.matches(e)
			if definite && !r.atTimes {
				if best == nil || best.weight.Less(s.weight) {
					best = s
				}
			} else if perhaps {
				for _, d := range r.declarations {
					kept = append(kept, &match{d, s, r})
				}
			}
		}
		if best == nil {
			continue
		}
		for _, d := range r.declarations {
			if one := (&match{d, best, r}); d.inlined {
				sure = append(sure, one)
			} else {
				kept = append(kept, one)
			}
		}
	}
	if c.work += len(sure) * len(kept); c.work > maxWork {
		return ""
	}
	slices.SortStableFunc(sure, compare)
	said := map[string]bool{} // by the element itself
	for _, one := range split(own, ';') {
		name, _, _ := strings.Cut(one, ":")
		said[strings.ToLower(strings.TrimSpace(name))] = true
	}
	var before, after []string
	by := map[string]*rule{} // that a property is of
	for _, one := range slices.Backward(sure) {
		if r := by[one.name]; r != nil && r != one.rule || beats(one, kept) {
			continue
		}
		by[one.name] = one.rule
		if text := one.name + ":" + one.value; one.important { // it goes before the element's own, and without the word: with it it would beat @media
			after = append(after, text)
		} else {
			before = append(before, text)
		}
		for _, k := range kept {
			if !said[one.name] && k.atTimes() && conflict(one, k) && compare(one, k) < 0 {
				k.lift()
			}
		}
	}
	slices.Reverse(before)
	slices.Reverse(after)
	if own = strings.TrimRight(own, ";"+blanks); len(before)+len(after) > 0 && own != "" {
		before = append(before, own)
	}
	return strings.Join(append(before, after...), ";")
}

// beats says whether a value in an attribute would beat one that goes before it and stays in its sheet.
func beats(one *match, kept []*match) bool {
	return slices.ContainsFunc(kept, func(k *match) bool {
		return !k.atTimes() && k.rule != one.rule && conflict(one, k) && compare(one, k) < 0
	})
}

// conflict says whether a declaration in an attribute keeps one in a sheet from being seen.
func conflict(one, k *match) bool {
	return !k.important && related(one.name, k.name) && (one.name != k.name || one.value != k.value)
}

// related says whether one property may say what the other does too, as margin and margin-top.
func related(a, b string) bool {
	family := func(name string) string {
		if strings.HasPrefix(name, "border") && name != "border-radius" && name != "border-collapse" && name != "border-spacing" {
			return "border"
		}
		if name == "line-height" { // which font says too
			return "font-height"
		}
		return name
	}
	if a == "all" || b == "all" {
		return true
	}
	a, b = family(a), family(b)
	return a == b || strings.HasPrefix(a, b+"-") || strings.HasPrefix(b, a+"-")
}

// cssSize is how much of a masked page is styles.
func cssSize(page string) (size int) {
	z := nethtml.NewTokenizer(strings.NewReader(page))
	for kind := z.Next(); kind != nethtml.ErrorToken; kind = z.Next() {
		if name, _ := z.TagName(); kind == nethtml.StartTagToken && string(name) == "style" && z.Next() == nethtml.TextToken {
			size += len(z.Raw())
		}
	}
	return size
}
