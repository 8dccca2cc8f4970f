package mail_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/onda-run/onda/internal/mail"
	"github.com/onda-run/onda/internal/smtptest"
)

const (
	sender = "b+token@bounce.acme.example"
	rcpt   = "ana@example.com"
)

var content = []byte("Subject: hello\r\n\r\nfirst line\r\n.a dot\r\n")

func relay(t *testing.T, s *smtptest.Server) mail.Relay {
	t.Helper()
	r, err := mail.ParseURL(s.URL())
	if err != nil {
		t.Fatal(err)
	}
	r.TLSConfig = s.ClientTLS()
	return r
}

func dial(t *testing.T, s *smtptest.Server) *mail.Conn {
	t.Helper()
	c, err := mail.Dial(t.Context(), relay(t, s))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// TestOutcomes runs every outcome that a transaction can have, with and without PIPELINING, and looks at what the relay took.
func TestOutcomes(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		script smtptest.Script
		want   mail.Result
		taken  int  // mails at the relay
		usable bool // the connection afterwards
	}{
		{
			"accepted", smtptest.Accept(),
			mail.Result{State: mail.Sent, Code: 250, Enhanced: "2.0.0", Text: "Ok: queued as TEST12345", QueueID: "TEST12345"},
			1, true,
		},
		{
			"no such user", smtptest.Reject("550 5.1.1 <ana@example.com>: no such user"),
			mail.Result{State: mail.Failed, Code: 550, Enhanced: "5.1.1", Class: mail.Hard, Text: "<(address)>: no such user"},
			0, true,
		},
		{
			"several lines", smtptest.Reject("550 5.1.1 The account you tried to reach\n5.1.1 does not exist"),
			mail.Result{State: mail.Failed, Code: 550, Enhanced: "5.1.1", Class: mail.Hard, Text: "The account you tried to reach"},
			0, true,
		},
		{
			"greylisted", smtptest.Reject("451 4.7.1 try again later"),
			mail.Result{State: mail.Deferred, Code: 451, Enhanced: "4.7.1", Class: mail.Soft, Text: "try again later"},
			0, true,
		},
		{
			"status does not go with the code", smtptest.Reject("451 5.1.1 odd"),
			mail.Result{State: mail.Deferred, Code: 451, Class: mail.Soft, Text: "5.1.1 odd"},
			0, true,
		},
		{
			"refused at DATA", smtptest.RejectData("452 4.3.1 out of space"),
			mail.Result{State: mail.Deferred, Code: 452, Enhanced: "4.3.1", Class: mail.Soft, Text: "out of space"},
			0, true,
		},
		{
			"content refused", smtptest.RejectContent("554 5.7.1 looks like spam"),
			mail.Result{State: mail.Failed, Code: 554, Enhanced: "5.7.1", Class: mail.Block, Text: "looks like spam"},
			0, true,
		},
		{
			"content put off", smtptest.RejectContent("451 4.3.0 busy"),
			mail.Result{State: mail.Deferred, Code: 451, Enhanced: "4.3.0", Class: mail.Soft, Text: "busy"},
			0, true,
		},
		{
			"421 to the content", smtptest.RejectContent("421 4.3.2 going down"),
			mail.Result{State: mail.Deferred, Code: 421, Enhanced: "4.3.2", Class: mail.Soft, Text: "going down"},
			0, false,
		},
		{
			"421 to RCPT on a new connection", smtptest.Reject("421 4.7.0 too many"),
			mail.Result{State: mail.Deferred, Code: 421, Enhanced: "4.7.0", Class: mail.Soft, Text: "too many"},
			0, false,
		},
		{"dropped at RCPT", smtptest.DropAtRcpt(), mail.Result{State: mail.NotTried}, 0, false},
		{"dropped before the content", smtptest.DropBeforeContent(), mail.Result{State: mail.NotTried}, 0, false},
		{"dropped after the content, accepted", smtptest.DropAfterContent(true), mail.Result{State: mail.Unknown}, 1, false},
		{"dropped after the content, lost", smtptest.DropAfterContent(false), mail.Result{State: mail.Unknown}, 0, false},
		{"no SMTP reply to the content", smtptest.RejectContent("hello there"), mail.Result{State: mail.Unknown}, 0, false},
		{"354 to the content", smtptest.RejectContent("354 more"), mail.Result{State: mail.Unknown, Code: 0}, 0, false},
		{"no SMTP reply to RCPT", smtptest.Reject("what? no"), mail.Result{State: mail.NotTried}, 0, false},
	}
	for _, extensions := range [][]string{{"PIPELINING", "8BITMIME"}, {"8BITMIME"}} {
		for _, tt := range tests {
			t.Run(extensions[0]+"/"+tt.name, func(t *testing.T) {
				t.Parallel()
				s := smtptest.Start(t, smtptest.Config{Extensions: extensions})
				s.Script(rcpt, tt.script)
				c := dial(t, s)
				got := c.Send(t.Context(), mail.Envelope{From: sender, To: rcpt}, content)
				if diff := cmp.Diff(tt.want, got, cmpopts.IgnoreFields(mail.Result{}, "Err")); diff != "" {
					t.Errorf("(-want +got):\n%s%v", diff, got.Err)
				}
				if noAnswer := got.State == mail.Unknown || got.State == mail.NotTried; noAnswer != (got.Err != nil) {
					t.Errorf("state %s with error %v", got.State, got.Err)
				}
				if c.Usable() != tt.usable {
					t.Errorf("usable is %v, want %v", c.Usable(), tt.usable)
				}
				mails := s.Mails()
				if len(mails) != tt.taken {
					t.Fatalf("the relay took %d mails, want %d", len(mails), tt.taken)
				}
				for _, m := range mails {
					if m.From != sender || m.To != rcpt || !bytes.Equal(m.Body, content) {
						t.Errorf("the relay took %+v", m)
					}
				}
				if !tt.usable {
					again := c.Send(t.Context(), mail.Envelope{From: sender, To: "next@example.com"}, content)
					if again.State != mail.NotTried || len(s.MailsTo("next@example.com")) != 0 {
						t.Errorf("a broken connection gave %+v", again)
					}
					return
				}
				// A refusal must not touch the next message on the same connection.
				next := c.Send(t.Context(), mail.Envelope{From: sender, To: "next@example.com"}, content)
				if next.State != mail.Sent || len(s.MailsTo("next@example.com")) != 1 {
					t.Errorf("the next message: %+v, %v", next, next.Err)
				}
				if made, _ := s.Conns(); made != 1 {
					t.Errorf("%d connections", made)
				}
			})
		}
	}
}

