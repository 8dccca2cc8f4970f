package e2e

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"
)

const (
	argoNamespace = "argocd"
	cellName      = "local-1"
	cellSystem    = cellName + "-system"
	cellNext      = cellName + "-next"
	cellStable    = cellName + "-stable"
)

// argoCD is a real Argo CD: its controllers as processes of this machine, with what they keep in the cluster, and a Git repository on this machine that they deploy from.
type argoCD struct {
	*test
	sources string // of Argo CD
	bin     string
	repo    string // a checkout whose branch main is deployed
	server  string // the cell's
}

// application is what the tests look at of one of Argo CD's Applications.
type application struct {
	Metadata struct {
		Name              string
		Annotations       map[string]string
		DeletionTimestamp *time.Time
	}
	Status struct {
		Sync struct {
			Status, Revision string
			Revisions        []string
		}
		Health     struct{ Status string }
		Conditions []struct{ Type, Message string }
		Resources  []struct {
			Kind, Name, Status string
			Health             *struct{ Status, Message string }
		}
		OperationState *struct {
			Phase, Message string
			StartedAt      time.Time
			FinishedAt     *time.Time
			RetryCount     int
		}
		ReconciledAt *time.Time
	}
}

// revision is the commit that an Application is compared with: its first source's.
func (a application) revision() string {
	if len(a.Status.Sync.Revisions) > 0 {
		return a.Status.Sync.Revisions[0]
	}
	return a.Status.Sync.Revision
}

func (a application) phase() string {
	if a.Status.OperationState == nil {
		return "none"
	}
	return a.Status.OperationState.Phase
}

func (a application) started() time.Time {
	if a.Status.OperationState == nil {
		return time.Time{}
	}
	return a.Status.OperationState.StartedAt
}

// String tells its state, and of what is not well, why.
func (a application) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s, %s, at %.7s, sync %s", a.Metadata.Name, a.Status.Sync.Status, a.Status.Health.Status, a.revision(), a.phase())
	if o := a.Status.OperationState; o != nil {
		fmt.Fprintf(&b, " (%d retries): %s", o.RetryCount, o.Message)
	}
	for _, c := range a.Status.Conditions {
		fmt.Fprintf(&b, "\n    %s: %s", c.Type, c.Message)
	}
	for _, r := range a.Status.Resources {
		if r.Health != nil && r.Health.Status != "Healthy" {
			fmt.Fprintf(&b, "\n    %s %s: %s, %s: %s", r.Kind, r.Name, r.Status, r.Health.Status, r.Health.Message)
		} else if r.Status != "Synced" {
			fmt.Fprintf(&b, "\n    %s %s: %s", r.Kind, r.Name, r.Status)
		}
	}
	return b.String()
}

// argoKinds are what Argo CD's kinds are called, the ones that make others first.
var argoKinds = [...]string{"applicationsets", "applications", "appprojects"}

// argoCD builds Argo CD, takes Onda out of the cluster and installs Argo CD in it, but for its processes; after the test the cluster is as before.
func (t *test) argoCD() *argoCD {
	t.Helper()
	// Its kinds are the whole cluster's: to delete those of an Argo CD that is there, in whatever namespace, would delete all of its Applications.
	foreign := t.k("get", "crd", "-l", marked+"!=true", "-o", `jsonpath={.items[?(@.spec.group=="argoproj.io")].metadata.name}`) +
		t.k("get", "namespace", "-l", "kubernetes.io/metadata.name="+argoNamespace+","+marked+"!=true", "-o", "name")
	if foreign != "" {
		t.Skipf("the cluster has an Argo CD that make e2e did not make: %s", foreign)
	}
	out, err := t.command(t.ctx, "", nil, "scripts/argocd.sh")
	t.must(err)
	lines := strings.Fields(out)
	a := &argoCD{test: t, sources: lines[len(lines)-1], bin: filepath.Join(t.root, ".onda", "argocd", "bin"), repo: t.checkout()}
	a.server = a.k("config", "view", "--minify", "-o", "jsonpath={.clusters[0].cluster.server}")
	a.remove(t.ctx)
	t.must(t.wipe(t.ctx))
	t.must(t.secrets(t.ctx))
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
		defer cancel()
		a.remove(ctx)
		for _, step := range []func(context.Context) error{t.wipe, t.secrets, t.deploy} {
			if err := step(ctx); err != nil {
				t.Errorf("putting Onda back: %v", err)
			}
		}
	})
	a.install()
	return a
}

