// Package page is what visitors see of Onda: the shell of its pages, their style, and their texts in the visitor's language.
//
// Invariants: a page is one answer that loads nothing from elsewhere; it works without scripts; its Content-Security-Policy lets nothing run that
// is not in it; it is readable with a keyboard, a screen reader, on a phone and in the dark (WCAG 2.2 AA).
package page

import (
	"bytes"
	"context"
	"crypto/sha256"
	"embed"
	"encoding/base64"
	"fmt"
	"html/template"
	"io/fs"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/onda-run/onda/internal/spec"
)

//go:embed shell.html style.css texts
var files embed.FS

// Pages renders the pages of one function.
type Pages struct {
	// Preproduction, unless nil, tells whether pages say that they are of a pre-production. It may have to ask, and is false when the context ends before.
	Preproduction func(ctx context.Context) bool

	parse func() (parsed, error)
	style string

	mu       sync.Mutex
	sheets   map[look]sheet
	refusals map[refusal][]byte
}

// parsed are the templates and the texts of all languages.
type parsed struct {
	templates *template.Template
	texts     map[string]texts
}

// New puts the shell together with a function's own templates: each file of the file system that matches a pattern may define several blocks, which a View
// names. In them .T gives a text, .Lang the language and .Data what the View brought. They are parsed for the first page: a pixel or a click, which may start a process, shows none.
func New(own fs.FS, patterns ...string) (*Pages, error) {
	css, err := files.ReadFile("style.css")
	if err != nil {
		return nil, fmt.Errorf("read the pages' style: %w", err)
	}
	parse := sync.OnceValues(func() (p parsed, err error) {
		if p.texts, err = readTexts(); err != nil {
			return p, err
		}
		p.templates, err = template.ParseFS(files, "shell.html")
		if err == nil && own != nil {
			p.templates, err = p.templates.ParseFS(own, patterns...)
		}
		if err != nil {
			return p, fmt.Errorf("parse pages: %w", err)
		}
		return p, nil
	})
	return &Pages{parse: parse, style: string(css), sheets: map[look]sheet{}, refusals: map[refusal][]byte{}}, nil
}

// Prepare parses what the first page needs, unless that was done: for whoever has to wait for something else before there is one.
func (p *Pages) Prepare() { _, _ = p.parse() } // who shows a page is told of an error

// hashOf is how a Content-Security-Policy names what may be in a page.
func hashOf(source []byte) string {
	sum := sha256.Sum256(source)
	return "'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
}

// View is one page.
type View struct {
	// Status is that of the answer; 0 is 200.
	Status int
	// Lang is the language of the page; empty for the visitor's.
	Lang string
	// Title is the page's heading, in plain text.
	Title string
	// Brand is the name of who speaks to the visitor; empty for none.
	Brand string
	// Theme is how the pages of who speaks look.
	Theme spec.Theme
	// Icon is what stands above the heading: done, mail, warning, or empty for none.
	Icon string
	// Block is the template with the page's content, and Data what it shows.
	Block string
	Data  any
	// FormTo are further origins that the page's form may lead to by a redirect.
	FormTo []string
	// Script is what runs on the page, which works without it too; empty for none.
	Script string
	// Frames are the origins whose pages may show it in a frame; empty for none.
	Frames []string
}

// data is what templates see.
type data struct {
	View
	Trial   bool // it is a pre-production
	Style   template.CSS
	Runs    template.JS
	Logo    template.URL // a data: URL, whose form the settings' grammar holds
	texts   texts
	Content template.HTML
}

// T gives a text in the page's language. pairs are names and values for the {name}s in it. A key that there is none of is an error.
func (d data) T(key string, pairs ...any) (string, error) { return d.texts.get(key, pairs...) }

// Lang tells which language of the texts fits a request best.
func (p *Pages) Lang(r *http.Request) string {
	return Negotiate(r.Header.Get("Accept-Language"), Languages()...)
}

// Text gives one text in a language, for titles. A key that there is none of gives the key: a test sees to it that there is none such.
func (p *Pages) Text(lang, key string, pairs ...any) string {
	s, err := p.textsOf(lang).get(key, pairs...)
	if err != nil {
		return key
	}
	return s
}

// textsOf gives the texts of the language, or of its base language, or the English ones.
func (p *Pages) textsOf(lang string) texts {
	all, err := p.parse()
	if err != nil { // it is told where a page is rendered
		return nil
	}
	base, _, _ := strings.Cut(lang, "-")
	for _, l := range []string{lang, base} {
		if t, ok := all.texts[l]; ok {
			return t
		}
	}
	return all.texts[Fallback]
}

