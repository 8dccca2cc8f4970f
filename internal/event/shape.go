package event

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"
)

// Shape is what a payload, or a part of one, must look like. It is read off the Go type, and both the check at run time and the JSON Schema come from it.
type Shape struct {
	// Kind is one of "object", "map", "array", "string", "integer" and "time". A map is an object with any members.
	Kind string
	// GoType is where the shape comes from.
	GoType reflect.Type
	// Members are those of an object, in the order of the Go type.
	Members []Member
	// OneOf are the choices between an object's members; empty where there is none.
	OneOf [][]string
	// Item is what an array holds.
	Item *Shape
	// Enum are the only values of a string; empty for any.
	Enum []string
	// Pattern is what a string must match (RE2 and ECMA 262 alike); empty for anything.
	Pattern string
	// MaxLength is how many characters a string may have.
	MaxLength int
	// Minimum is the least value of an integer; nil for none.
	Minimum *int64
}

// Member is one member of an object.
type Member struct {
	// Name is the member's name in JSON.
	Name string
	// Field is the Go field's name, and Owner the struct that declares it.
	Field string
	Owner reflect.Type
	// Required members must be there.
	Required bool
	Shape    Shape
}

// chooser is a payload that has a choice between members. Each choice lists the members it consists of, with "?" after those that may be left out.
type chooser interface{ OneOf() [][]string }

// Shape reads the shape of an entry's payload off its Go type.
func (e Entry) Shape() (Shape, error) {
	s, err := shapeOf(e.GoType, "")
	if err != nil {
		return Shape{}, fmt.Errorf("%s: %w", e.GoType, err)
	}
	return s, nil
}

func shapeOf(t reflect.Type, is string) (Shape, error) {
	s := Shape{GoType: t}
	switch {
	case t == reflect.TypeFor[time.Time]():
		s.Kind = "time"
		return s, nil
	case t.Kind() == reflect.Map:
		s.Kind = "map"
		return s, nil
	case t.Kind() == reflect.Slice:
		s.Kind = "array"
		item, err := shapeOf(t.Elem(), is)
		s.Item = &item
		return s, err
	case t.Kind() == reflect.Struct:
		s.Kind = "object"
		if c, ok := reflect.Zero(t).Interface().(chooser); ok {
			s.OneOf = c.OneOf()
		}
		err := s.addMembers(t)
		return s, err
	case t.Kind() == reflect.Int64:
		s.Kind = "integer"
		return s, s.setInteger(is)
	case t.Kind() == reflect.String:
		s.Kind = "string"
		return s, s.setString(is)
	}
	return s, fmt.Errorf("no shape for a %s", t)
}

func (s *Shape) addMembers(t reflect.Type) error {
	for field := range t.Fields() {
		if field.Anonymous {
			if err := s.addMembers(field.Type); err != nil {
				return err
			}
			continue
		}
		name, options, _ := strings.Cut(field.Tag.Get("json"), ",")
		shape, err := shapeOf(field.Type, field.Tag.Get("is"))
		if err != nil {
			return fmt.Errorf("%s: %w", field.Name, err)
		}
		s.Members = append(s.Members, Member{Name: name, Field: field.Name, Owner: t, Required: options != "omitempty", Shape: shape})
	}
	return nil
}

func (s *Shape) setInteger(is string) error {
	switch is {
	case "id":
		s.Minimum = new(int64(1))
	case "count":
		s.Minimum = new(int64(0))
	case "number":
	default:
		return fmt.Errorf("%q is no kind of integer", is)
	}
	return nil
}

func (s *Shape) setString(is string) error {
	if values, ok := strings.CutPrefix(is, "enum="); ok {
		s.Enum = strings.Split(values, "|")
		return nil
	}
	switch is {
	case "slug": // one word of ours
		s.Pattern, s.MaxLength = `^[a-z0-9][a-z0-9_.-]*$`, 64
	case "name": // of a document or a field
		s.Pattern, s.MaxLength = `^[A-Za-z0-9][A-Za-z0-9_.-]*$`, 128
	case "text": // a customer's own
		s.Pattern, s.MaxLength = `^[^\x00-\x1f\x7f]+$`, 256
	default:
		return fmt.Errorf("%q is no kind of string", is)
	}
	return nil
}

