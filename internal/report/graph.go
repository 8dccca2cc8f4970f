package report

import (
	"strings"

	"github.com/onda-run/onda/internal/campaign"
)

// graphRow is a step of a campaign, as deep as the branches it is in.
type graphRow struct {
	Depth  int
	Label  string
	Here   int64  // how many stand at it
	Counts string // the others
}

// graphRows lists the steps in the order they are written in, indented by branch, with the start before and the ends after them.
func graphRows(g *campaign.Graph) []graphRow {
	rows := []graphRow{{Label: "entered", Counts: comma(g.Entered)}}
	for _, n := range g.Nodes {
		label := n.Label
		if n.Branch != "" {
			label = n.Branch + ": " + label
		}
		rows = append(rows, graphRow{Depth: n.Depth, Label: label, Here: n.Here, Counts: comma(n.Passed) + " went on"})
	}
	var ends []string
	for _, state := range []string{"done", "goal", "left", "cancelled"} {
		if n := g.Ended[state]; n > 0 {
			ends = append(ends, comma(n)+" "+state)
		}
	}
	if len(ends) == 0 {
		ends = []string{"nobody yet"}
	}
	rows = append(rows, graphRow{Label: "ended", Counts: strings.Join(ends, ", ")})
	if g.Elsewhere > 0 {
		rows = append(rows, graphRow{Label: "at steps of older versions", Here: g.Elsewhere})
	}
	return rows
}
