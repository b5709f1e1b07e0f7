// Package awake has a clock for limits of time that must hold on a busy machine. Such a limit is about what is tested,
// and not about a machine that lets nobody run for a while: a virtual machine that was stopped, or one where compilers
// take all processors. The clock sees that its own process is not run, and stands still for that time.
package awake

import (
	"sync"
	"time"
)

const (
	// tick is how often a Clock asks to be run.
	tick = time.Millisecond
	// late is how much a Clock advances at most from one tick to the next. On a machine with nothing else to do the
	// ticks are closer together than that, so that the Clock is as exact as any other.
	late = 3 * tick
)

// Clock measures the time in which its process could run. It never advances faster than real time.
type Clock struct {
	mu     sync.Mutex
	seen   time.Time     // the last tick
	passed time.Duration // until then
	stop   chan struct{}
}

// Start returns a running Clock. Stop ends it.
func Start() *Clock {
	c := &Clock{seen: time.Now(), stop: make(chan struct{})}
	go func() {
		ticks := time.NewTicker(tick)
		defer ticks.Stop()
		for {
			select {
			case <-ticks.C:
				c.step(time.Now())
			case <-c.stop:
				return
			}
		}
	}()
	return c
}

// Now returns the time that has passed since Start, without what the machine took away.
func (c *Clock) Now() time.Duration { return c.step(time.Now()) }

// Stop ends the Clock, which may be read no longer.
func (c *Clock) Stop() { close(c.stop) }

func (c *Clock) step(now time.Time) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	if gap := now.Sub(c.seen); gap > 0 {
		c.passed += min(gap, late)
		c.seen = now
	}
	return c.passed
}
