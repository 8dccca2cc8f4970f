package compose

import (
	"context"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/onda-run/onda/internal/delivery"
	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/token"
)

const forms = `
apiVersion: onda/v1
kind: Form
metadata: {name: your-profile}
spec:
  locales: {default: en, texts: {en: {title: t, submit: s, email: e, ok: o}}}
  inputs: [{field: email}]
  result: {message: ok}
---
apiVersion: onda/v1
kind: Email
metadata: {name: ask}
spec:
  topic: newsletter
  from: "Acme <news@acme.example>"
  subject: Tell us more
  html: '<p><a href="{{ form_url.your-profile }}">More</a> <a href="{{ form_url["your-profile"] }}&amp;utm=news">again</a> <a href="{{ unsubscribe_url }}">Leave</a></p>'
---
apiVersion: onda/v1
kind: Email
metadata: {name: order}
spec: {transactional: true, from: "Acme <news@acme.example>", subject: Thanks, markdown: "[Your profile]({{ form_url.your-profile }})"}
`

// A mail links to a form in its recipient's name, at the tenant's form host, past all tracking.
func TestLinksToForms(t *testing.T) {
	t.Parallel()
	b := setUp(t)
	b.apply(forms)
	to := b.contact("ana@x.example", `{}`)
	pgtest.Exec(t, b.db, pgtest.Acme, "INSERT INTO subscription (contact, purpose, state, consent, at) VALUES ($1, 'tracking.email', 'granted', 0, onda.now())", to)
	keys, err := b.db.Keys(context.Background(), pgtest.Acme)
	if err != nil {
		t.Fatal(err)
	}
	made := func(c *Composer, name string, contact int64) (html, text string, err error) {
		err = b.db.InTenant(context.Background(), pgtest.Acme, func(ctx context.Context, tx *postgres.Tx) error {
			e, err := c.ByName(ctx, tx, name)
			if err != nil {
				return err
			}
			if contact == 0 {
				m, err := c.Preview(ctx, tx, name, Previewed{})
				if err != nil {
					return err
				}
				rendered, err := m.Render()
				html = rendered.HTML
				return err
			}
			audience, err := e.Audience(ctx, tx, []int64{contact})
			if err != nil {
				return err
			}
			m, err := audience.Mail(contact, delivery.ID(9, 1), 7)
			if err != nil {
				return err
			}
			_, msg, err := m.Message()
			if err != nil {
				return err
			}
			html, text = msg.HTML, msg.Text
			return nil
		})
		return html, text, err
	}
	all := New(Config{LinkURL: "https://links.example.com", FormURL: "https://forms.example.com/"})
	link := regexp.MustCompile(`(https://[a-z.]+)/f/acme/your-profile\?p=([a-z2-7]+)`)
	for _, c := range []struct {
		email string
		hosts []string
		want  string
		links int
	}{
		{"ask", nil, "https://forms.example.com", 4},
		{"order", nil, "https://forms.example.com", 2},
		{"ask", []string{"forms.acme.example"}, "https://forms.acme.example", 4},
	} {
		if _, err := b.d.Admin(t).SetHosts(t.Context(), pgtest.Acme, nil, c.hosts); err != nil {
			t.Fatal(err)
		}
		html, text, err := made(all, c.email, to)
		if err != nil {
			t.Fatal(err)
		}
		found := link.FindAllStringSubmatch(html+text, -1)
		if len(found) != c.links {
			t.Errorf("%s: %d links, want %d: %s\n%s", c.email, len(found), c.links, html, text)
		}
		for _, f := range found {
			claims, err := keys.Verifier.Verify(f[2], token.Preferences, time.Now())
			if err != nil || claims.Contact != to || f[1] != c.want {
				t.Errorf("%s: %s is of %d, at %s: %v", c.email, f[0], claims.Contact, f[1], err)
			}
		}
		if c.email == "ask" && !strings.Contains(html, "&amp;utm=news") && !strings.Contains(html, "&utm=news") {
			t.Errorf("what was added to the link is lost: %s", html)
		}
	}
	if html, _, err := made(all, "ask", 0); err != nil || !strings.Contains(html, `https://forms.acme.example/f/acme/your-profile"`) {
		t.Errorf("for nobody: %v %s", err, html)
	}
	if _, err := b.d.Admin(t).SetHosts(t.Context(), pgtest.Acme, nil, nil); err != nil {
		t.Fatal(err)
	}
	if _, _, err := made(b.c, "ask", to); err == nil || !strings.Contains(fmt.Sprint(err), "ONDA_FORM_URL") {
		t.Errorf("where forms are is not known: %v", err)
	}
}
