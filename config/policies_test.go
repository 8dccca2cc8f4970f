package config_test

import (
	"cmp"
	"maps"
	"net/netip"
	"net/url"
	"os"
	"path"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	eventingv1 "knative.dev/eventing/pkg/apis/eventing/v1"
	"knative.dev/eventing/pkg/apis/eventing/v1alpha1"
	sourcesv1 "knative.dev/eventing/pkg/apis/sources/v1"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"

	"github.com/onda-run/onda/internal/manifest"
)

// policies looks at network policies as a cluster's network would: that they are about every function, and let through what a function needs, which is all
// that the settings name in the cluster, names, Postgres and the relay; and Knative and the ingress in. And that a tenant's own program, which is any other pod of the
// namespace, gets nowhere where it could pass for another tenant.
func (c *checker) policies() {
	var all []*networkingv1.NetworkPolicy
	for _, p := range manifest.Of[*networkingv1.NetworkPolicy](c.objects) {
		all = append(all, p)
	}
	if len(all) == 0 {
		return
	}
	for at, p := range manifest.Of[*networkingv1.NetworkPolicy](c.objects) {
		for _, rule := range p.Spec.Egress {
			for _, to := range rule.To {
				if to.IPBlock == nil {
					continue
				}
				if _, err := netip.ParsePrefix(to.IPBlock.CIDR); err != nil {
					c.add(at, "spec.egress.to.ipBlock.cidr: %v: write it as 10.1.2.0/24", err)
				}
			}
		}
	}
	for _, p := range c.templates() {
		pod := peer{namespace: c.namespace, of: c.labels(), pod: p.meta.Labels}
		if len(selecting(all, networkingv1.PolicyTypeIngress, pod)) == 0 || len(selecting(all, networkingv1.PolicyTypeEgress, pod)) == 0 {
			c.add(p.at, "no network policy is about its pods (labels %v): select them in config/components/network-policy", pod.pod)
			continue
		}
		for _, from := range []peer{{what: "Knative", namespace: "knative-serving"}, {what: "the broker", namespace: "knative-eventing"}, publicIngress(8080)} {
			if !p.job && !enters(all, from, pod) {
				c.add(p.at, "the network policies let nothing in from %s (%s), which has its requests", from.what, from)
			}
		}
		for _, from := range c.outsiders() {
			if enters(all, from, pod) {
				c.add(p.at, "the network policies let %s (%s) in, past Knative and the ingress: see functions-in in config/components/network-policy", from.what, from)
			}
		}
		for _, to := range c.outsiders() {
			if to.port = 8080; leaves(all, pod, to) {
				c.add(p.at, "the network policies let it reach %s (%s), which it has no use for: see functions-out in config/components/network-policy", to.what, to)
			}
		}
		if p.at.GetName() == "schedule" {
			for _, to := range []peer{publicIngress(8081), {what: "Knative", namespace: "knative-serving", port: 8012}} {
				if !leaves(all, pod, to) {
					c.add(p.at, "the network policies do not let it reach %s (%s), by which it wakes functions: add that to config/components/network-policy", to.what, to)
				}
			}
		}
		https := peer{what: "Amazon SES", port: 443}
		if fetches := p.at.GetName() == "bounce"; leaves(all, pod, https) != fetches {
			c.add(p.at, "the network policies let it reach %s (%s): %t, want %t: see bounce-out in config/components/network-policy", https.what, https, !fetches, fetches)
		}
		for _, to := range c.destinations() {
			if !leaves(all, pod, to) {
				c.add(p.at, "the network policies do not let it reach %s (%s): add that to config/components/network-policy", to.what, to)
			}
		}
	}
	c.programs(all)
}

