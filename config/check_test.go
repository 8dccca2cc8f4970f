package config_test

import (
	"cmp"
	"encoding/json"
	"fmt"
	"iter"
	"maps"
	"net/url"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/robfig/cron/v3"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/policy"
	eventingduckv1 "knative.dev/eventing/pkg/apis/duck/v1"
	eventingv1 "knative.dev/eventing/pkg/apis/eventing/v1"
	"knative.dev/eventing/pkg/apis/eventing/v1alpha1"
	"knative.dev/eventing/pkg/apis/eventing/v1beta3"
	sourcesv1 "knative.dev/eventing/pkg/apis/sources/v1"
	duckv1 "knative.dev/pkg/apis/duck/v1"
	"knative.dev/serving/pkg/apis/autoscaling"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
	servingv1beta1 "knative.dev/serving/pkg/apis/serving/v1beta1"

	"github.com/onda-run/onda/internal/fn"
	"github.com/onda-run/onda/internal/manifest"
)

// checker looks at what one entry renders to, with what is in the cluster beside it.
type checker struct {
	rendering
	// pool is what the ring renders to that serves the rest of a sandbox.
	pool      rendering
	near      []manifest.Object
	functions map[string]string            // by service
	routes    map[string]map[string]string // by trigger, the attributes that it asks for in eventing/
	types     map[string]v1beta3.EventTypeSpec
	problems  []string
}

// check tells all that is wrong with an entry, each with the file and what to do.
func check(r rendering, all map[string]rendering) []string {
	c := &checker{rendering: r, functions: functionsOf(all), routes: map[string]map[string]string{}, types: map[string]v1beta3.EventTypeSpec{}}
	switch {
	case r.part:
		c.near = slices.Concat(all["config/regions/local/stable"].objects, all["config/regions/local/system"].objects)
	case r.pool != "":
		c.pool = all[r.pool]
	}
	c.near = append(c.near, c.pool.objects...)
	for _, tr := range manifest.Of[*eventingv1.Trigger](all["eventing"].objects) {
		c.routes[tr.Name] = attributesOf(tr)
	}
	for _, et := range manifest.Of[*v1beta3.EventType](all["eventing"].objects) {
		c.types[et.Name] = et.Spec
	}
	c.namespaces()
	c.complete()
	c.settings()
	c.references()
	c.images()
	c.pods()
	c.bounds()
	c.brokers()
	c.hosts()
	c.policies()
	c.guards()
	c.identities()
	c.quotas()
	if len(c.problems) == 0 { // or the same would be told again
		c.events()
	}
	slices.Sort(c.problems)
	return slices.Compact(c.problems)
}

// functionsOf tells which function a service runs.
func functionsOf(all map[string]rendering) map[string]string {
	functions := map[string]string{}
	for dir, r := range all {
		if name, ok := strings.CutPrefix(dir, "functions/"); ok {
			for _, s := range manifest.Of[*servingv1.Service](r.objects) {
				functions[s.Name] = name
			}
		}
	}
	return functions
}

func (c *checker) add(at fmt.Stringer, format string, args ...any) {
	c.problems = append(c.problems, at.String()+": "+fmt.Sprintf(format, args...))
}

// outside are ConfigMaps that Knative brings along.
func outside() []string { return []string{"knative-eventing/config-br-default-channel"} }

// secrets are those that are made outside Git: what each has, and a sample of it.
func secrets() map[string]map[string]string {
	return map[string]map[string]string{
		"onda":          {"ONDA_DATABASE_URL": "postgres://onda_pool:secret@db.example.com/onda", "ONDA_SMTP_URL": "smtp://onda:secret@relay.example.com:587?tls=starttls"},
		"onda-schedule": {"ONDA_DATABASE_URL": "postgres://onda_schedule:secret@db.example.com/onda"},
		"onda-admin":    {"ONDA_ADMIN_DATABASE_URL": "postgres://onda_admin:secret@db.example.com/onda"},
		"rabbitmq":      {"username": "onda", "password": "secret", "uri": "http://rabbitmq.example.com:15672", "port": "5672"},
	}
}

