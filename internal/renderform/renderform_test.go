package renderform

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"testing/fstest"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2"

	"github.com/onda-run/onda/internal/apply"
	"github.com/onda-run/onda/internal/event/eventtest"
	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/postgres"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

const documents = `
apiVersion: onda/v1
kind: Settings
metadata: {name: settings, title: "Sail & Ski"}
spec: {zone: Europe/Oslo, stages: [subscriber]}
---
apiVersion: onda/v1
kind: Topic
metadata: {name: newsletter}
spec: {title: {en: Newsletter, fr: Lettre d’information}, public: true}
---
apiVersion: onda/v1
kind: Topic
metadata: {name: offers, title: Offers}
spec: {optIn: single, public: true}
---
apiVersion: onda/v1
kind: Field
metadata: {name: first_name, title: First name}
spec: {type: text, visitorWritable: true}
---
apiVersion: onda/v1
kind: Field
metadata: {name: country, title: Country}
spec: {type: country, visitorWritable: true}
---
apiVersion: onda/v1
kind: Field
metadata: {name: company, title: Company}
spec: {type: text, visitorWritable: true}
---
apiVersion: onda/v1
kind: Field
metadata: {name: interests, title: Interests}
spec: {type: multiselect, options: [ski, sail], visitorWritable: true}
---
apiVersion: onda/v1
kind: Field
metadata: {name: locale, title: Language}
spec: {type: language, visitorWritable: true}
---
apiVersion: onda/v1
kind: Email
metadata: {name: confirm-newsletter}
spec:
  transactional: true
  from: "Sail & Ski <hello@acme.example>"
  subject: Please confirm
  html: '<p><a href="{{ confirm_url }}">Confirm</a></p>'
---
apiVersion: onda/v1
kind: Email
metadata: {name: welcome}
spec: {topic: newsletter, from: "Sail & Ski <hello@acme.example>", subject: Welcome, html: '<p>Hello <a href="{{ unsubscribe_url }}">Unsubscribe</a></p>'}
---
apiVersion: onda/v1
kind: Segment
metadata: {name: everyone}
spec: {where: {field: email, exists: true}}
---
apiVersion: onda/v1
kind: Campaign
metadata: {name: onboarding}
spec: {topic: newsletter, enter: [{segment: everyone}], steps: [{send: {email: welcome}}]}
---
apiVersion: onda/v1
kind: Form
metadata: {name: newsletter}
spec:
  locales:
    default: en
    texts:
      en: {title: Snow in your inbox, intro: "Twice a month we write of snow, trips and gear that lasts.", submit: Sign me up, email: Email address, first_name: First name, country: Country, company: Company, interests: What do you like?, interests.ski: Skiing, interests.sail: Sailing, message: Anything to tell us?, news: "Yes, send me the newsletter. I can unsubscribe at any time.", tracking: You may see which mails I open and which links I follow., thanks: Nearly there. We have sent you a mail.}
      fr: {title: La neige dans votre boîte, intro: "Deux fois par mois, de la neige, des sorties et du matériel.", submit: M’inscrire, email: Adresse e-mail, first_name: Prénom, country: Pays, company: Entreprise, interests: Qu’aimez-vous ?, interests.ski: Ski, interests.sail: Voile, message: Autre chose ?, news: "Oui, envoyez-moi la lettre.", tracking: Vous pouvez voir ce que j’ouvre., thanks: C’est presque fait.}
  inputs:
    - {field: email, required: true}
    - {field: first_name}
    - {field: country, as: select}
    - {field: company, required: true, showIf: {field: country, in: [FR, BE]}}
    - {field: interests}
    - {name: message, type: textarea, maxLength: 200, keep: 90d}
    - {consent: newsletter, label: news, required: true}
    - {consent: tracking.email, label: tracking}
    - {hidden: utm, from: query}
  protect: {honeypot: true, perAddress: 30/h, blockDomains: [mailinator.com]}
  confirm: {email: confirm-newsletter, expires: 7d}
  submitted: [{tag: {add: [web]}}]
  confirmed: [{campaign: {enter: onboarding}}, {tag: {add: [confirmed], remove: [web]}}, {score: {add: 5}}, {stage: subscriber}]
  result: {message: thanks}
  origins: ["https://shop.example"]
---
apiVersion: onda/v1
kind: Form
metadata: {name: offers}
spec:
  locales: {default: en, texts: {en: {title: Offers, submit: Send, email: Email, text: Send me offers.}}}
  inputs: [{field: email, required: true}, {consent: offers, label: text}]
  protect: {perAddress: 2/h}
  result: {redirect: "https://shop.example/thanks"}
`

