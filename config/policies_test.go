package config_test

import (
	"net/url"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"knative.dev/eventing/pkg/apis/eventing/v1alpha1"
	sourcesv1 "knative.dev/eventing/pkg/apis/sources/v1"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"

	"github.com/onda-run/onda/internal/manifest"
)

// policies looks at network policies as a cluster's network would: that they are about every function, and let through what a function needs, which is all
// that the settings name in the cluster, names, Postgres and the relay; and Knative and the ingress in.
func (c *checker) policies() {
	var all []*networkingv1.NetworkPolicy
	for _, p := range manifest.Of[*networkingv1.NetworkPolicy](c.objects) {
		all = append(all, p)
	}
	if len(all) == 0 {
		return
	}
	for at, s := range manifest.Of[*servingv1.Service](c.objects) {
		pod := labels.Set(s.Spec.Template.Labels)
		in, out := selecting(all, networkingv1.PolicyTypeIngress, pod), selecting(all, networkingv1.PolicyTypeEgress, pod)
		if len(in) == 0 || len(out) == 0 {
			c.add(at, "no network policy is about its pods (labels %v): select them in config/components/network-policy", pod)
			continue
		}
		for _, from := range []string{"knative-serving", "knative-eventing"} {
			if !slices.ContainsFunc(in, func(p *networkingv1.NetworkPolicy) bool { return c.entersFrom(p, from) }) {
				c.add(at, "the network policies let nothing in from %s, which has its requests", from)
			}
		}
		for _, to := range c.destinations() {
			if !slices.ContainsFunc(out, func(p *networkingv1.NetworkPolicy) bool { return c.leavesTo(p, to) }) {
				c.add(at, "the network policies do not let it reach %s (%s): add that to config/components/network-policy", to.what, to)
			}
		}
	}
}

// destination is where a function has to get: a namespace, or outside.
type destination struct {
	what, namespace string
	port            int
}

func (d destination) String() string {
	if d.namespace == "" {
		return "outside, port " + itoa(d.port)
	}
	return "namespace " + d.namespace + ", port " + itoa(d.port)
}

// destinations are those of the settings, and what each function needs besides.
func (c *checker) destinations() []destination {
	all := []destination{
		{"names", "kube-system", 53}, {"Postgres", "", 5432}, {"a relay", "", 25}, {"a relay", "", 465}, {"a relay", "", 587},
	}
	for _, setting := range []string{"K_SINK", "OTEL_EXPORTER_OTLP_ENDPOINT"} {
		u, err := url.Parse(strings.ReplaceAll(c.setting(setting), "{namespace}", c.namespace))
		if err != nil {
			c.add(c, "%s: %v", setting, err)
			continue
		}
		if host, ok := strings.CutSuffix(u.Hostname(), ".svc.cluster.local"); ok {
			d := destination{what: setting, port: 80}
			_, d.namespace, _ = strings.Cut(host, ".")
			if u.Port() != "" {
				d.port = atoi(u.Port())
			}
			all = append(all, d)
		}
	}
	return all
}

func selecting(all []*networkingv1.NetworkPolicy, of networkingv1.PolicyType, pod labels.Set) []*networkingv1.NetworkPolicy {
	var found []*networkingv1.NetworkPolicy
	for _, p := range all {
		if slices.Contains(p.Spec.PolicyTypes, of) && matches(&p.Spec.PodSelector, pod) {
			found = append(found, p)
		}
	}
	return found
}

func matches(selector *metav1.LabelSelector, set labels.Set) bool {
	s, err := metav1.LabelSelectorAsSelector(selector)
	return err == nil && s.Matches(set)
}

func (c *checker) entersFrom(p *networkingv1.NetworkPolicy, namespace string) bool {
	for _, rule := range p.Spec.Ingress {
		if len(rule.Ports) == 0 && c.peers(rule.From, namespace) {
			return true
		}
	}
	return false
}

func (c *checker) leavesTo(p *networkingv1.NetworkPolicy, to destination) bool {
	for _, rule := range p.Spec.Egress {
		open := len(rule.Ports) == 0
		for _, port := range rule.Ports {
			open = open || port.Port != nil && port.Port.IntValue() == to.port
		}
		if open && c.peers(rule.To, to.namespace) {
			return true
		}
	}
	return false
}

// peers tells whether a rule is about a namespace, or, without one, about what is outside.
func (c *checker) peers(peers []networkingv1.NetworkPolicyPeer, namespace string) bool {
	set := labels.Set{"kubernetes.io/metadata.name": namespace}
	return len(peers) == 0 || slices.ContainsFunc(peers, func(p networkingv1.NetworkPolicyPeer) bool {
		switch {
		case p.IPBlock != nil:
			return namespace == ""
		case p.NamespaceSelector == nil:
			return namespace == c.namespace
		}
		return namespace != "" && matches(p.NamespaceSelector, set)
	})
}

// identities looks at event policies as a broker does that asks who publishes: it must know every function, by what a SinkBinding to it gives them.
func (c *checker) identities() {
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

// quotas compares a namespace's bounds with what its functions ask for at full scale, Knative's sidecar included.
func (c *checker) quotas() {
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
			for _, s := range manifest.Of[*servingv1.Service](c.objects) {
				for range maxScale(s) {
					sum.Add(own)
					sum.Add(s.Spec.Template.Spec.Containers[0].Resources.Requests[name])
				}
			}
			if sum.Cmp(bound) > 0 {
				c.add(at, "bounds requests.%s to %s, and at full scale the functions ask for %s: raise it, or lower max-scale", name, bound.String(), sum.String())
			}
		}
		pods := 0
		for _, s := range manifest.Of[*servingv1.Service](c.objects) {
			pods += maxScale(s)
		}
		if bound, ok := q.Spec.Hard[corev1.ResourcePods]; ok && bound.CmpInt64(int64(pods)) < 0 {
			c.add(at, "allows %s pods, and at full scale the functions have %d: raise it, or lower max-scale", bound.String(), pods)
		}
	}
}