// guards finds what is deployed to a cluster of production, or given to a tenant, with nothing that says what it may do; and where nothing looks at the domains of tenants.
func (c *checker) guards() {
	dedicated := c.tenant != "" && c.pool.namespace == ""
	for _, want := range []struct {
		kind, component string
		needed          bool
	}{
		{"NetworkPolicy", "network-policy", c.production || dedicated},
		{"ResourceQuota", "dedicated", dedicated},
		{"CronJob", "domain-check", dedicated || strings.HasPrefix(c.dir, "config/regions/") && path.Base(c.dir) == "stable"},
	} {
		has := slices.ContainsFunc(c.objects, func(o manifest.Object) bool { return o.Kind == want.kind })
		if want.needed && !has {
			c.add(c, "has no %s: compose config/components/%s", want.kind, want.component)
		}
	}
}

// programs holds a pod that is none of Onda's, and what else is in the cluster, to what they may reach.
func (c *checker) programs(all []*networkingv1.NetworkPolicy) {
	program := peer{what: "a program", namespace: c.namespace, of: c.labels(), pod: labels.Set{"app": "shop"}}
	for _, to := range append(names(), publicIngress(8080), publicIngress(8443), peer{what: "another program", namespace: c.namespace, of: c.labels(), port: 8080}) {
		if !leaves(all, program, to) {
			c.add(c, "the network policies do not let a tenant's own program reach %s (%s): add that to config/components/network-policy", to.what, to)
		}
	}
	for at, b := range manifest.Of[*eventingv1.Broker](c.objects) {
		own := peer{namespace: c.namespace, of: c.labels(), pod: labels.Set{"eventing.knative.dev/broker": b.Name}}
		if server := (peer{what: "its server", port: 5672}); classes()[b.Annotations[eventingv1.BrokerClassAnnotationKey]].perBroker > 0 && !leaves(all, own, server) {
			c.add(at, "the network policies do not let its own pods in the namespace reach %s (%s): see programs-out in config/components/network-policy", server.what, server)
		}
	}
	brokers, elsewhere := c.brokerPods(c.namespace), c.brokerPods(otherRing)
	for _, to := range slices.Concat(elsewhere, []peer{
		{what: "Knative", namespace: "knative-serving", port: 8012},
		publicIngress(8081),
		{what: "another ring", namespace: otherRing, of: c.labels(), port: 8012},
		{what: "Postgres", port: 5432},
		{what: "a relay", port: 587},
	}) {
		if leaves(all, program, to) {
			c.add(c, "the network policies let a tenant's own program reach %s (%s), where it could pass for another tenant: see programs-out in config/components/network-policy", to.what, to)
		}
	}
	function := peer{what: "another ring's function", namespace: otherRing, of: c.labels(), pod: labels.Set{"app.kubernetes.io/part-of": "onda"}}
	outsider := peer{what: "a pod of no ring", namespace: "shop", pod: function.pod}
	for _, broker := range brokers {
		if broker.namespace != c.namespace {
			continue // the cell's: see TestSharedBrokers
		}
		for _, from := range []struct {
			peer
			want bool
		}{{program, true}, {function, true}, {peer{what: "a source", namespace: "knative-eventing"}, true}, {outsider, false}, {peer{what: "another tenant's program", namespace: otherRing, of: c.labels(), pod: program.pod}, false}} {
			if enters(all, from.peer, broker) != from.want {
				c.add(c, "the network policies let %s (%s) reach the broker's ingress: %t, want %t: see broker-in in config/components/network-policy", from.what, from, !from.want, from.want)
			}
		}
	}
}

