package mailbox

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"

	"github.com/emersion/go-message"
	_ "github.com/emersion/go-message/charset" // mails come in every charset
)

// content is a mail that was read for showing.
type content struct {
	Headers     []field      `json:"headers"`
	Text        string       `json:"text"`
	HTML        string       `json:"html"`
	Attachments []attachment `json:"attachments"`
	Problem     string       `json:"problem,omitempty"` // where reading stopped; what came before is shown
}

type field struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

type attachment struct {
	Name string `json:"name"`
	Type string `json:"type"`
	Size int    `json:"size"`
	data []byte
}

const maxDepth, maxParts = 10, 100

var errTooManyParts = errors.New("it has too many parts, or parts nested too deep")

// read takes a mail apart. It shows what it can: a broken mail is what one looks at in a mailbox for trials.
func read(raw []byte) content {
	c := content{Headers: []field{}, Attachments: []attachment{}}
	e, err := message.Read(bytes.NewReader(raw))
	if err != nil && !message.IsUnknownCharset(err) && !message.IsUnknownEncoding(err) {
		c.Problem = "Its header does not parse: " + clean(err.Error())
		c.Text = strings.ToValidUTF8(string(raw), "\ufffd")
		return c
	}
	for f := e.Header.Fields(); f.Next(); {
		value, err := f.Text()
		if err != nil {
			value = f.Value()
		}
		c.Headers = append(c.Headers, field{f.Key(), clean(value)})
	}
	parts := 0
	if err := c.walk(e, 0, &parts); err != nil {
		c.Problem = "It was read up to here: " + clean(err.Error())
	}
	return c
}

func (c *content) walk(e *message.Entity, depth int, parts *int) error {
	if *parts++; *parts > maxParts || depth > maxDepth {
		return errTooManyParts
	}
	if mr := e.MultipartReader(); mr != nil {
		for {
			part, err := mr.NextPart()
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err != nil && !message.IsUnknownCharset(err) && !message.IsUnknownEncoding(err) {
				return err
			}
			if err := c.walk(part, depth+1, parts); err != nil {
				return err
			}
		}
	}
	body, err := io.ReadAll(e.Body)
	if err != nil && len(body) == 0 {
		return err
	}
	kind, params, typeErr := e.Header.ContentType()
	if typeErr != nil {
		kind = "text/plain"
	}
	disposition, dparams, _ := e.Header.ContentDisposition()
	switch {
	case disposition != "attachment" && kind == "text/html" && c.HTML == "":
		c.HTML = strings.ToValidUTF8(string(body), "\ufffd")
	case disposition != "attachment" && kind == "text/plain":
		if c.Text != "" {
			c.Text += "\n"
		}
		c.Text += strings.ReplaceAll(strings.ToValidUTF8(string(body), "\ufffd"), "\r\n", "\n")
	default:
		a := attachment{Name: dparams["filename"], Type: kind, Size: len(body), data: body}
		if a.Name == "" {
			a.Name = params["name"]
		}
		if a.Name = strings.ReplaceAll(clean(a.Name), "/", "_"); a.Name == "" {
			a.Name = fmt.Sprintf("part-%d", *parts)
		}
		c.Attachments = append(c.Attachments, a)
	}
	return err
}

var headTag = regexp.MustCompile(`(?i)<head(\s[^>]*)?>`)

// openLinksOutside makes links open in a tab of their own: within the sandboxed frame they could not work.
func openLinksOutside(html string) string {
	const base = `<base target="_blank">`
	if at := headTag.FindStringIndex(html); at != nil {
		return html[:at[1]] + base + html[at[1]:]
	}
	if !strings.HasPrefix(strings.ToLower(strings.TrimSpace(html)), "<!doctype") {
		return base + html
	}
	i := strings.IndexByte(html, '>') + 1 // after the doctype, so that the mode of rendering stays
	return html[:i] + base + html[i:]
}
