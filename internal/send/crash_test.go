package send

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/onda-run/onda/internal/delivery"
	"github.com/onda-run/onda/internal/mail"
	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/smtptest"
)

// process is a sender of its own that can be killed, stopped and woken.
type process struct {
	*exec.Cmd
	ended chan struct{}
	err   error
}

// spawn starts a sender process with short leases.
func (w *world) spawn(settings ...string) *process {
	w.t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"=1", "ONDA_DATABASE_MAX_CONNS=8")
	for k, v := range w.env {
		cmd.Env = append(cmd.Env, k+"="+v)
	}
	cmd.Env = append(cmd.Env, "ONDA_LEASE=1s", "ONDA_MESSAGE_LIMIT=1s") // a takeover is soon, and a busy machine within the limit
	cmd.Env = append(cmd.Env, settings...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	stderr, err := cmd.StderrPipe()
	if err != nil {
		w.t.Fatal(err)
	}
	p := &process{Cmd: cmd, ended: make(chan struct{})}
	if err := cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	go func() {
		for s := bufio.NewScanner(stderr); s.Scan(); {
			w.t.Log("child:", s.Text())
		}
		p.err = cmd.Wait()
		close(p.ended)
	}()
	w.t.Cleanup(p.kill)
	return p
}

// kill is kill -9.
func (p *process) kill() {
	_ = p.Process.Signal(syscall.SIGKILL)
	<-p.ended
}

// stop is kill -STOP; it waits until each thread stands still, which is some time after the signal.
func (w *world) stop(p *process) {
	w.t.Helper()
	if err := p.Process.Signal(syscall.SIGSTOP); err != nil {
		w.t.Fatal(err)
	}
	wait(w.t, time.Minute, "the process to stop", func() bool {
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", p.Process.Pid))
		if err != nil || len(threads) == 0 {
			w.t.Fatalf("no threads of process %d: %v", p.Process.Pid, err)
		}
		for _, path := range threads {
			stat, err := os.ReadFile(path)
			if err != nil || !bytes.Contains(stat, []byte(") T ")) {
				return false
			}
		}
		return true
	})
}

func (w *world) count(sql string) int {
	w.t.Helper()
	return pgtest.One[int](w.t, w.db, pgtest.Acme, sql)
}

// finish lets a sender go on until every batch is closed and every retry done.
func (w *world) finish() {
	w.t.Helper()
	p := w.spawn("ONDA_MESSAGE_LIMIT=5s")
	wait(w.t, 3*time.Minute, "every batch to be closed", func() bool {
		return w.count("SELECT (SELECT count(*) FROM batch WHERE state = 'open') + (SELECT count(*) FROM delivery WHERE state = 'deferred')") == 0
	})
	p.kill()
}

// audit holds what the relay took against what the rows say, mail by mail: nobody is lost, nobody has two mails, sent is true, what failed never came, and only so many are
// unknown and exactly so many failed.
func (w *world) audit(n, maxUnknown, failed int) {
	w.t.Helper()
	rows := w.outcomes()
	if len(rows) != n {
		w.t.Errorf("lost: %d of %d recipients have an outcome", len(rows), n)
	}
	addresses := map[int64]string{} // by delivery
	for _, line := range pgtest.All[string](w.t, w.db, pgtest.Acme, "SELECT d.id || ' ' || c.email FROM delivery d JOIN contact c ON c.id = d.contact") {
		id, address, _ := strings.Cut(line, " ")
		delivery, err := strconv.ParseInt(id, 10, 64)
		if err != nil {
			w.t.Fatal(err)
		}
		addresses[delivery] = address
	}
	took := map[string]int{}
	for _, m := range w.smtp.Mails() {
		took[m.To]++
		id := header(w.t, m.Body, "Message-ID")
		if _, delivery, ok := mail.ParseMessageID(id); !ok || addresses[delivery] != m.To {
			w.t.Errorf("a mail came to %s with the Message-ID %s, which is that of a delivery to %q", m.To, id, addresses[delivery])
		}
	}
	states := map[string]int{}
	for to, what := range rows {
		state, _, _ := strings.Cut(what, " ")
		states[state]++
		switch {
		case took[to] > 1:
			w.t.Errorf("repeated: %s got %d mails (%s)", to, took[to], what)
		case state == "sent" && took[to] != 1:
			w.t.Errorf("%s is sent, but the relay took %d mails for it", to, took[to])
		case state == "failed" && took[to] != 0:
			w.t.Errorf("%s is %s, and the relay took its mail", to, what)
		case state != "sent" && state != "unknown" && state != "failed":
			w.t.Errorf("%s is %s", to, what)
		}
	}
	if states["unknown"] > maxUnknown {
		w.t.Errorf("%d are unknown, more than the windows that were in flight, %d", states["unknown"], maxUnknown)
	}
	if states["failed"] != failed {
		w.t.Errorf("%d have failed, want %d", states["failed"], failed)
	}
	w.t.Logf("%d recipients, %d mails taken, %v", n, len(took), states)
	open := w.count(`SELECT count(*) FROM (SELECT b.id FROM batch b LEFT JOIN delivery d ON d.id >> 9 = b.id WHERE b.attempt = 1
		GROUP BY b.id HAVING b.sent <> count(*) FILTER (WHERE d.state = 'sent') OR b.unknown <> count(*) FILTER (WHERE d.state = 'unknown')) x`)
	if open != 0 {
		w.t.Errorf("the counts of %d batches are wrong", open)
	}
	if twice := w.count("SELECT count(*) - count(DISTINCT d) FROM fact, unnest(deliveries) d WHERE kind = 'email.sent'"); twice != 0 {
		w.t.Errorf("%d mails were told to be sent twice", twice)
	}
}