// remove takes Argo CD's things out of the cluster, when it runs no more: nothing is left that would wait for it.
func (a *argoCD) remove(ctx context.Context) {
	a.Helper()
	for _, kind := range argoKinds {
		names, err := a.kubectl(ctx, "-n", argoNamespace, "get", kind+".argoproj.io", "-o", "name", "--ignore-not-found")
		if err != nil {
			continue // the kind is not there
		}
		for _, name := range strings.Fields(names) {
			if _, err := a.kubectl(ctx, "-n", argoNamespace, "patch", name, "--type=merge", "-p", `{"metadata":{"finalizers":null}}`); err != nil {
				a.Error(err)
			}
		}
		if _, err := a.kubectl(ctx, "delete", "crd", kind+".argoproj.io", "--timeout=60s"); err != nil {
			a.Error(err)
		}
	}
	if _, err := a.kubectl(ctx, "delete", "namespace", argoNamespace, "--ignore-not-found", "--timeout=120s"); err != nil {
		a.Error(err)
	}
}

// install does what installing Argo CD does but for its Deployments, and tells it the cluster.
func (a *argoCD) install() {
	a.Helper()
	a.k("apply", "--server-side", "-k", filepath.Join(a.sources, "manifests", "crds"))
	a.wait(time.Minute, "Argo CD's kinds to be there", func() bool { // kubectl wait fails on what has no conditions yet
		_, err := a.kubectl(a.ctx, "wait", "--for=condition=Established", "crd/applications.argoproj.io", "crd/applicationsets.argoproj.io", "crd/appprojects.argoproj.io", "--timeout=60s")
		return err == nil
	})
	for _, kind := range argoKinds {
		a.k("label", "crd", kind+".argoproj.io", marked+"=true")
	}
	a.k("create", "namespace", argoNamespace)
	a.must(a.mark(a.ctx, argoNamespace))
	a.k("-n", argoNamespace, "apply", "-k", filepath.Join(a.sources, "manifests", "base", "config"))
	a.k("-n", argoNamespace, "patch", "secret", "argocd-secret", "--type=merge", "-p", `{"stringData":{"server.secretkey":"`+password+`"}}`)

	var kubeconfig struct {
		Clusters []struct{ Cluster map[string]any }
		Users    []struct{ User map[string]any }
	}
	a.must(json.Unmarshal([]byte(a.k("config", "view", "--raw", "--minify", "-o", "json")), &kubeconfig))
	config, err := json.Marshal(map[string]any{
		"bearerToken": kubeconfig.Users[0].User["token"],
		"tlsClientConfig": map[string]any{
			"caData":   kubeconfig.Clusters[0].Cluster["certificate-authority-data"],
			"certData": kubeconfig.Users[0].User["client-certificate-data"],
			"keyData":  kubeconfig.Users[0].User["client-key-data"],
		},
	})
	a.must(err)
	secret, err := json.Marshal(map[string]any{
		"apiVersion": "v1", "kind": "Secret",
		"metadata":   map[string]any{"name": cellName, "namespace": argoNamespace, "labels": map[string]string{"argocd.argoproj.io/secret-type": "cluster"}},
		"stringData": map[string]string{"name": cellName, "server": a.server, "config": string(config)},
	})
	a.must(err)
	_, err = a.command(a.ctx, string(secret), nil, "kubectl", "apply", "-f", "-")
	a.must(err)
}

// port is one of this machine's that nobody listens at.
func (a *argoCD) port() string {
	a.Helper()
	l, err := (&net.ListenConfig{}).Listen(a.ctx, "tcp", "127.0.0.1:0")
	a.must(err)
	defer func() { _ = l.Close() }()
	_, port, err := net.SplitHostPort(l.Addr().String())
	a.must(err)
	return port
}