// TestBreakInContent breaks the connection within a content so large that it cannot be written in one go.
func TestBreakInContent(t *testing.T) {
	t.Parallel()
	s := smtptest.Start(t, smtptest.Config{})
	s.Script(rcpt, smtptest.DropInContent(1000))
	large := bytes.Repeat([]byte("0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcd\r\n"), 1<<18)
	c := dial(t, s)
	got := c.Send(t.Context(), mail.Envelope{From: sender, To: rcpt}, large)
	if got.State != mail.NotTried || len(s.Mails()) != 0 {
		t.Errorf("got %+v, %v", got, got.Err)
	}
}

// TestTimeLimit stalls the relay at each point, and cancels or lets the message limit pass.
func TestTimeLimit(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		script func(smtptest.Step) smtptest.Script
		want   mail.State
		taken  int
	}{
		{"at RCPT", func(s smtptest.Step) smtptest.Script { return smtptest.Script{Rcpt: s} }, mail.NotTried, 0},
		{"at DATA", func(s smtptest.Step) smtptest.Script { return smtptest.Script{Data: s} }, mail.NotTried, 0},
		{"at the end", func(s smtptest.Step) smtptest.Script { return smtptest.Script{End: s, Keep: true} }, mail.Unknown, 1},
	}
	for _, tt := range tests {
		t.Run(tt.name+" by cancelling", func(t *testing.T) {
			t.Parallel()
			s := smtptest.Start(t, smtptest.Config{})
			reached, never := make(chan struct{}), make(chan struct{})
			s.Script(rcpt, tt.script(smtptest.Step{Reached: reached, Wait: never}))
			c := dial(t, s)
			ctx, cancel := context.WithCancel(t.Context())
			go func() { <-reached; cancel() }()
			got := c.Send(ctx, mail.Envelope{From: sender, To: rcpt}, content)
			if got.State != tt.want || len(s.Mails()) != tt.taken || c.Usable() {
				t.Errorf("got %+v, %v", got, got.Err)
			}
		})
		t.Run(tt.name+" by the limit", func(t *testing.T) {
			t.Parallel()
			s := smtptest.Start(t, smtptest.Config{})
			never := make(chan struct{})
			s.Script(rcpt, tt.script(smtptest.Step{Wait: never}))
			c := dial(t, s)
			c.SetMessageLimit(200 * time.Millisecond)
			got := c.Send(t.Context(), mail.Envelope{From: sender, To: rcpt}, content)
			if got.State != tt.want || c.Usable() {
				t.Errorf("got %+v, %v", got, got.Err)
			}
			s.Wait("the relay has taken what it read", func() bool { return len(s.Mails()) == tt.taken })
		})
	}
	t.Run("slow but in time", func(t *testing.T) {
		t.Parallel()
		s := smtptest.Start(t, smtptest.Config{})
		reached, release := make(chan struct{}), make(chan struct{})
		s.Script(rcpt, smtptest.Script{End: smtptest.Step{Reached: reached, Wait: release}})
		c := dial(t, s)
		go func() { <-reached; close(release) }()
		if got := c.Send(t.Context(), mail.Envelope{From: sender, To: rcpt}, content); got.State != mail.Sent {
			t.Errorf("got %+v, %v", got, got.Err)
		}
	})
	t.Run("cancelled before", func(t *testing.T) {
		t.Parallel()
		s := smtptest.Start(t, smtptest.Config{})
		c := dial(t, s)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if got := c.Send(ctx, mail.Envelope{From: sender, To: rcpt}, content); got.State != mail.NotTried || !c.Usable() {
			t.Errorf("got %+v", got)
		}
	})
}

