// Command tour is what make run does: a campaign from contacts to delivered and tracked mails, on real Postgres, SMTP and HTTP, while the broker drops events
// and the sender is killed, with simulated recipients. With CI=true it ends after the report, with status 1 if any count is not as promised.
//
// It runs in a directory with bin, eventing and examples of a checkout. Its options are for the test of it, which takes fewer contacts and ports of its own.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	campaign  = "spring-news"
	journey   = "onboarding"
	formName  = "newsletter"
	fillsIn   = 3 * time.Second // how long people take for it at the least
	segment   = "nordic"
	kills     = 5
	signUps   = 12
	stateDir  = ".onda"
	sendLimit = 10 * time.Minute
)

// options are how many contacts there are, and the ports of 127.0.0.1 that are taken.
type options struct {
	contacts                    int64
	port, smtpPort, mailboxPort int
}

func main() {
	var o options
	flag.Int64Var(&o.contacts, "contacts", 50_000, "how many contacts there are")
	flag.IntVar(&o.port, "port", 8080, "port of onda dev")
	flag.IntVar(&o.smtpPort, "smtp-port", 1025, "port of the mailbox server's SMTP")
	flag.IntVar(&o.mailboxPort, "mailbox-port", 8025, "port of the mailbox server's pages")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, o)
	interrupted := ctx.Err() != nil
	stop()
	switch {
	case err != nil && interrupted: // whatever failed, failed of the interrupt; the tour has shown nothing
		fmt.Fprintln(os.Stderr, "tour: interrupted")
		os.Exit(130)
	case err != nil:
		fmt.Fprintln(os.Stderr, "tour:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) error {
	t := &tour{terminal: newTerminal(), contacts: o.contacts}
	var err error
	if t.stack, err = startStack(ctx, o); err != nil {
		return err
	}
	defer t.stop()
	for _, step := range []func(context.Context) error{t.load, t.preflight, t.send, t.recipients, t.signUps, t.explain, t.report} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	if len(t.broken) > 0 {
		return fmt.Errorf("not as promised: %s", strings.Join(t.broken, "; "))
	}
	t.look()
	if os.Getenv("CI") == "true" {
		return nil
	}
	select {
	case <-ctx.Done():
	case err := <-t.ended:
		t.ended <- err
		return fmt.Errorf("onda dev ended: %w", err)
	}
	return nil
}

type tour struct {
	*terminal
	*stack
	contacts int64
	ran      bool // the campaign was sent in an earlier run of the tour
	to       string
	broken   []string
}

// promise notes what is not as it should be.
func (t *tour) promise(ok bool, format string, args ...any) {
	if !ok {
		t.broken = append(t.broken, fmt.Sprintf(format, args...))
	}
}

// load applies the documents and imports the contacts.
func (t *tour) load(ctx context.Context) error {
	t.title("Documents are applied, and %s contacts imported: each row with the consent that its list stands for", comma(t.contacts))
	if _, err := t.onda("apply", "-f", "examples/company"); err != nil {
		return err
	}
	dir := filepath.Join(stateDir, "contacts")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	lists, err := writeContacts(dir, t.contacts)
	if err != nil {
		return err
	}
	for _, l := range lists {
		args := []string{"import", l.file}
		for _, c := range l.consents {
			args = append(args, "--consent", c)
		}
		t.say("%s", t.paint("2", fmt.Sprintf("%s people who %s", comma(l.rows), l.what)))
		if len(l.consents) > 0 {
			args = append(args, "--proof", "the tour's list "+filepath.Base(l.file))
		}
		if _, err := t.onda(args...); err != nil {
			return err
		}
	}
	err = wait(ctx, 60*time.Second, "segment "+segment, func() (bool, error) {
		var s struct {
			Members int64 `json:"members"`
			Current bool  `json:"current"`
		}
		err := t.json(&s, "segment", segment)
		return s.Members >= t.contacts && s.Current, err
	})
	if err != nil {
		return err
	}
	_, err = t.onda("segment", segment)
	return err
}

// json runs a command of onda and reads what it prints.
func (t *tour) json(into any, args ...string) error {
	out, err := t.quiet(append([]string{"--output", "json"}, args...)...)
	if err != nil {
		return err
	}
	return json.Unmarshal([]byte(out), into)
}

func (t *tour) preflight(ctx context.Context) error {
	var status runStatus
	t.ran = t.json(&status, "campaign", "status", campaign) == nil
	t.title("Before anything is sent: who will get it, and who will not and why")
	_, err := t.onda("campaign", "start", campaign, "--dry-run")
	if err != nil || t.ran {
		return err
	}
	_, err = t.quiet("campaign", "start", journey)
	return err
}

// runStatus is what the tour reads of campaign status.
type runStatus struct {
	State  string `json:"state"`
	Counts struct {
		Sent       int64 `json:"sent"`
		Deferred   int64 `json:"deferred"`
		Failed     int64 `json:"failed"`
		Suppressed int64 `json:"suppressed"`
		Unknown    int64 `json:"unknown"`
	} `json:"counts"`
	Planned int64 `json:"planned"`
	Queued  int64 `json:"queued"`
}

// boxCounts is what the mailbox server counted.
type boxCounts struct {
	Received int64 `json:"received"`
	Distinct int64 `json:"distinct"`
	Repeated int64 `json:"repeated"`
}

func (t *tour) send(ctx context.Context) error {
	if t.ran {
		t.title("%s was sent in an earlier run: nobody is mailed twice", campaign)
		_, err := t.onda("campaign", "status", campaign)
		return err
	}
	t.title("The campaign is sent over real SMTP, while the broker drops 30 %% of all events and send is killed %d times", kills)
	if err := t.control(ctx, "/dev/chaos", map[string]float64{"drop": 0.3}); err != nil {
		return err
	}
	if _, err := t.onda("campaign", "start", campaign); err != nil {
		return err
	}
	if err := t.watch(ctx); err != nil {
		return err
	}
	if err := t.control(ctx, "/dev/chaos", map[string]float64{}); err != nil {
		return err
	}
	return t.count(ctx)
}

// watch kills send a few times on the way, and waits until every mail has an outcome.
func (t *tour) watch(ctx context.Context) error {
	began := time.Now()
	killed := 0
	lastKill := time.Now()
	shown := int64(-1)
	return wait(ctx, sendLimit, "the campaign to be sent", func() (bool, error) {
		var box boxCounts
		if err := t.get(ctx, t.mailbox+"/api/counts", &box); err != nil {
			return false, err
		}
		if killed < kills && time.Since(lastKill) > 700*time.Millisecond && box.Distinct > int64(killed+1)*t.contacts/(kills+4) {
			if err := t.control(ctx, "/dev/kill", map[string]string{"service": "send", "signal": "KILL"}); err != nil {
				return false, err
			}
			killed++
			lastKill = time.Now()
			t.say("%s after %s mails", t.paint("31", "kill -9 send"), comma(box.Received))
		}
		if step := box.Distinct / 10_000; step != shown {
			shown = step
			t.say("%6s mails received, %.0f s", comma(box.Received), time.Since(began).Seconds())
		}
		var status runStatus
		if err := t.json(&status, "campaign", "status", campaign); err != nil {
			return false, err
		}
		return status.State == "completed", nil
	})
}

// count compares what Onda knows with what the mailbox server got.
func (t *tour) count(ctx context.Context) error {
	var status runStatus
	if err := t.json(&status, "campaign", "status", campaign); err != nil {
		return err
	}
	var box boxCounts
	if err := t.get(ctx, t.mailbox+"/api/counts", &box); err != nil {
		return err
	}
	if _, err := t.onda("campaign", "status", campaign); err != nil {
		return err
	}
	c := status.Counts
	outcomes := c.Sent + c.Deferred + c.Failed + c.Suppressed + c.Unknown
	lost := max(c.Sent-box.Distinct, 0) + (t.contacts - outcomes)
	t.say("the mailbox server received %s mails, %s different ones", comma(box.Received), comma(box.Distinct))
	t.say("%s", t.paint("1", fmt.Sprintf("lost %d, repeated %d, unknown %d", lost, box.Repeated, c.Unknown)))
	t.promise(outcomes == t.contacts, "%d outcomes of %d mails", outcomes, t.contacts)
	t.promise(lost == 0, "%d mails were lost", lost)
	t.promise(box.Repeated == 0, "%d mails were repeated", box.Repeated)
	t.promise(box.Distinct <= c.Sent+c.Unknown, "%d mails arrived of %d that were sent and %d that may have been", box.Distinct, c.Sent, c.Unknown)
	t.promise(c.Unknown <= kills*4*64, "%d unknown mails are more than the windows in flight", c.Unknown)
	return nil
}

func (t *tour) recipients(ctx context.Context) error {
	if t.ran {
		return nil
	}
	t.title("Simulated recipients open, click, unsubscribe, bounce and complain: people, mailbox providers and scanners")
	p := &people{s: t.stack}
	var last int64
	for last >= 0 {
		var page struct {
			Mails []summary `json:"mails"`
		}
		if err := t.get(ctx, fmt.Sprintf("%s/api/mails?after=%d&limit=500", t.mailbox, last), &page); err != nil {
			return err
		}
		last = -1
		var some []summary
		for _, m := range page.Mails {
			last = max(last, m.ID)
			if number("sample"+m.To)%20 == 0 { // one in twenty does anything
				some = append(some, m)
			}
		}
		if err := p.act(ctx, some); err != nil {
			return err
		}
	}
	t.say("%s recipients looked at their mail: %d read it, %d of them clicked; %d pictures were loaded by providers, %d mails scanned", comma(p.read.Load()), p.opened.Load(),
		p.clicked.Load(), p.proxied.Load(), p.scanned.Load())
	t.say("%d unsubscribed, %d bounced later, %d complained", p.unsubscribed.Load(), p.bounced.Load(), p.complained.Load())
	return wait(ctx, 60*time.Second, "hits to be judged", func() (bool, error) {
		var r struct {
			Unsubscribes int64 `json:"unsubscribes"`
			Complaints   int64 `json:"complaints"`
			OpensHuman   struct {
				Mails int64 `json:"mails"`
			} `json:"opensHuman"`
			ClicksMachine struct {
				Hits int64 `json:"hits"`
			} `json:"clicksMachine"`
		}
		err := t.json(&r, "report", campaign)
		return r.OpensHuman.Mails > 0 && r.ClicksMachine.Hits > 0 && r.Complaints >= p.complained.Load(), err
	})
}

func (t *tour) signUps(ctx context.Context) error {
	t.title("%d people fill in the form and confirm; they enter the campaign %s; the clock moves on by three days", signUps, journey)
	run := strconv.FormatInt(time.Now().Unix(), 36)
	address := func(i int) string { return fmt.Sprintf("new%d.%s@mail.example", i, run) }
	type opened struct {
		visitor *stack
		at      string
		page    []byte
	}
	forms := make([]opened, signUps)
	for i := range forms {
		v := t.visitor(int(time.Now().Unix()) + i)
		at, page, err := v.form(ctx, formName)
		if err != nil {
			return err
		}
		forms[i] = opened{v, at, page}
	}
	select {
	case <-time.After(fillsIn): // a form that is sent in sooner is taken for a program's
	case <-ctx.Done():
		return ctx.Err()
	}
	for i, f := range forms {
		fields := url.Values{"email": {address(i)}, "first_name": {"Nina"}, "country": {"NO"}, "consent.newsletter": {"on"}}
		if i%3 > 0 {
			fields.Set("consent.tracking.email", "on")
		}
		if _, err := f.visitor.post(ctx, f.at, f.page, fields); err != nil {
			return err
		}
		if i == signUps-1 {
			t.say("the last one does not confirm: nothing more is sent to them")
			break
		}
		if err := t.confirm(ctx, address(i)); err != nil {
			return err
		}
	}
	if err := t.welcomed(ctx, address); err != nil {
		return err
	}
	t.to = address(1)
	if _, err := t.onda("campaign", "explain", journey, t.to); err != nil {
		return err
	}
	if _, err := t.onda("tenant", "clock", "73h"); err != nil {
		return err
	}
	err := wait(ctx, 60*time.Second, "the journeys to go on", func() (bool, error) {
		var r struct {
			Graph struct {
				Nodes []struct {
					Kind string `json:"kind"`
					Here int64  `json:"here"`
				} `json:"nodes"`
			} `json:"graph"`
		}
		err := t.json(&r, "report", journey)
		for _, n := range r.Graph.Nodes { // whoever waited for a click in the first mail has gone on
			if n.Kind == "wait" {
				return n.Here == 0, err
			}
		}
		return false, err
	})
	if err != nil {
		return err
	}
	_, err = t.onda("campaign", "explain", journey, address(2))
	return err
}

// welcomed lets every third of those who signed up click in the welcome mail, when a person would: a hit within seconds of sending is taken for a machine's.
func (t *tour) welcomed(ctx context.Context, address func(int) string) error {
	var mails []mail
	for i := 1; i < signUps-1; i += 3 {
		m, err := t.mailTo(ctx, address(i), "w") // of the two mails so far, the welcome has a web view
		if err != nil {
			return err
		}
		mails = append(mails, m)
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(4 * time.Second):
	}
	p := &people{s: t.stack}
	for _, m := range mails {
		if err := p.reads(ctx, m, browser, true); err != nil {
			return err
		}
	}
	return wait(ctx, 60*time.Second, "clicks to be judged", func() (bool, error) {
		var journeys []struct {
			State string `json:"state"`
		}
		err := t.json(&journeys, "campaign", "explain", journey, address(1))
		return len(journeys) > 0 && journeys[0].State != "active", err
	})
}

func (t *tour) explain(ctx context.Context) error {
	t.title("One delivery: what caused it, on which consent, what became of it")
	var journeys []struct {
		Steps []struct {
			Delivery int64 `json:"delivery"`
		} `json:"steps"`
	}
	if err := t.json(&journeys, "campaign", "explain", journey, t.to); err != nil {
		return err
	}
	for _, j := range journeys {
		for _, s := range j.Steps {
			if s.Delivery != 0 {
				_, err := t.onda("explain", strconv.FormatInt(s.Delivery, 10))
				return err
			}
		}
	}
	return fmt.Errorf("%s got no mail of %s", t.to, journey)
}

func (t *tour) report(ctx context.Context) error {
	t.title("The report, and a second tenant")
	for _, name := range []string{campaign, journey} {
		if _, err := t.onda("report", name, "--html", filepath.Join(stateDir, name+".html")); err != nil {
			return err
		}
	}
	if _, err := t.onda("tenant", "create", "tenant-"+strconv.FormatInt(time.Now().UnixMilli(), 36)); err != nil {
		return err
	}
	var status devStatus
	if err := t.get(ctx, t.url+"/dev/status", &status); err != nil {
		return err
	}
	t.say("")
	t.say("%-14s %8s %8s %12s %12s", "function", "started", "killed", "ready after", "peak memory")
	for _, s := range status.Services {
		t.say("%-14s %8d %8d %9.0f ms %9.1f MB", s.Service, s.Starts, s.Kills, s.ReadyMost*1000, float64(s.PeakRSS)/(1<<20))
	}
	t.say("%s so far", time.Since(t.began).Round(time.Second))
	return nil
}

func (t *tour) look() {
	t.title("It stays up. Look at:")
	for _, l := range [][2]string{
		{"everything", t.url + "/"},
		{"reports", t.url + "/reports/" + tenant},
		{"the graph", t.url + "/reports/" + tenant + "/" + journey + "#graph"},
		{"mailbox", t.mailbox + "/"},
		{"the form", t.url + "/f/" + tenant + "/" + formName},
	} {
		t.say("%-12s %s", l[0], l[1])
	}
	if m, err := t.mailTo(context.Background(), t.to, "w"); err == nil {
		t.say("%-12s %s", "a mail", m.page("w"))
	}
	t.say("and try: bin/onda --help; bin/onda campaign start %s (Ctrl-C ends it)", campaign)
}
