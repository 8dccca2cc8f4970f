package bounce

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/onda-run/onda/internal/feedback"
	"github.com/onda-run/onda/internal/mail"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/token"
)

// A provider may repeat a webhook for a day, under the signature that it made first. A repeat changes nothing, so an older one is no danger: it is refused because
// nobody but a thief of old webhooks would send it.
const (
	oldest = 26 * time.Hour
	ahead  = 5 * time.Minute // of a provider's clock before ours
)

// hook is a webhook as it came.
type hook struct {
	header func(name string) string
	// login is user:password of basic authentication, or a bearer's token; empty for none.
	login string
	body  []byte
}

// What refuses a webhook.
var (
	errSignature  = errors.New("the webhook's signature is missing or wrong")
	errOld        = errors.New("the webhook's time is too old, or to come")
	errUnreadable = errors.New("the webhook's body is not what the provider documents")
)

// told is what a provider told about one mail.
type told struct {
	sender    string   // the envelope's, whose return path names the mail
	messageID string   // of the mail as it was handed over
	metadata  []string // of the mail, whatever their names are: one may be its Message-ID or its return path
	event     feedback.Event
}

// reading is what a webhook's body says. What asks for nothing, such as opens, is ignored.
type reading struct {
	told       []told
	ignored    int
	unreadable int // events of another shape than the provider documents
	confirm    string
}

// add reads one event into it.
func (r *reading) add(t told, ok bool) {
	if !ok {
		r.ignored++
		return
	}
	r.told = append(r.told, t)
}

// provider is how one provider's webhooks are read.
type provider struct {
	// secret says what the secret is.
	secret string
	check  func(secret string) error
	verify func(ctx context.Context, h hook, secret string, now time.Time) error
	parse  func(body []byte) (reading, error)
}

// fetch reads what a URL of a provider has. Its caller has made sure that the URL is the provider's.
type fetch func(ctx context.Context, url string) ([]byte, error)

func providers(f fetch) map[string]provider {
	return map[string]provider{
		"kumomta":  {"user:password of basic authentication, or a bearer token", checkLogin, verifyLogin, parseKumoMTA},
		"mailgun":  {"the HTTP webhook signing key", checkSigningKey, verifyMailgun, parseMailgun},
		"postmark": {"user:password of basic authentication, as in the webhook's URL", checkLogin, verifyLogin, parsePostmark},
		"sendgrid": {"the verification key of the signed event webhook, in base64", checkSendGrid, verifySendGrid, parseSendGrid},
		"ses":      {"the ARN of the SNS topic", checkTopic, (&sns{fetch: f}).verify, parseSES},
	}
}

// Providers are the names of those whose webhooks are taken, in order.
func Providers() []string { return []string{"kumomta", "mailgun", "postmark", "sendgrid", "ses"} }

// CheckSecret tells whether a text can be what proves a provider's webhooks, and what is needed where it cannot. It never quotes the text.
func CheckSecret(name, secret string) error {
	p, ok := providers(nil)[name]
	if !ok {
		return fmt.Errorf("there is no provider %q: there are %s", name, strings.Join(Providers(), ", "))
	}
	if err := p.check(secret); err != nil {
		return fmt.Errorf("%s needs %s: %w", name, p.secret, err)
	}
	return nil
}

// errNoWebhook: a provider that is none of ours, or none of the tenant's.
var errNoWebhook = errors.New("the tenant takes no webhooks of this provider")

// took is what became of a webhook.
type took struct {
	Accepted     int `json:"accepted"`
	Unattributed int `json:"unattributed"`
	Ignored      int `json:"ignored"`
	Unreadable   int `json:"unreadable,omitempty"`
}