// processes starts Redis and Argo CD's three, until the test ends. Each writes a log beside the plots.
func (a *argoCD) processes() {
	a.Helper()
	home := a.TempDir()
	redis, repoServer := a.port(), a.port()
	for _, dir := range []string{"tmp", "ssh", "tls", "gpg", "plugins"} {
		a.must(os.Mkdir(filepath.Join(home, dir), 0o700))
	}
	env := append(os.Environ(),
		"PATH="+a.bin+":"+os.Getenv("PATH"), "HOME="+home, "TMPDIR="+filepath.Join(home, "tmp"),
		"ARGOCD_SSH_DATA_PATH="+filepath.Join(home, "ssh"), "ARGOCD_TLS_DATA_PATH="+filepath.Join(home, "tls"), "ARGOCD_GPG_ENABLED=false",
		"ARGOCD_PLUGINSOCKFILEPATH="+filepath.Join(home, "plugins"), "ARGOCD_ASK_PASS_SOCK="+filepath.Join(home, "ask-pass.sock"),
		// What Argo CD's own Deployment takes from this ConfigMap.
		"ARGOCD_APPLICATIONSET_CONTROLLER_ENABLE_PROGRESSIVE_SYNCS="+
			a.k("-n", argoNamespace, "get", "configmap", "argocd-cmd-params-cm", "-o", `jsonpath={.data.applicationsetcontroller\.enable\.progressive\.syncs}`),
	)
	start := func(name, program string, args ...string) {
		a.Helper()
		log, err := os.Create(filepath.Join(a.out, "argocd-"+name+".log"))
		a.must(err)
		ctx, cancel := context.WithCancel(context.Background())
		cmd := exec.CommandContext(ctx, filepath.Join(a.bin, program), args...)
		cmd.Env = append(slices.Clone(env), "ARGOCD_BINARY_NAME=argocd-"+name)
		cmd.Dir, cmd.Stdout, cmd.Stderr = home, log, log
		a.must(cmd.Start())
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			if err := cmd.Wait(); ctx.Err() == nil {
				a.Errorf("%s ended: %v; see %s", name, err, log.Name())
			}
		}()
		a.Cleanup(func() {
			cancel()
			<-ended
			_ = log.Close()
		})
	}
	start("redis", "redis-server", "--bind", "127.0.0.1", "--port", redis, "--save", "", "--appendonly", "no", "--dir", home)
	start("repo-server", "argocd", "--address", "127.0.0.1", "--port", repoServer, "--metrics-address", "127.0.0.1", "--metrics-port", a.port(),
		"--redis", "127.0.0.1:"+redis, "--disable-tls", "--logformat", "text")
	a.wait(time.Minute, "Redis and the repo server to listen", func() bool {
		for _, port := range []string{redis, repoServer} {
			conn, err := (&net.Dialer{Timeout: time.Second}).DialContext(a.ctx, "tcp", "127.0.0.1:"+port)
			if err != nil {
				return false
			}
			_ = conn.Close()
		}
		return true
	})
	start("application-controller", "argocd", "--namespace", argoNamespace, "--redis", "127.0.0.1:"+redis, "--repo-server", "127.0.0.1:"+repoServer, "--repo-server-plaintext",
		"--metrics-port", a.port(), "--persist-resource-health", "--logformat", "text")
	start("applicationset-controller", "argocd", "--namespace", argoNamespace, "--argocd-repo-server", "127.0.0.1:"+repoServer, "--repo-server-plaintext",
		"--metrics-addr", "0", "--probe-addr", "127.0.0.1:"+a.port(), "--webhook-addr", "127.0.0.1:"+a.port(), "--logformat", "text")
}

func (a *argoCD) git(args ...string) string {
	a.Helper()
	out, err := commandIn(a.ctx, a.repo, "", nil, "git", append([]string{"-c", "user.name=e2e", "-c", "user.email=e2e@example.com"}, args...)...)
	a.must(err)
	return strings.TrimSpace(out)
}

// write writes a file of the repository.
func (a *argoCD) write(file, text string) {
	a.Helper()
	path := filepath.Join(a.repo, file)
	a.must(os.MkdirAll(filepath.Dir(path), 0o755))
	a.must(os.WriteFile(path, []byte(text), 0o644))
}

// takeAway takes a tenant's directory out of the repository.
func (a *argoCD) takeAway(tenant string) {
	a.Helper()
	a.must(os.RemoveAll(filepath.Join(a.repo, "config/tenants", tenant)))
	a.edit(a.repo, "config/tenants/kustomization.yaml", fmt.Sprintf("      - %s.yaml=%[1]s/tenant.yaml\n", tenant), "")
}

// commit commits everything, and has Argo CD look, as a webhook does.
func (a *argoCD) commit(message string) {
	a.Helper()
	a.git("add", "--all")
	a.git("commit", "-q", "-m", message)
	a.look()
}

func (a *argoCD) look() {
	a.Helper()
	for _, kind := range []struct{ name, annotation string }{
		{"applicationsets.argoproj.io", "argocd.argoproj.io/application-set-refresh=true"},
		{"applications.argoproj.io", "argocd.argoproj.io/refresh=normal"},
	} {
		if names := strings.Fields(a.k("-n", argoNamespace, "get", kind.name, "-o", "name")); len(names) > 0 {
			a.k(slices.Concat([]string{"-n", argoNamespace, "annotate", "--overwrite"}, names, []string{kind.annotation})...)
		}
	}
}

