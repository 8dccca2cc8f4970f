package manifest

import (
	"strings"
	"testing"

	eventingv1 "knative.dev/eventing/pkg/apis/eventing/v1"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
)

const service = `apiVersion: serving.knative.dev/v1
kind: Service
metadata:
  name: send
  namespace: onda
spec:
  template:
    spec:
      containers:
        - image: example.com/send
          env:
            - name: ONDA_SERVE
              value: http
          securityContext: {allowPrivilegeEscalation: false, runAsNonRoot: true, capabilities: {drop: [ALL]}, seccompProfile: {type: RuntimeDefault}}
`

const trigger = `apiVersion: eventing.knative.dev/v1
kind: Trigger
metadata: {name: t, namespace: onda}
spec: {broker: onda, subscriber: {ref: {apiVersion: serving.knative.dev/v1, kind: Service, name: send}}}
`

// TestRead takes several documents, with what the webhooks fill in.
func TestRead(t *testing.T) {
	t.Parallel()
	objects, err := Read("a.yaml", []byte("---\n"+service+"---\n# a comment\n"+trigger))
	if err != nil || len(objects) != 2 {
		t.Fatalf("%v, %v", objects, err)
	}
	for o, s := range Of[*servingv1.Service](objects) {
		if s.Spec.Template.Spec.TimeoutSeconds == nil || Env(s, "ONDA_SERVE") != "http" || Env(s, "ONDA_LANE") != "" {
			t.Errorf("%s: %+v", o, s.Spec.Template.Spec)
		}
	}
	for o, tr := range Of[*eventingv1.Trigger](objects) {
		if o.String() != "a.yaml: Trigger t" || tr.Spec.Subscriber.Ref.Namespace != "onda" {
			t.Errorf("%s: %+v", o, tr.Spec.Subscriber)
		}
	}
}

// TestReadRefuses what a cluster refuses, and names the place.
func TestReadRefuses(t *testing.T) {
	t.Parallel()
	const config = "apiVersion: eventing.knative.dev/v1alpha1\nkind: RabbitmqBrokerConfig\nmetadata: {name: onda, namespace: onda}\nspec: "
	for name, c := range map[string]struct{ text, want string }{
		"no YAML":              {"a: [", "a.yaml: "},
		"no name":              {"kind: Broker\napiVersion: eventing.knative.dev/v1\n", "a.yaml: Broker : has no metadata.name"},
		"a name that is none":  {strings.Replace(trigger, "name: t,", "name: T_1,", 1), `Trigger T_1: metadata.name is "T_1": a lowercase RFC 1123 subdomain`},
		"a Job of nothing":     {"apiVersion: batch/v1\nkind: Job\nmetadata: {name: j}\nspec: {template: {spec: {}}}\n", "Job j: its pods have no containers"},
		"a Job of no image":    {"apiVersion: batch/v1\nkind: Job\nmetadata: {name: j}\nspec: {template: {spec: {containers: [{name: a}]}}}\n", `Job j: the container "a" has the image ""`},
		"a CronJob at once":    {"apiVersion: batch/v1\nkind: CronJob\nmetadata: {name: j}\nspec: {concurrencyPolicy: Never}\n", `CronJob j: spec.concurrencyPolicy: "Never" is none of Allow`},
		"an old version":       {strings.Replace(trigger, "/v1\n", "/v1beta1\n", 1), `Trigger t: nothing is known of apiVersion "eventing.knative.dev/v1beta1"`},
		"a misspelt field":     {strings.Replace(service, "containers:", "container:", 1), `Service send: unknown field "spec.template.spec.container"`},
		"a field's case":       {strings.Replace(service, "env:", "Env:", 1), `unknown field "spec.template.spec.containers[0].Env"`},
		"a field twice":        {strings.Replace(service, "  name: send\n", "  name: send\n  name: track\n", 1), "already set"},
		"a wrong type":         {strings.Replace(service, "value: http", "value: 1", 1), "cannot unmarshal number"},
		"a warning":            {strings.Replace(service, "runAsNonRoot: true, ", "", 1), "runAsNonRoot"},
		"an annotation's home": {strings.Replace(service, "  name: send\n", "  name: send\n  annotations: {autoscaling.knative.dev/max-scale: '3'}\n", 1), "autoscaling.knative.dev/max-scale"},
		"two dialects":         {strings.Replace(trigger, "broker: onda", "broker: onda, filters: [{exact: {type: a}, prefix: {type: b}}]", 1), "multiple dialects"},
		"a gated field":        {strings.Replace(trigger, "broker: onda", "broker: onda, delivery: {retryAfterMax: PT1S}", 1), "retryAfterMax"},
		"no subscriber":        {strings.Replace(trigger, ", subscriber: {ref: {apiVersion: serving.knative.dev/v1, kind: Service, name: send}}", "", 1), "subscriber"},
		"no server":            {config + "{queueType: quorum}", "spec.rabbitmqClusterReference"},
		"a queue's type":       {config + "{queueType: lazy, rabbitmqClusterReference: {name: r}}", "quorum or classic"},
		"two servers":          {config + "{rabbitmqClusterReference: {name: r, connectionSecret: {name: s}}}", "expected exactly one, got both"},
		"no one server":        {config + "{rabbitmqClusterReference: {namespace: r}}", "expected exactly one, got neither"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := Read("a.yaml", []byte(c.text))
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.HasPrefix(err.Error(), "a.yaml: ") {
				t.Errorf("%v\nwant %s", err, c.want)
			}
		})
	}
}
