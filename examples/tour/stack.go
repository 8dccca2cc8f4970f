package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// stack is the running onda dev.
type stack struct {
	url, mailbox string
	smtp         string // the mailbox server's address
	client       *http.Client
	cmd          *exec.Cmd
	ended        chan error
}

const tenant = "nordlys"

// startStack starts onda dev and waits until it answers.
func startStack(ctx context.Context, o options) (*stack, error) {
	for _, p := range []int{o.port, o.smtpPort, o.mailboxPort} {
		if err := free(ctx, p); err != nil {
			return nil, err
		}
	}
	s := &stack{
		url: fmt.Sprintf("http://127.0.0.1:%d", o.port), mailbox: fmt.Sprintf("http://127.0.0.1:%d", o.mailboxPort), smtp: fmt.Sprintf("127.0.0.1:%d", o.smtpPort),
		client: &http.Client{
			Timeout:       30 * time.Second,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }, // a click's target is nobody's
			Transport:     &http.Transport{MaxIdleConnsPerHost: 32},
		},
		ended: make(chan error, 1),
	}
	s.cmd = exec.Command("bin/onda", "--tenant", tenant, "dev", "--binaries", "bin", "--docs", "examples/company", //nolint:noctx // stop ends it
		fmt.Sprintf("--port=%d", o.port), fmt.Sprintf("--smtp-port=%d", o.smtpPort), fmt.Sprintf("--mailbox-port=%d", o.mailboxPort))
	s.cmd.Stderr = os.Stderr
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM} // an interrupt is for the tour, which ends it
	if err := s.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start onda dev: %w", err)
	}
	go func() { s.ended <- s.cmd.Wait() }()
	err := wait(ctx, 60*time.Second, "onda dev to answer", func() (bool, error) {
		select {
		case err := <-s.ended:
			s.ended <- err
			return false, fmt.Errorf("onda dev ended: %w", err)
		default:
		}
		var status devStatus
		return s.get(ctx, s.url+"/dev/status", &status) == nil, nil
	})
	if err != nil {
		s.stop()
		return nil, err
	}
	return s, nil
}

// free tells whether a port can be had: else another onda dev would answer for the one of this tour, which then would kill and count what is not its own.
func free(ctx context.Context, port int) error {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		return fmt.Errorf("the tour needs port %d: end what listens there, perhaps another make run or onda dev: %w", port, err)
	}
	return l.Close()
}

func (s *stack) stop() {
	_ = s.cmd.Process.Signal(syscall.SIGTERM)
	<-s.ended //nolint:errcheck // it was told to end
}

// devStatus is what the tour reads of /dev/status.
type devStatus struct {
	Services []struct {
		Service   string  `json:"service"`
		State     string  `json:"state"`
		Starts    int64   `json:"starts"`
		Kills     int64   `json:"kills"`
		ReadyMost float64 `json:"readyMostSeconds"`
		PeakRSS   int64   `json:"peakRSS"`
		Processes []struct {
			PID int `json:"pid"`
		} `json:"processes"`
	} `json:"services"`
	Broker map[string]json.RawMessage `json:"broker"`
}

func (s *stack) get(ctx context.Context, url string, into any) error {
	body, err := s.fetch(ctx, http.MethodGet, url, nil, nil)
	if err != nil {
		return err
	}
	return json.Unmarshal(body, into)
}

func (s *stack) control(ctx context.Context, path string, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = s.fetch(ctx, http.MethodPost, s.url+path, bytes.NewReader(body), http.Header{"Content-Type": {"application/json"}})
	return err
}

// fetch makes a request; an answer of 400 or more is an error.
func (s *stack) fetch(ctx context.Context, method, url string, body io.Reader, header http.Header) ([]byte, error) {
	r, err := http.NewRequestWithContext(ctx, method, url, body)
	if err != nil {
		return nil, err
	}
	for k, v := range header {
		r.Header[k] = v
	}
	resp, err := s.client.Do(r)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	out, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode >= 400 {
		path, _, _ := strings.Cut(strings.TrimPrefix(url, s.url), "?")
		return out, fmt.Errorf("%s %s: %s: %.200s", method, path, resp.Status, out)
	}
	return out, nil
}

// wait asks again and again until it is so.
func wait(ctx context.Context, limit time.Duration, what string, so func() (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		ok, err := so()
		if err != nil || ok {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waited %v for %s: %w", limit, what, ctx.Err())
		case <-time.After(100 * time.Millisecond):
		}
	}
}
