package renderform

import (
	"archive/zip"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"mime/multipart"
	"net"
	"net/http"
	"net/textproto"
	"net/url"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gabriel-vasile/mimetype"

	"github.com/onda-run/onda/internal/contact"
	"github.com/onda-run/onda/internal/fn"
	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/spec"
)

const (
	jobs, large = "/f/acme/jobs", "/f/acme/large"

	formsWithFiles = `
---
apiVersion: onda/v1
kind: Form
metadata: {name: jobs}
spec:
  locales:
    default: en
    texts:
      en: {title: Work with us, submit: Send, email: Email, country: Country, cv: Your CV, pictures: Pictures of what you made, permit: Work permit, why: Two pages are enough., thanks: We have it.}
      fr: {title: Travailler avec nous, submit: Envoyer, email: E-mail, country: Pays, cv: Votre CV, pictures: Images de vos travaux, permit: Permis de travail, why: Deux pages suffisent., thanks: C’est arrivé.}
  inputs:
    - {field: email, required: true}
    - {field: country}
    - {name: cv, type: file, accept: [application/pdf, application/vnd.openxmlformats-officedocument.wordprocessingml.document], required: true, help: why, keep: 90d}
    - {name: pictures, type: file, accept: ["image/*"], maxFiles: 2, maxSize: 900KB}
    - {name: permit, type: file, accept: [text/plain, text/csv], maxSize: 1MB, required: true, showIf: {field: country, is: NO}}
  protect: {honeypot: true, blockDomains: [mailinator.com]}
  result: {message: thanks}
  origins: ["https://shop.example"]
---
apiVersion: onda/v1
kind: Form
metadata: {name: large}
spec:
  locales: {default: en, texts: {en: {title: Large, submit: Send, email: Email, file: File, thanks: We have it.}}}
  inputs: [{field: email, required: true}, {name: file, type: file, accept: [application/pdf], maxSize: 10MB}]
  result: {message: thanks}
`
)

// sentFile is a file as a browser sends it; all of its name stands in the header as it is.
type sentFile struct{ input, name, content string }

const pdf, png = "%PDF-1.7\nhello", "\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"

// ofSize is a PDF of so many bytes.
func ofSize(n int) string { return pdf + strings.Repeat("x", n-len(pdf)) }

