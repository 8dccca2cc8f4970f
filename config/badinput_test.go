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
		"a worker that takes longer than its request may": {
			sandbox, sandbox + "/kustomization.yaml", "      - ONDA_LOG=json\n", "      - ONDA_LOG=json\n      - ONDA_TURN=30s\n",
			[]string{send + ": Service send: a worker may take 1m5s (ONDA_TURN and ONDA_MESSAGE_LIMIT, and 5s to record what came of it), and timeoutSeconds is 1m0s"},
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
		"functions that anybody reaches": {
			rabbit, "config/components/network-policy/policy.yaml", "- namespaceSelector:\n            matchLabels:\n              onda.run/ingress: \"true\"\n---", "- namespaceSelector: {}\n---",
			[]string{
				send + ": Service send: the network policies let a pod of no ring (namespace shop) in, past Knative and the ingress", "let a tenant's own program (namespace onda-next) in",
				"let another ring's function (namespace onda-elsewhere) in",
			},
		},
		"functions that reach anybody": {
			rabbit, "config/components/network-policy/policy.yaml", "  egress:\n    - to:\n        - namespaceSelector:\n            matchLabels:\n              kubernetes.io/metadata.name: kube-system\n      ports:\n        - {protocol: UDP, port: 53}\n        - {protocol: TCP, port: 53}\n    - to:\n        - namespaceSelector:\n            matchExpressions:",
			"  egress:\n    - {}\n    - to:\n        - namespaceSelector:\n            matchExpressions:",
			[]string{send + ": Service send: the network policies let it reach a pod of no ring (namespace shop, port 8080), which it has no use for"},
		},
		"no names": {
			rabbit, "config/components/network-policy/policy.yaml", "        - {protocol: UDP, port: 53}\n", "", []string{send + ": Service send: the network policies do not let it reach names (namespace kube-system, port 53 of UDP)"},
		},
		"a schedule that wakes nobody": {
			"config/regions/eu-west/system", "config/components/network-policy/policy.yaml", "        - namespaceSelector:\n            matchLabels:\n              onda.run/ingress: \"true\"\n    # A broker", "    # A broker",
			[]string{"functions/schedule/service.yaml: Service schedule: the network policies do not let it reach the ingress (namespace ingress, port 8081), by which it wakes functions"},
		},
		"addresses that are none": {
			rabbit, "config/components/network-policy/policy.yaml", "cidr: 0.0.0.0/0\n      ports:\n        - {protocol: TCP, port: 5432}", "cidr: db.example.com\n      ports:\n        - {protocol: TCP, port: 5432}",
			[]string{"config/components/network-policy/policy.yaml: NetworkPolicy functions-out: spec.egress.to.ipBlock.cidr: netip.ParsePrefix"},
		},
		"a broker whose pods reach nothing": {
			rabbit, "config/components/network-policy/policy.yaml", "      - {key: eventing.knative.dev/broker, operator: DoesNotExist}\n", "",
			[]string{"Broker onda: the network policies do not let its own pods in the namespace reach its server (outside, port 5672)"},
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
			[]string{"functions/schedule/service.yaml: Service schedule: its image is none of those that the entry pins, and nothing builds it there: add it to images"},
		},
		"images that nothing builds": {
			"config/regions/eu-west/next", "config/regions/eu-west/next/kustomization.yaml", "  - ../images\n", "", []string{send + ": Service send: its image is none of those that the entry pins, and nothing builds it there"},
		},
		"a cell that is none": {
			"config/regions/eu-west/system", "config/regions/eu-west/system/kustomization.yaml", "ONDA_CELL=eu-west-1", "ONDA_CELL=eu-west-2",
			[]string{`config/regions/eu-west/system: ONDA_CELL is "eu-west-2", and there is no config/regions/eu-west/cells/eu-west-2.yaml: the Job tenants would make nobody`},
		},
		"lists that are mounted elsewhere": {
			"config/testdata/combinations/relays", "config/components/scanners/kustomization.yaml", "mountPath: /var/run/onda/scanners", "mountPath: /var/run/scanners",
			[]string{"Service track: env.ONDA_SCANNERS: nothing is mounted at /var/run/onda/scanners"},
		},
		"programs that people's pages are shut to": {
			oidc, "config/components/network-policy/policy.yaml", "        - {protocol: TCP, port: 8443}\n", "", []string{"the network policies do not let a tenant's own program reach the ingress (namespace ingress, port 8443)"},
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
			"config/tenants/corvo", "config/components/dedicated/limits.yaml", `pods: "60"`, `pods: "6"`, []string{"config/components/dedicated/limits.yaml: ResourceQuota onda: allows 6 pods, and at full scale the functions and the broker have "},
		},
		"an example's host": {
			"config/regions/eu-west/stable", "config/regions/eu-west/stable/kustomization.yaml", "name: forms.example.com}", "name: form.example.com}",
			[]string{"DomainMapping forms.example.com: is the example's name", `ONDA_FORM_URL is "https://forms.eu.onda.example", and no DomainMapping gives its host to render-form`},
		},
		"a host of another function": {
			"config/regions/eu-west/stable", "config/components/hosts/hosts.yaml", "name: send-api", "name: sendapi", []string{`config/components/hosts/hosts.yaml: DomainMapping api.eu.onda.example: spec.ref: there is no Service "sendapi"`},
		},
		"a delivery that is left to the broker's class": {
			"config/tenants/corvo", trigger, "    backoffDelay: PT1S\n", "", []string{trigger + ": Trigger send-email-send-requested: spec.delivery: is not explicit: set retry, backoffPolicy: exponential"},
		},
		"dead letters that are not stored": {
			"eventing", trigger, "uri: /dead-letters", "uri: /", []string{"Trigger send-email-send-requested: spec.delivery.deadLetterSink: dead letters would not land in Postgres"},
		},
		"no dead letter sink": {
			"eventing", "eventing/broker.yaml", "    deadLetterSink:\n      ref:\n        apiVersion: serving.knative.dev/v1\n        kind: Service\n        name: campaign\n      uri: /dead-letters\n", "",
			[]string{"eventing/broker.yaml: Broker onda: spec.delivery.deadLetterSink: is not set: what cannot be delivered would be lost"},
		},
		"a subscriber by its address": {
			"eventing", trigger, "    ref:\n      apiVersion: serving.knative.dev/v1\n      kind: Service\n      name: send\n", "    uri: http://send.onda\n",
			[]string{trigger + ": Trigger send-email-send-requested: spec.subscriber: names no object by ref"},
		},
		"an event that nobody gets": {
			"config/tenants/corvo", "eventing/kustomization.yaml", "  - triggers/segment.yaml\n", "", []string{"onda.segment.rebuild.requested.v1 goes to [], and the catalogue (internal/event) names [segment]"},
		},
		"an attribute of no event": {
			"eventing", "eventing/triggers/segment.yaml", "stream: facts", "flow: facts", []string{"Trigger segment-facts: asks for map[flow:facts], and in eventing/triggers for map[stream:facts]"},
		},
		"a sandbox's own function that is passed by": {
			sandbox, sandbox + "/kustomization.yaml", "notin (send)", "notin (none)",
			[]string{trigger + ": Trigger send-email-send-requested: goes to the pool's send (onda), and this namespace has its own: leave the namespace of its subscriber out"},
		},
		"no bound to its pods": {
			"config/tenants/corvo", "config/components/small/kustomization.yaml", `value: "2"`, `value: "0"`,
			[]string{send + `: Service send: spec.template.metadata.annotations: autoscaling.knative.dev/max-scale is "0", so nothing bounds its pods and their connections to Postgres`},
		},
		"a way back that would stay": {
			"functions/send", send, "  traffic:\n    - latestRevision: true\n      percent: 100\n", "", []string{send + ": Service send: spec.traffic: is not all for the latest revision, written out"},
		},
		"a bound's misspelt name": {
			"functions/send", send, "autoscaling.knative.dev/max-scale", "autoscaling.knative.dev/max-scales",
			[]string{send + ": Service send: spec.template.metadata.annotations: Knative knows no autoscaling.knative.dev/max-scales", `autoscaling.knative.dev/max-scale is "", so nothing bounds its pods`},
		},
		"more pods than there may be": {
			"functions/send", send, `min-scale: "0"`, `min-scale: "9"`, []string{send + ": Service send: ", "max-scale=2 is less than min-scale=9"},
		},
		"a port's name that Knative does not know": {
			"functions/send", send, "          resources:\n", "          ports: [{name: web, containerPort: 8080}]\n          resources:\n", []string{send + ": Service send: ", "Port name web is not allowed"},
		},
		"a name that is none": {
			"functions/schedule", "functions/schedule/service.yaml", "metadata:\n  name: schedule\n", "metadata:\n  name: Schedule_1\n", []string{`metadata.name is "Schedule_1"`},
		},
		"a container that may do more": {
			"functions/send", send, "            capabilities:\n              drop:\n                - ALL\n", "", []string{send + ": Service send: ", "capabilities"},
		},
		"a function with a token": {
			"functions/send", send, "      automountServiceAccountToken: false\n", "", []string{send + ": Service send: mounts a token of the cluster"},
		},
		"a file system to write to": {
			"functions/send", send, "readOnlyRootFilesystem: true", "readOnlyRootFilesystem: false", []string{send + ": Service send: may write where it needs not: set readOnlyRootFilesystem: true"},
		},
		"no requests": {
			"functions/send", send, "              cpu: 100m\n", "", []string{send + ": Service send: set requests of cpu and memory, and a limit of memory"},
		},
		"less memory than connections take": {
			"functions/track", "functions/track/service.yaml", "memory: 192Mi", "memory: 128Mi", []string{"Service track: its limit of memory is 128Mi, and with many connections it takes up to 192Mi"},
		},
		"a Secret of a variable": {
			"functions/send", send, "            - name: ONDA_LANE\n", "            - name: ONDA_TENANT\n              valueFrom: {secretKeyRef: {name: passwords, key: a}}\n            - name: ONDA_LANE\n",
			[]string{send + ": Service send: env.ONDA_TENANT: there is no Secret passwords: name one of those that config/README.md lists"},
		},
		"a Secret that is mounted": {
			"functions/schedule", "functions/schedule/service.yaml", "      containers:\n        - image: ko://github.com/onda-run/onda/functions/schedule\n",
			"      volumes: [{name: a, secret: {secretName: passwords}}, {name: b, projected: {sources: [{secret: {name: keys}}, {configMap: {name: c}}]}}]\n" +
				"      containers:\n        - image: ko://github.com/onda-run/onda/functions/schedule\n          volumeMounts: [{name: a, mountPath: /a, readOnly: true}, {name: b, mountPath: /b, readOnly: true}]\n",
			[]string{
				"Service schedule: volumes.secret: there is no Secret passwords", "Service schedule: volumes.projected.sources.secret: there is no Secret keys",
				`Service schedule: volumes.projected.sources.configMap: there is no ConfigMap "c"`,
			},
		},
		"a volume of nobody": {
			"config/testdata/combinations/relays", "config/components/relays/kustomization.yaml", "{name: relays, mountPath", "{name: relay, mountPath", []string{send + ": Service send: ", "relay"},
		},
		"another namespace's objects": {
			"config/tenants/corvo", "config/tenants/corvo/kustomization.yaml", "namespace: tenant-corvo", "namespace: tenant-brava",
			[]string{`Namespace tenant-brava: is not tenant-corvo, which the entry is for`, `Service send: is in namespace "tenant-brava", not "tenant-corvo": set namespace in config/tenants/corvo/kustomization.yaml`},
		},
		"a ring for one tenant": {
			"config/regions/local/next", "config/regions/local/next/kustomization.yaml", "    literals:\n", "    literals:\n      - ONDA_TENANT=brava\n", []string{`config/regions/local/next: ONDA_TENANT is "brava": a ring serves all tenants; leave it out`},
		},
		"no broker": {
			"config/regions/local/next", "config/regions/local/next/kustomization.yaml", "  - ../../../components/broker-memory\n", "", []string{`config/regions/local/next: has 1 brokers, and that its functions publish (K_SINK) is false`},
		},
		"two brokers": {
			"config/regions/local/next", "config/regions/local/next/kustomization.yaml", "  - ../../../components/broker-memory\n", "  - ../../../components/broker-memory\n  - ../../../components/broker-kafka\n",
			[]string{"config/regions/local/next: composes broker-kafka and broker-memory: compose exactly one"},
		},
		"another class's configuration": {
			"config/regions/eu-west/next", "config/components/broker-kafka/kustomization.yaml", "class: Kafka", "class: NatsJetStreamBroker", []string{`Broker onda: spec.config is of kind "ConfigMap", and its class takes ""`},
		},
		"publishers that wait": {
			sandbox, "eventing/broker.yaml", `async-handler: "true"`, `async-handler: "false"`, []string{"Broker onda: annotation messaging.knative.dev/async-handler: is for MTChannelBasedBroker"},
		},
		"more at once than its pods take": {
			rabbit, "config/components/small/kustomization.yaml", `value: "8"`, `value: "9"`,
			[]string{send + ": Service send: its trigger send-email-send-requested hands it 9 events at once (rabbitmq.eventing.knative.dev/parallelism), and all its pods take 8"},
		},
		"one event after another": {
			rabbit, "config/components/broker-rabbitmq/kustomization.yaml", "rabbitmq.eventing.knative.dev/parallelism: \"32\"", "example.com/a: b",
			[]string{"Trigger send-email-send-requested: annotation rabbitmq.eventing.knative.dev/parallelism: is for RabbitMQBroker, which hands on one event after another without it"},
		},
		"a policy that its broker does not know": {
			oidc, oidc + "/kustomization.yaml", "broker-memory", "broker-nats", []string{"Broker onda: has an EventPolicy, and its class, NatsJetStreamBroker, asks nobody who publishes"},
		},
		"an identity for nothing": {
			oidc, "config/components/event-policy/identity.yaml", "kind: Service", "kind: Deployment", []string{"SinkBinding functions: spec.subject: selects none of the functions"},
		},
		"a collector outside that nothing lets out to": {
			"config/regions/eu-west/next", "config/components/otel/kustomization.yaml", "http://otel-collector.observability.svc.cluster.local:4318", "https://otlp.example.com",
			[]string{send + ": Service send: the network policies do not let it reach OTEL_EXPORTER_OTLP_ENDPOINT (outside, port 443)"},
		},
		"a Job that nothing lets out": {
			"config/regions/eu-west/stable", "config/components/domain-check/cronjob.yaml", "            app.kubernetes.io/part-of: onda\n        spec", "            app.kubernetes.io/part-of: other\n        spec",
			[]string{"config/components/domain-check/cronjob.yaml: CronJob domain-check: no network policy is about its pods"},
		},
		"a ring that nothing guards": {
			"config/regions/eu-west/next", "config/regions/eu-west/next/kustomization.yaml", "  - ../../../components/network-policy\n", "", []string{"config/regions/eu-west/next: has no NetworkPolicy: compose config/components/network-policy"},
		},
		"a tenant without bounds": {
			"config/tenants/corvo", "config/tenants/corvo/kustomization.yaml", "  - ../../components/dedicated\n  - ../../components/network-policy\n", "  - ../../components/small\n",
			[]string{"config/tenants/corvo: has no ResourceQuota: compose config/components/dedicated", "config/tenants/corvo: has no NetworkPolicy: compose config/components/network-policy"},
		},
		"a quota of less than is asked for": {
			"config/tenants/corvo", "config/components/dedicated/limits.yaml", `requests.cpu: "8"`, `requests.cpu: "1"`, []string{"ResourceQuota onda: bounds requests.cpu to 1, and at full scale the functions and the broker ask for "},
		},
		"a quota that no sidecar meets": {
			"config/tenants/corvo", "config/components/dedicated/limits.yaml", "        memory: 20Mi\n", "", []string{"ResourceQuota onda: bounds requests.memory, and Knative's sidecar asks for none: give a defaultRequest of memory in a LimitRange"},
		},
		"a time that is none": {
			"config/regions/eu-west/stable", "config/components/domain-check/cronjob.yaml", `"17 5 * * *"`, `"17 25 * * *"`, []string{"CronJob domain-check: spec.schedule: "},
		},
		"a Job that tries for ever": {
			"config/regions/local/system", "config/system/jobs.yaml", "  backoffLimit: 6\n", "", []string{"config/system/jobs.yaml: Job migrate: may try for ever: set backoffLimit and activeDeadlineSeconds"},
		},
		"a Job with variables of every service": {
			"config/regions/local/system", "config/system/jobs.yaml", "      enableServiceLinks: false\n", "", []string{"Job migrate: gets a variable for every service of its namespace: set enableServiceLinks: false"},
		},
		"a Job without a database": {
			"config/regions/local/system", "config/system/jobs.yaml", "name: onda-admin", "name: rabbitmq", []string{"Job migrate: has no ONDA_ADMIN_DATABASE_URL: take the Secret onda-admin"},
		},
		"an image that changes": {
			"config/regions/eu-west/system", "config/regions/eu-west/images/kustomization.yaml", "newName: registry.example.com/onda/schedule\n    newTag: v0.1.0", "newName: registry.example.com/onda/schedule\n    newTag: latest",
			[]string{`image "registry.example.com/onda/schedule:latest" is not functions/schedule of this repository, nor an image of it at a version`},
		},
		"an image of elsewhere": {
			"functions/send", send, "image: ko://github.com/onda-run/onda/functions/send", "image: example.com/send", []string{send + `: Service send: image "example.com/send" is not functions/send of this repository`},
		},
		"a service of nobody": {
			"functions/send", send, "  name: send-api\n  namespace", "  name: sendapi\n  namespace", []string{send + ": Service sendapi: is no service of a function: it is in no functions/*/service.yaml"},
		},
		"a reference of another version": {
			"eventing", trigger, "apiVersion: serving.knative.dev/v1\n      kind: Service\n      name: send\n", "apiVersion: serving.knative.dev/v1beta1\n      kind: Service\n      name: send\n",
			[]string{trigger + `: Trigger send-email-send-requested: spec.subscriber: names apiVersion "serving.knative.dev/v1beta1" of Service send, which is serving.knative.dev/v1`},
		},
		"a sink that is no Knative Service": {
			"eventing", "eventing/broker.yaml", "        apiVersion: serving.knative.dev/v1\n", "        apiVersion: v1\n", []string{`eventing/broker.yaml: Broker onda: spec.delivery.deadLetterSink: names apiVersion "v1" of Service campaign`},
		},
		"a function that is left out": {
			"config/tenants/corvo", "config/base/kustomization.yaml", "  - ../../functions/bounce\n", "", []string{"config/tenants/corvo: has no Service bounce: list what has it among its resources"},
		},
		"a sweep that nothing starts": {
			"config/regions/local/system", "config/system/kustomization.yaml", "  - ../../eventing/sources\n", "", []string{"config/regions/local/system: has no PingSource tick"},
		},
		"a namespace that nobody makes": {
			sandbox, sandbox + "/kustomization.yaml", "  - ../../base/namespace\n", "", []string{sandbox + ": has no Namespace tenant-dev-ana"},
		},
		"a namespace that brokers do not know": {
			"config/tenants/corvo", "config/base/namespace/namespace.yaml", "    onda.run/functions: \"true\"\n", "",
			[]string{`config/base/namespace/namespace.yaml: Namespace tenant-corvo: has not the label onda.run/functions: "true", by which brokers let its functions in`},
		},
		"events from anybody": {
			"config/tenants/corvo", send, "    networking.knative.dev/visibility: cluster-local\n", "", []string{send + `: Service send: is public and serves "events" (ONDA_SERVE), so that anybody can post events to it`},
		},
		"a public name of what takes events": {
			"config/regions/eu-west/stable", "config/components/hosts/hosts.yaml", "name: send-api", "name: campaign",
			[]string{`config/components/hosts/hosts.yaml: DomainMapping api.eu.onda.example: spec.ref: campaign serves "events" (ONDA_SERVE), so that anybody could post events to it`},
		},
		"any number of workers in a pod": {
			"config/tenants/corvo", send, "containerConcurrency: 4", "containerConcurrency: 0", []string{send + `: Service send: spec.template.spec.containerConcurrency: is 0, and it serves "events"`},
		},
		"an event that is handed on once": {
			"eventing", trigger, "retry: 5", "retry: 0", []string{trigger + ": Trigger send-email-send-requested: spec.delivery.retry: is 0"},
		},
		"a Secret that it does not start without": {
			"functions/send", send, "                # Missing, it is said at the first request: see internal/fn/secret.go.\n                optional: true\n", "",
			[]string{send + ": Service send: envFrom.secretRef: no pod starts without the Secret"},
		},
		"domains that nobody looks at": {
			"config/tenants/corvo", "config/components/dedicated/kustomization.yaml", "  - ../domain-check\n", "", []string{"config/tenants/corvo: has no CronJob: compose config/components/domain-check"},
		},
		"a Job without a command": {
			"config/regions/local/system", "config/system/jobs.yaml", "          args: [migrate]\n", "", []string{"config/system/jobs.yaml: Job migrate: runs onda without a command: name one in args"},
		},
		"a Job that reads what is not there": {
			"config/regions/local/system", "config/system/jobs.yaml", "mountPath: /etc/onda/tenants", "mountPath: /etc/tenants", []string{"config/system/jobs.yaml: Job tenants: reads files (--files) where it mounts none"},
		},
		"a kind that nobody looks at": {
			"config/regions/local/system", "config/system/namespace.yaml", "kind: Namespace", "kind: Node", []string{`config/system/namespace.yaml: Node onda-system: nothing is known of apiVersion "v1" with this kind`},
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
		"no DNS label":                   {acme, "name: acme", "name: Acme_Inc", `acme/tenant.yaml: metadata.name is "Acme_Inc": want 1 to 40 of a-z, 0-9 and -`},
		"another directory's name":       {acme, "name: acme", "name: brava", `acme/tenant.yaml: metadata.name is "brava": want "acme", as the file is called`},
		"a misspelt field":               {acme, "placement", "placemnt", `acme/tenant.yaml: [10:3] unknown field "placemnt"`},
		"an unknown region":              {acme, "region: local", "region: moon", acme + ": spec.cell: there is no config/regions/moon/cells/local-1.yaml: name a region and a cell that are there"},
		"an unknown cell":                {acme, "cell: local-1", "cell: local-2", acme + ": spec.cell: there is no config/regions/local/cells/local-2.yaml"},
		"a ring that the region has not": {"config/regions/local/next/kustomization.yaml", "", "", "config/tenants/brava/tenant.yaml: spec.ring: there is no config/regions/local/next: name a ring that the region has"},
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
			switch {
			case c.old == "": // the whole file
				delete(files, c.file)
			case changed == string(files[c.file].Data):
				t.Fatalf("%s has no %q", c.file, c.old)
			default:
				files[c.file].Data = []byte(changed)
			}
			if _, problems := checkTenants(files); !strings.Contains(strings.Join(problems, "\n"), c.want) {
				t.Errorf("said\n%s\nwant\n%s", strings.Join(problems, "\n"), c.want)
			}
		})
	}
}
