package e2e

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	cloudevents "github.com/cloudevents/sdk-go/v2"
	"github.com/jackc/pgx/v5"

	"github.com/onda-run/onda/internal/mailbox"
)

const (
	smtpPort     = "11025"
	postgresPort = "15432"
	password     = "of-the-end-to-end-tests"
	pool         = "onda" // the stable ring's namespace
	patience     = 5 * time.Minute
)

// shared is the world that all tests of a run are in: a cluster, a Postgres and a mail server are made once.
var shared *world

func TestMain(m *testing.M) {
	if os.Getenv("ONDA_E2E") == "" {
		os.Exit(m.Run()) // begin skips what needs a cluster
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	w, err := newWorld(ctx)
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		return 1
	}
	defer w.close()
	shared = w
	return m.Run()
}

// world is Onda in the cluster, and what is around it.
type world struct {
	root     string // of the checkout
	out      string // where plots and tables go
	host     string // this machine, as pods see it
	platform string
	ingress  string // host:port of the public ingress
	superURL string // of Postgres's superuser, for looking into tenants
	box      *mailbox.Server
	forward  net.Listener
	token    string       // the file with what the command line shows the broker; empty for none
	slow     atomic.Int64 // how long the mail server thinks about a recipient, in nanoseconds
	http     *http.Client
}

func newWorld(ctx context.Context) (*world, error) {
	root, err := filepath.Abs("../..")
	if err != nil {
		return nil, err
	}
	w := &world{root: root, out: filepath.Join(root, ".onda", "e2e", "out"), host: os.Getenv("ONDA_E2E_HOST"), platform: os.Getenv("ONDA_E2E_PLATFORM")}
	if err := os.MkdirAll(w.out, 0o755); err != nil {
		return nil, err
	}
	for _, step := range []struct {
		what string
		do   func(context.Context) error
	}{
		{"find the ingress", w.findIngress},
		{"take down what an earlier run left", w.wipe},
		{"start Postgres", w.startPostgres},
		{"start the mail server", w.startMailbox},
		{"make namespaces and secrets", w.secrets},
		{"deploy", w.deploy},
	} {
		began := time.Now()
		if err := step.do(ctx); err != nil {
			return nil, fmt.Errorf("%s: %w", step.what, err)
		}
		fmt.Printf("%-40s %6.1f s\n", step.what, time.Since(began).Seconds())
	}
	return w, nil
}

func (w *world) close() {
	if w.forward != nil {
		_ = w.forward.Close()
	}
	if w.box != nil {
		_ = w.box.Close()
	}
}

// command runs a program in the checkout and gives what it prints.
func (w *world) command(ctx context.Context, stdin string, env []string, name string, args ...string) (string, error) {
	return commandIn(ctx, w.root, stdin, env, name, args...)
}

func commandIn(ctx context.Context, dir, stdin string, env []string, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdin = strings.NewReader(stdin)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("%s %s: %w\n%s%s", name, strings.Join(args, " "), err, stdout.String(), stderr.String())
	}
	return stdout.String(), nil
}

func (w *world) kubectl(ctx context.Context, args ...string) (string, error) {
	return w.command(ctx, "", nil, "kubectl", args...)
}

// marked is the label of namespaces that these tests made, and may delete.
const marked = "onda.run/e2e"

// mark says of namespaces that these tests made them. A label that kubectl apply does not know of stays when the entry's own manifest is applied.
func (w *world) mark(ctx context.Context, namespaces ...string) error {
	if len(namespaces) == 0 {
		return nil
	}
	_, err := w.kubectl(ctx, slices.Concat([]string{"label", "namespace", "--overwrite"}, namespaces, []string{marked + "=true"})...)
	return err
}

