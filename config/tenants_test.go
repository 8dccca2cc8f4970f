package config_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	eventingv1 "knative.dev/eventing/pkg/apis/eventing/v1"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
	"sigs.k8s.io/yaml"

	"github.com/onda-run/onda/internal/manifest"
	"github.com/onda-run/onda/internal/tenantfile"
)

// readTenants are the tenants by their names; what is wrong with them is for TestTenants to say.
func readTenants(t *testing.T) map[string]*tenantfile.Tenant {
	t.Helper()
	all, _ := checkTenants(os.DirFS(".."))
	if len(all) == 0 {
		t.Fatal("there are no tenants")
	}
	return all
}

const tenantsList = "config/tenants/kustomization.yaml"

// checkTenants reads a repository's tenants and tells what is wrong with them, each with the file and what to do: what a file says in itself is looked at by
// internal/tenantfile, here it is held to the rest of the blueprint.
func checkTenants(repository fs.FS) (map[string]*tenantfile.Tenant, []string) {
	var problems []string
	wrong := func(file, format string, args ...any) {
		problems = append(problems, file+": "+fmt.Sprintf(format, args...))
	}
	exists := func(name string) bool {
		_, err := fs.Stat(repository, name)
		return err == nil
	}
	sub, err := fs.Sub(repository, "config/tenants")
	if err == nil {
		_, err = tenantfile.ReadAll(sub)
	}
	if err != nil {
		wrong("config/tenants", "%v", err)
	}
	listed, err := listedTenants(repository)
	if err != nil {
		wrong(tenantsList, "%v", err)
	}
	files, err := fs.Glob(repository, "config/tenants/*/tenant.yaml")
	if err != nil {
		wrong("config/tenants", "%v", err)
	}
	all, hosts := map[string]*tenantfile.Tenant{}, map[string]string{}
	for _, file := range files {
		dir := strings.TrimSuffix(file, "/tenant.yaml")
		name := strings.TrimPrefix(dir, "config/tenants/")
		line := name + ".yaml=" + name + "/tenant.yaml"
		if !slices.Contains(listed, line) {
			wrong(tenantsList, "does not list %s, so the Job tenants would not make the tenant: add %s to files", name, line)
		}
		listed = slices.DeleteFunc(listed, func(l string) bool { return l == line })
		f, err := tenantfile.Read(repository, file)
		if err != nil {
			continue // said above
		}
		all[name] = f
		if region := "config/regions/" + f.Spec.Region; !exists(region + "/cells/" + f.Spec.Cell + ".yaml") {
			wrong(file, "spec.cell: there is no %s/cells/%s.yaml: name a region and a cell that are there", region, f.Spec.Cell)
		} else if !exists(region + "/" + f.Spec.Ring + "/kustomization.yaml") {
			wrong(file, "spec.ring: there is no %s/%s: name a ring that the region has", region, f.Spec.Ring)
		}
		if has := exists(dir + "/kustomization.yaml"); has != (f.Spec.Placement == tenantfile.Dedicated) {
			wrong(file, "spec.placement: is %s, and that there is a kustomization.yaml beside it is %t: pooled tenants have none, dedicated ones need one", f.Spec.Placement, has)
		}
		for _, host := range slices.Concat(f.Spec.Hosts.Link, f.Spec.Hosts.Form) {
			if other, taken := hosts[host]; taken {
				wrong(file, "spec.hosts: %s is %s's already", host, other)
			}
			hosts[host] = name
		}
		checkSandbox(repository, dir, f, wrong)
	}
	for _, line := range listed {
		wrong(tenantsList, "lists %s, and there is no such tenant: remove the line", line)
	}
	return all, problems
}

// listedTenants are the files of the ConfigMap for the Job tenants.
func listedTenants(repository fs.FS) ([]string, error) {
	var list struct {
		ConfigMapGenerator []struct {
			Files []string `json:"files"`
		} `json:"configMapGenerator"`
	}
	text, err := fs.ReadFile(repository, tenantsList)
	if err == nil {
		err = yaml.Unmarshal(text, &list)
	}
	if err != nil {
		return nil, err
	}
	if len(list.ConfigMapGenerator) != 1 {
		return nil, errors.New("has not one configMapGenerator, tenants")
	}
	return list.ConfigMapGenerator[0].Files, nil
}

// checkSandbox compares the functions that a sandbox's file names with those that its kustomization has.
func checkSandbox(repository fs.FS, dir string, f *tenantfile.Tenant, wrong func(file, format string, args ...any)) {
	var k struct {
		Resources  []string `json:"resources"`
		Components []string `json:"components"`
	}
	text, err := fs.ReadFile(repository, dir+"/kustomization.yaml")
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	if err == nil {
		err = yaml.Unmarshal(text, &k)
	}
	if err != nil {
		wrong(dir+"/kustomization.yaml", "%v", err)
		return
	}
	sandbox := slices.Contains(k.Components, "../../components/sandbox")
	if sandbox != f.Sandbox() {
		wrong(dir+"/tenant.yaml", "spec.functions: is %v, and that its kustomization.yaml composes the component sandbox is %t: make the two agree", f.Spec.Functions, sandbox)
	}
	var own []string
	for _, r := range k.Resources {
		if name, ok := strings.CutPrefix(r, "../../../functions/"); ok {
			own = append(own, name)
		}
	}
	slices.Sort(own)
	if want := slices.Sorted(slices.Values(f.Spec.Functions)); sandbox && !slices.Equal(own, want) {
		wrong(dir+"/kustomization.yaml", "has the functions [%s], and tenant.yaml names [%s]: make the two agree", strings.Join(own, ", "), strings.Join(want, ", "))
	}
}

