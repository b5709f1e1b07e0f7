package awake

import (
	"testing"
	"testing/synctest"
	"time"
)

// On a machine that runs the process whenever it asks for that, the Clock shows real time.
func TestExact(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := Start()
		defer c.Stop()
		time.Sleep(1234567 * time.Microsecond)
		if got := c.Now(); got != 1234567*time.Microsecond {
			t.Errorf("%s passed, want 1.234567s", got)
		}
	})
}

// A Clock that is not run stands still, however often it is read afterwards, and never goes back.
func TestStall(t *testing.T) {
	begun := time.Now()
	c := Clock{seen: begun}
	for _, step := range []struct{ at, want time.Duration }{
		{0, 0},
		{time.Millisecond, time.Millisecond},
		{2500 * time.Microsecond, 2500 * time.Microsecond},
		{5500 * time.Microsecond, 5500 * time.Microsecond}, // a tick that was late
		{5 * time.Second, 8500 * time.Microsecond},         // a stall
		{5 * time.Second, 8500 * time.Microsecond},
		{4 * time.Second, 8500 * time.Microsecond}, // somebody who read the time before
		{5001 * time.Millisecond, 9500 * time.Microsecond},
	} {
		if got := c.step(begun.Add(step.at)); got != step.want {
			t.Errorf("after %s: %s, want %s", step.at, got, step.want)
		}
	}
}
