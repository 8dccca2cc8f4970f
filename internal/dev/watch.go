package dev

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/onda-run/onda/internal/localbroker"
)

// settle is how long files must be left alone before their edit counts: editors and version control write many at once.
const settle = 60 * time.Millisecond

// watch follows code, manifests and documents. Without any of them there is nothing to do.
func (h *Handle) watch(ctx context.Context) error {
	var dirs []string
	if h.build != nil {
		dirs = append(dirs, h.cfg.Root)
	}
	dirs = append(dirs, h.cfg.Eventing)
	if h.cfg.OnDocuments != nil {
		dirs = append(dirs, h.cfg.Documents...)
	}
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch files: %w", err)
	}
	for _, dir := range dirs {
		if err := h.addDirs(w, dir); err != nil {
			return errors.Join(fmt.Errorf("watch files: %w", err), w.Close())
		}
	}
	h.running.Go(func() {
		defer func() { _ = w.Close() }()
		h.follow(ctx, w)
	})
	return nil
}

// addDirs watches a directory and those below it, but for hidden ones, what tools make, and what Go ignores.
func (h *Handle) addDirs(w *fsnotify.Watcher, dir string) error {
	return filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) && path != dir {
			return nil // it went away meanwhile
		}
		if err != nil || !entry.IsDir() {
			return err
		}
		if path != dir && ignored(entry.Name()) || filepath.Clean(path) == filepath.Clean(h.cfg.BuildDir) {
			return filepath.SkipDir
		}
		return w.Add(path)
	})
}

func ignored(name string) bool {
	return strings.HasPrefix(name, ".") || strings.HasPrefix(name, "_") || name == "testdata" || name == "node_modules" || strings.HasSuffix(name, "~")
}

// follow gathers edits until they settle, and acts on them.
func (h *Handle) follow(ctx context.Context, w *fsnotify.Watcher) {
	edits := map[string]bool{}
	var quiet <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case e, ok := <-w.Events:
			if !ok {
				return
			}
			if e.Op == fsnotify.Chmod || ignored(filepath.Base(e.Name)) {
				continue
			}
			if info, err := os.Stat(e.Name); err == nil && info.IsDir() {
				if err := h.addDirs(w, e.Name); err != nil {
					h.term.say("watch %s: %s", h.shown(e.Name), err)
				}
				continue
			}
			edits[e.Name] = true
			quiet = time.After(settle)
		case err, ok := <-w.Errors:
			if !ok {
				return
			}
			h.term.say("watch files: %s; restart onda dev if edits are not seen", err)
		case <-quiet:
			quiet = nil
			h.edited(ctx, slices.Sorted(maps.Keys(edits)))
			clear(edits)
		}
	}
}

// edited sorts edits by what they are of, and brings each to life.
func (h *Handle) edited(ctx context.Context, paths []string) {
	var code []string
	documents := map[string]bool{}
	manifests := false
	for _, path := range paths {
		if dir := h.documentsOf(path); dir != "" {
			documents[dir] = true
			continue
		}
		if below(h.cfg.Eventing, path) && filepath.Ext(path) != ".go" {
			manifests = true // they may be embedded in code, too
		}
		if rel, err := filepath.Rel(h.cfg.Root, path); err == nil && h.build != nil && !strings.HasSuffix(path, "_test.go") {
			code = append(code, rel)
		}
	}
	for dir := range documents {
		if err := h.cfg.OnDocuments(ctx, dir); err != nil {
			h.term.say("%s was not applied:\n%s", h.shown(dir), err)
		}
	}
	if manifests {
		if err := h.reroute(); err != nil {
			h.term.say("the manifests of before stay in force:\n%s", err)
		} else {
			h.term.say("routes by %s anew", h.shown(h.cfg.Eventing))
		}
	}
	if len(code) == 0 {
		return
	}
	names := h.build.edited(code)
	for _, s := range h.cfg.Services {
		if slices.Contains(names, s.Function) {
			h.running.Go(func() { h.backends[s.Name].refresh(ctx) })
		}
	}
}

// documentsOf is the directory of documents that a path is in; empty for none.
func (h *Handle) documentsOf(path string) string {
	if h.cfg.OnDocuments == nil {
		return ""
	}
	for _, dir := range h.cfg.Documents {
		if below(dir, path) {
			return dir
		}
	}
	return ""
}

func below(dir, path string) bool {
	rel, err := filepath.Rel(dir, path)
	return err == nil && filepath.IsLocal(rel)
}

// reroute loads the manifests again.
func (h *Handle) reroute() error {
	routes, err := localbroker.Load(os.DirFS(h.cfg.Eventing))
	if err != nil {
		return err
	}
	sources := routes.Sources
	if err := h.broker.SetRoutes(routes); err != nil {
		return err
	}
	return h.setSources(sources)
}
