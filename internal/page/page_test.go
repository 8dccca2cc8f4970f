package page

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"html/template"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"

	"github.com/onda-run/onda/internal/spec"
)

func TestNoTextIsMissing(t *testing.T) {
	t.Parallel()
	all, err := readTexts()
	if err != nil {
		t.Fatal(err)
	}
	names := regexp.MustCompile(`\{[a-z]+\}`)
	for _, lang := range Languages() {
		for key, english := range all[Fallback] {
			s, ok := all[lang][key]
			if !ok || strings.TrimSpace(s) == "" {
				t.Errorf("%s: the text %q is missing", lang, key)
				continue
			}
			want, got := names.FindAllString(english, -1), names.FindAllString(s, -1)
			slices.Sort(want)
			slices.Sort(got)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%s: %q has other names in it than in English:\n%s", lang, key, diff)
			}
			if lang != Fallback && s == english && len(s) > 8 {
				t.Errorf("%s: %q is not translated", lang, key)
			}
		}
		if len(all[lang]) != len(all[Fallback]) {
			t.Errorf("%s has %d texts, English has %d", lang, len(all[lang]), len(all[Fallback]))
		}
	}
}

// Every key that a template or a function names is there, and every text is used somewhere.
func TestTextsAreThoseThatAreUsed(t *testing.T) {
	t.Parallel()
	all, err := readTexts()
	if err != nil {
		t.Fatal(err)
	}
	use := regexp.MustCompile(`(?:\.T|Text\([^,()]+(?:\([^()]*\))?,|text:|problem:) ?"([a-z0-9.]+)"`)
	var source strings.Builder
	for _, dir := range []string{".", "../track", "../renderform"} {
		for _, pattern := range []string{"*.go", "*.html", "pages/*.html"} {
			found, err := filepath.Glob(filepath.Join(dir, pattern))
			if err != nil {
				t.Fatal(err)
			}
			for _, name := range found {
				if strings.HasSuffix(name, "_test.go") {
					continue
				}
				b, err := os.ReadFile(name)
				if err != nil {
					t.Fatal(err)
				}
				source.Write(b)
				for _, m := range use.FindAllStringSubmatch(string(b), -1) {
					if !strings.Contains(m[1], ".") || strings.HasSuffix(m[1], ".") {
						continue // a form's own text, or the beginning of several of ours
					}
					if _, ok := all[Fallback][m[1]]; !ok {
						t.Errorf("%s uses the text %q, which there is none of", name, m[1])
					}
				}
			}
		}
	}
	for key := range all[Fallback] {
		used := strings.HasPrefix(key, "error.") // by status
		for _, as := range []string{key, strings.TrimSuffix(key, ".all"), key[:strings.LastIndexByte(key, '.')+1]} {
			used = used || strings.Contains(source.String(), `"`+as+`"`)
		}
		if !used {
			t.Errorf("the text %q is used nowhere", key)
		}
	}
}

func TestNegotiate(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ header, want string }{
		{"", "en"},
		{"fr", "fr"},
		{"fr-CA, en;q=0.8", "fr"},
		{"de, pt-BR;q=0.7, fr;q=0.3", "pt"},
		{"de", "en"},
		{"*", "en"},
		{"en;q=0.1, FR;q=0.9", "fr"},
		{"fr;q=0, pt;q=0.5", "pt"},
		{"fr;q=2, pt", "pt"},
		{";;;,,,q=;", "en"},
		{"de, *;q=0.5, fr;q=0.1", "en"},
		{strings.Repeat("de,", 10_000) + "fr", "en"},
	} {
		if got := Negotiate(c.header, Languages()...); got != c.want {
			t.Errorf("%.40q: %s, want %s", c.header, got, c.want)
		}
	}
}

