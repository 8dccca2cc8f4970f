package liquid_test

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/onda-run/onda/internal/liquid"
)

func vars(tb testing.TB) map[string]any {
	tb.Helper()
	var v map[string]any
	err := json.Unmarshal([]byte(`{
		"contact": {"first_name": "Åse <b>", "score": 1234567, "ratio": 0.5, "interests": ["ski", "sail"], "birthday": "1990-05-17",
			"evil": "javascript:alert(1)", "site": "https://a.example/?a=1&b=2", "lines": "a\nb<", "vip": true, "empty": ""},
		"data": {"items": [{"name": "Skins", "price": 129.5}, {"name": "Wax", "price": 9}], "n": 3, "map": {"b": 2, "a": 1}},
		"unsubscribe_url": "https://l.example/u/abc"}`), &v)
	if err != nil {
		tb.Fatal(err)
	}
	return v
}

func TestRender(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		mode liquid.Mode
		src  string
		want string
	}{
		{"text without liquid", liquid.HTML, "a < b & {c}", "a < b & {c}"},
		{"escaped in HTML", liquid.HTML, "{{ contact.first_name }}", "Åse &lt;b&gt;"},
		{"raw in HTML", liquid.HTML, "{{ contact.first_name | raw }}", "Åse <b>"},
		{"escape is not twice", liquid.HTML, "{{ contact.first_name | escape }}", "Åse &lt;b&gt;"},
		{"as it is in text", liquid.Text, "{{ contact.first_name }}", "Åse <b>"},
		{"breaks are kept, the rest escaped", liquid.HTML, "{{ contact.lines | newline_to_br }}", "a<br>\nb&lt;"},
		{"header is one line", liquid.Header, "a {{ contact.lines }}\r\nBcc: x", "a a b<  Bcc: x"},
		{"missing is empty", liquid.HTML, "[{{ contact.nothing }}{{ contact.nothing.more | upcase }}{{ nobody.x | date: '%Y' }}]", "[]"},
		{"missing has a default", liquid.HTML, `Hi {{ contact.nothing | default: "there" }}`, "Hi there"},
		{"empty has a default", liquid.HTML, `Hi {{ contact.empty | default: "there" }}`, "Hi there"},
		{"numbers do not get exponents", liquid.HTML, "{{ contact.score }} {{ contact.ratio }}", "1234567 0.5"},
		{"numbers compare as numbers", liquid.HTML, "{% if contact.score > 99 %}y{% else %}n{% endif %}", "y"},
		{"missing compares with nothing", liquid.HTML, "{% if contact.none > 99 %}y{% elsif contact.none < 99 %}m{% else %}n{% endif %}", "n"},
		{"whole stays whole", liquid.HTML, "{{ data.n | plus: 1 }} {{ data.n | divided_by: 2 }} {{ data.n | divided_by: 2.0 }} {{ data.n | times: 0.5 }}", "4 1 1 1.5"},
		{"division by nothing is empty", liquid.HTML, "[{{ data.n | divided_by: 0 }}{{ data.n | modulo: contact.none }}]", "[]"},
		{"list with commas", liquid.HTML, "{{ contact.interests }} {{ contact.interests | join: '+' }}", "ski, sail ski+sail"},
		{"loop", liquid.HTML, "{% for i in data.items %}{{ forloop.index }}:{{ i.name }}={{ i.price }} {% endfor %}", "1:Skins=129.5 2:Wax=9 "},
		{"loop over nothing has an else", liquid.HTML, "{% for i in data.none %}x{% else %}none{% endfor %}", "none"},
		{"loop over a map is in order", liquid.HTML, "{% for p in data.map %}{{ p[0] }}{{ p[1] }}{% endfor %}", "a1b2"},
		{"loop with limits from JSON", liquid.HTML, "{% for i in (1..data.n) reversed limit: data.n offset: 1 %}{{ i }}{% endfor %}", "21"},
		{"range to nothing", liquid.HTML, "[{% for i in (1..contact.none) %}{{ i }}{% endfor %}]", "[]"},
		{"break and continue", liquid.HTML, "{% for i in (1..9) %}{% if i == 2 %}{% continue %}{% endif %}{% if i > 3 %}{% break %}{% endif %}{{ i }}{% endfor %}", "13"},
		{"case", liquid.HTML, "{% case data.n %}{% when 1, 2 %}a{% when 3 or 4 %}b{% else %}c{% endcase %}", "b"},
		{"unless, and, or, contains", liquid.HTML, "{% unless contact.vip and contact.none %}a{% endunless %}{% if contact.interests contains 'ski' or false %}b{% endif %}", "ab"},
		{"assign", liquid.HTML, "{% assign x = contact.first_name | downcase %}{{ x }}", "åse &lt;b&gt;"},
		{"capture is escaped once", liquid.HTML, "{% capture x %}<i>{{ contact.first_name }}</i>{% endcapture %}{{ x }}", "<i>Åse &lt;b&gt;</i>"},
		{"whitespace control", liquid.HTML, "a {{- contact.vip -}} b", "atrueb"},
		{"over several lines", liquid.HTML, "{{ contact.score\n  | plus: 1 }}{% if\ncontact.vip %}y{% endif %}", "1234568y"},
		{"comment and raw", liquid.HTML, "a{% comment %}{{ x {% endcomment %}b{% raw %}{{ y }}{% endraw %}", "ab{{ y }}"},
		{"date", liquid.HTML, "{{ contact.birthday | date: '%d %B %Y' }}|{{ contact.none | date: '%d' }}|{{ contact.first_name | date: '%d' }}", "17 May 1990||Åse &lt;b&gt;"},
		{"address in href", liquid.HTML, `<a href="{{ contact.site }}">`, `<a href="https://a.example/?a=1&amp;b=2">`},
		{"script in href", liquid.HTML, `<a href="{{ contact.evil }}" title="{{ contact.evil }}">`, `<a href="#" title="javascript:alert(1)">`},
		{"script in href, escaped by the template", liquid.HTML, `<a href="{{ contact.evil | escape }}">`, `<a href="#">`},
		{"script in href, escaped once by the template", liquid.HTML, `<a href="{{ contact.evil | escape_once }}">`, `<a href="#">`},
		{"script in href, with breaks", liquid.HTML, `<a href="{{ contact.evil | newline_to_br }}">`, `<a href="#">`},
		{"script in href, after nothing", liquid.HTML, `<a href="{{ contact.empty }}{{ contact.evil }}">`, `<a href="#">`},
		{"script in href, captured", liquid.HTML, `{% capture u %}{{ contact.evil }}{% endcapture %}<a href="{{ u }}">`, `<a href="#">`},
		{"script in the href of a drawing", liquid.HTML, `<a xlink:href="{{ contact.evil }}">`, `<a xlink:href="#">`},
		{"captured address", liquid.HTML, `{% capture u %}{{ contact.site }}{% endcapture %}<a href="{{ u }}">`, `<a href="https://a.example/?a=1&amp;b=2">`},
		{"captured, then assigned after a tab", liquid.HTML, "{% capture x %}a{% endcapture %}{% assign x\t= contact.lines %}{{ x }}", "a\nb&lt;"},
		{"after the start of a href", liquid.HTML, `<a href="https://x.example/{{ contact.evil }}">`, `<a href="https://x.example/javascript:alert(1)">`},
		{"branches of a tag", liquid.HTML, `<a href="{% if contact.vip %}{{ contact.evil }}{% else %}{{ contact.site }}{% endif %}">{{ contact.vip }}</a>`, `<a href="#">true</a>`},
		{"an attribute in a branch", liquid.HTML, `<option {% if contact.vip %}selected{% endif %} value="{{ contact.site }}">{{ contact.first_name }}`, `<option selected value="https://a.example/?a=1&amp;b=2">Åse &lt;b&gt;`},
		{"one tag or another", liquid.HTML, `{% if contact.vip %}<a href="{{ contact.evil }}"{% else %}<b {% endif %} class="{{ contact.evil }}">{{ contact.first_name }}`, `<a href="#" class="javascript:alert(1)">Åse &lt;b&gt;`},
		{"an address that may begin in a branch", liquid.HTML, `<a href="{% if contact.none %}https://x.example/{% endif %}{{ contact.evil }}">`, `<a href="#">`},
		{"classes in branches", liquid.HTML, `<p class="a{% if contact.vip %} b{% elsif contact.none %} c{% endif %}">{{ contact.first_name }}`, `<p class="a b">Åse &lt;b&gt;`},
		{"elements in branches", liquid.HTML, `{% if contact.vip %}<a href="{{ contact.site }}">{% endif %}x{% if contact.vip %}</a>{% endif %}`, `<a href="https://a.example/?a=1&amp;b=2">x</a>`},
		{"before the first when", liquid.HTML, `{% case data.n %}<a {% when 3 %}b{% endcase %}{{ contact.first_name }}`, `bÅse &lt;b&gt;`},
		{"only one program's comment", liquid.HTML, `<!--[if mso]><a href="{{ contact.evil }}"><![endif]--><!-- {{ contact.evil }} --><a href="{{ contact.evil }}">`, `<!--[if mso]><a href="#"><![endif]--><!-- javascript:alert(1) --><a href="#">`},
		{"the end of a comment in two pieces", liquid.HTML, `<!-- --{% comment %}{% endcomment %}><a href="{{ contact.evil }}">`, `<!-- --><a href="#">`},
		{"a tag in two pieces", liquid.HTML, `<{% comment %}{% endcomment %}a href="{{ contact.evil }}">`, `<a href="#">`},
		{"a trimmed tag", liquid.HTML, `<a {%- assign x = 1 -%} href="x">{{ x }}`, `<ahref="x">1`},
		{"trimmed to a brace", liquid.HTML, "{ {{- data.n -}} }{ {%- if data.n -%} }} {%- endif %}", "{3}{}}"},
		{"values are not trimmed", liquid.Text, "{% assign x = ' a ' %}{{ x }}{%- if true -%}{{ x }}{%- endif -%}{{ x }}", " a  a  a "},
		{"assigned in a loop", liquid.HTML, "{% for i in (1..3) %}{% assign last = i %}{% endfor %}{{ last }}", "3"},
		{"date with a width", liquid.HTML, "{{ contact.birthday | date: '%099999999d %-d' }}", "17 17"},
		{"truncate", liquid.HTML, "{{ 'Ærlig talt' | truncate: 6 }} {{ 'a b c' | truncatewords: 2 }} {{ 'abc' | slice: 10, 2 }}{{ 'abc' | slice: -2, 2 }}", "Ærl... a b... bc"},
		{"sort and map", liquid.HTML, "{{ data.items | sort: 'price' | map: 'name' | join: ' ' }} {{ data.items | where: 'price', 9 | map: 'name' }}", "Wax Skins Wax"},
		{"comparison as output", liquid.HTML, "{{ data.n == 3 }}", "true"},
		{"first, last, size", liquid.HTML, "{{ contact.interests.first }} {{ contact.interests[1] }} {{ contact.interests.size }} {{ contact.interests | size }}", "ski sail 2 2"},
		{"braces around", liquid.HTML, "{ {{ data.n }} } {", "{ 3 } {"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			tpl, problems := liquid.Parse(tt.src, tt.mode)
			if problems != nil {
				t.Fatalf("Parse(%q): %v", tt.src, problems)
			}
			got, err := tpl.Render(vars(t))
			if err != nil {
				t.Fatalf("Render(%q): %v", tt.src, err)
			}
			if got != tt.want {
				t.Errorf("Render(%q)\n got %q\nwant %q", tt.src, got, tt.want)
			}
		})
	}
}

