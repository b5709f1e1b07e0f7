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
	// come from the same address, as behind a load balancer or NAT. While a client goes on that waits for its
	// connections, it is doubled every raiseEvery, up to longestPause. While a client gives up connections without that
	// wait, it is halved as often: the pause itself may be longer than these clients wait.
	calmPause    = 100 * time.Millisecond
	longestPause = 8 * calmPause
	raiseEvery   = time.Second
	// fewUnanswered is how many connections a client may give up unanswered within calmTime, whatever else it does. A
	// client that gives up more, and more than half of all, is watched.
	fewUnanswered = 250
	// mostCalmed bounds how many clients are watched, and how many are counted.
	mostCalmed = 4096
)

// calm slows down clients that take back their requests, or connect and shake hands for nothing. Most of what that
// costs has been paid when they leave, so a client that is only cut off, and connects again at once, costs the others
// as much as before. The zero value is ready for use, by any number of goroutines.
type calm struct {
	mu      sync.Mutex
	watched map[netip.Prefix]watched
	// count counts the connections opened since began, and is made anew after calmTime. It knows the clients who came
	// first. A connection is counted as unanswered where it was counted when it was opened.
	count map[netip.Prefix]*opened
	began time.Time
}

// watched says until when a client is watched, and how long each of its connections waits since raised, when that was
// last changed.
type watched struct {
	until, raised time.Time
	pause         time.Duration
}

// opened is how many connections a client opened within a time, and how many of these ended before a request was
// answered.
type opened struct{ all, unanswered int }

// watch watches a client from now on. When too many are watched, it is not. A client that is watched already and needs
// its connections for what it does waits longer.
func (c *calm) watch(client netip.Prefix, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.watchLocked(client, now, true)
}

func (c *calm) watchLocked(client netip.Prefix, now time.Time, raise bool) {
	if c.watched == nil {
		c.watched = map[netip.Prefix]watched{}
	}
	w, known := c.watched[client]
	if !known && len(c.watched) >= mostCalmed {
		for other, w := range c.watched {
			if now.After(w.until) {
				delete(c.watched, other)
			}
		}
		if len(c.watched) >= mostCalmed {
			return
		}
	}
	switch {
	case !known, now.After(w.until):
		w.raised, w.pause = now, calmPause
	case raise && now.Sub(w.raised) >= raiseEvery:
		w.raised, w.pause = now, min(2*w.pause, longestPause)
	case !raise && now.Sub(w.raised) >= raiseEvery:
		w.raised, w.pause = now, max(w.pause/2, calmPause)
	}
	w.until = now.Add(calmTime)
	c.watched[client] = w
}

// unanswered counts a connection that the client gave up before a request was answered; n is what pause returned for
// it. With too many of them the client is watched. waited says that the client was sent something, as in a TLS
// handshake: it had to wait for that, so it is slowed down by a longer pause.
func (c *calm) unanswered(client netip.Prefix, n *opened, now time.Time, waited bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if n == nil {
		return
	}
	if n.unanswered++; n.unanswered > fewUnanswered && 2*n.unanswered > n.all {
		c.watchLocked(client, now, waited)
	}
}

// pause counts a new connection of a client, and returns how long it waits before it is read, and where it was counted;
// nil is nowhere.
func (c *calm) pause(client netip.Prefix, now time.Time) (time.Duration, *opened) {
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
	w, known := c.watched[client]
	if known && now.After(w.until) {
		delete(c.watched, client)
		w.pause = 0
	}
	return w.pause, n
}
