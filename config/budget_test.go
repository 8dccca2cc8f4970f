package config_test

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/sethvargo/go-envconfig"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
	"sigs.k8s.io/yaml"

	"github.com/onda-run/onda/internal/manifest"
	"github.com/onda-run/onda/internal/postgres"
	"github.com/onda-run/onda/internal/schedule"
	"github.com/onda-run/onda/internal/send"
	"github.com/onda-run/onda/internal/tenantfile"
)

func itoa(n int) string { return strconv.Itoa(n) }

// reserve is how many of a Postgres server's connections functions leave to the administrator, the Jobs and the command line.
const reserve = 20

// cell is what the budget needs of a cell's file.
type cell struct {
	Region      string `json:"region"`
	Cell        string `json:"cell"`
	Connections int    `json:"connections"`
	Server      string `json:"server"`
	file        string
}

func cells(t *testing.T) []cell {
	t.Helper()
	files, err := filepath.Glob("regions/*/cells/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("cells: %q, %v", files, err)
	}
	var all []cell
	for _, file := range files {
		c := cell{file: "config/" + filepath.ToSlash(file)}
		text, err := os.ReadFile(file)
		if err == nil {
			err = yaml.Unmarshal(text, &c)
		}
		if err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		all = append(all, c)
	}
	return all
}

// use is what a service takes at full scale.
type use struct {
	namespace, service string
	// pods is max-scale; connections and smtp are one pod's, to Postgres and to the relay.
	pods, connections, smtp int
}

// uses are those of an entry's services.
func (r rendering) uses(functions map[string]string) ([]use, error) {
	var all []use
	for at, s := range manifest.Of[*servingv1.Service](r.objects) {
		u := use{namespace: s.Namespace, service: s.Name, pods: maxScale(s)}
		e := r.environment(s.Spec.Template.Spec.Containers[0])
		var err error
		switch functions[s.Name] {
		case "send":
			var cfg send.Config
			err = envconfig.ProcessWith(context.Background(), &envconfig.Config{Target: &cfg, Lookuper: e})
			u.connections, u.smtp = int(cfg.MaxConns()), cfg.Connections
		case "schedule": // whatever is set
			u.connections = schedule.MaxConns
		default:
			var cfg postgres.Config
			err = envconfig.ProcessWith(context.Background(), &envconfig.Config{Target: &cfg, Lookuper: e})
			u.connections = int(cfg.MaxConns)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", at, err)
		}
		all = append(all, u)
	}
	return all, nil
}

// inCell are the entries that run in a cell: the region's, and its dedicated tenants.
func inCell(c cell, all map[string]rendering, tenants map[string]*tenantfile.Tenant) []rendering {
	var found []rendering
	for _, dir := range slices.Sorted(maps.Keys(all)) {
		r := all[dir]
		t := tenants[r.tenant]
		if strings.HasPrefix(dir, "config/regions/"+c.Region+"/") || t != nil && t.Spec.Region == c.Region && t.Spec.Cell == c.Cell {
			found = append(found, r)
		}
	}
	return found
}

// total sums what is used, and says so when Postgres does not allow it.
func (c cell) total(uses []use) (connections, smtp int, err error) {
	for _, u := range uses {
		connections += u.pods * u.connections
		smtp += u.pods * u.smtp
	}
	if connections > c.Connections-reserve {
		return connections, smtp, fmt.Errorf("%s: at full scale the functions of this cell have %d connections, and of its Postgres's %d (connections) they may have %d: lower "+
			"max-scale with a patch or the component small, move a dedicated tenant to another cell, or raise max_connections and this field", c.file, connections, c.Connections, c.Connections-reserve)
	}
	return connections, smtp, nil
}

