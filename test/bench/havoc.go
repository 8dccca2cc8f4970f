package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/sethvargo/go-envconfig"
	"go.uber.org/zap"

	"github.com/onda-run/onda/internal/delivery"
	"github.com/onda-run/onda/internal/fn"
	"github.com/onda-run/onda/internal/mail"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/send"
)

// Havoc is a campaign that goes out while something goes wrong, with the settings of production and counted at the relay: how many mails are lost, repeated and unknown.

// havocMails is how many mails a campaign of havoc has, unless -mails says otherwise.
const havocMails = 100_000

// held is how many recipients one process may have in flight: what its end makes unknown at most. See ONDA_BATCHES.
const held = 4 * delivery.MaxWindow

// havoc is one thing that goes wrong.
type havoc struct {
	name string
	// relay changes what the relay does.
	relay func(b *book, mails int)
	// run sends the campaign until every recipient has an outcome, and does the harm meanwhile; it gives how many mails may be unknown. nil: one process sends it.
	run func(ctx context.Context, c *campaignOfHavoc) (unknown int, err error)
	// unknown and failed are how many mails the relay's doing leaves unknown, at most, and failed, exactly.
	unknown, failed func(mails int) int
}

// ofHundred gives a fault to some of every hundred recipients, by their number, which the address has.
func ofHundred(faults map[int]fault) func(b *book, mails int) {
	return func(b *book, _ int) {
		b.fates = func(to string) fault { return faults[numberOf(to)%100] }
	}
}

// part is how many of so many mails have a number that leaves the rest r of a hundred.
func part(r int) func(mails int) int {
	return func(mails int) int { return (mails - r + 100) / 100 }
}

func numberOf(to string) int {
	n, err := strconv.Atoi(strings.TrimSuffix(strings.TrimPrefix(to, "u"), "@example.org"))
	if err != nil {
		return -1
	}
	return n
}

func havocs() []havoc {
	cuts := map[int]fault{3: cutBefore, 33: cutIn, 63: cutAfter, 93: cutLost}
	refusals := map[int]fault{5: putOff, 35: putOff, 65: refuse}
	both := map[int]fault{3: cutBefore, 33: cutIn, 63: cutAfter, 93: cutLost, 5: putOff, 35: putOff, 65: refuse}
	lost := func(mails int) int { return part(33)(mails) + part(63)(mails) + part(93)(mails) }
	const lates = 64
	return []havoc{
		{name: "havoc-kill", run: killing},
		{name: "havoc-stop", run: stopping},
		{name: "havoc-postgres", run: restarting},
		{name: "havoc-late", relay: func(b *book, mails int) {
			b.fates = func(to string) fault {
				if numberOf(to)%max(mails/lates, 1) == 0 {
					return late
				}
				return none
			}
		}, unknown: func(mails int) int { return mails / max(mails/lates, 1) }},
		{name: "havoc-cut", relay: ofHundred(cuts), unknown: lost},
		{name: "havoc-refuse", relay: ofHundred(refusals), failed: part(65)},
		{name: "havoc-plain", relay: func(b *book, mails int) { b.plain = true; ofHundred(both)(b, mails) }, unknown: lost, failed: part(65)},
		{name: "havoc-shut", relay: func(b *book, mails int) {
			ofHundred(map[int]fault{3: cutBefore})(b, mails) // so that new connections are made all the time
			b.doors = func(conn int) bool { return conn <= 20 || conn%3 == 0 }
		}},
	}
}

// campaignOfHavoc is one under way.
type campaignOfHavoc struct {
	*lab
	book     *book
	smtp     string // the relay's URL
	kills    int
	log      func(format string, args ...any)
	restarts *postgresScript
	procs    []*exec.Cmd // that were started
}

const havocHeader = "havoc              mails     sent   failed  unknown (at most)  came of them     lost  repeated  wrong  seconds"

// tally is what a campaign came to.
type tally struct {
	mails, sent, failed, unknown, came, lost, repeated, wrong int
}

