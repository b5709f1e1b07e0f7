package http1

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"tapestry.dev/tapestry/share"
)

// Bounds of dials. A dial goes on when the request that it was begun for is gone, and its connection is for whoever is
// next. So however many requests come and go, no more dials than these are under way.
const (
	maxDials        = 1024 // to all addresses; one more to each address to which there is none
	maxDialsPerAddr = 16
	// dialGrace is how much longer than DialTimeout a request waits, so that it is told of a dial that began with it
	// and failed. What the dial said tells whether the server is there.
	dialGrace = 100 * time.Millisecond
)

var (
	// ErrNoConnection says that a request had no connection in time, and was told of no failed dial. Nothing was sent.
	ErrNoConnection = fmt.Errorf("no connection to the server was to be had: %w", os.ErrDeadlineExceeded)
	errClosed       = errors.New("the client is closed")
)

// origin is what a Client has at one address. The Client's mutex guards it.
type origin struct {
	addr    string
	idle    []*conn // the longest idle first
	dials   int     // under way
	waiting share.Line[netip.Prefix, *waiter]
}

// waiter is a request that waits for a connection.
type waiter struct {
	place share.Place[netip.Prefix, *waiter]
	fresh bool       // only a new connection will do
	got   chan given // holds one
}

// given is what a waiter gets.
type given struct {
	conn *conn
	err  error // of the dial
}

// origin returns what c has at an address. mu is held.
func (c *Client) origin(addr string) *origin {
	s := c.origins[addr]
	if s == nil {
		s = &origin{addr: addr}
		c.origins[addr] = s
	}
	return s
}

// forget drops s when nothing is left in it. mu is held.
func (c *Client) forget(s *origin) {
	if len(s.idle) == 0 && s.dials == 0 && s.waiting.Len() == 0 && c.origins[s.addr] == s {
		delete(c.origins, s.addr)
	}
}

// connect waits for a connection to addr, at most for DialTimeout and dialGrace: a new one, or, unless fresh is set,
// one that becomes free meanwhile.
func (c *Client) connect(ctx context.Context, addr string, owner netip.Prefix, fresh bool) (*conn, error) {
	w := &waiter{fresh: fresh, got: make(chan given, 1)}
	w.place.Value = w
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil, errClosed
	}
	s := c.origin(addr)
	s.waiting.Add(&w.place, owner)
	c.dial(s)
	c.mu.Unlock()
	var late <-chan time.Time
	if c.o.DialTimeout > 0 {
		timer := time.NewTimer(c.o.DialTimeout + dialGrace)
		defer timer.Stop()
		late = timer.C
	}
	err := ErrNoConnection
	select {
	case g := <-w.got:
		return g.conn, g.err
	case <-ctx.Done():
		err = ctx.Err()
	case <-late:
	}
	c.mu.Lock()
	waited := s.waiting.Remove(&w.place)
	c.forget(s)
	c.mu.Unlock()
	if waited {
		return nil, err
	}
	g := <-w.got // it came at the same time
	if g.err == nil && ctx.Err() != nil {
		c.put(g.conn)
		return nil, ctx.Err()
	}
	return g.conn, g.err
}

// dial begins as many dials as there are requests without one, within the bounds. mu is held.
func (c *Client) dial(s *origin) {
	for !c.closed && s.dials < min(maxDialsPerAddr, s.waiting.Len()) && (c.dials < maxDials || s.dials == 0) {
		s.dials++
		c.dials++
		c.dialling.Go(func() { c.dialOne(s) })
	}
}

// dialOne gives what becomes of one dial to the next request that waits. A connection that nobody waits for is kept.
func (c *Client) dialOne(s *origin) {
	ctx := c.ctx
	if c.o.DialTimeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, c.o.DialTimeout)
		defer cancel()
	}
	raw, err := c.o.Dial(ctx, s.addr)
	g := given{err: err}
	if err == nil {
		g.conn = &conn{Conn: raw, client: c, addr: s.addr}
	}
	c.mu.Lock()
	s.dials--
	c.dials--
	next := s.waiting.Next()
	c.dial(s)
	c.forget(s)
	c.mu.Unlock()
	switch {
	case next != nil:
		next.Value.got <- g
	case err == nil:
		c.put(g.conn)
	}
}
