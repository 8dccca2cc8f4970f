package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
)

// sink is an SMTP server that takes every mail, counts it and forgets it, as cheaply as can be: it reads lines, and looks at their first letter.
type sink struct {
	listener net.Listener
	mails    atomic.Int64
	bytes    atomic.Int64

	mu    sync.Mutex
	conns map[net.Conn]struct{}
}

func startSink(ctx context.Context) (*sink, error) {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listen for mail: %w", err)
	}
	s := &sink{listener: listener, conns: map[net.Conn]struct{}{}}
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
	defer func() {
		s.mu.Lock()
		delete(s.conns, c)
		s.mu.Unlock()
		_ = c.Close()
	}()
	r, w := bufio.NewReaderSize(c, 16<<10), bufio.NewWriter(c)
	_, _ = w.WriteString("220 bench\r\n")
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
			_, _ = w.WriteString("250-bench\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 SMTPUTF8\r\n")
		case 'd':
			_, _ = w.WriteString("354 go on\r\n")
			if w.Flush() != nil || !s.content(r) {
				return
			}
			_, _ = w.WriteString("250 2.0.0 taken\r\n")
		case 'q':
			_, _ = w.WriteString("221 bye\r\n")
			_ = w.Flush()
			return
		default:
			_, _ = w.WriteString("250 ok\r\n")
		}
	}
}

// content reads a mail to its end.
func (s *sink) content(r *bufio.Reader) bool {
	size := 0
	for {
		line, err := r.ReadSlice('\n')
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return false
		}
		if bytes.Equal(line, []byte(".\r\n")) {
			s.mails.Add(1)
			s.bytes.Add(int64(size))
			return true
		}
		size += len(line)
	}
}

// take gives how many mails came since the last take, and their mean size in bytes.
func (s *sink) take() (mails, size int64) {
	mails, size = s.mails.Swap(0), s.bytes.Swap(0)
	return mails, size / max(mails, 1)
}
