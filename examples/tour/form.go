package main

import (
	"context"
	"fmt"
	"html"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"time"
)

var (
	hidden = regexp.MustCompile(`<input[^>]*type="hidden"[^>]*>`)
	named  = regexp.MustCompile(`name="([^"]*)"`)
	valued = regexp.MustCompile(`value="([^"]*)"`)
)

// visitor is a browser at an address of its own on the loopback network, since the form lets only so many sign up from one address.
func (s *stack) visitor(n int) *stack {
	v := *s
	client := *s.client
	client.Transport = &http.Transport{DialContext: (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 1, byte(1+n%250))}}).DialContext}
	v.client = &client
	return &v
}

// form opens the page of a form as a browser does.
func (s *stack) form(ctx context.Context, form string) (at string, page []byte, err error) {
	at = fmt.Sprintf("%s/f/%s/%s", s.url, tenant, form)
	page, err = s.fetch(ctx, http.MethodGet, at, nil, http.Header{"User-Agent": {browser}})
	return at, page, err
}

// post sends the form of a page, with the hidden inputs that it has.
func (s *stack) post(ctx context.Context, to string, page []byte, fields url.Values) ([]byte, error) {
	values := url.Values{}
	for _, input := range hidden.FindAllString(string(page), -1) {
		if name := named.FindStringSubmatch(input); name != nil {
			value := ""
			if v := valued.FindStringSubmatch(input); v != nil {
				value = html.UnescapeString(v[1])
			}
			values.Set(html.UnescapeString(name[1]), value)
		}
	}
	for k, v := range fields {
		values[k] = v
	}
	return s.fetch(ctx, http.MethodPost, to, strings.NewReader(values.Encode()),
		http.Header{"Content-Type": {"application/x-www-form-urlencoded"}, "User-Agent": {browser}})
}

// confirm waits for the mail with the link to confirm, and presses the button on the page behind it.
func (s *stack) confirm(ctx context.Context, address string) error {
	m, err := s.mailTo(ctx, address, "y")
	if err != nil {
		return err
	}
	to := m.page("y")
	page, err := s.fetch(ctx, http.MethodGet, to, nil, http.Header{"User-Agent": {browser}})
	if err != nil {
		return err
	}
	_, err = s.post(ctx, to, page, nil)
	return err
}

// mailTo waits for a mail to an address which has a link to a page of that letter, or any if it is empty.
func (s *stack) mailTo(ctx context.Context, address, letter string) (found mail, err error) {
	err = wait(ctx, 60*time.Second, "a mail to "+address, func() (bool, error) {
		var list struct {
			Mails []summary `json:"mails"`
		}
		if err := s.get(ctx, s.mailbox+"/api/mails?q="+url.QueryEscape(address), &list); err != nil {
			return false, err
		}
		for _, m := range list.Mails {
			if found, err = s.read(ctx, m); err != nil {
				return false, err
			}
			if letter == "" || found.page(letter) != "" {
				return true, nil
			}
		}
		return false, nil
	})
	return found, err
}
