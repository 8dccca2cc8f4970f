package bounce

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/onda-run/onda/internal/feedback"
	"github.com/onda-run/onda/internal/mail"
)

type mailgunHook struct {
	Signature struct {
		Timestamp string `json:"timestamp"`
		Token     string `json:"token"`
		Signature string `json:"signature"`
	} `json:"signature"`
	Event *mailgunEvent `json:"event-data"`
}

type mailgunEvent struct {
	Event     string   `json:"event"`
	Severity  string   `json:"severity"` // of failed: permanent or temporary
	Reason    string   `json:"reason"`
	Timestamp unixTime `json:"timestamp"`
	Envelope  struct {
		Sender string `json:"sender"`
	} `json:"envelope"`
	Message struct {
		Headers struct {
			MessageID string `json:"message-id"`
		} `json:"headers"`
	} `json:"message"`
	Status struct {
		Code        int    `json:"code"`
		Enhanced    string `json:"enhanced-code"`
		Message     string `json:"message"`
		Description string `json:"description"`
	} `json:"delivery-status"`
	Variables json.RawMessage `json:"user-variables"` // an object, or a list when there are none
}

func checkSigningKey(secret string) error {
	if len(secret) < 16 || len(secret) > 200 {
		return errors.New("16 characters or more")
	}
	return nil
}

// verifyMailgun checks the signature, which is over a time and a random token and not over the event.
func verifyMailgun(_ context.Context, h hook, secret string, now time.Time) error {
	var m mailgunHook
	if json.Unmarshal(h.body, &m) != nil && m.Signature.Signature == "" {
		return errSignature
	}
	got, err := hex.DecodeString(m.Signature.Signature)
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write([]byte(m.Signature.Timestamp + m.Signature.Token))
	if err != nil || !hmac.Equal(got, mac.Sum(nil)) {
		return errSignature
	}
	seconds, err := strconv.ParseInt(m.Signature.Timestamp, 10, 64)
	if err != nil {
		return errOld
	}
	return fresh(time.Unix(seconds, 0), now)
}

func parseMailgun(body []byte) (r reading, err error) {
	var m mailgunHook
	if err := json.Unmarshal(body, &m); err != nil || m.Event == nil || m.Event.Event == "" {
		return reading{}, fmt.Errorf("%w: want event-data with an event", errUnreadable)
	}
	e := m.Event
	kind, class := e.means()
	r.add(told{
		sender: e.Envelope.Sender, messageID: e.Message.Headers.MessageID, metadata: texts(e.Variables),
		event: feedback.Event{Kind: kind, Class: string(class), At: e.Timestamp.time()},
	}, kind != "")
	return r, nil
}

func (e mailgunEvent) means() (feedback.Kind, mail.Class) {
	switch e.Event {
	case "delivered":
		return feedback.Delivered, ""
	case "complained":
		return feedback.Complained, ""
	case "unsubscribed":
		return feedback.Unsubscribed, ""
	case "rejected": // by Mailgun, before any try
		return feedback.Bounced, mail.Policy
	case "failed":
		if e.Severity != "permanent" {
			return "", "" // it tries on
		}
		switch e.Reason {
		case "suppress-bounce":
			return feedback.Bounced, mail.Hard
		case "suppress-complaint", "suppress-unsubscribe":
			return feedback.Bounced, mail.Policy
		}
		text := e.Status.Message
		if text == "" {
			text = e.Status.Description
		}
		says := mail.Class("")
		if slices.Contains([]string{"old", "greylisted"}, e.Reason) { // it was tried until the time was over
			says = mail.Soft
		}
		return feedback.Bounced, judge(says, e.Status.Code, e.Status.Enhanced, text)
	}
	return "", ""
}
