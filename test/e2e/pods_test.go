package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"html"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// pod is what the time line knows of one.
type pod struct {
	service              string // namespace/service
	made, ready, leaving time.Time
	gone                 time.Time
}

// timeline records Onda's pods from watch events.
type timeline struct {
	began time.Time
	stop  func()

	mu    sync.Mutex
	pods  map[string]*pod
	last  time.Time // when something was told of any
	marks []mark
}

type mark struct {
	at   time.Time
	what string
}

// watchPods begins a time line.
func (t *test) watchPods() *timeline {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, "kubectl", "get", "pods", "-A", "-l", "serving.knative.dev/service", "--watch", "--output-watch-events", "-o", "json")
	out, err := cmd.StdoutPipe()
	t.must(err)
	t.must(cmd.Start())
	l := &timeline{began: time.Now(), pods: map[string]*pod{}}
	var done sync.WaitGroup
	done.Go(func() {
		d := json.NewDecoder(out)
		for {
			var e podEvent
			if err := d.Decode(&e); err != nil {
				return
			}
			l.see(e)
		}
	})
	l.stop = sync.OnceFunc(func() {
		cancel()
		done.Wait()
		_ = cmd.Wait()
	})
	t.Cleanup(l.stop)
	return l
}

type podEvent struct {
	Type   string `json:"type"`
	Object struct {
		Metadata struct {
			Name, Namespace   string
			CreationTimestamp time.Time
			DeletionTimestamp *time.Time
			Labels            map[string]string
		}
		Status struct {
			Conditions []struct{ Type, Status string }
		}
	} `json:"object"`
}

func (l *timeline) see(e podEvent) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.last = time.Now()
	m := e.Object.Metadata
	p := l.pods[m.Namespace+"/"+m.Name]
	if p == nil {
		p = &pod{service: m.Namespace + "/" + m.Labels["serving.knative.dev/service"], made: time.Now()}
		l.pods[m.Namespace+"/"+m.Name] = p
	}
	for _, c := range e.Object.Status.Conditions {
		if c.Type == "Ready" && c.Status == "True" && p.ready.IsZero() {
			p.ready = time.Now()
		}
	}
	if m.DeletionTimestamp != nil && p.leaving.IsZero() {
		p.leaving = time.Now()
	}
	if e.Type == "DELETED" {
		p.gone = time.Now()
	}
}

// changed is when something was told of any pod last.
func (l *timeline) changed() time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.last
}

// ready tells whether a pod of a service (namespace/name) has been ready.
func (l *timeline) ready(service string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, p := range l.pods {
		if p.service == service && !p.ready.IsZero() {
			return true
		}
	}
	return false
}

// up are the names of a service's pods (namespace/name) that are ready and not on their way out, the youngest first.
func (l *timeline) up(service string) []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var names []string
	for name, p := range l.pods {
		if p.service == service && !p.ready.IsZero() && p.leaving.IsZero() && p.gone.IsZero() {
			names = append(names, name)
		}
	}
	slices.SortFunc(names, func(a, b string) int { return l.pods[b].made.Compare(l.pods[a].made) })
	for i, n := range names {
		_, names[i], _ = strings.Cut(n, "/")
	}
	return names
}

// seen counts the pods that a service has had.
func (l *timeline) seen(service string) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, p := range l.pods {
		if p.service == service {
			n++
		}
	}
	return n
}

// say marks a moment in the plot.
func (l *timeline) say(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.marks = append(l.marks, mark{time.Now(), fmt.Sprintf(format, args...)})
}