// world is a database with the same forms in both tenants, and the function before it.
type world struct {
	t     *testing.T
	d     *pgtest.Database
	db    *postgres.DB
	admin *postgres.Admin
	url   string
	// clock is the function's. Each request comes pause after the one before.
	clock, pause atomic.Int64
	served       *Forms
}

func newWorld(t *testing.T) *world {
	t.Helper()
	d := pgtest.New(t)
	db := d.DB(t)
	for _, tenant := range []string{pgtest.Acme, pgtest.Brava} {
		if _, _, err := apply.Directory(t.Context(), db, tenant, fstest.MapFS{"all.yaml": {Data: []byte(documents)}}, nil); err != nil {
			t.Fatal(err)
		}
	}
	return (&world{t: t, d: d, admin: d.Admin(t)}).anew()
}

// anew is the same world with the function started anew.
func (w *world) anew() *world {
	t := w.t
	t.Helper()
	w = &world{t: t, d: w.d, db: w.d.DB(t), admin: w.admin}
	w.clock.Store(time.Now().UnixNano())
	w.pause.Store(int64(3 * time.Second))
	var h http.Handler
	s := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		w.clock.Add(w.pause.Load())
		h.ServeHTTP(rw, r)
	}))
	t.Cleanup(s.Close)
	w.url = s.URL
	var err error
	w.served = w.forms(60_000)
	if h, err = w.served.Handler(); err != nil {
		t.Fatal(err)
	}
	return w
}

// forms is a process of the function.
func (w *world) forms(perMinute int) *Forms {
	return newForms(Config{FormURL: w.url, Proxies: 1, PerMinute: perMinute}, w.db, func() time.Time { return time.Unix(0, w.clock.Load()) })
}

type answer struct {
	status int
	header http.Header
	body   string
}

func (w *world) send(r *http.Request) answer {
	w.t.Helper()
	client := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	res, err := client.Do(r)
	if err != nil {
		w.t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	return answer{res.StatusCode, res.Header, string(b)}
}

func (w *world) request(method, path, body string, header ...string) *http.Request {
	w.t.Helper()
	if !strings.HasPrefix(path, "http") {
		path = w.url + path
	}
	r, err := http.NewRequest(method, path, strings.NewReader(body))
	if err != nil {
		w.t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	return r
}

func (w *world) get(path string, header ...string) answer {
	w.t.Helper()
	return w.send(w.request(http.MethodGet, path, "", header...))
}

var hiddenInput = regexp.MustCompile(`<input type="hidden" name="([^"]*)" value="([^"]*)">`)

// hidden are the hidden inputs of a page.
func (w *world) hidden(path string) url.Values {
	w.t.Helper()
	out := url.Values{}
	for _, m := range hiddenInput.FindAllStringSubmatch(w.get(path).body, -1) {
		out.Set(m[1], m[2])
	}
	return out
}

// fill opens the form and gives what a browser would send: its hidden inputs and the values.
func (w *world) fill(values url.Values) url.Values {
	w.t.Helper()
	out := w.hidden(newsletter)
	for k, v := range values {
		out[k] = v
	}
	return out
}

func (w *world) post(path string, values url.Values, header ...string) answer {
	w.t.Helper()
	return w.send(w.request(http.MethodPost, path, values.Encode(), append([]string{"Content-Type", "application/x-www-form-urlencoded"}, header...)...))
}

// confirmURL is the link in the newest confirmation mail.
func (w *world) confirmURL(tenant string) string {
	return pgtest.One[string](w.t, w.db, tenant, "SELECT data->>'confirm_url' FROM request ORDER BY delivery DESC LIMIT 1")
}

// drain posts what waits in the outbox, and checks every event.
func (w *world) drain(tenant string) (types []string) {
	w.t.Helper()
	_, err := w.db.Drain(context.Background(), tenant, drainer, func(_ context.Context, _ string, e cloudevents.Event) error {
		eventtest.Validate(w.t, e)
		types = append(types, strings.TrimSuffix(strings.TrimPrefix(e.Type(), "onda."), ".v1"))
		return nil
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return types
}

func (w *world) move(tenant string, d time.Duration) {
	w.t.Helper()
	if _, err := w.admin.MoveClock(context.Background(), tenant, d); err != nil {
		w.t.Fatal(err)
	}
}
