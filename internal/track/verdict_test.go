package track

import (
	"bytes"
	"fmt"
	"math"
	"math/rand/v2"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
	"pgregory.net/rapid"
)

func sorted(s []string) []string { return slices.Sorted(slices.Values(s)) }

func corpus(t *testing.T, name string) (agents []string) {
	t.Helper()
	b, err := os.ReadFile("testdata/agents/" + name)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Split(strings.TrimSpace(string(b)), "\n") {
		if !strings.HasPrefix(line, "# ") {
			agents = append(agents, line)
		}
	}
	return agents
}

// scene is one mail with nine links, or several, and what comes of it, as somebody behaves.
type scene struct {
	*rand.Rand
	lists    *lists
	sent     time.Time
	delivery int64 // of the hits that come
	mails    map[int64]mail
	hits     []stored
	mine     []bool // which hits the actor did, of those a person did beside a scanner
}

// mail sends one more mail, of which hits come from now on.
func (s *scene) mail(after time.Duration) {
	s.delivery++
	s.mails[s.delivery] = mail{sent: s.sent.Add(after), links: 8}
}

func (s *scene) hit(after time.Duration, kind string, link int64, method, agent, from string) {
	h := stored{ID: int64(len(s.hits) + 1), Kind: kind, Delivery: s.delivery, Link: link, Method: method, Agent: agent, Origin: []byte(from), At: s.sent.Add(after)}
	if h.Reason = s.lists.request(kind, method, agent, from, false); kind == kindClick && link == 0 {
		h.Reason = unseen
	}
	s.hits = append(s.hits, h)
}

// between is a random time.
func (s *scene) between(a, b time.Duration) time.Duration {
	return a + time.Duration(s.Int64N(int64(b-a)))
}

func (s *scene) address() string { return fmt.Sprintf("203.0.%d.%d", s.IntN(256), s.IntN(256)) }

func (s *scene) one(of []string) string { return of[s.IntN(len(of))] }

// A person and a scanner use the same browsers: only what they do tells them apart.
const edge = "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/153.0.0.0 Safari/537.36 Edg/153.0.0.0"

type actor struct {
	name   string
	person bool
	act    func(s *scene, people []string)
}

