package e2e

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2"
	"github.com/google/uuid"
)

// The ring with identities: the broker takes no event of who shows no token, or another's; functions show theirs, and a campaign goes out by events alone, with the
// schedule's tick stopped.
func TestEventPolicy(t *testing.T) {
	c := begin(t)
	const tenant, contacts, recipients = "proven", 2000, 1980
	c.company(tenant, contacts)
	c.atZero()

	before := c.k("-n", "knative-eventing", "get", "configmap", "config-features", "-o", "jsonpath={.data.authentication-oidc}")
	c.authentication(`"enabled"`)
	defer func() {
		// First what Knative wrote into the Services goes, then the ring is as it was.
		c.k("-n", pool, "delete", "eventpolicies.eventing.knative.dev/onda-publishers", "sinkbindings.sources.knative.dev/functions", "--ignore-not-found", "--timeout=120s")
		restored := "null"
		if before != "" {
			restored = fmt.Sprintf("%q", before)
		}
		c.authentication(restored)
		c.wait(patience, "the broker to ask for no token", func() bool { return c.brokerAudience() == "" })
		c.swap("config/regions/local/stable")
	}()
	c.wait(patience, "Knative to take a policy", func() bool {
		_, err := c.kubectl(c.ctx, "-n", pool, "apply", "--dry-run=server", "-f", filepath.Join(c.root, "config/components/event-policy/policy.yaml"))
		return err == nil
	})
	c.swap("config/testdata/combinations/local-event-policy")
	c.k("-n", pool, "wait", "--for=condition=Ready", "sinkbindings.sources.knative.dev/functions", "eventpolicies.eventing.knative.dev/onda-publishers", "--timeout=300s")
	// The binding is Ready before its token is in the Services, and the broker before it knows of the policy.
	c.wait(patience, "every function to have a token", func() bool {
		services := c.k("-n", pool, "get", "ksvc", "-o", `jsonpath={range .items[*]}{.metadata.name}:{.spec.template.spec.volumes[*].name}{"\n"}{end}`)
		return strings.Count(services, ":") == strings.Count(services, "oidc-token")
	})
	c.wait(patience, "the broker to have its policy", func() bool {
		return c.k("-n", pool, "get", "broker", "onda", "-o", "jsonpath={.status.policies[*].name}") == "onda-publishers"
	})
	c.must(c.ready(c.ctx, pool))
	c.atZero() // of the pods without a token none is left
	const broker = "eventing.knative.dev/broker/" + pool + "/onda"
	if got := c.brokerAudience(); got != broker {
		t.Fatalf("tokens for the broker are for %q, and functions look for %q", got, broker)
	}

	account := c.k("-n", pool, "get", "sinkbindings.sources.knative.dev", "functions", "-o", "jsonpath={.status.auth.serviceAccountName}")
	token := func(account, audience string) string {
		return c.k("-n", pool, "create", "token", account, "--audience="+audience)
	}
	own := token(account, broker)
	c.k("-n", pool, "create", "serviceaccount", "stranger")
	defer c.k("-n", pool, "delete", "serviceaccount", "stranger")
	for _, knock := range []struct {
		what, token string
		want        int
	}{
		{"without a token", "", http.StatusUnauthorized},
		{"with what is no token", "secret", http.StatusUnauthorized},
		{"with another account's token", token("stranger", broker), http.StatusForbidden},
		{"with a token for another broker", token(account, "eventing.knative.dev/broker/onda-next/onda"), http.StatusUnauthorized},
		{"with the functions' token", own, http.StatusAccepted},
	} {
		if code := c.knock(knock.token); code != knock.want {
			t.Errorf("an event %s is answered %d, want %d", knock.what, code, knock.want)
		}
	}

	c.token = filepath.Join(t.TempDir(), "token")
	defer func() { c.token = "" }()
	c.must(os.WriteFile(c.token, []byte(own), 0o600))
	tick := func(schedule string) {
		c.k("-n", "onda-system", "patch", "pingsource", "tick", "--type=merge", "-p", fmt.Sprintf(`{"spec":{"schedule":%q}}`, schedule))
	}
	tick("0 0 1 1 *")
	defer tick("* * * * *")
	c.wait(4*time.Minute, "no pod is left, the schedule's neither", func() bool { return len(c.pods()) == 0 })
	l := c.watchPods()
	began := time.Now()
	c.start(tenant, "spring-news", recipients)
	c.wait(patience, "every mail to go out by events alone", func() bool { return c.status(tenant, "spring-news").Counts.Sent == recipients })
	c.Logf("%d mails in %.1f s from the command, from zero, and not one tick", recipients, time.Since(began).Seconds())
	if l.ready("onda-system/schedule") {
		t.Error("the schedule ran, so that events alone are not shown to be enough")
	}
	logs := c.k("-n", pool, "logs", "-l", "app.kubernetes.io/part-of=onda", "-c", "user-container", "--tail=-1", "--max-log-requests=50", "--ignore-errors")
	if n := strings.Count(logs, "onda.email.send.requested.v1"); n == 0 {
		t.Errorf("the functions' logs name no event that the broker brought:\n%s", logs)
	}
	for line := range strings.Lines(logs) {
		if strings.Contains(line, "stay in the outbox") || strings.Contains(line, "answered 40") {
			t.Errorf("an event was not taken: %s", line)
		}
	}
	tick("* * * * *")
	c.audit(tenant, c.completed(patience, tenant), contacts, 0)
	c.atZero()
	c.keep(l, "eventpolicy", fmt.Sprintf("A campaign to %d contacts by events with tokens, from zero to zero", contacts))
}

// authentication sets authentication-oidc for the whole cluster: a value as JSON.
func (t *test) authentication(value string) {
	t.Helper()
	t.k("-n", "knative-eventing", "patch", "configmap", "config-features", "--type=merge", "-p", `{"data":{"authentication-oidc":`+value+`}}`)
}

// brokerAudience is what tokens for the ring's broker are for; empty where it asks for none.
func (t *test) brokerAudience() string {
	t.Helper()
	return t.k("-n", pool, "get", "broker", "onda", "--ignore-not-found", "-o", "jsonpath={.status.address.audience}")
}

// knock posts an event of no interest to the ring's broker, with a token unless it is empty, and gives the status.
func (t *test) knock(token string) (status int) {
	t.Helper()
	e := cloudevents.NewEvent()
	e.SetID(uuid.NewString())
	e.SetType("com.example.order.placed")
	e.SetSource("/e2e")
	ip := t.k("-n", "knative-eventing", "get", "service", "broker-ingress", "-o", "jsonpath={.spec.clusterIP}")
	req, err := cloudevents.NewHTTPRequestFromEvent(t.ctx, "http://"+ip+"/"+pool+"/onda", e)
	t.must(err)
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	res, err := http.DefaultClient.Do(req)
	t.must(err)
	_ = res.Body.Close()
	return res.StatusCode
}
