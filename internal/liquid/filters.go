package liquid

import (
	"encoding/json"
	"errors"
	"fmt"
	"html"
	"math"
	"net/url"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/osteele/liquid/values"
	"github.com/osteele/tuesday"
)

// The filters are our own, by the names and meanings of Shopify's Liquid. The
// engine's own ones stop with an error, or with a panic, at values that are
// empty or of another type, and grow without a bound.

const (
	maxText  = 256 << 10 // bytes of one value
	maxItems = 10_000    // of one list
)

var (
	errTextTooLong = fmt.Errorf("a value is larger than %d KiB", maxText>>10)
	errListTooLong = fmt.Errorf("a list has more than %d items", maxItems)
)

// filter is a function with what it takes beside its input.
type filter struct {
	min, max int
	fn       any
}

func (f filter) arity() string {
	switch {
	case f.max == 0:
		return "nothing"
	case f.min == f.max:
		return strconv.Itoa(f.min) + " value(s)"
	}
	return fmt.Sprintf("%d to %d values", f.min, f.max)
}

// text1 is a filter of text alone.
func text1(f func(s string) string) filter {
	return filter{0, 0, func(v any) (any, error) { return bounded(f(format(v))) }}
}

// text2 is a filter of text and one other text.
func text2(f func(s, arg string) string) filter {
	return filter{1, 1, func(v, arg any) (any, error) { return bounded(f(format(v), format(arg))) }}
}

func bounded(s string) (any, error) { return within(s) }

// within is bounded where no filter is.
func within(s string) (string, error) {
	if len(s) > maxText {
		return "", errTextTooLong
	}
	return s, nil
}

// number2 is a filter of two numbers. Whole numbers stay whole.
func number2(f func(a, b float64) float64) filter {
	return filter{1, 1, func(v, arg any) any { return whole(f(number(v), number(arg))) }}
}

func list1(f func(items []any) any) filter {
	return filter{0, 0, func(v any) (any, error) {
		items, err := list(v)
		if err != nil {
			return nil, err
		}
		return f(items), nil
	}}
}

