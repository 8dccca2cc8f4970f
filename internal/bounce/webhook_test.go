package bounce

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap/zaptest"

	"github.com/onda-run/onda/internal/feedback"
	"github.com/onda-run/onda/internal/mail"
	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/token"
)

// signers have a key of each provider's kind.
type signers struct {
	sendGrid *ecdsa.PrivateKey
	sns      *rsa.PrivateKey
	cert     []byte
}

var makeSigners = sync.OnceValue(func() signers {
	must := func(err error) {
		if err != nil {
			panic(err)
		}
	}
	var s signers
	var err error
	s.sendGrid, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	s.sns, err = rsa.GenerateKey(rand.Reader, 2048)
	must(err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "sns.amazonaws.com"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &s.sns.PublicKey, s.sns)
	must(err)
	s.cert = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return s
})

const (
	topic      = "arn:aws:sns:eu-west-1:123456789012:bounces"
	certURL    = "https://sns.eu-west-1.amazonaws.com/SimpleNotificationService-0123.pem"
	confirmURL = "https://sns.eu-west-1.amazonaws.com/?Action=ConfirmSubscription&Token=abc"
	signingKey = "key-0123456789abcdef"
	login      = "onda:correct-horse-battery"
)

// hooks is a world whose tenant acme takes webhooks of all providers.
type hooks struct {
	*world
	s       *service
	handler http.Handler
	fetched []string
	away    bool // what is fetched
}

