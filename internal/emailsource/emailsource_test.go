package emailsource_test

import (
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/onda-run/onda/internal/emailsource"
	"github.com/onda-run/onda/internal/spec"
)

func email(c spec.EmailContent) *spec.Email {
	return &spec.Email{Meta: spec.Meta{Name: "hello"}, EmailContent: c}
}

// What is stored is what was made, in every language, and reads back as it.
func TestStoredForm(t *testing.T) {
	t.Parallel()
	e := email(spec.EmailContent{
		Subject: "Hi {{ contact.name }}", Preheader: "New & {{ x }}", Markdown: "{% if a %}\n\n[One](https://x.example/?a=1&b=2) and {{ contact.name }}\n\n{% endif %}\n\n<https://x.example/two>",
	})
	e.Locales = map[string]spec.EmailContent{"fr": {HTML: `<p><a href="https://x.example/fr">Un</a> <a href="{{ unsubscribe_url }}">Non</a></p>`}}
	layout := &spec.Layout{HTML: "<html><body>{{ content }}</body></html>", Text: "{{ content }}-- \nShop\n"}
	c, err := emailsource.Compile(e, layout)
	if err != nil {
		t.Fatal(err)
	}
	const hidden = `<div style="display:none;font-size:1px;line-height:1px;max-height:0;max-width:0;opacity:0;overflow:hidden;mso-hide:all">New &amp; {{ x }}</div>`
	const pixel = `{% if _pixel %}<img src="{{ _pixel }}" width="1" height="1" alt="" style="display:block;width:1px;height:1px;border:0"><a href="{{ _pixel_link }}" aria-hidden="true" style="display:none"></a>{% endif %}`
	want := `{"":{"subject":"Hi {{ contact.name }}","html":"<html><body>` + hidden + `{% if a %}\n<p><a href=\"{{ _links[0] }}\">One</a> and {{ contact.name }}</p>\n{% endif %}\n<p><a href=\"{{ _links[1] }}\">https://x.example/two</a></p>\n` + pixel +
		`</body></html>","text":"{% if a %}\n\nOne <{{ _links[0] }}> and {{ contact.name }}\n\n{% endif %}\n\n{{ _links[1] }}\n-- \nShop\n","links":["https://x.example/?a=1&b=2","https://x.example/two"]},` +
		`"fr":{"subject":"Hi {{ contact.name }}","html":"<html><body>` + hidden + `<p><a href=\"{{ _links[0] }}\">Un</a> <a href=\"{{ unsubscribe_url }}\">Non</a></p>` + pixel +
		`</body></html>","text":"Un <{{ _links[0] }}> Non <{{ unsubscribe_url }}>\n-- \nShop\n","links":["https://x.example/fr"]}}`
	want = strings.ReplaceAll(want, hidden, strings.ReplaceAll(hidden, `"`, `\"`))
	want = strings.ReplaceAll(want, pixel, strings.ReplaceAll(pixel, `"`, `\"`))
	if diff := cmp.Diff(want, string(c.JSON())); diff != "" {
		t.Errorf("the stored form (-want +got):\n%s", diff)
	}
	again, err := spec.ReadCompiled(c.JSON())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(c.JSON()), string(again.JSON())); diff != "" {
		t.Errorf("read again (-want +got):\n%s", diff)
	}
	if parts := again.Parts(); len(parts) != 2 || parts[0].Locale != "" || parts[1].Locale != "fr" {
		t.Errorf("editions %v", parts)
	}
	if diff := cmp.Diff([]string{"https://x.example/?a=1&b=2", "https://x.example/two", "https://x.example/fr"}, again.Links()); diff != "" {
		t.Error(diff)
	}
	if got := again.For("fr-CA", "").Locale + again.For("de", "").Locale; got != "fr" {
		t.Errorf("languages %q", got)
	}
}

// The preheader and the pixel are within the body that every program sees.
func TestTheBodyIsTheOneOutsideComments(t *testing.T) {
	t.Parallel()
	const outlook = `<!--[if mso]><body class="o"><![endif]-->`
	c, err := emailsource.Compile(email(spec.EmailContent{Subject: "s", Text: "t", Preheader: "First {{ x }}", HTML: `<html>` + outlook + `<BODY class="{% if a > b %}x{% endif %}">Hi<!-- </body> --></BODY></html>`}), nil)
	if err != nil {
		t.Fatal(err)
	}
	html := page(t, c, "html")
	if !strings.HasPrefix(html, `<html>`+outlook+`<BODY class="{% if a > b %}x{% endif %}"><div style="display:none`) || !strings.Contains(html, `First {{ x }}</div>Hi<!-- </body> -->{% if _pixel %}`) ||
		!strings.HasSuffix(html, `{% endif %}</BODY></html>`) {
		t.Errorf("%s", html)
	}
}