func actors() []actor {
	const links = 9
	return []actor{
		{"Safe Links, when the mail comes", false, func(s *scene, _ []string) {
			// from many addresses at once, of which most are its own; some in Azure, where anybody is
			at := s.between(time.Second, 5*time.Minute)
			for link := range int64(links) {
				from := fmt.Sprintf("40.94.%d.%d", s.IntN(256), s.IntN(256))
				if s.IntN(3) == 0 {
					from = s.address()
				}
				s.hit(at+s.between(0, 2*time.Second), kindClick, link, "GET", edge, from)
			}
		}},
		{"Proofpoint", false, func(s *scene, _ []string) {
			// from a cloud: HEAD, then GET, of the links that it does not know yet
			at, from := s.between(10*time.Second, 20*time.Minute), s.address()
			for link := range int64(1 + s.IntN(links)) {
				at += s.between(200*time.Millisecond, 3*time.Second)
				s.hit(at, kindClick, link+1, "HEAD", edge, from)
				s.hit(at+300*time.Millisecond, kindClick, link+1, "GET", edge, from)
			}
		}},
		{"Mimecast", false, func(s *scene, _ []string) {
			// one link after the other, the unseen one somewhere between
			at, from := s.between(10*time.Second, 10*time.Minute), s.address()
			for _, link := range s.Perm(links) {
				at += s.between(time.Second, 5*time.Second)
				s.hit(at, kindClick, int64(link), "GET", edge, from)
			}
		}},
		{"Barracuda", false, func(s *scene, _ []string) {
			// before it takes the mail, an open and all links
			at, from := -s.between(100*time.Millisecond, 20*time.Second), s.address()
			s.hit(at, kindOpen, 0, "GET", edge, from)
			for link := range int64(links) {
				s.hit(at+s.between(0, time.Second), kindClick, link, "GET", edge, from)
			}
		}},
		{"a scanner of one link that looks like a browser", false, func(s *scene, _ []string) {
			s.hit(s.between(3*time.Second, time.Hour), kindClick, 1+s.Int64N(links-1), "GET", edge, s.address())
		}},
		{"a scanner of all links that people see, at once, from anywhere", false, func(s *scene, _ []string) {
			at := s.between(10*time.Second, 10*time.Minute)
			for link := range int64(links - 1) {
				s.hit(at+s.between(0, 2*time.Second), kindClick, link+1, "GET", edge, s.address())
			}
		}},
		{"a scanner of all links that people see, one after the other", false, func(s *scene, _ []string) {
			at, from := s.between(10*time.Second, 10*time.Minute), s.address()
			for link := range int64(links - 1) {
				at += s.between(200*time.Millisecond, time.Second)
				s.hit(at, kindClick, link+1, "GET", edge, from)
			}
		}},
		{"Apple Mail Privacy Protection", false, func(s *scene, _ []string) {
			s.hit(s.between(time.Minute, 5*time.Hour), kindOpen, 0, "GET", "Mozilla/5.0", s.address())
		}},
		{"Gmail's image proxy", false, func(s *scene, _ []string) {
			for range 1 + s.IntN(3) {
				s.hit(s.between(time.Minute, 5*time.Hour), kindOpen, 0, "GET", "Mozilla/5.0 (Windows NT 5.1; rv:11.0) Gecko Firefox/11.0 (via ggpht.com GoogleImageProxy)", fmt.Sprintf("66.249.84.%d", s.IntN(256)))
			}
		}},
		{"Yahoo's image proxy", false, func(s *scene, _ []string) {
			s.hit(s.between(time.Minute, 5*time.Hour), kindOpen, 0, "GET", "YahooMailProxy; https://help.yahoo.com/kb/yahoo-mail-proxy-SLN28749.html", s.address())
		}},
		{"a person who is slow", true, func(s *scene, people []string) {
			at, agent, from := s.between(time.Hour, 30*time.Hour), s.one(people), s.address()
			s.hit(at, kindOpen, 0, "GET", agent, from)
			for range 1 + s.IntN(3) {
				at += s.between(10*time.Second, 10*time.Minute)
				s.hit(at, kindClick, 1+s.Int64N(links-1), "GET", agent, from)
			}
		}},
		{"a person who is fast", true, func(s *scene, people []string) {
			at, agent, from := s.between(5*time.Second, time.Minute), s.one(people), s.address()
			s.hit(at, kindOpen, 0, "GET", agent, from)
			for _, link := range s.Perm(links - 1)[:2] { // two links, in tabs
				at += s.between(500*time.Millisecond, 3*time.Second)
				s.hit(at, kindClick, int64(link)+1, "GET", agent, from)
			}
		}},
		{"a person who opens three links in tabs at once", true, func(s *scene, people []string) {
			at, agent, from := s.between(time.Minute, time.Hour), s.one(people), s.address()
			for _, link := range s.Perm(links - 1)[:3] {
				at += s.between(400*time.Millisecond, 2*time.Second)
				s.hit(at, kindClick, int64(link)+1, "GET", agent, from)
			}
		}},
		{"a person with two devices", true, func(s *scene, people []string) {
			for range 2 {
				at, agent, from := s.between(time.Minute, 50*time.Hour), s.one(people), s.address()
				s.hit(at, kindOpen, 0, "GET", agent, from)
				s.hit(at+s.between(3*time.Second, time.Minute), kindClick, 1+s.Int64N(links-1), "GET", agent, from)
			}
		}},
		{"a person whose preview pane opens it again and again", true, func(s *scene, people []string) {
			agent, from := s.one(people), s.address()
			for range 2 + s.IntN(5) {
				s.hit(s.between(time.Minute, 50*time.Hour), kindOpen, 0, "GET", agent, from)
			}
			s.hit(s.between(time.Hour, 50*time.Hour), kindClick, 1, "GET", agent, from)
		}},
		{"a person behind Safe Links, which looks at a link when it is clicked", true, func(s *scene, people []string) {
			at, link := s.between(time.Minute, 50*time.Hour), 1+s.Int64N(links-1)
			s.hit(at, kindClick, link, "GET", edge, fmt.Sprintf("40.94.%d.%d", s.IntN(256), s.IntN(256)))
			s.mine = []bool{false, true}
			s.hit(at+s.between(100*time.Millisecond, time.Second), kindClick, link, "GET", s.one(people), s.address())
		}},
		{"a gateway before a company, one link of each of its mails", false, func(s *scene, _ []string) {
			at, from := s.between(3*time.Second, 8*time.Second), s.address()
			for range 12 {
				s.mail(s.between(0, 2*time.Second))
				s.hit(at, kindClick, 1+s.Int64N(links-1), "GET", edge, from)
				at += s.between(100*time.Millisecond, 700*time.Millisecond)
			}
		}},
		{"an office of 2,000 behind one address, of whom a tenth click, half of them within 8 minutes", true, func(s *scene, _ []string) {
			from := s.address()
			for range 200 {
				sent := s.between(0, 10*time.Second)
				s.mail(sent)
				s.hit(sent+time.Duration(math.Exp(1.3*s.NormFloat64())*float64(8*time.Minute)), kindClick, 1+s.Int64N(links-1), "GET", edge, from)
			}
		}},
	}
}

