package mail

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	netmail "net/mail"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	gomail "github.com/wneessen/go-mail"
)

// Message is one mail to one recipient. Build turns it into bytes; the envelope is separate, in Envelope.
type Message struct {
	From    Address
	ReplyTo Address // zero: none
	To      Address
	Subject string

	HTML string // with Text: multipart/alternative; one of both may be empty
	Text string

	MessageID string    // with angle brackets, see the function MessageID
	Date      time.Time // when it was due or made; the same at a resend makes the same bytes

	ListUnsubscribe Unsubscribe // zero for transactional mail, which gets no such field
	ListID          string      // RFC 2919, without brackets: newsletter.acme.example
	FeedbackID      string      // a:b:c:sender, for feedback loops

	Headers     []Header
	References  []Header // as Reference makes them
	Attachments []Attachment
}

// Unsubscribe is what List-Unsubscribe offers. A URL makes it one-click (RFC 8058), with List-Unsubscribe-Post.
type Unsubscribe struct {
	URL    string // https; http only to this machine, for development
	Mailto string // address, optionally with ?subject=…; may be empty
}

// Header is one further header field. Fields that Message has a place for, or that relays write, are refused.
type Header struct{ Name, Value string }

// Attachment is a file sent along.
type Attachment struct {
	Name string
	Type string // MIME type; empty: by the name's extension
	Data []byte
	// Inline says that it is shown where the HTML has cid: and its name.
	Inline bool
}

// Build writes the message: UTF-8, quoted-printable, CRLF line ends, no line over 998 bytes and, but for words that must not be
// broken, none over 76. No value can add a field or end the header: control characters in names and subjects become spaces, and
// everything else that holds one is refused. An address that cannot be mailed makes an error that matches ErrAddress.
func (m Message) Build() ([]byte, error) {
	msg, err := m.compose()
	if err != nil {
		return nil, fmt.Errorf("build message: %w", err)
	}
	size := 1024 + 2*(len(m.HTML)+len(m.Text))
	for _, a := range m.Attachments {
		size += 256 + len(a.Data)*78/57 // a line of base64, CRLF included, has 57 bytes
	}
	var buf bytes.Buffer
	buf.Grow(size)
	if _, err := msg.WriteTo(&buf); err != nil {
		return nil, fmt.Errorf("build message: %w", err)
	}
	m.bound(buf.Bytes())
	return buf.Bytes(), nil
}

var multipart = regexp.MustCompile(`(?m)^Content-Type: multipart/[a-z]+;\r\n boundary=([0-9a-f]{` + strconv.Itoa(boundaryLength) + `})\r\n`)

const boundaryLength = 60 // of those that go-mail makes

// bound puts boundaries that are derived in the place of those that go-mail made at random, so that a resend is the same to the byte. It is not told ours where there are
// several levels, since it would take one for all.
func (m Message) bound(b []byte) {
	if len(m.Attachments) == 0 {
		return
	}
	head := b
	if i := bytes.Index(b, []byte("Content-Type: text/")); i >= 0 { // before it there is nothing that the texts or files say
		head = b[:i]
	}
	for level, found := range multipart.FindAllSubmatch(head, -1) {
		made := bytes.Clone(found[1])
		ours := []byte(m.boundary(level))
		for at := 0; ; {
			i := bytes.Index(b[at:], made)
			if i < 0 {
				break
			}
			at += i + copy(b[at+i:], ours)
		}
	}
}

// boundary is as long as go-mail's own, and another at each level.
func (m Message) boundary(level int) string {
	sum := sha256.Sum256([]byte(strconv.Itoa(level) + m.MessageID))
	return ("onda-" + hex.EncodeToString(sum[:]))[:boundaryLength]
}

