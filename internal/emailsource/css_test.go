package emailsource_test

import (
	"flag"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

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
			``, `<p class="a" style="color:red;margin:0">x</p><div><p style="color:red;padding:1px">y</p></div><b>z</b>`,
		},
		"what is closer goes before, and what is important last": {
			`#i { color: green } p { color: red; margin: 0 !important }`, `<p id="i" style='color: blue; margin: 1px;'>x</p>`,
			``, `<p id="i" style="color:green;color: blue; margin: 1px;margin:0">x</p>`,
		},
		"what is important in a sheet is beaten in @media that is too": {
			`.c { width: 300px !important } @media (max-width: 600px) { .c { width: 100% !important } }`, `<p class=c>x</p>`,
			``, `<p class=c style="width:300px">x</p>`,
		},
		"fallbacks": {`p { width: 100%; width: calc(100% - 1px) } b { width: 1px } b { width: 2px }`, `<p>x</p><b>y</b>`, ``, `<p style="width:100%;width:calc(100% - 1px)">x</p><b style="width:2px">y</b>`},
		"Liquid stays where it is": {
			`.row td { color: red }`, rows,
			``, strings.Replace(rows, `<td>{{`, `<td style="color:red">{{`, 1),
		},
		"Liquid in a style, or around it": {
			`p { font-family: "A B", 'C' }`, `<p style="color: {{ contact.c | default: "red" }}{% if a %};margin:0{% endif %}">x</p><p {% if a %}style="color:red"{% endif %}>x</p><br class="{{ x }}"/><p>y</p>`,
			``, `<p style="color: {{ contact.c | default: "red" }}{% if a %};margin:0{% endif %}">x</p><p {% if a %}style="color:red"{% endif %}>x</p><br class="{{ x }}"/><p style="font-family:&#34;A B&#34;, &#39;C&#39;">y</p>`,
		},
		"what holds at times goes before": {
			"@import url(https://x.example/a.css);\n@font-face { font-family: X; src: url(\"https://x.example/;}.woff\") }\n/* } */ a { color: red } a:hover { color: blue; --x: y }\n@media (max-width: 600px) { a { color: green } b { color: green } }\n@supports (display: grid) { a { color: pink; margin: 0 } }",
			`<a>x</a>`,
			"@import url(https://x.example/a.css);\n@font-face { font-family: X; src: url(\"https://x.example/;}.woff\") }\n/* } */ a { color: red } a:hover { color: blue !important; --x: y }\n@media (max-width: 600px) { a { color: green !important } b { color: green } }\n@supports (display: grid) { a { color: pink !important; margin: 0 } }",
			`<a style="color:red">x</a>`,
		},
		"of a list, what is of the user alone": {
			`a { color: red; margin: 1px } .b, a:hover { color: blue; margin: 0 }`, `<a>x</a><a class=b>y</a>`,
			"a { color: red; margin: 1px } .b, a:hover { color: blue; margin: 0 }\na:hover { color: blue !important; margin: 0 !important; }", `<a style="color:red;margin:1px">x</a><a class=b style="color:blue;margin:0">y</a>`,
		},
		"in @media, what goes before nothing stays as it is": {
			`.x { margin: 1px } @media print { * { margin: 0 } p { margin: 2px } }`, `<p class=x>x</p>`,
			``, `<p class=x style="margin:1px">x</p>`,
		},
		"of every element": {`* { margin: 0; padding: 0 } p { margin: 0 0 16px } .a * { color: red } b { color: blue }`, `<p>x</p><i class=a><b>y</b></i>`, ``, `<p style="margin:0 0 16px">x</p><i class=a><b>y</b></i>`},
		"visited": {
			`a:link, a:visited { color: blue } .b:link { margin: 0 } .b:visited { margin: 1px }`, `<a href="https://{{ x }}" style="color:#fff">x</a><a href="{{ x }}">y</a><a class=b href="{{ x }}">z</a>`,
			``, `<a href="https://{{ x }}" style="color:blue;color:#fff">x</a><a href="{{ x }}" style="color:blue">y</a><a class=b href="{{ x }}" style="color:blue">z</a>`,
		},
		"classes of Liquid": {
			`p { color: red; margin: 0 } .vip { color: gold } .sure { padding: 0 } #outlook a { padding: 0 } u + .body { margin: 0 } .dark i { color: white } i, b { color: red }`,
			`<p class="sure {% if a %} vip {% endif %}">x</p><p class="plan-{{ contact.plan }}">y</p><p>z</p><div class="{{ x }}"><i>w</i><b>v</b></div>`,
			``, `<p class="sure {% if a %} vip {% endif %}" style="margin:0;padding:0">x</p><p class="plan-{{ contact.plan }}" style="margin:0">y</p><p style="color:red;margin:0">z</p>` +
				`<div class="{{ x }}"><i>w</i><b style="color:red">v</b></div>`,
		},
		"rows of Liquid": {
			`td { border: 1px solid; color: red } tr:last-child td { border-bottom: 0 } tr:nth-child(even) { color: blue } tr + tr td { color: green }`,
			`<table>{% for l in data.lines %}<tr><td>{{ l }}</td></tr>{% endfor %}</table>`,
			``, `<table>{% for l in data.lines %}<tr><td>{{ l }}</td></tr>{% endfor %}</table>`,
		},
		"in one element or another": {
			`td p { color: red } th p { color: blue } tr p { padding: 0 } p { margin: 0 } .x p { margin: 1px } b, .a { color: green } tr b { color: green }`,
			`<table><tr>{% if a %}<td class="x">{% else %}<th>{% endif %}<p>x</p><b class=a>y</b>{% if a %}</td>{% else %}</th>{% endif %}<td><p>z</p></td></tr></table>`,
			``, `<table><tr>{% if a %}<td class="x">{% else %}<th>{% endif %}<p>x</p><b class=a style="color:green">y</b>{% if a %}</td>{% else %}</th>{% endif %}<td><p style="margin:0;color:red;padding:0">z</p></td></tr></table>`,
		},
		"in one of two": {
			`.x p { color: red } .y p { color: blue } .z p { color: green } div { margin: 0 }`,
			`<div class=z>{% if a %}<div class=x><p>0</p>{% elsif b %}<div class=y>{% else %}<section class=y>{% endif %}<p>1</p>{% unless a %}</section>{% endunless %}</div></div><p>2</p><div class=x><p>3</p></div>`,
			``, `<div class=z style="margin:0">{% if a %}<div class=x style="margin:0"><p style="color:green">0</p>{% elsif b %}<div class=y style="margin:0">{% else %}<section class=y>{% endif %}<p>1</p>{% unless a %}</section>{% endunless %}</div></div><p>2</p><div class=x style="margin:0"><p style="color:red">3</p></div>`,
		},
		"around what may be": {
			`a img { border: 0 } p img { margin: 0 } p b { color: red }`,
			`<p>{% if a %}<a href="https://x.example/{{ a }}">{% endif %}<img alt="">{% if a %}</a>{% endif %}<b>x</b></p>`,
			``, `<p>{% if a %}<a href="https://x.example/{{ a }}">{% endif %}<img alt="">{% if a %}</a>{% endif %}<b style="color:red">x</b></p>`,
		},
		"rows and cells that Liquid closes": {
			`tr td { color: red } td p { margin: 0 }`,
			`<table><tr>{% for l in data.lines %}<td><p>x</p></td>{% if l %}</tr><tr>{% endif %}{% endfor %}</tr></table><table><tr><td>{% case a %}{% when 1 %}</td><td>{% endcase %}<p>y</p></td></tr></table>`,
			``, `<table><tr>{% for l in data.lines %}<td style="color:red"><p style="margin:0">x</p></td>{% if l %}</tr><tr>{% endif %}{% endfor %}</tr></table><table><tr><td style="color:red">{% case a %}{% when 1 %}</td><td style="color:red">{% endcase %}<p style="margin:0">y</p></td></tr></table>`,
		},
		"captured, and put out elsewhere": {
			`i p { color: red } p { margin: 0 } b p { color: red }`,
			`<i>{% capture c %}<p>x</p>{% endcapture %}<p>y</p></i><b>{{ c }}</b>{% capture d %}<b>{% endcapture %}<i><p>z</p></i>`,
			``, `<i>{% capture c %}<p style="margin:0">x</p>{% endcapture %}<p style="margin:0;color:red">y</p></i><b>{{ c }}</b>{% capture d %}<b>{% endcapture %}<i><p style="margin:0">z</p></i>`,
		},
		"rows that are there": {`tr:last-child td { border: 0 }`, `<table><tr><td>x</td></tr><tr><td>y</td></tr></table>`, ``, `<table><tr><td>x</td></tr><tr><td style="border:0">y</td></tr></table>`},
		"variables and hacks": {
			`:root { --brand: #b00020 } p { color: red; *zoom: 1; _height: 1px } .b { color: var(--brand) } @media print { :root { --brand: #000 } }`, `<p>x</p><p class=b>y</p>`,
			``, `<p style="color:red">x</p><p class=b>y</p>`,
		},
		"a self-closing tag and comments": {
			`img { border: 0 } td { margin: 0 }`, `<img src="https://x.example/a.png" alt=""/><!--[if mso]><td>x</td><![endif]-->`,
			``, `<img src="https://x.example/a.png" alt="" style="border:0"/><!--[if mso]><td>x</td><![endif]-->`,
		},
		"style in another attribute": {`p { color: red }`, `<p data-s="x style=y" title=">">x</p>`, ``, `<p data-s="x style=y" title=">" style="color:red">x</p>`},
		"nothing that is CSS":        {`{}} p { color: red`, `<p>x</p>`, ``, `<p>x</p>`},
	} {
		head, inside := styled(t, tt.css, tt.body)
		want := tt.head
		if want == "" {
			want = tt.css
		}
		if head != "<style>"+want+"</style>" {
			t.Errorf("%s: head\n%s\nwant\n%s", name, head, want)
		}
		if inside != "<body>"+tt.want {
			t.Errorf("%s: body\n%s\nwant\n%s", name, inside, tt.want)
		}
	}
}

