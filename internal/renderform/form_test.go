package renderform

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/onda-run/onda/internal/contact"
	"github.com/onda-run/onda/internal/fieldindex"
	"github.com/onda-run/onda/internal/fieldvalue"
	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/spec"
)

const newsletter = "/f/acme/newsletter"

func good() url.Values {
	return url.Values{
		"email": {" Ada@Example.com "}, "first_name": {"Ada"}, "country": {"NO"}, "interests": {"ski", "sail"}, "message": {"Hello\nthere"},
		"consent.newsletter": {"on"}, "consent.tracking.email": {"on"}, "utm": {"spring"},
	}
}

// state is what is known of a contact's consent.
func (w *world) state(tenant string) string {
	return strings.Join(pgtest.All[string](w.t, w.db, tenant, "SELECT purpose || '=' || state FROM subscription ORDER BY purpose"), " ")
}

func (w *world) count(tenant, table string) int {
	return pgtest.One[int](w.t, w.db, tenant, "SELECT count(*) FROM "+table)
}

func TestPageOfAForm(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a := w.get(newsletter + "?utm=spring%22%3E")
	for _, want := range []string{
		"Snow in your inbox", `name="utm" value="spring&#34;&gt;"`, `type="email"`, `autocomplete="email"`, `<option value="NO">Norway</option>`, "Sail &amp; Ski", `name="consent.newsletter" value="on" required`,
	} {
		if !strings.Contains(a.body, want) {
			t.Errorf("%q is not on the page", want)
		}
	}
	if strings.Contains(a.body, `" checked`) || strings.Contains(w.get("/f/acme/offers").body, "<script") {
		t.Error("something is ticked, or a script is on a page that needs none")
	}
	if policy := a.header.Get("Content-Security-Policy"); !strings.Contains(policy, "default-src 'none'") || strings.Contains(policy, "unsafe") {
		t.Errorf("policy %q", policy)
	}
	if a := w.get(newsletter, "Accept-Language", "fr"); !strings.Contains(a.body, "La neige dans votre boîte") || !strings.Contains(a.body, "Norvège") || !strings.Contains(a.body, `<html lang="fr">`) {
		t.Error("the page is not in French")
	}
	if a := w.get(newsletter, "Accept-Language", "pt"); !strings.Contains(a.body, `<html lang="en">`) {
		t.Error("a language that the form has not is not answered in its own")
	}
	for _, path := range []string{"/f/acme/nothing", "/f/nobody/newsletter", "/f/pg_x/newsletter", "/f/acme", "/f/acme/newsletter/x"} {
		if a := w.get(path); a.status != 404 || !strings.Contains(a.body, "There is nothing here") {
			t.Errorf("%s: %d", path, a.status)
		}
	}
	if a := w.send(w.request(http.MethodPut, newsletter, "")); a.status != 405 {
		t.Errorf("PUT: %d", a.status)
	}
	if n := w.count("acme", "submission"); n != 0 {
		t.Errorf("GET made %d submissions", n)
	}
}

