package ingress

import (
	"context"
	"net"
	"sync"
	"time"

	"tapestry.dev/tapestry/share/conns"
)

// A client may have fewAtOnce connections begun at once. While it has more, its further connections wait in the lobby,
// and those of all such clients are begun one by one, beginEvery for each processor. To begin one, and its first
// request, takes half a millisecond of a processor, so all of them take an eighth of the processors, however many come.
const (
	fewAtOnce  = 256
	beginEvery = 4 * time.Millisecond
	// startTime is how long Shutdown waits for the first requests of connections that came from the lobby.
	startTime = time.Second
)

// laterListener accepts the connections of a guestListener that waited in the lobby.
type laterListener struct {
	addr     net.Addr
	arrivals chan *conn
	closed   chan struct{}
	close    func() // closes closed
}

func newLaterListener(addr net.Addr) *laterListener {
	l := &laterListener{addr: addr, arrivals: make(chan *conn), closed: make(chan struct{})}
	l.close = sync.OnceFunc(func() { close(l.closed) })
	return l
}

func (l *laterListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.arrivals:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *laterListener) Close() error {
	l.close()
	return nil
}

func (l *laterListener) Addr() net.Addr { return l.addr }

// arrive has a connection accepted that waited in the lobby. One whose client did not wait for it, which it may say by
// sending no more, is closed, and arrive reports false.
func arrive(c *conn) bool {
	if !conns.Left(c.Conn) {
		c.starts.Store(true)
		c.guests.starts.Begin()
		select {
		case c.later.arrivals <- c:
			return true
		case <-c.later.closed:
		}
	}
	c.Close()
	return false
}

// started notes that a request was begun on a connection that may have come from the lobby, or that none will be.
func (c *conn) started() {
	if c.starts.Load() && c.starts.CompareAndSwap(true, false) {
		c.guests.starts.End()
	}
}

// begun returns when all connections that came from the lobby have begun a request, after startTime, or when ctx ends.
func (g *guests) begun(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	g.starts.Wait(ctx)
}
