package emailsource_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/html"

	"github.com/onda-run/onda/internal/emailsource"
	"github.com/onda-run/onda/internal/spec"
)

// Links get what the email and they themselves say, keep what they have, and are tracked as what they became.
func TestParametersOfLinks(t *testing.T) {
	t.Parallel()
	const utm = "utm_source=news&utm_medium=email&utm_campaign=hello"
	tracked := func(i string) string { return "{{ _links[" + i + "] }}" }
	for name, tt := range map[string]struct {
		link, href string
		links      []string
	}{
		"plain":                  {`href="https://x.example/a"`, tracked("0"), []string{"https://x.example/a?" + utm}},
		"with a query":           {`href='https://x.example/?a=1&amp;b=2'`, tracked("0"), []string{"https://x.example/?a=1&b=2&" + utm}},
		"with an empty query":    {`href="https://x.example/?"`, tracked("0"), []string{"https://x.example/?" + utm}},
		"with a fragment":        {`href="https://x.example/a#part?x"`, tracked("0"), []string{"https://x.example/a?" + utm + "#part?x"}},
		"what it has stays":      {`href="https://x.example/?utm_medium=mail"`, tracked("0"), []string{"https://x.example/?utm_medium=mail&utm_source=news&utm_campaign=hello"}},
		"with Liquid":            {`href="https://x.example/{{ contact.id | url_encode }}?a={{ "b" }}#c"`, `{% _parameters ` + utm + ` %}https://x.example/{{ contact.id | url_encode }}?a={{ "b" }}#c{% end_parameters %}`, nil},
		"with Liquid, encoded":   {`href="https://x.example/{{ contact.id | url_encode }}?a={{ "b" | url_encode }}#c{{ d }}"`, `https://x.example/{{ contact.id | url_encode }}?a={{ "b" | url_encode }}&amp;utm_source=news&amp;utm_medium=email&amp;utm_campaign=hello#c{{ d }}`, nil},
		"in the path":            {`href="https://x.example/{{ contact.id }}"`, `{% _parameters ` + utm + ` %}https://x.example/{{ contact.id }}{% end_parameters %}`, nil},
		"in the path, with own":  {`href="https://x.example/?a={{ b }}" data-onda-params="c={{ d }}"`, `{% _parameters ` + utm + ` %}https://x.example/?a={{ b }}&amp;c={{ d | url_encode }}{% end_parameters %}`, nil},
		"in the path, without":   {`href="https://x.example/{{ contact.id }}" data-onda-utm="off"`, `https://x.example/{{ contact.id }}`, nil},
		"in the path, untracked": {`href="https://x.example/{{ contact.id }}" data-onda-track="off"`, `{% _parameters ` + utm + ` %}https://x.example/{{ contact.id }}{% end_parameters %}`, nil},
		"in the host":            {`href="https://{{ contact.region }}.example/a"`, `https://{{ contact.region }}.example/a`, nil},
		"in the host, encoded":   {`href="https://{{ contact.region | url_encode }}.example/{{ a }}"`, `{% _parameters ` + utm + ` %}https://{{ contact.region | url_encode }}.example/{{ a }}{% end_parameters %}`, nil},
		"after the host":         {`href="https://x.example{{ data.path }}/a"`, `https://x.example{{ data.path }}/a`, nil},
		"with any Liquid":        {`href="https://x.example{{ data.path }}?a=1"`, `https://x.example{{ data.path }}?a=1`, nil},
		"no references":          {`href="https://x.example/pay?amount=1&currency=EUR&region=eu&section=2&param=3&notify=1&timestamp=5&utm_source=a&utm_medium=b&utm_campaign=c"`, tracked("0"), []string{"https://x.example/pay?amount=1&currency=EUR&region=eu&section=2&param=3&notify=1&timestamp=5&utm_source=a&utm_medium=b&utm_campaign=c"}},
		"quotes of its own":      {`href="https://x.example/o?q='Bob'" data-onda-utm="off"`, tracked("0"), []string{"https://x.example/o?q='Bob'"}},
		"on two lines":           {"href=\" https://x.example/\n\ta\r\nb \" data-onda-utm=off", tracked("0"), []string{"https://x.example/ab"}},
		"brackets":               {`href="https://x.example/wiki/Foo_(bar)" data-onda-utm="off"`, tracked("0"), []string{"https://x.example/wiki/Foo_(bar)"}},
		"in capitals":            {`href="HTTPS://x.example/"`, tracked("0"), []string{"HTTPS://x.example/?" + utm}},
		"in another attribute":   {`title="see href=https://no.example > data-onda-utm=on" href="https://x.example/"`, tracked("0"), []string{"https://x.example/?" + utm}},
		"own, encoded":           {`href="https://x.example/" data-onda-utm="off" data-onda-params="a={{ x|url_encode }}"`, `https://x.example/?a={{ x | url_encode }}`, nil},
		"with a tag":             {`href="https://x.example/{% if a %}?b=1{% endif %}"`, `https://x.example/{% if a %}?b=1{% endif %}`, nil},
		"of Liquid alone":        {`href="{{ unsubscribe_url }}"`, `{{ unsubscribe_url }}`, nil},
		"mailto":                 {`href="mailto:a@x.example"`, `mailto:a@x.example`, nil},
		"tel":                    {`href="tel:+4712345678"`, `tel:+4712345678`, nil},
		"own":                    {`href="https://x.example/" data-onda-params="a=b c&amp;d=1%2B1&utm_source=shop"`, tracked("0"), []string{"https://x.example/?a=b+c&d=1%2B1&utm_source=shop&utm_medium=email&utm_campaign=hello"}},
		"own, of the contact":    {`data-onda-params='c={{ contact.city }}-{{- x | raw -}}' data-onda-utm="off" href="https://x.example/"`, `https://x.example/?c={{ contact.city | url_encode }}-{{ x | url_encode }}`, nil},
		"without utm":            {`href="https://x.example/" data-onda-utm="off"`, tracked("0"), []string{"https://x.example/"}},
		"untracked":              {`href="https://x.example/" DATA-ONDA-TRACK=off`, "https://x.example/?utm_source=news&amp;utm_medium=email&amp;utm_campaign=hello", nil},
		"untracked, as it is":    {`href="https://x.example/` + strings.Repeat("x", 8<<10) + `" data-onda-track="off" data-onda-utm="off"`, "https://x.example/" + strings.Repeat("x", 8<<10), nil},
		"as long as it may be":   {`href="https://x.example/` + strings.Repeat("x", 1982) + `" data-onda-utm="off"`, tracked("0"), []string{"https://x.example/" + strings.Repeat("x", 1982)}},
	} {
		e := email(spec.EmailContent{Subject: "s", HTML: spec.Source("<p><a " + tt.link + ">here</a></p>")})
		e.Topic, e.UTM = "news", &spec.UTM{}
		c, err := emailsource.Compile(e, nil)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		html, _, _ := strings.Cut(page(t, c, "html"), ">here</a>")
		_, html, _ = strings.Cut(html, " href=\"")
		if got := strings.Trim(html, `"'`); got != tt.href {
			t.Errorf("%s: href %s, want %s", name, got, tt.href)
		}
		// the text that is derived has the same links
		want := "here <" + strings.ReplaceAll(tt.href, "&amp;", "&") + ">\n"
		if got := page(t, c, "text"); got != want {
			t.Errorf("%s: text %q, want %q", name, got, want)
		}
		if diff := cmp.Diff(tt.links, c.Links()); diff != "" {
			t.Errorf("%s: links (-want +got):\n%s", name, diff)
		}
	}
}

