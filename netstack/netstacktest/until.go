package netstacktest

import (
	"testing"
	"time"
)

// Until is when a test gives up what it waits for: shortly before go test gives up the test. A test on a busy machine
// is slow and not wrong, so nothing but a fault may use up that time.
func Until(t testing.TB) time.Time {
	const rest = 5 * time.Second // for the test's message, and for what it has to close
	if d, ok := t.(interface{ Deadline() (time.Time, bool) }); ok {
		if at, limited := d.Deadline(); limited {
			return at.Add(-rest)
		}
	}
	return time.Now().Add(time.Hour)
}

// GiveUp is a channel that is ready at Until.
func GiveUp(t testing.TB) <-chan time.Time { return time.After(time.Until(Until(t))) }