func docx(t *testing.T) string {
	t.Helper()
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for name, content := range map[string]string{"[Content_Types].xml": "<Types/>", "word/document.xml": "<w:document/>"} {
		f, err := z.Create(name)
		if err == nil {
			_, err = io.WriteString(f, content)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// multi is what a browser sends of a form with files.
func (w *world) multi(values url.Values, files ...sentFile) (body, contentType string) {
	w.t.Helper()
	var b strings.Builder
	m := multipart.NewWriter(&b)
	for key, list := range values {
		for _, v := range list {
			if err := m.WriteField(key, v); err != nil {
				w.t.Fatal(err)
			}
		}
	}
	for _, f := range files {
		p, err := m.CreatePart(textproto.MIMEHeader{"Content-Disposition": {`form-data; name="` + f.input + `"; filename="` + f.name + `"`}, "Content-Type": {"application/pdf"}})
		if err == nil {
			_, err = io.WriteString(p, f.content)
		}
		if err != nil {
			w.t.Fatal(err)
		}
	}
	if err := m.Close(); err != nil {
		w.t.Fatal(err)
	}
	return b.String(), m.FormDataContentType()
}

func (w *world) postFiles(path string, values url.Values, files ...sentFile) answer {
	w.t.Helper()
	body, contentType := w.multi(values, files...)
	return w.send(w.request(http.MethodPost, path, body, "Content-Type", contentType))
}

func newWorldWithFiles(t *testing.T) *world {
	t.Helper()
	w := newWorld(t)
	w.apply("acme", documents, documents+formsWithFiles)
	return w
}

// files is what the newest submission has: names, types and sizes, and the bytes of all.
func (w *world) files() string {
	w.t.Helper()
	return pgtest.One[string](w.t, w.db, "acme", `SELECT coalesce((SELECT string_agg(concat_ws(' ', key, f->>'n', f->>'name', f->>'type', f->>'declared', f->>'size',
		(f->>'sha256' = encode(sha256(files[(f->>'n')::int]), 'hex'))::text), '; ' ORDER BY (f->>'n')::int) FROM jsonb_each(data->'files'), jsonb_array_elements(value) f), 'none')
		|| ' of ' || coalesce(cardinality(files), 0) FROM submission ORDER BY id DESC LIMIT 1`)
}

// What is sent as a file is known by its content, and is stored or told of beside its input.
func TestFilesOfForms(t *testing.T) {
	t.Parallel()
	w := newWorldWithFiles(t)
	cv := sentFile{"cv", "cv.pdf", pdf}
	const stored = "cv 1 cv.pdf application/pdf 14 true of 1"
	for _, c := range []struct {
		name    string
		files   []sentFile
		problem string // beside an input; "" where it is stored
		stored  string
	}{
		{"one", []sentFile{cv}, "", stored},
		{
			"three",
			[]sentFile{{"pictures", "a.png", png}, cv, {"pictures", "b.png", png + "2"}},
			"",
			"cv 1 cv.pdf application/pdf 14 true; pictures 2 a.png image/png application/pdf 16 true; pictures 3 b.png image/png application/pdf 17 true of 3",
		},
		{"a document", []sentFile{{"cv", "cv.docx", docx(t)}}, "", "cv 1 cv.docx application/vnd.openxmlformats-officedocument.wordprocessingml.document application/pdf " + fmt.Sprint(len(docx(t))) + " true of 1"},
		{"inputs that were left empty", []sentFile{cv, {"pictures", "", ""}}, "", stored},
		{"an empty file", []sentFile{cv, {"pictures", "a.png", ""}}, "", stored},
		{"a file of an input that nobody could see", []sentFile{cv, {"permit", "permit.txt", "it is permitted"}}, "", stored},
		{"a file of no input", []sentFile{cv, {"passport", "p.pdf", pdf}, {"email", "e.pdf", pdf}}, "", stored},
		{"none that is needed", nil, `id="onda-jobs-cv-problem">This is needed.`, ""},
		{"an empty one that is needed", []sentFile{{"cv", "cv.pdf", ""}}, `id="onda-jobs-cv-problem">This is needed.`, ""},
		{"a program under another name", []sentFile{{"cv", "cv.pdf", "MZ\x90\x00\x03\x00\x00\x00\x04\x00\x00\x00\xff\xff" + strings.Repeat("\x00", 100)}}, `id="onda-jobs-cv-problem">cv.pdf is not taken.`, ""},
		{"a page under another name", []sentFile{{"cv", "cv.pdf", "<!doctype html><script>alert(1)</script>"}}, `id="onda-jobs-cv-problem">cv.pdf is not taken. What is in it must be one of these: PDF, DOCX.`, ""},
		{"an image with scripts", []sentFile{cv, {"pictures", "a.png", `<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>`}}, `id="onda-jobs-pictures-problem">a.png is not taken.`, ""},
		{"a picture where a document is asked for", []sentFile{{"cv", "cv.pdf", png}}, `id="onda-jobs-cv-problem">cv.pdf is not taken.`, ""},
		{"two where one is", []sentFile{cv, cv}, `id="onda-jobs-cv-problem">Choose one file only.`, ""},
		{"more than may be", []sentFile{cv, {"pictures", "a.png", png}, {"pictures", "b.png", png}, {"pictures", "c.png", png}, {"pictures", "d.png", png}}, `id="onda-jobs-pictures-problem">Choose at most 2 files.`, ""},
		{"one that is too large", []sentFile{cv, {"pictures", "a.png", png + strings.Repeat("x", 900<<10)}}, `id="onda-jobs-pictures-problem">a.png is too large: at most 900 KB.`, ""},
		{"one that is too large, and many more bytes", []sentFile{{"pictures", "a.png", png + strings.Repeat("x", 25<<20)}, cv}, `id="onda-jobs-pictures-problem">a.png is too large: at most 900 KB.`, ""},
		{"a name with script", []sentFile{{"cv", "<img src=x onerror=alert(1)>.pdf", png}}, "_img src=x onerror=alert(1)_.pdf is not taken.", ""},
	} {
		before := w.count("acme", "submission")
		a := w.postFiles(jobs, url.Values{"email": {"ada@example.com"}}, c.files...)
		switch more := w.count("acme", "submission") - before; {
		case c.problem == "" && (a.status != 200 || more != 1):
			t.Errorf("%s: %d, %d submissions: %s", c.name, a.status, more, a.body)
		case c.problem != "" && (a.status != 422 || more != 0 || !strings.Contains(a.body, c.problem)):
			t.Errorf("%s: %d, %d submissions: %s", c.name, a.status, more, a.body)
		case c.problem == "":
			if got := w.files(); got != c.stored {
				t.Errorf("%s: stored is\n%s, want\n%s", c.name, got, c.stored)
			}
		}
		for w.served.uploads.Left() != maxUploads { // an answer may come before its request has ended
			runtime.Gosched()
		}
	}
	if got := pgtest.One[bool](t, w.db, "acme", "SELECT bool_and(data->'until' ? 'cv' AND keep_until < at + interval '91 days') FROM submission"); !got {
		t.Error("files are not forgotten after the time of their input")
	}
	if a := w.postFiles(jobs, url.Values{"email": {"ada@example.com"}, "country": {"NO"}}, cv, sentFile{"permit", "p.csv", "a;b"}); a.status != 200 || !strings.HasPrefix(w.files(), stored[:len(stored)-5]+"; permit 2 p.csv text/csv application/pdf 3 true of 2") {
		t.Errorf("a file of an input that is shown: %d %s", a.status, w.files())
	}
	if a := w.postFiles(jobs, url.Values{"email": {"ada@example.com"}, honeypot: {"x"}}, cv); a.status != 200 || w.files() != "none of 0" {
		t.Errorf("a file of a program: %d %s", a.status, w.files())
	}
	if a := w.postFiles(jobs, url.Values{"email": {"ada@mailinator.com"}}, cv); a.status != 422 || w.files() != "none of 0" {
		t.Errorf("a file of who is refused: %d %s", a.status, w.files())
	}
}

// A form takes 10 MB of files and not a byte more, whoever says what; and what else is no form with files is refused.
func TestBadFiles(t *testing.T) {
	t.Parallel()
	w := newWorldWithFiles(t)
	ada := url.Values{"email": {"ada@example.com"}}
	if a := w.postFiles(large, ada, sentFile{"file", "f.pdf", ofSize(10 << 20)}); a.status != 200 || w.files() != "file 1 f.pdf application/pdf 10485760 true of 1" {
		t.Errorf("10 MB: %d %s", a.status, w.files())
	}
	if a := w.postFiles(large, ada, sentFile{"file", "f.pdf", ofSize(10<<20 + 1)}); a.status != 422 || !strings.Contains(a.body, "f.pdf is too large: at most 10 MB.") {
		t.Errorf("10 MB and a byte: %d %s", a.status, a.body)
	}
	whole, contentType := w.multi(ada, sentFile{"file", "f.pdf", pdf})
	_, boundary, _ := strings.Cut(contentType, "boundary=")
	part := func(disposition, content string) string {
		return "--" + boundary + "\r\nContent-Disposition: " + disposition + "\r\n\r\n" + content + "\r\n--" + boundary + "--\r\n"
	}
	many := strings.ReplaceAll(strings.Repeat(part("form-data; name=x", "y"), maxParts+1), "--"+boundary+"--\r\n", "")
	for _, c := range []struct {
		name, contentType, body string
		status                  int
	}{
		{"more than is read", contentType, part(`form-data; name="file"; filename="f.pdf"`, ofSize(maxUpload)), 413},
		{"values that are too large", contentType, part(`form-data; name="email"`, strings.Repeat("x", maxBody+1)), 413},
		{"truncated in a file", contentType, whole[:strings.Index(whole, "%PDF")+5], 400},
		{"no end", contentType, strings.TrimSuffix(whole, "--\r\n"), 400},
		{"no parts", contentType, "hello", 400},
		{"no boundary", "multipart/form-data", whole, 400},
		{"another boundary", "multipart/form-data; boundary=other", whole, 400},
		{"a part without a name", contentType, part("form-data", "x"), 400},
		{"too many parts", contentType, many, 400},
		{"a file without a name", contentType, part(`form-data; name="file"`, pdf), 400},
		{"a form that has no place for files", "application/x-www-form-urlencoded", "email=ada@example.com&file=f.pdf", 400},
		{"JSON with a file", "application/json", `{"email": "ada@example.com", "file": "JVBERi0="}`, 400},
		{"JSON", "application/json", `{"email": "ada@example.com"}`, 200},
		{"a form without one", "application/x-www-form-urlencoded", "email=ada@example.com", 200},
	} {
		if a := w.send(w.request(http.MethodPost, large, c.body, "Content-Type", c.contentType, "Accept", "application/json")); a.status != c.status {
			t.Errorf("%s: %d, want %d: %s", c.name, a.status, c.status, a.body)
		}
	}
	if a := w.send(w.request(http.MethodPost, newsletter, whole, "Content-Type", contentType)); a.status != 422 {
		t.Errorf("a file for a form without files: %d", a.status)
	}
	begun, _, _ := strings.Cut(whole, "filename")
	cut := w.request(http.MethodPost, large, begun, "Content-Type", contentType)
	cut.ContentLength = int64(len(whole))
	if res, err := http.DefaultClient.Do(cut); err == nil {
		_ = res.Body.Close()
		t.Errorf("what a connection that broke had brought is answered: %s", res.Status)
	}
	if n := w.count("acme", "submission"); n != 3 {
		t.Errorf("%d submissions were stored, want 3", n)
	}
	for w.served.uploads.Left() != maxUploads { // also of that one
		runtime.Gosched()
	}
}

func TestCleanName(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{
		"cv.pdf": "cv.pdf", "Søknad – Ada.pdf": "Søknad – Ada.pdf", "../../etc/passwd": "passwd", `C:\Users\ada\cv.pdf`: "cv.pdf", "..": "file", "/": "file", "": "file", " .. ": "file", "a/": "file",
		"a\x00b.pdf": "ab.pdf", "cv\u202efdp.exe": "cvfdp.exe", "\u2066x\u2069.pdf": "x.pdf", "a\r\nb.pdf": "a  b.pdf", "x\xff.pdf": "x.pdf", "a\u00a0b": "a b", "CON": "CON", `a"b<c>|?*:.pdf`: "a_b_c_____.pdf",
		".htaccess": "htaccess", strings.Repeat("x", 500) + ".pdf": strings.Repeat("x", 116) + ".pdf", strings.Repeat("é", 300) + ".pdf": strings.Repeat("é", 58) + ".pdf",
		"x." + strings.Repeat("y", 500): "x." + strings.Repeat("y", 118),
	} {
		if got := cleanName(name); got != want {
			t.Errorf("%q is %q, want %q", name, got, want)
		}
	}
}

// A file's name says what is in it, so that nothing takes it for something else.
func TestNamesOfFiles(t *testing.T) {
	t.Parallel()
	w := newWorldWithFiles(t)
	for name, want := range map[string]string{"cv": "cv.pdf", "CV.PDF": "CV.PDF", "cv.html": "cv.html.pdf", "cv.pdf.exe": "cv.pdf.exe.pdf", "a b.pdf": "a b.pdf", "x%22y.pdf": "x%22y.pdf"} {
		if a := w.postFiles(large, url.Values{"email": {"ada@example.com"}}, sentFile{"file", name, pdf}); a.status != 200 {
			t.Errorf("%s: %d", name, a.status)
		}
		if got := w.files(); got != "file 1 "+want+" application/pdf 14 true of 1" {
			t.Errorf("%s is stored as %s, want %s", name, got, want)
		}
	}
}

// What forms may take is what content tells.
func TestTypesOfFiles(t *testing.T) {
	t.Parallel()
	all := spec.Input{}
	for _, ft := range spec.FileTypes() {
		all.Accept = append(all.Accept, ft.MIME)
		if mimetype.Lookup(ft.MIME) == nil {
			t.Errorf("%s cannot be told by content", ft.MIME)
		}
	}
	for _, c := range []struct {
		name, content, want string
		accept              []string
	}{
		{"a.txt", "name,age\nAda,36\nEve,28\n", "text/plain", []string{"text/plain"}},
		{"a.csv", "name,age\nAda,36\nEve,28\n", "text/csv", all.Accept},
		{"a.csv", "name;age\nAda;36\n", "text/csv", all.Accept},
		{"a.csv", "name\nAda\n", "text/csv", []string{"text/csv"}},
		{"a.txt", "name\nAda\n", "", []string{"text/csv"}},
		{"a.txt", "plain", "text/plain", all.Accept},
		{"a.txt", "<html><body>x", "", all.Accept},
		{"a.txt", "#!/bin/sh\nrm -rf x\n", "", all.Accept},
		{"a.csv", "<script>alert(1)</script>", "", all.Accept},
		{"a.jpg", "\xff\xd8\xff\xe0\x00\x10JFIF", "image/jpeg", []string{"image/*"}},
		{"a.pdf", "GIF89a", "image/gif", all.Accept},
		{"a.zip", "PK\x03\x04 some", "application/zip", all.Accept},
		{"a.bin", "\x7fELF\x02\x01\x01", "", all.Accept},
		{"a.pdf", "", "", all.Accept[:1]},
	} {
		got, _ := typeOf(spec.Input{Accept: c.accept}, c.name, []byte(c.content))
		if got.MIME != c.want {
			t.Errorf("%s with %q is %q, want %q", c.name, c.content, got.MIME, c.want)
		}
	}
}

// A form that is shown again says that its files have to be chosen again: to people, and to the script of another site.
func TestFilesHaveToBeChosenAgain(t *testing.T) {
	t.Parallel()
	w := newWorldWithFiles(t)
	cv := sentFile{"cv", "cv.pdf", pdf}
	const again = `id="onda-jobs-cv-problem">Please choose the file again`
	if a := w.postFiles(jobs, url.Values{"email": {"ada@"}}, cv); a.status != 422 || !strings.Contains(a.body, again) || !strings.Contains(a.body, `enctype="multipart/form-data"`) {
		t.Errorf("%d %s", a.status, a.body)
	}
	body, contentType := w.multi(url.Values{"email": {"ada@"}}, cv)
	var told reply
	a := w.send(w.request(http.MethodPost, jobs, body, "Content-Type", contentType, "Accept", "application/json", "Origin", "https://shop.example"))
	if err := json.Unmarshal([]byte(a.body), &told); err != nil || a.status != 422 || !strings.Contains(told.Problems["cv"], "choose the file again") || told.Problems["pictures"] != "" {
		t.Errorf("%d %v %v", a.status, told.Problems, err)
	}
	w.pause.Store(0) // sent in the moment in which it was shown
	values := w.hidden(jobs)
	values.Set("email", "ada@example.com")
	if a := w.postFiles(jobs, values, cv); a.status != 422 || !strings.Contains(a.body, again) {
		t.Errorf("too soon: %d %s", a.status, a.body)
	}
}

// The person's own copy names files with their sizes, and has no bytes of them; a mask leaves out what they are called.
func TestFilesInTheCopy(t *testing.T) {
	t.Parallel()
	w := newWorldWithFiles(t)
	if a := w.postFiles(jobs, url.Values{"email": {"ada@example.com"}}, sentFile{"cv", "cv.pdf", pdf}); a.status != 200 {
		t.Fatalf("%d %s", a.status, a.body)
	}
	id := pgtest.One[int64](t, w.db, "acme", "SELECT id FROM contact")
	for _, c := range []struct {
		mask  *contact.Mask
		named bool
	}{{nil, true}, {&contact.Mask{}, false}} {
		var b strings.Builder
		pgtest.In(t, w.db, "acme", func(ctx context.Context, tx *postgres.Tx) error { return contact.Stored(ctx, tx, id, c.mask, &b) })
		if strings.Contains(b.String(), `"name": "cv.pdf", "size": 14`) != c.named || strings.Contains(b.String(), fmt.Sprintf("%x", pdf)) || !strings.Contains(b.String(), `"state": "done"`) {
			t.Errorf("masked %t: %s", c.mask != nil, b.String())
		}
	}
}

// One page with files that is sent twice, at once too, is one submission.
func TestFilesSentTwice(t *testing.T) {
	t.Parallel()
	w := newWorldWithFiles(t)
	values := w.hidden(jobs)
	values.Set("email", "ada@example.com")
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			if a := w.postFiles(jobs, values, sentFile{"cv", "cv.pdf", pdf}); a.status != 200 {
				t.Errorf("%d %s", a.status, a.body)
			}
		})
	}
	all.Wait()
	if n := w.count("acme", "submission"); n != 1 {
		t.Errorf("%d submissions", n)
	}
	if a := w.postFiles(jobs, values, sentFile{"cv", "cv.pdf", pdf + "2"}); a.status != 422 || !strings.Contains(a.body, "choose the file again") || w.files() != "cv 1 cv.pdf application/pdf 14 true of 1" {
		t.Errorf("with another file: %d %s %s", a.status, w.files(), a.body)
	}
}

