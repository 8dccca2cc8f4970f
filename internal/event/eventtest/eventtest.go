// Package eventtest checks the events that tests see against the catalogue, and makes samples of them. Functions must not link it.
package eventtest

import (
	"encoding/json"
	"fmt"
	"reflect"
	"regexp"
	"strings"
	"testing"

	ce "github.com/cloudevents/sdk-go/v2/event"
	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/onda-run/onda/eventing"
	"github.com/onda-run/onda/internal/event"
)

// Validate fails the test unless e is an event of the catalogue in all that is promised of it: attributes, extensions, size, and data as in its
// JSON Schema.
func Validate(tb testing.TB, e ce.Event) {
	tb.Helper()
	if err := Check(e); err != nil {
		tb.Errorf("%v\n%s", err, e)
	}
}

// Check is Validate for those who have no test at hand, such as a broker in the middle of one.
func Check(e ce.Event) error {
	if err := e.Validate(); err != nil {
		return fmt.Errorf("event %s is no CloudEvent: %w", e.Type(), err)
	}
	entry, ok := event.Lookup(e.Type())
	if !ok {
		return fmt.Errorf("%w %q", event.ErrUnknownType, e.Type())
	}
	if n := event.Size(e); n > event.MaxSize {
		return fmt.Errorf("event %s has %d bytes", e.Type(), n)
	}
	if _, err := event.Tenant(e); err != nil {
		return err
	}
	if !regexp.MustCompile(`^/tenants/[^/]+/functions/[^/]+$`).MatchString(e.Source()) && !fromAnyone(entry) {
		return fmt.Errorf("event %s: source %q", e.Type(), e.Source())
	}
	if stream, _ := e.Extensions()[event.ExtStream].(string); stream != entry.Stream {
		return fmt.Errorf("event %s: the extension stream is %q, not %q", e.Type(), stream, entry.Stream)
	}
	return CheckData(entry, e.Data())
}

// CheckData checks data against the JSON Schema of an entry.
func CheckData(entry event.Entry, data []byte) error {
	schema, err := Schema(entry.Type)
	if err != nil {
		return err
	}
	v, err := jsonschema.UnmarshalJSON(strings.NewReader(string(data)))
	if err != nil {
		return fmt.Errorf("event %s: %w", entry.Type, err)
	}
	if err := schema.Validate(v); err != nil {
		return fmt.Errorf("event %s: %w", entry.Type, err)
	}
	return nil
}

// Schema compiles the JSON Schema of a type.
func Schema(eventType string) (*jsonschema.Schema, error) {
	name := "schemas/" + eventType + ".json"
	f, err := eventing.Files.Open(name)
	if err != nil {
		return nil, fmt.Errorf("schema of %s: %w", eventType, err)
	}
	defer func() { _ = f.Close() }()
	doc, err := jsonschema.UnmarshalJSON(f)
	if err != nil {
		return nil, fmt.Errorf("schema %s: %w", name, err)
	}
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	if err := c.AddResource(name, doc); err != nil {
		return nil, fmt.Errorf("schema %s: %w", name, err)
	}
	return c.Compile(name)
}

func fromAnyone(entry event.Entry) bool {
	for _, p := range entry.Producers {
		if p == "any" {
			return true
		}
	}
	return false
}

// Sample is a valid event of a type of the catalogue, of the tenant acme, with every member that can be there.
func Sample(tb testing.TB, eventType string) ce.Event {
	tb.Helper()
	entry, ok := event.Lookup(eventType)
	if !ok {
		tb.Fatalf("sample: %v %q", event.ErrUnknownType, eventType)
	}
	e, err := event.New("acme", entry.Producers[len(entry.Producers)-1], "", event.DeriveID("sample", eventType), SampleData(tb, eventType), event.Correlation(1), event.PartitionKey(1))
	if err != nil {
		tb.Fatalf("sample: %v", err)
	}
	return e
}

// SampleData is the payload of Sample.
func SampleData(tb testing.TB, eventType string) event.Data {
	tb.Helper()
	entry, ok := event.Lookup(eventType)
	if !ok {
		tb.Fatalf("sample: %v %q", event.ErrUnknownType, eventType)
	}
	shape, err := entry.Shape()
	if err != nil {
		tb.Fatalf("sample: %v", err)
	}
	var n int64
	body, err := json.Marshal(sample(shape, &n))
	if err != nil {
		tb.Fatalf("sample: %v", err)
	}
	p := reflect.New(entry.GoType)
	if err := json.Unmarshal(body, p.Interface()); err != nil {
		tb.Fatalf("sample: %v", err)
	}
	return p.Elem().Interface().(event.Data)
}

// sample is a value of a shape; n counts, so that no two integers are alike.
func sample(s event.Shape, n *int64) any {
	switch s.Kind {
	case "object":
		object := map[string]any{}
		for _, m := range s.Members {
			if len(s.OneOf) == 0 || inFirstChoice(s, m.Name) {
				object[m.Name] = sample(m.Shape, n)
			}
		}
		return object
	case "map":
		return map[string]any{"plan": "paid"}
	case "array":
		return []any{sample(*s.Item, n), sample(*s.Item, n)}
	case "integer":
		*n++
		return *n
	case "time":
		return "2026-11-24T12:00:00Z"
	}
	if len(s.Enum) > 0 {
		return s.Enum[0]
	}
	return "sample"
}

func inFirstChoice(s event.Shape, name string) bool {
	for _, member := range s.OneOf[0] {
		if strings.TrimSuffix(member, "?") == name {
			return true
		}
	}
	return false
}
