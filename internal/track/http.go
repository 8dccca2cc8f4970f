package track

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/onda-run/onda/internal/compose"
	"github.com/onda-run/onda/internal/contact"
	"github.com/onda-run/onda/internal/fn"
	"github.com/onda-run/onda/internal/page"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/spec"
	"github.com/onda-run/onda/internal/token"
)

//go:embed pages onda.js
var assets embed.FS

const maxForm = 64 << 10 // bytes of a form that a person or a mail program posts

// maxBodies bounds the bytes of bodies in hand, of all requests together, of which anybody may begin as many as there are connections.
const maxBodies = 24 << 20

// pixel is a transparent GIF of one dot.
var pixel = []byte("GIF89a\x01\x00\x01\x00\x80\x00\x00\x00\x00\x00\xff\xff\xff!\xf9\x04\x01\x00\x00\x00\x00,\x00\x00\x00\x00\x01\x00\x01\x00\x00\x02\x02D\x01\x00;")

// errNotFound answers 404.
var errNotFound = errors.New("not found")

// server answers the public HTTP of design section 7.
type server struct {
	*Tracker
	pages    *page.Pages
	keys     *programKeys
	settings *cache[string, *spec.Settings] // of tenants
}

// brand is whose pages they are, and how they look.
type brand struct {
	title string
	theme spec.Theme
}

// Handler makes the public HTTP of track.
func (t *Tracker) Handler() (http.Handler, error) {
	pages, err := page.New(assets, "pages/*.html")
	if err != nil {
		return nil, err
	}
	pages.Preproduction = t.db.Preproduction
	text, err := assets.ReadFile("onda.js")
	if err != nil {
		return nil, fmt.Errorf("read onda.js: %w", err)
	}
	s := &server{Tracker: t, pages: pages, keys: newProgramKeys(t.hasProgramKey), settings: newCache[string, *spec.Settings](1_000, time.Minute)}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /o/{file}", s.open)
	mux.HandleFunc("GET /c/{token}", s.proven(token.Click, s.click))
	mux.HandleFunc("GET /u/{token}", s.proven(token.Unsubscribe, s.unsubscribePage))
	mux.HandleFunc("POST /u/{token}", s.proven(token.Unsubscribe, s.unsubscribeNow))
	mux.HandleFunc("GET /p/{token}", s.proven(token.Preferences, s.preferencesPage))
	mux.HandleFunc("POST /p/{token}", s.proven(token.Preferences, s.preferencesSave))
	mux.HandleFunc("GET /p/{token}/stored", s.proven(token.Preferences, s.storedPage))
	mux.HandleFunc("POST /p/{token}/stored", s.proven(token.Preferences, s.storedAsk))
	mux.HandleFunc("GET /p/{token}/copy", s.proven(token.Preferences, s.storedCopy))
	mux.HandleFunc("GET /w/{token}", s.proven(token.WebView, s.webView))
	mux.Handle("GET /onda.js", newScript(text))
	mux.HandleFunc("POST /e", s.api(s.event))
	mux.HandleFunc("OPTIONS /e", preflight)
	for _, call := range []string{typeIdentify, typeTrack, typePage, typeScreen, typeGroup, typeAlias, callBatch} {
		for _, path := range []string{"/v1/" + call, "/v1/" + call[:1]} { // Segment's SDK for browsers calls the short ones
			mux.HandleFunc("POST "+path, s.api(func(w http.ResponseWriter, r *http.Request) error { return s.segment(w, r, call) }))
			mux.HandleFunc("OPTIONS "+path, preflight)
		}
	}
	mux.HandleFunc("GET /v1/projects/{key}/settings", s.api(s.segmentSettings))
	mux.HandleFunc("POST /v1/m", s.api(noMetrics))
	mux.HandleFunc("OPTIONS /v1/m", preflight)
	mux.HandleFunc("/", s.nothing)
	return mux, nil
}

// proven answers requests whose token is proven, and errors with a page that people can read: once the token says whose it is, it looks as the tenant's do.
func (s *server) proven(want token.Purpose, handle func(w http.ResponseWriter, r *http.Request, tenant string, c token.Claims) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		tenant, c, err := s.claims(r, r.PathValue("token"), want)
		if err == nil {
			err = handle(w, r, tenant, c)
		}
		if err != nil {
			s.fail(w, r, tenant, err)
		}
	}
}

func (s *server) fail(w http.ResponseWriter, r *http.Request, tenant string, err error) {
	status := http.StatusNotFound
	var large *http.MaxBytesError
	switch {
	case errors.Is(err, errNotFound), errors.Is(err, postgres.ErrUnknownTenant): // which was deleted since its keys were read
	case errors.As(err, &large):
		status = http.StatusRequestEntityTooLarge
	default:
		fn.LogError(r.Context(), err)
		status, _ = fn.Status(err)
	}
	if status == http.StatusServiceUnavailable && strings.HasPrefix(r.URL.Path, "/o/") { // nobody reads the page of an image, and it costs more than a hit that is stored
		w.Header().Set("Retry-After", "5")
		w.Header().Set("Cache-Control", "no-store")
		w.WriteHeader(status)
		return
	}
	b := s.brandOf(r.Context(), tenant, status < http.StatusInternalServerError)
	if err := s.pages.ErrorOf(w, r, status, b.title, b.theme); err != nil {
		fn.LogError(r.Context(), err)
	}
}

