package mail

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Skeleton is a message to many, written but for what differs from one recipient to the next: go-mail lays it out once, and each recipient's is put together by
// copying. It gives a message whose parts are those that Message.Build makes of the same, at a twentieth of the cost. Safe for concurrent use.
type Skeleton struct {
	pieces []piece
	tail   []byte
}

// piece is some of the message as it is sent, and what comes after it.
type piece struct {
	literal []byte
	column  int // where the literal ends in its line, of quoted-printable
	hole    hole
	index   int // of a reference's, a text's or HTML's hole
}

// hole is a place that differs.
type hole int

// The holes.
const (
	noHole hole = iota
	toHole
	subjectHole
	dateHole
	messageIDHole
	unsubscribeURLHole
	unsubscribeMailtoHole
	feedbackHole
	referenceHole
	textHole
	htmlHole
)

// Varying is what a recipient's message differs in. What the skeleton was made without is left out, and the rest must be there.
type Varying struct {
	// To is an address of ASCII letters: see PlainAddress.
	To          string
	Subject     string
	Date        time.Time
	MessageID   string // as of Message
	Unsubscribe Unsubscribe
	FeedbackID  string
	References  []Header
	// Text and HTML are what goes between the literals.
	Text, HTML []string
}

// The marks that stand in the layout for what differs; of about the length of what comes in their place, so that header fields are folded where they should be.
const (
	markHost   = "mark.invalid"
	markTo     = "onda-to@" + markHost
	markText   = "ONDA-TEXT"
	markHTML   = "ONDA-HTML"
	markLine   = "ONDA-SUBJECT"
	markID     = "onda-id@" + markHost
	markToken  = "ondaondaondaondaondaondaondaonda"
	markURL    = "https://" + markHost + "/u/" + markToken
	markMailto = "u+" + markToken + "@" + markHost
	markBack   = "ONDA-FEEDBACK-ID"
	markRef    = "ONDA-REFERENCE-"
)

// NewSkeleton lays a message out. Of m it takes From, ReplyTo, ListID, Headers and Attachments as they are; of Text, HTML, ListUnsubscribe, FeedbackID and References whether there are any, since each
// recipient brings their own. text and html are the literals of both, between which the recipient's texts go. An error matches those of Build.
func NewSkeleton(m Message, text, html []string) (*Skeleton, error) {
	m.To, m.Subject, m.MessageID, m.Date = Address{Email: markTo}, markLine, "<"+markID+">", time.Unix(0, 0).UTC()
	type marked struct {
		text  string
		hole  hole
		index int
	}
	marks := []marked{{markTo, toHole, 0}, {markLine, subjectHole, 0}, {markID, messageIDHole, 0}, {m.Date.Format(time.RFC1123Z), dateHole, 0}}
	mark := func(there bool, into *string, text string, h hole) {
		if there {
			*into = text
			marks = append(marks, marked{text, h, 0})
		}
	}
	mark(m.ListUnsubscribe.URL != "", &m.ListUnsubscribe.URL, markURL, unsubscribeURLHole)
	mark(m.ListUnsubscribe.Mailto != "", &m.ListUnsubscribe.Mailto, markMailto, unsubscribeMailtoHole)
	mark(m.FeedbackID != "", &m.FeedbackID, markBack, feedbackHole)
	mark(m.Text != "", &m.Text, markText, textHole)
	mark(m.HTML != "", &m.HTML, markHTML, htmlHole)
	m.References = slices.Clone(m.References)
	for i := range m.References {
		m.References[i].Value = markRef + string(rune('A'+i))
		marks = append(marks, marked{m.References[i].Value, referenceHole, i})
	}
	layout, err := m.Build()
	if err != nil {
		return nil, fmt.Errorf("lay out a message: %w", err)
	}
	type place struct {
		at, end int
		hole    hole
		index   int
	}
	places := make([]place, 0, len(marks))
	head := layout // without the attachments, whose names may be anything
	for _, body := range []string{markText, markHTML} {
		if at := bytes.Index(layout, []byte("\r\n\r\n"+body)); at >= 0 {
			head = layout[:at+len("\r\n\r\n"+body)]
		}
	}
	for _, k := range marks {
		at := bytes.Index(head, []byte(k.text))
		if at < 0 || bytes.Contains(head[at+len(k.text):], []byte(k.text)) {
			return nil, fmt.Errorf("lay out a message: %q is not in it once", k.text)
		}
		places = append(places, place{at, at + len(k.text), k.hole, k.index})
	}
	slices.SortFunc(places, func(a, b place) int { return cmp.Compare(a.at, b.at) })
	s := &Skeleton{}
	from := 0
	for _, p := range places {
		before := layout[from:p.at]
		from = p.end
		switch p.hole {
		case textHole:
			s.body(before, text, p.hole)
		case htmlHole:
			s.body(before, html, p.hole)
		default:
			s.pieces = append(s.pieces, piece{literal: before, hole: p.hole, index: p.index})
		}
	}
	if len(m.Attachments) > 0 {
		for i := range s.pieces { // they must not keep the layout, once its tail is another's
			s.pieces[i].literal = bytes.Clone(s.pieces[i].literal)
		}
		s.tail = layout[from:]
		return s, nil
	}
	s.pieces = append(s.pieces, piece{literal: layout[from:]})
	return s, nil
}

