package nodeinit

import (
	"testing"

	"tapestry.dev/tapestry/test/userns"
)

func TestMain(m *testing.M) { userns.Main(m) }
