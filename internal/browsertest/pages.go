package browsertest

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// Page is one page in one state and language, as a function answered it.
type Page struct {
	Name string
	// Block is the template with its content; empty for somebody else's page, such as a mail, which is not held to more than WCAG.
	Block string
	// Lang is what the visitor asked for.
	Lang   string
	Header http.Header
	Body   string
}

// LookAtAll looks at every page as its visitors see it: those in English as each of them, those in other languages on the narrowest screen. The pages must be
// valid HTML, too.
func LookAtAll(t *testing.T, pages []Page) {
	t.Helper()
	valid(t, pages)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		i, err := strconv.Atoi(strings.TrimPrefix(r.URL.Path, "/"))
		if err != nil || i >= len(pages) {
			http.NotFound(w, r) // such as the icon
			return
		}
		for _, name := range []string{"Content-Type", "Content-Language", "Content-Security-Policy", "Referrer-Policy"} {
			w.Header()[name] = slices.Clone(pages[i].Header[name])
		}
		if policy, _, ok := strings.Cut(w.Header().Get("Content-Security-Policy"), "; sandbox"); ok { // in a sandbox the inspector's promises are not kept either
			w.Header().Set("Content-Security-Policy", policy)
		}
		_, _ = w.Write([]byte(pages[i].Body)) // with a status of its own a browser would complain, which is nothing wrong with the page
	}))
	t.Cleanup(s.Close)
	b := Start(t)
	visitors := Visitors()[:3] // the last one is as large as another, and the pages of that one without scripts have been seen
	narrowest := slices.MinFunc(visitors, func(a, b Visitor) int { return int(a.Width - b.Width) })
	for _, v := range visitors {
		tab := b.Open(t, v, "about:blank")
		for n, p := range pages {
			if p.Lang == "en" || v == narrowest {
				tab.Go(s.URL + "/" + strconv.Itoa(n))
				if p.Block == "" {
					tab.report(p.Name+" "+p.Lang, tab.axe(wcag))
					tab.Keep(p.Name + " " + p.Lang)
					continue
				}
				tab.Look(p.Name + " " + p.Lang)
			}
		}
	}
}

var (
	included = regexp.MustCompile(`\{\{template "([^"]+)"`)
	textKey  = regexp.MustCompile(`\.T "([^"]+)"`)
	name     = regexp.MustCompile(`\{[a-z]+\}`)
)

// Complete fails when a block of the templates is that of no page, or of pages that show none of its texts. text gives a text in English by its key. Blocks that others
// take in are no pages.
func Complete(t *testing.T, templates fs.FS, pattern string, text func(key string) string, pages []Page) {
	t.Helper()
	files, err := fs.Glob(templates, pattern)
	if err != nil {
		t.Fatal(err)
	}
	var source strings.Builder
	for _, f := range files {
		b, err := fs.ReadFile(templates, f)
		if err != nil {
			t.Fatal(err)
		}
		source.Write(b)
		source.WriteString("\n\n")
	}
	parts := map[string]bool{}
	for _, m := range included.FindAllStringSubmatch(source.String(), -1) {
		parts[m[1]] = true
	}
	blocks := map[string][]string{} // the keys of their texts
	for _, m := range strings.Split(source.String(), `{{define "`)[1:] {
		block, rest, _ := strings.Cut(m, `"}}`)
		if parts[block] {
			continue
		}
		for _, k := range textKey.FindAllStringSubmatch(rest, -1) {
			blocks[block] = append(blocks[block], k[1])
		}
		if !slices.ContainsFunc(pages, func(p Page) bool { return p.Block == block && shows(p, blocks[block], text) }) {
			t.Errorf("no row shows the block %q: add one for each of its states", block)
		}
	}
}

// shows tells whether a page in English has one of the texts in it, or there are none.
func shows(p Page, keys []string, text func(key string) string) bool {
	return len(keys) == 0 || p.Lang == "en" && slices.ContainsFunc(keys, func(key string) bool {
		return !slices.ContainsFunc(name.Split(text(key), -1), func(piece string) bool { return !strings.Contains(p.Body, piece) })
	})
}

// tool gives where a file of tools/axe/node_modules is. There being none is a failure: make test installs it.
func tool(tb testing.TB, parts ...string) string {
	tb.Helper()
	path := filepath.Join(append([]string{"tools", "axe", "node_modules"}, parts...)...)
	for up := "."; ; up = filepath.Join(up, "..") {
		if found := filepath.Join(up, path); exists(found) {
			return found
		}
		if exists(filepath.Join(up, "go.mod")) || len(up) > 100 {
			tb.Fatalf("%s is not there: run npm ci --ignore-scripts --prefix tools/axe (make test does)", path)
		}
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// valid judges the HTML of pages by the standard's rules.
func valid(t *testing.T, pages []Page) {
	t.Helper()
	dir := t.TempDir()
	for i, p := range pages {
		if err := os.WriteFile(filepath.Join(dir, strconv.Itoa(i)+".html"), []byte(p.Body), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var stderr bytes.Buffer
	result := filepath.Join(dir, "result") // through a pipe it would be cut off
	cmd := exec.CommandContext(t.Context(), "node", tool(t, "html-validate", "bin", "html-validate.mjs"), "--preset", "standard,a11y", "--formatter", "json="+result, dir)
	cmd.Stderr = &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("run html-validate: %v", err)
	}
	var found []struct {
		FilePath string `json:"filePath"`
		Messages []struct {
			RuleID  string `json:"ruleId"`
			Message string `json:"message"`
			Line    int    `json:"line"`
		} `json:"messages"`
	}
	out, readErr := os.ReadFile(result)
	if readErr == nil {
		readErr = json.Unmarshal(out, &found)
	}
	if readErr != nil || err != nil && len(found) == 0 {
		t.Fatalf("html-validate: %v, %v: %s", err, readErr, stderr.String())
	}
	for _, f := range found {
		i, err := strconv.Atoi(strings.TrimSuffix(filepath.Base(f.FilePath), ".html"))
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range f.Messages {
			line := ""
			if lines := strings.Split(pages[i].Body, "\n"); m.Line <= len(lines) {
				line = lines[m.Line-1]
			}
			t.Errorf("%s in %s, line %d: %s (%s): %.200s", pages[i].Name, pages[i].Lang, m.Line, m.Message, m.RuleID, line)
		}
	}
}

// axeSource gives the source of axe-core.
func axeSource(tb testing.TB) string {
	tb.Helper()
	b, err := os.ReadFile(tool(tb, "axe-core", "axe.min.js"))
	if err != nil {
		tb.Fatal(err)
	}
	return string(b)
}

// wcag are the tags of axe-core's rules for WCAG up to 2.2 AA; practice is that of more, which pages of Onda keep, too.
const (
	wcag     = "wcag2a wcag2aa wcag21a wcag21aa wcag22aa"
	practice = " best-practice"
)

const judge = `axe.run(document, {resultTypes: ["violations"], runOnly: {type: "tag", values: %q.split(" ")}}).then(r =>
  r.violations.flatMap(v => v.nodes.map(n => v.id + ": " + n.failureSummary.replace(/\s+/g, " ") + " " + n.html.slice(0, 200))))`
