package mail_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/emersion/go-message"
	_ "github.com/emersion/go-message/charset"
	gomail "github.com/emersion/go-message/mail"
	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/onda-run/onda/internal/mail"
)

func marketing() mail.Message {
	return mail.Message{
		From:    mail.Address{Name: "Maré Livros", Email: "novidades@acme.example"},
		ReplyTo: mail.Address{Email: "ola@acme.example"},
		To:      mail.Address{Name: "Ana d'Água", Email: "ana@example.com"},
		Subject: "Três livros para o mar, e um café à sua espera na livraria da praça",
		HTML: "<!doctype html><html lang=\"pt\"><body><p>Olá Ana,</p>\n<p style=\"color:#123\">três livros = um verão.</p>\n" +
			"<p><a href=\"https://l.acme.example/c/gearebymy72n7phamhke25c6z57a\">Ver</a></p>\n" +
			"<p><a href=\"https://l.acme.example/u/ceatcbyb4jaagc6st6zusoqhodvag\">Deixar de receber</a></p></body></html>\n",
		Text:      "Olá Ana,\n\ntrês livros = um verão.\n.\n.. e uma linha " + strings.Repeat("muito ", 40) + "longa\n\nhttps://l.acme.example/c/gearebymy72n7phamhke25c6z57a\n",
		MessageID: mail.MessageID(7, 99<<9|500, "acme.example"),
		Date:      time.Date(2026, 11, 24, 9, 5, 7, 0, time.UTC),
		ListUnsubscribe: mail.Unsubscribe{
			URL:    "https://l.acme.example/u/ceatcbyb4jaagc6st6zusoqhodvag",
			Mailto: "u+ceatcbyb4jaagc6st6zusoqhodvag@bounce.acme.example",
		},
		ListID:     "newsletter.acme.example",
		FeedbackID: "12:newsletter:7:onda",
		Headers:    []mail.Header{{Name: "X-Campaign", Value: "Verão"}},
	}
}

func transactional() mail.Message {
	return mail.Message{
		From:      mail.Address{Name: "Acme", Email: "accounts@acme.example"},
		To:        mail.Address{Email: "ana@example.com"},
		Subject:   "Your new password",
		HTML:      "<p>Here is your link: <a href=\"https://acme.example/reset\">reset</a></p>",
		Text:      "Here is your link: https://acme.example/reset",
		MessageID: mail.MessageID(7, 100<<9|1, "acme.example"),
		Date:      time.Date(2026, 11, 24, 9, 5, 7, 0, time.FixedZone("", 3600)),
	}
}

func plain() mail.Message {
	m := marketing()
	m.HTML = ""
	m.ListUnsubscribe.Mailto = ""
	return m
}

func TestGolden(t *testing.T) {
	t.Parallel()
	for name, m := range map[string]mail.Message{"marketing": marketing(), "transactional": transactional(), "plain": plain()} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			raw, err := m.Build()
			if err != nil {
				t.Fatal(err)
			}
			golden(t, name+".eml", raw)
			check(t, m, raw)
			again, err := m.Build()
			if err != nil || !bytes.Equal(raw, again) {
				t.Errorf("built again, it differs: %v", err)
			}
		})
	}
}

