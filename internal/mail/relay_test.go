package mail_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/onda-run/onda/internal/mail"
)

func TestParseURL(t *testing.T) {
	t.Parallel()
	tests := []struct {
		url  string
		want mail.Relay
	}{
		{"smtp://user:pass@mx.example.com:587?tls=starttls", mail.Relay{Host: "mx.example.com", Port: 587, User: "user", Password: "pass", TLS: mail.TLSStart, Weight: 1}},
		{"smtp://mx.example.com", mail.Relay{Host: "mx.example.com", Port: 587, TLS: mail.TLSStart, Weight: 1}},
		{"smtp://mx.example.com:465", mail.Relay{Host: "mx.example.com", Port: 465, TLS: mail.TLSImplicit, Weight: 1}},
		{"smtps://mx.example.com", mail.Relay{Host: "mx.example.com", Port: 465, TLS: mail.TLSImplicit, Weight: 1}},
		{"smtp://mx.example.com:2525?tls=none", mail.Relay{Host: "mx.example.com", Port: 2525, TLS: mail.TLSNone, Weight: 1}},
		{"smtp://mx.example.com?tls=none&helo=out.acme.example", mail.Relay{Host: "mx.example.com", Port: 25, TLS: mail.TLSNone, HELO: "out.acme.example", Weight: 1}},
		{"smtp://user%40acme:p%2Fw%40@[::1]:1025/?tls=none", mail.Relay{Host: "::1", Port: 1025, User: "user@acme", Password: "p/w@", TLS: mail.TLSNone, Weight: 1}},
		{"smtps://mx.example.com?weight=0", mail.Relay{Host: "mx.example.com", Port: 465, TLS: mail.TLSImplicit}},
		{"smtp://mx.example.com?rate=14.5&messages=100&age=5m", mail.Relay{Host: "mx.example.com", Port: 587, TLS: mail.TLSStart, Weight: 1, Rate: 14.5, MaxMessages: 100, MaxAge: 5 * time.Minute}},
	}
	for _, tt := range tests {
		got, err := mail.ParseURL(tt.url)
		if err != nil {
			t.Errorf("%s: %v", tt.url, err)
			continue
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.url, diff)
		}
		for _, printed := range []string{got.String(), fmt.Sprintf("%v %+v %#v", got, got, got)} {
			if got.Password != "" && strings.Contains(printed, got.Password) {
				t.Errorf("printing shows the password: %s", printed)
			}
		}
	}
}

func TestParseURLRefuses(t *testing.T) {
	t.Parallel()
	tests := []struct{ url, want string }{
		{"", "is empty"},
		{"mx.example.com:587", "want smtp://"},
		{"http://mx.example.com", `scheme "http"`},
		{"smtp://", "names no host"},
		{"smtp://:587", "names no host"},
		{"smtp://mx.example.com:0", `port "0"`},
		{"smtp://mx.example.com:99999", `port "99999"`},
		{"smtp://mx.example.com:port", "does not parse"},
		{"smtp://user:sec/ret@mx.example.com", "percent-encode"},
		{"smtp://user:sec%ret@mx.example.com", "percent-encode"},
		{"smtp://user@mx.example.com", "user without a password"},
		{"smtp://mx.example.com/path", "has a path"},
		{"smtp://mx.example.com?tls=yes", `tls="yes": want starttls, implicit or none`},
		{"smtp://mx.example.com?tls=none&tls=none", "tls twice"},
		{"smtp://mx.example.com?provider=", `provider=""`},
		{"smtp://mx.example.com?provider=ses", `provider="ses"`},
		{"smtp://mx.example.com?ssl=true", `unknown parameter "ssl"`},
		{"smtp://mx.example.com?helo=a%0d%0ab", "want a host name"},
		{"smtps://mx.example.com?tls=starttls", "contradict"},
		{"smtp://mx.example.com?weight=-1", `weight="-1": want 0 to 100`},
		{"smtp://mx.example.com?weight=heavy", `weight="heavy"`},
		{"smtp://mx.example.com?rate=0", `rate="0": want mails a second, from 0.1 to 100000`},
		{"smtp://mx.example.com?rate=NaN", `rate="NaN"`},
		{"smtp://mx.example.com?messages=0", `messages="0"`},
		{"smtp://mx.example.com?age=5", `age="5": want how long a connection serves, such as 5m`},
		{"smtp://user:secret@mx.example.com?tls=none", "unencrypted"},
	}
	for _, tt := range tests {
		_, err := mail.ParseURL(tt.url)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q", tt.url, err, tt.want)
			continue
		}
		if msg := err.Error(); strings.Contains(msg, "secret") || strings.Contains(msg, "sec/ret") || strings.Contains(msg, "sec%ret") {
			t.Errorf("the error shows the password: %v", err)
		}
	}
}

func TestParseURLs(t *testing.T) {
	t.Parallel()
	got, err := mail.ParseURLs(" smtp://a.example?weight=3\n smtp://b.example smtp://c.example?weight=0 ")
	if err != nil || len(got) != 3 || got[0].Weight != 3 || got[1].Weight != 1 || got[2].Host != "c.example" || got[2].Weight != 0 {
		t.Errorf("%v, %v", got, err)
	}
	for urls, want := range map[string]string{
		"": "is empty", "smtp://a.example http://u:secret@b.example": `relay 2 of 2: SMTP URL has scheme "http"`, "smtp://a.example?weight=0": "stand by for",
	} {
		if _, err := mail.ParseURLs(urls); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: %v, want %q", urls, err, want)
		}
	}
}
