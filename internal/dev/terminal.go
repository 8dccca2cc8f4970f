package dev

import (
	"bytes"
	"fmt"
	"hash/fnv"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/term"
)

// terminal is where people read what goes on: lines of dev itself and of the functions, never mixed within a line.
type terminal struct {
	mu     sync.Mutex
	out    io.Writer
	colour bool
	logs   string // a directory for the functions' lines; empty for out
}

func newTerminal(out io.Writer, logs string) *terminal {
	f, ok := out.(*os.File)
	return &terminal{out: out, logs: logs, colour: ok && os.Getenv("NO_COLOR") == "" && term.IsTerminal(int(f.Fd()))}
}

// say prints a line of dev itself.
func (t *terminal) say(format string, args ...any) {
	for line := range bytes.Lines(fmt.Appendf(nil, format, args...)) {
		t.line("dev", bytes.TrimRight(line, "\n"))
	}
}

// line prints one line with its origin before it. A terminal that went away is no reason to stop.
func (t *terminal) line(origin string, text []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.colour {
		_, _ = fmt.Fprintf(t.out, "%-12s | %s\n", origin, text)
		return
	}
	_, _ = fmt.Fprintf(t.out, "\x1b[%dm%-12s\x1b[0m | %s\n", colourOf(origin), origin, text)
}

// colourOf gives each origin one of the eleven colours that are readable on black and on white.
func colourOf(origin string) int {
	if origin == "dev" {
		return 1 // bold
	}
	colours := []int{31, 32, 33, 34, 35, 36, 91, 92, 94, 95, 96}
	h := fnv.New32a()
	_, _ = h.Write([]byte(origin)) // never fails
	return colours[h.Sum32()%uint32(len(colours))]
}

// output takes what a process writes. It keeps the last lines, to show when the process does not start.
type output struct {
	mu      sync.Mutex
	service string
	term    *terminal
	file    *os.File // nil for the terminal
	partial []byte
	last    [][]byte
}

const (
	keptLines = 20
	longLine  = 64 << 10
)

// output opens the log of a service for one of its processes.
func (t *terminal) output(service string) (*output, error) {
	o := &output{service: service, term: t}
	if t.logs == "" {
		return o, nil
	}
	if err := os.MkdirAll(t.logs, 0o755); err != nil {
		return nil, fmt.Errorf("make the directory for logs: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(t.logs, service+".log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open the log: %w", err)
	}
	o.file = f
	return o, nil
}

// Write implements io.Writer.
func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.partial = append(o.partial, p...)
	for {
		i := bytes.IndexByte(o.partial, '\n')
		if i < 0 && len(o.partial) < longLine {
			return len(p), nil
		}
		if i < 0 {
			i = len(o.partial)
		}
		o.put(o.partial[:i])
		o.partial = o.partial[min(i+1, len(o.partial)):]
	}
}

func (o *output) put(line []byte) {
	o.last = append(o.last, bytes.Clone(line))
	if len(o.last) > keptLines {
		o.last = o.last[1:]
	}
	if o.file == nil {
		o.term.line(o.service, line)
		return
	}
	_, _ = o.file.Write(append(bytes.Clone(line), '\n')) // a full disk must not end the process that logs
}

// close writes what came without a newline at the end.
func (o *output) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.partial) > 0 {
		o.put(o.partial)
		o.partial = nil
	}
	if o.file != nil {
		_ = o.file.Close()
		o.file = nil
	}
}

func (o *output) tail() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return string(bytes.Join(o.last, []byte("\n")))
}

// short is a duration for people.
func short(d time.Duration) string {
	if d < time.Second {
		return d.Round(100 * time.Microsecond).String()
	}
	return d.Round(10 * time.Millisecond).String()
}
