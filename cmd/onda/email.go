package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/onda-run/onda/internal/compose"
	"github.com/onda-run/onda/internal/contact"
	"github.com/onda-run/onda/internal/mail"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/spec"
)

type emailCmd struct {
	Preview emailPreviewCmd `cmd:"" help:"Show an email as a contact would get it."`
	Test    emailTestCmd    `cmd:"" help:"Send an email to an address, outside of all campaigns."`
}

type emailOf struct {
	Name    string `arg:"" help:"The email's name."`
	As      string `aliases:"contact" help:"As this contact would get it (address, external id or number); otherwise as one without any fields. --contact is the same." placeholder:"CONTACT"`
	Data    string `help:"What the template sees as data.*, as JSON." default:"{}"`
	Locale  string `help:"In this language, and not the contact's." placeholder:"LOCALE"`
	Variant string `help:"This variant, and not the one that the contact gets." placeholder:"NAME"`
}

func emails() sort { return sort{"email", []string{spec.KindEmail}} }

// load makes the mail.
func (e emailOf) load(ctx context.Context, s *session, tx *postgres.Tx) (*compose.Mail, error) {
	data := map[string]any{}
	if err := json.Unmarshal([]byte(e.Data), &data); err != nil {
		return nil, usageError{"--data is not a JSON object: " + err.Error()}
	}
	standIn, err := mail.ParseStandIn(s.env("ONDA_PREPRODUCTION_TO"))
	if err != nil {
		return nil, fmt.Errorf("ONDA_PREPRODUCTION_TO: %w", err)
	}
	cfg := compose.Config{LinkURL: s.env("ONDA_LINK_URL"), FormURL: s.env("ONDA_FORM_URL"), ReturnPathDomain: s.env("ONDA_RETURN_PATH_DOMAIN"), StandIn: standIn}
	if cfg.LinkURL == "" {
		return nil, errors.New("ONDA_LINK_URL is not set: it is where links of mails lead, such as https://links.example.com")
	}
	if err := cfg.Check(); err != nil {
		return nil, err
	}
	var as int64
	if e.As != "" {
		if as, err = findContact(ctx, tx, e.As); err != nil {
			return nil, err
		}
	}
	return compose.New(cfg).Preview(ctx, tx, e.Name, compose.Previewed{Contact: as, Data: data, Locale: e.Locale, Variant: e.Variant})
}

type emailPreviewCmd struct {
	emailOf
	HTML string `help:"Write the HTML to this file." type:"path" placeholder:"FILE"`
}

// Help is shown by --help.
func (emailPreviewCmd) Help() string {
	return "Example:\n  onda --tenant acme email preview welcome --contact nl-1001 --html w.html\n" +
		"  onda --tenant acme email preview welcome --locale fr --variant short"
}

// Run shows the mail.
func (c emailPreviewCmd) Run(ctx context.Context, s *session) error {
	var content compose.Content
	var attached []string
	err := s.named(ctx, c.Name, emails(), "", func(ctx context.Context, tx *postgres.Tx) error {
		m, err := c.load(ctx, s, tx)
		if err != nil {
			return err
		}
		attached = m.Attached()
		content, err = m.Page()
		return err
	})
	if err != nil {
		return err
	}
	if c.HTML != "" {
		if err := os.WriteFile(c.HTML, []byte(content.HTML), 0o644); err != nil {
			return fmt.Errorf("write preview: %w", err)
		}
	}
	if ok, err := s.data(previewed{content.Locale, content.Variant, content.Subject, content.HTML, content.Text, attached}); ok {
		return err
	}
	if content.Variant != "" {
		s.print("Variant: %s", content.Variant)
	}
	s.print("Subject: %s", content.Subject)
	for _, name := range attached {
		s.print("Attached: %s", name)
	}
	s.print("\n%s", content.Text)
	return nil
}

// previewed is what onda email preview prints as JSON.
type previewed struct {
	Locale      string   `json:"locale"`
	Variant     string   `json:"variant"`
	Subject     string   `json:"subject"`
	HTML        string   `json:"html"`
	Text        string   `json:"text"`
	Attachments []string `json:"attachments"`
}

type emailTestCmd struct {
	emailOf
	To string `required:"" help:"Where to." placeholder:"ADDRESS"`
}

// Help is shown by --help.
func (emailTestCmd) Help() string {
	return "Needs ONDA_SMTP_URL. The mail is no delivery: it is in no report, and its links are not tracked. In a pre-production it goes to ONDA_PREPRODUCTION_TO.\n\n" +
		"Example:\n  onda --tenant acme email test welcome --as nl-1001 --to me@example.com"
}

// Run sends the mail.
func (c emailTestCmd) Run(ctx context.Context, s *session) error {
	if s.env("ONDA_SMTP_URL") == "" {
		return errors.New("ONDA_SMTP_URL is not set: it is the relay, such as smtp://user:password@relay.example.com:587?tls=starttls")
	}
	relays, err := mail.ParseURLs(s.env("ONDA_SMTP_URL"))
	if err != nil {
		return fmt.Errorf("ONDA_SMTP_URL: %w", err)
	}
	to, err := contact.Normalise(c.To)
	if err != nil {
		return usageError{"--to: " + err.Error()}
	}
	var envelope mail.Envelope
	var body []byte
	err = s.named(ctx, c.Name, emails(), "", func(ctx context.Context, tx *postgres.Tx) error {
		m, err := c.load(ctx, s, tx)
		if err != nil {
			return err
		}
		if tx.Tenant.Preproduction {
			if err := mail.CheckPreproduction(relays); err != nil {
				return err
			}
		}
		_, message, err := m.Message()
		if err != nil {
			return err
		}
		if tx.Tenant.Preproduction { // to the stand-in, whatever was typed
			to = message.To.Email
		}
		message.To = mail.Address{Email: to}
		envelope = mail.Envelope{From: message.From.Email, To: to}
		if body, err = message.Build(); err == nil {
			body, err = m.Sign(body, 0, nil)
		}
		return err
	})
	if err != nil {
		return err
	}
	pool := mail.NewPool(relays, mail.PoolConfig{Size: 1, MessageLimit: 30 * time.Second})
	defer func() { _ = pool.Close(context.WithoutCancel(ctx)) }()
	res := pool.Send(ctx, envelope, body)
	if err := outcome(res); err != nil {
		return fmt.Errorf("%s was not sent to %s: %w", c.Name, to, err)
	}
	if ok, err := s.data(map[string]string{"email": c.Name, "to": to, "answer": res.Text}); ok {
		return err
	}
	s.print("%s was sent to %s", c.Name, to)
	return nil
}

// outcome says why a mail was not sent: in the relay's words, if it had any.
func outcome(res mail.Result) error {
	switch {
	case res.State == mail.Sent:
		return nil
	case res.Code != 0:
		return fmt.Errorf("the relay answers %s", strings.Join(strings.Fields(fmt.Sprint(res.Code, " ", res.Enhanced, " ", res.Text)), " "))
	case res.State == mail.Unknown:
		return fmt.Errorf("the relay did not say what became of it; look before it is sent again: %w", res.Err)
	case res.Err != nil:
		return fmt.Errorf("%w: check ONDA_SMTP_URL", res.Err)
	}
	return errors.New("the relay gives no reason")
}
