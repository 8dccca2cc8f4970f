package emailsource

import (
	"cmp"
	"errors"
	"fmt"
	"html"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"

	nethtml "golang.org/x/net/html"

	"github.com/onda-run/onda/internal/liquid"
	"github.com/onda-run/onda/internal/spec"
)

var (
	hrefValue = regexp.MustCompile(`(?is)(\shref\s*=\s*)("[^"]*"|'[^']*'|[^\s"'>]+)`)
	// What an a or area says of its link to Onda. It does not go out with the mail.
	linkOption = regexp.MustCompile(`(?is)\s+data-onda-([a-z]+)(?:\s*=\s*("[^"]*"|'[^']*'|[^\s"'>]+))?`)
	textURL    = regexp.MustCompile(`https?://[^\s<>"]+`)
	outputMark = regexp.MustCompile(`(?s)^\{\{-?\s*(.*?)\s*-?\}\}$`)
)

// maxLink is how long an address may be that is tracked: browsers and mail programs begin to cut longer ones, and Postgres could not index it.
const maxLink = 2000

// links gives a mail's addresses their parameters, collects them and puts variables in their places.
type links struct {
	utm       []spec.Parameter
	asTheyAre map[string]bool // that get no parameters, where the text has them too
	untracked map[string]bool

	all   []string
	index map[string]int
	err   error // the first
}

func newLinks(utm []spec.Parameter) *links {
	return &links{utm: utm, asTheyAre: map[string]bool{}, untracked: map[string]bool{}, index: map[string]int{}}
}

// onLinks changes the tags of a page's links, masked.
func onLinks(m *liquid.Masked, change func(tag string) string) string {
	var out strings.Builder
	z := nethtml.NewTokenizer(strings.NewReader(m.Text))
	for z.Next() != nethtml.ErrorToken {
		raw := string(z.Raw())
		name, _ := z.TagName()
		if tag := string(name); (tag == "a" || tag == "area") && !strings.HasPrefix(raw, "</") {
			raw = change(raw)
		}
		out.WriteString(raw)
	}
	return m.Restore(out.String())
}

// value is what an attribute says.
func value(quoted string) string {
	return strings.TrimSpace(html.UnescapeString(strings.Trim(quoted, `"'`)))
}

func ofTheWeb(address string) bool {
	return strings.HasPrefix(address, "https://") || strings.HasPrefix(address, "http://")
}

// addresses gives the links of a page their parameters, and takes what they say to Onda out of it:
//
//	data-onda-params="a=b&c={{ contact.country }}"  further parameters
//	data-onda-utm="off"                             none of the email's utm
//	data-onda-track="off"                           the link itself, whoever clicks
func (l *links) addresses(page string) (string, error) {
	m := liquid.Mask(page)
	page = onLinks(m, func(tag string) string {
		options := map[string]string{}
		tag = linkOption.ReplaceAllStringFunc(tag, func(attr string) string {
			p := linkOption.FindStringSubmatch(attr)
			options[strings.ToLower(p[1])] = value(p[2])
			return ""
		})
		own, err := l.options(m, options)
		if err != nil {
			l.err = cmp.Or(l.err, fmt.Errorf("the link %s: %w", m.Restore(clip(tag)), err))
			return tag
		}
		return hrefValue.ReplaceAllStringFunc(tag, func(attr string) string {
			p := hrefValue.FindStringSubmatch(attr)
			address := value(p[2])
			if !ofTheWeb(address) {
				if len(own) > 0 {
					l.err = cmp.Or(l.err, fmt.Errorf("the link %s: parameters are for addresses that begin with https://", m.Restore(clip(tag))))
				}
				return attr
			}
			to := withParameters(m, address, own)
			if options["utm"] == "off" {
				l.asTheyAre[m.Restore(to)] = true
			} else {
				to = withParameters(m, to, l.utm)
			}
			if options["track"] == "off" {
				l.untracked[m.Restore(to)] = true
			}
			if to == address {
				return attr
			}
			return p[1] + `"` + html.EscapeString(to) + `"`
		})
	})
	return page, l.err
}

// options reads what a link says to Onda, and gives the parameters of its own.
func (l *links) options(m *liquid.Masked, options map[string]string) (own []spec.Parameter, err error) {
	for name, v := range options {
		switch name {
		case "params":
			if own, err = ownParameters(m, v); err != nil {
				return nil, err
			}
		case "utm", "track":
			if v != "off" {
				return nil, fmt.Errorf("data-onda-%s is off or left out, not %q", name, m.Restore(v))
			}
		default:
			return nil, fmt.Errorf("there is no data-onda-%s: it is one of data-onda-params, data-onda-utm, data-onda-track", name)
		}
	}
	return own, nil
}