func TestParseProblems(t *testing.T) {
	t.Parallel()
	tests := []struct{ src, want string }{
		{"a\n  {{ contact.x ", `2:3: {{ is never closed: put }} after it`},
		{`<a href="{% _parameters a=b c %}x{% end_parameters %}">`, `1:10: {% _parameters %} has no query, or one that is not encoded`},
		{`<a href="{% _parameters %}x{% end_parameters %}">`, `1:10: {% _parameters %} has no query, or one that is not encoded`},
		{`{% _parameters a=b %}x{% end_parameters %}`, `1:23: what is in {% _parameters %} is not one address in quotes`},
		{`<a {% _parameters a=b %}x="{% end_parameters %}{{ v }}">`, `1:28: what is in {% _parameters %} is not one address in quotes`},
		{"{% if contact.x %}", `1:1: {% if %} is never closed: put {% endif %} after it`},
		{"{{ contact.x | upcas }}", `1:16: unknown filter "upcas", did you mean "upcase"?`},
		{"{{ contact.x | default }}", `1:16: the filter "default" takes 1 value(s), not 0`},
		{"é{{ a b }}", `1:7: "b" is not expected here: the end is`},
		{"{% iff a %}", `1:1: unknown tag "iff", did you mean "if"?`},
		{`<iframe srcdoc="{{ contact.x }}">`, `1:17: a value cannot be part of a page within the page: leave the attribute srcdoc out`},
		{"{{ contact.x }}é{{ é }}{{ contact.y | upcas }}", `1:20: "é" is not expected here: a value is`},
		{"{% cycle 'a', 'b' %}", `1:1: the tag "cycle" is not part of Onda's Liquid`},
		{"{% include 'x' %}", `1:1: the tag "include" is not part of Onda's Liquid`},
		{"{% if a = 1 %}{% endif %}", `1:9: = compares nothing: write ==`},
		{"{% endif %}", `1:1: {% endif %} closes nothing`},
		{"{% for x in a %}\n{% endif %}", `2:1: {% endif %} does not close the {% for %} of line 1`},
		{"{% if a %}{% else %}{% elsif b %}{% endif %}", `1:21: {% elsif %} after {% else %} is never reached`},
		{"{% assign contact-- = %}", `1:23: a value is missing`},
		{"{{ _html }}{{ 'a' | _html }}", `1:21: unknown filter "_html"`},
		{`{{ "it's }}`, `1:1: a quote in "{{ \"it's }}" is never closed`},
		{"<a href={{ x }}>", `1:9: put the value of the attribute href in quotes: href="{{ ... }}"`},
		{"<script>{{ x }}</script>", `1:9: a value cannot be part of a script`},
		{`<a onclick="{{ x }}">`, `1:13: a value cannot be part of a script: leave the attribute onclick out`},
		{"{{ 99999999999999999999 }}", `1:4: the number 99999999999999999999 is too long`},
		{"{{ 'now' | date: '%Y' }}", `1:12: a template has no clock: "now" is not known`},
		{"{% if contact.x == empty %}{% endif %}", `1:20: "empty" is not known: a value that is not there is false, so write {% if name %} or {% unless name %}`},
		{"{% comment %} x", `1:1: {% comment %} is never closed: put {% endcomment %} after it`},
		{"{{ }}", `1:1: {{ }} is empty`},
		{"{% break %}", `1:1: {% break %} is for loops`},
		{"{{ " + strings.Repeat("(", 100) + "1 }}", `1:54: brackets are nested deeper than 50`},
		{strings.Repeat("{% if a %}", 60), `1:1: {% if %} is never closed`},
		{"{% assign in = 1 %}", `1:11: "in" cannot be the name of a variable of {% assign %}`},
		{`<a {% if a %}>{% endif %}`, `1:15: the branches of this {% if %} end at different places of the HTML, one in text and one in a tag: close in each what it opens`},
		{`<a {% if a %}title="{% else %}href="{% endif %}{{ x }}">`, `1:48: a value cannot be put into an attribute whose name depends on {% if %}: write the whole attribute in each branch`},
		{`<a {% if a %}title{% else %}href{% endif %}="{{ x }}">`, `1:46: a value cannot be put into an attribute whose name depends on {% if %}`},
		{`<a {% if a %}data-{% endif %}href="{{ x }}">`, `1:36: a value cannot be put into an attribute whose name depends on {% if %}`},
		{`<p title="{% unless a %}">{% endunless %}`, `1:27: the branches of this {% unless %} end at different places of the HTML, one in text and one in the value of an attribute`},
		{`{% case a %}{% when 1 %}<script>{% when 2 %}{% endcase %}`, `1:45: the branches of this {% case %} end at different places of the HTML, one in a script and one in text`},
		{`{% if a %}<!--{% elsif b %}<style>{% else %}{% endif %}`, `1:35: the branches of this {% if %} end at different places of the HTML, one in a comment and one in a style`},
		{`{% if a %}<s{% else %}<b{% endif %}cript>{{ x }}`, `1:25: the branches of this {% if %} end at different places of the HTML, one in a tag and one in a tag`},
		{`{% if a %}<script {% else %}<b {% endif %}>{{ x }}`, `1:32: the branches of this {% if %} end at different places of the HTML`},
		{`<{% if a %}b{% endif %}`, `1:13: the branches of this {% if %} end at different places of the HTML, one in a tag and one right after <`},
		{`{% for i in a %}<a href="{% endfor %}`, `1:26: what is in this {% for %} begins in text and ends in the value of an attribute: close in it what it opens`},
		{`<a href="x{% for i in a %}{{ i }}">b</a><a href="{% endfor %}">`, `1:50: what is in this {% for %} begins in the value of an attribute and ends in the value of an attribute`},
		{`{% for i in a %}<a href="{% break %}">{% endfor %}`, `1:26: what is in this {% for %} begins in text and ends in the value of an attribute`},
		{`{% capture x %}<a title="{% endcapture %}{{ x }}`, `1:26: what is in this {% capture %} begins in text and ends in the value of an attribute`},
		{`<{{ x }}>`, `1:2: a value cannot come right after <, where it would name a tag: write &lt; for the character`},
		{`<a x/onclick="{{ x }}">`, `1:15: a value cannot be part of a script: leave the attribute onclick out`},
		{`<script/x>{{ x }}</script>`, `1:11: a value cannot be part of a script`},
		{`<!--[if mso]><a onclick="{{ x }}"><![endif]-->`, `1:26: a value cannot be part of a script: leave the attribute onclick out`},
		{"{% case a %}{% when 1" + strings.Repeat(", 1", 100) + " %}{% endcase %}", `1:321: a when has more than 100 values: write several`},
		{"{{ a" + strings.Repeat(" | upcase", 500) + " }}", `1:3: an expression is longer than 4 KiB: {% assign %} parts of it to names first`},
		{strings.Repeat("{{a}}", 10_001), `1:50001: the template has more than 10000 tags and outputs: divide it`},
		{"{{ a | size > 3 }}", `1:13: what a filter gives cannot be compared here: {% assign %} it to a name first`},
	}
	for _, tt := range tests {
		t.Run(tt.src, func(t *testing.T) {
			t.Parallel()
			tpl, problems := liquid.Parse(tt.src, liquid.HTML)
			if tpl != nil || len(problems) == 0 {
				t.Fatalf("Parse(%q) found no problem", tt.src)
			}
			got := problems[0].Error()
			if !strings.HasPrefix(got, tt.want) {
				t.Errorf("Parse(%q)\n got %s\nwant %s", tt.src, got, tt.want)
			}
		})
	}
}