func TestPageIsClosedToEverythingElse(t *testing.T) {
	t.Parallel()
	p, err := New(fstest.MapFS{"own.html": {Data: []byte(`{{define "own"}}<form method="post"><p>{{.Data}} {{.T "unsubscribe.button"}}</p></form>{{end}}`)}}, "*.html")
	if err != nil {
		t.Fatal(err)
	}
	r := httptest.NewRequest(http.MethodGet, "/", nil)
	r.Header.Set("Accept-Language", "fr-CH")
	w := httptest.NewRecorder()
	if err := p.Write(w, r, View{Title: "<b>Hi</b>", Brand: "A & B", Block: "own", Data: `<script>alert(1)</script>`, FormTo: []string{"https://example.com"}}); err != nil {
		t.Fatal(err)
	}
	body := w.Body.String()
	for _, want := range []string{`<html lang="fr">`, "&lt;b&gt;Hi&lt;/b&gt;", "A &amp; B", "&lt;script&gt;", "Me désabonner"} {
		if !strings.Contains(body, want) {
			t.Errorf("%q is not in the page", want)
		}
	}
	style := regexp.MustCompile(`(?s)<style>(.*)</style>`).FindStringSubmatch(body)
	sum := sha256.Sum256([]byte(style[1]))
	policy := w.Header().Get("Content-Security-Policy")
	if !strings.Contains(policy, "'sha256-"+base64.StdEncoding.EncodeToString(sum[:])+"'") || !strings.Contains(policy, "default-src 'none'") ||
		!strings.Contains(policy, "form-action 'self' https://example.com;") {
		t.Errorf("policy %q does not fit the page's style", policy)
	}
	if loads := regexp.MustCompile(`(?i)(src|href)\s*=|url\(|@import|<script`).FindString(body); loads != "" {
		t.Errorf("the page loads something: %s", loads)
	}
	if got := w.Header().Get("Content-Language"); got != "fr" {
		t.Errorf("Content-Language %q", got)
	}
}