// applyEntry renders an entry of a checkout and applies those of its documents that are to be kept, all where keep is nil. Its namespaces are marked.
func (w *world) applyEntry(ctx context.Context, root, entry string, keep func(document string) bool) error {
	manifest, err := commandIn(ctx, root, "", nil, "kubectl", "kustomize", entry)
	if err != nil {
		return err
	}
	documents := strings.Split(manifest, "\n---\n")
	if keep != nil {
		documents = slices.DeleteFunc(documents, func(d string) bool { return !keep(d) })
	}
	if err := w.applyManifest(ctx, root, strings.Join(documents, "\n---\n")); err != nil {
		return err
	}
	var namespaces []string
	for _, d := range documents {
		if _, name, ok := strings.Cut(d, "\n  name: "); ok && strings.Contains(d, "kind: Namespace\n") {
			name, _, _ = strings.Cut(name, "\n")
			namespaces = append(namespaces, name)
		}
	}
	return w.mark(ctx, namespaces...)
}

// applyManifest builds the images that a manifest names from a checkout, and applies it.
func (w *world) applyManifest(ctx context.Context, root, manifest string) error {
	_, err := commandIn(ctx, root, manifest, nil, "ko", "apply", "--platform", w.platform, "-f", "-")
	return err
}

// findIngress takes ONDA_E2E_INGRESS, or the node port of the service through which the cluster's ingress is reached.
func (w *world) findIngress(ctx context.Context) error {
	w.ingress = os.Getenv("ONDA_E2E_INGRESS")
	if w.ingress == "" {
		node, err := w.kubectl(ctx, "get", "nodes", "-o", `jsonpath={.items[0].status.addresses[?(@.type=="InternalIP")].address}`)
		if err != nil {
			return err
		}
		ports, err := w.kubectl(ctx, "get", "services", "-A", "-o", `jsonpath={range .items[?(@.spec.type=="NodePort")]}{.spec.ports[?(@.port==80)].nodePort} {end}`)
		if err != nil {
			return err
		}
		all := strings.Fields(ports)
		if len(all) != 1 {
			return fmt.Errorf("%d services have a node port for port 80: set ONDA_E2E_INGRESS=host:port", len(all))
		}
		w.ingress = net.JoinHostPort(node, all[0])
	}
	dial := &net.Dialer{Timeout: 5 * time.Second}
	w.http = &http.Client{
		Timeout: 2 * time.Minute,
		Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return dial.DialContext(ctx, "tcp", w.ingress)
			},
			MaxIdleConnsPerHost: 32,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return nil
}

// wipe deletes every namespace of Onda's, if these tests made them or ONDA_E2E_WIPE=1 says so: somebody may work with what is in them. Brokers go first: what takes
// their queues away needs the namespace.
func (w *world) wipe(ctx context.Context) error {
	const ondas = "app.kubernetes.io/part-of=onda"
	foreign, err := w.kubectl(ctx, "get", "namespaces", "-l", ondas+","+marked+"!=true", "-o", "jsonpath={.items[*].metadata.name}")
	if err != nil {
		return err
	}
	if foreign != "" && os.Getenv("ONDA_E2E_WIPE") != "1" {
		where, _ := w.kubectl(ctx, "config", "current-context")
		return fmt.Errorf("the cluster of kubectl's context %q has an Onda that make e2e did not make, in the namespaces %s: choose another cluster, or set ONDA_E2E_WIPE=1 to have them deleted",
			strings.TrimSpace(where), foreign)
	}
	names, err := w.kubectl(ctx, "get", "namespaces", "-l", ondas, "-o", "jsonpath={.items[*].metadata.name}")
	if err != nil {
		return err
	}
	for _, name := range strings.Fields(names) {
		if _, err := w.kubectl(ctx, "-n", name, "delete", "broker,trigger", "--all", "--timeout=60s"); err != nil {
			return err
		}
	}
	if names == "" {
		return nil
	}
	_, err = w.kubectl(ctx, append([]string{"delete", "namespace", "--timeout=180s"}, strings.Fields(names)...)...)
	return err
}

