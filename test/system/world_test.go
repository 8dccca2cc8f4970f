package system

import (
	"context"
	"io"
	"maps"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/onda-run/onda/internal/apply"
	"github.com/onda-run/onda/internal/campaign"
	"github.com/onda-run/onda/internal/csvimport"
	"github.com/onda-run/onda/internal/fntest"
	"github.com/onda-run/onda/internal/mailbox"
	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/token"
)

// linkURL and formURL stand in mails for the address of the ingress, which is not known yet when functions are configured.
const (
	linkURL = "https://links.onda.example"
	formURL = "https://forms.onda.example"
)

// patience is how long a test waits for anything, on a machine that has other things to do.
const patience = 5 * time.Minute

// world is the whole product on a database and a mailbox of its own.
type world struct {
	t     testing.TB
	data  *pgtest.Database
	db    *postgres.DB
	admin *postgres.Admin
	conn  *pgx.Conn // superuser's, to look at the registry
	box   *mailbox.Server
	*fntest.World
	keys   map[string]token.ProgramKey // secret ones, by tenant
	client *http.Client
	rounds int
	opened []letter // that were read, by id
}

// newWorld starts the functions; what they do not read from env is as in production, but for the shorter hold of hits.
func newWorld(tb testing.TB, cfg fntest.Config) *world {
	tb.Helper()
	w := &world{t: tb, data: pgtest.New(tb), keys: map[string]token.ProgramKey{}}
	w.db, w.admin = w.data.DB(tb), w.data.Admin(tb)
	var err error
	if w.conn, err = pgx.Connect(tb.Context(), w.data.AdminURL); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = w.conn.Close(context.Background()) })
	w.box = startMailbox(tb, tb.TempDir(), "127.0.0.1:0")
	cfg.Builds = builds()
	cfg.Env = w.env()
	cfg.ServiceEnv = map[string]map[string]string{
		"schedule": {"ONDA_DATABASE_URL": w.data.ScheduleURL, "ONDA_SPREAD": "0s"},
	}
	maps.Copy(cfg.Env, map[string]string{"ONDA_LINK_URL": linkURL, "ONDA_FORM_URL": formURL})
	w.World = fntest.Start(tb, cfg)
	w.client = newClient()
	w.makeKeys()
	return w
}

func startMailbox(tb testing.TB, dir, addr string) *mailbox.Server {
	tb.Helper()
	box, err := mailbox.Start(context.Background(), mailbox.Config{Dir: dir, SMTPAddr: addr, Rules: mailbox.DefaultRules()})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := box.Close(); err != nil {
			tb.Errorf("mailbox: %v", err)
		}
	})
	return box
}

