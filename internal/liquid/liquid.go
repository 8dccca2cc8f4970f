// Package liquid parses and renders templates that people other than us write.
// It is Shopify's Liquid on the engine of osteele/liquid, made safe: HTML is
// escaped unless a template says raw, names can be checked before anything is
// sent, and no template can run or grow for long. A template sees its
// variables and nothing else: no files, no clock, no environment.
//
// A value that is not there is empty and never an error. A Template may be
// rendered by many goroutines at once.
package liquid

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/osteele/liquid/parser"
	"github.com/osteele/liquid/render"
	"github.com/osteele/liquid/tags"
)

// Mode says what a template makes.
type Mode int

const (
	// HTML escapes every output, unless it ends in | raw.
	HTML Mode = iota
	// Text puts outputs in as they are.
	Text
	// Header makes one line: control characters, CR and LF among them, become spaces.
	Header
)

// The limits of a template and of one rendering. They are far above what mails need.
const (
	maxSource     = 512 << 10       // bytes of a template
	maxMarks      = 10_000          // {{ }} and {% %} of a template
	maxExpression = 4 << 10         // bytes between the marks
	maxValues     = 100             // of one when
	maxProblems   = 100             // that are told at once
	maxOutput     = 4 << 20         // bytes that are written
	maxIterations = 20_000          // of all loops together
	maxTime       = 2 * time.Second // from begin to end
)

// Template is a template that was parsed.
type Template struct {
	mode  Mode
	names []Name
	// literals are the texts that are the same whatever the variables are; between each and the next is a hole.
	literals []string
	// root renders the holes alone, with a cut after each.
	root render.Node
	// direct are the holes that are a look at a variable, by number; rest renders the others, and is nil when there are none.
	direct map[int]direct
	rest   func() render.Node
	cfg    render.Config
	size   int // of the literals
}

// Parse reads a template. When there are problems, it gives them all and no template.
func Parse(src string, mode Mode) (*Template, []Problem) {
	c := &compiler{scanner: scanner{src: src}, mode: mode, filters: filterTable()}
	if len(src) > maxSource {
		return nil, []Problem{{Line: 1, Col: 1, Msg: fmt.Sprintf("the template is larger than %d KiB", maxSource>>10)}}
	}
	if !utf8.ValidString(src) {
		return nil, []Problem{{Line: 1, Col: 1, Msg: "the template is not UTF-8"}}
	}
	toks := c.tokens()
	marks := 0
	for _, t := range toks {
		if t.kind == textToken {
			continue
		}
		if marks++; marks > maxMarks {
			c.fail(t.start, "the template has more than %d tags and outputs: divide it", maxMarks)
			return nil, c.problems
		}
	}
	safe := c.compile(toks)
	if len(c.problems) > 0 {
		return nil, c.sorted()
	}
	t := &Template{mode: mode, names: c.names, cfg: c.config(), literals: c.literals}
	for _, l := range t.literals {
		t.size += len(l)
	}
	if t.Static() {
		return t, nil
	}
	root, err := compileSafely(t.cfg, safe)
	if err != nil {
		// the compiler has checked all that the engine is known to refuse
		return nil, []Problem{{Line: 1, Col: 1, Msg: "the template does not parse: " + err.Error()}}
	}
	t.root, t.direct = root, c.direct
	if rest := c.rest.String(); rest != "" {
		t.rest = sync.OnceValue(func() render.Node { // most templates of a process are never rendered
			n, err := compileSafely(t.cfg, rest)
			if err != nil {
				return nil // pieces of what compiles, in their order: then all of it does the same
			}
			return n
		})
	}
	return t, nil
}

// compileSafely turns the panics of the engine's parser into errors.
func compileSafely(cfg render.Config, src string) (root render.Node, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%v", r)
		}
	}()
	n, parseErr := cfg.Compile(src, parser.SourceLoc{LineNo: 1})
	if parseErr != nil {
		return nil, parseErr
	}
	return n, nil
}

