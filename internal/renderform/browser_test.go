package renderform

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/onda-run/onda/internal/browsertest"
	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/postgres"
)

// A person fills in the form, gets it wrong, puts it right, and confirms: in every browser alike.
func TestFormInABrowser(t *testing.T) { //nolint:tparallel // one visitor after another: a browser has one tab in front
	t.Parallel()
	b := browsertest.Start(t)
	for i, v := range browsertest.Visitors() {
		t.Run(v.Name, func(t *testing.T) {
			w := newWorld(t)
			address := fmt.Sprintf("visitor%d@example.com", i)
			tab := b.Open(t, v, w.url+newsletter)
			tab.Look("form")
			if browsertest.Eval[bool](tab, `[...document.querySelectorAll("input[type=checkbox]")].some(c => c.checked)`) {
				t.Error("something is ticked beforehand")
			}
			const id = "#onda-newsletter-"
			tab.Type(id+"email", "nobody@")
			tab.Type(id+"first_name", "Ada")
			tab.Submit("button")
			tab.Look("form with problems")
			if got := tab.Text(id + "email-problem"); !strings.Contains(got, "complete email address") {
				t.Errorf("beside the address: %s", got)
			}
			if got := tab.Text(".summary"); !strings.Contains(got, "Please tick this") {
				t.Errorf("summary: %s", got)
			}
			if got := browsertest.Eval[string](tab, `document.querySelector("#onda-newsletter-first_name").value`); got != "Ada" {
				t.Errorf("what was right is lost: %q", got)
			}
			tab.Set(id+"email", address)
			tab.Set(id+"country", "NO")
			tab.Tick(id+"consent-newsletter", false)
			tab.Tick(id+"interests-1", true)
			tab.Submit("button")
			tab.Look("form sent")
			if got := tab.Text("main"); !strings.Contains(got, "Check your inbox") || !strings.Contains(got, "Nearly there.") {
				t.Fatalf("after it was sent: %s", got)
			}
			tab.Go(w.confirmURL("acme"))
			tab.Look("confirm")
			if got := w.state("acme"); got != "newsletter=pending" {
				t.Errorf("before the button: %s", got)
			}
			tab.SubmitByKey("button")
			tab.Look("confirmed")
			if got := tab.Text("h1"); got != "Thank you, it is confirmed" {
				t.Errorf("after the button: %s", got)
			}
			if got := w.state("acme"); got != "newsletter=granted" {
				t.Errorf("after the button: %s", got)
			}
			if got := pgtest.One[string](t, w.db, "acme", "SELECT fields->>'country' || (fields->'interests')::text FROM contact WHERE email = $1", address); got != `NO["ski"]` {
				t.Errorf("contact: %s", got)
			}
			w.preproduction()
			tab.Go(w.url + newsletter)
			tab.Look("form of a pre-production")
			if got := tab.Text(".trial"); !strings.Contains(got, "no mail from here goes to real people") {
				t.Errorf("a form of a pre-production: %s", got)
			}
		})
	}
}

// The same form stands on another site, in a shadow tree; what it sends is allowed by its origins.
func TestEmbeddedFormInABrowser(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	shop := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		rw.Header().Set("Content-Type", "text/html")
		_, _ = fmt.Fprintf(rw, `<!doctype html><html lang="en"><meta name="viewport" content="width=device-width"><title>Shop</title><body style="font-family: sans-serif"><main><h1>Shop</h1><script src="%s%s.js"></script></main></body></html>`, w.url, newsletter)
	}))
	t.Cleanup(shop.Close)
	pgtest.Exec(t, w.db, "acme", `UPDATE document SET spec = jsonb_set(spec, '{spec,origins}', jsonb_build_array($1::text)) WHERE spec->>'kind' = 'Form' AND spec #>> '{metadata,name}' = 'newsletter'`, shop.URL)
	tab := browsertest.Start(t).Open(t, browsertest.Visitors()[0], shop.URL)
	const shadow = `document.querySelector("div").shadowRoot`
	tab.Until(shadow + `.querySelector("form") !== null`)
	tab.Look("embedded form")
	press := func(fill string) {
		browsertest.Eval[bool](tab, `(() => { const f = `+shadow+`.querySelector("form"); `+fill+` f.querySelector("button").click(); return true; })()`)
	}
	press("")
	tab.Until(shadow + `.querySelector(".summary") !== null`)
	press(`f.elements["email"].value = "ada@example.com"; f.elements["consent.newsletter"].checked = true;`)
	tab.Until(shadow + `.textContent.includes("Check your inbox")`)
	tab.Look("embedded form sent")
	w.preproduction()
	tab.Go(shop.URL)
	tab.Until(shadow + `.textContent.includes("no mail from here goes to real people")`)
	tab.Look("embedded form of a pre-production")
	if got := w.state("acme"); got != "newsletter=pending" {
		t.Errorf("consent: %s", got)
	}
}

