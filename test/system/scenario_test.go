package system

import (
	"fmt"
	"hash/fnv"
	"html"
	"math/rand/v2"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"
)

// begin is when the story begins on the tenants' clocks: a Monday, so that no cap's period ends in the middle of it.
var begin = time.Date(2031, 3, 3, 9, 0, 0, 0, time.UTC)

const (
	browser = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0 Safari/537.36"
	proxy   = "Mozilla/5.0 (Windows NT 5.1; rv:11.0) Gecko Firefox/11.0 (via ggpht.com GoogleImageProxy)"
	scanner = "Mozilla/5.0 (compatible; SafeLinksScanner/1.0; +https://scanner.example/bot)"
)

const (
	contacts = 600
	signUps  = 15
	orders   = 12
)

// play lets the same things happen in each tenant at the same moments on its clock: contacts come in, mails go out, and people do what they do.
func (w *world) play(tenants ...string) {
	w.t.Helper()
	w.setClock(tenants, begin)
	for _, tenant := range tenants {
		w.apply(tenant, company()...)
		w.people(tenant)
	}
	w.until(tenants, begin.Add(time.Hour))
	for _, tenant := range tenants {
		w.launch(tenant, "onboarding")
		w.launch(tenant, "season")
	}
	w.until(tenants, begin.Add(2*time.Hour)) // so that it is the same mail that a mailbox turns away at first
	for _, tenant := range tenants {
		w.launch(tenant, "spring-news")
	}
	w.until(tenants, begin.Add(25*time.Hour))
	w.each(tenants, "spring-news", w.react)
	w.until(tenants, begin.Add(26*time.Hour))
	w.each(tenants, "guide", w.click)
	for _, tenant := range tenants {
		w.signUp(tenant)
	}
	w.until(tenants, begin.Add(27*time.Hour))
	w.confirm(tenants)
	w.until(tenants, begin.Add(30*time.Hour))
	w.each(tenants, "welcome", w.click)
	for _, tenant := range tenants {
		w.buy(tenant)
		w.receipts(tenant)
	}
	w.until(tenants, begin.Add(5*24*time.Hour))
	w.each(tenants, "reminder", w.click)
	w.each(tenants, "map", w.click)
	w.until(tenants, begin.Add(14*24*time.Hour))
}

// people imports three lists: those who agreed to the newsletter and to tracking, to the newsletter only, and to nothing. Some rows cannot be imported, and some
// addresses are of mailboxes that refuse.
func (w *world) people(tenant string) {
	w.t.Helper()
	random := rand.New(rand.NewPCG(7, 7))
	list := func(from, to int) string {
		var b strings.Builder
		b.WriteString("external_id,email,first_name,country,locale,plan\n")
		for n := from; n < to; n++ {
			fmt.Fprintf(&b, "c-%04d,%s,%s,%s,%s,%s\n", n, address(tenant, n), pick(random, "Ada", "Bjørn", "Inês", "Håkon", `"O'Neil, <b>"`),
				pick(random, "NO", "NO", "SE", "DK", "FI", "IS", "FR"), pick(random, "en", "en", "fr", "pt"), pick(random, "free", "free", "lifetime"))
		}
		return b.String()
	}
	const tracked, silent = contacts * 2 / 5, contacts / 20
	for _, l := range []struct {
		csv      string
		rejected int
		consent  []string
	}{
		{list(0, tracked) + "bad-1,no address at all,X,NO,en,free\nbad-2,a@b@c,X,NO,en,free\n", 2, []string{"newsletter", "tracking.email"}},
		{list(tracked, contacts-silent) + "bad-3,ok@" + tenant + ".example,X,NO,en,platinum\n", 1, []string{"newsletter"}},
		{list(contacts-silent, contacts), 0, nil},
	} {
		if res := w.load(tenant, l.csv, l.consent...); res.Rejected != l.rejected || res.Rows != res.Made+res.Rejected {
			w.t.Errorf("import: %+v, want %d rejected", res, l.rejected)
		}
	}
}

