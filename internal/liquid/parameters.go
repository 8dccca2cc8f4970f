package liquid

import (
	"fmt"
	"html"
	"io"
	"net/url"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/osteele/liquid/render"
)

// parametersTag begins a block that is one address, of which the query is not known before it is rendered.
const parametersTag = "_parameters"

// WithParameters makes what gives an address parameters as it is rendered, wherever its query then begins: opening goes before the address, closing after it. In HTML both
// must be in one value of an attribute, in quotes.
func WithParameters(query string) (opening, closing string) {
	return "{% " + parametersTag + " " + query + " %}", "{% end" + parametersTag + " %}"
}

// AddParameters adds those of a query, such as a=b&c=d, to the query of an address. Those that the address has stay as they are.
func AddParameters(address, query string) string {
	before, fragment, hasFragment := strings.Cut(address, "#")
	_, own, hasQuery := strings.Cut(before, "?")
	var have []string
	for pair := range strings.SplitSeq(own, "&") {
		have = append(have, parameterName(pair))
	}
	separator := "?"
	if hasQuery {
		separator = "&"
	}
	for pair := range strings.SplitSeq(query, "&") {
		if slices.Contains(have, parameterName(pair)) {
			continue
		}
		if strings.HasSuffix(before, "?") || strings.HasSuffix(before, "&") {
			separator = ""
		}
		before += separator + pair
		separator = "&"
	}
	if hasFragment {
		before += "#" + fragment
	}
	return before
}

// parameterName is the name in name=value; one that is not encoded is itself.
func parameterName(pair string) string {
	name, _, _ := strings.Cut(pair, "=")
	if d, err := url.QueryUnescape(name); err == nil {
		return d
	}
	return name
}

// parameters checks the tag and gives it for the engine.
func (c *compiler) parameters(t token) string {
	query := strings.TrimSpace(t.body)
	encoded := func(r rune) bool {
		return r < utf8.RuneSelf && (isLetter(byte(r)) || strings.ContainsRune("-.~%+&=", r))
	}
	if query == "" || strings.ContainsFunc(query, func(r rune) bool { return !encoded(r) }) {
		c.fail(t.start, "{%% %s %%} has no query, or one that is not encoded", t.name)
		query = ""
	}
	c.push(t)
	return t.name + " " + query
}

// endsInTheValue checks that an address is in one value of an attribute.
func (c *compiler) endsInTheValue(b *block, t token) {
	if quoted := c.ctx.state == inDouble || c.ctx.state == inSingle; c.mode == HTML && (!quoted || c.ctx.state != b.ctx.state || c.ctx.attr != b.ctx.attr) {
		c.fail(t.start, "what is in {%% %s %%} is not one address in quotes", b.tag)
	}
}

// renderParameters renders the block: what is in it, with the parameters.
func renderParameters(mode Mode) func(render.BlockNode) (func(io.Writer, render.Context) error, error) {
	return func(n render.BlockNode) (func(io.Writer, render.Context) error, error) {
		query := strings.TrimSpace(n.Args)
		return func(w io.Writer, ctx render.Context) error {
			var within capture
			if err := ctx.RenderChildren(&within); err != nil {
				return err
			}
			address := within.String()
			if mode == HTML {
				address = html.EscapeString(AddParameters(html.UnescapeString(address), query))
			} else {
				address = AddParameters(address, query)
			}
			if _, err := io.WriteString(w, address); err != nil {
				return fmt.Errorf("writing an address: %w", err)
			}
			return nil
		}, nil
	}
}
