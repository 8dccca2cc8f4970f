package spec

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/onda-run/onda/internal/liquid"
)

// The variables that an email's templates have beside those that people write, for send to fill.
const (
	// VarLinks is a list of the address of each of Parts.Links, in its order:
	// the tracked one, or the link itself for a recipient who is not tracked.
	VarLinks = "_links"
	// VarPixel is the address of the open pixel; "" or nil for no pixel.
	VarPixel = "_pixel"
)

// Texts are an email's templates in one language, as they are stored: layout,
// preheader and pixel are in them, Markdown has become HTML, and the plain text
// is there. internal/emailsource makes them at apply, so that what send, track
// and others start with is Liquid alone.
type Texts struct {
	Subject string `json:"subject"`
	HTML    string `json:"html"`
	Text    string `json:"text"`
	// Links are the distinct addresses of the web in HTML and Text that can be
	// tracked, in the order of the HTML. Where one stood, the templates have
	// {{ _links[i] }}. An address with Liquid in it, such as
	// {{ unsubscribe_url }}, is no link in this sense: it stays as it is and is
	// not tracked, since its address is not known before it is rendered.
	Links []string `json:"links,omitempty"`
}

// Parts are the templates of an email in one language, ready to be rendered.
type Parts struct {
	Locale  string // "" for the email's own
	Subject *liquid.Template
	HTML    *liquid.Template
	Text    *liquid.Template
	Links   []string // as in Texts
}

// Compiled is an email put together with its layout, in all its languages. It
// does not change and may be used by many at once.
type Compiled struct {
	texts   map[string]Texts
	parts   map[string]*Parts
	locales []string
}

// NewCompiled parses an email's templates, by language; "" is the email's own and must be there.
func NewCompiled(texts map[string]Texts) (*Compiled, error) {
	if _, ok := texts[""]; !ok {
		return nil, errors.New("an email in no language")
	}
	c := &Compiled{texts: texts, parts: map[string]*Parts{}, locales: sortedKeys(texts)}
	for locale, t := range texts {
		p := &Parts{Locale: locale, Links: t.Links}
		for _, one := range []struct {
			what, src string
			mode      liquid.Mode
			into      **liquid.Template
		}{
			{"subject", t.Subject, liquid.Header, &p.Subject},
			{"html", t.HTML, liquid.HTML, &p.HTML},
			{"text", t.Text, liquid.Text, &p.Text},
		} {
			var err error
			if *one.into, err = parseTemplate(one.src, one.mode); err != nil {
				return nil, fmt.Errorf("%s%s: %w", one.what, inLocale(locale), err)
			}
		}
		c.parts[locale] = p
	}
	return c, nil
}

func parseTemplate(src string, mode liquid.Mode) (*liquid.Template, error) {
	t, problems := liquid.Parse(src, mode)
	if t != nil {
		return t, nil
	}
	errs := make([]error, len(problems))
	for i, p := range problems {
		errs[i] = p
	}
	return nil, errors.Join(errs...)
}

func inLocale(locale string) string {
	if locale == "" {
		return ""
	}
	return " in " + locale
}

// ReadCompiled reads what JSON gave.
func ReadCompiled(stored []byte) (*Compiled, error) {
	var texts map[string]Texts
	if err := json.Unmarshal(stored, &texts); err != nil {
		return nil, fmt.Errorf("reading an email's templates: %w", err)
	}
	return NewCompiled(texts)
}

// JSON gives the stored form: the same for the same templates.
func (c *Compiled) JSON() []byte {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(c.texts); err != nil { // a map of texts always encodes
		panic(err)
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n"))
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

// Links gives the links of all languages.
func (c *Compiled) Links() []string {
	var all []string
	for _, l := range c.locales {
		all = append(all, c.texts[l].Links...)
	}
	return all
}

// Compile puts an email together with its layout, which is nil when it has
// none: emailsource.Compile, which needs more than functions should link.
type Compile func(e *Email, layout *Layout) (*Compiled, error)