func filterTable() map[string]filter {
	return map[string]filter{
		"default": {1, 1, func(v, other any) any {
			if v == nil || v == false || v == "" || values.IsEmpty(v) {
				return other
			}
			return v
		}},
		"json": {0, 0, func(v any) (any, error) {
			b, err := json.Marshal(v)
			if err != nil {
				return "", nil //nolint:nilerr // what JSON cannot say is left out
			}
			return bounded(string(b))
		}},
		"raw":         {0, 0, func(v any) any { return v }},
		"escape":      text1(html.EscapeString),
		"escape_once": text1(func(s string) string { return html.EscapeString(html.UnescapeString(s)) }),

		"upcase":     text1(strings.ToUpper),
		"downcase":   text1(strings.ToLower),
		"capitalize": text1(capitalize),
		"strip":      text1(strings.TrimSpace),
		"lstrip":     text1(func(s string) string { return strings.TrimLeftFunc(s, unicode.IsSpace) }),
		"rstrip":     text1(func(s string) string { return strings.TrimRightFunc(s, unicode.IsSpace) }),
		"strip_newlines": text1(func(s string) string {
			return strings.NewReplacer("\r", "", "\n", "").Replace(s)
		}),
		"newline_to_br": text1(func(s string) string { return strings.ReplaceAll(s, "\n", "<br>\n") }),
		"strip_html":    text1(stripTags),
		"url_encode":    text1(url.QueryEscape),
		"url_decode": text1(func(s string) string {
			if d, err := url.QueryUnescape(s); err == nil {
				return d
			}
			return s
		}),
		"append":       text2(func(s, t string) string { return s + t }),
		"prepend":      text2(func(s, t string) string { return t + s }),
		"remove":       text2(func(s, t string) string { return strings.ReplaceAll(s, t, "") }),
		"remove_first": text2(func(s, t string) string { return strings.Replace(s, t, "", 1) }),
		"replace":      {1, 2, func(v, old, with any) (any, error) { return replace(format(v), format(old), format(with), -1) }},
		"replace_first": {1, 2, func(v, old, with any) (any, error) {
			return replace(format(v), format(old), format(with), 1)
		}},
		"truncate":      {0, 2, truncate},
		"truncatewords": {0, 2, truncateWords},
		"slice":         {1, 2, slice},
		"split":         {1, 1, split},

		"abs":   {0, 0, func(v any) any { return whole(math.Abs(number(v))) }},
		"ceil":  {0, 0, func(v any) any { return whole(math.Ceil(number(v))) }},
		"floor": {0, 0, func(v any) any { return whole(math.Floor(number(v))) }},
		"round": {0, 1, func(v, places any) any {
			shift := math.Pow10(int(min(max(number(places), 0), 9)))
			return whole(math.Round(number(v)*shift) / shift)
		}},
		"plus":       number2(func(a, b float64) float64 { return a + b }),
		"minus":      number2(func(a, b float64) float64 { return a - b }),
		"times":      number2(func(a, b float64) float64 { return a * b }),
		"at_least":   number2(math.Max),
		"at_most":    number2(math.Min),
		"divided_by": {1, 1, divide},
		"modulo": {1, 1, func(v, by any) any {
			if number(by) == 0 {
				return nil
			}
			return whole(math.Mod(number(v), number(by)))
		}},

		"size": {0, 0, size},
		"join": {0, 1, func(v, separator any) (any, error) {
			if separator == nil {
				separator = " "
			}
			return join(v, format(separator))
		}},
		"first": list1(func(items []any) any {
			if len(items) == 0 {
				return nil
			}
			return items[0]
		}),
		"last": list1(func(items []any) any {
			if len(items) == 0 {
				return nil
			}
			return items[len(items)-1]
		}),
		"reverse": list1(func(items []any) any {
			items = slices.Clone(items)
			slices.Reverse(items)
			return items
		}),
		"sort": {0, 1, func(v, key any) (any, error) { return sorted(v, key, false) }},
		"sort_natural": {0, 1, func(v, key any) (any, error) {
			return sorted(v, key, true)
		}},
		"uniq": list1(func(items []any) any {
			seen := map[string]bool{}
			var out []any
			for _, item := range items {
				if s := fmt.Sprintf("%T %v", item, item); !seen[s] {
					seen[s] = true
					out = append(out, item)
				}
			}
			return out
		}),
		"compact": list1(func(items []any) any {
			return slices.DeleteFunc(slices.Clone(items), func(v any) bool { return v == nil })
		}),
		"concat": {1, 1, func(v, other any) (any, error) {
			a, err := list(v)
			if err != nil {
				return nil, err
			}
			b, err := list(other)
			if err != nil {
				return nil, err
			}
			if len(a)+len(b) > maxItems {
				return nil, errListTooLong
			}
			return append(slices.Clone(a), b...), nil
		}},
		"map": {1, 1, func(v, key any) (any, error) {
			items, err := list(v)
			if err != nil {
				return nil, err
			}
			out := make([]any, len(items))
			for i, item := range items {
				out[i] = property(item, format(key))
			}
			return out, nil
		}},
		"where": {1, 2, func(v, key, want any) (any, error) {
			items, err := list(v)
			if err != nil {
				return nil, err
			}
			var out []any
			for _, item := range items {
				have := property(item, format(key))
				if want == nil && have != nil && have != false || want != nil && values.Equal(have, want) {
					out = append(out, item)
				}
			}
			return out, nil
		}},

		"date": {0, 1, date},

		// those that Parse adds; a template cannot name them
		"_html": {0, 0, func(v any) (any, error) { return asHTML(v) }},
		"_url":  {0, 0, func(v any) (any, error) { return asURL(v) }},
		// an address that was escaped already
		"_escaped_url": {0, 0, func(v any) (any, error) { return bounded(html.EscapeString(safeURL(html.UnescapeString(format(v))))) }},
		"_text":        {0, 0, func(v any) (any, error) { return asText(v) }},
		"_int":         {0, 0, func(v any) any { return int(min(max(number(v), -1e9), 1e9)) }},
		"_items":       {0, 0, items},
	}
}

