package emailsource

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"unicode"

	nethtml "golang.org/x/net/html"

	"github.com/onda-run/onda/internal/liquid"
	"github.com/onda-run/onda/internal/spec"
)

var (
	noAlt     = regexp.MustCompile(`!\[\s*\]\(`)                  // an image in Markdown
	plainLink = regexp.MustCompile(`(?i)[(<\s]http://[^\s()<>]+`) // a link in Markdown
	cidValue  = regexp.MustCompile(`["']cid:([A-Za-z0-9._-]+)["']`)
)

const (
	gmailClips   = 102 << 10
	outputSize   = 20  // bytes that an output is taken to have
	linkSize     = 120 // bytes of a tracked link, and of the pixel
	fewLetters   = 60  // of a mail that is images
	withoutAlt   = "the image has no alt text, which is what people see who do not load images, and hear who listen: add alt, empty if it only decorates"
	withoutHTTPS = "begins with http://, which anybody on the way can read and change, and browsers warn of: write https:// if the site has it"
)

// findings are what to look at in a text that somebody wrote.
func findings(text string, markdown bool) (found []spec.Finding) {
	m := liquid.Mask(text)
	add := func(at int, format string, args ...any) {
		line, col := m.Position(at)
		found = append(found, spec.Finding{Line: line, Col: col, Msg: fmt.Sprintf(format, args...)})
	}
	if markdown {
		for _, at := range noAlt.FindAllStringIndex(m.Text, -1) {
			add(at[0], "%s", strings.Replace(withoutAlt, "add alt, empty if it only decorates", "write it between [ and ]", 1))
		}
		for _, at := range plainLink.FindAllStringIndex(m.Text, -1) {
			if to := m.Restore(m.Text[at[0]+1 : at[1]]); !onThisMachine(to) {
				add(at[0]+1, "the link %s %s", clip(to), withoutHTTPS)
			}
		}
	}
	z, at := nethtml.NewTokenizer(strings.NewReader(m.Text)), 0
	for kind := z.Next(); kind != nethtml.ErrorToken; kind = z.Next() {
		raw := string(z.Raw())
		begin := at
		at += len(raw)
		if kind != nethtml.StartTagToken && kind != nethtml.SelfClosingTagToken {
			continue
		}
		name, _ := z.TagName()
		to, what := "href", "link"
		switch string(name) {
		case "img", "mj-image":
			if _, has := attr(raw, "alt"); !has {
				add(begin, withoutAlt)
			}
			to, what = "src", "image"
		case "a", "area", "mj-button", "mj-navbar-link", "mj-social-element":
		default:
			continue
		}
		written, _ := attr(raw, to)
		if to := m.Restore(address(written)); hasScheme(to, "http") && !onThisMachine(to) {
			add(begin, "the %s %s %s", what, clip(to), withoutHTTPS)
		}
	}
	return found
}

func onThisMachine(address string) bool {
	address = strings.ToLower(address)
	return strings.HasPrefix(address, "http://localhost") || strings.HasPrefix(address, "http://127.0.0.1")
}

// look gives what to look at in an edition that was put together of a body as HTML, and perhaps a layout.
func look(t spec.Texts, body string, attachments []spec.Attachment) (found []spec.Finding) {
	add := func(format string, args ...any) {
		found = append(found, spec.Finding{Msg: fmt.Sprintf(format, args...)})
	}
	m := liquid.Mask(t.HTML)
	size := len(t.HTML)
	for _, mark := range regexp.MustCompile(m.Pattern()).FindAllString(m.Text, -1) {
		liquid := m.Restore(mark)
		size -= len(liquid)
		switch {
		case strings.Contains(liquid, "_url") || strings.Contains(liquid, spec.VarLinks+"[") || strings.Contains(liquid, "{{ "+spec.VarPixel):
			size += linkSize
		case !m.IsTag(mark):
			size += outputSize
		}
	}
	if size > gmailClips {
		add("the mail's HTML has about %d KB, and Gmail shows the first 102 and hides the rest, the link to unsubscribe with it: shorten it", size>>10)
	}
	if size := cssSize(m.Text); size > gmailCSS {
		add("the mail's styles have %d KB, and Gmail reads none beyond 16: shorten them, or what they say of narrow screens is not seen there", size>>10)
	}
	if letters, images := contents(body); images > 0 && letters < fewLetters {
		add("the mail is images with hardly any text: where images are not loaded it says nothing, and filters take it for spam. Say in text what they say")
	}
	var used []string
	for _, cid := range cidValue.FindAllStringSubmatch(t.HTML, -1) {
		used = append(used, cid[1])
		if !slices.ContainsFunc(attachments, func(a spec.Attachment) bool { return a.Inline && a.Name == cid[1] }) {
			add("the image cid:%s is no attachment with inline: true, and nobody will see it", cid[1])
		}
	}
	for _, a := range attachments {
		if a.Inline && !slices.Contains(used, a.Name) {
			add("the inline attachment %s is not in the mail: show it with <img src=\"cid:%s\">, or leave inline out", a.Name, a.Name)
		}
	}
	return found
}

// contents counts what a reader sees: letters, with some for each output, and images.
func contents(body string) (letters, images int) {
	m := liquid.Mask(body)
	mark := regexp.MustCompile(m.Pattern())
	z, hidden := nethtml.NewTokenizer(strings.NewReader(m.Text)), false
	for kind := z.Next(); kind != nethtml.ErrorToken; kind = z.Next() {
		switch kind {
		case nethtml.TextToken:
			if hidden {
				continue
			}
			text := mark.ReplaceAllStringFunc(string(z.Text()), func(one string) string {
				if m.IsTag(one) {
					return ""
				}
				return strings.Repeat("x", outputSize)
			})
			for _, r := range text {
				if unicode.IsLetter(r) || unicode.IsDigit(r) {
					letters++
				}
			}
		case nethtml.StartTagToken, nethtml.SelfClosingTagToken:
			name, _ := z.TagName()
			hidden = slices.Contains([]string{"style", "script", "title"}, string(name))
			if string(name) == "img" {
				images++
			}
		case nethtml.EndTagToken:
			hidden = false
		case nethtml.ErrorToken, nethtml.CommentToken, nethtml.DoctypeToken:
		}
	}
	return letters, images
}
