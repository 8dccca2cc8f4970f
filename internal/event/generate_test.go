package event_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"go/ast"
	"go/doc/comment"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/onda-run/onda/internal/event"
)

var update = flag.Bool("update", false, "write the generated files of eventing/ anew")

const eventingDir = "../../eventing"

// TestGenerated holds the JSON Schemas and EventType manifests together with the Go types. With -update it writes them.
func TestGenerated(t *testing.T) {
	t.Parallel()
	docs := readDocs(t)
	want := map[string]bool{}
	for _, entry := range event.Catalogue() {
		shape, err := entry.Shape()
		if err != nil {
			t.Fatal(err)
		}
		compare(t, want, filepath.Join(eventingDir, "schemas", entry.Type+".json"), schemaFile(t, entry, shape, docs))
		compare(t, want, filepath.Join(eventingDir, "eventtypes", entry.Type+".yaml"), []byte(manifest(entry)))
	}
	for _, dir := range []string{"schemas", "eventtypes"} {
		files, err := filepath.Glob(filepath.Join(eventingDir, dir, "*"))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			if !want[f] {
				t.Errorf("%s belongs to no type of the catalogue; remove it", f)
			}
		}
	}
}

func compare(t *testing.T, seen map[string]bool, name string, want []byte) {
	t.Helper()
	seen[name] = true
	if *update {
		if err := os.WriteFile(name, want, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	got, err := os.ReadFile(name)
	if err != nil {
		t.Fatalf("%v; write it with go generate ./internal/event", err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s differs from the Go type (-want +got); write it with go generate ./internal/event\n%s", name, diff)
	}
}

// object is a JSON object that keeps its order.
type object []member

type member struct {
	name  string
	value any
}

func (o object) MarshalJSON() ([]byte, error) {
	var b bytes.Buffer
	b.WriteByte('{')
	for i, m := range o {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, "%q:", m.name)
		value, err := json.Marshal(m.value)
		if err != nil {
			return nil, err
		}
		b.Write(value)
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

func schemaFile(t *testing.T, entry event.Entry, shape event.Shape, docs map[string]string) []byte {
	t.Helper()
	o := object{
		{"$schema", "https://json-schema.org/draft/2020-12/schema"},
		{"$id", "https://onda.run/schemas/" + entry.Type + ".json"},
		{"title", entry.Type},
		{"description", entry.Description},
	}
	o = append(o, schemaOf(shape, docs)...)
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(o); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func schemaOf(s event.Shape, docs map[string]string) object {
	switch s.Kind {
	case "object":
		return objectSchema(s, docs)
	case "map":
		return object{{"type", "object"}}
	case "array":
		return object{{"type", "array"}, {"minItems", 1}, {"maxItems", event.MaxItems}, {"items", schemaOf(*s.Item, docs)}}
	case "time":
		return object{{"type", "string"}, {"format", "date-time"}}
	case "integer":
		o := object{{"type", "integer"}}
		if s.Minimum != nil {
			o = append(o, member{"minimum", *s.Minimum})
		}
		return o
	}
	if len(s.Enum) > 0 {
		return object{{"type", "string"}, {"enum", s.Enum}}
	}
	return object{{"type", "string"}, {"maxLength", s.MaxLength}, {"pattern", s.Pattern}}
}

func objectSchema(s event.Shape, docs map[string]string) object {
	properties, required := object{}, []string{}
	for _, m := range s.Members {
		p := schemaOf(m.Shape, docs)
		if d := docs[m.Owner.Name()+"."+m.Field]; d != "" {
			p = append(object{{"description", d}}, p...)
		}
		properties = append(properties, member{m.Name, p})
		if m.Required {
			required = append(required, m.Name)
		}
	}
	o := object{{"type", "object"}, {"properties", properties}}
	if len(required) > 0 {
		o = append(o, member{"required", required})
	}
	if len(s.OneOf) > 0 {
		o = append(o, member{"oneOf", choices(s)})
	}
	return append(o, member{"additionalProperties", false})
}

// choices says for each choice which members it needs and, with the schema false, which it excludes.
func choices(s event.Shape) []object {
	var all []object
	for _, choice := range s.OneOf {
		required, allowed := []string{}, map[string]bool{}
		for _, name := range choice {
			name, optional := strings.CutSuffix(name, "?")
			allowed[name] = true
			if !optional {
				required = append(required, name)
			}
		}
		excluded := object{}
		for _, m := range s.Members {
			if !allowed[m.Name] {
				excluded = append(excluded, member{m.Name, false})
			}
		}
		all = append(all, object{{"required", required}, {"properties", excluded}})
	}
	return all
}

// manifest is the EventType of an entry. Values in braces are templates.
func manifest(entry event.Entry) string {
	source := "/tenants/{tenant}/functions/{function}"
	for _, p := range entry.Producers {
		if p == "any" {
			source = "{source}"
		}
	}
	attributes := [][3]string{
		{"specversion", "true", "1.0"},
		{"type", "true", entry.Type},
		{"source", "true", source},
		{"id", "true", ""},
		{"datacontenttype", "true", "application/json"},
		{"time", "false", ""},
		{"subject", "false", ""},
		{"tenant", "true", ""},
	}
	if entry.Stream != "" {
		attributes = append(attributes, [3]string{"stream", "true", entry.Stream})
	}
	for _, name := range []string{"partitionkey", "correlationid", "causationid", "traceparent"} {
		attributes = append(attributes, [3]string{name, "false", ""})
	}
	var b strings.Builder
	fmt.Fprintf(&b, "# Generated from the Go type event.%s by go generate ./internal/event.\n", entry.GoType.Name())
	fmt.Fprintf(&b, "apiVersion: eventing.knative.dev/v1beta3\nkind: EventType\nmetadata:\n  name: %s\n  namespace: onda\n", entry.Type)
	fmt.Fprintf(&b, "spec:\n")
	if !entry.Direct {
		b.WriteString("  reference:\n    apiVersion: eventing.knative.dev/v1\n    kind: Broker\n    name: onda\n")
	}
	fmt.Fprintf(&b, "  description: %q\n  attributes:\n", entry.Description)
	for _, a := range attributes {
		fmt.Fprintf(&b, "    - name: %s\n      required: %s\n", a[0], a[1])
		if a[2] != "" {
			fmt.Fprintf(&b, "      value: %q\n", a[2])
		}
	}
	return b.String()
}

// readDocs reads the comments on the fields of the payload types, by "Type.Field".
func readDocs(t *testing.T) map[string]string {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "data.go", nil, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	docs := map[string]string{}
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.TypeSpec)
		if !ok {
			return true
		}
		fields, ok := spec.Type.(*ast.StructType)
		if !ok {
			return true
		}
		for _, f := range fields.Fields.List {
			for _, name := range f.Names {
				docs[spec.Name.Name+"."+name.Name] = oneLine(f.Doc.Text())
			}
		}
		return true
	})
	return docs
}

func oneLine(text string) string {
	p := comment.Printer{TextWidth: -1}
	return strings.TrimSpace(string(p.Text(new(comment.Parser).Parse(text))))
}

// TestEveryFieldIsDocumented keeps the schemas readable: what a member means stands in them.
func TestEveryFieldIsDocumented(t *testing.T) {
	t.Parallel()
	docs := readDocs(t)
	var walk func(s event.Shape)
	walk = func(s event.Shape) {
		for _, m := range s.Members {
			if docs[m.Owner.Name()+"."+m.Field] == "" {
				t.Errorf("%s.%s has no comment", m.Owner, m.Field)
			}
			walk(m.Shape)
		}
		if s.Item != nil {
			walk(*s.Item)
		}
	}
	for _, entry := range event.Catalogue() {
		shape, err := entry.Shape()
		if err != nil {
			t.Fatal(err)
		}
		walk(shape)
		if !strings.HasPrefix(entry.Type, "onda.") || entry.GoType.Kind() != reflect.Struct {
			t.Errorf("%s from %s", entry.Type, entry.GoType)
		}
	}
}
