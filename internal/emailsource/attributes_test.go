package emailsource

import (
	"strings"
	"testing"

	nethtml "golang.org/x/net/html"
)

// Attributes are those that a browser reads, and stand where they are said to.
func TestAttributesAreThoseOfBrowsers(t *testing.T) {
	t.Parallel()
	for _, tag := range []string{
		`<a>`, `<a/>`, `<a href=x>`, `<a href=x/>`, `<a href="x"class='y'z>`, `<A HREF = "a&amp;b&copy=1&copy;">`, `<a x=">" y='"'>`, `<a =x=y>`, `<a x= >`, `<a x=y"z'>`, "<a\nx\n=\n'a\nb'\n/>",
		`<a data-s="x style=y" style='z' style="again">`, `<a title="see href=https://x.example" / href=q>`, `<a x='é' É=y>`,
	} {
		z := nethtml.NewTokenizer(strings.NewReader(tag))
		z.Next()
		want := z.Token().Attr
		got := attributes(tag)
		if len(got) != len(want) {
			t.Errorf("%s: %v, want %v", tag, got, want)
			continue
		}
		for i, a := range got {
			if a.name != want[i].Key && !strings.Contains(tag, "É") || a.value != want[i].Val {
				t.Errorf("%s: %s=%s, want %v", tag, a.name, a.value, want[i])
			}
			if changed, _ := attr(withAttr(tag, a.name, `"new"`), a.name); changed != `"new"` {
				t.Errorf("%s: changed to %s", tag, withAttr(tag, a.name, `"new"`))
			}
		}
	}
}
