package renderform

import (
	"cmp"
	"context"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/onda-run/onda/internal/contact"
	"github.com/onda-run/onda/internal/fn"
	"github.com/onda-run/onda/internal/page"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/spec"
	"github.com/onda-run/onda/internal/token"
)

//go:embed pages embed.js form.js
var assets embed.FS

const (
	maxBody   = 256 << 10
	maxBodies = 24 << 20 // bytes of bodies in hand, of all that is sent in together
)

// errOrigin is of a page that may not post the form.
var errOrigin = errors.New("this site may not post the form: name it in the form's origins")

// server answers the public HTTP of design section 7.
type server struct {
	*Forms
	pages   *page.Pages
	prepare sync.Once // of pages
	embed   string
	form    string // the script of a form, wherever it is shown
}

// Handler makes the public HTTP of render-form.
func (fs *Forms) Handler() (http.Handler, error) {
	pages, err := page.New(assets, "pages/*.html")
	if err != nil {
		return nil, err
	}
	pages.Preproduction = fs.db.Preproduction
	script, err := assets.ReadFile("embed.js")
	if err != nil {
		return nil, fmt.Errorf("read embed.js: %w", err)
	}
	form, err := assets.ReadFile("form.js")
	if err != nil {
		return nil, fmt.Errorf("read form.js: %w", err)
	}
	s := &server{Forms: fs, pages: pages, embed: string(script), form: string(form)}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /f/{tenant}/{form}", s.answer(s.show))
	mux.HandleFunc("POST /f/{tenant}/{form}", s.answer(s.post))
	mux.HandleFunc("OPTIONS /f/{tenant}/{form}", s.answer(s.preflight))
	mux.HandleFunc("GET /y/{token}", s.proven(s.confirmPage))
	mux.HandleFunc("POST /y/{token}", s.proven(s.confirmNow))
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		status := http.StatusNotFound
		if r.Method != http.MethodGet && r.Method != http.MethodHead && (strings.HasPrefix(r.URL.Path, "/f/") || strings.HasPrefix(r.URL.Path, "/y/")) {
			w.Header().Set("Allow", "GET, HEAD, POST")
			status = http.StatusMethodNotAllowed
		}
		s.error(w, r, "", status)
	})
	return mux, nil
}

// answer answers requests whose path names the tenant, and a handler's errors.
func (s *server) answer(handle func(w http.ResponseWriter, r *http.Request) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if err := handle(w, r); err != nil {
			s.fail(w, r, r.PathValue("tenant"), err)
		}
	}
}

// proven answers requests whose token is proven, and a handler's errors.
func (s *server) proven(handle func(w http.ResponseWriter, r *http.Request, tenant string, c token.Claims, submission int64) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		tenant, c, submission, err := s.claims(r)
		if err == nil {
			err = handle(w, r, tenant, c, submission)
		}
		if err != nil {
			s.fail(w, r, tenant, err)
		}
	}
}

// fail answers an error: with a page for people, which looks as the tenant's do where it is known how, with problem details for programs.
func (s *server) fail(w http.ResponseWriter, r *http.Request, tenant string, err error) {
	var large *http.MaxBytesError
	status := 0
	switch {
	case errors.Is(err, errNotFound):
		status = http.StatusNotFound
	case errors.Is(err, errOrigin):
		status = http.StatusForbidden
	case errors.As(err, &large), errors.Is(err, errValues):
		status = http.StatusRequestEntityTooLarge
	case errors.Is(err, errLimit):
		status = http.StatusTooManyRequests
		w.Header().Set("Retry-After", "3600")
	case errors.Is(err, errFull):
		status = http.StatusTooManyRequests
		w.Header().Set("Retry-After", "60")
	}
	switch {
	case status == 0 && wantsJSON(r):
		fn.Fail(w, r, err)
	case wantsJSON(r):
		fn.Problem(w, r, status, http.StatusText(status), err.Error())
	case errors.Is(err, errLimit):
		lang := s.pages.Lang(r)
		brand, theme := s.brandOf(tenant)
		s.write(w, r, page.View{
			Status: status, Lang: lang, Brand: brand, Theme: theme, Icon: "warning", Title: s.pages.Text(lang, "form.limit.title"), Block: "text", Data: s.pages.Text(lang, "form.limit.text"),
		})
	case status == 0:
		fn.LogError(r.Context(), err)
		status, _ = fn.Status(err)
		s.error(w, r, tenant, status)
	default:
		s.error(w, r, tenant, status)
	}
}