// namespaces holds every object to the entry's namespace, and finds another's that is named anywhere: kustomize renames where it knows of a name only.
func (c *checker) namespaces() {
	allowed := []string{c.namespace, "", "knative-eventing"}
	if c.pool.namespace != "" {
		allowed = append(allowed, c.pool.namespace)
	}
	for _, o := range c.objects {
		if o.Kind == "Namespace" {
			if o.GetName() != c.namespace {
				c.add(o, "is not %s, which the entry is for", c.namespace)
			}
			if o.GetLabels()["onda.run/functions"] != "true" {
				c.add(o, "has not the label onda.run/functions: \"true\", by which brokers let its functions in: see config/components/network-policy")
			}
			continue
		}
		if o.GetNamespace() != c.namespace {
			c.add(o, "is in namespace %q, not %q: set namespace in %s/kustomization.yaml", o.GetNamespace(), c.namespace, c.dir)
		}
		var v map[string]any
		if err := json.Unmarshal(o.JSON, &v); err != nil {
			c.add(o, "%v", err)
			continue
		}
		walk(v, func(key string, value any) {
			if name, ok := value.(string); ok && key == "namespace" && !slices.Contains(allowed, name) {
				c.add(o, "names the namespace %q in an entry for %q: leave it out, so that it is the object's own", name, c.namespace)
			}
		})
	}
}

func walk(v any, visit func(key string, value any)) {
	switch v := v.(type) {
	case map[string]any:
		for key, value := range v {
			visit(key, value)
			walk(value, visit)
		}
	case []any:
		for _, value := range v {
			walk(value, visit)
		}
	}
}

// complete finds what a ring, a dedicated tenant or a cell's system lacks and nothing in it names: functions that only people come to, what ticks, and what they are in.
func (c *checker) complete() {
	if c.part || c.namespace == "" {
		return
	}
	want := map[string][]string{"Namespace": {c.namespace}}
	system := c.namespace == ringNamespace("system")
	if system {
		want["PingSource"], want["Job"] = []string{"tick"}, []string{"migrate", "tenants"}
		cell := "config/regions/" + path.Base(path.Dir(c.dir)) + "/cells/" + c.setting("ONDA_CELL") + ".yaml"
		if _, err := os.Stat("../" + cell); err != nil && strings.HasPrefix(c.dir, "config/regions/") {
			c.add(c, "ONDA_CELL is %q, and there is no %s: the Job tenants would make nobody; name one that is there", c.setting("ONDA_CELL"), cell)
		}
	}
	if c.pool.namespace == "" {
		for service, function := range c.functions {
			if system == (function == "schedule") {
				want["Service"] = append(want["Service"], service)
			}
		}
	}
	for kind, names := range want {
		for _, name := range names {
			if _, ok := c.find(kind, c.namespace, name); !ok {
				c.add(c, "has no %s %s: list what has it among its resources", kind, name)
			}
		}
	}
}

// find looks for an object. In a part the ConfigMap has no hash.
func (c *checker) find(kind, namespace, name string) (manifest.Object, bool) {
	for _, o := range slices.Concat(c.objects, c.near) {
		found := o.GetName() == name || kind == "ConfigMap" && c.part && strings.HasPrefix(o.GetName(), name+"-")
		if o.Kind == kind && (o.GetNamespace() == namespace || kind == "Namespace") && found {
			return o, true
		}
	}
	return manifest.Object{APIVersion: "v1"}, kind == "ConfigMap" && slices.Contains(outside(), namespace+"/"+name)
}

// needRef tells that an object is named and not there, or by another version.
func (c *checker) needRef(at fmt.Stringer, field, apiVersion, kind, namespace, name string) {
	c.need(at, field, kind, namespace, name)
	if o, ok := c.find(kind, cmp.Or(namespace, c.namespace), name); ok && o.APIVersion != apiVersion {
		c.add(at, "%s: names apiVersion %q of %s %s, which is %s: correct it", field, apiVersion, kind, name, o.APIVersion)
	}
}