// TestTenants holds the tenants' files to the rest of the blueprint.
func TestTenants(t *testing.T) {
	t.Parallel()
	_, problems := checkTenants(os.DirFS(".."))
	for _, p := range problems {
		t.Error(p)
	}
}

// notMounted are the services that send, of an entry, in which a Secret with a tenant's relay is not where send looks for it.
func notMounted(objects []manifest.Object, secret string) (services []string) {
	found := false
	for _, s := range manifest.Of[*servingv1.Service](objects) {
		if s.Name != "send" && !strings.HasPrefix(s.Name, "send-") {
			continue
		}
		pod, ok := s.Spec.Template.Spec.PodSpec, false
		for _, e := range pod.Containers[0].Env {
			for _, m := range pod.Containers[0].VolumeMounts {
				ok = ok || e.Name == "ONDA_SECRETS" && e.Value == m.MountPath && slices.ContainsFunc(pod.Volumes, func(v corev1.Volume) bool { return v.Name == m.Name && projects(v, secret) })
			}
		}
		if found = true; !ok {
			services = append(services, s.Name)
		}
	}
	if !found {
		return []string{"none sends"}
	}
	return services
}

// projects tells whether a volume has a Secret's key url, and pods start without it.
func projects(v corev1.Volume, secret string) bool {
	return v.Projected != nil && slices.ContainsFunc(v.Projected.Sources, func(p corev1.VolumeProjection) bool {
		s := p.Secret
		return s != nil && s.Name == secret && s.Optional != nil && *s.Optional && slices.Equal(s.Items, []corev1.KeyToPath{{Key: "url", Path: secret + "/url"}})
	})
}

// testRelays finds tenants whose relay is not mounted where their mails are sent: those would wait.
func testRelays(t *testing.T, all map[string]rendering) {
	t.Helper()
	for name, f := range readTenants(t) {
		dir := "config/regions/" + f.Spec.Region + "/" + f.Spec.Ring
		if f.Spec.Placement == tenantfile.Dedicated && (!f.Sandbox() || slices.Contains(f.Spec.Functions, "send")) {
			dir = "config/tenants/" + name
		}
		if secret := f.Spec.SMTPSecret; secret != "" {
			for _, s := range notMounted(all[dir].objects, secret) {
				t.Errorf("config/tenants/%s/tenant.yaml: spec.smtpSecret: %s of %s has no Secret %s: see config/components/relays", name, s, dir, secret)
			}
		}
	}
	for secret, want := range map[string]int{"acme-relay": 0, "brava-relay": 0, "corvo-relay": 3} {
		if got := notMounted(all["config/testdata/combinations/relays"].objects, secret); len(got) != want {
			t.Errorf("%s is not mounted in %q, want %d", secret, got, want)
		}
	}
}

// testCreatedTenants checks what onda tenant create writes for a dedicated tenant and for sandboxes in a region of every class of broker: it has that class, passes for an
// entry, has its relay, and leads events to where each function is.
func testCreatedTenants(t *testing.T, all map[string]rendering) {
	t.Helper()
	for component, class := range map[string]string{
		"broker-memory": "MTChannelBasedBroker", "broker-kafka": "Kafka", "broker-nats": "NatsJetStreamBroker", "broker-rabbitmq": "RabbitMQBroker",
	} {
		root := t.TempDir()
		for _, dir := range []string{"config", "eventing", "functions"} {
			if err := os.CopyFS(filepath.Join(root, dir), os.DirFS(filepath.Join("..", dir))); err != nil {
				t.Fatal(err)
			}
		}
		stable := filepath.Join(root, "config/regions/local/stable/kustomization.yaml")
		text, err := os.ReadFile(stable)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(stable, []byte(strings.ReplaceAll(string(text), "broker-memory", component)), 0o600); err != nil {
			t.Fatal(err)
		}
		for name, own := range map[string][]string{"whole": nil, "one": {"campaign"}, "two": {"send", "track"}} {
			n := &tenantfile.Tenant{Spec: tenantfile.Spec{Region: "local", Cell: "local-1", Ring: tenantfile.Stable, State: "active", Placement: tenantfile.Dedicated, Functions: own, SMTPSecret: name + "-relay"}}
			n.Metadata.Name = name
			if _, err := tenantfile.Add(filepath.Join(root, "config/tenants"), n, "onda.test"); err != nil {
				t.Fatal(err)
			}
			t.Run(component+"/"+name, func(t *testing.T) {
				t.Parallel()
				e := entry{dir: "config/tenants/" + name, namespace: "tenant-" + name, tenant: name}
				if own != nil {
					e.pool = "config/regions/local/stable"
				}
				r, err := renderIn(root, e, nil, false)
				if err != nil {
					t.Fatal(err)
				}
				for _, problem := range check(r, all) {
					t.Error(problem)
				}
				sends := own == nil || slices.Contains(own, "send")
				if missing := notMounted(r.objects, name+"-relay"); sends != (len(missing) == 0) {
					t.Errorf("that it sends is %t, and these have not its relay: %q", sends, missing)
				}
				for _, b := range manifest.Of[*eventingv1.Broker](r.objects) {
					if got := b.Annotations[eventingv1.BrokerClassAnnotationKey]; got != class {
						t.Errorf("the broker's class is %q, want %q", got, class)
					}
				}
				triggers := 0
				for _, trigger := range manifest.Of[*eventingv1.Trigger](r.objects) {
					triggers++
					want := e.namespace
					if own != nil && !slices.Contains(own, trigger.Labels["onda.run/function"]) {
						want = ringNamespace(tenantfile.Stable)
					}
					if got := trigger.Spec.Subscriber.Ref.Namespace; got != want {
						t.Errorf("%s leads to a function in %q, want %q", trigger.Name, got, want)
					}
				}
				if triggers == 0 {
					t.Error("there are no triggers")
				}
			})
		}
	}
}
