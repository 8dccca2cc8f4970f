package e2e

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/onda-run/onda/internal/postgres"
)

// A cluster without Knative, or with one that is too old, is told before anything is applied: what is missing, and what to do.
func TestAnotherCluster(t *testing.T) {
	c := begin(t)
	const crds = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/"
	for name, k := range map[string]struct {
		// change is what becomes of a definition's answer.
		change func(name string, res *http.Response) error
		want   string
	}{
		"without Knative Serving": {func(name string, res *http.Response) error {
			if strings.HasSuffix(name, "serving.knative.dev") {
				res.StatusCode, res.Status = http.StatusNotFound, "404 Not Found"
			}
			return nil
		}, "services.serving.knative.dev is not there: install Knative Serving"},
		"with an old Knative Eventing": {func(name string, res *http.Response) error {
			if name != "eventtypes.eventing.knative.dev" {
				return nil
			}
			body, err := io.ReadAll(res.Body)
			if err != nil {
				return err
			}
			var crd map[string]any
			if err := json.Unmarshal(body, &crd); err != nil {
				return err
			}
			spec := crd["spec"].(map[string]any)
			for _, v := range spec["versions"].([]any) {
				if v := v.(map[string]any); v["name"] == "v1beta3" {
					v["served"] = false
				}
			}
			if body, err = json.Marshal(crd); err != nil {
				return err
			}
			res.Body, res.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
			res.Header.Del("Content-Length")
			return nil
		}, "eventtypes.eventing.knative.dev has"},
	} {
		cmd := exec.CommandContext(c.ctx, "kubectl", "proxy", "--port=0")
		out, err := cmd.StdoutPipe()
		c.must(err)
		c.must(cmd.Start())
		line, err := bufio.NewReader(out).ReadString('\n')
		c.must(err)
		_, address, _ := strings.Cut(strings.TrimSpace(line), " on ")
		proxy := &httputil.ReverseProxy{
			Rewrite: func(r *httputil.ProxyRequest) {
				r.SetURL(&url.URL{Scheme: "http", Host: address})
				r.Out.Header.Set("Accept", "application/json")
				r.Out.Header.Del("Accept-Encoding")
			},
			ModifyResponse: func(res *http.Response) error {
				if crd, ok := strings.CutPrefix(res.Request.URL.Path, crds); ok {
					return k.change(crd, res)
				}
				return nil
			},
		}
		applied := false
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			applied = applied || r.Method != http.MethodGet
			proxy.ServeHTTP(w, r)
		}))
		kubeconfig := filepath.Join(t.TempDir(), "config")
		c.must(os.WriteFile(kubeconfig, []byte("apiVersion: v1\nkind: Config\ncurrent-context: other\nclusters: [{name: other, cluster: {server: '"+server.URL+
			"'}}]\ncontexts: [{name: other, context: {cluster: other}}]\n"), 0o600))
		_, err = c.command(c.ctx, "", []string{"KUBECONFIG=" + kubeconfig, "FN=send"}, "scripts/deploy.sh")
		if err == nil || !strings.Contains(err.Error(), k.want) || !strings.Contains(err.Error(), "nothing was applied") || applied {
			t.Errorf("%s: %v", name, err)
		}
		server.Close()
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
}