// The text that is derived has what a reader sees, and leads where links do.
func TestTextOfHTML(t *testing.T) {
	t.Parallel()
	for html, want := range map[string]string{
		`<p>One<!--[if mso]><i>Outlook</i> https://no.example<![endif]--></p><!--[if !mso]><!--><b>two</b><!--<![endif]-->`: "One\n\ntwo\n",
		`<a title="a > b" href='https://x.example/?q="a"&amp;copy=1'>One</a>`:                                               "One <{{ _links[0] }}>\n",
		`<a href="https://x.example/Foo_(bar)">https://x.example/Foo_(bar)</a>`:                                             "{{ _links[0] }}\n",
		`<a href="https://x.example/Foo_(bar)">Foo</a>, (https://x.example/Foo_(bar)).`:                                     "Foo <{{ _links[0] }}>, ({{ _links[0] }}).\n",
	} {
		c, err := emailsource.Compile(email(spec.EmailContent{Subject: "s", HTML: spec.Source(html)}), nil)
		if err != nil {
			t.Fatal(err)
		}
		if got := page(t, c, "text"); got != want {
			t.Errorf("%s: %q, want %q", html, got, want)
		}
	}
}

// What would take the libraries long is refused, with what to do about it.
func TestHostileSources(t *testing.T) {
	t.Parallel()
	for want, c := range map[string]spec.EmailContent{
		"its Markdown is larger than 64 KiB: shorten it, or write html":                                {Markdown: spec.Source(strings.Repeat("> ", 100_000))},
		"its HTML is larger than 128 KiB, too much to derive plain text of: shorten it, or write text": {HTML: spec.Source(strings.Repeat("-->", 100_000))},
		"html in fr: ": {HTML: "x", Text: "x"},
	} {
		e := email(c)
		e.Locales = map[string]spec.EmailContent{"fr": {HTML: "{% if a %}"}}
		if !strings.HasPrefix(want, "html in") {
			e.Locales = nil
		}
		if _, err := emailsource.Compile(e, nil); err == nil || !strings.Contains(err.Error(), `compiling the email "hello"`) || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %s", err, want)
		}
	}
	large := email(spec.EmailContent{HTML: spec.Source(strings.Repeat("<p>x</p>", 30_000)), Text: "x"})
	if _, err := emailsource.Compile(large, nil); err != nil {
		t.Errorf("a large page with a text of its own: %v", err)
	}
}

// Whatever an email says, it is put together or refused, and what is stored is read as the same.
func FuzzCompile(f *testing.F) {
	f.Add("s", "**a** {{ b }}\n\n{% if c %}\n\nd\n\n{% endif %}\n", "<p>{{ content }}</p>", true)
	f.Add("{{ a }}", `<a href="https://x.example/{{ b }}">c</a> https://x.example/d`, "<html><body>{{content}}</body></html>", false)
	f.Add("ondaliquid0q", "ondaliquid0q {{ a }} &amp; <!-- {% raw %}{{{% endraw %} -->", "{{- content -}}", false)
	f.Add("", `<style>p, a:hover > b { color: red !important; x: "}" } @media all { p { a: b } } @x {</style><p style='a:"b"' x>{{ a }}</p><a href="https://x.example" data-onda-params="a={{ b }}">c</a>`, "<table>{% if a %}<tr>{% endif %}{{ content }}</table>", false)
	f.Add("", "<style>i p { a: b }</style>{% if a %}<td>{% else %}</th><i>{% endif %}<p>x</p>{% case a %}{% when 1 %}</td>{% endcase %}{% capture d %}</i>{% endcapture %}", `<a href="https://x.example/{{ a }}?{{ b }}" data-onda-track="off">{{ content }}</a>`, false)
	f.Fuzz(func(t *testing.T, subject, body, layout string, markdown bool) {
		if len(body)+len(layout) > 4<<10 || !utf8.ValidString(body+layout) { // documents are UTF-8
			return
		}
		c := spec.EmailContent{Subject: spec.Source(subject), HTML: spec.Source(body)}
		if markdown {
			c.HTML, c.Markdown = "", c.HTML
		}
		made, err := emailsource.Compile(email(c), &spec.Layout{HTML: spec.Source(layout)})
		if err != nil {
			return
		}
		if strings.Contains(string(made.JSON()), "data-onda-n=") && !strings.Contains(body+layout, "data-onda-n=") {
			t.Errorf("what tells elements apart is left: %s", made.JSON())
		}
		again, err := spec.ReadCompiled(made.JSON())
		if err != nil {
			t.Fatalf("%s: %v", made.JSON(), err)
		}
		if got, want := string(again.JSON()), string(made.JSON()); got != want {
			t.Errorf("read as %s, stored as %s", got, want)
		}
	})
}