// A person sends files, on the form's own page with and without scripts, and on another site; what was chosen is lost when something else is wrong, and the page says so.
func TestFilesInABrowser(t *testing.T) {
	t.Parallel()
	w := newWorldWithFiles(t)
	dir := t.TempDir()
	cv, picture, wrong := filepath.Join(dir, "Søknad.pdf"), filepath.Join(dir, "picture.png"), filepath.Join(dir, "wrong.pdf")
	for path, content := range map[string]string{cv: ofSize(3 << 20), picture: png, wrong: "<!doctype html>"} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	shop := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		rw.Header().Set("Content-Type", "text/html")
		_, _ = fmt.Fprintf(rw, `<!doctype html><html lang="en"><meta name="viewport" content="width=device-width"><title>Shop</title><body><main><h1>Shop</h1><script src="%s%s.js"></script></main></body></html>`, w.url, jobs)
	}))
	t.Cleanup(shop.Close)
	w.apply("acme", documents, documents+strings.ReplaceAll(formsWithFiles, "https://shop.example", shop.URL))
	w.clock.Add(int64(2 * time.Second)) // else the form is as it was a moment ago
	b := browsertest.Start(t)
	type place struct {
		visitor   browsertest.Visitor
		url, root string // of the form
	}
	places := []place{{browsertest.Visitors()[0], shop.URL, `document.querySelector("div").shadowRoot`}}
	for _, v := range browsertest.Visitors() {
		places = append(places, place{v, w.url + jobs, "document"})
	}
	for i, p := range places {
		tab := b.Open(t, p.visitor, p.url)
		find := func(input string) string { return p.root + `.querySelector("#onda-jobs-` + input + `")` }
		// send fills the form in and sends it, again where it is told to come back: on a machine that is slow.
		send := func(cv string, pictures []string, until string) {
			t.Helper()
			var got string
			for range 5 {
				browsertest.Eval[string](tab, find("email")+`.value = "ada`+fmt.Sprint(i)+`@example.com"`)
				tab.Choose(find("cv"), cv)
				tab.Choose(find("pictures"), pictures...)
				if p.root == "document" {
					tab.Submit("button")
					got = tab.Text("main")
				} else {
					browsertest.Eval[bool](tab, `(() => { `+p.root+`.firstElementChild.dataset.sent = ""; `+p.root+`.querySelector("button").click(); return true; })()`)
					// Whatever is answered is in another element, or on the form's own page, which says what is the matter.
					tab.Until(`location.href.startsWith("` + w.url + `") || !("sent" in ` + p.root + `.firstElementChild.dataset)`)
					got = browsertest.Eval[string](tab, `location.href.startsWith("`+w.url+`") ? document.body.innerText : `+p.root+`.textContent`)
				}
				if strings.Contains(got, until) {
					return
				}
				tab.Go(p.url)
				tab.Until(find("cv") + " !== null")
			}
			t.Fatalf("%s: %s", p.visitor.Name, got)
		}
		tab.Until(find("cv") + " !== null")
		tab.Look("form with files")
		send(wrong, []string{picture, picture}, "wrong.pdf is not taken")
		tab.Look("form with files that are wrong")
		if got := browsertest.Eval[string](tab, find("pictures-problem")+".textContent"); !strings.Contains(got, "choose the file again") {
			t.Errorf("%s: beside the files that were right: %s", p.visitor.Name, got)
		}
		send(cv, []string{picture}, "We have it.")
		if got := w.files(); got != "cv 1 Søknad.pdf application/pdf 3145728 true; pictures 2 picture.png image/png 16 true of 2" {
			t.Errorf("%s at %s: %s", p.visitor.Name, p.url, got)
		}
	}
	if n := w.count("acme", "submission"); n != len(places) {
		t.Errorf("%d submissions, want %d", n, len(places))
	}
}

func (w *world) preproduction() {
	w.t.Helper()
	if err := w.admin.SetStage(w.t.Context(), postgres.Preproduction, ""); err != nil {
		w.t.Fatal(err)
	}
}
