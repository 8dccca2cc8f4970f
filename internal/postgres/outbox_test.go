package postgres

import "testing"

func TestDoorbellItems(t *testing.T) {
	t.Parallel()
	for data, want := range map[string]int{ // as jsonb writes it; -1: it is none
		`{"items": [{"a": 1}]}`:                                     1,
		` {"items": [{"a": [1, {"b": 2}]}, {"c": "}]\\\"{"}]}`:      2,
		`{"items": []}`:                                             -1,
		`{"items": {"a": 1}}`:                                       -1,
		`{"a": 1, "items": [{"a": 1}]}`:                             -1,
		`{"items": [{"a": 1}], "others": [{"a": 1}]}`:               -1,
		`{"items": [{"a": 1}], "others": {"items": [{"a": 1}, 2]}}`: -1,
		`{"contacts": [1, 2]}`:                                      -1,
		`{"items": "`:                                               -1,
		``:                                                          -1,
	} {
		text, n, ok := doorbellItems([]byte(data))
		if !ok {
			n = -1
		}
		if n != want {
			t.Errorf("%s: %d items, %s", data, n, text)
		}
	}
}
