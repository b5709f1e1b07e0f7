package ingress

import (
	"context"
	"sync"
	"sync/atomic"
)

// Stats are counters since New, but for InFlight.
type Stats struct {
	Requests uint64
	InFlight int64 // requests and upgraded connections at this moment
	// Responses that came from backends, by class: [2] counts 200 to 299. [0] is not used.
	Responses  [6]uint64
	NoRoute    uint64 // answered 404
	NoEndpoint uint64 // answered 503
	BadGateway uint64 // answered 502
	Timeout    uint64 // answered 504
	ClientGone uint64 // the client left before the backend answered
	Retries    uint64 // requests passed on to another endpoint, after a failed dial
	// FallbackTLS counts handshakes with the self-signed certificate.
	FallbackTLS uint64
	// Cut are requests and upgraded connections that were still there when Shutdown ran out of time.
	Cut uint64
}

// Stats returns the counters. They are read one by one: sums may be off by what happens meanwhile.
func (g *Gateway) Stats() Stats {
	c := &g.stats
	s := Stats{
		Requests: c.requests.Load(), InFlight: c.inFlight.Load(),
		NoRoute: c.noRoute.Load(), NoEndpoint: c.noEndpoint.Load(), BadGateway: c.badGateway.Load(),
		Timeout: c.timeout.Load(), ClientGone: c.clientGone.Load(), Retries: c.retries.Load(),
		FallbackTLS: c.fallbackTLS.Load(), Cut: c.cut.Load(),
	}
	for i := range s.Responses {
		s.Responses[i] = c.responses[i].Load()
	}
	return s
}

type counters struct {
	inFlight                                  atomic.Int64
	requests, noRoute, noEndpoint, badGateway atomic.Uint64
	timeout, clientGone, retries, fallbackTLS atomic.Uint64
	cut                                       atomic.Uint64
	responses                                 [6]atomic.Uint64
}

func (c *counters) class(status int) {
	if i := status / 100; 0 < i && i < len(c.responses) {
		c.responses[i].Add(1)
	}
}

// upgrades are the requests that may leave http.Server's own book-keeping by being upgraded. Not a WaitGroup: one may
// begin while another goroutine waits.
type upgrades struct {
	mu    sync.Mutex
	conns map[*client]int // requests per connection
	idle  chan struct{}   // closed and forgotten when conns is empty; nil while nobody waits
}

func (u *upgrades) begin(c *client) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.conns == nil {
		u.conns = map[*client]int{}
	}
	u.conns[c]++
}

func (u *upgrades) end(c *client) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.conns[c]--; u.conns[c] == 0 {
		delete(u.conns, c)
	}
	if len(u.conns) == 0 && u.idle != nil {
		close(u.idle)
		u.idle = nil
	}
}

// close ends the client's side of every upgraded connection; the backend's ends with its request's context.
func (u *upgrades) close() {
	u.mu.Lock()
	defer u.mu.Unlock()
	for c := range u.conns {
		c.conn.Close()
	}
}

// wait returns when there are none, or with ctx's error.
func (u *upgrades) wait(ctx context.Context) error {
	u.mu.Lock()
	if len(u.conns) == 0 {
		u.mu.Unlock()
		return nil
	}
	if u.idle == nil {
		u.idle = make(chan struct{})
	}
	idle := u.idle
	u.mu.Unlock()
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
