package spec

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/fstest"
)

type hostileFile struct{ name, src, want string }

// hostile are files that would take the YAML library minutes, or fill the memory.
func hostile() []hostileFile {
	many := func(format string, n int) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, format, i)
		}
		return b.String()
	}
	indented := func(mark string, n int) string {
		var b strings.Builder
		for i := range n {
			b.WriteString(strings.Repeat(" ", i) + mark + "\n")
		}
		return b.String()
	}
	const (
		deep   = "nested deeper than 100: write it flatter"
		keys   = "the document has more than 3000 keys: divide it into several"
		tokens = "the document has more than 20000 words and marks of YAML: divide it into several"
	)
	return []hostileFile{
		{"lists in lists", strings.Repeat("[", 500_000), "1:101: " + deep},
		{"lists in lists, closed", strings.Repeat("[", 500_000) + strings.Repeat("]", 500_000), "1:101: " + deep},
		{"objects in objects", strings.Repeat("{a: ", 250_000), "1:401: " + deep},
		{"dashes", strings.Repeat("- ", 250_000), "1:201: " + deep},
		{"indented objects", indented("a:", 1000), "101:102: " + deep},
		{"indented lists", indented("-", 1000), "101:101: " + deep},
		{"lists in objects in lists", strings.Repeat("[{a: ", 200_000), "1:251: " + deep},
		{"keys", many("k%05d: v\n", 90_000), "3001:7: " + keys},
		{"keys of nothing", many("k%05d:\n", 100_000), "3001:7: " + keys},
		{"keys of blocks", many("k%05d: |\n  x\n", 60_000), "6001:7: " + keys},
		{"keys in an object", "{" + many("k%05d, ", 100_000) + "}", "1:80000: " + tokens},
		{"items", strings.Repeat("- a\n", 200_000), "10001:1: " + tokens},
		{"aliases", strings.Repeat("- *a\n", 200_000), "6667:4: " + tokens},
		{"anchors", strings.Repeat("&a ", 300_000), "1:30001: " + tokens},
		{"tags", strings.Repeat("!a ", 300_000), "1:40001: " + tokens},
		{"pairs of brackets", strings.Repeat("[]", 500_000), "1:20001: " + tokens},
		{"documents", strings.Repeat("---\na: b\n", 100_000), "100001:1: the file has more than 200000 words and marks of YAML: divide it into several"},
		{"a long key", strings.Repeat("k", 257) + ": {a: {b: c}}\n", "1:258: a key is longer than 256 bytes: the text of it belongs into a value"},
		{"a large file", strings.Repeat("# comment\n", 110_000), "1:1: the file is larger than 1024 KiB: divide it into several"},
	}
}

// What is too much for the YAML library is refused before it, with its place.
func TestHostileFiles(t *testing.T) {
	t.Parallel()
	for _, tt := range hostile() {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, problems := parseYAML("x.yaml", []byte(tt.src))
			if got := problems.Error(); got != "x.yaml:"+tt.want {
				t.Errorf("%d problems, want one:\n%.300s\n%s", len(problems), got, tt.want)
			}
		})
	}
}

// A file may be long as long as its documents are of a usual size.
func TestLongFiles(t *testing.T) {
	t.Parallel()
	var b strings.Builder
	for i := range 2000 {
		fmt.Fprintf(&b, "---\napiVersion: onda/v1\nkind: Segment\nmetadata: {name: s%d}\nspec: {where: {tag: vip}}\n", i)
	}
	set, err := Load(fstest.MapFS{"x.yaml": {Data: []byte(b.String())}})
	if err != nil || len(set.Documents) != 2000 {
		t.Errorf("%d documents, %v", len(set.Documents), err)
	}
	addresses := strings.Repeat("    - someone@customers.example\n", 9900)
	set, err = Load(fstest.MapFS{"x.yaml": {Data: []byte(head("Segment", "s", "  members: manual\n  keep:\n   in:\n"+addresses))}})
	if err != nil || len(set.Documents) != 1 {
		t.Errorf("a long list: %v", err)
	}
}

// A document that cannot be read does not hide the others of its file.
func TestOneBrokenDocumentOfSeveral(t *testing.T) {
	t.Parallel()
	src := head("Segment", "a", "  where: {tag: x}\n") + "---\na: [\n---\n" + head("Segment", "b", "  where: {tag: x}\n") + "...\n" + head("Segment", "c", "  where: {tag: x}\n")
	set, err := Load(fstest.MapFS{"x.yaml": {Data: []byte(src)}})
	if err == nil || !strings.HasPrefix(err.Error(), "x.yaml:7:") || len(set.Documents) != 3 {
		t.Errorf("%d documents, %v", len(set.Documents), err)
	}
}

// A pipe without a writer would be waited for without end.
func TestOnlyRegularFilesAreRead(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := syscall.Mkfifo(filepath.Join(dir, "pipe.yaml"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/dev/zero", filepath.Join(dir, "device.yaml")); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(filepath.Join(dir, "pipe.html"), 0o600); err != nil {
		t.Fatal(err)
	}
	email := head("Email", "e", "  transactional: true\n  from: a@x.example\n  subject: s\n  html: {file: pipe.html}\n")
	if err := os.WriteFile(filepath.Join(dir, "email.yaml"), []byte(email), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Load(os.DirFS(dir))
	no := errNotRegular.Error()
	want := "device.yaml:1:1: " + no + "\nemail.yaml:8:16: the file \"pipe.html\" cannot be read: " + no + "\npipe.yaml:1:1: " + no
	if errText(err) != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
}