// brandOf gives a tenant's brand for a page that says that something went wrong; none where it is not known and cannot be asked for.
func (s *server) brandOf(ctx context.Context, tenant string, ask bool) brand {
	settings, ok := s.settings.get(tenant)
	if !ok && ask && tenant != "" {
		settings, _ = s.settingsOf(ctx, tenant)
	}
	if settings == nil {
		return brand{}
	}
	return brand{settings.Title, settings.Theme}
}

// settingsOf gives a tenant's Settings, as they were within a minute; nil with an error.
func (s *server) settingsOf(ctx context.Context, tenant string) (settings *spec.Settings, err error) {
	if settings, ok := s.settings.get(tenant); ok {
		return settings, nil
	}
	err = s.db.Visit(ctx, tenant, func(ctx context.Context, tx *postgres.Tx) error {
		settings, err = contact.Settings(ctx, tx)
		return err
	})
	if err != nil {
		return nil, err
	}
	s.settings.put(tenant, settings)
	return settings, nil
}

// nothing answers what is not there, and methods that a path does not have.
func (s *server) nothing(w http.ResponseWriter, r *http.Request) {
	status := http.StatusNotFound
	switch first, _, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/"); first {
	case "u", "p":
		w.Header().Set("Allow", "GET, HEAD, POST")
		status = http.StatusMethodNotAllowed
	case "o", "c", "w", "onda.js":
		w.Header().Set("Allow", "GET, HEAD")
		status = http.StatusMethodNotAllowed
	}
	if r.Method == http.MethodGet || r.Method == http.MethodHead {
		w.Header().Del("Allow")
		status = http.StatusNotFound
	}
	if err := s.pages.Error(w, r, status); err != nil {
		fn.LogError(r.Context(), err)
	}
}

// claims proves a token and finds its tenant. Whatever is wrong with it is errNotFound.
func (s *server) claims(r *http.Request, tok string, want token.Purpose) (string, token.Claims, error) {
	c, err := token.Peek(tok, want)
	if err != nil {
		return "", c, errNotFound
	}
	tenant, err := s.db.TenantByNumber(r.Context(), c.Tenant)
	if errors.Is(err, postgres.ErrUnknownTenant) {
		return "", c, errNotFound
	}
	if err != nil {
		return "", c, err
	}
	keys, err := s.db.Keys(r.Context(), tenant)
	if errors.Is(err, postgres.ErrUnknownTenant) || errors.Is(err, postgres.ErrForeignTenant) {
		return "", c, errNotFound
	}
	if err != nil {
		return "", c, err
	}
	c, err = keys.Verifier.Verify(tok, want, time.Now())
	if err != nil {
		return "", c, errNotFound
	}
	fn.LogTenant(r.Context(), tenant)
	return tenant, c, nil
}

// private tells whether a browser asks that whoever uses it be not followed (Global Privacy Control). What people do themselves, such as following a link or leaving, works as ever.
func private(r *http.Request) bool { return r.Header.Get("Sec-GPC") == "1" }

// store stores a hit of a request.
func (s *server) store(r *http.Request, tenant string, h hit) error {
	from := page.Origin(r, s.cfg.Proxies)
	origin, err := s.db.HashOrigin(r.Context(), tenant, from)
	if err != nil {
		return err
	}
	if h.reason == "" {
		h.reason = s.scanners.now().request(h.kind, r.Method, r.UserAgent(), from, prefetched(r.Header))
	}
	h.method, h.agent, h.origin, h.nameless = r.Method, clip(r.UserAgent(), maxAgent), origin, private(r)
	return s.hits.Add(r.Context(), tenant, h)
}

// prefetched tells whether a browser says that nobody has asked to see this yet.
func prefetched(h http.Header) bool {
	for _, name := range []string{"Sec-Purpose", "Purpose", "X-Purpose", "X-Moz"} {
		v := strings.ToLower(h.Get(name))
		if strings.Contains(v, "prefetch") || strings.Contains(v, "preview") || strings.Contains(v, "prerender") {
			return true
		}
	}
	return false
}

// open answers the pixel, and the link beside it that people cannot see: only programs that follow all links come to that, and get nothing.
func (s *server) open(w http.ResponseWriter, r *http.Request) {
	tok, unseen := strings.CutSuffix(r.PathValue("file"), compose.UnseenSuffix)
	handle := s.unseen
	if !unseen {
		var is bool
		if tok, is = strings.CutSuffix(tok, ".gif"); !is {
			s.fail(w, r, "", errNotFound)
			return
		}
		handle = s.pixel
	}
	tenant, c, err := s.claims(r, tok, token.Open)
	if err == nil {
		err = handle(w, r, tenant, c)
	}
	if err != nil {
		s.fail(w, r, tenant, err)
	}
}

