package e2e

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/onda-run/onda/internal/postgres"
)

// namespace makes a tenant's namespace with the Secret of a login of the tenant's own, which it is given.
func (t *test) namespace(tenant string) string {
	t.Helper()
	secret := filepath.Join(t.TempDir(), "password")
	t.must(os.WriteFile(secret, []byte(password+"\n"), 0o600))
	t.run("", "tenant", "login", tenant, "--password-file", secret)
	ns := "tenant-" + tenant
	_, err := t.command(t.ctx, "apiVersion: v1\nkind: Namespace\nmetadata: {name: "+ns+", labels: {app.kubernetes.io/part-of: onda}}\n"+t.secret(ns, "onda", t.databaseURL(tenant)), nil, "kubectl", "apply", "-f", "-")
	t.must(err)
	return ns
}

// tenantFiles is a directory with one tenant's file, with some of its text replaced.
func (t *test) tenantFiles(checkout, tenant string, replace ...string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(checkout, "config/tenants", tenant, "tenant.yaml"))
	t.must(err)
	dir := t.TempDir()
	t.must(os.WriteFile(filepath.Join(dir, tenant+".yaml"), []byte(strings.NewReplacer(replace...).Replace(string(text))), 0o644))
	return dir
}

// idle runs a command that is refused while mails are in hand, until it is not.
func (t *test) idle(args ...string) {
	t.Helper()
	t.wait(2*time.Minute, "no mail to be in hand: onda "+strings.Join(args, " "), func() bool {
		_, err := t.onda(t.ctx, "", args...)
		if err != nil && !strings.Contains(err.Error(), "in hand") {
			t.Fatal(err)
		}
		return err == nil
	})
}

// A tenant moves from the pool into a namespace of its own while its campaign runs, and back, as onda tenant login says: no mail is lost or repeated, and each half is sent
// by the functions of where the tenant is.
func TestTenantMoves(t *testing.T) {
	c := begin(t)
	const contacts, tenant = 20_000, "mover"
	c.company(tenant, contacts)
	dir := c.checkout()
	_, err := commandIn(c.ctx, dir, "", nil, filepath.Join(c.root, "bin", "onda"), "tenant", "create", tenant, "--files", "config/tenants", "--placement", "dedicated")
	c.must(err)
	c.atZero()
	c.slow.Store(int64(100 * time.Millisecond)) // it must last until the tenant is back
	defer c.slow.Store(0)
	l := c.watchPods()
	c.start(tenant, "spring-news", contacts-contacts/100)
	running := func(service string) {
		t.Helper()
		c.wait(patience, "mails by "+service, func() bool { return l.ready(service) })
		sent := func() int { return value[int](c, "SELECT count(*) FROM "+tenant+".delivery WHERE state = 'sent'") } // the pool's login is shut out at times
		from := sent()
		c.wait(patience, "mails to go on", func() bool { return sent() >= from+500 })
	}
	running(pool + "/send")

	ns := c.namespace(tenant)
	c.must(c.applyEntry(c.ctx, dir, "config/tenants/"+tenant, nil))
	c.must(c.ready(c.ctx, ns))
	l.say("into a namespace of its own")
	if out := c.run("", "tenant", "sync", "--files", c.tenantFiles(dir, tenant)); !strings.Contains(out, "now in "+ns) {
		t.Errorf("sync says %q", out)
	}
	running(ns + "/send")
	c.run("", "tenant", "suspend", tenant)
	if _, err := c.onda(c.ctx, "", "tenant", "login", tenant, "--no-pool"); err == nil || !strings.Contains(err.Error(), "--lose-links") {
		t.Errorf("the pool was shut out of a tenant whose mails lead to the pool's hosts: %v", err)
	}
	c.idle("tenant", "login", tenant, "--no-pool", "--lose-links")
	c.run("", "tenant", "resume", tenant)
	l.say("the pool is shut out")
	running(ns + "/send")

	l.say("and back")
	back := c.tenantFiles(dir, tenant, "dedicated", "pooled")
	if _, err := c.onda(c.ctx, "", "tenant", "sync", "--files", back); err == nil || value[string](c, "SELECT namespace FROM onda.tenant WHERE name = '"+tenant+"'") != ns {
		t.Errorf("the tenant was put where nobody could enter it: %v", err)
	}
	c.run("", "tenant", "login", tenant, "--pool")
	if out := c.run("", "tenant", "sync", "--files", back); !strings.Contains(out, "now in "+pool) {
		t.Errorf("sync says %q", out)
	}
	c.run("", "tenant", "suspend", tenant)
	if _, err := c.onda(c.ctx, "", "tenant", "login", tenant, "--drop"); err == nil || !strings.Contains(err.Error(), "--lose-links") {
		t.Errorf("its login was taken from functions that mails lead to: %v", err)
	}
	c.idle("tenant", "login", tenant, "--drop", "--lose-links")
	c.run("", "tenant", "resume", tenant)
	running(pool + "/send")
	if s := c.status(tenant, "spring-news"); s.State == "completed" {
		t.Error("the campaign was over before the tenant was back")
	}
	c.slow.Store(0)
	c.audit(tenant, c.completed(10*time.Minute, tenant), contacts, 0)
	c.atZero()
	c.keep(l, "move", "A tenant moves into a namespace of its own while its campaign runs, and back")
	c.k("-n", ns, "delete", "broker,trigger", "--all", "--timeout=60s")
	c.k("delete", "namespace", ns, "--timeout=180s")
	// The pool's functions hold it now; a login of its own is gone.
	a, err := postgres.OpenAdmin(c.ctx, c.databaseURL("platform"))
	c.must(err)
	defer func() { _ = a.Close(c.ctx) }()
	if err := a.SetPooled(c.ctx, tenant, false); err == nil || errors.Is(err, postgres.ErrSending) {
		t.Errorf("shutting the pool out of a tenant without a login: %v", err)
	}
}
