package functions_test

import (
	"cmp"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// files parses the Go files of a directory, without tests, by name.
func files(t *testing.T, dir string) map[string]*ast.File {
	t.Helper()
	names, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]*ast.File{}
	for _, n := range names {
		if filepath.Ext(n.Name()) != ".go" || strings.HasSuffix(n.Name(), "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(dir, n.Name()), nil, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		all[n.Name()] = f
	}
	return all
}

func importsOf(t *testing.T, dir string) map[string][]string {
	t.Helper()
	all := map[string][]string{}
	for name, f := range files(t, dir) {
		for _, i := range f.Imports {
			p, err := strconv.Unquote(i.Path.Value)
			if err != nil {
				t.Fatal(err)
			}
			all[name] = append(all[name], p)
		}
	}
	return all
}

// variable is one variable of the environment.
type variable struct {
	name, fallback, doc string
	required            bool
}

// environment reads the variables of a struct's env tags, and what its comments say of them, following the structs it consists of. So the table in a
// README cannot say other than the code.
func environment(t *testing.T, dir, typeName string) []variable {
	t.Helper()
	for _, f := range files(t, dir) {
		for _, decl := range f.Decls {
			g, ok := decl.(*ast.GenDecl)
			if !ok {
				continue
			}
			for _, s := range g.Specs {
				spec, ok := s.(*ast.TypeSpec)
				if !ok || spec.Name.Name != typeName {
					continue
				}
				if fields, ok := spec.Type.(*ast.StructType); ok {
					return fieldsOf(t, dir, f, fields)
				}
			}
		}
	}
	t.Fatalf("%s has no type %s", dir, typeName)
	return nil
}

func fieldsOf(t *testing.T, dir string, f *ast.File, s *ast.StructType) []variable {
	t.Helper()
	var all []variable
	for _, field := range s.Fields.List {
		tag := ""
		if field.Tag != nil {
			text, err := strconv.Unquote(field.Tag.Value)
			if err != nil {
				t.Fatal(err)
			}
			tag = reflect.StructTag(text).Get("env")
		}
		if name, options, _ := strings.Cut(tag, ","); name != "" {
			all = append(all, readTag(t, name, options, field))
			continue
		}
		switch typ := field.Type.(type) {
		case *ast.Ident:
			if typ.IsExported() {
				all = append(all, environment(t, dir, typ.Name)...)
			}
		case *ast.SelectorExpr:
			if other := importedDir(t, f, typ.X); other != "" {
				all = append(all, environment(t, other, typ.Sel.Name)...)
			}
		}
	}
	return all
}

func readTag(t *testing.T, name, options string, field *ast.Field) variable {
	t.Helper()
	v := variable{name: name, doc: strings.Join(strings.Fields(field.Doc.Text()), " ")}
	if v.doc == "" {
		t.Errorf("%s: its field has no comment", name)
	}
	// "Share is how many ..." reads "How many ..." in a table that has the variable's name already.
	for _, n := range field.Names {
		if rest, ok := strings.CutPrefix(v.doc, n.Name+" "); ok && rest != "" {
			rest = strings.TrimPrefix(rest, "is ")
			v.doc = strings.ToUpper(rest[:1]) + rest[1:]
		}
	}
	for o := range strings.SplitSeq(options, ",") {
		switch key, value, _ := strings.Cut(strings.TrimSpace(o), "="); key {
		case "required":
			v.required = true
		case "default":
			v.fallback = value
		}
	}
	return v
}

// importedDir is the directory of one of our packages, from the name it is used by; empty for others'.
func importedDir(t *testing.T, f *ast.File, x ast.Expr) string {
	t.Helper()
	name, ok := x.(*ast.Ident)
	if !ok {
		return ""
	}
	for _, i := range f.Imports {
		p, err := strconv.Unquote(i.Path.Value)
		if err != nil {
			t.Fatal(err)
		}
		if rest, ours := strings.CutPrefix(p, module+"/"); ours && (i.Name != nil && i.Name.Name == name.Name || i.Name == nil && strings.HasSuffix(p, "/"+name.Name)) {
			return filepath.Join("..", rest)
		}
	}
	return ""
}

// routes are the patterns that a package gives to its ServeMux.
func routes(t *testing.T, dir string) []string {
	t.Helper()
	var all []string
	for _, f := range files(t, dir) {
		ast.Inspect(f, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok || len(call.Args) != 2 {
				return true
			}
			if sel, ok := call.Fun.(*ast.SelectorExpr); !ok || sel.Sel.Name != "Handle" && sel.Sel.Name != "HandleFunc" {
				return true
			}
			if lit, ok := call.Args[0].(*ast.BasicLit); ok && lit.Kind == token.STRING {
				p, err := strconv.Unquote(lit.Value)
				if err != nil {
					t.Fatal(err)
				}
				all = append(all, p)
			}
			return true
		})
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// TestNothingIsWrittenToDisk lets pods have a root file system that is read only, and no volume: nothing that a function links of ours makes a file, and no form
// is so large that Go puts its parts into files.
func TestNothingIsWrittenToDisk(t *testing.T) {
	t.Parallel()
	linked := map[string]bool{}
	for _, p := range list(t, mains(t)...) {
		for _, dep := range p.Deps {
			if rest, ours := strings.CutPrefix(dep, module+"/"); ours {
				linked[rest] = true
			}
		}
	}
	if len(linked) < 10 {
		t.Fatalf("functions link %v", linked)
	}
	for dir := range linked {
		for name, f := range files(t, filepath.Join("..", dir)) {
			for _, what := range writes(f) {
				t.Errorf("%s/%s: %s", dir, name, what)
			}
		}
	}
	bad, err := parser.ParseFile(token.NewFileSet(), "bad.go", `package bad
func a() { os.WriteFile("x", nil, 0o600) }
func b(r *http.Request) { r.FormValue("x") }
func c(r *http.Request) { r.ParseMultipartForm(large) }
func d(r *http.Request) { r.Body = http.MaxBytesReader(nil, r.Body, large); r.ParseMultipartForm(small) }
func good(r *http.Request) { r.Body = http.MaxBytesReader(nil, r.Body, large); r.ParseMultipartForm(large) }`, 0)
	if err != nil {
		t.Fatal(err)
	}
	if found := writes(bad); len(found) != 4 {
		t.Errorf("of four that write to disk %q were found", found)
	}
}

// writes tells what in a file writes to disk.
func writes(f *ast.File) []string {
	var found []string
	ast.Inspect(f, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.SelectorExpr:
			makesFiles := []string{"Create", "CreateTemp", "CopyFS", "Link", "Mkdir", "MkdirAll", "MkdirTemp", "OpenFile", "Rename", "Symlink", "WriteFile"}
			if pkg, ok := n.X.(*ast.Ident); ok && pkg.Name == "os" && slices.Contains(makesFiles, n.Sel.Name) {
				found = append(found, "os."+n.Sel.Name+": a pod has nowhere to write")
			}
			if slices.Contains([]string{"FormValue", "PostFormValue", "FormFile"}, n.Sel.Name) {
				found = append(found, n.Sel.Name+" may write parts of a form to disk: limit the body, and parse it with ParseMultipartForm")
			}
		case *ast.FuncDecl:
			if limit, memory := bounds(n); memory != limit {
				found = append(found, n.Name.Name+" reads a form of up to "+cmp.Or(limit, "any")+" bytes, keeps "+memory+" in memory, and the rest would be written to disk")
			}
		}
		return true
	})
	return found
}

// bounds are the names of the constants that limit a body, and the part of a form that is kept in memory, in one function; empty when it parses no form.
func bounds(f *ast.FuncDecl) (limit, memory string) {
	ast.Inspect(f, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok || len(call.Args) == 0 {
			return true
		}
		sel, ok := call.Fun.(*ast.SelectorExpr)
		last, named := call.Args[len(call.Args)-1].(*ast.Ident)
		switch {
		case !ok || !named:
		case sel.Sel.Name == "MaxBytesReader":
			limit = last.Name
		case sel.Sel.Name == "ParseMultipartForm":
			memory = last.Name
		}
		return true
	})
	if memory == "" {
		limit = ""
	}
	return limit, memory
}
