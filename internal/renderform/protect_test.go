package renderform

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/onda-run/onda/internal/browsertest"
	"github.com/onda-run/onda/internal/fn"
	"github.com/onda-run/onda/internal/pgtest"
)

// solve does the work that a page asks for.
func solve(values url.Values) url.Values {
	for n := 0; ; n++ {
		values.Set(proofInput, strconv.Itoa(n))
		if worked(values) {
			return values
		}
	}
}

// A page that is sent at once, or after a day, or with another's moment, is shown again; what was filled in stays, and the next time it goes in.
func TestMoments(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.pause.Store(0)
	moment := func(path string) string { return w.hidden(path).Get(momentInput) }
	for _, c := range []struct {
		name   string
		age    time.Duration
		moment func(own string) string
		says   string
	}{
		{"at once", 0, nil, "That was quick"},
		{"a day later", maxAge + time.Second, nil, "open for long"},
		{"forged", time.Minute, func(own string) string { return own[:len(own)-2] + "AA" }, "open for long"},
		{"of another second", time.Minute, func(own string) string { return "0" + own }, ""}, // the same number
		{"earlier than it was", 0, func(own string) string { return "a" + own[1:] }, "open for long"},
		{"of another form", time.Minute, func(string) string { return moment("/f/acme/offers") }, "open for long"},
		{"of another tenant", time.Minute, func(string) string { return moment("/f/brava/newsletter") }, "open for long"},
		{"no moment", time.Minute, func(string) string { return "x" }, "open for long"},
		{"two seconds", minAge, nil, ""},
	} {
		values := w.fill(good())
		if c.moment != nil {
			values.Set(momentInput, c.moment(values.Get(momentInput)))
		}
		w.clock.Add(int64(c.age))
		a := w.post(newsletter, values)
		if c.says == "" {
			if a.status != 200 {
				t.Errorf("%s: %d %s", c.name, a.status, a.body)
			}
			continue
		}
		if a.status != 422 || !strings.Contains(a.body, c.says) || !strings.Contains(a.body, `value="Ada"`) {
			t.Errorf("%s: %d %s", c.name, a.status, a.body)
			continue
		}
		again := good()
		for _, m := range hiddenInput.FindAllStringSubmatch(a.body, -1) {
			again.Set(m[1], m[2])
		}
		if again.Get(onceInput) != values.Get(onceInput) {
			t.Errorf("%s: it is another showing", c.name)
		}
		w.clock.Add(int64(minAge))
		if a := w.post(newsletter, again); a.status != 200 {
			t.Errorf("%s, sent again: %d %s", c.name, a.status, a.body)
		}
	}
	a := w.post(newsletter, w.fill(good()), "Accept", "application/json")
	var r reply
	if err := json.Unmarshal([]byte(a.body), &r); err != nil || a.status != 422 || !strings.Contains(r.Title, "That was quick") {
		t.Errorf("a program that is too quick: %d %s", a.status, a.body)
	}
}

