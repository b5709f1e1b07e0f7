package ingress

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"tapestry.dev/tapestry/addressing"
	"tapestry.dev/tapestry/share"
	"tapestry.dev/tapestry/share/conns"
	"tapestry.dev/tapestry/share/limbo"
	"tapestry.dev/tapestry/underway"
)

const (
	// touchEvery is how often a connection in use is noted as used, at most. A connection may seem older by as much
	// when the one that was idle for longest is looked for.
	touchEvery = time.Second
	// A connection is ended when its client cancelled at once more than half of its HTTP/2 requests, and more than half
	// of fewRequests, or of fewOfWatched when the client is calmed. Each cancelled request costs a connection to a
	// backend.
	fewRequests  = 500
	fewOfWatched = 40
	// atOnce is the time from a request's beginning within which a cancellation counts as at once.
	atOnce = time.Second
	// replaceEvery is the time between two connections in use that are ended for others of the same client.
	replaceEvery = 10 * time.Millisecond
)

var (
	// errShare is why a request was ended: a client with fewer requests needed its place.
	errShare = errors.New("the client has more requests under way than its share")
	longAgo  = time.Unix(1, 0) // a deadline that has passed
)

// guests limits the connections of all clients. Each connection is charged to its owner.
type guests struct {
	limit    *share.Limit[netip.Prefix, *conn]
	lobby    *share.Lobby[netip.Prefix, *conn]
	limbo    *limbo.Limbo[netip.Prefix]                     // nil: none
	turn     func(done <-chan struct{}, owner netip.Prefix) // waits until the owner may go on, or done (share.Rounds)
	who      func(client, at netip.AddrPort) netip.Addr     // Options.Who
	stats    *counters
	calm     calm
	crumbs   crumbs
	replaced replacements
	starts   underway.Count // connections that came from the lobby and have begun no request yet
	ending   atomic.Bool    // Shutdown was called: Close no longer waits for clients
}

// conn is a client's connection.
type conn struct {
	net.Conn
	guests  *guests
	owner   netip.Prefix
	claim   share.Claim[netip.Prefix, *conn]
	stay    share.Stay[netip.Prefix, *conn]
	later   *laterListener // accepts the connection if it waits in the lobby; set before it enters
	starts  atomic.Bool    // it came from the lobby, and began no request yet
	touched atomic.Int64   // Unix nanoseconds; 0: nothing was read or written yet
	// pause is how long the first Read waits; it is then 0.
	pause  time.Duration
	unread bool        // nothing was read yet
	from   netip.Addr  // who has made the connection; set when something was read, so before any request
	calmed bool        // the client is calmed
	opened *opened     // what calm counts the connection in; nil: nothing
	wrote  atomic.Bool // something was sent to the client
	// answers says that an answer was passed on to net/http, and answered that the client was sent something since.
	answers, answered atomic.Bool
	fresh             atomic.Bool // no request was begun since the last read and its turn
	turns             turns       // of reads
	idle              atomic.Bool // no request is under way, and there was one
	rest              bool        // the last read did not end with the end of a request's head
	lost              atomic.Bool // in HTTP/1: nobody knows where the next request begins
	closing           atomic.Bool // Close has been called on a lost one
	// cancel ends the context of the connection's requests. It is nil before net/http has the connection.
	cancel atomic.Pointer[context.CancelFunc]
	ended  chan struct{} // closed by end
	ending sync.Once
}

// end closes the connection at once, or ends its waiting, and with it what its requests hold at backends: net/http does
// not notice a closed connection that was upgraded, or whose request has a body that nobody reads.
func (c *conn) end() {
	_ = c.Conn.Close()
	c.ending.Do(func() { close(c.ended) })
	c.started()
	c.guests.lobby.Leave(&c.stay)
	if cancel := c.cancel.Load(); cancel != nil {
		(*cancel)()
	}
}

// guestListener accepts the connections that guests admits. Those that have to wait go to later.
type guestListener struct {
	net.Listener
	guests *guests
	later  *laterListener
}

func (l guestListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		admitted, ok := l.guests.admit(c)
		if !ok {
			continue
		}
		admitted.later = l.later // before Enter, since its turn may come at once
		if l.guests.lobby.Enter(&admitted.stay, admitted.owner) {
			return admitted, nil
		}
		l.guests.stats.waited.Add(1)
	}
}