// TestConfusion judges what machines and people do, and the names they go by. With -v it prints the table of README.md.
func TestConfusion(t *testing.T) {
	t.Parallel()
	lists := newScanners("", zap.NewNop()).now()
	people := corpus(t, "people.txt")
	type row struct {
		name           string
		person         bool
		asHuman, asBot int
		reasons        map[string]int
		atMostWrong    float64 // share
	}
	var rows []row
	add := func(r row) {
		wrong := r.asHuman
		if r.person {
			wrong = r.asBot
		}
		if share := float64(wrong) / float64(r.asHuman+r.asBot); share > r.atMostWrong {
			t.Errorf("%s: %.3f are misjudged, at most %.3f may be: %v", r.name, share, r.atMostWrong, r.reasons)
		}
		rows = append(rows, r)
	}
	for _, c := range []struct {
		name, file string
		person     bool
		most       float64
	}{{"agents of programs", "machines.txt", false, 0.1}, {"agents of people", "people.txt", true, 0}} {
		r := row{name: c.name, person: c.person, reasons: map[string]int{}, atMostWrong: c.most}
		for _, agent := range corpus(t, c.file) {
			reason := lists.request(kindClick, "GET", agent, "192.0.2.1", false)
			if r.reasons[reason]++; reason == "" {
				r.asHuman++
			} else {
				r.asBot++
			}
		}
		add(r)
	}
	mostWrong := map[string]float64{ // what can be told of them is not enough
		"a scanner of one link that looks like a browser": 1, "a person who opens three links in tabs at once": 0.02,
		"an office of 2,000 behind one address, of whom a tenth click, half of them within 8 minutes": 0.0002,
		"a scanner of all links that people see, one after the other":                                 0.1,
	}
	for i, a := range actors() {
		r := row{name: a.name, person: a.person, reasons: map[string]int{}, atMostWrong: mostWrong[a.name]}
		random := rand.New(rand.NewPCG(uint64(i), 6))
		for range 500 {
			s := &scene{Rand: random, lists: lists, sent: time.Date(2026, 11, 24, 9, 0, 0, 0, time.UTC), mails: map[int64]mail{}}
			s.mail(0)
			a.act(s, people)
			gated, of := gateways(s.hits, s.mails), map[int64][]stored{}
			for j, h := range s.hits {
				if gated[h.ID] && lists.own(h) == "" {
					s.hits[j].Reason = gateway
				}
				of[h.Delivery] = append(of[h.Delivery], s.hits[j])
			}
			for j, h := range s.hits {
				if s.mine != nil && !s.mine[j] {
					continue
				}
				verdict, reason := lists.judge(h, gatherEvidence(of[h.Delivery], 8), s.mails[h.Delivery])
				if r.reasons[reason]++; verdict == human {
					r.asHuman++
				} else {
					r.asBot++
				}
			}
		}
		add(r)
	}
	var table strings.Builder
	for _, r := range rows {
		is := "machine"
		if r.person {
			is = "person"
		}
		fmt.Fprintf(&table, "| %s | %s | %d | %d |\n", r.name, is, r.asBot, r.asHuman)
	}
	t.Logf("hits judged:\n| who | is a | machine | human |\n|---|---|---|---|\n%s", table.String())
	readme, err := os.ReadFile("../../functions/track/README.md")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(readme), table.String()) {
		t.Error("the table of functions/track/README.md is another: put in what -v prints")
	}
}

