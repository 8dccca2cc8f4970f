// Command schedule wakes whoever has work due: it posts schedule.due straight to the functions, past any broker.
package main

import (
	"github.com/onda-run/onda/internal/fn"
	"github.com/onda-run/onda/internal/schedule"
)

func main() { fn.Main("schedule", schedule.Build) }
