package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/token"
)

// Havoc for hits is a track that is asked for more than it can take, or while something goes wrong, counted by whoever asks: what was answered and is not in Postgres.

const (
	manyConns   = 1_024   // of a flood that waits for no answers
	easily      = 4       // a flood that is no trouble has one so-manieth of what track can take
	hitsMost    = 600_000 // of hits-kill
	othersSlack = 1.5     // how much longer others may wait while a tenant is locked
	atOnce      = 1_000   // ms that the 99th percentile of refusals may take
	lockedOf    = 4       // tenants
)

// hitsHavoc is one kind.
type hitsHavoc struct {
	name string
	// lasts is how long the harm does, unless -for says otherwise.
	lasts time.Duration
	run   func(ctx context.Context, c *hitsUnderHavoc) error
}

func hitsHavocs() []hitsHavoc {
	return []hitsHavoc{
		{"hits-twice", 20 * time.Second, floodingTwice},
		{"hits-kill", time.Second, killingTrack},
		{"hits-postgres", 30 * time.Second, takingPostgresAway},
		{"hits-locked", time.Minute, lockingATenant},
	}
}

// hitsUnderHavoc is one under way, and what it comes to.
type hitsUnderHavoc struct {
	*lab
	track    *alone
	lasts    time.Duration
	kills    int
	log      func(format string, args ...any)
	restarts *postgresScript

	floods []*flood
	beyond []string // of what was measured, what is worse than it may be
	told   []string // lines of what is measured of this kind alone
}

const hitsHeader = "hits               asked   answered  a second  p50 ms  p99 ms    refused  a second  p50 ms  p99 ms   cut off  missing   peak RSS"

// wreakHits runs one kind of havoc and prints its line; false when a hit was answered that is missing, or a figure is beyond its bound.
func wreakHits(ctx context.Context, h hitsHavoc, url string, lasts time.Duration, kills int, verbose bool) (ok bool, err error) {
	l, err := newLab(ctx, options{server: url})
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, l.close()) }()
	c := &hitsUnderHavoc{lab: l, lasts: lasts, kills: kills, log: func(string, ...any) {}, restarts: newPostgresScript()}
	if lasts == 0 {
		c.lasts = h.lasts
	}
	if verbose {
		c.log = func(format string, args ...any) { fmt.Printf("  "+h.name+": "+format+"\n", args...) }
	}
	if c.track, err = l.newAlone(ctx, "track"); err != nil {
		return false, err
	}
	if err := c.startTrack(ctx); err != nil {
		return false, err
	}
	if err := h.run(ctx, c); err != nil {
		return false, err
	}
	if err := c.track.kill(); err != nil {
		return false, err
	}
	missing, err := c.missing(ctx)
	if err != nil {
		return false, err
	}
	if missing > 0 {
		c.beyond = append(c.beyond, "missing")
	}
	fmt.Println(c.line(h.name, missing))
	for _, line := range c.told {
		fmt.Println("  " + line)
	}
	return len(c.beyond) == 0, nil
}

// line is what is printed of it.
func (c *hitsUnderHavoc) line(name string, missing int) string {
	var yes, no, cut fates
	for _, f := range c.floods {
		for came, to := range map[fate]*fates{answered: &yes, refused: &no, cutOff: &cut} {
			to.add(f.those(came, 0, f.ended))
		}
	}
	verdict := "ok"
	if len(c.beyond) > 0 {
		verdict = "short: " + strings.Join(c.beyond, ", ")
	}
	return fmt.Sprintf("%-13s %10d %10d %9.0f %7.1f %7.1f %10d %9.0f %7.1f %7.1f %9d %8d %7.1f MB  %s", name, len(yes.took)+len(no.took)+len(cut.took), len(yes.took), yes.rate(), yes.ms(50), yes.ms(99),
		len(no.took), no.rate(), no.ms(50), no.ms(99), len(cut.took), missing, float64(c.track.peak)/1e6, verdict)
}

// tell has a line be printed of what is measured of this kind alone; it is worse than it may be unless ok.
func (c *hitsUnderHavoc) tell(ok bool, what, format string, args ...any) {
	c.told = append(c.told, fmt.Sprintf("%-40s ", what)+fmt.Sprintf(format, args...))
	if !ok {
		c.beyond = append(c.beyond, what)
	}
}

// startTrack starts the function, and waits until it listens.
func (c *hitsUnderHavoc) startTrack(ctx context.Context) error {
	if err := c.track.start(ctx); err != nil {
		return err
	}
	conn, err := c.track.dial(ctx)
	if err != nil {
		return err
	}
	return conn.Close()
}