// TestAnyOrder lets the same hits come in any order, judged at any moments between: verdicts, reasons and statistics are the same in the end.
func TestAnyOrder(t *testing.T) {
	t.Parallel()
	lists := newScanners("", zap.NewNop()).now()
	rapid.Check(t, func(t *rapid.T) {
		m := mail{links: rapid.IntRange(1, 4).Draw(t, "links"), again: rapid.Bool().Draw(t, "again")}
		start := time.Date(2026, 11, 24, 9, 59, 30, 0, time.UTC)
		if rapid.Bool().Draw(t, "sent is known") {
			m.sent = start
		}
		hits := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) stored {
			h := stored{
				Kind: rapid.SampledFrom([]string{kindOpen, kindClick, kindClick, kindView}).Draw(t, "kind"), Method: rapid.SampledFrom([]string{"GET", "GET", "HEAD"}).Draw(t, "method"),
				Agent: rapid.SampledFrom([]string{edge, edge, "curl/8", ""}).Draw(t, "agent"), Origin: []byte(rapid.SampledFrom([]string{"192.0.2.1", "192.0.2.2", "40.94.0.1"}).Draw(t, "from")),
				At: start.Add(time.Duration(rapid.IntRange(-20, 400).Draw(t, "at")) * 500 * time.Millisecond), Delivery: 513, Run: 1, Step: "s",
			}
			if h.Kind == kindClick {
				h.Link = int64(rapid.IntRange(0, m.links).Draw(t, "link"))
			}
			if h.Reason = lists.request(h.Kind, h.Method, h.Agent, string(h.Origin), false); h.Kind == kindClick && h.Link == 0 {
				h.Reason = unseen
			}
			return h
		}), 1, 8).Draw(t, "hits")
		// end gives what is known when all is over, of hits that came in an order; judged tells after which of them the judge came.
		end := func(order []int, judged []bool) (verdicts []string, stats map[statKey]count) {
			var rows []stored
			due, stats := map[int64]bool{}, map[statKey]count{}
			at := map[int64]int{}
			for n, i := range order {
				h := hits[i]
				h.ID = int64(n + 1)
				at[h.ID] = i
				rows = append(rows, h)
				if judged[n] {
					due[h.ID] = true
					if rapid.Bool().Draw(t, "all are due") {
						for _, r := range rows {
							due[r.ID] = true
						}
					}
					rows = lists.revise(rows, due, m, stats)
				}
			}
			for _, r := range rows {
				due[r.ID] = true
			}
			rows = lists.revise(rows, due, m, stats)
			verdicts = make([]string, len(hits))
			for _, r := range rows {
				verdicts[at[r.ID]] = r.Verdict + " " + r.Reason
			}
			for k, c := range stats {
				if c == (count{}) {
					delete(stats, k)
				}
			}
			return verdicts, stats
		}
		order := make([]int, len(hits))
		for i := range order {
			order[i] = i
		}
		verdicts, stats := end(order, make([]bool, len(hits)))
		other := rapid.Permutation(order).Draw(t, "order")
		again, statsAgain := end(other, rapid.SliceOfN(rapid.Bool(), len(hits), len(hits)).Draw(t, "judged"))
		if diff := cmp.Diff(verdicts, again); diff != "" {
			t.Error(diff)
		}
		if diff := cmp.Diff(stats, statsAgain); diff != "" {
			t.Error(diff)
		}
	})
}

