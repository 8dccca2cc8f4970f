package track

import (
	"cmp"
	"slices"
	"time"
)

// The verdicts.
const (
	human  = "human"
	robot  = "machine"
	nobody = "" // not judged yet
)

const (
	unseen  = "unseen-link" // the reason of a request of the link that people cannot see
	gateway = "gateway"     // the reason of a click by what stands before the mailboxes of many
	// tooEarly is the reason of a request before anybody can have read the mail. It stays when it is not known any more when that was sent.
	tooEarly = "too-soon"
)

const (
	tooSoon   = 2 * time.Second // after the mail was sent, and before, nobody has read it: some scan before they take it
	burstSpan = 2 * time.Second // in which no person follows four links
	burstFast = time.Second     // in which no person follows three, or all of two: who opens tabs takes about half a second for each
	probeSpan = time.Minute     // around a HEAD, a burst, or a request of the unseen link, one from the same place is of the same program
	swarmSpan = 5 * time.Second // around a request of the unseen link, a click from anywhere is: many scan from several places

	// In an office many click from one place, by the same browser, but not so soon.
	gatewayMails = 5                // so many of them are followed from one place
	gatewaySpan  = 5 * time.Second  // within so long
	gatewaySoon  = 20 * time.Second // and each so soon after it was sent
)

// stored is a hit as it is in its row.
type stored struct {
	ID       int64
	Kind     string
	Delivery int64
	Contact  int64
	Link     int64
	Run      int64
	Step     string
	Method   string
	Agent    string
	Origin   []byte
	Verdict  string
	Reason   string
	At       time.Time
}

// mail is what the judge knows of a delivery besides its hits.
type mail struct {
	name  string    // of the email
	sent  time.Time // zero when not known
	again bool      // it was tried more than once: it may have come before what is known as sent
	links int       // how many links the email has
}

// judge gives the verdict on one hit by everything that is known of its delivery at this moment, and by nothing else: not by the verdict of before, nor by the order in which hits came in. So
// later evidence revises it, either way. Only when what it rested on is forgotten (retention.go), it stays.
func (l *lists) judge(h stored, e *evidence, m mail) (verdict, reason string) {
	if h.Verdict != nobody && h.Agent == "" && h.Origin == nil {
		return h.Verdict, h.Reason
	}
	reason = l.own(h)
	switch {
	case reason != "":
	case e.besideUnseen(h):
		reason = unseen
	case !m.sent.IsZero() && early(h.At.Sub(m.sent), m.again), m.sent.IsZero() && h.Verdict != nobody && h.Reason == tooEarly:
		reason = tooEarly
	case e.inBurst(h):
		reason = "burst"
	case e.probed(h):
		reason = "probe"
	default:
		return human, ""
	}
	return robot, reason
}

// revise gives the hits of one delivery with the verdicts of now, and adds to stats what they change. One that is still held is evidence, no more.
func (l *lists) revise(hits []stored, due map[int64]bool, m mail, stats map[statKey]count) []stored {
	tally(stats, hits, -1)
	after, e := slices.Clone(hits), gatherEvidence(hits, m.links)
	for i, h := range hits {
		if h.Verdict != nobody || due[h.ID] {
			after[i].Verdict, after[i].Reason = l.judge(h, e, m)
		}
	}
	tally(stats, after, 1)
	return after
}

// own is why a hit shows a machine by itself. What its agent says is looked up anew, since the lists may have changed; what else its request showed is as it was when it came in.
func (l *lists) own(h stored) string {
	switch h.Reason {
	case unseen:
		if h.Link == 0 && h.Kind == kindClick {
			return unseen // it is one, not beside one
		}
	case "prefetch", "head", "scanner-network", "proxy-network", gateway:
		return h.Reason
	}
	if h.Agent == "" { // blank, or not kept
		return h.Reason
	}
	return l.agent(h.Kind, h.Agent)
}

// gateways finds the clicks of programs that look at the mails of many before these have them: from one place and by one name, on several mails at about the same time, and soon after they
// were sent. mails are those of the clicks.
func gateways(clicks []stored, mails map[int64]mail) map[int64]bool {
	type place struct{ origin, agent string }
	of := map[place][]stored{}
	for _, c := range clicks {
		m := mails[c.Delivery]
		if after := c.At.Sub(m.sent); c.Kind != kindClick || len(c.Origin) == 0 || m.sent.IsZero() || after < 0 || after > gatewaySoon {
			continue
		}
		c.Link = c.Delivery // begins counts mails here
		of[place{string(c.Origin), c.Agent}] = append(of[place{string(c.Origin), c.Agent}], c)
	}
	found := map[int64]bool{}
	for _, clicks := range of {
		slices.SortFunc(clicks, func(a, b stored) int { return a.At.Compare(b.At) })
		var until time.Time
		for i, burst := range begins(clicks, gatewayMails, gatewaySpan) {
			if burst {
				until = clicks[i].At.Add(gatewaySpan)
			}
			if !clicks[i].At.After(until) {
				found[clicks[i].ID] = true
			}
		}
	}
	return found
}

// early tells whether nobody can have read the mail yet, so long after it was sent. Where it was tried before, it may have come then.
func early(after time.Duration, again bool) bool {
	return after < tooSoon && (!again || after > -tooSoon)
}

// evidence is what the hits of one delivery say of each other. There may be very many, of a link that was passed on or of somebody who means harm: so each is looked at by its time, not
// beside every other one.
type evidence struct {
	unseen                      times            // when the link that people cannot see was requested
	bursts                      times            // when a burst began
	unseenOf, headsOf, clicksOf map[string]times // by where they came from
	burstsOf                    map[string]times // by where the click came from that a burst began with
}