// TestResetDropped breaks the connection at the RSET after a refusal: the refusal stands, the next message was not tried.
func TestResetDropped(t *testing.T) {
	t.Parallel()
	for _, extensions := range [][]string{{"PIPELINING"}, {}} {
		s := smtptest.Start(t, smtptest.Config{Extensions: extensions})
		refuse := smtptest.Reject("550 5.1.1 no such user")
		refuse.Reset = smtptest.Step{Drop: true}
		s.Script(rcpt, refuse)
		c := dial(t, s)
		if got := c.Send(t.Context(), mail.Envelope{From: sender, To: rcpt}, content); got.State != mail.Failed || got.Class != mail.Hard {
			t.Errorf("got %+v, %v", got, got.Err)
		}
		got := c.Send(t.Context(), mail.Envelope{From: sender, To: "next@example.com"}, content)
		if got.State != mail.NotTried || len(s.Mails()) != 0 {
			t.Errorf("got %+v, %v", got, got.Err)
		}
	}
}

// TestContentIsSentAsItIs sends what could be mistaken for an end of content.
func TestContentIsSentAsItIs(t *testing.T) {
	t.Parallel()
	s := smtptest.Start(t, smtptest.Config{})
	c := dial(t, s)
	tests := []struct{ body, want string }{
		{"A: b\r\n\r\n.\r\n..\r\n.x\r\n", "A: b\r\n\r\n.\r\n..\r\n.x\r\n"},
		{"A: b\r\n\r\nsmuggled\n.\nMAIL FROM:<x@y.example>\n", "A: b\r\n\r\nsmuggled\r\n.\r\nMAIL FROM:<x@y.example>\r\n"},
		{"A: b\r\n\r\nsmuggled\r.\rRSET\r\n.\n", "A: b\r\n\r\nsmuggled\r\n.\r\nRSET\r\n.\r\n"},
		{"A: b\r\n\r\nno end of line", "A: b\r\n\r\nno end of line\r\n"},
		{"A: b\r\n\r\n\r\r\n\n\n.", "A: b\r\n\r\n\r\n\r\n\r\n\r\n.\r\n"},
	}
	for i, tt := range tests {
		to := fmt.Sprintf("r%d@example.com", i)
		if got := c.Send(t.Context(), mail.Envelope{To: to}, []byte(tt.body)); got.State != mail.Sent {
			t.Fatalf("%q: %+v", tt.body, got)
		}
		mails := s.MailsTo(to)
		if len(mails) != 1 || string(mails[0].Body) != tt.want || mails[0].From != "" {
			t.Errorf("%q: the relay took %+v", tt.body, mails)
		}
	}
	if n := len(s.Mails()); n != len(tests) {
		t.Errorf("%d mails, want %d", n, len(tests))
	}
}