func (w *world) postgres(ctx context.Context, what string) (string, error) {
	env := []string{
		"ONDA_HOME=" + filepath.Join(w.root, ".onda", "e2e"), "ONDA_POSTGRES_LISTEN=" + net.JoinHostPort(w.host, postgresPort), "ONDA_POSTGRES_CONNECTIONS=500",
	}
	out, err := w.command(ctx, "", env, filepath.Join(w.root, "scripts", "postgres.sh"), what)
	return strings.TrimSpace(out), err
}

func (w *world) startPostgres(ctx context.Context) error {
	admin, err := w.postgres(ctx, "start")
	if err != nil {
		return err
	}
	conn, err := pgx.Connect(ctx, admin)
	if err != nil {
		return err
	}
	if _, err := conn.Exec(ctx, "DROP DATABASE IF EXISTS onda WITH (FORCE)"); err != nil {
		return err
	}
	// Tenants' roles are the server's and would be taken for another database's.
	rows, err := conn.Query(ctx, "SELECT rolname FROM pg_roles WHERE rolname !~ '^pg_' AND rolname <> current_user ORDER BY rolname = 'platform', rolname LIKE 'onda%', rolname")
	if err != nil {
		return err
	}
	roles, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return err
	}
	for _, r := range roles {
		if _, err := conn.Exec(ctx, "DROP ROLE "+pgx.Identifier{r}.Sanitize()); err != nil {
			return err
		}
	}
	// Onda's administrator is no superuser, as with a managed Postgres. These are the statements of config/README.md.
	for _, sql := range []string{"CREATE ROLE platform LOGIN CREATEROLE PASSWORD '" + password + "'", "CREATE DATABASE onda OWNER platform"} {
		if _, err := conn.Exec(ctx, sql); err != nil {
			return err
		}
	}
	if err := conn.Close(ctx); err != nil {
		return err
	}
	u, err := url.Parse(admin)
	if err != nil {
		return err
	}
	u.Path = "/onda"
	w.superURL = u.String()
	if _, err := w.onda(ctx, "", "migrate"); err != nil {
		return err
	}
	for _, sql := range []string{"ALTER ROLE onda_pool PASSWORD '" + password + "'", "ALTER ROLE onda_schedule PASSWORD '" + password + "'"} {
		if err := execute(ctx, w.databaseURL("platform"), sql); err != nil {
			return err
		}
	}
	return nil
}

// sql runs statements as the superuser.
func (w *world) sql(ctx context.Context, statements string) error {
	return execute(ctx, w.superURL, statements)
}

func execute(ctx context.Context, database, statements string) error {
	conn, err := pgx.Connect(ctx, database)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }()
	_, err = conn.Exec(ctx, statements)
	return err
}

// one reads one value as the superuser.
func one[T any](w *world, sql string, args ...any) (T, error) {
	var v T
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	conn, err := pgx.Connect(ctx, w.superURL)
	if err != nil {
		return v, err
	}
	defer func() { _ = conn.Close(ctx) }()
	return v, conn.QueryRow(ctx, sql, args...).Scan(&v)
}

// databaseURL is what a login reaches Postgres at, from pods and from here. It says that there is no TLS, else each connection would be made twice.
func (w *world) databaseURL(login string) string {
	return fmt.Sprintf("postgres://%s:%s@%s/onda?sslmode=disable", login, password, net.JoinHostPort(w.host, postgresPort))
}

// startMailbox starts the mail server on loopback, as it wants it, and lets pods in.
func (w *world) startMailbox(ctx context.Context) (err error) {
	if w.box, err = mailbox.Start(ctx, mailbox.Config{Dir: filepath.Join(w.out, "..", "mail"), SMTPAddr: "127.0.0.1:0", HTTPAddr: "127.0.0.1:0", Rules: mailbox.DefaultRules(), Judge: w.judge}); err != nil {
		return err
	}
	if err := w.box.Clear(); err != nil {
		return err
	}
	if w.forward, err = (&net.ListenConfig{}).Listen(ctx, "tcp", net.JoinHostPort(w.host, smtpPort)); err != nil {
		return err
	}
	go func() {
		for {
			in, err := w.forward.Accept()
			if err != nil {
				return
			}
			go func() {
				defer func() { _ = in.Close() }()
				out, err := (&net.Dialer{}).DialContext(ctx, "tcp", w.box.SMTPAddr())
				if err != nil {
					return
				}
				defer func() { _ = out.Close() }()
				go func() { _, _ = io.Copy(out, in); _ = out.(*net.TCPConn).CloseWrite() }()
				_, _ = io.Copy(in, out)
			}()
		}
	}()
	return nil
}

