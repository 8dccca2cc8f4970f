package renderform

import (
	"context"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/onda-run/onda/internal/apply"
	"github.com/onda-run/onda/internal/contact"
	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/token"
)

// profile asks those who are known for more: name and phone are personal.
const profile = `
---
{apiVersion: onda/v1, kind: Field, metadata: {name: full_name, title: Name}, spec: {type: text, personal: true, visitorWritable: true}}
---
{apiVersion: onda/v1, kind: Field, metadata: {name: mobile, title: Mobile}, spec: {type: phone, personal: true, visitorWritable: true}}
---
{apiVersion: onda/v1, kind: Field, metadata: {name: call_at, title: Call at}, spec: {type: datetime, visitorWritable: true}}
---
apiVersion: onda/v1
kind: Form
metadata: {name: profile}
spec:
  locales: {default: en, texts: {en: {title: Your profile, submit: Save, email: Email, full_name: Name, mobile: Mobile, country: Country, company: Company, interests: Interests, interests.ski: Ski, interests.sail: Sail, call_at: Call, city: City, nick: Nick, thanks: Saved.}}}
  inputs:
    - {field: email}
    - {field: full_name, required: true, hideWhenKnown: true}
    - {field: mobile}
    - {field: country, required: true, hideWhenKnown: true}
    - {field: company, required: true, showIf: {field: country, is: NO}}
    - {field: interests}
    - {field: call_at}
    - {name: city, label: city, required: true, showIf: {field: country, is: FR}}
    - {name: nick, label: nick, required: true, showIf: {field: full_name, startsWith: Ada}}
  result: {message: thanks}
`

// introduce applies the form and stores a contact: its id.
func (w *world) introduce(tenant string) (id int64) {
	w.t.Helper()
	if _, _, err := apply.Directory(w.t.Context(), w.db, tenant, fstest.MapFS{"all.yaml": {Data: []byte(documents + profile)}}, nil); err != nil {
		w.t.Fatal(err)
	}
	pgtest.In(w.t, w.db, tenant, func(ctx context.Context, tx *postgres.Tx) (err error) {
		if id, _, err = contact.Ensure(ctx, tx, "ada@example.com"); err != nil {
			return err
		}
		return contact.Update(ctx, tx, drainer, []int64{id}, contact.Change{Fields: map[string]any{
			"full_name": "Ada Lovelace", "mobile": "+4721000000", "country": "NO", "company": "Analytical <Engines>", "interests": []string{"ski"}, "call_at": "2026-12-01T09:00:00Z",
		}}, "")
	})
	return id
}

func (w *world) token(tenant string, c token.Claims) (tok string) {
	w.t.Helper()
	pgtest.In(w.t, w.db, tenant, func(ctx context.Context, tx *postgres.Tx) error {
		keys, err := tx.Keys(ctx)
		if err != nil {
			return err
		}
		key, _ := keys.Tokens.Current()
		if c.Purpose == 0 {
			c.Purpose = token.Preferences
		}
		c.Tenant = tx.Tenant.Number
		tok, err = token.Sign(key, c)
		return err
	})
	return tok
}

const profilePath = "/f/acme/profile"

func TestWhoIsKnownIsNotAskedAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id := w.introduce("acme")
	tok := w.token("acme", token.Claims{Contact: id})
	a := w.get(profilePath + "?p=" + tok)
	for _, want := range []string{
		`name="company" value="Analytical &lt;Engines&gt;"`, `<input type="hidden" name="country" value="NO">`, `value="ski" checked`, `name="call_at" value="2026-12-01T10:00"`, `name="email" value=""`, `name="mobile" value=""`,
		`name="onda_contact" value="` + tok + `"`, `name="nick"`,
	} {
		if !strings.Contains(a.body, want) {
			t.Errorf("%q is not on the page of who is known", want)
		}
	}
	for _, secret := range []string{"Ada", "Lovelace", "4721000000", "ada@", `name="full_name"`, `data-show-if="{&#34;field&#34;:&#34;full_name`} {
		if strings.Contains(a.body, secret) {
			t.Errorf("%q is on the page of who has the link", secret)
		}
	}
	if a.header.Get("Cache-Control") != "no-store" || a.header.Get("Referrer-Policy") != "same-origin" {
		t.Errorf("headers: %v", a.header)
	}
	values := w.hidden(profilePath + "?p=" + tok)
	values.Set("country", "FR") // a forged answer to what was not asked
	values.Set("full_name", "Mallory")
	values.Set("company", "Babbage AS")
	values.Set("interests", "sail")
	if a := w.post(profilePath, values); a.status != 422 || !strings.Contains(a.body, `name="onda_contact"`) || strings.Contains(a.body, `name="full_name"`) || !strings.Contains(a.body, `name="country" value="NO"`) {
		t.Errorf("without the address: %d %s", a.status, a.body)
	}
	values.Set("email", "ADA@example.com")
	if a := w.post(profilePath, values); a.status != 200 {
		t.Fatalf("with it: %d %s", a.status, a.body)
	}
	got := pgtest.One[string](t, w.db, "acme", "SELECT concat_ws('|', fields->>'full_name', fields->>'country', fields->>'company', fields->>'interests', fields->>'mobile') FROM contact WHERE id = $1", id)
	if got != `Ada Lovelace|NO|Babbage AS|["sail"]|+4721000000` {
		t.Errorf("the contact: %s", got)
	}
	// With another address it is somebody else's, who is asked for all of it.
	values = w.hidden(profilePath + "?p=" + tok)
	values.Set("email", "bob@example.com")
	values.Del("country")
	a = w.post(profilePath, values)
	if a.status != 422 || strings.Contains(a.body, "onda_contact") || !strings.Contains(a.body, `id="onda-profile-full_name-problem"`) || !strings.Contains(a.body, `id="onda-profile-country-problem"`) || strings.Contains(a.body, "Analytical") {
		t.Errorf("somebody else: %d %s", a.status, a.body)
	}
	values.Set("full_name", "Bob")
	values.Set("country", "SE")
	if a := w.post(profilePath, values); a.status != 200 {
		t.Errorf("somebody else: %d %s", a.status, a.body)
	}
	if got := pgtest.One[string](t, w.db, "acme", "SELECT string_agg(email || ' ' || (fields->>'full_name'), ', ' ORDER BY id) FROM contact"); got != "ada@example.com Ada Lovelace, bob@example.com Bob" {
		t.Errorf("contacts: %s", got)
	}
}

