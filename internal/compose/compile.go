package compose

import (
	"bytes"
	"errors"
	"fmt"
	"html"
	"maps"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/k3a/html2text"
	"github.com/yuin/goldmark"
	"github.com/yuin/goldmark/extension"
	markdown "github.com/yuin/goldmark/renderer/html"
	nethtml "golang.org/x/net/html"

	"github.com/onda-run/onda/internal/liquid"
	"github.com/onda-run/onda/internal/spec"
)

// pixelMark is where the pixel goes; it stands for nothing where there is none.
const pixelMark = "ondapixelq"

// compile makes the templates of every language. stored has the documents that changed since e was made; e itself is not touched.
func (e *Email) compile(on versions, stored map[string][]byte) (*Email, error) {
	made := *e
	made.on = on
	var err error
	decode := func(kind string, to func(b []byte) error) {
		if b := stored[kind]; b != nil && err == nil {
			err = to(b)
		}
	}
	decode(spec.KindLayout, func(b []byte) (err error) {
		made.layout, err = spec.DecodeAs[*spec.Layout](spec.KindLayout, b)
		return err
	})
	decode(spec.KindTopic, func(b []byte) (err error) {
		made.topic, err = spec.DecodeAs[*spec.Topic](spec.KindTopic, b)
		return err
	})
	decode(spec.KindSettings, func(b []byte) (err error) {
		made.Settings, err = spec.DecodeAs[*spec.Settings](spec.KindSettings, b)
		return err
	})
	if err != nil {
		return nil, err
	}
	if on.settings == 0 {
		made.Settings = spec.DefaultSettings()
	}
	switch {
	case e.spec.Layout != "" && on.layout == 0:
		return nil, fmt.Errorf("its layout %q is not there", e.spec.Layout)
	case e.Topic != "" && on.topic == 0:
		return nil, fmt.Errorf("its topic %q is not there", e.Topic)
	}
	made.texts = map[string]*texts{}
	names := map[string]liquid.Name{}
	for _, locale := range append(slices.Sorted(maps.Keys(e.spec.Locales)), "") {
		content, _ := e.spec.Content(locale)
		t, err := compileTexts(content, made.layout, locale, func(to string) bool { _, ok := e.links[to]; return ok })
		if err != nil {
			return nil, err
		}
		made.texts[locale] = t
		for _, tpl := range []*liquid.Template{t.subject, t.html, t.text} {
			for _, n := range tpl.Names() {
				names[n.String()] = n
			}
		}
	}
	made.uses(names)
	return &made, nil
}

// uses notes which of the recipient's fields and of the data the texts name.
func (e *Email) uses(names map[string]liquid.Name) {
	e.fields, e.needs, e.whole, e.useData = []string{spec.LocaleField, spec.ZoneField}, nil, false, false
	for _, text := range slices.Sorted(maps.Keys(names)) {
		switch n := names[text]; {
		case n.Path[0] == "contact" && len(n.Path) == 1:
			e.whole = true
		case n.Path[0] == "contact":
			e.fields = append(e.fields, n.Path[1])
		case n.Path[0] == "data":
			e.useData = true
			if len(n.Path) > 1 {
				e.needs = append(e.needs, strings.Join(n.Path[1:], "."))
			}
		}
	}
	slices.Sort(e.fields)
	e.fields = slices.Compact(e.fields)
}

// compileTexts makes the templates of one language. isLink tells which URLs may be followed through a tracked link.
func compileTexts(c spec.EmailContent, layout *spec.Layout, locale string, isLink func(string) bool) (*texts, error) {
	t := &texts{}
	body, plain, err := sources(c, layout, locale)
	if err != nil {
		return nil, err
	}
	body, t.marks = markLinks(body, isLink)
	if plain == "" {
		plain = textOf(body)
	}
	body = addPreheader(body, string(c.Preheader))
	body = insert(body, "</body", pixelMark)
	for _, p := range []struct {
		what   string
		source string
		mode   liquid.Mode
		to     **liquid.Template
	}{
		{"subject", string(c.Subject), liquid.Header, &t.subject},
		{"html", body, liquid.HTML, &t.html},
		{"text", plain, liquid.Text, &t.text},
	} {
		var problems []liquid.Problem
		if *p.to, problems = liquid.Parse(p.source, p.mode); len(problems) > 0 {
			return nil, fmt.Errorf("%s: %w", p.what, problems[0])
		}
	}
	return t, nil
}

// sources gives the HTML of a whole document and, where the email has one of its own, the plain text.
func sources(c spec.EmailContent, layout *spec.Layout, locale string) (body, plain string, err error) {
	body, plain = string(c.HTML), string(c.Text)
	if c.Markdown != "" {
		if body, err = fromMarkdown(string(c.Markdown)); err != nil {
			return "", "", err
		}
	}
	if layout != nil {
		if plain == "" && layout.Text != "" {
			unmarked, _ := markLinks(body, func(string) bool { return false })
			plain = textOf(unmarked)
		}
		if plain != "" && layout.Text != "" {
			if plain, err = fill(string(layout.Text), plain); err != nil {
				return "", "", fmt.Errorf("text of the layout %q: %w", layout.Name, err)
			}
		}
		if body, err = fill(string(layout.HTML), body); err != nil {
			return "", "", fmt.Errorf("layout %q: %w", layout.Name, err)
		}
	}
	if !strings.Contains(strings.ToLower(body), "<html") {
		if locale == "" {
			locale = "en"
		}
		body = `<!DOCTYPE html><html lang="` + html.EscapeString(locale) + `"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">` +
			`</head><body>` + body + `</body></html>`
	}
	return body, plain, nil
}

