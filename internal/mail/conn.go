package mail

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/textproto"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	gomail "github.com/wneessen/go-mail"
	"github.com/wneessen/go-mail/smtp"
)

// State is what became of one attempt to hand a message over.
type State string

// The states of an attempt.
const (
	Sent     State = "sent"      // the relay answered 2xx to the content
	Deferred State = "deferred"  // the relay answered 4xx: try again later
	Failed   State = "failed"    // the relay answered 5xx, or the message cannot be sent as it is: do not try again
	Unknown  State = "unknown"   // the connection broke between the end of the content and its answer: it may have been sent
	NotTried State = "not-tried" // the connection broke before the end of the content: certainly not sent, safe to try at once
)

// Envelope is the SMTP sender and the one recipient of a message. An empty From is the null sender of reports.
type Envelope struct{ From, To string }

// Result is the outcome of one attempt.
type Result struct {
	State     State
	Code      int    // SMTP reply code; 0 without an answer
	Enhanced  string // RFC 3463 status, such as 5.1.1; "" if the relay gave none
	Class     Class  // for Deferred and Failed
	Text      string // first line of the answer, addresses blanked out
	QueueID   string // the relay's own name for a message it took, where it tells one
	RelayAway bool   // with NotTried: there was no connection to be had
	Err       error  // with Unknown and NotTried: what broke, for the log
}

// ErrRelayAway is what every failure to get a usable connection matches: no answer, no TLS, no authentication. Messages are
// held, not counted as tried.
var ErrRelayAway = errors.New("mail relay is away")

// ErrRelayAuth matches, besides ErrRelayAway, when the relay refused our user or offers no mechanism we know.
var ErrRelayAuth = errors.New("mail relay refuses to authenticate us")

// Times of a connection.
const (
	dialLimit           = 15 * time.Second
	quitLimit           = 2 * time.Second
	defaultMessageLimit = 30 * time.Second
)

// Conn is one connection to a relay. It serves one goroutine at a time.
type Conn struct {
	client *smtp.Client
	raw    net.Conn
	limit  time.Duration
	opened time.Time
	used   time.Time
	sent   int // messages tried
	to     *destination

	pipelining, eightBit, utf8 bool

	reset  bool // a transaction is open at the relay: RSET before the next
	broken bool // nothing more can be sent
	buf    []byte
	tail   []byte    // of the message, after buf
	after  []byte    // what is after the tail
	ahead  []string  // the commands of a transaction that were written behind the content before, and not answered yet
	opens  *Outgoing // whose they are
}

// Outgoing is a message on its way.
type Outgoing struct {
	Envelope
	// Content is the whole message, but for the tail.
	Content []byte
	// Tail comes after Content. Many messages may share one: it is sent from where it is. Only with Ready.
	Tail []byte
	// Ready says that Content is as DATA takes it and of ASCII alone, as Skeleton.Append makes it; else it may have any line ends.
	Ready bool
}

// Dial connects, encrypts and authenticates. Any error matches ErrRelayAway and names the relay and the remedy.
func Dial(ctx context.Context, r Relay) (*Conn, error) {
	c, err := dial(ctx, r)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrRelayAway, r, err)
	}
	return c, nil
}

