package send

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/onda-run/onda/internal/smtptest"
)

// faultMails is how many mails a run of TestRelaysWithFaults has; ONDA_TEST_MAILS asks for more.
const faultMails = 600

// fate is what a recipient's mail meets, and what must become of it.
type fate struct {
	scripts []smtptest.Script
	state   string
	taken   int // by the relay
}

func answers(s ...smtptest.Script) []smtptest.Script { return s }

// once are faults that say nothing about the mail: it is certain not to have been taken, so it is tried again.
func once(s smtptest.Script) *fate {
	return &fate{answers(s, smtptest.Accept()), "sent", 1}
}

// unknown are faults after which nobody can tell: the mail is not tried again.
func unknown(s smtptest.Script, taken int) *fate { return &fate{answers(s), "unknown", taken} }

// cutBefore, cutIn, cutAfter and refusals are the fates of one recipient in so many; nil is for the others.
func cutBefore(n int) *fate {
	switch n % 20 {
	case 3:
		return once(smtptest.DropAtRcpt())
	case 13:
		return once(smtptest.DropBeforeContent())
	}
	return nil
}

func cutIn(n int) *fate {
	if n%20 == 5 { // all of it was written, and how much was read the relay alone knows
		return unknown(smtptest.DropInContent(200), 0)
	}
	return nil
}

func cutAfter(n int) *fate {
	switch n % 20 {
	case 7:
		return unknown(smtptest.DropAfterContent(true), 1)
	case 17:
		return unknown(smtptest.DropAfterContent(false), 0)
	}
	return nil
}

// refusals are 2 % of 4xx and 1 % of 5xx, at each point of a transaction.
func refusals(n int) *fate {
	switch n % 300 {
	case 1, 2:
		return once(smtptest.Reject("451 4.3.0 busy"))
	case 101, 102:
		return once(smtptest.RejectData("452 4.3.1 no room"))
	case 201, 202:
		return once(smtptest.RejectContent("450 4.7.1 greylisted"))
	case 9:
		return &fate{answers(smtptest.Reject("550 5.1.1 no such user")), "failed", 0}
	case 109:
		return &fate{answers(smtptest.RejectData("554 5.3.4 no")), "failed", 0}
	case 209:
		return &fate{answers(smtptest.RejectContent("554 5.7.1 looks like spam")), "failed", 0}
	}
	return nil
}

func nonsense(n int) *fate {
	switch n % 100 {
	case 11:
		return once(smtptest.Reject("hello there"))
	case 31:
		return once(smtptest.RejectData("250 2.0.0 as you like"))
	case 51:
		return unknown(smtptest.RejectContent("hello there"), 0)
	case 71:
		return unknown(smtptest.RejectContent("354 more"), 0)
	}
	return nil
}

func halves(n int) *fate {
	half := smtptest.Step{Half: true}
	switch n % 100 {
	case 11:
		return once(smtptest.Script{Rcpt: half})
	case 31:
		return once(smtptest.Script{Data: half})
	case 51:
		return unknown(smtptest.Script{End: half}, 0)
	case 71:
		return unknown(smtptest.Script{End: half, Keep: true}, 1)
	}
	return nil
}

