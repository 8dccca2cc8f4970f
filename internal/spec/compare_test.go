package spec

import (
	"regexp"

	"github.com/google/go-cmp/cmp"
)

// compare are the options under which documents are equal.
func compare() cmp.Options {
	return cmp.Options{
		cmp.AllowUnexported(Moment{}),
		cmp.Comparer(func(a, b *regexp.Regexp) bool {
			if a == nil || b == nil {
				return a == b
			}
			return a.String() == b.String()
		}),
	}
}

// plainly puts an email together as far as these tests ask for it; the real thing is internal/emailsource, which needs this package.
func plainly(e *Email, layout *Layout) (*Compiled, error) {
	texts := map[Edition]Texts{}
	for _, l := range e.Editions() {
		c := e.Content(l)
		page := string(c.HTML + c.Markdown + c.MJML)
		if layout != nil {
			page = Within(layout.HTML+layout.MJML, page)
		}
		texts[l] = Texts{Subject: string(c.Subject), HTML: page, Text: string(c.Text)}
	}
	return NewCompiled(texts)
}
