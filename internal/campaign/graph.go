package campaign

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/spec"
)

// GraphNode is a step of a campaign with who is at it.
type GraphNode struct {
	ID   string `json:"id"`
	Kind string `json:"kind"`
	// Label says in a few words what the step does.
	Label string `json:"label"`
	// Depth is how many branches it is within, Branch (then or else) which of the last one it begins.
	Depth  int    `json:"depth"`
	Branch string `json:"branch,omitempty"`
	// Here is how many journeys stand at it, Passed how many have done it (a loop counts each time).
	Here   int64 `json:"here"`
	Passed int64 `json:"passed"`
}

// GraphEdge leads from one step to the next; To is "" for the end.
type GraphEdge struct {
	From  string `json:"from"`
	To    string `json:"to"`
	Label string `json:"label,omitempty"`
	// Passed is how many journeys took it.
	Passed int64 `json:"passed"`
}

// Graph is a campaign with who is where, over all its runs and versions.
type Graph struct {
	Name    string `json:"name"`
	Title   string `json:"title"`
	Version int    `json:"version"`
	// Entered is how many journeys have begun; Ended how many are over, by state; Outcomes by the label of their exit.
	Entered  int64            `json:"entered"`
	Ended    map[string]int64 `json:"ended"`
	Outcomes map[string]int64 `json:"outcomes,omitempty"`
	Nodes    []GraphNode      `json:"nodes"`
	Edges    []GraphEdge      `json:"edges"`
	// Elsewhere is how many journeys stand at steps of older versions, which the present one does not have.
	Elsewhere int64 `json:"elsewhere,omitempty"`
}

// GetGraph gives a campaign's graph as its version in force has it. ErrNotFound.
func GetGraph(ctx context.Context, tx *postgres.Tx, name string) (Graph, error) {
	v, err := (*documents)(nil).current(ctx, tx, spec.KindCampaign, name)
	if err != nil {
		return Graph{}, err
	}
	g := Graph{Name: v.name, Title: v.campaign().DisplayTitle(), Version: v.number, Ended: map[string]int64{}, Outcomes: map[string]int64{}}
	here, err := g.journeys(ctx, tx, v)
	if err != nil {
		return Graph{}, err
	}
	type way struct{ step, branch string }
	rows, err := tx.Query(ctx, `SELECT s.step, s.branch, count(*) FROM step s JOIN journey j ON j.id = s.journey JOIN run r ON r.id = j.run
		WHERE r.entity = $1 GROUP BY 1, 2`, v.entity)
	if err != nil {
		return Graph{}, fmt.Errorf("count the steps of campaign %s: %w", name, err)
	}
	ways := map[way]int64{}
	var w way
	var n int64
	if _, err := pgx.ForEachRow(rows, []any{&w.step, &w.branch, &n}, func() error { ways[w] = n; return nil }); err != nil {
		return Graph{}, fmt.Errorf("count the steps of campaign %s: %w", name, err)
	}
	for _, node := range v.flow.Nodes {
		gn := GraphNode{ID: node.ID, Kind: node.Kind, Label: label(node), Here: here[node.ID]}
		place := strings.Split(node.Step.Path, ".") // such as 3.then.0
		gn.Depth = len(place) / 2
		if gn.Depth > 0 && place[len(place)-1] == "0" {
			gn.Branch = place[len(place)-2]
		}
		delete(here, node.ID)
		for w, n := range ways {
			if w.step == node.ID && w.branch != goal && w.branch != left {
				gn.Passed += n
			}
		}
		g.Nodes = append(g.Nodes, gn)
		for _, e := range edges(node) {
			for _, branch := range e.branches {
				e.Passed += ways[way{node.ID, branch}]
			}
			g.Edges = append(g.Edges, e.GraphEdge)
		}
	}
	for _, n := range here {
		g.Elsewhere += n
	}
	return g, nil
}

