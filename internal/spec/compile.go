package spec

import (
	"bytes"
	"errors"
	"fmt"
	"html"
	"regexp"
	"strconv"
	"strings"

	"github.com/k3a/html2text"
	"github.com/yuin/goldmark"
	"github.com/yuin/goldmark/extension"
	"github.com/yuin/goldmark/renderer"
	goldhtml "github.com/yuin/goldmark/renderer/html"
	nethtml "golang.org/x/net/html"

	"github.com/onda-run/onda/internal/liquid"
)

// The variables that Compile puts into an email's templates, for send to fill.
const (
	// VarLinks is a list of the address of each of Parts.Links, in its order:
	// the tracked one, or the link itself for a recipient who is not tracked.
	VarLinks = "_links"
	// VarPixel is the address of the open pixel; "" or nil for no pixel.
	VarPixel = "_pixel"
)

// Parts are the templates of an email in one language.
type Parts struct {
	Locale  string // "" for the email's own
	Subject *liquid.Template
	HTML    *liquid.Template
	Text    *liquid.Template
	// Links are the distinct addresses of the web in HTML and Text that can be
	// tracked, in the order of the HTML. Where one stood, the templates have
	// {{ _links[i] }}. An address with Liquid in it, such as
	// {{ unsubscribe_url }}, is no link in this sense: it stays as it is and is
	// not tracked, since its address is not known before it is rendered.
	Links []string
}

// Compiled is an email put together with its layout, in all its languages. It
// does not change and may be used by many at once.
type Compiled struct {
	parts   map[string]*Parts
	locales []string
}

// For gives the parts for a locale: of pt-BR those of pt-BR, else of pt, else the email's own.
func (c *Compiled) For(locale string) *Parts {
	for _, l := range localeChain(locale) {
		if p, ok := c.parts[l]; ok {
			return p
		}
	}
	return c.parts[""]
}

// Locales gives the languages there are: "" first, the email's own.
func (c *Compiled) Locales() []string { return c.locales }

// Compile puts the email together with its layout, which is nil when it has none.
func (e *Email) Compile(layout *Layout) (*Compiled, error) {
	c := &Compiled{parts: map[string]*Parts{}, locales: append([]string{""}, sortedKeys(e.Locales)...)}
	for _, locale := range c.locales {
		content := e.EmailContent
		if locale != "" {
			content = e.Locales[locale].over(e.EmailContent)
		}
		p, err := content.compile(layout, locale)
		if err != nil {
			return nil, fmt.Errorf("compiling the email %q%s: %w", e.Name, inLocale(locale), err)
		}
		c.parts[locale] = p
	}
	return c, nil
}

func inLocale(locale string) string {
	if locale == "" {
		return ""
	}
	return " in " + locale
}

var (
	contentOutput = regexp.MustCompile(`\{\{-?\s*content\s*-?\}\}`)
	openBody      = regexp.MustCompile(`(?i)<body\b[^>]*>`)
	closeBody     = regexp.MustCompile(`(?i)</body\s*>`)
	openHTML      = regexp.MustCompile(`(?i)<html\b`)
	hrefValue     = regexp.MustCompile(`(?is)(\shref\s*=\s*)("[^"]*"|'[^']*'|[^\s"'>]+)`)
	repeated      = regexp.MustCompile(`(https?://[^\s<>]+) <(https?://[^\s<>]+)>`)
	textURL       = regexp.MustCompile(`https?://[^\s<>"]+`)
)

const pixel = `{% if ` + VarPixel + ` %}<img src="{{ ` + VarPixel + ` }}" width="1" height="1" alt="" style="display:block;width:1px;height:1px;border:0">{% endif %}`

func (c EmailContent) compile(layout *Layout, locale string) (*Parts, error) {
	p := &Parts{Locale: locale}
	var err error
	if p.Subject, err = parseTemplate("subject", string(c.Subject), liquid.Header); err != nil {
		return nil, err
	}
	body := string(c.HTML)
	if body == "" {
		if body, err = markdownToHTML(string(c.Markdown)); err != nil {
			return nil, err
		}
	}
	page := body
	if layout != nil {
		page = within(string(layout.HTML), body)
	}
	page = wholePage(page, locale)

	text := string(c.Text)
	if text == "" {
		text = page
		if layout != nil && layout.Text != "" {
			text = body
		}
		text = htmlToText(text)
	}
	if layout != nil && layout.Text != "" {
		text = within(string(layout.Text), text)
	}

	page = withPreheader(page, string(c.Preheader))
	if at := closeBody.FindStringIndex(page); at != nil {
		page = page[:at[0]] + pixel + page[at[0]:]
	} else {
		page += pixel
	}
	links := &links{index: map[string]int{}}
	page, text = links.inHTML(page), links.inText(text)
	p.Links = links.all
	if p.HTML, err = parseTemplate("html", page, liquid.HTML); err != nil {
		return nil, err
	}
	if p.Text, err = parseTemplate("text", text, liquid.Text); err != nil {
		return nil, err
	}
	return p, nil
}

