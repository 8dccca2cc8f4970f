package dev

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// builder makes the functions' binaries, when they are needed and only those whose code changed. A failed build leaves the last good binary in use.
type builder struct {
	root, out string
	term      *terminal
	one       chan struct{} // one go build at a time: they use all cores

	mu       sync.Mutex
	binaries map[string]*binary
}

type binary struct {
	lock chan struct{} // held while it is built

	// guarded by builder.mu
	dirty      bool
	good       bool // there is a binary
	generation int  // counts the binaries that differ
	sum        [sha256.Size]byte
	failed     error    // the last build's
	dirs       []string // where its code is, below root; nil when not known
}

// buildError is a build that failed while there is no good binary of before.
type buildError struct {
	function, output string
}

func (e *buildError) Error() string {
	return fmt.Sprintf("function %s does not compile:\n%s", e.function, e.output)
}

func newBuilder(root, out string, term *terminal, functions []string) *builder {
	b := &builder{root: root, out: out, term: term, one: make(chan struct{}, 1), binaries: map[string]*binary{}}
	for _, name := range functions {
		b.binaries[name] = &binary{dirty: true, lock: make(chan struct{}, 1)}
	}
	return b
}

// ensure gives the newest good binary of a function and its generation. It waits for a build that is needed.
func (b *builder) ensure(ctx context.Context, function string) (path string, generation int, err error) {
	bin := b.binaries[function]
	select {
	case bin.lock <- struct{}{}:
	case <-ctx.Done():
		return "", 0, ctx.Err()
	}
	defer func() { <-bin.lock }()
	b.mu.Lock()
	dirty := bin.dirty
	bin.dirty = false // an edit during the build makes it dirty again
	b.mu.Unlock()
	if dirty {
		if err := b.build(ctx, function, bin); err != nil {
			b.mu.Lock()
			bin.dirty = true // it was not tried
			b.mu.Unlock()
			return "", 0, err
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if !bin.good {
		return "", 0, bin.failed
	}
	return filepath.Join(b.out, function), bin.generation, nil
}

// build runs go build. What the compiler says is kept in bin; an error is that it could not be asked.
func (b *builder) build(ctx context.Context, function string, bin *binary) error {
	select {
	case b.one <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-b.one }()
	if err := os.MkdirAll(b.out, 0o755); err != nil {
		return fmt.Errorf("make the directory for binaries: %w", err)
	}
	begin := time.Now()
	// Built beside and renamed: a process that runs keeps its file.
	fresh := filepath.Join(b.out, "."+function+".new")
	text, err := b.run(ctx, "build", "-o", fresh, "./"+filepath.ToSlash(filepath.Join("functions", function)))
	if ctx.Err() != nil {
		return ctx.Err()
	}
	dirs := b.dirs(ctx, function)
	if err != nil {
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			return fmt.Errorf("run go build: %w", err)
		}
		b.term.say("%s does not compile:\n%s", function, text)
		b.mu.Lock()
		defer b.mu.Unlock()
		bin.failed, bin.dirs = &buildError{function: function, output: text}, dirs
		return nil
	}
	sum, err := sumOf(fresh)
	if err != nil {
		return fmt.Errorf("read what was built: %w", err)
	}
	if err := os.Rename(fresh, filepath.Join(b.out, function)); err != nil {
		return fmt.Errorf("put what was built in its place: %w", err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	bin.failed, bin.good, bin.dirs = nil, true, dirs
	if sum != bin.sum {
		bin.sum = sum
		bin.generation++
		b.term.say("built %s in %s", function, short(time.Since(begin)))
	}
	return nil
}

// run runs the go command at the module's root and gives what it wrote.
func (b *builder) run(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = b.root
	cmd.WaitDelay = time.Second
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	return strings.TrimSpace(out.String()), err
}

// dirs are the directories of the module that a function's code is in; nil, for all, when the go command cannot tell.
func (b *builder) dirs(ctx context.Context, function string) []string {
	text, err := b.run(ctx, "list", "-e", "-deps", "-f", "{{if not .Standard}}{{.Dir}}{{end}}", "./"+filepath.ToSlash(filepath.Join("functions", function)))
	if err != nil {
		return nil
	}
	root, err := filepath.EvalSymlinks(b.root)
	if err != nil {
		return nil
	}
	if root, err = filepath.Abs(root); err != nil {
		return nil
	}
	var dirs []string
	for line := range strings.Lines(text) {
		if rel, err := filepath.Rel(root, strings.TrimSpace(line)); err == nil && filepath.IsLocal(rel) {
			dirs = append(dirs, rel)
		}
	}
	return dirs
}

// edited notes that files changed, given relative to the root, and names the functions that they belong to.
func (b *builder) edited(paths []string) []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var names []string
	for name, bin := range b.binaries {
		if touches(bin.dirs, paths) {
			bin.dirty = true
			names = append(names, name)
		}
	}
	return names
}

// touches tells whether one of the paths is in one of the directories, or below: embedded files may be.
func touches(dirs, paths []string) bool {
	if dirs == nil {
		return true
	}
	for _, path := range paths {
		if base := filepath.Base(path); base == "go.mod" || base == "go.sum" || base == "go.work" {
			return true
		}
		for _, dir := range dirs {
			if strings.HasPrefix(path, dir+string(filepath.Separator)) || dir == "." && filepath.Dir(path) == "." {
				return true
			}
		}
	}
	return false
}

// failure is what the compiler said about the newest code of a function; empty when it is good.
func (b *builder) failure(function string) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.binaries[function].failed; err != nil {
		return err.Error()
	}
	return ""
}

func sumOf(name string) (sum [sha256.Size]byte, err error) {
	f, err := os.Open(name)
	if err != nil {
		return sum, err
	}
	defer func() { _ = f.Close() }()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return sum, err
	}
	return [sha256.Size]byte(h.Sum(nil)), nil
}
