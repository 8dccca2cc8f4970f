package emailsource

import (
	"cmp"
	"errors"
	"fmt"
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
	textURL    = regexp.MustCompile(`(?i)<` + untrackedMark + `?https?://[^\s<>]+>|https?://[^\s<>"]+`)
	outputMark = regexp.MustCompile(`(?s)^\{\{-?\s*(.*?)\s*-?\}\}$`)
	encodes    = regexp.MustCompile(`\s*\|\s*url_encode\s*$`)
)

// untrackedMark is before an address in text that was derived of a link that is not to be tracked, until inText has seen it. It is of no script: nobody writes it.
const untrackedMark = "\ue000"

// maxLink is how long an address may be that is tracked: browsers and mail programs begin to cut longer ones, and Postgres could not index it.
const maxLink = 2000

// links gives a mail's addresses their parameters, collects them and puts variables in their places.
type links struct {
	utm       []spec.Parameter
	asTheyAre map[string]bool // that get no parameters, where the text has them too
	untracked map[string]bool // addresses of links that say so; true where all that lead there do

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

// address is an address as browsers take it from an attribute.
func address(value string) string {
	return strings.NewReplacer("\t", "", "\r", "", "\n", "").Replace(strings.TrimSpace(value))
}

func ofTheWeb(address string) bool { return hasScheme(address, "https") || hasScheme(address, "http") }

func hasScheme(address, scheme string) bool {
	before, _, is := strings.Cut(address, "://")
	return is && strings.EqualFold(before, scheme)
}

// linkOption is the beginning of attributes that say something of a link to Onda. They do not go out with the mail.
const linkOption = "data-onda-"

// trackOption stays on links until they are tracked: of two to one address, one may be and the other not.
const trackOption = linkOption + "track"

// addresses gives the links of a page their parameters, and takes what they say to Onda out of it:
//
//	data-onda-params="a=b&c={{ contact.country }}"  further parameters
//	data-onda-utm="off"                             none of the email's utm
//	data-onda-track="off"                           the link itself, whoever clicks
func (l *links) addresses(page string) (string, error) {
	m := liquid.Mask(page)
	page = onLinks(m, func(tag string) string {
		options := map[string]string{}
		for _, a := range slices.Backward(attributes(tag)) {
			if name, is := strings.CutPrefix(a.name, linkOption); is {
				options[name] = a.value
				tag = strings.TrimRight(tag[:a.from], blanks) + tag[a.to:]
			}
		}
		own, err := l.options(m, options)
		if err != nil {
			l.err = cmp.Or(l.err, fmt.Errorf("the link %s: %w", m.Restore(clip(tag)), err))
			return tag
		}
		href, has := attr(tag, "href")
		if !has {
			return tag
		}
		to := address(href)
		if !ofTheWeb(to) {
			if len(own) > 0 {
				l.err = cmp.Or(l.err, fmt.Errorf("the link %s: parameters are for addresses that begin with https://", m.Restore(clip(tag))))
			}
			return tag
		}
		if len(own) > 0 && !queryIsKnown(m, to) {
			l.err = cmp.Or(l.err, fmt.Errorf("the link %s: where its query begins is not known: put | url_encode to what Liquid puts out before it", m.Restore(clip(tag))))
			return tag
		}
		if len(own) > 0 {
			to = liquid.AddParameters(to, query(own))
		}
		if options["utm"] == "off" {
			l.asTheyAre[m.Restore(to)] = true
		} else {
			to = l.withUTM(m, to)
		}
		off, key := options["track"] == "off", m.Restore(to)
		all, known := l.untracked[key]
		l.untracked[key] = off && (all || !known)
		if off {
			tag = withAttr(tag, trackOption, "off") // until inHTML has seen it
		}
		if to == href {
			return tag
		}
		return withAttr(tag, "href", to)
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
			return m.Put("{{ " + encodes.ReplaceAllString(plain, "") + " | url_encode }}")
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

// hasTags says whether a masked text depends on tags such as {% if %}.
func hasTags(m *liquid.Masked, text string) bool {
	return slices.ContainsFunc(regexp.MustCompile(m.Pattern()).FindAllString(text, -1), m.IsTag)
}

// isEncoded says whether all that is put out in a part of a masked address is encoded: then it ends where it is seen to.
func isEncoded(m *liquid.Masked, part string) bool {
	return !slices.ContainsFunc(regexp.MustCompile(m.Pattern()).FindAllString(part, -1), func(mark string) bool {
		output := outputMark.FindStringSubmatch(m.Restore(mark))
		return output == nil || !encodes.MatchString(output[1])
	})
}

// queryIsKnown says whether a masked address shows where its query begins.
func queryIsKnown(m *liquid.Masked, address string) bool {
	path, _, _ := strings.Cut(address, "?")
	path, _, _ = strings.Cut(path, "#")
	return !hasTags(m, address) && isEncoded(m, path)
}

// hostIsKnown says whether a masked address shows where its host ends.
func hostIsKnown(m *liquid.Masked, address string) bool {
	from := strings.Index(address, "://") + len("://")
	end := strings.IndexAny(address[from:], "/?#")
	return end >= 0 && isEncoded(m, address[:from+end])
}

// query writes parameters.
func query(parameters []spec.Parameter) string {
	pairs := make([]string, len(parameters))
	for i, p := range parameters {
		pairs[i] = url.QueryEscape(p.Name) + "=" + url.QueryEscape(p.Value)
	}
	return strings.Join(pairs, "&")
}

// withUTM adds the email's parameters to an address, masked. Where what Liquid puts out may move the beginning of its query or fragment, they get their place as the mail is
// rendered; an address that depends on tags, or whose host does not end before what is put out, stays as it is.
func (l *links) withUTM(m *liquid.Masked, address string) string {
	before, _, _ := strings.Cut(address, "#")
	switch {
	case len(l.utm) == 0 || hasTags(m, address):
		return address
	case isEncoded(m, before):
		return liquid.AddParameters(address, query(l.utm))
	case hostIsKnown(m, address):
		opening, closing := liquid.WithParameters(query(l.utm))
		return m.Put(opening) + address + m.Put(closing)
	}
	return address
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
		for _, a := range attributes(tag) {
			if a.name == trackOption {
				return strings.TrimRight(tag[:a.from], blanks) + tag[a.to:]
			}
		}
		href, _ := attr(tag, "href")
		to := address(href)
		if m.Has(to) || !ofTheWeb(to) {
			return tag
		}
		return withAttr(tag, "href", l.variable(to))
	})
}

// inText does the same to plain text, whose addresses get their parameters here.
func (l *links) inText(text string) string {
	m := liquid.Mask(text)
	return m.Restore(textURL.ReplaceAllStringFunc(m.Text, func(found string) string {
		found, off := strings.CutPrefix(found, "<"+untrackedMark)
		if off {
			return "<" + found
		}
		before, address := "", withoutPunctuation(found)
		if strings.HasPrefix(found, "<") { // it says itself where it ends
			before, address = "<", found[1:len(found)-1]
		}
		after := found[len(before)+len(address):]
		if written := m.Restore(address); !l.asTheyAre[written] && !l.untracked[written] {
			address = l.withUTM(m, address)
		}
		if m.Has(address) || l.untracked[address] {
			return before + address + after
		}
		return before + l.variable(address) + after
	}))
}

// withoutPunctuation leaves out what goes on after an address in a sentence. A bracket that it opens itself is its own.
func withoutPunctuation(address string) string {
	for strings.ContainsAny(address[len(address)-1:], ".,;:!?)]}'") {
		if strings.HasSuffix(address, ")") && strings.Count(address, "(") >= strings.Count(address, ")") {
			break
		}
		address = address[:len(address)-1]
	}
	return address
}

// clip shortens what an error shows.
func clip(s string) string {
	if len(s) <= 80 {
		return s
	}
	return strings.ToValidUTF8(s[:80], "") + "..."
}