func newHooks(t *testing.T) *hooks {
	t.Helper()
	h := &hooks{world: newWorld(t)}
	// What providers tell happened after it.
	pgtest.Exec(t, h.db, pgtest.Acme, "UPDATE consent SET at = at - interval '1 hour'")
	pgtest.Exec(t, h.db, pgtest.Acme, "UPDATE subscription SET at = at - interval '1 hour'")
	h.s = newService(h.db, zaptest.NewLogger(t), func(_ context.Context, url string) ([]byte, error) {
		h.fetched = append(h.fetched, url)
		switch {
		case h.away:
			return nil, context.DeadlineExceeded
		case url == certURL:
			return makeSigners().cert, nil
		case url == confirmURL:
			return nil, nil
		}
		return nil, errors.New("fetched from elsewhere")
	})
	h.handler = h.s.routes()
	der, err := x509.MarshalPKIXPublicKey(&makeSigners().sendGrid.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	for name, secret := range map[string]string{"sendgrid": base64.StdEncoding.EncodeToString(der), "ses": topic, "mailgun": signingKey, "postmark": login, "kumomta": login} {
		if err := CheckSecret(name, secret); err != nil {
			t.Fatal(err)
		}
		if err := h.admin.SetWebhookSecret(context.Background(), pgtest.Acme, name, secret, time.Hour); err != nil {
			t.Fatal(err)
		}
	}
	return h
}

// messageID is of the mail that the contact was sent.
func (h *hooks) messageID() string { return mail.MessageID(h.number, h.delivery, "acme.example") }

// reference is what send puts into the mail for a provider.
func (h *hooks) reference(provider string) string {
	h.t.Helper()
	relays, err := mail.ParseURLs("smtp://relay.example?provider=" + provider)
	if err != nil {
		h.t.Fatal(err)
	}
	return mail.References(relays)[0].Header(h.number, h.delivery).Value
}

// send posts a webhook and answers the status and the body.
func (h *hooks) send(r *http.Request) (int, string) {
	h.t.Helper()
	rec := httptest.NewRecorder()
	h.handler.ServeHTTP(rec, r)
	return rec.Code, strings.TrimSpace(rec.Body.String())
}

func to(provider, body string) *http.Request {
	return httptest.NewRequest(http.MethodPost, "/bounces/acme/"+provider, strings.NewReader(body))
}

func sendGridAt(at time.Time, body string) *http.Request {
	r := to("sendgrid", body)
	stamp := strconv.FormatInt(at.Unix(), 10)
	sum := sha256.Sum256([]byte(stamp + body))
	signature, err := ecdsa.SignASN1(rand.Reader, makeSigners().sendGrid, sum[:])
	if err != nil {
		panic(err)
	}
	r.Header.Set("X-Twilio-Email-Event-Webhook-Timestamp", stamp)
	r.Header.Set("X-Twilio-Email-Event-Webhook-Signature", base64.StdEncoding.EncodeToString(signature))
	return r
}

func mailgunAt(at time.Time, event string) *http.Request {
	stamp := strconv.FormatInt(at.Unix(), 10)
	mac := hmac.New(sha256.New, []byte(signingKey))
	mac.Write([]byte(stamp + "atoken"))
	return to("mailgun", fmt.Sprintf(`{"signature": {"timestamp": %q, "token": "atoken", "signature": %q}, "event-data": %s}`, stamp, hex.EncodeToString(mac.Sum(nil)), event))
}

// snsAt signs an envelope; change is done to it after that.
func snsAt(at time.Time, version string, e map[string]string, change func(e map[string]string)) *http.Request {
	if e["Type"] == "" {
		e["Type"] = "Notification"
	}
	e["MessageId"], e["TopicArn"], e["Timestamp"], e["SignatureVersion"], e["SigningCertURL"] = "1-2-3", topic, at.UTC().Format("2006-01-02T15:04:05.000Z"), version, certURL
	var text strings.Builder
	for _, name := range []string{"Message", "MessageId", "Subject", "SubscribeURL", "Timestamp", "Token", "TopicArn", "Type"} {
		if v, ok := e[name]; ok {
			text.WriteString(name + "\n" + v + "\n")
		}
	}
	hash, sum := crypto.SHA256, sha256.Sum256([]byte(text.String()))
	digest := sum[:]
	if version == "1" {
		v := sha1.Sum([]byte(text.String()))
		hash, digest = crypto.SHA1, v[:]
	}
	signature, err := rsa.SignPKCS1v15(rand.Reader, makeSigners().sns, hash, digest)
	if err != nil {
		panic(err)
	}
	e["Signature"] = base64.StdEncoding.EncodeToString(signature)
	if change != nil {
		change(e)
	}
	body, err := json.Marshal(e)
	if err != nil {
		panic(err)
	}
	return to("ses", string(body))
}

func withLogin(r *http.Request) *http.Request {
	user, password, _ := strings.Cut(login, ":")
	r.SetBasicAuth(user, password)
	return r
}

// TestWebhooks takes what each provider tells, twice, and compares what is known of the mail once it is worked off.
func TestWebhooks(t *testing.T) {
	t.Parallel()
	now := time.Now()
	one := func(accepted, unattributed, ignored int) string {
		return fmt.Sprintf(`{"accepted":%d,"unattributed":%d,"ignored":%d}`, accepted, unattributed, ignored)
	}
	sendGrid := func(event string) func(*hooks) *http.Request {
		return func(h *hooks) *http.Request {
			return sendGridAt(now, fmt.Sprintf(`[{"email": "ada@example.com", "timestamp": %d, "smtp-id": %q, "sg_event_id": "x", %s}]`, now.Unix(), h.messageID(), event))
		}
	}
	ses := func(version, message string) func(*hooks) *http.Request {
		return func(h *hooks) *http.Request {
			return snsAt(now, version, map[string]string{"Message": strings.ReplaceAll(message, "SOURCE", h.returnPath())}, nil)
		}
	}
	mailgun := func(event string) func(*hooks) *http.Request {
		return func(h *hooks) *http.Request {
			id := strings.Trim(h.messageID(), "<>") // as it writes them
			return mailgunAt(now, fmt.Sprintf(`{"timestamp": %d.25, "recipient": "ada@example.com", "message": {"headers": {"message-id": %q}}, "user-variables": [], %s}`, now.Unix(), id, event))
		}
	}
	postmark := func(record string) func(*hooks) *http.Request {
		return func(h *hooks) *http.Request {
			return withLogin(to("postmark", fmt.Sprintf(`{"MessageID": "00000000-0000-0000-0000-000000000000", "Email": "ada@example.com", "Metadata": {"onda": %q}, %s}`, h.reference("postmark"), record)))
		}
	}
	kumo := func(record string) func(*hooks) *http.Request {
		return func(h *hooks) *http.Request {
			return withLogin(to("kumomta", fmt.Sprintf(`{"recipient": "ada@example.com", "sender": %q, "timestamp": %d, %s}`, h.returnPath(), now.Unix(), record)))
		}
	}
	const hard, soft, block = "sent bounced:hard suppressed:bounce granted", "sent bounced:soft granted", "sent bounced:block granted"
	const delivered, complained, untouched = "sent delivered granted", "sent complained suppressed:complaint withdrawn", "queued granted"
	for name, c := range map[string]struct {
		hook         func(*hooks) *http.Request
		answer, want string
	}{
		"sendgrid delivered":    {sendGrid(`"event": "delivered", "response": "250 OK"`), one(1, 0, 0), delivered},
		"sendgrid bounce":       {sendGrid(`"event": "bounce", "type": "bounce", "status": "5.1.1", "reason": "550 5.1.1 no such user"`), one(1, 0, 0), hard},
		"sendgrid blocked":      {sendGrid(`"event": "bounce", "type": "blocked", "reason": "550 5.1.1 no such user"`), one(1, 0, 0), block},
		"sendgrid spam":         {sendGrid(`"event": "bounce", "type": "bounce", "status": "5.7.1", "reason": "550 5.7.1 blocked for spam"`), one(1, 0, 0), block},
		"sendgrid full":         {sendGrid(`"event": "bounce", "type": "bounce", "bounce_classification": "Mailbox Unavailable", "reason": "552 5.2.2 full"`), one(1, 0, 0), soft},
		"sendgrid known as bad": {sendGrid(`"event": "dropped", "reason": "Bounced Address"`), one(1, 0, 0), hard},
		"sendgrid dropped":      {sendGrid(`"event": "dropped", "reason": "Spam Content"`), one(1, 0, 0), "sent bounced:policy granted"},
		"sendgrid complaint":    {sendGrid(`"event": "spamreport"`), one(1, 0, 0), complained},
		"sendgrid left":         {sendGrid(`"event": "group_unsubscribe"`), one(1, 0, 0), "queued withdrawn"},
		"sendgrid open":         {sendGrid(`"event": "open"`), one(0, 0, 1), untouched},
		"sendgrid deferred":     {sendGrid(`"event": "deferred", "response": "450 4.2.1 later"`), one(0, 0, 1), untouched},
		"sendgrid by a unique arg": {func(h *hooks) *http.Request {
			return sendGridAt(now, fmt.Sprintf(`[{"event": "delivered", "onda": %q}]`, h.returnPath()))
		}, one(1, 0, 0), delivered},
		"sendgrid somebody else's": {func(h *hooks) *http.Request {
			return sendGridAt(now, fmt.Sprintf(`[{"event": "spamreport", "smtp-id": %q}]`, mail.MessageID(h.number+1, h.delivery, "x.example")))
		}, one(0, 1, 0), untouched},
		"sendgrid no such mail": {func(h *hooks) *http.Request {
			return sendGridAt(now, fmt.Sprintf(`[{"event": "spamreport", "smtp-id": %q}]`, mail.MessageID(h.number, h.delivery+1, "x.example")))
		}, one(0, 1, 0), untouched},
		"sendgrid without the Message-ID": {func(h *hooks) *http.Request {
			var api struct {
				Args map[string]string `json:"unique_args"`
			}
			if err := json.Unmarshal([]byte(h.reference("sendgrid")), &api); err != nil {
				h.t.Error(err)
			}
			return sendGridAt(now, fmt.Sprintf(`[{"event": "spamreport", "email": "ada@example.com", "onda": %q}]`, api.Args["onda"]))
		}, one(1, 0, 0), complained},
		"sendgrid some are strange": {func(h *hooks) *http.Request {
			return sendGridAt(now, fmt.Sprintf(`[7, {"event": []}, {"event": "delivered", "smtp-id": %q}]`, h.messageID()))
		}, `{"accepted":1,"unattributed":0,"ignored":0,"unreadable":2}`, delivered},

		"ses bounce":    {ses("1", `{"notificationType": "Bounce", "bounce": {"bounceType": "Permanent", "bounceSubType": "General", "bouncedRecipients": [{"emailAddress": "ada@example.com", "action": "failed", "status": "5.1.1", "diagnosticCode": "smtp; 550 5.1.1 unknown"}]}, "mail": {"source": "SOURCE"}}`), one(1, 0, 0), hard},
		"ses block":     {ses("2", `{"notificationType": "Bounce", "bounce": {"bounceType": "Permanent", "bounceSubType": "General", "bouncedRecipients": [{"status": "5.7.1", "diagnosticCode": "smtp; 550 5.7.1 poor reputation, blocked"}]}, "mail": {"source": "SOURCE"}}`), one(1, 0, 0), block},
		"ses full":      {ses("2", `{"eventType": "Bounce", "bounce": {"bounceType": "Transient", "bounceSubType": "MailboxFull", "bouncedRecipients": []}, "mail": {"source": "SOURCE"}}`), one(1, 0, 0), soft},
		"ses complaint": {ses("2", `{"notificationType": "Complaint", "complaint": {"complaintFeedbackType": "abuse", "timestamp": "2026-01-02T03:04:05.000Z"}, "mail": {"source": "SOURCE"}}`), one(1, 0, 0), complained},
		"ses not spam":  {ses("2", `{"notificationType": "Complaint", "complaint": {"complaintFeedbackType": "not-spam"}, "mail": {"source": "SOURCE"}}`), one(0, 0, 1), untouched},
		"ses delivery":  {ses("2", `{"eventType": "Delivery", "delivery": {"timestamp": "2026-01-02T03:04:05.000Z"}, "mail": {"source": "SOURCE"}}`), one(1, 0, 0), delivered},
		"ses by a header": {func(h *hooks) *http.Request {
			m, _ := json.Marshal(h.messageID())
			return snsAt(now, "2", map[string]string{"Subject": "Amazon SES", "Message": `{"eventType": "Delivery", "mail": {"headers": [{"name": "Message-ID", "value": ` + string(m) + `}]}}`}, nil)
		}, one(1, 0, 0), delivered},
		"ses delay":       {ses("2", `{"eventType": "DeliveryDelay", "mail": {"source": "SOURCE"}}`), one(0, 0, 1), untouched},
		"ses a new topic": {ses("2", `Successfully validated SNS topic for Amazon SES event publishing.`), one(0, 0, 1), untouched},
		"ses subscription": {func(*hooks) *http.Request {
			return snsAt(now, "1", map[string]string{"Type": "SubscriptionConfirmation", "Message": "You have chosen", "SubscribeURL": confirmURL, "Token": "abc"}, nil)
		}, one(0, 0, 0), untouched},
		"ses unsubscribed": {func(*hooks) *http.Request {
			return snsAt(now, "1", map[string]string{"Type": "UnsubscribeConfirmation", "Message": "You have", "SubscribeURL": confirmURL, "Token": "abc"}, nil)
		}, one(0, 0, 1), untouched},

		"mailgun delivered":    {mailgun(`"event": "delivered"`), one(1, 0, 0), delivered},
		"mailgun permanent":    {mailgun(`"event": "failed", "severity": "permanent", "reason": "bounce", "delivery-status": {"code": 550, "message": "5.1.1 no such user"}`), one(1, 0, 0), hard},
		"mailgun block":        {mailgun(`"event": "failed", "severity": "permanent", "reason": "generic", "delivery-status": {"code": 550, "enhanced-code": "5.7.1", "message": "blocked, poor reputation"}`), one(1, 0, 0), block},
		"mailgun temporary":    {mailgun(`"event": "failed", "severity": "temporary", "delivery-status": {"code": 450}`), one(0, 0, 1), untouched},
		"mailgun known as bad": {mailgun(`"event": "failed", "severity": "permanent", "reason": "suppress-bounce", "delivery-status": {"code": 605}`), one(1, 0, 0), hard},
		"mailgun complained":   {mailgun(`"event": "complained"`), one(1, 0, 0), complained},
		"mailgun left":         {mailgun(`"event": "unsubscribed"`), one(1, 0, 0), "queued withdrawn"},
		"mailgun by its variables": {func(h *hooks) *http.Request {
			return mailgunAt(now, fmt.Sprintf(`{"event": "delivered", "user-variables": {"onda": %q}}`, h.messageID()))
		}, one(1, 0, 0), delivered},

		"postmark delivery":  {postmark(`"RecordType": "Delivery", "DeliveredAt": "2026-01-02T03:04:05Z"`), one(1, 0, 0), delivered},
		"postmark hard":      {postmark(`"RecordType": "Bounce", "Type": "HardBounce", "Details": "smtp;550 5.1.1 no such user"`), one(1, 0, 0), hard},
		"postmark spam":      {postmark(`"RecordType": "Bounce", "Type": "SpamNotification", "Details": ""`), one(1, 0, 0), block},
		"postmark soft":      {postmark(`"RecordType": "Bounce", "Type": "SoftBounce", "Details": "smtp;550 5.1.1 odd"`), one(1, 0, 0), soft},
		"postmark complaint": {postmark(`"RecordType": "SpamComplaint", "BouncedAt": "2026-01-02T03:04:05Z"`), one(1, 0, 0), complained},
		"postmark left":      {postmark(`"RecordType": "SubscriptionChange", "SuppressSending": true, "SuppressionReason": "ManualSuppression"`), one(1, 0, 0), "queued withdrawn"},
		"postmark came back": {postmark(`"RecordType": "SubscriptionChange", "SuppressSending": false`), one(0, 0, 1), untouched},
		"postmark trying on": {postmark(`"RecordType": "Bounce", "Type": "Transient"`), one(0, 0, 1), untouched},
		"postmark no metadata": {func(*hooks) *http.Request {
			return withLogin(to("postmark", `{"RecordType": "SpamComplaint", "Metadata": {}}`))
		}, one(0, 1, 0), untouched},

		"kumomta delivery":  {kumo(`"type": "Delivery", "response": {"code": 250, "content": "OK"}`), one(1, 0, 0), delivered},
		"kumomta bounce":    {kumo(`"type": "Bounce", "response": {"code": 550, "enhanced_code": {"class": 5, "subject": 1, "detail": 1}, "content": "no such user"}`), one(1, 0, 0), hard},
		"kumomta block":     {kumo(`"type": "Bounce", "response": {"code": 554, "enhanced_code": {"class": 5, "subject": 7, "detail": 1}, "content": "blocked, poor reputation"}`), one(1, 0, 0), block},
		"kumomta expired":   {kumo(`"type": "Expiration", "response": {"code": 551, "content": "Next delivery time would be at"}`), one(1, 0, 0), soft},
		"kumomta transient": {kumo(`"type": "TransientFailure", "response": {"code": 451, "enhanced_code": null, "content": "later"}`), one(0, 0, 1), untouched},
		"kumomta feedback": {func(h *hooks) *http.Request {
			b, _ := json.Marshal("From: x\nMessage-ID: " + h.messageID() + "\n\n")
			return withLogin(to("kumomta", `{"type": "Feedback", "sender": "fbl@provider.example", "feedback_report": {"feedback_type": "abuse", "original_mail_from": null, "original_message": `+string(b)+`}}`))
		}, one(1, 0, 0), complained},
		"kumomta opt-out": {kumo(`"type": "Feedback", "feedback_report": {"feedback_type": "opt-out"}`), one(0, 1, 0), untouched},
		"kumomta a batch": {func(h *hooks) *http.Request {
			return withLogin(to("kumomta", fmt.Sprintf("[{\"type\": \"Reception\"}, {\"type\": \"Delivery\", \"meta\": {\"id\": %q}}]\n{\"type\": \"Rejection\"}\n", h.messageID())))
		}, one(1, 0, 2), delivered},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHooks(t)
			for range 2 { // a body twice changes nothing
				code, got := h.send(c.hook(h))
				if code != http.StatusAccepted || got != c.answer {
					t.Errorf("%d %s, want %s", code, got, c.answer)
				}
				h.s.settle(context.Background())
				if diff := cmp.Diff(c.want, h.state()); diff != "" {
					t.Error(diff)
				}
			}
			if n := pgtest.One[int](t, h.db, pgtest.Acme, "SELECT count(*) FROM (SELECT 1 FROM fact GROUP BY kind, name, contact, deliveries HAVING count(*) > 1) twice"); n != 0 {
				t.Errorf("%d facts were written twice", n)
			}
			if n := pgtest.One[int](t, h.db, pgtest.Acme, "SELECT count(*) FROM feedback"); n != 0 {
				t.Errorf("%d events are left", n)
			}
		})
	}
}

