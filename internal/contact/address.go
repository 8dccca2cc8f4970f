package contact

import (
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/net/idna"
	"golang.org/x/text/unicode/norm"
)

// ErrAddress is what an address that cannot be mailed matches. Its text says what is wrong and never shows the address.
var ErrAddress = errors.New("not an email address")

// Normalise gives the one form in which an address is stored, compared and hashed: without space around it, in lower case, in NFC (RFC 6532
// section 3.1), its domain in ASCII (RFC 5891). What cannot be mailed (RFC 5321 section 4.1.2, RFC 6531; no quoted local parts, no address literals) is an error that
// matches ErrAddress.
func Normalise(address string) (string, error) {
	bad := func(why string) (string, error) { return "", fmt.Errorf("%w: %s", ErrAddress, why) }
	if isPlain(address) {
		return address, nil
	}
	if !utf8.ValidString(address) {
		return bad("it is not UTF-8")
	}
	address = norm.NFC.String(strings.ToLower(strings.TrimSpace(address)))
	if address == "" {
		return bad("it is empty")
	}
	at := strings.LastIndexByte(address, '@')
	if at < 0 {
		return bad("there is no @ in it")
	}
	local, domain := address[:at], address[at+1:]
	switch {
	case local == "":
		return bad("nothing is before the @")
	case domain == "":
		return bad("nothing is after the @")
	case len(local) > 64:
		return bad("more than 64 bytes are before the @")
	case local[0] == '.' || local[len(local)-1] == '.' || strings.Contains(local, ".."):
		return bad("a dot before the @ is at a place where none may be")
	}
	for _, c := range local {
		switch {
		case c == ' ':
			return bad("there is a space before the @")
		case strings.ContainsRune(`()<>[]:;@\,"`, c):
			return bad(fmt.Sprintf("%q may not be before the @", c))
		case c < ' ', c == 0x7f, c >= 0x80 && !unicode.In(c, unicode.L, unicode.M, unicode.N, unicode.P, unicode.S):
			return bad("an invisible character is before the @")
		}
	}
	ascii, err := idna.Lookup.ToASCII(domain)
	if err != nil || strings.HasSuffix(ascii, ".") {
		return bad("what is after the @ is not a domain")
	}
	labels := strings.Split(ascii, ".")
	if len(labels) < 2 {
		return bad("the domain after the @ has no dot, such as in example.com")
	}
	for _, label := range labels {
		if !isLabel(label) {
			return bad("what is after the @ is not a domain")
		}
	}
	if address = local + "@" + ascii; len(address) > 254 {
		return bad("it has more than 254 bytes")
	}
	return address, nil
}

// isLabel tells whether s can stand between the dots of a host's name (RFC 1123 section 2.1).
func isLabel(s string) bool {
	if s == "" || len(s) > 63 || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	for i := range len(s) {
		if c := s[i]; c != '-' && (c < '0' || c > '9') && (c < 'a' || c > 'z') {
			return false
		}
	}
	return true
}

// isPlain tells of an address at once that it is in that form already: nearly all are, of those with letters of ASCII alone.
func isPlain(address string) bool {
	at := strings.IndexByte(address, '@')
	if at < 1 || at > 64 || len(address) > 254 {
		return false
	}
	before := byte('.')
	for i := range at {
		c := address[i]
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '_' && c != '-' && c != '+' && (c != '.' || before == '.') {
			return false
		}
		before = c
	}
	if before == '.' {
		return false
	}
	dots, begin := 0, at+1
	for i := begin; i <= len(address); i++ {
		if i < len(address) && address[i] != '.' {
			c := address[i]
			if (c < 'a' || c > 'z') && (c < '0' || c > '9') && (c != '-' || i > begin && address[i-1] == '-') { // two may be of an encoded label
				return false
			}
			continue
		}
		if !isLabel(address[begin:i]) {
			return false
		}
		dots, begin = dots+1, i+1
	}
	return dots > 1
}
