package ingress

import (
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
		select {
		case c.later.arrivals <- c:
			return true
		case <-c.later.closed:
		}
	}
	c.Close()
	return false
}
