package emailsource_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/onda-run/onda/internal/emailsource"
	"github.com/onda-run/onda/internal/spec"
)

// TestMain finds the compiler that make test installs. There being none is a failure.
func TestMain(m *testing.M) {
	if os.Getenv(emailsource.MJMLVariable) == "" {
		if path, err := filepath.Abs("../../tools/mjml/node_modules/.bin/mjml"); err == nil {
			if _, err := os.Stat(path); err == nil {
				_ = os.Setenv(emailsource.MJMLVariable, path)
			}
		}
	}
	os.Exit(m.Run())
}

func mjml(body string) spec.Source {
	return spec.Source("<mjml><mj-body><mj-section><mj-column>" + body + "</mj-column></mj-section></mj-body></mjml>")
}

func TestMJML(t *testing.T) {
	t.Parallel()
	e := email(spec.EmailContent{
		Subject: "s", Preheader: "First", MJML: mjml(`<mj-text>Hello {{ contact.name | default: "you" }}, <a href="https://x.example/a" data-onda-utm="off">see</a></mj-text>
			<mj-raw>{% if contact.vip %}</mj-raw><mj-button href="https://x.example/{{ contact.id | url_encode }}?a=1&amp;b=2">Go</mj-button><mj-raw>{% endif %}</mj-raw>`),
	})
	e.Transactional, e.UTM = true, &spec.UTM{Source: "u"}
	e.Locales = map[string]spec.EmailContent{"fr": {Subject: "t"}}
	c, err := emailsource.Compile(e, nil)
	if err != nil {
		t.Fatal(err)
	}
	html, err := c.For("fr", "").HTML.Render(map[string]any{"contact": map[string]any{"name": "<Ana>", "vip": true, "id": 7}, "_links": []any{"https://l.example/c/1"}, "_pixel": "https://l.example/o"})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"Hello &lt;Ana&gt;", `href="https://l.example/c/1"`, "https://x.example/7?a=1&amp;b=2&amp;utm_source=u", ">First</div>", "<!--[if mso", `lang="fr"`, "@media only screen", "https://l.example/o"} {
		if !strings.Contains(html, want) {
			t.Errorf("no %s in\n%s", want, html)
		}
	}
	if strings.Contains(html, "data-onda") || strings.Contains(html, "ondaliquid") || strings.Contains(html, "<mj-") {
		t.Errorf("something is left:\n%s", html)
	}
	if text, want := page(t, c, "text"), "Hello {{ contact.name | default: \"you\" }}, see <{{ _links[0] }}>"; !strings.Contains(text, want) {
		t.Errorf("text %q, want %q in it", text, want)
	}
}

func TestLayoutsInMJML(t *testing.T) {
	t.Parallel()
	layout := &spec.Layout{Meta: spec.Meta{Name: "lay"}, MJML: `<mjml><mj-body>{{ content }}<mj-section><mj-column><mj-text>Bye</mj-text></mj-column></mj-section></mj-body></mjml>`, Text: "{{ content }}--"}
	section := spec.Source("<mj-section><mj-column><mj-text>Hello</mj-text></mj-column></mj-section>")
	c, err := emailsource.Compile(email(spec.EmailContent{Subject: "s", MJML: section}), layout)
	if err != nil {
		t.Fatal(err)
	}
	if _, after, _ := strings.Cut(page(t, c, "html"), "Hello"); !strings.Contains(after, "Bye") {
		t.Errorf("%s", page(t, c, "html"))
	}
	if text := page(t, c, "text"); text != "Hello\n--" {
		t.Errorf("text %q", text)
	}
	around := &spec.Layout{Meta: spec.Meta{Name: "lay"}, MJML: mjml("<mj-text>{{ content }}</mj-text>")}
	if c, err = emailsource.Compile(email(spec.EmailContent{Subject: "s", Markdown: "**Hello** {{ contact.name }}"}), around); err != nil {
		t.Fatal(err)
	}
	if html := page(t, c, "html"); !strings.Contains(html, "<p><strong>Hello</strong> {{ contact.name }}</p>") {
		t.Errorf("%s", html)
	}
}

func TestMJMLIsRefused(t *testing.T) {
	t.Parallel()
	for src, want := range map[spec.Source]string{
		mjml("<mj-texd>x</mj-texd>\n<mj-text colour=\"red\">x</mj-text>"): "MJML refuses it: Line 1 (mj-texd) — Element mj-texd doesn't exist or is not registered; Line 2 (mj-text) — Attribute colour is illegal",
		mjml("{% if a %}<mj-text>x</mj-text>\n{% endif %}"):               "MJML drops {% if a %} where it stands, in line 1: between elements put it into <mj-raw>",
		"<p>x</p>":                                "MJML refuses it: Line 1 (p) — ",
		mjml(`<mj-include path="/etc/passwd"/>`):  "mj-include is not read",
		spec.Source(strings.Repeat("x", 257<<10)): "its MJML is larger than 256 KiB",
	} {
		_, err := emailsource.Compile(email(spec.EmailContent{Subject: "s", MJML: src}), nil)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.60s: %v, want %s", src, err, want)
		}
	}
	_, err := emailsource.Compile(email(spec.EmailContent{Subject: "s", MJML: mjml("")}), &spec.Layout{Meta: spec.Meta{Name: "lay"}, HTML: "{{ content }}"})
	if err == nil || !strings.Contains(err.Error(), "its layout lay is not: write both in MJML, or leave the layout out") {
		t.Errorf("a layout in HTML: %v", err)
	}
}

// Without its compiler an email in MJML is refused, with its place and what to do.
func TestNoCompiler(t *testing.T) {
	t.Setenv(emailsource.MJMLVariable, "/nowhere/mjml")
	_, err := spec.LoadChecked(fstest.MapFS{"e.yaml": {Data: []byte(`apiVersion: onda/v1
kind: Email
metadata: {name: e}
spec: {transactional: true, from: a@x.example, subject: s, mjml: "<mjml></mjml>"}
`)}}, nil, emailsource.Compile)
	const want = "e.yaml:4:66: the mail cannot be put together: compiling the email \"e\": MJML's compiler, /nowhere/mjml, was not found: run npm install --global mjml@5.4.1, or set ONDA_MJML to where it is"
	if err == nil || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
}

// The example is sound.
func TestMJMLExample(t *testing.T) {
	t.Parallel()
	set, err := spec.LoadChecked(os.DirFS("../../examples/mjml"), nil, emailsource.Compile)
	if err != nil || len(set.Warnings) > 0 {
		t.Fatalf("%v, warnings %v", err, set.Warnings)
	}
}
