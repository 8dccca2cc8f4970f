// Package manifest reads Kubernetes manifests as a cluster would take them, without one: strictly into their types, as the API server does, then through the
// code of Knative's own webhooks, which fills in what is left out and looks for what is wrong. It links Kubernetes and Knative: it is for tests only.
package manifest

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	eventingv1 "knative.dev/eventing/pkg/apis/eventing/v1"
	"knative.dev/eventing/pkg/apis/eventing/v1alpha1"
	"knative.dev/eventing/pkg/apis/eventing/v1beta3"
	"knative.dev/eventing/pkg/apis/feature"
	sourcesv1 "knative.dev/eventing/pkg/apis/sources/v1"
	"knative.dev/pkg/apis"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
	servingv1beta1 "knative.dev/serving/pkg/apis/serving/v1beta1"
	"sigs.k8s.io/json"
	"sigs.k8s.io/yaml"
)

// Object is a manifest in its type, such as *servingv1.Service, as it is once a cluster has taken it.
type Object struct {
	metav1.Object
	// File is where it is written, APIVersion and Kind what it is.
	File, APIVersion, Kind string
	// JSON is the document.
	JSON []byte
}

// String tells where the object is, as messages begin.
func (o Object) String() string {
	return o.File + ": " + o.Kind + " " + o.GetName()
}

// Of yields the objects of one type.
func Of[T metav1.Object](objects []Object) iter.Seq2[Object, T] {
	return func(yield func(Object, T) bool) {
		for _, o := range objects {
			if typed, ok := o.Object.(T); ok && !yield(o, typed) {
				return
			}
		}
	}
}

// types are the kinds that Onda has. A kind that is missing here is refused: nobody would have looked at it.
func types() map[string]func() metav1.Object {
	return map[string]func() metav1.Object{
		"v1 ConfigMap":                                       func() metav1.Object { return new(corev1.ConfigMap) },
		"v1 LimitRange":                                      func() metav1.Object { return new(corev1.LimitRange) },
		"v1 Namespace":                                       func() metav1.Object { return new(corev1.Namespace) },
		"v1 ResourceQuota":                                   func() metav1.Object { return new(corev1.ResourceQuota) },
		"batch/v1 Job":                                       func() metav1.Object { return new(batchv1.Job) },
		"batch/v1 CronJob":                                   func() metav1.Object { return new(batchv1.CronJob) },
		"networking.k8s.io/v1 NetworkPolicy":                 func() metav1.Object { return new(networkingv1.NetworkPolicy) },
		"serving.knative.dev/v1 Service":                     func() metav1.Object { return new(servingv1.Service) },
		"serving.knative.dev/v1beta1 DomainMapping":          func() metav1.Object { return new(servingv1beta1.DomainMapping) },
		"eventing.knative.dev/v1 Broker":                     func() metav1.Object { return new(eventingv1.Broker) },
		"eventing.knative.dev/v1 Trigger":                    func() metav1.Object { return new(eventingv1.Trigger) },
		"eventing.knative.dev/v1alpha1 EventPolicy":          func() metav1.Object { return new(v1alpha1.EventPolicy) },
		"eventing.knative.dev/v1beta3 EventType":             func() metav1.Object { return new(v1beta3.EventType) },
		"eventing.knative.dev/v1alpha1 RabbitmqBrokerConfig": func() metav1.Object { return new(RabbitmqBrokerConfig) },
		"sources.knative.dev/v1 PingSource":                  func() metav1.Object { return new(sourcesv1.PingSource) },
		"sources.knative.dev/v1 SinkBinding":                 func() metav1.Object { return new(sourcesv1.SinkBinding) },
	}
}

// Read takes every document of a file. What is wrong is told all at once; the objects that are right are given all the same.
func Read(file string, text []byte) ([]Object, error) {
	var objects []Object
	var errs []error
	for body := range strings.SplitSeq("\n"+string(text), "\n---\n") {
		if strings.TrimSpace(body) == "" {
			continue
		}
		o, err := read(file, []byte(body))
		if err != nil {
			errs = append(errs, err)
			continue
		}
		objects = append(objects, o)
	}
	return objects, errors.Join(errs...)
}