func filterNames() []string {
	var names []string
	for name := range filterTable() {
		if !strings.HasPrefix(name, "_") {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// format gives a value as text: nothing for one that is not there, a list with
// commas, a number without an exponent.
func format(v any) string {
	switch v := v.(type) {
	case nil:
		return ""
	case string:
		return v
	case bool:
		return strconv.FormatBool(v)
	case int:
		return strconv.Itoa(v)
	case int64:
		return strconv.FormatInt(v, 10)
	case float64:
		return strconv.FormatFloat(v, 'f', -1, 64)
	case float32:
		return strconv.FormatFloat(float64(v), 'f', -1, 32)
	case json.Number:
		return v.String()
	case []byte:
		return string(v)
	case time.Time:
		return v.Format("2006-01-02 15:04")
	case fmt.Stringer:
		return v.String()
	}
	if isList(v) { // looked at first: to join what is none is to format it
		if s, err := join(v, ", "); err == nil {
			text, _ := s.(string)
			return text
		}
	}
	if reflect.TypeOf(v).Kind() == reflect.Map {
		if b, err := json.Marshal(v); err == nil {
			return string(b)
		}
		return ""
	}
	return fmt.Sprint(v)
}

// number gives a value as a number, 0 for what is none.
func number(v any) float64 {
	switch v := v.(type) {
	case int:
		return float64(v)
	case int64:
		return float64(v)
	case float64:
		return finite(v)
	case float32:
		return float64(v)
	case json.Number:
		f, err := v.Float64()
		if err != nil {
			return 0
		}
		return finite(f)
	case string:
		f, err := strconv.ParseFloat(strings.TrimSpace(v), 64)
		if err != nil {
			return 0
		}
		return finite(f)
	}
	return 0
}

func finite(f float64) float64 {
	if math.IsNaN(f) || math.IsInf(f, 0) {
		return 0
	}
	return f
}

// whole makes an int of a number without a fraction, so that it counts and prints as one.
func whole(f float64) any {
	if f = finite(f); f == math.Trunc(f) && math.Abs(f) < 1<<53 {
		return int(f)
	}
	return f
}

func isWhole(v any) bool {
	switch v := v.(type) {
	case int, int64:
		return true
	case float64:
		return v == math.Trunc(v)
	}
	return false
}

func divide(v, by any) any {
	d := number(by)
	if d == 0 {
		return nil
	}
	// as in Liquid, a whole divisor gives a whole result
	if isWhole(by) && isWhole(v) {
		return whole(math.Floor(number(v) / d))
	}
	return whole(number(v) / d)
}

func isList(v any) bool {
	if _, ok := v.(values.Range); ok {
		return true
	}
	k := reflect.ValueOf(v).Kind()
	return k == reflect.Slice || k == reflect.Array
}

// list gives a value as a list: a lone value is a list of one, nothing an empty one.
func list(v any) ([]any, error) {
	switch v := v.(type) {
	case nil:
		return nil, nil
	case []any:
		if len(v) > maxItems {
			return nil, errListTooLong
		}
		return v, nil
	case values.Range:
		if v.Len() > maxItems {
			return nil, errListTooLong
		}
		if v.Len() <= 0 {
			return nil, nil
		}
		return v.AsArray(), nil
	}
	if !isList(v) {
		return []any{v}, nil
	}
	rv := reflect.ValueOf(v)
	if rv.Len() > maxItems {
		return nil, errListTooLong
	}
	out := make([]any, rv.Len())
	for i := range out {
		out[i] = rv.Index(i).Interface()
	}
	return out, nil
}

// items gives what a loop goes over: a list, or the pairs of a map in the order of its keys.
func items(v any) (any, error) {
	if m, ok := v.(map[string]any); ok {
		if len(m) > maxItems {
			return nil, errListTooLong
		}
		keys := make([]string, 0, len(m))
		for k := range m {
			keys = append(keys, k)
		}
		slices.Sort(keys)
		pairs := make([]any, len(keys))
		for i, k := range keys {
			pairs[i] = []any{k, m[k]}
		}
		return pairs, nil
	}
	if v == nil || !isList(v) {
		return []any{}, nil
	}
	out, err := list(v)
	if out == nil {
		out = []any{}
	}
	return out, err
}

func join(v any, separator string) (any, error) {
	all, err := list(v)
	if err != nil {
		return nil, err
	}
	var b strings.Builder
	for i, item := range all {
		if i > 0 {
			b.WriteString(separator)
		}
		if isList(item) && item != nil {
			continue // a list within a list has no text
		}
		b.WriteString(format(item))
		if b.Len() > maxText {
			return nil, errTextTooLong
		}
	}
	return b.String(), nil
}

func property(v any, key string) any {
	if m, ok := v.(map[string]any); ok {
		return m[key]
	}
	return nil
}

func sorted(v, key any, ignoreCase bool) (any, error) {
	all, err := list(v)
	if err != nil {
		return nil, err
	}
	out := slices.Clone(all)
	of := func(item any) any {
		if key != nil {
			item = property(item, format(key))
		}
		if s, ok := item.(string); ok && ignoreCase {
			return strings.ToLower(s)
		}
		return item
	}
	slices.SortStableFunc(out, func(a, b any) int {
		x, y := of(a), of(b)
		switch {
		case x == nil && y == nil:
			return 0
		case x == nil: // what is not there comes last
			return 1
		case y == nil:
			return -1
		case values.Less(x, y):
			return -1
		case values.Less(y, x):
			return 1
		}
		return 0
	})
	return out, nil
}

func size(v any) any {
	switch v := v.(type) {
	case nil:
		return 0
	case string:
		return utf8.RuneCountInString(v)
	case map[string]any:
		return len(v)
	case values.Range:
		return max(v.Len(), 0)
	}
	if isList(v) {
		return reflect.ValueOf(v).Len()
	}
	return 0
}

func replace(s, old, with string, n int) (any, error) {
	if old == "" {
		return s, nil
	}
	count := strings.Count(s, old)
	if n >= 0 {
		count = min(count, n)
	}
	if len(s)+count*(len(with)-len(old)) > maxText {
		return nil, errTextTooLong
	}
	return strings.Replace(s, old, with, n), nil
}

func capitalize(s string) string {
	r, n := utf8.DecodeRuneInString(s)
	if n == 0 {
		return s
	}
	return string(unicode.ToUpper(r)) + s[n:]
}

// stripTags removes what is between < and >.
func stripTags(s string) string {
	var b strings.Builder
	depth := false
	for _, r := range s {
		switch {
		case r == '<':
			depth = true
		case r == '>' && depth:
			depth = false
		case !depth:
			b.WriteRune(r)
		}
	}
	return b.String()
}

func truncate(v, length, ellipsis any) (any, error) {
	n, dots := 50, "..."
	if length != nil {
		n = int(min(max(number(length), 0), maxText))
	}
	if ellipsis != nil {
		dots = format(ellipsis)
	}
	r := []rune(format(v))
	if len(r) <= n {
		return bounded(string(r))
	}
	return bounded(string(r[:max(n-utf8.RuneCountInString(dots), 0)]) + dots)
}

func truncateWords(v, length, ellipsis any) (any, error) {
	n, dots := 15, "..."
	if length != nil {
		n = int(min(max(number(length), 1), maxText))
	}
	if ellipsis != nil {
		dots = format(ellipsis)
	}
	words := strings.Fields(format(v))
	if len(words) <= n {
		return bounded(format(v))
	}
	return bounded(strings.Join(words[:n], " ") + dots)
}

func slice(v, start, length any) (any, error) {
	n := 1
	if length != nil {
		n = int(min(max(number(length), 0), maxText))
	}
	from := int(min(max(number(start), -maxText), maxText))
	cut := func(size int) (int, int) {
		if from < 0 {
			from += size
		}
		if from < 0 || from > size {
			return 0, 0
		}
		return from, min(from+n, size)
	}
	if v != nil && isList(v) {
		all, err := list(v)
		if err != nil {
			return nil, err
		}
		a, b := cut(len(all))
		return all[a:b], nil
	}
	r := []rune(format(v))
	a, b := cut(len(r))
	return bounded(string(r[a:b]))
}

func split(v, separator any) (any, error) {
	s, sep := format(v), format(separator)
	var parts []string
	switch sep {
	case " ":
		parts = strings.Fields(s)
	default:
		if strings.Count(s, sep) > maxItems {
			return nil, errListTooLong
		}
		parts = strings.Split(s, sep)
	}
	for len(parts) > 0 && parts[len(parts)-1] == "" {
		parts = parts[:len(parts)-1]
	}
	if len(parts) > maxItems {
		return nil, errListTooLong
	}
	out := make([]any, len(parts))
	for i, p := range parts {
		out[i] = p
	}
	return out, nil
}

var errNoDate = errors.New("no date")

func parseDate(v any) (time.Time, error) {
	switch v := v.(type) {
	case time.Time:
		return v, nil
	case string:
		for _, form := range []string{
			time.RFC3339, "2006-01-02", "2006-01-02T15:04:05", "2006-01-02T15:04", "2006-01-02 15:04:05", "2006-01-02 15:04",
			"2006-01-02 15:04:05Z07:00",
		} {
			if t, err := time.Parse(form, v); err == nil {
				return t, nil
			}
		}
	}
	return time.Time{}, errNoDate
}

// date formats a date by strftime; what is no date is empty, or stays as it is when it is text.
func date(v, layout any) any {
	t, err := parseDate(v)
	if err != nil {
		return format(v)
	}
	form := withoutWidths(format(layout))
	if form == "" || len(form) > 200 {
		return t.Format("2006-01-02")
	}
	s, err := tuesday.Strftime(form, t)
	if err != nil {
		return t.Format("2006-01-02")
	}
	return s
}

// withoutWidths takes the widths out of a strftime layout: %99999999d would
// otherwise write that many zeros.
func withoutWidths(layout string) string {
	var b strings.Builder
	directive := false
	for _, r := range layout {
		switch {
		case r == '%':
			directive = !directive
		case directive && r >= '1' && r <= '9':
			continue
		case directive && !strings.ContainsRune("-_0^#:", r):
			directive = false
		}
		b.WriteRune(r)
	}
	return b.String()
}

// safeURL lets addresses of the web, of mail and telephone through, and those
// without a scheme: a value must not become a script.
func safeURL(s string) string {
	s = strings.TrimFunc(s, func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) })
	colon := strings.IndexByte(s, ':')
	if colon < 0 || strings.ContainsAny(s[:colon], "/?#") {
		return s
	}
	switch strings.ToLower(s[:colon]) {
	case "http", "https", "mailto", "tel", "sms":
		return s
	}
	return "#"
}
