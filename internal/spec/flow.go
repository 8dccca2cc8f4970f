package spec

import (
	"fmt"
	"strings"
)

// Flow is a campaign as a graph: its steps as nodes, each with where it goes
// on. It is made from one version of the campaign and never changes; the same
// version gives the same flow.
type Flow struct {
	Start string  // the first node; "" for a campaign without steps
	Nodes []*Node // in the order of the document, parents before their branches

	byID map[string]*Node
}

// Node is one step of a flow. An id of "" for where it goes on is the end of
// the campaign.
type Node struct {
	ID   string // the step's own id, or its path such as 3.then.0
	Kind string // send wait if tag update goto exit
	Step *Step
	// Next is where every other node goes on; for goto, when it has jumped
	// AtMost times; "" for exit.
	Next string
	// Then and Else are for an if, and a wait for an event or a match: the node
	// when it came true, and when not (the timeout). Then is a goto's target.
	Then string
	Else string
}

// Branches says whether the node goes on by Then or Else rather than by Next.
func (n *Node) Branches() bool {
	return n.Kind == "if" || n.Kind == "wait" && (n.Step.Wait.Event != nil || n.Step.Wait.Match != nil)
}

// Targets gives the nodes that may come next, without repetitions and without the end.
func (n *Node) Targets() []string {
	var ids []string
	add := func(id string) {
		for _, have := range ids {
			if have == id {
				return
			}
		}
		if id != "" {
			ids = append(ids, id)
		}
	}
	if n.Branches() || n.Kind == "goto" {
		add(n.Then)
	}
	if n.Branches() {
		add(n.Else)
	} else {
		add(n.Next)
	}
	return ids
}

// Node gives a node by its id.
func (f *Flow) Node(id string) (*Node, bool) {
	n, ok := f.byID[id]
	return n, ok
}

// Flow gives the campaign as a graph.
func (c *Campaign) Flow() *Flow {
	f := &Flow{byID: map[string]*Node{}}
	f.Start = f.add(c.Steps, "")
	return f
}

// add adds steps that go on at after, and gives where they begin.
func (f *Flow) add(steps []Step, after string) string {
	for i := range steps {
		s := &steps[i]
		next := after
		if i+1 < len(steps) {
			next = steps[i+1].Node()
		}
		n := &Node{ID: s.Node(), Kind: s.Action(), Step: s, Next: next}
		f.Nodes = append(f.Nodes, n)
		f.byID[n.ID] = n
		switch {
		case n.Branches():
			n.Then, n.Else = f.add(s.Then, next), f.add(s.Else, next)
		case n.Kind == "goto":
			n.Then = s.Goto.Step
		case n.Kind == "exit":
			n.Next = ""
		}
	}
	if len(steps) == 0 {
		return after
	}
	return steps[0].Node()
}

type loop struct {
	target string // the id of a step in the loop that a goto names
	msg    string
}

// loops finds the loops that a contact would run through without time passing.
func (f *Flow) loops() []loop {
	var found []loop
	reported := map[string]bool{}
	for _, n := range f.Nodes {
		if n.Kind != "goto" || reported[n.Then] {
			continue
		}
		// without a wait at all
		if path := f.path(n.Then, n.ID, func(m *Node) bool { return m.Kind != "wait" }, false); path != nil {
			reported[n.Then] = true
			found = append(found, loop{n.Then, fmt.Sprintf("the steps %s go round without a wait: put one into the loop", strings.Join(path, ", "))})
			continue
		}
		// a wait for something that is so already is over at once
		if n.Step.Goto.AtMost > 0 {
			continue
		}
		if path := f.path(n.Then, n.ID, func(m *Node) bool { return m.Kind != "wait" || !m.Step.Wait.TakesTime() }, true); path != nil {
			reported[n.Then] = true
			found = append(found, loop{n.Then, fmt.Sprintf(
				"the steps %s may go round without end, since their waits may be over at once: give the goto an atMost, or the loop a wait for a length of time",
				strings.Join(path, ", "))})
		}
	}
	return found
}

// path gives the nodes from one to another through nodes that pass, or nil.
// unbounded leaves out jumps that have a limit.
func (f *Flow) path(from, to string, passes func(*Node) bool, unbounded bool) []string {
	seen := map[string]bool{}
	var search func(id string) []string
	search = func(id string) []string {
		n, ok := f.byID[id]
		if !ok || seen[id] || !passes(n) {
			return nil
		}
		seen[id] = true
		if id == to {
			return []string{id}
		}
		for _, next := range n.Targets() {
			if unbounded && (n.Kind == "goto" && n.Step.Goto.AtMost > 0 && next == n.Then ||
				n.Kind == "wait" && n.Branches() && next != n.Then) {
				continue // a limit, or a timeout that has passed
			}
			if rest := search(next); rest != nil {
				return append([]string{id}, rest...)
			}
		}
		return nil
	}
	return search(from)
}
