package config_test

import (
	"io/fs"
	"os"
	"regexp"
	"strings"
	"testing"
	"testing/fstest"
)

// testBadInput makes one slip after another in files of the blueprint, in memory, and looks at what is said: the file, and what to do.
func testBadInput(t *testing.T, all map[string]rendering) {
	t.Helper()
	const (
		send    = "functions/send/service.yaml"
		trigger = "eventing/triggers/send.yaml"
		sandbox = "config/tenants/dev-ana"
		rabbit  = "config/testdata/combinations/rabbitmq"
		oidc    = "config/testdata/combinations/event-policy"
	)
	for name, c := range map[string]struct {
		entry, file, old, new string
		want                  []string
	}{
		"an unknown broker": {
			"eventing", trigger, "broker: onda", "broker: ondo",
			[]string{trigger + `: Trigger send-email-send-requested: spec.broker: there is no Broker "ondo" in namespace onda: name one of onda`},
		},
		"an unknown function": {
			"eventing", trigger, "      name: send\n", "      name: sned\n",
			[]string{trigger + `: Trigger send-email-send-requested: spec.subscriber: there is no Service "sned" in namespace onda: name one of bounce, campaign, render-form, segment, send, send-api`},
		},
		"an unknown dead letter sink": {
			"eventing", trigger, "name: campaign", "name: campaigns",
			[]string{`spec.delivery.deadLetterSink: there is no Service "campaigns" in namespace onda: name one of bounce, campaign`},
		},
		"an unknown event type": {
			"eventing", trigger, "onda.email.send.requested.v1", "onda.email.sent.requested.v1",
			[]string{trigger + `: Trigger send-email-send-requested: asks for events of type "onda.email.sent.requested.v1", which is not in the catalogue`},
		},
		"an event type of nobody": {
			"eventing", "eventing/eventtypes/onda.email.sent.v1.yaml", "name: onda.email.sent.v1", "name: onda.email.posted.v1",
			[]string{"eventing/eventtypes/onda.email.sent.v1.yaml: EventType onda.email.posted.v1: is no type of the catalogue: add it to internal/event/data.go"},
		},
		"an event that goes astray": {
			"eventing", trigger, "type: onda.email.send.requested.v1", "type: onda.email.requested.v1",
			[]string{"Trigger send-email-send-requested: asks for map[type:onda.email.requested.v1], and in eventing/triggers for map[type:onda.email.send.requested.v1]"},
		},
		"a subscriber with less time than it takes": {
			"eventing", trigger, "timeout: PT65S", "timeout: PT50S", []string{"gives send PT50S, and the service may take 1m0s (timeoutSeconds)"},
		},
		"an unknown ConfigMap": {
			"functions/send", send, "configMapRef:\n                name: onda", "configMapRef:\n                name: settings",
			[]string{send + `: Service send: envFrom.configMapRef: there is no ConfigMap "settings" in namespace onda: name one of onda-`},
		},
		"an unknown Secret": {
			"functions/send", send, "secretRef:\n                name: onda", "secretRef:\n                name: passwords",
			[]string{send + ": Service send: envFrom.secretRef: there is no Secret passwords: name one of those that config/README.md lists"},
		},
		"a misspelt field": {
			"functions/send", send, "timeoutSeconds", "timeoutSecond",
			[]string{send + `: Service send: unknown field "spec.template.spec.timeoutSecond": correct its name or its place`},
		},
		"an annotation at the wrong place": {
			"functions/send", send, "  labels:\n    app", "  annotations: {autoscaling.knative.dev/max-scale: \"3\"}\n  labels:\n    app",
			[]string{send + ": Service send: ", "autoscaling.knative.dev/max-scale"},
		},
		"a misspelt setting": {
			sandbox, sandbox + "/kustomization.yaml", "ONDA_LINK_URL", "ONDA_LINKS_URL",
			[]string{
				send + ": Service send: does not start: ONDA_LINK_URL: is not set; set it in the ConfigMap onda of " + sandbox + "/kustomization.yaml",
				sandbox + "/kustomization.yaml: ConfigMap onda-", "sets ONDA_LINKS_URL, which no function of this namespace reads",
			},
		},
		"a malformed setting": {
			sandbox, sandbox + "/kustomization.yaml", "ONDA_LOG=json", "ONDA_LOG=jsno", []string{"Service send: does not start: ONDA_LOG: \"jsno\" is not one of json, console, auto"},
		},
		"a service's misspelt setting": {
			sandbox, send, "ONDA_LANE", "ONDA_LANES", []string{send + ": Service send: sets ONDA_LANES, which its function does not read: see the table in functions/send/README.md"},
		},
		"another's tenant": {
			sandbox, sandbox + "/kustomization.yaml", "ONDA_TENANT=dev-ana", "ONDA_TENANT=acme", []string{sandbox + `: ONDA_TENANT is "acme": the functions of a dedicated tenant serve no other than dev-ana`},
		},
		"an unknown class": {
			sandbox, "eventing/broker.yaml", "MTChannelBasedBroker", "InMemoryBroker", []string{`eventing/broker.yaml: Broker onda: its class is "InMemoryBroker": compose one of config/components/broker-*`},
		},
		"another broker's address": {
			sandbox, "config/components/broker-memory/kustomization.yaml", "http://broker-ingress", "http://kafka-broker-ingress", []string{"functions publish to \"http://kafka-broker-ingress."},
		},
		"a filter that RabbitMQ does not know": {
			rabbit, "config/components/broker-rabbitmq/kustomization.yaml", "name: send-email-send-requested", "name: send-email-sent",
			[]string{trigger + ": Trigger send-email-send-requested: this broker's class knows spec.filter.attributes only"},
		},
		"a filter that RabbitMQ has otherwise": {
			rabbit, "config/components/broker-rabbitmq/kustomization.yaml", "type: onda.email.batch.sent.v1", "type: onda.email.sent.v1",
			[]string{"Trigger campaign-email-batch-sent: asks for map[type:onda.email.sent.v1], and in eventing/triggers for map[type:onda.email.batch.sent.v1]"},
		},
		"another ring's namespace": {
			rabbit, "config/components/broker-rabbitmq/config.yaml", "    connectionSecret", "    namespace: onda\n    connectionSecret",
			[]string{`config/components/broker-rabbitmq/config.yaml: RabbitmqBrokerConfig onda: names the namespace "onda" in an entry for "onda-next"`},
		},
		"a network that is shut": {
			rabbit, "config/components/network-policy/policy.yaml", "port: 5432", "port: 5433", []string{"the network policies do not let it reach Postgres (outside, port 5432)"},
		},
		"a broker that the other ring cannot reach": {
			rabbit, "config/components/network-policy/policy.yaml", "onda.run/functions: \"true\"\n          podSelector:\n            matchLabels:\n              eventing", "onda.run/ring: own\n          podSelector:\n            matchLabels:\n              eventing",
			[]string{"Service send: the network policies do not let it reach K_SINK (namespace onda-elsewhere, port 8080)"},
		},
		"a broker that anybody reaches": {
			rabbit, "config/components/network-policy/policy.yaml", "- podSelector: {}\n        - namespaceSelector", "- namespaceSelector: {}\n        - namespaceSelector",
			[]string{rabbit + ": the network policies let a pod of no ring (namespace shop) reach the broker's ingress: true, want false"},
		},
		"a program that could pass for another tenant": {
			oidc, "config/components/network-policy/policy.yaml", "port: 8443", "port: 8081",
			[]string{oidc + ": the network policies let a tenant's own program reach the ingress (namespace ingress, port 8081)"},
		},
		"programs that nothing guards": {
			oidc, "config/components/network-policy/policy.yaml", "operator: NotIn, values: [onda]", "operator: In, values: [onda]",
			[]string{"the network policies let a tenant's own program reach Postgres (outside, port 5432)", "reach K_SINK (namespace knative-eventing, port 8080)"},
		},
		"pods that nothing guards": {
			rabbit, "config/components/network-policy/policy.yaml", "app.kubernetes.io/part-of: onda", "app.kubernetes.io/part-of: ondas", []string{"no network policy is about its pods"},
		},
		"a function without an identity": {
			oidc, "config/components/event-policy/identity.yaml", "app.kubernetes.io/part-of: onda", "app.kubernetes.io/name: send",
			[]string{"config/components/event-policy/policy.yaml: EventPolicy onda-publishers: lets no event of campaign in, which no SinkBinding to onda in spec.from gives an identity"},
		},
		"an identity that may not publish": {
			oidc, "config/components/event-policy/policy.yaml", "- ref:\n        apiVersion: sources.knative.dev/v1\n        kind: SinkBinding\n        name: functions",
			"- sub: system:serviceaccount:onda:default",
			[]string{"EventPolicy onda-publishers: lets no event of send in"},
		},
		"an unknown identity": {
			oidc, "config/components/event-policy/policy.yaml", "name: functions", "name: publishers",
			[]string{`EventPolicy onda-publishers: spec.from: there is no SinkBinding "publishers" in namespace tenant-example: name one of functions`},
		},
		"an image that is not pinned": {
			"config/regions/eu-west/system", "config/regions/eu-west/images/kustomization.yaml", "name: ko://github.com/onda-run/onda/functions/schedule", "name: schedule",
			[]string{"functions/schedule/service.yaml: Service schedule: its image is none of those that the entry pins: add it to images"},
		},
		"another function's image": {
			"config/regions/eu-west/system", "config/regions/eu-west/images/kustomization.yaml", "newName: registry.example.com/onda/schedule", "newName: registry.example.com/onda/send",
			[]string{`image "registry.example.com/onda/send:v0.1.0" is not functions/schedule of this repository`},
		},
		"a Job that may do more": {
			"config/regions/local/system", "config/system/jobs.yaml", "runAsNonRoot: true", "runAsNonRoot: false", []string{"config/system/jobs.yaml: Job migrate: its pods are not restricted: runAsNonRoot"},
		},
		"a Job with a token": {
			"config/regions/local/system", "config/system/jobs.yaml", "automountServiceAccountToken: false", "automountServiceAccountToken: true", []string{"Job tenants: mounts a token of the cluster"},
		},
		"a Job that never ends": {
			"config/regions/local/system", "config/system/jobs.yaml", "restartPolicy: OnFailure", "restartPolicy: Always", []string{`Job migrate: spec.template.spec.restartPolicy: "Always"`},
		},
		"a quota that is too small": {
			"config/tenants/corvo", "config/components/dedicated/limits.yaml", `pods: "60"`, `pods: "6"`, []string{"config/components/dedicated/limits.yaml: ResourceQuota onda: allows 6 pods, and at full scale the functions have "},
		},
		"an example's host": {
			"config/regions/eu-west/stable", "config/regions/eu-west/stable/kustomization.yaml", "name: forms.example.com}", "name: form.example.com}",
			[]string{"DomainMapping forms.example.com: is the example's name", `ONDA_FORM_URL is "https://forms.eu.onda.example", and no DomainMapping gives its host to render-form`},
		},
		"a host of another function": {
			"config/regions/eu-west/stable", "config/components/hosts/hosts.yaml", "name: send-api", "name: sendapi", []string{`config/components/hosts/hosts.yaml: DomainMapping api.eu.onda.example: spec.ref: there is no Service "sendapi"`},
		},
		"a file that is not there": {
			"functions/send", "functions/send/kustomization.yaml", "service.yaml", "services.yaml", []string{"functions/send", "services.yaml"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			edits := map[string]func(string) string{
				// They only cost time.
				"eventing/kustomization.yaml": func(text string) string {
					return regexp.MustCompile(`(?m)^  - eventtypes/.*\n`).ReplaceAllString(text, "")
				},
				c.file: func(text string) string {
					changed := strings.ReplaceAll(text, c.old, c.new)
					if changed == text {
						t.Errorf("%s has no %q", c.file, c.old)
					}
					return changed
				},
			}
			if strings.Contains(c.file, "/eventtypes/") {
				delete(edits, "eventing/kustomization.yaml")
			}
			r, err := render(all[c.entry].entry, edits, true)
			said := ""
			if err != nil {
				said = err.Error()
			} else {
				said = strings.Join(check(r, all), "\n")
			}
			for _, want := range c.want {
				if !strings.Contains(said, want) {
					t.Errorf("said\n%s\nwant\n%s", said, want)
				}
			}
		})
	}
}

