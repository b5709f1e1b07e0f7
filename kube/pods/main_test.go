package pods

import (
	"testing"

	"tapestry.dev/tapestry/test/userns"
)

// The tests make TAPs, and fill a small file system.
func TestMain(m *testing.M) { userns.Main(m) }