// What a later sheet says goes before what an earlier one does, also where it has a medium or Liquid, and those of Markdown and layouts go together.
func TestStylesOfLayouts(t *testing.T) {
	t.Parallel()
	const head = `<html><head><style type="text/css">p { color: red; margin: 0; width: 300px }</style><style>{% if a %}p { color: pink }{% endif %} i { margin: {{ x | raw }} }</style><style media="(max-width:600px)">p{width:100%`
	layout := &spec.Layout{HTML: head + `}</style></head><body>{{ content }}</body></html>`}
	c, err := emailsource.Compile(email(spec.EmailContent{Subject: "s", Markdown: "<style>strong { color: blue }</style>\n\nOne **two**"}), layout)
	if err != nil {
		t.Fatal(err)
	}
	html := page(t, c, "html")
	if !strings.HasPrefix(html, head+` !important}</style></head><body>`) || !strings.Contains(html, `<p style="margin:0;width:300px">One <strong style="color:blue">two</strong></p>`) {
		t.Errorf("%s", html)
	}
	if text := page(t, c, "text"); text != "One two\n" {
		t.Errorf("text %q", text)
	}
	huge := "<style>" + strings.Repeat("p{a:b}", 11_000) + "</style>"
	if _, err := emailsource.Compile(email(spec.EmailContent{Subject: "s", Text: "t", HTML: spec.Source(huge)}), nil); err == nil || !strings.Contains(err.Error(), "its styles are larger than 64 KiB") {
		t.Errorf("large styles: %v", err)
	}
	many := "<style>" + strings.Repeat("p{a:b}", 5000) + strings.Repeat("*{a:b}", 5000) + "</style>" + strings.Repeat("<p>", 500)
	if _, err := emailsource.Compile(email(spec.EmailContent{Subject: "s", Text: "t", HTML: spec.Source(many)}), nil); err == nil || !strings.Contains(err.Error(), "its styles are too many") {
		t.Errorf("many styles: %v", err)
	}
}

var update = flag.Bool("update", false, "write the golden files anew")

// A page as people write them: programs that read its style element see what its author saw, and others nearly that.
func TestAPageIsInlined(t *testing.T) {
	t.Parallel()
	src, err := os.ReadFile("testdata/inline.html")
	if err != nil {
		t.Fatal(err)
	}
	c, err := emailsource.Compile(email(spec.EmailContent{Subject: "s", Text: "t", HTML: spec.Source(src)}), nil)
	if err != nil {
		t.Fatal(err)
	}
	const golden = "testdata/inline.golden.html"
	got := page(t, c, "html")
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
