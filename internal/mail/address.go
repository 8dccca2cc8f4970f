package mail

import (
	"errors"
	"fmt"
	netmail "net/mail"
	"strings"
	"unicode/utf8"

	"golang.org/x/net/idna"
)

// Address is a mailbox with the name that is shown for it.
type Address struct {
	Name  string // any text; control characters become spaces
	Email string // local@domain
}

// ErrAddress is what an address that cannot be mailed matches. The error never shows the address.
var ErrAddress = errors.New("address cannot be mailed")

// CheckAddress tells whether an address can be mailed (RFC 5321 section 4.1.2, RFC 6531), or why not.
func CheckAddress(addr string) error {
	_, err := envelopeAddress(addr)
	return err
}

// plainDomain tells whether a domain is of lower-case letters, digits, hyphens and dots, and says nothing in Punycode: then there is nothing to convert, which costs more than
// all else about an address.
func plainDomain(domain string) bool {
	for i := range len(domain) {
		c := domain[i]
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '.' {
			return false
		}
	}
	return !strings.Contains(domain, "--") && !strings.HasSuffix(domain, ".")
}

// envelopeAddress gives an address as SMTP wants it: its domain in ASCII. Only its local part may then still need SMTPUTF8.
func envelopeAddress(addr string) (string, error) {
	bad := func(why string) (string, error) { return "", fmt.Errorf("%w: %s", ErrAddress, why) }
	if !utf8.ValidString(addr) {
		return bad("not UTF-8")
	}
	at := strings.LastIndexByte(addr, '@')
	if at < 0 {
		return bad("no @")
	}
	local, domain := addr[:at], addr[at+1:]
	if local == "" || domain == "" {
		return bad("nothing before or after the @")
	}
	if len(local) > 64 {
		return bad("more than 64 bytes before the @")
	}
	// A dot-atom only: quoted local parts exist in theory, and in practice are attacks or mistakes.
	for _, c := range local {
		switch {
		case c >= 'a' && c <= 'z':
			continue
		case c <= ' ' || c == 0x7f || strings.ContainsRune(`()<>[]:;@\,"`, c):
			return bad("a character before the @ that may not be there")
		}
		if c >= 0x80 && !printable(c) {
			return bad("an invisible character before the @")
		}
	}
	if local[0] == '.' || local[len(local)-1] == '.' || strings.Contains(local, "..") {
		return bad("a dot at the wrong place before the @")
	}
	ascii := domain
	if !plainDomain(domain) {
		var err error
		if ascii, err = idna.Lookup.ToASCII(domain); err != nil {
			return bad("not a domain after the @")
		}
	}
	if len(ascii) > 253 {
		return bad("the domain is too long")
	}
	for label := range strings.SplitSeq(ascii, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return bad("not a domain after the @")
		}
		for i := range len(label) {
			c := label[i]
			if c != '-' && (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') {
				return bad("not a domain after the @")
			}
		}
	}
	if ascii == domain {
		return addr, nil
	}
	return local + "@" + ascii, nil
}

func printable(c rune) bool {
	return c != utf8.RuneError && !strings.ContainsRune("\u00a0\u2028\u2029\u200b\u200e\u200f\ufeff", c) && c >= 0xa0
}

// header gives the address for a header field. The name cannot break out of it: it is cleaned, then quoted or encoded.
func (a Address) header() (*netmail.Address, error) {
	email, err := envelopeAddress(a.Email)
	if err != nil {
		return nil, err
	}
	name := clip(clean(a.Name), 100)
	if has8Bit([]byte(name)) {
		// net/mail leaves a backslash bare in an encoded word, which makes the field unreadable, to itself too: send its wide twin.
		name = strings.ReplaceAll(name, `\`, "＼")
	}
	return &netmail.Address{Name: name, Address: email}, nil
}

// clean makes text fit for one line: control characters, line ends of any alphabet and runs of spaces become one space.
func clean(s string) string {
	s = strings.ToValidUTF8(s, "\ufffd")
	return strings.Join(strings.FieldsFunc(s, func(c rune) bool {
		return c <= ' ' || c >= 0x7f && c <= 0xa0 || c == '\u2028' || c == '\u2029'
	}), " ")
}

// clip shortens text to n characters.
func clip(s string, n int) string {
	for i := range s {
		if n == 0 {
			return strings.TrimRight(s[:i], " ") + "…"
		}
		n--
	}
	return s
}