// uploadSlowly sends the large form with a file but for its last bytes, which finish sends; then it must be taken.
func (w *world) uploadSlowly(file sentFile) (finish func()) {
	w.t.Helper()
	body, contentType := w.multi(url.Values{"email": {"slow@example.com"}}, file)
	slow, write := io.Pipe()
	r, err := http.NewRequest(http.MethodPost, w.url+large, slow)
	if err != nil {
		w.t.Fatal(err)
	}
	r.Header.Set("Content-Type", contentType)
	var sent sync.WaitGroup
	sent.Go(func() {
		if a := w.send(r); a.status != 200 {
			w.t.Errorf("the slow one: %d %s", a.status, a.body)
		}
	})
	if _, err := io.WriteString(write, body[:len(body)-100]); err != nil {
		w.t.Fatal(err)
	}
	return func() {
		w.t.Helper()
		if _, err := io.WriteString(write, body[len(body)-100:]); err != nil {
			w.t.Fatal(err)
		}
		if err := write.Close(); err != nil {
			w.t.Fatal(err)
		}
		sent.Wait()
	}
}

// Files that come slowly are bounded together, and keep nobody from sending a form without.
func TestUploadsInHandAreBounded(t *testing.T) {
	t.Parallel()
	w := newWorldWithFiles(t)
	const room = 100_000
	w.served.uploads = fn.NewBodies(room)
	finish := w.uploadSlowly(sentFile{"file", "f.pdf", ofSize(room - 1_000)})
	for w.served.uploads.Left() > 3_000 {
		runtime.Gosched()
	}
	if a := w.postFiles(large, url.Values{"email": {"ada@example.com"}}, sentFile{"file", "f.pdf", ofSize(5_000)}); a.status != 503 || a.header.Get("Retry-After") == "" {
		t.Errorf("files too many: %d %s", a.status, a.body)
	}
	if a := w.post(newsletter, w.fill(good())); a.status != 200 {
		t.Errorf("a form without files meanwhile: %d %s", a.status, a.body)
	}
	finish()
	if a := w.postFiles(large, url.Values{"email": {"ada@example.com"}}, sentFile{"file", "f.pdf", ofSize(5_000)}); a.status != 200 {
		t.Errorf("after it: %d %s", a.status, a.body)
	}
}