// Where what Liquid puts out moves the query, the parameters move with it, and nothing gets out of the attribute.
func TestParametersOfRenderedLinks(t *testing.T) {
	t.Parallel()
	e := email(spec.EmailContent{Subject: "s", HTML: `<a href="https://x.example/{{ data.a }}?b={{ data.b }}#c">here</a>`})
	e.Topic, e.UTM = "news", &spec.UTM{}
	c, err := emailsource.Compile(e, nil)
	if err != nil {
		t.Fatal(err)
	}
	const utm = "utm_source=news&utm_medium=email&utm_campaign=hello"
	for values, want := range map[[2]string]string{
		{"7", "x"}:              "https://x.example/7?b=x&" + utm + "#c",
		{"", ""}:                "https://x.example/?b=&" + utm + "#c",
		{"a?d=e", "x"}:          "https://x.example/a?d=e?b=x&" + utm + "#c",
		{"a#f", "x"}:            "https://x.example/a?" + utm + "#f?b=x#c",
		{"a", "x#f"}:            "https://x.example/a?b=x&" + utm + "#f#c",
		{"@evil.example/", "x"}: "https://x.example/@evil.example/?b=x&" + utm + "#c",
		{`"><b&amp;'`, "&lt;"}:  `https://x.example/"><b&amp;'?b=&lt;&` + utm + "#c",
		{"a", "x&utm_source=b"}: "https://x.example/a?b=x&utm_source=b&utm_medium=email&utm_campaign=hello#c",
	} {
		parts := c.For("", "")
		vars := map[string]any{"data": map[string]any{"a": values[0], "b": values[1]}}
		rendered, err := parts.HTML.Render(vars)
		if err != nil {
			t.Fatal(err)
		}
		z := html.NewTokenizer(strings.NewReader(rendered))
		for z.Next() != html.ErrorToken {
			if tag := z.Token(); tag.Data == "a" && tag.Type == html.StartTagToken {
				if diff := cmp.Diff([]html.Attribute{{Key: "href", Val: want}}, tag.Attr); diff != "" {
					t.Errorf("%q: (-want +got):\n%s", values, diff)
				}
			}
		}
		if text, err := parts.Text.Render(vars); err != nil || text != "here <"+want+">\n" {
			t.Errorf("%q: text %q, %v, want %s", values, text, err, want)
		}
	}
}