func read(file string, text []byte) (Object, error) {
	var head struct {
		APIVersion string `json:"apiVersion"`
		Kind       string `json:"kind"`
		Metadata   struct {
			Name string `json:"name"`
		} `json:"metadata"`
	}
	asJSON, err := yaml.YAMLToJSONStrict(text)
	if err != nil {
		return Object{}, fmt.Errorf("%s: %w", file, err)
	}
	if err := json.UnmarshalCaseSensitivePreserveInts(asJSON, &head); err != nil {
		return Object{}, fmt.Errorf("%s: %w", file, err)
	}
	at := file + ": " + head.Kind + " " + head.Metadata.Name
	if head.Metadata.Name == "" {
		return Object{}, fmt.Errorf("%s: has no metadata.name: give it one", at)
	}
	if wrong := validation.IsDNS1123Subdomain(head.Metadata.Name); len(wrong) > 0 {
		return Object{}, fmt.Errorf("%s: metadata.name is %q: %s", at, head.Metadata.Name, strings.Join(wrong, ", "))
	}
	of, ok := types()[head.APIVersion+" "+head.Kind]
	if !ok {
		return Object{}, fmt.Errorf("%s: nothing is known of apiVersion %q with this kind: correct it, or add the type to internal/manifest", at, head.APIVersion)
	}
	o := Object{File: file, APIVersion: head.APIVersion, Kind: head.Kind, Object: of(), JSON: asJSON}
	// As the API server reads: the case of a field's name counts.
	wrong, err := json.UnmarshalStrict(asJSON, o.Object)
	if err != nil {
		return Object{}, fmt.Errorf("%s: %w", at, err)
	}
	if len(wrong) > 0 {
		return Object{}, fmt.Errorf("%s: %w: correct its name or its place", at, errors.Join(wrong...))
	}
	return o, errors.Join(job(o), webhook(o))
}

// job finds what the API server refuses of a Job's pods, whose types say nothing of it.
func job(o Object) error {
	var spec batchv1.JobSpec
	switch j := o.Object.(type) {
	case *batchv1.Job:
		spec = j.Spec
	case *batchv1.CronJob:
		spec = j.Spec.JobTemplate.Spec
		if p := j.Spec.ConcurrencyPolicy; p != "" && !slices.Contains([]batchv1.ConcurrencyPolicy{batchv1.AllowConcurrent, batchv1.ForbidConcurrent, batchv1.ReplaceConcurrent}, p) {
			return fmt.Errorf("%s: spec.concurrencyPolicy: %q is none of Allow, Forbid, Replace", o, p)
		}
	default:
		return nil
	}
	if len(spec.Template.Spec.Containers) == 0 {
		return fmt.Errorf("%s: its pods have no containers: give them one", o)
	}
	for _, c := range spec.Template.Spec.Containers {
		if c.Name == "" || c.Image == "" {
			return fmt.Errorf("%s: the container %q has the image %q: give it both", o, c.Name, c.Image)
		}
	}
	return nil
}

// webhook does what Knative's webhook does with an object that is made, in a cluster with Knative's own defaults. Warnings count.
func webhook(o Object) error {
	flags := map[string]string{}
	if o.Kind == "EventPolicy" { // is refused where the feature that it is for is off
		flags[feature.OIDCAuthentication] = "enabled"
	}
	features, err := feature.NewFlagsConfigFromMap(flags)
	if err != nil {
		return fmt.Errorf("%s: %w", o, err)
	}
	ctx := feature.ToContext(apis.WithinCreate(context.Background()), features)
	if d, ok := o.Object.(apis.Defaultable); ok {
		d.SetDefaults(ctx)
	}
	if v, ok := o.Object.(apis.Validatable); ok {
		if err := v.Validate(ctx); err != nil {
			return fmt.Errorf("%s: %w", o, err)
		}
	}
	return nil
}

// Env is the value of a variable that a Service sets itself; empty where it does not.
func Env(s *servingv1.Service, name string) string {
	return EnvOf(s.Spec.Template.Spec.Containers[0], name)
}

// EnvOf is the value of a variable that a container is given by name; empty where it is not.
func EnvOf(c corev1.Container, name string) string {
	if i := slices.IndexFunc(c.Env, func(v corev1.EnvVar) bool { return v.Name == name }); i >= 0 {
		return c.Env[i].Value
	}
	return ""
}