func (s *server) error(w http.ResponseWriter, r *http.Request, tenant string, status int) {
	brand, theme := s.brandOf(tenant)
	if err := s.pages.ErrorOf(w, r, status, brand, theme); err != nil {
		fn.LogError(r.Context(), err)
	}
}

// brandOf is whose page says that something went wrong, and how it looks; empty where that is not known.
func (s *server) brandOf(tenant string) (brand string, theme spec.Theme) {
	if settings := s.cache.settingsOf(tenant); settings != nil {
		return settings.Title, settings.Theme
	}
	return "", spec.Theme{}
}

func (s *server) write(w http.ResponseWriter, r *http.Request, v page.View) {
	if err := s.pages.Write(w, r, v); err != nil {
		fn.LogError(r.Context(), err)
	}
}

// wantsJSON tells a program, or the embedded form, from a page.
func wantsJSON(r *http.Request) bool {
	return strings.HasPrefix(r.Header.Get("Content-Type"), "application/json") || strings.Contains(r.Header.Get("Accept"), "application/json")
}

// load gives the form that the path names.
func (s *server) load(r *http.Request) (*known, error) {
	tenant := r.PathValue("tenant")
	k, err := s.cache.get(r.Context(), tenant, strings.TrimSuffix(r.PathValue("form"), ".js"))
	if err != nil {
		return nil, err
	}
	fn.LogTenant(r.Context(), tenant)
	if k.form.FileBytes() > 0 && k.form.tenant.Schema < contact.FilesSchema {
		return nil, fn.Unavailable(errors.New("the tenant's schema has no place for files yet"))
	}
	return k, nil
}

// lang is the language of the form: the one that its page was shown in, else the visitor's, among those that it has texts in.
func (f *form) lang(r *http.Request, shown string) string {
	if _, ok := f.Texts[shown]; ok {
		return shown
	}
	offered := []string{f.Locale}
	for l := range f.Texts {
		if l != f.Locale {
			offered = append(offered, l)
		}
	}
	slices.Sort(offered[1:])
	if l := r.URL.Query().Get("lang"); l != "" {
		return page.Negotiate(l, offered...)
	}
	return page.Negotiate(r.Header.Get("Accept-Language"), offered...)
}

// path is where a form is, at whatever host.
func (f *form) path() string {
	return "/f/" + url.PathEscape(f.tenant.Name) + "/" + url.PathEscape(f.Name)
}

// address is where a form is for other sites.
func (s *server) address(f *form) string { return f.tenant.FormURL(s.cfg.FormURL) + f.path() }

// formView is the page of a form, which is sent to action.
func (s *server) formView(f *form, action, lang string, values url.Values, problems []failed) page.View {
	v := f.view(lang, values, problems, func(key string, pairs ...any) string { return s.pages.Text(lang, key, pairs...) })
	v.Action = action
	out := page.View{Lang: lang, Title: f.Text(lang, "title"), Brand: f.settings.Title, Theme: f.settings.Theme, Block: "form", Data: v}
	if v.Work > 0 || v.Conditional {
		out.Script = s.form + "prepare(document.querySelector(\"form\"));\n"
	}
	if f.Result.Redirect != "" {
		if u, err := url.Parse(f.Result.Redirect); err == nil {
			out.FormTo = []string{u.Scheme + "://" + u.Host}
		}
	}
	if len(problems) > 0 {
		out.Status = http.StatusUnprocessableEntity
	}
	return out
}

