package mailbox

import (
	"embed"
	"encoding/json"
	"errors"
	"html/template"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"go.uber.org/zap"
)

//go:embed pages
var pageFiles embed.FS

// pageSize is how many mails a page of the list shows; maxPage the most the API gives at once.
const (
	pageSize = 50
	maxPage  = 1000
)

// Handler serves the pages and the JSON API: what HTTPAddr answers.
//
//	GET    /                   list, newest first: q, to, repeated, before
//	GET    /mails/{id}         one mail: view=html, text, headers, source
//	GET    /mails/{id}/html    its HTML, for the frame: images=1 loads what it refers to
//	GET    /mails/{id}/parts/N an attachment
//	POST   /clear
//	GET    /api/mails          q, to, repeated; newest first from before, or oldest first from after; limit
//	GET    /api/mails/{id}     headers, text, html, attachments
//	GET    /api/mails/{id}.eml as it came
//	GET    /api/counts         all, or those of one recipient: to
//	DELETE /api/mails
func (s *Server) Handler() http.Handler {
	h := &pages{
		Server:    s,
		templates: template.Must(template.New("").Funcs(template.FuncMap{"count": thousands}).ParseFS(pageFiles, "pages/*.html")),
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", h.list)
	mux.HandleFunc("GET /mails/{id}", h.mail)
	mux.HandleFunc("GET /mails/{id}/html", h.html)
	mux.HandleFunc("GET /mails/{id}/parts/{n}", h.part)
	mux.HandleFunc("POST /clear", h.clear)
	mux.HandleFunc("GET /style.css", h.style)
	mux.HandleFunc("GET /api/mails", h.apiList)
	mux.HandleFunc("GET /api/mails/{id}", h.apiMail)
	mux.HandleFunc("GET /api/counts", h.apiCounts)
	mux.HandleFunc("DELETE /api/mails", h.apiClear)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { h.fail(w, r, errNoPage) })
	// Another site's page must not be able to empty the mailbox of someone who visits it.
	return headers(http.NewCrossOriginProtection().Handler(mux))
}

// headers are the same for all pages; what shows a mail's own HTML sets its own policy.
func headers(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !onLoopback(r.Host) { // a name of elsewhere that leads here: its pages would be of one origin with the mails
			http.Error(w, "the mailbox answers to 127.0.0.1 and localhost only", http.StatusMisdirectedRequest)
			return
		}
		h := w.Header()
		h.Set("Content-Security-Policy", "default-src 'none'; style-src 'self'; img-src 'self' data:; frame-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Cache-Control", "no-store")
		next.ServeHTTP(w, r)
	})
}

// onLoopback tells whether the host of a request is this machine.
func onLoopback(host string) bool {
	name, _, err := net.SplitHostPort(host)
	if err != nil {
		name = strings.Trim(host, "[]")
	}
	ip := net.ParseIP(name)
	return name == "localhost" || ip != nil && ip.IsLoopback()
}

type pages struct {
	*Server
	templates *template.Template
}

var errNoPage = errors.New("there is no such page")

// badRequest is an error that names what is wrong with a request.
type badRequest string

func (b badRequest) Error() string { return string(b) }

// fail answers an error: as JSON below /api, as a page elsewhere.
func (p *pages) fail(w http.ResponseWriter, r *http.Request, err error) {
	status, text := http.StatusInternalServerError, "The mailbox could not do this: "+err.Error()
	var bad badRequest
	switch {
	case errors.As(err, &bad):
		status, text = http.StatusBadRequest, bad.Error()
	case errors.Is(err, errNoPage):
		status, text = http.StatusNotFound, "There is no such page."
	case errors.Is(err, fs.ErrNotExist):
		status, text = http.StatusNotFound, "There is no such mail, or not any more."
	default:
		p.log.Error("mailbox: page", zap.Error(err))
	}
	if strings.HasPrefix(r.URL.Path, "/api/") {
		w.Header().Set("Content-Type", "application/problem+json")
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(map[string]any{"title": http.StatusText(status), "status": status, "detail": text})
		return
	}
	p.render(w, status, "error.html", map[string]any{"Title": http.StatusText(status), "Text": text})
}

