// Package emailsource makes templates of what people write as an email: Markdown
// becomes HTML, the layout goes around it, plain text is derived, the pixel and
// the links get their places. It runs at apply and nowhere else, since functions
// would start a quarter slower with the libraries that it takes.
//
// Liquid goes through unchanged: it is taken out before and put back after.
package emailsource

import (
	"bytes"
	"cmp"
	"fmt"
	"html"
	"regexp"
	"strings"

	"github.com/k3a/html2text"
	"github.com/yuin/goldmark"
	"github.com/yuin/goldmark/extension"
	"github.com/yuin/goldmark/renderer"
	goldhtml "github.com/yuin/goldmark/renderer/html"
	nethtml "golang.org/x/net/html"

	"github.com/onda-run/onda/internal/liquid"
	"github.com/onda-run/onda/internal/page"
	"github.com/onda-run/onda/internal/spec"
)

var (
	openHTML = regexp.MustCompile(`(?i)<html\b`)
	repeated = regexp.MustCompile(`(https?://[^\s<>]+) <(` + untrackedMark + `?)(https?://[^\s<>]+)>`)
)

// pixel is followed by a link that no person sees, meets with a keyboard or hears of: who follows it is a program that follows all links.
const pixel = `{% if ` + spec.VarPixel + ` %}<img src="{{ ` + spec.VarPixel + ` }}" width="1" height="1" alt="" style="display:block;width:1px;height:1px;border:0"><a href="{{ ` + spec.VarPixelLink + ` }}" aria-hidden="true" style="display:none"></a>{% endif %}`

// The libraries take time by the square of some texts. Mail programs cut mails off at about 100 KiB.
const (
	maxMarkdown = 64 << 10  // bytes
	maxDerived  = 128 << 10 // bytes of HTML that plain text is derived of
)

// Compile puts an email together with its layout, which is nil when it has none.
func Compile(e *spec.Email, layout *spec.Layout) (*spec.Compiled, error) {
	texts := map[spec.Edition]spec.Texts{}
	var all []spec.Finding
	pages := pages{}
	for _, edition := range e.Editions() {
		t, found, err := pages.compile(e, edition, layout)
		if err != nil {
			return nil, fmt.Errorf("compiling the email %q%s: %w", e.Name, edition, err)
		}
		texts[edition] = t
		for _, f := range found {
			f.Edition = edition
			all = append(all, f)
		}
	}
	c, err := spec.NewCompiled(texts)
	if err != nil {
		return nil, fmt.Errorf("compiling the email %q: %w", e.Name, err)
	}
	c.Findings = all
	return c, nil
}

// pages are what became of an email's bodies, by their source: editions may share one, and to compile MJML takes a second.
type pages map[string]string

func (ps pages) compile(e *spec.Email, edition spec.Edition, layout *spec.Layout) (t spec.Texts, found []spec.Finding, err error) {
	c := e.Content(edition)
	body, page, err := ps.page(c, layout, edition.Locale)
	if err != nil {
		return t, nil, err
	}
	links := newLinks(e.Parameters(edition.Variant))
	if page, err = links.addresses(page); err != nil {
		return t, nil, err
	}

	text := string(c.Text)
	if text == "" {
		text = page
		if layout != nil && layout.Text != "" {
			if text, err = links.addresses(body); err != nil {
				return t, nil, err
			}
		}
		if len(text) > maxDerived {
			return t, nil, fmt.Errorf("its HTML is larger than %d KiB, too much to derive plain text of: shorten it, or write text", maxDerived>>10)
		}
		text = htmlToText(text)
	}
	if layout != nil && layout.Text != "" {
		text = spec.Within(layout.Text, text)
	}

	if c.MJML == "" && (layout == nil || layout.MJML == "") { // MJML has done it
		if page, err = inlineCSS(page); err != nil {
			return t, nil, err
		}
	}
	page = withPreheader(page, string(c.Preheader))
	page = withPixel(page)
	page, text = links.inHTML(page), links.inText(text)
	if links.err != nil {
		return t, nil, links.err
	}
	t = spec.Texts{Subject: string(c.Subject), HTML: page, Text: text, Links: links.all}
	found = append(findings(string(cmp.Or(c.HTML, c.Markdown, c.MJML)), c.Markdown != ""), look(t, body, e.Attachments)...)
	if layout != nil {
		for _, f := range findings(string(layout.HTML+layout.MJML), false) {
			f.Layout = true
			found = append(found, f)
		}
	}
	return t, found, nil
}

