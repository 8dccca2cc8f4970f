package send

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/onda-run/onda/internal/event"
	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/token"
)

// programKey makes a key of a tenant that is in force.
func (w *world) programKey(tenant string, kind token.KeyKind) token.ProgramKey {
	w.t.Helper()
	number := pgtest.One[int32](w.t, w.db, tenant, "SELECT number FROM onda.tenant WHERE name = current_user")
	k, err := token.NewProgramKey(kind, number)
	if err != nil {
		w.t.Fatal(err)
	}
	sum := k.Hash()
	pgtest.Exec(w.t, w.db, tenant, "INSERT INTO key (kind, secret) VALUES ($1, $2)", string(kind), sum[:])
	return k
}

// call posts a body to /v1/emails. Header lines are "Name: value".
func call(in http.Handler, body string, headers ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequestWithContext(context.Background(), http.MethodPost, "/v1/emails", strings.NewReader(body))
	r.Header.Set("Content-Type", "application/json")
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		r.Header.Set(name, value)
	}
	w := httptest.NewRecorder()
	in.ServeHTTP(w, r)
	return w
}

func TestPostEmailRefuses(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	in := w.start()
	secret := w.programKey(pgtest.Acme, token.SecretKey)
	stranger, err := token.NewProgramKey(token.SecretKey, secret.Tenant)
	if err != nil {
		t.Fatal(err)
	}
	nowhere, err := token.NewProgramKey(token.SecretKey, 4711)
	if err != nil {
		t.Fatal(err)
	}
	good := "Authorization: Bearer " + secret.Reveal()
	const mail = `{"to": "a@x.example", "email": "password", "data": {"code": "1"}}`
	for _, c := range []struct {
		name, body string
		headers    []string
		status     int
		detail     string
	}{
		{"without a key", mail, nil, 401, "secret key"},
		{"with another scheme", mail, []string{"Authorization: Digest x"}, 401, "secret key"},
		{"with a key that is none", mail, []string{"Authorization: Bearer onda_sk_1_x"}, 401, "secret key"},
		{"with a key that was never given", mail, []string{"Authorization: Bearer " + stranger.Reveal()}, 401, "secret key"},
		{"with a key of a tenant that is none", mail, []string{"Authorization: Bearer " + nowhere.Reveal()}, 401, "secret key"},
		{"with a public key", mail, []string{"Authorization: Bearer " + w.programKey(pgtest.Acme, token.PublicKey).Reveal()}, 403, "public key"},
		{"not JSON", mail, []string{good, "Content-Type: text/plain"}, 415, "application/json"},
		{"broken JSON", `{"to": `, []string{good}, 400, "too early"},
		{"two objects", mail + mail, []string{good}, 400, "after the object"},
		{"an unknown member", `{"to": "a@x.example", "email": "password", "template": 1}`, []string{good}, 400, "template"},
		{"a member of another type", `{"to": 5}`, []string{good}, 400, "to"},
		{"without a recipient", `{"email": "password"}`, []string{good}, 422, `"to" is missing`},
		{"without an email", `{"to": "a@x.example"}`, []string{good}, 422, `"email" is missing`},
		{"an address that is none", `{"to": "a.x.example", "email": "password", "data": {"code": "1"}}`, []string{good}, 422, "not an address"},
		{"an email that is none", `{"to": "a@x.example", "email": "nothing"}`, []string{good}, 422, `no email "nothing"`},
		{"an email with a topic", `{"to": "a@x.example", "email": "news"}`, []string{good}, 422, "consent"},
		{"without the data it needs", `{"to": "a@x.example", "email": "password", "data": {"cod": "1"}}`, []string{good}, 422, "data.code"},
		{"with a character that cannot be stored", `{"to": "a@x.example", "email": "password", "data": {"code": "1\u0000"}}`, []string{good}, 422, "U+0000"},
		{"an attachment without content", `{"to": "a@x.example", "email": "password", "data": {"code": "1"}, "attachments": [{"name": "a.txt"}]}`, []string{good}, 422, "attachments[0]"},
		{"an attachment that is not base64", `{"to": "a@x.example", "email": "password", "attachments": [{"name": "a.txt", "content": "!"}]}`, []string{good}, 400, "base64"},
		{"too large", `{"to": "` + strings.Repeat("a", maxRequest) + `"}`, []string{good}, 413, "10 MiB"},
		{"a key that is too long", mail, []string{good, "Idempotency-Key: " + strings.Repeat("k", 256)}, 400, "255"},
	} {
		r := call(in, c.body, c.headers...)
		var p struct {
			Status        int
			Title, Detail string
		}
		if err := json.Unmarshal(r.Body.Bytes(), &p); err != nil || r.Header().Get("Content-Type") != "application/problem+json" {
			t.Errorf("%s: no problem details: %s %q", c.name, r.Header().Get("Content-Type"), r.Body)
			continue
		}
		if r.Code != c.status || p.Status != c.status || !strings.Contains(p.Detail, c.detail) || p.Title == "" {
			t.Errorf("%s: %d %+v, want %d with %q", c.name, r.Code, p, c.status, c.detail)
		}
		if strings.Contains(r.Body.String(), "a@x.example") || strings.Contains(r.Body.String(), secret.Reveal()) {
			t.Errorf("%s: the answer repeats an address or a key: %s", c.name, r.Body)
		}
		if (c.status == 401) != (r.Header().Get("WWW-Authenticate") != "") {
			t.Errorf("%s: WWW-Authenticate %q", c.name, r.Header().Get("WWW-Authenticate"))
		}
	}
	if n := w.count("SELECT (SELECT count(*) FROM request) + (SELECT count(*) FROM batch) + (SELECT count(*) FROM contact)"); n != 0 {
		t.Errorf("%d rows were written by requests that were refused", n)
	}
}

