package spec

import (
	"fmt"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func flowText(c *Campaign) string {
	var b strings.Builder
	f := c.Flow()
	fmt.Fprintf(&b, "start %s\n", f.Start)
	for _, n := range f.Nodes {
		fmt.Fprintf(&b, "%s %s", n.ID, n.Kind)
		if n.Branches() {
			fmt.Fprintf(&b, " then=%s else=%s", n.Then, n.Else)
		} else {
			fmt.Fprintf(&b, " next=%s", n.Next)
			if n.Kind == "goto" {
				fmt.Fprintf(&b, " to=%s", n.Then)
			}
		}
		b.WriteString("\n")
	}
	return b.String()
}

func TestFlow(t *testing.T) {
	t.Parallel()
	src := head("Campaign", "c", `  enter: {segment: vips}
  steps:
    - {id: hello, send: {email: welcome}}
    - wait: {event: email.clicked, of: hello, timeout: 3d}
      then: [{tag: {add: [engaged]}}]
      else:
        - {send: {email: reminder}}
        - if: {tag: a}
          then: [{exit: gone}]
    - {id: again, wait: 1d}
    - if: {tag: b}
      then: []
      else: [{goto: {step: hello, atMost: 2}}]
`)
	set, err := Load(fstest.MapFS{"c.yaml": {Data: []byte(src)}})
	if err != nil {
		t.Fatal(err)
	}
	want := `start hello
hello send next=1
1 wait then=1.then.0 else=1.else.0
1.then.0 tag next=again
1.else.0 send next=1.else.1
1.else.1 if then=1.else.1.then.0 else=again
1.else.1.then.0 exit next=
again wait next=3
3 if then= else=3.else.0
3.else.0 goto next= to=hello
`
	if diff := cmp.Diff(want, flowText(set.Documents[0].Doc.(*Campaign))); diff != "" {
		t.Errorf("flow (-want +got):\n%s", diff)
	}
}

// drawSteps makes a tree of steps that the language allows.
func drawSteps(t *rapid.T, depth int, label string) []Step {
	n := rapid.IntRange(0, 4).Draw(t, label)
	out := make([]Step, 0, n)
	for i := range n {
		var s Step
		switch rapid.IntRange(0, 4).Draw(t, fmt.Sprint(label, "k", i)) {
		case 0:
			s.Send = &Send{Email: "e"}
		case 1:
			s.Wait = &Wait{For: Duration{Days: 1}}
		case 2:
			s.Exit = &Exit{Reason: "x"}
		case 3:
			s.Tag = &TagChange{Add: []string{"a"}}
		default:
			s.If = &Predicate{Tag: "a"}
			if depth > 0 {
				s.Then, s.Else = drawSteps(t, depth-1, label+"t"), drawSteps(t, depth-1, label+"e")
			}
		}
		out = append(out, s)
	}
	return out
}

// In any flow, every way goes to a node that is there or to the end, every id
// is there once, and without gotos every walk ends.
func TestFlowIsWhole(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		c := &Campaign{Steps: drawSteps(t, 3, "s")}
		numberSteps(c.Steps, "")
		f := c.Flow()
		seen := map[string]bool{}
		for i, n := range f.Nodes {
			if seen[n.ID] {
				t.Fatalf("the id %s is there twice", n.ID)
			}
			seen[n.ID] = true
			for _, next := range n.Targets() {
				m, ok := f.Node(next)
				if !ok {
					t.Fatalf("%s goes to %q, which is not there", n.ID, next)
				}
				// the order of the document is an order of the walk
				for _, earlier := range f.Nodes[:i+1] {
					if earlier == m {
						t.Fatalf("%s goes back to %s", n.ID, m.ID)
					}
				}
			}
		}
		if _, ok := f.Node(f.Start); !ok && len(c.Steps) > 0 {
			t.Fatalf("the start %q is not there", f.Start)
		}
	})
}