// show is the page of a form, or the script that shows it on another site.
func (s *server) show(w http.ResponseWriter, r *http.Request) error {
	s.prepare.Do(func() { go s.pages.Prepare() }) // while the form is read
	k, err := s.load(r)
	if err != nil {
		return err
	}
	f := k.form
	as := shownAs{lang: f.lang(r, "")}
	switch {
	case strings.HasSuffix(r.PathValue("form"), ".js"):
		as.kind = asScript
	case framed(r):
		as.kind = asFrame
	case r.URL.RawQuery != "" && r.URL.Query().Get(tokenQuery) != "":
		who, err := s.recognise(r.Context(), f, r.URL.Query().Get(tokenQuery))
		if err != nil {
			return err
		}
		if who != nil {
			return s.showTo(w, r, f, who, as.lang)
		}
	}
	p, err := s.cache.page(k, as, func() (*shown, error) { return s.render(context.WithoutCancel(r.Context()), f, as) })
	if err != nil {
		return err
	}
	key, err := s.key(r.Context(), f)
	if err != nil {
		return err
	}
	values := f.prefilled(r)
	f.setConditions(values, s.now())
	values.Set(onceInput, newOnce())
	values.Set(momentInput, k.momentNow(key, s.now()))
	body := p.fill(values)
	h := w.Header()
	maps.Copy(h, p.header)
	h.Set("Content-Length", strconv.Itoa(len(body)))
	if r.Method != http.MethodHead {
		_, _ = w.Write(body)
	}
	return nil
}

// showTo is the page of a form for a contact who was recognised. It is nobody else's, and so not kept.
func (s *server) showTo(w http.ResponseWriter, r *http.Request, f *form, who *recognised, lang string) error {
	key, err := s.key(r.Context(), f)
	if err != nil {
		return err
	}
	now := s.now()
	values := f.prefilled(r)
	f.prefill(who, values, true)
	values.Set(tokenInput, r.URL.Query().Get(tokenQuery))
	values.Set(onceInput, newOnce())
	values.Set(momentInput, f.moment(key, now))
	g := f.shownTo(who, now)
	g.setConditions(values, now)
	w.Header().Set("Referrer-Policy", "same-origin")
	s.write(w, r, s.formView(g, f.path(), lang, values, nil))
	return nil
}

// inFrame is the query of a page that is shown in a frame.
const inFrame = "?embed=iframe"

func framed(r *http.Request) bool {
	return r.URL.RawQuery != "" && r.URL.Query().Get("embed") == "iframe"
}

// key is what the moments of a form are signed with.
func (s *server) key(ctx context.Context, f *form) (token.Key, error) {
	keys, err := s.db.Keys(ctx, f.tenant.Name)
	return keys.Signing, err
}

// render makes how a form looks to whoever opens it.
func (s *server) render(ctx context.Context, f *form, as shownAs) (*shown, error) {
	h := newHoles()
	values := url.Values{}
	for _, in := range f.Inputs {
		if in.Hidden != "" {
			values.Set(in.Hidden, h.add(in.Hidden))
		}
	}
	for key := range f.conditions(s.now()) {
		values.Set(ifInput+key, h.add(ifInput+key))
	}
	values.Set(onceInput, h.add(onceInput))
	values.Set(momentInput, h.add(momentInput))
	if as.kind == asScript {
		body, header, err := s.script(ctx, s.formView(f, s.address(f), as.lang, values, nil))
		if err != nil {
			return nil, err
		}
		return h.cut(body, header, true)
	}
	v := s.formView(f, f.path(), as.lang, values, nil) // the host stays the one that it was opened at
	if as.kind == asFrame {
		v = s.formView(f, f.path()+inFrame, as.lang, values, nil)
		v.Frames = f.Origins
	}
	body, err := s.pages.Render(ctx, v)
	if err != nil {
		return nil, err
	}
	// Without a referrer a browser would not say which site posts the form; the path has no secret in it.
	header := http.Header{"Referrer-Policy": {"same-origin"}}
	s.pages.Describe(header, v)
	return h.cut(body, header, false)
}