func dial(ctx context.Context, r Relay) (*Conn, error) {
	helo := r.HELO
	if helo == "" {
		var err error
		if helo, err = os.Hostname(); err != nil || helo == "" {
			helo = "localhost"
		}
	}
	config := r.TLSConfig.Clone()
	if config == nil {
		config = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	if config.ServerName == "" {
		config.ServerName = r.Host
	}
	policy := gomail.NoTLS
	if r.TLS == TLSStart {
		policy = gomail.TLSMandatory
	}
	// go-mail does not close a connection on which EHLO or TLS failed, and does not look at ctx once it has dialled: so we keep the
	// connection ourselves, and close it when ctx ends before all is done.
	var raw net.Conn
	unwatch := func() bool { return true }
	dialer := func(dialling context.Context, network, addr string) (conn net.Conn, err error) {
		if r.TLS == TLSImplicit {
			conn, err = (&tls.Dialer{Config: config}).DialContext(dialling, network, addr)
		} else {
			conn, err = (&net.Dialer{}).DialContext(dialling, network, addr)
		}
		if err == nil {
			raw = conn
			unwatch = context.AfterFunc(ctx, func() { _ = conn.Close() })
		}
		return conn, err
	}
	client, err := gomail.NewClient(r.Host,
		gomail.WithPort(r.Port), gomail.WithTimeout(dialLimit), gomail.WithHELO(helo),
		gomail.WithTLSPolicy(policy), gomail.WithTLSConfig(config), gomail.WithDialContextFunc(dialer))
	if err != nil {
		return nil, err
	}
	s, err := client.DialToSMTPClientWithContext(ctx)
	if err == nil {
		err = authenticate(s, r)
	}
	if !unwatch() {
		err = context.Cause(ctx)
	}
	if err != nil {
		if raw != nil {
			_ = raw.Close()
		}
		return nil, err
	}
	c := &Conn{client: s, raw: raw, limit: defaultMessageLimit, opened: time.Now(), used: time.Now()}
	c.pipelining, _ = s.Extension("PIPELINING")
	c.eightBit, _ = s.Extension("8BITMIME")
	c.utf8, _ = s.Extension("SMTPUTF8")
	return c, nil
}

// authenticate picks the mechanism itself: go-mail's discovery does not see that a connection it was given is encrypted.
func authenticate(s *smtp.Client, r Relay) error {
	if r.User == "" {
		return nil
	}
	ok, offered := s.Extension("AUTH")
	if !ok {
		return fmt.Errorf("%w: it offers no AUTH on this port; is tls right?", ErrRelayAuth)
	}
	plaintext := r.TLS == TLSNone // ParseURL allows that on this machine only
	for _, mechanism := range []struct {
		name string
		auth smtp.Auth
	}{
		{"PLAIN", smtp.PlainAuth("", r.User, r.Password, r.Host, plaintext)},
		{"LOGIN", smtp.LoginAuth(r.User, r.Password, r.Host, plaintext)},
		{"SCRAM-SHA-256", smtp.ScramSHA256Auth(r.User, r.Password)},
		{"CRAM-MD5", smtp.CRAMMD5Auth(r.User, r.Password)},
	} {
		if !slices.Contains(strings.Fields(strings.ToUpper(offered)), mechanism.name) {
			continue
		}
		if err := s.Auth(mechanism.auth); err != nil {
			var answer *textproto.Error
			if errors.As(err, &answer) {
				return fmt.Errorf("%w: %d %s", ErrRelayAuth, answer.Code, redact(answer.Msg))
			}
			return err
		}
		return nil
	}
	return fmt.Errorf("%w: it offers %s, we know PLAIN, LOGIN, SCRAM-SHA-256 and CRAM-MD5", ErrRelayAuth, redact(offered))
}

// SetMessageLimit sets how long one message may take (default 30 s); a lease's takeover waits this long.
func (c *Conn) SetMessageLimit(d time.Duration) { c.limit = d }

// Usable tells whether the connection can take another message.
func (c *Conn) Usable() bool { return !c.broken }

// Close says QUIT, if the connection still works, and closes it.
func (c *Conn) Close() error {
	if !c.broken && c.opens == nil { // else QUIT would be the other message's content
		c.broken = true
		_ = c.raw.SetDeadline(time.Now().Add(quitLimit))
		if err := c.client.Quit(); err == nil {
			return nil
		}
	}
	return c.raw.Close()
}

// Send hands one message over and tells precisely what became of it. The body is a whole message with any line ends; it is sent
// with CRLF and dots stuffed. ctx and the message limit end it at once, which makes it NotTried or Unknown like any other break.
func (c *Conn) Send(ctx context.Context, env Envelope, body []byte) Result {
	return c.SendThen(ctx, &Outgoing{Envelope: env, Content: body}, nil)
}

// SendThen does the same, and with PIPELINING opens the next message's transaction in the same write (RFC 2920 section 3.1), so that no round trip is spent on it: what is
// called next must then be SendThen for that message, or Close. Nothing of the next message itself goes out before that, so it is never Unknown by this one's end.
func (c *Conn) SendThen(ctx context.Context, m, next *Outgoing) Result {
	if c.broken {
		return Result{State: NotTried, Err: net.ErrClosed}
	}
	if err := ctx.Err(); err != nil {
		return c.leave(err)
	}
	group := c.ahead
	if c.opens != nil && c.opens != m {
		// The relay waits for the content of another: whatever was written now would be that.
		return c.leave(errors.New("another message's transaction is open"))
	}
	if c.opens == nil {
		mailFrom, rcptTo, failed := c.commands(m)
		if failed != nil {
			return *failed
		}
		group = []string{mailFrom, rcptTo, "DATA"}
		if c.reset {
			group = []string{"RSET", mailFrom, rcptTo, "DATA"}
		}
	}
	c.tail, c.after = m.Tail, c.after[:0]
	switch {
	case len(m.Tail) > 0:
		c.buf, c.after = append(c.buf[:0], m.Content...), append(c.after, end...)
	case m.Ready:
		c.buf = append(append(c.buf[:0], m.Content...), end...)
	default:
		c.buf = appendContent(c.buf[:0], m.Content)
	}

	deadline := time.Now().Add(c.limit)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	if err := c.raw.SetDeadline(deadline); err != nil {
		return c.breaks(NotTried, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = c.raw.SetDeadline(time.Unix(1, 0)) })
	defer func() {
		if !stop() {
			c.broken = true // its deadline may still be moved under us
		}
		if c.broken {
			_ = c.raw.Close()
		}
	}()
	c.sent++
	res := c.transact(group, next)
	c.used = time.Now()
	if c.tail = nil; cap(c.buf) > maxRoom {
		c.buf = nil
	}
	return res
}

// maxRoom is how large a message may have been for its room to be kept for the next.
const maxRoom = 1 << 20

// leave gives a message up before anything of it went out. A transaction that was opened ahead for it can only be ended by ending the connection.
func (c *Conn) leave(err error) Result {
	if c.opens == nil {
		return Result{State: NotTried, Err: err}
	}
	res := c.breaks(NotTried, err)
	_ = c.raw.Close()
	return res
}

// commands writes MAIL and RCPT, or tells why this message cannot be sent through this relay.
func (c *Conn) commands(m *Outgoing) (mailFrom, rcptTo string, failed *Result) {
	env, body := m.Envelope, m.Content
	fail := func(status, text string, class Class) (string, string, *Result) {
		return "", "", &Result{State: Failed, Enhanced: status, Class: class, Text: text}
	}
	to, err := envelopeAddress(env.To)
	if err != nil {
		return fail("5.1.3", err.Error(), Hard)
	}
	from := ""
	if env.From != "" {
		if from, err = envelopeAddress(env.From); err != nil {
			return fail("5.1.7", "sender: "+err.Error(), Policy)
		}
	}
	mailFrom, rcptTo = "MAIL FROM:<"+from+">", "RCPT TO:<"+to+">"
	eight, eightHeader := false, false
	if !m.Ready {
		header := body
		if i := bytes.Index(body, []byte("\r\n\r\n")); i >= 0 {
			header = body[:i]
		}
		eight = has8Bit(body)
		eightHeader = eight && has8Bit(header)
	}
	switch needsUTF8 := has8Bit([]byte(from)) || has8Bit([]byte(to)) || eightHeader; {
	case needsUTF8 && !c.utf8:
		return fail("5.6.7", "the address or header needs SMTPUTF8, which the relay does not offer", Policy)
	case needsUTF8:
		mailFrom += " BODY=8BITMIME SMTPUTF8" // RFC 6531 section 3.4: offering SMTPUTF8 implies 8BITMIME
	case eight && !c.eightBit:
		return fail("5.6.3", "the content needs 8BITMIME, which the relay does not offer", Policy)
	case eight:
		mailFrom += " BODY=8BITMIME"
	}
	return mailFrom, rcptTo, nil
}

// transact runs one mail transaction: the group of its commands, and the content that is in c.buf, end included.
func (c *Conn) transact(group []string, next *Outgoing) Result {
	// With PIPELINING (RFC 2920) the group goes out in one write; else each command waits for the answer before.
	written := c.opens != nil
	c.ahead, c.opens = nil, nil
	if c.pipelining && !written {
		if err := c.write(group...); err != nil {
			return c.breaks(NotTried, err)
		}
	}
	var refused *Result
	for _, command := range group {
		if !c.pipelining {
			if refused != nil {
				break
			}
			if err := c.write(command); err != nil {
				return c.breaks(NotTried, err)
			}
		}
		code, text, err := c.read()
		if err != nil {
			if refused != nil { // the answer that counts was read
				c.broken = true
				return *refused
			}
			return c.breaks(NotTried, err)
		}
		switch {
		case command == "RSET":
			if code/100 != 2 {
				return c.breaks(NotTried, fmt.Errorf("relay answered %d to RSET", code))
			}
			c.reset = false
			continue
		case command == "DATA" && code == 354 && refused != nil:
			// It takes content for nobody: end it empty, and read what it says to that (RFC 2920 section 3.1).
			if err := c.write("."); err != nil {
				c.broken = true
				return *refused
			}
			if _, _, err := c.read(); err != nil {
				c.broken = true
				return *refused
			}
			c.reset = true
			continue
		case command == "DATA" && code == 354, command != "DATA" && code/100 == 2:
			c.reset = true
			continue
		case refused != nil:
			continue // what follows a refusal follows from it
		}
		c.reset = true
		if code == 421 { // the relay closes the connection, RFC 5321 section 3.8
			c.broken = true
			if c.sent > 1 { // because this connection has served its time: nothing about this message
				return Result{State: NotTried, Code: code, Err: fmt.Errorf("relay closes the connection: %d %s", code, redact(text))}
			}
		}
		if code/100 != 4 && code/100 != 5 || written && code == 503 { // 503: it has not ended the transaction before, so it says nothing about this message
			return c.breaks(NotTried, fmt.Errorf("relay answered %d to %s", code, strings.SplitN(command, " ", 2)[0]))
		}
		r := refusal(code, text)
		if c.broken {
			return r
		}
		refused = &r
	}
	if refused != nil {
		return *refused
	}
	return c.content(next)
}

// end is the line that ends the content.
const end = ".\r\n"

func (c *Conn) content(next *Outgoing) Result {
	size := len(c.buf) + len(c.tail) + len(c.after)
	last := &c.buf
	if len(c.tail) > 0 {
		last = &c.after
	}
	if next != nil && c.pipelining {
		if mailFrom, rcptTo, failed := c.commands(next); failed == nil { // else it is said when its turn comes
			c.ahead, c.opens = []string{mailFrom, rcptTo, "DATA"}, next
			for _, l := range c.ahead {
				*last = append(append(*last, l...), "\r\n"...)
			}
		}
	}
	w := c.client.Text.W
	n, err := w.Write(c.buf)
	for _, b := range [][]byte{c.tail, c.after} {
		if err == nil && len(b) > 0 {
			var more int
			more, err = w.Write(b)
			n += more
		}
	}
	if err == nil {
		err = w.Flush()
	}
	if err != nil {
		// What is certain: a message whose end was not handed to the system at all cannot have been taken. Over TLS a record
		// counts once it is written whole, and the relay reads none that is not.
		if handed := n - w.Buffered(); handed <= size-len(end) {
			return c.breaks(NotTried, err)
		}
		return c.breaks(Unknown, err)
	}
	code, text, err := c.read()
	switch {
	case err != nil:
		return c.breaks(Unknown, err)
	case code/100 == 2:
		c.reset = false
		status, rest := splitEnhanced(code, firstLine(text))
		return Result{State: Sent, Code: code, Enhanced: status, Text: redact(rest), QueueID: queueID(rest)}
	case code/100 == 4, code/100 == 5:
		// The transaction is over (RFC 5321 section 4.1.1.4), and relays that think otherwise are told so, unless the next has begun.
		c.reset = c.opens == nil
		c.broken = code == 421
		return refusal(code, text)
	default: // no answer that RFC 5321 allows here
		return c.breaks(Unknown, fmt.Errorf("relay answered %d to the content", code))
	}
}

func (c *Conn) write(lines ...string) error {
	for _, l := range lines {
		if _, err := c.client.Text.W.WriteString(l + "\r\n"); err != nil {
			return err
		}
	}
	return c.client.Text.W.Flush()
}

// read reads an answer, whose lines are separated by \n in text. A line without its end is none: textproto takes what there was before a connection broke for a whole line.
func (c *Conn) read() (code int, text string, err error) {
	for first := true; ; first = false {
		line, err := c.client.Text.R.ReadString('\n')
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return 0, "", err
		}
		line = strings.TrimRight(line, "\r\n")
		n, last, ok := answerLine(line)
		switch {
		case first && !ok:
			return 0, "", fmt.Errorf("relay answered what is no answer: %q", redact(line[:min(len(line), 80)]))
		case first:
			code, text = n, line[min(4, len(line)):]
		case ok && n == code:
			text += "\n" + line[min(4, len(line)):]
		default: // of a relay that forgets the code on the lines between
			text, last = text+"\n"+line, false
		}
		if last {
			return code, text, nil
		}
	}
}

