package e2e

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

// swap puts another entry in the place of the ring: its broker and triggers are taken down and made anew.
func (t *test) swap(entry string) {
	t.Helper()
	t.k("-n", pool, "delete", "broker,trigger", "--all", "--timeout=120s")
	t.must(t.applyEntry(t.ctx, t.root, entry, nil))
	t.must(t.ready(t.ctx, pool))
}

// The same 50,000 with a durable broker: the ring's broker and triggers are taken down and made anew as RabbitMQ's. ONDA_E2E_RABBITMQ names the Secret's manifest.
func TestDurableBroker(t *testing.T) {
	c := begin(t)
	secret, err := os.ReadFile(os.Getenv("ONDA_E2E_RABBITMQ"))
	if err != nil {
		t.Skip("no RabbitMQ in the cluster: ONDA_E2E_RABBITMQ names the manifest of the Secret that its broker needs")
	}
	c.company("durable", audience)
	_, err = c.command(c.ctx, string(secret), nil, "kubectl", "-n", pool, "apply", "-f", "-")
	c.must(err)
	c.swap("config/testdata/combinations/local-rabbitmq")
	defer c.swap("config/regions/local/stable")
	if class := c.k("-n", pool, "get", "broker", "onda", "-o", `jsonpath={.metadata.annotations.eventing\.knative\.dev/broker\.class}`); class != "RabbitMQBroker" {
		t.Fatalf("the broker is a %s", class)
	}
	c.atZero()
	l := c.watchPods()
	began := time.Now()
	c.start("durable", "spring-news", audience-audience/100)
	l.say("campaign start")
	s := c.completed(20*time.Minute, "durable")
	l.say("completed")
	took := time.Since(began)
	c.audit("durable", s, audience, 0)
	c.Logf("%d recipients in %.1f s from the command, from zero: %.0f a second", audience, took.Seconds(), audience/took.Seconds())
	c.atZero()
	c.keep(l, "rabbitmq", fmt.Sprintf("A campaign to %d contacts over RabbitMQ: pods, from zero to zero", audience))
	if strings.TrimSpace(c.k("-n", pool, "get", "pods", "-l", "serving.knative.dev/service", "-o", "name")) != "" {
		t.Error("pods are left")
	}
}