// prefilled are the hidden inputs, from where they are to come.
func (f *form) prefilled(r *http.Request) url.Values {
	values := url.Values{}
	var query url.Values
	for _, in := range f.Inputs {
		switch in.From {
		case "query":
			if query == nil {
				query = r.URL.Query()
			}
			values.Set(in.Hidden, query.Get(in.Hidden))
		case "referrer":
			values.Set(in.Hidden, r.Referer())
		}
	}
	return values
}

// script is the embedded form: the same as on its page, in a shadow tree.
func (s *server) script(ctx context.Context, v page.View) ([]byte, http.Header, error) {
	html, err := s.fragment(ctx, v)
	if err != nil {
		return nil, nil, err
	}
	shown, _ := v.Data.(view)
	// In one pass: what is put in may have such a name in it, as a text of the form.
	fill := []string{"/* form.js */", s.form}
	for _, part := range []struct{ before, name, value string }{{"(", "STYLE", s.pages.Embedded(v.Theme)}, {"= ", "LANG", v.Lang}, {"(", "ACTION", shown.Action}, {"(", "FORM", html}} {
		text, err := json.Marshal(part.value)
		if err != nil {
			return nil, nil, fmt.Errorf("encode the embedded form: %w", err)
		}
		fill = append(fill, part.before+part.name, part.before+string(text))
	}
	return []byte(strings.NewReplacer(fill...).Replace(s.embed)), http.Header{
		"Content-Type": {"text/javascript; charset=utf-8"}, "Cache-Control": {"no-store"}, "X-Content-Type-Options": {"nosniff"},
		"Cross-Origin-Resource-Policy": {"cross-origin"}, "Vary": {"Accept-Language"},
	}, nil
}

// fragment is a page without its shell: the heading and the content.
func (s *server) fragment(ctx context.Context, v page.View) (string, error) {
	b, err := s.pages.Fragment(ctx, v)
	return string(b), err
}

// allow lets the origins that the form names read the answer. A page that may not is refused.
func (s *server) allow(w http.ResponseWriter, r *http.Request, f *form) error {
	w.Header().Add("Vary", "Origin")
	origin := r.Header.Get("Origin")
	if origin == "" {
		return nil // no browser, or one that posts to its own site
	}
	if slices.Contains(f.Origins, origin) {
		w.Header().Set("Access-Control-Allow-Origin", origin)
		return nil
	}
	// Its own page, at any of its hosts: what stands before the function may have put another into the request.
	u, err := url.Parse(origin)
	own, ownErr := url.Parse(s.cfg.FormURL)
	if err == nil && (u.Host == r.Host || ownErr == nil && u.Host == own.Host) && u.Host != "" {
		return nil
	}
	if host, ok := strings.CutPrefix(origin, "https://"); ok && slices.Contains(f.tenant.FormHosts, host) {
		return nil
	}
	return errOrigin
}

