package poll

import (
	"time"

	"golang.org/x/sys/unix"
)

// Another processor has to wake a loop that sleeps. On a virtual machine whose processor was halted this takes 15 to 40
// us, as long as the work that follows. So where events come singly and often, as requests and replies do, one loop
// looks for the next event a moment longer before it sleeps (it lingers). Where there is much to do no loop lingers,
// because pods and loops share the processors. A node at rest has no events, so no loop lingers there either.
const (
	// lingering is how long a loop looks for an event before it sleeps.
	lingering = 40 * time.Microsecond
	// often is the longest time between two events that come often.
	often = 150 * time.Microsecond
	// An event that takes more than long to handle means that there is much to do. The Poller remembers this for busy.
	long = 40 * time.Microsecond
	busy = 2 * time.Millisecond
)

// rhythm describes how events come to a loop: brisk if the last one came soon after the one before, long if handling it
// took long.
type rhythm struct {
	last        time.Duration // when the loop last woke, or finished handling an event
	found       time.Duration // when it last found nothing to do, or woke
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

// calm reports whether no loop had much to do lately.
func (p *Poller) calm() bool { return p.now()-time.Duration(p.busyAt.Load()) > busy }

// linger looks for an event without sleeping, unless another loop is doing this.
func (p *Poller) linger(event *unix.EpollEvent) (n int, errno unix.Errno) {
	if !p.lingers.CompareAndSwap(false, true) {
		return 0, 0
	}
	defer p.lingers.Store(false)
	for end := p.now() + lingering; n == 0 && p.now() < end; {
		n, errno = p.wait(event, 0)
	}
	return n, errno
}
