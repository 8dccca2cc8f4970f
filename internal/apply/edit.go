package apply

import (
	"encoding/json"
	"maps"
	"reflect"
	"slices"
	"strconv"
)

// Edit is one place of a document that differs.
type Edit struct {
	// Path is such as spec.steps[2].wait.
	Path string `json:"path"`
	// Before and After are nil where there is nothing.
	Before any `json:"before,omitempty"`
	After  any `json:"after,omitempty"`
}

// edits lists where two JSON values differ, in order of path: the deepest places at which they do.
func edits(path string, before, after any) []Edit {
	if reflect.DeepEqual(before, after) {
		return nil
	}
	switch b := before.(type) {
	case map[string]any:
		a, ok := after.(map[string]any)
		if !ok {
			break
		}
		keys := map[string]struct{}{}
		for k := range b {
			keys[k] = struct{}{}
		}
		for k := range a {
			keys[k] = struct{}{}
		}
		var out []Edit
		for _, k := range slices.Sorted(maps.Keys(keys)) {
			at := k
			if path != "" {
				at = path + "." + k
			}
			out = append(out, edits(at, b[k], a[k])...)
		}
		return out
	case []any:
		a, ok := after.([]any)
		if !ok {
			break
		}
		var out []Edit
		for i := range max(len(a), len(b)) {
			var x, y any
			if i < len(b) {
				x = b[i]
			}
			if i < len(a) {
				y = a[i]
			}
			out = append(out, edits(path+"["+strconv.Itoa(i)+"]", x, y)...)
		}
		return out
	}
	return []Edit{{Path: path, Before: before, After: after}}
}

// Text shows a value of an edit in at most n characters.
func Text(v any, n int) string {
	if v == nil {
		return "(none)"
	}
	b, err := json.Marshal(v)
	if err != nil { // it was JSON before
		return "?"
	}
	r := []rune(string(b))
	if len(r) > n {
		return string(r[:n-1]) + "…"
	}
	return string(r)
}