// check reads a built message with another library and compares it with what went in.
func check(t interface {
	Helper()
	Errorf(string, ...any)
	Fatalf(string, ...any)
}, m mail.Message, raw []byte,
) {
	t.Helper()
	if bytes.Contains(bytes.ReplaceAll(raw, []byte("\r\n"), nil), []byte("\n")) || bytes.Contains(bytes.ReplaceAll(raw, []byte("\r\n"), nil), []byte("\r")) {
		t.Errorf("bare CR or LF")
	}
	header, _, _ := bytes.Cut(raw, []byte("\r\n\r\n"))
	inHeader := true
	for i, line := range strings.Split(string(raw), "\r\n") {
		inHeader = inHeader && line != ""
		limit := 76
		if inHeader { // a URL or an address is never broken
			limit = 998
		}
		if len(line) > limit {
			t.Errorf("line %d has %d bytes: %s", i+1, len(line), line)
		}
		if strings.ContainsFunc(line, func(r rune) bool { return r > '~' }) {
			t.Errorf("line %d is not ASCII: %q", i+1, line)
		}
	}
	counts := map[string]int{}
	for line := range strings.SplitSeq(string(header), "\r\n") {
		if line == "" || line[0] == ' ' || line[0] == '\t' {
			continue
		}
		name, _, _ := strings.Cut(line, ":")
		counts[strings.ToLower(name)]++
	}
	want := map[string]int{"from": 1, "to": 1, "subject": 1, "date": 1, "message-id": 1, "mime-version": 1, "content-type": 1}
	if (m.HTML == "") != (m.Text == "") {
		want["content-transfer-encoding"] = 1
	}
	if m.ReplyTo != (mail.Address{}) {
		want["reply-to"] = 1
	}
	if m.ListUnsubscribe.URL != "" {
		want["list-unsubscribe"], want["list-unsubscribe-post"] = 1, 1
	}
	if m.ListID != "" {
		want["list-id"] = 1
	}
	if m.FeedbackID != "" {
		want["feedback-id"] = 1
	}
	for _, h := range m.Headers {
		want[strings.ToLower(h.Name)]++
	}
	if diff := cmp.Diff(want, counts); diff != "" {
		t.Errorf("header fields (-want +got):\n%s", diff)
	}

	e, err := message.Read(bytes.NewReader(raw))
	if err != nil {
		t.Fatalf("%v", err)
	}
	h := gomail.Header{Header: e.Header}
	if subject, err := h.Subject(); err != nil || subject != oneLine(m.Subject) {
		t.Errorf("subject %q, %v, want %q", subject, err, oneLine(m.Subject))
	}
	if id, err := h.MessageID(); err != nil || "<"+id+">" != m.MessageID {
		t.Errorf("Message-ID %q, %v", id, err)
	}
	if date, err := h.Date(); err != nil || !date.Equal(m.Date) {
		t.Errorf("date %v, %v", date, err)
	}
	for field, a := range map[string]mail.Address{"From": m.From, "To": m.To} {
		list, err := h.AddressList(field)
		if err != nil || len(list) != 1 || list[0].Address != a.Email || wide(list[0].Name) != wide(oneLine(a.Name)) {
			t.Errorf("%s: %v, %v", field, list, err)
		}
	}
	if m.ListUnsubscribe.URL != "" {
		if got := h.Get("List-Unsubscribe"); !strings.HasPrefix(got, "<"+m.ListUnsubscribe.URL+">") {
			t.Errorf("List-Unsubscribe: %s", got)
		}
		if got := h.Get("List-Unsubscribe-Post"); got != "List-Unsubscribe=One-Click" {
			t.Errorf("List-Unsubscribe-Post: %s", got)
		}
	}
	parts := map[string]string{}
	if err := e.Walk(func(_ []int, e *message.Entity, err error) error {
		if err != nil {
			return err
		}
		kind, _, err := e.Header.ContentType()
		if err != nil {
			return err
		}
		if !strings.HasPrefix(kind, "multipart/") {
			body, err := io.ReadAll(e.Body)
			if err != nil {
				return err
			}
			parts[kind] += string(body)
		}
		return nil
	}); err != nil {
		t.Fatalf("%v", err)
	}
	wantParts := map[string]string{}
	for kind, body := range map[string]string{"text/html": m.HTML, "text/plain": m.Text} {
		if body != "" {
			wantParts[kind] = strings.ReplaceAll(strings.ReplaceAll(body, "\r\n", "\n"), "\n", "\r\n")
		}
	}
	if diff := cmp.Diff(wantParts, parts); diff != "" {
		t.Errorf("parts (-want +got):\n%s", diff)
	}
}

