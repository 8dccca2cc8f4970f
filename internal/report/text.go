package report

import (
	"fmt"
	"io"
	"strings"
	"time"
)

// barWidth is how many characters the longest bar of a terminal has.
const barWidth = 32

// Text prints the report for a terminal of 80 columns.
func (r *Report) Text(w io.Writer) error {
	t := &texter{w: w}
	if r.Preproduction {
		t.line("%s", Trial)
		t.line("")
	}
	t.line("%s", r.Title)
	t.line("%s %s, run %d, %s%s", r.Kind, r.Name, r.Run, r.State, since(r))
	t.line("as of %s UTC:", r.Made.UTC().Format(time.DateTime))
	for _, l := range r.Lag.Lines() {
		t.line("  %s", l)
	}
	t.line("")
	for _, b := range r.Held {
		t.line("Held: %s.", b)
		t.line("")
	}
	t.section("OUTCOMES", r.Recipients)
	for _, c := range r.Outcomes() {
		t.bar(c.Name, c.N)
		for _, by := range map[string][]Count{"suppressed": r.SuppressedBy, "failed": r.FailedBy}[c.Name] {
			t.sub(words(by.Name), by.N)
		}
	}
	if r.Blast() {
		t.line("  %s mails a second, for %s", rate(r.Rate), duration(r.Seconds))
	}
	if r.NotKept > 0 {
		t.line("  of %s mails nothing but these counts is kept, and opens, clicks and unsubscribes", comma(r.NotKept))
	}
	t.section("WHAT CAME BACK", r.Sent)
	t.bar("unsubscribes", r.Unsubscribes)
	t.bar("complaints", r.Complaints)
	t.bar("bounces", r.Bounced())
	for _, c := range r.BouncedBy {
		t.sub(c.Name, c.N)
	}
	t.section("TRACKING", r.Sent)
	for _, c := range r.Tracking {
		t.bar(trackingName(c.Name), c.N)
	}
	t.section("OPENS AND CLICKS (of mails tracked one by one)", max(r.Tracked(), 1))
	t.bar("opened, maybe people", r.OpensHuman.Mails)
	t.bar("opened, machines", r.OpensMachine.Mails)
	t.bar("clicked, people", r.ClicksHuman.Mails)
	t.bar("clicked, machines", r.ClicksMachine.Mails)
	t.line("  an open is not shown to be a machine's, which proves no person; clicks do")
	t.line("  clicks of mails tracked in aggregate: %s by people, %s by machines", comma(r.ClicksHuman.Aggregate), comma(r.ClicksMachine.Aggregate))
	if len(r.Variants) > 0 {
		t.line("")
		t.line("VARIANTS (sent; opened, maybe by people; clicked by people; tracked one by one)")
		for _, v := range r.Variants {
			t.line("  %-*s %8s %6s %6s %6s %6s", barWidth, v.Email+" "+v.Name, comma(v.Sent), comma(v.Opened), percent(v.Opened, v.Tracked), comma(v.Clicked), percent(v.Clicked, v.Tracked))
		}
	}
	if len(r.Links) > 0 {
		var most int64
		for _, l := range r.Links {
			most = max(most, l.Human)
		}
		t.section("CLICKS BY LINK (people; machines)", most)
		for _, l := range r.Links {
			t.line("  %6s %6s  %-*s %s", comma(l.Human), comma(l.Machine), barWidth/2, bar(l.Human, most, barWidth/2), l.URL)
		}
	}
	if len(r.Hours) > 0 {
		var most int64
		for _, h := range r.Hours {
			most = max(most, h.Sent)
		}
		t.section("BY HOUR (sent; opens, maybe by people; clicks by people)", most)
		for _, h := range r.Hours {
			t.line("  %s  %-*s %6s %6s %6s", h.At.UTC().Format("2006-01-02 15h"), barWidth/2, bar(h.Sent, most, barWidth/2), comma(h.Sent), comma(h.Opens), comma(h.Clicks))
		}
	}
	if r.Graph != nil {
		t.line("")
		t.line("STEPS")
		for _, row := range graphRows(r.Graph) {
			counts := row.Counts
			if row.Here > 0 {
				counts = strings.TrimSuffix(comma(row.Here)+" here, "+counts, ", ")
			}
			t.line("  %s%s  %s", strings.Repeat("  ", row.Depth), row.Label, counts)
		}
	}
	return t.err
}

// Outcomes are the counts that add up to Recipients.
func (r *Report) Outcomes() []Count {
	return []Count{{"sent", r.Sent}, {"failed", r.Failed}, {"suppressed", r.Suppressed}, {"deferred", r.Deferred}, {"unknown", r.Unknown}, {"queued", r.Queued}}
}

func since(r *Report) string {
	if r.Started == nil {
		return ""
	}
	return ", started " + r.Started.UTC().Format("2006-01-02 15:04 MST")
}

func trackingName(mode string) string {
	switch mode {
	case "full":
		return "tracked"
	case "aggregate":
		return "in aggregate only"
	}
	return "not tracked"
}

// words says a reason as people do.
func words(reason string) string { return strings.ReplaceAll(reason, "_", " ") }

// texter prints lines and keeps the first error.
type texter struct {
	w   io.Writer
	of  int64
	err error
}

func (t *texter) line(format string, args ...any) {
	if t.err == nil {
		_, t.err = fmt.Fprintf(t.w, format+"\n", args...)
	}
}

func (t *texter) section(title string, of int64) {
	t.of = of
	t.line("")
	t.line("%s", title)
}

func (t *texter) bar(name string, n int64) {
	t.line("  %-20s %9s %6s  %s", name, comma(n), percent(n, t.of), bar(n, t.of, barWidth))
}

func (t *texter) sub(name string, n int64) {
	t.line("    %-18s %9s %6s", name, comma(n), percent(n, t.of))
}

// bar is never empty for what is there.
func bar(n, of int64, width int) string {
	if n <= 0 || of <= 0 {
		return ""
	}
	eighths := max(1, int(min(n, of)*int64(width)*8/of))
	out := strings.Repeat("█", eighths/8)
	if rest := eighths % 8; rest > 0 {
		out += string([]rune("▏▎▍▌▋▊▉")[rest-1])
	}
	return out
}

func percent(n, of int64) string {
	if of <= 0 {
		return ""
	}
	return fmt.Sprintf("%.1f%%", float64(n)*100/float64(of))
}

func comma(n int64) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// rate has a decimal where that says something.
func rate(f float64) string {
	if f < 10 {
		return fmt.Sprintf("%.1f", f)
	}
	return comma(int64(f))
}

func duration(seconds float64) string {
	d := time.Duration(seconds * float64(time.Second))
	if d < time.Minute {
		return d.Round(100 * time.Millisecond).String()
	}
	return d.Round(time.Second).String()
}