// table is a cell's part of README.md.
func (c cell) table(uses []use, connections, smtp int) string {
	var namespaces, services []string
	pods, each, sums := map[string]map[string]int{}, map[string]int{}, map[string]int{}
	for _, u := range uses {
		if pods[u.service] == nil {
			pods[u.service] = map[string]int{}
			services = append(services, u.service)
		}
		pods[u.service][u.namespace] = u.pods
		each[u.service] = max(each[u.service], u.connections)
		sums[u.service] += u.pods * u.connections
		sums[u.namespace+"/"] += u.pods * u.connections
		if !slices.Contains(namespaces, u.namespace) {
			namespaces = append(namespaces, u.namespace)
		}
	}
	slices.Sort(services)
	slices.Sort(namespaces)
	var b strings.Builder
	fmt.Fprintf(&b, "\n### %s: %d of %d\n\n", c.Cell, connections, c.Connections-reserve)
	b.WriteString("| service | connections of a pod | pods at most in " + strings.Join(namespaces, " | in ") + " | connections |\n|---|---|" + strings.Repeat("---|", len(namespaces)) + "---|\n")
	for _, s := range services {
		fmt.Fprintf(&b, "| %s | %d |", s, each[s])
		for _, ns := range namespaces {
			cell := ""
			if n := pods[s][ns]; n > 0 {
				cell = itoa(n)
			}
			fmt.Fprintf(&b, " %s |", cell)
		}
		fmt.Fprintf(&b, " %d |\n", sums[s])
	}
	b.WriteString("| connections | |")
	for _, ns := range namespaces {
		fmt.Fprintf(&b, " %d |", sums[ns+"/"])
	}
	fmt.Fprintf(&b, " **%d** |\n\nTo relays: at most %d connections.\n", connections, smtp)
	return b.String()
}

// generatedFrom is where the generated part of README.md begins; what stands before it is written by hand.
const generatedFrom = "## Secrets\n"

// testREADME holds the tables of README.md to the manifests, and every cell to what its Postgres allows.
func testREADME(t *testing.T, all map[string]rendering) {
	t.Helper()
	functions := functionsOf(all)
	var b strings.Builder
	b.WriteString(generatedFrom + "\nMade outside Git, by hand or by an operator, before what needs them:\n\n| Secret | keys |\n|---|---|\n")
	for _, name := range slices.Sorted(maps.Keys(secrets())) {
		fmt.Fprintf(&b, "| `%s` | `%s` |\n", name, strings.Join(slices.Sorted(maps.Keys(secrets()[name])), "`, `"))
	}
	fmt.Fprintf(&b, "\n## The budget of connections\n\nWhat all rings and dedicated tenants of a cell may open at full scale (`max-scale` times the connections of a pod), and what its "+
		"Postgres\nallows: `connections` in the cell's file, less %d for the administrator, the Jobs and the command line. A pod of `send` has one for each batch it may\nhold and two "+
		"more; others have `ONDA_DATABASE_MAX_CONNS`. While a new version rolls out, pods of the old one are there too: should Postgres refuse one\na connection then, "+
		"the function answers 503 and is asked again.\n", reserve)
	for _, c := range cells(t) {
		var uses []use
		for _, r := range inCell(c, all, readTenants(t)) {
			of, err := r.uses(functions)
			if err != nil {
				t.Error(err)
			}
			uses = append(uses, of...)
		}
		connections, smtp, err := c.total(uses)
		if err != nil {
			t.Error(err)
		}
		b.WriteString(c.table(uses, connections, smtp))
	}
	text, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	intro, got, _ := strings.Cut(string(text), generatedFrom)
	if *update {
		if err := os.WriteFile("README.md", []byte(intro+b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(b.String(), generatedFrom+got); diff != "" {
		t.Errorf("config/README.md differs from the manifests (-want +got); write it with go test ./config -update\n%s", diff)
	}
}

// TestOverBudget shows that the sum is looked at.
func TestOverBudget(t *testing.T) {
	t.Parallel()
	uses := []use{{"onda", "send", 8, 6, 8}, {"onda", "track", 10, 4, 0}}
	c := cell{Cell: "c", Connections: 88 + reserve, file: "config/regions/r/cells/c.yaml"}
	if n, smtp, err := c.total(uses); n != 88 || smtp != 64 || err != nil {
		t.Errorf("%d, %d, %v", n, smtp, err)
	}
	c.Connections--
	if _, _, err := c.total(uses); err == nil || !strings.HasPrefix(err.Error(), c.file+": at full scale the functions of this cell have 88 connections") {
		t.Errorf("%v", err)
	}
}
