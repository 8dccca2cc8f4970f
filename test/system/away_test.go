package system

import (
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/onda-run/onda/internal/localbroker"
	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/postgres"
)

// server is a Postgres of the test's own, that may crash.
type server struct {
	t    testing.TB
	home string
}

// script runs scripts/postgres.sh for the server, and answers what it prints.
func (s *server) script(verb string) string {
	s.t.Helper()
	cmd := exec.Command("scripts/postgres.sh", verb)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "ONDA_HOME="+s.home)
	var errs strings.Builder
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		s.t.Fatalf("scripts/postgres.sh %s: %v: %s", verb, err, errs.String())
	}
	return strings.TrimSpace(string(out))
}

// crash ends the server at once, with nothing written that is not in its log already, as a machine does that loses power.
func (s *server) crash() {
	s.t.Helper()
	text, err := os.ReadFile(filepath.Join(s.home, "postgres", "postmaster.pid"))
	if err != nil {
		s.t.Fatal(err)
	}
	line, _, _ := strings.Cut(string(text), "\n")
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		s.t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGQUIT); err != nil {
		s.t.Fatal(err)
	}
	wait(s.t, "Postgres to end", func() bool { return syscall.Kill(pid, 0) != nil })
}

// newServer starts a server with a database of the two tenants.
func newServer(tb testing.TB) (*server, *pgtest.Database) {
	tb.Helper()
	s := &server{t: tb, home: tb.TempDir()}
	admin := s.script("start")
	tb.Cleanup(func() { s.script("stop") })
	a, err := postgres.OpenAdmin(tb.Context(), admin)
	if err != nil {
		tb.Fatal(err)
	}
	defer func() { _ = a.Close(tb.Context()) }()
	if _, err := a.Migrate(tb.Context()); err != nil {
		tb.Fatal(err)
	}
	if err := a.MarkDevelopment(tb.Context()); err != nil {
		tb.Fatal(err)
	}
	for _, tenant := range []string{pgtest.Acme, pgtest.Brava} {
		if _, err := a.CreateTenant(tb.Context(), tenant); err != nil {
			tb.Fatal(err)
		}
	}
	login := func(name string) string {
		u, err := url.Parse(admin)
		if err != nil {
			tb.Fatal(err)
		}
		u.User = url.User(name)
		return u.String()
	}
	return s, &pgtest.Database{AdminURL: admin, URL: login("onda_pool"), ScheduleURL: login("onda_schedule")}
}

// Postgres crashes, and is stopped and started, and the relay goes away and comes back, while broadcasts go out. Nothing is lost or repeated by it.
func TestPostgresAndRelayGoAwayAndComeBack(t *testing.T) {
	t.Parallel()
	s, data := newServer(t)
	f := newFleet(t, data, localbroker.Chaos{Drop: .2, Repeat: .2, Seed: 5})
	tenants := map[string]int{pgtest.Acme: 1500, pgtest.Brava: 700}
	f.audiences(tenants)
	come := func(n int) {
		t.Helper()
		wait(t, "mails to come", func() bool { return f.received() >= n })
	}
	come(1)
	pixel := strings.TrimPrefix(f.letters()[0].pixel, linkURL)
	troubles := 0
	for _, trouble := range []struct {
		after      int // so many mails
		relayOnly  bool
		away, back func()
	}{
		{150, false, s.crash, func() { s.script("start") }},
		{400, true, f.closeBox, f.openBox},
		{700, false, func() { s.script("stop") }, func() { s.script("start") }},
		{1000, false, func() { f.closeBox(); s.crash() }, func() { f.openBox(); s.script("start") }},
	} {
		come(trouble.after)
		trouble.away()
		if trouble.relayOnly {
			ticks := f.requests("schedule")
			wait(t, "a few ticks", func() bool { return f.requests("schedule") >= ticks+3 })
		} else {
			for _, page := range []string{"/f/acme/newsletter", "/f/brava/newsletter", pixel} { // nothing is answered that was not stored or read
				if status, err := get(t.Context(), f.world, f.dev.URL()+page); err != nil || status != http.StatusServiceUnavailable {
					t.Errorf("%s while Postgres is away: status %d, %v", page[:3], status, err)
				}
			}
		}
		trouble.back()
		troubles++
		f.later(10*time.Minute, tenants) // what was put off meanwhile is tried again
		t.Logf("trouble %d over after %d mails", troubles, f.received())
	}
	wait(t, "the broadcasts to be over", func() bool { return f.over(tenants) })
	f.audit(tenants, troubles*batches*window)
}

// later moves the clocks of tenants. The connection of an earlier time may be gone with its server.
func (f *fleet) later(d time.Duration, tenants map[string]int) {
	f.t.Helper()
	f.admin = f.data.Admin(f.t)
	for tenant := range tenants {
		if _, err := f.admin.MoveClock(f.t.Context(), tenant, d); err != nil {
			f.t.Fatal(err)
		}
	}
}

// requests is how many a service has been given.
func (f *fleet) requests(service string) int64 {
	for _, s := range f.dev.Status().Services {
		if s.Service == service {
			return s.Requests
		}
	}
	f.t.Fatalf("no service %s", service)
	return 0
}
