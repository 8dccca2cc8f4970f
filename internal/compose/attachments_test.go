package compose

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	gomail "github.com/emersion/go-message/mail"
	"github.com/google/go-cmp/cmp"

	"github.com/onda-run/onda/internal/apply"
	"github.com/onda-run/onda/internal/delivery"
	"github.com/onda-run/onda/internal/mail"
	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/postgres"
)

const attaching = `
apiVersion: onda/v1
kind: Email
metadata: {name: terms}
spec:
  transactional: true
  from: "Acme <shop@acme.example>"
  subject: "Terms for {{ contact.first_name }}"
  html: '<p><img src="cid:logo.png" alt="Acme"><img alt="" src=''cid:logo.png''> {{ contact.first_name }}</p>'
  locales: {fr: {html: '<p>Bonjour {{ contact.first_name }}</p>'}}
  attachments:
    - {file: terms.pdf}
    - {file: logo.png, inline: true}
`

// files gives the files of a message that goes out as out.
func files(t *testing.T, out mail.Outgoing) map[string]string {
	t.Helper()
	r, err := gomail.CreateReader(bytes.NewReader(slices.Concat(out.Content, out.Tail)))
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]string{}
	for {
		p, err := r.NextPart()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(p.Body)
		if err != nil {
			t.Fatal(err)
		}
		name := p.Header.Get("Content-Id")
		if h, ok := p.Header.(*gomail.AttachmentHeader); ok {
			if name, err = h.Filename(); err != nil {
				t.Fatal(err)
			}
		}
		if name != "" {
			all[name] = string(body)
		}
	}
}

// An email's files go out with each of its mails, are encoded once for all of them and copied for none.
func TestAttachmentsAreSharedByMails(t *testing.T) {
	t.Parallel()
	b := setUp(t)
	terms := strings.Repeat("terms", 200_000)
	fsys := fstest.MapFS{"all.yaml": {Data: []byte(documents + "---" + attaching)}, "terms.pdf": {Data: []byte(terms)}, "logo.png": {Data: []byte("logo")}}
	if _, _, err := apply.Directory(t.Context(), b.db, pgtest.Acme, fsys, nil); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"terms.pdf": terms, "<logo.png>": "logo"}
	var outs []mail.Outgoing
	for i, fields := range []string{`{"first_name": "Ana"}`, `{"first_name": "Luc", "locale": "fr"}`, `{"first_name": "Bo"}`} {
		m := b.mail("terms", b.contact(fmt.Sprintf("c%d@x.example", i), fields), delivery.ID(9, i+1))
		out, err := m.Append(nil)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, files(t, out)); diff != "" {
			t.Errorf("files (-want +got):\n%.500s", diff)
		}
		again, err := m.Append(nil)
		if err != nil || !bytes.Equal(out.Content, again.Content) || len(out.Content) > 4<<10 {
			t.Errorf("made again it is another, or what is each mail's own has %d bytes: %v", len(out.Content), err)
		}
		outs = append(outs, out)
	}
	for _, out := range outs[1:] {
		if &out.Tail[0] != &outs[0].Tail[0] {
			t.Error("the files were encoded twice")
		}
	}

	// A mail may have files of its own besides, and looks the same in a browser.
	m := b.mail("terms", b.contact("own@x.example", `{}`), delivery.ID(9, 9))
	m.Attachments = []delivery.Attachment{{Name: "own.txt", Content: []byte("own")}}
	out, err := m.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	own := map[string]string{"terms.pdf": terms, "<logo.png>": "logo", "own.txt": "own"}
	if diff := cmp.Diff(own, files(t, out)); diff != "" {
		t.Errorf("files (-want +got):\n%.500s", diff)
	}
	if diff := cmp.Diff([]string{"terms.pdf", "logo.png", "own.txt"}, m.Attached()); diff != "" {
		t.Error(diff)
	}
	page, err := m.Page()
	if err != nil || !strings.Contains(page.HTML, `<img src="data:image/png;base64,bG9nbw==" alt="Acme"><img alt="" src='data:image/png;base64,bG9nbw=='>`) {
		t.Errorf("%v\n%s", err, page.HTML)
	}
	if pgtest.One[int](t, b.db, pgtest.Acme, "SELECT count(*)::int FROM attachment") != 2 || pgtest.One[int](t, b.db, pgtest.Brava, "SELECT count(*)::int FROM attachment") != 0 {
		t.Error("the files are not stored once, or elsewhere")
	}
	pgtest.Exec(t, b.db, pgtest.Acme, "DELETE FROM attachment WHERE length(content) = 4")
	pgtest.In(t, b.db, pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) error {
		if _, err := New(Config{LinkURL: "https://links.example.com"}).ByName(ctx, tx, "terms"); !errors.Is(err, ErrBroken) || !strings.Contains(err.Error(), "logo.png is not stored") {
			t.Errorf("a file that is away: %v", err)
		}
		return nil
	})
}

// What is kept ready is bounded by what it holds.
func TestEmailsWithAttachmentsAreKeptWithinBounds(t *testing.T) {
	t.Parallel()
	c := New(Config{})
	for i := range int64(400) {
		e := &Email{}
		if i%2 == 0 {
			e.attachments = []mail.Attachment{{Data: make([]byte, 5<<20)}}
		}
		c.keep(cacheKey{1, i}, e)
		n := 0
		for _, e := range c.ready {
			n += e.attached()
		}
		if n > cacheAttached || len(c.ready) > cacheSize || c.ready[cacheKey{1, i}] != e {
			t.Fatalf("after %d: %d emails with %d bytes", i, len(c.ready), n)
		}
	}
	if len(c.ready) < 190 {
		t.Errorf("%d emails are kept: those without attachments are not in the way", len(c.ready))
	}
}

// A template that grows without end costs its own mail, and no other.
func TestATemplateThatGrows(t *testing.T) {
	t.Parallel()
	b := setUp(t)
	b.apply(`
apiVersion: onda/v1
kind: Field
metadata: {name: bio}
spec: {type: text}
---
apiVersion: onda/v1
kind: Email
metadata: {name: grows}
spec:
  transactional: true
  from: "Acme <shop@acme.example>"
  subject: "s"
  html: '<p>{% for x in (1..contact.bio) %}{{ contact.email }}{{ data.text }}{% endfor %}</p>'
`)
	big, small := b.mail("grows", b.contact("big@x.example", `{"bio": "9000"}`), delivery.ID(9, 1)), b.mail("grows", b.contact("small@x.example", `{"bio": "2"}`), delivery.ID(9, 2))
	big.Data = map[string]any{"text": strings.Repeat("x", 3400)} // 30 MB of it
	small.Data = big.Data
	out, err := big.Append(nil)
	if err == nil || err.Error() != "html: rendering: the output is larger than 4 MiB" || cap(out.Content) > 0 {
		t.Errorf("a mail of 30 MB: %d bytes, %v", len(out.Content), err)
	}
	if out, err = small.Append(nil); err != nil || len(out.Content) < 6800 {
		t.Errorf("the mail after it: %d bytes, %v", len(out.Content), err)
	}
}
