package mail_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/onda-run/onda/internal/mail"
	"github.com/onda-run/onda/internal/smtptest"
)

func pool(t *testing.T, s *smtptest.Server, config mail.PoolConfig) *mail.Pool {
	t.Helper()
	p := mail.NewPool([]mail.Relay{relay(t, s)}, config)
	t.Cleanup(func() {
		if err := p.Close(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	return p
}

func TestPoolIsLazyAndBounded(t *testing.T) {
	t.Parallel()
	s := smtptest.Start(t, smtptest.Config{})
	p := pool(t, s, mail.PoolConfig{Size: 3})
	if made, _ := s.Conns(); made != 0 {
		t.Fatalf("%d connections before the first message", made)
	}
	var group sync.WaitGroup
	for i := range 200 {
		group.Go(func() {
			res := p.Send(t.Context(), mail.Envelope{From: sender, To: fmt.Sprintf("r%d@example.com", i)}, content)
			if res.State != mail.Sent {
				t.Errorf("%+v, %v", res, res.Err)
			}
		})
	}
	group.Wait()
	if n := len(s.Mails()); n != 200 {
		t.Errorf("%d mails", n)
	}
	if made, _ := s.Conns(); made > 3 {
		t.Errorf("%d connections, at most 3 are allowed", made)
	}
}

func TestPoolRecycles(t *testing.T) {
	t.Parallel()
	s := smtptest.Start(t, smtptest.Config{})
	p := pool(t, s, mail.PoolConfig{Size: 1, MaxMessages: 4})
	for i := range 10 {
		if res := p.Send(t.Context(), mail.Envelope{From: sender, To: fmt.Sprintf("r%d@example.com", i)}, content); res.State != mail.Sent {
			t.Fatalf("%+v, %v", res, res.Err)
		}
	}
	if made, _ := s.Conns(); made != 3 {
		t.Errorf("%d connections for 10 messages of at most 4 each, want 3", made)
	}
	own := mail.NewPool([]mail.Relay{func() mail.Relay {
		r := relays(t, []int{1}, s)[0]
		r.MaxMessages = 2 // of the relay's own, which counts before the pool's
		return r
	}()}, mail.PoolConfig{Size: 1, MaxMessages: 4})
	t.Cleanup(func() { _ = own.Close(context.Background()) })
	for range 4 {
		if res := own.Send(t.Context(), mail.Envelope{From: sender, To: rcpt}, content); res.State != mail.Sent {
			t.Fatalf("%+v, %v", res, res.Err)
		}
	}
	if made, _ := s.Conns(); made != 5 {
		t.Errorf("%d connections for 4 messages of at most 2 each, want 2 more than 3", made)
	}
	byAge := pool(t, s, mail.PoolConfig{Size: 1, MaxAge: time.Nanosecond})
	for range 2 {
		if res := byAge.Send(t.Context(), mail.Envelope{From: sender, To: rcpt}, content); res.State != mail.Sent {
			t.Fatalf("%+v, %v", res, res.Err)
		}
	}
	if made, _ := s.Conns(); made != 7 {
		t.Errorf("%d connections, want 7", made)
	}
}

// TestPoolTriesAgain sends through a relay that closes connections under the pool: what was certainly not sent is sent by another.
func TestPoolTriesAgain(t *testing.T) {
	t.Parallel()
	t.Run("idle connection closed", func(t *testing.T) {
		t.Parallel()
		s := smtptest.Start(t, smtptest.Config{})
		p := pool(t, s, mail.PoolConfig{Size: 1})
		for i := range 3 {
			res := p.Send(t.Context(), mail.Envelope{From: sender, To: fmt.Sprintf("r%d@example.com", i)}, content)
			if res.State != mail.Sent {
				t.Fatalf("%+v, %v", res, res.Err)
			}
			s.DropAll()
			s.Wait("the connection is gone", func() bool { _, open := s.Conns(); return open == 0 })
		}
		if n := len(s.Mails()); n != 3 {
			t.Errorf("%d mails", n)
		}
	})
	t.Run("421 after so many", func(t *testing.T) {
		t.Parallel()
		s := smtptest.Start(t, smtptest.Config{MaxMails: 2})
		p := pool(t, s, mail.PoolConfig{Size: 1})
		for i := range 7 {
			res := p.Send(t.Context(), mail.Envelope{From: sender, To: fmt.Sprintf("r%d@example.com", i)}, content)
			if res.State != mail.Sent {
				t.Fatalf("%+v, %v", res, res.Err)
			}
		}
		if n := len(s.Mails()); n != 7 {
			t.Errorf("%d mails", n)
		}
	})
	t.Run("never what may have been sent", func(t *testing.T) {
		t.Parallel()
		s := smtptest.Start(t, smtptest.Config{})
		s.Script(rcpt, smtptest.Accept(), smtptest.DropAfterContent(true), smtptest.Accept())
		p := pool(t, s, mail.PoolConfig{Size: 1})
		for _, want := range []mail.State{mail.Sent, mail.Unknown, mail.Sent} {
			if res := p.Send(t.Context(), mail.Envelope{From: sender, To: rcpt}, content); res.State != want {
				t.Fatalf("%+v, %v, want %s", res, res.Err, want)
			}
		}
		if n := len(s.MailsTo(rcpt)); n != 3 {
			t.Errorf("%d mails", n)
		}
	})
}

func TestPoolRelayAway(t *testing.T) {
	t.Parallel()
	s := smtptest.Start(t, smtptest.Config{})
	p := pool(t, s, mail.PoolConfig{Size: 1})
	s.Close()
	res := p.Send(t.Context(), mail.Envelope{From: sender, To: rcpt}, content)
	if res.State != mail.NotTried || !res.RelayAway || !errors.Is(res.Err, mail.ErrRelayAway) {
		t.Errorf("%+v", res)
	}
	if _, err := p.Get(t.Context()); !errors.Is(err, mail.ErrRelayAway) { // and the slot was given back
		t.Errorf("%v", err)
	}
}

func TestPoolCloses(t *testing.T) {
	t.Parallel()
	s := smtptest.Start(t, smtptest.Config{})
	p := mail.NewPool([]mail.Relay{relay(t, s)}, mail.PoolConfig{Size: 2})
	out, err := p.Get(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	idle, err := p.Get(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	waiting := make(chan error)
	go func() {
		_, err := p.Get(t.Context())
		waiting <- err
	}()
	p.Put(idle)
	if err := <-waiting; err != nil { // it got the idle one, which it keeps
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := p.Close(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("close with connections in use: %v", err)
	}
	if _, err := p.Get(t.Context()); !errors.Is(err, mail.ErrPoolClosed) {
		t.Errorf("get after close: %v", err)
	}
	// A message under way is finished: nothing becomes unknown by a drain.
	if res := out.Send(t.Context(), mail.Envelope{From: sender, To: rcpt}, content); res.State != mail.Sent {
		t.Errorf("%+v", res)
	}
	p.Put(out)
	p.Put(idle)
	if err := p.Close(t.Context()); err != nil {
		t.Error(err)
	}
	s.Wait("all connections are closed", func() bool { _, open := s.Conns(); return open == 0 })
}

func relays(t *testing.T, weights []int, servers ...*smtptest.Server) []mail.Relay {
	t.Helper()
	out := make([]mail.Relay, len(servers))
	for i, s := range servers {
		out[i] = relay(t, s)
		out[i].Weight = weights[i]
	}
	return out
}

// Connections are shared by weight; a standby has none while the others are there.
func TestPoolSharesByWeight(t *testing.T) {
	t.Parallel()
	a, b, standby := smtptest.Start(t, smtptest.Config{}), smtptest.Start(t, smtptest.Config{}), smtptest.Start(t, smtptest.Config{})
	p := mail.NewPool(relays(t, []int{3, 1, 0}, a, b, standby), mail.PoolConfig{Size: 8})
	var out []*mail.Conn
	for range 8 {
		c, err := p.Get(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, c)
	}
	for i, want := range []int{6, 2, 0} {
		if made, _ := []*smtptest.Server{a, b, standby}[i].Conns(); made != want {
			t.Errorf("relay %d has %d connections, want %d", i, made, want)
		}
	}
	for _, c := range out {
		p.Put(c)
	}
	if err := p.Close(context.WithoutCancel(t.Context())); err != nil {
		t.Error(err)
	}
}

// While a relay is away the others take its part, the standby too when all others are; each mail is sent once.
func TestPoolFallsBack(t *testing.T) {
	t.Parallel()
	a, b, standby := smtptest.Start(t, smtptest.Config{}), smtptest.Start(t, smtptest.Config{}), smtptest.Start(t, smtptest.Config{})
	p := mail.NewPool(relays(t, []int{1, 1, 0}, a, b, standby), mail.PoolConfig{Size: 2, MaxMessages: 5})
	n := 0
	send := func(count int) {
		t.Helper()
		for range count {
			n++
			if res := p.Send(t.Context(), mail.Envelope{From: sender, To: fmt.Sprintf("r%d@example.com", n)}, content); res.State != mail.Sent {
				t.Fatalf("%+v, %v", res, res.Err)
			}
		}
	}
	send(20)
	if len(a.Mails()) == 0 || len(b.Mails()) == 0 || len(standby.Mails()) != 0 {
		t.Errorf("%d, %d and %d mails", len(a.Mails()), len(b.Mails()), len(standby.Mails()))
	}
	a.Close()
	if err := p.Reach(t.Context()); err != nil {
		t.Error(err)
	}
	send(20)
	if len(standby.Mails()) != 0 {
		t.Errorf("the standby has %d mails while a relay is there", len(standby.Mails()))
	}
	b.Close()
	send(20)
	if got := len(a.Mails()) + len(b.Mails()) + len(standby.Mails()); got != n || len(standby.Mails()) != 20 {
		t.Errorf("%d mails of %d, %d by the standby", got, n, len(standby.Mails()))
	}
	standby.Close()
	if res := p.Send(t.Context(), mail.Envelope{From: sender, To: rcpt}, content); res.State != mail.NotTried || !res.RelayAway || !errors.Is(res.Err, mail.ErrRelayAway) {
		t.Errorf("without any relay: %+v, %v", res, res.Err)
	}
	if err := p.Reach(t.Context()); !errors.Is(err, mail.ErrRelayAway) {
		t.Errorf("no relay is reached: %v", err)
	}
	if err := p.Close(context.WithoutCancel(t.Context())); err != nil {
		t.Error(err)
	}
}
