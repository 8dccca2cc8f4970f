package report

import (
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"math"
	"strings"

	"github.com/onda-run/onda/internal/postgres"
)

//go:embed report.html
var page string

//go:embed list.html
var listPage string

//go:embed report.css
var css string

// Policy is the Content-Security-Policy that the pages are served with: they are whole as they are.
const Policy = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// HTML writes the report as one page that loads nothing and needs no scripts.
func (r *Report) HTML(w io.Writer) error { return write(w, page, r) }

// Trial is what a report of a pre-production says.
const Trial = "Pre-production: no mail from here goes to real people."

// ListHTML writes a page of links to reports; base is the path below which each run's report is, by name.
func ListHTML(w io.Writer, tenant postgres.Tenant, base string, runs []Run) error {
	return write(w, listPage, map[string]any{"Tenant": tenant.Name, "Preproduction": tenant.Preproduction, "Base": base, "Runs": runs})
}

func write(w io.Writer, text string, data any) error {
	t, err := template.New("page").Funcs(template.FuncMap{
		"comma": comma, "rate": rate, "words": words, "percent": percent, "duration": duration, "tracking": trackingName, "rows": graphRows,
		"css":    func() template.CSS { return template.CSS(css) }, //nolint:gosec // our own file
		"max":    func(a, b int64) int64 { return max(a, b) },
		"trial":  func() string { return Trial },
		"share":  share,
		"color":  color,
		"plot":   newPlot,
		"links":  mostClicked,
		"linkOf": func(l Link) string { return strings.TrimPrefix(strings.TrimPrefix(l.URL, "https://"), "http://") },
	}).Parse(text)
	if err != nil {
		return fmt.Errorf("parse report page: %w", err)
	}
	if err := t.Execute(w, data); err != nil {
		return fmt.Errorf("write report page: %w", err)
	}
	return nil
}

// share is a width in per cent for a style: at least a sliver for what is there.
func share(n, of int64) template.CSS {
	if n <= 0 || of <= 0 {
		return "0"
	}
	return template.CSS(fmt.Sprintf("%.2f%%", math.Max(0.4, float64(n)*100/float64(of)))) //nolint:gosec // a number
}

// color is the class of an outcome's colour.
func color(outcome string) string { return "c-" + outcome }

func mostClicked(links []Link) (most int64) {
	for _, l := range links {
		most = max(most, l.Human+l.Machine)
	}
	return max(most, 1)
}

// plot is the chart by hour: a group of columns an hour, on a scale of its own for mails and for hits.
type plot struct {
	Width, Height int
	Groups        []group
	MaxSent       int64
	MaxHits       int64
}

type group struct {
	Hour
	X      int
	Label  string
	Day    string // where a new one begins
	Sent   column
	Opens  column
	Clicks column
}

type column struct{ X, Y, H int }

const (
	groupWidth = 60
	plotHeight = 160
	plotFoot   = 40
)

// newPlot lays out the hours. More than the page can show are the last 72.
func newPlot(hours []Hour) *plot {
	if len(hours) > 72 {
		hours = hours[len(hours)-72:]
	}
	p := &plot{Width: max(1, len(hours)) * groupWidth, Height: plotHeight + plotFoot}
	for _, h := range hours {
		p.MaxSent, p.MaxHits = max(p.MaxSent, h.Sent), max(p.MaxHits, h.Opens, h.Clicks)
	}
	day := ""
	for i, h := range hours {
		at := h.At.UTC()
		g := group{Hour: h, X: i * groupWidth, Label: at.Format("15h")}
		if d := at.Format("2 Jan"); d != day {
			day, g.Day = d, d
		}
		bar := func(n, of int64, slot int) column {
			height := 0
			if n > 0 && of > 0 {
				height = max(2, int(n*(plotHeight-10)/of))
			}
			return column{X: i*groupWidth + 6 + slot*15, Y: plotHeight - height, H: height}
		}
		g.Sent, g.Opens, g.Clicks = bar(h.Sent, p.MaxSent, 0), bar(h.Opens, p.MaxHits, 1), bar(h.Clicks, p.MaxHits, 2)
		p.Groups = append(p.Groups, g)
	}
	return p
}