// missing counts the hits that were answered and that Postgres does not have.
func (c *hitsUnderHavoc) missing(ctx context.Context) (n int, err error) {
	for _, f := range c.floods {
		stored := map[int64]struct{}{}
		err := c.db.InTenant(ctx, f.tenant, func(ctx context.Context, tx *postgres.Tx) error {
			rows, err := tx.Query(ctx, "SELECT delivery FROM hit WHERE delivery > 0")
			if err != nil {
				return err
			}
			var delivery int64
			_, err = pgx.ForEachRow(rows, []any{&delivery}, func() error { stored[delivery] = struct{}{}; return nil })
			return err
		})
		if err != nil {
			return 0, fmt.Errorf("read hits: %w", err)
		}
		for i, h := range f.hits {
			if _, there := stored[f.mails.deliveries[i]]; h.came == answered && !there {
				n++
			}
		}
	}
	return n, nil
}

// flood asks track at a rate, or as fast as so many connections can, until the function that is given ends.
func (c *hitsUnderHavoc) flood(ctx context.Context, floods []*flood, during func(ctx context.Context) error) error {
	c.floods = append(c.floods, floods...)
	out, stop := context.WithCancel(ctx)
	defer stop()
	var g errgroup.Group
	for _, f := range floods {
		f.to = c.track.addr
		g.Go(func() error {
			defer stop() // when one fails, no other need go on
			return f.run(out)
		})
	}
	err := during(out)
	stop()
	if errOfFlood := g.Wait(); errOfFlood != nil {
		return errOfFlood // it ended the other
	}
	return err
}

// pause lets the flood go on for a while.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// capacity makes mails that were sent and measures how many hits a second track can take.
func (c *hitsUnderHavoc) capacity(ctx context.Context) (float64, error) {
	mails, err := c.sentMails(ctx, token.Open)
	if err != nil {
		return 0, err
	}
	began := time.Now()
	_, err = load(ctx, c.track.addr, 256, hitCount, mails.status, func(n int) string { return mails.hitOf(n, c.track.addr) })
	capacity := hitCount / time.Since(began).Seconds()
	c.log("it takes %.0f hits/s", capacity)
	return capacity, err
}

// floodingTwice measures what track can take, and asks for twice as much.
func floodingTwice(ctx context.Context, c *hitsUnderHavoc) error {
	capacity, err := c.capacity(ctx)
	if err != nil {
		return err
	}
	mails, err := c.moreMails(ctx, token.Open, int(2*capacity*(c.lasts.Seconds()+2)))
	if err != nil {
		return err
	}
	f := &flood{tenant: tenant, mails: mails, rate: 2 * capacity, conns: manyConns}
	before, err := cpuOf(c.track.cmd.Process.Pid, false)
	if err != nil {
		return err
	}
	if err := c.flood(ctx, []*flood{f}, func(ctx context.Context) error { return pause(ctx, c.lasts) }); err != nil {
		return err
	}
	after, err := cpuOf(c.track.cmd.Process.Pid, false)
	if err != nil {
		return err
	}
	yes, no := f.those(answered, 0, f.ended), f.those(refused, 0, f.ended)
	c.tell(true, "sent later than due", "p99 %.0f ms", f.lateness())
	c.tell(no.ms(99) <= atOnce, "refusals at once", "p99 %.0f ms of at most %d", no.ms(99), atOnce)
	c.tell(true, "CPU of track", "%.3f ms a request", (after-before)*1e3/float64(len(yes.took)+len(no.took)))
	c.tell(true, "answered of what it can take", "%.2f of %.0f hits/s", yes.rate()/capacity, capacity)
	return nil
}

// killingTrack kills track again and again under as much as it can take, and starts it again where it was.
func killingTrack(ctx context.Context, c *hitsUnderHavoc) error {
	if _, err := c.sentMails(ctx, token.Open); err != nil { // of a campaign, which the others are added to
		return err
	}
	mails, err := c.moreMails(ctx, token.Open, hitsMost)
	if err != nil {
		return err
	}
	f := &flood{tenant: tenant, mails: mails, conns: clients}
	return c.flood(ctx, []*flood{f}, func(ctx context.Context) error {
		for k := range c.kills {
			if err := pause(ctx, c.lasts+time.Duration(k)*37*time.Millisecond); err != nil { // at another point of a commit each time
				return err
			}
			if err := c.track.kill(); err != nil {
				return err
			}
			c.log("kill %d after %d hits", k+1, f.next.Load())
			if err := c.startTrack(ctx); err != nil {
				return err
			}
		}
		return pause(ctx, c.lasts)
	})
}

