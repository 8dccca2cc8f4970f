package liquid

import (
	"slices"
	"strings"
)

// htmlContext follows the HTML of a template closely enough to know how a value
// must be escaped where it stands.
type htmlContext struct {
	state htmlState
	tag   string // the element being opened
	attr  string // the attribute whose value is being written
	empty bool   // nothing of the value was written yet
	name  string // letters of a tag or attribute name so far
}

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

// feed goes through literal text.
func (h *htmlContext) feed(s string) {
	for i := 0; i < len(s); i++ {
		c := s[i]
		space := strings.IndexByte(" \t\r\n\f", c) >= 0
		switch h.state {
		case inText:
			switch {
			case strings.HasPrefix(s[i:], "<!--"):
				h.state = inComment
				i += 3
			case c == '<' && i+1 < len(s) && (isLetter(s[i+1]) || s[i+1] == '/'):
				h.state, h.name = inTagName, ""
			}
		case inTagName:
			switch {
			case c == '>':
				h.tag = h.name
				h.closeTag()
			case space:
				h.tag, h.state = h.name, inTag
			case c != '/' || h.name == "":
				h.name += strings.ToLower(string(c))
			}
		case inTag:
			switch {
			case c == '>':
				h.closeTag()
			case !space && c != '/':
				h.state, h.name = inAttr, strings.ToLower(string(c))
			}
		case inAttr, afterAttr:
			switch {
			case c == '>':
				h.closeTag()
			case c == '=':
				h.state, h.attr, h.empty = afterIs, h.name, true
			case space:
				h.state = afterAttr
			case h.state == afterAttr:
				h.state, h.name = inAttr, strings.ToLower(string(c))
			case len(h.name) < 64:
				h.name += strings.ToLower(string(c))
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
			if strings.HasPrefix(s[i:], "-->") {
				h.state = inText
				i += 2
			}
		case inScript, inStyle:
			end := "</script"
			if h.state == inStyle {
				end = "</style"
			}
			if len(s)-i >= len(end) && strings.EqualFold(s[i:i+len(end)], end) {
				h.state, h.name = inTagName, ""
			}
		}
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
	}
	return "_html", ""
}