func TestWebhooksThatAreRefused(t *testing.T) {
	t.Parallel()
	now := time.Now()
	h := newHooks(t)
	body := fmt.Sprintf(`[{"event": "spamreport", "smtp-id": %q}]`, h.messageID())
	message := fmt.Sprintf(`{"notificationType": "Complaint", "mail": {"source": %q}}`, h.returnPath())
	event := fmt.Sprintf(`{"event": "complained", "message": {"headers": {"message-id": %q}}}`, h.messageID())
	with := func(r *http.Request, name, value string) *http.Request {
		r.Header.Set(name, value)
		return r
	}
	at := func(path string, r *http.Request) *http.Request {
		r.URL = &url.URL{Path: path}
		return r
	}
	ses := func(change func(map[string]string)) *http.Request {
		return snsAt(now, "2", map[string]string{"Message": message}, change)
	}
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256([]byte(strconv.FormatInt(now.Unix(), 10) + body))
	foreign, err := ecdsa.SignASN1(rand.Reader, other, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		r    *http.Request
		want int
	}{
		"sendgrid without a signature":   {to("sendgrid", body), http.StatusUnauthorized},
		"sendgrid by another key":        {with(sendGridAt(now, body), sendGridSignature, base64.StdEncoding.EncodeToString(foreign)), http.StatusUnauthorized},
		"sendgrid another time":          {with(sendGridAt(now, body), sendGridTimestamp, strconv.FormatInt(now.Unix()+1, 10)), http.StatusUnauthorized},
		"sendgrid nonsense":              {with(sendGridAt(now, body), sendGridSignature, "é"), http.StatusUnauthorized},
		"sendgrid of last week":          {sendGridAt(now.Add(-7*24*time.Hour), body), http.StatusUnauthorized},
		"sendgrid to come":               {sendGridAt(now.Add(time.Hour), body), http.StatusUnauthorized},
		"sendgrid no list":               {sendGridAt(now, `{"event": "spamreport"}`), http.StatusBadRequest},
		"sendgrid no JSON":               {sendGridAt(now, `[{`), http.StatusBadRequest},
		"mailgun of last week":           {mailgunAt(now.Add(-7*24*time.Hour), event), http.StatusUnauthorized},
		"mailgun without a signature":    {to("mailgun", `{"event-data": `+event+`}`), http.StatusUnauthorized},
		"mailgun no JSON":                {to("mailgun", `{`), http.StatusUnauthorized},
		"mailgun nothing":                {to("mailgun", ``), http.StatusUnauthorized},
		"mailgun no event":               {mailgunAt(now, `null`), http.StatusBadRequest},
		"ses changed":                    {ses(func(e map[string]string) { e["Message"] += " " }), http.StatusUnauthorized},
		"ses a subject more":             {ses(func(e map[string]string) { e["Subject"] = "x" }), http.StatusUnauthorized},
		"ses another topic":              {ses(func(e map[string]string) { e["TopicArn"] += "2" }), http.StatusUnauthorized},
		"ses no signature":               {ses(func(e map[string]string) { delete(e, "Signature") }), http.StatusUnauthorized},
		"ses another version":            {ses(func(e map[string]string) { e["SignatureVersion"] = "3" }), http.StatusUnauthorized},
		"ses a certificate of anybody's": {ses(func(e map[string]string) { e["SigningCertURL"] = "https://bucket.s3.amazonaws.com/x.pem" }), http.StatusUnauthorized},
		"ses a certificate elsewhere": {ses(func(e map[string]string) {
			e["SigningCertURL"] = "https://sns.eu-west-1.amazonaws.com.evil.example/x.pem"
		}), http.StatusUnauthorized},
		"ses by http": {ses(func(e map[string]string) { e["SigningCertURL"] = strings.Replace(certURL, "https", "http", 1) }), http.StatusUnauthorized},
		"ses a login in it": {ses(func(e map[string]string) {
			e["SigningCertURL"] = "https://sns.eu-west-1.amazonaws.com@evil.example/x.pem"
		}), http.StatusUnauthorized},
		"ses another port":         {ses(func(e map[string]string) { e["SigningCertURL"] = "https://sns.eu-west-1.amazonaws.com:8443/x.pem" }), http.StatusUnauthorized},
		"ses of last week":         {snsAt(now.Add(-7*24*time.Hour), "2", map[string]string{"Message": message}, nil), http.StatusUnauthorized},
		"ses raw":                  {to("ses", message), http.StatusUnauthorized},
		"ses subscribe elsewhere":  {snsAt(now, "2", map[string]string{"Type": "SubscriptionConfirmation", "Message": "x", "Token": "y", "SubscribeURL": "https://evil.example/"}, nil), http.StatusBadRequest},
		"postmark without a login": {to("postmark", `{"RecordType": "SpamComplaint"}`), http.StatusUnauthorized},
		"postmark a bearer":        {with(to("postmark", `{"RecordType": "SpamComplaint"}`), "Authorization", "Bearer "+login[:10]), http.StatusUnauthorized},
		"postmark nothing":         {withLogin(to("postmark", ``)), http.StatusBadRequest},
		"kumomta a wrong login":    {with(to("kumomta", `{"type": "Feedback"}`), "Authorization", "Basic eDp5"), http.StatusUnauthorized},
		"kumomta nothing":          {withLogin(to("kumomta", "\n")), http.StatusBadRequest},
		"kumomta half a record":    {withLogin(to("kumomta", `{"type": "Delivery"} {"ty`)), http.StatusBadRequest},
		"a provider of none":       {to("acme", body), http.StatusNotFound},
		"at another tenant":        {at("/bounces/brava/sendgrid", sendGridAt(now, body)), http.StatusNotFound},
		"at nobody":                {at("/bounces/nobody/sendgrid", sendGridAt(now, body)), http.StatusNotFound},
		"too large":                {sendGridAt(now, strings.Repeat(" ", maxWebhook+1)), http.StatusRequestEntityTooLarge},
	} {
		if code, got := h.send(c.r); code != c.want {
			t.Errorf("%s: %d %s, want %d", name, code, got, c.want)
		}
	}
	for _, u := range h.fetched {
		if u != certURL {
			t.Errorf("%s was fetched", u)
		}
	}
	h.s.settle(context.Background())
	if got := h.state(); got != "queued granted" {
		t.Errorf("state %q", got)
	}
}

