package main

import (
	"github.com/onda-run/onda/internal/bounce"
	"github.com/onda-run/onda/internal/campaign"
	"github.com/onda-run/onda/internal/fn"
	"github.com/onda-run/onda/internal/renderform"
	"github.com/onda-run/onda/internal/schedule"
	"github.com/onda-run/onda/internal/segment"
	"github.com/onda-run/onda/internal/send"
	"github.com/onda-run/onda/internal/track"
)

// builds are all functions, as their own binaries build them.
func builds() map[string]fn.Build {
	return map[string]fn.Build{
		"bounce": bounce.Build, "campaign": campaign.Build, "render-form": renderform.Build, "schedule": schedule.Build,
		"segment": segment.Build, "send": send.Build, "track": track.Build,
	}
}
