package ingress

import (
	"net/netip"
	"sync"
	"time"
)

// A body that comes in pieces below crumb costs the same for each of them. After more than fewCrumbs such pieces in a
// row the body is one of crumbs. When a client has more than manyBodies of them at once, each waits a while before each
// read: the kernel collects the pieces meanwhile. The wait grows by one millisecond with each body, up to longestNap. A
// larger piece ends that, after a wait one of fewCrumbs times crumb.
const (
	crumb      = 64
	fewCrumbs  = 4
	manyBodies = 256
	longestNap = 4 * time.Second
)

// napOf returns how long a body of crumbs is not read, when its client has so many of them.
func napOf(bodies int) time.Duration {
	return min(time.Duration(max(0, bodies-manyBodies))*time.Millisecond, longestNap)
}

// crumbs counts the bodies of crumbs of each client. The zero value is ready for use, by any number of goroutines.
type crumbs struct {
	mu     sync.Mutex
	bodies map[netip.Prefix]int // more than 0 each
}

// crumbling is what crumbs knows of one body. One goroutine calls read; over may be called by another.
type crumbling struct {
	row            int  // pieces below crumb in a row
	napped         bool // before the next read
	counted, ended bool // guarded by the mu of crumbs
}

// read notes that a read of a body got n bytes.
func (c *crumbs) read(b *crumbling, owner netip.Prefix, n int) {
	least := crumb
	if b.napped {
		least *= fewCrumbs
	}
	switch {
	case n >= least:
		if b.row > fewCrumbs {
			c.note(b, owner, false)
		}
		b.row = 0
	case n > 0: // the end of a body is no piece
		if b.row++; b.row == fewCrumbs+1 {
			c.note(b, owner, true)
		}
	}
}

// nap returns how long the next read of a body waits.
func (c *crumbs) nap(b *crumbling, owner netip.Prefix) time.Duration {
	b.napped = false
	if b.row <= fewCrumbs {
		return 0
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	d := napOf(c.bodies[owner])
	b.napped = d > 0
	return d
}

// over forgets a body. Later reads do not count.
func (c *crumbs) over(b *crumbling, owner netip.Prefix) {
	c.mu.Lock()
	defer c.mu.Unlock()
	b.ended = true
	c.noteLocked(b, owner, false)
}

func (c *crumbs) note(b *crumbling, owner netip.Prefix, counts bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.noteLocked(b, owner, counts && !b.ended)
}

func (c *crumbs) noteLocked(b *crumbling, owner netip.Prefix, counts bool) {
	if b.counted == counts {
		return
	}
	b.counted = counts
	if c.bodies == nil {
		c.bodies = map[netip.Prefix]int{}
	}
	if counts {
		c.bodies[owner]++
		return
	}
	if c.bodies[owner]--; c.bodies[owner] == 0 {
		delete(c.bodies, owner)
	}
}