// What is trimmed away is not there: a name of a tag grows by what follows it.
func TestTrimmedHTML(t *testing.T) {
	t.Parallel()
	_, problems := liquid.Parse(`<a {%- if a -%} title="{{ x }}"{% endif %}>`, liquid.HTML)
	if len(problems) == 0 || !strings.HasPrefix(problems[0].Msg, "a value cannot be part of a tag") {
		t.Errorf("problems %v", problems)
	}
}

// In text there is no HTML, and branches may end anywhere.
func TestBranchesOfText(t *testing.T) {
	t.Parallel()
	for _, mode := range []liquid.Mode{liquid.Text, liquid.Header} {
		if _, problems := liquid.Parse(`{% if a %}<a href="{% endif %}<{{ x }}{% for i in b %}<!--{% endfor %}`, mode); problems != nil {
			t.Error(problems)
		}
	}
}

func TestAllProblemsAtOnce(t *testing.T) {
	t.Parallel()
	_, problems := liquid.Parse("{{ a | b }}\n{{ c d }}\n{% x %}", liquid.HTML)
	var lines []int
	for _, p := range problems {
		lines = append(lines, p.Line)
	}
	if diff := cmp.Diff([]int{1, 2, 3}, lines); diff != "" {
		t.Errorf("lines of problems (-want +got):\n%s\n%v", diff, problems)
	}
}