// judge takes every recipient, after a while.
func (w *world) judge(string) *mailbox.Refusal {
	time.Sleep(time.Duration(w.slow.Load())) //nolint:forbidigo // a slow server, not a wait of the test's
	return nil
}

// secrets makes what is not in Git: in production a secret store does.
func (w *world) secrets(ctx context.Context) error {
	var b strings.Builder
	for _, ns := range []string{pool, "onda-next", "onda-system"} {
		fmt.Fprintf(&b, "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: %s, labels: {app.kubernetes.io/part-of: onda}}\n", ns)
	}
	for _, ns := range []string{pool, "onda-next"} {
		b.WriteString(w.secret(ns, "onda", w.databaseURL("onda_pool")))
	}
	b.WriteString(w.secret("onda-system", "onda-schedule", w.databaseURL("onda_schedule")))
	b.WriteString(strings.Replace(w.secret("onda-system", "onda-admin", w.databaseURL("platform")), "ONDA_DATABASE_URL", "ONDA_ADMIN_DATABASE_URL", 1))
	if _, err := w.command(ctx, b.String(), nil, "kubectl", "apply", "-f", "-"); err != nil {
		return err
	}
	return w.mark(ctx, pool, "onda-next", "onda-system")
}

// secret is the manifest of a function's Secret.
func (w *world) secret(namespace, name, database string) string {
	return fmt.Sprintf("---\napiVersion: v1\nkind: Secret\nmetadata: {name: %s, namespace: %s}\nstringData: {ONDA_DATABASE_URL: %q, ONDA_SMTP_URL: %q}\n",
		name, namespace, database, "smtp://"+net.JoinHostPort(w.host, smtpPort)+"?tls=none")
}

// deploy applies the pool's stable ring and the system, but for the Jobs, which have tests of their own.
func (w *world) deploy(ctx context.Context) error {
	for _, entry := range []string{"config/regions/local/stable", "config/regions/local/system"} {
		if err := w.applyEntry(ctx, w.root, entry, func(d string) bool { return !strings.Contains(d, "kind: Job\n") }); err != nil {
			return err
		}
	}
	return w.ready(ctx, pool, "onda-system")
}

// ready waits until everything in some namespaces says that it is.
func (w *world) ready(ctx context.Context, namespaces ...string) error {
	for _, ns := range namespaces {
		for _, kind := range []string{"ksvc", "broker", "trigger", "pingsource"} {
			names, err := w.kubectl(ctx, "-n", ns, "get", kind, "-o", "name")
			if err != nil {
				return err
			}
			if strings.TrimSpace(names) == "" {
				continue
			}
			if _, err := w.kubectl(ctx, "-n", ns, "wait", "--for=condition=Ready", kind, "--all", "--timeout=300s"); err != nil {
				return err
			}
		}
	}
	return nil
}

// onda runs the command line for a tenant, outside the cluster, as a platform team does.
func (w *world) onda(ctx context.Context, tenant string, args ...string) (string, error) {
	if tenant != "" {
		args = append([]string{"--tenant", tenant}, args...)
	}
	sink := ""
	if ip, err := w.kubectl(ctx, "-n", "knative-eventing", "get", "service", "broker-ingress", "-o", "jsonpath={.spec.clusterIP}"); err == nil {
		sink = "http://" + ip + "/{namespace}/onda"
	}
	env := []string{
		"ONDA_ADMIN_DATABASE_URL=" + w.databaseURL("platform"), "ONDA_DATABASE_URL=" + w.databaseURL("onda_pool"), "K_SINK=" + sink, "ONDA_OIDC_TOKEN=" + w.token,
		"ONDA_LINK_URL=" + w.linkURL(), "ONDA_FORM_URL=" + w.formURL(),
	}
	return w.command(ctx, "", env, filepath.Join(w.root, "bin", "onda"), args...)
}

