package liquid

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

func TestProbe(t *testing.T) {
	rep := func(pre, s, post string) func(n int) string {
		return func(n int) string { return pre + strings.Repeat(s, max(1, n/len(s))) + post }
	}
	cases := []struct {
		name string
		gen  func(n int) string
	}{
		{"filters", rep("{{ a ", "| upcase ", "}}")},
		{"path", rep("{{ a", ".b", "}}")},
		{"index", rep("{{ a", "[0]", "}}")},
		{"index nest", rep("{{ a", "[a", "}}")},
		{"parens args", rep("{% case a %}{% when 1", ",(a)", "%}{% endcase %}")},
		{"parens and", rep("{% if 1", " and (a)", "%}{% endif %}")},
		{"and", rep("{% if 1", " and a", "%}{% endif %}")},
		{"or cmp", rep("{% if 1", " or a>b", "%}{% endif %}")},
		{"when", rep("{% case a %}{% when 1", ",b", "%}{% endcase %}")},
		{"elsif", rep("{% if a %}", "{% elsif b %}", "{% endif %}")},
		{"whens", rep("{% case a %}", "{% when b %}", "{% endcase %}")},
		{"outputs", rep("", "{{a}}", "")},
		{"ifs", rep("", "{%if a%}{%endif%}", "")},
		{"fors", rep("", "{%for a in b%}{%endfor%}", "")},
		{"assigns", rep("", "{%assign a=b%}", "")},
		{"captures", rep("", "{%capture a%}{%endcapture%}", "")},
		{"assign names", func(n int) string { var b strings.Builder; for i := 0; b.Len() < n; i++ { fmt.Fprintf(&b, "{%%assign a%d=b%%}", i) }; return b.String() }},
		{"assign names uses", func(n int) string { var b strings.Builder; for i := 0; b.Len() < n; i++ { fmt.Fprintf(&b, "{%%assign a%d=b%%}{{c}}", i) }; return b.String() }},
		{"braces", rep("", "{", "")},
		{"open out", rep("", "{{ ", "")},
		{"open tag", rep("", "{% ", "")},
		{"open quote", rep("", "{{ ' ", "")},
		{"comment", rep("{% comment %}", "{% ", "{% endcomment %}")},
		{"comments", rep("", "{%comment%}{%endcomment%}", "")},
		{"raws", rep("", "{%raw%}{%endraw%}", "")},
		{"bad closers", rep("", "{%for a in b%}{%endif%}", "")},
		{"bad endifs", rep("", "{%endif%}", "")},
		{"bad names", rep("", "{{ | }}", "")},
		{"unknown filters", rep("", "{{a|b}}", "")},
		{"open ifs", rep("", "{%if a%}", "")},
		{"plus", rep("{{ a ", "+", "}}")},
		{"dashes", rep("{{ a ", "-", "}}")},
		{"long ident", rep("{{ ", "a", "}}")},
		{"long str", rep("{{ '", "a", "'}}")},
		{"long num", rep("{{ ", "1", "}}")},
		{"dots", rep("{{ a", ".", "}}")},
		{"qmarks", rep("{{ a", "?", "}}")},
		{"args", rep("{{ a | default: 1", ", 1", "}}")},
		{"slashes", rep("{{ a | replace: '", "\\", "', ''}}")},
		{"tags html", rep("", "<a b=\"{{c}}\">", "")},
		{"attr", rep("<a ", "b", "")},
		{"tagname", rep("<", "b", "")},
		{"text", rep("", "lorem ipsum ", "")},
		{"trim", rep("", "{{- a -}}", "")},
		{"spaces out", rep("{{", " ", "a}}")},
		{"spaces tag", rep("{%", " ", "if a%}{%endif%}")},
		{"nl outputs", rep("", "{{a}}\n", "")},
		{"string filter", rep("{{ 'a' ", "| append: 'b' ", "}}")},
		{"mask", func(n int) string { var b strings.Builder; b.WriteString("ondaliquid"); for i := 0; b.Len() < n; i++ { fmt.Fprintf(&b, "ondaliquid%dx", i) }; return b.String() }},
	}
	for _, c := range cases {
		if os.Getenv("CASE") != "" && !strings.Contains(c.name, os.Getenv("CASE")) {
			continue
		}
		line := fmt.Sprintf("%-20s", c.name)
		for n := 8 << 10; n <= 512<<10; n *= 4 {
			src := c.gen(n)
			if len(src) > maxSource { src = c.gen(n-100) }
			begin := time.Now()
			tpl, ps := Parse(src, HTML)
			d := time.Since(begin)
			begin = time.Now()
			m := Mask(src)
			d2 := time.Since(begin)
			begin = time.Now()
			m.Restore(m.Text)
			d3 := time.Since(begin)
			begin = time.Now()
			if tpl != nil { tpl.Render(map[string]any{"a": "x", "b": 1}) }
			d4 := time.Since(begin)
			line += fmt.Sprintf(" %3dK:%6dms+%4d+%4d+%5d (%d)", n>>10, d.Milliseconds(), d2.Milliseconds(), d3.Milliseconds(), d4.Milliseconds(), len(ps))
			if d+d2+d3+d4 > 400*time.Millisecond {
				break
			}
		}
		fmt.Println(line)
	}
}