// TestSharedBrokers holds what a cell adds to knative-eventing to who may publish on a broker that namespaces share: functions and sources.
func TestSharedBrokers(t *testing.T) {
	t.Parallel()
	const file = "config/components/network-policy/broker-in.yaml"
	text, err := os.ReadFile("../" + file)
	if err != nil {
		t.Fatal(err)
	}
	objects, err := manifest.Read(file, text)
	if err != nil {
		t.Fatal(err)
	}
	var all []*networkingv1.NetworkPolicy
	for _, p := range manifest.Of[*networkingv1.NetworkPolicy](objects) {
		all = append(all, p)
	}
	rings, function := labels.Set{"onda.run/functions": "true"}, labels.Set{"app.kubernetes.io/part-of": "onda"}
	for class, of := range classes() {
		if strings.Contains(of.sink, ".{namespace}.") {
			continue
		}
		broker := peer{namespace: "knative-eventing", pod: of.pods, port: 8080}
		for name, from := range map[string]struct {
			peer
			want bool
		}{
			"a function":                   {peer{namespace: "onda", of: rings, pod: function}, true},
			"a source":                     {peer{namespace: "knative-eventing"}, true},
			"a dedicated tenant's program": {peer{namespace: "tenant-corvo", of: rings, pod: labels.Set{"app": "shop"}}, false},
			"a pod of no ring":             {peer{namespace: "shop", pod: function}, false},
		} {
			if enters(all, from.peer, broker) != from.want {
				t.Errorf("%s reaches the ingress of %s: %t, want %t", name, class, !from.want, from.want)
			}
		}
	}
}

// otherRing is another namespace with functions.
const otherRing = "onda-elsewhere"

// peer is one end of a connection: a pod of a namespace, or, without one, an address outside the cluster. port is the pod's, where it is asked.
type peer struct {
	what, namespace string
	of, pod         labels.Set // the namespace's labels, and the pod's
	port            int
	udp             bool // else TCP
}

func (p peer) String() string {
	if p.namespace == "" {
		return "outside, port " + itoa(p.port)
	}
	if p.port == 0 {
		return "namespace " + p.namespace
	}
	if p.udp {
		return "namespace " + p.namespace + ", port " + itoa(p.port) + " of UDP"
	}
	return "namespace " + p.namespace + ", port " + itoa(p.port)
}

// names are the cluster's DNS.
func names() []peer {
	return []peer{{what: "names", namespace: "kube-system", port: 53, udp: true}, {what: "names", namespace: "kube-system", port: 53}}
}

// outsiders are pods that have nothing to do with a function but by way of Knative.
func (c *checker) outsiders() []peer {
	program := labels.Set{"app": "shop"}
	return []peer{
		{what: "a pod of no ring", namespace: "shop", pod: program},
		{what: "a tenant's own program", namespace: c.namespace, of: c.labels(), pod: program},
		{what: "another ring's function", namespace: otherRing, of: c.labels(), pod: labels.Set{"app.kubernetes.io/part-of": "onda"}},
	}
}

// publicIngress is a port of the pods of the cluster's ingress.
func publicIngress(port int) peer {
	return peer{what: "the ingress", namespace: "ingress", of: labels.Set{"onda.run/ingress": "true"}, port: port}
}

// labels are those of the entry's namespace.
func (c *checker) labels() labels.Set {
	for ns := range manifest.Of[*corev1.Namespace](c.objects) {
		return ns.GetLabels()
	}
	return nil
}

// destinations are those of the settings, and what each function needs besides.
func (c *checker) destinations() []peer {
	all := append(names(), peer{what: "Postgres", port: 5432}, peer{what: "a relay", port: 25}, peer{what: "a relay", port: 465}, peer{what: "a relay", port: 587})
	for _, setting := range []string{"OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT"} {
		u, err := url.Parse(c.setting(setting))
		if err != nil {
			c.add(c, "%s: %v", setting, err)
		}
		if err != nil || u.Host == "" {
			continue
		}
		to := peer{what: setting, port: atoi(cmp.Or(u.Port(), map[string]string{"http": "80", "https": "443"}[u.Scheme]))}
		if host, ok := strings.CutSuffix(u.Hostname(), ".svc.cluster.local"); ok {
			_, to.namespace, _ = strings.Cut(host, ".")
		}
		all = append(all, to)
	}
	// A doorbell goes to the broker of the tenant's ring, whichever ring has the request.
	return append(all, append(c.brokerPods(c.namespace), c.brokerPods(otherRing)...)...)
}