func TestNames(t *testing.T) {
	t.Parallel()
	tpl, problems := liquid.Parse(`{{ contact.first_name }}
{% assign x = data.order.total %}{{ x }}{% for i in data["lines"] %}{{ i.name }}{{ forloop.index }}{% endfor %}{{ i }}
{% if topic.name == "a" %}{{ contact[x] }}{% endif %}`, liquid.HTML)
	if problems != nil {
		t.Fatal(problems)
	}
	var got []string
	for _, n := range tpl.Names() {
		got = append(got, n.String())
	}
	want := []string{"contact.first_name", "data.order.total", "data.lines", "i", "topic.name", "contact"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("names (-want +got):\n%s", diff)
	}
	if n := tpl.Names()[1]; n.Line != 2 || n.Col != 15 {
		t.Errorf("data.order.total is at %d:%d, want 2:15", n.Line, n.Col)
	}
}

// Templates that would take for ever or fill the memory end with an error.
func TestLimits(t *testing.T) {
	t.Parallel()
	double := "{% assign x = 'abcdefgh' %}" + strings.Repeat("{% assign x = x | append: x %}", 40) + "{{ x }}"
	tests := []struct{ name, src, want string }{
		{"loops without output", "{% for i in (1..9000) %}{% for j in (1..9000) %}{% endfor %}{% endfor %}", "the loops go round more than 20000 times"},
		{"a long range", "{% for i in (1..1000000000) %}x{% endfor %}", "a list has more than 10000 items"},
		{"a long range joined", "{{ (1..1000000000) | join: 'x' }}", "a list has more than 10000 items"},
		{"text that doubles", double, "a value is larger than 256 KiB"},
		{"captures that double", "{% capture x %}" + strings.Repeat("x", 1000) + "{% endcapture %}" +
			strings.Repeat("{% capture x %}{{ x }}{{ x }}{% endcapture %}", 40), "a value is larger than 256 KiB"},
		{"much output", "{% for i in (1..9000) %}" + strings.Repeat("x", 1000) + "{% endfor %}", "the output is larger than 4 MiB"},
		{"replace that grows", "{{ '" + strings.Repeat("a", 1000) + "' | replace: 'a', '" + strings.Repeat("b", 1000) + "' }}", "a value is larger than 256 KiB"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			tpl, problems := liquid.Parse(tt.src, liquid.HTML)
			if problems != nil {
				t.Fatal(problems)
			}
			out, err := tpl.Render(nil)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Render gave %d bytes and %v, want the error %q", len(out), err, tt.want)
			}
		})
	}
}

