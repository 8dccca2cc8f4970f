package main

import (
	"context"
	"fmt"
	"hash/fnv"
	"net/http"
	"net/smtp"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
)

// Browsers and machines by which mails are read.
const (
	browser = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0 Safari/537.36"
	phone   = "Mozilla/5.0 (iPhone; CPU iPhone OS 18_1 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.1 Mobile/15E148 Safari/604.1"
	proxy   = "Mozilla/5.0 (Windows NT 5.1; rv:11.0) Gecko Firefox/11.0 (via ggpht.com GoogleImageProxy)"
	scanner = "Mozilla/5.0 (compatible; SafeLinksScanner/1.0; +https://scanner.example/bot)"
)

// people are the simulated recipients, and what they did.
type people struct {
	s *stack
	// What each kind of recipient did.
	read, opened, clicked, proxied, scanned, unsubscribed, complained, bounced atomic.Int64
}

// act lets the recipients of some mails do what such people do; who does what depends on the address alone.
func (p *people) act(ctx context.Context, mails []summary) error {
	work := make(chan summary)
	var wg sync.WaitGroup
	var once sync.Once
	var failed error
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for range 8 {
		wg.Go(func() {
			for m := range work {
				if err := p.one(ctx, m); err != nil {
					once.Do(func() { failed = err; cancel() })
				}
			}
		})
	}
	for _, m := range mails {
		select {
		case work <- m:
		case <-ctx.Done():
		}
	}
	close(work)
	wg.Wait()
	return failed
}

func (p *people) one(ctx context.Context, summary summary) error {
	m, err := p.s.read(ctx, summary)
	if err != nil {
		return err
	}
	p.read.Add(1)
	switch n := number(m.to) % 100; {
	case n < 30: // reads it, on a computer or a phone
		agent := browser
		if n%2 == 0 {
			agent = phone
		}
		return p.reads(ctx, m, agent, n < 12)
	case n < 40: // a mailbox provider loads pictures, whether someone looks or not
		p.proxied.Add(1)
		return p.load(ctx, http.MethodGet, m.pixel, proxy)
	case n < 46: // a company's scanner looks at every link, at once
		p.scanned.Add(1)
		for _, l := range m.links {
			if err := p.load(ctx, http.MethodHead, l, scanner); err != nil {
				return err
			}
			if err := p.load(ctx, http.MethodGet, l, browser); err != nil { // and pretends to be a person
				return err
			}
		}
		// It also looks at the link to unsubscribe, which must do nothing.
		return p.load(ctx, http.MethodGet, m.unsubscribe, scanner)
	case n < 48: // the mail program's button (RFC 8058)
		p.unsubscribed.Add(1)
		_, err := p.s.fetch(ctx, http.MethodPost, m.unsubscribe, strings.NewReader(url.Values{"List-Unsubscribe": {"One-Click"}}.Encode()),
			http.Header{"Content-Type": {"application/x-www-form-urlencoded"}, "User-Agent": {phone}})
		return err
	case n == 48: // by mail
		p.unsubscribed.Add(1)
		return p.s.mailBack(m.to, m.unsubMail, "Subject: unsubscribe\r\n\r\n")
	case n == 49: // the mailbox is gone, which its server finds out later
		p.bounced.Add(1)
		return p.s.mailBack("", m.returnPath, report(m.to))
	case n == 50: // "this is spam"
		p.complained.Add(1)
		return p.s.mailBack("", m.returnPath, complaint(m))
	}
	return nil
}

// reads loads the pixel and, if they like it, follows a link or two.
func (p *people) reads(ctx context.Context, m mail, agent string, clicks bool) error {
	p.opened.Add(1)
	if err := p.load(ctx, http.MethodGet, m.pixel, agent); err != nil {
		return err
	}
	if !clicks || len(m.links) == 0 {
		return nil
	}
	p.clicked.Add(1)
	return p.load(ctx, http.MethodGet, m.links[number(m.to+"link")%len(m.links)], agent)
}

// load loads a page; an empty URL is none: a mail that is not tracked has no pixel.
func (p *people) load(ctx context.Context, method, url, agent string) error {
	if url == "" {
		return nil
	}
	_, err := p.s.fetch(ctx, method, url, nil, http.Header{"User-Agent": {agent}})
	return err
}

func number(s string) int {
	h := fnv.New32a()
	_, _ = h.Write([]byte(s))
	return int(h.Sum32() % 1_000_003)
}

// mailBack sends a mail back over SMTP.
func (s *stack) mailBack(from, to, message string) error {
	if to == "" {
		return nil
	}
	c, err := smtp.Dial(s.smtp)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	if err := c.Mail(from); err != nil {
		return err
	}
	if err := c.Rcpt(to); err != nil {
		return err
	}
	w, err := c.Data()
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintf(w, "From: <%s>\r\nTo: <%s>\r\n%s", from, to, message); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	return c.Quit()
}

// report is a report of delivery that failed (RFC 3464).
func report(to string) string {
	return strings.ReplaceAll(`Subject: Undelivered mail returned to sender
MIME-Version: 1.0
Content-Type: multipart/report; report-type=delivery-status; boundary="part"

--part
Content-Type: text/plain

This mailbox does not exist any more.

--part
Content-Type: message/delivery-status

Reporting-MTA: dns; mx.mail.example

Final-Recipient: rfc822; `+to+`
Action: failed
Status: 5.1.1
Diagnostic-Code: smtp; 550 5.1.1 no such user

--part--
`, "\n", "\r\n")
}

// complaint is a report of abuse (RFC 5965).
func complaint(m mail) string {
	return strings.ReplaceAll(`Subject: complaint about a message
MIME-Version: 1.0
Content-Type: multipart/report; report-type=feedback-report; boundary="part"

--part
Content-Type: text/plain

A user has marked this message as spam.

--part
Content-Type: message/feedback-report

Feedback-Type: abuse
User-Agent: Mailbox/1.0
Version: 1

--part
Content-Type: text/rfc822-headers

Message-ID: `+m.messageID+`
List-Unsubscribe: <`+m.unsubscribe+`>

--part--
`, "\n", "\r\n")
}
