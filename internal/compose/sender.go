package compose

import (
	"cmp"
	"context"
	"slices"
	"strings"

	"github.com/onda-run/onda/internal/mail"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/senderdomain"
	"github.com/onda-run/onda/internal/spec"
)

// sender is what is known of the domain that an email is from.
type sender struct {
	unverified bool
	returnPath string       // "" for the platform's
	dkim       *mail.Signer // nil where the relay signs
	warmup     *spec.Warmup // nil where there is none
}

// readSender reads it. A key that cannot be read is no fault of the email: it holds the mails, and does not fail them.
func (e *Email) readSender(ctx context.Context, tx *postgres.Tx, domains senderdomain.Set) (s sender, err error) {
	domain := e.SenderDomain()
	found, err := domains.Verified(domain)
	if err != nil {
		return s, err
	}
	if found == nil {
		return sender{unverified: domains.Refuses()}, nil
	}
	s.returnPath, s.warmup = found.ReturnPath, found.Warmup
	if found.Signer == spec.SignerOnda {
		s.dkim, err = senderdomain.Signer(ctx, tx, domain)
	}
	return s, err
}

// Unverified tells that the email's mails must not be sent: the tenant has sender domains, and the one that it is from is none that was found right.
func (e *Email) Unverified() bool { return e.sender.unverified }

// Preproduction tells that the email is one of a pre-production: its mails go to the stand-in.
func (e *Email) Preproduction() bool { return e.on.preproduction }

// returnDomain is where reports about the email's mails and unsubscriptions by mail go. A pre-production has the process's alone, and "" without one: the others of a copy are
// the production's, which has its keys and would believe what comes back.
func (e *Email) returnDomain() string {
	if e.on.preproduction {
		return e.composer.domain
	}
	return cmp.Or(e.sender.returnPath, e.composer.domain, e.SenderDomain())
}

// Unaddressed tells that the email's mails must not be sent: it is one of a pre-production, and there is no stand-in.
func (e *Email) Unaddressed() bool { return e.on.preproduction && e.composer.standIn.Nowhere() }

// SenderDomain is the domain that the email is from, in ASCII and lower case.
func (e *Email) SenderDomain() string {
	_, domain, _ := strings.Cut(e.from.Email, "@")
	return domain
}

// Warmup is how much of marketing may go out from the email's domain day by day; nil for as much as there is.
func (e *Email) Warmup() *spec.Warmup { return e.sender.warmup }

// Sign puts the signatures before a message that begins at an offset of b and ends with the tail, where Onda signs mails from the email's domain.
func (m *Mail) Sign(b []byte, offset int, tail []byte) ([]byte, error) {
	s := m.a.email.sender.dkim
	if s == nil {
		return b, nil
	}
	header, err := s.Sign(nil, b[offset:], tail)
	return slices.Insert(b, offset, header...), err
}
