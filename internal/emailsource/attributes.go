package emailsource

import (
	"html"
	"strings"

	nethtml "golang.org/x/net/html"
)

// attribute is one of a tag, with where it stands in it: tools that write a tag anew would change what mail programs need as it is.
type attribute struct {
	name     string // in small letters
	value    string // as a browser reads it
	from, to int    // of all of it, without blanks around
}

const blanks = " \t\r\n\f"

// attributes reads those of an opening tag by the rules of HTML. Of two with one name the first counts, and the second is left out.
func attributes(tag string) (list []attribute) {
	seen := map[string]bool{}
	at := len(tagName(tag)) + 1
	until := func(from int, stops string) int {
		if n := strings.IndexAny(tag[from:], stops); n >= 0 {
			return from + n
		}
		return len(tag)
	}
	skip := func(from int, what string) int { return len(tag) - len(strings.TrimLeft(tag[from:], what)) }
	for {
		if at = skip(at, blanks+"/"); at >= len(tag) || tag[at] == '>' {
			return list
		}
		a := attribute{from: at}
		at = until(min(at+1, len(tag)), blanks+"/>=") // a name may begin with =
		a.name, a.to = strings.ToLower(tag[a.from:at]), at
		if is := skip(at, blanks); is < len(tag) && tag[is] == '=' {
			at = skip(is+1, blanks)
			from := at
			switch {
			case at < len(tag) && (tag[at] == '"' || tag[at] == '\''):
				at = min(until(at+1, tag[at:at+1])+1, len(tag))
			default:
				at = until(at, blanks+">")
			}
			a.value, a.to = value(tag[from:at]), at
		}
		if !seen[a.name] {
			seen[a.name] = true
			list = append(list, a)
		}
	}
}

// tagName is the name of a tag as it is written.
func tagName(tag string) string {
	name := strings.TrimPrefix(tag, "<")
	if end := strings.IndexAny(name, blanks+"/>"); end >= 0 {
		return name[:end]
	}
	return name
}

// value is what an attribute says that is written so, with its quotes: references such as &amp; are read otherwise than in text.
func value(written string) string {
	z := nethtml.NewTokenizer(strings.NewReader("<a v=" + written + ">"))
	z.Next()
	z.TagName()
	_, v, _ := z.TagAttr()
	return string(v)
}

// attr gives the value of an attribute of a tag, and whether the tag has it.
func attr(tag, name string) (value string, has bool) {
	for _, a := range attributes(tag) {
		if a.name == name {
			return a.value, true
		}
	}
	return "", false
}

// withAttr gives a tag an attribute, in the place of its own of that name.
func withAttr(tag, name, value string) string {
	written := name + `="` + html.EscapeString(value) + `"`
	for _, a := range attributes(tag) {
		if a.name == name {
			return tag[:a.from] + written + tag[a.to:]
		}
	}
	end := len(tag) - 1
	if strings.HasSuffix(tag, "/>") {
		end--
	}
	return strings.TrimRight(tag[:end], blanks) + " " + written + tag[end:]
}