// brokerPods are where K_SINK leads for a tenant of a namespace.
func (c *checker) brokerPods(namespace string) []peer {
	for _, of := range classes() {
		if of.sink != c.setting("K_SINK") {
			continue
		}
		p := peer{what: "K_SINK", pod: of.pods, port: 8080}
		host, _, _ := strings.Cut(strings.TrimPrefix(strings.ReplaceAll(of.sink, "{namespace}", namespace), "http://"), ".svc.")
		if _, p.namespace, _ = strings.Cut(host, "."); p.namespace == namespace {
			p.of = c.labels()
		}
		return []peer{p}
	}
	return nil
}

// selecting are the policies of a type that are about a pod.
func selecting(all []*networkingv1.NetworkPolicy, of networkingv1.PolicyType, pod peer) []*networkingv1.NetworkPolicy {
	var found []*networkingv1.NetworkPolicy
	for _, p := range all {
		if p.Namespace == pod.namespace && slices.Contains(p.Spec.PolicyTypes, of) && matches(&p.Spec.PodSelector, pod.pod) {
			found = append(found, p)
		}
	}
	return found
}

func matches(selector *metav1.LabelSelector, set labels.Set) bool {
	s, err := metav1.LabelSelectorAsSelector(selector)
	return err == nil && s.Matches(set)
}

// enters tells whether policies let a connection into a pod: any does, or none is about it.
func enters(all []*networkingv1.NetworkPolicy, from, to peer) bool {
	about := selecting(all, networkingv1.PolicyTypeIngress, to)
	return len(about) == 0 || slices.ContainsFunc(about, func(p *networkingv1.NetworkPolicy) bool {
		return slices.ContainsFunc(p.Spec.Ingress, func(rule networkingv1.NetworkPolicyIngressRule) bool {
			return to.onPort(rule.Ports) && from.isOf(rule.From, p.Namespace)
		})
	})
}

// leaves tells whether policies let a connection out of a pod.
func leaves(all []*networkingv1.NetworkPolicy, from, to peer) bool {
	about := selecting(all, networkingv1.PolicyTypeEgress, from)
	return len(about) == 0 || slices.ContainsFunc(about, func(p *networkingv1.NetworkPolicy) bool {
		return slices.ContainsFunc(p.Spec.Egress, func(rule networkingv1.NetworkPolicyEgressRule) bool {
			return to.onPort(rule.Ports) && to.isOf(rule.To, p.Namespace)
		})
	})
}

// onPort tells whether a rule is about a peer's port: of TCP where it says no more.
func (p peer) onPort(ports []networkingv1.NetworkPolicyPort) bool {
	return len(ports) == 0 || slices.ContainsFunc(ports, func(of networkingv1.NetworkPolicyPort) bool {
		udp := of.Protocol != nil && *of.Protocol == corev1.ProtocolUDP
		return of.Port != nil && of.Port.IntValue() == p.port && udp == p.udp
	})
}

// isOf tells whether a policy's peers, as seen from its namespace, have this one among them.
func (p peer) isOf(peers []networkingv1.NetworkPolicyPeer, own string) bool {
	of := labels.Set{"kubernetes.io/metadata.name": p.namespace}
	maps.Copy(of, p.of)
	return len(peers) == 0 || slices.ContainsFunc(peers, func(rule networkingv1.NetworkPolicyPeer) bool {
		if rule.IPBlock != nil || p.namespace == "" {
			return rule.IPBlock != nil && p.namespace == ""
		}
		if rule.NamespaceSelector == nil && p.namespace != own || rule.NamespaceSelector != nil && !matches(rule.NamespaceSelector, of) {
			return false
		}
		return rule.PodSelector == nil || matches(rule.PodSelector, p.pod)
	})
}