func (s *server) pixel(w http.ResponseWriter, r *http.Request, tenant string, c token.Claims) error {
	if err := s.store(r, tenant, hit{kind: kindOpen, delivery: c.Delivery}); err != nil {
		return err
	}
	h := w.Header()
	page.Harden(h)
	h.Set("Content-Type", "image/gif")
	h.Set("Content-Length", strconv.Itoa(len(pixel)))
	h.Set("Cache-Control", "no-store, private")
	if r.Method != http.MethodHead {
		_, _ = w.Write(pixel)
	}
	return nil
}

func (s *server) unseen(w http.ResponseWriter, r *http.Request, tenant string, c token.Claims) error {
	if err := s.store(r, tenant, hit{kind: kindClick, delivery: c.Delivery, reason: unseen}); err != nil {
		return err
	}
	page.Harden(w.Header())
	w.Header().Set("Cache-Control", "no-store, private")
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// click leads on only when the hit is stored.
func (s *server) click(w http.ResponseWriter, r *http.Request, tenant string, c token.Claims) error {
	to, ok, err := s.linkURL(r.Context(), tenant, c.Link)
	if err != nil {
		return err
	}
	if !ok {
		return errNotFound
	}
	if err := s.store(r, tenant, hit{kind: kindClick, delivery: c.Delivery, link: c.Link}); err != nil {
		return err
	}
	if c.Delivery > 0 && r.Method == http.MethodGet && !private(r) && !prefetched(r.Header) {
		to = s.followed(r.Context(), tenant, to, r.PathValue("token"), c)
	}
	page.Harden(w.Header())
	w.Header().Set("Cache-Control", "no-store, private")
	w.Header().Set("Location", to)
	w.WriteHeader(http.StatusFound)
	return nil
}

// followed gives where a link leads: on the tenant's own site with the click's token, where the contact lets itself be known there. Nothing that goes wrong keeps anybody from getting there.
func (s *server) followed(ctx context.Context, tenant, to, tok string, c token.Claims) string {
	settings, err := s.settingsOf(ctx, tenant)
	if err == nil && leadsTo(to, settings.WebOrigins) {
		var known bool
		if known, err = s.knownOnTheSite(ctx, tenant, c.Delivery); known {
			to = withClick(to, tok)
		}
	}
	if err != nil {
		fn.LogError(ctx, fmt.Errorf("look whether a click may tell whose it is: %w", err))
	}
	return to
}

// leavingView is what the unsubscribe pages show.
type leavingView struct{ Topic, Address, Preferences string }

func (s *server) showLeaving(w http.ResponseWriter, r *http.Request, tenant string, c token.Claims, done bool) error {
	lang := s.pages.Lang(r)
	var l leaving
	err := s.db.Visit(r.Context(), tenant, func(ctx context.Context, tx *postgres.Tx) (err error) {
		l, err = readLeaving(ctx, tx, c, lang)
		return err
	})
	if err != nil {
		return err
	}
	v := page.View{Lang: lang, Brand: l.brand, Theme: l.theme, Block: "unsubscribe", Data: leavingView{l.topic, l.address, ""}}
	if l.contact != 0 {
		v.Data = leavingView{l.topic, l.address, "/p/" + l.p}
	}
	switch {
	case done:
		v.Block, v.Icon, v.Title = "unsubscribed", "done", s.pages.Text(lang, "unsubscribed.title")
	case l.topic == "":
		v.Icon, v.Title = "mail", s.pages.Text(lang, "unsubscribe.title.all")
	default:
		v.Icon, v.Title = "mail", s.pages.Text(lang, "unsubscribe.title", "topic", l.topic)
	}
	return s.pages.Write(w, r, v)
}

func (s *server) unsubscribePage(w http.ResponseWriter, r *http.Request, tenant string, c token.Claims) error {
	return s.showLeaving(w, r, tenant, c, false)
}

// unsubscribeNow is RFC 8058 section 3.1: a POST of List-Unsubscribe=One-Click in either form encoding. Some programs leave the body out or garble it, and the token says all: so it is not read.
func (s *server) unsubscribeNow(w http.ResponseWriter, r *http.Request, tenant string, c token.Claims) error {
	origin, err := s.db.HashOrigin(r.Context(), tenant, page.Origin(r, s.cfg.Proxies))
	if err != nil {
		return err
	}
	err = s.db.Visit(r.Context(), tenant, func(ctx context.Context, tx *postgres.Tx) error {
		return s.unsubscribe(ctx, tx, c, origin)
	})
	if err != nil {
		return err
	}
	return s.showLeaving(w, r, tenant, c, true)
}

// preferencesView is what the preference centre shows.
type preferencesView struct {
	Address                    string
	Topics, Privacy            []choice
	Wishes                     bool   // the rest is shown
	Pause, Tomorrow, LastPause string // dates
	Frequency                  string // what is chosen
	Frequencies                []contact.Frequency
	Saved                      saved
	Stored                     string // where it leads to what is stored
}

// privacy are the purposes of the preference centre that are not topics.
func (s *server) privacy(lang string) []choice {
	return []choice{
		{Name: contact.TrackingEmail, Title: s.pages.Text(lang, "preferences.tracking.email"), Description: s.pages.Text(lang, "preferences.tracking.email.help")},
		{Name: contact.TrackingWeb, Title: s.pages.Text(lang, "preferences.tracking.web"), Description: s.pages.Text(lang, "preferences.tracking.web.help")},
	}
}

// showPreferences shows the preference centre, and how saving it ended; where nothing was saved, with what was answered.
func (s *server) showPreferences(w http.ResponseWriter, r *http.Request, tenant string, c token.Claims, how saved, a answers) error {
	lang := s.pages.Lang(r)
	var p preferences
	var now time.Time
	err := s.db.Visit(r.Context(), tenant, func(ctx context.Context, tx *postgres.Tx) (err error) {
		now = tx.Now()
		p, err = readPreferences(ctx, tx, c, lang, s.privacy(lang))
		return err
	})
	if err != nil {
		return err
	}
	if p.contact == 0 {
		return errNotFound
	}
	if how == savedNone {
		a.fill(&p)
	}
	v := preferencesView{Address: p.address, Topics: p.topics, Privacy: p.privacy, Saved: how, Wishes: p.wishes != nil, Stored: "/p/" + r.PathValue("token") + "/stored"}
	if v.Wishes {
		today := now.In(p.zone)
		v.Tomorrow, v.LastPause = today.AddDate(0, 0, 1).Format(time.DateOnly), today.AddDate(0, 0, longestPause).Format(time.DateOnly)
		if !p.wishes.PausedUntil.IsZero() {
			v.Pause = p.wishes.PausedUntil.In(p.zone).Format(time.DateOnly)
		}
		own := p.wishes.Frequency
		v.Frequency, v.Frequencies = own.String(), []contact.Frequency{{Count: 3, Per: "week"}, {Count: 1, Per: "week"}, {Count: 2, Per: "month"}, {Count: 1, Per: "month"}}
		if own.Count > 0 && !slices.Contains(v.Frequencies, own) {
			v.Frequencies = append(v.Frequencies, own)
		}
	}
	status := http.StatusOK
	if how == savedNone {
		status = http.StatusUnprocessableEntity
	}
	return s.pages.Write(w, r, page.View{Status: status, Lang: lang, Brand: p.brand, Theme: p.theme, Title: s.pages.Text(lang, "preferences.title"), Block: "preferences", Data: v})
}

func (s *server) preferencesPage(w http.ResponseWriter, r *http.Request, tenant string, c token.Claims) error {
	return s.showPreferences(w, r, tenant, c, "", answers{})
}

func (s *server) preferencesSave(w http.ResponseWriter, r *http.Request, tenant string, c token.Claims) error {
	body := s.bodies.Open(w, r, maxForm)
	defer func() { _ = body.Close() }()
	r.Body = body
	form, err := fn.ReadForm(w, r, maxForm)
	if err != nil {
		return err
	}
	lang := s.pages.Lang(r)
	a := answers{shown: form["shown"], ticked: form["on"], everythingOff: form.Has("everything"), privacy: s.privacy(lang), lang: lang}
	a.wished, a.pause, a.frequency = form.Has("pause") && form.Has("frequency"), form.Get("pause"), form.Get("frequency")
	if a.origin, err = s.db.HashOrigin(r.Context(), tenant, page.Origin(r, s.cfg.Proxies)); err != nil {
		return err
	}
	var how saved
	err = s.db.Visit(r.Context(), tenant, func(ctx context.Context, tx *postgres.Tx) (err error) {
		how, err = s.choose(ctx, tx, c, a)
		return err
	})
	if err != nil {
		return err
	}
	return s.showPreferences(w, r, tenant, c, how, a)
}

// storedView is what the page tells of what is stored.
type storedView struct {
	Address                        string
	About, Fields, Consents, Mails []told
	ByMail                         bool // the full copy comes by mail; else a masked one is here
	Asked                          asked
	Back                           string // where it leads to the preferences
}

// How asking for a copy ended.
type asked string

const (
	askedSent    asked = "sent"
	askedLimit   asked = "limit"
	askedExpired asked = "expired" // the link to a copy is over, or nobody's
)

func (s *server) storedPage(w http.ResponseWriter, r *http.Request, tenant string, c token.Claims) error {
	return s.showStored(w, r, tenant, c, "", http.StatusOK)
}

func (s *server) showStored(w http.ResponseWriter, r *http.Request, tenant string, c token.Claims, how asked, status int) error {
	var p summary
	topics := map[string]string{}
	lang := s.pages.Lang(r)
	err := s.db.Visit(r.Context(), tenant, func(ctx context.Context, tx *postgres.Tx) (err error) {
		if p, err = readStored(ctx, tx, c); err != nil || p.contact == 0 {
			return err
		}
		all, err := readTopics(ctx, tx, p.contact)
		for _, t := range all {
			topics[t.name] = t.title(lang, p.locale)
		}
		return err
	})
	if err != nil {
		return err
	}
	if p.contact == 0 {
		return errNotFound
	}
	day := func(t time.Time) string { return t.In(p.zone).Format(time.DateOnly) }
	text := func(key string, pairs ...any) string { return s.pages.Text(lang, key, pairs...) }
	v := storedView{Address: p.address, Fields: p.fields, ByMail: p.byMail, Asked: how, Back: "/p/" + r.PathValue("token")}
	v.About = []told{
		{text("stored.since"), day(p.since)},
		{text("stored.sentmails"), strconv.Itoa(p.sent)},
		{text("stored.opens"), strconv.Itoa(p.hits[kindOpen])},
		{text("stored.clicks"), strconv.Itoa(p.hits[kindClick])},
		{text("stored.pages"), strconv.Itoa(p.facts["page.viewed"])},
		{text("stored.events"), strconv.Itoa(p.facts["event.tracked"])},
		{text("stored.visitors"), strconv.Itoa(p.visitors)},
		{text("stored.forms"), strconv.Itoa(p.forms)},
		{text("stored.segments"), strconv.Itoa(p.segments)},
	}
	if p.until != nil {
		until := text("stored.ever")
		if p.until.Year() < 9000 {
			until = text("stored.until", "date", day(*p.until))
		}
		v.About = append(v.About, told{text("stored.suppressed"), until})
	}
	for _, c := range p.consents {
		name := topics[c.purpose]
		switch c.purpose {
		case contact.TrackingEmail:
			name = text("stored.tracking.email")
		case contact.TrackingWeb:
			name = text("stored.tracking.web")
		}
		by := text("stored.how." + c.basis)
		if strings.HasPrefix(by, "stored.how.") { // there is no text for it
			by = text("stored.how.other")
		}
		v.Consents = append(v.Consents, told{cmp.Or(name, c.purpose), text("stored.state."+string(c.state), "date", day(c.at), "how", by)})
	}
	for _, m := range p.mails {
		v.Mails = append(v.Mails, told{m.title, day(m.at)})
	}
	return s.pages.Write(w, r, page.View{Status: status, Lang: lang, Brand: p.brand, Theme: p.theme, Title: text("stored.title"), Block: "stored", Data: v})
}

// storedAsk mails the link to a full copy to whom it is about.
func (s *server) storedAsk(w http.ResponseWriter, r *http.Request, tenant string, c token.Claims) error {
	err := s.db.Visit(r.Context(), tenant, func(ctx context.Context, tx *postgres.Tx) error {
		return s.askForCopy(ctx, tx, c, strings.ToLower(r.PathValue("token")))
	})
	switch {
	case errors.Is(err, errCopies):
		return s.showStored(w, r, tenant, c, askedLimit, http.StatusTooManyRequests)
	case err != nil:
		return err
	}
	return s.showStored(w, r, tenant, c, askedSent, http.StatusOK)
}

// storedCopy is everything as a file: in full by a link that was mailed, masked without. What breaks off in the middle is seen to be broken.
func (s *server) storedCopy(w http.ResponseWriter, r *http.Request, tenant string, c token.Claims) error {
	proof := r.URL.Query().Get("s")
	until := time.Now().Add(copyTime)
	ctx, cancel := context.WithDeadline(r.Context(), until)
	defer cancel()
	_ = http.NewResponseController(w).SetWriteDeadline(until) // where it cannot be set, whoever serves has a bound of its own
	began := false
	err := s.db.VisitSnapshot(ctx, tenant, func(ctx context.Context, tx *postgres.Tx) error {
		p, err := readPerson(ctx, tx, c.Contact)
		if err != nil {
			return err
		}
		keys, err := tx.Keys(ctx)
		switch {
		case err != nil:
			return err
		case p.contact == 0:
			return errNotFound
		case proof != "" && !copyProven(proof, keys.Tokens, tx.Tenant.Number, p.contact, tx.Now()):
			return errProof
		}
		mask, _, err := readMask(ctx, tx, p)
		if err != nil {
			return err
		}
		only := &mask
		if proof != "" {
			only = nil
		}
		h := w.Header()
		page.Harden(h)
		h.Set("Content-Type", "application/json")
		h.Set("Content-Disposition", `attachment; filename="stored.json"`)
		h.Set("Cache-Control", "no-store, private")
		if began = true; r.Method == http.MethodHead {
			return nil
		}
		return contact.Stored(ctx, tx, p.contact, only, w)
	})
	switch {
	case errors.Is(err, errProof):
		return s.showStored(w, r, tenant, c, askedExpired, http.StatusGone)
	case err != nil && began:
		fn.LogError(r.Context(), err)
		panic(http.ErrAbortHandler)
	}
	return err
}

// errProof says that the link to a copy is over, or nobody's.
var errProof = errors.New("the link to a copy is not good")

// mailPolicy lets a mail show its images and its own style, and nothing else: whatever is in it, no script runs, and no form is sent.
const mailPolicy = "default-src 'none'; img-src https: http: data:; style-src 'unsafe-inline' https:; font-src https:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; " +
	"sandbox allow-popups allow-popups-to-escape-sandbox allow-top-navigation-by-user-activation"

// webView shows a mail as it would be made now for the one whom it was sent to.
func (s *server) webView(w http.ResponseWriter, r *http.Request, tenant string, c token.Claims) error {
	var content compose.Content
	var settings *spec.Settings
	err := s.db.Visit(r.Context(), tenant, func(ctx context.Context, tx *postgres.Tx) (err error) {
		if settings, err = contact.Settings(ctx, tx); err != nil {
			return err
		}
		content, err = s.composer.WebView(ctx, tx, c.Delivery)
		return err
	})
	if errors.Is(err, compose.ErrUnknown) || errors.Is(err, compose.ErrNobody) {
		lang := s.pages.Lang(r)
		return s.pages.Write(w, r, page.View{
			Status: http.StatusNotFound, Lang: lang, Brand: settings.Title, Theme: settings.Theme, Icon: "mail",
			Title: s.pages.Text(lang, "webview.gone.title"), Block: "text", Data: s.pages.Text(lang, "webview.gone.text"),
		})
	}
	if err != nil {
		return err
	}
	if err := s.store(r, tenant, hit{kind: kindView, delivery: c.Delivery}); err != nil {
		return err
	}
	html := page.Name(s.pages.Mark(r.Context(), s.pages.Lang(r), content.HTML), cmp.Or(content.Locale, settings.Locale), content.Subject)
	h := w.Header()
	page.Harden(h)
	h.Set("Content-Security-Policy", mailPolicy)
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Cache-Control", "no-store, private")
	h.Set("Content-Length", strconv.Itoa(len(html)))
	if r.Method != http.MethodHead {
		_, _ = io.WriteString(w, html)
	}
	return nil
}

// ServeHTTP answers it, or that a browser has it already.
func (s *script) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Content-Type", "text/javascript; charset=utf-8")
	h.Set("Cache-Control", "public, max-age=3600")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cross-Origin-Resource-Policy", "cross-origin")
	h.Set("Vary", "Accept-Encoding")
	body, tag := s.text, s.tag
	if takesGzip(r.Header.Get("Accept-Encoding")) {
		body, tag = s.packed(), s.tag+"-gzip"
		h.Set("Content-Encoding", "gzip")
	}
	h.Set("ETag", `"`+tag+`"`)
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(body))
}

