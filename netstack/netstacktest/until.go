package netstacktest

import (
	"testing"
	"time"
)

// Until returns the time at which a test gives up waiting: shortly before go test ends the test. A test on a busy
// machine is slow and not wrong, so only a fault may use up that time.
func Until(t testing.TB) time.Time {
	const rest = 5 * time.Second // for the test's message and its cleanups
	if d, ok := t.(interface{ Deadline() (time.Time, bool) }); ok {
		if at, limited := d.Deadline(); limited {
			return at.Add(-rest)
		}
	}
	return time.Now().Add(time.Hour)
}

// GiveUp returns a channel that is ready at Until.
func GiveUp(t testing.TB) <-chan time.Time { return time.After(time.Until(Until(t))) }
