package bounce

import (
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/sha1" // version 1 of SNS's signatures, the default of topics
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/onda-run/onda/internal/feedback"
	"github.com/onda-run/onda/internal/mail"
)

// snsEnvelope is what SNS wraps a message in.
type snsEnvelope struct {
	Type             string
	MessageID        string `json:"MessageId"`
	TopicARN         string `json:"TopicArn"`
	Subject          *string
	Message          string
	Timestamp        string
	Token            string
	SubscribeURL     string
	SignatureVersion string
	Signature        string
	SigningCertURL   string
}

// The types of envelopes.
const (
	snsNotification = "Notification"
	snsSubscribe    = "SubscriptionConfirmation"
	snsUnsubscribe  = "UnsubscribeConfirmation"
)

// canonical is the text that is signed.
func (e snsEnvelope) canonical() string {
	var b strings.Builder
	add := func(name, value string) { b.WriteString(name + "\n" + value + "\n") }
	add("Message", e.Message)
	add("MessageId", e.MessageID)
	if e.Type == snsNotification {
		if e.Subject != nil {
			add("Subject", *e.Subject)
		}
	} else {
		add("SubscribeURL", e.SubscribeURL)
	}
	add("Timestamp", e.Timestamp)
	if e.Type != snsNotification {
		add("Token", e.Token)
	}
	add("TopicArn", e.TopicARN)
	add("Type", e.Type)
	return b.String()
}

// checkTopic: anybody may have a topic of SNS that signs, so it is the topic that proves the sender.
func checkTopic(secret string) error {
	if !regexp.MustCompile(`^arn:aws(-[a-z-]+)?:sns:[a-z0-9-]+:\d{12}:[A-Za-z0-9_-]{1,256}(\.fifo)?$`).MatchString(secret) {
		return errors.New("such as arn:aws:sns:eu-west-1:123456789012:bounces")
	}
	return nil
}

// sns verifies envelopes. It keeps the few certificates that they are signed with.
type sns struct {
	fetch fetch

	mu    sync.Mutex
	certs map[string]*x509.Certificate
}

func (s *sns) verify(ctx context.Context, h hook, secret string, now time.Time) error {
	var e snsEnvelope
	// Nothing is fetched for who does not even name the topic.
	if json.Unmarshal(h.body, &e) != nil || e.TopicARN != secret {
		return errSignature
	}
	signature, err := base64.StdEncoding.DecodeString(e.Signature)
	if err != nil || len(signature) == 0 || !ofSNS(e.SigningCertURL) || !strings.HasSuffix(e.SigningCertURL, ".pem") {
		return errSignature
	}
	hash, sum := crypto.SHA256, []byte(nil)
	switch text := []byte(e.canonical()); e.SignatureVersion {
	case "1":
		hash = crypto.SHA1
		v := sha1.Sum(text)
		sum = v[:]
	case "2":
		v := sha256.Sum256(text)
		sum = v[:]
	default:
		return errSignature
	}
	cert, err := s.certificate(ctx, e.SigningCertURL, now)
	if err != nil {
		return err
	}
	key, ok := cert.PublicKey.(*rsa.PublicKey)
	if !ok || rsa.VerifyPKCS1v15(key, hash, sum, signature) != nil {
		return errSignature
	}
	at, err := time.Parse(time.RFC3339, e.Timestamp)
	if err != nil {
		return errOld
	}
	return fresh(at, now)
}

// ofSNS tells whether a URL is SNS's own. Not every host of amazonaws.com is Amazon's to answer for: anybody may put files into a bucket.
func ofSNS(text string) bool {
	u, err := url.Parse(text)
	return err == nil && u.Scheme == "https" && u.User == nil && regexp.MustCompile(`^sns\.[a-z0-9-]{1,30}\.amazonaws\.com(\.cn)?$`).MatchString(u.Host)
}

// maxCerts bounds the certificates that are kept: there is one a region at a time.
const maxCerts = 32

// certificate reads a certificate, once. TLS proves that it comes from SNS.
func (s *sns) certificate(ctx context.Context, at string, now time.Time) (*x509.Certificate, error) {
	s.mu.Lock()
	cert := s.certs[at]
	s.mu.Unlock()
	if cert == nil {
		text, err := s.fetch(ctx, at)
		if err != nil {
			return nil, fmt.Errorf("read SNS's certificate: %w", err)
		}
		block, _ := pem.Decode(text)
		if block == nil {
			return nil, errSignature
		}
		if cert, err = x509.ParseCertificate(block.Bytes); err != nil {
			return nil, errSignature
		}
		s.mu.Lock()
		if len(s.certs) >= maxCerts || s.certs == nil {
			s.certs = map[string]*x509.Certificate{}
		}
		s.certs[at] = cert
		s.mu.Unlock()
	}
	if now.Before(cert.NotBefore) || now.After(cert.NotAfter) {
		return nil, errSignature
	}
	return cert, nil
}