// oneLine is what a name or subject is to be for the reader: the same, without line ends and control characters.
func oneLine(s string) string {
	return strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r <= ' ' || r >= 0x7f && r <= 0xa0 || r == '\u2028' || r == '\u2029' }), " ")
}

// wide levels the one character of names that is replaced.
func wide(s string) string { return strings.ReplaceAll(s, `\`, "＼") }

// TestHostileText builds messages with names, subjects and values that try to break out of their header field.
func TestHostileText(t *testing.T) {
	t.Parallel()
	for _, s := range []string{
		"Ana\r\nBcc: eve@example.com", "Ana\nBcc: eve@example.com", "Ana\rBcc: eve@example.com", "Ana\r\n\r\n<script>", "\r\n", "\x00",
		`"Ana" <eve@example.com>,`, `Ana\`, `Ana"`, "Ana\u2028Bcc: x", "Ana\u0085Bcc: x", "=?utf-8?q?=0D=0ABcc:_eve@example.com?=",
		"=?utf-8?b?DQpCY2M6IGV2ZUBleGFtcGxlLmNvbQ==?=", strings.Repeat("a", 400), strings.Repeat("é", 400), strings.Repeat("a b ", 100),
		"🌊🌊🌊 onda", "(comment)", "a,b;c:d@e", ".", " leading and trailing ", "\ttab\tand\vothers\f",
	} {
		m := marketing()
		m.From.Name, m.To.Name, m.Subject = clip(s, 100), clip(s, 100), s
		m.Headers = []mail.Header{{Name: "X-Value", Value: s}}
		raw, err := m.Build()
		if err != nil {
			t.Errorf("%q: %v", s, err)
			continue
		}
		check(t, m, raw)
	}
}

func clip(s string, n int) string {
	if r := []rune(s); len(r) > n {
		return string(r[:n])
	}
	return s
}

func TestAnyTextIsSafe(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		m := marketing()
		text := func(name string) string {
			return rapid.StringOfN(rapid.Rune().Filter(func(r rune) bool { return r != utf8.RuneError }), 0, 90, -1).Draw(t, name)
		}
		m.From.Name, m.To.Name, m.Subject = text("from"), text("to"), text("subject")
		m.Headers = []mail.Header{{Name: "X-Value", Value: text("value")}}
		raw, err := m.Build()
		if err != nil {
			t.Fatal(err)
		}
		check(t, m, raw)
	})
}

func TestLongTextIsCut(t *testing.T) {
	t.Parallel()
	m := transactional()
	m.Subject = strings.Repeat("word ", 1000)
	m.To.Name = strings.Repeat("name ", 1000)
	raw, err := m.Build()
	if err != nil {
		t.Fatal(err)
	}
	if len(raw) > 3000 {
		t.Errorf("the message has %d bytes", len(raw))
	}
}