// What a link says of tracking is of it alone; in text that is written, whose links say nothing, it is of an address that no link is tracked to.
func TestUntrackedIsTheLinkAlone(t *testing.T) {
	t.Parallel()
	const links = `<a href="https://x.example/a">One</a> <a href="https://x.example/a" data-onda-track="off">Two</a> <a data-onda-track="off" href="https://x.example/a">https://x.example/a</a> <a data-onda-track="off" href="https://x.example/b">Three</a>`
	for text, want := range map[spec.Source]string{
		"":                     "One <{{ _links[0] }}> Two <https://x.example/a> <https://x.example/a> Three <https://x.example/b>\n",
		"https://x.example/a.": "{{ _links[0] }}.",
		"https://x.example/b.": "https://x.example/b.",
	} {
		c, err := emailsource.Compile(email(spec.EmailContent{Subject: "s", HTML: links, Text: text}), nil)
		if err != nil {
			t.Fatal(err)
		}
		_, html, _ := strings.Cut(page(t, c, "html"), "<body>\n")
		if html, _, _ = strings.Cut(html, "\n"); html != `<a href="{{ _links[0] }}">One</a> <a href="https://x.example/a">Two</a> <a href="https://x.example/a">https://x.example/a</a> <a href="https://x.example/b">Three</a>` {
			t.Errorf("html %s", html)
		}
		if got := page(t, c, "text"); got != want {
			t.Errorf("text %q, want %q", got, want)
		}
		if diff := cmp.Diff([]string{"https://x.example/a"}, c.Links()); diff != "" {
			t.Error(diff)
		}
	}
}

// An address that has what ends one in text is still not tracked, and whole.
func TestUntrackedWithBlanks(t *testing.T) {
	t.Parallel()
	c, err := emailsource.Compile(email(spec.EmailContent{Subject: "s", HTML: "<a href='https://x.example/a b\u00a0c&gt;d' data-onda-track=off>One</a>"}), nil)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := page(t, c, "text"), "One <https://x.example/a%20b%C2%A0c%3Ed>\n"; got != want {
		t.Errorf("text %q, want %q", got, want)
	}
	if len(c.Links()) > 0 {
		t.Errorf("links %v", c.Links())
	}
}

// page gives one of the texts in the email's own language, as it is stored.
func page(t *testing.T, c *spec.Compiled, key string) string {
	t.Helper()
	var stored map[string]map[string]any
	if err := json.Unmarshal(c.JSON(), &stored); err != nil {
		t.Fatal(err)
	}
	s, _ := stored[""][key].(string)
	return s
}

func TestWhereUTMComesFrom(t *testing.T) {
	t.Parallel()
	e := email(spec.EmailContent{Subject: "s", HTML: "x", Text: "See https://x.example/a, or https://x.example/{{ contact.id | url_encode }}."})
	e.Transactional, e.UTM = true, &spec.UTM{Campaign: "Spring & sea", Term: "t", Content: "c"}
	c, err := emailsource.Compile(e, nil)
	if err != nil {
		t.Fatal(err)
	}
	const all = "utm_source=transactional&utm_medium=email&utm_campaign=Spring+%26+sea&utm_term=t&utm_content=c"
	if diff := cmp.Diff([]string{"https://x.example/a?" + all}, c.Links()); diff != "" {
		t.Error(diff)
	}
	if got, want := page(t, c, "text"), "See {{ _links[0] }}, or https://x.example/{{ contact.id | url_encode }}?"+all+"."; got != want {
		t.Errorf("text %q, want %q", got, want)
	}
}

func TestLinksAreRefused(t *testing.T) {
	t.Parallel()
	for link, want := range map[string]string{
		`href="https://x.example/" data-onda-params="a"`:                   `data-onda-params is written as a=b&c={{ contact.country }}, not "a"`,
		`href="https://x.example/" data-onda-params="{{ a }}=b"`:           `not "{{ a }}=b"`,
		`href="https://x.example/" data-onda-params="a={% if b %}"`:        "no tags such as {% if %}",
		`href="https://x.example{{ a }}" data-onda-params="a=b"`:           "where its query begins is not known: put | url_encode to what",
		`href="mailto:a@x.example" data-onda-params="a=b"`:                 "parameters are for addresses that begin with https://",
		`href="{{ a }}" data-onda-params="a=b"`:                            "parameters are for addresses that begin with https://",
		`href="https://x.example/" data-onda-utm="no"`:                     `data-onda-utm is off or left out, not "no"`,
		`href="https://x.example/" data-onda-track`:                        `data-onda-track is off or left out, not ""`,
		`href="https://x.example/" data-onda-tracking="off"`:               "there is no data-onda-tracking",
		`href="https://x.example/` + strings.Repeat("x", 8<<10-18) + `"`:   "has 8192 bytes, and programs cut addresses of more than 2000: shorten it",
		`href="https://x.example/{% if %}` + strings.Repeat("x", 10) + `"`: "html: ",
	} {
		_, err := emailsource.Compile(email(spec.EmailContent{Subject: "s", HTML: spec.Source("<a " + link + ">x</a>")}), nil)
		if err == nil || !strings.Contains(err.Error(), want) || len(err.Error()) > 400 {
			t.Errorf("%s: %v, want %s", link[:min(len(link), 60)], err, want)
		}
	}
}
