// Package mailbox is the mail server that comes along for development and trials: it takes all mail on a loopback port, keeps it,
// shows it on pages and counts it, so that "everyone got it, once" can be seen from the recipient's side. Recipients whose
// address begins in a certain way behave as in real life: full, unknown, blocked.
//
// The invariant: a mail that was answered with 2xx is in the directory, whatever becomes of the process after.
package mailbox

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/emersion/go-smtp"
	"go.uber.org/zap"
)

// Config says where a mailbox listens and keeps its mails.
type Config struct {
	Dir      string // made if it is not there; one mailbox at a time
	SMTPAddr string // loopback only: 127.0.0.1:1025; port 0 picks one
	HTTPAddr string // loopback only: 127.0.0.1:8025; "" for none

	Rules []Rule // see DefaultRules

	// Judge, if set, is asked for recipients that no rule refuses.
	Judge func(rcpt string) *Refusal

	// OnMail, if set, is offered every mail for every recipient before it is kept. handled: it is not kept and not counted as
	// received. An error makes the sender try again (451); nothing is kept then. raw must not be kept or changed.
	OnMail func(ctx context.Context, rcpt string, raw []byte) (handled bool, err error)

	// Sync waits for the disk at every write: mails then survive a machine that loses power, not only the end of the process.
	Sync bool

	Log *zap.Logger // nil: silent
}

// Server is a running mailbox.
type Server struct {
	config Config
	store  *store
	judge  judge
	log    *zap.Logger

	handled atomic.Int64

	smtp     *smtp.Server
	http     *http.Server
	smtpAddr net.Addr
	httpAddr net.Addr
	ctx      context.Context
	cancel   context.CancelFunc
	serving  sync.WaitGroup
	senders  senders
	closing  sync.Once
	closed   error
}

// Start opens the directory, listens and serves until Close or the end of ctx. An error names what is in the way and the remedy.
func Start(ctx context.Context, config Config) (*Server, error) {
	for _, r := range config.Rules {
		if err := r.check(); err != nil {
			return nil, fmt.Errorf("start mailbox: %w", err)
		}
	}
	s := &Server{config: config, log: config.Log, judge: judge{rules: config.Rules, times: map[string]int{}}}
	if s.log == nil {
		s.log = zap.NewNop()
	}
	smtpListener, err := listen(ctx, "SMTP", config.SMTPAddr)
	if err != nil {
		return nil, fmt.Errorf("start mailbox: %w", err)
	}
	var httpListener net.Listener
	if config.HTTPAddr != "" {
		if httpListener, err = listen(ctx, "HTTP", config.HTTPAddr); err != nil {
			_ = smtpListener.Close()
			return nil, fmt.Errorf("start mailbox: %w", err)
		}
		s.httpAddr = httpListener.Addr()
	}
	if s.store, err = openStore(config.Dir, config.Sync); err != nil {
		_ = smtpListener.Close()
		if httpListener != nil {
			_ = httpListener.Close()
		}
		return nil, fmt.Errorf("start mailbox: %w", err)
	}
	s.smtpAddr = smtpListener.Addr()
	s.ctx, s.cancel = context.WithCancel(ctx)

	s.smtp = s.newSMTP()
	watched := s.senders.watch(smtpListener)
	s.serving.Go(func() {
		if err := s.smtp.Serve(watched); err != nil && s.ctx.Err() == nil {
			s.log.Error("mailbox: serve SMTP", zap.Error(err))
		}
	})
	if httpListener != nil {
		s.http = &http.Server{Handler: s.Handler(), ReadHeaderTimeout: 10 * time.Second, ErrorLog: zap.NewStdLog(s.log)}
		s.serving.Go(func() {
			if err := s.http.Serve(httpListener); err != nil && !errors.Is(err, http.ErrServerClosed) {
				s.log.Error("mailbox: serve HTTP", zap.Error(err))
			}
		})
	}
	context.AfterFunc(s.ctx, func() { _ = s.Close() })
	return s, nil
}

