package e2e

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// wakeup is one request that finds nothing running.
type wakeup struct {
	name    string
	service string // whose pod starts
	ask     func() (took time.Duration)
}

// From zero through the ingress: the form page, the pixel, and a transactional mail from request to SMTP, each beside a service of a few lines with the same
// settings, in every round. ONDA_E2E_ROUNDS is how many.
//
// What one wake leaves behind (pods of those whom its events reach, pods that end) must not be paid for by the next: each begins when pods have rested. The kubelet looks at its pods once a
// second, and until it did nobody learns the address of a new one: so all wakes of a round begin at the same time after the last change that it told of, and those of another round at another.
// Each comes at each place of a round as often as the others.
func TestFromZero(t *testing.T) {
	c := begin(t)
	rounds, err := strconv.Atoi(cmp.Or(os.Getenv("ONDA_E2E_ROUNDS"), "20"))
	c.must(err)
	c.company("zero", 10)
	c.start("zero", "spring-news", 10)
	c.completed(patience, "zero")
	var pixel string
	for m := range c.mails("zero") {
		if pixel = c.letter(m.ID).pixel; pixel != "" {
			break
		}
	}
	key := c.key("zero")
	manifest := c.k("kustomize", "config/regions/local/stable")
	for _, name := range []string{"render-form", "track", "send-api"} {
		c.must(c.applyManifest(c.ctx, c.root, c.reference(manifest, name)))
	}
	c.k("-n", pool, "wait", "--for=condition=Ready", "ksvc", "--all", "--timeout=180s")

	get := func(address string, want int) func() time.Duration {
		return func() time.Duration {
			began := time.Now()
			code, _, err := c.fetch(c.ctx, http.MethodGet, address, http.Header{"User-Agent": {reader}}, "")
			c.must(err)
			if code != want {
				t.Fatalf("%s: %d", address, code)
			}
			return time.Since(began)
		}
	}
	arrives := func(to string, ask func() (int, []byte, error)) time.Duration {
		ctx, cancel := context.WithTimeout(c.ctx, patience)
		defer cancel()
		from := int64(1)
		for m := range c.mails("") {
			from = m.ID + 1
		}
		began := time.Now()
		code, body, err := ask()
		c.must(err)
		if code/100 != 2 {
			t.Fatalf("%d %s", code, body)
		}
		for m := range c.box.Watch(ctx, from) {
			if m.To == to {
				return m.At.Sub(began)
			}
		}
		t.Fatalf("no mail to %s", to)
		return 0
	}
	n := 0
	reference := func(name string) string { return "https://ref-" + name + "." + pool + "." + domain() + "/" }
	wakes := []wakeup{
		{"form page", "render-form", get(c.formURL()+"/f/zero/newsletter", http.StatusOK)},
		{"form page, reference", "ref-render-form", get(reference("render-form"), http.StatusOK)},
		{"pixel", "track", get(pixel, http.StatusOK)},
		{"pixel, reference", "ref-track", get(reference("track"), http.StatusOK)},
		{"transactional mail", "send-api", func() time.Duration {
			n++
			to := fmt.Sprintf("one%d@zero.example", n)
			return arrives(to, func() (int, []byte, error) {
				return c.fetch(c.ctx, http.MethodPost, c.apiURL()+"/v1/emails", http.Header{"Authorization": {"Bearer " + key}, "Content-Type": {"application/json"}},
					fmt.Sprintf(`{"to": %q, "email": "receipt", "data": {"number": "7", "total": 12, "currency": "EUR", "lines": [{"name": "Lamp", "count": 1, "price": 12}]}}`, to))
			})
		}},
		{"transactional mail, reference", "ref-send-api", func() time.Duration {
			n++
			to := fmt.Sprintf("ref%d@zero.example", n)
			return arrives(to, func() (int, []byte, error) {
				return c.fetch(c.ctx, http.MethodPost, reference("send-api")+"?to="+url.QueryEscape(to), nil, "x")
			})
		}},
	}
	for _, w := range wakes { // their images come to the node
		c.Logf("%-32s %7.2f s, with its image if that was not there", w.name, w.ask().Seconds())
	}
	took := map[string][]time.Duration{}
	phases := map[string][3][]time.Duration{}
	for round := range rounds {
		c.atZero()
		l := c.watchPods()
		for i := range wakes {
			pair, second := (i/2+round)%(len(wakes)/2), (i+round/(len(wakes)/2))%2
			w := wakes[2*pair+second]
			c.rested(l, time.Duration(round)*time.Second/time.Duration(rounds))
			asked := time.Now()
			d := w.ask()
			answered := asked.Add(d)
			took[w.name] = append(took[w.name], d)
			var p pod
			c.wait(10*time.Second, "a pod of "+w.service+" to be seen that started for it: else it was not from zero", func() bool {
				p = l.first(pool+"/"+w.service, asked)
				return !p.ready.IsZero()
			})
			ph := phases[w.name]
			for i, d := range []time.Duration{p.made.Sub(asked), p.ready.Sub(p.made), answered.Sub(p.ready)} {
				ph[i] = append(ph[i], d)
			}
			phases[w.name] = ph
		}
		l.stop()
	}
	c.Logf("%-32s %9s %9s %10s   %s", "from zero, "+strconv.Itoa(rounds)+" rounds", "median", "p95", "ratio", "median until: pod made, pod ready, answered (s)")
	for i, w := range wakes {
		slices.Sort(took[w.name])
		ratio := ""
		if i%2 == 0 {
			slices.Sort(took[wakes[i+1].name])
			r := median(took[w.name]).Seconds() / median(took[wakes[i+1].name]).Seconds()
			ratio = fmt.Sprintf("%.2f %s", r, map[bool]string{true: "ok", false: "short"}[r <= 1.1])
		}
		ph := phases[w.name]
		for i := range ph {
			slices.Sort(ph[i])
		}
		c.Logf("%-32s %7.2f s %7.2f s %10s   %.2f %.2f %.2f", w.name, median(took[w.name]).Seconds(), p95(took[w.name]).Seconds(), ratio,
			median(ph[0]).Seconds(), median(ph[1]).Seconds(), median(ph[2]).Seconds())
	}
}

