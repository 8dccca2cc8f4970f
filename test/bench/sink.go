package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// sink is an SMTP server that takes every mail, counts it and forgets it, as cheaply as can be: it reads lines, and looks at their first letter. With a book it writes down
// whose mails came, and does what the book says to them.
type sink struct {
	listener net.Listener
	book     *book
	tls      *tls.Config                   // nil: no STARTTLS
	came     func(to []byte, at time.Time) // nil: nobody wants to know when a mail came
	mails    atomic.Int64
	bytes    atomic.Int64

	mu    sync.Mutex
	conns map[net.Conn]struct{}
}

func startSink(ctx context.Context, b *book, more ...func(*sink)) (*sink, error) {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listen for mail: %w", err)
	}
	s := &sink{listener: listener, book: b, conns: map[net.Conn]struct{}{}}
	for _, set := range more {
		set(s)
	}
	go func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return // closed
			}
			s.mu.Lock()
			s.conns[c] = struct{}{}
			s.mu.Unlock()
			go s.serve(c)
		}
	}()
	return s, nil
}

func (s *sink) addr() *net.TCPAddr { return s.listener.Addr().(*net.TCPAddr) }

func (s *sink) close() error {
	errs := []error{s.listener.Close()}
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}

func (s *sink) serve(c net.Conn) {
	bare := c
	defer func() {
		s.mu.Lock()
		delete(s.conns, bare)
		s.mu.Unlock()
		_ = bare.Close()
	}()
	r, w := bufio.NewReaderSize(c, 16<<10), bufio.NewWriter(c)
	if s.book != nil && s.book.shut() {
		return
	}
	_, _ = w.WriteString("220 bench\r\n")
	var v visit
	var to []byte
	for {
		if r.Buffered() == 0 { // a client that pipelines is answered when it waits
			if w.Flush() != nil {
				return
			}
		}
		line, err := r.ReadSlice('\n')
		if err != nil {
			return
		}
		switch line[0] | 0x20 {
		case 'e':
			_, _ = w.WriteString("250-bench\r\n")
			if s.book == nil || !s.book.plain {
				_, _ = w.WriteString("250-PIPELINING\r\n")
			}
			if s.tls != nil {
				_, _ = w.WriteString("250-STARTTLS\r\n")
			}
			_, _ = w.WriteString("250-8BITMIME\r\n250 SMTPUTF8\r\n")
		case 's':
			if s.tls == nil {
				_, _ = w.WriteString("502 5.5.1 not here\r\n")
				continue
			}
			_, _ = w.WriteString("220 go on\r\n")
			if w.Flush() != nil {
				return
			}
			c = tls.Server(c, s.tls)
			r.Reset(c)
			w.Reset(c)
		case 'r':
			v = visit{}
			if s.book != nil && line[1]|0x20 == 'c' {
				v = s.book.meet(line)
			}
			if s.came != nil {
				to = append(to[:0], line...)
			}
			_, _ = w.WriteString(v.fault.toRecipient())
		case 'd':
			switch v.fault {
			case cutBefore:
				_ = w.Flush() // the answer to the mail before
				return
			case putOff, refuse:
				_, _ = w.WriteString("554 5.5.1 for nobody\r\n")
				continue
			default:
			}
			_, _ = w.WriteString("354 go on\r\n")
			if w.Flush() != nil || !s.content(r, &v) {
				return
			}
			_, _ = w.WriteString("250 2.0.0 taken\r\n")
			if s.came != nil {
				s.came(to, time.Now())
			}
		case 'q':
			_, _ = w.WriteString("221 bye\r\n")
			_ = w.Flush()
			return
		default:
			_, _ = w.WriteString("250 ok\r\n")
		}
	}
}

// content reads a mail to its end; false when that is the end of the connection too.
func (s *sink) content(r *bufio.Reader, v *visit) bool {
	size, header := 0, s.book != nil
	for {
		line, err := r.ReadSlice('\n')
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) || v.fault == cutIn && size > 500 {
			return false
		}
		if bytes.Equal(line, []byte(".\r\n")) {
			s.mails.Add(1)
			s.bytes.Add(int64(size))
			return s.book == nil || s.book.took(v)
		}
		size += len(line)
		if header {
			if id, ok := bytes.CutPrefix(line, []byte("Message-ID: ")); ok {
				v.id = string(bytes.TrimSpace(id))
			}
			header = len(line) > 2
		}
	}
}

// sinkProcess is a sink in a process of its own, so that what it takes of the processor is nobody else's.
type sinkProcess struct {
	cmd  *exec.Cmd
	in   io.WriteCloser
	out  *json.Decoder
	port int
}

// counts is what came since it was asked before.
type counts struct{ Port, Mails, Size int64 }

func startSinkProcess(ctx context.Context, settings ...string) (*sinkProcess, error) {
	s := &sinkProcess{}
	var err error
	if s.cmd, s.in, s.out, err = startSelf(ctx, append([]string{sideEnv + "=sink"}, settings...)...); err != nil {
		return nil, err
	}
	c, err := s.ask()
	if err != nil {
		return nil, errors.Join(err, s.close())
	}
	s.port = int(c.Port)
	return s, nil
}

func (s *sinkProcess) ask() (c counts, err error) {
	if _, err = io.WriteString(s.in, "\n"); err == nil {
		err = s.out.Decode(&c)
	}
	if err != nil {
		return c, fmt.Errorf("ask the sink: %w", err)
	}
	return c, nil
}

func (s *sinkProcess) close() error { return errors.Join(s.in.Close(), s.cmd.Wait()) }

// serveSink is the sink's process: it answers each line with what came.
func serveSink(in io.Reader, out io.Writer) (err error) {
	config, err := certificateIn(os.Getenv(certificateEnv))
	if err != nil {
		return err
	}
	s, err := startSink(context.Background(), nil, func(s *sink) { s.tls = config })
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	lines, answers := bufio.NewScanner(in), json.NewEncoder(out)
	for lines.Scan() {
		mails, size := s.take()
		if err := answers.Encode(counts{int64(s.addr().Port), mails, size}); err != nil {
			return err
		}
	}
	return lines.Err()
}

// startPostfixSink starts the smtp-sink that SMTP_SINK names; make bench gets it from Debian.
func startPostfixSink(ctx context.Context) (port int, end func() error, err error) {
	program := os.Getenv("SMTP_SINK")
	if program == "" {
		return 0, nil, errors.New("SMTP_SINK: is not set: it names Postfix's smtp-sink; make bench does it")
	}
	free, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return 0, nil, fmt.Errorf("look for a port: %w", err)
	}
	port = free.Addr().(*net.TCPAddr).Port
	if err := free.Close(); err != nil {
		return 0, nil, err
	}
	at := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	args := []string{at, "1000"}
	if os.Geteuid() == 0 {
		args = append([]string{"-u", "nobody"}, args...) // it refuses to be root
	}
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return 0, nil, fmt.Errorf("start smtp-sink: %w", err)
	}
	end = func() error {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // killed
		return nil
	}
	for range 100 { // it says nowhere that it listens
		c, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "tcp", at)
		if err == nil {
			return port, end, c.Close()
		}
		select {
		case <-ctx.Done():
			return 0, nil, errors.Join(ctx.Err(), end())
		case <-time.After(20 * time.Millisecond):
		}
	}
	return 0, nil, errors.Join(errors.New("smtp-sink does not listen"), end())
}

// take gives how many mails came since the last take, and their mean size in bytes.
func (s *sink) take() (mails, size int64) {
	mails, size = s.mails.Swap(0), s.bytes.Swap(0)
	return mails, size / max(mails, 1)
}