// newClient follows no redirect: where a link leads is nobody's to ask.
func newClient() *http.Client {
	return &http.Client{
		Timeout:       patience,
		Transport:     &http.Transport{MaxIdleConnsPerHost: 16},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

func (w *world) env() map[string]string {
	return map[string]string{"ONDA_DATABASE_URL": w.data.URL, "ONDA_SMTP_URL": w.box.SMTPURL()}
}

// makeKeys gives each tenant a secret key.
func (w *world) makeKeys() {
	w.t.Helper()
	tenants, err := w.admin.Tenants(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	for _, tenant := range tenants {
		k, err := token.NewProgramKey(token.SecretKey, tenant.Number)
		if err != nil {
			w.t.Fatal(err)
		}
		sum := k.Hash()
		if err := w.admin.AddProgramKey(w.t.Context(), tenant.Name, string(token.SecretKey), "test", sum[:]); err != nil {
			w.t.Fatal(err)
		}
		w.keys[tenant.Name] = k
	}
}

// apply applies directories of documents, one after another.
func (w *world) apply(tenant string, dirs ...string) {
	w.t.Helper()
	for _, dir := range dirs {
		if _, _, err := apply.Directory(w.t.Context(), w.db, tenant, os.DirFS(dir), nil); err != nil {
			w.t.Fatal(err)
		}
	}
}

// load imports a list of contacts.
func (w *world) load(tenant, csv string, consent ...string) csvimport.Result {
	w.t.Helper()
	opts := csvimport.Options{Name: "list.csv", Consent: consent}
	if len(consent) > 0 {
		opts.Proof = "the test's list"
	}
	res, err := csvimport.Import(w.t.Context(), w.db, tenant, strings.NewReader(csv), opts)
	if err != nil {
		w.t.Fatal(err)
	}
	return res
}

// launch starts a campaign or broadcast.
func (w *world) launch(tenant, name string) {
	w.t.Helper()
	pgtest.In(w.t, w.db, tenant, func(ctx context.Context, tx *postgres.Tx) error {
		_, err := campaign.Start(ctx, tx, name, campaign.Options{})
		return err
	})
}

// setClock moves the clocks of the tenants to a moment.
func (w *world) setClock(tenants []string, at time.Time) {
	w.t.Helper()
	infos, err := w.admin.Tenants(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	for _, tenant := range infos {
		for _, name := range tenants {
			if tenant.Name != name {
				continue
			}
			if _, err := w.admin.MoveClock(w.t.Context(), name, time.Until(at)-tenant.Offset); err != nil {
				w.t.Fatal(err)
			}
		}
	}
}

// until lets time pass up to a moment on the tenants' clocks: whatever goes on comes to its end, and then the clocks go on to when something is due, a minute
// at the least, as ticks are. It returns when nothing is due before the moment, with the clocks at it.
func (w *world) until(tenants []string, moment time.Time) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), patience)
	defer cancel()
	for {
		w.Settle(ctx)
		var now, next time.Time
		err := w.conn.QueryRow(ctx, `SELECT clock_timestamp() + max(t."offset"), least(min(w.at), '9000-01-01') FROM onda.wakeup w JOIN onda.tenant t ON t.name = w.tenant
			WHERE t.name = ANY ($1)`, tenants).Scan(&now, &next)
		if err != nil {
			w.t.Fatalf("%v; at %s, due %s", err, now.UTC(), next.UTC())
		}
		if next.After(now) {
			if next.After(moment) {
				w.setClock(tenants, moment)
				return
			}
			w.setClock(tenants, maxTime(next, minTime(now.Add(time.Minute), moment)).Add(time.Millisecond))
		}
		w.rounds++
		w.Tick(ctx)
	}
}

func maxTime(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func minTime(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// request makes a request at the ingress; URLs of mails are understood. It answers the status and the body.
func (w *world) request(method, url string, header http.Header, body string) (int, string) {
	w.t.Helper()
	for _, base := range []string{linkURL, formURL} {
		if path, ok := strings.CutPrefix(url, base); ok {
			url = w.URL() + path
		}
	}
	r, err := http.NewRequestWithContext(w.t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		w.t.Fatal(err)
	}
	maps.Copy(r.Header, header)
	resp, err := w.client.Do(r)
	if err != nil {
		w.t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}

// must makes a request that is to be answered with one of some statuses, and answers the body.
func (w *world) must(method, url string, header http.Header, body string, statuses ...int) string {
	w.t.Helper()
	status, text := w.request(method, url, header, body)
	for _, s := range statuses {
		if s == status {
			return text
		}
	}
	w.t.Fatalf("%s %s: status %d, not %v: %s", method, url, status, statuses, text)
	return ""
}

// secret is the header with which a tenant's program calls.
func (w *world) secret(tenant, contentType string) http.Header {
	return http.Header{"Authorization": {"Bearer " + w.keys[tenant].Reveal()}, "Content-Type": {contentType}}
}

func local(address string) string {
	l, _, _ := strings.Cut(address, "@")
	return l
}

// all reads one text column in a tenant.
func (w *world) all(tenant, sql string) []string {
	w.t.Helper()
	return pgtest.All[string](w.t, w.db, tenant, sql)
}

func (w *world) count(tenant, sql string, args ...any) int {
	w.t.Helper()
	return int(pgtest.One[int64](w.t, w.db, tenant, sql, args...))
}
