// Command render-form shows forms: and takes what is sent in, with the consent that was given.
package main

import (
	"github.com/onda-run/onda/internal/fn"
	"github.com/onda-run/onda/internal/renderform"
)

func main() { fn.Main("render-form", renderform.Build) }