// What fails now is repeated by the provider, and loses nothing.
func TestWebhooksComeAgain(t *testing.T) {
	t.Parallel()
	h := newHooks(t)
	hook := func() *http.Request {
		return snsAt(time.Now(), "1", map[string]string{"Message": fmt.Sprintf(`{"notificationType": "Delivery", "mail": {"source": %q}}`, h.returnPath())}, nil)
	}
	h.away = true
	if code, got := h.send(hook()); code != http.StatusServiceUnavailable {
		t.Errorf("without a certificate: %d %s", code, got)
	}
	h.away = false
	for range 3 {
		if code, got := h.send(hook()); code != http.StatusAccepted {
			t.Errorf("%d %s", code, got)
		}
	}
	if d := cmp.Diff([]string{certURL, certURL}, h.fetched); d != "" {
		t.Errorf("a certificate is read once (-want +got):\n%s", d)
	}
	// Whoever took it died: it is worked off from the rows, and campaign was woken for it.
	if n := pgtest.One[int](t, h.db, pgtest.Acme, "SELECT count(*) FROM onda.wakeup WHERE tenant = 'acme' AND function = 'campaign' AND at < 'infinity'"); n != 1 {
		t.Error("nobody is woken")
	}
	if got := h.state(); got != "queued granted" {
		t.Errorf("before it is worked off: %q", got)
	}
	pgtest.In(t, h.db, pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) error {
		if at, err := feedback.Due(ctx, tx); err != nil || at.After(tx.Now().Add(tx.Tick())) {
			t.Errorf("due at %s, %v", at, err)
		}
		more, err := feedback.Settle(ctx, tx, zaptest.NewLogger(t))
		if more {
			t.Error("there is more")
		}
		if at, err := feedback.Due(ctx, tx); err != nil || at != postgres.Never {
			t.Errorf("afterwards due at %s, %v", at, err)
		}
		return err
	})
	if got := h.state(); got != "sent delivered granted" {
		t.Errorf("afterwards: %q", got)
	}
}