// times are in order.
type times []time.Time

// any tells whether one of them is between two others.
func (t times) any(from, to time.Time) bool {
	i, _ := slices.BinarySearchFunc(t, from, time.Time.Compare)
	return i < len(t) && !t[i].After(to)
}

// near tells whether one of them is at most so far from another.
func (t times) near(at time.Time, span time.Duration) bool { return t.any(at.Add(-span), at.Add(span)) }

// gatherEvidence looks at all hits of a delivery, whose email has so many links. A burst is what a scanner does: all links of the mail (or three, where there are more) within a second, or four within two.
func gatherEvidence(all []stored, links int) *evidence {
	e := &evidence{unseenOf: map[string]times{}, headsOf: map[string]times{}, clicksOf: map[string]times{}, burstsOf: map[string]times{}}
	all = slices.Clone(all)
	slices.SortFunc(all, func(a, b stored) int { return a.At.Compare(b.At) })
	var clicks []stored
	for _, h := range all {
		from := string(h.Origin)
		if h.Method == "HEAD" { //nolint:usestdlibvars // net/http is for http.go
			e.headsOf[from] = append(e.headsOf[from], h.At)
		}
		if h.Kind != kindClick {
			continue
		}
		clicks = append(clicks, h)
		e.clicksOf[from] = append(e.clicksOf[from], h.At)
		if h.Link == 0 {
			e.unseen, e.unseenOf[from] = append(e.unseen, h.At), append(e.unseenOf[from], h.At)
		}
	}
	fast, many := begins(clicks, min(max(links, 2), 3), burstFast), begins(clicks, 4, burstSpan)
	for i, c := range clicks {
		if i > 0 && c.At.Equal(clicks[i-1].At) { // of those at one moment each begins what the first does
			fast[i], many[i] = fast[i-1], many[i-1]
		}
		if fast[i] || many[i] {
			e.bursts, e.burstsOf[string(c.Origin)] = append(e.bursts, c.At), append(e.burstsOf[string(c.Origin)], c.At)
		}
	}
	return e
}

// begins tells of each click, which are in order, whether with it begin clicks on at least so many links within a time.
func begins(clicks []stored, links int, span time.Duration) []bool {
	out := make([]bool, len(clicks))
	followed := map[int64]int{} // how often each link was, within that time
	for next, first := 0, 0; first < len(clicks); first++ {
		for ; next < len(clicks) && clicks[next].At.Sub(clicks[first].At) <= span; next++ {
			followed[clicks[next].Link]++
		}
		out[first] = len(followed) >= links
		if link := clicks[first].Link; followed[link] == 1 {
			delete(followed, link)
		} else {
			followed[link]--
		}
	}
	return out
}

// besideUnseen tells whether the hit is of a program that followed the link that people cannot see.
func (e *evidence) besideUnseen(h stored) bool {
	return h.Kind == kindClick && e.unseen.near(h.At, swarmSpan) || len(h.Origin) > 0 && e.unseenOf[string(h.Origin)].near(h.At, probeSpan)
}

// inBurst tells whether the hit is part of a burst, or about then from where one began. An open counts as part of it when it came from the same place.
func (e *evidence) inBurst(h stored) bool {
	if len(h.Origin) > 0 && e.burstsOf[string(h.Origin)].near(h.At, probeSpan) {
		return true
	}
	before, after := h.At.Add(-burstSpan), h.At.Add(burstSpan)
	if h.Kind == kindClick {
		return e.bursts.any(before, h.At)
	}
	if len(h.Origin) == 0 || !e.bursts.any(before, after) {
		return false
	}
	clicks := e.clicksOf[string(h.Origin)]
	first, _ := slices.BinarySearchFunc(clicks, before, time.Time.Compare)
	for _, click := range clicks[first:] {
		if click.After(after.Add(burstSpan)) {
			break
		}
		began := click.Add(-burstSpan)
		if began.Before(before) {
			began = before
		}
		if last := min(click.Sub(h.At), burstSpan); e.bursts.any(began, h.At.Add(last)) {
			return true
		}
	}
	return false
}

// probed tells whether a HEAD came from where the hit came from, about the same time.
func (e *evidence) probed(h stored) bool {
	return len(h.Origin) > 0 && e.headsOf[string(h.Origin)].near(h.At, probeSpan)
}

// statKey is a row of stat.
type statKey struct {
	Run     int64
	Step    string
	Hour    time.Time
	Kind    string
	Verdict string
	Link    int64
	Tracked bool
}

// count is what is counted in it.
type count struct{ N, Firsts int64 }

// tally adds up what the judged hits of one delivery contribute to the statistics, times sign. The first hit of a kind and verdict counts as the delivery's first.
func tally(into map[statKey]count, hits []stored, sign int64) {
	hits = slices.Clone(hits)
	slices.SortFunc(hits, func(a, b stored) int {
		return cmp.Or(a.At.Compare(b.At), cmp.Compare(a.Link, b.Link), cmp.Compare(a.ID, b.ID))
	})
	seen := map[[2]string]bool{}
	for _, h := range hits {
		if h.Verdict == nobody {
			continue
		}
		k := statKey{h.Run, h.Step, h.At.UTC().Truncate(time.Hour), h.Kind, h.Verdict, h.Link, h.Delivery > 0}
		c := into[k]
		c.N += sign
		if kv := [2]string{h.Kind, h.Verdict}; h.Delivery > 0 && !seen[kv] {
			seen[kv] = true
			c.Firsts += sign
		}
		into[k] = c
	}
}
