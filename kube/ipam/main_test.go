package ipam

import (
	"os"
	"testing"

	"tapestry.dev/tapestry/test/userns"
)

// The tests mount a small file system, to fill it. Other files are where a sync costs nothing.
func TestMain(m *testing.M) {
	if _, err := os.Stat("/dev/shm"); err == nil {
		os.Setenv("TMPDIR", "/dev/shm")
	}
	userns.Main(m)
}
