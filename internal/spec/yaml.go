package spec

import (
	"bytes"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"unicode/utf8"

	yaml "github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// maxFile bounds a file of documents, a template and a file of texts, in bytes.
const maxFile = 1 << 20

// number is what a plain scalar must look like to be a number: JSON's grammar,
// and so neither 0612345678 nor +33 nor 1_000 nor 0x1F.
var number = regexp.MustCompile(`^-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?$`)

// parseYAML reads the documents of one file as trees. Of YAML it takes the
// part that JSON has too: no anchors, aliases, tags and merge keys. A plain
// scalar is true, false, null or ~, a number of JSON, or text.
func parseYAML(file string, src []byte) (docs []*node, problems Problems) {
	if len(src) > maxFile {
		return nil, Problems{{File: file, Line: 1, Col: 1, Msg: fmt.Sprintf("the file is larger than %d KiB", maxFile>>10)}}
	}
	if !utf8.Valid(src) {
		return nil, Problems{{File: file, Line: 1 + bytes.Count(validPrefix(src), []byte("\n")), Col: 1, Msg: "the file is not UTF-8"}}
	}
	defer func() {
		// the parser is not ours: what it cannot read must not end the program
		if r := recover(); r != nil {
			docs, problems = nil, append(problems, Problem{File: file, Line: 1, Col: 1, Msg: fmt.Sprintf("not readable as YAML: %v", r)})
		}
	}()
	parsed, err := parser.ParseBytes(src, 0)
	if err != nil {
		return nil, Problems{syntaxProblem(file, err)}
	}
	r := yamlReader{file: file, lines: strings.Split(strings.ReplaceAll(string(src), "\r\n", "\n"), "\n")}
	for _, d := range parsed.Docs {
		if d.Body == nil {
			continue
		}
		docs = append(docs, r.read(d.Body, 0))
	}
	return docs, r.problems
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
	p := Problem{File: file, Line: 1, Col: 1, Msg: "not readable as YAML: " + err.Error()}
	var at yaml.Error
	if errors.As(err, &at) {
		p.Msg = "not readable as YAML: " + at.GetMessage()
		if tk := at.GetToken(); tk != nil {
			p.Line, p.Col = max(tk.Position.Line, 1), max(tk.Position.Column, 1)
		}
	}
	return p
}

type yamlReader struct {
	file     string
	lines    []string
	problems Problems
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
		return r.refuse(n, fmt.Sprintf("nested deeper than %d", maxDepth))
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
	}
	out.plain = true
	out.body = out.position
	switch {
	case tk.Value == "null" || tk.Value == "~" || tk.Value == "":
		out.kind = nullNode
	case tk.Value == "true" || tk.Value == "false":
		out.kind = boolNode
	case number.MatchString(tk.Value):
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
