package track

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/token"
)

func put(t *testing.T, dir, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// Lists of a directory take the place of the built-in ones, are read again when they change, and stay when they are broken, which is said once.
func TestListsOfScanners(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	core, logged := observer.New(zap.InfoLevel)
	s := newScanners(dir, zap.New(core))
	s.every = 0
	see := func(what, agent, from, want string) {
		t.Helper()
		if got := s.now().request(kindClick, "GET", agent, from, false); got != want {
			t.Errorf("%s: %q, want %q", what, got, want)
		}
	}
	see("built in", "Mozilla/5.0 curl/8", "192.0.2.1", "program")
	see("a person", browser, "192.0.2.1", "")
	put(t, dir, agentsFile, "# ours\nscanner all acme shield # seen in May\npreview open firefox\n")
	see("listed", "Mozilla/5.0 Acme Shield 2", "192.0.2.1", "scanner")
	see("for opens only", browser, "192.0.2.1", "")
	see("no more", "Mozilla/5.0 curl/8", "192.0.2.1", "")
	see("no file of networks", browser, "40.94.0.1", "scanner-network")
	put(t, dir, networksFile, "scanner-network all 192.0.2.0/24\nscanner-network open 198.51.100.0/24\nscanner-network all 2001:db8::/48\n")
	see("network", browser, "192.0.2.255", "scanner-network")
	see("network for opens only", browser, "198.51.100.1", "")
	see("IPv6, cut to its /64", browser, "2001:db8:0:7::/64", "scanner-network")
	see("other IPv6", browser, "2001:db8:1:7::/64", "")
	see("built-in network no more", browser, "40.94.0.1", "")
	see("nowhere", browser, "", "")
	if logged.Len() > 0 {
		t.Errorf("logged: %v", logged.All())
	}
	for _, c := range []struct{ file, text, want string }{
		{agentsFile, "scanner all ok\n", `agents.txt:1: "ok" is not a text of at least 3 small letters`},
		{agentsFile, "\nscanner all Shield\n", `agents.txt:2: "Shield" is not`},
		{agentsFile, "malware all shield\n", `agents.txt:1: unknown reason "malware", one of: apple-mpp, image-proxy`},
		{agentsFile, "scanner clicks shield\n", `agents.txt:1: unknown hits "clicks": open or all`},
		{agentsFile, "scanner\n", `agents.txt:1: unknown hits ""`},
		{agentsFile, strings.Repeat("#", maxListFile+1), "agents.txt: 1048577 bytes are more than"},
		{networksFile, "scanner-network all 192.0.2.1\n", `networks.txt:1: "192.0.2.1" is not a network`},
		{networksFile, "scanner-network all 192.0.2.1/24\n", "networks.txt:1: 192.0.2.1/24 has bits behind its length: write 192.0.2.0/24"},
		{networksFile, "scanner-network all 0.0.0.0/0\n", "networks.txt:1: 0.0.0.0/0 is too much of the Internet"},
		{networksFile, "scanner-network all 2001:db8::/96\n", "networks.txt:1: 2001:db8::/96 is longer than /64"},
	} {
		before, err := os.ReadFile(filepath.Join(dir, c.file))
		if err != nil {
			t.Fatal(err)
		}
		put(t, dir, c.file, c.text)
		see(c.want, "acme shield", "192.0.2.1", "scanner-network")
		see(c.want, "acme shield", "192.0.9.1", "scanner")
		all := logged.TakeAll()
		if len(all) != 1 || !strings.Contains(all[0].ContextMap()["error"].(string), c.want) {
			t.Errorf("logged %v, want once %s", all, c.want)
		}
		put(t, dir, c.file, string(before))
		see("mended", "acme shield", "192.0.9.1", "scanner")
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	see("no directory", "acme shield", "192.0.9.1", "scanner")
	see("no directory", "acme shield", "192.0.9.1", "scanner")
	if logged.Len() != 1 {
		t.Errorf("logged %v, want once that the directory is gone", logged.All())
	}
}

// A list that changes revises the verdicts on mails that are looked at again, either way, and no click is told twice.
func TestListsReviseVerdicts(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	dir := t.TempDir()
	w.scanners.dir, w.scanners.every = dir, 0
	_, d := w.sent("acme", "ada@example.com", time.Hour)
	click := func() {
		w.get("/c/" + w.token("acme", token.Claims{Purpose: token.Click, Delivery: d, Link: w.link("acme", "https://example.com/a")}))
		w.sweep("acme")
	}
	firefox, nobody := "bot all firefox/140\n", "bot all nobody\n"
	for _, agents := range []string{firefox, nobody, firefox, nobody} {
		put(t, dir, agentsFile, agents)
		click()
	}
	if diff := cmp.Diff([]string{"click human link=true tracked=true n=4 firsts=1"}, w.stats("acme")); diff != "" {
		t.Error(diff)
	}
	want := []string{
		"1 hit.reclassified human", "1 email.clicked", "2 email.clicked", // withdrawn
		"1 hit.reclassified machine", "2 hit.reclassified machine", // listed again
		"1 hit.reclassified human", "2 hit.reclassified human", "3 hit.reclassified human", "3 email.clicked", "4 email.clicked",
	}
	got := pgtest.All[string](t, w.db, "acme", `SELECT dense_rank() OVER (ORDER BY (data->>'hit')::bigint) || ' ' || kind || coalesce(' ' || (data->>'verdict'), '') FROM fact WHERE data ? 'hit' ORDER BY id`)
	if diff := cmp.Diff(want, got, cmp.Transformer("sorted", sorted)); diff != "" {
		t.Error(diff)
	}
}
