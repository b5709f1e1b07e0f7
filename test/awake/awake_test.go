package awake

import (
	"testing"
	"testing/synctest"
	"time"
)

// On a machine that runs the process whenever it asks for that, the Clock shows real time.
func TestExact(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ended := make(chan struct{})
		c := start(func() float64 { return 1 }, func() { close(ended) })
		time.Sleep(1234567 * time.Microsecond)
		if got := c.Now(); got != 1234567*time.Microsecond {
			t.Errorf("%s passed, want 1.234567s", got)
		}
		c.Stop()
		<-ended
	})
}

// Where a program gets a quarter of a processor, the Clock is four times slower.
func TestBusy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := start(func() float64 { return 0.25 }, func() {})
		defer c.Stop()
		time.Sleep(time.Second)
		if got := c.Now(); got != time.Second/4 {
			t.Errorf("%s passed, want 250ms", got)
		}
	})
}

// A Clock that is not run stands still, however often it is read afterwards, and never goes back.
func TestStall(t *testing.T) {
	begun := time.Now()
	c := Clock{seen: begun, share: 1}
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
		if got := c.step(begun.Add(step.at), nil); got != step.want {
			t.Errorf("after %s: %s, want %s", step.at, got, step.want)
		}
	}
}

// The lesser of the shares at both ends of a tick counts for the time between.
func TestShares(t *testing.T) {
	begun := time.Now()
	c := Clock{seen: begun, share: 1}
	want := time.Duration(0)
	for i, s := range []struct {
		share float64
		adds  time.Duration
	}{{1, time.Millisecond}, {0.5, 500 * time.Microsecond}, {1, 500 * time.Microsecond}, {1, time.Millisecond}} {
		want += s.adds
		if got := c.step(begun.Add(time.Duration(i+1)*time.Millisecond), &s.share); got != want {
			t.Errorf("tick %d: %s, want %s", i, got, want)
		}
	}
}

func TestRunning(t *testing.T) {
	for text, want := range map[string]float64{
		"54.86 40.72 30.80 7/812 29411\n": 7, "0.00 0.00 0.00 1/80 2\n": 1, "": 1, "1 2 3": 1, "a b c d/e": 1, "1 2 3 0/9 4": 1,
	} {
		if got := running(text); got != want {
			t.Errorf("%q: %v, want %v", text, got, want)
		}
	}
	share, end := processors()
	defer end()
	if got := share(); got <= 0 || got > 1 {
		t.Errorf("a program gets %v of a processor", got)
	}
}