// Files that come slowly for one tenant's forms leave room for those of others.
func TestUploadsOfATenantLeaveRoom(t *testing.T) {
	t.Parallel()
	w := newWorldWithFiles(t)
	w.apply("brava", documents, documents+formsWithFiles)
	finish := w.uploadSlowly(sentFile{"file", "f.pdf", ofSize(10 << 20)})
	for w.served.uploads.Left() > maxUploads-10<<20 {
		runtime.Gosched()
	}
	for path, status := range map[string]int{large: 503, "/f/brava/large": 200} {
		if a := w.postFiles(path, url.Values{"email": {"ada@example.com"}}, sentFile{"file", "f.pdf", ofSize(3 << 20)}); a.status != status {
			t.Errorf("%s: %d %s, want %d", path, a.status, a.body, status)
		}
	}
	finish()
	for w.served.uploads.Left() != maxUploads {
		runtime.Gosched()
	}
}

// Who sends something that is no form, and never the rest of it, has its connection no longer than anybody who sends slowly.
func TestTheRestOfAnUploadNeverComes(t *testing.T) {
	t.Parallel()
	w := newWorldWithFiles(t)
	w.served.uploads.Time = 100 * time.Millisecond
	c, err := net.Dial("tcp", strings.TrimPrefix(w.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	const head = "POST " + large + " HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=x\r\nContent-Length: 100000\r\n\r\n"
	if _, err := io.WriteString(c, head+"--x\r\nContent-Disposition: form-data\r\n\r\nno name\r\n--x\r\n"); err != nil {
		t.Fatal(err)
	}
	if err := c.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	answer, err := io.ReadAll(c) // until it is closed
	if err != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 400 ") {
		t.Errorf("%.100q, %v", answer, err)
	}
}

// On the schema before, a form with files is not served, and others are.
func TestFormsWithFilesWaitForTheirSchema(t *testing.T) {
	t.Parallel()
	w := newWorldWithFiles(t)
	at := func(schema int, ddl string) {
		w.d.Own(t, pgtest.Acme, fmt.Sprintf("ALTER TABLE submission %s; UPDATE onda.tenant SET schema = %d WHERE name = 'acme'", ddl, schema))
	}
	at(contact.FilesSchema-1, "DROP files")
	for _, a := range []answer{w.get(jobs), w.get(jobs + ".js"), w.postFiles(jobs, url.Values{"email": {"ada@example.com"}}, sentFile{"cv", "cv.pdf", pdf})} {
		if a.status != 503 || a.header.Get("Retry-After") == "" {
			t.Errorf("a form with files: %d %v", a.status, a.header)
		}
	}
	if a := w.post(newsletter, w.fill(good())); a.status != 200 {
		t.Errorf("a form without: %d %s", a.status, a.body)
	}
	at(contact.FilesSchema, "ADD files bytea[]")
	if a := w.postFiles(jobs, url.Values{"email": {"ada@example.com"}}, sentFile{"cv", "cv.pdf", pdf}); a.status != 200 {
		t.Errorf("after the migration: %d %s", a.status, a.body)
	}
}

func TestPageOfAFormWithFiles(t *testing.T) {
	t.Parallel()
	w := newWorldWithFiles(t)
	for path, want := range map[string][]string{
		jobs: {
			`method="post" action="/f/acme/jobs" enctype="multipart/form-data"`, `<input type="file" id="onda-jobs-cv" name="cv" accept="application/pdf,.pdf,application/vnd.openxml`,
			"Two pages are enough. PDF, DOCX, at most 5 MB.", "Up to 2 files of at most 900 KB each: JPG, PNG, GIF, WEBP, HEIC, TIF.", ` multiple aria-describedby="onda-jobs-pictures-help">`,
		},
		jobs + "?lang=fr": {"Deux pages suffisent. PDF, DOCX, 5 Mo au plus.", "Jusqu’à 2 fichiers de 900 Ko au plus chacun : JPG"},
	} {
		body := w.get(path).body
		for _, part := range want {
			if !strings.Contains(body, part) {
				t.Errorf("%s has no %s: %s", path, part, body)
			}
		}
	}
	if body := w.get(newsletter).body; strings.Contains(body, "enctype") {
		t.Error("a form without files is sent as one with")
	}
}
