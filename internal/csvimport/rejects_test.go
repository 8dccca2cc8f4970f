package csvimport

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// What an attempt wrote that failed is in the file no more when the next one writes, or when it is closed; one that no row is in is taken away; and two at once have a file each.
func TestRejects(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := filepath.Join(dir, "people.csv")
	one, other, none := RejectsOf(file), RejectsOf(file), RejectsOf(file)
	for _, r := range []*Rejects{one, other, none} {
		if err := r.make([]byte("email,error\n")); err != nil {
			t.Fatal(err)
		}
	}
	for _, text := range []string{"failed attempt,why\n", "bad,why\n"} {
		if err := one.put([]byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	one.keep([]byte("bad,why\n"))
	if err := one.put([]byte("the last one fails,why\n")); err != nil {
		t.Fatal(err)
	}
	if _, err := other.Write([]byte("worse,why\n")); err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, r := range []*Rejects{one, other, none} {
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		if r.Path() != "" {
			b, err := os.ReadFile(r.Path())
			if err != nil {
				t.Fatal(err)
			}
			got[filepath.Base(r.Path())] = string(b)
		}
	}
	if d := cmp.Diff(map[string]string{"people.rejects.csv": "email,error\nbad,why\n", "people.rejects-2.csv": "email,error\nworse,why\n"}, got); d != "" {
		t.Error(d)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 2 {
		t.Errorf("%v, %v", left, err)
	}
}
