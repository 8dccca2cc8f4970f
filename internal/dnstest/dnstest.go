// Package dnstest is a DNS server for tests.
package dnstest

import (
	"net"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

// Serve answers questions of DNS from a zone on loopback, over UDP and TCP, until the test ends. Of names below dead.example it says SERVFAIL, and of those below
// mute.example nothing.
func Serve(tb testing.TB, zone string) string {
	tb.Helper()
	records := map[string][]dns.RR{}
	parser := dns.NewZoneParser(strings.NewReader("$TTL 60\n"+zone), ".", "")
	for rr, ok := parser.Next(); ok; rr, ok = parser.Next() {
		records[rr.Header().Name] = append(records[rr.Header().Name], rr)
	}
	if err := parser.Err(); err != nil {
		tb.Fatal(err)
	}
	handler := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		a := new(dns.Msg).SetReply(q)
		a.RecursionAvailable = true
		name := strings.ToLower(q.Question[0].Name)
		switch {
		case dns.IsSubDomain("mute.example.", name):
			return
		case dns.IsSubDomain("dead.example.", name):
			a.Rcode = dns.RcodeServerFailure
		}
		for hops := 0; hops < 10; hops++ {
			alias := ""
			for _, rr := range records[name] {
				if kind := rr.Header().Rrtype; kind == q.Question[0].Qtype {
					a.Answer = append(a.Answer, rr)
				} else if c, ok := rr.(*dns.CNAME); ok {
					a.Answer, alias = append(a.Answer, rr), c.Target
				}
			}
			if alias == "" {
				break
			}
			name = alias
		}
		if _, there := records[name]; !there && a.Rcode == dns.RcodeSuccess {
			a.Rcode = dns.RcodeNameError
		}
		if w.LocalAddr().Network() == "udp" {
			a.Truncate(dns.MinMsgSize)
		}
		_ = w.WriteMsg(a) // who asked may be gone
	})
	l, err := new(net.ListenConfig).Listen(tb.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	p, err := new(net.ListenConfig).ListenPacket(tb.Context(), "udp", l.Addr().String())
	if err != nil {
		tb.Fatal(err)
	}
	for _, s := range []*dns.Server{{Listener: l, Handler: handler}, {PacketConn: p, Handler: handler}} {
		started := make(chan struct{})
		s.NotifyStartedFunc = func() { close(started) }
		go func() { _ = s.ActivateAndServe() }()
		<-started
		tb.Cleanup(func() { _ = s.Shutdown() })
	}
	return l.Addr().String()
}