// sesRecord is what SES tells: by feedback notifications (notificationType) or by event publishing (eventType).
type sesRecord struct {
	NotificationType string `json:"notificationType"`
	EventType        string `json:"eventType"`
	Mail             struct {
		Source  string `json:"source"`
		Headers []struct {
			Name  string `json:"name"`
			Value string `json:"value"`
		} `json:"headers"`
		CommonHeaders struct {
			MessageID string `json:"messageId"`
		} `json:"commonHeaders"`
		Tags json.RawMessage `json:"tags"`
	} `json:"mail"`
	Bounce struct {
		Type       string `json:"bounceType"`
		SubType    string `json:"bounceSubType"`
		Recipients []struct {
			Status     string `json:"status"`
			Diagnostic string `json:"diagnosticCode"`
		} `json:"bouncedRecipients"`
		Timestamp time.Time `json:"timestamp"`
	} `json:"bounce"`
	Complaint struct {
		FeedbackType string    `json:"complaintFeedbackType"`
		Timestamp    time.Time `json:"timestamp"`
	} `json:"complaint"`
	Delivery struct {
		Timestamp time.Time `json:"timestamp"`
	} `json:"delivery"`
}

func parseSES(body []byte) (r reading, err error) {
	var e snsEnvelope
	if err := json.Unmarshal(body, &e); err != nil {
		return reading{}, fmt.Errorf("%w: want an envelope of SNS", errUnreadable)
	}
	switch e.Type {
	case snsSubscribe:
		if !ofSNS(e.SubscribeURL) {
			return reading{}, fmt.Errorf("%w: SubscribeURL is not of SNS", errUnreadable)
		}
		return reading{confirm: e.SubscribeURL}, nil
	case snsUnsubscribe:
		return reading{ignored: 1}, nil
	case snsNotification:
	default:
		return reading{}, fmt.Errorf("%w: unknown Type", errUnreadable)
	}
	var n sesRecord
	if json.Unmarshal([]byte(e.Message), &n) != nil {
		return reading{ignored: 1}, nil // such as the line that SES sends to a topic that is new
	}
	t := told{sender: n.Mail.Source, messageID: n.Mail.CommonHeaders.MessageID, metadata: texts(n.Mail.Tags)}
	for _, h := range n.Mail.Headers {
		if strings.EqualFold(h.Name, "Message-ID") {
			t.metadata = append(t.metadata, h.Value)
		}
	}
	t.event = n.means()
	r.add(t, t.event.Kind != "")
	return r, nil
}

func (n sesRecord) means() feedback.Event {
	switch n.NotificationType + n.EventType {
	case "Delivery":
		return feedback.Event{Kind: feedback.Delivered, At: n.Delivery.Timestamp}
	case "Complaint":
		if n.Complaint.FeedbackType != "not-spam" {
			return feedback.Event{Kind: feedback.Complained, At: n.Complaint.Timestamp}
		}
	case "Bounce":
		return feedback.Event{Kind: feedback.Bounced, Class: string(n.class()), At: n.Bounce.Timestamp}
	case "Reject": // by SES, before any try
		return feedback.Event{Kind: feedback.Bounced, Class: string(mail.Policy)}
	}
	return feedback.Event{} // DeliveryDelay: it tries on
}

func (n sesRecord) class() mail.Class {
	says := mail.Soft
	switch n.Bounce.Type + " " + n.Bounce.SubType {
	case "Permanent UnsubscribedRecipient":
		return mail.Policy
	case "Permanent Suppressed", "Permanent OnAccountSuppressionList":
		return mail.Hard // it bounced hard before
	case "Transient ContentRejected", "Transient AttachmentRejected", "Transient MessageTooLarge":
		says = mail.Block
	default:
		if n.Bounce.Type == "Permanent" {
			says = mail.Hard
		}
	}
	if len(n.Bounce.Recipients) == 0 {
		return says
	}
	to := n.Bounce.Recipients[0] // a mail of ours has one
	return judge(says, 0, to.Status, to.Diagnostic)
}
