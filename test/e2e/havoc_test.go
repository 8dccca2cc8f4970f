package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// While a campaign runs: the broker's pods are deleted, a process of send is killed, Postgres is restarted, then the ingress and the autoscaler, and every event of two
// minutes is lost. Nothing is lost or repeated.
func TestHavoc(t *testing.T) {
	c := begin(t)
	const contacts = 20_000
	c.company("havoc", contacts)
	c.atZero()
	c.slow.Store(int64(150 * time.Millisecond)) // a mail takes its time, so that everything happens while it runs
	defer c.slow.Store(0)
	l := c.watchPods()
	began := time.Now()
	c.start("havoc", "spring-news", contacts-contacts/100)
	done := func() bool { return c.status("havoc", "spring-news").State == "completed" }
	sent := func(more int) {
		t.Helper()
		from := c.box.Counts().Received
		c.wait(patience, "mails to go on", func() bool { return c.box.Counts().Received >= from+more || done() })
	}
	sent(200)
	steps := []struct {
		what string
		do   func()
	}{
		{"the broker's pods are deleted", func() {
			for _, d := range []string{"imc-dispatcher", "mt-broker-ingress", "mt-broker-filter"} {
				c.k("-n", "knative-eventing", "rollout", "restart", "deployment", d)
			}
		}},
		{"a process of send is killed", func() {
			pods := l.up(pool + "/send")
			if len(pods) == 0 {
				t.Fatal("no pod of send runs")
			}
			c.sigkill(pool, pods[0])
		}},
		{"Postgres is restarted", func() {
			_, err := c.postgres(c.ctx, "stop")
			c.must(err)
			_, err = c.postgres(c.ctx, "start")
			c.must(err)
		}},
		{"the ingress and the autoscaler are restarted", func() {
			c.k("-n", "knative-serving", "rollout", "restart", "deployment", "autoscaler", "activator")
			c.k("-n", c.ingressNamespace(), "rollout", "restart", "deployment")
		}},
	}
	for _, s := range steps {
		if done() {
			t.Fatalf("the campaign was over before: %s", s.what)
		}
		l.say("%s", s.what)
		s.do()
		c.Logf("%4.0f s: %s, after %d mails", time.Since(began).Seconds(), s.what, c.box.Counts().Received)
		sent(300)
	}

	l.say("every event is lost")
	from := c.box.Counts().Received
	restore := c.loseEvents()
	lost := time.Now()
	c.wait(3*time.Minute, "two minutes without events", func() bool { return time.Since(lost) > 2*time.Minute })
	restore()
	l.say("events again")
	c.Logf("%4.0f s: two minutes in which no event reached anyone; %d mails went out meanwhile, by the sweep", time.Since(began).Seconds(), c.box.Counts().Received-from)
	c.slow.Store(0)
	c.wait(20*time.Minute, "the campaign to be completed", done)
	l.say("completed")
	c.Logf("completed after %.0f s", time.Since(began).Seconds())
	c.atZero()
	c.keep(l, "havoc", fmt.Sprintf("A campaign to %d contacts, while everything around it fails", contacts))
	// What a process had in flight when it was killed or lost Postgres: 64 of each of its 4 batches. The one that was killed had another after it in its pod.
	c.audit("havoc", c.status("havoc", "spring-news"), contacts, int64(l.seen(pool+"/send")+1)*4*64)
}

// sigkill ends the process of a function's pod with SIGKILL, and Kubernetes starts it again: from a pod on its node that sees the node's processes, since nothing in the
// API does. Its namespace must allow that (pod security: privileged).
func (t *test) sigkill(namespace, pod string) {
	t.Helper()
	const ns = "onda-kill"
	_, id, _ := strings.Cut(t.k("-n", namespace, "get", "pod", pod, "-o", `jsonpath={.status.containerStatuses[?(@.name=="user-container")].containerID}`), "://")
	node := t.k("-n", namespace, "get", "pod", pod, "-o", "jsonpath={.spec.nodeName}")
	_, err := t.command(t.ctx, "apiVersion: v1\nkind: Namespace\nmetadata: {name: "+ns+", labels: {app.kubernetes.io/part-of: onda, "+marked+": \"true\", "+
		"pod-security.kubernetes.io/enforce: privileged}}\n", nil, "kubectl", "apply", "-f", "-")
	t.must(err)
	defer t.k("delete", "namespace", ns, "--wait=false")
	t.must(t.applyManifest(t.ctx, t.root, "apiVersion: v1\nkind: Pod\nmetadata: {name: kill, namespace: "+ns+"}\nspec:\n  nodeName: "+node+"\n  hostPID: true\n  restartPolicy: Never\n"+
		"  automountServiceAccountToken: false\n  containers:\n    - name: kill\n      image: ko://github.com/onda-run/onda/test/e2e/kill\n      args: ["+id+"]\n      securityContext: {runAsUser: 0}\n"))
	if _, err := t.kubectl(t.ctx, "-n", ns, "wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/kill", "--timeout=60s"); err != nil {
		log, _ := t.kubectl(t.ctx, "-n", ns, "logs", "kill")
		t.Fatalf("%v\n%s", err, log)
	}
}

// loseEvents has every trigger of the pool match nothing: the broker takes events, and nobody gets them. The way back applies the manifests again.
func (t *test) loseEvents() (restore func()) {
	t.Helper()
	names := strings.Fields(t.k("-n", pool, "get", "triggers", "-o", "jsonpath={.items[*].metadata.name}"))
	before := map[string]string{}
	for _, n := range names {
		before[n] = t.k("-n", pool, "get", "trigger", n, "-o", "jsonpath={.spec.filters}")
		t.k("-n", pool, "patch", "trigger", n, "--type=merge", "-p", `{"spec":{"filters":[{"exact":{"type":"nothing.has.this.type"}}]}}`)
	}
	return func() {
		for n, filters := range before {
			t.k("-n", pool, "patch", "trigger", n, "--type=merge", "-p", `{"spec":{"filters":`+filters+`}}`)
		}
	}
}

// ingressNamespace is where the service with the public node port is.
func (t *test) ingressNamespace() string {
	t.Helper()
	return t.k("get", "services", "-A", "-o", `jsonpath={.items[?(@.spec.type=="NodePort")].metadata.namespace}`)
}