// ownParameters reads a=b&c={{ contact.country }}. What Liquid puts out is encoded for a query, whatever it is.
func ownParameters(m *liquid.Masked, params string) (own []spec.Parameter, err error) {
	mark := regexp.MustCompile(m.Pattern())
	for pair := range strings.SplitSeq(params, "&") {
		name, value, is := strings.Cut(strings.TrimSpace(pair), "=")
		if !is || name == "" || m.Has(name) {
			return nil, fmt.Errorf("data-onda-params is written as a=b&c={{ contact.country }}, not %q", m.Restore(params))
		}
		value = mark.ReplaceAllStringFunc(value, func(one string) string {
			expression := outputMark.FindStringSubmatch(m.Restore(one))
			if expression == nil {
				err = errors.New("data-onda-params has values such as {{ contact.country }}, and no tags such as {% if %}")
				return one
			}
			plain := strings.TrimRight(strings.TrimSuffix(expression[1], "| raw"), " ")
			return m.Put("{{ " + strings.TrimSuffix(plain, " | url_encode") + " | url_encode }}")
		})
		own = append(own, spec.Parameter{Name: decoded(name), Value: decoded(value)})
	}
	return own, err
}

// decoded is a piece of a query as it is meant; one that is not encoded is itself.
func decoded(s string) string {
	if d, err := url.QueryUnescape(s); err == nil {
		return d
	}
	return s
}

// withParameters adds parameters to the query of an address, masked: those that it has stay as they are. An address whose parts depend on tags such as {% if %} is left as
// it is: where its query begins is not known before it is rendered.
func withParameters(m *liquid.Masked, address string, add []spec.Parameter) string {
	for _, mark := range regexp.MustCompile(m.Pattern()).FindAllString(address, -1) {
		if m.IsTag(mark) {
			return address
		}
	}
	before, fragment, hasFragment := strings.Cut(address, "#")
	_, query, hasQuery := strings.Cut(before, "?")
	var have []string
	for pair := range strings.SplitSeq(query, "&") {
		name, _, _ := strings.Cut(pair, "=")
		have = append(have, decoded(name))
	}
	separator := "?"
	if hasQuery {
		separator = "&"
	}
	for _, p := range add {
		if slices.Contains(have, p.Name) {
			continue
		}
		if strings.HasSuffix(before, "?") || strings.HasSuffix(before, "&") {
			separator = ""
		}
		before += separator + url.QueryEscape(p.Name) + "=" + url.QueryEscape(p.Value)
		separator = "&"
	}
	if hasFragment {
		before += "#" + fragment
	}
	return before
}

func (l *links) variable(address string) string {
	if len(address) > maxLink {
		l.err = cmp.Or(l.err, fmt.Errorf("the link %s has %d bytes, and programs cut addresses of more than %d: shorten it", clip(address), len(address), maxLink))
		return address
	}
	i, ok := l.index[address]
	if !ok {
		i = len(l.all)
		l.index[address] = i
		l.all = append(l.all, address)
	}
	return "{{ " + spec.VarLinks + "[" + strconv.Itoa(i) + "] }}"
}

func (l *links) inHTML(page string) string {
	m := liquid.Mask(page)
	return onLinks(m, func(tag string) string {
		return hrefValue.ReplaceAllStringFunc(tag, func(attr string) string {
			p := hrefValue.FindStringSubmatch(attr)
			address := value(p[2])
			if m.Has(address) || !ofTheWeb(address) || l.untracked[address] {
				return attr
			}
			return p[1] + `"` + l.variable(address) + `"`
		})
	})
}

// inText does the same to plain text, whose addresses get their parameters here.
func (l *links) inText(text string) string {
	m := liquid.Mask(text)
	return m.Restore(textURL.ReplaceAllStringFunc(m.Text, func(found string) string {
		address := strings.TrimRight(found, ".,;:!?)]}'")
		after := found[len(address):]
		if written := m.Restore(address); !l.asTheyAre[written] && !l.untracked[written] {
			address = withParameters(m, address, l.utm)
		}
		if m.Has(address) || l.untracked[address] {
			return address + after
		}
		return l.variable(address) + after
	}))
}

// clip shortens what an error shows.
func clip(s string) string {
	if len(s) <= 80 {
		return s
	}
	return strings.ToValidUTF8(s[:80], "") + "..."
}
