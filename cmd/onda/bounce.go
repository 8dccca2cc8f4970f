package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/onda-run/onda/internal/bounce"
	"github.com/onda-run/onda/internal/mail"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/token"
)

// exitTempFail is EX_TEMPFAIL of sysexits(3): a mail server that pipes a mail into a command keeps it, and tries again.
const exitTempFail = 75

type bounceCmd struct {
	Post   bouncePostCmd   `cmd:"" default:"withargs" help:"Hand a mail that came back, from standard input, to the bounce function: for a relay's pipe or alias."`
	Secret bounceSecretCmd `cmd:"" help:"Set what proves a provider's webhooks."`
}

type bouncePostCmd struct {
	URL       string   `help:"Where the tenant's mails that come back are posted to, such as https://api.example.com/bounces/acme. By default $$ONDA_BOUNCE_URL." placeholder:"URL"`
	KeyFile   string   `help:"A file with a secret key of the tenant's (onda tenant key), and nothing else. By default the key is in $$ONDA_BOUNCE_KEY." placeholder:"FILE"`
	Recipient []string `help:"An envelope recipient of the mail; may be given more than once. By default $$ORIGINAL_RECIPIENT or $$RECIPIENT, which mail servers set for a pipe in an alias." placeholder:"ADDRESS"`
}

// Help is shown by --help.
func (bouncePostCmd) Help() string {
	return `Reads one mail: a report of delivery or of abuse, an automatic reply, or a mail to an address of List-Unsubscribe. "onda bounce" alone does so too. Of a mail larger than 1 MiB the beginning is enough.

Exit status, as mail servers understand it: 0 when the mail was taken, and when it never can be (a line on standard error says why); 75 (EX_TEMPFAIL) for whatever may pass, a wrong key or URL too, so that the mail server keeps the mail and tries again.

Example:
  onda bounce post --recipient b+TOKEN@bounce.acme.example < report.eml

Where Postfix takes the mails of the return-path domain, in main.cf:
  recipient_delimiter = +
  mydestination = bounce.acme.example
and in /etc/aliases, for return paths and for List-Unsubscribe:
  b: "|/usr/bin/onda bounce --url https://api.example.com/bounces/acme
      --key-file /etc/onda/acme.key"
  u: "|/usr/bin/onda bounce --url https://api.example.com/bounces/acme
      --key-file /etc/onda/acme.key"
or as a transport of the domain, in master.cf:
  onda unix - n n - 4 pipe flags=Rq user=onda argv=/usr/bin/onda bounce
    --url https://api.example.com/bounces/acme
    --key-file /etc/onda/acme.key --recipient ${original_recipient}`
}

// bouncePatience is less than the time that mail servers give a command.
const bouncePatience = 60 * time.Second