func cors(h http.Header) {
	h.Set("Access-Control-Allow-Origin", "*")
	h.Set("Access-Control-Expose-Headers", "Retry-After")
	h.Set("Cross-Origin-Resource-Policy", "cross-origin")
	h.Set("Cache-Control", "no-store")
}

// preflight lets any site call: a key is no cookie, so that a browser adds no authority of its own.
func preflight(w http.ResponseWriter, _ *http.Request) {
	h := w.Header()
	cors(h)
	h.Set("Access-Control-Allow-Methods", "POST")
	h.Set("Access-Control-Allow-Headers", "Authorization, Content-Type, Content-Encoding, X-Retry-Count")
	h.Set("Access-Control-Max-Age", "86400")
	w.WriteHeader(http.StatusNoContent)
}

// api answers errors of a handler with problem details.
func (s *server) api(handle func(w http.ResponseWriter, r *http.Request) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		cors(w.Header())
		err := handle(w, r)
		var large *http.MaxBytesError
		switch {
		case err == nil:
		case errors.Is(err, errTooLarge), errors.As(err, &large):
			fn.Problem(w, r, http.StatusRequestEntityTooLarge, "Too large", fmt.Sprintf("a message may have %d KB, a batch %d KB", maxMessage>>10, maxBatch>>10))
		case errors.Is(err, errUnauthorized), errors.Is(err, postgres.ErrUnknownTenant): // which was deleted since its key was proven
			w.Header().Set("WWW-Authenticate", `Basic realm="Onda"`)
			fn.Problem(w, r, http.StatusUnauthorized, "Unauthorized", "send a key of this tenant as the user name of basic authentication, or as a bearer token")
		default:
			fn.Fail(w, r, err)
		}
	}
}