func (p *pages) render(w http.ResponseWriter, status int, name string, data any) {
	var page strings.Builder
	if err := p.templates.ExecuteTemplate(&page, name, data); err != nil {
		p.log.Error("mailbox: page", zap.Error(err))
		http.Error(w, "The page could not be made.", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	_, _ = w.Write([]byte(page.String()))
}

// readFilter reads what list and API have in common.
func readFilter(q url.Values) (f filter, err error) {
	f = filter{to: strings.TrimSpace(q.Get("to")), query: strings.TrimSpace(q.Get("q"))}
	if v := q.Get("repeated"); v != "" {
		if f.repeated, err = strconv.ParseBool(v); err != nil {
			return f, badRequest("repeated is not 1 or 0")
		}
	}
	return f, nil
}

// number reads a number that is not negative; 0 if it is not given.
func number(q url.Values, name string) (int64, error) {
	v := q.Get(name)
	if v == "" {
		return 0, nil
	}
	n, err := strconv.ParseInt(v, 10, 64)
	if err != nil || n < 0 {
		return 0, badRequest(name + " is not a number from 0")
	}
	return n, nil
}

func (p *pages) list(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	f, err := readFilter(q)
	if err != nil {
		p.fail(w, r, err)
		return
	}
	before, err := number(q, "before")
	if err != nil {
		p.fail(w, r, err)
		return
	}
	mails, more := p.store.before(f, before, pageSize)
	data := map[string]any{
		"Mails": mails, "Totals": p.Counts(), "Query": f.query, "To": f.to, "Repeated": f.repeated,
		"Filtered": f != (filter{}), "SMTP": p.SMTPAddr(), "Paged": before > 0,
	}
	link := func(before int64) string {
		u := url.Values{}
		for name, v := range map[string]string{"q": f.query, "to": f.to} {
			if v != "" {
				u.Set(name, v)
			}
		}
		if f.repeated {
			u.Set("repeated", "1")
		}
		if before > 0 {
			u.Set("before", strconv.FormatInt(before, 10))
		}
		return "/?" + u.Encode()
	}
	data["Newest"] = link(0)
	if more {
		data["Older"] = link(mails[len(mails)-1].ID)
	}
	p.render(w, http.StatusOK, "list.html", data)
}

// find reads the mail that a path names.
func (p *pages) find(id string) (Mail, []byte, error) {
	n, err := strconv.ParseInt(id, 10, 64)
	if err != nil {
		return Mail{}, nil, errNoPage
	}
	m, err := p.Mail(n)
	if err != nil {
		return Mail{}, nil, err
	}
	raw, err := p.Raw(n)
	return m, raw, err
}

func (p *pages) mail(w http.ResponseWriter, r *http.Request) {
	m, raw, err := p.find(r.PathValue("id"))
	if err != nil {
		p.fail(w, r, err)
		return
	}
	c := read(raw)
	view := r.URL.Query().Get("view")
	switch view {
	case "html", "text", "headers", "source":
	case "":
		if view = "html"; c.HTML == "" {
			view = "text"
		}
	default:
		p.fail(w, r, badRequest("view is not html, text, headers or source"))
		return
	}
	type tab struct {
		View, Name string
		Current    bool
	}
	var tabs []tab
	for _, t := range [...]tab{{View: "html", Name: "HTML"}, {View: "text", Name: "Text"}, {View: "headers", Name: "Headers"}, {View: "source", Name: "Source"}} {
		if t.View == "html" && c.HTML == "" || t.View == "text" && c.Text == "" && c.HTML != "" {
			continue
		}
		t.Current = t.View == view
		tabs = append(tabs, t)
	}
	_, errOlder := p.Mail(m.ID - 1)
	_, errNewer := p.Mail(m.ID + 1)
	p.render(w, http.StatusOK, "mail.html", map[string]any{
		"Mail": m, "Content": c, "View": view, "Tabs": tabs, "Images": r.URL.Query().Get("images") == "1",
		"Source": clip(strings.ToValidUTF8(string(raw), "\ufffd"), 1<<20), "Older": errOlder == nil, "Newer": errNewer == nil,
		"OlderID": m.ID - 1, "NewerID": m.ID + 1,
	})
}

// html serves a mail's own HTML. It is the least trusted thing there is: no scripts, no forms, an origin of its own, and nothing
// loaded from elsewhere unless asked for, since a tracking pixel that is shown counts as an open.
func (p *pages) html(w http.ResponseWriter, r *http.Request) {
	_, raw, err := p.find(r.PathValue("id"))
	if err != nil {
		p.fail(w, r, err)
		return
	}
	images := "data:"
	if r.URL.Query().Get("images") == "1" {
		images = "data: http: https:"
	}
	w.Header().Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; font-src data:; img-src "+images+
		"; form-action 'none'; base-uri 'none'; frame-ancestors 'self'; sandbox allow-popups allow-popups-to-escape-sandbox")
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	_, _ = w.Write([]byte(openLinksOutside(read(raw).HTML)))
}

func (p *pages) part(w http.ResponseWriter, r *http.Request) {
	_, raw, err := p.find(r.PathValue("id"))
	if err != nil {
		p.fail(w, r, err)
		return
	}
	c := read(raw)
	n, err := strconv.Atoi(r.PathValue("n"))
	if err != nil || n < 0 || n >= len(c.Attachments) {
		p.fail(w, r, errNoPage)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Disposition", `attachment; filename*=UTF-8''`+url.PathEscape(c.Attachments[n].Name))
	_, _ = w.Write(c.Attachments[n].data)
}

func (p *pages) clear(w http.ResponseWriter, r *http.Request) {
	if err := p.Clear(); err != nil {
		p.fail(w, r, err)
		return
	}
	http.Redirect(w, r, "/", http.StatusSeeOther)
}

func (p *pages) style(w http.ResponseWriter, _ *http.Request) {
	css, err := pageFiles.ReadFile("pages/style.css")
	if err != nil {
		http.Error(w, "no style", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/css; charset=utf-8")
	w.Header().Set("Cache-Control", "max-age=60")
	_, _ = w.Write(css)
}

func (p *pages) apiList(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	f, err := readFilter(q)
	if err != nil {
		p.fail(w, r, err)
		return
	}
	var limit, before, after int64
	for name, v := range map[string]*int64{"limit": &limit, "before": &before, "after": &after} {
		if *v, err = number(q, name); err != nil {
			p.fail(w, r, err)
			return
		}
	}
	if limit == 0 {
		limit = pageSize
	}
	limit = min(limit, maxPage)
	var mails []Mail
	var more bool
	if q.Has("after") {
		mails, more, _ = p.store.after(f, after, int(limit))
	} else {
		mails, more = p.store.before(f, before, int(limit))
	}
	if mails == nil {
		mails = []Mail{}
	}
	p.json(w, map[string]any{"mails": mails, "more": more})
}

func (p *pages) apiMail(w http.ResponseWriter, r *http.Request) {
	id, eml := strings.CutSuffix(r.PathValue("id"), ".eml")
	m, raw, err := p.find(id)
	if err != nil {
		p.fail(w, r, err)
		return
	}
	if eml {
		w.Header().Set("Content-Type", "message/rfc822")
		w.Header().Set("Content-Disposition", `attachment; filename="mail`+id+`.eml"`)
		_, _ = w.Write(raw)
		return
	}
	p.json(w, struct {
		Mail
		content
	}{m, read(raw)})
}

func (p *pages) apiCounts(w http.ResponseWriter, r *http.Request) {
	if to := r.URL.Query().Get("to"); to != "" {
		p.json(w, p.CountsTo(to))
		return
	}
	p.json(w, p.Counts())
}

func (p *pages) apiClear(w http.ResponseWriter, r *http.Request) {
	if err := p.Clear(); err != nil {
		p.fail(w, r, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func (p *pages) json(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(v)
}

// thousands writes 50000 as 50 000, with narrow spaces that do not break.
func thousands(n int) string {
	s := strconv.Itoa(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "\u202f" + s[i:]
	}
	return s
}
