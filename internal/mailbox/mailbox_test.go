package mailbox_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/onda-run/onda/internal/mail"
	"github.com/onda-run/onda/internal/mailbox"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func start(tb testing.TB, config mailbox.Config) *mailbox.Server {
	tb.Helper()
	if config.Dir == "" {
		config.Dir = tb.TempDir()
	}
	config.SMTPAddr, config.HTTPAddr = "127.0.0.1:0", "127.0.0.1:0"
	s, err := mailbox.Start(context.WithoutCancel(tb.Context()), config)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := s.Close(); err != nil {
			tb.Error(err)
		}
	})
	return s
}

func sender(tb testing.TB, s *mailbox.Server, size int) *mail.Pool {
	tb.Helper()
	relay, err := mail.ParseURL(s.SMTPURL())
	if err != nil {
		tb.Fatal(err)
	}
	p := mail.NewPool([]mail.Relay{relay}, mail.PoolConfig{Size: size, MaxMessages: 1 << 30})
	tb.Cleanup(func() {
		if err := p.Close(context.WithoutCancel(tb.Context())); err != nil {
			tb.Error(err)
		}
	})
	return p
}

func envelope(to string) mail.Envelope {
	return mail.Envelope{From: "b+token@bounce.acme.example", To: to}
}

func body(id, subject string) []byte {
	return []byte("From: =?utf-8?q?Mar=C3=A9?= <news@acme.example>\r\nSubject: " + subject + "\r\nMessage-ID: <" + id + "@acme.example>\r\n\r\nhello\r\n.dot\r\n")
}

func send(tb testing.TB, p *mail.Pool, to string, raw []byte) mail.Result {
	tb.Helper()
	res := p.Send(tb.Context(), envelope(to), raw)
	if res.State == mail.NotTried || res.State == mail.Unknown {
		tb.Fatalf("%s: %+v, %v", to, res, res.Err)
	}
	return res
}

func TestKeepsAndCounts(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := start(t, mailbox.Config{Dir: dir})
	p := sender(t, s, 2)
	send(t, p, "ana@example.com", body("1", "=?utf-8?q?Ol=C3=A1?=\r\n folded"))
	send(t, p, "bea@example.com", body("1", "same id, other recipient"))
	send(t, p, "ANA@example.com", body("1", "a second copy"))
	res := send(t, p, "ana@example.com", body("2", "another"))
	if res.State != mail.Sent || res.QueueID != "mail4" {
		t.Errorf("%+v", res)
	}
	send(t, p, "cid@example.com", []byte("Subject: none\r\n\r\nno id\r\n"))
	send(t, p, "cid@example.com", []byte("Subject: none\r\n\r\nno id\r\n"))

	want := mailbox.Totals{Counts: mailbox.Counts{Received: 6, Distinct: 5, Repeated: 1}}
	look := func(s *mailbox.Server) {
		t.Helper()
		if diff := cmp.Diff(want, s.Counts()); diff != "" {
			t.Errorf("counts (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff(mailbox.Counts{Received: 3, Distinct: 2, Repeated: 1}, s.CountsTo("ana@EXAMPLE.com")); diff != "" {
			t.Errorf("counts of one (-want +got):\n%s", diff)
		}
		m, err := s.Mail(1)
		if err != nil {
			t.Fatal(err)
		}
		if m.At.IsZero() || time.Since(m.At) > time.Hour {
			t.Errorf("came at %v", m.At)
		}
		m.At = time.Time{}
		raw := body("1", "=?utf-8?q?Ol=C3=A1?=\r\n folded")
		wantMail := mailbox.Mail{
			ID: 1, To: "ana@example.com", ReturnPath: "b+token@bounce.acme.example", From: "Maré <news@acme.example>",
			Subject: "Olá folded", MessageID: "<1@acme.example>", Size: len(raw), Copy: 1,
		}
		if diff := cmp.Diff(wantMail, m); diff != "" {
			t.Errorf("mail (-want +got):\n%s", diff)
		}
		if got, err := s.Raw(1); err != nil || !bytes.Equal(got, raw) {
			t.Errorf("raw %q, %v", got, err)
		}
		if m, err := s.Mail(3); err != nil || m.Copy != 2 {
			t.Errorf("%+v, %v", m, err)
		}
		for _, id := range []int64{-1, 0, 7, 1 << 40} {
			if _, err := s.Raw(id); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("mail %d: %v", id, err)
			}
		}
	}
	look(s)
	if err := p.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	again := start(t, mailbox.Config{Dir: dir}) // the index is built anew
	look(again)

	if err := again.Clear(); err != nil {
		t.Fatal(err)
	}
	if got := again.Counts(); got != (mailbox.Totals{}) {
		t.Errorf("after Clear: %+v", got)
	}
	if _, err := again.Raw(1); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after Clear: %v", err)
	}
	if err := again.Clear(); err != nil {
		t.Fatal(err)
	}
	p = sender(t, again, 1)
	if res := send(t, p, "ana@example.com", body("1", "anew")); res.QueueID != "mail7" {
		t.Errorf("an id was given twice: %+v", res)
	}
	if got := again.Counts(); got.Received != 1 || got.Repeated != 0 {
		t.Errorf("after Clear and one: %+v", got)
	}
	if err := p.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if err := again.Close(); err != nil {
		t.Fatal(err)
	}
	last := start(t, mailbox.Config{Dir: dir})
	if m, err := last.Mail(7); err != nil || m.Subject != "anew" || last.Counts().Received != 1 {
		t.Errorf("%+v, %v", m, err)
	}
}