// webhook proves a webhook, and stores what it tells.
func (s *service) webhook(ctx context.Context, tenant, name string, h hook) (took, error) {
	p, ok := s.providers[name]
	if !ok {
		return took{}, errNoWebhook
	}
	var secrets []string
	err := s.db.InTenant(ctx, tenant, func(ctx context.Context, tx *postgres.Tx) (err error) {
		secrets, err = tx.WebhookSecrets(ctx, name)
		return err
	})
	if err != nil {
		return took{}, err
	}
	if len(secrets) == 0 {
		return took{}, errNoWebhook
	}
	for _, secret := range secrets {
		if err = p.verify(ctx, h, secret, s.now()); !errors.Is(err, errSignature) {
			break
		}
	}
	if err != nil {
		return took{}, err
	}
	r, err := p.parse(h.body)
	if err != nil {
		return took{}, err
	}
	if r.confirm != "" {
		if _, err := s.fetch(ctx, r.confirm); err != nil {
			return took{}, fmt.Errorf("confirm the subscription: %w", err)
		}
	}
	out := took{Ignored: r.ignored, Unreadable: r.unreadable}
	if len(r.told) == 0 {
		return out, nil
	}
	err = s.db.InTenant(ctx, tenant, func(ctx context.Context, tx *postgres.Tx) error {
		keys, err := tx.Keys(ctx)
		if err != nil {
			return err
		}
		var events []feedback.Event
		for _, t := range r.told {
			var ours bool
			if t.event.Delivery, ours = about(t, keys.Verifier, tx); ours {
				events = append(events, t.event)
			}
		}
		out.Accepted, err = feedback.Take(ctx, tx, events)
		return err
	})
	if err != nil {
		return took{}, err
	}
	out.Unattributed = len(r.told) - out.Accepted
	if out.Accepted > 0 {
		s.taken(tenant)
	}
	return out, nil
}

// about tells which mail of the tenant it is. The provider has proven itself, so that a Message-ID that it names will do, where it does not keep the return path.
func about(t told, keys *token.Verifier, tx *postgres.Tx) (delivery int64, ours bool) {
	for _, text := range slices.Concat([]string{t.sender, t.messageID}, t.metadata) {
		if tok, ok := mail.ReturnPathToken(text); ok {
			if c, err := keys.Verify(tok, token.ReturnPath, tx.Now()); err == nil && c.Tenant == tx.Tenant.Number {
				return c.Delivery, true
			}
		}
		if tenant, id, ok := mail.ParseMessageID(text); ok && tenant == tx.Tenant.Number {
			return id, true
		}
	}
	return 0, false
}

// judge gives the class of a refusal that a provider has an opinion of ("" for none), from what the receiving server said. A server that blames us is believed before
// the provider, so that no block suppresses; nothing that the provider says may pass is hard.
func judge(says mail.Class, code int, status, text string) mail.Class {
	text = strings.TrimSpace(strings.TrimPrefix(text, "smtp;"))
	if code == 0 && status == "" && text == "" {
		if says == "" {
			return mail.Soft
		}
		return says
	}
	heard := mail.ClassifyText(code, status, text)
	if says == "" || heard == mail.Block || heard == mail.Policy {
		return heard
	}
	return says
}

// fresh refuses a time that is too old, or to come.
func fresh(at, now time.Time) error {
	if at.Before(now.Add(-oldest)) || at.After(now.Add(ahead)) {
		return errOld
	}
	return nil
}

// checkLogin is for providers that show a login and sign nothing.
func checkLogin(secret string) error {
	if len(secret) < 16 || strings.ContainsAny(secret, " \t\r\n") {
		return errors.New("16 characters or more, without blanks")
	}
	return nil
}

func verifyLogin(_ context.Context, h hook, secret string, _ time.Time) error {
	got, want := sha256.Sum256([]byte(h.login)), sha256.Sum256([]byte(secret))
	if subtle.ConstantTimeCompare(got[:], want[:]) != 1 {
		return errSignature
	}
	return nil
}

// unixTime is seconds since 1970, as a number, with a fraction or not, or as text.
type unixTime float64

func (u *unixTime) UnmarshalJSON(text []byte) error {
	return json.Unmarshal(bytes.Trim(text, `"`), (*float64)(u))
}

func (u unixTime) time() time.Time {
	if u < 1 || u > 1<<36 {
		return time.Time{}
	}
	return time.UnixMilli(int64(float64(u) * 1000)).UTC()
}

// texts are the values of an object that are texts, or lists of them. Providers send an empty list for an object without members.
func texts(object json.RawMessage) (all []string) {
	var m map[string]json.RawMessage
	if json.Unmarshal(object, &m) != nil {
		return nil
	}
	for _, v := range m {
		var one string
		var many []string
		switch {
		case json.Unmarshal(v, &one) == nil:
			all = append(all, one)
		case json.Unmarshal(v, &many) == nil:
			all = append(all, many...)
		}
	}
	slices.Sort(all) // so that a repeat is read alike
	return all
}