// page gives the body as HTML, and the page that it is with its layout.
func (ps pages) page(c spec.EmailContent, layout *spec.Layout, locale string) (body, page string, err error) {
	body = string(cmp.Or(c.HTML, c.MJML))
	if c.Markdown != "" {
		if len(c.Markdown) > maxMarkdown {
			return "", "", fmt.Errorf("its Markdown is larger than %d KiB: shorten it, or write html", maxMarkdown>>10)
		}
		if body, err = markdownToHTML(string(c.Markdown)); err != nil {
			return "", "", err
		}
	}
	switch {
	case layout == nil && c.MJML == "":
		return body, wholePage(body, locale), nil
	case layout == nil:
		page, err = ps.ofMJML(body, locale)
	case layout.MJML != "":
		page, err = ps.ofMJML(spec.Within(layout.MJML, body), locale)
	case c.MJML != "":
		return "", "", fmt.Errorf("it is written in MJML, and its layout %s is not: write both in MJML, or leave the layout out", layout.Name)
	default:
		return body, wholePage(spec.Within(layout.HTML, body), locale), nil
	}
	if err != nil || c.MJML == "" {
		return body, page, err
	}
	if body = page; layout != nil && layout.Text != "" { // of which text is derived without the layout
		body, err = ps.ofMJML("<mjml><mj-body>"+string(c.MJML)+"</mj-body></mjml>", locale)
	}
	return body, page, err
}

func (ps pages) ofMJML(src, locale string) (page string, err error) {
	key := locale + "\x00" + src
	if ps[key] == "" {
		ps[key], err = mjmlToHTML(src, locale)
	}
	return ps[key], err
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
func withPreheader(made, preheader string) string {
	if preheader == "" {
		return made
	}
	m := liquid.Mask(preheader)
	line := `<div style="display:none;font-size:1px;line-height:1px;max-height:0;max-width:0;opacity:0;overflow:hidden;mso-hide:all">` +
		m.Restore(html.EscapeString(m.Text)) + `</div>`
	m = liquid.Mask(made)
	at, _ := page.Body(m.Text)
	return m.Restore(m.Text[:at]) + line + m.Restore(m.Text[at:])
}

// withPixel puts the pixel at the end of the page.
func withPixel(made string) string {
	m := liquid.Mask(made)
	_, at := page.Body(m.Text)
	return m.Restore(m.Text[:at]) + pixel + m.Restore(m.Text[at:])
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
	// a tag on lines of its own is no paragraph
	mark := regexp.MustCompile(m.Pattern())
	out = regexp.MustCompile(`<p>(?:\s*`+m.Pattern()+`)+\s*</p>`).ReplaceAllStringFunc(out, func(p string) string {
		for _, one := range mark.FindAllString(p, -1) {
			if !m.IsTag(one) {
				return p
			}
		}
		return strings.TrimLeft(strings.TrimSuffix(strings.TrimPrefix(p, "<p>"), "</p>"), " \t\r\n")
	})
	return m.Restore(out), nil
}

// htmlToText derives the plain text of a page and leaves the Liquid in it as it is.
func htmlToText(page string) string {
	m := liquid.Mask(page)
	text := html2text.HTML2TextWithOptions(forText(m), html2text.WithUnixLineBreaks(), html2text.WithLinksInnerText(), html2text.WithListSupport())
	lines := strings.Split(text, "\n")
	var out []string
	blank := true
	for _, line := range lines {
		line = strings.TrimSpace(strings.ReplaceAll(line, "\u00a0", " "))
		line = repeated.ReplaceAllStringFunc(line, func(s string) string {
			switch p := repeated.FindStringSubmatch(s); {
			case p[1] != p[3]:
				return s
			case p[2] != "":
				return "<" + p[2] + p[3] + ">"
			default:
				return p[1]
			}
		})
		if line == "" && blank {
			continue
		}
		blank = line == ""
		out = append(out, line)
	}
	return m.Restore(strings.TrimSpace(strings.Join(out, "\n"))) + "\n"
}

// forText writes a page for a library that takes any > for the end of a tag: without comments, in which is what Outlook alone shows, and with no attributes but the
// addresses of links.
func forText(m *liquid.Masked) string {
	var out strings.Builder
	z := nethtml.NewTokenizer(strings.NewReader(m.Text))
	for kind := z.Next(); kind != nethtml.ErrorToken; kind = z.Next() {
		raw := string(z.Raw())
		switch kind {
		case nethtml.CommentToken:
		case nethtml.StartTagToken, nethtml.SelfClosingTagToken:
			out.WriteString("<" + tagName(raw))
			if href, has := attr(raw, "href"); has {
				to := address(href)
				if _, off := attr(raw, trackOption); off && !m.Has(to) { // with Liquid it is not tracked anyway
					to = untrackedMark + strings.NewReplacer(" ", "%20", "\f", "%0C", "\u00a0", "%C2%A0", "<", "%3C", ">", "%3E").Replace(to) // so that its end is seen
				}
				out.WriteString(` href="` + html.EscapeString(to) + `"`)
			}
			if strings.HasSuffix(raw, "/>") {
				out.WriteString(" /")
			}
			out.WriteString(">")
		default:
			out.WriteString(raw)
		}
	}
	return out.String()
}