// release builds the repository's images, pins them as CI does, and tags what comes out.
func (a *argoCD) release(version string) {
	a.Helper()
	began := time.Now()
	functions, err := filepath.Glob(filepath.Join(a.repo, "functions", "*", "main.go"))
	a.must(err)
	programs := []string{"cmd/onda"}
	for _, f := range functions {
		programs = append(programs, "functions/"+filepath.Base(filepath.Dir(f)))
	}
	var ask, pins strings.Builder
	for _, p := range programs {
		fmt.Fprintf(&ask, "%s: ko://github.com/onda-run/onda/%[1]s\n", p)
	}
	out, err := commandIn(a.ctx, a.repo, ask.String(), nil, "ko", "resolve", "--platform", a.platform, "-f", "-")
	a.must(err)
	built := map[string]string{}
	a.must(yaml.Unmarshal([]byte(out), &built))
	pins.WriteString("apiVersion: kustomize.config.k8s.io/v1alpha1\nkind: Component\nimages:\n")
	for _, p := range programs {
		image, digest, ok := strings.Cut(built[p], "@")
		if !ok {
			a.Fatalf("%s has no digest: %q", p, built[p])
		}
		fmt.Fprintf(&pins, "  - name: ko://github.com/onda-run/onda/%s\n    newName: %s\n    digest: %s\n", p, image, digest)
	}
	a.write("config/regions/local/images/kustomization.yaml", pins.String())
	a.git("add", "--all")
	a.git("commit", "-q", "-m", "Release "+version)
	a.git("tag", version)
	a.Logf("%s: built and tagged in %.0f s", version, time.Since(began).Seconds())
}

// raise commits the cell's file with a revision for each ring.
func (a *argoCD) raise(system, next, stable string) {
	a.Helper()
	a.write("config/regions/local/cells/"+cellName+".yaml", fmt.Sprintf("region: local\ncell: %s\nconnections: 500\nserver: %s\nrings:\n  system: {revision: %s}\n  next: {revision: %s}\n  stable: {revision: %s}\n",
		cellName, a.server, system, next, stable))
	a.commit(fmt.Sprintf("system %s, next %s, stable %s", system, next, stable))
}

// applications are those that there are, by name.
func (a *argoCD) applications() map[string]application {
	a.Helper()
	var list struct{ Items []application }
	a.must(json.Unmarshal([]byte(a.k("-n", argoNamespace, "get", "applications.argoproj.io", "-o", "json")), &list))
	found := map[string]application{}
	for _, i := range list.Items {
		found[i.Metadata.Name] = i
	}
	return found
}

// until waits for the Applications to be as wanted; when they do not get there in time, it tells how they are.
func (a *argoCD) until(limit time.Duration, what string, so func(map[string]application) bool) (now map[string]application) {
	a.Helper()
	said, there := map[string]string{}, false
	defer func() {
		for _, name := range sortedNames(now) {
			if !there {
				a.Log(now[name])
			}
		}
	}()
	a.wait(limit, what, func() bool {
		now = a.applications()
		for _, name := range sortedNames(now) {
			state := fmt.Sprintf("%s %s %s at %.7s", now[name].Status.Sync.Status, now[name].Status.Health.Status, now[name].phase(), now[name].revision())
			if said[name] != state {
				a.Logf("%s %-22s %s", time.Now().Format("15:04:05"), strings.TrimPrefix(name, cellName+"-"), state)
				said[name] = state
			}
		}
		there = so(now)
		return there
	})
	return now
}

// settled waits until Applications are deployed at their revisions, and well.
func (a *argoCD) settled(limit time.Duration, revisions map[string]string) map[string]application {
	a.Helper()
	want := map[string]string{}
	for name, revision := range revisions {
		want[name] = a.git("rev-parse", revision+"^{commit}")
	}
	began := time.Now()
	now := a.until(limit, "every Application to be synced and healthy", func(now map[string]application) bool {
		for name, commit := range want {
			i := now[name]
			if i.revision() != commit || i.Status.Sync.Status != "Synced" || i.Status.Health.Status != "Healthy" || i.phase() != "Succeeded" {
				return false
			}
		}
		return true
	})
	var b strings.Builder
	for _, name := range sortedNames(want) {
		o := now[name].Status.OperationState
		fmt.Fprintf(&b, "\n    %-22s %s to %s, %d retries", name, o.StartedAt.Local().Format("15:04:05"), o.FinishedAt.Local().Format("15:04:05"), o.RetryCount)
	}
	a.Logf("all synced and healthy after %.0f s%s", time.Since(began).Seconds(), b.String())
	return now
}