// takingPostgresAway crashes Postgres under load and starts it again after a while.
func takingPostgresAway(ctx context.Context, c *hitsUnderHavoc) error {
	if c.restarts == nil {
		return errors.New("ONDA_BENCH_POSTGRES_SCRIPT: is not set, so nobody may restart this server; make bench ONLY=hits runs one of its own")
	}
	const around = 5 * time.Second
	rate, err := c.capacity(ctx)
	if err != nil {
		return err
	}
	rate /= easily
	mails, err := c.moreMails(ctx, token.Open, int(rate*(c.lasts+10*around).Seconds()))
	if err != nil {
		return err
	}
	f := &flood{tenant: tenant, mails: mails, rate: rate, conns: manyConns}
	var away, back time.Duration
	err = c.flood(ctx, []*flood{f}, func(ctx context.Context) error {
		if err := pause(ctx, around); err != nil {
			return err
		}
		pid, err := c.findPostmaster(ctx)
		if err != nil {
			return err
		}
		away = time.Since(f.began)
		if err := syscall.Kill(pid, syscall.SIGQUIT); err != nil {
			return fmt.Errorf("crash Postgres: %w", err)
		}
		if err := pause(ctx, c.lasts); err != nil {
			return err
		}
		var starting sync.WaitGroup
		var started error
		starting.Go(func() { started = c.restarts.run(ctx, "start") })
		for { // it recovers first, and the script looks at it now and then only
			conn, err := pgx.Connect(ctx, c.url)
			if err == nil {
				back = time.Since(f.began)
				_ = conn.Close(ctx)
				break
			}
			if err := pause(ctx, 2*time.Millisecond); err != nil {
				return err
			}
		}
		starting.Wait()
		return errors.Join(started, pause(ctx, around))
	})
	if err != nil {
		return err
	}
	c.tell(true, "sent later than due", "p99 %.0f ms", f.lateness())
	no := f.those(refused, away, back)
	c.tell(no.ms(99) <= atOnce && len(no.took) > 0, "refusals within a second", "p99 %.0f ms of at most %d", no.ms(99), atOnce)
	first := f.ended
	for _, h := range f.hits {
		if at := h.due + h.late + h.took; h.came == answered && h.due >= away && at >= back {
			first = min(first, at)
		}
	}
	c.tell(first < f.ended, "first answer after Postgres is back", "%.0f ms", (first-back).Seconds()*1e3)
	late := f.those(refused, back+time.Second, f.ended)
	c.tell(len(late.took) == 0, "refused a second after it is back", "%d", len(late.took))
	return nil
}

// lockingATenant has somebody lock one tenant's table of hits, and looks at the others.
func lockingATenant(ctx context.Context, c *hitsUnderHavoc) error {
	rate, err := c.capacity(ctx)
	if err != nil {
		return err
	}
	rate /= easily * lockedOf
	admin, err := postgres.OpenAdmin(ctx, c.url)
	if err != nil {
		return err
	}
	var floods []*flood
	for n := range lockedOf {
		l := *c.lab
		if n > 0 {
			l.tenant = fmt.Sprintf("%s%d", tenant, n)
			if _, err := admin.CreateTenant(ctx, l.tenant); err != nil {
				return errors.Join(err, admin.Close(ctx))
			}
			if _, err := l.sentMails(ctx, token.Open); err != nil {
				return errors.Join(err, admin.Close(ctx))
			}
		}
		mails, err := l.moreMails(ctx, token.Open, int(rate*(3*c.lasts.Seconds()+30)))
		if err != nil {
			return errors.Join(err, admin.Close(ctx))
		}
		floods = append(floods, &flood{tenant: l.tenant, mails: mails, rate: rate, conns: manyConns / lockedOf})
	}
	if err := admin.Close(ctx); err != nil {
		return err
	}
	var locked, freed time.Duration
	part := min(c.lasts, 20*time.Second) // before and after
	err = c.flood(ctx, floods, func(ctx context.Context) error {
		if err := pause(ctx, part+2*time.Second); err != nil {
			return err
		}
		err := c.super(ctx, func(conn *pgx.Conn) error {
			if _, err := conn.Exec(ctx, "BEGIN; LOCK TABLE "+tenant+".hit IN ACCESS EXCLUSIVE MODE"); err != nil {
				return fmt.Errorf("lock hits: %w", err)
			}
			locked = time.Since(floods[0].began)
			err := pause(ctx, c.lasts)
			freed = time.Since(floods[0].began)
			return err
		})
		return errors.Join(err, pause(ctx, part+2*time.Second))
	})
	if err != nil {
		return err
	}
	var before, during, after fates
	turnedAway := 0
	for _, f := range floods[1:] {
		before.add(f.those(answered, locked-part, locked))
		during.add(f.those(answered, locked, freed))
		after.add(f.those(answered, freed+2*time.Second, freed+2*time.Second+part))
		turnedAway += len(f.those(refused, 0, f.ended).took)
	}
	for _, p := range []int{50, 99} {
		ratio := during.ms(p) / max(before.ms(p), after.ms(p))
		c.tell(ratio <= othersSlack, fmt.Sprintf("p%d of the others, locked to not", p), "%.2f x of at most %.2f (before %.1f ms, during %.1f, after %.1f)", ratio, othersSlack, before.ms(p), during.ms(p), after.ms(p))
	}
	c.tell(turnedAway == 0, "refused of the others", "%d", turnedAway)
	return nil
}
