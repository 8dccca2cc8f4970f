package main

import (
	"bytes"
	"context"
	"fmt"
	"html"
	"io"
	"regexp"
	"strings"

	"github.com/emersion/go-message"
)

// mail is a mail as its recipient has it.
type mail struct {
	to, returnPath string
	pixel          string
	links          []string // tracked ones
	pages          []string // links to /u, /p, /w and /y
	unsubscribe    string   // of List-Unsubscribe, https or http
	unsubMail      string
	messageID      string
}

// summary is an element of the mailbox server's list.
type summary struct {
	ID         int64  `json:"id"`
	To         string `json:"to"`
	ReturnPath string `json:"returnPath"`
}

var (
	href  = regexp.MustCompile(`href="([^"]+)"`)
	image = regexp.MustCompile(`src="([^"]+/o/[^"]+)"`)
	angle = regexp.MustCompile(`<([^>]+)>`)
)

// read fetches a mail and takes it apart as a mail program would.
func (s *stack) read(ctx context.Context, m summary) (mail, error) {
	raw, err := s.fetch(ctx, "GET", fmt.Sprintf("%s/api/mails/%d.eml", s.mailbox, m.ID), nil, nil)
	if err != nil {
		return mail{}, err
	}
	out := mail{to: m.To, returnPath: m.ReturnPath}
	entity, err := message.Read(bytes.NewReader(raw))
	if err != nil {
		return out, fmt.Errorf("read mail %d: %w", m.ID, err)
	}
	out.messageID = entity.Header.Get("Message-ID")
	for _, a := range angle.FindAllStringSubmatch(entity.Header.Get("List-Unsubscribe"), -1) {
		if address, ok := strings.CutPrefix(a[1], "mailto:"); ok {
			out.unsubMail, _, _ = strings.Cut(address, "?")
		} else {
			out.unsubscribe = a[1]
		}
	}
	err = entity.Walk(func(_ []int, part *message.Entity, err error) error {
		if kind, _, _ := part.Header.ContentType(); err != nil || kind != "text/html" {
			return err
		}
		body, err := io.ReadAll(part.Body)
		if err != nil {
			return err
		}
		if m := image.FindSubmatch(body); m != nil {
			out.pixel = html.UnescapeString(string(m[1]))
		}
		for _, m := range href.FindAllSubmatch(body, -1) {
			to := html.UnescapeString(string(m[1]))
			switch {
			case strings.Contains(to, "/c/"):
				out.links = append(out.links, to)
			case strings.HasPrefix(to, s.url):
				out.pages = append(out.pages, to)
			}
		}
		return nil
	})
	return out, err
}

// page is the mail's link to /u, /p, /w or /y.
func (m mail) page(letter string) string {
	for _, p := range m.pages {
		if strings.Contains(p, "/"+letter+"/") {
			return p
		}
	}
	return ""
}