// Another secret is good at once, the one before for a while, and none when it is taken away.
func TestSecretsAreChanged(t *testing.T) {
	t.Parallel()
	h := newHooks(t)
	knock := func(login string) int {
		code, _ := h.send(func() *http.Request {
			r := to("kumomta", `{"type": "Reception"}`)
			r.Header.Set("Authorization", "Bearer "+login)
			return r
		}())
		return code
	}
	set := func(secret string, overlap time.Duration) {
		t.Helper()
		for range 2 {
			if err := h.admin.SetWebhookSecret(context.Background(), pgtest.Acme, "kumomta", secret, overlap); err != nil {
				t.Fatal(err)
			}
		}
	}
	set("another-secret-token", time.Hour)
	if a, b := knock(login), knock("another-secret-token"); a != http.StatusAccepted || b != http.StatusAccepted {
		t.Errorf("during the change: %d, %d", a, b)
	}
	set("a-third-secret-token", 0)
	if a, b, c := knock(login), knock("another-secret-token"), knock("a-third-secret-token"); a != http.StatusUnauthorized || b != http.StatusUnauthorized || c != http.StatusAccepted {
		t.Errorf("after a change at once: %d, %d, %d", a, b, c)
	}
	set("", 0)
	if a, b := knock(login), knock("a-third-secret-token"); a != http.StatusNotFound || b != http.StatusNotFound {
		t.Errorf("taken away: %d, %d", a, b)
	}
	if code, _ := h.send(withLogin(to("postmark", `{"RecordType": "Open"}`))); code != http.StatusAccepted {
		t.Errorf("another provider's: %d", code)
	}
	for name, secret := range map[string]string{"kumomta": "short", "sendgrid": "bm9uZQ==", "mailgun": "x", "ses": "arn:aws:s3:::bucket", "postmark": "has a blank: in it", "acme": "whatever it is like"} {
		if err := CheckSecret(name, secret); err == nil || strings.Contains(err.Error(), secret) {
			t.Errorf("%s takes %q, %v", name, secret, err)
		}
	}
}

