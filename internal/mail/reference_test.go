package mail_test

import (
	"encoding/json"
	"math"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/onda-run/onda/internal/mail"
)

func TestReferences(t *testing.T) {
	t.Parallel()
	for urls, want := range map[string][]string{
		"smtp://relay.example": nil,
		"smtp://email-smtp.eu-west-1.amazonaws.com smtp://smtp.mailgun.org":            nil,
		"smtp://postmarkapp.com.evil.example smtp://notpostmarkapp.com":                nil,
		"smtp://u:p@smtp.postmarkapp.com":                                              {"X-PM-Metadata-onda"},
		"smtp://u:p@SMTP-Broadcasts.PostmarkApp.com smtp://u:p@smtp.postmarkapp.com":   {"X-PM-Metadata-onda"},
		"smtp://127.0.0.1:25?tls=none&provider=postmark":                               {"X-PM-Metadata-onda"},
		"smtp://u:p@smtp.eu.sendgrid.net":                                              {"X-SMTPAPI"},
		"smtp://relay.example smtp://u:p@smtp.sendgrid.net smtp://r?provider=postmark": {"X-SMTPAPI", "X-PM-Metadata-onda"},
	} {
		relays, err := mail.ParseURLs(urls)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, r := range mail.References(relays) {
			h := r.Header(math.MaxInt32, math.MaxInt64)
			got = append(got, h.Name)
			value := h.Value
			if h.Name == "X-SMTPAPI" {
				var api struct {
					Args map[string]string `json:"unique_args"`
				}
				if err := json.Unmarshal([]byte(value), &api); err != nil {
					t.Errorf("%s: %v", value, err)
				}
				value = api.Args["onda"]
			}
			if tenant, delivery, ok := mail.ParseMessageID(value); !ok || tenant != math.MaxInt32 || delivery != math.MaxInt64 || len(value) > 80 {
				t.Errorf("%s: %s is of delivery %d of tenant %d", h.Name, value, delivery, tenant)
			}
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s (-want +got):\n%s", urls, d)
		}
	}
}
