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

const (
	tooSoon   = 2 * time.Second // around the time the mail was sent, nobody has read it: some scan before they take it
	burstSpan = 2 * time.Second // in which no person follows several links
	probeSpan = time.Minute     // around a HEAD, a GET from the same place is of the same program
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
	Origin   []byte
	Verdict  string
	Reason   string
	At       time.Time
}

// mail is what the judge knows of a delivery besides its hits.
type mail struct {
	name  string    // of the email
	sent  time.Time // zero when not known
	links int       // how many links the email has
}

// judge gives the verdict on one hit, by everything that is known of its delivery at this moment. A verdict of machine never becomes human again: what it rests on stays true.
func judge(h stored, all []stored, m mail) (verdict, reason string) {
	switch {
	case h.Verdict == robot:
		return robot, h.Reason
	case h.Reason != "": // by its agent or method, when it came in
		return robot, h.Reason
	case !m.sent.IsZero() && absolute(h.At.Sub(m.sent)) < tooSoon:
		return robot, "too-soon"
	case inBurst(h, all, m.links):
		return robot, "burst"
	case probed(h, all):
		return robot, "probe"
	}
	return human, ""
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
		return cmp.Or(a.At.Compare(b.At), cmp.Compare(a.ID, b.ID))
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
