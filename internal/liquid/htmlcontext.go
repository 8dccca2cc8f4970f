package liquid

import (
	"slices"
	"strings"
)

// htmlContext follows the HTML of a template closely enough to know how a value
// must be escaped where it stands. Two whose place is equal go on alike.
type htmlContext struct {
	state htmlState
	tag   string // the element being opened
	attr  string // the attribute whose value is being written
	empty bool   // nothing of the value may have been written yet
	name  string // letters of a tag or attribute name so far
	seen  string // of text, comments, scripts and styles: what may begin a mark that changes the state
}

// unknownName is before the name of an attribute that depends on which branch was taken.
const unknownName = "\x00"

// maxHTMLName bounds what is kept of a name; those that matter are shorter.
const maxHTMLName = 64

type htmlState int

const (
	inText htmlState = iota
	inTagName
	inTag     // between attributes
	inAttr    // in an attribute's name
	afterAttr // after it, before =
	afterIs   // after =
	inDouble  // in a value in double quotes
	inSingle
	inBare // in a value without quotes
	inComment
	inScript // script
	inStyle
)

func urlAttributes() []string {
	return []string{"href", "xlink:href", "src", "action", "formaction", "background", "poster", "cite", "longdesc", "data"}
}

// where says which place of the HTML this is.
func (h htmlContext) where() string {
	switch h.state {
	case inTagName, inTag, inAttr, afterAttr:
		return "in a tag"
	case afterIs, inDouble, inSingle, inBare:
		return "in the value of an attribute"
	case inComment:
		return "in a comment"
	case inScript:
		return "in a script"
	case inStyle:
		return "in a style"
	case inText:
	}
	if h.seen != "" {
		return "right after " + h.seen
	}
	return "in text"
}

// place leaves out what means nothing in this state.
func (h htmlContext) place() htmlContext {
	p := htmlContext{state: h.state}
	switch h.state {
	case inText, inScript, inStyle:
		p.seen = h.seen
	case inTagName:
		p.name = h.name
	case inTag:
		p.tag = h.tag
	case inAttr, afterAttr:
		p.tag, p.name = h.tag, h.name
	case afterIs, inDouble, inSingle, inBare:
		p.tag, p.attr, p.empty = h.tag, h.attr, h.empty
	case inComment:
		p.seen, p.name = h.seen, h.name
	}
	return p
}

// join gives the place after branches of which one ends at h and the other at
// o; false where a value after them could not be escaped for both.
func (h htmlContext) join(o htmlContext) (htmlContext, bool) {
	h, o = h.place(), o.place()
	if h == o {
		return h, true
	}
	between := func(s htmlState) bool { return s == inTag || s == inAttr || s == afterAttr }
	quoted := func(s htmlState) bool { return s == inDouble || s == inSingle }
	switch {
	case between(h.state) && between(o.state):
		if h.state != o.state || h.name != o.name {
			h.state, h.name = inAttr, unknownName
		}
	case quoted(h.state) && h.state == o.state:
		if h.attr != o.attr {
			h.attr = unknownName
		}
		h.empty = h.empty || o.empty
	default:
		return h, false
	}
	if h.tag != o.tag {
		for _, tag := range []string{h.tag, o.tag} {
			if tag == "script" || tag == "style" {
				return h, false
			}
		}
		h.tag = ""
	}
	return h, true
}

// feed goes through literal text.
func (h *htmlContext) feed(s string) {
	for i := range len(s) {
		c := s[i]
		if c >= 'A' && c <= 'Z' {
			c += 'a' - 'A'
		}
		h.next(c, strings.IndexByte(" \t\r\n\f", c) >= 0)
	}
}