func (m Message) compose() (*gomail.Msg, error) {
	if m.HTML == "" && m.Text == "" {
		return nil, errors.New("neither HTML nor text")
	}
	if m.Date.IsZero() {
		return nil, errors.New("no date")
	}
	id, err := bracketed(m.MessageID)
	if err != nil {
		return nil, err
	}
	options := []gomail.MsgOption{
		gomail.WithCharset(gomail.CharsetUTF8), gomail.WithEncoding(gomail.EncodingQP), gomail.WithNoDefaultUserAgent(),
	}
	if len(m.Attachments) == 0 { // else see bound
		sum := sha256.Sum256([]byte(m.MessageID))
		options = append(options, gomail.WithBoundary("onda-"+hex.EncodeToString(sum[:16])))
	}
	msg := gomail.NewMsg(options...)

	for field, a := range map[gomail.AddrHeader]Address{
		gomail.HeaderFrom: m.From, gomail.HeaderTo: m.To, gomail.HeaderReplyTo: m.ReplyTo,
	} {
		if field == gomail.HeaderReplyTo && a == (Address{}) {
			continue
		}
		h, err := a.header()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", field, err)
		}
		msg.SetAddrHeaderFromMailAddress(field, []*netmail.Address{h}...)
	}
	msg.SetMessageIDWithValue(id)
	msg.SetDateWithValue(m.Date)
	msg.SetGenHeader(gomail.HeaderSubject, encodeText(m.Subject))

	if err := m.ListUnsubscribe.set(msg); err != nil {
		return nil, err
	}
	if m.ListID != "" {
		if !ascii(m.ListID) || strings.ContainsAny(m.ListID, "<>") {
			return nil, fmt.Errorf("List-Id %q: want letters, digits and dots", m.ListID)
		}
		msg.SetGenHeader("List-Id", "<"+m.ListID+">")
	}
	if m.FeedbackID != "" {
		if !ascii(m.FeedbackID) {
			return nil, fmt.Errorf("Feedback-ID %q: want letters, digits and colons", m.FeedbackID)
		}
		msg.SetGenHeader("Feedback-ID", m.FeedbackID)
	}
	for _, h := range slices.Concat(m.Headers, m.References) {
		if err := checkFieldName(h.Name); err != nil {
			return nil, err
		}
		msg.SetGenHeader(gomail.Header(h.Name), encodeText(h.Value))
	}

	switch {
	case m.Text == "":
		msg.SetBodyString(gomail.TypeTextHTML, m.HTML)
	case m.HTML == "":
		msg.SetBodyString(gomail.TypeTextPlain, m.Text)
	default: // the better form last, RFC 2046 section 5.1.4
		msg.SetBodyString(gomail.TypeTextPlain, m.Text)
		msg.AddAlternativeString(gomail.TypeTextHTML, m.HTML)
	}
	for _, a := range m.Attachments {
		var fo []gomail.FileOption
		if a.Type != "" {
			if strings.ContainsFunc(a.Type, func(c rune) bool { return c < ' ' || c > '~' }) {
				return nil, fmt.Errorf("attachment type %q is not a MIME type", a.Type)
			}
			fo = append(fo, gomail.WithFileContentType(gomail.ContentType(a.Type)))
		}
		name := clip(clean(a.Name), 100)
		if name == "" {
			return nil, errors.New("attachment without a name")
		}
		attach := msg.AttachReader
		if a.Inline {
			attach = msg.EmbedReader
		}
		if err := attach(name, bytes.NewReader(a.Data), fo...); err != nil {
			return nil, fmt.Errorf("attach: %w", err)
		}
	}
	return msg, nil
}

