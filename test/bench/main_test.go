package main

import (
	"strconv"
	"strings"
	"testing"

	"github.com/onda-run/onda/internal/mail"
)

// A mail of the reference reaches the sink as the size says, and a path's verdict follows from the medians.
func TestSinkCountsMails(t *testing.T) {
	t.Parallel()
	s, err := startSink(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.close(); err != nil {
			t.Error(err)
		}
	})
	if _, err := bareLoop(t.Context(), s.addr().Port, 40, 3); err != nil {
		t.Fatal(err)
	}
	n, size := s.take()
	if n != 40 {
		t.Errorf("%d mails of 40 came", n)
	}
	if size < 8_000 || size > 12_000 {
		t.Errorf("a mail has %d bytes, want some 10,000", size)
	}
	if n, _ := s.take(); n != 0 {
		t.Errorf("%d mails are counted twice", n)
	}
}

func TestLine(t *testing.T) {
	t.Parallel()
	p := path{name: "send", unit: "mails/s", goal: 0.5}
	for _, c := range []struct {
		ours, reference []float64
		want            string
	}{
		{[]float64{10, 500, 400}, []float64{1000, 800, 10}, "0.50 x  0.50 x"}, // the median, not the mean
		{[]float64{300}, []float64{1000}, "short"},
		{[]float64{400, 600}, []float64{1000}, "ok"},
	} {
		if got := (measured{ours: c.ours, reference: c.reference}).line(p); !strings.Contains(got, c.want) {
			t.Errorf("%v against %v: %q has no %q", c.ours, c.reference, got, c.want)
		}
	}
}

func TestChoose(t *testing.T) {
	t.Parallel()
	for only, want := range map[string]string{
		"": "send send-postfix send-starttls send-transactional pixel pixel-256 click click-256 cold batch form-page form-submit rebuild follow clicks hundred together import-new import-same campaign export", "click": "click", "campaign, send": "campaign send", "havoc-cut, send": "send havoc-cut",
		"hits": "hits-twice hits-kill hits-postgres hits-locked", "hits-kill,havoc-cut": "havoc-cut hits-kill",
		"havoc": "havoc-kill havoc-stop havoc-postgres havoc-late havoc-cut havoc-refuse havoc-plain havoc-shut",
	} {
		got, harm, hits, err := choose(paths(), havocs(), hitsHavocs(), only)
		var names []string
		for _, p := range got {
			names = append(names, p.name)
		}
		for _, h := range harm {
			names = append(names, h.name)
		}
		for _, h := range hits {
			names = append(names, h.name)
		}
		if err != nil || strings.Join(names, " ") != want {
			t.Errorf("%q chooses %v, %v; want %s", only, names, err, want)
		}
	}
	if _, _, _, err := choose(paths(), havocs(), hitsHavocs(), "sned"); err == nil || !strings.Contains(err.Error(), "sned") {
		t.Errorf("an unknown path: %v", err)
	}
}

// What havoc expects is what its relay does to so many recipients.
func TestHavocCountsItsFaults(t *testing.T) {
	t.Parallel()
	for _, h := range havocs() {
		if h.relay == nil {
			continue
		}
		for _, mails := range []int{1, 64, 3000, 12_345} {
			b := newBook()
			h.relay(b, mails)
			unknown, failed := 0, 0
			for n := 1; n <= mails; n++ {
				switch b.fates("u" + strconv.Itoa(n) + "@example.org") {
				case cutIn, cutAfter, cutLost, late:
					unknown++
				case refuse:
					failed++
				case none, putOff, cutBefore:
				}
			}
			if h.unknown != nil && h.unknown(mails) != unknown || h.unknown == nil && unknown > 0 {
				t.Errorf("%s: of %d mails %d are unknown, which it does not expect", h.name, mails, unknown)
			}
			if h.failed != nil && h.failed(mails) != failed || h.failed == nil && failed > 0 {
				t.Errorf("%s: of %d mails %d fail, which it does not expect", h.name, mails, failed)
			}
		}
	}
}

// The sink does to a mail what its book says, and writes down whose it took.
func TestSinkWithABook(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		fault fault
		want  mail.State
		taken int
	}{
		"none": {none, mail.Sent, 1}, "put off": {putOff, mail.Deferred, 0}, "refused": {refuse, mail.Failed, 0}, "cut before": {cutBefore, mail.NotTried, 0},
		"cut in": {cutIn, mail.Unknown, 0}, "cut after": {cutAfter, mail.Unknown, 1}, "lost": {cutLost, mail.Unknown, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBook()
			b.fates = func(string) fault { return c.fault }
			s, err := startSink(t.Context(), b)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = s.close() })
			conn, err := mail.Dial(t.Context(), mail.Relay{Host: "127.0.0.1", Port: s.addr().Port, TLS: mail.TLSNone})
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = conn.Close() }()
			body := "Message-ID: <x@y.example>\r\n\r\n" + strings.Repeat("a line of a mail\r\n", 100)
			if got := conn.Send(t.Context(), mail.Envelope{From: "a@y.example", To: "U1@example.org"}, []byte(body)); got.State != c.want {
				t.Errorf("got %s, want %s", got.State, c.want)
			}
			b.mu.Lock()
			defer b.mu.Unlock()
			if ids := b.mails["u1@example.org"]; len(ids) != c.taken || c.taken > 0 && ids[0] != "<x@y.example>" {
				t.Errorf("the book has %v, want %d", ids, c.taken)
			}
		})
	}
}
