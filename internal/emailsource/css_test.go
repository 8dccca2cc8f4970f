package emailsource_test

import (
	"strings"
	"testing"

	"github.com/onda-run/onda/internal/emailsource"
	"github.com/onda-run/onda/internal/spec"
)

// body gives what became of a body with a style sheet.
func styled(t *testing.T, css, body string) (head, inside string) {
	t.Helper()
	c, err := emailsource.Compile(email(spec.EmailContent{Subject: "s", Text: "t", HTML: spec.Source("<html><head><style>" + css + "</style></head><body>" + body + "</body></html>")}), nil)
	if err != nil {
		t.Fatalf("%s %s: %v", css, body, err)
	}
	head, inside, _ = strings.Cut(page(t, c, "html"), "</head>")
	head = strings.TrimPrefix(head, "<html><head>")
	before, _, _ := strings.Cut(inside, "{% if _pixel %}")
	return head, before
}

func TestStylesAreInlined(t *testing.T) {
	t.Parallel()
	const rows = `<table>{% for l in data.lines %}<tr class=row><td>{{ l.name }}</td></tr>{% else %}<tr><td>none</td></tr>{% endfor %}</table>`
	for name, tt := range map[string]struct{ css, body, head, want string }{
		"by element, class and child": {
			`p { color: red } .a { margin: 0 } div > p { padding: 1px }`, `<p class="a">x</p><div><p>y</p></div><b>z</b>`,
			``, `<body><p class="a" style="color:red;margin:0">x</p><div><p style="color:red;padding:1px">y</p></div><b>z</b>`,
		},
		"what is closer goes before": {
			`#i { color: green } p { color: red; margin: 0 !important }`, `<p id="i" style='color: blue; margin: 1px'>x</p>`,
			``, `<body><p id="i" style="color:green;margin:0 !important;color: blue; margin: 1px">x</p>`,
		},
		"Liquid stays where it is": {
			`.row td { color: red }`, rows,
			``, `<body>` + strings.Replace(rows, `<td>{{`, `<td style="color:red">{{`, 1),
		},
		"Liquid in a style and quotes": {
			`p { font-family: "A B", 'C' }`, `<p style="color: {{ contact.c | default: "red" }}{% if a %};margin:0{% endif %}">x</p><br class="{{ x }}"/>`,
			``, `<body><p style="font-family:&#34;A B&#34;, &#39;C&#39;;color: {{ contact.c | default: "red" }}{% if a %};margin:0{% endif %}">x</p><br class="{{ x }}"/>`,
		},
		"what no attribute can say stays": {
			"@import url(https://x.example/a.css);\n@font-face { font-family: X; src: url(\"https://x.example/;}.woff\") }\n/* } */ a { color: red } a:hover { color: blue }\n@media (max-width: 600px) { a { color: green } }\n@supports (display: grid) { a { color: pink } }",
			`<a>x</a>`,
			"<style>\n@import url(https://x.example/a.css);\n@font-face { font-family: X; src: url(\"https://x.example/;}.woff\") }\n@supports (display: grid) { a { color: pink } }\na:hover {\ncolor: blue !important\n}@media (max-width: 600px){\na {\ncolor: green !important\n}\n}\n</style>",
			`<body><a style="color:red">x</a>`,
		},
		"a self-closing tag and comments": {
			`img { border: 0 } td { margin: 0 }`, `<img src="https://x.example/a.png" alt=""/><!--[if mso]><td>x</td><![endif]-->`,
			``, `<body><img src="https://x.example/a.png" alt="" style="border:0"/><!--[if mso]><td>x</td><![endif]-->`,
		},
		"nothing that is CSS": {`{}} p { color: red`, `<p>x</p>`, ``, `<body><p>x</p>`},
	} {
		head, inside := styled(t, tt.css, tt.body)
		if head != tt.head {
			t.Errorf("%s: head\n%s\nwant\n%s", name, head, tt.head)
		}
		if inside != tt.want {
			t.Errorf("%s: body\n%s\nwant\n%s", name, inside, tt.want)
		}
	}
}

// Styles with a medium or with Liquid are left alone, and those of Markdown and layouts go together.
func TestStylesOfLayouts(t *testing.T) {
	t.Parallel()
	const alone = `<style media="print">p { color: black }</style><style>{% if a %}p { color: pink }{% endif %}</style>`
	layout := &spec.Layout{HTML: `<html><head><style type="text/css">p { color: red }</style>` + alone + `</head><body>{{ content }}</body></html>`}
	c, err := emailsource.Compile(email(spec.EmailContent{Subject: "s", Markdown: "<style>strong { color: blue }</style>\n\nOne **two**"}), layout)
	if err != nil {
		t.Fatal(err)
	}
	html := page(t, c, "html")
	if !strings.HasPrefix(html, `<html><head>`+alone+`</head><body>`) || !strings.Contains(html, `<p style="color:red">One <strong style="color:blue">two</strong></p>`) {
		t.Errorf("%s", html)
	}
	if text := page(t, c, "text"); text != "One two\n" {
		t.Errorf("text %q", text)
	}
	huge := "<style>" + strings.Repeat("p{a:b}", 11_000) + "</style>"
	if _, err := emailsource.Compile(email(spec.EmailContent{Subject: "s", Text: "t", HTML: spec.Source(huge)}), nil); err == nil || !strings.Contains(err.Error(), "its styles are larger than 64 KiB") {
		t.Errorf("large styles: %v", err)
	}
}