// wreak runs one kind of havoc and prints its line; false when something was lost, repeated or wrong.
func wreak(ctx context.Context, h havoc, url string, mails, kills int, verbose bool) (ok bool, err error) {
	l, err := newLab(ctx, options{server: url, mails: mails})
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, l.close()) }()
	c := &campaignOfHavoc{lab: l, book: newBook(), kills: kills, log: func(string, ...any) {}, restarts: newPostgresScript()}
	if verbose {
		c.log = func(format string, args ...any) { fmt.Printf("  "+h.name+": "+format+"\n", args...) }
	}
	if h.relay != nil {
		h.relay(c.book, mails)
	}
	to, err := startSink(ctx, c.book)
	if err != nil {
		return false, err
	}
	l.closers = append(l.closers, func() error { close(c.book.ended); return to.close() })
	l.closers = append(l.closers, c.endAll)
	c.smtp = "smtp://127.0.0.1:" + strconv.Itoa(to.addr().Port) + "?tls=none"
	if err := prepareMails(ctx, l); err != nil {
		return false, err
	}
	if err := planMails(ctx, l); err != nil {
		return false, err
	}
	began := time.Now()
	run := h.run
	if run == nil {
		run = sendingOnly
	}
	unknown, err := run(ctx, c)
	if err != nil {
		return false, err
	}
	took := time.Since(began)
	failed := 0
	if h.unknown != nil {
		unknown += h.unknown(mails)
	}
	if h.failed != nil {
		failed = h.failed(mails)
	}
	t, err := c.reconcile(ctx)
	if err != nil {
		return false, err
	}
	ok = t.lost == 0 && t.repeated == 0 && t.wrong == 0 && t.unknown <= unknown && t.failed == failed
	verdict := "ok"
	if !ok {
		verdict = "short"
	}
	fmt.Printf("%-15s %8d %8d %8d %8d %9d %13d %8d %9d %6d %8.0f  %s\n", h.name, t.mails, t.sent, t.failed, t.unknown, unknown, t.came, t.lost, t.repeated, t.wrong, took.Seconds(), verdict)
	return ok, nil
}

// reconcile holds each recipient's row against what the relay wrote down.
func (c *campaignOfHavoc) reconcile(ctx context.Context) (t tally, err error) {
	t.mails = c.mails
	rows := 0
	c.book.mu.Lock()
	defer c.book.mu.Unlock()
	err = c.db.InTenant(ctx, tenant, func(ctx context.Context, tx *postgres.Tx) error {
		all, err := tx.Query(ctx, "SELECT d.id, d.state, c.email FROM delivery d JOIN contact c ON c.id = d.contact")
		if err != nil {
			return fmt.Errorf("read outcomes: %w", err)
		}
		var id int64
		var state, to string
		_, err = pgx.ForEachRow(all, []any{&id, &state, &to}, func() error {
			rows++
			came := c.book.mails[to]
			delete(c.book.mails, to)
			if len(came) > 1 {
				t.repeated++
			}
			for _, m := range came {
				if _, d, ok := mail.ParseMessageID(m); !ok || d != id {
					t.wrong++
				}
			}
			switch delivery.State(state) {
			case delivery.Sent:
				t.sent++
				if len(came) == 0 {
					t.lost++
				}
			case delivery.Unknown:
				t.unknown++
				t.came += min(len(came), 1)
			case delivery.Failed:
				t.failed++
				if len(came) > 0 {
					t.wrong++
				}
			default: // nobody was refused at the gate, and nothing is to be tried any more
				t.wrong++
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("read outcomes: %w", err)
		}
		return nil
	})
	t.lost += t.mails - rows
	t.wrong += len(c.book.mails) // to those who have no delivery
	return t, err
}

// sender starts a process of send.
func (c *campaignOfHavoc) sender(ctx context.Context) (*exec.Cmd, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this program: %w", err)
	}
	cmd := exec.CommandContext(ctx, self)
	cmd.Env = []string{
		sideEnv + "=sender", "ONDA_DATABASE_URL=" + c.poolURL, "K_SINK=" + c.sink, "ONDA_LINK_URL=http://localhost:8080", "ONDA_LANE=bulk",
		"ONDA_SMTP_URL=" + c.smtp, "ONDA_SMTP_CONNECTIONS=" + strconv.Itoa(connections),
	}
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start a sender: %w", err)
	}
	c.procs = append(c.procs, cmd)
	return cmd, nil
}

