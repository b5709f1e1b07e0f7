package node

import (
	"testing"
	"time"
)

// DrainLastFor replaces drainLastTime for one test.
func DrainLastFor(t testing.TB, limit time.Duration) {
	before := drainLastTime
	drainLastTime = limit
	t.Cleanup(func() { drainLastTime = before })
}