// set writes List-Unsubscribe and, for a URL, List-Unsubscribe-Post.
func (u Unsubscribe) set(msg *gomail.Msg) error {
	var uris []string
	if u.URL != "" {
		p, err := url.Parse(u.URL)
		if err != nil || p.Host == "" || !ascii(u.URL) || strings.ContainsAny(u.URL, "<>,") {
			return errors.New("List-Unsubscribe URL is not a URL of letters, digits and punctuation without commas")
		}
		if p.Scheme != "https" && (p.Scheme != "http" || !thisMachine(p.Hostname())) {
			return fmt.Errorf("List-Unsubscribe URL has scheme %s: one-click needs https (RFC 8058 section 3.1)", p.Scheme)
		}
		uris = append(uris, "<"+u.URL+">")
	}
	if u.Mailto != "" {
		if !ascii(u.Mailto) || strings.ContainsAny(u.Mailto, "<>,") || !strings.Contains(u.Mailto, "@") {
			return errors.New("List-Unsubscribe mailto is not an address")
		}
		uris = append(uris, "<mailto:"+u.Mailto+">")
	}
	if len(uris) > 0 {
		msg.SetGenHeader(gomail.HeaderListUnsubscribe, uris...)
	}
	if u.URL != "" {
		msg.SetGenHeader(gomail.HeaderListUnsubscribePost, "List-Unsubscribe=One-Click")
	}
	return nil
}

func thisMachine(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || strings.HasSuffix(host, ".localhost") || ip != nil && ip.IsLoopback()
}

// bracketed checks a Message-ID and gives it without its brackets.
func bracketed(id string) (string, error) {
	inner, ok := strings.CutPrefix(id, "<")
	inner, end := strings.CutSuffix(inner, ">")
	left, right, at := strings.Cut(inner, "@")
	if !ok || !end || !at || left == "" || right == "" || !ascii(inner) || strings.ContainsAny(inner, "<>") || len(inner) > 250 {
		return "", fmt.Errorf("Message-ID %q: want <id@domain>", id)
	}
	return inner, nil
}

// ascii tells whether text is printable ASCII without spaces.
func ascii(s string) bool {
	return !strings.ContainsFunc(s, func(c rune) bool { return c <= ' ' || c > '~' })
}

// checkFieldName refuses names that are not names (RFC 5322 section 2.2) and fields that are set elsewhere or by relays.
func checkFieldName(name string) error {
	if name == "" || len(name) > 60 || !ascii(name) || strings.Contains(name, ":") {
		return fmt.Errorf("header field name %q: want letters, digits and hyphens", name)
	}
	lower := strings.ToLower(name)
	switch lower {
	case "from", "to", "cc", "bcc", "sender", "reply-to", "subject", "date", "message-id", "mime-version", "return-path", "received",
		"dkim-signature", "list-unsubscribe", "list-unsubscribe-post", "list-id", "feedback-id", "disposition-notification-to":
		return fmt.Errorf("header field %s cannot be set as a further header", name)
	}
	if strings.HasPrefix(lower, "content-") || strings.HasPrefix(lower, "resent-") || strings.HasPrefix(lower, "arc-") {
		return fmt.Errorf("header field %s cannot be set as a further header", name)
	}
	return nil
}

// maxHeaderText is how much of a subject or further header is sent, in characters.
const maxHeaderText = 500

// encodeText makes text fit for a header field: cleaned, and as encoded words (RFC 2047) where it has other than ASCII, a word too
// long for a line, or what a reader would take for an encoded word.
func encodeText(s string) string {
	s = clip(clean(s), maxHeaderText)
	longest := 0
	for _, w := range strings.Split(s, " ") {
		longest = max(longest, len(w))
	}
	plain := !strings.ContainsFunc(s, func(c rune) bool { return c > '~' })
	if plain && longest <= 70 && !strings.Contains(s, "=?") {
		return s
	}
	var words []string
	for s != "" {
		n := 0
		for n < len(s) {
			_, size := utf8.DecodeRuneInString(s[n:])
			if n+size > 42 { // 42 bytes are 56 of base64: 68 with the frame, and a line may have 76
				break
			}
			n += size
		}
		words = append(words, "=?UTF-8?b?"+base64.StdEncoding.EncodeToString([]byte(s[:n]))+"?=")
		s = s[n:]
	}
	return strings.Join(words, " ")
}