func listen(ctx context.Context, what, addr string) (net.Listener, error) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, fmt.Errorf("%s address %q: want host:port, such as 127.0.0.1:1025", what, addr)
	}
	if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return nil, fmt.Errorf("%s address %s is not on loopback: the mailbox takes and shows everything to anyone who reaches it, use 127.0.0.1", what, addr)
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", addr)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("%s address %s is in use: end the program that has it, or choose another port", what, addr)
	}
	if err != nil {
		return nil, fmt.Errorf("listen for %s: %w", what, err)
	}
	return l, nil
}

// SMTPAddr gives the address that takes mail.
func (s *Server) SMTPAddr() string { return s.smtpAddr.String() }

// SMTPURL gives the address as ONDA_SMTP_URL has it.
func (s *Server) SMTPURL() string { return "smtp://" + s.SMTPAddr() + "?tls=none" }

// HTTPAddr gives the address of the pages, "" if there are none.
func (s *Server) HTTPAddr() string {
	if s.httpAddr == nil {
		return ""
	}
	return s.httpAddr.String()
}

// Totals is what happened to all mails that were offered.
type Totals struct {
	Counts
	Refused int `json:"refused"` // recipients refused by a rule
	Handled int `json:"handled"` // mails that OnMail took
}

// Counts tells what happened so far. Received, Distinct and Repeated are of the mails kept, also from earlier runs; Refused and
// Handled are of this run.
func (s *Server) Counts() Totals {
	s.judge.mu.Lock()
	refused := s.judge.refused
	s.judge.mu.Unlock()
	return Totals{Counts: s.store.counts(""), Refused: refused, Handled: int(s.handled.Load())}
}

// CountsTo counts the mails of one recipient.
func (s *Server) CountsTo(rcpt string) Counts { return s.store.counts(rcpt) }

// Mail gives one mail; an error matches fs.ErrNotExist when there is none of that id.
func (s *Server) Mail(id int64) (Mail, error) { return s.store.mail(id) }

// Raw gives a mail as it came, with CRLF line ends.
func (s *Server) Raw(id int64) ([]byte, error) { return s.store.raw(id) }

// Watch gives all mails with an id of at least from, in order, and goes on with those that come, until ctx or the mailbox ends. It
// may be slow: mails wait on disk.
func (s *Server) Watch(ctx context.Context, from int64) iter.Seq[Mail] {
	return func(yield func(Mail) bool) {
		last := from - 1
		for {
			mails, more, wait := s.store.after(filter{}, last, 200)
			for _, m := range mails {
				if ctx.Err() != nil || !yield(m) {
					return
				}
				last = m.ID
			}
			if more || len(mails) > 0 {
				continue
			}
			select {
			case <-wait:
			case <-s.store.stop:
				return
			case <-ctx.Done():
				return
			}
		}
	}
}

// Clear forgets all mails, and how often each recipient was refused. Ids are not given again.
func (s *Server) Clear() error {
	s.judge.mu.Lock()
	s.judge.times, s.judge.refused = map[string]int{}, 0
	s.judge.mu.Unlock()
	s.handled.Store(0)
	if err := s.store.clear(); err != nil {
		return fmt.Errorf("clear mailbox: %w", err)
	}
	return nil
}

// Close ends the mailbox: what is being stored is stored and answered, idle senders are told 421. It may be called more than once.
func (s *Server) Close() error {
	s.closing.Do(func() {
		// Bounded by itself: ctx has ended when this runs because of it.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(s.ctx), 2*time.Second)
		defer cancel()
		s.cancel()
		if s.http != nil {
			if err := s.http.Shutdown(ctx); err != nil {
				_ = s.http.Close()
			}
		}
		s.stopSMTP(ctx)
		s.serving.Wait()
		if err := s.store.close(); err != nil {
			s.closed = fmt.Errorf("close mailbox: %w", err)
		}
	})
	return s.closed
}