func (h *htmlContext) next(c byte, space bool) {
	switch h.state {
	case inText:
		h.text(c)
	case inTagName:
		switch {
		case c == '>':
			h.tag = h.name
			h.closeTag()
		case space || c == '/' && h.name != "":
			h.tag, h.state = h.name, inTag
		default:
			h.addName(c)
		}
	case inTag:
		switch {
		case c == '>':
			h.closeTag()
		case !space && c != '/':
			h.state, h.name = inAttr, string(c)
		}
	case inAttr, afterAttr:
		switch {
		case c == '>':
			h.closeTag()
		case c == '=':
			h.state, h.attr, h.empty = afterIs, h.name, true
		case c == '/':
			h.state = inTag
		case space:
			h.state = afterAttr
		case h.state == afterAttr:
			h.state, h.name = inAttr, string(c)
		default:
			h.state = inAttr
			h.addName(c)
		}
	case afterIs:
		switch {
		case c == '"':
			h.state = inDouble
		case c == '\'':
			h.state = inSingle
		case c == '>':
			h.closeTag()
		case !space:
			h.state, h.empty = inBare, false
		}
	case inDouble, inSingle:
		if c == '"' && h.state == inDouble || c == '\'' && h.state == inSingle {
			h.state = inTag
		} else if !space {
			h.empty = false
		}
	case inBare:
		if c == '>' {
			h.closeTag()
		} else if space {
			h.state = inTag
		}
	case inComment:
		switch {
		case h.look(c, "-->"):
			h.state = inText
		case len(h.name) < len("[if"):
			// what is in a conditional comment is HTML to the programs that it is for
			if h.addName(c); h.name == "[if" {
				h.state, h.seen = inText, ""
			}
		}
	case inScript:
		if h.look(c, "</script") {
			h.state, h.name = inTagName, "/script"
		}
	case inStyle:
		if h.look(c, "</style") {
			h.state, h.name = inTagName, "/style"
		}
	}
}

func (h *htmlContext) text(c byte) {
	switch {
	case h.seen == "<" && (isLetter(c) || c == '/'):
		h.state, h.name, h.seen = inTagName, string(c), ""
	case h.look(c, "<!--"):
		h.state, h.name = inComment, ""
	}
}

// look says whether a mark is complete with this letter, whatever there was of it before.
func (h *htmlContext) look(c byte, mark string) bool {
	h.seen += string(c)
	for !strings.HasPrefix(mark, h.seen) {
		h.seen = h.seen[1:]
	}
	if h.seen != mark {
		return false
	}
	h.seen = ""
	return true
}

func (h *htmlContext) addName(c byte) {
	if len(h.name) < maxHTMLName {
		h.name += string(c)
	}
}

func (h *htmlContext) closeTag() {
	switch h.tag {
	case "script":
		h.state = inScript
	case "style":
		h.state = inStyle
	default:
		h.state = inText
	}
}

// escape gives the filter for a value that is put out here, or why it cannot be.
func (h *htmlContext) escape() (filter, problem string) {
	switch h.state {
	case inDouble, inSingle:
		if strings.HasPrefix(h.attr, unknownName) {
			return "", "a value cannot be put into an attribute whose name depends on {% if %}: write the whole attribute in each branch"
		}
		if h.empty && slices.Contains(urlAttributes(), h.attr) {
			return "_url", "" // still at its beginning afterwards: the value may be empty
		}
		if strings.HasPrefix(h.attr, "on") {
			return "", "a value cannot be part of a script: leave the attribute " + h.attr + " out"
		}
		if h.attr == "srcdoc" {
			return "", "a value cannot be part of a page within the page: leave the attribute srcdoc out"
		}
		h.empty = false
		return "_html", ""
	case afterIs, inBare:
		h.state, h.empty = inBare, false
		return "", "put the value of the attribute " + h.attr + " in quotes: " + h.attr + `="{{ ... }}"`
	case inTagName, inTag, inAttr, afterAttr:
		return "", "a value cannot be part of a tag: only the value of an attribute, in quotes, or text"
	case inScript:
		return "", "a value cannot be part of a script"
	case inStyle:
		return "", "a value cannot be part of a style: put it into a style attribute"
	case inComment: // what was seen stays: the value may be empty
	case inText:
		if h.seen == "<" {
			return "", "a value cannot come right after <, where it would name a tag: write &lt; for the character"
		}
		h.seen = ""
	}
	return "_html", ""
}