func TestDoubleOptIn(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	values := w.fill(good())
	for range 2 { // the second is the same page sent again
		if a := w.post(newsletter, values); a.status != 200 || !strings.Contains(a.body, "Check your inbox") || !strings.Contains(a.body, "Nearly there.") {
			t.Fatalf("submit: %d %s", a.status, a.body)
		}
	}
	got := pgtest.One[string](t, w.db, "acme", `SELECT s.state || ' ' || c.email || ' ' || (c.expires_at = s.expires_at) || ' ' || (s.expires_at > now() + interval '167 hours') || ' ' || array_to_string(c.tags, ',') || ' ' || (c.fields->>'locale')
		FROM submission s JOIN contact c ON c.id = s.contact`)
	if got != "pending ada@example.com true true web en" {
		t.Errorf("after submit: %s", got)
	}
	if got := w.state("acme"); got != "newsletter=pending tracking.email=pending" {
		t.Errorf("after submit: %s", got)
	}
	if n := w.count("acme", "request"); n != 1 {
		t.Fatalf("%d confirmation mails, want 1", n)
	}
	link := w.confirmURL("acme")
	ledger := w.count("acme", "consent")
	for _, method := range []string{http.MethodGet, http.MethodHead} {
		if a := w.send(w.request(method, link, "")); a.status != 200 || method == http.MethodGet && (!strings.Contains(a.body, "One click and you are signed up for Newsletter at a…@example.com") || !strings.Contains(a.body, "<button")) {
			t.Errorf("%s: %d %s", method, a.status, a.body)
		}
	}
	if w.count("acme", "consent") != ledger || w.state("acme") != "newsletter=pending tracking.email=pending" {
		t.Fatal("GET or HEAD confirmed it")
	}
	for range 3 { // again is the same page, and changes nothing
		if a := w.post(link, nil); a.status != 200 || !strings.Contains(a.body, "Thank you, it is confirmed") {
			t.Errorf("confirm: %d %s", a.status, a.body)
		}
	}
	if got := w.state("acme"); got != "newsletter=granted tracking.email=granted" {
		t.Errorf("after confirm: %s", got)
	}
	if n := w.count("acme", "consent"); n != ledger+2 {
		t.Errorf("%d entries in the ledger, want %d", n, ledger+2)
	}
	proof := pgtest.One[string](t, w.db, "acme", `SELECT concat_ws('|', proof->>'form', proof->>'version', proof->>'text', length(proof->>'sha256'), proof->>'confirmed', origin IS NOT NULL, basis)
		FROM consent WHERE purpose = 'newsletter' AND state = 'granted'`)
	if proof != "newsletter|1|Yes, send me the newsletter. I can unsubscribe at any time.|64|true|t|form" {
		t.Errorf("proof: %s", proof)
	}
	got = pgtest.One[string](t, w.db, "acme", `SELECT s.state || ' ' || coalesce(c.expires_at::text, '-') || ' ' || array_to_string(c.tags, ',') || ' ' || coalesce(c.stage, '-') || ' ' || c.scores::text || ' ' || c.fields::text || ' ' || (s.data->'values')::text FROM submission s JOIN contact c ON c.id = s.contact`)
	want := `confirmed - confirmed subscriber {"score": 5} {"locale": "en", "country": "NO", "interests": ["sail", "ski"], "first_name": "Ada"} {"utm": "spring", "message": "Hello\nthere"}`
	if got != want {
		t.Errorf("after confirm:\n%s, want\n%s", got, want)
	}
	facts := pgtest.All[string](t, w.db, "acme", "SELECT kind || ' ' || name FROM fact WHERE kind LIKE 'form.%' OR kind = 'campaign.enter' ORDER BY id")
	if diff := cmp.Diff([]string{"form.submitted newsletter", "campaign.enter onboarding", "form.confirmed newsletter"}, facts); diff != "" {
		t.Error(diff)
	}
	types := strings.Join(w.drain("acme"), " ")
	for _, want := range []string{"form.submitted", "form.confirmed", "consent.pending", "consent.granted", "email.requested", "tag.changed"} {
		if !strings.Contains(types, want) {
			t.Errorf("%s was not rung: %s", want, types)
		}
	}
	if n := w.count("brava", "contact") + w.count("brava", "submission") + w.count("brava", "fact"); n != 0 {
		t.Errorf("brava has %d rows", n)
	}
}

func TestConfirmationsThatDoNotCount(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.post(newsletter, w.fill(good()))
	link := w.confirmURL("acme")
	tok, query, _ := strings.Cut(strings.TrimPrefix(link, w.url+"/y/"), "?")
	for name, path := range map[string]string{
		"truncated": "/y/" + tok[:len(tok)-1] + "?" + query, "forged": "/y/" + tok[:len(tok)-3] + "aaa?" + query, "bad number": "/y/" + tok + "?s=x", "empty": "/y/",
	} {
		for _, method := range []string{http.MethodGet, http.MethodPost} {
			if a := w.send(w.request(method, path, "")); a.status != 404 && a.status != 405 {
				t.Errorf("%s %s: %d", method, name, a.status)
			}
		}
	}
	if a := w.post("/y/"+tok+"?s=999", nil); a.status != 410 {
		t.Errorf("another's submission: %d", a.status)
	}
	w.move("acme", 8*24*time.Hour)
	for _, method := range []string{http.MethodGet, http.MethodPost} {
		if a := w.send(w.request(method, link, "")); a.status != 410 || !strings.Contains(a.body, "This link has expired") || !strings.Contains(a.body, `href="/f/acme/newsletter"`) {
			t.Errorf("%s, expired: %d %s", method, a.status, a.body)
		}
	}
	if got := w.state("acme"); got != "newsletter=pending tracking.email=pending" {
		t.Errorf("after all: %s", got)
	}
}

