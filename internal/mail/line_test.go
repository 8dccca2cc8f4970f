package mail_test

import (
	"bytes"
	"context"
	"fmt"
	"testing"

	"pgregory.net/rapid"

	"github.com/onda-run/onda/internal/mail"
	"github.com/onda-run/onda/internal/smtptest"
)

// Whatever the relay does to a message and whenever it breaks off, what is told of each message is what became of it, also when its transaction was opened behind the content
// of the one before.
func TestLineTellsWhatBecameOfEach(t *testing.T) {
	t.Parallel()
	type fate struct {
		name   string
		script smtptest.Script
		states []mail.State // that may be told
	}
	fates := []fate{
		{"taken", smtptest.Accept(), []mail.State{mail.Sent}},
		{"taken ", smtptest.Accept(), []mail.State{mail.Sent}},
		{"refused at RCPT", smtptest.Reject("550 5.1.1 no such user"), []mail.State{mail.Failed}},
		{"put off at RCPT", smtptest.Reject("451 4.3.0 later"), []mail.State{mail.Deferred}},
		{"refused at DATA", smtptest.RejectData("554 5.7.1 no"), []mail.State{mail.Failed}},
		{"refused content", smtptest.RejectContent("554 5.7.1 spam"), []mail.State{mail.Failed}},
		{"put off content", smtptest.RejectContent("451 4.3.0 busy"), []mail.State{mail.Deferred}},
		{"421 to content", smtptest.RejectContent("421 4.3.2 going down"), []mail.State{mail.Deferred}},
		{"421 at RCPT", smtptest.Reject("421 4.7.0 enough"), []mail.State{mail.Deferred}},
		{"dropped at RCPT", smtptest.DropAtRcpt(), []mail.State{mail.NotTried}},
		{"dropped before content", smtptest.DropBeforeContent(), []mail.State{mail.NotTried}},
		{"dropped in content", smtptest.DropInContent(20), []mail.State{mail.NotTried, mail.Unknown}},
		{"dropped, accepted", smtptest.DropAfterContent(true), []mail.State{mail.Unknown}},
		{"dropped, lost", smtptest.DropAfterContent(false), []mail.State{mail.Unknown}},
		{"nonsense", smtptest.RejectContent("hello there"), []mail.State{mail.Unknown}},
		{"half an answer to RCPT", smtptest.Script{Rcpt: smtptest.Step{Half: true}}, []mail.State{mail.NotTried}},
		{"half an answer to DATA", smtptest.Script{Data: smtptest.Step{Half: true}}, []mail.State{mail.NotTried}},
		{"half an answer, accepted", smtptest.Script{End: smtptest.Step{Half: true}, Keep: true}, []mail.State{mail.Unknown}},
		{"half an answer, lost", smtptest.Script{End: smtptest.Step{Half: true}}, []mail.State{mail.Unknown}},
	}
	for _, extensions := range [][]string{{"PIPELINING", "8BITMIME"}, {"8BITMIME"}} {
		t.Run(extensions[0], func(t *testing.T) {
			t.Parallel()
			round := 0
			rapid.Check(t, func(r *rapid.T) {
				round++
				s := smtptest.Start(t, smtptest.Config{Extensions: extensions})
				defer s.Close()
				relay, err := mail.ParseURL(s.URL())
				if err != nil {
					r.Fatal(err)
				}
				p := mail.NewPool([]mail.Relay{relay}, mail.PoolConfig{Size: 2, MaxMessages: rapid.IntRange(1, 8).Draw(r, "messages on a connection")})
				line := p.Line()
				drawn := rapid.SliceOfN(rapid.IntRange(0, len(fates)-1), 1, 12).Draw(r, "fates")
				out := make([]*mail.Outgoing, len(drawn))
				for i, f := range drawn {
					to := fmt.Sprintf("r%d@example.com", i)
					s.Script(to, fates[f].script)
					out[i] = &mail.Outgoing{Envelope: mail.Envelope{From: sender, To: to}, Content: fmt.Appendf(nil, "Subject: %d\r\n\r\n%d\r\n", i, i), Ready: rapid.Bool().Draw(r, "ready")}
				}
				for i, m := range out {
					var next *mail.Outgoing
					if i+1 < len(out) && rapid.Bool().Draw(r, "known") {
						next = out[i+1]
					} else if rapid.Bool().Draw(r, "rest") {
						defer line.Rest()
					}
					res := line.Send(t.Context(), m, next)
					if next != nil && rapid.IntRange(0, 9).Draw(r, "given up") == 0 {
						line.Rest() // the next one's transaction may be open: nothing of it may come of that
					}
					f := fates[drawn[i]]
					ok := false
					for _, may := range f.states {
						ok = ok || res.State == may
					}
					took := s.MailsTo(m.To)
					least, most := 0, 1
					switch res.State {
					case mail.Sent:
						least = 1
					case mail.Unknown:
					default:
						most = 0
					}
					if !ok || len(took) < least || len(took) > most {
						r.Fatalf("message %d, %s: told %+v (%v), %d taken", i, f.name, res, res.Err, len(took))
					}
					for _, one := range took {
						if !bytes.Equal(one.Body, m.Content) {
							r.Fatalf("message %d, %s: taken as %q", i, f.name, one.Body)
						}
					}
				}
				line.Rest()
				if err := p.Close(context.Background()); err != nil {
					r.Fatal(err)
				}
				if all := len(s.Mails()); all > len(out) {
					r.Fatalf("%d mails of %d", all, len(out))
				}
			})
		})
	}
}

// The transaction of a message that is known goes out with the content before: one write and no wait between.
func TestLineOpensAhead(t *testing.T) {
	t.Parallel()
	s := smtptest.Start(t, smtptest.Config{})
	relay, err := mail.ParseURL(s.URL())
	if err != nil {
		t.Fatal(err)
	}
	p := mail.NewPool([]mail.Relay{relay}, mail.PoolConfig{Size: 1})
	line := p.Line()
	one := &mail.Outgoing{Envelope: mail.Envelope{From: sender, To: "one@example.com"}, Content: content}
	two := &mail.Outgoing{Envelope: mail.Envelope{From: sender, To: "two@example.com"}, Content: content}
	if res := line.Send(t.Context(), one, two); res.State != mail.Sent {
		t.Fatalf("%+v", res)
	}
	s.Wait("the next RCPT, before anybody sends it", func() bool { c := s.Commands(); return len(c) > 0 && c[len(c)-1] == "DATA" })
	if len(s.MailsTo("two@example.com")) != 0 {
		t.Error("it went out by itself")
	}
	// Another in its place would be sent to its recipient.
	other := &mail.Outgoing{Envelope: mail.Envelope{From: sender, To: "other@example.com"}, Content: content}
	if res := line.Send(t.Context(), other, nil); res.State != mail.Sent {
		t.Errorf("another, on a new connection: %+v", res)
	}
	if len(s.MailsTo("two@example.com")) != 0 || len(s.MailsTo("other@example.com")) != 1 {
		t.Errorf("%v", s.Mails())
	}
	line.Rest()
	if err := p.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
}
