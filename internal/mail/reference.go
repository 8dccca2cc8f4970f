package mail

import (
	"slices"
	"strings"
)

// Reference is a header field by which a provider's webhooks name the mail that they are about, where neither its return path nor its Message-ID is in all of them.
type Reference struct{ name, before, after string }

// The providers that need one. Postmark keeps nothing else of a mail, and takes the field out again; SendGrid names the Message-ID in what it tells of deliveries only.
func referenceOf(provider string) (Reference, bool) {
	switch provider {
	case "postmark":
		return Reference{name: "X-PM-Metadata-onda"}, true
	case "sendgrid":
		return Reference{"X-SMTPAPI", `{"unique_args":{"onda":"`, `"}}`}, true
	}
	return Reference{}, false
}

// providerOf tells whose relay a host is; empty for one that needs no Reference.
func providerOf(host string) string {
	for domain, provider := range map[string]string{"postmarkapp.com": "postmark", "sendgrid.net": "sendgrid"} {
		if strings.HasSuffix(strings.ToLower(host), "."+domain) {
			return provider
		}
	}
	return ""
}

// References are the fields that mails through these relays need. Which one a mail goes through is not known when it is made.
func References(relays []Relay) (all []Reference) {
	for _, r := range relays {
		if ref, ok := referenceOf(r.Provider); ok && !slices.Contains(all, ref) {
			all = append(all, ref)
		}
	}
	return all
}

// Header is the field of a delivery's mail. Its value is short whatever the domain: Postmark takes 80 characters.
func (r Reference) Header(tenant int32, delivery int64) Header {
	return Header{r.name, r.before + strings.Trim(MessageID(tenant, delivery, "onda"), "<>") + r.after}
}
