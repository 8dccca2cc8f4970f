package page

import (
	"context"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/onda-run/onda/internal/browsertest"
	"github.com/onda-run/onda/internal/spec"
)

// themes are such as tenants may choose.
var themes = map[string]spec.Theme{
	"teal": {Accent: &spec.Colour{R: 0x0b, G: 0x5e, B: 0x6b}, Corners: spec.CornersRound, Logo: "data:image/svg+xml;base64," + base64.StdEncoding.EncodeToString([]byte(
		`<svg xmlns="http://www.w3.org/2000/svg" width="180" height="44"><rect width="44" height="44" rx="12" fill="#0b5e6b"/><text x="56" y="30" font-family="sans-serif" font-size="24">Sail &amp; Ski</text></svg>`))},
	"gray":  {Accent: &spec.Colour{R: 0x76, G: 0x76, B: 0x76}, Corners: spec.CornersSquare}, // as light as it may be
	"black": {Accent: &spec.Colour{}, Font: spec.FontSerif},
	"red":   {Accent: &spec.Colour{R: 0xc8, G: 0x10, B: 0x2e}, Corners: spec.CornersSoft, Font: spec.FontSans},
}

// What this package shows by itself: errors, and a plain text.
func TestEveryPageInEveryState(t *testing.T) {
	t.Parallel()
	own := fstest.MapFS{"own.html": {Data: []byte(`{{define "own"}}<p class="lead">A text with <a href="/x">a link</a>.</p><form method="post"><div class="field"><label for="a">Name</label>
<input id="a" name="a" type="text"></div><div class="choice"><input id="b" name="b" type="checkbox" checked><label for="b">Yes</label></div>
<div class="actions"><button type="submit">Send</button><button type="submit" class="quiet">Leave</button></div></form>{{end}}`)}}
	p, err := New(own, "own.html")
	if err != nil {
		t.Fatal(err)
	}
	var pages []browsertest.Page
	for _, lang := range Languages() {
		show := func(name, block string, write func(w http.ResponseWriter, r *http.Request) error) {
			r, w := httptest.NewRequest(http.MethodGet, "/", nil), httptest.NewRecorder()
			r.Header.Set("Accept-Language", lang)
			if err := write(w, r); err != nil {
				t.Fatal(err)
			}
			pages = append(pages, browsertest.Page{Name: name, Block: block, Lang: lang, Header: w.Header(), Body: w.Body.String()})
		}
		for _, status := range []int{400, 403, 404, 405, 409, 410, 413, 429, 500, 503} {
			show("error "+strconv.Itoa(status), "error", func(w http.ResponseWriter, r *http.Request) error { return p.Error(w, r, status) })
		}
		for _, icon := range []string{"", "done", "mail", "warning"} {
			long := View{Icon: icon, Title: strings.Repeat("Donaudampfschifffahrt", 8), Brand: strings.Repeat("Sailing & skiing ", 20), Block: "text", Data: strings.Repeat("incomprehensibilities", 9)}
			show("long text "+icon, "text", func(w http.ResponseWriter, r *http.Request) error { return p.Write(w, r, long) })
		}
		for name, theme := range themes {
			v := View{Lang: lang, Icon: "mail", Title: "Newsletter", Brand: "Sail & Ski", Theme: theme, Block: "own"}
			show("theme "+name, "own", func(w http.ResponseWriter, r *http.Request) error { return p.Write(w, r, v) })
		}
		p.Preproduction = func(context.Context) bool { return true }
		show("error of a pre-production", "error", func(w http.ResponseWriter, r *http.Request) error { return p.Error(w, r, http.StatusNotFound) })
		show("fragment", "fragment", func(w http.ResponseWriter, r *http.Request) error {
			b, err := p.Fragment(r.Context(), View{Lang: lang, Title: "Newsletter", Block: "text", Data: "Nearly there."})
			_, _ = fmt.Fprintf(w, `<!DOCTYPE html><html lang="%s"><head><title>Shop</title></head><body><main><h1>Shop</h1>%s</main></body></html>`, lang, b)
			return err
		})
		p.Preproduction = nil
	}
	browsertest.Complete(t, files, "shell.html", func(key string) string { return p.Text(Fallback, key) }, pages)
	browsertest.LookAtAll(t, pages)
}
