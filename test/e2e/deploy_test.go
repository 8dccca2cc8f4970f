package e2e

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// checkout is a copy of the sources that a test may change.
func (t *test) checkout() string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "onda")
	_, err := t.command(t.ctx, "", nil, "git", "clone", "-q", "--local", t.root, dir)
	t.must(err)
	return dir
}

// edit replaces a text in a file of a copy.
func (t *test) edit(dir, file, from, to string) {
	t.Helper()
	path := filepath.Join(dir, file)
	text, err := os.ReadFile(path)
	t.must(err)
	if !bytes.Contains(text, []byte(from)) {
		t.Fatalf("%s has no %q", file, from)
	}
	t.must(os.WriteFile(path, bytes.Replace(text, []byte(from), []byte(to), 1), 0o644))
}

// A developer changes one function and deploys it alone while a campaign runs: it serves soon, and nothing is lost or repeated.
func TestDeployOneFunction(t *testing.T) {
	c := begin(t)
	const contacts = 10_000
	c.company("deploy", contacts)
	dir := c.checkout()
	deploy := func(args ...string) string {
		t.Helper()
		out, err := c.command(c.ctx, "", nil, "make", append([]string{"-C", dir, "deploy", "FN=send", "REGION=local", "RING=stable"}, args...)...)
		c.must(err)
		return out
	}
	deploy() // as it is, so that what follows builds only what changed
	c.slow.Store(int64(100 * time.Millisecond))
	defer c.slow.Store(0)
	c.start("deploy", "spring-news", contacts-contacts/100)
	c.wait(patience, "the campaign to run", func() bool { return c.box.Counts().Received > 0 && c.status("deploy", "spring-news").Counts.Sent > 100 })
	before := c.k("-n", pool, "get", "ksvc", "send", "-o", "jsonpath={.status.latestReadyRevisionName}")
	c.edit(dir, "internal/send/send.go", `"nothing is sent"`, `"nothing is sent by this version"`)
	saved := time.Now()
	out := deploy()
	took := time.Since(saved)
	now := c.k("-n", pool, "get", "ksvc", "send", "-o", "jsonpath={.status.latestReadyRevisionName}")
	if now == before {
		t.Error("the change made no new revision")
	}
	if !strings.Contains(out, "to go back: kubectl -n onda patch ksvc send ") {
		t.Errorf("it does not say how to go back:\n%s", out)
	}
	c.Logf("from saving the file to the new revision serving: %.1f s\n%s", took.Seconds(), out)
	if s := c.status("deploy", "spring-news"); s.State == "completed" {
		t.Error("the campaign was over before the new revision served")
	}
	c.slow.Store(0)
	c.audit("deploy", c.completed(10*time.Minute, "deploy"), contacts, 0)

	// The way back, word for word.
	for line := range strings.Lines(out) {
		if _, command, ok := strings.Cut(line, "to go back: "); ok {
			_, err := c.command(c.ctx, "", nil, "sh", "-c", command)
			c.must(err)
		}
	}
	c.wait(time.Minute, "requests to go to the revision before", func() bool {
		return c.k("-n", pool, "get", "ksvc", "send", "-o", "jsonpath={.status.traffic[0].revisionName}") == before
	})
	// Applying is the way on again.
	c.must(c.deploy(c.ctx))
	c.wait(time.Minute, "requests to go to the newest revision", func() bool {
		return c.k("-n", pool, "get", "ksvc", "send", "-o", "jsonpath={.status.traffic[0].latestRevision}") == "true"
	})
}

// What is wrong is said before anything is applied.
func TestDeployRefuses(t *testing.T) {
	c := begin(t)
	for name, k := range map[string]struct {
		env  []string
		want string
	}{
		"no function":             {nil, "name one of"},
		"a function that is none": {[]string{"FN=sendd"}, "name one of"},
		"a tenant that is none":   {[]string{"FN=send", "TENANT=nobody"}, "onda tenant create nobody"},
		"a pooled tenant":         {[]string{"FN=send", "TENANT=acme"}, "is pooled"},
		"a ring that is none":     {[]string{"FN=send", "RING=canary"}, "config/regions"},
		"no cluster":              {[]string{"FN=send", "KUBECONFIG=/dev/null"}, "no cluster answers"},
		"no registry":             {[]string{"FN=send", "KO_DOCKER_REPO="}, "KO_DOCKER_REPO is not set"},
	} {
		if _, err := c.command(c.ctx, "", k.env, "scripts/deploy.sh"); err == nil || !strings.Contains(err.Error(), k.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