// TestKilledWhileWriting cuts the file at every length a kill could leave: whole mails stay, the cut one is gone, new ones follow.
func TestKilledWhileWriting(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := start(t, mailbox.Config{Dir: dir})
	p := sender(t, s, 1)
	for i := range 3 {
		send(t, p, "ana@example.com", body(fmt.Sprint(i), "s"))
	}
	if err := p.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(filepath.Join(dir, "0000000000000001.mails"))
	if err != nil {
		t.Fatal(err)
	}
	each := len(whole) / 3
	garbage := bytes.Clone(whole)
	garbage[2*each+40] ^= 1 // in the meta of the third
	for name, left := range map[string][]byte{
		"nothing": {}, "part of a head": whole[:20], "one": whole[:each], "head only": whole[:each+36], "almost": whole[:len(whole)-1],
		"zeros": append(bytes.Clone(whole[:2*each]), make([]byte, 100)...), "changed": garbage, "all": whole,
	} {
		want := map[string]int{"nothing": 0, "part of a head": 0, "one": 1, "head only": 1, "almost": 2, "zeros": 2, "changed": 2, "all": 3}[name]
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, "0000000000000001.mails"), left, 0o600); err != nil {
				t.Fatal(err)
			}
			s := start(t, mailbox.Config{Dir: dir})
			if got := s.Counts().Received; got != want {
				t.Fatalf("%d mails, want %d", got, want)
			}
			p := sender(t, s, 1)
			send(t, p, "new@example.com", body("new", "s"))
			for id := int64(1); id <= int64(want+1); id++ {
				if _, err := s.Raw(id); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

func TestDamageIsTold(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := start(t, mailbox.Config{Dir: dir})
	p := sender(t, s, 1)
	send(t, p, "ana@example.com", body("1", "s"))
	path := filepath.Join(dir, "0000000000000001.mails")
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	raw[len(raw)-2] ^= 1
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Raw(1); err == nil || !strings.Contains(err.Error(), "damaged") {
		t.Errorf("%v", err)
	}
}

func TestRules(t *testing.T) {
	t.Parallel()
	refuse := func(rcpt string) *mailbox.Refusal {
		if strings.HasPrefix(rcpt, "own.") {
			return &mailbox.Refusal{Code: 550, Enhanced: "5.2.1", Text: "disabled"}
		}
		return nil
	}
	s := start(t, mailbox.Config{Rules: mailbox.DefaultRules(), Judge: refuse})
	p := sender(t, s, 1)
	for i, tt := range []struct {
		to       string
		state    mail.State
		code     int
		enhanced string
		class    mail.Class
	}{
		{"ana@example.com", mail.Sent, 250, "2.0.0", ""},
		{"nobody.1@example.com", mail.Failed, 550, "5.1.1", mail.Hard},
		{"Nobody.1@example.com", mail.Failed, 550, "5.1.1", mail.Hard},
		{"full.1@example.com", mail.Deferred, 452, "4.2.2", mail.Soft},
		{"full.2@example.com", mail.Deferred, 452, "4.2.2", mail.Soft},
		{"full.1@example.com", mail.Sent, 250, "2.0.0", ""},
		{"busy.1@example.com", mail.Deferred, 451, "4.7.1", mail.Soft},
		{"busy.1@example.com", mail.Sent, 250, "2.0.0", ""},
		{"blocked.1@example.com", mail.Failed, 554, "5.7.1", mail.Block},
		{"own.1@example.com", mail.Failed, 550, "5.2.1", mail.Hard},
		{"nobody@example.com", mail.Sent, 250, "2.0.0", ""},
	} {
		res := send(t, p, tt.to, body(fmt.Sprint(i), "s"))
		if res.State != tt.state || res.Code != tt.code || res.Enhanced != tt.enhanced || res.Class != tt.class {
			t.Errorf("%d %s: %+v", i, tt.to, res)
		}
	}
	want := mailbox.Totals{Counts: mailbox.Counts{Received: 4, Distinct: 4}, Refused: 7}
	if diff := cmp.Diff(want, s.Counts()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestOnMail(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var got []string
	failing := true
	s := start(t, mailbox.Config{OnMail: func(_ context.Context, rcpt string, raw []byte) (bool, error) {
		if !strings.HasSuffix(rcpt, "@bounce.acme.example") {
			return false, nil
		}
		mu.Lock()
		defer mu.Unlock()
		if failing {
			failing = false
			return false, errors.New("the bounce function is away")
		}
		got = append(got, rcpt+" "+string(raw))
		return true, nil
	}})
	p := sender(t, s, 1)
	const to = "b+token@bounce.acme.example"
	if res := send(t, p, to, body("1", "s")); res.State != mail.Deferred || res.Code != 451 {
		t.Errorf("%+v", res)
	}
	if res := send(t, p, to, body("1", "s")); res.State != mail.Sent {
		t.Errorf("%+v", res)
	}
	send(t, p, "ana@example.com", body("2", "s"))
	mu.Lock()
	defer mu.Unlock()
	if diff := cmp.Diff([]string{to + " " + string(body("1", "s"))}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if want := (mailbox.Totals{Counts: mailbox.Counts{Received: 1, Distinct: 1}, Handled: 1}); s.Counts() != want {
		t.Errorf("%+v", s.Counts())
	}
}

func TestWatch(t *testing.T) {
	t.Parallel()
	s := start(t, mailbox.Config{})
	p := sender(t, s, 4)
	for i := range 5 {
		send(t, p, "ana@example.com", body(fmt.Sprint(i), "s"))
	}
	ctx, cancel := context.WithCancel(t.Context())
	seen := make(chan int64)
	go func() {
		defer close(seen)
		for m := range s.Watch(ctx, 3) {
			seen <- m.ID
		}
	}()
	for id := int64(3); id <= 5; id++ {
		if got := <-seen; got != id {
			t.Fatalf("saw %d, want %d", got, id)
		}
	}
	var group sync.WaitGroup
	for i := range 500 {
		group.Go(func() { send(t, p, "bea@example.com", body(fmt.Sprint(i), "s")) })
	}
	for id := int64(6); id <= 505; id++ {
		if got := <-seen; got != id {
			t.Fatalf("saw %d, want %d", got, id)
		}
	}
	group.Wait()
	cancel()
	if id, more := <-seen; more {
		t.Errorf("saw %d after the end", id)
	}
	// One that waits ends with the mailbox.
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for range s.Watch(context.WithoutCancel(t.Context()), 0) {
			continue
		}
	}()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	<-ended
}

func TestStartRefuses(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := start(t, mailbox.Config{Dir: dir})
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name   string
		config mailbox.Config
		want   string
	}{
		{"SMTP port in use", mailbox.Config{Dir: t.TempDir(), SMTPAddr: s.SMTPAddr()}, "SMTP address " + s.SMTPAddr() + " is in use: end the program"},
		{"HTTP port in use", mailbox.Config{Dir: t.TempDir(), SMTPAddr: "127.0.0.1:0", HTTPAddr: s.HTTPAddr()}, "HTTP address " + s.HTTPAddr() + " is in use"},
		{"directory in use", mailbox.Config{Dir: dir, SMTPAddr: "127.0.0.1:0"}, "in use by another mailbox"},
		{"not loopback", mailbox.Config{Dir: t.TempDir(), SMTPAddr: "0.0.0.0:0"}, "not on loopback"},
		{"all addresses", mailbox.Config{Dir: t.TempDir(), SMTPAddr: ":0"}, "not on loopback"},
		{"no port", mailbox.Config{Dir: t.TempDir(), SMTPAddr: "127.0.0.1"}, "want host:port"},
		{"no directory", mailbox.Config{Dir: filepath.Join(file, "x"), SMTPAddr: "127.0.0.1:0"}, "not a directory"},
		{"rule without prefix", mailbox.Config{SMTPAddr: "127.0.0.1:0", Rules: []mailbox.Rule{{Code: 550}}}, "no prefix"},
		{"rule with a good answer", mailbox.Config{SMTPAddr: "127.0.0.1:0", Rules: []mailbox.Rule{{Prefix: "a", Code: 250}}}, "want 4xx or 5xx"},
		{"rule with another status", mailbox.Config{SMTPAddr: "127.0.0.1:0", Rules: []mailbox.Rule{{Prefix: "a", Code: 550, Enhanced: "4.1.1"}}}, "want 5.x.x"},
	}
	for _, tt := range tests {
		other, err := mailbox.Start(t.Context(), tt.config)
		if err == nil {
			_ = other.Close()
		}
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q", tt.name, err, tt.want)
		}
	}
}

// TestClosesGently closes while senders send: whatever they were told was taken is there, and nothing is unknown.
func TestClosesGently(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	s, err := mailbox.Start(ctx, mailbox.Config{Dir: dir, SMTPAddr: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	p := sender(t, s, 8)
	var mu sync.Mutex
	sent, unknown := map[string]bool{}, 0
	var group sync.WaitGroup
	for w := range 8 {
		group.Go(func() {
			for i := 0; ; i++ {
				to := fmt.Sprintf("r%d.%d@example.com", w, i)
				res := p.Send(t.Context(), envelope(to), body("1", "s"))
				mu.Lock()
				switch res.State {
				case mail.Sent:
					if sent[to] = true; len(sent) == 300 {
						cancel()
					}
				case mail.Unknown:
					unknown++
				case mail.Deferred: // 421
				default:
					mu.Unlock()
					return
				}
				mu.Unlock()
			}
		})
	}
	group.Wait()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	again := start(t, mailbox.Config{Dir: dir})
	if got := again.Counts().Received; got != len(sent) || unknown != 0 {
		t.Errorf("%d mails kept, %d answered with 2xx, %d unknown", got, len(sent), unknown)
	}
	for to := range sent {
		if again.CountsTo(to).Received != 1 {
			t.Errorf("%s is not there", to)
		}
	}
}

func TestSeveralRecipients(t *testing.T) {
	t.Parallel()
	s := start(t, mailbox.Config{Rules: mailbox.DefaultRules()})
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", s.SMTPAddr())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write([]byte("EHLO x\r\nMAIL FROM:<a@b>\r\nRCPT TO:<ana@example.com>\r\nRCPT TO:<nobody.1@example.com>\r\nRCPT TO:<bea@example.com>\r\n" +
		"DATA\r\nSubject: s\r\nMessage-Id: <1@x>\r\n\r\nhello\r\n.\r\nQUIT\r\n")); err != nil {
		t.Fatal(err)
	}
	var answers bytes.Buffer
	if _, err := answers.ReadFrom(conn); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(answers.String(), "\r\n550 5.1.1 No such user here\r\n") || s.Counts().Received != 2 {
		t.Errorf("%+v after %s", s.Counts(), answers.String())
	}
	if s.CountsTo("ana@example.com").Received != 1 || s.CountsTo("bea@example.com").Received != 1 {
		t.Error("not everyone got it")
	}
}

func BenchmarkReceive(b *testing.B) {
	raw := append(body("1", "s"), bytes.Repeat([]byte("0123456789012345678901234567890123456789012345678901234567890123456789\r\n"), 140)...)
	s := start(b, mailbox.Config{Rules: mailbox.DefaultRules()})
	p := sender(b, s, 16)
	b.SetBytes(int64(len(raw)))
	b.SetParallelism(8)
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if res := p.Send(b.Context(), envelope("ana@example.com"), raw); res.State != mail.Sent {
				b.Errorf("%+v, %v", res, res.Err)
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "mails/s")
}
