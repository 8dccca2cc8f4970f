package spec

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// Documents are read as trees of nodes, whether they come from YAML, with
// positions, or from the JSON that is stored. Everything after that is the
// same for both, so that what was checked at apply is what is read at run time.

// maxDepth bounds how deep lists and objects may be nested.
const maxDepth = 100

var tooDeep = fmt.Sprintf("nested deeper than %d: write it flatter", maxDepth)

type nodeKind int

const (
	nullNode nodeKind = iota
	boolNode
	numberNode
	textNode
	listNode
	objectNode
)

func (k nodeKind) String() string {
	return [...]string{"nothing", "true or false", "a number", "text", "a list", "an object"}[k]
}

type position struct {
	file      string
	line, col int
}

type node struct {
	position
	kind    nodeKind
	text    string // of a scalar, as written: 1.10 stays 1.10
	plain   bool   // a scalar without quotes
	said    bool   // what is wrong with it was said when it was read
	items   []*node
	entries []*entry
	// where the characters of a text are, for the templates in it: text that
	// begins at body with each line indented by indent columns
	body   position
	indent int
}

type entry struct {
	position
	key   string
	value *node
}

// get gives the value of a key of an object, or nil.
func (n *node) get(key string) *node {
	for _, e := range n.entries {
		if e.key == key {
			return e.value
		}
	}
	return nil
}

func (n *node) at(key string) position {
	for _, e := range n.entries {
		if e.key == key {
			return e.position
		}
	}
	return n.position
}

// put sets the value of a key.
func (n *node) put(key string, value *node) {
	for _, e := range n.entries {
		if e.key == key {
			e.value = value
			return
		}
	}
	n.entries = append(n.entries, &entry{position: value.position, key: key, value: value})
}

func (n *node) drop(key string) {
	n.entries = slices.DeleteFunc(n.entries, func(e *entry) bool { return e.key == key })
}

// place gives the position of a line and column of a template in this text.
func (n *node) place(line, col int) position {
	if n.body.line == 0 {
		return n.position
	}
	p := n.body
	if line == 1 {
		p.col += col - 1
	} else {
		p.line += line - 1
		p.col = n.indent + col
	}
	return p
}

// appendJSON writes the tree in its one form: keys sorted, no spaces, numbers as they were written.
func (n *node) appendJSON(b []byte) []byte {
	switch n.kind {
	case nullNode:
		return append(b, "null"...)
	case boolNode, numberNode:
		return append(b, n.text...)
	case textNode:
		return appendJSONString(b, n.text)
	case listNode:
		b = append(b, '[')
		for i, item := range n.items {
			if i > 0 {
				b = append(b, ',')
			}
			b = item.appendJSON(b)
		}
		return append(b, ']')
	default:
		entries := slices.Clone(n.entries)
		slices.SortFunc(entries, func(x, y *entry) int { return strings.Compare(x.key, y.key) })
		b = append(b, '{')
		for i, e := range entries {
			if i > 0 {
				b = append(b, ',')
			}
			b = appendJSONString(b, e.key)
			b = append(b, ':')
			b = e.value.appendJSON(b)
		}
		return append(b, '}')
	}
}

func appendJSONString(b []byte, s string) []byte {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(s); err != nil { // a string always encodes
		return append(b, `""`...)
	}
	return append(b, bytes.TrimSuffix(buf.Bytes(), []byte("\n"))...)
}

// parseJSON reads the JSON of a stored document.
func parseJSON(src []byte) (*node, error) {
	dec := json.NewDecoder(bytes.NewReader(src))
	dec.UseNumber()
	n, err := readJSON(dec, 0)
	if err != nil {
		return nil, err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("more than one JSON value")
	}
	return n, nil
}

func readJSON(dec *json.Decoder, depth int) (*node, error) {
	if depth > maxDepth {
		return nil, errors.New(tooDeep)
	}
	tok, err := dec.Token()
	if err != nil {
		return nil, err
	}
	switch t := tok.(type) {
	case nil:
		return &node{kind: nullNode}, nil
	case bool:
		return &node{kind: boolNode, text: fmt.Sprint(t)}, nil
	case json.Number:
		return &node{kind: numberNode, text: t.String(), plain: true}, nil
	case string:
		return &node{kind: textNode, text: t}, nil
	}
	if tok == json.Delim('[') {
		n := &node{kind: listNode}
		for dec.More() {
			item, err := readJSON(dec, depth+1)
			if err != nil {
				return nil, err
			}
			n.items = append(n.items, item)
		}
		_, err := dec.Token()
		return n, err
	}
	n := &node{kind: objectNode}
	for dec.More() {
		key, err := dec.Token()
		if err != nil {
			return nil, err
		}
		value, err := readJSON(dec, depth+1)
		if err != nil {
			return nil, err
		}
		n.put(key.(string), value)
	}
	_, err = dec.Token()
	return n, err
}
