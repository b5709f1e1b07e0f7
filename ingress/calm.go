package ingress

import (
	"net/netip"
	"sync"
	"time"
)

const (
	// calmTime is how long a client is watched after one of its connections was ended for taking back its requests.
	calmTime = 10 * time.Second
	// calmPause is the time between two connections of such a client that are read. Each may take back fewRequests.
	calmPause = 100 * time.Millisecond
	// longestCalm is how long a connection waits at most to be read. Those that would wait longer are closed.
	longestCalm = 2 * time.Second
	// mostCalmed bounds how many clients are watched.
	mostCalmed = 4096
)

// calm slows down clients that take back their requests: most of what such a request costs has been paid when it is
// taken back, so that who is only cut off, and connects again, costs the others as much as before. Connections of a
// client that is watched are read one after the other. The zero value is ready for use, by any number of goroutines.
type calm struct {
	mu      sync.Mutex
	clients map[netip.Prefix]*calmed
}

// calmed is a client that is watched.
type calmed struct {
	until time.Time // it is no longer watched
	next  time.Time // the next connection is read
}

// watch watches a client from now on.
func (c *calm) watch(client netip.Prefix, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if w := c.clients[client]; w != nil {
		w.until = now.Add(calmTime)
		return
	}
	if c.clients == nil {
		c.clients = map[netip.Prefix]*calmed{}
	}
	if len(c.clients) >= mostCalmed {
		for other, w := range c.clients {
			if now.After(w.until) {
				delete(c.clients, other)
			}
		}
	}
	if len(c.clients) < mostCalmed {
		c.clients[client] = &calmed{until: now.Add(calmTime), next: now.Add(calmPause)}
	}
}

// wait returns how long a new connection of a client is not read. ok is false when the connection is to be closed.
func (c *calm) wait(client netip.Prefix, now time.Time) (pause time.Duration, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	w := c.clients[client]
	switch {
	case w == nil:
		return 0, true
	case now.After(w.until):
		delete(c.clients, client)
		return 0, true
	case w.next.Before(now):
		w.next = now
	}
	if pause = w.next.Sub(now); pause > longestCalm {
		return 0, false
	}
	w.next = w.next.Add(calmPause)
	return pause, true
}
