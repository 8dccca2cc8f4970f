package bounce

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/onda-run/onda/internal/feedback"
	"github.com/onda-run/onda/internal/mail"
)

type postmarkRecord struct {
	RecordType  string
	Type        string // of Bounce
	Description string
	Details     string
	Metadata    json.RawMessage

	SuppressSending   bool // of SubscriptionChange
	SuppressionReason string

	BouncedAt, DeliveredAt, ChangedAt time.Time
}

// parsePostmark reads one record. Postmark keeps neither the return path nor the Message-ID of a mail: the metadata of the mail has to have one of them.
func parsePostmark(body []byte) (r reading, err error) {
	var p postmarkRecord
	if err := json.Unmarshal(body, &p); err != nil || p.RecordType == "" {
		return reading{}, fmt.Errorf("%w: want an object with a RecordType", errUnreadable)
	}
	kind, class, at := p.means()
	r.add(told{metadata: texts(p.Metadata), event: feedback.Event{Kind: kind, Class: string(class), At: at}}, kind != "")
	return r, nil
}

func (p postmarkRecord) means() (feedback.Kind, mail.Class, time.Time) {
	switch p.RecordType {
	case "Delivery":
		return feedback.Delivered, "", p.DeliveredAt
	case "SpamComplaint":
		return feedback.Complained, "", p.BouncedAt
	case "SubscriptionChange":
		// Bounces and complaints have records of their own.
		if p.SuppressSending && p.SuppressionReason == "ManualSuppression" {
			return feedback.Unsubscribed, "", p.ChangedAt
		}
	case "Bounce":
		kind, class := p.bounce()
		return kind, class, p.BouncedAt
	}
	return "", "", time.Time{}
}

// bounce reads the types of Postmark's API: https://postmarkapp.com/developer/api/bounce-api#bounce-types.
func (p postmarkRecord) bounce() (feedback.Kind, mail.Class) {
	says := mail.Soft
	switch p.Type {
	case "HardBounce", "BadEmailAddress", "ManuallyDeactivated":
		says = mail.Hard
	case "SpamNotification", "Blocked", "ISPBlock", "VirusNotification", "OpenRelayTest":
		says = mail.Block
	case "DMARCPolicy", "TemplateRenderingFailed", "SMTPApiError", "Unconfirmed", "ChallengeVerification":
		says = mail.Policy
	case "SpamComplaint":
		return feedback.Complained, ""
	case "Unsubscribe":
		return feedback.Unsubscribed, ""
	case "AutoResponder":
		return feedback.Delivered, "" // a mailbox answered by itself
	case "Subscribe", "AddressChange", "Transient", "InboundError":
		return "", ""
	}
	return feedback.Bounced, judge(says, 0, "", p.Details)
}