func TestBuildRefuses(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		change func(*mail.Message)
		want   string
		addr   bool
	}{
		{"no body", func(m *mail.Message) { m.HTML, m.Text = "", "" }, "neither HTML nor text", false},
		{"no date", func(m *mail.Message) { m.Date = time.Time{} }, "no date", false},
		{"no Message-ID", func(m *mail.Message) { m.MessageID = "" }, "Message-ID", false},
		{"Message-ID that breaks out", func(m *mail.Message) { m.MessageID = "<a@b>\r\nBcc: x>" }, "Message-ID", false},
		{"no From", func(m *mail.Message) { m.From = mail.Address{} }, "From", true},
		{"To that breaks out", func(m *mail.Message) { m.To.Email = "ana@example.com\r\nBcc: eve@example.com" }, "To", true},
		{"two addresses", func(m *mail.Message) { m.To.Email = "ana@example.com, eve@example.com" }, "To", true},
		{"Reply-To", func(m *mail.Message) { m.ReplyTo.Email = "nobody" }, "Reply-To: address cannot be mailed: no @", true},
		{"unsubscribe URL that breaks out", func(m *mail.Message) { m.ListUnsubscribe.URL = "https://x/\r\nBcc: x" }, "List-Unsubscribe URL", false},
		{"unsubscribe URL with a bracket", func(m *mail.Message) { m.ListUnsubscribe.URL = "https://x/>" }, "List-Unsubscribe URL", false},
		{"unsubscribe over http", func(m *mail.Message) { m.ListUnsubscribe.URL = "http://l.acme.example/u/x" }, "needs https", false},
		{"unsubscribe mailto", func(m *mail.Message) { m.ListUnsubscribe.Mailto = "a@b>\r\n" }, "mailto", false},
		{"List-Id", func(m *mail.Message) { m.ListID = "a\r\nb" }, "List-Id", false},
		{"Feedback-ID", func(m *mail.Message) { m.FeedbackID = "a\r\nb" }, "Feedback-ID", false},
		{"field name", func(m *mail.Message) { m.Headers = []mail.Header{{Name: "X\r\nBcc", Value: "x"}} }, "field name", false},
		{"second Message-ID", func(m *mail.Message) { m.Headers = []mail.Header{{Name: "message-ID", Value: "x"}} }, "message-ID cannot be set", false},
		{"Bcc", func(m *mail.Message) { m.Headers = []mail.Header{{Name: "Bcc", Value: "x"}} }, "Bcc cannot be set", false},
		{"Content-Type", func(m *mail.Message) { m.Headers = []mail.Header{{Name: "Content-Type", Value: "x"}} }, "cannot be set", false},
		{"attachment without name", func(m *mail.Message) { m.Attachments = []mail.Attachment{{Name: "\r\n"}} }, "without a name", false},
		{"attachment type", func(m *mail.Message) { m.Attachments = []mail.Attachment{{Name: "a", Type: "a/b\r\nX: y"}} }, "MIME type", false},
	}
	for _, tt := range tests {
		m := marketing()
		tt.change(&m)
		raw, err := m.Build()
		if err == nil || !strings.Contains(err.Error(), tt.want) || errors.Is(err, mail.ErrAddress) != tt.addr || raw != nil {
			t.Errorf("%s: got %v, want %q", tt.name, err, tt.want)
		}
		if err != nil && tt.addr && strings.Contains(err.Error(), "example") {
			t.Errorf("%s: the error shows the address: %v", tt.name, err)
		}
	}
	m := marketing()
	m.ListUnsubscribe.URL = "http://127.0.0.1:8080/u/x" // development
	if _, err := m.Build(); err != nil {
		t.Error(err)
	}
}