// Names gives the variables that the template takes from outside, in the order
// of the text; those that it makes itself are not among them.
func (t *Template) Names() []Name { return t.names }

// Uses says whether the template takes from outside a variable of this name, or one below it.
func (t *Template) Uses(name ...string) bool {
	return slices.ContainsFunc(t.names, func(n Name) bool { return len(n.Path) >= len(name) && slices.Equal(n.Path[:len(name)], name) })
}

// Static says whether the template gives the same whatever the variables are.
func (t *Template) Static() bool { return len(t.literals) == 1 }

// Literals gives what the template puts out whatever the variables are, in order: one more than there are holes, which are between them. For who makes much out
// of one template, so that what is done to them is done once. Not for a Header, which is made one line as a whole.
func (t *Template) Literals() []string { return t.literals }

// budgetKey is where a rendering's budget is among its variables; no template can spell it.
const budgetKey = "\x00budget"

// cutTag ends a hole.
const cutTag = "_cut"

// budget is what one rendering may use.
type budget struct {
	w          strings.Builder
	cuts       []int // where holes end
	literals   int   // bytes of what is between them
	iterations int
	writes     int
	began      time.Time
}

var (
	errOutput     = fmt.Errorf("the output is larger than %d MiB", maxOutput>>20)
	errIterations = fmt.Errorf("the loops go round more than %d times", maxIterations)
	errTime       = fmt.Errorf("rendering takes longer than %v", maxTime)
)

func (b *budget) Write(p []byte) (int, error) {
	if b.literals+b.w.Len()+len(p) > maxOutput {
		return 0, errOutput
	}
	if b.writes++; b.writes%64 == 0 && time.Since(b.began) > maxTime {
		return 0, errTime
	}
	return b.w.Write(p)
}

func (b *budget) tick() error {
	if b.iterations++; b.iterations > maxIterations {
		return errIterations
	}
	if b.iterations%64 == 0 && time.Since(b.began) > maxTime {
		return errTime
	}
	return nil
}

// Render gives the template's text for these variables, which it does not
// change. Values are strings, bools, ints, float64s, times, []any and
// map[string]any. An error is a limit that was passed, or a mistake that
// depends on values, such as comparing a map.
func (t *Template) Render(vars map[string]any) (string, error) {
	if t.Static() {
		return t.finish(t.literals[0]), nil
	}
	holes, err := t.Holes(vars)
	if err != nil {
		return "", err
	}
	var b strings.Builder
	n := t.size
	for _, h := range holes {
		n += len(h)
	}
	b.Grow(n)
	for i, h := range holes {
		b.WriteString(t.literals[i])
		b.WriteString(h)
	}
	b.WriteString(t.literals[len(holes)])
	return t.finish(b.String()), nil
}

// Holes gives what is between the literals for these variables: see Render.
func (t *Template) Holes(vars map[string]any) ([]string, error) {
	n := len(t.literals) - 1
	if n == 0 {
		return nil, nil
	}
	holes := make([]string, n)
	size := t.size
	for i := range holes {
		d, direct := t.direct[i]
		if !direct {
			continue
		}
		text, ok, err := d.text(vars)
		if err != nil {
			return nil, fmt.Errorf("rendering: %w", err)
		}
		if !ok {
			return t.run(t.root, vars, n, t.size)
		}
		if size += len(text); size > maxOutput {
			return nil, fmt.Errorf("rendering: %w", errOutput)
		}
		holes[i] = text
	}
	if len(t.direct) == n {
		return holes, nil
	}
	root := t.rest()
	if root == nil {
		return t.run(t.root, vars, n, t.size)
	}
	others, err := t.run(root, vars, n-len(t.direct), size)
	if err != nil {
		return nil, err
	}
	for i := range holes {
		if _, ok := t.direct[i]; !ok {
			holes[i], others = others[0], others[1:]
		}
	}
	return holes, nil
}

