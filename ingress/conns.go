package ingress

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/addressing"
	"tapestry.dev/tapestry/share"
)

const (
	// touchEvery is how much older than its last byte a connection may seem when the one is looked for that was not
	// used for longest.
	touchEvery = time.Second
	// Of so many requests in HTTP/2 a connection may not have taken back half at once: each costs a backend a
	// connection.
	fewRequests = 500
	// atOnce is within how long of its beginning a request is taken back at once.
	atOnce = time.Second
)

var (
	// errShare: others, who have less, needed the place.
	errShare = errors.New("the client has more requests under way than its share")
	longAgo  = time.Unix(1, 0) // a deadline that has passed
)

// guests are the connections of all clients, of which there are so many at most. Each is charged to its owner.
type guests struct {
	limit  *share.Limit[netip.Prefix, *conn]
	stats  *counters
	ending atomic.Bool // nobody is waited for any more
}

// conn is a client's connection.
type conn struct {
	net.Conn
	guests  *guests
	claim   share.Claim[netip.Prefix, *conn]
	touched atomic.Int64 // Unix nanoseconds
	rest    bool         // what was read last did not end as a request's head ends
	lost    atomic.Bool  // in HTTP/1: it is not known where the next request begins
	closing atomic.Bool  // Close has been called on a lost one
}

// guestListener gives connections that have found a place.
type guestListener struct {
	net.Listener
	guests *guests
}

func (l guestListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if admitted, ok := l.guests.admit(c); ok {
			return admitted, nil
		}
	}
}

// admit gives a connection a place, at the cost of another when there is none left.
func (g *guests) admit(c net.Conn) (*conn, bool) {
	cn := &conn{Conn: c, guests: g}
	cn.claim.Value = cn
	lost, ok := g.limit.Acquire(&cn.claim, addressing.Client(remote(c)))
	if lost != nil {
		g.stats.evicted.Add(1)
		lost.Value.Conn.Close()
	}
	if !ok {
		g.stats.refused.Add(1)
		c.Close()
		return nil, false
	}
	return cn, true
}

func remote(c net.Conn) netip.Addr {
	if a, ok := c.RemoteAddr().(*net.TCPAddr); ok {
		return a.AddrPort().Addr().Unmap()
	}
	return netip.Addr{}
}

func (c *conn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 {
		c.touch()
		c.rest = n < 4 || string(p[n-4:n]) != "\r\n\r\n"
	}
	return n, err
}

func (c *conn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	if n > 0 {
		c.touch()
	}
	return n, err
}

// touch notes that the connection is in use.
func (c *conn) touch() {
	now := time.Now().UnixNano()
	if last := c.touched.Load(); now-last >= int64(touchEvery) && c.touched.CompareAndSwap(last, now) {
		c.guests.limit.Touch(&c.claim)
	}
}

// Close waits for the client when it may still be sending; a second Close ends that. Closed at once the connection would
// be reset, and many clients lose the response with that: they look for it when they have sent everything (RFC 9112
// section 9.6).
func (c *conn) Close() error {
	if c.lost.Load() && !c.guests.ending.Load() && c.closing.CompareAndSwap(false, true) && c.CloseWrite() == nil {
		_ = c.Conn.SetReadDeadline(time.Now().Add(lingerTime))
		_, _ = io.Copy(io.Discard, c.Conn)
	}
	c.guests.limit.Release(&c.claim)
	return c.Conn.Close()
}

// CloseWrite ends the direction to the client, as net/http does before it closes a connection that still gets
// something.
func (c *conn) CloseWrite() error {
	if w, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return errors.ErrUnsupported
}

// client is a connection as requests see it. What backends are told about it is made once; these slices are header
// values, shared by requests: never written to.
type client struct {
	conn              net.Conn
	under             *conn // conn itself, or what TLS runs over; nil in no listener
	owner             netip.Prefix
	addr, proto, port []string
	requests, taken   atomic.Uint32 // in HTTP/2: all, and those taken back at once
	flooded           atomic.Bool   // too many were
}

type clientKey struct{}

// withClient is the server's ConnContext.
func withClient(ctx context.Context, c net.Conn) context.Context {
	cl := &client{conn: c, proto: []string{"http"}}
	port := "80"
	if _, ok := c.(*tls.Conn); ok {
		cl.proto, port = []string{"https"}, "443"
	}
	cl.under = under(c)
	if a, ok := c.LocalAddr().(*net.TCPAddr); ok {
		port = strconv.Itoa(a.Port)
	}
	addr := c.RemoteAddr().String()
	if a := remote(c); a.IsValid() {
		addr = a.WithZone("").String()
	}
	cl.addr, cl.port, cl.owner = []string{addr}, []string{port}, addressing.Client(remote(c))
	return context.WithValue(ctx, clientKey{}, cl)
}

// under gives what the listener accepted; nil when it was not ours.
func under(c net.Conn) *conn {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	cn, _ := c.(*conn)
	return cn
}

// closeLost is the server's ConnState. The response is written when a connection becomes idle.
func closeLost(c net.Conn, state http.ConnState) {
	if cn := under(c); state == http.StateIdle && cn != nil && cn.lost.Load() {
		c.Close()
	}
}

// sending gives a channel that is closed when the client sends something that net/http does not read at the moment, and
// a func that ends the looking. A nil channel: nothing is known.
func (c *client) sending() (<-chan struct{}, func()) {
	cn := c.under
	if cn == nil {
		return nil, func() {}
	}
	began := make(chan struct{})
	if c.conn == net.Conn(cn) && cn.rest { // in the clear, net/http has some of the body already
		close(began)
		return began, func() {}
	}
	sys, ok := cn.Conn.(syscall.Conn)
	if !ok {
		return nil, func() {}
	}
	raw, err := sys.SyscallConn()
	if err != nil {
		return nil, func() {}
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if raw.Read(readable) == nil {
			close(began)
		}
	}()
	return began, func() {
		_ = cn.SetReadDeadline(longAgo)
		<-ended
		_ = cn.SetReadDeadline(time.Time{})
	}
}

// readable reports whether a read would not wait.
func readable(fd uintptr) bool {
	var b [1]byte
	_, _, err := unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
	return err != unix.EAGAIN
}

// takenBack counts a request of HTTP/2, and one that the client took back at once. It reports whether the connection
// does little else.
func (c *client) takenBack(began time.Time, gone bool) bool {
	all := c.requests.Add(1)
	if !gone || time.Since(began) > atOnce {
		return false
	}
	return 2*c.taken.Add(1) > max(all, fewRequests)
}