func TestPostEmailStoresOneMailAKey(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	in := w.start()
	key := w.programKey(pgtest.Acme, token.SecretKey)
	basic := "Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte(key.Reveal()+":"))
	const body = `{"to": "A@X.example", "email": "password", "data": {"code": "one & two"}, "attachments": [{"name": "n.txt", "type": "text/plain", "content": "aGVsbG8="}]}`
	delivered := func(r *httptest.ResponseRecorder) string {
		t.Helper()
		var a map[string]string
		if err := json.Unmarshal(r.Body.Bytes(), &a); err != nil || r.Code != http.StatusAccepted {
			t.Fatalf("status %d, %s", r.Code, r.Body)
		}
		return a["delivery"]
	}
	first := delivered(call(in, body, basic, "Idempotency-Key: order-7"))
	if again := delivered(call(in, body, basic, "Idempotency-Key: order-7")); again != first || first == "" {
		t.Errorf("deliveries %q and %q under one key", first, again)
	}
	if other := delivered(call(in, body, basic)); other == first {
		t.Error("a request without a key is a repeat")
	}
	if r := call(in, strings.Replace(body, "one", "three", 1), basic, "Idempotency-Key: order-7"); r.Code != http.StatusUnprocessableEntity {
		t.Errorf("the key with another request: %d %s", r.Code, r.Body)
	}
	if n := w.count("SELECT count(*) FROM contact"); n != 1 {
		t.Errorf("%d contacts for one address", n)
	}
	// Nobody was asked to: the process that took them sends them.
	wait(t, 30*time.Second, "the mails", func() bool { return w.count("SELECT count(*) FROM delivery WHERE state = 'sent'") == 2 })
	if n := w.count("SELECT count(*) FROM outbox WHERE type = 'onda.email.requested.v1'"); n != 0 {
		t.Errorf("%d events would wake another process for a mail that is sent", n)
	}
	mails := w.smtp.MailsTo("a@x.example")
	if len(mails) != 2 {
		t.Fatalf("%d mails, want 2", len(mails))
	}
	for _, want := range []string{"one &amp; two", "n.txt", "aGVsbG8="} {
		if !strings.Contains(string(mails[0].Body), want) {
			t.Errorf("the mail lacks %q:\n%s", want, mails[0].Body)
		}
	}
	if d := cmp.Diff([]string{"sent", "sent"}, pgtest.All[string](t, w.db, pgtest.Acme, "SELECT state FROM delivery")); d != "" {
		t.Errorf("states (-want +got):\n%s", d)
	}
	// After seven days nothing of what it was asked for with is kept; what became of it is.
	w.moveClock(7*24*60*60*1e9 + 1e9)
	w.mustSweep(in, "send-api")
	if n := w.count("SELECT count(*) FROM request"); n != 0 {
		t.Errorf("%d requests are kept", n)
	}
}

