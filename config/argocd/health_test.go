package argocd_test

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	lua "github.com/yuin/gopher-lua"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	eventingv1 "knative.dev/eventing/pkg/apis/eventing/v1"
	"knative.dev/eventing/pkg/apis/eventing/v1alpha1"
	"knative.dev/eventing/pkg/apis/eventing/v1beta3"
	sourcesv1 "knative.dev/eventing/pkg/apis/sources/v1"
	"knative.dev/pkg/apis"
	duckv1 "knative.dev/pkg/apis/duck/v1"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
	servingv1beta1 "knative.dev/serving/pkg/apis/serving/v1beta1"
	"sigs.k8s.io/yaml"
)

// resource is a Knative object with conditions.
type resource interface {
	duckv1.KRShaped
	SetGeneration(int64)
}

// resources are the kinds that Argo CD is given a health check for, by group_Kind as its settings name them.
var resources = map[string]func() resource{
	"eventing.knative.dev_Broker":       func() resource { return new(eventingv1.Broker) },
	"eventing.knative.dev_EventPolicy":  func() resource { return new(v1alpha1.EventPolicy) },
	"eventing.knative.dev_EventType":    func() resource { return new(v1beta3.EventType) },
	"eventing.knative.dev_Trigger":      func() resource { return new(eventingv1.Trigger) },
	"serving.knative.dev_DomainMapping": func() resource { return new(servingv1beta1.DomainMapping) },
	"serving.knative.dev_Service":       func() resource { return new(servingv1.Service) },
	"sources.knative.dev_PingSource":    func() resource { return new(sourcesv1.PingSource) },
	"sources.knative.dev_SinkBinding":   func() resource { return new(sourcesv1.SinkBinding) },
}

type health struct{ Status, Message string }

// settings are the data of the ConfigMap argocd-cm in settings/, which is all that kubectl kustomize gives: it becomes one patch.
func settings(t *testing.T) map[string]string {
	t.Helper()
	built, err := source{Path: "config/argocd/settings"}.build(repository(t))
	if err != nil {
		t.Fatal(err)
	}
	all := built.Resources()
	if len(all) != 1 || all[0].GetName() != "argocd-cm" || all[0].GetKind() != "ConfigMap" || all[0].GetNamespace() != "argocd" {
		t.Fatalf("settings are %v", all)
	}
	return all[0].GetDataMap()
}

// run runs a health check as Argo CD does: in its interpreter, with only the libraries that it opens and the object in the global obj.
func run(t *testing.T, script string, object any) health {
	t.Helper()
	text, err := json.Marshal(object)
	if err != nil {
		t.Fatal(err)
	}
	var plain any
	if err := json.Unmarshal(text, &plain); err != nil {
		t.Fatal(err)
	}
	l := lua.NewState(lua.Options{SkipOpenLibs: true})
	defer l.Close()
	for name, open := range map[string]lua.LGFunction{lua.BaseLibName: lua.OpenBase, lua.TabLibName: lua.OpenTable} {
		if err := l.CallByParam(lua.P{Fn: l.NewFunction(open), Protect: true}, lua.LString(name)); err != nil {
			t.Fatal(err)
		}
	}
	l.SetGlobal("obj", luaValue(l, plain))
	if err := l.DoString(script); err != nil {
		t.Fatal(err)
	}
	table, ok := l.Get(-1).(*lua.LTable)
	if !ok {
		t.Fatalf("the check gives %s", l.Get(-1))
	}
	return health{table.RawGetString("status").String(), table.RawGetString("message").String()}
}

func luaValue(l *lua.LState, value any) lua.LValue {
	switch value := value.(type) {
	case bool:
		return lua.LBool(value)
	case float64:
		return lua.LNumber(value)
	case string:
		return lua.LString(value)
	case []any:
		table := l.NewTable()
		for _, v := range value {
			table.Append(luaValue(l, v))
		}
		return table
	case map[string]any:
		table := l.NewTable()
		for name, v := range value {
			table.RawSetString(name, luaValue(l, v))
		}
		return table
	}
	return lua.LNil
}

