package spec

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	yaml "github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/scanner"
	"github.com/goccy/go-yaml/token"
)

// maxFile bounds a file of documents, a template and a file of texts, in bytes.
const maxFile = 1 << 20

// What the YAML library is given is bounded before it parses: its scanner goes
// through a file once, but its parser takes time by the square of a document's
// depth, of its keys and of the length of keys around others.
const (
	maxFileTokens     = 200_000 // words and marks
	maxDocumentTokens = 20_000
	maxDocumentKeys   = 3_000
	maxKey            = 256 // bytes
)

// number is what a plain scalar must look like to be a number: JSON's grammar,
// and so neither 0612345678 nor +33 nor 1_000 nor 0x1F.
const number = `^-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?$`

// parseYAML reads the documents of one file as trees. Of YAML it takes the
// part that JSON has too: no anchors, aliases, tags and merge keys. A plain
// scalar is true, false, null or ~, a number of JSON, or text.
func parseYAML(file string, src []byte) (docs []*node, problems Problems) {
	if len(src) > maxFile {
		return nil, Problems{{File: file, Line: 1, Col: 1, Msg: errTooLarge.Error()}}
	}
	if !utf8.Valid(src) {
		return nil, Problems{{File: file, Line: 1 + bytes.Count(validPrefix(src), []byte("\n")), Col: 1, Msg: "the file is not UTF-8"}}
	}
	parts, problems := scanYAML(file, src)
	r := yamlReader{file: file, lines: strings.Split(strings.ReplaceAll(string(src), "\r\n", "\n"), "\n"), problems: problems}
	for _, tokens := range parts {
		if n := r.document(tokens); n != nil {
			docs = append(docs, n)
		}
	}
	return docs, r.problems
}

// scanYAML cuts a file into the words and marks of each of its documents. It
// gives none when one of them, or all together, are too much.
func scanYAML(file string, src []byte) (parts []token.Tokens, problems Problems) {
	var s scanner.Scanner
	defer func() {
		// the scanner is not ours: what it cannot read must not end the program
		if r := recover(); r != nil {
			parts, problems = nil, Problems{{File: file, Line: 1, Col: 1, Msg: fmt.Sprintf("not readable as YAML: %v", r)}}
		}
	}()
	s.Init(string(src))
	var doc documentScan
	total := 0
	for {
		tokens, err := s.Scan()
		if errors.Is(err, io.EOF) {
			return append(parts, doc.tokens), nil
		}
		for _, tk := range tokens {
			if tk.Type == token.DocumentHeaderType {
				parts, doc = append(parts, doc.tokens), documentScan{}
			}
			msg := doc.add(tk)
			if total++; total > maxFileTokens {
				msg = fmt.Sprintf("the file has more than %d words and marks of YAML: divide it into several", maxFileTokens)
			}
			if msg != "" {
				return nil, Problems{{File: file, Line: max(tk.Position.Line, 1), Col: max(tk.Position.Column, 1), Msg: msg}}
			}
			if tk.Type == token.DocumentEndType {
				parts, doc = append(parts, doc.tokens), documentScan{}
			}
		}
	}
}

// documentScan is what there is of a document so far.
type documentScan struct {
	tokens  token.Tokens
	keys    int
	flow    int   // how many [ and { are open
	columns []int // where the lists and objects begin that are open by their indent
}

// add takes one more word or mark, and gives what is too much of it.
func (d *documentScan) add(tk *token.Token) (problem string) {
	var last *token.Token
	if len(d.tokens) > 0 {
		last = d.tokens[len(d.tokens)-1]
	}
	d.tokens.Add(tk)
	switch tk.Type {
	case token.MappingStartType, token.SequenceStartType:
		d.flow++
	case token.MappingEndType, token.SequenceEndType:
		d.flow = max(d.flow-1, 0)
	case token.SequenceEntryType:
		d.indent(tk)
	case token.MappingValueType:
		if d.keys++; last != nil {
			d.indent(last)
		}
		if last != nil && len(last.Value) > maxKey {
			return fmt.Sprintf("a key is longer than %d bytes: the text of it belongs into a value", maxKey)
		}
	default: // adds to no bound
	}
	switch {
	case d.flow+len(d.columns) > maxDepth:
		return tooDeep
	case d.keys > maxDocumentKeys:
		return fmt.Sprintf("the document has more than %d keys: divide it into several", maxDocumentKeys)
	case len(d.tokens) > maxDocumentTokens:
		return fmt.Sprintf("the document has more than %d words and marks of YAML: divide it into several", maxDocumentTokens)
	}
	return ""
}

// indent notes that a list or an object has an entry that begins here.
func (d *documentScan) indent(tk *token.Token) {
	if d.flow > 0 {
		return
	}
	at := tk.Position.Column
	for len(d.columns) > 0 && d.columns[len(d.columns)-1] > at {
		d.columns = d.columns[:len(d.columns)-1]
	}
	if len(d.columns) == 0 || d.columns[len(d.columns)-1] < at {
		d.columns = append(d.columns, at)
	}
}

func validPrefix(b []byte) []byte {
	for i := 0; i < len(b); {
		r, size := utf8.DecodeRune(b[i:])
		if r == utf8.RuneError && size == 1 {
			return b[:i]
		}
		i += size
	}
	return b
}