// need tells that an object is named and not there, and what could have been meant.
func (c *checker) need(at fmt.Stringer, field, kind, namespace, name string) {
	if kind == "Secret" {
		if _, ok := secrets()[name]; !ok {
			c.add(at, "%s: there is no Secret %s: name one of those that config/README.md lists, or list it there", field, name)
		}
		return
	}
	if namespace == "" {
		namespace = c.namespace
	}
	if _, ok := c.find(kind, namespace, name); ok {
		return
	}
	var names []string
	for _, o := range slices.Concat(c.objects, c.near) {
		if o.Kind == kind && o.GetNamespace() == namespace {
			names = append(names, o.GetName())
		}
	}
	slices.Sort(names)
	if len(names) == 0 {
		c.add(at, "%s: there is no %s %q in namespace %s, nor any other: add it to the entry, or name what is there", field, kind, name, namespace)
		return
	}
	c.add(at, "%s: there is no %s %q in namespace %s: name one of %s", field, kind, name, namespace, strings.Join(names, ", "))
}

func (c *checker) needDestination(at fmt.Stringer, field string, d *duckv1.Destination) {
	switch {
	case d == nil:
		c.add(at, "%s: is not set: what cannot be delivered would be lost; name the Service campaign with the path /dead-letters", field)
	case d.Ref == nil:
		c.add(at, "%s: names no object by ref, so nothing tells whether it is there", field)
	default:
		c.needRef(at, field, d.Ref.APIVersion, d.Ref.Kind, d.Ref.Namespace, d.Ref.Name)
	}
}

// delivery holds how events are handed on to what was decided. Classes of brokers have other defaults, and retry without both fields of backoff has none at all.
func (c *checker) delivery(at fmt.Stringer, d *eventingduckv1.DeliverySpec) {
	if d == nil || d.Retry == nil || d.BackoffPolicy == nil || *d.BackoffPolicy != eventingduckv1.BackoffPolicyExponential || d.BackoffDelay == nil || d.Timeout == nil {
		c.add(at, "spec.delivery: is not explicit: set retry, backoffPolicy: exponential, backoffDelay, timeout and deadLetterSink")
		return
	}
	if *d.Retry < 1 {
		c.add(at, "spec.delivery.retry: is %d: an event that finds its subscriber away would not be handed on again; set 1 or more", *d.Retry)
	}
	sink := d.DeadLetterSink
	c.needDestination(at, "spec.delivery.deadLetterSink", sink)
	if sink != nil && (sink.Ref == nil || sink.Ref.Name != "campaign" || sink.URI == nil || sink.URI.String() != "/dead-letters") {
		c.add(at, "spec.delivery.deadLetterSink: dead letters would not land in Postgres: name the Service campaign with the path /dead-letters")
	}
}

