// Command campaign moves contacts through campaigns: it enrols audiences, takes steps and plans batches.
package main

import (
	"github.com/onda-run/onda/internal/campaign"
	"github.com/onda-run/onda/internal/fn"
)

func main() { fn.Main("campaign", campaign.Build) }
