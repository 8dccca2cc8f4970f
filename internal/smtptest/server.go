// Package smtptest is an SMTP server for tests that misbehaves on demand: it refuses, breaks off and stalls at any point of a
// transaction, as a script for the recipient says, and keeps what it accepted. It speaks the protocol itself, since a well-made
// server library cannot be brought to break off between the end of a message and its answer.
package smtptest

import (
	"bufio"
	"bytes"
	"cmp"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"net/textproto"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// Config is how a server presents itself. The zero value offers everything a modern relay does, without TLS and AUTH.
type Config struct {
	Extensions []string // of EHLO; nil: PIPELINING, 8BITMIME, SMTPUTF8, ENHANCEDSTATUSCODES
	TLS        TLS
	User       string // with Password: AUTH is offered, and required before MAIL
	Password   string
	Auth       string // mechanisms offered, "PLAIN LOGIN" if empty
	Greeting   Step   // instead of 220
	Hello      Step   // instead of the answer to EHLO and HELO
	Handshake  Step   // instead of TLS's: a Reply is in clear text, and ends the connection
	MaxMails   int    // 421 to MAIL after so many transactions on a connection; 0: never
	// Only tells which connections, counted from 1, meet Greeting, Hello and Handshake; nil: all.
	Only func(conn int) bool
}

// TLS says how a server encrypts, with a certificate of its own making.
type TLS int

// Without TLS, with STARTTLS, or from the first byte.
const (
	NoTLS TLS = iota
	StartTLS
	ImplicitTLS
)

// Step is what happens at one point of a transaction, in this order: Reached is closed, Wait is waited for, then the connection is
// dropped, or Reply is sent. The zero Step is the usual answer.
type Step struct {
	Reply   string // such as "550 5.1.1 no such user"; lines separated by \n
	Half    bool   // half of the first line is sent, without an end, and then the connection is closed
	Drop    bool   // the connection is closed instead of an answer
	Wait    <-chan struct{}
	Reached chan<- struct{} // closed when the step begins
}

// Script is what one transaction with a recipient meets.
type Script struct {
	Rcpt    Step // answer to RCPT
	Data    Step // answer to DATA
	Content Step // after Bytes of content were read: a Drop breaks the connection there; a Reply is not possible
	Bytes   int
	End     Step // answer to the end of the content
	Keep    bool // with End.Drop: the mail is accepted although its answer is never sent
	Reset   Step // answer to the next RSET on this connection
}

// Accept takes the mail.
func Accept() Script { return Script{} }

// Reject answers to RCPT: "550 5.1.1 no such user", "451 4.7.1 later".
func Reject(reply string) Script { return Script{Rcpt: Step{Reply: reply}} }

// RejectData answers to DATA, before any content.
func RejectData(reply string) Script { return Script{Data: Step{Reply: reply}} }

// RejectContent answers to the end of the content.
func RejectContent(reply string) Script { return Script{End: Step{Reply: reply}} }

// DropAtRcpt breaks the connection instead of answering RCPT.
func DropAtRcpt() Script { return Script{Rcpt: Step{Drop: true}} }

// DropBeforeContent breaks the connection instead of answering DATA.
func DropBeforeContent() Script { return Script{Data: Step{Drop: true}} }

// DropInContent breaks the connection after n bytes of the content.
func DropInContent(n int) Script { return Script{Content: Step{Drop: true}, Bytes: n} }

// DropAfterContent breaks the connection between the end of the content and its answer; the mail is accepted or lost.
func DropAfterContent(accepted bool) Script {
	return Script{End: Step{Drop: true}, Keep: accepted}
}

// Mail is one message that was accepted.
type Mail struct {
	From, To string
	Params   string // of MAIL, such as BODY=8BITMIME
	Body     []byte // CRLF line ends, dots unstuffed
	Conn     int    // number of its connection, from 1
}

// Server is a running server. It ends with its test.
type Server struct {
	t        testing.TB
	config   Config
	listener net.Listener
	cert     tls.Certificate
	roots    *x509.CertPool
	stop     chan struct{}
	running  sync.WaitGroup

	mu       sync.Mutex
	changed  chan struct{} // closed and replaced at every change
	scripts  map[string][]Script
	mails    []Mail
	commands []string
	conns    map[net.Conn]struct{}
	count    int
}

// Start runs a server on a free port of loopback until the test ends.
func Start(tb testing.TB, config Config) *Server {
	tb.Helper()
	listener, err := (&net.ListenConfig{}).Listen(tb.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatalf("smtptest: %v", err)
	}
	if config.Extensions == nil {
		config.Extensions = []string{"PIPELINING", "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES"}
	}
	if config.Auth == "" {
		config.Auth = "PLAIN LOGIN"
	}
	s := &Server{
		t: tb, config: config, listener: listener, stop: make(chan struct{}), changed: make(chan struct{}),
		scripts: map[string][]Script{}, conns: map[net.Conn]struct{}{},
	}
	if config.TLS != NoTLS {
		s.makeCertificate()
	}
	s.running.Go(s.accept)
	tb.Cleanup(s.Close)
	return s
}

// Addr gives host:port.
func (s *Server) Addr() string { return s.listener.Addr().String() }

// URL gives the server as mail.ParseURL reads it.
func (s *Server) URL() string {
	user := ""
	if s.config.User != "" {
		user = s.config.User + ":" + s.config.Password + "@"
	}
	mode := [...]string{NoTLS: "none", StartTLS: "starttls", ImplicitTLS: "implicit"}[s.config.TLS]
	return "smtp://" + user + s.Addr() + "?tls=" + mode
}

// ClientTLS gives a configuration that trusts the server's certificate.
func (s *Server) ClientTLS() *tls.Config {
	return &tls.Config{RootCAs: s.roots, MinVersion: tls.VersionTLS12}
}

// Certificate gives the server's certificate as PEM, for processes that read their roots from a file.
func (s *Server) Certificate() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.cert.Certificate[0]})
}

