package ingress

import (
	"net/netip"
	"sync"
	"time"
)

const (
	// calmTime is how long a client is watched after it was found to take back its requests.
	calmTime = 10 * time.Second
	// calmPause is how long each new connection of such a client waits before it is read. It is short, since others may
	// come from the same address, as behind a load balancer or NAT.
	calmPause = 100 * time.Millisecond
	// fewUnanswered is how many connections a client may give up unanswered within calmTime, whatever else it does. A
	// client that gives up more, and more than half of all, is watched.
	fewUnanswered = 250
	// mostCalmed bounds how many clients are watched, and how many are counted.
	mostCalmed = 4096
)

// calm slows down clients that take back their requests. Most of what such a request costs has been paid when it is
// taken back, so a client that is only cut off, and connects again at once, costs the others as much as before. The
// zero value is ready for use, by any number of goroutines.
type calm struct {
	mu    sync.Mutex
	until map[netip.Prefix]time.Time // the client is no longer watched
	// count counts connections since began, and is made anew after calmTime. It knows the clients who came first.
	count map[netip.Prefix]*opened
	began time.Time
}

// opened is how many connections a client opened, and how many of them ended before anything was sent to the client.
type opened struct{ all, unanswered int }

// watch watches a client from now on. When too many are watched, it is not.
func (c *calm) watch(client netip.Prefix, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.watchLocked(client, now)
}

func (c *calm) watchLocked(client netip.Prefix, now time.Time) {
	if c.until == nil {
		c.until = map[netip.Prefix]time.Time{}
	}
	if _, watched := c.until[client]; !watched && len(c.until) >= mostCalmed {
		for other, until := range c.until {
			if now.After(until) {
				delete(c.until, other)
			}
		}
		if len(c.until) >= mostCalmed {
			return
		}
	}
	c.until[client] = now.Add(calmTime)
}

// unanswered counts a connection that the client gave up before anything was sent to it. With too many of them the
// client is watched.
func (c *calm) unanswered(client netip.Prefix, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := c.count[client]
	if n == nil {
		return
	}
	if n.unanswered++; n.unanswered > fewUnanswered && 2*n.unanswered > n.all {
		c.watchLocked(client, now)
	}
}

// pause counts a new connection of a client, and returns how long it waits before it is read.
func (c *calm) pause(client netip.Prefix, now time.Time) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.count == nil || now.Sub(c.began) > calmTime {
		c.count, c.began = map[netip.Prefix]*opened{}, now
	}
	n := c.count[client]
	if n == nil && len(c.count) < mostCalmed {
		n = new(opened)
		c.count[client] = n
	}
	if n != nil {
		n.all++
	}
	until, watched := c.until[client]
	switch {
	case !watched:
		return 0
	case now.After(until):
		delete(c.until, client)
		return 0
	}
	return calmPause
}
