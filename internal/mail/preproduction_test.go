package mail_test

import (
	"errors"
	"math"
	"strings"
	"testing"

	"github.com/onda-run/onda/internal/mail"
)

func TestStandIn(t *testing.T) {
	t.Parallel()
	longest := strings.Repeat("t", 40)
	for _, c := range []struct{ text, acme, longest string }{
		{"qa@example.com", "qa@example.com", "qa@example.com"},
		{"%@qa.example.com", "acme-42@qa.example.com", longest + "-9223372036854775807@qa.example.com"},
		{"qa+%@example.com", "qa+acme-42@example.com", "qa+" + longest + "-9223372036854775807@example.com"},
	} {
		s, err := mail.ParseStandIn(c.text)
		if err != nil || s.Nowhere() {
			t.Errorf("%s: nowhere is %v, %v", c.text, s.Nowhere(), err)
			continue
		}
		if got := s.Address("acme", 42); got != c.acme {
			t.Errorf("%s: %s, want %s", c.text, got, c.acme)
		}
		if got := s.Address(longest, math.MaxInt64); got != c.longest || mail.CheckAddress(got) != nil {
			t.Errorf("%s: %s, want %s", c.text, got, c.longest)
		}
	}
	if s, err := mail.ParseStandIn(""); err != nil || !s.Nowhere() {
		t.Errorf("nothing: %+v, %v", s, err)
	}
	for _, text := range []string{
		"qa", "qa@", "@example.com", "%", "%example.com", "qa@%", "qa@%.example.com", "%%@example.com", "%@%.example.com", "everybody+%@example.com", "qa @example.com", " qa@example.com",
		"qa@example.com\r\nRCPT TO:<x@y.example>", "qa@example.com,x@y.example", "<qa@example.com>", "\"q a\"@example.com", "qä@example.com", "qa@exämple.com",
	} {
		if s, err := mail.ParseStandIn(text); err == nil {
			t.Errorf("%q is taken, as %+v", text, s)
		}
	}
}

func TestCheckPreproduction(t *testing.T) {
	t.Parallel()
	for url, ok := range map[string]bool{
		"smtp://relay.example:25?tls=none":                               true,
		"smtp://relay.example":                                           true,
		"smtp://u:p@relay.example":                                       false,
		"smtp://relay.example smtp://u:p@other.example?weight=0":         false,
		"smtp://127.0.0.1:2525?tls=none smtp://localhost:2526?tls=none":  true,
		"smtps://u:p@relay.example smtp://u:p@127.0.0.1:25?tls=starttls": false,
	} {
		relays, err := mail.ParseURLs(url)
		if err != nil {
			t.Fatal(err)
		}
		if err := mail.CheckPreproduction(relays); (err == nil) != ok || err != nil && !errors.Is(err, mail.ErrCredential) {
			t.Errorf("%s: %v", url, err)
		}
	}
}
