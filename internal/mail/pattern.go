package mail

import (
	"regexp"
	"sync"
)

// pattern is a regular expression that is compiled when it is first needed: most processes end before they see a bounce, and none should start later for it.
func pattern(expr string) func() *regexp.Regexp {
	return sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(expr) })
}