func parseTemplate(what, src string, mode liquid.Mode) (*liquid.Template, error) {
	t, problems := liquid.Parse(src, mode)
	if t != nil {
		return t, nil
	}
	errs := make([]error, len(problems))
	for i, p := range problems {
		errs[i] = fmt.Errorf("%s: %w", what, p)
	}
	return nil, errors.Join(errs...)
}

// within puts an email's content into its layout.
func within(layout, content string) string {
	at := contentOutput.FindStringIndex(layout)
	if at == nil {
		return content
	}
	return layout[:at[0]] + content + layout[at[1]:]
}

// wholePage makes a page of a piece of HTML.
func wholePage(page, locale string) string {
	if openHTML.MatchString(page) {
		return page
	}
	lang := ""
	if locale != "" {
		lang = ` lang="` + locale + `"`
	}
	return "<!doctype html>\n<html" + lang + ">\n<head>\n<meta charset=\"utf-8\">\n" +
		"<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n</head>\n<body>\n" +
		strings.TrimSpace(page) + "\n</body>\n</html>\n"
}

// withPreheader puts the line that mail programs show beside the subject at the beginning of the page, unseen.
func withPreheader(page, preheader string) string {
	if preheader == "" {
		return page
	}
	m := liquid.Mask(preheader)
	line := `<div style="display:none;font-size:1px;line-height:1px;max-height:0;max-width:0;opacity:0;overflow:hidden;mso-hide:all">` +
		m.Restore(html.EscapeString(m.Text)) + `</div>`
	if at := openBody.FindStringIndex(page); at != nil {
		return page[:at[1]] + line + page[at[1]:]
	}
	return line + page
}

// markdownToHTML renders Markdown and leaves the Liquid in it as it is.
func markdownToHTML(src string) (string, error) {
	m := liquid.Mask(src)
	md := goldmark.New(
		goldmark.WithExtensions(extension.Table, extension.Strikethrough, extension.Linkify),
		goldmark.WithRendererOptions([]renderer.Option{goldhtml.WithUnsafe()}...),
	)
	var b bytes.Buffer
	if err := md.Convert([]byte(m.Text), &b); err != nil {
		return "", fmt.Errorf("rendering Markdown: %w", err)
	}
	out := b.String()
	if tags := m.Tags(); len(tags) > 0 {
		// a tag on lines of its own is no paragraph
		alone := regexp.MustCompile(`<p>\s*((?:(?:` + strings.Join(tags, "|") + `)\s*)+)</p>`)
		out = alone.ReplaceAllString(out, "$1")
	}
	return m.Restore(out), nil
}

// htmlToText derives the plain text of a page and leaves the Liquid in it as it is.
func htmlToText(page string) string {
	m := liquid.Mask(page)
	text := html2text.HTML2TextWithOptions(m.Text, html2text.WithUnixLineBreaks(), html2text.WithLinksInnerText(), html2text.WithListSupport())
	lines := strings.Split(text, "\n")
	var out []string
	blank := true
	for _, line := range lines {
		line = strings.TrimSpace(strings.ReplaceAll(line, "\u00a0", " "))
		line = repeated.ReplaceAllStringFunc(line, func(s string) string {
			if p := repeated.FindStringSubmatch(s); p[1] == p[2] {
				return p[1]
			}
			return s
		})
		if line == "" && blank {
			continue
		}
		blank = line == ""
		out = append(out, line)
	}
	return m.Restore(strings.TrimSpace(strings.Join(out, "\n"))) + "\n"
}

// links collects addresses and puts variables in their places.
type links struct {
	all   []string
	index map[string]int
}

func (l *links) variable(url string) string {
	i, ok := l.index[url]
	if !ok {
		i = len(l.all)
		l.index[url] = i
		l.all = append(l.all, url)
	}
	return "{{ " + VarLinks + "[" + strconv.Itoa(i) + "] }}"
}

func (l *links) inHTML(page string) string {
	m := liquid.Mask(page)
	var out strings.Builder
	z := nethtml.NewTokenizer(strings.NewReader(m.Text))
	for z.Next() != nethtml.ErrorToken {
		raw := string(z.Raw())
		name, _ := z.TagName()
		if tag := string(name); tag != "a" && tag != "area" || strings.HasPrefix(raw, "</") {
			out.WriteString(raw)
			continue
		}
		out.WriteString(hrefValue.ReplaceAllStringFunc(raw, func(attr string) string {
			parts := hrefValue.FindStringSubmatch(attr)
			url := strings.TrimSpace(html.UnescapeString(strings.Trim(parts[2], `"'`)))
			if m.Has(url) || !textURL.MatchString(url) || !strings.HasPrefix(url, "http") {
				return attr
			}
			return parts[1] + `"` + l.variable(url) + `"`
		}))
	}
	return m.Restore(out.String())
}

func (l *links) inText(text string) string {
	m := liquid.Mask(text)
	return m.Restore(textURL.ReplaceAllStringFunc(m.Text, func(found string) string {
		url := strings.TrimRight(found, ".,;:!?)]}'")
		if m.Has(url) {
			return found
		}
		return l.variable(url) + found[len(url):]
	}))
}