// A tail is sent behind the content of each message that has it, also when the next message's transaction is opened behind it.
func TestTail(t *testing.T) {
	t.Parallel()
	for _, extensions := range []string{"PIPELINING", "8BITMIME"} {
		s := smtptest.Start(t, smtptest.Config{Extensions: strings.Fields(extensions)})
		c := dial(t, s)
		tail := bytes.Repeat([]byte("a line of a file\r\n"), 20_000)
		var line []*mail.Outgoing
		for i, t := range [][]byte{tail, tail, nil, tail} {
			line = append(line, &mail.Outgoing{Envelope: mail.Envelope{To: fmt.Sprintf("r%d@example.com", i)}, Content: []byte(fmt.Sprintf("A: %d\r\n\r\n", i)), Tail: t, Ready: true})
		}
		for i, m := range line {
			var next *mail.Outgoing
			if i+1 < len(line) {
				next = line[i+1]
			}
			if got := c.SendThen(t.Context(), m, next); got.State != mail.Sent {
				t.Fatalf("%d: %+v", i, got)
			}
		}
		for i, m := range line {
			mails := s.MailsTo(m.To)
			if want := string(m.Content) + string(m.Tail); len(mails) != 1 || string(mails[0].Body) != want {
				t.Errorf("%s: the relay took %d mails for %d, or another content", extensions, len(mails), i)
			}
		}
	}
}

func TestExtensions(t *testing.T) {
	t.Parallel()
	const full, none = "8BITMIME SMTPUTF8", "PIPELINING"
	tests := []struct {
		name, offers, to, body string
		state                  mail.State
		enhanced, params       string
	}{
		{"plain", full, rcpt, "A: b\r\n\r\nhello", mail.Sent, "2.0.0", ""},
		{"8 bit", full, rcpt, "A: b\r\n\r\nolá", mail.Sent, "2.0.0", "BODY=8BITMIME"},
		{"8 bit not offered", none, rcpt, "A: b\r\n\r\nolá", mail.Failed, "5.6.3", ""},
		{"UTF-8 address", full, "josé@example.com", "A: b\r\n\r\nhello", mail.Sent, "2.0.0", "BODY=8BITMIME SMTPUTF8"},
		{"UTF-8 header", full, rcpt, "A: olá\r\n\r\nhello", mail.Sent, "2.0.0", "BODY=8BITMIME SMTPUTF8"},
		{"UTF-8 address not offered", none, "josé@example.com", "A: b\r\n\r\nhello", mail.Failed, "5.6.7", ""},
		{"international domain needs nothing", none, "ana@bücher.example", "A: b\r\n\r\nhello", mail.Sent, "2.0.0", ""},
		{"not an address", full, "ana@example.com>\r\nRCPT TO:<eve@example.com", "A: b\r\n\r\nhello", mail.Failed, "5.1.3", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := smtptest.Start(t, smtptest.Config{Extensions: strings.Fields(tt.offers)})
			c := dial(t, s)
			got := c.Send(t.Context(), mail.Envelope{From: sender, To: tt.to}, []byte(tt.body))
			if got.State != tt.state || got.Enhanced != tt.enhanced || !c.Usable() {
				t.Errorf("got %+v, %v", got, got.Err)
			}
			if strings.Contains(got.Text, "example") {
				t.Errorf("the result shows an address: %q", got.Text)
			}
			mails := s.Mails()
			if tt.state != mail.Sent {
				if len(mails) != 0 {
					t.Errorf("the relay took %+v", mails)
				}
				return
			}
			if len(mails) != 1 || mails[0].Params != tt.params {
				t.Errorf("the relay took %+v, want parameters %q", mails, tt.params)
			}
		})
	}
}

