package page

import (
	"net/http"
	"net/netip"
	"strings"
)

// Origin gives the network address that a request came from, as text for hashing: never to be stored, logged or shown. proxies is how many proxies of ours stand before the function at the
// least: each adds an entry at the end of X-Forwarded-For, and what stands before those anybody can write. Where there are more, they are in a network of ours, as Knative's sidecar and
// its activator are, of which the one adds an entry to all requests and the other to some: such entries are passed over. An IPv6 address is cut to its /64, which is one connection. Empty
// when there is none.
func Origin(r *http.Request, proxies int) string {
	s := r.RemoteAddr
	if lines := r.Header.Values("X-Forwarded-For"); proxies > 0 && len(lines) > 0 {
		list := strings.Split(strings.Join(lines, ","), ",")
		i := max(0, len(list)-proxies)
		for s = list[i]; i > 0 && isOurs(parse(s)) && parse(list[i-1]).IsValid(); s = list[i] {
			i--
		}
	}
	a := parse(s)
	if !a.IsValid() {
		return ""
	}
	if a.Is6() {
		p, err := a.Prefix(64)
		if err != nil {
			return ""
		}
		return p.String()
	}
	return a.String()
}

// parse reads an address, with a port or without; the zero Addr where it is none.
func parse(s string) netip.Addr {
	s = strings.TrimSpace(s)
	a, err := netip.ParseAddr(s)
	if err != nil {
		ap, err := netip.ParseAddrPort(s)
		if err != nil {
			return netip.Addr{}
		}
		a = ap.Addr()
	}
	return a.Unmap().WithZone("")
}

// isOurs tells whether an address is of a network that nobody on the Internet is in: private, or of RFC 6598, as some clusters' are.
func isOurs(a netip.Addr) bool {
	if a.IsPrivate() || a.IsLoopback() || a.IsLinkLocalUnicast() {
		return true
	}
	return a.Is4() && a.As4()[0] == 100 && a.As4()[1]&0xc0 == 64
}
