// Package fieldvalue reads what people and programs send for a contact's field into the one form in which it is stored: text, float64, bool or a list of
// texts, as encoding/json writes them. Dates are 2006-01-02, points in time RFC 3339 in UTC, countries ISO 3166-1 alpha-2 in capitals, phone numbers E.164.
package fieldvalue

import (
	"fmt"
	"math"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/language"
)

// Type is the type of a field's values.
type Type string

// The types of language.md.
const (
	Text        Type = "text"
	Number      Type = "number"
	Boolean     Type = "boolean"
	Date        Type = "date"
	Datetime    Type = "datetime"
	Select      Type = "select"
	Multiselect Type = "multiselect"
	Country     Type = "country"
	Language    Type = "language"
	Timezone    Type = "timezone"
	URL         Type = "url"
	Phone       Type = "phone"
)

// Field is what values are read for.
type Field interface {
	ValueType() Type
	Choices() []string // of a select and a multiselect
}

// MaxText is how many characters a value of a text may have.
const MaxText = 10_000

// Problem is why a value does not fit its field. Its text is the reason, in a sentence for who sent it; the value is not in it.
type Problem struct {
	// Reason is one of text, long, number, boolean, date, option, url, phone, country, language and timezone.
	Reason string
	// Want says what fits.
	Want string
}

// Error implements error.
func (p *Problem) Error() string { return "must be " + p.Want }

func problem(reason, want string) error { return &Problem{reason, want} }

// Parse reads a text, such as a form or a CSV file has it. Space around it does not count; an empty text is nil, which removes the field's value. The options of a
// multiselect are separated by commas.
func Parse(f Field, s string) (any, error) {
	s = strings.TrimSpace(s)
	if s == "" {
		return nil, nil
	}
	if err := clean(s, f.ValueType() == Text); err != nil {
		return nil, err
	}
	switch f.ValueType() {
	case Number:
		n, err := strconv.ParseFloat(strings.ReplaceAll(s, " ", ""), 64)
		if err != nil || math.IsInf(n, 0) || math.IsNaN(n) {
			return nil, problem("number", "a number such as 12 or 12.5")
		}
		return n, nil
	case Boolean:
		switch strings.ToLower(s) {
		case "true", "1", "yes", "on":
			return true, nil
		case "false", "0", "no", "off":
			return false, nil
		}
		return nil, problem("boolean", "true or false")
	case Multiselect:
		return options(f, strings.Split(s, ","))
	default:
		return text(f, s)
	}
}

// FromJSON reads a value that encoding/json decoded into an any; a list may also be one of texts. Texts are read as Parse does.
func FromJSON(f Field, v any) (any, error) {
	switch v := v.(type) {
	case nil:
		return nil, nil
	case string:
		return Parse(f, v)
	case bool:
		if f.ValueType() == Boolean {
			return v, nil
		}
	case float64:
		switch f.ValueType() {
		case Number:
			return v, nil
		case Text:
			return strconv.FormatFloat(v, 'f', -1, 64), nil
		default: // no number fits
		}
	case []string:
		if f.ValueType() == Multiselect {
			return options(f, v)
		}
	case []any:
		if f.ValueType() != Multiselect {
			break
		}
		list := make([]string, len(v))
		for i, item := range v {
			s, ok := item.(string)
			if !ok {
				return nil, problem("option", "a list of texts")
			}
			if err := clean(s, false); err != nil {
				return nil, err
			}
			list[i] = s
		}
		return options(f, list)
	}
	return nil, problem("text", fmt.Sprintf("a value of type %s", f.ValueType()))
}

// clean refuses what Postgres and mail headers cannot hold.
func clean(s string, lines bool) error {
	if !utf8.ValidString(s) {
		return problem("text", "text in UTF-8")
	}
	if utf8.RuneCountInString(s) > MaxText {
		return problem("long", fmt.Sprintf("at most %d characters", MaxText))
	}
	for _, c := range s {
		if unicode.IsControl(c) && (!lines || c != '\n' && c != '\r' && c != '\t') {
			return problem("text", "text without control characters")
		}
	}
	return nil
}

func options(f Field, list []string) (any, error) {
	var out []string
	for _, o := range list {
		o = strings.TrimSpace(o)
		if o == "" || slices.Contains(out, o) {
			continue
		}
		if !slices.Contains(f.Choices(), o) {
			return nil, problem("option", "of "+strings.Join(f.Choices(), ", "))
		}
		out = append(out, o)
	}
	if out == nil {
		return nil, nil
	}
	slices.Sort(out)
	return out, nil
}

// text reads the types whose values are texts.
func text(f Field, s string) (any, error) {
	switch f.ValueType() {
	case Date:
		if t, err := time.Parse(time.DateOnly, s); err == nil && t.Year() > 0 {
			return s, nil
		}
		return nil, problem("date", "a date such as 2026-11-24")
	case Datetime:
		for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04", time.DateTime, time.DateOnly} {
			if t, err := time.Parse(layout, s); err == nil && t.Year() > 0 {
				return t.UTC().Format(time.RFC3339), nil
			}
		}
		return nil, problem("date", "a point in time such as 2026-11-24T15:04:05Z")
	case Select:
		if !slices.Contains(f.Choices(), s) {
			return nil, problem("option", "one of "+strings.Join(f.Choices(), ", "))
		}
	case URL:
		u, err := url.Parse(s)
		if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.User != nil {
			return nil, problem("url", "a web address such as https://example.com/")
		}
	case Phone:
		return phone(s)
	case Country:
		s = strings.ToUpper(s)
		if r, err := language.ParseRegion(s); err != nil || !r.IsCountry() || len(s) != 2 {
			return nil, problem("country", "a country's code of two letters such as NO (ISO 3166-1)")
		}
	case Language:
		tag, err := language.Parse(s)
		if err != nil {
			return nil, problem("language", "a language's code such as pt or pt-BR (BCP 47)")
		}
		return tag.String(), nil
	case Timezone:
		if _, err := time.LoadLocation(s); err != nil || s == "Local" {
			return nil, problem("timezone", "a time zone such as Europe/Oslo (IANA)")
		}
	default: // any text will do
	}
	return s, nil
}

// phone gives a number in E.164: a plus and 7 to 15 digits.
func phone(s string) (any, error) {
	bad := problem("phone", "a phone number with its country code such as +47 21 00 00 00")
	if rest, ok := strings.CutPrefix(s, "00"); ok {
		s = "+" + rest
	}
	if !strings.HasPrefix(s, "+") {
		return nil, bad
	}
	digits := strings.NewReplacer(" ", "", "-", "", ".", "", "(", "", ")", "", "/", "", "\u00a0", "").Replace(s[1:])
	if len(digits) < 7 || len(digits) > 15 || digits[0] == '0' || strings.Trim(digits, "0123456789") != "" {
		return nil, bad
	}
	return "+" + digits, nil
}
