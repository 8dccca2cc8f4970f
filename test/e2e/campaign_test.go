package e2e

import (
	"bufio"
	"bytes"
	"fmt"
	"html"
	"io"
	"iter"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/emersion/go-message"

	"github.com/onda-run/onda/internal/mailbox"
)

const audience = 50_000

// company makes a tenant with the example's documents and some contacts: of a hundred, forty let themselves be tracked, and one has agreed to nothing.
func (t *test) company(tenant string, contacts int) {
	t.Helper()
	t.run("", "tenant", "create", tenant)
	t.run(tenant, "apply", "-f", filepath.Join(t.root, "examples", "company"))
	groups := []struct {
		from, to int
		consents []string
	}{
		{0, contacts * 40 / 100, []string{"newsletter", "tracking.email"}},
		{contacts * 40 / 100, contacts - contacts/100, []string{"newsletter"}},
		{contacts - contacts/100, contacts, nil},
	}
	for i, g := range groups {
		if g.from == g.to {
			continue
		}
		path := filepath.Join(t.TempDir(), fmt.Sprintf("%s-%d.csv", tenant, i))
		f, err := os.Create(path)
		t.must(err)
		w := bufio.NewWriter(f)
		_, _ = fmt.Fprintln(w, "external_id,email,first_name,country,locale,plan")
		for n := g.from; n < g.to; n++ {
			_, _ = fmt.Fprintf(w, "%s-%06d,c%06d@%s.example,Ada,NO,en,free\n", tenant, n, n, tenant)
		}
		t.must(w.Flush())
		t.must(f.Close())
		args := []string{"import", path}
		for _, c := range g.consents {
			args = append(args, "--consent", c)
		}
		if len(g.consents) > 0 {
			args = append(args, "--proof", "the end-to-end test's list")
		}
		t.run(tenant, args...)
	}
	want := fmt.Sprintf(" %d  in the segment", contacts)
	t.wait(patience, "the segment to be computed", func() bool {
		out, err := t.onda(t.ctx, tenant, "campaign", "start", "spring-news", "--dry-run")
		return err == nil && strings.Contains(out, want)
	})
}

// status is what campaign status prints.
type status struct {
	State  string `json:"state"`
	Counts struct {
		Sent, Deferred, Failed, Suppressed, Unknown int64
	} `json:"counts"`
	Planned, Queued int64
}

func (s status) outcomes() int64 {
	c := s.Counts
	return c.Sent + c.Deferred + c.Failed + c.Suppressed + c.Unknown
}

func (t *test) status(tenant, name string) (s status) {
	t.Helper()
	t.runJSON(&s, tenant, "campaign", "status", name)
	return s
}

// completed waits until a tenant's broadcast is, and gives its status.
func (t *test) completed(limit time.Duration, tenant string) (s status) {
	t.Helper()
	t.wait(limit, "the campaign of "+tenant+" to be completed", func() bool {
		s = t.status(tenant, "spring-news")
		return s.State == "completed"
	})
	return s
}

// start starts a broadcast as outside of development: the number that will get it is given back.
func (t *test) start(tenant, name string, recipients int) {
	t.Helper()
	t.run(tenant, "campaign", "start", name, "--confirm", fmt.Sprint(recipients))
}

// mails are those that came for a tenant's contacts, or for everyone's where tenant is empty.
func (t *test) mails(tenant string) iter.Seq[mailbox.Mail] {
	return func(yield func(mailbox.Mail) bool) {
		left := t.box.Counts().Received
		if left == 0 {
			return
		}
		for m := range t.box.Watch(t.ctx, 1) {
			left--
			if (tenant == "" || strings.HasSuffix(m.To, "@"+tenant+".example")) && !yield(m) || left == 0 {
				return
			}
		}
	}
}

// came are how many mails came for a tenant's contacts, and how many of them are different ones.
func (t *test) came(tenant string) (all, distinct int64) {
	t.Helper()
	ids := map[string]bool{}
	for m := range t.mails(tenant) {
		all++
		ids[m.To+m.MessageID] = true
	}
	return all, int64(len(ids))
}

// audit holds what came at the mail server against what Onda says of it.
func (t *test) audit(tenant string, s status, contacts, maxUnknown int64) {
	t.Helper()
	all, distinct := t.came(tenant)
	lost := contacts - s.outcomes() + max(0, s.Counts.Sent-distinct)
	t.Logf("%s: %d contacts: sent %d, suppressed %d, failed %d, unknown %d; %d mails came, %d different ones: lost %d, repeated %d",
		tenant, contacts, s.Counts.Sent, s.Counts.Suppressed, s.Counts.Failed, s.Counts.Unknown, all, distinct, lost, all-distinct)
	if s.State != "completed" || s.outcomes() != contacts {
		t.Errorf("%s: %s, %d outcomes of %d", tenant, s.State, s.outcomes(), contacts)
	}
	if lost != 0 {
		t.Errorf("%s: lost %d", tenant, lost)
	}
	if all != distinct {
		t.Errorf("%s: %d came twice", tenant, all-distinct)
	}
	if distinct > s.Counts.Sent+s.Counts.Unknown {
		t.Errorf("%s: %d came of %d that were sent and %d that may have been", tenant, distinct, s.Counts.Sent, s.Counts.Unknown)
	}
	if s.Counts.Unknown > maxUnknown {
		t.Errorf("%s: %d unknown, more than were in flight (%d)", tenant, s.Counts.Unknown, maxUnknown)
	}
}

