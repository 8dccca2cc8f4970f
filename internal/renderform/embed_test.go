package renderform

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/onda-run/onda/internal/browsertest"
	"github.com/onda-run/onda/internal/pgtest"
)

// shop is a site of somebody else, with a page, whose origin the form names.
func (w *world) shop(body string) (origin string) {
	w.t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		rw.Header().Set("Content-Type", "text/html")
		_, _ = fmt.Fprintf(rw, `<!doctype html><html lang="en"><head><meta name="viewport" content="width=device-width"><title>Shop</title></head><body><main><h1>Shop</h1>%s</main></body></html>`, body)
	}))
	w.t.Cleanup(s.Close)
	w.apply("acme", "https://shop.example\"]", s.URL+"\"]")
	return s.URL
}

// Only the sites that a form names show it in a frame, and only what is asked for in one.
func TestFrames(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	policy := func(a answer) string {
		_, frames, _ := strings.Cut(a.header.Get("Content-Security-Policy"), "frame-ancestors ")
		return frames
	}
	bad := good()
	bad.Set("email", "ada@")
	for _, c := range []struct {
		name string
		a    answer
		want string
	}{
		{"page", w.get(newsletter), "'none'"},
		{"page in a frame", w.get(newsletter + inFrame), "https://shop.example"},
		{"page in a frame, with a parameter", w.get(newsletter + "?utm=x&embed=iframe"), "https://shop.example"},
		{"form of no origin, in a frame", w.get("/f/acme/offers" + inFrame), "'none'"},
		{"problems", w.post(newsletter, bad), "'none'"},
		{"problems in a frame", w.post(newsletter+inFrame, bad), "https://shop.example"},
		{"sent", w.post(newsletter, good()), "'none'"},
		{"sent in a frame", w.post(newsletter+inFrame, good()), "https://shop.example"},
		{"none in a frame", w.get("/f/acme/none" + inFrame), "'none'"},
	} {
		if got := policy(c.a); got != c.want {
			t.Errorf("%s: frame-ancestors %q, want %q", c.name, got, c.want)
		}
	}
	for _, a := range []answer{w.get(newsletter + inFrame), w.post(newsletter+inFrame, bad)} {
		if !strings.Contains(a.body, `action="`+newsletter+inFrame+`"`) {
			t.Errorf("what is in a frame leads out of it: %s", a.body)
		}
	}
}

// A site's own HTML posts the form, and needs nothing of ours in it.
func TestFormOfOnesOwn(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	shop := w.shop(`<form method="post" action="` + w.url + newsletter + `"><label>Email <input id="email" name="email" type="email"></label>
		<label><input id="yes" name="consent.newsletter" type="checkbox" value="on"> Yes, send me the newsletter.</label><button>Sign up</button></form>`)
	b := browsertest.Start(t)
	for i, v := range browsertest.Visitors() {
		tab := b.Open(t, v, shop)
		tab.Type("#email", fmt.Sprintf("own%d@example.com", i))
		tab.Tick("#yes", false)
		tab.Submit("button")
		if got := tab.Text("main"); !strings.Contains(got, "Check your inbox") {
			t.Errorf("%s: %s", v.Name, got)
		}
	}
	if n := pgtest.One[int](t, w.db, "acme", "SELECT count(*) FROM submission WHERE state = 'pending'"); n != len(browsertest.Visitors()) {
		t.Errorf("%d submissions", n)
	}
	if a := w.post(newsletter, good(), "Origin", "https://shop.example"); a.status != 403 {
		t.Errorf("a site that the form does not name any more: %d", a.status)
	}
}

// Whatever is posted, a form takes what it asks for and nothing else, and leads where it says and nowhere else.
func TestWhatIsPostedBesideTheForm(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const script = "<script>alert(1)</script>"
	post := func(change url.Values) answer {
		values := w.fill(good())
		for k, v := range change {
			values[k] = v
		}
		return w.post(newsletter, values)
	}
	for name, change := range map[string]url.Values{
		"extra":             {"tags": {"vip"}, "score": {"100"}, "id": {"1"}, "contact": {"1"}, "state": {"confirmed"}, "expires_at": {"2000-01-01"}},
		"repeated":          {"email": {"first@example.com", "second@example.com"}, "first_name": {"A", "B"}},
		"a hidden one":      {"utm": {script}, "onda_lang": {"../../etc"}, "onda_once": {"AAAA"}, "onda_visitor": {script}},
		"a place elsewhere": {"redirect": {"https://evil.example"}, "result": {"https://evil.example"}, "onda_redirect": {"//evil.example"}, "next": {"https://evil.example"}},
	} {
		if a := post(change); a.status != 200 || a.header.Get("Location") != "" || strings.Contains(a.body, "evil.example") || strings.Contains(a.body, script) {
			t.Errorf("%s: %d %v %s", name, a.status, a.header, a.body)
		}
	}
	everywhere := url.Values{}
	for k := range w.fill(good()) {
		everywhere[k] = []string{script}
	}
	if a := w.post(newsletter, everywhere); a.status != 422 || strings.Contains(a.body, script) {
		t.Errorf("script everywhere: %d %s", a.status, a.body)
	}
	got := pgtest.All[string](t, w.db, "acme", "SELECT email || ' ' || array_to_string(tags, ',') || ' ' || coalesce(fields->>'first_name', '-') || ' ' || (expires_at > now()) FROM contact ORDER BY 1")
	if strings.Join(got, "; ") != "ada@example.com web Ada true; first@example.com web A true" {
		t.Errorf("contacts: %v", got)
	}
	a := w.post("/f/acme/offers?redirect=https://evil.example", url.Values{"email": {"eve@example.com"}, "consent.offers": {"on"}, "redirect": {"https://evil.example"}})
	if a.header.Get("Location") != "https://shop.example/thanks" {
		t.Errorf("it leads to %s", a.header.Get("Location"))
	}
}

// In a frame of a site that the form names it is filled in by the keyboard alone and sent, and what comes of it is shown in the frame.
func TestFormInAFrameInABrowser(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	shop := w.shop(`<iframe title="Sign up" width="600" height="900" src="` + w.url + newsletter + inFrame + `" onload="window.loads = (window.loads || 0) + 1"></iframe>`)
	tab := browsertest.Start(t).Open(t, browsertest.Visitors()[1], shop)
	tab.Until("window.loads === 1")
	tab.Keys("\t", "ada@example.com", "\t", "Ada", "\t", "\t", "\t", "\t", "\t", " ", "\r") // name, country, two interests, message, consent
	tab.Until("window.loads === 2")
	if got := w.state("acme"); got != "newsletter=pending" {
		t.Errorf("consent: %q", got)
	}
	tab.Look("form in a frame, sent")
}