// references follows every name to what it names.
func (c *checker) references() {
	for at, b := range manifest.Of[*eventingv1.Broker](c.objects) {
		if b.Spec.Config != nil {
			c.needRef(at, "spec.config", b.Spec.Config.APIVersion, b.Spec.Config.Kind, b.Spec.Config.Namespace, b.Spec.Config.Name)
		}
		c.delivery(at, b.Spec.Delivery)
	}
	for at, tr := range manifest.Of[*eventingv1.Trigger](c.objects) {
		c.need(at, "spec.broker", "Broker", c.namespace, tr.Spec.Broker)
		c.needDestination(at, "spec.subscriber", &tr.Spec.Subscriber)
		c.delivery(at, tr.Spec.Delivery)
	}
	for at, et := range manifest.Of[*v1beta3.EventType](c.objects) {
		if ref := et.Spec.Reference; ref != nil {
			c.needRef(at, "spec.reference", ref.APIVersion, ref.Kind, ref.Namespace, ref.Name)
		}
	}
	for at, s := range manifest.Of[*sourcesv1.PingSource](c.objects) {
		c.needDestination(at, "spec.sink", &s.Spec.Sink)
	}
	for at, s := range manifest.Of[*sourcesv1.SinkBinding](c.objects) {
		c.needDestination(at, "spec.sink", &s.Spec.Sink)
		selector, err := metav1.LabelSelectorAsSelector(s.Spec.Subject.Selector)
		matches := 0
		for _, svc := range manifest.Of[*servingv1.Service](c.objects) {
			if err == nil && selector.Matches(labels.Set(svc.Labels)) {
				matches++
			}
		}
		if matches == 0 || s.Spec.Subject.Kind != "Service" || s.Spec.Subject.APIVersion != servingv1.SchemeGroupVersion.String() {
			c.add(at, "spec.subject: selects none of the functions, which are Services of %s: select them by a label that they have", servingv1.SchemeGroupVersion)
		}
	}
	for at, p := range manifest.Of[*v1alpha1.EventPolicy](c.objects) {
		for _, to := range p.Spec.To {
			if to.Ref != nil {
				c.needRef(at, "spec.to", to.Ref.APIVersion, to.Ref.Kind, c.namespace, to.Ref.Name)
			}
		}
		for _, from := range p.Spec.From {
			if from.Ref != nil {
				c.needRef(at, "spec.from", from.Ref.APIVersion, from.Ref.Kind, from.Ref.Namespace, from.Ref.Name)
			}
		}
	}
	for at, d := range manifest.Of[*servingv1beta1.DomainMapping](c.objects) {
		c.needRef(at, "spec.ref", d.Spec.Ref.APIVersion, d.Spec.Ref.Kind, d.Spec.Ref.Namespace, d.Spec.Ref.Name)
	}
	for at, r := range manifest.Of[*manifest.RabbitmqBrokerConfig](c.objects) {
		if s := r.Spec.RabbitmqClusterReference.ConnectionSecret; s != nil {
			c.need(at, "spec.rabbitmqClusterReference.connectionSecret", "Secret", r.Namespace, s.Name)
		}
	}
	for _, p := range c.templates() {
		for _, container := range p.spec.Containers {
			for _, from := range container.EnvFrom {
				if from.ConfigMapRef != nil {
					c.need(p.at, "envFrom.configMapRef", "ConfigMap", c.namespace, from.ConfigMapRef.Name)
				}
				if from.SecretRef != nil {
					c.need(p.at, "envFrom.secretRef", "Secret", c.namespace, from.SecretRef.Name)
					if o := from.SecretRef.Optional; !p.job && (o == nil || !*o) {
						c.add(p.at, "envFrom.secretRef: no pod starts without the Secret, and nothing says so to who asks: set optional: true, and the function says it at the first request")
					}
				}
			}
			for _, v := range container.Env {
				if v.ValueFrom != nil && v.ValueFrom.ConfigMapKeyRef != nil {
					c.need(p.at, "env."+v.Name, "ConfigMap", c.namespace, v.ValueFrom.ConfigMapKeyRef.Name)
				}
				if v.ValueFrom != nil && v.ValueFrom.SecretKeyRef != nil {
					c.need(p.at, "env."+v.Name, "Secret", c.namespace, v.ValueFrom.SecretKeyRef.Name)
				}
			}
			for _, setting := range []string{"ONDA_SECRETS", "ONDA_SCANNERS"} {
				dir := manifest.EnvOf(container, setting)
				if dir != "" && !slices.ContainsFunc(container.VolumeMounts, func(m corev1.VolumeMount) bool { return m.MountPath == dir }) {
					c.add(p.at, "env.%s: nothing is mounted at %s: name the mountPath of what it is for", setting, dir)
				}
			}
			for _, m := range container.VolumeMounts {
				if !slices.ContainsFunc(p.spec.Volumes, func(v corev1.Volume) bool { return v.Name == m.Name }) {
					c.add(p.at, "mounts the volume %q, which is not one of its volumes", m.Name)
				}
			}
		}
		for _, v := range p.spec.Volumes {
			needed := func(optional *bool) bool { return optional == nil || !*optional } // else somebody may make it later
			if v.ConfigMap != nil && needed(v.ConfigMap.Optional) {
				c.need(p.at, "volumes.configMap", "ConfigMap", c.namespace, v.ConfigMap.Name)
			}
			if v.Secret != nil && needed(v.Secret.Optional) {
				c.need(p.at, "volumes.secret", "Secret", c.namespace, v.Secret.SecretName)
			}
			if v.Projected == nil {
				continue
			}
			for _, s := range v.Projected.Sources {
				if s.ConfigMap != nil && needed(s.ConfigMap.Optional) {
					c.need(p.at, "volumes.projected.sources.configMap", "ConfigMap", c.namespace, s.ConfigMap.Name)
				}
				if s.Secret != nil && needed(s.Secret.Optional) {
					c.need(p.at, "volumes.projected.sources.secret", "Secret", c.namespace, s.Secret.Name)
				}
			}
		}
	}
}