// TestHealth runs each kind's check on statuses that Knative's own code makes.
func TestHealth(t *testing.T) {
	t.Parallel()
	scripts := settings(t)
	for kind, blank := range resources {
		// parts are the conditions that Ready is made of.
		parts := func(r resource) []apis.ConditionType {
			r.GetConditionSet().Manage(r.GetStatus()).InitializeConditions()
			var all []apis.ConditionType
			for _, c := range r.GetStatus().Conditions {
				if c.Type != apis.ConditionReady {
					all = append(all, c.Type)
				}
			}
			if len(all) == 0 {
				t.Fatalf("%s: Ready is made of nothing", kind)
			}
			return all
		}
		ready := func(r resource) {
			for _, part := range parts(r) {
				r.GetConditionSet().Manage(r.GetStatus()).MarkTrue(part)
			}
			r.GetStatus().ObservedGeneration = 3
		}
		for name, c := range map[string]struct {
			change func(resource)
			want   health
		}{
			"just made":      {func(resource) {}, health{"Progressing", "not seen by its controller yet"}},
			"no condition":   {func(r resource) { r.GetStatus().ObservedGeneration = 3 }, health{"Progressing", "not seen by its controller yet"}},
			"begun":          {func(r resource) { parts(r); r.GetStatus().ObservedGeneration = 3 }, health{"Progressing", "Ready is Unknown"}},
			"ready":          {ready, health{"Healthy", "Ready"}},
			"changed since":  {func(r resource) { ready(r); r.SetGeneration(4) }, health{"Progressing", "its controller has not seen the newest spec yet"}},
			"never observed": {func(r resource) { ready(r); r.GetStatus().ObservedGeneration = 0 }, health{"Progressing", "its controller has not seen the newest spec yet"}},
			"failed": {func(r resource) {
				ready(r)
				r.GetConditionSet().Manage(r.GetStatus()).MarkFalse(parts(r)[0], "NotThere", "there is no %s", "onda")
			}, health{"Degraded", "NotThere: there is no onda"}},
			"uncertain again": {func(r resource) {
				ready(r)
				r.GetConditionSet().Manage(r.GetStatus()).MarkUnknown(parts(r)[0], "Asking", "")
			}, health{"Progressing", "Asking"}},
			"failed with a newer spec": {func(r resource) {
				ready(r)
				r.GetConditionSet().Manage(r.GetStatus()).MarkFalse(parts(r)[0], "NotThere", "")
				r.SetGeneration(4)
			}, health{"Progressing", "its controller has not seen the newest spec yet"}},
		} {
			r := blank()
			r.SetGeneration(3)
			c.change(r)
			script := scripts["resource.customizations.health."+kind]
			if got := run(t, script, r); got != c.want {
				t.Errorf("%s, %s: %+v, want %+v", kind, name, got, c.want)
			}
			happy := r.GetConditionSet().Manage(r.GetStatus()).IsHappy() && r.GetStatus().ObservedGeneration == r.GetGeneration()
			if happy != (c.want.Status == "Healthy") {
				t.Errorf("%s, %s: Knative thinks otherwise", kind, name)
			}
		}
		// What Ready does not depend on does not count.
		var odd any
		if err := yaml.Unmarshal([]byte(`{metadata: {generation: 1}, status: {observedGeneration: 1, conditions: [{type: Extra, status: "False"}, {type: Ready, status: "True"}]}}`), &odd); err != nil {
			t.Fatal(err)
		}
		if got := run(t, scripts["resource.customizations.health."+kind], odd); got.Status != "Healthy" {
			t.Errorf("%s: %+v", kind, got)
		}
	}
}

// TestHealthOfAnUnclaimedHost: Knative says of a host that nobody has claimed that another has it, and makes no claim itself unless it is told to.
func TestHealthOfAnUnclaimedHost(t *testing.T) {
	t.Parallel()
	d := &servingv1beta1.DomainMapping{}
	d.Generation, d.Status.ObservedGeneration = 1, 1
	d.Status.InitializeConditions()
	d.Status.MarkDomainClaimNotOwned()
	got := run(t, settings(t)["resource.customizations.health.serving.knative.dev_DomainMapping"], d)
	if got.Status != "Degraded" || !strings.HasPrefix(got.Message, "DomainAlreadyClaimed: ") || !strings.HasSuffix(got.Message, "autocreate-cluster-domain-claims is not true in config-network") {
		t.Errorf("%+v", got)
	}
}

// TestHealthIsComplete finds a check for each Knative kind that is deployed anywhere, components included, and no check for anything else.
func TestHealthIsComplete(t *testing.T) {
	t.Parallel()
	var checked []string
	for key := range settings(t) {
		checked = append(checked, strings.TrimPrefix(key, "resource.customizations.health."))
	}
	slices.Sort(checked)
	if diff := cmp.Diff(slices.Sorted(maps.Keys(resources)), checked); diff != "" {
		t.Errorf("health checks (-kinds +settings)\n%s", diff)
	}
	const without = "eventing.knative.dev_RabbitmqBrokerConfig" // has no status
	for name, text := range repository(t) {
		for body := range strings.SplitSeq(text, "\n---\n") {
			var m metav1.TypeMeta
			if yaml.Unmarshal([]byte(body), &m) != nil {
				continue // not one of Kubernetes' manifests
			}
			group := m.GroupVersionKind().Group
			kind := group + "_" + m.Kind
			if strings.HasSuffix(group, "knative.dev") && !slices.Contains(checked, kind) && kind != without {
				t.Errorf("%s: Argo CD would call any %s healthy", name, kind)
			}
		}
	}
}

// TestParameters turns on what the ApplicationSets' steps need.
func TestParameters(t *testing.T) {
	t.Parallel()
	want := map[string]any{"data": map[string]any{"applicationsetcontroller.enable.progressive.syncs": "true"}}
	var got map[string]any
	if err := yaml.UnmarshalStrict([]byte(repository(t)["config/argocd/settings/steps.yaml"]), &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}
