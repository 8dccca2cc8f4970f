package predicate

import (
	"fmt"
	"regexp/syntax"
	"strings"
	"unicode"
)

// maxStates bounds an expression of matches: how many characters and classes it has once its repetitions are written out. Postgres builds an automaton of about
// that size.
const maxStates = 1000

// postgresPattern writes an RE2 expression (RE2's language as Go has it, ignoring case) in that of Postgres, so that both mean the same: the two read
// classes, case, anchors and word boundaries differently, so that nothing is handed over as it was written. Of both only whether they match is asked, so greed does not matter.
func postgresPattern(re2 string) (string, error) {
	re, err := syntax.Parse("(?i:"+re2+")", syntax.Perl)
	if err != nil {
		return "", fmt.Errorf("matches: %w", err)
	}
	if n := states(re); n > maxStates {
		return "", fmt.Errorf("matches: the expression is too large: its repetitions make %d places of it, %d are allowed: repeat less", n, maxStates)
	}
	var b strings.Builder
	if err := writePattern(&b, re); err != nil {
		return "", fmt.Errorf("matches: %w", err)
	}
	return "***:" + b.String(), nil // an advanced expression, whatever the server's setting
}

func states(re *syntax.Regexp) int {
	n := 1
	for _, s := range re.Sub {
		n += states(s)
	}
	switch re.Op {
	case syntax.OpLiteral:
		n = len(re.Rune)
	case syntax.OpRepeat:
		n *= max(re.Max, re.Min, 1)
	default: // a place of its own beside those within it
	}
	return min(n, 1<<20)
}

const (
	wordRunes = "[0-9A-Za-z_]"
	lineStart = `(?:\A|(?<=\n))`
	lineEnd   = `(?:\Z|(?=\n))`
	boundary  = "(?:(?<=" + wordRunes + ")(?!" + wordRunes + ")|(?<!" + wordRunes + ")(?=" + wordRunes + "))"
	inside    = "(?:(?<=" + wordRunes + ")(?=" + wordRunes + ")|(?<!" + wordRunes + ")(?!" + wordRunes + "))"
)

func writePattern(b *strings.Builder, re *syntax.Regexp) error {
	quantified := func(q string) error {
		b.WriteString("(?:")
		if err := writePattern(b, re.Sub[0]); err != nil {
			return err
		}
		b.WriteString(")" + q)
		return nil
	}
	switch re.Op {
	case syntax.OpEmptyMatch:
		b.WriteString("(?:)")
	case syntax.OpLiteral:
		for _, r := range re.Rune {
			writeRune(b, r, re.Flags&syntax.FoldCase != 0)
		}
	case syntax.OpCharClass:
		return writeClass(b, re.Rune)
	case syntax.OpAnyCharNotNL:
		b.WriteString(`[^\n]`)
	case syntax.OpAnyChar:
		b.WriteString(`(?:\n|[^\n])`)
	case syntax.OpBeginLine:
		b.WriteString(lineStart)
	case syntax.OpEndLine:
		b.WriteString(lineEnd)
	case syntax.OpBeginText:
		b.WriteString(`\A`)
	case syntax.OpEndText:
		b.WriteString(`\Z`)
	case syntax.OpWordBoundary:
		b.WriteString(boundary)
	case syntax.OpNoWordBoundary:
		b.WriteString(inside)
	case syntax.OpStar:
		return quantified("*")
	case syntax.OpPlus:
		return quantified("+")
	case syntax.OpQuest:
		return quantified("?")
	case syntax.OpRepeat:
		if max(re.Min, re.Max) > 255 {
			return fmt.Errorf("a repetition may be of at most 255")
		}
		switch {
		case re.Max < 0:
			return quantified(fmt.Sprintf("{%d,}", re.Min))
		default:
			return quantified(fmt.Sprintf("{%d,%d}", re.Min, re.Max))
		}
	case syntax.OpCapture:
		b.WriteString("(?:")
		if err := writePattern(b, re.Sub[0]); err != nil {
			return err
		}
		b.WriteString(")")
	case syntax.OpConcat:
		for _, s := range re.Sub {
			if err := writePattern(b, s); err != nil {
				return err
			}
		}
	case syntax.OpAlternate:
		b.WriteString("(?:")
		for i, s := range re.Sub {
			if i > 0 {
				b.WriteString("|")
			}
			if err := writePattern(b, s); err != nil {
				return err
			}
		}
		b.WriteString(")")
	default:
		return fmt.Errorf("the expression can match nothing")
	}
	return nil
}

func writeRune(b *strings.Builder, r rune, fold bool) {
	var all []rune
	if fold {
		for f := unicode.SimpleFold(r); f != r; f = unicode.SimpleFold(f) {
			all = append(all, f)
		}
	}
	if len(all) == 0 {
		escape(b, r)
		return
	}
	b.WriteByte('[')
	escape(b, r)
	for _, f := range all {
		escape(b, f)
	}
	b.WriteByte(']')
}

// escape writes a character by its number: so that it means itself, everywhere.
func escape(b *strings.Builder, r rune) {
	if r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' {
		b.WriteRune(r)
		return
	}
	fmt.Fprintf(b, `\U%08X`, r)
}

func writeClass(b *strings.Builder, pairs []rune) error {
	var in strings.Builder
	for i := 0; i < len(pairs); i += 2 {
		lo, hi := max(pairs[i], 1), pairs[i+1] // there is no character 0 in Postgres
		if lo > hi {
			continue
		}
		escape(&in, lo)
		if hi > lo {
			in.WriteByte('-')
			escape(&in, hi)
		}
	}
	if in.Len() == 0 {
		return fmt.Errorf("the expression has a class without a character")
	}
	b.WriteString("[" + in.String() + "]")
	return nil
}