// check tells whether data, in JSON, has the entry's shape, and the place where it has not.
func (e Entry) check(data []byte) error {
	s, err := e.Shape()
	if err != nil {
		return err
	}
	if !utf8.Valid(data) {
		return fmt.Errorf("data is not UTF-8")
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		return fmt.Errorf("data is not JSON: %w", err)
	}
	if _, err := d.Token(); err != io.EOF {
		return fmt.Errorf("data goes on after its end")
	}
	return s.check("data", v)
}

func (s Shape) check(at string, v any) error {
	switch s.Kind {
	case "object":
		return s.checkObject(at, v)
	case "map":
		if _, ok := v.(map[string]any); !ok {
			return fmt.Errorf("%s is not an object", at)
		}
	case "array":
		items, ok := v.([]any)
		if !ok {
			return fmt.Errorf("%s is not an array", at)
		}
		if len(items) == 0 || len(items) > MaxItems {
			return fmt.Errorf("%s has %d items, 1 to %d are allowed", at, len(items), MaxItems)
		}
		for i, item := range items {
			if err := s.Item.check(at+"["+strconv.Itoa(i)+"]", item); err != nil {
				return err
			}
		}
	case "string":
		return s.checkString(at, v)
	case "time":
		text, ok := v.(string)
		if !ok {
			return fmt.Errorf("%s is not a string", at)
		}
		if _, err := time.Parse(time.RFC3339Nano, text); err != nil {
			return fmt.Errorf("%s is not a time as in RFC 3339", at)
		}
	case "integer":
		n, ok := v.(json.Number)
		if !ok {
			return fmt.Errorf("%s is not a number", at)
		}
		i, err := strconv.ParseInt(n.String(), 10, 64)
		if err != nil {
			return fmt.Errorf("%s is not an integer of 64 bits", at)
		}
		if s.Minimum != nil && i < *s.Minimum {
			return fmt.Errorf("%s is less than %d", at, *s.Minimum)
		}
	}
	return nil
}

func (s Shape) checkObject(at string, v any) error {
	object, ok := v.(map[string]any)
	if !ok {
		return fmt.Errorf("%s is not an object", at)
	}
	known := 0
	for _, m := range s.Members {
		value, ok := object[m.Name]
		if !ok {
			if m.Required {
				return fmt.Errorf("%s.%s is missing", at, m.Name)
			}
			continue
		}
		known++
		if err := m.Shape.check(at+"."+m.Name, value); err != nil {
			return err
		}
	}
	if known < len(object) {
		for name := range object {
			if !slices.ContainsFunc(s.Members, func(m Member) bool { return m.Name == name }) {
				return fmt.Errorf("%s has an unknown member %q", at, name)
			}
		}
	}
	if len(s.OneOf) == 0 {
		return nil
	}
	var choices []string
	for _, choice := range s.OneOf {
		if fits(choice, object) {
			return nil
		}
		choices = append(choices, "{"+strings.Join(choice, ", ")+"}")
	}
	return fmt.Errorf("%s is none of %s", at, strings.Join(choices, " and "))
}

// fits tells whether an object consists of the members of a choice.
func fits(choice []string, object map[string]any) bool {
	n := 0
	for _, name := range choice {
		name, optional := strings.CutSuffix(name, "?")
		if _, ok := object[name]; ok {
			n++
		} else if !optional {
			return false
		}
	}
	return n == len(object)
}

func (s Shape) checkString(at string, v any) error {
	text, ok := v.(string)
	if !ok {
		return fmt.Errorf("%s is not a string", at)
	}
	if len(s.Enum) > 0 {
		if !slices.Contains(s.Enum, text) {
			return fmt.Errorf("%s is none of %s", at, strings.Join(s.Enum, ", "))
		}
		return nil
	}
	if utf8.RuneCountInString(text) > s.MaxLength {
		return fmt.Errorf("%s has more than %d characters", at, s.MaxLength)
	}
	if !matches(s.Pattern, text) {
		return fmt.Errorf("%s does not match %s", at, s.Pattern)
	}
	return nil
}

// patterns are those of shapes, compiled: they are few, and to compile one costs more than all else that an event is checked for.
var patterns sync.Map // of *regexp.Regexp by pattern

func matches(pattern, text string) bool {
	re, ok := patterns.Load(pattern)
	if !ok {
		re, _ = patterns.LoadOrStore(pattern, regexp.MustCompile(pattern))
	}
	return re.(*regexp.Regexp).MatchString(text)
}