// answerLine reads the code that a line of an answer begins with, and whether it is the last line (RFC 5321 section 4.2).
func answerLine(line string) (code int, last, ok bool) {
	if len(line) == 3 { // with neither space nor text, which section 4.2 bears with
		line += " "
	}
	if len(line) < 4 || line[3] != ' ' && line[3] != '-' {
		return 0, false, false
	}
	code, err := strconv.Atoi(line[:3])
	return code, line[3] == ' ', err == nil && code >= 100
}

// breaks ends the connection with an outcome that no answer decides.
func (c *Conn) breaks(s State, err error) Result {
	c.broken = true
	return Result{State: s, Err: err}
}

func refusal(code int, text string) Result {
	status, _ := splitEnhanced(code, text)
	_, first := splitEnhanced(code, firstLine(text))
	r := Result{State: Failed, Code: code, Enhanced: status, Class: Classify(code, status, text), Text: redact(first)}
	if code/100 == 4 {
		r.State = Deferred
	}
	return r
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}

var queueIDs = pattern(`(?i)(?:queued as|queued mail for delivery.*internalid=|\bid=|message[- ]?id:?|accepted for delivery,? (?:as )?)\s*<?([A-Za-z0-9][A-Za-z0-9._+/=-]{3,63})`)

// queueID finds the relay's own name for a message in its answer: Postfix, Exim, Exchange, go-smtp's mailbox and their like.
func queueID(text string) string {
	if m := queueIDs().FindStringSubmatch(text); m != nil {
		return m[1]
	}
	if i := strings.Index(text, " - gsmtp"); i > 0 { // 2.0.0 OK  1700000000 abc-123.45 - gsmtp
		fields := strings.Fields(text[:i])
		return fields[len(fields)-1]
	}
	return ""
}

// appendContent appends a message as DATA wants it: every line end CRLF, so that no bare one can smuggle an end of content past a
// relay, leading dots doubled (RFC 5321 section 4.5.2), and the end.
func appendContent(dst, body []byte) []byte {
	for len(body) > 0 {
		line, rest, _ := bytes.Cut(body, []byte("\n"))
		body = rest
		line = bytes.TrimSuffix(line, []byte("\r"))
		for {
			part, more, bare := bytes.Cut(line, []byte("\r"))
			if len(part) > 0 && part[0] == '.' {
				dst = append(dst, '.')
			}
			dst = append(append(dst, part...), "\r\n"...)
			if !bare {
				break
			}
			line = more
		}
	}
	return append(dst, end...)
}

func has8Bit(b []byte) bool {
	for _, c := range b {
		if c >= 0x80 {
			return true
		}
	}
	return false
}
