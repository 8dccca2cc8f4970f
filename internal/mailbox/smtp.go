package mailbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	netmail "net/mail"
	"net/textproto"
	"strings"
	"sync"
	"time"

	"github.com/emersion/go-message/charset"
	"github.com/emersion/go-sasl"
	"github.com/emersion/go-smtp"
	"go.uber.org/zap"
)

// maxMail is the largest mail taken, in bytes.
const maxMail = 25 << 20

func (s *Server) newSMTP() *smtp.Server {
	server := smtp.NewServer(smtp.BackendFunc(func(*smtp.Conn) (smtp.Session, error) { return &session{server: s}, nil }))
	server.Domain = "mailbox.localhost"
	server.MaxMessageBytes = maxMail
	server.MaxRecipients = 100
	server.EnableSMTPUTF8 = true
	server.AllowInsecureAuth = true // loopback only
	server.ErrorLog = zap.NewStdLog(s.log)
	// No ReadTimeout: go-smtp would move the deadline that stopSMTP sets.
	return server
}

// senders are the open connections, so that they can be ended gently: go-smtp's Shutdown waits for idle ones for ever, and its
// Close cuts off answers.
type senders struct {
	net.Listener

	mu      sync.Mutex
	conns   map[*sender]struct{}
	stopped bool
}

type sender struct {
	net.Conn
	of *senders
}

func (s *senders) watch(l net.Listener) net.Listener {
	s.Listener, s.conns = l, map[*sender]struct{}{}
	return s
}

// Accept keeps the connection in mind.
func (s *senders) Accept() (net.Conn, error) {
	c, err := s.Listener.Accept()
	if err != nil {
		return nil, err
	}
	watched := &sender{c, s}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conns[watched] = struct{}{}
	if s.stopped {
		_ = c.SetReadDeadline(time.Unix(1, 0))
	}
	return watched, nil
}

// Close forgets the connection.
func (c *sender) Close() error {
	c.of.mu.Lock()
	delete(c.of.conns, c)
	c.of.mu.Unlock()
	return c.Conn.Close()
}

// stopSMTP takes no more mail. A sender whose mail was read whole still gets its answer; whoever is in the middle is cut off, and
// knows that nothing was taken.
func (s *Server) stopSMTP(ctx context.Context) {
	s.senders.mu.Lock()
	s.senders.stopped = true
	for c := range s.senders.conns {
		_ = c.SetReadDeadline(time.Unix(1, 0))
	}
	s.senders.mu.Unlock()
	err := s.smtp.Shutdown(ctx)
	_ = s.senders.Close() // go-smtp does not know it yet when Serve has hardly begun
	if err != nil {
		s.log.Warn("mailbox: senders are still connected", zap.Error(err))
		s.senders.mu.Lock()
		for c := range s.senders.conns {
			_ = c.Conn.Close()
		}
		s.senders.mu.Unlock()
	}
}

// session is one sender.
type session struct {
	server *Server
	from   string
	to     []string
	body   bytes.Buffer
}

// AuthMechanisms offers PLAIN, for programs that insist on a password.
func (s *session) AuthMechanisms() []string { return []string{sasl.Plain} }

// Auth lets everyone in.
func (s *session) Auth(string) (sasl.Server, error) {
	return sasl.NewPlainServer(func(_, _, _ string) error { return nil }), nil
}

// Reset forgets the transaction.
func (s *session) Reset() { s.from, s.to = "", nil }

// Logout has nothing to free.
func (s *session) Logout() error { return nil }

// Mail begins a transaction.
func (s *session) Mail(from string, _ *smtp.MailOptions) error {
	s.from = from
	return nil
}

// Rcpt asks the rules.
func (s *session) Rcpt(to string, _ *smtp.RcptOptions) error {
	if len(to) > 500 || len(s.from) > 500 {
		return &smtp.SMTPError{Code: 553, EnhancedCode: smtp.EnhancedCode{5, 1, 3}, Message: "Address too long"}
	}
	refusal := s.server.judge.refuse(to)
	if refusal == nil && s.server.config.Judge != nil {
		if refusal = s.server.config.Judge(to); refusal != nil {
			s.server.judge.mu.Lock()
			s.server.judge.refused++
			s.server.judge.mu.Unlock()
		}
	}
	if refusal != nil {
		e := &smtp.SMTPError{Code: refusal.Code, Message: clean(refusal.Text)}
		if _, err := fmt.Sscanf(refusal.Enhanced, "%d.%d.%d", &e.EnhancedCode[0], &e.EnhancedCode[1], &e.EnhancedCode[2]); err != nil {
			e.EnhancedCode = smtp.EnhancedCodeNotSet
		}
		return e
	}
	s.to = append(s.to, to)
	return nil
}