// One template is rendered by many at once, each with its own variables.
func TestConcurrent(t *testing.T) {
	t.Parallel()
	tpl, problems := liquid.Parse("{% assign y = x | upcase %}{% for i in (1..3) %}{{ y }}{{ i }}{% endfor %}", liquid.HTML)
	if problems != nil {
		t.Fatal(problems)
	}
	var wg sync.WaitGroup
	for _, x := range []string{"a", "b", "c", "d"} {
		wg.Go(func() {
			up := strings.ToUpper(x)
			for range 50 {
				got, err := tpl.Render(map[string]any{"x": x})
				if want := up + "1" + up + "2" + up + "3"; err != nil || got != want {
					t.Errorf("got %q, %v, want %q", got, err, want)
				}
			}
		})
	}
	wg.Wait()
}

func TestRenderLeavesVariablesAlone(t *testing.T) {
	t.Parallel()
	tpl, problems := liquid.Parse("{% assign contact = 1 %}{% assign z = data.items | reverse | sort: 'name' %}{{ z.first.name }}", liquid.HTML)
	if problems != nil {
		t.Fatal(problems)
	}
	v := vars(t)
	if _, err := tpl.Render(v); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(vars(t), v); diff != "" {
		t.Errorf("the variables changed (-want +got):\n%s", diff)
	}
}

