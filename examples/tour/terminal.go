package main

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/mattn/go-isatty"
)

// terminal prints the tour.
type terminal struct {
	colour bool
	step   int
	began  time.Time
}

func newTerminal() *terminal {
	return &terminal{colour: isatty.IsTerminal(os.Stdout.Fd()) && os.Getenv("NO_COLOR") == "", began: time.Now()}
}

func (t *terminal) paint(code, s string) string {
	if !t.colour {
		return s
	}
	return "\x1b[" + code + "m" + s + "\x1b[0m"
}

// title begins a step, with what is to be seen in it.
func (t *terminal) title(format string, args ...any) {
	t.step++
	fmt.Printf("\n%s %s\n", t.paint("1;36", fmt.Sprintf("%d.", t.step)), t.paint("1", fmt.Sprintf(format, args...)))
}

// say prints what is seen.
func (t *terminal) say(format string, args ...any) { fmt.Printf("   "+format+"\n", args...) }

// onda runs a command of onda, shows it as it could be typed, and its output; it answers the output.
func (t *terminal) onda(args ...string) (string, error) {
	fmt.Println("   " + t.paint("2", "$ bin/onda "+strings.Join(quoted(args), " ")))
	out, err := t.quiet(args...)
	for line := range strings.Lines(out) {
		fmt.Print("   " + line)
	}
	return out, err
}

// quiet runs a command of onda without showing it.
func (t *terminal) quiet(args ...string) (string, error) {
	cmd := exec.Command("bin/onda", args...) //nolint:noctx // it is short, and the terminal interrupts it too
	if t.colour {
		cmd.Stderr = os.Stderr // for its progress bar
	}
	var errs strings.Builder
	if cmd.Stderr == nil {
		cmd.Stderr = &errs
	}
	out, err := cmd.Output()
	if err != nil {
		return string(out), fmt.Errorf("bin/onda %s: %w %s", strings.Join(quoted(args), " "), err, strings.TrimSpace(errs.String()))
	}
	return string(out), nil
}

func quoted(args []string) []string {
	out := make([]string, len(args))
	for i, a := range args {
		out[i] = a
		if strings.ContainsAny(a, " {}\"'") {
			out[i] = "'" + a + "'"
		}
	}
	return out
}

func comma(n int64) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}