// What was given to an input with a time of its own is forgotten before the rest, also after it was confirmed.
func TestKeepOfAValue(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.post(newsletter, w.fill(good()))
	stored := func() string {
		return pgtest.One[string](t, w.db, "acme", `SELECT state || ' ' || (data->'values')::text || ' ' || (keep_until - at BETWEEN interval '89 days' AND interval '91 days') || ' ' ||
			(to_timestamp((data #>> '{until,message}')::bigint) - at BETWEEN interval '89 days' AND interval '91 days') || ' ' || (data->'until' ? 'utm') FROM submission`)
	}
	const values = ` {"utm": "spring", "message": "Hello\nthere"} true true false`
	if got := stored(); got != "pending"+values {
		t.Errorf("sent: %s", got)
	}
	w.post(w.confirmURL("acme"), nil)
	if got := stored(); got != "confirmed"+values {
		t.Errorf("confirmed: %s", got)
	}
	if n := pgtest.One[int](t, w.db, "acme", "SELECT count(*) FROM onda.wakeup WHERE function = 'campaign' AND tenant = 'acme'"); n == 0 {
		t.Error("nobody is woken to forget it")
	}
}

// Each type of field and input takes what fits it, in the one form in which it is stored, and says of the rest what is wrong.
func TestAnswersOfEveryType(t *testing.T) {
	t.Parallel()
	f := questions(t, nil)
	for name, typ := range map[string]spec.FieldType{"website": spec.TypeURL, "phone": spec.TypePhone, "language": spec.TypeLanguage, "timezone": spec.TypeTimezone} {
		f.fields[name] = &spec.Field{Type: typ}
		f.Inputs = append(f.Inputs, spec.Input{Field: name})
	}
	for as := range map[spec.InputType]bool{spec.InputNumber: true, spec.InputDate: true, spec.InputURL: true, spec.InputPhone: true, spec.InputEmail: true} {
		f.Inputs = append(f.Inputs, spec.Input{Name: "own_" + string(as), As: as})
	}
	f.Inputs = append(f.Inputs, spec.Input{Name: "own_radio", As: spec.InputRadio, Options: []string{"a", "b"}})
	for _, c := range []struct{ input, good, bad, problem string }{
		{"age", "42", "old", "number"},
		{"age", "1e3", "NaN", "number"},
		{"birthday", "2024-02-29", "2023-02-29", "date"},
		{"arrival", "2026-11-24T14:30", "2026-11-24T25:30", "date"},
		{"website", "https://example.com/", "javascript:alert(1)", "url"},
		{"website", "http://x.example", "https://user:secret@x.example/", "url"},
		{"phone", "+47 21 00 00 00", "0612345678", "phone"},
		{"country", "no", "XX", "option"},
		{"language", "pt-BR", "xx-", "option"},
		{"timezone", "Europe/Oslo", "../../etc/passwd", "option"},
		{"plan", "free", "FREE", "option"},
		{"interests", "Sail", "sail", "option"},
		{"member", "on", "perhaps", "option"},
		{"company", "Øst & Vest", "a\x07b", "text"},
		{"own_number", "7", "seven", "number"},
		{"own_date", "2026-01-31", "31.1.2026", "date"},
		{"own_url", "https://example.com", "example", "url"},
		{"own_tel", "+4721000000", "+47", "phone"},
		{"own_email", "bob@example.com", "bob@", "email"},
		{"own_radio", "a", "c", "option"},
	} {
		e, problems := f.check(url.Values{"email": {"ada@example.com"}, c.input: {c.good}}, nil, "en", time.Now(), nil)
		if len(problems) > 0 || e.Fields[c.input] == nil && e.Values[c.input] == "" {
			t.Errorf("%s %q: %v, stored %v %v", c.input, c.good, problems, e.Fields, e.Values)
		}
		if _, problems = f.check(url.Values{"email": {"ada@example.com"}, c.input: {c.bad}}, nil, "en", time.Now(), nil); len(problems) != 1 || problems[0] != (failed{Key: c.input, Text: "form.problem." + c.problem}) {
			t.Errorf("%s %q: %v, want %s", c.input, c.bad, problems, c.problem)
		}
	}
}