// admit charges a connection to its owner. When all places are taken it closes a connection of a client with more, or
// one of the same client, or reports false: c is then closed, or in limbo until it is reset.
func (g *guests) admit(c net.Conn) (*conn, bool) {
	now, owner := time.Now(), addressing.Client(remote(c))
	pause, counted := g.calm.pause(owner, now)
	if !g.worthwhile(owner, now) {
		g.stats.refused.Add(1)
		if !g.limbo.Hold(c, owner) { // a client that is reset at once dials again at once
			c.Close()
		}
		return nil, false
	}
	cn := &conn{
		Conn: c, guests: g, unread: true, owner: owner, ended: make(chan struct{}),
		pause: pause, calmed: pause > 0, opened: counted,
	}
	cn.claim.Value, cn.stay.Value = cn, cn
	lost, ok := g.limit.Acquire(&cn.claim, cn.owner)
	if lost != nil {
		g.stats.evicted.Add(1)
		lost.Value.end()
	}
	if !ok {
		g.stats.refused.Add(1)
		c.Close()
		return nil, false
	}
	return cn, true
}

// madeBy returns who has made a connection, of which something was read.
func (g *guests) madeBy(c net.Conn) netip.Addr {
	client, at := endOf(c.RemoteAddr()), endOf(c.LocalAddr())
	if g.who == nil || !client.IsValid() || !at.IsValid() {
		return client.Addr()
	}
	return g.who(client, at)
}

// worthwhile reports whether a client gets one more connection, as far as the client itself is concerned. With a
// connection in use the client would lose about as much as it gets, and clients who dial again at once would keep the
// Server busy with that alone. It happens now and then, since several people may share an address.
func (g *guests) worthwhile(owner netip.Prefix, now time.Time) bool {
	decision, loses := g.limit.Next(owner)
	return decision != share.Own || !loses.Value.inUse() || g.replaced.may(owner, now)
}

// replacements notes which clients had a connection in use ended for another one of theirs within replaceEvery.
type replacements struct {
	mu    sync.Mutex
	last  map[netip.Prefix]time.Time
	swept time.Time // when older entries were last dropped, each of which is then dropped once
}

// may reports whether a client may have a connection in use replaced now, and notes that it is.
func (r *replacements) may(owner netip.Prefix, now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if now.Sub(r.swept) >= replaceEvery {
		r.swept = now
		maps.DeleteFunc(r.last, func(_ netip.Prefix, last time.Time) bool { return now.Sub(last) >= replaceEvery })
	}
	if last, there := r.last[owner]; there && now.Sub(last) < replaceEvery {
		return false
	}
	if r.last == nil {
		r.last = map[netip.Prefix]time.Time{}
	}
	r.last[owner] = now
	return true
}

// inUse reports whether the client loses something with the connection: a request may be under way, or the client waits
// in the lobby. A connection of which nothing was read otherwise has none.
func (c *conn) inUse() bool {
	if c.touched.Load() == 0 {
		return c.guests.lobby.Waits(&c.stay) && !conns.Left(c.Conn)
	}
	return !c.idle.Load()
}

func remote(c net.Conn) netip.Addr { return endOf(c.RemoteAddr()).Addr() }

// endOf returns an end of a connection as netip has it, the zero AddrPort for one that is not TCP's.
func endOf(a net.Addr) netip.AddrPort {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	at := tcp.AddrPort()
	return netip.AddrPortFrom(at.Addr().Unmap(), at.Port())
}

func (c *conn) Read(p []byte) (int, error) {
	if c.pause > 0 {
		time.Sleep(c.pause)
		c.pause = 0
	}
	n, err := c.Conn.Read(p)
	if c.unread && n > 0 {
		c.unread = false
		c.from = c.guests.madeBy(c.Conn) // before Gone: who is not gone then was there to be asked about
		if conns.Gone(c.Conn) {
			return 0, io.EOF // the kernel would give what it sent before
		}
	}
	if n > 0 {
		c.touch()
		c.rest = n < 4 || string(p[n-4:n]) != "\r\n\r\n"
		c.turns.begin()
		c.guests.turn(c.ended, c.owner)
		c.turns.end()
		c.fresh.Store(true)
		select {
		case <-c.ended:
			return 0, net.ErrClosed // nothing is begun any more
		default:
		}
	}
	return n, err
}