func FuzzWebhooks(f *testing.F) {
	for _, s := range []string{
		`[{"event": "bounce", "type": "blocked", "timestamp": "1e9", "smtp-id": "<d1.t1@x>"}]`,
		`{"signature": {"timestamp": "1", "token": "t", "signature": "00"}, "event-data": {"event": "failed", "severity": "permanent", "delivery-status": {"code": 550}}}`,
		`{"RecordType": "Bounce", "Type": "HardBounce", "Details": "smtp;550 5.1.1 x", "Metadata": {"a": ["b"]}}`,
		`{"type": "Feedback", "feedback_report": {"feedback_type": "abuse", "original_message": "Message-ID: <d1.t1@x>"}}`,
		`{"Type": "Notification", "Message": "{\"eventType\": \"Bounce\", \"bounce\": {\"bounceType\": \"Permanent\", \"bouncedRecipients\": [{}]}}"}`,
	} {
		f.Add([]byte(s))
	}
	all := providers(func(context.Context, string) ([]byte, error) { return nil, errors.New("not fetched") })
	f.Fuzz(func(t *testing.T, body []byte) {
		for name, p := range all {
			secret := map[string]string{"ses": topic, "mailgun": signingKey, "postmark": login, "kumomta": login}[name]
			err := p.verify(context.Background(), hook{header: func(string) string { return string(body) }, body: body}, secret, time.Now())
			if err == nil {
				t.Fatalf("%s takes what nobody signed", name)
			}
			r, err := p.parse(body)
			if err != nil && !errors.Is(err, errUnreadable) {
				t.Fatalf("%s: %v", name, err)
			}
			for _, e := range r.told {
				if e.event.Kind == "" || (e.event.Kind == feedback.Bounced) != (e.event.Class != "") {
					t.Fatalf("%s: %+v", name, e)
				}
				about(e, token.NewVerifier(nil), &postgres.Tx{})
			}
		}
	})
}
