// Command bench measures Onda's main paths, each against a bare loop that does no more than the machine must for the same work. Both are measured in the same
// run, in turns, and medians are compared: so a ratio says the same on a slow machine, or on one that others use at the same time.
//
// It needs the URL of a Postgres superuser in ONDA_BENCH_DATABASE_URL, on a server that commits as in production; make bench starts a private one. Each path
// gets a database of its own there, which is dropped at the end.
//
// What is ours runs in a process of its own, as it does in a pod, whose peak of resident memory is shown.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"

	"github.com/onda-run/onda/internal/fn"
	"github.com/onda-run/onda/internal/token"
	"github.com/onda-run/onda/internal/track"
)

// gogc is what functions run with where nothing else is set; the references get the same.
const gogc = fn.GCPercent

// path is one thing that is measured.
type path struct {
	name string
	// unit is what is counted: the figures are of it a second.
	unit string
	// goal is the least ratio of ours to the reference.
	goal float64
	// memory is the most MB that ours may have resident; 0 for any.
	memory float64
	// prepare makes what is measured, on an empty database.
	prepare func(ctx context.Context, l *lab) (rounds, error)
	// world: it begins with contacts and their past.
	world bool
	// least is how many rounds there are at least.
	least int
}

// rounds are the two sides of a path. Each call is one round and gives how many units a second.
type rounds struct {
	ours, reference func(ctx context.Context) (float64, error)
	// beside are what is measured in the same rounds.
	beside []*beside
	limits []*limit
}

// limit is something of ours that is measured in the same rounds and may be so much at most, whatever the reference takes.
type limit struct {
	name   string
	unit   string
	goal   float64
	values []float64
}

// line is what is printed of it.
func (l *limit) line() string {
	verdict := "ok"
	if !(median(l.values) <= l.goal) {
		verdict = "short"
	}
	return fmt.Sprintf("%-14s %8.1f   %8s %-14s %5s   %5.0f   %9s  %s", "  "+l.name, median(l.values), "", l.unit, "", l.goal, "", verdict)
}

// beside is a cost that is measured along with a path: the less the better.
type beside struct {
	name string
	unit string
	// goal is the most that the ratio of ours to the reference may be.
	goal            float64
	ours, reference []float64
}

// line is what is printed of it.
func (b *beside) line() string {
	ratio := median(b.ours) / median(b.reference)
	verdict := "ok"
	if !(ratio <= b.goal) {
		verdict = "short"
	}
	return fmt.Sprintf("%-14s %8.3f   %8.3f %-14s %5.2f x %5.2f x %9s  %s", "  "+b.name, median(b.ours), median(b.reference), b.unit, ratio, b.goal, "", verdict)
}

func paths() []path {
	return []path{
		{name: "send", unit: "mails/s", goal: 4, prepare: prepareSend},
		{name: "send-postfix", unit: "mails/s", goal: 2.5, prepare: prepareSendPostfix},
		{name: "send-starttls", unit: "mails/s", goal: 0.8, prepare: prepareStartTLS},
		{name: "send-transactional", unit: "mails/s", goal: 0.5, prepare: prepareTransactional},
		{name: "pixel", unit: "hits/s", goal: 0.45, memory: 60, prepare: prepareHits(token.Open, clients)},
		{name: "pixel-256", unit: "hits/s", goal: 0.45, memory: 60, prepare: prepareHits(token.Open, 256)},
		{name: "click", unit: "hits/s", goal: 0.45, memory: 60, prepare: prepareHits(token.Click, clients)},
		{name: "click-256", unit: "hits/s", goal: 0.45, memory: 60, prepare: prepareHits(token.Click, 256)},
		{name: "cold", unit: "starts/s", least: 30, prepare: prepareCold},
		{name: "batch", unit: "events/s", goal: 0.5, memory: 60, prepare: prepareBatch},
		{name: "form-page", unit: "pages/s", goal: 0.6, prepare: prepareFormPage},
		{name: "form-submit", unit: "forms/s", goal: 0.5, prepare: prepareFormSubmit},
		{name: "rebuild", unit: "contacts/s", goal: 1 / 1.2, memory: 60, prepare: prepareRebuild, world: true},
		{name: "follow", unit: "turns/s", goal: 100, memory: 60, prepare: prepareFollow, world: true},
		{name: "clicks", unit: "clicks/s", memory: 60, prepare: prepareClicks, world: true},
		{name: "hundred", unit: "facts/s", memory: 60, prepare: prepareHundred, world: true},
		{name: "together", unit: "mails/s", goal: 0.5, memory: 60, prepare: prepareTogether, world: true},
		{name: "import-new", unit: "rows/s", goal: 0.12, memory: 64, prepare: prepareImportNew},
		{name: "import-same", unit: "rows/s", goal: 0.15, memory: 64, prepare: prepareImportSame},
		{name: "campaign", unit: "recipients/s", goal: 0.8, prepare: prepareCampaign},
		{name: "export", unit: "contacts/s", goal: 1 / 1.5, memory: 40, prepare: prepareExport},
	}
}