func (c *conn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	if n > 0 {
		c.wrote.Store(true)
		if c.answers.Load() {
			c.answered.Store(true)
		}
		c.touch()
	}
	return n, err
}

// touch notes for the limit that the connection is in use.
func (c *conn) touch() {
	now := time.Now().UnixNano()
	if last := c.touched.Load(); now-last >= int64(touchEvery) && c.touched.CompareAndSwap(last, now) {
		c.guests.limit.Touch(&c.claim)
	}
}

// Close waits for the client, for lingerTime at most, when the client may still be sending. A second Close ends the
// wait. If the connection were closed at once it would be reset, and many clients would lose the response, which they
// read only after they have sent everything (RFC 9112 section 9.6).
func (c *conn) Close() error {
	if c.lost.Load() && !c.guests.ending.Load() && c.closing.CompareAndSwap(false, true) && c.CloseWrite() == nil {
		_ = c.Conn.SetReadDeadline(time.Now().Add(lingerTime))
		_, _ = io.Copy(io.Discard, c.Conn)
	}
	if c.guests.limit.Release(&c.claim) && !c.answered.Load() {
		c.guests.calm.unanswered(c.owner, c.opened, time.Now(), c.wrote.Load())
	}
	err := c.Conn.Close()
	c.end()
	return err
}

// CloseWrite ends the direction to the client. net/http calls it before it closes a connection that may still receive.
func (c *conn) CloseWrite() error {
	if w, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return errors.ErrUnsupported
}

// client is a connection as requests see it. addr, proto and port are header values for backends. They are made once
// and shared by all requests, so they must not be written to.
type client struct {
	conn              net.Conn
	under             *conn // conn itself, or the connection below TLS; nil when it is not from a guestListener
	owner             netip.Prefix
	addr, proto, port []string
	requests, taken   atomic.Uint32 // in HTTP/2: all requests, and those that were cancelled at once
	flooded           atomic.Bool   // too many were cancelled
}

// from returns who has made the connection of a request.
func (c *client) from() netip.Addr {
	if c.under != nil {
		return c.under.from
	}
	return remote(c.conn)
}

type clientKey struct{}

// withClient implements http.Server.ConnContext: it adds the client to the context.
func withClient(ctx context.Context, c net.Conn) context.Context {
	cl := &client{conn: c, proto: []string{"http"}}
	port := "80"
	if _, ok := c.(*tls.Conn); ok {
		cl.proto, port = []string{"https"}, "443"
	}
	if cl.under = under(c); cl.under != nil {
		var cancel context.CancelFunc
		ctx, cancel = context.WithCancel(ctx)
		cl.under.cancel.Store(&cancel)
	}
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

// under returns the connection that the guestListener accepted; nil when c is not from one.
func under(c net.Conn) *conn {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	cn, _ := c.(*conn)
	return cn
}

// noteState implements http.Server.ConnState. It closes lost connections when they become idle, which is when their
// response has been written.
func noteState(c net.Conn, state http.ConnState) {
	cn := under(c)
	if cn == nil {
		return
	}
	cn.idle.Store(state == http.StateIdle)
	if state == http.StateIdle && cn.lost.Load() {
		c.Close()
	}
}

// sending returns a channel that is closed when the client sends something while net/http does not read, and a func
// that ends the watching, which the caller must call. The channel is nil when that cannot be watched.
func (c *client) sending() (<-chan struct{}, func()) {
	cn := c.under
	if cn == nil {
		return nil, func() {}
	}
	began := make(chan struct{})
	if c.conn == net.Conn(cn) && cn.rest { // without TLS: net/http has read some of the body already
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

// takenBack counts an HTTP/2 request that has ended; gone says that the client cancelled it. It reports whether the
// client cancelled more than half of the connection's requests at once.
func (c *client) takenBack(began time.Time, gone bool) bool {
	all := c.requests.Add(1)
	if !gone || time.Since(began) > atOnce {
		return false
	}
	few := uint32(fewRequests)
	if c.under != nil && c.under.calmed {
		few = fewOfWatched
	}
	return 2*c.taken.Add(1) > max(all, few)
}
