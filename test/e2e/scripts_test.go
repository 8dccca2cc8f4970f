package e2e

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Tests of what needs no cluster to be tried: in kubectl's and ko's place are scripts.

// stubs puts programs on the path, each a script in which $STATE is a directory, which it gives.
func stubs(t *testing.T, programs map[string]string) (state string) {
	t.Helper()
	bin, state := t.TempDir(), t.TempDir()
	for name, script := range programs {
		if err := os.WriteFile(filepath.Join(bin, name), []byte("#!/bin/sh\nSTATE='"+state+"'\n"+script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	return state
}

func write(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// read is a file's text; empty where it is not there.
func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return string(text)
}

// An Onda that these tests did not make is deleted only when that is asked for.
func TestWipeAsks(t *testing.T) {
	state := stubs(t, map[string]string{"kubectl": `
case "$*" in
*delete*) echo "$*" >>$STATE/deleted ;;
*current-context*) echo production ;;
*'e2e!=true'*) cat $STATE/foreign ;;
*'get namespaces'*) printf 'onda onda-system' ;;
esac`})
	w := &world{root: "../.."}
	for _, k := range []struct {
		name, foreign, wipe string
		refused             bool
	}{
		{"made by these tests", "", "", false},
		{"somebody's", "onda-system tenant-shop", "", true},
		{"somebody's, and asked for", "onda-system tenant-shop", "1", false},
	} {
		write(t, state, map[string]string{"foreign": k.foreign, "deleted": ""})
		t.Setenv("ONDA_E2E_WIPE", k.wipe)
		err := w.wipe(t.Context())
		deleted := read(t, filepath.Join(state, "deleted"))
		if k.refused {
			if err == nil || deleted != "" || !strings.Contains(err.Error(), `"production"`) || !strings.Contains(err.Error(), k.foreign) || !strings.Contains(err.Error(), "ONDA_E2E_WIPE=1") {
				t.Errorf("%s: %v, deleted %q", k.name, err, deleted)
			}
		} else if err != nil || !strings.Contains(deleted, "delete namespace") || !strings.Contains(deleted, "onda-system") {
			t.Errorf("%s: %v, deleted %q", k.name, err, deleted)
		}
	}
}

// scripts/deploy.sh tells what serves, and the way back to what served; where a deploy fails too.
func TestDeployTellsWhatServes(t *testing.T) {
	state := stubs(t, map[string]string{
		"kubectl": `
case "$*" in
kustomize*) cat $STATE/manifest ;;
*'get crd'*) printf 'v1 v1beta1 v1beta3 ' ;;
*'get nodes'*) printf linux/amd64 ;;
*current-context*) echo stub ;;
*status.traffic*) cat $STATE/traffic ;;
*observedGeneration*) printf 6 ;;
*metadata.generation*) cat $STATE/generation ;;
*status.conditions*) echo '  Ready: the container ended' ;;
*condition=Ready*) exit $(cat $STATE/fails) ;;
esac`,
		"ko": `
for last; do :; done
cp "$last" $STATE/applied
cp $STATE/after $STATE/traffic`,
	})
	t.Setenv("KO_DOCKER_REPO", "registry.example.com")
	t.Setenv("RING", "stable")
	for _, k := range []struct {
		name, region, fn, generation, fails string
		before, after                       string // what all requests go to
		want, not                           []string
	}{
		{
			"a new revision", "local", "bounce", "6", "0", "bounce-00001", "bounce-00003",
			[]string{"onda/bounce serves bounce-00003", `to go back: kubectl -n onda patch ksvc bounce --type=merge -p '{"spec":{"traffic":[{"revisionName":"bounce-00001","percent":100}]}}'`},
			[]string{"nothing is built"},
		},
		{"the first one", "local", "bounce", "6", "0", "", "bounce-00001", []string{"onda/bounce serves bounce-00001"}, []string{"to go back"}},
		{
			"one that fails", "local", "bounce", "6", "1", "bounce-00001", "bounce-00001",
			[]string{"onda/bounce is not ready, and bounce-00001 serves:\n  Ready: the container ended", "to go back: kubectl -n onda patch ksvc bounce ", "not deployed, after "},
			[]string{"deployed in"},
		},
		{
			"three that fail", "local", "send", "6", "1", "before", "before",
			[]string{"onda/send is not ready", "onda/send-api is not ready", "onda/send-api-events is not ready", "patch ksvc send ", "patch ksvc send-api ", "patch ksvc send-api-events "},
			[]string{"deployed in"},
		},
		{"the first one fails", "local", "bounce", "6", "1", "", "", []string{"onda/bounce is not ready, and no revision serves:"}, []string{"deployed in"}},
		{"somebody else deploys too", "local", "bounce", "5", "0", "bounce-00001", "bounce-00003", []string{"onda/bounce serves bounce-00003"}, nil},
		{
			"images at a version", "eu-west", "send", "6", "0", "a", "b",
			[]string{"nothing is built: registry.example.com/onda/send:", "onda/send serves b", "onda/send-api serves b", "onda/send-api-events serves b"},
			[]string{"bounce"},
		},
	} {
		write(t, state, map[string]string{
			"manifest": read(t, "../../config/testdata/golden/regions-"+k.region+"-stable.yaml"), "traffic": k.before, "after": k.after, "generation": k.generation, "fails": k.fails, "applied": "",
		})
		out, err := commandIn(t.Context(), "../..", "", []string{"FN=" + k.fn, "REGION=" + k.region, "TENANT="}, "scripts/deploy.sh")
		if err != nil {
			out = err.Error()
		}
		if (err != nil) != (k.fails == "1") {
			t.Errorf("%s: %v", k.name, err)
		}
		for _, want := range k.want {
			if !strings.Contains(out, want) {
				t.Errorf("%s: it says\n%s\nwant %q", k.name, out, want)
			}
		}
		applied := read(t, filepath.Join(state, "applied"))
		for _, not := range k.not {
			if strings.Contains(out, not) || strings.Contains(applied, "name: "+not+"\n") {
				t.Errorf("%s: it says\n%s\nand applies\n%s", k.name, out, applied)
			}
		}
		if n := strings.Count(applied, "\nkind: Service\n"); n != map[string]int{"bounce": 1, "send": 3}[k.fn] || !strings.Contains(applied, "kind: ConfigMap\n") || strings.Contains(applied, "kind: Trigger") {
			t.Errorf("%s: it applies %d services\n%s", k.name, n, applied)
		}
	}
}

// What is asked for of make deploy and cannot be is told with the remedy, before any cluster is asked.
func TestDeployKnowsItsEntry(t *testing.T) {
	stubs(t, map[string]string{"kubectl": `echo "the cluster was asked: $*" >&2; exit 1`, "ko": ""})
	t.Setenv("RING", "")
	for name, k := range map[string]struct {
		env  []string
		want string
	}{
		"a function that is none": {[]string{"FN=sendd", "TENANT="}, "name one of bounce campaign render-form"},
		"two functions":           {[]string{"FN=send track", "TENANT="}, "FN is \"send track\": name one of"},
		"a tenant that is none":   {[]string{"FN=send", "TENANT=nobody"}, "onda tenant create nobody --files config/tenants --functions send makes it"},
		"a pooled tenant":         {[]string{"FN=send", "TENANT=acme"}, "make another tenant: onda tenant create NAME --files config/tenants --functions send"},
		"two places":              {[]string{"FN=send", "TENANT=dev-ana", "RING=next"}, "TENANT and RING are two places"},
		"a ring that is none":     {[]string{"FN=send", "TENANT=", "RING=canary"}, "there is no config/regions/local/canary/kustomization.yaml"},
	} {
		if _, err := commandIn(t.Context(), "../..", "", k.env, "scripts/deploy.sh"); err == nil || !strings.Contains(err.Error(), k.want) || strings.Contains(err.Error(), "was asked") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A cluster is told from one that may not be looked at, and all platforms of its nodes are built for.
func TestNeedCluster(t *testing.T) {
	state := stubs(t, map[string]string{
		"kubectl": `
case "$*" in
*'get crd eventtypes'*) cat $STATE/warns >&2; [ "$(cat $STATE/fails)" = 0 ] && cat $STATE/says && exit; cat $STATE/says >&2; exit 1 ;;
*'get crd'*) printf 'v1 v1beta1 ' ;;
api-versions) cat $STATE/versions ;;
*'get nodes'*) printf 'linux/arm64\nlinux/amd64\nlinux/arm64\n' ;;
esac`,
		"ko": "",
	})
	t.Setenv("KO_DOCKER_REPO", "registry.example.com")
	const warning = "E1127 memcache.go:287] couldn't get resource list for metrics.k8s.io/v1beta1: the server is currently unable to handle the request\n"
	for name, k := range map[string]struct{ says, fails, versions, want string }{
		"it is there":         {"v1beta3 v1beta2 ", "0", "", "builds for linux/amd64,linux/arm64"},
		"it is not":           {"Error from server (NotFound): not found", "1", "eventing.knative.dev/v1beta3", "eventtypes.eventing.knative.dev is not there: install Knative Eventing"},
		"too old":             {"v1beta1 ", "0", "", "eventtypes.eventing.knative.dev has v1beta1  but not v1beta3: Knative Eventing is too old"},
		"not to be looked at": {"Error from server (Forbidden): no", "1", "apps/v1\neventing.knative.dev/v1\neventing.knative.dev/v1beta3\n", "builds for"},
		"nor there":           {"Error from server (Forbidden): no", "1", "apps/v1\n", "is not there: install Knative Eventing"},
		"no answer":           {"Unable to connect to the server", "1", "", "the cluster does not say whether it has eventtypes.eventing.knative.dev: " + warning + "Unable to connect"},
	} {
		write(t, state, map[string]string{"says": k.says, "fails": k.fails, "versions": k.versions, "warns": warning}) // as where the server of metrics is down
		out, err := commandIn(t.Context(), "../..", "", nil, "bash", "-euc", ". scripts/cluster.sh; need_cluster; echo builds for $(platform)")
		if (err == nil) != strings.HasPrefix(k.want, "builds") {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil {
			out = err.Error()
		}
		if !strings.Contains(out, k.want) {
			t.Errorf("%s: it says %q, want %q", name, out, k.want)
		}
	}
}

// scripts/e2e.sh says what to do where it does not know this machine's address, whatever the cluster's server is called.
func TestAddressOfThisMachine(t *testing.T) {
	state := stubs(t, map[string]string{
		"kubectl": `
case "$*" in
*'get crd'*) printf 'v1 v1beta1 v1beta3 ' ;;
*'config view'*) cat $STATE/server ;;
esac`,
		"getent": `case $2 in localhost) echo 127.0.0.1 STREAM ;; cluster.example) echo 192.0.2.7 STREAM ;; *) exit 2 ;; esac`,
		"ip":     `[ -z "$4" ] || echo "$4 dev any src ${4%.*}.1 uid 0"`,
		"ko":     "", "go": `[ "$1" != test ] || echo "host $ONDA_E2E_HOST"`, // builds nothing
	})
	t.Setenv("KO_DOCKER_REPO", "registry.example.com")
	for name, k := range map[string]struct{ server, host, want string }{
		"a name":                     {"https://cluster.example:6443", "", "host 192.0.2.1"},
		"a name with a path":         {"https://cluster.example/k8s/clusters/c-1", "", "host 192.0.2.1"},
		"a name that is not known":   {"https://cluster.invalid:6443", "", "set ONDA_E2E_HOST"},
		"loopback":                   {"https://localhost:6443", "", "(127.0.0.1 is their own): set ONDA_E2E_HOST"},
		"it is said what address is": {"https://cluster.invalid:6443", "192.0.2.9", "host 192.0.2.9"},
	} {
		write(t, state, map[string]string{"server": k.server})
		out, err := commandIn(t.Context(), "../..", "", []string{"ONDA_E2E_HOST=" + k.host}, "scripts/e2e.sh")
		if (err == nil) != strings.HasPrefix(k.want, "host ") {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil {
			out = err.Error()
		}
		if !strings.Contains(out, k.want) {
			t.Errorf("%s: it says %q, want %q", name, out, k.want)
		}
	}
}

// scripts/postgres.sh has a server that runs already listen where it is told to.
func TestPostgresListens(t *testing.T) {
	home, err := os.MkdirTemp("", "onda") // a short path, for its socket
	if err != nil {
		t.Fatal(err)
	}
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := free.Addr().String()
	_ = free.Close()
	postgres := func(what string, env ...string) string {
		t.Helper()
		out, err := commandIn(t.Context(), "../..", "", append(env, "ONDA_HOME="+home), "scripts/postgres.sh", what)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(out)
	}
	defer func() {
		postgres("stop")
		_ = os.RemoveAll(home)
	}()
	pid := func() string {
		pid, _, _ := strings.Cut(read(t, filepath.Join(home, "postgres", "postmaster.pid")), "\n")
		return pid
	}
	postgres("start")
	if c, err := net.Dial("tcp", address); err == nil {
		_ = c.Close()
		t.Fatalf("%s is taken", address)
	}
	postgres("start", "ONDA_POSTGRES_LISTEN="+address)
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
	before := pid()
	postgres("start", "ONDA_POSTGRES_LISTEN="+address)
	postgres("start") // as it is will do
	if now := pid(); now != before {
		t.Errorf("it was started again for nothing: process %s, then %s", before, now)
	}
}