// Tail is what comes after what Append writes: the attachments, encoded once. It is nil where there are none, and must not be written to.
func (s *Skeleton) Tail() []byte { return s.tail }

// ShareTail takes the tail of another in the place of its own, where both are the same: the editions of an email have the same attachments.
func (s *Skeleton) ShareTail(with *Skeleton) {
	if bytes.Equal(s.tail, with.tail) {
		s.tail = with.tail
	}
}

// body adds a body's pieces: its literals are encoded here, once.
func (s *Skeleton) body(before []byte, literals []string, h hole) {
	for i, l := range literals {
		encoded, column := appendQP(nil, l, 0)
		if i == len(literals)-1 { // nothing differs after it
			if strings.HasSuffix(l, " ") || strings.HasSuffix(l, "\t") {
				encoded = append(encoded, softBreak...)
			}
			s.pieces = append(s.pieces, piece{literal: slices.Concat(before, encoded)})
			return
		}
		s.pieces = append(s.pieces, piece{literal: slices.Concat(before, encoded), column: column, hole: h, index: i})
		before = nil
	}
}

// Append writes a recipient's message, but for the tail, behind dst, as the content of DATA: lines end with CRLF, none begins with a dot, and all of it is ASCII.
func (s *Skeleton) Append(dst []byte, v Varying) (_ []byte, err error) {
	for _, p := range s.pieces {
		dst = append(dst, p.literal...)
		switch p.hole {
		case noHole:
		case toHole:
			if !PlainAddress(v.To) {
				return dst, fmt.Errorf("write message: %w: not of ASCII letters", ErrAddress)
			}
			dst = append(dst, v.To...)
		case subjectHole:
			dst = appendFolded(dst, len("Subject: "), encodeText(v.Subject))
		case dateHole:
			dst = v.Date.AppendFormat(dst, time.RFC1123Z)
		case messageIDHole:
			id, err := bracketed(v.MessageID)
			if err != nil {
				return dst, fmt.Errorf("write message: %w", err)
			}
			dst = append(dst, id...)
		case unsubscribeURLHole:
			if dst, err = appendToken(dst, v.Unsubscribe.URL); err != nil {
				return dst, err
			}
		case unsubscribeMailtoHole:
			if dst, err = appendToken(dst, v.Unsubscribe.Mailto); err != nil {
				return dst, err
			}
		case feedbackHole:
			if dst, err = appendToken(dst, v.FeedbackID); err != nil {
				return dst, err
			}
		case referenceHole:
			if p.index >= len(v.References) {
				return dst, fmt.Errorf("write message: %d references where there are more holes", len(v.References))
			}
			if dst, err = appendToken(dst, v.References[p.index].Value); err != nil {
				return dst, err
			}
		case textHole, htmlHole:
			texts := v.Text
			if p.hole == htmlHole {
				texts = v.HTML
			}
			if p.index >= len(texts) {
				return dst, fmt.Errorf("write message: %d texts where there are more holes", len(texts))
			}
			text, column := texts[p.index], p.column
			if column > 0 && (strings.HasPrefix(text, "\r") || strings.HasPrefix(text, "\n")) {
				dst, column = append(dst, softBreak...), 0 // a blank before it is none at the end of a line
			}
			dst, column = appendQP(dst, text, column)
			if column > 0 {
				dst = append(dst, softBreak...) // what follows was encoded from the beginning of a line
			}
		}
	}
	return dst, nil
}

