package system

import (
	"bytes"
	"context"
	"html"
	"io"
	"regexp"
	"slices"
	"strings"

	"github.com/emersion/go-message"

	"github.com/onda-run/onda/internal/mail"
)

// letter is a mail as its recipient has it.
type letter struct {
	tenant   int32
	delivery int64
	to       string
	// returnPath is where its bounces go, messageID what its reports name.
	returnPath, messageID string
	pixel                 string
	links                 []string // tracked ones
	pages                 []string // of ours: /u, /p, /w, /y
	unsubscribe, mailto   string   // of List-Unsubscribe
}

var (
	hrefs  = regexp.MustCompile(`href="([^"]+)"`)
	images = regexp.MustCompile(`src="([^"]+/o/[^"]+)"`)
	angles = regexp.MustCompile(`<([^>]+)>`)
)

// letters reads all mails of the mailbox, in the order in which they came.
func (w *world) letters() []letter {
	w.t.Helper()
	n := w.box.Counts().Received
	if n == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(w.t.Context(), patience)
	defer cancel()
	if len(w.opened) < n {
		for m := range w.box.Watch(ctx, int64(len(w.opened))+1) {
			raw, err := w.box.Raw(m.ID)
			if err != nil {
				w.t.Fatal(err)
			}
			l := letter{to: m.To, returnPath: m.ReturnPath, messageID: m.MessageID}
			if err := l.read(raw); err != nil {
				w.t.Fatalf("mail %d: %v", m.ID, err)
			}
			if w.opened = append(w.opened, l); len(w.opened) == n {
				break
			}
		}
	}
	if len(w.opened) != n {
		w.t.Fatalf("read %d of %d mails", len(w.opened), n)
	}
	return slices.Clone(w.opened)
}

func (l *letter) read(raw []byte) error {
	l.tenant, l.delivery, _ = mail.ParseMessageID(l.messageID)
	entity, err := message.Read(bytes.NewReader(raw))
	if err != nil {
		return err
	}
	for _, a := range angles.FindAllStringSubmatch(entity.Header.Get("List-Unsubscribe"), -1) {
		if address, ok := strings.CutPrefix(a[1], "mailto:"); ok {
			l.mailto, _, _ = strings.Cut(address, "?")
		} else {
			l.unsubscribe = a[1]
		}
	}
	return entity.Walk(func(_ []int, part *message.Entity, err error) error {
		if err != nil {
			return err
		}
		if kind, _, _ := part.Header.ContentType(); kind != "text/html" {
			return nil
		}
		body, err := io.ReadAll(part.Body)
		if err != nil {
			return err
		}
		if m := images.FindSubmatch(body); m != nil {
			l.pixel = html.UnescapeString(string(m[1]))
		}
		for _, m := range hrefs.FindAllSubmatch(body, -1) {
			to := html.UnescapeString(string(m[1]))
			switch {
			case strings.Contains(to, "/c/"):
				l.links = append(l.links, to)
			case strings.HasPrefix(to, linkURL), strings.HasPrefix(to, formURL):
				l.pages = append(l.pages, to)
			}
		}
		return nil
	})
}

// page is the mail's link to /u, /p, /w or /y, "" for none.
func (l letter) page(name string) string {
	for _, p := range l.pages {
		if strings.Contains(p, "/"+name+"/") {
			return p
		}
	}
	return ""
}

// bounceReport is a report of delivery that failed (RFC 3464).
func bounceReport(l letter) string {
	return crlf(`From: <>
To: <` + l.returnPath + `>
Subject: Undelivered mail returned to sender
MIME-Version: 1.0
Content-Type: multipart/report; report-type=delivery-status; boundary="part"

--part
Content-Type: text/plain

This mailbox does not exist any more.

--part
Content-Type: message/delivery-status

Reporting-MTA: dns; mx.mail.example

Final-Recipient: rfc822; ` + l.to + `
Action: failed
Status: 5.1.1
Diagnostic-Code: smtp; 550 5.1.1 no such user

--part--
`)
}

// abuseReport is what a mailbox provider sends for a press of "this is spam" (RFC 5965).
func abuseReport(l letter) string {
	return crlf(`From: <abuse@mail.example>
To: <` + l.returnPath + `>
Subject: complaint about a message
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

Message-ID: ` + l.messageID + `
List-Unsubscribe: <` + l.unsubscribe + `>

--part--
`)
}

func crlf(s string) string { return strings.ReplaceAll(s, "\n", "\r\n") }
