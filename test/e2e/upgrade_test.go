package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/onda-run/onda/internal/postgres"
)

// A ring is upgraded to a version with a migration in it while a campaign runs, and goes back: the schema stays, and the version before goes on with it.
func TestUpgradeAndBack(t *testing.T) {
	c := begin(t)
	const contacts = 40_000
	c.company("upgrade", contacts)
	dir := c.checkout()
	next := c.migration(dir)

	c.slow.Store(int64(250 * time.Millisecond)) // it must last until the ring is back
	defer c.slow.Store(0)
	l := c.watchPods()
	c.start("upgrade", "spring-news", contacts-contacts/100)
	running := func(more int64) {
		t.Helper()
		from := c.status("upgrade", "spring-news").Counts.Sent
		c.wait(patience, "mails to go on", func() bool { return c.status("upgrade", "spring-news").Counts.Sent >= from+more })
	}
	running(100)

	// As Argo CD does it: the Job first, then the functions.
	apply := func(root, what string) {
		t.Helper()
		began := time.Now()
		l.say("%s", what)
		c.must(c.applyEntry(c.ctx, root, "config/regions/local/stable", nil))
		c.must(c.ready(c.ctx, pool))
		c.Logf("%s: %.0f s", what, time.Since(began).Seconds())
	}
	c.job(dir, "migrate")
	if v := value[int](c, "SELECT schema FROM onda.tenant WHERE name = 'upgrade'"); v != next {
		t.Fatalf("the tenant's schema is %d, want %d", v, next)
	}
	running(100) // the version before, on the new schema
	apply(dir, "the ring is upgraded")
	running(100)
	apply(c.root, "and goes back")
	running(100)
	if s := c.status("upgrade", "spring-news"); s.State == "completed" {
		t.Error("the campaign was over before the way back")
	}
	c.slow.Store(0)
	c.audit("upgrade", c.completed(10*time.Minute, "upgrade"), contacts, 0)
	c.keep(l, "upgrade", "A ring is upgraded with a migration while a campaign runs, and goes back")
}

// migration gives a checkout a migration of its own, which its functions need, and tells its number.
func (t *test) migration(checkout string) int {
	t.Helper()
	const dir = "internal/postgres/migrations/tenant"
	versions, err := filepath.Glob(filepath.Join(checkout, dir, "*.sql"))
	t.must(err)
	next := len(versions) + 1
	text := "-- Of the end-to-end test: what a version that goes before does not know.\nALTER TABLE contact ADD COLUMN e2e text;\n"
	t.must(os.WriteFile(filepath.Join(checkout, dir, fmt.Sprintf("%04d_e2e.sql", next)), []byte(text), 0o644))
	t.edit(checkout, "internal/postgres/postgres.go", fmt.Sprintf("const Schema = %d\n", postgres.Schema), fmt.Sprintf("const Schema = %d\n", next))
	return next
}

// job runs one of the system's Jobs from the manifests of a checkout, and waits for its end.
func (t *test) job(root, name string) string {
	t.Helper()
	t.k("-n", "onda-system", "delete", "job", name, "--ignore-not-found")
	t.must(t.applyEntry(t.ctx, root, "config/regions/local/system", func(d string) bool {
		return strings.Contains(d, "kind: Job\n") && strings.Contains(d, "\n  name: "+name+"\n") || strings.Contains(d, "kind: ConfigMap\n")
	}))
	t.k("-n", "onda-system", "wait", "--for=condition=Complete", "job/"+name, "--timeout=900s")
	return t.k("-n", "onda-system", "logs", "job/"+name)
}
