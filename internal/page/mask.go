package page

import "strings"

// Mask shows enough of an address to tell which of one's own it is: a link may have been passed on.
func Mask(email string) string {
	local, domain, ok := strings.Cut(email, "@")
	if !ok {
		return "…"
	}
	for i := range local {
		if i > 0 {
			return local[:i] + "…@" + domain
		}
	}
	return "…@" + domain
}