var (
	errUnauthorized = errors.New("no valid key")
	errSecretInPage = bad("this key is secret: it must not be in a page. Retire it, and use a public one here")
)

// hasProgramKey tells whether a tenant has the key, and as what it says that it is.
func (t *Tracker) hasProgramKey(ctx context.Context, tenant string, key token.ProgramKey) (ok bool, err error) {
	sum := key.Hash()
	err = t.db.Visit(ctx, tenant, func(ctx context.Context, tx *postgres.Tx) error {
		secret, found, err := tx.ProgramKey(ctx, sum[:])
		ok = found && secret == (key.Kind == token.SecretKey)
		return err
	})
	return ok, err
}

// program proves a program's key and gives its tenant. A key that was retired is refused everywhere within a minute.
func (s *server) program(r *http.Request, text string) (tenant string, secret bool, err error) {
	key, err := token.ParseProgramKey(text)
	if err != nil {
		return "", false, errUnauthorized
	}
	tenant, err = s.db.TenantByNumber(r.Context(), key.Tenant)
	if errors.Is(err, postgres.ErrUnknownTenant) {
		return "", false, errUnauthorized
	}
	if err != nil {
		return "", false, err
	}
	ok, err := s.keys.prove(r.Context(), tenant, key)
	if err != nil {
		return "", false, err
	}
	if !ok {
		return "", false, errUnauthorized
	}
	fn.LogTenant(r.Context(), tenant)
	return tenant, key.Kind == token.SecretKey, nil
}

