package track

import (
	"bytes"
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

// unseen is the reason of a request of the link that people cannot see.
const unseen = "unseen-link"

const (
	tooSoon   = 2 * time.Second // after the mail was sent, and before, nobody has read it: some scan before they take it
	burstSpan = 2 * time.Second // in which no person follows several links
	probeSpan = time.Minute     // around a HEAD, or a request of the unseen link, one from the same place is of the same program
	swarmSpan = 5 * time.Second // around a request of the unseen link, a click from anywhere is: many scan from several places
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
func (l *lists) judge(h stored, all []stored, m mail) (verdict, reason string) {
	if h.Verdict != nobody && h.Agent == "" && h.Origin == nil {
		return h.Verdict, h.Reason
	}
	reason = l.own(h)
	switch {
	case reason != "":
	case besideUnseen(h, all):
		reason = unseen
	case !m.sent.IsZero() && early(h.At.Sub(m.sent), m.again):
		reason = "too-soon"
	case inBurst(h, all, m.links):
		reason = "burst"
	case probed(h, all):
		reason = "probe"
	default:
		return human, ""
	}
	return robot, reason
}

// revise gives the hits of one delivery with the verdicts of now, and adds to stats what they change. One that is still held is evidence, no more.
func (l *lists) revise(hits []stored, due map[int64]bool, m mail, stats map[statKey]count) []stored {
	tally(stats, hits, -1)
	after := slices.Clone(hits)
	for i, h := range hits {
		if h.Verdict != nobody || due[h.ID] {
			after[i].Verdict, after[i].Reason = l.judge(h, hits, m)
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
	case "prefetch", "head", "scanner-network", "proxy-network":
		return h.Reason
	}
	if h.Agent == "" { // blank, or not kept
		return h.Reason
	}
	return l.agent(h.Kind, h.Agent)
}

// early tells whether nobody can have read the mail yet, so long after it was sent. Where it was tried before, it may have come then.
func early(after time.Duration, again bool) bool {
	return after < tooSoon && (!again || after > -tooSoon)
}

// besideUnseen tells whether the hit is of a program that followed the link that people cannot see.
func besideUnseen(h stored, all []stored) bool {
	for _, o := range all {
		if o.Kind != kindClick || o.Link != 0 {
			continue
		}
		switch apart := absolute(o.At.Sub(h.At)); {
		case apart <= swarmSpan && h.Kind == kindClick, apart <= probeSpan && len(h.Origin) > 0 && bytes.Equal(o.Origin, h.Origin):
			return true
		}
	}
	return false
}

// inBurst tells whether the hit is part of what a scanner does: all links of the mail (or three, where there are more) within two seconds. An open counts
// as part of it when it came from the same place.
func inBurst(h stored, all []stored, links int) bool {
	need := min(max(links, 2), 3)
	for _, first := range all {
		if first.Kind != kindClick || first.At.After(h.At) && h.Kind == kindClick || absolute(first.At.Sub(h.At)) > burstSpan {
			continue
		}
		seen := map[int64]bool{}
		near := h.Kind == kindClick
		for _, c := range all {
			if c.Kind == kindClick && !c.At.Before(first.At) && c.At.Sub(first.At) <= burstSpan {
				seen[c.Link] = true
				near = near || len(h.Origin) > 0 && bytes.Equal(c.Origin, h.Origin)
			}
		}
		if len(seen) >= need && near {
			return true
		}
	}
	return false
}

// probed tells whether a HEAD came from where the hit came from, about the same time.
func probed(h stored, all []stored) bool {
	for _, o := range all {
		if o.Method == "HEAD" && len(h.Origin) > 0 && bytes.Equal(o.Origin, h.Origin) && absolute(o.At.Sub(h.At)) <= probeSpan { //nolint:usestdlibvars // net/http is for http.go
			return true
		}
	}
	return false
}

func absolute(d time.Duration) time.Duration { return max(d, -d) }

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