// A function that is applied alone, first without its Secret, then with a wrong one: each is said at the first request, and no process ends over it.
func TestWrongSecret(t *testing.T) {
	c := begin(t)
	const ns, tenant = "onda-alone", "alone"
	c.company(tenant, 10)
	settings := "apiVersion: v1\nkind: Namespace\nmetadata: {name: " + ns + ", labels: {app.kubernetes.io/part-of: onda, " + marked + ": \"true\"}}\n---\napiVersion: v1\nkind: ConfigMap\n" +
		"metadata: {name: onda, namespace: " + ns + "}\ndata: {ONDA_FORM_URL: https://render-form." + ns + "." + domain() + ", ONDA_LOG: json}\n"
	_, err := c.command(c.ctx, settings, nil, "kubectl", "apply", "-f", "-")
	c.must(err)
	c.must(c.applyManifest(c.ctx, c.root, strings.ReplaceAll(c.k("kustomize", "functions/render-form"), "namespace: onda", "namespace: "+ns)))
	c.must(c.ready(c.ctx, ns))
	form := "https://render-form." + ns + "." + domain() + "/f/" + tenant + "/newsletter"
	for _, k := range []struct {
		name, secret string
		status       int
		says, logs   string
	}{
		{"no Secret", "", http.StatusServiceUnavailable, "render-form is not set up: ONDA_DATABASE_URL: is not set", "mend the Secret"},
		{"no URL in it", c.secret(ns, "onda", "somewhere"), http.StatusServiceUnavailable, "render-form is not set up: ONDA_DATABASE_URL: not a Postgres URL", "mend the Secret"},
		{"a wrong password", c.secret(ns, "onda", strings.Replace(c.databaseURL("onda_pool"), password, "not-it", 1)), http.StatusServiceUnavailable, "", "check ONDA_DATABASE_URL"},
		{"the right one", c.secret(ns, "onda", c.databaseURL("onda_pool")), http.StatusOK, "<form", ""},
	} {
		if k.secret != "" {
			_, err := c.command(c.ctx, k.secret, nil, "kubectl", "apply", "-f", "-")
			c.must(err)
		}
		c.k("-n", ns, "delete", "pods", "--all", "--wait=true", "--timeout=120s")
		code, body, err := c.fetch(c.ctx, http.MethodGet, form, http.Header{"User-Agent": {reader}}, "")
		c.must(err)
		if code != k.status || !strings.Contains(string(body), k.says) || strings.Contains(string(body), "not-it") {
			t.Errorf("%s: %d %.300s", k.name, code, body)
		}
		log := c.k("-n", ns, "logs", "-l", "serving.knative.dev/service=render-form", "-c", "user-container", "--tail=-1")
		if !strings.Contains(log, k.logs) || strings.Contains(log, "not-it") {
			t.Errorf("%s: the log says %s", k.name, log)
		}
		if restarts := c.k("-n", ns, "get", "pods", "-o", "jsonpath={.items[*].status.containerStatuses[*].restartCount}"); strings.Trim(restarts, "0 ") != "" {
			t.Errorf("%s: restarted: %s", k.name, restarts)
		}
	}
	c.k("delete", "namespace", ns, "--timeout=180s")
}

// A tenant's schema that is older than the functions is said and waits; a newer one is served. A tenant that is sending is not deleted.
func TestSchemaAndDeletion(t *testing.T) {
	c := begin(t)
	const contacts, tenant = 2000, "older"
	c.company(tenant, contacts)
	form := func() int {
		code, _, err := c.fetch(c.ctx, http.MethodGet, c.formURL()+"/f/"+tenant+"/newsletter", http.Header{"User-Agent": {reader}}, "")
		c.must(err)
		return code
	}
	schema := func(to int) {
		c.must(c.sql(c.ctx, fmt.Sprintf("UPDATE onda.tenant SET schema = %d WHERE name = '%s'", to, tenant)))
	}
	newest := value[int](c, "SELECT schema FROM onda.tenant WHERE name = '"+tenant+"'")
	schema(postgres.Schema - 1) // one migration less than functions need: they serve what is between that and the newest
	if code := form(); code != http.StatusServiceUnavailable {
		t.Errorf("an older schema: %d", code)
	}
	if log := c.k("-n", pool, "logs", "-l", "serving.knative.dev/service=render-form", "-c", "user-container", "--tail=-1"); !strings.Contains(log, "run onda migrate") {
		t.Errorf("the log says %s", log)
	}
	schema(newest + 1)
	if code := form(); code != http.StatusOK {
		t.Errorf("a newer schema: %d", code)
	}
	schema(newest)

	c.slow.Store(int64(100 * time.Millisecond))
	defer c.slow.Store(0)
	c.start(tenant, "spring-news", contacts-contacts/100)
	c.wait(patience, "mails", func() bool { _, n := c.came(tenant); return n > 100 })
	if _, err := c.onda(c.ctx, "", "tenant", "delete", tenant); err == nil || !strings.Contains(err.Error(), "onda tenant suspend "+tenant) {
		t.Errorf("a tenant that is sending is deleted: %v", err)
	}
	c.slow.Store(0)
	c.audit(tenant, c.completed(patience, tenant), contacts, 0)
}