// Run posts the mail. After any error the mail server should try again.
func (c bouncePostCmd) Run(ctx context.Context, s *session) error {
	at, key, err := c.target(s)
	if err != nil {
		return err
	}
	raw, err := io.ReadAll(io.LimitReader(s.stdin, mail.MaxReport))
	if err == nil {
		_, err = io.Copy(io.Discard, s.stdin) // a mail server takes a pipe that closes early for a failure
	}
	if err != nil {
		return fmt.Errorf("read standard input: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, bouncePatience)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, at, bytes.NewReader(raw))
	if err != nil {
		return err
	}
	r.Header.Set("Content-Type", "message/rfc822")
	r.SetBasicAuth(key, "")
	for _, address := range c.recipients() {
		r.Header.Add(bounce.RecipientHeader, address)
	}
	// A redirect would be followed with GET, and show the key to whoever is there.
	client := http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	resp, err := client.Do(r)
	if err != nil {
		return fmt.Errorf("post the mail: %w", err)
	}
	defer func() { _ = resp.Body.Close() }()
	said, _ := io.ReadAll(io.LimitReader(resp.Body, 4<<10))
	text := strings.TrimSpace(string(said))
	switch resp.StatusCode {
	case http.StatusOK, http.StatusAccepted:
		s.print("%s", text)
		return nil
	case http.StatusBadRequest, http.StatusRequestEntityTooLarge, http.StatusUnprocessableEntity:
		_, _ = fmt.Fprintf(s.stderr, "onda: this mail is never taken: %s %s\n", resp.Status, text)
		return nil
	}
	return fmt.Errorf("%s answers %s %s", at, resp.Status, text)
}

// target is where to post to, and the key.
func (c bouncePostCmd) target(s *session) (at, key string, err error) {
	if at = c.URL; at == "" {
		at = s.env("ONDA_BOUNCE_URL")
	}
	u, err := url.Parse(at)
	switch {
	case at == "":
		return "", "", errors.New("ONDA_BOUNCE_URL is not set, nor --url given: it is where the tenant's mails that come back are posted to, such as https://api.example.com/bounces/acme")
	case err != nil || u.Host == "" || u.User != nil || u.Scheme != "https" && u.Scheme != "http":
		return "", "", errors.New("ONDA_BOUNCE_URL or --url: not a URL such as https://api.example.com/bounces/acme")
	}
	where := "ONDA_BOUNCE_KEY"
	key = s.env(where)
	if c.KeyFile != "" {
		where = c.KeyFile
		text, err := os.ReadFile(c.KeyFile)
		if err != nil {
			return "", "", fmt.Errorf("read the key: %w", err)
		}
		key = strings.TrimSpace(string(text))
	}
	if key == "" {
		return "", "", fmt.Errorf("%s is empty, it needs a secret key of the tenant: onda tenant key makes one", where)
	}
	if k, err := token.ParseProgramKey(key); err != nil || k.Kind != token.SecretKey {
		return "", "", fmt.Errorf("%s has no secret key of a tenant (onda_sk_...): onda tenant key makes one", where)
	}
	return at, key, nil
}

func (c bouncePostCmd) recipients() []string {
	if len(c.Recipient) > 0 {
		return c.Recipient
	}
	for _, name := range []string{"ORIGINAL_RECIPIENT", "RECIPIENT"} { // of Postfix's local(8); Exim and Sendmail set the second
		if v := os.Getenv(name); v != "" {
			return []string{v}
		}
	}
	return nil
}

type bounceSecretCmd struct {
	Provider string        `arg:"" help:"Whose webhooks: kumomta, mailgun, postmark, sendgrid or ses."`
	Overlap  time.Duration `help:"How long the secret before is good still." default:"24h"`
	Remove   bool          `help:"Take no webhooks of the provider any more."`
}

// Help is shown by --help.
func (bounceSecretCmd) Help() string {
	return `Needs ONDA_ADMIN_DATABASE_URL. Reads the secret from standard input, so that no list of processes shows it. What it is:
  ses       the ARN of the SNS topic that SES tells
  sendgrid  the verification key of the signed event webhook
  mailgun   the HTTP webhook signing key
  postmark  user:password, as in the webhook's URL
  kumomta   user:password of basic authentication, or a bearer token
The provider posts to $ONDA_API_URL/bounces/TENANT/PROVIDER.

Example:
  onda --tenant acme bounce secret sendgrid < verification-key.txt`
}

// Run sets the secret.
func (c bounceSecretCmd) Run(ctx context.Context, s *session) error {
	if s.tenant == "" {
		return errNoTenant
	}
	if !slices.Contains(bounce.Providers(), c.Provider) {
		return usageError{fmt.Sprintf("there is no provider %q: there are %s", c.Provider, strings.Join(bounce.Providers(), ", "))}
	}
	secret := ""
	if !c.Remove {
		text, err := io.ReadAll(io.LimitReader(s.stdin, 4<<10))
		if err != nil {
			return fmt.Errorf("read standard input: %w", err)
		}
		secret = strings.TrimSpace(string(text))
		if err := bounce.CheckSecret(c.Provider, secret); err != nil {
			return usageError{err.Error()}
		}
	}
	return s.withTenant(ctx, s.tenant, func(a *postgres.Admin) error {
		if _, err := a.Tenant(ctx, s.tenant); err != nil {
			return err
		}
		if c.Remove {
			c.Overlap = 0
		}
		if err := a.SetWebhookSecret(ctx, s.tenant, c.Provider, secret, c.Overlap); err != nil {
			return err
		}
		if ok, err := s.data(map[string]any{"provider": c.Provider, "path": "/bounces/" + s.tenant + "/" + c.Provider, "set": secret != ""}); ok {
			return err
		}
		if c.Remove {
			s.print("webhooks of %s are not taken any more", c.Provider)
			return nil
		}
		s.print("webhooks of %s are taken at /bounces/%s/%s", c.Provider, s.tenant, c.Provider)
		return nil
	})
}