// inOrder holds that each Application's last sync began when the one before was over.
func (a *argoCD) inOrder(now map[string]application, names ...string) {
	a.Helper()
	for i := range names[1:] {
		before, after := now[names[i]].Status.OperationState, now[names[i+1]].Status.OperationState
		if before.FinishedAt.After(after.StartedAt) {
			a.Errorf("%s began at %v, before %s was over at %v", names[i+1], after.StartedAt, names[i], before.FinishedAt)
		}
	}
}

// expected are the Applications of the golden file of config/argocd, which a cell eu-west-1 and a dedicated tenant gala have, for this cell and a tenant.
func (a *argoCD) expected(tenant, revision string) map[string]any {
	a.Helper()
	text, err := os.ReadFile(filepath.Join(a.root, "config/argocd/testdata/applications.yaml"))
	a.must(err)
	all := map[string]any{}
	for body := range strings.SplitSeq(strings.NewReplacer("https://eu-west-1.k8s.example.com", a.server, "eu-west-1", cellName, "eu-west", "local", "gala", tenant,
		"https://github.com/onda-run/onda.git", "file://"+a.repo, "targetRevision: v0.1.0", "targetRevision: "+revision).Replace(string(text)), "\n---\n") {
		var one map[string]any
		a.must(yaml.Unmarshal([]byte(body), &one))
		if metadata, ok := one["metadata"].(map[string]any); ok {
			all[metadata["name"].(string)] = one
		}
	}
	return all
}

// as is what an Application and what is expected of it have in common: Argo CD takes automated syncs out where there are steps, and adds a finalizer.
func as(from any) map[string]any {
	one := from.(map[string]any)
	metadata, spec := one["metadata"].(map[string]any), maps.Clone(one["spec"].(map[string]any))
	policy := maps.Clone(spec["syncPolicy"].(map[string]any))
	delete(policy, "automated")
	spec["syncPolicy"] = policy
	return map[string]any{"labels": metadata["labels"], "spec": spec}
}

// deployed is an object that Argo CD made.
type deployed struct {
	Kind     string
	Metadata struct {
		Name              string
		CreationTimestamp time.Time
		Annotations       map[string]string
	}
	Status struct {
		CompletionTime time.Time
		Conditions     []struct {
			Type               string
			LastTransitionTime time.Time
		}
	}
}

// over is when its wave need wait for it no longer: when it was made, a Job's end, or when it became Ready.
func (d deployed) over() time.Time {
	last := slices.MaxFunc([]time.Time{d.Metadata.CreationTimestamp, d.Status.CompletionTime}, time.Time.Compare)
	for _, c := range d.Status.Conditions {
		if c.Type == "Ready" && c.LastTransitionTime.After(last) {
			last = c.LastTransitionTime
		}
	}
	return last
}

func (a *argoCD) deployed(namespace string) []deployed {
	a.Helper()
	var list struct{ Items []deployed }
	const kinds = "configmap,job,cronjob,networkpolicy,ksvc,broker,trigger,eventtype,pingsource"
	a.must(json.Unmarshal([]byte(a.k("-n", namespace, "get", kinds, "-o", "json")), &list))
	return slices.DeleteFunc(list.Items, func(d deployed) bool { return d.Metadata.Annotations["argocd.argoproj.io/tracking-id"] == "" })
}

// waves holds that what Argo CD made in a namespace was made wave by wave, and tells when.
func (a *argoCD) waves(namespace string, want ...string) {
	a.Helper()
	first, last, count := map[string]time.Time{}, map[string]time.Time{}, map[string]int{}
	for _, d := range a.deployed(namespace) {
		wave := cmp.Or(d.Metadata.Annotations["argocd.argoproj.io/sync-wave"], "0")
		made, over := d.Metadata.CreationTimestamp, d.over()
		if d.Kind == "Job" { // which another sync made anew
			made, over = a.event(namespace, d.Metadata.Name, "SuccessfulCreate"), a.event(namespace, d.Metadata.Name, "Completed")
		}
		if first[wave].IsZero() || made.Before(first[wave]) {
			first[wave] = made
		}
		if over.After(last[wave]) {
			last[wave] = over
		}
		count[wave]++
	}
	waves := sortedNames(count)
	if diff := gocmp.Diff(want, waves); diff != "" {
		a.Errorf("%s: waves\n%s", namespace, diff)
	}
	var told []string
	for i, w := range waves {
		told = append(told, fmt.Sprintf("%s: %d at %s", w, count[w], first[w].Local().Format("15:04:05")))
		if i > 0 && first[w].Before(last[waves[i-1]]) {
			a.Errorf("%s: wave %s began at %v, before wave %s was over at %v", namespace, w, first[w], waves[i-1], last[waves[i-1]])
		}
	}
	a.Logf("%s, objects by wave: %s", namespace, strings.Join(told, "; "))
}

