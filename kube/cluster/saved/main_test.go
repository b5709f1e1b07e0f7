package saved

import (
	"testing"

	"tapestry.dev/tapestry/test/userns"
)

// TestMain runs the tests where they may mount a small file system.
func TestMain(m *testing.M) { userns.Main(m) }
