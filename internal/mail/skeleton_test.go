package mail_test

import (
	"bytes"
	"io"
	"mime/quotedprintable"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/emersion/go-message"
	"github.com/google/go-cmp/cmp"

	"github.com/onda-run/onda/internal/mail"
)

// opened is a message as its recipient's program reads it.
type opened struct {
	Header map[string][]string
	Bodies []string
}

func open(t *testing.T, raw []byte) (o opened) {
	t.Helper()
	e, err := message.Read(bytes.NewReader(raw))
	if err != nil {
		t.Fatalf("%v\n%s", err, raw)
	}
	o.Header = e.Header.Map()
	for name, values := range o.Header {
		for i, v := range values {
			values[i] = strings.Join(strings.Fields(v), " ")
		}
		if name == "Content-Type" {
			kind, _, _ := e.Header.ContentType()
			o.Header[name] = []string{kind}
		}
	}
	err = e.Walk(func(_ []int, part *message.Entity, err error) error {
		if err != nil || part.MultipartReader() != nil {
			return err
		}
		body, err := io.ReadAll(part.Body)
		o.Bodies = append(o.Bodies, part.Header.Get("Content-Type")+"\n"+strings.TrimSuffix(string(body), "\r\n"))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// joined is a text of literals and what is between them.
func joined(literals, holes []string) string {
	var b strings.Builder
	for i, l := range literals {
		b.WriteString(l)
		if i < len(holes) {
			b.WriteString(holes[i])
		}
	}
	return b.String()
}

// A skeleton gives the message that is built for the recipient alone.
func TestSkeletonIsTheMessage(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("word ", 40)
	text, html := []string{"Dear ", ",\nnews.\n.\n..x ", " \n" + long}, []string{"<p>.Olá ", "</p>\n" + strings.Repeat("x=", 90), ""}
	for name, v := range map[string]mail.Varying{
		"plain": {To: "ada@example.com", Subject: "News", Text: []string{"Ada", "x"}, HTML: []string{"Ada", "1"}},
		"empty": {To: "a@b.example", Subject: "", Text: []string{"", ""}, HTML: []string{"", ""}},
		"hostile": {
			To: strings.Repeat("a", 64) + "@" + strings.Repeat("b", 60) + ".example", Subject: long + "ção =?UTF-8?q?x?= " + strings.Repeat("y", 100) + "\r\nBcc: x@example.com",
			Text: []string{".\r\n.\r\nMAIL FROM:<x>", "\ntrailing \t"}, HTML: []string{"\r\n--onda-80c4cfc3b2ea6c8f1ee3ac1bd6a8e2e4--\r\n" + strings.Repeat(".", 200) + "\x00é\r", "=\n= =3D"},
		},
	} {
		whole := mail.Message{
			From: mail.Address{Name: "Harbour, Café", Email: "news@harbour.example"}, ReplyTo: mail.Address{Email: "team@harbour.example"}, ListID: "news.harbour.example",
			Text: joined(text, v.Text), HTML: joined(html, v.HTML),
			ListUnsubscribe: mail.Unsubscribe{URL: "https://links.harbour.example/u/" + strings.Repeat("t", 56), Mailto: "u+" + strings.Repeat("t", 56) + "@harbour.example"},
			FeedbackID:      "1:news:7:onda", Headers: []mail.Header{{Name: "X-Kind", Value: "news " + long}},
		}
		relays, err := mail.ParseURLs("smtp://smtp.postmarkapp.com smtp://smtp.sendgrid.net")
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range mail.References(relays) {
			v.References = append(v.References, r.Header(1<<31-1, 1<<62))
		}
		v.Date, v.MessageID, v.Unsubscribe, v.FeedbackID = time.Date(2026, 11, 26, 8, 0, 0, 0, time.FixedZone("", 3600)), "<1.2@harbour.example>", whole.ListUnsubscribe, whole.FeedbackID
		for what, change := range map[string]func(*mail.Message){
			"both": func(*mail.Message) {}, "text alone": func(m *mail.Message) { m.HTML = "" }, "HTML alone": func(m *mail.Message) { m.Text = "" },
			"references": func(m *mail.Message) { m.References = slices.Clone(v.References) },
			"attached": func(m *mail.Message) {
				m.Attachments = []mail.Attachment{{Name: "Prüfung 1.pdf", Type: "application/pdf", Data: bytes.Repeat([]byte{0, '.', '\n', 255}, 5000)}, {Name: "logo.png", Data: []byte("png"), Inline: true}}
			},
			"attached under the names of marks": func(m *mail.Message) {
				m.Attachments = []mail.Attachment{{Name: "ONDA-TEXT.txt", Data: []byte("x")}, {Name: "ONDA-HTML", Data: []byte("y")}, {Name: "ONDA-SUBJECT.png", Data: []byte("png"), Inline: true}}
			},
			"attached to text": func(m *mail.Message) {
				m.HTML, m.Attachments = "", []mail.Attachment{{Name: ".txt", Data: []byte("..")}}
			},
			"an image within": func(m *mail.Message) {
				m.Text, m.Attachments = "", []mail.Attachment{{Name: "logo.png", Data: []byte("png"), Inline: true}}
			},
			"transactional": func(m *mail.Message) { m.ListUnsubscribe, m.FeedbackID, m.ListID = mail.Unsubscribe{}, "", "" },
		} {
			m := whole
			change(&m)
			s, err := mail.NewSkeleton(m, text, html)
			if err != nil {
				t.Fatalf("%s, %s: %v", name, what, err)
			}
			got, err := s.Append([]byte("before"), v)
			if err != nil {
				t.Fatalf("%s, %s: %v", name, what, err)
			}
			got = append(bytes.TrimPrefix(got, []byte("before")), s.Tail()...)
			m.To, m.Subject, m.Date, m.MessageID = mail.Address{Email: v.To}, v.Subject, v.Date, v.MessageID
			want, err := m.Build()
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(open(t, want), open(t, got)); diff != "" {
				t.Errorf("%s, %s (-built +put together)\n%s", name, what, diff)
			}
			for i, line := range strings.SplitAfter(string(got), "\r\n") {
				inner := strings.TrimSuffix(line, "\r\n")
				if strings.HasPrefix(line, ".") || strings.ContainsAny(inner, "\r\n\x00") || len(inner) > 998 || strings.ContainsFunc(inner, func(c rune) bool { return c > '~' }) {
					t.Errorf("%s, %s: line %d is %q", name, what, i, line)
				}
			}
		}
	}
}

func TestSkeletonRefuses(t *testing.T) {
	t.Parallel()
	m := mail.Message{From: mail.Address{Email: "a@b.example"}, Text: "x", FeedbackID: "x"}
	s, err := mail.NewSkeleton(m, []string{"", ""}, nil)
	if err != nil {
		t.Fatal(err)
	}
	good := mail.Varying{To: "c@d.example", Date: time.Now(), MessageID: "<1@b.example>", FeedbackID: "1", Text: []string{"x"}}
	if _, err := s.Append(nil, good); err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string]func(*mail.Varying){
		"ASCII letters":       func(v *mail.Varying) { v.To = "é@d.example" },
		"mailed":              func(v *mail.Varying) { v.To = "c@d.example\r\nBcc: x@example.com" },
		"Message-ID":          func(v *mail.Varying) { v.MessageID = "<1@b.example>\r\nX: y" },
		"may not stand":       func(v *mail.Varying) { v.FeedbackID = "1\r\nX: y" },
		"there are more hole": func(v *mail.Varying) { v.Text = nil },
	} {
		v := good
		change(&v)
		if _, err := s.Append(nil, v); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	m.Attachments = []mail.Attachment{{Name: "\r\n"}}
	if _, err := mail.NewSkeleton(m, []string{""}, nil); err == nil {
		t.Error("an attachment without a name")
	}
}

// Messages with the same attachments share one encoding of them, whatever else they say.
func TestSkeletonsShareTheirTail(t *testing.T) {
	t.Parallel()
	m := mail.Message{From: mail.Address{Email: "a@b.example"}, Text: "x", Attachments: []mail.Attachment{{Name: "a.bin", Data: bytes.Repeat([]byte("."), 10_000)}}}
	one, err := mail.NewSkeleton(m, []string{"one", ""}, nil)
	if err != nil {
		t.Fatal(err)
	}
	m.FeedbackID = "f"
	two, err := mail.NewSkeleton(m, []string{"two ", ".", ""}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(one.Tail()) < 13_000 || &one.Tail()[0] == &two.Tail()[0] {
		t.Fatalf("tails of %d and %d bytes", len(one.Tail()), len(two.Tail()))
	}
	two.ShareTail(one)
	if &one.Tail()[0] != &two.Tail()[0] {
		t.Errorf("the tails are not the same:\n%s\n%s", one.Tail()[:200], two.Tail()[:200])
	}
	m.Attachments[0].Data[0] = 'x'
	other, err := mail.NewSkeleton(m, []string{"one", ""}, nil)
	if err != nil {
		t.Fatal(err)
	}
	before := bytes.Clone(other.Tail())
	if other.ShareTail(one); !bytes.Equal(before, other.Tail()) {
		t.Error("another file was taken for the same")
	}
}

// Whatever is between the literals comes out of the standard library's reader as it went in.
func FuzzSkeleton(f *testing.F) {
	f.Add("a", "b")
	f.Add(".\r\n", " \t\r=\n")
	f.Fuzz(func(t *testing.T, one, two string) {
		literals := []string{"<p>" + two, one + " ", "end."}
		s, err := mail.NewSkeleton(mail.Message{From: mail.Address{Email: "a@b.example"}, Text: "x"}, literals, nil)
		if err != nil {
			t.Fatal(err)
		}
		holes := []string{one, two}
		raw, err := s.Append(nil, mail.Varying{To: "c@d.example", Date: time.Unix(0, 0), MessageID: "<1@b.example>", Text: holes})
		if err != nil {
			t.Fatal(err)
		}
		_, body, _ := bytes.Cut(raw, []byte("\r\n\r\n"))
		got, err := io.ReadAll(quotedprintable.NewReader(bytes.NewReader(body)))
		if err != nil {
			t.Fatalf("%v\n%s", err, body)
		}
		// Each text by itself: a CR at the end of one and a LF at the beginning of the next are two line ends.
		var want strings.Builder
		for i, l := range literals {
			want.WriteString(lines(l))
			if i < len(holes) {
				want.WriteString(lines(holes[i]))
			}
		}
		if w := want.String(); strings.TrimSuffix(string(got), "\r\n") != strings.TrimSuffix(w, "\r\n") {
			t.Errorf("%q, want %q\n%s", got, w, body)
		}
		for _, line := range slices.Collect(strings.SplitSeq(string(body), "\r\n")) {
			if strings.HasPrefix(line, ".") || strings.HasPrefix(line, "-") || len(line) > 76 {
				t.Errorf("line %q", line)
			}
		}
	})
}

func lines(s string) string {
	return strings.NewReplacer("\r\n", "\r\n", "\r", "\r\n", "\n", "\r\n").Replace(s)
}
