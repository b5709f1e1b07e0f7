// Package await is how tests wait for what another goroutine, process or kernel does: for as long as it takes, on a
// busy machine too.
package await

import (
	"testing"
	"time"
)

// patience is how long a test waits before it takes what it waits for to be missing. It is no measure of speed: only a
// test that fails takes so long.
const patience = time.Minute

// pause lies between two looks. Nothing tells when it is time to look again.
const pause = time.Millisecond

// Until returns when ok does. It ends the test when that does not happen; what says what was waited for.
func Until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(pause) {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", patience, what)
		}
	}
}