// template is one of the pods that an entry asks for.
type template struct {
	at   manifest.Object
	meta metav1.ObjectMeta
	spec *corev1.PodSpec
	job  bool
}

func (r rendering) templates() []template {
	var all []template
	for at, s := range manifest.Of[*servingv1.Service](r.objects) {
		all = append(all, template{at: at, meta: s.Spec.Template.ObjectMeta, spec: &s.Spec.Template.Spec.PodSpec})
	}
	for at, j := range r.jobs() {
		all = append(all, template{at: at, meta: j.Template.ObjectMeta, spec: &j.Template.Spec, job: true})
	}
	return all
}

// jobs are those that run once, and those that come again.
func (r rendering) jobs() iter.Seq2[manifest.Object, *batchv1.JobSpec] {
	return func(yield func(manifest.Object, *batchv1.JobSpec) bool) {
		for at, j := range manifest.Of[*batchv1.Job](r.objects) {
			if !yield(at, &j.Spec) {
				return
			}
		}
		for at, j := range manifest.Of[*batchv1.CronJob](r.objects) {
			if !yield(at, &j.Spec.JobTemplate.Spec) {
				return
			}
		}
	}
}

// pods holds every pod to the level restricted, and to what else a function needs not.
func (c *checker) pods() {
	evaluator, err := policy.NewEvaluator(policy.DefaultChecks(), nil)
	if err != nil {
		c.add(c, "%v", err)
		return
	}
	restricted := api.LevelVersion{Level: api.LevelRestricted, Version: api.LatestVersion()}
	for _, p := range c.templates() {
		if result := policy.AggregateCheckResults(evaluator.EvaluatePod(restricted, &p.meta, p.spec)); !result.Allowed {
			c.add(p.at, "its pods are not restricted: %s", result.ForbiddenDetail())
		}
		if p.spec.AutomountServiceAccountToken == nil || *p.spec.AutomountServiceAccountToken {
			c.add(p.at, "mounts a token of the cluster, which it has no use for: set automountServiceAccountToken: false")
		}
		if p.spec.EnableServiceLinks != nil && *p.spec.EnableServiceLinks || p.job && p.spec.EnableServiceLinks == nil {
			c.add(p.at, "gets a variable for every service of its namespace: set enableServiceLinks: false")
		}
		for _, container := range p.spec.Containers {
			if s := container.SecurityContext; s == nil || s.ReadOnlyRootFilesystem == nil || !*s.ReadOnlyRootFilesystem {
				c.add(p.at, "may write where it needs not: set readOnlyRootFilesystem: true")
			}
			if r := container.Resources; r.Requests.Cpu().IsZero() || r.Requests.Memory().IsZero() || r.Limits.Memory().IsZero() {
				c.add(p.at, "set requests of cpu and memory, and a limit of memory")
			}
			// What anybody may connect to: Go's heap may grow to most of the limit before it is collected.
			if most := resource.NewQuantity(fn.MostMemory*4/3, resource.BinarySI); manifest.EnvOf(container, "ONDA_SERVE") == "http" && container.Resources.Limits.Memory().Cmp(*most) < 0 {
				c.add(p.at, "its limit of memory is %s, and with many connections it takes up to %s (internal/fn/connections.go)", container.Resources.Limits.Memory(), most)
			}
		}
	}
	for at, j := range manifest.Of[*batchv1.CronJob](c.objects) {
		if _, err := cron.ParseStandard(j.Spec.Schedule); err != nil {
			c.add(at, "spec.schedule: %v: write it as \"17 5 * * *\"", err)
		}
	}
	for at, j := range c.jobs() {
		if p := j.Template.Spec.RestartPolicy; p != corev1.RestartPolicyOnFailure && p != corev1.RestartPolicyNever {
			c.add(at, "spec.template.spec.restartPolicy: %q is none that a Job may have: set OnFailure", p)
		}
		for _, container := range j.Template.Spec.Containers {
			if len(container.Args) == 0 {
				c.add(at, "runs onda without a command: name one in args")
			}
			if i := slices.Index(container.Args, "--files"); i >= 0 && !slices.ContainsFunc(container.VolumeMounts, func(m corev1.VolumeMount) bool { return slices.Contains(container.Args[i+1:], m.MountPath) }) {
				c.add(at, "reads files (--files) where it mounts none: name one of its mountPath")
			}
		}
		if j.BackoffLimit == nil || j.ActiveDeadlineSeconds == nil {
			c.add(at, "may try for ever: set backoffLimit and activeDeadlineSeconds")
		}
	}
}