// Every zone to choose from is one that can be stored.
func TestTimeZonesToChooseFrom(t *testing.T) {
	t.Parallel()
	for _, o := range zones() {
		if v, err := fieldvalue.Parse(&spec.Field{Type: spec.TypeTimezone}, o.Value); err != nil || v != o.Value {
			t.Errorf("%s: %v", o.Value, err)
		}
	}
	f := &form{fields: map[string]*spec.Field{"timezone": {Type: spec.TypeTimezone}}, Form: &spec.Form{}}
	text := func(key string, _ ...any) string { return key }
	for chosen, want := range map[string]string{"Europe/Oslo": "Europe/Oslo", "Etc/GMT+1": "Etc/GMT+1", "<script>": ""} {
		i := f.input(spec.Input{Field: "timezone"}, "en", url.Values{"timezone": {chosen}}, text)
		got := ""
		for _, o := range i.Options {
			if o.Selected {
				got += o.Value
			}
		}
		if i.Kind != "select" || got != want || len(i.Options) < 400 {
			t.Errorf("%s: shown as %s of %d, chosen %q", chosen, i.Kind, len(i.Options), got)
		}
	}
}

// The list of a language is made once, and a choice in one page is not in the next.
func TestListsAreKept(t *testing.T) {
	t.Parallel()
	var l lists
	first := l.of(spec.TypeCountry, "fr")
	first[0].Selected = true
	if again := l.of(spec.TypeCountry, "fr"); again[0].Selected || len(again) != len(first) || len(l.made) != 1 {
		t.Errorf("%v of %d, %d kept", again[0], len(again), len(l.made))
	}
	for n := range 3 * maxLists {
		l.of(spec.TypeLanguage, "x-"+strconv.Itoa(n))
	}
	if len(l.made) > maxLists {
		t.Errorf("%d lists are kept", len(l.made))
	}
}

// Whether somebody is there already shows in nothing; and what others say of them has no effect before they confirm it.
func TestAKnownAddressIsAnsweredAlike(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	pgtest.In(t, w.db, "acme", func(ctx context.Context, tx *postgres.Tx) error {
		id, _, err := contact.Ensure(ctx, tx, "ada@example.com")
		if err != nil {
			return err
		}
		if err := contact.Update(ctx, tx, drainer, []int64{id}, contact.Change{Fields: map[string]any{"first_name": "Countess"}}, ""); err != nil {
			return err
		}
		_, err = contact.Record(ctx, tx, drainer, contact.Consent{Contact: id, Purpose: "newsletter", State: contact.Granted, Basis: "form"})
		return err
	})
	known := w.post(newsletter, w.fill(good()))
	first := w.confirmURL("acme")
	other := good()
	other.Set("email", "new@example.com")
	unknown := w.post(newsletter, w.fill(other))
	if known.status != unknown.status || known.body != unknown.body {
		t.Error("a known address is answered in another way")
	}
	got := pgtest.One[string](t, w.db, "acme", "SELECT (fields->>'first_name') || ' ' || coalesce(expires_at::text, '-') FROM contact WHERE email = 'ada@example.com'")
	if got != "Countess -" {
		t.Errorf("before it was confirmed: %s", got)
	}
	if got := pgtest.One[string](t, w.db, "acme", "SELECT state FROM subscription s JOIN contact c ON c.id = s.contact WHERE email = 'ada@example.com' AND purpose = 'newsletter'"); got != "granted" {
		t.Errorf("a request took away what was granted: %s", got)
	}
	// Another submission in her name does not ride on the confirmation of hers.
	trap := good()
	trap.Set("first_name", "Mallory")
	w.post(newsletter, w.fill(trap))
	w.post(first, nil)
	if got := pgtest.One[string](t, w.db, "acme", "SELECT fields->>'first_name' FROM contact WHERE email = 'ada@example.com'"); got != "Ada" {
		t.Errorf("confirmed: %s, want what came with the mail", got)
	}
	for range 5 {
		w.post(newsletter, w.fill(good()))
	}
	if n := pgtest.One[int](t, w.db, "acme", "SELECT count(*) FROM request r JOIN submission s ON s.delivery = r.delivery JOIN contact c ON c.id = s.contact WHERE c.email = 'ada@example.com'"); n != maxConfirmations {
		t.Errorf("%d confirmation mails went to one address, want %d", n, maxConfirmations)
	}
}