func (w *world) linkURL() string { return "https://track." + pool + "." + domain() }
func (w *world) formURL() string { return "https://render-form." + pool + "." + domain() }
func (w *world) apiURL() string  { return "https://send-api." + pool + "." + domain() }

// domain is the cluster's, as config/regions/local has it.
func domain() string { return cmp.Or(os.Getenv("ONDA_E2E_DOMAIN"), "onda.test") }

// fetch asks the public ingress. TLS ends before it in production; here there is none.
func (w *world) fetch(ctx context.Context, method, address string, header http.Header, body string) (int, []byte, error) {
	address = strings.Replace(address, "https://", "http://", 1)
	req, err := http.NewRequestWithContext(ctx, method, address, strings.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	for k, v := range header {
		req.Header[k] = v
	}
	res, err := w.http.Do(req)
	if err != nil {
		return 0, nil, err
	}
	b, err := io.ReadAll(res.Body)
	_ = res.Body.Close()
	return res.StatusCode, b, err
}

// post posts an event straight to a function that is local to the cluster.
func (t *test) post(service, namespace string, e cloudevents.Event) (status int) {
	t.Helper()
	local := strings.Split(t.k("-n", namespace, "get", "service", service, "-o", "jsonpath={.spec.externalName}"), ".")
	if len(local) < 2 {
		t.Fatalf("%s in %s is at no ingress", service, namespace)
	}
	ip := t.k("-n", local[1], "get", "service", local[0], "-o", "jsonpath={.spec.clusterIP}")
	req, err := cloudevents.NewHTTPRequestFromEvent(t.ctx, "http://"+ip+"/", e)
	t.must(err)
	req.Host = service + "." + namespace + ".svc.cluster.local"
	res, err := http.DefaultClient.Do(req)
	t.must(err)
	_ = res.Body.Close()
	return res.StatusCode
}

// test is one test's view of the world.
type test struct {
	*testing.T
	*world
	ctx context.Context
}

// begin gives a test the world.
func begin(t *testing.T) *test {
	t.Helper()
	if shared == nil {
		t.Skip("no cluster: make e2e runs this")
	}
	return &test{T: t, world: shared, ctx: t.Context()}
}

func (t *test) must(err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// run runs the command line; it must succeed.
func (t *test) run(tenant string, args ...string) string {
	t.Helper()
	out, err := t.onda(t.ctx, tenant, args...)
	t.must(err)
	return out
}

// runJSON runs the command line and reads what it prints.
func (t *test) runJSON(into any, tenant string, args ...string) {
	t.Helper()
	out := t.run(tenant, append([]string{"--output", "json"}, args...)...)
	t.must(json.Unmarshal([]byte(out), into))
}

// k runs kubectl; it must succeed.
func (t *test) k(args ...string) string {
	t.Helper()
	out, err := t.kubectl(t.ctx, args...)
	t.must(err)
	return strings.TrimSpace(out)
}

// wait asks until it is so. The cluster has no signal for what is asked: asking is cheap, and the limit only bounds a failure.
func (t *test) wait(limit time.Duration, what string, so func() bool) time.Duration {
	t.Helper()
	began := time.Now()
	for !so() {
		if time.Since(began) > limit {
			t.Fatalf("not within %v: %s", limit, what)
		}
		select {
		case <-t.ctx.Done():
			t.Fatal(t.ctx.Err())
		case <-time.After(250 * time.Millisecond):
		}
	}
	return time.Since(began)
}

// value reads one value of a tenant's schema.
func value[T any](t *test, sql string, args ...any) T {
	t.Helper()
	v, err := one[T](t.world, sql, args...)
	t.must(err)
	return v
}
