package renderform

import (
	"net/url"
	"strconv"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/onda-run/onda/internal/apply"
	"github.com/onda-run/onda/internal/browsertest"
	"github.com/onda-run/onda/internal/page"
)

// everyInput is a form with an input of every kind, and texts that are longer than they should be.
const everyInput = `
---
{apiVersion: onda/v1, kind: Field, metadata: {name: age, title: Age}, spec: {type: number, visitorWritable: true}}
---
{apiVersion: onda/v1, kind: Field, metadata: {name: member, title: Member}, spec: {type: boolean, visitorWritable: true}}
---
{apiVersion: onda/v1, kind: Field, metadata: {name: birthday, title: Birthday}, spec: {type: date, visitorWritable: true}}
---
{apiVersion: onda/v1, kind: Field, metadata: {name: arrival, title: Arrival}, spec: {type: datetime, visitorWritable: true}}
---
{apiVersion: onda/v1, kind: Field, metadata: {name: shirt, title: Shirt}, spec: {type: select, options: [small, large], visitorWritable: true}}
---
{apiVersion: onda/v1, kind: Field, metadata: {name: website, title: Website}, spec: {type: url, visitorWritable: true}}
---
{apiVersion: onda/v1, kind: Field, metadata: {name: phone, title: Phone}, spec: {type: phone, visitorWritable: true}}
---
{apiVersion: onda/v1, kind: Field, metadata: {name: timezone, title: Time zone}, spec: {type: timezone, visitorWritable: true}}
---
apiVersion: onda/v1
kind: Form
metadata: {name: every}
spec:
  locales:
    default: en
    texts:
      en: TEXTS
      fr: TEXTS
      pt: TEXTS
  inputs:
    - {field: email, required: true, help: help}
    - {field: first_name, label: email, help: help, required: true}
    - {field: age, label: email}
    - {field: member, label: email, help: help}
    - {field: birthday, label: email, required: true}
    - {field: arrival, label: email, help: help}
    - {field: shirt, label: email, required: true}
    - {field: website, label: email}
    - {field: phone, label: email}
    - {field: timezone, label: email}
    - {field: country, label: email}
    - {field: locale, label: email}
    - {field: interests, label: email, help: help, required: true}
    - {name: plan, type: radio, options: [one, one more, another-that-is-much-longer-than-a-telephone-is-wide], label: email, required: true}
    - {name: message, type: textarea, maxLength: 10, label: email, help: help, required: true}
    - {name: cv, type: file, accept: [application/pdf, image/jpeg], label: email, help: help, required: true}
    - {name: pictures, type: file, accept: ["image/*"], maxFiles: 3, maxSize: 1MB, label: email}
    - {consent: offers, label: intro, required: true}
    - {consent: tracking.email, label: email}
  result: {message: thanks}
`

const longTexts = `{title: "Donaudampfschifffahrtsgesellschaftskapitänsmützenabzeichen, and a heading that goes on for longer than anybody would read it",
  intro: "This is https://www.example.com/an/address/that/cannot/be/broken/anywhere/but/has/to/be/on/a/telephone, and a long explanation of what this form is for.",
  submit: "Send all of this now, and never again ask me for so many things at once",
  email: "The address of electronic mail at which we are to reach you most of the time",
  help: "Incomprehensibilities, counterrevolutionaries and uncharacteristically-long-words-joined-by-hyphens help nobody.",
  thanks: "We have all of it."}`

