package track

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/onda-run/onda/internal/contact"
	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/token"
)

// withCopies are documents with a mail for copies, and a field that is personal.
func withCopies() fstest.MapFS {
	files := documents()
	all := strings.Replace(string(files["all.yaml"].Data), "spec: {zone: Europe/Oslo}", "spec: {zone: Europe/Oslo, privacy: {copy: your-data}}", 1)
	files["all.yaml"] = &fstest.MapFile{Data: []byte(all)}
	files["copy.yaml"] = &fstest.MapFile{Data: []byte(`
apiVersion: onda/v1
kind: Email
metadata: {name: your-data}
spec: {transactional: true, from: news@acme.example, subject: Your data, html: "<a href=\"{{ data.url }}\">All of it</a>"}
---
apiVersion: onda/v1
kind: Field
metadata: {name: birthplace, title: Place of birth}
spec: {type: text, personal: true}
`)}
	return files
}

// Whoever has the link sees what is stored, in part; all of it goes to the address alone.
func TestWhatIsStored(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	applyTo(t, w.db, "acme", withCopies())
	id, d := w.sent("acme", "ada@example.com", time.Hour)
	other, _ := w.sent("acme", "bea@example.com", time.Hour)
	brava, _ := w.sent("brava", "ada@example.com", time.Hour)
	w.consent("acme", contact.Consent{Contact: id, Purpose: contact.TrackingEmail, State: contact.Granted, Basis: "form"}, contact.Consent{Contact: id, Purpose: "offers", State: contact.Withdrawn, Basis: "carrier pigeon"})
	pgtest.Exec(t, w.db, "acme", `UPDATE contact SET external_id = 'customer-7', fields = '{"birthplace": "Tromsø", "logins": 7, "first_name": "Ada"}' WHERE id = $1`, id)
	if a := w.get("/c/" + w.token("acme", token.Claims{Purpose: token.Click, Delivery: d, Link: w.link("acme", "https://example.com/a")})); a.status != 302 {
		t.Fatal(a.status)
	}
	tok := w.token("acme", token.Claims{Purpose: token.Preferences, Contact: id})
	if a := w.get("/p/" + tok); !strings.Contains(a.body, `href="/p/`+tok+`/stored"`) {
		t.Errorf("the preference centre does not lead there: %s", a.body)
	}
	private := []string{"ada@example.com", "Tromsø", "customer-7", browser}
	a := w.get("/p/" + tok + "/stored")
	for _, want := range []string{"a…@example.com", "<dt>Place of birth</dt><dd>…</dd>", "<dt>Logins</dt><dd>7</dd>", "<dt>First name</dt><dd>Ada</dd>", "<dt>Newsletter</dt><dd>Yes, since", "(noted by us)", "(by a form)", "<dt>Times a link was followed</dt><dd>1</dd>", "<dt>news</dt>"} {
		if !strings.Contains(a.body, want) {
			t.Errorf("%s is not on the page: %s", want, a.body)
		}
	}
	masked := w.get("/p/" + tok + "/copy")
	for _, p := range private {
		if strings.Contains(a.body, p) || strings.Contains(masked.body, p) {
			t.Errorf("%s is told to whoever has the link", p)
		}
	}
	for _, h := range []http.Header{a.header, masked.header} {
		if !strings.Contains(h.Get("Cache-Control"), "no-store") || !strings.Contains(h.Get("X-Robots-Tag"), "noindex") {
			t.Errorf("headers: %v", h)
		}
	}
	if masked.status != 200 || masked.header.Get("Content-Disposition") != `attachment; filename="stored.json"` || !json.Valid([]byte(masked.body)) {
		t.Errorf("the masked copy: %d %v %s", masked.status, masked.header, masked.body)
	}
	count := "SELECT count(*) FROM request"
	w.do("HEAD", "/p/"+tok+"/stored", "", "", nil)
	if n := pgtest.One[int](t, w.db, "acme", count); n != 0 {
		t.Fatalf("looking asked for %d mails", n)
	}
	// Asking twice in a minute is asking once; three a day are enough.
	ask := func() answer { return w.do("POST", "/p/"+tok+"/stored", "203.0.113.1", browser, nil) }
	for range 2 {
		if a := ask(); a.status != 200 || !strings.Contains(a.body, "A link is on its way to a…@example.com.") {
			t.Errorf("asked: %d %s", a.status, a.body)
		}
	}
	if n := pgtest.One[int](t, w.db, "acme", count); n > 2 { // the minute may have ended in between
		t.Errorf("%d mails", n)
	}
	if got := pgtest.One[int64](t, w.db, "acme", "SELECT min(contacts[1]) FROM batch WHERE id IN (SELECT delivery >> 9 FROM request)"); got != id {
		t.Errorf("the mail goes to contact %d", got)
	}
	link := pgtest.One[string](t, w.db, "acme", "SELECT data->>'url' FROM request ORDER BY delivery LIMIT 1")
	path, ok := strings.CutPrefix(link, "https://links.example")
	if !ok {
		t.Fatalf("the link is %s", link)
	}
	full := w.get(path)
	if full.status != 200 || !json.Valid([]byte(full.body)) {
		t.Errorf("the copy: %d %s", full.status, full.body)
	}
	for _, p := range private {
		if !strings.Contains(full.body, p) {
			t.Errorf("%s is not in the full copy: %s", p, full.body)
		}
	}
	if strings.Contains(full.body, "bea@") || full.header.Get("Content-Disposition") == "" || !strings.Contains(full.header.Get("Cache-Control"), "no-store") {
		t.Errorf("the full copy: %v %s", full.header, full.body)
	}
	if a := w.do("HEAD", path, "", "", nil); a.status != 200 || a.body != "" {
		t.Errorf("HEAD: %d %s", a.status, a.body)
	}
	// A proof is for one contact of one tenant, and whole.
	_, proof, _ := strings.Cut(path, "?s=")
	for name, path := range map[string]string{
		"another's":         "/p/" + w.token("acme", token.Claims{Purpose: token.Preferences, Contact: other}) + "/copy?s=" + proof,
		"another tenant's":  "/p/" + w.token("brava", token.Claims{Purpose: token.Preferences, Contact: brava}) + "/copy?s=" + proof,
		"truncated":         path[:len(path)-3],
		"without a MAC":     "/p/" + tok + "/copy?s=" + strings.Split(proof, "-")[0],
		"of another second": "/p/" + tok + "/copy?s=1" + proof,
		"nonsense":          "/p/" + tok + "/copy?s=%00-%00",
	} {
		if a := w.get(path); a.status != 410 || !strings.Contains(a.body, "good for an hour") || strings.Contains(a.body, "@example.com\"") {
			t.Errorf("%s: %d %s", name, a.status, a.body)
		}
	}
	pgtest.Exec(t, w.db, "acme", "UPDATE allowance SET n = $1 WHERE kind = 'copy'", maxCopies)
	w.move("acme", 61*time.Minute)
	if a := w.get(path); a.status != 410 {
		t.Errorf("after an hour: %d", a.status)
	}
	pgtest.Exec(t, w.db, "acme", "UPDATE allowance SET period = date_trunc('day', onda.now(), 'UTC') WHERE kind = 'copy'")
	before := pgtest.One[int](t, w.db, "acme", count)
	if a := ask(); a.status != 429 || pgtest.One[int](t, w.db, "acme", count) != before {
		t.Errorf("the fourth of the day: %d", a.status)
	}
	pgtest.Exec(t, w.db, "acme", "UPDATE contact SET erased_at = now(), email = NULL WHERE id = $1", id)
	for _, p := range []string{"/p/" + tok + "/stored", "/p/" + tok + "/copy", path} {
		if a := w.get(p); a.status != 404 {
			t.Errorf("of somebody erased: %d", a.status)
		}
	}
	if a := ask(); a.status != 404 {
		t.Errorf("of somebody erased: %d", a.status)
	}
}

// Where the Settings name no mail, what may be shown is there to download, and nothing is mailed.
func TestWhatIsStoredWithoutAMail(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	id, _ := w.sent("acme", "ada@example.com", time.Hour)
	tok := w.token("acme", token.Claims{Purpose: token.Preferences, Contact: id})
	if a := w.get("/p/" + tok + "/stored"); a.status != 200 || !strings.Contains(a.body, `href="/p/`+tok+`/copy"`) || strings.Contains(a.body, "<form") || !strings.Contains(a.body, "answer one of our emails") {
		t.Errorf("%d %s", a.status, a.body)
	}
	if a := w.do("POST", "/p/"+tok+"/stored", "203.0.113.1", browser, nil); a.status != 404 {
		t.Errorf("asked: %d", a.status)
	}
	for _, path := range []string{"/stored", "/copy"} {
		if a := w.get("/p/" + tok[:len(tok)-4] + path); a.status != 404 {
			t.Errorf("truncated: %d", a.status)
		}
	}
}