func TestAttachments(t *testing.T) {
	t.Parallel()
	m := transactional()
	data := bytes.Repeat([]byte{0, 1, 2, 255, '\n'}, 5000)
	m.Attachments = []mail.Attachment{
		{Name: "fatura nº 1.pdf", Type: "application/pdf", Data: data},
		{Name: "a\".txt\r\nX-Evil: 1", Data: []byte("text")},
	}
	raw, err := m.Build()
	if err != nil {
		t.Fatal(err)
	}
	r, err := gomail.CreateReader(bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	if kind, _, _ := r.Header.ContentType(); kind != "multipart/mixed" {
		t.Errorf("content type %s", kind)
	}
	got := map[string][]byte{}
	inline := 0
	for {
		p, err := r.NextPart()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(p.Body)
		if err != nil {
			t.Fatal(err)
		}
		switch h := p.Header.(type) {
		case *gomail.AttachmentHeader:
			name, err := h.Filename()
			if err != nil {
				t.Error(err)
			}
			got[name] = body
		case *gomail.InlineHeader:
			inline++
		}
	}
	if diff := cmp.Diff(map[string][]byte{"fatura nº 1.pdf": data, "a_.txt X-Evil_ 1": []byte("text")}, got); diff != "" {
		t.Errorf("attachments (-want +got):\n%s", diff)
	}
	if inline != 2 || bytes.Contains(raw, []byte("\r\nX-Evil")) {
		t.Errorf("%d inline parts", inline)
	}
	again, err := m.Build()
	if err != nil || !bytes.Equal(raw, again) {
		t.Errorf("built again it is another message: %v", err)
	}
}

func TestIDs(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		tenant := rapid.Int32Min(1).Draw(t, "tenant")
		delivery := rapid.Int64Min(1).Draw(t, "delivery")
		id := mail.MessageID(tenant, delivery, "acme.example")
		gotTenant, gotDelivery, ok := mail.ParseMessageID(id)
		if !ok || gotTenant != tenant || gotDelivery != delivery {
			t.Fatalf("%s: %d, %d, %v", id, gotTenant, gotDelivery, ok)
		}
	})
	for _, s := range []string{"", "<>", "<a@b>", "<d1.t1>", "<d0.t1@x>", "<d1.t0@x>", "<d-1.t1@x>", "<dA.t1@x>", "<d1.tzzzzzzz@x>", "<d01.t1@x>"} {
		if tenant, delivery, ok := mail.ParseMessageID(s); ok {
			t.Errorf("%s was read as %d, %d", s, tenant, delivery)
		}
	}
	const tok = "oeasab6h6qkdausligosynbrr4"
	address := mail.ReturnPath(tok, "bounce.acme.example")
	for _, s := range []string{address, "<" + address + ">", strings.ToUpper(address), "b-" + tok + "@x", "b=" + tok + "@x", " b+" + tok + "@x "} {
		if got, ok := mail.ReturnPathToken(s); !ok || got != tok {
			t.Errorf("%s: %q, %v", s, got, ok)
		}
	}
	for _, s := range []string{"", "b", "b+", "b+@x", "b+short@x", "c+" + tok + "@x", "b+" + tok + "1@x", "b+" + strings.Repeat("a", 57) + "@x"} {
		if got, ok := mail.ReturnPathToken(s); ok {
			t.Errorf("%s was read as %q", s, got)
		}
	}
}

func TestCheckAddress(t *testing.T) {
	t.Parallel()
	for _, s := range []string{"a@b", "a@b.example", "first.last+tag@sub.b.example", "o'neill@b.example", "josé@b.example", "a@bücher.example", "a@xn--bcher-kva.example", "a_b-c{d}@b.example"} {
		if err := mail.CheckAddress(s); err != nil {
			t.Errorf("%s: %v", s, err)
		}
	}
	for _, s := range []string{
		"", "a", "@", "a@", "@b", "a b@c", "a@b c", "a@b..c", "a@.b", "a@b.", ".a@b", "a.@b", "a..b@c", "a@-b", "a@b-", "a@b_c", "a\r\n@b", "a@b\r\n", "<a@b>",
		"a@b@c", "a,b@c", `"a"@b`, "a\x00@b", "a\x7f@b", "a\u200b@b", "a\u00a0@b", "\xff@b", "a@[127.0.0.1]", strings.Repeat("a", 65) + "@b",
		"a@" + strings.Repeat("b", 64), "a@" + strings.Repeat("b.", 127) + "b", "a@b:c", "a\u2028@b",
	} {
		if err := mail.CheckAddress(s); !errors.Is(err, mail.ErrAddress) {
			t.Errorf("%q: %v", s, err)
		}
	}
}

func BenchmarkBuild(b *testing.B) {
	m := marketing()
	m.HTML = strings.Repeat(fmt.Sprintf("<p>%s</p>\n", strings.Repeat("olá ", 20)), 100)
	for b.Loop() {
		if _, err := m.Build(); err != nil {
			b.Fatal(err)
		}
	}
}
