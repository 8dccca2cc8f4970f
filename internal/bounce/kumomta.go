package bounce

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/onda-run/onda/internal/feedback"
	"github.com/onda-run/onda/internal/mail"
)

// kumoRecord is a log record of KumoMTA.
type kumoRecord struct {
	Type     string `json:"type"`
	Sender   string `json:"sender"`
	Response struct {
		Code     int `json:"code"`
		Enhanced *struct {
			Class   int `json:"class"`
			Subject int `json:"subject"`
			Detail  int `json:"detail"`
		} `json:"enhanced_code"`
		Content string `json:"content"`
	} `json:"response"`
	Timestamp unixTime        `json:"timestamp"`
	Headers   json.RawMessage `json:"headers"`
	Meta      json.RawMessage `json:"meta"`
	Feedback  *struct {
		Type            string          `json:"feedback_type"`
		MailFrom        string          `json:"original_mail_from"`
		OriginalMessage string          `json:"original_message"`
		Trace           json.RawMessage `json:"supplemental_trace"`
	} `json:"feedback_report"`
}

// parseKumoMTA reads records: one, a list, or one after the other, as its log hooks send them.
func parseKumoMTA(body []byte) (r reading, err error) {
	all := json.NewDecoder(bytes.NewReader(body))
	seen := false
	for {
		var raw json.RawMessage
		err := all.Decode(&raw)
		if errors.Is(err, io.EOF) && seen {
			return r, nil
		}
		if err != nil {
			return reading{}, fmt.Errorf("%w: want log records", errUnreadable)
		}
		seen = true
		var list []json.RawMessage
		if json.Unmarshal(raw, &list) != nil {
			list = []json.RawMessage{raw}
		}
		for _, one := range list {
			var k kumoRecord
			if json.Unmarshal(one, &k) != nil || k.Type == "" {
				r.unreadable++
				continue
			}
			t := told{sender: k.Sender, metadata: append(texts(k.Headers), texts(k.Meta)...), event: feedback.Event{At: k.Timestamp.time()}}
			kind, class := k.means()
			t.event.Kind, t.event.Class = kind, string(class)
			if f := k.Feedback; f != nil {
				// The record's sender is whoever reports.
				t.sender, t.messageID = f.MailFrom, originalMessageID(f.OriginalMessage)
				t.metadata = append(t.metadata, texts(f.Trace)...)
			}
			r.add(t, t.event.Kind != "")
		}
	}
}

func (k kumoRecord) means() (feedback.Kind, mail.Class) {
	switch k.Type {
	case "Delivery":
		return feedback.Delivered, ""
	case "Expiration":
		return feedback.Bounced, mail.Soft // it was tried until the time was over
	case "AdminBounce":
		return feedback.Bounced, mail.Policy // somebody took it out of the queue
	case "Bounce", "OOB":
		status := ""
		if e := k.Response.Enhanced; e != nil {
			status = fmt.Sprintf("%d.%d.%d", e.Class, e.Subject, e.Detail)
		}
		return feedback.Bounced, judge("", k.Response.Code, status, k.Response.Content)
	case "Feedback":
		if k.Feedback != nil && !slices.Contains([]string{"not-spam", "opt-out"}, k.Feedback.Type) {
			return feedback.Complained, ""
		}
		if k.Feedback != nil && k.Feedback.Type == "opt-out" {
			return feedback.Unsubscribed, ""
		}
	}
	return "", "" // TransientFailure: it tries on
}

// originalMessageID reads the Message-ID out of the beginning of a mail.
func originalMessageID(text string) string {
	for line := range strings.Lines(text) {
		if strings.TrimSpace(line) == "" {
			break
		}
		if name, value, ok := strings.Cut(line, ":"); ok && strings.EqualFold(name, "Message-ID") {
			return strings.TrimSpace(value)
		}
	}
	return ""
}