// A form that asks for work takes what was worked for at once, what was not after some time and at a higher price, and what was not even shown never.
func TestProofOfWork(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.apply("acme", "protect: {honeypot", "protect: {proofOfWork: true, honeypot")
	w.pause.Store(0)
	if a := w.post(newsletter, good()); a.status != 422 || !strings.Contains(a.body, "open for long") {
		t.Errorf("without a moment: %d", a.status)
	}
	page := w.get(newsletter)
	if policy := page.header.Get("Content-Security-Policy"); !strings.Contains(page.body, `data-work="16"`) || !strings.Contains(policy, "script-src 'sha256-") || strings.Contains(policy, "unsafe") {
		t.Errorf("the page asks for no work, or its script may not run: %s", policy)
	}
	for _, c := range []struct {
		name   string
		change func(url.Values)
		age    time.Duration
		status int
	}{
		{"right", func(url.Values) {}, minAge, 200},
		{"too fast", func(url.Values) {}, 0, 422},
		{"none", func(v url.Values) { v.Del(proofInput) }, minAge, 422},
		{"none, slow", func(v url.Values) { v.Del(proofInput) }, minAgeUnproven, 200},
		{"wrong", func(v url.Values) { v.Set(proofInput, v.Get(proofInput)+"0") }, minAge, 422},
		{"long", func(v url.Values) { v.Set(proofInput, strings.Repeat("0", 1000)) }, minAge, 422},
		{"of another page", func(v url.Values) { v.Set(onceInput, newOnce()) }, minAge, 422},
		{"of no page", func(v url.Values) { v.Set(onceInput, "x") }, minAge, 422},
	} {
		values := solve(w.fill(good()))
		c.change(values)
		w.clock.Add(int64(c.age))
		if a := w.post(newsletter, values); a.status != c.status {
			t.Errorf("%s: %d, want %d", c.name, a.status, c.status)
		}
	}
	before := w.count("acme", "submission")
	values := solve(w.fill(good()))
	w.clock.Add(int64(minAge))
	for range 3 {
		if a := w.post(newsletter, values); a.status != 200 {
			t.Errorf("sent again: %d", a.status)
		}
	}
	if n := w.count("acme", "submission") - before; n != 1 {
		t.Errorf("one answer made %d submissions", n)
	}
}

// What a tenant's forms take in a minute is one number for all processes, and another tenant's is its own.
func TestTheTenantsLimit(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const perMinute = 40
	w.clock.Store(time.Now().Truncate(time.Minute).UnixNano()) // the processes' minute ends when the test says so
	processes := []*Forms{w.forms(perMinute), w.forms(perMinute)}
	minutes := pgtest.One[time.Time](t, w.db, "acme", "SELECT date_trunc('minute', onda.now())")
	took := 0
	for i := range 3 * perMinute {
		err := processes[i%2].limit.take(t.Context(), "acme", 1)
		if err == nil {
			took++
		} else if !errors.Is(err, errFull) {
			t.Fatal(err)
		}
	}
	if passed := pgtest.One[int](t, w.db, "acme", "SELECT count(*) FROM allowance WHERE kind = 'forms'"); took != perMinute*passed {
		t.Errorf("%d were taken in %d minutes from %s", took, passed, minutes)
	}
	if err := processes[0].limit.take(t.Context(), "brava", 1); err != nil {
		t.Errorf("the other tenant: %v", err)
	}
	w.clock.Add(int64(time.Minute))
	w.move("acme", time.Minute)
	if err := processes[1].limit.take(t.Context(), "acme", unprovenCost); err != nil {
		t.Errorf("in the next minute: %v", err)
	}
	pgtest.Exec(t, w.db, "acme", "UPDATE allowance SET n = 60000 WHERE kind = 'forms'")
	w.clock.Add(int64(time.Minute))
	a := w.post(newsletter, good())
	if passed := pgtest.One[int](t, w.db, "acme", "SELECT count(*) FROM allowance WHERE kind = 'forms' AND n < 60000"); passed == 0 && (a.status != 429 || a.header.Get("Retry-After") != "60") {
		t.Errorf("a form when the minute is full: %d %v", a.status, a.header)
	}
}

// A person never sees the work: the form goes in when it is done.
func TestWorkInABrowser(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.apply("acme", "protect: {honeypot", "protect: {proofOfWork: true, honeypot")
	b := browsertest.Start(t)
	for i, v := range browsertest.Visitors() {
		w.pause.Store(int64(minAge))
		if v.NoScripts {
			w.pause.Store(int64(minAgeUnproven))
		}
		tab := b.Open(t, v, w.url+newsletter)
		tab.Type("#onda-newsletter-email", "visitor"+strconv.Itoa(i)+"@example.com")
		tab.Tick("#onda-newsletter-consent-newsletter", false)
		tab.Submit("button")
		if got := tab.Text("main"); !strings.Contains(got, "Check your inbox") {
			t.Errorf("%s: %s", v.Name, got)
		}
	}
}

