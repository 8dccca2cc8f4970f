package mailbox

import (
	"fmt"
	"strings"
	"sync"
)

// Rule makes recipients behave: those whose local part begins with Prefix are refused at RCPT with an answer.
type Rule struct {
	Prefix   string // of the local part, case ignored: "nobody."
	Code     int    // 4xx or 5xx
	Enhanced string // RFC 3463: "5.1.1"; its first digit is the code's
	Text     string
	Times    int // only so many times for each recipient, then the mail is taken; 0: always
}

// DefaultRules are the behaviours that come along. Everyone else takes their mail.
func DefaultRules() []Rule {
	return []Rule{
		{Prefix: "nobody.", Code: 550, Enhanced: "5.1.1", Text: "No such user here"},
		{Prefix: "full.", Code: 452, Enhanced: "4.2.2", Text: "Mailbox full, try again later", Times: 1},
		{Prefix: "busy.", Code: 451, Enhanced: "4.7.1", Text: "Greylisted, please come back later", Times: 1},
		{Prefix: "blocked.", Code: 554, Enhanced: "5.7.1", Text: "Message rejected: poor reputation of the sending network"},
	}
}

// Refusal is an answer to RCPT other than yes.
type Refusal struct {
	Code     int
	Enhanced string
	Text     string
}

func (r Rule) check() error {
	var class, subject, detail int
	n, err := fmt.Sscanf(r.Enhanced+" ", "%d.%d.%d ", &class, &subject, &detail)
	switch {
	case r.Prefix == "":
		return fmt.Errorf("rule with answer %d has no prefix: it would refuse everyone", r.Code)
	case r.Code < 400 || r.Code > 599:
		return fmt.Errorf("rule %q answers %d: want 4xx or 5xx", r.Prefix, r.Code)
	case n != 3 || err != nil || class != r.Code/100:
		return fmt.Errorf("rule %q answers %d with status %q: want %d.x.x", r.Prefix, r.Code, r.Enhanced, r.Code/100)
	case strings.ContainsAny(r.Text, "\r\n"):
		return fmt.Errorf("rule %q has a text of more than one line", r.Prefix)
	}
	return nil
}

// judge applies rules, and counts for those that stop after so many times.
type judge struct {
	rules []Rule

	mu      sync.Mutex
	times   map[string]int // by recipient
	refused int
}

func (j *judge) refuse(rcpt string) *Refusal {
	local, _, _ := strings.Cut(strings.ToLower(rcpt), "@")
	for _, r := range j.rules {
		if !strings.HasPrefix(local, strings.ToLower(r.Prefix)) {
			continue
		}
		j.mu.Lock()
		defer j.mu.Unlock()
		if r.Times > 0 {
			key := strings.ToLower(rcpt)
			if j.times[key] >= r.Times {
				return nil
			}
			j.times[key]++
		}
		j.refused++
		return &Refusal{r.Code, r.Enhanced, r.Text}
	}
	return nil
}