// counted counts what comes with a public key, from where it comes. Past the bound it is for a 429.
func (s *server) counted(r *http.Request, tenant string, n int) error {
	wait := s.rates.take(tenant, page.Origin(r, s.cfg.Proxies), n)
	if wait > 0 {
		return fn.Throttled(errOften, wait)
	}
	return nil
}

// segment is one call of the Segment HTTP tracking API. Of a batch, what can be stored is, and the answer says what is wrong with the rest: its clients look at the status alone, and
// throw away all of a batch that is refused.
func (s *server) segment(w http.ResponseWriter, r *http.Request, call string) error {
	var tenant string
	var secret bool
	prove := func(key string) (err error) {
		tenant, secret, err = s.program(r, key)
		return err
	}
	inBody := r.Header.Get("Authorization") == "" // as some programs send it
	if !inBody {
		key, _ := fn.ProgramKey(r)
		if err := prove(key.Reveal()); err != nil {
			return err
		}
	}
	body, done, err := s.readBody(w, r, maxBatch)
	defer done()
	if err != nil {
		return err
	}
	if inBody {
		if err := prove(writeKey(body)); err != nil {
			return err
		}
	}
	raw, sentAt := [][]byte{body}, (*time.Time)(nil)
	if call == callBatch {
		if raw, sentAt, err = readBatch(body); err != nil {
			return err
		}
		call = ""
	}
	if !secret {
		if err := s.counted(r, tenant, len(raw)); err != nil {
			return err
		}
	}
	now, private := time.Now(), private(r)
	var answer segmentAnswer
	list, index := make([]activity, 0, len(raw)), make([]int, 0, len(raw)) // in the batch, of an activity
	errs := make([]error, len(raw))
	for i, b := range raw {
		m, err := readMessage(b, call)
		if err == nil && !secret && !forPublic(m.kind) {
			answer.Ignored = append(answer.Ignored, ignoredMessage{i, m.kind, "a public key only adds what a visitor does: this takes a secret key, from a server"})
			continue
		}
		if err == nil {
			if m.sentAt == nil {
				m.sentAt = sentAt
			}
			var a activity
			if a, err = m.check(secret, now); err == nil {
				if private && (!secret || a.kind == typePage || a.kind == typeScreen) { // what programs say of their customers is no matter of a browser
					a.visitor, a.user = "", ""
				}
				list, index = append(list, a), append(index, i)
				continue
			}
		}
		errs[i] = err
	}
	if len(list) > 0 {
		if err := s.activities.Add(r.Context(), tenant, list...); err != nil {
			return err
		}
	}
	for k, a := range list {
		errs[index[k]] = a.err
		answer.IgnoredTraits = append(answer.IgnoredTraits, a.ignored...)
	}
	for i, err := range errs {
		if err != nil {
			answer.Errors = append(answer.Errors, refusedMessage{i, fn.PublicText(err)})
		}
	}
	if len(answer.Errors) == len(raw) { // nothing is any good
		if call == "" {
			return fmt.Errorf("batch[0]: %w", errs[0])
		}
		return errs[0]
	}
	return answer.write(w)
}

