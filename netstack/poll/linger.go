package poll

import (
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// A loop that sleeps is woken by another processor, which takes as long as all that it then does: 15 to 40 us on a
// virtual machine whose processor was halted. Where events come one by one and often, as requests and replies do, one
// loop looks for the next one a moment longer. Where there is much to do nobody does: pods and loops share the
// processors. A node at rest has no events, and so nobody lingers there.
const (
	// lingering is how long a loop looks before it sleeps.
	lingering = 40 * time.Microsecond
	// often is how soon one event follows the other then.
	often = 150 * time.Microsecond
	// long is what handling takes when there is much to do, and busy how long that is remembered.
	long = 40 * time.Microsecond
	busy = 2 * time.Millisecond
)

// rhythm is how events come to a loop.
type rhythm struct {
	last        time.Duration // when it woke, or had handled what it woke for
	brisk, long bool
}

func (r *rhythm) woke(now time.Duration) {
	r.brisk = now-r.last < often
	r.last = now
}

func (r *rhythm) handled(now time.Duration) {
	r.long = now-r.last > long
	r.last = now
}

func (p *Poller) now() time.Duration { return time.Since(p.start) }

// calm reports whether no loop had much to do of late.
func (p *Poller) calm() bool { return p.now()-time.Duration(p.busyAt.Load()) > busy }

// linger looks for an event without sleeping, unless another loop does already.
func (p *Poller) linger(event *unix.EpollEvent) (n int, errno unix.Errno) {
	if !p.lingers.CompareAndSwap(false, true) {
		return 0, 0
	}
	defer p.lingers.Store(false)
	for end := p.now() + lingering; n == 0 && p.now() < end; {
		runtime.Gosched()
		n, errno = p.wait(event, 0)
	}
	return n, errno
}
