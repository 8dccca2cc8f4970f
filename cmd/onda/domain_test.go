package main

import (
	"bytes"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"github.com/onda-run/onda/internal/apply"
	"github.com/onda-run/onda/internal/pgtest"
)

// withDomains is a session on a database where each tenant has sender domains of these names, below example.
func withDomains(t *testing.T, names map[string][]string) (*session, *bytes.Buffer) {
	t.Helper()
	db := pgtest.New(t).DB(t)
	for tenant, all := range names {
		var docs strings.Builder
		for _, name := range all {
			_, _ = fmt.Fprintf(&docs, "---\napiVersion: onda/v1\nkind: Domain\nmetadata: {name: %s}\nspec: {domain: %[1]s.example, dkim: {selectors: [s1]}}\n", name)
		}
		if _, _, err := apply.Directory(t.Context(), db, tenant, fstest.MapFS{"all.yaml": {Data: []byte(docs.String())}}, nil); err != nil {
			t.Fatal(err)
		}
	}
	var out bytes.Buffer
	return &session{stdout: &out, stderr: &out, db: db}, &out
}

// Whichever domains the time of a day does not suffice for, it is their turn the next day.
func TestTheDomainCheckedLongestAgoIsFirst(t *testing.T) {
	t.Parallel()
	s, _ := withDomains(t, map[string][]string{pgtest.Acme: {"a", "b", "new"}, pgtest.Brava: {"c", "d", "newer"}})
	for name, at := range map[string]struct {
		tenant string
		days   int
	}{"a": {pgtest.Acme, 1}, "b": {pgtest.Acme, 3}, "c": {pgtest.Brava, 2}, "d": {pgtest.Brava, 4}} {
		pgtest.Exec(t, s.db, at.tenant, "UPDATE entity SET checked_at = now() - $2 * interval '1 day' WHERE kind = 'Domain' AND name = $1", name, at.days)
	}
	all, failed := s.domainsToCheck(t.Context(), []string{pgtest.Acme, "nobody", pgtest.Brava})
	var got []string
	for _, d := range all {
		got = append(got, d.tenant+" "+d.Name)
	}
	if diff := cmp.Diff([]string{"acme new", "brava newer", "brava d", "acme b", "brava c", "acme a"}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if len(failed) != 1 || !strings.Contains(failed[0].Error(), "nobody") {
		t.Errorf("failed: %v", failed)
	}
}

// No tenant's DNS holds up another tenant's check: here none answers before as many as are checked at once are asked.
func TestDomainsAreCheckedSeveralAtOnce(t *testing.T) {
	t.Parallel()
	names := map[string][]string{}
	for i := range checksAtOnce {
		tenant := []string{pgtest.Acme, pgtest.Brava}[i%2]
		names[tenant] = append(names[tenant], fmt.Sprintf("d%d", i))
	}
	s, out := withDomains(t, names)
	var lock sync.Mutex
	asked, all := map[string]bool{}, make(chan struct{})
	conn, err := new(net.ListenConfig).ListenPacket(t.Context(), "udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &dns.Server{PacketConn: conn, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		labels := dns.SplitDomainName(strings.ToLower(q.Question[0].Name))
		lock.Lock()
		if of := labels[len(labels)-2]; !asked[of] {
			if asked[of] = true; len(asked) == checksAtOnce {
				close(all)
			}
		}
		lock.Unlock()
		select {
		case <-all:
			a := new(dns.Msg).SetRcode(q, dns.RcodeNameError)
			_ = w.WriteMsg(a) // who asked may be gone
		case <-t.Context().Done():
		}
	})}
	go func() { _ = server.ActivateAndServe() }()
	t.Cleanup(func() { _ = server.Shutdown() })
	err = domainCheckCmd{All: true, Resolver: conn.LocalAddr().String(), Timeout: 20 * time.Second}.Run(t.Context(), s)
	if want := fmt.Sprintf("of %d domains %[1]d not as they should be", checksAtOnce); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("%v, want %s", err, want)
	}
	if got := out.String(); strings.Contains(got, "unanswered") || strings.Count(got, "is missing") < checksAtOnce {
		t.Errorf("a domain was not asked for while others were:\n%s", got)
	}
}