// bounds holds every service to be reached by those who may, and to a bound that the budget counts. Knative takes 0 for none, and a misspelt annotation for nothing at all.
func (c *checker) bounds() {
	known := []string{
		autoscaling.ActivationScaleKey, autoscaling.ClassAnnotationKey, autoscaling.InitialScaleAnnotationKey, autoscaling.MaxScaleAnnotationKey, autoscaling.MetricAggregationAlgorithmKey,
		autoscaling.MetricAnnotationKey, autoscaling.MinScaleAnnotationKey, autoscaling.PanicThresholdPercentageAnnotationKey, autoscaling.PanicWindowPercentageAnnotationKey,
		autoscaling.ScaleDownDelayAnnotationKey, autoscaling.ScaleToZeroPodRetentionPeriodKey, autoscaling.TargetAnnotationKey, autoscaling.TargetBurstCapacityKey,
		autoscaling.TargetUtilizationPercentageKey, autoscaling.WindowAnnotationKey,
	}
	for at, s := range manifest.Of[*servingv1.Service](c.objects) {
		var written struct {
			Spec struct {
				Traffic []servingv1.TrafficTarget `json:"traffic"`
			} `json:"spec"`
		}
		if err := json.Unmarshal(at.JSON, &written); err != nil || len(written.Spec.Traffic) != 1 || !*cmp.Or(written.Spec.Traffic[0].LatestRevision, new(bool)) {
			c.add(at, "spec.traffic: is not all for the latest revision, written out: applying it would not end a way back that was taken by kubectl patch")
		}
		local := s.Labels["networking.knative.dev/visibility"] == "cluster-local"
		serve := manifest.Env(s, "ONDA_SERVE")
		if !local && serve != "http" {
			c.add(at, "is public and serves %q (ONDA_SERVE), so that anybody can post events to it: label it networking.knative.dev/visibility: cluster-local, or have it serve http", serve)
		}
		if limit := *s.Spec.Template.Spec.ContainerConcurrency; (limit == 0) != (serve == "http") {
			c.add(at, "spec.template.spec.containerConcurrency: is %d, and it serves %q (ONDA_SERVE): set 4 for events, of which each takes a connection, and 0 for http", limit, serve)
		}
		for _, key := range slices.Sorted(maps.Keys(s.Spec.Template.Annotations)) {
			if strings.HasPrefix(key, autoscaling.GroupName+"/") && !slices.Contains(known, key) {
				c.add(at, "spec.template.metadata.annotations: Knative knows no %s: correct its name", key)
			}
		}
		if maxScale(s) < 1 {
			c.add(at, "spec.template.metadata.annotations: %s is %q, so nothing bounds its pods and their connections to Postgres: set 1 or more", autoscaling.MaxScaleAnnotationKey,
				s.Spec.Template.Annotations[autoscaling.MaxScaleAnnotationKey])
		}
	}
}