// run has the engine render n holes; size is what the output has already.
func (t *Template) run(root render.Node, vars map[string]any, n, size int) (holes []string, err error) {
	b := &budget{began: time.Now(), literals: size, cuts: make([]int, 0, n)}
	scope := make(map[string]any, len(vars)+1)
	for k, v := range vars {
		scope[k] = v
	}
	scope[budgetKey] = b
	defer func() {
		// the engine panics when a write fails, and when it compares what cannot be
		if r := recover(); r != nil {
			holes, err = nil, fmt.Errorf("rendering: %w", asError(r))
		}
	}()
	if e := render.Render(root, b, scope, t.cfg); e != nil {
		return nil, fmt.Errorf("rendering: %w", rootCause(e))
	}
	if len(b.cuts) != n {
		return nil, fmt.Errorf("rendering: %d of %d places were filled", len(b.cuts), n)
	}
	out, from := b.w.String(), 0
	holes = make([]string, n)
	for i, to := range b.cuts {
		holes[i], from = out[from:to], to
	}
	return holes, nil
}

func asError(r any) error {
	if err, ok := r.(error); ok {
		return rootCause(err)
	}
	return fmt.Errorf("%v", r)
}

// rootCause finds our own errors in those of the engine, which does not wrap.
func rootCause(err error) error {
	for e := err; e != nil; {
		for _, ours := range []error{errOutput, errIterations, errTime, errTextTooLong, errListTooLong} {
			if errors.Is(e, ours) || strings.Contains(e.Error(), ours.Error()) {
				return ours
			}
		}
		c, ok := e.(interface{ Cause() error })
		if !ok || c.Cause() == e { //nolint:errorlint // only to stop at an error that is its own cause
			break
		}
		e = c.Cause()
	}
	first, _, _ := strings.Cut(err.Error(), "\n")
	return errors.New(first)
}

// finish is what is done to the whole output.
func (t *Template) finish(s string) string {
	if t.mode != Header {
		return s
	}
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == '\u2028' || r == '\u2029' || r == utf8.RuneError {
			return ' '
		}
		return r
	}, s)
	return strings.TrimSpace(s)
}

// config is the engine with our filters and the tags that are safe.
func (c *compiler) config() render.Config {
	cfg := render.NewConfig()
	tags.AddStandardTags(cfg)
	for name, f := range c.filters {
		cfg.AddFilter(name, f.fn)
	}
	cfg.AddTag("_tick", func(string) (func(io.Writer, render.Context) error, error) {
		return func(_ io.Writer, ctx render.Context) error {
			b, ok := ctx.Get(budgetKey).(*budget)
			if !ok {
				return errIterations
			}
			return b.tick()
		}, nil
	})
	cfg.AddTag(cutTag, func(string) (func(io.Writer, render.Context) error, error) {
		return func(w io.Writer, ctx render.Context) error {
			b, ok := ctx.Get(budgetKey).(*budget)
			if f, flushes := w.(interface{ Flush() (int, error) }); ok && flushes { // the engine holds back its last write
				if _, err := f.Flush(); err != nil {
					return err
				}
				b.cuts = append(b.cuts, b.w.Len())
			}
			return nil
		}, nil
	})
	// the engine's own capture has no limit
	cfg.AddBlock("_capture").Compiler(func(n render.BlockNode) (func(io.Writer, render.Context) error, error) {
		name := strings.TrimSpace(n.Args)
		return func(_ io.Writer, ctx render.Context) error {
			var w capture
			if err := ctx.RenderChildren(&w); err != nil {
				return err
			}
			ctx.Set(name, w.String())
			return nil
		}, nil
	})
	cfg.AddBlock(parametersTag).Compiler(renderParameters(c.mode))
	return cfg
}

// capture keeps what is written, up to the limit of a value.
type capture struct{ strings.Builder }

func (c *capture) Write(p []byte) (int, error) {
	if c.Len()+len(p) > maxText {
		return 0, errTextTooLong
	}
	return c.Builder.Write(p)
}