func TestProblemsStandBesideTheirInputs(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, c := range []struct {
		name   string
		change url.Values
		input  string
		says   string
	}{
		{"no address", url.Values{"email": {" "}}, "email", "This is needed."},
		{"bad address", url.Values{"email": {"ada@"}}, "email", "Enter a complete email address"},
		{"line break", url.Values{"email": {"ada@example.com\r\nBcc: x@example.com"}}, "email", "Enter a complete email address"},
		{"blocked", url.Values{"email": {"ada@mail.Mailinator.com"}}, "email", "Addresses of this provider"},
		{"no consent", url.Values{"consent.newsletter": nil}, "consent-newsletter", "Please tick this"},
		{"country", url.Values{"country": {"XX"}}, "country", "Choose one of the options."},
		{"option", url.Values{"interests": {"ski", "run"}}, "interests", "Choose one of the options."},
		{"long", url.Values{"message": {strings.Repeat("é", 201)}}, "message", "at most 200 characters"},
		{"shown", url.Values{"country": {"FR"}}, "company", "This is needed."},
		{"NUL", url.Values{"first_name": {"A\x00da"}}, "first_name", "There are characters in it"},
	} {
		values := good()
		values.Set("first_name", "<b>Ada</b>")
		for k, v := range c.change {
			values[k] = v
		}
		a := w.post(newsletter, w.fill(values))
		id := "onda-newsletter-" + c.input
		if a.status != 422 || !strings.Contains(a.body, c.says) || !strings.Contains(a.body, `id="`+id+`-problem"`) || !strings.Contains(a.body, `aria-describedby="`+id+`-problem"`) || !strings.Contains(a.body, `aria-invalid="true"`) ||
			!strings.Contains(a.body, `<div class="summary" role="alert"`) {
			t.Errorf("%s: %d %s", c.name, a.status, a.body)
		}
		if c.input != "first_name" && !strings.Contains(a.body, "&lt;b&gt;Ada&lt;/b&gt;") {
			t.Errorf("%s: what was right is lost", c.name)
		}
		if c.input != "consent-newsletter" && !strings.Contains(a.body, `name="consent.newsletter" value="on" checked`) {
			t.Errorf("%s: the tick is lost", c.name)
		}
	}
	if n := w.count("acme", "contact"); n != 0 {
		t.Errorf("%d contacts were made", n)
	}
	if got := pgtest.All[string](t, w.db, "acme", "SELECT state || ' ' || reason || ' ' || data::text FROM submission"); !cmp.Equal(got, []string{"rejected domain {}"}) {
		t.Errorf("submissions: %v", got)
	}
}

// A value that another contact has of what is unique is told beside its input, and nothing of the submission is kept; who has it may send it again.
func TestAValueThatIsTaken(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	pgtest.Exec(t, w.db, "acme", `UPDATE document SET spec = jsonb_set(spec, '{spec,unique}', 'true') WHERE spec->>'kind' = 'Field' AND spec->'metadata'->>'name' = 'first_name'`)
	if _, said, err := fieldindex.Ensure(t.Context(), w.admin, "acme"); err != nil || said != nil {
		t.Fatal(said, err)
	}
	pgtest.Exec(t, w.db, "acme", `INSERT INTO contact (email, fields) VALUES ('first@example.com', '{"first_name": "Ada"}')`)
	values := good()
	values.Set("first_name", "Ada")
	a := w.post(newsletter, w.fill(values))
	if a.status != 422 || !strings.Contains(a.body, "This is taken already") || !strings.Contains(a.body, `id="onda-newsletter-first_name-problem"`) {
		t.Errorf("%d %s", a.status, a.body)
	}
	if n := w.count("acme", "contact") + w.count("acme", "submission"); n != 1 {
		t.Errorf("%d rows", n)
	}
	values.Set("email", "first@example.com")
	if a := w.post(newsletter, w.fill(values)); a.status != 200 {
		t.Errorf("%d %s", a.status, a.body)
	}
}

func TestHoneypot(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	values := good()
	values.Set(honeypot, "https://spam.example")
	if a := w.post(newsletter, w.fill(values)); a.status != 200 || !strings.Contains(a.body, "Check your inbox") {
		t.Errorf("%d: the program is told that it was found out", a.status)
	}
	if n := w.count("acme", "contact") + w.count("acme", "request"); n != 0 {
		t.Errorf("%d rows came of it", n)
	}
	if diff := cmp.Diff([]string{"form.rejected newsletter"}, pgtest.All[string](t, w.db, "acme", "SELECT kind || ' ' || name FROM fact")); diff != "" {
		t.Error(diff)
	}
	w.drain("acme")
}

