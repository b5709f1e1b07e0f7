// Package awake has a clock for limits of time that must hold on a busy machine. Such a limit is about what is tested,
// and not about a machine that lets nobody run for a while, or on which compilers take all processors. The clock goes
// as fast as such a machine lets a program run, and as fast as any other clock where there is nothing else to do.
package awake

import (
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	// tick is how often a Clock asks to be run.
	tick = time.Millisecond
	// late is how much a Clock advances at most from one tick to the next. Ticks are further apart on a machine that
	// was stopped.
	late = 3 * tick
)

// Clock measures the time in which its process could run. It never advances faster than real time.
type Clock struct {
	stop chan struct{}

	mu     sync.Mutex
	seen   time.Time     // the last step
	passed time.Duration // until then
	share  float64       // of a processor that a program gets, as the last tick found
}

// Start returns a running Clock. Stop ends it.
func Start() *Clock { return start(processors()) }

// start is Start with a func that finds the share of a processor that a program gets, and one that is called at the
// end.
func start(share func() float64, end func()) *Clock {
	c := &Clock{seen: time.Now(), share: share(), stop: make(chan struct{})}
	go func() {
		defer end()
		ticks := time.NewTicker(tick)
		defer ticks.Stop()
		for {
			select {
			case <-ticks.C:
				s := share()
				c.step(time.Now(), &s)
			case <-c.stop:
				return
			}
		}
	}()
	return c
}

// Now returns the time that has passed since Start, without what the machine took away.
func (c *Clock) Now() time.Duration { return c.step(time.Now(), nil) }

// Stop ends the Clock, which may be read no longer.
func (c *Clock) Stop() { close(c.stop) }

// step advances the Clock. share is what was found at a tick, or nil.
func (c *Clock) step(now time.Time, share *float64) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	if share != nil {
		c.share = min(c.share, *share) // whoever began to run since the last tick may have run for all of the time
	}
	if gap := now.Sub(c.seen); gap > 0 {
		c.passed += time.Duration(float64(min(gap, late)) * c.share)
		c.seen = now
	}
	if share != nil {
		c.share = *share
	}
	return c.passed
}

// processors returns a func that finds the share of a processor that a program gets of this machine now, which is 1
// unless more want to run than there are processors, and a func to call at the end. A machine that does not tell has
// nothing else to do.
func processors() (share func() float64, end func()) {
	f, err := os.Open("/proc/loadavg")
	if err != nil {
		return func() float64 { return 1 }, func() {}
	}
	cpus, buf := float64(runtime.NumCPU()), make([]byte, 100)
	return func() float64 {
		n, _ := f.ReadAt(buf, 0)
		return min(1, cpus/running(string(buf[:n])))
	}, func() { f.Close() }
}

// running returns how many threads run or want to, as /proc/loadavg has it (proc_loadavg(5)); 1 when it says nothing.
func running(loadavg string) float64 {
	if f := strings.Fields(loadavg); len(f) > 3 {
		now, _, _ := strings.Cut(f[3], "/")
		if n, err := strconv.Atoi(now); err == nil && n > 0 {
			return float64(n)
		}
	}
	return 1
}