func median(d []time.Duration) time.Duration {
	if len(d) == 0 {
		return 0
	}
	return d[len(d)/2]
}

// p95 is what 95 of 100 do not pass.
func p95(d []time.Duration) time.Duration {
	if len(d) == 0 {
		return 0
	}
	return d[(len(d)*95+99)/100-1]
}

// restFor is how long nothing is told of pods when they rest.
const restFor = 2 * time.Second

// rested waits until nothing was told of pods for restFor and a while more.
func (t *test) rested(l *timeline, more time.Duration) {
	t.Helper()
	limit := time.Now().Add(2 * time.Minute)
	for left := restFor; left > 0; left = time.Until(l.changed().Add(restFor + more)) {
		if time.Now().After(limit) {
			t.Fatal("pods do not rest")
		}
		select {
		case <-t.ctx.Done():
			t.Fatal(t.ctx.Err())
		case <-time.After(left):
		}
	}
}

// first is the first pod of a service that was made after a moment; the zero pod where there is none.
func (l *timeline) first(service string, after time.Time) (found pod) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, p := range l.pods {
		if p.service == service && p.made.After(after) && (found.made.IsZero() || p.made.Before(found.made)) {
			found = *p
		}
	}
	return found
}

// key makes a key for a program of a tenant's.
func (t *test) key(tenant string) string {
	t.Helper()
	var k struct {
		Key string `json:"key"`
	}
	out := t.run(tenant, "--output", "json", "tenant", "key", "e2e", "--kind", "secret")
	t.must(json.Unmarshal([]byte(out), &k))
	return k.Key
}

// reference is the manifest of a function's service with a few lines in the place of its code.
func (t *test) reference(manifest, name string) string {
	t.Helper()
	for d := range strings.SplitSeq(manifest, "\n---\n") {
		if strings.Contains(d, "kind: Service\n") && strings.Contains(d, "\n  name: "+name+"\n") {
			d = strings.ReplaceAll(d, "name: "+name+"\n", "name: ref-"+name+"\n")
			i := strings.Index(d, "image: ko://")
			j := i + strings.IndexByte(d[i:], '\n')
			return d[:i] + "image: ko://github.com/onda-run/onda/test/e2e/reference" + d[j:]
		}
	}
	t.Fatalf("there is no service %s", name)
	return ""
}