// Script says what the next transactions with a recipient meet, one after another; the last one stays.
func (s *Server) Script(rcpt string, scripts ...Script) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.scripts[strings.ToLower(rcpt)] = scripts
}

// Mails gives what was accepted so far, in order.
func (s *Server) Mails() []Mail {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.mails)
}

// MailsTo gives what was accepted for one recipient.
func (s *Server) MailsTo(rcpt string) []Mail {
	return slices.DeleteFunc(s.Mails(), func(m Mail) bool { return !strings.EqualFold(m.To, rcpt) })
}

// Commands gives all command lines so far, AUTH without its secret.
func (s *Server) Commands() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.commands)
}

// Conns tells how many connections were made so far, and how many are open.
func (s *Server) Conns() (made, open int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.count, len(s.conns)
}

// Wait waits until what it is given is true, looking again at every command, mail and end of a connection; it ends the test when
// that takes longer than ten seconds.
func (s *Server) Wait(what string, is func() bool) {
	s.t.Helper()
	timeout := time.NewTimer(10 * time.Second)
	defer timeout.Stop()
	for {
		s.mu.Lock()
		changed := s.changed
		s.mu.Unlock()
		if is() {
			return
		}
		select {
		case <-changed:
		case <-timeout.C:
			s.t.Fatalf("smtptest: waited 10 s for: %s", what)
		}
	}
}

// DropAll breaks all open connections, as a relay that restarts.
func (s *Server) DropAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		_ = c.Close()
	}
}

// Close ends the server and all its connections; a test that wants the relay away calls it itself.
func (s *Server) Close() {
	s.mu.Lock()
	select {
	case <-s.stop:
		s.mu.Unlock()
		return
	default:
		close(s.stop)
	}
	s.mu.Unlock()
	_ = s.listener.Close()
	s.DropAll()
	s.running.Wait()
}

func (s *Server) accept() {
	for {
		conn, err := s.listener.Accept()
		if err != nil {
			return
		}
		s.mu.Lock()
		s.count++
		number := s.count
		s.conns[conn] = struct{}{}
		select {
		case <-s.stop: // Close may have passed its DropAll already
			_ = conn.Close()
		default:
		}
		s.tell()
		s.mu.Unlock()
		s.running.Go(func() {
			defer func() {
				_ = conn.Close()
				s.mu.Lock()
				delete(s.conns, conn)
				s.tell()
				s.mu.Unlock()
			}()
			(&session{server: s, raw: conn, number: number}).serve()
		})
	}
}

// tell wakes those who Wait; the caller holds mu.
func (s *Server) tell() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// next takes the script for the next transaction with a recipient.
func (s *Server) next(rcpt string) Script {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := s.scripts[strings.ToLower(rcpt)]
	if len(list) == 0 {
		return Script{}
	}
	if len(list) > 1 {
		s.scripts[strings.ToLower(rcpt)] = list[1:]
	}
	return list[0]
}