func (s *server) preflight(w http.ResponseWriter, r *http.Request) error {
	k, err := s.load(r)
	if err != nil {
		return err
	}
	if err := s.allow(w, r, k.form); err != nil {
		return err
	}
	h := w.Header()
	h.Set("Access-Control-Allow-Methods", "POST")
	h.Set("Access-Control-Allow-Headers", "Content-Type, Accept")
	h.Set("Access-Control-Max-Age", "3600")
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// readValues reads what was sent: a form in either encoding, or a JSON object of the same names.
func readValues(w http.ResponseWriter, r *http.Request) (url.Values, error) {
	if !strings.HasPrefix(r.Header.Get("Content-Type"), "application/json") {
		return fn.ReadForm(w, r, maxBody)
	}
	values, err := readObject(json.NewDecoder(r.Body))
	var large *http.MaxBytesError
	if err != nil && !errors.As(err, &large) && !errors.Is(err, fn.ErrBody) && !fn.IsPermanent(err) {
		err = fn.Permanent(errors.New("the body is not a JSON object"))
	}
	return values, err
}

// maxValues bounds the values of a JSON object, as net/url does those of a form: each takes many times the memory of its text.
const maxValues = 10_000

// readObject reads an object of texts, numbers, booleans and lists of them, one after the other. Null is as nothing.
func readObject(d *json.Decoder) (url.Values, error) {
	var wrong error // the first that is
	next := func() json.Token {
		t, err := d.Token()
		wrong = cmp.Or(wrong, err)
		return t
	}
	values, n := url.Values{}, 0
	add := func(name string, t json.Token) {
		n++
		_, nested := t.(json.Delim)
		switch {
		case t == nil:
		case nested:
			wrong = cmp.Or(wrong, fn.Permanent(errors.New("the values must be texts, numbers, booleans or lists of them")))
		case n > maxValues:
			wrong = cmp.Or(wrong, fn.Permanent(fmt.Errorf("a form may have %d values", maxValues)))
		default:
			values.Add(name, fmt.Sprint(t))
		}
	}
	d.UseNumber()
	if next() != json.Delim('{') {
		return nil, cmp.Or(wrong, io.ErrUnexpectedEOF)
	}
	for wrong == nil && d.More() {
		name, _ := next().(string)
		t := next()
		if t != json.Delim('[') {
			add(name, t)
			continue
		}
		for wrong == nil && d.More() {
			add(name, next())
		}
		next() // the list's end
	}
	next() // the object's
	return values, wrong
}

// read reads what was sent for a form. done is to be called when it is not needed any more.
func (s *server) read(w http.ResponseWriter, r *http.Request, f *form) (values url.Values, files map[string][]upload, done func(), err error) {
	bodies, most := s.bodies, int64(maxBody)
	kind, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type"))
	withFiles := kind == "multipart/form-data" && f.FileBytes() > 0
	if withFiles {
		bodies, most = s.uploadsOf(f.tenant.Name), maxUpload
	}
	body := bodies.Open(w, r, most)
	done, r.Body = func() { _ = body.Close() }, body
	if withFiles {
		if values, files, err = f.readMultipart(r, body.Drop); err == nil {
			_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(2 * (storeWait + storeTime))) // it is not to end the request while that is stored
		}
	} else {
		values, err = readValues(w, r)
	}
	for _, in := range f.Inputs {
		if err == nil && in.As == spec.InputFile && values.Get(in.Name) != "" {
			err = fn.Permanent(fmt.Errorf("%q is a file: send the form as multipart/form-data, and the file with its name", in.Name))
		}
	}
	return values, files, done, err
}

func (f *form) readMultipart(r *http.Request, drop func(n int64)) (url.Values, map[string][]upload, error) {
	parts, err := r.MultipartReader()
	if err != nil {
		return nil, nil, fn.Permanent(errors.New("the form cannot be read"))
	}
	values, files, err := f.readParts(parts, drop)
	var large *http.MaxBytesError
	if status, _ := fn.Status(err); err != nil && !errors.As(err, &large) && !errors.Is(err, errValues) && !errors.Is(err, fn.ErrBody) && status != http.StatusBadRequest {
		err = fn.Permanent(errors.New("the form cannot be read"))
	}
	return values, files, err
}

// post takes in what was sent.
func (s *server) post(w http.ResponseWriter, r *http.Request) error {
	k, err := s.load(r)
	if err != nil {
		return err
	}
	f := k.form
	if err := s.allow(w, r, f); err != nil {
		return err
	}
	tenant := f.tenant.Name
	values, files, done, err := s.read(w, r, f)
	defer done()
	if err != nil {
		return err
	}
	lang := f.lang(r, values.Get(langInput))
	who, err := s.recognise(r.Context(), f, values.Get(tokenInput))
	if err != nil {
		return err
	}
	if who = f.meant(who, values); who == nil {
		values.Del(tokenInput)
	}
	in := f.sentIn(values, files, lang, who)
	if in.origin, err = s.db.HashOrigin(r.Context(), tenant, page.Origin(r, s.cfg.Proxies)); err != nil {
		return err
	}
	keys, err := s.db.Keys(r.Context(), tenant)
	if err != nil {
		return err
	}
	soon, cost := f.tooSoon(values, keys.Tokens, s.now())
	if soon != "" {
		return s.again(w, r, f, who, lang, values, f.notKept(files, []failed{{Text: soon}}))
	}
	if err := s.limit.take(r.Context(), tenant, cost); err != nil {
		return err
	}
	if err := s.take(r.Context(), in); err != nil {
		return err
	}
	if len(in.problems) > 0 {
		if in.used {
			values.Del(onceInput)
		}
		return s.again(w, r, f, who, lang, values, f.notKept(files, in.problems))
	}
	return s.showResult(w, r, f, lang)
}