var contentSlot = regexp.MustCompile(`\{\{-?\s*content\s*(\|\s*raw\s*)?-?\}\}`)

// fill puts content where a layout says {{ content }}.
func fill(layout, content string) (string, error) {
	at := contentSlot.FindStringIndex(layout)
	if at == nil {
		return "", errors.New("it has no {{ content }}")
	}
	return layout[:at[0]] + content + layout[at[1]:], nil
}

// fromMarkdown turns Markdown into HTML and leaves the Liquid in it alone. HTML within it stays: who writes emails may write it anyway.
func fromMarkdown(source string) (string, error) {
	m := liquid.Mask(source)
	var out bytes.Buffer
	md := goldmark.New(goldmark.WithExtensions(extension.Table, extension.Strikethrough), goldmark.WithRendererOptions(markdown.WithUnsafe()))
	if err := md.Convert([]byte(m.Text), &out); err != nil {
		return "", fmt.Errorf("markdown: %w", err)
	}
	text := out.String()
	for _, tag := range m.Tags() { // a tag on a line of its own is no paragraph
		text = strings.ReplaceAll(text, "<p>"+tag+"</p>", tag)
	}
	return m.Restore(text), nil
}

// textOf is the plain text of HTML: Liquid and marks stay where they are.
func textOf(body string) string {
	m := liquid.Mask(body)
	return strings.TrimSpace(m.Restore(html2text.HTML2TextWithOptions(m.Text, html2text.WithUnixLineBreaks(), html2text.WithListSupport()))) + "\n"
}

// addPreheader puts the text that mailboxes show beside the subject before everything else, unseen in the mail itself.
func addPreheader(body, preheader string) string {
	if preheader == "" {
		return body
	}
	inner := liquid.Mask(preheader)
	div := `<div style="display:none;max-height:0;overflow:hidden">` + inner.Restore(html.EscapeString(inner.Text)) + `</div>`
	m := liquid.Mask(body) // so that a > within Liquid ends no tag
	if at := strings.Index(strings.ToLower(m.Text), "<body"); at >= 0 {
		if end := strings.IndexByte(m.Text[at:], '>'); end >= 0 {
			at += end + 1
			return m.Restore(m.Text[:at]) + div + m.Restore(m.Text[at:])
		}
	}
	return div + body
}

// insert puts text before the last tag of a name, or at the end.
func insert(body, tag, text string) string {
	if at := strings.LastIndex(strings.ToLower(body), tag); at >= 0 {
		return body[:at] + text + body[at:]
	}
	return body + text
}

// markLinks replaces the URLs of links by words that stand for them, for those that may be followed through a tracked link. Everything else of the HTML stays as it
// was written, to the byte.
func markLinks(body string, isLink func(string) bool) (string, []mark) {
	m := liquid.Mask(body)
	prefix := "ondalink"
	for n := 0; strings.Contains(body, prefix); n++ {
		prefix = "ondalink" + strconv.Itoa(n) + "x"
	}
	var out strings.Builder
	var marks []mark
	words := map[string]string{}
	z := nethtml.NewTokenizer(strings.NewReader(m.Text))
	for {
		kind := z.Next()
		if kind == nethtml.ErrorToken {
			break // the end: a tokenizer of HTML takes anything else
		}
		raw := string(z.Raw())
		if kind == nethtml.StartTagToken || kind == nethtml.SelfClosingTagToken {
			if to, ok := linkOf(z); ok && !m.Has(to) && isLink(to) {
				if words[to] == "" {
					words[to] = prefix + strconv.Itoa(len(marks)) + "q"
					marks = append(marks, mark{words[to], to})
				}
				raw = replaceHref(raw, words[to])
			}
		}
		out.WriteString(raw)
	}
	return m.Restore(out.String()), marks
}

// linkOf gives where a tag leads that a person follows.
func linkOf(z *nethtml.Tokenizer) (to string, ok bool) {
	name, more := z.TagName()
	if string(name) != "a" && string(name) != "area" {
		return "", false
	}
	for more {
		var key, value []byte
		key, value, more = z.TagAttr()
		if string(key) == "href" {
			return strings.TrimSpace(string(value)), true
		}
	}
	return "", false
}

var href = regexp.MustCompile(`(?is)(\shref\s*=\s*)("[^"]*"|'[^']*'|[^\s>]+)`)

func replaceHref(tag, with string) string {
	at := href.FindStringSubmatchIndex(tag)
	if at == nil {
		return tag
	}
	return tag[:at[4]] + `"` + with + `"` + tag[at[5]:]
}

// Links lists the URLs in an email's HTML that can be followed through tracked links, in all its languages, each once in the order of the text: absolute ones
// over http, without Liquid. They are stored as rows of link when the version is.
func Links(e *spec.Email, layout *spec.Layout) ([]string, error) {
	var out []string
	for _, locale := range append([]string{""}, slices.Sorted(maps.Keys(e.Locales))...) {
		content, _ := e.Content(locale)
		body, _, err := sources(content, layout, locale)
		if err != nil {
			return nil, err
		}
		_, marks := markLinks(body, func(to string) bool {
			u, err := url.Parse(to)
			return err == nil && u.Host != "" && (u.Scheme == "https" || u.Scheme == "http")
		})
		for _, m := range marks {
			if !slices.Contains(out, m.url) {
				out = append(out, m.url)
			}
		}
	}
	return out, nil
}