func TestErrorPages(t *testing.T) {
	t.Parallel()
	p, err := New(nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, status := range []int{400, 404, 405, 409, 413, 429, 500, 503} {
		for _, lang := range Languages() {
			r := httptest.NewRequest(http.MethodGet, "/", nil)
			r.Header.Set("Accept-Language", lang)
			w := httptest.NewRecorder()
			if err := p.Error(w, r, status); err != nil {
				t.Fatal(err)
			}
			if w.Code != status || !strings.Contains(w.Body.String(), `<html lang="`+lang+`">`) || strings.Contains(w.Body.String(), "error.") {
				t.Errorf("%d in %s: %d %s", status, lang, w.Code, w.Body)
			}
			head := httptest.NewRecorder()
			r.Method = http.MethodHead
			if err := p.Error(head, r, status); err != nil {
				t.Fatal(err)
			}
			if head.Body.Len() != 0 || head.Code != status {
				t.Errorf("HEAD of %d: %d with %d bytes", status, head.Code, head.Body.Len())
			}
		}
	}
}

// Where something is away many are told so, and a page is rendered once for all to whom it looks alike.
func TestPagesThatRefuseAreMadeOnce(t *testing.T) {
	t.Parallel()
	p, err := New(nil)
	if err != nil {
		t.Fatal(err)
	}
	trial := false
	p.Preproduction = func(context.Context) bool { return trial }
	parse := p.parse
	tell := func(lang, brand string, theme spec.Theme, status int) (*httptest.ResponseRecorder, error) {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.Header.Set("Accept-Language", lang)
		w := httptest.NewRecorder()
		return w, p.ErrorOf(w, r, status, brand, theme)
	}
	const logo = "data:image/png;base64,AAAA"
	accent := spec.Colour{R: 0x7a, G: 0x1f, B: 0x5c}
	for _, c := range []struct {
		lang, brand string
		theme       spec.Theme
		trial       bool
		want        string
	}{
		{"en", "", spec.Theme{}, false, "Just a moment"},
		{"fr", "", spec.Theme{}, false, `lang="fr"`},
		{"en", "Sail & Ski", spec.Theme{}, false, "Sail &amp; Ski"},
		{"en", "Sail & Ski", spec.Theme{}, true, "no mail from here goes"},
		{"en", "Sail & Ski", spec.Theme{Logo: logo}, false, logo},
		{"en", "", spec.Theme{Accent: &accent}, false, "#7a1f5c"},
		{"en", "", spec.Theme{Corners: spec.CornersRound}, false, "--corner: 1.8"},
	} {
		trial = c.trial
		first, err := tell(c.lang, c.brand, c.theme, http.StatusServiceUnavailable)
		if err != nil || first.Code != http.StatusServiceUnavailable || !strings.Contains(first.Body.String(), c.want) || first.Header().Get("Retry-After") == "" {
			t.Errorf("%v: %v, %d %s", c, err, first.Code, first.Body)
		}
		p.parse = func() (parsed, error) { return parsed{}, errors.New("it is rendered again") }
		again, err := tell(c.lang, c.brand, c.theme, http.StatusServiceUnavailable)
		if err != nil || again.Body.String() != first.Body.String() || !maps.EqualFunc(again.Header(), first.Header(), slices.Equal) {
			t.Errorf("%v, again: %v, %d %v %s", c, err, again.Code, again.Header(), again.Body)
		}
		if _, err := tell(c.lang, c.brand, c.theme, http.StatusNotFound); err == nil {
			t.Error("a page that nothing is there is not rendered at all")
		}
		p.parse = parse
	}
	for i := range 3 * maxRefusals {
		if _, err := tell("en", strconv.Itoa(i), spec.Theme{}, http.StatusServiceUnavailable); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(p.refusals); n > maxRefusals {
		t.Errorf("%d pages are kept, want at most %d", n, maxRefusals)
	}
}

func BenchmarkErrorPages(b *testing.B) {
	p, err := New(nil)
	if err != nil {
		b.Fatal(err)
	}
	for _, status := range []int{http.StatusInternalServerError, http.StatusServiceUnavailable} {
		b.Run(strconv.Itoa(status), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := p.Error(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/", nil), status); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func TestPagesOfAPreproductionSaySo(t *testing.T) {
	t.Parallel()
	p, err := New(nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, trial := range []func(context.Context) bool{nil, func(context.Context) bool { return false }, func(context.Context) bool { return true }} {
		p.Preproduction = trial
		want := trial != nil && trial(t.Context())
		for _, lang := range Languages() {
			text := template.HTMLEscapeString(p.Text(lang, "stage.preproduction"))
			r := httptest.NewRequest(http.MethodGet, "/", nil)
			r.Header.Set("Accept-Language", lang)
			w := httptest.NewRecorder()
			if err := p.Error(w, r, http.StatusNotFound); err != nil {
				t.Fatal(err)
			}
			fragment, err := p.Fragment(t.Context(), View{Lang: lang, Title: "x", Block: "text", Data: "y"})
			if err != nil {
				t.Fatal(err)
			}
			for what, made := range map[string]string{
				"a page": w.Body.String(), "a fragment": string(fragment), "a mail": p.Mark(t.Context(), lang, "<html><BODY class='a'>Hello</body></html>"), "a mail without a body": p.Mark(t.Context(), lang, "Hello"),
			} {
				if strings.Contains(made, text) != want {
					t.Errorf("%s in %s, of a pre-production: %v\n%s", what, lang, want, made)
				}
			}
		}
	}
	// In a mail it is the first that is seen.
	for _, c := range []struct{ before, after string }{
		{"<html><body class='a'>", "Hello</body></html>"},
		{`<BODY title="a > b" class='>'>`, "Hello"},
		{`<!--[if mso]><body class="mso"><![endif]--><!--[if !mso]><!--><body>`, "<!--<![endif]-->Hello</body>"},
		{"<!-- <body>\n<body> --><!--><body\nid=a>", "Hello"},
		{"<title><body></title><style>/* <body> */</style><bodyguard><body>", "Hello <body>"},
		{"", "Hello"},
		{"", "Hello <!-- <body> "},
	} {
		if got := p.Mark(t.Context(), "en", c.before+c.after); !strings.HasPrefix(got, c.before+"<p ") || !strings.HasSuffix(got, "</p>"+c.after) {
			t.Errorf("a mail that begins with %q: %s", c.before, got)
		}
	}
}

func TestBody(t *testing.T) {
	t.Parallel()
	for html, want := range map[string]string{
		`<html><body class="a > b">Hi<!-- </body> --></body></html>`:        "Hi<!-- </body> -->",
		"<BODY>Hi</body\n></html><title></body></title>":                    "Hi",
		"<body>Hi</body>there</BODY><style></body></style><!-- </body> -->": "Hi</body>there",
		"<body>Hi<body>there</bodyguard>":                                   "Hi<body>there</bodyguard>",
		"Hi</body>":                                                         "Hi",
		"</body><body>Hi":                                                   "Hi",
		"Hi":                                                                "Hi",
		"":                                                                  "",
	} {
		if from, to := Body(html); html[from:to] != want {
			t.Errorf("%q: %q, want %q", html, html[from:to], want)
		}
	}
}

func TestName(t *testing.T) {
	t.Parallel()
	for html, want := range map[string]string{
		"<!doctype html><HTML class='a'><head>\n</head>": `<!doctype html><HTML class='a' lang="fr"><head><title>A &lt;b&gt;</title>` + "\n</head>",
		`<html lang="pt"><HEAD id=a></HEAD>`:             `<html lang="pt"><HEAD id=a><title>A &lt;b&gt;</title></HEAD>`,
		`<html dir=ltr LANG = pt><header></header>`:      `<html dir=ltr LANG = pt><header></header>`,
		`<html><head><title>Own</title></head>`:          `<html lang="fr"><head><title>Own</title></head>`,
		"Hello":                                          "Hello",
	} {
		if got := Name(html, "fr", "A <b>"); got != want {
			t.Errorf("%s: %s, want %s", html, got, want)
		}
	}
}

// A page of a process that knows nothing yet asks, but not for what is away.
func TestPagesAskForAShortTime(t *testing.T) {
	t.Parallel()
	p, err := New(nil)
	if err != nil {
		t.Fatal(err)
	}
	for status, want := range map[int]bool{http.StatusNotFound: true, http.StatusInternalServerError: true, http.StatusServiceUnavailable: false} {
		var asked bool
		p.Preproduction = func(ctx context.Context) bool {
			_, limited := ctx.Deadline()
			if asked = ctx.Err() == nil; !limited {
				t.Errorf("%d: it may take for ever", status)
			}
			return false
		}
		if err := p.Error(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/", nil), status); err != nil {
			t.Fatal(err)
		}
		if asked != want {
			t.Errorf("%d: asked is %v", status, asked)
		}
	}
}

func TestABlockThatFailsSendsNothing(t *testing.T) {
	t.Parallel()
	p, err := New(fstest.MapFS{"own.html": {Data: []byte(`{{define "own"}}half{{.T "no.such.text"}}{{end}}`)}}, "*.html")
	if err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	if err := p.Write(w, httptest.NewRequest(http.MethodGet, "/", nil), View{Title: "x", Block: "own"}); err == nil {
		t.Error("no error")
	}
	if w.Code != http.StatusInternalServerError || strings.Contains(w.Body.String(), "half") {
		t.Errorf("%d %q", w.Code, w.Body)
	}
}

func FuzzNegotiate(f *testing.F) {
	f.Add("fr;q=0.5, *")
	f.Fuzz(func(t *testing.T, header string) {
		if got := Negotiate(header, Languages()...); !slices.Contains(Languages(), got) {
			t.Errorf("%q is not offered", got)
		}
	})
}
