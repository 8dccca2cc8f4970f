package emailsource_test

import (
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"

	"github.com/onda-run/onda/internal/emailsource"
	"github.com/onda-run/onda/internal/spec"
)

// What somebody should look at is said with its place, once, and refuses nothing.
func TestWarnings(t *testing.T) {
	t.Parallel()
	fsys := fstest.MapFS{
		"logo.png": {Data: []byte("png")},
		"mails/body.html": {Data: []byte("<p>{{ contact.email }}\n  <img src=\"https://x.example/a.png\"><img alt src='https://x.example/a.png'>\n{% if contact.email %}é{% endif %}<a href=\"http://x.example/{{ contact.email }}\">" +
			strings.Repeat("a word ", 20) + "</a> <a href=\"http://localhost:1/\">dev</a></p>\n")},
		"mails/all.yaml": {Data: []byte(`apiVersion: onda/v1
kind: Layout
metadata: {name: lay}
spec:
  html: |
    <html><body>
      <IMG src="http://x.example/logo.png">
    {{ content }}</body></html>
---
apiVersion: onda/v1
kind: Email
metadata: {name: filed}
spec: {transactional: true, layout: lay, from: a@x.example, subject: s, html: {file: body.html}, locales: {fr: {subject: t}}}
---
apiVersion: onda/v1
kind: Email
metadata: {name: marked}
spec:
  transactional: true
  layout: lay
  from: a@x.example
  subject: s
  markdown: |
    ![](https://x.example/b.png) and [here](http://x.example/b), <http://x.example/c> {{ contact.email }}
    ![It is said](https://x.example/b.png) ` + "`code`" + ` with words enough for everybody to read who wants to
  attachments: [{file: logo.png, inline: true}]
  variants:
    - {name: a}
    - name: b
      html: '<a href="https://x.example/"><img src="cid:logo.jpg" alt="Big sale"></a>'
    - {name: c, locales: {pt: {html: "<p>{{ contact.email }} ` + strings.Repeat("0123456789 ", 9800) + `", text: t}}}
`)},
	}
	set, err := spec.LoadChecked(fsys, nil, emailsource.Compile)
	if err != nil {
		t.Fatal(err)
	}
	const (
		alt   = "the image has no alt text, which is what people see who do not load images, and hear who listen: "
		https = " begins with http://, which anybody on the way can read and change, and browsers warn of: write https:// if the site has it"
	)
	want := []string{
		"mails/all.yaml:7:7: " + alt + "add alt, empty if it only decorates",
		"mails/all.yaml:7:7: the image http://x.example/logo.png" + https,
		"mails/all.yaml:23:13: the inline attachment logo.png is not in the mail: show it with <img src=\"cid:logo.png\">, or leave inline out",
		"mails/all.yaml:24:5: " + alt + "write it between [ and ]",
		"mails/all.yaml:24:45: the link http://x.example/b" + https,
		"mails/all.yaml:24:67: the link http://x.example/c" + https,
		"mails/all.yaml:30:13: the image cid:logo.jpg is no attachment with inline: true, and nobody will see it",
		"mails/all.yaml:30:13: the inline attachment logo.png is not in the mail: show it with <img src=\"cid:logo.png\">, or leave inline out",
		"mails/all.yaml:30:13: the mail is images with hardly any text: where images are not loaded it says nothing, and filters take it for spam. Say in text what they say",
		"mails/all.yaml:31:38: the inline attachment logo.png is not in the mail: show it with <img src=\"cid:logo.png\">, or leave inline out",
		"mails/all.yaml:31:38: the mail's HTML has about 105 KB, and Gmail shows the first 102 and hides the rest, the link to unsubscribe with it: shorten it",
		"mails/body.html:2:3: " + alt + "add alt, empty if it only decorates",
		"mails/body.html:3:35: the link http://x.example/{{ contact.email }}" + https,
	}
	var got []string
	for _, w := range set.Warnings {
		got = append(got, w.Error())
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// What programs cut off is said, and addresses are read as browsers read them.
func TestWarningsOfOnePage(t *testing.T) {
	t.Parallel()
	for html, want := range map[string]string{
		"<style>" + strings.Repeat("p{a:b}", 3000) + "</style>x":                     "the mail's styles have 17 KB, and Gmail reads none beyond 16",
		`<a href="HTTP://x.example/">x</a>`:                                          "the link HTTP://x.example/ begins with http://",
		`<a title="see href=http://no.example/" href=https://x.example>x</a>`:        "",
		`<a href="HTTP://LOCALHOST:1/">x</a>`:                                        "",
		`<p title=" alt="><img title="no alt =" src="https://x.example/a.png">x</p>`: "the image has no alt text",
		`<p>x</p><img alt='' src='cid:a.png'>`:                                       "the image cid:a.png is no attachment",
	} {
		c, err := emailsource.Compile(email(spec.EmailContent{Subject: "s", Text: "t", HTML: spec.Source(html + strings.Repeat(" word", 20))}), nil)
		if err != nil {
			t.Fatal(err)
		}
		if want == "" && len(c.Findings) > 0 || want != "" && (len(c.Findings) != 1 || !strings.Contains(c.Findings[0].Msg, want)) {
			t.Errorf("%.60s: %v, want %q", html, c.Findings, want)
		}
	}
}