func TestDial(t *testing.T) {
	t.Parallel()
	for _, config := range []smtptest.Config{
		{},
		{TLS: smtptest.StartTLS},
		{TLS: smtptest.ImplicitTLS},
		{User: "onda", Password: "s3cret"},
		{TLS: smtptest.StartTLS, User: "onda", Password: "s3cret"},
		{TLS: smtptest.ImplicitTLS, User: "onda", Password: "s3cret"},
		{TLS: smtptest.StartTLS, User: "onda", Password: "s3cret", Auth: "GSSAPI LOGIN"},
		{TLS: smtptest.ImplicitTLS, User: "onda", Password: "s3cret", Auth: "LOGIN"},
	} {
		t.Run(fmt.Sprintf("tls %d user %q auth %q", config.TLS, config.User, config.Auth), func(t *testing.T) {
			t.Parallel()
			s := smtptest.Start(t, config)
			c := dial(t, s)
			if got := c.Send(t.Context(), mail.Envelope{From: sender, To: rcpt}, content); got.State != mail.Sent {
				t.Errorf("got %+v, %v", got, got.Err)
			}
			if len(s.Mails()) != 1 {
				t.Error("nothing was taken")
			}
			if err := c.Close(); err != nil {
				t.Errorf("close: %v", err)
			}
			if commands := s.Commands(); commands[len(commands)-1] != "QUIT" {
				t.Errorf("the last command was %s", commands[len(commands)-1])
			}
		})
	}
}

func TestDialFails(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		config smtptest.Config
		change func(*mail.Relay)
		want   string
		auth   bool
	}{
		{"wrong password", smtptest.Config{TLS: smtptest.StartTLS, User: "onda", Password: "s3cret"}, func(r *mail.Relay) { r.Password = "wrong" }, "535 5.7.8 wrong user or password", true},
		{"no mechanism in common", smtptest.Config{TLS: smtptest.StartTLS, User: "onda", Password: "s3cret", Auth: "GSSAPI"}, nil, "it offers GSSAPI", true},
		{"no AUTH", smtptest.Config{}, func(r *mail.Relay) { r.User, r.Password = "onda", "s3cret" }, "it offers no AUTH", true},
		{"no STARTTLS", smtptest.Config{}, func(r *mail.Relay) { r.TLS = mail.TLSStart }, "does not support STARTTLS", false},
		{"unknown certificate", smtptest.Config{TLS: smtptest.StartTLS}, func(r *mail.Relay) { r.TLSConfig = nil }, "certificate", false},
		{"unknown certificate, implicit", smtptest.Config{TLS: smtptest.ImplicitTLS}, func(r *mail.Relay) { r.TLSConfig = nil }, "certificate", false},
		{"greeted with 554", smtptest.Config{Greeting: smtptest.Step{Reply: "554 5.7.1 no service for you"}}, nil, "no service for you", false},
		{"dropped at the greeting", smtptest.Config{Greeting: smtptest.Step{Drop: true}}, nil, "EOF", false},
		{"dropped at EHLO", smtptest.Config{Hello: smtptest.Step{Drop: true}}, nil, "EHLO", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := smtptest.Start(t, tt.config)
			r := relay(t, s)
			if tt.change != nil {
				tt.change(&r)
			}
			_, err := mail.Dial(t.Context(), r)
			if !errors.Is(err, mail.ErrRelayAway) || errors.Is(err, mail.ErrRelayAuth) != tt.auth || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
			if err != nil && (strings.Contains(err.Error(), "s3cret") || !strings.Contains(err.Error(), s.Addr())) {
				t.Errorf("the error shows the password or does not name the relay: %v", err)
			}
			s.Wait("no connection is left open", func() bool { _, open := s.Conns(); return open == 0 })
		})
	}
	t.Run("nobody listens", func(t *testing.T) {
		t.Parallel()
		s := smtptest.Start(t, smtptest.Config{})
		s.Close()
		if _, err := mail.Dial(t.Context(), relay(t, s)); !errors.Is(err, mail.ErrRelayAway) || !strings.Contains(err.Error(), "refused") {
			t.Errorf("got %v", err)
		}
	})
	for name, config := range map[string]func(smtptest.Step) smtptest.Config{
		"greeting": func(s smtptest.Step) smtptest.Config { return smtptest.Config{Greeting: s} },
		"EHLO":     func(s smtptest.Step) smtptest.Config { return smtptest.Config{Hello: s} },
	} {
		t.Run("cancelled at the "+name, func(t *testing.T) {
			t.Parallel()
			reached, never := make(chan struct{}), make(chan struct{})
			s := smtptest.Start(t, config(smtptest.Step{Reached: reached, Wait: never}))
			ctx, cancel := context.WithCancel(t.Context())
			go func() { <-reached; cancel() }()
			if _, err := mail.Dial(ctx, relay(t, s)); !errors.Is(err, mail.ErrRelayAway) || !errors.Is(err, context.Canceled) {
				t.Errorf("got %v", err)
			}
		})
	}
}