// Data takes the mail: once for every recipient. The answer is given when all of it is stored.
func (s *session) Data(r io.Reader) error {
	s.body.Reset()
	if s.body.Cap() > 1<<20 {
		s.body = bytes.Buffer{} // one huge mail shall not hold its memory as long as the connection
	}
	if _, err := s.body.ReadFrom(r); err != nil {
		var answer *smtp.SMTPError
		if errors.As(err, &answer) {
			return answer
		}
		return &smtp.SMTPError{Code: 451, EnhancedCode: smtp.EnhancedCode{4, 4, 2}, Message: "The content did not arrive whole"}
	}
	raw := s.body.Bytes()
	keep := s.to
	if hook := s.server.config.OnMail; hook != nil {
		keep = nil
		for _, to := range s.to {
			handled, err := hook(s.server.ctx, to, raw)
			if err != nil {
				s.server.log.Warn("mailbox: mail was not taken over", zap.Error(err))
				return &smtp.SMTPError{Code: 451, EnhancedCode: smtp.EnhancedCode{4, 3, 0}, Message: "Not taken over, try again later"}
			}
			if handled {
				s.server.handled.Add(1)
			} else {
				keep = append(keep, to)
			}
		}
		if len(keep) == 0 {
			return nil
		}
	}
	from, subject, id := readHeader(raw)
	now := time.Now().UnixMicro()
	mails := make([]pending, len(keep))
	for i, to := range keep {
		mails[i] = pending{meta: joinMeta(to, s.from, from, subject, id), raw: raw, at: now}
	}
	first, err := s.server.store.append(mails...)
	if err != nil {
		s.server.log.Error("mailbox: mail was not stored", zap.Error(err))
		return &smtp.SMTPError{Code: 452, EnhancedCode: smtp.EnhancedCode{4, 3, 1}, Message: "Not stored, try again later"}
	}
	return &smtp.SMTPError{Code: 250, EnhancedCode: smtp.EnhancedCode{2, 0, 0}, Message: fmt.Sprintf("OK: queued as mail%d", first)}
}

// readHeader takes what the list shows out of a mail's header, by hand: this is on the path of every mail.
func readHeader(raw []byte) (from, subject, id string) {
	for len(raw) > 0 {
		line, rest, _ := bytes.Cut(raw, []byte("\n"))
		raw = rest
		line = bytes.TrimRight(line, "\r")
		if len(line) == 0 {
			break
		}
		name, value, ok := bytes.Cut(line, []byte(":"))
		if !ok || len(name) > 10 {
			continue
		}
		var target *string
		switch textproto.CanonicalMIMEHeaderKey(string(name)) {
		case "From":
			target = &from
		case "Subject":
			target = &subject
		case "Message-Id":
			target = &id
		default:
			continue
		}
		full := string(value)
		for len(raw) > 0 && (raw[0] == ' ' || raw[0] == '\t') {
			line, rest, _ := bytes.Cut(raw, []byte("\n"))
			full += string(bytes.TrimRight(line, "\r"))
			raw = rest
		}
		if *target == "" {
			*target = strings.TrimSpace(full)
		}
	}
	decoder := mime.WordDecoder{CharsetReader: charset.Reader}
	if strings.Contains(subject, "=?") {
		if decoded, err := decoder.DecodeHeader(subject); err == nil {
			subject = decoded
		}
	}
	if strings.Contains(from, "=?") || strings.Contains(from, `"`) {
		if a, err := (&netmail.AddressParser{WordDecoder: &decoder}).Parse(from); err == nil {
			if from = a.Address; a.Name != "" {
				from = a.Name + " <" + a.Address + ">"
			}
		}
	}
	return clip(clean(from), 500), clip(clean(subject), 1000), clip(clean(id), 1000)
}

// clean makes one line of valid text.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "\ufffd"))
}

// clip shortens text to at most n bytes.
func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n], "")
}