// images holds every image to a binary of this repository: built by ko from its sources, or what the entry pins. Who pins one pins all.
func (c *checker) images() {
	var built, pinned []manifest.Object
	for _, p := range c.templates() {
		want := "cmd/onda"
		if !p.job {
			want = "functions/" + c.functions[p.at.GetName()]
		}
		if _, err := os.Stat("../" + want + "/main.go"); err != nil {
			c.add(p.at, "is no service of a function: it is in no functions/*/service.yaml")
			continue
		}
		for _, container := range p.spec.Containers {
			if container.Image == "ko://github.com/onda-run/onda/"+want {
				built = append(built, p.at)
				continue
			}
			name, version, ok := cutImage(container.Image)
			if !ok || path.Base(name) != path.Base(want) || version == "latest" || !strings.Contains(name, "/") {
				c.add(p.at, "image %q is not %s of this repository, nor an image of it at a version: correct the entry's images", container.Image, want)
			}
			pinned = append(pinned, p.at)
		}
	}
	if len(built) > 0 && (len(pinned) > 0 || c.production) {
		for _, at := range built {
			c.add(at, "its image is none of those that the entry pins, and nothing builds it there: add it to images")
		}
	}
}

// cutImage cuts an image's name from its tag or digest.
func cutImage(image string) (name, version string, ok bool) {
	if name, version, ok = strings.Cut(image, "@"); ok {
		return name, version, true
	}
	colon := strings.LastIndex(image, ":")
	if colon < strings.LastIndex(image, "/") || strings.Contains(image, "://") {
		return "", "", false
	}
	return image[:colon], image[colon+1:], true
}

// class is what Onda needs of one of Knative's brokers.
type class struct {
	// config is the kind of the object that says how the broker keeps events.
	config string
	// sink is where events are published to.
	sink string
	// attributes is set where it only knows spec.filter, and spec.filters would let everything through.
	attributes bool
	// pods are the labels of those that events are published to.
	pods labels.Set
	// asks is set where it asks who publishes, and so keeps to an EventPolicy.
	asks bool
	// perBroker and perTrigger are how many pods of its own it has in the namespace.
	perBroker, perTrigger int
}

func classes() map[string]class {
	ingress := labels.Set{"eventing.knative.dev/brokerRole": "ingress"}
	return map[string]class{
		"MTChannelBasedBroker": {config: "ConfigMap", sink: "http://broker-ingress.knative-eventing.svc.cluster.local/{namespace}/onda", pods: ingress, asks: true},
		"Kafka": {
			asks: true, config: "ConfigMap", sink: "http://kafka-broker-ingress.knative-eventing.svc.cluster.local/{namespace}/onda",
			pods: labels.Set{"app.kubernetes.io/component": "kafka-broker-receiver"},
		},
		"NatsJetStreamBroker": {sink: "http://nats-broker-ingress.knative-eventing.svc.cluster.local/{namespace}/onda", pods: ingress, perBroker: 1},
		"RabbitMQBroker": { // an ingress, and for each trigger and its dead letters a dispatcher, as for the broker's own
			perBroker: 2, perTrigger: 2,
			config: "RabbitmqBrokerConfig", sink: "http://onda-broker-ingress.{namespace}.svc.cluster.local", attributes: true,
			pods: labels.Set{"eventing.knative.dev/brokerRole": "ingress", "eventing.knative.dev/broker": "onda"},
		},
	}
}

