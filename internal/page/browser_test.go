package page

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"

	"github.com/onda-run/onda/internal/browsertest"
)

// What this package shows by itself: errors, and a plain text.
func TestEveryPageInEveryState(t *testing.T) {
	t.Parallel()
	p, err := New(nil)
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
