package liquid

import "html"

// direct is an output that is a variable from outside and nothing else. Most are, and the engine takes ten times as long for them.
type direct struct {
	steps  []any // names and, in lists, numbers
	escape func(any) (any, error)
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
	out, err := d.escape(v)
	if err != nil {
		return "", true, err
	}
	text, ok = out.(string)
	return text, ok, nil
}

// What outputs end in.
func asText(v any) (any, error) { return format(v), nil }
func asHTML(v any) (any, error) { return bounded(html.EscapeString(format(v))) }
func asURL(v any) (any, error)  { return bounded(html.EscapeString(safeURL(format(v)))) }
