package mail

import (
	_ "embed"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"sync"
)

// Class says whose fault a refusal is, which decides what follows from it.
type Class string

// The classes of refusals. Only Hard says anything against the address.
const (
	Hard   Class = "hard"   // the address does not exist or takes no mail: suppress
	Soft   Class = "soft"   // full, busy, away: may pass another time
	Block  Class = "block"  // our reputation or our content: ours to mend, never suppress
	Policy Class = "policy" // a rule refuses this message or this relay: never suppress
)

//go:embed classes.tsv
var classTable string

// classRule is one line of classes.tsv.
type classRule struct {
	code     string // "-" any, "0" none, else digits and x
	enhanced string
	text     *regexp.Regexp // nil: any
	class    Class
}

var classRules = sync.OnceValue(func() []classRule {
	rules, err := parseClasses(classTable)
	if err != nil {
		panic(err) // the table is part of the program and has a test
	}
	return rules
})

func parseClasses(table string) ([]classRule, error) {
	var rules []classRule
	for i, line := range strings.Split(table, "\n") {
		if line == "" || line[0] == '#' {
			continue
		}
		cols := strings.Split(line, "\t")
		if len(cols) != 4 {
			return nil, fmt.Errorf("classes.tsv:%d: %d columns, want 4", i+1, len(cols))
		}
		r := classRule{code: cols[0], enhanced: cols[1], class: Class(cols[3])}
		switch r.class {
		case Hard, Soft, Block, Policy:
		default:
			return nil, fmt.Errorf("classes.tsv:%d: unknown class %q", i+1, cols[3])
		}
		if cols[2] != "-" {
			var err error
			if r.text, err = regexp.Compile("(?i)" + cols[2]); err != nil {
				return nil, fmt.Errorf("classes.tsv:%d: %w", i+1, err)
			}
		}
		rules = append(rules, r)
	}
	return rules, nil
}

// Classify gives the class of a refusal from its SMTP reply code (0 if none), its RFC 3463 status ("" if none) and its text. The
// table in classes.tsv decides: telling texts first, then the status, then the code.
func Classify(code int, enhanced, text string) Class {
	number := strconv.Itoa(code)
	for _, r := range classRules() {
		if matchesCode(r.code, number) && matchesStatus(r.enhanced, enhanced) && (r.text == nil || r.text.MatchString(text)) {
			return r.class
		}
	}
	return Soft // unreachable: the last line of the table matches all
}

func matchesCode(pattern, code string) bool {
	if pattern == "-" || pattern == code {
		return true
	}
	if len(pattern) != len(code) {
		return false
	}
	for i := range len(pattern) {
		if pattern[i] != 'x' && pattern[i] != code[i] {
			return false
		}
	}
	return true
}

func matchesStatus(pattern, status string) bool {
	if pattern == "-" {
		return true
	}
	want, got := strings.Split(pattern, "."), strings.Split(status, ".")
	if len(got) != 3 {
		return false
	}
	for i := range want {
		if want[i] != "x" && want[i] != got[i] {
			return false
		}
	}
	return true
}

var (
	enhancedAtStart = pattern(`^([245]\.\d{1,3}\.\d{1,3})(?:[\s:;,-]|$)`)
	addressInText   = pattern(`(?i)[^\s<>"'(),;:=]+(?:@|%40)[^\s<>"'(),;]+`)
)

// splitEnhanced takes the RFC 3463 status off the beginning of a reply's text, if it goes with the code.
func splitEnhanced(code int, text string) (status, rest string) {
	m := enhancedAtStart().FindStringSubmatch(text)
	if m == nil || code > 0 && int(m[1][0]-'0') != code/100 {
		return "", text
	}
	return m[1], strings.TrimSpace(text[len(m[1]):])
}

// redact makes a server's text fit to be kept: one line without control characters, addresses blanked out, at most 200 characters.
func redact(text string) string {
	return clip(addressInText().ReplaceAllString(clean(text), "(address)"), 200)
}
