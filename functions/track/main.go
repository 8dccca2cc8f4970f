// Command track keeps what visitors do: opens, clicks, unsubscribes, preferences and the events of web pages and programs.
package main

import (
	"github.com/onda-run/onda/internal/fn"
	"github.com/onda-run/onda/internal/track"
)

func main() { fn.Main("track", track.Build) }
