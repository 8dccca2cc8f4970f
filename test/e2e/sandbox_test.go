package e2e

import (
	"strings"
	"testing"
	"time"
)

// The Job makes what the tenants' files say; a second run changes nothing. Then a developer's sandbox: one function is deployed for one tenant, from a changed checkout, and
// sends that tenant's mails, while the pool's sends everyone else's.
func TestSandbox(t *testing.T) {
	c := begin(t)
	const contacts, tenant = 1000, "dev-ana"
	const ns = "tenant-" + tenant
	if out := c.job(c.root, "tenants"); !strings.Contains(out, tenant+": made, now in "+ns) {
		t.Errorf("the Job says %q", out)
	}
	if out := c.job(c.root, "tenants"); strings.Contains(out, "made") || !strings.Contains(out, tenant+": as it is") {
		t.Errorf("the Job's second run says %q", out)
	}
	dir := c.checkout()
	deploy := func() (string, error) {
		return c.command(c.ctx, "", nil, "make", "-C", dir, "deploy", "FN=send", "TENANT="+tenant)
	}
	if _, err := deploy(); err == nil || !strings.Contains(err.Error(), "there is no namespace "+ns+": apply config/tenants/"+tenant) {
		t.Errorf("a deploy before the namespace is there: %v", err)
	}
	c.namespace(tenant)
	c.must(c.applyEntry(c.ctx, dir, "config/tenants/"+tenant, nil))
	c.must(c.ready(c.ctx, ns))
	if out := c.k("-n", ns, "get", "ksvc", "-o", "jsonpath={.items[*].metadata.name}"); out != "send send-api send-api-events" {
		t.Errorf("its namespace has %s", out)
	}
	c.company(tenant, contacts) // imported and segmented by the pool's functions, whose doorbells ring at the sandbox's broker
	c.company("beside", contacts)
	c.edit(dir, "internal/send/send.go", `"nothing is sent"`, `"nothing is sent by ana's version"`)
	began := time.Now()
	out, err := deploy()
	c.must(err)
	c.Logf("from saving the file to ana's revision serving: %.1f s\n%s", time.Since(began).Seconds(), out)
	if !strings.Contains(out, "to go back: kubectl -n "+ns+" patch ksvc send ") {
		t.Errorf("it does not say how to go back:\n%s", out)
	}
	c.atZero()

	l := c.watchPods()
	c.start(tenant, "spring-news", contacts-contacts/100)
	c.audit(tenant, c.completed(patience, tenant), contacts, 0)
	if !l.ready(ns+"/send") || l.ready(pool+"/send") {
		t.Error("the sandbox's mails were sent by the pool's function")
	}
	if !l.ready(pool + "/campaign") {
		t.Error("the sandbox's campaign was not planned by the pool's function")
	}
	c.start("beside", "spring-news", contacts-contacts/100)
	c.audit("beside", c.completed(patience, "beside"), contacts, 0)
	if !l.ready(pool + "/send") {
		t.Error("the pool's function sent nothing")
	}
	c.atZero()
	c.keep(l, "sandbox", "A developer's sandbox: send is its own, the rest is the pool's")
	c.k("-n", ns, "delete", "broker,trigger", "--all", "--timeout=60s")
	c.k("delete", "namespace", ns, "--timeout=180s")
}
