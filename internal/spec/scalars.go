package spec

import (
	"net/mail"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	_ "time/tzdata" // zones are the same wherever a function runs

	"golang.org/x/text/language"
)

// patterns keeps the compiled form of the grammar's patterns, a closed set of
// constants: compiling them anew for each rule made Decode a hundred times slower.
var patterns sync.Map

func compiled(pattern string) *regexp.Regexp {
	if re, ok := patterns.Load(pattern); ok {
		return re.(*regexp.Regexp)
	}
	re := regexp.MustCompile(pattern)
	patterns.Store(pattern, re)
	return re
}

// scalar is the rule of a scalar that must match a pattern, which the schema has too.
func scalar[T any](want, pattern string, parse func(string) (T, error)) rule[T] {
	re := compiled(pattern)
	return rule[T]{
		read: func(d *decoder, n *node) (T, bool) {
			var zero T
			if n.kind != textNode || !re.MatchString(n.text) {
				d.wrong(n, want)
				return zero, false
			}
			v, err := parse(n.text)
			if err != nil {
				d.fail(n.position, "%v", err)
				return zero, false
			}
			return v, true
		},
		schema: func(*schemaBuilder) schema { return schema{"type": "string", "pattern": pattern} },
	}
}

func asText(s string) (string, error) { return s, nil }

// text is any text that is not empty.
func text() rule[string] { return scalar("text", `[^\s]`, asText) }

func boolean() rule[bool] {
	return rule[bool]{
		read: func(d *decoder, n *node) (bool, bool) {
			if n.kind != boolNode {
				d.wrong(n, "true or false")
				return false, false
			}
			return n.text == "true", true
		},
		schema: func(*schemaBuilder) schema { return schema{"type": "boolean"} },
	}
}

// flag is a key that is either absent or true.
func flag() rule[bool] {
	return rule[bool]{
		read: func(d *decoder, n *node) (bool, bool) {
			if n.kind != boolNode || n.text != "true" {
				d.wrong(n, "true, or be left out")
				return false, false
			}
			return true, true
		},
		schema: func(*schemaBuilder) schema { return schema{"const": true} },
	}
}

// whole is a whole number between two bounds.
func whole(low, high int) rule[int] {
	want := "a whole number from " + strconv.Itoa(low) + " to " + strconv.Itoa(high)
	return rule[int]{
		read: func(d *decoder, n *node) (int, bool) {
			v, err := strconv.Atoi(n.text)
			if n.kind != numberNode || err != nil || v < low || v > high {
				d.wrong(n, want)
				return 0, false
			}
			return v, true
		},
		schema: func(*schemaBuilder) schema { return schema{"type": "integer", "minimum": low, "maximum": high} },
	}
}

// choice is one of a few words.
func choice[T ~string](words ...T) rule[T] {
	known := make([]string, len(words))
	for i, w := range words {
		known[i] = string(w)
	}
	return rule[T]{
		read: func(d *decoder, n *node) (T, bool) {
			if n.kind != textNode {
				d.wrong(n, "one of "+strings.Join(known, ", "))
				return "", false
			}
			if !slices.Contains(known, n.text) {
				d.fail(n.position, "%s", unknown("value", n.text, known))
				return "", false
			}
			return T(n.text), true
		},
		schema: func(*schemaBuilder) schema { return schema{"enum": known} },
	}
}

const (
	namePattern      = `^[a-z0-9][a-z0-9-]{0,62}$`
	fieldNamePattern = `^[a-z][a-z0-9_]{0,62}$`
	fieldTestPattern = `^[a-z][a-z0-9_]{0,62}(\.[a-z][a-z0-9_]{0,62})?$` // score.fit too
	stepIDPattern    = `^[a-z][a-z0-9-]{0,62}$`
	eventPattern     = `^[a-z][a-z0-9_]*(\.[a-z0-9_]+)*$`
	localePattern    = `^[a-z]{2,3}(-[A-Za-z0-9]{2,8})*$`
	tagPattern       = `^[^\s,]([^,\n]{0,62}[^\s,])?$`
)

func nameRule() rule[string] {
	return scalar("a name of small letters, digits and -", namePattern, asText)
}

func tagRule() rule[string] {
	return scalar("a tag: 1 to 64 characters, no comma", tagPattern, asText)
}

// locale is a BCP 47 tag, such as fr or pt-BR.
func localeRule() rule[string] {
	return scalar("a language such as fr or pt-BR", localePattern, func(s string) (string, error) {
		if _, err := language.Parse(s); err != nil {
			return "", Problem{Msg: `unknown language "` + s + `"`}
		}
		return s, nil
	})
}

func isLocale(d *decoder, p position, key string) bool {
	if compiled(localePattern).MatchString(key) {
		if _, err := language.Parse(key); err == nil {
			return true
		}
	}
	d.fail(p, "unknown language %q: it must be one such as fr or pt-BR", key)
	return false
}

// zoneName is a zone of the IANA database.
func zoneName() rule[string] {
	return scalar("a time zone such as Europe/Paris", `^[A-Z][A-Za-z0-9_+-]*(/[A-Za-z0-9_+-]+)*$`, func(s string) (string, error) {
		if _, err := time.LoadLocation(s); err != nil || s == "Local" {
			return "", Problem{Msg: `unknown time zone "` + s + `": it must be one such as Europe/Paris`}
		}
		return s, nil
	})
}

// httpURL is an absolute address of the web.
func httpURL() rule[string] {
	return scalar("an address that begins with https:// or http://", `^https?://[^\s]+$`, func(s string) (string, error) {
		if u, err := url.Parse(s); err != nil || u.Host == "" || u.User != nil {
			return "", Problem{Msg: `not an address of the web: "` + s + `"`}
		}
		return s, nil
	})
}

// origin is a scheme and host without a path, as a browser sends it.
func originRule() rule[string] {
	return scalar("an origin such as https://example.com", `^https?://[A-Za-z0-9.-]+(:[0-9]+)?$`, func(s string) (string, error) {
		return strings.ToLower(s), nil
	})
}

// siteRule is the origin of a site whose addresses may tell who comes: nobody on the way may read them, but on a developer's own machine.
func siteRule() rule[string] {
	return scalar("an origin such as https://example.com, or http://localhost:8000 on your own machine", `^(https://[A-Za-z0-9.-]+|http://localhost)(:[1-9][0-9]*)?$`, func(s string) (string, error) {
		u, err := url.Parse(s)
		if err != nil {
			return "", Problem{Msg: `not an origin: "` + s + `"`}
		}
		return Origin(u), nil
	})
}

// Origin gives the origin of an address as a browser writes it: in small letters, and without the port that goes with https and http.
func Origin(u *url.URL) string {
	scheme, host := strings.ToLower(u.Scheme), strings.ToLower(u.Host)
	switch scheme {
	case "https":
		host = strings.TrimSuffix(host, ":443")
	case "http":
		host = strings.TrimSuffix(host, ":80")
	}
	return scheme + "://" + host
}

// address is one mailbox, with or without a name.
func addressRule() rule[string] {
	return scalar("a mail address", `^[^\r\n]*@[^\r\n]+$`, func(s string) (string, error) {
		if _, err := mail.ParseAddress(s); err != nil {
			return "", Problem{Msg: `not a mail address: "` + s + `": write it as hello@example.com or "Name <hello@example.com>"`}
		}
		return s, nil
	})
}

func domainRule() rule[string] {
	return scalar("a domain such as example.com", `^[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+$`, func(s string) (string, error) {
		return strings.ToLower(s), nil
	})
}
