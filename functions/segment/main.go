// Command segment keeps memberships: in full, or for the contacts that changed.
package main

import (
	"github.com/onda-run/onda/internal/fn"
	"github.com/onda-run/onda/internal/segment"
)

func main() { fn.Main("segment", segment.Build) }
