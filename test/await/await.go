// Package await lets tests wait for another goroutine, a process or the kernel. A wait takes as long as it needs, also
// on a busy machine.
package await

import (
	"testing"
	"time"
)

// Patience is how long a test waits before it fails. It is no measure of speed: only a failing test takes so long.
const Patience = time.Minute

// pause is the time between two checks. Nothing signals when to check again.
const pause = time.Millisecond

// Until returns when ok returns true. If that takes too long it ends the test; what names what the test waited for.
func Until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(Patience); !ok(); time.Sleep(pause) {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", Patience, what)
		}
	}
}
