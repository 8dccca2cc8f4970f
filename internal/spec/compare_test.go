package spec

import (
	"regexp"

	"github.com/google/go-cmp/cmp"
)

// compare are the options under which documents are equal.
func compare() cmp.Options {
	return cmp.Options{
		cmp.AllowUnexported(Moment{}),
		cmp.Comparer(func(a, b *regexp.Regexp) bool {
			if a == nil || b == nil {
				return a == b
			}
			return a.String() == b.String()
		}),
	}
}