// brokers holds each broker, its triggers and where functions publish to what its class can do.
func (c *checker) brokers() {
	const asynchronous, parallelism = "messaging.knative.dev/async-handler", "rabbitmq.eventing.knative.dev/parallelism"
	count := 0
	for at, b := range manifest.Of[*eventingv1.Broker](c.objects) {
		count++
		of, ok := classes()[b.Annotations[eventingv1.BrokerClassAnnotationKey]]
		if !ok {
			c.add(at, "its class is %q: compose one of config/components/broker-*", b.Annotations[eventingv1.BrokerClassAnnotationKey])
			continue
		}
		config := ""
		if b.Spec.Config != nil {
			config = b.Spec.Config.Kind
		}
		if config != of.config {
			c.add(at, "spec.config is of kind %q, and its class takes %q: compose one of config/components/broker-*", config, of.config)
		}
		if mt := of.sink == classes()["MTChannelBasedBroker"].sink; mt != (b.Annotations[asynchronous] == "true") {
			c.add(at, "annotation %s: is for MTChannelBasedBroker, where publishers would wait for the slowest subscriber, and for no other", asynchronous)
		}
		if sink := c.setting("K_SINK"); !c.part && sink != of.sink {
			c.add(at, "functions publish to %q (K_SINK), and this broker is at %q", sink, of.sink)
		}
		for at, tr := range manifest.Of[*eventingv1.Trigger](c.objects) {
			if of.attributes && (len(tr.Spec.Filters) > 0 || tr.Spec.Filter == nil || len(tr.Spec.Filter.Attributes) == 0) {
				c.add(at, "this broker's class knows spec.filter.attributes only: write its filter as that in the broker's component")
			}
			n, given := tr.Annotations[parallelism]
			if given != of.attributes {
				c.add(at, "annotation %s: is for RabbitMQBroker, which hands on one event after another without it, and for no other", parallelism)
			}
			if at, service, found := c.service(tr); found && given {
				if most := maxScale(service) * int(*service.Spec.Template.Spec.ContainerConcurrency); atoi(n) < 1 || atoi(n) > most {
					c.add(at, "its trigger %s hands it %s events at once (%s), and all its pods take %d", tr.Name, n, parallelism, most)
				}
			}
		}
	}
	var composed []string
	for _, file := range slices.Sorted(maps.Keys(c.files)) {
		if dir := path.Dir(file); strings.HasPrefix(dir, "config/components/broker-") && path.Base(file) == "kustomization.yaml" {
			composed = append(composed, path.Base(dir))
		}
	}
	if len(composed) > 1 {
		c.add(c, "composes %s: compose exactly one", strings.Join(composed, " and "))
	}
	if publishes := c.setting("K_SINK") != ""; !c.part && (count == 1) != publishes {
		c.add(c, "has %d brokers, and that its functions publish (K_SINK) is %t: compose eventing and one of config/components/broker-*", count, publishes)
	}
}

// service is a trigger's subscriber.
func (c *checker) service(tr *eventingv1.Trigger) (manifest.Object, *servingv1.Service, bool) {
	for at, s := range manifest.Of[*servingv1.Service](slices.Concat(c.objects, c.near)) {
		if ref := tr.Spec.Subscriber.Ref; ref != nil && ref.Name == s.Name && ref.Namespace == s.Namespace {
			return at, s, true
		}
	}
	return manifest.Object{}, nil, false
}

// maxScale is how many pods a service has at most.
func maxScale(s *servingv1.Service) int {
	return atoi(s.Spec.Template.Annotations["autoscaling.knative.dev/max-scale"])
}

// atoi reads a number; what is none counts as 0, which is refused where it is used.
func atoi(text string) int {
	n, err := strconv.Atoi(text)
	if err != nil {
		return 0
	}
	return n
}

// hosts compares names of the outside with where functions tell people to go.
func (c *checker) hosts() {
	mapped := map[string]string{}
	for at, d := range manifest.Of[*servingv1beta1.DomainMapping](c.objects) {
		mapped[d.Name] = d.Spec.Ref.Name
		if strings.HasSuffix(d.Name, ".example.com") && !strings.HasPrefix(c.dir, "config/testdata/") {
			c.add(at, "is the example's name: replace it by one of yours in %s/kustomization.yaml", c.dir)
		}
		for _, s := range manifest.Of[*servingv1.Service](slices.Concat(c.objects, c.near)) { // a host makes public also what is labelled cluster-local
			serve := manifest.Env(s, "ONDA_SERVE")
			if s.Name == d.Spec.Ref.Name && s.Namespace == cmp.Or(d.Spec.Ref.Namespace, c.namespace) && serve != "http" {
				c.add(at, "spec.ref: %s serves %q (ONDA_SERVE), so that anybody could post events to it: name one that serves http", s.Name, serve)
			}
		}
	}
	if len(mapped) == 0 {
		return
	}
	for setting, service := range map[string]string{"ONDA_LINK_URL": "track", "ONDA_FORM_URL": "render-form"} {
		u, err := url.Parse(c.setting(setting))
		if err != nil || mapped[u.Hostname()] != service {
			c.add(c, "%s is %q, and no DomainMapping gives its host to %s", setting, c.setting(setting), service)
		}
	}
}