// Write answers with a page. Nothing is sent when it cannot be rendered: then the answer is a plain 500, and the error is given.
func (p *Pages) Write(w http.ResponseWriter, r *http.Request, v View) error {
	if v.Lang == "" {
		v.Lang = p.Lang(r)
	}
	if v.Status == 0 {
		v.Status = http.StatusOK
	}
	body, err := p.Render(r.Context(), v)
	return p.answer(w, r, v, body, err)
}

// answer sends a page that was rendered, or says that it could not be.
func (p *Pages) answer(w http.ResponseWriter, r *http.Request, v View, body []byte, err error) error {
	if err != nil {
		http.Error(w, "internal error", http.StatusInternalServerError)
		return err
	}
	h := w.Header()
	p.Describe(h, v)
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(v.Status)
	if r.Method != http.MethodHead {
		_, _ = w.Write(body)
	}
	return nil
}

// Describe sets the headers of a page in the language that the view names, but its length.
func (p *Pages) Describe(h http.Header, v View) {
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Language", v.Lang)
	h.Set("Content-Security-Policy", p.policy(v))
	h.Add("Vary", "Accept-Language")
	if h.Get("Cache-Control") == "" {
		h.Set("Cache-Control", "no-store")
	}
	Harden(h)
}

// Harden sets the headers that every answer to a browser has: a URL with a token in it must not get out by a referrer, an index or a guess at its type.
func Harden(h http.Header) {
	if h.Get("Referrer-Policy") == "" {
		h.Set("Referrer-Policy", "no-referrer")
	}
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Robots-Tag", "noindex, nofollow")
}

func (p *Pages) policy(v View) string {
	formTo := strings.Join(append([]string{"'self'"}, v.FormTo...), " ")
	script, frames := "", "'none'"
	if len(v.Frames) > 0 {
		frames = strings.Join(v.Frames, " ")
	}
	if v.Script != "" {
		script = "; script-src " + hashOf([]byte(v.Script))
	}
	return "default-src 'none'; style-src " + p.sheetOf(v.Theme).hash + script + "; img-src 'self' data:; form-action " + formTo + "; base-uri 'none'; frame-ancestors " + frames
}

// Render gives the HTML that Write would send, for who keeps it. The view names the language.
func (p *Pages) Render(ctx context.Context, v View) ([]byte, error) {
	all, err := p.parse()
	if err != nil {
		return nil, err
	}
	wait := asking
	if v.Status == http.StatusServiceUnavailable { // who would answer is away: only what is known already
		wait = 0
	}
	d := data{
		View: v, Trial: p.trial(ctx, wait), Style: template.CSS(p.sheetOf(v.Theme).css), Logo: template.URL(v.Theme.Logo), Runs: template.JS(v.Script), texts: p.textsOf(v.Lang),
	}
	var b bytes.Buffer
	if v.Block != "" {
		if err := all.templates.ExecuteTemplate(&b, v.Block, d); err != nil {
			return nil, fmt.Errorf("render page %s: %w", v.Block, err)
		}
		d.Content = template.HTML(b.String()) // made by html/template just now
		b.Reset()
	}
	if err := all.templates.ExecuteTemplate(&b, "shell.html", d); err != nil {
		return nil, fmt.Errorf("render page %s: %w", v.Block, err)
	}
	return b.Bytes(), nil
}

// asking is how long a page waits to learn whether it is one of a pre-production.
const asking = 250 * time.Millisecond

