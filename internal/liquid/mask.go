package liquid

import (
	"crypto/sha256"
	"fmt"
	"strconv"
	"strings"
)

// Masked is a template whose Liquid was taken out and marked by words of
// letters and digits, so that tools for Markdown and HTML leave it alone.
type Masked struct {
	Text   string
	prefix string
	marks  []string // the word in the text
	pieces []string // what it stands for
	tags   []bool   // it stands for a tag, and not for an output

	src  scanner
	ends []ends // of the marks in the text
}

// ends are where a piece ends: its mark in the text, itself in the template.
type ends struct{ text, src int }

// Mask takes the Liquid out of a template.
func Mask(src string) *Masked {
	prefix := "ondaliquid"
	if strings.Contains(src, prefix) { // by chance or on purpose: no text has its own hash in it
		prefix += fmt.Sprintf("%xx", sha256.Sum256([]byte(src)))
	}
	m := &Masked{prefix: prefix, src: scanner{src: src}}
	var b strings.Builder
	at := 0
	for _, t := range m.src.tokens() {
		if t.kind != textToken {
			b.WriteString(src[at:t.start])
			b.WriteString(m.Put(src[t.start:t.end]))
			at = t.end
			m.ends = append(m.ends, ends{b.Len(), at})
		}
	}
	b.WriteString(src[at:])
	m.Text = b.String()
	return m
}

// Put gives the mark of a piece of Liquid that is not in the template, for Restore to put in.
func (m *Masked) Put(piece string) (mark string) {
	mark = fmt.Sprintf("%s%dq", m.prefix, len(m.marks))
	m.marks = append(m.marks, mark)
	m.pieces = append(m.pieces, piece)
	m.tags = append(m.tags, strings.HasPrefix(piece, "{%"))
	return mark
}

// Restore puts the Liquid back into a text that has the marks.
func (m *Masked) Restore(text string) string {
	pairs := make([]string, 0, 2*len(m.marks))
	for i, mark := range m.marks {
		pairs = append(pairs, mark, m.pieces[i])
	}
	return strings.NewReplacer(pairs...).Replace(text)
}

// Position gives the line and column in the template of a place in the text.
func (m *Masked) Position(at int) (line, col int) {
	last := ends{}
	for _, e := range m.ends {
		if e.text > at {
			break
		}
		last = e
	}
	return m.src.position(min(last.src+at-last.text, len(m.src.src)))
}

// Has says whether a text has Liquid in it.
func (m *Masked) Has(text string) bool { return strings.Contains(text, m.prefix) }

// Pattern is a regular expression of the marks.
func (m *Masked) Pattern() string { return m.prefix + `[0-9]+q` }

// IsTag says whether a mark stands for a tag, such as {% if %}, and not for an output.
func (m *Masked) IsTag(mark string) bool {
	digits, ok := strings.CutSuffix(strings.TrimPrefix(mark, m.prefix), "q")
	n, err := strconv.Atoi(digits)
	return ok && err == nil && n < len(m.tags) && m.tags[n]
}