func main() {
	if name := os.Getenv(sideEnv); name != "" {
		debug.SetGCPercent(gogc)
		serve := func() error {
			debug.SetMemoryLimit(fn.MemoryLimit)
			return serveSide(name, os.Stdin, os.Stdout)
		}
		switch name {
		case "sink":
			serve = func() error { return serveSink(os.Stdin, os.Stdout) }
		case "import":
			serve = func() error { return serveImport(os.Stdin, os.Stdout) }
		case "sender":
			serve = serveSender
		case "export":
			serve = func() error { return serveExport(os.Stdin, os.Stdout) }
		case "bare":
			serve = func() error { return serveBare(os.Stdin, os.Stdout) }
		case "track-alone":
			fn.Main("track", track.Build)
		case "reference-alone":
			fn.Main("reference", buildReference)
		}
		if err := serve(); err != nil {
			_, _ = fmt.Fprintf(os.Stderr, "bench: %s: %v\n", name, err)
			os.Exit(1)
		}
		return
	}
	if err := run(); err != nil {
		_, _ = fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run() error {
	only := flag.String("only", os.Getenv("ONLY"), "measure these `paths` alone, separated by commas")
	n := flag.Int("rounds", 3, "how many `rounds` each side has")
	mails := flag.Int("mails", 0, "how many `mails` a round of sending has (20,000), or a campaign of havoc (100,000)")
	contacts := flag.Int("contacts", 1_000_000, "how many `contacts` the world of segments has, each with ten facts")
	partitions := flag.Int("partitions", 1, "in how many `partitions` the facts of that world lie: a tenant of 200 million has twelve")
	kills := flag.Int("kills", 0, "how many `kills` there are in havoc-kill (100) and in hits-kill (10)")
	lasts := flag.Duration("for", 0, "how `long` the harm of a havoc for hits lasts, and the time between two kills")
	profiles := flag.String("profile", "", "write the CPU profile of each function to this `directory`")
	plot := flag.String("plot", "", "draw the rate of sending over time into this `file`, an SVG, and tell what it leaves in Postgres")
	verbose := flag.Bool("v", false, "show every round")
	flag.Parse()
	url := os.Getenv("ONDA_BENCH_DATABASE_URL")
	if url == "" {
		return errors.New("ONDA_BENCH_DATABASE_URL: is not set; make bench does it")
	}
	if *n < 1 || *contacts < 1000 || *partitions < 1 || *mails < 0 || *kills < 0 || *lasts < 0 {
		return fmt.Errorf("-rounds %d, -contacts %d, -partitions %d, -mails %d, -kills %d, -for %s: want at least 1 round, 1000 contacts, 1 partition, and nothing below 0", *n, *contacts, *partitions, *mails, *kills, *lasts)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if *only == "indexes" {
		return weighIndexes(ctx, options{server: url, contacts: *contacts, partitions: *partitions}, *n)
	}
	todo, harm, hits, err := choose(paths(), havocs(), hitsHavocs(), *only)
	if err != nil {
		return err
	}
	debug.SetGCPercent(gogc)
	if len(todo) > 0 {
		fmt.Println(header)
	}
	for _, p := range todo {
		m, err := measure(ctx, p, options{url, *profiles, *plot, cmp.Or(*mails, 20_000), *contacts, *partitions}, *n, *verbose)
		if err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		fmt.Println(m.line(p))
		for _, b := range m.beside {
			fmt.Println(b.line())
		}
		for _, l := range m.limits {
			fmt.Println(l.line())
		}
	}
	if len(harm) > 0 {
		fmt.Println(havocHeader)
	}
	var short []string
	for _, h := range harm {
		ok, err := wreak(ctx, h, url, cmp.Or(*mails, havocMails), cmp.Or(*kills, 100), *verbose)
		if err != nil {
			return fmt.Errorf("%s: %w", h.name, err)
		}
		if !ok {
			short = append(short, h.name)
		}
	}
	if len(hits) > 0 {
		fmt.Println(hitsHeader)
	}
	var worse []string
	for _, h := range hits {
		ok, err := wreakHits(ctx, h, url, *lasts, cmp.Or(*kills, 10), *verbose)
		if err != nil {
			return fmt.Errorf("%s: %w", h.name, err)
		}
		if !ok {
			worse = append(worse, h.name)
		}
	}
	if len(worse) > 0 {
		return fmt.Errorf("hits were lost, or somebody waited beyond the bound: %s", strings.Join(worse, ", "))
	}
	if len(short) > 0 {
		return fmt.Errorf("mails were lost, repeated, wrong or unknown beyond the bound: %s", strings.Join(short, ", "))
	}
	return nil
}

// choose gives the paths that are asked for, and the havoc, which is wreaked only where it is asked for: all of it by the names of "havoc" and "hits".
func choose(all []path, harm []havoc, hits []hitsHavoc, only string) (out []path, wreaked []havoc, onHits []hitsHavoc, err error) {
	if only == "" {
		return all, nil, nil, nil
	}
	var names []string
	for _, p := range all {
		names = append(names, p.name)
	}
	for _, h := range harm {
		names = append(names, h.name)
	}
	for _, h := range hits {
		names = append(names, h.name)
	}
	for name := range strings.SplitSeq(only, ",") {
		name = strings.TrimSpace(name)
		switch i := slices.Index(names, name); {
		case name == "havoc":
			wreaked = append(wreaked, harm...)
		case name == "hits":
			onHits = append(onHits, hits...)
		case i < 0:
			return nil, nil, nil, fmt.Errorf("ONLY: there is no path %q; there are: %s; and havoc and hits for all of those", name, strings.Join(names, ", "))
		case i < len(all):
			out = append(out, all[i])
		case i < len(all)+len(harm):
			wreaked = append(wreaked, harm[i-len(all)])
		default:
			onHits = append(onHits, hits[i-len(all)-len(harm)])
		}
	}
	return out, wreaked, onHits, nil
}

// measure runs the rounds of a path, ours and the reference's in turns.
func measure(ctx context.Context, p path, o options, n int, verbose bool) (m measured, err error) {
	if !p.world {
		o.contacts = 0
	}
	l, err := newLab(ctx, o)
	if err != nil {
		return m, err
	}
	defer func() { err = errors.Join(err, l.close()) }()
	r, err := p.prepare(ctx, l)
	if err != nil {
		return m, err
	}
	for i := range max(n, p.least) {
		for _, side := range []struct {
			name string
			do   func(context.Context) (float64, error)
			to   *[]float64
		}{{"ours", r.ours, &m.ours}, {"reference", r.reference, &m.reference}} {
			rate, err := side.do(ctx)
			if err != nil {
				return m, fmt.Errorf("round %d of %s: %w", i+1, side.name, err)
			}
			if verbose {
				fmt.Printf("  %s, round %d, %s: %.0f %s\n", p.name, i+1, side.name, rate, p.unit)
			}
			*side.to = append(*side.to, rate)
		}
	}
	m.beside, m.limits = r.beside, r.limits
	if l.side != nil {
		m.memory, err = l.side.end()
	}
	return m, err
}

// measured is what became of a path.
type measured struct {
	ours, reference []float64
	memory          int64 // bytes, the peak of ours
	beside          []*beside
	limits          []*limit
}

const header = "path               ours  reference                 ratio   goal   peak RSS"

func (m measured) ratio() float64 { return median(m.ours) / median(m.reference) }

// line is what is printed of a path.
func (m measured) line(p path) string {
	verdict := "ok"
	if p.goal > 0 && m.ratio() < p.goal || p.memory > 0 && float64(m.memory) > p.memory*1e6 {
		verdict = "short"
	}
	return fmt.Sprintf("%-14s %8.0f   %8.0f %-14s %5.2f x %5.2f x %6.1f MB  %s",
		p.name, median(m.ours), median(m.reference), p.unit, m.ratio(), p.goal, float64(m.memory)/1e6, verdict)
}

func median(of []float64) float64 {
	s := slices.Sorted(slices.Values(of))
	if len(s) == 0 {
		return 0
	}
	return (s[(len(s)-1)/2] + s[len(s)/2]) / 2
}
