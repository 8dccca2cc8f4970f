package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// objects names what the API server keeps: namespaces and Knative's objects of the whole cluster, and everything that Onda's namespaces could have more of but pods.
func (t *test) objects() []string {
	t.Helper()
	found := strings.Fields(t.k("get", "namespaces", "-o", "name"))
	knative := "ksvc,configuration,revision,route,domainmapping,podautoscaler,broker,trigger,eventtype,eventpolicy,subscription,channel,pingsource,sinkbinding"
	list := `jsonpath={range .items[*]}{.metadata.namespace}/{.kind}/{.metadata.name} {end}`
	found = append(found, strings.Fields(t.k("get", knative, "-A", "-o", list))...)
	for _, ns := range strings.Fields(t.k("get", "namespaces", "-l", "app.kubernetes.io/part-of=onda", "-o", "jsonpath={.items[*].metadata.name}")) {
		kinds := "configmap,secret,service,endpointslice,deployment,job,serviceaccount,networkpolicy,resourcequota,limitrange,role,rolebinding"
		found = append(found, strings.Fields(t.k("-n", ns, "get", kinds, "-o", list))...)
	}
	slices.Sort(found)
	return found
}

// beyond are the names that are not among others.
func beyond(names, others []string) []string {
	return slices.DeleteFunc(slices.Clone(names), func(n string) bool { return slices.Contains(others, n) })
}

// 200 pooled tenants made from the blueprint: a file each by onda tenant create, and all by the Job tenants; how long each takes, what each costs at rest, and one of them
// sending while the others sleep.
func TestTwoHundredTenants(t *testing.T) {
	c := begin(t)
	const tenants, contacts = 200, 1000
	dir := c.checkout()
	// The list without the examples, which have tests of their own.
	list := filepath.Join(dir, "config/tenants/kustomization.yaml")
	text, err := os.ReadFile(list)
	c.must(err)
	c.must(os.WriteFile(list, regexp.MustCompile(`(?m)^ +- .*=.*/tenant\.yaml\n`).ReplaceAll(text, nil), 0o644))
	c.atZero()
	// The Job's objects and the ConfigMap with the files are there whoever the tenants are.
	c.job(dir, "tenants")
	objects := c.objects()
	size := value[int64](c, "SELECT pg_database_size('onda')")

	var wrote []time.Duration
	for i := range tenants {
		began := time.Now()
		_, err := commandIn(c.ctx, dir, "", nil, filepath.Join(c.root, "bin", "onda"), "tenant", "create", fmt.Sprintf("many%03d", i), "--files", "config/tenants")
		c.must(err)
		wrote = append(wrote, time.Since(began))
	}
	c.spread(fmt.Sprintf("%d files of tenants, each by a command of its own", tenants), wrote)
	out := c.job(dir, "tenants")
	var made []time.Duration
	for _, m := range regexp.MustCompile(`(?m)^many\d{3}: made\b.*\((\d+) ms\)$`).FindAllStringSubmatch(out, -1) {
		n, err := strconv.Atoi(m[1])
		c.must(err)
		made = append(made, time.Duration(n)*time.Millisecond)
	}
	if len(made) != tenants {
		t.Fatalf("the Job made %d tenants of %d:\n%s", len(made), tenants, out)
	}
	moment := func(field string) time.Time {
		at, err := time.Parse(time.RFC3339, c.k("-n", "onda-system", "get", "job", "tenants", "-o", "jsonpath={.status."+field+"}"))
		c.must(err)
		return at
	}
	c.spread(fmt.Sprintf("%d tenants made by one Job in %.0f s", tenants, moment("completionTime").Sub(moment("startTime")).Seconds()), made)
	if n := value[int](c, "SELECT count(*) FROM onda.tenant WHERE name LIKE 'many%' AND state = 'active'"); n != tenants {
		t.Errorf("%d tenants are there", n)
	}

	c.atZero()
	now := c.objects()
	if more, less := beyond(now, objects), beyond(objects, now); len(now) != len(objects) {
		t.Errorf("%d API objects, %d before: more are %v, less %v", len(now), len(objects), more, less)
	}
	c.Logf("at rest: API objects %d more (%d in all), pods 0, Postgres %.1f MB a tenant", len(now)-len(objects), len(now),
		float64(value[int64](c, "SELECT pg_database_size('onda')")-size)/tenants/(1<<20))

	c.company("many100", contacts)
	c.atZero()
	due := value[int](c, "SELECT count(*) FROM onda.wakeup WHERE tenant LIKE 'many%' AND tenant <> 'many100' AND at < now() + '1 hour'")
	c.start("many100", "spring-news", contacts-contacts/100)
	c.audit("many100", c.completed(patience, "many100"), contacts, 0)
	if n := value[int](c, "SELECT count(*) FROM onda.wakeup WHERE tenant LIKE 'many%' AND tenant <> 'many100' AND at < now() + '1 hour'"); n != due {
		t.Errorf("%d functions of sleeping tenants are woken within the hour, %d before", n, due)
	}
	c.atZero()
}

// spread says how long things took.
func (t *test) spread(what string, took []time.Duration) {
	t.Helper()
	slices.Sort(took)
	t.Logf("%s: median %.0f ms, p95 %.0f ms, longest %.0f ms", what, ms(median(took)), ms(took[len(took)*95/100]), ms(took[len(took)-1]))
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