func syntaxProblem(file string, err error) Problem {
	p := Problem{File: file, Line: 1, Col: 1}
	var at yaml.Error
	if !errors.As(err, &at) {
		p.Msg = "not readable as YAML: " + err.Error()
		return p
	}
	// the text of the error itself would draw the source, which takes long where that is long
	p.Msg = "not readable as YAML: " + at.GetMessage()
	if tk := at.GetToken(); tk != nil {
		p.Line, p.Col = max(tk.Position.Line, 1), max(tk.Position.Column, 1)
	}
	return p
}

type yamlReader struct {
	file     string
	lines    []string
	problems Problems
}

// document parses the words and marks of one document; nil when it is empty or cannot be read.
func (r *yamlReader) document(tokens token.Tokens) (doc *node) {
	defer func() {
		// nor is the parser ours
		if v := recover(); v != nil {
			doc = nil
			r.problems = append(r.problems, Problem{File: r.file, Line: 1, Col: 1, Msg: fmt.Sprintf("not readable as YAML: %v", v)})
		}
	}()
	parsed, err := parser.Parse(tokens, 0)
	if err != nil {
		r.problems = append(r.problems, syntaxProblem(r.file, err))
		return nil
	}
	for _, d := range parsed.Docs {
		if d.Body != nil {
			return r.read(d.Body, 0)
		}
	}
	return nil
}

func (r *yamlReader) position(tk *token.Token) position {
	if tk == nil || tk.Position == nil {
		return position{file: r.file, line: 1, col: 1}
	}
	return position{file: r.file, line: max(tk.Position.Line, 1), col: max(tk.Position.Column, 1)}
}

func (r *yamlReader) refuse(n ast.Node, msg string) *node {
	p := r.position(n.GetToken())
	r.problems = append(r.problems, Problem{File: p.file, Line: p.line, Col: p.col, Msg: msg})
	return &node{position: p, kind: nullNode, said: true}
}

func (r *yamlReader) read(n ast.Node, depth int) *node {
	if n == nil {
		return &node{position: position{file: r.file, line: 1, col: 1}, kind: nullNode}
	}
	if depth > maxDepth {
		return r.refuse(n, tooDeep)
	}
	out := &node{position: r.position(n.GetToken())}
	switch n := n.(type) {
	case *ast.MappingNode:
		out.kind = objectNode
		if !n.IsFlowStyle && len(n.Values) > 0 {
			out.position = r.position(n.Values[0].Key.GetToken())
		}
		for _, v := range n.Values {
			r.entry(out, v, depth)
		}
	case *ast.MappingValueNode:
		out.kind = objectNode
		out.position = r.position(n.Key.GetToken())
		r.entry(out, n, depth)
	case *ast.SequenceNode:
		out.kind = listNode
		for _, v := range n.Values {
			out.items = append(out.items, r.read(v, depth+1))
		}
	case *ast.LiteralNode:
		out.kind, out.text = textNode, n.Value.Value
		r.locateBlock(out)
	case *ast.AnchorNode, *ast.AliasNode:
		return r.refuse(n, "anchors and aliases are not part of the language: write it out")
	case *ast.TagNode:
		return r.refuse(n, "YAML tags are not part of the language")
	case ast.ScalarNode:
		r.scalar(out, n)
	default:
		return r.refuse(n, "not part of the language")
	}
	return out
}

func (r *yamlReader) entry(out *node, v *ast.MappingValueNode, depth int) {
	at := r.position(v.Key.GetToken())
	if v.Key.IsMergeKey() {
		r.refuse(v.Key, "merge keys are not part of the language: write it out")
		return
	}
	tk := v.Key.GetToken()
	switch v.Key.(type) {
	case *ast.AnchorNode, *ast.AliasNode, *ast.TagNode, *ast.MappingKeyNode:
		r.refuse(v.Key, "a key must be plain text")
		return
	}
	if out.get(tk.Value) != nil {
		r.refuse(v.Key, fmt.Sprintf("the key %q is here twice", tk.Value))
		return
	}
	value := r.read(v.Value, depth+1)
	if value.kind == nullNode && value.text == "" {
		value.position = at // of nothing there is no place
	}
	out.entries = append(out.entries, &entry{position: at, key: tk.Value, value: value})
}

func (r *yamlReader) scalar(out *node, n ast.Node) {
	tk := n.GetToken()
	out.kind, out.text = textNode, tk.Value
	switch tk.Type {
	case token.DoubleQuoteType, token.SingleQuoteType:
		// exact while the text is on one line and has no escapes
		out.body = out.position
		out.body.col++
		return
	case token.ImplicitNullType:
		out.kind, out.text = nullNode, ""
		return
	default:
		out.plain = true
		out.body = out.position
	}
	switch {
	case tk.Value == "null" || tk.Value == "~" || tk.Value == "":
		out.kind = nullNode
	case tk.Value == "true" || tk.Value == "false":
		out.kind = boolNode
	case compiled(number).MatchString(tk.Value):
		out.kind = numberNode
	}
}

// locateBlock finds where the text of a block scalar begins: on the line after its `|` or `>`.
func (r *yamlReader) locateBlock(out *node) {
	for i := out.line; i < len(r.lines); i++ {
		if line := r.lines[i]; strings.TrimSpace(line) != "" {
			out.indent = len(line) - len(strings.TrimLeft(line, " "))
			out.body = position{file: r.file, line: out.line + 1, col: out.indent + 1}
			return
		}
	}
}