// TestBadTenants makes slips in tenants' files.
func TestBadTenants(t *testing.T) {
	t.Parallel()
	const acme, corvo, ana, list = "config/tenants/acme/tenant.yaml", "config/tenants/corvo/tenant.yaml", "config/tenants/dev-ana/tenant.yaml", tenantsList
	for name, c := range map[string]struct{ file, old, new, want string }{
		"no DNS label":             {acme, "name: acme", "name: Acme_Inc", `acme/tenant.yaml: metadata.name is "Acme_Inc": want 1 to 40 of a-z, 0-9 and -`},
		"another directory's name": {acme, "name: acme", "name: brava", `acme/tenant.yaml: metadata.name is "brava": want "acme", as the file is called`},
		"a misspelt field":         {acme, "placement", "placemnt", `acme/tenant.yaml: [10:3] unknown field "placemnt"`},
		"an unknown region":        {acme, "region: local", "region: moon", acme + ": spec.cell: there is no config/regions/moon/cells/local-1.yaml: name a region and a cell that are there"},
		"an unknown cell":          {acme, "cell: local-1", "cell: local-2", acme + ": spec.cell: there is no config/regions/local/cells/local-2.yaml"},
		"dedicated without a namespace": {
			acme, "pooled", "dedicated", acme + ": spec.placement: is dedicated, and that there is a kustomization.yaml beside it is false: pooled tenants have none, dedicated ones need one",
		},
		"pooled with a namespace": {corvo, "dedicated", "pooled", corvo + ": spec.placement: is pooled, and that there is a kustomization.yaml beside it is true"},
		"another function":        {ana, "[send]", "[track]", "config/tenants/dev-ana/kustomization.yaml: has the functions [send], and tenant.yaml names [track]: make the two agree"},
		"an unknown function":     {ana, "[send]", "[sned]", `dev-ana/tenant.yaml: spec.functions has "sned": there are bounce, campaign`},
		"no sandbox":              {ana, "  functions: [send]\n", "", ana + ": spec.functions: is [], and that its kustomization.yaml composes the component sandbox is true"},
		"a host that is taken":    {acme, "placement: pooled", "placement: pooled\n  hosts: {link: [a.example], form: [a.example]}", acme + ": spec.hosts: a.example is acme's already"},
		"unlisted":                {list, "      - acme.yaml=acme/tenant.yaml\n", "", list + ": does not list acme, so the Job tenants would not make the tenant: add acme.yaml=acme/tenant.yaml to files"},
		"listed and not there":    {list, "acme.yaml=acme/", "acne.yaml=acne/", list + ": lists acne.yaml=acne/tenant.yaml, and there is no such tenant: remove the line"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			files := fstest.MapFS{}
			for _, pattern := range []string{"config/tenants/*", "config/tenants/*/*", "config/regions/*/*/*.yaml", "functions/*/main.go"} {
				names, err := fs.Glob(os.DirFS(".."), pattern)
				if err != nil || len(names) == 0 {
					t.Fatalf("%s: %q, %v", pattern, names, err)
				}
				for _, name := range names {
					if text, err := os.ReadFile("../" + name); err == nil { // directories cannot be read
						files[name] = &fstest.MapFile{Data: text}
					}
				}
			}
			changed := strings.Replace(string(files[c.file].Data), c.old, c.new, 1)
			if changed == string(files[c.file].Data) {
				t.Fatalf("%s has no %q", c.file, c.old)
			}
			files[c.file].Data = []byte(changed)
			if _, problems := checkTenants(files); !strings.Contains(strings.Join(problems, "\n"), c.want) {
				t.Errorf("said\n%s\nwant\n%s", strings.Join(problems, "\n"), c.want)
			}
		})
	}
}