func TestMask(t *testing.T) {
	t.Parallel()
	src := "a {{ x | default: \"y\" }} {% if z %}b{% raw %}{{ q }}{% endraw %}{% endif %}{% comment %}c{% endcomment %} d {{"
	m := liquid.Mask(src)
	if strings.ContainsAny(m.Text[:len(m.Text)-2], "{}%") {
		t.Errorf("Mask left Liquid: %q", m.Text)
	}
	if got := m.Restore(m.Text); got != src {
		t.Errorf("Restore(Mask(%q)) = %q", src, got)
	}
	if named := liquid.Mask("ondaliquid0q {{ x }}"); named.Restore(named.Text) != "ondaliquid0q {{ x }}" || named.Has("ondaliquid0q") {
		t.Errorf("a text with a mark in it: %q", named.Text)
	}
	var tags []bool
	for _, mark := range regexp.MustCompile(m.Pattern()).FindAllString(m.Text, -1) {
		tags = append(tags, m.IsTag(mark))
	}
	if diff := cmp.Diff([]bool{false, true, true, true, true}, tags); diff != "" || m.IsTag("q") || m.IsTag(m.Text) {
		t.Errorf("which marks are tags (-want +got):\n%s", diff)
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{
		"{{ contact.first_name | default: 'x' }}", "{% for i in (1..3) %}{{ i }}{% endfor %}", "{% if a == b and c %}{% else %}{% endif %}",
		"{% case x %}{% when 1 %}{% endcase %}", "{% raw %}{{{% endraw %}", "{{ a[b].c['d'] }}", "{%- assign x = 1 -%}", "<a href=\"{{ x }}\">",
		"{% capture a %}{{ a }}{% endcapture %}{{a}}", "{{ 'a' | split: '' | join: '' | slice: 1, 2 }}", "{{ (1..a) | sort }}",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, src string) {
		m := liquid.Mask(src)
		if got := m.Restore(m.Text); got != src {
			t.Errorf("Restore(Mask(%q)) = %q", src, got)
		}
		for _, mode := range []liquid.Mode{liquid.HTML, liquid.Text, liquid.Header} {
			tpl, problems := liquid.Parse(src, mode)
			if (tpl == nil) == (problems == nil) {
				t.Fatalf("Parse(%q) gave %v and %v", src, tpl, problems)
			}
			for _, p := range problems {
				if strings.Contains(p.Msg, "does not parse") {
					t.Errorf("the engine refused what the compiler let through: %q: %v", src, p)
				}
			}
			if tpl == nil {
				continue
			}
			out, err := tpl.Render(map[string]any{"a": "<x>", "b": 1.5, "contact": map[string]any{"first_name": "\r\nA"}})
			if err == nil && mode == liquid.Header && strings.ContainsAny(out, "\r\n\x00") {
				t.Errorf("a header of two lines: %q gave %q", src, out)
			}
		}
	})
}