func (s *Server) makeCertificate() {
	s.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		s.t.Fatalf("smtptest: %v", err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "smtptest"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		s.t.Fatalf("smtptest: %v", err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		s.t.Fatalf("smtptest: %v", err)
	}
	s.cert = tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	s.roots = x509.NewCertPool()
	s.roots.AddCert(leaf)
}

// session is one connection.
type session struct {
	server *Server
	raw    net.Conn
	number int
	in     *bufio.Reader
	out    *bufio.Writer

	encrypted, authenticated bool
	from, params, rcpt       string
	refused                  bool
	transactions             int
	script                   Script
	onReset                  Step
}

func (s *session) use(c net.Conn) {
	s.in, s.out = bufio.NewReader(c), bufio.NewWriter(c)
}

func (s *session) serve() {
	s.use(s.raw)
	if s.server.config.TLS == ImplicitTLS && !s.encrypt() {
		return
	}
	if !s.step(s.opening(s.server.config.Greeting), "220 smtptest ESMTP") {
		return
	}
	for {
		line, err := s.in.ReadString('\n')
		if err != nil {
			return
		}
		line = strings.TrimRight(line, "\r\n")
		verb, arg, _ := strings.Cut(line, " ")
		verb = strings.ToUpper(verb)
		logged := line
		if verb == "AUTH" {
			logged = "AUTH " + strings.SplitN(arg, " ", 2)[0]
		}
		s.server.mu.Lock()
		s.server.commands = append(s.server.commands, logged)
		s.server.tell()
		s.server.mu.Unlock()
		if !s.command(verb, arg) {
			return
		}
	}
}

// opening is what this connection meets at a point before its first mail.
func (s *session) opening(step Step) Step {
	if only := s.server.config.Only; only != nil && !only(s.number) {
		return Step{}
	}
	return step
}

// encrypt goes on with TLS; false ends the connection.
func (s *session) encrypt() bool {
	if step := s.opening(s.server.config.Handshake); step != (Step{}) {
		if step.Reply != "" {
			s.step(step, "")
		}
		return false
	}
	s.encrypted = true
	s.use(tls.Server(s.raw, &tls.Config{Certificates: []tls.Certificate{s.server.cert}, MinVersion: tls.VersionTLS12}))
	return true
}

// command answers one command; false ends the connection.
func (s *session) command(verb, arg string) bool {
	config := &s.server.config
	switch verb {
	case "EHLO":
		return s.step(s.opening(config.Hello), s.hello())
	case "HELO":
		return s.step(s.opening(config.Hello), "250 smtptest")
	case "STARTTLS":
		if config.TLS != StartTLS || s.encrypted {
			return s.reply("503 5.5.1 not now")
		}
		return s.reply("220 2.0.0 go ahead") && s.encrypt()
	case "AUTH":
		return s.auth(arg)
	case "MAIL":
		if config.User != "" && !s.authenticated {
			return s.reply("530 5.7.0 authentication required")
		}
		s.transactions++
		if config.MaxMails > 0 && s.transactions > config.MaxMails {
			s.reply("421 4.7.0 enough for this connection")
			return false
		}
		s.from, s.params = address(arg)
		s.rcpt = ""
		return s.reply("250 2.1.0 ok")
	case "RCPT":
		s.rcpt, _ = address(arg)
		s.script = s.server.next(s.rcpt)
		s.onReset = s.script.Reset
		s.refused = s.script.Rcpt.Reply != "" && s.script.Rcpt.Reply[0] != '2'
		return s.step(s.script.Rcpt, "250 2.1.5 ok")
	case "DATA":
		if s.rcpt == "" || s.refused {
			return s.reply("554 5.5.1 no valid recipients")
		}
		return s.data()
	case "RSET":
		on := s.onReset
		s.onReset, s.from, s.rcpt = Step{}, "", ""
		return s.step(on, "250 2.0.0 ok")
	case "NOOP":
		return s.reply("250 2.0.0 ok")
	case "QUIT":
		s.reply("221 2.0.0 bye")
		return false
	default:
		return s.reply("500 5.5.2 unknown command")
	}
}

func (s *session) hello() string {
	config := &s.server.config
	lines := append([]string{"smtptest"}, config.Extensions...)
	if config.TLS == StartTLS && !s.encrypted {
		lines = append(lines, "STARTTLS")
	}
	if config.User != "" {
		lines = append(lines, "AUTH "+config.Auth)
	}
	for i := range lines {
		separator := "-"
		if i == len(lines)-1 {
			separator = " "
		}
		lines[i] = "250" + separator + lines[i]
	}
	return strings.Join(lines, "\n")
}

func (s *session) auth(arg string) bool {
	mechanism, initial, _ := strings.Cut(arg, " ")
	var user, password string
	switch strings.ToUpper(mechanism) {
	case "PLAIN":
		raw, _ := base64.StdEncoding.DecodeString(initial)
		if parts := strings.Split(string(raw), "\x00"); len(parts) == 3 {
			user, password = parts[1], parts[2]
		}
	case "LOGIN":
		ask := func(prompt string) string {
			s.reply("334 " + base64.StdEncoding.EncodeToString([]byte(prompt)))
			line, _ := s.in.ReadString('\n')
			raw, _ := base64.StdEncoding.DecodeString(strings.TrimSpace(line))
			return string(raw)
		}
		user, password = ask("Username:"), ask("Password:")
	default:
		return s.reply("504 5.7.4 unknown mechanism")
	}
	if user != s.server.config.User || password != s.server.config.Password {
		return s.reply("535 5.7.8 wrong user or password")
	}
	s.authenticated = true
	return s.reply("235 2.7.0 welcome")
}

func (s *session) data() bool {
	if s.script.Data.Reply != "" && s.script.Data.Reply[0] != '3' {
		return s.step(s.script.Data, "")
	}
	if !s.step(s.script.Data, "354 go ahead") {
		return false
	}
	if content := s.script.Content; content.Drop || content.Wait != nil || content.Reached != nil {
		// What was read here is read again as part of the content, unless the connection drops.
		head := make([]byte, s.script.Bytes)
		n, err := io.ReadFull(s.in, head)
		if err != nil || !s.pause(content) || content.Drop {
			return false
		}
		s.in = bufio.NewReader(io.MultiReader(bytes.NewReader(head[:n]), s.in))
	}
	body, err := io.ReadAll(textproto.NewReader(s.in).DotReader())
	if err != nil {
		return false
	}
	body = bytes.ReplaceAll(body, []byte("\n"), []byte("\r\n"))
	end := s.script.End
	kept := !end.Drop && !end.Half && (end.Reply == "" || end.Reply[0] == '2') || s.script.Keep
	if kept {
		s.server.mu.Lock()
		s.server.mails = append(s.server.mails, Mail{From: s.from, To: s.rcpt, Params: s.params, Body: body, Conn: s.number})
		s.server.tell()
		s.server.mu.Unlock()
	}
	return s.step(end, "250 2.0.0 Ok: queued as TEST12345")
}

// step does what a script says, or answers as usual; false ends the connection.
func (s *session) step(step Step, usual string) bool {
	if !s.pause(step) || step.Drop {
		return false
	}
	if step.Half {
		line, _, _ := strings.Cut(cmp.Or(step.Reply, usual), "\n")
		_, _ = s.out.WriteString(line[:len(line)/2])
		_ = s.out.Flush()
		return false
	}
	if step.Reply != "" {
		lines := strings.Split(step.Reply, "\n")
		code := lines[0][:3]
		for i := range lines {
			lines[i] = strings.TrimPrefix(strings.TrimPrefix(lines[i], code+" "), code+"-")
			separator := "-"
			if i == len(lines)-1 {
				separator = " "
			}
			lines[i] = code + separator + lines[i]
		}
		return s.reply(strings.Join(lines, "\n")) && code != "421"
	}
	return s.reply(usual)
}

// pause signals and waits; false when the server ends meanwhile.
func (s *session) pause(step Step) bool {
	if step.Reached != nil {
		close(step.Reached)
	}
	if step.Wait == nil {
		return true
	}
	select {
	case <-step.Wait:
		return true
	case <-s.server.stop:
		return false
	}
}

// reply writes lines at once.
func (s *session) reply(lines string) bool {
	_, err := s.out.WriteString(strings.ReplaceAll(lines, "\n", "\r\n") + "\r\n")
	if err == nil {
		err = s.out.Flush()
	}
	return err == nil
}

// address takes <address> and what follows it out of FROM:<…> or TO:<…>.
func address(arg string) (addr, params string) {
	_, rest, _ := strings.Cut(arg, "<")
	addr, params, _ = strings.Cut(rest, ">")
	return addr, strings.TrimSpace(params)
}