// identities looks at event policies as a broker does that asks who publishes: it must know every function, by what a SinkBinding to it gives them.
func (c *checker) identities() {
	for at, b := range manifest.Of[*eventingv1.Broker](c.objects) {
		class := b.Annotations[eventingv1.BrokerClassAnnotationKey]
		if slices.ContainsFunc(c.objects, func(o manifest.Object) bool { return o.Kind == "EventPolicy" }) && !classes()[class].asks {
			c.add(at, "has an EventPolicy, and its class, %s, asks nobody who publishes: leave config/components/event-policy out", class)
		}
	}
	for at, p := range manifest.Of[*v1alpha1.EventPolicy](c.objects) {
		for _, to := range p.Spec.To {
			if to.Ref == nil || to.Ref.Kind != "Broker" {
				continue
			}
			for _, s := range manifest.Of[*servingv1.Service](c.objects) {
				if !c.knows(p, to.Ref.Name, s) {
					c.add(at, "lets no event of %s in, which no SinkBinding to %s in spec.from gives an identity: select it there", s.Name, to.Ref.Name)
				}
			}
		}
	}
}

func (c *checker) knows(p *v1alpha1.EventPolicy, broker string, s *servingv1.Service) bool {
	for _, b := range manifest.Of[*sourcesv1.SinkBinding](c.objects) {
		named := slices.ContainsFunc(p.Spec.From, func(from v1alpha1.EventPolicySpecFrom) bool {
			return from.Ref != nil && from.Ref.Kind == "SinkBinding" && from.Ref.Name == b.Name && from.Ref.Namespace == b.Namespace
		})
		sink, subject := b.Spec.Sink.Ref, b.Spec.Subject
		if named && sink != nil && sink.Kind == "Broker" && sink.Name == broker && subject.Kind == "Service" && subject.Selector != nil && matches(subject.Selector, s.Labels) {
			return true
		}
	}
	return false
}

// quotas compares a namespace's bounds with what is asked for there at full scale: by functions, Knative's sidecars, and what a broker has of its own.
func (c *checker) quotas() {
	brokers := 0 // pods
	for _, b := range manifest.Of[*eventingv1.Broker](c.objects) {
		of := classes()[b.Annotations[eventingv1.BrokerClassAnnotationKey]]
		brokers += of.perBroker
		for range manifest.Of[*eventingv1.Trigger](c.objects) {
			brokers += of.perTrigger
		}
	}
	var sidecar corev1.ResourceList
	for _, l := range manifest.Of[*corev1.LimitRange](c.objects) {
		for _, item := range l.Spec.Limits {
			if item.Type == corev1.LimitTypeContainer {
				sidecar = item.DefaultRequest
			}
		}
	}
	for at, q := range manifest.Of[*corev1.ResourceQuota](c.objects) {
		for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
			bound, bounded := q.Spec.Hard["requests."+name]
			if !bounded {
				continue
			}
			own, ok := sidecar[name]
			if name == corev1.ResourceCPU {
				own = resource.MustParse("25m") // as Knative is installed; it asks for no memory
			} else if !ok {
				c.add(at, "bounds requests.%s, and Knative's sidecar asks for none: give a defaultRequest of %s in a LimitRange, or no pod starts", name, name)
			}
			var sum resource.Quantity
			for range brokers {
				sum.Add(map[corev1.ResourceName]resource.Quantity{corev1.ResourceCPU: resource.MustParse("50m"), corev1.ResourceMemory: resource.MustParse("64Mi")}[name])
			}
			for _, s := range manifest.Of[*servingv1.Service](c.objects) {
				for range maxScale(s) {
					sum.Add(own)
					sum.Add(s.Spec.Template.Spec.Containers[0].Resources.Requests[name])
				}
			}
			if sum.Cmp(bound) > 0 {
				c.add(at, "bounds requests.%s to %s, and at full scale the functions and the broker ask for %s: raise it, or lower max-scale", name, bound.String(), sum.String())
			}
		}
		pods := brokers
		for _, s := range manifest.Of[*servingv1.Service](c.objects) {
			pods += maxScale(s)
		}
		if bound, ok := q.Spec.Hard[corev1.ResourcePods]; ok && bound.CmpInt64(int64(pods)) < 0 {
			c.add(at, "allows %s pods, and at full scale the functions and the broker have %d: raise it, or lower max-scale", bound.String(), pods)
		}
	}
}