// segmentAnswer is the body of an answer of the tracking API. Segment's own has success alone.
type segmentAnswer struct {
	Success       bool             `json:"success"`
	IgnoredTraits []string         `json:"ignoredTraits,omitempty"`
	Ignored       []ignoredMessage `json:"ignored,omitempty"`
	Errors        []refusedMessage `json:"errors,omitempty"`
}

// ignoredMessage is one of which nothing was stored, and that is no mistake: pages with Segment's snippet call identify.
type ignoredMessage struct {
	Index  int    `json:"index"`
	Type   string `json:"type"`
	Detail string `json:"detail"`
}

// refusedMessage is one of a batch that cannot be stored.
type refusedMessage struct {
	Index  int    `json:"index"`
	Detail string `json:"detail"`
}

func (a segmentAnswer) write(w http.ResponseWriter) error {
	a.Success = true
	slices.Sort(a.IgnoredTraits)
	a.IgnoredTraits = slices.Compact(a.IgnoredTraits)
	body, err := json.Marshal(a)
	if err != nil {
		return fmt.Errorf("encode the answer: %w", err)
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(body)
	return nil
}

// segmentSettings is what Segment's SDK for browsers asks its cdnURL for: that there is one destination, and where it is.
func (s *server) segmentSettings(w http.ResponseWriter, r *http.Request) error {
	tenant, secret, err := s.program(r, r.PathValue("key"))
	if err != nil {
		return err
	}
	if secret {
		return errSecretInPage
	}
	var link string
	err = s.db.Visit(r.Context(), tenant, func(_ context.Context, tx *postgres.Tx) error {
		link = tx.Tenant.LinkURL(s.cfg.Compose.LinkURL)
		return nil
	})
	if err != nil {
		return err
	}
	protocol, host, _ := strings.Cut(link, "://")
	body, err := json.Marshal(map[string]any{
		"integrations": map[string]any{"Segment.io": map[string]any{"apiKey": r.PathValue("key"), "apiHost": host + "/v1", "protocol": protocol}},
		"plan":         map[string]any{},
		"metrics":      map[string]any{"sampleRate": 0}, // of the SDK itself, which would go to /v1/m
	})
	if err != nil {
		return fmt.Errorf("encode settings: %w", err)
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "public, max-age=300")
	_, _ = w.Write(body)
	return nil
}

// noMetrics takes what Segment's SDK for browsers counts of itself, and keeps nothing of it.
func noMetrics(w http.ResponseWriter, _ *http.Request) error {
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// readBody reads a body of at most so many bytes, of which stock programs compress some. It is in hand until done is called.
func (s *server) readBody(w http.ResponseWriter, r *http.Request, most int64) (b []byte, done func(), err error) {
	body := s.bodies.Open(w, r, most)
	done = func() { _ = body.Close() }
	in := io.Reader(body)
	if r.Header.Get("Content-Encoding") == "gzip" {
		z, err := gzip.NewReader(body)
		if errors.Is(err, fn.ErrBody) {
			return nil, done, err
		}
		if err != nil {
			return nil, done, bad("the body is not gzip, as Content-Encoding says")
		}
		in = body.Unpacked(z)
	}
	buf := bytes.NewBuffer(make([]byte, 0, min(max(r.ContentLength, 0), maxMessage)+bytes.MinRead)) // no more before it comes: anybody may say that a body is large
	_, err = buf.ReadFrom(io.LimitReader(in, most+1))
	b = buf.Bytes()
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large), errors.Is(err, fn.ErrBody):
		return nil, done, err
	case err != nil:
		return nil, done, bad("the body cannot be read")
	case int64(len(b)) > most:
		return nil, done, errTooLarge
	}
	return b, done, nil
}

