// Command bounce takes reports: of mails that came back, and of recipients who complained.
package main

import (
	"github.com/onda-run/onda/internal/bounce"
	"github.com/onda-run/onda/internal/fn"
)

func main() { fn.Main("bounce", bounce.Build) }
