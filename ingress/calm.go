package ingress

import (
	"net/netip"
	"sync"
	"time"
)

const (
	// calmTime is how long a client is watched after one of its connections was ended for taking back its requests.
	calmTime = 10 * time.Second
	// calmPause is how long each new connection of such a client waits before it is read. It is short, since others may
	// come from the same address, as behind a load balancer or NAT.
	calmPause = 100 * time.Millisecond
	// mostCalmed bounds how many clients are watched.
	mostCalmed = 4096
)

// calm slows down clients that take back their requests. Most of what such a request costs has been paid when it is
// taken back, so a client that is only cut off, and connects again at once, costs the others as much as before. The
// zero value is ready for use, by any number of goroutines.
type calm struct {
	mu    sync.Mutex
	until map[netip.Prefix]time.Time // the client is no longer watched
}

// watch watches a client from now on. When too many are watched, it is not.
func (c *calm) watch(client netip.Prefix, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
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

// pause returns how long a new connection of a client waits before it is read.
func (c *calm) pause(client netip.Prefix, now time.Time) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
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