// journeys counts who entered and how they ended, and gives how many stand at each step.
func (g *Graph) journeys(ctx context.Context, tx *postgres.Tx, v *version) (map[string]int64, error) {
	rows, err := tx.Query(ctx, `SELECT j.state, j.outcome, CASE WHEN j.state = 'active' THEN j.step ELSE '' END, count(*) FROM journey j JOIN run r ON r.id = j.run
		WHERE r.entity = $1 GROUP BY 1, 2, 3`, v.entity)
	if err != nil {
		return nil, fmt.Errorf("count the journeys of campaign %s: %w", g.Name, err)
	}
	here := map[string]int64{}
	var c JourneyCount
	_, err = pgx.ForEachRow(rows, []any{&c.State, &c.Outcome, &c.Step, &c.N}, func() error {
		g.Entered += c.N
		if c.State == active {
			here[c.Step] += c.N
			return nil
		}
		g.Ended[c.State] += c.N
		if c.Outcome != "" {
			g.Outcomes[c.Outcome] += c.N
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("count the journeys of campaign %s: %w", g.Name, err)
	}
	return here, nil
}

// edge is a way out of a step, with the branches of its history that took it.
type edge struct {
	GraphEdge
	branches []string
}

func edges(n *spec.Node) []edge {
	one := func(to, label string, branches ...string) edge {
		return edge{GraphEdge: GraphEdge{From: n.ID, To: to, Label: label}, branches: branches}
	}
	switch {
	case n.Kind == "if":
		return []edge{one(n.Then, "then", "then"), one(n.Else, "else", "else")}
	case n.Kind == "wait" && n.Step.Wait.Event != nil && n.Step.Wait.Untracked == "then":
		return []edge{one(n.Then, "then", "then", "untracked"), one(n.Else, "else", "timeout")}
	case n.Branches():
		return []edge{one(n.Then, "then", "then"), one(n.Else, "else", "timeout", "untracked")}
	case n.Kind == "goto" && n.Step.Goto.AtMost > 0:
		return []edge{one(n.Then, fmt.Sprintf("at most %d times", n.Step.Goto.AtMost), "jump"), one(n.Next, "then", "")}
	case n.Kind == "goto":
		return []edge{one(n.Then, "", "jump")}
	case n.Kind == "wait":
		return []edge{one(n.Next, "", "", "missing", "past")}
	}
	return []edge{one(n.Next, "", "", "late")}
}

// label says in a few words what a step does.
func label(n *spec.Node) string {
	s := n.Step
	switch {
	case s.Send != nil:
		return "send " + s.Send.Email
	case s.Wait != nil:
		return "wait " + waitLabel(s.Wait)
	case s.If != nil:
		return "if"
	case s.Tag != nil:
		var parts []string
		for _, t := range s.Tag.Add {
			parts = append(parts, "+"+t)
		}
		for _, t := range s.Tag.Remove {
			parts = append(parts, "-"+t)
		}
		return "tag " + strings.Join(parts, " ")
	case s.Score != nil && s.Score.Group != spec.MainScore:
		return fmt.Sprintf("score %s %+d", s.Score.Group, s.Score.Add)
	case s.Score != nil:
		return fmt.Sprintf("score %+d", s.Score.Add)
	case s.Stage != "":
		return "stage " + s.Stage
	case s.Goto != nil:
		return "goto " + s.Goto.Step
	case s.Exit != nil:
		return "exit " + s.Exit.Reason
	}
	fields := make([]string, len(s.Set))
	for i, a := range s.Set {
		fields[i] = a.Field
	}
	return "update " + strings.Join(fields, ", ")
}

func waitLabel(w *spec.Wait) string {
	switch {
	case w.Event != nil && w.Event.Of != "":
		return fmt.Sprintf("for %s of %s, at most %s", w.Event.Event, w.Event.Of, w.Timeout)
	case w.Event != nil:
		return fmt.Sprintf("for %s, at most %s", w.Event.Event, w.Timeout)
	case w.Match != nil:
		return fmt.Sprintf("until it is so, at most %s", w.Timeout)
	case w.Until != nil && w.Until.Window != nil:
		return "until " + w.Until.Window.String()
	case w.Until != nil && w.Until.Field != "":
		if w.Until.Offset.IsZero() {
			return "until " + w.Until.Field
		}
		return fmt.Sprintf("until %s of %s", w.Until.Offset, w.Until.Field)
	case w.Until != nil:
		return "until a date"
	}
	return w.For.String()
}