// again shows a form with what was sent and what is wrong with it, as who was recognised sees it. It is the same showing, unless that has become too old or was used.
func (s *server) again(w http.ResponseWriter, r *http.Request, f *form, who *recognised, lang string, values url.Values, problems []failed) error {
	if readOnce(values.Get(onceInput)) == nil {
		values.Set(onceInput, newOnce())
	}
	if values.Get(momentInput) == "" || problems[0].Text == tooOld {
		key, err := s.key(r.Context(), f)
		if err != nil {
			return err
		}
		values.Set(momentInput, f.moment(key, s.now()))
	}
	f.prefill(who, values, false)
	f = f.shownTo(who, s.now())
	f.setConditions(values, s.now())
	if problems[0].Text == tooOld { // what was ticked may have been beside another text
		for _, in := range f.Consents() {
			values.Del(in.Key())
		}
	}
	action, frames := f.path(), []string(nil)
	switch {
	case wantsJSON(r): // it is shown on another site
		action = s.address(f)
	case framed(r):
		action, frames = action+inFrame, f.Origins
	}
	v := s.formView(f, action, lang, values, problems)
	v.Frames = frames
	return s.showProblems(w, r, v)
}

// reply is what the embedded form and programs get.
type reply struct {
	OK       bool              `json:"ok"`
	Title    string            `json:"title,omitempty"`
	Message  string            `json:"message,omitempty"`
	Redirect string            `json:"redirect,omitempty"`
	Problems map[string]string `json:"problems,omitempty"`
	HTML     string            `json:"html,omitempty"`
}

