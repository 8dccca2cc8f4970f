package emailsource

import (
	"fmt"
	"html"
	"regexp"
	"strconv"
	"strings"

	"github.com/vanng822/go-premailer/premailer"
	nethtml "golang.org/x/net/html"

	"github.com/onda-run/onda/internal/liquid"
)

var (
	styleValue = regexp.MustCompile(`(?is)\sstyle\s*=\s*("[^"]*"|'[^']*'|[^\s"'>]+)`)
	mediaValue = regexp.MustCompile(`(?is)\smedia\s*=\s*("[^"]*"|'[^']*'|[^\s"'>]+)`)
	comment    = regexp.MustCompile(`(?s)/\*.*?\*/`)
)

// numberAttr tells elements apart while their styles are looked up. It is in no mail.
const numberAttr = "data-onda-n"

// maxCSS bounds the styles of a page: the library compares each selector with each element. Gmail reads 16 KiB.
const maxCSS = 64 << 10

// inlineCSS puts the rules of a page's style elements into the style attributes of the elements that they are of: many mail programs know no others. What an attribute
// cannot say stays in a style element: media queries, :hover and its like, at-rules, and style elements that have a medium or Liquid in them.
//
// The library that knows CSS gives its page as a browser would see it, with tags mended and Liquid between rows moved out of its table. So it is asked for the styles
// alone, and the page's own tags get them.
func inlineCSS(page string) (string, error) {
	m := liquid.Mask(page)
	p := readPage(m)
	if p.css == "" {
		return page, nil
	}
	if len(p.css) > maxCSS {
		return "", fmt.Errorf("its styles are larger than %d KiB: shorten them", maxCSS>>10)
	}
	kept, rules := atRules(p.css)
	styles, left, err := lookUp(p.numbered.String(), rules)
	if err != nil {
		return "", err
	}
	kept = strings.TrimSpace(kept + left)
	var out strings.Builder
	for _, t := range p.tags {
		switch {
		case t.css && kept != "":
			out.WriteString("<style>\n" + kept + "\n</style>")
			kept = ""
		case t.css:
		case t.number != "" && styles[t.number] != "":
			out.WriteString(withStyle(t.raw, styles[t.number]))
		default:
			out.WriteString(t.raw)
		}
	}
	return m.Restore(out.String()), nil
}

// taken is a page, taken apart.
type taken struct {
	tags     []tag
	css      string          // of its style elements
	numbered strings.Builder // the page without them and without style attributes, its elements numbered
}

type tag struct {
	raw    string
	number string // of an element's opening tag
	css    bool   // it was a style element, whose rules are in the page's css
}

func readPage(m *liquid.Masked) *taken {
	p := &taken{}
	z := nethtml.NewTokenizer(strings.NewReader(m.Text))
	for kind := z.Next(); kind != nethtml.ErrorToken; kind = z.Next() {
		raw := string(z.Raw())
		if kind != nethtml.StartTagToken && kind != nethtml.SelfClosingTagToken {
			p.tags = append(p.tags, tag{raw: raw})
			p.numbered.WriteString(raw)
			continue
		}
		name, _ := z.TagName()
		if string(name) == "style" && kind == nethtml.StartTagToken {
			p.style(m, z, raw)
			continue
		}
		t := tag{raw: raw, number: strconv.Itoa(len(p.tags))}
		p.tags = append(p.tags, t)
		at := strings.IndexAny(raw, " \t\r\n\f/>") // not the length of the name, in which the tokenizer mends letters
		p.numbered.WriteString(raw[:at] + " " + numberAttr + `="` + t.number + `"` + styleValue.ReplaceAllString(raw[at:], " "))
	}
	return p
}

// style reads a style element, whose opening tag was just read.
func (p *taken) style(m *liquid.Masked, z *nethtml.Tokenizer, open string) {
	text, end := "", ""
	if z.Next() == nethtml.TextToken {
		text = string(z.Raw())
		z.Next()
	}
	end = string(z.Raw())
	if medium := mediaValue.FindStringSubmatch(open); m.Has(open+text) || medium != nil && value(medium[1]) != "all" || !strings.HasPrefix(end, "</") {
		p.tags = append(p.tags, tag{raw: open + text + end})
		return
	}
	p.css += text + "\n"
	p.tags = append(p.tags, tag{css: true})
}

// atRules takes the at-rules out of a style sheet, but for media queries: the library would mend them to death.
func atRules(css string) (kept, rules string) {
	css = comment.ReplaceAllString(strings.NewReplacer("<!--", "", "-->", "").Replace(css), "")
	var at, others strings.Builder
	for css != "" {
		end := statement(css)
		one := css[:end]
		css = css[end:]
		if bare := strings.TrimSpace(one); strings.HasPrefix(bare, "@") && !strings.HasPrefix(strings.ToLower(bare), "@media") {
			at.WriteString(bare + "\n")
		} else {
			others.WriteString(one)
		}
	}
	return at.String(), others.String()
}

// statement gives where the first rule of a style sheet ends: after its braces, or its semicolon.
func statement(css string) int {
	depth, quote := 0, byte(0)
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
		case c == '{':
			depth++
		case c == '}':
			if depth--; depth <= 0 {
				return i + 1
			}
		case c == ';' && depth == 0:
			return i + 1
		}
	}
	return len(css)
}

// lookUp asks the library for the style of each numbered element, and for the rules that are of none.
func lookUp(page, rules string) (styles map[string]string, left string, err error) {
	defer func() { // it is not ours, and the rules are anybody's
		if r := recover(); r != nil {
			err = fmt.Errorf("its styles cannot be read: %v", r)
		}
	}()
	p, err := premailer.NewPremailerFromString("<style>"+rules+"</style>"+page, premailer.NewOptions(premailer.WithCssToAttributes(false), premailer.WithKeepBangImportant(true)))
	if err != nil {
		return nil, "", fmt.Errorf("its styles cannot be read: %w", err)
	}
	done, err := p.Transform()
	if err != nil {
		return nil, "", fmt.Errorf("putting styles into elements: %w", err)
	}
	styles = map[string]string{}
	z := nethtml.NewTokenizer(strings.NewReader(done))
	for kind := z.Next(); kind != nethtml.ErrorToken; kind = z.Next() {
		if kind != nethtml.StartTagToken && kind != nethtml.SelfClosingTagToken {
			continue
		}
		t := z.Token()
		number, style := "", ""
		for _, a := range t.Attr {
			switch a.Key {
			case numberAttr:
				number = a.Val
			case "style":
				style = a.Val
			}
		}
		if t.Data == "style" && number == "" && z.Next() == nethtml.TextToken { // the library's own
			left += string(z.Raw()) + "\n"
			continue
		}
		styles[number] = style
	}
	return styles, left, nil
}

// withStyle gives a tag a style, before the one that it has and that goes before it.
func withStyle(raw, style string) string {
	own := ""
	if found := styleValue.FindStringSubmatch(raw); found != nil {
		own = ";" + value(found[1])
		raw = strings.Replace(raw, found[0], "", 1)
	}
	end := len(raw) - 1
	if strings.HasSuffix(raw, "/>") {
		end--
	}
	return strings.TrimRight(raw[:end], " \t\r\n") + ` style="` + html.EscapeString(style+own) + `"` + raw[end:]
}
