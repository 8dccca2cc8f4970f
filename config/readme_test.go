package config_test

import (
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestFirstCluster holds the commands of README.md that bring up a first cluster to what is there: directories, targets, Secrets and their keys, and the statements that
// make e2e gives its Postgres.
func TestFirstCluster(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(text), "\n## A first cluster\n")
	section, _, _ = strings.Cut(section, "\n## ")
	for _, m := range regexp.MustCompile(`(?:kustomize|--files|apply -f) ((?:config|examples|functions)/[\w/-]+)`).FindAllStringSubmatch(string(text), -1) {
		if _, err := os.Stat(filepath.Join("..", m[1])); err != nil {
			t.Errorf("it names %s: %v", m[1], err)
		}
	}
	secrets := secrets()
	delete(secrets, "rabbitmq") // the in-memory broker has none
	made := map[string][]string{}
	section = strings.ReplaceAll(section, "\\\n", "")
	for _, m := range regexp.MustCompile(`create secret generic (\S+) (.*)`).FindAllStringSubmatch(section, -1) {
		for _, key := range regexp.MustCompile(`--from-literal=(\w+)=`).FindAllStringSubmatch(m[2], -1) {
			made[m[1]] = append(made[m[1]], key[1])
		}
	}
	want := map[string][]string{}
	for name, keys := range secrets {
		want[name] = slices.Sorted(maps.Keys(keys))
	}
	if diff := cmp.Diff(want, made); diff != "" {
		t.Errorf("Secrets (-needed +made)\n%s", diff)
	}
	world, err := os.ReadFile("../test/e2e/world_test.go")
	if err != nil {
		t.Fatal(err)
	}
	// A password is a constant there, put into the statement.
	statements := strings.ReplaceAll(string(world), `'" + password + "'`, "'secret'")
	found := regexp.MustCompile(`(?:CREATE|ALTER) [A-Z]+ [^;"]+`).FindAllString(section, -1)
	if len(found) != 4 {
		t.Errorf("statements: %q", found)
	}
	for _, sql := range found {
		if sql = regexp.MustCompile(`'secret-\d'`).ReplaceAllString(sql, "'secret'"); !strings.Contains(statements, sql) {
			t.Errorf("make e2e does not give its Postgres %q", sql)
		}
	}
}