// beside is evidence read naively: each hit beside every other one.
func beside(h stored, all []stored, links int) (unseen, burst, probed bool) {
	within := func(a, b stored, span time.Duration) bool { return a.At.Sub(b.At).Abs() <= span }
	same := func(a, b stored) bool { return len(a.Origin) > 0 && bytes.Equal(a.Origin, b.Origin) }
	for _, o := range all {
		probed = probed || o.Method == http.MethodHead && same(o, h) && within(o, h, probeSpan)
		if o.Kind != kindClick {
			continue
		}
		unseen = unseen || o.Link == 0 && (h.Kind == kindClick && within(o, h, swarmSpan) || same(o, h) && within(o, h, probeSpan))
		fast, followed, near := map[int64]bool{}, map[int64]bool{}, h.Kind == kindClick
		for _, c := range all {
			if c.Kind != kindClick || c.At.Before(o.At) || !within(c, o, burstSpan) {
				continue
			}
			followed[c.Link] = true
			if within(c, o, burstFast) {
				fast[c.Link] = true
			}
			near = near || same(c, h)
		}
		if len(fast) < min(max(links, 2), 3) && len(followed) < 4 {
			continue
		}
		burst = burst || same(o, h) && within(o, h, probeSpan) || near && within(o, h, burstSpan) && (h.Kind != kindClick || !o.At.After(h.At))
	}
	return unseen, burst, probed
}

// TestEvidence holds that evidence by times is the one of each hit beside every other.
func TestEvidence(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		links := rapid.IntRange(0, 4).Draw(t, "links")
		hits := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) stored {
			return stored{
				Kind: rapid.SampledFrom([]string{kindOpen, kindClick, kindClick, kindView}).Draw(t, "kind"), Method: rapid.SampledFrom([]string{"GET", "GET", "HEAD"}).Draw(t, "method"),
				Link: int64(rapid.IntRange(0, 4).Draw(t, "link")), Origin: []byte(rapid.SampledFrom([]string{"192.0.2.1", "192.0.2.2", ""}).Draw(t, "from")),
				At: time.Unix(1_800_000_000, 0).Add(time.Duration(rapid.OneOf(rapid.IntRange(0, 24), rapid.IntRange(0, 300)).Draw(t, "at")) * 500 * time.Millisecond),
			}
		}), 0, 12).Draw(t, "hits")
		e := gatherEvidence(hits, links)
		for i, h := range hits {
			unseen, burst, probed := beside(h, hits, links)
			if e.besideUnseen(h) != unseen || e.inBurst(h) != burst || e.probed(h) != probed {
				t.Fatalf("hit %d: unseen %t, burst %t, probed %t; read naively %t, %t, %t", i, e.besideUnseen(h), e.inBurst(h), e.probed(h), unseen, burst, probed)
			}
		}
	})
}

// TestManyHitsOfOneDelivery would take hours, were each looked at beside every other one, and that for each of them: whoever has a link can request it as often as they like.
func TestManyHitsOfOneDelivery(t *testing.T) {
	t.Parallel()
	lists := newScanners("", zap.NewNop()).now()
	start := time.Date(2026, 11, 24, 9, 0, 0, 0, time.UTC)
	hits, due := make([]stored, 30_000), map[int64]bool{}
	for i := range hits {
		hits[i] = stored{
			ID: int64(i + 1), Kind: []string{kindClick, kindOpen}[i%2], Delivery: 513, Run: 1, Link: int64(i % 2), Method: "GET", Agent: edge, Origin: []byte{1}, At: start.Add(time.Duration(i) * time.Millisecond),
		}
		due[hits[i].ID] = true
	}
	stats := map[statKey]count{}
	for _, h := range lists.revise(hits, due, mail{links: 2}, stats) {
		if h.Verdict == nobody {
			t.Fatalf("hit %d was not judged", h.ID)
		}
	}
}