// plot writes the time line as SVG: one row a service, a bar a pod; pale while it starts and while it drains.
func (l *timeline) plot(path, title string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	end := time.Now()
	services := map[string][]*pod{}
	for _, p := range l.pods {
		services[p.service] = append(services[p.service], p)
	}
	const left, right, bar, gap = 210.0, 30.0, 7.0, 12.0
	width := 1100.0
	scale := (width - left - right) / end.Sub(l.began).Seconds()
	x := func(t time.Time) float64 { return left + max(0, t.Sub(l.began).Seconds())*scale }
	var b strings.Builder
	y := 64.0
	for _, name := range sortedNames(services) {
		pods := services[name]
		slices.SortFunc(pods, func(a, b *pod) int { return a.made.Compare(b.made) })
		fmt.Fprintf(&b, `<text x="%g" y="%g" text-anchor="end">%s</text>`+"\n", left-12, y+8, html.EscapeString(name))
		var lanes []time.Time // when each row of this service is free again
		for _, p := range pods {
			over := p.gone
			if over.IsZero() {
				over = end
			}
			row := slices.IndexFunc(lanes, func(free time.Time) bool { return free.Before(p.made) })
			if row < 0 {
				row, lanes = len(lanes), append(lanes, time.Time{})
			}
			lanes[row] = over
			top := y + float64(row)*(bar+2)
			rect := func(from, to time.Time, class string) {
				if from.IsZero() || !to.After(from) {
					return
				}
				fmt.Fprintf(&b, `<rect x="%.1f" y="%.1f" width="%.1f" height="%g" class="%s"/>`+"\n", x(from), top, max(1, x(to)-x(from)), bar, class)
			}
			ready, leaving := p.ready, p.leaving
			if leaving.IsZero() {
				leaving = over
			}
			if ready.IsZero() {
				ready = leaving
			}
			rect(p.made, ready, "pale")
			rect(ready, leaving, "up")
			rect(leaving, over, "pale")
		}
		y += float64(len(lanes))*(bar+2) + gap
	}
	for i, m := range l.marks {
		fmt.Fprintf(&b, `<line x1="%.1f" y1="52" x2="%.1f" y2="%.1f" class="mark"/><text x="%.1f" y="%g" class="small">%s</text>`+"\n",
			x(m.at), x(m.at), y, x(m.at)+3, y+12+float64(i%6)*12, html.EscapeString(m.what))
	}
	axis := y
	y += 90
	step := 10.0
	for end.Sub(l.began).Seconds()/step > 16 {
		step *= 2
	}
	for s := 0.0; s <= end.Sub(l.began).Seconds(); s += step {
		fmt.Fprintf(&b, `<line x1="%.1f" y1="52" x2="%.1f" y2="%.1f" class="grid"/><text x="%.1f" y="46" class="small" text-anchor="middle">%g s</text>`+"\n",
			left+s*scale, left+s*scale, axis, left+s*scale, s)
	}
	svg := fmt.Sprintf(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %g %g" font-family="system-ui, sans-serif" font-size="12">
<style>.up{fill:#2563eb}.pale{fill:#93c5fd}.grid{stroke:#0001}.mark{stroke:#dc2626;stroke-dasharray:3 2}.small{font-size:10px;fill:#475569}text{fill:#0f172a}</style>
<rect width="100%%" height="100%%" fill="#fff"/><text x="16" y="24" font-size="15" font-weight="600">%s</text>
<rect x="%g" y="15" width="24" height="%g" class="pale"/><text x="%g" y="22" class="small">starts, drains</text>
<rect x="%g" y="15" width="24" height="%g" class="up"/><text x="%g" y="22" class="small">ready</text>
%s</svg>
`, width, y, html.EscapeString(title), width-190, bar, width-160, width-80, bar, width-50, b.String())
	return os.WriteFile(path, []byte(svg), 0o644)
}

func sortedNames[V any](m map[string]V) []string {
	names := make([]string, 0, len(m))
	for n := range m {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}

// pods are those that there are now, by namespace and service, those that are on their way out among them.
func (t *test) pods() map[string]int {
	t.Helper()
	out := t.k("get", "pods", "-A", "-l", "serving.knative.dev/service", "-o",
		`jsonpath={range .items[*]}{.metadata.namespace}/{.metadata.labels.serving\.knative\.dev/service} {end}`)
	found := map[string]int{}
	for _, p := range strings.Fields(out) {
		found[p]++
	}
	return found
}

// atZero waits until no pod is left but the schedule's, and tells how long that took.
func (t *test) atZero() time.Duration {
	t.Helper()
	return t.wait(4*time.Minute, "no pod but the schedule's is left", func() bool {
		left := t.pods()
		delete(left, "onda-system/schedule")
		return len(left) == 0
	})
}

// keep writes a plot beside the others, and says where.
func (t *test) keep(l *timeline, name, title string) {
	t.Helper()
	l.stop()
	path := filepath.Join(t.out, name+".svg")
	t.must(l.plot(path, title))
	t.Logf("time line of pods: %s", path)
}