// A process that was started for a mail reaches its relay while it stores that mail, and for nobody who has not proven a key.
func TestTheRelayIsReachedWhileAMailIsStored(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	in := w.start()
	const none = `{"to": "a@x.example", "email": "none"}`
	if r := call(in, none, "Authorization: Bearer "+w.programKey(pgtest.Acme, token.PublicKey).Reveal()); r.Code != http.StatusForbidden {
		t.Fatalf("status %d, %s", r.Code, r.Body)
	}
	if made, _ := w.smtp.Conns(); made > 0 {
		t.Error("a relay was reached for a key that is in every browser")
	}
	key := "Authorization: Bearer " + w.programKey(pgtest.Acme, token.SecretKey).Reveal()
	if r := call(in, none, key); r.Code != http.StatusUnprocessableEntity {
		t.Fatalf("status %d, %s", r.Code, r.Body)
	}
	w.smtp.Wait("the relay greets", func() bool { return len(w.smtp.Commands()) > 0 })
	made, _ := w.smtp.Conns()
	if r := call(in, `{"to": "a@x.example", "email": "password", "data": {"code": "1"}}`, key); r.Code != http.StatusAccepted {
		t.Fatalf("status %d, %s", r.Code, r.Body)
	}
	w.smtp.Wait("the mail", func() bool { return len(w.smtp.Mails()) == 1 })
	if again, _ := w.smtp.Conns(); again != made {
		t.Errorf("%d connections were made for a mail to a relay that was reached", again-made)
	}
}

// Where the relay that was reached for a mail says nothing, nobody waits for it: not for each request, and not the end of the process. Alone, since goroutines are counted.
func TestARelayThatSaysNothing(t *testing.T) { //nolint:paralleltest // see above
	w := newWorld(t)
	mute, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = mute.Close() })
	w.env["ONDA_SMTP_URL"] = "smtp://" + mute.Addr().String() + "?tls=none"
	in := w.start()
	key := "Authorization: Bearer " + w.programKey(pgtest.Acme, token.SecretKey).Reveal()
	bring := func() {
		if r := call(in, `{"to": "a@x.example", "email": "none"}`, key); r.Code != http.StatusUnprocessableEntity {
			t.Fatalf("status %d, %s", r.Code, r.Body)
		}
	}
	bring()
	for range 2 { // it looks whether the relay is there, and then speaks to it
		c, err := mute.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
	}
	const requests = 40
	before := runtime.NumGoroutine()
	for range requests {
		bring()
	}
	if more := runtime.NumGoroutine() - before; more > requests/2 {
		t.Errorf("%d requests left %d goroutines", requests, more)
	}
	if err := in.Stop(t.Context()); err != nil {
		t.Error(err)
	}
}