// What somebody answers is known when the same page comes again: it is a repeat all the same.
func TestARepeatOfWhoIsKnownMeanwhile(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id := w.introduce("acme")
	pgtest.Exec(t, w.db, "acme", "UPDATE contact SET fields = fields - 'country' - 'full_name'")
	values := w.hidden(profilePath + "?p=" + w.token("acme", token.Claims{Contact: id}))
	for name, value := range map[string]string{"email": "ada@example.com", "full_name": "Ada", "country": "NO", "company": "Babbage AS", "nick": "ada"} {
		values.Set(name, value)
	}
	for range 2 {
		if a := w.post(profilePath, values); a.status != 200 {
			t.Errorf("%d %s", a.status, a.body)
		}
	}
	values.Set("company", "Another")
	if a := w.post(profilePath, values); a.status != 422 {
		t.Errorf("with another answer: %d %s", a.status, a.body)
	}
	if n := w.count("acme", "submission"); n != 1 {
		t.Errorf("%d submissions, want one", n)
	}
}

// Whatever is wrong with a token, its form is that of a stranger.
func TestTokensThatRecogniseNobody(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id, other := w.introduce("acme"), w.introduce("brava")
	tok := w.token("acme", token.Claims{Contact: id})
	changing := regexp.MustCompile(`name="(onda_once|onda_moment)" value="[^"]*"`)
	page := func(query string) string { return changing.ReplaceAllString(w.get(profilePath+query).body, "") }
	stranger := page("")
	if page("?p="+tok) == stranger {
		t.Fatal("nobody is recognised at all")
	}
	bad := map[string]string{
		"truncated": tok[:len(tok)-1], "forged": tok[:len(tok)-2] + "aa", "empty": "", "long": strings.Repeat("a", 5000), "of another tenant": w.token("brava", token.Claims{Contact: other}),
		"of another purpose": w.token("acme", token.Claims{Purpose: token.Unsubscribe, Contact: id}), "of nobody": w.token("acme", token.Claims{Contact: 1 << 40}),
	}
	check := func(what, tok string) {
		t.Helper()
		if page("?p="+url.QueryEscape(tok)) != stranger {
			t.Errorf("a token that is %s recognises somebody", what)
		}
		values := w.hidden(profilePath)
		values.Set("onda_contact", tok)
		values.Set("email", "ada@example.com")
		if a := w.post(profilePath, values); a.status != 422 || !strings.Contains(a.body, "onda-profile-full_name-problem") || strings.Contains(a.body, "onda_contact") {
			t.Errorf("sent with a token that is %s: %d", what, a.status)
		}
	}
	for what, tok := range bad {
		check(what, tok)
	}
	for _, query := range []string{"?embed=iframe&p=" + tok, ".js?p=" + tok} { // on other sites nobody is recognised
		if body := w.get(profilePath + query).body; strings.Contains(body, "Analytical") || strings.Contains(body, "onda_contact\\\"") || strings.Contains(body, `"onda_contact"`) {
			t.Errorf("%s recognises somebody", query)
		}
	}
	pgtest.Exec(t, w.db, "acme", "UPDATE contact SET erased_at = onda.now() WHERE id = $1", id)
	check("of an erased contact", tok)
	if a := w.send(w.request(http.MethodHead, profilePath+"?p="+tok, "")); a.status != 200 || a.body != "" {
		t.Errorf("HEAD: %d", a.status)
	}
}