// end ends a sender by a signal and waits for it.
func end(cmd *exec.Cmd, s syscall.Signal) error {
	if err := cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("end a sender: %w", err)
	}
	_ = cmd.Wait() // by the signal, or before it
	return nil
}

func (c *campaignOfHavoc) endAll() error {
	var errs []error
	for _, cmd := range c.procs {
		if cmd.ProcessState == nil {
			errs = append(errs, end(cmd, syscall.SIGKILL))
		}
	}
	return errors.Join(errs...)
}

// serveSender is the process of a sender: it sends whatever is due, again and again, whatever comes of it, until SIGTERM; then it drains as a pod does.
func serveSender() error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	in, err := fn.Start(context.Background(), "send", send.Build, envconfig.OsLookuper(), zap.NewNop())
	if err != nil {
		return err
	}
	f := &function{name: "send", in: in, events: os.Getpid() << 32}
	for ctx.Err() == nil {
		_ = f.call(ctx) // the relay, or Postgres, is away
		select {
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond):
		}
	}
	drain, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	return in.Stop(drain)
}

// patience is how long no mail may come before a campaign is given up.
const patience = 10 * time.Minute

// until waits until a condition is true.
func (c *campaignOfHavoc) until(ctx context.Context, what string, is func() (bool, error)) error {
	came, since := -1, time.Now()
	for {
		if done, err := is(); err != nil || done {
			return err
		}
		if n := c.book.count(); n != came {
			came, since = n, time.Now()
		}
		if time.Since(since) > patience {
			return fmt.Errorf("no mail came for %s, waiting for %s", patience, what)
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w", what, ctx.Err())
		}
	}
}

// come waits until the relay has taken so many mails.
func (c *campaignOfHavoc) come(ctx context.Context, n int) error {
	return c.until(ctx, strconv.Itoa(n)+" mails", func() (bool, error) { return c.book.count() >= n, nil })
}

// over waits until every recipient has an outcome for good.
func (c *campaignOfHavoc) over(ctx context.Context) error {
	return c.until(ctx, "every outcome", func() (bool, error) {
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
		}
		n, err := c.one(ctx, "SELECT (SELECT count(*) FROM batch WHERE state = 'open') + (SELECT count(*) FROM delivery WHERE state = 'deferred')")
		return n == 0, err
	})
}

// sendingOnly does no harm but the relay's.
func sendingOnly(ctx context.Context, c *campaignOfHavoc) (int, error) {
	p, err := c.sender(ctx)
	if err != nil {
		return 0, err
	}
	if err := c.over(ctx); err != nil {
		return 0, err
	}
	return 0, end(p, syscall.SIGTERM)
}

// moments are random numbers of mails in order, after which something is done.
func (c *campaignOfHavoc) moments(n int, upTo float64) []int {
	out := make([]int, n)
	for i := range out {
		out[i] = 1 + rand.IntN(max(int(upTo*float64(c.mails)), 1))
	}
	slices.Sort(out)
	return out
}

// killing kills the sender at random moments; another comes after it. A batch that it held waits for its lease and a message.
func killing(ctx context.Context, c *campaignOfHavoc) (int, error) {
	for k, at := range c.moments(c.kills, .95) {
		p, err := c.sender(ctx)
		if err != nil {
			return 0, err
		}
		if err := c.come(ctx, at); err != nil {
			return 0, fmt.Errorf("kill %d: %w", k+1, err)
		}
		if err := end(p, syscall.SIGKILL); err != nil {
			return 0, err
		}
		c.log("kill %d at %d mails", k+1, c.book.count())
	}
	if _, err := sendingOnly(ctx, c); err != nil {
		return 0, err
	}
	return c.kills * held, nil
}

