package renderform

import (
	"context"
	"net/url"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/onda-run/onda/internal/apply"
	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/postgres"
)

// apply puts a change of the documents in force.
func (w *world) apply(tenant string, change ...string) {
	w.t.Helper()
	if _, _, err := apply.Directory(w.t.Context(), w.db, tenant, fstest.MapFS{"all.yaml": {Data: []byte(strings.NewReplacer(change...).Replace(documents))}}, nil); err != nil {
		w.t.Fatal(err)
	}
}

// What went wrong is said on a page that looks as the tenant's do, once it is known how; of a tenant that is none, on one of nobody's.
func TestErrorsLookAsTheTenantsPages(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, tenant := range []string{"acme", "brava"} {
		w.apply(tenant, "spec: {zone: Europe/Oslo,", `spec: {theme: {accent: "#7a1f5c"}, zone: Europe/Oslo,`)
	}
	looks := func(what string, a answer, status int, themed bool) {
		t.Helper()
		if a.status != status || strings.Contains(a.body, "Sail &amp; Ski") != themed || strings.Contains(a.body, "#7a1f5c") != themed {
			t.Errorf("%s: %d, want %d, as the tenant's: %t\n%s", what, a.status, status, themed, a.body)
		}
	}
	const offers = "/f/acme/offers"
	looks("no tenant", w.get("/f/nobody/offers"), 404, false)
	looks("no form", w.get("/f/acme/nothing"), 404, true)
	looks("a site that may not post it", w.post(offers, nil, "Origin", "https://evil.example"), 403, true)
	looks("too large", w.post(offers, url.Values{"x": {strings.Repeat("x", maxBody)}}), 413, true)
	for range 2 {
		w.post(offers, url.Values{"email": {"ada@example.com"}})
	}
	looks("too often", w.post(offers, url.Values{"email": {"ada@example.com"}}), 429, true)
	w.post("/f/brava/newsletter", good())
	link := w.confirmURL("brava")
	pgtest.In(t, w.db, "brava", func(ctx context.Context, tx *postgres.Tx) error {
		_, err := tx.Exec(ctx, "LOCK TABLE submission IN ACCESS EXCLUSIVE MODE")
		looks("its tables are locked", w.get(link), 503, true)
		return err
	})
	looks("a forged link", w.get(link[:strings.Index(link, "?")-1]), 404, false)
	looks("another page", w.get("/f/acme"), 404, false)
	pgtest.Exec(t, w.db, "acme", "UPDATE run SET state = 'completed'")
	if _, err := w.admin.Delete(t.Context(), "acme"); err != nil {
		t.Fatal(err)
	}
	w.clock.Add(int64(time.Second))
	looks("a tenant that was deleted", w.get(offers), 404, false)
}

// A page that was shown asks nobody for a second, and then shows what is in force: the form's texts, its fields, the settings, the tenant's state and stage.
func TestAPageIsKeptForASecond(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.pause.Store(0)
	second := func() { w.clock.Add(int64(time.Second)) }
	for _, c := range []struct {
		name   string
		change func()
		has    string
	}{
		{"the form", func() { w.apply("acme", "Snow in your inbox", "Ice in your inbox") }, "Ice in your inbox"},
		{"a field", func() { w.apply("acme", "options: [ski, sail]", "options: [ski, sail, luge]") }, `value="luge"`},
		{"the settings", func() { w.apply("acme", "Sail & Ski", "Luge & Ski") }, "Luge &amp; Ski"},
		{"the stage", w.preproduction, "no mail from here goes to real people"},
	} {
		before := w.get(newsletter).body
		if strings.Contains(before, c.has) {
			t.Fatalf("%s: %q is there already", c.name, c.has)
		}
		c.change()
		if strings.Contains(w.get(newsletter).body, c.has) {
			t.Errorf("%s: the page was not kept", c.name)
		}
		second()
		if !strings.Contains(w.get(newsletter).body, c.has) {
			t.Errorf("%s: the page is the one of before after a second", c.name)
		}
		// The script shows neither the settings' title nor anything that is not in the fragment.
		if js := w.get(newsletter + ".js").body; c.name != "the settings" && !strings.Contains(js, strings.ReplaceAll(c.has, `"`, `\"`)) {
			t.Errorf("%s: the script is the one of before after a second", c.name)
		}
	}
	if got := w.get("/f/brava/newsletter").body; !strings.Contains(got, "Snow in your inbox") {
		t.Error("the other tenant's form changed too")
	}
	if _, err := w.admin.Suspend(t.Context(), "acme", true); err != nil {
		t.Fatal(err)
	}
	if a := w.get(newsletter); a.status != 200 {
		t.Errorf("within the second: %d", a.status)
	}
	if a := w.post(newsletter, good()); a.status != 503 {
		t.Errorf("sent in to a tenant that is being moved: %d", a.status)
	}
	second()
	if a := w.get(newsletter); a.status != 503 {
		t.Errorf("of a tenant that is being moved: %d", a.status)
	}
	if _, err := w.admin.Resume(t.Context(), "acme"); err != nil {
		t.Fatal(err)
	}
	if a := w.get(newsletter); a.status != 200 { // that it was away is not kept
		t.Errorf("of a tenant that is back: %d", a.status)
	}
	if a := w.get("/f/acme/" + strings.Repeat("x", maxName+1)); a.status != 404 {
		t.Errorf("a long name: %d", a.status)
	}
}

// What one visitor's page has is in no other's.
func TestShowingsAreOfOneVisitorEach(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.pause.Store(0)
	inputs := func(a answer) url.Values {
		out := url.Values{}
		for _, m := range hiddenInput.FindAllStringSubmatch(a.body, -1) {
			out.Add(m[1], m[2])
		}
		return out
	}
	first, second := inputs(w.get(newsletter+"?utm=a")), inputs(w.get(newsletter))
	if first.Get("utm") != "a" || second.Get("utm") != "" || len(first["utm"]) != 1 {
		t.Errorf("utm %q, then %q", first["utm"], second["utm"])
	}
	if readOnce(first.Get(onceInput)) == nil || first.Get(onceInput) == second.Get(onceInput) {
		t.Errorf("two pages have the ids %q and %q", first.Get(onceInput), second.Get(onceInput))
	}
	if got := inputs(w.get(newsletter + "?utm=" + url.QueryEscape(`"><script>alert(1)</script>`))).Get("utm"); got != "&#34;&gt;&lt;script&gt;alert(1)&lt;/script&gt;" {
		t.Errorf("a parameter on the page: %s", got)
	}
}
