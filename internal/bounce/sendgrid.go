package bounce

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/onda-run/onda/internal/feedback"
	"github.com/onda-run/onda/internal/mail"
)

// The headers of SendGrid's signed event webhook.
const (
	sendGridSignature = "X-Twilio-Email-Event-Webhook-Signature"
	sendGridTimestamp = "X-Twilio-Email-Event-Webhook-Timestamp"
)

func sendGridKey(secret string) (*ecdsa.PublicKey, error) {
	der, err := base64.StdEncoding.DecodeString(secret)
	if err != nil {
		return nil, errors.New("this is not base64")
	}
	key, err := x509.ParsePKIXPublicKey(der)
	if err != nil {
		return nil, errors.New("this is no public key")
	}
	k, ok := key.(*ecdsa.PublicKey)
	if !ok || k.Curve != elliptic.P256() {
		return nil, errors.New("this is no key of ECDSA on P-256")
	}
	return k, nil
}

func checkSendGrid(secret string) error {
	_, err := sendGridKey(secret)
	return err
}

// verifySendGrid checks the signature, over the time and the body.
func verifySendGrid(_ context.Context, h hook, secret string, now time.Time) error {
	key, err := sendGridKey(secret)
	if err != nil {
		return fmt.Errorf("the tenant's secret for sendgrid: %w", err)
	}
	stamp := h.header(sendGridTimestamp)
	signature, err := base64.StdEncoding.DecodeString(h.header(sendGridSignature))
	if err != nil || stamp == "" {
		return errSignature
	}
	sum := sha256.New()
	sum.Write([]byte(stamp))
	sum.Write(h.body)
	if !ecdsa.VerifyASN1(key, sum.Sum(nil), signature) {
		return errSignature
	}
	seconds, err := strconv.ParseInt(stamp, 10, 64)
	if err != nil {
		return errOld
	}
	return fresh(time.Unix(seconds, 0), now)
}

type sendGridEvent struct {
	Event          string   `json:"event"`
	Type           string   `json:"type"` // of bounce: bounce or blocked
	MessageID      string   `json:"smtp-id"`
	Classification string   `json:"bounce_classification"`
	Reason         string   `json:"reason"`
	Status         string   `json:"status"`
	Timestamp      unixTime `json:"timestamp"`
}

func parseSendGrid(body []byte) (r reading, err error) {
	var all []json.RawMessage
	if err := json.Unmarshal(body, &all); err != nil {
		return reading{}, fmt.Errorf("%w: want a list of events", errUnreadable)
	}
	for _, raw := range all {
		var e sendGridEvent
		if json.Unmarshal(raw, &e) != nil || e.Event == "" {
			r.unreadable++
			continue
		}
		kind, class := e.means()
		r.add(told{
			messageID: e.MessageID, metadata: texts(raw), // unique arguments stand among the event's own members
			event: feedback.Event{Kind: kind, Class: string(class), At: e.Timestamp.time()},
		}, kind != "")
	}
	return r, nil
}

func (e sendGridEvent) means() (feedback.Kind, mail.Class) {
	switch e.Event {
	case "delivered":
		return feedback.Delivered, ""
	case "spamreport":
		return feedback.Complained, ""
	case "unsubscribe", "group_unsubscribe":
		return feedback.Unsubscribed, ""
	case "bounce":
		says := mail.Hard
		if e.Type == "blocked" {
			says = mail.Block
		}
		switch e.Classification {
		case "Invalid Address":
			says = mail.Hard
		case "Content", "Reputation":
			says = mail.Block
		case "Frequency or Volume Too High", "Mailbox Unavailable", "Technical":
			says = mail.Soft
		}
		return feedback.Bounced, judge(says, 0, e.Status, e.Reason)
	case "dropped": // SendGrid never tried
		switch e.Reason {
		case "Bounced Address", "Invalid":
			return feedback.Bounced, mail.Hard
		}
		return feedback.Bounced, mail.Policy
	}
	return "", ""
}
