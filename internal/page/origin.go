package page

import (
	"net/http"
	"net/netip"
	"strings"
)

// Origin gives the network address that a request came from, as text for hashing: never to be stored, logged or shown. proxies is how many proxies of ours stand before the function: each adds
// an entry at the end of X-Forwarded-For, and what stands before those anybody can write. An IPv6 address is cut to its /64, which is one connection. Empty when there is none.
func Origin(r *http.Request, proxies int) string {
	s := r.RemoteAddr
	if lines := r.Header.Values("X-Forwarded-For"); proxies > 0 && len(lines) > 0 {
		list := strings.Split(strings.Join(lines, ","), ",")
		s = strings.TrimSpace(list[max(0, len(list)-proxies)])
	}
	a, err := netip.ParseAddr(s)
	if err != nil {
		ap, err := netip.ParseAddrPort(s)
		if err != nil {
			return ""
		}
		a = ap.Addr()
	}
	a = a.Unmap().WithZone("")
	if a.Is6() {
		p, err := a.Prefix(64)
		if err != nil {
			return ""
		}
		return p.String()
	}
	return a.String()
}
