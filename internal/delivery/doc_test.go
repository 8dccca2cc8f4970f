package delivery

import (
	"context"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"regexp"
	"slices"
	"strconv"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Postgres takes each reason that the code has a name for, and the README says what each means.
func TestReasonsAreOneList(t *testing.T) {
	t.Parallel()
	file, err := parser.ParseFile(token.NewFileSet(), "doc.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var named []string
	ast.Inspect(file, func(n ast.Node) bool {
		if spec, ok := n.(*ast.ValueSpec); ok {
			if kind, ok := spec.Type.(*ast.Ident); ok && kind.Name == "Reason" {
				reason, err := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
				if err != nil {
					t.Fatal(err)
				}
				named = append(named, reason)
			}
		}
		return true
	})
	slices.Sort(named)
	if len(named) == 0 {
		t.Fatal("doc.go has no reasons")
	}
	f := setUp(t)
	var check string
	if err := f.superuser().QueryRow(context.Background(), "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conname = 'delivery_reason_check' LIMIT 1").Scan(&check); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(named, found(`'([a-z_]+)'`, check)); diff != "" {
		t.Errorf("what Postgres takes (-named +taken):\n%s", diff)
	}
	readme, err := os.ReadFile("../../functions/send/README.md")
	if err != nil {
		t.Fatal(err)
	}
	table := regexp.MustCompile(`(?m)^\| reason \|.*\n(\|.*\n)+`).FindString(string(readme))
	if diff := cmp.Diff(named, found("(?m)^\\| `([a-z_]+)`", table)); diff != "" {
		t.Errorf("the README's table (-named +there):\n%s", diff)
	}
}

// found gives what a pattern finds, sorted.
func found(pattern, text string) (all []string) {
	for _, m := range regexp.MustCompile(pattern).FindAllStringSubmatch(text, -1) {
		all = append(all, m[1])
	}
	slices.Sort(all)
	return all
}