// What was taken and not sent before the process ended is found by the sweep; and what its relay would not take goes to a later turn, by its wake-up.
func TestTakenMailsOutliveTheProcess(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	in := w.start("ONDA_LANE=bulk") // takes, and sends none of them: as one that ends at once
	key := "Authorization: Bearer " + w.programKey(pgtest.Acme, token.SecretKey).Reveal()
	for _, to := range []string{"a@x.example", "b@x.example"} {
		if r := call(in, `{"to": "`+to+`", "email": "password", "data": {"code": "1"}}`, key); r.Code != http.StatusAccepted {
			t.Fatalf("status %d, %s", r.Code, r.Body)
		}
	}
	if n := w.count("SELECT count(*) FROM onda.wakeup WHERE function = 'send-api' AND at <= onda.now()"); n != 1 {
		t.Error("the sweep does not know of them")
	}
	next := w.start()
	w.mustSweep(next, "send-api")
	if n := w.count("SELECT count(*) FROM delivery WHERE state = 'sent'"); n != 2 || len(w.smtp.Mails()) != 2 {
		t.Errorf("%d are sent, %d came", n, len(w.smtp.Mails()))
	}
	if n := w.count("SELECT count(*) FROM onda.wakeup WHERE function = 'send-api' AND at <= onda.now()"); n != 0 {
		t.Error("the wake-up stays")
	}
}

func TestTenantsKeysAreTheirOwn(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	in := w.start()
	brava := w.programKey(pgtest.Brava, token.SecretKey)
	r := call(in, `{"to": "a@x.example", "email": "password", "data": {"code": "1"}}`, "Authorization: Bearer "+brava.Reveal())
	if r.Code != http.StatusUnprocessableEntity || !strings.Contains(r.Body.String(), "no email") {
		t.Errorf("brava's key reached acme's email: %d %s", r.Code, r.Body)
	}
	acmeOnly := w.start("ONDA_TENANT=acme")
	if r := call(acmeOnly, `{}`, "Authorization: Bearer "+brava.Reveal()); r.Code != http.StatusUnauthorized {
		t.Errorf("a process of acme alone answers brava with %d", r.Code)
	}
}

func TestEventsThatCanNeverSucceedAreKept(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	in := w.start()
	for name, d := range map[string]event.EmailRequested{
		"no such email":     {Email: "nothing", Contact: 1, Key: "a"},
		"not transactional": {Email: "news", Contact: 1, Key: "b"},
		"without its data":  {Email: "password", Contact: 1, Key: "c"},
		"not to be stored":  {Email: "password", Contact: 1, Key: "d", Data: map[string]any{"code": "\x00"}},
	} {
		e, err := event.New(pgtest.Acme, "shop", "", event.DeriveID(name), d)
		if err != nil {
			t.Fatal(err)
		}
		if status := post(context.Background(), in, e); status != http.StatusBadRequest {
			t.Errorf("%s: status %d", name, status)
		}
	}
	if n := w.count("SELECT count(*) FROM failure WHERE function = 'send'"); n != 4 {
		t.Errorf("%d failures are kept, want 4", n)
	}
	if n := w.count("SELECT count(*) FROM batch"); n != 0 {
		t.Errorf("%d mails were planned", n)
	}
}

func TestConfigNamesWhatIsWrong(t *testing.T) {
	t.Parallel()
	good := func() Config {
		c := Config{SMTP: "smtp://127.0.0.1:1025?tls=none", Connections: 8, Batches: 4, Lease: 60e9, MessageLimit: 30e9, Turn: 20e9, Lane: "both"}
		c.Compose.LinkURL = "https://links.acme.example"
		return c
	}
	c := good()
	if err := c.Check(); err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string]func(c *Config){
		"ONDA_SMTP_URL":         func(c *Config) { c.SMTP = "http://x" },
		"ONDA_SMTP_CONNECTIONS": func(c *Config) { c.Connections = 0 },
		"ONDA_BATCHES":          func(c *Config) { c.Batches = 1000 },
		"ONDA_LEASE":            func(c *Config) { c.Lease = 1 },
		"ONDA_MESSAGE_LIMIT":    func(c *Config) { c.MessageLimit = 0 },
		"ONDA_TURN":             func(c *Config) { c.Turn = 0 },
		"ONDA_LANE":             func(c *Config) { c.Lane = "fast" },
		"ONDA_LINK_URL":         func(c *Config) { c.Compose.LinkURL = "http://links.acme.example" },
	} {
		c := good()
		change(&c)
		if err := c.Check(); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
}