// letter is a mail as its recipient's program shows it.
type letter struct {
	to, pixel, unsubscribe string
	links                  []string
}

var (
	href  = regexp.MustCompile(`href="([^"]+/c/[^"]+)"`)
	image = regexp.MustCompile(`src="([^"]+/o/[^"]+)"`)
	angle = regexp.MustCompile(`<(https://[^>]+)>`)
)

func (t *test) letter(id int64) letter {
	t.Helper()
	m, err := t.box.Mail(id)
	t.must(err)
	raw, err := t.box.Raw(id)
	t.must(err)
	e, err := message.Read(bytes.NewReader(raw))
	t.must(err)
	l := letter{to: m.To}
	if u := angle.FindStringSubmatch(e.Header.Get("List-Unsubscribe")); u != nil {
		l.unsubscribe = u[1]
	}
	t.must(e.Walk(func(_ []int, part *message.Entity, err error) error {
		if kind, _, _ := part.Header.ContentType(); err != nil || kind != "text/html" {
			return err
		}
		body, err := io.ReadAll(part.Body)
		if m := image.FindSubmatch(body); m != nil {
			l.pixel = html.UnescapeString(string(m[1]))
		}
		for _, m := range href.FindAllSubmatch(body, -1) {
			l.links = append(l.links, html.UnescapeString(string(m[1])))
		}
		return err
	}))
	return l
}

const reader = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"

// A campaign to 50,000: from zero and back to zero, every mail with an outcome, opens and clicks through the public ingress in the report.
func TestCampaign(t *testing.T) {
	c := begin(t)
	c.company("acme", audience)
	c.atZero()
	l := c.watchPods()
	began := time.Now()
	c.start("acme", "spring-news", audience-audience/100)
	l.say("campaign start")
	s := c.completed(20*time.Minute, "acme")
	took := time.Since(began)
	l.say("completed")
	c.audit("acme", s, audience, 0)
	c.Logf("%d recipients in %.1f s from the command, from zero: %.0f a second", audience, took.Seconds(), float64(audience)/took.Seconds())

	opened, clicked := 0, 0
	for m := range c.mails("acme") {
		if opened == 200 {
			break
		}
		letter := c.letter(m.ID)
		if letter.pixel == "" || len(letter.links) == 0 {
			continue
		}
		header := http.Header{"User-Agent": {reader}}
		code, _, err := c.fetch(c.ctx, http.MethodGet, letter.pixel, header, "")
		c.must(err)
		if code != http.StatusOK {
			t.Fatalf("pixel: %d", code)
		}
		opened++
		if opened%4 == 0 {
			code, _, err := c.fetch(c.ctx, http.MethodGet, letter.links[0], header, "")
			c.must(err)
			if code != http.StatusFound {
				t.Fatalf("click: %d", code)
			}
			clicked++
		}
	}
	l.say("%d opens, %d clicks", opened, clicked)
	type hits struct{ Hits int64 }
	var report struct{ OpensHuman, OpensMachine, ClicksHuman, ClicksMachine hits }
	in := func() (opens, clicks int64) {
		return report.OpensHuman.Hits + report.OpensMachine.Hits, report.ClicksHuman.Hits + report.ClicksMachine.Hits
	}
	c.wait(patience, "opens and clicks to be in the report", func() bool {
		c.runJSON(&report, "acme", "report", "spring-news")
		opens, clicks := in()
		return opens >= int64(opened) && clicks >= int64(clicked)
	})
	if opens, clicks := in(); opens != int64(opened) || clicks != int64(clicked) {
		t.Errorf("the report has %d opens and %d clicks of %d and %d", opens, clicks, opened, clicked)
	}
	c.Logf("the report has all %d opens and %d clicks that came through the ingress", opened, clicked)
	zero := c.atZero()
	c.Logf("at zero %.0f s after the report", zero.Seconds())
	if left := c.pods(); left["onda-system/schedule"] > 1 || len(left) > 1 {
		t.Errorf("pods that are left: %v", left)
	}
	c.keep(l, "campaign", fmt.Sprintf("A campaign to %d contacts: pods, from zero to zero", audience))
	c.run("acme", "report", "spring-news", "--html", filepath.Join(c.out, "report.html"))
}