// stopping stops two of three senders for longer than their leases and a message; the third takes over and ends the campaign. Then they wake up with mails in hand.
func stopping(ctx context.Context, c *campaignOfHavoc) (int, error) {
	var all [3]*exec.Cmd
	for i := range all {
		var err error
		if all[i], err = c.sender(ctx); err != nil {
			return 0, err
		}
	}
	for i, at := range c.moments(2, .7) {
		if err := c.come(ctx, at); err != nil {
			return 0, err
		}
		if err := all[i].Process.Signal(syscall.SIGSTOP); err != nil {
			return 0, fmt.Errorf("stop a sender: %w", err)
		}
		c.log("stop %d at %d mails", i+1, c.book.count())
	}
	began := time.Now()
	if err := c.over(ctx); err != nil {
		return 0, err
	}
	unknown, err := c.one(ctx, "SELECT count(*) FROM delivery WHERE state = 'unknown'")
	if err != nil {
		return 0, err
	}
	c.log("taken over after %.0f s, with %d unknown", time.Since(began).Seconds(), unknown)
	if unknown == 0 {
		return 0, errors.New("the takeover found nothing unknown: nobody was stopped in the middle of anything")
	}
	for _, p := range all[:2] {
		if err := p.Process.Signal(syscall.SIGCONT); err != nil {
			return 0, fmt.Errorf("wake a sender: %w", err)
		}
	}
	for _, p := range all[:2] { // it says what it knows before it ends
		if err := end(p, syscall.SIGTERM); err != nil {
			return 0, err
		}
	}
	if err := c.over(ctx); err != nil {
		return 0, err
	}
	return 2 * held, end(all[2], syscall.SIGTERM)
}

// restarting crashes Postgres and restarts it in good order, in turns, while one process sends.
func restarting(ctx context.Context, c *campaignOfHavoc) (int, error) {
	const restarts = 6
	if c.restarts == nil {
		return 0, errors.New("ONDA_BENCH_POSTGRES_SCRIPT: is not set, so nobody may restart this server; make bench ONLY=havoc runs one of its own")
	}
	p, err := c.sender(ctx)
	if err != nil {
		return 0, err
	}
	for i, at := range c.moments(restarts, .9) {
		if err := c.come(ctx, at); err != nil {
			return 0, err
		}
		stop := c.restarts.stop
		if i%2 == 0 {
			stop = c.restarts.crash
		}
		if err := stop(ctx, c); err != nil {
			return 0, err
		}
		if err := c.restarts.run(ctx, "start"); err != nil {
			return 0, err
		}
		c.log("restart %d at %d mails", i+1, c.book.count())
	}
	if err := c.over(ctx); err != nil {
		return 0, err
	}
	return restarts * held, end(p, syscall.SIGTERM)
}

// postgresScript stops and starts the server that was made for this.
type postgresScript struct{ path string }

func newPostgresScript() *postgresScript {
	if path := os.Getenv("ONDA_BENCH_POSTGRES_SCRIPT"); path != "" {
		return &postgresScript{path}
	}
	return nil
}

func (s *postgresScript) run(ctx context.Context, verb string) error {
	if out, err := exec.CommandContext(ctx, s.path, verb).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", s.path, verb, err, out)
	}
	return nil
}

func (s *postgresScript) stop(ctx context.Context, _ *campaignOfHavoc) error {
	return s.run(ctx, "stop")
}

// crash ends the server as a machine does that loses power: with nothing written that is not in its log already.
func (s *postgresScript) crash(ctx context.Context, c *campaignOfHavoc) error {
	pid, err := c.findPostmaster(ctx)
	if err != nil {
		return err
	}
	if err := syscall.Kill(pid, syscall.SIGQUIT); err != nil {
		return fmt.Errorf("crash Postgres: %w", err)
	}
	return c.until(ctx, "Postgres to end", func() (bool, error) { return syscall.Kill(pid, 0) != nil, nil })
}