// appendToken writes what stands in a header field without blanks.
func appendToken(dst []byte, text string) ([]byte, error) {
	if text == "" || !ascii(text) || strings.ContainsAny(text, "<>,") {
		return dst, fmt.Errorf("write message: %q may not stand in a header field", text)
	}
	return append(dst, text...), nil
}

// PlainAddress tells whether an address can be written into a header field as it is: a dot-atom of ASCII.
func PlainAddress(addr string) bool {
	for i := range len(addr) {
		if c := addr[i]; c <= ' ' || c > '~' {
			return false
		}
	}
	_, err := envelopeAddress(addr)
	return err == nil
}

// appendFolded writes a field's text, folded between words (RFC 5322 section 2.2.3) so that lines have at most 76 characters where words allow that.
func appendFolded(dst []byte, column int, text string) []byte {
	const most = 76
	for i, word := range strings.Split(text, " ") {
		if i > 0 {
			if column+1+len(word) > most && word != "" {
				dst, column = append(dst, "\r\n"...), 0
			}
			dst = append(dst, ' ')
			column++
		}
		dst = append(dst, word...)
		column += len(word)
	}
	return dst
}

const softBreak = "=\r\n"

// appendQP encodes text as quoted-printable (RFC 2045 section 6.7) from a column of a line on, and gives the column where it ends. Line ends of any kind become CRLF. No
// line begins with a dot, so that none needs another in SMTP (RFC 5321 section 4.5.2), or with a hyphen, so that none ends a part. A blank at the end of the text is left as it is: a line end may not follow.
func appendQP(dst []byte, text string, column int) ([]byte, int) {
	const most = 75 // and the = of a soft line break
	const hex = "0123456789ABCDEF"
	for i := 0; i < len(text); i++ {
		// Most of it is letters: as many as the line has room for at once.
		if column > 0 {
			end := min(len(text), i+most-column)
			from := i
			for i < end && text[i] > ' ' && text[i] <= '~' && text[i] != '=' {
				i++
			}
			dst = append(dst, text[from:i]...)
			if column += i - from; i == len(text) {
				break
			}
		}
		c := text[i]
		if c == '\r' || c == '\n' {
			if c == '\r' && i+1 < len(text) && text[i+1] == '\n' {
				i++
			}
			dst, column = append(dst, "\r\n"...), 0
			continue
		}
		plain := c > ' ' && c <= '~' && c != '='
		if c == ' ' || c == '\t' {
			plain = i+1 == len(text) || text[i+1] != '\r' && text[i+1] != '\n'
		}
		width := 3
		if plain {
			width = 1
		}
		if column+width > most {
			dst, column = append(dst, softBreak...), 0
		}
		if plain && (c != '.' && c != '-' || column > 0) {
			dst = append(dst, c)
			column++
			continue
		}
		if column+3 > most {
			dst, column = append(dst, softBreak...), 0
		}
		dst = append(dst, '=', hex[c>>4], hex[c&15])
		column += 3
	}
	return dst, column
}