// A sender is killed at twenty random points while it sends. Whatever it was doing, those who come next finish it.
func TestKilledAtRandomPoints(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const n, kills = 3000, 20
	w.plan(w.people(n), 150)
	for k := range kills {
		before := len(w.smtp.Mails())
		p := w.spawn()
		at := before + 1 + rand.IntN(2*n/kills)
		wait(t, 60*time.Second, fmt.Sprintf("kill %d at %d mails", k, at), func() bool {
			return len(w.smtp.Mails()) >= min(at, n) || w.count("SELECT count(*) FROM batch WHERE state = 'open'") == 0
		})
		p.kill()
	}
	w.finish()
	w.audit(n, kills*4*delivery.MaxWindow, 0)
}

// A sender is stopped for longer than its lease and a message, another takes over and finishes, and then the first wakes up with mails in hand. With
// ONDA_TEST_STOP=2m, leases are as in production and it stays stopped for as long.
func TestAnOldHolderWakesUp(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const n = 400
	w.plan(w.people(n), 400)
	release, reached := make(chan struct{}), make(chan struct{})
	w.smtp.Script("u70@x.example", smtptest.Script{End: smtptest.Step{Wait: release, Reached: reached}})
	stopped, settings := time.Duration(0), []string{"ONDA_SMTP_CONNECTIONS=1"}
	if text := os.Getenv("ONDA_TEST_STOP"); text != "" {
		var err error
		if stopped, err = time.ParseDuration(text); err != nil {
			t.Fatal(err)
		}
		settings = append(settings, "ONDA_LEASE=60s", "ONDA_MESSAGE_LIMIT=30s")
	}
	old := w.spawn(settings...)
	<-reached // the content of one mail is over there, its answer is not here
	w.stop(old)
	began := time.Now()
	close(release) // the relay takes it: a late 250 waits for the old holder
	next := w.spawn(settings[1:]...)
	wait(t, 3*time.Minute, "the second sender to finish", func() bool { return w.count("SELECT count(*) FROM batch WHERE state = 'open'") == 0 })
	if w.count("SELECT count(*) FROM delivery WHERE state = 'unknown'") == 0 {
		t.Error("the takeover found nothing unknown: the first sender was not in the middle of anything")
	}
	<-time.After(time.Until(began.Add(stopped)))
	if err := old.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	// What it had marked and not handed over it says so about, and that is tried again. Of the one mail whose answer it waited for, it depends on which comes
	// first, the answer or the end of the time for it.
	wait(t, 60*time.Second+2*stopped, "what was not handed over to be sent", func() bool {
		return w.count(`SELECT (SELECT count(*) FROM batch WHERE state = 'open') + (SELECT count(*) FROM delivery d JOIN contact c ON c.id = d.contact
			WHERE d.state <> 'sent' AND c.email <> 'u70@x.example')`) == 0
	})
	old.kill()
	next.kill()
	w.audit(n, 1, 0)
}

// On SIGTERM nothing becomes unknown: what is in hand is finished, the rest is left queued, and the lease is given back.
func TestTerminatedWhileSending(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const n = 2000
	w.plan(w.people(n), 500)
	for k := range 5 {
		before := len(w.smtp.Mails())
		p := w.spawn("ONDA_LEASE=60s", "ONDA_MESSAGE_LIMIT=30s") // nothing is to run out
		wait(t, 60*time.Second, "some mails", func() bool { return len(w.smtp.Mails()) > before+rand.IntN(200) || len(w.smtp.Mails()) == n })
		if err := p.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		<-p.ended
		if p.err != nil {
			t.Errorf("sender %d ended badly: %v", k, p.err)
		}
		if held := w.count("SELECT count(*) FROM batch WHERE state = 'open' AND lease_until > '-infinity'"); held != 0 {
			t.Errorf("%d leases were not given back", held)
		}
	}
	w.finish()
	w.audit(n, 0, 0)
}