func BenchmarkRender(b *testing.B) {
	v := vars(b)
	for _, bb := range []struct{ name, src string }{
		{"eight outputs in 10 KB", strings.Repeat("<p>"+strings.Repeat("text ", 250)+"{{ contact.first_name | default: 'you' }}</p>", 8)},
		{"no outputs in 10 KB", strings.Repeat("text ", 2000)},
	} {
		b.Run(bb.name, func(b *testing.B) {
			tpl, problems := liquid.Parse(bb.src, liquid.HTML)
			if problems != nil {
				b.Fatal(problems)
			}
			b.ReportAllocs()
			for b.Loop() {
				if _, err := tpl.Render(v); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// What is between the literals is rendered apart, and gives the same as the whole does.
func TestHoles(t *testing.T) {
	t.Parallel()
	vars := map[string]any{"a": "x", "list": []any{"1", "2"}, "odd": "{% _cut %}\x00"}
	for src, want := range map[string]struct{ literals, holes []string }{
		"":                                       {[]string{""}, nil},
		"plain {% comment %}no{% endcomment %}t": {[]string{"plain t"}, nil},
		"{{ a }}":                                {[]string{"", ""}, []string{"x"}},
		"1{{ a }}{{ a }}2":                       {[]string{"1", "", "2"}, []string{"x", "x"}},
		"1 {{- a -}} 2 {{ odd }}3":               {[]string{"1", "2 ", "3"}, []string{"x", "{% _cut %}\x00"}},
		"{% assign b = a %}1{{ b }}":             {[]string{"", "1", ""}, []string{"", "x"}},
		"1{% for i in list %}, {{ i }}{% endfor %}.{% raw %}{{ a }}{% endraw %}":                          {[]string{"1", ".{{ a }}"}, []string{", 1, 2"}},
		"{% capture c %}in{% endcapture %}{{ c }}{% if a %}{% unless a %}no{% endunless %}{ {% endif %}{": {[]string{"", "", "", "{"}, []string{"", "in", "{ "}},
	} {
		tmpl, problems := liquid.Parse(src, liquid.Text)
		if len(problems) > 0 {
			t.Fatal(problems)
		}
		holes, err := tmpl.Holes(vars)
		if err != nil || !slices.Equal(holes, want.holes) || !slices.Equal(tmpl.Literals(), want.literals) {
			t.Errorf("%s: literals %q, holes %q, %v", src, tmpl.Literals(), holes, err)
		}
	}
}

// An output that is a variable alone is had without the engine, and is what the engine makes of it.
func TestDirectOutputsAreTheEngines(t *testing.T) {
	t.Parallel()
	vars := map[string]any{
		"s": "a<b & 'c' \"d\"", "url": "https://x.example/?a=1&b=2", "bad": "javascript:alert(1)", "n": 3, "i64": int64(5), "f": 1.5, "yes": true, "no": false, "nil": nil,
		"at": time.Date(2026, 11, 26, 8, 0, 0, 0, time.UTC), "list": []any{"x<", 2, nil, []any{"deep"}}, "empty": []any{}, "big": strings.Repeat("<", 1<<20),
		"m": map[string]any{"k": "v<", "size": "own", "list": []any{map[string]any{"x": "y&"}}, "odd key": "o", "nil": nil}, "plain": map[string]any{"a": 1},
	}
	for _, path := range []string{
		"s", "url", "bad", "n", "i64", "f", "yes", "no", "nil", "at", "list", "empty", "m", "missing", "big", "s.size", "s.x", "list.size", "list.first", "list.last", "list[0]", "list[3][0]", "list[9]",
		"list[-1]", "list['0']", "list[n]", "m.k", "m.size", "plain.size", "plain.first", "plain[0]", "m.list[0].x", "m['odd key']", "m[s]", "nil.x", "nil[0]", "n.x", "n[0]", "missing.x.y", "m.nil.x", "at.year",
		"s | raw", "m.k | raw", "s | upcase", "s | escape", "m.k | raw | raw",
	} {
		for _, in := range []struct {
			mode          liquid.Mode
			before, after string
		}{{liquid.Text, "", ""}, {liquid.HTML, "<p>", "</p>"}, {liquid.HTML, `<a title="`, `">x</a>`}, {liquid.HTML, `<a href="`, `">x</a>`}, {liquid.HTML, `<a href="https://x.example/`, `">x</a>`}} {
			render := func(src string) string {
				tmpl, problems := liquid.Parse(src, in.mode)
				if len(problems) > 0 {
					return fmt.Sprint("problem ", problems[0].Msg)
				}
				out, err := tmpl.Render(vars)
				if err != nil {
					return "error " + err.Error()
				}
				return out
			}
			output := "{{ " + path + " }}"
			direct, engine := render(in.before+output+in.after), render(in.before+"{% unless no %}"+output+"{% endunless %}"+in.after)
			if direct != engine {
				t.Errorf("%s after %q: %.200q, the engine %.200q", path, in.before, direct, engine)
			}
			if strings.HasSuffix(in.before, ">") || in.mode == liquid.Text {
				branch := "{% if " + path + " %}a " + output + "{ b{% raw %}{{{% endraw %}{% endif %}"
				direct, engine = render(in.before+branch+in.after), render(in.before+"{% unless no %}"+branch+"{% endunless %}"+in.after)
				if direct != engine {
					t.Errorf("if %s after %q: %.200q, the engine %.200q", path, in.before, direct, engine)
				}
			}
		}
	}
}