// event is a call of onda.js. Its body is plain text to the browser, so that it need not ask first.
func (s *server) event(w http.ResponseWriter, r *http.Request) error {
	body, done, err := s.readBody(w, r, maxMessage)
	defer done()
	if err != nil {
		return err
	}
	var e pageEvent
	if err := readMembers(body, e.member); err != nil {
		return err
	}
	tenant, secret, err := s.program(r, e.key)
	if err != nil {
		return err
	}
	if secret {
		return errSecretInPage
	}
	if err := s.counted(r, tenant, 1); err != nil {
		return err
	}
	if e.kind != typeTrack && e.kind != typePage {
		return bad("type must be track or page")
	}
	m := e.message
	m.anonymous, m.event = e.visitor, m.name
	about := map[string]string{}
	for name, v := range map[string]string{"url": e.url, "title": e.title, "referrer": e.referrer} {
		if v != "" && (m.kind == typePage || name == "url") {
			about[name] = v
		}
	}
	if m.page, err = json.Marshal(about); err != nil {
		return fmt.Errorf("encode a page: %w", err)
	}
	if m.kind == typeTrack {
		m.properties = []byte(join(m.page, m.properties))
	}
	nameless := e.visitor == "" || private(r)
	if nameless { // without consent a visitor has no id: it is counted, and nobody knows whose it is
		m.anonymous = "-"
	}
	a, err := m.check(false, time.Now())
	if err != nil {
		return err
	}
	if nameless {
		a.visitor = ""
	} else if a.delivery, a.link, err = s.clicked(r.Context(), tenant, e.key, e.click); err != nil {
		return err
	}
	if err := s.activities.Add(r.Context(), tenant, a); err != nil {
		return err
	}
	if a.err != nil {
		return a.err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}