// Processes that live for one submission each use up no more of a tenant's minute than they take.
func TestShortLivesUseUpNoLimit(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t).DB(t)
	at := time.Now()
	now := func() time.Time { return at }
	pgtest.Exec(t, db, pgtest.Acme, "DELETE FROM allowance")
	taken := 0
	for range 200 {
		if err := newLimiter(db, now, 100).take(t.Context(), pgtest.Acme, 1); err == nil {
			taken++
		} else if !errors.Is(err, errFull) {
			t.Fatal(err)
		}
	}
	if taken < 100 || taken > 200 { // a minute may end in between, which gives another hundred
		t.Errorf("%d of 200 were taken, where 100 are allowed in a minute", taken)
	}
	long, n := newLimiter(db, now, 1_000_000), 0
	for range 500 { // one that goes on reserves ever more at once
		if err := long.take(t.Context(), pgtest.Brava, 1); err == nil {
			n++
		}
	}
	if n != 500 {
		t.Errorf("%d of 500 were taken by one process", n)
	}
}

// Consent is to the text that was shown: what is sent from a page of before the form was changed comes back with the text of now, and the box is empty.
func TestAFormThatChangedMeanwhile(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	values := w.fill(good())
	w.apply("acme", "Yes, send me the newsletter. I can unsubscribe at any time.", "Yes, and give my address to others.")
	w.clock.Add(int64(time.Second))
	a := w.post(newsletter, values)
	if a.status != 422 || !strings.Contains(a.body, "was changed on the way") || !strings.Contains(a.body, "Yes, and give my address to others.") || strings.Contains(a.body, `name="consent.newsletter" value="on" checked`) {
		t.Errorf("a page of before: %d %s", a.status, a.body)
	}
	if !strings.Contains(a.body, `value="Ada"`) {
		t.Error("what was entered is gone")
	}
	if n := w.count("acme", "consent") + w.count("acme", "contact") + w.count("acme", "submission"); n != 0 {
		t.Errorf("%d rows of it were stored", n)
	}
	for _, m := range hiddenInput.FindAllStringSubmatch(a.body, -1) {
		values.Set(m[1], m[2])
	}
	if a := w.post(newsletter, values); a.status != 200 {
		t.Errorf("sent again: %d %s", a.status, a.body)
	}
	if got := pgtest.One[string](t, w.db, "acme", "SELECT concat_ws(' ', proof->>'version', proof->>'text') FROM consent WHERE purpose = 'newsletter'"); got != "2 Yes, and give my address to others." {
		t.Errorf("proof: %s", got)
	}
}

// Bodies that come slowly are bounded together: there may be as many as there are connections.
func TestBodiesInHandAreBounded(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const room = 10_000
	w.served.bodies = fn.NewBodies(room)
	values := good().Encode() + "&x="
	long := strings.Repeat("x", 200)
	for kind, late := range map[string]string{
		"application/x-www-form-urlencoded": "email=" + long, "application/json": `{"email": "` + long + `"}`,
		"multipart/form-data; boundary=x": "--x\r\nContent-Disposition: form-data; name=email\r\n\r\n" + long + "\r\n--x--\r\n",
	} {
		slow, write := io.Pipe()
		r, err := http.NewRequest(http.MethodPost, w.url+newsletter, slow)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		var first sync.WaitGroup
		first.Go(func() {
			if a := w.send(r); a.status != 200 {
				t.Errorf("the slow one: %d %s", a.status, a.body)
			}
		})
		if _, err := io.WriteString(write, values+strings.Repeat("x", room-50-len(values))); err != nil {
			t.Fatal(err)
		}
		for w.served.bodies.Left() > 50 { // until it was read
			runtime.Gosched()
		}
		if a := w.send(w.request(http.MethodPost, newsletter, late, "Content-Type", kind)); a.status != 503 || a.header.Get("Retry-After") == "" {
			t.Errorf("a body too many, %s: %d %s", kind, a.status, a.body)
		}
		if err := write.Close(); err != nil {
			t.Fatal(err)
		}
		first.Wait()
		if a := w.post(newsletter, w.fill(good())); a.status != 200 {
			t.Errorf("after it: %d %s", a.status, a.body)
		}
		for w.served.bodies.Left() != room { // an answer may come before its request has ended
			runtime.Gosched()
		}
	}
}
