package system

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/onda-run/onda/internal/pgtest"
)

// The tour of make run comes to its end, with fewer contacts, and shows what it says. It compares counts itself, and ends with status 1 where one is not as promised.
func TestTour(t *testing.T) {
	t.Parallel()
	bin, err := binaries()
	if err != nil {
		t.Fatal(err)
	}
	data, dir := pgtest.New(t), t.TempDir()
	links := map[string]string{"bin": bin}
	for _, name := range []string{"eventing", "examples"} {
		if links[name], err = filepath.Abs(filepath.Join(root, name)); err != nil {
			t.Fatal(err)
		}
	}
	for name, to := range links {
		if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bin/tour", "-contacts=3000")
	for _, p := range []string{"port", "smtp-port", "mailbox-port"} {
		cmd.Args = append(cmd.Args, "-"+p+"="+freePort(t))
	}
	cmd.Dir = dir
	cmd.Env = []string{"CI=true", "ONDA_ADMIN_DATABASE_URL=" + data.AdminURL}
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "ONDA_") {
			cmd.Env = append(cmd.Env, v)
		}
	}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) } // so that it ends onda dev
	cmd.WaitDelay = 30 * time.Second
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	admin, db := data.Admin(t), data.DB(t)
	if _, err := admin.CreateTenant(ctx, "nordlys"); err != nil { // the tour finds it made
		t.Fatal(err)
	}
	began := time.Now()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	// Mailboxes that are full are tried again after a minute, which nobody waits for here.
	for again := time.NewTicker(tick); ; {
		select {
		case <-again.C:
			if pgtest.One[bool](t, db, "nordlys", "SELECT EXISTS (SELECT FROM delivery WHERE state = 'deferred') AND NOT EXISTS (SELECT FROM batch WHERE state = 'open' AND attempt = 1)") {
				if _, err := admin.MoveClock(ctx, "nordlys", time.Minute); err != nil {
					t.Fatal(err)
				}
			}
			continue
		case err = <-ended:
		}
		break
	}
	if err != nil {
		t.Fatalf("the tour after %s: %v\n%s", time.Since(began), err, out.String())
	}
	t.Logf("the tour took %s:\n%s", time.Since(began), out.String())
	// Of each of the five kills four windows of 64 may be unknown, more of them full the busier the machine is.
	for _, c := range []struct {
		what  string
		least int64
		sql   string
	}{
		{"mails sent", 1600, "SELECT count(*) FROM delivery WHERE state = 'sent'"},
		{"opens of people", 5, "SELECT coalesce(sum(n), 0)::bigint FROM stat WHERE kind = 'open' AND verdict = 'human'"},
		{"clicks of people", 3, "SELECT coalesce(sum(n), 0)::bigint FROM stat WHERE kind = 'click' AND verdict = 'human'"},
		{"clicks of machines", 3, "SELECT coalesce(sum(n), 0)::bigint FROM stat WHERE kind = 'click' AND verdict = 'machine'"},
		{"forms confirmed", 11, "SELECT count(*) FROM submission WHERE state = 'confirmed'"},
		{"unsubscribed", 1, "SELECT count(*) FROM subscription WHERE purpose = 'newsletter' AND state = 'withdrawn'"},
		{"journeys on", 11, "SELECT count(DISTINCT journey) FROM step WHERE branch IS NOT NULL"},
	} {
		if n := pgtest.One[int64](t, db, "nordlys", c.sql); n < c.least {
			t.Errorf("%s: %d, not even %d", c.what, n, c.least)
		}
	}
	page, err := os.ReadFile(filepath.Join(dir, ".onda", "spring-news.html"))
	if err != nil {
		t.Fatal(err)
	}
	sent := pgtest.One[int64](t, db, "nordlys", "SELECT sum(b.sent)::bigint FROM batch b JOIN run r ON r.id = b.run JOIN entity e ON e.id = r.entity WHERE e.name = 'spring-news'")
	if shown := fmt.Sprintf("<strong>%d</strong>", sent); !strings.Contains(strings.ReplaceAll(string(page), ",", ""), shown) {
		t.Errorf("the report does not show %s mails:\n%s", shown, page)
	}
	if !strings.Contains(out.String(), "lost 0, repeated 0") {
		t.Errorf("the tour compares nothing:\n%s", out.String())
	}
}

// freePort is a port that nobody listens at.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
}
