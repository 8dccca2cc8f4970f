package mailbox_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/onda-run/onda/internal/mail"
	"github.com/onda-run/onda/internal/mailbox"
)

type answer struct {
	status int
	header http.Header
	body   string
}

func ask(t *testing.T, s *mailbox.Server, method, path string, header ...string) answer {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "http://"+s.HTTPAddr()+path, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	res, err := transport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{res.StatusCode, res.Header, string(body)}
}

func get(t *testing.T, s *mailbox.Server, path string) answer {
	t.Helper()
	return ask(t, s, http.MethodGet, path)
}

func getJSON[T any](t *testing.T, s *mailbox.Server, path string) T {
	t.Helper()
	a := get(t, s, path)
	var v T
	if err := json.Unmarshal([]byte(a.body), &v); err != nil || a.status != http.StatusOK {
		t.Fatalf("%s: %d %s, %v", path, a.status, a.body, err)
	}
	return v
}

type page struct {
	Mails []mailbox.Mail `json:"mails"`
	More  bool           `json:"more"`
}

func ids(p page) (out []int64) {
	for _, m := range p.Mails {
		out = append(out, m.ID)
	}
	return out
}

func TestPages(t *testing.T) {
	t.Parallel()
	s := start(t, mailbox.Config{})
	if a := get(t, s, "/"); a.status != 200 || !strings.Contains(a.body, "No mail yet") || !strings.Contains(a.body, s.SMTPAddr()) {
		t.Errorf("empty list: %d %s", a.status, a.body)
	}
	p := sender(t, s, 1)
	for i := 1; i <= 120; i++ {
		send(t, p, fmt.Sprintf("r%d@example.com", i), body(fmt.Sprint(i), fmt.Sprintf("Subject %d <b>&", i)))
	}
	first := get(t, s, "/")
	if n := strings.Count(first.body, "<li><a href=\"/mails/"); n != 50 || !strings.Contains(first.body, "Subject 120 &lt;b&gt;&amp;") || strings.Contains(first.body, "<b>") {
		t.Errorf("%d mails on the first page: %s", n, first.body)
	}
	if !strings.Contains(first.body, `href="/?before=71"`) {
		t.Error("no link to older mails")
	}
	if last := get(t, s, "/?before=21"); strings.Count(last.body, "<li><a href=") != 20 || strings.Contains(last.body, "rel=\"next\"") {
		t.Errorf("the last page: %s", last.body)
	}
	if found := get(t, s, "/?q="+url.QueryEscape("SUBJECT 77 <")); strings.Count(found.body, "<li><a href=") != 1 || !strings.Contains(found.body, "r77@example.com") {
		t.Errorf("search: %s", found.body)
	}
	if none := get(t, s, "/?q="+url.QueryEscape(`"><script>x`)); !strings.Contains(none.body, "No mail matches") || strings.Contains(none.body, "<script>") {
		t.Errorf("search for nothing: %s", none.body)
	}
	for path, status := range map[string]int{
		"/mails/0": 404, "/mails/121": 404, "/mails/x": 404, "/nothing": 404, "/mails/1/parts/0": 404, "/mails/1?view=x": 400, "/?before=x": 400, "/?repeated=x": 400,
		"/api/mails/121": 404, "/api/mails/121.eml": 404, "/api/mails?limit=-1": 400, "/api/nothing": 404,
	} {
		a := get(t, s, path)
		if a.status != status {
			t.Errorf("%s: %d, want %d", path, a.status, status)
		}
		want := "text/html; charset=utf-8"
		if strings.HasPrefix(path, "/api/") {
			want = "application/problem+json"
		}
		if got := a.header.Get("Content-Type"); got != want {
			t.Errorf("%s: %s", path, got)
		}
	}
	for _, a := range []answer{first, get(t, s, "/mails/1"), get(t, s, "/mails/0"), get(t, s, "/api/counts")} {
		if csp := a.header.Get("Content-Security-Policy"); !strings.HasPrefix(csp, "default-src 'none'; style-src 'self'") || strings.Contains(csp, "script") {
			t.Errorf("policy %q", csp)
		}
	}
}