// A campaign goes out through a relay that has a fault. Whatever that is, each recipient has the outcome that the relay's doing leaves, no mail comes twice, and unknown
// are those alone whose content went out and whose answer never came.
func TestRelaysWithFaults(t *testing.T) {
	t.Parallel()
	mails := faultMails
	if text := os.Getenv("ONDA_TEST_MAILS"); text != "" {
		var err error
		if mails, err = strconv.Atoi(text); err != nil {
			t.Fatalf("ONDA_TEST_MAILS: %v", err)
		}
	}
	some := func(conn int) bool { return conn <= 4 || conn%3 == 0 } // at first none is any good
	opening := func(c smtptest.Config) smtptest.Config {
		c.Only, c.MaxMails = some, max(20, mails/40)
		return c
	}
	never := make(chan struct{}) // closed when all is over: longer than any limit
	t.Cleanup(func() { close(never) })
	for name, f := range map[string]struct {
		relay    smtptest.Config
		fate     func(n int) *fate
		settings []string
	}{
		"cut before DATA":              {fate: cutBefore},
		"cut inside DATA":              {fate: cutIn},
		"cut after DATA":               {fate: cutAfter},
		"2 % of 4xx and 1 % of 5xx":    {fate: refusals},
		"nonsense for answers":         {fate: nonsense},
		"half a line for answers":      {fate: halves},
		"421 after some mails":         {relay: smtptest.Config{MaxMails: 7}},
		"no PIPELINING":                {relay: smtptest.Config{Extensions: []string{"8BITMIME"}}, fate: first(cutBefore, cutIn, cutAfter, refusals)},
		"no extension, all faults":     {relay: smtptest.Config{Extensions: []string{}}, fate: first(cutBefore, cutIn, cutAfter, refusals, nonsense, halves)},
		"all faults":                   {relay: smtptest.Config{MaxMails: 50}, fate: first(cutBefore, cutIn, cutAfter, refusals, nonsense, halves)},
		"all faults, with TLS":         {relay: smtptest.Config{TLS: smtptest.StartTLS}, fate: first(cutBefore, cutAfter, refusals, nonsense, halves)},
		"accepts and closes":           {relay: opening(smtptest.Config{Greeting: smtptest.Step{Drop: true}})},
		"greets with nonsense":         {relay: opening(smtptest.Config{Greeting: smtptest.Step{Reply: "hello there"}})},
		"greets with half a line":      {relay: opening(smtptest.Config{Greeting: smtptest.Step{Half: true}})},
		"greets with 421":              {relay: opening(smtptest.Config{Greeting: smtptest.Step{Reply: "421 4.3.2 not now"}})},
		"5xx to EHLO":                  {relay: opening(smtptest.Config{Hello: smtptest.Step{Reply: "550 5.7.1 not you"}})},
		"half a line to EHLO":          {relay: opening(smtptest.Config{Hello: smtptest.Step{Half: true}})},
		"drops TLS after STARTTLS":     {relay: opening(smtptest.Config{TLS: smtptest.StartTLS, Handshake: smtptest.Step{Drop: true}})},
		"speaks no TLS after STARTTLS": {relay: opening(smtptest.Config{TLS: smtptest.StartTLS, Handshake: smtptest.Step{Reply: "454 4.7.0 not now"}})},
		"drops TLS from the beginning": {relay: opening(smtptest.Config{TLS: smtptest.ImplicitTLS, Handshake: smtptest.Step{Drop: true}})},
		"answers after the limit": {fate: func(n int) *fate {
			if n <= 8 { // one for each connection
				return unknown(smtptest.Script{End: smtptest.Step{Wait: never}}, 1)
			}
			return nil
		}, settings: []string{"ONDA_MESSAGE_LIMIT=2s"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.smtp = smtptest.Start(t, f.relay)
			w.env["ONDA_SMTP_URL"] = w.smtp.URL()
			settings := append([]string{"ONDA_LEASE=60s", "ONDA_MESSAGE_LIMIT=30s"}, f.settings...)
			if f.relay.TLS != smtptest.NoTLS {
				roots := filepath.Join(t.TempDir(), "roots.pem")
				if err := os.WriteFile(roots, w.smtp.Certificate(), 0o600); err != nil {
					t.Fatal(err)
				}
				settings = append(settings, "SSL_CERT_FILE="+roots)
			}
			want := map[string]*fate{}
			unknowns, failed := 0, 0
			for n := 1; n <= mails; n++ {
				var met *fate
				if f.fate != nil {
					met = f.fate(n)
				}
				if met == nil {
					met = &fate{nil, "sent", 1}
				}
				to := fmt.Sprintf("u%d@x.example", n)
				want[to] = met
				w.smtp.Script(to, met.scripts...)
				switch met.state {
				case "unknown":
					unknowns++
				case "failed":
					failed++
				}
			}
			w.plan(w.people(mails), 100)
			p := w.spawn(settings...)
			wait(t, 3*time.Minute, "every mail to have its outcome", func() bool {
				if w.count("SELECT (SELECT count(*) FROM batch WHERE state = 'open') + (SELECT count(*) FROM delivery WHERE state = 'deferred')") == 0 {
					return true
				}
				if w.count("SELECT count(*) FROM batch WHERE state = 'open'") == 0 { // only those are left that are to be tried later
					w.moveClock(time.Minute)
				}
				return false
			})
			p.kill()
			w.audit(mails, unknowns, failed)
			taken := map[string]int{}
			for _, m := range w.smtp.Mails() {
				taken[m.To]++
			}
			for to, what := range w.outcomes() {
				state, _, _ := strings.Cut(what, " ")
				if state != want[to].state || taken[to] != want[to].taken {
					t.Errorf("%s is %s, and %d mails came; want %s and %d", to, what, taken[to], want[to].state, want[to].taken)
				}
			}
		})
	}
}

// first is the fate that the first of several has for a recipient.
func first(fates ...func(n int) *fate) func(n int) *fate {
	return func(n int) *fate {
		for _, f := range fates {
			if got := f(n); got != nil {
				return got
			}
		}
		return nil
	}
}
