// Package system tests the whole product: all functions together, with a real Postgres, real SMTP and real HTTP, from contacts to what became of each mail.
package system

import (
	"testing"

	"github.com/onda-run/onda/internal/bounce"
	"github.com/onda-run/onda/internal/campaign"
	"github.com/onda-run/onda/internal/fn"
	"github.com/onda-run/onda/internal/pgtest"
	"github.com/onda-run/onda/internal/renderform"
	"github.com/onda-run/onda/internal/schedule"
	"github.com/onda-run/onda/internal/segment"
	"github.com/onda-run/onda/internal/send"
	"github.com/onda-run/onda/internal/track"
)

// root is the directory of the module.
const root = "../.."

func TestMain(m *testing.M) { pgtest.Main(m) }

// builds are all functions, for one process.
func builds() map[string]fn.Build {
	return map[string]fn.Build{
		"bounce": bounce.Build, "campaign": campaign.Build, "render-form": renderform.Build, "schedule": schedule.Build,
		"segment": segment.Build, "send": send.Build, "track": track.Build,
	}
}

// company are the documents that the tests apply, in order.
func company() []string { return []string{root + "/examples/company", "testdata/season"} }