// Every page in every state is looked at by every visitor: a block of the templates that is in no row is an error.
func TestEveryPageInEveryState(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	if _, _, err := apply.Directory(t.Context(), w.db, "acme", fstest.MapFS{"all.yaml": {Data: []byte(documents + strings.ReplaceAll(everyInput, "TEXTS", longTexts))}}, nil); err != nil {
		t.Fatal(err)
	}
	const every, offers = "/f/acme/every", "/f/acme/offers"
	var pages []browsertest.Page
	for i, lang := range page.Languages() {
		from := []string{"Accept-Language", lang, "X-Forwarded-For", "203.0.113." + strconv.Itoa(i+1)}
		show := func(name, block string, status int, a answer) {
			t.Helper()
			if a.status != status {
				t.Errorf("%s in %s: status %d, want %d: %s", name, lang, a.status, status, a.body)
			}
			pages = append(pages, browsertest.Page{Name: name, Block: block, Lang: lang, Header: a.header, Body: a.body})
		}
		signUp := func(address string) answer {
			v := w.fill(good())
			v.Set("email", address)
			v.Set("onda_lang", lang)
			return w.post(newsletter, v, from...)
		}
		show("form", "form", 200, w.get(newsletter, from...))
		show("form in a frame", "form", 200, w.get(newsletter+inFrame, from...))
		show("every input", "form", 200, w.get(every, from...))
		show("nothing filled in", "form", 422, w.post(newsletter, url.Values{"onda_lang": {lang}}, from...))
		show("nothing filled in of every input", "form", 422, w.post(every, nil, from...))
		show("every input wrong", "form", 422, w.postFiles(every, url.Values{
			"onda_lang": {lang}, "email": {"nobody@"}, "age": {"old"}, "birthday": {"2026-02-30"}, "arrival": {"then"}, "shirt": {"huge"}, "website": {"here"}, "phone": {"12"}, "timezone": {"Mars"}, "country": {"XX"},
			"locale": {"xx-"}, "interests": {"work"}, "plan": {"none"}, "message": {strings.Repeat("long ", 99)}, "first_name": {"a\x00b"},
		}, sentFile{"cv", strings.Repeat("curriculum-vitae", 9) + ".pdf", "<html>"}, sentFile{"pictures", "a.png", png}))
		show("address of a provider that is refused", "form", 422, signUp("ada@mailinator.com"))
		show("sent", "result", 200, signUp("ada-"+lang+"@example.com"))
		confirm := w.confirmURL("acme")
		twice := w.fill(good())
		twice.Set("onda_lang", lang)
		twice.Set("email", "twice-"+lang+"@example.com")
		w.post(newsletter, twice, from...)
		twice.Set("first_name", "Eve")
		show("sent before with other answers", "form", 422, w.post(newsletter, twice, from...))
		show("sent, without a confirmation", "result", 200, w.postFiles(every, url.Values{
			"onda_lang": {lang}, "email": {"eve@example.com"}, "first_name": {"Eve"}, "birthday": {"2001-02-03"}, "shirt": {"large"}, "interests": {"ski"}, "plan": {"one"}, "message": {"Hello"}, "consent.offers": {"on"},
		}, sentFile{"cv", "cv.pdf", pdf}))
		show("confirm", "confirm", 200, w.get(confirm, from...))
		show("confirmed", "confirmed", 200, w.post(confirm, nil, from...))
		show("confirmed before", "confirmed", 200, w.get(confirm, from...))
		for range 2 {
			w.post(offers, url.Values{"email": {"ada@example.com"}}, from...)
		}
		show("too often", "text", 429, w.post(offers, url.Values{"email": {"ada@example.com"}}, from...))
	}
	signedUp := w.fill(good())
	signedUp.Set("email", "late@example.com")
	w.post(newsletter, signedUp, "X-Forwarded-For", "203.0.113.9")
	late := w.confirmURL("acme")
	w.move("acme", 30*24*time.Hour)
	w.preproduction()
	for _, lang := range page.Languages() {
		for _, p := range []struct{ name, block, path string }{{"form of a pre-production", "form", newsletter}, {"expired", "expired", late}} {
			a := w.get(p.path, "Accept-Language", lang)
			pages = append(pages, browsertest.Page{Name: p.name, Block: p.block, Lang: lang, Header: a.header, Body: a.body})
		}
	}
	texts, err := page.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	browsertest.Complete(t, assets, "pages/*.html", func(key string) string { return texts.Text(page.Fallback, key) }, pages)
	browsertest.LookAtAll(t, pages)
}
