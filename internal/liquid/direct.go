package liquid

import (
	"html"
	"strings"
)

// direct is an output that is a variable from outside and nothing else, or an if of such a variable around texts and such outputs. Most are, and the engine takes ten times
// as long for them.
type direct struct {
	steps  []any // names and, in lists, numbers
	escape func(any) (string, error)
	inside []insert // of an if
}

// insert is a text, or an output, in an if.
type insert struct {
	text  string
	value *direct
}

// add puts something into an if; there may be none.
func (d *direct) add(i insert) {
	if d != nil {
		d.inside = append(d.inside, i)
	}
}

// value looks the variable up as the engine does; ok is false for what is left to the engine: size, first and their like, of what is no map.
func (d direct) value(vars map[string]any) (v any, ok bool) {
	v = vars
	for _, step := range d.steps {
		switch s := step.(type) {
		case string:
			m, isMap := v.(map[string]any)
			if v == nil {
				return nil, true
			}
			if !isMap {
				return nil, false
			}
			next, has := m[s]
			if !has && s == "size" {
				return nil, false
			}
			v = next
		case int:
			list, isList := v.([]any)
			if v == nil {
				return nil, true
			}
			if !isList || s < 0 {
				return nil, false
			}
			if s >= len(list) {
				return nil, true
			}
			v = list[s]
		}
	}
	return v, true
}

// text is the output.
func (d direct) text(vars map[string]any) (text string, ok bool, err error) {
	v, ok := d.value(vars)
	if !ok {
		return "", false, nil
	}
	if d.escape == nil {
		return d.branch(v, vars)
	}
	text, err = d.escape(v)
	return text, true, err
}

// branch is what is in an if, when its variable is true: anything but nil and false is.
func (d direct) branch(v any, vars map[string]any) (text string, ok bool, err error) {
	if v == nil || v == false {
		return "", true, nil
	}
	var b strings.Builder
	for _, i := range d.inside {
		part := i.text
		if i.value != nil {
			if part, ok, err = i.value.text(vars); !ok || err != nil {
				return "", ok, err
			}
		}
		b.WriteString(part)
	}
	return b.String(), true, nil
}

// What outputs end in.
func asText(v any) (string, error) { return format(v), nil }
func asHTML(v any) (string, error) { return within(html.EscapeString(format(v))) }
func asURL(v any) (string, error)  { return within(html.EscapeString(safeURL(format(v)))) }