// A process that ends while a relay is slow puts back what no connection has begun with, and records what became of the rest, in the lanes to a tenant's own relay too.
func TestTerminatedWhileARelayIsSlow(t *testing.T) {
	t.Parallel()
	for name, secret := range map[string]string{"the cell's relay": "", "the tenant's own": "acme-relay"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			mounted := newSecrets(t)
			mounted.set("acme-relay", w.smtp.URL())
			w.relay(pgtest.Acme, secret)
			w.plan(w.people(24), 500)
			release, reached := make(chan struct{}), make(chan struct{})
			w.smtp.Script("u1@x.example", smtptest.Script{End: smtptest.Step{Wait: release, Reached: reached}})
			s, in := w.sender("ONDA_SMTP_CONNECTIONS=1", "ONDA_LEASE=60s", "ONDA_MESSAGE_LIMIT=30s", "ONDA_SECRETS="+mounted.dir)
			ctx, cancel := context.WithCancel(t.Context())
			done, stopped := make(chan int, 1), make(chan error, 1)
			go func() { done <- post(ctx, in, sweepEvent("send", "slow")) }()
			<-reached
			l := s.lanes[delivery.Bulk]
			if secret != "" {
				s.own.mu.Lock()
				l = s.own.open[secret].lanes[delivery.Bulk]
				s.own.mu.Unlock()
			}
			wait(t, 20*time.Second, "a mail to be ready for the connection", func() bool { return len(l.jobs) == cap(l.jobs) })
			cancel() // there is no time left for requests, nor for waiting for them
			go func() { stopped <- in.Stop(ctx) }()
			wait(t, 20*time.Second, "what is ready to be put back", func() bool { return len(l.jobs) == 0 })
			close(release)
			if err := <-stopped; err == nil {
				t.Error("a request was not finished, and nothing says so")
			}
			<-done // refused or not: it is asked again
			if left := w.count("SELECT sum(mark)::bigint - (SELECT count(*) FROM delivery WHERE state IN ('sent', 'deferred')) FROM batch"); left != 0 {
				t.Errorf("of %d mails is not known what became of them: %v", left, w.outcomes())
			}
		})
	}
}

// Postgres goes away while a mark is on its way, and comes back. The batch is given back then, and nobody waits for its lease.
func TestABatchIsGivenBackWhenPostgresIsBack(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.plan(w.people(20), 500)
	greet, reached := make(chan struct{}), make(chan struct{})
	once := smtptest.Start(t, smtptest.Config{Greeting: smtptest.Step{Wait: greet, Reached: reached}, Only: func(conn int) bool { return conn == 2 }}) // the first finds out whether it listens
	in := w.start("ONDA_SMTP_URL="+once.URL(), "ONDA_LEASE=60s", "ONDA_MESSAGE_LIMIT=30s")
	done := make(chan int)
	go func() { done <- w.sweep(in, "send") }()
	<-reached // it holds the batch, and marks next
	connect := func() (conn *pgx.Conn, do func(sql string)) {
		conn, err := pgx.Connect(t.Context(), w.data.AdminURL)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close(context.Background()) })
		return conn, func(sql string) {
			t.Helper()
			if _, err := conn.Exec(t.Context(), sql); err != nil {
				t.Fatal(err)
			}
		}
	}
	_, lock := connect()
	admin, do := connect()
	lock("BEGIN")
	lock("SELECT FROM acme.batch FOR NO KEY UPDATE")
	close(greet)
	wait(t, time.Minute, "the mark to wait", func() bool {
		var n int
		if err := admin.QueryRow(t.Context(), "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'").Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n > 0
	})
	do("UPDATE pg_database SET datallowconn = false WHERE datname = current_database()")
	do("SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = current_database() AND usename = 'onda_pool'")
	lock("COMMIT")
	if status := <-done; status < http.StatusInternalServerError {
		t.Errorf("status %d although Postgres was away", status)
	}
	do("UPDATE pg_database SET datallowconn = true WHERE datname = current_database()")
	w.db = w.data.DB(t) // the connections of the other are gone
	wait(t, 30*time.Second, "the batch to be given back", func() bool { return w.count("SELECT count(*) FROM batch WHERE lease_until > now()") == 0 })
	w.mustSweep(w.start(), "send")
	w.audit(20, 0, 0)
}