func TestAPI(t *testing.T) {
	t.Parallel()
	s := start(t, mailbox.Config{})
	p := sender(t, s, 1)
	for i := 1; i <= 5; i++ {
		send(t, p, fmt.Sprintf("r%d@example.com", i%3), body(fmt.Sprint(i/4), "s"))
	}
	for path, want := range map[string]page{
		"/api/mails":                    {Mails: mails(5, 4, 3, 2, 1)},
		"/api/mails?limit=2":            {Mails: mails(5, 4), More: true},
		"/api/mails?limit=2&before=4":   {Mails: mails(3, 2), More: true},
		"/api/mails?after=0&limit=3":    {Mails: mails(1, 2, 3), More: true},
		"/api/mails?after=3":            {Mails: mails(4, 5)},
		"/api/mails?after=5":            {},
		"/api/mails?to=R1@example.com":  {Mails: mails(4, 1)},
		"/api/mails?repeated=1":         {},
		"/api/mails?q=nothing":          {},
		"/api/mails?q=%3C1@acme":        {Mails: mails(5, 4)},
		"/api/mails?limit=999999":       {Mails: mails(5, 4, 3, 2, 1)},
		"/api/mails?before=99999999999": {Mails: mails(5, 4, 3, 2, 1)},
	} {
		got := getJSON[page](t, s, path)
		if diff := cmp.Diff(ids(want), ids(got)); diff != "" || got.More != want.More {
			t.Errorf("%s: more %v (-want +got):\n%s", path, got.More, diff)
		}
	}
	send(t, p, "r1@example.com", body("1", "s"))
	if got := ids(getJSON[page](t, s, "/api/mails?repeated=1")); !cmp.Equal(got, []int64{6}) {
		t.Errorf("repeated: %v", got)
	}
	want := mailbox.Totals{Counts: mailbox.Counts{Received: 6, Distinct: 5, Repeated: 1}}
	if got := getJSON[mailbox.Totals](t, s, "/api/counts"); got != want {
		t.Errorf("counts %+v", got)
	}
	if got := getJSON[mailbox.Counts](t, s, "/api/counts?to=r1@example.com"); got != (mailbox.Counts{Received: 3, Distinct: 2, Repeated: 1}) {
		t.Errorf("counts of one %+v", got)
	}
	eml := get(t, s, "/api/mails/1.eml")
	if eml.body != string(body("0", "s")) || eml.header.Get("Content-Type") != "message/rfc822" {
		t.Errorf("%+v", eml)
	}
	one := getJSON[struct {
		To      string `json:"to"`
		Text    string `json:"text"`
		Headers []struct{ Name, Value string }
	}](t, s, "/api/mails/1")
	if one.To != "r1@example.com" || one.Text != "hello\n.dot\n" || len(one.Headers) != 3 || one.Headers[0].Value != "Maré <news@acme.example>" {
		t.Errorf("%+v", one)
	}
}

func mails(ids ...int64) (out []mailbox.Mail) {
	for _, id := range ids {
		out = append(out, mailbox.Mail{ID: id})
	}
	return out
}

func TestClearOverHTTP(t *testing.T) {
	t.Parallel()
	s := start(t, mailbox.Config{})
	p := sender(t, s, 1)
	send(t, p, "ana@example.com", body("1", "s"))
	get(t, s, "/clear")
	for _, origin := range [][]string{{"Sec-Fetch-Site", "cross-site"}, {"Origin", "https://evil.example"}} {
		for method, path := range map[string]string{http.MethodPost: "/clear", http.MethodDelete: "/api/mails"} {
			if a := ask(t, s, method, path, origin...); a.status != http.StatusForbidden {
				t.Errorf("%s from %s: %d", method, origin[1], a.status)
			}
		}
	}
	for host, status := range map[string]int{"evil.example": http.StatusMisdirectedRequest, "evil.example:8025": http.StatusMisdirectedRequest, "localhost:8025": 200, "[::1]:8025": 200} {
		r := httptest.NewRequest(http.MethodGet, "http://"+host+"/", nil)
		w := httptest.NewRecorder()
		if s.Handler().ServeHTTP(w, r); w.Code != status {
			t.Errorf("%s: %d", host, w.Code)
		}
	}
	if s.Counts().Received != 1 {
		t.Fatal("GET, or another site, emptied the mailbox")
	}
	if a := ask(t, s, http.MethodPost, "/clear", "Sec-Fetch-Site", "same-origin"); a.status != http.StatusSeeOther || s.Counts().Received != 0 {
		t.Errorf("%d, %+v", a.status, s.Counts())
	}
	send(t, p, "ana@example.com", body("1", "s"))
	if a := ask(t, s, http.MethodDelete, "/api/mails"); a.status != http.StatusNoContent || s.Counts().Received != 0 {
		t.Errorf("%d, %+v", a.status, s.Counts())
	}
}