// address is of the nth contact; one in a few belongs to a mailbox that does not exist, is full at first, is slow, or refuses us.
func address(tenant string, n int) string {
	kind := ""
	switch n % 60 {
	case 7:
		kind = "nobody."
	case 17, 37:
		kind = "full."
	case 27:
		kind = "busy."
	case 47:
		kind = "blocked."
	}
	return fmt.Sprintf("%sc%04d@%s.example", kind, n, tenant)
}

func pick(random *rand.Rand, of ...string) string { return of[random.IntN(len(of))] }

// dice tells people apart, the same in every world and tenant.
func dice(l letter, sides int) int {
	h := fnv.New32a()
	_, _ = h.Write([]byte(local(l.to)))
	return int(h.Sum32()>>8) % sides
}

// each lets every recipient of an email do something, in the order of their addresses.
func (w *world) each(tenants []string, email string, do func(tenant string, l letter)) {
	w.t.Helper()
	names := map[string]map[int64]string{}
	numbers := w.numbers()
	for _, tenant := range tenants {
		names[tenant] = w.emailNames(tenant)
	}
	all := w.letters()
	slices.SortFunc(all, func(a, b letter) int { return strings.Compare(a.to, b.to) })
	n := 0
	for _, l := range all {
		tenant := numbers[l.tenant]
		if names[tenant][l.delivery] == email {
			do(tenant, l)
			n++
		}
	}
	if n == 0 {
		w.t.Fatalf("nobody got a mail %s", email)
	}
}

// react is what recipients of the broadcast do: read, click, look through a proxy or a scanner, unsubscribe by each of three ways, change preferences, complain, bounce.
func (w *world) react(tenant string, l letter) {
	w.t.Helper()
	form := http.Header{"User-Agent": {browser}, "Content-Type": {"application/x-www-form-urlencoded"}}
	switch n := dice(l, 40); {
	case n < 5:
		w.click(tenant, l)
	case n < 10:
		w.open(l, browser)
	case n < 12:
		w.open(l, proxy)
	case n < 14:
		w.follow(l, http.MethodHead, scanner)
		w.follow(l, http.MethodGet, browser) // a program that pretends to be a person
		w.must(http.MethodGet, l.unsubscribe, http.Header{"User-Agent": {scanner}}, "", 200)
	case n == 14:
		for range 2 { // mail programs repeat it
			w.must(http.MethodPost, l.unsubscribe, form, "List-Unsubscribe=One-Click", 200)
		}
	case n == 15:
		h := w.secret(tenant, "message/rfc822")
		h.Set("Onda-Recipient", l.mailto)
		w.must(http.MethodPost, w.URL()+"/bounces/"+tenant, h, crlf("From: <"+l.to+">\nTo: <"+l.mailto+">\nSubject: unsubscribe\n\n"), 200)
	case n == 16:
		w.must(http.MethodPost, l.page("p"), form, "everything=1", 200)
	case n == 17, n == 18:
		report := abuseReport(l)
		if n == 18 {
			report = bounceReport(l)
		}
		h := w.secret(tenant, "message/rfc822")
		h.Set("Onda-Recipient", l.returnPath)
		for range 2 { // reports come more than once
			w.must(http.MethodPost, w.URL()+"/bounces/"+tenant, h, report, 200)
		}
	case n == 19:
		w.must(http.MethodGet, l.page("w"), http.Header{"User-Agent": {browser}}, "", 200)
	}
}

// click lets half of the recipients of a mail open it and follow a link of it, some of them twice.
func (w *world) click(_ string, l letter) {
	w.t.Helper()
	n := dice(l, 7)
	if n > 3 {
		return
	}
	w.open(l, browser)
	w.follow(l, http.MethodGet, browser)
	if n == 0 {
		w.follow(l, http.MethodGet, browser)
	}
}

// open loads the pixel, where there is one.
func (w *world) open(l letter, agent string) {
	w.t.Helper()
	if l.pixel != "" {
		w.must(http.MethodGet, l.pixel, http.Header{"User-Agent": {agent}}, "", 200)
	}
}