func (p *Pages) trial(ctx context.Context, wait time.Duration) bool {
	if p.Preproduction == nil {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	return p.Preproduction(ctx)
}

// bodyTags finds the tags of a body, and before them what only looks like one: in a comment, such as Outlook's conditional ones, and in a style or a title.
var bodyTags = regexp.MustCompile(`(?is)<!--(?:-?>|.*?(?:-->|$))|<style[\s>].*?(?:</style|$)|<title[\s>].*?(?:</title|$)|(<body(?:\s(?:"[^"]*"|'[^']*'|[^>"'])*)?>)|(</body[\s>])`)

// Body gives where the body of an HTML page begins and ends: after its first tag, and before its last. Without them it is all of the page.
func Body(html string) (from, to int) {
	to = -1
	for _, found := range bodyTags.FindAllStringSubmatchIndex(html, -1) {
		switch {
		case found[3] > 0 && from == 0:
			from = found[3]
		case found[4] >= 0:
			to = found[4]
		}
	}
	if to < from {
		to = len(html)
	}
	return from, to
}

// Mark puts into somebody else's page, such as a mail, what pages of a pre-production say; elsewhere it gives the page as it is.
func (p *Pages) Mark(ctx context.Context, lang, html string) string {
	if !p.trial(ctx, asking) {
		return html
	}
	at, _ := Body(html)
	return html[:at] + `<p style="margin:0;padding:10px 16px;background:#fdf1de;color:#17202c;border-bottom:1px solid #8a5300;font:600 15px/1.5 system-ui,Arial,sans-serif">` +
		template.HTMLEscapeString(p.Text(lang, "stage.preproduction")) + "</p>" + html[at:]
}

var (
	htmlTag  = regexp.MustCompile(`(?i)<html\b[^>]*`)
	langName = regexp.MustCompile(`(?i)\slang\s*=`)
	headTag  = regexp.MustCompile(`(?i)<head(?:\s[^>]*)?>`)
	titleTag = regexp.MustCompile(`(?i)<title[\s>]`)
)

// Name puts into somebody else's page, such as a mail, the language and the title that a page needs (WCAG 2.2, 2.4.2 and 3.1.1), where it has none.
func Name(html, lang, title string) string {
	if at := headTag.FindStringIndex(html); at != nil && !titleTag.MatchString(html) {
		html = html[:at[1]] + "<title>" + template.HTMLEscapeString(title) + "</title>" + html[at[1]:]
	}
	if at := htmlTag.FindStringIndex(html); at != nil && !langName.MatchString(html[at[0]:at[1]]) {
		html = html[:at[1]] + ` lang="` + template.HTMLEscapeString(lang) + `"` + html[at[1]:]
	}
	return html
}

// Fragment renders a view's heading and block without the shell, for pages of others that take it in.
func (p *Pages) Fragment(ctx context.Context, v View) ([]byte, error) {
	all, err := p.parse()
	if err != nil {
		return nil, err
	}
	d := data{View: v, Trial: p.trial(ctx, asking), texts: p.textsOf(v.Lang)}
	var b bytes.Buffer
	err = all.templates.ExecuteTemplate(&b, v.Block, d)
	if err == nil {
		d.Content = template.HTML(b.String()) // made by html/template just now
		b.Reset()
		err = all.templates.ExecuteTemplate(&b, "fragment", d)
	}
	if err != nil {
		return nil, fmt.Errorf("render fragment %s: %w", v.Block, err)
	}
	return b.Bytes(), nil
}

// Embedded is the style of fragments within a shadow tree on the page of somebody else: it takes that page's font and width.
func (p *Pages) Embedded(t spec.Theme) string {
	return strings.ReplaceAll(p.sheetOf(t).css, ":root", ":host") + `
:host { display: block; }
.embedded { color: var(--ink); background: var(--card); border: 1px solid var(--line); border-radius: calc(1rem * var(--corner)); padding: 1.5rem; max-width: 36rem; line-height: 1.6; }
.embedded > :last-child { margin-bottom: 0; }
.embedded > h2 { font-size: 1.375rem; line-height: 1.25; letter-spacing: -.01em; }
.embedded > h2:focus { outline: none; }
`
}

// Error answers with a readable page for a status that means that something went wrong.
func (p *Pages) Error(w http.ResponseWriter, r *http.Request, status int) error {
	return p.ErrorOf(w, r, status, "", spec.Theme{})
}

// ErrorOf is Error on a page that looks as those of who speaks to the visitor do.
func (p *Pages) ErrorOf(w http.ResponseWriter, r *http.Request, status int, brand string, theme spec.Theme) error {
	key := "error." + strconv.Itoa(status)
	lang := p.Lang(r)
	if _, err := p.textsOf(lang).get(key + ".title"); err != nil {
		key = "error.other"
	}
	if w.Header().Get("Retry-After") == "" && (status == http.StatusServiceUnavailable || status == http.StatusTooManyRequests) {
		w.Header().Set("Retry-After", "5")
	}
	v := View{Status: status, Lang: lang, Brand: brand, Theme: theme, Title: p.Text(lang, key+".title"), Icon: "warning", Block: "error", Data: key + ".text"}
	if status != http.StatusServiceUnavailable {
		return p.Write(w, r, v)
	}
	body, err := p.refuse(r.Context(), v)
	return p.answer(w, r, v, body, err)
}

// refusal is what pages differ by that say that something is away.
type refusal struct {
	lang, brand, logo string
	look              look
	trial             bool
}

// maxRefusals bounds the pages that are kept, of some 15 KB each, and the logo.
const maxRefusals = 100

// refuse renders such a page, each once: past what it can do, a process answers many so, and to render one costs more than a click that is stored.
func (p *Pages) refuse(ctx context.Context, v View) ([]byte, error) {
	key := refusal{v.Lang, v.Brand, v.Theme.Logo, lookOf(v.Theme), p.trial(ctx, 0)}
	p.mu.Lock()
	body := p.refusals[key]
	p.mu.Unlock()
	if body != nil {
		return body, nil
	}
	body, err := p.Render(ctx, v)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.refusals) >= maxRefusals {
		clear(p.refusals)
	}
	p.refusals[key] = body
	return body, nil
}
