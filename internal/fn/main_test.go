package fn

import (
	"os"
	"testing"

	"go.uber.org/goleak"
)

// envHelper makes the test binary run as a function instead of running tests, so that signals and exit codes can be seen from outside.
const envHelper = "ONDA_TEST_FUNCTION"

func TestMain(m *testing.M) {
	if os.Getenv(envHelper) != "" {
		Main("helper", buildHelper)
	}
	goleak.VerifyTestMain(m)
}
