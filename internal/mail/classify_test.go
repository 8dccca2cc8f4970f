package mail_test

import (
	"testing"

	"github.com/onda-run/onda/internal/mail"
)

func TestClassify(t *testing.T) {
	t.Parallel()
	tests := []struct {
		code     int
		enhanced string
		text     string
		want     mail.Class
	}{
		// The address is dead.
		{550, "5.1.1", "The email account that you tried to reach does not exist. Please try double-checking the recipient's email address", mail.Hard},
		{550, "5.1.1", "<x@y>: Recipient address rejected: User unknown in virtual mailbox table", mail.Hard},
		{550, "5.1.10", "RESOLVER.ADR.RecipientNotFound; Recipient not found by SMTP address lookup", mail.Hard},
		{550, "5.4.1", "Recipient address rejected: Access denied. AS(201806281)", mail.Hard},
		{550, "", "Requested action not taken: mailbox unavailable", mail.Hard},
		{550, "", "No Such User Here", mail.Hard},
		{554, "", "delivery error: dd This user doesn't have a yahoo.com account", mail.Hard},
		{550, "5.2.1", "The email account that you tried to reach is disabled", mail.Hard},
		{553, "", "5.3.0 <x@y>... User unknown", mail.Hard},
		{551, "", "not our customer", mail.Hard},
		{556, "5.1.10", "Domain does not accept mail (nullMX)", mail.Hard},
		{0, "5.1.2", "Host or domain name not found", mail.Hard},
		{0, "", "unrouteable mail domain \"example.invalid\"; unknown user", mail.Hard},
		{0, "5.5.0", "no such recipient", mail.Hard},
		// It may pass another time.
		{452, "4.2.2", "The email account that you tried to reach is over quota", mail.Soft},
		{552, "5.2.2", "mailbox full", mail.Soft},
		{550, "5.7.1", "recipient's mailbox is full", mail.Soft},
		{451, "4.7.1", "Greylisting in action, please come back later", mail.Soft},
		{421, "4.7.28", "Our system has detected an unusual rate of mail originating from your IP address", mail.Soft},
		{450, "4.2.1", "The user you are trying to contact is receiving mail too quickly", mail.Soft},
		{451, "", "Temporary local problem - please try later", mail.Soft},
		{0, "4.4.7", "delivery time expired", mail.Soft},
		{0, "", "", mail.Soft},
		// Our reputation, or what we wrote.
		{554, "5.7.1", "Service unavailable; Client host [192.0.2.1] blocked using zen.spamhaus.org", mail.Block},
		{550, "5.7.1", "Our system has detected that this message is likely unsolicited mail", mail.Block},
		{550, "5.7.606", "Access denied, banned sending IP [192.0.2.1]", mail.Block},
		{421, "4.7.0", "TSS04 Messages from 192.0.2.1 temporarily deferred due to user complaints; poor reputation", mail.Block},
		{550, "", "5.1.1 mail from 192.0.2.1 is blocked, see our blocklist", mail.Block},
		{550, "5.1.1", "recipient refused because the sender is listed in dnsbl", mail.Block},
		{554, "", "transaction failed", mail.Block},
		{554, "5.7.1", "message rejected", mail.Block},
		{552, "5.7.0", "This message was blocked because its content presents a potential security issue", mail.Block},
		// A rule.
		{550, "5.7.26", "Unauthenticated email from acme.example is not accepted due to domain's DMARC policy", mail.Policy},
		{554, "5.7.1", "<x@y>: Relay access denied", mail.Policy},
		{550, "5.7.23", "The message was rejected because of Sender Policy Framework violation; spf", mail.Policy},
		{552, "5.3.4", "Message size exceeds fixed limit", mail.Policy},
		{530, "5.7.0", "Must issue a STARTTLS command first", mail.Policy},
		{553, "5.1.8", "Sender address rejected: Domain not found", mail.Policy},
		{501, "5.5.4", "Syntax error in parameters", mail.Policy},
		{550, "5.7.1", "Access denied by administrator", mail.Policy},
	}
	for _, tt := range tests {
		if got := mail.Classify(tt.code, tt.enhanced, tt.text); got != tt.want {
			t.Errorf("%d %s %s: got %s, want %s", tt.code, tt.enhanced, tt.text, got, tt.want)
		}
	}
}