func TestShowsMail(t *testing.T) {
	t.Parallel()
	s := start(t, mailbox.Config{})
	p := sender(t, s, 1)
	const evil = `<!doctype html><html><head><title>x</title></head><body><script>alert(1)</script><p>Olá</p><img src="https://l.example/o/x.gif"></body></html>`
	raw := strings.ReplaceAll(`From: a@b.example
To: <ana@example.com>
Subject: <script>alert(2)</script>
MIME-Version: 1.0
Content-Type: multipart/mixed; boundary=o

--o
Content-Type: multipart/alternative; boundary=i

--i
Content-Type: text/plain; charset=iso-8859-1
Content-Transfer-Encoding: quoted-printable

Ol=E1 </pre><script>alert(3)</script>
--i
Content-Type: text/html; charset=utf-8

`+evil+`
--i--
--o
Content-Type: application/pdf
Content-Disposition: attachment; filename="../a.pdf"
Content-Transfer-Encoding: base64

aGVsbG8=
--o--
`, "\n", "\r\n")
	send(t, p, "ana@example.com", []byte(raw))
	send(t, p, "ana@example.com", []byte("Subject: broken\r\nContent-Type: multipart/mixed; boundary=x\r\n\r\n--x\r\n\r\nstart\r\n--x\r\nbroken header\r\n\r\nrest"))
	send(t, p, "ana@example.com", []byte("no header at all\r\n"))

	main := get(t, s, "/mails/1")
	for _, want := range []string{
		`sandbox="allow-popups allow-popups-to-escape-sandbox"`, `src="/mails/1/html"`, "&lt;script&gt;alert(2)", ".._a.pdf", "5 bytes", `aria-current="page">HTML`,
	} {
		if !strings.Contains(main.body, want) {
			t.Errorf("the page lacks %s", want)
		}
	}
	for _, view := range []string{"", "?view=text", "?view=headers", "?view=source"} {
		if a := get(t, s, "/mails/1"+view); a.status != 200 || strings.Contains(a.body, "<script") {
			t.Errorf("%s: %d, or it has a script", view, a.status)
		}
	}
	if a := get(t, s, "/mails/1?view=text"); !strings.Contains(a.body, "Olá &lt;/pre&gt;") {
		t.Errorf("text: %s", a.body)
	}
	frame := get(t, s, "/mails/1/html")
	csp := frame.header.Get("Content-Security-Policy")
	if !strings.Contains(csp, "default-src 'none'") || !strings.Contains(csp, "img-src data:;") || !strings.Contains(csp, "sandbox allow-popups") ||
		strings.Contains(csp, "allow-scripts") || strings.Contains(csp, "allow-same-origin") {
		t.Errorf("policy of the frame: %s", csp)
	}
	if want := strings.Replace(evil, "<head>", `<head><base target="_blank">`, 1); frame.body != want {
		t.Errorf("the frame shows %s", frame.body)
	}
	if csp := get(t, s, "/mails/1/html?images=1").header.Get("Content-Security-Policy"); !strings.Contains(csp, "img-src data: http: https:;") {
		t.Errorf("policy with images: %s", csp)
	}
	file := get(t, s, "/mails/1/parts/0")
	if file.body != "hello" || file.header.Get("Content-Type") != "application/octet-stream" || !strings.HasPrefix(file.header.Get("Content-Disposition"), "attachment; filename*=UTF-8''.._a.pdf") {
		t.Errorf("%+v", file)
	}
	if a := get(t, s, "/mails/2"); a.status != 200 || !strings.Contains(a.body, "start") || !strings.Contains(a.body, "read up to here") {
		t.Errorf("broken mail: %d %s", a.status, a.body)
	}
	if a := get(t, s, "/mails/3?view=source"); a.status != 200 || !strings.Contains(a.body, "no header at all") {
		t.Errorf("no mail: %d %s", a.status, a.body)
	}
}

// TestShowsWhatMailBuilds reads what package mail builds.
func TestShowsWhatMailBuilds(t *testing.T) {
	t.Parallel()
	s := start(t, mailbox.Config{})
	p := sender(t, s, 1)
	raw, err := mail.Message{
		From: mail.Address{Name: "Maré", Email: "news@acme.example"}, To: mail.Address{Name: "Ana", Email: "ana@example.com"},
		Subject: "Olá, três livros", HTML: "<p>olá</p>", Text: "olá", MessageID: mail.MessageID(1, 2, "acme.example"), Date: time.Date(2026, 11, 24, 0, 0, 0, 0, time.UTC),
	}.Build()
	if err != nil {
		t.Fatal(err)
	}
	send(t, p, "ana@example.com", raw)
	m, err := s.Mail(1)
	if err != nil || m.Subject != "Olá, três livros" || m.From != "Maré <news@acme.example>" || m.MessageID != mail.MessageID(1, 2, "acme.example") {
		t.Errorf("%+v, %v", m, err)
	}
	if got, err := s.Raw(1); err != nil || string(got) != string(raw) {
		t.Errorf("it came changed: %v", err)
	}
	if a := get(t, s, "/mails/1/html"); !strings.Contains(a.body, "<p>olá</p>") {
		t.Errorf("%s", a.body)
	}
}
