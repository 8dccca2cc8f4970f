package spec

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/onda-run/onda/internal/liquid"
)

// The variables that an email's templates have beside those that people write, for send to fill.
const (
	// VarLinks is a list of the address of each of Parts.Links, in its order:
	// the tracked one, or the link itself for a recipient who is not tracked.
	VarLinks = "_links"
	// VarPixel is the address of the open pixel; "" or nil for no pixel.
	VarPixel = "_pixel"
	// VarPixelLink is the address of the link beside it that people cannot see; there with the pixel.
	VarPixelLink = "_pixel_link"
)

// Edition is one of the forms that an email's texts have.
type Edition struct {
	Locale  string // "" for the email's own
	Variant string // "" for an email without variants
}

// MarshalText gives fr@short; without the @ where there are no variants.
func (e Edition) MarshalText() ([]byte, error) {
	if e.Variant == "" {
		return []byte(e.Locale), nil
	}
	return []byte(e.Locale + "@" + e.Variant), nil
}

// UnmarshalText reads what MarshalText gave.
func (e *Edition) UnmarshalText(text []byte) error {
	e.Locale, e.Variant, _ = strings.Cut(string(text), "@")
	return nil
}

// String says which one it is, for errors: nothing of the only one.
func (e Edition) String() string {
	s := ""
	if e.Locale != "" {
		s += " in " + e.Locale
	}
	if e.Variant != "" {
		s += " of the variant " + e.Variant
	}
	return s
}

func compareEditions(a, b Edition) int {
	return cmp.Or(strings.Compare(a.Locale, b.Locale), strings.Compare(a.Variant, b.Variant))
}

// Texts are an email's templates in one edition, as they are stored: layout,
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

// Parts are the templates of an email in one edition, ready to be rendered.
type Parts struct {
	Edition
	Subject *liquid.Template
	HTML    *liquid.Template
	Text    *liquid.Template
	Links   []string // as in Texts
}

// Compiled is an email put together with its layout, in all its editions. It
// does not change and may be used by many at once.
type Compiled struct {
	// Findings are what to look at, though it can be sent. They are not stored.
	Findings []Finding

	texts map[Edition]Texts
	parts map[Edition]*Parts
	all   []*Parts
}

// Finding is what somebody should look at in an email.
type Finding struct {
	Edition
	// Layout says that it is in the layout's text, and not in the email's.
	Layout bool
	// Line and Col are where in the text; 0 for all of it.
	Line, Col int
	Msg       string
}

// NewCompiled parses an email's templates, by edition; those in its own language must be there.
func NewCompiled(texts map[Edition]Texts) (*Compiled, error) {
	if len(texts) == 0 {
		return nil, errors.New("an email in no language")
	}
	c := &Compiled{texts: texts, parts: map[Edition]*Parts{}}
	for _, edition := range slices.SortedFunc(maps.Keys(texts), compareEditions) {
		if _, ok := texts[Edition{Variant: edition.Variant}]; !ok {
			return nil, fmt.Errorf("an email that is not%s", Edition{Variant: edition.Variant})
		}
		t := texts[edition]
		p := &Parts{Edition: edition, Links: t.Links}
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
				return nil, fmt.Errorf("%s%s: %w", one.what, edition, err)
			}
		}
		c.parts[edition], c.all = p, append(c.all, p)
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

// ReadCompiled reads what JSON gave.
func ReadCompiled(stored []byte) (*Compiled, error) {
	var texts map[Edition]Texts
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

// For gives a variant's parts for a locale: of pt-BR those of pt-BR, else of pt, else the email's own. They are nil when there is no such variant.
func (c *Compiled) For(locale, variant string) *Parts {
	for locale != "" {
		if p, ok := c.parts[Edition{locale, variant}]; ok {
			return p
		}
		locale = locale[:max(strings.LastIndexByte(locale, '-'), 0)]
	}
	return c.parts[Edition{Variant: variant}]
}

// Parts gives the parts of all editions, the email's own language first.
func (c *Compiled) Parts() []*Parts { return c.all }

// Links gives the links of all editions.
func (c *Compiled) Links() []string {
	var all []string
	for _, p := range c.all {
		all = append(all, p.Links...)
	}
	return all
}

// Compile puts an email together with its layout, which is nil when it has
// none: emailsource.Compile, which needs more than functions should link.
type Compile func(e *Email, layout *Layout) (*Compiled, error)