func sendJSON(w http.ResponseWriter, status int, a reply) error {
	body, err := json.Marshal(a)
	if err != nil {
		return fmt.Errorf("encode the answer: %w", err)
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	_, _ = w.Write(body)
	return nil
}

func (s *server) showProblems(w http.ResponseWriter, r *http.Request, v page.View) error {
	if !wantsJSON(r) {
		w.Header().Set("Referrer-Policy", "same-origin")
		s.write(w, r, v)
		return nil
	}
	html, err := s.fragment(r.Context(), v)
	if err != nil {
		return err
	}
	a := reply{Title: s.pages.Text(v.Lang, "form.problems.title"), Problems: map[string]string{}, HTML: html}
	if shown, ok := v.Data.(view); ok {
		if shown.Notice != "" {
			a.Title = shown.Notice
		}
		for _, p := range shown.Problems {
			a.Problems[p.Name] = p.Problem
		}
	}
	return sendJSON(w, http.StatusUnprocessableEntity, a)
}

// resultView is what is shown after it was sent.
type resultView struct {
	Message string
	Confirm bool
}

func (s *server) showResult(w http.ResponseWriter, r *http.Request, f *form, lang string) error {
	if f.Result.Redirect != "" {
		if wantsJSON(r) {
			return sendJSON(w, http.StatusOK, reply{OK: true, Redirect: f.Result.Redirect})
		}
		page.Harden(w.Header())
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("Location", f.Result.Redirect)
		w.WriteHeader(http.StatusSeeOther)
		return nil
	}
	v := page.View{
		Lang: lang, Brand: f.settings.Title, Theme: f.settings.Theme, Icon: "done", Title: s.pages.Text(lang, "form.done.title"), Block: "result", Data: resultView{f.Text(lang, f.Result.Message), f.Confirm != nil},
	}
	if framed(r) {
		v.Frames = f.Origins
	}
	if f.Confirm != nil {
		v.Icon, v.Title = "mail", s.pages.Text(lang, "form.checkmail.title")
	}
	if !wantsJSON(r) {
		s.write(w, r, v)
		return nil
	}
	html, err := s.fragment(r.Context(), v)
	if err != nil {
		return err
	}
	return sendJSON(w, http.StatusOK, reply{OK: true, Title: v.Title, Message: f.Text(lang, f.Result.Message), HTML: html})
}

// claims proves the token of a confirmation.
func (s *server) claims(r *http.Request) (tenant string, c token.Claims, submission int64, err error) {
	tok := r.PathValue("token")
	if c, err = token.Peek(tok, token.Confirm); err != nil {
		return "", c, 0, errNotFound
	}
	tenant, err = s.db.TenantByNumber(r.Context(), c.Tenant)
	if errors.Is(err, postgres.ErrUnknownTenant) {
		return "", c, 0, errNotFound
	}
	if err != nil {
		return "", c, 0, err
	}
	keys, err := s.db.Keys(r.Context(), tenant)
	if errors.Is(err, postgres.ErrUnknownTenant) || errors.Is(err, postgres.ErrForeignTenant) {
		return "", c, 0, errNotFound
	}
	if err != nil {
		return "", c, 0, err
	}
	if c, err = keys.Verifier.Verify(tok, token.Confirm, time.Now()); err != nil {
		return "", c, 0, errNotFound
	}
	fn.LogTenant(r.Context(), tenant)
	if v := r.URL.Query().Get("s"); v != "" {
		if submission, err = strconv.ParseInt(v, 10, 64); err != nil || submission < 1 {
			return "", c, 0, errNotFound
		}
	}
	return tenant, c, submission, nil
}

// confirmPage shows the button; nothing happens before it is pressed.
func (s *server) confirmPage(w http.ResponseWriter, r *http.Request, tenant string, c token.Claims, submission int64) error {
	var o opting
	err := within(r.Context(), s.db, tenant, func(ctx context.Context, tx *postgres.Tx) (err error) {
		o, _, _, _, err = find(ctx, tx, c, submission, s.pages.Lang(r), "")
		return err
	})
	if err != nil {
		return err
	}
	return s.showOpting(w, r, o)
}

func (s *server) confirmNow(w http.ResponseWriter, r *http.Request, tenant string, c token.Claims, submission int64) error {
	origin, err := s.db.HashOrigin(r.Context(), tenant, page.Origin(r, s.cfg.Proxies))
	if err != nil {
		return err
	}
	var o opting
	err = within(r.Context(), s.db, tenant, func(ctx context.Context, tx *postgres.Tx) (err error) {
		o, err = confirm(ctx, tx, c, submission, s.pages.Lang(r), origin)
		return err
	})
	if err != nil {
		return err
	}
	return s.showOpting(w, r, o)
}

// optingView is what the pages of a confirmation show.
type optingView struct{ Address, Topics string }

func (s *server) showOpting(w http.ResponseWriter, r *http.Request, o opting) error {
	lang := s.pages.Lang(r)
	v := page.View{Lang: lang, Brand: o.form.settings.Title, Theme: o.form.settings.Theme, Data: optingView{o.address, strings.Join(o.topics, ", ")}}
	switch o.state {
	case "pending":
		v.Icon, v.Title, v.Block = "mail", s.pages.Text(lang, "confirm.title"), "confirm"
	case "confirmed":
		v.Icon, v.Title, v.Block = "done", s.pages.Text(lang, "confirmed.title"), "confirmed"
	default:
		v.Status, v.Icon, v.Title, v.Block = http.StatusGone, "warning", s.pages.Text(lang, "confirm.expired.title"), "expired"
		v.Data = o.form.path()
	}
	s.write(w, r, v)
	return nil
}