func TestSingleOptInRedirectAndLimit(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const path = "/f/acme/offers"
	values := url.Values{"email": {"ada@example.com"}, "consent.offers": {"on"}, "onda_visitor": {"v1"}}
	a := w.post(path, values, "X-Forwarded-For", "203.0.113.1")
	if a.status != 303 || a.header.Get("Location") != "https://shop.example/thanks" {
		t.Errorf("%d %v", a.status, a.header)
	}
	if got := w.state("acme"); got != "offers=granted" {
		t.Errorf("consent: %s", got)
	}
	if got := pgtest.One[string](t, w.db, "acme", "SELECT s.state || (v.contact = s.contact) || (c.expires_at IS NULL) FROM submission s JOIN contact c ON c.id = s.contact, visitor v"); got != "donetruetrue" {
		t.Errorf("submission: %s", got)
	}
	if policy := w.get(path).header.Get("Content-Security-Policy"); !strings.Contains(policy, "form-action 'self' https://shop.example;") {
		t.Errorf("the redirect would be blocked: %s", policy)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	statuses := map[int]int{}
	for range 6 { // at once: one more is allowed
		wg.Go(func() {
			a := w.post(path, values, "X-Forwarded-For", "198.51.100.7, 203.0.113.1")
			for a.status == http.StatusServiceUnavailable { // on a machine that is slow
				a = w.post(path, values, "X-Forwarded-For", "198.51.100.7, 203.0.113.1")
			}
			mu.Lock()
			statuses[a.status]++
			mu.Unlock()
		})
	}
	wg.Wait()
	if diff := cmp.Diff(map[int]int{303: 1, 429: 5}, statuses); diff != "" {
		t.Error(diff)
	}
	if a := w.post(path, values, "X-Forwarded-For", "203.0.113.2"); a.status != 303 {
		t.Errorf("another origin: %d", a.status)
	}
	w.move("acme", 61*time.Minute)
	if a := w.post(path, values, "X-Forwarded-For", "203.0.113.1"); a.status != 303 {
		t.Errorf("an hour later: %d", a.status)
	}
	if n := pgtest.One[int](t, w.db, "acme", "SELECT count(*) FROM consent WHERE state = 'granted' AND proof->>'text' = 'Send me offers.'"); n == 0 {
		t.Error("there is no proof")
	}
}

func TestOtherSites(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	values := good().Encode()
	post := func(origin string) answer {
		return w.send(w.request(http.MethodPost, newsletter, values, "Content-Type", "application/x-www-form-urlencoded", "Origin", origin, "Accept", "application/json"))
	}
	a := post("https://shop.example")
	var ok reply
	if err := json.Unmarshal([]byte(a.body), &ok); err != nil || !ok.OK || a.header.Get("Access-Control-Allow-Origin") != "https://shop.example" || !strings.Contains(ok.HTML, "Check your inbox") {
		t.Errorf("shop: %d %s", a.status, a.body)
	}
	for _, origin := range []string{"https://evil.example", "null", "https://shop.example.evil.example", "http://shop.example"} {
		if a := post(origin); a.status != 403 || a.header.Get("Access-Control-Allow-Origin") != "" || a.header.Get("Content-Type") != "application/problem+json" {
			t.Errorf("%s: %d %v", origin, a.status, a.header)
		}
		if a := w.send(w.request(http.MethodOptions, newsletter, "", "Origin", origin)); a.status == 204 {
			t.Errorf("%s may ask first", origin)
		}
	}
	if a := w.send(w.request(http.MethodOptions, newsletter, "", "Origin", "https://shop.example")); a.status != 204 || a.header.Get("Access-Control-Allow-Methods") != "POST" {
		t.Errorf("preflight: %d", a.status)
	}
	if a := post(w.url); a.status != 200 {
		t.Errorf("its own page: %d", a.status)
	}
	js := w.get(newsletter + ".js")
	if js.status != 200 || !strings.Contains(js.body, `\u003cform method=\"post\" action=\"`+w.url+newsletter+`\"`) || !strings.Contains(js.body, w.url+newsletter) || js.header.Get("Cross-Origin-Resource-Policy") != "cross-origin" {
		t.Errorf("script: %d %s", js.status, js.body)
	}
	for _, left := range []string{"(STYLE)", "= LANG;", "(ACTION", "(FORM"} {
		if strings.Contains(js.body, left) {
			t.Errorf("%s was not filled in", left)
		}
	}
	// what comes from the page's own address is never taken for a place to fill in
	js = w.get(newsletter + ".js?utm=" + url.QueryEscape("(STYLE(ACTION= LANG"))
	if !strings.Contains(js.body, `value=\"(STYLE(ACTION= LANG\"`) || !strings.Contains(js.body, `sheet.replaceSync("`) || !strings.Contains(js.body, `fetch("http`) || !strings.Contains(js.body, `box.lang = "en";`) {
		t.Errorf("script with names in a parameter: %s", js.body)
	}
}

// Each tenant's forms are at its own host, from one process, but in a pre-production, where it may be the production's; its older hosts, and the function's own, go on serving.
func TestFormsAreAtTheTenantsOwnHost(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for tenant, form := range map[string][]string{"acme": {"forms.acme.example", "old.acme.example"}, "brava": {"forms.brava.example"}} {
		if _, err := w.admin.SetHosts(t.Context(), tenant, []string{"links." + tenant + ".example"}, form); err != nil {
			t.Fatal(err)
		}
	}
	at := func(host, method, path, body string, header ...string) answer {
		t.Helper()
		r := w.request(method, path, body, append([]string{"Content-Type", "application/x-www-form-urlencoded"}, header...)...)
		if host != "" {
			r.Host = host
		}
		return w.send(r)
	}
	// What is made now names the first host.
	for tenant, host := range map[string]string{"acme": "https://forms.acme.example", "brava": "https://forms.brava.example"} {
		form := "/f/" + tenant + "/newsletter"
		if a := w.post(form, good()); a.status != 200 {
			t.Fatalf("%s: %d", tenant, a.status)
		}
		if got := w.confirmURL(tenant); !strings.HasPrefix(got, host+"/y/") {
			t.Errorf("%s confirms at %s", tenant, got)
		}
		js := w.get(form + ".js").body
		if !strings.Contains(js, `fetch("`+host+form+`"`) || !strings.Contains(js, `action=\"`+host+form+`\"`) || strings.Contains(js, w.url) {
			t.Errorf("the script of %s: %s", tenant, js)
		}
	}
	// What was made before is served wherever it is asked for, and stays there.
	link := strings.TrimPrefix(w.confirmURL("acme"), "https://forms.acme.example")
	for _, host := range []string{"forms.acme.example", "old.acme.example", ""} {
		if a := at(host, http.MethodGet, newsletter, ""); a.status != 200 || !strings.Contains(a.body, `action="/f/acme/newsletter"`) {
			t.Errorf("the form at %q: %d %s", host, a.status, a.body)
		}
		if a := at(host, http.MethodGet, link, ""); a.status != 200 || !strings.Contains(a.body, "<button") {
			t.Errorf("the confirmation at %q: %d", host, a.status)
		}
	}
	// Who posts it: its own pages at any of its hosts, also where an ingress has put the function's name for them.
	for origin, want := range map[string]int{
		"https://forms.acme.example": 200, "https://old.acme.example": 200, w.url: 200,
		"https://forms.brava.example": 403, "https://links.acme.example": 403, "http://forms.acme.example": 403, "https://forms.acme.example:8443": 403, "https://forms.acme.example.evil.example": 403,
	} {
		for _, accept := range []string{"text/html", "application/json"} {
			if a := at("", http.MethodPost, newsletter, good().Encode(), "Origin", origin, "Accept", accept); a.status != want {
				t.Errorf("posted from %s: %d, want %d", origin, a.status, want)
			}
		}
		if a := at("", http.MethodOptions, newsletter, "", "Origin", origin); (a.status == 204) != (want == 200) {
			t.Errorf("asked first from %s: %d", origin, a.status)
		}
	}
	if a := at("old.acme.example", http.MethodPost, link, ""); a.status != 200 || w.state("acme") != "newsletter=granted tracking.email=granted" {
		t.Errorf("confirmed at the old host: %d, %s", a.status, w.state("acme"))
	}
	// Posted or confirmed there, what a copy made would be the production's.
	if err := w.admin.SetStage(t.Context(), postgres.Preproduction, ""); err != nil {
		t.Fatal(err)
	}
	other := good()
	other.Set("email", "luc@example.com")
	if a := w.post(newsletter, other); a.status != 200 {
		t.Fatalf("in a pre-production: %d", a.status)
	}
	if got := w.confirmURL("acme"); !strings.HasPrefix(got, w.url+"/y/") {
		t.Errorf("a pre-production confirms at %s", got)
	}
	if js := w.get(newsletter + ".js").body; strings.Contains(js, "forms.acme.example") {
		t.Errorf("the script of a pre-production: %s", js)
	}
}

// A form may leave out that the address is required, or show it only to some: nobody can be subscribed without one.
func TestNobodySignsUpWithoutAnAddress(t *testing.T) {
	t.Parallel()
	for _, input := range []spec.Input{{Field: "email"}, {Field: "email", ShowIf: &spec.Predicate{Field: &spec.FieldTest{Field: "country", Test: spec.Test{Op: spec.OpIs, Values: []spec.Value{{Text: "NO"}}}}}}} {
		f := &form{Form: &spec.Form{Inputs: []spec.Input{input}}, settings: spec.DefaultSettings()}
		if _, problems := f.check(url.Values{}, nil, "en", time.Now(), nil); len(problems) != 1 || problems[0].Text != "form.problem.required" {
			t.Errorf("problems of %+v: %v", input, problems)
		}
	}
}

// A time that is picked in a form is one of the zone in the Settings; one that brings its own zone keeps it.
func TestTimesAreOfTheSettingsZone(t *testing.T) {
	t.Parallel()
	f := &form{
		Form:     &spec.Form{Inputs: []spec.Input{{Field: "email"}, {Field: "call_at"}}},
		fields:   map[string]*spec.Field{"call_at": {Type: spec.TypeDatetime}},
		settings: &spec.Settings{Zone: "Europe/Oslo"},
	}
	for sent, want := range map[string]string{
		"2026-01-15T09:30": "2026-01-15T08:30:00Z", "2026-07-15T09:30": "2026-07-15T07:30:00Z", "2026-07-15T09:30:15": "2026-07-15T07:30:15Z",
		"2026-01-15T09:30:00Z": "2026-01-15T09:30:00Z", "2026-01-15T09:30:00+03:00": "2026-01-15T06:30:00Z",
	} {
		e, problems := f.check(url.Values{"email": {"ada@example.com"}, "call_at": {sent}}, nil, "en", time.Now(), nil)
		if len(problems) > 0 || e.Fields["call_at"] != want {
			t.Errorf("%s: %v %v, want %s", sent, e.Fields["call_at"], problems, want)
		}
	}
	if _, problems := f.check(url.Values{"email": {"ada@example.com"}, "call_at": {"2026-02-30T09:30"}}, nil, "en", time.Now(), nil); len(problems) != 1 {
		t.Errorf("a day that is not: %v", problems)
	}
}

func TestProgramsSendJSON(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	post := func(body string) answer {
		return w.send(w.request(http.MethodPost, newsletter, body, "Content-Type", "application/json"))
	}
	if a := post(`{"email": "ada@example.com", "interests": ["ski"], "consent.newsletter": true, "onda_lang": "fr"}`); a.status != 200 || !strings.Contains(a.body, `"ok":true`) || !strings.Contains(a.body, "C’est presque fait.") {
		t.Errorf("%d %s", a.status, a.body)
	}
	if got := pgtest.One[string](t, w.db, "acme", "SELECT proof->>'text' FROM consent"); got != "Oui, envoyez-moi la lettre." {
		t.Errorf("proof: %s", got)
	}
	a := post(`{"email": "ada"}`)
	var r reply
	if err := json.Unmarshal([]byte(a.body), &r); err != nil || a.status != 422 || r.Problems["email"] == "" || r.Problems["consent.newsletter"] == "" {
		t.Errorf("problems: %d %s", a.status, a.body)
	}
	for body, status := range map[string]int{`{`: 400, `[]`: 400, `{"email": {}}`: 400, `{"email": "` + strings.Repeat("x", maxBody) + `"}`: 413} {
		if a := post(body); a.status != status || a.header.Get("Content-Type") != "application/problem+json" {
			t.Errorf("%.20s: %d %s", body, a.status, a.body)
		}
	}
}

// Whoever did not confirm and signs up once more has as long for it as everybody: the contact does not go with its first submission.
func TestSigningUpOnceMore(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const day = 24 * time.Hour
	for range 2 {
		if a := w.post(newsletter, w.fill(good())); a.status != 200 {
			t.Fatalf("submit: %d", a.status)
		}
		w.move("acme", 6*day)
	}
	link := w.confirmURL("acme")
	pgtest.In(t, w.db, "acme", func(ctx context.Context, tx *postgres.Tx) error {
		_, err := contact.Expire(ctx, tx, drainer, 10)
		return err
	})
	if a := w.post(link, nil); a.status != 200 || w.state("acme") != "newsletter=granted tracking.email=granted" {
		t.Errorf("confirm the second after the first is over: %d, %s", a.status, w.state("acme"))
	}
	if got := pgtest.One[bool](t, w.db, "acme", "SELECT expires_at IS NULL FROM contact"); !got {
		t.Error("the contact is to go all the same")
	}
}