// follow follows a link of the mail.
func (w *world) follow(l letter, method, agent string) {
	w.t.Helper()
	if len(l.links) == 0 {
		w.t.Fatalf("a mail to %s has no tracked links", local(l.to))
	}
	w.must(method, l.links[dice(l, len(l.links))], http.Header{"User-Agent": {agent}}, "", 302, 303, 307)
}

var (
	hidden = regexp.MustCompile(`<input[^>]*type="hidden"[^>]*>`)
	named  = regexp.MustCompile(`name="([^"]*)"`)
	valued = regexp.MustCompile(`value="([^"]*)"`)
)

// fill sends the form of a page with its hidden inputs, as a browser does.
func (w *world) fill(page string, header http.Header, fields url.Values) {
	w.t.Helper()
	values := url.Values{}
	for _, input := range hidden.FindAllString(w.must(http.MethodGet, page, header, "", 200), -1) {
		name, value := named.FindStringSubmatch(input), valued.FindStringSubmatch(input)
		if name != nil && value != nil {
			values.Set(html.UnescapeString(name[1]), html.UnescapeString(value[1]))
		}
	}
	values.Del("onda_moment") // nobody waits here as long as a person does who fills it in
	for k, v := range fields {
		values[k] = v
	}
	header = header.Clone()
	header.Set("Content-Type", "application/x-www-form-urlencoded")
	for range 2 { // an impatient visitor
		w.must(http.MethodPost, page, header, values.Encode(), 200, 303)
	}
}

// signUp fills in the form for people who are new, and for some who are contacts already.
func (w *world) signUp(tenant string) {
	w.t.Helper()
	for i := range signUps {
		who := fmt.Sprintf("new%02d@%s.example", i, tenant)
		if i%5 == 4 {
			who = address(tenant, contacts-1-i) // of those who had agreed to nothing
		}
		fields := url.Values{"email": {who}, "first_name": {"Eira"}, "country": {"NO"}, "consent.newsletter": {"on"}}
		if i%2 == 0 {
			fields.Set("consent.tracking.email", "on")
		}
		w.fill(w.URL()+"/f/"+tenant+"/newsletter", http.Header{"User-Agent": {browser}, "X-Forwarded-For": {fmt.Sprintf("198.51.100.%d", i)}}, fields)
	}
}

// confirm lets all but a few of those who signed up press the button behind the link of their mail.
func (w *world) confirm(tenants []string) {
	w.t.Helper()
	w.each(tenants, "confirm-newsletter", func(_ string, l letter) {
		if dice(l, 6) > 0 {
			w.fill(l.page("y"), http.Header{"User-Agent": {browser}}, nil)
		}
	})
}

// buy lets some contacts order something, as their shop tells it.
func (w *world) buy(tenant string) {
	w.t.Helper()
	for i := range orders {
		body := fmt.Sprintf(`{"messageId": "order-%d", "userId": "c-%04d", "event": "order.placed", "properties": {"total": %d}}`, i, i*11, 50+20*i)
		for range 2 {
			w.must(http.MethodPost, w.URL()+"/v1/track", w.secret(tenant, "application/json"), body, 200, 202)
		}
	}
}

// receipts asks for transactional mails, each twice under its key; one to somebody who was never heard of.
func (w *world) receipts(tenant string) {
	w.t.Helper()
	for i := range 4 {
		to := address(tenant, 7*i)
		if i == 3 {
			to = "stranger@" + tenant + ".example"
		}
		h := w.secret(tenant, "application/json")
		h.Set("Idempotency-Key", fmt.Sprint("receipt-", i))
		body := fmt.Sprintf(`{"to": %q, "email": "receipt", "data": {"number": "R-%d", "total": 5, "currency": "NOK", "lines": []}}`, to, i)
		for range 2 {
			w.must(http.MethodPost, w.URL()+"/v1/emails", h, body, 202)
		}
	}
}