// event is when something first happened to a Job of this name.
func (a *argoCD) event(namespace, job, reason string) (first time.Time) {
	a.Helper()
	for _, text := range strings.Fields(a.k("-n", namespace, "get", "events", "--field-selector", "involvedObject.kind=Job,involvedObject.name="+job+",reason="+reason,
		"-o", `jsonpath={range .items[*]}{.firstTimestamp} {end}`)) {
		at, err := time.Parse(time.RFC3339, text)
		a.must(err)
		if first.IsZero() || at.Before(first) {
			first = at
		}
	}
	return first
}

// serving is the revision that serves each Knative Service of a namespace.
func (a *argoCD) serving(namespace string) map[string]string {
	a.Helper()
	found := map[string]string{}
	for _, line := range strings.Fields(a.k("-n", namespace, "get", "ksvc", "-o", `jsonpath={range .items[*]}{.metadata.name}={.status.traffic[0].revisionName} {end}`)) {
		name, revision, _ := strings.Cut(line, "=")
		found[name] = revision
	}
	return found
}

// A real Argo CD deploys a cell from nothing by config/argocd, upgrades it ring by ring with a migration while a campaign runs, holds the rest while a canary does not become
// healthy, goes back by a revert, and deletes a tenant's Application when a person has confirmed it.
func TestArgoCD(t *testing.T) {
	c := begin(t)
	const pooled, early, own, sandbox = "argo", "argo-next", "argo-own", "argo-dev"
	const contacts = 40_000
	a := c.argoCD()

	// The repository: the address put in place of ours, this cell's server, images by CI, and tenants of this test alone.
	a.git("checkout", "-q", "-B", "main")
	for _, file := range []string{"pool.yaml", "dedicated.yaml", "projects.yaml"} {
		text, err := os.ReadFile(filepath.Join(a.repo, "config/argocd", file))
		c.must(err)
		a.write("config/argocd/"+file, strings.NewReplacer("https://github.com/onda-run/onda.git", "file://"+a.repo, "https://eu-west-1.k8s.example.com", a.server,
			// Versions before 3.3 know no names there.
			", name: onda-system}", "}", ", name: onda-next}", "}", ", name: onda}", "}", ", name: tenant-*}", "}").Replace(string(text)))
	}
	c.must(os.RemoveAll(filepath.Join(a.repo, "config/regions/eu-west/cells")))
	for _, ring := range []string{"system", "next", "stable"} {
		file := filepath.Join("config/regions/local", ring, "kustomization.yaml")
		text, err := os.ReadFile(filepath.Join(a.repo, file))
		c.must(err)
		before, after, _ := strings.Cut(string(text), "components:\n") // all is before, where there are none
		a.write(file, before+"components:\n  - ../images\n"+after)
	}
	tenants, err := filepath.Glob(filepath.Join(a.repo, "config/tenants/*/tenant.yaml"))
	c.must(err)
	for _, file := range tenants {
		a.takeAway(filepath.Base(filepath.Dir(file)))
	}
	for _, args := range [][]string{{pooled}, {early, "--ring", "next"}, {own, "--placement", "dedicated"}, {sandbox, "--functions", "send"}} {
		_, err := commandIn(c.ctx, a.repo, "", nil, filepath.Join(c.root, "bin", "onda"), slices.Concat([]string{"tenant", "create", "--files", "config/tenants"}, args)...)
		c.must(err)
	}
	a.release("v0.1.0")
	a.raise("v0.1.0", "v0.1.0", "v0.1.0")
	c.run("", "tenant", "create", own)
	ns := c.namespace(own)
	c.must(c.mark(c.ctx, ns))

	// From nothing.
	l := c.watchPods()
	began := time.Now()
	l.say("config/argocd is applied")
	health := filepath.Join(t.TempDir(), "health.yaml")
	c.must(os.WriteFile(health, []byte(a.k("kustomize", filepath.Join(a.repo, "config/argocd/settings"))), 0o644))
	a.k("-n", argoNamespace, "patch", "configmap", "argocd-cm", "--type=merge", "--patch-file="+health)
	a.k("-n", argoNamespace, "patch", "configmap", "argocd-cmd-params-cm", "--type=merge", "--patch-file="+filepath.Join(a.repo, "config/argocd/settings/steps.yaml"))
	a.processes()
	a.k("apply", "-k", filepath.Join(a.repo, "config/argocd"))
	cell := func(system, next, stable string) map[string]string {
		return map[string]string{cellSystem: system, cellNext: next, cellStable: stable, cellName + "-tenant-" + own: stable}
	}
	now := a.settled(15*time.Minute, cell("v0.1.0", "v0.1.0", "v0.1.0"))
	c.Logf("a cell's three rings and a dedicated tenant from nothing: %.0f s", time.Since(began).Seconds())
	var live struct{ Items []map[string]any }
	c.must(json.Unmarshal([]byte(a.k("-n", argoNamespace, "get", "applications.argoproj.io", "-o", "json")), &live))
	got, want := map[string]any{}, map[string]any{}
	for _, i := range live.Items {
		got[i["metadata"].(map[string]any)["name"].(string)] = as(i)
	}
	for name, i := range a.expected(own, "v0.1.0") {
		want[name] = as(i)
	}
	for _, ring := range []string{cellSystem, cellNext} { // which the golden file has at main
		spec := want[ring].(map[string]any)["spec"].(map[string]any)
		source, ok := spec["source"].(map[string]any)
		if !ok {
			source = spec["sources"].([]any)[0].(map[string]any)
		}
		source["targetRevision"] = "v0.1.0"
	}
	if diff := gocmp.Diff(want, got); diff != "" {
		t.Errorf("Applications (-testdata/applications.yaml +Argo CD)\n%s", diff)
	}
	a.inOrder(now, cellSystem, cellNext, cellStable)
	a.waves("onda-system", "0", "1", "2", "3", "7")
	a.waves("onda-next", "0", "3", "4", "6")
	a.waves(pool, "0", "3", "4", "6")
	a.waves(ns, "0", "3", "4", "6")

	// It stays so: Argo CD finds no difference between what it applied and what Knative made of it.
	a.k("-n", argoNamespace, "annotate", "--overwrite", "applications.argoproj.io", "--all", "argocd.argoproj.io/refresh=hard")
	again := a.until(2*time.Minute, "every Application to be compared anew", func(again map[string]application) bool {
		for name := range again {
			if _, asked := again[name].Metadata.Annotations["argocd.argoproj.io/refresh"]; asked || !again[name].Status.ReconciledAt.After(*now[name].Status.ReconciledAt) {
				return false
			}
		}
		return true
	})
	for name, i := range again {
		if i.Status.Sync.Status != "Synced" || i.Status.Health.Status != "Healthy" || !i.started().Equal(now[name].started()) {
			t.Errorf("it does not stay as it is: %s", i)
		}
	}

	// Ring by ring to a version with a migration, while a campaign runs.
	c.company(pooled, contacts)
	c.company(early, 1000)
	schema := c.migration(a.repo)
	a.release("v0.2.0")
	c.slow.Store(int64(time.Second)) // it must last until the way back
	defer c.slow.Store(0)
	c.start(pooled, "spring-news", contacts-contacts/100)
	c.wait(patience, "mails", func() bool { return c.status(pooled, "spring-news").Counts.Sent >= 100 })
	began = time.Now()
	for _, to := range []struct{ ring, system, next, stable string }{
		{"system", "v0.2.0", "v0.1.0", "v0.1.0"}, {"next", "v0.2.0", "v0.2.0", "v0.1.0"}, {"stable", "v0.2.0", "v0.2.0", "v0.2.0"},
	} {
		l.say("%s is raised", to.ring)
		a.raise(to.system, to.next, to.stable)
		now = a.settled(15*time.Minute, cell(to.system, to.next, to.stable))
		if v := value[int](c, "SELECT schema FROM onda.tenant WHERE name = '"+pooled+"'"); v != schema {
			t.Errorf("the tenant's schema is %d, want %d", v, schema)
		}
	}
	c.Logf("raised by three commits in %.0f s", time.Since(began).Seconds())
	l.say("upgraded")
	a.inOrder(now, cellSystem, cellNext, cellStable)

	// A canary that ends as it starts: stable stays, and so does what serves in next.
	serves := map[string]map[string]string{"onda-next": a.serving("onda-next"), pool: a.serving(pool)}
	a.edit(a.repo, "functions/send/service.yaml", "value: events", "value: nothing")
	a.git("commit", "-q", "--all", "-m", "A version that does not start")
	a.git("tag", "v0.3.0")
	bad := a.git("rev-parse", "v0.3.0^{commit}")
	l.say("a canary that does not start")
	began = time.Now()
	a.raise("v0.2.0", "v0.3.0", "v0.2.0")
	a.until(5*time.Minute, "the canary to be tried", func(now map[string]application) bool {
		return now[cellNext].revision() == bad && now[cellNext].Status.Health.Status != "Healthy"
	})
	a.raise("v0.2.0", "v0.3.0", "v0.3.0")
	a.until(2*time.Minute, "stable to be compared", func(now map[string]application) bool { return now[cellStable].revision() == bad })
	c.start(early, "spring-news", 990)
	c.audit(early, c.completed(patience, early), 1000, 0) // by the revision before, which still serves
	failed := a.until(10*time.Minute, "the canary to be given up, and tried again", func(now map[string]application) bool {
		o := now[cellNext].Status.OperationState
		return now[cellNext].Status.Health.Status == "Degraded" && o.Phase == "Running" && o.RetryCount > 0
	})
	c.Logf("given up and tried again %.0f s after the commit: %s", time.Since(began).Seconds(), failed[cellNext])
	if held := failed[cellStable]; held.Status.Sync.Status != "OutOfSync" || held.Status.Health.Status != "Healthy" || !held.started().Equal(now[cellStable].started()) {
		t.Errorf("stable was not held: %s", held)
	}
	for namespace, before := range serves {
		if diff := gocmp.Diff(before, a.serving(namespace)); diff != "" {
			t.Errorf("%s: what serves changed\n%s", namespace, diff)
		}
	}

	// And back by a revert.
	a.git("revert", "--no-commit", "HEAD~2..HEAD")
	a.git("commit", "-q", "-m", "Back")
	l.say("it is reverted")
	began = time.Now()
	a.look()
	a.settled(20*time.Minute, cell("v0.2.0", "v0.2.0", "v0.2.0"))
	c.Logf("back %.0f s after the revert", time.Since(began).Seconds())
	if s := c.status(pooled, "spring-news"); s.State == "completed" {
		t.Error("the campaign was over before the way back")
	}
	c.slow.Store(0)
	c.audit(pooled, c.completed(10*time.Minute, pooled), contacts, 0)
	c.keep(l, "argocd", "Argo CD deploys a cell, upgrades it, stops at a bad canary, and goes back, while a campaign runs")

	// A tenant's directory goes; its namespace waits for a person.
	its := cellName + "-tenant-" + own
	objects := len(a.deployed(ns))
	a.takeAway(own)
	a.commit("Take a tenant away")
	a.until(5*time.Minute, "its Application to be deleted", func(now map[string]application) bool { return now[its].Metadata.DeletionTimestamp != nil })
	log := filepath.Join(a.out, "argocd-application-controller.log")
	c.wait(2*time.Minute, "Argo CD to ask for a confirmation", func() bool {
		text, err := os.ReadFile(log)
		return err == nil && strings.Contains(string(text), "requires manual confirmation to delete")
	})
	if left := len(a.deployed(ns)); left != objects {
		t.Errorf("%d of %d objects are left before anybody confirmed", left, objects)
	}
	began = time.Now()
	a.k("-n", argoNamespace, "annotate", "applications.argoproj.io/"+its, "argocd.argoproj.io/deletion-approved="+time.Now().UTC().Add(time.Second).Format(time.RFC3339)) // as argocd app confirm-deletion does
	c.wait(10*time.Minute, "the tenant's namespace to be gone", func() bool {
		left := a.k("-n", ns, "get", "ksvc,broker,trigger", "-o", `jsonpath={range .items[*]}{.kind}{.metadata.deletionTimestamp} {end}`)
		if strings.Contains(left, "Trigger") && strings.Contains(left, "Broker2") || strings.Contains(left, "Broker") && strings.Contains(left, "Service2") {
			t.Errorf("deleted out of order: %s", left)
		}
		return a.k("get", "namespace", ns, "--ignore-not-found", "-o", "name") == ""
	})
	c.Logf("the tenant's namespace was gone %.0f s after the confirmation", time.Since(began).Seconds())
	a.until(2*time.Minute, "its Application to be gone", func(now map[string]application) bool { _, there := now[its]; return !there })
}
